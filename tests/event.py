"""What the tests of the event engine share: sessions in memory, the kernels to try, streams, counts to hold them against."""

from __future__ import annotations

from typing import Any

import numpy as np

from stdeploy.energy.counting import count
from stdeploy.exporters.event.container import Sev
from stdeploy.exporters.event.lower import lower
from stdeploy.graph import Graph, ops
from stdeploy.graph.execution import Execution
from stdeploy.graph.weight import Array
from stdeploy.runtime.event.session import EventSession

KERNELS = ("rows", "columns", "mixed")
_COUNTED = {"synapse": "synops", "attention": "coincidence", "product": "coincidence"}


def kernels(graph: Graph, kind: str) -> dict[str, str]:
    """A kernel for every product: one for all, or (`mixed`) each in turn."""
    products = [n.name for n in graph if isinstance(n.op, ops.Linear | ops.Conv)]
    return {n: ("rows", "columns")[i % 2] if kind == "mixed" else kind for i, n in enumerate(products)}


def session(graph: Graph, kind: str = "rows", threads: int = 1, *, counting: bool = False) -> EventSession:
    """The graph's program, in memory."""
    return EventSession(Sev(*lower(graph, kernels(graph, kind))), threads, counting=counting)


def frames_of(engine: EventSession, sample: Array) -> list[Array | None]:
    """What `step` is given for one sample `[1, ...]` of a batch in the input's layout."""
    layout = engine.header["input"]["layout"]
    if layout == "B":
        return [sample[0], *([None] * (engine.steps - 1))]
    return list(sample[:, 0] if layout == "TB" else sample[0])


def same(one: Execution, other: Execution) -> None:
    """Bit for bit."""
    for a, b in (
        (one.outputs, other.outputs),
        (one.spikes, other.spikes),
        (one.selections, other.selections),
    ):
        assert a.keys() == b.keys()
        for name, array in a.items():
            assert array.dtype == b[name].dtype
            np.testing.assert_array_equal(array, b[name], err_msg=name)


def streamed_as_batched(engine: EventSession, sample: Array) -> None:
    """A stream of one sample yields the spikes, outputs and counts of the batch, step by step.

    What follows a readout is done at every step of a stream: each has its outputs.
    """
    after = {s["nodes"][0] for s in engine.header["stages"] if s["counted"] == "static" and not s["once"]}
    whole = engine.run(sample)
    counts = {name: counted[0] for name, counted in engine.synops.items()}
    engine.reset()
    for t, values in enumerate(frames_of(engine, sample)):
        found = engine.step(values, spikes=True)
        for name, spikes in found.spikes.items():
            np.testing.assert_array_equal(spikes[0], whole.spikes[name][t], err_msg=f"{name}, step {t}")
        for name, kept in found.selections.items():
            own = whole.selections[name]
            np.testing.assert_array_equal(kept[0], own[t if len(own) > 1 else 0], err_msg=name)
        for name, counted in engine.synops.items():
            row = counts[name]
            wanted = row[t] if len(row) > 1 or t == 0 else 0
            if name in after:
                if t < engine.steps - 1:
                    continue
                wanted = row[0]
            assert counted[0, 0] == wanted, f"{name}, step {t}"
    for out in engine.header["outputs"]:
        label, last = out["label"], found.outputs[out["label"]]
        if out["stepped"]:
            last = last[:, 0] if out["layout"] == "BT" else last[0]
            wanted = whole.outputs[label][:, -1] if out["layout"] == "BT" else whole.outputs[label][-1]
        else:
            wanted = whole.outputs[label]
        np.testing.assert_array_equal(last, wanted, err_msg=label)


def counted_as_energy(graph: Graph, engine: EventSession, inputs: Array, found: Execution) -> None:
    """The engine's operations are `stdeploy energy`'s: product by product, sample by sample, step by step."""
    op: Any = graph.inputs[0].op
    axis = 1 if op.layout == "TB" else 0
    wanted: dict[str, list[list[int]]] = {}
    for k in range(inputs.shape[axis]):
        ledger = count(
            graph,
            np.take(inputs, [k], axis=axis),
            {name: spikes[:, k : k + 1] for name, spikes in found.spikes.items()},
            selections={name: kept[:, k : k + 1] for name, kept in found.selections.items()},
        )
        for layer in ledger.layers:
            if layer.role in _COUNTED:
                rows = [moments.total for moments in layer.steps[_COUNTED[layer.role]]]
                wanted.setdefault(layer.name, []).append(rows)
    assert {name: counts.tolist() for name, counts in engine.synops.items()} == wanted
