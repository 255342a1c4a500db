"""Byte strings that are nearly valid: a seed with a few edits."""

from collections.abc import Sequence

import hypothesis.strategies as st
from hypothesis.strategies import SearchStrategy

Edit = tuple[str, int, bytes]
"""What is done, where (modulo the length), and with which bytes."""

KINDS = ("set", "insert", "delete", "cut", "repeat", "flip")
NUMBERS = (
    b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\x80\0\0\0", b"\xff" * 8, b"\xff" * 7 + b"\x7f",
)  # fmt: skip
"""The ends of the ranges of integers."""

EDITS = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.integers(0, 2**16),
        st.one_of(st.sampled_from(NUMBERS), st.binary(min_size=1, max_size=8)),
    ),
    max_size=4,
)


def edited(content: bytes, edits: Sequence[Edit]) -> bytes:
    """Applies edits one after the other."""
    for kind, where, given in edits:
        place = where % (len(content) + 1)
        head, tail = content[:place], content[place:]
        if kind == "set":
            content = head + given + tail[len(given) :]
        elif kind == "insert":
            content = head + given + tail
        elif kind == "delete":
            content = head + tail[given[0] + 1 :]
        elif kind == "cut":
            content = head
        elif kind == "repeat":
            content = head + tail[: given[0]] * 2 + tail[given[0] :]
        elif tail:
            content = head + bytes([tail[0] ^ (1 << given[0] % 8)]) + tail[1:]
    return content


def nearly(seeds: Sequence[bytes]) -> SearchStrategy[bytes]:
    """Seeds with up to four edits, and some bytes that are no such thing at all."""
    changed = st.builds(edited, st.sampled_from(seeds), EDITS)
    return st.one_of(changed, changed, changed, st.binary(max_size=64))
