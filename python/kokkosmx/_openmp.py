# SPDX-License-Identifier: Apache-2.0
"""One OpenMP runtime in the process.

The package's libraries ask the loader for libgomp.so.1 and get one that is loaded already, else
their own. PyTorch's wheels carry a libgomp that is known by that name too, but older ones ask for
it by another: there, whoever comes second would bring a second runtime. So where PyTorch is
installed its libgomp is loaded first, and serves both whichever is imported first.
"""

from __future__ import annotations

import ctypes
import glob
import importlib.util
import os
import sys


def share() -> None:
    """Loads the libgomp that PyTorch will use, where PyTorch is installed and not yet imported."""
    if not sys.platform.startswith("linux") or "torch" in sys.modules:
        return
    try:
        found = importlib.util.find_spec("torch")
    except (ImportError, ValueError):
        return
    if found is None or not found.origin:
        return
    folder = os.path.dirname(found.origin)
    for library in glob.glob(os.path.join(folder, "lib", "libgomp*.so*")):
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        return
