"""The commands `fed-mediffusion study`, one folder a question."""
