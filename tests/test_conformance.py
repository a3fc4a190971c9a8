"""Every operator and whole nets in every dialect and reader; the table of docs/nir.md is what they give."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from stdeploy.exporters.nir import export
from stdeploy.exporters.nir.dialect import load_dialect
from stdeploy.graph.ops import CATALOGUE
from stdeploy.runtime.nir_readers import READERS as EXECUTORS
from tests.conformance.models import MODELS
from tests.conformance.operators import OPERATORS, neuron
from tests.conformance.rows import ARRAYS, READERS, operator, row, several_taus, table

DOCS = Path(__file__).parent.parent / "docs" / "nir.md"


@pytest.mark.parametrize("name", [*OPERATORS, *MODELS])
def test_every_reader_spikes_as_the_model(name: str) -> None:
    for column, cell in zip(READERS, row(name)[2:], strict=True):
        assert re.fullmatch(r"=( but \d by rounding)?", cell), (column, cell)
        assert cell == "=" or name in MODELS


def test_every_operator_that_nir_takes_has_a_net() -> None:
    used = {node.kind for build in OPERATORS.values() for node in build()}
    assert set(CATALOGUE) - used <= {"Select"}


def test_the_portable_dialect_is_proven_in_every_reader() -> None:
    assert {reader.name for reader in load_dialect("portable").readers} == set(EXECUTORS)


@pytest.mark.parametrize("name", ["IF, undecayed input, T = 9", "MatMul (QKᵀ)V, ragged heads, 3x5"])
def test_arrays_is_the_portable_file_where_every_layer_has_one_tau(name: str, tmp_path: Path) -> None:
    """So that the table needs to run it only where it is another one."""
    graph = OPERATORS[name]()
    assert not several_taus(graph) and several_taus(OPERATORS["tau, threshold, reset per channel"]())
    found = []
    for dialect in ("portable", ARRAYS):
        export(graph, tmp_path / "net.nir", {"dialect": dialect})
        with h5py.File(tmp_path / "net.nir") as file:
            found.append(contents(file["node/nodes"], "nodes") | contents(file["node/edges"], "edges"))
    assert list(found[0]) == list(found[1]) and len(found[0]) > 20
    for key, array in found[0].items():
        np.testing.assert_array_equal(array, found[1][key], err_msg=key)


def contents(item: h5py.Group | h5py.Dataset, name: str) -> dict[str, Any]:
    if isinstance(item, h5py.Dataset):
        return {name: item[()]}
    return {k: v for key, inner in item.items() for k, v in contents(inner, f"{name}/{key}").items()}


def test_docs_show_the_table() -> None:
    text = DOCS.read_text(encoding="utf-8")
    shown = text.split("<!-- conformance -->")[1].split("<!-- /conformance -->")[0]
    assert without_rounding(shown.strip()) == without_rounding(table())


def without_rounding(text: str) -> str:
    """How many spikes at the threshold float32 flips depends on the order in which a machine adds."""
    return re.sub(r"= but \d+ by rounding", "=", text)


def test_the_comparison_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    from stdeploy.exporters.nir import emit

    graph = neuron("B", 5, True)
    monkeypatch.setattr(emit.np, "nextafter", lambda level, _: np.float32(level) + np.float32(0.25))
    _, cells = operator(graph)
    assert set(cells.values()) == {"lif differs, output logits differs"}
