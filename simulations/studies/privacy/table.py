"""The tidy table of the study: one figure of one run a line, as CSV and as Parquet."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mediffusion_core.common.files import replacing
from simulations.studies.privacy.plan import Key, Work
from simulations.studies.result_files import write_csv

CSV, PARQUET = "results.csv", "results.parquet"
AUC, ECE, FID = "macro AUC", "ECE", "FID"
ATTACK_AUC, TPR, LARGEST_TPR = "attack AUC", "attack TPR", "largest TPR"
LOWER_BOUND, STAGE_EPSILON, LARGEST_BOUND = "audited ε", "ε of the stage", "provable ε"
ATTACKED: Mapping[str, str] = {"auc": ATTACK_AUC, "tpr": TPR}
"""Titles of an attack's figures; others are named by their field."""
COUNTS = ("members", "strangers")


class Row(NamedTuple):
    """One figure of one run. Numbers are nan where there are none."""

    epsilon: float
    """The promised ε; infinite without noise."""
    seed: int
    figure: str
    of: str
    """The attack, or the stage that was audited; empty for figures of the run."""
    value: float
    low: float
    """Of the 95 % interval over patients or units."""
    high: float
    units: float
    """Members of an attack, canaries of an audit."""
    settings_hash: str
    """Of the run."""


def rows_of(work: Work) -> list[Row]:
    """The figures of all cells that have finished."""
    return [row for key in work.finished() for row in _rows(work, key)]


def _rows(work: Work, key: Key) -> Iterator[Row]:
    run = work.runs[key]
    figures = run.figures(work.study) or {}

    def row(figure: str, of: str, value: Any, ends: Any = None, units: Any = None) -> Row:
        low, high = ends or (None, None)
        return Row(
            epsilon=key[0],
            seed=key[1],
            figure=figure,
            of=of,
            value=_number(value),
            low=_number(low),
            high=_number(high),
            units=_number(units),
            settings_hash=run.settings_hash,
        )

    yield row(AUC, "", figures["auc_macro"], figures["auc_macro_interval"])
    yield row(ECE, "", (figures["calibration"] or {}).get("ece"))
    yield row(FID, "", figures["fid"])
    attacked = work.measure(key, "attack").measured(work.study)
    if "largest_tpr" in attacked:
        yield row(LARGEST_TPR, "", attacked["largest_tpr"])
    for name, one in attacked.get("attacks", {}).items():
        for field, value in one.items():
            if isinstance(value, int | float) and field not in COUNTS:
                title = ATTACKED.get(field, field.replace("_", " "))
                yield row(title, name, value, one.get(f"{field}_interval"), one.get("members"))
    for stage, one in work.measure(key, "audit").measured(work.study).get("stages", {}).items():
        for title, field in (
            (LOWER_BOUND, "lower_bound"),
            (STAGE_EPSILON, "epsilon"),
            (LARGEST_BOUND, "largest_bound"),
        ):
            yield row(title, stage, one[field], units=one["canaries"])


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def write_table(rows: Sequence[Row], study: Path) -> None:
    """Writes the table as CSV and as Parquet."""
    import pyarrow
    import pyarrow.parquet

    write_csv(study / CSV, Row._fields, rows)
    kinds = {float: pyarrow.float64(), int: pyarrow.int64(), str: pyarrow.string()}
    schema = pyarrow.schema([(name, kinds[one]) for name, one in Row.__annotations__.items()])
    columns = {name: _or_none(row[place] for row in rows) for place, name in enumerate(Row._fields)}
    with replacing(study / PARQUET) as temporary:
        pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), temporary)


def _or_none(values: Iterable[Any]) -> list[Any]:
    return [None if isinstance(one, float) and math.isnan(one) else one for one in values]
