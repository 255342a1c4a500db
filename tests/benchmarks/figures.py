"""A figure of a benchmark is one JSON line."""

import json
import os

from mediffusion_core.run_io.provenance import current_commit


def report(figure: str, value: float, unit: str, **settings: object) -> None:
    """Prints a figure with its unit, and the settings that it belongs to."""
    line = {"figure": figure, "value": round(value, 3), "unit": unit, **settings}
    print(json.dumps({**line, "cores": os.cpu_count(), "commit": current_commit()}), flush=True)
