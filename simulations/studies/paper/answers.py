"""The sentence that answers each question, once all of its cells have finished."""

from collections.abc import Mapping
from typing import Any

from mediffusion_core.evaluation.bootstrap import Estimate
from simulations.studies.paper.figures import AUC
from simulations.studies.paper.found import Found, estimate_of
from simulations.studies.paper.variants import JOINT
from simulations.studies.sentences import (
    compared,
    compared_apart,
    listed,
    verdict,
    written,
)

SHARES = ((JOINT, "classifier"), ("joint-half", "classifier-half"), ("joint-all", "classifier-all"))
"""The joint network and the classifier alone at each share of labels."""


def autoencoder(found: Found) -> str:
    """The loss by reconstruction."""
    figures = found.measured("reconstruction", JOINT)
    lost = estimate_of(figures["auc_lost"])
    return listed(
        [
            f"reconstructions have a PSNR of {written(estimate_of(figures['psnr']), '.1f')} dB",
            compared("an independent classifier's AUC on images less that on them is", lost),
        ]
    )


def diffusion(found: Found) -> str:
    """Samples of the network that denoises alone against those of the joint one."""
    return listed([_fid(found, "diffusion", JOINT)])


def all_labels(found: Found) -> str:
    """The gain of all labels."""
    return listed([_auc(found, "joint-all", JOINT)])


def separate(found: Found) -> str:
    """One network against two."""
    return listed([_auc(found, JOINT, "classifier"), _fid(found, JOINT, "diffusion")])


def weights(found: Found) -> str:
    """Each λ against the base run's."""
    runs = ("lambda-paper", "lambda-tenth", "lambda-tenfold")
    return listed([part for run in runs for part in (_auc(found, run, JOINT), _fid(found, run))])


def labels(found: Found) -> str:
    """The joint network against the classifier at each share of labels."""
    return listed([_auc(found, joint, alone) for joint, alone in SHARES])


def latents(found: Found) -> str:
    """Each autoencoder against the base run's."""
    runs = ("latents-half", "latents-8", "kl-paper", "kl-tenfold")
    return listed(
        [
            f"{_auc(found, run, JOINT)}, PSNR {found.summary(run)['psnr']:.1f} dB against "
            f"{found.summary(JOINT)['psnr']:.1f} dB"
            for run in runs
        ]
    )


def guidance(found: Found) -> str:
    """The ends of the scales against the run's own scale."""
    figures = found.measured("guidance", JOINT)
    scales = sorted(figures["less_own"], key=float)
    parts = []
    for scale in (scales[0], scales[-1]):
        less = figures["less_own"][scale]
        parts.append(
            f"scale {scale} against the run's own {figures['own_scale']:g}: "
            + ", ".join(
                compared(title, estimate_of(less[name]), spec)
                for name, title, spec in (
                    ("flipped", "flips by the model", "+.0%"),
                    ("independent_flipped", "by an independent classifier", "+.0%"),
                    ("l1", "mean change of a pixel", "+.4f"),
                    ("energy_inside", "share of the change within the finding", "+.0%"),
                )
                if less[name]["value"] is not None
            )
        )
    return listed(parts)


def explanations(found: Found) -> str:
    """Counterfactuals less the other methods, by deletion, insertion and place."""
    others: Mapping[str, Mapping[str, Any]] = found.measured("explanations", JOINT)["ours_less"]
    parts = []
    for method in ("Grad-CAM", "integrated gradients", "SHAP"):
        figures = (
            ("deletion", ("higher, which is worse", "lower, which is better")),
            ("insertion", ("higher, which is better", "lower, which is worse")),
            ("inside", ("higher, which is better", "lower, which is worse")),
        )
        told = [
            f"{name} {written(one, '+.3f')}, {verdict(one, *words)}"
            for name, words in figures
            if (one := estimate_of(others[method][name])).count
        ]
        parts.append(f"counterfactuals less {method}: {', '.join(told)}")
    return listed(parts)


def scanners(found: Found) -> str:
    """The AUC at the left-out site, of networks trained with and without it."""
    site = found.last_site
    difference = found.difference("left-out", JOINT, site)
    without, with_it = found.auc("left-out", site), found.auc(JOINT, site)
    return listed(
        [
            f"at {site} the AUC is {written(without, '.3f')} without training there and "
            f"{written(with_it, '.3f')} with it",
            compared("the difference is", difference),
        ]
    )


def _auc(found: Found, first: str, second: str) -> str:
    what = f"{found.title(first)} less {found.title(second)}: {AUC}"
    return compared(what, found.difference(first, second))


def _fid(found: Found, first: str, second: str = JOINT) -> str:
    one, other = (_sample_fid(found, run) for run in (first, second))
    what = f"FID of samples of {found.title(first)} and {found.title(second)}:"
    return compared_apart(what, one, other, ".0f")


def _sample_fid(found: Found, run: str) -> Estimate:
    return estimate_of(found.measured("samples", run)["fid"])
