"""Replies on the disk are read as they were written."""

from pathlib import Path

import pytest
import torch

import server.spool
from server.spool import Spool

STATES = {
    f"site/{number}": {
        "matrix": torch.randn(3, 5, generator=torch.Generator().manual_seed(number)),
        "scalar": torch.tensor(float(number)),
        "counts": torch.arange(4) * 2**40 * number,
        "half": torch.full((2,), number, dtype=torch.bfloat16),
        "none": torch.zeros(0),
    }
    for number in range(3)
}


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    found = Spool(tmp_path / "replies")
    for site, state in STATES.items():
        found.write(site, "unet", dict(reversed(state.items())) if site != "site/0" else state)
    return found


def test_a_component_is_read_as_it_was_written(spool: Spool) -> None:
    for site, state in STATES.items():
        read = spool.read(site, "unet")
        assert read.keys() == state.keys()
        for name, value in state.items():
            assert read[name].dtype == value.dtype and torch.equal(read[name], value)


@pytest.mark.parametrize("size", [1, 24, 100, 1 << 24])
def test_parts_are_the_whole(spool: Spool, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(server.spool, "PART_BYTES", size)
    sites = ["site/2", "site/0"]
    made = {site: {n: torch.zeros_like(v) for n, v in STATES[site].items()} for site in sites}
    for name, part, stack in spool.parts("unet", sites):
        assert stack.nbytes <= max(size, len(sites) * stack.itemsize)
        for site, row in zip(sites, stack, strict=True):
            made[site][name].view(-1)[part] = row
    for site in sites:
        assert all(torch.equal(made[site][name], value) for name, value in STATES[site].items())


def test_nothing_is_left(spool: Spool, tmp_path: Path) -> None:
    """Neither after a round, nor of one that was killed."""
    Spool(tmp_path / "replies")
    assert list((tmp_path / "replies").iterdir()) == []
    spool.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_too_short_is_an_error(spool: Spool, tmp_path: Path) -> None:
    for path in (tmp_path / "replies").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OSError, match="shorter"):
        spool.read("site/1", "unet")
