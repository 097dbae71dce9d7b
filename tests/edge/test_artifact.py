import hashlib
import json
from pathlib import Path

import pytest
from tiny_artifact import tiny_artifact

from edgemim.edge.artifact import Artifact, Manifest, describe_file, onnx_metadata, sha256_of
from edgemim.edge.images import Preprocessing
from edgemim.errors import UserError


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return tiny_artifact(tmp_path / "artifact")


def edited(artifact: Artifact, change: dict[str, object], key: str | None = "onnx-fp32") -> Path:
    """Change keys of one file's entry (or of the manifest itself, key None) behind the artifact's back."""
    path = artifact.folder / "manifest.json"
    content = json.loads(path.read_text())
    (content if key is None else content["files"][key]).update(change)
    path.write_text(json.dumps(content))
    return artifact.folder


def test_opens_as_written(artifact: Artifact) -> None:
    again = Artifact.open(str(artifact.folder))
    assert again.manifest == artifact.manifest
    assert again.file() == artifact.folder / "model.onnx"
    assert again.size_bytes("onnx-fp32") == (artifact.folder / "model.onnx").stat().st_size
    assert again.manifest.files["onnx-fp32"].sha256 == hashlib.sha256(again.file().read_bytes()).hexdigest()


def test_save_manifest_keeps_what_was_added(artifact: Artifact) -> None:
    artifact.manifest = artifact.manifest.model_copy(update={"parity": {"max_abs": 1e-6, "images": 64}})
    artifact.save_manifest()
    assert Artifact.open(artifact.folder).manifest.parity == {"max_abs": 1e-6, "images": 64}
    assert not list(artifact.folder.glob("*.tmp"))


def test_unknown_key_is_answered_with_the_closest(artifact: Artifact) -> None:
    with pytest.raises(UserError, match=r"no model 'onnx-fp23' \(did you mean 'onnx-fp32'\?\)"):
        artifact.file("onnx-fp23")


def test_a_flipped_bit_is_named(artifact: Artifact) -> None:
    path = artifact.file()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.onnx is not the file that was exported: its sha256"):
        Artifact.open(artifact.folder)
    assert Artifact.open(artifact.folder, verify=False).manifest == artifact.manifest


@pytest.mark.parametrize("verify", [True, False])
def test_size_is_checked_always(artifact: Artifact, verify: bool) -> None:
    with open(artifact.file(), "ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"model\.onnx has \d+ bytes, the manifest says"):
        Artifact.open(artifact.folder, verify=verify)


def test_missing_things_are_named(artifact: Artifact, tmp_path: Path) -> None:
    artifact.file().unlink()
    with pytest.raises(UserError, match=r"model\.onnx is missing"):
        Artifact.open(artifact.folder)
    (artifact.folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        Artifact.open(artifact.folder)
    with pytest.raises(UserError, match="is not a folder"):
        Artifact.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "path", ["../outside.onnx", "/etc/passwd", "a/../../x", "C:\\x.onnx", "..\\x", "\\\\host\\x", ""]
)
@pytest.mark.parametrize("place", ["path", "companion"])
def test_paths_that_leave_the_folder_are_refused(artifact: Artifact, tmp_path: Path, path: str, place: str) -> None:
    (tmp_path / "outside.onnx").write_bytes(artifact.file().read_bytes())
    change = {"path": path} if place == "path" else {"companions": {path: "0" * 64}}
    with pytest.raises(UserError, match="leaves the artifact folder") as caught:
        Artifact.open(edited(artifact, change))
    assert repr(path) in str(caught.value)


def test_a_link_out_of_the_folder_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    artifact.file().rename(outside)
    (artifact.folder / "model.onnx").symlink_to(outside)
    with pytest.raises(UserError, match=r"model\.onnx leads outside the artifact folder"):
        Artifact.open(artifact.folder)


def test_a_linked_folder_is_refused_and_a_link_inside_is_not(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    artifact.file().rename(tmp_path / "elsewhere" / "model.onnx")
    (artifact.folder / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="leads outside"):
        Artifact.open(edited(artifact, {"path": "sub/model.onnx"}))
    (tmp_path / "elsewhere" / "model.onnx").rename(artifact.folder / "real.onnx")
    (artifact.folder / "model.onnx").symlink_to("real.onnx")
    Artifact.open(edited(artifact, {"path": "model.onnx"}))


def test_a_companion_is_verified(artifact: Artifact) -> None:
    (artifact.folder / "weights.bin").write_bytes(b"1234")
    entry = describe_file(
        artifact.folder, "model.onnx", format="onnx", precision="fp32", companions=["weights.bin"], isa="avx2"
    )
    artifact.manifest = artifact.manifest.model_copy(update={"files": {"onnx-fp32": entry}})
    artifact.save_manifest()
    assert Artifact.open(artifact.folder).size_bytes("onnx-fp32") == entry.bytes + 4
    (artifact.folder / "weights.bin").write_bytes(b"1235")
    with pytest.raises(UserError, match=r"weights\.bin is not the file"):
        Artifact.open(artifact.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "has format 2, this edgemim reads 1"),
        ({"labls": []}, r"unknown key 'labls' \(did you mean 'labels'\?\)"),
        ({"input_shape": [None, 3, 99, 99]}, r"input_shape \[None, 3, 99, 99\] does not fit"),
        ({"preprocessing": {"std": [0, 1, 1]}}, "preprocessing.std"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_one_sentence(artifact: Artifact, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Artifact.open(edited(artifact, change, key=None))


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_no_json_is_one_sentence(artifact: Artifact, content: bytes) -> None:
    (artifact.folder / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        Artifact.open(artifact.folder)


def test_a_huge_manifest_is_not_read(artifact: Artifact) -> None:
    with open(artifact.folder / "manifest.json", "ab") as file:
        file.truncate(2**34)
    with pytest.raises(UserError, match="too many for a manifest"):
        Artifact.open(artifact.folder)


def test_onnx_metadata_says_all_that_a_file_alone_needs() -> None:
    preprocessing = Preprocessing(image_size=64, crop_pct=0.9, interpolation="bilinear")
    manifest = Manifest(
        name="m", input_shape=(None, 3, 64, 64), preprocessing=preprocessing, labels=("ä", "b"), opset=20
    )
    facts = {key.removeprefix("edgemim."): json.loads(value) for key, value in onnx_metadata(manifest).items()}
    assert Preprocessing(**{key: facts[key] for key in Preprocessing.model_fields}) == preprocessing
    assert (facts["labels"], facts["input_name"], facts["output_names"]) == (["ä", "b"], "images", ["logits"])


def test_sha256_of_a_known_text(tmp_path: Path) -> None:
    (tmp_path / "abc").write_text("abc")
    # FIPS 180-4, example 1
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
