"""The methods of the study: variants of the joint network by their overrides, and baselines.

Variants of the joint network have the same rounds and steps; a step without the denoiser costs
less, and so do the steps of a single site. Baselines have the rounds that take about the time of
the joint network at 20 % of the labels, ten minutes on one core at 32 px. `scaled` changes the time
of all methods alike.

Trials are settings that are tried at the first seed; the validation AUC selects one. Every network
that classifies has equally many trials, and the first one has the method's default settings. A
logistic regression selects its penalty in every run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from simulations.baselines.semi_supervised.settings import (
    CBAFedSettings,
    ConsistencySettings,
    FedIRMSettings,
    MeanTeacherSettings,
    RSCFedSettings,
    SemiSupervised,
)
from simulations.baselines.settings import (
    Baseline,
    BaselineSettings,
    FineTunedSettings,
    LinearSettings,
    TrainedSettings,
)

Trial = tuple[str, ...]
"""Overrides `name=value` of the settings of the run or of the baseline."""

MAIN_FRACTION = 0.2
"""The labelled fraction at which the methods take about the same time."""
POOLED = ("federation.pool_sites=true",)


@dataclass(frozen=True)
class Method:
    """One row of the study."""

    name: str
    title: str
    overrides: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ((),)
    rounds: tuple[int, int] = (4, 128)
    """Of the autoencoder stage and of the joint stage; a baseline has the second number alone."""
    baseline: Baseline | None = None
    without_unlabelled: bool = False
    """Leaves unlabelled images out of both stages, with as many steps."""
    each_site: bool = False
    """One run for each site, trained there alone."""
    only_named: bool = False
    """Runs only where the command names it."""

    def scaled(self, factor: float) -> "Method":
        """The method with its rounds multiplied by a factor."""
        autoencoder, joint = (max(1, round(factor * rounds)) for rounds in self.rounds)
        baseline = self.baseline
        if isinstance(baseline, TrainedSettings):
            evaluations = baseline.rounds // baseline.every
            every = -(-joint // evaluations)
            baseline = baseline.model_copy(update={"rounds": joint, "every": every})
        return replace(self, rounds=(autoencoder, joint), baseline=baseline)


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
# Averaged batch statistics fit no site (arXiv 1910.00189); group statistics are of each image.
_FEDERATED_RESNET = BaselineSettings(norm="group")
_FINE_TUNED_TRIALS: tuple[Trial, ...] = ((), ("learning_rate=2e-4",), ("learning_rate=1e-3",))
_RESNET_TRIALS: tuple[Trial, ...] = ((), ('norm="batch"',), ("learning_rate=5e-4",))


def _semi_supervised(name: str, title: str, consistency: SemiSupervised) -> Method:
    """The federated ResNet-18 with as many rounds, and a loss of unlabelled images."""
    return Method(
        name,
        title,
        trials=_RESNET_TRIALS,
        rounds=(1, 160),
        baseline=_FEDERATED_RESNET.model_copy(update={"consistency": consistency}),
        only_named=True,
    )


JOINT = Method("joint", "federated joint", trials=_JOINT_TRIALS)
LABELS_ALONE = Method(
    "labels-alone",
    "same network, labels alone",
    ("training.joint.diffusion_weight=0", "training.joint.consistency.weight=0"),
    _CLASSIFIER_TRIALS,
    without_unlabelled=True,
)

DIFFUSION = Method(
    "diffusion",
    "separate: diffusion",
    ("training.joint.classification_weight=0", "training.joint.consistency.weight=0"),
)

_ALIGNED = (
    "training.joint.alignment.weight=1",
    "training.joint.alignment.distillation_weight=2",
    "training.joint.alignment.batch_size=48",
    "training.joint.labelled_batch_size=16",
    "training.joint.classification_weight=1",
    "model.head.normalised=true",
)
# Four times as many steps, each of half as many images, of a narrower UNet.
_ALIGNED_LONG = (
    *_ALIGNED,
    "model.unet.channels=[32,64,96,128]",
    "model.unet.attention=[false,false,true,true]",
    "training.joint.learning_rate=6e-4",
    "training.joint.head_learning_rate=6e-4",
    "training.joint.batch_size=4",
    "training.joint.labelled_batch_size=8",
    "training.joint.alignment.batch_size=24",
)
_ALIGNED_TRIALS: tuple[Trial, ...] = (
    (),
    ("training.joint.alignment.distillation_weight=0", "training.joint.alignment.weight=3"),
    ("training.joint.alignment.distillation_weight=1", "training.joint.alignment.weight=3"),
)

METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        JOINT,
        LABELS_ALONE,
        Method("aligned", "federated joint with public features", _ALIGNED, _ALIGNED_TRIALS),
        Method(
            "aligned-labels-alone",
            "same network with public features, labelled images alone",
            _ALIGNED,
            _ALIGNED_TRIALS,
            without_unlabelled=True,
        ),
        Method(
            "classifier",
            "separate: classifier of latents",
            ("training.joint.diffusion_weight=0",),
            _CLASSIFIER_TRIALS,
        ),
        DIFFUSION,
        Method("joint-central", "central joint", POOLED, _JOINT_TRIALS),
        Method(
            "aligned-central",
            "central joint with public features",
            (*_ALIGNED, *POOLED),
            _ALIGNED_TRIALS,
        ),
        Method(
            "aligned-long",
            "federated joint with public features, narrower and longer",
            _ALIGNED_LONG,
            _ALIGNED_TRIALS,
            rounds=(8, 256),
            only_named=True,
        ),
        Method(
            "aligned-long-central",
            "central joint with public features, narrower and longer",
            (*_ALIGNED_LONG, *POOLED),
            _ALIGNED_TRIALS,
            rounds=(8, 256),
            only_named=True,
        ),
        Method("joint-alone", "joint, each site alone", trials=_JOINT_TRIALS, each_site=True),
        Method(
            "resnet",
            "federated ResNet-18",
            trials=_RESNET_TRIALS,
            rounds=(1, 160),
            baseline=_FEDERATED_RESNET,
        ),
        Method(
            "resnet-central",
            "central ResNet-18",
            POOLED,
            ((), ('norm="group"',), ("learning_rate=5e-4",)),
            (1, 160),
            BaselineSettings(),
        ),
        Method(
            "statistics",
            "logistic regression on statistics of the images, pooled",
            baseline=LinearSettings(features="image-statistics"),
        ),
        Method(
            "public-features",
            "logistic regression on public features, pooled",
            baseline=LinearSettings(features="efficientnet-lite1"),
        ),
        Method(
            "efficientnet",
            "federated EfficientNet-Lite1 from ImageNet, 128 px",
            trials=_FINE_TUNED_TRIALS,
            rounds=(1, 40),
            baseline=FineTunedSettings(),
        ),
        Method(
            "efficientnet-fixmatch",
            "federated EfficientNet-Lite1 from ImageNet with FixMatch, 128 px",
            trials=_FINE_TUNED_TRIALS,
            rounds=(1, 16),
            baseline=FineTunedSettings(consistency=ConsistencySettings()),
        ),
        Method(
            "fixmatch",
            "federated FixMatch ResNet-18",
            trials=_RESNET_TRIALS,
            rounds=(1, 50),
            baseline=_FEDERATED_RESNET.model_copy(update={"consistency": ConsistencySettings()}),
        ),
        _semi_supervised("mean-teacher", "federated mean teacher", MeanTeacherSettings()),
        _semi_supervised(
            "freematch",
            "federated FixMatch with adaptive thresholds and alignment",
            ConsistencySettings(thresholds="adaptive", alignment=True),
        ),
        _semi_supervised("fedirm", "FedIRM", FedIRMSettings()),
        _semi_supervised("rscfed", "RSCFed", RSCFedSettings()),
        _semi_supervised("cbafed", "CBAFed", CBAFedSettings()),
    )
}
