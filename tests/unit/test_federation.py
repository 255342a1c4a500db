"""What the server makes of a site's reply."""

import math

import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict

from mediffusion_core.protocol import CENSUS, COUNTS, ENCODE, METRICS, TRAIN_JOINT, UNET
from server.federation import Federation
from server.messages import Reply, SiteError, array_records


def test_a_reply_holds_its_arrays_as_they_were_sent() -> None:
    weights = {"conv.weight": torch.randn(2, 3), "steps": torch.tensor(4.0)}
    counts = {"counts": torch.arange(6).reshape(2, 3)}
    metrics = {"loss": 0.5, "per_class": [1, 2]}
    content = RecordDict(
        {**array_records({UNET: weights, COUNTS: counts}), METRICS: MetricRecord(metrics)}
    )
    reply = Reply.of("site-0", content)
    for component, sent in ((UNET, weights), (COUNTS, counts)):
        got = reply.components[component]
        assert got.keys() == sent.keys()
        assert all(torch.equal(got[name], sent[name]) for name in sent)
        assert all(got[name].dtype == sent[name].dtype for name in sent)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_refused_by_name(broken: float) -> None:
    sent = array_records({UNET: {"a": torch.ones(2), "b": torch.tensor([1.0, broken])}})
    with pytest.raises(SiteError, match="site-1 sent a value in unet b that is no number"):
        Reply.of("site-1", RecordDict(sent))
    metrics = MetricRecord({"steps": 3, "loss": broken})
    with pytest.raises(SiteError, match="site-1 sent a metric loss that is no number"):
        Reply.of("site-1", RecordDict({METRICS: metrics}))


def test_arrays_that_cannot_be_read_are_refused_by_name() -> None:
    whole = array_records({UNET: {"a": torch.ones(2)}})[UNET]
    (array,) = whole.values()
    array.data = array.data[:-1]
    for record in (whole, ArrayRecord({"a": torch.ones(2)})):
        with pytest.raises(SiteError, match="site-1 sent arrays of unet that cannot be read"):
            Reply.of("site-1", RecordDict({UNET: record}))


@pytest.mark.parametrize(
    ("kind", "min_replies", "asked", "needed"),
    [
        (TRAIN_JOINT, None, 4, 4),
        (TRAIN_JOINT, None, 2, 2),
        (TRAIN_JOINT, 3, 4, 3),
        (TRAIN_JOINT, 3, 2, 1),  # as many may be silent where a share of the sites trains
        (TRAIN_JOINT, 1, 2, 1),
        (TRAIN_JOINT, 1, 0, 0),
        (ENCODE, 3, 1, 0),  # the one that was away holds nobody
        (ENCODE, None, 1, 1),
        (CENSUS, 1, 4, 4),
    ],
)
def test_how_many_must_answer(kind: str, min_replies: int | None, asked: int, needed: int) -> None:
    federation = Federation(None, "hash", 4, 60.0, min_replies)  # type: ignore[arg-type]
    assert federation._needed(kind, asked) == needed
