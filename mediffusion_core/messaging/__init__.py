"""What server and site say to each other, and how it travels."""
