"""A PyTorch run as one more `Session`: eager, or compiled by inductor; the baseline rows of a benchmark."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgemim.edge.artifact import Manifest
from edgemim.edge.machine import usable_cpus
from edgemim.edge.runtime.session import check_inputs
from edgemim.errors import MissingLibrary, UserError
from edgemim.export.onnx import DEFAULT_OPSET
from edgemim.tasks import open_task

_COMPILERS = ("g++", "clang++", "c++")


class TorchSession:
    """A module on the CPU, float32, without gradients.

    Args:
        module: takes its inputs in the order of `shapes`; gives a tensor or a tuple of them.
        shapes: of the inputs by name, None where any size will do.
        output_names: in the module's order.
        threads: CPU threads to compute with.
        compiled: let torch.compile make kernels of it, weights taken as constants; the first run of each shape then
            takes some tens of seconds. Nothing is read from or left in its caches, so that this time is always the same.

    Raises MissingLibrary if `compiled` and there is no C++ compiler.
    """

    precision = "fp32"

    def __init__(
        self,
        module: nn.Module,
        shapes: Mapping[str, tuple[int | None, ...]],
        output_names: Sequence[str],
        threads: int,
        *,
        compiled: bool = False,
    ) -> None:
        self.runtime = "pytorch-compiled" if compiled else "pytorch"
        self.threads = threads
        self._call: Any = _compile(module.cpu().eval()) if compiled else module.cpu().eval()
        self._shapes, self._outputs = dict(shapes), tuple(output_names)

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch. Raises UserError on inputs that do not fit."""
        check_inputs(inputs, self._shapes)
        # The number is the process's, not the session's: another session may have set its own.
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        with torch.no_grad():  # inductor takes weights as constants under this, not under inference_mode
            found = self._call(*(torch.from_numpy(inputs[name]) for name in self._shapes))
        found = found if isinstance(found, tuple | list) else (found,)
        return {name: output.numpy() for name, output in zip(self._outputs, found, strict=True)}


def _compile(module: nn.Module) -> Any:
    wanted = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ((wanted,) if wanted else _COMPILERS)):
        raise MissingLibrary(
            f"torch.compile needs a C++ compiler ({wanted or ' or '.join(_COMPILERS[:2])}), and there is none: "
            "apt install g++, or the like"
        )
    # One compiling process: a pool of them would stay and take CPU time from what is measured beside.
    options = {"freezing": True, "compile_threads": 1, "force_disable_caches": True}
    return torch.compile(module, dynamic=False, options=options)


def open_torch_session(run_folder: str | Path, threads: int = 0, *, image_size: int | None = None) -> TorchSession:
    """Open a fine-tuned or pre-training run for inference in eager PyTorch; `threads=0` means all usable CPUs.

    With `image_size`, the model for squares of that size, as `edgemim export --image-size` makes it.

    Raises UserError if the folder holds no model.
    """
    if threads < 0:
        raise UserError(f"threads is {threads}; give 0 for all usable CPUs, or a positive number")
    task = open_task(Path(run_folder))
    if image_size not in (None, task.preprocessing.image_size):
        task = task.at_size(image_size)
    shapes = {task.input_name: (None, *task.example_input(1).shape[1:])}
    return TorchSession(task.export_module(), shapes, task.output_names, threads or usable_cpus())


def describe_run(run_folder: str | Path) -> Manifest:
    """A run's manifest, as its artifact would have it but without files. Raises UserError."""
    task = open_task(Path(run_folder))
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
