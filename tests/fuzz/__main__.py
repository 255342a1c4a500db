"""`python -m fuzz [TARGET ...]`: fuzzes the targets, one after the other.

Hypothesis makes the cases, or Atheris where `--guided` asks for it. The same seed makes the same
cases with Hypothesis. A failing case is stored, and `--replay FILE` runs it again.
"""

import argparse
import contextlib
import importlib
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fuzz import TARGETS, generated
from fuzz.harness import Board, Guard, Target, in_child, store, stored

STALLED = 60.0
"""Seconds of one case after which its process is killed; a decoder in C hears no signal."""


def main() -> int:
    options = _options()
    names = [stored(options.replay)[0]] if options.replay else options.targets or list(TARGETS)
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    with contextlib.ExitStack() as stack:
        if options.guided:
            from fuzz import guided

            with guided.instrumented():
                modules = [importlib.import_module(f"fuzz.{name}") for name in names]
        else:
            modules = [importlib.import_module(f"fuzz.{name}") for name in names]
        failed = False
        for name, module in zip(names, modules, strict=True):
            target = module.target(stack.enter_context(_folder()))
            failed |= not _fuzz(name, target, seed, options)
    return int(failed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], help="default: all")
    parser.add_argument("--cases", type=int, default=100_000, help="of each target")
    parser.add_argument("--minutes", type=float, help="at most, for each target")
    parser.add_argument("--seed", type=int, help="default: drawn, and printed")
    parser.add_argument("--guided", action="store_true", help="by coverage, with Atheris")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run a stored case")
    parser.add_argument("--failures", type=Path, default=Path("runs/fuzz"), help="their folder")
    return parser.parse_args()


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A root, beside a file that no case may read."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        (Path(place) / "outside.png").write_bytes(b"outside")
        root = Path(place, "root")
        root.mkdir()
        yield root


def _fuzz(name: str, target: Target, seed: int, options: argparse.Namespace) -> bool:
    board = Board()
    began = time.monotonic()
    cases = math.ceil(options.cases * target.share)

    def work() -> None:
        guard = Guard(target, board)
        if options.replay:
            guard(stored(options.replay)[1])
        elif options.guided:
            from fuzz import guided

            guided.explore(target, guard, cases, options.minutes, seed)
        else:
            generated.explore(target, guard, board, cases, options.minutes, seed)

    if options.guided and not target.seeds and not options.replay:
        print(f"{name}: is not fuzzed by coverage")
        return True
    wrong = in_child(board, work, STALLED)
    count, seconds = board.accepted + board.refused, time.monotonic() - began
    print(
        f"{name}: {count} cases, {board.accepted} accepted, {board.refused} refused, "
        f"{count / seconds:.0f} a second",
        flush=True,
    )
    if wrong:
        path = options.replay or store(options.failures, name, board.case)
        print(f'{name}: {wrong}; make fuzz ARGS="--replay {path}" repeats it', flush=True)
    return wrong is None


if __name__ == "__main__":
    sys.exit(main())
