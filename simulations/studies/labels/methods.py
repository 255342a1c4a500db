"""What the study compares: each method is a set of settings, or a rival with settings of its own.

Variants of the joint network make the same rounds of the same steps; a step without the denoiser,
or a single site's share of the steps, costs less. Rivals have rounds for about the time of the
joint network, ten minutes of one core at 32 px. `scaled` shortens or lengthens all alike.

Trials are settings tried at the first seed and chosen by validation patients; every method that
classifies has equally many, and the first is what it starts from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from simulations.baselines.settings import ConsistencySettings, RivalSettings

Trial = tuple[str, ...]
"""Overrides of the run's settings, or of the rival's: `name=value`."""

POOLED = ("federation.pool_sites=true",)


@dataclass(frozen=True)
class Method:
    """One row of the study."""

    name: str
    title: str
    overrides: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ((),)
    rounds: tuple[int, int] = (4, 128)
    """Of the autoencoder and of the joint stage; a rival has none of the first."""
    rival: RivalSettings | None = None
    without_unlabelled: bool = False
    """Leaves unlabelled images out of both stages; fewer images then get more passes."""
    each_site: bool = False
    """One run a site, trained there alone."""

    def scaled(self, factor: float) -> "Method":
        """The same for another budget than ten minutes."""
        autoencoder, joint = (max(1, round(factor * rounds)) for rounds in self.rounds)
        rival = self.rival
        if rival is not None:
            rival = rival.model_copy(update={"rounds": joint, "every": -(-joint // 4)})
        return replace(self, rounds=(autoencoder, joint), rival=rival)


_JOINT_TRIALS: tuple[Trial, ...] = (
    (),
    ("training.joint.classification_weight=3.0",),
    ("training.joint.learning_rate=6.0e-4", "training.joint.head_learning_rate=6.0e-4"),
)
_CLASSIFIER_TRIALS: tuple[Trial, ...] = (
    (),
    ("training.joint.weight_decay=0.05",),
    ("training.joint.learning_rate=6.0e-4", "training.joint.head_learning_rate=6.0e-4"),
)
# Averaged statistics of batches are no site's own (arXiv 1910.00189), a group's are each image's.
_FEDERATED_RESNET = RivalSettings(norm="group")
_RESNET_TRIALS: tuple[Trial, ...] = ((), ('norm="batch"',), ("learning_rate=5e-4",))

JOINT = Method("joint", "federated joint", trials=_JOINT_TRIALS)
LABELS_ALONE = Method(
    "labels-alone",
    "same network, labels alone",
    ("training.joint.diffusion_weight=0", "training.joint.consistency.weight=0"),
    _CLASSIFIER_TRIALS,
    without_unlabelled=True,
)

METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        JOINT,
        LABELS_ALONE,
        Method(
            "classifier",
            "separate: classifier of latents",
            ("training.joint.diffusion_weight=0",),
            _CLASSIFIER_TRIALS,
        ),
        Method(
            "diffusion",
            "separate: diffusion",
            ("training.joint.classification_weight=0", "training.joint.consistency.weight=0"),
        ),
        Method("joint-central", "central joint", POOLED, _JOINT_TRIALS),
        Method("joint-alone", "joint, each site alone", trials=_JOINT_TRIALS, each_site=True),
        Method(
            "resnet",
            "federated ResNet-18",
            trials=_RESNET_TRIALS,
            rounds=(1, 160),
            rival=_FEDERATED_RESNET,
        ),
        Method(
            "resnet-central",
            "central ResNet-18",
            POOLED,
            ((), ('norm="group"',), ("learning_rate=5e-4",)),
            (1, 160),
            RivalSettings(),
        ),
        Method(
            "fixmatch",
            "federated FixMatch ResNet-18",
            trials=_RESNET_TRIALS,
            rounds=(1, 50),
            rival=_FEDERATED_RESNET.model_copy(update={"consistency": ConsistencySettings()}),
        ),
    )
}
