"""What a count costs, ready to be read: totals per profile, layers, neurons, bounds, and the profiles themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stdeploy.energy.comparison import (
    Literature,
    literature,
    reconciliation_dict,
    reconciliation_table,
    view_table,
    views_dict,
)
from stdeploy.energy.ledger import LayerCount, Ledger
from stdeploy.energy.pictures import LABELS, unit_of
from stdeploy.energy.prices import (
    MEMORY,
    PARTS,
    Choices,
    Dense,
    Priced,
    bound,
    dense,
    dense_macs,
    estimate_dict,
    price,
    require_prices,
)
from stdeploy.energy.profile import Profile, profile_table
from stdeploy.energy.statistics import Estimate, Moments
from stdeploy.energy.tables import Cell, Column, Table, grouped, percent, significant
from stdeploy.energy.views import VIEWS

SYNAPTIC_ROLES = ("synapse", "attention", "product")


@dataclass(frozen=True)
class EnergyReport:
    """Energies of one counted network; `baseline` is another one to compare with, by the same prices."""

    ledger: Ledger
    literature: Literature
    priced: Sequence[Priced]
    bounds: Sequence[Profile]
    baseline: EnergyReport | None = None

    @classmethod
    def of(
        cls,
        ledger: Ledger,
        profiles: Sequence[Profile],
        choices: Choices,
        baseline: EnergyReport | None = None,
    ) -> EnergyReport:
        """Price a ledger; UserError where every profile is a bound."""
        require_prices(profiles)
        priced = [price(ledger, p, choices) for p in profiles if p.kind != "bound"]
        bounds = [p for p in profiles if p.kind == "bound"]
        return cls(ledger, literature(ledger), priced, bounds, baseline)

    def summary(self) -> list[Table]:
        """The tables that answer at once."""
        found = [self.totals(), *([self.against_baseline(self.baseline)] if self.baseline else [])]
        return [*found, *([self.bound_table()] if self.bounds else []), self.counts()]

    def dense(self, priced: Priced) -> Dense | None:
        """The equal-shape dense network, where the profile prices one."""
        return dense(self.ledger, priced) if priced.profile.kind == "arithmetic" else None

    def tables(self) -> list[Table]:
        """All tables; the first is the answer."""
        out = [self.totals()]
        if self.baseline:
            out.append(self.against_baseline(self.baseline))
        out += [self.parts(), self.counts()]
        if self.bounds:
            out.append(self.bound_table())
        if self.priced:
            out.append(self.layers(self.priced[0]))
        out += [reconciliation_table(self.ledger), view_table(self.ledger, tuple(VIEWS)), self.neurons()]
        return [*out, self.profile_table()]

    def totals(self) -> Table:
        """Per profile: three energies of the spiking network beside those of the dense one of equal shape."""
        factor, unit = unit_of(max((p.total.total.mean for p in self.priced), default=0.0))
        titles = ("literature", "synaptic", "±", "all parts", "± ", "dense", "dense, all")
        columns = [
            Column("profile", left=True),
            *(_energy(title, factor) for title in titles),
            Column("spiking/dense", significant_3),
            Column("rate", percent),
            Column("crossover", percent),
        ]
        rows: list[list[Cell]] = []
        for p in self.priced:
            d = self.dense(p)
            rows.append(
                [
                    p.profile.title,
                    self.literature.joules(p.profile),
                    p.total.synaptic.mean,
                    _half(p.total.synaptic),
                    p.total.total.mean,
                    _half(p.total.total),
                    d.synaptic_j if d else None,
                    d.total_j if d else None,
                    _ratio(p.total.total.mean, d.total_j) if d else None,
                    d.rate if d else None,
                    d.crossover if d else None,
                ]
            )
        note = (
            f"Mean over {self.ledger.samples:,} samples, ± half a 95 % interval; T = {self.ledger.steps}. "
            "Dense: one pass, one MAC a weight. Above the crossover rate spiking costs more."
        )
        missing = [
            f"{p.profile.name}: {', '.join(p.total.unpriced)}" for p in self.priced if p.total.unpriced
        ]
        note += f" Not priced on {'; on '.join(missing)}." if missing else ""
        return Table(f"Energy per sample, {unit}", columns, rows, note)

    def against_baseline(self, baseline: EnergyReport) -> Table:
        """Ratios of this network's energies to the baseline's."""
        columns = [
            Column("profile", left=True),
            Column("literature", significant_3),
            Column("exact synaptic", significant_3),
            Column("exact, all parts", significant_3),
        ]
        rows: list[list[Cell]] = [
            [
                mine.profile.title,
                _ratio(self.literature.joules(mine.profile), baseline.literature.joules(mine.profile)),
                _ratio(mine.total.synaptic.mean, theirs.total.synaptic.mean),
                _ratio(mine.total.total.mean, theirs.total.total.mean),
            ]
            for mine, theirs in zip(self.priced, baseline.priced, strict=True)
        ]
        note = "Below 1: cheaper than the baseline."
        if baseline.ledger.samples != self.ledger.samples:
            note += f" It was counted over other data: {baseline.ledger.samples:,} samples."
        return Table("Ratio to the baseline", columns, rows, note)

    def parts(self) -> Table:
        """What the energy goes into."""
        used = [part for part in PARTS if any(part in p.total.parts for p in self.priced)]
        factor, unit = unit_of(max((p.total.total.mean for p in self.priced), default=0.0))
        columns = [
            Column("profile", left=True),
            *(_energy(LABELS[part], factor) for part in used),
            Column("memory", left=True),
            Column("not priced", left=True),
        ]
        rows: list[list[Cell]] = []
        for p in self.priced:
            apart = (*MEMORY, "other") if p.profile.kind == "chip" else ()  # in the operation, or not priced
            values: list[Cell] = [
                p.total.parts[part].mean if part in p.total.parts and part not in apart else None
                for part in used
            ]
            where = p.memory or ("in the price" if p.profile.scope == "whole chip" else "in the operation")
            rows.append([p.profile.title, *values, where, ", ".join(p.total.unpriced)])
        return Table(f"Energy by part, {unit}", columns, rows)

    def counts(self) -> Table:
        """The counts of the network; all classes always, whatever the prices."""
        columns = [
            Column("counted", left=True),
            Column("mean", grouped),
            Column("SD", grouped),
            Column("± 95 %", grouped),
            Column("p5", grouped),
            Column("p95", grouped),
        ]
        rows = [_moments_row(_count_name(name), m) for name, m in self.ledger.network.each.items() if m.high]
        macs: list[Cell] = ["MACs of one dense pass", dense_macs(self.ledger), None, None, None, None]
        return Table("Counts per sample", columns, [*rows, macs])

    def bound_table(self) -> Table:
        """What processors need at least for the dense network, beside the spiking one's energies."""
        joules = [bound(self.ledger, p) for p in self.bounds]
        factor, unit = unit_of(max(joules, default=0.0))
        columns = [
            Column("processor", left=True),
            _energy(f"dense pass at peak, {unit}", factor),
            *(Column(f"{p.profile.name} / this", significant_3) for p in self.priced),
        ]
        rows = [
            [p.title, j, *(_ratio(q.total.total.mean, j) for q in self.priced)]
            for p, j in zip(self.bounds, joules, strict=True)
        ]
        note = "A lower bound: rated power over peak rate. Above 1 the spiking network costs more than the bound."
        return Table("Dense network on processors, at least", columns, rows, note)

    def layers(self, priced: Priced) -> Table:
        """Every layer with synaptic operations."""
        chosen = [layer for layer in self.ledger.layers if layer.role in SYNAPTIC_ROLES]
        factor, unit = unit_of(max((priced.layers[layer.name].total.mean for layer in chosen), default=0.0))
        whole = priced.total.total.mean
        columns = [
            Column("layer", left=True),
            Column("operator", left=True),
            Column("input", left=True),
            Column("rate", percent),
            Column("dense", grouped),
            Column("synops", grouped),
            Column("± 95 %", grouped),
            Column("unary", grouped),
            _energy(f"synaptic, {unit}", factor),
            _energy(f"all parts, {unit}", factor),
            Column("share", percent),
        ]
        rows = [self._layer_row(layer, priced, whole) for layer in chosen]
        return Table(f"Layers, {priced.profile.title}", columns, rows, _first_layer_note(chosen))

    def _layer_row(self, layer: LayerCount, priced: Priced, whole: float) -> list[Cell]:
        bill = priced.layers[layer.name]
        synapse = layer.role == "synapse"
        counted = layer.total["synops" if synapse else "coincidence"]
        return [
            layer.source or layer.name,
            layer.kind,
            layer.input_class,
            layer.rate() if synapse else None,
            layer.constant("dense"),
            counted.mean,
            _half(counted),
            layer.mean("unary"),
            bill.synaptic.mean,
            bill.total.mean,
            bill.total.mean / whole if whole else 0.0,
        ]

    def neurons(self) -> Table:
        """Firing rate of every neuron layer, over all steps and at each."""
        layers = self.ledger.of("neuron")
        steps = range(self.ledger.steps)
        columns = [
            Column("neurons", left=True),
            Column("number", grouped),
            Column("rate", percent),
            *(Column(f"t = {t + 1}", percent) for t in steps),
        ]
        rows: list[list[Cell]] = [
            [n.source or n.name, n.constants["clocked"], n.rate(), *(n.rate(t) for t in steps)]
            for n in layers
        ]
        return Table("Firing rates", columns, rows)

    def flat(self) -> Table:
        """A row per layer and one of the whole: counts per sample, and joules on every profile."""
        names = ("layer", "module", "operator", "role", "input", "runs")
        counted = ("dense", "connections", "events", "synops", "synops sd", "synops ci95", "unary", "spikes")
        columns = [*(Column(name, left=True) for name in names), *(Column(name) for name in counted)]
        for p in self.priced:
            columns += [Column(f"{p.profile.name} synaptic J"), Column(f"{p.profile.name} total J")]
        rows = [self._flat_row(layer) for layer in self.ledger.layers if layer.role != "order"]
        whole: list[Cell] = ["total", "", "", "", "", None, dense_macs(self.ledger), *[None] * 7]
        for p in self.priced:
            whole += [p.total.synaptic.mean, p.total.total.mean]
        return Table("Layers", columns, [*rows, whole])

    def _flat_row(self, layer: LayerCount) -> list[Cell]:
        found = layer.total.each
        synops = found.get("synops", found.get("coincidence"))
        sizes = [layer.constant(n) if n in layer.constants else None for n in ("dense", "connections")]
        means = {n: found[n].mean for n in ("events", "unary", "spikes") if n in found}
        row: list[Cell] = [layer.name, layer.source, layer.kind, layer.role, layer.input_class, layer.rows]
        row += [*sizes, means.get("events")]
        row += [synops.mean, synops.sd, _half(synops)] if synops else [None] * 3
        row += [means.get("unary"), means.get("spikes")]
        for p in self.priced:
            bill = p.layers[layer.name]
            row += [bill.synaptic.mean, bill.total.mean]
        return row

    def profile_table(self) -> Table:
        """The prices used, with their sources."""
        return profile_table([*(p.profile for p in self.priced), *self.bounds])

    def to_dict(self) -> dict[str, Any]:
        """The stable JSON form; the ledger itself is apart (`Ledger.to_json`)."""
        return {
            "samples": self.ledger.samples,
            "steps": self.ledger.steps,
            "graph": dict(self.ledger.graph),
            "literature": {"macs": self.literature.macs, "acs": self.literature.acs},
            "dense_macs": dense_macs(self.ledger),
            "views": views_dict(self.ledger),
            "reconciliation": reconciliation_dict(self.ledger),
            "counts": {name: _moments_dict(m) for name, m in self.ledger.network.each.items()},
            "energies": [self._energy_dict(p) for p in self.priced],
            "bounds": [{"profile": p.to_dict(), "dense_j": bound(self.ledger, p)} for p in self.bounds],
            "layers": [_layer_dict(layer) for layer in self.ledger.layers],
            "baseline": self.baseline.to_dict() if self.baseline else None,
        }

    def _energy_dict(self, priced: Priced) -> dict[str, Any]:
        d = self.dense(priced)
        return {
            "profile": priced.profile.to_dict(),
            "choices": vars(priced.choices),
            "memory": priced.memory,
            "literature_j": self.literature.joules(priced.profile),
            **priced.total.to_dict(),
            "dense": vars(d) if d else None,
            "layers": {
                name: {"synaptic_j": bill.synaptic.mean, "total": estimate_dict(bill.total)}
                for name, bill in priced.layers.items()
            },
        }


def significant_3(value: float) -> str:
    return significant(value, 3)


def _energy(title: str, factor: float) -> Column:
    return Column(title, significant, factor=factor)


def _half(value: Estimate | Moments) -> float | None:
    """Half the width of the 95 % interval; None for one sample."""
    ci = value.ci95
    return None if ci is None else (ci[1] - ci[0]) / 2


def _ratio(a: float, b: float) -> float | None:
    return a / b if b else None


def _count_name(name: str) -> str:
    static = name.startswith("static.")
    return f"{name.removeprefix('static.')}{' (once a sample)' if static else ''}"


def _moments_row(name: str, m: Moments) -> list[Cell]:
    return [name, m.mean, m.sd, _half(m), m.percentile(5), m.percentile(95)]


def _moments_dict(m: Moments) -> dict[str, Any]:
    ci = m.ci95
    return {
        "mean": m.mean,
        "sd": m.sd,
        "ci95": None if ci is None else list(ci),
        "min": m.low,
        "p5": m.percentile(5),
        "p95": m.percentile(95),
        "max": m.high,
    }


def _layer_dict(layer: LayerCount) -> dict[str, Any]:
    quantities: Mapping[str, Moments] = layer.total.each
    return {
        "name": layer.name,
        "source": layer.source,
        "operator": layer.kind,
        "role": layer.role,
        "input_class": layer.input_class,
        "time": layer.time,
        "constants": dict(layer.constants),
        "per_sample": {name: _moments_dict(m) for name, m in quantities.items()},
        "per_step": {name: [m.mean for m in rows] for name, rows in layer.steps.items()},
    }


def _first_layer_note(layers: Sequence[LayerCount]) -> str:
    static = [layer.source or layer.name for layer in layers if layer.time == "static"]
    if not static:
        return ""
    return f"Runs once a sample, its input being the same at every step: {', '.join(static)}."
