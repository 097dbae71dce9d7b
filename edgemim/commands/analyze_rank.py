"""`edgemim analyze effective-rank`: how many directions an image's tokens take after every block."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from edgemim.analysis.block_rank import measure_layers, plot_layers
from edgemim.analysis.subject import Subject
from edgemim.analysis.token_diversity import Diversity
from edgemim.commands.analyze import open_analysis
from edgemim.commands.subjects import MOST, Sample, SubjectsConfig, facts_of, open_subjects
from edgemim.edge.report import save_figure
from edgemim.errors import UserError
from edgemim.run import write_text
from edgemim.training.distributed import pick_device


class EffectiveRankConfig(SubjectsConfig):
    """Effective rank and token diversity after every block, as the features are and less the sample's mean token.

    Example: edgemim analyze effective-rank --subject runs/pretrain --subject efficientnet_lite0 --data photos/
    """


def effective_rank(config: EffectiveRankConfig) -> dict[str, Any]:
    """Measure networks; writes effective_rank.json, effective_rank.png and run.json, returns the results.

    Raises UserError on what names no network, and on bad data.
    """
    if not 1 <= len(config.subject) <= MOST:
        raise UserError(f"give --subject NAME, once for each network, up to {MOST}")
    device = pick_device(config.device)
    subjects = open_subjects(config.subject, config.seed, device)
    sample = Sample(config, subjects)
    with open_analysis("analyze effective-rank", config) as record:
        found = {subject.name: _measure(subject, sample, device) for subject in subjects}
        rows = {
            subject.name: {**facts_of(subject), "values": [layer.as_dict() for layer in found[subject.name]]}
            for subject in subjects
        }
        record.results.update(images=len(sample.folder), image_size=sample.image_size, subjects=rows)
        content = {"seed": config.seed, "data": str(config.data), **record.results}
        write_text(record.folder / "effective_rank.json", json.dumps(content, indent=1) + "\n")
        save_figure(plot_layers(found), record.folder / "effective_rank.png")
    for subject in subjects:
        print(f"{subject.name}: effective rank, raw and centred, {subject.what}")
        for name, layer in zip(subject.layers, found[subject.name], strict=True):
            raw, centred = layer.effective_rank["raw"], layer.effective_rank["centred"]
            print(f"  {name:>3}  {raw.mean:7.2f} ± {raw.sd:.2f}  {centred.mean:7.2f} ± {centred.sd:.2f}")
    print(f"every figure, and a picture: {record.folder}")
    print(f"next: edgemim analyze attention --subject {config.subject[0]} --data {config.data}")
    return record.results


def _measure(subject: Subject, sample: Sample, device: torch.device) -> list[Diversity]:
    def layers() -> Iterator[list[Tensor]]:
        for batch in sample.batches(device):
            yield [tokens.cpu() for tokens in subject.features(batch.images)]

    return measure_layers(layers)
