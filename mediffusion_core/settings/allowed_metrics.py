"""The metrics that a site may send. A site file can only shorten the list."""

LOSSES = (
    "loss",
    "diffusion_loss",
    "classification_loss",
    "consistency_loss",
    "alignment_loss",
    "distillation_loss",
    "pseudo_labelled",
)
"""Means over a round's steps, in the order of a round's record."""

ALLOWED_METRICS = frozenset({"images_seen", "labelled_seen", "steps", "seconds", *LOSSES})
"""A metric tells of patients, so a site drops each one that is not in this list."""
