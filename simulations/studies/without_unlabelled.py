"""Overrides that leave the unlabelled images out of a run."""

from collections.abc import Sequence

from configs.compose import compose


def without_unlabelled(overrides: Sequence[str], labelled_fraction: float) -> list[str]:
    """Overrides that leave unlabelled images out of both stages and keep the number of steps.

    Fewer images get more epochs. A site's labelled fraction is rounded to whole patients, so a
    site may make a few steps more or less.
    """
    training = compose("config", overrides).training
    autoencoder = training.autoencoder.local_epochs / labelled_fraction
    joint = training.joint.local_epochs / labelled_fraction
    return [
        "data.use_unlabelled=false",
        f"training.autoencoder.local_epochs={autoencoder:g}",
        f"training.joint.local_epochs={joint:g}",
    ]
