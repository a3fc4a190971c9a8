"""A graph file to one with few tau a layer: models of the user's own code, traced once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from stdeploy.errors import UserError
from stdeploy.graph import Graph
from stdeploy.graph.file import SUFFIX, load_graph, save_graph
from stdeploy.graph.interpreter import Interpreter
from stdeploy.quantise.effect import Effect, Inputs, batches, measure
from stdeploy.quantise.tau import TauRecord, channel_weights, quantise_graph


def quantise_file(
    path: Path, out: Path, levels: int, data: Callable[[Graph], Inputs]
) -> tuple[TauRecord, Effect]:
    """Write a graph file with at most `levels` distinct tau a layer; what it changes on `data` (stdeploy.quantise)."""
    if out.suffix != SUFFIX:
        raise UserError(f"{out} does not end in {SUFFIX}, as graph files do", hint="change -o")
    graph = load_graph(path)
    given = data(graph)
    weights = channel_weights(graph, batches(graph, given.inputs) if given.real else ())
    quantised, record = quantise_graph(graph, levels, weights, weighted=given.real)
    before, after = Interpreter(graph, np.float32), Interpreter(quantised, np.float32)
    effect = measure(before, after, graph, given.inputs, given.labels)
    save_graph(quantised, out)
    return record, effect
