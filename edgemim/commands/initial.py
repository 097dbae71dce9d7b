"""Where a classifier's weights come from: a pre-training run, timm, or nowhere; and the relative positions any task adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pydantic
import timm
from torch import Tensor, nn

from edgemim.errors import UserError
from edgemim.models.build import parse_encoder
from edgemim.models.relative import from_plain
from edgemim.models.sizes import EncoderSize, HieraConfig, RelativePositions, RelativeVitConfig, VitConfig
from edgemim.models.weights import MODEL_FILE, load_weights, read_facts, read_tensors
from edgemim.run import find_run
from edgemim.tasks.classification import build_model

if TYPE_CHECKING:
    from edgemim.commands.finetune import FinetuneConfig

_HEADS, _NORMS = (
    ("head.fc.", "head.weight", "head.bias", "head_dist."),
    ("norm.", "fc_norm.", "dist_norm.", "head.norm."),
)
"""What a classifier has of its own, beside the encoder: layers for classes, and norms of what is pooled."""


@dataclass(frozen=True)
class Start:
    """What a classifier begins with.

    Attributes:
        run: the run that weights come from; None from scratch or from timm.
        encoder: the encoder that is fine-tuned; None for a timm model.
        statistics: mean and std of the run's input.
    """

    run: Path | None
    encoder: EncoderSize | None
    statistics: dict[str, Any] = field(default_factory=dict)


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
        UserError: if there is no such run, or the network cannot have the positions, the pooling or the second head that
            are asked for.
    """
    if config.init.startswith("timm:"):
        if config.relative_positions is not None:
            raise UserError(f"{config.init} has timm's own positions; leave --relative-positions out")
        _check_class_token(config, config.init, has_one=False)
        return Start(None, None)
    run, encoder, statistics = None, config.encoder, {}
    if config.init != "scratch":
        run = find_run(None if config.init == "newest" else Path(config.init), "pretrain")
        encoder, statistics = described(run, "a classifier")
    encoder = with_positions(encoder, config.relative_positions, run).as_classifier()
    _check_class_token(config, f"a {encoder.name}", has_one=not isinstance(encoder, HieraConfig))
    return Start(run, encoder, statistics)


def architecture_of(config: FinetuneConfig, encoder: EncoderSize) -> dict[str, Any]:
    """The record of a classifier with this encoder, from which `build_model` builds it."""
    record: dict[str, Any] = {"vit": encoder.model_dump(mode="json")}
    if config.pool == "cls":
        record["pool"] = "token"
    if config.distillation.teacher is not None and config.distillation.through == "token":
        record["distilled"] = True
    return record


def described(run: Path, purpose: str) -> tuple[EncoderSize, dict[str, Any]]:
    """The encoder of a pre-training run or of a fine-tuned classifier, with its mean and std. Raises UserError."""
    facts = read_facts(run)
    try:
        if facts["kind"] == "encoder":
            encoder = parse_encoder(facts["encoder"])
        elif facts["kind"] == "classification" and "vit" in facts["architecture"]:
            encoder = parse_encoder(facts["architecture"]["vit"])
        else:
            raise UserError(f"{run} holds a {facts['kind']} model, whose encoder {purpose} cannot start from")
        return encoder, {key: facts["preprocessing"][key] for key in ("mean", "std")}
    except (KeyError, TypeError, pydantic.ValidationError) as error:
        raise UserError(f"{run / 'model' / 'model.json'} does not describe a model: {error}") from error


def _check_class_token(config: FinetuneConfig, network: str, *, has_one: bool) -> None:
    """Refuse what needs a class token where there is none, or where it has another use. Raises UserError."""
    listens = config.distillation.teacher is not None and config.distillation.through == "token"
    if config.pool == "cls" and not has_one:
        raise UserError(
            f"--pool cls classifies the class token of a plain vision transformer, not {network}; leave it out"
        )
    if listens and (config.pool == "cls" or not has_one):
        reason = "--pool cls classifies" if has_one else f"{network} does not offer"
        raise UserError(
            f"--distillation.through token teaches the class token, which {reason}; give --distillation.through head"
        )


def build_start(config: FinetuneConfig, start: Start, classes: int) -> Built:
    """The network of a start, with its weights. Raises UserError if they do not fit or cannot be had."""
    if start.encoder is None:
        return _from_timm(config, classes)
    architecture = architecture_of(config, start.encoder)
    model = build_model(architecture, classes, drop_path=config.drop_path)
    if start.run is None:
        return Built(model, architecture, {}, "weights: from scratch")
    found = read_tensors(start.run / "model" / MODEL_FILE)
    # A head for other classes may have the same shape.
    weights = {key: value for key, value in found.items() if not key.startswith(_HEADS)}
    # As in MAE: the pre-training norm is left behind, pooled features get a new one.
    may_drop, may_miss = _NORMS, (*_NORMS, *_HEADS)
    if config.relative_positions is not None:
        weights, left, new = add_tables(weights, start.encoder, model.state_dict())
        may_drop, may_miss = may_drop + left, may_miss + new
    report = load_weights(model, weights, may_drop=may_drop, may_miss=may_miss)
    return Built(model, architecture, start.statistics, f"weights: {start.run} ({report})")


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
