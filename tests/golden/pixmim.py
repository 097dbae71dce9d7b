"""Golden case of PixMIM: the low-pass target alone (the rest of the method is MAE)."""

from __future__ import annotations

from edgemim.edge.images import IMAGENET_MEAN, IMAGENET_STD
from edgemim.methods.pixmim import PixMimConfig
from edgemim.methods.targets import LowPassTarget, low_pass_disc
from edgemim.models.encoder import Encoder
from edgemim.models.normalization import Normalization
from edgemim.models.sizes import VitConfig
from tests.golden.case import Case, Comparison


def compare(case: Case) -> Comparison:
    """Smooth the case's images as the method's target does."""
    result = Comparison(case)
    side = case.config["img_size"]
    encoder = Encoder(VitConfig(width=24, depth=1, heads=3, patch_size=side // 4, image_size=side))
    method = PixMimConfig(radius=case.config["radius"])
    target = method.build(encoder, Normalization(IMAGENET_MEAN, IMAGENET_STD), None).branches[0].target
    assert isinstance(target, LowPassTarget)
    result.output("filter", low_pass_disc(side, side, target.radius).float())
    result.output("filter_224_r40", low_pass_disc(224, 224, 40.0))
    result.output("target", target.smooth(case.inputs["images"]))
    return result.finish()
