"""The runs of the study: what each changes in the base run. Most changes are those of a file."""

from collections.abc import Mapping
from dataclasses import dataclass

from configs.compose import changes_of
from mediffusion_core.settings import Settings

JOINT = "joint"
"""The base run, with which all others are compared."""


@dataclass(frozen=True)
class Variant:
    """One run of the study."""

    name: str
    title: str
    overrides: tuple[str, ...] = ()
    """Changes of the base run."""


def variants_of(base: Settings, last_site: str) -> Mapping[str, Variant]:
    """The runs by name.

    Args:
        base: Settings of the base run.
        last_site: The site that one run leaves out.
    """
    joint, autoencoder = base.training.joint, base.training.autoencoder
    weight, kl = joint.classification_weight, autoencoder.kl_weight
    patch = 2 * base.model.autoencoder.patch_size
    classifier = changes_of("paper_classifier")
    at_all_sites = "data.labelled_fraction_by_site={}"
    half_labels = ("data.labelled_fraction=0.5", at_all_sites)
    all_labels = (*changes_of("paper_all_labels"), at_all_sites)
    [paper_lambda] = changes_of("paper_lambda")
    runs = (
        Variant(JOINT, f"joint, {base.data.labelled_fraction:.0%} of labels"),
        Variant("joint-half", "joint, 50% of labels", half_labels),
        Variant("joint-all", "joint, all labels", all_labels),
        Variant("diffusion", "diffusion alone", changes_of("paper_diffusion")),
        Variant("classifier", "classifier alone", classifier),
        Variant("classifier-half", "classifier alone, 50% of labels", (*classifier, *half_labels)),
        Variant("classifier-all", "classifier alone, all labels", (*classifier, *all_labels)),
        Variant("lambda-paper", f"λ {_value(paper_lambda):g}", (paper_lambda,)),
        _weighted("lambda-tenth", weight / 10),
        _weighted("lambda-tenfold", weight * 10),
        Variant(
            "latents-half", f"patches of {patch} px", (f"model.autoencoder.patch_size={patch}",)
        ),
        Variant("latents-8", "8 latent channels", ("model.autoencoder.latent_channels=8",)),
        _regularised("kl-paper", 1e-6),
        _regularised("kl-tenfold", kl * 10),
        Variant("left-out", f"trained without {last_site}", _leaving_out(last_site)),
    )
    return {run.name: run for run in runs}


def _value(override: str) -> float:
    return float(override.partition("=")[2])


def _weighted(name: str, weight: float) -> Variant:
    return Variant(name, f"λ {weight:g}", (f"training.joint.classification_weight={weight:g}",))


def _regularised(name: str, weight: float) -> Variant:
    return Variant(name, f"KL weight {weight:g}", (f"training.autoencoder.kl_weight={weight:g}",))


def _leaving_out(site: str) -> tuple[str, ...]:
    """The changes of `paper_left_out`, whose site is one of the phantoms'."""
    return tuple(
        f"federation.left_out_site={site}" if one.startswith("federation.left_out_site=") else one
        for one in changes_of("paper_left_out")
    )
