"""The commands `fed-mediffusion study`: one folder for each question."""
