// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_GATHER_OUTLIERS_HPP
#define KOKKOSMX_SRC_GEMM_GATHER_OUTLIERS_HPP

/// \file gather_outliers.hpp
/// What the images of main parts leave out: columns with outliers, gathered, or images of all
/// outliers.

#include "../atoms/gemm/int8_codes.hpp"
#include "../launch.hpp"
#include "../operand.hpp"
#include "image_operand.hpp"
#include "row_split.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>

namespace KokkosMX::Impl {

/// Makes the images of columns with outliers: of `a` the high digits of its outliers in its own
/// columns, their low digits, and the main part in b's columns; of b the main part in a's columns,
/// the high and the low digits in its own. A step holds so many columns as it has bytes; those that
/// both operands have are the first common_columns of either's, in the same order. Where there are
/// more, makes images of all outliers, and cuts tiles.
template <class Atom>
struct GatherOutliers {
  ImageOperand operands[2];
  std::uint32_t* columns[2];  ///< [block]: bit i says that column i of it has outliers in some row
  GatherState* state;

  static constexpr int threads = Atom::threads, rows = 8;
  static constexpr int together = 4;  ///< octets of a piece of work
  static constexpr int common = Atom::common_columns, most = Atom::step_bytes;
  struct Scratch {
    std::uint64_t found[threads];
    std::int32_t columns[2][most];  ///< -1: none
    std::uint32_t item;
    int shift;
  };

  KOKKOS_INLINE_FUNCTION static std::int64_t octets(const ImageOperand& operand) {
    return operand.matrix.batch * operand.tiles * operand.tile_rows / rows;
  }
  /// Which rows of the operands have outliers, as far as the thread is to look: bits 0 and 1 are
  /// those of has_outliers, of the second operand 2 and 3.
  template <class Group>
  KOKKOS_INLINE_FUNCTION int any(const Group& group) const {
    int all = 0;
    for (int side = 0; side < 2; ++side) {
      const auto* eight = reinterpret_cast<const std::uint64_t*>(operands[side].has_outliers);
      std::uint64_t found = 0;
      for_each(group, octets(operands[side]) / 8, [&](std::int64_t i) { found |= eight[i]; });
      const int low = found != 0 ? 1 : 0;
      const int high = (found & 0x0202020202020202u) != 0 ? 2 : 0;
      all |= (low | high) << (2 * side);
    }
    return all;
  }

  /// By groups that share the work, if any row has outliers: `found`, see any().
  template <class Group>
  __attribute__((noinline)) KOKKOS_FUNCTION Outliers operator()(const Group& group,
                                                                Scratch& scratch, int found) const {
    constexpr int words = 2;  // of a piece of work
    const std::int64_t blocks = operands[0].matrix.blocks;
    const std::int64_t merges = (2 * blocks + words - 1) / words;
    share(group, scratch, 0, merges + rows_of_work(), [&](std::int64_t item) {
      if (item < merges) {
        merge_columns(group, scratch, words, item);
      } else {
        merge_reaches(group, scratch, item - merges);
      }
    });
    Outliers outliers = list_columns(group, scratch);
    if (group.rank() == 0) {
      scratch.shift = outliers.how == Gathering::imaged ? near_shift() : 0;
    }
    group.barrier();
    outliers.shift = scratch.shift;
    outliers.high_a = (found & 2) != 0;
    outliers.high_b = (found & 8) != 0;
    if (group.rank() == 0) {
      state->gathering = outliers.how;
      state->shift = outliers.shift;
    }
    const bool is_imaged = outliers.how == Gathering::imaged;
    const bool is_cut = is_imaged && outliers.shift == 0;
    share(group, scratch, 1, (octets(operands[0]) + octets(operands[1])) / together + 2,
          [&](std::int64_t item) {
            if (item >= 2) {
              gather(group, scratch, outliers, (item - 2) * together);
            } else if (is_cut) {
              cut_tiles(group, scratch, operands[item], state->cuts[item]);
            }
          });
    for (int side = 0; side < 2; ++side) {
      outliers.tiles[side] =
          is_cut ? state->cuts[side] : static_cast<std::uint32_t>(operands[side].tiles);
    }
    return outliers;
  }

 private:
  /// f(item) for those of the phase's items that other groups do not take; waits for these.
  template <class Group, class F>
  KOKKOS_INLINE_FUNCTION void share(const Group& group, Scratch& scratch, int phase,
                                    std::int64_t items, const F& f) const {
    const auto all = static_cast<std::uint32_t>(items);
    std::uint32_t finished = 0;
    for (;;) {
      if (group.rank() == 0) scratch.item = Kokkos::atomic_fetch_add(&state->taken[phase], 1u);
      group.barrier();
      const std::uint32_t item = scratch.item;
      group.barrier();
      if (item >= all) break;
      f(item);
      ++finished;
    }
    Atom::publish();
    group.barrier();
    if (group.rank() == 0) {
      Kokkos::atomic_add(&state->done[phase], finished);
      while (Kokkos::atomic_fetch_add(&state->done[phase], 0u) < all) {
      }
    }
    group.barrier();
    Atom::publish();
  }

  /// What any octet has in some of the words of both operands.
  template <class Group>
  KOKKOS_INLINE_FUNCTION void merge_columns(const Group& group, Scratch& scratch, int words,
                                            std::int64_t item) const {
    const std::int64_t blocks = operands[0].matrix.blocks;
    auto* merged = reinterpret_cast<std::uint32_t*>(scratch.columns);
    if (group.rank() < words) merged[group.rank()] = 0;
    group.barrier();
    const int word = group.rank() % words;
    const std::int64_t at = item * words + word;
    if (at < 2 * blocks) {
      const int side = at < blocks ? 0 : 1;
      const std::int64_t block = at - side * blocks;
      const ImageOperand& operand = operands[side];
      std::uint32_t found = 0;
      for (std::int64_t octet = group.rank() / words; octet < octets(operand);
           octet += threads / words) {
        if (operand.has_outliers[octet] != 0) found |= operand.columns[octet * blocks + block];
      }
      if (found != 0) Kokkos::atomic_or(&merged[word], found);
    }
    group.barrier();
    if (group.rank() < words && at < 2 * blocks) {
      columns[at < blocks ? 0 : 1][at < blocks ? at : at - blocks] = merged[word];
    }
    group.barrier();
  }

  /// Pieces of work of a row for each thread.
  KOKKOS_INLINE_FUNCTION std::int64_t rows_of_work() const {
    return (octets(operands[0]) + octets(operands[1]) + threads / rows - 1) / (threads / rows);
  }
  /// Of rows with outliers, what GatherState has of all.
  template <class Group>
  KOKKOS_INLINE_FUNCTION void merge_reaches(const Group& group, Scratch& scratch,
                                            std::int64_t item) const {
    std::int32_t* most_of = scratch.columns[0];
    if (group.rank() < GatherState::reaches) most_of[group.rank()] = 0;
    group.barrier();
    std::int64_t row = item * threads + group.rank();
    const int side = row < octets(operands[0]) * rows ? 0 : 1;
    if (side == 1) row -= octets(operands[0]) * rows;
    const ImageOperand& operand = operands[side];
    if (row < octets(operand) * rows && operand.has_outliers[row / rows] != 0) {
      const RowSplit split = operand.splits[row];
      const int lowest = split.out - split.base;
      const bool is_near = split.near != 0 && lowest <= GatherState::most_shift;
      if (split.has_outliers() && !is_near) max_shared(most_of + GatherState::far, 1);
      if (split.has_outliers() && is_near) {
        max_shared(most_of + GatherState::lowest, GatherState::most_shift - lowest);
        max_shared(most_of + GatherState::highest, split.highest() - split.base);
        max_shared(most_of + GatherState::weight + side, split.weight() << lowest);
      }
    }
    group.barrier();
    if (group.rank() < GatherState::reaches && most_of[group.rank()] != 0) {
      Kokkos::atomic_max(&state->reach[group.rank()], most_of[group.rank()]);
    }
    group.barrier();
  }
  /// See Outliers::shift.
  KOKKOS_INLINE_FUNCTION int near_shift() const {
    const auto reach = [&](int i) { return Kokkos::atomic_fetch_add(&state->reach[i], 0); };
    if (reach(GatherState::far) != 0) return 0;
    const int lowest = GatherState::most_shift - reach(GatherState::lowest);
    if (reach(GatherState::highest) >= lowest + RowSplit::part_bits) return 0;
    // What the accumulators may have to hold: elements are at most 96.
    constexpr std::int64_t most_element = 96, of_weight = 12;
    const std::int64_t outliers =
        of_weight * (std::int64_t{reach(GatherState::weight)} + reach(GatherState::weight + 1));
    const std::int64_t main = operands[0].matrix.blocks * block_size * most_element;
    return (main + outliers) * most_element < std::int64_t{1} << 31 ? lowest : 0;
  }

  template <class Group>
  KOKKOS_INLINE_FUNCTION void gather(const Group& group, Scratch& scratch, const Outliers& outliers,
                                     std::int64_t item) const {
    const int side = item < octets(operands[0]) ? 0 : 1;
    const ImageOperand& operand = operands[side];
    const std::int64_t first = side == 0 ? item : item - octets(operands[0]);
    const Divided tile = divided(group, first, operand.tile_rows / rows);
    const Divided batch = divided(group, tile.quotient, operand.tiles);
    if (outliers.how == Gathering::imaged) {
      make_images(group, operand, batch, static_cast<int>(tile.remainder) * rows, outliers.shift);
      return;
    }
    std::uint8_t* image = operand.tile(batch.quotient, batch.remainder, Atom::step_bytes) +
                          operand.steps * operand.tile_rows * Atom::step_bytes;
    const RowSplit* splits = operand.splits_of(batch.quotient, batch.remainder);
    // A thread has one row and every so many words of its: outliers, then the main part.
    constexpr int words = Atom::step_bytes / 4, lanes = together * rows;
    static_assert(threads % lanes == 0);
    constexpr int apart = threads / lanes, at_once = 3;
    const int in_tile = static_cast<int>(tile.remainder) * rows + group.rank() % lanes;
    const std::int64_t row = batch.remainder * operand.tile_rows + in_tile;
    const RowSplit split = splits[in_tile];
    const bool is_split = row < operand.matrix.rows && split.out != RowSplit::is_rest;
    for (int first_word = group.rank() / lanes; first_word < 2 * words;
         first_word += apart * at_once) {
      Four fours[at_once];
      KOKKOSMX_UNROLL
      for (int i = 0; i < at_once; ++i) {  // all loads at once
        const int word = first_word + i * apart;
        const bool is_main = word >= words;
        const bool is_there = is_split && word < 2 * words;
        const std::int32_t* columns =
            scratch.columns[is_main ? 1 - side : side] + (is_there ? 4 * (word % words) : 0);
        fours[i] = load(operand.matrix, batch.quotient, row, columns, is_there);
      }
      KOKKOSMX_UNROLL
      for (int i = 0; i < at_once; ++i) {
        const int word = first_word + i * apart;
        if (word >= 2 * words) break;
        const bool is_main = word >= words;
        std::uint32_t high = 0, low = 0;
        expand(fours[i], split, is_main, high, low);
        // Of a the steps are the high and the low digits and the main part, of b this comes first.
        const auto put = [&](int step, std::uint32_t value) {
          *reinterpret_cast<std::uint32_t*>(image + step * operand.tile_rows * Atom::step_bytes +
                                            Atom::offset(in_tile, word % words / 4) +
                                            4 * (word % 4)) = value;
        };
        if (is_main) {
          put(side == 0 ? 2 : 0, low);
        } else {
          put(side, high);
          put(side + 1, low);
        }
      }
    }
  }

  /// Four gathered elements of a row; scales are negative where there is none.
  struct Four {
    int codes[4], scales[4];
  };
  KOKKOS_INLINE_FUNCTION static Four load(const MatrixMap& q, std::int64_t batch, std::int64_t row,
                                          const std::int32_t* columns, bool is_there) {
    Four four;
    KOKKOSMX_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int column = columns[j];
      four.codes[j] = 0;
      four.scales[j] = -1;
      if (!is_there || column < 0) continue;
      const int block = column / block_size, in_block = column % block_size;
      four.codes[j] =
          q.codes.at(batch, row, block)[in_block / 2 * q.codes.byte] >> (4 * (in_block % 2)) & 15;
      four.scales[j] = *q.scales.at(batch, row, block);
    }
    return four;
  }
  /// Their digits as outliers, or (in low) their main part.
  KOKKOS_INLINE_FUNCTION static void expand(const Four& four, const RowSplit& split, bool is_main,
                                            std::uint32_t& high, std::uint32_t& low) {
    KOKKOSMX_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int code = four.codes[j], scale = four.scales[j];
      if (scale < 0) continue;
      if (is_main) {
        low |= (static_cast<std::uint32_t>(main_part(code, scale, split)) & 0xFFu) << (8 * j);
      } else {
        const int value = outlier_part(code, scale, split);
        high |= (static_cast<std::uint32_t>(high_digit(value)) & 0xFFu) << (8 * j);
        low |= (static_cast<std::uint32_t>(value) & 0xFFu) << (8 * j);
      }
    }
  }

  /// Images of the outliers of some rows.
  template <class Group>
  KOKKOS_INLINE_FUNCTION static void make_images(const Group& group, const ImageOperand& operand,
                                                 const Divided& batch, int first_row, int shift) {
    const MatrixMap& q = operand.matrix;
    const int pieces = operand.parts_of(batch.remainder);
    const int parts = pieces > 2 ? 2 : pieces - 1;
    if (parts == 0) return;
    std::uint32_t* found = operand.rows_with_outliers(batch.quotient, batch.remainder, first_row);
    static_assert(together * rows == 32);
    if (shift > 0) {
      for_each(group, q.blocks, [&](std::int64_t block) { found[block] = 0; });
      group.barrier();
    }
    const RowSplit* splits = operand.splits_of(batch.quotient, batch.remainder);
    std::uint8_t* image =
        operand.tile(batch.quotient, batch.remainder, Atom::step_bytes) + operand.part_bytes;
    // A thread has one row and a block of every so many steps.
    constexpr int slots = together * rows * Atom::step_blocks;
    static_assert(threads % slots == 0);
    constexpr int apart = threads / slots, at_once = 4;
    const int slot = group.rank() % slots;
    const int block_in_step = slot % Atom::step_blocks;
    const int in_tile = first_row + slot / Atom::step_blocks;
    const std::int64_t row = batch.remainder * operand.tile_rows + in_tile;
    const RowSplit split = split_at(splits[in_tile], shift);
    const bool is_split = has_images(split);
    const auto steps = static_cast<std::int32_t>(operand.steps);
    for (std::int32_t first = group.rank() / slots; first < steps; first += apart * at_once) {
      int scales[at_once];
      const auto block_of = [&](int i) {
        return std::int64_t{first + i * apart} * Atom::step_blocks + block_in_step;
      };
      KOKKOSMX_UNROLL
      for (int i = 0; i < at_once; ++i) {  // all loads at once
        scales[i] = -1;
        if (is_split && block_of(i) < q.blocks) {
          scales[i] = *q.scales.at(batch.quotient, row, block_of(i));
        }
      }
      KOKKOSMX_UNROLL
      for (int i = 0; i < at_once; ++i) {
        const std::int32_t step = first + i * apart;
        if (step >= steps) break;
        const int scale = scales[i];
        const int least = scale < 0 ? 8 : least_outlier(scale - split.base);
        int part = 0;
        BlockCodes codes{};
        Magnitudes outliers{};
        if (least < 8) {
          codes = load_block(q.codes, q.codes.at(batch.quotient, row, block_of(i)));
          if (shift > 0 && codes_from(codes, least) != 0) {
            Kokkos::atomic_or(&found[block_of(i)], 1u << (in_tile - first_row));
          }
          outliers = outlier_magnitudes(scale - split.base);
          // Blocks of zeros may have any scale.
          part = (scale - split.out) >> 2;
          outliers.low <<= RowSplit::in_part(scale - split.out);
          outliers.high <<= RowSplit::in_part(scale - split.out);
        }
        for (int p = 0; p < parts; ++p) {
          ImageChunk chunks[2] = {};
          if (least < 8 && part == p) {
            for (int w = 0; w < 8; ++w) {
              chunks[w / 4].word[w % 4] =
                  expand_codes(codes.word[w / 2] >> (16 * (w % 2)), outliers.low, outliers.high);
            }
          }
          store_chunks<Atom>(image + p * operand.part_bytes +
                                 std::int64_t{step} * operand.tile_rows * Atom::step_bytes,
                             in_tile, block_in_step, chunks);
        }
      }
    }
  }

  /// With outliers the same distance above the main part as those of all rows that have any.
  KOKKOS_INLINE_FUNCTION static RowSplit split_at(RowSplit split, int shift) {
    if (shift > 0 && split.has_outliers()) {
      split.out = static_cast<std::int16_t>(split.base + shift);
    }
    return split;
  }

 public:
  /// Whether the images of outliers hold those of the row.
  KOKKOS_INLINE_FUNCTION static bool has_images(const RowSplit& split) {
    return split.has_outliers() && split.parts <= RowSplit::most_parts;
  }

 private:
  /// The order of the tiles' pieces.
  template <class Group>
  KOKKOS_INLINE_FUNCTION static void cut_tiles(const Group& group, Scratch& scratch,
                                               const ImageOperand& operand, std::uint32_t& cuts) {
    const std::int64_t each = (operand.tiles + threads - 1) / threads;
    const std::int64_t first = group.rank() * each;
    const std::int64_t end = first + each < operand.tiles ? first + each : operand.tiles;
    std::uint64_t mine = 0;
    for (std::int64_t tile = first; tile < end; ++tile) {
      mine += static_cast<std::uint64_t>(operand.parts_of(tile));
    }
    std::uint64_t at = sum_before(group, scratch, mine);
    for (std::int64_t tile = first; tile < end; ++tile) {
      const int parts = operand.parts_of(tile);
      for (int piece = 0; piece < parts; ++piece) {
        operand.set_cut(static_cast<std::int64_t>(at++), {tile, parts, piece});
      }
    }
    if (group.rank() == 0) cuts = static_cast<std::uint32_t>(scratch.found[threads - 1]);
    group.barrier();
  }
  /// The sum of what threads before this one have; scratch.found then ends with that of all.
  template <class Group>
  KOKKOS_INLINE_FUNCTION static std::uint64_t sum_before(const Group& group, Scratch& scratch,
                                                         std::uint64_t mine) {
    std::uint64_t upto = mine;
    scratch.found[group.rank()] = upto;
    for (int distance = 1; distance < threads; distance *= 2) {
      group.barrier();
      if (group.rank() >= distance) upto += scratch.found[group.rank() - distance];
      group.barrier();
      scratch.found[group.rank()] = upto;
    }
    group.barrier();
    return upto - mine;
  }

  /// Both lists of columns, if there are any and not too many.
  template <class Group>
  KOKKOS_INLINE_FUNCTION Outliers list_columns(const Group& group, Scratch& scratch) const {
    // How many columns are common, the first's alone, the second's alone: 21 bits each.
    const std::int64_t blocks = operands[0].matrix.blocks;
    const std::int64_t each = (blocks + threads - 1) / threads;
    const std::int64_t first = group.rank() * each;
    const std::int64_t end = first + each < blocks ? first + each : blocks;
    std::uint64_t mine = 0;
    for (std::int64_t block = first; block < end; ++block) {
      const std::uint32_t a = columns[0][block], b = columns[1][block];
      mine += static_cast<std::uint64_t>(bits_in(a & b)) |
              static_cast<std::uint64_t>(bits_in(a & ~b)) << 21 |
              static_cast<std::uint64_t>(bits_in(b & ~a)) << 42;
    }
    const std::uint64_t before = sum_before(group, scratch, mine);
    const std::uint64_t all = scratch.found[threads - 1];
    const auto number = [](std::uint64_t counts, int which) {
      return static_cast<int>(counts >> (21 * which) & 0x1FFFFF);
    };
    if (all == 0) return {};
    const bool fit = number(all, 0) <= common && number(all, 1) <= most - common &&
                     number(all, 2) <= most - common;
    if (!fit) return {Gathering::imaged, 0, false, false, {}};
    for_each(group, 2 * most, [&](std::int64_t i) { scratch.columns[i / most][i % most] = -1; });
    group.barrier();
    int at_common = number(before, 0);
    int at[2] = {common + number(before, 1), common + number(before, 2)};
    for (std::int64_t block = first; block < end; ++block) {
      const std::uint32_t a = columns[0][block], b = columns[1][block];
      for (std::uint32_t left = a | b; left != 0; left &= left - 1) {
        const int bit = first_bit(left);
        const auto column = static_cast<std::int32_t>(block * block_size + bit);
        if ((a & b) >> bit & 1u) {
          scratch.columns[0][at_common] = scratch.columns[1][at_common] = column;
          ++at_common;
        } else if (a >> bit & 1u) {
          scratch.columns[0][at[0]++] = column;
        } else {
          scratch.columns[1][at[1]++] = column;
        }
      }
    }
    group.barrier();
    const int alone = number(all, 1) > number(all, 2) ? number(all, 1) : number(all, 2);
    return {Gathering::done, 1 + (alone + 31) / 32, false, false, {}};
  }
};

}  // namespace KokkosMX::Impl

#endif
