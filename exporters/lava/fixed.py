"""A plan in Lava's fixed-point rules: 8-bit weights, 17-bit thresholds, 13-bit biases, 24-bit states.

A population and the one Sparse that drives it share a scale s, integers per unit of the membrane. Lava computes
(lava.proc.sparse.models, lava.proc.lif.models)

    a = (W s_in) 2^exponent          W even in [-256, 254], or of one sign in [-255, 0] or [0, 255]
    v = trunc(v (4096 - dv) / 4096) + 64 a + (bias_mant << bias_exp),     fires at v > 64 vth

so W = s unit(s_in) w 2^-exponent rounded, vth = ceil(s threshold) - 1 (the model fires at >=), dv = 4096 / tau. s is as
large as W, the sum's 18 bits, threshold and bias allow. Spikes and counts are integers already; sums of real numbers
before a neuron have no common scale and are refused.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy import sparse

from stdeploy.errors import Unsupported
from stdeploy.exporters.lava.linear_map import LinearMap
from stdeploy.exporters.lava.plan import Attention, Delay, InputRange, Plan, Population, Source, Synapses
from stdeploy.graph.value import Domain
from stdeploy.graph.weight import Array

WEIGHT, SUM, THRESHOLD = 254, 1 << 17, (1 << 17) - 1
BIAS_MANTISSA, BIAS_EXPONENT = 4095, 7
LEAK_UNIT = 4096
ALIGN_BITS = 6
ALIGN = 1 << ALIGN_BITS
SMALLEST_EXPONENT, LARGEST_EXPONENT = -8, 7
MOST_DELAY = 63
"""Steps of a DelaySparse beyond Sparse's one (6 bits)."""


def input_range(domain: Domain, unit: float, limit: int) -> InputRange:
    """Counts keep their own unit; real values get the options'."""
    if domain.maximum is None:
        return InputRange(unit, limit)
    return InputRange(domain.scale, domain.maximum)


def quantise(plan: Plan, inputs: InputRange) -> tuple[Plan, list[Unsupported]]:
    """The plan with integers in place of reals, and what has none."""
    out = Plan(
        inputs=plan.inputs, valid=plan.valid, neurons=plan.neurons, output=plan.output,
        output_offset=plan.output_offset, input_range=inputs,
    )  # fmt: skip
    refused: list[Unsupported] = []
    driven = {
        source: name
        for name, process in plan.processes.items()
        if isinstance(process, Population) and process.role == "model"
        for source in plan.inputs[name]["a_in"]
    }
    bounds: dict[str, int] = {}
    units: dict[str, float] = {}
    scales: dict[str, float] = {}
    for name, process in plan.processes.items():
        sources = [s for port in plan.inputs[name].values() for s in port]
        bound = sum(bounds[s] for s in sources)
        unit = units[sources[0]] if sources else inputs.unit
        bounds[name], units[name] = bound, unit
        if not refused and len({units[s] for s in sources}) > 1:
            refused.append(_mixed(name, type(process).__name__))
        if isinstance(process, Source):
            bounds[name] = inputs.limit
        elif isinstance(process, Synapses):
            target = plan.processes[driven[name]] if name in driven else None
            if isinstance(target, Population):
                process, scales[driven[name]] = _drive(process, target, bound, unit)
            elif name in plan.output and len(plan.output) == 1:
                process, scale = _weights(process, bound, unit, math.inf)
                units[name] = 1 / scale
            elif not _counts(process.map.matrix):
                refused.append(
                    Unsupported(name, "Synapses", "a sum of real numbers before a neuron has no common 8-bit scale",
                                "export in floating point (without --fixed)")
                )  # fmt: skip
            bounds[name] = bound * int(abs(process.map.matrix).sum(axis=1).max())
        elif isinstance(process, Delay) and process.steps - 1 > MOST_DELAY:
            refused.append(
                Unsupported(name, "Delay", f"{process.steps} steps are more than Loihi's 6 bits hold")
            )
        elif isinstance(process, Population):
            process = _population(process, scales.get(name))
            bounds[name], units[name] = 1, 1.0
        elif isinstance(process, Attention):
            bounds[name] = process.tokens * max(process.heads_q)
        out.processes[name] = process
    out.output_unit = units[plan.output[0]]
    if not refused and len({units[s] for s in plan.output}) > 1:
        refused.append(_mixed("", "Output"))
    return out, refused


def _mixed(name: str, kind: str) -> Unsupported:
    return Unsupported(
        name, kind, "it sums the input's integers and spikes, whose units differ",
        "export in floating point (without --fixed)",
    )  # fmt: skip


def _counts(matrix: sparse.csr_matrix) -> bool:
    """Whether Lava keeps the weights as they are: small integers of one sign."""
    data = matrix.data
    whole = np.all((data == np.round(data)) & (np.abs(data) <= WEIGHT))
    return bool(whole and (np.all(data >= 0) or np.all(data <= 0)))


def _drive(synapses: Synapses, target: Population, bound: int, unit: float) -> tuple[Synapses, float]:
    most = THRESHOLD / max(target.threshold, 1e-30)
    if target.bias is not None and target.bias.any():
        largest = float(np.abs(target.bias).max())
        most = min(most, (BIAS_MANTISSA << BIAS_EXPONENT) / (ALIGN * largest))
    return _weights(synapses, bound, unit, most)


def _weights(synapses: Synapses, bound: int, unit: float, most: float) -> tuple[Synapses, float]:
    """Integer weights and the scale s that they carry."""
    matrix = synapses.map.matrix
    largest = float(np.abs(matrix.data).max(initial=0.0))
    if largest == 0.0:
        zeros = _like(synapses.map, np.zeros_like(matrix.data))
        return replace(synapses, map=zeros), most if math.isfinite(most) else 1.0
    # scaled so that the largest weight uses its 8 bits; a scale beyond `most` or the sum's range is shifted away
    weights, step = _rounded(matrix.data, WEIGHT / largest)
    exact = LinearMap(sparse.csr_matrix((weights, matrix.indices, matrix.indptr), shape=matrix.shape))
    rows = np.asarray(abs(exact.matrix).sum(axis=1)).max()
    # a coarse weight is shifted up, for the sake of the threshold and the bias beside it
    finest = 2.0**-LARGEST_EXPONENT if math.isfinite(most) else 1.0
    excess = max(rows * bound / (SUM - 1), step / unit / most, finest)
    exponent = -math.ceil(math.log2(excess))
    if exponent < SMALLEST_EXPONENT:
        weights, step = _rounded(matrix.data, WEIGHT / largest * 2.0 ** (exponent - SMALLEST_EXPONENT))
        exponent = max(exponent, SMALLEST_EXPONENT)
    return replace(synapses, map=_like(synapses.map, weights), exponent=exponent), step / unit * 2.0**exponent


def _rounded(data: Array, step: float) -> tuple[Array, float]:
    """Integers near step * data that Lava's clip and truncation leave as they are."""
    if np.all(data >= 0) or np.all(data <= 0):
        return np.clip(np.round(data * step), -255, 255).astype(np.int64), step
    return 2 * np.clip(np.round(data * step / 2), -128, 127).astype(np.int64), step


def _like(linear: LinearMap, weights: Array) -> LinearMap:
    matrix = linear.matrix
    whole = sparse.csr_matrix((weights, matrix.indices, matrix.indptr), shape=matrix.shape)
    whole.eliminate_zeros()
    return LinearMap(whole, linear.positions)


def _population(population: Population, scale: float | None) -> Population:
    if scale is None:  # a unit: integers in, thresholds between two of them; the bias aligned as they are
        whole = None if population.bias is None else np.round(population.bias).astype(np.int64)
        threshold = math.floor(population.threshold)
        return replace(population, leak=LEAK_UNIT, threshold=threshold, bias=whole, bias_exponent=ALIGN_BITS)
    bias, exponent = None, 0
    if population.bias is not None:
        wanted = population.bias * scale * ALIGN
        largest = float(np.abs(wanted).max(initial=0.0))
        exponent = max(0, math.ceil(math.log2(max(largest, 1.0) / BIAS_MANTISSA)))
        bias = np.clip(np.round(wanted / 2**exponent), -BIAS_MANTISSA - 1, BIAS_MANTISSA).astype(np.int64)
    return replace(
        population,
        leak=round(population.leak * LEAK_UNIT),
        threshold=math.ceil(population.threshold * scale) - 1,
        bias=bias,
        bias_exponent=exponent,
    )
