"""A simulation has one ledger: a patient has one budget, wherever another seed deals it."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers.caps import cap_for
from helpers.messages import sent
from PIL import Image

from configs.compose import compose
from mediffusion_core.common.errors import LedgerError, UserError
from mediffusion_core.data.partitioning.federated_dataset import open_federated_dataset
from mediffusion_core.messaging import protocol
from mediffusion_core.privacy.accounting.accountant import Charge, epsilon
from mediffusion_core.privacy.ledger.ledger import Ledger
from mediffusion_core.privacy.ledger.site_ledger import ALL_SITES, simulated_ledger
from mediffusion_core.settings.privacy import PrivacySettings
from simulations.engine.simulate import simulate

SEEDS = (1, 2, 3, 4)
COUNT = Charge(1.0, 8.0, 1)
DELTA = 1e-3


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """60 patients without a site of their own, and the settings of a private run on them."""
    folder = tmp_path / "images"
    folder.mkdir()
    rows = ["image,label,patient"]
    random = np.random.default_rng(0)
    for number in range(60):
        pixels = random.integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{'ab'[number % 2]},p{number}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return [
        *("data=folder", f"data.root='{folder}'", "data.table=labels.csv"),
        *("data.columns.patient=patient", "data.classes=[a,b]", "data.partition=uniform"),
        *("data.image_size=16", "data.channels=1", "model=tiny32", "federation.num_sites=3"),
        *(f"data.store='{tmp_path / 'store'}'", f"run.folder='{tmp_path / 'run'}'"),
        *("privacy=dp", "privacy.noise_multiplier=1.0", "privacy.target_epsilon=null"),
        *(f"privacy.target_delta={DELTA}", f"privacy.release_noise={COUNT.noise_multiplier}"),
    ]


def counted(overrides: Sequence[str], site: int) -> bool:
    known = compose("config", overrides).fingerprint()
    return protocol.FAILURE not in sent(protocol.CENSUS, overrides, known, site=site).content


def test_a_patient_keeps_its_charges_where_another_seed_deals_it_to_another_site(
    images: list[str], tmp_path: Path
) -> None:
    cap = cap_for([COUNT] * 2, DELTA)
    kept = [f"privacy.ledger='{tmp_path / 'ledgers'}'", f"privacy.max_epsilon={cap}"]
    dealt: Counter[str] = Counter()
    moved: dict[str, set[int]] = {}
    for seed in SEEDS:
        run = f"run.folder='{tmp_path / str(seed)}'"
        overrides = [*images, *kept, f"seed={seed}", run]
        dataset = open_federated_dataset(compose("config", overrides))
        for site in range(3):
            assert counted(overrides, site)
            for patient in set(dataset.groups(dataset.train(site).rows)):
                dealt[patient] += 1
                moved.setdefault(patient, set()).add(site)
    assert any(dealt[one] > 2 and len(sites) > 1 for one, sites in moved.items())
    [place] = [path.parent for path in (tmp_path / "ledgers").rglob("ledger.sqlite")]
    ledger = Ledger.open(place, begin=False)
    assert place.name == ALL_SITES and ledger.worst(DELTA) < cap
    for patient, times in dealt.items():
        assert ledger.spent([patient], DELTA) == epsilon([COUNT] * min(times, 2), DELTA)
    runs = [entry.run for entry in ledger.entries()]
    assert runs == [f"{seed}/site-{site}" for seed in SEEDS for site in range(3)]


def former_ledger(folder: Path) -> None:
    Ledger.open(folder).charge(["p1"], COUNT, "joint", "run", 1)


def tip_alone(folder: Path) -> None:
    folder.mkdir()
    (folder / "site-0.head").write_text(f"1:{'0' * 64}\n")


FORMER: dict[str, Callable[[Path], None]] = {
    "in the run": lambda folder: former_ledger(folder / "run" / "sites" / "site-0" / "ledger"),
    "shared": lambda folder: former_ledger(folder / "ledgers" / "site-0"),
    "only a tip": lambda folder: tip_alone(folder / "ledgers"),
}


@pytest.mark.parametrize("name", FORMER)
def test_ledgers_of_single_sites_are_refused_and_not_begun_anew(
    images: list[str], tmp_path: Path, name: str
) -> None:
    (tmp_path / "run").mkdir()
    FORMER[name](tmp_path)
    overrides = [*images, f"privacy.ledger='{tmp_path / 'ledgers'}'"]
    if name == "in the run":
        overrides = images
    assert not counted(overrides, 1)
    log = (tmp_path / "run" / "sites" / "site-1" / "site.log").read_text()
    assert "ledger-by-site" in log
    with pytest.raises(UserError, match="which an earlier version kept") as caught:
        simulate("config", overrides, None)
    assert "\n" not in str(caught.value)


def test_ledger_and_tip_have_their_places(tmp_path: Path) -> None:
    run, shared, tips = (tmp_path / name for name in ("run", "ledgers", "tips"))
    own = simulated_ledger(run, PrivacySettings())
    assert (own.folder, own.tip) == (run / "ledger", None)
    privacy = PrivacySettings(ledger=shared, ledger_tips=tips)
    for _ in range(2):
        places = simulated_ledger(run, privacy)
        assert (places.folder, places.tip) == (shared / ALL_SITES, tips / ALL_SITES)
        places.open().charge(["p1"], COUNT, "joint", "run", 1)
    (tips / "site-0").write_text(f"1:{'0' * 64}\n")
    with pytest.raises(LedgerError, match="ledger-by-site"):
        simulated_ledger(run, privacy)
