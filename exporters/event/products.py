"""Linear and Conv as stages: rows of dense weights at active inputs, or sparse columns over masked positions."""

from __future__ import annotations

import numpy as np

from stdeploy.exporters.event import pack
from stdeploy.exporters.event.formats import Layout
from stdeploy.exporters.event.lowering import Lowering, fused, neuron_by_channel, once
from stdeploy.exporters.event.stages import LANES
from stdeploy.graph import ops
from stdeploy.graph.graph import Node
from stdeploy.graph.weight import Array


def product(work: Lowering, node: Node) -> None:
    """Linear and Conv, with the neuron that alone reads the sums."""
    op = node.op
    if not isinstance(op, ops.Linear | ops.Conv):
        raise TypeError(f"{node.name} is not a product")
    x = work.graph[node.inputs[0]]
    windows = (
        pack.identity(work.draft.layout(x.name).positions)
        if isinstance(op, ops.Linear)
        else pack.windows(op, x.value.shape[1:], node.value.shape[1:])
    )
    if takes_columns(op, work.draft.layout(x.name)) and work.kernels.get(node.name, "rows") == "columns":
        _columns(work, node, op, x, windows)
    else:
        _rows(work, node, op, x, windows)


def takes_columns(op: ops.Linear | ops.Conv, layout: Layout) -> bool:
    """Whether the kernel `columns` can do a product: a convolution unfolds its input, and only bits are unfolded."""
    return isinstance(op, ops.Linear) or layout.planes > 0


def _bias(work: Lowering, bias: Array | None, outputs: int, room: bool) -> tuple[int, int]:
    """Place of a bias and its stride from step to step."""
    if bias is None:
        return -1, 0
    values = np.asarray(bias, np.float32)
    values = pack.padded(values, outputs, 0) if room else values
    return work.draft.floats.add(values), values.shape[-1] if values.ndim == 2 else 0


def _rows(work: Lowering, node: Node, op: ops.Linear | ops.Conv, x: Node, windows: pack.Windows) -> None:
    draft, layout = work.draft, work.draft.layout(x.name)
    bits = layout.planes > 0
    place = draft.need(x.name, "position bits" if bits else "position floats")
    target, neuron = fused(work, node)
    outputs = node.value.shape[0]
    blocks, vectors = pack.blocks_of(outputs)
    touched = pack.touched(op, layout.channels)
    weight, nonzero = pack.rows(op, touched, layout.unit if bits else 1.0)
    bias, stride = _bias(work, op.bias, outputs, room=True)
    fields = {
        "x_floats": not bits,
        "planes": layout.planes,
        "x_positions": layout.positions,
        "channels": layout.channels,
        "positions": windows.positions,
        "outputs": outputs,
        "vectors": vectors,
        "blocks": blocks,
        "inputs": windows.taps * layout.channels,
        "weight": draft.floats.add(weight),
        "nonzero": draft.ints.add(nonzero),
        "bias": bias,
        "bias_stride": stride,
        "parts": draft.ints.add(pack.parts(touched)),
        "taps": windows.taps,
        "visits": draft.ints.add(windows.visits()),
    }
    state = 0
    if neuron is not None:
        values, kind = pack.neuron(neuron, outputs)
        room = pack.padded(values, outputs, 0)
        room[0, outputs:], room[2, outputs:] = 1, np.inf  # channels that are not there never fire
        fields |= {"neuron": draft.floats.add(room), "kind": kind}
        state = windows.positions * blocks * vectors * LANES
    y = draft.hold(target, "position bits" if neuron else "position floats")
    names = [node.name] if neuron is None else [node.name, target.name]
    steps = {"steps": target.value.time == "step"}
    draft.stage("Rows", names, {"x": place, "y": y}, fields, steps, state=state, once=once(target))


def _unfold(work: Lowering, x: Node, op: ops.Conv, windows: pack.Windows) -> str:
    """Bits of every (tap, channel) of a convolution's input, made once for all that see the same windows."""
    draft, layout = work.draft, work.draft.layout(x.name)
    key = (x.name, op.weight.shape[2:], op.stride, op.padding, op.dilation)
    if key not in work.unfolded:
        place = draft.need(x.name, "channel bits")
        count = layout.planes * windows.taps * layout.channels * -(-windows.positions // 64)
        name = draft.buffer(
            f"{x.name} unfolded for {'x'.join(map(str, key[1]))} {len(draft.stages)}",
            "bits",
            count,
            layout.stepped,
        )
        fields = {
            "planes": layout.planes,
            "channels": layout.channels,
            "x_positions": layout.positions,
            "positions": windows.positions,
            "taps": windows.taps,
            "shifts": draft.ints.add(windows.shifts()),
        }
        draft.stage(
            "Unfold", [x.name], {"x": place, "y": name}, fields, {"steps": layout.stepped}, once=once(x)
        )
        work.unfolded[key] = name
    return work.unfolded[key]


def _columns(work: Lowering, node: Node, op: ops.Linear | ops.Conv, x: Node, windows: pack.Windows) -> None:
    draft, layout = work.draft, work.draft.layout(x.name)
    floats = isinstance(op, ops.Linear) and layout.planes != 1
    if isinstance(op, ops.Conv):
        place = _unfold(work, x, op, windows)
    else:
        place = draft.need(x.name, "channel floats" if floats else "channel bits")
    target, neuron = fused(work, node)
    outputs = node.value.shape[0]
    weights = pack.matrix(op)
    weights.sort_indices()
    bias, stride = _bias(work, op.bias, outputs, room=False)
    fields = {
        "x_floats": floats,
        "planes": layout.planes,
        "inputs": windows.taps * layout.channels,
        "positions": windows.positions,
        "outputs": outputs,
        "ends": draft.ints.add(weights.indptr),
        "columns": draft.ints.add(weights.indices),
        "data": draft.floats.add(pack.unit_scaled(weights.data, 1.0 if floats else layout.unit)),
        "fan_out": draft.ints.add(np.bincount(weights.indices, minlength=weights.shape[1])),
        "bias": bias,
        "bias_stride": stride,
    }
    if neuron is not None:
        fields |= neuron_by_channel(draft, neuron, outputs)
    y = draft.hold(target, "channel bits" if neuron else "channel floats")
    names = [node.name] if neuron is None else [node.name, target.name]
    steps = {"steps": target.value.time == "step"}
    state = outputs * windows.positions if neuron else 0
    draft.stage("Columns", names, {"x": place, "y": y}, fields, steps, state=state, once=once(target))
