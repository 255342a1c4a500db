"""Rounds end: a lost site is asked again, a silent one is not waited for for ever."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo

import server.dispatch
from mediffusion_core.messaging.protocol import CENSUS
from server.dispatch import collect
from server.sites import Answer
from simulations.engine.in_process import FIRST_SITE, order

GRACE = 10.0
Answers = dict[int, list[int | None]]
"""By node what it does with each message: None replies, a number is Flower's error."""


@dataclass
class Grid:
    """Flower's grid, whose nodes come, go and answer as they are told to."""

    answers: Answers
    there: list[set[int]]
    """The connected nodes at each poll; the last entry holds from then on."""
    restarts: dict[int, int] = field(default_factory=dict)
    """By node, the poll at which it has restarted and lost its earlier messages."""
    clock: list[float] = field(default_factory=lambda: [0.0])
    asked: list[int] = field(default_factory=list)
    waiting: dict[str, tuple[Message, str]] = field(default_factory=dict)
    looks: int = 0

    def get_nodes(self) -> Iterable[NodeInfo]:
        there = self.there.pop(0) if len(self.there) > 1 else self.there[0]
        self.looks += 1
        return [NodeInfo(node_id=node, last_activated_at=self._since(node)) for node in there]

    def _since(self, node: int) -> str:
        return "anew" if node in self.restarts and self.looks >= self.restarts[node] else "first"

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = f"message {len(self.asked)}"
            self.asked.append(node)
            ids.append(message.metadata.message_id)
            self.waiting[ids[-1]] = message, self._since(node)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = []
        for sent in sorted(message_ids):
            message, since = self.waiting[sent]
            node = message.metadata.dst_node_id
            if not self.answers[node] or (node in self.restarts and since == "first"):
                continue
            code = self.answers[node].pop(0)
            content = RecordDict() if code is None else Error(code)
            replies.append(Message(content, reply_to=message))
        return replies


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[set[int], set[int]]]:
    def running(grid: Grid, needed: int) -> tuple[set[int], set[int]]:
        def sleep(seconds: float) -> None:
            grid.clock[0] += seconds

        monkeypatch.setattr(server.dispatch.time, "monotonic", lambda: grid.clock[0])
        monkeypatch.setattr(server.dispatch.time, "sleep", sleep)

        def message(node: int) -> Message:
            return order(CENSUS, "hash", {}, node - FIRST_SITE)

        counted = set()

        def receive(node: int, content: Answer) -> bool:
            if isinstance(content, RecordDict):
                counted.add(node)
            return isinstance(content, RecordDict)

        missing = collect(grid, ALL, message, receive, needed, 60.0, GRACE)  # type: ignore[arg-type]
        return counted, missing

    return running


Run = Callable[[Grid, int], tuple[set[int], set[int]]]
ALL = {1, 2, 3}


def test_all_connected_sites_answer(run: Run) -> None:
    grid = Grid({1: [None], 2: [None], 3: [None]}, [ALL])
    assert run(grid, 3) == (ALL, set())
    assert (grid.asked, grid.clock) == ([1, 2, 3], [0.0])


def test_a_site_that_goes_is_asked_again_once_it_is_back(run: Run) -> None:
    gone = ErrorCode.NODE_UNAVAILABLE
    grid = Grid({1: [None], 2: [gone, None], 3: [None]}, [ALL, {1, 3}, {1, 3}, ALL])
    assert run(grid, 3) == (ALL, set())
    assert grid.asked == [1, 2, 3, 2]


def test_enough_replies_end_the_round_without_a_site_that_is_gone(run: Run) -> None:
    gone = ErrorCode.REPLY_MESSAGE_UNAVAILABLE
    grid = Grid({1: [None], 2: [gone], 3: [None]}, [ALL, {1, 3}])
    assert run(grid, 2) == ({1, 3}, {2})
    assert GRACE <= grid.clock[0] <= GRACE + 2.0


def test_a_site_that_comes_back_within_the_grace_period_is_asked(run: Run) -> None:
    gone = ErrorCode.NODE_UNAVAILABLE
    grid = Grid({1: [None], 2: [gone, None], 3: [None]}, [ALL, *[{1, 3}] * 8, ALL])
    assert run(grid, 2) == (ALL, set())
    assert grid.asked == [1, 2, 3, 2]


def test_an_absent_site_delays_no_other(run: Run) -> None:
    grid = Grid({1: [None], 2: [], 3: [None]}, [{1, 3}])
    assert run(grid, 2) == ({1, 3}, {2})
    assert grid.asked == [1, 3]


def test_the_deadline_ends_the_round_where_a_site_is_there_and_silent(run: Run) -> None:
    grid = Grid({1: [None], 2: [], 3: [None]}, [ALL])
    assert run(grid, 2) == ({1, 3}, {2})
    assert grid.clock == [60.0]


def test_too_few_replies_are_waited_for_until_the_deadline(run: Run) -> None:
    grid = Grid({1: [None], 2: [], 3: [None]}, [{1, 3}])
    assert run(grid, 3) == ({1, 3}, {2})
    assert grid.clock == [60.0]


def test_a_sites_own_error_is_its_answer_and_does_not_count(run: Run) -> None:
    raised = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    grid = Grid({1: [None], 2: [raised], 3: [None]}, [ALL])
    assert run(grid, 2) == ({1, 3}, set())
    assert grid.asked == [1, 2, 3]


def test_a_site_that_is_away_is_waited_for_where_another_has_failed(run: Run) -> None:
    raised = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    grid = Grid({1: [None], 2: [raised], 3: [None]}, [{1, 2}, {1, 2}, {1, 2}, ALL])
    assert run(grid, 2) == ({1, 3}, set())
    assert grid.asked == [1, 2, 3]


def test_a_site_that_was_killed_and_is_back_at_once_is_asked_again(run: Run) -> None:
    """Flower took it for present all the time, and reports no error."""
    grid = Grid({1: [None], 2: [None], 3: [None]}, [ALL], restarts={2: 3})
    assert run(grid, 3) == (ALL, set())
    assert grid.asked == [1, 2, 3, 2]
    assert grid.clock[0] < 5.0


def test_one_silent_site_does_not_keep_another_from_being_asked_again(run: Run) -> None:
    gone = ErrorCode.NODE_UNAVAILABLE
    grid = Grid({1: [None], 2: [gone, None], 3: []}, [ALL, {1, 3}, ALL])
    assert run(grid, 2) == ({1, 2}, {3})
    assert grid.asked == [1, 2, 3, 2]
