# SPDX-License-Identifier: Apache-2.0
import enum
from collections.abc import Sequence
from typing import Any, Optional, Tuple

# Arrays of any framework: what has DLPack or the buffer protocol.
Array = Any
# (codes, scales), a Matrix or a Prepared.
Operand = Any

execution_space: str
version: str

class ScaleMode(enum.Enum):
    floor = 0
    ceil = 1
    rceil = 2
    even = 3

class Rounding(enum.Enum):
    nearest_even = 0
    ties_up = 1

class NonFinite(enum.Enum):
    ocp = 0
    reference = 1

class Tier(enum.Enum):
    automatic = 0
    aligned = 1
    window = 2
    wide = 3

class DType(enum.Enum):
    float32 = 0
    bfloat16 = 1
    float16 = 2

class CodesLayout(enum.Enum):
    row_major = 0
    tile16x16 = 1

class ScalesLayout(enum.Enum):
    row_major = 0
    tile32x8 = 1

class Verdict(enum.Enum):
    equal = 0
    zero_sign = 1
    within_bound = 2
    certified_differs = 3
    beyond_bound = 4
    nan_differs = 5

class Matrix:
    def __init__(
        self,
        codes: Array,
        scales: Array,
        *,
        codes_layout: CodesLayout = ...,
        scales_layout: ScalesLayout = ...,
    ) -> None: ...
    @property
    def codes(self) -> Array: ...
    @property
    def scales(self) -> Array: ...
    @property
    def codes_layout(self) -> CodesLayout: ...
    @property
    def scales_layout(self) -> ScalesLayout: ...
    @property
    def shape(self) -> Tuple[int, ...]: ...

class Prepared:
    @property
    def shape(self) -> Tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...
    def unprepare(self, *, out: Optional[Tuple[Array, Array]] = None) -> Tuple[Array, Array]: ...

def quantize(
    x: Array,
    *,
    mode: ScaleMode,
    rounding: Rounding,
    non_finite: NonFinite,
    codes_layout: CodesLayout = ...,
    scales_layout: ScalesLayout = ...,
    out: Optional[Tuple[Array, Array]] = None,
    uint16_as: Optional[DType] = None,
) -> Tuple[Array, Array]: ...
def dequantize(
    q: Operand,
    *,
    dtype: DType = ...,
    out: Optional[Array] = None,
    uint16_as: Optional[DType] = None,
) -> Array: ...
def shuffle_weight(codes: Array, *, out: Optional[Array] = None) -> Array: ...
def unshuffle_weight(codes: Array, *, out: Optional[Array] = None) -> Array: ...
def shuffle_scale(scales: Array, *, out: Optional[Array] = None) -> Array: ...
def unshuffle_scale(
    scales: Array,
    *,
    rows: Optional[int] = None,
    cols: Optional[int] = None,
    out: Optional[Array] = None,
) -> Array: ...
def gemm(
    a: Operand,
    b: Operand,
    *,
    dtype: DType = ...,
    out: Optional[Array] = None,
    alpha: float = 1.0,
    beta: float = 0.0,
    bias: Optional[Array] = None,
    minimum_tier: Tier = ...,
    tier_counts: Optional[Array] = None,
    uint16_as: Optional[DType] = None,
) -> Array: ...
def quantize_gemm(
    a: Array,
    b: Array,
    *,
    mode: ScaleMode,
    rounding: Rounding,
    non_finite: NonFinite,
    dtype: Optional[DType] = None,
    out: Optional[Array] = None,
    alpha: float = 1.0,
    beta: float = 0.0,
    bias: Optional[Array] = None,
    minimum_tier: Tier = ...,
    tier_counts: Optional[Array] = None,
    uint16_as: Optional[DType] = None,
) -> Array: ...
def prepare(
    x: Array,
    *,
    mode: Optional[ScaleMode] = None,
    rounding: Optional[Rounding] = None,
    non_finite: Optional[NonFinite] = None,
    uint16_as: Optional[DType] = None,
) -> Prepared: ...
def custom_kernel(data: Sequence[Array]) -> Array: ...
def codes_to_float32(codes: Array) -> Array: ...
def scales_to_float32(scales: Array) -> Array: ...
def row_spreads(x: Operand) -> Tuple[list[int], int]: ...
def compare_outputs(
    a: Array,
    b: Array,
    c: Array,
    *,
    mode: Optional[ScaleMode] = None,
    rounding: Optional[Rounding] = None,
    non_finite: Optional[NonFinite] = None,
    limit: int = 5,
    uint16_as: Optional[DType] = None,
) -> Tuple[list[int], int, list[int], list[Tuple[Any, ...]], str, bool]: ...
def atom() -> str: ...
def concurrency() -> int: ...
def _stop() -> None: ...
