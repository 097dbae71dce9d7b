"""A fine-tuned PyTorch run as one more `Session`: the baseline row of a benchmark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from edgemim.edge.artifact import Manifest
from edgemim.edge.machine import usable_cpus
from edgemim.edge.runtime.session import check_inputs
from edgemim.errors import UserError
from edgemim.export.onnx import DEFAULT_OPSET
from edgemim.tasks import Task, load_task


class TorchSession:
    """A task's module in eager PyTorch on the CPU, float32, without gradients."""

    runtime = "pytorch"
    precision = "fp32"

    def __init__(self, task: Task, threads: int) -> None:
        self.threads = threads
        self._module = task.export_module().cpu()
        self._input, self._outputs = task.input_name, task.output_names
        self._shapes = {task.input_name: (None, *task.example_input(1).shape[1:])}

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch. Raises UserError on inputs that do not fit."""
        check_inputs(inputs, self._shapes)
        # The number is the process's, not the session's: another session may have set its own.
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            found = self._module(torch.from_numpy(inputs[self._input]))
        found = found if isinstance(found, tuple | list) else (found,)
        return {name: output.numpy() for name, output in zip(self._outputs, found, strict=True)}


def open_torch_session(run_folder: str | Path, threads: int = 0, *, image_size: int | None = None) -> TorchSession:
    """Open a fine-tuned run for inference in eager PyTorch; `threads=0` means all usable CPUs.

    With `image_size`, the model for squares of that size, as `edgemim export --image-size` makes it.

    Raises UserError if the folder holds no fine-tuned model.
    """
    if threads < 0:
        raise UserError(f"threads is {threads}; give 0 for all usable CPUs, or a positive number")
    task = load_task(Path(run_folder))
    if image_size not in (None, task.preprocessing.image_size):
        task = task.at_size(image_size)
    return TorchSession(task, threads or usable_cpus())


def describe_run(run_folder: str | Path) -> Manifest:
    """A fine-tuned run's manifest, as its artifact would have it but without files. Raises UserError."""
    task = load_task(Path(run_folder))
    return Manifest(
        name=Path(run_folder).resolve().name,
        task=task.task_name,
        input_name=task.input_name,
        input_shape=(None, *task.example_input(1).shape[1:]),
        output_names=task.output_names,
        preprocessing=task.preprocessing,
        labels=task.labels,
        opset=DEFAULT_OPSET,
        parameters=sum(parameter.numel() for parameter in task.model.parameters()),
        **task.manifest_facts(),
    )
