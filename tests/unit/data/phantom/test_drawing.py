"""Chest phantoms: the same patient every time, findings where they belong, not too easy."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.phantom import (
    FINDINGS,
    SCANNERS,
    change_mask,
    findings_of,
    prevalence,
    render,
)

PATIENTS = [(3, number % len(SCANNERS), number) for number in range(12)]


def test_same_numbers_give_the_same_bytes() -> None:
    findings = findings_of(1, 2, 3)
    first, again = render(1, 2, 3, findings), render(1, 2, 3, list(findings))
    assert first.tobytes() == again.tobytes()
    assert first.shape == (64, 64) and first.dtype == np.uint8
    assert findings_of(1, 2, 3) == findings


def test_seed_site_and_patient_each_change_the_image() -> None:
    images = [render(*numbers, ()) for numbers in [(0, 0, 0), (1, 0, 0), (0, 5, 0), (0, 0, 1)]]
    for one, other in itertools.combinations(images, 2):
        assert np.mean(one != other) > 0.3


def test_size_scales_the_same_patient() -> None:
    small, large = render(0, 0, 4, FINDINGS, size=64), render(0, 0, 4, FINDINGS, size=128)
    assert large.shape == (128, 128)
    halved = large.reshape(64, 2, 64, 2).mean((1, 3))
    assert np.corrcoef(small.ravel(), halved.ravel())[0, 1] > 0.97


@pytest.mark.parametrize("finding", FINDINGS)
@pytest.mark.parametrize("numbers", PATIENTS)
def test_a_finding_changes_its_own_place_only(numbers: tuple[int, int, int], finding: str) -> None:
    findings = findings_of(*numbers) | {finding}
    mask = change_mask(*numbers, findings, finding)
    assert 0 < mask.mean() < 0.4
    with_it, without = render(*numbers, findings), render(*numbers, findings - {finding})
    change = np.abs(with_it.astype(float) - without)
    assert change[mask].max() > 15
    # One pixel is what the scanners' blur adds.
    assert change[binary_dilation(mask)].sum() > 0.8 * change.sum()
    assert change[~binary_dilation(mask, iterations=5)].sum() < 0.05 * change.sum()


@pytest.mark.parametrize("finding", FINDINGS)
def test_mask_does_not_depend_on_whether_the_finding_is_listed(finding: str) -> None:
    others = frozenset({"Cardiomegaly", "Effusion"})
    one = change_mask(0, 1, 2, others | {finding}, finding)
    assert np.array_equal(one, change_mask(0, 1, 2, others - {finding}, finding))


def test_findings_brighten_or_darken_as_on_film() -> None:
    for numbers in PATIENTS:
        healthy = render(*numbers, ()).astype(float)
        for finding in ("Effusion", "Cardiomegaly", "Nodule", "Consolidation"):
            mask = change_mask(*numbers, (), finding)
            assert np.mean(render(*numbers, {finding})[mask] - healthy[mask]) > 5
        apart = render(*numbers, {"Pneumothorax"}) - healthy
        assert apart.min() < -10


def test_prevalences_hold_and_differ_between_sites() -> None:
    for site in (0, 1):
        drawn = [findings_of(0, site, patient) for patient in range(3000)]
        for finding, share in prevalence(site).items():
            assert 0.15 <= share <= 0.40
            assert np.mean([finding in found for found in drawn]) == pytest.approx(share, abs=0.035)
    assert max(abs(prevalence(0)[name] - prevalence(1)[name]) for name in FINDINGS) > 0.05


def test_effusions_are_commoner_beside_an_enlarged_heart() -> None:
    drawn = [findings_of(0, 0, patient) for patient in range(3000)]
    beside = np.mean(["Effusion" in found for found in drawn if "Cardiomegaly" in found])
    alone = np.mean(["Effusion" in found for found in drawn if "Cardiomegaly" not in found])
    assert beside > 1.2 * alone


def test_scanners_leave_their_mark() -> None:
    assert len(SCANNERS) >= 4
    assert len(set(SCANNERS)) == len(SCANNERS)
    grain = []
    for site in range(len(SCANNERS)):
        images = np.stack([render(0, site, patient, ()) for patient in range(12)]).astype(float)
        corner = images[:, 26:58, 26:38]
        grain.append(np.abs(np.diff(corner, axis=2)).mean())
    assert max(grain) > 1.3 * min(grain)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"'Hernia'.*Effusion, Cardiomegaly, Nodule"):
        render(0, 0, 0, {"Hernia"})
    with pytest.raises(UserError, match="'Hernia'"):
        change_mask(0, 0, 0, (), "Hernia")
    with pytest.raises(UserError, match="patient is -1"):
        findings_of(0, 0, -1)
    with pytest.raises(UserError, match="8 px"):
        render(0, 0, 0, (), size=8)


def _block_means(first: int, count: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    features, labels = [], []
    for patient in range(first, first + count):
        found = findings_of(7, patient % 3, patient)
        image = render(7, patient % 3, patient, found)
        features.append(image.reshape(16, 4, 16, 4).mean((1, 3)).ravel())
        labels.append([finding in found for finding in FINDINGS])
    return np.stack(features), np.array(labels)


def test_a_linear_model_on_block_means_does_not_suffice() -> None:
    train_x, train_y = _block_means(0, 800)
    test_x, test_y = _block_means(100_000, 400)
    best = []
    for column in range(len(FINDINGS)):
        scores = []
        for strength in (1e-3, 1e-2):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
            logits = model.fit(train_x, train_y[:, column]).decision_function(test_x)
            scores.append(roc_auc_score(test_y[:, column], logits))
        best.append(max(scores))
    assert 0.55 < np.mean(best) < 0.75
