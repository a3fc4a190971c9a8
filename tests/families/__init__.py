"""Small faithful models of the published spiking transformer families, written from their descriptions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from stdeploy.models.calibration import calibrate_batchnorm
from stdeploy.trace import TracedModel, trace
from tests.families.maxformer import MaxFormer
from tests.families.meta import MetaSpikeFormer
from tests.families.parts import STEPS
from tests.families.qkformer import QKFormer
from tests.families.sdt import SpikeDrivenTransformer
from tests.families.spikformer import Spikformer
from tests.families.spikingformer import Spikingformer
from tests.families.stata import Stata

IMAGE, FRAMES = (3, 12, 8), (STEPS, 2, 12, 8)


@dataclass(frozen=True)
class Family:
    """`refused`: a part of the reason for which the trace refuses it (None: it does not), by default.

    `nir`: parts of the reasons for which NIR refuses it (empty: it does not).
    """

    factory: Callable[[], nn.Module]
    shape: tuple[int, ...] = IMAGE
    layout: str = "B"
    refused: str | None = None
    nir: tuple[str, ...] = ()
    one_by_one: bool = False

    def traced(self, net: nn.Module) -> TracedModel:
        """`net` traced as the user would."""
        return trace(net, self.shape, layout=self.layout, assume_reset_per_sample=self.one_by_one)

    def build(self) -> nn.Module:
        """The model in evaluation mode, calibrated so that every neuron layer fires and none is saturated."""
        torch.manual_seed(0)
        net = self.factory().eval()
        generator = torch.Generator().manual_seed(1)
        calibrate_batchnorm(net, torch.randn(6, *self.shape, generator=generator), rate=0.4)
        return net


MAXIMUM = "a maximum over real values"
TOKENS = (
    "do not depend on values",
    "only a scale inside",
    "lists the positions",
    "concatenation along positions",
    "slice along positions",
    "reduction over axes",
)
"""What NIR lacks for a pruned list of tokens."""

FAMILIES: dict[str, Family] = {
    "Spikformer, Linear, (QKᵀ)V": Family(partial(Spikformer, "linear")),
    "Spikformer, Conv1d, Q(KᵀV)": Family(partial(Spikformer, "conv1d", "kv")),
    "Spikformer, Conv2d, fused qkv": Family(partial(Spikformer, "conv2d", "kv", fused=True)),
    "Spikformer, event frames, scale 0.25": Family(
        partial(Spikformer, "conv1d", "qk", 0.25, inputs=2), FRAMES, "BT"
    ),
    "Spikformer, IAND residuals": Family(partial(Spikformer, "conv1d", iand=True)),
    "Spikformer, scores of every step": Family(partial(Spikformer, "linear", output="steps")),
    "Spikformer, scores and features": Family(
        partial(Spikformer, "conv2d", output="tuple"), nir=("one edge into one output",)
    ),
    "Spikingformer": Family(Spikingformer),
    "Spikingformer, event frames": Family(partial(Spikingformer, inputs=2), FRAMES, "BT"),
    "Spikingformer, CML": Family(partial(Spikingformer, cml=True), nir=(MAXIMUM,)),
    "Spike-driven Transformer V1": Family(partial(SpikeDrivenTransformer, late_pooling=True), nir=(MAXIMUM,)),
    "Spike-driven Transformer V1, pooled spikes": Family(SpikeDrivenTransformer),
    "Meta-SpikeFormer (V2)": Family(MetaSpikeFormer),
    "QKFormer": Family(QKFormer, nir=(MAXIMUM,)),
    "QKFormer, neuron over T*B": Family(partial(QKFormer, leaky=True), refused="leaks from sample to sample"),
    "QKFormer, neuron over T*B, --assume-reset-per-sample": Family(
        partial(QKFormer, leaky=True), nir=(MAXIMUM,), one_by_one=True
    ),
    "Spikformer, tokens pruned (STATA)": Family(Stata, nir=TOKENS),
    "Spikformer, tokens pruned, kept in place": Family(partial(Stata, by_index=True), nir=TOKENS),
    "Max-Former": Family(MaxFormer, (3, 24, 16), nir=(MAXIMUM,)),
}
"""By name, as the README lists them."""
