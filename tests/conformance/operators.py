"""One small awkward net for every operator that NIR takes: bias, tau, reset and heads as no default has them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from stdeploy.graph import Graph, Weight, ops
from tests.conformance.net import Net


def neuron(layout: str, steps: int, decay_input: bool) -> Graph:
    net = Net((4, 2, 3), steps, layout)
    s = net.fire(net.linear(net.x, 5, "fc"), "lif", decay_input=decay_input)
    return net.done(net.linear(s, 3, "head"))


def integrate(steps: int, decay_input: bool) -> Graph:
    """Integrate and fire: a long tau, which must forget nothing."""
    net = Net((4, 2, 3), steps)
    how: dict[str, Any] = {"tau": None, "decay_input": decay_input}
    thresholds = np.array([0.75, 2.25, 1.25, 4.25, 0.5])  # powers of two above v_reset: ties stay exact
    a = net.fire(net.linear(net.x, 5, "fc"), "a", v_threshold=1.25, **how)
    b = net.fire(net.linear(a, 5, "fc2"), "b", v_threshold=thresholds, v_reset=0.25, **how)
    return net.done(net.linear(b, 3, "head"))


def per_channel() -> Graph:
    net = Net((4, 2, 3))
    y = net.linear(net.x, 5, "fc")
    tau, threshold = np.array([2.0, 4.0, 2.0, 1.75, 4.0]), np.array([0.5, 0.75, 1.0, 1.5, 0.25])
    a = net.fire(y, "a", v_threshold=threshold, v_reset=threshold - 1.0)
    b = net.fire(y, "b", tau=tau, v_threshold=threshold)
    c = net.fire(net.add(ops.Add(), a, b, name="sum"), "c", tau=tau, v_reset=0.0, decay_input=False)
    return net.done(net.add(ops.Add(), c, b, name="out"))


def convolutions(groups: int) -> Graph:
    """Strides, padding and dilation of their own on each axis; then a 1x3 kernel."""
    net = Net((4, 5, 7))
    weight = Weight.dense(net.rng.integers(-2, 3, (8, 4 // groups, 3, 3)) / 4)
    conv = net.add(ops.Conv(weight, net.dyadic(8), (2, 1), (1, 2), (1, 2), groups), name="conv")
    flat = Weight.dense(net.rng.integers(-2, 3, (3, 8, 1, 3)) / 4)
    s = net.fire(conv, "lif")
    return net.done(net.add(ops.Conv(flat, net.dyadic(3), (1, 2), (0, 1), (1, 1)), s, name="flat"))


def tokens() -> Graph:
    net = Net((4, 5))
    s = net.fire(net.linear(net.x, 6, "fc"), "lif")
    conv = ops.Conv(Weight.dense(net.dyadic(3, 6, 1)), None, (2,), (0,), (1,))
    return net.done(net.add(conv, s, name="conv"))


def max_pooling(kernel: Any, stride: Any, padding: Any) -> Graph:
    net = Net((4, 5, 7))
    s = net.fire(net.linear(net.x, 5, "fc"), "lif", v_threshold=0.75, tau=np.array([2.0, 4, 2, 2, 2]))
    half = net.add(ops.Scale(0.5), s, name="half")
    pooled = net.add(ops.MaxPool(kernel, stride, padding, (1, 1)), half, name="pool")
    return net.done(net.fire(net.linear(pooled, 3, "next"), "next_lif"))


def linear_operators() -> Graph:
    net = Net((4, 4, 4), 4, "B")
    s = net.spikes("s", 5)
    y = net.add(ops.AvgPool((2, 2), (2, 2), (1, 1)), s, name="avg")
    y = net.add(ops.Affine(net.dyadic(5), net.dyadic(5)), y, name="bn")
    parts = [net.add(ops.Slice(0, a, b), y, name=f"part{a}") for a, b in ((0, 2), (1, 5))]
    y = net.add(ops.Concat(0), *parts, name="cat")
    y = net.add(ops.Add(), y, y, name="double")
    total = net.add(ops.Reduce((1, 2), False), y, name="total")
    mean = net.add(ops.Reduce((1, 2), True), y, name="mean")
    both = net.add(ops.Add(), total, net.add(ops.Scale(-0.5), mean, name="minus"), name="both")
    return net.done(net.linear(both, 3, "head"))


def readout(mode: Any) -> Graph:
    net = Net((4, 4, 4), 5, "BT")
    s = net.add(ops.Flatten(), net.spikes("s", 3), name="flatten")
    y = net.linear(net.add(ops.Readout(mode), s, name="readout"), 4, "head")
    k = net.builder.add(ops.Constant(net.dyadic(4), ("channel",)), name="k")
    return net.done(net.add(ops.Add(), y, k, name="out"))


def every_step(layout: str) -> Graph:
    net = Net(steps=3)
    return net.done(net.linear(net.spikes("s", 5), 3, "head"), layout)


def residual() -> Graph:
    """Counts, a value that arrives twice, and a chain of three."""
    net = Net()
    a, b = net.spikes("a", 4), net.spikes("b", 4)
    x = net.add(ops.Add(), a, b, name="x")
    y = net.add(ops.Add(), x, net.fire(net.linear(x, 4, "c_linear"), "c_lif"), name="y")
    y = net.add(ops.Add(), y, a, name="z")
    same = net.add(ops.Add(), a, a, name="twice")
    d = net.fire(net.linear(y, 4, "d_linear"), "d_lif")
    e = net.fire(same, "e_lif", v_threshold=1.0)
    return net.done(net.add(ops.Add(), net.add(ops.Add(), d, y, name="u"), e, name="v"))


def product() -> Graph:
    net = Net()
    y = net.add(ops.Mul(), net.spikes("a", 4), net.spikes("b", 4), name="and")
    return net.done(net.fire(net.linear(y, 3, "fc"), "lif"))


def broadcast(shape: tuple[int, ...]) -> Graph:
    """Elementwise attention: tokens' sum, a neuron, and its spike gates every token; the same over channels."""
    net = Net(shape)
    q, k = net.spikes("q", 4), net.spikes("k", 4)
    positions = tuple(range(1, len(shape)))
    over = net.fire(net.add(ops.Reduce(positions, False, True), k, name="sum"), "over", v_threshold=1.5)
    gated = net.add(ops.Mul(), over, q, name="gated")
    head = net.fire(net.add(ops.Reduce((0,), False, True), q, name="heads"), "head", v_threshold=1.0)
    both = net.add(ops.Add(), gated, net.add(ops.Mul(), head, k, name="token"), name="both")
    spread = net.add(ops.Linear(Weight.dense(np.eye(4)[[0, 0, 2, 2]])), over, name="copied")
    both = net.add(ops.Add(), both, net.add(ops.Mul(), spread, k, name="half"), name="all")
    mean = net.add(ops.Reduce(positions, False, True), both, name="mean")
    y = net.linear(net.add(ops.Add(), both, mean, name="residual"), 5, "fc")
    out = net.fire(y, "out", v_threshold=3.03)  # no tie: a mean over 7 positions rounds
    return net.done(net.linear(out, 3, "classes"))


def flattened(shape: tuple[int, ...]) -> Graph:
    net = Net(shape)
    flat = net.add(ops.Flatten(), net.spikes("a", 3), name="flat")
    return net.done(net.linear(net.fire(net.linear(flat, 6, "fc"), "b", v_threshold=2.0), 3, "head"))


def qkv(net: Net, heads: tuple[int, ...], v_heads: tuple[int, ...], order: str, scale: float) -> str:
    """The product of attention in the order (Q Kᵀ) V, `qk`, or Q (Kᵀ V), `kv`."""
    q, k, v = net.spikes("q", sum(heads)), net.spikes("k", sum(heads)), net.spikes("v", sum(v_heads))
    if order == "qk":
        scores = net.add(ops.MatMul("channels", heads, heads), q, k, name="qk")
        scores = net.add(ops.Scale(scale), scores, name="scale")
        return net.add(ops.MatMul("keys", (), v_heads), scores, v, name="av")
    pairs = net.add(ops.MatMul("tokens", heads, v_heads), k, v, name="kv")
    return net.add(
        ops.Scale(scale), net.add(ops.MatMul("pairs", heads, v_heads), q, pairs, name="qkv"), name="s"
    )


RAGGED = ((3, 1, 2), (2, 4, 1))


def attention(
    order: str,
    shape: tuple[int, ...],
    heads: tuple[int, ...] = RAGGED[0],
    v_heads: tuple[int, ...] = RAGGED[1],
) -> Graph:
    net = Net(shape)
    y = net.fire(qkv(net, heads, v_heads, order, 0.125), "attn_lif", v_threshold=0.125, v_reset=0.0)
    return net.done(net.linear(y, 3, "head"))


OPERATORS: dict[str, Callable[[], Graph]] = {
    "LIF, an image, T = 1": partial(neuron, "B", 1, True),
    "LIF, an image, T = 5": partial(neuron, "B", 5, False),
    "LIF, frames BT, T = 1": partial(neuron, "BT", 1, False),
    "LIF, frames BT, T = 5": partial(neuron, "BT", 5, True),
    "LIF, frames TB, T = 5": partial(neuron, "TB", 5, False),
    "IF, T = 1": partial(integrate, 1, True),
    "IF, undecayed input, T = 9": partial(integrate, 9, False),
    "tau, threshold, reset per channel": per_channel,
    "Conv": partial(convolutions, 1),
    "Conv, 2 groups": partial(convolutions, 2),
    "Conv, depthwise": partial(convolutions, 4),
    "Conv and Linear on tokens": tokens,
    "MaxPool 3x3 of spikes": partial(max_pooling, (3, 3), (2, 2), (1, 1)),
    "MaxPool 2x3 of spikes": partial(max_pooling, (2, 3), (1, 2), (1, 0)),
    "AvgPool, Affine, Slice, Concat, Reduce": linear_operators,
    "Readout mean, Flatten, Constant": partial(readout, "mean"),
    "Readout sum": partial(readout, "sum"),
    "Readout last": partial(readout, "last"),
    "Output of every step, TB": partial(every_step, "TB"),
    "Output of every step, BT": partial(every_step, "BT"),
    "Add, three residuals": residual,
    "Mul of spikes": product,
    "Mul, broadcast, 4x4": partial(broadcast, (4, 4, 4)),
    "Mul, broadcast, 3x5": partial(broadcast, (4, 3, 5)),
    "Mul, broadcast, 7 tokens": partial(broadcast, (4, 7)),
    "Mul, broadcast, 1x3": partial(broadcast, (4, 1, 3)),
    "Flatten and Linear, 2x3": partial(flattened, (3, 2, 3)),
    "Flatten and Linear, 5x2": partial(flattened, (3, 5, 2)),
    "Flatten and Linear, 1x4": partial(flattened, (3, 1, 4)),
    "Flatten and Linear, 3x3": partial(flattened, (3, 3, 3)),
    "Flatten and Linear, 4 tokens": partial(flattened, (3, 4)),
    "MatMul (QKᵀ)V, ragged heads, 4x4": partial(attention, "qk", (4, 4, 4)),
    "MatMul (QKᵀ)V, ragged heads, 3x5": partial(attention, "qk", (4, 3, 5)),
    "MatMul (QKᵀ)V, ragged heads, 7 tokens": partial(attention, "qk", (4, 7)),
    "MatMul Q(KᵀV), ragged heads, 4x4": partial(attention, "kv", (4, 4, 4)),
    "MatMul Q(KᵀV), equal heads, 3x5": partial(attention, "kv", (4, 3, 5), (2, 2, 2), (3, 3, 3)),
    "MatMul Q(KᵀV), ragged heads, 7 tokens": partial(attention, "kv", (4, 7)),
}
"""Net by the name of its row."""
