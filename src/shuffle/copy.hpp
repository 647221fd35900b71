// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_SHUFFLE_COPY_HPP
#define KOKKOSMX_SRC_SHUFFLE_COPY_HPP

/// \file copy.hpp
/// The kernels that copy codes, scales and summaries from any layout to any, for arguments already
/// checked.

#include <KokkosMX/Matrix.hpp>
#include <KokkosMX/Types.hpp>

#include "../launch.hpp"
#include "../numbers.hpp"
#include "../operand.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

namespace KokkosMX::Impl {

/// Threads of a team, on devices.
inline constexpr int copy_threads = 128;

/// Bytes of a matrix that a host thread copies at a time, about.
inline constexpr std::int64_t copy_bytes_per_item = 32768;

/// How the tiles of a matrix are dealt out: some to an item.
struct TilesOfItems {
  std::int64_t tiles, tiles_per_item, items_per_batch;

  template <class ExecSpace>
  static TilesOfItems make(const ExecSpace& exec, std::int64_t batch, std::int64_t tiles,
                           std::int64_t bytes_of_tile) {
    std::int64_t each = 1;
    if (is_host_space_v<ExecSpace>) {
      const std::int64_t most = batch * tiles / (4 * concurrency_of(exec));  // work for all threads
      each = copy_bytes_per_item / (bytes_of_tile > 0 ? bytes_of_tile : 1);
      each = each < most ? each : most;
      each = each < tiles ? each : tiles;
      each = each > 1 ? each : 1;
    }
    return {tiles, each, (tiles + each - 1) / each};
  }
  /// Calls f(batch, tile) for the tiles of an item.
  template <class Group, class F>
  KOKKOS_INLINE_FUNCTION void operator()(const Group& group, std::int64_t item, const F& f) const {
    const Divided place = divided(group, item, items_per_batch);
    const std::int64_t first = place.remainder * tiles_per_item;
    const std::int64_t end = first + tiles_per_item < tiles ? first + tiles_per_item : tiles;
    for (std::int64_t tile = first; tile < end; ++tile) f(place.quotient, tile);
  }
};

/// A tile is 16 rows of the output; what lies outside the matrix is padding, written with 0. A
/// thread moves groups of 4 blocks of a row. Woven: a group's bytes lie together, those of the
/// blocks taking turns (Tile16x128).
template <bool FromWoven, bool ToWoven>
struct CopyCodes {
  CodesMap from, to;
  std::int64_t rows, blocks;
  TilesOfItems tiles;
  struct Scratch {};

  template <class Group>
  KOKKOS_FUNCTION void operator()(const Group& group, Scratch&, std::int64_t item) const {
    tiles(group, item, [&](std::int64_t batch, std::int64_t tile) {
      const std::int64_t first = 16 * tile, groups = (to.blocks + 3) / 4, whole = blocks / 4;
      const std::int64_t height = to.rows - first < 16 ? to.rows - first : 16;
      const std::int64_t inside = rows - first < height ? rows - first : height;
      // So many whole groups, down from (row, g) or to its right.
      const auto move_down = [&](std::int64_t row, std::int64_t g, std::int64_t count) {
        move(from.at(batch, first + row, 4 * g), from.block_1, from.row,
             to.at(batch, first + row, 4 * g), to.block_1, to.row, count);
      };
      const auto move_right = [&](std::int64_t row, std::int64_t g, std::int64_t count) {
        move(from.at(batch, first + row, 4 * g), from.block_1, from.block_4,
             to.at(batch, first + row, 4 * g), to.block_1, to.block_4, count);
      };
      const auto move_rest = [&](std::int64_t row, std::int64_t g) {
        const std::int64_t given = row < inside ? blocks - 4 * g : 0, filled = to.blocks - 4 * g;
        move_part(from.at(batch, first + row, 4 * g), given < 4 ? given : 4,
                  to.at(batch, first + row, 4 * g), filled < 4 ? filled : 4);
      };
      if constexpr (Group::is_serial) {
        // In the order of the output.
        if (to.block_4 == group_bytes) {
          constexpr std::int64_t run = 8;
          for (std::int64_t g = 0; g < whole; g += run) {
            const std::int64_t count = whole - g < run ? whole - g : run;
            for (std::int64_t row = 0; row < inside; ++row) move_right(row, g, count);
          }
        } else {
          for (std::int64_t g = 0; g < whole; ++g) move_down(0, g, inside);
        }
        for (std::int64_t row = 0; row < height; ++row) {
          for (std::int64_t g = row < inside ? whole : 0; g < groups; ++g) move_rest(row, g);
        }
      } else {
        for_each(group, 16 * groups, [&](std::int64_t i) {
          const std::int64_t row = i % 16, g = i / 16;
          if (row >= height) return;
          if (row < inside && g < whole) {
            move_down(row, g, 1);
          } else {
            move_rest(row, g);
          }
        });
      }
    });
  }

 private:
  /// Whole groups. Strides are copied: for all that a compiler knows, bytes could be members.
  KOKKOS_INLINE_FUNCTION static void move(const std::uint8_t* source, std::int64_t from_1,
                                          std::int64_t from_step, std::uint8_t* target,
                                          std::int64_t to_1, std::int64_t to_step,
                                          std::int64_t count) {
    for (std::int64_t n = 0; n < count; ++n, source += from_step, target += to_step) {
      std::uint8_t in[group_bytes], out[group_bytes];
      if constexpr (FromWoven) {
        std::memcpy(in, source, group_bytes);
      } else {
        for (int b = 0; b < 4; ++b) {
          std::memcpy(in + b * block_bytes, source + b * from_1, block_bytes);
        }
      }
      if constexpr (FromWoven == ToWoven) {
        std::memcpy(out, in, group_bytes);
      } else if constexpr (ToWoven) {
        weave(in, out);
      } else {
        unweave(in, out);
      }
      if constexpr (ToWoven) {
        std::memcpy(target, out, group_bytes);
      } else {
        for (int b = 0; b < 4; ++b) {
          std::memcpy(target + b * to_1, out + b * block_bytes, block_bytes);
        }
      }
    }
  }
  /// By way of numbers of 2 and 4 bytes, the first the lowest: loops that compilers vectorize.
  KOKKOS_INLINE_FUNCTION static void weave(const std::uint8_t (&in)[group_bytes],
                                           std::uint8_t (&out)[group_bytes]) {
    std::uint16_t low[block_bytes], high[block_bytes];
    std::uint32_t all[block_bytes];
    for (int j = 0; j < block_bytes; ++j) {
      low[j] = static_cast<std::uint16_t>(in[j] | (in[16 + j] << 8));
    }
    for (int j = 0; j < block_bytes; ++j) {
      high[j] = static_cast<std::uint16_t>(in[32 + j] | (in[48 + j] << 8));
    }
    for (int j = 0; j < block_bytes; ++j) {
      all[j] = low[j] | (static_cast<std::uint32_t>(high[j]) << 16);
    }
    std::memcpy(out, all, group_bytes);
  }
  KOKKOS_INLINE_FUNCTION static void unweave(const std::uint8_t (&in)[group_bytes],
                                             std::uint8_t (&out)[group_bytes]) {
    std::uint16_t low[block_bytes], high[block_bytes];
    std::uint32_t all[block_bytes];
    std::memcpy(all, in, group_bytes);
    for (int j = 0; j < block_bytes; ++j) low[j] = static_cast<std::uint16_t>(all[j]);
    for (int j = 0; j < block_bytes; ++j) high[j] = static_cast<std::uint16_t>(all[j] >> 16);
    for (int j = 0; j < block_bytes; ++j) out[j] = static_cast<std::uint8_t>(low[j]);
    for (int j = 0; j < block_bytes; ++j) out[16 + j] = static_cast<std::uint8_t>(low[j] >> 8);
    for (int j = 0; j < block_bytes; ++j) out[32 + j] = static_cast<std::uint8_t>(high[j]);
    for (int j = 0; j < block_bytes; ++j) out[48 + j] = static_cast<std::uint8_t>(high[j] >> 8);
  }
  /// The first `given` blocks, and zeros after them, to the first `filled`.
  KOKKOS_INLINE_FUNCTION void move_part(const std::uint8_t* source, std::int64_t given,
                                        std::uint8_t* target, std::int64_t filled) const {
    for (std::int64_t b = 0; b < filled; ++b) {
      for (int j = 0; j < block_bytes; ++j) {
        target[b * to.block_1 + j * to.byte] =
            b < given ? source[b * from.block_1 + j * from.byte] : std::uint8_t{0};
      }
    }
  }
};

/// From rows to Tile32x8, or back. A tile is 32 rows of it, where a 32-bit word holds the scales of
/// 2 rows 16 apart in 2 columns 4 apart; what lies outside the matrix is padding, written with 0. A
/// thread moves 64 columns (on devices 8) of 4 rows: two next to one another, and those 16 below.
/// All in 64-bit numbers of 8 bytes, the first the lowest.
template <bool ToTiles>
struct CopyScalesOfTile32x8 {
  ScalesMap plain, tiled;
  std::int64_t rows, cols;
  TilesOfItems tiles;
  struct Scratch {};

  template <class Group>
  KOKKOS_FUNCTION void operator()(const Group& group, Scratch&, std::int64_t item) const {
    tiles(group, item, [&](std::int64_t batch, std::int64_t tile) {
      const std::int64_t first = 32 * tile;
      std::uint8_t* const in_tile = tiled.at(batch, first, 0);
      std::uint8_t* const in_rows = first < rows ? plain.at(batch, first, 0) : nullptr;
      const int height = static_cast<int>(rows - first < 32 ? rows - first : 32);
      const std::int64_t stride = plain.row_1, width = cols;
      constexpr int octets = Group::is_serial ? 8 : 1, columns = 8 * octets;
      for_each(group, (width + columns - 1) / columns * 8, [&](std::int64_t i) {
        const int row = 2 * static_cast<int>(i % 8);
        const std::int64_t col = i / 8 * columns;
        move<octets>(row < height ? in_rows + row * stride + col : nullptr, stride, height - row,
                     in_tile + 4 * row + 32 * col,
                     static_cast<int>(width - col < columns ? width - col : columns));
      });
    });
  }

 private:
  static constexpr std::uint64_t even_bytes = 0x00FF00FF00FF00FFu;
  static constexpr std::uint64_t low = 0x00000000FFFFFFFFu;

  /// 8 bytes of the caller's, which may lie anywhere, on devices too.
  KOKKOS_INLINE_FUNCTION static std::uint64_t get(const std::uint8_t* from) {
    std::uint64_t value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  KOKKOS_INLINE_FUNCTION static void put(std::uint8_t* to, std::uint64_t value) {
    std::memcpy(to, &value, sizeof(value));
  }

  /// Exchanges the two 16-bit numbers in the middle.
  KOKKOS_INLINE_FUNCTION static std::uint64_t exchange(std::uint64_t x) {
    return (x & 0xFFFF00000000FFFFu) | ((x >> 16) & 0xFFFF0000u) |
           ((x << 16) & 0x0000FFFF00000000u);
  }

  /// height: how many rows there are from the first on.
  template <int Octets>
  KOKKOS_INLINE_FUNCTION static void move(std::uint8_t* rows_at, std::int64_t stride, int height,
                                          std::uint8_t* words_at, int width) {
    std::uint64_t row[4][Octets];    // columns of the first row, its next, and those 16 below
    std::uint64_t words[4][Octets];  // columns 0, 1, 2, 3 of 8, of the first row and its next
    if constexpr (ToTiles) {
      for (int i = 0; i < 4; ++i) {
        const int at = (i & 1) + (i & 2) * 8;
        if (at < height && width == 8 * Octets) {
          std::memcpy(row[i], rows_at + at * stride, 8 * Octets);
        } else {
          std::memset(row[i], 0, 8 * Octets);
          if (at < height) copy<8 * Octets>(row[i], rows_at + at * stride, width);
        }
      }
      to_words(row, words);
      for (int i = 0; i < Octets && 8 * i < width; ++i) {
        for (int c = 0; c < 4; ++c) put(words_at + 256 * i + 64 * c, words[c][i]);
      }
    } else {
      for (int i = 0; i < Octets; ++i) {
        for (int c = 0; c < 4; ++c) {
          words[c][i] = 8 * i < width ? get(words_at + 256 * i + 64 * c) : 0;
        }
      }
      to_rows(words, row);
      for (int i = 0; i < 4; ++i) {
        const int at = (i & 1) + (i & 2) * 8;
        if (at >= height) continue;
        if (width == 8 * Octets) {
          std::memcpy(rows_at + at * stride, row[i], 8 * Octets);
        } else {
          copy<8 * Octets>(rows_at + at * stride, row[i], width);
        }
      }
    }
  }
  /// At most Most bytes: a loop that devices unroll.
  template <int Most>
  KOKKOS_INLINE_FUNCTION static void copy(void* to, const void* from, int bytes) {
    for (int i = 0; i < Most; ++i) {
      if (i < bytes) static_cast<std::uint8_t*>(to)[i] = static_cast<const std::uint8_t*>(from)[i];
    }
  }

  template <int Octets>
  KOKKOS_INLINE_FUNCTION static void to_words(const std::uint64_t (&row)[4][Octets],
                                              std::uint64_t (&words)[4][Octets]) {
    for (int i = 0; i < Octets; ++i) {
      const std::uint64_t x = row[0][i], y = row[1][i], u = row[2][i], v = row[3][i];
      // Columns 0 4 2 6 and 1 5 3 7, each of two rows.
      const std::uint64_t x_even = exchange((x & even_bytes) | ((u & even_bytes) << 8));
      const std::uint64_t x_odd = exchange(((x >> 8) & even_bytes) | (u & ~even_bytes));
      const std::uint64_t y_even = exchange((y & even_bytes) | ((v & even_bytes) << 8));
      const std::uint64_t y_odd = exchange(((y >> 8) & even_bytes) | (v & ~even_bytes));
      words[0][i] = (x_even & low) | (y_even << 32);
      words[1][i] = (x_odd & low) | (y_odd << 32);
      words[2][i] = (x_even >> 32) | (y_even & ~low);
      words[3][i] = (x_odd >> 32) | (y_odd & ~low);
    }
  }
  template <int Octets>
  KOKKOS_INLINE_FUNCTION static void to_rows(const std::uint64_t (&words)[4][Octets],
                                             std::uint64_t (&row)[4][Octets]) {
    for (int i = 0; i < Octets; ++i) {
      const std::uint64_t w0 = words[0][i], w1 = words[1][i], w2 = words[2][i], w3 = words[3][i];
      const std::uint64_t x_even = exchange((w0 & low) | (w2 << 32));
      const std::uint64_t x_odd = exchange((w1 & low) | (w3 << 32));
      const std::uint64_t y_even = exchange((w0 >> 32) | (w2 & ~low));
      const std::uint64_t y_odd = exchange((w1 >> 32) | (w3 & ~low));
      row[0][i] = (x_even & even_bytes) | ((x_odd & even_bytes) << 8);
      row[1][i] = (y_even & even_bytes) | ((y_odd & even_bytes) << 8);
      row[2][i] = ((x_even >> 8) & even_bytes) | (x_odd & ~even_bytes);
      row[3][i] = ((y_even >> 8) & even_bytes) | (y_odd & ~even_bytes);
    }
  }
};

/// From any layout to any. A tile is 32 rows of the output; what lies outside the matrix is
/// padding, written with 0. A thread moves 4 columns of a row, which lie together in all but
/// Tile32x8.
struct CopyScales {
  ScalesMap from, to;
  std::int64_t rows, cols;
  TilesOfItems tiles;
  struct Scratch {};

  template <class Group>
  KOKKOS_FUNCTION void operator()(const Group& group, Scratch&, std::int64_t item) const {
    const bool together = from.col_1 == 1 && to.col_1 == 1;
    tiles(group, item, [&](std::int64_t batch, std::int64_t tile) {
      const std::int64_t first = 32 * tile;
      const std::int64_t height = to.rows - first < 32 ? to.rows - first : 32;
      for_each(group, (to.cols + 3) / 4, [&](std::int64_t i) {
        const std::int64_t col = 4 * i;
        std::int64_t row = first;
        if (together && col + 4 <= cols) {
          const std::int64_t inside = rows < first + height ? rows : first + height;
          for (; row < inside; row += 16) {
            const std::int64_t count = inside - row < 16 ? inside - row : 16;
            move(from.at(batch, row, col), from.row_1, to.at(batch, row, col), to.row_1, count);
          }
          row = inside > first ? inside : first;
        }
        for (; row < first + height; ++row) {
          for (std::int64_t c = col; c < col + 4 && c < to.cols; ++c) {
            const bool inside = row < rows && c < cols;
            *to.at(batch, row, c) = inside ? *from.at(batch, row, c) : std::uint8_t{0};
          }
        }
      });
    });
  }

 private:
  KOKKOS_INLINE_FUNCTION static void move(const std::uint8_t* source, std::int64_t from_row,
                                          std::uint8_t* target, std::int64_t to_row,
                                          std::int64_t count) {
    for (std::int64_t n = 0; n < count; ++n, source += from_row, target += to_row) {
      std::uint8_t bytes[4];
      std::memcpy(bytes, source, 4);
      std::memcpy(target, bytes, 4);
    }
  }
};

/// Items are groups of 256 rows.
struct CopySummaries {
  SummariesMap from, to;
  std::int64_t rows, groups;
  struct Scratch {};
  static constexpr std::int64_t height = 256;

  template <class Group>
  KOKKOS_FUNCTION void operator()(const Group& group, Scratch&, std::int64_t item) const {
    const Divided place = divided(group, item, groups);
    const std::int64_t batch = place.quotient, first = place.remainder * height;
    for_each(group, rows - first < height ? rows - first : height,
             [&](std::int64_t i) { *to.at(batch, first + i) = *from.at(batch, first + i); });
  }
};

template <class ExecSpace>
void launch_copy_codes(const std::string& label, const ExecSpace& exec, std::int64_t batch,
                       std::int64_t rows, std::int64_t blocks, const CodesMap& from,
                       const CodesMap& to) {
  const auto tiles =
      TilesOfItems::make(exec, batch, (to.rows + 15) / 16, 16 * blocks * block_bytes);
  const auto go = [&](auto from_woven, auto to_woven) {
    launch(label, exec, batch * tiles.items_per_batch, threads<copy_threads>,
           CopyCodes<from_woven, to_woven>{from, to, rows, blocks, tiles});
  };
  if (from.byte == 1) {
    if (to.byte == 1) {
      go(std::false_type{}, std::false_type{});
    } else {
      go(std::false_type{}, std::true_type{});
    }
  } else if (to.byte == 1) {
    go(std::true_type{}, std::false_type{});
  } else {
    go(std::true_type{}, std::true_type{});
  }
}

template <class ExecSpace>
void launch_copy_scales(const std::string& label, const ExecSpace& exec, std::int64_t batch,
                        std::int64_t rows, std::int64_t cols, const ScalesMap& from,
                        ScalesKind from_kind, const ScalesMap& to, ScalesKind to_kind) {
  const auto tiles = TilesOfItems::make(exec, batch, (to.rows + 31) / 32, 32 * cols);
  const std::int64_t items = batch * tiles.items_per_batch;
  if (from_kind == ScalesKind::row_major && to_kind == ScalesKind::tile_32x8) {
    launch(label, exec, items, threads<copy_threads>,
           CopyScalesOfTile32x8<true>{from, to, rows, cols, tiles});
  } else if (from_kind == ScalesKind::tile_32x8 && to_kind == ScalesKind::row_major) {
    launch(label, exec, items, threads<copy_threads>,
           CopyScalesOfTile32x8<false>{to, from, rows, cols, tiles});
  } else {
    launch(label, exec, items, threads<copy_threads>, CopyScales{from, to, rows, cols, tiles});
  }
}

template <class ExecSpace>
void launch_copy_summaries(const std::string& label, const ExecSpace& exec, std::int64_t batch,
                           std::int64_t rows, const SummariesMap& from, const SummariesMap& to) {
  const std::int64_t groups = (rows + CopySummaries::height - 1) / CopySummaries::height;
  launch(label, exec, batch * groups, threads<copy_threads>, CopySummaries{from, to, rows, groups});
}

}  // namespace KokkosMX::Impl

#endif
