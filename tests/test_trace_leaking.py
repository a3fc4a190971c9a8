"""Neurons called on [T*B, ...]: refused, or taken as the model is for one sample at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stdeploy.errors import UnsupportedError
from stdeploy.graph.interpreter import interpret
from stdeploy.trace import trace
from tests.families import FAMILIES
from tests.families.rows import inputs

FAMILY = FAMILIES["QKFormer, neuron over T*B"]


def test_refused_with_the_way_out() -> None:
    with pytest.raises(UnsupportedError) as caught:
        trace(FAMILY.build(), FAMILY.shape)
    (item,) = caught.value.items
    assert "leaks from sample to sample" in str(item) and "--assume-reset-per-sample" in str(item)


def test_one_sample_at_a_time() -> None:
    net = FAMILY.build().double()
    traced = trace(net, FAMILY.shape, assume_reset_per_sample=True)
    x = inputs(FAMILY).astype(np.float64)
    with torch.no_grad():
        alone = torch.cat([net(torch.as_tensor(x[i : i + 1])) for i in range(len(x))]).numpy()
        together = net(torch.as_tensor(x)).numpy()
    assert np.abs(alone - together).max() > 1e-3  # the published bug
    graph, model = interpret(traced.graph, x), traced.run(x)
    np.testing.assert_allclose(graph.outputs["output"], alone, rtol=1e-9)
    np.testing.assert_allclose(model.outputs["output"], alone, rtol=1e-9)
    assert graph.spikes.keys() == model.spikes.keys()
    for name, spikes in model.spikes.items():
        np.testing.assert_array_equal(spikes, graph.spikes[name], err_msg=name)
    assert 0.02 < model.spikes["attn.proj_lif"].mean() < 0.95
    flipped = {"attn.proj_lif": 1 - model.spikes["attn.proj_lif"]}
    taught, wanted = traced.run(x, flipped), interpret(traced.graph, x, forced=flipped)
    np.testing.assert_allclose(taught.outputs["output"], wanted.outputs["output"], rtol=1e-9)
    assert np.abs(taught.outputs["output"] - alone).max() > 1e-3


def test_the_flag_changes_nothing_else() -> None:
    family = FAMILIES["QKFormer"]
    traced = trace(family.build().double(), family.shape, assume_reset_per_sample=True)
    assert not traced.one_by_one
