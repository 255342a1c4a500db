"""No setting is interpolated: else a server could ask for a site's environment or its time."""

from pathlib import Path

import pytest
from helpers.messages import sent

from configs.compose import FOLDER, change, compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.messaging import protocol

SECRET = "7301"
REFERENCE = "${oc.env:SECRET}"
ESCAPED = r"$\{oc.env\:SECRET\}"
"""What Hydra's grammar reads as the text of an interpolation."""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", SECRET)


@pytest.mark.parametrize(
    "override",
    [
        "seed=${oc.env:SECRET}",
        f"seed={ESCAPED}",
        "~data.root=${oc.env:SECRET}",
        "evaluation.every='${oc.env:SECRET}'",
        f"model.unet.channels=[1,{ESCAPED}]",
        "data=${oc.env:SECRET}",
        f"data={ESCAPED}",
        f"+data@model={ESCAPED}",
        "${oc.env:SECRET}=1",
        "data.${oc.env:SECRET}=1",
        f"{ESCAPED}=1",
        "data.labelled_fraction_by_site.${oc.env:SECRET}=1",
        f"data.labelled_fraction_by_site.a={ESCAPED}",
        "data.labelled_fraction_by_site={a: '${oc.env:SECRET}'}",
        f"data.labelled_fraction_by_site={{a: {ESCAPED}}}",
        f"data.labelled_fraction_by_site={{{ESCAPED}: 1}}",
        f"++seed={ESCAPED}",
        "+hydra.searchpath=[/tmp]",
        "hydra.job.name=x",
        "hydra/launcher=basic",
    ],
)
def test_an_interpolation_is_refused_in_one_line(override: str) -> None:
    with pytest.raises(UserError) as refused:
        compose("config", ["data=folder", override])
    assert "\n" not in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("text", [REFERENCE, ESCAPED, "/d/${HOME}", "/d/\\${x", "${seed}", "${${"])
def test_an_interpolation_in_a_text_is_that_text(text: str) -> None:
    given = [f"data.root={text}", f"data.classes=['{text}',b]", f'+data.columns.image="{text}"']
    data = compose("config", ["data=folder", *given]).data
    assert (data.root, data.classes, data.columns.image) == (Path(text), (text, "b"), text)


def test_a_text_of_a_group_that_is_none_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="columns holds no settings"):
        compose("config", ["data=folder", "data.columns=null", "data.columns.image=a"])


def test_the_last_of_several_texts_counts() -> None:
    given = ["data.root=/a", f"data.root={REFERENCE}", "data.root=/b"]
    assert compose("config", ["data=folder", *given]).data.root == Path("/b")


@pytest.mark.parametrize("opened", ["${", r"$\{", "${oc.env:${"])
def test_nested_interpolations_are_not_parsed(opened: str) -> None:
    with pytest.raises(UserError):
        compose("config", [f"seed={opened * 3000}x{'}' * 3000}"])


def test_a_chain_of_references_that_grows_at_each_step_is_refused() -> None:
    links = [f"data.labelled_fraction_by_site.s{n}={'${.s' + str(n + 1) + '}'}" for n in range(40)]
    with pytest.raises(UserError, match="only text may hold"):
        compose("config", links)


def test_a_server_learns_no_variable_of_a_sites_environment(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    """By a guess of the settings' hash, which the site would confirm."""
    place = (f"data.store={tmp_path / 'store'}", f"run.folder={tmp_path / 'run'}")
    guess = compose("config", (*tiny, *place, f"seed={SECRET}")).fingerprint()
    for asked in ("seed=${oc.env:SECRET}", f"seed={ESCAPED}"):
        reply = sent(protocol.CENSUS, (*tiny, *place, asked), guess)
        assert reply.content.config_records[protocol.FAILURE]["code"] == protocol.FAILED


@pytest.mark.parametrize("text", [REFERENCE, "/d/${x", "$\\{x"])
def test_a_models_settings_are_not_resolved_when_they_are_changed(text: str) -> None:
    settings = compose("config", ["data=folder", "data.root=/data"])
    data = settings.data.model_copy(update={"root": Path(text)})
    changed = change(settings.model_copy(update={"data": data}), ["evaluation.every=2"])
    assert changed.data.root == Path(text)
    assert change(settings, [f"data.root={text}"]).data.root == Path(text)
    with pytest.raises(UserError, match="only text may hold"):
        change(settings, [f"seed={REFERENCE}"])


@pytest.mark.parametrize(
    "name", ["../pyproject", "data/phantom", "/etc/passwd", "${oc.env:SECRET}"]
)
def test_a_configuration_is_one_of_the_packaged_ones(name: str) -> None:
    with pytest.raises(UserError, match="no configuration"):
        compose(name, [])


def test_the_packaged_configurations_hold_no_interpolation() -> None:
    for file in FOLDER.rglob("*.yaml"):
        assert "${" not in file.read_text(), file
