import io
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from edgemim.edge.images import ImageError, Preprocessing, load_image
from edgemim.edge.machine import peak_memory_mib


def textured(height: int, width: int) -> np.ndarray:
    """A picture with structure at every scale: no orientation or channel order can pass for another."""
    rows, columns = np.mgrid[0:height, 0:width].astype(float)
    red = 127 + 120 * np.sin(rows / 7)
    green = 255 * columns / width
    blue = 127 + 80 * np.cos((rows + 2 * columns) / 11) + 40 * (rows > height / 2)
    return np.clip(np.stack([red, green, blue], -1), 0, 255).astype(np.uint8)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + data + png_chunk(b"IEND", b"")


PICTURE = textured(60, 90)


def test_png_comes_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PICTURE).save(path)
    for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        loaded = load_image(source)
        assert loaded.dtype == np.uint8
        assert np.array_equal(loaded, PICTURE)
    loaded[0, 0] = 0  # writable, as torch.from_numpy wants it


def test_jpeg_close() -> None:
    loaded = load_image(encoded(Image.fromarray(PICTURE), "JPEG", quality=95, subsampling=0))
    assert np.abs(loaded.astype(int) - PICTURE).mean() < 2


def test_grey_repeats() -> None:
    grey = PICTURE[:, :, 1]
    loaded = load_image(encoded(Image.fromarray(grey), "PNG"))
    assert np.array_equal(loaded, np.repeat(grey[:, :, None], 3, 2))


def test_cmyk_jpeg_looks_like_its_rgb() -> None:
    loaded = load_image(encoded(Image.fromarray(PICTURE).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(loaded.astype(int) - PICTURE).mean() < 4


def test_16_bit_grey_keeps_the_high_byte() -> None:
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    for format in ("PNG", "TIFF"):
        loaded = load_image(encoded(Image.fromarray(values), format))
        assert np.array_equal(loaded[:, :, 0], values >> 8)


def test_16_bit_colour_png_made_by_another_library(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    colour = textured(40, 50).astype(np.uint16) * 257
    path = tmp_path / "deep.png"
    assert cv2.imwrite(str(path), colour[:, :, ::-1])
    assert np.array_equal(load_image(path), colour >> 8)


def test_16_bit_pgm(tmp_path: Path) -> None:
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    path = tmp_path / "deep.pgm"
    path.write_bytes(b"P5 64 64 65535\n" + values.astype(">u2").tobytes())
    assert np.array_equal(load_image(path)[:, :, 2], values >> 8)


def test_alpha_lies_on_white() -> None:
    alpha = np.linspace(0, 255, 90).astype(np.uint8)[None, :].repeat(60, 0)
    rgba = np.dstack([PICTURE, alpha])
    loaded = load_image(encoded(Image.fromarray(rgba), "PNG"))
    weight = alpha[:, :, None] / 255
    assert np.abs(loaded - (PICTURE * weight + 255 * (1 - weight))).max() <= 1


def test_grey_with_alpha_lies_on_white() -> None:
    pixels = np.dstack([PICTURE[:, :, 0], np.zeros((60, 90), np.uint8)])
    assert (load_image(encoded(Image.fromarray(pixels, "LA"), "PNG")) == 255).all()


def test_palette_and_transparent_palette_entry() -> None:
    palette = Image.fromarray(PICTURE).quantize(64)
    assert np.array_equal(load_image(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))
    hidden = int(np.asarray(palette)[0, 0])
    loaded = load_image(encoded(palette, "PNG", transparency=hidden))
    assert (loaded[np.asarray(palette) == hidden] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_stands_upright(orientation: int, format: str) -> None:
    # Stored so that the viewer's operation of the EXIF standard (table of tag 0x0112) gives PICTURE back.
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](PICTURE)))
    options = {"quality": 95, "subsampling": 0} if format == "JPEG" else {}
    loaded = load_image(encoded(stored, format, exif=exif, **options))
    assert loaded.shape == PICTURE.shape
    assert np.abs(loaded.astype(int) - PICTURE).mean() < 2


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_does_not_cost_the_image() -> None:
    data = encoded(Image.fromarray(PICTURE), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken")
    assert load_image(data).shape == PICTURE.shape


def test_first_frame_of_an_animation() -> None:
    frames = [Image.fromarray(np.full((20, 30, 3), value, np.uint8)) for value in (250, 120, 10)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)
    assert (load_image(data) == 250).all()


def test_one_pixel() -> None:
    assert load_image(encoded(Image.new("RGB", (1, 1), (3, 4, 5)), "PNG")).tolist() == [[[3, 4, 5]]]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, format: str, share: float) -> None:
    if format == "GIF" and share > 0.5:
        pytest.skip("a GIF cut in its last block may hold all pixels")
    path = tmp_path / "cut.img"
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8)), format)
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError, match=r"cut\.img") as caught:
        load_image(path)
    assert caught.value.exit_code == 2


def test_reasons(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not an image at all")
    (tmp_path / "vector.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    (tmp_path / "folder.png").mkdir()
    expected = {
        "empty.jpg": "empty",
        "text.jpg": "not an image in a known format",
        "vector.png": "not an image in a known format",
        "folder.png": "not a regular file",
        "missing.png": "does not exist",
    }
    for name, reason in expected.items():
        with pytest.raises(ImageError) as caught:
            load_image(tmp_path / name)
        assert reason in caught.value.reason
        assert name in str(caught.value)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a regular file"):
        load_image(tmp_path / "pipe.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_huge_headers_are_refused_before_allocation() -> None:
    jpeg = bytearray(encoded(Image.fromarray(PICTURE), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 30000, 30000)
    before = peak_memory_mib()
    for data in (png_header(30000, 30000), bytes(jpeg)):
        with pytest.raises(ImageError, match="too large"):
            load_image(data)
    with pytest.raises(ImageError, match="12000×12000 is over the limit"):
        load_image(png_header(12000, 12000))
    assert peak_memory_mib() - before < 20


def test_max_pixels_is_a_limit_not_a_hint() -> None:
    data = encoded(Image.fromarray(PICTURE), "PNG")
    assert load_image(data, max_pixels=60 * 90).shape == (60, 90, 3)
    with pytest.raises(ImageError, match="too large"):
        load_image(data, max_pixels=60 * 90 - 1)


def test_a_text_bomb_in_a_png_is_refused() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("comment", "x" * 200_000_000, zip=True)
    with pytest.raises(ImageError):
        load_image(encoded(Image.fromarray(PICTURE), "PNG", pnginfo=info))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_flipped_bytes_never_raise_anything_else() -> None:
    generator = np.random.default_rng(1)
    originals = [
        encoded(Image.fromarray(textured(24, 24)), format) for format in ("PNG", "JPEG", "GIF", "TIFF", "WEBP")
    ]
    for data in originals:
        for _ in range(150):
            damaged = bytearray(data)
            for place in generator.integers(0, len(damaged), 3):
                damaged[place] = generator.integers(256)
            try:
                assert load_image(bytes(damaged), max_pixels=1_000_000).shape[2] == 3
            except ImageError:
                continue


def test_the_error_crosses_process_borders() -> None:
    error = pickle.loads(pickle.dumps(ImageError("a.png", "is broken")))
    assert (error.reason, str(error)) == ("is broken", "image a.png: is broken")


@pytest.mark.parametrize("size", [(60, 90), (90, 60), (300, 301), (31, 500), (224, 224), (5, 5)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_same_pixels_as_torchvision(size: tuple[int, int], interpolation: str) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    image = textured(*size)
    prepare = Preprocessing(image_size=64, crop_pct=0.875, interpolation=interpolation)
    mode = transforms.InterpolationMode[interpolation.upper()]
    reference = transforms.Compose([transforms.Resize(round(64 / 0.875), mode), transforms.CenterCrop(64)])
    expected = np.asarray(reference(Image.fromarray(image)))
    difference = np.abs(prepare.resize_crop(image).astype(int) - expected)
    # Pillow holds the box in float32: some pixels fall on the other side of a rounding, twice (rows, then columns).
    assert (difference > 0).mean() < 0.03
    assert (difference > 1).mean() < 0.001


def test_both_wings_normalise_to_the_same_bits() -> None:
    torch = pytest.importorskip("torch")
    prepare = Preprocessing(image_size=32)
    pixels = np.random.default_rng(2).integers(0, 256, (4, 32, 32, 3), np.uint8)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (prepare.mean, prepare.std))
    expected = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255) - mean) / std
    assert np.array_equal(prepare.normalise(pixels), expected.numpy())


def test_call_gives_one_image_for_a_model() -> None:
    prepare = Preprocessing(image_size=48, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    ready = prepare(PICTURE)
    assert (ready.shape, ready.dtype, ready.flags["C_CONTIGUOUS"]) == ((3, 48, 48), np.float32, True)
    assert np.allclose(ready.transpose(1, 2, 0), prepare.resize_crop(PICTURE) / 127.5 - 1, atol=1e-6)


def test_a_thread_of_pixels_costs_no_memory() -> None:
    before = peak_memory_mib()
    assert Preprocessing().resize_crop(np.zeros((1, 400_000, 3), np.uint8)).shape == (224, 224, 3)
    assert peak_memory_mib() - before < 50


@pytest.mark.parametrize("bad", [{"std": (0.2, 0.0, 0.2)}, {"crop_pct": 1.5}, {"image_size": 0}, {"std": (1, 1)}])
def test_impossible_preprocessing_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Preprocessing(**bad)
