"""Pictures: modules as blocks without a cycle, boxes that do not overlap, lines that do not cross boxes."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdeploy.drawing.blocks import Block, Diagram, Link, diagram, module_of
from stdeploy.drawing.layout import Box, layout
from stdeploy.drawing.svg import render
from stdeploy.graph import Graph, GraphBuilder, ops
from tests.graphs import spikformer_graph

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("block.0.attn.q_lif", "block.0.attn"),
        ("block.0.attn.matmul.1.digit3", "block.0.attn"),
        ("block.1.lif", "block.1"),
        ("patch_embed.conv0", "patch_embed"),
        ("patch_embed.pool.1", "patch_embed"),
        ("net.head", "head"),
        ("features.3", "features"),
        ("7", "7"),
    ],
)
def test_modules_by_name(name: str, module: str) -> None:
    assert module_of(name) == module


def test_blocks_of_a_spikformer() -> None:
    graph = spikformer_graph(depth=2)
    found = diagram(graph)
    names = [block.name for block in found.blocks]
    assert names[0] == "input" and names[-2:] == ["head", "output"]
    assert [n for n in names if n.startswith("block")] == [
        f"block.{i}.{part}" for i in (0, 1) for part in ("attn", "mlp")
    ]
    layers = [layer.name for block in found.blocks for layer in block.layers]
    assert len(layers) == len(graph.neurons)
    assert sum(found.roles.values()) == sum(layer.neurons for b in found.blocks for layer in b.layers)
    attention = next(block for block in found.blocks if block.name == "block.0.attn")
    assert attention.others["attention product"] == 2 and len(attention.layers) == 5


def links_point_forward(found: Diagram) -> None:
    assert all(link.source < link.target for link in found.links)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_blocks_never_feed_themselves(data: st.DataObject) -> None:
    """Random networks over few module names: every link points forward, every node is in a block."""
    b = GraphBuilder(2)
    values = [b.add(ops.Input((3,), ("channel",)), name="input")]
    for i in range(data.draw(st.integers(1, 14))):
        module = data.draw(st.sampled_from(["a.0.x", "a.0.y", "b", "c", "d.1.z"]))
        read = [data.draw(st.sampled_from(values)) for _ in range(data.draw(st.integers(1, 2)))]
        op: ops.Op = (
            ops.Add()
            if len(read) == 2
            else data.draw(st.sampled_from([ops.Scale(2.0), ops.MaxPool((), (), (), ())]))
        )
        values.append(b.add(op, read, name=f"{module}.n{i}"))
    b.add(ops.Output(), (values[-1],), name="output")
    graph: Graph = b.build()
    found = diagram(graph)
    links_point_forward(found)
    edges = sum(len(set(node.inputs)) for node in graph)
    assert sum(link.count for link in found.links) <= edges
    assert [block.name for block in found.blocks].count("input") == 1


def overlap(a: Box, b: Box) -> bool:
    return a.x < b.x + b.width and b.x < a.x + a.width and a.y < b.y + b.height and b.y < a.y + a.height


def within(box: Box, x: float, y: float) -> bool:
    return box.x < x < box.x + box.width and box.y + 1e-6 < y < box.y + box.height - 1e-6


def curve(a: tuple[float, float], b: tuple[float, float]) -> list[tuple[float, float]]:
    """Points of a route's stretch, as svg draws it: a cubic Bézier with vertical ends."""
    middle = (a[1] + b[1]) / 2
    corners = [a, (a[0], middle), (b[0], middle), b]
    out = []
    for k in range(33):
        t = k / 32
        weights = ((1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3)
        x, y = (sum(w * p[i] for w, p in zip(weights, corners, strict=True)) for i in (0, 1))
        out.append((x, y))
    return out


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_boxes_do_not_overlap_and_lines_go_around(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    size = st.floats(20, 200)
    sizes = [(data.draw(size), data.draw(size)) for _ in range(count)]
    ends = [(i, j) for j in range(count) for i in range(j)]
    links = data.draw(st.lists(st.sampled_from(ends), unique=True, max_size=20)) if ends else []
    plan = layout(sizes, links)
    for i, box in enumerate(plan.boxes):
        assert box.x >= -0.01 and box.x + box.width <= plan.width + 0.01
        assert box.y >= -0.01 and box.y + box.height <= plan.height + 0.01
        assert not any(overlap(box, other) for other in plan.boxes[i + 1 :])
    for (source, target), route in zip(links, plan.routes, strict=True):
        first, last = plan.boxes[source], plan.boxes[target]
        assert route[0][1] == pytest.approx(first.y + first.height) and route[-1][1] == pytest.approx(last.y)
        assert first.x < route[0][0] < first.x + first.width and last.x < route[-1][0] < last.x + last.width
        for a, b in pairwise(route):
            assert a[1] <= b[1]
            for x, y in curve(a, b):
                assert not any(within(box, x, y) for box in plan.boxes)


def test_the_svg_is_well_formed_self_contained_and_says_what_it_shows() -> None:
    found = diagram(spikformer_graph(depth=2), {"block.0.attn.q_lif": "attention"})
    text = render(found, 'a <b> & "c"', ["T = 4"])
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg" and root.get("role") == "img"
    assert root.get("aria-labelledby") == "title desc"
    assert root.findtext(f"{SVG}title") == 'a <b> & "c"'
    told = root.findtext(f"{SVG}desc") or ""
    words = {element.text for element in root.iter(f"{SVG}text")}
    for block in found.blocks:
        assert block.name in words and f"{block.name}: " in told
    assert any(word and "attention neurons" in word for word in words)
    for element in root.iter():
        assert element.tag.removeprefix(SVG) in (
            "svg",
            "title",
            "desc",
            "defs",
            "marker",
            "path",
            "rect",
            "text",
            "g",
        )
        assert not [key for key in element.attrib if "href" in key]
    width, height = (float(root.get(side) or 0) for side in ("width", "height"))
    for element in root.iter(f"{SVG}text"):
        assert 0 <= float(element.get("x") or -1) <= width and 0 <= float(element.get("y") or -1) <= height


def test_blocks_with_many_layers_and_odd_names_stay_readable() -> None:
    blocks = [Block("input", shape=(3,)), Block("<&>" * 30), Block("output", shape=())]
    text = render(Diagram(blocks, [Link(0, 1, 2, ((3,), (4, 5))), Link(1, 2, 1, ((),))]), "t", [])
    root = ElementTree.fromstring(text)
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert "2 × 2 shapes" in words and "scalar" in words and "<&>" * 30 in words
    assert float(root.get("width") or 0) > 90 * 7
