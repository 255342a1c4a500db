"""Settings that folders of former runs wrote under other names."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from mediffusion_core.settings import CounterfactualSettings, DiffusionSettings
from mediffusion_core.settings.federation import FederationSettings
from mediffusion_core.settings.site_file import SiteLedger

ROUNDS = {"num_sites": 3, "num_rounds": 1, "autoencoder_rounds": 1}


def test_a_former_name_is_read() -> None:
    settings = FederationSettings.model_validate({**ROUNDS, "min_replies": 2})
    assert settings.min_sites == 2
    assert "min_replies" not in settings.model_dump()


def test_a_former_site_file_is_read() -> None:
    assert SiteLedger.model_validate({"head": "/kept/tip"}).tip == Path("/kept/tip")


def test_a_former_and_a_present_name_together_are_refused() -> None:
    with pytest.raises(ValidationError, match="min_replies"):
        FederationSettings.model_validate({**ROUNDS, "min_replies": 2, "min_sites": 3})


def test_a_former_value_is_read() -> None:
    settings = DiffusionSettings.model_validate({"prediction": "velocity"})
    assert settings.prediction == "v_prediction"


def test_guidance_of_a_former_run_is_read() -> None:
    former = {
        "start": 0.5,
        "steps": 7,
        "scale": 3.0,
        "closeness": 0.1,
        "attempts": 2,
        "hold": 0.5,
    }
    assert CounterfactualSettings.model_validate(former) == CounterfactualSettings(
        strength=0.5,
        num_inference_steps=7,
        guidance_scale=3.0,
        proximity_weight=0.1,
        num_candidates=2,
        preserve_weight=0.5,
    )
