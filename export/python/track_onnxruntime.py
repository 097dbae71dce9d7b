"""Follow an object in a video with an artifact on ONNX Runtime: numpy, OpenCV and onnxruntime, nothing of edgemim.

    python track_onnxruntime.py ARTIFACT VIDEO LEFT,TOP,WIDTH,HEIGHT [--file KEY] [--threads N]

All facts come from the folder's manifest.json. Prints for each frame after the first: its number, left, top, width and
height of the box in pixels, and how sure the tracker is (0 to 1), tab-separated.
"""

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

PREFERRED = ("onnx-int8", "onnx-fp32")
Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


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


def open_model(path: Path, threads: int) -> Run:
    """A function from named arrays to named arrays."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: {
        name: np.asarray(value) for name, value in zip(names, session.run(names, inputs), strict=True)
    }


def crop(image: np.ndarray, box: list[float], factor: float, size: int, manifest: dict) -> tuple[np.ndarray, int]:
    """The square around a box, black outside of the image: float32 [1, 3, size, size], and its side in pixels."""
    left, top, width, height = box
    side = max(1, math.ceil(math.sqrt(width * height) * factor))
    x, y = round(left + 0.5 * width - 0.5 * side), round(top + 0.5 * height - 0.5 * side)
    # As published for OSTrack, the last row and column count as outside.
    rows, columns = (length - (manifest["tracking"]["border"] == "published") for length in image.shape[:2])
    above, below, before, behind = (min(side, max(0, n)) for n in (-y, y + side - rows, -x, x + side - columns))
    pixels = image[y + above : y + side - below, x + before : x + side - behind]
    if pixels.size:
        pixels = cv2.copyMakeBorder(pixels, above, below, before, behind, cv2.BORDER_CONSTANT, value=(0, 0, 0))
        pixels = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)
    else:
        pixels = np.zeros((size, size, 3), np.uint8)
    mean, std = (np.float32(manifest["preprocessing"][name]) for name in ("mean", "std"))
    scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None]), side


def moved(box: list[float], maps: dict, side: int, shape: tuple[int, ...], facts: dict) -> tuple[list[float], float]:
    """The box in this frame, and its score, from the network's maps of the search region."""
    score, size, offset = (maps[name][0] for name in facts["maps"])
    grid = score.shape[-1]
    hann = np.hanning(grid + 2)[1:-1]
    window = np.outer(hann, hann).astype(np.float32) if facts["window"] == "hann" else 1
    row, column = divmod(int(np.argmax(score[0] * window)), grid)
    step = facts["size_rate"] * float(score.max()) if facts["size_rate"] < 1 else 1.0
    lengths = [step * float(size[axis, row, column]) * side + (1 - step) * box[2 + axis] for axis in (0, 1)]
    found = []
    for axis, cell in enumerate((column, row)):
        centre = box[axis] + 0.5 * box[2 + axis] + ((cell + float(offset[axis, row, column])) / grid - 0.5) * side
        start, limit = centre - 0.5 * lengths[axis], shape[1 - axis]
        keep = min(facts["margin_px"], limit)  # so much of the box stays inside of the image
        first = min(max(0, start), limit - keep)
        last = min(max(keep, start + lengths[axis]), limit)
        found.append((first, max(keep, last - first)))
    if not np.isfinite([*score.ravel(), *lengths, *found[0], *found[1]]).all():
        return box, 0.0  # the network overflowed: the box waits where it was
    (left, width), (top, height) = found
    return [left, top, width, height], float(score.max())


def main() -> None:
    """Read the command line, open the graphs, follow the box through the video."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("video")
    parser.add_argument("box", help="LEFT,TOP,WIDTH,HEIGHT in the first frame, pixels")
    parser.add_argument("--file", help=f"model to run; default the first of {', '.join(PREFERRED)} that is there")
    parser.add_argument("--threads", type=int, default=0, help="0: the runtime's own choice")
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.artifact)
    facts = manifest.get("tracking")
    if not facts:
        raise ValueError(f"{arguments.artifact} is for {manifest['task']}, not a tracker")
    key = arguments.file or next((key for key in PREFERRED if key in manifest["files"]), "onnx-fp32")
    search = open_model(checked(arguments.artifact, manifest, key), arguments.threads)
    box = [float(value) for value in arguments.box.split(",")]
    if len(box) != 4 or not np.isfinite(box).all() or min(box[2:]) <= 0:
        raise ValueError(f"box {arguments.box} is not LEFT,TOP,WIDTH,HEIGHT, the last two above 0")
    capture = cv2.VideoCapture(arguments.video)
    there, frame = capture.read()
    if not there:
        raise ValueError(f"{arguments.video} is no video that OpenCV can read")
    template = crop(frame[..., ::-1], box, facts["template_factor"], facts["template_size"], manifest)[0]
    fixed = {facts["template_name"]: template}
    if facts["form"] == "cached":  # one graph looks at the template once, the other at every frame
        fixed = open_model(checked(arguments.artifact, manifest, f"{key}-template"), arguments.threads)(fixed)
    number = 0
    while (read := capture.read())[0]:
        number, frame = number + 1, read[1][..., ::-1]
        region, side = crop(frame, box, facts["search_factor"], facts["search_size"], manifest)
        box, score = moved(box, search({**fixed, facts["search_name"]: region}), side, frame.shape, facts)
        print(number, *(f"{value:.2f}" for value in box), f"{score:.4f}", sep="\t")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # for a person: one sentence; take this away where a program calls main()
        sys.exit(f"{Path(__file__).stem}: {' '.join(str(error).split())}")
