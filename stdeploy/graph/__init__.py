"""The intermediate graph: nodes over named axes, its validator, printer, file form and interpreter."""

from stdeploy.graph.graph import Graph, GraphBuilder, GraphError, Node, ParameterError, rewrite
from stdeploy.graph.validate import validate
from stdeploy.graph.value import REAL, SPIKE, Domain, Value
from stdeploy.graph.weight import Weight

__all__ = [
    "REAL",
    "SPIKE",
    "Domain",
    "Graph",
    "GraphBuilder",
    "GraphError",
    "Node",
    "ParameterError",
    "Value",
    "Weight",
    "rewrite",
    "validate",
]
