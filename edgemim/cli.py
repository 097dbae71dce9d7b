"""The command line: a table from verb to module, imported only when asked for."""

from __future__ import annotations

import importlib
import importlib.metadata
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NamedTuple

from edgemim.errors import EdgemimError, MissingLibrary, UserError


class Verb(NamedTuple):
    """Where a verb lives: a module with a config class and a function that takes it."""

    module: str
    config: str
    function: str
    summary: str


VERBS = {
    "pretrain": Verb("pretrain", "PretrainConfig", "pretrain", "pre-train an encoder on unlabelled images"),
    "finetune": Verb("finetune", "FinetuneConfig", "finetune", "fine-tune a pre-trained encoder on labelled images"),
    "evaluate": Verb("evaluate", "EvaluateConfig", "evaluate", "accuracy, or mIoU, and confusion of a fine-tuned run"),
    "probe": Verb("probe", "ProbeConfig", "probe", "k-NN or linear accuracy of frozen features"),
    "analyze token-diversity": Verb(
        "analyze", "TokenDiversityConfig", "token_diversity", "how diverse the tokens of teachers are (Img2Vec)"
    ),
    "analyze cka": Verb("analyze_cka", "CkaConfig", "cka", "how alike the layers of two networks are"),
    "analyze attention": Verb(
        "analyze_attention", "AttentionConfig", "attention", "how far, broadly and selectively heads look"
    ),
    "analyze effective-rank": Verb(
        "analyze_rank", "EffectiveRankConfig", "effective_rank", "how many directions tokens take, block by block"
    ),
    "cost": Verb("cost", "CostConfig", "cost", "arithmetic, memory and hours of a recipe, before it is run"),
    "export": Verb("export", "ExportConfig", "export_model", "make a checked ONNX artifact of a run"),
    "quantize": Verb("quantize", "QuantizeConfig", "quantize", "add a checked INT8 model to an artifact"),
    "convert": Verb("convert", "ConvertConfig", "convert", "make a run of a published checkpoint"),
    "benchmark": Verb("benchmark", "BenchmarkConfig", "benchmark", "latency of artifacts on this machine's runtimes"),
    "track": Verb("track", "TrackConfig", "track", "follow an object in a video or a camera; run or score a dataset"),
    "predict": Verb("predict", "PredictConfig", "predict", "name the classes of images, or of their pixels"),
    "data check": Verb("data", "DataCheckConfig", "data_check", "count and check images in any form; changes nothing"),
    "data shard": Verb("data_shard", "DataShardConfig", "data_shard", "write images as tar shards"),
    "doctor": Verb("doctor", "DoctorConfig", "doctor", "say what this machine can run"),
    "quickstart": Verb("quickstart", "QuickstartConfig", "quickstart", "the whole chain on real images in minutes"),
}
_TRAIN_EXTRA = {"torch", "torchvision", "timm", "safetensors", "torchmetrics", "onnx", "onnxscript", "tensorboard"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return its exit code (the table stands in `edgemim.errors`)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] == "--version":
        print(importlib.metadata.version("edgemim"))
        return 0
    try:
        name, rest = split_verb(words)
        return run_verb(name, rest)
    except EdgemimError as error:
        print(f"edgemim: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("edgemim: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except Exception:
        traceback.print_exc()
        print("edgemim: this is a fault of edgemim, not of your input; please report it", file=sys.stderr)
        return 1


def run_verb(name: str, argv: Sequence[str]) -> int:
    """Import the verb's module, build its config from `argv`, call it. A missing library becomes exit code 4."""
    from edgemim.config import parse

    verb = VERBS[name]
    try:
        module = importlib.import_module(f"edgemim.commands.{verb.module}")
        config = parse(getattr(module, verb.config), argv, prog=f"edgemim {name}")
        getattr(module, verb.function)(config)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _TRAIN_EXTRA:
            raise
        raise MissingLibrary(
            f"`edgemim {name}` needs {package}, which is not installed: pip install 'edgemim[train]'"
        ) from error
    return 0


def split_verb(words: Sequence[str]) -> tuple[str, list[str]]:
    """Split the verb (one word or two) from its arguments. Raises UserError with the closest verb on a typo."""
    from edgemim.config import suggest

    for length in (2, 1):
        name = " ".join(words[:length])
        if name in VERBS:
            return name, list(words[length:])
    near = suggest(" ".join(words[:2]), VERBS) or suggest(words[0], VERBS)
    family = [name for name in VERBS if name.partition(" ")[0] == words[0]]
    if family:
        near = suggest(" ".join(words[:2]), family) or f" (did you mean '{family[0]}'?)"
    raise UserError(f"unknown verb '{words[0]}'{near}; `edgemim --help` lists the verbs")


def usage() -> str:
    """The list of verbs, as `edgemim --help` prints it."""
    width = max(map(len, VERBS))
    lines = ["usage: edgemim VERB [OPTIONS]    (`edgemim VERB --help` explains one)", ""]
    lines += [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(lines)
