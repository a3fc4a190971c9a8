"""Traces of attention in its orders and of elementwise products, spike for spike in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stdeploy.graph.ops import Constant, Linear, MatMul
from stdeploy.models import LIF
from tests.traced import Repeated, agree, awkward


class Attention(nn.Module):
    """Fused q, k, v and the products of attention in one of their orders."""

    def __init__(self, order: str, dim: int, heads: int, linear: bool) -> None:
        super().__init__()
        self.order, self.heads = order, heads
        self.stem = Repeated(3, dim)
        self.qkv = nn.Linear(dim, 3 * dim) if linear else nn.Conv1d(dim, 3 * dim, 1)
        self.bn = nn.BatchNorm1d(3 * dim)
        self.qkv_lif = LIF(1.4, 0.8, None)
        self.attn_lif = LIF(1.6, 0.3, 0.05)
        self.head = nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(3)
        t, b, c, n = x.shape
        if isinstance(self.qkv, nn.Linear):
            y = self.qkv(x.transpose(2, 3)).transpose(2, 3).flatten(0, 1)
        else:
            y = self.qkv(x.flatten(0, 1))
        y = self.qkv_lif(self.bn(y).view(t, b, 3 * c, n))
        q, k, v = y.view(t, b, 3, self.heads, c // self.heads, n).unbind(2)  # [T, B, h, d, N]
        if self.order == "qk":
            y = ((q.transpose(-2, -1) @ k) * 0.25 @ v.transpose(-2, -1)).transpose(-2, -1)
        elif self.order == "kq":  # V (Q^T K)^T from K^T Q: the map's first axis is summed
            y = v @ ((k.transpose(-2, -1) @ q) * 0.25)
        elif self.order == "transposed map":
            y = v @ ((q.transpose(-2, -1) @ k) * 0.25).transpose(-2, -1)
        elif self.order == "kv":
            y = (q.transpose(-2, -1) @ (k @ v.transpose(-2, -1)) * 0.25).transpose(-2, -1)
        elif self.order == "vk":
            y = (v @ k.transpose(-2, -1)) @ q * 0.25
        else:
            y = torch.einsum("tbhdn,tbhdm->tbhnm", q, k)
            y = torch.einsum("tbhnm,tbhem->tbhen", y, v) * 0.25
        y = self.attn_lif(y.reshape(t, b, c, n))
        return self.head((y + x).mean((0, -1)))


ORDERS = {
    "qk": ["channels", "keys"],
    "kq": ["channels", "keys"],
    "transposed map": ["channels", "keys"],
    "kv": ["tokens", "pairs"],
    "vk": ["tokens", "pairs"],
    "einsum": ["channels", "keys"],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("dim", "heads", "linear"), [(12, 3, True), (6, 1, False), (4, 4, False)])
def test_attention_orders(order: str, dim: int, heads: int, linear: bool) -> None:
    traced = agree(awkward(Attention(order, dim, heads, linear), 0.6), (2, 4, 3))
    products = [n.op.over for n in traced.graph.of(MatMul) if isinstance(n.op, MatMul)]
    assert products == ORDERS[order]


def test_one_token() -> None:
    agree(awkward(Attention("qk", 6, 1, True), 1.4), (2, 1, 1), batch=9)


class Elementwise(nn.Module):
    """Linear attention by elementwise products (K V summed over the tokens), constants, shared layers."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.stem = Repeated(steps, 8)
        self.position = nn.Parameter(torch.linspace(-0.3, 0.4, 12 * 8).reshape(1, 12, 8))
        self.moment = nn.Parameter(torch.linspace(0.1, 0.3, steps).reshape(steps, 1, 1, 1))
        self.gamma = nn.Parameter(torch.linspace(0.7, 1.3, 8))
        self.mix = nn.Linear(8, 8)
        self.q_lif, self.k_lif = LIF(1.7, 0.9, -0.1), LIF(2.6, 0.7, None)
        self.kv_lif, self.lif = LIF(1.5, 1.3, 0.1), LIF(1.9, 0.8, 0.0)
        self.head = nn.Linear(8, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(3).transpose(2, 3)  # [T, B, N, C]
        q = self.q_lif(self.mix(x) + self.position + self.moment)
        k = self.k_lif(self.mix(x + 0.25) * self.gamma)
        kv = self.kv_lif((q * k).sum(-2, keepdim=True) / 3)
        y = self.lif(self.drop(1.5 * (q * kv) + k / 1.5))
        return self.head(y.mean(dim=2)).sum(0)


@pytest.mark.parametrize("steps", [1, 5])
def test_elementwise_attention_and_constants(steps: int) -> None:
    net = awkward(Elementwise(steps))
    traced = agree(net, (2, 4, 3))
    shared = [n for n in traced.graph.of(Linear) if n.source == "mix"]
    assert [n.name for n in shared] == ["mix", "mix.1"]
    assert shared[0].op.weight is shared[1].op.weight  # type: ignore[attr-defined]
    constants = [n for n in traced.graph.of(Constant) if n.name == "moment"]
    assert [n.op.per_step for n in constants] == ([True] if steps > 1 else [])  # type: ignore[attr-defined]
