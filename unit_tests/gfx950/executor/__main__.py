# SPDX-License-Identifier: Apache-2.0
"""The executor's process: one JSON object a line on stdin and stdout (see README.md)."""

import argparse
import json
import mmap
import sys
import traceback

import numpy as np

from . import machine, matrix, report
from .code_object import CodeObject


def main():
    parser = argparse.ArgumentParser(prog="executor", description=__doc__)
    parser.add_argument("--arena", required=True, help="file in shared memory: device memory")
    parser.add_argument("--base", required=True, type=lambda text: int(text, 0), help="its address")
    parser.add_argument("--bytes", required=True, type=lambda text: int(text, 0))
    parser.add_argument("--code-object", required=True, nargs="+")
    parser.add_argument("--matrix", choices=matrix.ORDERS, default="ascending")
    parser.add_argument("--report")
    parser.add_argument(
        "--patch",
        action="append",
        default=[],
        metavar="OFFSET=HEX",
        help="replaces machine code of the first code object: a bug made on purpose",
    )
    options = parser.parse_args()
    with open(options.arena, "r+b") as file:
        octets = np.frombuffer(mmap.mmap(file.fileno(), options.bytes), np.uint8)
    codes = [
        CodeObject(path, machine.CODE_BASE + i * machine.CODE_STEP)
        for i, path in enumerate(options.code_object)
    ]
    for patch in options.patch:
        offset, data = patch.split("=")
        codes[0].patch(int(offset, 0), bytes.fromhex(data))
    memory = machine.Memory(options.base, octets)
    runner = machine.Machine(memory, codes, options.matrix)
    answer(
        {
            "kernels": {
                name: {
                    "arguments": kernel.arguments,
                    "kernarg_bytes": kernel.kernarg_bytes,
                    "lds_bytes": kernel.lds_bytes,
                    "max_block": kernel.max_block,
                }
                for name, kernel in runner.kernels.items()
            }
        }
    )
    for line in sys.stdin:
        if not line.strip():
            continue
        request = json.loads(line)
        if "wrote" in request:
            memory.wrote(*request["wrote"])
            continue
        try:
            memory.set_buffers(request["buffers"])
            count = runner.launch(
                request["kernel"],
                request["grid"],
                request["block"],
                request["lds"],
                [bytes.fromhex(text) for text in request["arguments"]],
                request.get("label", ""),
            )
            answer({"ok": True, "instructions": count})
        except machine.ExecutionError as error:
            answer({"ok": False, "message": str(error)})
        except Exception:
            answer({"ok": False, "message": "the executor failed:\n" + traceback.format_exc()})
    if options.report:
        with open(options.report, "w") as file:
            json.dump(report.collect(runner), file)


def answer(message):
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
