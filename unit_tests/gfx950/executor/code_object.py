# SPDX-License-Identifier: Apache-2.0
"""Loads a gfx950 code object: ELF segments, relocations, kernel descriptors, metadata,
instructions."""

import struct

from tinygrad.renderer.amd import decode_inst

R_AMDGPU_ABS64, R_AMDGPU_RELATIVE64 = 3, 13
EM_AMDGPU, MACH_GFX950 = 224, 0x4F


class BadCodeObject(Exception):
    pass


class Kernel:
    """What the descriptor and the metadata say of one kernel."""

    def __init__(self, code, metadata, descriptor, entry, size):
        self.code, self.name = code, metadata[".name"]
        self.entry, self.size = entry, size
        (self.lds_bytes, self.scratch_bytes, kernarg_bytes) = struct.unpack_from(
            "<III", descriptor, 0
        )
        (rsrc3, rsrc1, rsrc2, properties, preload) = struct.unpack_from("<IIIHH", descriptor, 44)
        self.kernarg_bytes = metadata[".kernarg_segment_size"]
        self.max_block = metadata[".max_flat_workgroup_size"]
        if metadata[".wavefront_size"] != 64:
            raise BadCodeObject(f"{self.name}: waves of {metadata['.wavefront_size']}")
        if (rsrc1 >> 12) & 0xFF != 0xF0:
            raise BadCodeObject(
                f"{self.name}: float mode {(rsrc1 >> 12) & 0xFF:#x}: only 0xF0 (nearest "
                "even, no flushing) is modelled"
            )
        if properties & ~0x7F & ~(1 << 11) or properties & 0x77:
            raise BadCodeObject(
                f"{self.name}: user SGPRs {properties:#x}: only the kernarg pointer and "
                "preloaded arguments are modelled"
            )
        self.has_kernarg_pointer = bool(properties & 8)
        self.preload_length, self.preload_offset = preload & 0x7F, preload >> 7
        self.user_sgprs = (rsrc2 >> 1) & 0x1F
        self.group_ids = [bool(rsrc2 >> bit & 1) for bit in (7, 8, 9)]
        self.has_group_info = bool(rsrc2 >> 10 & 1)
        self.item_ids = rsrc2 >> 11 & 3
        self.acc_offset = 4 * ((rsrc3 & 0x3F) + 1)
        self.vgprs = 8 * ((rsrc1 & 0x3F) + 1)
        self.arguments, self.hidden = [], []
        for argument in metadata.get(".args", []):
            place = (argument[".offset"], argument[".size"])
            kind = argument[".value_kind"]
            if kind.startswith("hidden_"):
                self.hidden.append((kind[len("hidden_") :], *place))
            elif kind in ("by_value", "global_buffer"):
                self.arguments.append(place)
            else:
                raise BadCodeObject(f"{self.name}: an argument of kind {kind}")

    def hidden_values(self, grid, block, dynamic_lds):
        """(offset, size, value) of the hidden arguments that the metadata lists."""
        known = {
            "dynamic_lds_size": dynamic_lds,
            "grid_dims": 1 + max((i for i in range(3) if grid[i] * block[i] > 1), default=0),
        }
        for i, axis in enumerate("xyz"):
            known["block_count_" + axis] = grid[i]
            known["group_size_" + axis] = block[i]
            known["remainder_" + axis] = 0
            known["global_offset_" + axis] = 0
        # Pointers to services of the runtime that no kernel here calls: left unwritten.
        services = (
            "hostcall_buffer",
            "multigrid_sync_arg",
            "heap_v1",
            "default_queue",
            "completion_action",
            "queue_ptr",
            "printf_buffer",
            "none",
        )
        for kind, offset, size in self.hidden:
            if kind in known:
                yield offset, size, known[kind]
            elif kind not in services:
                raise BadCodeObject(f"{self.name}: hidden argument {kind}")


def unpack_msgpack(data, at=0):
    """(value, end) of MessagePack, as far as metadata uses it."""
    tag = data[at]
    at += 1
    if tag <= 0x7F:
        return tag, at
    if tag >= 0xE0:
        return tag - 256, at
    if 0xA0 <= tag <= 0xBF:
        return data[at : at + (tag & 31)].decode(), at + (tag & 31)
    if 0x80 <= tag <= 0x9F or tag in (0xDC, 0xDD, 0xDE, 0xDF):
        is_map = tag <= 0x8F or tag in (0xDE, 0xDF)
        if tag <= 0x9F:
            count = tag & 15
        else:
            width = 2 if tag in (0xDC, 0xDE) else 4
            count, at = int.from_bytes(data[at : at + width], "big"), at + width
        result = {} if is_map else []
        for _ in range(count):
            value, at = unpack_msgpack(data, at)
            if is_map:
                result[value], at = unpack_msgpack(data, at)
            else:
                result.append(value)
        return result, at
    if tag in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[tag], at
    if 0xCC <= tag <= 0xD3:
        width = 1 << (tag & 3)
        return int.from_bytes(data[at : at + width], "big", signed=tag >= 0xD0), at + width
    if tag in (0xD9, 0xDA, 0xDB):
        width = 1 << (tag - 0xD9)
        length, at = int.from_bytes(data[at : at + width], "big"), at + width
        return data[at : at + length].decode(), at + length
    raise BadCodeObject(f"metadata: tag {tag:#x}")


class CodeObject:
    """`image` holds the loaded segments from address `base`; kernels by name."""

    def __init__(self, path, base):
        with open(path, "rb") as file:
            elf = file.read()
        if elf[:5] != b"\x7fELF\x02" or struct.unpack_from("<H", elf, 18)[0] != EM_AMDGPU:
            raise BadCodeObject(f"{path}: no code object for AMD's GPUs")
        if struct.unpack_from("<I", elf, 48)[0] & 0xFF != MACH_GFX950:
            raise BadCodeObject(f"{path}: not for gfx950")
        self.path, self.base = path, base
        phoff, shoff = struct.unpack_from("<QQ", elf, 32)
        phentsize, phnum, shentsize, shnum = struct.unpack_from("<HHHH", elf, 54)
        segments = [
            struct.unpack_from("<IIQQQQQQ", elf, phoff + i * phentsize) for i in range(phnum)
        ]
        loads = [segment for segment in segments if segment[0] == 1]
        self.image = bytearray(max(segment[3] + segment[6] for segment in loads))
        for _, _, offset, address, _, filesize, _, _ in loads:
            self.image[address : address + filesize] = elf[offset : offset + filesize]
        sections = [
            struct.unpack_from("<IIQQQQIIQQ", elf, shoff + i * shentsize) for i in range(shnum)
        ]
        symbols = {}
        dynamic = []
        for _, kind, _, _, offset, size, link, _, _, entsize in sections:
            if kind not in (2, 11):  # SYMTAB, DYNSYM
                continue
            strings = sections[link][4]
            for at in range(offset, offset + size, entsize):
                name, info, _, section, value, length = struct.unpack_from("<IBBHQQ", elf, at)
                text = elf[strings + name : elf.index(b"\0", strings + name)].decode()
                if kind == 11:
                    dynamic.append((text, section, value))
                if section:
                    symbols[text] = (value, length)
        for _, kind, _, _, offset, size, _, _, _, entsize in sections:
            if kind != 4:  # RELA
                continue
            for at in range(offset, offset + size, entsize):
                place, info, addend = struct.unpack_from("<QQq", elf, at)
                if info & 0xFFFFFFFF == R_AMDGPU_RELATIVE64:
                    value = base + addend
                elif info & 0xFFFFFFFF == R_AMDGPU_ABS64 and dynamic[info >> 32][1]:
                    value = base + dynamic[info >> 32][2] + addend
                else:
                    raise BadCodeObject(
                        f"{path}: relocation {info & 0xFFFFFFFF} of {dynamic[info >> 32][0]}"
                    )
                struct.pack_into("<Q", self.image, place, value % (1 << 64))
        self.kernels = {}
        for kind, _, offset, _, _, _size, _, _ in segments:
            if kind != 4:  # NOTE
                continue
            namesize, descsize, note = struct.unpack_from("<III", elf, offset)
            if note == 32 and elf[offset + 12 : offset + 12 + namesize].startswith(b"AMDGPU"):
                start = offset + 12 + (namesize + 3) // 4 * 4
                metadata, _ = unpack_msgpack(elf[start : start + descsize])
                for one in metadata["amdhsa.kernels"]:
                    address = symbols[one[".symbol"]][0]
                    descriptor = self.image[address : address + 64]
                    entry = address + struct.unpack_from("<q", descriptor, 16)[0]
                    size_of_code = symbols[one[".name"]][1]
                    self.kernels[one[".name"]] = Kernel(self, one, descriptor, entry, size_of_code)

    def instructions(self, kernel):
        """[(offset in the image, decoded instruction)], in the order of addresses."""
        at, end, result = kernel.entry, kernel.entry + kernel.size, []
        while at < end:
            try:
                one = decode_inst(bytes(self.image[at : at + 16]) + bytes(16), "cdna")
            except (ValueError, KeyError):
                word = int.from_bytes(self.image[at : at + 4], "little")
                result.append((at, UnknownInstruction(word)))
                at += 4
                continue
            result.append((at, one))
            at += one.size()
        return result

    def patch(self, offset, data):
        """Replaces machine code, for tests of the executor: a bug made on purpose."""
        self.image[offset : offset + len(data)] = data


class UnknownInstruction:
    """Bytes that the decoder does not know. Running them stops the run."""

    def __init__(self, word):
        self.word = word

    def size(self):
        return 4

    def __repr__(self):
        return f"unknown instruction {self.word:#010x}"
