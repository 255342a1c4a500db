"""Which settings a run may choose at a site with a site file. A new setting must be listed here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.site import _opened, open_site
from client.site_policy import AGREED
from mediffusion_core.messaging import protocol
from mediffusion_core.settings import Settings
from mediffusion_core.settings.validation import setting_names
from unit.client.test_site_policy import (
    PRIVATE,
    RUN_OF,
    _own_data_folder,
    census,
    context,
    described_site,
)

__all__ = ["_own_data_folder"]

OTHERWISE = {
    "data.classes": "[healthy,effusion]",
    "data.multi_label": "true",
    "data.test_fraction": "0.3",
    "data.validation_fraction": "0.3",
    "data.max_bad_fraction": "0.5",
}
"""Settings that describe the images and that the run must know: it is refused if they differ."""
NOT_READ = {
    "device": "cuda:3",
    "run.folder": "/server/run",
    "data.source": "dicom",
    "data.root": "/server/images",
    "data.table": "/etc/passwd",
    "data.columns.image": "file",
    "data.columns.label": "[a,b]",
    "data.columns.patient": "name",
    "data.columns.site": "clinic",
    "data.columns.split": "fold",
    "data.columns.sex": "gender",
    "data.columns.age": "years",
    "data.separator": "';'",
    "data.uncertain": "ones",
    "data.uncertain_by_finding": "{effusion: zeros}",
    "data.window": "[40.0,400.0]",
    "data.store": "/server/store",
    "data.partition": "uniform",
    "data.partition_alpha": "9.0",
    "data.scanner_shift": "0.7",
    "data.splits": "official",
    "data.labelled_fraction_by_site": "{uni: 0.1}",
    "data.labelled_sites": "1",
    "data.labels_at": "server",
    "federation.num_sites": "9",
    "federation.pool_sites": "true",
    "federation.only_site": "uni",
    "federation.left_out_site": "uni",
    "privacy.ledger": "/server/ledger",
    "privacy.ledger_tips": "/server/tips",
}
"""Settings that the site does not read: it has its own, or they deal a simulation's images."""
FREE = {
    "": "seed task",
    "run": "keep_last trackers",
    "data": "image_size channels labelled_fraction use_unlabelled augmentation",
    "data.phantom": "patients_per_site",
    "data.phantom.mark": "site finding kind rate other_rate",
    "model": "name",
    "model.autoencoder": (
        "channels layers_per_block latent_channels norm_groups patch_size attention linear_start"
    ),
    "model.unet": "channels attention layers_per_block attention_head_width norm_groups",
    "model.head": "pooling latent_statistics normalised hidden dropout",
    "diffusion": "timesteps prediction",
    "training": "precision",
    "training.autoencoder": (
        "local_epochs batch_size learning_rate warmup_steps kl_weight edge_weight"
    ),
    "training.joint": (
        "local_epochs batch_size labelled_batch_size learning_rate head_learning_rate "
        "weight_decay warmup_steps diffusion_weight classification_weight "
        "logit_adjustment proximal_weight control_variates noised_fraction "
        "noised_max_timestep augmented_views max_grad_norm"
    ),
    "training.joint.consistency": "weight batch_size threshold thresholds",
    "training.joint.alignment": (
        "weight distillation_weight encoder image_size directions shrinkage batch_size"
    ),
    "federation": (
        "num_rounds autoencoder_rounds fraction_train weighting num_malicious_sites "
        "agreement_bound norm_bound local_normalisation compression cpus_per_site ema_decay "
        "round_timeout grace_period min_sites max_images"
    ),
    "federation.server.autoencoder": "aggregation method learning_rate beta1 beta2 tau",
    "federation.server.unet": "aggregation method learning_rate beta1 beta2 tau",
    "federation.server.head": "aggregation method learning_rate beta1 beta2 tau",
    "federation.client_level": "noise_multiplier max_update_norm target_delta",
    "evaluation": (
        "every num_samples sampling_steps extractor inception_weights num_thresholds "
        "num_bootstraps noise_levels model against digests patients"
    ),
    "evaluation.counterfactual": (
        "panel count strength num_inference_steps guidance_scale proximity_weight "
        "num_candidates confidence tolerance mask_threshold relax_mask preserve_weight "
        "inversion noise_seed solver"
    ),
    "privacy": (
        "enabled noise_multiplier target_epsilon target_delta unit batch_size "
        "physical_batch_size max_grad_norm clipping grad_sample_mode noise_multiplicity "
        "release_noise validation_noise autoencoder trained adapter_rank public_model max_epsilon"
    ),
    "privacy.secure_aggregation": "enabled tolerated_sites",
}
"""By section, settings that a run chooses. No value of them makes an answer of a private run depend
on the images but by its noised content. The site policy can bound them."""


def test_every_setting_is_classified_and_no_other() -> None:
    free = {
        f"{section}.{name}".lstrip(".") for section, names in FREE.items() for name in names.split()
    }
    classified = [*OTHERWISE, *NOT_READ, *free]
    assert sorted(classified) == sorted(setting_names(Settings))
    assert set(OTHERWISE) == {f"data.{name}" for name in AGREED}


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_run_that_describes_the_images_otherwise_is_refused_before_they_are_opened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    node = described_site(tmp_path, "uni")
    (tmp_path / "uni" / "images" / "labels.csv").unlink()
    content = census(node, (*RUN_OF, *PRIVATE, f"{name}={OTHERWISE[name]}"))
    assert content.config_records[protocol.FAILURE]["code"] == protocol.FAILED
    [line] = [one for one in caplog.text.splitlines() if "in the site file" in one]
    assert f" refused {name} is " in line


def test_a_private_run_needs_the_classes_in_the_site_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = described_site(tmp_path, "uni", own_classes=None)
    (tmp_path / "uni" / "images" / "labels.csv").unlink()
    census(node, (*RUN_OF, *PRIVATE))
    assert "refused a private run needs data.classes in the site file" in caplog.text


def test_settings_that_the_site_does_not_read_change_nothing(tmp_path: Path) -> None:
    node = described_site(tmp_path, "uni")

    def opened(*overrides: str) -> list[Any]:
        _opened.cache_clear()
        site = open_site(context(node, (*RUN_OF, *PRIVATE, *overrides)))
        images = site.dataset.train(site.index)
        place = site.folder.relative_to(tmp_path).parts
        return [
            (site.name, site.device, site.own_ledger, site.policy, place[:2]),
            site.dataset.store.place,
            images.pixels[images.rows],
            images.targets.numpy(),
        ]

    expected = opened()
    for name, value in NOT_READ.items():
        found = opened(f"{name}={value}")
        assert found[:2] == expected[:2], name
        for one, other in zip(found[2:], expected[2:], strict=True):
            np.testing.assert_array_equal(one, other, name)
