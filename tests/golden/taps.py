"""What modules return inside a model, caught on its way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def module_output(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what a module returns while the context is open."""
    found: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: found.append(output))
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def block_outputs(blocks: nn.Module) -> Iterator[dict[int, Tensor]]:
    """Collect the newest output of each block by its number; 1 is the first."""
    found: dict[int, Tensor] = {}

    def keep(number: int):
        return lambda _module, _inputs, output: found.__setitem__(number, output)

    handles = [block.register_forward_hook(keep(number)) for number, block in enumerate(blocks.children(), start=1)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
