"""From a model to measured latencies: the candidates that run it, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stdeploy.data import load_data, random_data
from stdeploy.errors import StdeployError, UserError
from stdeploy.graph import Graph, GraphBuilder
from stdeploy.graph.ops import Input, Output, Readout
from stdeploy.graph.weight import Array
from stdeploy.rates import rate_option, wants_rates
from stdeploy.running import spiking_executor
from stdeploy.runtime.bench.engine import Batches, measure
from stdeploy.runtime.bench.machine import available_cores, examine_machine
from stdeploy.runtime.bench.needs import CANDIDATES, lacking
from stdeploy.runtime.bench.process import Spec, WorkerProcess
from stdeploy.runtime.bench.report import BASELINE, BenchReport, Plan
from stdeploy.runtime.bench.turns import PlayerError
from stdeploy.runtime.sessions import SessionOptions
from stdeploy.workflow import Source, SourceOptions, export, lower, open_source, suffix_of

if TYPE_CHECKING:
    from stdeploy.exporters.event.file import EventFile
    from stdeploy.runtime.onnx_file import OnnxFile

ALL = "all"
"""Every candidate that can run here."""

_NEEDS_CODE = ("torch", "compile", "dynamo")
_RUN_BY = {".onnx": ("onnx", "openvino"), ".sev": ("event",)}
"""Files that can be measured, and the candidates that run each."""

_SAMPLES = 64
_RATE_SAMPLES = 8

Log = Callable[[str], None]


@dataclass(frozen=True)
class BenchOptions:
    """What to run. `candidates`: names of CANDIDATES, or ALL for what can run here; empty for ALL but compile.

    `session` says device, binding and CUDA graphs; its threads are the plan's.
    """

    candidates: tuple[str, ...] = ()
    session: SessionOptions = field(default_factory=SessionOptions)
    data: Path | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.candidates if name not in (*CANDIDATES, ALL)]
        if unknown:
            raise UserError(
                f"no candidate {unknown[0]!r}", hint=f"candidates: {', '.join(CANDIDATES)}, {ALL}"
            )


@dataclass(frozen=True, eq=False)
class Network:
    """A network to measure: a traced model, or (`source` None) an .onnx or .sev file, of which `graph` is the input."""

    path: Path
    graph: Graph
    source: Source | None

    @property
    def candidates(self) -> list[str]:
        """Names of CANDIDATES that can run it."""
        if self.source is None:
            return list(_RUN_BY[self.path.suffix])
        code = self.source.opened is not None
        return [name for name in CANDIDATES if code or name not in _NEEDS_CODE]


def bench(
    model: Path,
    files: Sequence[Path],
    baseline: Path | None,
    plan: Plan,
    options: BenchOptions,
    source_options: SourceOptions | None = None,
    *,
    folder: Path,
    log: Log = lambda _: None,
) -> BenchReport:
    """Measure `model`, other `files` of the same network (.onnx, .sev), and `baseline` beside them.

    `folder` takes what has to be exported first. `source_options` hold for model and baseline. UserError
    where an input is wrong or nothing can run; what one candidate cannot do is in the report.
    """
    source_options = source_options or SourceOptions()
    for file in files:
        _require_file(file)
    machine = examine_machine(options.session.device)  # before our own work raises the load
    networks = {"model": open_network(model, source_options)}
    if baseline is not None:
        networks["baseline"] = open_network(baseline, source_options)
        _require_same_input(networks["model"], networks["baseline"])
    batches, inputs = _inputs(networks["model"].graph, plan, options)
    names, notes = _chosen(options, networks)
    specs: list[Spec] = []
    for group, network in networks.items():
        build = _Builder(
            group, network, source_options, batches, inputs, plan, options.session, folder / group, log
        )
        specs += [build.spec(name) for name in names if name in network.candidates]
    for file in files:
        label = file.name if [f.name for f in files].count(file.name) == 1 else str(file)
        spec = event_spec if file.suffix == ".sev" else onnx_spec
        specs.append(spec(label, "model", options.session, path=str(file)))
    if not specs:
        raise UserError(f"nothing here can run {model}", hint="stdeploy doctor says what is missing")
    plan = replace(plan, reference=plan.reference or specs[0].name)
    if plan.reference not in {spec.name for spec in specs}:
        known = ", ".join(spec.name for spec in specs)
        raise UserError(f"no candidate {plan.reference!r} to compare with", hint=f"here: {known}")
    log("measuring firing rates")
    few = batches.take(min(_RATE_SAMPLES, batches.images.shape[batches.axis]))
    rates = {group: firing_rates(network, few) for group, network in networks.items()}
    points = measure(specs, batches, plan, log=log)
    return BenchReport(machine, plan, tuple(points), inputs, rates, tuple(notes))


def open_network(path: Path, options: SourceOptions) -> Network:
    """A checkpoint or graph, traced; or an .onnx or .sev file of ours, of which only the input is known."""
    if path.suffix not in _RUN_BY:
        source = open_source(path, options)
        return Network(path, source.graph, source)
    file = _opened(path)
    if not file.contract:
        raise UserError(
            f"{path} does not say what it takes: it was not written by stdeploy",
            hint="give the model it was made from as MODEL, and this file after it",
        )
    shape = tuple(file.contract["shape"])
    builder = GraphBuilder(file.steps)
    axes = ("channel", *(f"axis{i}" for i in range(1, len(shape))))
    x = builder.add(Input(shape, axes, file.contract["layout"]), (), name="input", source="input")
    last = builder.add(Readout("last"), (x,), name="readout", source="readout")
    builder.add(Output(), (last,), name="output", source="output")
    return Network(path, builder.build(), None)


def _opened(path: Path) -> OnnxFile | EventFile:
    if path.suffix == ".sev":
        from stdeploy.exporters.event.file import EventFile

        return EventFile(path)
    from stdeploy.runtime.onnx_file import OnnxFile

    return OnnxFile(path)


def firing_rates(network: Network, inputs: Array) -> dict[str, float]:
    """Mean firing rate of every neuron layer on `inputs`; empty for a file that does not name its neurons."""
    if network.source is not None:
        spikes = network.source.reference.run(inputs).spikes
    else:
        spikes = spiking_executor(network.path).run(inputs).spikes
    return {name: float(np.mean(array)) for name, array in spikes.items()}


def onnx_spec(
    name: str, group: str, session: SessionOptions, runtime: str = "onnxruntime", **where: Any
) -> Spec:
    """An ONNX file as a candidate: `path`, or `by_batch` with a file for each batch size."""
    arguments: dict[str, Any] = {"runtime": runtime, **where, "device": session.device}
    if runtime == "onnxruntime":
        arguments |= {"io_binding": session.io_binding, "cuda_graph": session.cuda_graph}
    return Spec(name, "stdeploy.runtime.bench.candidates:onnx_file", arguments, group)


def event_spec(name: str, group: str, session: SessionOptions, path: str) -> Spec:
    """A .sev file as a candidate; UserError where the session is not on the CPU."""
    if session.device != "cpu":
        raise UserError(f"{path} runs on the CPU, not on {session.device}", hint="--device cpu")
    return Spec(name, "stdeploy.runtime.bench.candidates:EventCandidate", {"path": path}, group)


class _Builder:
    """Makes the specs of one network; what has to be exported first is exported here."""

    def __init__(
        self,
        group: str,
        network: Network,
        options: SourceOptions,
        batches: Batches,
        inputs: str,
        plan: Plan,
        session: SessionOptions,
        folder: Path,
        log: Log,
    ) -> None:
        self.group, self.network, self.batches, self.inputs = group, network, batches, inputs
        self.plan, self.session, self.folder, self.log = plan, session, folder, log
        self.code = {
            "model": options.model,
            "state_dict_key": options.state_dict_key,
            "neuron": options.neuron,
        }
        self.one_by_one = bool(getattr(network.source and network.source.reference, "one_by_one", False))
        self._files: dict[str, Path] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def spec(self, name: str) -> Spec:
        """The candidate of that name; one that cannot be made says so when it is loaded."""
        label = name if self.group == "model" else BASELINE + name
        try:
            if name in ("torch", "compile"):
                return self._torch(label, compiled=name == "compile")
            if name == "dynamo":
                return onnx_spec(label, self.group, self.session, by_batch=self._torch_onnx())
            if name == "event":
                return event_spec(label, self.group, self.session, str(self._exported("event")))
            runtime = "openvino" if name == "openvino" else "onnxruntime"
            return onnx_spec(label, self.group, self.session, runtime, path=str(self._exported("onnx")))
        except (StdeployError, PlayerError) as error:
            reason = error.message if isinstance(error, StdeployError) else str(error)
            return Spec(label, "stdeploy.runtime.bench.candidates:refused", {"reason": reason}, self.group)

    def _torch(self, label: str, *, compiled: bool) -> Spec:
        arguments = {
            "path": str(self.network.path),
            "compiled": compiled,
            "device": "cpu" if self.session.device == "cpu" else "cuda",
            "one_by_one": self.one_by_one,
            "axis": self.batches.axis,
            **self.code,
        }
        return Spec(label, "stdeploy.bench_torch:torch_model", arguments, self.group)

    def _exported(self, target: str) -> Path:
        """Our file of the network for a target, its kernels chosen on the inputs that are measured."""
        source = self.network.source
        if source is None:
            return self.network.path
        if target not in self._files:
            self.log(f"exporting {self.network.path} for {target}")
            lowered, options = lower(source.graph, target), {}
            if wants_rates(target):
                options = rate_option(source, lowered.graph, self.batches.images, self.inputs)
            path = self.folder / f"stdeploy{suffix_of(target)}"
            self._files[target] = export(source, lowered, path, options).path
        return self._files[target]

    def _torch_onnx(self) -> dict[str, str]:
        """Files that torch.onnx.export writes, by batch size; made in a process that ends before anything is timed."""
        files = {str(b): str(self.folder / f"dynamo-{b}.onnx") for b in self.plan.batches}
        shape = list(self.batches.take(1).shape)
        arguments = {"path": str(self.network.path), "files": files, "shape": shape, **self.code}
        spec = Spec(
            "dynamo", "stdeploy.bench_torch:torch_onnx", {**arguments, "axis": self.batches.axis}, self.group
        )
        self.log(f"torch.onnx.export of {self.network.path} at batch {', '.join(files)}")
        worker = WorkerProcess(spec, available_cores(), self.plan.timeout * len(files))
        try:
            worker.load()
        finally:
            worker.close()
        return files


def _inputs(graph: Graph, plan: Plan, options: BenchOptions) -> tuple[Batches, str]:
    """Inputs to run, and what they are."""
    op = graph.inputs[0].op
    if not isinstance(op, Input):
        raise TypeError("the graph's first input is not an Input")
    axis = 1 if op.layout == "TB" else 0
    wanted = max(_SAMPLES, plan.check, *plan.batches)
    if options.data is None:
        return Batches(
            random_data(graph, wanted, plan.seed), axis
        ), f"standard normal noise, seed {plan.seed}"
    images, _ = load_data(options.data, graph, wanted)
    found, text = images.shape[axis], f"{options.data}"
    if found < max(plan.check, *plan.batches):
        text += f", its {found} samples repeated"
    return Batches(images, axis), text


def _chosen(options: BenchOptions, networks: Mapping[str, Network]) -> tuple[list[str], list[str]]:
    """Candidates to run, and a note for each that is left out because it cannot run here."""
    if options.candidates and ALL not in options.candidates:
        odd = [n for n in options.candidates if not any(n in net.candidates for net in networks.values())]
        if odd:
            path = networks["model"].path
            code = odd[0] in _NEEDS_CODE
            raise UserError(
                f"{path} holds no PyTorch model: {odd[0]} cannot run it"
                if code
                else f"{odd[0]} cannot run {path}"
            )
        return list(dict.fromkeys(options.candidates)), []
    missing = {name: reason for name in CANDIDATES if (reason := lacking(name, options.session.device))}
    if not options.candidates:
        missing.setdefault("compile", "its first call compiles for minutes; --candidate all runs it")
    able = [n for n in CANDIDATES if any(n in net.candidates for net in networks.values())]
    return [n for n in able if n not in missing], [
        f"{n} is left out: {missing[n]}" for n in able if n in missing
    ]


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path} is a folder" if path.is_dir() else f"{path} does not exist")
    if path.suffix not in _RUN_BY:
        kinds = " or ".join(_RUN_BY)
        raise UserError(f"{path} is no {kinds} file", hint="another network goes after --baseline")


def _require_same_input(model: Network, baseline: Network) -> None:
    a, b = model.graph.inputs[0].op, baseline.graph.inputs[0].op
    if not isinstance(a, Input) or not isinstance(b, Input):
        raise TypeError("a graph's first input is not an Input")
    steps = model.graph.steps == baseline.graph.steps or a.layout == "B"
    if (a.shape, a.layout) != (b.shape, b.layout) or not steps:
        raise UserError(
            f"{baseline.path} does not take what {model.path} takes",
            hint="a baseline is the same network before compression",
        )
