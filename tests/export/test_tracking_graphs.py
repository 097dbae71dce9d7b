"""A tracker's graphs compute what the tracker computes: joint, with elimination, and cached in two parts."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from edgemim.errors import UserError  # noqa: E402
from edgemim.export.tracking_graphs import JointGraph, SearchGraph, TemplateGraph  # noqa: E402
from edgemim.models.one_stream import OneStreamTracker  # noqa: E402
from edgemim.models.sizes import VitConfig  # noqa: E402
from edgemim.models.tracker_sizes import TrackerForm  # noqa: E402

torch.set_num_threads(1)

FORM = TrackerForm(template_size=24, search_size=40, head_width=16)


def built(depth: int = 5, heads: int = 3, **settings: object) -> OneStreamTracker:
    torch.manual_seed(0)
    encoder = VitConfig(width=24, depth=depth, heads=heads, patch_size=8, image_size=32)
    model = OneStreamTracker(FORM.model_copy(update=settings).on(encoder))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def crops(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 3, 24, 24, generator=generator), torch.randn(1, 3, 40, 40, generator=generator)


@torch.no_grad()
def same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> bool:
    return all(torch.allclose(a, b, atol=2e-6) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("heads", [2, 3])  # channels a head that are no power of two, and that are
@torch.no_grad()
def test_the_dense_graph(heads: int) -> None:
    model = built(heads=heads)
    assert same(JointGraph(model)(*crops()), model(*crops(), keep_rate=1.0))


@pytest.mark.parametrize("blocks", [(), (1, 3), (5,), (2, 4, 5)])
@torch.no_grad()
def test_elimination_in_the_graph_also_in_the_last_block(blocks: tuple[int, ...]) -> None:
    model = built(elimination_blocks=blocks, keep=(0.6,))
    graph = JointGraph(model, elimination=True)
    for seed in range(3):
        assert same(graph(*crops(seed)), model(*crops(seed)))
    assert not same(graph(*crops()), model(*crops(), keep_rate=1.0))


@pytest.mark.parametrize("rows", ["rectangle", "all"])
@torch.no_grad()
def test_other_tokens_may_rank(rows: str) -> None:
    model = built(ranked_by=rows, keep=(0.5,))
    assert same(JointGraph(model, elimination=True)(*crops()), model(*crops()))


def test_what_a_graph_cannot_be() -> None:
    with pytest.raises(UserError, match="drops no search tokens"):
        JointGraph(built(elimination=False), elimination=True)
    with pytest.raises(UserError, match="cannot be in a graph"):
        JointGraph(built(ranked_by="box"), elimination=True)
    with pytest.raises(ValueError, match="two graphs"):
        JointGraph(built(attention="cached"))


@torch.no_grad()
def test_the_cached_form_in_two_graphs() -> None:
    model = built(attention="cached")
    template, search = crops()
    cache = TemplateGraph(model)(template)
    assert [part.shape for part in cache] == [(5, 9, 24), (5, 9, 24)]
    assert same(SearchGraph(model)(search, *cache), model(template, search))
    other = SearchGraph(model)(search, *TemplateGraph(model)(template + 0.5))
    assert not same(other, model(template, search))


def test_the_tracker_stays_as_it_is() -> None:
    model = built()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    JointGraph(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
