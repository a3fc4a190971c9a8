"""L1P and DSP pruning, sLIF replacement, quantised tau, synergistic fine-tuning and the papers' parameter count."""

from stdeploy.compress.api import Compressed, compress_checkpoint, prune
from stdeploy.compress.dsp import dva, prune_dsp, remove_dimensions
from stdeploy.compress.finetune import keeper, parameter_groups
from stdeploy.compress.l1p import l1p_mask, prune_l1p
from stdeploy.compress.ledger import ParameterCount, count_parameters
from stdeploy.compress.masks import Masks, PruningRecord, apply_masks
from stdeploy.compress.neurons import replace_lif
from stdeploy.compress.tau import quantise_tau

__all__ = [
    "Compressed",
    "Masks",
    "ParameterCount",
    "PruningRecord",
    "apply_masks",
    "compress_checkpoint",
    "count_parameters",
    "dva",
    "keeper",
    "l1p_mask",
    "parameter_groups",
    "prune",
    "prune_dsp",
    "prune_l1p",
    "quantise_tau",
    "remove_dimensions",
    "replace_lif",
]
