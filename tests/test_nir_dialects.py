"""Dialects as data: the shipped files, a user's own, bad ones, and what a reader of the wrong kind is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest

from stdeploy import running
from stdeploy.cli.app import run as command_line
from stdeploy.errors import UserError
from stdeploy.exporters.nir import export
from stdeploy.exporters.nir.dialect import Rules, load_dialect, names
from stdeploy.graph import Weight, ops
from stdeploy.graph.file import save_graph
from stdeploy.graph.interpreter import interpret
from stdeploy.runtime.nir_file import NirFile
from stdeploy.runtime.nir_readers import READERS, REFUSED, NirReader
from tests.conformance.net import Net, inputs
from tests.conformance.operators import OPERATORS, attention

DOCS = Path(__file__).parent.parent / "docs" / "nir.md"
GOOD = """
name = "mine"
version = 3
[[rules]]
key = "native_tau"
value = true
reason = "my reader takes arrays"
[[readers]]
name = "norse"
version = "1.1.0"
date = 2026-11-21
"""


def toml(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_the_shipped_ones() -> None:
    assert names() == ["portable", "arrays", "compact"]
    portable = load_dialect("portable")
    assert portable.switches == Rules()
    assert {rule.key for rule in portable.rules} == set(Rules.__dataclass_fields__) - {"type_check"}
    for name in names():
        dialect = load_dialect(name)
        assert dialect.name == name and dialect.description and dialect.readers
        assert {r.name for r in dialect.readers} | set(dialect.refused) == set(READERS)
        assert all(rule.reason for rule in dialect.rules) and all(dialect.refused.values())


def test_docs_list_every_rule_with_its_reason() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for name in names():
        for rule in load_dialect(name).rules:
            value = str(rule.value).lower() if isinstance(rule.value, bool) else str(rule.value)
            assert f"| {name} | `{rule.key}` | `{value}` | {rule.reason} |" in text


@pytest.mark.parametrize(
    ("dialect", "kinds"),
    [
        ("portable", {"Conv2d", "AvgPool2d", "LIF"}),
        ("arrays", {"Conv2d", "AvgPool2d", "LIF"}),
        ("compact", {"Conv2d", "AvgPool2d", "LIF", "Threshold"}),
    ],
)
def test_what_is_in_the_file(dialect: str, kinds: set[str], tmp_path: Path) -> None:
    graph = OPERATORS["MaxPool 2x3 of spikes"]()  # its neuron has two tau
    export(graph, tmp_path / "net.nir", {"dialect": dialect})
    file = NirFile(tmp_path / "net.nir")
    nodes = list(file.graph().nodes.values())
    assert {type(n).__name__ for n in nodes} == kinds | {"Input", "Output"}
    distinct = {np.unique(n.tau).size for n in nodes if isinstance(n, nir.LIF)}
    assert max(distinct) == (1 if dialect == "portable" else 2)
    stored = file.metadata
    assert stored["dialect"] == f"{dialect} 1" and set(stored["dialect_rules"]) == set(
        Rules.__dataclass_fields__
    )
    assert stored["proven_in"] == [r.name for r in load_dialect(dialect).readers]
    groups = {int(n.groups) for n in nodes if isinstance(n, nir.Conv2d)}
    assert groups == {1}


def test_a_users_own_dialect_and_time_step(tmp_path: Path) -> None:
    rule = '[[rules]]\nkey = "dt"\nvalue = 0.5\nreason = "a slow clock"\n'
    path = toml(tmp_path, GOOD.replace("[[readers]]", rule + "[[readers]]"))
    graph = OPERATORS["tau, threshold, reset per channel"]()
    export(graph, tmp_path / "net.nir", {"dialect": path})
    file = NirFile(tmp_path / "net.nir")
    assert file.dialect.name == "mine 3" and file.dt == 0.5
    lif = next(n for n in file.graph().nodes.values() if isinstance(n, nir.LIF) and np.ptp(n.tau) > 0)
    assert sorted(set(np.unique(lif.tau))) == [0.875, 1.0, 2.0]
    NirReader(tmp_path / "net.nir", "norse").run(inputs(graph))
    with pytest.raises(UserError, match="the dialect was not proven in it"):
        NirReader(tmp_path / "net.nir", "stdeploy")


def test_rows_of_a_grouped_kernel_are_taken_apart(tmp_path: Path) -> None:
    """Groups, but a LIF for each tau: a branch's rows are no whole groups."""
    groups = '[[rules]]\nkey = "groups"\nvalue = true\nreason = "r"\n'
    check = '[[rules]]\nkey = "type_check"\nvalue = false\nreason = "r"\n'
    text = GOOD.replace('"native_tau"\nvalue = true', '"native_tau"\nvalue = false').replace(
        '"norse"', '"stdeploy"'
    )
    path = toml(tmp_path, text.replace("[[readers]]", groups + check + "[[readers]]"))
    net = Net((4, 5, 7))
    kernel = Weight.dense(net.rng.integers(-2, 3, (4, 1, 3, 3)) / 4)
    y = net.add(ops.Conv(kernel, net.dyadic(4), (1, 1), (1, 1), (1, 1), 4), name="conv")
    graph = net.done(net.fire(y, "lif", tau=np.array([2.0, 4.0, 2.0, 1.75])))
    export(graph, tmp_path / "net.nir", {"dialect": path})
    x = inputs(graph)
    spikes = interpret(graph, x).spikes["lif"]
    assert 0 < spikes.mean() < 1
    np.testing.assert_array_equal(NirReader(tmp_path / "net.nir", "stdeploy").run(x).spikes["lif"], spikes)


def test_a_dialect_that_claims_too_much_is_found_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reader that raises is one error; one that computes something else fails the comparison."""
    claims = GOOD.replace('"norse"', '"snntorch"')
    threshold = '[[rules]]\nkey = "threshold_node"\nvalue = "nir.Threshold"\nreason = "as I say"\n'
    command = ["export", "net.stg", "--target", "nir", "-n", "3", "--dialect"]
    raising = toml(folder, claims.replace("[[readers]]", threshold + "[[readers]]"))
    said = run([*command, raising, "-o", "r.nir"], 2, capsys)
    assert "snntorch cannot load" in said and "Unknown node type" in said
    ties = toml(folder, claims.replace('"native_tau"\nvalue = true', '"nextafter"\nvalue = false'))
    assert "spikes of snntorch 1.0.0 are wrong" in run([*command, ties, "-o", "t.nir"], 1, capsys)


def test_many_tau_are_one_node_where_arrays_are_taken(tmp_path: Path) -> None:
    from stdeploy.exporters.nir import check

    net = Net()
    graph = net.done(net.fire(net.linear(net.x, 20, "fc"), "lif", tau=np.linspace(1.5, 3, 20)))
    (item,) = check(graph)
    assert "20 distinct tau" in item.reason and "arrays" in str(item.hint)
    assert check(graph, {"dialect": "arrays"}) == []
    export(graph, tmp_path / "net.nir", {"dialect": "arrays"})
    assert sum(isinstance(n, nir.LIF) for n in nir.read(tmp_path / "net.nir").nodes.values()) == 1


BAD: list[tuple[str, str]] = [
    ("name = ", "not valid TOML"),
    ('name = "mine"', "has no version"),
    (GOOD.replace("version = 3", 'version = "3"'), "version is no int"),
    (GOOD.replace("version = 3", "version = true"), "version is no int"),
    (GOOD + "\n[extra]\n", "unknown key 'extra'"),
    (GOOD.replace('"native_tau"', '"taus"'), "no rule 'taus'"),
    (GOOD.replace("value = true", "value = 1"), "native_tau is a bool, not 1"),
    (GOOD.replace("value = true\n", ""), "a rule has no value"),
    (GOOD.replace("2026-11-21", '"today"'), "date is no date"),
    (GOOD + GOOD[GOOD.index("[[rules]]") : GOOD.index("[[readers]]")], "say native_tau twice"),
    (GOOD.replace('"native_tau"', '"groups"'), "needs type_check = false"),
    (GOOD.replace('key = "native_tau"\nvalue = true', 'key = "dt"\nvalue = -1'), "dt is a positive time"),
    (GOOD.replace('key = "native_tau"\nvalue = true', 'key = "dt"\nvalue = nan'), "dt is a positive time"),
    (
        GOOD.replace('key = "native_tau"\nvalue = true', 'key = "threshold_node"\nvalue = "IF"'),
        "'lif' or 'nir.Threshold'",
    ),
    ('name = "mine"\nversion = 1\nrules = ["groups"]', r"write \[\[rules\]\]"),
]


@pytest.mark.parametrize(("text", "fault"), BAD, ids=[fault for _, fault in BAD])
def test_a_bad_file_is_one_clear_error(text: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=fault) as error:
        load_dialect(toml(tmp_path, text))
    assert "mine.toml" in str(error.value)


def test_unknown_names_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown NIR dialect 'compct'") as error:
        load_dialect("compct")
    assert "compact" in str(error.value.hint)
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(UserError):
            load_dialect(f"{path}.toml" if path == tmp_path else str(path))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not valid TOML"):
        load_dialect(str(tmp_path / "bytes.toml"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_graph(attention("kv", (4, 3, 5)), tmp_path / "net.stg")
    return tmp_path


def run(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    assert command_line(arguments) == code
    out = capsys.readouterr()
    return out.out + out.err


def test_the_command_line_writes_and_verifies_a_dialect(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = ["export", "net.stg", "--target", "nir", "-n", "3"]
    said = run([*export, "--dialect", "compact", "-o", "c.nir"], 0, capsys)
    assert "stdeploy NIR runner" in said and "snntorch" not in said  # the readers it was proven in
    assert "norse" in run([*export, "--dialect", "arrays", "-o", "a.nir"], 0, capsys)
    own = toml(folder, GOOD)
    assert "norse" in run([*export, "--dialect", own, "-o", "o.nir"], 0, capsys)
    assert "stdeploy NIR runner" in run(["verify", "net.stg", "c.nir", "-n", "2"], 0, capsys)
    for reader in ("snntorch", "spikingjelly", "spikingjelly-m", "norse"):
        said = run(["verify", "net.stg", "c.nir", "--reader", reader], 2, capsys)
        assert f"{reader} does not run the dialect compact 1 of c.nir: it " in said
        assert "hint: use stdeploy" in said


def test_the_command_line_refuses_before_it_writes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases: list[tuple[list[str], str]] = [
        (["--target", "nir", "--dialect", "compact", "--reader", "snntorch"], "nir.Threshold"),
        (["--target", "nir", "--dialect", "none"], "unknown NIR dialect"),
        (["--target", "nir", "--dialect", toml(folder, "name=1")], "mine.toml"),
        (["--target", "onnx", "--dialect", "compact"], "--dialect"),
    ]
    for arguments, reason in cases:
        assert reason in run(["export", "net.stg", *arguments, "-o", "x." + arguments[1]], 2, capsys)
    assert not list(folder.glob("x.*"))


@pytest.mark.parametrize("reader", REFUSED)
def test_readers_known_to_be_wrong_are_refused_with_what_was_measured(
    reader: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["export", "net.stg", "--target", "nir", "--no-verify", "-o", "net.nir"], 0, capsys)
    said = run(["verify", "net.stg", "net.nir", "--reader", reader], 2, capsys)
    assert f"{reader} cannot run this file: {REFUSED[reader]}" in said.replace("\n", " ")
    assert {"sinabs", "spyx", "rockpool", "norse-from-nir"} == set(REFUSED)


def test_targets_lists_the_dialects(capsys: pytest.CaptureFixture[str]) -> None:
    said = run(["targets", "--dialects"], 0, capsys)
    assert command_line(["targets", "--dialects", "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    for name, stored in zip(names(), document["dialects"], strict=True):
        dialect = load_dialect(name)
        assert stored["name"] == name and stored["readers"][0]["date"] == "2026-11-21"
        for text in (dialect.description, *(r.reason for r in dialect.rules), *dialect.refused.values()):
            assert text in said


def test_default_readers_are_those_of_the_dialect(folder: Path) -> None:
    export(attention("kv", (4, 7)), folder / "net.nir", {"dialect": "compact"})
    assert [executor.name for executor in running.executors(folder / "net.nir")] == ["stdeploy NIR runner"]
