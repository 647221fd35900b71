# SPDX-License-Identifier: Apache-2.0
"""What the package does to a process: OpenMP, forks, the end. Each test has its own."""

import os
import subprocess
import sys
import textwrap

import pytest
from conftest import needs_torch

PRELUDE = """
import numpy, kokkosmx, os, sys, time
from kokkosmx import rules
a, b = numpy.ones((8, 256), numpy.float32), numpy.ones((64, 256), numpy.float32)
def product():
    c = kokkosmx.quantize_gemm(a, b, **rules.reference)
    assert (c == 256).all()
"""


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


RUNTIMES = """
runtimes = sorted({line.split()[-1] for line in open("/proc/self/maps")
                   if any(name in line for name in ("libgomp", "libomp", "libiomp"))})
assert len(runtimes) == 1, runtimes
print(runtimes[0])
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="no /proc")
class TestOneOpenMP:
    def test_alone(self):
        run(PRELUDE + "product()\n" + RUNTIMES)

    @needs_torch
    @pytest.mark.parametrize("first, second", [("torch", "kokkosmx"), ("kokkosmx", "torch")])
    def test_beside_torch(self, first, second):
        code = f"import {first}\nimport {second}\n" + PRELUDE
        code += """
import torch
product()
x = torch.randn(512, 512)
x @ x
torch.nn.functional.softmax(torch.randn(1000, 1000), dim=1)
product()
"""
        done = run(code + RUNTIMES)
        assert os.path.join("torch", "lib") in done.stdout

    def test_a_runtime_of_its_own_without_torch(self):
        # Where PyTorch is not to be found, the package's own library serves.
        code = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoTorch())
"""
        done = run(code + PRELUDE + "product()\n" + RUNTIMES)
        assert os.path.join("kokkosmx", "lib", "libgomp.so.1") in done.stdout


def test_threads_follow_the_environment():
    for threads in ("1", "3"):
        run(
            PRELUDE + f"product()\nassert kokkosmx.concurrency() == {threads}",
            OMP_NUM_THREADS=threads,
        )


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="no /proc")
def test_kokkos_starts_with_the_first_call():
    run("""
import os
import kokkosmx
assert len(os.listdir("/proc/self/task")) == 1
kokkosmx.gemm
""")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
class TestForks:
    @pytest.mark.parametrize("before", ["", "product()"])
    def test_calls_work_in_a_child(self, before):
        code = f"""
{before}
pid = os.fork()
if pid == 0:
    for _ in range(20):
        product()
    grandchild = os.fork()
    if grandchild == 0:
        product()
        os._exit(0)
    os._exit(os.waitpid(grandchild, 0)[1])
assert os.waitpid(pid, 0)[1] == 0
product()
"""
        run(PRELUDE + code)

    def test_a_child_that_leaves_by_the_door(self):
        run(
            PRELUDE
            + """
product()
pid = os.fork()
if pid == 0:
    product()
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
product()
"""
        )

    def test_multiprocessing(self):
        run(
            PRELUDE
            + """
import multiprocessing
def work(i):
    product()
    return i
product()
with multiprocessing.get_context("fork").Pool(3) as pool:
    assert pool.map(work, range(12)) == list(range(12))
product()
"""
        )

    def test_errors_reach_the_child(self):
        run(
            PRELUDE
            + """
product()
pid = os.fork()
if pid == 0:
    try:
        kokkosmx.quantize_gemm(a, b[:, :128], **rules.reference)
    except ValueError as error:
        os._exit("same K" not in str(error))
    os._exit(2)
assert os.waitpid(pid, 0)[1] == 0
"""
        )


class TestEnds:
    def test_while_threads_run(self):
        """Daemon threads may be inside a call when the interpreter ends."""
        run(
            PRELUDE
            + """
import threading
def work():
    while True:
        product()
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.3)
"""
        )

    def test_with_prepared_operands_alive(self):
        run(
            PRELUDE
            + """
import builtins
builtins.kept = kokkosmx.prepare(b, **rules.reference)
product()
"""
        )

    def test_calls_after_the_end(self):
        done = run(
            """
import atexit
def late():
    try:
        product()
    except RuntimeError as error:
        print(error)
atexit.register(late)
"""
            + PRELUDE
            + "product()\n"
        )
        assert "shutting down" in done.stdout

    def test_import_alone(self):
        run("import kokkosmx")


def test_an_atom_that_cannot_run_is_told():
    done = run(
        PRELUDE
        + """
try:
    product()
except RuntimeError as error:
    print(error)
""",
        KOKKOSMX_ATOM="unknown",
    )
    assert "these can: portable" in done.stdout
