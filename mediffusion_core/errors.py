"""Errors whose text is meant for the person at the keyboard."""


class UserError(Exception):
    """A mistake in what the user gave: one line that names it and says what is allowed."""
