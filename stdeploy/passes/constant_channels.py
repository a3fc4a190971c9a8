"""Channels that need not be computed, removed without changing a spike of those that stay.

A pruned row still drives its neuron with bias and BatchNorm shift: x_j[t] = b_j. Such a channel fires a fixed
train s_j[t] (hard reset to 0, decayed input: with period ceil(ln(1 - v_th / b) / ln(1 - 1 / tau))), so dropping
it changes the network wherever it fires and is read. Where it goes instead:

    hidden unit, value channel       weighed with zero    removed
    hidden unit                      silent               removed
                                     fires                bias per step sum_j W[:, j] s_j[t], or, where a bias
                                                          cannot change over time, one unit per distinct train
                                                          with the summed columns
    value channel of Q K^T V         silent               removed
                                     fires                its output follows Q K^T: kept, once per head and train
    q_j and k_j constant             one silent, or never
                                     at the same step     removed
                                     fire together        c_h[t] = sum_j q_j[t] k_j[t] added to the head's scores;
                                                          in the order Q (K^T V): c_h[t] sum_n v[n]; or kept
    only one of q_j, k_j constant    silent               removed, with its partner
                                     fires                kept
    q (sum over tokens of k v)       constant train       bias per step of what reads it
    sum over channels of q           constant             added to the sum, per step

Trains are simulated in float64 and float32; where they differ, or a membrane comes within rounding of its
threshold, the channel is not taken as constant. A channel that anything else reads (a residual, an output)
stays. The facts are in channel_facts, the rules above in channel_needs, the rewriting in channel_slices.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from stdeploy.graph import Graph, Node
from stdeploy.graph.ops import Conv, Linear
from stdeploy.passes.base import PassResult
from stdeploy.passes.channel_needs import Constants, Needs
from stdeploy.passes.channel_slices import slice_channels
from stdeploy.passes.dead_code import without_dead


@dataclass(frozen=True)
class ConstantChannels:
    """Remove every channel that the table lets go, until nothing more goes.

    `constants`: "fold" turns firing constants into biases and attention constants per step; "keep" leaves
    those that change over the steps as neurons, merged where equal, for targets without time-dependent
    biases (NIR, Lava). `Neuron.kept` of every neuron says which channels of the source's are left.
    """

    constants: Constants = "fold"

    @property
    def name(self) -> str:
        return "constant-channels" if self.constants == "fold" else "constant-channels-keep"

    def run(self, graph: Graph) -> PassResult:
        """See the module's table; weights that two nodes share become each node's own."""
        notes: list[str] = []
        modified = False
        while True:
            graph, dead = without_dead(graph)
            modified |= bool(dead)
            needs = Needs(graph, self.constants)
            if all(needs.of[n.name].all() for n in graph if n.name not in needs.inside):
                break
            notes += _removed(graph, needs) + _shared(graph, needs)
            graph, held = slice_channels(graph, needs)
            notes += held
            modified = True
        return PassResult(graph, modified, (*notes, *_stayed(graph, needs)))


def _removed(graph: Graph, needs: Needs) -> list[str]:
    notes = []
    for node in graph.neurons:
        facts, gone = needs.facts[node.name], ~needs.of[node.name]
        if not gone.any():
            continue
        silent = int((gone & facts.silent).sum())
        firing = int((gone & facts.constant).sum()) - silent
        other = int(gone.sum()) - silent - firing
        parts = (
            (silent, "silent"),
            (firing, "constant and firing"),
            (other, "not needed or equal to another"),
        )
        what = ", ".join(f"{count} {kind}" for count, kind in parts if count)
        notes.append(f"{node.name}: removed {int(gone.sum())} of {gone.size} channels ({what})")
    return notes


def _shared(graph: Graph, needs: Needs) -> list[str]:
    weighted = [(n, n.op.weight) for n in graph if isinstance(n.op, Linear | Conv)]
    uses = Counter(id(w) for _, w in weighted)
    cut = [n.name for n, w in weighted if uses[id(w)] > 1 and not _whole(needs, n)]
    return [f"{', '.join(cut)}: the shared weight becomes each one's own"] if cut else []


def _whole(needs: Needs, node: Node) -> bool:
    return all(bool(needs.of[name].all()) for name in (node.name, *node.inputs))


def _stayed(graph: Graph, needs: Needs) -> list[str]:
    notes = []
    users = graph.users()
    for node in graph.neurons:
        facts = needs.facts[node.name]
        readers = ", ".join(f"{u.name} ({u.kind})" for u in users[node.name])
        if count := int(facts.near.sum()):
            notes.append(
                f"{node.name}: {count} channels with a constant drive stay: float32 rounding may decide a spike"
            )
        if count := int((facts.constant & ~facts.silent).sum()):
            notes.append(f"{node.name}: {count} channels that fire a constant train stay, read by {readers}")
        if count := int(facts.silent.sum()):
            notes.append(f"{node.name}: {count} silent channels stay, read by {readers}")
    return notes
