"""Pictures: content, position and colour."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from mediffusion_core.evaluation.counterfactual_panel import CounterfactualRow
from mediffusion_core.reporting.charts import spread
from mediffusion_core.reporting.pictures import (
    save_counterfactual_panel,
    save_curves,
    save_reconstructions,
    save_sample_grid,
    save_sites,
    shown_classes,
    signed_difference,
)
from mediffusion_core.reporting.style import BLUE, DIFFERENCE, OCHRE, TERRACOTTA, as_batch


def opened(path: Path) -> NDArray[np.uint8]:
    """Pixels, (H, W, 3), of a file that decodes completely as PNG."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[start : start + 2], 16) for start in (1, 3, 5))


def of_colour(
    pixels: NDArray[np.uint8], colour: tuple[int, ...], within: int = 6
) -> NDArray[np.bool_]:
    """(H, W) mask of the pixels near a colour."""
    return np.asarray(np.abs(pixels.astype(int) - np.array(colour)).max(axis=2) <= within)


def row(change: NDArray[np.float64], channels: int = 1, **other: object) -> CounterfactualRow:
    source = np.full((channels, *change.shape), 0.5)
    content: dict[str, object] = {
        "target": "remove Mass",
        "classes": ("Mass", "Nodule"),
        "before": np.array([0.9, 0.2]),
        "after": np.array([0.1, 0.3]),
        "flipped": True,
    }
    return CounterfactualRow(source, source + change, **(content | other))  # type: ignore[arg-type]


def mapped(value: float) -> tuple[int, ...]:
    """Colour of a difference on the symmetric scale, value in [-1, 1]."""
    return tuple(round(255 * part) for part in DIFFERENCE((value + 1) / 2)[:3])


def evaluation(index: int, **figures: object) -> dict[str, object]:
    return {"stage": "evaluation", "round": index, "rounds": 4, "time": 1.0 * index, **figures}


def test_grid_has_the_tiles_in_reading_order(tmp_path: Path) -> None:
    shades = torch.linspace(0, 1, 6)
    images = shades.view(6, 1, 1, 1).expand(6, 3, 32, 32)
    save_sample_grid(images, tmp_path / "new" / "grid.png", columns=4)
    pixels = opened(tmp_path / "new" / "grid.png")
    margin, step = 16, 128 + 4
    assert pixels.shape == (2 * margin + 2 * step - 4, 2 * margin + 4 * step - 4, 3)
    for index, shade in enumerate(shades):
        centre = pixels[margin + index // 4 * step + 64, margin + index % 4 * step + 64]
        assert np.all(centre == round(255 * float(shade)))
    assert np.all(pixels[margin + step + 64, margin + 3 * step + 64] == 255)


@pytest.mark.parametrize(("side", "shown"), [(28, 128), (64, 128), (160, 160), (512, 256)])
def test_tiles_are_at_least_128_and_at_most_256_pixels(
    tmp_path: Path, side: int, shown: int
) -> None:
    save_sample_grid(np.zeros((1, 1, side, 2 * side)), tmp_path / "one.png")
    assert opened(tmp_path / "one.png").shape[:2] == (shown + 32, 2 * shown + 32)


def test_a_title_adds_height_and_is_never_cut(tmp_path: Path) -> None:
    images = np.zeros((1, 1, 32, 32))
    save_sample_grid(images, tmp_path / "plain.png")
    save_sample_grid(images, tmp_path / "titled.png", title="Samples after the very last round")
    plain, titled = opened(tmp_path / "plain.png"), opened(tmp_path / "titled.png")
    assert titled.shape[0] > plain.shape[0]
    assert titled.shape[1] > plain.shape[1]
    assert np.all(titled[:, -8:] == 255)
    assert titled[: titled.shape[0] - plain.shape[0]].min() < 100


def test_values_outside_the_range_are_clipped_and_nan_is_black() -> None:
    batch = as_batch(np.array([[[[-1.0, 2.0, np.nan, 0.25]]]]))
    np.testing.assert_array_equal(batch, np.array([[[[0, 1, 0, 0.25]]]], np.float32))


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 8, 8), (0, 1, 8, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected"):
        save_sample_grid(np.zeros(shape), tmp_path / "no.png")


def test_reconstructions_stand_below_their_sources(tmp_path: Path) -> None:
    sources, copies = np.full((9, 1, 16, 16), 0.2), np.full((9, 1, 16, 16), 0.6)
    save_reconstructions(sources, copies, [30.0] * 9, tmp_path / "pairs.png")
    pixels = opened(tmp_path / "pairs.png")
    dark, light = of_colour(pixels, (51,) * 3, 0), of_colour(pixels, (153,) * 3, 0)
    assert dark.sum() >= 9 * 128 * 128 and light.sum() >= 9 * 128 * 128
    assert np.nonzero(dark)[0].min() < np.nonzero(light.sum(axis=1) > 128)[0].min()
    with pytest.raises(ValueError, match="do not belong together"):
        save_reconstructions(sources, copies, [30.0] * 8, tmp_path / "pairs.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_difference_has_the_right_sign_side_and_shared_scale(tmp_path: Path, channels: int) -> None:
    change = np.zeros((32, 32))
    change[:, :16], change[:, 16:] = 0.4, -0.4
    weaker = np.full((32, 32), 0.1)
    save_counterfactual_panel(
        [row(change, channels), row(weaker, channels)], tmp_path / "panel.png"
    )
    pixels = opened(tmp_path / "panel.png")
    brighter, darker = of_colour(pixels, mapped(1)), of_colour(pixels, mapped(-1))
    assert brighter.sum() > 20_000 and darker.sum() > 20_000
    assert np.nonzero(brighter.sum(axis=0) > 200)[0].max() < (
        np.nonzero(darker.sum(axis=0) > 200)[0].min()
    )
    quarter = of_colour(pixels, mapped(0.25), 2)
    assert quarter.sum() > 60_000
    assert np.nonzero(quarter)[0].mean() > np.nonzero(brighter.sum(axis=1) > 100)[0].max()


def test_signed_difference_is_the_mean_over_channels() -> None:
    content = row(np.zeros((4, 4)), channels=3)
    content.counterfactual[0] += 0.3
    np.testing.assert_allclose(signed_difference(content), 0.1)


def test_an_unchanged_image_gives_a_neutral_map(tmp_path: Path) -> None:
    save_counterfactual_panel([row(np.zeros((16, 16)))], tmp_path / "panel.png")
    assert of_colour(opened(tmp_path / "panel.png"), mapped(0), 0).sum() > 80_000


def test_a_row_that_did_not_flip_is_marked(tmp_path: Path) -> None:
    for name, flipped in (("yes", True), ("no", False)):
        content = row(np.zeros((16, 16)), flipped=flipped)
        save_counterfactual_panel([content], tmp_path / f"{name}.png")
    yes, no = opened(tmp_path / "yes.png"), opened(tmp_path / "no.png")
    right = yes.shape[1] * 2 // 3  # clear of the colour bar
    assert of_colour(no, rgb(TERRACOTTA))[:, right:].sum() > 50
    assert of_colour(yes, rgb(TERRACOTTA))[:, right:].sum() == 0


def test_truth_adds_a_column_only_where_a_row_has_one(tmp_path: Path) -> None:
    plain = row(np.zeros((16, 16)))
    known = row(np.zeros((16, 16)), truth=np.full((1, 16, 16), 0.8))
    save_counterfactual_panel([plain, plain], tmp_path / "plain.png")
    save_counterfactual_panel([plain, known], tmp_path / "known.png")
    without, with_truth = opened(tmp_path / "plain.png"), opened(tmp_path / "known.png")
    assert with_truth.shape[0] == without.shape[0]
    assert with_truth.shape[1] > without.shape[1] + 280
    assert of_colour(with_truth, (204,) * 3, 0).sum() > 80_000
    with pytest.raises(ValueError, match="at least one row"):
        save_counterfactual_panel([], tmp_path / "none.png")


def test_what_may_change_is_outlined_in_each_image_of_its_row(tmp_path: Path) -> None:
    editable = np.zeros((16, 16), bool)
    editable[:8, :4] = True  # at the margin of the tile
    masked = row(np.zeros((16, 16)), editable=editable)
    save_counterfactual_panel([row(np.zeros((16, 16))), masked], tmp_path / "panel.png")
    ochre = of_colour(opened(tmp_path / "panel.png"), rgb(OCHRE), 30)
    rows, columns = (np.nonzero(ochre.sum(axis=axis) > 30)[0] for axis in (1, 0))
    # Tiles have 300 pixels: two horizontal lines, and two vertical ones in each of three tiles.
    assert 148 <= rows.max() - rows.min() <= 152
    starts = [columns[0], *(b for a, b in pairwise(columns) if b > a + 1)]
    assert len(starts) == 6
    assert all(73 <= starts[k + 1] - starts[k] <= 77 for k in (0, 2, 4))
    assert rows.min() > ochre.shape[0] / 2


def test_the_chart_keeps_the_named_classes_and_those_that_moved_most() -> None:
    names = ("Pleural", "Pleural_Thickening", *(f"c{index}" for index in range(8)))
    after = np.array([0.0, 0.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    content = row(
        np.zeros((4, 4)),
        target="remove Pleural_Thickening",
        classes=names,
        before=np.zeros(10),
        after=after,
    )
    assert shown_classes(content) == [1, 2, 3, 4, 5, 6, 7]


def test_curves_leave_out_missing_figures(tmp_path: Path) -> None:
    history: list[dict[str, object]] = [
        {"stage": "autoencoder", "round": index, "loss": 1.0 / index} for index in (1, 2, 3)
    ]
    save_curves(history, tmp_path / "one.png")
    history += [evaluation(0, fid=300.0, fid_floor=50.0), evaluation(4, fid=80.0, fid_floor=50.0)]
    save_curves(history, tmp_path / "two.png")
    history += [evaluation(4, kid=None, auc_macro=float("nan"), fid_floor=50.0)]
    save_curves(history, tmp_path / "still_two.png")
    one, two = opened(tmp_path / "one.png"), opened(tmp_path / "two.png")
    assert two.shape[0] == one.shape[0] and two.shape[1] == 2 * one.shape[1]
    np.testing.assert_array_equal(opened(tmp_path / "still_two.png"), two)


def test_every_chart_of_a_full_run_is_drawn(tmp_path: Path) -> None:
    history: list[dict[str, object]] = []
    for index in range(5):
        history += [
            {"stage": "autoencoder", "round": index, "loss": 1.0, "psnr": 20.0 + index},
            {"stage": "joint", "round": index, "diffusion_loss": 1.0, "classification_loss": 2.0},
            evaluation(
                index,
                auc_macro=0.8,
                auc_pooled=0.7,
                auc_per_class={"a$": 0.9, "b": None},
                fid=90.0,
                fid_floor=50.0,
                kid=0.1,
            ),
        ]
    save_curves(history, tmp_path / "all.png")
    pixels = opened(tmp_path / "all.png")
    assert pixels.shape[1] == 4 * 600 and pixels.shape[0] == 2 * 470
    assert of_colour(pixels, rgb(TERRACOTTA)).sum() > 100
    assert np.all(pixels[:, -3:] == 255) and np.all(pixels[:3] == 255)


@pytest.mark.parametrize("history", [[], [evaluation(0, fid_floor=50.0)]])
def test_no_curves_no_file(tmp_path: Path, history: list[dict[str, object]]) -> None:
    save_curves(history, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_the_last_line_of_a_repeated_round_counts(tmp_path: Path) -> None:
    fresh = [evaluation(0, fid=200.0), evaluation(1, fid=90.0)]
    save_curves(fresh, tmp_path / "fresh.png")
    save_curves([evaluation(1, fid=999.0), *fresh], tmp_path / "resumed.png")
    assert (tmp_path / "fresh.png").read_bytes() == (tmp_path / "resumed.png").read_bytes()


@given(st.lists(st.floats(0, 1), max_size=12))
def test_spread_labels_keep_their_order_and_distance(places: list[float]) -> None:
    moved = spread(sorted(places), 0.1)
    assert len(moved) == len(places)
    assert all(after - before >= 0.1 - 1e-9 for before, after in pairwise(moved))
    assert np.sum(moved) == pytest.approx(np.sum(places), abs=1e-9)


def test_sites_shows_each_use_in_proportion(tmp_path: Path) -> None:
    site = {"images": 100, "train": 80, "labelled": 20, "validation": 5, "test": 15}
    save_sites({name: {**site, "per_class": {}} for name in "abcd"}, tmp_path / "sites.png")
    pixels = opened(tmp_path / "sites.png")
    bars = pixels[pixels.shape[0] // 3 :]  # without the legend
    labelled, validation, test = (
        of_colour(bars, rgb(colour)).sum() for colour in (BLUE, OCHRE, TERRACOTTA)
    )
    assert labelled / test == pytest.approx(20 / 15, rel=0.05)
    assert labelled / validation == pytest.approx(4, rel=0.15)


def test_sites_without_classes_has_no_heat_map(tmp_path: Path) -> None:
    site = {"images": 10, "train": 8, "labelled": 0, "validation": 1, "test": 1}
    save_sites({"a": {**site, "per_class": {"x": 1}}}, tmp_path / "with.png")
    save_sites({"a": {**site, "per_class": {}}}, tmp_path / "without.png")
    assert opened(tmp_path / "without.png").shape[1] < opened(tmp_path / "with.png").shape[1]
    with pytest.raises(ValueError, match="at least one site"):
        save_sites({}, tmp_path / "none.png")
