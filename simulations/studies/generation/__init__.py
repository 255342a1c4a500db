"""How good are a model's samples? Distances, fidelity, diversity and copies, beside real images."""
