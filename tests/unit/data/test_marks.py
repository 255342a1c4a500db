"""Scanner marks, and phantoms with one planted at a site."""

from pathlib import Path

import numpy as np
import pytest
import torch

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.data import marks, phantom
from mediffusion_core.data.augmentation import has_random_marks
from mediffusion_core.data.ground_truth import patients_without, planted_mark
from mediffusion_core.data.partitioning.federated_dataset import open_federated_dataset
from mediffusion_core.data.readers.phantom import mark_mask, read
from mediffusion_core.settings import DataSettings, MarkKind

SITES = {"patients_per_site": (150, 400, 150)}


def data(**mark: object) -> DataSettings:
    """Phantoms of 32 px with a mark."""
    return DataSettings.model_validate(
        {"source": "phantom", "image_size": 32, "channels": 1, "phantom": {**SITES, "mark": mark}}
    )


def test_phantoms_without_a_mark_are_as_they_were_drawn() -> None:
    source = read(data(kind="border", rate=1.0), 3)
    for site, patient, index in ((0, 0, 0), (1, 5, 155), (2, 149, 699)):
        drawn = phantom.render(3, site, patient, phantom.findings_of(3, site, patient), 32)
        assert source.load(index).tobytes() == drawn.tobytes()
        assert not mark_mask(data(), 3, source.image_ids[index]).any()
    # The prepared images of a run without a mark stay valid, with one they do not.
    assert source.fingerprint == read(data(), 3).fingerprint
    prints = [read(data(site=1, rate=rate), 3).fingerprint for rate in (0.9, 0.8)]
    assert len({source.fingerprint, *prints}) == 3


def test_the_mark_has_its_site_and_rates_and_changes_its_mask_alone() -> None:
    asked, without = data(site=1, finding="Nodule", kind="letter"), read(data(), 3)
    source = read(asked, 3)
    masks = np.array([mark_mask(asked, 3, name) for name in source.image_ids])
    marked = masks.any(axis=(1, 2))
    site = np.array(source.centres) == "site-1"
    nodule = source.labels[:, source.classes.index("Nodule")] == 1
    assert not marked[~site].any()
    assert marked[site & nodule].mean() == pytest.approx(0.95, abs=0.06)
    assert marked[site & ~nodule].mean() == pytest.approx(0.05, abs=0.04)
    for index in (*np.flatnonzero(site & marked)[:5], *np.flatnonzero(site & ~marked)[:5]):
        changed = source.load(index) != without.load(index)
        assert not changed[~masks[index]].any()
        assert changed.any() == marked[index]


def test_every_process_plants_the_same_marks_and_the_truth_keeps_them(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    planted = [*tiny, "data.phantom.mark.site=1", f"data.store={tmp_path}"]
    settings = compose("config", planted)
    dataset = open_federated_dataset(settings)  # other processes draw
    source, where = read(settings.data, settings.seed), planted_mark(settings, dataset)
    truth = patients_without(settings, dataset)
    assert where is not None and truth is not None
    rows = [row for row in range(60, 120) if where(row).any()]
    for row in rows[:4]:
        drawn = source.load(source.image_ids.index(dataset.store.image_ids[row]))
        assert np.array_equal(dataset.store.images[row, ..., 0], drawn)
        assert np.array_equal(truth(row, "Effusion")[where(row)], drawn[where(row)])
    plain = compose("config", tiny)
    assert planted_mark(plain, dataset) is None


@pytest.mark.parametrize("kind", marks.KINDS)
def test_a_mark_is_found_and_removed(kind: MarkKind) -> None:
    for size in (32, 64):
        drawn = [phantom.render(0, site, n, (), size) for n in range(12) for site in range(3)]
        images = torch.from_numpy(np.array(drawn))[:, None].float() / 255
        pasted = marks.pasted(images, kind)
        at = torch.from_numpy(marks.mask(kind, size))
        assert torch.equal(pasted[..., ~at], images[..., ~at]) and 0 < at.float().mean() < 0.08
        assert marks.present(pasted, kind).all() and not marks.present(images, kind).any()
        removed = marks.removed(pasted, kind)
        assert not marks.present(removed, kind).any()
        # The covered pixels are unknown, but like those around them.
        assert (removed - images).abs().mean() < (pasted - images).abs().mean()
        for other in set(marks.KINDS) - {kind}:
            assert not (marks.region(kind, size) & marks.region(other, size)).any()
            assert not marks.present(pasted, other).any()


def test_random_marks_do_not_depend_on_those_that_were_there() -> None:
    images = torch.full((400, 1, 32, 32), 0.4)
    marked = torch.cat([marks.pasted(images[:200], "letter"), images[200:]])
    views = marks.randomised(marked, torch.Generator().manual_seed(0))
    for kind in marks.KINDS:
        for half in marks.present(views, kind).split(200):
            assert float(half.double().mean()) == pytest.approx(0.5, abs=0.1)
    covered = np.any([marks.region(kind, 32) for kind in marks.KINDS], axis=0)
    assert torch.equal(
        views[..., ~torch.from_numpy(covered)], marked[..., ~torch.from_numpy(covered)]
    )
    assert has_random_marks("radiograph_marks") and not has_random_marks("radiograph")


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"mark\.finding=Hernia: allowed are Effusion, Card"):
        read(data(site=1, finding="Hernia"), 0)
    with pytest.raises(UserError, match=r"data\.phantom\.mark\.site=3: .* allowed: 0 to 2"):
        compose("config", ["data.phantom.mark.site=3"])
