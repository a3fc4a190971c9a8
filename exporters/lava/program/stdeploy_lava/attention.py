"""Spiking attention as one Lava process: y = Q (K^T V) per head, integers, one step after its inputs.

This module holds nothing but processes: Lava imports every module of the package of a custom process.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol


class Attention(AbstractProcess):  # type: ignore[misc]
    """q, k `[sum(heads_q) * tokens]`, v `[sum(heads_v) * tokens]`, channel-major; a_out like v."""

    def __init__(self, *, heads_q: list[int], heads_v: list[int], tokens: int) -> None:
        super().__init__(heads_q=heads_q, heads_v=heads_v, tokens=tokens)
        queries, values = sum(heads_q) * tokens, sum(heads_v) * tokens
        self.q = InPort(shape=(queries,))
        self.k = InPort(shape=(queries,))
        self.v = InPort(shape=(values,))
        self.a_out = OutPort(shape=(values,))
        self.a_buff = Var(shape=(values,), init=0)


class JoinedAttention(AbstractProcess):  # type: ignore[misc]
    """As Attention, with q, k and v one after another on one port."""

    def __init__(self, *, heads_q: list[int], heads_v: list[int], tokens: int) -> None:
        super().__init__(heads_q=heads_q, heads_v=heads_v, tokens=tokens)
        queries, values = sum(heads_q) * tokens, sum(heads_v) * tokens
        self.qkv = InPort(shape=(2 * queries + values,))
        self.a_out = OutPort(shape=(values,))
        self.a_buff = Var(shape=(values,), init=0)


def product(q: Any, k: Any, v: Any, heads_q: list[int], heads_v: list[int], tokens: int) -> Any:
    """sum_d q[d, n] sum_m k[d, m] v[e, m] for every head, flattened."""
    q, k, v = (x.reshape(-1, tokens) for x in (q, k, v))
    out, row, column = np.empty_like(v), 0, 0
    for d, e in zip(heads_q, heads_v):  # noqa: B905 - checked by stdeploy
        pairs = k[row : row + d] @ v[column : column + e].T
        out[column : column + e] = pairs.T @ q[row : row + d]
        row, column = row + d, column + e
    return out.ravel()


class _Model(PyLoihiProcessModel):  # type: ignore[misc]
    a_buff: Any

    def __init__(self, proc_params: Any) -> None:
        super().__init__(proc_params)
        self.heads_q, self.heads_v = proc_params["heads_q"], proc_params["heads_v"]
        self.tokens = proc_params["tokens"]

    def answer(self, q: Any, k: Any, v: Any) -> Any:
        return product(q, k, v, self.heads_q, self.heads_v, self.tokens)


class _Three(_Model):
    def run_spk(self) -> None:
        """Send what the last step's inputs gave, as Lava's Sparse does; then take this step's."""
        self.a_out.send(self.a_buff)
        self.a_buff = self.answer(self.q.recv(), self.k.recv(), self.v.recv())


class _Joined(_Model):
    def run_spk(self) -> None:
        """As _Three."""
        self.a_out.send(self.a_buff)
        stacked, queries = self.qkv.recv(), sum(self.heads_q) * self.tokens
        self.a_buff = self.answer(stacked[:queries], stacked[queries : 2 * queries], stacked[2 * queries :])


@implements(proc=Attention, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class FloatAttention(_Three):
    """Attention on floats that hold integers."""

    q: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    k: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    v: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)
    a_buff: np.ndarray = LavaPyType(np.ndarray, float)


@implements(proc=Attention, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class FixedAttention(_Three):
    """Attention on integers."""

    q: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    k: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    v: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32)
    a_buff: np.ndarray = LavaPyType(np.ndarray, np.int32)


@implements(proc=JoinedAttention, protocol=LoihiProtocol)
@requires(CPU)
@tag("floating_pt")
class FloatJoinedAttention(_Joined):
    """JoinedAttention on floats that hold integers."""

    qkv: PyInPort = LavaPyType(PyInPort.VEC_DENSE, float)
    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, float)
    a_buff: np.ndarray = LavaPyType(np.ndarray, float)


@implements(proc=JoinedAttention, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class FixedJoinedAttention(_Joined):
    """JoinedAttention on integers."""

    qkv: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32)
    a_buff: np.ndarray = LavaPyType(np.ndarray, np.int32)
