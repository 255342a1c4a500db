"""Sites leave, fail, join and come back between the rounds of a run, by Flower's grid."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.task_identity import TaskIdentity

import server.dispatch
import server.flower_sites
from configs.compose import compose
from deployment.certificates import new_site_key
from mediffusion_core.common.audit_log import AUDIT, read_lines
from mediffusion_core.messaging import protocol
from mediffusion_core.messaging.protocol import CENSUS, ENCODE
from mediffusion_core.messaging.site_keys import fingerprint, read_keys
from mediffusion_core.settings import Settings
from server.audit import RunAudit
from server.flower_sites import FlowerSites
from server.messages import SiteError
from server.reply_contract import ReplyContract

CLASSES = 2
LOST = f"was lost (Flower's code {ErrorCode.CLIENT_APP_RAISED_EXCEPTION})"
COUNTS = {"images": 9, "train": 5, "labelled": 2, "validation": 2, "test": 2, "patients": 9}


@dataclass
class Grid:
    """Flower's grid with nodes that are there, and what each answers: content or Flower's error."""

    there: set[int] = field(default_factory=set)
    """Nodes."""
    called: dict[int, str] = field(default_factory=dict)
    """By node the name with which Flower has registered it."""
    keys: dict[int, bytes] = field(default_factory=dict)
    """By node the public key that Flower has authenticated."""
    names: dict[int, str] = field(default_factory=dict)
    """By node the name that its site gives itself."""
    failing: dict[int, str] = field(default_factory=dict)
    """By node a kind of message at which its program raises."""
    silent: dict[int, str] = field(default_factory=dict)
    """By node a kind of message that it does not answer."""
    pretending: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By node what its replies say falsely of themselves."""
    unreadable: set[int] = field(default_factory=set)
    """Nodes whose replies Flower cannot read."""
    clock: float = 0.0
    asked: list[tuple[str, int]] = field(default_factory=list)
    waiting: dict[str, Message] = field(default_factory=dict)
    later: dict[float, set[int]] = field(default_factory=dict)
    """By seconds, who is there from then on."""

    def get_node_ids(self) -> Iterable[int]:
        return [node.node_id for node in self.get_nodes()]

    def get_nodes(self) -> Iterable[NodeInfo]:
        for moment in sorted(self.later):
            if self.clock >= moment:
                self.there = self.later.pop(moment)
        return [
            NodeInfo(node_id=node, name=self.called.get(node), public_key=self.keys.get(node, b""))
            for node in sorted(self.there)
        ]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            message.metadata.__dict__["_message_id"] = f"message {len(self.asked)}"
            self.asked.append((kind, node))
            ids.append(message.metadata.message_id)
            self.waiting[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = []
        for sent in sorted(message_ids):
            message = self.waiting[sent]
            node = message.metadata.dst_node_id
            if node in self.unreadable:
                raise AttributeError("no value")
            if node in self.there and self.silent.get(node) != message.metadata.message_type:
                replies.append(Message(self._content(message, node), reply_to=message))
                replies[-1].metadata.__dict__.update(self.pretending.get(node, {}))
        return replies

    def _content(self, message: Message, node: int) -> Any:
        kind = message.metadata.message_type
        if self.failing.get(node) == kind:
            return Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION)
        instructions = dict(message.content.config_records[protocol.INSTRUCTIONS])
        content = {protocol.ANSWERS_TO: ConfigRecord(protocol.answered(kind, instructions))}
        if kind == CENSUS:
            counts = {**COUNTS, "per_class": [1] * CLASSES}
            content[protocol.IDENTITY] = ConfigRecord({"site": self.names[node]})
            content[protocol.METRICS] = MetricRecord(counts)
        return RecordDict(content)


Connect = Callable[..., FlowerSites]


@pytest.fixture
def connect(tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> Connect:
    def connecting(grid: Grid, *overrides: str, keys: Path | None = None) -> FlowerSites:
        def sleep(seconds: float) -> None:
            grid.clock += seconds

        for name in ("_run_id", "_task_id", "_node_id"):
            monkeypatch.setattr(TaskIdentity, name, 1)
        for module in (server.dispatch, server.flower_sites):
            monkeypatch.setattr(module.time, "monotonic", lambda: grid.clock)
            monkeypatch.setattr(module.time, "sleep", sleep)
        short = ("federation.round_timeout=100", "federation.grace_period=10")
        settings: Settings = compose("config", [*tiny, *short, *overrides])
        contract = ReplyContract(settings, CLASSES)
        audit = RunAudit("1", settings.fingerprint())
        return FlowerSites(grid, settings, contract, audit, keys)  # type: ignore[arg-type]

    return connecting


def three(**changes: Any) -> Grid:
    return Grid(there={1, 2, 3}, names={1: "a", 2: "b", 3: "c", 4: "d"}, **changes)


def reasons(sites: FlowerSites) -> list[tuple[str, str]]:
    return [(one.site, one.reason) for one in sites.take_set_aside()]


def test_the_census_needs_the_minimum_and_waits_a_little_for_others(connect: Connect) -> None:
    grid = three()
    grid.there.remove(3)
    sites = connect(grid)
    assert [reply.site for reply in sites.census()] == ["a", "b"]
    assert 10 <= grid.clock <= 12


def test_fewer_than_the_minimum_end_the_census(connect: Connect) -> None:
    grid = Grid(there={1}, names={1: "a"})
    with pytest.raises(SiteError, match="1 sites came in time, and 2 are needed"):
        connect(grid).census()


def test_a_site_that_fails_the_census_is_asked_again(connect: Connect) -> None:
    grid = three(failing={2: CENSUS})
    sites = connect(grid)
    assert [reply.site for reply in sites.census()] == ["a", "c"]
    assert reasons(sites) == [("site at node 2", LOST)]
    grid.failing.clear()
    assert sites.newcomers() == []
    assert [reply.site for reply in sites.newcomers()] == ["b"]
    assert sites.sites == ["a", "b", "c"]


def test_failing_and_silent_sites_are_treated_alike(connect: Connect) -> None:
    for changes, expected in (
        ({"failing": {2: ENCODE}}, LOST),
        ({"later": {0.0: {1, 3}}}, "sent no reply in time"),
    ):
        grid = three(failing=changes.get("failing", {}))
        sites = connect(grid)
        sites.census()
        grid.later = changes.get("later", {})
        assert [reply.site for reply in sites.ask(ENCODE, 1, {})] == ["a", "c"]
        assert reasons(sites) == [("b", expected)]


def test_below_the_minimum_a_round_ends_the_run(connect: Connect) -> None:
    grid = three(failing={2: ENCODE})
    sites = connect(grid, "federation.min_sites=3")
    sites.census()
    with pytest.raises(SiteError, match=r"2 replies to query\.encode count, 3 are needed: b"):
        sites.ask(ENCODE, 1, {})


def test_a_site_that_left_is_waited_for_once_and_comes_back(connect: Connect) -> None:
    grid = three()
    sites = connect(grid)
    sites.census()
    grid.there = {1, 3}
    sites.ask(ENCODE, 1, {})
    assert sites.sites == ["a", "c"] and grid.clock >= 10
    before = grid.clock
    sites.ask(ENCODE, 2, {})
    assert grid.clock == before
    grid.names[4] = "b"
    grid.there.add(4)  # a new process of the site has another node
    sites.newcomers()
    assert [reply.site for reply in sites.newcomers()] == ["b"]
    assert sites.sites == ["a", "b", "c"]
    grid.asked.clear()
    sites.ask(ENCODE, 3, {})
    assert [node for _, node in grid.asked] == [1, 3, 4]


def test_an_unexpected_site_may_join(connect: Connect) -> None:
    grid = three()
    sites = connect(grid)
    sites.census()
    grid.there.add(4)
    sites.newcomers()
    assert [reply.site for reply in sites.newcomers()] == ["d"]
    assert len(sites.ask(ENCODE, 1, {})) == 4


def test_a_run_that_fell_below_its_minimum_waits_for_sites(connect: Connect) -> None:
    grid = three()
    sites = connect(grid)
    sites.census()
    sites._nodes.clear()
    grid.there, grid.later = {1}, {50.0: {1, 2}}
    assert [reply.site for reply in sites.newcomers()] == ["a", "b"]
    sites._nodes.clear()
    grid.there = set()
    with pytest.raises(SiteError, match="0 sites are left, 2 are needed"):
        sites.newcomers()


def test_a_name_belongs_to_one_node(connect: Connect) -> None:
    grid = three()
    grid.names[3] = "a"
    sites = connect(grid)
    assert [reply.site for reply in sites.census()] == ["a", "b"]
    assert reasons(sites) == [("site at node 3", "took the name a, which is another site's")]


def test_a_node_that_flower_has_registered_takes_part_under_that_name(connect: Connect) -> None:
    sites = connect(three(called={1: "a", 2: "b", 3: "not-c"}))
    assert [reply.site for reply in sites.census()] == ["a", "b"]
    assert reasons(sites) == [("site at node 3", "took the name c, which is another site's")]


@pytest.fixture
def registered(tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    """The folder of `provision` with the keys of three sites, and the keys as Flower has them."""
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.pub").write_bytes(new_site_key()[1])
    return tmp_path, read_keys(tmp_path)


def test_a_name_belongs_to_its_key_alone(
    connect: Connect, registered: tuple[Path, dict[str, bytes]]
) -> None:
    folder, keys = registered
    grid = three(keys={1: keys["a"], 2: keys["b"], 3: keys["a"]})
    sites = connect(grid, keys=folder)
    assert [reply.site for reply in sites.census()] == ["a", "b"]
    assert reasons(sites) == [("site at node 3", "took the name c, which is another site's")]


def test_a_key_that_is_not_registered_takes_no_name_even_of_a_site_that_is_away(
    connect: Connect, registered: tuple[Path, dict[str, bytes]]
) -> None:
    folder, keys = registered
    grid = three(keys={1: keys["a"], 2: keys["b"], 3: b"", 4: b"another"})
    grid.there.add(4)  # gives itself the name d, which is registered for no key
    sites = connect(grid, keys=folder)
    assert [reply.site for reply in sites.census()] == ["a", "b"]
    assert {site for site, _ in reasons(sites)} == {"site at node 3", "site at node 4"}


def test_the_audit_log_says_of_whom_a_reply_came_and_what_became_of_it(
    connect: Connect,
    registered: tuple[Path, dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, keys = registered
    monkeypatch.setenv(AUDIT, str(folder / "audit.jsonl"))
    owned = {1: keys["a"], 2: keys["b"], 3: keys["c"], 4: keys["a"]}
    grid = three(keys=owned, failing={2: ENCODE})
    grid.there.add(4)
    sites = connect(grid, keys=folder)
    sites.census()
    sites.ask(ENCODE, 1, {})
    sites.exclude("c", ENCODE, "is beyond the bound")
    lines = [line.fields for line in read_lines([folder / "audit.jsonl"])]
    told = [tuple(line[name] for name in ("kind", "round", "site", "outcome")) for line in lines]
    assert told == [
        (CENSUS, 0, "a", "counted"),
        (CENSUS, 0, "b", "counted"),
        (CENSUS, 0, "c", "counted"),
        (CENSUS, 0, "site at node 4", "name"),
        (ENCODE, 1, "a", "counted"),
        (ENCODE, 1, "b", "lost"),
        (ENCODE, 1, "c", "counted"),
        (ENCODE, 1, "c", "bound"),
    ]
    pub = (folder / "a.pub").read_bytes()
    assert lines[0]["key"] == fingerprint(pub) == fingerprint(keys["a"]) == lines[3]["key"]
    assert {line["settings_hash"] for line in lines} == {sites._hash}


def test_the_audit_log_says_when_a_run_started_and_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(AUDIT, str(tmp_path / "audit.jsonl"))
    with RunAudit("7", "hash").started("flwr-7"):
        pass
    with pytest.raises(ZeroDivisionError), RunAudit("8", "hash").started("flwr-8"):
        raise ZeroDivisionError("text that stays out of the log")
    lines = [line.fields for line in read_lines([tmp_path / "audit.jsonl"])]
    assert [(line["run"], line["outcome"]) for line in lines] == [
        ("7", "started"),
        ("7", "completed"),
        ("8", "started"),
        ("8", "failed"),
    ]
    assert "stays out" not in (tmp_path / "audit.jsonl").read_text()


def test_a_key_that_was_removed_takes_part_no_more(
    connect: Connect, registered: tuple[Path, dict[str, bytes]]
) -> None:
    folder, keys = registered
    grid = three(keys={1: keys["a"], 2: keys["b"], 3: keys["c"]})
    (folder / "c.pub").unlink()
    assert [reply.site for reply in connect(grid, keys=folder).census()] == ["a", "b"]


def test_a_site_that_fails_its_census_is_not_asked_without_a_pause(connect: Connect) -> None:
    grid = three(failing={2: CENSUS})
    sites = connect(grid)
    sites.census()
    for _ in range(50):
        sites.newcomers()
        grid.clock += 1
    assert grid.asked.count((CENSUS, 2)) <= 7


def test_a_site_that_answers_the_census_alone_is_waited_for_less_and_less(connect: Connect) -> None:
    grid = three(silent={2: ENCODE})
    sites = connect(grid)
    sites.census()
    for number in range(20):
        sites.ask(ENCODE, number, {})
        sites.newcomers()
        grid.clock += 30  # a round of the others
        sites.newcomers()
    waited = grid.clock - 20 * 30
    assert waited <= 4 * 100


def test_a_reply_counts_for_the_node_that_was_asked(connect: Connect) -> None:
    """The sender writes what a reply says of its sender."""
    grid = three(pretending={2: {"_src_node_id": 1, "_reply_to_message_id": "message 0"}})
    sites = connect(grid)
    sites.census()
    assert [reply.site for reply in sites.ask(ENCODE, 1, {})] == ["a", "b", "c"]


def test_a_reply_that_flower_cannot_read_sets_its_site_aside_alone(connect: Connect) -> None:
    grid = three(unreadable={2})
    sites = connect(grid)
    assert [reply.site for reply in sites.census()] == ["a", "c"]
    assert reasons(sites) == [("site at node 2", "sent a reply that Flower cannot read")]
