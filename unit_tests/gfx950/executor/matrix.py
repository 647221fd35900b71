# SPDX-License-Identifier: Apache-2.0
"""Matrix instructions, modelled by hand.

Layouts (waves of 64 lanes): of A (16 x K) lane l holds row l % 16 and of B (K x 16) column l % 16,
both the K / 4 elements from l / 16 * (K / 4) on; of C and D (16 x 16) lane l holds column l % 16
and, in register r, row 4 * (l / 16) + r.

Float sums in ways that a unit might choose:
    ascending    C + p_0, + p_1, ...: each rounded to float32, nearest even
    descending   C + p_(K-1), ...: each cut to 24 bits, subnormals flushed to zero
    pairwise     a tree over the products, then C: each rounded to float32
    short        as ascending, but rounded to 22 bits: a unit that nobody should trust with 24
"""

import numpy as np

ORDERS = ("ascending", "descending", "pairwise", "short")
# Codes of FP4 in halves.
FP4_HALVES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float64)
_PAIRS = np.stack([FP4_HALVES[np.arange(256) & 15], FP4_HALVES[np.arange(256) >> 4]], axis=1)


def rows(registers):
    """(4 registers, waves, 64) -> (waves, 16 rows, 4 blocks of K, 16 bytes)."""
    waves = registers.shape[1]
    lanes = np.ascontiguousarray(registers.transpose(1, 2, 0)).view(np.uint8)
    return lanes.reshape(waves, 4, 16, 16).transpose(0, 2, 1, 3)


def from_lanes(registers):
    """C: (4 registers, waves, 64) -> (waves, 16, 16)."""
    waves = registers.shape[1]
    return registers.reshape(4, waves, 4, 16).transpose(1, 2, 0, 3).reshape(waves, 16, 16)


def to_lanes(matrix):
    """D: (waves, 16, 16) -> (4 registers, waves, 64)."""
    waves = len(matrix)
    return matrix.reshape(waves, 4, 4, 16).transpose(2, 0, 1, 3).reshape(4, waves, 64)


def int8(a, b, c):
    """v_mfma_i32_16x16x64_i8: C + A * B modulo 2^32; registers (4, waves, 64) uint32."""
    waves = a.shape[1]
    a = rows(a).view(np.int8).reshape(waves, 16, 64).astype(np.float32)
    b = rows(b).view(np.int8).reshape(waves, 16, 64).astype(np.float32)
    # At most 64 * 2^14 = 2^20: exact in float32.
    product = np.matmul(a, b.transpose(0, 2, 1)).astype(np.int32).view(np.uint32)
    return to_lanes(product) if c is None else to_lanes(product) + c


def flushed(value):
    return np.where(np.abs(value) < 2.0**-126, np.copysign(np.float32(0), value), value).astype(
        np.float32
    )


def cut(value):
    """float64 -> float32 towards zero."""
    near = value.astype(np.float32)
    above = np.abs(near.astype(np.float64)) > np.abs(value)
    return np.where(above, np.nextafter(near, np.float32(0)), near)


def add(a, b):
    """The exact float32 sum in float64, rounded to odd, so that any rounding after it is right."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    total = a + b
    back = total - a
    error = (a - (total - back)) + (b - back)
    bits = total.view(np.int64)
    inexact = (error != 0) & np.isfinite(total) & ((bits & 1) == 0)
    return np.where(inexact, bits + np.where((error > 0) == (total > 0), 1, -1), bits).view(
        np.float64
    )


def in_order(products, c, order):
    """Sums products (K, n), exact in float64, and c (n), float32."""
    k = len(products)
    near = products.astype(np.float32)
    if order in ("ascending", "pairwise") and (near == products).all():
        # float32 holds the products, so its own addition rounds once.
        if order == "ascending":
            total = c
            for i in range(k):
                total = total + near[i]
            return total
        while len(near) > 1:
            near = near[0::2] + near[1::2]
        return near[0] + c
    if order == "ascending":
        total = c
        for i in range(k):
            total = add(total, products[i]).astype(np.float32)
        return total
    if order == "descending":
        total = flushed(c)
        for i in reversed(range(k)):
            total = flushed(cut(add(total, products[i])))
        return total
    if order == "pairwise":
        while len(near) > 1:
            near = add(near[0::2], near[1::2]).astype(np.float32)
        return add(near[0], c).astype(np.float32)
    if order == "short":
        total = c
        for i in range(k):
            mantissa, exponent = np.frexp(add(total, products[i]))
            total = np.ldexp(np.rint(np.ldexp(mantissa, 22)), exponent - 22).astype(np.float32)
        return total
    raise ValueError(order)


def scaled_fp4(a, b, c, scale_a, scale_b, order):
    """v_mfma_scale_f32_16x16x128_f8f6f4 on FP4: registers (4, waves, 64) uint32, c as bits of
    float32; scales (waves, 64) uint8: lane l's is that of its row (column) and its block of 32
    codes; a scale of 255 is NaN, 0 is 2^-127."""
    waves = a.shape[1]
    a = _PAIRS[rows(a)].reshape(waves, 16, 4, 32)
    b = _PAIRS[rows(b)].reshape(waves, 16, 4, 32)
    # (waves, 16, 4 blocks)
    scale_a = scale_a.reshape(waves, 4, 16).transpose(0, 2, 1).astype(np.int32)
    scale_b = scale_b.reshape(waves, 4, 16).transpose(0, 2, 1).astype(np.int32)
    c = np.zeros((waves, 16, 16), np.float32) if c is None else from_lanes(c).view(np.float32)
    is_nan = (scale_a == 255).any(axis=2)[:, :, None] | (scale_b == 255).any(axis=2)[:, None, :]
    # Blocks' sums of products in quarters: integers, exact. What they are multiplied by: 2^unit.
    blocks = np.matmul(a.transpose(0, 2, 1, 3), b.transpose(0, 2, 3, 1))  # (waves, 4, 16, 16)
    sizes = np.matmul(np.abs(a).transpose(0, 2, 1, 3), np.abs(b).transpose(0, 2, 3, 1))
    units = (
        scale_a.transpose(0, 2, 1)[:, :, :, None] + scale_b.transpose(0, 2, 1)[:, :, None, :]
    ) - 256
    # Where all terms are multiples of 2^least and their sizes sum to at most 2^24 of it (2^22 for
    # short), every partial sum in every order is exact.
    least = np.where(sizes > 0, units, 1 << 20).min(axis=1)
    empty = least == 1 << 20
    least = np.where(empty, 0, least)
    factor = np.ldexp(1.0, np.clip(units - least[:, None], 0, 60))
    size = np.where(sizes > 0, sizes * factor, 0).sum(axis=1)
    scaled_c = np.ldexp(c.astype(np.float64), -least)
    fits = (
        (np.abs(scaled_c) + size <= (2.0**22 if order == "short" else 2.0**24))
        & (scaled_c == np.rint(scaled_c))
        & (least >= -126)
        & (least <= 103)
    )
    fits |= empty & ((c == 0) | (np.abs(c) >= 2.0**-126))
    total = np.where(blocks != 0, blocks * factor, 0).sum(axis=1) + np.where(empty, 0, scaled_c)
    result = np.where(empty, c, np.ldexp(total, least)).astype(np.float32)
    # Zeros with signs are left to the models.
    fits &= (c != 0) | ~np.signbit(c)
    if not fits.all():
        wave, row, column = np.nonzero(~fits)
        products = np.ldexp(
            (a[wave, row] * b[wave, column]).transpose(1, 2, 0),
            units[wave, :, row, column].T[:, None],
        )  # (4, 32, n)
        result[wave, row, column] = in_order(products.reshape(128, -1), c[wave, row, column], order)
    result[is_nan] = np.nan
    return to_lanes(result.view(np.uint32))
