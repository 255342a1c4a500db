"""The folder in which real images are prepared, once for all of these tests."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """That of all workers: a store is locked while one of them builds it, and read thereafter."""
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "stores"
    folder.mkdir(exist_ok=True)
    return folder
