"""Fonts for names in any script: matplotlib's, those of packages, those of the system."""

from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import matplotlib
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.ft2font import FT2Font

OWN = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
"""DejaVu: Latin, Greek, Cyrillic, Hebrew, Armenian and Georgian."""

PACKAGES = (
    "noto_cjk_sans_jp_regular", "fontpkg_noto_sans_arabic", "fontpkg_noto_sans_devanagari",
    "fontpkg_noto_sans_tamil", "fontpkg_noto_sans_thai",
)  # fmt: skip
"""Those of the extra `fonts`."""

SYSTEM = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "Droid Sans Fallback", "Microsoft YaHei", "Noto Sans Devanagari",
    "Noto Sans Thai", "Noto Sans Arabic", "Unifont",
)  # fmt: skip
"""Families that a computer may have."""


@cache
def families() -> list[str]:
    """Families of fonts in the order in which matplotlib looks for a character."""
    found = ["DejaVu Sans"]
    for path in of_packages():
        before = len(fontManager.ttflist)
        fontManager.addfont(path)
        # They have one weight, which stands in for bold: matplotlib would warn at every title.
        bold = [replace(font, weight=700) for font in fontManager.ttflist[before:]]
        fontManager.ttflist.extend(bold)
        found.append(FontProperties(fname=path).get_name())
    there = {font.name for font in fontManager.ttflist}
    return list(dict.fromkeys([*found, *(name for name in SYSTEM if name in there)]))


def font_for(text: str, *, bold: bool = False) -> Path:
    """The file of the first font that has all characters of a text, else of the usual one."""
    usual = OWN / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
    system = [Path(font.fname) for font in fontManager.ttflist if font.name in SYSTEM]
    for path in (usual, *of_packages(), *system):
        font = FT2Font(str(path))
        if all(font.get_char_index(ord(sign)) for sign in text):
            return path
    return usual


def of_packages() -> list[Path]:
    """Font files of the packages that are installed."""
    specs = [find_spec(name) for name in PACKAGES]
    folders = [Path(place) for spec in specs for place in
               (spec and spec.submodule_search_locations) or ()]  # fmt: skip
    return sorted(path for folder in folders for path in folder.rglob("*.[to]tf"))
