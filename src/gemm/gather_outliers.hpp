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

/// Makes the images of columns with outliers. `a` and `b` each have columns of their own, those
/// that both have first. Where there are too many, makes images of all outliers, and cuts tiles.
///
/// Of a the high digits of its outliers in its own columns, their low digits, and the main part in
/// b's columns; of b the main part in a's columns, the high and the low digits in its own: a step
/// each, of so many columns as it has bytes. Common columns have the same places in either's.
///
/// Outliers near the main part have digits in its units, or larger ones where there are no common
/// columns, and their products follow one another in the same accumulators. Joint steps have a's
/// columns, then b's: some with low digits, as many with high ones, then one with the common
/// columns' high digits. Of the other operand they have the main part and low digits, so that the
/// common columns' are there once.
template <class Atom>
struct GatherOutliers {
  ImageOperand operands[2];
  std::uint32_t* columns[2];  ///< [block]: bits say which columns have outliers in some row
  GatherState* state;

  static constexpr int threads = Atom::threads, rows = 8;
  static constexpr int together = 4;  ///< octets of a piece of work
  static constexpr int common = Atom::common_columns, most = Atom::step_bytes;
  struct Scratch {
    std::uint64_t found[threads];
    std::int32_t columns[2 * most];  ///< -1: none
    std::int32_t reach[GatherState::reaches];
    std::uint32_t item;
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
    constexpr int words = 4;  // of a piece of work
    const std::int64_t blocks = operands[0].matrix.blocks;
    const std::int64_t merges = (2 * blocks + words - 1) / words;
    share(group, scratch, 0, merges + rows_of_work(), [&](std::int64_t item) {
      if (item < merges) {
        merge_columns<words>(group, scratch, item);
      } else {
        merge_reaches(group, scratch, item - merges);
      }
    });
    Outliers outliers = list_columns(group, scratch);
    if (outliers.how == Gathering::imaged) outliers.shift = near_shift(scratch.reach);
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
  template <int words, class Group>
  KOKKOS_INLINE_FUNCTION void merge_columns(const Group& group, Scratch& scratch,
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
      constexpr int at_once = 6, apart = threads / words;
      const std::int64_t all = octets(operand);
      for (std::int64_t first = group.rank() / words; first < all; first += at_once * apart) {
        std::uint32_t has[at_once], of_octet[at_once];
        KOKKOSMX_UNROLL
        for (int i = 0; i < at_once; ++i) {
          const std::int64_t octet = first + i * apart < all ? first + i * apart : first;
          has[i] = operand.has_outliers[octet];
          of_octet[i] = operand.columns[octet * blocks + block];  // noise where it has none
        }
        KOKKOSMX_UNROLL
        for (int i = 0; i < at_once; ++i) found |= has[i] != 0 ? of_octet[i] : 0u;
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
    std::int32_t* most_of = scratch.reach;
    if (group.rank() < GatherState::reaches) most_of[group.rank()] = 0;
    group.barrier();
    std::int64_t row = item * threads + group.rank();
    const int side = row < octets(operands[0]) * rows ? 0 : 1;
    if (side == 1) row -= octets(operands[0]) * rows;
    const ImageOperand& operand = operands[side];
    if (row < octets(operand) * rows && operand.has_outliers[row / rows] != 0) {
      const RowSplit split = operand.splits[row];
      const int lowest = split.out - split.base;
      const bool is_known = split.weight != 0 && lowest >= 0 && lowest <= GatherState::most_shift;
      if (split.has_outliers()) {
        max_shared(most_of + GatherState::below, lowest < 0 ? 1 : 0);
        max_shared(most_of + GatherState::unknown, is_known ? 0 : 1);
        max_shared(most_of + GatherState::lowest, GatherState::most_shift - lowest);
        max_shared(most_of + GatherState::highest, lowest + split.range);
        if (is_known) max_shared(most_of + GatherState::weight + side, split.weight << lowest);
      }
    }
    group.barrier();
    if (group.rank() < GatherState::reaches && most_of[group.rank()] != 0) {
      Kokkos::atomic_max(&state->reach[group.rank()], most_of[group.rank()]);
    }
    group.barrier();
  }
  static constexpr std::int64_t most_element = 96, most_halves = 12;
  /// What main parts add to a sum, at most.
  KOKKOS_INLINE_FUNCTION std::int64_t most_main() const {
    return operands[0].matrix.blocks * block_size * most_element * most_element;
  }
  /// See Outliers::shift. Accumulators have to hold all but what outliers make with outliers, and
  /// this once in units of the outliers of one operand, which are at most 96, too.
  KOKKOS_INLINE_FUNCTION int near_shift(const std::int32_t* reach) const {
    if ((reach[GatherState::below] | reach[GatherState::unknown]) != 0) return 0;
    const int lowest = GatherState::most_shift - reach[GatherState::lowest];
    if (reach[GatherState::highest] >= lowest + RowSplit::part_bits) return 0;
    const std::int64_t outliers =
        most_halves * (std::int64_t{reach[GatherState::weight]} + reach[GatherState::weight + 1]);
    return most_main() + outliers * most_element < std::int64_t{1} << 31 ? lowest : 0;
  }
  /// See Outliers::unit: those in which outliers have two digits.
  KOKKOS_INLINE_FUNCTION static int unit_of(const std::int32_t* reach) {
    const int highest = reach[GatherState::highest];
    return highest > RowSplit::most_shift ? highest - RowSplit::most_shift : 0;
  }
  /// Whether accumulators hold the sums of outliers of so many columns, and their units are no
  /// larger than the least of them, or than the main part's where columns are common.
  KOKKOS_INLINE_FUNCTION bool are_near(const std::int32_t* reach, std::int64_t columns,
                                       std::int64_t common_columns) const {
    const int highest = reach[GatherState::highest];
    const int most_unit = common_columns > 0 ? 0 : RowSplit::main_shift + 1;
    if (reach[GatherState::below] != 0 || unit_of(reach) > most_unit) return false;
    const std::int64_t most_outlier = most_halves << highest;
    return most_main() + columns * most_element * most_outlier +
               common_columns * most_outlier * most_outlier <
           std::int64_t{1} << 31;
  }

  template <class Group>
  KOKKOS_INLINE_FUNCTION void gather(const Group& group, Scratch& scratch, const Outliers& outliers,
                                     std::int64_t item) const {
    const int side = item < octets(operands[0]) ? 0 : 1;
    const ImageOperand operand = operands[side];  // in registers, whatever is stored
    const std::int64_t first = side == 0 ? item : item - octets(operands[0]);
    const Divided tile = divided(group, first, operand.tile_rows / rows);
    const Divided batch = divided(group, tile.quotient, operand.tiles);
    if (outliers.how == Gathering::imaged) {
      make_images(group, operand, batch, static_cast<int>(tile.remainder) * rows, outliers.shift);
      return;
    }
    const bool is_near = outliers.how == Gathering::near;
    const int of_first = outliers.columns[0], of_both = of_first + outliers.columns[1];
    const int steps = outliers.joint_steps(most);
    const int lists = is_near ? steps + (outliers.common > 0 ? 1 : 0) : 2;
    KOKKOSMX_NO_UNROLL
    for (int i = 0; i < lists; ++i) {
      List list;
      if (!is_near) {
        list = {i == 0 ? side * most : (1 - side) * most, 2 * most, 0, 2 * most, side, side + 1};
        if (i == 1) list = {list.first, 2 * most, 0, 0, List::no_step, side == 0 ? 2 : 0};
      } else if (i < steps) {
        list = {i * most, of_both, 0, of_first, steps + i, i};
        if (side == 1) {
          list.own_first = of_first;
          list.own_end = of_both;
        }
      } else {
        list = {0, outliers.common, 0, outliers.common, 2 * steps, List::no_step};
      }
      gather(group, scratch, operand, batch, static_cast<int>(tile.remainder) * rows, list,
             is_near ? (side == 0 ? Others::split : Others::whole) : Others::main, outliers.unit);
    }
  }

  /// Columns of a step, [first, end) of those listed: the operand's own are [own_first, own_end).
  struct List {
    int first, end, own_first, own_end;
    int high_step, low_step;  ///< where the digits go
    static constexpr int no_step = -1;
  };
  /// Of columns that are not the operand's own: the main part; or, as high digits, this and low
  /// digits together, and as low digits either the main part or the same.
  enum class Others { main, split, whole };
  /// Of some rows of a tile. A warp has a step's columns of a row.
  template <class Group>
  KOKKOS_INLINE_FUNCTION void gather(const Group& group, const Scratch& scratch,
                                     const ImageOperand& operand, const Divided& batch,
                                     int first_row, const List& list, Others others,
                                     int unit) const {
    const MatrixMap& q = operand.matrix;
    std::uint8_t* image = operand.tile(batch.quotient, batch.remainder, Atom::step_bytes);
    const RowSplit* splits = operand.splits_of(batch.quotient, batch.remainder);
    // A thread has four columns of every so many rows.
    constexpr int words = Atom::step_bytes / 4, apart = threads / words, at_once = 3;
    static_assert(threads % words == 0);
    const int word = group.rank() % words;
    std::int64_t code_at[4], scale_at[4];
    int code_shift[4];
    bool is_there[4], is_own[4];
    KOKKOSMX_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int at = list.first + 4 * word + j;
      const int column = at < list.end ? scratch.columns[at] : -1;
      is_there[j] = column >= 0;
      is_own[j] = at >= list.own_first && at < list.own_end;
      const auto known = static_cast<std::uint32_t>(is_there[j] ? column : 0);
      code_at[j] = q.codes.block_offset(known / block_size) + known % block_size / 2 * q.codes.byte;
      scale_at[j] = q.scales.col_offset(known / block_size);
      code_shift[j] = static_cast<int>(4 * (known & 1u));
    }
    const auto put = [&](int in_tile, int step, std::uint32_t value) {
      if (step == List::no_step) return;
      *reinterpret_cast<std::uint32_t*>(
          image + (operand.steps + step) * operand.tile_rows * Atom::step_bytes +
          Atom::offset(in_tile, word / 4) + 4 * (word % 4)) = value;
    };
    for (int first = group.rank() / words; first < together * rows; first += apart * at_once) {
      RowSplit split[at_once];
      bool is_row[at_once];
      int codes[at_once][4], scales[at_once][4];
      KOKKOSMX_UNROLL
      for (int i = 0; i < at_once; ++i) {  // all loads at once
        const int in_piece = first + i * apart;
        const int in_tile = first_row + (in_piece < together * rows ? in_piece : 0);
        const std::int64_t row = batch.remainder * operand.tile_rows + in_tile;
        split[i] = splits[in_tile];
        is_row[i] = row < q.rows && split[i].out != RowSplit::is_rest;
        const std::uint8_t* of_codes = q.codes.at(batch.quotient, row < q.rows ? row : 0, 0);
        const std::uint8_t* of_scales = q.scales.at(batch.quotient, row < q.rows ? row : 0, 0);
        KOKKOSMX_UNROLL
        for (int j = 0; j < 4; ++j) {
          codes[i][j] = of_codes[code_at[j]];
          scales[i][j] = of_scales[scale_at[j]];
        }
      }
      KOKKOSMX_UNROLL
      for (int i = 0; i < at_once; ++i) {
        const int in_piece = first + i * apart;
        if (in_piece >= together * rows) break;
        if (others != Others::main && is_row[i]) {
          split[i].out = static_cast<std::int16_t>(split[i].base + unit);
        }
        std::uint32_t high = 0, low = 0;
        KOKKOSMX_UNROLL
        for (int j = 0; j < 4; ++j) {
          const int code = is_row[i] && is_there[j] ? codes[i][j] >> code_shift[j] & 15 : 0;
          const auto [main, outlier] = parts_of(code, scales[i][j], split[i]);
          const int both = main | outlier;
          const int as_high = is_own[j] ? high_digit(outlier) : both;
          const int as_low = is_own[j] ? outlier : others == Others::whole ? both : main;
          high |= (static_cast<std::uint32_t>(as_high) & 0xFFu) << (8 * j);
          low |= (static_cast<std::uint32_t>(as_low) & 0xFFu) << (8 * j);
        }
        put(first_row + in_piece, list.high_step, high);
        put(first_row + in_piece, list.low_step, low);
      }
    }
  }

  /// Images of the outliers of some rows; where these are near the main part, with it.
  template <class Group>
  KOKKOS_INLINE_FUNCTION static void make_images(const Group& group, const ImageOperand& operand,
                                                 const Divided& batch, int first_row, int shift) {
    const MatrixMap& q = operand.matrix;
    const int pieces = operand.parts_of(batch.remainder);
    const int parts = pieces > 2 ? 2 : pieces - 1;
    if (parts == 0) return;
    const bool is_near = shift > 0;
    std::uint32_t* found = operand.rows_with_outliers(batch.quotient, batch.remainder, first_row);
    static_assert(together * rows == 32);
    if (is_near) {
      for_each(group, q.blocks, [&](std::int64_t block) { found[block] = 0; });
      group.barrier();
    }
    const RowSplit* splits = operand.splits_of(batch.quotient, batch.remainder);
    std::uint8_t* image =
        operand.tile(batch.quotient, batch.remainder, Atom::step_bytes) + operand.part_bytes;
    // A thread has one row and a block of every so many steps.
    constexpr int slots = together * rows * Atom::step_blocks;
    static_assert(threads % slots == 0);
    constexpr int apart = threads / slots, at_once = 6;
    const int slot = group.rank() % slots;
    const int block_in_step = slot % Atom::step_blocks;
    const int in_tile = first_row + slot / Atom::step_blocks;
    const std::int64_t row = batch.remainder * operand.tile_rows + in_tile;
    const RowSplit split = split_at(splits[in_tile], shift);
    const bool is_there = row < q.rows && (is_near ? split.out >= 0 : has_images(split));
    const auto steps = static_cast<std::int32_t>(operand.steps);
    const std::uint8_t* of_codes = q.codes.at(batch.quotient, is_there ? row : 0, block_in_step);
    const std::uint8_t* of_scales = q.scales.at(batch.quotient, is_there ? row : 0, block_in_step);
    const bool is_whole =
        q.codes.byte == 1 && CodesMap::is_aligned(of_codes) && q.codes.block_4 % block_bytes == 0;
    for (std::int32_t first = group.rank() / slots; first < steps; first += apart * at_once) {
      BlockCodes codes[at_once];
      int scales[at_once];
      const auto step_of = [&](int i) { return std::int64_t{first + i * apart}; };
      const auto block_of = [&](int i) { return step_of(i) * Atom::step_blocks + block_in_step; };
      const auto load = [&](const auto& load_codes) {  // all at once
        KOKKOSMX_UNROLL
        for (int i = 0; i < at_once; ++i) {
          codes[i] = {};
          scales[i] = 0;
          if (!is_there || block_of(i) >= q.blocks) continue;
          codes[i] = load_codes(of_codes + step_of(i) * q.codes.block_4);
          static_assert(Atom::step_blocks == 4);
          scales[i] = of_scales[step_of(i) / 2 * q.scales.col_8 + step_of(i) % 2 * q.scales.col_4];
        }
      };
      if (is_whole) {
        load([](const std::uint8_t* from) { return load_whole_block(from); });
      } else {
        load([&](const std::uint8_t* from) { return load_block(q.codes, from); });
      }
      KOKKOSMX_UNROLL
      for (int i = 0; i < at_once; ++i) {
        const std::int32_t step = first + i * apart;
        if (step >= steps) break;
        const int least = least_outlier(scales[i] - split.base);
        Magnitudes elements = outlier_magnitudes(scales[i] - split.base);
        // Blocks of zeros may have any scale.
        elements.low <<= RowSplit::in_part(scales[i] - split.out);
        elements.high <<= RowSplit::in_part(scales[i] - split.out);
        int part = (scales[i] - split.out) >> 2;
        if (is_near) {
          if (least < 8 && codes_from(codes[i], least) != 0) {
            Kokkos::atomic_or(&found[block_of(i)], 1u << (in_tile - first_row));
          }
          const Magnitudes main = main_magnitudes(scales[i] - split.base);
          elements.low |= main.low;
          elements.high |= main.high;
          part = 0;
        }
        for (int p = 0; p < parts; ++p) {
          ImageChunk chunks[2] = {};
          if (part == p && (elements.low | elements.high) != 0) {
            for (int w = 0; w < 8; ++w) {
              chunks[w / 4].word[w % 4] =
                  expand_codes(codes[i].word[w / 2] >> (16 * (w % 2)), elements.low, elements.high);
            }
          }
          store_chunks(image + p * operand.part_bytes +
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
    return split.has_outliers() && split.parts() <= RowSplit::most_parts;
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
    if (group.rank() < GatherState::reaches) {
      scratch.reach[group.rank()] = state->reach[group.rank()];
    }
    const std::uint64_t before = sum_before(group, scratch, mine);
    const std::uint64_t all = scratch.found[threads - 1];
    const auto number = [](std::uint64_t counts, int which) {
      return static_cast<int>(counts >> (21 * which) & 0x1FFFFF);
    };
    if (all == 0) return {};
    const int both = number(all, 0);
    const int own[2] = {both + number(all, 1), both + number(all, 2)};
    const bool is_near = own[0] + own[1] <= Atom::joint_steps * most &&
                         are_near(scratch.reach, own[0] + own[1], both);
    const bool fit =
        both <= common && own[0] - both <= most - common && own[1] - both <= most - common;
    if (!is_near && !fit) return {Gathering::imaged, 0, false, false, {}};
    for_each(group, 2 * most, [&](std::int64_t i) { scratch.columns[i] = -1; });
    group.barrier();
    // Near columns follow one another, others have places.
    static_assert(Atom::joint_steps <= 2 && common <= most);
    std::int32_t* const lists[2] = {scratch.columns, scratch.columns + (is_near ? own[0] : most)};
    const int places = is_near ? both : common;
    int at_common = number(before, 0);
    int at[2] = {places + number(before, 1), places + number(before, 2)};
    for (std::int64_t block = first; block < end; ++block) {
      const std::uint32_t a = columns[0][block], b = columns[1][block];
      for (std::uint32_t left = a | b; left != 0; left &= left - 1) {
        const int bit = first_bit(left);
        const auto column = static_cast<std::int32_t>(block * block_size + code_of_bit(bit));
        if ((a & b) >> bit & 1u) {
          lists[0][at_common] = lists[1][at_common] = column;
          ++at_common;
        } else if (a >> bit & 1u) {
          lists[0][at[0]++] = column;
        } else {
          lists[1][at[1]++] = column;
        }
      }
    }
    group.barrier();
    if (is_near) {
      return {Gathering::near,       0, false, false, {}, 0, {own[0], own[1]}, both,
              unit_of(scratch.reach)};
    }
    const int alone = (own[0] > own[1] ? own[0] : own[1]) - both;
    return {Gathering::done, 1 + (alone + 31) / 32, false, false, {}};
  }
};

}  // namespace KokkosMX::Impl

#endif
