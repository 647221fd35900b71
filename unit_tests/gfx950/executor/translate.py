# SPDX-License-Identifier: Apache-2.0
"""Translates a kernel's machine code into Python functions over numpy arrays.

A segment is a run of instructions without a jump into it, or a change of EXEC, but at its end. Each
becomes one function that works on all waves of a batch at once:

    v[r], vi[r], vf[r]   vector register r as uint32, int32, float32: (waves, 64); AGPRs from 256 on
    vl[r], vh[r]         its halves as uint16
    s[r], si[r], sf[r]   scalar register r: (waves,); s64[r] the pair from r
    sc[r], ...           the same as columns (waves, 1), as operands of vector instructions
    scc                  (waves,) bool
    em                   lanes that are on: (waves, 64) bool; in variant "mask" of active waves only
    aw                   active waves: (waves,) bool

Variants: "full": all lanes of all waves are on; "part": all waves, some lanes; "mask": some waves.

Most instructions come from AMD's pseudo-code (pcode.py); those of HAND and the methods hand_* are
modelled by hand and tested on their own (tests/test_instructions.py).
"""

import collections
import re

import numpy as np
from tinygrad.runtime.autogen.amd.cdna.str_pcode import PCODE

from .code_object import UnknownInstruction
from .pcode import DTYPES, Expression, Untranslatable, Value, translate
from .waits import Waits

VCC, M0, EXEC, SCC = 106, 124, 126, 128
VGPR, AGPR, REGISTERS = 256, 512, 768

INLINE_FLOATS = {
    240: 0.5,
    241: -0.5,
    242: 1.0,
    243: -1.0,
    244: 2.0,
    245: -2.0,
    246: 4.0,
    247: -4.0,
    248: 0.15915494309189532,
}


class Unsupported(Exception):
    """An instruction, or a way to use it, that is not modelled."""


class Instruction:
    """One decoded instruction: where it is, its base name, its kind for counting."""

    def __init__(self, index, offset, inst):
        self.index, self.offset, self.inst = index, offset, inst
        self.format = type(inst).__name__
        self.size = inst.size()
        if isinstance(inst, UnknownInstruction):
            self.name = "unknown"
        else:
            self.name = re.sub(r"_(e32|e64)$", "", inst.op.name.lower())
        # Registers; touched: also those of which single lanes are read or written.
        self.reads, self.writes, self.touched = (), (), ()

    @property
    def text(self):
        """The decoder's text, with CDNA's names where they differ from RDNA's."""
        result = repr(self.inst).replace("NULL", "M0")
        if self.format in ("GLOBAL", "SCRATCH"):
            result = result.replace("EXEC_HI", "off")
        if getattr(self.inst, "literal", None) is not None:
            result = result.replace("LIT", hex(self.inst.literal))
        return result

    @property
    def kind(self):
        if self.format.startswith("SOPP"):
            if self.name.startswith(("s_branch", "s_cbranch")):
                return "branch"
            return (
                "wait" if self.name in ("s_nop", "s_waitcnt", "s_barrier", "s_endpgm") else "salu"
            )
        if self.format.startswith("SOP"):
            return "salu"
        if self.format == "SMEM":
            return "smem"
        if self.format == "DS":
            return "lds"
        if self.format in ("GLOBAL", "FLAT", "SCRATCH", "MUBUF"):
            return "vmem"
        return "matrix" if "mfma" in self.name else "valu"

    def writes_exec(self):
        if self.name == "unknown" or self.format in ("DS", "GLOBAL", "FLAT", "SCRATCH", "SMEM"):
            return False
        if "saveexec" in self.name or "wrexec" in self.name or self.name.startswith("v_cmpx"):
            return True
        for field in ("sdst", "vdst"):
            if hasattr(self.inst, field) and getattr(self.inst, field).offset in (EXEC, EXEC + 1):
                return True
        return False


class Segment:
    def __init__(self, program, first, last):
        self.program, self.first, self.last = program, first, last
        self.end = program.instructions[last - 1]
        self.runs = 0
        self.kinds = collections.Counter(one.kind for one in program.instructions[first:last])
        # Whether it leaves queues of outstanding accesses alone that are empty.
        self.is_plain = not self.kinds.keys() & {"vmem", "lds", "smem"}
        self.reads = self.writes = None
        name = self.end.name
        self.kind = {"s_branch": "branch", "s_barrier": "barrier", "s_endpgm": "end"}.get(
            name, "next"
        )
        if name.startswith("s_cbranch"):
            self.kind = "choice"
        self.next = last
        self.target = None
        if self.kind in ("branch", "choice"):
            self.target = program.index_of(program.target(self.end))
        self.changes_exec = self.end.writes_exec()


class Program:
    """A kernel's instructions and segments; keeps the compiled functions' code."""

    def __init__(self, kernel):
        self.kernel = kernel
        listed = kernel.code.instructions(kernel)
        self.instructions = [
            Instruction(i, offset, inst) for i, (offset, inst) in enumerate(listed)
        ]
        self.places = {one.offset: one.index for one in self.instructions}
        self.constants = {}
        leaders = {0}
        for one in self.instructions:
            if one.kind == "branch":
                leaders.add(self.index_of(self.target(one)))
            if (
                one.kind == "branch"
                or one.name in ("s_barrier", "s_endpgm", "unknown")
                or one.writes_exec()
            ):
                leaders.add(one.index + 1)
        self.leaders = sorted(leader for leader in leaders if leader < len(self.instructions))
        ends = self.leaders[1:] + [len(self.instructions)]
        self.segments = {}
        self.bounds = dict(zip(self.leaders, ends))
        self.codes = {}
        self.waits = Waits(self)
        # LDS is watched in bytes where the kernel has instructions that access less than a dword.
        self.lds_granule = (
            1
            if any(
                one.kind == "lds" and re.search(r"_(b8|u8|i8|b16|u16|i16)", one.name)
                for one in self.instructions
            )
            else 4
        )

    def target(self, one):
        distance = one.inst.simm16
        return one.offset + 4 + 4 * (distance - 65536 if distance >= 32768 else distance)

    def index_of(self, offset):
        if offset not in self.places:
            raise Unsupported(f"a jump to {offset:#x}, where no instruction begins")
        return self.places[offset]

    def segment(self, index):
        found = self.segments.get(index)
        if found is None:
            found = self.segments[index] = Segment(self, index, self.bounds[index])
        return found

    def code(self, segment, variant, checked):
        key = (segment.first, variant, checked)
        found = self.codes.get(key)
        if found is None:
            source = Emitter(self, segment, variant, checked).source()
            place = f"<segment {segment.first} {variant} {'checked' if checked else ''}>"
            found = self.codes[key] = compile(source, place, "exec")
        return found


def by_hand(*names):
    def mark(method):
        for name in names:
            HAND[name] = method
        return method

    return mark


HAND = {}


class Emitter:
    """Writes the source of a segment's function."""

    def __init__(self, program, segment, variant, checked):
        self.program, self.segment, self.variant, self.checked = program, segment, variant, checked
        self.constants = program.constants
        self.lines, self.masks, self.count = [], {}, 0
        self.indexing = None
        self.em = "None" if variant == "full" else "em"

    def source(self):
        exposed, written = set(), set()
        self.written = written  # by earlier instructions of the segment
        for one in self.program.instructions[self.segment.first : self.segment.last]:
            self.reads, self.writes, self.lanes = set(), set(), set()
            self.one, self.inst = one, one.inst
            start = len(self.lines)
            try:
                self.emit()
            except (Untranslatable, Unsupported) as problem:
                del self.lines[start:]
                self.line(f"unsupported({one.index}, {str(problem)!r})")
            one.reads, one.writes = sorted(self.reads), sorted(self.writes)
            one.touched = self.reads | self.writes | self.lanes
            if self.checked:
                self.lines.insert(start, f"before({one.index})")
                self.line(f"after({one.index})")
            exposed |= self.reads - written
            written |= self.writes
        self.segment.reads = np.array(sorted(exposed), dtype=np.int64)
        self.segment.writes = np.array(sorted(written), dtype=np.int64)
        body = "".join(f"    {line}\n" for line in self.lines) or "    pass\n"
        return f"def run():\n{body}"

    def line(self, text):
        self.lines.append(text)

    def fresh(self):
        self.count += 1
        return f"t{self.count}"

    # ---------------------------------------------------------------- constants and operands

    def constant(self, kind, bits, value):
        dtype = np.dtype(DTYPES.get((kind, bits), "uint32"))
        if kind != "f":
            value %= 1 << bits
            if kind == "i" and value >= 1 << (bits - 1):
                value -= 1 << bits
        name = "k_" + re.sub(
            r"\W", "_", f"{dtype.name}_{value}".replace("-", "m").replace(".", "p")
        )
        self.constants[name] = dtype.type(value)
        return name

    def bits_constant(self, kind, bits, raw):
        """A constant of raw bits, seen as a number of that kind."""
        raw &= (1 << bits) - 1
        value = np.array([raw], dtype=f"uint{bits}").view(DTYPES[kind, bits])[0]
        name = f"r_{kind}{bits}_{raw:x}"
        self.constants[name] = value
        return name

    def encoded(self, encoding, kind, bits, acc=False):
        """Source of the operand with that 9-bit encoding (a VGPR from 256 on)."""
        literal = getattr(self.inst, "literal", None)
        if encoding >= 256:
            number = encoding - 256 + (256 if acc else 0)
            if self.indexing is not None:
                return self.indexed(number, kind, bits)
            self.reads.add(VGPR + number)
            if bits == 64:
                self.reads.add(VGPR + number + 1)
                pair = f"pair(v[{number}], v[{number + 1}])"
                return pair if kind == "u" else f"{pair}.view({DTYPES[kind, bits]})"
            if bits == 16:
                half = f"vl[{number}]"
                return half if kind == "u" else f"{half}.view({DTYPES[kind, bits]})"
            return f"{ {'u': 'v', 'i': 'vi', 'f': 'vf'}[kind] }[{number}]"
        if encoding < 128:
            return self.scalar(encoding, kind, bits)
        if 128 <= encoding <= 208:
            value = encoding - 128 if encoding <= 192 else 192 - encoding
            return self.bits_constant(kind, bits, value)
        if encoding in INLINE_FLOATS:
            if kind != "f" and bits != 32 and self.one.name not in ("v_mov_b64", "s_mov_b64"):
                raise Unsupported("a float constant as an integer operand")
            dtype = {16: np.float16, 32: np.float32, 64: np.float64}[bits]
            raw = int(np.array([INLINE_FLOATS[encoding]], dtype=dtype).view(f"uint{bits}")[0])
            return self.bits_constant(kind, bits, raw)
        if encoding == 255:
            if literal is None:
                raise Unsupported("a literal")
            if bits == 64:
                if kind == "f":
                    return self.bits_constant(kind, bits, literal << 32)
                if kind == "i" and literal >> 31:
                    literal |= 0xFFFFFFFF00000000
            return self.bits_constant(kind, bits, literal)
        if encoding == 253:
            self.reads.add(SCC)
            return "scc.astype(uint32)" + ("[:, None]" if self.is_vector else "")
        raise Unsupported(f"operand {encoding}")

    def scalar(self, number, kind, bits):
        if not (number <= 101 or number in (VCC, VCC + 1, M0, EXEC, EXEC + 1)):
            raise Unsupported(f"scalar register {number}")
        column = "c" if self.is_vector else ""
        self.reads.add(number)
        if bits == 64:
            if number % 2:
                raise Unsupported("an odd pair of scalar registers")
            self.reads.add(number + 1)
            code = f"s{column}64[{number}]"
            return code if kind == "u" else f"{code}.view({DTYPES[kind, bits]})"
        prefix = {"u": "s", "i": "si", "f": "sf"}[kind]
        prefix = ("sc" + prefix[1:]) if column else prefix
        if bits == 16:
            code = f"sc[{number}].astype(uint16)" if column else f"s[{number}].astype(uint16)"
            return code if kind == "u" else f"{code}.view({DTYPES[kind, bits]})"
        return f"{prefix}[{number}]"

    def indexed(self, number, kind, bits):
        if bits != 32 or self.one.name != "v_mov_b32":
            raise Unsupported("relative indexing other than of v_mov_b32")
        self.reads.add(M0)
        code = f"indexed({self.one.index}, {number}, {[r - VGPR for r in sorted(self.written) if r >= VGPR]})"
        return code if kind == "u" else f"{code}.view({DTYPES[kind, bits]})"

    def mask(self, number):
        """Source of the lane mask in a pair of scalar registers: (waves, 64) bool."""
        self.reads |= {number, number + 1}
        if number not in self.masks:
            name = self.fresh()
            self.line(f"{name} = unpack(s64[{number}])")
            self.masks[number] = name
        return self.masks[number]

    def modified(self, code, kind, position):
        """neg and abs of a float operand."""
        neg, absolute = self.modifiers(position)
        if (neg or absolute) and kind != "f":
            if self.one.name != "v_cndmask_b32":
                raise Unsupported("neg or abs of an integer")
            # It moves bits, but its operands are floats to the modifiers.
            if absolute:
                code = f"({code} & {self.constant('u', 32, 0x7FFFFFFF)})"
            return f"({code} ^ {self.constant('u', 32, 0x80000000)})" if neg else code
        if absolute:
            code = f"abs({code})"
        return f"(-{code})" if neg else code

    def modifiers(self, position):
        one = self.inst
        if self.one.format.startswith("VOP3P"):
            return (getattr(one, "neg", 0) >> position & 1) if self.one.format == "VOP3P" else 0, 0
        if hasattr(one, "neg"):
            if self.one.name.startswith("v_bitop3"):
                return 0, 0
            return one.neg >> position & 1, getattr(one, "abs", 0) >> position & 1
        if hasattr(one, "src0_neg") and position < 2:
            return (getattr(one, f"src{position}_neg"), getattr(one, f"src{position}_abs"))
        return 0, 0

    # ---------------------------------------------------------------- the scope of the pseudo-code

    def operand(self, name, kind, bits):
        if name in self.temporaries and (name not in ("SCC",) or name in self.assigned):
            return self.temporaries[name]
        if name + ":0" in self.temporaries and name + ":16" in self.temporaries:
            low, high = self.temporaries[name + ":0"].code, self.temporaries[name + ":16"].code
            return Value(f"({low}.astype(uint32) | ({high}.astype(uint32) << 16))", "u", 32)
        base, _, half = name.partition(":")
        if base == "LANE":
            if half in ("VCC", "VCCZ"):
                number = VCC if self.carry_in is None else self.carry_in
                return self.mask(number)
            raise Untranslatable(name)
        if base == "SCC":
            self.reads.add(SCC)
            return Value("scc", "B", 1)
        if base == "EXEC":
            self.reads |= {EXEC, EXEC + 1}
            return Value("s64[126]", "u", 64)
        if base in self.sources:
            kind = kind or "u"
            bits = bits or 32
            if half and not self.is_packed:
                return None
            if bits in (24, 1, 4, 8):
                if bits != 24:
                    raise Untranslatable(f"{name}.{kind}{bits}")
                code = self.sources[base](kind, 32, half)
                if kind == "u":
                    return f"({code} & {self.constant('u', 32, 0xFFFFFF)})"
                eight = self.constant("i", 32, 8)
                return f"(({code} << {eight}) >> {eight})"
            return self.sources[base](kind, bits, half)
        return None

    def assign(self, target, kind, bits, value):
        base = target.partition(":")[0]
        if base in ("tmp", "saveexec"):
            if ":" in target:
                value = Expression("0", self).reinterpret(value, kind, bits)
            name = self.fresh()
            code = value.code
            if re.fullmatch(r"\w+\[\d+\](\.view\(\w+\))?|scc", code):
                code += ".copy()"
            self.line(f"{name} = {code}")
            value = Value(name, value.kind, value.bits)
            self.temporaries[target] = value
            return
        if target == "LANE:D0" or target == "LANE:VCC":
            name = self.fresh()
            self.line(f"{name} = {value.code}")
            self.outputs.append((target, "B", 1, name))
            return
        if target == "SCC":
            value = Expression("0", self).condition(value)
        elif kind is None:
            if value.kind == "k":
                raise Untranslatable(f"{target} without a type")
            kind, bits = value.kind, value.bits
        else:
            helper = Expression("0", self)
            if value.kind == "B":
                value = helper.cast(value, kind, bits)
            elif (value.kind, value.bits) != (kind, bits):
                value = helper.reinterpret(value, kind, bits)
        name = self.fresh()
        self.line(f"{name} = {value.code}")
        value = Value(name, value.kind, value.bits)
        self.temporaries[target] = value
        self.assigned.add(target)
        self.outputs.append((target, value.kind, value.bits, name))

    # ---------------------------------------------------------------- results

    def put_scalar(self, number, kind, bits, code):
        if bits == 64:
            if number % 2:
                raise Unsupported("an odd pair of scalar registers")
            self.writes |= {number, number + 1}
            where, code = f"s64[{number}]", code if kind == "u" else f"{code}.view(uint64)"
        else:
            self.writes.add(number)
            where = f"s[{number}]"
            if (kind, bits) != ("u", 32):
                code = f"{code}.view(uint32)" if bits == 32 else f"{code}.astype(uint32)"
        if not (number <= 101 or number in (VCC, VCC + 1, M0, EXEC, EXEC + 1)):
            raise Unsupported(f"scalar register {number}")
        self.masks.pop(number & ~1, None)
        self.line(
            f"copyto({where}, {code}, where=aw)"
            if self.variant == "mask"
            else f"{where}[...] = {code}"
        )

    def put_scc(self, code):
        self.writes.add(SCC)
        self.line(
            f"copyto(scc, {code}, where=aw)" if self.variant == "mask" else f"scc[...] = {code}"
        )

    def put_mask(self, number, code):
        name = self.fresh()
        self.line(f"{name} = whole({code})" if self.variant == "full" else f"{name} = {code} & em")
        self.put_scalar(number, "u", 64, f"pack({name})")
        self.masks[number] = name

    def put_vector(self, number, kind, bits, code):
        if bits == 64:
            self.writes |= {VGPR + number, VGPR + number + 1}
            name = self.fresh()
            if kind != "u":
                code = f"{code}.view(uint64)"
            self.line(f"{name} = {code}")
            self.put_vector(number, "u", 32, f"{name}.astype(uint32)")
            self.put_vector(
                number + 1, "u", 32, f"({name} >> {self.constant('u', 64, 32)}).astype(uint32)"
            )
            return
        self.writes.add(VGPR + number)
        if bits == 32:
            where = f"{ {'u': 'v', 'i': 'vi', 'f': 'vf'}[kind] }[{number}]"
        else:
            where = f"v[{number}]"
            if kind != "u":
                code = f"{code}.view(uint{bits})"
        if self.variant == "full":
            self.line(f"{where}[...] = {code}")
        else:
            self.line(f"copyto({where}, {code}, where=em)")

    # ---------------------------------------------------------------- instructions

    def emit(self):
        one = self.one
        self.temporaries, self.assigned, self.outputs = {}, set(), []
        self.carry_in, self.is_packed, self.is_vector = None, False, False
        if one.name == "unknown":
            raise Unsupported("an unknown instruction")
        if one.format.startswith("SOPP"):
            self.program_flow()
        elif one.format.startswith("SOP"):
            self.scalar_operation()
        elif one.format == "SMEM":
            self.scalar_load()
        elif one.format == "DS":
            self.is_vector = True
            self.lds()
        elif one.format in ("GLOBAL", "SCRATCH"):
            self.is_vector = True
            self.vector_memory()
        elif one.format.startswith("VOP"):
            self.is_vector = True
            self.vector_operation()
        else:
            raise Unsupported(f"instructions of format {one.format}")

    def pseudo_code(self):
        text = PCODE.get(self.inst.op)
        if text is None:
            raise Unsupported("no pseudo-code")
        translate(text, self)

    def program_flow(self):
        name = self.one.name
        if name in (
            "s_nop",
            "s_branch",
            "s_barrier",
            "s_endpgm",
            "s_waitcnt",
            "s_sleep",
            "s_setprio",
        ):
            return
        if name == "s_set_gpr_idx_off":
            self.indexing = None
            return
        conditions = {
            "s_cbranch_scc0": ("~scc", SCC),
            "s_cbranch_scc1": ("scc", SCC),
            "s_cbranch_vccz": ("s64[106] == 0", VCC),
            "s_cbranch_vccnz": ("s64[106] != 0", VCC),
            "s_cbranch_execz": ("s64[126] == 0", EXEC),
            "s_cbranch_execnz": ("s64[126] != 0", EXEC),
        }
        if name not in conditions:
            raise Unsupported("not modelled")
        code, register = conditions[name]
        self.reads |= {register} if register == SCC else {register, register + 1}
        self.line(f"return {code}")

    def scalar_operation(self):
        one, inst = self.one, self.inst
        if one.name == "s_set_gpr_idx_on":
            # Bits of the raw second operand: which operands are indexed.
            if inst.ssrc1.offset != 1:
                raise Unsupported("relative indexing of operands other than the first source")
            low = self.encoded(inst.ssrc0.offset, "u", 32)
            self.put_scalar(M0, "u", 32, f"((s[124] & 0xffff0f00) | ({low} & 0xff) | 0x1000)")
            self.indexing = 1
            return
        destination = inst.sdst.offset if hasattr(inst, "sdst") else None
        if one.format.startswith("SOPK"):
            immediate = inst.simm16

            def imm(kind, bits, half):
                return self.bits_constant(
                    kind, bits, immediate if bits == 16 or immediate < 32768 else immediate - 65536
                )

            def register(kind, bits, half):
                return self.encoded(destination, kind, bits)

            if one.name.startswith("s_cmpk"):
                self.sources = {"S0": register, "S1": imm}
            else:
                self.sources = {"S0": imm, "D0": register}
            if one.format == "SOPK_LIT" or "getreg" in one.name or "setreg" in one.name:
                raise Unsupported("not modelled")
        else:
            self.sources = {}
            for i, field in enumerate(("ssrc0", "ssrc1")):
                if hasattr(inst, field):
                    encoding = getattr(inst, field).offset
                    self.sources[f"S{i}"] = lambda kind, bits, half, encoding=encoding: (
                        self.encoded(encoding, kind, bits)
                    )
        if one.name in HAND:
            HAND[one.name](self, destination)
            return
        self.pseudo_code()
        for target, kind, bits, code in self.outputs:
            if target == "D0":
                self.put_scalar(destination, kind, bits, code)
        for target, kind, bits, code in self.outputs:
            if target == "SCC":
                self.put_scc(code)
            elif target == "EXEC":
                self.put_scalar(EXEC, kind, bits, code)
            elif target != "D0":
                raise Untranslatable(target)

    def scalar_load(self):
        inst, name = self.inst, self.one.name
        match = re.fullmatch(r"s_load_dword(?:x(\d+))?", name)
        if not match or inst.soffset_en or not inst.imm or inst.nv:
            raise Unsupported("not modelled")
        count = int(match.group(1) or 1)
        base, destination = inst.sbase.offset, inst.sdata.offset
        offset = inst.offset - (1 << 21) if inst.offset >> 20 else inst.offset
        self.reads |= {base, base + 1}
        self.writes |= set(range(destination, destination + count))
        for number in range(destination, destination + count):
            self.masks.pop(number & ~1, None)
        self.line(
            f"scalar_load({self.one.index}, {base}, {offset}, {destination}, {count}, "
            f"{'aw' if self.variant == 'mask' else 'None'})"
        )

    def vector_operation(self):
        one, inst = self.one, self.inst
        name, form = one.name, one.format
        if "mfma" in name:
            self.matrix()
            return
        if form.endswith("_DPP16"):
            raise Unsupported("data-parallel primitives (DPP)")
        if getattr(inst, "omod", 0) and not name.startswith("v_bitop3"):
            raise Unsupported("output modifiers")
        sdwa = "_SDWA" in form
        opsel = getattr(inst, "opsel", 0)
        destination = inst.vdst.offset if hasattr(inst, "vdst") else None
        self.is_packed = form == "VOP3P"
        self.sources = {}
        for i, names in enumerate((("src0", "vsrc0"), ("src1", "vsrc1"), ("src2",))):
            field = next((f for f in names if hasattr(inst, f)), None)
            if field is None:
                continue
            encoding = getattr(inst, field).offset
            if sdwa:
                if i == 0:
                    encoding = (inst._raw >> 32 & 0xFF) + (0 if inst.s0 else 256)
                elif i == 1:
                    encoding = inst.vsrc1.offset - (256 if inst.s1 else 0)
                self.sources[f"S{i}"] = self.sdwa_source(encoding, i)
            elif self.is_packed:
                self.sources[f"S{i}"] = self.packed_source(encoding, i)
            else:
                self.sources[f"S{i}"] = self.plain_source(encoding, i, opsel)
        if destination is not None and destination >= 256:
            self.sources["D0"] = lambda kind, bits, half: self.encoded(destination, kind, bits)
        if "literal" in dir(inst):
            self.sources["SIMM32"] = lambda kind, bits, half: self.bits_constant(
                kind, bits, inst.literal
            )
        carries = re.search(r"_(addc|subb|subbrev)_co|cndmask|div_fmas", name)
        if carries and form == "VOP3SD" or name == "v_cndmask_b32" and form == "VOP3":
            self.carry_in = inst.src2.offset
            self.sources.pop("S2", None)
            if self.carry_in >= 128:
                raise Unsupported("a lane mask that is no scalar register")
        clamp = getattr(inst, "clmp", 0)
        key = name + "/clamp" if clamp else name
        if key in HAND:
            HAND[key](self, destination)
            if not self.outputs:
                return
        elif clamp:
            raise Unsupported("clamp")
        else:
            if opsel and not re.search(r"16", name):
                raise Unsupported("op_sel")
            self.pseudo_code()
        for target, kind, bits, code in self.outputs:
            if target in ("D0", "D"):
                if sdwa:
                    code, kind, bits = self.sdwa_result(code, kind, bits, destination - 256)
                elif bits == 16 and opsel & 8:
                    self.reads.add(destination)
                    low = f"(v[{destination - 256}] & {self.constant('u', 32, 0xFFFF)})"
                    code = f"({low} | ({code}.view(uint16).astype(uint32) << 16))"
                    kind, bits = "u", 32
                elif bits == 16 and name == "v_bitop3_b16":
                    # The upper half is kept, defined or not, as with other instructions with
                    # op_sel: compilers do not use it.
                    high = f"(v[{destination - 256}] & {self.constant('u', 32, 0xFFFF0000)})"
                    code, kind, bits = f"({high} | {code})", "u", 32
                self.put_vector(destination - 256, kind, bits, code)
        for target, _kind, _bits, code in self.outputs:
            if target == "LANE:D0":
                if form == "VOP3_SDST":
                    self.put_mask(destination, code)
                elif form == "VOPC_SDWA_SDST":
                    self.put_mask(inst.sdst.offset if inst.sd else VCC, code)
                else:
                    self.put_mask(VCC, code)
            elif target == "LANE:VCC":
                self.put_mask(inst.sdst.offset if form == "VOP3SD" else VCC, code)
            elif target not in ("D0", "D"):
                raise Untranslatable(target)

    def plain_source(self, encoding, position, opsel):
        def get(kind, bits, half):
            if bits == 16 and opsel >> position & 1:
                if encoding < 256:
                    raise Unsupported("the upper half of an operand that is no VGPR")
                self.reads.add(encoding)
                code = f"vh[{encoding - 256}]"
                code = code if kind == "u" else f"{code}.view({DTYPES[kind, bits]})"
            else:
                code = self.encoded(encoding, kind, bits)
            return self.modified(code, kind, position)

        return get

    def packed_source(self, encoding, position):
        inst = self.inst
        high = inst.opsel_hi2 if position == 2 else inst.opsel_hi >> position & 1
        low = inst.opsel >> position & 1
        if inst.neg or inst.neg_hi:
            raise Unsupported("neg of packed operands")

        def get(kind, bits, half):
            if half:
                upper = high if half == "16" else low
                if encoding >= 256:
                    self.reads.add(encoding)
                    code = f"{'vh' if upper else 'vl'}[{encoding - 256}]"
                else:
                    whole = self.encoded(encoding, "u", 32)
                    code = f"({whole} >> 16).astype(uint16)" if upper else f"{whole}.astype(uint16)"
                return code if kind == "u" else f"{code}.view({DTYPES[kind, 16]})"
            # The whole register, its halves placed as op_sel says.
            whole = self.encoded(encoding, "u", 32)
            if (low, high) != (0, 1):
                lower = (
                    f"({whole} >> 16)" if low else f"({whole} & {self.constant('u', 32, 0xFFFF)})"
                )
                upper = (
                    f"({whole} & {self.constant('u', 32, 0xFFFF0000)})"
                    if high
                    else f"({whole} << 16)"
                )
                whole = f"({lower} | {upper})"
            if (kind, bits) == ("u", 32):
                return whole
            raise Unsupported(f"a packed operand as {kind}{bits}")

        return get

    def sdwa_source(self, encoding, position):
        inst = self.inst
        select = getattr(inst, f"src{position}_sel")
        extend = getattr(inst, f"src{position}_sext")

        def get(kind, bits, half):
            if select == 6:
                if extend:
                    raise Unsupported("sext of a whole register")
                return self.modified(self.encoded(encoding, kind, bits), kind, position)
            if kind == "f":
                raise Unsupported("a selected float")
            whole = self.encoded(encoding, "u", 32)
            width, low = (8, 8 * select) if select < 4 else (16, 16 * (select - 4))
            up, down = 32 - width - low, 32 - width
            if extend:
                code = f"(({whole} << {self.constant('u', 32, up)}).view(int32) >> {self.constant('i', 32, down)})"
                code = code + ".view(uint32)"
            else:
                code = f"({whole} >> {self.constant('u', 32, low)})" if low else whole
                code = f"({code} & {self.constant('u', 32, (1 << width) - 1)})"
            if (kind, bits) == ("u", 32):
                return code
            if bits == 32:
                return f"{code}.view({DTYPES[kind, bits]})"
            if bits == 16:
                code = f"{code}.astype(uint16)"
                return code if kind == "u" else f"{code}.view(int16)"
            raise Unsupported(f"a selected operand of {bits} bits")

        return get

    def sdwa_result(self, code, kind, bits, destination):
        inst = self.inst
        if bits == 16:
            code, kind, bits = f"{code}.view(uint16).astype(uint32)", "u", 32
        if inst.dst_sel == 6:
            return code, kind, bits
        if kind == "f":
            raise Unsupported("a selected float")
        if kind == "i":
            code = f"{code}.view(uint32)"
        width, low = (8, 8 * inst.dst_sel) if inst.dst_sel < 4 else (16, 16 * (inst.dst_sel - 4))
        mask = (1 << width) - 1
        code = f"(({code} & {self.constant('u', 32, mask)}) << {self.constant('u', 32, low)})"
        if inst.dst_unused == 2:
            self.reads.add(VGPR + destination)
            code = f"({code} | (v[{destination}] & {self.constant('u', 32, ~(mask << low))}))"
        elif inst.dst_unused == 1:
            raise Unsupported("dst_unused: sign extension")
        return code, "u", 32

    # ---------------------------------------------------------------- memory

    def registers(self, first, count, acc):
        return [first - 256 + i + (256 if acc else 0) for i in range(count)]

    def vector_memory(self):
        inst, name, form = self.inst, self.one.name, self.one.format
        match = re.fullmatch(r"(global|scratch)_(load|store|atomic)_(\w+)", name)
        operation, what = match.group(2), match.group(3)
        if inst.sve and form == "GLOBAL":
            raise Unsupported("a load into LDS")
        sizes = {
            "dword": 4,
            "dwordx2": 8,
            "dwordx3": 12,
            "dwordx4": 16,
            "ubyte": 1,
            "ushort": 2,
            "byte": 1,
            "short": 2,
            "sbyte": 1,
            "sshort": 2,
            "byte_d16_hi": 1,
            "short_d16_hi": 2,
        }
        if operation == "atomic":
            if what not in ("add", "add_x2") or inst.sc0:
                raise Unsupported("not modelled")
            size = 8 if what.endswith("_x2") else 4
        elif what not in sizes or operation == "load" and "d16" in what:
            raise Unsupported("not modelled")
        else:
            size = sizes[what]
        offset = inst.offset - (1 << 13) if inst.offset >> 12 else inst.offset
        saddr = None if inst.saddr.offset == 0x7F else inst.saddr.offset  # 0x7F is "off" here
        address = inst.addr.offset - 256
        if form == "SCRATCH":
            if not inst.sve:
                address = None
            else:
                self.reads.add(VGPR + address)
            if saddr is not None:
                self.reads.add(saddr)
        elif saddr is None:
            self.reads |= {VGPR + address, VGPR + address + 1}
        else:
            self.reads |= {VGPR + address, saddr, saddr + 1}
        dwords = max(1, size // 4)
        if operation == "load":
            registers = self.registers(inst.vdst.offset, dwords, inst.acc)
            self.writes |= {VGPR + r for r in registers}
        else:
            registers = self.registers(inst.data.offset, dwords, inst.acc)
            self.reads |= {VGPR + r for r in registers}
        place = "scratch" if form == "SCRATCH" else "global"
        self.line(
            f"{place}_{operation}({self.one.index}, {address}, {saddr}, {offset}, {registers}, "
            f"{size}, {what!r}, {self.em})"
        )

    def lds(self):
        inst, name = self.inst, self.one.name
        if inst.gds:
            raise Unsupported("GDS")
        address = inst.addr.offset - 256
        self.reads.add(VGPR + address)
        pair = re.fullmatch(r"ds_(read|write)2(st64)?_b(32|64)", name)
        single = re.fullmatch(r"ds_(read|write)_([bui])(8|16|32|64|96|128)", name)
        atomic = re.fullmatch(r"ds_(add|or|and|max|min)_([bui])(32|64)", name)
        if pair:
            size = int(pair.group(3)) // 8
            step = size * (64 if pair.group(2) else 1)
            offsets, operation, signed = (
                [inst.offset0 * step, inst.offset1 * step],
                pair.group(1),
                False,
            )
        elif single:
            size, operation = int(single.group(3)) // 8, single.group(1)
            offsets, signed = [inst.offset0 | inst.offset1 << 8], single.group(2) == "i"
        elif atomic:
            size, operation = int(atomic.group(3)) // 8, "atomic"
            offsets, signed = [inst.offset0 | inst.offset1 << 8], atomic.group(2) == "i"
        else:
            raise Unsupported("not modelled")
        dwords = max(1, size // 4)
        if operation == "read":
            registers = self.registers(inst.vdst.offset, dwords * len(offsets), inst.acc)
            self.writes |= {VGPR + r for r in registers}
        else:
            registers = self.registers(inst.data0.offset, dwords, inst.acc)
            if pair:
                registers += self.registers(inst.data1.offset, dwords, inst.acc)
            self.reads |= {VGPR + r for r in registers}
        self.line(
            f"lds_{operation}({self.one.index}, {address}, {offsets}, {registers}, {size}, "
            f"{atomic.group(1) if atomic else 'none'!r}, {signed}, {self.em})"
        )

    # ---------------------------------------------------------------- modelled by hand

    def matrix(self):
        inst, name = self.inst, self.one.name
        acc = inst.acc

        def registers(reg, count, is_acc):
            if reg.offset < 256:
                raise Unsupported("a matrix operand that is no vector register")
            return self.registers(reg.offset, count, is_acc)

        if name == "v_mfma_i32_16x16x64_i8":
            if inst.cbsz or inst.abid or inst.blgp:
                raise Unsupported("cbsz, abid, blgp")
            a, b = registers(inst.src0, 4, acc & 1), registers(inst.src1, 4, acc >> 1 & 1)
            scales = ""
        elif name == "v_mfma_scale_f32_16x16x128_f8f6f4":
            if inst.cbsz != 4 or inst.blgp != 4:
                raise Unsupported("operands other than FP4")
            # Bit 0 of abid: the scales count.
            if inst.neg or inst.neg_hi or inst.abid != 1:
                raise Unsupported("neg, abid")
            a, b = registers(inst.src0, 4, acc & 1), registers(inst.src1, 4, acc >> 1 & 1)
            if inst.scale_src0 < 256 or inst.scale_src1 < 256:
                raise Unsupported(
                    "a scale operand that is no VGPR: the hardware reads other bits of it"
                )
            scale = [inst.scale_src0 - 256, inst.scale_src1 - 256]
            self.reads |= {VGPR + r for r in scale}
            byte = [(inst.opsel >> i & 1) + 2 * (inst.opsel_hi >> i & 1) for i in range(2)]
            scales = f", {scale}, {byte}"
        else:
            raise Unsupported("not modelled")
        d = self.registers(inst.vdst.offset, 4, inst.acc_cd)
        if inst.src2.offset >= 256:
            c = self.registers(inst.src2.offset, 4, inst.acc_cd)
            self.reads |= {VGPR + r for r in c}
        elif inst.src2.offset == 128:
            c = None
        else:
            raise Unsupported("an accumulator that is no register and not 0")
        self.reads |= {VGPR + r for r in a + b}
        self.writes |= {VGPR + r for r in d}
        kind = "scaled_fp4" if scales else "int8"
        early = [r - VGPR for r in sorted(self.reads) if r in self.written]
        late = [r - VGPR for r in sorted(self.reads) if r not in self.written]
        self.line(f"check_matrix({self.one.index}, {late}, {early})")
        self.line(
            f"matrix_{kind}({self.one.index}, {a}, {b}, {c}, {d}{scales}, "
            f"{'aw' if self.variant == 'mask' else 'None'})"
        )

    @by_hand("v_readlane_b32")
    def hand_readlane(self, destination):
        source, lane = self.inst.src0.offset - 256, self.inst.src1.offset
        self.lanes.add(VGPR + source)
        if lane < 128:
            lane = f"(s[{lane}] & 63).astype(int64)"
            self.reads.add(self.inst.src1.offset)
        else:
            lane = (lane - 128) & 63
        self.put_scalar(
            destination - 256 if destination >= 256 else destination,
            "u",
            32,
            f"read_lane({self.one.index}, {source}, {lane}, {VGPR + source in self.written})",
        )

    @by_hand("v_writelane_b32")
    def hand_writelane(self, destination):
        lane = self.inst.src1.offset
        self.is_vector = False
        self.lanes.add(destination)
        value = self.encoded(self.inst.src0.offset, "u", 32)
        if lane < 128:
            self.reads.add(lane)
            lane = f"(s[{lane}] & 63).astype(int64)"
        else:
            lane = (lane - 128) & 63
        self.line(
            f"write_lane({self.one.index}, {destination - 256}, {lane}, {value}, "
            f"{'aw' if self.variant == 'mask' else 'None'})"
        )

    @by_hand("v_readfirstlane_b32")
    def hand_readfirstlane(self, destination):
        source = self.inst.src0.offset
        if source < 256:
            raise Unsupported("readfirstlane of a scalar")
        self.reads.add(source)
        code = (
            f"v[{source - 256}][:, 0]"
            if self.variant == "full"
            else f"first_lane(v[{source - 256}], em)"
        )
        self.put_scalar(destination - 256 if destination >= 256 else destination, "u", 32, code)

    def result(self, code, kind="u", bits=32, target="D0"):
        name = self.fresh()
        self.line(f"{name} = {code}")
        self.outputs.append((target, kind, bits, name))
        return name

    def get(self, name, kind="u", bits=32):
        return self.sources[name](kind, bits, "")

    @by_hand("v_ffbh_u32")
    def hand_ffbh(self, destination):
        self.result(f"find_first_high({self.get('S0')})")

    @by_hand("v_bfrev_b32")
    def hand_bfrev(self, destination):
        self.result(f"reverse_bits({self.get('S0')})")

    @by_hand("v_mbcnt_lo_u32_b32")
    def hand_mbcnt_lo(self, destination):
        self.result(f"bitwise_count({self.get('S0')} & LOWER_LO).astype(uint32) + {self.get('S1')}")

    @by_hand("v_mbcnt_hi_u32_b32")
    def hand_mbcnt_hi(self, destination):
        self.result(f"bitwise_count({self.get('S0')} & LOWER_HI).astype(uint32) + {self.get('S1')}")

    @by_hand("v_perm_b32")
    def hand_perm(self, destination):
        self.result(f"byte_permute({self.get('S0')}, {self.get('S1')}, {self.get('S2')})")

    @by_hand("v_dot4_u32_u8")
    def hand_dot4(self, destination):
        x, y = self.get("S0"), self.get("S1")
        terms = [
            f"({x} >> uint32({at}) & uint32(255)) * ({y} >> uint32({at}) & uint32(255))"
            for at in (0, 8, 16, 24)
        ]
        self.result(" + ".join(terms) + f" + {self.get('S2')}")

    @by_hand("v_bitop3_b32", "v_bitop3_b16")
    def hand_bitop3(self, destination):
        bits = int(self.one.name[-2:])
        inst = self.inst
        table = inst.omod << 6 | inst.abs << 3 | inst.neg
        names = []
        for i in range(3):
            name = self.fresh()
            self.line(f"{name} = {self.get(f'S{i}', 'u', bits)}")
            names.append(name)
        inverted = bin(table).count("1") > 4
        terms = []
        for row in range(8):
            if (table >> row & 1) != inverted:
                terms.append(
                    "("
                    + " & ".join(("" if row >> (2 - i) & 1 else "~") + names[i] for i in range(3))
                    + ")"
                )
        code = " | ".join(terms) if terms else self.constant("u", bits, 0)
        self.result(f"~({code})" if inverted else code, "u", bits)

    @by_hand("v_mad_u64_u32")
    def hand_mad_u64(self, destination):
        a, b = (f"{self.get(name)}.astype(uint64)" for name in ("S0", "S1"))
        c = self.fresh()
        self.line(f"{c} = {self.get('S2', 'u', 64)}")
        d = self.result(f"{a} * {b} + {c}", "u", 64)
        self.result(f"{d} < {c}", "B", 1, "LANE:VCC")

    @by_hand("v_mad_i64_i32")
    def hand_mad_i64(self, destination):
        a, b = (f"{self.get(name, 'i')}.astype(int64)" for name in ("S0", "S1"))
        p, c = self.fresh(), self.fresh()
        self.line(f"{p} = {a} * {b}")
        self.line(f"{c} = {self.get('S2', 'i', 64)}")
        d = self.result(f"{p} + {c}", "i", 64)
        # Bit 64 of the sum: its sign, which is d's unless the sum overflowed.
        self.result(f"(((({p} ^ {d}) & ({c} ^ {d})) ^ {d}) < 0)", "B", 1, "LANE:VCC")

    @by_hand("v_mad_legacy_u16")
    def hand_mad_u16(self, destination):
        if self.inst.opsel & 8:
            raise Unsupported("op_sel of the result")
        self.result(
            " ".join(
                (
                    self.get("S0", "u", 16),
                    "*",
                    self.get("S1", "u", 16),
                    "+",
                    self.get("S2", "u", 16),
                )
            ),
            "u",
            16,
        )

    @by_hand("v_pk_sub_u16/clamp")
    def hand_pk_sub_clamp(self, destination):
        halves = []
        for half in ("0", "16"):
            a, b = self.sources["S0"]("u", 16, half), self.sources["S1"]("u", 16, half)
            name = self.fresh()
            self.line(f"{name} = {b}")
            halves.append(f"(maximum({a}, {name}) - {name}).astype(uint32)")
        self.result(f"{halves[0]} | ({halves[1]} << 16)")

    @by_hand("v_sub_u16/clamp", "v_sub_u32/clamp")
    def hand_sub_clamp(self, destination):
        bits = int(self.one.name[-2:])
        b = self.fresh()
        self.line(f"{b} = {self.get('S1', 'u', bits)}")
        self.result(f"maximum({self.get('S0', 'u', bits)}, {b}) - {b}", "u", bits)

    @by_hand("v_add_u16/clamp", "v_add_u32/clamp")
    def hand_add_clamp(self, destination):
        bits = int(self.one.name[-2:])
        b = self.fresh()
        self.line(f"{b} = ~{self.get('S1', 'u', bits)}")
        self.result(f"minimum({self.get('S0', 'u', bits)}, {b}) + ~{b}", "u", bits)

    @by_hand("v_cvt_scalef32_pk_fp4_f32")
    def hand_cvt_fp4_f32(self, destination):
        self.convert_fp4(
            destination, f"{self.get('S0', 'f')}, {self.get('S1', 'f')}", self.get("S2", "f")
        )

    @by_hand("v_cvt_scalef32_pk_fp4_f16", "v_cvt_scalef32_pk_fp4_bf16")
    def hand_cvt_fp4_16(self, destination):
        wide = "halves" if self.one.name.endswith("_f16") else "brain_halves"
        self.convert_fp4(destination, f"*{wide}({self.get('S0')})", self.get("S1", "f"))

    def convert_fp4(self, destination, values, scale):
        """Byte opsel[3:2] of the destination becomes two codes; the other bytes are kept."""
        if self.inst.opsel & 3:
            raise Unsupported("op_sel of a source")
        low = 8 * (self.inst.opsel >> 2 & 3)
        self.reads.add(destination)
        kept = f"(v[{destination - 256}] & {self.constant('u', 32, ~(0xFF << low))})"
        self.result(f"{kept} | (convert_fp4({values}, {scale}) << {self.constant('u', 32, low)})")

    @by_hand("v_rcp_f32", "v_rcp_iflag_f32")
    def hand_rcp_f32(self, destination):
        self.result(f"reciprocal({self.get('S0', 'f')})", "f")

    @by_hand("v_rcp_f64")
    def hand_rcp_f64(self, destination):
        self.result(f"reciprocal({self.get('S0', 'f', 64)})", "f", 64)

    @by_hand("v_ldexp_f64")
    def hand_ldexp(self, destination):
        self.result(f"ldexp({self.get('S0', 'f', 64)}, {self.get('S1', 'i')})", "f", 64)

    @by_hand("v_div_scale_f64")
    def hand_div_scale(self, destination):
        d, c = self.fresh(), self.fresh()
        self.line(
            f"{d}, {c} = div_scale_f64({', '.join(self.get(n, 'f', 64) for n in ('S0', 'S1', 'S2'))})"
        )
        self.outputs += [("D0", "f", 64, d), ("LANE:VCC", "B", 1, c)]

    @by_hand("v_div_fmas_f64")
    def hand_div_fmas(self, destination):
        # The pseudo-code's 2^64 does not undo the 2^128 of v_div_scale_f64; this does: a large
        # quotient is that of a denominator scaled up, a small one of a numerator scaled up.
        mask = self.mask(VCC)
        p, q = self.fresh(), self.fresh()
        self.line(f"{q} = {self.get('S2', 'f', 64)}")
        self.line(f"{p} = fma({self.get('S0', 'f', 64)}, {self.get('S1', 'f', 64)}, {q})")
        self.result(f"where({mask}, ldexp({p}, where(abs({q}) >= 1, 128, -128)), {p})", "f", 64)

    @by_hand("v_div_fixup_f64")
    def hand_div_fixup(self, destination):
        self.result(
            f"div_fixup_f64({', '.join(self.get(n, 'f', 64) for n in ('S0', 'S1', 'S2'))})", "f", 64
        )

    @by_hand("s_getpc_b64")
    def hand_getpc(self, destination):
        address = self.program.kernel.code.base + self.one.offset + 4
        self.put_scalar(destination, "u", 64, self.constant("u", 64, address))

    @by_hand("s_bcnt1_i32_b64")
    def hand_s_bcnt1(self, destination):
        name = self.fresh()
        self.line(f"{name} = bitwise_count({self.get('S0', 'u', 64)}).astype(uint32)")
        self.put_scalar(destination, "u", 32, name)
        self.put_scc(f"{name} != 0")

    @by_hand("s_ff1_i32_b64")
    def hand_s_ff1(self, destination):
        self.put_scalar(destination, "u", 32, f"find_first_one({self.get('S0', 'u', 64)})")

    @by_hand("s_flbit_i32_b64")
    def hand_s_flbit(self, destination):
        self.put_scalar(destination, "u", 32, f"find_first_high({self.get('S0', 'u', 64)})")

    @by_hand("s_brev_b32")
    def hand_s_brev(self, destination):
        self.put_scalar(destination, "u", 32, f"reverse_bits({self.get('S0')})")
