"""The command `fed-mediffusion-site`, as a site's image has it: without simulations."""

import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from deployment.command_line import app
from deployment.site_cli import site

ROOT = Path(__file__).parents[3]


def test_it_has_the_commands_of_a_site() -> None:
    done = CliRunner().invoke(app, ["--help"])
    assert done.exit_code == 0
    for command in ("check", "messages", "ledger", "preflight"):
        assert f" {command} " in done.output
    assert CliRunner().invoke(app, ["ledger", "verify", "--help"]).exit_code == 0


def test_the_same_commands_stand_below_fed_mediffusion_site() -> None:
    names = {command.callback for command in site.registered_commands}
    assert names <= {command.callback for command in app.registered_commands}


def test_it_works_where_simulations_are_missing() -> None:
    code = (
        "import sys\n"
        "sys.modules['simulations'] = None\n"
        "sys.argv = ['fed-mediffusion-site', 'check', '/nowhere/site.toml']\n"
        "from deployment.command_line import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "fed-mediffusion: site file /nowhere/site.toml: No such file or directory\n"
    )
