"""Files that take the place of others."""

import stat
from pathlib import Path

from mediffusion_core.common.files import unfinished, write_durably


def test_a_private_file_is_its_owners_alone_after_an_unfinished_write(tmp_path: Path) -> None:
    path = tmp_path / "records" / "tip"
    write_durably(path, b"old")
    unfinished(path).write_text("cut short, and readable by all")
    write_durably(path, b"new")
    assert path.read_bytes() == b"new" and list(path.parent.iterdir()) == [path]
    assert [stat.S_IMODE(one.stat().st_mode) for one in (path, path.parent)] == [0o600, 0o700]
