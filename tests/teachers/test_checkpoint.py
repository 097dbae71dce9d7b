import pickle
from pathlib import Path

import pytest
import timm
import torch
from published import weights_of
from safetensors.torch import save_file

from edgemim.edge.images import IMAGENET_MEAN
from edgemim.errors import UserError
from edgemim.models.convert import FAMILIES, convert_weights
from edgemim.models.encoder import Encoder
from edgemim.models.sizes import SIZES, VitConfig
from edgemim.models.weights import save_model
from edgemim.teachers import CheckpointTeacher, masked_teacher


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    model = timm.create_model("test_resnet", pretrained=False)
    save_file(model.state_dict(), tmp_path / "teacher.safetensors")
    return tmp_path / "teacher.safetensors"


def test_safetensors_and_tensor_pickle_give_the_same_teacher(weights_file: Path, tmp_path: Path):
    torch.manual_seed(3)
    model = timm.create_model("test_resnet", pretrained=False)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "teacher.pt")
    x = torch.rand(2, 3, 64, 64)
    first = CheckpointTeacher(path=weights_file, model="test_resnet").build(64, (8, 8))
    second = CheckpointTeacher(path=tmp_path / "teacher.pt", model="test_resnet").build(64, (8, 8))
    assert torch.equal(first(x), second(x))
    fresh = timm.create_model("test_resnet", pretrained=False).state_dict()["conv1.0.weight"]
    assert not torch.equal(first.model.conv1[0].weight, fresh)  # pyright: ignore


class Evil:
    """Unpickling it would touch the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("kind", ["torch", "plain"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".bin"])
def test_an_evil_pickle_is_refused_and_never_executed(tmp_path: Path, suffix: str, kind: str):
    mark, path = tmp_path / "executed", tmp_path / f"evil{suffix}"
    if kind == "torch":
        torch.save({"model": {"conv1.weight": torch.zeros(2)}, "x": Evil(mark)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Evil(mark)}))
    with pytest.raises(UserError, match=str(path)) as caught:
        CheckpointTeacher(path=path, model="test_resnet").build(64, (8, 8))
    assert caught.value.exit_code == 2
    assert not mark.exists()
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.exists(), "the pickle was harmless: the test shows nothing"


def test_a_pretraining_run_can_teach(tmp_path: Path):
    encoder = Encoder(SIZES["vit_micro"]).eval()  # pyright: ignore
    facts = {"kind": "encoder", "encoder": SIZES["vit_micro"].model_dump(mode="json")}
    save_model(tmp_path / "model", encoder.vit.state_dict(), facts)
    teacher = CheckpointTeacher(path=tmp_path).build(64, (8, 8))
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = encoder((x - teacher.mean) / teacher.std).last[:, 1:]
    torch.testing.assert_close(teacher(x), expected, rtol=1e-4, atol=1e-5)


def test_a_run_teaches_with_its_own_statistics(tmp_path: Path):
    encoder = Encoder(SIZES["vit_micro"]).eval()  # pyright: ignore
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    facts = {"kind": "encoder", "encoder": SIZES["vit_micro"].model_dump(mode="json"), "preprocessing": own}
    save_model(tmp_path / "model", encoder.vit.state_dict(), facts)
    teacher = CheckpointTeacher(path=tmp_path).build(64, (8, 8))
    assert teacher.mean.flatten().tolist() == pytest.approx(own["mean"])
    assert teacher.std.flatten().tolist() == pytest.approx(own["std"])
    given = CheckpointTeacher(path=tmp_path, mean=(0.4, 0.4, 0.4)).build(64, (8, 8))
    assert given.mean.flatten().tolist() == pytest.approx([0.4] * 3)
    assert given.std.flatten().tolist() == pytest.approx(own["std"])


@pytest.mark.parametrize(("case", "family"), [("mae", "mae"), ("d_mae", "mae-lite"), ("vit_finetune", "deit")])
def test_a_published_file_teaches_under_its_original_names(tmp_path: Path, case: str, family: str):
    weights = weights_of(case)
    path = tmp_path / "published.pth"
    torch.save({"model": weights}, path)
    config = CheckpointTeacher(path=path, family=family, heads=2)  # pyright: ignore
    teacher = config.build(16, (4, 4))
    x = torch.rand(2, 3, 16, 16)
    encoder = convert_weights(FAMILIES[family], weights, 2).encoder
    with torch.no_grad():
        expected = encoder((x - teacher.mean) / teacher.std).last[:, 1:]
    torch.testing.assert_close(teacher(x), expected, rtol=1e-4, atol=1e-5)
    masked = masked_teacher(config, VitConfig(patch_size=4, image_size=16))
    assert torch.equal(masked.encoder.vit.cls_token, encoder.vit.cls_token)
    assert masked.normalization.mean == IMAGENET_MEAN


def test_a_published_file_of_another_family_is_refused(tmp_path: Path):
    path = tmp_path / "published.pth"
    torch.save(weights_of("simmim_vit"), path)
    with pytest.raises(UserError, match=r"published\.pth looks like a SimMIM checkpoint.*--teacher\.family simmim"):
        CheckpointTeacher(path=path, family="mae").build(16, (4, 4))
    with pytest.raises(UserError, match=r"looks like a SimMIM checkpoint: --teacher\.family simmim"):
        CheckpointTeacher(path=path).build(16, (4, 4))
    with pytest.raises(UserError, match="give one of them"):
        CheckpointTeacher(path=path, family="simmim", model="test_vit").build(16, (4, 4))


def test_mistakes_are_one_sentence(weights_file: Path, tmp_path: Path):
    for config, words in (
        (CheckpointTeacher(), "teacher.path"),
        (CheckpointTeacher(path=weights_file), "teacher.model"),
        (CheckpointTeacher(path=tmp_path / "none.pt", model="test_resnet"), "none.pt"),
        (CheckpointTeacher(path=weights_file, model="test_vit"), "does not hold a test_vit"),
        (CheckpointTeacher(path=weights_file, model="test_resnt"), "did you mean 'test_resnet'"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            config.build(64, (8, 8))
        assert "\n" not in str(caught.value)
