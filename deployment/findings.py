"""Output and exit status of `data check`, `site check` and `preflight`."""

from collections.abc import Iterable

from rich.console import Console

from mediffusion_core.data.checks.inspection import Finding

STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def report_findings(findings: Iterable[Finding]) -> int:
    """Prints each finding, then ready or not ready; returns 1 after an error, else 0."""
    console = Console(soft_wrap=True, highlight=False)
    wrong = False
    for finding in findings:
        style = STYLES[finding.grade]
        console.print(f"[{style}]{finding.grade:8}[/{style}]", end=" ")
        console.print(finding.text, markup=False)
        wrong |= finding.grade == "error"
    print("not ready" if wrong else "ready")
    return int(wrong)
