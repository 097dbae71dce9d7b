"""What pre-training optimises. The union below is the registry: to add a method, write one file and name it here."""

from typing import Annotated

import pydantic

from edgemim.config import Presets
from edgemim.methods.deepmim import DeepMimConfig
from edgemim.methods.distill import D2MaeConfig, DMaeConfig
from edgemim.methods.feature_distill import FeatureDistillConfig
from edgemim.methods.img2vec import Img2VecConfig
from edgemim.methods.mae import MaeConfig
from edgemim.methods.maskfeat import MaskFeatConfig
from edgemim.methods.mff import MffConfig
from edgemim.methods.mirl import MirlConfig
from edgemim.methods.pixmim import PixMimConfig
from edgemim.methods.simmim import SimMimConfig

MethodConfig = Annotated[
    MaeConfig
    | FeatureDistillConfig
    | MffConfig
    | PixMimConfig
    | DMaeConfig
    | D2MaeConfig
    | DeepMimConfig
    | MirlConfig
    | MaskFeatConfig
    | SimMimConfig
    | Img2VecConfig,
    pydantic.Field(discriminator="name"),
    Presets(
        {
            "mae": MaeConfig(),
            "feature_distill": FeatureDistillConfig(),
            "mff": MffConfig(),
            "pixmim": PixMimConfig(),
            "d_mae": DMaeConfig(),
            "d2_mae": D2MaeConfig(),
            "deepmim": DeepMimConfig(),
            "mirl": MirlConfig(),
            "maskfeat": MaskFeatConfig(),
            "simmim": SimMimConfig(),
            "img2vec": Img2VecConfig(),
        }
    ),
]

__all__ = [
    "D2MaeConfig",
    "DMaeConfig",
    "DeepMimConfig",
    "FeatureDistillConfig",
    "Img2VecConfig",
    "MaeConfig",
    "MaskFeatConfig",
    "MethodConfig",
    "MffConfig",
    "MirlConfig",
    "PixMimConfig",
    "SimMimConfig",
]
