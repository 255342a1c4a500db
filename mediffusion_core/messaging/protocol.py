"""The protocol of server and sites: kinds of message, names of records, allowed metrics.

Server and site do not import each other; both import this module.
"""

from collections.abc import Collection, Mapping

from mediffusion_core.settings.allowed_metrics import ALLOWED_METRICS

CENSUS = "query.census"
"""Site replies with its name and its counts."""
TRAIN_AUTOENCODER = "train.autoencoder"
"""Server sends `AUTOENCODING`; site trains it on all its images and replies with the same."""
LATENT_CENSUS = "query.latents"
"""Server sends the trained autoencoder; site replies with sums per channel over its latents."""
FEATURE_CENSUS = "query.features"
"""With `training.joint.alignment`: site replies with sums over a public encoder's features."""
ENCODE = "query.encode"
"""Server sends autoencoder and latent scale, with `training.joint.alignment` the `WHITENING` too;
site encodes its images and keeps the latents."""
TRAIN_JOINT = "train.joint"
"""Server sends `JOINT`; site trains it on its latents and replies with the same components. With
`training.joint.control_variates` both messages also have the components of `CONTROLS`."""
KEYS = "query.keys"
"""With `privacy.secure_aggregation`, before each joint round: site replies with new `PUBLIC_KEYS`.
"""
SHARES = "query.shares"
"""Then the server sends the `ROSTER`, and the site replies with `DEALT`. The server sends each site
its own shares with `TRAIN_JOINT`, and the reply is a `MASKED` sum in the place of `JOINT`."""
UNMASK = "query.unmask"
"""Then the server sends `ANSWERED`, and the site replies with `REVEALED`."""
EVALUATE = "evaluate.joint"
"""Server sends head and encoder half of the UNet; site replies with sums over its validation
patients: confusion counts, and losses at several temperatures."""
EVALUATE_MODEL = "evaluate.model"
"""With `task=evaluation`: server sends `MODEL`, the weights of a trained model; site replies with
sums over its evaluated patients and over their subgroups."""
STATISTICS = "query.statistics"
"""With `task=statistics`: site replies with counts and histograms over its images."""
KINDS_OF_TASK: Mapping[str, frozenset[str]] = {
    "training": frozenset(
        {CENSUS, TRAIN_AUTOENCODER, LATENT_CENSUS, FEATURE_CENSUS, ENCODE, TRAIN_JOINT, EVALUATE}
        | {KEYS, SHARES, UNMASK}
    ),
    "evaluation": frozenset({CENSUS, EVALUATE_MODEL}),
    "statistics": frozenset({CENSUS, STATISTICS}),
}
"""By task of a run, the kinds of message that a site answers in it."""

AUTOENCODER = "autoencoder"
UNET = "unet"
HEAD = "head"
AUTOENCODER_MOMENTS = "autoencoder_moments"
"""Adam's moments of the autoencoder, named as in `messaging.moment_names`."""
UNET_MOMENTS = "unet_moments"
HEAD_MOMENTS = "head_moments"

MOMENTS = {AUTOENCODER: AUTOENCODER_MOMENTS, UNET: UNET_MOMENTS, HEAD: HEAD_MOMENTS}
"""The record of each component's moments."""

EMA = "ema_"
"""Prefix of a component's name: the server's moving average of the global weights."""
EMA_UNET = EMA + UNET
EMA_HEAD = EMA + HEAD
"""The teacher on unlabelled images; sent beside `JOINT` if the objective has a teacher."""

WHITENING = "whitening"
"""ArrayRecord to a site: the linear map from a public encoder's features to the aligned directions,
with distillation also a linear classifier of them."""
LABEL_COUNTS = "label_counts"
"""Sums over the sites' census, named as in `training.label_counts`; sent beside `JOINT` if the
objective needs them."""
CALIBRATION = "calibration"
"""ArrayRecord to a site: the temperature of a trained model."""

AUTOENCODING = (AUTOENCODER, AUTOENCODER_MOMENTS)
"""Components that the autoencoder stage trains and exchanges in each round."""
JOINT = (UNET, HEAD, UNET_MOMENTS, HEAD_MOMENTS)
"""Components that the joint stage trains and exchanges in each round."""
MODEL = (AUTOENCODER, UNET, HEAD, CALIBRATION)
"""Records of a trained model that is evaluated: autoencoder with latent scale, encoder half of the
UNet, classifier, temperature."""

TRAINING = (TRAIN_AUTOENCODER, TRAIN_JOINT)
"""Kinds of message that each round of a stage sends."""
SECURE = (KEYS, SHARES, TRAIN_JOINT, UNMASK)
"""Kinds of message in a joint round with `privacy.secure_aggregation`, in order."""
COMPRESSED = frozenset({*AUTOENCODING, *JOINT, EMA_UNET, EMA_HEAD})
"""Components that `federation.compression` compresses, in messages of `TRAINING`. Control variates
and all other messages are sent uncompressed."""

CONTROLS = {UNET: "unet_control", HEAD: "head_control"}
"""SCAFFOLD's record of each component. The server sends the correction of the site's gradients; the
site replies with its mean uncorrected gradient."""

PUBLIC_KEYS = "public_keys"
"""ArrayRecord from a site: its public keys of masks and of sealed shares, for one round."""
ROSTER = "roster"
"""ArrayRecord to a site: the public keys of all sites of the round. A site's place in it numbers
the site."""
DEALT = "dealt_shares"
"""ArrayRecord in both directions: shares of a site's secrets, sealed for each of the other sites;
to a site those that are sealed for it."""
MASKED = "masked_sum"
"""ArrayRecord from a site: its sum of clipped gradients, with its share of noise, masked."""
ANSWERED = "answered"
"""ArrayRecord to a site: whose masked sums are in the sum over the sites."""
REVEALED = "revealed_shares"
"""ArrayRecord from a site: its share of one secret of each site, which takes masks off the sum."""

INSTRUCTIONS = "instructions"
"""ConfigRecord from the server: settings hash and round."""
IDENTITY = "identity"
"""ConfigRecord from a site in reply to the census: its name."""
ANSWERS_TO = "answers_to"
"""ConfigRecord from a site with each reply: kind, round and settings hash of the message that it
answers. The server refuses late and repeated replies by it."""
METRICS = "metrics"
"""MetricRecord from a site: the census, or metrics of `ALLOWED_METRICS`."""
COUNTS = "counts"
"""ArrayRecord from a site: counts, losses and histograms, or sums over latents or features."""
FAILURE = "failure"
"""ConfigRecord from a site after an error: a code and an id, never a text."""
FAILED = "failed"
"""Code of every failure in a run with differential privacy."""

LEDGER_TIP = "ledger_tip"
"""ArrayRecord in both directions of a private run: the site's ledger tip. A site sends it with each
reply. The server keeps it and returns it with the next message, and the site then refuses an older
copy of its ledger. The digest is keyed with the site's salt, so the tip reveals the number of
entries alone."""
WEIGHTED_BY = {
    AUTOENCODER: "images_seen",
    UNET: "images_seen",
    HEAD: "labelled_seen",
    AUTOENCODER_MOMENTS: "images_seen",
    UNET_MOMENTS: "images_seen",
    HEAD_MOMENTS: "labelled_seen",
}
"""The metric that weights each component in the average over the sites."""


def allowed(
    metrics: Mapping[str, float], by_site: Collection[str] = ALLOWED_METRICS
) -> dict[str, float]:
    """The metrics that may leave a site: those on the allow-list and in the site policy."""
    names = ALLOWED_METRICS & set(by_site)
    return {name: float(value) for name, value in metrics.items() if name in names}


def answered(kind: str, instructions: Mapping[str, object]) -> dict[str, str | int]:
    """The entries of `ANSWERS_TO` in the reply to a message of this kind."""
    number, settings_hash = instructions.get("round"), instructions.get("settings_hash")
    return {
        "kind": kind,
        "round": number if isinstance(number, int) else -1,
        "settings_hash": settings_hash if isinstance(settings_hash, str) else "",
    }


BOOTSTRAP_THRESHOLDS = 400
"""Thresholds of the bootstrapped counts: fewer than for the counts of the reported AUC."""


FROM_SERVER = frozenset(
    {INSTRUCTIONS, LABEL_COUNTS, WHITENING, CALIBRATION, EMA_UNET, EMA_HEAD, ROSTER, ANSWERED}
)
"""Records from the server alone: sums and averages of the sites' replies, and instructions."""
