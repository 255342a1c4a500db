"""The model card of an exported pipeline: its use, its training and its figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from mediffusion_core.reporting.formats import (
    NOT_MEASURED,
    count,
    inside,
    interval,
    measured,
    number,
)
from mediffusion_core.reporting.headline import headline
from mediffusion_core.reporting.report import audited, largest_epsilon
from mediffusion_core.run_io.provenance import shorten
from mediffusion_core.settings import Settings

NOT_PRIVATE = (
    "Trained without differential privacy: no privacy budget was spent because none was kept. "
    "Weights of such a model can reveal images and labels that it was trained on. Share it "
    "only with those who may have these."
)

PRIVATE = (
    "Trained with differential privacy (DP-SGD): for one {unit} more or less at a site, outside "
    "the public test set, the planned rounds of this run spend at most ε = {epsilon} at δ = "
    "{delta}, the largest of its sites{audited}. Which others train and keep their labels does not "
    "depend on it. Repeated rounds and other runs on the same data are counted in the sites' own "
    "ledgers and not here. Figures on the public test set are computed from its images "
    "as they are, which no budget covers."
)

SHARED_NOISE = (
    "The sites shared the noise (secure aggregation): ε holds for all who see sums over the sites, "
    "the server and readers of the model among them, if the server follows the protocol and at "
    "most {tolerated} of {sites} sites drop out of a round, collude with it or read the sums."
)

CLIENT_LEVEL = (
    "The server cut what each site changed and noised the means: for the whole of one site more or "
    "less, the weights spend ε = {epsilon} at δ = {delta}, of {rounds} noised means. That is a "
    "promise about the weights alone. It trusts the server, and covers neither the numbers of "
    "images and patients above nor figures on the public test set."
)

WHOLE = """One latent diffusion network that classifies images, draws new ones, and shows what an
image would look like with or without a finding."""
CLASSIFIER = """A latent diffusion network that classifies images and does nothing else: its
denoiser was not trained, so that it draws none, and changes none."""
DENOISER = """A latent diffusion network that draws images and does nothing else: its classifier
was not trained, so that it classifies none, and changes none."""
DRAW = "images = pipe(num_images=4, generator=torch.Generator().manual_seed(0)).images"
CLASSIFY = "probabilities = pipe.classify(images)  # (N, {count}), in the order of pipe.classes"
EXPLAIN = (
    'changed = pipe.explain(Image.open("image.png"), "{first}")  # .sources, .images, .before, ...'
)
OPEN = 'images = [Image.open("image.png")]'
CARD = """---
library_name: diffusers
tags:
- medical-imaging
- image-classification
- counterfactual-explanation
- federated-learning
---

# Joint diffusion model: {source}

{purpose} It was trained by federated learning with FedMediffusion, by
the method of Mediffusion ([arXiv 2411.09434](https://arxiv.org/abs/2411.09434)).

## Use

```sh
pip install .   # in a checkout of FedMediffusion; neither Flower, Ray nor Hydra is needed
```

```python
import torch
from PIL import Image

from mediffusion_core.run_io.pipeline import JointDiffusionPipeline

pipe = JointDiffusionPipeline.from_pretrained("path/to/this/folder")
{use}
```

Images are {channels}, {size} x {size} pixels; Pillow's images of any size are cropped to their
centred square and resized. Classes, {kind}: {classes}.

## Intended use

Research on federated learning, on learning from few labels and on explanation of classifiers.
**Not a medical device**: not validated for diagnosis, triage, treatment or any other decision about
a person. A counterfactual explains this model and not the disease. Drawn images are no patients;
test on real images whatever is learnt from them. Images of another population, scanner,
projection or preparation than those below are outside of what the figures say anything about.

## Data

{data}

## Privacy

{privacy}

## Figures

On the public test set of the run, on which no site trained; intervals are 95 %, from bootstraps
over patients or lesions. Probabilities are calibrated by a temperature of {temperature}.

{figures}

{per_class}

FID and KID are those of {extractor} features{comparable}. Their floor is what real images score
against other real images, in the same number.

## Made by

Seed {seed}, commit {commit}, settings {settings_hash}. All settings but names of sites and paths
stand in `model_index.json`.
"""


def model_card(
    summary: Mapping[str, Any], settings: Settings, classes: tuple[str, ...], multi_label: bool
) -> str:
    """The card as Markdown, which names no site.

    Args:
        summary: `summary.json` of the completed run.
        settings: Of the run.
        classes: Names of the classes.
        multi_label: Whether an image may have several.
    """
    extractor = settings.evaluation.extractor
    purpose, use = _purpose(settings)
    return CARD.format(
        source=settings.data.source,
        purpose=purpose,
        use="\n".join(use).format(count=len(classes), first=classes[0]),
        channels="grey" if settings.data.channels == 1 else "colour",
        size=settings.data.image_size,
        kind="an image may have several" if multi_label else "one an image",
        classes=", ".join(classes),
        data=_data(summary, settings),
        privacy=_privacy(summary, settings),
        temperature=number(inside(summary, "calibration").get("temperature"), 2),
        figures=_table(("figure", "value", "beside it"), headline(summary)),
        per_class=_table(("class", "AUC", "95 %", "positives in the test set"), _classes(summary)),
        extractor=extractor,
        comparable="" if extractor == "inception" else ", which compare with nothing published",
        seed=summary.get("seed", "unknown"),
        commit=shorten(summary.get("commit")),
        settings_hash=summary.get("settings_hash", "unknown"),
    )


def _purpose(settings: Settings) -> tuple[str, tuple[str, ...]]:
    """Uses of a model, which follow from its trained parts, and example code for each."""
    joint = settings.training.joint
    if joint.trains_both_halves:
        return WHOLE, (DRAW, CLASSIFY, EXPLAIN)
    return (CLASSIFIER, (OPEN, CLASSIFY)) if joint.classification_weight else (DENOISER, (DRAW,))


def _privacy(summary: Mapping[str, Any], settings: Settings) -> str:
    units, sites = settings.privacy, settings.federation.client_level
    promises = []
    if units.enabled:
        epsilon, delta = number(largest_epsilon(summary), 2), f"{units.target_delta:g}"
        promises.append(
            PRIVATE.format(unit=units.unit, epsilon=epsilon, delta=delta, audited=audited(summary))
        )
        if units.secure_aggregation.enabled:
            shared = units.secure_aggregation.tolerated_sites
            promises.append(SHARED_NOISE.format(tolerated=shared, sites=settings.num_participants))
    if sites.enabled:
        spent = inside(summary, "client_level")
        epsilon, delta = number(spent.get("epsilon"), 2), f"{sites.target_delta:g}"
        rounds = count(spent.get("rounds"))
        promises.append(CLIENT_LEVEL.format(epsilon=epsilon, delta=delta, rounds=rounds))
    return "\n\n".join(promises) or NOT_PRIVATE


def _data(summary: Mapping[str, Any], settings: Settings) -> str:
    data, federation = settings.data, settings.federation
    census = [one for one in inside(summary, "census").values() if isinstance(one, Mapping)]
    rows = [
        ("source", f"`{data.source}`"),
        ("sites", f"{federation.num_sites}, {data.partition}"),
        *(
            (name, count(sum(values)) if (values := _numbers(census, key)) else NOT_MEASURED)
            for name, key in (
                ("images", "images"),
                ("patients or lesions", "patients"),
                ("images in training", "train"),
                ("of these with labels", "labelled"),
                ("images that chose the model", "validation"),
            )
        ),
    ]
    if federation.in_one_place:
        rows.append(("training", "in one place, without federation"))
    return _table(("", ""), [row for row in rows if row[1] != NOT_MEASURED])


def _numbers(census: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """One count of each site that sent it; with differential privacy some counts are not sent."""
    return [value for one in census if (value := measured(one.get(key))) is not None]


def _classes(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            number((one or {}).get("auc")),
            interval((one or {}).get("interval")),
            count((one or {}).get("positives")),
        )
        for name, one in inside(summary, "auc_per_class").items()
    ]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
