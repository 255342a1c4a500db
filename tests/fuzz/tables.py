"""Tables: a site's own CSV file with any columns, and the tables of the published data sets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from PIL import Image

from fuzz.harness import Target
from fuzz.mutations import nearly
from mediffusion_core.common.errors import UserError
from mediffusion_core.data.readers import chestxray14, chexpert, folder, isic2019
from mediffusion_core.settings import DataSettings

Table = tuple[str, Callable[[DataSettings, int], object], str, str]
"""Folder, reader, name of the table that changes, and its valid text."""

OWN = (
    "image,label,patient,site,split\n"
    "a.png,nevus,p1,north,train\n"
    "./b.png,,p1,north,train\n"
    '"c, d.png",melanoma,p2,"south ",test\n'
)
CELLS = (
    "a.png", "./a.png", "a\\b.png", "/etc/passwd", "../outside.png", "link.png", "NaN", "", "-",
    "nevus", "Nevus", "0", "1", "1.0", "yes", "none", "train", "val", "TEST", "p1", ".", "..",
    "\u202e", "e\u0301", "=1+1", "x" * 300, "1e999", "nan|nan", "a|b", "|", "\0", "\x1b[31m",
)  # fmt: skip
COLUMNS = ("image", "label", "patient", "site", "split", "melanoma", "nevus")
CHOICES: tuple[dict[str, Any], ...] = (
    {},
    {"multi_label": True},
    {"classes": ("nevus", "melanoma")},
    {"columns": {"patient": "patient", "site": "site", "split": "split"}},
    {"columns": {"patient": "patient"}, "multi_label": True, "separator": ";"},
    {"columns": {"label": ("melanoma", "nevus"), "site": "site"}},
)
ENCODINGS = ("utf-8", "utf-16", "cp1252")


def target(root: Path) -> Target:
    """Reads a data set whose table is made of cells, or of bytes."""
    tables = _layouts(root)

    def run(case: tuple[int, int, bytes]) -> None:
        which, choice, content = case
        place, read, name, _ = tables[which]
        (root / place / name).write_bytes(content)
        given = dict(CHOICES[choice]) if which == 0 else {}
        columns = {"image": "image", "label": "label", **given.pop("columns", {})}
        settings = DataSettings.model_validate(
            {
                "source": place,
                "root": root / place,
                "image_size": 8,
                "channels": 1,
                "table": name if which == 0 else None,
                "columns": columns if which == 0 else {},
                **given,
            }
        )
        read(settings, 0)

    seeds = [text.encode() for _, _, _, text in tables]
    cell = st.one_of(st.sampled_from(CELLS), st.sampled_from(COLUMNS), st.text(max_size=6))
    row = st.lists(cell, min_size=1, max_size=6)
    header = st.permutations(COLUMNS).map(lambda names: list(names)[:6])
    made = st.builds(
        _written,
        header,
        st.lists(row, max_size=6),
        st.sampled_from(",;\t"),
        st.sampled_from(ENCODINGS),
    )
    choice = st.integers(0, len(CHOICES) - 1)
    others = [st.tuples(st.just(which), choice, nearly([seed])) for which, seed in enumerate(seeds)]
    return Target(
        root=root,
        cases=st.one_of(st.tuples(st.just(0), choice, made), *others),
        run=run,
        refused=(UserError,),
    )


def _written(header: list[str], rows: list[list[str]], delimiter: str, encoding: str) -> bytes:
    lines = [delimiter.join(cells) for cells in (header, *rows)]
    return "\n".join(lines).encode(encoding, errors="replace")


def _layouts(root: Path) -> list[Table]:
    """Folders of the data sets with one table each, and their images."""
    findings = ",".join(chexpert.FINDINGS)
    classes = ",".join((*isic2019.CLASSES, isic2019.UNKNOWN))
    empty = "," * (len(chexpert.FINDINGS) - 1)
    zeros = ",0" * len(isic2019.CLASSES)
    tables: list[Table] = [
        ("folder", folder.read, "table.csv", OWN),
        (
            "chexpert",
            chexpert.read,
            "train.csv",
            f"Path,{findings}\n"
            f"CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg,1{empty}\n"
            f"CheXpert-v1.0/train/patient00002/study1/view1_frontal.jpg,-1{empty}\n",
        ),
        (
            "isic2019",
            isic2019.read,
            isic2019.TRUTH,
            f"image,{classes}\nISIC_1,1{zeros}\nISIC_2,0,1{zeros[2:]}\n",
        ),
        (
            "isic-metadata",
            isic2019.read,
            isic2019.METADATA,
            "image,lesion_id\nISIC_1,L1\nISIC_2,\n",
        ),
        (
            "chestxray14",
            chestxray14.read,
            "Data_Entry_2017.csv",
            "Image Index,Finding Labels,Patient ID\n1.png,No Finding,1\n2.png,Mass|Edema,2\n",
        ),
        (
            "chestxray14-boxes",
            chestxray14.read,
            chestxray14.BOXES,
            "Image Index,Finding Label,Bbox [x,y,w,h]\n2.png,Mass,1.5,2,30,40\n",
        ),
    ]
    images = {
        "folder": ("a.png", "b.png", "c, d.png"),
        "chexpert": tuple(
            f"train/patient0000{number}/study1/view1_frontal.jpg" for number in (1, 2)
        ),
        "isic": ("ISIC_1.jpg", "ISIC_2.jpg"),
        "chestxray14": ("1.png", "2.png"),
    }
    for place, _, name, text in tables:
        (root / place).mkdir()
        for image in next(names for key, names in images.items() if place.startswith(key)):
            (root / place / image).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4)).save(root / place / image)
        (root / place / name).write_text(text)
        # The other table of a data set stays as it is.
        for other, _, its_name, its_text in tables:
            if other.split("-")[0][:4] == place.split("-")[0][:4] and other != place:
                (root / place / its_name).write_text(its_text)
    (root / "folder" / "link.png").symlink_to(root.parent / "outside.png")
    return tables
