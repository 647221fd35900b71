# SPDX-License-Identifier: Apache-2.0
"""The reference PyTorch code of gpu-mode/reference-kernels PR 114, to be imported in its place.

Same names, signatures and shapes; quantizing gives its bits, the product is the exact sum rounded
once (float32, then the operands' type). Tensors of PyTorch give tensors of PyTorch, arrays of NumPy
arrays of NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import _core
from ._core import custom_kernel as _custom_kernel
from .rules import reference as _rule

__all__ = [
    "custom_kernel",
    "e8m0_to_f32",
    "mxfp4_to_f32",
    "quantize_mxfp4",
    "shuffle_scale",
    "shuffle_weight",
]


def e8m0_to_f32(scales: Any) -> Any:
    """2^(s - 127) in float32 for e8m0 scales of any shape; 255 is NaN, 0 is 2^-127.

    >>> import numpy as np
    >>> kokkosmx.reference.e8m0_to_f32(np.array([126, 127, 130], np.uint8)).tolist()
    [0.5, 1.0, 8.0]
    """
    return _core.scales_to_float32(scales)


def mxfp4_to_f32(codes: Any) -> Any:
    """The float32 numbers (..., K) of packed e2m1 codes (..., K/2), low nibble = even k.

    >>> import numpy as np
    >>> kokkosmx.reference.mxfp4_to_f32(np.array([[0x21, 0xF7]], np.uint8)).tolist()
    [[0.5, 1.0, 6.0, -6.0]]
    """
    return _core.codes_to_float32(codes)


def quantize_mxfp4(x: Any) -> tuple[Any, Any]:
    """(codes (M, K/2) uint8, scales (M, K/32) uint8) of x (M, K): kokkosmx.rules.reference.

    >>> import numpy as np
    >>> codes, scales = kokkosmx.reference.quantize_mxfp4(np.full((4, 64), 6, np.float32))
    >>> codes.shape, scales.tolist()[0]
    ((4, 32), [127, 127])
    """
    return _core.quantize(x, **_rule)


def custom_kernel(data: Sequence[Any]) -> Any:
    """C (M, N) in A's type of data = (A (M, K), B (N, K), *rest): both quantized, then multiplied.

    What follows A and B in the challenge's tuple (B quantized and shuffled) is not looked at.

    >>> import numpy as np
    >>> a, b = np.ones((2, 64), np.float32), np.full((3, 64), 2, np.float32)
    >>> kokkosmx.reference.custom_kernel((a, b)).tolist()
    [[128.0, 128.0, 128.0], [128.0, 128.0, 128.0]]
    """
    return _custom_kernel(data)


def shuffle_weight(x: Any, layout: tuple[int, int] = (16, 16)) -> Any:
    """aiter's shuffle_weight of packed codes (N, K/2), for the layout (16, 16) of MXFP4.

    >>> import numpy as np
    >>> kokkosmx.reference.shuffle_weight(np.zeros((16, 32), np.uint8)).shape
    (16, 32)
    """
    if not isinstance(layout, (tuple, list)):
        raise TypeError(
            "kokkosmx.reference.shuffle_weight: layout is a tuple, (16, 16), given a "
            f"{type(layout).__name__}"
        )
    if list(map(str, layout)) != ["16", "16"]:
        raise ValueError(
            f"kokkosmx.reference.shuffle_weight: layout {layout!r}; MXFP4 has (16, 16)"
        )
    return _core.shuffle_weight(x)


def shuffle_scale(scales: Any) -> Any:
    """aiter's shuffle_scale of e8m0 scales (rows, K/32), padded with 0 to (256, 8).

    >>> import numpy as np
    >>> kokkosmx.reference.shuffle_scale(np.zeros((40, 12), np.uint8)).shape
    (256, 16)
    """
    return _core.shuffle_scale(scales)
