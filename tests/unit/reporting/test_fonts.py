"""Names of classes and sites in any script have a glyph in every picture."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.ft2font import FT2Font

from mediffusion_core.reporting.fonts import PACKAGES, families, font_for, of_packages
from mediffusion_core.reporting.pictures import (
    CounterfactualRow,
    save_counterfactual_panel,
    save_sample_grid,
)

NAMES = [
    "肺炎",
    "正常",
    "폐렴",
    "Φυσιολογικό",
    "Здоров",
    "รอยโรค",
    "निमोनिया",
    "நோய்",
    "סרטן",
    "ورم",
    "Übelkeit",
    "はい",
]
needs_fonts = pytest.mark.skipif(len(of_packages()) < len(PACKAGES), reason="needs the extra fonts")


@needs_fonts
@pytest.mark.parametrize("name", NAMES)
def test_a_font_has_the_name(name: str) -> None:
    font = FT2Font(str(font_for(name)))
    assert all(font.get_char_index(ord(sign)) for sign in name)
    assert families()[0] == "DejaVu Sans"


@needs_fonts
def test_pictures_have_a_glyph_for_every_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = np.zeros((1, 16, 16), np.float32)
    row = CounterfactualRow(
        source=image, counterfactual=image, target="正常 → 肺炎", classes=tuple(NAMES),
        before=np.full(len(NAMES), 0.5), after=np.full(len(NAMES), 0.4), flipped=True,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*[Gg]lyph.*")
        save_counterfactual_panel([row], tmp_path / "panel.png")
        save_sample_grid(image[None], tmp_path / "grid.png", title="肺炎")
    assert (tmp_path / "panel.png").stat().st_size > 1000
    assert caplog.messages == []  # of fonts without the asked weight
