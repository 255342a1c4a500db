"""Manifests: Parquet tables of any types, and mutated Parquet files, read as a table of labels.

A case takes about 3 ms, most of it in pyarrow, which opens the file itself.
"""

import io
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fuzz.harness import Target
from fuzz.mutations import nearly
from mediffusion_core.common.errors import UserError
from mediffusion_core.data.readers.labelled_table import read_labelled_table
from mediffusion_core.settings import DataSettings

NAME = "site.parquet"
NAMES = ("image", "label", "labels", "labelled", "patient_id", "split", "site", "", "é", "image")
TEXTS = ("a.png", "../outside.png", "/etc/passwd", "train", "test", "p1", "nan", "", "0", "\0")
Values = list[Any]


def target(root: Path) -> Target:
    """Reads one Parquet file, whole or damaged, with two choices of columns."""
    choices = [
        {"image": "image", "label": "label"},
        {"image": "image", "label": "labelled", "patient": "patient_id", "site": "site",
         "split": "split"},
        {"image": "image", "label": "labels"},
    ]  # fmt: skip
    settings = [
        DataSettings.model_validate(
            {
                "source": "folder",
                "root": root,
                "table": NAME,
                "columns": columns,
                "image_size": 8,
                "channels": 1,
            }
        )
        for columns in choices
    ]

    def run(case: tuple[int, object]) -> None:
        which, given = case
        content = given if isinstance(given, bytes) else _file(given)
        (root / NAME).write_bytes(content)
        read_labelled_table(settings[which], root)

    texts = st.lists(st.one_of(st.none(), st.sampled_from(TEXTS), st.text(max_size=4)))
    values = st.one_of(texts, st.lists(st.integers(-(2**31), 2**31 - 1)))
    kind = st.sampled_from(sorted(KINDS))
    text = st.sampled_from(("string", "large_string", "dictionary"))
    needed = [
        st.tuples(st.just(name), st.one_of(text, text, kind), st.one_of(few, few, few, values))
        for name, few in (
            ("image", st.permutations(("a.png", "b.png", "c/d.png"))),
            (
                "label",
                st.lists(st.sampled_from(("nevus", "melanoma", None)), min_size=2, max_size=3),
            ),
        )
    ]
    others = st.lists(st.tuples(st.sampled_from(NAMES), kind, values), max_size=4)
    tables = st.builds(lambda *parts: [*parts[:-1], *parts[-1]], *needed, others)
    which = st.integers(0, len(settings) - 1)
    return Target(
        root=root,
        cases=st.tuples(which, st.one_of(nearly(_seeds()), tables)),
        run=run,
        refused=(UserError,),
    )


KINDS = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "dictionary": pa.dictionary(pa.int8(), pa.string()),
    "bool": pa.bool_(),
    "int": pa.int64(),
    "float": pa.float64(),
    "binary": pa.binary(),
    "list": pa.list_(pa.string()),
    "timestamp": pa.timestamp("ns"),
    "null": pa.null(),
}


def _file(columns: list[tuple[str, str, Values]]) -> bytes:
    """A Parquet file of columns of one length; values that a type does not have become null."""
    length = max(len(values) for _, _, values in columns)
    arrays = []
    for _, kind, values in columns:
        filled = (values * length)[:length] if values else [None] * length
        arrays.append(pa.array([_of_kind(kind, value) for value in filled], KINDS[kind]))
    table = pa.Table.from_arrays(arrays, [name for name, _, _ in columns])
    return _written(table, "none")


def _of_kind(kind: str, value: object) -> object:
    if value is None or kind == "null":
        return None
    if kind == "list":
        return [str(value)]
    if kind == "binary":
        return str(value).encode("utf-8", "surrogatepass")
    if kind in ("int", "timestamp", "float"):
        return int(value) if isinstance(value, int) else len(str(value))
    if kind == "bool":
        return bool(value)
    if kind == "dictionary":
        return str(value)
    return str(value)


def _seeds() -> list[bytes]:
    """Tables of labels, and the manifest of a site as the partition writes it."""
    labels = pa.StructArray.from_arrays([pa.array([True, None, False])], ["nevus"])
    site = pa.table(
        {
            "image": pa.array(["a.png", "b.png", "c.png"]),
            "labels": labels,
            "labelled": pa.array([True, False, True]),
            "patient_id": pa.array(["p1", "p1", "p2"]),
            "split": pa.array(["train", "train", "test"], KINDS["dictionary"]),
            "site": pa.array(["north"] * 3, pa.dictionary(pa.int16(), pa.string())),
        }
    )
    plain = pa.table({"image": ["a.png", "b.png"], "label": ["nevus", "melanoma"]})
    numbers = pa.table({"image": ["a.png", "b.png"], "label": np.array([0.0, np.nan])})
    kinds = ("none", "snappy", "zstd")
    return [_written(table, kind) for table in (site, plain, numbers) for kind in kinds]


def _written(table: pa.Table, compression: str) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, compression=compression)
    return file.getvalue()
