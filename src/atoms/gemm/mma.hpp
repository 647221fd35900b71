// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_GEMM_MMA_HPP
#define KOKKOSMX_SRC_ATOMS_GEMM_MMA_HPP

/// \file mma.hpp
/// NVIDIA's warp-level int8 product, whose operands are registers (sm_80 and later): 16 rows of one
/// operand by 8 of the other by 32 of K, mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32.
///
/// Lane l is in quad g = l / 4 at place t = l % 4. It holds eight elements of K of rows g and g + 8
/// of the first operand, and of row g of the second: a quarter of the 32, whichever, where the
/// quad's lanes have different ones and both operands agree.

#include "../cuda.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>

namespace KokkosMX::Impl {

struct MmaInt8Atom {
  static constexpr int rows = 16, cols = 8, k = 32, lanes = 32;
  static constexpr int values = 4;  // accumulators of a lane
  /// An aligned code is m << shift with m up to 12 halves: 12 << 3 = 96 fits.
  static constexpr int max_shift = 3;

  /// The row of an operand that a lane holds, with `second` the one 8 below of the first operand.
  KOKKOS_INLINE_FUNCTION static constexpr int operand_row(int lane, int second) {
    return (lane >> 2) + 8 * second;
  }
  /// Which of the four parts of 32 elements of K.
  KOKKOS_INLINE_FUNCTION static constexpr int operand_part(int lane) { return lane & 3; }
  /// Where accumulator v of a lane belongs in the 16 x 8 outputs.
  KOKKOS_INLINE_FUNCTION static constexpr int row_of(int lane, int v) {
    return (lane >> 2) + 8 * (v >> 1);
  }
  KOKKOS_INLINE_FUNCTION static constexpr int col_of(int lane, int v) {
    return 2 * (lane & 3) + (v & 1);
  }
  /// The column where there are tiles of 8 beside one another.
  KOKKOS_INLINE_FUNCTION static constexpr int col_of_tile(int tile, int lane, int v) {
    return cols * tile + col_of(lane, v);
  }

  /// A lane's part of a row: eight int8.
  struct Part {
    std::uint32_t word[2];
  };

  /// What the instruction takes of a lane, in its order: a, below: the lane's parts of its rows g
  /// and g + 8 of the first operand; b: of its row of the second.
  struct Registers {
    std::uint32_t a[4], b[2];
  };
  KOKKOS_INLINE_FUNCTION static constexpr Registers registers(const Part& a, const Part& below,
                                                              const Part& b) {
    return {{a.word[0], below.word[0], a.word[1], below.word[1]}, {b.word[0], b.word[1]}};
  }

#ifdef KOKKOS_ENABLE_CUDA
  /// d += A * B^T by all lanes of a warp.
  __device__ static void multiply_add(std::int32_t (&d)[values], const Part& a, const Part& below,
                                      const Part& b) {
    const Registers r = registers(a, below, b);
    CudaUnit::multiply_int8(d, r.a, r.b);
  }
#endif
};

}  // namespace KokkosMX::Impl

#endif
