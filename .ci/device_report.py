# SPDX-License-Identifier: Apache-2.0
"""One row a kernel of what compilers say of it, checked against a table of expectations.

  device_report.py EXPECTATIONS DIR TARGET...

Reads DIR/TARGET-SOURCE.{s,log}: AMD's assembly with the resource remarks of clang, or PTX with those
of ptxas. The main loop of a kernel is its smallest loop with matrix instructions. For AMD's it also
prints the loop's roofline (see docs/gfx950.md).
"""
import collections
import pathlib
import re
import subprocess
import sys

MATRIX = re.compile(r"v_mfma\w*|wgmma\.mma_async|mma\.sync|wmma\.")
# Cycles of a SIMD.
MFMA_CYCLES = {"v_mfma_scale_f32_16x16x128_f8f6f4": 16, "v_mfma_i32_16x16x64_i8": 16,
               "v_mfma_i32_16x16x32_i8": 16}


def kernel_name(text):
    """KernelName<what tells it from its like>."""
    found = re.search(r"run_(?:group|body|grid)<(?:KokkosMX::Impl::RowKernel<)?"
                      r"KokkosMX::Impl::(?:(?:\(anonymous namespace\)|_GLOBAL__\w+)::)?"
                      r"(\w+)(?:<(.*))?", text)
    if not found:
        return None
    name, rest = found.group(1), found.group(2) or ""
    tile = re.match(r"KokkosMX::Impl::FragmentTile<(\d+), (\d+), (\d+), (\d+), (\d+), (\w+), (\d+)>",
                    rest)
    if tile:
        m, n = (16 * int(tile.group(1)) * int(tile.group(4)),
                16 * int(tile.group(2)) * int(tile.group(5)))
        name += f"<{m}x{n}>"
    formats = re.search(r"(BF16|F16|F32)Format", rest)
    if formats and name in ("QuantizeRow", "DequantizeRow"):
        name += f"<{formats.group(1)}>"
    forms = ("dense", "interleaved", "blocks")
    numbers = re.match(r"(\d+), \(KokkosMX::Impl::SliceForm\)(\d+)(, \w+)?>", rest)
    if numbers:
        name += "<{}x{}{}>".format(8 * int(numbers.group(1)), forms[int(numbers.group(2))],
                                   ",alone" if numbers.group(3) in (", true", ", 1") else "")
    flags = re.match(r"(true|false)(, (true|false))?>", rest)
    if flags:
        name += f"<{flags.group(0)}".replace(" ", "")
    return name


def demangle(names):
    out = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True,
                         check=True)
    return dict(zip(names, out.stdout.splitlines()))


def body_of(lines, symbol):
    """The lines of a function, from its label on."""
    start = next((i for i, line in enumerate(lines) if line.startswith(symbol + ":") or
                  (".entry" in line and symbol + "(" in line)), None)
    if start is None:
        return []
    depth = 0  # of PTX's braces, those of inline assembly included
    for end in range(start + 1, len(lines)):
        line = lines[end].strip()
        depth += line.startswith("{") - line.startswith("}") - line.endswith("; }")
        if line.startswith(".Lfunc_end") or (line.startswith("}") and depth == 0):
            return lines[start:end]
    return lines[start:]


def instructions(lines):
    return [line.strip() for line in lines if re.match(r"\s*(@%?!?\S+\s+)?[a-z][\w.]+(\s|;|$)", line)]


def main_loop(lines):
    """The smallest loop with matrix instructions; all where there is none."""
    labels, best = {}, None
    for i, line in enumerate(lines):
        label = re.match(r"\s*(\.?\$?L\w+):", line)
        if label:
            labels[label.group(1)] = i
        branch = re.search(r"\b(?:s_c?branch\w*|bra(?:\.uni)?)\s+(\.?\$?L\w+)", line)
        if branch and branch.group(1) in labels:
            loop = lines[labels[branch.group(1)]:i + 1]
            if any(MATRIX.search(x) for x in loop) and (best is None or len(loop) < len(best)):
                best = loop
    return best


def read_hip(path):
    lines = path.with_suffix(".s").read_text().splitlines()
    kernels, current = {}, None
    for line in path.with_suffix(".log").read_text().splitlines():
        found = re.search(r"remark: \S*\s*(.*?): (\S+)", line)
        if not found:
            continue
        key, value = found.group(1).strip(), found.group(2)
        if key.endswith("Name"):
            current = kernels.setdefault(value, {})
        elif current is not None:
            if value.isdigit():
                current[key.split(" [")[0]] = int(value)
    for symbol, facts in kernels.items():
        yield symbol, {"registers": facts["VGPRs"], "scratch": facts["ScratchSize"],
                       "spills": facts["VGPRs Spill"], "scalar_spills": facts["SGPRs Spill"],
                       "occupancy": facts["Occupancy"]}, body_of(lines, symbol)


def registers_at_entry(body):
    """What setmaxnreg counts on: a block's registers are all that its number of threads allows."""
    if not any("setmaxnreg" in line for line in body):
        return None
    threads = next(int(re.search(r"\d+", line).group()) for line in body if ".maxntid" in line)
    return 65536 // threads // 8 * 8


def read_cuda(path):
    lines = path.with_suffix(".s").read_text().splitlines()
    symbol, facts = None, {}
    for line in path.with_suffix(".log").read_text().splitlines():
        entry = re.search(r"Compiling entry function '(\S+)'", line)
        if entry:
            symbol = entry.group(1)
        stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes", line)
        if stack:
            facts = {"scratch": int(stack.group(1)), "spills": int(stack.group(2))}
        used = re.search(r"Used (\d+) registers", line)
        if used and symbol:
            registers = int(used.group(1))
            facts.update(registers=registers, scalar_spills=0,
                         occupancy=min(16, 65536 // (128 * max(registers, 1))))
            body = body_of(lines, symbol)
            facts.update(expected_registers=registers_at_entry(body))
            yield symbol, facts, body
            symbol = None


def count(lines, pattern):
    return sum(1 for line in lines if re.search(pattern, line))


def roofline(loop, waves, together):
    """Cycles of a compute unit for one turn of the loop by all waves of `together` groups."""
    per_simd = waves * together / 4
    code = instructions(loop)
    mfma = sum(cycles * count(code, name) for name, cycles in MFMA_CYCLES.items())
    wide = count(code, r"^global_load_dwordx4") * 1024
    narrow = count(code, r"^global_load_dword\b") * 256
    lds = count(code, r"^ds_(read|write)_b128") * 1024 + count(code, r"^ds_(read|write)_b64") * 512
    # A SIMD issues one instruction of a wave in 4 cycles, and of several waves one of each kind:
    # vector and matrix instructions wait for one another, the rest does not.
    vector = count(code, r"^v_")
    return {"mfma": mfma * per_simd, "issue": max(4 * len(code), 4 * vector * per_simd),
            "lds": lds * waves * together / 128, "l2": (wide + narrow) * waves * together / 64}


def main():
    expectations, folder, targets = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:]
    rows = []
    for line in pathlib.Path(expectations).read_text().splitlines():
        fields = line.split("#")[0].split()
        if fields:
            rows.append(dict(zip(("targets", "kernel", "occupancy", "matrix", "loads", "waves",
                                  "together", "scratch", "spills"), fields + ["0"] * (9 - len(fields))),
                             used=set()))
    print(f"{'target':8} {'kernel':28} {'registers':>9} {'scratch':>7} {'spills':>6} "
          f"{'scalar':>6} {'waves/SIMD':>10} {'matrix':>6} {'16 B loads':>10}")
    failures, rooflines, seen = [], [], set()
    for target in targets:
        found = []
        for log in sorted(folder.glob(f"{target}-*.log")):
            read = read_hip if target.startswith("gfx") else read_cuda
            found += list(read(log.with_suffix("")))
        names = demangle([symbol for symbol, _, _ in found])
        for symbol, facts, body in found:
            name = kernel_name(names[symbol])
            if name is None:
                continue
            loop = main_loop(body)
            where = instructions(loop if loop is not None else body)
            matrix = count(where, MATRIX.pattern)
            loads = count(where, r"^(global|flat)_load_dwordx4|ld\.(global|shared)\S*\.v4\.(b|u|f)32|"
                                 r"cp\.async")
            row = next((r for r in rows if re.fullmatch(r["targets"], target) and
                        re.fullmatch(r["kernel"], name)), None)
            text = (f"{target:8} {name:28} {facts['registers']:9} {facts['scratch']:7} "
                    f"{facts['spills']:6} {facts['scalar_spills']:6} {facts['occupancy']:10} "
                    f"{matrix:6} {loads:10}")
            if (target, text) not in seen:
                print(text)
                seen.add((target, text))
            if row is None:
                failures.append(f"{target} {name}: no row of {expectations}")
                continue
            row["used"].add(target)
            for what, bad in (("scratch memory", facts["scratch"] > int(row["scratch"])),
                              ("spills", facts["spills"] > int(row["spills"])),
                              ("occupancy", facts["occupancy"] < int(row["occupancy"])),
                              ("matrix instructions", matrix < int(row["matrix"])),
                              ("16-byte loads", loads < int(row["loads"])),
                              ("registers that setmaxnreg counts on",
                               facts.get("expected_registers") not in (None, facts["registers"]))):
                if bad:
                    failures.append(f"{target} {name}: {what}")
            if target.startswith("gfx") and matrix > 0 and loop is not None:
                rooflines.append((target, name, roofline(loop, int(row["waves"]),
                                                         int(row["together"]))))
    for row in rows:
        for target in targets:
            if re.fullmatch(row["targets"], target) and target not in row["used"]:
                failures.append(f"{target} {row['kernel']}: expected, not compiled")
    print("\nComputed, not measured: cycles of a compute unit for one turn of the main loop")
    print(f"{'target':8} {'kernel':28} {'MFMA':>6} {'issue':>6} {'LDS':>6} {'L2':>6}  MFMA share")
    for target, name, cycles in dict.fromkeys(
            (t, n, tuple(c.items())) for t, n, c in rooflines):
        c = dict(cycles)
        share = c["mfma"] / max(c.values())
        print(f"{target:8} {name:28} {c['mfma']:6.0f} {c['issue']:6.0f} {c['lds']:6.0f} "
              f"{c['l2']:6.0f}  {100 * share:.0f}%")
        if name == "FragmentKernel<256x128>" and target == "gfx950" and share < 0.8:
            failures.append(f"{target} {name}: MFMA share {share:.2f}")
    for failure in failures:
        print(f"device: FAILED {failure}")
    print(f"device: {len(seen)} kernels for {' '.join(targets)}, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
