"""Why the papers' formula and the exact count differ: named terms that close to zero for every layer.

All arithmetic is exact (fractions), so a remainder of zero is zero. Terms are what the literature's number adds to the
exact one, per sample:

repetition      a static layer, charged at every step but run once
rate            a real-valued layer, charged as if every input were nonzero
padding         connections that reach over the border
zero weights    connections whose weight is zero
covariance      events that meet another fan-out than the mean: rate x connections - exact
pairing         of a product: min(rate, rate) in place of rate x rate
coincidence     of a product: rate x rate x dense - exact pairs with both nonzero
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from stdeploy.energy.ledger import LayerCount, Ledger
from stdeploy.energy.views import literature, mean, rate, repeats

TERMS = ("repetition", "rate", "padding", "zero weights", "covariance", "pairing", "coincidence")


@dataclass(frozen=True)
class Reconciliation:
    """One layer: literature = exact + sum of terms."""

    layer: str
    literature: Fraction
    exact: Fraction
    terms: Mapping[str, Fraction]

    @property
    def remainder(self) -> Fraction:
        """What no term explains: zero."""
        return self.literature - self.exact - sum(self.terms.values(), Fraction(0))


def reconcile(ledger: Ledger) -> tuple[Reconciliation, ...]:
    """Every layer that the papers' formula counts, in order."""
    out = []
    for layer in ledger.layers:
        numbers = literature(layer, ledger)
        if numbers is not None:
            exact, terms = _synapse(layer, ledger) if layer.role == "synapse" else _product(layer, ledger)
            filled = {name: terms.get(name, Fraction(0)) for name in TERMS}
            out.append(Reconciliation(layer.name, sum(numbers.values(), Fraction(0)), exact, filled))
    return tuple(out)


def _synapse(layer: LayerCount, ledger: Ledger) -> tuple[Fraction, dict[str, Fraction]]:
    share, exact = rate(layer, "events", "inputs"), mean(layer, "synops")
    padded, dense, connections = (layer.constant(name) for name in ("dense_padded", "dense", "connections"))
    charged = Fraction(padded) if layer.input_class == "real" else share * padded
    return exact, {
        "repetition": (repeats(layer, ledger) - 1) * charged,
        "rate": charged - share * padded,
        "padding": share * (padded - dense),
        "zero weights": share * (dense - connections),
        "covariance": share * connections - exact,
    }


def _product(layer: LayerCount, ledger: Ledger) -> tuple[Fraction, dict[str, Fraction]]:
    left, right = rate(layer, "left_events", "left"), rate(layer, "right_events", "right")
    dense, exact = layer.constant("dense"), mean(layer, "coincidence")
    return exact, {
        "repetition": (repeats(layer, ledger) - 1) * min(left, right) * dense,
        "pairing": (min(left, right) - left * right) * dense,
        "coincidence": left * right * dense - exact,
    }
