"""Selection of tokens as people write it: each form gives the graph's Select and the model's own spikes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stdeploy.errors import UnsupportedError, UserError
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.ops import Concat, Flatten, Select
from stdeploy.models import LIF
from stdeploy.trace import TracedModel, trace
from tests.traced import Repeated, agree, awkward, kinds, random_batch

SHAPE, STEPS, CHANNELS, KEPT = (2, 3, 4), 3, 5, 6

Form = Callable[[Tensor, Tensor], Tensor]
"""Tokens `[T, B, N, C]` and scores `[T, B, N]` to kept tokens `[T, B, K, C]`."""


class Pruned(nn.Module):
    """A stem, a selection of its tokens by real scores (or counts of spikes), and a layer over the slots."""

    def __init__(self, form: Form, counts: bool = False, steps: int = STEPS) -> None:
        super().__init__()
        self.form, self.counts = form, counts
        self.stem = Repeated(steps, CHANNELS)
        self.score = nn.Linear(CHANNELS, 1)
        self.fc, self.bn, self.lif = nn.Linear(CHANNELS, 4), nn.BatchNorm1d(4), LIF(1.6, 0.8, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(3).transpose(2, 3)
        scores = x.sum(-1) if self.counts else self.score(x).squeeze(-1)
        y = self.fc(self.form(x, scores))
        t, b, n, c = y.shape
        y = self.bn(y.flatten(0, 1).transpose(1, 2)).transpose(1, 2).reshape(t, b, n, c)
        return self.lif(y).mean(2)


def expanded(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(2, index.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1]))


def flat(x: Tensor, s: Tensor) -> Tensor:
    """DynamicViT's batch_index_select: offsets into one list of all tokens."""
    t, b, n, c = x.shape
    index = s.argsort(dim=-1, descending=True)[:, :, :KEPT]
    offset = torch.arange(t * b, device=x.device).view(t, b, 1) * n
    return x.reshape(t * b * n, c)[(index + offset).reshape(-1)].reshape(t, b, KEPT, c)


def listed(x: Tensor, s: Tensor) -> Tensor:
    t, b, n, c = x.shape
    index = s.flatten(0, 1).topk(KEPT, dim=1)[1]
    index = index + torch.arange(t * b)[:, None] * n
    return x.reshape(-1, c).index_select(0, index.flatten()).view(t, b, KEPT, c)


def advanced(x: Tensor, s: Tensor) -> Tensor:
    index = torch.sort(s, dim=2, descending=True)[1][..., :KEPT]
    return x[torch.arange(x.shape[0])[:, None, None], torch.arange(x.shape[1])[None, :, None], index]


def merged_batch(x: Tensor, s: Tensor) -> Tensor:
    t, b, _, c = x.shape
    index = s.flatten(0, 1).topk(KEPT).indices
    return x.flatten(0, 1)[torch.arange(t * b).unsqueeze(1), index].reshape(t, b, KEPT, c)


def channels_first(x: Tensor, s: Tensor) -> Tensor:
    index = s.topk(KEPT).indices.unsqueeze(2).repeat(1, 1, x.shape[-1], 1)
    return torch.gather(x.transpose(2, 3), 3, index).transpose(2, 3)


def with_heads(x: Tensor, s: Tensor) -> Tensor:
    t, b, n, c = x.shape
    y = torch.cat([x, x], -1).reshape(t, b, n, 2, c).permute(0, 1, 3, 2, 4)
    index = s.topk(KEPT).indices[:, :, None, :, None].expand(-1, -1, 2, -1, c)
    return y.gather(3, index)[:, :, 1]


def anchor_by_index(x: Tensor, s: Tensor) -> Tensor:
    """The first token is always kept, as position 0 of the index."""
    index = s[:, :, 1:].topk(KEPT - 1).indices + 1
    index = torch.cat([torch.zeros_like(index[:, :, :1]), index], dim=-1)
    return expanded(x, index)


def anchor_by_cat(x: Tensor, s: Tensor) -> Tensor:
    index = torch.topk(s[:, :, 1:], KEPT - 1)[1]
    return torch.cat((x[:, :, 0:1], expanded(x[..., 1:, :], index)), 2)


FORMS: dict[str, Form] = {
    "topk, gather": lambda x, s: expanded(x, s.topk(KEPT, dim=-1).indices),
    "topk(sorted=False), sorted": lambda x, s: expanded(x, s.topk(KEPT, sorted=False)[1].sort()[0]),
    "topk, indices sorted": lambda x, s: expanded(x, torch.sort(s.topk(KEPT)[1], -1)[0]),
    "argsort": lambda x, s: expanded(x, s.argsort(-1, True)[..., :KEPT]),
    "argsort, ascending": lambda x, s: expanded(x, s.argsort()[..., -KEPT:]),
    "argsort of the negative": lambda x, s: expanded(x, (-s).argsort()[..., :KEPT]),
    "topk of the negative": lambda x, s: expanded(x, torch.topk(-s, KEPT)[1]),
    "sort, stable": lambda x, s: expanded(x, torch.sort(s, stable=True, descending=True).indices[..., 2:5]),
    "the lowest": lambda x, s: expanded(x, s.topk(KEPT, largest=False).indices),
    "all, in order": lambda x, s: expanded(x, s.argsort(descending=True)),
    "one": lambda x, s: expanded(x, s.topk(1).indices),
    "the first of three": lambda x, s: expanded(x, s.topk(3).indices.select(2, 1).unsqueeze(2)),
    "take_along_dim": lambda x, s: x.take_along_dim(s.topk(KEPT).indices.unsqueeze(3), 2),
    "advanced index": advanced,
    "advanced index, time and batch merged": merged_batch,
    "flat offsets": flat,
    "index_select": listed,
    "channels first": channels_first,
    "heads": with_heads,
    "vmap": lambda x, s: torch.vmap(lambda a, i: a[i])(
        x.flatten(0, 1), s.flatten(0, 1).topk(KEPT)[1]
    ).unflatten(0, (len(x), -1)),
    "anchor by index": anchor_by_index,
    "anchor by cat": anchor_by_cat,
}  # fmt: skip


def pruned(form: Form, counts: bool = False, steps: int = STEPS) -> nn.Module:
    torch.manual_seed(3)
    return awkward(Pruned(form, counts, steps))


@pytest.mark.parametrize("name", FORMS)
def test_forms(name: str) -> None:
    """With real scores, whose order leaves nothing open, the model as it is gives the same too."""
    net = pruned(FORMS[name])
    traced = agree(net, SHAPE)
    selects = traced.graph.of(Select)
    assert len(selects) == 1 and set(traced.ranked[0].name.split(".")) & {"select"}
    x = random_batch(traced)
    with torch.no_grad():
        own = net(torch.as_tensor(x)).numpy()
    np.testing.assert_allclose(traced.run(x).outputs["output"], own, rtol=1e-9)
    run, graph = traced.run(x), interpret(traced.graph, x)
    for kept, positions in graph.selections.items():
        np.testing.assert_array_equal(run.selections[kept], positions)
    other = {n: p[:, ::-1] for n, p in graph.selections.items()}  # another sample's
    taught, wanted = traced.run(x, other), interpret(traced.graph, x, forced=other)
    for layer, spikes in wanted.spikes.items():
        np.testing.assert_array_equal(taught.spikes[layer], spikes)


@pytest.mark.parametrize("name", FORMS)
def test_equal_scores_keep_the_lower_index(name: str) -> None:
    traced = agree(pruned(FORMS[name], counts=True), SHAPE)
    x = random_batch(traced, 4, seed=2)
    scores = traced.run(x).spikes["stem.lif"].sum(axis=2)
    assert len(np.unique(scores[0, 0])) < 10  # 12 tokens: some are equal
    run, graph = traced.run(x), interpret(traced.graph, x)
    for kept, positions in graph.selections.items():
        np.testing.assert_array_equal(run.selections[kept], positions)
    np.testing.assert_allclose(run.outputs["output"], graph.outputs["output"], rtol=1e-9)


@pytest.mark.parametrize("name", ["topk of the negative", "argsort of the negative"])
def test_negated_counts_stay_counts(name: str) -> None:
    """So that an artefact has no tie to break."""
    graph = agree(pruned(FORMS[name], counts=True), SHAPE).graph
    (select,) = graph.of(Select)
    assert isinstance(select.op, Select) and select.op.largest == (name == "argsort of the negative")
    assert graph[select.inputs[1]].value.domain.maximum == CHANNELS


@pytest.mark.parametrize("name", ["topk, gather", "flat offsets", "anchor by index", "advanced index"])
def test_one_step(name: str) -> None:
    agree(pruned(FORMS[name], steps=1), SHAPE)


def test_two_uses_of_one_ranking() -> None:
    def form(x: Tensor, s: Tensor) -> Tensor:
        index = s.topk(KEPT).indices
        return expanded(x, index) + expanded(x.roll(0, 0) if False else x * s.unsqueeze(-1), index)

    traced = agree(pruned(form), SHAPE)
    assert len(traced.graph.of(Select)) == 2 and {r.ranking for r in traced.ranked} == {0}


def test_rankings_that_choose_nothing_are_left_alone() -> None:
    def form(x: Tensor, s: Tensor) -> Tensor:
        s.topk(2), torch.sort(torch.tensor([3.0, 1.0, 2.0]))
        return expanded(x, s.topk(KEPT).indices)

    traced = agree(pruned(form), SHAPE)
    assert [r.ranking for r in traced.ranked] == [2]


def test_magnitudes_of_spikes() -> None:
    agree(pruned(lambda x, s: expanded(x, x.abs().sum(-1).topk(KEPT).indices)), SHAPE)


def test_images_are_listed_as_tokens() -> None:
    traced = agree(pruned(FORMS["topk, gather"]), SHAPE)
    assert len(traced.graph.of(Flatten)) == 1


class Anchored(nn.Module):
    """A learned token in front of (or behind) the patches; `per_step`: one for each step."""

    def __init__(self, behind: bool, per_step: bool, position: bool = False) -> None:
        super().__init__()
        self.stem, self.behind = Repeated(STEPS, CHANNELS), behind
        self.anchor = nn.Parameter(torch.randn(STEPS if per_step else 1, 1, 1, CHANNELS))
        self.position = nn.Parameter(torch.randn(1, 1, 13, CHANNELS)) if position else None
        self.fc, self.lif = nn.Linear(CHANNELS, 6), LIF(1.6, 0.3, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(3).transpose(2, 3)
        anchor = self.anchor.expand(STEPS, x.shape[1], -1, -1)
        x = torch.cat((x, anchor) if self.behind else (anchor, x), dim=2)
        if self.position is not None:
            x = x + self.position
        y: Tensor = self.lif(self.fc(x))
        return y[:, :, 0] + y[:, :, 1:].mean(2)


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("position", [False, True])
def test_a_learned_token(behind: bool, per_step: bool, position: bool) -> None:
    torch.manual_seed(1)
    traced = agree(awkward(Anchored(behind, per_step, position)), SHAPE)
    assert kinds(traced).count("Constant") == 1 + position
    (joined,) = traced.graph.of(Concat)
    assert joined.value.shape == (CHANNELS, 13)
    constant = traced.graph[joined.inputs[1 if behind else 0]].op
    assert vars(constant)["per_step"] == per_step


def refused(form: Form) -> str:
    with pytest.raises(UnsupportedError) as caught:
        trace(pruned(form), SHAPE)
    return "; ".join(str(item) for item in caught.value.items)


def per_head(x: Tensor, s: Tensor) -> Tensor:
    return x.gather(2, x.topk(KEPT, dim=2).indices)


REFUSED: dict[str, tuple[Form, str]] = {
    "open order": (lambda x, s: expanded(x, s.topk(KEPT, sorted=False).indices), "sorted=True"),
    "for each channel": (per_head, "one score a token"),
    "the scores": (lambda x, s: x[:, :, :KEPT] * s.topk(KEPT).values.unsqueeze(-1), "scores that a ranking sorted"),
    "arithmetic": (lambda x, s: x[:, :, :KEPT] * s.topk(KEPT).indices.unsqueeze(-1), "computes with the positions"),
    "one sample's": (
        lambda x, s: x[:, :, s.topk(KEPT).indices[0, 0]],
        "step 0 alone",
    ),
    "a part of the channels": (
        lambda x, s: nn.functional.pad(
            x.gather(2, s.topk(KEPT).indices.unsqueeze(-1).expand(-1, -1, -1, 3)), (0, 2)
        ),
        "only some of them",
    ),
    "channels": (lambda x, s: x.gather(3, x.sum(2).topk(CHANNELS).indices.unsqueeze(2).expand_as(x)), "one axis|not all tokens"),
    "over time": (lambda x, s: expanded(x, s.mean(0, keepdim=True).expand(STEPS, -1, -1).topk(KEPT).indices), "repeated"),
    "a threshold": (lambda x, s: x * (s > 0.2).unsqueeze(-1).float(), "no lowering"),
    "sorted downwards": (lambda x, s: expanded(x, s.topk(KEPT)[1].sort(descending=True)[0]), "otherwise than ascending"),
    "sorted, then cut": (lambda x, s: expanded(x, s.topk(KEPT)[1].sort()[0][..., :2]), "not in the order of their scores"),
    "over all steps": (
        lambda x, s: expanded(x, s.mean(0).topk(KEPT).indices.unsqueeze(0).expand(STEPS, -1, -1)),
        "only after all steps",
    ),
    "a mask": (
        lambda x, s: x * torch.zeros_like(s).scatter(2, s.topk(KEPT).indices, 1.0).unsqueeze(-1),
        "topk and gather",
    ),
    "a quantile": (lambda x, s: x * (s - s.kthvalue(3, -1, keepdim=True).values).unsqueeze(-1), "topk and gather"),
    "magnitudes": (lambda x, s: expanded(x, s.abs().topk(KEPT).indices), "may be negative"),
    "offsets of one position": (
        lambda x, s: x.reshape(-1, CHANNELS)[s.topk(3).indices[..., 0] + torch.arange(21).view(3, 7) * 12].unsqueeze(2),
        "keep its dimension",
    ),
    "a flat list's anchor": (
        lambda x, s: x.reshape(-1, CHANNELS)[
            torch.cat(
                [torch.zeros_like(s[..., :1]).long(), s.topk(3)[1] + torch.arange(21).view(3, 7, 1) * 12], -1
            ).flatten()
        ].reshape(3, 7, 4, CHANNELS),
        "flat list",
    ),
    "another list's offsets": (
        lambda x, s: x.reshape(-1, CHANNELS)[
            (s.topk(KEPT).indices + torch.arange(STEPS * 7).view(STEPS, 7, 1)[:, : s.shape[1]] * 11).flatten()
        ].reshape(*s.shape[:2], KEPT, CHANNELS),
        "offsets of another list",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    import re

    form, reason = REFUSED[name]
    assert re.search(reason, refused(form))


def test_positions_are_no_output() -> None:
    class Shown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = Repeated(STEPS, CHANNELS)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.stem(x).flatten(3)
            return y, y.sum(2).topk(3).indices

    with pytest.raises(UnsupportedError, match="return the tokens"):
        trace(awkward(Shown()), SHAPE)


@pytest.mark.parametrize("ahead", [True, False])
def test_a_run_that_ranks_otherwise_than_its_trace_is_no_reference(ahead: bool) -> None:
    def form(x: Tensor, s: Tensor) -> Tensor:
        if ahead and not torch.compiler.is_exporting():
            s.sort()
        y = expanded(x, s.topk(KEPT).indices)
        if not ahead and not torch.compiler.is_exporting():
            s.sort()
        return y

    traced = trace(pruned(form), SHAPE)
    with pytest.raises(UserError, match="ranks other values when it runs"):
        traced.run(random_batch(traced))


def test_the_model_is_left_as_it_was() -> None:
    """The tie rule holds while the reference runs, and only then."""
    traced: TracedModel = trace(pruned(FORMS["topk, gather"], counts=True), SHAPE)
    x = torch.as_tensor(random_batch(traced))
    with torch.no_grad():
        before = traced.module(x)
        traced.run(x.numpy())
        assert torch.equal(traced.module(x), before)
    scores = torch.tensor([1.0, 1.0, 1.0, 2.0, 1.0])
    assert torch.topk(scores, 2).values.tolist() == [2.0, 1.0]
