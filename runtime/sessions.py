"""Sessions of the software that runs ONNX files, and the one description of how they are to run."""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stdeploy.errors import UserError
from stdeploy.graph.weight import Array

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""What a user calls a device, and onnxruntime's name for it."""

_BEHIND = {"tensorrt": ["CUDAExecutionProvider"]}
"""Providers that may take what the first one leaves, on the same device."""

_RECORD = "session.record_ep_graph_assignment_info"  # onnxruntime_session_options_config_keys.h, since 1.24


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How a session is to run.

    `device`: cpu, cuda or tensorrt; never a fallback. `threads`: within one operator (None: the
    software's choice). `io_binding`: inputs and outputs stay on the device between runs (None: wherever
    the device is not the CPU). `cuda_graph`: capture the kernels once and replay them; needs fixed
    addresses, so binding. `profile`: prefix of onnxruntime's profile, with time by operator. UserError
    where these do not go together.
    """

    device: str = "cpu"
    threads: int | None = None
    io_binding: bool | None = None
    cuda_graph: bool = False
    profile: Path | None = None

    def __post_init__(self) -> None:
        if self.device not in PROVIDERS:
            raise UserError(f"unknown device {self.device!r}", hint=f"known: {', '.join(PROVIDERS)}")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"{self.threads} threads cannot run anything", hint="give 1 or more")
        if self.cuda_graph and self.device == "cpu":
            raise UserError("CUDA graphs run on a CUDA device only", hint="--device cuda")
        if self.cuda_graph and self.io_binding is False:
            raise UserError("CUDA graphs replay fixed addresses: they need IO binding")

    @property
    def bound(self) -> bool:
        """Whether inputs and outputs stay on the device."""
        return self.device != "cpu" if self.io_binding is None else self.io_binding


class Prepared(Protocol):
    """One input, ready to be run again and again."""

    def call(self) -> None:
        """Run once; returns when the work is done."""
        ...

    def outputs(self) -> dict[str, Array]:
        """Outputs of the last call by name."""
        ...


def load_onnxruntime() -> Any:
    """The onnxruntime module; UserError where it is missing, or two builds of it overwrote each other."""
    both = [d for d in ("onnxruntime", "onnxruntime-gpu") if _installed(d)]
    if len(both) == 2:
        raise UserError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files",
            hint='pip uninstall both, then pip install "stdeploy[cpu]" or "stdeploy[gpu]"',
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("onnxruntime is not installed", hint='pip install "stdeploy[cpu]"') from error
    return onnxruntime


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


class OrtSession:
    """onnxruntime on the device that was asked for; `name` states version, provider and nodes that run there.

    `model`: a file, or a serialised model; `label` names it in messages. UserError where this build or
    machine does not have the device, the file cannot be loaded, or nothing of it runs on the device.
    """

    def __init__(self, model: Path | bytes, options: SessionOptions, label: str = "") -> None:
        self.options, self.label = options, label or str(model)
        self._ort = load_onnxruntime()
        self.provider = PROVIDERS[options.device]
        self._require_provider()
        self.session = self._open(model)
        used = self.session.get_providers()
        if used[0] != self.provider:
            raise UserError(
                f"onnxruntime runs {self.label} on {used[0]}, not on {self.provider}",
                hint="see its log for why the device could not be started",
            )
        self.placement = self._placement()
        self._require_placement()
        self.input_names = [str(i.name) for i in self.session.get_inputs()]
        self.output_names = [str(o.name) for o in self.session.get_outputs()]
        self._bound: dict[tuple[tuple[int, ...], ...], _Bound] = {}

    @property
    def name(self) -> str:
        text = f"onnxruntime {self._ort.__version__} {self.provider}"
        if self.options.device == "cpu":
            return text
        if self.placement is None:
            return f"{text} (this version does not tell where nodes run)"
        return f"{text} ({self.placement[self.provider]} of {sum(self.placement.values())} nodes)"

    def _require_provider(self) -> None:
        if self.options.device != "cpu" and hasattr(self._ort, "preload_dlls"):
            self._ort.preload_dlls()
        available = self._ort.get_available_providers()
        if self.provider not in available:
            raise UserError(
                f"this onnxruntime has no {self.provider} (it has {', '.join(available)})",
                hint='pip uninstall onnxruntime, then pip install "stdeploy[gpu]"',
            )

    def _open(self, model: Path | bytes) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry(_RECORD, "1")
        if self.options.threads is not None:
            options.intra_op_num_threads = self.options.threads
        if self.options.profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(self.options.profile)
        settings = {"enable_cuda_graph": "1"} if self.options.cuda_graph else {}
        providers = [(self.provider, settings), *_BEHIND.get(self.options.device, [])]
        try:
            return self._ort.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=providers
            )
        except Exception as error:  # onnxruntime's own exceptions share no public base class
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            raise UserError(f"onnxruntime cannot load {self.label}: {error}") from error

    def _placement(self) -> Counter[str] | None:
        """Nodes by provider after onnxruntime's own basic rewrites; None where this version does not tell."""
        if not hasattr(self.session, "get_provider_graph_assignment_info"):
            return None
        found: Counter[str] = Counter()
        for part in self.session.get_provider_graph_assignment_info():
            found[part.ep_name] += len(part.get_nodes())
        return found

    def _require_placement(self) -> None:
        if self.placement is None:
            return
        here = sum(self.placement[p] for p in (self.provider, *_BEHIND.get(self.options.device, [])))
        if not here:
            raise UserError(
                f"no node of {self.label} runs on {self.provider}",
                hint="onnxruntime would run all of it on the CPU; use --device cpu",
            )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name; UserError where an input does not fit the file."""
        try:
            results = self.session.run(self.output_names, dict(feeds))
        except Exception as error:
            raise self._refused(error) from error
        return dict(zip(self.output_names, results, strict=True))

    def _refused(self, error: Exception) -> Exception:
        if type(error).__module__.startswith("onnxruntime"):
            return UserError(f"onnxruntime cannot run {self.label}: {error}")
        return error

    def prepare(self, feeds: Mapping[str, Array]) -> Prepared:
        """The session with these inputs, bound to the device where the options say so."""
        if not self.options.bound:
            return _Plain(self, feeds)
        shapes = tuple(array.shape for array in feeds.values())
        if shapes not in self._bound:
            self._bound[shapes] = _Bound(self, feeds, graph=len(self._bound) + 1)
        return self._bound[shapes].feed(feeds)

    def end_profile(self) -> Path:
        """Stop profiling; the profile that was written (JSON, Chrome's trace format)."""
        return Path(self.session.end_profiling())


class _Plain:
    """Each call takes numpy arrays and gives numpy arrays, as most callers do."""

    def __init__(self, session: OrtSession | OpenVinoSession, feeds: Mapping[str, Array]) -> None:
        self.session, self.feeds = session, dict(feeds)
        self.last: dict[str, Array] = {}

    def call(self) -> None:
        self.last = self.session.run(self.feeds)

    def outputs(self) -> dict[str, Array]:
        return self.last


class _Bound:
    """Inputs and outputs live on the device, at the same addresses in every call."""

    def __init__(self, session: OrtSession, feeds: Mapping[str, Array], graph: int) -> None:
        ort, self.owner = session._ort, session
        device = "cpu" if session.options.device == "cpu" else "cuda"
        self.binding = session.session.io_binding()
        self.held = {name: ort.OrtValue.ortvalue_from_numpy(a, device, 0) for name, a in feeds.items()}
        self.run_options = ort.RunOptions()
        # -1: not captured. Outputs need an address before the capture, which only a run can tell.
        self.run_options.add_run_config_entry("gpu_graph_id", "-1")
        for name, value in self.held.items():
            self.binding.bind_ortvalue_input(name, value)
        for name in session.output_names:
            self.binding.bind_output(name, device)
        self.call()
        for name, value in zip(session.output_names, self.binding.get_outputs(), strict=True):
            self.held[name] = value
            self.binding.bind_ortvalue_output(name, value)
        if session.options.cuda_graph:
            self.run_options.add_run_config_entry("gpu_graph_id", str(graph))

    def feed(self, feeds: Mapping[str, Array]) -> _Bound:
        """Other inputs of the same shape, at the same addresses."""
        for name, array in feeds.items():
            self.held[name].update_inplace(np.ascontiguousarray(array))
        return self

    def call(self) -> None:
        try:
            self.owner.session.run_with_iobinding(self.binding, self.run_options)
        except Exception as error:
            raise self.owner._refused(error) from error
        self.binding.synchronize_outputs()

    def outputs(self) -> dict[str, Array]:
        names = self.owner.output_names
        return dict(zip(names, self.binding.copy_outputs_to_cpu(), strict=True))


class OpenVinoSession:
    """OpenVINO on the CPU, held to float32; `name` states version and the precision that it reports.

    Left alone it picks bfloat16 on CPUs that have it, which is another network. UserError where it is
    missing, cannot load the file, or another device is asked for.
    """

    def __init__(self, model: Path | bytes, options: SessionOptions, label: str = "") -> None:
        self.options, self.label = options, label or str(model)
        if options.device != "cpu":
            raise UserError(f"OpenVINO runs on the CPU here, not on {options.device}", hint="--device cpu")
        try:
            import openvino
        except ImportError as error:
            raise UserError("OpenVINO is not installed", hint='pip install "stdeploy[openvino]"') from error
        self.config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if options.threads is not None:
            self.config["INFERENCE_NUM_THREADS"] = options.threads
        self._shape = openvino.PartialShape
        core = openvino.Core()
        try:
            network = core.read_model(model, b"") if isinstance(model, bytes) else core.read_model(model)
            self.session = core.compile_model(network, "CPU", self.config)
        except RuntimeError as error:
            raise UserError(f"OpenVINO cannot load {self.label}: {error}") from error
        self.precision = str(self.session.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        if self.precision != "f32":
            raise UserError(f"OpenVINO runs {self.label} in {self.precision}, not in f32")
        self.name = f"OpenVINO {openvino.__version__.split('-')[0]} CPU {self.precision}"
        self.input_names = [port.get_any_name() for port in self.session.inputs]
        self.output_names = [port.get_any_name() for port in self.session.outputs]
        self._request = self.session.create_infer_request()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name (every name that a port has); UserError where an input does not fit the file."""
        for port in self.session.inputs:  # OpenVINO itself takes shapes that the file rules out
            given, takes = self._shape(feeds[port.get_any_name()].shape), port.get_partial_shape()
            if not takes.compatible(given):
                raise UserError(f"OpenVINO cannot run {self.label}: it takes {takes}, the input has {given}")
        try:
            found = self._request.infer(dict(feeds))
        except RuntimeError as error:
            raise UserError(f"OpenVINO cannot run {self.label}: {error}") from error
        return {name: np.array(found[port]) for port in self.session.outputs for name in port.get_names()}

    def prepare(self, feeds: Mapping[str, Array]) -> Prepared:
        """The session with these inputs."""
        return _Plain(self, feeds)
