"""Golden case of MoCo-v3: both encoders' weights in ours, two views, and the momentum encoder's step."""

from __future__ import annotations

from torch import Tensor

from edgemim.methods.mocov3 import MocoV3Config, MomentumContrast
from edgemim.models.convert.mocov3 import plan_mocov3
from edgemim.models.convert.plan import swap_halves
from edgemim.models.encoder import Encoder
from edgemim.models.normalization import IDENTITY
from edgemim.models.sizes import VitConfig
from tests.golden.case import Case, Comparison

_MOMENTUM = "momentum_after."


def compare(case: Case) -> Comparison:
    """Run our MoCo-v3 on the case's weights and views, as in the first step of a run."""
    result = Comparison(case)
    model = build(case)
    for side in ("base", "momentum"):
        key = f"{side}_encoder.pos_embed"
        # Theirs puts the row first; the loaded one is used as it stands.
        assert model.encoder.vit.pos_embed is not None
        result.tensor(f"{key} (computed)", swap_halves(model.encoder.vit.pos_embed), case.weights[key])
    plan = plan_mocov3(case.weights)
    model.load_state_dict(plan.state(case.weights), strict=True)
    model.train()

    model.begin_step(0.0)
    parameters = dict(model.named_parameters())
    for name in case.outputs:
        if name.startswith(_MOMENTUM):
            key = "momentum_encoder." + name.removeprefix(_MOMENTUM)
            result.output(name, parameters[plan.moves[key].name])
    first, second = case.inputs["x1"], case.inputs["x2"]
    _forward(result, model, first, second)
    output = model.loss(first, second)
    result.output("loss", output.loss)
    result.output("loss_q1k2", output.metrics["loss_q1k2"])
    result.output("loss_q2k1", output.metrics["loss_q2k1"])
    output.loss.backward()
    result.gradients(plan.gradients(model.named_parameters()))
    return result.finish()


def build(case: Case) -> MomentumContrast:
    """The method as its own configuration builds it, in the case's sizes."""
    sizes = case.config
    hidden = case.weights["base_encoder.blocks.0.mlp.fc1.weight"].shape[0]
    encoder = Encoder(
        VitConfig(
            width=sizes["embed_dim"],
            depth=sizes["depth"],
            heads=sizes["num_heads"],
            patch_size=sizes["patch_size"],
            image_size=sizes["img_size"],
            mlp_ratio=hidden / sizes["embed_dim"],
        )
    )
    method = MocoV3Config(
        temperature=sizes["T"],
        momentum=sizes["m"],
        embedding_width=sizes["dim"],
        hidden_width=sizes["mlp_dim"],
        freeze_patch_embedding=sizes["stop_grad_conv1"],
    )
    return method.build(encoder, IDENTITY, None)


def _forward(result: Comparison, model: MomentumContrast, first: Tensor, second: Tensor) -> None:
    projected = model.project(first, second)
    keys = model.targets(first, second)
    for number, (z, k) in enumerate(zip(projected, keys, strict=True), start=1):
        result.output(f"z{number}", z)
        result.output(f"q{number}", model.predictor(z))
        result.output(f"k{number}", k)
