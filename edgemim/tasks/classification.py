"""Image classification: mean-pooled patch tokens, a new LayerNorm and a linear layer.

The fine-tuning form of MAE (arXiv 2111.06377, appendix A) and of the lightweight study (arXiv 2205.14443). Loss: cross
entropy against labels that mixup or CutMix may have blended.
"""

from __future__ import annotations

from typing import Any, Literal

import pydantic
import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.data.mixup import Mixup
from torch import Tensor, nn

from edgemim.config import Config
from edgemim.data.transforms import seeded_globals
from edgemim.edge.images import Preprocessing
from edgemim.edge.runtime import Session
from edgemim.models.build import parse_encoder
from edgemim.models.weights import bare_vit
from edgemim.tasks.comparison import Comparison, compare_classes
from edgemim.tasks.distillation import Distillation
from edgemim.tasks.task import LabelledData, Task
from edgemim.training.objective import StepOutput


class ClassificationConfig(Config):
    """What is learnt: the class of an image. Its settings stand beside `task`."""

    name: Literal["classification"] = "classification"
    """The task."""


class MixingConfig(Config):
    """How images and labels of a batch are blended (timm's Mixup)."""

    mixup: float = pydantic.Field(default=0.2, ge=0)
    """Alpha of mixup; 0 is off. The improved lightweight recipe has 0.2."""
    cutmix: float = pydantic.Field(default=0.0, ge=0)
    """Alpha of CutMix; 0 is off."""
    smoothing: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Label smoothing."""


class ClassificationTask(Task):
    """A timm model that names the class of an image."""

    task_name = "classification"

    def __init__(
        self,
        model: nn.Module,
        labels: tuple[str, ...],
        preprocessing: Preprocessing,
        data: LabelledData | None,
        *,
        architecture: dict[str, Any],
        mixing: MixingConfig | None = None,
        distillation: Distillation | None = None,
    ) -> None:
        super().__init__(model, labels, preprocessing, data)
        self.architecture = architecture
        self.mixing = mixing or MixingConfig(mixup=0.0)
        self.distillation = distillation

    def facts(self) -> dict[str, Any]:
        """Kind, architecture, labels and preprocessing."""
        return {
            "kind": self.task_name,
            "architecture": self.architecture,
            "labels": list(self.labels),
            "preprocessing": self.preprocessing.model_dump(mode="json"),
        }

    def forward(self, images: Tensor, keys: Tensor, labels: Tensor) -> StepOutput:
        """Cross entropy of uint8 images [b, 3, s, s] with int64 labels [b]."""
        x = self.normalization.apply(images)
        x, mixed = self._mix(x, labels)
        answer = self.model(x)
        # A network with two heads gives both answers while it is trained.
        logits, told = (part.float() for part in (answer if isinstance(answer, tuple) else (answer, answer)))
        # timm's mixup smooths the labels that it blends.
        loss = F.cross_entropy(logits, mixed, label_smoothing=self.mixing.smoothing if mixed is labels else 0.0)
        metrics = {"train_top1": (logits.argmax(1) == labels).float().mean()}
        if self.distillation is not None:
            # Mixed images are the same mixture in any normalisation.
            answers = self.distillation.teacher(self.normalization.undo(x))
            distilled, share = self.distillation.loss(told, answers), self.distillation.config.weight
            loss = (1 - share) * loss + share * distilled
            agreement = (told.argmax(1) == answers.argmax(1)).float().mean()
            metrics |= {"distillation_loss": distilled, "teacher_agreement": agreement}
        return StepOutput(loss, metrics)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Float[Tensor, "b classes"]:
        """Logits of uint8 images [b, 3, s, s]."""
        return self.model(self.normalization.apply(images)).float()

    def compare(self, fp32: Session, int8: Session, limit: int) -> Comparison:
        """Top-1, over all classes. Raises UserError without images."""
        return compare_classes(self.answers_of(fp32), self.answers_of(int8), self.evaluation_batches(limit))

    @property
    def _mixes(self) -> bool:
        return self.mixing.mixup > 0 or self.mixing.cutmix > 0

    def _mix(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not (self.training and self._mixes):
            return x, labels
        mixup = Mixup(
            mixup_alpha=self.mixing.mixup,
            cutmix_alpha=self.mixing.cutmix,
            label_smoothing=self.mixing.smoothing,
            num_classes=len(self.labels),
        )
        count = len(x)
        if count % 2:  # timm pairs the first with the last and wants an even number: the last image stands twice
            x, labels = torch.cat([x, x[-1:]]), torch.cat([labels, labels[-1:]])
        # The loop seeds torch by (seed, step, rank, part): a number known on the host, so nothing waits for the device.
        with seeded_globals(torch.initial_seed()):
            mixed, soft = mixup(x, labels)
        return mixed[:count], soft[:count]


def build_model(architecture: dict[str, Any], num_classes: int, *, drop_path: float = 0.0) -> nn.Module:
    """The network that an architecture record names: `{"timm": NAME}` or `{"vit": {...}}`, the latter with "pool":
    "token" where the class token is classified, else the mean of the patch tokens is, and with "distilled": true where
    the class token has a head of its own for a teacher's answers."""
    if "timm" in architecture:
        return timm.create_model(architecture["timm"], num_classes=num_classes, drop_path_rate=drop_path or None)
    config, pool = parse_encoder(architecture["vit"]), architecture.get("pool", "avg")
    two_heads = architecture.get("distilled", False)
    return bare_vit(config, num_classes=num_classes, global_pool=pool, drop_path=drop_path, distilled=two_heads)
