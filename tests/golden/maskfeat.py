"""Golden cases of MaskFeat's target and of the block masking that it takes from BEiT."""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from edgemim.methods.hog import HogTarget
from edgemim.methods.maskfeat import MaskFeatConfig
from edgemim.methods.masking import BlockMasking
from edgemim.models.encoder import Encoder, TokenMask
from edgemim.models.normalization import IDENTITY
from edgemim.models.sizes import VitConfig
from tests.golden.case import Case, Comparison


def compare_hog(case: Case) -> Comparison:
    """Histograms of the case's images as the method's target computes them."""
    result = Comparison(case)
    sizes = case.config
    cells = sizes["patch"] // sizes["pool"]
    assert cells * sizes["pool"] == sizes["patch"]
    encoder = Encoder(VitConfig(width=24, depth=1, heads=3, patch_size=sizes["patch"], image_size=sizes["img_size"]))
    target = MaskFeatConfig(bins=sizes["nbins"], cells=cells).build(encoder, IDENTITY, None).branches[0].target
    assert isinstance(target, HogTarget)
    images, masked = case.inputs["images"], case.inputs["mask"]
    labels = target(images, TokenMask(masked, torch.empty(0)))
    result.output("hog", target.histograms(images))
    for name in case.outputs:
        window = re.fullmatch(r"hog_gaussian(\d+)", name)
        if window:
            result.output(name, replace(target, window=int(window[1])).histograms(images))
    result.output("labels_all", labels)
    result.output("labels_masked", labels[masked])
    return result.finish()


def compare_masks(case: Case) -> Comparison:
    """As many masks as the case's statistics are made of, from keys of our own."""
    result = Comparison(case)
    for name, sizes in case.config.items():
        facts = case.facts["scalars"][name]
        side, count = sizes["input_size"], sizes["num_masking_patches"]
        # Half a patch more: int() must not lose one to rounding.
        masking = BlockMasking(ratio=(count + 0.5) / side**2, min_block=sizes["min_num_patches"], grid=(side, side))
        masks = masking(torch.arange(facts["samples"]), side**2).masked.double().view(-1, side, side)
        counts = masks.sum((1, 2))
        result.statistic(f"{name}.count_min", counts.min(), torch.tensor(facts["count_min"]), 0.0)
        result.statistic(f"{name}.count_max", counts.max(), torch.tensor(facts["count_max"]), 0.0)
        right = (masks[:, :, 1:] == masks[:, :, :-1]).double().mean()
        lower = (masks[:, 1:] == masks[:, :-1]).double().mean()
        result.statistic(f"{name}.same_as_right_neighbour", right, torch.tensor(facts["same_as_right_neighbour"]), 0.02)
        result.statistic(f"{name}.same_as_lower_neighbour", lower, torch.tensor(facts["same_as_lower_neighbour"]), 0.02)
        # Each of a map's means of 4000 draws strays by 0.008, their differences by 0.011; a map has hundreds of them.
        stray = (0.5 / facts["samples"]) ** 0.5
        result.statistic(f"{name}.mean_map", masks.mean(0), case.outputs[f"{name}.mean_map"], 4.5 * stray)
        difference = (masks.mean(0) - case.outputs[f"{name}.mean_map"]).abs().mean()
        result.statistic(f"{name}.mean_map, mean difference", difference, torch.tensor(0.0), max(0.02, 1.5 * stray))
        result.leave_out(f"{name}.examples", "numpy's random numbers; ours come from keys")
    return result.finish()
