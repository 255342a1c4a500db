"""Images are built once; without an engine, or without being asked for, all is skipped."""

import os

import pytest
from docker_engine import build_images, has_engine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    asked = os.environ.get("FED_MEDIFFUSION_DOCKER") == "1"
    reason = "no Docker engine answers" if asked else "made by make docker-test"
    if asked and has_engine():
        return
    for item in items:
        if item.get_closest_marker("docker"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def images() -> None:
    build_images()
