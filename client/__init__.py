"""The ClientApp: a message in, the core called, a message out."""
