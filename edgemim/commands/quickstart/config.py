"""What the quick start does and with which settings, and everything that its report shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic

from edgemim.config import Config
from edgemim.data.photos import PhotoCrops, PhotoCropsConfig
from edgemim.methods import FeatureDistillConfig, MaeConfig, MethodConfig
from edgemim.models.sizes import EncoderConfig, VitConfig
from edgemim.run import RUNS
from edgemim.teachers import EfficientNetLiteTeacher, TeacherConfig

ARMS = {
    "both": "MIM + distillation",
    "mim": "MIM alone",
    "distill": "distillation alone",
    "scratch": "from scratch",
}
PRETRAINED = tuple(arm for arm in ARMS if arm != "scratch")
# The arm that is exported, chosen beforehand: choosing by test accuracy would need another test set.
SHOWN_ARM = "both"


class QuickstartConfig(Config):
    """Pre-train, fine-tune, export, quantize and benchmark a micro ViT on photos that come with scikit-image.

    Takes minutes on two CPU cores and ends in OUT/report.html. Started again with the same settings, it goes on
    where it stopped.
    """

    out: Path = RUNS / "quickstart"
    """Folder for everything."""
    overwrite: bool = False
    """Lose what --out holds."""
    seeds: tuple[int, ...] = pydantic.Field((0, 1), min_length=1)
    """Each arm is trained once for each seed; the first also chooses the learning rates."""
    photos: PhotoCropsConfig = PhotoCropsConfig()
    """The image set."""
    encoder: EncoderConfig = VitConfig(width=96, depth=4, heads=3, patch_size=8, image_size=64)
    """The network (vit_micro)."""
    teacher: TeacherConfig = EfficientNetLiteTeacher()
    """The frozen model that is distilled."""
    both: MethodConfig = FeatureDistillConfig()
    """What the arm 'MIM + distillation' optimises."""
    mim: MethodConfig = MaeConfig(mask_ratio=0.5)
    """What the arm 'MIM alone' optimises."""
    distill: MethodConfig = FeatureDistillConfig(mask_ratio=0.0, pixel_weight=0.0)
    """What the arm 'distillation alone' optimises."""
    pretrain_epochs: float = pydantic.Field(4.0, gt=0)
    """Passes over the unlabelled crops."""
    pretrain_lr: float = pydantic.Field(1e-3, gt=0)
    """Peak learning rate of pre-training."""
    finetune_epochs: float = pydantic.Field(9.0, gt=0)
    """Passes over the labelled crops."""
    finetune_lrs: tuple[float, ...] = pydantic.Field((5e-4, 1e-3, 2e-3), min_length=1)
    """Peak learning rates of fine-tuning; each arm takes the one that is best on held-out training crops."""
    choose_share: float = pydantic.Field(0.3, gt=0, lt=1)
    """Share of the labelled crops that is held out while a learning rate is chosen."""
    batch_size: int = pydantic.Field(16, ge=1)
    """Images of a step. Small on purpose: at this length the number of steps counts, not that of images."""
    benchmark_seconds: float = pydantic.Field(1.0, gt=0)
    """Least time for each case of the benchmark."""
    processes: int | None = pydantic.Field(None, ge=1)
    """Trainings at a time, one CPU thread each; default the number of cores, at most 8. Results do not depend on it."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> QuickstartConfig:
        if self.encoder.image_size != self.photos.crop_px:
            raise ValueError(
                f"'photos.crop_px' {self.photos.crop_px} is not the encoder's {self.encoder.image_size} px"
            )
        return self


@dataclass
class Outcome:
    """Everything that the report shows.

    Attributes:
        pretrained: results of the pre-training runs by (arm, seed).
        knn: k-NN accuracy of the pre-trained features by (arm, seed), in percent.
        choice: by arm, held-out accuracy in percent of each learning rate tried.
        chosen: by arm, the learning rate taken.
        finetuned: results of the final runs by (arm, seed).
        int8: results of `edgemim quantize`, refused files included.
        refusal: its sentence, if it refused one.
    """

    config: QuickstartConfig
    crops: PhotoCrops
    started: float
    teacher: str = ""
    teacher_knn: float = 0.0
    pretrained: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    knn: dict[tuple[str, int], float] = field(default_factory=dict)
    choice: dict[str, dict[float, float]] = field(default_factory=dict)
    chosen: dict[str, float] = field(default_factory=dict)
    finetuned: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    evaluated: dict[str, Any] = field(default_factory=dict)
    artifact: Path = Path()
    int8: dict[str, Any] = field(default_factory=dict)
    refusal: str = ""
    latency: dict[str, Any] = field(default_factory=dict)

    @property
    def shown_run(self) -> Path:
        """The fine-tuning run that is exported."""
        return self.config.out / "finetune" / f"{SHOWN_ARM}-{self.config.seeds[0]}"

    def minutes(self, arm: str, seed: int) -> float:
        """Time of one pre-training run, also where it was stopped and resumed: images drawn over images a second."""
        results = self.pretrained[arm, seed]
        return results["images"]["drawn"] / results["images_per_s"] / 60

    def accuracies(self, arm: str) -> list[float]:
        """Test accuracy of an arm in percent, a figure a seed."""
        return [self.finetuned[arm, seed]["top1"] for seed in self.config.seeds]
