// SPDX-License-Identifier: Apache-2.0

// The shape of scales in a layout that scales do not have.

#include "Operands.hpp"

// expect: KokkosMX: scales have the layout RowMajor, Tile32x8 or Tile16x4
constexpr auto shape = KokkosMX::scales_shape<Tile16x16>(32, 64);
