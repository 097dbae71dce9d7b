"""One case of `edgemim benchmark`, opened in the process that runs it: the call to time and what is known of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgemim.edge.artifact import Artifact
from edgemim.edge.runtime import open_session
from edgemim.edge.tracking.tracker import example_inputs

EAGER, COMPILED, THROUGHPUT = "pytorch", "pytorch-compiled", "openvino-throughput"
TORCH = (EAGER, COMPILED)


def open_case(
    folder: str, key: str, runtime: str, batch: int, threads: int
) -> tuple[Callable[[], object], dict[str, Any]]:
    """The call to time and facts for its row: precision, images of one call, streams. Raises EdgemimError."""
    artifact = Artifact.open(folder, verify=False)  # the parent has verified it a moment ago
    if runtime in TORCH:
        # The only way to torch: the bridge, asked for when it is installed.
        from edgemim.export.torch_baseline import open_baseline

        options = {"batch": batch, "threads": threads, "compiled": runtime == COMPILED}
        torch_session, inputs = open_baseline(artifact, run_folder(artifact), key, **options)
        return lambda: torch_session.run(inputs), {"precision": torch_session.precision, "images_per_call": batch}
    if runtime == THROUGHPUT:
        return _throughput(artifact, key, batch, threads)
    session = open_session(artifact, key, runtime=runtime, threads=threads)
    inputs = _example(artifact, key, runtime, batch, threads)
    return lambda: session.run(inputs), {"precision": session.precision, "images_per_call": batch}


def run_folder(artifact: Artifact) -> Path | None:
    """The PyTorch run that an artifact names, where it is; None if it names none."""
    if not artifact.manifest.source.get("run"):
        return None
    run = Path(str(artifact.manifest.source["run"]))
    return run if run.is_dir() else artifact.folder / run


def _throughput(artifact: Artifact, key: str, batch: int, threads: int) -> tuple[Callable[[], object], dict[str, Any]]:
    from edgemim.edge.runtime.openvino_throughput import open_file

    session = open_file(artifact, key, threads)
    inputs = _example(artifact, key, "openvino", batch, threads)
    session.run(inputs)  # refuses in words what would only be logged when it runs beside others
    facts = {"precision": session.precision, "images_per_call": batch * session.runs_per_wave}
    return lambda: session.wave(inputs), {**facts, "streams": session.streams, "requests": session.requests}


def _example(artifact: Artifact, key: str, runtime: str, batch: int, threads: int) -> dict[str, np.ndarray]:
    manifest = artifact.manifest
    if manifest.tracking is not None:
        return example_inputs(artifact, key, runtime=runtime, threads=threads)
    shape = (batch, *(side or manifest.preprocessing.image_size for side in manifest.input_shape[1:]))
    return {manifest.input_name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
