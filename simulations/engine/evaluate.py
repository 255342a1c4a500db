"""`fed-mediffusion evaluate`: evaluates a model at simulated sites, or prepares such a run."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from flwr.app import ArrayRecord, RecordDict
from rich.console import Console
from rich.progress import Progress, TaskID

from configs import compose, flatten, quoted
from configs.of_model import overrides_of_model
from mediffusion_core.common.errors import UserError
from mediffusion_core.messaging import protocol
from mediffusion_core.messaging.model_digest import model_digest
from mediffusion_core.run_io.any_model import load_any_model
from mediffusion_core.run_io.run_folder import RunFolder
from mediffusion_core.settings import Settings
from server.messages import SiteError
from server.model_evaluation import evaluated_models, model_components
from server.reply_contract import ReplyContract
from server.server_app import EVALUATION_TABLE, serve
from simulations.engine.in_process import SitesHere
from simulations.engine.preparation import prepare_images


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
    folder = (output or _by_time(Path("evaluations"))).resolve()
    own = f"run.folder={quoted(folder)}"
    whole = [*evaluation_overrides(model, against, overrides), own]
    settings = compose(config_name, whole)
    evaluated_models(settings)  # before the images, which may take long
    held, wanted = prepare_images(settings, errors).store.classes, settings.data.classes
    if wanted is not None and held != wanted:
        raise UserError(
            f"the images are of the classes {', '.join(held)}, the model is of {', '.join(wanted)}"
        )
    written = RunFolder(folder)
    with Progress(console=errors, transient=True) as progress:
        models = 1 if against is None else 2
        task = progress.add_task("sites", total=models * settings.num_participants)

        def connect(contract: ReplyContract) -> SitesHere:
            return _ShownSites(config_name, whole, settings, contract, progress, task)

        try:
            serve(connect, settings, written)
        except SiteError as error:
            raise UserError(f"{error}; sites: {folder / 'sites'}") from None
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
    compose(config_name, whole)
    text = flatten(whole)
    if '"' in text or "\\" in text:
        raise UserError("--run-config: names of classes and folders may hold no quotation marks")
    chosen = "" if config_name == "config" else f'config-name="{config_name}" '
    return f'{chosen}overrides="{text}"'


def evaluation_overrides(model: Path, against: Path | None, overrides: Sequence[str]) -> list[str]:
    """The overrides of a run that evaluates a model: the given ones, and those of the model."""
    places = {"evaluation.model": model, "evaluation.against": against}
    folders = {name: place.resolve() for name, place in places.items() if place is not None}
    first, *others = (load_any_model(place) for place in folders.values())
    of_model = overrides_of_model(first.settings, first.classes, first.multi_label)
    digests = ",".join(model_digest(model_components(one)) for one in (first, *others))
    named = (f"{name}={place}" for name, place in folders.items())
    return [*overrides, *of_model, "task=evaluation", f"evaluation.digests=[{digests}]", *named]


class _ShownSites(SitesHere):
    """The sites of one run, asked one after the other in this process, with their progress."""

    def __init__(
        self,
        config_name: str,
        overrides: Sequence[str],
        settings: Settings,
        contract: ReplyContract,
        progress: Progress,
        task: TaskID,
    ) -> None:
        super().__init__(config_name, overrides, settings, contract)
        self._progress, self._task = progress, task

    def _answer(
        self, kind: str, round_number: int, index: int, records: Mapping[str, ArrayRecord]
    ) -> RecordDict:
        content = super()._answer(kind, round_number, index, records)
        if kind == protocol.EVALUATE_MODEL:
            self._progress.advance(self._task)
        return content


def _by_time(parent: Path) -> Path:
    return parent / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
