"""Where a classifier's weights come from: a pre-training run, timm, or nowhere; and the relative positions any task adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import timm
from torch import Tensor, nn

from edgemim.errors import UserError
from edgemim.models.build import parse_encoder
from edgemim.models.relative import from_plain
from edgemim.models.sizes import EncoderSize, RelativePositions, RelativeVitConfig, VitConfig
from edgemim.models.weights import MODEL_FILE, encoder_of, load_weights, read_facts, read_tensors
from edgemim.run import find_run
from edgemim.tasks.classification import build_model

if TYPE_CHECKING:
    from edgemim.commands.finetune import FinetuneConfig


@dataclass(frozen=True)
class Start:
    """What a classifier begins with.

    Attributes:
        run: the run that weights come from; None from scratch or from timm.
        encoder: the encoder that is fine-tuned; None for a timm model.
    """

    run: Path | None
    encoder: EncoderSize | None


@dataclass(frozen=True)
class Built:
    """A network with its initial weights.

    Attributes:
        architecture: the record that `build_model` builds it from again.
        statistics: mean and std of its input; empty for the default.
        note: a sentence on the weights.
    """

    model: nn.Module
    architecture: dict[str, Any]
    statistics: dict[str, Any]
    note: str

    @property
    def input_size(self) -> int:
        """Side of its square input, pixels."""
        if "vit" in self.architecture:
            return parse_encoder(self.architecture["vit"]).image_size
        return _timm_facts(self.model)["input_size"][-1]


def find_start(config: FinetuneConfig) -> Start:
    """Choose run and encoder; nothing is built yet.

    Raises:
        UserError: if there is no such run, or the network cannot have the relative positions that are asked for.
    """
    if config.init.startswith("timm:"):
        if config.relative_positions is not None:
            raise UserError(f"{config.init} has timm's own positions; leave --relative-positions out")
        return Start(None, None)
    run, encoder = None, config.encoder
    if config.init != "scratch":
        run = find_run(None if config.init == "newest" else Path(config.init), "pretrain")
        encoder = encoder_of(run)
    return Start(run, with_positions(encoder, config.relative_positions, run).as_classifier())


def build_start(config: FinetuneConfig, start: Start, classes: int) -> Built:
    """The network of a start, with its weights. Raises UserError if they do not fit or cannot be had."""
    if start.encoder is None:
        return _from_timm(config, classes)
    architecture = {"vit": start.encoder.model_dump(mode="json")}
    model = build_model(architecture, classes, drop_path=config.drop_path)
    if start.run is None:
        return Built(model, architecture, {}, "weights: from scratch")
    # As in MAE: the pre-training norm is left behind, pooled features get a new one.
    weights, may_drop, may_miss = read_tensors(start.run / "model" / MODEL_FILE), ("norm.",), ("fc_norm.", "head.")
    if config.relative_positions is not None:
        weights, left, new = add_tables(weights, start.encoder, model.state_dict())
        may_drop, may_miss = may_drop + left, may_miss + new
    report = load_weights(model, weights, may_drop=may_drop, may_miss=may_miss)
    preprocessing = read_facts(start.run)["preprocessing"]
    statistics = {key: preprocessing[key] for key in ("mean", "std")}
    return Built(model, architecture, statistics, f"weights: {start.run} ({report})")


def with_positions(encoder: EncoderSize, added: RelativePositions | None, run: Path | None) -> EncoderSize:
    """The encoder (that `run` holds) with the relative positions that it gains, if any. Raises UserError if it cannot."""
    if added is None:
        return encoder
    if type(encoder) is not VitConfig:
        raise UserError(
            f"--relative-positions are added to a plain vision transformer, not to a {encoder.name}"
            f"{f' as {run} holds' if run else ''}; leave them out"
        )
    return added.added_to(encoder)


def add_tables(
    weights: Mapping[str, Tensor], encoder: EncoderSize, own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]:
    """A plain transformer's weights for one with relative positions, and the keys that may be left behind and stay new.

    Args:
        weights: of the plain one.
        encoder: the one with relative positions.
        own: the state of the network that is to hold them.
    """
    assert isinstance(encoder, RelativeVitConfig)
    weights = from_plain(dict(weights), encoder)
    left = tuple(key for key in weights if key.endswith(".k_bias"))
    left += () if encoder.absolute_positions else ("pos_embed",)
    return weights, left, tuple(key for key in own if key.endswith("relative_position_bias_table"))


def _from_timm(config: FinetuneConfig, classes: int) -> Built:
    name = config.init.removeprefix("timm:")
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0]}*")[:3]
        hint = f"; close: {', '.join(close)}" if close else ""
        raise UserError(f"timm knows no model '{name}'{hint}")
    try:
        options = {"num_classes": classes, "drop_path_rate": config.drop_path or None}
        model = timm.create_model(name, pretrained=config.weights is None, **options)
    except Exception as error:  # a hub's many ways to fail, all with one remedy
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot get the weights of {name} ({reason}); give --weights FILE") from error
    note = f"weights: timm {name}, downloaded by timm"
    if config.weights is not None:
        head = tuple(f"{key}." for key in _names(_timm_facts(model).get("classifier")))
        report = load_weights(model, read_tensors(config.weights), may_drop=head, may_miss=head)
        note = f"weights: {config.weights} ({report})"
    return Built(model, {"timm": name}, {key: _timm_facts(model)[key] for key in ("mean", "std")}, note)


def _timm_facts(model: nn.Module) -> dict[str, Any]:
    """What timm knows of a model's input and head."""
    return cast(dict[str, Any], model.default_cfg)


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())
