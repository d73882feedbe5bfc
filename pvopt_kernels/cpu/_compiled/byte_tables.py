"""Tables of 256 entries looked up for 64 rows at once, where a core permutes bytes.

A load gives one entry per instruction. AVX-512 VBMI permutes the 64 bytes of a register by those
of another, so a table is kept as planes of bytes, and four permutations per plane look up the
entries of 64 codes: 17 cycles for three planes and their sums, where 64 loads of codebook entries
and their products take 64.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending
from numba.core import cgutils, types

from .machine import host_has
from .vectors import byte_address

__all__ = [
    "ENTRIES",
    "POSITIONS",
    "ROWS",
    "add_looked_up",
    "can_permute_bytes",
    "offset",
    "store_planes",
]

intrinsic: Any = extending.intrinsic

ROWS = 64  # bytes of a register
# Codes of a row that are looked up between two visits of its sum, a cache line. With 32 (their
# tables of three planes fit the first-level cache) the product takes as long, of two planes a tenth
# longer.
POSITIONS = 64
ENTRIES = 256
_LANE = 16  # bytes that shuffles stay within; positions whose codes the registers hold

_BYTES = ir.VectorType(ir.IntType(8), ROWS)
_WORDS = ir.VectorType(ir.IntType(32), 16)
_PAIRS = ir.VectorType(ir.IntType(16), 32)
_SUMS = ir.VectorType(ir.IntType(32), 32)


def can_permute_bytes() -> bool:
    """Return whether machine code for this very machine may permute bytes."""
    return host_has("avx512vbmi")


def offset(planes: int) -> int:
    """Return what makes entries unsigned: half the range of the integers.

    Three planes hold the 23 bits that a float of that size has below its point.

    Example:
        >>> from pvopt_kernels.cpu._compiled.byte_tables import offset
        >>> offset(2), offset(3)
        (32768, 4194304)
    """
    return 1 << (min(8 * planes, 23) - 1)


def _shuffle(builder: Any, left: Any, right: Any, places: list[int]) -> Any:
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places)
    return builder.shuffle_vector(left, right, mask)


def _load(builder: Any, address: Any, width: int) -> Any:
    """Return some bytes as a vector."""
    pointer = ir.VectorType(ir.IntType(8), width).as_pointer()
    return builder.load(builder.bitcast(address, pointer), align=1)


def _everywhere(kind: Any, value: int) -> Any:
    return ir.Constant(kind, [value] * kind.count)


@intrinsic(prefer_literal=True)
def store_planes(typing_context, tables, place, planes, a, b, c, d):
    """Write 64 entries of a table as unsigned integers, the planes of their bytes 256 apart.

    Lanes ``i`` of the four vectors are entries ``4 i`` to ``4 i + 3``, each less than
    :func:`offset` in size. Written are the integers nearest to the entries, plus :func:`offset`;
    the last plane has the highest bytes.
    """

    def generate(context, builder, signature, arguments):
        address = byte_address(context, builder, tables, *arguments[:2])
        # In floats from 2**23 to 2**24 the lowest bits are an integer.
        magic = ir.Constant(
            arguments[3].type, [float((1 << 23) + offset(planes.literal_value))] * 16
        )
        words = [
            builder.bitcast(builder.fadd(entries, magic, flags=("contract",)), _WORDS)
            for entries in arguments[3:]
        ]
        for plane in range(planes.literal_value):
            together = _everywhere(_WORDS, 0)
            for lane, word in enumerate(words):
                byte = builder.lshr(word, _everywhere(_WORDS, 8 * plane))
                byte = builder.and_(byte, _everywhere(_WORDS, 255))
                byte = builder.shl(byte, _everywhere(_WORDS, 8 * lane))
                together = builder.or_(together, byte)
            target = builder.gep(address, [ir.IntType(64)(ENTRIES * plane)])
            builder.store(together, builder.bitcast(target, _WORDS.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.none(tables, types.intp, planes, a, b, c, d), generate


@intrinsic(prefer_literal=True)
def add_looked_up(
    typing_context, codes, place, stride, tables, first_table, planes, factor, sums, sum_place
):
    """Add the entries that 64 codes of each of 64 rows name, times a factor, to sums.

    ``place`` is that of the first code of the first row, ``stride`` leads from row to row. Every
    position has a table as :func:`store_planes` writes it, one after the other from number
    ``first_table`` on. From ``sum_place`` on there are 64 sums, first those of even rows.
    """
    number = planes.literal_value

    def generate(context, builder, signature, arguments):
        _, start, step, _, table, _, scale, _, sum_start = arguments
        integer = ir.IntType(64)
        codes_at = byte_address(context, builder, codes, arguments[0], start)
        size = integer(ENTRIES * number)
        first_table = builder.mul(table, size)
        tables_at = byte_address(context, builder, tables, arguments[3], first_table)
        # Per plane: sums of pairs of bytes as they are, modulo 2**16, and of the upper bytes. 64
        # bytes add up to less than 2**14.
        totals = [cgutils.alloca_once(builder, _PAIRS) for _ in range(2 * number)]
        for total in totals:
            builder.store(_everywhere(_PAIRS, 0), total)
        with cgutils.for_range(builder, integer(POSITIONS // _LANE)) as loop:
            first = builder.mul(loop.index, integer(_LANE))
            columns = _columns(builder, builder.gep(codes_at, [first]), step)
            here = builder.gep(tables_at, [builder.mul(first, size)])
            for position, column in enumerate(columns):
                for plane in range(number):
                    entry = integer((position * number + plane) * ENTRIES)
                    found = _look_up(builder, builder.gep(here, [entry]), column)
                    found = builder.bitcast(found, _PAIRS)
                    upper = builder.lshr(found, _everywhere(_PAIRS, 8))
                    for total, part in ((2 * plane, found), (2 * plane + 1, upper)):
                        builder.store(builder.add(builder.load(totals[total]), part), totals[total])
        first_sum = builder.mul(sum_start, integer(4))
        sums_at = byte_address(context, builder, sums, arguments[7], first_sum)
        _add_planes(builder, [builder.load(total) for total in totals], scale, sums_at)
        return context.get_dummy_value()

    arguments = codes, types.intp, types.intp, tables, types.intp, planes, types.float32
    return types.none(*arguments, sums, types.intp), generate


def _columns(builder: Any, codes: Any, stride: Any) -> list[Any]:
    """Return the codes of 64 rows at 16 positions: one register per position."""
    registers = []
    for row in range(_LANE):
        quarters = []
        for lane in range(0, ROWS, _LANE):
            address = builder.gep(codes, [builder.mul(stride, ir.IntType(64)(row + lane))])
            quarters.append(_load(builder, address, _LANE))
        low, high = (
            _shuffle(builder, left, right, [*range(2 * _LANE)])
            for left, right in (quarters[:2], quarters[2:])
        )
        registers.append(_shuffle(builder, low, high, [*range(ROWS)]))
    # Transpose the 16 rows by 16 positions of every lane of 16 bytes: interleave the first
    # register with the ninth and so on, four times.
    byte, lanes = range(_LANE), range(0, ROWS, _LANE)
    low, high = (
        [ROWS * (i % 2) + i // 2 + lane + half for lane in lanes for i in byte] for half in (0, 8)
    )
    for _ in range(4):
        pairs = zip(registers[:8], registers[8:], strict=True)
        registers = [
            _shuffle(builder, left, right, half) for left, right in pairs for half in (low, high)
        ]
    return registers


def _look_up(builder: Any, table: Any, codes: Any) -> Any:
    """Return the bytes of a table of 256 that 64 codes name."""
    kind = ir.FunctionType(_BYTES, [_BYTES, _BYTES])
    name = "llvm.x86.avx512.permvar.qi.512"  # takes the lowest six bits of a code
    permute = cgutils.get_or_insert_function(builder.module, kind, name)
    quarters = [
        builder.call(
            permute, [_load(builder, builder.gep(table, [ir.IntType(64)(i)]), ROWS), codes]
        )
        for i in range(0, ENTRIES, ROWS)
    ]
    zero = _everywhere(_BYTES, 0)
    bit_7 = builder.icmp_signed("<", codes, zero)
    bit_6 = builder.icmp_signed("<", builder.add(codes, codes), zero)
    low, high = (builder.select(bit_6, quarters[i + 1], quarters[i]) for i in (0, 2))
    return builder.select(bit_7, high, low)


def _add_planes(builder: Any, totals: list[Any], scale: Any, sums: Any) -> None:
    """Put planes together, take off what :func:`store_planes` added, and add to the sums."""
    floats = ir.VectorType(ir.FloatType(), 32)
    nothing = ir.Constant(floats, ir.Undefined)
    first = builder.insert_element(nothing, scale, ir.IntType(32)(0))
    factor = _shuffle(builder, first, nothing, [0] * 32)
    planes = len(totals) // 2
    eight = _everywhere(_PAIRS, 8)
    for odd in (0, 1):
        whole = _everywhere(_SUMS, -POSITIONS * offset(planes))
        for plane in range(planes):
            both, upper = totals[2 * plane : 2 * plane + 2]
            part = upper if odd else builder.sub(both, builder.shl(upper, eight))
            wide = builder.shl(builder.zext(part, _SUMS), _everywhere(_SUMS, 8 * plane))
            whole = builder.add(whole, wide)
        address = builder.gep(sums, [ir.IntType(64)(128 * odd)])
        address = builder.bitcast(address, floats.as_pointer())
        # Contracted to one multiply-add.
        product = builder.fmul(builder.sitofp(whole, floats), factor, flags=("contract",))
        total = builder.fadd(builder.load(address, align=4), product, flags=("contract",))
        builder.store(total, address, align=4)
