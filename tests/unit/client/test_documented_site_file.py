"""The site file of the documentation accepts the private run of the documentation."""

from pathlib import Path

import pytest

from client.site_policy import _agreed
from configs.compose import compose
from mediffusion_core.privacy.accounting.plan import Plan
from mediffusion_core.settings.site_file import SiteFile
from unit.test_documentation import DOCS, blocks, commands


@pytest.mark.parametrize("units", [200, 9000])
def test_the_documented_run_is_accepted_with_enough_noise(units: int, tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(blocks(DOCS / "how-to" / "own-site.md", "toml")[0]["code"])
    (tmp_path / "site.toml").chmod(0o600)
    site = SiteFile.read(tmp_path / "site.toml")
    first = blocks(DOCS / "how-to" / "private-training.md", "sh")[0]
    settings = _agreed(compose("config", next(commands(first))[2:]), site)
    least = site.policy.min_noise_multiplier
    assert least is not None and Plan.of(settings, units).noise_multiplier >= least
