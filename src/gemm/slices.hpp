// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_SLICES_HPP
#define KOKKOSMX_SRC_GEMM_SLICES_HPP

/// \file slices.hpp
/// Products of few rows on CUDA: what the slice kernel is given, and its launch. The kernel is
/// compiled apart (slices.cpp), as it has many instances.

#include <KokkosMX/Types.hpp>

#include "../atoms/gemm/wgmma.hpp"
#include "../operand.hpp"
#include "epilogue.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>

namespace KokkosMX::Impl {

/// An operand: codes and scales in a layout whose blocks or groups lie together, or bf16.
struct SliceSide {
  DenseMap dense;
  bool is_dense;
  bool is_aligned;  ///< 16 bytes can be loaded at once
};

/// Blocks of K that the kernels take: the fewest warps that share K, three, have 64 groups each.
inline constexpr int slice_most_blocks = 768;

/// What is known of a row of x whose elements are made. An image holds the blocks of four scales.
struct alignas(16) SliceRow {
  static constexpr int most_images = 4;
  /// The least scale, over blocks that are not zeros, and how far the largest is above it; negative
  /// where one is 255.
  std::int16_t lo, spread;
  std::int16_t images;             ///< 0: more than most_images would be needed
  std::int16_t unit[most_images];  ///< the scales that the images' elements are aligned to
};

/// The elements of x: tiles of rows, each with its images.
struct SliceElements {
  std::uint8_t* data;
  SliceRow* states;             ///< [batch][row], rows that only fill the last tile included
  int log_tile, tiles, groups;  ///< groups of 128 of K
  bool by_blocks;  ///< a lane has one of a group's blocks, rather than a quarter of each

  KOKKOS_INLINE_FUNCTION int tile() const { return 1 << log_tile; }
  KOKKOS_INLINE_FUNCTION int rows() const { return tiles << log_tile; }
  KOKKOS_INLINE_FUNCTION std::int64_t image_bytes() const {
    return std::int64_t{groups} * 128 << log_tile;
  }
  /// Whether the tiles are large enough for the matrix unit to read them from shared memory.
  KOKKOS_INLINE_FUNCTION bool is_wide() const { return log_tile >= 6; }
  KOKKOS_INLINE_FUNCTION std::uint8_t* image(int batch, int at_tile, int number) const {
    return data + ((std::int64_t{batch} * tiles + at_tile) * SliceRow::most_images + number) *
                      image_bytes();
  }
  /// Where a lane of a quad has its eight elements of a row in a step of 32 of K, the first four of
  /// them; the others: at offset ^ second(). Large tiles are images of groups (Int8Images), small
  /// ones what lanes of warps load, two steps of a row together.
  KOKKOS_INLINE_FUNCTION int offset(int step, int row, int part) const {
    return is_wide() ? ((step >> 2) << (log_tile + 7)) + Int8Images::offset(row, 2 * (step & 3)) +
                           4 * part
                     : ((step >> 1) << (log_tile + 6)) + (row >> 3) * 512 +
                           16 * (4 * (row & 7) + part) + 8 * (step & 1);
  }
  KOKKOS_INLINE_FUNCTION int second() const { return is_wide() ? 16 : 4; }
  /// The same of eight numbers of a block, those from 8 * eighth on.
  KOKKOS_INLINE_FUNCTION int offset_of_eight(int block, int row, int eighth) const {
    const int step = by_blocks ? (block & ~3) + eighth : block;
    return offset(step, row, by_blocks ? block & 3 : eighth);
  }
};

/// A product whose arguments were checked: x has fewer rows than y, or as many. What every kernel
/// reads comes first, in few lines: the first read of each takes a block long.
struct SliceProblem {
  SliceSide x, y;
  SliceElements elements;
  int batch, x_batch, blocks, x_rows, y_rows;
  int sum_bits;
  QuantizeRule rule;
  Tier minimum_tier;
  bool y_is_b;
  /// C is the product in bf16, and pairs of rows of y lie in words of it.
  bool is_plain_bf16;
  Epilogue epilogue;
  std::uint64_t* counts;  ///< null where nobody counts
  /// Of operands that are not dense.
  MatrixMap y_matrix, x_matrix;
};

#ifdef KOKKOS_ENABLE_CUDA
/// Queues the product on exec. Neither allocates nor fences.
void launch_slices(const Kokkos::Cuda& exec, const SliceProblem& problem);
#endif

}  // namespace KokkosMX::Impl

#endif
