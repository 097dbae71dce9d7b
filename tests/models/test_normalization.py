"""Normalisation against numpy, and back."""

from __future__ import annotations

import numpy as np
import torch
from tiny_training import NORMALIZATION, pixels

from edgemim.edge.images import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from edgemim.models.normalization import Normalization


def test_apply_equals_the_edge_wing() -> None:
    """Both wings must feed a model the same numbers."""
    images = pixels(3, 16)
    edge = Preprocessing(image_size=16, crop_pct=1.0)
    ours = Normalization(IMAGENET_MEAN, IMAGENET_STD).apply(images)
    for image, normalised in zip(images, ours, strict=True):
        expected = edge(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
        torch.testing.assert_close(normalised, torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_undo_returns_pixels() -> None:
    images = pixels(2, 8)
    back = NORMALIZATION.undo(NORMALIZATION.apply(images)) * 255
    assert torch.equal(back.round().to(torch.uint8), images)


def test_channels_keep_their_own_statistics() -> None:
    images = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    normalised = Normalization((1.0, 0.5, 0.0), (0.5, 0.25, 0.1)).apply(images)
    torch.testing.assert_close(normalised[0, :, 0, 0], torch.tensor([0.0, 2.0, 10.0]))
