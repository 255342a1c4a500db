"""Values that leave a site: the ClientApp, called with messages as Flower calls it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from helpers.messages import sent
from torch import Tensor

from configs.compose import compose
from mediffusion_core.data.partitioning.federated_dataset import open_federated_dataset
from mediffusion_core.evaluation.calibration import TEMPERATURES
from mediffusion_core.evaluation.classification import auc_from_counts
from mediffusion_core.inference.joint_model import build_joint
from mediffusion_core.messaging import protocol
from mediffusion_core.messaging.moment_names import STEPS
from mediffusion_core.messaging.serialization import FORMAT, unpack
from mediffusion_core.models import Autoencoder, LatentCodec, scale_from_sums
from mediffusion_core.settings import Settings, allowed_metrics
from mediffusion_core.training.adam_moments import fresh_moments
from server.state import fresh_state

Overrides = tuple[str, ...]
Weights = Mapping[str, Tensor]
Asking = Callable[..., RecordDict]


@pytest.fixture(scope="module")
def overrides(tiny: Overrides, tmp_path_factory: pytest.TempPathFactory) -> Overrides:
    folder = tmp_path_factory.mktemp("client")
    return (*tiny, f"data.store={folder / 'store'}", f"run.folder={folder / 'run'}")


@pytest.fixture(scope="module")
def settings(overrides: Overrides) -> Settings:
    return compose("config", overrides)


@pytest.fixture(scope="module")
def ask(overrides: Overrides, settings: Settings) -> Asking:
    def asking(kind: str, arrays: Mapping[str, Weights] | None = None, site: int = 0) -> RecordDict:
        reply = sent(kind, overrides, settings.fingerprint(), arrays, site)
        assert reply.has_content()
        assert protocol.FAILURE not in reply.content
        return reply.content

    return asking


@pytest.fixture(scope="module")
def autoencoder(settings: Settings) -> Weights:
    torch.manual_seed(0)
    model = Autoencoder(settings.model.autoencoder, settings.data.channels)
    return dict(model.state_dict())


@pytest.fixture(scope="module")
def autoencoding(settings: Settings) -> dict[str, Weights]:
    components = fresh_state(settings, 5).weights
    return {name: dict(components[name]) for name in protocol.AUTOENCODING}


@pytest.fixture(scope="module")
def codec(settings: Settings, autoencoder: Weights) -> LatentCodec:
    model = Autoencoder(settings.model.autoencoder, settings.data.channels)
    model.load_state_dict(dict(autoencoder))
    return LatentCodec(model, torch.zeros(4), torch.ones(4))


@pytest.fixture(scope="module")
def joint(settings: Settings) -> dict[str, Weights]:
    torch.manual_seed(1)
    model = build_joint(settings, 5)
    return {
        protocol.UNET: model.unet.state_dict(),
        protocol.HEAD: model.head.state_dict(),
        protocol.UNET_MOMENTS: fresh_moments(model.unet),
        protocol.HEAD_MOMENTS: fresh_moments(model.head),
    }


def numbers(record: ArrayRecord) -> dict[str, Tensor]:
    return unpack(record[FORMAT].data)


# Allowed values


def test_only_listed_metrics_leave() -> None:
    given = {"images_seen": 3, "loss": 0.5, "worst_patient": 17, "path": 1.0}
    assert protocol.allowed(given) == {"images_seen": 3.0, "loss": 0.5}


def test_every_weight_that_is_averaged_may_leave() -> None:
    assert set(protocol.WEIGHTED_BY.values()) <= allowed_metrics.ALLOWED_METRICS


def test_the_census_is_counts_and_a_name(ask: Asking, settings: Settings) -> None:
    dataset = open_federated_dataset(settings)
    for site, client in enumerate(dataset.clients):
        content = ask(protocol.CENSUS, site=site)
        assert set(content) == {protocol.ANSWERS_TO, protocol.IDENTITY, protocol.METRICS}
        assert dict(content.config_records[protocol.IDENTITY]) == {"site": client.site}
        counts = dict(content.metric_records[protocol.METRICS])
        labelled = int(client.labelled.sum())
        labels = dataset.store.labels[client.train[client.labelled]]
        assert counts == {
            "images": 60,
            "train": len(client.train),
            "labelled": labelled,
            "validation": len(client.validation) if client.validation_labelled else 0,
            "test": len(client.test),
            "patients": 60,
            "per_class": [int(count) for count in labels.sum(axis=0)],
        }
    assert counts["labelled"] == 0 and counts["validation"] == 0


def test_the_census_counts_the_images_with_a_known_label_of_each_finding_if_needed(
    overrides: Overrides,
) -> None:
    given = (*overrides, "training.joint.logit_adjustment=1")
    reply = sent(protocol.CENSUS, given, compose("config", given).fingerprint())
    counts = dict(reply.content.metric_records[protocol.METRICS])
    assert counts["known_per_class"] == [counts["labelled"]] * 5


def test_an_autoencoder_round_returns_weights_and_listed_metrics(
    ask: Asking, autoencoding: dict[str, Weights]
) -> None:
    content = ask(protocol.TRAIN_AUTOENCODER, autoencoding)
    assert set(content) == {protocol.ANSWERS_TO, *protocol.AUTOENCODING, protocol.METRICS}
    autoencoder = autoencoding[protocol.AUTOENCODER]
    trained = numbers(content.array_records[protocol.AUTOENCODER])
    assert trained.keys() == autoencoder.keys()
    assert any(not torch.equal(trained[name], autoencoder[name]) for name in trained)
    moments = numbers(content.array_records[protocol.AUTOENCODER_MOMENTS])
    metrics = dict(content.metric_records[protocol.METRICS])
    assert moments[STEPS] == metrics["steps"]
    assert set(metrics) == {"images_seen", "labelled_seen", "steps", "seconds", "loss"}


def test_latent_sums_are_those_of_all_training_images(
    ask: Asking, settings: Settings, autoencoder: Weights, codec: LatentCodec
) -> None:
    content = ask(protocol.LATENT_CENSUS, {protocol.AUTOENCODER: autoencoder}, site=1)
    assert set(content) == {protocol.ANSWERS_TO, protocol.COUNTS}
    sums = numbers(content.array_records[protocol.COUNTS])
    mean, std = scale_from_sums(sums["total"], sums["squares"], float(sums["count"]))
    train = open_federated_dataset(settings).train(1)
    with torch.no_grad():
        latents = codec.encode(train.take(torch.arange(len(train))))  # scale 1: unscaled
    assert float(sums["count"]) == latents.numel() / 4
    torch.testing.assert_close(mean, latents.mean(dim=(0, 2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(std, latents.std(dim=(0, 2, 3), correction=0), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def encoded(ask: Asking, codec: LatentCodec) -> None:
    """All sites' latents are kept; the reply to it holds nothing."""
    for site in range(3):
        content = ask(protocol.ENCODE, {protocol.AUTOENCODER: codec.state_dict()}, site)
        assert set(content) == {protocol.ANSWERS_TO}


def test_latents_are_encoded_once(
    ask: Asking, settings: Settings, codec: LatentCodec, encoded: None
) -> None:
    assert settings.run.folder is not None
    kept = settings.run.folder / "sites" / "site-0" / "latents.safetensors"
    before = kept.stat().st_mtime_ns
    ask(protocol.ENCODE, {protocol.AUTOENCODER: codec.state_dict()})
    assert kept.stat().st_mtime_ns == before
    other = codec.state_dict() | {"mean": codec.mean + 1}
    ask(protocol.ENCODE, {protocol.AUTOENCODER: other})
    assert kept.stat().st_mtime_ns != before
    ask(protocol.ENCODE, {protocol.AUTOENCODER: codec.state_dict()})


@pytest.mark.parametrize(("site", "labelled"), [(0, True), (2, False)])
def test_a_joint_round_returns_weights_moments_and_listed_metrics(
    ask: Asking, joint: dict[str, Weights], encoded: None, site: int, labelled: bool
) -> None:
    content = ask(protocol.TRAIN_JOINT, joint, site)
    assert set(content) == {protocol.ANSWERS_TO, *protocol.JOINT, protocol.METRICS}
    metrics = dict(content.metric_records[protocol.METRICS])
    assert set(metrics) <= allowed_metrics.ALLOWED_METRICS
    assert (metrics["labelled_seen"] > 0) == labelled == ("classification_loss" in metrics)
    head = numbers(content.array_records[protocol.HEAD])
    assert head.keys() == joint[protocol.HEAD].keys()
    # What the site left as it was is not sent.
    assert all(value.numel() == 0 for value in head.values()) != labelled
    for component in protocol.JOINT:
        returned = numbers(content.array_records[component])
        assert {name: value.shape for name, value in returned.items() if value.numel()} == {
            name: value.shape
            for name, value in joint[component].items()
            if labelled or component not in (protocol.HEAD, protocol.HEAD_MOMENTS)
        }
    steps = float(numbers(content.array_records[protocol.UNET_MOMENTS])[STEPS])
    assert steps == metrics["steps"] > 0


def test_control_variates_come_back_as_mean_gradients(
    overrides: Overrides, joint: dict[str, Weights], codec: LatentCodec, tmp_path: Path
) -> None:
    given = (*elsewhere(overrides, tmp_path), "training.joint.control_variates=true")
    known = compose("config", given).fingerprint()
    sent(protocol.ENCODE, given, known, {protocol.AUTOENCODER: codec.state_dict()})
    first = sent(protocol.TRAIN_JOINT, given, known, joint).content
    assert set(first) == {
        protocol.ANSWERS_TO,
        *protocol.JOINT,
        *protocol.CONTROLS.values(),
        protocol.METRICS,
    }
    gradients = {
        control: numbers(first.array_records[control]) for control in protocol.CONTROLS.values()
    }
    for component, control in protocol.CONTROLS.items():
        gradient = gradients[control]
        assert {name: value.shape for name, value in gradient.items()} == {
            name: value.shape for name, value in joint[component].items()
        }
        assert all(bool(value.any()) for name, value in gradient.items() if "to_k" not in name)
    # The correction that undoes the site's own gradient leaves it nearer to what it was sent.
    undone = {
        control: {name: -value for name, value in gradient.items()}
        for control, gradient in gradients.items()
    }
    second = sent(protocol.TRAIN_JOINT, given, known, {**joint, **undone}).content

    def moved(content: RecordDict) -> float:
        trained = numbers(content.array_records[protocol.UNET_MOMENTS])
        return sum(float(v.square().sum()) for n, v in trained.items() if n.endswith(".exp_avg"))

    assert moved(second) < 0.9 * moved(first)


def test_validation_leaves_as_sums(
    ask: Asking, joint: dict[str, Weights], settings: Settings, encoded: None
) -> None:
    replies = [ask(protocol.EVALUATE, joint, site) for site in range(3)]
    for content in replies:
        assert set(content) == {protocol.ANSWERS_TO, protocol.COUNTS}
    sums = [numbers(content.array_records[protocol.COUNTS]) for content in replies]
    for one in sums:
        assert set(one) == {"counts", "bootstraps", "temperature_losses"}
        assert one["temperature_losses"].shape == TEMPERATURES.shape
    counts = [one["counts"] for one in sums]
    assert counts[0].shape == (5, settings.evaluation.num_thresholds, 2, 2)
    patients = [int(one[0, 0].sum()) for one in counts]
    validation = open_federated_dataset(settings)
    assert patients == [len(validation.validation(site)) for site in range(3)]
    assert patients[2] == 0
    # A site without labels adds nothing to the losses, so that it does not move the temperature.
    assert [bool(one["temperature_losses"].any()) for one in sums] == [True, True, False]
    area = auc_from_counts(torch.stack(counts).sum(dim=0))
    assert ((area >= 0) & (area <= 1) | area.isnan()).all()


# Refused values


def failure(reply: Message) -> tuple[str, str]:
    """Code and id of a site that could not do its work; fails where the reply holds more."""
    assert reply.has_content()
    assert set(reply.content) == {protocol.ANSWERS_TO, protocol.FAILURE}
    record = dict(reply.content.config_records[protocol.FAILURE])
    assert set(record) == {"code", "id"}
    assert len(str(record["id"])) == 8
    return str(record["code"]), str(record["id"])


def elsewhere(overrides: Overrides, folder: Path) -> Overrides:
    return (*overrides, f"run.folder={folder}")


def test_a_site_refuses_other_settings(overrides: Overrides, tmp_path: Path) -> None:
    given = elsewhere(overrides, tmp_path / "run")
    code, identity = failure(sent(protocol.CENSUS, given, "0123456789abcdef"))
    assert code == "settings"
    log = (tmp_path / "run" / "sites" / "site-0" / "site.log").read_text()
    assert identity in log and "0123456789abcdef" in log


def test_the_text_of_an_error_stays_in_the_sites_log(
    overrides: Overrides, settings: Settings, tmp_path: Path
) -> None:
    given = elsewhere(overrides, tmp_path / "run")
    # No autoencoder in the message, and one that does not fit.
    reply = sent(protocol.TRAIN_AUTOENCODER, given, settings.fingerprint(), site=1)
    code, identity = failure(reply)
    wrong = {protocol.AUTOENCODER: {"secret_layer": torch.ones(1)}}
    other = sent(protocol.TRAIN_AUTOENCODER, given, settings.fingerprint(), wrong, site=1)
    assert failure(other)[0] == code == "internal"
    assert failure(other)[1] != identity
    log = (tmp_path / "run" / "sites" / "site-1" / "site.log").read_text()
    assert identity in log and failure(other)[1] in log
    assert "secret_layer" in log and "Traceback" in log
    for record in (reply, other):
        assert "secret" not in json.dumps(dict(record.content[protocol.FAILURE]))


def test_each_runs_errors_stand_in_its_own_log(
    overrides: Overrides, settings: Settings, tmp_path: Path
) -> None:
    """Where one process serves two runs, the second must not write into the first one's log."""
    for name in ("first", "second"):
        given = elsewhere(overrides, tmp_path / name)
        _, identity = failure(sent(protocol.TRAIN_JOINT, given, settings.fingerprint(), site=2))
        log = tmp_path / name / "sites" / "site-2" / "site.log"
        assert log.is_file() and identity in log.read_text()


def test_missing_data_is_a_failure_without_a_path(
    overrides: Overrides, caplog: pytest.LogCaptureFixture
) -> None:
    given = (*overrides, "data.store=/proc/secret")
    reply = sent(protocol.CENSUS, given, "0123456789abcdef")
    code, identity = failure(reply)
    assert code == "data"
    # The site has no folder of its own yet, so its log is that of its process.
    assert identity in caplog.text


def test_settings_that_do_not_compose_are_a_failure_too(overrides: Overrides) -> None:
    code, _ = failure(sent(protocol.CENSUS, (*overrides, "sead=1"), "0123456789abcdef"))
    assert code == protocol.FAILED  # whether the run is private is not known


def test_a_partition_that_is_not_there_is_a_failure(
    overrides: Overrides, settings: Settings
) -> None:
    assert failure(sent(protocol.CENSUS, overrides, settings.fingerprint(), site=7))[0] == "data"


def test_a_site_keeps_its_progress_where_the_server_cannot_see_it(
    ask: Asking, autoencoding: dict[str, Weights], settings: Settings
) -> None:
    ask(protocol.TRAIN_AUTOENCODER, autoencoding, site=1)
    assert settings.run.folder is not None
    written = json.loads((settings.run.folder / "sites/site-1/progress.json").read_text())
    assert (written["site"], written["stage"], written["round"]) == ("site-1", "autoencoder", 1)
    assert written["step"] == written["steps"] > 0
