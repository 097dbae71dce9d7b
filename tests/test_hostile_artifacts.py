"""An artifact from a stranger: edgemim and the Python programs refuse each attack in one sentence (C++: test_cpp_program.py)."""

import runpy
import shutil
import sys
from pathlib import Path

import pytest

openvino = pytest.importorskip("openvino")

from hostile_artifacts import ATTACKS, KEY, Attack, change_manifest  # noqa: E402
from tiny_artifact import tiny_artifact  # noqa: E402
from tiny_tracker import moving_target, tiny_tracker, write_video  # noqa: E402
from twenty_images import twenty_images  # noqa: E402

from edgemim.cli import main  # noqa: E402
from edgemim.edge.artifact import Artifact, describe_file  # noqa: E402
from edgemim.edge.runtime.openvino import core  # noqa: E402

PROGRAMS = Path(__file__).parent.parent / "export" / "python"
IDS = [one.name for one in ATTACKS]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A small artifact with OpenVINO's own file."""
    artifact = tiny_artifact(tmp_path_factory.mktemp("good") / "artifact", size=32)
    openvino.save_model(core().read_model(artifact.file()), artifact.folder / f"{KEY}.xml", compress_to_fp16=False)
    entry = describe_file(artifact.folder, f"{KEY}.xml", format="openvino", precision="fp32", companions=[f"{KEY}.bin"])
    files = {**artifact.manifest.files, KEY: entry}
    artifact.manifest = artifact.manifest.model_copy(update={"files": files})
    artifact.save_manifest()
    return artifact


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return twenty_images(tmp_path_factory.mktemp("twenty"))[0]


@pytest.fixture
def folder(good: Artifact, tmp_path: Path) -> Path:
    return shutil.copytree(good.folder, tmp_path / "artifact")


def by_edgemim(folder: Path, *words: object) -> int:
    return main(["predict", str(folder), *map(str, words), "--out", str(folder.parent / "out")])


def by_program(name: str, *words: object) -> str:
    """Run a program here, where everything is loaded; what it ends with: '' or the sentence."""
    before, sys.argv = sys.argv, [name, *map(str, words)]
    try:
        runpy.run_path(str(PROGRAMS / name), run_name="__main__")
    except SystemExit as ended:
        return str(ended.code or "")
    finally:
        sys.argv = before
    return ""


def test_the_good_one_is_read(folder: Path, picture: Path) -> None:
    assert by_edgemim(folder, picture, "--file", KEY) == 0
    assert by_program("classify_openvino.py", folder, picture, "--file", KEY) == ""


@pytest.mark.parametrize("attack", ATTACKS, ids=IDS)
def test_edgemim_refuses(folder: Path, picture: Path, attack: Attack, capsys: pytest.CaptureFixture[str]) -> None:
    attack.do(folder)
    assert by_edgemim(folder, picture, "--file", KEY) in (2, 6)
    said = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(said) == 1 and said[0].startswith("edgemim: ") and attack.message in said[0]


@pytest.mark.parametrize("attack", ATTACKS, ids=IDS)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_the_program_refuses(folder: Path, picture: Path, attack: Attack, capsys: pytest.CaptureFixture[str]) -> None:
    attack.do(folder)
    said = by_program("classify_openvino.py", folder, picture, "--file", KEY)
    assert said.startswith("classify_openvino: ") and said.isprintable() and attack.message in said
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("output_names", ["nothing"], "gives 'nothing', it gives logits"),
        ("output_names", [], "output_names"),
        ("input_name", "nothing", "takes inputs images, not nothing"),
        ("preprocessing.std", [float("inf"), 1, 1], "preprocessing.std"),
        ("preprocessing.std", [1e-45, 1, 1], "not finite"),
        ("preprocessing.crop_pct", float("nan"), "preprocessing.crop_pct"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_facts_that_make_no_sense(
    folder: Path, picture: Path, place: str, value: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change_manifest(folder, place, value)
    assert by_edgemim(folder, picture) in (2, 6)
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("tracking.lost_below", float("nan"), "tracking.lost_below"),
        ("tracking.template_factor", float("inf"), "tracking.template_factor"),
        ("tracking.search_factor", 1e300, "tracking.search_factor"),
        ("tracking.margin_px", float("inf"), "tracking.margin_px"),
        ("tracking.maps", ["size", "score", "offset"], "map 'size' is 1×2×16×16, not 1×1×g×g"),
        ("tracking.form", "cached", "has no template graph"),
        ("tracking.template_size", 128, "inputs.template"),
    ],
)
def test_a_tracker_that_makes_no_sense(
    tmp_path: Path, place: str, value: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = tiny_tracker(tmp_path / "artifact")
    video = write_video(tmp_path / "video.avi", moving_target(4)[0])
    change_manifest(artifact.folder, place, value)
    words = ["track", video, "--artifact", artifact.folder, "--box", "68,78,24,24", "--out", tmp_path / "out.avi"]
    assert main(list(map(str, words))) in (2, 6)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("edgemim")]
    assert len(said) == 1 and message in said[0]
