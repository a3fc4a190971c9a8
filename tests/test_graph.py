"""Graph structure, validator, weights, printer and file form."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stdeploy.errors import UserError
from stdeploy.graph import Graph, GraphBuilder, GraphError, Weight, ops, rewrite, validate
from stdeploy.graph.file import load_graph, save_graph
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.printer import print_graph
from stdeploy.graph.value import Domain


def network(seed: int = 0) -> Graph:
    """conv -> neuron -> pool -> linear (CSR) -> neuron -> residual -> readout, with awkward numbers."""
    rng = np.random.default_rng(seed)
    sparse = rng.standard_normal((4, 4)) * (rng.random((4, 4)) < 0.5)
    builder = GraphBuilder(3, {"model": "net", "passes": ["none"]})
    x = builder.add(ops.Input((2, 6, 5), ("channel", "y", "x"), "BT"), name="input")
    w = Weight.dense(rng.standard_normal((4, 2, 3, 3)))
    x = builder.add(ops.Conv(w, rng.standard_normal(4), (1, 2), (1, 0), (1, 1)), (x,), name="stem.conv")
    tau = np.array([1.5, 2.0, 2.5, 3.0])
    first = ops.Neuron(tau, np.array(0.4), np.array(-0.1), True, "sLIF", np.array([0, 2, 3, 5]))
    x = builder.add(first, (x,), name="stem.lif", source="stem.lif")
    x = builder.add(ops.MaxPool((2, 1), (2, 1), (0, 0), (1, 1)), (x,), name="stem.pool")
    y = builder.add(
        ops.Linear(Weight.csr(sparse), rng.standard_normal((3, 4))), (x,), name="fc", source="block.fc"
    )
    y = builder.add(ops.Neuron(None, np.array(0.5), None, kind="IF"), (y,), name="lif")
    y = builder.add(ops.Add(), (x, y), name="add")
    y = builder.add(ops.Readout("mean"), (y,), name="mean")
    builder.add(ops.Output("logits"), (y,), name="output")
    return builder.build()


def test_values_carry_time_and_domain() -> None:
    graph = validate(network())
    assert graph["stem.lif"].value.domain.kind == "spike"
    assert graph["add"].value.domain == Domain(1.0, 2)
    assert graph["mean"].value.time == "final"
    assert graph["mean"].value.domain == Domain(1 / 3, 6)
    assert graph["stem.conv"].value.shape == (4, 6, 2)
    assert [n.name for n in graph.users()["stem.pool"]] == ["fc", "add"]


def test_every_operator_says_its_equation() -> None:
    for name, cls in ops.CATALOGUE.items():
        assert cls.__doc__, name
        assert cls.infer is not ops.Op.infer, name


def test_the_builder_names_the_node_that_does_not_fit() -> None:
    builder = GraphBuilder(2)
    x = builder.add(ops.Input((3,), ("channel",)), name="input")
    with pytest.raises(GraphError, match=r"block\.fc: Linear: weight \(2, 4\) does not take \(3,\)"):
        builder.add(ops.Linear(Weight.dense(np.zeros((2, 4)))), (x,), name="fc", source="block.fc")
    with pytest.raises(GraphError, match="reads \\['nowhere'\\]"):
        builder.add(ops.Scale(1.0), ("nowhere",), name="scale")
    with pytest.raises(GraphError, match="takes 2 inputs"):
        builder.add(ops.Add(), (x,), name="add")


def test_the_validator_lists_every_broken_rule() -> None:
    graph = network()
    nodes = dict(graph.nodes)
    lif = nodes["lif"]
    nodes["lif"] = dataclasses.replace(lif, value=dataclasses.replace(lif.value, time="static"))
    fc = nodes["fc"].op
    assert isinstance(fc, ops.Linear)
    broken = dataclasses.replace(fc, bias=np.full(4, np.nan))
    nodes["fc"] = dataclasses.replace(nodes["fc"], op=broken)
    nodes["bad name"] = dataclasses.replace(nodes["mean"], name="bad name")
    with pytest.raises(GraphError) as caught:
        validate(Graph(3, nodes))
    text = str(caught.value)
    assert "lif: carries" in text and "fc: bias is not finite" in text and "bad name 'bad name'" in text


def test_the_validator_refuses_a_final_value_in_a_step() -> None:
    builder = GraphBuilder(2)
    x = builder.add(ops.Input((3,), ("channel",), "TB"), name="input")
    mean = builder.add(ops.Readout("mean"), (x,), name="mean")
    with pytest.raises(GraphError, match="only after all steps"):
        builder.add(ops.Neuron(np.array(2.0), np.array(1.0), np.array(0.0)), (mean,), name="lif")
    with pytest.raises(GraphError, match="only after all steps"):
        builder.add(ops.Add(), (x, mean), name="add")


def test_rewrite_copies_what_is_not_visited() -> None:
    graph = network()
    copy = rewrite(graph, lambda builder, node, inputs: None)
    assert print_graph(copy) == print_graph(graph)
    without = rewrite(graph, lambda b, node, inputs: inputs[0] if node.name == "stem.pool" else None)
    assert "stem.pool" not in without.nodes
    assert without["add"].inputs == ("stem.lif", "lif")


def test_print_shows_value_operator_and_module_path() -> None:
    text = print_graph(network())
    assert text.splitlines()[0] == "graph steps=3 nodes=9 neurons=2"
    assert "%fc: [channel:4,y:3,x:2] step real = Linear(weight=csr[4, 4] float64" in text
    assert "# block.fc" in text and "tau=[4] in [1.5, 3]" in text


def test_file_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    graph = network()
    path = save_graph(graph, tmp_path / "net.stg")
    again = load_graph(path)
    assert print_graph(again) == print_graph(graph)
    assert dict(again.metadata) == dict(graph.metadata)
    x = np.random.default_rng(1).standard_normal((3, 3, 2, 6, 5))
    a, b = interpret(graph, x), interpret(again, x)
    np.testing.assert_array_equal(a.outputs["logits"], b.outputs["logits"])
    assert 0 < a.spikes["lif"].mean() < 1 and 0 < a.spikes["stem.lif"].mean() < 1
    np.testing.assert_array_equal(again["stem.lif"].op.kept, [0, 2, 3, 5])


def _rewrite_archive(path: Path, change: object) -> None:
    with np.load(path) as archive:
        entries = {name: archive[name] for name in archive.files}
    change(entries)
    with path.open("wb") as stream:
        np.savez(stream, **entries)


def test_a_damaged_graph_file_is_refused(tmp_path: Path) -> None:
    path = save_graph(network(), tmp_path / "net.stg")
    whole = path.read_bytes()

    def flip(entries: dict[str, np.ndarray]) -> None:
        entries["a0"] = entries["a0"] + 1

    _rewrite_archive(path, flip)
    with pytest.raises(UserError, match="checksum"):
        load_graph(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a stdeploy graph"):
        load_graph(path)
    path.write_bytes(whole)

    def age(entries: dict[str, np.ndarray]) -> None:
        document = json.loads(entries["graph.json"].tobytes())
        document["version"] = 99
        entries["graph.json"] = np.frombuffer(json.dumps(document).encode(), np.uint8)

    _rewrite_archive(path, age)
    with pytest.raises(UserError, match="version 99"):
        load_graph(path)
    with pytest.raises(UserError, match="does not exist"):
        load_graph(tmp_path / "none.stg")


def test_saving_where_nothing_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        save_graph(network(), tmp_path / "no" / "net.stg")
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=5),
        elements=st.sampled_from([0.0, 0.0, 1.5, -2.0, 3e-30]),
    )
)
def test_csr_and_dense_are_inverse(values: np.ndarray) -> None:
    sparse, dense = Weight.csr(values), Weight.dense(values)
    np.testing.assert_array_equal(sparse.array(), values)
    assert sparse.nnz == dense.nnz == np.count_nonzero(values)
    assert sparse.shape == dense.shape and sparse.dtype == dense.dtype
    np.testing.assert_array_equal(sparse.zero_rows(), dense.zero_rows())
    np.testing.assert_array_equal(sparse.zero_columns(), dense.zero_columns())
    assert sparse.indptr is not None and sparse.indptr[-1] == sparse.nnz


def test_a_weight_does_not_follow_later_edits_of_its_source() -> None:
    source = np.ones((2, 2))
    weight = Weight.dense(source)
    source[0, 0] = 5
    assert weight.array()[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        weight.array()[0, 0] = 2
