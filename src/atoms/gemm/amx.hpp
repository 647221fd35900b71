// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_GEMM_AMX_HPP
#define KOKKOSMX_SRC_ATOMS_GEMM_AMX_HPP

/// \file amx.hpp
/// The atom for AMX int8: tiles of 16 rows of y by 16 rows of x, 64 elements of K an instruction.

#include "../x86.hpp"
#include "avx512.hpp"
#include "panel_atom.hpp"

#include <cstdint>

#if KOKKOSMX_HAVE_X86_ATOMS

namespace KokkosMX::Impl {

struct AmxGemmAtom : Int8Atom<false> {
  static constexpr const char* name = "amx";
  static constexpr int block_y = 4;
  static constexpr int block_x = 2;

  KOKKOSMX_AMX_FUNCTION static void begin() {
    x86::TileConfig config;
    for (int t = 0; t < 8; ++t) {
      config.rows[t] = panel_rows;
      config.row_bytes[t] = 64;
    }
    x86::tile_configure(config);
  }
  KOKKOSMX_AMX_FUNCTION static void end() { x86::tile_release(); }

  KOKKOSMX_AMX_FUNCTION static void multiply(std::int32_t* sums, std::int64_t sums_y,
                                             std::int64_t sums_x, const element* y,
                                             std::int64_t stride_y, const element* x,
                                             std::int64_t stride_x, int y_panels, int x_panels,
                                             int groups, bool add) {
    const int tiles = 2 * groups;
    x86::memory_is_read();
    // A product takes 52 cycles and one can start every 16: four accumulators at a time. A pair of
    // panels of x stays in the first cache while y passes.
    for (int j = 0; j + 2 <= x_panels; j += 2) {
      for (int i = 0; i + 2 <= y_panels; i += 2) {
        two_by_two(sums + i * sums_y + j * sums_x, sums_y, sums_x, y + i * stride_y, stride_y,
                   x + j * stride_x, stride_x, tiles, add);
      }
    }
    if (x_panels % 2 != 0) {
      std::int32_t* to = sums + (x_panels - 1) * sums_x;
      const element* last = x + (x_panels - 1) * stride_x;
      int i = 0;
      for (; i + 4 <= y_panels; i += 4) {
        four_by_one(to + i * sums_y, sums_y, y + i * stride_y, stride_y, last, tiles, add);
      }
      for (; i < y_panels; ++i) {
        one_by_one(to + i * sums_y, y + i * stride_y, last, tiles, add);
      }
    }
    if (y_panels % 2 != 0) {
      const int i = y_panels - 1;
      for (int j = 0; j < x_panels / 2 * 2; ++j) {
        one_by_one(sums + i * sums_y + j * sums_x, y + i * stride_y, x + j * stride_x, tiles, add);
      }
    }
  }

 private:
  KOKKOSMX_AMX_INLINE static void two_by_two(std::int32_t* sums, std::int64_t sums_y,
                                             std::int64_t sums_x, const element* y,
                                             std::int64_t stride_y, const element* x,
                                             std::int64_t stride_x, int tiles, bool add) {
    if (add) {
      KOKKOSMX_TILE_LOAD(0, sums, 64);
      KOKKOSMX_TILE_LOAD(1, sums + sums_x, 64);
      KOKKOSMX_TILE_LOAD(2, sums + sums_y, 64);
      KOKKOSMX_TILE_LOAD(3, sums + sums_y + sums_x, 64);
    } else {
      KOKKOSMX_TILE_ZERO(0);
      KOKKOSMX_TILE_ZERO(1);
      KOKKOSMX_TILE_ZERO(2);
      KOKKOSMX_TILE_ZERO(3);
    }
    for (int t = 0; t < tiles; ++t) {
      KOKKOSMX_TILE_LOAD(4, x + t * tile_bytes, 64);
      KOKKOSMX_TILE_LOAD(6, y + t * tile_bytes, 64);
      KOKKOSMX_TILE_LOAD(5, x + stride_x + t * tile_bytes, 64);
      KOKKOSMX_TILE_DOT_ADD(0, 6, 4);
      KOKKOSMX_TILE_LOAD(7, y + stride_y + t * tile_bytes, 64);
      KOKKOSMX_TILE_DOT_ADD(1, 6, 5);
      KOKKOSMX_TILE_DOT_ADD(2, 7, 4);
      KOKKOSMX_TILE_DOT_ADD(3, 7, 5);
    }
    KOKKOSMX_TILE_STORE(0, sums, 64);
    KOKKOSMX_TILE_STORE(1, sums + sums_x, 64);
    KOKKOSMX_TILE_STORE(2, sums + sums_y, 64);
    KOKKOSMX_TILE_STORE(3, sums + sums_y + sums_x, 64);
  }
  KOKKOSMX_AMX_INLINE static void four_by_one(std::int32_t* sums, std::int64_t sums_y,
                                              const element* y, std::int64_t stride_y,
                                              const element* x, int tiles, bool add) {
    if (add) {
      KOKKOSMX_TILE_LOAD(0, sums, 64);
      KOKKOSMX_TILE_LOAD(1, sums + sums_y, 64);
      KOKKOSMX_TILE_LOAD(2, sums + 2 * sums_y, 64);
      KOKKOSMX_TILE_LOAD(3, sums + 3 * sums_y, 64);
    } else {
      KOKKOSMX_TILE_ZERO(0);
      KOKKOSMX_TILE_ZERO(1);
      KOKKOSMX_TILE_ZERO(2);
      KOKKOSMX_TILE_ZERO(3);
    }
    for (int t = 0; t < tiles; ++t) {
      const element* at = y + t * tile_bytes;
      KOKKOSMX_TILE_LOAD(4, x + t * tile_bytes, 64);
      KOKKOSMX_TILE_LOAD(5, at, 64);
      KOKKOSMX_TILE_LOAD(6, at + stride_y, 64);
      KOKKOSMX_TILE_DOT_ADD(0, 5, 4);
      KOKKOSMX_TILE_LOAD(7, at + 2 * stride_y, 64);
      KOKKOSMX_TILE_DOT_ADD(1, 6, 4);
      KOKKOSMX_TILE_LOAD(5, at + 3 * stride_y, 64);
      KOKKOSMX_TILE_DOT_ADD(2, 7, 4);
      KOKKOSMX_TILE_DOT_ADD(3, 5, 4);
    }
    KOKKOSMX_TILE_STORE(0, sums, 64);
    KOKKOSMX_TILE_STORE(1, sums + sums_y, 64);
    KOKKOSMX_TILE_STORE(2, sums + 2 * sums_y, 64);
    KOKKOSMX_TILE_STORE(3, sums + 3 * sums_y, 64);
  }
  KOKKOSMX_AMX_INLINE static void one_by_one(std::int32_t* sums, const element* y, const element* x,
                                             int tiles, bool add) {
    if (add) {
      KOKKOSMX_TILE_LOAD(0, sums, 64);
    } else {
      KOKKOSMX_TILE_ZERO(0);
    }
    for (int t = 0; t < tiles; ++t) {
      KOKKOSMX_TILE_LOAD(4, x + t * tile_bytes, 64);
      KOKKOSMX_TILE_LOAD(6, y + t * tile_bytes, 64);
      KOKKOSMX_TILE_DOT_ADD(0, 6, 4);
    }
    KOKKOSMX_TILE_STORE(0, sums, 64);
  }
};
static_assert(PanelAtom<AmxGemmAtom>);

}  // namespace KokkosMX::Impl

#endif

#endif
