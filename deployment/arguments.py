"""Options of Flower's programs, read from their command line."""

from collections.abc import Sequence


def option_value(arguments: Sequence[str], option: str) -> str | None:
    """The value of `--option=value` or `--option value`; None without the option."""
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
        if argument == option and position + 1 < len(arguments):
            return arguments[position + 1]
    return None
