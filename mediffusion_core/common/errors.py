"""Errors whose text is meant for the person at the keyboard."""


class UserError(Exception):
    """A mistake in what the user gave: one line that names it and says what is allowed."""


class LedgerError(UserError):
    """A privacy ledger that cannot be trusted. `code` may leave the site, the text may not."""

    def __init__(self, code: str, text: str) -> None:
        """Takes the code and the line for the person at the site."""
        super().__init__(f"{text} [{code}]")
        self.code = code


class BudgetSpent(UserError):  # noqa: N818 (it names a state of the site, not a fault)
    """What is asked for would take a patient past what the site allows. `code` may leave it."""

    code = "budget-spent"


class RefusedError(Exception):
    """A site will not answer, since the answer would tell more than it has agreed to."""
