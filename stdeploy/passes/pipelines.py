"""Which passes run for which target, in order."""

from __future__ import annotations

from stdeploy.passes.attention_order import AttentionOrder
from stdeploy.passes.base import Pass, PassError, PassResult, run_pipeline
from stdeploy.passes.common_subexpressions import CommonSubexpressions
from stdeploy.passes.constant_channels import ConstantChannels
from stdeploy.passes.dead_code import DeadCode
from stdeploy.passes.fold_affine import FoldAffine, FoldScale
from stdeploy.passes.fold_conv_chain import FoldConvChain
from stdeploy.passes.fold_lowrank import FoldLowRank
from stdeploy.passes.hoist_static import HoistStatic
from stdeploy.passes.pack_csr import PackCsr

__all__ = ["PIPELINES", "Pass", "PassError", "PassResult", "run_pipeline"]

# Affine first: a pruned row's drive is a plain bias then. Low rank after: a BatchNorm behind a factor pair
# folds into the outer factor either way.
_FOLD: tuple[Pass, ...] = (
    DeadCode(),
    FoldAffine(),
    FoldScale(),
    FoldConvChain(),
    FoldLowRank(),
)

# The order of attention before constant channels: both orders take a constant attention, but once it is there
# the order is fixed. Again after, since smaller heads can make Q (K^T V) the cheaper one.
_RUN: tuple[Pass, ...] = (
    *_FOLD,
    AttentionOrder(),
    ConstantChannels("fold"),
    CommonSubexpressions(),
    HoistStatic(),
    AttentionOrder(),
    PackCsr(),
)

# NIR and Lava have no bias per step; their exporters expand weights and lower either attention order themselves.
_EACH_STEP_ALIKE: tuple[Pass, ...] = (
    *_FOLD,
    ConstantChannels("keep"),
    CommonSubexpressions(),
    HoistStatic(),
)

PIPELINES: dict[str, tuple[Pass, ...]] = {
    "default": _RUN,
    "onnx": _RUN,
    "event": _RUN,
    "inspect": (*_FOLD, ConstantChannels("fold"), CommonSubexpressions(), HoistStatic()),
    "nir": _EACH_STEP_ALIKE,
    "lava": _EACH_STEP_ALIKE,
}
"""Passes by target name; "inspect" leaves weights and attention as they are."""
