"""Vectors of 16 floats, as LLVM: sums of weight rows and of masked weights in registers, copies, a neuron's step.

LLVM splits the vectors where the machine's are shorter. Arrays come as addresses (scalars.pointer) with offsets in
elements.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from stdeploy.exporters.event.stages import LANES

_F32, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_F32, LANES)
_MASK = ir.VectorType(ir.IntType(1), LANES)


def _splat(builder: Any, scalar: Any) -> Any:
    nothing = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(nothing, scalar, _I32(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c, in one operation where the machine has it."""
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32")
    return builder.call(function, [a, b, c])


def _vector_at(builder: Any, base: Any, offset: Any) -> Any:
    return builder.bitcast(builder.gep(base, [offset]), _VECTOR.as_pointer())


def _load(builder: Any, pointer: Any, k: int) -> Any:
    value = builder.load(builder.gep(pointer, [_I64(k)]))
    value.align = 4
    return value


def _store(builder: Any, pointer: Any, k: int, value: Any) -> None:
    builder.store(value, builder.gep(pointer, [_I64(k)])).align = 4


class _Loop:
    """for j in start..stop over vectors that stay in registers: `body(j, held)` gives what they become."""

    def __init__(self, builder: Any, start: Any, stop: Any, held: list[Any]) -> None:
        before = builder.block
        self.builder, self.stop = builder, stop
        self._head, self._body, self._done = (
            builder.append_basic_block(name) for name in ("head", "body", "done")
        )
        builder.branch(self._head)
        builder.position_at_end(self._head)
        self.index = builder.phi(_I64)
        self.index.add_incoming(start, before)
        self.held = [builder.phi(_VECTOR) for _ in held]
        for phi, value in zip(self.held, held, strict=True):
            phi.add_incoming(value, before)
        builder.cbranch(builder.icmp_signed("<", self.index, stop), self._body, self._done)
        builder.position_at_end(self._body)

    def end(self, after: list[Any]) -> list[Any]:
        """Close the loop; the vectors behind it."""
        block = self.builder.block
        for phi, value in zip(self.held, after, strict=True):
            phi.add_incoming(value, block)
        self.index.add_incoming(self.builder.add(self.index, _I64(1)), block)
        self.builder.branch(self._head)
        self.builder.position_at_end(self._done)
        return self.held


def _over_bits(builder: Any, word: Any, body: Callable[..., list[Any]], held: list[Any]) -> list[Any]:
    """What vectors become by `body(c, held=vectors)` for every set bit c of a word that is not zero."""
    before, loop, done = (builder.block, *(builder.append_basic_block(name) for name in ("bits", "none")))
    builder.branch(loop)
    builder.position_at_end(loop)
    left = builder.phi(_I64)
    left.add_incoming(word, before)
    phis = [builder.phi(_VECTOR) for _ in held]
    after = body(builder.cttz(left, ir.Constant(ir.IntType(1), 1)), held=phis)
    rest = builder.and_(left, builder.sub(left, _I64(1)))
    for phi, first, then in zip(phis, held, after, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(then, loop)
    left.add_incoming(rest, loop)
    builder.cbranch(builder.icmp_unsigned("!=", rest, _I64(0)), loop, done)
    builder.position_at_end(done)
    return after


def make_rows_sum(vectors: int, bits: bool) -> Any:
    """Weight rows of the nonzero inputs that some positions see through one tap, added to the positions' sums:

    sums[16 v (p steps + s):][:16 v] += scale weights[w + 16 v c:][:16 v] for the bits c of x[q stride + s step] (`bits`),
    sums[16 v (p steps + s):][:16 v] += x[q stride + s step + c] weights[w + 16 v c:][:16 v] for c < `count` (numbers)

    for the pairs (p, q) of `visits` from `begin` to `end` and s < `steps`; v is `vectors`. Called with (weights, w, visits,
    begin, end, x, stride, step, steps, scale, count, values, sums); x is an address, the sums lie in `values`.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def rows_sum(
        typing_context: Any,
        weights: Any,
        w: Any,
        visits: Any,
        begin: Any,
        end: Any,
        x: Any,
        stride: Any,
        step: Any,
        steps: Any,
        scale: Any,
        count: Any,
        values: Any,
        s: Any,
    ) -> Any:
        n = types.int64
        signature = types.void(weights, n, visits, n, n, x, n, n, n, types.float32, n, values, n)

        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            weights_, w_, table, begin_, end_, x_, stride_, step_, steps_, scale_, count_, value, s_ = args
            rows = builder.gep(weights_, [w_])
            spread = _splat(builder, scale_)

            def add(c: Any, factor: Any, held: list[Any]) -> list[Any]:
                row = _vector_at(builder, rows, builder.mul(c, _I64(LANES * vectors)))
                return [
                    _multiply_add(builder, _load(builder, row, k), factor, at) for k, at in enumerate(held)
                ]

            def numbers(first: Any, held: list[Any]) -> list[Any]:
                loop = _Loop(builder, _I64(0), count_, held)
                factor = _splat(builder, builder.load(builder.gep(first, [loop.index])))
                return loop.end(add(loop.index, factor, loop.held))

            def sums_of(place: Any, added: Callable[[list[Any]], list[Any]]) -> None:
                at = builder.add(s_, builder.mul(place, _I64(LANES * vectors)))
                total = _vector_at(builder, value, at)
                for k, held in enumerate(added([_load(builder, total, k) for k in range(vectors)])):
                    _store(builder, total, k, held)

            with cgutils.for_range_slice(builder, begin_, end_, _I64(1)) as (visit, _):
                pair = builder.mul(visit, _I64(2))
                p, q = (
                    builder.sext(builder.load(builder.gep(table, [builder.add(pair, _I64(k))])), _I64)
                    for k in range(2)
                )
                here = builder.gep(x_, [builder.mul(q, stride_)])
                with cgutils.for_range(builder, steps_) as each:
                    first = builder.gep(here, [builder.mul(each.index, step_)])
                    place = builder.add(builder.mul(p, steps_), each.index)
                    if bits:
                        word = builder.load(first)
                        with builder.if_then(builder.icmp_unsigned("!=", word, _I64(0))):
                            sums_of(place, partial(_over_bits, builder, word, partial(add, factor=spread)))
                    else:
                        sums_of(place, partial(numbers, first))
            return context.get_dummy_value()

        return signature, code

    return rows_sum


def make_columns_sum(steps: int, groups: int, indexed: bool) -> Any:
    """sums[16 (g steps + ...)] += sum_j scale data[j] where bit (row(j), step, position) is set.

    A row of `bits` (16-bit words) holds four groups of 16 positions for each step; `steps` x `groups` of
    them are read from word b + row stride on. row(j) = columns[c + j] (`indexed`), or c + j, and then data is
    strided. Called with (columns, c, data, d, data stride, scale, count, bits, b, stride, sums, s).
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def columns_sum(
        typing_context: Any,
        columns: Any,
        c: Any,
        data: Any,
        d: Any,
        data_stride: Any,
        scale: Any,
        count: Any,
        bits: Any,
        b: Any,
        stride: Any,
        sums: Any,
        s: Any,
    ) -> Any:
        n = types.int64
        signature = types.void(columns, n, data, n, n, types.float32, n, bits, n, n, sums, n)

        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            columns_, c_, data_, d_, data_stride_, scale_, count_, bits_, b_, stride_, sums_, s_ = args
            column, datum = builder.gep(columns_, [c_]), builder.gep(data_, [d_])
            bit = builder.gep(bits_, [b_])
            total = _vector_at(builder, sums_, s_)
            zero = ir.Constant(_VECTOR, [0.0] * LANES)

            def term(j: Any, held: list[Any]) -> list[Any]:
                if indexed:
                    index = builder.sext(builder.load(builder.gep(column, [j])), _I64)
                    weight = builder.load(builder.gep(datum, [j]))
                else:
                    index = builder.add(c_, j)
                    weight = builder.load(builder.gep(datum, [builder.mul(j, data_stride_)]))
                spread = _splat(builder, builder.fmul(weight, scale_))
                row = builder.gep(bit, [builder.mul(index, stride_)])

                after = []
                for k, before in enumerate(held):
                    mask = builder.load(builder.gep(row, [_I64(4 * (k // groups) + k % groups)]))
                    mask.align = 2
                    after.append(
                        builder.fadd(before, builder.select(builder.bitcast(mask, _MASK), spread, zero))
                    )
                return after

            loop = _Loop(builder, _I64(0), count_, [_load(builder, total, k) for k in range(steps * groups)])
            for k, held in enumerate(loop.end(term(loop.index, loop.held))):
                _store(builder, total, k, held)
            return context.get_dummy_value()

        return signature, code

    return columns_sum


def make_values_sum(steps: int, groups: int) -> Any:
    """sums[16 (g s + k):][:16] += sum_j data[j] values[x + columns[c + j] stride + s step + 16 k:][:16], s < `steps`, k < g.

    As columns_sum, of numbers in place of bits. Called with (columns, c, data, d, count, values, x, stride, step, sums);
    the sums lie in `values`.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def values_sum(
        typing_context: Any,
        columns: Any,
        c: Any,
        data: Any,
        d: Any,
        count: Any,
        values: Any,
        x: Any,
        stride: Any,
        step: Any,
        s: Any,
    ) -> Any:
        n = types.int64
        signature = types.void(columns, n, data, n, n, values, n, n, n, n)

        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            columns_, c_, data_, d_, count_, value, x_, stride_, step_, s_ = args
            column, datum = builder.gep(columns_, [c_]), builder.gep(data_, [d_])
            first = builder.gep(value, [x_])
            total = _vector_at(builder, value, s_)

            def add(j: Any, held: list[Any]) -> list[Any]:
                index = builder.sext(builder.load(builder.gep(column, [j])), _I64)
                spread = _splat(builder, builder.load(builder.gep(datum, [j])))
                row = builder.gep(first, [builder.mul(index, stride_)])
                after = []
                for t in range(steps):
                    base = _vector_at(builder, row, builder.mul(step_, _I64(t)))
                    for k in range(groups):
                        at = held[t * groups + k]
                        after.append(_multiply_add(builder, _load(builder, base, k), spread, at))
                return after

            loop = _Loop(builder, _I64(0), count_, [_load(builder, total, k) for k in range(steps * groups)])
            for k, held in enumerate(loop.end(add(loop.index, loop.held))):
                _store(builder, total, k, held)
            return context.get_dummy_value()

        return signature, code

    return values_sum


@intrinsic  # type: ignore[untyped-decorator]
def add_bits(typing_context: Any, words: Any, w: Any, value: Any, target: Any, t: Any) -> Any:
    """target[t + i] += value where bit i of the 16-bit word words[w] is set."""
    signature = types.void(words, types.int64, types.float32, target, types.int64)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        words_, w_, value_, target_, t_ = args
        word = builder.load(builder.gep(words_, [w_]))
        word.align = 2
        goal = _vector_at(builder, target_, t_)
        chosen = builder.select(
            builder.bitcast(word, _MASK), _splat(builder, value_), ir.Constant(_VECTOR, [0.0] * LANES)
        )
        _store(builder, goal, 0, builder.fadd(_load(builder, goal, 0), chosen))
        return context.get_dummy_value()

    return signature, code


def make_fire(decay_input: bool, divide: bool, soft: bool, spread: bool) -> Any:
    """Charge, fire and reset of `vectors` x 16 neurons: v (read and written), words[w + k] = the 16 bits that fired.

    tau (or 1/tau), rest and threshold lie at p, p + stride, p + 2 stride, one per neuron or (`spread`) one for
    all. Called with (values, x, v, vectors, weights, p, stride, words, w). Equations: ops.Neuron.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def fire(
        typing_context: Any,
        values: Any,
        x: Any,
        v: Any,
        vectors: Any,
        weights: Any,
        p: Any,
        stride: Any,
        words: Any,
        w: Any,
    ) -> Any:
        integer = types.int64
        signature = types.void(values, integer, integer, integer, weights, integer, integer, words, integer)

        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            value, x_, v_, vectors_, weight_array, p_, stride_, word_array, w_ = args
            drive, membrane = _vector_at(builder, value, x_), _vector_at(builder, value, v_)
            parameter = builder.gep(weight_array, [p_])
            word = builder.gep(word_array, [w_])
            places = [builder.gep(parameter, [builder.mul(stride_, _I64(k))]) for k in range(3)]
            shared = [_splat(builder, builder.load(place)) for place in places] if spread else []
            with cgutils.for_range(builder, vectors_) as loop:
                k = loop.index

                def at(base: Any) -> Any:
                    got = builder.load(builder.gep(base, [k]))
                    got.align = 4
                    return got

                each = shared or [at(builder.bitcast(place, _VECTOR.as_pointer())) for place in places]
                tau, rest, threshold = each
                before, given = at(membrane), at(drive)
                share = builder.fdiv if divide else builder.fmul
                away = builder.fsub(before, rest)
                if decay_input:
                    h = builder.fadd(before, share(builder.fsub(given, away), tau))
                else:
                    h = builder.fadd(builder.fsub(before, share(away, tau)), given)
                fired = builder.fcmp_ordered(">=", h, threshold)
                after = builder.select(fired, builder.fsub(h, threshold) if soft else rest, h)
                builder.store(after, builder.gep(membrane, [k])).align = 4
                builder.store(builder.bitcast(fired, _I16), builder.gep(word, [k])).align = 2
            return context.get_dummy_value()

        return signature, code

    return fire


@intrinsic  # type: ignore[untyped-decorator]
def copy_vectors(typing_context: Any, source: Any, s: Any, target: Any, t: Any, count: Any) -> Any:
    """target[t:][:16 count] = source[s:][:16 count]."""
    signature = types.void(source, types.int64, target, types.int64, types.int64)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source_array, s_, target_array, t_, count_ = args
        origin = _vector_at(builder, source_array, s_)
        goal = _vector_at(builder, target_array, t_)
        with cgutils.for_range(builder, count_) as loop:
            value = builder.load(builder.gep(origin, [loop.index]))
            value.align = 4
            builder.store(value, builder.gep(goal, [loop.index])).align = 4
        return context.get_dummy_value()

    return signature, code


@intrinsic  # type: ignore[untyped-decorator]
def fill_vectors(typing_context: Any, value: Any, target: Any, t: Any, count: Any) -> Any:
    """target[t:][:16 count] = value, a float32."""
    signature = types.void(types.float32, target, types.int64, types.int64)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value_, target_array, t_, count_ = args
        goal = _vector_at(builder, target_array, t_)
        spread = _splat(builder, value_)
        with cgutils.for_range(builder, count_) as loop:
            builder.store(spread, builder.gep(goal, [loop.index])).align = 4
        return context.get_dummy_value()

    return signature, code
