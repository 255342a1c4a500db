"""Dockerfile and manifests: what checkers say of them, and that they are the compose files'."""

import subprocess
import sys
from pathlib import Path
from string import Template
from typing import Any

import kubernetes_validate
import pytest
import yaml

DOCKER = Path(__file__).parents[3] / "docker"
TEMPLATES = Path(__file__).parents[3] / "deployment" / "templates"
NAMES = ("server", "site")


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DOCKER / "kubernetes" / f"{name}.yaml").read_text()))


def pod(name: str) -> dict[str, Any]:
    (deployment,) = [one for one in manifests(name) if one["kind"] == "Deployment"]
    return dict(deployment["spec"]["template"]["spec"])


def service(name: str) -> dict[str, Any]:
    """Of the compose file that `fed-mediffusion provision` writes."""
    values = {"federation": "chest", "server": "federation.example.org:8000", "port": "8000"}
    text = Template((TEMPLATES / f"{name}.compose.yaml").read_text()).substitute(values)
    return dict(yaml.safe_load(text)["services"][name])


def test_hadolint_has_nothing_to_say_of_the_dockerfile() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_manifests_are_those_of_kubernetes(name: str) -> None:
    kinds = [manifest["kind"] for manifest in manifests(name)]
    assert {"Deployment", "NetworkPolicy", "PersistentVolumeClaim"} <= set(kinds)
    for manifest in manifests(name):
        for version in ("1.30", "1.34"):
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_pod_is_confined_as_its_container_is(name: str) -> None:
    spec = pod(name)
    assert spec["automountServiceAccountToken"] is False
    everyone = spec["securityContext"]
    assert everyone["runAsNonRoot"] is True and everyone["runAsUser"] == 10001
    assert everyone["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("name", NAMES)
def test_a_pod_runs_and_mounts_what_the_compose_file_does(name: str) -> None:
    spec, composed = pod(name), service(name)
    (container,) = spec["containers"]
    assert container["args"] == composed["command"]
    assert {one["name"]: one["value"] for one in container["env"]} == composed["environment"]
    (kit,) = [volume["secret"] for volume in spec["volumes"] if "secret" in volume]
    assert {item["path"] for item in kit["items"]} == set(composed["secrets"])
    mounted = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    volumes = [volume.split(":") for volume in composed["volumes"]]
    paths = {parts[-2] if parts[-1] == "ro" else parts[-1]: parts[-1] == "ro" for parts in volumes}
    assert mounted.keys() == {*paths, "/tmp", "/run/secrets"}
    for path, read_only in paths.items():
        assert mounted[path].get("readOnly", False) is read_only
    images = next(v for v in spec["volumes"] if v["name"] == mounted["/data"]["name"])
    assert images["persistentVolumeClaim"]["readOnly"] is True
