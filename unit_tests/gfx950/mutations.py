#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Proves that the tests of gfx950's machine code notice what they should.

Makes one mistake after the other in a copy of the sources, compiles the source file whose kernels have
it, and runs a test with these kernels: it has to fail, and to say of which kernel, and, where one is to
blame, of which instruction. A mistake is an exact text that is replaced; a text that the sources do
not hold exactly once is an error, so that the list below keeps up with them. The same tests pass
without a mistake.

  unit_tests/gfx950/mutations.py [--only N] -- COMMAND...

COMMAND is .ci/gfx950.sh with its folders, whose step `build` has run.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]

GEMM = "src/gemm/gemm.cpp"
# Name, source file that is compiled, its header with the mistake, text, replacement, program, test, and
# what the output has to say.
MUTATIONS = [
    (
        "a barrier is removed",
        "src/quantize/quantize.cpp",
        "src/quantize/quantize.hpp",
        "    group.barrier();\n    if (rank < half)",
        "    if (rank < half)",
        "Test_Rows",
        "Summaries.*",
        [r"SummarizeRow", r"\brace\b", r"\bds_(read|write)"],
    ),
    (
        "the lanes' rows are off by one",
        GEMM,
        "src/atoms/gemm/mfma.hpp",
        "row_of_codes(int lane) { return lane % 16; }",
        "row_of_codes(int lane) { return (lane + 1) % 16; }",
        "Test_Products",
        "Tiles/Products.Certified/small2",
        [r"FragmentKernel<FragmentTile<1, 1, 8", r"differ, the first in row \d+, column \d+"],
    ),
    (
        "a stride of shared memory is one less",
        GEMM,
        "src/gemm/fragment_kernel.hpp",
        "SharedLimbs{scratch.limbs + thread, threads}",
        "SharedLimbs{scratch.limbs + thread, threads - 1}",
        "Test_Products",
        "Tiles/Products.WindowAndWide/middle1",
        [r"FragmentKernel", r"\brace\b", r"\bds_(read|write)"],
    ),
    (
        "rows past the end are loaded",
        GEMM,
        "src/gemm/fragment_kernel.hpp",
        "const int row = first + self.row < s.rows ? first + self.row : s.rows - 1;",
        "const int row = first + self.row;",
        "Test_Products",
        "Tiles/Products.Certified/middle1",
        [r"FragmentKernel", r"\bglobal_load", r"lane \d+"],
    ),
    (
        "the matrix unit takes the wrong byte of scales",
        GEMM,
        "src/gemm/fragment_kernel.hpp",
        "A::template multiply_add<2 * Half + i % 2, 2 * Half + j % 2>(",
        "A::template multiply_add<2 * Half, 2 * Half + j % 2>(",
        "Test_Products",
        "Tiles/Products.Certified/middle1",
        [r"FragmentKernel<FragmentTile<1, 1, 4", r"differ, the first in row \d+, column \d+"],
    ),
    (
        "nothing has to be certified",
        GEMM,
        "src/gemm/exact_sum.hpp",
        "         product_below(a.n, b.n, Atom::certificate_bits);",
        "         (product_below(a.n, b.n, Atom::certificate_bits) || true);",
        "Test_Products",
        "Tiles/Products.WindowAndWide/small2",
        [r"FragmentKernel", r"differ, the first in row \d+, column \d+"],
    ),
]


def run(command, **options):
    return subprocess.run(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )


def must_run(command):
    result = run(command)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{result.stdout}")


def check(tool, work, number):
    """Makes mistake `number` and runs its test. Returns a line, and what is wrong or nothing."""
    name, source, header, text, replacement, program, test, says = MUTATIONS[number]
    start = time.monotonic()
    tree = work / str(number)
    for folder in ("src", "include"):
        shutil.copytree(ROOT / folder, tree / folder)
    path = tree / header
    content = path.read_text()
    if content.count(text) != 1:
        sys.exit(f"{header} holds {content.count(text)} times, not once: {text}")
    path.write_text(content.replace(text, replacement))
    object_file = tree / (pathlib.Path(source).stem + ".o")
    must_run([*tool, "compile", tree, source, object_file])
    must_run([*tool, "link", tree / program, program, object_file])
    case = [f"mutation-{number}", program, test]
    unchanged = run([*tool, "case", *case])
    if unchanged.returncode != 0:
        return f"{name}: fails without the mistake", unchanged.stdout
    result = run([*tool, "case", *case], env={**os.environ, "program": str(tree / program)})
    lacking = [what for what in says if not re.search(what, result.stdout)]
    seconds = time.monotonic() - start
    if result.returncode == 0:
        return f"{name}: NOT NOTICED by {test} ({seconds:.0f} s)", result.stdout
    if lacking:
        return f"{name}: noticed by {test}, which does not say {lacking}", result.stdout
    # Where, and what: of the executor's message, or of the comparison's.
    lines = [line.strip() for line in result.stdout.splitlines()]
    told = [line for line in lines if re.match(r"at 0x|race:", line)]
    told = told or [line for line in lines if "differ, the first" in line][:1]
    return f"{name}: noticed by {test} ({seconds:.0f} s): {'; '.join(told[:2])}", None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=int, help="one mistake, by its number from 0 on")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    numbers = range(len(MUTATIONS)) if options.only is None else [options.only]
    work = pathlib.Path(tempfile.mkdtemp(prefix="kokkosmx-gfx950-"))
    bad = 0
    try:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for line, wrong in pool.map(lambda n: check(options.command, work, n), numbers):
                print(f"gfx950_mutations: {line}", flush=True)
                if wrong is not None:
                    print(wrong[-6000:], flush=True)
                    bad += 1
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"gfx950_mutations: {len(numbers) - bad}/{len(numbers)} noticed")
    sys.exit(bad != 0)


if __name__ == "__main__":
    main()
