"""Fuzzing of every boundary that reads untrusted input. `python -m fuzz` runs it."""

TARGETS = (
    "settings",
    "manifests",
    "tables",
    "images",
    "checkpoints",
    "messages",
    "compression",
)
"""One module each, with a function `target`."""
