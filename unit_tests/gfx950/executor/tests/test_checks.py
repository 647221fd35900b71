# SPDX-License-Identifier: Apache-2.0
"""Whole kernels: right ones give the right results, and each kind of bug is caught, with the
kernel, the place and the instruction named."""

import struct

import numpy as np
import pytest

from executor import machine
from executor.machine import ExecutionError

from .support import BASE, Device, compiled

KERNELS = """
extern "C" __global__ void reverse(const int* from, int* to) {
  __shared__ int line[256];
  line[thread] = from[256 * group + thread];
  barrier();
  to[256 * group + thread] = line[255 - thread];
}
extern "C" __global__ void octets(const unsigned char* from, unsigned char* to) {
  __shared__ unsigned char line[256];
  line[thread] = from[256 * group + thread];
  barrier();
  to[256 * group + thread] = line[255 - thread];
}
extern "C" __global__ void add(const float* a, const float* b, float* c, int n) {
  const int i = 256 * group + thread;
  if (i < n) c[i] = a[i] + b[i];
}
extern "C" __global__ void collatz(const unsigned* from, unsigned* to) {
  unsigned x = from[256 * group + thread], steps = 0;
  while (x != 1) {
    x = x & 1 ? 3 * x + 1 : x / 2;
    ++steps;
  }
  to[256 * group + thread] = steps;
}
extern "C" __global__ void rounds(const int* counts, int* to) {
  // Waves that take different ways between barriers, and different numbers of turns.
  __shared__ int line[256];
  int sum = 0;
  const int wave = __builtin_amdgcn_readfirstlane(thread / 64);
  for (int round = 0; round < counts[group]; ++round) {
    int value = thread;
    for (int i = 0; i < wave; ++i) value = value * 5 + round;
    line[thread] = value;
    barrier();
    sum += line[(thread + 64 * round + 1) % 256];
    barrier();
  }
  to[256 * group + thread] = sum;
}
extern "C" __global__ void places(const int* from, int* to) {
  // An array that is indexed dynamically lies in scratch memory.
  int own[40];
  for (int i = 0; i < 40; ++i) own[(from[thread] + i) % 40] = from[(thread + i) % 256] + i;
  int sum = 0;
  for (int i = 0; i < 10; ++i) sum = 3 * sum + own[(from[thread] + 7 * i) % 40];
  to[256 * group + thread] = sum;
}
extern "C" __global__ void tally(const unsigned* from, unsigned* largest, unsigned long long* sum) {
  __shared__ unsigned most; if (thread == 0) most = 0; barrier(); __hip_atomic_fetch_max(&most,
  from[256 * group + thread], __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_WORKGROUP); barrier();
  largest[256 * group + thread] = most; __hip_atomic_fetch_add(sum, (unsigned long long)from[256 *
  group + thread], __ATOMIC_RELAXED,
                         __HIP_MEMORY_SCOPE_AGENT);
}
__constant__ const int table[8] = {3, 1, 4, 1, 5, 9, 2, 6};
extern "C" __global__ void constants(const int* from, int* to) {
  to[thread] = table[from[thread] & 7] + table[group];
}
extern "C" __global__ void ids(unsigned* to) {
  // Blocks of 5 x 3 x 7 threads, 4 x 3 x 2 of them.
  const unsigned x = thread, y = __builtin_amdgcn_workitem_id_y(), z = __builtin_amdgcn_workitem_id_z();
  const unsigned i = group, j = __builtin_amdgcn_workgroup_id_y(), k = __builtin_amdgcn_workgroup_id_z();
  to[(i + 4 * (j + 3 * k)) * 105 + x + 5 * (y + 3 * z)] =
      x | y << 4 | z << 8 | i << 12 | j << 16 | k << 20;
}
extern "C" __global__ void neighbours(const int* from, int* to, int* beyond, int distance) {
  const int i = 64 * group + thread;
  to[i] = from[i + distance];
  if (distance > 0) beyond[2 * i] = from[3 * group];
}
extern "C" __global__ void shifted(int* to) { to[60 * group + thread] = 1; }
extern "C" __global__ void same_place(int* to) {
  __shared__ int place;
  place = thread / 64;
  barrier();
  to[256 * group + thread] = place;
}
"""
S_NOP = bytes.fromhex("000080bf")


@pytest.fixture(scope="module")
def path():
    return compiled(KERNELS, "checks")


def place_of(path, kernel, name, nth=0):
    """Offset of the nth instruction of that name, and its size."""
    found = [one for one in Device(path).instructions(kernel) if one.name.startswith(name)]
    return found[nth].offset, found[nth].size


def without(path, kernel, name, nth=0):
    offset, size = place_of(path, kernel, name, nth)
    return [(offset, S_NOP * (size // 4))]


def on_reverse(path, patches=(), count=1024, **options):
    device = Device(path, patches=patches, **options)
    values = np.arange(count, dtype=np.int32) * 7919
    from_, to = device.buffer("from", values), device.buffer("to", 0 * values, False)
    device.launch("reverse", count // 256, 256, from_, to)
    return device.read(to, np.int32, count), values.reshape(-1, 256)[:, ::-1].reshape(-1)


@pytest.mark.parametrize("together", [1, 4, 32, 128])
def test_barriers(path, together):
    found, expected = on_reverse(path, count=8192, batch_waves=together)
    assert (found == expected).all()


def test_octets_of_a_dword_are_no_race(path):
    device = Device(path)
    values = np.arange(512).astype(np.uint8)
    from_, to = device.buffer("from", values), device.buffer("to", 0 * values)
    device.launch("octets", 2, 256, from_, to)
    assert (device.read(to, np.uint8, 512) == values.reshape(2, 256)[:, ::-1].reshape(-1)).all()


@pytest.mark.parametrize("together", [4, 32])
def test_waves_part_and_meet(path, together):
    device = Device(path, batch_waves=together)
    values = np.random.default_rng(1).integers(1, 1000, 2048).astype(np.uint32)
    from_, to = device.buffer("from", values), device.buffer("to", 0 * values, False)
    device.launch("collatz", 8, 256, from_, to)

    def steps(x):
        count = 0
        while x != 1:
            x, count = (3 * x + 1 if x & 1 else x // 2), count + 1
        return count

    assert device.read(to, np.uint32, 2048).tolist() == [steps(int(x)) for x in values]


@pytest.mark.parametrize("together", [4, 32])
def test_groups_with_different_numbers_of_barriers(path, together):
    device = Device(path, batch_waves=together)
    counts = np.array([3, 0, 7, 1, 2, 5], np.int32)
    from_, to = (
        device.buffer("counts", counts),
        device.buffer("to", np.zeros(6 * 256, np.int32), False),
    )
    device.launch("rounds", 6, 256, from_, to)
    expected = np.zeros((6, 256), np.int64)
    for group, count in enumerate(counts):
        for turn in range(count):
            line = np.arange(256)
            for wave in range(4):
                for _ in range(wave):
                    line[64 * wave : 64 * wave + 64] = line[64 * wave : 64 * wave + 64] * 5 + turn
            expected[group] += line[(np.arange(256) + 64 * turn + 1) % 256]
    assert (device.read(to, np.int32, 6 * 256) == expected.reshape(-1)).all()


def test_scratch_memory(path):
    device = Device(path)
    values = np.random.default_rng(2).integers(0, 1000, 256).astype(np.int32)
    from_, to = device.buffer("from", values), device.buffer("to", np.zeros(512, np.int32), False)
    device.launch("places", 2, 256, from_, to)
    assert any(one.format == "SCRATCH" for one in device.instructions("places"))
    expected = []
    for item in range(256):
        own = [0] * 40
        for i in range(40):
            own[(int(values[item]) + i) % 40] = int(values[(item + i) % 256]) + i
        total = 0
        for i in range(10):
            total = 3 * total + own[(int(values[item]) + 7 * i) % 40]
        expected.append(total)
    assert device.read(to, np.int32, 512).tolist() == 2 * expected


def test_atomics(path):
    device = Device(path)
    values = np.random.default_rng(3).integers(0, 1 << 32, 1024).astype(np.uint32)
    from_, largest = device.buffer("from", values), device.buffer("largest", 0 * values, False)
    total = device.buffer("sum", np.zeros(1, np.uint64))
    device.launch("tally", 4, 256, from_, largest, total)
    assert (
        device.read(largest, np.uint32, 1024) == np.repeat(values.reshape(4, 256).max(axis=1), 256)
    ).all()
    assert int(device.read(total, np.uint64, 1)[0]) == int(values.astype(np.uint64).sum())


def test_constants_of_the_code_object(path):
    device = Device(path)
    values = np.arange(256, dtype=np.int32)
    from_, to = device.buffer("from", values), device.buffer("to", 0 * values)
    device.launch("constants", 1, 256, from_, to)
    table = np.array([3, 1, 4, 1, 5, 9, 2, 6])
    assert (device.read(to, np.int32, 256) == table[values & 7] + 3).all()


@pytest.mark.parametrize("together", [2, 32])
def test_ids_in_three_dimensions_and_waves_in_part(path, together):
    device = Device(path, batch_waves=together)
    to = device.buffer("to", np.zeros(24 * 105, np.uint32), False)
    device.memory.set_buffers(device.buffers)
    device.machine.launch("ids", [4, 3, 2], [5, 3, 7], 0, [struct.pack("<Q", to)])
    found = device.read(to, np.uint32, 24 * 105).reshape(2, 3, 4, 7, 3, 5)
    k, j, i, z, y, x = np.indices(found.shape)
    assert (found == (x | y << 4 | z << 8 | i << 12 | j << 16 | k << 20)).all()
    assert int(device.memory.known.octets.sum()) == 4 * 24 * 105


# ---------------------------------------------------------------- bugs


def test_a_barrier_removed_is_a_race(path):
    with pytest.raises(ExecutionError) as caught:
        on_reverse(path, without(path, "reverse", "s_barrier"))
    message = str(caught.value)
    assert "race" in message and "kernel reverse" in message
    assert "ds_write_b32" in message and "ds_read_b32" in message
    assert "workgroup 0 of 4, wave" in message


def test_two_waves_that_write_one_place_are_a_race(path):
    device = Device(path)
    with pytest.raises(ExecutionError, match="race: wave 0 writes byte 0 of LDS, wave 1 writes it"):
        device.launch("same_place", 1, 256, device.buffer("to", np.zeros(256, np.int32)))


def test_lds_read_before_it_is_written(path):
    with pytest.raises(ExecutionError, match="LDS is read before it was written, at byte"):
        on_reverse(path, without(path, "reverse", "ds_write_b32"))


def launch_add(path, n, counts, patches=(), initialized=True):
    device = Device(path, patches=patches)
    places = [
        device.buffer(name, np.ones(count, np.float32), name == "c" or initialized)
        for name, count in zip("abc", counts)
    ]
    device.launch("add", (n + 255) // 256, 256, *places, n)
    return device.read(places[2], np.float32, n)


def test_ragged_sizes(path):
    for n in (1, 63, 64, 65, 255, 257, 1000):
        assert (launch_add(path, n, (n, n, n)) == 2).all()


def test_a_load_past_the_end(path):
    with pytest.raises(ExecutionError) as caught:
        launch_add(path, 1000, (1000, 990, 1000))
    message = str(caught.value)
    # 990 = 3 * 256 + 3 * 64 + 30.
    assert "workgroup 3 of 4, wave 3 of 4, lane 30" in message
    assert "0 bytes past the end of buffer b (3960 bytes)" in message
    assert "global_load_dword" in message and "operands" in message


def test_a_store_past_the_end(path):
    with pytest.raises(ExecutionError, match="writes 4 bytes at .*past the end of buffer c"):
        launch_add(path, 1000, (1000, 1000, 999))


def test_memory_read_before_it_is_written(path):
    with pytest.raises(ExecutionError, match="read before they were written: in buffer a"):
        launch_add(path, 1000, (1000, 1000, 1000), initialized=False)


def test_what_the_host_and_launches_wrote_may_be_read(path):
    device = Device(path)
    places = [device.buffer(name, np.ones(256, np.float32), False) for name in "abc"]
    with pytest.raises(ExecutionError):
        device.launch("add", 1, 256, *places, 256)
    device.memory.wrote(places[0], 1024)
    device.memory.wrote(places[1], 1020)
    with pytest.raises(ExecutionError, match="lane 63"):
        device.launch("add", 1, 256, *places, 256)
    device.memory.wrote(places[1] + 1020, 4)
    device.launch("add", 1, 256, *places, 256)
    device.launch("add", 1, 256, places[2], places[0], places[1], 256)
    assert (device.read(places[1], np.float32, 256) == 3).all()


@pytest.mark.parametrize("together", [1, 32])
@pytest.mark.parametrize(
    "distance, message",
    [(0, None), (1, "race: (reads|writes) 4 bytes at .* of which workgroup . (read|wrote) some")],
)
def test_workgroups_that_use_what_others_write(path, together, distance, message):
    """In place: each group reads what the next one writes, or only its own."""
    device = Device(path, batch_waves=together)
    place = device.buffer("place", np.arange(257, dtype=np.int32))
    other = device.buffer("other", np.zeros(1024, np.int32))

    def run(to):
        device.launch("neighbours", 4, 64, place, to, other, distance)

    if message:
        with pytest.raises(ExecutionError, match=message):
            run(place)
    else:
        run(place)
    run(device.buffer("elsewhere", np.zeros(256, np.int32)))  # and the next launch may read it all
    run(device.buffer("third", np.zeros(256, np.int32)))


@pytest.mark.parametrize("together", [1, 32])
def test_workgroups_that_write_one_place(path, together):
    device = Device(path, batch_waves=together)
    from_ = device.buffer("from", np.zeros(256, np.int32))
    with pytest.raises(ExecutionError, match="race: writes 4 bytes .*wrote some"):
        # The output of the second group begins before the end of the first one's.
        device.launch("shifted", 2, 64, from_)


def test_a_scalar_load_past_the_end(path):
    device = Device(path)
    place = device.buffer("place", np.arange(70, dtype=np.int32)[:66])
    other = device.buffer("other", np.zeros(4096, np.int32))
    with pytest.raises(ExecutionError, match=r"past the end of buffer place") as caught:
        device.launch("neighbours", 30, 1, place, other, other + 8192, 1)
    assert "load_dword" in str(caught.value)
    with pytest.raises(ExecutionError, match="below every buffer"):
        device.launch("neighbours", 1, 64, BASE + 64, place, place, 0)
    device.buffers.clear()
    with pytest.raises(ExecutionError, match="below every buffer"):
        device.launch("neighbours", 1, 64, place, place, place, 0)


def test_arguments_must_be_those_of_the_kernel(path):
    device = Device(path)
    with pytest.raises(ExecutionError, match="3 arguments instead of 4"):
        device.launch("add", 1, 256, BASE, BASE, BASE)
    with pytest.raises(ExecutionError, match="at most 1024"):
        device.launch("add", 1, 2048, BASE, BASE, BASE, 1)


def test_a_vector_register_read_before_it_is_written(path):
    # Without the load, its register holds nothing.
    with pytest.raises(ExecutionError) as caught:
        launch_add(path, 1000, (1000, 1000, 1000), without(path, "add", "global_load_dword"))
    assert "read before it was written" in str(caught.value) and "kernel add" in str(caught.value)
    assert "v_add_f32" in str(caught.value) or "v_pk_add_f32" in str(caught.value)


def test_a_scalar_register_read_before_it_is_written(path):
    with pytest.raises(ExecutionError, match=r"s\d+ is read before it was written"):
        launch_add(path, 1000, (1000, 1000, 1000), without(path, "add", "s_load_dwordx4"))


def test_an_unknown_instruction(path):
    offset, _ = place_of(path, "add", "v_add_f32")
    with pytest.raises(ExecutionError, match="unknown instruction 0xffffffff"):
        launch_add(path, 1000, (1000, 1000, 1000), [(offset, b"\xff\xff\xff\xff")])


def test_an_instruction_that_is_not_modelled(path):
    offset, _ = place_of(path, "add", "v_add_f32")
    with pytest.raises(ExecutionError, match=r"v_sin_f32.*\n(.*\n)*.*not modelled"):
        launch_add(path, 1000, (1000, 1000, 1000), [(offset, struct.pack("<I", 0x7E005300))])


@pytest.mark.parametrize(
    "kernel, before, message",
    [
        (
            "reverse",
            "ds_write_b32",
            "used before s_waitcnt covers the load into it:\n *global_load_dword",
        ),
        (
            "reverse",
            "s_barrier",
            "a barrier before s_waitcnt covers a write to LDS:\n *ds_write_b32",
        ),
        ("reverse", "global_store_dword", "covers the load into it:\n *ds_read_b32"),
        ("add", "v_cmp", "covers the load into it:\n *s_load_dword"),
    ],
)
def test_a_wait_removed(path, kernel, before, message):
    """Of the waits before an instruction the nearest."""
    listed = Device(path).instructions(kernel)
    index = next(one.index for one in listed if one.name.startswith(before))
    wait = max(
        (one for one in listed[:index] if one.name == "s_waitcnt"), key=lambda one: one.index
    )
    patches = [(wait.offset, S_NOP)]

    def run():
        if kernel == "reverse":
            on_reverse(path, patches)
        else:
            launch_add(path, 1000, (1000, 1000, 1000), patches)

    with pytest.raises(ExecutionError, match=message):
        run()


def test_a_loop_without_an_end(path, monkeypatch):
    monkeypatch.setattr(machine, "MOST_SEGMENTS", 1000)
    listed = Device(path).instructions("collatz")
    branch = max((one for one in listed if one.kind == "branch"), key=lambda one: one.index)
    device = Device(
        path, patches=[(branch.offset, bytes.fromhex("ffff82bf"))]
    )  # s_branch to itself
    values = np.full(256, 7, np.uint32)
    with pytest.raises(ExecutionError, match="and no end"):
        device.launch("collatz", 1, 256, device.buffer("from", values), device.buffer("to", values))


def test_an_lds_stride_changed(path):
    # The read's offset, of which the kernel knows 1020, becomes 1024: outside.
    offset, _ = place_of(path, "reverse", "ds_read_b32")
    with pytest.raises(ExecutionError, match="byte 1024 of LDS, which has 1024"):
        on_reverse(path, [(offset, struct.pack("<H", 1024))])


def test_scratch_memory_read_before_it_is_written(path):
    device = Device(path)
    stores = [one for one in device.instructions("places") if one.name.startswith("scratch_store")]
    device = Device(path, patches=[(one.offset, S_NOP * (one.size // 4)) for one in stores])
    values = np.arange(256, dtype=np.int32)
    with pytest.raises(ExecutionError, match="scratch memory is read before it was written"):
        device.launch("places", 1, 256, device.buffer("from", values), device.buffer("to", values))
