"""The same trained run as the tests of the bridge have."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_run import small_run


@pytest.fixture(scope="session")
def small_finetune_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small fine-tuned run on real photo crops, with its data still there."""
    pytest.importorskip("torch")
    return small_run(tmp_path_factory.getbasetemp() / "small_run")
