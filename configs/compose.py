"""Composition of a configuration, shared by server, sites and command line."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.quoting import as_meant, as_overrides, is_text, quoted, rejoined
from mediffusion_core.common.errors import UserError
from mediffusion_core.data.readers import require_reader
from mediffusion_core.settings import (
    Settings,
    checked,
    defaults,
    did_you_mean,
    former_names,
    known_keys,
    validate,
)

__all__ = ["change", "changes_of", "compose", "flatten", "groups", "quoted", "split"]

FOLDER = Path(__file__).resolve().parent
MAPPINGS = ("data.labelled_fraction_by_site", "data.uncertain_by_finding")
"""Settings whose keys are names of the user's own."""
INTERPOLATION = "${"
"""Beginning of a reference to another setting or to the environment, in OmegaConf's grammar."""

# The files start from the models' defaults, so that Hydra knows every setting and its kind.
ConfigStore.instance().store(name="base", node=defaults(Settings, required=MISSING))


def compose(config_name: str, overrides: Sequence[str]) -> Settings:
    """Composes and validates the settings of a run.

    Args:
        config_name: Name of a file in `configs/`, without `.yaml`.
        overrides: Hydra overrides such as `data=isic2019` or `seed=3`.

    Raises:
        UserError: one line that names the mistake.
    """
    # A server gives a site this name: `../x` would be a file of the site's own.
    names = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if config_name not in names:
        raise UserError(f"no configuration {config_name!r}; allowed: {', '.join(names)}")
    overrides = rejoined(overrides)
    for override in overrides:
        _check_override(override)
    entries = [override for override in overrides if _is_entry(override)]
    others = [override for override in overrides if not _is_entry(override)]
    composed = _to_mapping(config_name, [part for one in others for part in _for_hydra(one)])
    for entry in entries:
        _enter(composed, entry)
    settings = validate(composed)
    require_reader(settings.data.source)
    return settings


def change(settings: Settings, overrides: Sequence[str]) -> Settings:
    """Settings with changes on top such as `evaluation.every=4`, checked as composed ones are.

    They may be those of a model, which name no place of a site's own, as a run's do.

    Raises:
        UserError: one line that names the mistake.
    """
    if not overrides:  # settings of an earlier version may fail checks that were added since
        return settings
    given = settings.model_dump(mode="json")
    known = known_keys(given)
    for override in rejoined(overrides):
        _check_override(override)
        key = override.partition("=")[0]
        if key not in known:
            raise UserError(f"unknown setting {key}{did_you_mean(key, known)}")
        _enter(given, override)
    changed = checked(given)
    require_reader(changed.data.source)
    return changed


def changes_of(experiment: str) -> tuple[str, ...]:
    """The changes of an experiment from those that it begins with, as overrides.

    Args:
        experiment: Name of a file in `configs/experiment/`, without `.yaml`.
    """
    written = OmegaConf.load(FOLDER / "experiment" / f"{experiment}.yaml")
    changes = OmegaConf.to_container(written)
    assert isinstance(changes, dict)
    return tuple(
        as_overrides({str(key): value for key, value in changes.items() if key != "defaults"})
    )


def flatten(overrides: Sequence[str]) -> str:
    """Overrides as one string, as `flwr run` carries them; `split` is its inverse."""
    return shlex.join(overrides)


def split(overrides: str) -> list[str]:
    """The overrides in one string, quoted as in a shell.

    Raises:
        UserError: if a quotation mark is not closed.
    """
    try:
        return shlex.split(overrides)
    except ValueError as error:
        raise UserError(f"overrides {overrides!r}: {str(error).lower()}") from None


def groups() -> Mapping[str, list[str]]:
    """The configuration groups with the choices of each."""
    return _groups_in(FOLDER)


@cache
def _groups_in(folder: Path) -> Mapping[str, list[str]]:
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    found = {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}
    return {name: choices for name, choices in found.items() if choices}


def _to_mapping(config_name: str, overrides: Sequence[str]) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(FOLDER), version_base="1.3"):
            composed = hydra_compose(config_name, overrides=list(overrides))
        mapping = OmegaConf.to_container(composed, resolve=False)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        # Hydra checks some of what it is given with Python's own errors.
        raise UserError(_one_line(error, config_name, overrides)) from None
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise UserError(f"setting {missing[0]} is missing")
    assert isinstance(mapping, dict)
    return {str(key): value for key, value in mapping.items()}


def _for_hydra(override: str) -> list[str]:
    """Overrides of Hydra's grammar for one by a user, who may leave out quotation marks."""
    name, _, value = override.partition("=")
    key = name.lstrip("+~")
    if key in MAPPINGS:
        _parsed(f"x={value}", override)
        # Hydra would merge the mapping into that of the file, and keep names that are not there.
        return [f"~{key}", f"++{key}={value}"]
    meant = f"{name}={as_meant(key, value)}"
    if key not in groups():
        _parsed(meant, override)
    return [meant]


def _parsed(meant: str, override: str) -> Any:
    """The value that Hydra reads in an override.

    Raises:
        UserError: in the words of the override that was given, not of Hydra's lexer; and for an
            interpolation in a value that is no text. It may be written with escapes.
    """
    try:
        parsed = OverridesParser.create().parse_override(meant)
        if parsed.is_sweep_override():  # which `1,2` without brackets is
            raise HydraException
        value = None if parsed.is_delete() else parsed.value()
    except (HydraException, OmegaConfBaseException, RecursionError):
        raise UserError(
            f"{override}: this value can't be read; allowed are numbers such as 0.5, true, false, "
            "null, words, lists such as [1,2], and other text in single quotation marks"
        ) from None
    if not is_text(_key(override)) and any(INTERPOLATION in text for text in _texts(value)):
        raise _interpolation_refused(override)
    return value


def _texts(value: Any) -> Iterator[str]:
    """All keys and values in a value."""
    if isinstance(value, dict):
        yield from _texts([*value.keys(), *value.values()])
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    else:
        yield str(value)


def _interpolation_refused(override: str) -> UserError:
    return UserError(f"{override}: only text may hold {INTERPOLATION}")


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


def _is_entry(override: str) -> bool:
    """Whether an override gives a text, or a value for one of the user's own names."""
    key = _key(override)
    return is_text(key) or any(key.startswith(f"{mapping}.") for mapping in MAPPINGS)


def _enter(composed: dict[str, Any], override: str) -> None:
    """Sets a value in a composed mapping, past OmegaConf.

    Texts and names may have any characters there.

    Raises:
        UserError: if the value can't be read, or another override set its group to a value.
    """
    key, value = _key(override), override.partition("=")[2]
    own = next((one for one in MAPPINGS if key.startswith(f"{one}.")), "")
    folders = own.split(".") if own else key.split(".")[:-1]
    for folder in folders:
        composed = composed.setdefault(folder, {})
        if not isinstance(composed, dict):
            raise UserError(f"{override}: {folder} holds no settings")
    name = key.removeprefix(".".join((*folders, "")))
    composed[name] = _parsed(f"x={as_meant(key, value)}", override)


def _check_override(override: str) -> None:
    """Refuses an override that Hydra would explain at length, or that is no setting of a run.

    A site composes overrides that a server sent. An interpolation would read the site's
    environment, and could take minutes; in a text it is taken as it stands. Hydra's own settings
    name folders and programs.
    """
    key, equals, value = override.partition("=")
    if INTERPOLATION in key or (INTERPOLATION in value and not is_text(_key(override))):
        raise _interpolation_refused(override)
    if not equals or not key.strip("+~ "):
        raise UserError(
            f"override {override!r} is not of the form key=value (a value with blanks needs "
            "quotation marks, which the shell takes away: 'key=a value')"
        )
    if key.lstrip("+~").startswith("hydra"):
        raise UserError(f"unknown setting {key.lstrip('+~')}; fed-mediffusion settings lists all")
    choices = groups().get(key.lstrip("+~"))
    if choices is not None and value not in choices:
        hint = did_you_mean(value, choices)
        raise UserError(f"{key}={value}: no such choice; allowed: {', '.join(choices)}{hint}")


def _one_line(error: Exception, config_name: str, overrides: Sequence[str]) -> str:
    """One line that names the override with the mistake and suggests the nearest key."""
    known = known_keys(_to_mapping(config_name, [])) if overrides else []
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key not in groups() and key not in known and key in str(error):
            near = did_you_mean(former_names(Settings).get(key, key), known)
            return f"unknown setting {key}{near or '; fed-mediffusion settings lists all'}"
    text = str(error).strip() or type(error).__name__
    first = re.sub(r"\s+", " ", text.splitlines()[0])
    return f"the configuration does not compose: {first}"
