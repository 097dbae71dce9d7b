"""Composed methods: published ones written as branches are the same bits; new ones; mistakes answered in a sentence."""

from __future__ import annotations

from pathlib import Path

import pydantic
import pytest
import torch
from tiny_training import NORMALIZATION, GridTeacher, keys_of, nano_encoder, pixels
from torch import nn

from edgemim.commands.pretrain import PretrainConfig
from edgemim.config import parse, to_yaml
from edgemim.errors import UserError
from edgemim.methods import (
    ComposedConfig,
    D2MaeConfig,
    DeepMimConfig,
    DMaeConfig,
    FeatureDistillConfig,
    Img2VecConfig,
    MaeConfig,
    MaskFeatConfig,
    MethodConfig,
    MffConfig,
    PixMimConfig,
    SimMimConfig,
)
from edgemim.methods.branches import MaskedImageModel
from edgemim.methods.decoders import LinearDecoderConfig, TransformerDecoderConfig
from edgemim.methods.method import Method
from edgemim.methods.named_targets import AttentionTargetConfig, FeatureTargetConfig
from edgemim.methods.reconstruction import FrozenReconstruction
from edgemim.models.build import build_encoder
from edgemim.models.normalization import Normalization
from edgemim.models.sizes import SIZES, EncoderSize, HieraConfig, VitConfig
from edgemim.teachers import EfficientNetLiteTeacher, MaskedTeacher, TimmTeacher

SIX = VitConfig(width=24, depth=6, heads=3, patch_size=8, image_size=32)
METHOD: pydantic.TypeAdapter[Method] = pydantic.TypeAdapter(MethodConfig)
DECODER = "{name: transformer, width: 16, depth: 2, heads: 2}"
SMALL = TransformerDecoderConfig(width=16, depth=2, heads=2)


def masked_teacher(heads: int = 5) -> MaskedTeacher:
    """Wider, shallower, with other patches on the same grid."""
    size = VitConfig(width=8 * heads, depth=4, heads=heads, patch_size=12, image_size=48)
    return MaskedTeacher(nano_encoder(size, seed=1), Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))


def reconstruction() -> FrozenReconstruction:
    size = VitConfig(width=16, depth=2, heads=2, patch_size=8, image_size=32)
    return FrozenReconstruction(MaeConfig().build(nano_encoder(size, seed=5), NORMALIZATION, None))


def read(tmp_path: Path, text: str) -> ComposedConfig:
    """The method of a YAML file, as `--method FILE` reads it."""
    (tmp_path / "method.yaml").write_text(text)
    method = METHOD.validate_python(str(tmp_path / "method.yaml"))
    assert isinstance(method, ComposedConfig)
    return method


# Each published method beside the branches that it is made of; branches that go by the same name are saved alike.
PUBLISHED = {
    "mae": (MaeConfig(decoder=SMALL), None, f"branches: [{{target: pixel, decoder: {DECODER}}}]"),
    "mae_raw": (
        MaeConfig(norm_pix_loss=False, mask_ratio=0.5),
        None,
        "mask_ratio: 0.5\nbranches: [{target: {name: pixel, normalize: false}}]",
    ),
    "deepmim": (
        DeepMimConfig(decoder=SMALL, weights=(0.5, 1.0, 1.0, 2.0)),
        None,
        f"""
branches:
  - {{name: block_6, target: pixel, decoder: {DECODER}, weight: 2}}
  - {{name: block_5, tap: 5, target: pixel, decoder: {DECODER}}}
  - {{name: block_4, tap: 4, target: pixel, decoder: {DECODER}}}
  - {{name: block_3, tap: 3, target: pixel, decoder: {DECODER}, weight: 0.5}}""",
    ),
    "deepmim_hybrid": (
        DeepMimConfig(target="hybrid"),
        reconstruction,
        f"""
branches:
  - {{name: block_6, target: pixel}}
  - {{name: block_5, tap: 5, target: {{name: blend, share: {2 / 3}}}}}
  - {{name: block_4, tap: 4, target: {{name: blend, share: {1 / 3}}}}}
  - {{name: block_3, tap: 3, target: {{name: blend, share: 0}}}}""",
    ),
    "deepmim_features": (
        DeepMimConfig(target="feature", taps=(4, 6)),
        lambda: GridTeacher(8, 4),
        """
branches:
  - {name: block_6, tap: 6, target: {name: features, standardize: false, layer_norm: false}, loss: cosine}
  - {name: block_4, tap: 4, target: {name: features, standardize: false, layer_norm: false}, loss: cosine}""",
    ),
    "d_mae": (
        DMaeConfig(
            student_layers=(3, 6),
            teacher_layers=(2, 4),
            attention_weight=0.5,
            hidden_student_layers=(0, 6),
            hidden_teacher_layers=(0, 3),
        ),
        masked_teacher,
        """
branches:
  - {target: pixel}
  - {name: attention_3_2, tap: 3, target: {name: attention, block: 2}, weight: 0.5}
  - {name: attention_6_4, target: attention, weight: 0.5}
  - {name: hidden_0_0, tap: 0, target: {name: hidden, block: 0}}
  - {name: hidden_6_3, tap: 6, target: {name: hidden, block: 3}}""",
    ),
    "d2_mae": (
        D2MaeConfig(teacher_layer=3),
        masked_teacher,
        """
branches:
  - {name: pixel, tap: 4, normed: true}
  - {target: {name: attention, block: 3, extra_block: true}}""",
    ),
    "maskfeat": (
        MaskFeatConfig(mask_ratio=0.5, min_block=2),
        None,
        "{mask_ratio: 0.5, masking: block, min_block: 2, drop: false, branches: [{target: hog}]}",
    ),
    "simmim": (
        SimMimConfig(),
        None,
        "{mask_ratio: 0.6, masking: unit, drop: false, branches: [{target: {name: pixel, normalize: false}, loss: l1}]}",
    ),
    "mff": (MffConfig(), None, "branches: [{target: pixel, fuse: [1, 2, 3, 4, 5, 6]}]"),
    "mff_pixmim": (
        MffConfig(target="low_pass", fused_blocks=3),
        None,
        "branches: [{name: pixel, target: low_pass, fuse: [1, 3, 6]}]",
    ),
    "pixmim": (
        PixMimConfig(radius=4.0),
        None,
        "branches: [{name: pixel, target: {name: low_pass, radius: 4}}]",
    ),
    "feature_distill": (
        FeatureDistillConfig(feature_decoder=SMALL),
        lambda: GridTeacher(8, 4),
        f"""
mask_ratio: 0.5
branches:
  - {{name: feature, target: features, score: all, decoder: {DECODER}}}
  - {{target: pixel, weight: 0.3}}""",
    ),
    "img2vec": (
        Img2VecConfig(taps=(3, 6), standardize=False),
        lambda: GridTeacher(8, 4),
        """
branches:
  - {name: block_6, target: {name: features, standardize: false}}
  - {name: block_3, tap: 3, target: {name: features, standardize: false}}
  - {name: mean, target: global, weight: 0.5}""",
    ),
}
RENAMED = {"img2vec": ("decoders.global.", "decoders.mean.")}


Step = tuple[torch.Tensor, dict[str, torch.Tensor]]


def step(method: Method, teacher: nn.Module | None, size: EncoderSize = SIX) -> Step:
    """Loss and gradients of one step from the same seed, with no weight left at the zero that it is born with."""
    torch.manual_seed(11)
    model = method.build(build_encoder(size), NORMALIZATION, teacher).train()
    assert isinstance(model, MaskedImageModel)
    torch.manual_seed(12)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    loss = model(pixels(4, size.image_size), keys_of(4), None).loss
    loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_method_is_a_list_of_branches(name: str, tmp_path: Path) -> None:
    method, make_teacher, text = PUBLISHED[name]
    if text.startswith("{"):
        text = "{name: composed, " + text[1:]
    else:
        text = f"name: composed\n{text}"
    composed = read(tmp_path, text)
    assert composed.teacher_kind == method.teacher_kind
    teacher = make_teacher() if make_teacher else None
    same_bits(step(method, teacher), step(composed, teacher), RENAMED.get(name, ("", "")))


def same_bits(one: Step, other: Step, renamed: tuple[str, str] = ("", "")) -> None:
    """Two steps have the same loss and gradients."""
    assert torch.equal(one[0], other[0])
    gradients = {key.replace(*renamed): value for key, value in one[1].items()}
    assert gradients.keys() == other[1].keys()
    assert {key for key, value in gradients.items() if not torch.equal(value, other[1][key])} == set()


def test_so_on_a_hierarchical_encoder(tmp_path: Path) -> None:
    size = SIZES["hiera_micro"]
    assert isinstance(size, HieraConfig)
    bare = step(MaeConfig(), None, size)
    same_bits(bare, step(read(tmp_path, "name: composed\nbranches: [{target: pixel}]"), None, size))
    d2_mae = D2MaeConfig(pixel_layer=size.depth - 1)
    text = f"""
name: composed
branches:
  - {{name: pixel, tap: {size.depth - 1}, normed: true}}
  - {{target: {{name: attention, extra_block: true}}}}"""
    teacher = MaskedTeacher(build_encoder(size), NORMALIZATION)
    same_bits(step(d2_mae, teacher, size), step(read(tmp_path, text), teacher, size))
    for branches, words in (("{fuse: [1, 2]}", "fuses blocks"), ("{tap: 1}", "'tap' of branch 'pixel_1'")):
        method = read(tmp_path, f"{{name: composed, branches: [{branches}]}}")
        with pytest.raises(UserError, match=words):
            method.check(size)


def test_another_target_gives_other_numbers(tmp_path: Path) -> None:
    """The comparison above can fail: each of these changes one key of a composed MAE."""
    bare, _ = step(MaeConfig(), None)
    for branch in ("tap: 4", "normed: false", "target: {name: pixel, normalize: false}", "loss: l1", "weight: 0.5"):
        loss, _ = step(read(tmp_path, f"{{name: composed, branches: [{{name: pixel, {branch}}}]}}"), None)
        assert not torch.equal(loss, bare), branch


def test_branches_share_what_they_read_of_a_teacher(tmp_path: Path) -> None:
    teacher = GridTeacher(8, 4)
    method = read(
        tmp_path,
        "{name: composed, branches: [{tap: 4, target: features}, {tap: 6, target: features}, {target: global}]}",
    )
    model = method.build(nano_encoder(SIX), NORMALIZATION, teacher)
    assert [branch.name for branch in model.branches] == ["features_4", "features_6", "global"]
    assert model.branches[0].target is model.branches[1].target
    model(pixels(2), keys_of(2), None)
    assert teacher.calls == 1


def test_attention_head_by_head(tmp_path: Path) -> None:
    method = read(tmp_path, "{name: composed, branches: [{tap: 5, target: {name: attention, adapter: false}}]}")
    model = method.build(nano_encoder(SIX), NORMALIZATION, masked_teacher(heads=3))
    x, mask = NORMALIZATION.apply(pixels(2)), model.masking(keys_of(2), SIX.tokens)
    logits = model.encoder(x, mask, attention=(5,)).attention[5]
    assert torch.equal(model.branches[0].decoder(model.encode(x, mask), mask), logits)
    assert not list(model.decoders.parameters())
    with pytest.raises(UserError, match=r"branch 'attention_5'.*3 heads and the teacher 5; set 'adapter' to true"):
        method.build(nano_encoder(SIX), NORMALIZATION, masked_teacher(heads=5))


def test_reconstructions_show_the_first_pixel_branch(tmp_path: Path) -> None:
    method = read(tmp_path, "{name: composed, branches: [{tap: 3, target: hog}, {tap: 6, target: low_pass}]}")
    model = method.build(nano_encoder(SIX), NORMALIZATION, None)
    assert model.reconstruct(pixels(2), keys_of(2)) is not None


def config_of(*words: str) -> PretrainConfig:
    return parse(PretrainConfig, words, prog="edgemim pretrain")


def test_flags_change_single_keys_of_branches(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text("name: composed\nbranches:\n  - {target: pixel}\n  - {tap: 2, target: attention}\n")
    words = ["--method", str(file), "--method.mask-ratio", "0.5", "--method.branches.1.weight", "0.25"]
    words += ["--method.branches.0.decoder", "transformer", "--method.branches.0.decoder.width", "48"]
    words += ["--method.branches.1.target.block", "3", "--method.branches.0.target", "low_pass"]
    method = config_of(*words).method
    assert isinstance(method, ComposedConfig)
    pixel, attention = method.branches
    assert method.mask_ratio == 0.5
    assert (attention.weight, attention.target) == (0.25, AttentionTargetConfig(block=3))
    assert (pixel.target.name, pixel.decoder) == ("low_pass", TransformerDecoderConfig(width=48))
    no_drop = config_of("--method", str(file), "--method.branches.1.target", "features", "--method.no-drop")
    assert isinstance(no_drop.method, ComposedConfig)
    assert no_drop.method.branches[1].target == FeatureTargetConfig()


def test_a_recipe_may_name_the_file_or_hold_it(tmp_path: Path) -> None:
    method = tmp_path / "m.yaml"
    method.write_text("name: composed\nbranches: [{tap: 2}]\n")
    (tmp_path / "named.yaml").write_text(f"method: {method}\nepochs: 3\n")
    (tmp_path / "held.yaml").write_text("method: {name: composed, branches: [{tap: 2}]}\nepochs: 3\n")
    named, held = (config_of("--config", str(tmp_path / f"{name}.yaml")) for name in ("named", "held"))
    assert named == held
    assert named.method == ComposedConfig.model_validate({"branches": [{"tap": 2}]})
    (tmp_path / "resolved.yaml").write_text(to_yaml(named))
    assert config_of("--config", str(tmp_path / "resolved.yaml")) == named


def test_another_method_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "mae.yaml").write_text("name: mae\nmask_ratio: 0.9\ndecoder: linear\n")
    assert config_of("--method", str(tmp_path / "mae.yaml")).method == MaeConfig(
        mask_ratio=0.9, decoder=LinearDecoderConfig()
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: compsed", ["unknown name 'compsed'", "did you mean 'composed'?"]),
        ("branches: [{target: pixel}]", ["does not say its 'name'", "composed", "--config"]),
        ("name: composed\nbranches: []", ["'branches' is empty"]),
        ("name: composed\nbranchs: [{}]", ["unknown key 'branchs'", "did you mean 'branches'?"]),
        ("name: composed\nbranches: [{target: pixls}]", ["'branches.0.target'", "unknown name 'pixls'", "'pixel'?"]),
        ("name: composed\nbranches: [{target: {name: hogg}}]", ["'branches.0.target'", "did you mean 'hog'?"]),
        (
            "name: composed\nbranches: [{}, {target: {name: features, standardise: true}}]",
            ["unknown key 'branches.1.target.standardise'", "did you mean 'standardize'?"],
        ),
        ("name: composed\nbranches: [{tab: 3}]", ["unknown key 'branches.0.tab'", "did you mean 'tap'?"]),
        ("name: composed\nbranches: [{loss: msee}]", ["'branches.0.loss'", "did you mean 'mse'?"]),
        ("name: composed\nbranches: [{score: mask}]", ["'branches.0.score'", "did you mean 'masked'?"]),
        ("name: composed\nbranches: [{decoder: lineer}]", ["'branches.0.decoder'", "did you mean 'linear'?"]),
        ("name: composed\nbranches: [{tap: -1}]", ["'branches.0.tap'", "greater than or equal to 0"]),
        ("name: composed\nbranches: [{name: a.b}]", ["'branches.0.name'"]),
        ("name: composed\nbranches: [{name: keys}]", ["'branches.0'", "'keys' has a name that PyTorch uses itself"]),
        ("name: composed\nbranches: [{}, {}]", ["2 branches are called 'pixel'", "give each a 'name'"]),
        ("name: composed\nmask_ratio: 0\nbranches: [{}]", ["branch 'pixel'", "'mask_ratio' 0", "'score' to all"]),
        ("name: composed\nmask_ratio: 0\nmasking: block", ["'mask_ratio' 0", "leave 'masking' block out"]),
        ("name: composed\nunit: 2", ["'unit' belongs to masking unit"]),
        ("name: composed\nmasking: unit\nmin_block: 2", ["'min_block' belongs to masking block"]),
        ("name: composed\nbranches: [{decoder: linear}]", ["branch 'pixel'", "linear decoder", "'drop' to false"]),
        (
            "name: composed\nbranches: [{target: attention, decoder: linear}]",
            ["branch 'attention' predicts attention with an adapter of its own", "leave 'decoder' out"],
        ),
        ("name: composed\nbranches: [{target: hidden, fuse: [1, 2]}]", ["branch 'hidden'", "leave 'fuse' out"]),
        ("name: composed\nbranches: [{target: global, score: masked}]", ["branch 'global'", "leave 'score' out"]),
        ("name: composed\nbranches: [{target: attention, tap: 0}]", ["'tap' 0", "no attention"]),
        ("name: composed\ndrop: false\nbranches: [{target: attention}]", ["branch 'attention'", "'drop' to true"]),
        ("name: composed\nbranches: [{fuse: [3, 1]}]", ["'fuse' [3, 1]", "rise"]),
        ("name: composed\nbranches: [{fuse: [1, 3], tap: 2}]", ["leave 'tap' and 'normed' out"]),
        (
            "name: composed\nbranches: [{target: features}, {target: attention}]",
            ["'features' (features) and 'attention' (attention)", "one --teacher"],
        ),
        ("just words", ["str"]),
        ("name: composed\nbranches: [", ["not valid YAML"]),
    ],
)
def test_mistakes_in_the_file_are_one_sentence(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "method.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        config_of("--method", str(tmp_path / "method.yaml"))
    message = str(error.value)
    assert [word for word in ["method.yaml", *words] if word not in message] == []
    assert "\n" not in message


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"absent\.yaml: No such file"):
        config_of("--method", "absent.yaml")


@pytest.mark.parametrize(
    ("branch", "teacher", "words"),
    [
        ("tap: 7", None, ["branch 'pixel_7'", "'tap' 7", "6 blocks"]),
        ("fuse: [1, 9]", None, ["branch 'pixel'", "'fuse' 9", "6 blocks"]),
        ("target: features", None, ["branch 'features'", "--teacher NAME"]),
        ("target: features", masked_teacher, ["branch 'features'", "--teacher NAME"]),
        ("target: global", None, ["branch 'global' of target global needs a teacher"]),
        ("target: attention", None, ["branch 'attention'", "vision transformer"]),
        ("target: attention", lambda: GridTeacher(8, 4), ["branch 'attention'", "vision transformer"]),
        ("target: blend", None, ["branch 'blend'", "a run of MAE"]),
        ("target: {name: attention, block: 5}", masked_teacher, ["'target.block' 5", "blocks 1 to 4"]),
        ("target: {name: hidden, block: 5}", masked_teacher, ["'target.block' 5", "blocks 0 to 4"]),
        ("target: {name: hog, window: 5}", None, ["branch 'hog'", "windows of 5", "'window' 0"]),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, branch: str, teacher: object, words: list[str]) -> None:
    method = read(tmp_path, f"{{name: composed, branches: [{{{branch}}}]}}")
    with pytest.raises(UserError) as error:
        method.build(nano_encoder(SIX), NORMALIZATION, teacher() if callable(teacher) else None)
    assert [word for word in words if word not in str(error.value)] == []


def test_a_teacher_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    """Each of these teachers would need a download or a package."""
    with pytest.raises(UserError, match="no branch of the method reads a teacher"):
        read(tmp_path, "{name: composed}").build_teacher(TimmTeacher(), SIX)
    deep = read(tmp_path, "{name: composed, branches: [{tap: 7, target: attention}]}")
    with pytest.raises(UserError, match="'tap' 7 is not there"):
        deep.build_teacher(TimmTeacher(), SIX)
    attention = read(tmp_path, "{name: composed, branches: [{target: attention}]}")
    with pytest.raises(UserError, match="convolutional network"):
        attention.build_teacher(EfficientNetLiteTeacher(), SIX)
    with pytest.raises(UserError, match="run of MAE"):
        read(tmp_path, "{name: composed, branches: [{target: blend}]}").build_teacher(TimmTeacher(), SIX)
