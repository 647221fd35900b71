# SPDX-License-Identifier: Apache-2.0
"""Translates AMD's pseudo-code of an instruction into numpy expressions.

The pseudo-code is the ISA manual's, as text in `tinygrad.runtime.autogen.amd.cdna.str_pcode`. What
is translated: assignments of expressions (typed fields, bit slices, casts, ternaries, comparisons,
a few functions). Loops, conditionals and memory are not; `translate` then raises `Untranslatable`,
and the instruction has to be modelled by hand (translate.py).

Values are numpy arrays of the type that the pseudo-code names: u32 is uint32, i16 is int16, and so
on; u24 and i24 are held in 32 bits. Conditions are bool arrays. Shifts by more than the width do
not occur: the pseudo-code masks the amounts.
"""

import re

TYPES = set("u8 i8 u16 i16 f16 u24 i24 u32 i32 f32 u64 i64 f64 b8 b16 b32 b64 u1 b1 u4".split())
DTYPES = {
    ("u", 8): "uint8",
    ("i", 8): "int8",
    ("u", 16): "uint16",
    ("i", 16): "int16",
    ("f", 16): "float16",
    ("u", 32): "uint32",
    ("i", 32): "int32",
    ("f", 32): "float32",
    ("u", 64): "uint64",
    ("i", 64): "int64",
    ("f", 64): "float64",
}

TOKEN = re.compile(
    r"""\s*(?:
    (?P<cast>\d+'[UIFB]\()
  | (?P<sized>\d+'(?:0x[0-9a-fA-F]+|\d+)[UIBF]?)
  | (?P<float>\d+\.\d+F?)
  | (?P<hex>0x[0-9a-fA-F]+(?:ULL|LL|U|L)?)
  | (?P<int>\d+(?:ULL|LL|U|L)?)
  | (?P<name>[A-Za-z_]\w*)
  | (?P<op><<|>>|<=|>=|==|!=|<>|&&|\|\||\*\*|[-+*/&|^~!<>?:()\[\]{}.,=])
)""",
    re.X,
)


class Untranslatable(Exception):
    """The pseudo-code has something that translate() does not know."""


class Value:
    """An expression: Python source, kind (u, i, f; B for a condition; k for a bare integer),
    bits."""

    def __init__(self, code, kind, bits, name=None):
        self.code, self.kind, self.bits, self.name = code, kind, bits, name


def split_type(text):
    kind, bits = text[0], int(text[1:])
    return ("u" if kind == "b" else kind), bits


class Expression:
    """Recursive descent over one expression; `scope` gives the operands and keeps the constants.

    scope.operand(name, kind, bits) -> source of a numpy array, or None where there is no such name
    scope.constant(kind, bits, value) -> name of a numpy scalar
    """

    LEVELS = [
        ["||"],
        ["&&"],
        ["|"],
        ["^"],
        ["&"],
        ["==", "!=", "<>"],
        ["<", ">", "<=", ">="],
        ["<<", ">>"],
        ["+", "-"],
        ["*", "/"],
        ["**"],
    ]
    PRECEDENCE = {op: level for level, ops in enumerate(LEVELS) for op in ops}

    def __init__(self, text, scope):
        self.scope, self.tokens, at = scope, [], 0
        text = text.strip()
        while at < len(text):
            match = TOKEN.match(text, at)
            if not match:
                raise Untranslatable(text[at:])
            self.tokens.append((match.lastgroup, match.group(match.lastgroup)))
            at = match.end()
        self.tokens.append(("end", ""))
        self.at = 0

    def peek(self):
        return self.tokens[self.at][1]

    def next(self):
        self.at += 1
        return self.tokens[self.at - 1]

    def expect(self, text):
        if self.next()[1] != text:
            raise Untranslatable(f"expected {text}")

    def whole(self):
        value = self.ternary()
        if self.tokens[self.at][0] != "end":
            raise Untranslatable(self.peek())
        return value

    def ternary(self):
        condition = self.binary(0)
        if self.peek() != "?":
            return condition
        self.next()
        yes = self.ternary()
        self.expect(":")
        no = self.ternary()
        condition = self.condition(condition)
        yes, no = self.unify(yes, no)
        if yes.kind == "B":
            return Value(
                f"(({condition.code} & {yes.code}) | (~{condition.code} & {no.code}))", "B", 1
            )
        return Value(f"where({condition.code}, {yes.code}, {no.code})", yes.kind, yes.bits)

    def binary(self, least):
        """Operators that bind at least so, from the left."""
        left = self.unary()
        while self.tokens[self.at][0] == "op":
            level = self.PRECEDENCE.get(self.peek(), -1)
            if level < least:
                break
            op = self.next()[1]
            left = self.combine(op, left, self.binary(level + 1))
        return left

    def combine(self, op, a, b):
        if op in ("&&", "||"):
            a, b = self.condition(a), self.condition(b)
            return Value(f"({a.code} {op[0]} {b.code})", "B", 1)
        if op in ("<<", ">>"):
            a = self.typed(a, "i", 32)
            b = self.cast(b, a.kind, a.bits)
            return Value(f"({a.code} {op} {b.code})", a.kind, a.bits)
        a, b = self.unify(a, b)
        if op in ("==", "!=", "<>", "<", ">", "<=", ">="):
            if op == "<>" and a.kind == "f":
                return Value(f"(({a.code} < {b.code}) | ({a.code} > {b.code}))", "B", 1)
            return Value(f"({a.code} {'!=' if op == '<>' else op} {b.code})", "B", 1)
        if op in ("/", "**"):
            if op == "**" or a.kind != "f":
                raise Untranslatable(op)
        if a.kind == "B" and op not in "&|^":
            raise Untranslatable(f"{op} of conditions")
        return Value(f"({a.code} {op} {b.code})", a.kind, a.bits)

    def unary(self):
        kind, text = self.tokens[self.at]
        if kind == "op" and text in "-~!":
            self.next()
            value = self.unary()
            if text == "!":
                return Value(f"(~{self.condition(value).code})", "B", 1)
            if value.kind == "k":
                return Value(str(eval(text + value.code)), "k", value.bits)
            return Value(f"({text}{value.code})", value.kind, value.bits)
        return self.postfix(self.primary())

    def primary(self):
        kind, text = self.next()
        if text == "(":
            value = self.ternary()
            self.expect(")")
            return value
        if text == "{":
            parts = [self.ternary()]
            while self.peek() == ",":
                self.next()
                parts.append(self.ternary())
            self.expect("}")
            return self.concatenate(parts)
        if kind == "cast":
            bits, to = int(text.split("'")[0]), text.split("'")[1][0]
            value = self.ternary()
            self.expect(")")
            return self.cast(value, "u" if to == "B" else to.lower(), bits)
        if kind == "sized":
            bits, number = text.split("'")
            suffix = (
                number[-1]
                if number[-1] in "UIF" or (number[-1] == "B" and "x" not in number)
                else ""
            )
            value = int(number[: len(number) - len(suffix)], 0)
            if bits == "1":
                return Value("True" if value else "False", "B", 1)
            if suffix == "F":
                raise Untranslatable(text)
            return Value(
                self.scope.constant("i" if suffix == "I" else "u", int(bits), value),
                "i" if suffix == "I" else "u",
                int(bits),
            )
        if kind == "float":
            bits = 32 if text.endswith("F") else 64
            return Value(self.scope.constant("f", bits, float(text.rstrip("F"))), "f", bits)
        if kind in ("hex", "int"):
            suffix = re.search(r"(ULL|LL|U|L)?$", text).group()
            number = int(text[: len(text) - len(suffix)], 0)
            if not suffix:
                return Value(str(number), "k", 32)
            to, bits = ("u" if "U" in suffix else "i"), (64 if "LL" in suffix else 32)
            return Value(self.scope.constant(to, bits, number), to, bits)
        if kind == "name":
            if self.peek() == "(":
                self.next()
                arguments = [self.ternary()]
                while self.peek() == ",":
                    self.next()
                    arguments.append(self.ternary())
                self.expect(")")
                return self.call(text, arguments)
            return Value(None, None, None, text)
        raise Untranslatable(text)

    def postfix(self, value):
        while True:
            if self.peek() == ".":
                self.next()
                to = self.next()[1]
                if to not in TYPES:
                    raise Untranslatable("." + to)
                kind, bits = split_type(to)
                ahead = [token[1] for token in self.tokens[self.at : self.at + 3]]
                if value.name is not None and ahead == ["[", "laneId", "]"]:
                    self.at += 3
                    mask = self.scope.operand("LANE:" + value.name, "B", 1)
                    if mask is None:
                        raise Untranslatable("LANE:" + value.name)
                    value = Value(mask, "B", 1)
                elif value.name is not None:
                    value = self.leaf(value.name, kind, bits)
                else:
                    value = self.reinterpret(value, kind, bits)
            elif self.peek() == "[":
                self.next()
                high = self.ternary()
                if self.peek() == ":":
                    self.next()
                    low = self.ternary()
                    self.expect("]")
                    if high.kind != "k" or low.kind != "k" or int(low.code) > int(high.code):
                        raise Untranslatable("slice")
                    value = self.slice(value, int(high.code), int(low.code))
                else:
                    self.expect("]")
                    if value.name is not None:
                        value = self.leaf(value.name, "u", 64 if value.name == "tmp64" else 32)
                    value = self.typed(value, "u", 32)
                    wide = Value(value.code, value.kind, value.bits)
                    shifted = self.combine(">>", wide, high)
                    one = self.scope.constant(shifted.kind, shifted.bits, 1)
                    value = Value(f"(({shifted.code} & {one}) != 0)", "B", 1)
            else:
                break
        if value.name is not None:
            value = self.leaf(value.name, None, None)
        return value

    def leaf(self, name, kind, bits):
        found = self.scope.operand(name, kind, bits)
        if found is None:
            raise Untranslatable(name)
        if isinstance(found, Value):
            if kind is not None and (found.kind, found.bits) != (kind, bits):
                found = self.reinterpret(found, kind, bits)
            value = Value(found.code, found.kind, found.bits)
        elif kind in ("u", "i") and bits == 24:
            value = Value(found, kind, 32)
        else:
            value = Value(found, kind, bits)
        return value

    def slice(self, value, high, low):
        bits = high - low + 1
        if value.name is not None:
            if bits == 16 and low in (0, 16):
                half = self.scope.operand(f"{value.name}:{low}", "u", 16)
                if half is not None:
                    return Value(half, "u", 16)
            value = self.leaf(value.name, "u", 64 if high > 31 else 32)
        if value.kind == "i":
            value = self.cast(value, "u", value.bits)
        code = value.code
        if low:
            code = f"({code} >> {self.scope.constant('u', value.bits, low)})"
        if high != value.bits - 1:
            code = f"({code} & {self.scope.constant('u', value.bits, (1 << bits) - 1)})"
        value = Value(code, "u", value.bits)
        if bits in (8, 16, 32) and bits != value.bits:
            value = self.cast(value, "u", bits)
        return value

    def concatenate(self, parts):
        if any(part.kind not in ("u", "i") for part in parts):
            raise Untranslatable("concatenation")
        total = sum(part.bits for part in parts)
        if total not in (16, 32, 64):
            raise Untranslatable(f"concatenation of {total} bits")
        code, low = [], total
        for part in parts:
            low -= part.bits
            unsigned = self.cast(part, "u", part.bits)
            wide = self.cast(unsigned, "u", total)
            code.append(
                f"({wide.code} << {self.scope.constant('u', total, low)})" if low else wide.code
            )
        return Value("(" + " | ".join(code) + ")", "u", total)

    def call(self, name, arguments):
        if name == "signext":
            return arguments[0]
        if name == "signext_from_bit":
            value, width = arguments
            return Value(
                f"signext_from_bit({value.code}, {self.cast(width, value.kind, value.bits).code})",
                value.kind,
                value.bits,
            )
        match = re.fullmatch(r"([uif]\d+)_to_([uif]\d+)", name)
        if match:
            kind, bits = split_type(match.group(2))
            value = arguments[0]
            if kind == "f":
                return Value(f"{value.code}.astype({DTYPES[kind, bits]})", kind, bits)
            return Value(f"to_integer({value.code}, {DTYPES[kind, bits]})", kind, bits)
        match = re.fullmatch(r"v_(max|min)_([ui])32", name)
        if match:
            a, b = arguments
            return Value(f"{match.group(1)}imum({a.code}, {b.code})", a.kind, a.bits)
        if name == "fma":
            kinds = {(a.kind, a.bits) for a in arguments}
            if len(kinds) != 1:
                raise Untranslatable("fma")
            return Value(f"fma({', '.join(a.code for a in arguments)})", *kinds.pop())
        if name in ("trunc", "floor", "abs", "sqrt"):
            return Value(f"{name}({arguments[0].code})", arguments[0].kind, arguments[0].bits)
        raise Untranslatable(name + "()")

    def condition(self, value):
        if value.kind == "B":
            return value
        value = self.typed(value, "u", 32)
        return Value(f"({value.code} != 0)", "B", 1)

    def typed(self, value, kind, bits):
        if value.kind == "k":
            return Value(self.scope.constant(kind, bits, int(value.code)), kind, bits)
        return value

    def unify(self, a, b):
        if a.kind == "k" and b.kind == "k":
            return self.typed(a, "i", 32), self.typed(b, "i", 32)
        if a.kind == "k":
            return (self.cast(a, b.kind, b.bits) if b.kind != "B" else a), b
        if b.kind == "k":
            return a, self.cast(b, a.kind, a.bits)
        if a.kind == "B" and b.kind == "B":
            return a, b
        if a.kind == "B":
            return self.cast(a, b.kind, b.bits), b
        if b.kind == "B":
            return a, self.cast(b, a.kind, a.bits)
        if (a.kind, a.bits) == (b.kind, b.bits):
            return a, b
        if "f" in (a.kind, b.kind):
            raise Untranslatable("float with integer")
        bits = max(a.bits, b.bits)
        kind = (
            a.kind
            if a.kind == b.kind
            else (a.kind if a.bits > b.bits else b.kind if b.bits > a.bits else "u")
        )
        return self.cast(a, kind, bits), self.cast(b, kind, bits)

    def cast(self, value, kind, bits):
        """A number's value, converted."""
        if value.kind == "k":
            if kind == "f":
                return Value(self.scope.constant(kind, bits, float(value.code)), kind, bits)
            return Value(self.scope.constant(kind, bits, int(value.code)), kind, bits)
        if (value.kind, value.bits) == (kind, bits):
            return value
        if value.kind == "f" or kind == "f":
            raise Untranslatable("cast of a float")
        if (kind, bits) not in DTYPES:
            raise Untranslatable(f"cast to {kind}{bits}")
        if value.kind == "B" and value.code in ("True", "False"):
            return Value(self.scope.constant(kind, bits, int(value.code == "True")), kind, bits)
        if value.bits == bits and value.kind != "B":
            return Value(f"{value.code}.view({DTYPES[kind, bits]})", kind, bits)
        return Value(f"{value.code}.astype({DTYPES[kind, bits]})", kind, bits)

    def reinterpret(self, value, kind, bits):
        """What `.type` does to a value: the low bits, seen as that type."""
        if value.kind == "k":
            return self.cast(value, kind, bits)
        if (value.kind, value.bits) == (kind, bits):
            return value
        if value.kind == "B":
            return value if bits == 1 else self.cast(value, kind, bits)
        if bits == value.bits:
            return Value(f"{value.code}.view({DTYPES[kind, bits]})", kind, bits)
        if value.kind == "f" or kind == "f" or bits not in (8, 16, 32, 64):
            raise Untranslatable(f"{value.kind}{value.bits} as {kind}{bits}")
        return Value(f"{value.code}.astype({DTYPES[kind, bits]})", kind, bits)


def translate(text, scope):
    """Translates statements into calls of scope.assign(target, kind, bits, Value), in their order.

    Targets: D0, SCC, VCC, tmp, EXEC, ... with the type that the statement names, or None; a target
    of lanes ("D0.u64[laneId]") is LANE:D0; of a half ("tmp[15 : 0].u16") is tmp:0 or tmp:16.
    """
    for line in re.sub(r"//[^\n]*", "", text).replace("\n", " ").split(";"):
        line = line.strip()
        if not line or line.startswith("declare "):
            continue
        match = re.match(r"(\w+)((?:\.\w+|\[[^\]]*\])*)\s*=(?!=)\s*(.*)$", line, re.S)
        if not match or match.group(1) in ("if", "for", "elsif", "else", "endif", "MEM"):
            raise Untranslatable(line)
        target, suffix, expression = match.groups()
        value = Expression(expression, scope).whole()
        if suffix in (".u64[laneId]",):
            scope.assign("LANE:" + target, "B", 1, value)
            continue
        part = re.fullmatch(r"\[(\d+) : (\d+)\](?:\.(\w+))?", suffix)
        if part and (int(part.group(1)), int(part.group(2))) in ((15, 0), (31, 16)):
            scope.assign(f"{target}:{part.group(2)}", "u", 16, value)
            continue
        match = re.fullmatch(r"\.(\w+)", suffix)
        if suffix and (not match or match.group(1) not in TYPES):
            raise Untranslatable(line)
        kind, bits = split_type(match.group(1)) if match else (None, None)
        scope.assign(target, kind, bits, value)
