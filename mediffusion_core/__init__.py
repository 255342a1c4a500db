"""All learning and all judging of Mediffusion; knows nothing of federation or of Hydra."""
