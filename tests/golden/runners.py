"""Which golden cases the project can run: to cover one more, write its comparison and name it here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.golden import deepmim, distill, layer_decay, mae, maskfeat, mff, mirl, pixmim, simmim, vit
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
    "pixmim_lowpass": pixmim.compare,
}


def run_case(folder: Path) -> Comparison:
    """Compare one case folder. Raises NotACase, or NotCovered where no code computes what the case holds."""
    case = Case.open(folder)
    if case.name not in RUNNERS:
        raise NotCovered(case.name)
    return RUNNERS[case.name](case)
