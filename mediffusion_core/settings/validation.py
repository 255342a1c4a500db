"""Checks a composed configuration; a mistake becomes one line."""

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from mediffusion_core.common.errors import UserError
from mediffusion_core.settings.privacy_conflicts import require_public_model
from mediffusion_core.settings.run import Settings


def validate(composed: Mapping[str, Any]) -> Settings:
    """Checks the settings of a run that is to be started.

    Raises:
        UserError: naming the first wrong key, its value, and the allowed values.
    """
    settings = checked(composed)
    try:
        require_public_model(settings)
    except ValueError as error:
        raise UserError(str(error)) from None
    return settings


def checked(composed: Mapping[str, Any]) -> Settings:
    """Checks the settings of a run that is to be started, or has ended.

    Raises:
        UserError: naming the first wrong key, its value, and the allowed values.
    """
    try:
        settings = Settings.model_validate(composed)
        _refuse_untrained_guidance(settings)
    except ValidationError as error:
        raise UserError(_one_line(error, composed)) from None
    except ValueError as error:
        raise UserError(str(error)) from None
    return settings


def _refuse_untrained_guidance(settings: Settings) -> None:
    """Refuses guidance whose timesteps are all noisier than the classifier's training."""
    joint, guidance = settings.training.joint, settings.evaluation.counterfactual
    total = settings.diffusion.timesteps
    until = joint.classified_until(total)
    if joint.trains_both_halves and until and guidance.timesteps(total)[-1] > until:
        raise ValueError(
            f"evaluation.counterfactual.num_inference_steps={guidance.num_inference_steps} from "
            f"strength={guidance.strength:g}: the last step starts above "
            f"training.joint.noised_max_timestep={joint.noised_max_timestep:g}, up to which the "
            "classifier guides"
        )


def _one_line(error: ValidationError, composed: Mapping[str, Any]) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown setting {key}{did_you_mean(key, known_keys(composed, key))}"
    message = first["msg"].removeprefix("Value error, ")
    if not key or first["type"] == "value_error":
        return message
    if first["type"] == "missing":
        return f"setting {key} is missing"
    message = message[0].lower() + message[1:]
    return f"setting {key}={first['input']!r}: {message}"


def known_keys(composed: Mapping[str, Any], unknown: str = "", prefix: str = "") -> list[str]:
    """Dotted names of all leaves of a composed configuration, except the unknown one."""
    names: list[str] = []
    for key, value in composed.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            names += known_keys(value, unknown, f"{name}.")
        elif name != unknown:
            names.append(name)
    return names


def setting_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of all fields of a model and of the models within it."""
    found = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += setting_names(inner, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name}")
    return found


def did_you_mean(given: str, allowed: list[str]) -> str:
    """A hint such as `, did you mean data.image_size?`, or nothing where no name is near."""
    near = difflib.get_close_matches(given, allowed, n=1, cutoff=0.6)
    return f", did you mean {near[0]}?" if near else ""
