"""The overrides by which the settings of a run become those of a trained model."""

from collections.abc import Sequence

from configs.quoting import as_overrides
from mediffusion_core.settings import Settings


def overrides_of_model(
    settings: Settings, classes: Sequence[str], multi_label: bool
) -> tuple[str, ...]:
    """Overrides for networks, noise process, images and classes of a model.

    A site that composes them restores the model's networks, and refuses images of other classes.

    Args:
        settings: Of the model.
        classes: In the order of the logits.
        multi_label: Whether an image may have several classes.
    """
    given = settings.shared()
    taken = {
        "model": given["model"],
        "diffusion": given["diffusion"],
        "data": {
            **{name: given["data"][name] for name in ("image_size", "channels", "augmentation")},
            "classes": list(classes),
            "multi_label": multi_label,
        },
        "evaluation": {"noise_levels": given["evaluation"]["noise_levels"]},
    }
    return tuple(as_overrides(taken))
