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
  static constexpr PanelBlock block_for_few{2, 2};

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
                                             int groups, bool add,
                                             const PanelUnpacking<element>& next) {
    const int tiles = 2 * groups;
    Unpacker unpacker(next, y_panels * x_panels * tiles);
    x86::memory_is_read();
    // A product takes 52 cycles and one can start every 16: four accumulators at a time.
    const Step step{sums_y, sums_x, stride_y, stride_x, tiles, add};
    int j = 0;
    for (; j + 2 <= x_panels; j += 2) {
      int i = 0;
      for (; i + 2 <= y_panels; i += 2) {
        two_by_two(sums + i * sums_y + j * sums_x, y + i * stride_y, x + j * stride_x, step,
                   unpacker);
      }
      for (; i < y_panels; ++i) {
        for (int k = j; k < j + 2; ++k) {
          one_by_one(sums + i * sums_y + k * sums_x, y + i * stride_y, x + k * stride_x, step,
                     unpacker);
        }
      }
    }
    for (; j < x_panels; ++j) {
      int i = 0;
      for (; i + 4 <= y_panels; i += 4) {
        four_by_one(sums + i * sums_y + j * sums_x, y + i * stride_y, x + j * stride_x, step,
                    unpacker);
      }
      for (; i < y_panels; ++i) {
        one_by_one(sums + i * sums_y + j * sums_x, y + i * stride_y, x + j * stride_x, step,
                   unpacker);
      }
    }
    unpacker.finish();
  }

 private:
  /// Products of tiles run on their own meanwhile. Some rows after each of them, rather than more
  /// after four: where the processor throttles its matrix unit, instructions of tiles run one by
  /// one, and only what is close to them is done meanwhile.
  using Unpacker = UnpackerBetween<AmxGemmAtom, 4>;
  struct Step {
    std::int64_t sums_y, sums_x, stride_y, stride_x;
    int tiles;
    bool add;
  };

  // Sums of four tiles begin and end in memory.
#define KOKKOSMX_AMX_BEGIN(second, third, fourth) \
  if (step.add) {                                 \
    KOKKOSMX_TILE_LOAD(0, sums, 64);              \
    KOKKOSMX_TILE_LOAD(1, sums + (second), 64);   \
    KOKKOSMX_TILE_LOAD(2, sums + (third), 64);    \
    KOKKOSMX_TILE_LOAD(3, sums + (fourth), 64);   \
  } else {                                        \
    KOKKOSMX_TILE_ZERO(0);                        \
    KOKKOSMX_TILE_ZERO(1);                        \
    KOKKOSMX_TILE_ZERO(2);                        \
    KOKKOSMX_TILE_ZERO(3);                        \
  }
#define KOKKOSMX_AMX_END(second, third, fourth) \
  KOKKOSMX_TILE_STORE(0, sums, 64);             \
  KOKKOSMX_TILE_STORE(1, sums + (second), 64);  \
  KOKKOSMX_TILE_STORE(2, sums + (third), 64);   \
  KOKKOSMX_TILE_STORE(3, sums + (fourth), 64);

  KOKKOSMX_AMX_INLINE static void two_by_two(std::int32_t* sums, const element* y, const element* x,
                                             const Step& step, Unpacker& unpacker) {
    KOKKOSMX_AMX_BEGIN(step.sums_x, step.sums_y, step.sums_y + step.sums_x)
    for (int t = 0; t < step.tiles; ++t) {
      KOKKOSMX_TILE_LOAD(4, x + t * tile_bytes, 64);
      KOKKOSMX_TILE_LOAD(6, y + t * tile_bytes, 64);
      KOKKOSMX_TILE_LOAD(5, x + step.stride_x + t * tile_bytes, 64);
      KOKKOSMX_TILE_DOT_ADD(0, 6, 4);
      unpacker();
      KOKKOSMX_TILE_LOAD(7, y + step.stride_y + t * tile_bytes, 64);
      KOKKOSMX_TILE_DOT_ADD(1, 6, 5);
      unpacker();
      KOKKOSMX_TILE_DOT_ADD(2, 7, 4);
      unpacker();
      KOKKOSMX_TILE_DOT_ADD(3, 7, 5);
      unpacker();
    }
    KOKKOSMX_AMX_END(step.sums_x, step.sums_y, step.sums_y + step.sums_x)
  }
  KOKKOSMX_AMX_INLINE static void four_by_one(std::int32_t* sums, const element* y,
                                              const element* x, const Step& step,
                                              Unpacker& unpacker) {
    KOKKOSMX_AMX_BEGIN(step.sums_y, 2 * step.sums_y, 3 * step.sums_y)
    for (int t = 0; t < step.tiles; ++t) {
      const element* at = y + t * tile_bytes;
      KOKKOSMX_TILE_LOAD(4, x + t * tile_bytes, 64);
      KOKKOSMX_TILE_LOAD(5, at, 64);
      KOKKOSMX_TILE_LOAD(6, at + step.stride_y, 64);
      KOKKOSMX_TILE_DOT_ADD(0, 5, 4);
      unpacker();
      KOKKOSMX_TILE_LOAD(7, at + 2 * step.stride_y, 64);
      KOKKOSMX_TILE_DOT_ADD(1, 6, 4);
      unpacker();
      KOKKOSMX_TILE_LOAD(5, at + 3 * step.stride_y, 64);
      KOKKOSMX_TILE_DOT_ADD(2, 7, 4);
      unpacker();
      KOKKOSMX_TILE_DOT_ADD(3, 5, 4);
      unpacker();
    }
    KOKKOSMX_AMX_END(step.sums_y, 2 * step.sums_y, 3 * step.sums_y)
  }
  KOKKOSMX_AMX_INLINE static void one_by_one(std::int32_t* sums, const element* y, const element* x,
                                             const Step& step, Unpacker& unpacker) {
    if (step.add) {
      KOKKOSMX_TILE_LOAD(0, sums, 64);
    } else {
      KOKKOSMX_TILE_ZERO(0);
    }
    for (int t = 0; t < step.tiles; ++t) {
      KOKKOSMX_TILE_LOAD(4, x + t * tile_bytes, 64);
      KOKKOSMX_TILE_LOAD(6, y + t * tile_bytes, 64);
      KOKKOSMX_TILE_DOT_ADD(0, 6, 4);
      unpacker();
    }
    KOKKOSMX_TILE_STORE(0, sums, 64);
  }
#undef KOKKOSMX_AMX_BEGIN
#undef KOKKOSMX_AMX_END
};
static_assert(PanelAtom<AmxGemmAtom>);

}  // namespace KokkosMX::Impl

#endif

#endif
