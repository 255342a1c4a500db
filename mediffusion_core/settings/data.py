"""Which images a run uses, how they are split, and which sites have labels."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mediffusion_core.settings.base import Count, Fraction, Positive, StrictModel

Share = Annotated[float, Field(gt=0.0, lt=0.9)]


MarkKind = Literal["letter", "border", "line"]
"""A letter at the upper left, a step wedge at the lower border, a line of text at the top."""


class MarkSettings(StrictModel):
    """A scanner mark at one site's phantoms that goes with a finding: a planted shortcut."""

    site: Annotated[int, Field(ge=0)] | None = None
    """Number of the site whose images have the mark, from 0. None: no mark is planted."""
    finding: str = "Effusion"
    """The finding that the mark goes with."""
    kind: MarkKind = "letter"
    """The mark."""
    rate: Fraction = 0.95
    """Share of that site's images with the finding that have the mark, 0 to 1."""
    other_rate: Fraction = 0.05
    """Share of that site's images without the finding that have the mark, 0 to 1."""


class PhantomSettings(StrictModel):
    """The chest phantoms of `data.source=phantom`."""

    patients_per_site: tuple[Count, ...] = (1700, 1700, 900)
    """Patients of each site, one image a patient."""
    mark: MarkSettings = MarkSettings()
    """A planted shortcut."""

    @model_validator(mode="after")
    def _mark_has_a_site(self) -> Self:
        site, sites = self.mark.site, len(self.patients_per_site)
        if site is not None and site >= sites:
            raise ValueError(
                f"data.phantom.mark.site={site}: data.phantom.patients_per_site lists {sites} "
                f"sites; allowed: 0 to {sites - 1}"
            )
        return self


class ColumnSettings(StrictModel):
    """The columns of a table of images."""

    image: str = "image"
    """Column with the file name of an image, relative to `data.root`."""
    label: str | Annotated[tuple[str, ...], Field(min_length=1)] = "label"
    """Column with the class, or several columns of 0 and 1, one a finding."""
    patient: str | None = None
    """Column with the patient. None: each image counts as a patient of its own."""
    site: str | None = None
    """Column with the site, for `data.partition=natural`."""
    split: str | None = None
    """Column with the official split: `train`, `validation` or `test`."""
    sex: str | None = None
    """Column with the sex, `F` or `M`, for figures of subgroups. None: they have no sex."""
    age: str | None = None
    """Column with the age in years, for figures of subgroups. None: they have no age."""


Uncertain = Literal["zeros", "ones", "ignore"]
"""How an uncertain finding of a report is read: as absent, as present, or as a missing label."""


class TableSettings(StrictModel):
    """How images and labels are read and split. A run and a site file share these settings."""

    table: Path | None = None
    """CSV or Parquet file with one row an image, for `folder` and `dicom`. None: a folder for each
    class, or no labels."""
    columns: ColumnSettings = ColumnSettings()
    """The columns of the table."""
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of the classes in the order of the logits. None: those that the labels name."""
    multi_label: bool = False
    """Whether an image may have several findings. False: the classes exclude each other."""
    separator: Annotated[str, Field(min_length=1)] = "|"
    """Text between the findings in one cell of the table."""
    uncertain: Uncertain = "ignore"
    """How CheXpert's uncertain findings are read."""
    uncertain_by_finding: dict[str, Uncertain] = Field(default_factory=dict)
    """The same for single findings, by name."""
    window: tuple[float, Positive] | None = None
    """Centre and width of the DICOM window, in units of the image. None: the file's own window."""
    test_fraction: Share = 0.2
    """Share of the patients in the test set, above 0 and below 0.9."""
    validation_fraction: Share = 0.1
    """Share of the patients in the sites' validation sets, above 0 and below 0.9."""
    max_bad_fraction: Fraction = 0.01
    """Largest share of unreadable images with which a data set is accepted, 0 to 1."""
    store: Path | None = None
    """Folder of prepared images. None: `$FED_MEDIFFUSION_STORE`, or one in the user's cache."""


class DataSettings(TableSettings):
    """Which images a run uses, how they are split, and which sites have labels."""

    source: str
    """The reader, by its name in `mediffusion_core.data.readers.READERS`."""
    root: Path | None = None
    """Folder or file of the data set. Every source but `phantom` needs it."""
    image_size: Annotated[int, Field(ge=8, le=1024)]
    """Side of a prepared image in pixels, 8 to 1024."""
    channels: Literal[1, 3]
    """Channels of a prepared image: 1 for grey, 3 for colour."""
    partition: Literal["natural", "uniform", "dirichlet", "quantity", "one_finding"] = "natural"
    """How patients are dealt to sites: by their own site, at random, with skewed labels
    (arXiv 1909.06335), with skewed sizes, or with labels of one finding a site."""
    partition_alpha: Positive = 0.5
    """Concentration α > 0 of the Dirichlet partitions; smaller is more skewed."""
    scanner_shift: Fraction = 0.0
    """How much the simulated scanners of the sites differ, 0 to 1."""
    splits: Literal["dealt", "official"] = "dealt"
    """Whether patients are drawn for the test set, or it is that of the published split."""
    labelled_fraction: Fraction = 1.0
    """Share of the training patients with labels, 0 to 1."""
    labelled_fraction_by_site: dict[str, Fraction] = Field(default_factory=dict)
    """The same for single sites, by name."""
    labelled_sites: Count | None = None
    """How many sites have labels. None: all."""
    labels_at: Literal["sites", "server"] = "sites"
    """Holder of the labelled images: the sites, or the server alone."""
    use_unlabelled: bool = True
    """Whether unlabelled images train the networks."""
    augmentation: Literal[
        "none", "radiograph", "radiograph_marks", "dermoscopy", "dermoscopy_colour"
    ] = "none"
    """Which random views are drawn of a training image; `radiograph_marks` also replaces scanner
    marks by random ones, so that the classifier cannot use them."""
    phantom: PhantomSettings = PhantomSettings()
    """The phantoms."""

    @model_validator(mode="after")
    def _leaves_training_images(self) -> Self:
        if self.test_fraction + self.validation_fraction >= 0.95:
            raise ValueError(
                f"data.test_fraction {self.test_fraction} and data.validation_fraction "
                f"{self.validation_fraction} leave no training images; their sum must be below 0.95"
            )
        return self

    @model_validator(mode="after")
    def _labels_fit_the_partition(self) -> Self:
        if self.labels_at == "server" and self.partition == "one_finding":
            raise ValueError(
                "data.labels_at=server leaves the sites no labels, data.partition=one_finding "
                "divides labels among them; choose one of the two"
            )
        return self
