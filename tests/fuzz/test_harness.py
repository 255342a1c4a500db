"""The harness fails on every outcome but a result and a refusal, and a failing case is kept."""

import contextlib
import ctypes
import faulthandler
import socket
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest

from fuzz.harness import Board, Guard, Target, in_child, store, stored
from fuzz.mutations import edited
from mediffusion_core.common.errors import UserError

OUTSIDE = "/etc/hostname"


def outcome(root: Path, run: Callable[[object], object], case: object = 0) -> tuple[str, Board]:
    """The error that a case ends with, by its name, after a process of its own."""
    board, written = Board(), root / "error"
    target = Target(
        root,
        st.none(),
        run,
        (UserError, ValueError),
        seconds=0.2 if run is swallowed else 60.0,
        mebibytes=64,
    )

    def work() -> None:
        try:
            Guard(target, board)(case)
        except BaseException as error:
            written.write_text(type(error).__name__)
            raise

    wrong = in_child(board, work, 60.0)
    return written.read_text() if written.exists() else wrong or "", board


def refuse(case: object) -> None:
    raise UserError(str(case))


def two_lines(case: object) -> None:
    raise ValueError("two\nlines")


def swallowed(case: object) -> None:
    try:
        while True:
            pass
    except Exception:  # as decoders catch whatever a library raises
        pass


def look_outside(case: object) -> None:
    with contextlib.suppress(Exception):
        Path(OUTSIDE).read_bytes()


def crash(case: object) -> None:
    faulthandler.disable()  # pytest's would print the stack of this test
    ctypes.string_at(0)


def connect(case: object) -> None:
    with socket.socket() as one:
        one.settimeout(0.01)
        one.connect_ex(("127.0.0.1", 9))


@pytest.mark.parametrize(
    ("run", "error"),
    [
        (lambda case: None, ""),
        (refuse, ""),
        (lambda case: {}[case], "KeyError"),
        (two_lines, "ForbiddenError"),
        (swallowed, "HangError"),
        (look_outside, "ForbiddenError"),
        (connect, "ForbiddenError"),
        (lambda case: bytes([1]) * 2**27, "ForbiddenError"),
        (crash, "the process ended by SIGSEGV"),
    ],
)
def test_each_outcome(tmp_path: Path, run: Callable[[object], object], error: str) -> None:
    assert outcome(tmp_path, run)[0] == error


def test_results_and_refusals_are_counted(tmp_path: Path) -> None:
    for run, counts in ((lambda case: None, (1, 0)), (refuse, (0, 1))):
        board = outcome(tmp_path, run)[1]
        assert (board.accepted, board.refused) == counts


def test_the_case_of_a_crash_is_kept_and_can_be_replayed(tmp_path: Path) -> None:
    case = (1, b"\xff\0", "é\n", None, [-0.5])
    _, board = outcome(tmp_path, crash, case)
    assert stored(store(tmp_path, "images", board.case)) == ("images", case)


def test_edits_change_bytes_where_they_say() -> None:
    assert edited(b"abcd", [("set", 1, b"X")]) == b"aXcd"
    assert edited(b"abcd", [("insert", 5 + 1, b"XY")]) == b"aXYbcd"
    assert edited(b"abcd", [("delete", 1, b"\1")]) == b"ad"
    assert edited(b"abcd", [("cut", 2, b"X")]) == b"ab"
    assert edited(b"abcd", [("repeat", 1, b"\2")]) == b"abcbcd"
    assert edited(b"abcd", [("flip", 0, b"\1"), ("flip", 4, b"\1")]) == b"cbcd"
