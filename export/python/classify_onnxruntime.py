"""Classify images with an exported ONNX file alone: numpy, onnxruntime and Pillow, nothing of edgemim.

    python classify_onnxruntime.py MODEL.onnx IMAGE... [--threads N] [--json]

All facts come from the file's own metadata (keys 'edgemim.*'). Prints image, class and probability, tab-separated.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


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


def main() -> None:
    """Read the command line, open the model, classify each image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", nargs="+")
    parser.add_argument("--threads", type=int, default=0, help="0: the runtime's own choice")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, with all logits")
    arguments = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    session = onnxruntime.InferenceSession(arguments.model, options, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    facts = {k.removeprefix("edgemim."): json.loads(v) for k, v in metadata.items() if k.startswith("edgemim.")}
    if facts.get("task") != "classification":
        raise ValueError(f"{arguments.model} does not say that it is an edgemim classifier")
    for path in arguments.images:
        inputs = {facts["input_name"]: preprocess(load_image(path), facts)}
        logits = np.asarray(session.run(facts["output_names"][:1], inputs)[0])[0]
        show(path, facts["labels"], logits, arguments.json)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # for a person: one sentence; take this away where a program calls main()
        sys.exit(f"{Path(__file__).stem}: {' '.join(str(error).split())}")
