"""Prometheus metrics of a server or a site, at one port; off unless the environment names it."""

import os
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from deployment.status import Status
from mediffusion_core.common.audit_log import AuditLog, AuditTail
from mediffusion_core.common.errors import UserError
from mediffusion_core.common.logs import log

METRICS = "FED_MEDIFFUSION_METRICS"
"""Environment variable: HOST:PORT at which metrics are served over HTTP."""


def serve_metrics(folder: Path) -> None:
    """Serves the metrics of a folder, if the environment names an address.

    Args:
        folder: Of a server's newest run, or of a site's runs.

    Raises:
        UserError: if the address has another form, or can't be had.
    """
    given = os.environ.get(METRICS)
    if not given:
        return
    host, _, port = given.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"{METRICS} is {given}; allowed is HOST:PORT, such as 127.0.0.1:9100")
    registry = CollectorRegistry()
    registry.register(StatusCollector(folder, AuditLog.of_environment()))
    try:
        start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        raise UserError(f"{METRICS} is {given}: {error.strerror}") from None
    log.info(f"metrics: http://{given}/metrics")


class StatusCollector(Collector):
    """Reads the status at each scrape, and the new lines of the audit log."""

    def __init__(self, folder: Path, audit: AuditLog | None) -> None:
        """Takes the folder of a run or of a site's runs, and the audit log."""
        self._folder = folder
        self._tail = None if audit is None else AuditTail(audit.path)
        self._noted = Status()
        self._outcomes: Counter[tuple[str, str, str]] = Counter()

    def collect(self) -> Iterator[Metric]:
        """The metrics; those of the run are missing before the first one."""
        self._take_in()
        name = "fed_mediffusion_last_answer_timestamp_seconds"
        last = GaugeMetricFamily(name, "Time of the last answer.", labels=["site"])
        for site, answer in self._noted.answers.items():
            last.add_metric([site], datetime.fromisoformat(answer.time).timestamp())
        answers = CounterMetricFamily(
            "fed_mediffusion_answers", "Answers by outcome.", labels=["site", "kind", "outcome"]
        )
        for labels, count in self._outcomes.items():
            answers.add_metric(list(labels), count)
        try:
            status = Status.of_folder(self._folder, ())
        except UserError:
            status = Status()
        spent = GaugeMetricFamily(
            "fed_mediffusion_epsilon", "Largest epsilon of a patient.", labels=["site"]
        )
        for site, epsilon in (status.epsilon | self._noted.epsilon).items():
            spent.add_metric([site], epsilon)
        rounds = GaugeMetricFamily(
            "fed_mediffusion_round", "Number of the newest round.", labels=["stage"]
        )
        if status.stage:
            rounds.add_metric([status.stage], status.round)
        yield from (last, answers, spent, rounds)
        if status.free:
            yield GaugeMetricFamily(
                "fed_mediffusion_disk_free_bytes", "Bytes left on the disk.", status.free
            )

    def _take_in(self) -> None:
        for line in () if self._tail is None else self._tail.new_lines():
            self._noted.note(line.fields)
            if line.fields.get("event") in ("answer", "reply"):
                names = (str(line.fields.get(name)) for name in ("site", "kind", "outcome"))
                self._outcomes[tuple(names)] += 1  # type: ignore[index]
