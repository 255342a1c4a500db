"""Dockerfile and manifests: what checkers say of them, and that they are the compose files'."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from modulefinder import ModuleFinder
from pathlib import Path
from string import Template
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deployment.admission import SIGNER, UNSIGNED, Admission

DOCKER = Path(__file__).parents[3] / "docker"
TEMPLATES = Path(__file__).parents[3] / "deployment" / "templates"
NAMES = ("server", "site")


def filled(template: str) -> str:
    """A file that `fed-mediffusion provision` writes."""
    values = {
        "federation": "chest",
        "site": "uni",
        "server": "federation.example.org:8000",
        "port": "8000",
    }
    return Template((TEMPLATES / template).read_text()).substitute(values)


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(filled(f"{name}.kubernetes.yaml")))


def pod(name: str) -> dict[str, Any]:
    (deployment,) = [one for one in manifests(name) if one["kind"] == "Deployment"]
    return dict(deployment["spec"]["template"]["spec"])


def service(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load(filled(f"{name}.compose.yaml"))["services"][name])


def test_hadolint_has_nothing_to_say_of_the_dockerfile() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def site_build() -> str:
    """The commands that make the environment of a site's image, each on one line."""
    text = (DOCKER / "Dockerfile").read_text().replace("\\\n", "")
    return text.partition(" AS site-build\n")[2].partition("\nFROM ")[0]


def test_a_site_needs_no_package_that_its_image_lacks() -> None:
    """No module of a site imports one, also inside a function, and no other package requires one.

    Names are those of the lock file, whose packages the image has.
    """
    (words,) = re.findall(r"pip uninstall --quiet --yes (.*?)&&", site_build())
    removed = set(words.split())
    lock = (DOCKER / "requirements.lock").read_text()
    kept = {*re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE), "torch"} - removed
    required = {
        canonicalize_name(need.name)
        for package in kept
        for need in map(Requirement, requires(package) or ())
        if need.marker is None or need.marker.evaluate({"extra": ""})
    }
    assert removed & required == set()
    finder = ModuleFinder(path=[str(DOCKER.parent)])
    for program in ("clientapp", "command_line", "health", "supernode"):
        finder.import_hook(f"deployment.{program}")
    finder.import_hook("client.client_app")
    imported = {name.partition(".")[0] for name in finder.badmodules}
    owners = packages_distributions()
    used = {canonicalize_name(owner) for name in imported for owner in owners.get(name, ())}
    assert {"torch", "flwr", "diffusers"} <= used
    assert removed & used == set()


def test_a_site_keeps_only_the_programs_that_it_starts(tmp_path: Path) -> None:
    """Those of the programs installed here that the Dockerfile deletes."""
    lines = site_build()
    (delete,) = re.findall(r"&& +(find /opt/venv/bin .*?-delete)", lines)
    installed = {path.name for path in Path(sys.executable).parent.iterdir()}
    assert {
        "flwr-agentapp",
        "flwr-serverapp",
        "fed-mediffusion",
        "fed-mediffusion-site",
    } <= installed
    for name in installed:
        (tmp_path / name).touch()
    subprocess.run(delete.replace("/opt/venv/bin", str(tmp_path)), shell=True, check=True)
    kept = {path.name for path in tmp_path.iterdir()}
    assert {name for name in kept if not name.startswith("python")} == {
        "fed-mediffusion-site",
        "flower-superexec",
    }
    assert "COPY --chmod=755 docker/flwr-clientapp /opt/venv/bin/" in lines


def sites(*files: str) -> dict[str, dict[str, str]]:
    """The environment of each site where compose files are laid over each other."""
    merged: dict[str, dict[str, str]] = {}
    for file in files:
        for name, service in yaml.safe_load((DOCKER / file).read_text())["services"].items():
            if name != "server":
                merged.setdefault(name, {}).update(service["environment"])
    return merged


def test_only_the_trial_on_one_machine_trusts_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = sites("compose.yaml")
    encrypted = sites("compose.yaml", "compose.tls.yaml")
    kit = {"kit": service("site")["environment"]}
    for expected, found in ((True, trial), (False, encrypted), (False, kit)):
        for environment in found.values():
            for variable in (SIGNER, UNSIGNED):
                monkeypatch.setenv(variable, environment.get(variable, ""))
            admission = Admission.of_environment()
            assert admission.trusts_server is expected
            assert (admission.signer is None) is expected


@pytest.mark.parametrize("name", NAMES)
def test_manifests_are_those_of_kubernetes(name: str) -> None:
    kinds = [manifest["kind"] for manifest in manifests(name)]
    assert {"Deployment", "NetworkPolicy", "PersistentVolumeClaim"} <= set(kinds)
    for manifest in manifests(name):
        for version in ("1.30", "1.34"):
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_the_kustomization_makes_what_the_manifests_name(name: str) -> None:
    made = yaml.safe_load(filled(f"{name}.kustomization.yaml"))
    (secret,) = made["secretGenerator"]
    (kit,) = [volume["secret"] for volume in pod(name)["volumes"] if "secret" in volume]
    assert secret["name"] == kit["secretName"]
    assert set(secret["files"]) == {item["key"] for item in kit["items"]}
    (image,) = made["images"]
    (container,) = pod(name)["containers"]
    assert container["image"].rpartition(":")[0] == image["name"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
@pytest.mark.parametrize("name", NAMES)
def test_kubectl_builds_the_kustomization(name: str, tmp_path: Path) -> None:
    for kind in ("kubernetes", "kustomization"):
        (tmp_path / f"{kind}.yaml").write_text(filled(f"{name}.{kind}.yaml"))
    files = yaml.safe_load(filled(f"{name}.kustomization.yaml"))["secretGenerator"][0]["files"]
    for file in files:
        (tmp_path / file).write_text(file)
    command = ["kubectl", "kustomize", str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {one["kind"]: one for one in yaml.safe_load_all(built.stdout)}
    assert found.keys() == {one["kind"] for one in manifests(name)} | {"Secret"}
    assert {one["metadata"]["namespace"] for one in found.values()} == {"fed-mediffusion"}
    spec = found["Deployment"]["spec"]["template"]["spec"]
    (kit,) = [volume["secret"] for volume in spec["volumes"] if "secret" in volume]
    assert kit["secretName"] == found["Secret"]["metadata"]["name"]
    assert set(found["Secret"]["data"]) == set(files)
    for one in found.values():
        kubernetes_validate.validate(one, "1.34", strict=True)


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
def test_a_pod_has_the_command_and_mounts_of_the_compose_file(name: str) -> None:
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
