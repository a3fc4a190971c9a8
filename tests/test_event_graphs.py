"""Random graphs in the event engine: every operator and kind of neuron, against the interpreter."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from stdeploy.graph import Graph
from stdeploy.graph.interpreter import Interpreter, interpret
from stdeploy.verify import batch_axis, compare
from tests.event import KERNELS, counted_as_energy, same, session, streamed_as_batched
from tests.random_graphs import eighths_batch, graphs

SOME = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
)


def is_exact(graph: Graph, x: np.ndarray) -> bool:
    """Whether float32 rounds nothing on these numbers, as far as float64 can tell."""
    fine = interpret(graph, x, membranes=True)
    coarse = interpret(graph, x, dtype=np.float32, membranes=True)
    pairs = [(fine.membranes, coarse.membranes), (fine.outputs, coarse.outputs)]
    return all(np.array_equal(a[name], b[name]) for a, b in pairs for name in a)


@SOME
@given(graph=graphs(), kind=st.sampled_from(KERNELS), threads=st.sampled_from([1, 1, 2]))
def test_random_graphs_are_proven_streamed_and_counted(graph: Graph, kind: str, threads: int) -> None:
    x = eighths_batch(graph)
    reference = Interpreter(graph, np.float32)
    with session(graph, kind, threads, counting=True) as engine:
        if graph.neurons:
            assert not compare(reference, engine, graph, x).problems
        found, wanted = engine.run(x), reference.run(x)
        if is_exact(graph, x):
            for name, spikes in wanted.spikes.items():
                np.testing.assert_array_equal(found.spikes[name], spikes, err_msg=name)
            for label, output in wanted.outputs.items():
                np.testing.assert_array_equal(found.outputs[label], output, err_msg=label)
        else:
            forced = engine.run(x, {**wanted.spikes, **wanted.selections})
            for label, output in wanted.outputs.items():
                np.testing.assert_allclose(forced.outputs[label], output, rtol=1e-4, atol=1e-4)
        found = engine.run(x)
        counted_as_energy(graph, engine, x, found)
        streamed_as_batched(engine, np.take(x, [1], axis=batch_axis(graph)))
        same(found, engine.run(x))
