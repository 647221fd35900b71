# SPDX-License-Identifier: Apache-2.0
"""What generated code calls: arithmetic that numpy lacks, or that is modelled by hand."""

import fractions
import math

import numpy as np

ALL_LANES = np.uint64(0xFFFFFFFFFFFFFFFF)
LANE_MASKS = (1 << np.arange(64, dtype=np.uint64)) - np.uint64(1)
LOWER_LO = (LANE_MASKS & np.uint64(0xFFFFFFFF)).astype(np.uint32)[None, :]
LOWER_HI = (LANE_MASKS >> np.uint64(32)).astype(np.uint32)[None, :]
SHIFT_32 = np.uint64(32)


def pair(low, high):
    """64 bits from two registers."""
    result = np.empty(low.shape, np.uint64)
    halves = result.view(np.uint32).reshape(low.shape + (2,))
    halves[..., 0] = low
    halves[..., 1] = high
    return result


def pack(mask):
    """(waves, 64) bool -> (waves,) uint64, lane 0 in bit 0."""
    return np.packbits(mask, axis=1, bitorder="little").view(np.uint64)[:, 0]


def unpack(masks):
    """(waves,) uint64 -> (waves, 64) bool."""
    octets = np.ascontiguousarray(masks).view(np.uint8).reshape(len(masks), 8)
    return np.unpackbits(octets, axis=1, bitorder="little").view(np.bool_)


def signext_from_bit(value, width):
    """The low `width` bits as a signed number; 0 for a width of 0."""
    bits = value.dtype.type(8 * value.dtype.itemsize)
    shift = (bits - width).astype(value.dtype)
    signed = (value << (shift % bits)) >> (shift % bits)
    return np.where(width == 0, value.dtype.type(0), signed)


def to_integer(value, dtype):
    """Truncates towards zero, saturates; NaN is 0."""
    limits = np.iinfo(dtype)
    wide = np.trunc(np.asarray(value, dtype=np.float64))
    inside = np.clip(np.where(np.isnan(wide), 0.0, wide), float(limits.min), float(limits.max))
    result = inside.astype(np.int64 if limits.min < 0 else np.uint64).astype(dtype)
    return result


def fma(a, b, c):
    """One rounding. float32: the product is exact in float64, the sum is rounded to odd there."""
    if np.asarray(a).dtype == np.float32:
        product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
        wide = np.asarray(c, np.float64) + np.zeros_like(product)
        total = product + wide
        back = total - product
        error = (product - (total - back)) + (wide - back)
        bits = np.ascontiguousarray(total).view(np.int64)
        inexact = (error != 0) & np.isfinite(total) & ((bits & 1) == 0)
        towards = np.where((error > 0) == (total > 0), 1, -1)
        odd = np.where(inexact, bits + towards, bits)
        return odd.view(np.float64).astype(np.float32)
    a, b, c = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (a, b, c)))
    result = np.empty(a.shape)
    flat = result.reshape(-1)
    for i, (x, y, z) in enumerate(
        zip(a.reshape(-1).tolist(), b.reshape(-1).tolist(), c.reshape(-1).tolist())
    ):
        if not (math.isfinite(x) and math.isfinite(y) and math.isfinite(z)):
            flat[i] = x * y + z
            continue
        exact = fractions.Fraction(x) * fractions.Fraction(y) + fractions.Fraction(z)
        if exact:
            try:
                flat[i] = exact.numerator / exact.denominator
            except OverflowError:
                flat[i] = math.copysign(math.inf, exact)
        else:
            flat[i] = x * y + z
    return result


# The side from which reciprocals are taken: hardware's are within 1 unit in the last place of a
# float32, 2^-24 of a float64.
RECIPROCALS = {"ascending": 0, "descending": -1, "pairwise": 1, "short": 0}


def reciprocal(value, order):
    """1 / value, to nearest; or, where that is inexact, its neighbour of float32 nearer to zero or
    farther from it, and of float64 what lies 2^-24 to that side."""
    value = np.asarray(value)
    result = value.dtype.type(1) / value
    side = RECIPROCALS[order]
    if not side:
        return result
    is_number = np.isfinite(result) & (result != 0)
    if value.dtype == np.float32:
        # Exact in float64.
        excess = np.abs(result.astype(np.float64) * value) - 1
        limit = np.copysign(np.float32(np.inf if side > 0 else 0), result)
        return np.where(is_number & (excess * side < 0), np.nextafter(result, limit), result)
    is_power = np.abs(np.frexp(value)[0]) == 0.5
    return np.where(is_number & ~is_power, result * (1 + side * 2.0**-24), result)


def _fill(value):
    value = np.array(value)
    shift = 1
    while shift < 8 * value.dtype.itemsize:
        value |= value >> value.dtype.type(shift)
        shift *= 2
    return value


def find_first_high(value):
    """Zeros above the highest one; -1 where there is none."""
    bits = np.uint32(8 * value.dtype.itemsize)
    ones = np.bitwise_count(_fill(value)).astype(np.uint32)
    return np.where(ones == 0, np.uint32(0xFFFFFFFF), bits - ones)


def find_first_one(value):
    """The index of the lowest one; -1 where there is none."""
    lowest = value & (~value + value.dtype.type(1))
    return np.where(
        value == 0,
        np.uint32(0xFFFFFFFF),
        np.bitwise_count(lowest - value.dtype.type(1)).astype(np.uint32),
    )


_REVERSED = np.array([int(f"{i:08b}"[::-1], 2) for i in range(256)], np.uint8)


def reverse_bits(value):
    value = np.ascontiguousarray(value)
    return _REVERSED[value.view(np.uint8)].view(np.uint32).reshape(value.shape).byteswap()


def byte_permute(high, low, select):
    """v_perm_b32: each byte of `select` picks one of {high, low}'s bytes (0 to 7: from low's lowest
    on), the sign of bytes 1, 3, 5, 7 (8 to 11), 0 (12) or 0xFF (13 and above)."""
    shape = np.broadcast_shapes(np.shape(high), np.shape(low), np.shape(select))
    first = np.asarray(select).flat[0]
    chosen = [int(first) >> 8 * i & 0xFF for i in range(4)]
    if all(one < 8 or one >= 12 for one in chosen) and (select == first).all():
        result = np.empty(shape + (4,), np.uint8)
        for i, which in enumerate(chosen):
            if which >= 12:
                result[..., i] = 0 if which == 12 else 0xFF
                continue
            source, byte = (low, which) if which < 4 else (high, which - 4)
            result[..., i] = (
                (source >> np.uint32(8 * byte)).astype(np.uint8)
                if byte
                else source.astype(np.uint8)
            )
        return result.view(np.uint32)[..., 0]
    # What each of the selections 0 to 13 gives, then a look-up.
    table = np.empty(shape + (16,), np.uint8)
    words = table.view(np.uint32)
    words[..., 0], words[..., 1] = low, high
    table[..., 8:12] = (table[..., 1:8:2] >> 7) * np.uint8(255)
    words[..., 3] = 0xFFFFFF00
    octets = np.ascontiguousarray(np.broadcast_to(select, shape)).view(np.uint8).reshape(-1, 4)
    places = np.minimum(octets, 13) + 16 * np.arange(len(octets))[:, None]
    return table.reshape(-1)[places].view(np.uint32).reshape(shape)


def first_lane(register, em):
    """The value of the lowest lane that is on; lane 0 where none is."""
    return register[np.arange(len(register)), em.argmax(axis=1)]


# FP4 (e2m1): sign, then 0, 0.5, 1, 1.5, 2, 3, 4, 6.
FP4_MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def to_fp4(value, scale):
    """Codes of value / 2^e, e the exponent of the float32 scale: nearest, ties to the even code,
    saturating; a NaN becomes 6 with its sign (FP4 has none)."""
    exponent = np.ascontiguousarray(scale, np.float32).view(np.uint32) >> np.uint32(23) & np.uint32(
        0xFF
    )
    scaled = np.ldexp(np.asarray(value, np.float64), 127 - exponent.astype(np.int32))
    magnitude = np.abs(scaled)
    middles = (FP4_MAGNITUDES[1:] + FP4_MAGNITUDES[:-1]) / 2
    code = np.zeros(magnitude.shape, np.uint32)
    for i, middle in enumerate(middles):
        # The upper code i + 1 is even where i is odd: a tie goes up.
        code += (magnitude >= middle if i % 2 else magnitude > middle).astype(np.uint32)
    code = np.where(np.isnan(scaled), np.uint32(7), code)
    return code | (np.signbit(scaled).astype(np.uint32) << np.uint32(3))


def convert_fp4(first, second, scale):
    return to_fp4(first, scale) | (to_fp4(second, scale) << np.uint32(4))


def halves(packed):
    """Two float16 of a register, as float32."""
    packed = np.ascontiguousarray(packed)
    return tuple(
        (packed >> np.uint32(shift)).astype(np.uint16).view(np.float16).astype(np.float32)
        for shift in (0, 16)
    )


def brain_halves(packed):
    """Two bfloat16 of a register, as float32."""
    packed = np.ascontiguousarray(packed)
    return (packed << np.uint32(16)).view(np.float32), (packed & np.uint32(0xFFFF0000)).view(
        np.float32
    )


def _exponent(value):
    return (np.ascontiguousarray(value).view(np.uint64) >> np.uint64(52) & np.uint64(0x7FF)).astype(
        np.int64
    )


def _is_denormal(value):
    return (_exponent(value) == 0) & (value != 0)


def div_scale_f64(s0, s1, s2):
    """(D0, VCC): the first branch of AMD's pseudo-code that holds, lane by lane. What the
    pseudo-code leaves unwritten, D0 = S0."""
    s0, s1, s2 = (np.ascontiguousarray(x) for x in np.broadcast_arrays(s0, s1, s2))
    up, down = np.ldexp(s0, 128), np.ldexp(s0, -128)
    no, yes = np.zeros(s0.shape, bool), np.ones(s0.shape, bool)
    inverse, quotient = _is_denormal(1.0 / s1), _is_denormal(s2 / s1)
    branches = [
        ((s2 == 0) | (s1 == 0), np.full(s0.shape, np.nan), no),
        (_exponent(s2) - _exponent(s1) >= 768, np.where(s0 == s1, up, s0), yes),
        (_is_denormal(s1), up, no),
        (inverse & quotient, np.where(s0 == s1, up, s0), yes),
        (inverse, down, no),
        (quotient, np.where(s0 == s2, up, s0), yes),
        (_exponent(s2) <= 53, up, no),
    ]
    conditions = [branch[0] for branch in branches]
    return (
        np.select(conditions, [branch[1] for branch in branches], s0),
        np.select(conditions, [branch[2] for branch in branches], no),
    )


def div_fixup_f64(s0, s1, s2):
    """AMD's pseudo-code, branch by branch: s0 the quotient, s1 the denominator, s2 the
    numerator."""
    s0, s1, s2 = (np.ascontiguousarray(x) for x in np.broadcast_arrays(s0, s1, s2))
    negative = np.signbit(s1) ^ np.signbit(s2)
    one = np.where(negative, -1.0, 1.0)
    far = _exponent(s2) - _exponent(s1)
    conditions = [
        np.isnan(s2),
        np.isnan(s1),
        ((s1 == 0) & (s2 == 0)) | (np.isinf(s1) & np.isinf(s2)),
        (s1 == 0) | np.isinf(s2),
        np.isinf(s1) | (s2 == 0),
        far < -1075,
        _exponent(s1) == 2047,
    ]
    tiny, huge = np.copysign(5e-324, one), np.copysign(np.inf, one)
    return np.select(
        conditions,
        [
            s2,
            s1,
            np.full(s0.shape, -np.nan),
            np.copysign(np.inf, one),
            np.copysign(0.0, one),
            tiny,
            huge,
        ],
        np.copysign(np.abs(s0), one),
    )
