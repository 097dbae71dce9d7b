import timm
import torch
from torch import nn

from edgemim.teachers.fold import fold_norms


def settled(name: str) -> nn.Module:
    """A network whose batch statistics are not trivial: folding nothing would go unnoticed otherwise."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)  # pyright: ignore
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # pyright: ignore
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_folding_changes_the_speed_and_nothing_else():
    x = torch.rand(2, 3, 96, 96)
    # The ResNet's stem holds its last convolution one level deeper than the norm behind it: that norm stays.
    for name, left in (("tf_efficientnet_lite0", 0), ("test_resnet", 1)):
        model = settled(name)
        folded = fold_norms(model, lambda network: network(x))
        assert norms(model) > 5
        assert norms(folded) == left
        with torch.no_grad():
            torch.testing.assert_close(folded(x), model(x), rtol=1e-3, atol=1e-4)


class Crossed(nn.Module):
    """Registers its parts in another order than it runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.norm_of_second = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3)
        nn.init.uniform_(self.norm_of_second.running_mean, 1, 2)  # pyright: ignore
        nn.init.uniform_(self.norm_of_second.running_var, 3, 4)  # pyright: ignore

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm_of_second(self.second(self.first(x).relu()))


def test_a_wrong_guess_is_found_out():
    model, x = Crossed().eval(), torch.rand(1, 3, 16, 16)
    assert fold_norms(model, lambda network: network(x)) is model


def test_a_network_without_norms_is_left_alone():
    model = timm.create_model("test_vit", pretrained=False).eval()
    assert fold_norms(model, lambda network: network(torch.rand(1, 3, 160, 160))) is model
