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
/// are gathered: three more steps of images hold these columns alone, and tiles with outliers
/// multiply these too. Outliers anywhere have images of their own: tiles with outliers are cut into
/// pieces, whose rows' main parts and outliers are multiplied like so many more rows. All other
/// rows are zeros in the images: their outputs are summed one by one.
///
/// Where those are all near the main part, they are four scales the same distance above it, and the
/// accumulators of tiles that are not cut hold what they add: their products by main parts come
/// first, then the sum is shifted by that distance, then those of main parts follow. What outliers
/// make with outliers is little, and is added at last.

#include <KokkosMX/Types.hpp>

#include "../atoms/gemm/int8_codes.hpp"
#include "../atoms/gemm/wgmma.hpp"
#include "../atoms/quantize/loops.hpp"
#include "../atoms/words.hpp"
#include "../launch.hpp"
#include "../operand.hpp"
#include "epilogue.hpp"
#include "exact_sum.hpp"
#include "image_operand.hpp"
#include "row_split.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>

namespace KokkosMX::Impl {

/// What is left to do for an operand before its images can be made.
enum class ImageSource { matrix, matrix_without_summaries, dense };

/// What became of the columns of K in which some row of either operand has outliers: there are
/// none, they are gathered, or they are too many, and outliers have images of their own.
enum class Gathering : std::uint32_t { none, done, imaged };
struct Outliers {
  Gathering how;
  int parts;               ///< of 32 gathered columns each: those after them are none
  bool high_a, high_b;     ///< some gathered outlier of the operand has a high digit
  std::uint32_t tiles[2];  ///< of rows of each operand, cut where outliers have images
  int shift = 0;           ///< from the main part to imaged outliers near it; 0: they are not
};

/// Of the groups that gather outliers together: they take one piece of work after the other, first
/// columns, then octets, and wait only for pieces that a running group has taken.
struct GatherState {
  std::uint32_t taken[2], done[2];
  Gathering gathering;
  std::uint32_t cuts[2];  ///< of tiles of rows, where outliers have images
  /// Of all rows with outliers: whether those of any are not near; most_shift less the least shift
  /// from the main part to outliers, the largest shift; the largest weight << shift of an operand.
  std::int32_t reach[5];
  std::int32_t shift;  ///< see Outliers
  static constexpr int far = 0, lowest = 1, highest = 2, weight = 3, reaches = 5;
  static constexpr int most_shift = 16;
};

/// A block's chunks to the image of a step. Warps call it together: a row's blocks are in lanes one
/// after the other.
template <class Atom>
KOKKOS_INLINE_FUNCTION void store_chunks(std::uint8_t* image, int row, int block,
                                         const ImageChunk (&chunks)[2]) {
  const auto put = [&](int of_block, int h, const ImageChunk& chunk) {
    *reinterpret_cast<ImageChunk*>(image + Atom::offset(row, 2 * of_block + h)) = chunk;
  };
#ifdef __CUDA_ARCH__
  // A block's chunks make a sector of memory, which two lanes write at once: their own block's
  // first or second chunk and the other's. Word by word, or chunks would not be in registers.
  const int h = block & 1;
  ImageChunk even, odd;  // of the blocks of these numbers
  KOKKOSMX_UNROLL
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t first = chunks[0].word[i], second = chunks[1].word[i];
    const std::uint32_t other = CudaUnit::from_lane_xor(h == 0 ? second : first, 1);
    even.word[i] = h == 0 ? first : other;
    odd.word[i] = h == 0 ? other : second;
  }
  put(block & ~1, h, even);
  put(block | 1, h, odd);
#else
  put(block, 0, chunks[0]);
  put(block, 1, chunks[1]);
#endif
}

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
#if defined(__CUDA_ARCH__)
    CudaUnit::dependents_may_begin();
#endif
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
#ifdef __CUDA_ARCH__
    merge_reach(reach, CudaUnit::from_lane_xor(reach, 1));
    merge_reach(reach, CudaUnit::from_lane_xor(reach, 2));
    static_assert(Atom::step_blocks == 4);
    threads_left /= Atom::step_blocks;
    at /= Atom::step_blocks;
#endif
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
#ifdef __CUDA_ARCH__
    static_assert(step_threads == 32);
    return CudaUnit::any_lane(is);
#else
    if (group.rank() == 0) scratch.any_is_wide = 0;
    group.barrier();
    if (is) Kokkos::atomic_store(&scratch.any_is_wide, 1);
    group.barrier();
    return scratch.any_is_wide != 0;
#endif
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
      if (rank == 0) add_shared(&scratch.outliers, result.parts > 1 ? 1 << 8 : 1);
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
        store_chunks<Atom>(image + step * operand.tile_rows * Atom::step_bytes, in_tile,
                           place.block_in_step, chunks);
      }
      first += at_once;
      if (first * row_threads < part.operand.matrix.blocks) blocks = load(part, place, first);
    }
  }
};

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
  /// What load_states may say of a tile. special: some output is not Tier::aligned, or its product
  /// may leave float32's normal numbers before it is rounded; with_outliers: gathered, or with
  /// images; with_rest: rows or columns that the images do not hold, or with NaN; beyond_int64: 64
  /// bits may not hold the sum of main part and outliers, or what is rounded may leave the range.
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
#if defined(__CUDA_ARCH__)
    CudaUnit::wait_for_earlier();
#endif
    Outliers outliers{Gathering::none, 0, false, false, {tiles_of(a), tiles_of(b)}};
    if constexpr (Atom::gathered_steps > 0) gather(group, scratch, outliers);
    // In shared memory: registers are for the product.
    if (group.rank() == 0) scratch.found = outliers;
    group.barrier();
    multiply(scratch, thread, item);
  }

 private:
  KOKKOS_INLINE_FUNCTION static std::uint32_t tiles_of(const ImageOperand& operand) {
    return static_cast<std::uint32_t>(operand.tiles);
  }
  /// What follows a tile's steps.
  KOKKOS_INLINE_FUNCTION StepsAfter steps_after(const Place& place,
                                                const Outliers& outliers) const {
    if (outliers.how == Gathering::none) return StepsAfter::none;
    const bool imaged = outliers.how == Gathering::imaged;
    if (imaged && outliers.shift == 0) return place.is_cut() ? StepsAfter::room : StepsAfter::none;
    const bool of_a = a.outliers_of(place.batch, place.a.tile) != 0;
    const bool of_b = b.outliers_of(place.batch, place.b.tile) != 0;
    if (imaged) return of_a && of_b ? StepsAfter::room : StepsAfter::none;
    return of_a || of_b ? StepsAfter::gathered : StepsAfter::none;
  }
  /// The products before a tile's: those of outliers near the main part by main parts.
  KOKKOS_INLINE_FUNCTION void before(const Place& place, const Outliers& outliers,
                                     typename Atom::Images& images) const {
    if (outliers.shift == 0) return;
    images.before_steps[0] = a.outliers_of(place.batch, place.a.tile) != 0 ? a.steps : 0;
    images.before_steps[1] = b.outliers_of(place.batch, place.b.tile) != 0 ? b.steps : 0;
    images.a_before[0] = a.part_bytes;
    images.b_before[1] = b.part_bytes;
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
  KOKKOS_INLINE_FUNCTION void multiply(Scratch& scratch, int thread_of_group,
                                       std::int64_t item) const {
    constexpr bool may_have_outliers = Atom::gathered_steps > 0;
    const Outliers& outliers = *in_shared(&scratch.found);
    // Loops that not all of a warp's threads repeat as often would be no place for the matrix unit.
    const std::uint32_t tiles =
        Atom::uniform(static_cast<std::uint32_t>(batch) * outliers.tiles[0] * outliers.tiles[1]);
    Atom::run(
        scratch.pipeline, static_cast<std::int32_t>(item), static_cast<std::int32_t>(tiles),
        static_cast<std::int32_t>(groups), a.steps,
        [&](std::int32_t tile) {
          const Place place = place_of(tile, outliers);
          typename Atom::Images images{image_of(a, place.batch, place.a),
                                       image_of(b, place.batch, place.b),
                                       place.a.parts,
                                       place.b.parts,
                                       a.part_bytes,
                                       b.part_bytes,
                                       {},
                                       {},
                                       {}};
          before(place, outliers, images);
          return images;
        },
        [&](std::int32_t tile) {
          if (outliers.shift == 0) return std::int64_t{0};
          typename Atom::Images images{};
          before(place_of(tile, outliers), outliers, images);
          return images.before_steps[0] + images.before_steps[1];
        },
        [&] { return outliers.shift; },
        [&](std::int32_t tile) { return steps_after(place_of(tile, outliers), outliers); },
        [&](std::int32_t tile, int slot, int rank, int ranks) {
          return load_states(scratch.states[slot], place_of(tile, outliers), rank, ranks, outliers);
        },
        [&](std::int32_t tile, int slot, std::uint32_t said, std::int32_t(&d)[Atom::values],
            const auto& gathered) {
          // Registers of the product are not for what is quickly found again.
          const int thread = opaque(thread_of_group);
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
              add_common(scratch, place, thread, steps);
              const int shift = 2 * outliers.shift;
              const OfOutliers<std::remove_const_t<decltype(steps)>> more{steps, thread, shift};
              if (is_plain) {
                round_all(d, more);
                store_whole(scratch, place, states, thread, d);
              } else {
                store_any(scratch, place, states, thread, d, more);
              }
              steps.release();
            }
          } else if (may_have_outliers && outliers.how == Gathering::imaged && place.is_cut()) {
            if constexpr (may_have_outliers) {
              const auto steps = gathered.wait();
              steps.keep(d);
              store_cut(scratch, stored, states, thread, steps);
            }
          } else if (may_have_outliers && outliers.shift == 0 && (said & with_outliers) != 0) {
            if constexpr (may_have_outliers) {
              store_with_outliers(scratch, stored, states, thread, outliers, d, gathered.wait());
            }
          } else if (is_plain) {
            round_all(d);
            store_whole(scratch, place, states, thread, d);
          } else if ((said & special) == 0 && is_plain_bf16 && Atom::values <= 32) {
            if constexpr (Atom::values <= 32) {
              store_plain<false>(place, states, thread, d,
                                 [](std::int32_t sum) { return static_cast<float>(sum); });
            }
          } else {
            store_any(scratch, place, states, thread, d, NoMore{});
          }
          if (has_rest) store_rest(place, states, thread);
          if (counts != nullptr) count(place, states, thread);
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
    const Gathering how = outliers.how;
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
      if (!is_narrow && (how == Gathering::done ? split_of_row->has_outliers()
                                                : how == Gathering::imaged &&
                                                      gather_outliers.has_images(*split_of_row))) {
        state.split = *split_of_row;
        state.says |= with_outliers;
        const bool is_far = state.split.out < state.split.base || state.split.base > largest_lo ||
                            2 * state.spread + sum_bits > 63;
        if (is_far) state.says |= beyond_int64;
        is_near = outliers.shift > 0;  // base is lo
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

  /// RN_f32(sum * 2^unit) for every sum of the tile: 2^unit in two factors.
  KOKKOS_INLINE_FUNCTION static float power_of_two(int lo) {
    return Kokkos::bit_cast<float>(static_cast<std::uint32_t>(lo - 1) << 23);  // 2^(lo - 128)
  }
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
      KOKKOSMX_UNROLL
      for (int v = 0; v < 8; ++v) sums[v] += Sum{kept[v * Atom::multiplying]} << shift;
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
#if defined(__CUDA_ARCH__)
    if constexpr (Atom::tile_n > most_transposed_n) {
      constexpr int together = 8, line = 128;  // matrices of 8 columns; bytes
      const int lane = thread & 31, eighth = lane & 7, quarter = lane >> 3;
      unsigned char* own = reinterpret_cast<unsigned char*>(scratch.own[thread >> 5].word);
      // 16-byte pieces of a line change places by the row's number, so that no banks conflict.
      const int put = (lane & 15) * line + ((eighth ^ lane >> 4) << 4);
      const int take = quarter * line + ((eighth ^ quarter) << 4);
      std::uint32_t unit_a[2];
      for (int h = 0; h < 2; ++h) unit_a[h] = 0x10001u * states.a_unit[Atom::row_of(thread, 2 * h)];
      const auto* units_b =
          reinterpret_cast<const std::uint32_t*>(states.b_unit) + Atom::col_of(thread, 0) / 2;
      std::uint16_t* c = static_cast<std::uint16_t*>(epilogue.c) + place.batch * epilogue.batch +
                         (place.row + (thread >> 5) * 16 + quarter) * epilogue.row + place.col +
                         8 * eighth;
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
            const int v = 4 * (first + j) + 2 * i;
            // This is the other rounding: powers of two change no bit of a normal number.
            const std::uint32_t pair = bf16_pair(rounded(d[v]), rounded(d[v + 1]));
            pairs[i] = CudaUnit::multiply_bf16(
                CudaUnit::multiply_bf16(pair, units_b[4 * (first + j + i / 2)]), unit_a[i % 2]);
          }
          CudaUnit::store_matrices(own + (put ^ 16 * j), pairs);
        }
        CudaUnit::warp_barrier();
        KOKKOSMX_UNROLL
        for (int i = 0; i < 4; ++i) {
          const ImageChunk chunk =
              *reinterpret_cast<const ImageChunk*>(own + (take ^ 64 * (i % 2)) + 4 * line * i);
          std::uint16_t* to = c + 4 * i * epilogue.row + 8 * first;
          if (is_aligned) {
            *reinterpret_cast<ImageChunk*>(to) = chunk;
          } else {
            for (int w = 0; w < 4; ++w) reinterpret_cast<std::uint32_t*>(to)[w] = chunk.word[w];
          }
        }
        CudaUnit::warp_barrier();
      }
      return;
    }
#endif
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
                                                            const MoreSteps steps) const {
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
      KOKKOSMX_UNROLL
      for (int n = 0; n < at_once; ++n) {
        const std::uint32_t i = first + n * Atom::multiplying;
        const std::uint32_t at_k = (i % words) << 16, first_col = 32 * (i / words);
        KOKKOSMX_UNROLL
        for (int w = 0; w < a_words; ++w) {
          for (std::uint32_t rows = of_b[n] == 0 ? 0 : of_a[n][w]; rows != 0; rows &= rows - 1) {
            const std::uint32_t at_row = at_k | static_cast<std::uint32_t>(32 * w + first_bit(rows))
                                                    << 8;
            for (std::uint32_t cols = of_b[n]; cols != 0; cols &= cols - 1) {
              const std::uint32_t pair =
                  at_row | (first_col + static_cast<std::uint32_t>(first_bit(cols)));
              const int at = Kokkos::atomic_fetch_add(&scratch.pairs, 1);
              if (at < most) {
                list[at] = pair;
              } else {
                add_pair(steps, pair, load_pair(place, pair));
              }
            }
          }
        }
      }
    }
    static_assert(Atom::tile_m <= 256 && Atom::tile_n <= 256 && Atom::most_blocks < 1 << 16);
    Atom::synchronize();
    const int pairs = scratch.pairs < most ? scratch.pairs : most;
    for (int i = thread; i < pairs; i += 2 * Atom::multiplying) {
      const bool two = i + Atom::multiplying < pairs;
      const std::uint32_t first = list[i], second = list[two ? i + Atom::multiplying : i];
      const BlockPair of_first = load_pair(place, first), of_second = load_pair(place, second);
      add_pair(steps, first, of_first);
      if (two) add_pair(steps, second, of_second);
    }
    Atom::synchronize();
  }
  struct BlockImage {
    ImageChunk chunks[2];
  };
  struct BlockPair {
    BlockImage a, b;
  };
  KOKKOS_INLINE_FUNCTION BlockPair load_pair(const Place& place, std::uint32_t pair) const {
    const std::int64_t k = pair >> 16;
    const int row = static_cast<int>(pair >> 8 & 255u), col = static_cast<int>(pair & 255u);
    return {outliers_at(a, place.batch, place.a.tile, row, k),
            outliers_at(b, place.batch, place.b.tile, col, k)};
  }
  template <class MoreSteps>
  KOKKOS_INLINE_FUNCTION static void add_pair(const MoreSteps& steps, std::uint32_t pair,
                                              const BlockPair& images) {
    const int row = static_cast<int>(pair >> 8 & 255u), col = static_cast<int>(pair & 255u);
    const int v = Atom::value_of(row, col);
    add_shared(steps.kept(v / 8) + v % 8 * Atom::multiplying + Atom::thread_of(row, col),
               dot_images(images.a, images.b));
  }
  KOKKOS_INLINE_FUNCTION static BlockImage outliers_at(const ImageOperand& operand,
                                                       std::int64_t batch, std::int64_t tile,
                                                       int row, std::int64_t k) {
    const std::uint8_t* image = operand.tile(batch, tile, Atom::step_bytes) + operand.part_bytes +
                                k / Atom::step_blocks * (operand.tile_rows * Atom::step_bytes);
    const int chunk = 2 * static_cast<int>(k % Atom::step_blocks);
    BlockImage block;
    for (int h = 0; h < 2; ++h) {
      block.chunks[h] = *reinterpret_cast<const ImageChunk*>(image + Atom::offset(row, chunk + h));
    }
    return block;
  }
  KOKKOS_INLINE_FUNCTION static std::int32_t dot_images(const BlockImage& x, const BlockImage& y) {
    std::int32_t sum = 0;
    for (int h = 0; h < 2; ++h) {
      for (int i = 0; i < 4; ++i) {
        sum = dot_int8(x.chunks[h].word[i], y.chunks[h].word[i], sum);
      }
    }
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
        std::int32_t* own = scratch.own_of(thread) + (first - begin) * own_step;
        store_eight(
            stored, states, rows, thread, first, own,
            [&](auto v) {
              return SplitSums{exact_double(own[v * own_step]),
                               exact_double(found.outliers_main[v]),
                               exact_double(found.main_outliers[v]),
                               Kokkos::fma(exact_double(found.outliers_high[v]), 256.0,
                                           exact_double(found.outliers_low[v]))};
            },
            stored.in_int64,
            [&](auto v) {
              return IntegerSums{
                  own[v * own_step], found.outliers_main[v], found.main_outliers[v],
                  std::int64_t{found.outliers_high[v]} * 256 + found.outliers_low[v]};
            });
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
    for (int first = thread / of_rows * 8; first < of_cols; first += 8 * a_parts) {
      const std::int32_t* at[3];  // of the column's main part and the parts of its outliers
      for (int p = 0; p < 3; ++p) {
        at[p] = kept.kept((first + (p < b_parts ? p : 0) * of_cols) / 8) + in_rows;
      }
      const auto kept_at = [&](int v, int a_part, int b_part) {
        return at[b_part][v * Atom::multiplying + a_part * of_rows];
      };
      store_eight(
          stored, states, rows, in_rows, first, scratch.own_of(thread),
          [&](auto v) {
            const auto sum = [&](int a_part, int b_part) {
              return exact_double(kept_at(v, a_part, b_part));
            };
            const auto outliers = [&](int b_part) {  // of the row
              double found = a_parts > 2 ? sum(2, b_part) : 0.0;
              if (a_parts > 1) found = Kokkos::fma(part, found, sum(1, b_part));
              return found;
            };
            SplitSums sums{sum(0, 0), outliers(0), 0.0, 0.0};
            if (b_parts > 2) {
              sums.main_outliers = part * sum(0, 2);
              sums.outliers = part * outliers(2);
            }
            if (b_parts > 1) {
              sums.main_outliers += sum(0, 1);
              sums.outliers += outliers(1);
            }
            return sums;
          },
          stored.in_int64 && a_parts <= 2 && b_parts <= 2,
          [&](auto v) {
            const int a_part = a_parts - 1, b_part = b_parts - 1;
            return IntegerSums{kept_at(v, 0, 0), a_part > 0 ? kept_at(v, a_part, 0) : 0,
                               b_part > 0 ? kept_at(v, 0, b_part) : 0,
                               a_part * b_part > 0 ? kept_at(v, a_part, b_part) : 0};
          });
    }
    kept.release();
  }
  /// The products of eight outputs: see store_eight.
  template <class Sums>
  KOKKOS_FORCEINLINE_FUNCTION static void round_eight(const States& states, const OwnRows& rows,
                                                      int thread, int first, const Sums& sums,
                                                      std::uint32_t (&products)[8]) {
    unsigned open = 0;
    unrolled<8>([&](auto v) {
      const int col = Atom::col_of(thread, first + v);
      const bool is_exact = states.b_spread[col] <= rows.largest_spread[v / 2 % 2];
      const RowSplit split = states.b_split[col];
      const bool is_known = round_split_sum_in_double(
          sums(v), rows.units[v / 2 % 2], units_of(split.base, split.out), is_exact, products[v]);
      open |= is_known ? 0u : 1u << v;
    });
    KOKKOSMX_NO_UNROLL
    for (; open != 0; open &= open - 1) {
      const int i = first_bit(open);
      SplitSums found{};
      unrolled<8>([&](auto v) {  // registers have no index at run time
        if (v == i) found = sums(v);
      });
      const std::uint32_t product =
          round_split_sum(found, row_state(states, Atom::row_of(thread, i)),
                          col_state(states, Atom::col_of(thread, first + i)));
      KOKKOSMX_UNROLL
      for (int v = 0; v < 8; ++v) products[v] = v == i ? product : products[v];
    }
  }
  /// Outputs first to first + 7 of a thread; sums(v) of each as std::integral_constant, or
  /// integers(v) where these are in_int64. Leaves nothing in own.
  template <class Sums, class Integers>
  KOKKOS_FORCEINLINE_FUNCTION void store_eight(const Stored& stored, const States& states,
                                               const OwnRows& rows, int thread, int first,
                                               std::int32_t* own, const Sums& sums, bool in_int64,
                                               const Integers& integers) const {
    const Place& place = stored.place;
    std::uint32_t products[8];
    if (in_int64) {
      const auto out_of = [](const RowSplit& split) {
        return 1 << ((split.out - split.base) & 31);
      };
      unrolled<8>([&](auto v) {
        const RowSplit row = states.a_split[Atom::row_of(thread, v)];
        const RowSplit col = states.b_split[Atom::col_of(thread, first + v)];
        const auto sum = static_cast<float>(integers(v).all(out_of(row), out_of(col)));
        products[v] =
            Kokkos::bit_cast<std::uint32_t>(sum * power_of_two(row.base) * power_of_two(col.base));
      });
    } else {
      round_eight(states, rows, thread, first, sums, products);
    }
    if (stored.is_plain) {
      auto* c = static_cast<std::uint16_t*>(epilogue.c) + place.batch * epilogue.batch +
                place.row * epilogue.row + place.col;
      KOKKOSMX_UNROLL
      for (int v = 0; v < 8; v += 2) {
        *reinterpret_cast<std::uint32_t*>(c + Atom::row_of(thread, v) * epilogue.row +
                                          Atom::col_of(thread, first + v)) =
            bf16_pair(Kokkos::bit_cast<float>(products[v]),
                      Kokkos::bit_cast<float>(products[v + 1]));
      }
      return;
    }
    for (int v = 0; v < 8; ++v) {
      own[v * own_step] = static_cast<std::int32_t>(products[v]);
    }
    KOKKOSMX_NO_UNROLL
    for (int v = 0; v < 8; ++v) {
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
