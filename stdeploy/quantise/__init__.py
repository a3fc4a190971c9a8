"""Quantising the membrane time constants of a layer to a few levels, and what that changes, measured."""

from stdeploy.quantise.clusters import best_clusters
from stdeploy.quantise.effect import Effect, Inputs, batches, measure
from stdeploy.quantise.file import quantise_file
from stdeploy.quantise.tau import TauLayer, TauRecord, channel_weights, level_layer, quantise_graph

__all__ = [
    "Effect",
    "Inputs",
    "TauLayer",
    "TauRecord",
    "batches",
    "best_clusters",
    "channel_weights",
    "level_layer",
    "measure",
    "quantise_file",
    "quantise_graph",
]
