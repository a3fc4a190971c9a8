"""One row of the table: a net written in every dialect and run in every reader that the dialect was proven in."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stdeploy.exporters.nir import export
from stdeploy.exporters.nir.dialect import DEFAULT, load_dialect, names
from stdeploy.graph import Graph, ops
from stdeploy.graph.execution import Execution
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.weight import Array
from stdeploy.parity import Report
from stdeploy.runtime.nir_file import NirFile
from stdeploy.runtime.nir_readers import NirReader
from stdeploy.verify import compare_all
from tests.conformance.models import MODELS
from tests.conformance.net import inputs
from tests.conformance.operators import OPERATORS

DIALECTS = names()
ARRAYS = "arrays"
READERS = [(dialect, reader.name) for dialect in DIALECTS for reader in load_dialect(dialect).readers]
"""Every dialect with every reader that it says it was proven in: the columns."""


@functools.lru_cache
def row(name: str) -> tuple[str, ...]:
    """Name, spikes compared by each reader, and a cell for each of READERS: `=`, or what differs."""
    if name in OPERATORS:
        spikes, cells = operator(OPERATORS[name]())
    else:
        spikes, cells = whole(name)
    return (name, f"{spikes:,}", *(cells[column] for column in READERS))


def operator(graph: Graph) -> tuple[int, dict[tuple[str, str], str]]:
    """Every reader against the float64 interpreter: free, with every spike forced to its opposite, and again."""
    x = inputs(graph)
    want = interpret(graph, x)
    for name, spikes in want.spikes.items():
        if not 0 < spikes.mean() < 1:
            raise AssertionError(f"{name} is silent or saturated: the comparison would be vacuous")
    swapped = {n: 1 - s for n, s in want.spikes.items()}
    forced = interpret(graph, x, forced=swapped)
    cells = {}
    with tempfile.TemporaryDirectory() as folder:
        for column, runner in readers(graph, Path(folder)).items():
            faults = [
                fault
                for given, wanted in ((None, want), (swapped, forced), (None, want))
                for fault in _faults(wanted, runner.run(x, given))
            ]
            cells[column] = ", ".join(dict.fromkeys(faults)) or "="
    return sum(s.size for s in want.spikes.values()), _every_column(cells)


def readers(graph: Graph, folder: Path) -> dict[tuple[str, str], NirReader]:
    """The graph's file in each dialect, loaded by each of its readers; `arrays` only where it is another file."""
    out = {}
    for dialect in DIALECTS:
        if dialect == ARRAYS and not several_taus(graph):
            continue
        export(graph, folder / f"{dialect}.nir", {"dialect": dialect})
        file = NirFile(folder / f"{dialect}.nir")
        out |= {(of, reader): NirReader(file, reader) for of, reader in READERS if of == dialect}
    return out


def several_taus(graph: Graph) -> bool:
    """Whether a layer has more than one tau; else `arrays` writes the nodes that DEFAULT writes."""
    taus = [node.op.tau for node in graph if isinstance(node.op, ops.Neuron) and node.op.tau is not None]
    return any(np.unique(tau).size > 1 for tau in taus)


def _every_column(cells: Mapping[tuple[str, str], str]) -> dict[tuple[str, str], str]:
    """What a reader gave for a file, also where another dialect writes the same."""
    return {column: cells.get(column) or cells[DEFAULT, column[1]] for column in READERS}


def _faults(want: Execution, got: Execution) -> list[str]:
    out = [] if want.spikes.keys() == got.spikes.keys() else ["other neuron layers"]
    out += [f"{n} differs" for n, s in want.spikes.items() if not np.array_equal(got.spikes.get(n), s)]
    return out + _outputs(want.outputs, got.outputs)


def _outputs(want: Mapping[str, Array], got: Mapping[str, Array]) -> list[str]:
    """Outputs are real: within float32 rounding of a few sums."""
    return [
        f"output {label} differs"
        for label, array in want.items()
        if got[label].shape != array.shape or not np.allclose(got[label], array, 1e-5, 1e-5)
    ]


def whole(name: str) -> tuple[int, dict[tuple[str, str], str]]:
    """Every reader judged by stdeploy.verify, teacher-forced."""
    net = MODELS[name]()
    with tempfile.TemporaryDirectory() as folder:
        runners = readers(net.exported, Path(folder))
        reports = compare_all(
            net.reference, list(runners.values()), net.graph, net.inputs, exported=net.exported
        )
    cells = dict(zip(runners, map(_verdict, reports), strict=True))
    return reports[0].spikes_compared, _every_column(cells)


def _verdict(report: Report) -> str:
    silent = [layer.name for layer in report.layers if not 0 < layer.firing_rate < 1]
    if silent:
        return f"vacuous: {', '.join(silent)}"
    if not report.ok:
        return "; ".join(report.problems)
    return f"= but {report.spike_mismatches} by rounding" if report.spike_mismatches else "="


def table() -> str:
    """The markdown table of every net."""
    head = ("net", "spikes", *(f"{reader}, {dialect}" for dialect, reader in READERS))
    lines = [head, ("---", "--:", *("---" for _ in READERS))]
    lines += [row(name) for name in (*OPERATORS, *MODELS)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
