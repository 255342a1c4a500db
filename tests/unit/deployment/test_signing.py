"""The coordinator's statement of a run: the parts that it covers, and mismatches."""

import base64
import json
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from flwr.cli.build import build_fab_from_disk
from flwr.common.config import parse_config_args
from typer.testing import CliRunner

from deployment.bundle import AppBundle
from deployment.signing import (
    PURPOSE,
    BundleRefusedError,
    Statement,
    new_signer,
    read_signer,
    settings_digest,
)
from mediffusion_core.common.errors import UserError
from simulations.cli.main import app

DIGEST = "0" * 64
STATEMENT = Statement(bundle=DIGEST, settings=DIGEST, not_after=2000, version=7)


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    private, public = new_signer()
    (tmp_path / "signer.key").write_bytes(private)
    (tmp_path / "signer.pem").write_bytes(public)
    return tmp_path / "signer.key", tmp_path / "signer.pem"


def signed(text: bytes, key_file: Path, purpose: bytes = PURPOSE) -> str:
    """A text with the signature of a key's owner, whatever it says."""
    key = load_pem_private_key(key_file.read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    parts = (text, key.sign(purpose + text))
    return ".".join(base64.urlsafe_b64encode(part).decode() for part in parts)


def test_a_statement_comes_back_as_it_was_signed(keys: tuple[Path, Path]) -> None:
    text = STATEMENT.signed_by(keys[0])
    assert Statement.verified(text, read_signer(keys[1])) == STATEMENT
    assert '"' not in text and "'" not in text and " " not in text


@pytest.mark.parametrize("text", ["", "no base64!", "aGVsbG8=", "A.B.C", ".", "é.é", "A" * 300])
def test_other_text_is_refused(keys: tuple[Path, Path], text: str) -> None:
    with pytest.raises(BundleRefusedError):
        Statement.verified(text, read_signer(keys[1]))


@pytest.mark.parametrize("field", ["bundle", "settings", "not_after", "version"])
def test_every_field_is_covered(keys: tuple[Path, Path], field: str) -> None:
    content, proof = STATEMENT.signed_by(keys[0]).split(".")
    stated = json.loads(base64.urlsafe_b64decode(content))
    stated[field] = "1" * 64 if isinstance(stated[field], str) else stated[field] + 1
    changed = base64.urlsafe_b64encode(json.dumps(stated).encode()).decode()
    with pytest.raises(BundleRefusedError, match="does not fit"):
        Statement.verified(f"{changed}.{proof}", read_signer(keys[1]))


def test_another_signer_and_another_purpose_are_refused(
    keys: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "foreign.key").write_bytes(new_signer()[0])
    text = STATEMENT.model_dump_json().encode()
    for other in (
        STATEMENT.signed_by(tmp_path / "foreign.key"),
        signed(text, keys[0], b"something else\0"),
        signed(text, keys[0], b""),
    ):
        with pytest.raises(BundleRefusedError, match="does not fit"):
            Statement.verified(other, read_signer(keys[1]))


@pytest.mark.parametrize(
    "change",
    [{"app": "agentapp"}, {"version": -1}, {"version": "8"}, {"not_after": 1e300}, {"more": 1}],
)
def test_a_signed_statement_of_another_form_is_refused(
    keys: tuple[Path, Path], change: dict[str, object]
) -> None:
    text = json.dumps(STATEMENT.model_dump() | change).encode()
    with pytest.raises(BundleRefusedError, match="does not fit"):
        Statement.verified(signed(text, keys[0]), read_signer(keys[1]))


def test_the_settings_are_all_but_the_signature() -> None:
    settings = {"config-name": "config", "overrides": "seed=1", "signature": "x"}
    assert settings_digest(settings) == settings_digest(dict(reversed(settings.items())))
    assert settings_digest(settings) == settings_digest(settings | {"signature": "y"})
    for change in ({"overrides": "seed=2"}, {"config-name": "other"}, {"more": ""}, {"more": True}):
        assert settings_digest(settings) != settings_digest({**settings, **change})


def test_a_public_key_signs_nothing_and_a_private_one_checks_nothing(
    keys: tuple[Path, Path],
) -> None:
    with pytest.raises(UserError, match="holds no signing key"):
        STATEMENT.signed_by(keys[1])
    with pytest.raises(UserError, match="no public key"):
        read_signer(keys[0])


APP = """
[project]
name = "tiny"
version = "1.0"
[tool.flwr.app]
publisher = "tests"
[tool.flwr.app.components]
serverapp = "a:b"
clientapp = "a:b"
[tool.flwr.app.config]
config-name = "config"
overrides = ""
signature = ""
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "pyproject.toml").write_text(APP)
    (tmp_path / "app" / "a.py").write_text("b = 1\n")
    return tmp_path / "app"


def sign(folder: Path, key: Path, *options: str) -> str:
    """The command's standard output, or the message of its error."""
    result = CliRunner().invoke(app, ["sign", str(folder), "--key", str(key), *options])
    return str(result.exception) if result.exception else result.stdout.strip()


def test_the_command_prints_the_run_config_for_flwr_run(
    folder: Path, keys: tuple[Path, Path]
) -> None:
    given = 'overrides="seed=1 data.classes=[a,b]" config-name="other"'
    printed = sign(folder, keys[0], "--run-config", given, "--days", "2", "--version", "9")
    assert printed.startswith(given)
    config = parse_config_args([printed])
    assert config["overrides"] == "seed=1 data.classes=[a,b]"
    statement = Statement.verified(config["signature"], read_signer(keys[1]))
    bundle = AppBundle.read(build_fab_from_disk(folder))
    assert (statement.bundle, statement.version) == (bundle.digest, 9)
    assert statement.settings == settings_digest(bundle.run_config(config))
    assert 0 <= statement.not_after - time.time() <= 2 * 24 * 60 * 60


def test_by_default_a_statement_holds_thirty_days_and_its_version_is_the_time(
    folder: Path, keys: tuple[Path, Path]
) -> None:
    config = parse_config_args([sign(folder, keys[0])])
    statement = Statement.verified(config["signature"], read_signer(keys[1]))
    assert abs(statement.version - time.time()) < 600
    assert statement.not_after - statement.version == 30 * 24 * 60 * 60


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('override="seed=1"', "'override' is not present"),
        ('signature="x"', "has a signature already"),
        ("overrides=unquoted", "can't be signed"),
        ("run.toml", "no TOML file"),
    ],
)
def test_a_mistake_is_one_line(
    folder: Path, keys: tuple[Path, Path], config: str, said: str
) -> None:
    assert said in sign(folder, keys[0], "--run-config", config)
