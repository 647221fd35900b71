# SPDX-License-Identifier: Apache-2.0
"""Runs a launch: memory, waves, barriers, and the checks.

Workgroups are run in batches, all their waves side by side; waves that part ways are masked and
meet again at the lowest address that any of them has yet to execute. Between barriers the order of
waves is not that of any hardware: two waves that touch the same LDS bytes between two barriers, one
of them writing, are reported as a race, so the order cannot matter.
"""

import bisect
import collections
import functools
import mmap
import struct

import numpy as np

from . import matrix, numeric
from .translate import EXEC, M0, REGISTERS, SCC, VCC, VGPR

ALL = numeric.ALL_LANES
KERNARG_BASE = 0x600000000000
CODE_BASE = 0x500000000000
CODE_STEP = 0x10000000
# Segments that a batch may run: a kernel that runs longer is taken to loop for ever.
MOST_SEGMENTS = 5_000_000


# In the place of lanes that are on: one access a wave.
SCALAR = object()
MAP_NORESERVE = 0x4000


def as_columns(items, dtype, count):
    """Items of raw bytes -> (..., count) numbers."""
    return np.ascontiguousarray(items).view(np.uint8).view(dtype).reshape(items.shape + (count,))


def sparse(count, dtype):
    """Zeros, of which only what is used takes memory."""
    size = count * np.dtype(dtype).itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    return np.frombuffer(mmap.mmap(-1, size, flags), dtype)


class ExecutionError(Exception):
    """What is wrong, and where."""

    def __init__(self, message, index=None, wave=None, lane=None):
        super().__init__(message)
        self.message, self.index, self.wave, self.lane = message, index, wave, lane


class Region:
    """Bytes at an address, seen as items of any size at any byte."""

    def __init__(self, base, octets, name):
        self.base, self.octets, self.name = base, octets, name
        self.size = len(octets)
        self.end = base + self.size
        self.views = {}

    def view(self, size):
        found = self.views.get(size)
        if found is None:
            kind = {1: "u1", 2: "<u2", 4: "<u4", 8: "<u8"}.get(size, f"V{size}")
            found = np.ndarray(max(0, self.size - size + 1), kind, self.octets, strides=(1,))
            self.views[size] = found
        return found


class Memory:
    """The arena's buffers, code objects (read only) and arguments (read only)."""

    def __init__(self, base, octets):
        self.arena = Region(base, octets, "device memory")
        # A byte each: written. Meant for buffers that were not initialized as a whole.
        self.known = Region(base, sparse(len(octets), np.uint8), "known")
        self.buffers, self.starts, self.told = {}, [], []
        # Of each byte: the number of the workgroup that last wrote it, and of that which read it.
        self.groups = {what: sparse(len(octets), np.int32) for what in ("writer", "reader")}
        self.group_views = {}
        self.read_only = []

    def numbers(self, what, size):
        """Workgroups' numbers of `size` bytes, at any byte."""
        found = self.group_views.get((what, size))
        if found is None:
            array = self.groups[what]
            found = self.group_views[what, size] = np.ndarray(
                len(array) - size + 1, f"V{4 * size}", array, strides=(4,)
            )
        return found

    def set_buffers(self, listed):
        """Buffers of this launch: name, address, bytes, initialized."""
        seen = {}
        for one in listed:
            key = (one["address"], one["bytes"])
            old = self.buffers.get(one["address"])
            if old is None or old[1:3] != key:
                start = one["address"] - self.arena.base
                self.known.octets[start : start + one["bytes"]] = 0
            if one["initialized"]:
                start = one["address"] - self.arena.base
                self.known.octets[start : start + one["bytes"]] = 1
            if one["bytes"]:
                seen[one["address"]] = (one["name"], *key, bool(one["initialized"]))
        self.buffers = seen
        self.starts = sorted(seen)
        for start, count in self.told:
            self.known.octets[start : start + count] = 1
        self.told = []

    def wrote(self, address, count):
        """The host wrote; counts from the next launch on, which tells what buffers there are."""
        self.told.append((address - self.arena.base, count))

    def buffer(self, address):
        """(name, address, bytes, initialized) of the buffer at or below address."""
        i = bisect.bisect_right(self.starts, address) - 1
        return self.buffers[self.starts[i]] if i >= 0 else None

    def describe(self, address):
        found = self.buffer(address)
        if found is None:
            return "below every buffer of the launch"
        name, start, count, _ = found
        if address < start + count:
            return f"in buffer {name} ({count} bytes), at byte {address - start}"
        return f"{address - start - count} bytes past the end of buffer {name} ({count} bytes)"


class Batch:
    """The waves of some workgroups, side by side, and what generated code calls."""

    def __init__(self, machine, program, groups, waves, lds_bytes, block):
        self.machine, self.program = machine, program
        self.groups, self.waves_a_group = groups, waves
        self.waves = count = groups * waves
        kernel = program.kernel
        self.lds_bytes = (lds_bytes + 15) // 16 * 16
        registers = 256 if kernel.vgprs <= 256 else 512
        self.vectors = np.zeros((registers, count, 64), np.uint32)
        self.scalars = np.zeros((count, 128), np.uint32)
        self.scc = np.zeros(count, bool)
        self.active = np.ones(count, bool)
        self.lanes_on = np.ones((count, 64), bool)
        self.exec64 = self.scalars.view(np.uint64)[:, EXEC // 2]
        self.wave_numbers = np.broadcast_to(np.arange(count, dtype=np.int64)[:, None], (count, 64))
        self.group_of = np.arange(count, dtype=np.int64) // waves
        # Registers: lanes that hold something (scalars: all or nothing), and whether all do.
        self.known = np.zeros((REGISTERS, count), np.uint64)
        self.all_known = np.zeros(REGISTERS, bool)
        # LDS, what of it was written, and who touched what since the last barrier (1 +
        # instruction).
        granule = self.granule = program.lds_granule
        total = groups * self.lds_bytes
        self.lds = Region(0, np.zeros(total, np.uint8), "LDS")
        self.lds_base = np.broadcast_to((self.group_of * self.lds_bytes)[:, None], (count, 64))
        self.granules = self.lds_bytes // granule
        self.lds_known = Region(0, np.zeros(total // granule, np.uint8), "LDS known")
        self.touched = {}
        for what in ("read", "write", "atomic"):
            array = np.zeros(count * self.granules, np.int16)
            self.touched[what] = (array, {})
        self.dirty = False
        self.scratch_bytes = (kernel.scratch_bytes + 15) // 16 * 16
        self.scratch = Region(0, np.zeros(count * 64 * self.scratch_bytes, np.uint8), "scratch")
        self.scratch_known = Region(
            0, np.zeros(count * 64 * self.scratch_bytes, np.uint8), "scratch"
        )
        self.scratch_base = (np.arange(count * 64, dtype=np.int64) * self.scratch_bytes).reshape(
            count, 64
        )
        self.functions = {}
        self.names = self.scope()

    # ---------------------------------------------------------------- names of generated code

    def scope(self):
        scalars, vectors = self.scalars, self.vectors
        names = self.program.constants
        scope = {
            name: getattr(np, name)
            for name in (
                "copyto",
                "where",
                "maximum",
                "minimum",
                "bitwise_count",
                "ldexp",
                "trunc",
                "floor",
                "sqrt",
                "uint8",
                "int8",
                "uint16",
                "int16",
                "float16",
                "uint32",
                "int32",
                "float32",
                "uint64",
                "int64",
                "float64",
            )
        }
        for name in (
            "pair",
            "pack",
            "unpack",
            "signext_from_bit",
            "to_integer",
            "fma",
            "find_first_high",
            "find_first_one",
            "reverse_bits",
            "byte_permute",
            "first_lane",
            "convert_fp4",
            "halves",
            "brain_halves",
            "div_scale_f64",
            "div_fixup_f64",
            "LOWER_LO",
            "LOWER_HI",
        ):
            scope[name] = getattr(numeric, name)
        for name in (
            "whole",
            "read_lane",
            "write_lane",
            "indexed",
            "scalar_load",
            "global_load",
            "global_store",
            "global_atomic",
            "scratch_load",
            "scratch_store",
            "lds_read",
            "lds_write",
            "lds_atomic",
            "matrix_int8",
            "matrix_scaled_fp4",
            "before",
            "after",
            "unsupported",
            "check_matrix",
        ):
            scope[name] = getattr(self, name)
        scope["reciprocal"] = functools.partial(numeric.reciprocal, order=self.machine.matrix)
        signed, floats = scalars.view(np.int32), scalars.view(np.float32)
        pairs = scalars.view(np.uint64)
        scope.update(
            s=[scalars[:, i] for i in range(128)],
            si=[signed[:, i] for i in range(128)],
            sf=[floats[:, i] for i in range(128)],
            s64=[pairs[:, i // 2] for i in range(128)],
            sc=[scalars[:, i : i + 1] for i in range(128)],
            sci=[signed[:, i : i + 1] for i in range(128)],
            scf=[floats[:, i : i + 1] for i in range(128)],
            sc64=[pairs[:, i // 2 : i // 2 + 1] for i in range(128)],
            v=list(vectors),
            vi=list(vectors.view(np.int32)),
            vf=list(vectors.view(np.float32)),
            vl=list(vectors.view(np.uint16)[..., 0::2]),
            vh=list(vectors.view(np.uint16)[..., 1::2]),
            scc=self.scc,
            aw=self.active,
            em=self.lanes_on,
        )
        scope["_constants"] = names
        self.s64, self.v = scope["s64"], scope["v"]
        return scope

    def function(self, segment, variant, checked):
        key = (segment.first, variant, checked)
        found = self.functions.get(key)
        if found is None:
            code = self.program.code(segment, variant, checked)
            self.names.update(self.program.constants)
            exec(code, self.names)
            found = self.functions[key] = self.names["run"]
        return found

    # ---------------------------------------------------------------- start

    def start(self, first_group, grid, block, kernarg):
        """Registers at the beginning of workgroups first_group, ...; LDS is forgotten."""
        kernel, count = self.program.kernel, self.waves
        self.known[...] = 0
        self.all_known[...] = False
        self.vectors[...] = 0xFFFFDEAD
        self.scalars[...] = 0xFFFFDEAD
        self.lds.octets[...] = 0xA5
        self.lds_known.octets[...] = 0
        self.scratch_known.octets[...] = 0
        for array, _ in self.touched.values():
            array[...] = 0
        self.dirty = False
        self.first_group, self.grid, self.block = first_group, grid, block
        numbers = (self.machine.first_number + first_group + self.group_of).astype(np.int32)
        self.group_numbers = np.broadcast_to(numbers[:, None], (self.waves, 64))
        at = 0
        if kernel.has_kernarg_pointer:
            self.set_scalar(0, kernarg.base & 0xFFFFFFFF)
            self.set_scalar(1, kernarg.base >> 32)
            at = 2
        for i in range(kernel.preload_length):
            self.set_scalar(
                at, struct.unpack_from("<I", kernarg.octets, 4 * (kernel.preload_offset + i))[0]
            )
            at += 1
        at = kernel.user_sgprs
        group = first_group + self.group_of
        ids = (group % grid[0], group // grid[0] % grid[1], group // (grid[0] * grid[1]))
        for i in range(3):
            if kernel.group_ids[i]:
                self.set_scalar(at, ids[i].astype(np.uint32))
                at += 1
        if kernel.has_group_info:
            at += 1
        threads = block[0] * block[1] * block[2]
        item = (np.arange(count) % self.waves_a_group)[:, None] * 64 + np.arange(64)[None, :]
        packed = (
            item % block[0]
            | (item // block[0] % block[1]) << 10
            | (item // (block[0] * block[1])) << 20
        )
        self.vectors[0] = packed
        lanes = item < threads
        self.known[VGPR] = numeric.pack(lanes)
        self.all_known[VGPR] = bool(lanes.all())
        self.exec64[...] = numeric.pack(lanes)
        self.known[[EXEC, EXEC + 1]] = ALL
        self.all_known[[EXEC, EXEC + 1]] = True

    def set_scalar(self, number, value):
        self.scalars[:, number] = value
        self.known[number] = ALL
        self.all_known[number] = True

    # ---------------------------------------------------------------- the loop

    def run(self):
        program, names = self.program, self.names
        segments = program.segments
        first = program.places[program.kernel.entry + (256 if program.kernel.preload_length else 0)]
        at = first
        places = None  # of each wave, once they part; -1: ended
        blocked = np.zeros(self.waves, bool)
        exec_changed = True
        waits, state, states = program.waits, 0, None  # states: of each wave, where they differ
        for _ in range(MOST_SEGMENTS):
            segment = segments.get(at) or program.segment(at)
            if places is not None:
                names["aw"] = self.active = (places == at) & ~blocked
                exec_changed = True
            if exec_changed:
                lanes = self.exec64.copy()
                if places is not None:
                    lanes = np.where(self.active, lanes, np.uint64(0))
                    variant = "mask"
                elif (lanes == ALL).all():
                    variant = "full"
                else:
                    variant = "part"
                if variant != "full":
                    names["em"] = self.lanes_on = numeric.unpack(lanes)
                self.lanes64 = lanes
                exec_changed = False
            function = self.function(segment, variant, False)
            if not self.all_known[segment.reads].all() and not self.are_known(segment, variant):
                function = self.function(segment, variant, True)
            segment.runs += self.waves if places is None else int(np.count_nonzero(self.active))
            outcome = function()
            if not self.all_known[segment.writes].all():
                self.note_writes(segment.writes, variant)
            kind = segment.kind
            exec_changed = segment.changes_exec
            if segment.is_plain and (state == 0 if states is None else not states.any()):
                problem = None
            elif states is None:
                state, problem = waits.step(segment, state)
            else:
                states, problem = self.step_waits(segment, states)
                if places is None and (states == states[0]).all():
                    state, states = int(states[0]), None
            if problem:
                raise ExecutionError(problem[1], problem[0], int(np.flatnonzero(self.active)[0]))
            if places is None:
                if kind == "next":
                    at = segment.next
                elif kind == "branch":
                    at = segment.target
                elif kind == "choice":
                    taken = int(np.count_nonzero(outcome))
                    if taken == self.waves:
                        at = segment.target
                    elif not taken:
                        at = segment.next
                    else:
                        places = np.where(outcome, segment.target, segment.next)
                        at = int(places.min())
                        if states is None:
                            states = np.full(self.waves, state)
                elif kind == "barrier":
                    self.barrier(np.ones(self.groups, bool))
                    at = segment.next
                else:
                    self.barrier(np.ones(self.groups, bool))
                    return
                continue
            active = self.active
            if kind == "next":
                places[active] = segment.next
            elif kind == "branch":
                places[active] = segment.target
            elif kind == "choice":
                places[active] = np.where(outcome, segment.target, segment.next)[active]
            elif kind == "barrier":
                places[active] = segment.next
                blocked |= active
            else:
                places[active] = -1
            waiting = blocked | (places < 0)
            if waiting.all():
                if (places < 0).all():
                    self.barrier(np.ones(self.groups, bool))
                    return
                self.barrier(np.ones(self.groups, bool))
                blocked[...] = False
            candidates = places[(places >= 0) & ~blocked]
            at = int(candidates.min())
            if len(candidates) == self.waves and (candidates == at).all():
                places = None
                names["aw"] = self.active = np.ones(self.waves, bool)
                exec_changed = True

        raise ExecutionError(
            f"{MOST_SEGMENTS} segments executed, and no end",
            program.segment(at).first,
            int(np.flatnonzero(self.active)[0]),
        )

    def step_waits(self, segment, states):
        for number in set(states[self.active].tolist()):
            following, problem = self.program.waits.step(segment, number)
            if problem:
                return states, problem
            if following != number:
                moved = self.active & (states == number)
                states = np.where(moved, -1 - following, states)
        return np.where(states < 0, -1 - states, states), None

    def are_known(self, segment, variant):
        """Whether the lanes that are on hold something in all registers that the segment reads
        first."""
        missing = segment.reads[~self.all_known[segment.reads]]
        known = self.known[missing]
        vector = missing >= VGPR
        if not ((known[vector] | ~self.lanes64) == ALL).all():
            return False
        scalar = known[~vector]
        if variant == "mask":
            scalar = scalar[:, self.active]
        return bool((scalar == ALL).all())

    def note_writes(self, writes, variant):
        vector = writes[writes >= VGPR]
        scalar = writes[writes < VGPR]
        if variant == "mask":
            self.known[np.ix_(scalar, self.active)] = ALL
        else:
            self.known[scalar] = ALL
        self.known[vector] |= self.lanes64
        for some in (scalar, vector):
            self.all_known[some] = (self.known[some] == ALL).all(axis=1)

    def barrier(self, arrived):
        """All waves of the groups have arrived: looks for races since the last barrier."""
        if not self.dirty:
            return
        self.dirty = False
        shape = (self.groups, self.waves_a_group, self.granules)
        read, write, atomic = (
            self.touched[what][0].reshape(shape) for what in ("read", "write", "atomic")
        )
        if self.waves_a_group > 1:
            touched = (read != 0) | (write != 0)
            has_atomics = atomic.any()
            if has_atomics:
                touched |= atomic != 0
            shared = touched.sum(axis=1, dtype=np.uint8) > 1
            wrote = (write != 0).any(axis=1)
            if has_atomics:
                wrote |= (atomic != 0).any(axis=1) & ((read != 0).any(axis=1))
            bad = shared & wrote
            if bad.any():
                for group, place in np.argwhere(bad):
                    self.report_race(
                        read[group, :, place],
                        write[group, :, place],
                        atomic[group, :, place],
                        int(group),
                        int(place),
                    )
        for what in ("read", "write", "atomic"):
            self.touched[what][0][...] = 0

    def report_race(self, read, write, atomic, group, place):
        kinds = {"reads": read, "writes": write, "updates": atomic}
        for one in range(self.waves_a_group):
            for first, marks in kinds.items():
                if first == "reads" or not marks[one]:
                    continue
                for other in range(self.waves_a_group):
                    for second, others in kinds.items():
                        if other == one or not others[other] or first == second == "updates":
                            continue
                        mine, theirs = int(marks[one]) - 1, int(others[other]) - 1
                        where = self.program.instructions[theirs]
                        raise ExecutionError(
                            f"race: wave {one} {first} byte {place * self.granule} of LDS, wave {other} "
                            f"{second} it between the same two barriers, in\n    {where.text} at "
                            f"{where.offset:#x}",
                            mine,
                            group * self.waves_a_group + one,
                        )

    # ---------------------------------------------------------------- registers read before they ar

    def unsupported(self, index, why):
        raise ExecutionError(
            f"this instruction is not modelled: {why}", index, int(np.flatnonzero(self.active)[0])
        )

    def before(self, index):
        """Checked variant: what the instruction reads must have been written, in the lanes that are
        on.

        Vector registers may be undefined where the compiler knows that the result is not used:
        vector operations pass that on to their result; addresses, data to be stored, comparisons,
        matrix operands and scalars must be defined."""
        one = self.program.instructions[index]
        self.undefined = {}
        for register in one.reads:
            if self.all_known[register]:
                continue
            lanes = ~self.known[register] & (self.lanes64 if register >= VGPR else ALL)
            lanes = np.where(self.active, lanes, np.uint64(0))
            if not lanes.any():
                continue
            writes = [] if register < VGPR else self.passes_on(one, register)
            for written in writes:
                self.undefined[written] = self.undefined.get(written, np.uint64(0)) | lanes
                self.origins[written] = self.origins.get(register, (register, index))
            if writes:
                continue
            wave = int(np.flatnonzero(lanes)[0])
            lane = (
                (int(lanes[wave]) & -int(lanes[wave])).bit_length() - 1
                if register >= VGPR
                else None
            )
            message = f"{register_name(register)} is read before it was written"
            source, place = self.origins.get(register, (register, index))
            if place != index:
                message = (
                    f"{register_name(register)} depends on {register_name(source)}, which was read "
                    f"before it was written, by\n    {self.program.instructions[place].text} at "
                    f"{self.program.instructions[place].offset:#x}"
                )
            raise ExecutionError(message, index, wave, lane)

    @staticmethod
    def passes_on(one, register):
        """What registers an undefined lane of a register makes undefined; none: it must not be."""
        if one.name in ("v_mad_u64_u32", "v_mad_i64_i32"):
            # Compilers multiply and add 32 bits by it: the sum's upper half does not reach the
            # lower.
            if register == one.inst.src2.offset + 1:
                return [written for written in one.writes if written != one.inst.vdst.offset]
            return one.writes
        if one.kind == "valu" and one.writes and min(one.writes) >= VGPR:
            return one.writes
        return []

    def after(self, index):
        one = self.program.instructions[index]
        writes = np.array(one.writes, np.int64)
        if len(writes):
            self.note_writes(writes, "part" if self.active.all() else "mask")
        for register, lanes in self.undefined.items():
            if register < VGPR:
                lanes = np.where(lanes != 0, ALL, np.uint64(0))
            self.known[register] &= ~lanes
            self.all_known[register] = False

    def whole(self, mask):
        if getattr(mask, "shape", ()) != (self.waves, 64):
            mask = np.ascontiguousarray(np.broadcast_to(mask, (self.waves, 64)))
        return mask

    def read_lane(self, index, register, lane, early):
        if not self.all_known[VGPR + register]:
            shift = np.asarray(lane).astype(np.uint64)
            known = self.known[VGPR + register]
            good = ((known | self.lanes64 if early else known) >> shift & np.uint64(1)).astype(bool)
            if not good[self.active].all():
                wave = int(np.flatnonzero(~good & self.active)[0])
                where = int(np.broadcast_to(lane, self.waves)[wave])
                raise ExecutionError(
                    f"v{register} is read before it was written", index, wave, where
                )
        if isinstance(lane, int):
            return self.v[register][:, lane]
        return self.v[register][np.arange(self.waves), lane]

    def write_lane(self, index, register, lane, value, active):
        waves = np.arange(self.waves) if active is None else np.flatnonzero(active)
        where = lane if isinstance(lane, int) else lane[waves]
        if np.ndim(value):
            value = value[waves]
        self.v[register][waves, where] = value
        if not self.all_known[VGPR + register]:
            bit = np.uint64(1) << np.asarray(where).astype(np.uint64)
            self.known[VGPR + register][waves] |= bit
            self.all_known[VGPR + register] = bool((self.known[VGPR + register] == ALL).all())

    def indexed(self, index, first, early):
        """Relative addressing: register first + M0[7:0] of each wave."""
        number = first + (self.scalars[:, M0] & 0xFF).astype(np.int64)
        inside = number.clip(0, 255)
        known = self.known[VGPR + inside, np.arange(self.waves)] | ~self.lanes64
        bad = ((number > 255) | ((known != ALL) & ~np.isin(inside, early))) & self.active
        if bad.any():
            wave = int(np.flatnonzero(bad)[0])
            raise ExecutionError(
                f"v{number[wave]} (relative addressing) is read before it was written", index, wave
            )
        return self.vectors[inside, np.arange(self.waves)]

    # ---------------------------------------------------------------- global memory

    def locate(self, index, address, size, write, em, atomic=False):
        """(region, offsets) of the addresses of the lanes that are on, or with em SCALAR of the
        active waves: uint64, checked and noted."""
        low, high = int(address.min()), int(address.max()) + size
        memory = self.machine.memory
        arena = memory.arena
        if not write and not arena.base <= low < arena.end:
            for region in memory.read_only:
                if region.base <= low and high <= region.end:
                    return region, (address - np.uint64(region.base)).view(np.int64)
        found = memory.buffer(low)
        is_whole = False
        if found is not None and high <= found[1] + found[2]:
            is_whole = found[3]
        else:
            starts = np.array([0] + memory.starts, np.uint64)
            ends = np.array([0] + [sum(memory.buffers[s][1:3]) for s in memory.starts], np.uint64)
            which = np.searchsorted(starts, address, "right") - 1
            outside = address + np.uint64(size) > ends[which]
            if outside.any():
                self.outside(index, address, outside, size, write, em)
        offsets = (address - np.uint64(arena.base)).view(np.int64)
        if not atomic:
            self.note_groups(index, offsets, size, write, em)
        if is_whole:
            return arena, offsets
        known = memory.known.view(size)
        if write:
            known[offsets] = np.frombuffer(b"\1" * size, known.dtype)[0]
            return arena, offsets
        unknown = ~as_columns(known[offsets], np.uint8, size).all(axis=-1)
        if unknown.any():
            wave, lane = self.who(unknown, em)
            at = int(np.asarray(address)[unknown][0])
            raise ExecutionError(
                f"{size} bytes at {at:#x} are read before they were written: {memory.describe(at)}",
                index,
                wave,
                lane,
            )
        return arena, offsets

    def note_groups(self, index, offsets, size, write, em):
        """What one workgroup of a launch writes no other one may read or write."""
        memory, first = self.machine.memory, self.machine.first_number
        if em is None:
            mine = self.group_numbers
        elif em is SCALAR:
            mine = self.group_numbers[self.active, 0]
        else:
            mine = self.group_numbers[em]
        mine = np.broadcast_to(mine[..., None], mine.shape + (size,))
        packed = np.ascontiguousarray(mine).view(f"V{4 * size}")[..., 0]
        writers, readers = memory.numbers("writer", size), memory.numbers("reader", size)
        found = as_columns(writers[offsets], np.int32, size)
        conflict, verb = (found >= first) & (found != mine), "wrote"
        before = as_columns(readers[offsets], np.int32, size)
        shared = (before >= first) & (before != mine)
        if write:
            writers[offsets] = packed
            if not conflict.any():
                found, conflict, verb = before, shared, "read"
            if not conflict.any() and self.groups > 1:
                # By this very instruction.
                found = as_columns(writers[offsets], np.int32, size)
                conflict, verb = found != mine, "wrote"
        else:
            if shared.any():
                several = np.where(shared, np.int32(self.machine.several), mine)
                packed = several.view(f"V{4 * size}")[..., 0]
            readers[offsets] = packed
        if conflict.any():
            lanes = conflict.any(axis=-1)
            wave, lane = self.who(lanes, em)
            number = int(found[conflict].flat[0])
            other = f"workgroup {number - first}"
            if number == self.machine.several:
                other = "more than one workgroup"
            at = int(offsets[lanes].flat[0]) + memory.arena.base
            raise ExecutionError(
                f"race: {'writes' if write else 'reads'} {size} bytes at {at:#x} of which {other} "
                f"{verb} some in the same launch: {memory.describe(at)}",
                index,
                wave,
                lane,
            )

    def who(self, chosen, em):
        """(wave, lane) of the first chosen of the lanes that are on."""
        if em is None:
            wave, lane = np.argwhere(np.broadcast_to(chosen, (self.waves, 64)))[0]
        elif em is SCALAR:
            return int(np.flatnonzero(self.active)[np.flatnonzero(chosen)[0]]), None
        else:
            wave, lane = np.argwhere(em)[np.flatnonzero(chosen)[0]]
        return int(wave), int(lane)

    def outside(self, index, address, outside, size, write, em):
        wave, lane = self.who(outside, em)
        at = int(np.asarray(address)[outside].flat[0])
        raise ExecutionError(
            f"{'writes' if write else 'reads'} {size} bytes at {at:#x}: "
            f"{self.machine.memory.describe(at)}",
            index,
            wave,
            lane,
        )

    def address(self, address, saddr, offset, em):
        offset = np.uint64(offset % (1 << 64))
        if saddr is None:
            whole = numeric.pair(self.v[address], self.v[address + 1]) + offset
        else:
            whole = self.v[address].astype(np.uint64) + (self.s64[saddr][:, None] + offset)
        return whole if em is None else whole[em]

    def global_load(self, index, address, saddr, offset, registers, size, what, em):
        where = self.address(address, saddr, offset, em)
        if not where.size:
            return
        region, offsets = self.locate(index, where, size, False, em)
        data = region.view(size)[offsets]
        self.count_bytes("loaded", data.size * size)
        self.put(registers, data, size, what.startswith("s"), em)

    def put(self, registers, data, size, signed, em):
        """A loaded item a lane into registers."""
        if size < 4:
            if signed:
                data = data.view(f"int{8 * size}").astype(np.int32).view(np.uint32)
            columns = [data]
        elif size == 4:
            columns = [data]
        else:
            words = np.ascontiguousarray(data).view(np.uint32).reshape(data.shape + (size // 4,))
            columns = [words[..., i] for i in range(size // 4)]
        for register, column in zip(registers, columns):
            if em is None:
                self.v[register][...] = column
            else:
                self.v[register][em] = column

    def take(self, registers, size, shift, em):
        """An item a lane out of registers."""
        if size < 4:
            data = self.v[registers[0]] if em is None else self.v[registers[0]][em]
            return (data >> np.uint32(shift)).astype(f"uint{8 * size}")
        if size == 4:
            return self.v[registers[0]] if em is None else self.v[registers[0]][em]
        words = self.vectors[registers]
        words = words.transpose(1, 2, 0) if em is None else words[:, em].T
        words = np.ascontiguousarray(words)
        kind = {8: np.uint64}.get(size, f"V{size}")
        return words.view(kind)[..., 0]

    def global_store(self, index, address, saddr, offset, registers, size, what, em):
        where = self.address(address, saddr, offset, em)
        if not where.size:
            return
        region, offsets = self.locate(index, where, size, True, em)
        region.view(size)[offsets] = self.take(
            registers, size, 16 if what.endswith("hi") else 0, em
        )
        self.count_bytes("stored", where.size * size)

    def global_atomic(self, index, address, saddr, offset, registers, size, what, em):
        where = self.address(address, saddr, offset, em)
        if not where.size:
            return
        if (where % np.uint64(size)).any():
            raise ExecutionError("an atomic operation at an address that is not aligned", index)
        self.locate(index, where, size, False, em, atomic=True)
        region, offsets = self.locate(index, where, size, True, em, atomic=True)
        data = self.take(registers, size, 0, em)
        words = region.octets[: region.size // size * size].view(f"uint{8 * size}")
        if region.base % size:
            raise ExecutionError("atomics need memory that is aligned", index)
        np.add.at(words, offsets.reshape(-1) // size, np.ascontiguousarray(data).reshape(-1))
        self.count_bytes("stored", where.size * size)

    def scalar_load(self, index, base, offset, destination, count, active):
        where = self.s64[base] + np.uint64(offset % (1 << 64))
        where = where & np.uint64(0xFFFFFFFFFFFFFFFC)
        if active is not None:
            where = where[active]
        size = 4 * count
        where = np.ascontiguousarray(where)
        region, offsets = self.locate(index, where, size, False, SCALAR)
        data = (
            np.ascontiguousarray(region.view(size)[offsets])
            .view(np.uint32)
            .reshape(len(where), count)
        )
        if active is None:
            self.scalars[:, destination : destination + count] = data
        else:
            self.scalars[active, destination : destination + count] = data
        self.count_bytes("scalar", data.size * 4)

    def count_bytes(self, what, count):
        self.machine.counts[what] += count

    # ---------------------------------------------------------------- scratch memory

    def scratch_place(self, index, address, saddr, offset, size, em):
        where = np.full((self.waves, 64), offset, np.int64)
        if address is not None:
            where = where + self.v[address].view(np.int32)
        if saddr is not None:
            where = where + self.scalars[:, saddr : saddr + 1].view(np.int32)
        base = self.scratch_base
        if em is not None:
            where, base = where[em], base[em]
        if where.size:
            bad = (where < 0) | (where + size > self.program.kernel.scratch_bytes)
            if bad.any():
                wave, lane = self.who(bad, em)
                raise ExecutionError(
                    f"scratch memory's byte {where[bad][0]}, of "
                    f"{self.program.kernel.scratch_bytes}",
                    index,
                    wave,
                    lane,
                )
        return base + where

    def scratch_load(self, index, address, saddr, offset, registers, size, what, em):
        where = self.scratch_place(index, address, saddr, offset, size, em)
        if not where.size:
            return
        known = np.ascontiguousarray(self.scratch_known.view(size)[where]).view(np.uint8)
        if not known.all():
            wave, lane = self.who(~known.reshape(where.shape + (size,)).all(axis=-1), em)
            raise ExecutionError("scratch memory is read before it was written", index, wave, lane)
        self.put(registers, self.scratch.view(size)[where], size, False, em)
        self.count_bytes("scratch", where.size * size)

    def scratch_store(self, index, address, saddr, offset, registers, size, what, em):
        where = self.scratch_place(index, address, saddr, offset, size, em)
        if not where.size:
            return
        self.scratch.view(size)[where] = self.take(registers, size, 0, em)
        view = self.scratch_known.view(size)
        view[where] = np.frombuffer(b"\1" * size, view.dtype)[0]
        self.count_bytes("scratch", where.size * size)

    # ---------------------------------------------------------------- LDS

    def lds_place(self, index, address, offset, size, what, em):
        """Offsets into all groups' LDS, checked and marked as touched."""
        where = self.v[address] if em is None else self.v[address][em]
        where = (where + np.uint32(offset)).astype(np.int64)  # modulo 2^32
        highest = int(where.max()) + size
        if highest > self.machine.lds_bytes:
            bad = where + size > self.machine.lds_bytes
            wave, lane = self.who(bad, em)
            raise ExecutionError(
                f"{what}s {size} bytes at byte {where[bad][0]} of LDS, which has "
                f"{self.machine.lds_bytes}",
                index,
                wave,
                lane,
            )
        granule = self.granule
        if granule > 1:
            if (where & (granule - 1)).any():
                wave, lane = self.who((where & (granule - 1)) != 0, em)
                raise ExecutionError(
                    "an LDS address that is not a multiple of 4", index, wave, lane
                )
            places = where >> 2
        else:
            places = where
        waves, base = self.wave_numbers, self.lds_base
        if em is not None:
            waves, base = waves[em], base[em]
        units = max(1, size // granule)
        view, mark = self.marks(what, units, index)
        view[waves * self.granules + places] = mark
        self.dirty = True
        self.count_bytes("lds", where.size * size)
        if self.machine.samples[index] < 8:
            self.machine.samples[index] += 1
            self.count_conflicts(index, where, size, em)
        return base + where, base // granule + places, units

    def marks(self, what, units, index):
        array, views = self.touched[what]
        view = views.get(units)
        if view is None:
            kind = {1: "<i2", 2: "<u4", 4: "<u8"}.get(units, f"V{2 * units}")
            view = views[units] = np.ndarray(len(array) - units + 1, kind, array, strides=(2,))
        mark = np.frombuffer(struct.pack("<h", index + 1) * units, view.dtype)[0]
        return view, mark

    def know_lds(self, places, units):
        view = self.lds_known.view(units)
        view[places] = np.frombuffer(b"\1" * units, view.dtype)[0]

    def check_lds(self, index, places, units, em):
        known = self.lds_known.view(units)[places]
        known = np.ascontiguousarray(known).view(np.uint8).reshape(places.shape + (units,))
        if not known.all():
            wave, lane = self.who(~known.all(axis=-1), em)
            first = np.argwhere(~known.reshape(-1, units).all(axis=-1))[0][0]
            place = int(places.reshape(-1)[first]) % self.granules
            raise ExecutionError(
                f"LDS is read before it was written, at byte {place * self.granule}",
                index,
                wave,
                lane,
            )

    def lds_read(self, index, address, offsets, registers, size, _, signed, em):
        if em is not None and not em.any():
            return
        each = max(1, size // 4)
        results = []
        for offset in offsets:
            where, places, units = self.lds_place(index, address, offset, size, "read", em)
            self.check_lds(index, places, units, em)
            results.append(self.lds.view(size)[where])
        for i, data in enumerate(results):
            self.put(registers[i * each : (i + 1) * each], data, size, signed, em)

    def lds_write(self, index, address, offsets, registers, size, _, signed, em):
        if em is not None and not em.any():
            return
        each = max(1, size // 4)
        for i, offset in enumerate(offsets):
            where, places, units = self.lds_place(index, address, offset, size, "write", em)
            self.lds.view(size)[where] = self.take(
                registers[i * each : (i + 1) * each], size, 0, em
            )
            self.know_lds(places, units)

    def lds_atomic(self, index, address, offsets, registers, size, operation, signed, em):
        if em is not None and not em.any():
            return
        where, places, units = self.lds_place(index, address, offsets[0], size, "atomic", em)
        self.check_lds(index, places, units, em)
        if (where % size).any():
            raise ExecutionError("an atomic operation at an address that is not aligned", index)
        kind = f"{'int' if signed else 'uint'}{8 * size}"
        data = np.ascontiguousarray(self.take(registers, size, 0, em)).reshape(-1).view(kind)
        words = self.lds.octets[: self.lds.size // size * size].view(kind)
        function = {
            "add": np.add,
            "or": np.bitwise_or,
            "and": np.bitwise_and,
            "max": np.maximum,
            "min": np.minimum,
        }[operation]
        function.at(words, where.reshape(-1) // size, data)

    def count_conflicts(self, index, where, size, em):
        """Extra cycles of an LDS instruction for bank conflicts, summed over its waves.

        64 banks of 4 bytes. Lanes are served in order, in phases of 64 for up to 4 bytes a lane, 32
        for 8, and 16 for 12 and 16; a phase takes as many cycles as one bank has different dwords
        to serve. Extra are those beyond one a phase."""
        lanes = {8: 32, 12: 16, 16: 16}.get(size, 64)
        full = np.full((self.waves, 64), -1, np.int64)
        if em is None:
            full[...] = where
        else:
            full[em] = where
        extra = 0
        phases = full.reshape(-1, lanes)
        words = max(1, size // 4)
        dwords = (phases[..., None] >> 2) + np.arange(words)
        dwords = np.where(phases[..., None] < 0, -1, dwords).reshape(len(phases), -1)
        dwords.sort(axis=1)
        fresh = np.ones(dwords.shape, bool)
        fresh[:, 1:] = dwords[:, 1:] != dwords[:, :-1]
        fresh &= dwords >= 0
        counts = np.zeros((len(phases), 64), np.int64)
        phase = np.broadcast_to(np.arange(len(phases))[:, None], dwords.shape)
        np.add.at(counts, (phase[fresh], dwords[fresh] & 63), 1)
        extra = np.maximum(counts.max(axis=1) - 1, 0).sum()
        self.machine.conflicts[index][0] += int(extra)
        self.machine.conflicts[index][1] += int(np.count_nonzero((full >= 0).any(axis=1)))

    # ---------------------------------------------------------------- matrix instructions

    def check_matrix(self, index, late, early):
        """Matrix instructions ignore EXEC: all lanes of the operands must hold something. Early:
        those written in the same segment, which is noted only after it."""
        for registers, noted in ((late, np.uint64(0)), (early, self.lanes64)):
            for register in registers:
                if self.all_known[VGPR + register]:
                    continue
                missing = np.where(
                    self.active, ~(self.known[VGPR + register] | noted), np.uint64(0)
                )
                if missing.any():
                    wave = int(np.flatnonzero(missing)[0])
                    lane = (int(missing[wave]) & -int(missing[wave])).bit_length() - 1
                    raise ExecutionError(
                        f"{register_name(VGPR + register)} is read before it was written (matrix "
                        "instructions read all lanes)",
                        index,
                        wave,
                        lane,
                    )

    def finish_matrix(self, d, result, active):
        for register, values in zip(d, result):
            if active is None:
                self.v[register][...] = values
                self.known[VGPR + register] = ALL
                self.all_known[VGPR + register] = True
            else:
                self.v[register][active] = values
                self.known[VGPR + register][active] = ALL
                self.all_known[VGPR + register] = bool((self.known[VGPR + register] == ALL).all())

    def matrix_int8(self, index, a, b, c, d, active):
        waves = slice(None) if active is None else active
        operands = (
            self.vectors[a][:, waves],
            self.vectors[b][:, waves],
            None if c is None else self.vectors[c][:, waves],
        )
        self.finish_matrix(d, matrix.int8(*operands), active)

    def matrix_scaled_fp4(self, index, a, b, c, d, scales, octets, active):
        waves = slice(None) if active is None else active
        bytes_ = [
            (self.v[scales[i]][waves] >> np.uint32(8 * octets[i])).astype(np.uint8)
            for i in range(2)
        ]
        result = matrix.scaled_fp4(
            self.vectors[a][:, waves],
            self.vectors[b][:, waves],
            None if c is None else self.vectors[c][:, waves],
            *bytes_,
            self.machine.matrix,
        )
        self.finish_matrix(d, result, active)


def register_name(register):
    if register == SCC:
        return "scc"
    if register >= VGPR + 256:
        return f"a{register - VGPR - 256}"
    if register >= VGPR:
        return f"v{register - VGPR}"
    return {VCC: "vcc_lo", VCC + 1: "vcc_hi", EXEC: "exec_lo", EXEC + 1: "exec_hi", M0: "m0"}.get(
        register, f"s{register}"
    )


class Machine:
    """Memory, kernels and counts of a process."""

    def __init__(self, memory, code_objects, order="ascending", batch_waves=32):
        self.memory, self.matrix, self.batch_waves = memory, order, batch_waves
        self.kernels, self.programs = {}, {}
        # Workgroups' numbers, launch after launch; the last of a launch stands for several.
        self.first_number, self.several = 1, 1
        for code in code_objects:
            memory.read_only.append(
                Region(code.base, np.frombuffer(code.image, np.uint8), code.path)
            )
            for name, kernel in code.kernels.items():
                self.kernels.setdefault(name, kernel)
        self.reports = {}
        self.batches = collections.OrderedDict()

    def program(self, name):
        from .translate import Program

        if name not in self.programs:
            self.programs[name] = Program(self.kernels[name])
        return self.programs[name]

    def launch(self, name, grid, block, dynamic_lds, arguments, label=""):
        """Runs a launch; returns the number of instructions that its waves executed."""
        kernel, program = self.kernels[name], self.program(name)
        threads = block[0] * block[1] * block[2]
        if not 0 < threads <= kernel.max_block:
            raise ExecutionError(
                f"blocks of {threads} threads; the kernel takes at most {kernel.max_block}"
            )
        if len(arguments) != len(kernel.arguments):
            raise ExecutionError(f"{len(arguments)} arguments instead of {len(kernel.arguments)}")
        octets = np.zeros(max(64, kernel.kernarg_bytes), np.uint8)
        for (offset, size), data in zip(kernel.arguments, arguments):
            if len(data) != size:
                raise ExecutionError(f"an argument of {len(data)} bytes instead of {size}")
            octets[offset : offset + size] = np.frombuffer(data, np.uint8)
        for offset, size, value in kernel.hidden_values(grid, block, dynamic_lds):
            octets[offset : offset + size] = np.frombuffer(value.to_bytes(size, "little"), np.uint8)
        kernarg = Region(KERNARG_BASE, octets, "arguments")
        self.memory.read_only = [r for r in self.memory.read_only if r.base != KERNARG_BASE] + [
            kernarg
        ]
        self.lds_bytes = kernel.lds_bytes + dynamic_lds
        waves = (threads + 63) // 64
        groups = grid[0] * grid[1] * grid[2]
        report = self.reports.setdefault(name, Report(program))
        self.counts, self.samples, self.conflicts = report.counts, report.samples, report.conflicts
        report.launches += 1
        report.groups += groups
        report.waves += groups * waves
        before, bytes_before = report.kinds(program), dict(report.counts)
        self.first_number, self.several = self.several + 1, self.several + 1 + groups
        together = max(1, self.batch_waves // waves)
        with np.errstate(all="ignore"):
            for first in range(0, groups, together):
                count = min(together, groups - first)
                batch = self.batch(program, count, waves, block)
                batch.origins = {}
                batch.start(first, grid, block, kernarg)
                try:
                    batch.run()
                except ExecutionError as error:
                    raise ExecutionError(self.explain(error, batch, program, label)) from None
        after = report.kinds(program)
        kinds = {kind: count - before[kind] for kind, count in after.items()}
        report.note_launch(
            kinds,
            {what: count - bytes_before.get(what, 0) for what, count in report.counts.items()},
            label,
            groups,
        )
        return sum(kinds.values())

    def batch(self, program, groups, waves, block):
        key = (program.kernel.name, groups, waves, self.lds_bytes)
        found = self.batches.pop(key, None)
        if found is None:
            found = Batch(self, program, groups, waves, self.lds_bytes, block)
        self.batches[key] = found
        while len(self.batches) > 6:
            self.batches.popitem(last=False)
        return found

    def explain(self, error, batch, program, label):
        kernel = program.kernel.name
        lines = [f"kernel {demangled(kernel)}" + (f" ({label})" if label else "")]
        wave = error.wave
        if wave is not None:
            group = batch.first_group + wave // batch.waves_a_group
            lines.append(
                f"workgroup {group} of {batch.grid[0] * batch.grid[1] * batch.grid[2]}, wave "
                f"{wave % batch.waves_a_group} of {batch.waves_a_group}"
                + (f", lane {error.lane}" if error.lane is not None else "")
            )
        if error.index is not None:
            one = program.instructions[error.index]
            lines.append(
                f"at {one.offset:#x} (instruction {one.index} of {len(program.instructions)}): {one.text}"
            )
            if wave is not None:
                values = []
                for register in one.reads[:24]:
                    if register >= VGPR:
                        value = batch.vectors[register - VGPR, wave, error.lane or 0]
                    elif register == SCC:
                        value = int(batch.scc[wave])
                    else:
                        value = batch.scalars[wave, register]
                    values.append(f"{register_name(register)} = {int(value):#010x}")
                if values:
                    lines.append(
                        "operands"
                        + (
                            f" (lane {error.lane or 0})"
                            if any(r >= VGPR for r in one.reads)
                            else ""
                        )
                        + ": "
                        + ", ".join(values)
                    )
        lines.append(error.message)
        return "\n".join(lines)


class Report:
    """Counts of one kernel."""

    def __init__(self, program):
        self.launches = self.groups = self.waves = 0
        self.best = None
        self.counts = collections.Counter()
        self.samples = collections.Counter()
        self.conflicts = collections.defaultdict(lambda: [0, 0])

    @staticmethod
    def kinds(program):
        """Instructions executed so far, by kind."""
        result = collections.Counter()
        for segment in program.segments.values():
            if segment.runs:
                for kind, count in segment.kinds.items():
                    result[kind] += count * segment.runs
        return result

    def note_launch(self, kinds, octets, label, groups):
        """Keeps the launch with the largest share of the matrix peak, as report.py estimates it."""
        from .report import roofline

        if kinds.get("matrix"):
            cycles = roofline(kinds, octets, 0)
            share = cycles["MFMA"] / max(cycles.values())
            if self.best is None or share > self.best["share"]:
                self.best = {"share": share, "label": label, "groups": groups, "cycles": cycles}


def demangled(name):
    import shutil
    import subprocess

    tool = shutil.which("c++filt") or shutil.which("llvm-cxxfilt-22")
    if not tool:
        return name
    return subprocess.run([tool, name], capture_output=True, text=True, check=True).stdout.strip()
