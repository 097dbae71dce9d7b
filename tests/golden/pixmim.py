"""Golden case of PixMIM: the low-pass target alone (the rest of the method is MAE)."""

from __future__ import annotations

import re

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
    # Patches play no part in the filter: the largest that the image has several of.
    patch = max(size for size in range(1, side) if side % size == 0)
    encoder = Encoder(VitConfig(width=24, depth=1, heads=3, patch_size=patch, image_size=side))
    method = PixMimConfig(radius=case.config["radius"])
    target = method.build(encoder, Normalization(IMAGENET_MEAN, IMAGENET_STD), None).branches[0].target
    assert isinstance(target, LowPassTarget)
    result.output("filter", low_pass_disc(side, side, target.radius).float())
    for name in case.outputs:
        disc = re.fullmatch(r"filter_(\d+)_r([\d.]+)", name)
        if disc:
            result.output(name, low_pass_disc(int(disc[1]), int(disc[1]), float(disc[2])))
    result.output("target", target.smooth(case.inputs["images"]))
    return result.finish()
