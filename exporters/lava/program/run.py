"""Run this spiking network in Intel Lava's simulation (lava-nc 0.10, numpy, scipy; stdeploy is not needed).

    python run.py inputs.npz result.npz

inputs.npz holds `inputs`: a batch laid out as network.json says under "input" ("B": images, "BT" or "TB": a frame per
step). result.npz gets `output` and, with --spikes, `spikes:<neuron layer>` (uint8, [T, B, *shape]). Samples are
streamed back to back: a population that is valid from step v holds step t of sample i at v + i T + t, and resets its
membranes just before each sample. network.json lists every process with what feeds it; weights.npz its arrays.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing.util
import os
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, identity, kron

FORMAT = 1
_PR_SET_PDEATHSIG = 1


class Network:
    """network.json and weights.npz of one folder."""

    def __init__(self, folder: Path) -> None:
        self.description = json.loads((folder / "network.json").read_text())
        if self.description["format"] != FORMAT:
            sys.exit(f"network.json has format {self.description['format']}, this program reads {FORMAT}")
        with np.load(folder / "weights.npz") as stored:
            self.arrays = {name: stored[name] for name in stored.files}
        self.steps: int = self.description["steps"]
        self.precision: str = self.description["precision"]
        self.fixed = self.precision == "fixed_pt"
        self.processes: list[dict[str, Any]] = self.description["processes"]
        self.valid: dict[str, int] = {p["name"]: p["valid"] for p in self.processes}

    def matrix(self, process: dict[str, Any]) -> csr_matrix:
        """A process's weights, copied to every position."""
        name = process["weights"]
        parts = tuple(self.arrays[f"{name}.{part}"] for part in ("data", "indices", "indptr"))
        small = csr_matrix(parts, shape=tuple(self.arrays[f"{name}.shape"])).astype(
            int if self.fixed else float
        )
        return small if process["positions"] == 1 else csr_matrix(kron(small, identity(process["positions"])))

    def streamed(self, inputs: np.ndarray) -> np.ndarray:
        """A batch as [entries, B * T]: every sample's steps, one sample after another."""
        layout, shape = self.description["input"]["layout"], self.description["input"]["shape"]
        leads: dict[str, list[Any]] = {"B": ["B"], "BT": ["B", self.steps], "TB": [self.steps, "B"]}
        lead = leads[layout]
        wanted = [*lead, *shape]
        count = inputs.shape[lead.index("B")] if inputs.ndim == len(wanted) else 0
        if not count or list(inputs.shape) != [count if n == "B" else n for n in wanted]:
            sys.exit(
                f"`inputs` has shape {list(inputs.shape)}, the network takes [{', '.join(map(str, wanted))}]"
            )
        if inputs.dtype.kind not in "buif" or not np.isfinite(inputs).all():
            sys.exit("`inputs` holds what is not a finite number")
        if layout == "B":
            inputs = np.repeat(inputs[:, None], self.steps, axis=1)
        elif layout == "TB":
            inputs = np.swapaxes(inputs, 0, 1)
        flat = np.ascontiguousarray(inputs.reshape(count * self.steps, -1).T, dtype=np.float64)
        if not self.fixed:
            return flat
        unit, limit = (self.description["input"][key] for key in ("unit", "limit"))
        return np.asarray(np.clip(np.round(flat / unit), -limit, limit), np.int32)

    def forced(self, spikes: dict[str, np.ndarray], total: int) -> dict[str, np.ndarray]:
        """Spikes [T, B, *shape] to force, by neuron layer, as [entries, B * T] by population."""
        sizes = {p["name"]: p["size"] for p in self.processes}
        whole: dict[str, np.ndarray] = {}
        for name, given in spikes.items():
            layer = self.description["neurons"].get(name)
            if layer is None:
                sys.exit(f"--forced names {name}, which the network does not have")
            wanted = (self.steps, total // self.steps, *layer["shape"])
            if given.shape != wanted:
                sys.exit(f"forced spikes of {name} have shape {given.shape}, the neuron {wanted}")
            by_channel = given.reshape(*given.shape[:3], -1).transpose(2, 3, 1, 0)
            for part in layer["parts"]:
                rows = by_channel if part["channels"] is None else by_channel[part["channels"]]
                process = part["process"]
                target = whole.setdefault(process, np.zeros((sizes[process], total), np.uint8))
                target[part["start"] : part["stop"]] = rows.reshape(-1, total)
        return whole

    def samples(self, recorded: np.ndarray, valid: int, count: int) -> np.ndarray:
        """[T, B, entries] of what a process valid from `valid` sent, recorded as [entries, steps]."""
        window = recorded[:, valid - 1 : valid - 1 + count * self.steps]
        return window.T.reshape(count, self.steps, -1).swapaxes(0, 1)


class Simulation:
    """Lava processes by name, and what each sends on: its own output, or the spikes forced in its place."""

    def __init__(self, network: Network, data: np.ndarray, forced: dict[str, np.ndarray], total: int) -> None:
        from lava.proc.io.source import RingBuffer as Source

        self.network, self.total = network, total
        self.own: dict[str, Any] = {}
        self.sent: dict[str, Any] = {}
        self._parent: dict[str, str] = {}
        for process in network.processes:
            name = process["name"]
            made = Source(data=data) if process["kind"] == "source" else _process(network, process)
            for port, sources in process["inputs"].items():
                for source in sources:
                    self.sent[source].connect(getattr(made, port))
                    self._join(name, self._sender(source, forced))
            self.own[name] = self.sent[name] = _out(made)
            if name in forced:
                self.sent[name] = Source(data=_shifted(forced[name], process["valid"], total)).s_out

    def _sender(self, name: str, forced: dict[str, np.ndarray]) -> str:
        return f"forced {name}" if name in forced else name

    def _join(self, a: str, b: str) -> None:
        self._parent[self.group(a)] = self.group(b)

    def group(self, name: str) -> str:
        """The part of the network that `name` is in; forced spikes cut it into parts, which run one by one."""
        while self._parent.setdefault(name, name) != name:
            name = self._parent[name]
        return name

    def run(self, sinks: dict[str, tuple[str, list[Any]]], scratch: str) -> dict[str, np.ndarray]:
        """What each sink's ports sent at every step, `[entries, total]`; `sinks`: a process and the ports to sum."""
        from lava.magma.core.run_conditions import RunSteps
        from lava.magma.core.run_configs import Loihi2SimCfg
        from stdeploy_lava.recorder import Recorder

        groups: dict[str, list[str]] = {}
        for name, (process, _) in sinks.items():
            groups.setdefault(self.group(process), []).append(name)
        recorded: dict[str, np.ndarray] = {}
        made: dict[str, Any] = {}
        files = {name: os.path.join(scratch, str(i)) for i, name in enumerate(sinks)}
        for name, (_, ports) in sinks.items():
            made[name] = Recorder(shape=ports[0].shape, total=self.total, path=files[name])
            for port in ports:
                port.connect(made[name].a_in)
        for names in groups.values():
            last = made[names[0]]
            last.run(
                condition=RunSteps(num_steps=self.total),
                run_cfg=Loihi2SimCfg(select_tag=self.network.precision),
            )
            last.stop()
            for name in names:
                recorded[name] = np.fromfile(files[name]).reshape(self.total, -1).T
        return recorded


def _out(process: Any) -> Any:
    return process.s_out if hasattr(process, "s_out") else process.a_out


def _process(network: Network, process: dict[str, Any]) -> Any:
    """The Lava process of one entry of network.json."""
    from lava.proc.sparse.process import DelaySparse, Sparse

    kind = process["kind"]
    if kind == "synapses":
        return Sparse(weights=network.matrix(process), num_message_bits=8, weight_exp=process["exponent"])
    if kind == "delay":
        one = identity(process["size"], dtype=int if network.fixed else float, format="csr")
        if process["steps"] == 1:
            return Sparse(weights=one, num_message_bits=8)
        # DelaySparse adds its delay to the one step that every Sparse takes.
        delays = csr_matrix(one * (process["steps"] - 1)).astype(int)
        return DelaySparse(weights=one, delays=delays, num_message_bits=8)
    if kind == "population":
        return _population(network, process)
    if kind == "attention":
        return _attention(process)
    sys.exit(f"{process['name']} is a {kind}, which this program does not know")


def _population(network: Network, process: dict[str, Any]) -> Any:
    """LIFReset, or LIF where nothing is carried from step to step; no synaptic current is carried (du)."""
    from lava.proc.lif.process import LIF, LIFReset

    options = {
        "shape": (process["size"],),
        "du": 4095 if network.fixed else 1,
        "dv": process["leak"],
        "vth": process["threshold"],
        "bias_mant": network.arrays[process["bias"]] if process["bias"] else 0,
        "bias_exp": process["bias_exponent"],
    }
    if process["leak"] == (4096 if network.fixed else 1):
        return LIF(**options)
    offset = process["valid"] % network.steps
    return LIFReset(**options, reset_interval=network.steps, reset_offset=offset)


def _attention(process: dict[str, Any]) -> Any:
    from stdeploy_lava.attention import Attention, JoinedAttention

    kind = JoinedAttention if "qkv" in process["inputs"] else Attention
    return kind(heads_q=process["heads_q"], heads_v=process["heads_v"], tokens=process["tokens"])


def _shifted(data: np.ndarray, valid: int, total: int) -> np.ndarray:
    """`[entries, B * T]` as a ring buffer that starts at step `valid`."""
    whole = np.zeros((data.shape[0], total), data.dtype)
    whole[:, valid - 1 : valid - 1 + data.shape[1]] = data
    return whole


def simulate(
    network: Network, data: np.ndarray, forced: dict[str, np.ndarray], spikes: bool, scratch: str
) -> dict[str, np.ndarray]:
    """Run a stream (Network.streamed, .forced) in Lava; `output` and `spikes:<neuron>` as the module says."""
    count = data.shape[1] // network.steps
    total = data.shape[1] + max(network.valid.values())
    teachers = {name: spike.astype(data.dtype) for name, spike in forced.items()}
    simulation = Simulation(network, _shifted(data, 1, total), teachers, total)
    ends = network.description["output"]["processes"]
    sinks = {
        "": (f"forced {ends[0]}" if ends[0] in teachers else ends[0], [simulation.sent[n] for n in ends])
    }
    if spikes:
        parts = {p["process"] for layer in network.description["neurons"].values() for p in layer["parts"]}
        sinks |= {name: (name, [simulation.own[name]]) for name in sorted(parts)}
    recorded = simulation.run(sinks, scratch)
    result = {"output": _output(network, recorded.pop(""), count)}
    if spikes:
        result |= {f"spikes:{n}": s for n, s in _layers(network, recorded, count).items()}
    return result


def _layers(network: Network, recorded: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Spikes [T, B, *shape] by neuron layer."""
    layers = {}
    for layer, where in network.description["neurons"].items():
        shape = where["shape"]
        whole = np.zeros((network.steps, count, shape[0], int(np.prod(shape[1:]))), np.uint8)
        for part in where["parts"]:
            process = part["process"]
            sent = network.samples(
                recorded[process][part["start"] : part["stop"]], network.valid[process], count
            )
            rows = sent.reshape(network.steps, count, -1, whole.shape[3])
            whole[:, :, slice(None) if part["channels"] is None else part["channels"]] = rows
        layers[layer] = whole.reshape(network.steps, count, *shape)
    return layers


def _output(network: Network, recorded: np.ndarray, count: int) -> np.ndarray:
    """The model's output from what the output processes sent at each step."""
    output = network.description["output"]
    steps = network.samples(recorded, network.valid[output["processes"][0]], count) * output["unit"]
    if output["offset"]:
        steps = steps + network.arrays[output["offset"]]
    steps = steps.reshape(network.steps, count, *output["shape"])
    mode = output["over_steps"]
    if mode == "each step":
        return steps if output["layout"] == "TB" else np.swapaxes(steps, 0, 1)
    if mode == "last":
        return np.asarray(steps[-1])
    return np.asarray(steps.mean(axis=0) if mode == "mean" else steps.sum(axis=0))


def report_at_once() -> str:
    """A scratch folder; from now on a signal, or an error in a Lava process, ends everything and removes the folder.

    By itself Lava may wait for ever for a process that raised, and says nothing.
    """
    from lava.magma.runtime.message_infrastructure.multiprocessing import SystemProcess, mp

    parent, scratch = os.getpid(), tempfile.mkdtemp(prefix="lava-")

    def run(self: Any) -> None:
        try:
            mp.Process.run(self)
            self._cconn.send(None)
        except Exception:  # noqa: BLE001 - whatever a Lava process raises
            traceback.print_exc()
            sys.stderr.flush()
            os.kill(parent, signal.SIGTERM)

    def handle(handler: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handler)

    def in_child() -> None:
        handle(signal.SIG_DFL)
        if sys.platform == "linux":  # killed with the parent, which may be killed itself
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    def stop(number: int, _frame: Any) -> None:
        handle(signal.SIG_IGN)
        for child in multiprocessing.active_children():
            if isinstance(child, SystemProcess):
                child.kill()
        multiprocessing.util._exit_function()  # type: ignore[attr-defined]  # ends the manager of the shared memory, which frees it
        shutil.rmtree(scratch, ignore_errors=True)
        os._exit(128 + number)  # Lava's own way out waits for the processes just killed

    SystemProcess.run = run
    os.register_at_fork(after_in_child=in_child)
    handle(stop)
    return scratch


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; ends the program where it is none."""
    try:
        stored = np.load(path)
        return {name: stored[name] for name in stored.files}
    except Exception as error:  # noqa: BLE001 - numpy, zipfile and zlib each raise their own
        sys.exit(f"{path} cannot be read as an .npz file: {error}")


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description="Run this network in Lava's simulation.")
    parser.add_argument("inputs", type=Path, help=".npz with `inputs`")
    parser.add_argument("result", type=Path, help=".npz to write")
    parser.add_argument("--spikes", action="store_true", help="also write every neuron layer's spikes")
    parser.add_argument(
        "--forced", type=Path, help=".npz of spikes by neuron layer that its readers get instead"
    )
    arguments = parser.parse_args()
    if not os.access(arguments.result.absolute().parent, os.W_OK):
        sys.exit(f"{arguments.result} cannot be written")
    folder = Path(__file__).resolve().parent
    network = Network(folder)
    given = read(arguments.inputs)
    if "inputs" not in given:
        sys.exit(f"{arguments.inputs} holds no `inputs`, but {', '.join(given) or 'nothing'}")
    forced = {} if arguments.forced is None else read(arguments.forced)
    data = network.streamed(given["inputs"])
    teachers = network.forced(forced, data.shape[1])
    sys.path.insert(0, str(folder))
    try:
        import stdeploy_lava.compat  # noqa: F401
    except ImportError as error:
        sys.exit(f"{error}: {sys.executable} needs lava-nc 0.10")
    scratch = report_at_once()
    try:
        result = simulate(network, data, teachers, arguments.spikes, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    np.savez(arguments.result, **result)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
