"""AUC of a run with one hostile site of four, for 24 kinds of it: one JSON line a run.

python tests/benchmarks/hostile_sites.py [KIND ...]

Four sites of phantoms in this process, under `experiment=phantom_robust` with a smaller network and
fewer patients. The AUC of a well-formed kind is compared with that of the run without the hostile
site. A malformed kind runs one round: its reply must be refused and the run must complete. A kind
that ends with `, averaged` runs without the robust settings. On one core a well-formed kind takes
about two minutes, a malformed one half a minute, and all of them 40 minutes.
"""

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import ONE_ROUND, TINY
from helpers.attacks import ABSENT, Always, Attack, run_with, well_formed
from helpers.malformed import MALFORMED

from mediffusion_core.run_io.provenance import current_commit
from server.messages import SiteError

REFUSED = (
    "NaN",
    "infinity",
    "weights x 1000",
    "autoencoder x 1000",
    "other shape",
    "int64",
    "float64",
    "missing name",
    "negative second moment",
    "images 1e15",
    "stale",
    "count 2^62",
    "twice as many patients",
)
"""Of the malformed kinds in `helpers.malformed`."""
AVERAGED = ", averaged"
WITHOUT, HONEST = "without the site", "honest"
LEARNING = (
    "data.phantom.patients_per_site=[400,400,400,400]",
    "data.labelled_fraction=1",
    "data.labelled_fraction_by_site.site-2=1",
    "data.augmentation=none",
    "model.autoencoder.patch_size=4",
    "model.autoencoder.channels=[64]",
    "model.autoencoder.linear_start=true",
    "model.head.hidden=128",
    "training.autoencoder.learning_rate=3e-4",
    "training.joint.local_epochs=2",
    "training.joint.batch_size=8",
    "training.joint.labelled_batch_size=32",
    "training.joint.learning_rate=2e-3",
    "training.joint.head_learning_rate=3e-3",
    "training.joint.classification_weight=1",
    "training.joint.noised_fraction=0",
    "federation.autoencoder_rounds=1",
    "federation.num_rounds=8",
    "evaluation.every=2",
)
SHORT = ("data.phantom.patients_per_site=[60,60,60,60]", *ONE_ROUND)


def attacks() -> dict[str, Attack]:
    """By kind, and the two honest runs."""
    malformed = {name: Always({kind: tamper}) for name, kind, tamper in MALFORMED}
    return {
        WITHOUT: ABSENT,
        HONEST: Attack(),
        **{name: malformed[name] for name in REFUSED},
        **well_formed(),
    }


def lines(kinds: list[str]) -> Iterator[dict[str, Any]]:
    """One for each kind."""
    for kind in kinds:
        name = kind.removesuffix(AVERAGED)
        chosen = "experiment=phantom_robust" if name == kind else "federation.num_sites=4"
        size = SHORT if name in REFUSED else LEARNING
        with tempfile.TemporaryDirectory() as folder:
            try:
                _, summary = run_with((chosen, *TINY, *size), Path(folder), attacks()[name])
            except SiteError as error:
                ended = {"kind": kind, "status": "failed", "reason": str(error)}
                yield {**ended, "commit": current_commit()}
                continue
        yield {
            "kind": kind,
            "status": summary["status"],
            "auc": round(summary["auc_macro"], 4),
            "auc_pooled": round(summary["auc_pooled"], 4),
            "set_aside": Counter(f"{one['site']} {one['kind']}" for one in summary["set_aside"]),
            "commit": current_commit(),
        }


if __name__ == "__main__":
    torch.set_num_threads(1)
    every = [*attacks(), f"sign-flipped{AVERAGED}", f"x-1000 within the bounds{AVERAGED}"]
    for line in lines(sys.argv[1:] or every):
        print(json.dumps(line), flush=True)
