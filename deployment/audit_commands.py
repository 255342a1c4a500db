"""`fed-mediffusion audit verify` and `show`: the audit log of a server or a site."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from mediffusion_core.common.audit_log import EMPTY, AuditLog, Line, read_lines
from mediffusion_core.common.errors import AuditError, UserError
from mediffusion_core.common.hash_chain import Tip, read_tip


def verify_audit(files: Sequence[Path], against: str | None) -> str:
    """Checks the chain of a log, and that it ends with its tip.

    Args:
        files: The log's files, oldest first; the tip is beside the last one.
        against: COUNT:DIGEST of a tip that was kept elsewhere.

    Returns:
        One line.

    Raises:
        UserError: if a file can't be read, or `against` has another form.
        AuditError: if the log fails verification.
    """
    try:
        known = Tip.parse(against) if against else None
    except ValueError as error:
        raise UserError(f"--against {against}: {error}") from None
    lines = list(read_lines(files))
    end = _tip_of(lines)
    _refuse_cut_off(AuditLog(files[-1]), lines, end)
    if known is not None and known not in map(_tip, lines):
        raise AuditError(f"the log has no entry with the tip {known}")
    first = lines[0].number if lines else 1
    whole = "" if first == 1 else f"; entries before {first} are in files that were not given"
    return f"sound: entries {first} to {end.count}, tip {end}{whole}"


def show_audit(files: Sequence[Path], run: str | None) -> Iterator[str]:
    """The entries of a log, verified, one line each.

    Args:
        files: The log's files, oldest first.
        run: Shows the entries of this run alone.

    Raises:
        OSError: if a file can't be read.
        AuditError: at the first entry that fails verification.
    """
    for line in read_lines(files):
        if run is None or line.fields.get("run") == run:
            shown = {name: value for name, value in line.fields.items() if value is not None}
            time, event = shown.pop("time", ""), shown.pop("event", "")
            rest = " ".join(f"{name}={_text(value)}" for name, value in shown.items())
            yield f"{line.number} {_text(time)} {_text(event)} {rest}"


def _text(value: object) -> str:
    text = str(value)
    return text if text.isprintable() and " " not in text else repr(text)


def _tip(line: Line) -> Tip:
    return Tip(line.number, line.digest)


def _tip_of(lines: Sequence[Line]) -> Tip:
    return _tip(lines[-1]) if lines else Tip(0, EMPTY)


def _refuse_cut_off(log: AuditLog, lines: Sequence[Line], end: Tip) -> None:
    """Refuses a log that does not end with its tip; a killed process may leave one line more."""
    try:
        kept = read_tip(log.tip_path)
    except ValueError as error:
        raise AuditError(f"{log.tip_path}: {error}") from None
    if kept is None:
        raise AuditError(f"the tip {log.tip_path} is gone")
    behind = _tip_of(lines[:-1]) if len(lines) > 1 else None
    if kept not in (end, behind):
        raise AuditError(
            f"{log.path} ends with entry {end.count}, its tip is of entry {kept.count}: entries "
            "were cut off or changed, or the file is an older copy"
        )
