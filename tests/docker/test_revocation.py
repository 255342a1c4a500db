"""A site is shut out; last of all, since a key that is revoked is never let in again."""

import pytest
from docker_engine import SITES, Federation

from deployment.provision import Kits

pytestmark = [pytest.mark.docker, pytest.mark.slow]


def test_a_revoked_site_is_cut_off(federation: Federation, kits: Kits) -> None:
    list(kits.revoke("site-2"))
    federation.wait_for_log("server", "sites: revoked site-2", 60)
    federation.compose("restart", "--timeout", "5", "site-2")
    federation.wait_for_log("site-2", r"\[code: \d+\]", 180)
    assert federation.online() == len(SITES) - 1
