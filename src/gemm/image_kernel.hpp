// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_IMAGE_KERNEL_HPP
#define KOKKOSMX_SRC_GEMM_IMAGE_KERNEL_HPP

/// \file image_kernel.hpp
/// GEMM on devices whose matrix unit reads large tiles from shared memory. Each operand is expanded
/// once into images: its codes aligned to their row's least scale, as the unit wants to find them.
/// The atom owns the pipeline of images; the kernel owns tiling, edges, tiers and the epilogue.
///
/// Rows whose scales spread too far for that are split (row_split.hpp), where the atom has room for
/// it: their images hold the main part. Outliers that lie in few columns of K, whatever the rows,
/// are gathered: some more steps of images hold these columns alone, and tiles with outliers
/// multiply these too. Outliers anywhere have images of their own: tiles with outliers are cut into
/// pieces, whose rows' main parts and outliers are multiplied like so many more rows. All other
/// rows are zeros in the images: their outputs are summed one by one.
///
/// Where they are all near the main part, accumulators hold what they add, and tiles are not cut.
/// Gathered ones have two digits in its units, or in larger ones: products of high digits come
/// first, and the sum is multiplied by 256; then low digits, and the sum is multiplied by the unit;
/// then those of main parts follow. (Where there are common columns, their high digits by high ones
/// come before all others, and low digits after the main parts.) Outliers anywhere are
/// four scales the same distance s above the main part. Their images are added to its, element by
/// element, as no element has both; with S the sum of products of these images, T that of the main
/// part's, O what outliers make with outliers,
///     T + 2^s (S - T - O) + 2^2s O = 2^s S + (1 - 2^s) T + (2^2s - 2^s) O.
/// O is little, and is added at last. The accumulators take S, times 2^s / (1 - 2^s), plus T, times
/// 1 - 2^s: all modulo 2^32, where an odd number has an inverse and what they end with is exact.

#include <KokkosMX/Types.hpp>

#include "../atoms/cuda.hpp"
#include "../atoms/gemm/image_places.hpp"
#include "../atoms/gemm/int8_codes.hpp"
#include "../atoms/gemm/wgmma.hpp"
#include "../launch.hpp"
#include "../operand.hpp"
#include "epilogue.hpp"
#include "exact_sum.hpp"
#include "gather_outliers.hpp"
#include "image_operand.hpp"
#include "row_split.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>

namespace KokkosMX::Impl {

/// The product of images: of C, or (is_transposed) of its transpose.
template <class Atom>
struct ImageGemm {
  ImageOperand a, b;
  GatherOutliers<Atom> gather_outliers;  ///< of a and b; none where the atom has no room for these
  bool is_transposed;                    ///< a's rows are C's columns; small tiles only
  Epilogue epilogue;
  std::int64_t batch, m, n, blocks;  ///< m and n rows of a and b
  std::int64_t groups;               ///< that share the tiles: an item is a group
  int sum_bits;
  Tier minimum_tier;
  std::uint64_t* counts;  ///< null where nobody counts
  /// C is the product in bf16; a and b being its rows and columns, pairs of these lie in one word.
  bool is_plain_bf16;

  static constexpr int threads = Atom::threads;
  static constexpr bool begins_beside = true;  ///< the images' kernel
  static constexpr int most_transposed_n = 64;

  /// What is known of a tile's rows and columns; those outside the matrices count as zeros.
  struct States {
    std::int16_t a_lo[Atom::tile_m], a_spread[Atom::tile_m];
    std::int16_t b_lo[Atom::tile_n], b_spread[Atom::tile_n];
    RowSplit a_split[Atom::tile_m], b_split[Atom::tile_n];
    /// 2^(lo - 128) as bf16, of such as are not special.
    alignas(4) std::uint16_t a_unit[Atom::tile_m], b_unit[Atom::tile_n];
  };
  static constexpr std::int16_t not_a_number = -1;  // as a spread

  struct Scratch {
    typename Atom::Pipeline pipeline;
    States states[2];
    int outliers;  ///< see GatherOutliers::any
    int pairs;     ///< of blocks with outliers: see add_common
    Outliers found;
    std::int32_t first_tile;  ///< of the group
    /// Of each warp alone.
    struct alignas(128) Own {
      std::int32_t word[16][32];
    };
    Own own[Atom::multiplying / 32];

    KOKKOS_INLINE_FUNCTION std::int32_t* own_of(int thread) {
      return &own[thread / 32].word[0][thread % 32];
    }
  };
  static constexpr int own_step = 32;  ///< from one word of a thread to its next
  /// What load_states may say of a tile. special: accumulators do not hold some output, or its
  /// product may leave float32's normal numbers before it is rounded; with_outliers: gathered, or
  /// with images, and not near; with_rest: rows or columns that the images do not hold, or with
  /// NaN; beyond_int64: 64 bits may not hold the sum of main part and outliers, or what is rounded
  /// may leave the range.
  static constexpr std::uint32_t special = 1, with_outliers = 2, with_rest = 4, beyond_int64 = 8;

  /// A tile of C, or a part of one.
  struct Place {
    std::int64_t batch;
    TileCut a, b;
    std::int64_t row, col;
    int rows, cols;
    KOKKOS_INLINE_FUNCTION bool is_cut() const { return a.parts * b.parts > 1; }
  };

  template <class Group>
  KOKKOS_FUNCTION void operator()(const Group& group, Scratch& scratch, std::int64_t item) const {
    const int thread = group.rank() - (threads - Atom::multiplying);
    wait_for_earlier();
    Outliers outliers{Gathering::none, 0, false, false, {tiles_of(a), tiles_of(b)}};
    if constexpr (Atom::gathered_steps > 0) gather(group, scratch, outliers);
    // In shared memory: registers are for the product.
    if (group.rank() == 0) {
      scratch.found = outliers;
      scratch.first_tile = static_cast<std::int32_t>(item);
    }
    group.barrier();
    multiply(scratch, thread);
  }

 private:
  KOKKOS_INLINE_FUNCTION static std::uint32_t tiles_of(const ImageOperand& operand) {
    return static_cast<std::uint32_t>(operand.tiles);
  }
  /// What follows a tile's steps.
  KOKKOS_INLINE_FUNCTION StepsAfter steps_after(const Place& place,
                                                const Outliers& outliers) const {
    const bool imaged = outliers.how == Gathering::imaged;
    if (!imaged && outliers.how != Gathering::done) return StepsAfter::none;
    if (imaged && outliers.shift == 0) return place.is_cut() ? StepsAfter::room : StepsAfter::none;
    const std::uint32_t sides = sides_with_outliers(place);
    if (imaged) return sides == 3 ? StepsAfter::room : StepsAfter::none;
    return sides != 0 ? StepsAfter::gathered : StepsAfter::none;
  }
  /// Which operands have rows with outliers in a tile: bits 0 and 1.
  KOKKOS_INLINE_FUNCTION std::uint32_t sides_with_outliers(const Place& place) const {
    return (a.outliers_of(place.batch, place.a.tile, Atom::tile_m) != 0 ? 1u : 0u) |
           (b.outliers_of(place.batch, place.b.tile, Atom::tile_n) != 0 ? 2u : 0u);
  }
  /// The same where accumulators hold what these outliers add.
  KOKKOS_INLINE_FUNCTION std::uint32_t near_sides(std::int32_t tile,
                                                  const Outliers& outliers) const {
    if (Atom::gathered_steps == 0 || !outliers.are_near()) return 0;
    return sides_with_outliers(place_of(tile, outliers));
  }
  /// Product i of a tile: main parts by main parts are the last.
  KOKKOS_INLINE_FUNCTION typename Atom::Product product_of(std::uint32_t sides, int i,
                                                           const Outliers& outliers) const {
    const auto main = static_cast<std::int32_t>(a.steps);
    const bool is_last = i == Atom::most_products - 1;
    if (sides == 0) return {0, 0, is_last ? main : 0, 1};
    if constexpr (Atom::gathered_steps > 0) {
      if (outliers.how == Gathering::near) {
        // High digits by high ones, if there are any, come first, then high ones, then low ones.
        const int joint = outliers.joint_steps(Atom::step_bytes);
        const bool has_common = outliers.common > 0;
        if (is_last) return {0, 0, main + (has_common ? joint : 0), 1};
        const std::int64_t first = main + ((has_common ? 2 : 1) - i) * joint;
        const bool is_low = i > 0 && !has_common;
        return {first * Atom::tile_m * Atom::step_bytes, first * Atom::tile_n * Atom::step_bytes,
                i == 0 && has_common ? 1 : joint,
                1u << (is_low ? outliers.unit : RowSplit::digit_bits)};
      }
      const std::uint32_t distance = 1u << outliers.shift;
      if (is_last) return {0, 0, main, 1 - distance};
      if (i == 0) return {0, 0, 0, 1};
      return {(sides & 1u) != 0 ? a.part_bytes : 0, (sides & 2u) != 0 ? b.part_bytes : 0, main,
              distance * inverse(1 - distance)};
    }
    return {};
  }
  /// Modulo 2^32, of an odd number.
  KOKKOS_INLINE_FUNCTION static std::uint32_t inverse(std::uint32_t x) {
    std::uint32_t found = x;  // right in 3 bits, then in twice as many
    for (int bits = 3; bits < 32; bits *= 2) found *= 2 - x * found;
    return found;
  }

  /// What becomes of the outliers, if there are any.
  template <class Group>
  KOKKOS_INLINE_FUNCTION void gather(const Group& group, Scratch& scratch,
                                     Outliers& outliers) const {
    using Gather = GatherOutliers<Atom>;
    static_assert(sizeof(typename Gather::Scratch) <= sizeof(typename Atom::Pipeline));
    if (minimum_tier > Tier::aligned) return;
    const int mine = gather_outliers.any(group);
    if (group.rank() == 0) scratch.outliers = 0;
    group.barrier();
    if (mine != 0) Kokkos::atomic_or(&scratch.outliers, mine);
    group.barrier();
    if (scratch.outliers == 0) return;
    void* memory = &scratch.pipeline;
    outliers =
        gather_outliers(group, *static_cast<typename Gather::Scratch*>(memory), scratch.outliers);
  }

  KOKKOS_INLINE_FUNCTION static const std::uint8_t* image_of(const ImageOperand& operand,
                                                             std::int64_t batch,
                                                             const TileCut& cut) {
    return operand.tile(batch, cut.tile, Atom::step_bytes) +
           operand.tile_rows * Atom::step_bytes / cut.parts * cut.piece;
  }
  KOKKOS_INLINE_FUNCTION void multiply(Scratch& scratch, int thread_of_group) const {
    constexpr bool may_have_outliers = Atom::gathered_steps > 0;
    const Outliers& outliers = *in_shared(&scratch.found);
    // Loops that not all of a warp's threads repeat as often would be no place for the matrix unit.
    const std::uint32_t tiles =
        Atom::uniform(static_cast<std::uint32_t>(batch) * outliers.tiles[0] * outliers.tiles[1]);
    Atom::run(
        scratch.pipeline, scratch.first_tile, static_cast<std::int32_t>(tiles),
        static_cast<std::int32_t>(groups),
        [&](std::int32_t tile) {
          const Place place = place_of(tile, outliers);
          return typename Atom::Images{image_of(a, place.batch, place.a),
                                       image_of(b, place.batch, place.b),
                                       place.a.parts,
                                       place.b.parts,
                                       a.part_bytes,
                                       b.part_bytes};
        },
        [&](std::int32_t tile) { return near_sides(tile, outliers); },
        [&](std::uint32_t sides, int i) { return product_of(sides, i, outliers); },
        [&](std::int32_t tile) { return steps_after(place_of(tile, outliers), outliers); },
        [&](std::int32_t tile, int slot, int rank, int ranks) {
          return load_states(scratch.states[slot], place_of(tile, outliers), rank, ranks, outliers);
        },
        [&](std::int32_t tile, int slot, std::uint32_t said, std::int32_t(&d)[Atom::values],
            const auto& gathered) {
          // Registers of the product are not for what is quickly found again, at each use.
          const auto thread = [&] { return opaque(thread_of_group); };
          const Place place = place_of(tile, outliers);
          States& states = scratch.states[slot];
          const bool has_rest = (said & with_rest) != 0;
          const bool is_whole = place.rows * place.a.parts == Atom::tile_m &&
                                place.cols * place.b.parts == Atom::tile_n;
          const Stored stored{place, is_plain_bf16 && is_whole && !has_rest,
                              (said & beyond_int64) == 0};
          const bool is_plain = stored.is_plain && (said & special) == 0;
          const StepsAfter after = may_have_outliers && outliers.shift > 0
                                       ? steps_after(place, outliers)
                                       : StepsAfter::none;
          if (after != StepsAfter::none) {
            if constexpr (may_have_outliers) {
              const auto steps = gathered.wait();
              add_common(scratch, place, thread(), steps,
                         outliers.shift > RowSplit::most_partly_main);
              const OfOutliers<std::remove_const_t<decltype(steps)>> more{steps, thread(),
                                                                          outliers.shift};
              if (is_plain) {
                round_all(d, more);
                store_whole(scratch, place, states, thread(), d);
              } else {
                store_any(scratch, place, states, thread(), d, more);
              }
              steps.release();
            }
          } else if (may_have_outliers && outliers.how == Gathering::imaged && place.is_cut()) {
            if constexpr (may_have_outliers) {
              const auto steps = gathered.wait();
              steps.keep(d);
              store_cut(scratch, stored, states, thread(), steps);
            }
          } else if (may_have_outliers && (said & with_outliers) != 0) {
            if constexpr (may_have_outliers) {
              store_with_outliers(scratch, stored, states, thread(), outliers, d, gathered.wait());
            }
          } else if (is_plain) {
            round_all(d);
            store_whole(scratch, place, states, thread(), d);
          } else if ((said & special) == 0 && is_plain_bf16 && Atom::values <= 32) {
            if constexpr (Atom::values <= 32) {
              store_plain<false>(place, states, thread(), d,
                                 [](std::int32_t sum) { return static_cast<float>(sum); });
            }
          } else {
            store_any(scratch, place, states, thread(), d, NoMore{});
          }
          if (has_rest) store_rest(place, states, thread());
          if (counts != nullptr) count(place, states, thread());
        });
  }

  /// Columns of tiles within bands of rows of tiles, so that what is read lies in the second cache.
  KOKKOS_INLINE_FUNCTION Place place_of(std::int32_t tile, const Outliers& outliers) const {
    constexpr std::uint32_t band = 16;
    // In 32 bits: divisions of 64 take hundreds of cycles.
    const std::uint32_t tiles_a = outliers.tiles[0], tiles_b = outliers.tiles[1];
    auto at = static_cast<std::uint32_t>(tile);
    Place place;
    place.batch = batch == 1 ? 0 : at / (tiles_a * tiles_b);
    at -= static_cast<std::uint32_t>(place.batch) * tiles_a * tiles_b;
    const std::uint32_t first = at / (band * tiles_b) * band;
    const std::uint32_t rows = tiles_a - first < band ? tiles_a - first : band;
    const std::uint32_t in_band = at - first * tiles_b;
    const std::uint32_t tile_col = in_band / rows;
    const std::uint32_t tile_row = first + in_band - tile_col * rows;
    place.a = {tile_row, 1, 0};
    place.b = {tile_col, 1, 0};
    if (Atom::gathered_steps > 0 && outliers.how == Gathering::imaged && outliers.shift == 0) {
      place.a = a.cut(tile_row);
      place.b = b.cut(tile_col);
    }
    const int most_rows = Atom::tile_m / place.a.parts, most_cols = Atom::tile_n / place.b.parts;
    place.row = place.a.tile * Atom::tile_m + place.a.piece * most_rows;
    place.col = place.b.tile * Atom::tile_n + place.b.piece * most_cols;
    const auto left = [](std::int64_t all, std::int64_t at, int most) {
      return static_cast<int>(all - at < most ? (all < at ? 0 : all - at) : most);
    };
    place.rows = left(m, place.row, most_rows);
    place.cols = left(n, place.col, most_cols);
    return place;
  }

  /// Products of units from here are normal float32, whatever the sum, and so are their parts.
  static constexpr int least_lo = 68, largest_lo = 176;

  /// Of a row or column.
  struct State {
    std::int16_t lo, spread;
    RowSplit split;
    std::uint32_t says;
  };
  KOKKOS_INLINE_FUNCTION State load_state(const MatrixMap& matrix,
                                          [[maybe_unused]] const RowSplit* split_of_row,
                                          std::int64_t batch_of_tile, std::int64_t row,
                                          const Outliers& outliers) const {
    State state{127, 0, {127, 127, 0}, 0};
    if (row >= matrix.rows) return state;
    const RowSummary summary = *matrix.summaries.at(batch_of_tile, row);
    const bool zero = summary.n == 0;
    if (!zero) state.lo = summary.lo;
    state.spread = static_cast<std::int16_t>(summary.has_nan != 0 ? not_a_number
                                             : zero               ? 0
                                                                  : summary.hi - summary.lo);
    const bool is_narrow = state.spread >= 0 && state.spread <= Atom::max_shift;
    state.split = {state.lo, state.lo, 0};
    if (minimum_tier > Tier::aligned || !is_narrow) state.split.out = RowSplit::is_rest;
    bool is_near = false;
    if constexpr (Atom::gathered_steps > 0) {
      const Gathering how = outliers.how;
      if (!is_narrow && how != Gathering::none &&
          (how == Gathering::imaged ? gather_outliers.has_images(*split_of_row)
                                    : split_of_row->has_outliers())) {
        state.split = *split_of_row;
        is_near = outliers.are_near();  // base is lo
        const bool is_far = state.split.out < state.split.base || state.split.base > largest_lo ||
                            2 * state.spread + sum_bits > 63;
        if (!is_near) state.says |= is_far ? with_outliers | beyond_int64 : with_outliers;
      }
    }
    if (!fits(state.split)) state.says |= with_rest;
    if (minimum_tier > Tier::aligned || !(is_narrow || is_near) || state.lo < least_lo ||
        state.lo + outliers.shift > largest_lo) {
      state.says |= special;
    }
    if (state.lo < least_lo || state.lo > largest_lo) state.says |= beyond_int64;
    return state;
  }
  /// By some threads; returns what each finds.
  KOKKOS_INLINE_FUNCTION std::uint32_t load_states(States& states, const Place& place, int rank,
                                                   int ranks, const Outliers& outliers) const {
    const int rows = Atom::tile_m / place.a.parts, cols = Atom::tile_n / place.b.parts;
    const RowSplit* a_splits = a.splits_of(place.batch, place.a.tile) + place.a.piece * rows;
    const RowSplit* b_splits = b.splits_of(place.batch, place.b.tile) + place.b.piece * cols;
    std::uint32_t says = 0;
    const auto unit = [](int lo) { return static_cast<std::uint16_t>((lo - 1) << 7); };
    for (int i = rank; i < rows; i += ranks) {
      const State state = load_state(a.matrix, a_splits + i, place.batch, place.row + i, outliers);
      states.a_lo[i] = state.lo;
      states.a_spread[i] = state.spread;
      states.a_split[i] = state.split;
      states.a_unit[i] = unit(state.lo);
      says |= state.says;
    }
    for (int i = rank; i < cols; i += ranks) {
      const State state = load_state(b.matrix, b_splits + i, place.batch, place.col + i, outliers);
      states.b_lo[i] = state.lo;
      states.b_spread[i] = state.spread;
      states.b_split[i] = state.split;
      states.b_unit[i] = unit(state.lo);
      says |= state.says;
    }
    return says;
  }
  KOKKOS_INLINE_FUNCTION Tier tier_at(const States& states, int row, int col) const {
    const int a_spread = states.a_spread[row], b_spread = states.b_spread[col];
    if (a_spread < 0 || b_spread < 0) return Tier::automatic;
    if (minimum_tier <= Tier::aligned && a_spread <= Atom::max_shift &&
        b_spread <= Atom::max_shift) {
      return Tier::aligned;  // K is at most Atom::most_blocks
    }
    return minimum_tier <= Tier::window && a_spread + b_spread + sum_bits <= 63 ? Tier::window
                                                                                : Tier::wide;
  }

  KOKKOS_INLINE_FUNCTION static float power_of_two(int lo) {
    return Kokkos::bit_cast<float>(static_cast<std::uint32_t>(lo - 1) << 23);  // 2^(lo - 128)
  }
  /// RN_f32(sum * 2^unit) for every sum of the tile: 2^unit in two factors.
  template <bool IsWhole, class Round>
  KOKKOS_INLINE_FUNCTION void store_plain(const Place& place, const States& states, int thread,
                                          const std::int32_t (&d)[Atom::values],
                                          const Round& round) const {
    auto* c = static_cast<std::uint16_t*>(epilogue.c) + place.batch * epilogue.batch;
    KOKKOSMX_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int row = Atom::row_of(thread, 2 * h);
      if (!IsWhole && row >= place.rows) continue;
      const float unit_a = power_of_two(states.a_lo[row]);
      KOKKOSMX_UNROLL
      for (int j = 0; j < Atom::values / 4; ++j) {
        const int v = 4 * j + 2 * h;
        const int col = Atom::col_of(thread, v);
        if (!IsWhole && col >= place.cols) continue;
        // The conversion is the one rounding: powers of two change no bit of a normal number.
        const float low = round(d[v]) * unit_a * power_of_two(states.b_lo[col]);
        const float high = round(d[v + 1]) * unit_a * power_of_two(states.b_lo[col + 1]);
        const std::uint32_t pair = bf16_pair(low, high);
        if (Atom::tile_n > most_transposed_n || !is_transposed) {  // the columns are even in number
          *reinterpret_cast<std::uint32_t*>(c + (place.row + row) * epilogue.row + place.col +
                                            col) = pair;
        } else {
          std::uint16_t* to = c + (place.col + col) * epilogue.row + place.row + row;
          to[0] = static_cast<std::uint16_t>(pair);
          if (IsWhole || col + 1 < place.cols)
            to[epilogue.row] = static_cast<std::uint16_t>(pair >> 16);
        }
      }
    }
  }

  /// What accumulators 8 * i to 8 * i + 7 do not have, added to them: nothing.
  struct NoMore {
    using Sum = std::int32_t;
    KOKKOS_INLINE_FUNCTION void operator()(int /*i*/, Sum (&)[8]) const {}
  };
  /// Or what outliers make with outliers.
  template <class MoreSteps>
  struct OfOutliers {
    const MoreSteps& steps;
    int thread, shift;
    using Sum = std::int64_t;
    KOKKOS_INLINE_FUNCTION void operator()(int i, Sum (&sums)[8]) const {
      const std::int32_t* kept = steps.kept(i) + thread;
      const std::int32_t less = (1 << shift) - 1;
      KOKKOSMX_UNROLL
      for (int v = 0; v < 8; ++v) sums[v] += Sum{kept[v * Atom::multiplying]} * less << shift;
    }
  };

  /// Sums as float32's bits.
  KOKKOS_INLINE_FUNCTION static void round_all(std::int32_t (&d)[Atom::values]) {
    KOKKOSMX_UNROLL
    for (std::int32_t& sum : d) {
      sum = Kokkos::bit_cast<std::int32_t>(static_cast<float>(sum));
    }
  }
  /// The same with more. The accumulators move round: registers have no index at run time, and a
  /// loop without end would take too many of them.
  template <class More>
  KOKKOS_INLINE_FUNCTION static void round_all(std::int32_t (&d)[Atom::values], const More& more) {
    constexpr int together = 32;
    KOKKOSMX_NO_UNROLL
    for (int begin = 0; begin < Atom::values; begin += together) {
      std::int32_t rounded[together];
      KOKKOSMX_UNROLL
      for (int i = 0; i < together / 8; ++i) {
        typename More::Sum sums[8];
        KOKKOSMX_UNROLL
        for (int v = 0; v < 8; ++v) sums[v] = d[8 * i + v];
        more(begin / 8 + i, sums);
        KOKKOSMX_UNROLL
        for (int v = 0; v < 8; ++v) {
          rounded[8 * i + v] = Kokkos::bit_cast<std::int32_t>(static_cast<float>(sums[v]));
        }
      }
      KOKKOSMX_UNROLL
      for (int v = 0; v + together < Atom::values; ++v) d[v] = d[v + together];
      KOKKOSMX_UNROLL
      for (int v = 0; v < together; ++v) d[Atom::values - together + v] = rounded[v];
    }
  }
  KOKKOS_INLINE_FUNCTION static float rounded(std::int32_t bits) {
    return Kokkos::bit_cast<float>(bits);
  }
  /// The same of whole tiles, whose sums are rounded. Lines of memory are written whole, which
  /// takes a quarter of the time: a warp puts together 64 columns of its 16 rows.
  KOKKOS_INLINE_FUNCTION void store_whole([[maybe_unused]] Scratch& scratch, const Place& place,
                                          const States& states, int thread,
                                          const std::int32_t (&d)[Atom::values]) const {
    if constexpr (Warp::is_there && Atom::tile_n > most_transposed_n) {
      using Lines = LinesOfOutputs;
      constexpr int together = Lines::together;
      const int lane = thread & 31, eighth = Lines::eighth(lane), quarter = Lines::quarter(lane);
      unsigned char* own = reinterpret_cast<unsigned char*>(scratch.own[thread >> 5].word);
      static_assert(sizeof(scratch.own[0]) == Lines::line * 16);
      const int put = Lines::named(lane, eighth), take = Lines::taken(quarter, eighth);
      std::uint32_t unit_a[2];
      for (int h = 0; h < 2; ++h) unit_a[h] = 0x10001u * states.a_unit[Lines::row_of(thread, h)];
      const auto* units_b =
          reinterpret_cast<const std::uint32_t*>(states.b_unit) + Lines::first_pair(thread);
      std::uint16_t* c =
          static_cast<std::uint16_t*>(epilogue.c) + place.batch * epilogue.batch +
          (place.row + Lines::rows_before(thread) + Lines::stored_row(quarter)) * epilogue.row +
          place.col + Lines::stored_col(eighth);
      const bool is_aligned =
          ((reinterpret_cast<std::uintptr_t>(c) | static_cast<std::uint64_t>(8 * epilogue.row)) &
           15) == 0;
      KOKKOSMX_UNROLL
      for (int first = 0; first < Atom::tile_n / 8; first += together) {
        KOKKOSMX_UNROLL
        for (int j = 0; j < together; j += 2) {
          std::uint32_t pairs[4];
          KOKKOSMX_UNROLL
          for (int i = 0; i < 4; ++i) {
            const int v = Lines::first_value(first, j, i);
            // This is the other rounding: powers of two change no bit of a normal number.
            const std::uint32_t pair = bf16_pair(rounded(d[v]), rounded(d[v + 1]));
            pairs[i] = Warp::multiply_bf16(
                Warp::multiply_bf16(pair, units_b[Lines::pair_behind(first, j, i)]),
                unit_a[Lines::second(i)]);
          }
          Warp::store_matrices(own + Lines::of_matrices(put, j), pairs);
        }
        Warp::barrier();
        KOKKOSMX_UNROLL
        for (int i = 0; i < 4; ++i) {
          const ImageChunk chunk =
              *reinterpret_cast<const ImageChunk*>(own + Lines::of_line(take, i));
          std::uint16_t* to = c + Lines::row_behind(i) * epilogue.row + Lines::col_behind(first);
          if (is_aligned) {
            *reinterpret_cast<ImageChunk*>(to) = chunk;
          } else {
            for (int w = 0; w < 4; ++w) reinterpret_cast<std::uint32_t*>(to)[w] = chunk.word[w];
          }
        }
        Warp::barrier();
      }
      return;
    }
    store_plain<true>(place, states, thread, d, [](std::int32_t sum) { return rounded(sum); });
  }

  KOKKOS_INLINE_FUNCTION void store(const Place& place, int row, int col,
                                    std::uint32_t product) const {
    const std::int64_t i = place.row + row, j = place.col + col;
    epilogue(place.batch, is_transposed ? j : i, is_transposed ? i : j, product);
  }

  /// Outputs that the images hold and those with a NaN, by any epilogue.
  template <class More>
  KOKKOS_INLINE_FUNCTION void store_any(Scratch& scratch, const Place& place, const States& states,
                                        int thread, std::int32_t (&d)[Atom::values],
                                        const More& more) const {
    // The accumulators move up, eight at a time: registers have no index at run time.
    for (int first = 0; first < Atom::values; first += 8) {
      std::int32_t* own = scratch.own_of(thread);
      typename More::Sum sums[8];
      for (int v = 0; v < 8; ++v) sums[v] = d[v];
      more(first / 8, sums);
      for (int v = 0; v < 8; ++v) {
        own[v * own_step] = static_cast<std::int32_t>(sums[v]);
        own[(8 + v) * own_step] = static_cast<std::int32_t>(std::int64_t{sums[v]} >> 32);
      }
      for (int v = 0; v + 8 < Atom::values; ++v) d[v] = d[v + 8];
      KOKKOSMX_NO_UNROLL
      for (int v = 0; v < 8; ++v) {
        const int row = Atom::row_of(thread, first + v), col = Atom::col_of(thread, first + v);
        if (row >= place.rows || col >= place.cols) continue;
        const bool is_nan = states.a_spread[row] < 0 || states.b_spread[col] < 0;
        if (!is_nan && !(fits(states.a_split[row]) && fits(states.b_split[col]))) continue;
        const std::uint32_t product =
            is_nan ? f32_nan
                   : round_to_f32(std::int64_t{own[(8 + v) * own_step]} << 32 |
                                      static_cast<std::uint32_t>(own[v * own_step]),
                                  unit_exponent(states.a_lo[row], states.b_lo[col]));
        store(place, row, col, product);
      }
    }
  }

  /// Puts into the memory of accumulators what outliers with images make with one another: lists
  /// the pairs of blocks, in the memory of all warps' own, that all have as many to multiply.
  template <class MoreSteps>
  __attribute__((noinline)) KOKKOS_FUNCTION void add_common(Scratch& scratch_of_group,
                                                            const Place place, int thread,
                                                            const MoreSteps steps,
                                                            bool is_pure) const {
    Scratch& scratch = *in_shared(&scratch_of_group);
    auto* list = reinterpret_cast<std::uint32_t*>(scratch.own);
    constexpr int most = 16 * Atom::multiplying;
    constexpr int a_words = Atom::tile_m / 32, b_words = Atom::tile_n / 32;
    Atom::synchronize();  // others may have stored the tile before
    if (thread == 0) scratch.pairs = 0;
    steps.clear();
    Atom::synchronize();
    const auto words = static_cast<std::uint32_t>(blocks);
    constexpr int at_once = 4;
    for (std::uint32_t first = static_cast<std::uint32_t>(thread); first < words * b_words;
         first += at_once * Atom::multiplying) {
      std::uint32_t of_b[at_once], of_a[at_once][a_words];
      KOKKOSMX_UNROLL
      for (int n = 0; n < at_once; ++n) {  // all loads at once
        const std::uint32_t i = first + n * Atom::multiplying;
        const bool is_there = i < words * b_words;
        const std::uint32_t k = is_there ? i % words : 0;
        const int first_col = is_there ? static_cast<int>(32 * (i / words)) : 0;
        of_b[n] = b.rows_with_outliers(place.batch, place.b.tile, first_col)[k];
        if (!is_there) of_b[n] = 0;
        KOKKOSMX_UNROLL
        for (int w = 0; w < a_words; ++w) {
          of_a[n][w] = a.rows_with_outliers(place.batch, place.a.tile, 32 * w)[k];
        }
      }
      int mine = 0;
      KOKKOSMX_UNROLL
      for (int n = 0; n < at_once; ++n) {
        int rows = 0;
        for (int w = 0; w < a_words; ++w) rows += bits_in(of_a[n][w]);
        mine += rows * bits_in(of_b[n]);
      }
      if (mine == 0) continue;
      int at = Kokkos::atomic_fetch_add(&scratch.pairs, mine);
      KOKKOSMX_UNROLL
      for (int n = 0; n < at_once; ++n) {
        const std::uint32_t i = first + n * Atom::multiplying;
        const std::uint32_t at_k = (i % words) << 16, first_col = 32 * (i / words);
        KOKKOSMX_UNROLL
        for (int w = 0; w < a_words; ++w) {
          for (std::uint32_t rows = of_b[n] == 0 ? 0 : of_a[n][w]; rows != 0; rows &= rows - 1) {
            const std::uint32_t at_row = at_k | static_cast<std::uint32_t>(32 * w + first_bit(rows))
                                                    << 8;
            for (std::uint32_t cols = of_b[n]; cols != 0; cols &= cols - 1, ++at) {
              const std::uint32_t pair =
                  at_row | (first_col + static_cast<std::uint32_t>(first_bit(cols)));
              if (at < most) {
                list[at] = pair;
              } else {
                KOKKOSMX_NO_UNROLL
                for (int h = 0; h < 2; ++h)
                  add_pair(steps, pair, load_pair(place, pair, h), place, h, is_pure);
              }
            }
          }
        }
      }
    }
    static_assert(Atom::tile_m <= 256 && Atom::tile_n <= 256 && Atom::most_blocks < 1 << 16);
    Atom::synchronize();
    const int pairs = scratch.pairs < most ? scratch.pairs : most;
    // A thread has half a pair of blocks at a time.
    constexpr int loads_at_once = 4;
    for (int first = thread; first < 2 * pairs; first += loads_at_once * Atom::multiplying) {
      ChunkPair images[loads_at_once];
      KOKKOSMX_UNROLL
      for (int n = 0; n < loads_at_once; ++n) {
        const int i = first + n * Atom::multiplying;
        images[n] = load_pair(place, list[(i < 2 * pairs ? i : first) / 2], first % 2);
      }
      KOKKOSMX_UNROLL
      for (int n = 0; n < loads_at_once; ++n) {
        if (first + n * Atom::multiplying >= 2 * pairs) break;
        // Read again: registers are for the images.
        const std::uint32_t pair = list[(first + n * Atom::multiplying) / 2];
        add_pair(steps, pair, images[n], place, first % 2, is_pure);
      }
    }
    static_assert(Atom::multiplying % 2 == 0);
    Atom::synchronize();
  }
  struct ChunkPair {
    ImageChunk a, b;
  };
  /// Chunk h of either block of a pair, of the images that hold main part and outliers, or of the
  /// main part's.
  KOKKOS_INLINE_FUNCTION ChunkPair load_pair(const Place& place, std::uint32_t pair, int h,
                                             bool is_main = false) const {
    const std::int64_t k = pair >> 16;
    const int chunk = 2 * static_cast<int>(k % Atom::step_blocks) + h;
    const auto load = [&](const ImageOperand& operand, std::int64_t tile, int row) {
      const std::uint8_t* image = operand.tile(place.batch, tile, Atom::step_bytes) +
                                  (is_main ? 0 : operand.part_bytes) +
                                  k / Atom::step_blocks * (operand.tile_rows * Atom::step_bytes);
      return *reinterpret_cast<const ImageChunk*>(image + Atom::offset(row, chunk));
    };
    return {load(a, place.a.tile, static_cast<int>(pair >> 8 & 255u)),
            load(b, place.b.tile, static_cast<int>(pair & 255u))};
  }
  /// is_pure: no block has some outliers alone.
  template <class MoreSteps>
  KOKKOS_INLINE_FUNCTION void add_pair(const MoreSteps& steps, std::uint32_t pair, ChunkPair images,
                                       const Place& place, int h, bool is_pure) const {
    if (!is_pure) {
      // Together they have the main part where it has no zero.
      const ChunkPair main = load_pair(place, pair, h, true);
      for (int i = 0; i < 4; ++i) {
        images.a.word[i] ^= main.a.word[i];
        images.b.word[i] ^= main.b.word[i];
      }
    }
    const int row = static_cast<int>(pair >> 8 & 255u), col = static_cast<int>(pair & 255u);
    const int v = Atom::value_of(row, col);
    add_shared(steps.kept(v / 8) + v % 8 * Atom::multiplying + Atom::thread_of(row, col),
               dot_images(images.a, images.b));
  }
  KOKKOS_INLINE_FUNCTION static std::int32_t dot_images(const ImageChunk& x, const ImageChunk& y) {
    std::int32_t sum = 0;
    for (int i = 0; i < 4; ++i) sum = dot_int8(x.word[i], y.word[i], sum);
    return sum;
  }

  struct Stored {
    Place place;
    bool is_plain;  ///< bf16 and whole
    bool in_int64;  ///< main part and outliers together
  };
  /// The two rows of a thread.
  struct OwnRows {
    SplitUnits units[2];
    int largest_spread[2];  ///< of a column, with which doubles hold the sum
    KOKKOS_INLINE_FUNCTION OwnRows(const States& states, int thread, int sum_bits) {
      for (int i = 0; i < 2; ++i) {
        const int row = Atom::row_of(thread, 2 * i);
        units[i] = units_of(states.a_split[row].base, states.a_split[row].out);
        largest_spread[i] = double_bits - sum_bits - states.a_spread[row];
      }
    }
  };
  /// All outputs of a tile with gathered outliers but those that store_rest sums.
  template <class MoreSteps>
  KOKKOS_INLINE_FUNCTION void store_with_outliers(Scratch& scratch, const Stored& stored,
                                                  const States& states, int thread,
                                                  const Outliers& outliers,
                                                  std::int32_t (&d)[Atom::values],
                                                  const MoreSteps& gathered) const {
    constexpr int together = 16;
    const typename Atom::Digits digits{outliers.parts, outliers.high_a, outliers.high_b};
    KOKKOSMX_NO_UNROLL
    for (int begin = 0; begin < Atom::values; begin += together) {
      // The accumulators move up: registers have no index at run time.
      for (int v = 0; v < together; ++v) scratch.own_of(thread)[v * own_step] = d[v];
      for (int v = 0; v + together < Atom::values; ++v) d[v] = d[v + together];
      KOKKOSMX_NO_UNROLL
      for (int first = begin; first < begin + together; first += 8) {
        typename Atom::OutlierSums found;
        gathered.multiply(first / 8, digits, found);
        const OwnRows rows(states, thread, sum_bits);
        KOKKOSMX_NO_UNROLL
        for (int at = first; at < first + 8; at += 4) {
          std::int32_t* own = scratch.own_of(thread) + (at - begin) * own_step;
          store_four(
              stored, states, rows, thread, at, own,
              [&](int v) {
                const auto more = found.of(v);
                return SplitSums{exact_double(own[v * own_step]), exact_double(more.outliers_main),
                                 exact_double(more.main_outliers),
                                 Kokkos::fma(exact_double(more.outliers_high), 256.0,
                                             exact_double(more.outliers_low))};
              },
              stored.in_int64,
              [&](int v) {
                const auto more = found.of(v);
                return IntegerSums{own[v * own_step], more.outliers_main, more.main_outliers,
                                   std::int64_t{more.outliers_high} * 256 + more.outliers_low};
              });
          found.move_up();
        }
      }
    }
    gathered.release();
  }
  /// The same of a piece of a tile, whose accumulators are kept.
  template <class MoreSteps>
  __attribute__((noinline)) KOKKOS_FUNCTION void store_cut(Scratch& scratch_of_group,
                                                           const Stored& stored_of_tile,
                                                           const States& states_of_tile, int thread,
                                                           const MoreSteps& steps_of_tile) const {
    const Stored stored = stored_of_tile;
    const MoreSteps kept = steps_of_tile;
    Scratch& scratch = *in_shared(&scratch_of_group);
    const States& states = *in_shared(&states_of_tile);
    const int a_parts = stored.place.a.parts, b_parts = stored.place.b.parts;
    const int of_rows = Atom::multiplying / a_parts, of_cols = Atom::values / b_parts;
    const int in_rows = thread % of_rows;
    constexpr double part = 1 << RowSplit::part_bits;
    const OwnRows rows(states, in_rows, sum_bits);
    KOKKOSMX_NO_UNROLL
    for (int first = thread / of_rows * 4; first < of_cols; first += 4 * a_parts) {
      const std::int32_t* at[3];  // of the column's main part and the parts of its outliers
      for (int p = 0; p < 3; ++p) {
        at[p] = kept.kept((first + (p < b_parts ? p : 0) * of_cols) / 8) +
                first % 8 * Atom::multiplying + in_rows;
      }
      const auto kept_at = [&](int v, int a_part, int b_part) {
        return at[b_part][v * Atom::multiplying + a_part * of_rows];
      };
      store_four(
          stored, states, rows, in_rows, first, scratch.own_of(thread),
          [&](int v) {
            const auto sum = [&](int a_part, int b_part) {
              const bool is_there = a_part < a_parts && b_part < b_parts;
              return exact_double(is_there ? kept_at(v, a_part, b_part) : 0);
            };
            const auto outliers = [&](int b_part) {  // of the row
              return Kokkos::fma(part, sum(2, b_part), sum(1, b_part));
            };
            return SplitSums{sum(0, 0), outliers(0), Kokkos::fma(part, sum(0, 2), sum(0, 1)),
                             Kokkos::fma(part, outliers(2), outliers(1))};
          },
          stored.in_int64 && a_parts <= 2 && b_parts <= 2,
          [&](int v) {
            const int a_part = a_parts - 1, b_part = b_parts - 1;
            return IntegerSums{kept_at(v, 0, 0), a_part > 0 ? kept_at(v, a_part, 0) : 0,
                               b_part > 0 ? kept_at(v, 0, b_part) : 0,
                               a_part * b_part > 0 ? kept_at(v, a_part, b_part) : 0};
          });
    }
    kept.release();
  }
  /// The products of four outputs: see store_four.
  template <class Sums>
  KOKKOS_FORCEINLINE_FUNCTION static void round_four(const States& states, const OwnRows& rows,
                                                     int thread, int first, const Sums& sums,
                                                     std::uint32_t (&products)[4]) {
    unsigned open = 0;
    unrolled<4>([&](auto v) {
      const int col = Atom::col_of(thread, first + v);
      const bool is_exact = states.b_spread[col] <= rows.largest_spread[v / 2];
      const RowSplit split = states.b_split[col];
      const bool is_known = round_split_sum_in_double(
          sums(v), rows.units[v / 2], units_of(split.base, split.out), is_exact, products[v]);
      open |= is_known ? 0u : 1u << v;
    });
    KOKKOSMX_NO_UNROLL
    for (; open != 0; open &= open - 1) {
      const int i = first_bit(open);
      // Its sums are found anew: doubles of all four would take too many registers.
      const std::uint32_t product =
          round_split_sum(sums(i), row_state(states, Atom::row_of(thread, i)),
                          col_state(states, Atom::col_of(thread, first + i)));
      KOKKOSMX_UNROLL
      for (int v = 0; v < 4; ++v) products[v] = v == i ? product : products[v];
    }
  }
  /// Outputs first to first + 3 of a thread, as more would take too many registers; sums(v) of
  /// each, or integers(v) where these are in_int64. Leaves nothing in own.
  template <class Sums, class Integers>
  KOKKOS_FORCEINLINE_FUNCTION void store_four(const Stored& stored, const States& states,
                                              const OwnRows& rows, int thread, int first,
                                              std::int32_t* own, const Sums& sums, bool in_int64,
                                              const Integers& integers) const {
    const Place& place = stored.place;
    std::uint32_t products[4];
    if (in_int64) {
      const auto out_of = [](const RowSplit& split) {
        return 1 << ((split.out - split.base) & 31);
      };
      unrolled<4>([&](auto v) {
        const RowSplit row = states.a_split[Atom::row_of(thread, v)];
        const RowSplit col = states.b_split[Atom::col_of(thread, first + v)];
        const auto sum = static_cast<float>(integers(v).all(out_of(row), out_of(col)));
        products[v] =
            Kokkos::bit_cast<std::uint32_t>(sum * power_of_two(row.base) * power_of_two(col.base));
      });
    } else {
      round_four(states, rows, thread, first, sums, products);
    }
    if (stored.is_plain) {
      auto* c = static_cast<std::uint16_t*>(epilogue.c) + place.batch * epilogue.batch +
                place.row * epilogue.row + place.col;
      KOKKOSMX_UNROLL
      for (int v = 0; v < 4; v += 2) {
        *reinterpret_cast<std::uint32_t*>(c + Atom::row_of(thread, v) * epilogue.row +
                                          Atom::col_of(thread, first + v)) =
            bf16_pair(Kokkos::bit_cast<float>(products[v]),
                      Kokkos::bit_cast<float>(products[v + 1]));
      }
      return;
    }
    for (int v = 0; v < 4; ++v) {
      own[v * own_step] = static_cast<std::int32_t>(products[v]);
    }
    KOKKOSMX_NO_UNROLL
    for (int v = 0; v < 4; ++v) {
      const int row = Atom::row_of(thread, v), col = Atom::col_of(thread, first + v);
      if (row >= place.rows || col >= place.cols) continue;
      const bool is_nan = states.a_spread[row] < 0 || states.b_spread[col] < 0;
      if (!is_nan && !(fits(states.a_split[row]) && fits(states.b_split[col]))) continue;
      store(place, row, col, is_nan ? f32_nan : static_cast<std::uint32_t>(own[v * own_step]));
    }
  }
  KOKKOS_INLINE_FUNCTION static SplitState row_state(const States& states, int row) {
    return {states.a_lo[row], states.a_spread[row], states.a_split[row].base,
            states.a_split[row].out};
  }
  KOKKOS_INLINE_FUNCTION static SplitState col_state(const States& states, int col) {
    return {states.b_lo[col], states.b_spread[col], states.b_split[col].base,
            states.b_split[col].out};
  }

  /// The images hold the row, or its main part and its outliers.
  KOKKOS_INLINE_FUNCTION static bool fits(const RowSplit& split) {
    return split.out != RowSplit::is_rest;
  }
  /// The other outputs, one thread each: all of a row that does not fit, then what is left of each
  /// column that does not.
  __attribute__((noinline)) KOKKOS_FUNCTION void store_rest(const Place& place,
                                                            const States& states,
                                                            int thread) const {
    for (int row = 0; row < place.rows; ++row) {
      if (fits(states.a_split[row])) continue;
      for (int col = thread; col < place.cols; col += Atom::multiplying) {
        store_sum(place, states, row, col);
      }
    }
    for (int col = 0; col < place.cols; ++col) {
      if (fits(states.b_split[col])) continue;
      for (int row = thread; row < place.rows; row += Atom::multiplying) {
        if (fits(states.a_split[row])) store_sum(place, states, row, col);
      }
    }
  }
  KOKKOS_INLINE_FUNCTION void store_sum(const Place& place, const States& states, int row,
                                        int col) const {
    const Tier tier = tier_at(states, row, col);
    if (tier == Tier::automatic || tier == Tier::aligned) return;
    const int unit = unit_exponent(states.a_lo[row], states.b_lo[col]);
    std::uint32_t product;
    if (tier == Tier::window) {
      std::int64_t sum = 0;
      over_blocks(place, states, row, col,
                  [&](std::int64_t term, int shift) { sum += term << shift; });
      product = round_to_f32(sum, unit);
    } else {
      WideSum sum;
      int terms = 0;
      over_blocks(place, states, row, col, [&](std::int64_t term, int shift) {
        sum.add(static_cast<std::int32_t>(term), shift);
        if (++terms == WideSum::terms_between_carries) {
          sum.carry();
          terms = 0;
        }
      });
      product = sum.round(unit);
    }
    store(place, row, col, product);
  }
  /// f(dot product, shift) for each pair of blocks that are not zeros.
  template <class F>
  KOKKOS_INLINE_FUNCTION void over_blocks(const Place& place, const States& states, int row,
                                          int col, const F& f) const {
    const MatrixMap& qa = a.matrix;
    const MatrixMap& qb = b.matrix;
    const std::uint8_t* a_codes = qa.codes.at(place.batch, place.row + row, 0);
    const std::uint8_t* b_codes = qb.codes.at(place.batch, place.col + col, 0);
    const std::uint8_t* a_scales = qa.scales.at(place.batch, place.row + row, 0);
    const std::uint8_t* b_scales = qb.scales.at(place.batch, place.col + col, 0);
    for (std::int64_t k = 0; k < blocks; ++k) {
      const int shift_a = a_scales[qa.scales.col_offset(k)] - states.a_lo[row];
      const int shift_b = b_scales[qb.scales.col_offset(k)] - states.b_lo[col];
      // Outside 0..spread only for blocks of zeros.
      if (shift_a < 0 || shift_a > states.a_spread[row] || shift_b < 0 ||
          shift_b > states.b_spread[col]) {
        continue;
      }
      f(std::int64_t{dot_blocks(load_block(qa.codes, a_codes + qa.codes.block_offset(k)),
                                load_block(qb.codes, b_codes + qb.codes.block_offset(k)))},
        shift_a + shift_b);
    }
  }

  KOKKOS_INLINE_FUNCTION void count(const Place& place, const States& states, int thread) const {
    std::uint64_t found[tier_count] = {};
    for (int i = thread; i < place.rows * place.cols; i += Atom::multiplying) {
      const Tier tier = tier_at(states, i / place.cols, i % place.cols);
      for (int t = 0; t < tier_count; ++t) found[t] += static_cast<int>(tier) == t ? 1 : 0;
    }
    for (int t = 0; t < tier_count; ++t) {
      if (found[t] != 0) Kokkos::atomic_add(&counts[t], found[t]);
    }
  }
};

}  // namespace KokkosMX::Impl

#endif
