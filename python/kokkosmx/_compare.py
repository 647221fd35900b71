# SPDX-License-Identifier: Apache-2.0
"""The verdict on somebody's kernel."""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from . import _core
from ._core import DType, NonFinite, Rounding, ScaleMode, Verdict

__all__ = ["Comparison", "Difference", "compare"]

_MEANING = {
    Verdict.equal: "equal",
    Verdict.zero_sign: "-0 for a sum of nothing but -0",
    Verdict.within_bound: "not certified, within the bound of a float32 accumulation",
    Verdict.certified_differs: "certified (exact in any order), yet different",
    Verdict.beyond_bound: "not certified, beyond the bound of a float32 accumulation",
    Verdict.nan_differs: "NaN where a number is due, or a number where a NaN is",
}
_EXCUSABLE = (Verdict.equal, Verdict.zero_sign, Verdict.within_bound)


@dataclass(frozen=True)
class Difference:
    """One output that differs."""

    verdict: Verdict
    #: (row, column), or (batch, row, column).
    index: Tuple[int, ...]
    #: What C holds, and what it should: as numbers and as bits of C's type.
    given: float
    exact: float
    given_bits: int
    exact_bits: int
    #: How many numbers of C's type lie between, plus 1; 0 where one is a NaN.
    ulps: int
    #: How far a float32 accumulation may end from the exact sum; 0 where none may.
    bound: float
    certified: bool

    @property
    def excusable(self) -> bool:
        return self.verdict in _EXCUSABLE

    def __str__(self) -> str:
        digits = 8 if self.given_bits > 0xFFFF or self.exact_bits > 0xFFFF else 4
        text = (
            f"C{list(self.index)} = {self.given:.9g} (0x{self.given_bits:0{digits}x}), exact "
            f"{self.exact:.9g} (0x{self.exact_bits:0{digits}x})"
        )
        if self.ulps:
            text += f", {self.ulps} ulp"
        if self.bound:
            text += f", bound {self.bound:.3g}"
        return text


@dataclass(frozen=True)
class Comparison:
    """What compare() found. True where there is nothing that cannot be excused."""

    #: Outputs, and how many of them the certificate covers.
    outputs: int
    certified: int
    #: Outputs of each verdict, and the largest distance in units in the last place.
    counts: Dict[Verdict, int]
    most_ulps: Dict[Verdict, int]
    #: The first outputs of each verdict but equal.
    differences: List[Difference]
    dtype: str
    #: Known mistakes that give exactly C.
    explanations: List[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Every output has the bits of the exact product."""
        return self.counts[Verdict.equal] == self.outputs

    @property
    def excusable(self) -> bool:
        """Every difference can be excused."""
        return sum(self.counts[verdict] for verdict in _EXCUSABLE) == self.outputs

    def __bool__(self) -> bool:
        return self.excusable

    def __str__(self) -> str:
        share = 100.0 * self.certified / self.outputs if self.outputs else 100.0
        lines = [
            f"{self.outputs} outputs of {self.dtype}, {self.certified} certified ({share:.2f}%)"
        ]
        for verdict, count in self.counts.items():
            if not count:
                continue
            line = f"  {count}: {_MEANING[verdict]}"
            if verdict != Verdict.equal:
                line += f"; up to {self.most_ulps[verdict]} ulp; " + (
                    "excusable" if verdict in _EXCUSABLE else "NOT EXCUSABLE"
                )
            lines.append(line)
            lines += [f"    {d}" for d in self.differences if d.verdict == verdict]
        lines += [f"  explained by: {text}" for text in self.explanations]
        if self.equal:
            lines.append("equal in all bits")
        elif self.excusable:
            lines.append("every difference is excusable")
        else:
            lines.append("NOT EXCUSABLE")
        return "\n".join(lines)


def _number(bits: int, dtype: str) -> float:
    if dtype == "float32":
        return struct.unpack("<f", struct.pack("<I", bits))[0]
    if dtype == "bfloat16":
        return struct.unpack("<f", struct.pack("<I", bits << 16))[0]
    return struct.unpack("<e", struct.pack("<H", bits))[0]


def _mistakes(
    a: Any, b: Any, rule: Dict[str, Any]
) -> Iterator[Tuple[str, Callable[[], Tuple[Any, Any]]]]:
    """Known mistakes of kernels: what each is, and the operands that it amounts to."""

    def is_dense(x: Any) -> bool:
        return not isinstance(x, (tuple, _core.Matrix, _core.Prepared))

    def plain(x: Any, other: Optional[Dict[str, Any]] = None) -> Tuple[Any, Any]:
        if is_dense(x):
            return _core.quantize(x, **(other or rule))
        if isinstance(x, _core.Prepared):
            return x.unprepare()
        if isinstance(x, _core.Matrix):
            return _core.prepare(x).unprepare()
        return x

    def both(other: Dict[str, Any]) -> Tuple[Any, Any]:
        return plain(a, other), plain(b, other)

    if is_dense(a) or is_dense(b):
        for rounding in (Rounding.ties_up, Rounding.nearest_even):
            for mode in (
                ScaleMode.floor,
                ScaleMode.ceil,
                ScaleMode.rceil,
                ScaleMode.even,
            ):
                if rounding == rule["rounding"] and mode == rule["mode"]:
                    continue
                other = {"mode": mode, "rounding": rounding, "non_finite": NonFinite.ocp}
                yield f"quantizing with {mode}, {rounding}", functools.partial(both, other)

    def without_last_block(x: Any) -> Tuple[Any, Any]:
        codes, scales = plain(x)
        return codes[..., :-16], scales[..., :-1]

    yield (
        "the last block of K is left out",
        lambda: (without_last_block(a), without_last_block(b)),
    )

    def shuffled_again(x: Any) -> Tuple[Any, Any]:
        codes, scales = plain(x)
        rows, cols = scales.shape[-2:]
        return codes, _core.shuffle_scale(scales)[..., :rows, :cols]

    yield "the scales of B are shuffled twice", lambda: (plain(a), shuffled_again(b))
    yield "the scales of A are shuffled twice", lambda: (shuffled_again(a), plain(b))
    yield (
        "the scales of A and B are shuffled twice",
        lambda: (shuffled_again(a), shuffled_again(b)),
    )

    def nibbles_swapped(x: Any) -> Tuple[Any, Any]:
        codes, scales = plain(x)
        return (codes >> 4) | (codes << 4), scales

    yield "the nibbles of B are swapped", lambda: (plain(a), nibbles_swapped(b))


def compare(
    a: Any,
    b: Any,
    c: Any,
    *,
    mode: Optional[ScaleMode] = None,
    rounding: Optional[Rounding] = None,
    non_finite: Optional[NonFinite] = None,
    limit: int = 5,
    explain: bool = True,
    uint16_as: Optional[DType] = None,
) -> Comparison:
    """The verdict on c (M, N), which somebody's kernel gave for A (M, K) times B (N, K) transposed.

    a, b: dense arrays, quantized here by mode, rounding and non_finite (without any of the three:
    rules.reference), or codes and scales (a pair, a Matrix or a Prepared). c: float32, bfloat16 or
    float16. limit: how many differences of each kind are kept.

    An output is certified where every float32 accumulation is exact, in any order: sum_k |a_k b_k|
    <= 2^24 units of 2^(lo_i + lo_j - 256), lo being the least scale of the row's nonzero blocks,
    and 130 <= lo_i + lo_j <= 359, so that nothing leaves float32's exponents. A certified output has
    to be equal. For the others the bound of a float32 accumulation decides: a float32 number within

        gamma (S + U) + U,   gamma = K u / (1 - K u),  u = 2^-24,  S = sum_k |a_k b_k|,  U = 2 K 2^-126

    of the exact sum, rounded to c's type, is excusable. gamma S bounds the error of a sum of K terms
    in any order (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 4.2;
    products of e2m1 codes are exact in float32), U is what flushing to zero may lose. explain: where
    something is not excusable, known mistakes are tried, and those that give exactly c are named.

    >>> import numpy as np
    >>> a, b = np.ones((2, 64), np.float32), np.full((3, 64), 0.5, np.float32)
    >>> c = kokkosmx.reference.custom_kernel((a, b))
    >>> kokkosmx.compare(a, b, c).equal
    True
    >>> c[1, 2] = np.nextafter(c[1, 2], np.float32(0))
    >>> print(kokkosmx.compare(a, b, c))
    6 outputs of float32, 6 certified (100.00%)
      5: equal
      1: certified (exact in any order), yet different; up to 1 ulp; NOT EXCUSABLE
        C[1, 2] = 31.9999981 (0x41ffffff), exact 32 (0x42000000), 1 ulp
    NOT EXCUSABLE
    """
    from .rules import reference

    given = {"mode": mode, "rounding": rounding, "non_finite": non_finite}
    rule: Dict[str, Any] = dict(reference) if all(v is None for v in given.values()) else given
    outputs, certified, ulps, samples, dtype, batched = _core.compare_outputs(
        a, b, c, limit=limit, uint16_as=uint16_as, **rule
    )
    verdicts = list(_MEANING)
    result = Comparison(
        outputs=sum(outputs),
        certified=certified,
        counts=dict(zip(verdicts, outputs)),
        most_ulps=dict(zip(verdicts, ulps)),
        differences=[
            Difference(
                verdict=verdict,
                index=(batch, row, column) if batched else (row, column),
                given=_number(given_bits, dtype),
                exact=_number(exact_bits, dtype),
                given_bits=given_bits,
                exact_bits=exact_bits,
                ulps=distance,
                bound=bound,
                certified=is_certified,
            )
            for (
                verdict,
                batch,
                row,
                column,
                given_bits,
                exact_bits,
                _,
                distance,
                bound,
                is_certified,
            ) in samples
        ],
        dtype=dtype,
    )
    if explain and not result.excusable:
        for text, operands in _mistakes(a, b, rule):
            try:
                x, y = operands()
                counts, *_ = _core.compare_outputs(x, y, c, limit=0, uint16_as=uint16_as)
            except (AttributeError, NotImplementedError, TypeError, ValueError):
                continue  # a mistake that these shapes cannot have, or arrays that cannot be cut
            if counts[0] == result.outputs:
                result.explanations.append(text)
    return result
