"""Integer products of packed codes with the digits of activations, where a core has them.

AVX-512 VNNI multiplies 64 codes of a byte by 64 signed bytes and adds them up by fours, exactly; a
permutation, a shift of VBMI and a mask unpack 64 codes of any width. Activations are fixed-point
numbers of three digits in base 256, so that 64 weights take three such products in place of
unpacking, converting and multiplying floats, 16 at a time.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending
from numba.core import cgutils, types

from .machine import host_has
from .vectors import Vector, byte_address

__all__ = ["CODES", "DIGITS", "can_multiply_bytes", "dot_group", "store_digits"]

intrinsic: Any = extending.intrinsic

CODES = 64  # bytes of a register
# Numbers of three digits are as fine as float32; with two the product takes 10 % less time.
DIGITS = 3

_BYTE = ir.IntType(8)
_BYTES = ir.VectorType(_BYTE, CODES)
_WORDS = ir.VectorType(ir.IntType(32), 16)
_FLOATS = ir.VectorType(ir.FloatType(), 16)


def can_multiply_bytes() -> bool:
    """Return whether machine code for this very machine may multiply and permute bytes."""
    return host_has("avx512vnni") and host_has("avx512vbmi")


@intrinsic
def store_digits(typing_context, digits, place, numbers):
    """Write the digits of 16 numbers, rounded to integers of at most 127 * 256**2 in size.

    Those of one plane are side by side, the planes 64 apart.
    """

    def generate(context, builder, signature, arguments):
        address = byte_address(context, builder, digits, *arguments[:2])
        kind = ir.FunctionType(_FLOATS, [_FLOATS])
        nearest = cgutils.get_or_insert_function(builder.module, kind, "llvm.rint.v16f32")
        whole = builder.fptosi(builder.call(nearest, [arguments[2]]), _WORDS)
        # Digits from 0 to 255 of the number plus 128 in each place, less 128 in each byte.
        middle = ir.Constant(_WORDS, [0x808080] * 16)
        whole = builder.xor(builder.add(whole, middle), middle)
        narrow = ir.VectorType(_BYTE, 16)
        for plane in range(DIGITS):
            shifted = builder.lshr(whole, ir.Constant(_WORDS, [8 * plane] * 16))
            here = builder.gep(address, [ir.IntType(64)(CODES * plane)])
            here = builder.bitcast(here, narrow.as_pointer())
            builder.store(builder.trunc(shifted, narrow), here, align=1)
        return context.get_dummy_value()

    return types.none(digits, types.intp, numbers), generate


@intrinsic(prefer_literal=True)
def dot_group(typing_context, packed, place, bits, digits, first_digit, blocks):
    """Return 16 floats whose sum is that of codes times fixed-point numbers.

    There are ``blocks`` times 64 of each: codes of ``bits`` bits from byte ``place`` on, and
    digits from ``first_digit`` on, per block those of every number in one plane after the other,
    the lowest ones first.
    """
    vector = Vector(types.float32, 16)
    width = bits.literal_value

    def generate(context, builder, signature, arguments):
        codes_at = byte_address(context, builder, packed, arguments[0], arguments[1])
        digits_at = byte_address(context, builder, digits, arguments[3], arguments[4])
        totals = [cgutils.alloca_once(builder, _WORDS) for _ in range(DIGITS)]
        for total in totals:
            builder.store(ir.Constant(_WORDS, [0] * 16), total)
        # It takes its bytes as words.
        kind = ir.FunctionType(_WORDS, [_WORDS] * 3)
        name = "llvm.x86.avx512.vpdpbusd.512"
        multiply = cgutils.get_or_insert_function(builder.module, kind, name)
        with cgutils.for_range(builder, arguments[5]) as loop:
            start = builder.mul(loop.index, ir.IntType(64)(8 * width))
            codes = _unpack(builder, builder.gep(codes_at, [start]), width)
            start = builder.mul(loop.index, ir.IntType(64)(CODES * DIGITS))
            for plane, total in enumerate(totals):
                here = builder.gep(digits_at, [start])
                here = builder.gep(here, [ir.IntType(64)(CODES * plane)])
                digit = builder.load(builder.bitcast(here, _WORDS.as_pointer()), align=1)
                terms = [builder.load(total), builder.bitcast(codes, _WORDS), digit]
                builder.store(builder.call(multiply, terms), total)
        result = ir.Constant(_FLOATS, [0.0] * 16)
        for total in reversed(totals):
            result = builder.fmul(result, ir.Constant(_FLOATS, [256.0] * 16), flags=("contract",))
            part = builder.sitofp(builder.load(total), _FLOATS)
            result = builder.fadd(result, part, flags=("contract",))
        return result

    arguments = packed, types.intp, bits, digits, types.intp, types.intp
    return vector(*arguments), generate


def _unpack(builder: Any, address: Any, bits: int) -> Any:
    """Return 64 codes as bytes: eight codes are as many bytes as bits."""
    stream = ir.VectorType(_BYTE, 8 * bits)
    codes = builder.load(builder.bitcast(address, stream.as_pointer()), align=1)
    eights = [min(bits * (i // 8) + i % 8, 8 * bits - 1) for i in range(CODES)]
    places = ir.Constant(ir.VectorType(ir.IntType(32), CODES), eights)
    spread = builder.shuffle_vector(codes, codes, places)
    kind = ir.FunctionType(_BYTES, [_BYTES, _BYTES])
    name = "llvm.x86.avx512.pmultishift.qb.512"  # takes eight bits from anywhere in eight bytes
    shift = cgutils.get_or_insert_function(builder.module, kind, name)
    from_bit = ir.Constant(_BYTES, [bits * (i % 8) for i in range(CODES)])
    mask = ir.Constant(_BYTES, [(1 << bits) - 1] * CODES)
    return builder.and_(builder.call(shift, [from_bit, spread]), mask)
