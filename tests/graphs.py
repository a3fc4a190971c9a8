"""Spikformer-shaped graphs for tests, calibrated so that every neuron layer fires and none saturates.

A freshly initialised spiking transformer outputs zeros, which makes any comparison vacuous; here each
Affine is set from the statistics of its own input, then shifted until its neuron fires at a set rate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from stdeploy.graph import Graph, GraphBuilder, Weight, ops, validate
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.weight import Array

Layout = Literal["B", "BT", "TB"]
Neurons = Literal["spikingjelly", "hard", "mixed"]

AXES = ("channel", "y", "x")
LOWEST_RATE, HIGHEST_RATE = 0.01, 0.8


def random_inputs(graph: Graph, batch: int = 3, seed: int = 0) -> Array:
    """A float32 batch in the Input's layout: normal pixels for `B`, small event counts otherwise."""
    (node,) = graph.inputs
    assert isinstance(node.op, ops.Input)
    return _inputs(node.op, graph.steps, batch, seed)


def _inputs(op: ops.Input, steps: int, batch: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    lead = {"B": (batch,), "BT": (batch, steps), "TB": (steps, batch)}[op.layout]
    shape = (*lead, *op.shape)
    data = rng.standard_normal(shape) if op.layout == "B" else rng.poisson(0.4, shape)
    return data.astype(np.float32)


def firing_rates(graph: Graph, inputs: Array) -> dict[str, float]:
    """Mean firing rate of every neuron layer, float64 interpreter."""
    return {name: float(s.mean()) for name, s in interpret(graph, inputs).spikes.items()}


def every_layer_fires(graph: Graph, inputs: Array) -> bool:
    """Whether every neuron layer fires and none is saturated; AssertionError that names those that do not."""
    rates = firing_rates(graph, inputs)
    bad = {name: rate for name, rate in rates.items() if not LOWEST_RATE <= rate <= HIGHEST_RATE}
    assert rates, "the graph has no neuron"
    assert not bad, f"silent or saturated: {bad}"
    return True


def spikformer_graph(
    steps: int = 4,
    image: tuple[int, int, int] = (2, 12, 12),
    dim: int = 10,
    heads: tuple[int, ...] = (3, 2),
    v_heads: tuple[int, ...] = (2, 3),
    depth: int = 1,
    mlp: int = 14,
    order: Literal["qk", "kv"] = "qk",
    *,
    classes: int = 5,
    per_channel: bool = False,
    layout: Layout = "B",
    neurons: Neurons = "hard",
    masked: float = 0.0,
    columns: bool = True,
    batch_norm: bool = True,
    seed: int = 0,
) -> Graph:
    """A Spikformer: two-stage conv stem (image / 4), `depth` blocks, mean over tokens and steps, head.

    `heads`, `v_heads`: channels per head of q and k, and of v. `neurons`: "spikingjelly" (tau 2,
    v_reset 0), "hard" (tau 1.7, v_reset -0.1) or "mixed" (hard, undecayed input, soft reset, IF in
    turn). `masked`: fraction of each head's q, k, v dims and of the hidden units whose weight row is
    zero, about half of them firing from their BatchNorm shift alone; `columns` zeroes what consumes v
    and hidden units too, as DSP does. `batch_norm=False` folds nothing but scales weights instead, so
    that no Affine exists. Parameters are float32.
    """
    net = Network(steps, image, layout, neurons, per_channel, batch_norm, seed)
    x = net.stem(dim)
    for i in range(depth):
        x = net.attention(f"block.{i}.attn", x, heads, v_heads, order, masked, columns)
        x = net.mlp(f"block.{i}.mlp", x, mlp, masked, columns)
    return net.head(x, classes)


def neuron_styles(kind: Neurons) -> list[dict[str, Any]]:
    """Keyword arguments of ops.Neuron (scalars), used in turn; v_threshold is multiplied per site."""
    if kind == "spikingjelly":
        return [{"tau": 2.0, "v_threshold": 1.0, "v_reset": 0.0}]
    if kind == "hard":
        return [{"tau": 1.7, "v_threshold": 0.9, "v_reset": -0.1}]
    return [
        {"tau": 1.7, "v_threshold": 0.9, "v_reset": -0.1},
        {"tau": 2.6, "v_threshold": 1.1, "v_reset": 0.15, "decay_input": False},
        {"tau": 1.4, "v_threshold": 0.8, "v_reset": None},
        {"tau": None, "v_threshold": 1.2, "v_reset": 0.05, "kind": "IF"},
        {"tau": 2.2, "v_threshold": 1.0, "v_reset": None, "decay_input": False},
    ]


@dataclass
class Network:
    """Appends calibrated layers to a GraphBuilder; `calibration` is the batch that sets every Affine."""

    steps: int
    image: tuple[int, int, int]
    layout: Layout = "B"
    neurons: Neurons = "hard"
    per_channel: bool = False
    batch_norm: bool = True
    seed: int = 0
    rate: float = 0.25
    builder: GraphBuilder = field(init=False)
    input: str = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.builder = GraphBuilder(self.steps, {"source": "tests/graphs.py", "dtype": "float32"})
        self.styles = neuron_styles(self.neurons)
        op = ops.Input(self.image, AXES, self.layout)
        self.input = self.builder.add(op, name="input")
        self.calibration = _inputs(op, self.steps, 8, self.seed + 1000)
        self.count = 0

    def normal(self, *shape: int, scale: float = 1.0) -> Array:
        return (scale * self.rng.standard_normal(shape)).astype(np.float32)

    def observe(self, name: str) -> Array:
        """Value of a node on the calibration batch, `[T, B, *shape]`."""
        nodes = dict(self.builder.nodes)
        probe = GraphBuilder(self.steps)
        probe.nodes = nodes
        time = probe.value(name).time
        label = probe.add(ops.Output("probe", "TB" if time == "step" else "B"), (name,), name="probe")
        y = interpret(probe.build(), self.calibration).outputs["probe"]
        del nodes[label]
        return y if time == "step" else np.broadcast_to(y, (self.steps, *y.shape))

    def linear(self, name: str, x: str, out: int, *, rows: Array | None = None, bias: bool = True) -> str:
        """Linear with zero weight rows where `rows` is True."""
        inp = self.builder.value(x).shape[0]
        weight = self.normal(out, inp, scale=inp**-0.5)
        if rows is not None:
            weight[rows] = 0
        op = ops.Linear(Weight.dense(weight), self.normal(out, scale=0.3) if bias else None)
        return self.builder.add(op, (x,), name=name, source=name)

    def conv(self, name: str, x: str, out: int) -> str:
        inp = self.builder.value(x).shape[0]
        weight = Weight.dense(self.normal(out, inp, 3, 3, scale=(9 * inp) ** -0.5))
        op = ops.Conv(weight, self.normal(out, scale=0.3), (1, 1), (1, 1), (1, 1))
        return self.builder.add(op, (x,), name=name, source=name)

    def norm_fire(self, name: str, x: str, *, threshold: float = 1.0, rate: float | None = None) -> str:
        """`{name}_bn` and `{name}_lif`: unit variance per channel, shifted to the wanted firing rate.

        Channels of a constant drive get scale 1 and a drive between -0.5 and 3 thresholds.
        """
        op = self.neuron(self.builder.value(x).shape[0], threshold)
        drive = self.observe(x)
        axes = tuple(i for i in range(drive.ndim) if i != 2)
        mean, std = drive.mean(axes), drive.std(axes)
        constant = std < 1e-6
        scale = np.where(
            constant, 1.0, np.exp(self.rng.normal(0, 0.2, std.shape)) / np.where(constant, 1, std)
        )
        offset = self.rng.normal(0, 0.15, mean.shape)
        level = float(np.mean(op.v_threshold))
        shift = np.where(constant, self.rng.uniform(-0.5, 3.0, mean.shape) * level, offset - mean * scale)
        live = np.flatnonzero(~constant)
        if live.size:
            shape = (1, 1, -1, *([1] * (drive.ndim - 3)))
            affine = drive * scale.reshape(shape) + shift.reshape(shape)
            shift = shift + np.where(constant, 0.0, self._level(op, affine, live, rate or self.rate))
        scale, shift = scale.astype(np.float32), shift.astype(np.float32)
        if not self.batch_norm:
            return self._scaled(name, x, op, scale, shift)
        normed = self.builder.add(ops.Affine(scale, shift), (x,), name=f"{name}_bn", source=f"{name}_bn")
        return self.builder.add(op, (normed,), name=f"{name}_lif", source=f"{name}_lif")

    def _scaled(self, name: str, x: str, op: ops.Neuron, scale: Array, shift: Array) -> str:
        node = self.builder.nodes.pop(x)
        old = node.op
        if not isinstance(old, ops.Linear | ops.Conv):
            raise TypeError(f"{x} has no weight to scale")
        weight = old.weight.array() * scale.reshape(-1, *([1] * (len(old.weight.shape) - 1)))
        bias = (0 if old.bias is None else old.bias) * scale + shift
        new = (
            ops.Linear(Weight.dense(weight), bias)
            if isinstance(old, ops.Linear)
            else ops.Conv(Weight.dense(weight), bias, old.stride, old.padding, old.dilation, old.groups)
        )
        x = self.builder.add(new, node.inputs, name=node.name, source=node.source)
        return self.builder.add(op, (x,), name=f"{name}_lif", source=f"{name}_lif")

    def _level(self, op: ops.Neuron, drive: Array, live: Array, rate: float) -> float:
        """Shift, the same for all live channels, at which they fire at about `rate`.

        Few bisections: sparse spikes yield the same drive at many places, and more would end on it, where
        float32 rounding decides every spike.
        """
        drive = drive[:, :, live]
        pick = [None if p is None else p[live] if p.ndim else p for p in (op.tau, op.v_threshold, op.v_reset)]
        op = ops.Neuron(pick[0], np.asarray(pick[1]), pick[2], op.decay_input)
        low, high = -8.0, 8.0
        for _ in range(9):
            middle = (low + high) / 2
            if _fire(op, drive + middle).mean() < rate:
                low = middle
            else:
                high = middle
        return (low + high) / 2

    def _sized(self, op: ops.Neuron, drive: Array) -> ops.Neuron:
        """`op` with threshold and reset scaled to about the set rate on a drive that has no Affine.

        Few bisections, as in _level: the drive is a small integer times a factor.
        """
        low, high = -8.0, 3.0
        for _ in range(7):
            middle = (low + high) / 2
            factor = np.float32(2.0**middle)
            rest = None if op.v_reset is None else op.v_reset * factor
            scaled = ops.Neuron(op.tau, op.v_threshold * factor, rest, op.decay_input, op.kind)
            low, high = (middle, high) if _fire(scaled, drive).mean() > self.rate else (low, middle)
        return scaled

    def neuron(self, channels: int, threshold: float) -> ops.Neuron:
        style = dict(self.styles[self.count % len(self.styles)])
        self.count += 1
        style["v_threshold"] *= threshold
        arrays: dict[str, Any] = {}
        for key in ("tau", "v_threshold", "v_reset"):
            value = style.pop(key)
            if value is not None and self.per_channel:
                spread = self.rng.uniform(0.0, 0.2, channels)
                value = value * (1 + spread)
            arrays[key] = None if value is None else np.asarray(value, dtype=np.float32)
        return ops.Neuron(**arrays, **style)

    def stem(self, dim: int) -> str:
        """Two stages of conv, BatchNorm, neuron, max pool; then a conv position code, added."""
        x = self.input
        for i, out in enumerate((max(4, dim // 2), dim)):
            name = f"patch_embed.proj{i}"
            x = self.norm_fire(name, self.conv(f"{name}_conv", x, out))
            pool = ops.MaxPool((3, 3), (2, 2), (1, 1), (1, 1))
            x = self.builder.add(pool, (x,), name=f"patch_embed.maxpool{i}")
        position = self.norm_fire("patch_embed.rpe", self.conv("patch_embed.rpe_conv", x, dim))
        return self.builder.add(ops.Add(), (x, position), name="patch_embed.add")

    def mask(self, heads: tuple[int, ...], fraction: float) -> Array:
        """[C] True for the masked dims: the first `fraction` of a random order of each head, one kept."""
        parts = []
        for n in heads:
            part = np.zeros(n, bool)
            part[self.rng.permutation(n)[: min(n - 1, round(fraction * n))]] = True
            parts.append(part)
        return np.concatenate(parts)

    def attention(
        self,
        name: str,
        x: str,
        heads: tuple[int, ...],
        v_heads: tuple[int, ...],
        order: str = "qk",
        masked: float = 0.0,
        columns: bool = True,
    ) -> str:
        """Spiking self attention with its residual: q, k, v, product, scale, neuron, projection, neuron."""
        add, dim = self.builder.add, self.builder.value(x).shape[0]
        qk_mask, v_mask = self.mask(heads, masked), self.mask(v_heads, masked)
        rows = {"q": qk_mask, "k": qk_mask, "v": v_mask}
        size = {"q": sum(heads), "k": sum(heads), "v": sum(v_heads)}
        q, k, v = (
            self.norm_fire(f"{name}.{c}", self.linear(f"{name}.{c}_conv", x, size[c], rows=rows[c]))
            for c in "qkv"
        )
        if order == "qk":
            scores = add(ops.MatMul("channels", heads, heads), (q, k), name=f"{name}.qk", source=name)
            y = add(ops.MatMul("keys", (), v_heads), (scores, v), name=f"{name}.av", source=name)
        else:
            pairs = add(ops.MatMul("tokens", heads, v_heads), (k, v), name=f"{name}.kv", source=name)
            y = add(ops.MatMul("pairs", heads, v_heads), (q, pairs), name=f"{name}.qkv", source=name)
        y = add(ops.Scale(0.125), (y,), name=f"{name}.scale", source=name)
        op = self._sized(self.neuron(sum(v_heads), 1.0), self.observe(y))
        y = add(op, (y,), name=f"{name}.attn_lif", source=f"{name}.attn_lif")
        y = self._project(f"{name}.proj", y, dim, v_mask if columns else None)
        return add(ops.Add(), (x, y), name=f"{name}.add")

    def _project(self, name: str, x: str, dim: int, columns: Array | None) -> str:
        y = self.linear(f"{name}_conv", x, dim)
        if columns is not None and columns.any():
            node = self.builder.nodes.pop(y)
            assert isinstance(node.op, ops.Linear)
            weight = node.op.weight.array().copy()
            weight[:, columns] = 0
            op = ops.Linear(Weight.dense(weight), node.op.bias)
            y = self.builder.add(op, node.inputs, name=node.name, source=node.source)
        return self.norm_fire(name, y)

    def mlp(self, name: str, x: str, hidden: int, masked: float = 0.0, columns: bool = True) -> str:
        """fc1, neuron, fc2, neuron and the residual."""
        dim = self.builder.value(x).shape[0]
        rows = self.mask((hidden,), masked)
        h = self.norm_fire(f"{name}.fc1", self.linear(f"{name}.fc1_conv", x, hidden, rows=rows))
        y = self._project(f"{name}.fc2", h, dim, rows if columns else None)
        return self.builder.add(ops.Add(), (x, y), name=f"{name}.add")

    def head(self, x: str, classes: int) -> Graph:
        """Mean over the tokens, mean over the steps, Linear."""
        add = self.builder.add
        axes = tuple(range(1, len(self.builder.value(x).shape)))
        y = add(ops.Reduce(axes, True), (x,), name="mean")
        y = add(ops.Readout("mean"), (y,), name="readout")
        y = self.linear("head", y, classes)
        add(ops.Output(), (y,), name="output")
        return validate(self.builder.build())


def _fire(op: ops.Neuron, drive: Array) -> Array:
    """Spikes of `op` on `drive [T, B, C, *spatial]`, through the interpreter."""
    builder = GraphBuilder(drive.shape[0])
    shape = drive.shape[2:]
    x = builder.add(ops.Input(shape, tuple(f"a{i}" for i in range(len(shape))), "TB"), name="input")
    s = builder.add(op, (x,), name="lif")
    builder.add(ops.Output("output", "TB"), (s,), name="output")
    return interpret(builder.build(), drive).spikes["lif"]
