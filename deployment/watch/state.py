"""The state of a run, read from the files of its folder; nothing is written."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mediffusion_core.common.errors import UserError
from mediffusion_core.reporting.counterfactual_pair import PAIR
from mediffusion_core.reporting.formats import NOT_MEASURED, duration, measured, number
from mediffusion_core.reporting.headline import headline
from mediffusion_core.reporting.report import largest_epsilon
from mediffusion_core.reporting.running import running_figures
from mediffusion_core.run_io.run_folder import RunFolder
from mediffusion_core.run_io.run_progress import RunProgress, position_of

ENDED = ("completed", "failed")
READ = ("metrics.jsonl", "plan.json", "settings.json", "summary.json", "pictures", "sites")
"""The files and folders of a run that are read."""


@dataclass(frozen=True)
class SiteState:
    """A site of a run, as text.

    Attributes:
        name: Of the site.
        contact: Time since its last reply.
        work: Stage, round and step, where its folder is on this machine.
        note: Why its last reply did not count.
        epsilon: Of the planned rounds, for one unit of the site.
    """

    name: str
    contact: str
    work: str
    note: str
    epsilon: str


@dataclass(frozen=True)
class RunState:
    """The state of a run.

    Attributes:
        run: Name of its folder.
        status: `running`, `completed` or `failed`.
        facts: Name and text of each fact, in their order.
        sites: In the order of their names.
        figures: Name and text of the headline figures that are measured.
        summary: The figures of the run so far, as `summary.json` names them.
    """

    run: str
    status: str
    facts: tuple[tuple[str, str], ...]
    sites: tuple[SiteState, ...]
    figures: tuple[tuple[str, str], ...]
    summary: Mapping[str, Any]

    @property
    def has_ended(self) -> bool:
        """Whether the run is completed or failed."""
        return self.status in ENDED


def open_run(run: Path) -> Path:
    """The folder of a run. A link such as `runs/latest` is followed once.

    Raises:
        UserError: if it is no folder of a run.
    """
    folder = run.resolve()
    if not any((folder / name).is_file() for name in ("settings.json", "metrics.jsonl")):
        raise UserError(f"{run} is no run folder; allowed is one with settings.json")
    return folder


def read_state(folder: Path, now: float | None = None) -> RunState:
    """The state of the run in a folder.

    Args:
        folder: Of the run.
        now: Seconds since 1970; the time of the call by default.

    Raises:
        UserError: if a file that is read is a link, which could lead out of the folder, or holds
            something else than a run's.
    """
    refuse_links(folder)
    try:
        return _state(folder, time.time() if now is None else now)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} holds files that are not a run's ({type(error).__name__})"
        ) from None


def _state(folder: Path, now: float) -> RunState:
    history = RunFolder(folder).history()
    progress = RunProgress(folder)
    progress.read()
    summary = _summary(folder, history)
    news = _modified(folder / "metrics.jsonl")
    return RunState(
        run=folder.name,
        status=str(summary["status"]),
        facts=tuple(_facts(summary, progress, now, news)),
        sites=tuple(_sites(history, summary, progress, now)),
        figures=tuple((row.name, row.value) for row in headline(summary) if _is_known(row.value)),
        summary=summary,
    )


def refuse_links(folder: Path) -> None:
    """Checks that no file or folder that is read is a link.

    Raises:
        UserError: if one is.
    """
    inner = (*folder.glob("sites/*"), *folder.glob("sites/*/progress.json"))
    for path in (*map(folder.joinpath, READ), folder / "pictures" / PAIR, *inner):
        if path.is_symlink():
            raise UserError(f"{path} is a link; watch reads files of the run folder alone")


def _summary(folder: Path, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The run's own summary, unless the run went on after it; else that of its lines."""
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        summary = None
    status = summary.get("status") if isinstance(summary, dict) else None
    if status == "completed":
        return dict(summary)
    has_gone_on = _modified(folder / "metrics.jsonl") > _modified(path)
    failed = summary if status == "failed" and not has_gone_on else {}
    return {**running_figures(history), **failed}


def _facts(
    summary: Mapping[str, Any], progress: RunProgress, now: float, news: float
) -> Iterator[tuple[str, str]]:
    yield "Status", str(summary["status"])
    if error := summary.get("error"):
        yield "Error", str(error)
    entry = progress.entry
    yield "Last round", position_of(entry) if entry else "none"
    if summary["status"] == "running":
        if progress.stage and progress.stage != entry.get("stage"):
            yield "Stage", progress.stage
        yield "Last line", f"{duration(max(0.0, now - news))} ago" if news else "none"
        yield "Time left", _left(progress, now - news)
    yield "Elapsed", duration(summary.get("seconds"))
    privacy = summary.get("privacy")
    if isinstance(privacy, Mapping):
        planned = number(largest_epsilon(summary), 2)
        yield "ε", f"{planned} for one {privacy.get('unit')}, planned rounds of this run"
    client_level = summary.get("client_level")
    if isinstance(client_level, Mapping):
        yield "ε of a whole site", number(client_level.get("epsilon"), 2)


def _left(progress: RunProgress, age: float) -> str:
    """The estimate from the rounds so far, less the time since the last line."""
    found = progress.time_left()
    if found is None:
        return "unknown before two rounds of the stage"
    seconds, until = found
    of = "" if until == "run" else f" of the stage {until}"
    return f"about {duration(max(0.0, seconds - age))}{of}"


def _sites(
    history: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    progress: RunProgress,
    now: float,
) -> Iterator[SiteState]:
    contacts: dict[str, float] = {}
    notes: dict[str, str] = {}
    for line in history:
        contacts |= line.get("contacts", {})
        notes = {site: note for site, note in notes.items() if site not in line.get("sites", {})}
        notes |= {
            one["site"]: f"{one['kind']}: {one['reason']}" for one in line.get("set_aside", ())
        }
    for site, work in progress.sites.items():
        contacts[site] = max(contacts.get(site, 0.0), measured(work.get("time")) or 0.0)
    promised = _inside(_inside(summary, "privacy"), "sites")
    for name in sorted({*_inside(summary, "census"), *contacts, *progress.sites}):
        last, own = contacts.get(name), progress.sites.get(name)
        epsilon = _inside(promised, name).get("epsilon")
        yield SiteState(
            name=name,
            contact=f"{duration(max(0.0, now - last))} ago" if last else "unknown",
            work=_work(own) if own else "",
            note=notes.get(name, ""),
            epsilon="" if epsilon is None else number(epsilon, 2),
        )


def _work(own: Mapping[str, Any]) -> str:
    step, steps = measured(own.get("step")), measured(own.get("steps"))
    at = f", step {step:.0f} of {steps:.0f}" if step is not None and steps else ""
    return f"{position_of(own)}{at}"


def _is_known(text: str) -> bool:
    return text != NOT_MEASURED


def _inside(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = mapping.get(key)
    return value if isinstance(value, Mapping) else {}


def _modified(path: Path) -> float:
    """When a file was last written, in seconds since 1970; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
