// SPDX-License-Identifier: Apache-2.0

// The shape of codes in a layout that codes do not have.

#include "Operands.hpp"

// expect: KokkosMX: codes have the layout RowMajor, Tile16x16 or Tile16x128
constexpr auto shape = KokkosMX::codes_shape<Tile16x4>(32, 64);
