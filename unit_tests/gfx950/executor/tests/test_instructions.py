# SPDX-License-Identifier: Apache-2.0
"""Instructions one by one against definitions in Python's own integers and fractions, which share
nothing with the executor: neither AMD's pseudo-code nor numpy."""

import fractions
import math
import random
import struct

import numpy as np
import pytest

from .support import Alone

M16, M32, M64 = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF


def signed(value, bits):
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def high_zeros(value, bits):
    return M32 if not value else bits - value.bit_length()


def low_zeros(value):
    return M32 if not value else (value & -value).bit_length() - 1


def field(value, at, width, bits, is_signed):
    value = signed(value, bits) >> at if is_signed else value >> at
    value &= (1 << width) - 1
    return signed(value, width) if is_signed and width else value


def bitop(table, a, b, c, bits):
    result = 0
    for i in range(bits):
        row = (a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)
        result |= (table >> row & 1) << i
    return result


def dot4(a, b, c):
    return sum((a >> at & 255) * (b >> at & 255) for at in (0, 8, 16, 24)) + c


def perm(a, b, select):
    data = (a << 32 | b).to_bytes(8, "little")
    result = []
    for which in select.to_bytes(4, "little"):
        if which < 8:
            result.append(data[which])
        elif which < 12:
            result.append(0xFF if data[2 * (which - 8) + 1] & 0x80 else 0)
        else:
            result.append(0 if which == 12 else 0xFF)
    return int.from_bytes(bytes(result), "little")


def halves(function, *values):
    low = function(*(value & M16 for value in values)) & M16
    return low | (function(*(value >> 16 for value in values)) & M16) << 16


def to_float(bits, form="<I", out="<f"):
    return struct.unpack(out, struct.pack(form, bits))[0]


def fma32(a, b, c):
    """Exact, then rounded once."""
    a, b, c = to_float(a), to_float(b), to_float(c)
    if not all(map(math.isfinite, (a, b, c))):
        return None
    exact = fractions.Fraction(a) * fractions.Fraction(b) + fractions.Fraction(c)
    if not exact:
        return None
    return round_to_float32(exact)


def exact32(function, *values):
    """Finite numbers; a result of 0 has a sign, which is left out."""
    values = [to_float(value) for value in values]
    if not all(map(math.isfinite, values)):
        return None
    exact = function(*map(fractions.Fraction, values))
    return round_to_float32(exact) if exact else None


def round_to_float32(exact):
    """Bits of the nearest float32, ties to even."""
    sign = 1 if exact < 0 else 0
    size = abs(exact)
    exponent = max(
        -126, math.floor(math.log2(size)) if size >= fractions.Fraction(1, 1 << 900) else -126
    )
    while size >= fractions.Fraction(2) ** (exponent + 1):
        exponent += 1
    while exponent > -126 and size < fractions.Fraction(2) ** exponent:
        exponent -= 1
    steps = size / fractions.Fraction(2) ** (exponent - 23)
    whole = steps.numerator // steps.denominator
    rest = steps - whole
    if rest > fractions.Fraction(1, 2) or rest == fractions.Fraction(1, 2) and whole & 1:
        whole += 1
    if whole == 1 << 24:
        whole, exponent = whole >> 1, exponent + 1
    if exponent > 127:
        return sign << 31 | 0x7F800000
    if whole < 1 << 23:
        return sign << 31 | whole
    return sign << 31 | (exponent + 127) << 23 | whole - (1 << 23)


# Vector instructions: v1, v2, v3 (32 bits) or v[2:3], v[4:5], v[6:7] (64), result v10 or v[10:11].
# A definition gives the result, or (result, mask bit).
VECTOR32 = {
    "v_add_u32_e32 v10, v1, v2": lambda a, b, c: a + b,
    "v_sub_u32_e32 v10, v1, v2": lambda a, b, c: a - b,
    "v_subrev_u32_e32 v10, v1, v2": lambda a, b, c: b - a,
    "v_add3_u32 v10, v1, v2, v3": lambda a, b, c: a + b + c,
    "v_lshl_add_u32 v10, v1, v2, v3": lambda a, b, c: (a << (b & 31)) + c,
    "v_lshl_or_b32 v10, v1, v2, v3": lambda a, b, c: a << (b & 31) | c,
    "v_and_or_b32 v10, v1, v2, v3": lambda a, b, c: a & b | c,
    "v_or3_b32 v10, v1, v2, v3": lambda a, b, c: a | b | c,
    "v_xad_u32 v10, v1, v2, v3": lambda a, b, c: (a ^ b) + c,
    "v_bfi_b32 v10, v1, v2, v3": lambda a, b, c: a & b | ~a & c,
    "v_alignbit_b32 v10, v1, v2, v3": lambda a, b, c: (a << 32 | b) >> (c & 31),
    "v_bfe_u32 v10, v1, v2, v3": lambda a, b, c: field(a, b & 31, c & 31, 32, False),
    "v_bfe_i32 v10, v1, v2, v3": lambda a, b, c: field(a, b & 31, c & 31, 32, True),
    "v_ashrrev_i32_e32 v10, v1, v2": lambda a, b, c: signed(b, 32) >> (a & 31),
    "v_lshrrev_b32_e32 v10, v1, v2": lambda a, b, c: b >> (a & 31),
    "v_lshlrev_b32_e32 v10, v1, v2": lambda a, b, c: b << (a & 31),
    "v_max_i32_e32 v10, v1, v2": lambda a, b, c: max(signed(a, 32), signed(b, 32)),
    "v_min_i32_e32 v10, v1, v2": lambda a, b, c: min(signed(a, 32), signed(b, 32)),
    "v_max_u32_e32 v10, v1, v2": lambda a, b, c: max(a, b),
    "v_min_u32_e32 v10, v1, v2": lambda a, b, c: min(a, b),
    "v_max3_u32 v10, v1, v2, v3": lambda a, b, c: max(a, b, c),
    "v_max3_i32 v10, v1, v2, v3": lambda a, b, c: max(signed(x, 32) for x in (a, b, c)),
    "v_mul_lo_u32 v10, v1, v2": lambda a, b, c: a * b,
    "v_mul_hi_u32 v10, v1, v2": lambda a, b, c: a * b >> 32,
    "v_mul_u32_u24_e32 v10, v1, v2": lambda a, b, c: (a & 0xFFFFFF) * (b & 0xFFFFFF),
    "v_mul_hi_u32_u24_e32 v10, v1, v2": lambda a, b, c: (a & 0xFFFFFF) * (b & 0xFFFFFF) >> 32,
    "v_mul_i32_i24_e32 v10, v1, v2": lambda a, b, c: signed(a, 24) * signed(b, 24),
    "v_mad_u32_u24 v10, v1, v2, v3": lambda a, b, c: (a & 0xFFFFFF) * (b & 0xFFFFFF) + c,
    "v_mad_i32_i24 v10, v1, v2, v3": lambda a, b, c: signed(a, 24) * signed(b, 24) + c,
    "v_ffbh_u32_e32 v10, v1": lambda a, b, c: high_zeros(a, 32),
    "v_bfrev_b32_e32 v10, v1": lambda a, b, c: int(f"{a:032b}"[::-1], 2),
    "v_perm_b32 v10, v1, v2, v3": perm,
    "v_dot4_u32_u8 v10, v1, v2, v3": dot4,
    "v_perm_b32 v10, v1, v2, s4": lambda a, b, c: perm(a, b, 0x0C070D02),
    "v_perm_b32 v10, v1, v2, s5": lambda a, b, c: perm(a, b, 0x0B040908),
    "v_bitop3_b32 v10, v1, v2, v3 bitop3:0x36": lambda a, b, c: bitop(0x36, a, b, c, 32),
    "v_bitop3_b32 v10, v1, v2, v3 bitop3:0xec": lambda a, b, c: bitop(0xEC, a, b, c, 32),
    "v_bitop3_b32 v10, v1, v2, v3 bitop3:0x7f": lambda a, b, c: bitop(0x7F, a, b, c, 32),
    "v_add_u16_e32 v10, v1, v2": lambda a, b, c: a + b & M16,
    "v_sub_u16_e32 v10, v1, v2": lambda a, b, c: a - b & M16,
    "v_sub_u16_e64 v10, v1, v2 clamp": lambda a, b, c: max(0, (a & M16) - (b & M16)),
    "v_add_u16_e64 v10, v1, v2 clamp": lambda a, b, c: min(M16, (a & M16) + (b & M16)),
    "v_mul_lo_u16_e32 v10, v1, v2": lambda a, b, c: (a & M16) * (b & M16) & M16,
    "v_mad_legacy_u16 v10, v1, v2, v3": lambda a, b, c: (a * b + c) & M16,
    "v_lshlrev_b16_e32 v10, v1, v2": lambda a, b, c: b << (a & 15) & M16,
    "v_lshrrev_b16_e32 v10, v1, v2": lambda a, b, c: (b & M16) >> (a & 15),
    "v_max_u16_e32 v10, v1, v2": lambda a, b, c: max(a & M16, b & M16),
    "v_min_u16_e32 v10, v1, v2": lambda a, b, c: min(a & M16, b & M16),
    "v_pk_add_u16 v10, v1, v2": lambda a, b, c: halves(lambda x, y: x + y, a, b),
    "v_pk_sub_i16 v10, v1, v2": lambda a, b, c: halves(lambda x, y: x - y, a, b),
    "v_pk_sub_u16 v10, v1, v2 clamp": lambda a, b, c: halves(lambda x, y: max(0, x - y), a, b),
    "v_pk_max_u16 v10, v1, v2": lambda a, b, c: halves(max, a, b),
    "v_pk_mul_lo_u16 v10, v1, v2": lambda a, b, c: halves(lambda x, y: x * y, a, b),
    "v_pk_mad_u16 v10, v1, v2, v3": lambda a, b, c: halves(lambda x, y, z: x * y + z, a, b, c),
    "v_pk_lshrrev_b16 v10, v1, v2": lambda a, b, c: halves(lambda x, y: y >> (x & 15), a, b),
    "v_pk_lshrrev_b16 v10, 3, v2 op_sel_hi:[0,1]": lambda a, b, c: halves(lambda y: y >> 3, b),
    "v_pk_add_u16 v10, v1, -4 op_sel_hi:[1,0]": lambda a, b, c: halves(lambda x: x - 4, a),
    "v_pk_add_u16 v10, v1, v2 op_sel:[1,0] op_sel_hi:[0,1]": lambda a, b, c: halves(
        lambda x, y: x + y, a >> 16 | (a & M16) << 16, b
    ),
    "v_or_b32_sdwa v10, v1, v2 dst_sel:WORD_1 dst_unused:UNUSED_PAD src0_sel:BYTE_3 src1_sel:DWORD": lambda a, b, c: (
        (a >> 24 | b & M16) << 16
    ),
    "v_mul_i32_i24_sdwa v10, sext(v1), sext(v2) dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:WORD_0 src1_sel:WORD_1": lambda a, b, c: (
        signed(a, 16) * signed(b >> 16, 16)
    ),
    "v_sub_u32_sdwa v10, v1, v2 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:BYTE_1 src1_sel:DWORD": lambda a, b, c: (
        (a >> 8 & 255) - b
    ),
    "v_lshrrev_b32_sdwa v10, v1, v2 dst_sel:BYTE_1 dst_unused:UNUSED_PAD src0_sel:DWORD src1_sel:DWORD": lambda a, b, c: (
        (b >> (a & 31) & 255) << 8
    ),
    "v_add_u16_sdwa v10, v1, v2 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:DWORD src1_sel:WORD_1": lambda a, b, c: (
        (a & M16) + (b >> 16) & M16
    ),
    "v_add_u32_sdwa v10, v1, v2 dst_sel:BYTE_2 dst_unused:UNUSED_PRESERVE src0_sel:BYTE_0 src1_sel:BYTE_2": lambda a, b, c: (
        ((a & 255) + (b >> 16 & 255) & 255) << 16 | 0x55AA1234 & 0xFF00FFFF
    ),
    "v_and_b32_sdwa v10, sext(v1), v2 dst_sel:DWORD dst_unused:UNUSED_PAD src0_sel:WORD_0 src1_sel:DWORD": lambda a, b, c: (
        signed(a, 16) & b
    ),
    "v_bitop3_b16 v10, v1, v2, v3 bitop3:0xec": lambda a, b, c: (
        bitop(0xEC, a, b, c, 16) | 0x55AA0000
    ),
    "v_xor_b32_e32 v10, v1, v2": lambda a, b, c: a ^ b,
    "v_mov_b32_e32 v10, v1": lambda a, b, c: a,
    "v_mov_b32_e32 v10, 0x12345678": lambda a, b, c: 0x12345678,
    "v_mov_b32_e32 v10, 1.0": lambda a, b, c: 0x3F800000,
    "v_cvt_f32_u32_e32 v10, v1": lambda a, b, c: (
        round_to_float32(fractions.Fraction(a)) if a else 0
    ),
    "v_fma_f32 v10, v1, v2, v3": fma32,
    "v_fmac_f32_e32 v10, v1, v2": lambda a, b, c: fma32(a, b, 0x55AA1234),
    "v_fmamk_f32 v10, v1, 0x40490fdb, v3": lambda a, b, c: fma32(a, 0x40490FDB, c),
    "v_fma_f32 v10, -v1, |v2|, v3": lambda a, b, c: fma32(a ^ 0x80000000, b & 0x7FFFFFFF, c),
    "v_add_f32_e32 v10, v1, v2": lambda a, b, c: exact32(lambda x, y: x + y, a, b),
    "v_mul_f32_e32 v10, v1, v2": lambda a, b, c: exact32(lambda x, y: x * y, a, b),
    "v_rcp_f32_e32 v10, v1": lambda a, b, c: exact32(lambda x: 1 / x if x else 0, a),
    "v_rcp_iflag_f32_e32 v10, v1": lambda a, b, c: exact32(lambda x: 1 / x if x else 0, a),
    "v_trunc_f32_e32 v10, v1": lambda a, b, c: exact32(
        lambda x: fractions.Fraction(math.trunc(x)), a
    ),
    "v_cvt_u32_f32_e32 v10, v1": lambda a, b, c: (
        None if math.isnan(to_float(a)) else int(max(0, min(to_float(a), M32)))
    ),
}

# v[2:3], v[4:5], v[6:7] and v1 an exponent; the old value of v[10:11] is 0.75.
DOUBLES = {
    "v_add_f64 v[10:11], v[2:3], v[4:5]": lambda a, b, c, n: a + b,
    "v_mul_f64 v[10:11], v[2:3], -v[4:5]": lambda a, b, c, n: a * -b,
    "v_fma_f64 v[10:11], v[2:3], v[4:5], v[6:7]": lambda a, b, c, n: a * b + c,
    "v_fmac_f64_e32 v[10:11], v[2:3], v[4:5]": lambda a, b, c, n: a * b + fractions.Fraction(3, 4),
    "v_rcp_f64_e32 v[10:11], v[2:3]": lambda a, b, c, n: 1 / a,
    "v_ldexp_f64 v[10:11], v[2:3], v1": lambda a, b, c, n: a * fractions.Fraction(2) ** n,
    "v_cvt_f64_i32_e32 v[10:11], v1": lambda a, b, c, n: fractions.Fraction(n),
    "v_cvt_f64_u32_e32 v[10:11], v1": lambda a, b, c, n: fractions.Fraction(n & M32),
    "v_cmp_gt_f64_e64 s[40:41], v[2:3], v[4:5]": lambda a, b, c, n: a > b,
    "v_cmp_le_f64_e64 s[40:41], v[2:3], v[4:5]": lambda a, b, c, n: a <= b,
}

CARRIES = {
    "v_add_co_u32_e32 v10, vcc, v1, v2": lambda a, b, m: (a + b, a + b > M32),
    "v_sub_co_u32_e32 v10, vcc, v1, v2": lambda a, b, m: (a - b, b > a),
    "v_subrev_co_u32_e32 v10, vcc, v1, v2": lambda a, b, m: (b - a, a > b),
    "v_addc_co_u32_e32 v10, vcc, v1, v2, vcc": lambda a, b, m: (a + b + m, a + b + m > M32),
    "v_subb_co_u32_e32 v10, vcc, v1, v2, vcc": lambda a, b, m: (a - b - m, b + m > a),
    "v_subbrev_co_u32_e32 v10, vcc, v1, v2, vcc": lambda a, b, m: (b - a - m, a + m > b),
    "v_addc_co_u32_e64 v10, s[40:41], v1, v2, vcc": lambda a, b, m: (a + b + m, a + b + m > M32),
    "v_subbrev_co_u32_e64 v10, s[40:41], v1, v2, vcc": lambda a, b, m: (b - a - m, a + m > b),
    "v_cndmask_b32_e32 v10, v1, v2, vcc": lambda a, b, m: (b if m else a, None),
    "v_cndmask_b32_e64 v10, v1, -v2, vcc": lambda a, b, m: (b ^ 0x80000000 if m else a, None),
}

COMPARISONS = {
    f"v_cmp_{relation}_{kind}{bits}_e64 s[40:41], {{}}, {{}}": (kind, bits, function)
    for kind in "ui"
    for bits in (16, 32, 64)
    for relation, function in {
        "lt": lambda a, b: a < b,
        "eq": lambda a, b: a == b,
        "le": lambda a, b: a <= b,
        "gt": lambda a, b: a > b,
        "ne": lambda a, b: a != b,
        "ge": lambda a, b: a >= b,
    }.items()
}

VECTOR64 = {
    "v_lshlrev_b64 v[10:11], v1, v[4:5]": lambda a, b, s: b << (s & 63),
    "v_lshrrev_b64 v[10:11], v1, v[4:5]": lambda a, b, s: b >> (s & 63),
    "v_ashrrev_i64 v[10:11], v1, v[4:5]": lambda a, b, s: signed(b, 64) >> (s & 63),
    "v_lshl_add_u64 v[10:11], v[2:3], 3, v[4:5]": lambda a, b, s: (a << 3) + b,
    "v_mad_u64_u32 v[10:11], s[40:41], v1, v2, v[4:5]": lambda a, b, s: s * (a & M32) + b,
    "v_mad_i64_i32 v[10:11], s[40:41], v1, v2, v[4:5]": lambda a, b, s: (
        signed(s, 32) * signed(a, 32) + b
    ),
    "v_mov_b64_e32 v[10:11], v[2:3]": lambda a, b, s: a,
    "v_mov_b64_e32 v[10:11], -5": lambda a, b, s: -5,
}

SCALAR = {
    "s_add_u32 s10, s1, s2": lambda a, b, k: (a + b, a + b > M32),
    "s_sub_u32 s10, s1, s2": lambda a, b, k: (a - b, b > a),
    "s_addc_u32 s10, s1, s2": lambda a, b, k: (a + b + k, a + b + k > M32),
    "s_subb_u32 s10, s1, s2": lambda a, b, k: (a - b - k, b + k > a),
    "s_add_i32 s10, s1, s2": lambda a, b, k: (
        a + b,
        not -(2**31) <= signed(a, 32) + signed(b, 32) < 2**31,
    ),
    "s_sub_i32 s10, s1, s2": lambda a, b, k: (
        a - b,
        not -(2**31) <= signed(a, 32) - signed(b, 32) < 2**31,
    ),
    "s_addk_i32 s1, 0x8123": lambda a, b, k: (
        a - 0x7EDD,
        not -(2**31) <= signed(a, 32) - 0x7EDD < 2**31,
    ),
    "s_mulk_i32 s1, 0x8123": lambda a, b, k: (a * -0x7EDD, k),
    "s_mul_i32 s10, s1, s2": lambda a, b, k: (a * b, k),
    "s_mul_hi_u32 s10, s1, s2": lambda a, b, k: (a * b >> 32, k),
    "s_mul_hi_i32 s10, s1, s2": lambda a, b, k: (signed(a, 32) * signed(b, 32) >> 32, k),
    "s_min_i32 s10, s1, s2": lambda a, b, k: (
        min(a, b, key=lambda x: signed(x, 32)),
        signed(a, 32) < signed(b, 32),
    ),
    "s_max_u32 s10, s1, s2": lambda a, b, k: (max(a, b), a >= b),
    "s_abs_i32 s10, s1": lambda a, b, k: (abs(signed(a, 32)), a != 0),
    "s_lshl_b32 s10, s1, s2": lambda a, b, k: (a << (b & 31), (a << (b & 31)) & M32 != 0),
    "s_ashr_i32 s10, s1, s2": lambda a, b, k: (
        signed(a, 32) >> (b & 31),
        signed(a, 32) >> (b & 31) != 0,
    ),
    "s_bfe_u32 s10, s1, 0x70005": lambda a, b, k: (
        field(a, 5, 7, 32, False),
        field(a, 5, 7, 32, False) != 0,
    ),
    "s_bfe_i32 s10, s1, 0x70005": lambda a, b, k: (
        field(a, 5, 7, 32, True),
        field(a, 5, 7, 32, True) != 0,
    ),
    "s_cselect_b32 s10, s1, s2": lambda a, b, k: (a if k else b, k),
    "s_brev_b32 s10, s1": lambda a, b, k: (int(f"{a:032b}"[::-1], 2), k),
    "s_pack_ll_b32_b16 s10, s1, s2": lambda a, b, k: (a & M16 | b << 16, k),
    "s_movk_i32 s10, 0x8001": lambda a, b, k: (-0x7FFF, k),
    "s_max_i32 s10, s1, s2": lambda a, b, k: (
        max(a, b, key=lambda x: signed(x, 32)),
        signed(a, 32) >= signed(b, 32),
    ),
    "s_min_u32 s10, s1, s2": lambda a, b, k: (min(a, b), a < b),
    "s_lshr_b32 s10, s1, s2": lambda a, b, k: (a >> (b & 31), a >> (b & 31) != 0),
    "s_and_b32 s10, s1, s2": lambda a, b, k: (a & b, a & b != 0),
    "s_or_b32 s10, s1, s2": lambda a, b, k: (a | b, a | b != 0),
    "s_xor_b32 s10, s1, s2": lambda a, b, k: (a ^ b, a ^ b != 0),
    "s_mov_b32 s10, s1": lambda a, b, k: (a, k),
    "s_cmp_eq_u32 s1, s2": lambda a, b, k: (None, a == b),
    "s_cmp_lg_u32 s1, s2": lambda a, b, k: (None, a != b),
    "s_cmp_ge_u32 s1, s2": lambda a, b, k: (None, a >= b),
    "s_cmp_lt_u32 s1, s2": lambda a, b, k: (None, a < b),
    "s_cmp_gt_i32 s1, s2": lambda a, b, k: (None, signed(a, 32) > signed(b, 32)),
    "s_cmpk_lg_i32 s1, 0x10": lambda a, b, k: (None, a != 16),
    "s_cmp_lt_i32 s1, s2": lambda a, b, k: (None, signed(a, 32) < signed(b, 32)),
    "s_cmp_gt_u32 s1, s2": lambda a, b, k: (None, a > b),
    "s_cmpk_lt_u32 s1, 0x8001": lambda a, b, k: (None, a < 0x8001),
    "s_cmpk_eq_i32 s1, 0xfffe": lambda a, b, k: (None, signed(a, 32) == -2),
    "s_bitcmp1_b32 s1, s2": lambda a, b, k: (None, a >> (b & 31) & 1),
    "s_bitcmp0_b32 s1, s2": lambda a, b, k: (None, not a >> (b & 31) & 1),
}

SCALAR64 = {
    "s_lshl_b64 s[10:11], s[2:3], s6": lambda a, b, n: (a << (n & 63), None),
    "s_lshr_b64 s[10:11], s[2:3], s6": lambda a, b, n: (a >> (n & 63), None),
    "s_ashr_i64 s[10:11], s[2:3], s6": lambda a, b, n: (signed(a, 64) >> (n & 63), None),
    "s_bfe_i64 s[10:11], s[2:3], 0x90006": lambda a, b, n: (field(a, 6, 9, 64, True), None),
    "s_bfe_i64 s[10:11], s[2:3], 0x200000": lambda a, b, n: (field(a, 0, 32, 64, True), None),
    "s_and_b64 s[10:11], s[2:3], s[4:5]": lambda a, b, n: (a & b, a & b != 0),
    "s_andn2_b64 s[10:11], s[2:3], s[4:5]": lambda a, b, n: (a & ~b, a & ~b != 0),
    "s_orn2_b64 s[10:11], s[2:3], s[4:5]": lambda a, b, n: (a | ~b, (a | ~b) & M64 != 0),
    "s_nor_b64 s[10:11], s[2:3], s[4:5]": lambda a, b, n: (~(a | b), ~(a | b) & M64 != 0),
    "s_ff1_i32_b64 s10, s[2:3]": lambda a, b, n: (low_zeros(a), None),
    "s_flbit_i32_b64 s10, s[2:3]": lambda a, b, n: (high_zeros(a, 64), None),
    "s_bcnt1_i32_b64 s10, s[2:3]": lambda a, b, n: (bin(a).count("1"), a != 0),
    "s_cmp_lg_u64 s[2:3], s[4:5]": lambda a, b, n: (None, a != b),
    "s_cmp_eq_u64 s[2:3], s[4:5]": lambda a, b, n: (None, a == b),
    "s_or_b64 s[10:11], s[2:3], s[4:5]": lambda a, b, n: (a | b, a | b != 0),
    "s_xor_b64 s[10:11], s[2:3], s[4:5]": lambda a, b, n: (a ^ b, a ^ b != 0),
    "s_mov_b64 s[10:11], s[2:3]": lambda a, b, n: (a, None),
    "s_mov_b64 s[10:11], -7": lambda a, b, n: (-7, None),
    "s_cselect_b64 s[10:11], s[2:3], s[4:5]": lambda a, b, n: (a if n & 1 else b, None),
    "s_and_saveexec_b64 s[10:11], s[2:3]": lambda a, b, n: ("exec", a & EXEC_MASK),
    "s_andn2_saveexec_b64 s[10:11], s[2:3]": lambda a, b, n: ("exec", a & ~EXEC_MASK),
    "s_or_saveexec_b64 s[10:11], s[2:3]": lambda a, b, n: ("exec", a | EXEC_MASK),
}
EXEC_MASK = 0xF0F0123456789ABC

SPECIAL = [
    0,
    1,
    2,
    3,
    31,
    32,
    63,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    0xFFFFFFFE,
    0x3F800000,
    0xBF800001,
    0x00800000,
    0x00000005,
    0x0C0D0B08,
]


def numbers(count, seed, bits=32):
    generator = random.Random(seed)
    result = []
    for _ in range(count):
        value = 0
        for _ in range(bits // 32):
            kind = generator.random()
            part = (
                generator.choice(SPECIAL)
                if kind < 0.4
                else (
                    generator.getrandbits(32)
                    if kind < 0.8
                    else generator.getrandbits(32) >> generator.randrange(32)
                )
            )
            value = value << 32 | part
        result.append(value)
    return result


EXEC_PART = [0x8000000000000001, 0x00FF00FF13579BDF]


@pytest.mark.parametrize("masks", [None, EXEC_PART], ids=["full", "part"])
def test_vector32(masks):
    alone = Alone(list(VECTOR32))
    for which, (text, definition) in enumerate(VECTOR32.items()):
        batch = alone.batch()
        a, b, c = (numbers(128, 100 * which + i) for i in range(3))
        for i, values in enumerate((a, b, c)):
            batch.vectors[1 + i] = np.array(values, np.uint32).reshape(2, 64)
        batch.vectors[10] = 0x55AA1234
        batch.scalars[:, 4], batch.scalars[:, 5] = 0x0C070D02, 0x0B040908
        alone.run(batch, which, masks)
        for lane in range(128):
            is_on = masks is None or masks[lane // 64] >> lane % 64 & 1
            expected = definition(a[lane], b[lane], c[lane]) if is_on else 0x55AA1234
            if expected is not None:
                found = int(batch.vectors[10].reshape(-1)[lane])
                assert found == expected & M32, (
                    text,
                    hex(a[lane]),
                    hex(b[lane]),
                    hex(c[lane]),
                    hex(found),
                )


@pytest.mark.parametrize("masks", [None, EXEC_PART], ids=["full", "part"])
def test_carries(masks):
    alone = Alone(list(CARRIES))
    for which, (text, definition) in enumerate(CARRIES.items()):
        batch = alone.batch()
        a, b = (numbers(128, 100 * which + i) for i in range(2))
        batch.vectors[1] = np.array(a, np.uint32).reshape(2, 64)
        batch.vectors[2] = np.array(b, np.uint32).reshape(2, 64)
        batch.vectors[10] = 7
        vcc = [0xA5A5F00F12345678, 0x0123456789ABCDEF]
        batch.s64[106][...] = np.array(vcc, np.uint64)
        alone.run(batch, which, masks)
        mask = batch.s64[40 if "s[40:41]" in text else 106]
        for lane in range(128):
            is_on = masks is None or masks[lane // 64] >> lane % 64 & 1
            result, carry = (
                definition(a[lane], b[lane], vcc[lane // 64] >> lane % 64 & 1) if is_on else (7, 0)
            )
            assert int(batch.vectors[10].reshape(-1)[lane]) == result & M32, text
            if carry is not None and "cndmask" not in text:
                assert int(mask[lane // 64]) >> lane % 64 & 1 == carry, text


@pytest.mark.parametrize("masks", [None, EXEC_PART], ids=["full", "part"])
def test_comparisons(masks):
    texts = [
        text.format(*(("v[2:3]", "v[4:5]") if bits == 64 else ("v2", "v4")))
        for text, (kind, bits, function) in COMPARISONS.items()
    ]
    alone = Alone(texts)
    for which, (kind, bits, function) in enumerate(COMPARISONS.values()):
        batch = alone.batch()
        a, b = numbers(128, which, 64), numbers(128, which + 1000, 64)
        b = [x if i % 3 == 0 else y for i, (x, y) in enumerate(zip(a, b))]
        for i, values in ((2, a), (4, b)):
            values = np.array(values, np.uint64).reshape(2, 64)
            batch.vectors[i], batch.vectors[i + 1] = (
                values & np.uint64(M32),
                values >> np.uint64(32),
            )
        alone.run(batch, which, masks)
        for lane in range(128):
            x, y = (
                (signed(v, bits) if kind == "i" else v & (1 << bits) - 1)
                for v in (a[lane], b[lane])
            )
            is_on = masks is None or masks[lane // 64] >> lane % 64 & 1
            assert int(batch.s64[40][lane // 64]) >> lane % 64 & 1 == (
                function(x, y) if is_on else 0
            ), texts[which]


@pytest.mark.parametrize("masks", [None, EXEC_PART], ids=["full", "part"])
def test_comparisons_of_parts(masks):
    alone = Alone(
        [
            "v_cmp_eq_u16_sdwa s[40:41], v2, v4 src0_sel:WORD_1 src1_sel:DWORD",
            "v_cmp_ne_u16_sdwa vcc, v2, s6 src0_sel:BYTE_0 src1_sel:DWORD",
        ]
    )
    for which in range(2):
        batch = alone.batch()
        a, b = numbers(128, which), numbers(128, which + 9)
        b = [x >> 16 if i % 3 == 0 else y for i, (x, y) in enumerate(zip(a, b))]
        batch.vectors[2] = np.array(a, np.uint32).reshape(2, 64)
        batch.vectors[4] = np.array(b, np.uint32).reshape(2, 64)
        batch.scalars[:, 6] = 0xABCD00FF
        alone.run(batch, which, masks)
        for lane in range(128):
            is_on = masks is None or masks[lane // 64] >> lane % 64 & 1
            expected = (a[lane] >> 16 == b[lane] & M16) if which == 0 else (a[lane] & 255 != 255)
            found = int(batch.s64[(40, 106)[which]][lane // 64]) >> lane % 64 & 1
            assert found == (expected and is_on)


def test_vector64():
    alone = Alone(list(VECTOR64))
    for which, (text, definition) in enumerate(VECTOR64.items()):
        batch = alone.batch()
        a, b, s = numbers(128, which, 64), numbers(128, which + 50, 64), numbers(128, which + 99)
        for i, values in ((2, a), (4, b)):
            values = np.array(values, np.uint64).reshape(2, 64)
            batch.vectors[i], batch.vectors[i + 1] = (
                values & np.uint64(M32),
                values >> np.uint64(32),
            )
        batch.vectors[1] = np.array(s, np.uint32).reshape(2, 64)
        alone.run(batch, which)
        for lane in range(128):
            found = (
                int(batch.vectors[10].reshape(-1)[lane])
                | int(batch.vectors[11].reshape(-1)[lane]) << 32
            )
            assert found == definition(a[lane], b[lane], s[lane]) & M64, (
                text,
                hex(a[lane]),
                hex(b[lane]),
                s[lane],
            )
            if "mad_u64" in text:
                assert (
                    int(batch.s64[40][lane // 64]) >> lane % 64 & 1
                    == definition(a[lane], b[lane], s[lane]) >> 64
                )
            if "mad_i64" in text:
                total = signed(s[lane], 32) * signed(a[lane], 32) + signed(b[lane], 64)
                assert int(batch.s64[40][lane // 64]) >> lane % 64 & 1 == (total >> 64) & 1


def test_scalar():
    alone = Alone(list(SCALAR))
    for which, (text, definition) in enumerate(SCALAR.items()):
        for trial in range(40):
            batch = alone.batch()
            (a, b), k = numbers(2, 77 * trial + which), trial & 1
            batch.scalars[:, 1], batch.scalars[:, 2] = a, b
            batch.scc[...] = k
            alone.run(batch, which)
            result, scc = definition(a, b, k)
            place = 1 if text.split()[0] in ("s_addk_i32", "s_mulk_i32") else 10
            if result is not None:
                assert int(batch.scalars[1, place]) == result & M32, (text, hex(a), hex(b), k)
            assert int(batch.scc[1]) == scc, (text, hex(a), hex(b), k)


def test_scalar64():
    alone = Alone(list(SCALAR64))
    for which, (text, definition) in enumerate(SCALAR64.items()):
        for trial in range(40):
            batch = alone.batch()
            (a, b), (n,) = numbers(2, 77 * trial + which, 64), numbers(1, trial)
            if trial == 0:
                a = b = 0
            batch.s64[2][...], batch.s64[4][...], batch.scalars[:, 6] = a, b, n
            batch.s64[10][...] = 0
            batch.scc[...] = n & 1
            batch.exec64[...] = EXEC_MASK
            alone.run(batch, which)
            result, scc = definition(a, b, n)
            if result == "exec":
                assert int(batch.s64[10][0]) == EXEC_MASK and int(batch.exec64[1]) == scc & M64, (
                    text
                )
                assert bool(batch.scc[0]) == (scc & M64 != 0), text
                continue
            if result is not None:
                assert int(batch.s64[10][1]) == result & M64, (text, hex(a), hex(b), n)
            if scc is not None:
                assert int(batch.scc[1]) == scc, (text, hex(a), hex(b), n)


def test_doubles():
    alone = Alone(list(DOUBLES))
    for which, (text, definition) in enumerate(DOUBLES.items()):
        batch = alone.batch()
        generator = random.Random(which)
        values = [
            [
                generator.choice([1, -1])
                * math.ldexp(generator.random() + 0.5, generator.randrange(-30, 30))
                for _ in range(128)
            ]
            for _ in range(3)
        ]
        values[1] = [x if i % 5 == 0 else y for i, (x, y) in enumerate(zip(*values[:2]))]
        exponents = [generator.randrange(-200, 200) for _ in range(128)]
        for i, column in enumerate(values):
            bits = np.array(column).view(np.uint64).reshape(2, 64)
            batch.vectors[2 + 2 * i], batch.vectors[3 + 2 * i] = (
                bits & np.uint64(M32),
                bits >> np.uint64(32),
            )
        batch.vectors[1] = np.array(exponents, np.int32).view(np.uint32).reshape(2, 64)
        batch.vectors[10], batch.vectors[11] = 0, 0x3FE80000
        alone.run(batch, which)
        for lane in range(128):
            a, b, c = (fractions.Fraction(column[lane]) for column in values)
            expected = definition(a, b, c, exponents[lane])
            if "cmp" in text:
                assert int(batch.s64[40][lane // 64]) >> lane % 64 & 1 == expected, text
                continue
            words = [int(batch.vectors[10 + i].reshape(-1)[lane]) for i in range(2)]
            found = struct.unpack("<d", struct.pack("<II", *words))[0]
            assert found == expected.numerator / expected.denominator, text


def test_relative_addressing():
    alone = Alone(
        [
            "s_set_gpr_idx_on s2, gpr_idx(SRC0)\nv_mov_b32_e32 v10, v3\nv_mov_b32_e32 v11, v4\n"
            "s_set_gpr_idx_off\nv_mov_b32_e32 v12, v3"
        ]
    )
    batch = alone.batch()
    batch.vectors[:32] = np.arange(32)[:, None, None] * 1000 + np.arange(128).reshape(2, 64)
    before = batch.vectors.copy()
    batch.scalars[:, 2] = [5, 9]
    alone.run(batch, 0)
    for wave, index in ((0, 5), (1, 9)):
        assert (batch.vectors[10, wave] == before[3 + index, wave]).all()
        assert (batch.vectors[11, wave] == before[4 + index, wave]).all()
        assert (batch.vectors[12, wave] == before[3, wave]).all()


def test_scalar_loads():
    alone = Alone(
        [
            (
                f"s_load_dword{suffix} s[{first}:{first + count - 1}], s[2:3], {offset}"
                if count > 1
                else f"s_load_dword s{first}, s[2:3], {offset}"
            )
            for suffix, count, first, offset in (
                ("", 1, 10, 0x10),
                ("x2", 2, 10, 0x20),
                ("x4", 4, 12, -8),
                ("x8", 8, 16, 0),
                ("x16", 16, 16, 0x40),
            )
        ]
    )
    memory = alone.machine.memory
    memory.arena.octets[...] = np.random.default_rng(1).integers(0, 256, len(memory.arena.octets))
    memory.set_buffers(
        [{"name": "all", "address": memory.arena.base, "bytes": 4096, "initialized": True}]
    )
    words = memory.arena.octets.view(np.uint32)
    for which, (count, first, offset) in enumerate(
        ((1, 10, 0x10), (2, 10, 0x20), (4, 12, -8), (8, 16, 0), (16, 16, 0x40))
    ):
        batch = alone.batch()
        batch.s64[2][...] = np.array([memory.arena.base + 1024, memory.arena.base + 512], np.uint64)
        alone.run(batch, which)
        for wave, base in ((0, 1024), (1, 512)):
            at = (base + offset) // 4
            assert (batch.scalars[wave, first : first + count] == words[at : at + count]).all()
