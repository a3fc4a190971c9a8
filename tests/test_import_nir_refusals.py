"""What of a NIR file is refused: damaged files, parameters that do not fit, what has no form, and what is not told."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest

from stdeploy.cli.app import run
from stdeploy.errors import UnsupportedError, UserError
from stdeploy.importers.nir import import_nir
from tests.nir_graphs import DT, conv2d, damaged, dyadic, lif, network, plain


def test_everything_that_has_no_form_is_listed_at_once(tmp_path: Path) -> None:
    """Recurrence, delay, linear states, CubaLIF, parameters by position, half a flattening."""
    two = np.ones(2, np.float32)
    nodes: dict[str, Any] = {
        "input": nir.Input(np.array([2])),
        "integrator": nir.I(two),
        "li": nir.LI(two, two, two),
        "cuba": nir.CubaLIF(two, two, two, two, two),
        "cubali": nir.CubaLI(two, two, two, two),
        "delay": nir.Delay(two),
        "tokens": nir.Linear(np.ones((5, 2, 2), np.float32)),
        "loop": lif(2),
        "back": nir.Linear(dyadic(2, 2)),
        "map": lif(2, 3, tau=dyadic(2, 3) + 2),
        "part": nir.Flatten(np.array([2, 3, 4]), 1, -1),
        "same": conv2d(2, 2, 3, 3, padding="same", stride=2, space=(4, 4)),
        "output": nir.Output(np.array([2])),
    }
    names = [n for n in nodes if n != "back"]
    edges = [*itertools.pairwise(names), ("loop", "back"), ("back", "loop")]
    nir.write(tmp_path / "net.nir", nir.NIRGraph(nodes, edges, type_check=False))
    with pytest.raises(UnsupportedError) as caught:
        import_nir(tmp_path / "net.nir", dt=DT, steps=2)
    listed = {item.where: item.what for item in caught.value.items}
    assert listed == {
        "back, loop": "cycle",
        "integrator": "I",
        "li": "LI",
        "cuba": "CubaLIF",
        "cubali": "CubaLI",
        "delay": "Delay",
        "tokens": "Linear",
        "map": "LIF",
        "part": "Flatten",
        "same": "Conv2d",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"n0": nir.Affine(np.full((4, 3), np.nan, np.float32), dyadic(4))},
            "n0: Affine: weight .* not finite",
        ),
        ({"n1": lif(4, tau=np.inf)}, "n1: LIF: tau holds values that are not finite"),
        ({"n1": lif(4, tau=DT / 2)}, "n1: LIF: tau = 0.125 is shorter than a step of dt = 0.25"),
        ({"n1": lif(5)}, "n1: LIF: tau has shape"),
        ({"n0": nir.Linear(dyadic(4, 7))}, "weight .* does not take"),
        ({"n0": nir.Affine(dyadic(4, 3), dyadic(2))}, "n0: Linear: bias"),
        ({"output": nir.Output(np.array([9]))}, r"output: Output: its shape is \[9\]"),
        ({"input": nir.Input(np.array([1, 2, 3, 4]))}, "one to three axes"),
        ({"input": nir.Input(np.array([0]))}, "input: not a legal Input: shape is out of range"),
        ({"input": nir.Input(np.array([10**6, 10**4, 10**4]))}, "too large"),
        ({"lonely": nir.Scale(dyadic(3))}, "lonely: Scale: nothing feeds it"),
    ],
)
def test_parameters_that_do_not_fit_name_their_node(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        import_nir(plain(tmp_path, **changes), dt=DT, steps=2)
    assert str(caught.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut short", "not a readable NIR file"),
        ("empty", "not a readable NIR file"),
        ("text", "not a readable NIR file"),
        ("no network", "not a readable NIR file"),
        ("no edges", "not a readable NIR file"),
        ("newer", "was written by nir 99.0.0"),
        ("unknown type", "n0 is a Attention, which nir .* does not know"),
        ("missing field", "n1: not a legal LIF"),
        ("ragged", "n1: not a legal LIF: All parameters must have the same shape"),
        ("words", "n1: not a legal LIF: tau holds object, not real numbers"),
        ("wrong edge", "does not have: nowhere"),
        ("huge", "declares .* GiB"),
        ("one node", "holds a single Affine"),
        ("endless", "graphs deep"),
    ],
)
def test_damaged_files_give_one_clear_error(
    tmp_path: Path, how: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = plain(tmp_path)
    damaged(path, how)
    with pytest.raises(UserError, match=message):
        import_nir(path, dt=DT, steps=2)
    assert run(["export", str(path), "--target", "onnx", "--dt", "1", "--steps", "2"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: ") and path.name in lines[0] and len(lines) <= 2


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("stride", 0, "stride is out of range: 0"),
        ("stride", np.nan, "stride has to be integers"),
        ("dilation", np.array([1, 0]), "dilation is out of range"),
        ("padding", -1, "padding is out of range"),
        ("padding", "half", "padding must be 'same', 'valid', or int"),
        ("groups", np.array([1, 1]), "groups is one number"),
        ("groups", 3, "groups 3"),
        ("input_shape", np.array([2**40, 2]), "input_shape is out of range"),
        ("input_shape", np.array([4, 4]), "its input_shape is"),
        ("weight", np.ones((4, 2, 3, 3), np.complex64), "weight holds complex64, not real numbers"),
    ],
)
def test_windows_that_make_no_sense(tmp_path: Path, field: str, value: Any, message: str) -> None:
    net = network((2, 5, 5), conv2d(4, 2, 3, 3, padding=1), lif(4, 5, 5), output=(4, 5, 5))
    nir.write(tmp_path / "net.nir", net)
    with h5py.File(tmp_path / "net.nir", "r+") as file:
        del file[f"node/nodes/n0/{field}"]
        file[f"node/nodes/n0/{field}"] = value
    with pytest.raises(UserError, match=message) as caught:
        import_nir(tmp_path / "net.nir", dt=DT, steps=2)
    assert "n0" in str(caught.value)


def test_two_inputs_are_refused(tmp_path: Path) -> None:
    path = plain(tmp_path)
    damaged(path, "two inputs")
    with pytest.raises(UnsupportedError, match="2 inputs"):
        import_nir(path, dt=DT, steps=2)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "give --dt and --steps"),
        ({"steps": 4}, "give --dt"),
        ({"dt": 1e-3}, "give --steps"),
        ({"dt": -1.0, "steps": 2}, "have to be positive"),
        ({"dt": float("nan"), "steps": 2}, "have to be positive"),
    ],
)
def test_a_foreign_file_needs_steps_and_dt(tmp_path: Path, how: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        import_nir(plain(tmp_path), **how)
    assert caught.value.message.endswith(message)


def test_a_foreign_file_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plain(tmp_path, n1=lif(4, v_threshold=0.25))
    export = ["export", "net.nir", "--target", "onnx", "-o", "net.onnx"]
    assert run(export) == 2
    assert "give --dt and --steps" in capsys.readouterr().err
    how = ["--dt", str(DT), "--steps", "5", "--layout", "TB"]
    assert run([*export, *how]) == 0
    assert "0 of 320 spikes differ" in capsys.readouterr().out
    assert run(["verify", "net.nir", "net.onnx", *how]) == 0
    assert "ok" in capsys.readouterr().out
    assert run(["export", "net.nir", "--target", "nir", "-o", "net.nir", *how]) == 2
    assert "is the model itself" in capsys.readouterr().err
    plain(tmp_path, n1=nir.CubaLIF(*[np.ones(4, np.float32)] * 5))
    (tmp_path / "net.onnx").unlink()
    assert run([*export, *how]) == 3
    assert "n1: CubaLIF: its synaptic current is a second state" in capsys.readouterr().err
    assert not (tmp_path / "net.onnx").exists()
