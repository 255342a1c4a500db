"""The server's use of an evaluation, with sites in this process."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.attacks import Changes, run_with
from torch import Tensor

from configs.compose import compose
from mediffusion_core.data.partitioning.federated_dataset import (
    FederatedDataset,
    open_federated_dataset,
)
from mediffusion_core.evaluation.calibration import best_temperature, temperature_losses
from mediffusion_core.evaluation.evaluator import Evaluator
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.messaging import protocol
from mediffusion_core.run_io.run_folder import RunFolder
from mediffusion_core.settings import Settings
from server.checkpoints import restore_state
from server.messages import Reply
from server.reply_contract import ReplyContract
from server.run import FederatedRun
from server.state import fresh_state
from simulations.engine.in_process import SitesHere


class Recording(SitesHere):
    """Three real sites, and what they were sent."""

    def __init__(self, overrides: Sequence[str], settings: Settings, num_classes: int) -> None:
        super().__init__("config", overrides, settings, ReplyContract(settings, num_classes))
        self.sent: list[tuple[str, Mapping[str, Mapping[str, Tensor]]]] = []

    def ask(
        self,
        kind: str,
        round_number: int,
        components: Mapping[str, Mapping[str, Tensor]],
        sites: Collection[str] | None = None,
        own: Mapping[str, Mapping[str, Mapping[str, Tensor]]] | None = None,
        take: Callable[[Reply], None] | None = None,
    ) -> list[Reply]:
        self.sent.append((kind, dict(components)))
        return super().ask(kind, round_number, components, sites, own, take)


CPU = torch.device("cpu")


def short_run(
    shortest: tuple[str, ...], folder: Path, *more: str, resumed: bool = False
) -> tuple[FederatedRun, Recording, FederatedDataset, RunFolder]:
    """A run of one round of each stage, its sites, its data and its folder."""
    places = (f"data.store={folder / 'store'}", f"run.folder={folder / 'run'}")
    overrides = (*shortest, *places, *more)  # the last of two values counts
    settings = compose("config", overrides)
    dataset = open_federated_dataset(settings)
    store, run_folder = dataset.store, RunFolder(folder / "run")
    sites = Recording(overrides, settings, len(store.classes))
    run_folder.create(settings)
    groups, origin = dataset.groups(dataset.test_rows), dataset.site_of_test()
    run = FederatedRun(
        settings,
        sites,
        Evaluator(settings, dataset.test(), groups, origin, store.classes, store.multi_label),
        run_folder,
        (resumed and restore_state(run_folder, settings))
        or fresh_state(settings, len(store.classes)),
        CPU,
    )
    return run, sites, dataset, run_folder


def test_sites_are_told_how_often_a_finding_occurs_at_all_of_them(
    shortest: tuple[str, ...], tmp_path: Path
) -> None:
    run, sites, dataset, folder = short_run(shortest, tmp_path, "training.joint.logit_adjustment=1")
    run.execute()
    [counts] = [sent["label_counts"] for kind, sent in sites.sent if kind == protocol.TRAIN_JOINT]
    targets = torch.cat([dataset.train(site).targets for site in range(3)])
    assert torch.equal(counts["positive"], (targets == 1).sum(dim=0).float())
    assert torch.equal(counts["known"], (~targets.isnan()).sum(dim=0).float())
    assert 0 < float(counts["positive"].min()) < float(counts["known"].min()) == 36
    assert "known_per_class" not in folder.history()[0]["sites"]["site-0"]


def test_the_average_of_the_global_weights_goes_to_the_sites_where_it_teaches(
    shortest: tuple[str, ...], tmp_path: Path
) -> None:
    """Its first round has only the untrained weights; the unlabelled site trains with it, too."""
    on = ("consistency.weight=1", "consistency.thresholds=adaptive", "diffusion_weight=0")
    given = [f"training.joint.{setting}" for setting in on]
    run, sites, _, folder = short_run(shortest, tmp_path, *given)
    run.execute()
    [sent] = [sent for kind, sent in sites.sent if kind == protocol.TRAIN_JOINT]
    assert set(sent) == {*protocol.JOINT, "ema_unet", "ema_head", "label_counts"}
    for name, value in sent["unet"].items():
        assert torch.equal(sent["ema_unet"][name], value)
    [line] = [line for line in folder.history() if line["stage"] == "joint"]
    assert line["consistency_loss"] > 0 and line["pseudo_labelled"] == pytest.approx(1, abs=0.02)
    assert line["sites"]["site-2"]["images_seen"] > 0 == line["sites"]["site-2"]["labelled_seen"]


def test_the_selected_model_has_the_temperature_of_all_sites_patients(
    shortest: tuple[str, ...], tmp_path: Path
) -> None:
    run, sites, dataset, folder = short_run(shortest, tmp_path)
    store, cpu = dataset.store, CPU
    calibration = run.execute()["calibration"]
    joint_messages = [sent for kind, sent in sites.sent if kind == protocol.TRAIN_JOINT]
    assert [set(sent) for sent in joint_messages] == [set(protocol.JOINT)]

    model = TrainedModel.load(folder.model, cpu)
    assert model.temperature == calibration["temperature"]
    labelled = [images for site in range(3) if len(images := dataset.validation(site))]
    logits, targets = (
        torch.cat([model.logits(model.encode(s.take(torch.arange(len(s))))) for s in labelled]),
        torch.cat([s.targets for s in labelled]),
    )
    expected = best_temperature(temperature_losses(logits, targets, store.multi_label))
    assert model.temperature == pytest.approx(expected, rel=1e-3)
    # It is found for each model anew, the untrained one among them.
    evaluated = [line for line in folder.history() if line["stage"] == "evaluation"]
    temperatures = [line["calibration"]["temperature"] for line in evaluated]
    assert len(temperatures) == 2 and temperatures[0] != temperatures[1] == model.temperature


def test_a_site_that_is_away_is_left_out_and_taken_in_again(
    shortest: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Away when the others encode: it encodes before its first round of training."""
    longer = ("federation.num_rounds=2", "evaluation.every=2")
    run, sites, _, folder = short_run(shortest, tmp_path, *longer)
    whole, away = sites.ask, {protocol.ENCODE: 2, protocol.TRAIN_JOINT: 1}
    asked: list[tuple[str, list[str]]] = []

    def ask(
        kind: str,
        number: int,
        components: Any,
        names: Any = None,
        own: Any = None,
        take: Callable[[Reply], None] | None = None,
    ) -> Any:
        asked.append((kind, sorted(sites.sites if names is None else names)))
        left_out = {"site-1"} if away.get(kind, 0) > 0 else set()
        away[kind] = away.get(kind, 0) - 1

        def take_others(reply: Reply) -> None:
            if take is not None and reply.site not in left_out:
                take(reply)

        given = take and take_others
        replies = whole(kind, number, components, names, own, given)
        return [reply for reply in replies if reply.site not in left_out]

    monkeypatch.setattr(sites, "ask", ask)
    run.execute()

    both, all_three = ["site-0", "site-2"], ["site-0", "site-1", "site-2"]
    trained = [names for kind, names in asked if kind == protocol.TRAIN_JOINT]
    encoded = [names for kind, names in asked if kind == protocol.ENCODE]
    assert encoded[0] == all_three and all(names == ["site-1"] for names in encoded[1:])
    assert trained[-1] == all_three
    lines = [line for line in folder.history() if line["stage"] == "joint"]
    assert sorted(lines[0]["sites"]) == both
    assert sorted(lines[1]["sites"]) == all_three


def test_a_site_beyond_the_norm_bound_is_named_and_the_run_goes_on(
    shortest: tuple[str, ...], tmp_path: Path
) -> None:
    robust = (
        "federation.num_malicious_sites=1",
        "federation.norm_bound=3",
        "federation.server.unet.aggregation=median",
    )
    attack = Changes(lambda change: -1000 * change)
    folder, summary = run_with((*shortest, *robust), tmp_path, attack)
    assert summary["status"] == "completed"
    aside = {one["kind"]: (one["site"], one["reason"]) for one in summary["set_aside"]}
    assert aside.keys() == {protocol.TRAIN_AUTOENCODER, protocol.TRAIN_JOINT}
    for site, reason in aside.values():
        assert site == "site-1" and "times the median of the round" in reason
    [joint] = [line for line in folder.history() if line["stage"] == "joint"]
    assert joint["aggregated"] == {"unet": ["site-0", "site-2"], "head": ["site-0"]}
    assert joint["tolerated"] == {"unet": 0}
    assert sorted(joint["sites"]) == ["site-0", "site-2"]
    assert not (folder.path / "replies").exists()
