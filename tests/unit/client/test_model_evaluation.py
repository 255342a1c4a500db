"""A site's answer about a model from elsewhere, and what its site file allows."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import Tensor

from client.client_app import app
from configs.compose import compose
from mediffusion_core.evaluation.subgroups import SUBGROUPS
from mediffusion_core.messaging import protocol
from mediffusion_core.messaging.disclosure import ANSWERS
from mediffusion_core.messaging.model_digest import model_digest
from mediffusion_core.messaging.protocol import COUNTS, EVALUATE_MODEL, FAILURE, KINDS_OF_TASK
from mediffusion_core.messaging.serialization import FORMAT, pack, unpack
from server.messages import RefusedReplyError
from server.reply_contract import Asked, ReplyContract
from server.state import fresh_state
from simulations.engine.in_process import order
from unit.client.test_site_policy import (
    CLASSES,
    PATIENTS,
    RUN_OF,
    _own_data_folder,
    census,
    context,
    described_site,
)

__all__ = ["_own_data_folder"]

SETTINGS = compose("config", RUN_OF)
STATE = fresh_state(SETTINGS, len(CLASSES))
MODEL: dict[str, Mapping[str, Tensor]] = {
    protocol.AUTOENCODER: STATE.codec(SETTINGS).state_dict(),
    protocol.UNET: STATE.averages[protocol.UNET],
    protocol.HEAD: STATE.averages[protocol.HEAD],
    protocol.CALIBRATION: {"temperature": torch.tensor([1.5])},
}
DIGEST = model_digest(MODEL)
EVALUATION = (
    *RUN_OF,
    "task=evaluation",
    "evaluation.model=/server/only",
    f"evaluation.digests=[{DIGEST}]",
    "evaluation.patients=all",
    "evaluation.num_thresholds=101",
    "evaluation.num_bootstraps=3",
)
ONLY = 'require_privacy = false\nallowed_settings.task = ["evaluation"]\n'


def site_with(
    folder: Path, people: Sequence[tuple[str, str]], policy: str = ONLY
) -> dict[str, Any]:
    """A site whose patients have these sexes and ages."""
    node = described_site(folder, "uni", policy=policy)
    table = folder / "uni" / "images" / "labels.csv"
    head, *rows = table.read_text().splitlines()
    written = [f"{row},{sex},{age}" for row, (sex, age) in zip(rows, people, strict=True)]
    table.write_text("\n".join([f"{head},gender,years", *written]) + "\n")
    file = Path(node["site-file"])
    columns = '[data.columns]\nsex = "gender"\nage = "years"\n'
    file.write_text(file.read_text().replace("[data.columns]\n", columns))
    return node


def asked(
    node: dict[str, Any],
    kind: str = EVALUATE_MODEL,
    trusted: bool = True,
    **changes: Mapping[str, Tensor],
) -> RecordDict:
    """The site's answer to a message with a model that the run names, if it is `trusted`."""
    model = {**MODEL, **changes}
    given = (*EVALUATION, f"evaluation.digests=[{model_digest(model) if trusted else DIGEST}]")
    message = order(kind, compose("config", given).fingerprint(), model)
    return app(message, context(node, given)).content


def code(content: RecordDict) -> str | None:
    failure = content.config_records.get(FAILURE)
    return None if failure is None else str(failure["code"])


def sums_of(content: RecordDict) -> dict[str, Tensor]:
    assert set(content) == {protocol.ANSWERS_TO, COUNTS}
    return unpack(content.array_records[COUNTS][FORMAT].data)


TWENTY_WOMEN = [("F", "30")] * 12 + [("F", "70")] * 8 + [("M", "70")] * 4


def test_a_group_under_the_minimum_is_suppressed_at_the_site(tmp_path: Path) -> None:
    """4 men, and then the women too: all minus women would be the men."""
    sums = sums_of(asked(site_with(tmp_path, TWENTY_WOMEN)))
    shown = {
        subgroup: int(counts[0, 0].sum())
        for (_, subgroup), counts in zip(SUBGROUPS, sums["subgroups"], strict=True)
    }
    assert shown == dict.fromkeys((subgroup for _, subgroup in SUBGROUPS), 0) | {
        "18-39": 12,
        "60-79": 12,
    }
    assert int(sums["counts"][0, 0].sum()) == PATIENTS


def test_the_sites_minimum_is_in_its_file(tmp_path: Path) -> None:
    sums = sums_of(asked(site_with(tmp_path, TWENTY_WOMEN, f"{ONLY}min_patients = 4\n")))
    women = [number for number, (_, subgroup) in enumerate(SUBGROUPS) if subgroup == "female"]
    assert int(sums["subgroups"][women][0, 0, 0].sum()) == 20
    large = f"{ONLY}min_patients = 25\n"
    node = site_with(tmp_path / "large", TWENTY_WOMEN, large)
    assert code(asked(node)) == code(census(node, EVALUATION)) == "refused"


def test_a_site_can_allow_evaluation_and_refuse_training(tmp_path: Path) -> None:
    node = site_with(tmp_path, TWENTY_WOMEN)
    assert code(census(node, RUN_OF)) == "refused"
    counts = dict(census(node, EVALUATION).metric_records[protocol.METRICS])
    assert counts == {"images": PATIENTS, "patients": PATIENTS}
    for kind in sorted(set(ANSWERS) - KINDS_OF_TASK["evaluation"]):
        assert code(asked(node, kind)) == "refused", kind


def test_a_run_of_training_answers_no_evaluation_of_a_model(tmp_path: Path) -> None:
    node = described_site(tmp_path, "uni")
    message = order(EVALUATE_MODEL, compose("config", RUN_OF).fingerprint(), {})
    assert code(app(message, context(node, RUN_OF)).content) == "refused"


def test_a_site_of_private_runs_alone_evaluates_no_model(tmp_path: Path) -> None:
    node = site_with(tmp_path, TWENTY_WOMEN, "")
    assert code(asked(node)) == code(census(node, EVALUATION)) == protocol.FAILED


def test_images_of_other_classes_are_not_evaluated(tmp_path: Path) -> None:
    node = site_with(tmp_path, TWENTY_WOMEN)
    assert code(census(node, (*EVALUATION, "data.classes=[healthy,effusion]"))) == "refused"


def test_a_model_that_the_run_does_not_name_is_refused(tmp_path: Path) -> None:
    node = site_with(tmp_path, TWENTY_WOMEN)
    other = {name: value + 1e-6 for name, value in MODEL[protocol.HEAD].items()}
    assert code(asked(node, trusted=False)) is None
    assert code(asked(node, trusted=False, **{protocol.HEAD: other})) == "refused"


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_divides_nothing_is_refused(tmp_path: Path, temperature: float) -> None:
    sent = {protocol.CALIBRATION: {"temperature": torch.tensor([temperature])}}
    assert code(asked(site_with(tmp_path, TWENTY_WOMEN), **sent)) == "data"


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("counts", lambda x: x + 1, "total changes or exceeds"),
        ("counts", lambda x: x.flip(1), "rise with the threshold"),
        ("counts", lambda x: x.double(), "of type"),
        ("subgroups", lambda x: x[:-1], "of shape"),
        ("subgroups", lambda x: x[[3]].expand(x.shape).contiguous(), "exceed the counts"),
        ("bootstraps", lambda x: -x, "outside 0"),
        ("reliability", lambda x: -x, "predictions outside"),
        ("reliability", lambda x: x * 100, "predictions outside"),
        ("reliability", lambda x: x * torch.tensor([1.0, 9.0, 1.0]).double(), "sent confidence"),
        ("reliability", lambda x: x * torch.tensor([1.0, 1.0, 99.0]).double(), "right predictions"),
        ("squares", lambda x: x * torch.nan, "not finite"),
        ("squares", lambda x: x + 1e9, "squares out of range"),
    ],
)
def test_hostile_reply_with_false_sums_of_a_model_is_refused(
    tmp_path: Path, name: str, change: Callable[[Tensor], Tensor], said: str
) -> None:
    settings = compose("config", EVALUATION)
    contract, message = ReplyContract(settings, len(CLASSES)), Asked(EVALUATE_MODEL, 1, {})
    told = {"images": PATIENTS, "patients": PATIENTS}
    honest = asked(site_with(tmp_path, TWENTY_WOMEN))
    contract.read(message, told, copy.deepcopy(honest))
    false = sums_of(honest)
    false[name] = change(false[name]).contiguous()
    del honest[COUNTS]
    honest[COUNTS] = ArrayRecord({FORMAT: Array(*pack(false))})
    with pytest.raises(RefusedReplyError, match=said):
        contract.read(message, told, honest)
