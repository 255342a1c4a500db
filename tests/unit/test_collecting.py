"""Rounds end: a lost site is asked again, a silent one is not waited for for ever."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode

import server.collecting
from mediffusion_core.protocol import CENSUS
from server.collecting import collect
from simulations.in_process import FIRST_SITE, order

Answers = dict[int, list[int | None]]
"""By node what it does with each message: None replies, a number is Flower's error."""


@dataclass
class Grid:
    """Flower's grid, whose nodes come, go and answer as they are told to."""

    answers: Answers
    there: list[set[int]]
    """Who is there at each look; the last entry holds from then on."""
    clock: list[float] = field(default_factory=lambda: [0.0])
    asked: list[int] = field(default_factory=list)

    def get_node_ids(self) -> Iterable[int]:
        return self.there.pop(0) if len(self.there) > 1 else self.there[0]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        assert timeout is not None
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            self.asked.append(node)
            if not self.answers[node]:
                self.clock[0] += timeout  # Flower waits for the one that is silent
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

        monkeypatch.setattr(server.collecting.time, "monotonic", lambda: grid.clock[0])
        monkeypatch.setattr(server.collecting.time, "sleep", sleep)

        def message(node: int) -> Message:
            return order(CENSUS, "hash", {}, node - FIRST_SITE)

        found = collect(grid, {1, 2, 3}, message, needed, 60.0)  # type: ignore[arg-type]
        return {reply.metadata.src_node_id for reply in found.replies}, found.missing

    return running


Run = Callable[[Grid, int], tuple[set[int], set[int]]]
ALL = {1, 2, 3}


def test_all_who_are_there_answer(run: Run) -> None:
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
    assert grid.clock == [0.0]


def test_a_site_that_is_not_there_holds_nobody(run: Run) -> None:
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


def test_a_sites_own_error_is_its_answer(run: Run) -> None:
    raised = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    grid = Grid({1: [None], 2: [raised], 3: [None]}, [ALL])
    assert run(grid, 2) == (ALL, set())
    assert grid.asked == [1, 2, 3]
