"""What server and site must both know: kinds of message, names of records, what may leave.

Neither side imports the other; this is the one place where they agree.
"""

from collections.abc import Collection, Mapping

from mediffusion_core.settings.allowed_metrics import ALLOWED_METRICS

CENSUS = "query.census"
"""Site replies with its counts, and nothing else."""
TRAIN_AUTOENCODER = "train.autoencoder"
"""Server sends `AUTOENCODING`; site trains it on all its images and replies with the same."""
LATENT_CENSUS = "query.latents"
"""Server sends the trained autoencoder; site replies with per-channel sums over its latents."""
ENCODE = "query.encode"
"""Server sends autoencoder and latent scale; site encodes its images and keeps the latents."""
TRAIN_JOINT = "train.joint"
"""Server sends `JOINT`; site trains it on its latents and replies with the same components. With
`training.joint.control_variates` those of `CONTROLS` go both ways too."""
EVALUATE = "evaluate.joint"
"""Server sends UNet and head; site replies with sums over its validation patients: confusion
counts, and losses at several temperatures."""

AUTOENCODER = "autoencoder"
UNET = "unet"
HEAD = "head"
AUTOENCODER_MOMENTS = "autoencoder_moments"
"""Adam's moments of the autoencoder, named as in `messaging.moment_names`."""
UNET_MOMENTS = "unet_moments"
HEAD_MOMENTS = "head_moments"

EMA = "ema_"
"""Before a component's name: the server's moving average of its global weights."""
EMA_UNET = EMA + UNET
EMA_HEAD = EMA + HEAD
"""Go to the sites beside `JOINT` where they teach, on unlabelled images."""

LABEL_COUNTS = "label_counts"
"""Sums over the sites' census, named as in `training.label_counts`. Goes to the sites beside
`JOINT` where the objective needs it."""

AUTOENCODING = (AUTOENCODER, AUTOENCODER_MOMENTS)
"""What the autoencoder stage trains, and what travels in each of its rounds."""
JOINT = (UNET, HEAD, UNET_MOMENTS, HEAD_MOMENTS)
"""The same of the joint stage."""

TRAINING = (TRAIN_AUTOENCODER, TRAIN_JOINT)
"""Kinds of message of which there is one for each round."""
COMPRESSED = frozenset({*AUTOENCODING, *JOINT, EMA_UNET, EMA_HEAD})
"""Components that `federation.compression` holds for, in messages of `TRAINING`. What is judged,
encoded or counted travels whole, as do control variates."""

CONTROLS = {UNET: "unet_control", HEAD: "head_control"}
"""SCAFFOLD's part of each component: to a site goes what is added to its gradients, back comes the
mean of its gradients before that."""

INSTRUCTIONS = "instructions"
"""ConfigRecord from the server: settings hash, round, and what the kind of message needs."""
IDENTITY = "identity"
"""ConfigRecord from a site in reply to the census: its name."""
ANSWERS_TO = "answers_to"
"""ConfigRecord from a site beside each answer: kind, round and settings hash of the message that it
answers, so that a late or repeated answer shows."""
METRICS = "metrics"
"""MetricRecord from a site: the census, or what `ALLOWED_METRICS` lets through."""
COUNTS = "counts"
"""ArrayRecord from a site: confusion counts and losses, or sums over latents."""
FAILURE = "failure"
"""ConfigRecord from a site that could not do its work: a code and a random id, never a text."""

LEDGER_HEAD = "ledger_head"
"""ArrayRecord both ways where a run is private: the head of the site's privacy ledger, which the
server keeps and sends with its next message, so that an older copy of the ledger shows. A site
sends it with every reply; its digest is keyed by the site's salt, and tells the number of entries
and no more."""
BUDGET = "budget"
"""The code of a failure that ends a site's part in the run: its patients have spent what the site
allows."""

WEIGHTED_BY = {
    AUTOENCODER: "images_seen",
    UNET: "images_seen",
    HEAD: "labelled_seen",
    AUTOENCODER_MOMENTS: "images_seen",
    UNET_MOMENTS: "images_seen",
    HEAD_MOMENTS: "labelled_seen",
}
"""By which metric each component is averaged over the sites."""


def allowed(
    metrics: Mapping[str, float], by_site: Collection[str] = ALLOWED_METRICS
) -> dict[str, float]:
    """The metrics that may leave a site: those of the list, as far as the site's own has them."""
    names = ALLOWED_METRICS & set(by_site)
    return {name: float(value) for name, value in metrics.items() if name in names}


def answered(kind: str, instructions: Mapping[str, object]) -> dict[str, str | int]:
    """The entries of `ANSWERS_TO` in the reply to such a message."""
    number, settings_hash = instructions.get("round"), instructions.get("settings_hash")
    return {
        "kind": kind,
        "round": number if isinstance(number, int) else -1,
        "settings_hash": settings_hash if isinstance(settings_hash, str) else "",
    }


BOOTSTRAP_THRESHOLDS = 400
"""Thresholds of the bootstrapped counts; fewer than of the counts, whose AUC is reported."""


FROM_SERVER = frozenset({INSTRUCTIONS, LABEL_COUNTS, EMA_UNET, EMA_HEAD})
"""Records that only ever go to the sites. They hold what the sites sent, averaged or added up."""
