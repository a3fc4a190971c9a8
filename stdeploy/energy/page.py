"""The report as one HTML file: pictures and tables, nothing fetched from anywhere, light or dark as the reader's."""

from __future__ import annotations

import html
from collections.abc import Iterator

from stdeploy.energy.pictures import layer_bars, rate_map
from stdeploy.energy.report import EnergyReport

_CSS = """
:root { color-scheme: light dark; --rule: #d0d0d0; --soft: #666; --head: #f3f3f3; --page: #fff; --ink: #1b1b1b }
@media (prefers-color-scheme: dark) {
  :root { --rule: #444; --soft: #a5a5a5; --head: #262626; --page: #161616; --ink: #e6e6e6 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 1180px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2.4rem }
.note, .facts { color: var(--soft); font-size: .87rem } .wide { overflow-x: auto }
figure { margin: 1rem 0 1.6rem } figcaption { font-weight: 600; margin-bottom: .3rem }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums }
th { background: var(--head); text-align: right; vertical-align: bottom } th:first-child { text-align: left }
th, td { border-bottom: 1px solid var(--rule); padding: .25rem .55rem; text-align: right; white-space: nowrap }
td.left { text-align: left } .prose td.left { white-space: normal; vertical-align: top; min-width: 5rem }
svg { max-width: 100%; height: auto }
"""


def page(report: EnergyReport, title: str) -> str:
    """The whole file. UserError where matplotlib is missing."""
    first = report.priced[0]
    before = report.baseline
    baseline = (before.ledger, before.priced[0]) if before else None
    tables = report.tables()
    behind = "; outlines: the baseline" if baseline else ""
    shown = 2 if before else 1
    blocks = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p class='facts'>{html.escape(_facts(report))}</p>",
        *(table.html() for table in tables[:shown]),
        "<h2>Where the energy goes</h2>",
        _figure(
            f"Energy per layer, {first.profile.title}{behind}", layer_bars(report.ledger, first, baseline)
        ),
        "<h2>Who fires when</h2>",
        *_rate_maps(report),
        "<h2>Tables</h2>",
        *(table.html() for table in tables[shown:-1]),
        "<h2>Prices and their sources</h2>",
        f"<div class='prose'>{tables[-1].html()}</div>",
    ]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{html.escape(title)}</title>\n<style>{_CSS}</style></head>\n<body>\n"
        + "\n".join(blocks)
        + "\n</body></html>\n"
    )


def _rate_maps(report: EnergyReport) -> Iterator[str]:
    ledgers = {"Neurons that fire, in %, by layer and step": report.ledger}
    if report.baseline:
        ledgers["The same for the baseline"] = report.baseline.ledger
    for caption, ledger in ledgers.items():
        yield _figure(caption, rate_map(ledger)) if ledger.of("neuron") else "<p>There are no neurons.</p>"


def _facts(report: EnergyReport) -> str:
    graph = report.ledger.graph
    parts = [str(graph[key]) for key in ("source", "counted") if key in graph]
    return "; ".join([*parts, f"{report.ledger.samples:,} samples, T = {report.ledger.steps}"])


def _figure(caption: str, svg: str) -> str:
    label = html.escape(caption)
    return f"<figure><figcaption>{label}</figcaption>\n<div class='wide' role='img' aria-label='{label}'>{svg}</div></figure>"
