"""Errors whose text is meant for the person at the keyboard."""

import unicodedata

UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories: control characters, surrogates, ends of lines and of paragraphs."""


class UserError(Exception):
    """A user's mistake: one line that names it and the allowed values.

    The text may quote files and values from elsewhere, so line breaks and control characters, which
    a terminal would obey, become escapes.
    """

    def __init__(self, text: str) -> None:
        """Takes the line."""
        super().__init__("".join(map(_shown, text)))


def _shown(sign: str) -> str:
    return repr(sign)[1:-1] if unicodedata.category(sign) in UNPRINTABLE else sign


class LedgerError(UserError):
    """A privacy ledger that cannot be trusted. `code` may leave the site, the text may not."""

    def __init__(self, code: str, text: str) -> None:
        """Takes the code and the line for the person at the site."""
        super().__init__(f"{text} [{code}]")
        self.code = code


class AuditError(UserError):
    """An audit log that can't be written or fails verification. The text may not leave a site."""


class RefusedError(Exception):
    """A site will not answer, since the answer would tell more than it has agreed to."""
