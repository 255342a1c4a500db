"""Sections of documents that a command writes, each between two marks."""

from collections.abc import Mapping
from pathlib import Path

from mediffusion_core.common.errors import UserError


def replace_sections(documents: Mapping[Path, Mapping[str, str]]) -> None:
    """Replaces the text between `<!-- NAME: begin -->` and `<!-- NAME: end -->`, all or none.

    Args:
        documents: Sections by document and name.

    Raises:
        UserError: a document can't be read, or has not both marks, in this order, once.
    """
    written = {}
    for document, sections in documents.items():
        text = _read(document)
        for name, section in sections.items():
            before, _, after = _parts(document, text, name)
            text = f"{before}\n{section}\n{after}"
        written[document] = text
    for document, text in written.items():
        document.write_text(text, encoding="utf-8")


def read_section(document: Path, name: str) -> str:
    """The text between the marks of a section.

    Raises:
        UserError: as `replace_sections`.
    """
    return _parts(document, _read(document), name)[1].strip("\n")


def _read(document: Path) -> str:
    try:
        return document.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{document} cannot be read ({error.strerror})") from None


def _parts(document: Path, text: str, name: str) -> tuple[str, str, str]:
    """The text up to the first mark, between both, and from the second on."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if text.count(begin) != 1 or text.find(end) < text.find(begin):
        raise UserError(f"{document} needs the marks {begin} and {end}, in this order, once")
    before, _, rest = text.partition(begin)
    section, _, after = rest.partition(end)
    return before + begin, section, end + after
