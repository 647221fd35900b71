# SPDX-License-Identifier: Apache-2.0
"""torch.ops.kokkosmx: shape functions, and graphs that torch.compile keeps whole."""

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
    "gemm": ((*QA, *QB, torch.float32, BIAS, 2.0), kokkosmx.gemm(QA, QB, bias=BIAS, alpha=2.0)),
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


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
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
