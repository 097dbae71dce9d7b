"""MAE-Lite's files (wangsr126/MAE-Lite): MAE, and the wrapper of D-MAE (arXiv 2205.14443) and D2-MAE (arXiv 2404.12210).

The wrapper holds the student below `model.`, the frozen teacher below `tch_model.` and adapters. D2's student has one
block more than its encoder: norm and queries, keys, values, of which the values are never read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from edgemim.models.convert.mae import mae_step
from edgemim.models.convert.plan import AS_IS, Drop, Layout, Move, Plan, make_plan
from edgemim.models.convert.simmim import relative_step

_ADAPTER = re.compile(r"(attn|hidden)_adapter\.adapter(\d+)\.weight")
_CONVOLUTION = Layout("1 x 1 convolution as a matrix", lambda x: x.flatten(1), lambda x: x[..., None, None])


def _queries_and_keys(qkv: Tensor) -> Tensor:
    return qkv[: 2 * len(qkv) // 3]


def _with_zeros(gradient: Tensor) -> Tensor:
    # Nothing reads the values: their gradient is zero.
    whole = gradient.new_zeros(3 * len(gradient) // 2, *gradient.shape[1:])
    whole[: len(gradient)] = gradient
    return whole


_NO_VALUES = Layout("queries and keys alone", _queries_and_keys, _with_zeros)


def plan_mae_lite(weights: Mapping[str, Tensor]) -> Plan:
    """A masked autoencoder, the wrapper of a distilled one, or one fine-tuned with relative positions.

    Raises:
        UserError: on unknown tensors.
    """
    if any(key.endswith("relative_position_bias_table") for key in weights):
        return make_plan(weights, relative_step, "mae-lite")
    if not any(key.startswith(("model.", "tch_model.")) for key in weights):
        return make_plan(weights, mae_step, "mae-lite")
    extra = _extra_block(weights)

    def rule(key: str) -> Move | Drop | None:
        if key.startswith("tch_model."):
            return Drop("the frozen teacher")
        return _adapter_step(key, decoupled=extra is not None) or _student_step(key, extra)

    return make_plan(weights, rule, "mae-lite")


def teacher_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The wrapper's frozen teacher, a plain encoder, under its own names."""
    start = "tch_model."
    return {key.removeprefix(start): value for key, value in weights.items() if key.startswith(start)}


def _extra_block(weights: Mapping[str, Tensor]) -> str | None:
    """The prefix of the student's block that has no MLP: D2's, which is thrown away after pre-training."""
    for key in weights:
        found = re.fullmatch(r"(model\.blocks\.\d+\.)attn\.qkv\.weight", key)
        if found and f"{found[1]}mlp.fc1.weight" not in weights:
            return found[1]
    return None


def _student_step(key: str, extra: str | None) -> Move | Drop | None:
    if extra and key.startswith(extra):
        part, _, kind = key.removeprefix(extra).rpartition(".")
        inside = {"norm1": ("norm", AS_IS), "attn.qkv": ("qk", _NO_VALUES)}.get(part)
        return inside and Move(f"decoders.attention.source.{inside[0]}.{kind}", inside[1])
    return mae_step(key.removeprefix("model.")) if key.startswith("model.") else None


def _adapter_step(key: str, *, decoupled: bool) -> Move | None:
    found = _ADAPTER.fullmatch(key)
    if found is None:
        return None
    # Their logits count layers from 0, their hidden states from the embeddings; student and teacher have the same.
    layer = int(found[2]) + (found[1] == "attn")
    if found[1] == "hidden":
        return Move(f"decoders.hidden_{layer}_{layer}.adapt.weight")
    branch = "attention" if decoupled else f"attention_{layer}_{layer}"
    return Move(f"decoders.{branch}.mix.weight", _CONVOLUTION)
