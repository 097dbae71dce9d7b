"""A fine-tuned tracker in eager PyTorch, in the same loop as an artifact's: candidate elimination as it was trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from edgemim.edge.machine import usable_cpus
from edgemim.edge.runtime.session import check_inputs
from edgemim.edge.tracking.tracker import Tracker
from edgemim.errors import UserError
from edgemim.tasks import TrackingTask, load_task


class TrackerSession:
    """A tracker's network on the CPU, float32: both crops in, three maps out. A cached tracker runs in one piece."""

    runtime = "pytorch"
    precision = "fp32"

    def __init__(self, task: TrackingTask, threads: int) -> None:
        if task.model.size.eliminates and task.model.size.ranked_by == "box":
            raise UserError("search tokens ranked by the template's box need that box in the network; export the run")
        self.threads = threads
        self._model = task.model.eval()
        self._names = (task.inference.template_name, task.inference.search_name)
        sides = (task.inference.template_size, task.inference.search_size)
        self._shapes: dict[str, tuple[int | None, ...]] = {
            name: (1, 3, side, side) for name, side in zip(self._names, sides, strict=True)
        }
        self._maps = task.inference.maps

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """{template [1, 3, z, z], search [1, 3, s, s]}, normalised -> {score, size, offset}. Raises UserError."""
        check_inputs(inputs, self._shapes)
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            maps = self._model(*(torch.from_numpy(inputs[name]) for name in self._names))
        return {name: getattr(maps, part).numpy() for name, part in zip(self._maps, _PARTS, strict=True)}


_PARTS = ("score", "size", "offset")


def open_torch_tracker(run_folder: str | Path, threads: int = 0) -> Tracker:
    """Open a fine-tuned tracking run; `threads=0` means all usable CPUs. Raises UserError if it is none."""
    task = load_task(Path(run_folder))
    if not isinstance(task, TrackingTask):
        raise UserError(
            f"{run_folder} is a {task.task_name} run, not a tracker; run `edgemim finetune --task tracking`"
        )
    inference = task.inference.model_copy(update={"form": "joint"})
    return Tracker(TrackerSession(task, threads or usable_cpus()), inference, task.preprocessing)
