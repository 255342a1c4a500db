"""`site ledger show | verify | export`: what a site reads of its ledger, and what it never sees."""

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mediffusion_core.privacy.accounting.accountant import Charge, epsilon
from mediffusion_core.privacy.ledger.ledger import Ledger
from mediffusion_core.privacy.ledger.site_ledger import open_site_ledger
from mediffusion_core.settings.site_file import SiteFile
from simulations.cli.main import app

SITE = """
name = "st-anna"
[data]
source = "folder"
root = "/data"
store = "{folder}/store"
[policy]
max_epsilon = 8.0
target_delta = 1e-6
[ledger]
folder = "{folder}/ledger"
"""
COST = Charge(1.0, 30.0, 4)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(SITE.format(folder=tmp_path))
    path.chmod(0o600)
    ledger = open_site_ledger(SiteFile.read(path))
    for number, run in enumerate(("first", "first", "second"), start=1):
        ledger.charge(["Anna", "Otto"], COST, "joint", run, number)
    return path


def ask(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["site", "ledger", *map(str, arguments)])


def test_show_has_a_line_for_each_run_and_stage_and_the_worst_unit(site: Path) -> None:
    result = ask("show", site)
    assert result.exit_code == 0, result.output
    whole, first = epsilon([COST] * 3, 1e-6), epsilon([COST] * 2, 1e-6)
    assert f"worst unit: ε = {whole:.4g} at δ = 1e-06; the site allows 8" in result.output
    lines = [line for line in result.output.splitlines() if "joint" in line]
    assert ["first" in line for line in lines] == [True, False]
    assert f"{first:.3g}" in lines[0] and " 8 " in lines[0]
    other = ask("show", site, "--delta", "1e-4").output
    assert f"ε = {epsilon([COST] * 3, 1e-4):.4g} at δ = 0.0001" in other
    assert "allows" not in other  # the site's cap is at another δ
    assert "announced" not in result.output


def test_show_names_runs_that_keep_their_patients_to_themselves(site: Path) -> None:
    open_site_ledger(SiteFile.read(site)).announce([Charge(1.0, 4.0, 50)], "shared")
    assert "announced with shared noise: shared; patients whose first" in ask("show", site).output


def test_the_tip_stands_by_the_store_and_the_cap_is_the_sites(site: Path) -> None:
    ledger = open_site_ledger(SiteFile.read(site))
    assert (site.parent / "store" / "ledger-heads" / "st-anna").is_file()
    assert ledger.cap is not None
    assert (ledger.cap.max_epsilon, ledger.cap.delta) == (8.0, 1e-6)


def test_a_ledgers_folder_will_do_in_place_of_a_site_file(tmp_path: Path) -> None:
    Ledger.open(tmp_path / "ledger").charge(["Anna"], COST, "joint", "run", 1)
    result = ask("show", tmp_path / "ledger")
    assert f"ε = {epsilon([COST], 1e-5):.4g} at δ = 1e-05" in result.output


def test_verify_is_one_line_and_an_exit_status(site: Path) -> None:
    result = ask("verify", site)
    assert result.exit_code == 0
    tip = result.output.strip().split()[-1]
    assert result.output == f"sound: 3 entries, tip {tip}\n"
    assert ask("verify", site, "--against", tip).exit_code == 0
    later = ask("verify", site, "--against", f"4:{'0' * 64}")
    assert later.exit_code == 1 and "[ledger-behind]" in later.stderr
    (site.parent / "ledger" / "ledger.sqlite").unlink()
    gone = ask("verify", site)
    assert gone.exit_code == 1 and "[ledger-removed]" in gone.stderr
    assert len(gone.stderr.splitlines()) == 1 and not gone.stdout
    assert ask("show", site).exit_code == ask("export", site).exit_code == 1


def test_a_lost_second_place_is_restored_against_the_servers_tip(site: Path) -> None:
    tip = ask("verify", site).output.split()[-1]
    (site.parent / "store" / "ledger-heads" / "st-anna").unlink()
    assert ask("verify", site).exit_code == 1
    assert ask("verify", site, "--against", tip, "--restore-tip").exit_code == 0
    assert ask("verify", site).exit_code == 0


@pytest.mark.parametrize("ending", ["json", "csv"])
def test_an_export_has_every_entry_and_no_patient(site: Path, ending: str) -> None:
    output = site.parent / f"ledger.{ending}"
    result = ask("export", site, "--output", output)
    assert result.exit_code == 0 and result.output == f"{output}\n"
    text = output.read_text()
    if ending == "json":
        content = json.loads(text)
        rows = content["entries"]
        assert content["worst_epsilon"] == epsilon([COST] * 3, 1e-6)
        assert content["tip"] == ask("verify", site).output.split()[-1]
    else:
        rows = list(csv.DictReader(text.splitlines()))
    assert [str(row["round"]) for row in rows] == ["1", "2", "3"]
    assert {float(row["noise_multiplier"]) for row in rows} == {30.0}
    assert {int(row["units"]) for row in rows} == {2}
    assert "Anna" not in text and "Otto" not in text
    known = Ledger.open(site.parent / "ledger", tip=site.parent / "store/ledger-heads/st-anna")
    with known._content() as (_, _, held):
        assert not any(unit.hex() in text for unit in held.numbers)


def test_a_charge_without_noise_has_infinite_epsilon_in_valid_json(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger")
    ledger.charge(["Anna"], Charge(1.0, 0.0, 1), "joint", "run", 1)
    output = tmp_path / "ledger.json"
    assert ask("export", tmp_path / "ledger", "--output", output).exit_code == 0
    assert json.loads(output.read_text())["worst_epsilon"] == "infinite"
    assert "ε = inf" in ask("show", tmp_path / "ledger").output


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["verify", "{site}", "--against", "3"], "COUNT:DIGEST"),
        (["verify", "{site}", "--restore-tip"], "--restore-tip needs --against"),
        (["export", "{site}", "--output", "ledger.txt"], "must end in .json or .csv"),
    ],
)
def test_a_mistake_is_one_line(site: Path, arguments: list[str], reason: str) -> None:
    result = ask(*(argument.format(site=site) for argument in arguments))
    assert reason in str(result.exception)
