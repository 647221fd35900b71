// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_GEMM_IMAGE_PLACES_HPP
#define KOKKOSMX_SRC_ATOMS_GEMM_IMAGE_PLACES_HPP

/// \file image_places.hpp
/// Where the image kernels put what a warp's lanes pass to one another: numbers alone, which tests
/// of a host follow through models of the instructions.

#include "wgmma.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>

namespace KokkosMX::Impl {

/// A warp's 16 rows of a tile's outputs (Int8Images::row_of and col_of) in bf16, which pass through
/// the warp's own memory: 64 columns of each row at a time, a line, from where eight lanes store
/// 16-byte pieces. The pieces of a line change places by the row's number, so that no banks
/// conflict.
struct LinesOfOutputs {
  static constexpr int together = 8, line = 128;  // matrices of 8 columns; bytes

  /// A lane's number among eight, and theirs.
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int eighth(int lane) { return lane & 7; }
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int quarter(int lane) { return lane >> 3; }

  /// The row of a line that a lane names, of the first two matrices; and of j, an even number, and
  /// the next one. Four matrices of 8 by 8, as Warp::store_matrices has them: rows 0 to 7 and 8 to
  /// 15 of the first columns, and of the next ones.
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int named(int lane, int eighth) {
    return (lane & 15) * line + ((eighth ^ lane >> 4) << 4);
  }
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int of_matrices(int place, int j) {
    return place ^ 16 * j;
  }
  /// The first of the two accumulators that become the instruction's register i of four, where
  /// `first` matrices have been stored; and which of the thread's two rows they are of.
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int first_value(int first, int j, int i) {
    return 4 * (first + j) + 2 * i;
  }
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int second(int i) { return i % 2; }
  /// Those rows.
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int row_of(int thread, int second) {
    return Int8Images::row_of(thread, 2 * second);
  }
  /// Where, in pairs of columns, those of the first two accumulators are; and how far behind them
  /// those of register i.
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int first_pair(int thread) {
    return Int8Images::col_of(thread, 0) / 2;
  }
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int pair_behind(int first, int j, int i) {
    return 4 * (first + j + i / 2);
  }

  /// The piece of a line that a lane stores; of every fourth line, i-th of four.
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int taken(int quarter, int eighth) {
    return quarter * line + ((eighth ^ quarter) << 4);
  }
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int of_line(int place, int i) {
    return (place ^ 64 * (i % 2)) + 4 * line * i;
  }
  /// The tile's rows before the warp's; of these the row that it is of, of i = 0, and the first of
  /// eight columns, of the first ones; and how far behind these others are.
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int rows_before(int thread) {
    return (thread >> 5) * 16;
  }
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int stored_row(int quarter) { return quarter; }
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int stored_col(int eighth) { return 8 * eighth; }
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int row_behind(int i) { return 4 * i; }
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int col_behind(int first) { return 8 * first; }
};

/// Two chunks of a block make a sector of memory, which two lanes with blocks next to each other
/// write at once: the first or the second chunk of either's.
struct ChunksOfTwoBlocks {
  /// Which chunk of both blocks the lane writes that has a block of this number.
  KOKKOS_INLINE_FUNCTION static constexpr int written(int block) { return block & 1; }
  /// The bits by which the other lane's number differs.
  static constexpr int other_lane = 1;
  /// Of the lane's own chunks, word by word, what the other lane gets.
  KOKKOS_INLINE_FUNCTION static constexpr std::uint32_t given(int h, std::uint32_t first,
                                                              std::uint32_t second) {
    return h == 0 ? second : first;
  }
  /// What it writes of the even and of the odd block, with what it got; and their numbers.
  KOKKOS_INLINE_FUNCTION static constexpr std::uint32_t of_even(int h, std::uint32_t first,
                                                                std::uint32_t got) {
    return h == 0 ? first : got;
  }
  KOKKOS_INLINE_FUNCTION static constexpr std::uint32_t of_odd(int h, std::uint32_t second,
                                                               std::uint32_t got) {
    return h == 0 ? got : second;
  }
  KOKKOS_INLINE_FUNCTION static constexpr int even(int block) { return block & ~1; }
  KOKKOS_INLINE_FUNCTION static constexpr int odd(int block) { return block | 1; }
  /// Where chunk h of a block lies in the image of a step.
  KOKKOS_INLINE_FUNCTION static constexpr int place(int row, int block, int h) {
    return Int8Images::offset(row, 2 * block + h);
  }
};

}  // namespace KokkosMX::Impl

#endif
