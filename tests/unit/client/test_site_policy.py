"""Hospitals that have images of their own, each described by its site file."""

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
from mediffusion_core.messaging import protocol
from mediffusion_core.privacy.ledger.site_ledger import ledger_places, open_site_ledger
from mediffusion_core.settings.site_file import SiteFile
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
    """No test writes a ledger into the home of whoever runs it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def hospital(
    folder: Path,
    name: str,
    classes: Sequence[str] = CLASSES,
    images_each: int = 1,
    shared: bool = False,
) -> dict[str, Any]:
    """Images and a site file; the node config of the hospital's SuperNode.

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
    file.write_text(
        f'name = "{name}"\n[data]\nsource = "folder"\nroot = "{images}"\ntable = "labels.csv"\n'
        f'store = "{folder / name / "store"}"\n[data.columns]\npatient = "patient"\n'
        '[policy]\ndevice = "cpu"\n'
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


def test_each_hospital_has_its_own_images_and_name(tmp_path: Path) -> None:
    for name in ("st-anna", "uni"):
        content = census(hospital(tmp_path, name))
        assert protocol.FAILURE not in content
        assert content.config_records[protocol.IDENTITY]["site"] == name
        counts = content.metric_records[protocol.METRICS]
        assert (counts["images"], counts["patients"]) == (PATIENTS, PATIENTS)
        assert sum(counts["per_class"]) == counts["labelled"] == counts["train"]  # type: ignore[arg-type]


def test_what_a_run_says_of_places_and_devices_does_not_count(tmp_path: Path) -> None:
    node = hospital(tmp_path, "uni")
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


COUNTS = 'allowed_metrics = ["images_seen", "labelled_seen"]'


@pytest.mark.parametrize(
    ("policy", "asked", "code"),
    [
        ("max_epsilon = 8.0", (), "refused"),
        ("min_noise_multiplier = 0.5", (), "refused"),
        ("min_noise_multiplier = 1.5", PRIVATE, "refused"),
        ("min_noise_multiplier = 1.0", (*PRIVATE, "privacy.release_noise=0.5"), "refused"),
        ("max_epsilon = 8.0", (*PRIVATE, "privacy.target_delta=1e-3"), "refused"),
        ("max_epsilon = 8.0", (*PRIVATE, "privacy.unit=image"), "refused"),
        ("max_epsilon = 8.0\nmin_noise_multiplier = 0.5", PRIVATE, None),
        ('allowed_metrics = ["images_seen", "loss"]', (), "refused"),
        (COUNTS, (), None),
        (COUNTS, ("federation.weighting=steps",), "refused"),
    ],
)
def test_a_run_that_asks_for_more_than_the_site_allows_is_refused(
    tmp_path: Path, policy: str, asked: Sequence[str], code: str | None
) -> None:
    node = hospital(tmp_path, "uni")
    file = Path(node["site-file"])
    file.write_text(f"{file.read_text()}{policy}\n")
    content = census(node, (*RUN_OF, *asked))
    failure = content.config_records.get(protocol.FAILURE)
    assert (failure and failure["code"]) == code


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
    node, run = hospital(tmp_path, "uni"), (*RUN_OF, *asked)
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
    failure = joint_round(node, run).config_records[protocol.FAILURE]
    assert failure["code"] == "data"


def test_all_images_of_a_patient_are_one_unit_whoever_elses_are_alike(tmp_path: Path) -> None:
    """Else a third patient's images would decide whether two others are one unit."""
    node, run = hospital(tmp_path, "uni", images_each=2, shared=True), (*RUN_OF, *PRIVATE)
    whole, single = (
        PrivateTrainer(open_site(context(node, (*run, f"privacy.unit={unit}")))).units()
        for unit in ("patient", "image")
    )
    assert len(whole[0]) == len(single[0]) == single[1] == 2 * whole[1]
    assert whole[0].bincount().tolist() == [2] * whole[1]


def test_a_metric_that_the_site_does_not_allow_stays_there(tmp_path: Path) -> None:
    node = hospital(tmp_path, "uni")
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
    node = hospital(tmp_path, "uni")
    file = Path(node["site-file"])
    file.write_text(f"{file.read_text()}max_epsilon = 2.0\n")
    elsewhere = ("privacy.ledger=/server/only", "privacy.ledger_heads=/server/only")
    more = (*elsewhere, "privacy.max_epsilon=50")
    site = open_site(context(node, (*RUN_OF, *PRIVATE, *more)))
    own = site.settings.privacy
    assert own.ledger is not None
    assert own.ledger / site.name == ledger_places(SiteFile.read(file))[0]
    assert own.ledger.is_relative_to(tmp_path / "data")
    assert own.max_epsilon == 2.0


def test_what_a_run_charges_is_what_the_hospital_reads(
    tmp_path: Path,
) -> None:
    node = hospital(tmp_path, "uni")
    content = census(node, (*RUN_OF, *PRIVATE))
    assert protocol.FAILURE not in content
    ledger = open_site_ledger(SiteFile.read(Path(node["site-file"])), begin=False)
    assert [entry.stage for entry in ledger.entries()] == ["census"]


@pytest.mark.parametrize(
    ("classes", "overrides", "said"),
    [
        (("effusion", "nodule"), RUN_OF, "classes"),
        (CLASSES, (*RUN_OF, "data.classes=null"), "needs data.classes"),
        (CLASSES, (*RUN_OF, "data.multi_label=true"), "multi_label is True in the run"),
    ],
)
def test_images_of_other_classes_take_no_part(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    classes: Sequence[str],
    overrides: Sequence[str],
    said: str,
) -> None:
    content = census(hospital(tmp_path, "uni", classes), overrides)
    assert content.config_records[protocol.FAILURE]["code"] == "data"
    assert said in capsys.readouterr().err
