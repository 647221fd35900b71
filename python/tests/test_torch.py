# SPDX-License-Identifier: Apache-2.0
"""torch.ops.kokkosmx: shape functions, and graphs that torch.compile keeps whole."""

import random
import shutil

import pytest
from conftest import bell, torch

import kokkosmx
from kokkosmx import rules

if torch is None:
    pytest.skip("PyTorch is not installed", allow_module_level=True)

kokkosmx.register_torch_ops()
RULE = [int(rules.reference[name].value) for name in ("mode", "rounding", "non_finite")]


def tensor(rows, k, seed):
    return torch.from_numpy(bell(rows, k, seed).view("int16")).view(torch.bfloat16)


A, B = tensor(16, 128, 1), tensor(32, 128, 2)
QA, QB = kokkosmx.reference.quantize_mxfp4(A), kokkosmx.reference.quantize_mxfp4(B)
BIAS = torch.arange(32, dtype=torch.float32)
ops = torch.ops.kokkosmx

# Each operation, its arguments, and what it has to give.
OPS = {
    "quantize": ((A, *RULE), QA),
    "dequantize": ((*QA, torch.float16), kokkosmx.dequantize(QA, dtype=kokkosmx.DType.float16)),
    "shuffle_weight": ((QB[0],), kokkosmx.shuffle_weight(QB[0])),
    "unshuffle_weight": ((QB[0],), kokkosmx.unshuffle_weight(QB[0])),
    "shuffle_scale": ((QB[1],), kokkosmx.shuffle_scale(QB[1])),
    "unshuffle_scale": ((kokkosmx.shuffle_scale(QB[1]), 32, 4), QB[1]),
    "gemm": (
        (*QA, *QB, torch.bfloat16, BIAS, 2.0),
        kokkosmx.gemm(QA, QB, dtype=kokkosmx.DType.bfloat16, bias=BIAS, alpha=2.0),
    ),
    "quantize_gemm": ((A, B, *RULE), kokkosmx.reference.custom_kernel((A, B))),
    "custom_kernel": ((A, B), kokkosmx.reference.custom_kernel((A, B))),
}


def same(got, expected):
    if isinstance(expected, tuple):
        return len(got) == len(expected) and all(map(same, got, expected))
    return got.dtype == expected.dtype and torch.equal(got, expected)


@pytest.mark.parametrize("name", OPS)
def test_operation(name):
    arguments, expected = OPS[name]
    operation = getattr(ops, name)
    assert same(operation(*arguments), expected)
    torch.library.opcheck(operation.default, arguments)


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++")


@pytest.mark.parametrize(
    "backend", ["eager", "aot_eager", pytest.param("inductor", marks=needs_compiler)]
)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_graphs_hold_the_operations_whole(backend, dynamic):
    seen = []

    def spy(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    def model(a, b):
        codes, scales = ops.quantize(a + 0, *RULE)
        c = ops.gemm(codes, scales, *ops.quantize(b, *RULE), torch.bfloat16)
        return c.relu() + ops.custom_kernel(a, b).relu()

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=spy, fullgraph=True, dynamic=dynamic)
    for m in (16, 24):
        a = tensor(m, 128, 7)
        assert torch.equal(compiled(a, B), model(a, B))
    for operation in ("quantize", "gemm", "custom_kernel"):
        assert any(f"kokkosmx.{operation}" in target for target in seen), seen


def test_shapes_of_meta_tensors():
    with torch.device("meta"):
        a, b = torch.empty(2, 8, 64, dtype=torch.bfloat16), torch.empty(48, 64)
    codes, scales = ops.quantize(a, *RULE)
    assert codes.shape == (2, 8, 32) and scales.shape == (2, 8, 2) and codes.is_meta
    assert ops.quantize_gemm(a, b, *RULE).shape == (2, 8, 48)
    assert ops.shuffle_scale(torch.empty(40, 12, device="meta", dtype=torch.uint8)).shape == (
        256,
        16,
    )


@pytest.mark.parametrize("a_batch", [(), (1,), (3,)])
@pytest.mark.parametrize("b_batch", [(), (1,), (3,)])
def test_shapes_of_batches(a_batch, b_batch):
    a, b = torch.ones(*a_batch, 4, 64), torch.ones(*b_batch, 5, 64)
    real, meta = ops.custom_kernel(a, b), ops.custom_kernel(a.to("meta"), b.to("meta"))
    assert real.shape == meta.shape and real.dtype == meta.dtype and (real == 64).all()


def test_the_device_of_a_tensor_is_told():
    """What no kernel of ours is registered for is refused by PyTorch, with the operation's name."""
    sparse = torch.zeros(16, 128).to_sparse()
    with pytest.raises(NotImplementedError, match="kokkosmx::custom_kernel"):
        ops.custom_kernel(sparse, B)


@pytest.mark.filterwarnings("ignore")
def test_fuzz():
    """Random tensors for every operation: a result, or an exception that says what they are."""
    pick = random.Random(7).choice

    def any_tensor(*dtypes):
        rank = pick([2] * 8 + [3, 3, 1, 0, 4])
        shape = [pick([0, 1, 2, 16, 32, 33, 64]) for _ in range(rank)]
        x = torch.zeros(shape, dtype=pick([*dtypes] * 8 + [torch.int32, torch.float64]))
        kind = pick(range(8)) if rank > 1 else 2
        return x.transpose(-1, -2) if kind == 0 else x[..., ::2] if kind == 1 else x

    def dense():
        return any_tensor(torch.float32, torch.bfloat16, torch.float16)

    def of_bytes():
        return any_tensor(torch.uint8)

    def quantized():
        k = pick([32, 64, 64])
        codes = torch.zeros(pick([0, 1, 16]), k // 2, dtype=torch.uint8)
        return pick(
            [(codes, torch.zeros(len(codes), k // 32, dtype=torch.uint8)), (of_bytes(), of_bytes())]
        )

    def rule():
        return pick([RULE, [0, 0, 0], [2, 1, 0], [3, 1, 1], [-1, 0, 0], [4, 0, 0], [0, 2, 0]])

    def dtype():
        return pick([torch.float32, torch.bfloat16, torch.float16, torch.int8])

    def operands():
        x = dense()
        return (x, pick([x, x, dense()]))

    def number():
        return pick([-1, 0, 3, 8, 32, 1 << 40])

    calls = {
        "quantize": lambda: (dense(), *rule()),
        "dequantize": lambda: (*quantized(), dtype()),
        "shuffle_weight": lambda: (of_bytes(),),
        "unshuffle_weight": lambda: (of_bytes(),),
        "shuffle_scale": lambda: (of_bytes(),),
        "unshuffle_scale": lambda: (
            pick([of_bytes(), torch.zeros(256, 8, dtype=torch.uint8)]),
            number(),
            number(),
        ),
        "gemm": lambda: (*quantized(), *quantized(), dtype(), pick([None, None, dense()]), 1.5),
        "quantize_gemm": lambda: (*operands(), *rule(), pick([None, None, dense()])),
        "custom_kernel": operands,
    }
    assert set(calls) == set(OPS)
    for name, make in calls.items():
        results = refused = 0
        for _ in range(300):
            arguments = make()
            try:
                getattr(ops, name)(*arguments)
                results += 1
            except (TypeError, ValueError) as error:
                refused += 1
                assert len(str(error)) > 10, (name, arguments)
        assert results > 10 and refused > 10, (name, results, refused)
