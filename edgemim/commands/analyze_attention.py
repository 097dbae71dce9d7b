"""`edgemim analyze attention`: how far, how broadly and how selectively the heads of vision transformers look."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from edgemim.analysis.attention import KINDS, PUBLISHED_PATCH_PX, AttentionStatistics, patch_distances, plot_attention
from edgemim.analysis.subject import Subject
from edgemim.commands.analyze import open_analysis
from edgemim.commands.subjects import MOST, Sample, SubjectsConfig, facts_of, open_subjects
from edgemim.edge.report import save_figure
from edgemim.errors import UserError
from edgemim.run import write_text
from edgemim.training.distributed import pick_device


class AttentionConfig(SubjectsConfig):
    """Attention distance, attention entropy and normalised mutual information of query and key, by block and head.

    Example: edgemim analyze attention --subject runs/pretrain --subject deit_tiny_patch16_224 --data photos/
    """

    published: bool = False
    """As the lightweight study's figures: grid distances times 14 whatever the patch, batches that count alike."""


def attention(config: AttentionConfig) -> dict[str, Any]:
    """Measure networks; writes attention.json, attention.png and run.json, returns the results.

    Raises UserError on a subject that is no vision transformer, and on bad data.
    """
    if not 1 <= len(config.subject) <= MOST:
        raise UserError(f"give --subject NAME, once for each network, up to {MOST}")
    device = pick_device(config.device)
    subjects = open_subjects(config.subject, config.seed, device)
    collected: list[dict[int, AttentionStatistics]] = [{} for _ in subjects]
    # Known before anything is read: whether each has attention over patches at all.
    distances = [_distances(subject, config.published).to(device) for subject in subjects]
    sample = Sample(config, subjects)
    with open_analysis("analyze attention", config) as record:
        for batch in sample.batches(device):
            for subject, apart, found in zip(subjects, distances, collected, strict=True):
                for block, logits in subject.attention(batch.images).items():
                    found.setdefault(block, AttentionStatistics(apart, subject.prefix)).update(logits)
        blocks = {
            subject.name: {block: figures.as_dict(equal_batches=config.published) for block, figures in found.items()}
            for subject, found in zip(subjects, collected, strict=True)
        }
        record.results.update(
            images=len(sample.folder),
            image_size=sample.image_size,
            published=config.published,
            subjects={s.name: {**facts_of(s), "patch_px": s.patch_px, "grid": list(s.grid)} for s in subjects},
            blocks=blocks,
        )
        content = {"seed": config.seed, "data": str(config.data), **record.results}
        write_text(record.folder / "attention.json", json.dumps(content, indent=1) + "\n")
        save_figure(plot_attention(blocks), record.folder / "attention.png")
    _show(blocks)
    print(f"every figure, and a picture: {record.folder}")
    print(
        f"next: edgemim analyze cka --subject {config.subject[0]} --subject {config.subject[-1]} --data {config.data}"
    )
    return record.results


def _distances(subject: Subject, published: bool) -> torch.Tensor:
    return patch_distances(subject.grid, PUBLISHED_PATCH_PX if published else subject.patch_px)


def _show(found: dict[str, dict[int, dict[str, Any]]]) -> None:
    table = Table("subject", "block", *(kind.title for kind in KINDS), box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, blocks in found.items():
        for block, figures in blocks.items():
            means = (figures[kind.name] for kind in KINDS)
            cells = (f"{each['mean']:.3g} ({min(each['heads']):.3g} to {max(each['heads']):.3g})" for each in means)
            table.add_row(name, str(block), *cells)
    print("mean of all heads (least to largest of a head)")
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)
