"""All benchmarks, one after the other: their lines as they come, then one table.

python tests/benchmarks/all.py [FOLDER_OF_REAL_DATA]
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPTS = ("bench_run", "bench_training", "bench_privacy", "bench_server")
COMMON = ("figure", "value", "unit", "cores", "commit")
"""Entries of a line that are not settings of its figure."""


def lines_of(script: str, *arguments: str) -> list[dict[str, Any]]:
    """Runs a benchmark, prints its lines as they come, and returns them."""
    command = [sys.executable, str(Path(__file__).with_name(f"{script}.py")), *arguments]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="", flush=True)
            lines.append(json.loads(line))
    if running.returncode:
        sys.exit(f"{script} failed")
    return lines


def table(lines: list[dict[str, Any]]) -> str:
    """The figures as a table in Markdown; the machine and the commit are those of all."""
    rows = ["| figure | value | unit | of |", "| --- | ---: | --- | --- |"]
    for line in lines:
        settings = ", ".join(f"{name} {line[name]}" for name in line if name not in COMMON)
        rows.append(f"| {line['figure']} | {line['value']:g} | {line['unit']} | {settings} |")
    machine = f"{lines[0]['cores']} cores, commit {lines[0]['commit']}"
    return "\n".join([machine, "", *rows])


if __name__ == "__main__":
    found = lines_of("bench_data", *sys.argv[1:])
    for each in SCRIPTS:
        found += lines_of(each)
    print(f"\n{table(found)}")
