"""Which images a run is of, how they are split, and who holds a label."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mediffusion_core.settings.base import Count, Fraction, Positive, StrictModel


class PhantomSettings(StrictModel):
    """How many phantom patients each site holds (one image a patient)."""

    patients_per_site: tuple[Count, ...] = (1700, 1700, 900)


class ColumnSettings(StrictModel):
    """Which columns of a site's own table say what; `label` may be several columns of 0 and 1."""

    image: str = "image"
    label: str | Annotated[tuple[str, ...], Field(min_length=1)] = "label"
    patient: str | None = None
    site: str | None = None
    split: str | None = None


Uncertain = Literal["zeros", "ones", "ignore"]
"""What a finding that a report calls uncertain becomes: absent, present, or a missing label."""


class TableSettings(StrictModel):
    """How a site's own images and labels are read; what a run and a site file both say."""

    table: Path | None = None
    columns: ColumnSettings = ColumnSettings()
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    multi_label: bool = False
    separator: Annotated[str, Field(min_length=1)] = "|"
    uncertain: Uncertain = "ignore"
    uncertain_by_finding: dict[str, Uncertain] = Field(default_factory=dict)
    window: tuple[float, Positive] | None = None
    store: Path | None = None


class DataSettings(TableSettings):
    """Which images, how they are split, and who holds a label."""

    source: Literal["phantom", "isic2019", "medmnist", "chestxray14", "chexpert", "folder", "dicom"]
    root: Path | None = None
    image_size: Annotated[int, Field(ge=8, le=1024)]
    channels: Literal[1, 3]
    partition: Literal["natural", "uniform", "dirichlet", "quantity", "one_finding"] = "natural"
    partition_alpha: Positive = 0.5
    scanner_shift: Fraction = 0.0
    splits: Literal["dealt", "official"] = "dealt"
    labelled_fraction: Fraction = 1.0
    labelled_fraction_by_site: dict[str, Fraction] = Field(default_factory=dict)
    labelled_sites: Count | None = None
    labels_at: Literal["sites", "server"] = "sites"
    use_unlabelled: bool = True
    test_fraction: Annotated[float, Field(gt=0.0, lt=0.9)] = 0.2
    validation_fraction: Annotated[float, Field(gt=0.0, lt=0.9)] = 0.1
    augmentation: Literal["none", "radiograph", "dermoscopy", "dermoscopy_colour"] = "none"
    max_bad_fraction: Fraction = 0.01
    phantom: PhantomSettings = PhantomSettings()

    @model_validator(mode="after")
    def _leaves_training_images(self) -> Self:
        if self.test_fraction + self.validation_fraction >= 0.95:
            raise ValueError(
                "data.test_fraction and data.validation_fraction leave nothing to train on"
            )
        return self

    @model_validator(mode="after")
    def _labels_fit_the_partition(self) -> Self:
        if self.labels_at == "server" and self.partition == "one_finding":
            raise ValueError(
                "data.labels_at=server leaves no label at a site, data.partition=one_finding "
                "is about which labels a site knows; choose one of them"
            )
        return self
