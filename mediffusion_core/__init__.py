"""Training and evaluation of Mediffusion; imports no Flower, Ray or Hydra."""
