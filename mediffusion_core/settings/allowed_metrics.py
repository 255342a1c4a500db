"""The metrics that a site may send. A site file can only shorten the list."""

ALLOWED_METRICS = frozenset(
    {
        "images_seen",
        "labelled_seen",
        "steps",
        "seconds",
        "loss",
        "diffusion_loss",
        "classification_loss",
        "consistency_loss",
        "alignment_loss",
        "pseudo_labelled",
    }
)
"""A metric tells of patients, so a site drops each one that is not in this list."""
