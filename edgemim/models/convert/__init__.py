"""Published checkpoints under their original names become our encoders: one module a family, every key accounted for.

`FAMILIES` is the registry: to add a family, write its module with a plan and name it here (and in `detect`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edgemim.errors import UserError
from edgemim.models.convert.deepmim import plan_deepmim
from edgemim.models.convert.detect import look
from edgemim.models.convert.encoder import Converted, Family, convert_weights
from edgemim.models.convert.hiera import plan_hiera
from edgemim.models.convert.mae import plan_mae
from edgemim.models.convert.mae_lite import plan_mae_lite
from edgemim.models.convert.mff import plan_mff
from edgemim.models.convert.mirl import plan_mirl
from edgemim.models.convert.mocov3 import plan_mocov3
from edgemim.models.convert.plain import plan_deit, plan_dino, plan_timm
from edgemim.models.convert.simmim import plan_simmim
from edgemim.models.weights import read_tensors

# Heads of the published sizes by width; sizes of 64 channels a head but for ViT-H.
_PAPER = {768: 12, 1024: 16, 1280: 16}.get


def _twelve(width: int) -> int | None:
    return 12 if width in (192, 384, 768) else _PAPER(width)


def _of_64_channels(width: int) -> int | None:
    return _PAPER(width) or (width // 64 if width % 64 == 0 else None)


FamilyName = Literal["mae", "mae-lite", "deepmim", "mirl", "mff", "simmim", "mocov3", "hiera", "timm", "deit", "dino"]
"""Names of the families; the keys of `FAMILIES`."""

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("mae", plan_mae, _PAPER),
        # The lightweight study keeps 12 heads at every width, MIRL and MoCo-v3 at theirs.
        Family("mae-lite", plan_mae_lite, _twelve),
        Family("deepmim", plan_deepmim, _PAPER),
        Family("mirl", plan_mirl, _twelve),
        Family("mff", plan_mff, _of_64_channels),
        Family("simmim", plan_simmim, _PAPER),
        Family("mocov3", plan_mocov3, _twelve),
        # In the first stage; 2 and 4 in the widest ones that were published.
        Family("hiera", plan_hiera, lambda width: {112: 2, 144: 2, 256: 4}.get(width, 1), hierarchical=True),
        Family("timm", plan_timm, _of_64_channels),
        Family("deit", plan_deit, _of_64_channels),
        Family("dino", plan_dino, _of_64_channels),
    )
}

__all__ = ["FAMILIES", "Converted", "Family", "FamilyName", "convert_weights", "look", "read_published"]


def read_published(path: Path, family: str, heads: int | None = None) -> Converted:
    """Read and convert a published file. Raises UserError, one sentence that names the file."""
    weights = read_tensors(path)
    try:
        return convert_weights(FAMILIES[family], weights, heads)
    except UserError as error:
        raise UserError(f"{path} {error}") from error
