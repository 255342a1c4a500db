"""Sites that have images of their own, each described by its site file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from PIL import Image

from client.client_app import app
from client.site import _opened, open_site
from client.trainer.private import PrivateTrainer
from configs.compose import compose, flatten
from mediffusion_core.common.errors import RefusedError
from mediffusion_core.messaging import protocol
from mediffusion_core.privacy.ledger.site_ledger import ledger_places, open_site_ledger
from mediffusion_core.settings.site_file import SiteFile
from mediffusion_core.training.latent_files import LATENTS
from server.state import fresh_state
from simulations.engine.in_process import FIRST_SITE, RUN, order

PATIENTS = 24
CLASSES = ("effusion", "healthy")
RUN_OF = (
    "data=folder",
    "data.root=/server/only",
    "data.classes=[effusion,healthy]",
    "data.image_size=32",
    "data.channels=1",
    "federation.num_sites=2",
    "model=tiny32",
    "device=cuda:7",
)


@pytest.fixture(autouse=True)
def _own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes a ledger into the user's home."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def described_site(
    folder: Path,
    name: str,
    classes: Sequence[str] = CLASSES,
    images_each: int = 1,
    shared: bool = False,
    policy: str = "require_privacy = false\n",
    own_classes: Sequence[str] | None = CLASSES,
) -> dict[str, Any]:
    """Images and a site file; the node config of the site's SuperNode.

    Where an image is `shared`, each second patient's first is the last of the patient before.
    """
    images = folder / name / "images"
    images.mkdir(parents=True)
    rows = ["image,label,patient"]
    random = np.random.default_rng(len(name))
    for number in range(PATIENTS * images_each):
        patient = number // images_each
        if not shared or number % images_each or number % (2 * images_each) == 0:
            pixels = random.integers(0, 256, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
        rows.append(f"{number}.png,{classes[patient % len(classes)]},p{patient}")
    (images / "labels.csv").write_text("\n".join(rows) + "\n")
    file = folder / name / "site.toml"
    described = f"classes = {list(own_classes)}\n" if own_classes else ""
    file.write_text(
        f'name = "{name}"\n[data]\nsource = "folder"\nroot = "{images}"\ntable = "labels.csv"\n'
        f'store = "{folder / name / "store"}"\n{described}[data.columns]\npatient = "patient"\n'
        f'[policy]\ndevice = "cpu"\n{policy}'
    )
    file.chmod(0o644)
    # Both are given the same number: what a site has does not hang on it.
    return {"partition-id": 0, "site-file": str(file), "folder": str(folder / name / "runs")}


def context(node: dict[str, Any], overrides: Sequence[str]) -> Context:
    config = {"config-name": "config", "overrides": flatten(overrides)}
    return Context(RUN, FIRST_SITE, node, RecordDict(), config)


def census(node: dict[str, Any], overrides: Sequence[str] = RUN_OF) -> RecordDict:
    settings_hash = compose("config", overrides).fingerprint()
    return app(order(protocol.CENSUS, settings_hash, {}), context(node, overrides)).content


def test_each_site_has_its_own_images_and_name(tmp_path: Path) -> None:
    for name in ("st-anna", "uni"):
        content = census(described_site(tmp_path, name))
        assert protocol.FAILURE not in content
        assert content.config_records[protocol.IDENTITY]["site"] == name
        counts = content.metric_records[protocol.METRICS]
        assert (counts["images"], counts["patients"]) == (PATIENTS, PATIENTS)
        assert sum(counts["per_class"]) == counts["labelled"] == counts["train"]  # type: ignore[arg-type]


def test_paths_and_devices_of_a_run_are_ignored(tmp_path: Path) -> None:
    node = described_site(tmp_path, "uni")
    site = open_site(context(node, (*RUN_OF, "run.folder=/server/only")))
    assert site.settings.device == "cpu"
    assert site.folder.is_relative_to(tmp_path / "uni" / "runs")
    assert site.settings.fingerprint() == compose("config", RUN_OF).fingerprint()


PRIVATE = (
    "privacy.enabled=true",
    "privacy.noise_multiplier=1.0",
    "privacy.target_delta=1e-5",
    "evaluation.every=1",
)


OPEN = "require_privacy = false"
COUNTS = f'{OPEN}\nallowed_metrics = ["images_seen", "labelled_seen"]'
TARGET = (
    "privacy.noise_multiplier=null",
    "privacy.target_epsilon=8",
    "privacy.target_delta=1e-3",
)


@pytest.mark.parametrize(
    ("policy", "asked", "code"),
    [
        ("", (), protocol.FAILED),
        ("", PRIVATE, None),
        (f"{OPEN}\nmax_epsilon = 8.0\nmin_noise_multiplier = 0.5", (), None),
        ("min_noise_multiplier = 1.5", PRIVATE, protocol.FAILED),
        ("min_noise_multiplier = 1.0", (*PRIVATE, "privacy.release_noise=0.5"), protocol.FAILED),
        ("min_noise_multiplier = 0.1", (*PRIVATE, *TARGET), None),
        ("min_noise_multiplier = 7.9", (*PRIVATE, *TARGET), protocol.FAILED),
        ("max_epsilon = 8.0", (*PRIVATE, "privacy.target_delta=1e-3"), protocol.FAILED),
        ("max_epsilon = 8.0", (*PRIVATE, "privacy.unit=image"), protocol.FAILED),
        ("max_epsilon = 8.0\nmin_noise_multiplier = 0.5", PRIVATE, None),
        (f'{OPEN}\nallowed_metrics = ["images_seen", "loss"]', (), "refused"),
        (COUNTS, (), None),
        (COUNTS, ("federation.weighting=steps",), "refused"),
        (f'{OPEN}\nallowed_settings."model.name" = ["tiny32", "small"]', (), None),
        (f'{OPEN}\nallowed_settings."model.name" = ["small"]', (), "refused"),
        (f'{OPEN}\nallowed_settings."model.unet.channels" = [[32, 32]]', (), "refused"),
        (f'{OPEN}\nallowed_settings."federation.num_rounds" = {{max = 3}}', (), "refused"),
        (
            f'{OPEN}\nallowed_settings."federation.num_rounds" = {{min = 1, max = 3}}',
            ("federation.num_rounds=3", "evaluation.every=3"),
            None,
        ),
    ],
)
def test_a_run_that_asks_for_more_than_the_site_allows_is_refused(
    tmp_path: Path, policy: str, asked: Sequence[str], code: str | None
) -> None:
    node = described_site(tmp_path, "uni", policy=f"{policy}\n")
    content = census(node, (*RUN_OF, *asked))
    failure = content.config_records.get(protocol.FAILURE)
    assert (failure and failure["code"]) == code


SHARED = (
    "privacy=dp",
    "privacy.autoencoder=frozen",
    "privacy.trained=head",
    "model.autoencoder.channels=[32]",
    "model.autoencoder.norm_groups=8",
    "model.autoencoder.linear_start=true",
    "model.head.latent_statistics=true",
    "training.joint.diffusion_weight=0",
    "privacy.secure_aggregation.enabled=true",
    "federation.num_sites=4",
)


@pytest.mark.parametrize("allowed", [False, True])
def test_noise_that_the_sites_share_needs_the_sites_consent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, allowed: bool
) -> None:
    policy = "shared_noise = true\n" if allowed else ""
    content = census(described_site(tmp_path, "uni", policy=policy), (*RUN_OF, *SHARED))
    assert (protocol.FAILURE in content) is not allowed
    assert ("unless its file says policy.shared_noise = true" in caplog.text) is not allowed


def test_a_run_without_privacy_is_refused_in_one_line_that_says_how_to_allow_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    census(described_site(tmp_path, "uni", policy=""))
    (line,) = [one for one in caplog.text.splitlines() if "privacy.enabled" in one]
    assert "policy.require_privacy = false" in line


def test_noise_that_a_target_leads_to_is_refused_after_one_charge_for_the_census(
    tmp_path: Path,
) -> None:
    """The site knows the noise once it has counted; asking again must not cost again."""
    node = described_site(tmp_path, "uni", policy="min_noise_multiplier = 7.9\n")
    for _ in range(2):
        content = census(node, (*RUN_OF, *PRIVATE, *TARGET))
        assert content.config_records[protocol.FAILURE]["code"] == protocol.FAILED
    ledger = open_site_ledger(SiteFile.read(Path(node["site-file"])), begin=False)
    assert [entry.stage for entry in ledger.entries()] == ["census"]


def joint_round(node: dict[str, Any], asked: Sequence[str]) -> RecordDict:
    settings = compose("config", asked)
    components = fresh_state(settings, len(CLASSES)).weights
    weights = {name: components[name] for name in protocol.JOINT}
    message = order(protocol.TRAIN_JOINT, settings.fingerprint(), weights)
    return app(message, context(node, asked)).content


@pytest.mark.parametrize("asked", [(), PRIVATE])
def test_a_table_that_changed_since_the_images_were_encoded_is_refused(
    tmp_path: Path, asked: Sequence[str]
) -> None:
    """Else latents would go with the labels, and be charged to the patients, of other images."""
    node, run = described_site(tmp_path, "uni"), (*RUN_OF, *asked)
    assert protocol.FAILURE not in census(node, run)
    settings = compose("config", run)
    codec = fresh_state(settings, len(CLASSES)).codec(settings).state_dict()
    encode = order(protocol.ENCODE, settings.fingerprint(), {protocol.AUTOENCODER: codec})
    assert protocol.FAILURE not in app(encode, context(node, run)).content
    assert protocol.FAILURE not in joint_round(node, run)
    table = tmp_path / "uni" / "images" / "labels.csv"
    head, *rows = table.read_text().splitlines()
    table.write_text("\n".join([head, *reversed(rows)]) + "\n")
    _opened.cache_clear()  # as in a process that comes later
    assert protocol.FAILURE in joint_round(node, run)
    assert "not those that were encoded" in next(tmp_path.rglob("site.log")).read_text()


def test_latents_are_deleted_after_the_last_message_of_the_run_or_stay_by_policy(
    tmp_path: Path,
) -> None:
    run = (*RUN_OF, "federation.num_rounds=2", "evaluation.every=2")
    settings = compose("config", run)
    weights = fresh_state(settings, len(CLASSES)).weights
    codec = fresh_state(settings, len(CLASSES)).codec(settings).state_dict()
    judged = {name: weights[name] for name in (protocol.UNET, protocol.HEAD)}
    for name, policy, left in (
        ("uni", "", [True, True, False]),
        ("west", "keep_latents = 3\n", [True] * 3),
    ):
        node = described_site(tmp_path, name, policy=f"{OPEN}\n{policy}")
        encode = order(protocol.ENCODE, settings.fingerprint(), {protocol.AUTOENCODER: codec})
        assert protocol.FAILURE not in app(encode, context(node, run)).content
        found = []
        for number in range(3):
            ask = order(protocol.EVALUATE, settings.fingerprint(), judged, round_number=number)
            assert protocol.FAILURE not in app(ask, context(node, run)).content
            found.append(any((tmp_path / name / "runs").rglob(LATENTS)))
        assert found == left


def test_all_images_of_a_patient_are_one_unit_beside_duplicates_of_others(tmp_path: Path) -> None:
    """Else a third patient's images would decide whether two others are one unit."""
    node, run = described_site(tmp_path, "uni", images_each=2, shared=True), (*RUN_OF, *PRIVATE)
    whole, single = (
        PrivateTrainer(open_site(context(node, (*run, f"privacy.unit={unit}")))).units()
        for unit in ("patient", "image")
    )
    patients, images = len(whole[1]), len(single[1])
    assert len(whole[0]) == len(single[0]) == images == 2 * patients
    assert whole[0].bincount().tolist() == [2] * patients
    assert not any(name.isdigit() for name in single[1])  # a row's number follows from other rows


def test_a_metric_that_the_site_does_not_allow_stays_there(tmp_path: Path) -> None:
    node = described_site(tmp_path, "uni")
    file = Path(node["site-file"])
    file.write_text(
        f'{file.read_text()}allowed_metrics = ["images_seen", "labelled_seen", "steps"]\n'
    )
    settings = compose("config", RUN_OF)
    components = fresh_state(settings, len(CLASSES)).weights
    weights = {name: components[name] for name in protocol.AUTOENCODING}
    message = order(protocol.TRAIN_AUTOENCODER, settings.fingerprint(), weights)
    content = app(message, context(node, RUN_OF)).content
    assert protocol.AUTOENCODER in content.array_records
    sent = content.metric_records[protocol.METRICS]
    assert set(sent) == {"images_seen", "labelled_seen", "steps"}


def test_the_ledger_and_its_limit_are_the_sites(
    tmp_path: Path,
) -> None:
    node = described_site(tmp_path, "uni")
    file = Path(node["site-file"])
    file.write_text(f"{file.read_text()}max_epsilon = 2.0\n")
    elsewhere = ("privacy.ledger=/server/only", "privacy.ledger_tips=/server/only")
    more = (*elsewhere, "privacy.max_epsilon=50")
    site = open_site(context(node, (*RUN_OF, *PRIVATE, *more)))
    own = site.settings.privacy
    assert own.ledger is own.ledger_tips is None and own.max_epsilon == 2.0
    # One limit in all runs, or filters of several orders would decide.
    limited = context(node, (*RUN_OF, *PRIVATE, "privacy.max_epsilon=1"))
    with pytest.raises(RefusedError, match="a limit for simulations; that of a site is policy"):
        open_site(limited)
    file.write_text(file.read_text().replace("max_epsilon = 2.0\n", ""))
    with pytest.raises(RefusedError, match="a limit for simulations; that of a site is policy"):
        open_site(limited)
    assert site.own_ledger == ledger_places(SiteFile.read(file))
    assert site.own_ledger.folder.is_relative_to(tmp_path / "data")


def test_the_charge_of_a_run_stands_in_the_sites_ledger(
    tmp_path: Path,
) -> None:
    node = described_site(tmp_path, "uni")
    content = census(node, (*RUN_OF, *PRIVATE))
    assert protocol.FAILURE not in content
    ledger = open_site_ledger(SiteFile.read(Path(node["site-file"])), begin=False)
    assert [entry.stage for entry in ledger.entries()] == ["census"]


@pytest.mark.parametrize(
    ("classes", "own_classes", "overrides", "said"),
    [
        (("effusion", "nodule"), None, RUN_OF, "classes"),
        (CLASSES, None, (*RUN_OF, "data.classes=null"), "needs data.classes"),
        (CLASSES, CLASSES, (*RUN_OF, "data.multi_label=true"), "multi_label is True in the run"),
    ],
)
def test_images_of_other_classes_take_no_part(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    classes: Sequence[str],
    own_classes: Sequence[str] | None,
    overrides: Sequence[str],
    said: str,
) -> None:
    content = census(described_site(tmp_path, "uni", classes, own_classes=own_classes), overrides)
    assert content.config_records[protocol.FAILURE]["code"] in ("data", "refused")
    assert said in caplog.text
