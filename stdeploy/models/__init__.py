"""The compressed Spikformer family and its neurons, as PyTorch modules."""

from stdeploy.models.calibration import calibrate_batchnorm
from stdeploy.models.neurons import LIF, SLIF
from stdeploy.models.presets import spikformer_cifar10, spikformer_cifar10_dvs, spikformer_imagenet
from stdeploy.models.spikformer import BlockDims, Spikformer, SpikformerConfig

__all__ = [
    "LIF",
    "SLIF",
    "BlockDims",
    "Spikformer",
    "SpikformerConfig",
    "calibrate_batchnorm",
    "spikformer_cifar10",
    "spikformer_cifar10_dvs",
    "spikformer_imagenet",
]
