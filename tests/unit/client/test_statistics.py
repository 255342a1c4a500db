"""A site's statistics, what its site file allows, and what the server refuses."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import Tensor

from client.client_app import app
from client.site import _opened
from configs.compose import compose
from mediffusion_core.evaluation.site_statistics import BINS, SUPPRESSED, UNITS
from mediffusion_core.evaluation.subgroups import SUBGROUPS
from mediffusion_core.messaging import protocol
from mediffusion_core.messaging.disclosure import ANSWERS
from mediffusion_core.messaging.protocol import COUNTS, KINDS_OF_TASK, STATISTICS
from mediffusion_core.messaging.serialization import FORMAT, pack, unpack
from mediffusion_core.privacy.accounting.accountant import Charge, epsilon
from mediffusion_core.privacy.ledger.ledger import Ledger
from mediffusion_core.privacy.ledger.site_ledger import open_site_ledger
from mediffusion_core.settings.site_file import SiteFile
from server.messages import RefusedReplyError
from server.reply_bounds import refuse_census
from server.reply_contract import Asked, ReplyContract
from simulations.engine.in_process import order
from unit.client.test_model_evaluation import TWENTY_WOMEN, code, site_with, sums_of
from unit.client.test_site_policy import (
    CLASSES,
    PATIENTS,
    PRIVATE,
    RUN_OF,
    _own_data_folder,
    census,
    context,
    described_site,
)

__all__ = ["_own_data_folder"]

RUN = (*RUN_OF, "task=statistics")
ONLY = 'require_privacy = false\nallowed_settings.task = ["statistics"]\n'
COUNTED = {"images": PATIENTS, "patients": PATIENTS}
NAMED = {protocol.ANSWERS_TO, protocol.IDENTITY, protocol.METRICS, protocol.LEDGER_TIP}


def asked(
    node: dict[str, Any], overrides: Sequence[str] = RUN, kind: str = STATISTICS
) -> RecordDict:
    message = order(kind, compose("config", overrides).fingerprint(), {})
    return app(message, context(node, overrides)).content


def test_no_run_chooses_which_labels_of_a_site_count(tmp_path: Path) -> None:
    """The counts of two labelled fractions would differ by the labels of few patients."""
    node = site_with(tmp_path, TWENTY_WOMEN, ONLY)
    every, fewer = (
        sums_of(asked(node, (*RUN, f"data.labelled_fraction={fraction}")))
        for fraction in (1.0, 0.5)
    )
    for name, value in every.items():
        assert torch.equal(value, fewer[name]), name


def test_a_site_counts_its_images_and_suppresses_small_groups(tmp_path: Path) -> None:
    node = site_with(tmp_path, TWENTY_WOMEN, ONLY)
    assert dict(census(node, RUN).metric_records[protocol.METRICS]) == COUNTED
    sums = sums_of(asked(node))
    assert sums["labelled"].tolist() == [PATIENTS, 0]
    # The classes exclude each other.
    assert sums["labels"].tolist() == [[12, 12, 0], [12, 12, 0]]
    shown = {
        subgroup: count
        for (_, subgroup), count in zip(SUBGROUPS, sums["subgroups"].tolist(), strict=True)
        if count != SUPPRESSED
    }
    # 4 men, and then the women too: all images without theirs would be those of the men.
    assert shown == {"18-39": 12, "60-79": 12}
    assert sums["histogram"].shape == (1, BINS)
    assert int(sums["histogram"].sum()) == PATIENTS * 32 * 32
    assert UNITS[int(sums["unit"])] == "patient"


def test_the_minimum_is_in_the_site_file(tmp_path: Path) -> None:
    node = site_with(tmp_path, TWENTY_WOMEN, f"{ONLY}min_patients = 13\n")
    assert sums_of(asked(node))["labels"].unique().tolist() == [SUPPRESSED]
    node = site_with(tmp_path / "few", TWENTY_WOMEN, f"{ONLY}min_patients = 25\n")
    assert code(asked(node)) == code(census(node, RUN)) == "refused"


def test_a_site_can_allow_statistics_and_refuse_training(tmp_path: Path) -> None:
    node = site_with(tmp_path, TWENTY_WOMEN, ONLY)
    assert code(census(node, RUN_OF)) == "refused"
    for kind in sorted(set(ANSWERS) - KINDS_OF_TASK["statistics"]):
        assert code(asked(node, kind=kind)) == "refused", kind


def test_a_run_of_training_asks_for_no_statistics(tmp_path: Path) -> None:
    assert code(asked(described_site(tmp_path, "uni"), RUN_OF)) == "refused"


def test_a_site_of_private_runs_alone_sends_no_exact_counts(tmp_path: Path) -> None:
    node = site_with(tmp_path, TWENTY_WOMEN, "")
    assert code(asked(node)) == code(census(node, RUN)) == protocol.FAILED


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("labelled", lambda x: x.clamp(max=9), "do not add up"),
        ("labelled", lambda x: x - 9, "labelled outside"),
        ("labels", lambda x: x[:1], "of shape"),
        ("labels", lambda x: x.double(), "of type"),
        ("labels", lambda x: x * 2, "do not add up"),
        ("labels", lambda x: x * 3, "labels outside"),
        ("subgroups", lambda x: x.clamp(min=7), "subgroups by age that do not add up"),
        ("histogram", lambda x: x + 1, "histogram that do not add up"),
        ("histogram", lambda x: x + 10**9, "histogram outside"),
        ("unit", lambda x: x + 9, "sent a unit"),
    ],
)
def test_hostile_reply_with_false_statistics_is_refused(
    tmp_path: Path, name: str, change: Callable[[Tensor], Tensor], said: str
) -> None:
    contract, message = (
        ReplyContract(compose("config", RUN), len(CLASSES)),
        Asked(STATISTICS, 1, {}),
    )
    honest = asked(site_with(tmp_path, TWENTY_WOMEN, ONLY))
    contract.read(message, COUNTED, copy.deepcopy(honest))
    false = sums_of(honest)
    false[name] = change(false[name]).contiguous()
    del honest[COUNTS]
    honest[COUNTS] = ArrayRecord({FORMAT: Array(*pack(false))})
    with pytest.raises(RefusedReplyError, match=said):
        contract.read(message, COUNTED, honest)


@pytest.mark.parametrize("counts", [{}, {"images": 3, "patients": 4}, {**COUNTED, "train": 1}])
def test_hostile_reply_with_a_false_census_is_refused(counts: dict[str, int]) -> None:
    with pytest.raises(RefusedReplyError):
        refuse_census(counts, compose("config", RUN), len(CLASSES))
    assert refuse_census(COUNTED, compose("config", RUN), len(CLASSES)) == COUNTED


PRIVATE_RUN = (*RUN, *PRIVATE)


def test_a_private_site_charges_all_units_before_it_answers(tmp_path: Path) -> None:
    node = site_with(tmp_path, TWENTY_WOMEN, "")
    assert set(census(node, PRIVATE_RUN)) == NAMED
    found = []
    for _ in range(2):
        content = asked(node, PRIVATE_RUN)
        assert set(content) == {protocol.ANSWERS_TO, COUNTS, protocol.LEDGER_TIP}
        found.append(unpack(content.array_records[COUNTS][FORMAT].data))
        assert set(found[-1]) == {"labelled", "labels", "subgroups", "histogram"}
    assert not torch.equal(found[0]["labels"], found[1]["labels"])
    ledger = open_site_ledger(SiteFile.read(Path(node["site-file"])), begin=False)
    assert [(one.stage, one.units) for one in ledger.entries()] == [("statistics", PATIENTS)] * 2
    spent = epsilon([Charge(1.0, 8.0, 2)], 1e-5)
    assert ledger.worst(1e-5) == pytest.approx(spent)


def test_no_answer_leaves_if_the_ledger_cannot_be_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = site_with(tmp_path, TWENTY_WOMEN, "")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Ledger, "charge", full)
    assert code(asked(node, PRIVATE_RUN)) == protocol.FAILED


def test_units_without_budget_are_left_out(tmp_path: Path) -> None:
    """With next to no noise the sums count the others."""
    node = site_with(tmp_path, TWENTY_WOMEN, "max_epsilon = 1e12\ntarget_delta = 1e-5\n")
    run = (*PRIVATE_RUN, "privacy.release_noise=0.001")
    first = unpack(asked(node, run).array_records[COUNTS][FORMAT].data)
    assert float(first["labelled"].sum()) == pytest.approx(PATIENTS, abs=0.1)
    assert first["histogram"].sum() == pytest.approx(PATIENTS, abs=0.2)
    file = Path(node["site-file"])
    file.write_text(file.read_text().replace("1e12", "1.0"))
    _opened.cache_clear()
    second = unpack(asked(node, run).array_records[COUNTS][FORMAT].data)
    assert float(second["labelled"].sum()) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize(
    "more",
    [("privacy.target_delta=0.01", "privacy.release_noise=1"), ("privacy.release_noise=0.01",)],
    ids=["delta", "epsilon"],
)
def test_a_private_run_that_promises_too_little_is_refused(
    tmp_path: Path, more: Sequence[str]
) -> None:
    target = ("privacy.noise_multiplier=null", "privacy.target_epsilon=8", *more)
    node = site_with(tmp_path, TWENTY_WOMEN, "")
    assert code(asked(node, (*PRIVATE_RUN, *target))) == protocol.FAILED


def test_hostile_reply_with_false_noised_sums_is_refused(tmp_path: Path) -> None:
    settings = compose("config", PRIVATE_RUN)
    contract, message = ReplyContract(settings, len(CLASSES)), Asked(STATISTICS, 1, {})
    honest = asked(site_with(tmp_path, TWENTY_WOMEN, ""), PRIVATE_RUN)
    contract.read(message, {}, copy.deepcopy(honest))
    false = unpack(honest.array_records[COUNTS][FORMAT].data)
    false["histogram"] = false["histogram"] + 1e9
    del honest[COUNTS]
    honest[COUNTS] = ArrayRecord({FORMAT: Array(*pack(false))})
    with pytest.raises(RefusedReplyError, match="noised histogram above"):
        contract.read(message, {}, honest)
    with pytest.raises(RefusedReplyError):
        refuse_census(COUNTED, settings, len(CLASSES))
