"""What pre-training optimises. The union below is the registry: to add a method, write one file and name it here."""

from typing import Annotated

import pydantic

from edgemim.config import Presets
from edgemim.methods.feature_distill import FeatureDistillConfig
from edgemim.methods.mae import MaeConfig

MethodConfig = Annotated[
    MaeConfig | FeatureDistillConfig,
    pydantic.Field(discriminator="name"),
    Presets({"mae": MaeConfig(), "feature_distill": FeatureDistillConfig()}),
]

__all__ = ["FeatureDistillConfig", "MaeConfig", "MethodConfig"]
