"""Logistic regression on public features: its minimum, and a run on phantoms."""

from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from configs.compose import compose
from mediffusion_core.data.partitioning.federated_dataset import open_federated_dataset
from simulations.baselines.linear_classifier import PENALTIES, LinearClassifier, LinearRun
from simulations.baselines.settings import LinearSettings


@pytest.mark.parametrize("penalty", [PENALTIES[1], PENALTIES[-2]])
def test_it_is_scikit_learns_of_the_labelled_images(penalty: float) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 5, generator=generator)
    classes = (features[:, 0] + torch.randn(60, generator=generator)).sign().long() + 1
    classes[:9] = 1  # three classes
    targets = torch.nn.functional.one_hot(classes, 3).float()
    fitted = LinearClassifier.fitted(features, targets, False, penalty)
    theirs = LogisticRegression(C=1 / (penalty * 60), tol=1e-8, max_iter=1000)
    theirs.fit(features.numpy(), classes.numpy())
    expected = torch.from_numpy(theirs.predict_proba(features.numpy())).float()
    torch.testing.assert_close(fitted(features).softmax(1), expected, rtol=0.01, atol=1e-3)


def test_missing_findings_of_an_image_do_not_count() -> None:
    features = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    targets = (features[:, :2] > 0).float()
    half = targets.clone()
    half[20:, 1] = torch.nan
    every = LinearClassifier.fitted(features, targets, True, 0.1)
    missing = LinearClassifier.fitted(features, half, True, 0.1)
    torch.testing.assert_close(missing.weight[:, 0], every.weight[:, 0], rtol=0.02, atol=2e-3)
    assert (missing.weight[:, 1] - every.weight[:, 1]).norm() > 0.05


def test_it_has_the_figures_of_a_baseline(
    shortest: tuple[str, ...], aligned: tuple[str, ...], tmp_path: Path
) -> None:
    settings = compose("config", (*shortest, *aligned, f"data.store={tmp_path / 'store'}"))
    dataset = open_federated_dataset(settings)
    told: list[tuple[int, int]] = []
    run = LinearRun(settings, LinearSettings(features="image-statistics"), dataset)
    figures, logits = run.execute(lambda done, total: told.append((done, total)))
    assert logits.shape == dataset.test().targets.shape
    assert figures["parameters"] == (8 + 1) * len(dataset.store.classes)
    assert 0 <= figures["auc_macro"] <= 1 and 0 <= figures["auc_pooled"] <= 1
    assert told[-1] == (len(PENALTIES), len(PENALTIES))
    again, same = LinearRun(settings, LinearSettings(features="image-statistics"), dataset).execute(
        lambda done, total: None
    )
    assert torch.equal(same, logits) and again["auc_macro"] == figures["auc_macro"]
