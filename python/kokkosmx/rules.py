# SPDX-License-Identifier: Apache-2.0
"""Named rules of quantizing, to be given as keywords: ``quantize(x, **rules.reference)``.

>>> sorted(kokkosmx.rules.reference)
['mode', 'non_finite', 'rounding']
"""

from __future__ import annotations

from typing import TypedDict

from ._core import NonFinite, Rounding, ScaleMode

__all__ = ["Rule", "ocp_floor", "quark_even", "rceil", "reference"]


class Rule(TypedDict):
    """The complete rule of quantizing."""

    mode: ScaleMode
    rounding: Rounding
    non_finite: NonFinite


#: The reference PyTorch code (gpu-mode/reference-kernels PR 114), bit for bit.
reference: Rule = {
    "mode": ScaleMode.even,
    "rounding": Rounding.ties_up,
    "non_finite": NonFinite.reference,
}
#: OCP MX v1.0, section 6.3; torchao's FLOOR.
ocp_floor: Rule = {
    "mode": ScaleMode.floor,
    "rounding": Rounding.nearest_even,
    "non_finite": NonFinite.ocp,
}
#: The scale of AMD Quark with MI355X's rounding.
quark_even: Rule = {
    "mode": ScaleMode.even,
    "rounding": Rounding.nearest_even,
    "non_finite": NonFinite.ocp,
}
#: No value saturates; torchao's RCEIL.
rceil: Rule = {
    "mode": ScaleMode.rceil,
    "rounding": Rounding.nearest_even,
    "non_finite": NonFinite.ocp,
}
