"""The first screen: sentences that claim no more than was measured, and one counterfactual."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mediffusion_core.common.errors import UserError
from mediffusion_core.evaluation.counterfactual_panel import CounterfactualRow
from mediffusion_core.reporting.counterfactual_pair import PAIR, change, read_pair
from mediffusion_core.reporting.first_screen import (
    data_sentences,
    heading,
    no_pair,
    pair_texts,
    quality,
)
from mediffusion_core.reporting.formats import NOT_MEASURED
from mediffusion_core.reporting.pictures import save_counterfactual_pair

SITE = {"images": 100, "patients": 90, "train": 80, "labelled": 20}
CENSUS = {"census": {"north": SITE, "south": {**SITE, "labelled": 0}}}
UNTRAINED = {"training": {"joint": {"classification_weight": 0.0}}}


def row(flipped: bool | None = True, **other: Any) -> CounterfactualRow:
    content: dict[str, Any] = {
        "source": np.full((1, 8, 16), 0.2),
        "counterfactual": np.full((1, 8, 16), 0.7),
        "target": "remove Mass",
        "classes": ("Mass", "Nodule", "Hernia"),
        "before": np.array([0.93, 0.2, 0.1]),
        "after": np.array([0.07, 0.3, 0.11]),
    }
    return CounterfactualRow(flipped=flipped, **(content | other))


def test_the_heading_tells_where_the_images_were() -> None:
    assert heading(CENSUS, {}, "run 7") == "An image classifier trained at 2 sites"
    pooled = {"federation": {"pool_sites": True}}
    assert heading(CENSUS, pooled, "").endswith("trained on the pooled images of 2 sites")
    alone = {"federation": {"only_site": "north"}}
    assert heading(CENSUS, alone, "").endswith("trained at the site north alone")
    assert heading({"census": {"north": SITE}}, {}, "").endswith("at 1 site")
    assert heading(CENSUS, UNTRAINED, "").startswith("An image generator")
    assert heading({}, {}, "run 7") == "run 7"


def test_the_data_are_counted_over_the_sites() -> None:
    found = data_sentences({**CENSUS, "auc_per_class": {"Mass": {}, "Nodule": {}}}, {})
    assert found == [
        "The sites hold 200 images of 180 patients or lesions.",
        "160 of them trained the model; 12 % of these had labels.",
        "Classes: Mass, Nodule.",
    ]
    assert data_sentences({}, {}) == []
    [count] = data_sentences({"auc_per_class": dict.fromkeys(map(str, range(40)))}, {})
    assert count == "40 classes."


def test_phantoms_are_called_drawings() -> None:
    found = data_sentences(CENSUS, {"data": {"source": "phantom"}})
    assert "phantom patients" in found[0] and "drawings" in found[2]


def test_a_count_that_a_site_did_not_send_is_left_out() -> None:
    private = {"census": {"north": {"train": 80, "labelled": 90}, "south": {"train": 10}}}
    found = data_sentences(private, {"privacy": {"enabled": True}})
    assert found == ["About 90 images trained the model."]
    private["census"]["south"]["labelled"] = 10  # noised counts may exceed each other
    [now] = data_sentences(private, {"privacy": {"enabled": True}})
    assert "100 % of these had labels" in now


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        ([0.86, 0.90], None),
        ([0.45, 0.93], "not distinct from guessing"),
        (None, None),
    ],
)
def test_the_auc_is_told_in_words(bounds: list[float] | None, told: str | None) -> None:
    found = quality({"auc_macro": 0.882, "auc_macro_interval": bounds, "auc_pooled": 0.7}, {})
    text = " ".join(found.sentences)
    assert found.auc == "0.882" and "88 of 100" in text and "on test images" in text
    assert (told is None or told in text) and ("guessing." in text) == (told is not None)
    assert found.scale == ((0.882, *bounds) if bounds else (0.882, 0.882, 0.882))


def test_an_auc_below_chance_is_called_so_and_none_is_rounded_up_to_perfect() -> None:
    bad = quality({"auc_macro": 0.3, "auc_macro_interval": [0.2, 0.4]}, {})
    assert bad.sentences[-1] == "This is worse than guessing."
    assert "99 of 100" in quality({"auc_macro": 0.999}, {}).sentences[0]
    assert "100 of 100" in quality({"auc_macro": 1.0}, {}).sentences[0]


def test_without_a_test_set_the_validation_patients_count_with_a_warning() -> None:
    found = quality({"auc_pooled": 0.8, "auc_pooled_interval": [0.7, 0.9]}, {})
    assert found.auc == "0.800" and "may be too high" in found.sentences[1]


def test_a_classifier_that_was_not_trained_has_no_figure() -> None:
    found = quality({"auc_macro": 0.61}, UNTRAINED)
    assert found.auc == "" and "not trained" in found.sentences[0]
    assert NOT_MEASURED in quality({"auc_macro": None}, {}).sentences[0]
    assert "classifier" in no_pair(UNTRAINED)
    assert "denoiser" in no_pair({"training": {"joint": {"diffusion_weight": 0.0}}})
    assert "trained" not in no_pair({})


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("remove Mass", "without Mass"),
        ("add Mass", "with Mass"),
        ("NV → MEL", "as MEL instead of NV"),
        ("other", "changed to other"),
    ],
)
def test_a_target_in_words(target: str, words: str) -> None:
    assert change(target) == words


def test_a_pair_has_its_images_and_probabilities(tmp_path: Path) -> None:
    save_counterfactual_pair([row()], tmp_path / "new" / PAIR)
    pair = read_pair(tmp_path / "new")
    assert pair is not None and pair.l1 == pytest.approx(0.5)
    for picture, shade in ((pair.image, 51), (pair.counterfactual, 178)):
        with Image.open(io.BytesIO(base64.b64decode(picture))) as opened:
            assert opened.mode == "L" and opened.size == (1024, 512)
            assert abs(opened.getpixel((5, 5)) - shade) <= 1
    texts = pair_texts(pair, {"eligible": 40, "flip_rate": 0.95})
    assert [one[:3] for one in texts.changes] == [("Mass", "93 %", "7 %")]
    assert texts.facts == (
        ("Mean change of brightness", "50.0 %"),
        ("Other class that changed most", "Nodule, 20 % → 30 %"),
        ("Test images whose prediction flipped", "38 of 40"),
    )
    assert "93 %" in texts.alt and "7 %" in texts.counterfactual_alt


def test_the_pair_is_the_first_that_could_flip_whatever_became_of_it(tmp_path: Path) -> None:
    rows = [row(None), row(False, target="add Nodule"), row(True)]
    save_counterfactual_pair(rows, tmp_path / PAIR)
    pair = read_pair(tmp_path)
    assert pair is not None and pair.target == "add Nodule" and pair.flipped is False
    assert pair_texts(pair, {}).outcome == "The prediction did not flip."
    save_counterfactual_pair(rows[:1], tmp_path / PAIR)
    pair = read_pair(tmp_path)
    assert pair is not None and pair.flipped is None
    with pytest.raises(ValueError, match="at least one row"):
        save_counterfactual_pair([], tmp_path / PAIR)


def test_both_exclusive_classes_are_named(tmp_path: Path) -> None:
    exclusive = row(target="Mass → Hernia", before=np.array([0.999, 0.0, np.nan]))
    save_counterfactual_pair([exclusive], tmp_path / PAIR)
    pair = read_pair(tmp_path)
    assert pair is not None
    changes = pair_texts(pair, {}).changes
    assert [(one.name, one.before) for one in changes] == [
        ("Mass", "> 99 %"),
        ("Hernia", NOT_MEASURED),
    ]


@pytest.mark.parametrize("content", ["{", "[]", '{"target": "x"}'])
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    assert read_pair(tmp_path) is None
    (tmp_path / PAIR).write_text(content)
    with pytest.raises(UserError, match="is not a counterfactual"):
        read_pair(tmp_path)
