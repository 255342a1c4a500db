"""A secret in a site's paths, files, patients, environment and errors leaves with no message."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Context, RecordDict
from unit.client.test_site_policy import CLASSES, OPEN, described_site

from client.client_app import app
from client.site import site_log
from client.trainer.plain import PlainTrainer
from configs.compose import compose, flatten
from mediffusion_core.common.audit_log import AUDIT
from mediffusion_core.messaging.protocol import AUTOENCODER
from mediffusion_core.run_io.run_folder import RunFolder
from server.server_app import serve
from simulations.engine.in_process import FIRST_SITE, RUN, SitesHere, _order

SECRET = "Mustermann"
NAMES = ("st-anna", "uni", "west")


class Hospitals(SitesHere):
    """Deployed sites with their own files, which keep every message that leaves them."""

    nodes: Mapping[int, dict[str, Any]]
    sent: list[RecordDict]

    def _answer(
        self, kind: str, round_number: int, index: int, records: Mapping[str, ArrayRecord]
    ) -> RecordDict:
        message = _order(kind, self._hash, records, index, round_number)
        node = self.nodes[index]
        context = Context(RUN, FIRST_SITE + index, node, RecordDict(), dict(self._run_config))
        reply = app(message, context).content
        # The server takes the arrays out of a reply as it decodes them.
        self.sent.append(RecordDict({name: _copied(record) for name, record in reply.items()}))
        return reply


def _copied(record: Any) -> Any:
    return type(record)(dict(record))


def spelled(content: RecordDict) -> bytes:
    """All that a message holds."""
    parts = []
    for name, record in content.items():
        parts.append(name.encode())
        for key, value in record.items():
            data = value.data if isinstance(record, ArrayRecord) else str(value).encode()
            parts += [str(key).encode(), data]
    return b"\n".join(parts)


def hits(content: bytes) -> int:
    encoded = base64.b64encode(SECRET.encode()).rstrip(b"=")[:-1]
    return content.lower().count(SECRET.lower().encode()) + content.count(encoded)


def planted(folder: Path, name: str) -> dict[str, Any]:
    """A site whose folder, files and patients have the secret in their names."""
    node = described_site(folder / SECRET, name, policy=f"{OPEN}\n")
    file = Path(node["site-file"])
    file.write_text(
        file.read_text().replace("[data.columns]", "test_fraction = 0.5\n[data.columns]")
    )
    images = folder / SECRET / name / "images"
    for image in images.glob("*.png"):
        image.rename(image.with_name(f"{SECRET}-{image.name}"))
    head, *rows = (images / "labels.csv").read_text().splitlines()
    renamed = [f"{SECRET}-{row}".replace(",p", f",{SECRET}-p") for row in rows]
    (images / "labels.csv").write_text("\n".join([head, *renamed]) + "\n")
    return node


def fail(*_: Any) -> Any:
    raise RuntimeError(f"no image {SECRET}.png of patient {SECRET}")


def test_nothing_of_it_is_in_any_message_or_at_the_server(
    shortest: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / SECRET / "data"))
    monkeypatch.setenv("HOSPITAL", SECRET)
    monkeypatch.setenv(AUDIT, str(tmp_path / "audit.jsonl"))
    nodes = {index: planted(tmp_path, name) for index, name in enumerate(NAMES)}
    # One site fails in training, and a second one can't even write its log.
    trained = PlainTrainer.autoencoder_round

    def training(trainer: PlainTrainer, components: Any, round_number: int) -> Any:
        site = trainer.site
        if site.name == NAMES[0]:
            return trained(trainer, components, round_number)
        if site.name == NAMES[2]:
            site_log(site.folder).handlers.clear()
            (site.folder / "site.log").unlink(missing_ok=True)
            (site.folder / "site.log").mkdir()
        return fail()

    monkeypatch.setattr(PlainTrainer, "autoencoder_round", training)
    public = described_site(tmp_path, "public")
    run = (
        *(one for one in shortest if not one.startswith("data.")),
        "data=folder",
        f"data.root='{Path(public['site-file']).parent / 'images'}'",
        "data.table=labels.csv",
        "data.columns.patient=patient",
        f"data.store='{tmp_path / 'store'}'",
        f"data.classes=[{','.join(CLASSES)}]",
        "data.image_size=32",
        "data.channels=1",
        "data.test_fraction=0.5",
        "training.autoencoder.local_epochs=1",
        "training.joint.local_epochs=1",
        "evaluation.counterfactual.count=2",
        "evaluation.num_bootstraps=2",
        "federation.num_sites=3",
        "federation.min_sites=1",
        f"run.folder='{tmp_path / 'run'}'",
    )
    settings = compose("config", run)
    folder = RunFolder(tmp_path / "run")
    sites: list[Hospitals] = []

    def connect(contract: Any) -> Hospitals:
        sites.append(Hospitals("config", run, settings, contract))
        sites[0].nodes, sites[0].sent = nodes, []
        sites[0]._run_config = {"config-name": "config", "overrides": flatten(run)}
        return sites[0]

    serve(connect, settings, folder)

    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary["status"] == "completed" and set(summary["census"]) == set(NAMES)
    told = [(one["site"], one["reason"][:21]) for one in summary["set_aside"]]
    assert told == [(name, "failed: code internal") for name in NAMES[1:]]
    assert AUTOENCODER in sites[0].sent[3]
    stored = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    stored[tmp_path / "audit.jsonl"] = (tmp_path / "audit.jsonl").read_bytes()
    assert len(stored) > 20 and len(sites[0].sent) > 12
    assert {str(path): count for path, text in stored.items() if (count := hits(text))} == {}
    assert [count for content in sites[0].sent if (count := hits(spelled(content)))] == []
    # The secret was there to be found.
    log = next((tmp_path / SECRET / "uni" / "runs").rglob("site.log"))
    assert hits(log.read_bytes()) > 0
