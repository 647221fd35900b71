// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_TEST_REFERENCE_SHUFFLE_HPP
#define KOKKOSMX_TEST_REFERENCE_SHUFFLE_HPP

/// \file ReferenceShuffle.hpp
/// aiter's two layouts as their definitions read: a view with more dimensions and a permutation.
/// The two of prepared operands, byte by byte.

#include <cstddef>
#include <cstdint>
#include <vector>

namespace KokkosMXTest {

/// The bytes of an array of these extents after permute(order), contiguous.
inline std::vector<std::uint8_t> permuted(const std::vector<std::uint8_t>& array,
                                          const std::vector<std::int64_t>& extents,
                                          const std::vector<std::size_t>& order) {
  const std::size_t rank = extents.size();
  std::vector<std::int64_t> strides(rank, 1);
  for (std::size_t d = rank - 1; d > 0; --d) strides[d - 1] = strides[d] * extents[d];
  std::vector<std::uint8_t> result;
  result.reserve(array.size());
  std::vector<std::int64_t> index(rank, 0);
  for (std::size_t n = 0; n < array.size(); ++n) {
    std::int64_t from = 0;
    for (std::size_t d = 0; d < rank; ++d) from += index[d] * strides[order[d]];
    result.push_back(array[static_cast<std::size_t>(from)]);
    for (std::size_t d = rank; d-- > 0;) {
      if (++index[d] < extents[order[d]]) break;
      index[d] = 0;
    }
  }
  return result;
}

/// shuffle_weight, layout (16,16): bytes (n, k / 2).
inline std::vector<std::uint8_t> reference_shuffle_weight(const std::vector<std::uint8_t>& codes,
                                                          std::int64_t n, std::int64_t k) {
  return permuted(codes, {n / 16, 16, k / 64, 2, 16}, {0, 2, 3, 1, 4});
}

/// shuffle_scale: scales (rows, cols), padded with 0 to multiples of 256 and 8.
inline std::vector<std::uint8_t> reference_shuffle_scale(const std::vector<std::uint8_t>& scales,
                                                         std::int64_t rows, std::int64_t cols) {
  const std::int64_t padded_rows = (rows + 255) / 256 * 256, padded_cols = (cols + 7) / 8 * 8;
  std::vector<std::uint8_t> padded(static_cast<std::size_t>(padded_rows * padded_cols), 0);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) {
      padded[static_cast<std::size_t>(r * padded_cols + c)] =
          scales[static_cast<std::size_t>(r * cols + c)];
    }
  }
  return permuted(padded, {padded_rows / 32, 2, 16, padded_cols / 8, 2, 4}, {0, 3, 5, 2, 4, 1});
}

/// Tile16x128: byte j of block k of row r is byte 4 j + k % 4 of the 64 of (r, k / 4); those lie in
/// the order (rows / 16, groups of 4 blocks, 16 rows). Where there is no code the padding's byte.
/// (Inlined, it makes g++ 12 warn of its own library's code.)
[[gnu::noinline]] inline std::vector<std::uint8_t> reference_prepare_codes(
    const std::vector<std::uint8_t>& codes, std::int64_t rows, std::int64_t k,
    std::uint8_t padding = 0) {
  const std::int64_t groups = (k + 127) / 128, tiles = (rows + 15) / 16;
  std::vector<std::uint8_t> result(static_cast<std::size_t>(tiles * groups * 1024), padding);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t byte = 0; byte < k / 2; ++byte) {
      const std::int64_t block = byte / 16, j = byte % 16;
      const std::int64_t run = (row / 16 * groups + block / 4) * 16 + row % 16;
      result[static_cast<std::size_t>(64 * run + 4 * j + block % 4)] =
          codes[static_cast<std::size_t>(row * (k / 2) + byte)];
    }
  }
  return result;
}

/// Tile16x4: (rows / 16, groups of 4 blocks, 16 rows, 4 blocks).
[[gnu::noinline]] inline std::vector<std::uint8_t> reference_prepare_scales(
    const std::vector<std::uint8_t>& scales, std::int64_t rows, std::int64_t k,
    std::uint8_t padding = 0) {
  const std::int64_t groups = (k + 127) / 128, tiles = (rows + 15) / 16;
  std::vector<std::uint8_t> result(static_cast<std::size_t>(tiles * groups * 64), padding);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t block = 0; block < k / 32; ++block) {
      const std::int64_t run = (row / 16 * groups + block / 4) * 16 + row % 16;
      result[static_cast<std::size_t>(4 * run + block % 4)] =
          scales[static_cast<std::size_t>(row * (k / 32) + block)];
    }
  }
  return result;
}

}  // namespace KokkosMXTest

#endif
