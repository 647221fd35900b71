# SPDX-License-Identifier: Apache-2.0
"""python -m kokkosmx compare A.npy B.npy C.npy, python -m kokkosmx report model.safetensors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, Optional

import kokkosmx
from kokkosmx import DType, NonFinite, Rounding, ScaleMode, rules


def _load(path: str) -> Any:
    import numpy

    array = numpy.load(path, allow_pickle=False)
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        array = array.view(numpy.uint16)  # NumPy forgets the name of bfloat16
    return array


def _compare(options: argparse.Namespace) -> int:
    result = kokkosmx.compare(
        _load(options.a),
        _load(options.b),
        _load(options.c),
        mode=ScaleMode[options.mode],
        rounding=Rounding[options.rounding],
        non_finite=NonFinite[options.non_finite],
        limit=options.limit,
        uint16_as=DType[options.uint16_as],
    )
    print(result)
    return 0 if result.excusable else 1


def _report(options: argparse.Namespace) -> int:
    from kokkosmx import report

    weights = report.report(options.checkpoint, on_weight=report.print_weight)
    report.print_total(weights)
    if options.html:
        report.write_html(weights, options.checkpoint, options.html)
        print(f"written: {options.html}")
    return 0


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kokkosmx", description="Exact MXFP4.")
    parser.add_argument("--version", action="version", version=kokkosmx.__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    compare = commands.add_parser(
        "compare",
        help="the verdict on a kernel's output",
        description="Compares C with the exact product of A and B, all .npy files. Exits with 1 "
        "where a difference cannot be excused, with 2 on bad input.",
    )
    compare.add_argument("a", metavar="A.npy", help="(M, K): float32, float16, or uint16 bits")
    compare.add_argument("b", metavar="B.npy", help="(N, K)")
    compare.add_argument("c", metavar="C.npy", help="(M, N)")
    reference = rules.reference
    compare.add_argument("--mode", choices=[m.name for m in ScaleMode], default="even")
    compare.add_argument(
        "--rounding", choices=[r.name for r in Rounding], default=reference["rounding"].name
    )
    compare.add_argument(
        "--non-finite",
        choices=[n.name for n in NonFinite],
        help="default: reference where mode and rounding have it, else ocp",
    )
    compare.add_argument("--limit", type=int, default=5, help="differences shown of each kind")
    compare.add_argument(
        "--uint16-as", choices=["bfloat16", "float16"], default="bfloat16", help="default: bfloat16"
    )
    compare.set_defaults(run=_compare)

    report = commands.add_parser(
        "report",
        help="what MXFP4 does to the weights of a checkpoint",
        description="Needs numpy and safetensors, and matplotlib for --html: pip install "
        "'kokkosmx[html]'.",
    )
    report.add_argument("checkpoint", metavar="model.safetensors")
    report.add_argument("--html", metavar="FILE", help="draw it as well")
    report.set_defaults(run=_report)

    options = parser.parse_args(arguments)
    if options.command == "compare" and options.non_finite is None:
        is_reference = (options.mode, options.rounding) == ("even", "ties_up")
        options.non_finite = "reference" if is_reference else "ocp"
    try:
        return options.run(options)
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"python -m kokkosmx {options.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
