"""A sink that writes a file: Lava's own hands its numbers back one by one, minutes for a batch of images."""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol


class Recorder(AbstractProcess):  # type: ignore[misc]
    """Step t's input as row t - 1 of a float64 `[total, *shape]` array in the file `path` (numpy.memmap)."""

    def __init__(self, *, shape: tuple[int, ...], total: int, path: str) -> None:
        super().__init__(rows=(total, *shape), path=path)
        self.a_in = InPort(shape=shape)


class _Model(PyLoihiProcessModel):  # type: ignore[misc]
    a_in: Any
    time_step: int

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.file: Any = None
        self.path, self.rows = proc_params["path"], proc_params["rows"]

    def run_spk(self) -> None:
        """One step."""
        if self.file is None:
            self.file = np.memmap(self.path, np.float64, "w+", shape=self.rows)
        self.file[self.time_step - 1] = self.a_in.recv()


@implements(proc=Recorder, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class FloatRecorder(_Model):
    """Recorder of floats."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)


@implements(proc=Recorder, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class FixedRecorder(_Model):
    """Recorder of integers."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
