"""Classify images with a TensorRT engine on an NVIDIA GPU: numpy, tensorrt, cuda-python and Pillow, nothing of edgemim.

    python classify_tensorrt.py ENGINE.plan ARTIFACT IMAGE... [--json]

The engine is one that a line of ARTIFACT/tensorrt/trt_plan.json built, on this kind of GPU and with this version of
TensorRT; build it yourself, for an engine is code. Its pre-processing and labels come from ARTIFACT/manifest.json. Prints
image, class and probability, tab-separated.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

try:
    import tensorrt  # pyright: ignore[reportMissingImports]
    from cuda.bindings import runtime as cuda  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
except ImportError as error:
    sys.exit(
        f"classify_tensorrt: {error}; install NVIDIA's `tensorrt` 10 or 11 and `cuda-python`, on a machine with a GPU"
    )


def read_manifest(folder: Path) -> dict:
    """What the artifact says of itself."""
    path = folder / "manifest.json"
    if path.stat().st_size > 2**24:
        raise ValueError(f"{path} is too large for a manifest")
    return json.loads(path.read_bytes())


def load_image(path: str) -> Image.Image:
    """Upright RGB; transparent pixels on white; of 16-bit grey the high byte."""
    image = ImageOps.exif_transpose(Image.open(path, formats=("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")))
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def preprocess(image: Image.Image, facts: dict) -> np.ndarray:
    """float32 [1, 3, s, s]: short side to s / crop_pct and centre crop in one resize, then normalise."""
    size, (width, height) = facts["image_size"], image.size
    short = round(size / facts["crop_pct"])
    resized = [max(short, int(short * side / min(width, height))) for side in (width, height)]
    left, top = [round((r - size) / 2) * side / r for r, side in zip(resized, (width, height), strict=True)]
    right, bottom = min(width, left + size * width / resized[0]), min(height, top + size * height / resized[1])
    image = image.resize((size, size), Image.Resampling[facts["interpolation"].upper()], box=(left, top, right, bottom))
    pixels = np.asarray(image).astype(np.float32) / np.float32(255)
    pixels = (pixels - np.float32(facts["mean"])) / np.float32(facts["std"])
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def show(path: str, labels: list[str], logits: np.ndarray, as_json: bool) -> None:
    """One line: image, class, probability; with `as_json` an object with all logits."""
    if len(labels) != len(logits) or not np.isfinite(logits).all():
        raise ValueError(f"{len(logits)} logits for {len(labels)} labels, or not finite; export the model again")
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = int(logits.argmax())
    answer = {"image": path, "label": labels[best], "probability": float(probabilities[best])}
    answer["logits"] = logits.tolist()
    line = json.dumps(answer) if as_json else "{image}\t{label}\t{probability:.4f}".format(**answer)
    print("".join(letter if letter.isprintable() or letter == "\t" else "?" for letter in line))


def gpu(result: tuple) -> Any:
    """The value of a CUDA call."""
    error, *values = result
    if error != cuda.cudaError_t.cudaSuccess:
        raise RuntimeError(f"no usable GPU: CUDA says {cuda.cudaGetErrorString(error)[1].decode()} ({int(error)})")
    return values[0] if values else None


class Engine:
    """An engine with memory on the GPU for one image; `run` takes float32 [1, 3, s, s] and gives the first output's row."""

    def __init__(self, path: Path, shape: tuple[int, ...], input_name: str, output_name: str) -> None:
        gpu(cuda.cudaGetDeviceCount())
        self.runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:  # TensorRT has logged why
            raise ValueError(
                f"TensorRT {tensorrt.__version__} does not read {path} on this GPU; build it here, by trt_plan.json"
            )
        self.context = self.engine.create_execution_context()
        self.context.set_input_shape(input_name, shape)
        dtype = tensorrt.nptype(self.engine.get_tensor_dtype(input_name))
        self.image = np.empty(shape, dtype)
        dtype = tensorrt.nptype(self.engine.get_tensor_dtype(output_name))
        self.answer = np.empty(tuple(self.context.get_tensor_shape(output_name)), dtype)
        self.stream = gpu(cuda.cudaStreamCreate())
        self.memory = {}
        for name, array in ((input_name, self.image), (output_name, self.answer)):
            self.memory[name] = gpu(cuda.cudaMalloc(array.nbytes))
            self.context.set_tensor_address(name, self.memory[name])
        self.given, self.found = self.memory[input_name], self.memory[output_name]

    def run(self, image: np.ndarray) -> np.ndarray:
        """To the GPU, through the network, and back."""
        self.image[...] = image
        to, back = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        gpu(cuda.cudaMemcpyAsync(self.given, self.image.ctypes.data, self.image.nbytes, to, self.stream))
        if not self.context.execute_async_v3(self.stream):
            raise RuntimeError("TensorRT could not run the engine; its log says why")
        gpu(cuda.cudaMemcpyAsync(self.answer.ctypes.data, self.found, self.answer.nbytes, back, self.stream))
        gpu(cuda.cudaStreamSynchronize(self.stream))
        return self.answer[0].astype(np.float32)


def main() -> None:
    """Read the command line, load the engine, classify each image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("images", nargs="+")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, with all logits")
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.artifact)
    facts = manifest["preprocessing"]
    shape = (1, 3, facts["image_size"], facts["image_size"])
    engine = Engine(arguments.engine, shape, manifest["input_name"], manifest["output_names"][0])
    for path in arguments.images:
        show(path, manifest["labels"], engine.run(preprocess(load_image(path), facts)), arguments.json)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # for a person: one sentence; take this away where a program calls main()
        sys.exit(f"{Path(__file__).stem}: {' '.join(str(error).split())}")
