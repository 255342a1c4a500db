"""The words of a file's or folder's name, however they are joined."""

import re

_WORD = re.compile(r"[^\W\d_]+|\d+")


def words_of(name: str) -> list[str]:
    """Words and numbers in small letters: `leftMask_01 (2)` has left, mask, 01 and 2."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return _WORD.findall(spaced.casefold())
