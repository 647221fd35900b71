# SPDX-License-Identifier: Apache-2.0
"""How arrays come in and go out: without a copy, into out=, in the caller's framework."""

import array
import threading
import time

import numpy
import pytest
from conftest import bell, bf16_values, needs_ml_dtypes, needs_torch

import kokkosmx
from kokkosmx import CodesLayout, DType, NonFinite, ScalesLayout, Tier, rules


def operands(m=5, n=48, k=128):
    return bf16_values(bell(m, k, 1)), bf16_values(bell(n, k, 2))


def address(x):
    return x.data_ptr() if hasattr(x, "data_ptr") else x.__array_interface__["data"][0]


def test_results_are_written_where_out_lies(way):
    """Zero copy: the very memory of the caller is read and written."""
    x = way.dense(bell(6, 64, 3))
    codes = way.array(numpy.zeros((6, 32), numpy.uint8))
    scales = way.array(numpy.zeros((6, 2), numpy.uint8))
    before = address(codes), address(scales)
    got = kokkosmx.quantize(x, out=(codes, scales), **rules.reference, **way.keywords)
    assert got[0] is codes and got[1] is scales
    assert (address(codes), address(scales)) == before
    expected = kokkosmx.quantize(x, **rules.reference, **way.keywords)
    for a, b in zip(got, expected):
        assert (way.bits(a) == way.bits(b)).all()

    out = way.array(numpy.full((6, 6), 9, numpy.float32))
    matrix = kokkosmx.Matrix(codes, scales)
    assert kokkosmx.gemm(matrix, matrix, out=out) is out
    first = way.bits(out).copy()
    # A Matrix holds the caller's memory, not a copy: it sees what is written there later.
    assert matrix.codes is codes
    codes[:, :] = 0
    kokkosmx.gemm(matrix, matrix, out=out)
    assert (way.bits(out) == 0).all() and (first != 0).any()


def test_inputs_are_read_where_they_lie(way):
    """Memory that overlaps is refused by its addresses: so the addresses are the caller's."""
    memory = numpy.zeros(4096, numpy.uint8)

    def dense(begin):
        return way.dense(memory[begin : begin + 256].view(numpy.uint16).reshape(4, 32))

    def of_bytes(begin, cols):
        return way.array(memory[begin : begin + 4 * cols].reshape(4, cols))

    def floats(begin, *shape):
        view = memory[begin : begin + 4 * int(numpy.prod(shape))].view(numpy.float32)
        return way.array(view.reshape(shape))

    calls = {
        "quantize": lambda at: kokkosmx.quantize(
            dense(0), out=(of_bytes(at, 16), of_bytes(1024, 1)), **rules.rceil, **way.keywords
        ),
        "quantize, scales": lambda at: kokkosmx.quantize(
            dense(0), out=(of_bytes(1024, 16), of_bytes(at, 1)), **rules.rceil, **way.keywords
        ),
        "dequantize, codes": lambda at: kokkosmx.dequantize(
            (of_bytes(192, 16), of_bytes(1024, 1)), out=floats(at, 4, 32)
        ),
        "dequantize, scales": lambda at: kokkosmx.dequantize(
            (of_bytes(1024, 16), of_bytes(252, 1)), out=floats(at, 4, 32)
        ),
        "shuffle_scale": lambda at: kokkosmx.shuffle_scale(
            of_bytes(252, 1), out=way.array(memory[at : at + 2048].reshape(256, 8))
        ),
        "gemm, A": lambda at: kokkosmx.gemm(
            (of_bytes(192, 16), of_bytes(1024, 1)),
            (of_bytes(1100, 16), of_bytes(1200, 1)),
            out=floats(at, 4, 4),
        ),
        "gemm, scales of B": lambda at: kokkosmx.gemm(
            (of_bytes(1024, 16), of_bytes(1100, 1)),
            (of_bytes(1200, 16), of_bytes(252, 1)),
            out=floats(at, 4, 4),
        ),
        "quantize_gemm, A": lambda at: kokkosmx.quantize_gemm(
            dense(0), dense(1024), out=floats(at, 4, 4), **rules.rceil, **way.keywords
        ),
        "quantize_gemm, B": lambda at: kokkosmx.quantize_gemm(
            dense(1024), dense(0), out=floats(at, 4, 4), **rules.rceil, **way.keywords
        ),
        "bias": lambda at: kokkosmx.quantize_gemm(
            dense(1024),
            dense(1280),
            bias=floats(240, 4),
            out=floats(at, 4, 4),
            **rules.rceil,
            **way.keywords,
        ),
    }
    for name, call in calls.items():
        # An input of each ends at byte 256: the last byte that is shared is refused ...
        with pytest.raises(ValueError, match="not to overlap"):
            call(252)
            pytest.fail(name)
        # ... and the first that is not, is not.
        call(256)


def test_interleaved_rows():
    """A result between the rows of its input, which any copy would have torn apart."""
    wide = numpy.zeros((4, 256), numpy.uint8)
    x = wide[:, :128].view(numpy.float32)
    x[...] = numpy.arange(32)
    kokkosmx.quantize(x, out=(wide[:, 128:144], wide[:, 200:201]), **rules.rceil)
    codes, scales = kokkosmx.quantize(x.copy(), **rules.rceil)
    assert (wide[:, 128:144] == codes).all() and (wide[:, 200:201] == scales).all()
    assert (wide[:, 144:200] == 0).all() and (wide[:, 201:] == 0).all()


def test_no_memory_is_copied():
    """A view of a terabyte is read in place: any copy of it would fail."""
    row = numpy.zeros(64, numpy.float32)
    huge = numpy.lib.stride_tricks.as_strided(row, (1 << 30, 64), (0, 4))
    part = huge[: 1 << 10]
    assert kokkosmx.quantize(part, **rules.rceil)[0].shape == (1 << 10, 32)
    with pytest.raises((ValueError, MemoryError)):
        kokkosmx.quantize(
            numpy.lib.stride_tricks.as_strided(row, (1 << 50, 64), (0, 4)), **rules.rceil
        )


def test_read_only_inputs_and_writable_outputs():
    x = numpy.ones((2, 64), numpy.float32)
    x.setflags(write=False)
    codes, scales = kokkosmx.quantize(x, **rules.reference)
    codes.setflags(write=False)
    assert kokkosmx.dequantize((codes, scales)).tolist() == x.tolist()
    with pytest.raises(ValueError, match="read-only"):
        kokkosmx.dequantize((codes, scales), out=x)
    with pytest.raises(ValueError, match="read-only"):
        kokkosmx.quantize(x, out=(codes, scales), **rules.reference)


def test_unaligned_by_a_byte():
    a, b = operands()
    memory = bytearray(a.nbytes + 1)
    memory[1:] = a.tobytes()
    odd = numpy.frombuffer(memory, numpy.uint8)[1:].view(numpy.float32).reshape(a.shape)
    assert odd.ctypes.data % 4 == 1
    expected = kokkosmx.quantize_gemm(a, b, **rules.reference)
    assert (kokkosmx.quantize_gemm(odd, b, **rules.reference) == expected).all()


def test_buffers_of_no_framework():
    codes = memoryview(bytearray([0x22] * 32)).cast("B", (2, 16))
    scales = memoryview(bytearray([127] * 2)).cast("B", (2, 1))
    c = kokkosmx.gemm((codes, scales), (codes, scales))
    assert numpy.asarray(memoryview(c)).tolist() == [[32.0, 32.0], [32.0, 32.0]]
    out = memoryview(array.array("f", [0.0] * 4)).cast("B").cast("f", (2, 2))
    assert kokkosmx.gemm((codes, scales), (codes, scales), out=out) is out
    assert out.tolist() == [[32.0, 32.0], [32.0, 32.0]]


class OnlyDLPack:
    """A framework of which nothing is known."""

    def __init__(self, x):
        self.x = x

    def __dlpack__(self, **keywords):
        return self.x.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.x.__dlpack_device__()


def test_dlpack_alone():
    a, b = operands()
    c = kokkosmx.quantize_gemm(OnlyDLPack(a), OnlyDLPack(b), **rules.reference)
    expected = kokkosmx.quantize_gemm(a, b, **rules.reference)
    assert (numpy.from_dlpack(c) == expected).all()
    # A verdict needs no more, also where there is something to explain.
    x, y = OnlyDLPack(a), OnlyDLPack(b)
    assert kokkosmx.compare(x, y, OnlyDLPack(expected)).equal
    expected[1, 2] += 1
    verdict = kokkosmx.compare(x, y, OnlyDLPack(expected))
    assert not verdict and [d.index for d in verdict.differences] == [(1, 2)]


def test_buffers_alone_are_compared():
    codes = memoryview(bytearray([0x22] * 32)).cast("B", (2, 16))
    scales = memoryview(bytearray([127] * 2)).cast("B", (2, 1))
    c = memoryview(array.array("f", [32.0, 32.0, 32.0, 31.0])).cast("B").cast("f", (2, 2))
    verdict = kokkosmx.compare((codes, scales), (codes, scales), c)
    assert not verdict and [d.index for d in verdict.differences] == [(1, 1)]


@needs_torch
def test_results_in_the_callers_framework():
    import torch

    a, b = operands()
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        c = kokkosmx.reference.custom_kernel((ta.to(dtype), tb.to(dtype)))
        assert isinstance(c, torch.Tensor) and c.dtype == dtype and c.shape == (5, 48)
        c.add_(1)
    codes, scales = kokkosmx.reference.quantize_mxfp4(ta)
    assert codes.dtype == scales.dtype == torch.uint8
    assert kokkosmx.dequantize((codes, scales), dtype=DType.float16).dtype == torch.float16
    assert isinstance(kokkosmx.prepare(ta, **rules.rceil).unprepare()[0], torch.Tensor)
    if hasattr(torch, "float8_e8m0fnu"):
        c = kokkosmx.gemm((codes, scales.view(torch.float8_e8m0fnu)), (codes, scales))
        assert torch.equal(c, kokkosmx.gemm((codes, scales), (codes, scales)))


@needs_ml_dtypes
def test_numpy_types():
    import ml_dtypes

    a, b = operands()
    codes, scales = kokkosmx.quantize(a, **rules.rceil)
    x = kokkosmx.dequantize((codes, scales), dtype=DType.bfloat16)
    assert x.dtype == ml_dtypes.bfloat16
    bits = kokkosmx.dequantize((codes, scales), dtype=DType.bfloat16, uint16_as=DType.bfloat16)
    assert bits.dtype == numpy.uint16 and (bits == x.view(numpy.uint16)).all()
    half = kokkosmx.quantize_gemm(a.astype(numpy.float16), b, **rules.rceil)
    assert half.dtype == numpy.float16
    assert kokkosmx.reference.custom_kernel((x, x)).dtype == ml_dtypes.bfloat16


def test_uint16_needs_its_meaning():
    bits = numpy.zeros((2, 32), numpy.uint16)
    with pytest.raises(TypeError, match="uint16_as="):
        kokkosmx.quantize(bits, **rules.reference)
    kokkosmx.quantize(bits, uint16_as=DType.float16, **rules.reference)


def test_epilogue_tiers_and_batches():
    a, b = operands()
    bias = numpy.arange(48, dtype=numpy.float32)
    qa, qb = kokkosmx.quantize(a, **rules.quark_even), kokkosmx.quantize(b, **rules.quark_even)
    plain = kokkosmx.gemm(qa, qb)
    out = numpy.ones((5, 48), numpy.float32)
    kokkosmx.gemm(qa, qb, out=out, alpha=2.0, beta=4.0, bias=bias)
    assert (out == numpy.float32(2) * plain + 4 + bias).all()
    assert (kokkosmx.gemm(qa, qb, alpha=0.0) == 0).all()
    # A result that is read and not written is untouched.
    counts = numpy.zeros(4, numpy.uint64)
    for tier in (Tier.automatic, Tier.window, Tier.wide):
        assert (kokkosmx.gemm(qa, qb, minimum_tier=tier, tier_counts=counts) == plain).all()
    assert counts.tolist() == [0, 240, 240, 240]
    x = numpy.stack([a, a + 1])
    c = kokkosmx.quantize_gemm(x, b, **rules.quark_even)
    assert c.shape == (2, 5, 48) and (c[0] == plain).all() and (c[1] != plain).any()
    with pytest.raises(ValueError, match="no out= to read"):
        kokkosmx.gemm(qa, qb, beta=1.0)


def test_layouts_and_prepared():
    a, b = operands(k=256)
    tiled = {"codes_layout": CodesLayout.tile16x16, "scales_layout": ScalesLayout.tile32x8}
    plain, shuffled = (
        kokkosmx.quantize(b, **rules.rceil),
        kokkosmx.quantize(b, **tiled, **rules.rceil),
    )
    assert (kokkosmx.shuffle_weight(plain[0]) == shuffled[0]).all()
    matrix = kokkosmx.Matrix(*shuffled, **tiled)
    assert matrix.shape == (48, 256) and matrix.codes_layout == CodesLayout.tile16x16
    assert (kokkosmx.dequantize(matrix) == kokkosmx.dequantize(plain)).all()
    expected = kokkosmx.gemm(kokkosmx.quantize(a, **rules.rceil), plain)
    for operand in (matrix, plain, kokkosmx.prepare(matrix), kokkosmx.prepare(b, **rules.rceil)):
        assert (
            kokkosmx.quantize_gemm(a, operand, dtype=DType.float32, **rules.rceil) == expected
        ).all()
    prepared = kokkosmx.prepare(plain)
    assert prepared.shape == (48, 256) and prepared.nbytes >= 48 * (128 + 8)
    assert (kokkosmx.dequantize(prepared) == kokkosmx.dequantize(plain)).all()
    # It is a copy: the arrays may change.
    plain[0][...] = 0
    assert (kokkosmx.quantize_gemm(a, prepared, **rules.rceil) == expected).all()


def test_nan_rule():
    x = numpy.ones((1, 64), numpy.float32)
    x[0, 3] = numpy.nan
    _, scales = kokkosmx.quantize(x, **rules.rceil)
    assert scales[0, 0] == 255
    with pytest.raises(ValueError, match="NonFinite::reference exists only"):
        kokkosmx.quantize(x, **{**rules.rceil, "non_finite": NonFinite.reference})


def test_threads():
    """Calls from many threads of Python at once, each with its own operands."""
    jobs = []
    for i in range(8):
        a, b = bf16_values(bell(3 + i, 512, i)), bf16_values(bell(64, 512, 50 + i))
        jobs.append((a, b, kokkosmx.quantize_gemm(a, b, **rules.reference)))
    wrong = []

    def work(a, b, expected):
        prepared = kokkosmx.prepare(b, **rules.reference)
        for turn in range(60):
            c = kokkosmx.quantize_gemm(a, (b, prepared)[turn % 2], **rules.reference)
            if not (c == expected).all() or not kokkosmx.compare(a, b, c).equal:
                wrong.append(turn)

    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_gil_is_released():
    """Another thread of Python runs in the midst of a call."""
    # Scales that lie anywhere: the slowest of tiers.
    b = numpy.tile(numpy.exp2(numpy.linspace(-120, 120, 1024)).astype(numpy.float32), (256, 1))
    turns, done = [], threading.Event()

    def count():
        while not done.wait(0.0005):
            turns.append(time.perf_counter())

    thread = threading.Thread(target=count)
    thread.start()
    try:
        # Long enough for many turns, whatever the machine.
        spent, rows = 0.0, 256
        while spent < 0.1:
            x = numpy.resize(b, (rows, 1024))
            begin = time.perf_counter()
            kokkosmx.quantize_gemm(x, b, **rules.reference)
            spent = time.perf_counter() - begin
            rows *= 2
    finally:
        done.set()
        thread.join()
    # When a call that has kept the GIL returns, others run at once: so the middle half counts.
    midst = [t for t in turns if begin + spent / 4 < t < begin + 3 * spent / 4]
    assert len(midst) >= 5
