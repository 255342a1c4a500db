"""A site sends what `messaging.disclosure` declares, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from helpers.messages import sent

from client.declared_content import UndeclaredContentError, refuse_undeclared
from client.trainer.plain import PlainTrainer
from configs.compose import compose
from mediffusion_core.messaging import protocol
from mediffusion_core.messaging.serialization import FORMAT, pack


def refuse(kind: str, private: bool = False, **records: Any) -> None:
    refuse_undeclared(kind, RecordDict(records), private)


def counts(*names: str) -> ArrayRecord:
    return ArrayRecord({FORMAT: Array(*pack({name: torch.ones(2) for name in names}))})


def test_declared_content_passes() -> None:
    refuse(protocol.ENCODE)
    census = MetricRecord({"train": 3, "labelled": 1})
    for private in (False, True):
        refuse(protocol.CENSUS, private, identity=ConfigRecord({"site": "a"}), metrics=census)
        refuse(protocol.LATENT_CENSUS, private, counts=counts("total", "squares", "count"))


@pytest.mark.parametrize(
    ("kind", "private", "records", "named"),
    [
        (protocol.CENSUS, False, {"metrics": MetricRecord({"oldest": 97})}, "oldest"),
        (protocol.CENSUS, False, {"unet": ArrayRecord()}, "unet"),
        (protocol.ENCODE, False, {"counts": counts("total")}, "counts, total"),
        (protocol.EVALUATE, False, {"counts": counts("counts", "scores")}, "scores"),
        (protocol.CENSUS, True, {"metrics": MetricRecord({"patients": 3})}, "patients"),
        (protocol.TRAIN_JOINT, True, {"metrics": MetricRecord({"loss": 0.5})}, "loss"),
        (protocol.EVALUATE, True, {"counts": counts("counts")}, "counts"),
    ],
)
def test_other_content_is_refused(
    kind: str, private: bool, records: dict[str, Any], named: str
) -> None:
    with pytest.raises(UndeclaredContentError, match=f"^{named} in a reply to {kind}$"):
        refuse(kind, private, **records)


def test_a_count_that_is_not_declared_does_not_leave_the_site(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlainTrainer, "census", lambda trainer: {"train": 3, "oldest": 97})
    overrides = (*tiny, f"run.folder={tmp_path}")
    reply = sent(protocol.CENSUS, overrides, compose("config", overrides).fingerprint())
    assert set(reply.content) == {protocol.FAILURE, protocol.ANSWERS_TO}
    assert reply.content.config_records[protocol.FAILURE]["code"] == "internal"
    assert "oldest in a reply to query.census" in (next(tmp_path.rglob("site.log"))).read_text()
