// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_OPERAND_HPP
#define KOKKOSMX_SRC_OPERAND_HPP

/// \file operand.hpp
/// Operands as kernels see them. Every layout is the same sum of strides over the digits of a row
/// and of a block, so kernels know no layouts.

#include <KokkosMX/Matrix.hpp>
#include <KokkosMX/Types.hpp>

#include "numbers.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>
#include <cstring>

namespace KokkosMX::Impl {

/// Blocks of a group: vector code takes so many blocks of a row together, with their codes
/// interleaved as Tile16x128 has them: byte 4 j + b of a group is byte j of block b.
inline constexpr int group_blocks = 4;
/// Bytes of the codes of a row's group.
inline constexpr int group_bytes = group_blocks * block_bytes;

/// Codes: the 16 bytes of (batch, row, block), each `byte` after the one before. rows and blocks
/// include the layout's padding.
struct CodesMap {
  std::uint8_t* data;
  std::int64_t batch, tile_of_16_rows, row, block_4, block_1, byte;  // strides in bytes
  std::int64_t rows, blocks;

  KOKKOS_INLINE_FUNCTION std::uint8_t* at(std::int64_t b, std::int64_t r, std::int64_t k) const {
    return data + b * batch + (r >> 4) * tile_of_16_rows + (r & 15) * row + block_offset(k);
  }
  KOKKOS_INLINE_FUNCTION std::int64_t block_offset(std::int64_t k) const {
    return (k >> 2) * block_4 + (k & 3) * block_1;
  }
  /// The 16 bytes of the block at `from`, one after the other: where they lie, or in local.
  KOKKOS_INLINE_FUNCTION const std::uint8_t* load(const std::uint8_t* from,
                                                  std::uint8_t (&local)[block_bytes]) const {
    // Devices have no addresses of registers: there the bytes are always copied.
    KOKKOS_IF_ON_HOST((if (byte == 1) return from;))
    if (byte == 1 && is_aligned(from)) {
      const Whole whole = *reinterpret_cast<const Whole*>(from);
      std::memcpy(local, &whole, sizeof(whole));
    } else {
      for (int i = 0; i < block_bytes; ++i) local[i] = from[i * byte];
    }
    return local;
  }
  /// The block of a place, loaded.
  KOKKOS_INLINE_FUNCTION const std::uint8_t* load(std::int64_t b, std::int64_t r, std::int64_t k,
                                                  std::uint8_t (&local)[block_bytes]) const {
    return load(at(b, r, k), local);
  }
  /// Calls make(bytes), which writes 16 bytes, and has them at `to`.
  template <class Make>
  KOKKOS_INLINE_FUNCTION auto store(std::uint8_t* to, const Make& make) const {
    alignas(block_bytes) std::uint8_t local[block_bytes];
    bool in_place = false;
    KOKKOS_IF_ON_HOST((in_place = byte == 1;))
    const auto result = make(in_place ? to : local);
    if (in_place) return result;
    if (byte == 1 && is_aligned(to)) {
      Whole whole;
      std::memcpy(&whole, local, sizeof(whole));
      *reinterpret_cast<Whole*>(to) = whole;
    } else {
      for (int i = 0; i < block_bytes; ++i) to[i * byte] = local[i];
    }
    return result;
  }
  /// A block's bytes as devices load and store them at once.
  struct alignas(block_bytes) Whole {
    std::uint32_t word[block_bytes / 4];
  };
  KOKKOS_INLINE_FUNCTION static bool is_aligned(const void* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % block_bytes == 0;
  }

  KOKKOS_INLINE_FUNCTION void clear(std::uint8_t* to) const {
    for (int i = 0; i < block_bytes; ++i) to[i * byte] = 0;
  }
};

/// Scales: one byte for (batch, row, block). rows and cols include the layout's padding.
struct ScalesMap {
  std::uint8_t* data;
  std::int64_t batch, row_32, row_16, row_1, col_8, col_4, col_1;  // strides in bytes
  std::int64_t rows, cols;

  KOKKOS_INLINE_FUNCTION std::uint8_t* at(std::int64_t b, std::int64_t r, std::int64_t k) const {
    return data + b * batch + (r >> 5) * row_32 + ((r >> 4) & 1) * row_16 + (r & 15) * row_1 +
           col_offset(k);
  }
  KOKKOS_INLINE_FUNCTION std::int64_t col_offset(std::int64_t k) const {
    return (k >> 3) * col_8 + ((k >> 2) & 1) * col_4 + (k & 3) * col_1;
  }
};

/// Row summaries; data is null where there are none.
struct SummariesMap {
  RowSummary* data;
  std::int64_t batch, row;  // strides in RowSummary

  KOKKOS_INLINE_FUNCTION RowSummary* at(std::int64_t b, std::int64_t r) const {
    return data + b * batch + r * row;
  }
};

/// An MXFP4 matrix: blocks = K / 32. Strides of a batch extent of 1 are 0.
struct MatrixMap {
  CodesMap codes;
  ScalesMap scales;
  SummariesMap summaries;
  std::int64_t batch, rows, blocks;
};

/// A dense matrix whose rows are contiguous, as an input of quantize or an output of dequantize.
struct DenseMap {
  unsigned char* data;
  std::int64_t batch, row;  // strides in bytes

  KOKKOS_INLINE_FUNCTION unsigned char* at(std::int64_t b, std::int64_t r,
                                           std::int64_t byte) const {
    return data + b * batch + r * row + byte;
  }
};

/// The least and the merged knowledge of a row: RowSummary's formula is a sum that forgets no
/// order, so blocks can be merged in any.
KOKKOS_INLINE_FUNCTION std::uint64_t shift_saturated(std::uint64_t n, int bits) {
  if (n == 0) return 0;
  return bits > leading_zeros(n) ? ~std::uint64_t{0} : n << bits;
}
KOKKOS_INLINE_FUNCTION void merge(RowSummary& into, const RowSummary& other) {
  into.has_nan |= other.has_nan;
  if (other.n == 0) return;
  if (into.n == 0) {
    into.n = other.n;
    into.lo = other.lo;
    into.hi = other.hi;
    return;
  }
  const std::uint8_t lo = into.lo < other.lo ? into.lo : other.lo;
  const std::uint64_t a = shift_saturated(into.n, 2 * (into.lo - lo));
  const std::uint64_t b = shift_saturated(other.n, 2 * (other.lo - lo));
  into.n = a > ~b ? ~std::uint64_t{0} : a + b;
  into.lo = lo;
  into.hi = into.hi > other.hi ? into.hi : other.hi;
}

/// The summary of one block: sum_of_squares in quarters, as RowSummary's formula says.
KOKKOS_INLINE_FUNCTION RowSummary summary_of_block(std::uint8_t scale,
                                                   std::uint32_t sum_of_squares) {
  RowSummary summary{};
  if (scale == 255) {
    summary.has_nan = 1;
  } else if (sum_of_squares != 0) {
    summary.n = sum_of_squares;
    summary.lo = scale;
    summary.hi = scale;
  }
  return summary;
}

}  // namespace KokkosMX::Impl

#endif
