"""`edgemim analyze cka`: how alike the layers of two networks are on the same images."""

from __future__ import annotations

import json
import math
from typing import Any

from edgemim.analysis.cka import LEAST_IMAGES, MinibatchCka, plot_cka
from edgemim.commands.analyze import open_analysis
from edgemim.commands.subjects import Sample, SubjectsConfig, facts_of, open_subjects
from edgemim.edge.report import save_figure
from edgemim.errors import UserError
from edgemim.run import write_text
from edgemim.training.distributed import pick_device


class CkaConfig(SubjectsConfig):
    """Linear CKA between the layers of two networks (or of one with itself), in batches as the lightweight study has it.

    Example: edgemim analyze cka --subject runs/pretrain --subject random:runs/pretrain --data photos/
    """


def cka(config: CkaConfig) -> dict[str, Any]:
    """Compare two networks; writes cka.json, cka.png and run.json, returns the results.

    Raises UserError on subjects that are not one or two networks, and on bad data.
    """
    if len(config.subject) not in (1, 2):
        raise UserError("give --subject twice, the two networks to compare (or once, for a network with itself)")
    if config.batch_size < LEAST_IMAGES:
        raise UserError(f"batch_size is {config.batch_size}; CKA needs at least {LEAST_IMAGES} images in a batch")
    device = pick_device(config.device)
    subjects = open_subjects(config.subject, config.seed, device)
    first, second = subjects[0], subjects[-1]
    sample = Sample(config, subjects)
    if len(sample.folder) < LEAST_IMAGES:
        raise UserError(f"{config.data} holds {len(sample.folder)} images; CKA needs at least {LEAST_IMAGES}")
    with open_analysis("analyze cka", config) as record:
        measure, seen = MinibatchCka(), 0
        for batch in sample.batches(device):
            # A rest of fewer says nothing.
            if len(batch.images) >= LEAST_IMAGES:
                known = first.features(batch.images)
                measure.update(known, known if second is first else second.features(batch.images))
                seen += len(batch.images)
        if not seen:
            raise UserError(f"no batch of {LEAST_IMAGES} images could be read; run `edgemim data check {config.data}`")
        values = measure.compute().cpu().numpy()
        rows = [[round(float(value), 6) if math.isfinite(value) else None for value in row] for row in values]
        record.results.update(
            images=seen,
            batches=measure.batches,
            image_size=sample.image_size,
            subjects={subject.name: facts_of(subject) for subject in subjects},
            last_layers=rows[-1][-1],
            cka=rows,
        )
        content = {"seed": config.seed, "data": str(config.data), **record.results}
        write_text(record.folder / "cka.json", json.dumps(content, indent=1) + "\n")
        names = tuple(f"{subject.name}, {subject.what}" for subject in (first, second))
        save_figure(plot_cka(values, (names[0], names[1]), (first.layers, second.layers)), record.folder / "cka.png")
    print(f"linear CKA of {first.name} and {second.name} on {seen} images in {measure.batches} batches")
    for layer, row in zip(first.layers, rows, strict=True):
        known = [(value, other) for value, other in zip(row, second.layers, strict=True) if value is not None]
        if known:
            value, other = max(known)
            print(f"  layer {layer} of {first.name} is most like layer {other} of {second.name}: {value:.3f}")
    print(f"every figure, and a picture: {record.folder}")
    print(f"next: edgemim analyze attention --subject {config.subject[0]} --data {config.data}")
    return record.results
