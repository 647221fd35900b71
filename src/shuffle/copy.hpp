// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_SHUFFLE_COPY_HPP
#define KOKKOSMX_SRC_SHUFFLE_COPY_HPP

/// \file copy.hpp
/// The kernels that copy codes, scales and summaries from any layout to any, for arguments already
/// checked.

#include <KokkosMX/Matrix.hpp>
#include <KokkosMX/Types.hpp>

#include "../atom_select.hpp"
#include "../launch.hpp"
#include "../numbers.hpp"
#include "../operand.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <type_traits>

namespace KokkosMX::Impl {

/// Threads of a team, on devices.
inline constexpr int copy_threads = 128;

/// The tiles that a copy is made of.
struct Tiles {
  std::int64_t batch, tiles;
  /// Where an item's tile is.
  template <class Group>
  KOKKOS_INLINE_FUNCTION Divided operator()(const Group& group, std::int64_t item) const {
    return divided(group, item, tiles);
  }
};

/// A tile is 16 rows of the output; what lies outside the matrix is padding, written with 0. A
/// thread moves groups of 4 blocks of a row. Woven: a group's bytes lie together, those of the
/// blocks taking turns (Tile16x128).
template <bool FromWoven, bool ToWoven>
struct CopyCodes {
  CodesMap from, to;
  std::int64_t rows, blocks;
  Tiles tiles;
  struct Scratch {};

  template <class Group>
  KOKKOS_FUNCTION void operator()(const Group& group, Scratch&, std::int64_t item) const {
    const Divided place = tiles(group, item);
    do_tile<PortableCopyAtom>(group, place.quotient, place.remainder);
  }
  template <class Atom, class Group>
  KOKKOS_INLINE_FUNCTION void do_tile(const Group& group, std::int64_t batch,
                                      std::int64_t tile) const {
    const std::int64_t first = 16 * tile, groups = (to.blocks + 3) / 4, whole = blocks / 4;
    const std::int64_t height = to.rows - first < 16 ? to.rows - first : 16;
    const std::int64_t inside = rows - first < height ? rows - first : height;
    using Mover = std::conditional_t<FromWoven == ToWoven, PortableCopyAtom, Atom>;
    // So many whole groups, down from (row, g) or to its right.
    const auto move_down = [&](std::int64_t row, std::int64_t g, std::int64_t count) {
      Mover::template move<FromWoven, ToWoven>({from.at(batch, first + row, 4 * g), from.block_1,
                                                from.row, to.at(batch, first + row, 4 * g),
                                                to.block_1, to.row, count});
    };
    const auto move_right = [&](std::int64_t row, std::int64_t g, std::int64_t count) {
      Mover::template move<FromWoven, ToWoven>({from.at(batch, first + row, 4 * g), from.block_1,
                                                from.block_4, to.at(batch, first + row, 4 * g),
                                                to.block_1, to.block_4, count});
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
  }

 private:
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
  Tiles tiles;
  struct Scratch {};

  template <class Group>
  KOKKOS_FUNCTION void operator()(const Group& group, Scratch&, std::int64_t item) const {
    const Divided place = tiles(group, item);
    do_tile<PortableCopyAtom>(group, place.quotient, place.remainder);
  }
  template <class Atom, class Group>
  KOKKOS_INLINE_FUNCTION void do_tile(const Group& group, std::int64_t batch,
                                      std::int64_t tile) const {
    const std::int64_t first = 32 * tile;
    std::uint8_t* const in_tile = tiled.at(batch, first, 0);
    std::uint8_t* const in_rows = first < rows ? plain.at(batch, first, 0) : nullptr;
    const int height = static_cast<int>(rows - first < 32 ? rows - first : 32);
    const std::int64_t stride = plain.row_1, width = cols;
    constexpr int octets = Group::is_serial ? 8 : 1, columns = 8 * octets;
    std::int64_t done = 0;
    if constexpr (Group::is_serial) {
      if (height == 32) {
        done = Atom::template move_scales<ToTiles>(in_rows, stride, in_tile, width);
      }
    }
    for_each(group, (width - done + columns - 1) / columns * 8, [&](std::int64_t i) {
      const int row = 2 * static_cast<int>(i % 8);
      const std::int64_t col = done + i / 8 * columns;
      move<octets>(row < height ? in_rows + row * stride + col : nullptr, stride, height - row,
                   in_tile + 4 * row + 32 * col,
                   static_cast<int>(width - col < columns ? width - col : columns));
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
  Tiles tiles;
  struct Scratch {};

  template <class Group>
  KOKKOS_FUNCTION void operator()(const Group& group, Scratch&, std::int64_t item) const {
    const Divided place = tiles(group, item);
    do_tile<PortableCopyAtom>(group, place.quotient, place.remainder);
  }
  template <class Atom, class Group>
  KOKKOS_INLINE_FUNCTION void do_tile(const Group& group, std::int64_t batch,
                                      std::int64_t tile) const {
    const bool together = from.col_1 == 1 && to.col_1 == 1;
    const std::int64_t first = 32 * tile;
    const std::int64_t height = to.rows - first < 32 ? to.rows - first : 32;
    const std::int64_t inside = rows < first + height ? rows : first + height;
    // Columns that are moved already, of the first 16 rows and of the others.
    std::int64_t done[2] = {0, 0};
    if constexpr (Group::is_serial) {
      const bool regular = from.col_8 == 2 * from.col_4 && to.col_8 == 2 * to.col_4;
      for (int half = 0; half < 2 && together && regular; ++half) {
        const std::int64_t row = first + 16 * half;
        if (row + 16 > inside) break;
        done[half] = 4 * Atom::move_words({from.at(batch, row, 0), from.row_1, from.col_4,
                                           to.at(batch, row, 0), to.row_1, to.col_4, cols / 4});
      }
    }
    for_each(group, (to.cols + 3) / 4, [&](std::int64_t i) {
      const std::int64_t col = 4 * i;
      std::int64_t row = first;
      if (together && col + 4 <= cols) {
        for (; row < inside; row += 16) {
          if constexpr (Group::is_serial) {
            if (col < done[(row - first) / 16]) continue;
          }
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

/// A tile is 256 rows.
struct CopySummaries {
  SummariesMap from, to;
  std::int64_t rows;
  Tiles tiles;
  struct Scratch {};
  static constexpr std::int64_t height = 256;

  template <class Group>
  KOKKOS_FUNCTION void operator()(const Group& group, Scratch&, std::int64_t item) const {
    const Divided place = tiles(group, item);
    do_tile<PortableCopyAtom>(group, place.quotient, place.remainder);
  }
  template <class Atom, class Group>
  KOKKOS_INLINE_FUNCTION void do_tile(const Group& group, std::int64_t batch,
                                      std::int64_t tile) const {
    const std::int64_t first = tile * height;
    for_each(group, rows - first < height ? rows - first : height,
             [&](std::int64_t i) { *to.at(batch, first + i) = *from.at(batch, first + i); });
  }
};

/// Copies, each with its tiles, dealt out to a host's workers: of each, every worker has as many
/// tiles as the others, the same ones in every call.
template <class Atom, class... Copies>
struct CopyWorkers {
  std::tuple<Copies...> copies;
  std::int64_t workers;

  void operator()(std::int64_t worker) const {
    const auto go = [&](const auto& copy) {
      const std::int64_t tiles = copy.tiles.tiles, all = copy.tiles.batch * tiles;
      const std::int64_t end = all * (worker + 1) / workers;
      for (std::int64_t i = all * worker / workers; i < end; ++i) {
        copy.template do_tile<Atom>(SerialGroup{}, i / tiles, i % tiles);
      }
    };
    std::apply([&](const auto&... all) { (go(all), ...); }, copies);
  }
};

/// Makes copies that do not touch one another: on hosts all at once.
template <class ExecSpace, class... Copies>
void launch_copies(const std::string& label, const ExecSpace& exec, const Copies&... copies) {
  if constexpr (is_host_space_v<ExecSpace>) {
    if (((copies.tiles.batch * copies.tiles.tiles == 0) && ...)) return;
    const std::int64_t workers = concurrency_of(exec);
    with_atoms<ExecSpace>([&](auto atoms) {
      using Atom = typename decltype(atoms)::Copy;
      launch_workers(label, exec, workers,
                     CopyWorkers<Atom, Copies...>{std::tuple<Copies...>(copies...), workers});
    });
  } else {
    (launch(label, exec, copies.tiles.batch * copies.tiles.tiles, threads<copy_threads>, copies),
     ...);
  }
}

/// Calls f with the copy of these codes.
template <class F>
void with_copy_of_codes(std::int64_t batch, std::int64_t rows, std::int64_t blocks,
                        const CodesMap& from, const CodesMap& to, const F& f) {
  const Tiles tiles{batch, (to.rows + 15) / 16};
  if (from.byte == 1) {
    if (to.byte == 1) {
      f(CopyCodes<false, false>{from, to, rows, blocks, tiles});
    } else {
      f(CopyCodes<false, true>{from, to, rows, blocks, tiles});
    }
  } else if (to.byte == 1) {
    f(CopyCodes<true, false>{from, to, rows, blocks, tiles});
  } else {
    f(CopyCodes<true, true>{from, to, rows, blocks, tiles});
  }
}

/// The same of these scales.
template <class F>
void with_copy_of_scales(std::int64_t batch, std::int64_t rows, std::int64_t cols,
                         const ScalesMap& from, ScalesKind from_kind, const ScalesMap& to,
                         ScalesKind to_kind, const F& f) {
  const Tiles tiles{batch, (to.rows + 31) / 32};
  if (from_kind == ScalesKind::row_major && to_kind == ScalesKind::tile_32x8) {
    f(CopyScalesOfTile32x8<true>{from, to, rows, cols, tiles});
  } else if (from_kind == ScalesKind::tile_32x8 && to_kind == ScalesKind::row_major) {
    f(CopyScalesOfTile32x8<false>{to, from, rows, cols, tiles});
  } else {
    f(CopyScales{from, to, rows, cols, tiles});
  }
}

inline CopySummaries copy_of_summaries(std::int64_t batch, std::int64_t rows,
                                       const SummariesMap& from, const SummariesMap& to) {
  return {from, to, rows, {batch, (rows + CopySummaries::height - 1) / CopySummaries::height}};
}

}  // namespace KokkosMX::Impl

#endif
