# SPDX-License-Identifier: Apache-2.0
"""What is modelled by hand, against definitions of its own: matrix instructions, FP4 conversions,
cross-lane operations, LDS, global memory, and the float steps of divisions."""

import fractions
import itertools
import math
import random
import struct

import numpy as np
import pytest

from executor import matrix, numeric
from executor.machine import ExecutionError

from .support import Alone, Device, compiled
from .test_instructions import round_to_float32, to_float

FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


# ---------------------------------------------------------------- matrix instructions


def int8_at(registers, wave, row, k):
    """Element (row, k) of A; of B, (k, column)."""
    lane, place = row + 16 * (k // 16), k % 16
    value = int(registers[place // 4, wave, lane]) >> 8 * (place % 4) & 255
    return value - 256 if value > 127 else value


def fp4_at(registers, wave, row, k):
    lane, place = row + 16 * (k // 32), k % 32
    return FP4[int(registers[place // 8, wave, lane]) >> 4 * (place % 8) & 15]


def places_of_c():
    """(row, column, register, lane)"""
    for lane, register in itertools.product(range(64), range(4)):
        yield 4 * (lane // 16) + register, lane % 16, register, lane


def test_mfma_i32_16x16x64_i8():
    alone = Alone(
        [
            "v_mfma_i32_16x16x64_i8 v[20:23], v[4:7], v[8:11], v[12:15]",
            "v_mfma_i32_16x16x64_i8 a[12:15], v[4:7], a[8:11], a[12:15]",
            "v_mfma_i32_16x16x64_i8 v[20:23], v[4:7], v[8:11], 0",
        ]
    )
    generator = np.random.default_rng(1)
    for which, (a, b, c, d) in enumerate(((4, 8, 12, 20), (4, 264, 268, 268), (4, 8, None, 20))):
        batch = alone.batch()
        for first in (a, b, c or 12):
            batch.vectors[first : first + 4] = generator.integers(0, 1 << 32, (4, 2, 64))
        before = batch.vectors.copy()
        alone.run(batch, which, [1, 1 << 63])  # EXEC does not matter
        for wave in range(2):
            for row, column, register, lane in places_of_c():
                total = sum(
                    int8_at(before[a : a + 4], wave, row, k)
                    * int8_at(before[b : b + 4], wave, column, k)
                    for k in range(64)
                )
                if c is not None:
                    total += int(before[c + register, wave, lane])
                assert int(batch.vectors[d + register, wave, lane]) == total % (1 << 32)


SCALED = "v_mfma_scale_f32_16x16x128_f8f6f4 v[20:23], v[4:7], v[8:11], v[12:15], v16, v17 {} cbsz:4 blgp:4"


@pytest.mark.parametrize("bytes_", list(itertools.product(range(4), repeat=2)))
def test_scale_bytes(bytes_):
    """The byte of each scale is chosen by op_sel (its lower bit) and op_sel_hi (its upper bit)."""
    low, high = [byte & 1 for byte in bytes_], [byte >> 1 for byte in bytes_]
    alone = Alone(
        [SCALED.format(f"op_sel:[{low[0]},{low[1]},0] op_sel_hi:[{high[0]},{high[1]},0]")]
    )
    generator = np.random.default_rng(2)
    batch = alone.batch()
    batch.vectors[4:12] = generator.integers(0, 1 << 32, (8, 2, 64))
    batch.vectors[12:16] = (
        generator.integers(-100, 100, (4, 2, 64)).astype(np.float32).view(np.uint32)
    )
    batch.vectors[16:18] = (generator.integers(124, 131, (2, 2, 64, 4)).astype(np.uint8)).view(
        np.uint32
    )[..., 0]
    alone.run(batch, 0)
    for wave in range(2):
        for row, column, register, lane in places_of_c():
            total = fractions.Fraction(
                float(batch.vectors[12 + register, wave, lane : lane + 1].view(np.float32)[0])
            )
            for k in range(128):
                scale = [
                    int(batch.vectors[16 + i, wave, (row, column)[i] + 16 * (k // 32)])
                    >> 8 * bytes_[i]
                    & 255
                    for i in range(2)
                ]
                total += (
                    fractions.Fraction(fp4_at(batch.vectors[4:8], wave, row, k))
                    * fractions.Fraction(fp4_at(batch.vectors[8:12], wave, column, k))
                    * fractions.Fraction(2) ** (scale[0] + scale[1] - 254)
                )
            found = batch.vectors[20 + register, wave, lane : lane + 1].view(np.float32)[0]
            assert fractions.Fraction(float(found)) == total  # all sums are exact here


def truncated(exact):
    """Bits of the float32 towards zero, subnormals flushed."""
    if abs(exact) < fractions.Fraction(1, 1 << 126):
        return 0
    near = to_float(round_to_float32(exact))
    if abs(fractions.Fraction(near)) > abs(exact):
        near = float(np.nextafter(np.float32(near), np.float32(0)))
    return struct.unpack("<I", struct.pack("<f", near))[0]


def rounded(exact):
    return round_to_float32(exact) if exact else 0


def model(products, c, order):
    """Sums of fractions as matrix.py's docstring says, with Python's own."""
    value = fractions.Fraction
    if order == "ascending":
        total = c
        for product in products:
            total = value(to_float(rounded(total + product)))
        return total
    if order == "descending":
        total = value(0) if abs(c) < value(1, 1 << 126) else c
        for product in reversed(products):
            total = value(to_float(truncated(total + product)))
        return total
    level = [value(to_float(rounded(product))) for product in products]
    while len(level) > 1:
        level = [value(to_float(rounded(a + b))) for a, b in zip(level[0::2], level[1::2])]
    return value(to_float(rounded(level[0] + c)))


@pytest.mark.parametrize("order", ["ascending", "descending", "pairwise"])
@pytest.mark.parametrize(
    "spread", [(120, 135), (100, 160), (55, 75)], ids=["some", "wide", "small"]
)
def test_orders_of_float_sums(order, spread):
    generator = np.random.default_rng(3)
    registers = generator.integers(0, 1 << 32, (8, 1, 64)).astype(np.uint32)
    scales = generator.integers(*spread, (2, 1, 64)).astype(np.uint8)
    c = np.ldexp(generator.standard_normal((4, 1, 64)), sum(spread) - 254).astype(np.float32)
    result = matrix.scaled_fp4(
        registers[:4], registers[4:], c.view(np.uint32), scales[0], scales[1], order
    )
    result = result.view(np.float32)
    for row, column, register, lane in itertools.islice(places_of_c(), 0, None, 9):
        products = []
        for k in range(128):
            exponent = (
                int(scales[0, 0, row + 16 * (k // 32)])
                + int(scales[1, 0, column + 16 * (k // 32)])
                - 254
            )
            products.append(
                fractions.Fraction(fp4_at(registers[:4], 0, row, k))
                * fractions.Fraction(fp4_at(registers[4:], 0, column, k))
                * fractions.Fraction(2) ** exponent
            )
        expected = model(products, fractions.Fraction(float(c[register, 0, lane])), order)
        assert fractions.Fraction(float(result[register, 0, lane])) == expected


def test_the_orders_differ_and_short_is_short():
    generator = np.random.default_rng(4)
    registers = generator.integers(0, 1 << 32, (8, 1, 64)).astype(np.uint32)
    scales = generator.integers(100, 160, (2, 1, 64)).astype(np.uint8)
    results = [
        matrix.scaled_fp4(registers[:4], registers[4:], None, scales[0], scales[1], order).tobytes()
        for order in matrix.ORDERS
    ]
    assert len(set(results)) == len(matrix.ORDERS)
    # 2^22 + 1 has 23 bits.
    one = np.zeros((4, 1, 64), np.uint32)
    one[0] = 2  # code of 1.0
    scales = np.full((1, 64), 127, np.uint8)
    scales_of_one = np.where(np.arange(64) < 16, 127, 0).astype(np.uint8)[None]
    c = np.full((4, 1, 64), 2.0**22, np.float32).view(np.uint32)
    found = {
        order: float(
            matrix.scaled_fp4(one, one, c, scales_of_one, scales, order).view(np.float32)[0, 0, 0]
        )
        for order in matrix.ORDERS
    }
    assert found["ascending"] == 2.0**22 + 1 and found["short"] == 2.0**22


def test_scales_of_0_and_255():
    one = np.full((4, 1, 64), 0x22222222, np.uint32)
    for byte, expected in ((0, 128 * 2.0**-127), (255, math.nan), (127, 128.0)):
        scales = np.full((1, 64), byte, np.uint8)
        plain = np.full((1, 64), 127, np.uint8)
        found = matrix.scaled_fp4(one, one, None, scales, plain, "ascending").view(np.float32)
        assert np.array_equal(found, np.full((4, 1, 64), expected, np.float32), equal_nan=True)


@pytest.mark.parametrize("field, value", [(32, 16), (41, 242), (41, 128)], ids=["s16", "1.0", "0"])
def test_scale_operands_that_are_no_vector_registers(field, value):
    """Assemblers refuse them; the bits may say so nevertheless."""
    raw = Alone([SCALED.format("")]).program.instructions[0].inst._raw
    raw = raw & ~(0x1FF << field) | value << field
    alone = Alone([".long " + ", ".join(hex(raw >> 32 * i & 0xFFFFFFFF) for i in range(4))])
    with pytest.raises(ExecutionError, match="a scale operand that is no VGPR"):
        alone.run(alone.batch(), 0)


def test_formats_other_than_fp4_are_refused():
    text = (
        SCALED.replace("cbsz:4 blgp:4", "")
        .replace("v[4:7]", "v[24:31]")
        .replace("v[8:11]", "v[32:39]")
    )
    alone = Alone([text.format("")])
    with pytest.raises(ExecutionError, match="operands other than FP4"):
        alone.run(alone.batch(), 0)


PRODUCT = """
typedef int Eight __attribute__((ext_vector_type(8)));
typedef float Four __attribute__((ext_vector_type(4)));
extern "C" __global__ void product(const int* a, const int* b, const int* scales, float* c) {
  Eight x = {}, y = {};
  for (int i = 0; i < 4; ++i) {
    x[i] = a[4 * thread + i];
    y[i] = b[4 * thread + i];
  }
  const Four d = __builtin_amdgcn_mfma_scale_f32_16x16x128_f8f6f4(
      x, y, Four{}, 4, 4, 2, scales[thread], 1, scales[64 + thread]);
  for (int i = 0; i < 4; ++i) c[16 * (4 * (thread / 16) + i) + thread % 16] = d[i];
}
"""


def run_product(patches=()):
    """C = A B^T of codes (16, 128) each, scales in bytes 2 and 1: (found, expected)."""
    generator = np.random.default_rng(12)
    codes = generator.integers(0, 16, (2, 16, 128))
    scales = generator.integers(125, 130, (2, 16, 4, 4)).astype(np.uint8)  # the last: bytes
    device = Device(compiled(PRODUCT, "product"), patches=patches)
    places = []
    for i in range(2):
        octets = (codes[i, :, 0::2] | codes[i, :, 1::2] << 4).astype(np.uint8)
        # Lane l: row l % 16, block l / 16.
        places.append(device.buffer("ab"[i], octets.reshape(16, 4, 16).transpose(1, 0, 2)))
    places.append(device.buffer("scales", scales.transpose(0, 2, 1, 3)))
    places.append(device.buffer("c", np.zeros(256, np.float32), False))
    device.launch("product", 1, 64, *places)
    values = np.array(FP4)[codes].reshape(2, 16, 4, 32)
    values = values * np.exp2(np.stack([scales[0, ..., 2], scales[1, ..., 1]]) - 127.0)[..., None]
    expected = values[0].reshape(16, 128) @ values[1].reshape(16, 128).T
    return device.read(places[3], np.float32, 256).reshape(16, 16), expected


def test_a_product():
    found, expected = run_product()
    assert (found == expected).all()


def test_a_wrong_scale_byte_gives_a_wrong_product():
    listed = Device(compiled(PRODUCT, "product")).instructions("product")
    one = next(one for one in listed if "mfma_scale" in one.name)
    # op_sel's bits 11 and 12 of the first dword: of byte 2 it becomes byte 3.
    raw = one.inst._raw ^ 1 << 11
    found, expected = run_product([(one.offset, raw.to_bytes(16, "little"))])
    assert (found != expected).any()


# ---------------------------------------------------------------- conversions to FP4


def nearest_fp4(exact):
    """The code, by looking at all of them: nearest, ties to the even code, saturating."""
    best = min(
        range(8), key=lambda code: (abs(fractions.Fraction(FP4[code]) - abs(exact)), code & 1)
    )
    return best | (8 if exact < 0 else 0)


CONVERSIONS = [
    "v_cvt_scalef32_pk_fp4_f32 v10, v1, v2, v3",
    "v_cvt_scalef32_pk_fp4_f32 v10, v1, v2, v3 op_sel:[0,0,1,0]",
    "v_cvt_scalef32_pk_fp4_f32 v10, v1, v2, v3 op_sel:[0,0,0,1]",
    "v_cvt_scalef32_pk_fp4_f32 v10, v1, v2, v3 op_sel:[0,0,1,1]",
]
CONVERSIONS16 = [
    f"v_cvt_scalef32_pk_fp4_{kind} v10, v1, v3 op_sel:[0,0,{low},{high}]"
    for kind in ("bf16", "f16")
    for high in (0, 1)
    for low in (0, 1)
]


def test_conversions_to_fp4():
    alone = Alone(CONVERSIONS + CONVERSIONS16)
    generator = random.Random(5)
    for which in range(len(CONVERSIONS + CONVERSIONS16)):
        wide = "f32" if which < 4 else ("bf16", "f16")[(which - 4) // 4]
        byte = which % 4
        for masks in (None, [0x5555555555555555, 3]):
            batch = alone.batch()
            values, scales = [], []
            for _ in range(128):
                exponent = generator.randrange(-3, 4)
                scales.append(exponent)
                both = []
                for _ in range(2):
                    # Ties, neighbours of ties, and beyond the largest.
                    size = generator.choice(
                        [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 7.0, 100.0, 0.0, 2.0]
                    )
                    step = generator.choice([0, 0, 1, -1]) * 2.0 ** (-6 if wide == "bf16" else -9)
                    both.append(generator.choice([1, -1]) * size * (1 + step) * 2.0**exponent)
                values.append(both)
            exact = np.array(values, np.float32)
            if wide == "f32":
                batch.vectors[1], batch.vectors[2] = exact.view(np.uint32).T.reshape(2, 2, 64)
            elif wide == "f16":
                batch.vectors[1] = exact.astype(np.float16).view(np.uint32)[:, 0].reshape(2, 64)
                exact = exact.astype(np.float16).astype(np.float32)
            else:
                bits = (exact.view(np.uint32) >> 16).astype(np.uint32)
                batch.vectors[1] = (bits[:, 0] | bits[:, 1] << 16).reshape(2, 64)
                exact = (bits << 16).view(np.float32)
            # Of the scale only the exponent counts.
            batch.vectors[3] = (
                (np.ldexp(1.5, scales)).astype(np.float32).view(np.uint32).reshape(2, 64)
            )
            batch.vectors[10] = 0x89ABCDEF
            alone.run(batch, which, masks)
            for lane in range(128):
                codes = [
                    (
                        nearest_fp4(
                            fractions.Fraction(float(value)) / fractions.Fraction(2) ** scales[lane]
                        )
                        if value or not np.signbit(value)
                        else 8
                    )
                    for value in exact[lane]
                ]
                expected = 0x89ABCDEF & ~(0xFF << 8 * byte) | (codes[0] | codes[1] << 4) << 8 * byte
                if masks is not None and not masks[lane // 64] >> lane % 64 & 1:
                    expected = 0x89ABCDEF
                assert int(batch.vectors[10].reshape(-1)[lane]) == expected, (
                    which,
                    exact[lane],
                    scales[lane],
                )


# ---------------------------------------------------------------- cross-lane


def test_cross_lane():
    alone = Alone(
        [
            "v_readlane_b32 s10, v1, 37",
            "v_readlane_b32 s10, v1, s3",
            "v_writelane_b32 v1, s4, 37",
            "v_writelane_b32 v1, -1, s3",
            "v_readfirstlane_b32 s10, v1",
            "v_mbcnt_lo_u32_b32 v10, s4, v1",
            "v_mbcnt_hi_u32_b32 v10, s4, v1",
        ]
    )
    values = np.random.default_rng(6).integers(0, 1 << 32, (2, 64)).astype(np.uint32)
    lanes, datum = (
        np.array([5, 127 - 64 + 64], np.uint32),
        np.array([0xDEADBEEF, 0x12345678], np.uint32),
    )
    masks = [0xFF00000000000000, 0x0000000000000010]
    for which in range(7):
        batch = alone.batch()
        batch.vectors[1] = values
        batch.scalars[:, 3], batch.scalars[:, 4] = lanes, datum
        alone.run(batch, which, masks)
        for wave in range(2):
            lane = 37 if which in (0, 2) else int(lanes[wave]) & 63
            if which in (0, 1):
                assert batch.scalars[wave, 10] == values[wave, lane]
            elif which in (2, 3):
                expected = values[wave].copy()
                expected[lane] = datum[wave] if which == 2 else 0xFFFFFFFF  # whatever EXEC says
                assert (batch.vectors[1, wave] == expected).all()
            elif which == 4:
                assert batch.scalars[wave, 10] == values[wave, (56, 4)[wave]]
            else:
                for lane in range(64):
                    if masks[wave] >> lane & 1:
                        below = (int(datum[wave]) << (0 if which == 5 else 32)) & ((1 << lane) - 1)
                        below &= 0xFFFFFFFF << (0 if which == 5 else 32)
                        expected = (bin(below).count("1") + int(values[wave, lane])) % (1 << 32)
                        assert int(batch.vectors[10, wave, lane]) == expected
    batch = alone.batch()
    batch.vectors[1] = values
    alone.run(batch, 4, [0, 0])  # no lane is on: lane 0
    assert (batch.scalars[:, 10] == values[:, 0]).all()


# ---------------------------------------------------------------- LDS and global memory

LDS = {
    "ds_read_b32 v10, v1 offset:12": ("read", 4, [12]),
    "ds_read_b64 v[10:11], v1 offset:8": ("read", 8, [8]),
    "ds_read_b96 v[10:12], v1 offset:16": ("read", 12, [16]),
    "ds_read_b128 v[10:13], v1 offset:256": ("read", 16, [256]),
    "ds_read_u8 v10, v1 offset:3": ("read", 1, [3]),
    "ds_read_u16 v10, v1 offset:2": ("read", 2, [2]),
    "ds_read_i16 v10, v1 offset:2": ("signed", 2, [2]),
    "ds_read2_b32 v[10:11], v1 offset0:3 offset1:5": ("read", 4, [12, 20]),
    "ds_read2_b64 v[10:13], v1 offset0:3 offset1:5": ("read", 8, [24, 40]),
    "ds_read2st64_b32 v[10:11], v1 offset0:1 offset1:2": ("read", 4, [256, 512]),
    "ds_read2st64_b64 v[10:13], v1 offset0:1 offset1:2": ("read", 8, [512, 1024]),
    "ds_write_b8 v1, v4 offset:3": ("write", 1, [3]),
    "ds_write_b16 v1, v4 offset:2": ("write", 2, [2]),
    "ds_write_b32 v1, v4 offset:12": ("write", 4, [12]),
    "ds_write_b64 v1, v[4:5] offset:8": ("write", 8, [8]),
    "ds_write_b128 v1, v[4:7] offset:32": ("write", 16, [32]),
    "ds_write2_b32 v1, v4, v6 offset0:3 offset1:1": ("write", 4, [12, 4]),
    "ds_write2_b64 v1, v[4:5], v[6:7] offset0:3 offset1:1": ("write", 8, [24, 8]),
    "ds_write2st64_b64 v1, v[4:5], v[6:7] offset0:1 offset1:2": ("write", 8, [512, 1024]),
    "ds_or_b32 v1, v4 offset:8": ("or", 4, [8]),
    "ds_max_u32 v1, v4 offset:8": ("max", 4, [8]),
    "ds_max_u64 v1, v[4:5] offset:8": ("max", 8, [8]),
}


@pytest.mark.parametrize("masks", [None, [0x5555555555555555, 0xFF00]], ids=["full", "part"])
def test_lds(masks):
    alone = Alone(list(LDS), lds_bytes=8192)
    generator = np.random.default_rng(7)
    for which, (text, (operation, size, offsets)) in enumerate(LDS.items()):
        batch = alone.batch()
        memory = generator.integers(0, 256, 8192).astype(np.uint8)
        batch.lds.octets[...] = memory
        batch.lds_known.octets[...] = 1
        addresses = (generator.permutation(128) * 48).reshape(2, 64).astype(np.uint32)
        batch.vectors[1] = addresses
        batch.vectors[4:14] = generator.integers(0, 1 << 32, (10, 2, 64))
        before, bits = batch.vectors.copy(), 8 * size
        expected_memory, expected = memory.tobytes(), before.copy()
        expected_memory = bytearray(expected_memory)
        for wave, lane in itertools.product(range(2), range(64)):
            if masks is not None and not masks[wave] >> lane & 1:
                continue
            words = max(1, size // 4)
            for i, offset in enumerate(offsets):
                at = int(addresses[wave, lane]) + offset
                if operation in ("read", "signed"):
                    value = int.from_bytes(
                        expected_memory[at : at + size], "little", signed=operation == "signed"
                    )
                    for word in range(words):
                        expected[10 + i * words + word, wave, lane] = (
                            value >> 32 * word & 0xFFFFFFFF
                        )
                    continue
                first = 4 if i == 0 else 6
                value = sum(
                    int(before[first + word, wave, lane]) << 32 * word for word in range(words)
                )
                value &= (1 << bits) - 1
                old = int.from_bytes(expected_memory[at : at + size], "little")
                value = {"write": value, "or": old | value, "max": max(old, value)}[operation]
                expected_memory[at : at + size] = value.to_bytes(size, "little")
        alone.run(batch, which, masks)
        assert (batch.vectors == expected).all(), text
        assert batch.lds.octets[:8192].tobytes() == bytes(expected_memory), text


GLOBAL = {
    "global_load_ubyte v10, v[2:3], off offset:-3": ("load", 1, -3),
    "global_load_ushort v10, v[2:3], off offset:5": ("load", 2, 5),
    "global_load_dword v10, v1, s[4:5] offset:8": ("load", 4, 8),
    "global_load_dwordx2 v[10:11], v[2:3], off": ("load", 8, 0),
    "global_load_dwordx3 v[10:12], v[2:3], off offset:4": ("load", 12, 4),
    "global_load_dwordx4 v[10:13], v1, s[4:5] offset:-16": ("load", 16, -16),
    "global_store_byte v[2:3], v6, off offset:1": ("store", 1, 1),
    "global_store_byte_d16_hi v[2:3], v6, off offset:1": ("high", 1, 1),
    "global_store_short v1, v6, s[4:5] offset:2": ("store", 2, 2),
    "global_store_dword v[2:3], v6, off": ("store", 4, 0),
    "global_store_dwordx2 v[2:3], v[6:7], off": ("store", 8, 0),
    "global_store_dwordx3 v[2:3], v[6:8], off": ("store", 12, 0),
    "global_store_dwordx4 v1, v[6:9], s[4:5] offset:-8": ("store", 16, -8),
    "global_atomic_add_x2 v[2:3], v[6:7], off": ("add", 8, 0),
}


@pytest.mark.parametrize("masks", [None, [0x5555555555555555, 0xFF00]], ids=["full", "part"])
def test_global_memory(masks):
    alone = Alone(list(GLOBAL))
    generator = np.random.default_rng(8)
    memory = alone.machine.memory
    base = memory.arena.base
    for which, (text, (operation, size, offset)) in enumerate(GLOBAL.items()):
        memory.set_buffers(
            [{"name": "all", "address": base + 64, "bytes": 3000, "initialized": True}]
        )
        batch = alone.batch()
        octets = generator.integers(0, 256, 4096).astype(np.uint8)
        memory.arena.octets[...] = octets
        places = (128 + generator.permutation(128) * 16).reshape(2, 64)
        if operation == "add":
            places = 256 + (generator.integers(0, 5, (2, 64)) * 8)  # several lanes to one place
        address = (base + places).astype(np.uint64)
        batch.vectors[1] = places + 1000
        batch.vectors[2], batch.vectors[3] = (
            address & np.uint64(0xFFFFFFFF),
            address >> np.uint64(32),
        )
        batch.s64[4][...] = np.uint64(base - 1000)
        batch.vectors[6:14] = generator.integers(0, 1 << 32, (8, 2, 64))
        expected, after = batch.vectors.copy(), bytearray(octets.tobytes())
        for wave, lane in itertools.product(range(2), range(64)):
            if masks is not None and not masks[wave] >> lane & 1:
                continue
            at = int(places[wave, lane]) + offset
            words = max(1, size // 4)
            if operation == "load":
                value = int.from_bytes(after[at : at + size], "little")
                for word in range(words):
                    expected[10 + word, wave, lane] = value >> 32 * word & 0xFFFFFFFF
                continue
            value = sum(int(expected[6 + word, wave, lane]) << 32 * word for word in range(words))
            if operation == "high":
                value >>= 16
            if operation == "add":
                value += int.from_bytes(after[at : at + size], "little")
            after[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
        alone.run(batch, which, masks)
        assert (batch.vectors == expected).all(), text
        assert memory.arena.octets.tobytes() == bytes(after), text


# ---------------------------------------------------------------- floats

DIVISIONS = """
extern "C" __global__ void doubles(const double* a, const double* b, double* c) { c[thread] = a[thread] / b[thread]; }
extern "C" __global__ void fused(const double* a, const double* b, const double* c, double* d) {
  d[thread] = __builtin_fma(a[thread], b[thread], c[thread]);
}
extern "C" __global__ void words(const unsigned* a, const unsigned* b, unsigned* c) {
  c[2 * thread] = a[thread] / b[thread];
  c[2 * thread + 1] = a[thread] % b[thread];
}
extern "C" __global__ void longs(const long* a, const long* b, long* c) {
  c[2 * thread] = a[thread] / b[thread];
  c[2 * thread + 1] = a[thread] % b[thread];
}
"""


@pytest.fixture(scope="module")
def divisions():
    return compiled(DIVISIONS, "divisions")


def run_divisions(path, name, columns, dtype, results, order="ascending"):
    device = Device(path, order)
    places = [device.buffer(str(i), np.array(column, dtype)) for i, column in enumerate(columns)]
    to = device.buffer("to", np.zeros(results, dtype))
    device.launch(name, 1, len(columns[0]), *places, to)
    return device.read(to, dtype, results)


@pytest.mark.parametrize("order", matrix.ORDERS)
def test_division_of_doubles(divisions, order):
    generator = random.Random(9)
    a, b = (
        [
            generator.choice([1, -1])
            * math.ldexp(generator.random() + 0.5, generator.randrange(-400, 400))
            for _ in range(128)
        ]
        for _ in range(2)
    )
    a[:6], b[:6] = [1.0, 0.0, -0.0, 3.0, math.inf, 1e300], [3.0, 5.0, 7.0, math.inf, -2.0, 1e-5]
    found = run_divisions(divisions, "doubles", (a, b), np.float64, 128, order)
    assert found.tobytes() == (np.array(a) / np.array(b)).tobytes()


def test_fma_of_doubles(divisions):
    generator = random.Random(10)
    a, b, c = (
        [
            generator.choice([1, -1])
            * math.ldexp(generator.random() + 0.5, generator.randrange(-30, 30))
            for _ in range(128)
        ]
        for _ in range(3)
    )
    c = [-(x * y) if i % 3 == 0 else z for i, (x, y, z) in enumerate(zip(a, b, c))]
    found = run_divisions(divisions, "fused", (a, b, c), np.float64, 128)
    for i in range(128):
        exact = fractions.Fraction(a[i]) * fractions.Fraction(b[i]) + fractions.Fraction(c[i])
        assert float(found[i]) == exact.numerator / exact.denominator


@pytest.mark.parametrize("order", matrix.ORDERS)
def test_division_of_integers(divisions, order):
    generator = random.Random(11)
    for name, dtype, bits in (("words", np.uint32, 32), ("longs", np.int64, 63)):
        a, b = (
            [generator.getrandbits(bits) >> generator.randrange(bits) for _ in range(128)]
            for _ in range(2)
        )
        b = [value or 1 for value in b]
        if name == "longs":
            a = [-value if i % 3 == 0 else value for i, value in enumerate(a)]
            b = [-value if i % 5 == 0 else value for i, value in enumerate(b)]
        found = run_divisions(divisions, name, (a, b), dtype, 256, order).reshape(128, 2)
        for i in range(128):
            quotient = abs(a[i]) // abs(b[i]) * (1 if (a[i] < 0) == (b[i] < 0) else -1)
            assert [int(x) for x in found[i]] == [quotient, a[i] - quotient * b[i]]


def test_reciprocals():
    values = np.array([3, -3, 4, 0, np.inf, 0.7], np.float32)
    exact = numeric.reciprocal(values, "ascending")
    assert exact.tobytes() == (np.float32(1) / values).tobytes()
    for order, side in (("descending", -1), ("pairwise", 1)):
        found = numeric.reciprocal(values, order)
        assert found[[2, 3, 4]].tobytes() == exact[[2, 3, 4]].tobytes()
        for value, one in zip(values, found):
            if value and np.isfinite(value):
                true = 1 / abs(fractions.Fraction(float(value)))
                size = abs(fractions.Fraction(float(one)))
                other = np.nextafter(abs(one), np.float32(0 if side > 0 else np.inf))
                assert size == true or (size - true) * side > 0
                assert size == true or (fractions.Fraction(float(other)) - true) * side < 0
        ratio = numeric.reciprocal(np.array([3.0, -2.0]), order) * [3.0, -2.0] - 1
        assert abs(ratio[0] - side * 2.0**-24) < 2.0**-50 and ratio[1] == 0


def test_conversion_to_integers():
    values = np.array([0.0, -0.5, 1.99, 4294967295.0, 1e20, -1e20, math.nan, math.inf], np.float32)
    assert numeric.to_integer(values, np.uint32).tolist() == [
        0,
        0,
        1,
        2**32 - 1,
        2**32 - 1,
        0,
        0,
        2**32 - 1,
    ]
    assert numeric.to_integer(values, np.int32).tolist() == [
        0,
        0,
        1,
        2**31 - 1,
        2**31 - 1,
        -(2**31),
        0,
        2**31 - 1,
    ]
