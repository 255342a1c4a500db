"""The overrides by which the settings of a run become those of a trained model."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from configs.quoting import quoted
from mediffusion_core.settings import Settings

_PLAIN = re.compile(r"[\w .()/-]*[\w.()/-]")
"""A text that needs no quotation marks in an override."""


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
    return tuple(_leaves(taken))


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}={_written(value)}"


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else quoted(value)
    if isinstance(value, list):
        return f"[{','.join(_written(item) for item in value)}]"
    return json.dumps(value)
