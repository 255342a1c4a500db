"""`fed-mediffusion evaluate`: evaluates a model at simulated sites, or prepares such a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from configs import compose, quoted
from configs.of_model import overrides_of_model
from mediffusion_core.common.errors import UserError
from mediffusion_core.messaging import protocol
from mediffusion_core.messaging.model_digest import model_digest
from mediffusion_core.run_io.any_model import load_any_model
from server.model_evaluation import evaluated_models, model_components
from server.server_app import EVALUATION_TABLE
from simulations.engine.preparation import prepare_images
from simulations.engine.without_training import by_time, flower_configuration, serve_here


def evaluate(
    model: Path,
    against: Path | None,
    overrides: Sequence[str],
    config_name: str,
    output: Path | None,
) -> Path:
    """Evaluates a model at the simulated sites of the settings, one after the other.

    Args:
        model: Folder of the model.
        against: Folder of a second model to compare with.
        overrides: Of the sites' data, as `simulate` takes them.
        config_name: Name of a file in `configs/`, without `.yaml`.
        output: Folder to write; by default one below `evaluations`, named by the time.

    Returns:
        The written folder, with the figures in `summary.json`.

    Raises:
        UserError: for a mistake in settings, data or models, or if too few sites answer.
    """
    console = Console(soft_wrap=True)
    errors = Console(stderr=True, soft_wrap=True)
    folder = (output or by_time(Path("evaluations"))).resolve()
    own = f"run.folder={quoted(folder)}"
    whole = [*evaluation_overrides(model, against, overrides), own]
    settings = compose(config_name, whole)
    evaluated_models(settings)  # before the images, which may take long
    held, wanted = prepare_images(settings, errors).store.classes, settings.data.classes
    if wanted is not None and held != wanted:
        raise UserError(
            f"the images are of the classes {', '.join(held)}, the model is of {', '.join(wanted)}"
        )
    answers = (1 if against is None else 2) * settings.num_participants
    serve_here(config_name, whole, settings, protocol.EVALUATE_MODEL, answers, errors)
    console.print((folder / EVALUATION_TABLE).read_text(encoding="utf-8"), markup=False)
    return folder


def run_config(
    model: Path,
    against: Path | None,
    overrides: Sequence[str],
    config_name: str,
    places: Mapping[str, Path],
) -> str:
    """The run configuration of an evaluation at deployed sites, for `sign` and `flwr run`.

    Args:
        model: Folder of the model here.
        against: Folder of a second model here.
        overrides: Of the run.
        config_name: Name of a file in `configs/`, without `.yaml`.
        places: By setting, the models' folders at the server, where they differ.

    Raises:
        UserError: for a mistake in settings or models, or a text that Flower's configuration can't
            hold.
    """
    whole = evaluation_overrides(model, against, overrides)
    evaluated_models(compose(config_name, whole))
    whole = [*whole, *(f"{name}={place}" for name, place in places.items())]
    return flower_configuration(config_name, whole)


def evaluation_overrides(model: Path, against: Path | None, overrides: Sequence[str]) -> list[str]:
    """The overrides of a run that evaluates a model: the given ones, and those of the model."""
    places = {"evaluation.model": model, "evaluation.against": against}
    folders = {name: place.resolve() for name, place in places.items() if place is not None}
    first, *others = (load_any_model(place) for place in folders.values())
    of_model = overrides_of_model(first.settings, first.classes, first.multi_label)
    digests = ",".join(model_digest(model_components(one)) for one in (first, *others))
    named = (f"{name}={place}" for name, place in folders.items())
    return [*overrides, *of_model, "task=evaluation", f"evaluation.digests=[{digests}]", *named]
