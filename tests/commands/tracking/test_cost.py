"""The bill of a tracker: parameters of backbone and head apart, and arithmetic by hand."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from edgemim.analysis.cost import count_cost  # noqa: E402
from edgemim.commands.cost import CostConfig, compose, input_shape, open_recipe  # noqa: E402
from edgemim.commands.finetune import FinetuneConfig  # noqa: E402
from edgemim.commands.tracking.cost import random_tracker  # noqa: E402
from edgemim.errors import UserError  # noqa: E402
from edgemim.tasks.tracking import TrackingConfig  # noqa: E402


def recipe_of(**tracker: object) -> FinetuneConfig:
    return FinetuneConfig.model_validate({"task": {"name": "tracking", "tracker": tracker}, "init": "scratch"})


def test_the_published_tracker() -> None:
    """2.85 billion multiply-adds without elimination, 2.20 with it: counted by others on their own model."""
    for elimination, giga in ((False, 2.85), (True, 2.20)):
        recipe = recipe_of(elimination=elimination)
        counted = count_cost(lambda recipe=recipe: compose(recipe, 1000), input_shape(recipe))
        assert counted.parts["encoder"].parameters == 5_547_840
        assert counted.parts["decoders and heads"].parameters == 2_492_805
        assert counted.forward_gflop / 2 == pytest.approx(giga, rel=0.02)


def test_a_tracker_of_a_recipe() -> None:
    recipe = recipe_of(search_size=192, template_size=96, head_width=64, attention="cached")
    assert isinstance(recipe.task, TrackingConfig)
    task = random_tracker(recipe, recipe.task)
    assert task.model.size.attention == "cached" and input_shape(recipe) == (3, 192, 192)


def test_pairs_are_not_measured(tmp_path) -> None:
    (tmp_path / "recipe.yaml").write_text("task: tracking\nlayer_decay: 0.85\n")
    with pytest.raises(UserError, match="a tracker needs pairs"):
        open_recipe(CostConfig(recipe=tmp_path / "recipe.yaml", measure=True))
