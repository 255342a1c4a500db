"""A section of a document that a command writes, between two marks."""

from pathlib import Path

from mediffusion_core.errors import UserError


def replace_section(document: Path, name: str, section: str) -> None:
    """Replaces what stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`.

    Raises:
        UserError: the document can't be read, or has not both marks, in this order, once.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    try:
        text = document.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{document} cannot be read ({error.strerror})") from None
    if text.count(begin) != 1 or text.find(end) < text.find(begin):
        raise UserError(f"{document} needs the marks {begin} and {end}, in this order, once")
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    document.write_text(f"{before}{begin}\n{section}\n{end}{after}", encoding="utf-8")
