"""The files of an exported folder."""

from __future__ import annotations

FORMAT = 1
"""Version of network.json; run.py in the folder reads its own only."""

NETWORK, WEIGHTS, PROGRAM = "network.json", "weights.npz", "run.py"
