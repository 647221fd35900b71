# SPDX-License-Identifier: Apache-2.0
"""What was executed, merged over processes and printed as tables: python -m executor.report FILE...

Of every kernel the executor counts how often each instruction ran. The estimate of MI355X's time
is docs/gfx950.md's roofline over all that was executed, prologue and epilogue included; cycles
of a compute unit:

    MFMA   16 cycles of a SIMD an instruction, 4 SIMDs
    issue  4 cycles of a SIMD a vector or matrix instruction, 4 SIMDs
    LDS    (bytes read and written) / 128, and the conflicts' extra cycles
    L2     (bytes loaded and stored) / 64

Its MFMA share, MFMA / the largest of them, is the fraction of the matrix peak that remains where
nothing else limits: an estimate, of the problems that the tests run, which are small, and of tiers
that need no matrix unit. The last column is that of the launch with the largest share, without
conflicts.
"""

import collections
import json
import re
import sys

KINDS = ("salu", "valu", "lds", "vmem", "smem", "matrix", "branch", "wait")
BYTES = ("loaded", "stored", "scalar", "lds", "scratch")
LISTED = 40


def collect(runner):
    """A process' counts, for JSON."""
    kernels = {}
    for name, report in runner.reports.items():
        program = runner.program(name)
        counts = [0] * len(program.instructions)
        for segment in program.segments.values():
            for index in range(segment.first, segment.last):
                counts[index] += segment.runs
        extra = {}
        for index, (cycles, waves) in report.conflicts.items():
            if waves:
                extra[program.instructions[index].name] = extra.get(
                    program.instructions[index].name, 0
                ) + round(cycles / waves * counts[index])
        kernels[name] = {
            "launches": report.launches,
            "groups": report.groups,
            "waves": report.waves,
            "executed": counts,
            "kinds": [one.kind for one in program.instructions],
            "texts": [f"{one.offset:#x} {one.text}" for one in program.instructions],
            "bytes": dict(report.counts),
            "conflict_cycles": extra,
            "best": report.best,
        }
    for name in runner.kernels:
        if name not in kernels:
            kernels[name] = None
    return {"kernels": kernels}


def merge(files):
    """Kernels by name. One kernel may be compiled into several code objects: the texts tell them
    apart."""
    merged, never = {}, set()
    for path in files:
        with open(path) as file:
            loaded = json.load(file)["kernels"]
        for name, one in loaded.items():
            if one is None:
                never.add(name)
                continue
            key = (name, len(one["texts"]))
            if key not in merged:
                merged[key] = {
                    **one,
                    "bytes": collections.Counter(one["bytes"]),
                    "conflict_cycles": collections.Counter(one["conflict_cycles"]),
                }
                continue
            into = merged[key]
            for what in ("launches", "groups", "waves"):
                into[what] += one[what]
            into["executed"] = [a + b for a, b in zip(into["executed"], one["executed"])]
            into["best"] = max(
                into["best"], one["best"], key=lambda best: best["share"] if best else -1
            )
            into["bytes"].update(one["bytes"])
            into["conflict_cycles"].update(one["conflict_cycles"])
    launched = {name for name, _ in merged}
    return merged, sorted(never - launched)


def is_padding(text):
    """What compilers put between a kernel's end and the next one."""
    return re.search(r" (s_nop|s_code_end|s_endpgm)\(", text) is not None


def roofline(kinds, octets, conflicts):
    """Cycles of a compute unit, limit by limit."""
    return {
        "MFMA": 16 * kinds.get("matrix", 0) / 4,
        "issue": 4 * (kinds.get("valu", 0) + kinds.get("matrix", 0)) / 4,
        "LDS": octets.get("lds", 0) / 128 + conflicts,
        "L2": (octets.get("loaded", 0) + octets.get("stored", 0)) / 64,
    }


def summary(one):
    """Coverage and totals of a kernel. Padding after its last instruction does not count."""
    last = max(
        i for i, text in enumerate(one["texts"]) if not is_padding(text) or " s_endpgm(" in text
    )
    considered = range(last + 1)
    missed = [i for i in considered if not one["executed"][i] and not is_padding(one["texts"][i])]
    total = sum(1 for i in considered if not is_padding(one["texts"][i]))
    kinds = collections.Counter()
    for count, kind in zip(one["executed"], one["kinds"]):
        kinds[kind] += count
    conflicts = sum(one["conflict_cycles"].values())
    cycles = roofline(kinds, one["bytes"], conflicts)
    return {
        "covered": (total - len(missed)) / total,
        "missed": missed,
        "total": total,
        "kinds": kinds,
        "conflicts": conflicts,
        "cycles": cycles,
        "share": cycles["MFMA"] / max(max(cycles.values()), 1e-9),
    }


def short(name):
    """A kernel's name as the tables of docs/gfx950.md have it."""
    from .machine import demangled

    name = demangled(name)
    found = re.search(r"run_group<(.*)>\(", name)
    name = found.group(1) if found else name
    name = re.sub(r"KokkosMX::Impl::|\(anonymous namespace\)::", "", name)
    name = re.sub(
        r"RowKernel<(.*?)<PortableQuantizeAtom(?:, (\w+)Format)?> ?>", r"\1<\2>", name
    ).replace("<>", "")
    tile = re.search(r"FragmentKernel<FragmentTile<(\d+), (\d+), (\d+), (\d+), (\d+)", name)
    if tile:
        values = [int(tile.group(i)) for i in range(1, 6)]
        return f"FragmentKernel<{16 * values[0] * values[3]}x{16 * values[1] * values[4]}>"
    name = re.sub(r", \d+, \d+$", "", name)
    return re.sub(r"(GemmKernel|SelfCheck)<.*", r"\1", name)


def number(value):
    for suffix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def print_tables(merged, never, least=0.0):
    """Prints the tables; returns the kernels of which less than `least` was executed."""
    rows = sorted(
        ((short(name), one, summary(one)) for (name, _), one in merged.items()),
        key=lambda row: row[0],
    )
    print(
        "Executed on a CPU: wave instructions by kind, bytes, extra cycles of LDS bank conflicts\n"
    )
    print(
        "| kernel | launches | waves | covered | "
        + " | ".join(KINDS)
        + " | "
        + " | ".join(f"{what} bytes" for what in BYTES)
        + " | conflict cycles |"
    )
    print("|---" * (5 + len(KINDS) + len(BYTES)) + "|")
    for name, one, sums in rows:
        print(
            f"| {name} | {one['launches']} | {number(one['waves'])} | {100 * sums['covered']:.1f}% | "
            + " | ".join(number(sums["kinds"][kind]) for kind in KINDS)
            + " | "
            + " | ".join(number(one["bytes"].get(what, 0)) for what in BYTES)
            + f" | {number(sums['conflicts'])} |"
        )
    print(
        "\nEstimate, not measured: cycles of a compute unit of MI355X for all of it (see report.py)\n"
    )
    print(
        "| kernel | MFMA | issue | LDS | L2 | matrix instructions | estimated share of the matrix peak | of the "
        "best launch |"
    )
    print("|---" * 8 + "|")
    for name, one, sums in rows:
        if sums["kinds"]["matrix"]:
            executed = sum(sums["kinds"].values())
            print(
                f"| {name} | "
                + " | ".join(
                    number(sums["cycles"][what]) for what in ("MFMA", "issue", "LDS", "L2")
                )
                + f" | {100 * sums['kinds']['matrix'] / executed:.1f}% | {100 * sums['share']:.0f}%"
                + f" | {100 * one['best']['share']:.0f}% ({one['best']['label']}, {one['best']['groups']} groups) |"
            )
    print("\nNot executed\n")
    failed = []
    for name, one, sums in rows:
        if sums["covered"] < least:
            failed.append(name)
        if not sums["missed"]:
            continue
        print(f"{name}: {len(sums['missed'])} of {sums['total']} instructions")
        for index in sums["missed"][:LISTED]:
            print(f"    {one['texts'][index]}")
        if len(sums["missed"]) > LISTED:
            print(f"    and {len(sums['missed']) - LISTED} more")
    for name in never:
        print(f"{short(name)}: never launched")
    return failed


def main(arguments):
    least = 0.0
    if arguments and arguments[0].startswith("--least="):
        least = float(arguments.pop(0).split("=")[1])
    if not arguments:
        print(__doc__)
        return 2
    failed = print_tables(*merge(arguments), least)
    for name in failed:
        print(f"{name}: less than {100 * least:.0f}% of its instructions were executed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
