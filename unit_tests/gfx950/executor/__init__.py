# SPDX-License-Identifier: Apache-2.0
"""A functional executor of compiled gfx950 kernels (see README.md)."""
