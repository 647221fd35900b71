# SPDX-License-Identifier: Apache-2.0
"""torch.ops.kokkosmx: the package's functions as operations of PyTorch, with shape functions.

Enums are integers here (ScaleMode.even.value, ...): schemas of PyTorch have no others.
"""

from __future__ import annotations

from typing import List, Optional, Tuple

import torch
from torch import Tensor

from . import _core
from ._core import DType, NonFinite, Rounding, ScaleMode

# Annotations are read when the operations are registered: torch knows Optional and Tuple in all of
# its versions.
__all__: List[str] = []

# What the library is built for; PyTorch calls AMD's devices by NVIDIA's name. Without a
# registration PyTorch itself says what a tensor's device lacks.
_DEVICES = ("cpu", "cuda") if _core.execution_space in ("Cuda", "HIP") else ("cpu",)

_DTYPES = {
    torch.float32: DType.float32,
    torch.bfloat16: DType.bfloat16,
    torch.float16: DType.float16,
}


def _dtype(dtype: torch.dtype) -> DType:
    if dtype not in _DTYPES:
        raise TypeError(f"torch.ops.kokkosmx: {dtype} is none of {', '.join(map(str, _DTYPES))}")
    return _DTYPES[dtype]


def _rounded_up(n: int, multiple: int) -> int:
    return (n + multiple - 1) // multiple * multiple


def _rule(mode: int, rounding: int, non_finite: int) -> dict:
    return {
        "mode": ScaleMode(mode),
        "rounding": Rounding(rounding),
        "non_finite": NonFinite(non_finite),
    }


def _product_shape(a: Tensor, b: Tensor) -> list:
    batch = [a, b][a.dim() < b.dim() or (a.dim() == 3 and b.dim() == 3 and a.shape[0] == 1)]
    return [*batch.shape[:-2], a.shape[-2], b.shape[-2]]


@torch.library.custom_op("kokkosmx::quantize", mutates_args=(), device_types=_DEVICES)
def quantize(x: Tensor, mode: int, rounding: int, non_finite: int) -> Tuple[Tensor, Tensor]:
    return _core.quantize(x, **_rule(mode, rounding, non_finite))


@quantize.register_fake
def _(x, mode, rounding, non_finite):
    *rows, k = x.shape
    torch._check(k % 32 == 0, lambda: f"kokkosmx.quantize: K = {k} is no multiple of 32")
    return (
        x.new_empty([*rows, k // 2], dtype=torch.uint8),
        x.new_empty([*rows, k // 32], dtype=torch.uint8),
    )


@torch.library.custom_op("kokkosmx::dequantize", mutates_args=(), device_types=_DEVICES)
def dequantize(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return _core.dequantize((codes, scales), dtype=_dtype(dtype))


@dequantize.register_fake
def _(codes, scales, dtype):
    *rows, half = codes.shape
    return codes.new_empty([*rows, 2 * half], dtype=dtype)


@torch.library.custom_op("kokkosmx::shuffle_weight", mutates_args=(), device_types=_DEVICES)
def shuffle_weight(codes: Tensor) -> Tensor:
    return _core.shuffle_weight(codes)


@torch.library.custom_op("kokkosmx::unshuffle_weight", mutates_args=(), device_types=_DEVICES)
def unshuffle_weight(codes: Tensor) -> Tensor:
    return _core.unshuffle_weight(codes)


@shuffle_weight.register_fake
@unshuffle_weight.register_fake
def _(codes):
    return codes.new_empty(codes.shape)


@torch.library.custom_op("kokkosmx::shuffle_scale", mutates_args=(), device_types=_DEVICES)
def shuffle_scale(scales: Tensor) -> Tensor:
    return _core.shuffle_scale(scales)


@shuffle_scale.register_fake
def _(scales):
    *batch, rows, cols = scales.shape
    return scales.new_empty([*batch, _rounded_up(rows, 256), _rounded_up(cols, 8)])


@torch.library.custom_op("kokkosmx::unshuffle_scale", mutates_args=(), device_types=_DEVICES)
def unshuffle_scale(scales: Tensor, rows: int, cols: int) -> Tensor:
    return _core.unshuffle_scale(scales, rows=rows, cols=cols)


@unshuffle_scale.register_fake
def _(scales, rows, cols):
    return scales.new_empty([*scales.shape[:-2], rows, cols])


@torch.library.custom_op("kokkosmx::gemm", mutates_args=(), device_types=_DEVICES)
def gemm(
    a_codes: Tensor,
    a_scales: Tensor,
    b_codes: Tensor,
    b_scales: Tensor,
    dtype: torch.dtype,
    bias: Optional[Tensor] = None,
    alpha: float = 1.0,
) -> Tensor:
    return _core.gemm(
        (a_codes, a_scales), (b_codes, b_scales), dtype=_dtype(dtype), bias=bias, alpha=alpha
    )


@gemm.register_fake
def _(a_codes, a_scales, b_codes, b_scales, dtype, bias=None, alpha=1.0):
    return a_codes.new_empty(_product_shape(a_codes, b_codes), dtype=dtype)


@torch.library.custom_op("kokkosmx::quantize_gemm", mutates_args=(), device_types=_DEVICES)
def quantize_gemm(
    a: Tensor, b: Tensor, mode: int, rounding: int, non_finite: int, bias: Optional[Tensor] = None
) -> Tensor:
    return _core.quantize_gemm(a, b, bias=bias, **_rule(mode, rounding, non_finite))


@quantize_gemm.register_fake
def _(a, b, mode, rounding, non_finite, bias=None):
    return a.new_empty(_product_shape(a, b))


@torch.library.custom_op("kokkosmx::custom_kernel", mutates_args=(), device_types=_DEVICES)
def custom_kernel(a: Tensor, b: Tensor) -> Tensor:
    return _core.custom_kernel((a, b))


@custom_kernel.register_fake
def _(a, b):
    return a.new_empty(_product_shape(a, b))
