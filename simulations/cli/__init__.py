"""The command `fed-mediffusion`."""
