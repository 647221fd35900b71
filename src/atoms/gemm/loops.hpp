// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_GEMM_LOOPS_HPP
#define KOKKOSMX_SRC_ATOMS_GEMM_LOOPS_HPP

/// \file loops.hpp
/// A 4 x 4 tile of dot products of int16 with int32 accumulators, by plain loops that every
/// compiler turns into its target's multiply-add of pairs. Atoms compile them for a target each.

#include <KokkosMX/Types.hpp>

#include "../../numbers.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>

namespace KokkosMX::Impl {

struct Int16Loops {
  static constexpr int M = 4;
  static constexpr int N = 4;
  /// Threads that hold one atom's fragments together.
  static constexpr int lanes = 1;

  /// An aligned code is m << shift with m up to 12 halves: 12 << 11 = 24576 fits.
  using element = std::int16_t;
  static constexpr int max_shift = 11;
  /// int32 accumulators hold every sum of magnitude below 2^31: n_i * n_j < 2^62.
  static constexpr int certificate_bits = 62;

  struct Accumulator {
    std::int32_t value[M * N];
  };
  /// Where value[i] of a lane belongs in the atom's tile.
  KOKKOS_INLINE_FUNCTION static constexpr int row_of(int /*lane*/, int i) { return i / N; }
  KOKKOS_INLINE_FUNCTION static constexpr int col_of(int /*lane*/, int i) { return i % N; }

  /// A panel holds rows of `blocks` blocks: element offset of a block's 32 elements.
  KOKKOS_INLINE_FUNCTION static constexpr int panel_offset(int row, int block, int blocks) {
    return (row * blocks + block) * block_size;
  }

  /// 16 bytes of codes to 32 panel elements, each (-1)^sign * halves << shift. The order within a
  /// block (low nibbles first) is the same for both operands, so sums do not see it.
  KOKKOS_FORCEINLINE_FUNCTION static void unpack(const std::uint8_t* KOKKOS_RESTRICT codes,
                                                 int shift, element* KOKKOS_RESTRICT to) {
    const element factor = static_cast<element>(1 << shift);
    for (int i = 0; i < block_bytes; ++i) {
      const element low = static_cast<element>(codes[i] & 15);
      const element high = static_cast<element>(codes[i] >> 4);
      to[i] = static_cast<element>(signed_halves_of(low) * factor);
      to[block_bytes + i] = static_cast<element>(signed_halves_of(high) * factor);
    }
  }

  /// accumulator += A * B^T over `count` blocks, from panels with rows of `blocks` blocks.
  KOKKOS_FORCEINLINE_FUNCTION static void multiply_add(Accumulator& accumulator, const element* a,
                                                       const element* b, int count, int blocks) {
    // Outputs that no certificate covers may overflow, and are not used: unsigned, which wraps.
    std::uint32_t sum[M][N] = {};
    const int pitch = blocks * block_size;
    for (int k = 0; k < count * block_size; ++k) {
      for (int i = 0; i < M; ++i) {
        for (int j = 0; j < N; ++j) {
          sum[i][j] += static_cast<std::uint32_t>(static_cast<std::int32_t>(a[i * pitch + k]) *
                                                  b[j * pitch + k]);
        }
      }
    }
    for (int i = 0; i < M * N; ++i) {
      accumulator.value[i] = static_cast<std::int32_t>(
          static_cast<std::uint32_t>(accumulator.value[i]) + sum[i / N][i % N]);
    }
  }

  /// The dot product of two blocks of 16 bytes of codes, in quarters.
  KOKKOS_FORCEINLINE_FUNCTION static std::int32_t block_product(const std::uint8_t* a,
                                                                const std::uint8_t* b) {
    std::int32_t sum = 0;
    for (int i = 0; i < block_bytes; ++i) {
      const element a_low = signed_halves_of(static_cast<element>(a[i] & 15));
      const element b_low = signed_halves_of(static_cast<element>(b[i] & 15));
      const element a_high = signed_halves_of(static_cast<element>(a[i] >> 4));
      const element b_high = signed_halves_of(static_cast<element>(b[i] >> 4));
      sum += static_cast<std::int32_t>(a_low) * b_low;
      sum += static_cast<std::int32_t>(a_high) * b_high;
    }
    return sum;
  }
};

}  // namespace KokkosMX::Impl

#endif
