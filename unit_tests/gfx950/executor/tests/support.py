# SPDX-License-Identifier: Apache-2.0
"""What the executor's tests share: compilers, one instruction alone, kernels of their own."""

import atexit
import collections
import functools
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from executor import code_object, machine, translate  # noqa: E402

BASE = 0x200000000000


@functools.cache
def folder():
    made = tempfile.mkdtemp(prefix="executor-tests-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


@functools.cache
def compiler():
    found = shutil.which("clang++-22")
    if not found:
        raise RuntimeError("clang++-22 is missing: .ci/device.sh installs it")
    return found


def compiled(source, name, assembly=False):
    """A code object of HIP source without any headers, or of assembly."""
    path = os.path.join(folder(), name)
    with open(path + (".s" if assembly else ".hip"), "w") as file:
        file.write(source if assembly else HIP_PRELUDE + source)
    if assembly:
        command = [
            compiler(),
            "-x",
            "assembler",
            "-target",
            "amdgcn-amd-amdhsa",
            "-mcpu=gfx950",
            path + ".s",
            "-o",
            path,
        ]
    else:
        command = [
            compiler(),
            "-x",
            "hip",
            "--offload-arch=gfx950",
            "-nogpuinc",
            "-nogpulib",
            "-O2",
            "-std=c++20",
            "--cuda-device-only",
            "--no-gpu-bundle-output",
            "-c",
            path + ".hip",
            "-o",
            path,
        ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return path


HIP_PRELUDE = """
#define __global__ __attribute__((global))
#define __shared__ __attribute__((shared))
#define __device__ __attribute__((device))
#define __constant__ __attribute__((constant))
#define thread __builtin_amdgcn_workitem_id_x()
#define group __builtin_amdgcn_workgroup_id_x()
#define barrier() (__builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup"), __builtin_amdgcn_s_barrier(), \\
                   __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup"))
"""


class Device:
    """Device memory, a code object and its launches."""

    def __init__(self, path, order="ascending", patches=(), size=1 << 20, batch_waves=32):
        self.octets = np.zeros(size, np.uint8)
        self.memory = machine.Memory(BASE, self.octets)
        code = code_object.CodeObject(path, machine.CODE_BASE)
        for offset, data in patches:
            code.patch(offset, data)
        self.machine = machine.Machine(self.memory, [code], order, batch_waves)
        self.code, self.at, self.buffers = code, 4096, []

    def buffer(self, name, values, initialized=True):
        octets = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
        address, self.at = self.at, self.at + (len(octets) + 4096 + 255) // 256 * 256
        self.octets[address : address + len(octets)] = octets
        self.buffers.append(
            {
                "name": name,
                "address": BASE + address,
                "bytes": len(octets),
                "initialized": initialized,
            }
        )
        return BASE + address

    def read(self, address, dtype, count):
        start = address - BASE
        return self.octets[start : start + count * np.dtype(dtype).itemsize].view(dtype)

    def launch(self, name, groups, block, *arguments, lds=0):
        """Arguments: addresses (above 2^32) and 32-bit integers."""
        self.memory.set_buffers(self.buffers)
        data = [
            struct.pack("<Q", value) if value >= 1 << 32 else struct.pack("<I", value % (1 << 32))
            for value in arguments
        ]
        return self.machine.launch(name, [groups, 1, 1], [block, 1, 1], lds, data)

    def instructions(self, name):
        return self.machine.program(name).instructions


class Alone:
    """Instructions assembled one by one, each run alone on chosen registers."""

    def __init__(self, texts, lds_bytes=0):
        kernels = "\n".join(f"{text}\ns_endpgm" for text in texts)
        source = KERNEL.replace("BODY", kernels)
        self.code = code_object.CodeObject(
            compiled(source, f"alone{abs(hash(tuple(texts)))}", assembly=True), machine.CODE_BASE
        )
        kernel = self.code.kernels["alone"]
        octets = np.zeros(4096, np.uint8)
        self.machine = machine.Machine(machine.Memory(BASE, octets), [self.code])
        self.program = translate.Program(kernel)
        self.machine.counts, self.machine.samples = collections.Counter(), collections.Counter()
        self.machine.lds_bytes = lds_bytes
        self.machine.conflicts = collections.defaultdict(lambda: [0, 0])
        ends = [one.index for one in self.program.instructions if one.name == "s_endpgm"]
        self.firsts = [0] + [end + 1 for end in ends[: len(texts) - 1]]
        self.ends = ends

    def batch(self, waves=2):
        batch = machine.Batch(
            self.machine, self.program, 1, waves, self.machine.lds_bytes, [64 * waves, 1, 1]
        )
        batch.start(
            0,
            [1, 1, 1],
            [64 * waves, 1, 1],
            machine.Region(0x600000000000, np.zeros(64, np.uint8), ""),
        )
        batch.known[...] = machine.ALL
        batch.all_known[...] = True
        batch.origins = {}
        return batch

    def run(self, batch, which, exec_masks=None):
        """Runs instruction `which` in the variant that EXEC asks for."""
        at, end = self.firsts[which], self.ends[which]
        variant = "full"
        batch.lanes64 = np.full(batch.waves, machine.ALL)
        if exec_masks is not None:
            batch.exec64[...] = batch.lanes64 = np.array(exec_masks, np.uint64)
            batch.names["em"] = batch.lanes_on = machine.numeric.unpack(batch.lanes64)
            variant = "part"
        segment = translate.Segment.__new__(translate.Segment)
        segment.program, segment.first, segment.last = self.program, at, end
        with np.errstate(all="ignore"):
            code = compile(
                translate.Emitter(self.program, segment, variant, False).source(), "alone", "exec"
            )
            batch.names.update(self.program.constants)
            exec(code, batch.names)
            batch.names["run"]()


KERNEL = """
.amdgcn_target "amdgcn-amd-amdhsa--gfx950"
.text
.globl alone
.p2align 8
.type alone,@function
alone:
BODY
.Lend:
.size alone, .Lend - alone
.rodata
.p2align 6
.amdhsa_kernel alone
  .amdhsa_next_free_vgpr 512
  .amdhsa_next_free_sgpr 96
  .amdhsa_accum_offset 256
  .amdhsa_user_sgpr_kernarg_segment_ptr 1
  .amdhsa_float_denorm_mode_32 3
  .amdhsa_float_denorm_mode_16_64 3
.end_amdhsa_kernel
.amdgpu_metadata
---
amdhsa.version: [1, 2]
amdhsa.kernels:
  - .name: alone
    .symbol: alone.kd
    .kernarg_segment_size: 8
    .group_segment_fixed_size: 0
    .private_segment_fixed_size: 0
    .kernarg_segment_align: 8
    .wavefront_size: 64
    .sgpr_count: 96
    .vgpr_count: 512
    .max_flat_workgroup_size: 1024
...
.end_amdgpu_metadata
"""
