"""Masks that a user draws: their white pixels, their place in the model's image, and mistakes."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.drawn_masks import DrawnMask, editable_pixels

LEFT = np.zeros((8, 8), np.uint8)
LEFT[:, :4] = 255


def fitted(
    edit: DrawnMask | None, keep: DrawnMask | None = None, shape: tuple[int, int] = (8, 8)
) -> NDArray[np.bool_]:
    found = editable_pixels(edit, keep, shape, 8)
    assert found is not None
    return found


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_white_is_white_in_every_mode(mode: str, tmp_path: Path) -> None:
    mask = Image.fromarray(LEFT)
    mask = Image.fromarray(LEFT.astype(np.uint16) * 257) if mode == "I;16" else mask.convert(mode)
    mask.save(tmp_path / "mask.png")
    for given in (mask, tmp_path / "mask.png", str(tmp_path / "mask.png")):
        assert np.array_equal(fitted(given), LEFT > 0)


def test_transparent_parts_are_black_whatever_colour_they_hide() -> None:
    pixels = np.full((8, 8, 4), 255, np.uint8)
    pixels[..., 3] = LEFT
    assert np.array_equal(fitted(Image.fromarray(pixels)), LEFT > 0)


def test_a_mask_of_all_16_bits_is_all_white() -> None:
    assert fitted(Image.fromarray(np.full((8, 8), 65535, np.uint16))).all()


def test_a_pixel_is_marked_where_half_of_it_is_white() -> None:
    fine = np.zeros((16, 16), np.uint8)
    fine[:2, :2] = [[255, 255], [0, 0]]  # half of the first pixel
    fine[2, 2] = 255  # a quarter of another
    expected = np.zeros((8, 8), bool)
    expected[0, 0] = True
    assert np.array_equal(fitted(Image.fromarray(fine)), expected)
    expected[1, 1] = True  # thin parts are kept too
    assert np.array_equal(fitted(None, Image.fromarray(fine)), ~expected)


def test_a_mask_is_cropped_as_its_image_is() -> None:
    wide = np.zeros((8, 12), np.uint8)
    wide[:, :6] = 255  # two columns to the left of the square, and four in it
    for scale in (1, 3):
        mask = Image.fromarray(wide.repeat(scale, 0).repeat(scale, 1))
        assert np.array_equal(fitted(mask, shape=(80, 120)), LEFT > 0)


def test_both_masks_are_edit_without_keep() -> None:
    top = Image.fromarray(LEFT.T.copy())
    assert np.array_equal(fitted(Image.fromarray(LEFT), top), (LEFT > 0) & ~(LEFT.T > 0))
    assert editable_pixels(None, None, (8, 8), 8) is None


@pytest.mark.parametrize("shape", [(999, 1333), (1000, 1333), (1000, 1334)])
def test_a_size_may_be_rounded(shape: tuple[int, int]) -> None:
    assert fitted(Image.new("L", (400, 300), 255), shape=shape).all()


BLACK, WHITE, HALF = Image.new("L", (8, 8)), Image.new("L", (8, 8), 255), Image.fromarray(LEFT)


@pytest.mark.parametrize(
    ("edit", "keep", "message"),
    [
        (BLACK, None, "edit mask marks nothing of the image: nothing may change"),
        (None, WHITE, "keep mask marks the whole image: nothing may change"),
        (None, BLACK, "keep mask marks nothing of the image: all would change"),
        (HALF, HALF, "keep mask marks all that edit mask marks: nothing may change"),
        (
            Image.new("L", (9, 6), 255),
            None,
            "edit mask is 9 x 6 pixels, the image 8 x 8: allowed are the image's size and others "
            "of its aspect",
        ),
        (None, Path("none.png"), "keep mask none.png cannot be used: no such file"),
        (Path(__file__), None, "test_drawn_masks.py cannot be used: not a JPEG, PNG, TIFF or WebP"),
    ],
)
def test_a_mask_that_cannot_be_is_named(
    edit: DrawnMask | None, keep: DrawnMask | None, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        editable_pixels(edit, keep, (8, 8), 8)
    assert "\n" not in str(caught.value)
