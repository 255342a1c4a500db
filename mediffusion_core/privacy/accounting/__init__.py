"""Privacy cost of steps and noisy statistics: the accountant, and the plan of a run."""
