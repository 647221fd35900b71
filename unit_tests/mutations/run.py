#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Proves that the tests of the product would notice a wrong library.

Copies the sources, builds the library and Test_Gemm, and runs Test_Gemm's quick suites with each atom
that is mutated below: they have to pass. Then makes one mistake after the other in the copy, builds
the library again, and the same suites with the mistake's atom have to fail. A mistake is an exact
text that is replaced; a text that the sources do not hold exactly once is an error, so that the list
below keeps up with them. Mistakes in an atom that the machine cannot run are left out, and said so.

  unit_tests/mutations/run.py [--build DIR] [--work DIR]

--build is a configured build folder (build/release) whose compiler and Kokkos are used again.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Name, atom that runs the code, and (file, text, replacement) of every replacement.
MUTATIONS = [
    (
        "aligned tier: the certificate's constant doubled",
        "portable",
        [
            (
                "src/atoms/gemm/loops.hpp",
                "certificate_bits = 62;",
                "certificate_bits = 63;",
            )
        ],
    ),
    (
        "aligned tier: < 2^62 made <= 2^62",
        "portable",
        [
            (
                "src/gemm/exact_sum.hpp",
                "if (width > bits + 1) return false;",
                "if (width > bits + 2) return false;",
            ),
            (
                "src/gemm/exact_sum.hpp",
                "return bits >= 64 ? high == 0 : high == 0 && bottom >> bits == 0;",
                "return bits >= 64 ? high == 0 : high == 0 && (bottom - 1) >> bits == 0;",
            ),
        ],
    ),
    (
        "window tier: the certificate's constant doubled",
        "portable",
        [
            (
                "src/gemm/exact_sum.hpp",
                "a.spread + b.spread + sum_bits <= 63;",
                "a.spread + b.spread + sum_bits <= 64;",
            )
        ],
    ),
    (
        "wide tier: what lies below the last 64 bits is cut off",
        "portable",
        [
            (
                "src/gemm/exact_sum.hpp",
                "sticky = sticky || limb_[i] != 0;",
                "sticky = sticky || limb_[i] < 0;",
            )
        ],
    ),
    (
        "panel kernel: rows whose scales spread over one bit too many count as aligned",
        "avx2",
        [
            (
                "src/atoms/gemm/panel_atom.hpp",
                "state.aligned = state.aligned && state.spread[r * group_blocks] < band_width",
                "state.aligned = state.aligned && state.spread[r * group_blocks] <= band_width",
            )
        ],
    ),
    (
        "rough block: what is far begins one magnitude too late",
        "avx2",
        [
            (
                "src/atoms/gemm/panel_atom.hpp",
                "near_width ? 6 - 2 * (distance - band_width)",
                "near_width ? 7 - 2 * (distance - band_width)",
            )
        ],
    ),
    (
        "rough block: pieces by pieces without the columns that y has gathered",
        "avx2",
        [
            (
                "src/gemm/rough_block.hpp",
                "if (is_gathered || y_columns_->groups == 0) {",
                "if (is_gathered || y_columns_->groups >= 0) {",
            )
        ],
    ),
    (
        "rough block: the pieces of y are those of the tile before",
        "avx2",
        [
            (
                "src/gemm/rough_block.hpp",
                "    if (part.key == y_key) return;",
                "    if (part.key >= 0) return;",
            )
        ],
    ),
    (
        "panel atoms' loops: a sum above 64 bits is taken from its middle",
        "avx2",
        [
            (
                "src/atoms/gemm/panel_atom.hpp",
                "level[k] = top >= -limit && top < limit ? one : 2;",
                "level[k] = top >= -limit && top < limit ? one : 1;",
            )
        ],
    ),
    (
        "panel atoms' loops: ties rounded away from zero",
        "avx2",
        [
            (
                "src/atoms/gemm/panel_atom.hpp",
                "bits = (bits + 0x0FFFFFFFu + ((bits >> 29) & 1)) >> 29;",
                "bits = (bits + 0x10000000u) >> 29;",
            )
        ],
    ),
    (
        "codes unpacked between products: the last rows of a chunk are left out",
        "avx512vnni",
        [
            (
                "src/atoms/gemm/avx512.hpp",
                "while (left != 0) piece();",
                "while (left > 1) piece();",
            )
        ],
    ),
]

# What the copy needs of the sources, and the copy's build of the first one's cache.
SOURCES = ["CMakeLists.txt", "LICENSE", "cmake", "include", "src", "unit_tests"]
CACHED = ["CMAKE_CXX_COMPILER", "Kokkos_ROOT", "Kokkos_DIR", "GTest_DIR", "KokkosMX_WHEEL_DIR"]


def run(command, **arguments):
    return subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **arguments,
    )


def must_run(command):
    result = run(command)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{result.stdout}")


def cached_settings(build):
    cache = build / "CMakeCache.txt"
    if not cache.is_file():
        sys.exit(f"{build} is not a configured build folder: name one by --build")
    settings = []
    for line in cache.read_text().splitlines():
        match = re.match(r"(\w+):(\w+)=(.+)$", line)
        if match and match[1] in CACHED and not match[3].endswith("-NOTFOUND"):
            settings.append(f"-D{match[1]}:{match[2]}={match[3]}")
    return settings


def replaced(copy, replacements):
    """Applies the replacements; returns the files' texts before."""
    before = {}
    for name, text, replacement in replacements:
        path = copy / name
        content = path.read_text()
        before.setdefault(path, content)
        if content.count(text) != 1:
            sys.exit(f"{name} holds {content.count(text)} times, not once: {text}")
        path.write_text(content.replace(text, replacement))
    return before


SKIPPED = 77  # Test_Gemm's status where the machine lacks the atom


def failed_tests(test, atom, *arguments):
    """The names of the quick tests that fail with the atom, or that they did not end; None where it
    cannot run."""
    quick = [test, "--gtest_brief=1", "--gtest_filter=-*Full.*:*Full/*", *arguments]
    # Waiting threads leave the cores to others.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "KOKKOSMX_ATOM": atom}
    try:
        result = run(quick, timeout=300, env=environment)
    except subprocess.TimeoutExpired:
        return ["to end within 300 s"], ""
    if result.returncode == SKIPPED:
        return None, result.stdout
    failed = re.findall(r"^\[  FAILED  \] (\S+?),? .*\(\d+ ms\)$", result.stdout, re.MULTILINE)
    if (result.returncode == 0) != (not failed) or result.returncode not in (0, 1):
        sys.exit(f"Test_Gemm ended with {result.returncode}:\n{result.stdout[-4000:]}")
    return failed, result.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--work", type=pathlib.Path, help="where to copy and build")
    options = parser.parse_args()
    settings = cached_settings(options.build)
    work = options.work or pathlib.Path(tempfile.mkdtemp(prefix="kokkosmx-mutations-"))
    copy, build = work / "source", work / "build"
    try:
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir(parents=True)
        for name in SOURCES:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name)
            else:
                shutil.copy2(ROOT / name, copy / name)
        for _, _, replacements in MUTATIONS:  # the texts first: building takes a while
            for path, content in replaced(copy, replacements).items():
                path.write_text(content)
        start = time.monotonic()
        # Optimized enough to run, little enough to compile fast.
        must_run(
            ["cmake", "-S", copy, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Mutation"]
            + ["-DCMAKE_CXX_FLAGS=-O1", "-DKokkosMX_ENABLE_PERF_TESTS=OFF"]
            + settings
        )
        make = ["cmake", "--build", build, "--target", "kokkosmx_Test_Gemm"]
        test = build / "unit_tests" / "Test_Gemm"
        must_run(make)
        print(f"unchanged: built in {time.monotonic() - start:.0f} s", flush=True)
        cannot_run = set()
        for atom in sorted({atom for _, atom, _ in MUTATIONS}):
            start = time.monotonic()
            failed, output = failed_tests(test, atom)
            if failed is None:
                cannot_run.add(atom)
                print(f"unchanged, {atom}: not run, this machine cannot", flush=True)
            elif failed:
                sys.exit(f"the unchanged library fails: {', '.join(failed)}\n{output[-4000:]}")
            else:
                print(f"unchanged, {atom}: passed in {time.monotonic() - start:.0f} s", flush=True)
        mutations = [mutation for mutation in MUTATIONS if mutation[1] not in cannot_run]
        unnoticed = []
        for name, atom, replacements in mutations:
            start = time.monotonic()
            before = replaced(copy, replacements)
            must_run(make)
            failed, _ = failed_tests(test, atom, "--gtest_fail_fast")
            for path, content in before.items():
                path.write_text(content)
            verdict = f"fails {', '.join(failed)}" if failed else "NOT NOTICED"
            print(f"{name} ({atom}): {verdict} ({time.monotonic() - start:.0f} s)", flush=True)
            if not failed:
                unnoticed.append(name)
        if unnoticed:
            sys.exit(f"mutations: {len(unnoticed)} of {len(mutations)} not noticed")
        left_out = len(MUTATIONS) - len(mutations)
        print(
            f"mutations: {len(mutations)}/{len(mutations)} noticed"
            + (f", {left_out} left out" if left_out else "")
        )
    finally:
        if options.work is None:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
