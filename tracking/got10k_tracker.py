"""Run an edgemim tracker inside the GOT-10k toolkit (MIT): its trackers' interface by shape, on the edge wing alone.

    python tracking/got10k_tracker.py ARTIFACT --root GOT10K [--subset val] [--results results] [--key onnx-fp32]

needs `pip install got10k`. From Python: `ExperimentOTB(root).run(Got10kTracker("ARTIFACT"))`, and any other experiment.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from edgemim.edge.images import load_image
from edgemim.edge.tracking.tracker import Tracker


class Got10kTracker:
    """`init(image, box)`, `update(image)` and `track(files, box)`, as the toolkit's experiments call them.

    Images are Pillow's, RGB; boxes are left, top, width, height in pixels, counted as the toolkit counts them.
    """

    is_deterministic = True

    def __init__(
        self,
        artifact: str | Path,
        *,
        name: str = "edgemim",
        key: str = "onnx-fp32",
        runtime: str | None = None,
        threads: int = 0,
    ) -> None:
        self.name = name
        self._tracker = Tracker.open(artifact, key, runtime=runtime, threads=threads)

    def init(self, image: object, box: np.ndarray) -> None:
        """Take the object from the first image."""
        self._tracker.init(np.asarray(image), box)

    def update(self, image: object) -> np.ndarray:
        """float64 [4]: the box in the next image."""
        return np.array(self._tracker.update(np.asarray(image)).box)

    def track(self, img_files: list[str], box: np.ndarray, visualize: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Boxes float64 [n, 4] and seconds float64 [n] over a sequence's files; reading the files is not timed."""
        boxes, seconds = np.zeros((len(img_files), 4)), np.zeros(len(img_files))
        boxes[0] = box
        for number, path in enumerate(img_files):
            image = load_image(path)
            began = time.perf_counter()
            if number == 0:
                self.init(image, box)
            else:
                boxes[number] = self.update(image)
            seconds[number] = time.perf_counter() - began
        return boxes, seconds


def main() -> None:
    """Run one subset of GOT-10k and print the toolkit's own report of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--root", required=True, help="folder with train/, val/ or test/")
    parser.add_argument("--subset", default="val", choices=("train", "val", "test"))
    parser.add_argument("--results", default="results", help="folder for boxes; reports/ lies beside it")
    parser.add_argument("--key", default="onnx-fp32", help="which model of the artifact")
    parser.add_argument("--name", default="edgemim")
    arguments = parser.parse_args()
    from got10k.experiments import ExperimentGOT10k  # pyright: ignore[reportMissingImports]

    reports = Path(arguments.results).parent / "reports"
    experiment = ExperimentGOT10k(
        arguments.root, arguments.subset, result_dir=arguments.results, report_dir=str(reports)
    )
    experiment.run(Got10kTracker(arguments.artifact, name=arguments.name, key=arguments.key))
    if arguments.subset != "train":
        experiment.report([arguments.name])


if __name__ == "__main__":
    main()
