// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_MAKE_IMAGES_HPP
#define KOKKOSMX_SRC_GEMM_MAKE_IMAGES_HPP

/// \file make_images.hpp
/// Operands as images of int8 elements: of their rows' main parts.

#include <KokkosMX/Types.hpp>

#include "../atoms/cuda.hpp"
#include "../atoms/gemm/int8_codes.hpp"
#include "../atoms/quantize/loops.hpp"
#include "../atoms/words.hpp"
#include "../launch.hpp"
#include "../operand.hpp"
#include "image_operand.hpp"
#include "row_split.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>

namespace KokkosMX::Impl {

/// What is left to do for an operand before its images can be made.
enum class ImageSource { matrix, matrix_without_summaries, dense };

/// Makes the images of both operands. A group makes those of 8 rows: it quantizes them where they
/// are dense, finds their summaries where there are none, and expands their codes. 32 threads share
/// a step, whose blocks they keep.
template <class Atom, class QuantizeAtom>
struct MakeImages {
  struct Part {
    ImageOperand operand;
    ImageSource source;
    DenseMap dense;
    Element element;

    /// Groups of 8 rows, those that only fill the last tile included.
    KOKKOS_INLINE_FUNCTION std::int64_t octets() const {
      return operand.tiles * operand.tile_rows / 8;
    }
    KOKKOS_INLINE_FUNCTION std::int64_t items() const { return operand.matrix.batch * octets(); }
  };
  Part parts[2];
  QuantizeRule rule;
  GatherState* gathering;  ///< null where the atom has no room for gathered columns

  static constexpr int threads = 256, groups_together = 3;
  static constexpr int rows = 8;
  static constexpr int step_threads = rows * Atom::step_blocks;
  static constexpr int row_threads = threads / rows;
  static constexpr bool splits = Atom::gathered_steps > 0;
  struct Splitting {
    SplitChoice row[rows];
  };
  struct Scratch {
    union {
      std::uint32_t reach[rows][row_threads];
      Splitting splitting;
    };
    int any_is_wide, outliers;
  };

  std::int64_t items() const { return parts[0].items() + parts[1].items(); }

  template <class Group>
  KOKKOS_FUNCTION void operator()(const Group& group, Scratch& scratch, std::int64_t item) const {
    dependents_may_begin();
    const bool first = item < parts[0].items();
    const Part& part = parts[first ? 0 : 1];
    const MatrixMap& q = part.operand.matrix;
    if constexpr (splits) {
      if (item == 0 && group.rank() == 0) *gathering = {};
    }
    if (!first) item -= parts[0].items();
    Place place;
    const auto octets = static_cast<std::uint32_t>(part.octets());
    place.batch = q.batch == 1 ? 0 : static_cast<std::uint32_t>(item) / octets;
    place.octet = item - place.batch * octets;
    const int slot = group.rank() % step_threads;
    place.row_in_octet = slot / Atom::step_blocks;
    place.row = place.octet * rows + place.row_in_octet;
    place.block_in_step = slot % Atom::step_blocks;
    place.first_step = group.rank() / step_threads;
    place.is_row = place.row < q.rows;

    RowSummary summary{};
    Blocks held;  // the first of the thread's
    if (part.source == ImageSource::matrix) {
      held = load(part, place, 0);
      if (place.is_row) summary = *q.summaries.at(place.batch, place.row);
    } else {
      std::uint32_t reach = 0;
      if (part.source == ImageSource::matrix_without_summaries) {
        held = load(part, place, 0);
        merge_reach(reach, held);
        for (std::int64_t first = at_once; first * row_threads < q.blocks; first += at_once) {
          merge_reach(reach, load(part, place, first));
        }
      } else {
        if (part.element == Element::bf16) {
          quantize<BF16Format>(part, place, reach);
        } else if (part.element == Element::f16) {
          quantize<F16Format>(part, place, reach);
        } else {
          quantize<F32Format>(part, place, reach);
        }
        held = load(part, place, 0);
      }
      summary = summary_of_reach(of_row(group, scratch, place, reach));
      if (place.leads_row() && place.is_row) *q.summaries.at(place.batch, place.row) = summary;
    }
    const RowSplit chosen = split(group, scratch, part, place, summary);
    expand(part, place, chosen, held);
  }

 private:
  struct Place {
    std::int64_t batch, octet, row;
    int row_in_octet, block_in_step, first_step;
    bool is_row;
    KOKKOS_INLINE_FUNCTION bool leads_row() const { return first_step == 0 && block_in_step == 0; }
    /// Of the row's threads: its blocks are those from this one on, row_threads apart.
    KOKKOS_INLINE_FUNCTION int rank() const {
      return first_step * Atom::step_blocks + block_in_step;
    }
  };
  static constexpr int at_once = 4;  ///< blocks whose loads are under way together
  struct Blocks {
    BlockCodes codes[at_once];
    int scales[at_once];
  };

  /// The thread's blocks from its `first`th on; zeros past the row's end.
  KOKKOS_INLINE_FUNCTION static Blocks load(const Part& part, const Place& place,
                                            std::int64_t first) {
    const MatrixMap& q = part.operand.matrix;
    Blocks blocks{};
    const std::int64_t block = first * row_threads + place.rank();
    if (!place.is_row || block >= q.blocks) return blocks;
    // They differ in the layouts' highest digits alone.
    static_assert(row_threads % 8 == 0);
    const std::uint8_t* codes = q.codes.at(place.batch, place.row, block);
    const std::uint8_t* scales = q.scales.at(place.batch, place.row, block);
    const std::int64_t codes_step = row_threads / 4 * q.codes.block_4;
    const std::int64_t scales_step = row_threads / 8 * q.scales.col_8;
    const auto is_there = [&](int i) { return block + i * row_threads < q.blocks; };
    // Without a branch for each, so that devices have all loads under way at once.
    if (q.codes.byte == 1 && CodesMap::is_aligned(codes) && codes_step % block_bytes == 0) {
      KOKKOSMX_UNROLL
      for (int i = 0; i < at_once; ++i) {
        if (is_there(i)) blocks.codes[i] = load_whole_block(codes + i * codes_step);
      }
    } else {
      KOKKOSMX_UNROLL
      for (int i = 0; i < at_once; ++i) {
        if (is_there(i)) blocks.codes[i] = load_block(q.codes, codes + i * codes_step);
      }
    }
    KOKKOSMX_UNROLL
    for (int i = 0; i < at_once; ++i) {
      if (is_there(i)) blocks.scales[i] = scales[i * scales_step];
    }
    return blocks;
  }

  /// Of what RowSummary tells the split needs lo, hi and has_nan alone: 255 - lo and (above) hi +
  /// 1, or reach_nan, of which those of several blocks are the larger; 0 where there are none.
  static constexpr std::uint32_t reach_nan = 512;
  KOKKOS_INLINE_FUNCTION static std::uint32_t reach_of(int scale, bool is_zero) {
    if (scale == 255) return reach_nan << 16;
    return is_zero ? 0u : static_cast<std::uint32_t>((255 - scale) | (scale + 1) << 16);
  }
  KOKKOS_INLINE_FUNCTION static void merge_reach(std::uint32_t& into, std::uint32_t other) {
    into = larger_halves(into, other);
  }
  KOKKOS_INLINE_FUNCTION static void merge_reach(std::uint32_t& into, const Blocks& blocks) {
    KOKKOSMX_UNROLL
    for (int i = 0; i < at_once; ++i) {
      const std::uint32_t* word = blocks.codes[i].word;
      const bool is_zero = ((word[0] | word[1] | word[2] | word[3]) & 0x77777777u) == 0;
      merge_reach(into, reach_of(blocks.scales[i], is_zero));
    }
  }
  /// The same of all threads of the row.
  template <class Group>
  KOKKOS_INLINE_FUNCTION static std::uint32_t of_row(const Group& group, Scratch& scratch,
                                                     const Place& place, std::uint32_t reach) {
    std::uint32_t* all = scratch.reach[place.row_in_octet];
    int threads_left = row_threads, at = place.rank();
    if constexpr (Warp::is_there) {
      merge_reach(reach, Warp::from_lane_xor(reach, 1));
      merge_reach(reach, Warp::from_lane_xor(reach, 2));
      static_assert(Atom::step_blocks == 4);
      threads_left /= Atom::step_blocks;
      at /= Atom::step_blocks;
    }
    all[at] = reach;
    group.barrier();
    KOKKOSMX_UNROLL
    for (int i = 0; i < threads_left; ++i) merge_reach(reach, all[i]);
    return reach;
  }
  /// Its n is the bound that every row has.
  KOKKOS_INLINE_FUNCTION static RowSummary summary_of_reach(std::uint32_t reach) {
    RowSummary summary{};
    const std::uint32_t low = reach & 0xFFFFu, high = reach >> 16;
    summary.has_nan = high == reach_nan ? 1 : 0;
    if (low == 0) return summary;
    summary.n = ~std::uint64_t{0};
    summary.lo = static_cast<std::uint8_t>(255 - low);
    summary.hi = summary.has_nan != 0 ? summary.lo : static_cast<std::uint8_t>(high - 1);
    return summary;
  }

  /// f(block) for each of the thread's blocks of its row.
  template <class F>
  KOKKOS_INLINE_FUNCTION static void over_blocks(const Part& part, const Place& place, const F& f) {
    const std::int64_t blocks = place.is_row ? part.operand.matrix.blocks : 0;
    for (std::int64_t block = place.first_step * Atom::step_blocks + place.block_in_step;
         block < blocks; block += threads / rows) {
      f(block);
    }
  }

  template <class Format>
  KOKKOS_INLINE_FUNCTION void quantize(const Part& part, const Place& place,
                                       std::uint32_t& reach) const {
    const MatrixMap& q = part.operand.matrix;
    constexpr int bytes = block_size * static_cast<int>(sizeof(typename Format::bits));
    over_blocks(part, place, [&](std::int64_t block) {
      const BlockResult result =
          q.codes.store(q.codes.at(place.batch, place.row, block), [&](std::uint8_t* codes) {
            return QuantizeAtom::template quantize<Format>(
                part.dense.at(place.batch, place.row, block * bytes), codes, rule);
          });
      *q.scales.at(place.batch, place.row, block) = result.scale;
      merge_reach(reach, reach_of(result.scale, result.sum_of_squares == 0));
    });
  }

  /// Whether any row of the octet is: a warp has threads of all of them.
  template <class Group>
  KOKKOS_INLINE_FUNCTION static bool any_row([[maybe_unused]] const Group& group,
                                             [[maybe_unused]] Scratch& scratch, bool is) {
    if constexpr (Warp::is_there) {
      static_assert(step_threads == Warp::lanes);
      return Warp::any_lane(is);
    } else {
      if (group.rank() == 0) scratch.any_is_wide = 0;
      group.barrier();
      if (is) Kokkos::atomic_store(&scratch.any_is_wide, 1);
      group.barrier();
      return scratch.any_is_wide != 0;
    }
  }

  /// How the thread's row is split; tells the others who need it.
  template <class Group>
  KOKKOS_INLINE_FUNCTION RowSplit split(const Group& group, Scratch& scratch, const Part& part,
                                        const Place& place, const RowSummary& summary) const {
    const int spread = summary.hi - summary.lo;
    const bool is_narrow = summary.has_nan == 0 && spread <= Atom::max_shift;
    RowSplit result{summary.lo, is_narrow ? std::int16_t{summary.lo} : RowSplit::is_rest, 0};
    if constexpr (splits) {
      const std::int64_t octet =
          (part.operand.matrix.batch == 1 ? 0 : place.batch) * part.octets() + place.octet;
      const bool is_wide =
          place.is_row && !is_narrow && summary.has_nan == 0 && spread <= RowSplit::most_spread;
      int outliers = 0;
      if (any_row(group, scratch, is_wide)) {
        result = split_wide(group, scratch, part, place, octet, is_wide, summary.lo, summary.hi,
                            result.out);
        outliers = scratch.outliers >> 8 != 0 ? 3 : scratch.outliers != 0 ? 1 : 0;
      }
      if (place.leads_row()) part.operand.splits[octet * rows + place.row_in_octet] = result;
      if (group.rank() == 0) {
        part.operand.has_outliers[octet] = static_cast<std::uint8_t>(outliers);
      }
    }
    return result;
  }
  /// The same for octets with rows that are wide. Not a part of what most octets run.
  template <class Group>
  __attribute__((noinline)) KOKKOS_FUNCTION static RowSplit split_wide(
      const Group& group, Scratch& scratch, const Part& part, const Place place, std::int64_t octet,
      bool is_wide, int lo, int hi, std::int16_t out) {
    const ImageOperand& operand = part.operand;
    const MatrixMap& q = operand.matrix;
    group.barrier();  // summaries are read
    for_each(group, rows * SplitChoice::words, [&](std::int64_t i) {
      scratch.splitting.row[i / SplitChoice::words].clear(static_cast<int>(i % SplitChoice::words));
    });
    if (group.rank() == 0) scratch.outliers = 0;
    std::uint32_t* columns = operand.columns + octet * q.blocks;
    for_each(group, q.blocks, [&](std::int64_t block) { columns[block] = 0; });
    group.barrier();
    SplitChoice& choice = scratch.splitting.row[place.row_in_octet];
    const int rank = place.first_step * Atom::step_blocks + place.block_in_step;
    // f(block, codes, scale), of blocks that differ in the layouts' highest digits alone.
    const auto each_block = [&](const auto& f) {
      const std::uint8_t* codes = q.codes.at(place.batch, place.row, rank);
      const std::uint8_t* scales = q.scales.at(place.batch, place.row, rank);
      static_assert(row_threads % 8 == 0);
      KOKKOSMX_NO_UNROLL
      for (std::int64_t block = rank; is_wide && block < q.blocks; block += row_threads) {
        f(block, load_block(q.codes, codes), int{*scales});
        codes += row_threads / 4 * q.codes.block_4;
        scales += row_threads / 8 * q.scales.col_8;
      }
    };
    each_block([&](std::int64_t, const BlockCodes& codes, int scale) {
      const int found = bits_in(codes_from(codes, 1));
      if (found != 0) add_shared(&choice.elements_of[scale - lo], found);
    });
    group.barrier();
    if (is_wide) choice.rate(rank, row_threads, hi - lo);
    group.barrier();
    if (is_wide) choice.reach(rank, row_threads, hi - lo);
    group.barrier();
    const RowSplit result =
        is_wide ? choice.split(lo) : RowSplit{static_cast<std::int16_t>(lo), out, 0};
    if (is_wide && result.has_outliers()) {
      if (rank == 0) add_shared(&scratch.outliers, result.parts() > 1 ? 1 << 8 : 1);
      each_block([&](std::int64_t block, const BlockCodes& codes, int scale) {
        const std::uint32_t found = codes_from(codes, least_outlier(scale - result.base));
        if (found != 0) Kokkos::atomic_or(&columns[block], found);
      });
    }
    group.barrier();
    return result;
  }

  /// Held: the thread's first blocks.
  KOKKOS_INLINE_FUNCTION void expand(const Part& part, const Place& place, const RowSplit& split,
                                     const Blocks& held) const {
    const ImageOperand& operand = part.operand;
    const std::int64_t first_row = place.octet * rows;
    const std::int64_t tile = first_row / operand.tile_rows;
    const int in_tile = static_cast<int>(first_row % operand.tile_rows) + place.row_in_octet;
    std::uint8_t* image = operand.tile(place.batch, tile, Atom::step_bytes);
    const bool fits = place.is_row && split.out != RowSplit::is_rest;
    constexpr int steps_apart = threads / step_threads;
    Blocks blocks = held;
    for (std::int64_t first = 0; first * steps_apart + place.first_step < operand.steps;) {
      KOKKOSMX_UNROLL
      for (int i = 0; i < at_once; ++i) {
        const std::int64_t step = (first + i) * steps_apart + place.first_step;
        if (step >= operand.steps) break;
        ImageChunk chunks[2] = {};
        // Blocks of zeros may have any scale.
        const Magnitudes main = main_magnitudes(blocks.scales[i] - split.base);
        if (fits && main.low != 0) {
          for (int j = 0; j < 8; ++j) {
            chunks[j / 4].word[j % 4] =
                expand_codes(blocks.codes[i].word[j / 2] >> (16 * (j % 2)), main.low, main.high);
          }
        }
        store_chunks(image + step * operand.tile_rows * Atom::step_bytes, in_tile,
                     place.block_in_step, chunks);
      }
      first += at_once;
      if (first * row_threads < part.operand.matrix.blocks) blocks = load(part, place, first);
    }
  }
};

}  // namespace KokkosMX::Impl

#endif
