"""The site's side of the federation.

An exception leaves the site as a failure (`client.failures`); its text stays in the site's own log.
"""

from collections.abc import Callable

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from client import audit, latent_cache, privacy_budget
from client.declared_content import refuse_undeclared
from client.failures import Failure, OtherSettingsError, asked, failure, instructions
from client.model_evaluation import model_sums
from client.secure_round import RoundFile
from client.site import Site, open_site
from client.site_policy import refuse_kind
from client.statistics import statistics as site_statistics
from client.trainer import Components, Metrics, StateDict, Trainer, trainer_of
from mediffusion_core.common.machine import return_freed_memory
from mediffusion_core.messaging import protocol
from mediffusion_core.messaging.compression import (
    component_compression,
    compress_change,
    decompress_weights,
)
from mediffusion_core.messaging.omission import left_out, unchanged, with_zero_moments, without
from mediffusion_core.messaging.serialization import FORMAT, pack, unpack
from mediffusion_core.settings import Compression

Handler = Callable[[Trainer, RecordDict], RecordDict]


def _return_memory(message: Message, context: Context, answer: ClientAppCallable) -> Message:
    """Answers, and returns freed memory, since the site then waits for the other ones."""
    reply = answer(message, context)
    return_freed_memory()
    return reply


app = ClientApp(mods=[_return_memory])


def _answer(handler: Handler) -> Callable[[Message, Context], Message]:
    """Wraps a handler: checks settings and ledger, and lets no error text out."""

    def answer(message: Message, context: Context) -> Message:
        site: Site | None = None
        failed: Failure | None = None
        try:
            site = open_site(context)
            trainer = trainer_of(site)
            expected = str(instructions(message.content)["settings_hash"])
            if expected != site.settings.fingerprint():
                raise OtherSettingsError(f"{expected} at the server")
            with site.held():
                content = _handled(handler, trainer, message)
        except Exception as error:
            failed = failure(error, message, context, site)
            content = failed.content()
        try:
            audit.write_answer(message, context.run_id, site, failed)
        except Exception as error:
            content = failure(error, message, context, site).content()
        content[protocol.ANSWERS_TO] = ConfigRecord({**asked(message)})
        return Message(content, reply_to=message)

    return answer


def _handled(handler: Handler, trainer: Trainer, message: Message) -> RecordDict:
    """The handler's declared reply and the ledger's tip; an older ledger is refused first."""
    site, content, kind = trainer.site, message.content, message.metadata.message_type
    refuse_kind(site.settings, kind)
    if protocol.LEDGER_TIP in content.array_records:
        privacy_budget.refuse_older_ledger(site, _state(content, protocol.LEDGER_TIP))
        del content[protocol.LEDGER_TIP]
    reply = handler(trainer, content)
    refuse_undeclared(kind, reply, site.settings.privacy.enabled)
    if tip := trainer.ledger_tip():
        reply[protocol.LEDGER_TIP] = _record(tip)
    latent_cache.forget_after(site, kind, _round(content))
    return reply


def _state(content: RecordDict, component: str, method: Compression = "none") -> StateDict:
    # The message's own bytes are let go of as they are decoded.
    state = unpack(content.array_records[component].pop(FORMAT).data)
    came = {name: value for name, value in state.items() if name not in left_out(state)}
    return decompress_weights(came, component_compression(component, method))


def _components(content: RecordDict, method: Compression) -> dict[str, StateDict]:
    """All components of a message of training."""
    came = {name: _state(content, name, method) for name in content.array_records}
    for weights, moments in protocol.MOMENTS.items():
        if moments in came:
            came[moments] = with_zero_moments(came[moments], came[weights])
    return came


def _record(state: StateDict) -> ArrayRecord:
    return ArrayRecord({FORMAT: Array(*pack(state))})


def _trained(
    trainer: Trainer,
    content: RecordDict,
    train: Callable[[Components, int], tuple[dict[str, StateDict], Metrics]],
) -> RecordDict:
    """The answer to a message of training: weights by the run's compression, allowed metrics."""
    method = trainer.site.settings.federation.compression
    sent = _components(content, method)
    trained, metrics = train(sent, _round(content))
    records = {}
    for component, state in trained.items():
        before = sent[component] if component in protocol.COMPRESSED else {}
        travelling = compress_change(state, before, component_compression(component, method))
        records[component] = _record(without(travelling, unchanged(state, before)))
    allowed = protocol.allowed(metrics, trainer.site.policy.allowed_metrics)
    return RecordDict({**records, protocol.METRICS: MetricRecord({**allowed})})


def _round(content: RecordDict) -> int:
    return int(str(instructions(content)["round"]))


@app.query("census")
@_answer
def census(trainer: Trainer, content: RecordDict) -> RecordDict:
    """Replies with the site's name and its counts."""
    return RecordDict(
        {
            protocol.IDENTITY: ConfigRecord({"site": trainer.site.name}),
            protocol.METRICS: MetricRecord({**trainer.census()}),
        }
    )


@app.train("autoencoder")
@_answer
def train_autoencoder(trainer: Trainer, content: RecordDict) -> RecordDict:
    """Replies with the autoencoder and its moments after a local round."""
    return _trained(trainer, content, trainer.autoencoder_round)


@app.query("latents")
@_answer
def latents(trainer: Trainer, content: RecordDict) -> RecordDict:
    """Replies with sums over the site's latents."""
    sums = trainer.latent_sums(_state(content, protocol.AUTOENCODER))
    return RecordDict({protocol.COUNTS: _record(sums)})


@app.query("features")
@_answer
def features(trainer: Trainer, content: RecordDict) -> RecordDict:
    """Replies with sums over a public encoder's features of the site's images."""
    return RecordDict({protocol.COUNTS: _record(trainer.feature_sums())})


@app.query("encode")
@_answer
def encode(trainer: Trainer, content: RecordDict) -> RecordDict:
    """Keeps the site's latents for the joint stage; the reply is empty."""
    aligned = protocol.WHITENING in content.array_records
    whitening = _state(content, protocol.WHITENING) if aligned else None
    trainer.encode(_state(content, protocol.AUTOENCODER), whitening)
    return RecordDict()


@app.train("joint")
@_answer
def train_joint(trainer: Trainer, content: RecordDict) -> RecordDict:
    """Replies with UNet, head and their moments after a local round, or with a masked sum."""
    if trainer.site.settings.privacy.secure_aggregation.enabled:
        return _masked(trainer, content)
    return _trained(trainer, content, trainer.joint_round)


def _masked(trainer: Trainer, content: RecordDict) -> RecordDict:
    """The answer with secure aggregation; charged only if the shares allow to mask it."""
    number = _round(content)
    file, dealt = RoundFile(trainer.site, number), _state(content, protocol.DEALT)
    file.refuse(dealt)
    unet, head = (_state(content, component) for component in (protocol.UNET, protocol.HEAD))
    masked = file.mask(dealt, trainer.joint_sum(unet, head, number))
    return RecordDict({protocol.MASKED: _record(masked)})


@app.query("keys")
@_answer
def keys(trainer: Trainer, content: RecordDict) -> RecordDict:
    """Begins a round of secure aggregation; replies with public keys."""
    file = RoundFile(trainer.site, _round(content))
    return RecordDict({protocol.PUBLIC_KEYS: _record(file.advertise())})


@app.query("shares")
@_answer
def shares(trainer: Trainer, content: RecordDict) -> RecordDict:
    """Replies with sealed shares for the other sites of the roster."""
    file = RoundFile(trainer.site, _round(content))
    return RecordDict({protocol.DEALT: _record(file.deal(_state(content, protocol.ROSTER)))})


@app.query("unmask")
@_answer
def unmask(trainer: Trainer, content: RecordDict) -> RecordDict:
    """Replies with shares that take the masks off the sum; the round's secrets are deleted."""
    file = RoundFile(trainer.site, _round(content))
    return RecordDict({protocol.REVEALED: _record(file.reveal(_state(content, protocol.ANSWERED)))})


@app.evaluate("joint")
@_answer
def evaluate(trainer: Trainer, content: RecordDict) -> RecordDict:
    """Replies with confusion counts and losses, summed over the site's validation patients."""
    unet, head = (_state(content, component) for component in (protocol.UNET, protocol.HEAD))
    counts = trainer.validation_counts(unet, head, _round(content))
    return RecordDict({protocol.COUNTS: _record(counts)})


@app.evaluate("model")
@_answer
def evaluate_model(trainer: Trainer, content: RecordDict) -> RecordDict:
    """Replies with sums over the site's evaluated patients and over their subgroups."""
    model = {component: _state(content, component) for component in protocol.MODEL}
    return RecordDict({protocol.COUNTS: _record(model_sums(trainer.site, model))})


@app.query("statistics")
@_answer
def statistics(trainer: Trainer, content: RecordDict) -> RecordDict:
    """Replies with counts and histograms over the site's images."""
    return RecordDict({protocol.COUNTS: _record(site_statistics(trainer.site))})
