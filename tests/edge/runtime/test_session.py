import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from tiny_artifact import tiny_artifact, tiny_model

from edgemim.edge.artifact import Artifact
from edgemim.edge.machine import usable_cpus
from edgemim.edge.runtime import READERS, open_session
from edgemim.edge.runtime import session as session_module
from edgemim.errors import MissingLibrary, UserError

RUNTIMES = ["onnxruntime", pytest.param("openvino", marks=pytest.mark.skipif("not _openvino()", reason="no OpenVINO"))]


def _openvino() -> bool:
    import importlib.util

    return importlib.util.find_spec("openvino") is not None


def images(batch: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, 3, size, size)).astype(np.float32)


def by_numpy(model: onnx.ModelProto, batch: np.ndarray) -> np.ndarray:
    weights = {weight.name: onnx.numpy_helper.to_array(weight) for weight in model.graph.initializer}
    return np.tanh(batch.reshape(len(batch), -1) @ weights["weight0"]) @ weights["head"]


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return tiny_artifact(tmp_path, int8=True)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("batch", [1, 5])
def test_logits_equal_numpy(artifact: Artifact, runtime: str, batch: int) -> None:
    session = open_session(artifact, runtime=runtime)
    assert (session.runtime, session.precision, session.threads) == (runtime, "fp32", usable_cpus())
    given = images(batch)
    result = session.run({"images": given})
    assert list(result) == ["logits"]
    assert result["logits"].dtype == np.float32
    assert np.allclose(result["logits"], by_numpy(tiny_model(16, 4), given), atol=1e-4)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_results_of_one_run_survive_the_next(artifact: Artifact, runtime: str) -> None:
    session = open_session(artifact, runtime=runtime)
    first = session.run({"images": images(2)})["logits"]
    kept = first.copy()
    session.run({"images": 3 * images(2)})
    assert np.array_equal(first, kept)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_int8_file_is_near_fp32(artifact: Artifact, runtime: str) -> None:
    session = open_session(artifact, "onnx-int8", runtime=runtime)
    assert session.precision == "int8"
    given = images(8)
    exact, found = by_numpy(tiny_model(16, 4), given), session.run({"images": given})["logits"]
    assert not np.array_equal(exact, found)
    assert (exact * found).sum() / np.linalg.norm(exact) / np.linalg.norm(found) > 0.99


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    "inputs",
    [
        {"image": images(1)},
        {},
        {"images": images(1, 17)},
        {"images": images(1).astype(np.float64)},
        {"images": images(1)[0]},
        {"images": images(1), "more": images(1)},
    ],
)
def test_wrong_inputs_are_named(artifact: Artifact, runtime: str, inputs: dict[str, np.ndarray]) -> None:
    with pytest.raises(UserError, match="images"):
        open_session(artifact, runtime=runtime).run(inputs)


def test_fixed_batch_refuses_another(tmp_path: Path) -> None:
    session = open_session(tiny_artifact(tmp_path, batch=1))
    with pytest.raises(UserError, match="takes float32 1×3×16×16"):
        session.run({"images": images(2)})


def test_choices_that_do_not_fit(artifact: Artifact) -> None:
    with pytest.raises(UserError, match=r"runtime 'onnxruntme' does not read onnx files \(did you mean 'onnxruntime'"):
        open_session(artifact, runtime="onnxruntme")
    with pytest.raises(UserError, match="threads is -1"):
        open_session(artifact, threads=-1)


def test_every_reader_is_a_module_here() -> None:
    folder = Path(__file__).parents[3] / "edgemim" / "edge" / "runtime"
    names = {runtime.replace("-", "_") for readers in READERS.values() for runtime in readers}
    assert all((folder / f"{name}.py").is_file() for name in names)


def test_missing_runtime_names_the_remedy(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "edgemim.edge.runtime.openvino", raising=False)
    with pytest.raises(MissingLibrary, match=r"openvino.*pip install 'edgemim\[openvino\]'") as caught:
        open_session(artifact, runtime="openvino")
    assert caught.value.exit_code == 4


def test_full_range_weights_on_a_cpu_without_vnni_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    artifact = tiny_artifact(tmp_path, int8=True)

    def messages(isa: str, flags: tuple[str, ...], key: str = "onnx-int8") -> list[str]:
        files = {name: entry.model_copy(update={"isa": isa}) for name, entry in artifact.manifest.files.items()}
        made_for = Artifact(artifact.folder, artifact.manifest.model_copy(update={"files": files}))
        monkeypatch.setattr(session_module, "cpu_flags", lambda: flags)
        recwarn.clear()
        open_session(made_for, key)
        return [str(warning.message) for warning in recwarn]

    (message,) = messages("vnni", ("avx2",))
    assert "'onnx-int8'" in message and "--isa portable" in message and "\n" not in message
    assert messages("portable", ("avx2",)) == messages("vnni", ("avx2", "avx512_vnni")) == []
    assert messages("vnni", ()) == []  # flags unknown


@pytest.mark.skipif(usable_cpus() < 2, reason="one usable CPU")
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_thread_counts_take_effect_per_session(tmp_path: Path, runtime: str) -> None:
    artifact = tiny_artifact(tmp_path, size=16, width=768, layers=4)
    given = {"images": images(64)}

    def working_threads(threads: int) -> int:
        """Threads of this process that did a fair share of the work."""
        session = open_session(artifact, runtime=runtime, threads=threads)
        session.run(given)
        before = {thread.id: thread.user_time for thread in psutil.Process().threads()}
        for _ in range(30):
            session.run(given)
        gains = [thread.user_time - before.get(thread.id, 0.0) for thread in psutil.Process().threads()]
        return sum(gain > 0.2 * sum(gains) / threads for gain in gains)

    assert working_threads(1) == 1
    # A second thread that the machine gives no time, because other processes have it, leaves the work to the first.
    assert any(working_threads(2) == 2 for _ in range(40))
    assert working_threads(1) == 1


def test_torch_is_never_imported(artifact: Artifact) -> None:
    code = (
        "import sys; from edgemim.edge.artifact import Artifact; from edgemim.edge.runtime import open_session\n"
        "import edgemim.edge.benchmark, edgemim.commands.benchmark, edgemim.commands.predict, edgemim.commands.doctor\n"
        "open_session(Artifact.open(sys.argv[1]))\n"
        "assert not {'torch', 'timm', 'onnx', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(artifact.folder)], check=True, timeout=60)
