"""What numba has no words for, as LLVM: sums of weight rows and of masked weights in vector registers, bits, atomics.

LLVM splits the 16-lane vectors where the machine's are shorter. Arrays are passed whole, with offsets in
elements, so that nothing is sliced (and no reference counted) in an inner loop.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
MOST_VECTORS, MOST_STEPS = 6, 4
"""Sums that one call holds, vectors x steps: 24 of AVX-512's 32 registers."""

_F32, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_F32, LANES)
_MASK = ir.VectorType(ir.IntType(1), LANES)


def _data(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return context.make_array(kind)(context, builder, array).data


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


def _summed(builder: Any, sums: Any, vectors: int, start: Any, stop: Any, term: Callable[..., Any]) -> None:
    """`sums[k] = term(k, j, sums[k])` for j in start..stop, with the sums in registers meanwhile."""
    before = builder.block
    head, body, done = (builder.append_basic_block(name) for name in ("head", "body", "done"))
    first = [_load(builder, sums, k) for k in range(vectors)]
    builder.branch(head)
    builder.position_at_end(head)
    j = builder.phi(_I64)
    j.add_incoming(start, before)
    held = [builder.phi(_VECTOR) for _ in range(vectors)]
    for phi, value in zip(held, first, strict=True):
        phi.add_incoming(value, before)
    builder.cbranch(builder.icmp_signed("<", j, stop), body, done)
    builder.position_at_end(body)
    step = term(j)
    for k, phi in enumerate(held):
        phi.add_incoming(step(k, phi), builder.block)
    j.add_incoming(builder.add(j, _I64(1)), builder.block)
    builder.branch(head)
    builder.position_at_end(done)
    for k, phi in enumerate(held):
        _store(builder, sums, k, phi)


def make_rows_sum(vectors: int, steps: int) -> Any:
    """sums[16 v s:][:16 v] += sum_j values[places[j] + s] weights[w + rows[j] 16 v:][:16 v] for the steps s.

    A weight row is read once for all steps. Called with (weights, w, rows, first row, first place, values,
    count, sums, first sum): `rows` holds rows and places; offsets in elements.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def rows_sum(
        typing_context: Any,
        weights: Any,
        w: Any,
        rows: Any,
        r: Any,
        p: Any,
        values: Any,
        count: Any,
        sums: Any,
        s: Any,
    ) -> Any:
        integer = types.int64
        signature = types.void(weights, integer, rows, integer, integer, values, integer, sums, integer)

        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            weight_array, w_, row_array, r_, p_, value_array, count_, sum_array, s_ = args
            weight = builder.gep(_data(context, builder, weights, weight_array), [w_])
            row_data = _data(context, builder, rows, row_array)
            row, place = builder.gep(row_data, [r_]), builder.gep(row_data, [p_])
            value = _data(context, builder, values, value_array)
            total = _vector_at(builder, _data(context, builder, sums, sum_array), s_)

            def term(j: Any) -> Any:
                index = builder.sext(builder.load(builder.gep(row, [j])), _I64)
                base = _vector_at(builder, weight, builder.mul(index, _I64(LANES * vectors)))
                at = builder.gep(value, [builder.sext(builder.load(builder.gep(place, [j])), _I64)])
                factors = [_splat(builder, builder.load(builder.gep(at, [_I64(k)]))) for k in range(steps)]
                loaded = [_load(builder, base, k) for k in range(vectors)]
                return lambda k, held: _multiply_add(
                    builder, loaded[k % vectors], factors[k // vectors], held
                )

            _summed(builder, total, vectors * steps, _I64(0), count_, term)
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
        integer = types.int64
        signature = types.void(
            columns,
            integer,
            data,
            integer,
            integer,
            types.float32,
            integer,
            bits,
            integer,
            integer,
            sums,
            integer,
        )

        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            (
                col_array,
                c_,
                data_array,
                d_,
                data_stride_,
                scale_,
                count_,
                bit_array,
                b_,
                stride_,
                sum_array,
                s_,
            ) = args
            column = builder.gep(_data(context, builder, columns, col_array), [c_])
            datum = builder.gep(_data(context, builder, data, data_array), [d_])
            bit = builder.gep(_data(context, builder, bits, bit_array), [b_])
            total = _vector_at(builder, _data(context, builder, sums, sum_array), s_)
            zero = ir.Constant(_VECTOR, [0.0] * LANES)

            def term(j: Any) -> Any:
                if indexed:
                    index = builder.sext(builder.load(builder.gep(column, [j])), _I64)
                    weight = builder.load(builder.gep(datum, [j]))
                else:
                    index = builder.add(c_, j)
                    weight = builder.load(builder.gep(datum, [builder.mul(j, data_stride_)]))
                spread = _splat(builder, builder.fmul(weight, scale_))
                row = builder.gep(bit, [builder.mul(index, stride_)])

                def step(k: int, held: Any) -> Any:
                    word = 4 * (k // groups) + k % groups
                    mask = builder.load(builder.gep(row, [_I64(word)]))
                    mask.align = 2
                    return builder.fadd(held, builder.select(builder.bitcast(mask, _MASK), spread, zero))

                return step

            _summed(builder, total, steps * groups, _I64(0), count_, term)
            return context.get_dummy_value()

        return signature, code

    return columns_sum


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
            value_array, x_, v_, vectors_, weight_array, p_, stride_, word_array, w_ = args
            value = _data(context, builder, values, value_array)
            drive, membrane = _vector_at(builder, value, x_), _vector_at(builder, value, v_)
            parameter = builder.gep(_data(context, builder, weights, weight_array), [p_])
            word = builder.gep(_data(context, builder, words, word_array), [w_])
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
def ones(typing_context: Any, word: Any) -> Any:
    """How many bits of a uint64 are set."""
    signature = types.int64(types.uint64)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return signature, code


@intrinsic  # type: ignore[untyped-decorator]
def lowest(typing_context: Any, word: Any) -> Any:
    """Index of the lowest set bit of a uint64 that is not zero."""
    signature = types.int64(types.uint64)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return signature, code


@intrinsic  # type: ignore[untyped-decorator]
def fetch_add(typing_context: Any, array: Any, index: Any, amount: Any) -> Any:
    """array[index] before `amount` was added to it, atomically."""
    signature = types.int64(array, types.int64, types.int64)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = builder.gep(_data(context, builder, array, args[0]), [args[1]])
        return builder.atomic_rmw("add", pointer, args[2], "seq_cst")

    return signature, code


@intrinsic  # type: ignore[untyped-decorator]
def atomic_load(typing_context: Any, array: Any, index: Any) -> Any:
    """array[index], read anew from memory."""
    signature = types.int64(array, types.int64)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = builder.gep(_data(context, builder, array, args[0]), [args[1]])
        return builder.load_atomic(pointer, "seq_cst", 8)

    return signature, code


@intrinsic  # type: ignore[untyped-decorator]
def give_way(typing_context: Any) -> Any:
    """Let another thread have the core (POSIX sched_yield; nothing elsewhere)."""
    signature = types.void()

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if os.name == "posix":
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(ir.IntType(32), []), "sched_yield"
            )
            builder.call(function, [])
        return context.get_dummy_value()

    return signature, code
