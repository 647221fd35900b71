# SPDX-License-Identifier: Apache-2.0
"""Every golden array, from every framework, however it lies in memory."""

import numpy
import pytest
from conftest import GOLDEN_ARRAYS, PLACEMENTS, WAYS, bell, bf16_values, crc32, leaderboard

import kokkosmx
from kokkosmx import CodesLayout, DType, NonFinite, Rounding, ScaleMode, ScalesLayout, rules

QUANTIZED = GOLDEN_ARRAYS.names("quantize_", "_input")
PRODUCTS = GOLDEN_ARRAYS.names("gemm_", "_seed_bf16")
CODE_PRODUCTS = GOLDEN_ARRAYS.names("gemm_codes_", "_exact_f32")
SHUFFLED = GOLDEN_ARRAYS.names("shuffle_scale_", "_input")


def differing(got, expected):
    assert got.shape == expected.shape
    return int((got != expected).sum())


def nearest_even(non_finite=NonFinite.ocp):
    return {**rules.quark_even, "non_finite": non_finite}


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantize(golden, way, place, name):
    x = way.dense(place(golden[f"quantize_{name}_input"]))
    codes, scales = kokkosmx.quantize(x, **rules.reference, **way.keywords)
    assert differing(way.bits(codes), golden[f"quantize_{name}_seed_codes"]) == 0
    assert differing(way.bits(scales), golden[f"quantize_{name}_seed_scales"]) == 0
    if f"quantize_{name}_rne_codes" in golden:
        codes, scales = kokkosmx.quantize(x, **nearest_even(), **way.keywords)
        assert differing(way.bits(codes), golden[f"quantize_{name}_rne_codes"]) == 0
        assert differing(way.bits(scales), golden[f"quantize_{name}_seed_scales"]) == 0


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantize_float32(golden, way, place, name):
    """The same numbers in a wider type: the same codes and scales."""
    x = way.array(place(bf16_values(golden[f"quantize_{name}_input"])))
    codes, scales = kokkosmx.quantize(x, **rules.reference)
    assert differing(way.bits(codes), golden[f"quantize_{name}_seed_codes"]) == 0
    assert differing(way.bits(scales), golden[f"quantize_{name}_seed_scales"]) == 0


@pytest.mark.parametrize(
    "name", [n for n in QUANTIZED if f"quantize_{n}_seed_dequantized" in GOLDEN_ARRAYS]
)
def test_dequantize(golden, way, place, name):
    codes = way.array(place(golden[f"quantize_{name}_seed_codes"]))
    scales = way.array(place(golden[f"quantize_{name}_seed_scales"]))
    expected = golden[f"quantize_{name}_seed_dequantized"]
    assert differing(way.bits(kokkosmx.dequantize((codes, scales))), expected) == 0
    # The reference's own functions: the same numbers by parts.
    factors = way.bits(kokkosmx.reference.mxfp4_to_f32(codes)).view(numpy.float32)
    scale = way.bits(kokkosmx.reference.e8m0_to_f32(scales)).view(numpy.float32)
    with numpy.errstate(over="ignore"):
        product = factors * numpy.repeat(scale, 32, axis=1)
    assert differing(product.view(numpy.uint32), expected) == 0


@pytest.mark.parametrize("mode", [ScaleMode.floor, ScaleMode.ceil, ScaleMode.rceil, ScaleMode.even])
def test_scales(golden, way, place, mode):
    # A block each: its largest magnitude is the array's number.
    amax = golden["scale_amax"].view(numpy.float32)
    x = numpy.zeros((len(amax), 32), numpy.float32)
    x[:, 7] = amax
    _, scales = kokkosmx.quantize(
        way.array(place(x)), mode=mode, rounding=Rounding.nearest_even, non_finite=NonFinite.ocp
    )
    assert differing(way.bits(scales)[:, 0], golden[f"scale_{mode.name}"]) == 0


def test_shuffle_weight(golden, way, place):
    codes, expected = golden["shuffle_weight_input"], golden["shuffle_weight_16x16"]
    shuffled = kokkosmx.reference.shuffle_weight(way.array(place(codes)), layout=(16, 16))
    assert differing(way.bits(shuffled), expected) == 0
    assert differing(way.bits(kokkosmx.unshuffle_weight(shuffled)), codes) == 0


@pytest.mark.parametrize("name", SHUFFLED)
def test_shuffle_scale(golden, way, place, name):
    scales, expected = golden[f"shuffle_scale_{name}_input"], golden[f"shuffle_scale_{name}"]
    shuffled = kokkosmx.reference.shuffle_scale(way.array(place(scales)))
    assert differing(way.bits(shuffled), expected) == 0
    rows, cols = scales.shape
    back = kokkosmx.unshuffle_scale(shuffled, rows=rows, cols=cols)
    assert differing(way.bits(back), scales) == 0


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(golden, way, place, name):
    a = way.dense(place(golden[f"gemm_{name}_a"]))
    b = way.dense(place(golden[f"gemm_{name}_b"]))
    exact = golden[f"gemm_{name}_exact_f32"]
    c = kokkosmx.quantize_gemm(a, b, dtype=DType.float32, **rules.reference, **way.keywords)
    assert differing(way.bits(c), exact) == 0
    prepared = kokkosmx.prepare(b, **rules.reference, **way.keywords)
    c = kokkosmx.quantize_gemm(a, prepared, dtype=DType.float32, **rules.reference, **way.keywords)
    assert differing(way.bits(c), exact) == 0
    # The reference's float32 sums are the exact ones where the certificate says so.
    if way.keywords:
        c = kokkosmx.quantize_gemm(a, b, **rules.reference, **way.keywords)
    else:
        c = kokkosmx.reference.custom_kernel((a, b, "further", "members"))
    verdict = kokkosmx.compare(a, b, c, **rules.reference, **way.keywords)
    assert verdict.equal
    seed = way.dense(golden[f"gemm_{name}_seed_bf16"].copy())
    verdict = kokkosmx.compare(a, b, seed, **rules.reference, **way.keywords)
    assert verdict.excusable, str(verdict)
    if verdict.certified == verdict.outputs:
        assert differing(way.bits(c), way.bits(seed)) == 0


@pytest.mark.parametrize("name", CODE_PRODUCTS)
def test_products_of_codes(golden, way, place, name):
    parts = [
        way.array(place(golden[f"gemm_codes_{name}_{part}"]))
        for part in ("a_codes", "a_scales", "b_codes", "b_scales")
    ]
    exact = golden[f"gemm_codes_{name}_exact_f32"]
    a, b = tuple(parts[:2]), tuple(parts[2:])
    c = kokkosmx.gemm(a, b)
    assert differing(way.bits(c), exact) == 0
    assert kokkosmx.compare(a, b, c).equal
    prepared = kokkosmx.prepare(b)
    assert differing(way.bits(kokkosmx.gemm(kokkosmx.prepare(a), prepared)), exact) == 0
    for got, expected in zip(prepared.unprepare(), parts[2:]):
        assert differing(way.bits(got), way.bits(expected)) == 0


@pytest.mark.parametrize("row", leaderboard(), ids=lambda row: "x".join(row[x] for x in "mnk"))
def test_leaderboard(way, row):
    m, n, k = (int(row[x]) for x in "mnk")
    a_bits, b_bits = bell(m, k, int(row["seed_a"])), bell(n, k, int(row["seed_b"]))
    assert (crc32(a_bits), crc32(b_bits)) == (row["crc_a"], row["crc_b"])
    a, b = way.dense(a_bits), way.dense(b_bits)
    stages = {}
    quantized = {}
    for name, x in (("a", a), ("b", b)):
        quantized[name] = kokkosmx.quantize(x, **rules.reference, **way.keywords)
        stages[f"crc_{name}_codes"], stages[f"crc_{name}_scales"] = quantized[name]
    stages["crc_b_shuffled"] = kokkosmx.shuffle_weight(quantized["b"][0])
    stages["crc_b_scales_shuffled"] = kokkosmx.shuffle_scale(quantized["b"][1])
    stages["crc_c_bf16"] = kokkosmx.quantize_gemm(a, b, **rules.reference, **way.keywords)
    for stage, array in stages.items():
        assert crc32(way.bits(array)) == row[stage], stage
    # Straight into the shuffled layout, and a product that reads it.
    tiled = {"codes_layout": CodesLayout.tile16x16, "scales_layout": ScalesLayout.tile32x8}
    codes, scales = kokkosmx.quantize(b, **rules.reference, **tiled, **way.keywords)
    assert crc32(way.bits(codes)) == row["crc_b_shuffled"]
    assert crc32(way.bits(scales)) == row["crc_b_scales_shuffled"]
    c = kokkosmx.gemm(
        quantized["a"],
        kokkosmx.Matrix(codes, scales, **tiled),
        dtype=DType.bfloat16,
        **way.keywords,
    )
    assert crc32(way.bits(c)) == row["crc_c_bf16"]


def test_every_golden_array_was_read(request):
    """The last of this file: what no test reads, from each framework and place, proves nothing."""
    here = [item for item in request.session.items if item.module.__name__ == __name__]
    if len(here) < 100:
        pytest.skip("not all of this file's tests run")
    every = set(GOLDEN_ARRAYS.entries)
    for way in WAYS:
        for place in PLACEMENTS:
            assert GOLDEN_ARRAYS.used[way.name, place.__name__] == every, (way.name, place)
