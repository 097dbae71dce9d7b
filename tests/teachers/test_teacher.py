import timm
import torch
import torch.nn.functional as F

from edgemim.teachers.teacher import Teacher, build_teacher


def teacher_of(name: str, image_size: int = 64, grid: int = 8, **options) -> Teacher:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False)
    settings = {"stage": None, "input_size": None, **options}
    return build_teacher(model, name, image_size=image_size, student_grid=(grid, grid), **settings)


def images_of(count: int, side: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_frozen_and_in_evaluation_mode_after_train():
    teacher = teacher_of("test_resnet")
    parent = torch.nn.Sequential(teacher)
    parent.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    teacher(images_of(4))
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())


def test_features_serve_as_regression_target():
    teacher = teacher_of("test_resnet")
    target = teacher(images_of(2))
    prediction = torch.zeros_like(target, requires_grad=True)
    F.smooth_l1_loss(prediction, target).backward()
    assert prediction.grad is not None
    assert prediction.grad.abs().sum() > 0
    assert not target.requires_grad
    assert not target.is_inference()
    target += 1  # in place, as standardisation might


def test_row_major_tokens_of_the_chosen_stage():
    """Against timm's other door to the same maps, `features_only`."""
    teacher = teacher_of("test_resnet", stage=3)
    torch.manual_seed(0)
    reference = timm.create_model("test_resnet", pretrained=False, features_only=True, out_indices=(3,)).eval()
    x = images_of(3, teacher.input_size[0])
    with torch.no_grad():
        maps = reference((x - teacher.mean) / teacher.std)[0]
    tokens = teacher(x)
    assert tokens.shape == (3, 64, maps.shape[1])
    for row, column in ((0, 0), (2, 5), (7, 1)):
        torch.testing.assert_close(tokens[:, row * 8 + column], maps[:, :, row, column], rtol=1e-4, atol=1e-5)


def test_vit_tokens_come_without_the_class_token_and_final_normed():
    teacher = teacher_of("test_vit")
    torch.manual_seed(0)
    reference = timm.create_model("test_vit", pretrained=False).eval()
    reference.set_input_size(img_size=teacher.input_size)
    x = images_of(2, teacher.input_size[0])
    with torch.no_grad():
        tokens = reference.forward_features((x - teacher.mean) / teacher.std)
    torch.testing.assert_close(teacher(x), tokens[:, reference.num_prefix_tokens :], rtol=1e-4, atol=1e-5)


def test_an_inner_vit_block_is_not_normed():
    teacher = teacher_of("test_vit", stage=1)
    assert teacher.stage == 1
    assert teacher(images_of(2)).mean(-1).abs().max() > 1e-3


def test_pieces_on_the_cpu_change_nothing():
    teacher, x = teacher_of("test_resnet"), images_of(19)
    alone = torch.cat([teacher(image[None]) for image in x])
    torch.testing.assert_close(teacher(x), alone, rtol=1e-4, atol=1e-5)


def test_teacher_owns_resize_and_normalisation():
    teacher = teacher_of("test_resnet", mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    grey = torch.full((1, 3, 64, 64), 0.6)
    prepared = teacher.prepare(grey)
    assert tuple(prepared.shape[-2:]) == teacher.input_size
    torch.testing.assert_close(prepared[0, :, 5, 5], torch.tensor([1.0, 1.6, 0.3]))
    # An edge overshoots under bicubic interpolation; the teacher never sees a value outside of [0, 1].
    edge = torch.zeros(1, 3, 64, 64)
    edge[..., 32:] = 1
    raw = teacher.prepare(edge) * teacher.std + teacher.mean
    assert raw.min() >= -1e-6
    assert raw.max() <= 1 + 1e-6


def test_enlarging_matches_pillow_bicubic():
    """Pillow's resampling (antialiased) is the reference of every timm model's evaluation."""
    import numpy as np
    from PIL import Image

    teacher = teacher_of("test_resnet", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    yy, xx = np.mgrid[:64, :64]
    picture = (127 + 100 * np.sin(xx / 5) * np.cos(yy / 7)).astype(np.uint8)
    side = teacher.input_size[0]
    expected = np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255
    prepared = teacher.prepare(torch.from_numpy(picture.astype(np.float32) / 255).expand(1, 3, 64, 64))
    assert np.abs(prepared[0, 0].numpy() - expected).max() < 1.5 / 255


def test_what_is_never_run_is_dropped():
    teacher = teacher_of("tf_efficientnet_lite0")
    full = sum(p.numel() for p in timm.create_model("tf_efficientnet_lite0", pretrained=False).parameters())
    assert sum(p.numel() for p in teacher.parameters()) < full / 4
