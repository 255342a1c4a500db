"""The questions: what each asks, the cells that it needs, its figures, and its answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from simulations.studies.paper import answers
from simulations.studies.paper.figures import (
    Figure,
    auc_figures,
    estimates,
    sample_figures,
    summary_figures,
)
from simulations.studies.paper.found import Found
from simulations.studies.paper.measures import GUIDED
from simulations.studies.paper.variants import JOINT

LAMBDAS = ("lambda-paper", "lambda-tenth", JOINT, "lambda-tenfold")
LATENTS = (JOINT, "latents-half", "latents-8", "kl-paper", "kl-tenfold")
EXPLAINED = ("deletion", "insertion", "pointing", "inside", "iou")


@dataclass(frozen=True)
class Question:
    """One question of the study."""

    name: str
    asks: str
    alone: str
    """Command that makes its experiment alone."""
    runs: tuple[str, ...]
    """Names of variants."""
    measures: tuple[tuple[str, str], ...]
    """Measurements, each with the run that it is of."""
    figures: Callable[[Found], Sequence[Figure]]
    """Its figures, of the cells that have finished."""
    answer: Callable[[Found], str]
    """Its answer, once all of its cells have finished."""


def _reconstruction(found: Found) -> list[Figure]:
    measured = found.measured("reconstruction", JOINT)
    return estimates("reconstructions of test images", measured, measured)


def _separate(found: Found) -> list[Figure]:
    return [
        *auc_figures(found, (JOINT, "classifier")),
        *sample_figures(found, (JOINT, "diffusion")),
    ]


def _lambda(found: Found) -> list[Figure]:
    return [*auc_figures(found, LAMBDAS), *sample_figures(found, LAMBDAS)]


def _labels(found: Found) -> list[Figure]:
    return [
        one
        for joint, alone in answers.SHARES
        for one in auc_figures(found, (alone, joint), reference=alone)
    ]


def _latents(found: Found) -> list[Figure]:
    names = {"psnr": "PSNR", "fid": "FID"}
    return [*auc_figures(found, LATENTS), *summary_figures(found, LATENTS, names)]


def _guidance(found: Found) -> list[Figure]:
    measured = found.measured("guidance", JOINT)
    return [
        one
        for scale, figures in measured.get("scales", {}).items()
        for one in estimates(f"scale {scale}", figures, GUIDED)
    ]


def _explanations(found: Found) -> list[Figure]:
    return [
        one
        for row in found.measured("explanations", JOINT).get("rows", ())
        for one in estimates(row["method"], row["figures"], EXPLAINED)
    ]


def _scanners(found: Found) -> list[Figure]:
    return auc_figures(found, (JOINT, "left-out"), site=found.last_site)


_ASKED = (
    Question(
        "autoencoder",
        "What does the autoencoder alone lose of an image?",
        "fed-mediffusion simulate experiment=paper_autoencoder",
        (JOINT,),
        (("reconstruction", JOINT),),
        _reconstruction,
        answers.autoencoder,
    ),
    Question(
        "diffusion",
        "Does the network draw better samples if it does not classify?",
        "fed-mediffusion simulate experiment=paper_diffusion",
        (JOINT, "diffusion"),
        (("samples", JOINT), ("samples", "diffusion")),
        partial(sample_figures, runs=("diffusion", JOINT)),
        answers.diffusion,
    ),
    Question(
        "all-labels",
        "How much better does the joint network classify with all labels?",
        "fed-mediffusion simulate experiment=paper_all_labels",
        (JOINT, "joint-all"),
        (),
        partial(auc_figures, runs=(JOINT, "joint-all")),
        answers.all_labels,
    ),
    Question(
        "separate",
        "Is one joint network as good as a separate classifier and a separate denoiser?",
        "fed-mediffusion simulate experiment=paper_classifier",
        (JOINT, "classifier", "diffusion"),
        (("samples", JOINT), ("samples", "diffusion")),
        _separate,
        answers.separate,
    ),
    Question(
        "lambda",
        "How does the weight λ of the classification loss trade samples for accuracy?",
        "fed-mediffusion simulate experiment=paper_lambda",
        LAMBDAS,
        tuple(("samples", run) for run in LAMBDAS),
        _lambda,
        answers.weights,
    ),
    Question(
        "labels",
        "Is the joint network better than a classifier at each share of labels?",
        "fed-mediffusion simulate experiment=paper_base data.labelled_fraction=0.5",
        tuple(run for pair in answers.SHARES for run in pair),
        (),
        _labels,
        answers.labels,
    ),
    Question(
        "latents",
        "What do the size of the latents and the KL weight change?",
        "fed-mediffusion simulate experiment=paper_latents",
        LATENTS,
        (),
        _latents,
        answers.latents,
    ),
    Question(
        "guidance",
        "How do counterfactuals depend on the guidance scale?",
        "fed-mediffusion study guidance runs/latest --scales 0.25,0.5,1,2,4",
        (JOINT,),
        (("guidance", JOINT),),
        _guidance,
        answers.guidance,
    ),
    Question(
        "scanners",
        "How well does the network classify images of a site that did not train it?",
        "fed-mediffusion simulate experiment=paper_left_out",
        (JOINT, "left-out"),
        (),
        _scanners,
        answers.scanners,
    ),
    Question(
        "explanations",
        "Do counterfactuals explain better than Grad-CAM, integrated gradients and SHAP?",
        "fed-mediffusion study explanations runs/latest",
        (JOINT,),
        (("explanations", JOINT),),
        _explanations,
        answers.explanations,
    ),
)
QUESTIONS: Mapping[str, Question] = {question.name: question for question in _ASKED}
"""All questions by name."""
