"""Weights in and out: model folders, timm's names, and a report of every key that did not fit."""

from __future__ import annotations

import argparse
import json
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from timm.models.hiera import Hiera, HieraBlock
from timm.models.vision_transformer import Attention, Block, Mlp, VisionTransformer
from torch import Tensor, nn

from edgemim.errors import UserError
from edgemim.models.arrays import read_arrays
from edgemim.models.build import build_encoder, parse_encoder
from edgemim.models.distilled import DistilledRelativeVit, DistilledVit
from edgemim.models.encoder import Encoder
from edgemim.models.hiera import bare_hiera
from edgemim.models.relative import RelativeVit
from edgemim.models.sizes import EncoderSize, HieraConfig, RelativeVitConfig, VitConfig

MODEL_FILE = "model.safetensors"
FACTS_FILE = "model.json"
_scalar = np.float64(0).__reduce__()[0]
# What training scripts store beside weights: bags of values and single numbers, of which none calls anything.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    (OrderedDict, "yacs.config.CfgNode"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")),
]


@dataclass(frozen=True)
class KeyReport:
    """What became of each key of a loaded state dict; nothing is dropped in silence."""

    used: tuple[str, ...]
    dropped: tuple[str, ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.used)} tensors loaded"]
        for name in ("dropped", "new"):
            keys = getattr(self, name)
            if keys:
                parts.append(f"{name}: {', '.join(keys[:6])}{f' and {len(keys) - 6} more' if len(keys) > 6 else ''}")
        return "; ".join(parts)


def load_weights(
    model: nn.Module, weights: Mapping[str, Tensor], *, may_drop: tuple[str, ...] = (), may_miss: tuple[str, ...] = ()
) -> KeyReport:
    """Load a state dict into a model; keys outside the allowed prefixes must fit exactly.

    Args:
        model: receives the weights.
        weights: state dict.
        may_drop: prefixes of keys that the model may lack or hold in another shape (a head for other classes).
        may_miss: prefixes of the model's keys that may stay as they are.

    Raises:
        UserError: naming the keys that do not fit.
    """
    own = model.state_dict()
    faults, used, dropped = [], {}, []
    for key, tensor in weights.items():
        if key in own and own[key].shape == tensor.shape:
            used[key] = tensor
        elif key.startswith(may_drop) if may_drop else False:
            dropped.append(key)
        elif key in own:
            faults.append(f"{key} has shape {tuple(tensor.shape)}, the model wants {tuple(own[key].shape)}")
        else:
            faults.append(f"{key} is unknown to the model")
    new = [key for key in own if key not in used]
    reported = weights.keys() - set(dropped)
    faults += [
        f"{key} is missing" for key in new if key not in reported and not (may_miss and key.startswith(may_miss))
    ]
    if faults:
        more = f" (and {len(faults) - 4} more)" if len(faults) > 4 else ""
        raise UserError(f"weights do not fit: {'; '.join(faults[:4])}{more}; check that the encoder's size is the same")
    model.load_state_dict(used, strict=False)
    return KeyReport(tuple(used), tuple(dropped), tuple(new))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a weights file: safetensors, a pickle of tensors only (never executed), or PaddlePaddle's of arrays.

    Raises:
        UserError: if it is missing, damaged, or holds anything but data.
    """
    if not path.is_file():
        raise UserError(f"no weights file at {path}")
    try:
        if path.suffix == ".safetensors":
            return find_tensors(load_file(path), path)
        if path.suffix in (".pdparams", ".pkl"):
            return find_tensors(read_arrays(path), path)
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a pickle's protocol, with advice to report it to torch
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from error
    except Exception as error:  # the unpickler raises many kinds; each means: not a plain file of tensors
        raise UserError(
            f"{path} is refused: not a file of plain tensors ({_reason(error)}); convert it to safetensors"
        ) from error
    return find_tensors(content, path)


def _reason(error: Exception) -> str:
    """Why torch did not read a file: what a pickle names that is no tensor, or that it is damaged or no pickle at all."""
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error))
    named = re.search(r"GLOBAL ([\w.]+)", text)
    if named:
        return f"it names {named[1]}"
    if "zip archive" in text:
        return "it is damaged or cut short"
    # torch's own message goes on to advise reading it as code.
    operand = re.search(r"Unsupported operand \d+", text)
    if operand or isinstance(error, (KeyError, EOFError, IndexError)):
        return "it is no file that torch wrote, or a damaged one"
    return text.splitlines()[0].partition(". In PyTorch")[0] if text else type(error).__name__


def find_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict inside a loaded checkpoint, also under 'model', 'state_dict' or 'net'; of DINO's two, the teacher's.

    Raises:
        UserError: if there is none.
    """
    for key in ("model", "state_dict", "model_state_dict", "model_state", "teacher", "net"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds no state dict; give a file of named tensors")
    tensors = {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no tensors; give a file of named tensors")
    return tensors


def save_model(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a model folder: `model.safetensors` and `model.json` (kind, configuration, labels, preprocessing)."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        MODEL_FILE: save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}),
        FACTS_FILE: (json.dumps(dict(facts), indent=2) + "\n").encode(),
    }
    for name, content in parts.items():
        temporary = folder / f"{name}.tmp"
        try:
            temporary.write_bytes(content)
            temporary.replace(folder / name)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise UserError(
                f"cannot write {folder / name} ({len(content):,} bytes): {error.strerror}; free space and --resume"
            ) from error


def read_facts(run: Path) -> dict[str, Any]:
    """The facts of a run's model folder. Raises UserError if the run has none."""
    path = run / "model" / FACTS_FILE
    try:
        facts = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{run} holds no finished model ({path} is missing); finish the run or name another") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(facts, dict) or "kind" not in facts:
        raise UserError(f"{path} does not describe a model")
    return facts


def encoder_of(run: Path) -> EncoderSize:
    """The configuration of a pre-training run's encoder. Raises UserError if the folder holds none."""
    facts = read_facts(run)
    if facts["kind"] != "encoder":
        raise UserError(f"{run} holds a {facts['kind']} model, not a pre-trained encoder; give a pre-training run")
    try:
        return parse_encoder(facts["encoder"])
    except (KeyError, pydantic.ValidationError) as error:
        raise UserError(f"{run / 'model' / FACTS_FILE} does not describe an encoder: {error}") from error


def load_encoder(run: Path | str) -> Encoder:
    """The trained encoder of a pre-training run. Raises UserError if the folder holds none."""
    run = Path(run)
    encoder = build_encoder(encoder_of(run))
    load_weights(encoder.vit, read_tensors(run / "model" / MODEL_FILE))
    return encoder.eval()


def to_timm(encoder: Encoder, num_classes: int = 0) -> VisionTransformer | RelativeVit | Hiera:
    """The encoder as a timm `VisionTransformer` (`Beit` with relative positions, `Hiera`) that any timm code can use.

    The names are timm's own, so the file loads without this call too:
    `timm.create_model("vit_tiny_patch16_224", num_heads=12, num_classes=0, checkpoint_path="model.safetensors")`,
    `timm.create_model("hiera_tiny_224", embed_dim=46, num_classes=0, checkpoint_path="model.safetensors")`; the latter
    pools once more at the end than in pre-training, as its classifiers do (with `q_pool=2` it does not).
    """
    model = bare_vit(encoder.config, num_classes=num_classes, global_pool="token")
    load_weights(model, encoder.vit.state_dict(), may_miss=("head.",))
    return model


def from_timm(model: VisionTransformer | Hiera, *, q_pool: int | None = None) -> Encoder:
    """An encoder with a timm `VisionTransformer`'s or `Hiera`'s weights; its head is left behind.

    Args:
        model: the timm model.
        q_pool: stages of a `Hiera` that halve the grid; default the model's own (timm's is 3, pre-training has 2).

    Raises:
        UserError: on a variant that no encoder covers (no class token, register tokens, other blocks, norms,
            activations or positions).
    """
    if isinstance(model, Hiera):
        return _from_hiera(model, q_pool)
    patch = model.patch_embed.patch_size[0]
    block = model.blocks[0]
    if not (isinstance(block, Block) and isinstance(block.attn, Attention) and isinstance(block.mlp, Mlp)):
        raise UserError(f"this timm model is made of {type(block).__name__}s, not of a plain ViT's blocks")
    # Neither shows in the names or shapes of the weights.
    if getattr(block.norm1, "eps", None) != 1e-6 or not isinstance(block.mlp.act, nn.GELU):
        raise UserError("this timm model has another norm or activation than a plain ViT (LayerNorm eps 1e-6, GELU)")
    config = VitConfig(
        width=model.embed_dim,
        depth=len(model.blocks),
        heads=block.attn.num_heads,
        patch_size=patch,
        image_size=model.patch_embed.grid_size[0] * patch,
        mlp_ratio=float(block.mlp.fc1.weight.shape[0]) / model.embed_dim,
    )
    encoder = Encoder(config)
    load_weights(encoder.vit, model.state_dict(), may_drop=("head.", "fc_norm."), may_miss=("norm.",))
    return encoder


def _from_hiera(model: Hiera, q_pool: int | None) -> Encoder:
    block, proj = model.blocks[0], model.patch_embed.proj
    assert isinstance(block, HieraBlock) and isinstance(proj, nn.Conv2d)
    ends = [-1, *model.stage_ends]
    config = HieraConfig(
        embed_dim=block.dim,
        first_heads=block.attn.heads,
        stages=tuple(last - before for before, last in pairwise(ends)),  # pyright: ignore[reportArgumentType]
        q_pool=q_pool or model.q_pool,
        patch_stride=proj.stride[0],
        patch_kernel=proj.kernel_size[0],
        image_size=model.tokens_spatial_shape[0] * proj.stride[0],
        mlp_ratio=float(block.mlp.fc1.weight.shape[0]) / block.dim,
    )
    encoder = build_encoder(config)
    # Window positions, LayerScale and the expansion without a projection show in the names of the weights.
    load_weights(encoder.vit, model.state_dict(), may_drop=("head.fc.",), may_miss=("head.norm.",))
    return encoder


def bare_vit(
    config: EncoderSize,
    *,
    num_classes: int,
    global_pool: str = "avg",
    drop_path: float = 0.0,
    distilled: bool = False,
) -> VisionTransformer | RelativeVit | Hiera:
    """timm's network of a configuration; with 'avg' pooling it norms after pooling (`fc_norm`), as MAE does.

    A `Hiera` always pools, then norms. `distilled` gives the class token a head of its own for a teacher's answers.
    """
    if isinstance(config, HieraConfig):
        return bare_hiera(config, num_classes=num_classes, drop_path=drop_path)
    if isinstance(config, RelativeVitConfig):
        relative = DistilledRelativeVit if distilled else RelativeVit
        return relative(config, num_classes=num_classes, global_pool=global_pool, drop_path=drop_path)
    plain = DistilledVit if distilled else VisionTransformer
    return plain(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        num_classes=num_classes,
        global_pool=global_pool,  # pyright: ignore[reportArgumentType]
        drop_path_rate=drop_path,
    )
