// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_OUTLIER_LISTS_HPP
#define KOKKOSMX_SRC_GEMM_OUTLIER_LISTS_HPP

/// \file outlier_lists.hpp
/// Sums of a tile's outliers, wherever they lie: its blocks with outliers are listed by their place
/// along K, and each is multiplied by the blocks in the same place of all rows of the other
/// operand.

#include <KokkosMX/Types.hpp>

#include "../atoms/gemm/int8_codes.hpp"
#include "../operand.hpp"
#include "image_operand.hpp"
#include "row_split.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>

namespace KokkosMX::Impl {

/// The lists of a tile of C, in memory that its threads share. All of them call every function
/// together, in the same order; Atom::synchronize() has them wait for each other.
template <class Atom>
class OutlierLists {
 public:
  static constexpr int chunk_columns = 32;  ///< whose sums are held at once
  /// K of a product that may have lists.
  static constexpr std::int64_t most_blocks = 2048;

  /// Memory: three pieces of each kind.
  struct Room {
    static constexpr int small_bytes = 16384, large_bytes = 32768;
    std::uint8_t* small[3];
    std::uint8_t* large[3];
  };

  KOKKOS_INLINE_FUNCTION OutlierLists(const ImageOperand& a, const ImageOperand& b,
                                      std::int64_t batch, std::int64_t tile_row,
                                      std::int64_t tile_col, int thread, const Room& room)
      : thread_(thread) {
    auto* sums = reinterpret_cast<std::int32_t*>(room.large[0]);
    outliers_main_ = sums;
    main_outliers_ = sums + cells;
    sums = reinterpret_cast<std::int32_t*>(room.large[1]);
    outliers_high_ = sums;
    outliers_low_ = sums + cells;
    a_.operand = &a;
    a_.batch = b_.batch = batch;
    a_.tile = tile_row;
    b_.operand = &b;
    b_.tile = tile_col;
    auto* firsts = reinterpret_cast<std::uint32_t*>(room.small[1]);
    auto* places = reinterpret_cast<std::uint32_t*>(room.small[2]);
    a_.elements = reinterpret_cast<std::uint32_t*>(room.small[0]);
    a_.first = firsts;
    a_.place = places;
    b_.elements = reinterpret_cast<std::uint32_t*>(room.large[2]);
    b_.first = firsts + most_blocks;
    b_.place = places + most_a;
    used_ = places + most_a + most_b;
  }

  /// Makes the lists; false if there is no room for them.
  KOKKOS_INLINE_FUNCTION bool make() {
    if (thread_ == 0) used_[0] = used_[1] = 0;
    Atom::synchronize();
    find<Atom::tile_m>(a_, used_, most_a);
    find<Atom::tile_n>(b_, used_ + 1, most_b);
    Atom::synchronize();
    const int listed_a = static_cast<int>(used_[0]), listed_b = static_cast<int>(used_[1]);
    if (listed_a > most_a || listed_b > most_b) return false;
    expand(a_, listed_a);
    expand(b_, listed_b);
    return true;
  }

  /// Adds up the sums of 32 columns from 32 * chunk on.
  KOKKOS_INLINE_FUNCTION void add_up(int chunk) {
    Atom::synchronize();  // those of the chunk before are read
    for (int i = thread_; i < cells; i += Atom::multiplying) {
      outliers_main_[i] = main_outliers_[i] = outliers_high_[i] = outliers_low_[i] = 0;
    }
    Atom::synchronize();
    add_outliers_of_rows(chunk);
    add_outliers_of_columns(chunk);
    Atom::synchronize();
  }
  /// What there is for an output, all but main.
  KOKKOS_INLINE_FUNCTION SplitSums sums(int row, int col) const {
    const int at = cell(row, col % chunk_columns);
    return {0, outliers_main_[at], main_outliers_[at], outliers_high_[at], outliers_low_[at], 16};
  }

 private:
  static constexpr int cells = Atom::tile_m * chunk_columns;
  static_assert(8 * cells <= Room::large_bytes);
  static constexpr int warp = 32, warps = Atom::multiplying / warp;
  static constexpr int words = 8;  ///< of a block's int8 elements
  static constexpr int most_a = Room::small_bytes / (4 * words);
  static constexpr int most_b = Room::large_bytes / (4 * words);
  static_assert(4 * (most_a + most_b + 2) <= Room::small_bytes);
  static_assert(8 * most_blocks <= Room::small_bytes);
  static constexpr int together = 2;  ///< loads of blocks that are under way at once

  struct Side {
    const ImageOperand* operand;
    std::int64_t batch, tile;
    std::uint32_t* elements;  ///< of each listed block: its outliers in halves, as int8
    std::uint32_t* place;     ///< of each listed block: row, block, shift
    std::uint32_t* first;     ///< of each block of K: the first in the list, and how many
  };
  static constexpr int row_bits = 9, block_bits = 11;
  KOKKOS_INLINE_FUNCTION static int row_of(std::uint32_t place) {
    return static_cast<int>(place & ((1u << row_bits) - 1));
  }
  KOKKOS_INLINE_FUNCTION static int block_of(std::uint32_t place) {
    return static_cast<int>(place >> row_bits & ((1u << block_bits) - 1));
  }
  KOKKOS_INLINE_FUNCTION static int shift_of(std::uint32_t place) {
    return static_cast<int>(place >> (row_bits + block_bits));
  }
  KOKKOS_INLINE_FUNCTION static int first_of(std::uint32_t first) {
    return static_cast<int>(first & 0xFFFFu);
  }
  KOKKOS_INLINE_FUNCTION static int end_of(std::uint32_t first) {
    return static_cast<int>((first & 0xFFFFu) + (first >> 16));
  }

  /// Rows lie across the banks of shared memory, and so do columns.
  KOKKOS_INLINE_FUNCTION static int cell(int row, int col) {
    return row * chunk_columns + (col ^ (row % chunk_columns));
  }

  template <int Rows>
  KOKKOS_INLINE_FUNCTION void find(const Side& side, std::uint32_t* used, int most) const {
    constexpr int row_words = Rows / 32;
    const std::int64_t blocks = side.operand->matrix.blocks;
    for (std::int64_t block = thread_; block < blocks; block += Atom::multiplying) {
      const std::uint32_t* rows = side.operand->rows_with_outliers(side.batch, side.tile, block);
      std::uint32_t found[row_words];
      int count = 0;
      for (int i = 0; i < row_words; ++i) {
        found[i] = rows[i];
        count += bits_in(found[i]);
      }
      std::uint32_t first = 0;
      if (count != 0) {
        first = Kokkos::atomic_fetch_add(used, static_cast<std::uint32_t>(count));
        if (first + static_cast<std::uint32_t>(count) <= static_cast<std::uint32_t>(most)) {
          std::uint32_t at = first;
          for (int i = 0; i < row_words; ++i) {
            for (std::uint32_t left = found[i]; left != 0; left &= left - 1) {
              side.place[at++] = static_cast<std::uint32_t>(32 * i + first_bit(left)) |
                                 static_cast<std::uint32_t>(block) << row_bits;
            }
          }
        }
      }
      side.first[block] = (first & 0xFFFFu) | static_cast<std::uint32_t>(count) << 16;
    }
  }
  KOKKOS_INLINE_FUNCTION void expand(const Side& side, int listed) const {
    const ImageOperand& operand = *side.operand;
    const MatrixMap& q = operand.matrix;
    const RowSplit* splits = operand.splits_of(side.batch, side.tile);
    for (int i = thread_; i < listed; i += Atom::multiplying) {
      const int row = row_of(side.place[i]), block = block_of(side.place[i]);
      const std::int64_t in_matrix = side.tile * operand.tile_rows + row;
      const int scale = *q.scales.at(side.batch, in_matrix, block);
      const BlockCodes codes = load_block(q.codes, q.codes.at(side.batch, in_matrix, block));
      const Magnitudes outliers = outlier_magnitudes(scale - splits[row].base);
      for (int w = 0; w < words; ++w) {
        side.elements[i * words + w] =
            expand_codes(codes.word[w / 2] >> (16 * (w % 2)), outliers.low, outliers.high);
      }
      side.place[i] |= static_cast<std::uint32_t>(scale - splits[row].out)
                       << (row_bits + block_bits);
    }
  }

  /// Int8 elements of a block.
  struct Elements {
    std::uint32_t word[words];
  };
  /// The main part of a row's block.
  KOKKOS_INLINE_FUNCTION static Elements main_elements(const Side& side, int row, int block) {
    const ImageOperand& operand = *side.operand;
    const std::uint8_t* image =
        operand.tile(side.batch, side.tile, Atom::step_bytes) +
        static_cast<std::int64_t>(block / Atom::step_blocks) * operand.tile_rows * Atom::step_bytes;
    Elements elements;
    for (int h = 0; h < 2; ++h) {
      const auto chunk = *reinterpret_cast<const ImageChunk*>(
          image + Atom::offset(row, 2 * (block % Atom::step_blocks) + h));
      for (int i = 0; i < 4; ++i) elements.word[4 * h + i] = chunk.word[i];
    }
    return elements;
  }
  KOKKOS_INLINE_FUNCTION static Elements listed_elements(const Side& side, int i) {
    Elements elements;
    for (int h = 0; h < 2; ++h) {
      const auto chunk = *reinterpret_cast<const ImageChunk*>(side.elements + i * words + 4 * h);
      for (int j = 0; j < 4; ++j) elements.word[4 * h + j] = chunk.word[j];
    }
    return elements;
  }
  KOKKOS_INLINE_FUNCTION static std::int32_t dot(const Elements& x, const Elements& y) {
    std::int32_t sum = 0;
    for (int i = 0; i < words; ++i) sum = dot_int8(x.word[i], y.word[i], sum);
    return sum;
  }

  /// Outliers of A by B's main part and B's outliers. A warp takes a block of K, a lane a column.
  KOKKOS_INLINE_FUNCTION void add_outliers_of_rows(int chunk) {
    const int lane = thread_ % warp;
    const int blocks = static_cast<int>(a_.operand->matrix.blocks);
    for (int from = thread_ / warp; from < blocks; from += warps * together) {
      Elements main[together];
      std::uint32_t first[together];
      KOKKOSMX_UNROLL
      for (int i = 0; i < together; ++i) {
        const int block = from + i * warps;
        first[i] = block < blocks ? a_.first[block] : 0u;
        if (first[i] >> 16 != 0) {
          main[i] = main_elements(b_, chunk * chunk_columns + lane, block);
        }
      }
      KOKKOSMX_UNROLL
      for (int i = 0; i < together; ++i) {
        if (first[i] >> 16 == 0) continue;
        KOKKOSMX_NO_UNROLL
        for (int at = first_of(first[i]); at < end_of(first[i]); ++at) {
          const std::uint32_t place = a_.place[at];
          const std::int32_t sum = dot(listed_elements(a_, at), main[i]);
          add_shared(&outliers_main_[cell(row_of(place), lane)], sum * (1 << shift_of(place)));
        }
        add_common(chunk, first[i], b_.first[from + i * warps]);
      }
    }
  }
  /// Outliers by outliers in a block of K that both have listed: a lane takes a block of A's.
  KOKKOS_INLINE_FUNCTION void add_common(int chunk, std::uint32_t first_a, std::uint32_t first_b) {
    KOKKOSMX_NO_UNROLL
    for (int at_b = first_of(first_b); at_b < end_of(first_b); ++at_b) {
      const std::uint32_t place_b = b_.place[at_b];
      if (row_of(place_b) / chunk_columns != chunk) continue;
      KOKKOSMX_NO_UNROLL
      for (int at_a = first_of(first_a) + thread_ % warp; at_a < end_of(first_a); at_a += warp) {
        const std::uint32_t place_a = a_.place[at_a];
        const std::int64_t term =
            std::int64_t{dot(listed_elements(a_, at_a), listed_elements(b_, at_b))} *
            (std::int64_t{1} << (shift_of(place_a) + shift_of(place_b)));
        const int at = cell(row_of(place_a), row_of(place_b) % chunk_columns);
        add_shared(&outliers_high_[at], static_cast<std::int32_t>(term >> 16));
        add_shared(&outliers_low_[at], static_cast<std::int32_t>(term & 0xFFFF));
      }
    }
  }
  /// A's main part by outliers of B. A warp takes a block of K, a lane some rows.
  KOKKOS_INLINE_FUNCTION void add_outliers_of_columns(int chunk) {
    static_assert(Atom::tile_m % (warp * together) == 0);
    const int lane = thread_ % warp;
    const int blocks = static_cast<int>(b_.operand->matrix.blocks);
    KOKKOSMX_NO_UNROLL
    for (int block = thread_ / warp; block < blocks; block += warps) {
      const std::uint32_t first = b_.first[block];
      bool any = false;
      for (int at = first_of(first); at < end_of(first); ++at) {
        any = any || row_of(b_.place[at]) / chunk_columns == chunk;
      }
      if (!any) continue;
      KOKKOSMX_NO_UNROLL
      for (int row = lane; row < Atom::tile_m; row += warp * together) {
        Elements main[together];
        KOKKOSMX_UNROLL
        for (int i = 0; i < together; ++i) main[i] = main_elements(a_, row + i * warp, block);
        KOKKOSMX_NO_UNROLL
        for (int at = first_of(first); at < end_of(first); ++at) {
          const std::uint32_t place = b_.place[at];
          if (row_of(place) / chunk_columns != chunk) continue;
          const Elements outliers = listed_elements(b_, at);
          const int col = row_of(place) % chunk_columns;
          KOKKOSMX_UNROLL
          for (int i = 0; i < together; ++i) {
            add_shared(&main_outliers_[cell(row + i * warp, col)],
                       dot(outliers, main[i]) * (1 << shift_of(place)));
          }
        }
      }
    }
  }

  Side a_, b_;
  int thread_;
  std::int32_t* outliers_main_;
  std::int32_t* main_outliers_;
  std::int32_t* outliers_high_;
  std::int32_t* outliers_low_;
  std::uint32_t* used_;
};

}  // namespace KokkosMX::Impl

#endif
