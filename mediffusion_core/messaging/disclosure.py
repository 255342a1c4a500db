"""What each message of a site contains, whom it may concern, and what protects it."""

from dataclasses import dataclass

from mediffusion_core.messaging.protocol import (
    ANSWERS_TO,
    AUTOENCODING,
    CENSUS,
    CONTROLS,
    COUNTS,
    ENCODE,
    EVALUATE,
    FAILURE,
    IDENTITY,
    JOINT,
    LATENT_CENSUS,
    LEDGER_HEAD,
    METRICS,
    TRAIN_AUTOENCODER,
    TRAIN_JOINT,
)
from mediffusion_core.settings.allowed_metrics import ALLOWED_METRICS


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
