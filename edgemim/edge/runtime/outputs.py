"""What a model gave, checked before anybody computes with it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgemim.errors import ModelRefused


def output_of(outputs: Mapping[str, np.ndarray], name: str, *, ndim: int) -> np.ndarray:
    """One output of a session by its name in the manifest.

    Raises ModelRefused if there is none of that name, if it has not `ndim` dimensions, or holds a value that is not finite.
    """
    if name not in outputs:
        raise ModelRefused(
            f"the manifest says that the model gives '{name}', it gives {', '.join(outputs)}; export it again"
        )
    found = outputs[name]
    if found.ndim != ndim:
        raise ModelRefused(
            f"output '{name}' of the model has shape {found.shape}, not {ndim} dimensions; export it again"
        )
    if not np.isfinite(found).all():
        raise ModelRefused(
            f"output '{name}' of the model holds values that are not finite: its weights or the manifest's mean and std are "
            "damaged; export it again"
        )
    return found
