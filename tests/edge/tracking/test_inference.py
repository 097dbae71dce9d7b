"""A tracker's part of the manifest: sizes, names and files that disagree are named when the artifact is opened."""

import json
from pathlib import Path

import pytest
from tiny_tracker import tiny_tracker

from edgemim.edge.artifact import Artifact, Manifest, onnx_metadata
from edgemim.edge.tracking.inference import TrackingInference
from edgemim.errors import UserError


def edited(folder: Path, change: dict) -> Path:
    """Change keys of the manifest, those of 'tracking' one by one, behind the artifact's back."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    content["tracking"].update(change.pop("tracking", {}))
    content.update(change)
    path.write_text(json.dumps(content))
    return folder


def test_published_settings_are_the_default() -> None:
    """OSTrack-256's test parameters (experiments/ostrack/vitb_256_mae_ce_32x4_ep300.yaml)."""
    facts = TrackingInference()
    assert (facts.template_size, facts.template_factor, facts.search_size, facts.search_factor) == (128, 2, 256, 4)
    assert (facts.window, facts.margin_px, facts.form) == ("hann", 10, "joint")


def test_opens_as_written_and_metadata_carries_it(tmp_path: Path) -> None:
    artifact = tiny_tracker(tmp_path / "a", "cached")
    again = Artifact.open(artifact.folder).manifest
    assert again == artifact.manifest
    facts = {key.removeprefix("edgemim."): json.loads(value) for key, value in onnx_metadata(again).items()}
    assert TrackingInference(**facts["tracking"]) == again.tracking
    assert facts["inputs"] == {"template": [1, 3, 64, 64], "search": [1, 3, 128, 128]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tracking": {"search_size": 160}}, r"image_size 128 is not tracking\.search_size 160"),
        ({"tracking": {"template_size": 96}}, r"inputs\.template is \[1, 3, 64, 64\], tracking wants \[1, 3, 96, 96\]"),
        ({"tracking": {"template_name": "z"}}, r"inputs\.z is missing"),
        ({"tracking": {"maps": ["a", "b", "c"]}}, r"output_names .* are not tracking\.maps"),
        (
            {"tracking": {"form": "joint"}},
            r"files\.onnx-fp32-template is a template graph, but tracking\.form is joint",
        ),
        ({"tracking": {"windw": "hann"}}, r"unknown key 'tracking\.windw' \(did you mean 'window'\?\)"),
        ({"input_shape": [1, 3, 64, 64]}, r"inputs\.search is not input_shape \[1, 3, 64, 64\]"),
        ({"task": "classification"}, "task 'classification' does not go with tracking"),
    ],
)
def test_what_disagrees_is_one_sentence(tmp_path: Path, change: dict, message: str) -> None:
    folder = tiny_tracker(tmp_path / "a", "cached").folder
    with pytest.raises(UserError, match=message):
        Artifact.open(edited(folder, change))


def test_a_search_graph_needs_its_template_graph(tmp_path: Path) -> None:
    folder = tiny_tracker(tmp_path / "a", "cached").folder
    files = json.loads((folder / "manifest.json").read_text())["files"]
    files.pop("onnx-fp32-template")
    with pytest.raises(UserError, match=r"files\.onnx-fp32 has no template graph onnx-fp32-template"):
        Artifact.open(edited(folder, {"files": files}))


def test_a_tracker_needs_its_settings(tmp_path: Path) -> None:
    manifest = tiny_tracker(tmp_path / "a").manifest.model_dump()
    with pytest.raises(ValueError, match="task 'tracking' does not go with"):
        Manifest(**{**manifest, "tracking": None})
