# SPDX-License-Identifier: Apache-2.0
"""What the tests share: golden arrays, generators of inputs, ways to hand an array over."""

from __future__ import annotations

import csv
import os
import pathlib
import zlib
from typing import Any, Callable, Dict, Optional

import numpy
import pytest

try:
    import torch
except ImportError:
    torch = None  # the tests that need it say so
try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None

import kokkosmx
from kokkosmx import DType

needs_torch = pytest.mark.skipif(torch is None, reason="PyTorch is not installed")
needs_ml_dtypes = pytest.mark.skipif(ml_dtypes is None, reason="ml_dtypes is not installed")

# KOKKOSMX_GOLDEN_DIR: where the tests are run away from the repository.
GOLDEN = pathlib.Path(
    os.environ.get(
        "KOKKOSMX_GOLDEN_DIR",
        pathlib.Path(__file__).resolve().parents[2] / "unit_tests" / "golden",
    )
)


def crc32(array: Any) -> str:
    return f"{zlib.crc32(numpy.ascontiguousarray(array).view(numpy.uint8).tobytes()):08x}"


class Golden:
    """The golden arrays by name, each checked by its CRC-32."""

    def __init__(self) -> None:
        with open(GOLDEN / "MANIFEST.csv", newline="") as file:
            self.entries = {row["file"][: -len(".bin")]: row for row in csv.DictReader(file)}
        #: The names that a test read, by (way, place) of the test.
        self.used: dict = {}
        self.reader: tuple = ()

    def __getitem__(self, name: str) -> Any:
        entry = self.entries[name]
        shape = [int(extent) for extent in entry["shape"].split("x")]
        array = numpy.fromfile(GOLDEN / entry["file"], dtype=entry["dtype"]).reshape(shape)
        assert crc32(array) == entry["crc32"], name
        self.used.setdefault(self.reader, set()).add(name)
        return array

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def names(self, prefix: str, suffix: str) -> list:
        return [
            name[len(prefix) : len(name) - len(suffix)]
            for name in self.entries
            if name.startswith(prefix) and name.endswith(suffix)
        ]


GOLDEN_ARRAYS = Golden()


@pytest.fixture
def golden(way: Any, place: Callable) -> Golden:
    GOLDEN_ARRAYS.reader = (way.name, place.__name__)
    return GOLDEN_ARRAYS


def leaderboard() -> list:
    with open(GOLDEN / "leaderboard.csv", newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------ inputs


def splitmix64(seed: int, count: int) -> Any:
    step, state = 0x9E3779B97F4A7C15, numpy.uint64(seed)
    with numpy.errstate(over="ignore"):
        z = state + numpy.arange(1, count + 1, dtype=numpy.uint64) * numpy.uint64(step)
        z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return z ^ (z >> numpy.uint64(31))


def bf16_bits(x: Any) -> Any:
    """Nearest even, of numbers that are no NaN."""
    bits = numpy.asarray(x, numpy.float32).view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16)


def bf16_values(bits: Any) -> Any:
    return (bits.astype(numpy.uint32) << 16).view(numpy.float32)


def bell(rows: int, cols: int, seed: int, outliers: Optional[int] = None) -> Any:
    """golden/README.md: bell-shaped bf16 bits."""
    numbers = splitmix64(seed, rows * cols).view(numpy.uint8).reshape(rows, cols, 8)
    x = (numbers.sum(axis=2, dtype=numpy.int32) - 1020).astype(numpy.float32) / 256
    if outliers is not None:
        x[:, splitmix64(seed + 1, cols) % numpy.uint64(64) == 0] *= numpy.float32(2.0**outliers)
    return bf16_bits(x)


# ------------------------------------------------------------------------------ frameworks


class Way:
    """A way to hand arrays over. dense(bits): bf16; array(x): any other type; bits(result)."""

    def __init__(
        self, name: str, dense: Callable, array: Callable, bits: Callable, keywords: Dict[str, Any]
    ) -> None:
        self.name, self.dense, self.array, self.bits, self.keywords = (
            name,
            dense,
            array,
            bits,
            keywords,
        )


def _bits_of_numpy(x: Any) -> Any:
    assert isinstance(x, numpy.ndarray), type(x)
    return x.view({1: numpy.uint8, 2: numpy.uint16, 4: numpy.uint32}[x.dtype.itemsize])


def _bits_of_torch(x: Any) -> Any:
    assert isinstance(x, torch.Tensor), type(x)
    x = x.contiguous()
    if x.dtype in (torch.bfloat16, torch.float16):
        return x.view(torch.int16).numpy().view(numpy.uint16)
    if x.dtype == torch.float32:
        return x.view(torch.int32).numpy().view(numpy.uint32)
    return x.numpy()


WAYS = [
    Way(
        "numpy-uint16",
        lambda bits: bits,
        lambda x: x,
        _bits_of_numpy,
        {"uint16_as": DType.bfloat16},
    )
]
if ml_dtypes is not None:
    WAYS.append(
        Way(
            "numpy-ml_dtypes",
            lambda bits: bits.view(ml_dtypes.bfloat16),
            lambda x: x,
            _bits_of_numpy,
            {},
        )
    )
if torch is not None:
    WAYS.append(
        Way(
            "torch",
            lambda bits: torch.from_numpy(bits.view(numpy.int16)).view(torch.bfloat16),
            lambda x: torch.from_numpy(x),
            _bits_of_torch,
            {},
        )
    )


def _plain(x: Any) -> Any:
    return x


def _strided(x: Any) -> Any:
    """Rows inside wider ones."""
    wide = numpy.full((*x.shape[:-1], x.shape[-1] + 24), 0x5A, x.dtype)
    wide[..., 8:-16] = x
    return wide[..., 8:-16]


def _unaligned(x: Any) -> Any:
    """No more aligned than an element must be for PyTorch: an odd multiple of its size."""
    flat = numpy.empty(x.size + 65, x.dtype)
    address = flat.__array_interface__["data"][0]
    offset = next(
        i
        for i in range(1, 65)
        if (address + i * x.itemsize) % 16 == x.itemsize % 16 or x.itemsize == 16
    )
    view = flat[offset : offset + x.size].reshape(x.shape)
    view[...] = x
    return view


def _odd_address(x: Any) -> Any:
    """No more aligned than a byte."""
    memory = numpy.empty(x.nbytes + 1, numpy.uint8)
    begin = 1 - memory.__array_interface__["data"][0] % 2
    view = memory[begin : begin + x.nbytes].view(x.dtype).reshape(x.shape)
    view[...] = x
    assert view.__array_interface__["data"][0] % 2 == 1
    return view


def _every_other_row(x: Any) -> Any:
    return numpy.repeat(x, 2, axis=-2)[..., ::2, :]


PLACEMENTS = [_plain, _strided, _unaligned, _odd_address, _every_other_row]


@pytest.fixture(params=WAYS, ids=lambda way: way.name)
def way(request: Any) -> Way:
    return request.param


@pytest.fixture(params=PLACEMENTS, ids=lambda place: place.__name__[1:])
def place(request: Any) -> Callable:
    return request.param


def pytest_report_header() -> list:
    def version(module: Any) -> str:
        return "not installed" if module is None else module.__version__

    return [
        f"kokkosmx {kokkosmx.__version__} of {os.path.dirname(kokkosmx.__file__)}: "
        f"{kokkosmx.execution_space}, atom {kokkosmx.atom()}, {kokkosmx.concurrency()} threads",
        f"numpy {numpy.__version__}, torch {version(torch)}, ml_dtypes {version(ml_dtypes)}",
    ]
