"""A measured lower bound of ε for the private steps of a run."""
