# SPDX-License-Identifier: Apache-2.0
"""The process: its protocol, its report, and that results do not depend on how groups are put
together."""

import json
import os
import pathlib
import struct
import subprocess
import sys

import numpy as np
import pytest

from executor import code_object, report

from .support import BASE, Device, compiled, folder
from .test_checks import KERNELS

MIXED = """
#define HIDDEN __attribute__((address_space(4)))
extern "C" __global__ void scale(const float* from, float* to, float factor, int n) {
  extern __shared__ float line[];
  // The hidden arguments: block counts, then group sizes.
  const auto hidden = (const HIDDEN unsigned*)__builtin_amdgcn_implicitarg_ptr();
  const unsigned threads = ((const HIDDEN unsigned short*)hidden)[6];
  const int i = threads * group + thread;
  line[thread] = i < n ? from[i] : 0;
  barrier();
  if (i < n) to[i] = line[threads - 1 - thread] * factor + hidden[0];
}
extern "C" __global__ void never(int* to) { *to = 1; }
"""


@pytest.fixture(scope="module")
def path():
    return compiled(MIXED, "mixed")


class Process:
    def __init__(self, path, *options, size=1 << 16):
        self.arena = os.path.join(folder(), "arena")
        with open(self.arena, "wb") as file:
            file.truncate(size)
        root = pathlib.Path(__file__).resolve().parents[2]
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "executor",
                "--arena",
                self.arena,
                "--base",
                hex(BASE),
                "--bytes",
                str(size),
                "--code-object",
                path,
                *options,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        self.kernels = json.loads(self.process.stdout.readline())["kernels"]

    def tell(self, message):
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def ask(self, message):
        self.tell(message)
        return json.loads(self.process.stdout.readline())

    def end(self):
        self.process.stdin.close()
        assert self.process.wait(60) == 0

    def memory(self, start, dtype, count):
        return np.fromfile(self.arena, dtype, count, offset=start)


def launch(arguments, n, lds=256):
    return {
        "kernel": "scale",
        "label": "a label",
        "grid": [3, 1, 1],
        "block": [64, 1, 1],
        "lds": lds,
        "arguments": [argument.hex() for argument in arguments],
        "buffers": [
            {"name": "from", "address": BASE + 4096, "bytes": 4 * n, "initialized": False},
            {"name": "to", "address": BASE + 8192, "bytes": 4 * n, "initialized": False},
        ],
    }


def test_the_protocol_and_the_report(path, capsys):
    where = os.path.join(folder(), "report.json")
    process = Process(path, "--matrix", "pairwise", "--report", where)
    kernel = process.kernels["scale"]
    assert kernel["arguments"] == [[0, 8], [8, 8], [16, 4], [20, 4]] and kernel["lds_bytes"] == 0
    n = 150
    arguments = [
        struct.pack("<Q", BASE + 4096),
        struct.pack("<Q", BASE + 8192),
        struct.pack("<f", 2.0),
        struct.pack("<i", n),
    ]
    answer = process.ask(launch(arguments, n))
    assert not answer["ok"] and "read before they were written: in buffer from" in answer["message"]
    assert "a label" in answer["message"] and "kernel scale" in answer["message"]
    values = np.arange(n, dtype=np.float32)
    with open(process.arena, "r+b") as file:
        file.seek(4096)
        file.write(values.tobytes())
    process.tell({"wrote": [BASE + 4096, 4 * n]})
    answer = process.ask(launch(arguments, n))
    assert answer["ok"] and answer["instructions"] > 0
    padded = np.zeros(192, np.float32)
    padded[:n] = values
    expected = padded.reshape(3, 64)[:, ::-1].reshape(-1)[:n] * 2 + 3
    assert (process.memory(8192, np.float32, n) == expected).all()
    assert not process.ask(launch(arguments, n, lds=128))["ok"]
    assert not process.ask({**launch(arguments, n), "kernel": "nobody"})["ok"]
    process.end()
    assert report.main([where]) == 0
    printed = capsys.readouterr().out
    assert "| scale | 3 |" in printed and "never: never launched" in printed
    # Twice the same file: twice the counts.
    once, _ = report.merge([where])
    twice, _ = report.merge([where, where])
    for key, one in once.items():
        assert [2 * count for count in one["executed"]] == twice[key]["executed"]
    assert report.main(["--least=0.99", where]) == 0
    text = json.loads(pathlib.Path(where).read_text())
    text["kernels"]["scale"]["executed"] = [0] * len(text["kernels"]["scale"]["executed"])
    pathlib.Path(where).write_text(json.dumps(text))
    assert report.main(["--least=0.9", where]) == 1


def test_a_patch_on_the_command_line(path):
    barrier = next(
        one
        for one in Device(path).instructions("scale")
        if one.name == "v_mul_f32"
        or one.name.startswith(("v_fma", "v_pk_fma"))
        or "mul" in one.name
    )
    process = Process(path, "--patch", f"{barrier.offset:#x}=ffffffff")
    arguments = [
        struct.pack("<Q", BASE + 4096),
        struct.pack("<Q", BASE + 8192),
        struct.pack("<f", 2.0),
        struct.pack("<i", 10),
    ]
    process.tell({"wrote": [BASE + 4096, 40]})
    answer = process.ask(launch(arguments, 10))
    assert not answer["ok"] and "unknown instruction" in answer["message"]
    process.end()


def test_counts(path):
    device = Device(compiled(KERNELS, "counted"))
    values = np.arange(1024, dtype=np.int32)
    device.launch("reverse", 4, 256, device.buffer("from", values), device.buffer("to", values))
    one = report.collect(device.machine)["kernels"]["reverse"]
    sums = report.summary(one)
    assert one["waves"] == 16 and sums["covered"] == 1
    assert sums["kinds"]["lds"] == 32 and sums["kinds"]["vmem"] == 32
    assert one["bytes"] == {"loaded": 4096, "stored": 4096, "lds": 8192, "scalar": 16 * 16}
    assert sums["conflicts"] == 0


CONFLICTS = """
extern "C" __global__ void strided(const int* strides, int* to) {
  extern __shared__ int line[];
  line[thread * *strides] = thread;
  barrier();
  to[thread] = line[thread * *strides];
}
"""


@pytest.mark.parametrize("stride, extra", [(1, 0), (2, 1), (3, 0), (16, 15), (64, 63)])
def test_bank_conflicts(stride, extra):
    """Of 64 lanes' dwords, `stride` apart, gcd(stride, 64) lie in one of the 64 banks."""
    device = Device(compiled(CONFLICTS, "conflicts"))
    device.launch(
        "strided",
        1,
        64,
        device.buffer("strides", np.array([stride], np.int32)),
        device.buffer("to", np.zeros(64, np.int32)),
        lds=64 * 64 * 4,
    )
    one = report.collect(device.machine)["kernels"]["strided"]
    assert one["conflict_cycles"] == {"ds_write_b32": extra, "ds_read_b32": extra}


def test_other_targets_are_refused(path, tmp_path):
    elf = bytearray(pathlib.Path(path).read_bytes())
    elf[48] = 0x4C  # gfx942
    (tmp_path / "other").write_bytes(elf)
    with pytest.raises(code_object.BadCodeObject, match="not for gfx950"):
        code_object.CodeObject(str(tmp_path / "other"), 0)
