"""An artifact folder appears when it is complete, and an older one is lost only to a complete one."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemim.errors import GateRefused, UserError
from edgemim.export.staging import check_free, staged


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_it_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "artifact"
    with staged(out) as folder:
        (folder / "manifest.json").write_text("new")
        assert not out.exists()
    assert names(tmp_path) == {"deep", "deep/artifact", "deep/artifact/manifest.json"}


def test_a_refusal_leaves_nothing(tmp_path: Path) -> None:
    def export() -> None:
        with staged(tmp_path / "artifact") as folder:
            (folder / "model.onnx").write_text("x")
            raise GateRefused("no")

    with pytest.raises(GateRefused):
        export()
    assert names(tmp_path) == set()


def test_the_older_one_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    out.mkdir()
    (out / "manifest.json").write_text("old")
    for error in (GateRefused("no"), KeyboardInterrupt()):
        with pytest.raises(type(error)), staged(out):
            raise error
        assert (out / "manifest.json").read_text() == "old"
    with staged(out) as folder:
        (folder / "manifest.json").write_text("new")
    assert (out / "manifest.json").read_text() == "new"
    assert names(tmp_path) == {"artifact", "artifact/manifest.json"}


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No space left"), staged(tmp_path / "artifact"):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == set()


def test_what_is_not_an_artifact_is_never_replaced(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    check_free(run, overwrite=False)
    (run / "run.json").write_text("{}")
    with pytest.raises(UserError, match="not empty"):
        check_free(run, overwrite=False)
    with pytest.raises(UserError, match="is no artifact"):
        check_free(run, overwrite=True)
    (run / "manifest.json").write_text("{}")
    check_free(run, overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        check_free(run / "run.json", overwrite=True)
