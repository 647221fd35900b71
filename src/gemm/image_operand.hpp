// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_IMAGE_OPERAND_HPP
#define KOKKOSMX_SRC_GEMM_IMAGE_OPERAND_HPP

/// \file image_operand.hpp
/// Operands of the image kernel, with what is made of them.

#include "../operand.hpp"
#include "row_split.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>

namespace KokkosMX::Impl {

/// A matrix and its images: [batch][row tile][step], each of tile_rows rows; the steps of gathered
/// columns come last. What is said of rows and octets (8 rows) counts the rows that only fill the
/// last tile.
struct ImageOperand {
  MatrixMap matrix;
  std::uint8_t* images;
  std::int64_t tile_rows, tiles, steps, gathered_steps;
  RowSplit* splits;            ///< [batch][row]
  std::uint8_t* has_outliers;  ///< [batch][octet]: not 0 if any of its rows has
  /// [batch][octet][block], where the octet has outliers: bit i says that column i of the block
  /// has.
  std::uint32_t* columns;
  std::uint32_t* rows_listed;  ///< [batch][row tile][block]: which rows have outliers in it

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
  KOKKOS_INLINE_FUNCTION std::uint32_t* rows_with_outliers(std::int64_t batch, std::int64_t t,
                                                           std::int64_t block) const {
    return rows_listed + (tile_number(batch, t) * matrix.blocks + block) * (tile_rows / 32);
  }
  /// Whether any row of the tile has outliers.
  KOKKOS_INLINE_FUNCTION bool tile_has_outliers(std::int64_t batch, std::int64_t t) const {
    const std::int64_t octets = tile_rows / 8;
    const auto* eight =
        reinterpret_cast<const std::uint64_t*>(has_outliers + tile_number(batch, t) * octets);
    std::uint64_t any = 0;
    for (std::int64_t i = 0; i < octets / 8; ++i) any |= eight[i];
    return any != 0;
  }
};

/// Images of a row's 16 elements.
struct alignas(16) ImageChunk {
  std::uint32_t word[4];
};

}  // namespace KokkosMX::Impl

#endif
