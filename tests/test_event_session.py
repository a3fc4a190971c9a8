"""Sessions of the event engine under hostile use: odd inputs, forced spikes, other programs, streams and copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stdeploy.errors import UserError
from stdeploy.exporters.event.container import Sev
from stdeploy.exporters.event.lower import lower
from stdeploy.graph import Graph, GraphBuilder, Weight, ops
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.weight import Array
from stdeploy.runtime.event import program
from stdeploy.runtime.event.session import EventSession
from tests.chains import chain
from tests.event import KERNELS, kernels, same, session
from tests.graphs import random_inputs, spikformer_graph
from tests.test_select import pruned


@pytest.fixture(scope="module")
def net() -> tuple[Graph, Array]:
    graph = spikformer_graph(steps=5, layout="TB", neurons="mixed")
    return graph, random_inputs(graph, 4)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (lambda x: x[:, :, :1], "the model takes 5xBx2x12x12"),
        (lambda x: x[0], "the model takes 5xBx2x12x12"),
        (lambda x: x.astype(complex), "complex128, not numbers"),
        (lambda x: x.astype(object), "object, not numbers"),
        (lambda x: "image.png", "not numbers"),
        (lambda x: None, "not numbers"),
    ],
)
def test_inputs_that_do_not_fit(net: tuple[Graph, Array], given: Callable[[Array], Any], text: str) -> None:
    graph, x = net
    with session(graph) as engine, pytest.raises(UserError, match=text):
        engine.run(given(x))


@pytest.mark.parametrize(
    "convert",
    [
        np.asfortranarray,
        lambda x: x[::1, ::-1][:, ::-1],
        lambda x: x.astype("f8"),
        lambda x: x.astype(">f4"),
        lambda x: x.tolist(),
    ],
)
def test_any_memory_layout_of_the_inputs_is_the_same(
    net: tuple[Graph, Array], convert: Callable[[Array], Any]
) -> None:
    graph, x = net
    with session(graph) as engine:
        same(engine.run(x), engine.run(convert(x)))


@pytest.mark.parametrize("kind", KERNELS)
def test_an_empty_batch_has_empty_outputs(kind: str) -> None:
    graph = pruned()
    x = random_inputs(graph, 1)
    with session(graph, kind, 2, counting=True) as engine:
        one, none = engine.run(x), engine.run(x[:, :0])
        assert none.outputs.keys() == one.outputs.keys() and none.selections.keys() == one.selections.keys()
        for label, array in one.outputs.items():
            assert none.outputs[label].shape == (array.shape[0], 0, *array.shape[2:])
        for name, array in {**one.spikes, **one.selections}.items():
            other = {**none.spikes, **none.selections}[name]
            assert other.shape == (array.shape[0], 0, *array.shape[2:]) and other.dtype == array.dtype
        assert all(counts.shape[0] == 0 for counts in engine.synops.values())


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("nobody", lambda s: s, "does not have: nobody"),
        ("head", lambda s: s, "does not have: head"),
        ("mlp", lambda s: s[:4], "have shape"),
        ("mlp", lambda s: s[:, :3], "have shape"),
        ("mlp", lambda s: s[:, :, :-1], "have shape"),
        ("mlp", lambda s: np.float32(1), "have shape"),
    ],
)
def test_forced_spikes_that_do_not_fit(
    net: tuple[Graph, Array], name: str, change: Callable[[Array], Any], text: str
) -> None:
    graph, x = net
    with session(graph) as engine:
        node = "block.0.mlp.fc1_lif"
        spikes = engine.run(x).spikes[node]
        with pytest.raises(UserError, match=text):
            engine.run(x, {node if name == "mlp" else name: change(spikes)})
        same(engine.run(x), engine.run(x, {node: spikes}))
        same(engine.run(x, {node: spikes[:, :1]}), engine.run(x, {node: np.repeat(spikes[:, :1], 4, axis=1)}))


def test_forced_tokens_are_held_against_the_tokens_that_there_are() -> None:
    graph = pruned()
    x = random_inputs(graph)
    with session(graph) as engine:
        free = engine.run(x)
        (name, chosen), *_ = free.selections.items()
        forced = engine.run(x, {name: np.roll(chosen, 1, axis=1)})
        wanted = interpret(graph, x, dtype=np.float32, forced={name: np.roll(chosen, 1, axis=1)})
        np.testing.assert_array_equal(forced.selections[name], chosen)
        for label, output in wanted.outputs.items():
            np.testing.assert_allclose(forced.outputs[label], output, rtol=1e-5, atol=1e-5)
        for wrong in (chosen + 1000, chosen - 1000, chosen[:, :, :-1], chosen[:, :2], chosen.astype(float)):
            with pytest.raises(UserError, match=f"forced positions of {name}"):
                engine.run(x, {name: wrong})
        same(engine.run(x), free)


@pytest.mark.parametrize("part", ["op", "field", "buffer", "arrays"])
def test_programs_of_another_version_say_so(net: tuple[Graph, Array], part: str) -> None:
    graph, x = net
    header, arrays = copy.deepcopy(lower(graph, {}))
    stage = header["stages"][3]
    if part == "op":
        stage["op"] = "Teleport"
    elif part == "field":
        stage["fields"]["teleport"] = 1
    elif part == "buffer":
        del header["buffers"][stage["places"]["y"]]
    else:
        del arrays["indices"]
    with EventSession(Sev(header, arrays)) as engine, pytest.raises(UserError, match="does not run"):
        engine.run(x)


def test_streams_go_past_the_last_step_but_not_past_its_parameters(net: tuple[Graph, Array]) -> None:
    graph, x = net
    longer = spikformer_graph(steps=5, layout="TB", neurons="mixed")
    with session(graph) as engine:
        for values in np.concatenate([x, x])[:, 0]:
            outputs = engine.step(values).outputs["output"]
        assert outputs.shape == (1, 5)
        mean = session(_with_steps(longer, 10))
        np.testing.assert_array_equal(mean.run(np.concatenate([x, x])[:, :1]).outputs["output"], outputs)
        with pytest.raises(UserError, match="the model takes"):
            engine.step(x[0])
    timed = ops.Linear(Weight.dense(np.eye(2, dtype=np.float32)), np.ones((3, 2), np.float32))
    with session(chain((2,), timed)) as engine:
        for _ in range(3):
            engine.step(np.ones(2))
        with pytest.raises(UserError, match="parameters for 3 steps"):
            engine.step(np.ones(2))
        engine.reset()
        engine.step(np.ones(2))


def _with_steps(graph: Graph, steps: int) -> Graph:
    builder = GraphBuilder(steps, graph.metadata)
    for node in graph:
        builder.add(node.op, node.inputs, name=node.name, source=node.source)
    return builder.build()


def test_a_batch_does_not_disturb_a_stream_nor_a_copy_the_first(net: tuple[Graph, Array]) -> None:
    graph, x = net
    with session(graph, threads=2) as engine:
        wanted = engine.run(x[:, :1])
        engine.step(x[0, 0])
        engine.run(x[::-1])
        engine.step(x[1, 0])
        for made in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine)), engine):
            for t in range(2, 5):
                last = made.step(x[t, 0])
            np.testing.assert_array_equal(last.outputs["output"], wanted.outputs["output"])
            same(made.run(x[:, :1]), wanted)


def test_the_program_is_compiled_once_for_all_of_this(net: tuple[Graph, Array], tmp_path: Path) -> None:
    """Arrays in memory and mapped ones are of one type."""
    graph, x = net
    Sev(*lower(graph, kernels(graph, "rows"))).write(tmp_path / "net.sev")
    with EventSession(tmp_path / "net.sev", 1) as mapped, session(graph) as engine:
        same(mapped.run(x), engine.run(x))
    assert len(program.run.signatures) == 1
