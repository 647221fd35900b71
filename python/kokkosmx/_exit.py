# SPDX-License-Identifier: Apache-2.0
"""Kokkos is stopped before the interpreter takes its modules apart."""

from __future__ import annotations

import atexit
from types import ModuleType


def register(core: ModuleType) -> None:
    atexit.register(core._stop)
