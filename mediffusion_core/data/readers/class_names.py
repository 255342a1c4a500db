"""One class for all the ways in which a column or the folders spell it."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from mediffusion_core.data.checks.finding import Finding


def class_key(name: str) -> str:
    """One key for all spellings of a class: `1` and `1.0`, `Normal` and `normal `."""
    text = " ".join(unicodedata.normalize("NFC", name).casefold().split())
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else text


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


def spelling_findings(where: str, meant: Mapping[str, str]) -> list[Finding]:
    """A line for each class that has other spellings."""
    others: dict[str, list[str]] = {}
    for spelling, name in meant.items():
        if spelling != name:
            others.setdefault(name, []).append(repr(spelling))
    return [
        Finding("warning", f"{where}: read as class {name!r} is also {', '.join(spellings)}")
        for name, spellings in others.items()
    ]
