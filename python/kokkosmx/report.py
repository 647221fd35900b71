# SPDX-License-Identifier: Apache-2.0
"""What MXFP4 does to each weight of a safetensors checkpoint.

Needs numpy and safetensors; write_html needs matplotlib.
"""

from __future__ import annotations

import html
import io
import math
import os
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Tuple

from . import _core
from ._core import DType, NonFinite, Rounding, ScaleMode
from .rules import reference

__all__ = ["Weight", "print_total", "print_weight", "report", "write_html"]

#: The rows by which each weight is multiplied for its share of certified outputs.
ACTIVATIONS = 16
_BLOCK = 32
#: Elements that are dequantized at a time.
_STEP = 1 << 22

_Rule = Tuple[ScaleMode, Rounding]


@dataclass
class Weight:
    """The figures of one weight (rows, K), or of all."""

    name: str
    dtype: str
    rows: int
    k: int
    #: Bytes of the checkpoint, and of codes and scales.
    nbytes: int = 0
    mxfp4_nbytes: int = 0
    #: spreads[s]: rows whose nonzero blocks' scales differ by s powers of two.
    spreads: List[int] = field(default_factory=list)
    #: Products with bell-shaped activations, and those for which the certificate says that float32
    #: sums are exact in any order (see kokkosmx.compare).
    outputs: int = 0
    certified: int = 0
    #: Sums of squares: the weights (by the numbers that are finite), and the errors by rule.
    signal: Dict[_Rule, float] = field(default_factory=dict)
    noise: Dict[_Rule, float] = field(default_factory=dict)

    @property
    def certified_share(self) -> float:
        return self.certified / self.outputs if self.outputs else 1.0

    def sqnr(self, mode: ScaleMode, rounding: Rounding) -> float:
        """Signal to quantization noise in dB."""
        noise = self.noise[mode, rounding]
        return 10 * math.log10(self.signal[mode, rounding] / noise) if noise else math.inf

    def add(self, other: Weight) -> None:
        self.nbytes += other.nbytes
        self.mxfp4_nbytes += other.mxfp4_nbytes
        self.outputs += other.outputs
        self.certified += other.certified
        self.spreads += [0] * (len(other.spreads) - len(self.spreads))
        for spread, rows in enumerate(other.spreads):
            self.spreads[spread] += rows
        for rule in other.noise:
            self.signal[rule] = self.signal.get(rule, 0.0) + other.signal[rule]
            self.noise[rule] = self.noise.get(rule, 0.0) + other.noise[rule]


def _activations(k: int) -> Any:
    """Bell-shaped rows (16, K), the same every time."""
    import numpy

    return numpy.random.default_rng(20).standard_normal((ACTIVATIONS, k), dtype=numpy.float32)


def _measure(name: str, dtype: str, x: Any, uint16_as: Optional[DType]) -> Weight:
    import numpy

    rows, k = x.shape
    weight = Weight(name, dtype, rows, k, nbytes=x.nbytes)
    codes, scales = _core.quantize(x, **reference, uint16_as=uint16_as)
    weight.mxfp4_nbytes = codes.nbytes + scales.nbytes
    weight.spreads = _core.row_spreads((codes, scales))[0]

    a, w = _core.quantize(_activations(k), **reference), (codes, scales)
    outputs, weight.certified, *_ = _core.compare_outputs(a, w, _core.gemm(a, w), limit=0)
    weight.outputs = sum(outputs)

    step = max(1, _STEP // k)
    for mode in (ScaleMode.floor, ScaleMode.ceil, ScaleMode.rceil, ScaleMode.even):
        for rounding in (Rounding.nearest_even, Rounding.ties_up):
            signal = noise = 0.0
            for begin in range(0, rows, step):
                part = x[begin : begin + step]
                q = _core.quantize(
                    part,
                    mode=mode,
                    rounding=rounding,
                    non_finite=NonFinite.ocp,
                    uint16_as=uint16_as,
                )
                exact = _values(part, uint16_as).astype(numpy.float64)
                error = _core.dequantize(q).astype(numpy.float64) - exact
                finite = numpy.isfinite(error)
                signal += float(
                    numpy.square(exact, where=finite, out=numpy.zeros_like(exact)).sum()
                )
                noise += float(numpy.square(error, where=finite, out=numpy.zeros_like(error)).sum())
            weight.signal[mode, rounding] = signal
            weight.noise[mode, rounding] = noise
    return weight


def _values(x: Any, uint16_as: Optional[DType]) -> Any:
    import numpy

    if uint16_as is None:
        return x
    return (x.astype(numpy.uint32) << 16).view(numpy.float32)


def _tensors(path: str) -> Any:
    """(name, dtype, shape, load) of each tensor; load() gives an array, bfloat16 as uint16."""
    import json

    import numpy

    # safetensors checks the file; NumPy has no bfloat16, so its bytes are mapped here.
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}") from error
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    types = {"F32": numpy.float32, "F16": numpy.float16, "BF16": numpy.uint16}
    for name in names:
        entry = header[name]
        dtype, shape, (begin, _) = entry["dtype"], entry["shape"], entry["data_offsets"]

        def load(dtype: str = dtype, shape: list = shape, begin: int = begin) -> Any:
            return numpy.memmap(
                path, types[dtype], mode="r", offset=8 + size + begin, shape=tuple(shape)
            )

        yield name, dtype, shape, load if dtype in types else None


def report(path: str, on_weight: Optional[Callable[[Weight], None]] = None) -> List[Weight]:
    """The figures of every 2-D weight of float32, bfloat16 or float16 whose K is a multiple of 32."""
    weights = []
    for name, dtype, shape, load in _tensors(path):
        if load is None or len(shape) != 2 or 0 in shape or shape[1] % _BLOCK:
            continue
        weight = _measure(name, dtype, load(), DType.bfloat16 if dtype == "BF16" else None)
        weights.append(weight)
        if on_weight is not None:
            if len(weights) == 1:
                print(_HEAD)
            on_weight(weight)
    return weights


def total(weights: List[Weight]) -> Weight:
    """All of them together."""
    rows = sum(weight.rows for weight in weights)
    result = Weight("all weights", "", rows, 0)
    for weight in weights:
        result.add(weight)
    return result


_RULES = [
    (mode, rounding)
    for mode in (ScaleMode.floor, ScaleMode.ceil, ScaleMode.rceil, ScaleMode.even)
    for rounding in (Rounding.nearest_even, Rounding.ties_up)
]
_SHORT = {Rounding.nearest_even: "rne", Rounding.ties_up: "up"}
_HEAD = (
    f"{'rows':>8} {'K':>6} {'dtype':>5}  {'rows with hi-lo = 0/1/2/3/4+ %':>29}  max certified "
    + " ".join(f"{m.name + '/' + _SHORT[r]:>9}" for m, r in _RULES)
    + f" {'saved':>6}  weight (SQNR in dB by mode and rounding)"
)


def _line(weight: Weight) -> str:
    rows = max(1, sum(weight.spreads))
    spreads = [*weight.spreads[:4], sum(weight.spreads[4:])]
    spreads += [0] * (5 - len(spreads))
    shape = f"{weight.rows:8d} {weight.k:6d} {weight.dtype:>5}" if weight.k else " " * 21
    return (
        f"{shape}  "
        + " ".join(f"{100 * s / rows:5.1f}" for s in spreads)
        + f"  {max(0, len(weight.spreads) - 1):3d} {100 * weight.certified_share:8.2f}% "
        + " ".join(f"{weight.sqnr(*rule):9.2f}" for rule in _RULES)
        + f" {100 * (1 - weight.mxfp4_nbytes / max(1, weight.nbytes)):5.1f}%  {weight.name}"
    )


def print_weight(weight: Weight) -> None:
    print(_line(weight), flush=True)


def print_total(weights: List[Weight]) -> None:
    if not weights:
        print("no 2-D weight of float32, bfloat16 or float16 with K a multiple of 32")
        return
    everything = total(weights)
    print(_line(everything))
    elements = sum(weight.rows * weight.k for weight in weights)
    print(
        f"{len(weights)} weights, {1e-6 * elements:.1f} million elements: "
        f"{everything.nbytes} bytes become {everything.mxfp4_nbytes}, "
        f"{100 * everything.certified_share:.2f}% of the outputs certified (float32 sums exact in any order), SQNR "
        f"{everything.sqnr(reference['mode'], reference['rounding']):.2f} dB by rules.reference"
    )


def write_html(weights: List[Weight], title: str, path: str) -> None:
    """One file with the table and four drawings."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if not weights:
        raise ValueError("there is no weight to draw")
    everything = total(weights)
    figure, axes = pyplot.subplots(2, 2, figsize=(12, 8))
    places = range(len(weights))
    shares = axes[0][0]
    shares.bar(places, [100 * w.certified_share for w in weights])
    shares.set(
        title="Outputs whose float32 sums are exact in any order",
        ylabel="%",
        xlabel="weight",
        ylim=(0, 101),
    )
    spreads = axes[0][1]
    spreads.bar(range(len(everything.spreads)), [max(s, 0.1) for s in everything.spreads])
    spreads.set(
        title="Spread of a row's scales", xlabel="powers of two", ylabel="rows", yscale="log"
    )
    sqnr = axes[1][0]
    for mode, rounding in _RULES:
        sqnr.plot(
            places,
            [w.sqnr(mode, rounding) for w in weights],
            label=f"{mode.name}, {rounding.name}",
            linewidth=1,
        )
    sqnr.set(title="Signal to quantization noise", ylabel="dB", xlabel="weight")
    sqnr.legend(fontsize="x-small")
    saved = axes[1][1]
    saved.bar(places, [w.nbytes / 1e6 for w in weights], label="checkpoint")
    saved.bar(places, [w.mxfp4_nbytes / 1e6 for w in weights], label="MXFP4")
    saved.set(title="Bytes", ylabel="MB", xlabel="weight")
    saved.legend()
    figure.tight_layout()
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg")
    pyplot.close(figure)
    svg = drawing.getvalue()
    table = "\n".join([_HEAD, *map(_line, weights), _line(everything)])
    with open(path, "w", encoding="utf-8") as file:
        file.write(
            "<!DOCTYPE html>\n<html><head><meta charset='utf-8'><title>"
            f"{html.escape(title)}</title></head>\n<body><h1>{html.escape(title)}</h1>\n"
            f"{svg[svg.index('<svg') :]}\n<pre>{html.escape(table)}</pre></body></html>\n"
        )
