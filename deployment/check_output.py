"""Output and exit status of `data check`, `site check` and `preflight`."""

from collections.abc import Iterable

from rich.console import Console

from mediffusion_core.data.checks.inspection import CheckResult

STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def report_checks(results: Iterable[CheckResult]) -> int:
    """Prints each result, then ready or not ready; returns 1 after an error, else 0."""
    console = Console(soft_wrap=True, highlight=False)
    wrong = False
    for result in results:
        style = STYLES[result.grade]
        console.print(f"[{style}]{result.grade:8}[/{style}]", end=" ")
        console.print(result.text, markup=False)
        wrong |= result.grade == "error"
    print("not ready" if wrong else "ready")
    return int(wrong)
