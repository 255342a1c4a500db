"""A site starts no bundle that its coordinator has not signed."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.supernode.runtime import run_clientapp as runtime

from deployment.clientapp import guard
from deployment.signing import BundleRefusedError, check, new_signer, sign
from mediffusion_core.common.errors import UserError

BUNDLE = b"the app"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    private, public = new_signer()
    (tmp_path / "signer.key").write_bytes(private)
    (tmp_path / "signer.pem").write_bytes(public)
    return tmp_path / "signer.key", tmp_path / "signer.pem"


def test_a_signed_bundle_passes(keys: tuple[Path, Path]) -> None:
    check(BUNDLE, sign(BUNDLE, keys[0]), keys[1])


@pytest.mark.parametrize("signature", ["", "no base64!", "aGVsbG8=", "A" * 88])
def test_an_unsigned_bundle_is_refused(keys: tuple[Path, Path], signature: str) -> None:
    with pytest.raises(BundleRefusedError):
        check(BUNDLE, signature, keys[1])


def test_another_bundle_or_another_signer_is_refused(
    keys: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(BundleRefusedError, match="does not fit"):
        check(BUNDLE + b" ", sign(BUNDLE, keys[0]), keys[1])
    (tmp_path / "foreign.key").write_bytes(new_signer()[0])
    with pytest.raises(BundleRefusedError, match="does not fit"):
        check(BUNDLE, sign(BUNDLE, tmp_path / "foreign.key"), keys[1])


def test_a_public_key_signs_nothing(keys: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="holds no signing key"):
        sign(BUNDLE, keys[1])


def test_nothing_of_a_refused_bundle_is_installed(
    keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of Flower's own program: what came, then its installation."""
    installed: list[bytes] = []
    signature = ""

    def pull(client: Any) -> Any:
        return None, SimpleNamespace(run_config={"signature": signature}), None, None

    monkeypatch.setattr(runtime, "pull_task_input", pull)
    monkeypatch.setattr(runtime, "install_from_fab", lambda bundle, **_: installed.append(bundle))
    guard(keys[1])

    runtime.pull_task_input(None)  # type: ignore[arg-type]
    with pytest.raises(BundleRefusedError, match="not signed"):
        runtime.install_from_fab(BUNDLE, skip_prompt=True)
    assert installed == []

    signature = sign(BUNDLE, keys[0])
    runtime.pull_task_input(None)  # type: ignore[arg-type]
    runtime.install_from_fab(BUNDLE, skip_prompt=True)
    assert installed == [BUNDLE]


def test_what_the_app_spawns_does_not_start_a_second_clientapp(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A spawned process imports the program anew, under this name."""
    program = Path(__file__).parents[3] / "docker" / "flwr-clientapp"
    started: list[bool] = []
    monkeypatch.setattr("deployment.clientapp.main", lambda: started.append(True))
    runpy.run_path(str(program), run_name="__mp_main__")
    assert started == []
    runpy.run_path(str(program), run_name="__main__")
    assert started == [True]
