"""What server and site must both know: kinds of message, names of records, what may leave.

Neither side imports the other; this is the one place where they agree.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

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
"""Adam's moments of the autoencoder, named as in `training.moments`."""
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

ALLOWED_METRICS = frozenset(
    {
        "images_seen",
        "labelled_seen",
        "steps",
        "seconds",
        "loss",
        "diffusion_loss",
        "classification_loss",
        "consistency_loss",
        "pseudo_labelled",
    }
)
"""A metric is a way out of the hospital: what is not named here is dropped at the site."""


def allowed(
    metrics: Mapping[str, float], by_site: Collection[str] = ALLOWED_METRICS
) -> dict[str, float]:
    """The metrics that may leave a site: those of the list, as far as the site's own has them."""
    names = ALLOWED_METRICS & set(by_site)
    return {name: float(value) for name, value in metrics.items() if name in names}


def answered(kind: str, instructions: Mapping[str, object]) -> dict[str, str | int]:
    """The entries of `ANSWERS_TO` in the reply to such a message."""
    return {
        "kind": kind,
        "round": int(str(instructions.get("round", -1))),
        "settings_hash": str(instructions.get("settings_hash", "")),
    }


BOOTSTRAP_THRESHOLDS = 400
"""Thresholds of the bootstrapped counts; fewer than of the counts, whose AUC is reported."""


@dataclass(frozen=True)
class Answer:
    """What a site sends in answer to one kind of message, with `privacy` off and on.

    The table in the README is made of these, and a test holds the sites' real answers against them.

    Attributes:
        name: For people.
        records: Every record that the answer may have, beside those of `WITH_ANY`.
        fields: Every name that may stand in its metrics and counts.
        carries: What it is with privacy off, where it leaves as it was computed.
        betrays: What it may then tell about whom, to the server and to whoever it passes it on to.
        protected: What stands in the way of that with privacy off.
        private: What it is with differential privacy, noised or not sent.
        charged: What the ledger is charged for that: q the sample rate, σ the noise multiplier.
    """

    name: str
    records: frozenset[str]
    fields: frozenset[str]
    carries: str
    betrays: str
    protected: str
    private: str
    charged: str


ANSWERS = {
    CENSUS: Answer(
        name="census",
        records=frozenset({IDENTITY, METRICS}),
        fields=frozenset(
            {"images", "train", "labelled", "validation", "test", "patients"}
            | {"per_class", "known_per_class"}
        ),
        carries="its name; how many images, labelled images and patients it holds, by split and by "
        "class; where the objective needs it, of how many images each class is known",
        betrays="a patient with a rare finding, whose presence a count of one tells; two censuses "
        "tell of whoever came or left between them",
        protected="nothing else is ever asked; the counts are exact",
        private="its name; how many units train, and how many of them have a label, both noised "
        "once a run",
        charged="(1, `release_noise`), once",
    ),
    TRAIN_AUTOENCODER: Answer(
        name="autoencoder round",
        records=frozenset({*AUTOENCODING, METRICS}),
        fields=ALLOWED_METRICS,
        carries="weights of the autoencoder, and Adam's moments of them; allow-listed metrics",
        betrays="every training patient: images can be reconstructed from a change of weights, "
        "most of all after few steps, and from moments, averages of few gradients, more readily; "
        "membership can be told from both",
        protected="nothing",
        private="weights after DP-SGD, Adam's moments of the noised gradients; expected, not "
        "realised, images; steps",
        charged="(q, σ) for each step",
    ),
    LATENT_CENSUS: Answer(
        name="latent census",
        records=frozenset({COUNTS}),
        fields=frozenset({"total", "squares", "count"}),
        carries="per channel, sum and sum of squares of the latents, and their number",
        betrays="a patient whose images are far from all others; two of them, before and after, "
        "whoever came between",
        protected="nothing but that they are sums over all training images",
        private="the same sums over one image of each unit, its part cut to a bound, noised; the "
        "census' noised count",
        charged="(1, `release_noise`), each time",
    ),
    ENCODE: Answer(
        name="encoding",
        records=frozenset(),
        fields=frozenset(),
        carries="nothing",
        betrays="by its time, about how many images there are",
        protected="nothing is sent",
        private="nothing",
        charged="nothing",
    ),
    TRAIN_JOINT: Answer(
        name="joint round",
        records=frozenset({*JOINT, *CONTROLS.values(), METRICS}),
        fields=ALLOWED_METRICS,
        carries="weights of UNet and classifier, and Adam's moments of both; with "
        "`training.joint.control_variates` the mean gradient of both over the round; allow-listed "
        "metrics",
        betrays="every training patient, image and label: as above, and from moments and mean "
        "gradients more readily, since they are averages of few gradients",
        protected="nothing",
        private="weights after DP-SGD, Adam's moments of the noised gradients; expected images and "
        "labelled ones; steps. Control variates are refused",
        charged="(q, σ) for each step",
    ),
    EVALUATE: Answer(
        name="validation",
        records=frozenset({COUNTS}),
        fields=frozenset({"counts", "bootstraps", "temperature_losses"}),
        carries="confusion counts per threshold, and those of seeded bootstraps over patients; the "
        "sum of losses at each of 81 temperatures",
        betrays="every validation patient: at some 4,000 thresholds counts tell single scores with "
        "their labels, and the server, which knows the bootstraps' seed, whose they are",
        protected="nothing but that they are sums",
        private="refused",
        charged="nothing",
    ),
}
"""By kind of message. A new kind, record or field has its place here before it may leave."""

WITH_ANY = {
    ANSWERS_TO: (
        "beside each answer, the kind of message, round and settings hash that it answers, as the "
        "server sent them"
    ),
    FAILURE: (
        "in place of an answer, a code and a random id; the code `budget` says that the site's "
        "patients have spent what they may, and so that they took part before"
    ),
    LEDGER_HEAD: (
        "with `privacy=dp` beside each answer, how many entries the site's ledger has and a digest "
        "keyed by its salt: it tells how often patients were charged, and nothing of who they are"
    ),
}
"""Records that may come with an answer to any kind of message, and what they tell."""

FROM_SERVER = frozenset({INSTRUCTIONS, LABEL_COUNTS, EMA_UNET, EMA_HEAD})
"""Records that only ever go to the sites. They hold what the sites sent, averaged or added up."""
