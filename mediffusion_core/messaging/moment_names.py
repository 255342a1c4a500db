"""Names of Adam's moments in a message: the parameter's name, and one of these endings."""

STEPS = "steps"
MEAN = ".exp_avg"
SQUARE = ".exp_avg_sq"
