"""Cases that Atheris makes: libFuzzer's mutations, guided by the coverage of Python code."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fuzz.harness import Guard, Target

INSTRUMENTED = ["mediffusion_core", "server", "PIL", "pydicom"]
LARGEST = 16_384
"""Bytes of a case."""


@contextlib.contextmanager
def instrumented() -> Iterator[None]:
    """Modules that are imported within count the branches that they take."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        yield


def explore(target: Target, guard: Guard, cases: int, minutes: float | None, seed: int) -> None:
    """Runs that many cases from the target's seeds, and ends this process."""
    import atheris

    with tempfile.TemporaryDirectory(prefix="fuzz-corpus-") as folder:
        for number, content in enumerate(target.seeds):
            Path(folder, f"seed-{number}").write_bytes(content)
        arguments = [
            "fuzz",
            f"-atheris_runs={cases}",
            f"-seed={seed % 2**32 or 1}",
            f"-max_len={LARGEST}",
            f"-max_total_time={round(60 * (minutes or 0))}",  # 0: without end
            f"-artifact_prefix={folder}/",  # the harness stores the case itself
            "-rss_limit_mb=0",
            "-print_final_stats=0",
            "-verbosity=0",
            folder,
        ]
        atheris.Setup(arguments, lambda content: guard(target.of_bytes(content)))
        atheris.Fuzz()
