"""Decoding: what comes in from disk, and what is refused with a reason."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mediffusion_core.data.store.images import ImageError, decode, fit, load_file


def gradient(height: int = 40, width: int = 60) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 4, columns * 4, rows + columns], axis=-1).astype(np.uint8)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_16_bit_grey_is_scaled_over_the_whole_range(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    pixels = decode(save(tmp_path / "a.png", Image.fromarray(values)), 1)
    assert pixels.dtype == np.uint8
    assert pixels.tolist() == [[0, 1, 128, 255]]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    pixels = decode(save(tmp_path / "a.jpg", cyan, quality=95), 16)
    assert pixels.shape == (16, 16, 3)
    assert np.abs(pixels.astype(int) - (0, 255, 255)).max() < 6


def test_palette_keeps_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(gradient()).quantize(8)
    pixels = decode(save(tmp_path / "a.png", image), 1)
    assert np.array_equal(pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_modes_stay_grey(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(gradient()).convert("L").convert(mode)
    assert decode(save(tmp_path / "a.png", image), 1).shape == (40, 60)


def test_alpha_is_dropped(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert (decode(save(tmp_path / "a.png", image), 1) == (10, 20, 30)).all()


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_exif_orientation_is_applied(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    pixels = gradient()
    path = save(tmp_path / f"a.{kind}", Image.fromarray(pixels), exif=exif, quality=100)
    turned = np.rot90(pixels, -1).astype(int)
    read = decode(path, 1000).astype(int)
    assert read.shape == (60, 40, 3)
    assert np.abs(read - turned).mean() < 3


def test_draft_halves_a_jpeg_but_never_below_what_is_asked(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(gradient(400, 600)))
    assert decode(path, 100).shape == (100, 150, 3)
    assert decode(path, 101).shape == (200, 300, 3)
    assert decode(path, 401).shape == (400, 600, 3)


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_truncated_is_refused(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{kind}", Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError):
        decode(path, 1)


def test_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", Image.new("L", (40, 40)))
    for limit in (1000, 100):  # Pillow warns at the one and raises at the other
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ImageError, match=r"[Bb]omb"):
            decode(path, 1)


def test_other_formats_and_pixels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(ImageError, match="cannot identify"):
        decode(tmp_path / "a.png", 1)


def test_load_file_names_the_reason(tmp_path: Path) -> None:
    root = (tmp_path / "root").resolve()
    root.mkdir()
    save(tmp_path / "secret.png", Image.new("L", (4, 4)))
    (root / "empty.png").touch()
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    paths = ("empty.png", "missing.png", "../secret.png", "link.png")
    for index, reason in enumerate(["empty", "no such file", "outside", "outside"]):
        with pytest.raises(ImageError, match=reason):
            load_file(root, paths, 1, index)


def test_fit_takes_the_centred_square() -> None:
    pixels = np.zeros((20, 60), np.uint8)
    pixels[:, 20:40] = 200
    square = fit(pixels, 10, 1).astype(int)
    # The filter reaches a little beyond the edge of the square, and rings there.
    assert np.abs(square - 200).max() < 20
    assert (square[:, 2:-2] == 200).all()
    assert fit(pixels, 10, 3).shape == (10, 10, 3)
    assert fit(gradient(), 8, 1).shape == (8, 8, 1)


def test_fit_antialiases() -> None:
    checkerboard = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert np.abs(fit(checkerboard, 8, 1).astype(int) - 127).max() <= 3


def test_a_path_that_cannot_be_followed_is_a_bad_image_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to("loop.png")
    for path in ("loop.png", "x" * 300 + ".png"):
        with pytest.raises(ImageError):
            load_file(tmp_path.resolve(), (path,), 1, 0)
