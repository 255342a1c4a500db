"""Settings that void a guarantee of privacy, and settings that need a public model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mediffusion_core.settings import Settings


@dataclass(frozen=True)
class Conflict:
    """Settings that a guarantee does not allow."""

    given: str
    """The setting, with its value where one value of several is refused."""
    applies: Callable[["Settings"], bool]
    """Whether a run has it."""
    reason: str
    """Why it is refused."""
    allowed: str
    """The allowed setting."""


WITH_DP_SGD: tuple[Conflict, ...] = (
    Conflict(
        "training.precision=bf16",
        lambda s: s.training.precision == "bf16",
        "in bfloat16 the norm of a gradient is off by a percent, and so is the bound",
        "training.precision=fp32",
    ),
    Conflict(
        "training.joint.consistency.thresholds=adaptive",
        lambda s: (
            bool(s.training.joint.consistency.weight)
            and s.training.joint.consistency.thresholds == "adaptive"
        ),
        "thresholds depend on all images, so one image changes the gradients of others",
        "training.joint.consistency.weight=0",
    ),
    Conflict(
        "training.joint.consistency.weight",
        lambda s: bool(s.training.joint.consistency.weight),
        "private steps have no pseudo-labels",
        "training.joint.consistency.weight=0",
    ),
    Conflict(
        "training.joint.logit_adjustment",
        lambda s: bool(s.training.joint.logit_adjustment),
        "it sends the sites' label counts without noise",
        "training.joint.logit_adjustment=0",
    ),
    Conflict(
        "training.joint.control_variates=true",
        lambda s: s.training.joint.control_variates,
        "it sends mean gradients without noise",
        "training.joint.control_variates=false",
    ),
    Conflict(
        "training.joint.alignment.weight or distillation_weight",
        lambda s: s.training.joint.alignment.enabled,
        "it sends sums over a public encoder's features without noise",
        "training.joint.alignment.weight=0 and training.joint.alignment.distillation_weight=0",
    ),
    Conflict(
        "federation.agreement_bound",
        lambda s: s.federation.agreement_bound is not None,
        "noise gives the sites' changes directions of their own",
        "federation.agreement_bound=null",
    ),
    Conflict(
        "data.partition=dirichlet or quantity",
        lambda s: s.data.partition in ("dirichlet", "quantity"),
        "it deals by the numbers of all patients, so one patient changes where others go",
        "data.partition=natural, uniform and one_finding",
    ),
    Conflict(
        "model.head.pooling=attention",
        lambda s: s.model.head.pooling == "attention",
        "the gradients of its queries cannot be clipped for each unit",
        "model.head.pooling=mean",
    ),
)
"""Conflicts with `privacy.enabled`."""

WITH_CLIENT_LEVEL: tuple[Conflict, ...] = (
    Conflict(
        "training.joint.logit_adjustment or training.joint.consistency.thresholds=adaptive",
        lambda s: s.training.joint.needs_label_counts,
        "it sends the sites' label counts to all sites without noise",
        "training.joint.logit_adjustment=0 and training.joint.consistency.thresholds=fixed",
    ),
    Conflict(
        "training.joint.control_variates=true",
        lambda s: s.training.joint.control_variates,
        "it sends the mean of the sites' gradients to all sites without noise",
        "training.joint.control_variates=false",
    ),
    Conflict(
        "training.joint.alignment.weight or distillation_weight",
        lambda s: s.training.joint.alignment.enabled,
        "it sends sums over a public encoder's features to all sites without noise",
        "training.joint.alignment.weight=0 and training.joint.alignment.distillation_weight=0",
    ),
    Conflict(
        "privacy.trained other than all",
        lambda s: s.privacy.enabled and s.privacy.trained != "all",
        "the server would add noise to weights that are not trained",
        "privacy.trained=all",
    ),
    Conflict(
        "federation.weighting=steps",
        lambda s: s.federation.weighting == "steps",
        "client-level privacy needs sites of equal weight",
        "federation.weighting=rounds",
    ),
    Conflict(
        "federation.num_malicious_sites",
        lambda s: bool(s.federation.num_malicious_sites),
        "its noise hides a site in the mean of clipped changes, not in a median or a selection",
        "federation.num_malicious_sites=0",
    ),
    Conflict(
        "federation.client_level.target_delta above 1/(10 n)",
        lambda s: s.federation.client_level.target_delta > 1 / (10 * s.num_participants),
        "for n sites a larger δ promises a single site too little",
        "at most 1/(10 n)",
    ),
    Conflict(
        "a federation of one site",
        lambda s: s.num_participants == 1,
        "one site cannot be hidden among others",
        "at least two sites",
    ),
)
"""Conflicts with `federation.client_level.noise_multiplier`."""


WITH_SECURE_AGGREGATION: tuple[Conflict, ...] = (
    Conflict(
        "privacy.enabled=false",
        lambda s: not s.privacy.enabled,
        "the sites share the noise of private steps",
        "privacy.enabled=true",
    ),
    Conflict(
        "privacy.trained other than head",
        lambda s: s.privacy.trained != "head",
        "the server steps along sums of the classifier's gradients alone",
        "privacy.trained=head",
    ),
    Conflict(
        "privacy.autoencoder=trained",
        lambda s: s.privacy.autoencoder == "trained",
        "the rounds of the autoencoder send single sites' weights",
        "privacy.autoencoder=frozen and public",
    ),
    Conflict(
        "federation.client_level.noise_multiplier",
        lambda s: s.federation.client_level.enabled,
        "the server cannot clip the change of a single site",
        "federation.client_level.noise_multiplier=null",
    ),
    Conflict(
        "federation.num_malicious_sites, norm_bound or agreement_bound",
        lambda s: (
            bool(s.federation.num_malicious_sites)
            or s.federation.norm_bound is not None
            or s.federation.agreement_bound is not None
        ),
        "the server cannot compare the changes of single sites",
        "federation.num_malicious_sites=0 without the bounds",
    ),
    Conflict(
        "federation.weighting=steps",
        lambda s: s.federation.weighting == "steps",
        "a sum has no weights, and each site makes one step a round",
        "federation.weighting=rounds",
    ),
    Conflict(
        "federation.compression",
        lambda s: s.federation.compression != "none",
        "masked numbers are uniform and cannot be compressed",
        "federation.compression=none",
    ),
    Conflict(
        "federation.local_normalisation=true",
        lambda s: s.federation.local_normalisation,
        "only the classifier is trained",
        "federation.local_normalisation=false",
    ),
    Conflict(
        "federation.fraction_train",
        lambda s: s.federation.fraction_train < 1,
        "the noise is planned for all sites in each round",
        "federation.fraction_train=1",
    ),
    Conflict(
        "training.joint.proximal_weight",
        lambda s: bool(s.training.joint.proximal_weight),
        "a site's gradient is that of the global weights, which have no distance to themselves",
        "training.joint.proximal_weight=0",
    ),
    Conflict(
        "data.labels_at=server",
        lambda s: s.data.labels_at == "server",
        "the server would be one of the sites",
        "data.labels_at=sites",
    ),
    Conflict(
        "a federation of too few sites",
        lambda s: s.num_participants < 3 * s.privacy.secure_aggregation.tolerated_sites + 1,
        "t absent or colluding sites are tolerated among more than 3 t",
        "at least four sites, and a smaller privacy.secure_aggregation.tolerated_sites",
    ),
)
"""Conflicts with `privacy.secure_aggregation.enabled`."""


def refuse_conflicts(settings: "Settings") -> None:
    """Checks that no setting voids the guarantees of privacy that the run asks for.

    Raises:
        ValueError: naming the first such setting, the reason, and the allowed values.
    """
    if settings.privacy.enabled:
        _refuse(settings, WITH_DP_SGD, "privacy.enabled=true")
    if settings.federation.client_level.enabled:
        _refuse(settings, WITH_CLIENT_LEVEL, "federation.client_level.noise_multiplier")
    if settings.privacy.secure_aggregation.enabled:
        guarantee = "privacy.secure_aggregation.enabled=true"
        _refuse(settings, WITH_SECURE_AGGREGATION, guarantee)


def _refuse(settings: "Settings", conflicts: Sequence[Conflict], guarantee: str) -> None:
    for one in conflicts:
        if one.applies(settings):
            raise ValueError(
                f"{one.given} conflicts with {guarantee}: {one.reason}; allowed: {one.allowed}"
            )


def require_public_model(settings: "Settings") -> None:
    """Checks that weights which the run does not train come from `privacy.public_model`.

    For a run that is about to start: the settings of a saved model name no such folder.

    Raises:
        ValueError: naming the setting that leaves weights untrained, and what it needs.
    """
    privacy, joint = settings.privacy, settings.training.joint
    if privacy.public_model is not None:
        return
    needed = (
        "needs privacy.public_model, the folder of a model of public images: "
        "the weights that it keeps would otherwise be random"
    )
    if privacy.autoencoder == "public":
        raise ValueError(f"privacy.autoencoder=public {needed}")
    if privacy.trained in ("adapters", "attention"):
        raise ValueError(f"privacy.trained={privacy.trained} {needed}")
    if privacy.trained == "head" and (
        joint.diffusion_weight or not settings.model.head.latent_statistics
    ):
        raise ValueError(
            f"privacy.trained=head {needed}; for a classifier alone, "
            "model.head.latent_statistics=true and training.joint.diffusion_weight=0"
        )
