# SPDX-License-Identifier: Apache-2.0
"""Bad input is a ValueError or a TypeError that says what was given; nothing crashes."""

import os
import random
import re

import numpy
import pytest
from conftest import ml_dtypes, needs_torch, torch

import kokkosmx
from kokkosmx import (
    CodesLayout,
    DType,
    NonFinite,
    Rounding,
    ScaleMode,
    ScalesLayout,
    Tier,
    rules,
)

F32 = numpy.float32


def zeros(*shape, dtype=F32):
    return numpy.zeros(shape, dtype)


CODES, SCALES = zeros(4, 32, dtype=numpy.uint8), zeros(4, 2, dtype=numpy.uint8)

CASES = {
    "K": (
        lambda: kokkosmx.quantize(zeros(4, 33), **rules.reference),
        ValueError,
        ["K", "multiple of 32", "numpy.float32 (4, 33)", "cpu"],
    ),
    "rank": (
        lambda: kokkosmx.quantize(zeros(64), **rules.reference),
        ValueError,
        ["2 dimensions", "numpy.float32 (64,)", "cpu"],
    ),
    "nine dimensions": (
        lambda: kokkosmx.reference.e8m0_to_f32(zeros(*[1] * 9, dtype=numpy.uint8)),
        ValueError,
        ["9 dimensions", "uint8"],
    ),
    "dtype": (
        lambda: kokkosmx.quantize(zeros(4, 32, dtype=numpy.float64), **rules.reference),
        TypeError,
        ["float32, bfloat16 or float16", '"d"', "(4, 32)", "cpu"],
    ),
    "big endian": (
        lambda: kokkosmx.quantize(zeros(4, 32, dtype=">f4"), **rules.reference),
        TypeError,
        [">f", "(4, 32)"],
    ),
    "no array": (
        lambda: kokkosmx.quantize([[1.0] * 32], **rules.reference),
        TypeError,
        ["x", "given a list"],
    ),
    "codes of float": (
        lambda: kokkosmx.dequantize((zeros(4, 32), SCALES)),
        TypeError,
        ["codes", "uint8", "numpy.float32 (4, 32)", "cpu"],
    ),
    "inner dimensions": (
        lambda: kokkosmx.quantize_gemm(zeros(4, 64), zeros(5, 96), **rules.reference),
        ValueError,
        ["same K", "64", "96", "A = numpy.float32 (4, 64)", "B = numpy.float32 (5, 96)", "cpu"],
    ),
    "out shape": (
        lambda: kokkosmx.quantize_gemm(
            zeros(4, 64), zeros(5, 64), out=zeros(5, 4), **rules.reference
        ),
        ValueError,
        ["(4, 5)", "out = numpy.float32 (5, 4)"],
    ),
    "out dtype": (
        lambda: kokkosmx.gemm((CODES, SCALES), (CODES, SCALES), out=zeros(4, 4, dtype=numpy.int32)),
        TypeError,
        ["out", '"i"', "(4, 4)"],
    ),
    "scales shape": (
        lambda: kokkosmx.dequantize((CODES, SCALES[:, :1])),
        ValueError,
        ["scales", "(1, 4, 2)", "numpy.uint8 (4, 1)"],
    ),
    "Matrix": (
        lambda: kokkosmx.Matrix(CODES, SCALES, scales_layout=ScalesLayout.tile32x8),
        ValueError,
        ["(1, 256, 8)", "numpy.uint8 (4, 2)"],
    ),
    "shuffle": (
        lambda: kokkosmx.shuffle_weight(CODES),
        ValueError,
        ["multiple of 16", "numpy.uint8 (4, 32)"],
    ),
    "columns": (
        lambda: kokkosmx.quantize(zeros(32, 4).T, **rules.reference),
        ValueError,
        ["K"],
    ),
    "column stride": (
        lambda: kokkosmx.quantize(zeros(4, 64)[:, ::2], **rules.reference),
        ValueError,
        ["contiguous", "with strides (64, 2)"],
    ),
    "negative strides": (
        lambda: kokkosmx.quantize(zeros(4, 64)[::-1], **rules.reference),
        ValueError,
        ["negative strides", "(-64, 1)"],
    ),
    "strides of parts": (
        lambda: kokkosmx.quantize(
            numpy.ndarray((2, 32), F32, numpy.zeros(400, numpy.uint8), strides=(130, 4)),
            **rules.reference,
        ),
        ValueError,
        ["multiples of the element's size"],
    ),
    "aliasing": (
        lambda: kokkosmx.shuffle_weight(x := zeros(16, 32, dtype=numpy.uint8), out=x),
        ValueError,
        ["not to overlap"],
    ),
    "enum": (
        lambda: kokkosmx.quantize(zeros(4, 32), **{**rules.reference, "mode": "even"}),
        TypeError,
        ["mode", "str"],
    ),
    "rule left out": (lambda: kokkosmx.quantize(zeros(4, 32)), TypeError, ["mode"]),
    "bias": (
        lambda: kokkosmx.gemm((CODES, SCALES), (CODES, SCALES), bias=zeros(3)),
        ValueError,
        ["bias of extent N = 4", "bias = numpy.float32 (3,)"],
    ),
    "prepare": (
        lambda: kokkosmx.prepare(zeros(4, 32)),
        ValueError,
        ["name its mode", "numpy.float32 (4, 32)"],
    ),
    "compare": (
        lambda: kokkosmx.compare(zeros(4, 64), zeros(5, 64), zeros(4, 4)),
        ValueError,
        ["(4, 5)", "C = numpy.float32 (4, 4)"],
    ),
    "custom_kernel": (
        lambda: kokkosmx.reference.custom_kernel((zeros(4, 64),)),
        ValueError,
        ["(A, B, *rest)"],
    ),
    "custom_kernel's members": (
        lambda: kokkosmx.reference.custom_kernel((zeros(4, 64),)),
        ValueError,
        ["given a tuple (ndarray dtype float32 shape (4, 64)"],
    ),
    "no pair": (
        lambda: kokkosmx.gemm((CODES, SCALES, CODES), (CODES, SCALES)),
        TypeError,
        ["A", "given a tuple (ndarray dtype uint8 shape (4, 32)"],
    ),
    "Prepared": (
        lambda: kokkosmx.gemm(kokkosmx.prepare((CODES, SCALES)), (CODES[:, :16], SCALES[:, :1])),
        ValueError,
        ["same K", "A = Prepared (4, 64) on cpu", "B codes = numpy.uint8 (4, 16)"],
    ),
    "no such rule": (
        lambda: kokkosmx.quantize(
            zeros(4, 32), **{**rules.rceil, "non_finite": NonFinite.reference}
        ),
        ValueError,
        ["NonFinite::reference exists only", "numpy.float32 (4, 32)", "cpu"],
    ),
    "rows below zero": (
        lambda: kokkosmx.unshuffle_scale(zeros(256, 8, dtype=numpy.uint8), rows=-1),
        ValueError,
        ["rows is -1, of 256", "numpy.uint8 (256, 8)", "cpu"],
    ),
    "too many columns": (
        lambda: kokkosmx.unshuffle_scale(zeros(256, 8, dtype=numpy.uint8), cols=1 << 40),
        ValueError,
        ["cols is 1099511627776, of 8", "numpy.uint8 (256, 8)", "cpu"],
    ),
    "type of a layout": (
        lambda: kokkosmx.reference.shuffle_weight(CODES, layout=zeros(2)),
        TypeError,
        ["layout is a tuple", "ndarray"],
    ),
    "layout": (
        lambda: kokkosmx.reference.shuffle_weight(CODES, layout=(32, 16)),
        ValueError,
        ["(32, 16)"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_message(name):
    call, kind, parts = CASES[name]
    with pytest.raises(kind) as raised:
        call()
    for part in parts:
        assert part in str(raised.value)


class OnADevice:
    """Claims to lie in the memory of a GPU."""

    shape, dtype = (4, 32), "float32"

    def __init__(self, kind):
        self.kind = kind

    def __dlpack_device__(self):
        return (self.kind, 0)

    def __dlpack__(self, **keywords):
        import ctypes

        # A DLManagedTensor of DLPack before version 1.
        class Tensor(ctypes.Structure):
            _fields_ = [
                ("data", ctypes.c_void_p),
                ("type", ctypes.c_int32),
                ("id", ctypes.c_int32),
                ("ndim", ctypes.c_int32),
                ("code", ctypes.c_uint8),
                ("bits", ctypes.c_uint8),
                ("lanes", ctypes.c_uint16),
                ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.c_void_p),
                ("offset", ctypes.c_uint64),
                ("context", ctypes.c_void_p),
                ("deleter", ctypes.c_void_p),
            ]

        self.extents = (ctypes.c_int64 * 2)(4, 32)
        self.tensor = Tensor(16, self.kind, 0, 2, 2, 32, 1, self.extents)
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = (
            ctypes.py_object,
            [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
        )
        return new(ctypes.addressof(self.tensor), b"dltensor", None)


@pytest.mark.skipif(kokkosmx.execution_space in ("Cuda", "HIP"), reason="built for a device")
@pytest.mark.parametrize("kind, name", [(2, "cuda:0"), (10, "rocm:0"), (8, "metal:0")])
def test_device_arrays_on_a_host_only_build(kind, name):
    x = OnADevice(kind)
    calls = [
        lambda: kokkosmx.quantize(x, **rules.reference),
        lambda: kokkosmx.quantize_gemm(zeros(4, 32), x, **rules.reference),
        lambda: kokkosmx.gemm((CODES, SCALES), (CODES, SCALES), out=x),
        lambda: kokkosmx.reference.custom_kernel((x, x)),
    ]
    for call in calls:
        with pytest.raises(TypeError) as raised:
            call()
        message = str(raised.value)
        assert f"on {name}" in message and f"built for {kokkosmx.execution_space}" in message
        assert "float32 (4, 32)" in message


@needs_torch
@pytest.mark.parametrize(
    "make, parts",
    [
        (lambda: torch.zeros(4, 32, device="meta"), ["meta", "4, 32"]),
        (lambda: torch.zeros(4, 32).to_sparse(), ["4, 32"]),
        (lambda: torch.zeros(4, 32, requires_grad=True), ["gradient", "torch.float32 (4, 32)"]),
        (lambda: torch.zeros(4, 32, dtype=torch.int64), ["(4, 32)", "64 bits", "cpu"]),
        (lambda: torch.zeros(4, 32, dtype=torch.complex64), ["(4, 32)", "cpu"]),
    ],
)
def test_tensors_that_cannot_be_read(make, parts):
    with pytest.raises(TypeError) as raised:
        kokkosmx.quantize(make(), **rules.reference)
    for part in parts:
        assert part in str(raised.value)


@needs_torch
def test_gradients_are_not_dropped_silently():
    x = torch.ones(4, 32, requires_grad=True)
    with torch.no_grad():
        kokkosmx.quantize(x, **rules.reference)
    kokkosmx.quantize(x.detach(), **rules.reference)


# ------------------------------------------------------------------------------ fuzz


class Fuzz:
    """Random arguments: right ones, nearly right ones and none at all."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.results = dict.fromkeys(FUZZED, 0)
        #: The public function called last, and what it was given.
        self.name, self.arguments = "", []
        self.bytes = numpy.random.default_rng(seed).integers(0, 256, 1 << 16, dtype=numpy.uint8)

    def pick(self, *choices):
        return self.random.choice(choices)

    def extent(self):
        return self.pick(0, 1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 32, 33, 48, 64, 64, 96, 128)

    def numpy_array(self, dtype, shape):
        # Strides in bytes, anywhere in the memory that there is.
        size = numpy.dtype(dtype).itemsize
        strides, step = [], size
        for extent in reversed(shape):
            strides.insert(0, step)
            step *= max(1, extent)
        kind = self.random.random()
        offset = 0
        if kind < 0.06:
            strides = [self.pick(s, 0, 2 * s, s + 1) for s in strides]
        elif kind < 0.08:
            strides = [-s for s in strides]
            offset = 1 << 15
        elif kind < 0.3:
            offset = self.random.randrange(64)
        low = offset + sum(min(0, (n - 1) * s) for n, s in zip(shape, strides) if n)
        high = offset + size + sum(max(0, (n - 1) * s) for n, s in zip(shape, strides) if n)
        if low < 0 or high > len(self.bytes):
            return numpy.zeros(shape, dtype)
        x = numpy.ndarray(tuple(shape), dtype, self.bytes, offset, tuple(strides))
        if self.random.random() < 0.1:
            x = x.view()
            x.setflags(write=False)
        return x

    def array(self, dtypes):
        rank = self.pick(*[2] * 16, 3, 3, 1, 0, 4)
        shape = [self.extent() for _ in range(rank)]
        if rank and self.random.random() < 0.75:
            shape[-1] = self.k if dtypes != ["u1"] else self.pick(self.k // 2, self.k // 32)
        while len(shape) > 2 and numpy.prod(shape) > 1 << 15:
            shape = shape[1:]
        dtype = (
            self.pick(*dtypes)
            if self.random.random() < 0.97
            else self.pick("f8", "i4", "?", "c8", ">f4", "u8")
        )
        x = self.numpy_array(dtype, shape)
        kind = self.random.random()
        if (
            torch is not None
            and kind < 0.4
            and x.flags.writeable
            and dtype in ("f4", "f2", "u1", "u2", "i4", "f8")
        ):
            try:
                t = torch.from_numpy(x)
            except (ValueError, TypeError):
                return x
            if dtype == "u2":
                return t.view(torch.bfloat16)
            if self.random.random() < 0.05:
                return self.pick(
                    t.to("meta"), t.reshape(-1).to_sparse(), t.T if t.dim() == 2 else t
                )
            return t
        if ml_dtypes is not None and dtype == "u2" and kind < 0.7:
            return x.view(ml_dtypes.bfloat16)
        return x

    def dense(self):
        return self.array(["f4", "f4", "f2", "u2", "u2"])

    def codes(self):
        return self.array(["u1"])

    def junk(self):
        return self.pick(
            None,
            3,
            "x",
            b"\x00" * 64,
            [],
            {},
            object(),
            1.5,
            (),
            (1, 2),
            Tier.wide,
            numpy.float32(1),
            memoryview(b"ab"),
            range(4),
            float("nan"),
            -1,
            1 << 70,
        )

    def run(self, name, *arguments, **keywords):
        """Calls a public function of this name."""
        self.name, self.arguments = name, [*arguments, *keywords.values()]
        if self.random.random() < 0.01:
            keywords[self.pick("rows", "dtype", "no_such_keyword")] = self.junk()
        function = kokkosmx
        for part in name.split("."):
            function = getattr(function, part)
        result = function(*arguments, **keywords)
        self.results[name] += 1
        return result

    def pair(self):
        rows, blocks = self.extent(), self.pick(self.k // 32, self.k // 32, 0, 1, 3)
        codes = self.numpy_array("u1", [rows, 16 * blocks])
        scales = self.numpy_array("u1", [rows, blocks])
        kind = self.random.random()
        if kind < 0.05:
            return codes, self.codes()
        if kind < 0.07:
            return self.codes(), scales, codes
        if kind < 0.45:
            layouts = {
                "codes_layout": self.pick(*CodesLayout),
                "scales_layout": self.pick(*ScalesLayout),
            }
            if layouts["scales_layout"] == ScalesLayout.tile32x8:
                scales = self.numpy_array("u1", [-(-rows // 256) * 256, -(-blocks // 8) * 8])
            return self.run("Matrix", codes, scales, **layouts)
        if kind < 0.6:
            return self.run("prepare", (codes, scales))
        return codes, scales

    def operand(self):
        return self.pick(self.pair, self.pair, self.dense)()

    def rule(self):
        if self.random.random() < 0.5:
            return dict(self.pick(rules.reference, rules.ocp_floor, rules.quark_even, rules.rceil))
        rule = {
            "mode": self.pick(*ScaleMode),
            "rounding": self.pick(*Rounding),
            "non_finite": self.pick(*NonFinite),
        }
        if self.random.random() < 0.1:
            rule[self.pick(*rule)] = self.junk()
        return rule

    def keywords(self, **makers):
        given = {}
        for name, make in makers.items():
            if self.random.random() < 0.2:
                given[name] = self.junk() if self.random.random() < 0.1 else make()
        return given

    def product_shape(self, a, b):
        """That of the product of these, mostly."""
        shapes = [
            tuple(getattr(x[0] if isinstance(x, tuple) and x else x, "shape", ())) for x in (a, b)
        ]
        if self.random.random() < 0.1 or min(map(len, shapes)) < 2:
            return [self.extent(), self.extent()]
        batch = max(shapes[0][:-2], shapes[1][:-2], key=len)
        return [*batch, shapes[0][-2], shapes[1][-2]]

    def product(self, a, b):
        dtype = self.pick("f4", "f4", "f2", "u2")
        return self.numpy_array(dtype, self.product_shape(a, b))

    def epilogue(self, a, b):
        return self.keywords(
            out=lambda: self.product(a, b),
            dtype=lambda: self.pick(*DType),
            alpha=lambda: self.pick(0.0, 1.0, -2.5, 1e38, float("inf")),
            beta=lambda: self.pick(0.0, 1.0),
            bias=lambda: self.numpy_array("f4", self.product_shape(a, b)[-1:]),
            minimum_tier=lambda: self.pick(*Tier),
            tier_counts=lambda: numpy.zeros(self.pick(4, 4, 3), numpy.uint64),
            uint16_as=lambda: self.pick(*DType),
        )

    def call(self):
        r = self.random
        self.k = self.pick(32, 64, 64, 128, 160)
        square = self.dense() if r.random() < 0.3 else None

        def dense():
            return square if square is not None else self.dense()

        def layouts():
            return self.keywords(
                codes_layout=lambda: self.pick(*CodesLayout),
                scales_layout=lambda: self.pick(*ScalesLayout),
            )

        def quantize():
            self.run(
                "quantize",
                dense(),
                **self.rule(),
                **layouts(),
                **self.keywords(
                    out=lambda: (self.codes(), self.codes()),
                    uint16_as=lambda: self.pick(*DType),
                ),
            )

        def dequantize():
            keywords = self.keywords(
                dtype=lambda: self.pick(*DType),
                out=self.dense,
                uint16_as=lambda: self.pick(*DType),
            )
            self.run("dequantize", self.pair(), **keywords)

        def gemm():
            a = self.pair()
            b = a if r.random() < 0.5 else self.pair()
            self.run("gemm", a, b, **self.epilogue(a, b))

        def quantize_gemm():
            a, b = self.pick(dense, self.operand)(), self.pick(dense, self.operand)()
            self.run("quantize_gemm", a, b, **self.rule(), **self.epilogue(a, b))

        def compare():
            a, b = (dense(), dense()) if r.random() < 0.7 else (self.pair(), self.operand())
            keywords = self.keywords(
                limit=lambda: self.pick(-3, 0, 2, 10**9),
                explain=lambda: self.pick(True, False),
                uint16_as=lambda: self.pick(*DType),
            )
            rule = self.rule() if r.random() < 0.8 else {}
            self.run("compare", a, b, self.product(a, b), **rule, **keywords)

        def shuffle():
            name = self.pick("shuffle_weight", "unshuffle_weight", "shuffle_scale")
            codes = self.codes()
            if r.random() < 0.4:
                codes = self.numpy_array("u1", [self.pick(0, 16, 48), self.pick(32, 64)])
            self.run(name, codes, **self.keywords(out=self.codes))

        def unshuffle_scale():
            scales = self.codes()
            if r.random() < 0.4:
                scales = self.numpy_array("u1", [256, self.pick(8, 16)])
            keywords = self.keywords(
                rows=lambda: self.pick(-1, 0, 3, 40, 256, 1 << 40, 1 << 62),
                cols=lambda: self.pick(-1, 0, 3, 8, 12, 1 << 62),
                out=self.codes,
            )
            self.run("unshuffle_scale", scales, **keywords)

        def reference():
            name = self.pick(*kokkosmx.reference.__all__)
            right = {
                "custom_kernel": lambda: (dense(), dense(), 1)[: self.pick(3, 3, 2, 1)],
                "quantize_mxfp4": dense,
            }.get(name, self.codes)
            argument = (right if r.random() < 0.8 else self.pick(self.codes, dense, self.junk))()
            layout = {}
            if name == "shuffle_weight":
                layout = self.keywords(layout=lambda: self.pick((16, 16), [16, 16], (32, 16)))
            self.run("reference." + name, argument, **layout)

        def junk():
            arguments = [
                self.pick(self.junk, self.dense, self.pair)() for _ in range(r.randrange(4))
            ]
            self.run(self.pick(*FUZZED), *arguments)

        def prepare():
            prepared = self.run("prepare", self.operand(), **self.pick(dict, self.rule)())
            assert prepared.nbytes >= 0 and len(prepared.shape) in (2, 3)
            keywords = self.keywords(out=lambda: (self.codes(), self.codes()))
            self.run("Prepared.unprepare", prepared, **keywords)

        def matrix():
            codes, scales = self.codes(), self.codes()
            if r.random() < 0.7:
                codes = self.numpy_array("u1", [self.pick(0, 1, 16, 32), self.k // 2])
                scales = self.numpy_array("u1", [len(codes), self.k // 32])
            made = self.run("Matrix", codes, scales, **layouts())
            assert made.codes is codes and made.scales is scales and len(made.shape) in (2, 3)

        return self.pick(
            quantize,
            quantize,
            dequantize,
            gemm,
            gemm,
            quantize_gemm,
            quantize_gemm,
            compare,
            shuffle,
            unshuffle_scale,
            reference,
            junk,
            prepare,
            matrix,
        )()


#: Every public function that takes arguments.
FUZZED = [
    *(
        name
        for name in kokkosmx.__all__
        if callable(getattr(kokkosmx, name))
        and name[0].islower()
        and name not in ("atom", "concurrency", "register_torch_ops")
    ),
    *("reference." + name for name in kokkosmx.reference.__all__),
    "Matrix",
    "Prepared.unprepare",
]


@pytest.mark.filterwarnings("ignore")
def test_fuzz():
    """10,000 random combinations of arguments: a result, or a clear exception."""
    calls = int(os.environ.get("KOKKOSMX_FUZZ", "10000"))
    fuzz = Fuzz(20)
    refused = {name: 0 for name in FUZZED}
    described = 0
    for number in range(calls):
        try:
            fuzz.call()
            continue
        except (TypeError, ValueError) as error:
            refused[fuzz.name] += 1
            text = str(error)
        # What was wrong with an array is said with what all the arrays are, or, where an argument is
        # no array at all, with what it is instead.
        is_array = [hasattr(x, "dtype") and hasattr(x, "shape") for x in fuzz.arguments]
        if any(is_array) and text.startswith("kokkosmx"):
            shape_and_device = re.search(
                r"\([\d, ]*\) (with strides .* )?on \w+|shape .* device", text
            )
            instead = re.search(
                r"given |; MXFP4 has \(16, 16\)$|no out= to read|needs the package", text
            )
            assert shape_and_device or instead, (number, fuzz.name, text)
            described += shape_and_device is not None
        elif text.startswith("kokkosmx"):
            assert len(text) > 40, (number, fuzz.name, text)
    print(f"{calls} calls, {described} messages with shapes and devices")
    for name in FUZZED:
        print(f"{name}: {fuzz.results[name]} results, {refused[name]} refused")
        # Neither all right nor all wrong: both are tried, of every public function.
        assert fuzz.results[name] >= calls // 1000 and refused[name] >= calls // 1000, name
    assert described > calls // 10
