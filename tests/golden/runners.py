"""Which golden cases the project can run: to cover one more, write its comparison and name it here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.golden import (
    analysis,
    deepmim,
    distill,
    hiera,
    layer_decay,
    mae,
    maskfeat,
    mff,
    mirl,
    mocov3,
    ostrack,
    pixmim,
    segmentation,
    simmim,
    tracking_metrics,
    vit,
)
from tests.golden.case import Case, Comparison, NotCovered

RUNNERS: dict[str, Callable[[Case], Comparison]] = {
    "mae": mae.compare,
    "mae_lite": mae.compare,
    "vit_finetune": vit.compare,
    "vit_finetune_cls": vit.compare,
    "vit_rpe": vit.compare,
    "vit_rpe_qv": vit.compare,
    "vit_rpe_shared": vit.compare,
    "layer_decay": layer_decay.compare,
    "d_mae": distill.compare,
    "d_mae_ext": distill.compare,
    "d2_mae": distill.compare,
    "deepmim": deepmim.compare,
    "maskfeat_hog": maskfeat.compare_hog,
    "beit_block_mask": maskfeat.compare_masks,
    "simmim_vit": simmim.compare,
    "mff": mff.compare,
    "mirl": mirl.compare,
    "mocov3": mocov3.compare,
    "pixmim_lowpass": pixmim.compare,
    "seg_fpn": segmentation.compare,
    "hiera_mae": hiera.compare_mae,
    "hiera_cls": hiera.compare_classifier,
    "cka": analysis.compare_cka,
    "attention_stats": analysis.compare_attention,
    "ostrack": ostrack.compare,
    "ostrack_targets": ostrack.compare_targets,
    "tracking_metrics": tracking_metrics.compare,
    "lasot_official": tracking_metrics.compare_lasot_official,
}

NOT_YET: dict[str, str] = {}
"""Kinds of the published material whose code is not built, each with the reason; none. Any other name is a mistake."""


def run_case(folder: Path) -> Comparison:
    """Compare one case folder. Raises NotACase, or NotCovered where no code computes what the case holds."""
    case = Case.open(folder)
    if case.name not in RUNNERS:
        raise NotCovered(case.name)
    return RUNNERS[case.name](case)
