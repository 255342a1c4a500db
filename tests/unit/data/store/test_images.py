"""Decoding of files from disk, and refusals with a reason."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mediffusion_core.data.store.images import ImageError, decode, fit, load_file, to_8_bit


def gradient(height: int = 40, width: int = 60) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 4, columns * 4, rows + columns], axis=-1).astype(np.uint8)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize(("low", "high"), [(0, 4095), (32768 - 1000, 32768 + 1000), (0, 65535)])
def test_16_bit_grey_fills_the_range_of_grey_levels(
    tmp_path: Path, kind: str, low: int, high: int
) -> None:
    """Twelve bits in sixteen would be 15 of 256 levels, as DeepLesion's HU + 32768 would be 8."""
    values = np.linspace(low, high, 900).reshape(30, 30).round().astype(np.uint16)
    path = save(tmp_path / f"a.{kind}", Image.fromarray(values))
    pixels = decode(path)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.rint((values - low) / (high - low) * 255))
    with Image.open(path) as image:
        assert np.array_equal(to_8_bit(image), pixels)


def test_16_bit_grey_follows_the_window(tmp_path: Path) -> None:
    values = np.arange(0, 4000, 10, dtype=np.uint16).reshape(20, 20)
    path = save(tmp_path / "a.png", Image.fromarray(values))
    shown = np.rint(np.clip((values - 999.5) / 1000, 0, 1) * 255)
    assert np.array_equal(decode(path, (1500.0, 1001.0)), shown)
    grey = save(tmp_path / "b.png", Image.fromarray(values.astype(np.uint8)))
    assert np.array_equal(decode(grey, (1500.0, 1001.0)), values.astype(np.uint8))


def test_signed_and_floating_values_of_a_tiff_have_their_own_range(tmp_path: Path) -> None:
    values = np.linspace(-1024, 3071, 400).reshape(20, 20)
    for kind in (np.int32, np.float32):
        pixels = decode(save(tmp_path / "a.tif", Image.fromarray(values.astype(kind))))
        assert (pixels.min(), pixels.max(), len(np.unique(pixels))) == (0, 255, 256)
    values[0, 0] = np.nan
    with pytest.raises(ImageError, match="not finite"):
        decode(save(tmp_path / "a.tif", Image.fromarray(values.astype(np.float32))))


def test_a_tiff_whose_white_is_zero_is_not_inverted(tmp_path: Path) -> None:
    values = np.arange(400, dtype=np.uint16).reshape(20, 20)
    for kind in (np.uint16, np.uint8):
        plain = decode(save(tmp_path / "a.tif", Image.fromarray((values // 2).astype(kind))))
        path = save(tmp_path / "b.tif", Image.fromarray((199 - values // 2).astype(kind)))
        raw = path.read_bytes()  # the element 262, a short: once, whose value is 1
        assert raw.count(b"\x06\x01\x03\x00\x01\x00\x00\x00\x01") == 1
        path.write_bytes(
            raw.replace(b"\x06\x01\x03\x00\x01\x00\x00\x00\x01", b"\x06\x01\x03\x00\x01\0\0\0\0")
        )
        if kind is np.uint16:
            assert np.array_equal(decode(path), plain)
        else:  # of 8 bits there is no range to fill
            assert np.array_equal(decode(path), plain.astype(int) + 255 - 199)


def png_of_16_bits(path: Path, values: np.ndarray, colour_type: int) -> Path:
    """Colours or transparency of 16 bits, which Pillow can't write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        sealed = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + sealed

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )  # fmt: skip
    return path


def test_16_bit_colours_that_would_come_out_flat_are_refused(tmp_path: Path) -> None:
    values = np.linspace(0, 4095, 1200).reshape(20, 20, 3)
    with pytest.raises(ImageError, match="16-bit colours or transparency that fill 16 of 256"):
        decode(png_of_16_bits(tmp_path / "a.png", values, 2))
    with pytest.raises(ImageError, match="fill 16 of 256"):
        decode(png_of_16_bits(tmp_path / "a.png", values[..., :2], 4))
    whole = png_of_16_bits(tmp_path / "a.png", values * 16, 2)
    assert np.array_equal(decode(whole), (values * 16).astype(np.uint16) >> 8)


def test_16_bit_colours_of_a_small_range_are_refused(tmp_path: Path) -> None:
    """Hounsfield units stored as HU + 32768 fill eight of the upper bytes."""
    values = np.linspace(31768, 33768, 400).astype(np.uint16).reshape(20, 20, 1).repeat(3, axis=2)
    with pytest.raises(ImageError, match="fill 8 of 256"):
        decode(png_of_16_bits(tmp_path / "a.png", values, 2))


def test_signed_bytes_of_a_tiff_are_signed(tmp_path: Path) -> None:
    values = np.arange(-100, 100, dtype=np.int8).reshape(10, 20)
    saved = save(tmp_path / "a.tif", Image.fromarray(values.view(np.uint8)), tiffinfo={339: (2,)})
    expected = np.rint((values.astype(float) + 100) / 199 * 255)
    assert np.array_equal(decode(saved), expected)


def test_several_pages_or_frames_are_refused(tmp_path: Path) -> None:
    pages = [Image.new("L", (8, 8), value) for value in (0, 100, 200)]
    for name in ("a.tif", "a.webp", "a.png"):
        path = save(tmp_path / name, pages[0], save_all=True, append_images=pages[1:])
        with pytest.raises(ImageError, match="3 pages or frames, allowed is 1"):
            decode(path)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    pixels = decode(save(tmp_path / "a.jpg", cyan, quality=95))
    assert pixels.shape == (16, 16, 3)
    assert np.abs(pixels.astype(int) - (0, 255, 255)).max() < 6


def test_palette_keeps_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(gradient()).quantize(8)
    pixels = decode(save(tmp_path / "a.png", image))
    assert np.array_equal(pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_modes_stay_grey(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(gradient()).convert("L").convert(mode)
    assert decode(save(tmp_path / "a.png", image)).shape == (40, 60)


def test_alpha_is_dropped(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert (decode(save(tmp_path / "a.png", image)) == (10, 20, 30)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
def test_exif_orientation_is_applied_once(tmp_path: Path, kind: str, orientation: int) -> None:
    upright = gradient()
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions, inverted
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if kind == "webp" else {"quality": 100}
    path = save(tmp_path / f"a.{kind}", stored, exif=exif, **lossless)
    read = decode(path)
    assert read.shape == upright.shape
    assert np.abs(read.astype(int) - upright).mean() < 3
    with Image.open(path) as image:
        assert np.array_equal(to_8_bit(image), read)
        image.load()
        assert np.array_equal(to_8_bit(image.convert("RGB")), read)


def test_corrupt_exif_warns_of_nothing(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description that ends early"
    path = save(tmp_path / "a.jpg", Image.new("L", (6, 4)), exif=exif.tobytes()[:-20])
    assert decode(path).shape == (4, 6)
    assert list(recwarn) == []


def test_a_jpeg_is_decoded_whole(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(gradient(400, 600)))
    with Image.open(path) as image:
        assert np.array_equal(decode(path), np.asarray(image))


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_truncated_is_refused(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{kind}", Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError):
        decode(path)


def test_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", Image.new("L", (40, 40)))
    for limit in (1000, 100):  # Pillow warns at the one and raises at the other
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ImageError, match=r"[Bb]omb"):
            decode(path)


def test_other_formats_and_pixels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(ImageError, match="not a JPEG, PNG, TIFF or WebP"):
        decode(tmp_path / "a.png")


def test_load_file_names_the_reason(tmp_path: Path) -> None:
    root = (tmp_path / "root").resolve()
    root.mkdir()
    save(tmp_path / "secret.png", Image.new("L", (4, 4)))
    (root / "empty.png").touch()
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    paths = ("empty.png", "missing.png", "../secret.png", "link.png")
    for index, reason in enumerate(["empty", "no such file", "outside", "outside"]):
        with pytest.raises(ImageError, match=reason):
            load_file(root, paths, None, index)


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
            load_file(tmp_path.resolve(), (path,), None, 0)
