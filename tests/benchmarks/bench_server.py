"""The server's memory in a round of many sites beside one of few: one JSON line a figure.

python tests/benchmarks/bench_server.py

A round of the joint stage: the server checks and aggregates replies of about 40 MB, which are made
here. Each side is a process of its own. Memory is the peak over the round, beyond what the process
had before.
"""

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from figures import report
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from peak_memory import grown_by
from torch import Tensor

from configs.compose import compose
from mediffusion_core.messaging import protocol
from mediffusion_core.messaging.moment_names import MEAN, SQUARE, STEPS
from mediffusion_core.messaging.protocol import HEAD, JOINT, TRAIN_JOINT, UNET
from mediffusion_core.settings import Settings
from mediffusion_core.training.schedule import local_steps
from server.messages import Reply, array_records, size_of
from server.reply_contract import ReplyContract
from server.sites import Receive, Records, Sites
from server.state import fresh_state
from server.strategy.strategy import Strategy

StateDict = Mapping[str, Tensor]

CLASSES, IMAGES = 5, 1000
FEW, MANY = 3, 40
MODEL = ("model=tiny", "model.unet.channels=[32,64,128,128]")
ROBUST = ("federation.num_malicious_sites=1", "federation.norm_bound=10")
SIDES = {
    "mean": (),
    "median": (*ROBUST, *(f"federation.server.{one}.aggregation=median" for one in (UNET, HEAD))),
    "krum": (*ROBUST, *(f"federation.server.{one}.aggregation=krum" for one in (UNET, HEAD))),
}
"""By rule of aggregation, its settings."""


class MadeSites(Sites):
    """Sites that answer with weights near those that they are sent, without training."""

    def __init__(self, number: int, settings: Settings, sent: Mapping[str, StateDict]) -> None:
        super().__init__(settings, ReplyContract(settings, CLASSES))
        self._number, self._settings, self._sent = number, settings, sent
        joint = settings.training.joint
        self._steps = local_steps(IMAGES, joint.local_epochs, joint.batch_size, 1)
        self.bytes_sent = 0

    def newcomers(self) -> list[Reply]:
        return []

    def _wait(self) -> list[int]:
        return list(range(self._number))

    def _may_have(self, node: int, name: str) -> bool:
        return True

    def _exchange(
        self, kind: str, round_number: int, records: Records, receive: Receive, needed: int
    ) -> None:
        for node in records:
            content = self._trained(node) if kind == TRAIN_JOINT else self._counted(node)
            instructions = {"round": round_number, "settings_hash": self._settings.fingerprint()}
            answered = protocol.answered(kind, instructions)
            content[protocol.ANSWERS_TO] = ConfigRecord({**answered})
            assert receive(node, content), self.take_set_aside()

    def _counted(self, node: int) -> RecordDict:
        counts = dict.fromkeys(("images", "train", "labelled", "patients"), IMAGES)
        counts |= {"validation": 0, "test": 0}
        per_class = {"per_class": [IMAGES // CLASSES] * CLASSES}
        return RecordDict(
            {
                protocol.IDENTITY: ConfigRecord({"site": f"site-{node:03d}"}),
                protocol.METRICS: MetricRecord({**counts, **per_class}),
            }
        )

    def _trained(self, node: int) -> RecordDict:
        generator = torch.Generator().manual_seed(node)
        records = {}
        for component in JOINT:
            state = {
                name: _trained(name, value, self._steps, generator)
                for name, value in self._sent[component].items()
            }
            records |= array_records({component: state})
        self.bytes_sent = size_of(records)
        seen = {"images_seen": float(IMAGES // 2), "labelled_seen": float(IMAGES)}
        metrics = MetricRecord({**seen, "steps": float(self._steps)})
        return RecordDict({**records, protocol.METRICS: metrics})


def _trained(name: str, value: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    if name == STEPS:
        return value + steps
    noise = torch.randn(value.shape, generator=generator)
    if name.endswith(SQUARE):
        return noise.square_().mul_(1e-6).add_(1e-6)
    return value + noise.mul_(1e-3 if name.endswith(MEAN) else 1e-2)


def side(rule: str, number: int, folder: Path) -> None:
    """Prints the MB of a round of so many sites, and those of a reply."""
    sites_there = f"data.phantom.patients_per_site={[IMAGES] * MANY}".replace(" ", "")
    planned = (f"federation.num_sites={MANY}", "federation.min_sites=1", sites_there)
    overrides = [*MODEL, *planned, *SIDES[rule]]
    settings = compose("config", overrides)
    state = fresh_state(settings, CLASSES)
    strategy, sites = Strategy(settings, folder), MadeSites(number, settings, state.weights)
    sites.census()

    def run() -> None:
        gathered = strategy.gather("joint", 1, JOINT, state)
        sites.ask(TRAIN_JOINT, 1, state.shared(JOINT), take=gathered.take)
        strategy.step(gathered, state)

    print(grown_by(run), sites.bytes_sent / 1e6)


def bench(rule: str) -> None:
    peaks = {}
    for number in (FEW, MANY):
        with tempfile.TemporaryDirectory() as folder:
            call = [sys.executable, __file__, "--side", rule, str(number), folder]
            done = subprocess.run(call, check=True, capture_output=True, text=True)
        peaks[number], reply = map(float, done.stdout.split())
        sizes = {"rule": rule, "sites": number, "reply_mb": round(reply, 1)}
        report("server's memory in a round", peaks[number], "MB", **sizes)
    report(f"memory of {MANY} sites / of {FEW}", peaks[MANY] / peaks[FEW], "ratio", rule=rule)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--side"]:
        side(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
    else:
        for rule in SIDES:
            bench(rule)
