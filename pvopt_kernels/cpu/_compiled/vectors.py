"""Vectors of floats in compiled code: a group of weights as one value.

LLVM finds the vectors in a loop over thousands of entries by itself, but not in the eight entries
of a group: written as scalars, a product of decoded groups with a vector took 99 ms where this
takes 3.8. The type stands for LLVM's own vectors, so any width works on any machine; operations
may be contracted to fused multiply-adds, as in the loops of torch, and are never reordered.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import extending
from numba.core import cgutils, types
from numba.extending import models, overload, register_model
from numba.np import arrayobj

__all__ = [
    "AHEAD",
    "Vector",
    "at_most",
    "byte_address",
    "fence",
    "item",
    "least",
    "load",
    "lowest_bit",
    "memory",
    "pick",
    "prefetch",
    "read",
    "repeated",
    "spread",
    "store",
    "store_bytes",
    "stream",
    "total",
    "unpack",
    "word",
    "write",
]

# Its functions take a typing context that callers do not give: no type checker follows that.
intrinsic: Any = extending.intrinsic

# How many entries before their turn memory is asked for: left to itself a core waits at the start
# of every page of 4 KiB. Norms of 885k weights that are in no cache take 0.50 ms as they come and
# 0.37 from 512, 1024 or 2048 entries ahead; gradients of codebooks 0.45 and 0.31.
AHEAD = 1024

_SCALARS = {"float32": ir.FloatType(), "float64": ir.DoubleType(), "int32": ir.IntType(32)}


class Vector(types.Type):
    """The numba type of ``width`` scalars.

    Args:
        scalar: float32, float64 or int32, as a numba type.
        width: number of entries.
    """

    def __init__(self, scalar: types.Type, width: int) -> None:
        self.scalar, self.width = scalar, width
        super().__init__(name=f"Vector({scalar}, {width})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, ir.VectorType(_SCALARS[str(vector.scalar)], vector.width))


def _position(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Return the address of an entry of a contiguous array, by its flat position."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


def byte_address(context: Any, builder: Any, array_type: Any, array: Any, place: Any) -> Any:
    """Return the address of a byte of an array, as a pointer to bytes."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(builder.bitcast(data, ir.IntType(8).as_pointer()), [place])


@intrinsic
def item(typing_context, array, index):
    """Return an integer entry by its flat position, without the check for negative positions."""

    def generate(context, builder, signature, arguments):
        address = _position(context, builder, array, *arguments)
        return context.cast(builder, builder.load(address), array.dtype, types.intp)

    return types.intp(array, types.intp), generate


@intrinsic(prefer_literal=True)
def load(typing_context, array, index, width):
    """Return ``width`` entries of a contiguous array from a flat position on."""
    vector = Vector(array.dtype, width.literal_value)

    def generate(context, builder, signature, arguments):
        address = _position(context, builder, array, *arguments[:2])
        pointer = context.get_value_type(vector).as_pointer()
        return builder.load(builder.bitcast(address, pointer), align=array.dtype.bitwidth // 8)

    return vector(array, types.intp, width), generate


@intrinsic(prefer_literal=True)
def repeated(typing_context, array, index, count, times):
    """Return ``count`` entries from a flat position on, each of them ``times`` in succession."""
    number, often = count.literal_value, times.literal_value
    vector = Vector(array.dtype, number * often)

    def generate(context, builder, signature, arguments):
        address = _position(context, builder, array, *arguments[:2])
        kind = ir.VectorType(_SCALARS[str(array.dtype)], number)
        few = builder.load(
            builder.bitcast(address, kind.as_pointer()), align=array.dtype.bitwidth // 8
        )
        wide = ir.VectorType(ir.IntType(32), vector.width)
        places = ir.Constant(wide, [i // often for i in range(vector.width)])
        return builder.shuffle_vector(few, few, places)

    return vector(array, types.intp, count, times), generate


@intrinsic
def store(typing_context, array, index, vector):
    """Write a vector into a contiguous array from a flat position on."""

    def generate(context, builder, signature, arguments):
        address = _position(context, builder, array, *arguments[:2])
        pointer = context.get_value_type(vector).as_pointer()
        address = builder.bitcast(address, pointer)
        builder.store(arguments[2], address, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(array, types.intp, vector), generate


@intrinsic
def store_bytes(typing_context, array, index, vector):
    """Write the lowest byte of each int32 of a vector into an array of bytes."""

    def generate(context, builder, signature, arguments):
        address = _position(context, builder, array, *arguments[:2])
        narrow = builder.trunc(arguments[2], ir.VectorType(ir.IntType(8), vector.width))
        builder.store(narrow, builder.bitcast(address, narrow.type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.none(array, types.intp, vector), generate


@intrinsic
def memory(typing_context, address, kind):
    """Return the array of one entry that begins at an address.

    It is there for its position only: nothing that reads or writes here looks at its length. It
    has the type of ``kind``: float32, or integers that :func:`read` takes for floats.
    """

    def generate(context, builder, signature, arguments):
        array = context.make_array(kind)(context, builder)
        pointer = context.get_value_type(types.CPointer(kind.dtype))
        size = context.get_constant(types.intp, kind.dtype.bitwidth // 8)
        arrayobj.populate_array(
            array,
            data=builder.inttoptr(arguments[0], pointer),
            shape=[context.get_constant(types.intp, 1)],
            strides=[size],
            itemsize=size,
            meminfo=None,
        )
        return array._getvalue()

    return kind(address, kind), generate


# Half precision has no numba type of its own: bfloat16 is kept in uint16 and float16 in int16.
_BFLOAT16, _FLOAT16 = types.uint16, types.int16


@intrinsic(prefer_literal=True)
def read(typing_context, array, index, width):
    """Return ``width`` weights of an array of float32, bfloat16 or float16, as float32."""
    number, vector = array.dtype, Vector(types.float32, width.literal_value)

    def generate(context, builder, signature, arguments):
        address = _position(context, builder, array, *arguments[:2])
        single = context.get_value_type(vector)
        if number == types.float32:
            return builder.load(builder.bitcast(address, single.as_pointer()), align=4)
        half = ir.HalfType() if number == _FLOAT16 else ir.IntType(16)
        kind = ir.VectorType(half, vector.width)
        value = builder.load(builder.bitcast(address, kind.as_pointer()), align=2)
        if number == _FLOAT16:
            return builder.fpext(value, single)
        wide = ir.VectorType(ir.IntType(32), vector.width)
        sixteen = ir.Constant(wide, [16] * vector.width)
        return builder.bitcast(builder.shl(builder.zext(value, wide), sixteen), single)

    return vector(array, types.intp, width), generate


@intrinsic
def write(typing_context, array, index, vector):
    """Round float32 weights to an array of float32, bfloat16 or float16."""
    number = array.dtype

    def generate(context, builder, signature, arguments):
        address = _position(context, builder, array, *arguments[:2])
        _store_rounded(builder, number, address, arguments[2], vector.width, False)
        return context.get_dummy_value()

    return types.none(array, types.intp, vector), generate


@intrinsic
def stream(typing_context, array, index, vector):
    """Do what :func:`write` does past the caches, which otherwise first read what is overwritten.

    The place must be a multiple of the bytes that are written. 424 MB of decoded weights take 25 ms
    in place of 50. Call :func:`fence` when all is written.
    """
    number = array.dtype

    def generate(context, builder, signature, arguments):
        address = _position(context, builder, array, *arguments[:2])
        instruction = _store_rounded(builder, number, address, arguments[2], vector.width, True)
        once = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        instruction.set_metadata("nontemporal", once)
        return context.get_dummy_value()

    return types.none(array, types.intp, vector), generate


@intrinsic
def fence(typing_context):
    """Wait until what was streamed can be seen by other threads."""

    def generate(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), generate


def _store_rounded(
    builder: Any, number: Any, address: Any, value: Any, width: int, aligned: bool
) -> Any:
    if number == _FLOAT16:
        value = builder.fptrunc(value, ir.VectorType(ir.HalfType(), width))
    elif number == _BFLOAT16:
        value = _to_bfloat16(builder, value, width)
    size = number.bitwidth // 8
    address = builder.bitcast(address, value.type.as_pointer())
    return builder.store(value, address, align=size * width if aligned else size)


def _to_bfloat16(builder: Any, value: Any, width: int) -> Any:
    """Round to nearest, ties to even; NaN stays NaN."""
    wide = ir.VectorType(ir.IntType(32), width)

    def everywhere(number: int) -> Any:
        return ir.Constant(wide, [number] * width)

    bits = builder.bitcast(value, wide)
    upper = builder.lshr(bits, everywhere(16))
    carry = builder.add(builder.and_(upper, everywhere(1)), everywhere(0x7FFF))
    rounded = builder.lshr(builder.add(bits, carry), everywhere(16))
    nothing = builder.fcmp_unordered("uno", value, value)
    rounded = builder.select(nothing, everywhere(0x7FC0), rounded)
    return builder.trunc(rounded, ir.VectorType(ir.IntType(16), width))


@intrinsic
def prefetch(typing_context, array, index):
    """Ask for the memory of an entry, which may lie beyond the end, without waiting for it."""

    def generate(context, builder, signature, arguments):
        number = ir.IntType(32)
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        address = builder.bitcast(_position(context, builder, array, *arguments), byte)
        # To be read, kept in every cache, and data.
        builder.call(function, [address, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.none(array, types.intp), generate


@intrinsic(prefer_literal=True)
def spread(typing_context, value, width):
    """Return a vector of equal entries."""
    scalar = types.unliteral(value)
    vector = Vector(scalar, width.literal_value)

    def generate(context, builder, signature, arguments):
        kind = context.get_value_type(vector)
        nothing = ir.Constant(kind, ir.Undefined)
        first = builder.insert_element(nothing, arguments[0], ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.width), [0] * vector.width)
        return builder.shuffle_vector(first, nothing, zeros)

    return vector(scalar, width), generate


def _arithmetic(operation: Any, instruction: str) -> None:
    """Define a binary operator on vectors of equal type."""

    @intrinsic
    def apply(typing_context, left, right):
        def generate(context, builder, signature, arguments):
            return getattr(builder, instruction)(*arguments, flags=("contract",))

        return left(left, right), generate

    @overload(operation, inline="always")
    def choose(left, right):
        if isinstance(left, Vector) and left == right:
            return lambda left, right: apply(left, right)
        return None


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")


@intrinsic
def total(typing_context, vector):
    """Return the sum of the entries, halves added to halves."""

    def generate(context, builder, signature, arguments):
        places = [ir.Constant(ir.IntType(32), i) for i in range(vector.width)]
        parts = [builder.extract_element(arguments[0], place) for place in places]
        while len(parts) > 1:
            half = (len(parts) + 1) // 2
            pairs = [builder.fadd(a, b) for a, b in zip(parts, parts[half:], strict=False)]
            parts = pairs + parts[len(pairs) : half]
        return parts[0]

    return vector.scalar(vector), generate


@intrinsic
def pick(typing_context, left, right, yes, no):
    """Return ``yes`` where ``left < right`` and ``no`` elsewhere (also where one is NaN)."""

    def generate(context, builder, signature, arguments):
        less = builder.fcmp_ordered("<", arguments[0], arguments[1])
        return builder.select(less, arguments[2], arguments[3])

    return yes(left, right, yes, no), generate


@intrinsic
def least(typing_context, vector):
    """Return the smallest entry, halves compared with halves; no entry may be NaN.

    LLVM's own reduction compares one entry after the other, with a look for NaN at each: 130
    cycles for 16 entries where this takes 25.
    """

    def generate(context, builder, signature, arguments):
        rest, width = arguments[0], vector.width
        while width > 1:
            half = (width + 1) // 2
            low, high = (
                builder.shuffle_vector(
                    rest, rest, ir.Constant(ir.VectorType(ir.IntType(32), half), places)
                )
                for places in ([*range(half)], [*range(width - half, width)])
            )
            rest = builder.select(builder.fcmp_ordered("<", low, high), low, high)
            width = half
        return builder.extract_element(rest, ir.Constant(ir.IntType(32), 0))

    return vector.scalar(vector), generate


@intrinsic
def at_most(typing_context, left, right):
    """Return a number whose bit ``i`` says whether ``left[i] <= right[i]``."""

    def generate(context, builder, signature, arguments):
        bits = builder.fcmp_ordered("<=", arguments[0], arguments[1])
        return builder.zext(builder.bitcast(bits, ir.IntType(left.width)), ir.IntType(64))

    return types.int64(left, right), generate


@intrinsic
def lowest_bit(typing_context, bits):
    """Return the number of the lowest bit that is set, of at least one."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), generate


@intrinsic
def word(typing_context, array, position):
    """Return the eight bytes of a byte array from a position on, the first one lowest."""

    def generate(context, builder, signature, arguments):
        address = _position(context, builder, array, *arguments)
        return builder.load(builder.bitcast(address, ir.IntType(64).as_pointer()), align=1)

    return types.uint64(array, types.intp), generate


@intrinsic(prefer_literal=True)
def unpack(typing_context, bits, width, lane):
    """Return the eight lowest numbers of ``width`` bits each as float32.

    They are taken apart in lanes of 64 bits, or of 32 where eight of them are no more, which
    halves the instructions.
    """
    vector = Vector(types.float32, 8)

    def generate(context, builder, signature, arguments):
        scalar = ir.IntType(lane.literal_value)
        lanes = ir.VectorType(scalar, 8)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), 8), [0] * 8)

        def everywhere(number):
            if lane.literal_value < 64:
                number = builder.trunc(number, scalar)
            nothing = ir.Constant(lanes, ir.Undefined)
            first = builder.insert_element(nothing, number, ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(first, nothing, zeros)

        one = ir.Constant(ir.IntType(64), 1)
        mask = builder.sub(builder.shl(one, arguments[1]), one)
        shifts = builder.mul(everywhere(arguments[1]), ir.Constant(lanes, list(range(8))))
        numbers = builder.and_(builder.lshr(everywhere(arguments[0]), shifts), everywhere(mask))
        if lane.literal_value > 32:
            numbers = builder.trunc(numbers, ir.VectorType(ir.IntType(32), 8))
        return builder.sitofp(numbers, context.get_value_type(vector))

    return vector(types.uint64, types.int64, lane), generate
