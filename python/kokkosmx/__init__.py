# SPDX-License-Identifier: Apache-2.0
"""Exact MXFP4 (OCP Microscaling: e2m1 codes, e8m0 scales, blocks of 32) on CPUs.

Every product is the real sum rounded once, so its bits are the same on every machine. Arrays of
PyTorch, NumPy and whatever else has DLPack or the buffer protocol are used where they lie; results
come back in the caller's framework, or into ``out=``. Calls release the GIL; threads take turns,
since one call uses every core. In a forked child calls work as well.

>>> import numpy as np
>>> from kokkosmx import rules
>>> a, b = np.ones((2, 64), np.float32), np.full((3, 64), 0.75, np.float32)
>>> kokkosmx.quantize_gemm(a, b, **rules.reference).tolist()
[[48.0, 48.0, 48.0], [48.0, 48.0, 48.0]]
"""

from . import _openmp

_openmp.share()

# _core needs the OpenMP runtime that share() has picked.
from . import _core, _exit, reference, rules  # noqa: E402
from ._compare import Comparison, Difference, compare  # noqa: E402
from ._core import (  # noqa: E402
    CodesLayout,
    DType,
    Matrix,
    NonFinite,
    Prepared,
    Rounding,
    ScaleMode,
    ScalesLayout,
    Tier,
    Verdict,
    atom,
    concurrency,
    dequantize,
    execution_space,
    gemm,
    prepare,
    quantize,
    quantize_gemm,
    shuffle_scale,
    shuffle_weight,
    unshuffle_scale,
    unshuffle_weight,
)
from ._core import version as __version__  # noqa: E402

_exit.register(_core)

__all__ = [
    "CodesLayout",
    "Comparison",
    "DType",
    "Difference",
    "Matrix",
    "NonFinite",
    "Prepared",
    "Rounding",
    "ScaleMode",
    "ScalesLayout",
    "Tier",
    "Verdict",
    "__version__",
    "atom",
    "compare",
    "concurrency",
    "dequantize",
    "execution_space",
    "gemm",
    "prepare",
    "quantize",
    "quantize_gemm",
    "reference",
    "register_torch_ops",
    "rules",
    "shuffle_scale",
    "shuffle_weight",
    "unshuffle_scale",
    "unshuffle_weight",
]


def register_torch_ops() -> None:
    """Makes torch.ops.kokkosmx; done by the import of kokkosmx where torch was imported before.

    The operations are quantize, dequantize, shuffle_weight, unshuffle_weight, shuffle_scale,
    unshuffle_scale, gemm, quantize_gemm and custom_kernel, with shape functions, so that
    torch.compile keeps each whole. Their enums are given by value: schemas know no others.

    >>> import torch
    >>> kokkosmx.register_torch_ops()
    >>> torch.ops.kokkosmx.custom_kernel(torch.ones(1, 64), torch.ones(2, 64)).tolist()
    [[64.0, 64.0]]
    """
    from . import _torch_ops  # noqa: F401


def _register_if_torch_is_here() -> None:
    import sys

    if "torch" in sys.modules and hasattr(sys.modules["torch"], "library"):
        register_torch_ops()


_register_if_torch_is_here()
