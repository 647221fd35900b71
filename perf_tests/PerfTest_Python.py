# SPDX-License-Identifier: Apache-2.0
"""What Python costs: custom_kernel on the six timed leaderboard shapes, beside C++ and PyTorch.

    python perf_tests/PerfTest_Python.py [PerfTest_Leaderboard] [--seconds S] [--rounds R]

In R rounds the leaderboard's program, C++, and a process of Python take turns; the latter measures
kokkosmx.reference.custom_kernel, PyTorch's float32 matmul of the same shape, and the overhead of
calls that have nothing to do. Each figure is the least of the rounds' medians, so that neighbours on
a shared machine weigh on all alike. Set OMP_NUM_THREADS, OMP_PROC_BIND=spread and
OMP_PLACES=threads, as for the leaderboard.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time

SHAPES = [
    (4, 2880, 512),
    (16, 2112, 7168),
    (32, 4096, 512),
    (32, 2880, 512),
    (64, 7168, 2048),
    (256, 3072, 1536),
]


def medians(things: list, seconds: float) -> list:
    """Median seconds of one call of each; they take turns of 10 ms, the first call of a turn is free."""
    samples: list = [[] for _ in things]
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds * len(things) or len(samples[-1]) < 3:
        for thing, times in zip(things, samples):
            thing()
            spent = 0.0
            while spent < 0.01:
                start = time.perf_counter()
                thing()
                times.append(time.perf_counter() - start)
                spent += times[-1]
    return [statistics.median(times) for times in samples]


def leaderboard(program: str, seconds: float) -> dict:
    """Whole jobs of the C++ program, in microseconds, by shape."""
    done = subprocess.run(
        [program, "--seconds", str(seconds)], check=True, capture_output=True, text=True
    )
    times = {}
    for line in done.stdout.splitlines():
        fields = line.split()
        if len(fields) > 5 and all(field.isdigit() for field in fields[:3]):
            times[tuple(map(int, fields[:3]))] = float(fields[5])
    return times


def overheads(seconds: float) -> dict:
    """Calls without work: operands without rows, so that all that is left is Python's part."""
    import torch

    import kokkosmx
    from kokkosmx import rules

    empty, some = torch.empty(0, 64), torch.zeros(64, 64)
    codes = torch.empty(0, 32, dtype=torch.uint8), torch.empty(0, 2, dtype=torch.uint8)
    out, array = torch.empty(0, 64), empty.numpy()
    rule = rules.reference
    calls = {
        "custom_kernel((A, B))": lambda: kokkosmx.reference.custom_kernel((empty, some)),
        "quantize_gemm(A, B, out=C)": lambda: kokkosmx.quantize_gemm(empty, some, out=out, **rule),
        "quantize(x)": lambda: kokkosmx.quantize(empty, **rule),
        "quantize(x, out=...)": lambda: kokkosmx.quantize(empty, out=codes, **rule),
        "quantize(x) of NumPy": lambda: kokkosmx.quantize(array, **rule),
        "torch.empty((0, 64))": lambda: torch.empty((0, 64)),
        "an empty lambda": lambda: None,
    }
    return dict(zip(calls, medians(list(calls.values()), seconds)))


def bell(rows: int, k: int, seed: int):
    """The leaderboard's kind of numbers: sums of eight random bytes."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(rows, k)
    for _ in range(8):
        x += torch.randint(0, 256, (rows, k), generator=generator)
    return ((x - 1020) / 256).bfloat16()


def measure(seconds: float) -> None:
    """One round of Python, as a line of JSON. In a process of its own: an OpenMP runtime that binds
    threads leaves this one on one core, and the programs that it would start as well."""
    import torch

    import kokkosmx

    about = (
        f"kokkosmx {kokkosmx.__version__}, atom {kokkosmx.atom()}, {kokkosmx.concurrency()} threads;"
        f" torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    shapes = []
    for m, n, k in SHAPES:
        a, b = bell(m, k, 1), bell(n, k, 2)
        x, y = a.float(), b.float()
        shapes.append(
            medians(
                [
                    lambda a=a, b=b: kokkosmx.reference.custom_kernel((a, b)),
                    lambda x=x, y=y: x @ y.T,
                ],
                seconds,
            )
        )
    print(json.dumps({"about": about, "overheads": overheads(seconds), "shapes": shapes}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("program", nargs="?", help="PerfTest_Leaderboard")
    parser.add_argument("--seconds", type=float, default=0.2, help="a round's for each thing")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", action="store_true", help="one round of Python, as JSON")
    options = parser.parse_args()
    if options.measure:
        measure(options.seconds)
        return

    cpp, python = [], []
    child = [sys.executable, __file__, "--measure", "--seconds", str(options.seconds)]
    for _ in range(options.rounds):
        if options.program:
            cpp.append(leaderboard(options.program, options.seconds))
        done = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True)
        python.append(json.loads(done.stdout))

    print(python[0]["about"])
    print("overhead of a call (no work):")
    for name in python[0]["overheads"]:
        print(f"  {name:28s} {1e6 * min(round_['overheads'][name] for round_ in python):7.2f} us")
    print(f"{'M':>5} {'N':>5} {'K':>5} {'Python us':>10} {'C++ us':>10} {'Py/C++':>7}", end="")
    print(f" {'torch f32 us':>13} {'torch/Py':>9}")
    ratios, to_torch = [], []
    for i, shape in enumerate(SHAPES):
        ours, theirs = (min(round_["shapes"][i][j] for round_ in python) for j in (0, 1))
        native = min((times[shape] for times in cpp), default=math.nan)
        ratios.append(1e6 * ours / native)
        to_torch.append(theirs / ours)
        print("{:5d} {:5d} {:5d}".format(*shape), end=" ")
        print(f"{1e6 * ours:10.1f} {native:10.1f} {ratios[-1]:7.3f}", end=" ")
        print(f"{1e6 * theirs:13.1f} {to_torch[-1]:9.2f}")
    mean = [math.exp(statistics.fmean(map(math.log, r))) for r in (ratios, to_torch)]
    print(f"geometric means: Python/C++ {mean[0]:.3f}, torch float32/Python {mean[1]:.2f}")


if __name__ == "__main__":
    main()
