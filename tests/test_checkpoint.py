"""Checkpoints of any origin: what fits loads, what does not says why, and no file ever runs code."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

from stdeploy.checkpoint import save_checkpoint
from stdeploy.checkpoint_foreign import OpenedModel, open_checkpoint
from stdeploy.errors import UserError
from stdeploy.models.spikformer import Spikformer, SpikformerConfig

FACTORY = "foreign_net:build"
CODE = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))

def broken():
    raise RuntimeError("no weights for you")

number = 7

def wrong():
    return [1, 2]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder with a module that builds the net."""
    (tmp_path / "foreign_net.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("foreign_net", None)


def net() -> nn.Sequential:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    module[1].running_mean.uniform_(-1, 1)
    return module


def same(opened: OpenedModel, module: nn.Module) -> bool:
    x = torch.randn(4, 3)
    return torch.equal(opened.module(x), module.eval()(x)) and not opened.module.training


def test_native_container(tmp_path: Path) -> None:
    config = SpikformerConfig(
        depth=1, embed_dim=4, mlp_dim=6, num_heads=2, steps=2, stem=((3, True), (4, True)), image_size=(8, 8)
    )
    model = Spikformer(config)
    path = save_checkpoint(tmp_path / "own.pt", model, {"method": "dsp", "sparsity": 0.5})
    opened = open_checkpoint(path)
    assert opened.input_shape == (3, 8, 8)
    assert opened.compression is not None and opened.compression["method"] == "dsp"
    assert all(torch.equal(t, opened.module.state_dict()[n]) for n, t in model.state_dict().items())


CONTAINERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "bare": lambda state: state,
    "timm": lambda state: {
        "epoch": 3,
        "arch": "net",
        "state_dict": state,
        "optimizer": {"state": {}},
        "args": argparse.Namespace(lr=0.1, data="x"),
        "metric": np.float64(77.7),
    },
    "torchvision": lambda state: {"model": state, "optimizer": {}, "epoch": 1, "max_test_acc1": 0.5},
    "mae": lambda state: {"model": state, "scaler": {}, "args": argparse.Namespace(blr=1e-3)},
    "parallel": lambda state: {f"module.{k}": v for k, v in state.items()},
    "compiled and parallel": lambda state: {"model": {f"module._orig_mod.{k}": v for k, v in state.items()}},
    "without counters": lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_foreign_containers(kind: str, folder: Path) -> None:
    module = net()
    torch.save(CONTAINERS[kind](dict(module.state_dict())), folder / "w.pth")
    opened = open_checkpoint(folder / "w.pth", model=FACTORY)
    assert same(opened, module)
    assert opened.input_shape is None


def test_safetensors(folder: Path) -> None:
    module = net()
    save_file(module.state_dict(), folder / "w.safetensors")
    assert same(open_checkpoint(folder / "w.safetensors", model=FACTORY), module)


def test_prune_masks_are_multiplied_out(folder: Path) -> None:
    module = net()
    prune.l1_unstructured(module[0], "weight", amount=0.5)
    prune.random_unstructured(module[2], "bias", amount=1)
    torch.save(module.state_dict(), folder / "w.pth")
    opened = open_checkpoint(folder / "w.pth", model=FACTORY)
    assert same(opened, module)
    weight = opened.module.state_dict()["0.weight"]
    assert int((weight == 0).sum()) == 7 or int((weight == 0).sum()) == 8
    assert any("2 torch.nn.utils.prune masks" in note for note in opened.notes)


def pruned_net() -> nn.Module:
    """A factory whose model is built pruned, with masks of its own."""
    module = net()
    prune.random_unstructured(module[0], "weight", amount=0.5)
    return module


def test_a_factory_may_build_the_pruned_model(folder: Path) -> None:
    module = pruned_net()
    torch.save(module.state_dict(), folder / "w.pth")
    opened = open_checkpoint(folder / "w.pth", model=f"{__name__}:pruned_net")
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert same(opened, module) and torch.equal(opened.module(x), module.eval()(x))


def test_key_of_a_container(folder: Path) -> None:
    module, other = net(), net()
    with torch.no_grad():
        other[0].weight.add_(1)
    torch.save({"state_dict": module.state_dict(), "state_dict_ema": other.state_dict()}, folder / "w.pth")
    plain = open_checkpoint(folder / "w.pth", model=FACTORY)
    assert same(plain, module)
    assert any("state_dict_ema" in note for note in plain.notes)
    assert same(open_checkpoint(folder / "w.pth", model=FACTORY, key="state_dict_ema"), other)
    with pytest.raises(UserError, match="no entry 'weights'"):
        open_checkpoint(folder / "w.pth", model=FACTORY, key="weights")


class Bomb:
    """Unpickling this creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["pickle", "zip", "legacy", "inside"])
@pytest.mark.parametrize("model", [None, FACTORY])
def test_a_pickle_that_runs_code_is_refused_unexecuted(form: str, model: str | None, folder: Path) -> None:
    path, mark = folder / "w.pth", folder / "executed"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Bomb(mark)))
    elif form == "inside":
        torch.save({"state_dict": net().state_dict(), "args": Bomb(mark)}, path)
    else:
        torch.save(Bomb(mark), path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match="code") as caught:
        open_checkpoint(path, model=model)
    assert caught.value.exit_code == 2
    assert "mkdir" in str(caught.value) or form == "pickle"  # torch stops earlier in a bare pickle
    assert "weights_only" not in str(caught.value)
    assert not mark.exists()


def test_a_whole_pickled_module_is_refused_with_the_remedy(folder: Path) -> None:
    torch.save(net(), folder / "w.pth")
    with pytest.raises(UserError, match="state_dict") as caught:
        open_checkpoint(folder / "w.pth", model=FACTORY)
    assert "Sequential" in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_truncated_files(suffix: str, share: float, folder: Path) -> None:
    path = folder / f"w{suffix}"
    if suffix == ".pth":
        torch.save(net().state_dict(), path)
    else:
        save_file(net().state_dict(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match="not a readable") as caught:
        open_checkpoint(path, model=FACTORY)
    assert caught.value.hint


def test_text_folder_and_nothing(folder: Path) -> None:
    (folder / "text.pt").write_text("hello, this is not a checkpoint\n")
    with pytest.raises(UserError, match="no pickle"):
        open_checkpoint(folder / "text.pt")
    with pytest.raises(UserError, match="is a folder"):
        open_checkpoint(folder)
    with pytest.raises(UserError, match="does not exist"):
        open_checkpoint(folder / "nowhere.pt")
    with pytest.raises(UserError, match="does not exist"):
        open_checkpoint(folder / "nowhere.safetensors")


def test_what_is_not_a_state_dict(folder: Path) -> None:
    torch.save([torch.ones(2)], folder / "list.pt")
    with pytest.raises(UserError, match="holds a list"):
        open_checkpoint(folder / "list.pt", model=FACTORY)
    torch.save({"lr": 0.1, "a": torch.ones(1)}, folder / "mixed.pt")
    with pytest.raises(UserError, match="lr"):
        open_checkpoint(folder / "mixed.pt", model=FACTORY)


def test_weights_alone_need_a_model(folder: Path) -> None:
    torch.save(net().state_dict(), folder / "w.pth")
    with pytest.raises(UserError, match="without a model") as caught:
        open_checkpoint(folder / "w.pth")
    assert "--model" in str(caught.value.hint)
    assert "foreign_net" not in sys.modules


def test_a_state_dict_that_does_not_fit_names_what(folder: Path) -> None:
    state = dict(net().state_dict())
    state["extra.weight"] = torch.ones(1)
    del state["2.bias"]
    state["0.weight"] = torch.ones(5, 4)
    torch.save(state, folder / "w.pth")
    with pytest.raises(UserError) as caught:
        open_checkpoint(folder / "w.pth", model=FACTORY)
    text = str(caught.value)
    assert "2.bias" in text and "extra.weight" in text and "0.weight" in text and "(5, 4)" in text
    assert "--model has to build what was saved" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("foreign_net", "not of the form"),
        ("no_such_module:build", "no_such_module"),
        ("foreign_net:missing", "missing"),
        ("foreign_net:number", "not callable"),
        ("foreign_net:wrong", "returned a list"),
        ("foreign_net:broken", "no weights for you"),
    ],
)
def test_factories_that_fail(factory: str, reason: str, folder: Path) -> None:
    torch.save(net().state_dict(), folder / "w.pth")
    with pytest.raises(UserError, match=reason):
        open_checkpoint(folder / "w.pth", model=factory)


CONFIG = SpikformerConfig(
    depth=1, embed_dim=4, mlp_dim=6, num_heads=2, steps=2, stem=((3, True), (4, True)), image_size=(8, 8)
)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c: c.update(config=None), "config is a NoneType"),
        (lambda c: c.update(config=[1]), "config is a list"),
        (lambda c: c.update(state_dict=None), "state_dict is a NoneType"),
        (lambda c: c.update(compression=5), "compression is a int"),
        (lambda c: c["state_dict"].update({"head.bias": 3.0}), "head.bias should be tensors"),
        (lambda c: c["state_dict"].update({5: torch.ones(1)}), "5 should be tensors"),
        (lambda c: c["state_dict"]["head.bias"].fill_(float("nan")), "not finite: head.bias"),
        (lambda c: c["state_dict"].update({"head.bias": torch.ones(10, dtype=torch.int8)}), "wrong type"),
        (lambda c: c["state_dict"].update({"head.bias": torch.ones(10) * 1j}), "complex64 for float"),
        (lambda c: c["config"].update(depth=10**9), "depth 1000000000"),
        (lambda c: c["config"].update(depth="x"), "depth has to be a positive integer"),
        (lambda c: c["config"].update(num_heads=0), "num_heads has to be a positive integer"),
        (lambda c: c["config"].update(steps=1.5), "steps has to be a positive integer"),
        (lambda c: c["config"].update(v_threshold=None), "v_threshold has to be a finite number"),
        (lambda c: c["config"].update(tau=0.5), "tau 0.5 is below 1"),
        (lambda c: c["config"].update(neuron="if"), "unknown neuron 'if'"),
        (lambda c: c["config"].update(blocks=3), "not a Spikformer configuration"),
    ],
)
def test_a_native_file_with_wrong_content(
    change: Callable[[dict[str, Any]], Any], text: str, tmp_path: Path
) -> None:
    path = save_checkpoint(tmp_path / "own.pt", Spikformer(CONFIG))
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(UserError) as caught:
        open_checkpoint(path)
    assert text in str(caught.value)
