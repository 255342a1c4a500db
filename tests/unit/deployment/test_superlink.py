"""Start of the SuperLink: how a local `flwr` finds it and is admitted."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from flwr.cli.auth_plugin import OidcCliPlugin
from flwr.cli.utils import load_cli_auth_plugin_from_connection
from flwr.supercore.credential_store import file_credential_store

from deployment.superlink import write_connection


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--insecure"], {"address": "127.0.0.1:8000", "insecure": True}),
        (
            ["--port", "9000", "--ssl-ca-certfile=/run/secrets/ca.pem"],
            {"address": "127.0.0.1:9000", "root-certificates": "/run/secrets/ca.pem"},
        ),
    ],
)
def test_flwr_is_told_where_the_superlink_is(
    tmp_path: Path, arguments: list[str], expected: dict[str, Any]
) -> None:
    write_connection(tmp_path / "home", arguments, "token")
    written = tomllib.loads((tmp_path / "home" / "config.toml").read_text())
    assert written["superlink"] == {"default": "deployment", "deployment": expected}


def test_flwr_sends_the_token_of_the_last_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for token in ("of an earlier start", "token"):
        write_connection(tmp_path, ["--insecure"], token)
    file = tmp_path / "credentials.yaml"
    assert file.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(file_credential_store, "CREDENTIAL_FILE_PATH", file)
    plugin = load_cli_auth_plugin_from_connection("127.0.0.1:8000")
    assert isinstance(plugin, OidcCliPlugin)
    plugin.load_tokens()
    assert dict(plugin.write_tokens_to_metadata([]))["flwr-oidc-access-token"] == "token"
