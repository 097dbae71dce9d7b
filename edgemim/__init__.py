"""edgemim: pre-train, fine-tune, export, quantize and benchmark lightweight vision transformers.

Each verb of the command line is a function here, imported when first used, so that `import edgemim` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "pretrain": "edgemim.commands.pretrain",
    "PretrainConfig": "edgemim.commands.pretrain",
    "finetune": "edgemim.commands.finetune",
    "FinetuneConfig": "edgemim.commands.finetune",
    "evaluate": "edgemim.commands.evaluate",
    "EvaluateConfig": "edgemim.commands.evaluate",
    "probe": "edgemim.commands.probe",
    "ProbeConfig": "edgemim.commands.probe",
    "token_diversity": "edgemim.commands.analyze",
    "TokenDiversityConfig": "edgemim.commands.analyze",
    "cka": "edgemim.commands.analyze_cka",
    "CkaConfig": "edgemim.commands.analyze_cka",
    "attention": "edgemim.commands.analyze_attention",
    "AttentionConfig": "edgemim.commands.analyze_attention",
    "effective_rank": "edgemim.commands.analyze_rank",
    "EffectiveRankConfig": "edgemim.commands.analyze_rank",
    "convert": "edgemim.commands.convert",
    "ConvertConfig": "edgemim.commands.convert",
    "cost": "edgemim.commands.cost",
    "CostConfig": "edgemim.commands.cost",
    # Not "export": importing the sub-package edgemim.export would put the module in the function's place.
    "export_model": "edgemim.commands.export",
    "ExportConfig": "edgemim.commands.export",
    "quantize": "edgemim.commands.quantize",
    "QuantizeConfig": "edgemim.commands.quantize",
    "benchmark": "edgemim.commands.benchmark",
    "BenchmarkConfig": "edgemim.commands.benchmark",
    "predict": "edgemim.commands.predict",
    "PredictConfig": "edgemim.commands.predict",
    "track": "edgemim.commands.track",
    "TrackConfig": "edgemim.commands.track",
    "data_check": "edgemim.commands.data",
    "DataCheckConfig": "edgemim.commands.data",
    "data_shard": "edgemim.commands.data_shard",
    "DataShardConfig": "edgemim.commands.data_shard",
    "doctor": "edgemim.commands.doctor",
    "DoctorConfig": "edgemim.commands.doctor",
    "quickstart": "edgemim.commands.quickstart",
    "QuickstartConfig": "edgemim.commands.quickstart",
    "load_encoder": "edgemim.models.weights",
    "to_timm": "edgemim.models.weights",
    "from_timm": "edgemim.models.weights",
    "Artifact": "edgemim.edge.artifact",
    "Tracker": "edgemim.edge.tracking.tracker",
    "open_session": "edgemim.edge.runtime",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edgemim' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
