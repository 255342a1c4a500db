"""One class for all the ways in which a column or the folders spell it."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

from mediffusion_core.data.checks.finding import Finding

_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*|,\d{1,2})?(?:e[+-]?\d\d?)?")
_JOINED = re.compile(r"(?<=\w)[-_‐‑–—](?=\w)")
FEW = 10
"""Classes or patients of several spellings that have a line each."""

_QUOTES = "'\"`´‘’“”"


def plain(text: str) -> str:
    """A text in composed characters, without quotation marks and blanks around it.

    Characters that have no shape, such as zero-width spaces, are left out.
    """
    visible = "".join(sign for sign in text if unicodedata.category(sign) != "Cf")
    return " ".join(unicodedata.normalize("NFC", visible).split()).strip(_QUOTES)


def number_in(text: str) -> Decimal | None:
    """The number that a text is, with a decimal point or comma; None where it is none."""
    return Decimal(text.replace(",", ".")) if _NUMBER.fullmatch(text.lower()) else None


def class_key(name: str) -> str:
    """One key for all spellings of a class: `1` and `1.0`, `Normal` and `normal `.

    So do `COVID-19`, `COVID_19` and `covid 19`. `HER2+` and `HER2-` share nothing.
    """
    text = _JOINED.sub(" ", plain(name).casefold())
    number = number_in(plain(name))
    if number is None:
        return text.rstrip(".") or text
    return str(int(number)) if number == int(number) else str(number.normalize())


def united(given: Iterable[str], classes: Sequence[str] | None) -> dict[str, str]:
    """Each spelling to the class that it means.

    Args:
        given: the spellings as often as they occur.
        classes: `data.classes`, whose own spellings stay apart where they share a key.

    Returns:
        To the one of `classes` that has the spelling's key, where there is one; without `classes`
        a whole number to its plain form, else to the spelling that occurs most.
    """
    counts = Counter(given)
    allowed: dict[str, list[str]] = {}
    for name in classes or sorted(counts, key=lambda name: (-counts[name], name)):
        allowed.setdefault(class_key(name), []).append(name)

    def meant(spelling: str) -> str:
        near = allowed.get(class_key(spelling), [])
        if classes is not None:
            return near[0] if len(near) == 1 and spelling not in classes else spelling
        key = class_key(spelling)
        return key if len(near) > 1 and key.lstrip("-").isdigit() else near[0]

    return {spelling: meant(spelling) for spelling in counts}


def spelling_findings(where: str, meant: Mapping[str, str], what: str = "class ") -> list[Finding]:
    """A line for each class, or for all patients or sites, with other spellings.

    Args:
        where: the column or the folders.
        meant: spelling -> the name it stands for.
        what: the kind of name, followed by a blank (`class `); empty for patients and sites.
    """
    others: dict[str, list[str]] = {}
    for spelling, name in meant.items():
        if spelling != name:
            others.setdefault(name, []).append(repr(spelling))
    lines = [
        f"{where}: read as {what}{name!r} is also {', '.join(spellings)}"
        for name, spellings in others.items()
    ]
    if len(lines) > FEW:
        lines = [f"{lines[0]}; so are {len(lines) - 1} others"]
    return [Finding("warning", line) for line in lines]
