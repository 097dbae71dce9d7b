"""Weighted k-nearest-neighbour accuracy of frozen features."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from edgemim.data.loader import Batch


@torch.no_grad()
def extract_features(
    encode: Callable[[Tensor], Tensor], batches: Iterable[Batch], device: torch.device
) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """Features and labels of all images of a loader, on the CPU; `encode` takes uint8 [b, 3, s, s] on `device`."""
    features, labels = [], []
    for batch in batches:
        features.append(encode(batch.images.to(device)).float().cpu())
        labels.append(batch.labels)
    return torch.cat(features), torch.cat(labels)


def knn_accuracy(
    train: Float[Tensor, "n d"],
    train_labels: Int[Tensor, " n"],
    test: Float[Tensor, "m d"],
    test_labels: Int[Tensor, " m"],
    *,
    k: int = 20,
    temperature: float = 0.07,
    center: bool = True,
) -> float:
    """Top-1 accuracy in percent: votes of the k most similar training features, weight exp(cosine / temperature).

    The protocol of instance discrimination (arXiv 1805.01978, section 3.4) and DINO. `center` subtracts the training
    mean first: the features of a masked autoencoder share one large component that hides what differs.

    Raises:
        ValueError: if a feature is not finite.
    """
    if not (torch.isfinite(train).all() and torch.isfinite(test).all()):
        raise ValueError("features are not finite; the model diverged, or its weights are damaged")
    if center:
        mean = train.mean(0, keepdim=True)
        train, test = train - mean, test - mean
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    classes = int(torch.cat([train_labels, test_labels]).max()) + 1
    correct = 0
    for part, wanted in zip(test.split(1024), test_labels.split(1024), strict=True):
        similarity, nearest = (part @ train.T).topk(min(k, len(train)), dim=1)
        votes = torch.zeros(len(part), classes)
        votes.scatter_add_(1, train_labels[nearest], (similarity / temperature).exp())
        correct += int((votes.argmax(1) == wanted).sum())
    return 100 * correct / len(test)
