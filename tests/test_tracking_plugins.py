"""The plug-ins drive the real toolkits (GOT-10k's here, VOT's in its own environment) and meet PyTracking's contract."""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from tiny_tracker import moving_target, tiny_tracker

from edgemim.edge.tracking.tracker import Tracker

PLUGINS = Path(__file__).parent.parent / "tracking"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tracker(tmp_path_factory.mktemp("plugins") / "artifact", "cached").folder


@pytest.fixture(scope="module")
def expected(artifact: Path) -> np.ndarray:
    """Boxes of our own loop on the frames that every toolkit is given."""
    images, boxes = moving_target(frames=10)
    tracker = Tracker.open(artifact, threads=1)
    tracker.init(images[0], boxes[0])
    return np.array([boxes[0], *(tracker.update(image).box for image in images[1:])])


def plugin(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, PLUGINS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_frames(folder: Path) -> np.ndarray:
    """The frames as PNG, which keeps their pixels; their boxes [n, 4]."""
    images, boxes = moving_target(frames=10)
    folder.mkdir(parents=True)
    for number, image in enumerate(images, start=1):
        Image.fromarray(image).save(folder / f"{number:08d}.png")
    return np.array(boxes)


def test_the_real_got10k_toolkit_runs_and_scores_it(artifact: Path, expected: np.ndarray, tmp_path: Path) -> None:
    experiments = pytest.importorskip("got10k.experiments", reason="the GOT-10k toolkit: pip install got10k six")
    folder = tmp_path / "data" / "val" / "GOT-10k_Val_000001"
    boxes = write_frames(folder)
    for picture in folder.glob("*.png"):  # the toolkit looks for .jpg; decoders look at the bytes
        picture.rename(picture.with_suffix(".jpg"))
    np.savetxt(folder / "groundtruth.txt", boxes, delimiter=",", fmt="%.4f")
    (folder.parent / "list.txt").write_text(folder.name + "\n")
    (folder / "meta_info.ini").write_text("[METAINFO]\nurl: none\nbegin: 0\nresolution: (160, 120)\n")
    for name, value in (("absence", 0), ("cover", 8), ("cut_by_image", 0)):
        (folder / f"{name}.label").write_text("\n".join([str(value)] * len(boxes)) + "\n")
    experiment = experiments.ExperimentGOT10k(
        str(tmp_path / "data"), "val", result_dir=str(tmp_path / "results"), report_dir=str(tmp_path / "reports")
    )
    tracker = plugin("got10k_tracker").Got10kTracker(artifact, threads=1)
    experiment.run(tracker)
    (boxes_file,) = (tmp_path / "results").rglob(f"edgemim/{folder.name}/{folder.name}_001.txt")
    written = np.loadtxt(boxes_file, delimiter=",")
    np.testing.assert_allclose(written, expected, atol=6e-4)  # the toolkit writes three decimals
    report = experiment.report(["edgemim"])["edgemim"]["overall"]
    assert report["ao"] > 0.6 and report["sr"] > 0.8


def test_pytracking_contract(
    artifact: Path, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkout of the documented layout, driven as its runner does: by module names, with `parameters()` and `info`."""
    package = tmp_path / "checkout" / "pytracking"
    for name in ("", "evaluation", "tracker", "parameter"):
        (package / name).mkdir(parents=True, exist_ok=True)
        (package / name / "__init__.py").touch()
    command = [sys.executable, str(PLUGINS / "pytracking_plugin.py"), str(package.parent), "--artifact", str(artifact)]
    done = subprocess.run([*command, "--threads", "1"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    monkeypatch.syspath_prepend(str(package.parent))
    for name in [name for name in sys.modules if name.partition(".")[0] == "pytracking"]:
        monkeypatch.delitem(sys.modules, name)
    params = importlib.import_module("pytracking.parameter.edgemim.default").parameters()
    assert params.debug == 0 and params.visualization is False
    tracker = importlib.import_module("pytracking.tracker.edgemim").get_tracker_class()(params)
    images, boxes = moving_target(frames=10)
    tracker.visdom = None
    tracker.initialize(images[0], {"init_bbox": list(boxes[0])})
    found, info = [list(boxes[0])], {}
    for image in images[1:]:
        output = tracker.track(image, info)
        assert 0 <= output["object_presence_score"] <= 1
        info = {"previous_output": output}
        found.append(output["target_bbox"])
        tracker.visdom_draw_tracking(image, output["target_bbox"])
    np.testing.assert_allclose(found, expected)


def test_a_folder_that_is_no_checkout_is_refused_and_left_alone(artifact: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(PLUGINS / "pytracking_plugin.py"), str(tmp_path), "--artifact", str(artifact)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "no checkout of visionml/pytracking" in done.stderr
    assert not list(tmp_path.iterdir())


def test_vot_regions_of_both_kinds_and_several_objects(artifact: Path, expected: np.ndarray, tmp_path: Path) -> None:
    boxes = write_frames(tmp_path / "frames")
    files = sorted((tmp_path / "frames").iterdir())
    left, top, width, height = boxes[0]
    polygon = [(left, top), (left + width, top), (left + width, top + height), (left, top + height)]
    tracker = plugin("vot_tracker").Tracker(artifact, threads="1")
    first = tracker.init({"color": str(files[0])}, [tuple(boxes[0]), (polygon, {})])
    found = [first, *(tracker.update(str(path)) for path in files[1:])]
    for number in (0, 1):
        np.testing.assert_allclose([frame[number][0] for frame in found], expected)
    assert all(isinstance(region, tuple) and len(region) == 4 for region, _ in found[-1])


@pytest.mark.timeout(240)
def test_the_real_vot_toolkit_runs_it(artifact: Path, expected: np.ndarray, tmp_path: Path) -> None:
    """In the environment of tracking/vot_environment.sh; EDGEMIM_VOT names its `vot` program."""
    vot = os.environ.get("EDGEMIM_VOT")
    if not vot:
        pytest.skip("the VOT toolkit is not there: tracking/vot_environment.sh FOLDER, then EDGEMIM_VOT=FOLDER/bin/vot")
    sequence = tmp_path / "sequences" / "square"
    boxes = write_frames(sequence / "color")
    np.savetxt(sequence / "groundtruth.txt", boxes, delimiter=",", fmt="%.4f")
    (sequence / "sequence").write_text("name=square\nfps=25\nformat=default\nchannels.color=color/%08d.png\n")
    (sequence.parent / "list.txt").write_text("square\n")
    (tmp_path / "trackers.ini").write_text(
        f"[edgemim]\nlabel = edgemim\nprotocol = python\ncommand = vot_tracker:Tracker\npaths = {PLUGINS}\n"
        f"arg_artifact = {artifact}\narg_threads = 1\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(PLUGINS)}
    for words in (["initialize", "tests/basic", "--nodownload"], ["evaluate", "edgemim"]):
        done = subprocess.run(
            [vot, *words, "--workspace", str(tmp_path)], capture_output=True, text=True, timeout=200, env=environment
        )
        assert done.returncode == 0, done.stdout + done.stderr
    (regions,) = (tmp_path / "results" / "edgemim").rglob("square_001.bin")
    reader = (
        "import sys; from vot.region.io import read_trajectory\n"
        "for r in read_trajectory(sys.argv[1])[1:]: print(r.x, r.y, r.width, r.height)"
    )
    python = Path(vot).parent / "python"
    done = subprocess.run([python, "-c", reader, regions], capture_output=True, text=True, timeout=60)
    found = np.array([list(map(float, line.split())) for line in done.stdout.splitlines()])
    np.testing.assert_allclose(found, expected[1:], atol=1e-3)
    scores = np.loadtxt(regions.with_name("square_001_score.value"), skiprows=1)
    assert np.all((scores > 0) & (scores <= 1))
