# SPDX-License-Identifier: Apache-2.0
"""python -m kokkosmx report, on a checkpoint that the test makes."""

import json
import struct
import subprocess
import sys

import numpy
import pytest
from conftest import bell, bf16_values

from kokkosmx import ScaleMode, rules

pytest.importorskip("safetensors")
from kokkosmx import report  # noqa: E402


def write(path, tensors):
    """A safetensors file, by the format's definition."""
    header, begin = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, x) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(x.shape),
            "data_offsets": [begin, begin + x.nbytes],
        }
        begin += x.nbytes
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, x in tensors.values():
            file.write(x.tobytes())


@pytest.fixture
def checkpoint(tmp_path):
    bits = bell(48, 256, 1)
    values = bf16_values(bits)
    spread = values.copy()
    spread[:, :32] *= 2.0**24
    tensors = {
        "bf16.weight": ("BF16", bits),
        "f32.weight": ("F32", values),
        "f16.weight": ("F16", values.astype(numpy.float16)),
        "spread.weight": ("F32", spread),
        "bias": ("F32", values[0]),
        "odd.weight": ("F32", values[:, :33].copy()),
        "integers": ("I64", numpy.zeros((4, 32), numpy.int64)),
    }
    path = tmp_path / "model.safetensors"
    write(path, tensors)
    return path, values


def test_figures(checkpoint):
    path, values = checkpoint
    weights = {w.name: w for w in report.report(str(path))}
    assert set(weights) == {"bf16.weight", "f32.weight", "f16.weight", "spread.weight"}
    w = weights["f32.weight"]
    assert (w.rows, w.k, w.nbytes, w.mxfp4_nbytes) == (48, 256, 48 * 256 * 4, 48 * (128 + 8))
    assert w.certified_share == 1 and sum(w.spreads) == 48
    # The noise by its definition, from the library's own dequantized numbers.
    import kokkosmx

    q = kokkosmx.quantize(values, **rules.quark_even)
    error = kokkosmx.dequantize(q).astype(numpy.float64) - values
    signal = numpy.square(values.astype(numpy.float64)).sum()
    sqnr = 10 * numpy.log10(signal / numpy.square(error).sum())
    assert abs(w.sqnr(ScaleMode.even, rules.quark_even["rounding"]) - sqnr) < 1e-9
    # The same numbers whatever their type; the block of large ones cannot be certified.
    for name in ("bf16.weight", "f16.weight"):
        assert weights[name].noise == w.noise and weights[name].spreads == w.spreads
    assert weights["spread.weight"].certified_share < 1
    assert len(weights["spread.weight"].spreads) > 20


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "kokkosmx", "report", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_command(checkpoint, tmp_path):
    path, _ = checkpoint
    done = run(path)
    assert done.returncode == 0, done.stderr
    for text in ("spread.weight", "rceil/rne", "4 weights", "SQNR", "all weights"):
        assert text in done.stdout
    assert run(tmp_path / "none").returncode == 2
    (tmp_path / "bad").write_bytes(b"\x40" * 64)
    bad = run(tmp_path / "bad")
    assert bad.returncode == 2 and "Traceback" not in bad.stderr


def test_html(checkpoint, tmp_path):
    pytest.importorskip("matplotlib")
    path, _ = checkpoint
    drawing = tmp_path / "report.html"
    done = run(path, "--html", drawing)
    assert done.returncode == 0, done.stderr
    text = drawing.read_text()
    assert text.startswith("<!DOCTYPE html>") and "<svg" in text and "spread.weight" in text
