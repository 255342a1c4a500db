"""The site file: a mistake is one line, and the check's last line says ready or not ready."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from helpers.crashing_images import crash_at
from typer.testing import CliRunner

from mediffusion_core.common.errors import UserError
from mediffusion_core.data import Source, read_source
from mediffusion_core.settings import DataSettings
from mediffusion_core.settings.allowed_metrics import ALLOWED_METRICS
from mediffusion_core.settings.site_file import SiteFile
from simulations.cli.main import app
from unit.data.readers.test_folder import folder_with_table


def written(folder: Path, text: str) -> Path:
    path = folder / "site.toml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def sound(folder: Path, policy: str = "") -> Path:
    settings = folder_with_table(folder / "images")
    columns = settings.columns.model_dump(exclude_none=True)
    lines = [
        'name = "st-anna"',
        "[data]",
        'source = "folder"',
        f'root = "{settings.root}"',
        f'table = "{settings.table}"',
        f'store = "{folder / "store"}"',
        f"multi_label = {str(settings.multi_label).lower()}",
        "[data.columns]",
        *(f"{name} = {value!r}" for name, value in columns.items()),
        "[policy]",
        policy,
    ]
    return written(folder, "\n".join(lines).replace("(", "[").replace(")", "]"))


def check(path: Path) -> tuple[int, list[str]]:
    result = CliRunner().invoke(app, ["site", "check", str(path), "--image-size", "16"])
    return result.exit_code, result.output.splitlines()


def test_a_sound_site_is_ready(tmp_path: Path) -> None:
    code, lines = check(sound(tmp_path, "max_epsilon = 8.0\nmin_noise_multiplier = 0.5"))
    assert (code, lines[-1]) == (0, "ready"), lines
    said = "privacy required, ε at most 8, noise multiplier at least 0.5"
    assert any(said in line for line in lines)


def test_images_that_are_not_there_are_not_ready(tmp_path: Path) -> None:
    path = sound(tmp_path)
    for image in (tmp_path / "images").rglob("*.png"):
        image.write_bytes(b"")
    code, lines = check(path)
    assert (code, lines[-1]) == (1, "not ready")
    assert any("sampled images can't be read" in line and "empty file" in line for line in lines)


def test_an_image_that_ends_the_decoder_does_not_end_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some codecs in C abort on broken files; the reader of DICOM says so of its images."""

    def breaking(settings: DataSettings, seed: int, secret: bytes) -> Source:
        source = read_source(settings, seed, secret)
        return replace(source, load=partial(crash_at, (0,), source.load), isolated=True)

    monkeypatch.setattr("deployment.site_commands.read_source", breaking)
    code, lines = check(sound(tmp_path))
    assert (code, lines[-1]) == (1, "not ready")
    assert any("the decoder crashed on it" in line for line in lines)


def test_an_unset_policy_has_the_default_metrics(tmp_path: Path) -> None:
    site = SiteFile.read(sound(tmp_path))
    assert site.policy.allowed_metrics == ALLOWED_METRICS
    assert site.policy.max_epsilon is None


def test_an_unset_policy_protects(tmp_path: Path) -> None:
    policy = SiteFile.read(sound(tmp_path)).policy
    assert policy.require_privacy and policy.keep_latents == "run"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name = ", "site.toml: Invalid value"),
        ('name = "a"', "data is missing"),
        ('name = "../a"\n[data]\nsource="folder"\nroot="/x"', "name='../a'"),
        ('name = "a"\n[data]\nsource="folder"\nroot="x"', "x is not absolute"),
        ('name="a"\n[data]\nsource="folder"\nroot="/x"\n[policy]\nmax_epsilon=0', "max_epsilon=0"),
        ('name="a"\n[data]\nsource="folder"\nroot="/x"\n[policy]\nmax_epsilo=1',
         "unknown key policy.max_epsilo, did you mean policy.max_epsilon?"),
        ('name="a"\n[data]\nsource="folder"\nroot="/x"\n[policy]\nallowed_metrics=["los"]',
         "los is not a metric that a site may send, did you mean loss?"),
        ('name="a"\n[data]\nsource="folder"\nroot="/x"\n[policy]\ndevice="tpu"', "tpu"),
        ('name="a"\n[data]\nsource="folder"\nroot="/x"\n[policy]\nallowed_settings={sead=[1]}',
         "sead is no setting of a run, did you mean seed?"),
        ('name="a"\n[data]\nsource="folder"\nroot="/x"\n[policy]\nallowed_settings={seed={}}',
         "bounds need min or max"),
        ('name="a"\n[data]\nsource="folder"\nroot="/x"\n[policy]\nkeep_latents=0', "=0: "),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_it(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        SiteFile.read(written(tmp_path, text))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    path = sound(tmp_path)
    path.chmod(0o666)
    with pytest.raises(UserError, match="others may write it"):
        SiteFile.read(path)
    with pytest.raises(UserError, match="No such file"):
        SiteFile.read(tmp_path / "none.toml")


def test_an_unknown_dataset_is_named_with_the_allowed_ones(tmp_path: Path) -> None:
    path = sound(tmp_path)
    path.write_text(path.read_text().replace('source = "folder"', 'source = "floder"'))
    code, lines = check(path)
    assert (code, lines[-1]) == (1, "not ready")
    assert any("floder" in line and "did you mean folder?" in line for line in lines)
