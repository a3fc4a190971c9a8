"""What numba has no words for, as LLVM: addresses, bits of a word, atomics."""

from __future__ import annotations

import os
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


@intrinsic  # type: ignore[untyped-decorator]
def pointer(typing_context: Any, array: Any, offset: Any) -> Any:
    """The address of array[offset]: what arrays are to the kernels, since numba counts references to arrays atomically."""
    signature = types.CPointer(array.dtype)(array, types.int64)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.gep(context.make_array(array)(context, builder, args[0]).data, [args[1]])

    return signature, code


@intrinsic  # type: ignore[untyped-decorator]
def shifted(typing_context: Any, address: Any, offset: Any) -> Any:
    """The address `offset` elements behind an address."""
    signature = address(address, types.int64)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.gep(args[0], [args[1]])

    return signature, code


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
        place = builder.gep(args[0], [args[1]])
        return builder.atomic_rmw("add", place, args[2], "seq_cst")

    return signature, code


@intrinsic  # type: ignore[untyped-decorator]
def atomic_load(typing_context: Any, array: Any, index: Any) -> Any:
    """array[index], read anew from memory."""
    signature = types.int64(array, types.int64)

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = builder.gep(args[0], [args[1]])
        return builder.load_atomic(place, "seq_cst", 8)

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
