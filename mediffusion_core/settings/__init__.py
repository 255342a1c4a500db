"""The settings of a run, as pydantic models that hold every default.

Hydra composes a mapping over these defaults, and the models check it. They are frozen, refuse
unknown keys, and give one hash over all that server and sites must agree on. The docstring below a
field is its description.
"""

from mediffusion_core.settings.data import (
    ColumnSettings,
    DataSettings,
    MarkKind,
    MarkSettings,
    TableSettings,
    Uncertain,
)
from mediffusion_core.settings.defaults import defaults, former_names
from mediffusion_core.settings.evaluation import CounterfactualSettings, EvaluationSettings, Solver
from mediffusion_core.settings.federation import (
    Aggregation,
    ClientLevelSettings,
    Compression,
    FederationSettings,
    ServerOptimizer,
    ServerSettings,
    Weighting,
)
from mediffusion_core.settings.model import (
    PASSAGE,
    AutoencoderSettings,
    DiffusionSettings,
    HeadSettings,
    ModelSettings,
    Prediction,
    UNetSettings,
)
from mediffusion_core.settings.run import RunSettings, Settings
from mediffusion_core.settings.training import (
    AlignmentSettings,
    AutoencoderTraining,
    ConsistencySettings,
    JointTraining,
    TrainingSettings,
)
from mediffusion_core.settings.validation import checked, did_you_mean, known_keys, validate

__all__ = [
    "PASSAGE",
    "Aggregation",
    "AlignmentSettings",
    "AutoencoderSettings",
    "AutoencoderTraining",
    "ClientLevelSettings",
    "ColumnSettings",
    "Compression",
    "ConsistencySettings",
    "CounterfactualSettings",
    "DataSettings",
    "DiffusionSettings",
    "EvaluationSettings",
    "FederationSettings",
    "HeadSettings",
    "JointTraining",
    "MarkKind",
    "MarkSettings",
    "ModelSettings",
    "Prediction",
    "RunSettings",
    "ServerOptimizer",
    "ServerSettings",
    "Settings",
    "Solver",
    "TableSettings",
    "TrainingSettings",
    "UNetSettings",
    "Uncertain",
    "Weighting",
    "checked",
    "defaults",
    "did_you_mean",
    "former_names",
    "known_keys",
    "validate",
]
