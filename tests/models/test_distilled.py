"""Networks with a second head: what each gives, how fast it learns, and that the first is as it would be alone."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from timm.models.vision_transformer import VisionTransformer  # noqa: E402

from edgemim.models.distilled import DistilledVit  # noqa: E402
from edgemim.models.sizes import SIZES  # noqa: E402
from edgemim.models.weights import bare_vit  # noqa: E402
from edgemim.training.optim import build_adamw  # noqa: E402

torch.set_num_threads(1)
FAMILIES = ["vit_nano", "vit_nano_rel"]


def two_headed(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = bare_vit(SIZES[name], num_classes=5, distilled=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_both_answers_in_training_their_mean_in_use(name: str) -> None:
    model, images = two_headed(name), torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        labels, told = model.train()(images)
        torch.testing.assert_close(model.eval()(images), (labels + told) / 2)
        # The first head is that of the network without a second one.
        alone = bare_vit(SIZES[name], num_classes=5)
        alone.load_state_dict({key: value for key, value in model.state_dict().items() if "dist" not in key})
        torch.testing.assert_close(alone.eval()(images), labels)
        # The second reads the class token, by hand.
        token = model.forward_features(images)[:, 0]  # pyright: ignore
        normed = torch.nn.functional.layer_norm(
            token, token.shape[-1:], model.dist_norm.weight, model.dist_norm.bias, 1e-6
        )  # pyright: ignore
        torch.testing.assert_close(normed @ model.head_dist.weight.T + model.head_dist.bias, told)  # pyright: ignore
        assert not torch.allclose(labels, told)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_second_head_learns_at_the_heads_rate_the_layers_as_before(name: str) -> None:
    def shares(model: torch.nn.Module) -> dict[str, float]:
        names = {id(p): name for name, p in model.named_parameters()}
        groups = build_adamw(model, weight_decay=0.05, betas=(0.9, 0.999), layer_decay=0.5).param_groups
        return {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}

    ours, plain = shares(two_headed(name)), shares(bare_vit(SIZES[name], num_classes=5))
    assert {key: ours[key] for key in plain} == plain
    assert {ours[key] for key in ours.keys() - plain.keys()} == {1.0}
    assert ours.keys() - plain.keys() == {
        f"{part}.{kind}" for part in ("dist_norm", "head_dist") for kind in ("weight", "bias")
    }


def test_fresh_weights_but_the_second_head_are_those_of_the_plain_network() -> None:
    torch.manual_seed(3)
    plain = bare_vit(SIZES["vit_nano"], num_classes=5)
    torch.manual_seed(3)
    ours = bare_vit(SIZES["vit_nano"], num_classes=5, distilled=True)
    assert isinstance(ours, DistilledVit) and isinstance(ours, VisionTransformer)
    state = ours.state_dict()
    assert all(torch.equal(state[key], value) for key, value in plain.state_dict().items())
    assert 0.01 < float(ours.head_dist.weight.detach().std()) < 0.03
