"""`--help` answers at once: commands import their libraries when they run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
HEAVY = (
    "torch", "numpy", "scipy", "matplotlib", "PIL", "diffusers", "monai", "captum", "opacus",
    "flwr", "ray", "hydra", "omegaconf", "optuna", "pydantic", "yaml",
)  # fmt: skip
CODE = f"""
import sys
from simulations.cli.main import main
try:
    main()
finally:
    print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "command", ["", "simulate", "sweep", "watch", "explain", "study guidance", "data check"]
)
def test_help_imports_no_heavy_library(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, *command.split(), "--help"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout
    assert done.stderr == "[]\n"
