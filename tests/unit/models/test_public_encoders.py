"""Public encoders: their features, and that FID is measured by another network."""

import builtins
from typing import Any, get_args

import pytest
import torch

from mediffusion_core.common.errors import UserError
from mediffusion_core.evaluation.features import EXTRACTORS
from mediffusion_core.models.public_encoders import (
    ENCODER_WIDTHS,
    build_encoder,
    efficientnet_lite,
)
from mediffusion_core.settings.training import PublicEncoderName

PACKAGED = ("image-statistics", "efficientnet-lite1")
"""efficientnet-lite2's weights are not installed by default."""


def images(count: int = 3, channels: int = 3, side: int = 64) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", PACKAGED)
def test_features_are_of_the_declared_width(name: str) -> None:
    encoder = build_encoder(name, 64)
    features = encoder(images())
    assert features.shape == (3, encoder.width) == (3, ENCODER_WIDTHS[name])
    assert features.dtype == torch.float32 and features.isfinite().all()
    assert float(features.std(dim=0).min()) > 0, "no feature is the same for all images"


@pytest.mark.parametrize("name", PACKAGED)
def test_a_grey_image_is_three_equal_channels(name: str) -> None:
    encoder, grey = build_encoder(name, 64), images(2, 1)
    torch.testing.assert_close(encoder(grey), encoder(grey.repeat(1, 3, 1, 1)))


def test_stages_end_where_the_published_network_changes_its_width() -> None:
    """Widths of EfficientNet-Lite's stages 3 to 6: 40, 80, 112 and 192."""
    encoder = build_encoder("efficientnet-lite1", 64)
    assert encoder.width == 2 * (40 + 80 + 112 + 192) + ENCODER_WIDTHS["image-statistics"]


def test_every_encoder_of_the_settings_has_a_declared_width() -> None:
    assert set(get_args(PublicEncoderName)) == set(ENCODER_WIDTHS)


def test_fid_is_measured_by_no_network_that_is_aligned_with() -> None:
    """Else samples would be drawn after the network that judges them."""
    assert not set(EXTRACTORS) & set(ENCODER_WIDTHS)


def test_missing_weights_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "efficientnet_lite_pytorch":
            raise ModuleNotFoundError(name)
        return found(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install efficientnet-lite-pytorch efficientnet-lite2"):
        efficientnet_lite(2, 64)
