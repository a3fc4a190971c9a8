"""The event engine's time against sparsity and firing rate, beside the synaptic operations that it counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stdeploy.energy.pictures import Panel, Series, curves

_TIME = {"color": "#0072b2", "marker": "o", "linewidth": 1.6, "markersize": 5}
_WORK = {"color": "#d55e00", "marker": "s", "linewidth": 1.6, "markersize": 5, "linestyle": "--"}
_OTHER = {"color": "#8f8f8f", "marker": "^", "linewidth": 1.2, "markersize": 4}


def draw(document: dict[str, Any]) -> str:
    """An SVG of three panels; all curves are relative to the dense network at 8 %."""
    nets = {net["name"]: net for net in document["nets"]}
    by_sparsity = [n for n in nets.values() if n["rate"] == 0.08 and n["method"] != "dsp"]
    panels = [
        _panel(document, "L1P, 8 % of neurons fire", "sparsity p of the blocks", by_sparsity, _sparsity)
    ]
    for title, sparsity in (("dense", 0.0), ("L1P 90%", 0.9)):
        line = [n for n in nets.values() if n["sparsity"] == sparsity and n["method"] != "dsp"]
        panels.append(_panel(document, title, "firing rate of neurons", line, lambda n: n["rate"]))
    return curves(panels, columns=3, page=True)


def _sparsity(net: dict[str, Any]) -> float:
    return float(net["sparsity"])


def _panel(
    document: dict[str, Any],
    title: str,
    label: str,
    nets: list[dict[str, Any]],
    where: Callable[[dict[str, Any]], float],
) -> Panel:
    nets = sorted(nets, key=where)
    (dense,) = (n for n in document["nets"] if n["name"] == "dense-8")
    ms, base = document["curves"]["ms"], document["curves"]["ms"]["dense-8"]
    places = range(len(nets))
    series = [
        Series("event engine, time", places, [ms[n["name"]] / base for n in nets], _TIME),
        Series("synaptic operations", places, [n["synops"] / dense["synops"] for n in nets], _WORK),
    ]
    if all(n["against"] for n in nets):
        best = [_best(n) / _engine(dense) for n in nets]
        series.append(Series("best other runtime, time", places, best, _OTHER))
    ticks = [(i, f"{round(100 * where(n))}%") for i, n in enumerate(nets)]
    return Panel(title, label, "relative to dense at 8%", series, ticks, 1.0, from_zero=True)


def _engine(net: dict[str, Any]) -> float:
    return float(net["against"][0]["ms"]["event"])


def _best(net: dict[str, Any]) -> float:
    point = net["against"][0]
    return float(point["ms"][point["best_other"]])
