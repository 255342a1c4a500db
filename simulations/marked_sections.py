"""Sections of a document that a command writes, each between two marks."""

from collections.abc import Mapping
from pathlib import Path

from mediffusion_core.errors import UserError


def replace_sections(document: Path, sections: Mapping[str, str]) -> None:
    """Replaces what stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`, all or none.

    Raises:
        UserError: the document can't be read, or has not both marks, in this order, once.
    """
    try:
        text = document.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{document} cannot be read ({error.strerror})") from None
    for name, section in sections.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if text.count(begin) != 1 or text.find(end) < text.find(begin):
            raise UserError(f"{document} needs the marks {begin} and {end}, in this order, once")
        before, _, rest = text.partition(begin)
        after = rest.partition(end)[2]
        text = f"{before}{begin}\n{section}\n{end}{after}"
    document.write_text(text, encoding="utf-8")
