"""A user's tokenizer file: which word of a visual vocabulary stands at each place of the patch grid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from edgemim.errors import UserError

_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


class OnnxTokenizer:
    """A frozen tokenizer in ONNX Runtime; an ONNX file holds a graph of known operations, and no code of its own.

    What the file must be:
        input: one, of any name, float32 [b, 3, h, w], RGB in [0, 1]. Whatever else the tokenizer wants (DALL-E's is
            0.1 + 0.8 x) belongs into the file. b is free or 1; h and w are free, or a square's sides.
        output: the first one. Float [b, words, rows, columns]: a score for each word, of which the largest counts; or
            integers [b, rows, columns] in 0 ... vocabulary - 1. Rows and columns are those of the encoder's patches.

    It runs on a GPU where onnxruntime-gpu is installed, else on the CPU beside the training.

    Attributes:
        vocabulary: number of words.
        input_size: side in pixels of the square images that it reads.
        summary: what it is, for logs.
    """

    def __init__(
        self, path: Path, *, image_size: int, grid: tuple[int, int], vocabulary: int, input_size: int | None = None
    ) -> None:
        """Open a file and try it on one grey image.

        Args:
            path: ONNX file.
            image_size: side of the encoder's images, which the tokenizer's are resized from.
            grid: rows and columns of the encoder's patches.
            vocabulary: number of words of a file that gives integers.
            input_size: side of the tokenizer's images where the file leaves it open; default the encoder's.

        Raises:
            UserError: if it is missing, unreadable or something else, or its grid is not the encoder's.
        """
        self.path = path
        self._session = _open(path)
        batch, fixed = self._input()
        if fixed is not None and input_size not in (None, fixed):
            raise UserError(f"tokenizer {path} reads {fixed} px, not {input_size}; leave 'method.tokenizer_size' out")
        self._one_by_one = batch == 1
        self.input_size = fixed or input_size or image_size
        found = self._try()
        scores = found.dtype.kind == "f" and found.ndim == 4
        if not scores and not (found.dtype.kind in "iu" and found.ndim == 3):
            raise UserError(
                f"tokenizer {path} gives {found.dtype} of shape {list(found.shape)}; it must give scores "
                "[b, words, rows, columns] or integers [b, rows, columns]"
            )
        if found.shape[-2:] != grid:
            raise UserError(self._misfit(found.shape[-2:], grid, free=fixed is None))
        self.grid = grid
        self.vocabulary = int(found.shape[1]) if scores else vocabulary
        self.summary = f"{path}: {self.vocabulary} words on {_cells(grid)} places of {self.input_size} px images"

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b n"]:
        """The words of images in [0, 1], row by row of the grid. Raises UserError on one outside the vocabulary."""
        return _eagerly(self.read, images)  # pyright: ignore[reportCallIssue] (the decorator hides the arguments)

    @torch.no_grad()
    def read(self, images: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b n"]:
        """The same where nothing is compiled."""
        size = (self.input_size, self.input_size)
        x = images.float()
        if x.shape[-2:] != size:
            x = F.interpolate(x, size=size, mode="bicubic", antialias=True, align_corners=False)
        pixels = x.clamp(0, 1).cpu().numpy()
        parts = [pixels[i : i + 1] for i in range(len(pixels))] if self._one_by_one else [pixels]
        words = np.concatenate([_words(self._run(part)) for part in parts]).reshape(len(images), -1)
        if words.min() < 0 or words.max() >= self.vocabulary:
            raise UserError(
                f"tokenizer {self.path} gives word {words.max() if words.min() >= 0 else words.min()}, outside a "
                f"vocabulary of {self.vocabulary}; set 'method.vocabulary'"
            )
        return torch.from_numpy(words.astype(np.int64)).to(images.device)

    def _input(self) -> tuple[object, int | None]:
        """Batch dimension as written, and the side in pixels if it is fixed. Raises UserError on another input."""
        inputs = self._session.get_inputs()
        shape = inputs[0].shape if len(inputs) == 1 else []
        if len(shape) != 4 or inputs[0].type != "tensor(float)" or shape[1] not in (3, None):
            seen = ", ".join(f"{node.name} {node.type} {node.shape}" for node in inputs)
            raise UserError(f"tokenizer {self.path} has the input {seen}; it must have one, float32 [b, 3, h, w]")
        batch, _, *sides = shape
        if isinstance(batch, int) and batch != 1:
            raise UserError(f"tokenizer {self.path} reads {batch} images at a time; export it with a free batch, or 1")
        fixed = {side for side in sides if isinstance(side, int)}
        if len(fixed) > 1:
            raise UserError(f"tokenizer {self.path} reads images of {_cells(tuple(sides))} px; it must read squares")
        return batch, fixed.pop() if fixed else None

    def _try(self) -> np.ndarray:
        try:
            return self._run(np.full((1, 3, self.input_size, self.input_size), 0.5, np.float32))
        except Exception as error:  # ONNX Runtime's errors share no base class
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"tokenizer {self.path} cannot read {self.input_size} px images: {reason}") from error

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        name = self._session.get_inputs()[0].name
        return np.asarray(self._session.run(None, {name: pixels})[0])

    def _misfit(self, found: tuple[int, ...], grid: tuple[int, int], *, free: bool) -> str:
        side, rest = divmod(self.input_size * grid[0], found[0])
        remedy = "choose another tokenizer or encoder size"
        if free and not rest and (found[0] * grid[1] == found[1] * grid[0]):
            remedy = f"set 'method.tokenizer_size' to {side}"
        return (
            f"tokenizer {self.path} gives {_cells(found)} words on {self.input_size} px images, the encoder has "
            f"{_cells(grid)} patches; {remedy}"
        )


@torch.compiler.disable
def _eagerly(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """A compiled model calls it as it is: there is nothing to compile in NumPy and ONNX Runtime."""
    return function(images)


def _open(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"no tokenizer file at {path}; give --method.tokenizer an ONNX file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    usable = [name for name in _PROVIDERS if name in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=usable)
    except Exception as error:  # ONNX Runtime's errors share no base class
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"tokenizer {path} is refused by ONNX Runtime: {reason}") from error


def _words(output: np.ndarray) -> np.ndarray:
    return output.argmax(1) if output.ndim == 4 else output


def _cells(grid: tuple[Any, ...]) -> str:
    return "×".join(map(str, grid))
