"""What pre-training optimises. The union below is the registry: to add a method, write one file and name it here."""

from typing import Annotated, get_args

import pydantic

from edgemim.config import Presets
from edgemim.methods.beit import BeitConfig
from edgemim.methods.composed import ComposedConfig
from edgemim.methods.deepmim import DeepMimConfig
from edgemim.methods.distill import D2MaeConfig, DMaeConfig
from edgemim.methods.feature_distill import FeatureDistillConfig
from edgemim.methods.img2vec import Img2VecConfig
from edgemim.methods.mae import MaeConfig
from edgemim.methods.maskfeat import MaskFeatConfig
from edgemim.methods.mff import MffConfig
from edgemim.methods.mirl import MirlConfig
from edgemim.methods.mocov3 import MocoV3Config
from edgemim.methods.pixmim import PixMimConfig
from edgemim.methods.simmim import SimMimConfig

_Methods = (
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
    | Img2VecConfig
    | BeitConfig
    | MocoV3Config
    | ComposedConfig
)

MethodConfig = Annotated[
    _Methods,
    pydantic.Field(discriminator="name"),
    Presets({method().name: method() for method in get_args(_Methods)}),
]

__all__ = [
    "BeitConfig",
    "ComposedConfig",
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
    "MocoV3Config",
    "PixMimConfig",
    "SimMimConfig",
]
