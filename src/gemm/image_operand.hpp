// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_IMAGE_OPERAND_HPP
#define KOKKOSMX_SRC_GEMM_IMAGE_OPERAND_HPP

/// \file image_operand.hpp
/// Operands of the image kernel, with what is made of them.

#include "../atoms/cuda.hpp"
#include "../atoms/gemm/image_places.hpp"
#include "../atoms/gemm/int8_codes.hpp"
#include "../operand.hpp"
#include "row_split.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>

namespace KokkosMX::Impl {

/// Rows of a tile that are multiplied as a tile of their own: their main part and parts of their
/// outliers, one below the other, take as many rows as a tile has.
struct TileCut {
  std::int64_t tile;
  int parts;  ///< 1, 2 or 4: all rows of the tile, half or a quarter of them; the main part's first
  int piece;  ///< which of these
};

/// A matrix and its images: [batch][row tile][step], each of tile_rows rows; the steps of gathered
/// columns come last. Images of the main part are followed by those of the outliers' parts, which
/// are made where outliers are not gathered. What is said of rows and octets (8 rows) counts the
/// rows that only fill the last tile.
struct ImageOperand {
  MatrixMap matrix;
  std::uint8_t* images;
  std::int64_t part_bytes;  ///< from one part's images to the next's
  std::int64_t tile_rows, tiles, steps, gathered_steps;
  RowSplit* splits;  ///< [batch][row]
  /// [batch][octet]: 0 if no row of it has outliers; bit 1 is set if those of a row take more than
  /// one part.
  std::uint8_t* has_outliers;
  /// [batch][octet][block], where the octet has outliers: bits say which columns of the block have,
  /// see codes_from().
  std::uint32_t* columns;
  std::uint32_t* cuts;  ///< of tiles, in order, where outliers have images: see cut()

  /// Of 32 rows from one of a tile on, [block]: bit i says that row i has outliers near the main
  /// part in the block. In the place of what `columns` said before outliers had images.
  KOKKOS_INLINE_FUNCTION std::uint32_t* rows_with_outliers(std::int64_t batch, std::int64_t t,
                                                           int first_row) const {
    return columns + (tile_number(batch, t) * tile_rows + first_row) / 8 * matrix.blocks;
  }

  static constexpr int most_pieces = 4;

  /// Of all batches' tiles of this number.
  KOKKOS_INLINE_FUNCTION int parts_of(std::int64_t t) const {
    std::uint64_t found = 0;
    for (std::int64_t batch = 0; batch < matrix.batch; ++batch) found |= outliers_of(batch, t);
    return (found & 0x0202020202020202u) != 0 ? 4 : found != 0 ? 2 : 1;
  }
  KOKKOS_INLINE_FUNCTION void set_cut(std::int64_t i, const TileCut& cut) const {
    cuts[i] = static_cast<std::uint32_t>(cut.tile << 5 | cut.parts << 2 | cut.piece);
  }
  KOKKOS_INLINE_FUNCTION TileCut cut(std::int64_t i) const {
    const std::uint32_t cut = cuts[i];
    return {cut >> 5, static_cast<int>(cut >> 2 & 7u), static_cast<int>(cut & 3u)};
  }
  KOKKOS_INLINE_FUNCTION std::int64_t tile_number(std::int64_t batch, std::int64_t t) const {
    return (matrix.batch == 1 ? 0 : batch) * tiles + t;
  }
  KOKKOS_INLINE_FUNCTION std::uint8_t* tile(std::int64_t batch, std::int64_t t,
                                            std::int64_t step_bytes) const {
    return images + tile_number(batch, t) * (steps + gathered_steps) * tile_rows * step_bytes;
  }
  KOKKOS_INLINE_FUNCTION RowSplit* splits_of(std::int64_t batch, std::int64_t t) const {
    return splits + tile_number(batch, t) * tile_rows;
  }
  /// Whether any row of the tile has outliers: what its octets have, together.
  KOKKOS_INLINE_FUNCTION std::uint64_t outliers_of(std::int64_t batch, std::int64_t t) const {
    return outliers_of(batch, t, tile_rows);
  }
  KOKKOS_INLINE_FUNCTION std::uint64_t outliers_of(std::int64_t batch, std::int64_t t,
                                                   std::int64_t rows_of_tile) const {
    const std::int64_t octets = rows_of_tile / 8;
    const auto* eight =
        reinterpret_cast<const std::uint64_t*>(has_outliers + tile_number(batch, t) * octets);
    std::uint64_t any = 0;
    KOKKOSMX_UNROLL
    for (std::int64_t i = 0; i < octets / 8; ++i) any |= eight[i];
    return any;
  }
};

/// Images of a row's 16 elements.
struct alignas(16) ImageChunk {
  std::uint32_t word[4];
};

/// A block's chunks to the image of a step. Warps call it together: a row's blocks are in lanes one
/// after the other.
KOKKOS_INLINE_FUNCTION void store_chunks(std::uint8_t* image, int row, int block,
                                         const ImageChunk (&chunks)[2]) {
  const auto put = [&](int of_block, int h, const ImageChunk& chunk) {
    *reinterpret_cast<ImageChunk*>(image + ChunksOfTwoBlocks::place(row, of_block, h)) = chunk;
  };
  if constexpr (Warp::is_there) {
    // Word by word, or chunks would not be in registers.
    using Two = ChunksOfTwoBlocks;
    const int h = Two::written(block);
    ImageChunk even, odd;  // of the blocks of these numbers
    KOKKOSMX_UNROLL
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t first = chunks[0].word[i], second = chunks[1].word[i];
      const std::uint32_t other =
          Warp::from_lane_xor(Two::given(h, first, second), Two::other_lane);
      even.word[i] = Two::of_even(h, first, other);
      odd.word[i] = Two::of_odd(h, second, other);
    }
    put(Two::even(block), h, even);
    put(Two::odd(block), h, odd);
  } else {
    put(block, 0, chunks[0]);
    put(block, 1, chunks[1]);
  }
}

/// What became of the columns of K in which some row of either operand has outliers: there are
/// none, they are gathered, they are gathered and near the main part, or they are too many, and
/// outliers have images of their own.
enum class Gathering : std::uint32_t { none, done, near, imaged };
struct Outliers {
  Gathering how;
  int parts;               ///< of 32 gathered columns each: those after them are none
  bool high_a, high_b;     ///< some gathered outlier of the operand has a high digit
  std::uint32_t tiles[2];  ///< of rows of each operand, cut where outliers have images
  int shift = 0;           ///< from the main part to imaged outliers near it; 0: they are not
  int columns[2] = {};     ///< with outliers near the main part, of each operand
  int common = 0;          ///< of them, those of both
  int unit = 0;            ///< these outliers count 2^unit units of the main part

  /// Of these columns, the first operand's, then the second's, with so many in a step.
  KOKKOS_INLINE_FUNCTION int joint_steps(int most) const {
    return (columns[0] + columns[1] + most - 1) / most;
  }
  /// Outliers are near: accumulators hold what they add.
  KOKKOS_INLINE_FUNCTION bool are_near() const { return how == Gathering::near || shift > 0; }
};

/// Of the groups that gather outliers together: they take one piece of work after the other, first
/// of finding columns and reaches, then of making images, and wait only for pieces that a running
/// group has taken.
struct GatherState {
  std::uint32_t taken[2], done[2];
  Gathering gathering;
  std::uint32_t cuts[2];  ///< of tiles of rows, where outliers have images
  /// Of all rows with outliers: whether any has some below its main part, or of unknown weight;
  /// most_shift less the least shift from the main part to outliers, the largest shift; the largest
  /// weight << shift of an operand.
  std::int32_t reach[6];
  std::int32_t shift;  ///< see Outliers
  static constexpr int below = 0, unknown = 1, lowest = 2, highest = 3, weight = 4, reaches = 6;
  static constexpr int most_shift = 16;
};

}  // namespace KokkosMX::Impl

#endif
