"""Every weight in its smaller form: CSR where its float32 bytes are fewer, dense otherwise.

CSR holds 4 bytes of value and 4 of column index for each nonzero and 4 of row pointer for each row; dense
holds 4 for every element. So CSR pays below a density of 1/2 - (rows + 1) / (2 size), never above 1/2. The
rule is about storage, the one thing a graph knows; whether a runtime executes a sparse kernel is its own
decision, from the same density.
"""

from __future__ import annotations

from dataclasses import replace

from stdeploy.graph import Graph, GraphBuilder, Node, Weight, rewrite
from stdeploy.graph.ops import Conv, Linear
from stdeploy.passes.base import PassResult


def csr_bytes(weight: Weight) -> int:
    """Bytes of float32 CSR with 32-bit indices."""
    return 8 * weight.nnz + 4 * (weight.shape[0] + 1)


def dense_bytes(weight: Weight) -> int:
    """Bytes of a dense float32 array."""
    return 4 * weight.size


class PackCsr:
    """Store each weight in its smaller form."""

    name = "pack-csr"

    def run(self, graph: Graph) -> PassResult:
        """Exact: the stored numbers are the same."""
        notes: list[str] = []

        def visit(builder: GraphBuilder, node: Node, inputs: tuple[str, ...]) -> str | None:
            op = node.op
            if not isinstance(op, Linear | Conv):
                return None
            before, after = dense_bytes(op.weight), csr_bytes(op.weight)
            if (after < before) == op.weight.is_csr:
                return None
            values = op.weight.array()
            weight = Weight.csr(values) if after < before else Weight.dense(values)
            kind = "CSR" if after < before else "dense"
            notes.append(
                f"{node.name}: {kind}, density {op.weight.density:.3f}, {min(before, after)} bytes of "
                f"{max(before, after)}"
            )
            return builder.add(replace(op, weight=weight), inputs, name=node.name, source=node.source)

        out = rewrite(graph, visit)
        return PassResult(out if notes else graph, bool(notes), tuple(notes))
