"""Lower bounds of ε, measured on private steps."""
