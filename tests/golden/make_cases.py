"""`python -m tests.golden.make_cases PUBLISHED [OUT]`: the small cases beside this file, recorded from our own code.

Refused unless our code agrees with the published case of the same name in the folder PUBLISHED: what is recorded here is
what was compared there, at smaller sizes. Weights are named and laid out as the published ones, written down by hand.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from edgemim.models.convert.plan import swap_halves
from edgemim.models.position import sincos_positions
from tests.golden.case import Case, Recording
from tests.golden.runners import RUNNERS

Shapes = dict[str, tuple[int, ...]]
_IMAGE, _PATCH, _GRID, _WIDTH, _DEPTH, _HEADS = 16, 4, 4, 16, 2, 2
_TOKENS = _GRID**2
_DECODER, _DECODER_HEADS, _OUT = 8, 2, 3 * _PATCH**2
_VIT = {"img_size": _IMAGE, "patch_size": _PATCH, "embed_dim": _WIDTH, "depth": _DEPTH, "num_heads": _HEADS}
_DECODER_SIZES = {"decoder_embed_dim": _DECODER, "decoder_depth": 1, "decoder_num_heads": _DECODER_HEADS}
_TEACHER = {"embed_dim": 12, "depth": _DEPTH, "num_heads": 3}
_STUDENT = {"embed_dim": _WIDTH, "depth": _DEPTH, "num_heads": _HEADS, **_DECODER_SIZES}
_DEEP = 6
_STAGES = (4, 8, 16, 32)
_HIERA_SIDE, _HIERA_KERNEL, _HIERA_STRIDE, _UNITS = 32, 3, 2, 4
_TRACKER, _TEMPLATE, _SEARCH, _BASE_GRID = 8, 16, 24, 5
_TOO_LARGE = ("filter_224_r40", "heatmap_320_16", "mask_CTR_POINT", "mask_CTR_REC", "mask_GT_BOX")
# Outputs that are numbered by a layer, at these depths.
_NUMBERED: dict[str, tuple[str, ...]] = {
    "mae": ("block2", "grad.cls_token", "grad.decoder_pred.weight"),
    "d_mae": ("adapted_logits2", "student.attn_logits2", "teacher.attn_logits2", "student.block2"),
    "d2_mae": ("adapted_logits2", "student.attn_logits3", "teacher.attn_logits2", "student.block2"),
    "deepmim": ("latent1", "latent2", "latent3", "grad.blocks.3.attn.qkv.weight"),
    "vit_finetune": ("attn_logits2", "block2"),
    "simmim_vit": ("block2",),
    "ostrack": (
        "eval.block2",
        "eval.block3",
        *(f"{mode}.removed_search_index_block{number}" for mode in ("eval", "train") for number in (2, 3)),
        *(f"eval.kept_search_index_after_block{number}" for number in (2, 3)),
    ),
}

# What is other than in the published case.
SIZES: dict[str, dict[str, Any]] = {
    "mae": {**_VIT, **_DECODER_SIZES},
    "d_mae": {"img_size": _IMAGE, "patch_size": _PATCH, "student": _STUDENT, "teacher": _TEACHER, "attn_idx": [_DEPTH]},
    "d2_mae": {
        "img_size": _IMAGE,
        "patch_size": _PATCH,
        "student": {**_STUDENT, "depth": _DEPTH + 1},
        "teacher": _TEACHER,
        "decode_idx": 1,
        "attn_idx": [_DEPTH],
        "std_attn_idx": [_DEPTH + 1],
    },
    "deepmim": {**_VIT, **_DECODER_SIZES, "depth": 4, "taps": [1, 2, 3, 4], "target_dim": 6},
    "mirl": {**_VIT, **_DECODER_SIZES, "depth": _DEEP},
    "mff": {
        "img_size": _IMAGE,
        "patch_size": _PATCH,
        "embed_dims": _WIDTH,
        "num_layers": _DEEP,
        "num_heads": _HEADS,
        "feedforward_channels": 4 * _WIDTH,
        "out_indices": list(range(_DEEP)),
        **_DECODER_SIZES,
    },
    "simmim_vit": {**_VIT, "mask_patch_size": 2 * _PATCH},
    "vit_finetune": {**_VIT, "num_classes": 5},
    "mocov3": {**_VIT, "depth": 1, "dim": 6, "mlp_dim": 10},
    "hiera_mae": {
        "input_size": [_HIERA_SIDE, _HIERA_SIDE],
        "student": {"embed_dim": _STAGES[0], "num_heads": 1, "stages": [1, 1, 1, 1], **_DECODER_SIZES},
        "teacher": {"embed_dim": _STAGES[0], "num_heads": 2, "stages": [1, 1, 1, 1]},
        "attn_idx": [4],
        "tch_attn_idx": [4],
    },
    "pixmim_lowpass": {"img_size": _IMAGE, "radius": 4},
    "maskfeat_hog": {"img_size": 32},
    "ostrack": {
        "base_img": _BASE_GRID * _PATCH,
        "patch": _PATCH,
        "template": _TEMPLATE,
        "search": _SEARCH,
        "embed_dim": _TRACKER,
        "depth": 3,
        "num_heads": 2,
        "ce_loc": [1, 2],
        "ce_keep_ratio": [0.7, 0.6],
        "head_channels": _TRACKER,
    },
    "ostrack_targets": {"crop": "suffix t: area factor 2, size 8; suffix s: factor 4, size 16"},
}


def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    """A linear layer's shapes."""
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(name: str, width: int) -> Shapes:
    """A normalisation layer's shapes."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def block(name: str, width: int) -> Shapes:
    """A transformer block's shapes."""
    parts = norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width)
    parts |= linear(f"{name}.attn.qkv", width, 3 * width) | linear(f"{name}.attn.proj", width, width)
    return parts | linear(f"{name}.mlp.fc1", width, 4 * width) | linear(f"{name}.mlp.fc2", 4 * width, width)


def vit(depth: int = _DEPTH, width: int = _WIDTH, name: str = "") -> Shapes:
    """A plain encoder's shapes."""
    parts: Shapes = {"cls_token": (1, 1, width), "pos_embed": (1, _TOKENS + 1, width)}
    parts |= {"patch_embed.proj.weight": (width, 3, _PATCH, _PATCH), "patch_embed.proj.bias": (width,)}
    for number in range(depth):
        parts |= block(f"blocks.{number}", width)
    return {name + key: shape for key, shape in (parts | norm("norm", width)).items()}


def decoder(number: str = "", out: int = _OUT, name: str = "") -> Shapes:
    """MAE's decoder's shapes, with a number in its names for DeepMIM."""
    parts: Shapes = {f"mask_token{number}": (1, 1, _DECODER), "decoder_pos_embed": (1, _TOKENS + 1, _DECODER)}
    parts |= linear(f"decoder_embed{number}", _WIDTH, _DECODER) | block(f"decoder_blocks{number}.0", _DECODER)
    parts |= norm(f"decoder_norm{number}", _DECODER) | linear(f"decoder_pred{number}", _DECODER, out)
    return {name + key: shape for key, shape in parts.items()}


def wrapper(extra: bool) -> Shapes:
    """D-MAE's, or D2-MAE's with one block more that has no more than its logits need."""
    parts = vit(name="model.") | decoder(name="model.") | vit(width=_TEACHER["embed_dim"], name="tch_model.")
    if extra:
        stem = f"model.blocks.{_DEPTH}"
        parts |= norm(f"{stem}.norm1", _WIDTH) | linear(f"{stem}.attn.qkv", _WIDTH, 3 * _WIDTH)
    heads = (_TEACHER["num_heads"], _HEADS, 1, 1)
    return parts | {f"attn_adapter.adapter{_DEPTH - 1}.weight": heads}


def mirl() -> Shapes:
    """MIRL's shapes in torch's layout."""
    parts = vit(_DEEP) | norm("norm_low", _WIDTH) | linear("decoder_embed0_1", _WIDTH, _DECODER)
    for number in range(_DEEP):
        parts |= linear(f"decoder_embed{number}", _WIDTH, _DECODER) | norm(f"decoder_norm{number}", _DECODER)
        parts |= norm(f"norm{number}", _WIDTH) if number < _DEEP - 1 else {}
        stem = f"decoder_blocks{number}.0"
        parts |= block(stem, _DECODER) | norm(f"{stem}.norm3", _DECODER) | norm(f"{stem}.norm4", _DECODER)
        parts |= linear(f"{stem}.cross_attn.q", _DECODER, _DECODER) | linear(
            f"{stem}.cross_attn.proj", _DECODER, _DECODER
        )
        parts |= linear(f"{stem}.cross_attn.kv", _DECODER, 2 * _DECODER)
        parts |= {f"mask_token{number}": (1, 1, _DECODER), f"decoder_pos_embed{number}": (1, _TOKENS + 1, _DECODER)}
        parts |= {f"decoder_pred{number}.weight_v": (_OUT, _DECODER), f"decoder_pred{number}.weight_g": (_DECODER,)}
        parts |= {f"decoder_pred{number}.bias": (_OUT,)}
    return parts


_MFF_NAMES = {
    "patch_embed.proj": "patch_embed.projection",
    "decoder_norm": "ln1",
    "norm1": "ln1",
    "norm2": "ln2",
    "norm": "ln1",
    "mlp.fc1": "ffn.layers.0.0",
    "mlp.fc2": "ffn.layers.1",
}


def mff() -> Shapes:
    """mmpretrain's names."""
    parts: Shapes = {"backbone.proj_weights": (_DEEP, 1, 1, 1)}
    for number in range(_DEEP - 1):
        parts |= linear(f"backbone.proj_layers.{number}", _WIDTH, _WIDTH)
    for stem, own in (("backbone.", vit(_DEEP)), ("neck.", decoder())):
        for key, shape in own.items():
            name = key.replace("blocks.", "layers.", 1) if stem == "backbone." else key
            for ours, theirs in _MFF_NAMES.items():
                if f".{ours}." in f".{name}":
                    name = f".{name}".replace(f".{ours}.", f".{theirs}.", 1)[1:]
                    break
            parts[stem + name] = shape
    return parts


def simmim() -> Shapes:
    """SimMIM's: no absolute positions, no bias of keys, LayerScale, one table."""
    parts: Shapes = {"mask_token": (1, 1, _WIDTH), "rel_pos_bias.relative_position_bias_table": (7 * 7 + 3, _HEADS)}
    for key, shape in vit().items():
        stem = key.removesuffix("qkv.bias")
        if stem != key:
            parts |= {f"{stem}q_bias": (_WIDTH,), f"{stem}v_bias": (_WIDTH,)}
        elif key != "pos_embed":
            parts[key] = shape
    for number in range(_DEPTH):
        parts |= {f"blocks.{number}.gamma_{which}": (_WIDTH,) for which in (1, 2)}
    found = {f"encoder.{key}": shape for key, shape in parts.items()}
    found["encoder.rel_pos_bias.relative_position_index"] = (_TOKENS + 1, _TOKENS + 1)
    return found | {"decoder.0.weight": (_OUT, _WIDTH, 1, 1), "decoder.0.bias": (_OUT,)}


def offsets() -> Tensor:
    """BEiT's number of each offset between two tokens; the last three are those of the class token."""
    side = 2 * _GRID - 1
    table = torch.empty(_TOKENS + 1, _TOKENS + 1, dtype=torch.long)
    table[0, :], table[:, 0], table[0, 0] = side**2, side**2 + 1, side**2 + 2
    for i in range(_TOKENS):
        for j in range(_TOKENS):
            row, column = i // _GRID - j // _GRID + _GRID - 1, i % _GRID - j % _GRID + _GRID - 1
            table[i + 1, j + 1] = row * side + column
    return table


def mocov3() -> Shapes:
    """Both encoders with projectors, and the predictor; norms between the linear layers."""
    hidden, dim = SIZES["mocov3"]["mlp_dim"], SIZES["mocov3"]["dim"]

    def mlp(name: str, widths: tuple[int, ...]) -> Shapes:
        parts: Shapes = {}
        for layer, (inputs, outputs) in enumerate(pairwise(widths)):
            parts |= linear(f"{name}.{3 * layer}", inputs, outputs, bias=False)
            last = layer == len(widths) - 2
            bn = f"{name}.{3 * layer + 1}"
            parts |= {} if last else norm(bn, outputs)
            parts |= {
                f"{bn}.running_mean": (outputs,),
                f"{bn}.running_var": (outputs,),
                f"{bn}.num_batches_tracked": (),
            }
        return parts

    parts = mlp("predictor", (dim, hidden, dim))
    for side in ("base_encoder", "momentum_encoder"):
        parts |= vit(1, name=f"{side}.") | mlp(f"{side}.head", (_WIDTH, hidden, hidden, dim))
    return parts


def hiera(name: str) -> Shapes:
    """Four stages of one block; the first block of a stage widens, in a projection beside its attention."""
    tokens = (_HIERA_SIDE // _HIERA_STRIDE) ** 2
    parts: Shapes = {"pos_embed": (1, tokens, _STAGES[0]), "patch_embed.proj.bias": (_STAGES[0],)}
    parts |= {"patch_embed.proj.weight": (_STAGES[0], 3, _HIERA_KERNEL, _HIERA_KERNEL)}
    for number, width in enumerate(_STAGES):
        before, stem = _STAGES[max(number - 1, 0)], f"blocks.{number}"
        parts |= norm(f"{stem}.norm1", before) | norm(f"{stem}.norm2", width)
        parts |= linear(f"{stem}.attn.qkv", before, 3 * width) | linear(f"{stem}.attn.proj", width, width)
        parts |= linear(f"{stem}.mlp.fc1", width, 4 * width) | linear(f"{stem}.mlp.fc2", 4 * width, width)
        parts |= linear(f"{stem}.proj", before, width) if number else {}
    for number, side in enumerate((4, 2)):
        head = f"multi_scale_fusion_heads.{number}"
        parts |= {f"{head}.weight": (_STAGES[-1], _STAGES[number], side, side), f"{head}.bias": (_STAGES[-1],)}
    return {name + key: shape for key, shape in (parts | norm("encoder_norm", _STAGES[-1])).items()}


def hiera_wrapper() -> Shapes:
    """The study's wrapper: student with its decoder, teacher, adapter of the last stage's heads."""
    parts = hiera("model.") | hiera("tch_model.") | {"attn_adapter.adapter3.weight": (16, 8, 1, 1)}
    patch = 4 * _HIERA_STRIDE
    own = decoder(out=3 * patch**2, name="model.")
    own |= {"model.decoder_embed.weight": (_DECODER, _STAGES[-1])}
    own |= {"model.decoder_pos_embed": (1, (_HIERA_SIDE // patch) ** 2, _DECODER)}
    return parts | own


def tracker() -> Shapes:
    """OSTrack's: an encoder that keeps what it was pre-trained with, two tables of its own, three stacks."""
    parts: Shapes = {"cls_token": (1, 1, _TRACKER), "pos_embed": (1, _BASE_GRID**2 + 1, _TRACKER)}
    parts |= {"pos_embed_z": (1, (_TEMPLATE // _PATCH) ** 2, _TRACKER)}
    parts |= {"pos_embed_x": (1, (_SEARCH // _PATCH) ** 2, _TRACKER), "patch_embed.proj.bias": (_TRACKER,)}
    parts |= {"patch_embed.proj.weight": (_TRACKER, 3, _PATCH, _PATCH)} | norm("norm", _TRACKER)
    for number in range(3):
        parts |= block(f"blocks.{number}", _TRACKER)
    found: Shapes = {f"backbone.{key}": shape for key, shape in parts.items()}
    for stack, out in (("ctr", 1), ("offset", 2), ("size", 2)):
        widths = (_TRACKER, _TRACKER, _TRACKER // 2, _TRACKER // 4, _TRACKER // 8)
        for number, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            stem = f"box_head.conv{number}_{stack}"
            found |= {f"{stem}.0.weight": (outputs, inputs, 3, 3), f"{stem}.0.bias": (outputs,)}
            found |= norm(f"{stem}.1", outputs) | {f"{stem}.1.running_mean": (outputs,)}
            found |= {f"{stem}.1.running_var": (outputs,), f"{stem}.1.num_batches_tracked": ()}
        found |= {f"box_head.conv5_{stack}.weight": (out, widths[-1], 1, 1), f"box_head.conv5_{stack}.bias": (out,)}
    return found


def finetuned() -> Shapes:
    """A classifier of the mean of the patch tokens."""
    parts = {key: shape for key, shape in vit().items() if not key.startswith("norm.")}
    return parts | norm("fc_norm", _WIDTH) | linear("head", _WIDTH, SIZES["vit_finetune"]["num_classes"])


SHAPES: dict[str, Shapes] = {
    "mae": vit() | decoder(),
    "d_mae": wrapper(extra=False),
    "d2_mae": wrapper(extra=True),
    "deepmim": vit(4) | decoder("1", 6) | decoder("2", 6) | decoder("3", 6) | decoder("4", 6),
    "mirl": mirl(),
    "mff": mff(),
    "simmim_vit": simmim(),
    "vit_finetune": finetuned(),
    "mocov3": mocov3(),
    "hiera_mae": hiera_wrapper(),
    "pixmim_lowpass": {},
    "maskfeat_hog": {},
    "ostrack": tracker(),
    "ostrack_targets": {},
}


def draw(case: str, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights as the published cases draw them: no term vanishes, fixed tables keep their values."""
    weights = {}
    for key, shape in SHAPES[case].items():
        if key.endswith(("pos_embed_z", "pos_embed_x")):
            value = _interpolated(weights["backbone.pos_embed"], shape[1])
        elif "pos_embed" in key and case not in ("vit_finetune", "hiera_mae", "ostrack"):
            table = sincos_positions(shape[-1], (_GRID, _GRID), prefix=1)
            value = swap_halves(table) if case in ("mff", "mocov3") else table
        elif key.endswith(("weight_g", "running_var")):
            value = torch.ones(shape)
        elif key.endswith("relative_position_index"):
            value = offsets()
        elif key.endswith("num_batches_tracked"):
            value = torch.zeros(shape, dtype=torch.long)
        else:
            scale = max(0.05, 0.6 * (shape[1] if len(shape) > 1 else 9) ** -0.5)
            one = len(shape) == 1 and key.endswith("weight")
            value = torch.randn(shape, generator=generator) * scale + one
        turned = case == "mirl" and value.dim() == 2
        weights[key] = value.T.contiguous() if turned else value.contiguous()
    return weights


def _interpolated(table: Tensor, tokens: int) -> Tensor:
    """Positions of a square grid for one of so many tokens, without the class token's."""
    picture = table[:, 1:].transpose(1, 2).unflatten(2, (_BASE_GRID, _BASE_GRID))
    side = math.isqrt(tokens)
    resized = torch.nn.functional.interpolate(picture, (side, side), mode="bicubic", align_corners=False)
    return resized.flatten(2).transpose(1, 2)


def draw_inputs(template: Case, config: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """Inputs under the published case's names."""
    if template.name == "ostrack_targets":
        return draw_targets(template, generator)
    if template.name == "ostrack":
        sides = {"template_images": _TEMPLATE, "search_images": _SEARCH}
        images = {name: torch.randn(2, 3, side, side, generator=generator) for name, side in sides.items()}
        return images | {name: template.inputs[name] for name in ("template_anno", "search_anno")}
    side = config["input_size"][0] if "input_size" in config else config["img_size"]
    images = (3, side, side)
    found: dict[str, Tensor] = {}
    for name, published in template.inputs.items():
        batch = len(published)
        if name in ("images", "x1", "x2"):
            found[name] = torch.randn(batch, *images, generator=generator)
        elif name == "noise":
            found[name] = torch.rand(batch, _UNITS if template.name == "hiera_mae" else _TOKENS, generator=generator)
        elif name == "teacher_out":
            found[name] = torch.randn(batch, _TOKENS + 1, config["target_dim"], generator=generator)
        elif name == "labels":
            found[name] = torch.randint(config["num_classes"], (batch,), generator=generator)
        elif name == "mask":
            found[name] = _mask(template.name, published)
    if "ids_shuffle" in template.inputs:
        found["ids_shuffle"] = found["noise"].argsort(1)
    return found


def draw_targets(template: Case, generator: torch.Generator) -> dict[str, Tensor]:
    """The published boxes and scores, and a smaller picture with the boxes of its crops."""
    image = torch.randint(0, 256, (24, 32, 3), generator=generator, dtype=torch.uint8)
    small = {"image_uint8_hwc": image, "crop_boxes_xywh": template.inputs["crop_boxes_xywh"] / 5}
    return template.inputs | small


def _mask(case: str, published: Tensor) -> Tensor:
    if case == "maskfeat_hog":  # two by two patches of 16 pixels
        return torch.tensor([[True, False, False, True], [False, True, True, True]])
    units = torch.tensor([[[1, 0], [1, 0]], [[0, 1], [1, 0]]]).to(published.dtype)
    return units.repeat_interleave(2, 1).repeat_interleave(2, 2)


def record(name: str, published: Path, out: Path) -> int:
    """Write one small case; returns its bytes. Raises ValueError if our code does not agree with the published one."""
    template = Case.open(published / name)
    if not RUNNERS[name](template).passed:
        raise ValueError(f"our code does not agree with {published / name}: nothing is recorded from it")
    generator = torch.Generator().manual_seed(template.config.get("seed", 0))
    config = copy.deepcopy(template.config) | SIZES[name]
    weights, inputs = draw(name, generator), draw_inputs(template, config, generator)
    wanted = [key for key in template.outputs if key not in _TOO_LARGE and not key.startswith("adapted_logits")]
    wanted += _NUMBERED.get(name, ())
    facts = {
        "case": name,
        "variant": "small",
        "source": f"edgemim's own values, recorded after its agreement with the published case '{name}'",
        "config": config,
        "inputs": {key: list(value.shape) for key, value in inputs.items()},
        "outputs": {},
        "tolerance": template.facts["tolerance"],
    }
    if "scalars" in template.facts:
        facts["scalars"] = copy.deepcopy(template.facts["scalars"])
        facts["scalars"]["map_box_back"]["search_size"] = _SEARCH
    recording = Recording()
    RUNNERS[name](Case(out / name, name, facts, weights, inputs, dict.fromkeys(wanted, torch.zeros(())), recording))
    facts["outputs"] = {key: {"shape": list(value.shape)} for key, value in recording.outputs.items()}
    if recording.norms:
        facts["grad_l2_norms"] = recording.norms
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    for part, tensors in (("weights", weights), ("inputs", inputs), ("outputs", recording.outputs)):
        if tensors:
            save_file(tensors, folder / f"{part}.safetensors")
    (folder / "case.json").write_text(json.dumps(facts, indent=1) + "\n")
    return sum(path.stat().st_size for path in folder.iterdir())


def main(published: Path, out: Path) -> None:
    """Record every small case."""
    torch.set_num_threads(1)
    sizes = {name: record(name, published, out) for name in SIZES if name in RUNNERS}
    for name, size in sizes.items():
        print(f"{name}: {size:,} bytes")
    print(f"{sum(sizes.values()):,} bytes in {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent / "cases")
