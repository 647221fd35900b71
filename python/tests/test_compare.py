# SPDX-License-Identifier: Apache-2.0
"""compare() finds what is wrong with a kernel, and excuses what is not."""

import subprocess
import sys

import numpy
import pytest
from conftest import bell, bf16_bits, bf16_values

import kokkosmx
from kokkosmx import NonFinite, Rounding, ScaleMode, Verdict, rules

M, N, K = 16, 96, 512


def operands(outliers=None):
    return bf16_values(bell(M, K, 11, outliers)), bf16_values(bell(N, K, 13, outliers))


def test_one_flipped_bit_in_a_certified_output():
    a, b = operands()
    c = kokkosmx.reference.custom_kernel((a, b))
    assert kokkosmx.compare(a, b, c).equal
    c.view(numpy.uint32)[7, 41] ^= 1
    verdict = kokkosmx.compare(a, b, c)
    assert not verdict.equal and not verdict.excusable and not verdict
    assert verdict.counts[Verdict.certified_differs] == 1
    (difference,) = verdict.differences
    assert difference.index == (7, 41) and difference.ulps == 1 and difference.certified
    assert difference.given == c[7, 41] and "C[7, 41]" in str(verdict)
    # In the operands' own type as well.
    bits = bf16_bits(kokkosmx.reference.custom_kernel((a, b)))
    bits[3, 2] ^= 1
    verdict = kokkosmx.compare(a, b, bits, uint16_as=kokkosmx.DType.bfloat16)
    assert [d.index for d in verdict.differences] == [(3, 2)] and not verdict


def test_ties_up_instead_of_nearest_even():
    a, b = operands()
    c = kokkosmx.quantize_gemm(
        a, b, mode=ScaleMode.even, rounding=Rounding.ties_up, non_finite=NonFinite.ocp
    )
    verdict = kokkosmx.compare(a, b, c, **rules.quark_even)
    assert not verdict.excusable
    assert any("even" in text and "ties_up" in text for text in verdict.explanations)
    assert kokkosmx.compare(a, b, c, **rules.reference).equal


def test_the_last_block_of_k_is_ignored():
    a, b = operands()
    c = kokkosmx.quantize_gemm(a[:, : K - 32], b[:, : K - 32], **rules.reference)
    verdict = kokkosmx.compare(a, b, c)
    assert not verdict.excusable
    assert verdict.explanations == ["the last block of K is left out"]


@pytest.mark.parametrize("whose", ["A", "B"])
def test_scales_shuffled_twice(whose):
    a, b = operands()
    # Scales that lie about: with equal ones the order of scales means nothing.
    spread = numpy.exp2(numpy.arange(K) // 32 % 5).astype(numpy.float32)
    a, b = a * spread, b * spread
    q = {"A": kokkosmx.quantize(a, **rules.rceil), "B": kokkosmx.quantize(b, **rules.rceil)}
    codes, scales = q[whose]
    rows, cols = scales.shape
    twice = kokkosmx.unshuffle_scale(
        kokkosmx.shuffle_scale(kokkosmx.shuffle_scale(scales)[:rows, :cols]), rows=rows, cols=cols
    )
    c = kokkosmx.gemm(*({**q, whose: (codes, twice)}.values()))
    verdict = kokkosmx.compare(q["A"], q["B"], c)
    assert not verdict.excusable
    assert f"the scales of {whose} are shuffled twice" in verdict.explanations


def float32_sum(a, b, order):
    """A kernel with a float32 accumulator that takes the elements of K in this order."""
    x = kokkosmx.dequantize(kokkosmx.quantize(a, **rules.reference))[:, order]
    y = kokkosmx.dequantize(kokkosmx.quantize(b, **rules.reference))[:, order]
    c = numpy.zeros((len(x), len(y)), numpy.float32)
    for k in range(x.shape[1]):
        c += numpy.outer(x[:, k], y[:, k])
    return c


@pytest.mark.parametrize("outliers", [9, 20, 30])
def test_another_order_is_excused_on_outliers(outliers):
    a, b = operands(outliers)
    orders = [range(K), range(K)[::-1], numpy.random.default_rng(5).permutation(K)]
    found = 0
    for order in orders:
        verdict = kokkosmx.compare(a, b, float32_sum(a, b, order))
        assert verdict.excusable, str(verdict)
        assert verdict.counts[Verdict.within_bound] + verdict.counts[Verdict.equal] == M * N
        found += verdict.counts[Verdict.within_bound]
        assert all(0 < abs(d.given - d.exact) <= d.bound * 1.001 for d in verdict.differences)
    if outliers > 9:
        assert found > 0
    # Without outliers every order is exact, so nothing has to be excused.
    a, b = operands()
    assert all(kokkosmx.compare(a, b, float32_sum(a, b, order)).equal for order in orders)


def test_an_error_beyond_the_bound():
    a, b = operands(20)
    c = float32_sum(a, b, range(K))
    first = kokkosmx.compare(a, b, c, limit=M * N)
    worst = max(first.differences, key=lambda d: d.bound)
    c[worst.index] = worst.exact + 3 * worst.bound
    verdict = kokkosmx.compare(a, b, c)
    assert not verdict.excusable and verdict.counts[Verdict.beyond_bound] == 1
    assert verdict.differences[-1].index == worst.index


def test_nan_and_batches():
    a, b = operands()
    a, b = numpy.stack([a, 2 * a]), b
    c = kokkosmx.quantize_gemm(a, b, **rules.reference)
    assert kokkosmx.compare(a, b, c).equal
    c[1, 2, 3] = numpy.nan
    verdict = kokkosmx.compare(a, b, c)
    assert verdict.counts[Verdict.nan_differs] == 1 and not verdict
    assert verdict.differences[0].index == (1, 2, 3)
    assert verdict.outputs == 2 * M * N


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "kokkosmx", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_command(tmp_path):
    a, b = bell(M, K, 11), bell(N, K, 13)
    c = kokkosmx.quantize_gemm(a, b, uint16_as=kokkosmx.DType.bfloat16, **rules.reference)
    for name, x in (("a", a), ("b", b), ("c", c)):
        numpy.save(tmp_path / f"{name}.npy", x)
    files = [tmp_path / f"{name}.npy" for name in "abc"]
    good = run("compare", *files)
    assert good.returncode == 0 and "equal in all bits" in good.stdout, good.stderr
    c[5, 6] ^= 1
    numpy.save(files[2], c)
    bad = run("compare", *files)
    assert bad.returncode == 1 and "C[5, 6]" in bad.stdout and "NOT EXCUSABLE" in bad.stdout
    rounded = run("compare", *files, "--rounding", "nearest_even")
    assert rounded.returncode == 1 and rounded.stdout != bad.stdout
    numpy.save(files[2], c[:, :5])
    wrong = run("compare", *files)
    assert wrong.returncode == 2 and "(16, 5)" in wrong.stderr and wrong.stdout == ""
    assert run("compare", *files[:2], tmp_path / "none.npy").returncode == 2
