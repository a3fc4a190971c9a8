"""What the tests of the command line share: a graph and data as files, and the program as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from stdeploy.graph import Graph
from stdeploy.graph.file import save_graph
from tests.graphs import every_layer_fires, random_inputs

ROOT = Path(__file__).resolve().parent.parent


def saved(graph: Graph, samples: int, name: str = "net", data: str = "data") -> None:
    """The graph in NAME.stg, here; in DATA.npz inputs that have every layer fire, and labels."""
    save_graph(graph, f"{name}.stg")
    images = random_inputs(graph, samples, 1)
    assert every_layer_fires(graph, images)
    np.savez(f"{data}.npz", images=images, labels=np.arange(samples) % graph.outputs[0].value.shape[0])


def program(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A process of its own; `options` are subprocess.run's."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "stdeploy.cli", *arguments]
    return subprocess.run(command, check=False, text=True, env=environment, **streams)
