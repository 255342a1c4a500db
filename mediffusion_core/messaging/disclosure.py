"""Content of each reply of a site, its privacy risk, and its protection."""

from dataclasses import dataclass

from mediffusion_core.messaging.protocol import (
    ANSWERS_TO,
    AUTOENCODING,
    CENSUS,
    CONTROLS,
    COUNTS,
    DEALT,
    ENCODE,
    EVALUATE,
    EVALUATE_MODEL,
    FAILURE,
    FEATURE_CENSUS,
    IDENTITY,
    JOINT,
    KEYS,
    LATENT_CENSUS,
    LEDGER_TIP,
    MASKED,
    METRICS,
    PUBLIC_KEYS,
    REVEALED,
    SHARES,
    STATISTICS,
    TRAIN_AUTOENCODER,
    TRAIN_JOINT,
    UNMASK,
)
from mediffusion_core.settings.allowed_metrics import ALLOWED_METRICS

CLASS_SUMS = ("known", "positives", "known_sums", "positive_sums")
"""Fields of the feature census over labelled images."""


@dataclass(frozen=True)
class Answer:
    """A site's reply to one kind of message, with `privacy` off and on.

    The tables of docs/privacy/messages.md come from here. A site refuses to send anything else.

    Attributes:
        name: Of the message, in the tables.
        records: All records that the reply may have, beside those of `WITH_ANY`.
        fields: All names that its metrics and counts may have with privacy off.
        private_fields: The same with differential privacy.
        content: Content with privacy off.
        risk: Information about patients in that content, for the server and other sites.
        protection: Protection with privacy off.
        private: Content with differential privacy.
        charge: Charge of the private content, as (q, σ): sample rate and noise multiplier.
    """

    name: str
    records: frozenset[str]
    fields: frozenset[str]
    private_fields: frozenset[str]
    content: str
    risk: str
    protection: str
    private: str
    charge: str


PRIVATE_METRICS = frozenset({"images_seen", "labelled_seen", "steps"})
"""Metrics of a private round: they follow from noised counts and the settings."""

ANSWERS = {
    CENSUS: Answer(
        name="census",
        records=frozenset({IDENTITY, METRICS}),
        fields=frozenset(
            {"images", "train", "labelled", "validation", "test", "patients"}
            | {"per_class", "known_per_class"}
        ),
        private_fields=frozenset({"train", "labelled"}),
        content="the site's name; numbers of images, labelled images and patients by split and "
        "class; if the objective needs it, the number of images with a known label of each class. "
        "With `task=evaluation` the numbers of evaluated images and patients alone, with "
        "`task=statistics` those of all images and patients",
        risk="a patient with a rare finding: a count of one reveals the presence. Two censuses "
        "reveal patients who came or left between them",
        protection="nothing; the counts are exact",
        private="the site's name; numbers of training units and of labelled training units, noised "
        "once per run. With `task=statistics` the name alone, without a charge",
        charge="(1, `release_noise`), once",
    ),
    TRAIN_AUTOENCODER: Answer(
        name="autoencoder round",
        records=frozenset({*AUTOENCODING, METRICS}),
        fields=ALLOWED_METRICS,
        private_fields=PRIVATE_METRICS,
        content="weights of the autoencoder and Adam's moments; allow-listed metrics",
        risk="every training patient: an attacker can reconstruct images from a change of "
        "weights, best after few steps, and more easily from moments, which average few gradients. "
        "Both reveal membership",
        protection="nothing",
        private="weights after DP-SGD; Adam's moments of the noised gradients; the expected number "
        "of images; the number of steps",
        charge="(q, σ) for each step",
    ),
    LATENT_CENSUS: Answer(
        name="latent census",
        records=frozenset({COUNTS}),
        fields=frozenset({"total", "squares", "count"}),
        private_fields=frozenset({"total", "squares", "count"}),
        content="sum and sum of squares of the latents per channel, and the number of latents",
        risk="a patient whose images differ strongly from all others; two latent censuses "
        "reveal patients who came between them",
        protection="only the summation over all training images",
        private="noised sums over one image of each unit, each unit's part clipped to a bound; the "
        "noised count of the census",
        charge="(1, `release_noise`), each time",
    ),
    FEATURE_CENSUS: Answer(
        name="feature census",
        records=frozenset({COUNTS}),
        fields=frozenset({"count", "mean", "scatter", "repeats", "within", *CLASS_SUMS}),
        private_fields=frozenset(),
        content="with `training.joint.alignment`: number of training images, mean and scatter of a "
        "public encoder's features over them, and the scatter within patients or lesions; with "
        "`distillation_weight` also the sums over its labelled images, for each class",
        risk="the patient with the only labelled image of a class: its sum is the image's "
        "features; every training patient of a site with fewer images than features: the scatter "
        "then spans exactly their features, though not whose they are; a second census reveals "
        "the features of a patient who came between them",
        protection="only the summation over all training images",
        private="refused",
        charge="nothing",
    ),
    ENCODE: Answer(
        name="encoding",
        records=frozenset(),
        fields=frozenset(),
        private_fields=frozenset(),
        content="nothing",
        risk="the approximate number of images, by the time of the reply",
        protection="nothing is sent",
        private="nothing",
        charge="nothing",
    ),
    TRAIN_JOINT: Answer(
        name="joint round",
        records=frozenset({*JOINT, *CONTROLS.values(), MASKED, METRICS}),
        fields=ALLOWED_METRICS,
        private_fields=PRIVATE_METRICS,
        content="weights of UNet and classifier, and Adam's moments of both; with "
        "`training.joint.control_variates` the mean gradient of both over the round; allow-listed "
        "metrics",
        risk="every training patient, image and label, as in an autoencoder round; mean "
        "gradients, like moments, average few gradients and reveal more than weights",
        protection="nothing",
        private="weights after DP-SGD; Adam's moments of the noised gradients; the expected "
        "numbers of images and of labelled images; the number of steps. Control variates are "
        "refused. With `privacy.secure_aggregation` instead of all these the masked sum of clipped "
        "gradients and of a share of noise: uniform random numbers to everyone without the other "
        "sites' masks",
        charge="(q, σ) for each step; with `privacy.secure_aggregation` (1, σ) for the sum over "
        "the sites",
    ),
    KEYS: Answer(
        name="public keys",
        records=frozenset({PUBLIC_KEYS}),
        fields=frozenset(),
        private_fields=frozenset(),
        content="refused",
        risk="nothing: the keys are random numbers of one round",
        protection="nothing is sent",
        private="with `privacy.secure_aggregation`: two public keys, new in each round",
        charge="nothing: random numbers",
    ),
    SHARES: Answer(
        name="shares",
        records=frozenset({DEALT}),
        fields=frozenset(),
        private_fields=frozenset(),
        content="refused",
        risk="nothing at the server, which cannot open them. A site opens those for it, and fewer "
        "sites than the threshold learn nothing from theirs",
        protection="nothing is sent",
        private="with `privacy.secure_aggregation`: shares of two secret keys of the round, sealed "
        "for each of the other sites",
        charge="nothing: random numbers",
    ),
    UNMASK: Answer(
        name="unmasking",
        records=frozenset({REVEALED}),
        fields=frozenset(),
        private_fields=frozenset(),
        content="refused",
        risk="the sum over the sites, which is charged with the joint round",
        protection="nothing is sent",
        private="with `privacy.secure_aggregation`: for each site a share of one of its two secret "
        "keys, never of both, and only for sums over enough sites",
        charge="that of the joint round",
    ),
    EVALUATE: Answer(
        name="validation",
        records=frozenset({COUNTS}),
        fields=frozenset({"counts", "bootstraps", "temperature_losses"}),
        private_fields=frozenset({"histogram", "gains"}),
        content="confusion counts per threshold, for all patients and for seeded bootstraps over "
        "patients; the sum of losses at each of 81 temperatures",
        risk="every validation patient: counts at about 4,000 thresholds reveal single scores "
        "with their labels; the server has the bootstraps' seed and can assign scores to patients",
        protection="only the summation",
        private="with `privacy.validation_noise`: noised sums over one image of each validation "
        "unit, of its score among 24 gaps by class and label, and of the lower losses at 8 other "
        "temperatures; else refused",
        charge="(1, `validation_noise`) to validation units, in each evaluation",
    ),
    EVALUATE_MODEL: Answer(
        name="evaluation of a model",
        records=frozenset({COUNTS}),
        fields=frozenset({"counts", "bootstraps", "subgroups", "reliability", "squares"}),
        private_fields=frozenset(),
        content="with `task=evaluation`: confusion counts per threshold, for all evaluated "
        "patients, for seeded bootstraps over them, and for subgroups by sex and by age; number, "
        "confidence and correctness of predictions in 15 bins, and their squared error",
        risk="every evaluated patient, as in a validation; a subgroup's counts also tell the sex "
        "or age of its patients. Scores of a model that was made for it may encode parts of an "
        "image. Evaluations of other patients or at another time reveal patients who are in one of "
        "them alone",
        protection="the summation; a model that the run's settings do not name by its digest is "
        "refused; a class or subgroup of fewer patients than `policy.min_patients` is "
        "suppressed, and any subgroup whose difference from other sums would be of fewer",
        private="refused",
        charge="nothing",
    ),
    STATISTICS: Answer(
        name="statistics",
        records=frozenset({COUNTS}),
        fields=frozenset({"labelled", "labels", "subgroups", "histogram", "unit"}),
        private_fields=frozenset({"labelled", "labels", "subgroups", "histogram"}),
        content="with `task=statistics`: numbers of images by labelled or not, by state of each "
        "label (positive, negative, missing), by sex and by age; numbers of pixels in 32 bins of "
        "intensity by channel; whether the data name patients, lesions or images",
        risk="the rarest findings, sexes, ages and intensities of a site. Statistics of other "
        "images or at another time reveal patients who are in one of them alone",
        protection="a count of fewer patients than `policy.min_patients` is suppressed, and counts "
        "that would give it back; a bin with pixels of fewer patients too",
        private="noised sums over units: the mean over each unit's images of the same vector, with "
        "shares of pixels",
        charge="(1, `release_noise`), each time",
    ),
}
"""By kind of message. A site sends no record and no field that is not listed here."""


WITH_ANY = {
    ANSWERS_TO: ("with each reply, the kind, round and settings hash of the server's message"),
    FAILURE: (
        "instead of a reply, a failure code and a random id. In a run with `privacy=dp`, and at a "
        "site that takes part in no other, every failure is the same: the code is `failed`, the id "
        "a hash of kind, round and settings hash of the message"
    ),
    LEDGER_TIP: (
        "with `privacy=dp`, with each reply, the ledger tip: the number of entries and a digest "
        "keyed with the site's salt. It reveals the number of charges, but no patient"
    ),
}
"""Records that any reply may have, and their content."""
