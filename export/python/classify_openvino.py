"""Classify images with an artifact folder on OpenVINO: numpy, openvino and Pillow, nothing of edgemim.

    python classify_openvino.py ARTIFACT IMAGE... [--file openvino-int8] [--threads N] [--json]

All facts come from the folder's manifest.json. Prints image, class and probability, tab-separated.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import openvino
from PIL import Image, ImageOps

PREFERRED = ("openvino-int8", "openvino-fp32", "onnx-fp32")


def read_manifest(folder: Path) -> dict:
    """What the artifact says of itself."""
    path = folder / "manifest.json"
    if path.stat().st_size > 2**24:
        raise ValueError(f"{path} is too large for a manifest")
    return json.loads(path.read_bytes())


def checked(folder: Path, manifest: dict, key: str) -> Path:
    """The path of a model after its files were checked: inside the folder, and those that were exported."""
    if key not in manifest["files"]:
        raise ValueError(f"the artifact has no model '{key}'; it has {', '.join(manifest['files'])}")
    entry = manifest["files"][key]
    if entry["format"] == "openvino" and str(Path(entry["path"]).with_suffix(".bin")) not in entry["companions"]:
        raise ValueError(f"the manifest lists no weights of {entry['path']}; export it again")
    for name, sha256 in {entry["path"]: entry["sha256"], **entry["companions"]}.items():
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise ValueError(f"{name} leads outside of {folder}; refused")
        if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise ValueError(f"{path} is not the file that was exported; copy the artifact again")
    return folder / entry["path"]


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
    parser.add_argument("artifact", type=Path)
    parser.add_argument("images", nargs="+")
    parser.add_argument("--file", help=f"model to run; default the first of {', '.join(PREFERRED)} that is there")
    parser.add_argument("--threads", type=int, default=0, help="0: the runtime's own choice")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, with all logits")
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.artifact)
    if manifest["task"] != "classification":
        raise ValueError(f"{arguments.artifact} is for {manifest['task']}, not a classifier")
    file = arguments.file or next((key for key in PREFERRED if key in manifest["files"]), "onnx-fp32")
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    settings["INFERENCE_NUM_THREADS"] = arguments.threads
    model = openvino.Core().compile_model(checked(arguments.artifact, manifest, file), "CPU", settings)
    for path in arguments.images:
        inputs = {manifest["input_name"]: preprocess(load_image(path), manifest["preprocessing"])}
        logits = model(inputs)[manifest["output_names"][0]][0]
        show(path, manifest["labels"], logits, arguments.json)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # for a person: one sentence; take this away where a program calls main()
        sys.exit(f"{Path(__file__).stem}: {' '.join(str(error).split())}")
