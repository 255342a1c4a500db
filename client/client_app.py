"""The site's side of the federation.

An exception leaves the site as a code and a random id; its text stays in the site's own log.
"""

import sys
import traceback
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client import latent_cache, privacy_budget, tasks
from client.site import Site, open_site, site_log
from mediffusion_core.common.errors import BudgetSpent, LedgerError, RefusedError, UserError
from mediffusion_core.messaging import protocol
from mediffusion_core.messaging.compression import arrived, change, method_of
from mediffusion_core.messaging.omission import left_out, unchanged, with_zero_moments, without
from mediffusion_core.messaging.serialization import FORMAT, pack, unpack
from mediffusion_core.privacy.dp_sgd.gradient_check import WrongGradientError
from mediffusion_core.settings import Compression

app = ClientApp()

Handler = Callable[[Site, RecordDict], RecordDict]


class _OtherSettingsError(Exception):
    """Server and site do not run the same settings."""


CODES: Mapping[type[Exception], str] = {
    BudgetSpent: protocol.BUDGET,
    RefusedError: "refused",
    WrongGradientError: "gradients",
    _OtherSettingsError: "settings",
    UserError: "data",
}
"""The code that leaves the site, by type of error; the first match counts."""


def _answer(handler: Handler) -> Callable[[Message, Context], Message]:
    """Wraps a handler: checks settings and ledger, and lets no error text out."""

    def answer(message: Message, context: Context) -> Message:
        folder: Path | None = None
        try:
            site = open_site(context)
            folder = site.folder
            expected = str(_instructions(message.content)["settings_hash"])
            if expected != site.settings.fingerprint():
                raise _OtherSettingsError(f"{expected} at the server")
            if protocol.LEDGER_HEAD in message.content.array_records:
                privacy_budget.refuse_older_ledger(
                    site, _state(message.content, protocol.LEDGER_HEAD)
                )
                del message.content[protocol.LEDGER_HEAD]
            content = handler(site, message.content)
            if site.settings.privacy.enabled:
                content[protocol.LEDGER_HEAD] = _record(privacy_budget.ledger_head(site))
        except Exception as error:
            content = _failure(error, folder)
        content[protocol.ANSWERS_TO] = _answered(message)
        return Message(content, reply_to=message)

    return answer


def _instructions(content: RecordDict) -> dict[str, object]:
    """Settings hash and round of a message; empty where it has none."""
    return dict(content.config_records.get(protocol.INSTRUCTIONS, {}))


def _answered(message: Message) -> ConfigRecord:
    """Which message the reply answers."""
    kind = message.metadata.message_type
    return ConfigRecord({**protocol.answered(kind, _instructions(message.content))})


def _failure(error: Exception, folder: Path | None) -> RecordDict:
    code = next((code for kind, code in CODES.items() if isinstance(error, kind)), "internal")
    if isinstance(error, LedgerError):
        code = error.code
    identity = uuid.uuid4().hex[:8]
    site_log(folder).error("%s %s\n%s", identity, error, traceback.format_exc())
    if folder is None:
        print(f"{identity} {error}", file=sys.stderr)
    return RecordDict({protocol.FAILURE: ConfigRecord({"code": code, "id": identity})})


def _state(content: RecordDict, component: str, method: Compression = "none") -> tasks.StateDict:
    # The message's own bytes are let go of as they are decoded.
    state = unpack(content.array_records[component].pop(FORMAT).data)
    came = {name: value for name, value in state.items() if name not in left_out(state)}
    return arrived(came, method_of(component, method))


def _components(site: Site, content: RecordDict) -> dict[str, tasks.StateDict]:
    """All that came with a message of training."""
    method = site.settings.federation.compression
    came = {name: _state(content, name, method) for name in content.array_records}
    for weights, moments in protocol.MOMENTS.items():
        if moments in came:
            came[moments] = with_zero_moments(came[moments], came[weights])
    return came


def _record(state: tasks.StateDict) -> ArrayRecord:
    return ArrayRecord({FORMAT: Array(*pack(state))})


def _trained(
    site: Site,
    sent: Mapping[str, tasks.StateDict],
    trained: Mapping[str, tasks.StateDict],
    metrics: Mapping[str, float],
) -> RecordDict:
    """The answer to a message of training: weights by the run's compression, allowed metrics."""
    method = site.settings.federation.compression
    records = {}
    for component, state in trained.items():
        before = sent[component] if component in protocol.COMPRESSED else {}
        travelling = change(state, before, method_of(component, method))
        records[component] = _record(without(travelling, unchanged(state, before)))
    allowed = protocol.allowed(metrics, site.allowed_metrics)
    return RecordDict({**records, protocol.METRICS: MetricRecord({**allowed})})


def _round(content: RecordDict) -> int:
    return int(str(_instructions(content)["round"]))


@app.query("census")
@_answer
def census(site: Site, content: RecordDict) -> RecordDict:
    """Replies with the site's name and its counts."""
    return RecordDict(
        {
            protocol.IDENTITY: ConfigRecord({"site": site.name}),
            protocol.METRICS: MetricRecord({**tasks.census(site)}),
        }
    )


@app.train("autoencoder")
@_answer
def train_autoencoder(site: Site, content: RecordDict) -> RecordDict:
    """Replies with the autoencoder and its moments after a local round."""
    sent = _components(site, content)
    trained, metrics = tasks.autoencoder_round(site, sent, _round(content))
    return _trained(site, sent, trained, metrics)


@app.query("latents")
@_answer
def latents(site: Site, content: RecordDict) -> RecordDict:
    """Replies with sums over the site's latents."""
    sums = tasks.latent_sums(site, _state(content, protocol.AUTOENCODER))
    return RecordDict({protocol.COUNTS: _record(sums)})


@app.query("encode")
@_answer
def encode(site: Site, content: RecordDict) -> RecordDict:
    """Keeps the site's latents for the joint stage; the reply is empty."""
    latent_cache.encode(site, _state(content, protocol.AUTOENCODER))
    return RecordDict()


@app.train("joint")
@_answer
def train_joint(site: Site, content: RecordDict) -> RecordDict:
    """Replies with UNet, head and their moments after a local round."""
    sent = _components(site, content)
    trained, metrics = tasks.joint_round(site, sent, _round(content))
    return _trained(site, sent, trained, metrics)


@app.evaluate("joint")
@_answer
def evaluate(site: Site, content: RecordDict) -> RecordDict:
    """Replies with confusion counts and losses, summed over the site's validation patients."""
    counts = tasks.validation_counts(
        site, _state(content, protocol.UNET), _state(content, protocol.HEAD), _round(content)
    )
    return RecordDict({protocol.COUNTS: _record(counts)})
