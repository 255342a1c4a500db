"""A ledger whose units have other names than the data's is refused, never begun anew unnoticed."""

from pathlib import Path

import pytest

from mediffusion_core.common.errors import LedgerError
from mediffusion_core.data.dataset import UnitNames
from mediffusion_core.privacy.accounting.accountant import Charge
from mediffusion_core.privacy.ledger.ledger import Ledger
from mediffusion_core.privacy.ledger.salt import ledger_salt
from mediffusion_core.privacy.ledger.site_ledger import ledger_places, site_secret
from mediffusion_core.privacy.ledger.unit_names import read_names, require_names
from mediffusion_core.settings.site_file import SiteFile

PATIENTS = UnitNames("patient")
PSEUDONYMS = UnitNames("patient", "key")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(tmp_path / "ledger")


def spend(ledger: Ledger) -> None:
    ledger.charge(["a"], Charge(1.0, 2.0, 1), "joint", "run", 1)


def test_names_are_noted_and_found_again(ledger: Ledger) -> None:
    require_names(ledger, PSEUDONYMS)
    spend(ledger)
    require_names(Ledger.open(ledger.folder), PSEUDONYMS)
    assert read_names(ledger.folder) == PSEUDONYMS


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (UnitNames("lesion", "key"), "named by patient, those of the data by lesion"),
        (UnitNames("patient", "another"), "another key"),
        (PATIENTS, "another key"),
    ],
)
def test_other_names_are_refused(ledger: Ledger, names: UnitNames, said: str) -> None:
    require_names(ledger, PSEUDONYMS)
    with pytest.raises(LedgerError, match=said) as caught:
        require_names(ledger, names)
    assert caught.value.code == "names-other"


def test_a_ledger_of_an_earlier_version_is_found_again_or_refused(ledger: Ledger) -> None:
    """Names of tables did not change, pseudonyms of DICOM depended on the folder."""
    spend(ledger)
    with pytest.raises(LedgerError, match="an earlier version wrote it") as caught:
        require_names(ledger, PSEUDONYMS)
    assert caught.value.code == "names-other"
    require_names(ledger, PATIENTS)
    assert read_names(ledger.folder) == PATIENTS


def test_a_changed_note_is_refused(ledger: Ledger) -> None:
    require_names(ledger, PATIENTS)
    note = ledger.folder / "names.json"
    note.write_text(note.read_text().replace("patient", "image"))
    with pytest.raises(LedgerError) as caught:
        require_names(ledger, UnitNames("image"))
    assert caught.value.code == "names-edited"


def test_a_site_has_the_secret_of_its_ledger(tmp_path: Path) -> None:
    site = SiteFile.model_validate(
        {
            "name": "uni",
            "data": {"source": "dicom", "root": str(tmp_path)},
            "ledger": {"folder": str(tmp_path / "uni"), "tip": str(tmp_path / "tips" / "uni")},
        }
    )
    secret = site_secret(site)
    (tmp_path / "tips").mkdir()
    places = ledger_places(site)
    places.open()
    folder = places.folder
    assert site_secret(site) == secret == ledger_salt(folder, draw=False)
    (salt,) = (one for one in folder.iterdir() if one.read_bytes() == secret)
    salt.unlink()
    with pytest.raises(LedgerError) as caught:  # a new one would name all patients anew
        site_secret(site)
    assert caught.value.code == "salt-removed"
