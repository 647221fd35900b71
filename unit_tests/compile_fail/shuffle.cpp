// SPDX-License-Identifier: Apache-2.0

// Shuffle.hpp: operands in the wrong layout, out of reach, or not writable.

#include "Operands.hpp"

using Plain = Codes<RowMajor>;
using Tiled = Codes<Tile16x16>;
using PlainScales = Scales<RowMajor>;
using TiledScales = Scales<Tile32x8>;

void layouts(const Exec& exec) {
  // expect: KokkosMX::shuffle_weight: the input's layout is RowMajor
  KokkosMX::shuffle_weight(exec, an<Tiled>(), an<Tiled>());
  // expect: KokkosMX::shuffle_weight: the output's layout is Tile16x16
  KokkosMX::shuffle_weight(exec, an<Plain>(), an<Plain>());
  // expect: KokkosMX::unshuffle_weight: the input's layout is Tile16x16
  KokkosMX::unshuffle_weight(exec, an<Plain>(), an<Plain>());
  // expect: KokkosMX::unshuffle_weight: the output's layout is RowMajor
  KokkosMX::unshuffle_weight(exec, an<Tiled>(), an<Tiled>());
  // expect: KokkosMX::shuffle_scale: the input's layout is RowMajor
  KokkosMX::shuffle_scale(exec, an<TiledScales>(), an<TiledScales>());
  // expect: KokkosMX::shuffle_scale: the output's layout is Tile32x8
  KokkosMX::shuffle_scale(exec, an<PlainScales>(), an<PlainScales>());
  // expect: KokkosMX::unshuffle_scale: the input's layout is Tile32x8
  KokkosMX::unshuffle_scale(exec, an<PlainScales>(), an<PlainScales>());
  // expect: KokkosMX::unshuffle_scale: the output's layout is RowMajor
  KokkosMX::unshuffle_scale(exec, an<TiledScales>(), an<TiledScales>());
}

void spaces(const Exec& exec) {
  // expect: KokkosMX: the first argument is an execution-space instance
  KokkosMX::shuffle_weight(an<Host>(), an<Plain>(), an<Tiled>());
  // expect: KokkosMX: the execution space cannot access the input
  KokkosMX::shuffle_weight(exec, an<Codes<RowMajor, FarSpace>>(), an<Tiled>());
  // expect: KokkosMX: the execution space cannot access the output
  KokkosMX::shuffle_scale(exec, an<PlainScales>(), an<Scales<Tile32x8, FarSpace>>());
  // expect: KokkosMX: a View of const bytes cannot be written
  KokkosMX::unshuffle_scale(exec, an<TiledScales>(),
                            an<Scales<RowMajor, Host, const std::uint8_t>>());
}
