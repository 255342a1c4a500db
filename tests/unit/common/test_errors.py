"""Errors for the person at the keyboard: one line, whatever it quotes."""

import pickle

import pytest

from mediffusion_core.common.errors import LedgerError, UserError


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("seed=a\nb", r"seed=a\nb"),
        ("a\r\x85\u2028b", r"a\r\x85\u2028b"),
        ("\x1b[2Jgone\x07", r"\x1b[2Jgone\x07"),
        ("caf\udce9", r"caf\udce9"),
        ("Ödem, 浮腫, नमूना\u200d", "Ödem, 浮腫, नमूना\u200d"),
        ("C:\\new 'name'", "C:\\new 'name'"),
    ],
)
def test_a_users_mistake_is_one_line_that_no_terminal_obeys(given: str, line: str) -> None:
    assert str(UserError(given)) == line
    assert str(LedgerError("head-unreadable", given)) == f"{line} [head-unreadable]"


def test_errors_come_back_from_another_process() -> None:
    again = pickle.loads(pickle.dumps(UserError("a\nb")))
    assert (type(again), str(again)) == (UserError, r"a\nb")
