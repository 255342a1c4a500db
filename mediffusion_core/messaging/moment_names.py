"""How Adam's moments are named in a message: a parameter's name and one of these endings."""

STEPS = "steps"
MEAN = ".exp_avg"
SQUARE = ".exp_avg_sq"
