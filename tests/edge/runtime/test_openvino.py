import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from tiny_artifact import tiny_artifact

from edgemim.edge.artifact import Artifact, create, describe_file
from edgemim.edge.runtime import open_session
from edgemim.errors import ModelRefused, UserError

openvino = pytest.importorskip("openvino", reason="OpenVINO: pip install 'edgemim[openvino]'")


def with_own_format(folder: Path, companions: list[str]) -> Artifact:
    """The tiny artifact with its model in OpenVINO's format beside the ONNX one."""
    from edgemim.edge.runtime.openvino import core

    artifact = tiny_artifact(folder)
    openvino.save_model(core().read_model(artifact.file()), folder / "m.xml", compress_to_fp16=False)
    entry = describe_file(folder, "m.xml", format="openvino", precision="fp32", companions=companions)
    files = {**artifact.manifest.files, "openvino-fp32": entry}
    return create(folder, artifact.manifest.model_copy(update={"files": files}))


def test_own_format_gives_the_logits_of_onnx(tmp_path: Path) -> None:
    artifact = with_own_format(tmp_path, ["m.bin"])
    batch = {"images": np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)}
    expected = open_session(artifact, "onnx-fp32").run(batch)["logits"]
    session = open_session(artifact, "openvino-fp32")
    assert session.runtime == "openvino"
    assert np.allclose(session.run(batch)["logits"], expected, atol=1e-4)


def test_settings_are_those_asked_for(tmp_path: Path) -> None:
    session = open_session(tiny_artifact(tmp_path), runtime="openvino", threads=2)
    compiled = session._request.get_compiled_model()  # type: ignore[attr-defined]
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 2
    assert compiled.get_property("NUM_STREAMS") == 1
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32


def test_weights_that_the_manifest_does_not_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the manifest lists no weights m\.bin"):
        open_session(with_own_format(tmp_path, []), "openvino-fp32")


def test_a_damaged_model_is_refused_with_its_reason(tmp_path: Path) -> None:
    artifact = with_own_format(tmp_path, ["m.bin"])
    (tmp_path / "m.xml").write_text("<net><layers></net>")
    entry = describe_file(tmp_path, "m.xml", format="openvino", precision="fp32", companions=["m.bin"])
    artifact = create(tmp_path, artifact.manifest.model_copy(update={"files": {"openvino-fp32": entry}}))
    with pytest.raises(ModelRefused, match=r"OpenVINO .* refuses .*m\.xml"):
        open_session(artifact, "openvino-fp32")


def test_a_signal_after_sessions_were_closed_does_not_crash(tmp_path: Path) -> None:
    tiny_artifact(tmp_path)
    code = (
        "import os, signal, sys\n"
        "from edgemim.edge.artifact import Artifact\n"
        "from edgemim.edge.runtime import open_session\n"
        "artifact = Artifact.open(sys.argv[1])\n"
        "first, second = (open_session(artifact, runtime='openvino') for _ in range(2))\n"
        "del first\n"
        "del second\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('noted'))\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "noted\n"), ended.stderr


@pytest.mark.parametrize(("flags", "expected"), [(("avx512_bf16",), "bf16"), (("avx512_vnni",), "f32")])
def test_bfloat16_is_asked_for_only_where_the_cpu_has_it(tmp_path: Path, monkeypatch, flags, expected) -> None:
    from edgemim.edge.runtime import openvino as module

    artifact = with_own_format(tmp_path, ["m.bin"])
    entry = artifact.manifest.files["openvino-fp32"].model_copy(update={"execution": "bf16"})
    artifact = create(tmp_path, artifact.manifest.model_copy(update={"files": {"openvino-bf16": entry}}))
    monkeypatch.setattr(module, "cpu_flags", lambda: flags)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        session = open_session(artifact, "openvino-bf16")
    assert session.execution == expected  # type: ignore[attr-defined]
    told = [str(warning.message) for warning in caught if "bfloat16" in str(warning.message)]
    assert len(told) == (expected == "f32")
