"""`fed-mediffusion site messages`: tables of a site's messages, from the protocol."""

from collections.abc import Sequence
from pathlib import Path

from mediffusion_core.messaging.disclosure import ANSWERS, WITH_ANY
from mediffusion_core.reporting.marked_sections import replace_sections
from mediffusion_core.settings.allowed_metrics import ALLOWED_METRICS

OPEN = ("message", "content", "privacy risk", "protection")
PRIVATE = ("message", "content", "charge, as (q, σ)")


def message_tables() -> str:
    """Two tables in Markdown: with privacy off, and with differential privacy."""
    plain = [
        (answer.name, answer.content, answer.risk, answer.protection) for answer in ANSWERS.values()
    ]
    private = [(answer.name, answer.private, answer.charge) for answer in ANSWERS.values()]
    metrics = ", ".join(f"`{name}`" for name in sorted(ALLOWED_METRICS))
    return "\n\n".join(
        [
            "With `privacy=off`, the default, replies have no noise:",
            _table(OPEN, plain),
            "With `privacy=dp`, where q is the sample rate and σ the noise multiplier:",
            _table(PRIVATE, private),
            "In reply to any message a site may also send:",
            "\n".join(f"- {text}." for text in WITH_ANY.values()),
            f"The allow-list of metrics: {metrics}.",
        ]
    )


def write_message_tables(document: Path) -> Path:
    """Writes the tables between the document's `messages` marks.

    Raises:
        UserError: if the document has no such marks.
    """
    replace_sections({document: {"messages": message_tables()}})
    return document


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
