"""Which metrics a site may send at all; a site file can only shorten the list."""

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
        "pseudo_labelled",
    }
)
"""A metric is a way out of the hospital: what is not named here is dropped at the site."""
