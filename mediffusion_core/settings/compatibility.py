"""Settings that would void the guarantee, each with the reason why."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mediffusion_core.settings import Settings

Refusal = tuple[str, Callable[["Settings"], bool], str]

REFUSED: tuple[Refusal, ...] = (
    (
        "training.precision=bf16",
        lambda s: s.training.precision == "bf16",
        "in bfloat16 a gradient's norm is off by a percent, and so is its bound; private training "
        "runs in fp32",
    ),
    (
        "training.joint.class_balance",
        lambda s: s.training.joint.class_balance != "none",
        "how often an image is drawn would depend on the labels of others, and not be the rate "
        "that is accounted for",
    ),
    (
        "training.joint.consistency.thresholds=adaptive",
        lambda s: (
            bool(s.training.joint.consistency.weight)
            and s.training.joint.consistency.thresholds == "adaptive"
        ),
        "thresholds follow other images, so that one image moves the gradients of all",
    ),
    (
        "training.joint.consistency.weight",
        lambda s: bool(s.training.joint.consistency.weight),
        "pseudo-labels are not part of the private step",
    ),
    (
        "training.joint.logit_adjustment",
        lambda s: bool(s.training.joint.logit_adjustment),
        "it needs the sites' label counts, which would leave without noise",
    ),
    (
        "training.joint.control_variates",
        lambda s: s.training.joint.control_variates,
        "mean gradients would leave without noise",
    ),
    (
        "model.head.pooling=attention",
        lambda s: s.model.head.pooling == "attention",
        "its queries have no gradient for each unit that could be clipped",
    ),
)

SHOWS_A_SITE: tuple[Refusal, ...] = (
    (
        "training.joint.logit_adjustment",
        lambda s: s.training.joint.needs_label_counts,
        "it sends the sites' label counts to all sites as they are",
    ),
    (
        "training.joint.control_variates",
        lambda s: s.training.joint.control_variates,
        "it sends a mean of the sites' gradients to all sites without noise",
    ),
    (
        "privacy.trained",
        lambda s: s.privacy.enabled and s.privacy.trained != "all",
        "the server would noise weights that nobody trains",
    ),
    (
        "federation.fraction_train",
        lambda s: s.privacy.enabled and s.federation.fraction_train < 1,
        "whether a site's budget is spent would change who else is drawn",
    ),
    (
        "federation.weighting=steps",
        lambda s: s.federation.weighting == "steps",
        "hidden sites have equal weights",
    ),
    (
        "federation.client_level.target_delta",
        lambda s: s.federation.client_level.target_delta > 1 / (10 * s.num_participants),
        "it promises a single site too little; allowed is at most 1/(10 n) for n sites",
    ),
    (
        "a federation of one site",
        lambda s: s.num_participants == 1,
        "there is no other site to hide it among",
    ),
)


def refuse_what_shows_a_site(settings: "Settings") -> None:
    """Refuses a run with client-level privacy whose settings void it.

    Raises:
        ValueError: naming the first such setting and the reason.
    """
    for name, applies, reason in SHOWS_A_SITE:
        if applies(settings):
            raise ValueError(
                f"{name} can't be had with federation.client_level.noise_multiplier: {reason}"
            )


def refuse_what_nobody_trained(settings: "Settings") -> None:
    """Refuses to start a run that keeps what no one has trained, and would be of use only trained.

    Of a run that is to be started alone: a saved model's settings name no folder of its beginning.

    Raises:
        ValueError: naming the setting that keeps it, and what it needs.
    """
    privacy, joint = settings.privacy, settings.training.joint
    if privacy.public_model is not None:
        return
    nobody = (
        "leaves untrained what nobody has trained before; privacy.public_model must name the "
        "folder of a model made of public images"
    )
    if privacy.autoencoder == "public":
        raise ValueError(f"privacy.autoencoder=public {nobody}")
    if privacy.trained in ("adapters", "attention"):
        raise ValueError(f"privacy.trained={privacy.trained} {nobody}")
    if privacy.trained == "head" and (joint.diffusion_weight or not settings.model.head.moments):
        raise ValueError(
            f"privacy.trained=head {nobody}; for a classifier alone, model.head.moments=true and "
            "training.joint.diffusion_weight=0"
        )


def refuse_what_voids(settings: "Settings") -> None:
    """Refuses a private run whose settings void its guarantee.

    Raises:
        ValueError: naming the first such setting and the reason.
    """
    for name, applies, reason in REFUSED:
        if applies(settings):
            raise ValueError(f"{name} can't be had with privacy.enabled: {reason}")
