"""Chip budgets: what a network needs in neurons and synapses, and which published limits of a chip that exceeds."""

from stdeploy.chips.budget import Budget, Finding, Population, judge, measure_network
from stdeploy.chips.network import Network, read_network
from stdeploy.chips.profile import Chip, load_chip, shipped

__all__ = [
    "Budget",
    "Chip",
    "Finding",
    "Network",
    "Population",
    "judge",
    "load_chip",
    "measure_network",
    "read_network",
    "shipped",
]
