"""A diagram as a self-contained SVG: system fonts, no scripts, readable by screen readers and in the dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from xml.sax.saxutils import escape

from stdeploy.drawing.blocks import MODEL, REFUSED, Block, Diagram, Link
from stdeploy.drawing.layout import Box, Layout, layout

COLOURS: Mapping[str, str] = {
    MODEL: "#2b6cb0",
    "attention": "#c05621",
    "pooling": "#2f855a",
    REFUSED: "#c53030",
}
"""Neurons by role; each has a contrast above 4.5 to white."""

_OTHER = "#4a5568"
_SIZE, _LINE, _PAD, _BAR = 12.0, 17.0, 10.0, 8.0
_CHARACTER = 0.63 * _SIZE
"""Width of a character: monospace fonts have at most 0.602 em, and a stand-in may be a little wider."""

_FONT = f'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="{_SIZE:g}"'
_TIP = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L8 4L0 8z" fill="#4a5568"/></marker></defs>'
)

_MARGIN = 24.0
_MOST_LAYERS = 10
"""Neuron layers that a block lists."""


def render(diagram: Diagram, title: str, facts: Sequence[str]) -> str:
    """The picture as text; `facts` are lines below the title."""
    texts = [_lines(block) for block in diagram.blocks]
    sizes = [_size(lines, bool(block.neurons)) for block, lines in zip(diagram.blocks, texts, strict=True)]
    plan = layout(sizes, [(link.source, link.target) for link in diagram.links])
    roles = [(role, n) for role, n in diagram.roles.items() if n]
    head = [title, *facts]
    legend = [f"{n:,} {_role(role)}" for role, n in roles]
    top = _MARGIN + _LINE * (len(head) + 1) + (_LINE if legend else 0)
    legend_width = sum(len(text) * _CHARACTER + 34 for text in legend)
    width = 2 * _MARGIN + max(plan.width, legend_width, *(len(text) * _CHARACTER for text in head))
    height = top + plan.height + _MARGIN
    shift = (width - plan.width) / 2
    size = f'width="{width:.0f}" height="{height:.0f}"'
    view = f'viewBox="0 0 {width:.0f} {height:.0f}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="title desc" {size} {view} {_FONT}>',
        f'<title id="title">{escape(title)}</title>',
        f'<desc id="desc">{escape(_description(diagram))}</desc>',
        _TIP,
        f'<rect {size} fill="#ffffff"/>',
        *_heading(head),
        *_legend(roles, legend, _MARGIN + _LINE * len(head) + 4),
        f'<g transform="translate({shift:.1f} {top:.1f})">',
        *_links(diagram.links, plan),
        *(_block(b, t, box) for b, t, box in zip(diagram.blocks, texts, plan.boxes, strict=True)),
        *_labels(diagram.links, plan),
        "</g>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _lines(block: Block) -> list[tuple[str, str]]:
    """(text, colour) of each line of a box; the first is its name."""
    out = [(block.name, "#ffffff")]
    if block.shape is not None:
        return [*out, (_shape(block.shape), _OTHER)]
    for layer in block.layers[:_MOST_LAYERS]:
        colour = COLOURS[REFUSED] if block.neurons[REFUSED] else COLOURS[MODEL]
        out.append((f"{layer.name}  {layer.kind} {_shape(layer.shape)}", colour))
    if len(block.layers) > _MOST_LAYERS:
        out.append((f"... {len(block.layers) - _MOST_LAYERS} more layers", COLOURS[MODEL]))
    for role, neurons in block.neurons.items():
        if role not in (MODEL, REFUSED):
            nodes = f"{block.units[role]} node{'s' if block.units[role] > 1 else ''}"
            out.append((f"{role}: {neurons:,} neurons in {nodes}", COLOURS.get(role, _OTHER)))
    for what, count in block.others.items():
        out.append((what if count == 1 else f"{count} × {what}", _OTHER))
    if block.weights:
        kept = "" if block.nonzero == block.weights else f" ({block.nonzero:,} nonzero)"
        out.append((f"{block.weights:,} weights{kept}", _OTHER))
    return out


def _size(lines: list[tuple[str, str]], bar: bool) -> tuple[float, float]:
    width = max(len(text) for text, _ in lines) * _CHARACTER + 2 * _PAD
    return width, _LINE * len(lines) + 1.5 * _PAD + (_BAR if bar else 0.0)


def _heading(lines: list[str]) -> list[str]:
    return [
        f'<text x="{_MARGIN:g}" y="{_MARGIN + _LINE * i + _SIZE:.1f}" fill="#1a202c"'
        f"{' font-weight=' + chr(34) + 'bold' + chr(34) if not i else ''}>{escape(line)}</text>"
        for i, line in enumerate(lines)
    ]


def _legend(roles: list[tuple[str, int]], texts: list[str], y: float) -> list[str]:
    out, x = [], _MARGIN
    for (role, _), text in zip(roles, texts, strict=True):
        out.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="12" height="12" fill="{COLOURS.get(role, _OTHER)}"/>'
            f'<text x="{x + 18:.1f}" y="{y + _SIZE - 1.5:.1f}" fill="#1a202c">{escape(text)}</text>'
        )
        x += len(text) * _CHARACTER + 34
    return out


def _block(block: Block, lines: list[tuple[str, str]], box: Box) -> str:
    """Name in a coloured head, a line per layer, and a bar of the shares of its neurons by role."""
    colour = COLOURS[REFUSED] if block.neurons[REFUSED] else COLOURS[MODEL] if block.layers else _OTHER
    head = _LINE + 0.5 * _PAD
    place = f'x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"'
    top = f"M{box.x:.1f} {box.y + head:.1f}v{4 - head:.1f}q0 -4 4 -4h{box.width - 8:.1f}q4 0 4 4v{head - 4:.1f}z"
    out = [
        f'<g><rect {place} rx="4" fill="#f7fafc" stroke="{colour}"/>',
        f'<path d="{top}" fill="{colour}"/>',
    ]
    for i, (text, fill) in enumerate(lines):
        y = box.y + _LINE * i + _SIZE + (0.25 * _PAD if not i else 0.8 * _PAD)
        weight = ' font-weight="bold"' if not i else ""
        out.append(f'<text x="{box.x + _PAD:.1f}" y="{y:.1f}" fill="{fill}"{weight}>{escape(text)}</text>')
    total, x = sum(block.neurons.values()), box.x + _PAD
    for role, neurons in block.neurons.items():
        share = (box.width - 2 * _PAD) * neurons / total
        out.append(
            f'<rect x="{x:.1f}" y="{box.y + box.height - _BAR - 2:.1f}" width="{share:.1f}" height="5" '
            f'fill="{COLOURS.get(role, _OTHER)}"/>'
        )
        x += share
    return "\n".join([*out, "</g>"])


def _links(links: list[Link], plan: Layout) -> list[str]:
    out = []
    for route in plan.routes:
        path = [f"M{route[0][0]:.1f} {route[0][1]:.1f}"]
        for (x, y), (to_x, to_y) in pairwise(route):
            middle = (y + to_y) / 2
            straight = abs(x - to_x) < 0.05
            curve = f"C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}"
            path.append(f"L{to_x:.1f} {to_y:.1f}" if straight else curve)
        out.append(
            f'<path d="{"".join(path)}" fill="none" stroke="#718096" stroke-width="1.3" marker-end="url(#tip)"/>'
        )
    return out


def _labels(links: list[Link], plan: Layout) -> list[str]:
    """What each link carries, beside its end, on the side that it does not come from."""
    entering: dict[int, list[tuple[float, float, float, str]]] = {}
    for link, route in zip(links, plan.routes, strict=True):
        entering.setdefault(link.target, []).append((*route[-1], route[-2][0], _carried(link)))
    out = []
    for found in entering.values():
        lift, right = 10, False
        for x, y, origin, text in sorted(found):
            lift = lift + 11 if right and origin > x else 10  # the label before lies on this side
            right = origin <= x
            wide = len(text) * _CHARACTER * 10 / _SIZE
            left = x + 5 if right else x - 5 - wide
            out.append(
                f'<rect x="{left - 1:.1f}" y="{y - lift - 9:.1f}" width="{wide + 2:.1f}" height="12" fill="#ffffff"/>'
                f'<text x="{left:.1f}" y="{y - lift:.1f}" fill="{_OTHER}" font-size="10">{text}</text>'
            )
    return out


def _carried(link: Link) -> str:
    shapes = _shape(link.shapes[0]) if len(link.shapes) == 1 else f"{len(link.shapes)} shapes"
    return shapes if link.count == 1 else f"{link.count} × {shapes}"


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(str(n) for n in shape) or "scalar"


def _role(role: str) -> str:
    return f"{role} neurons" if role != REFUSED else "neurons without a form in the graph"


def _description(diagram: Diagram) -> str:
    """The network in words: every block, what it holds and what it feeds."""
    out = []
    for i, block in enumerate(diagram.blocks):
        feeds = [diagram.blocks[link.target].name for link in diagram.links if link.source == i]
        told = ", ".join(text for text, _ in _lines(block)[1:]) or "combines values"
        out.append(f"{block.name}: {told}" + (f"; feeds {', '.join(feeds)}." if feeds else "."))
    return " ".join(out)
