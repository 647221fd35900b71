# SPDX-License-Identifier: Apache-2.0
"""Checks that s_waitcnt covers what a wave uses.

The executor completes every access at once; hardware does not. A wave's outstanding accesses are a
queue each for vector memory (vmcnt) and for LDS with scalar loads (lgkmcnt). Vector accesses, and
LDS accesses among themselves, complete in order; scalar loads do not, so that only lgkmcnt(0)
covers them. Using a register that an outstanding load will write, or arriving at a barrier with an
outstanding write to LDS, stops the run.

Queues depend on nothing but the way that a wave took, so the step through a segment is computed
once for each state of the queues.
"""

# What counters can count; hardware waits when they are full.
MOST_VECTOR, MOST_LDS = 63, 15


class Waits:
    """States are numbered; 0 is that nothing is outstanding."""

    def __init__(self, program):
        self.program = program
        self.numbers, self.states = {((), ()): 0}, [((), ())]
        self.steps = {}

    def step(self, segment, number):
        """(number of the state after a segment, None or (index, what is wrong))"""
        key = (segment.first, number)
        found = self.steps.get(key)
        if found is None:
            found = self.steps[key] = self.compute(segment, self.states[number])
        return found

    def compute(self, segment, state):
        vector, lds = list(state[0]), list(state[1])
        for one in self.program.instructions[segment.first : segment.last]:
            for kind, queue in (("vmem", vector), ("lds", lds)):
                for registers, index, what in queue:
                    # Loads of one queue return in order: the later one may go to the same register.
                    follows = one.kind == kind and what != "scalar"
                    if not registers.isdisjoint(one.reads if follows else one.touched):
                        load = self.program.instructions[index]
                        return 0, (
                            one.index,
                            "a register is used before s_waitcnt covers the load into it:\n"
                            f"    {load.text} at {load.offset:#x}",
                        )
            name = one.name
            if one.kind == "vmem":
                vector.append((frozenset(one.writes), one.index, "load" if one.writes else "store"))
            elif one.kind == "lds":
                lds.append((frozenset(one.writes), one.index, "load" if one.writes else "store"))
            elif one.kind == "smem":
                lds.append((frozenset(one.writes), one.index, "scalar"))
            elif name == "s_waitcnt":
                bits = one.inst.simm16
                vector = keep_last(vector, (bits & 15) | (bits >> 14 & 3) << 4)
                left = bits >> 8 & 15
                if left == 0:
                    lds = []
                else:
                    in_order = keep_last([entry for entry in lds if entry[2] != "scalar"], left)
                    lds = [entry for entry in lds if entry[2] == "scalar" or entry in in_order]
            elif name == "s_barrier":
                for _, index, what in lds:
                    if what == "store":
                        write = self.program.instructions[index]
                        return 0, (
                            one.index,
                            "a barrier before s_waitcnt covers a write to LDS:\n    "
                            f"{write.text} at {write.offset:#x}",
                        )
        vector = keep_last(vector, MOST_VECTOR)
        # What no register waits for does not matter once it is the oldest.
        while vector and not vector[0][0]:
            vector.pop(0)
        in_order = keep_last([entry for entry in lds if entry[2] != "scalar"], MOST_LDS)
        scalar = []
        for entry in lds:
            if entry[2] == "scalar" and entry not in scalar:
                scalar.append(entry)
        state = (tuple(vector), tuple(scalar + in_order))
        number = self.numbers.get(state)
        if number is None:
            number = self.numbers[state] = len(self.states)
            self.states.append(state)
        return number, None


def keep_last(queue, count):
    return queue[max(0, len(queue) - count) :]
