// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_SLICE_KERNEL_HPP
#define KOKKOSMX_SRC_GEMM_SLICE_KERNEL_HPP

/// \file slice_kernel.hpp
/// The GEMM kernels of CUDA for products of few rows, from dense operands, or codes, to C.
///
/// x is the operand with fewer rows, y the other. A first kernel makes x's elements: int8, aligned
/// to each row's least scale, in the order in which warps read them. The second one begins beside
/// it. A block has a tile of 16 rows of y and a tile of x, and warps that share K: a warp has every
/// so many groups of 128 of K, whose part of y it makes in registers, as int8 that count units of a
/// scale that the warps have agreed upon for each row. int32 sums over K are exact. Where x has
/// tiles of 64 rows and more, what is a warp here is a warpgroup, with 64 rows of y. Where x has up
/// to 32 rows of bf16, K is short, blocks are few and C is plain bf16, there is only one kernel:
/// each block makes x's elements as it makes y's (from 16 rows on a group's two warps one half of
/// x, and 16 rows of y, each), and images of x only where what comes next does. 64 rows of x,
/// or two tiles of 128: see slice_shared.hpp.
///
/// What that does not hold comes after it: groups of y with blocks outside of the four scales of
/// their rows, with zeros, with what is not finite or near the ends of the range; and blocks of x
/// outside of the first four scales, of which there are further images. All of these are added as
/// float64, in absolute units, which is exact while all scales of the two rows lie in a window (53
/// bits). Outputs that the window does not hold are summed one by one.

#include <KokkosMX/Types.hpp>

#include "../atoms/gemm/int8_codes.hpp"
#include "../atoms/gemm/mma.hpp"
#include "../atoms/gemm/slice_places.hpp"
#include "../atoms/gemm/wgmma_fragments.hpp"
#include "../atoms/quantize/cuda.hpp"
#include "../atoms/quantize/quad.hpp"
#include "../atoms/words.hpp"
#include "../launch.hpp"
#include "../operand.hpp"
#include "epilogue.hpp"
#include "exact_sum.hpp"
#include "slices.hpp"

#include <Kokkos_Core.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace KokkosMX::Impl {

#ifdef KOKKOS_ENABLE_CUDA

/// Codes as int8, times 2^(scale - base), zeros where that is not 1, 2, 4 or 8.
__device__ inline MmaInt8Atom::Part expand_eight(std::uint32_t codes, int scale, int base) {
  const int shift = scale - base;
  const bool is_in = scale >= 0 && static_cast<unsigned>(shift) <= MmaInt8Atom::max_shift;
  const std::uint32_t low = is_in ? halves_low << (shift & 3) : 0u;
  const std::uint32_t high = is_in ? halves_high << (shift & 3) : 0u;
  return {{expand_codes(codes, low, high), expand_codes(codes >> 16, low, high)}};
}
/// What a scale byte and whether any code is nonzero make of a block.
__device__ inline int scale_of_codes(int scale, bool is_nonzero) {
  return scale == 255 ? QuadQuantizer::not_a_number : (is_nonzero ? scale : QuadQuantizer::empty);
}
/// Bytes that lie anywhere, in the last ones of 16.
__device__ __noinline__ inline Words load_bytes(const std::uint8_t* from, std::int64_t stride,
                                                int count) {
  Words words{};
  for (int i = 16 - count; i < 16; ++i) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      words.w[w] = words.w[w] >> 8 | (w < 3 ? words.w[w + 1] << 24 : 0u);
    }
    words.w[3] |= std::uint32_t{*from} << 24;
    from += stride;
  }
  return words;
}

/// As a row's least scale where no block has one; as its largest where one is 255.
inline constexpr int slice_no_lo = 511, slice_nan_hi = 4096;

/// Makes x's elements: threads take a row together, four lanes a block of it. Where elements lie:
/// see SliceElements. Each team finds all scales of the row, so that none waits for another, and
/// makes a part of it. IsShort: one team makes all of it; bf16 are aligned.
template <bool IsDense, bool IsShort>
struct RowAligner {
  const SliceProblem& p;

  /// Of a team. Where one is a block: few, so that a unit has room for it beside one that
  /// multiplies.
  static constexpr int most_threads = IsShort ? 128 : 256;
  /// Eights of a block that a thread makes.
  static constexpr int each = IsShort ? 2 : 1;
  struct Scratch {
    std::int32_t lo[32], hi[32];  ///< of what a warp of the caller's has seen
    std::uint32_t bands[2];       ///< of four scales: bit b says that a block lies in band b
    std::int16_t scale[slice_most_blocks];
  };

  /// Of a row: a thread has `each` of them.
  KOKKOS_INLINE_FUNCTION int eights() const { return 16 * p.elements.groups; }
  KOKKOS_INLINE_FUNCTION int threads() const {
    const int most = (eights() / each + 31) / 32 * 32;
    return most < most_threads ? most : most_threads;
  }
  /// Blocks that make a row.
  KOKKOS_INLINE_FUNCTION int parts() const {
    // As threads() has it.
    return IsShort || eights() <= most_threads ? 1 : (eights() + most_threads - 1) / most_threads;
  }

  /// Makes a part of a row by threads() threads. All that meet at barrier() call this, with numbers
  /// from 0; begin() is called before x is read, but after all that can be known before.
  template <class Begin, class Barrier>
  __device__ void make_row(int thread, Scratch& scratch, int batch, int row, int part_of_row,
                           const Begin& begin, const Barrier& barrier) const {
    const SliceElements& elements = p.elements;
    const QuadQuantizer quantizer(p.rule);
    const int part = thread & 3, lane = thread & 31, warp = thread >> 5;
    const int tile = row >> elements.log_tile, in_tile = row & (elements.tile() - 1);
    int own[each], at[each];
    const std::uint8_t* from[each];
#pragma unroll
    for (int e = 0; e < each; ++e) {
      own[e] = threads() * (part_of_row + e) + thread;
      const int block = own[e] >> 2;
      at[e] = opaque(elements.offset_of_eight(block, in_tile, part));
      from[e] = opaque(source(batch, row, block, part));
    }
    const std::uint8_t* const first = IsShort ? from[0] : opaque(source(batch, row, thread, 0));
    std::uint8_t* to = opaque(elements.image(batch, tile, 0));
    SliceRow* const to_state = opaque(elements.states + batch * elements.rows() + row);
    if (thread == 0) scratch.bands[0] = scratch.bands[1] = 0;
#pragma unroll
    for (int e = 0; e < each; ++e) {
      if (row < p.x_rows && own[e] >> 2 < p.blocks) CudaUnit::prefetch(from[e]);
    }
    if (!IsShort && row < p.x_rows && thread < p.blocks) CudaUnit::prefetch(first);
    begin();
    Words words[each];
#pragma unroll
    for (int e = 0; e < each; ++e) words[e] = load(from[e], row, own[e] >> 2);
    int lo = slice_no_lo, hi = 0;
    const auto see = [&](int scale, int block) {
      if (block < slice_most_blocks) scratch.scale[block] = static_cast<std::int16_t>(scale);
      if (scale >= 0) {
        lo = min(lo, scale);
        hi = max(hi, scale);
      } else if (scale == QuadQuantizer::not_a_number) {
        hi = slice_nan_hi;
      }
    };
    if (parts() == 1) {
#pragma unroll
      for (int e = 0; e < each; ++e) {
        const int scale = scale_of(quantizer, words[e], batch, row, own[e] >> 2);
        if (part == 0) see(scale, own[e] >> 2);
      }
    } else {
      // A thread has blocks of its own.
#pragma unroll 1
      for (int block = thread; block < p.blocks; block += threads()) {
        Words all[4];
        load_all(all, block == thread ? first : source(batch, row, block, 0), row, block);
        see(scale_of_all(quantizer, all, batch, row, block), block);
      }
    }
    lo = CudaUnit::least_of_warp(lo);
    hi = -CudaUnit::least_of_warp(-hi);
    if (lane == 0) {
      scratch.lo[warp] = lo;
      scratch.hi[warp] = hi;
    }
    barrier();
    const bool is_one = 32 * lane < threads();
    lo = CudaUnit::least_of_warp(is_one ? scratch.lo[lane] : slice_no_lo);
    hi = -CudaUnit::least_of_warp(is_one ? -scratch.hi[lane] : 0);
    SliceRow state{};
    state.lo = static_cast<std::int16_t>(lo);
    state.spread = static_cast<std::int16_t>(hi >= slice_nan_hi  ? -1
                                             : lo == slice_no_lo ? 0
                                                                 : hi - lo);
    state.images = 1;
    state.unit[0] = lo == slice_no_lo ? std::int16_t{127} : state.lo;
    if (state.spread > MmaInt8Atom::max_shift) find_bands(thread, scratch, state, barrier);
    if (part_of_row == 0 && thread == 0) *to_state = state;
    const int images = state.images == 0 ? 1 : state.images;
#pragma unroll 1
    for (int image = 0; image < images; ++image, to += elements.image_bytes()) {
      int base = state.unit[0];
#pragma unroll
      for (int i = 1; i < SliceRow::most_images; ++i) {  // registers have no index
        if (i == image) base = state.unit[i];
      }
      // One after the other, or a block of many threads has too few registers.
#pragma unroll 1
      for (int e = 0; e < each; ++e) {
        const int own_e = threads() * (part_of_row + e) + thread, block = own_e >> 2;
        if (thread >= threads() || own_e >= eights()) break;
        Words of = words[0];
        int to_e = at[0];
#pragma unroll
        for (int i = 1; i < each; ++i) {  // registers have no index
          if (i == e) {
            of = words[i];
            to_e = at[i];
          }
        }
        const int scale = block < p.blocks ? scratch.scale[block] : QuadQuantizer::empty;
        const MmaInt8Atom::Part made =
            IsDense ? quantizer.elements(of, scale, base) : expand_eight(of.w[3], scale, base);
        *reinterpret_cast<std::uint32_t*>(to + to_e) = made.word[0];
        *reinterpret_cast<std::uint32_t*>(to + (to_e ^ elements.second())) = made.word[1];
      }
    }
  }

 private:
  /// Where a lane's part of x is.
  __device__ const std::uint8_t* source(int batch, int row, int block, int part) const {
    if constexpr (IsDense) {
      return p.x.dense.at(batch, row, 2 * block_size * std::int64_t{block} + 16 * part);
    } else {
      const CodesMap& codes = p.x_matrix.codes;
      return codes.at(batch, row, block) + 4 * part * codes.byte;
    }
  }
  /// It: eight numbers of a block, or eight codes in the last word.
  __device__ Words load(const std::uint8_t* from, int row, int block) const {
    if (row >= p.x_rows || block >= p.blocks) return {};
    if constexpr (IsDense) {
      return IsShort || p.x.is_aligned ? CudaUnit::load_past_first_cache<Words>(from)
                                       : load_bytes(from, 1, 16);
    } else {
      const CodesMap& codes = p.x_matrix.codes;
      if (codes.byte == 1 && p.x.is_aligned) return {{0, 0, 0, load_words<std::uint32_t>(from)}};
      return load_bytes(from, codes.byte, 4);
    }
  }
  /// All parts of a block that is there, where its row is.
  __device__ void load_all(Words (&to)[4], const std::uint8_t* from, int row, int block) const {
    if (IsDense && p.x.is_aligned) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        to[i] = row < p.x_rows ? CudaUnit::load_past_first_cache<Words>(from + 16 * i) : Words{};
      }
      return;
    }
    const std::int64_t step = IsDense ? 16 : 4 * p.x_matrix.codes.byte;
#pragma unroll 1
    for (int i = 0; i < 4; ++i) {
      const Words words = load(from + i * step, row, block);
#pragma unroll
      for (int j = 0; j < 4; ++j) {  // registers have no index
        if (i == j) to[j] = words;
      }
    }
  }
  __device__ int scale_of(const QuadQuantizer& quantizer, const Words& words, int batch, int row,
                          int block) const {
    if constexpr (IsDense) {
      return quantizer.scale(words);
    } else {
      std::uint32_t any = words.w[3] & 0x77777777u;
      any |= CudaUnit::from_lane_xor(any, 1);
      any |= CudaUnit::from_lane_xor(any, 2);
      return scale_of_any(any, batch, row, block);
    }
  }
  /// The same where the lane has all of the block.
  __device__ int scale_of_all(const QuadQuantizer& quantizer, const Words (&all)[4], int batch,
                              int row, int block) const {
    if constexpr (IsDense) {
      return quantizer.scale_of_block(all);
    } else {
      const std::uint32_t any = all[0].w[3] | all[1].w[3] | all[2].w[3] | all[3].w[3];
      return scale_of_any(any & 0x77777777u, batch, row, block);
    }
  }
  __device__ int scale_of_any(std::uint32_t any, int batch, int row, int block) const {
    return row < p.x_rows && block < p.blocks
               ? scale_of_codes(*p.x_matrix.scales.at(batch, row, block), any != 0)
               : QuadQuantizer::empty;
  }

  /// The row's images where it needs more than one; none where it needs too many.
  template <class Barrier>
  __device__ void find_bands(int thread, Scratch& scratch, SliceRow& state,
                             const Barrier& barrier) const {
    for (int block = thread; block < p.blocks; block += threads()) {
      const int scale = scratch.scale[block];
      if (scale < 0) continue;
      const int band = (scale - state.lo) >> 2;
      atomicOr(&scratch.bands[band >> 5], 1u << (band & 31));
    }
    barrier();
    state.images = 0;
#pragma unroll 1
    for (int band = 0; band < 64; ++band) {
      if ((scratch.bands[band >> 5] >> (band & 31) & 1u) == 0) continue;
      if (state.images == SliceRow::most_images) {
        state.images = 0;
        return;
      }
#pragma unroll
      for (int i = 0; i < SliceRow::most_images; ++i) {  // registers have no index
        if (i == state.images) state.unit[i] = static_cast<std::int16_t>(state.lo + 4 * band);
      }
      ++state.images;
    }
  }
};

/// A kernel that does no more than that. IsShort: a block has several rows, each by a team of its
/// threads. Blocks that multiply, which leave no room beside them, come where none of these are:
/// few blocks of many rows leave most units to them, as many of each part of the device, whose
/// units share their way to the second cache.
template <bool IsDense, bool IsShort>
struct AlignRows {
  SliceProblem p;

  using Aligner = RowAligner<IsDense, IsShort>;
  static constexpr int rows_together = IsShort ? 8 : 1;
  static constexpr int most_threads = rows_together * Aligner::most_threads;
  static constexpr int groups_together = IsShort ? 1 : 4;
  static constexpr int most_shared_bytes = rows_together * sizeof(typename Aligner::Scratch);
  KOKKOS_INLINE_FUNCTION int threads() const { return rows_together * Aligner{p}.threads(); }
  int parts() const { return Aligner{p}.parts(); }
  int shared_bytes() const { return most_shared_bytes; }

  KOKKOS_FUNCTION void operator()([[maybe_unused]] const DeviceGroup& group,
                                  [[maybe_unused]] unsigned char* memory,
                                  [[maybe_unused]] const GridItem& item) const {
    KOKKOS_IF_ON_DEVICE((run(group.rank(), memory, item);))
  }

 private:
  __device__ void run(int thread, unsigned char* memory, const GridItem& item) const {
    auto* const scratch = reinterpret_cast<typename Aligner::Scratch*>(memory);
    // Warps of other teams, too: nobody reads what they leave there.
    CudaUnit::read_ahead(*this, thread, scratch->lo);
    const auto begin = [] {
      // What the next kernel reads before it waits for this one is there, too.
      CudaUnit::wait_for_earlier();
      CudaUnit::dependents_may_begin();
    };
    const Aligner align{p};
    if constexpr (rows_together == 1) {
      align.make_row(thread, *scratch, item.z, item.x, item.y, begin, CudaUnit::block_barrier);
    } else {
      const int of_row = align.threads(), team = thread / of_row;
      align.make_row(thread - team * of_row, scratch[team], item.z, item.x * rows_together + team,
                     item.y, begin, [&] { CudaUnit::named_barrier(1 + team, of_row); });
    }
  }
};

/// ColumnTiles: tiles of 8 rows of x. MakesX: no kernel comes before; x is bf16, a warp has one
/// group, or two have it where x has several tiles, and makes its part of x as it makes y's.
template <int ColumnTiles, SliceForm Form, bool MakesX>
struct SliceGemm {
  int warps;   ///< that share K: warpgroups where x's tiles are wide
  int stages;  ///< groups of x that shared memory holds for each of them
  SliceProblem p;
  int least_bytes = 0;  ///< of shared memory

  using Atom = MmaInt8Atom;
  using Aligner = RowAligner<true, true>;
  /// Wide tiles of x come to shared memory, some groups ahead, from where all warps of a warpgroup
  /// multiply by them; of others a warp loads what it needs.
  static constexpr bool is_wide = ColumnTiles >= 8;
  using Wide = WgmmaFragments<is_wide ? ColumnTiles : 8>;
  /// Warps of the same part of K.
  static constexpr int together = is_wide ? Wide::warps : MakesX && ColumnTiles > 1 ? 2 : 1;
  /// Where a kernel comes before, a unit has room for one of its blocks, too.
  static constexpr int most_warps = MakesX || ColumnTiles == 8 ? 16 : 12;
  static constexpr int most_threads = 32 * (is_wide ? most_warps : 16);  ///< no more registers
  static constexpr int groups_together = 1;
  static constexpr int x_tile = Atom::cols * ColumnTiles, y_tile = Atom::rows * together;
  static constexpr int group_blocks_k = 4;
  static constexpr int no_lo = slice_no_lo, nan_hi = slice_nan_hi;
  /// Bits of a float64 sum.
  static constexpr int window_bits = 53;
  /// Scales of y that groups may have to be multiplied at once, and how they are in registers: of
  /// bf16 as bf16 are compared with them.
  static constexpr bool is_dense = Form == SliceForm::dense;
  static constexpr int least_dense_base = Bf16Pairs::least_scale;
  static constexpr int most_dense_base = Bf16Pairs::most_scale - Atom::max_shift;
  static constexpr int scale_shift = is_dense ? Bf16Pairs::least_shift : 0;
  static constexpr std::uint32_t scale_low = is_dense ? Bf16Pairs::above_one : 0;
  static constexpr int least_base = is_dense ? least_dense_base : 0;
  static constexpr int most_base = is_dense ? most_dense_base : 254 - Atom::max_shift;
  /// Products of units from here are normal float32, whatever the sum, and so are their parts.
  static constexpr int least_unit = 68, largest_unit = 176;
  /// Of sums, from one row of x to the next.
  static constexpr int sums_pitch = y_tile + 4;
  static constexpr int group_bytes_x = x_tile * group_blocks_k * block_size;
  static constexpr int most_stages = is_wide ? 16 : 0;  ///< of all warps

  struct alignas(1024) Scratch {
    SliceRow x[x_tile];
    std::int32_t images;  ///< the most that a row has
    /// Of y's rows: what the sums count, and the scales of the blocks that are not zeros, no_lo and
    /// 0 where there is none, nan_hi where one is 255.
    std::int32_t base[y_tile], lo[y_tile], hi[y_tile];
    std::int32_t x_below[MakesX ? x_tile : 1];  ///< how far a row's least scale is below no_scale
    std::uint64_t full[is_wide ? most_stages : 1], empty[is_wide ? most_stages : 1];
    alignas(16) std::int32_t sums[x_tile][sums_pitch];
  };
  /// After it: stages of x, the first of each warp before the others; or what warps make of x
  /// themselves, or an Aligner's scratch. What there is of sums in
  /// absolute units lies in the place of the others: images of x but the first use one.
  using Rest = double[y_tile];
  KOKKOS_INLINE_FUNCTION int first_stages() const { return is_wide ? warps * group_bytes_x : 0; }
  KOKKOS_INLINE_FUNCTION int stages_bytes() const {
    const int all = stages * first_stages();
    const int with_rest = first_stages() + static_cast<int>(sizeof(Rest)) * x_tile;
    const int more = all > with_rest ? all : with_rest;
    if constexpr (!MakesX) return more;
    const int made = is_passed ? warps * group_bytes_x : 0;
    constexpr int aligned = sizeof(Aligner::Scratch);
    const int least = made > aligned ? made : aligned;
    return more > least ? more : least;
  }
  /// Then what warps have of y ahead of the groups that they are at: see load_ahead.
  static constexpr int ahead_bytes = is_dense ? RowsThrough::bytes : 0;

  KOKKOS_INLINE_FUNCTION int threads() const { return 32 * warps * together; }
  int shared_bytes() const {
    return std::max(least_bytes,
                    static_cast<int>(sizeof(Scratch)) + stages_bytes() +
                        (p.elements.groups > warps ? warps * together * ahead_bytes : 0));
  }
  static constexpr int most_shared_bytes = 227 * 1024;
  /// Stages for so many warps, where that much of shared memory is theirs.
  static int stages_for(int warps, int groups, int bytes) {
    if (!is_wide) return 0;
    const int left = bytes - static_cast<int>(sizeof(Scratch)) - warps * together * ahead_bytes;
    const int most = left / (warps * group_bytes_x), each = (groups + warps - 1) / warps;
    return std::max(1, std::min({most, each, most_stages / warps}));
  }

  /// When the next kernel may begin: at once, or when all that is loaded is there. Then its blocks
  /// find room beside these, and what they do before they load is done when these end. Measured on
  /// an H200.
  static constexpr bool begins_others_late = MakesX && ColumnTiles > 1;

  KOKKOS_FUNCTION void operator()([[maybe_unused]] const DeviceGroup& group,
                                  [[maybe_unused]] unsigned char* memory,
                                  [[maybe_unused]] const GridItem& item) const {
    KOKKOS_IF_ON_DEVICE((run(group.rank(), *reinterpret_cast<Scratch*>(memory), item);))
  }

 protected:
  /// A lane and what it works on.
  struct Place {
    int batch, x_tile, y_row, groups;  ///< the block's first row of y
    int thread, lane, part;
    int warp;   ///< of those that share K
    int below;  ///< rows of y of the block before the warp's
  };
  __device__ Place place_of(int thread, const GridItem& item) const {
    Place at;
    at.batch = item.z;
    at.x_tile = item.y;
    at.y_row = y_tile * item.x;
    at.groups = p.elements.groups;
    at.thread = thread;
    at.lane = thread & 31;
    at.part = Atom::operand_part(at.lane);
    const auto warp_of_block = static_cast<int>(CudaUnit::from_lane(thread >> 5, 0));
    at.warp = warp_of_block / together;
    at.below = Atom::rows * (warp_of_block % together);
    return at;
  }
  /// The block's barriers. Of wide tiles they say how many threads meet: where others have ended,
  /// as SliceShared's do, tools (compute-sanitizer's racecheck) wait for those for ever otherwise.
  __device__ void meet() const {
    if constexpr (is_wide) {
      CudaUnit::named_barrier(0, threads());
    } else {
      CudaUnit::block_barrier();
    }
  }
  __device__ bool meet_any(bool mine) const {
    if constexpr (is_wide) return CudaUnit::barrier_any_of(threads(), mine);
    return CudaUnit::barrier_any(mine);
  }
  /// Which of the block's rows of y a lane holds.
  __device__ static int row_of_block(const Place& at, int second) {
    return at.below + Atom::operand_row(at.lane, second);
  }
  __device__ std::uint8_t* stages_after(Scratch& scratch) const {
    return reinterpret_cast<std::uint8_t*>(&scratch + 1);
  }
  __device__ Rest* rest(Scratch& scratch) const {
    return reinterpret_cast<Rest*>(stages_after(scratch) + first_stages());
  }

  // ---------------------------------------------------------------------------- x

  __device__ const std::uint8_t* image(const Place& at, int number) const {
    return p.elements.image(p.x_batch == 1 ? 0 : at.batch, at.x_tile, number);
  }
  /// The image with that number, or, of a row that has not so many, the first: nobody has written
  /// others, nor looks at what comes of this one.
  __device__ const std::uint8_t* image_of_row(const Place& at, const Scratch& scratch, int number,
                                              int row) const {
    return image(at, number < scratch.x[row].images ? number : 0);
  }
  /// A lane's part of x in two steps of 32 of K, of a tile of 8 rows.
  struct alignas(16) TwoSteps {
    std::uint32_t w[4];
  };
  using StepsOfTile = TwoStepsOfTile<x_tile>;
  /// Adds the product of a step with a tile of x, whose first or second one of two it is.
  __device__ static void multiply_step(std::int32_t (&sums)[Atom::values],
                                       const Atom::Part (&parts)[2], const TwoSteps& x, int h) {
    Atom::multiply_add(sums, parts[0], parts[1], StepsOfTile::part(x.w, h));
  }
  /// Pairs of steps that are loaded before a group of y is made: as there are registers for.
  static constexpr int pairs_ahead = is_wide ? 0 : ColumnTiles == 4 ? 1 : 2;
  __device__ void load_steps(TwoSteps (&to)[ColumnTiles], const Place& at, const Scratch& scratch,
                             const std::uint8_t* first, int image_number, int group,
                             int pair) const {
    const int begin = StepsOfTile::begin(2 * group + pair, at.lane);
    const auto load_tile = [&](int j, const std::uint8_t* of_row) {
      to[j] = CudaUnit::load_past_first_cache<TwoSteps>(of_row + begin + StepsOfTile::behind(j));
    };
    if (image_number == 0) {
#pragma unroll
      for (int j = 0; j < ColumnTiles; ++j) load_tile(j, first);
    } else {
#pragma unroll
      for (int j = 0; j < ColumnTiles; ++j) {
        load_tile(j, image_of_row(at, scratch, image_number, Atom::cols * j + (at.lane >> 2)));
      }
    }
  }

  /// Where a warp is in its stages, and in filling them.
  struct Turn {
    int stage = 0, turn = 0;
    __device__ void advance(int of, int by = 1) {
      stage += by;
      if (stage < of) return;
      stage -= of;
      ++turn;
    }
  };
  struct Pipeline {
    Turn begun, done;
    int stages;
  };
  /// Of all stages.
  __device__ int number_of(const Place& at, const Turn& turn) const {
    return turn.stage * warps + at.warp;
  }
  /// Begins to copy a group of an image. first: where that with number 0 begins.
  __device__ void begin_copy(const Place& at, Scratch& scratch, const std::uint8_t* first,
                             const Turn& to_turn, int image_number, int group) const {
    if (at.lane != 0 || group >= at.groups) return;
    const int number = number_of(at, to_turn), turn = to_turn.turn;
    std::uint64_t* full = &scratch.full[number];
    if (turn > 0) CudaUnit::barrier_wait(&scratch.empty[number], (turn - 1) & 1);
    CudaUnit::barrier_expect(full, group_bytes_x);
    std::uint8_t* to = stages_after(scratch) + number * group_bytes_x;
    const std::int64_t begin = std::int64_t{group} * group_bytes_x;
    if (image_number == 0) {
      CudaUnit::bulk_copy(to, first + begin, group_bytes_x, full);
    } else {
      constexpr int bytes = Int8Images::step_bytes;
      // Rare: no register keeps what tells where these are.
      Place place = at;
      place.x_tile = opaque(at.x_tile);
#pragma unroll 1
      for (int row = 0; row < x_tile; ++row) {
        CudaUnit::bulk_copy(to + row * bytes,
                            image_of_row(place, scratch, image_number, row) + begin + row * bytes,
                            bytes, full);
      }
    }
  }

  // ---------------------------------------------------------------------------- y

  /// The row of y that a lane holds, or the last one.
  __device__ int y_row(const Place& at, int second) const {
    const int row = at.y_row + row_of_block(at, second);
    return row < p.y_rows ? row : p.y_rows - 1;
  }
  static constexpr int row_words = is_dense ? group_blocks_k : 1;
  using Own = PartsOfY<Form>;
  /// A lane's part of a group, as it lies in memory: of both rows, and the scale bytes of the
  /// lane's own block.
  struct Raw {
    Words of[2][row_words];
    std::uint32_t scale[2];
  };
  /// Where a lane's parts begin.
  struct Source {
    const std::uint8_t* data[2];
    const std::uint8_t* scales[2];
  };
  __device__ Source source(const Place& at) const {
    Source from{};
    // Both lie in the same 16 rows.
    const int row = y_row(at, 0), below = y_row(at, 1) - row;
    if constexpr (is_dense) {
      from.data[0] = p.y.dense.at(at.batch, row, Own::begin(at.part));
      from.data[1] = from.data[0] + below * p.y.dense.row;
    } else {
      const CodesMap& codes = p.y_matrix.codes;
      const ScalesMap& scales = p.y_matrix.scales;
      from.data[0] = codes.at(at.batch, row, 0) + Own::begin(at.part, codes.block_1);
      from.data[1] = from.data[0] + below * codes.row;
      from.scales[0] = scales.at(at.batch, row, 0) + at.part * scales.col_1;
      from.scales[1] = from.scales[0] + below * scales.row_1;
    }
    // Found once, not for every load.
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      from.data[second] = opaque(from.data[second]);
      if constexpr (!is_dense) from.scales[second] = opaque(from.scales[second]);
    }
    return from;
  }
  /// Whether a group's blocks are all there, and its words lie as they should.
  __device__ bool is_whole(int group) const {
    return p.y.is_aligned && group_blocks_k * (group + 1) <= p.blocks;
  }
  /// From one group to another, from an even one to one so many on.
  __device__ std::int64_t data_step(int groups) const {
    return groups *
           (is_dense ? std::int64_t{2 * block_size * group_blocks_k} : p.y_matrix.codes.block_4);
  }
  __device__ std::int64_t scales_step(int groups) const {
    const ScalesMap& scales = p.y_matrix.scales;
    return (groups >> 1) * scales.col_8 + (groups & 1) * scales.col_4;
  }
  __device__ static void move(Source& from, std::int64_t data, std::int64_t scales) {
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      from.data[second] += data;
      if constexpr (!is_dense) from.scales[second] += scales;
    }
  }
  /// Nothing where the group is not whole; zeros, which is faster there, where the kernel makes x.
  __device__ void load(Raw& raw, Source from, int group) const {
    move(from, data_step(group), scales_step(group));
    load_at(raw, from, is_whole(group));
  }
  __device__ void load_at(Raw& raw, const Source& from, bool is_there) const {
    if (!MakesX && !is_there) return;
    const bool is_loaded = !MakesX || is_there;
#pragma unroll
    for (int second = 0; second < 2; ++second) {
#pragma unroll
      for (int i = 0; i < row_words; ++i) {
        raw.of[second][i] =
            is_loaded ? CudaUnit::load_past_first_cache<Words>(from.data[second] + Own::behind(i))
                      : Words{};
      }
      if constexpr (!is_dense) {
        raw.scale[second] =
            is_loaded ? CudaUnit::load_past_first_cache<std::uint8_t>(from.scales[second]) : 255u;
      }
    }
  }

  /// The group after the one at hand is under way: in registers, or, where that is too much for
  /// them, to shared memory (RowsThrough).
  struct Ahead {
    Raw codes;
    Source next;                              ///< where the next group of codes begins
    std::int64_t data_step, scales_steps[2];  ///< to the one after it, and the one after that
    const std::uint8_t* from[RowsThrough::rows];
    int to, own;  ///< places in the scratch: of a copy, and of the lane's part of even blocks
  };
  __device__ Ahead ahead_of(const Place& at, const Source& from) const {
    Ahead ahead{};
    if constexpr (!is_dense && !MakesX) {
      ahead.next = from;
      const int group = at.warp + warps, odd = group & 1;
      move(ahead.next, data_step(group), scales_step(group));
      ahead.data_step = opaque(data_step(warps));
      ahead.scales_steps[0] = opaque(scales_step(warps + odd) - scales_step(odd));
      ahead.scales_steps[1] = opaque(scales_step(2 * warps) - ahead.scales_steps[0]);
    }
    if constexpr (is_dense && !MakesX) {
      ahead = rows_ahead(
          at, static_cast<int>(sizeof(Scratch)) + stages_bytes() + (at.thread >> 5) * ahead_bytes);
    }
    return ahead;
  }
  /// Of bf16, whose copies begin so many bytes after the scratch.
  __device__ Ahead rows_ahead(const Place& at, int all) const {
    Ahead ahead{};
    const int in_row = RowsThrough::copied_from(at.lane);
    ahead.own = opaque(RowsThrough::own(all, at.lane));
    ahead.to = opaque(RowsThrough::copied_to(all, at.lane));
#pragma unroll
    for (int i = 0; i < RowsThrough::rows; ++i) {
      const int y = at.y_row + at.below + RowsThrough::copied_row(at.lane, i);
      ahead.from[i] = opaque(p.y.dense.at(at.batch, y < p.y_rows ? y : p.y_rows - 1, in_row));
    }
    return ahead;
  }
  /// Begins to copy a group of bf16; and takes it from there.
  __device__ static void copy_rows(std::uint8_t* memory, const Ahead& ahead, int group) {
    unrolled<RowsThrough::rows>([&](auto i) {
      const std::uint8_t* begin = ahead.from[i] + group * std::int64_t{RowsThrough::row_bytes};
      unrolled<RowsThrough::pieces>([&](auto h) {
        CudaUnit::begin_copy<RowsThrough::to_behind(i, h), RowsThrough::from_behind(h)>(
            memory + ahead.to, begin);
      });
    });
  }
  __device__ static void take_rows(const std::uint8_t* memory, Raw& raw, const Ahead& ahead) {
#pragma unroll
    for (int i = 0; i < 2 * group_blocks_k; ++i) {
      const int second = i / group_blocks_k, block = i % group_blocks_k;
      raw.of[second][block] =
          *reinterpret_cast<const Words*>(memory + RowsThrough::of_block(ahead.own, block, second));
    }
  }
  /// Where the kernel makes x a warp has one group.
  __device__ void load_ahead(Scratch& scratch, Ahead& ahead, int group) const {
    if constexpr (MakesX) return;
    if constexpr (is_dense) {
      if (!is_whole(group)) return;
      CudaUnit::warp_barrier();
      copy_rows(reinterpret_cast<std::uint8_t*>(&scratch), ahead, group);
    } else {
      load_at(ahead.codes, ahead.next, is_whole(group));
      move(ahead.next, ahead.data_step, ahead.scales_steps[0]);
      std::swap(ahead.scales_steps[0], ahead.scales_steps[1]);
    }
  }
  __device__ void take_ahead(Scratch& scratch, Raw& raw, const Ahead& ahead, int group) const {
    if constexpr (MakesX) return;
    if constexpr (is_dense) {
      CudaUnit::wait_for_copies();
      CudaUnit::warp_barrier();
      if (is_whole(group)) {
        take_rows(reinterpret_cast<const std::uint8_t*>(&scratch), raw, ahead);
      }
    } else {
      raw = ahead.codes;
    }
  }

  /// Of both rows, the first one's in the low half: the scales of a group's blocks, as they are in
  /// registers. All of the row's where a lane has a part of each, of a lane's block otherwise.
  static constexpr int scales_each = Form == SliceForm::blocks ? 1 : group_blocks_k;
  struct Scales {
    std::uint32_t of[scales_each];
    std::uint32_t lo, hi;
    bool are_known;  ///< as far as the lane sees: no block is zeros
  };
  /// Finds them; words of codes are brought into the order that make expects.
  __device__ Scales find_scales(const Place& at, const QuadQuantizer& quantizer, Raw& raw) const {
    Scales scales;
    scales.are_known = true;
    if constexpr (is_dense) {
#pragma unroll
      for (int i = 0; i < group_blocks_k; ++i) {
        std::uint32_t most = Bf16Pairs::largest_two(raw.of[0][i], raw.of[1][i]);
        most = Bf16Pairs::larger(most, CudaUnit::from_lane_xor(most, 1));
        most = Bf16Pairs::larger(most, CudaUnit::from_lane_xor(most, 2));
        scales.of[i] = quantizer.pairs().leasts(most);
      }
    } else {
      const std::uint32_t own = raw.scale[0] | raw.scale[1] << 16;
      [[maybe_unused]] std::uint32_t least = 0xFFFFFFFFu;  // of halves that blocks have
#pragma unroll
      for (int second = 0; second < 2; ++second) {
        Words& w = raw.of[second][0];
        constexpr std::uint32_t magnitudes = 0x77777777u;
        if constexpr (Form == SliceForm::blocks) {
          scales.are_known =
              scales.are_known && ((w.w[0] | w.w[1] | w.w[2] | w.w[3]) & magnitudes) != 0;
        } else {
          w = halves_ordered(w);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            least = smaller_halves(least, (w.w[2 * i] | w.w[2 * i + 1]) & magnitudes);
          }
        }
      }
      if constexpr (Form == SliceForm::blocks) {
        scales.of[0] = own;
      } else {
        scales.are_known = (least & 0xFFFFu) != 0 && least >> 16 != 0;
#pragma unroll
        for (int i = 0; i < group_blocks_k; ++i) {
          scales.of[i] = CudaUnit::from_lane(own, Own::lane_of_scale(at.lane, i));
        }
      }
    }
    scales.lo = scales.hi = scales.of[0];
#pragma unroll
    for (int i = 1; i < scales_each; ++i) {
      scales.lo = smaller_halves(scales.lo, scales.of[i]);
      scales.hi = larger_halves(scales.hi, scales.of[i]);
    }
    return scales;
  }
  __device__ static Words halves_ordered(const Words& from) {
    Words to;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int first = Own::ordered_from(i);
      to.w[i] = CudaUnit::bytes_of(from.w[first], from.w[first + 1], Own::ordered_bytes(i));
    }
    return to;
  }

  /// What a lane knows of its two rows: as Scales. base: the least of four scales.
  struct Rows {
    std::uint32_t base, lo, hi;
  };
  /// The bases of the block's rows: from what each warp has seen first, and told the others before
  /// a barrier.
  __device__ void tell(const Place& at, Scratch& scratch, const Scales& seen) const {
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      const int lo = scale_in(seen.lo, second);
      if (seen.are_known && lo >= least_base && (!is_dense || at.part == 0)) {
        atomicMin(&scratch.base[row_of_block(at, second)], lo);
      }
    }
  }
  /// How far below what so many groups have a base is: groups that nobody has seen yet may have
  /// less.
  __device__ int below_seen(int seen) const { return p.elements.groups > seen ? 1 : 0; }
  __device__ std::uint32_t agreed(const Place& at, const Scratch& scratch) const {
    std::uint32_t base = 0;
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      base |= base_in_reach(scratch.base[row_of_block(at, second)] - below_seen(warps), second);
    }
    return base;
  }
  /// The base nearest to such a scale, as it is in registers.
  __device__ static std::uint32_t base_in_reach(int scale, int second) {
    const auto in_reach = static_cast<std::uint32_t>(min(max(scale, least_base), most_base));
    return (in_reach << scale_shift | scale_low) << (16 * second);
  }
  /// A row's scale in registers.
  __device__ static int scale_in(std::uint32_t scales, int second) {
    return static_cast<int>((scales >> (16 * second) & 0xFFFFu) >> scale_shift);
  }

  /// Of rows that are in order: bit 0 and bit 16 say that a row's scales begin one above its base.
  /// Three scales are in reach from there, the last of four only so. Scales are shifted so far.
  template <int Shift>
  __device__ static std::uint32_t above_base(std::uint32_t hi, std::uint32_t base) {
    return (hi - base + (0x00010001u << Shift)) >> (2 + Shift) & 0x00010001u;
  }
  /// Whether scales from lo to hi begin at `from` or above it, and are in reach of the base.
  template <int Shift>
  __device__ static bool are_within(std::uint32_t lo, std::uint32_t hi, std::uint32_t base,
                                    std::uint32_t from) {
    constexpr std::uint32_t width = 0x10001u * Atom::max_shift << Shift;
    return ((larger_halves(lo, from) ^ lo) | (smaller_halves(hi, base + width) ^ hi)) == 0;
  }
  /// Of a lane's two rows.
  __device__ static std::uint32_t above_of(const Scales& scales, const Rows& rows) {
    return is_dense ? above_base<scale_shift>(scales.hi, rows.base) : 0u;
  }
  /// A lane's elements of one or two rows of bf16, whose scales and bases are in halves.
  template <bool Saturates, int Count>
  __device__ static void make_dense(const QuadQuantizer& quantizer,
                                    const Words (&of)[Count][group_blocks_k],
                                    const std::uint32_t (&scales)[group_blocks_k],
                                    std::uint32_t bases, std::uint32_t above,
                                    Atom::Part (&parts)[group_blocks_k][Count]) {
#pragma unroll
    for (int second = 0; second < Count; ++second) {
      const Bf16Pairs::Unit unit = Bf16Pairs::unit(bases, above, second);
#pragma unroll
      for (int i = 0; i < group_blocks_k; ++i) {
        // Measured: one more instruction is faster where the kernel makes x.
        const std::uint32_t least =
            MakesX ? CudaUnit::bytes_of(scales[i], 0, second == 0 ? 0x1010 : 0x3232)
                   : Bf16Pairs::half(scales[i], second);
        quantizer.pairs().template shifted_elements<Saturates>(of[second][i], least, unit,
                                                               parts[i][second].word);
      }
    }
  }
  /// A lane's elements of y.
  template <bool Saturates>
  __device__ void make(const QuadQuantizer& quantizer, const Raw& raw, const Scales& scales,
                       const Rows& rows, std::uint32_t above,
                       Atom::Part (&parts)[group_blocks_k][2]) const {
    if constexpr (is_dense) {
      make_dense<Saturates>(quantizer, raw.of, scales.of, rows.base, above, parts);
    } else {
      // As expand_codes does it, times 2^shift, which is 1 to 8. Products leave the other unit of
      // integers free; compilers that see powers of two make shifts of them.
      constexpr std::uint32_t powers = 0x08040201u, numbers = 0x44404440u, sign = 0x80808080u;
      const auto low = static_cast<std::uint32_t>(opaque(static_cast<int>(halves_low)));
      const std::uint32_t base = rows.base - numbers;
#pragma unroll
      for (int second = 0; second < 2; ++second) {
        std::uint32_t power[scales_each];
#pragma unroll
        for (int i = 0; i < scales_each; ++i) {
          power[i] = CudaUnit::permute(powers, 0, (scales.of[i] - base) >> (16 * second));
        }
#pragma unroll
        for (int i = 0; i < group_blocks_k; ++i) {
          const std::uint32_t codes = raw.of[second][0].w[i], negative = codes ^ 0x88888888u;
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int step = Own::step(i, h), half = Own::half(i, h);
            const std::uint32_t times = power[scales_each == 1 ? 0 : step];
            const std::uint32_t plus = CudaUnit::permute(low, halves_high, codes >> (16 * h));
            const std::uint32_t minus = CudaUnit::permute(low, halves_high, negative >> (16 * h));
            parts[step][second].word[half] = (plus * times + sign + minus * (0u - times)) ^ sign;
          }
        }
      }
    }
  }

  /// The same, whether or not the rule saturates.
  __device__ void make_any(const QuadQuantizer& quantizer, const Raw& raw, const Scales& scales,
                           const Rows& rows, std::uint32_t above,
                           Atom::Part (&parts)[group_blocks_k][2]) const {
    if (is_dense && quantizer.pairs().saturates()) {
      make<is_dense>(quantizer, raw, scales, rows, above, parts);
    } else {
      make<false>(quantizer, raw, scales, rows, above, parts);
    }
  }

  /// Adds the product of the warp's groups with an image of x; returns those that are left for
  /// add_rare: bit i for the warp's group i.
  __device__ std::uint64_t multiply(const Place& at, Scratch& scratch,
                                    const QuadQuantizer& quantizer, int image_number, Rows& rows,
                                    Pipeline& pipeline,
                                    std::int32_t (&sums)[ColumnTiles][Atom::values]) const {
    const Source from = source(at);
    Raw raw{};
    load(raw, from, at.warp);
    Ahead ahead = ahead_of(at, from);
    // Found once, not for every group.
    const std::uint8_t* const first_image = opaque(image(at, 0));
    if (image_number == 0) clear(at, scratch);
    // No sooner: what comes first shall not wait for it.
    load_ahead(scratch, ahead, at.warp + warps);
    std::uint64_t left = 0;
#pragma unroll 1
    for (int group = at.warp, count = 0; group < at.groups; group += warps, ++count) {
      const Scales scales = find_scales(at, quantizer, raw);
      if (image_number == 0 && group == at.warp) {
        tell(at, scratch, scales);
        meet();
        rows.base = agreed(at, scratch);
        CudaUnit::wait_for_earlier();
        begin_states(at, scratch);
        stagger(at);
      }
      if constexpr (is_wide) {
        if (group == at.warp) {
          // One after the other takes long: each warp begins its part of them.
          CudaUnit::before_bulk_loads();
          for (int i = at.below / Atom::rows; i < pipeline.stages; i += together) {
            begin_copy(at, scratch, first_image, {i, pipeline.begun.turn}, image_number,
                       group + i * warps);
          }
          ++pipeline.begun.turn;
        }
      }
      TwoSteps b[group_blocks_k / 2][ColumnTiles];
#pragma unroll
      for (int i = 0; i < pairs_ahead; ++i) {
        load_steps(b[i], at, scratch, first_image, image_number, group, i);
      }
      const std::uint32_t above = above_of(scales, rows);
      // What is not whole is not in registers.
      const bool fits = (MakesX || is_whole(group)) & scales.are_known &
                        are_within<scale_shift>(scales.lo, scales.hi, rows.base,
                                                rows.base + (above << scale_shift));
      const bool all_fit = !CudaUnit::any_lane(!fits);
      Atom::Part parts[group_blocks_k][2];
      if (all_fit) {
        rows.lo = smaller_halves(rows.lo, scales.lo);
        rows.hi = larger_halves(rows.hi, scales.hi);
        make_any(quantizer, raw, scales, rows, above, parts);
      } else {
        left |= std::uint64_t{1} << count;
#pragma unroll
        for (int i = 0; i < group_blocks_k; ++i) parts[i][0] = parts[i][1] = {};
      }
      if constexpr (is_wide) {
        if (group != at.warp && at.below == 0) {
          begin_copy(at, scratch, first_image, pipeline.begun, image_number,
                     group + (pipeline.stages - 1) * warps);
          pipeline.begun.advance(pipeline.stages);
        }
        // All warps do this together: those whose groups do not fit have zeros.
        const int number = number_of(at, pipeline.done);
        CudaUnit::barrier_wait(&scratch.full[number], pipeline.done.turn & 1);
        Wide::begin(sums, parts, stages_after(scratch) + number * group_bytes_x);
        take_ahead(scratch, raw, ahead, group + warps);
        load_ahead(scratch, ahead, group + 2 * warps);
        Wide::wait();
        if (at.lane == 0) CudaUnit::barrier_arrive(&scratch.empty[number]);
        pipeline.done.advance(pipeline.stages);
      } else {
        take_ahead(scratch, raw, ahead, group + warps);
        load_ahead(scratch, ahead, group + 2 * warps);
        if (all_fit) {
#pragma unroll
          for (int i = 0; i < group_blocks_k; ++i) {
            if (i % 2 == 0 && i / 2 >= pairs_ahead) {
              load_steps(b[i / 2], at, scratch, first_image, image_number, group, i / 2);
            }
#pragma unroll
            for (int j = 0; j < ColumnTiles; ++j) {
              multiply_step(sums[j], parts[i], b[i / 2][j], i % 2);
            }
          }
        }
      }
    }
    return left;
  }

  /// Warpgroups that share a unit had better not need the same parts of it at the same time: matrix
  /// units after integers after shared memory. Where they have turns enough to gain by that.
  /// Measured on an H200.
  __device__ void stagger(const Place& at) const {
    constexpr int least_turns = 4, nanoseconds = 200;
    // Opaque, or another number would be kept that tells the same.
    if (is_wide && opaque(at.warp) > 0 && at.groups >= least_turns * warps) {
      CudaUnit::sleep(nanoseconds * at.warp);
    }
  }
  /// Begins to copy what is known of the rows of x: a thread has one at most.
  static_assert(x_tile <= 32 * together);
  __device__ void begin_states(const Place& at, Scratch& scratch) const {
    if (at.thread >= x_tile) return;
    CudaUnit::begin_copy<0, 0>(&scratch.x[at.thread],
                               p.elements.states +
                                   (p.x_batch == 1 ? 0 : at.batch) * p.elements.rows() +
                                   x_tile * at.x_tile + at.thread);
  }
  /// 2^(scale - 128).
  __device__ static double power_of_two(int scale) {
    return __hiloint2double((scale + 1023 - 128) << 20, 0);
  }

  /// Adds a group's product, whatever its scales, to the sums in absolute units.
  __device__ __noinline__ void add_rare(int thread, Scratch* shared, const GridItem item, int group,
                                        int image_number) const {
    Scratch& scratch = *in_shared(shared);
    const Place at = place_of(thread, item);
    const QuadQuantizer quantizer(p.rule);
    // A lane's part of each step, a byte for a scale: left_out where there is nothing to multiply.
    constexpr int left_out = 255;
    std::uint32_t scales[2] = {0, 0};
#pragma unroll 1
    for (int i = 0; i < group_blocks_k; ++i) {
      const int block = group_blocks_k * group + (Form == SliceForm::blocks ? at.part : i);
      int scale[2];
      if constexpr (is_dense) {
        quantizer.scales(eight_of(at, block, 0, i), eight_of(at, block, 1, i), scale[0], scale[1]);
      } else {
#pragma unroll
        for (int second = 0; second < 2; ++second) {
          std::uint32_t any = 0;
          if (Form == SliceForm::blocks) {
            for (int j = 0; j < 4; ++j) any |= eight_of(at, block, second, j).w[3] & 0x77777777u;
          } else {
            any = eight_of(at, block, second, i).w[3] & 0x77777777u;
            any |= CudaUnit::from_lane_xor(any, 1);
            any |= CudaUnit::from_lane_xor(any, 2);
          }
          scale[second] =
              block < p.blocks
                  ? scale_of_codes(*p.y_matrix.scales.at(at.batch, y_row(at, second), block),
                                   any != 0)
                  : QuadQuantizer::empty;
        }
      }
#pragma unroll
      for (int second = 0; second < 2; ++second) {
        const int row = row_of_block(at, second), found = scale[second];
        if (found >= 0) {
          atomicMin(&scratch.lo[row], found);
          atomicMax(&scratch.hi[row], found);
        } else if (found == QuadQuantizer::not_a_number) {
          atomicMax(&scratch.hi[row], nan_hi);
        }
        scales[second] =
            scales[second] >> 8 | static_cast<std::uint32_t>(found < 0 ? left_out : found) << 24;
      }
    }
    for (;;) {
      // The least scales that are left: of a quad's lanes together.
      int base[2];
      Atom::Part parts[group_blocks_k][2];
      bool is_any = false;
#pragma unroll
      for (int second = 0; second < 2; ++second) {
        std::uint32_t least = CudaUnit::smaller_bytes(scales[second], scales[second] >> 16);
        least = min(least & 0xFFu, least >> 8 & 0xFFu);
        least = min(least, CudaUnit::from_lane_xor(least, 1));
        least = min(least, CudaUnit::from_lane_xor(least, 2));
        base[second] = static_cast<int>(least);
        is_any = is_any || base[second] != left_out;
      }
      if (!CudaUnit::any_lane(is_any)) return;
#pragma unroll
      for (int i = 0; i < group_blocks_k; ++i) {
        const int block = group_blocks_k * group + (Form == SliceForm::blocks ? at.part : i);
#pragma unroll
        for (int second = 0; second < 2; ++second) {
          const int scale = static_cast<int>(scales[second] >> (8 * i) & 0xFFu);
          const int known = scale == left_out ? QuadQuantizer::empty : scale;
          const Words words = eight_of(at, block, second, i);
          parts[i][second] = is_dense ? quantizer.elements(words, known, base[second])
                                      : expand_eight(words.w[3], known, base[second]);
          if (scale <= base[second] + Atom::max_shift) {
            scales[second] |= std::uint32_t{left_out} << (8 * i);
          }
        }
      }
#pragma unroll 1
      for (int j = 0; j < ColumnTiles; ++j) {
        std::int32_t found[Atom::values] = {};
        const int own = Atom::cols * j + (at.lane >> 2);
        const std::uint8_t* x = image_of_row(at, scratch, image_number, own);
#pragma unroll
        for (int i = 0; i < group_blocks_k; ++i) {
          const int place = p.elements.offset(group_blocks_k * group + i, own, at.part);
          const auto word = [&](int offset) {
            return *reinterpret_cast<const std::uint32_t*>(x + offset);
          };
          Atom::multiply_add(found, parts[i][0], parts[i][1],
                             {{word(place), word(place ^ p.elements.second())}});
        }
#pragma unroll
        for (int v = 0; v < Atom::values; ++v) {
          const int col = Atom::cols * j + Atom::col_of(at.lane, v);
          const SliceRow& state = scratch.x[col];
          if (found[v] == 0 || image_number >= state.images) continue;
          atomicAdd(&rest(scratch)[col][at.below + Atom::row_of(at.lane, v)],
                    __int2double_rn(found[v]) * power_of_two(base[v >> 1]) *
                        power_of_two(state.unit[image_number]));
        }
      }
    }
  }
  /// Part i of a block of y: eight numbers, or eight codes in the last word. Where lanes have
  /// blocks, i is the eight; otherwise it is the lane's.
  __device__ Words eight_of(const Place& at, int block, int second, int i) const {
    if (block >= p.blocks) return {};
    const int row = y_row(at, second), eighth = Form == SliceForm::blocks ? i : at.part;
    if constexpr (is_dense) {
      const unsigned char* from =
          p.y.dense.at(at.batch, row, 2 * block_size * std::int64_t{block} + 16 * eighth);
      return p.y.is_aligned ? load_words<Words>(from) : load_bytes(from, 1, 16);
    } else {
      const CodesMap& codes = p.y_matrix.codes;
      return load_bytes(codes.at(at.batch, row, block) + 4 * eighth * codes.byte, codes.byte, 4);
    }
  }

  // ---------------------------------------------------------------------------- x, made here

  using Made = ElementsMade<ColumnTiles, Form == SliceForm::blocks>;
  /// Tiles of 8 rows of x of which a lane makes a row.
  static constexpr int x_each = Made::tiles_each;
  __device__ static int own_row(const Place& at, int r) {
    return Made::own_row(at.below, at.lane, r);
  }
  /// A lane's part of a group of such rows: an eighth number of each block.
  struct RawX {
    Words of[x_each][group_blocks_k];
  };
  struct SourceX {
    const unsigned char* of[x_each];
  };
  __device__ SourceX source_x(const Place& at) const {
    SourceX from;
#pragma unroll
    for (int r = 0; r < x_each; ++r) {
      // Rows that are not there are the last one: nobody looks at what comes of them.
      const int row = min(x_tile * at.x_tile + own_row(at, r), p.x_rows - 1);
      from.of[r] = opaque(p.x.dense.at(p.x_batch == 1 ? 0 : at.batch, row,
                                       2 * block_size * group_blocks_k * at.warp + 16 * at.part));
    }
    return from;
  }
  __device__ static void load_x(RawX& raw, const SourceX& from) {
#pragma unroll
    for (int r = 0; r < x_each; ++r) {
#pragma unroll
      for (int i = 0; i < group_blocks_k; ++i) {
        raw.of[r][i] = CudaUnit::load_past_first_cache<Words>(from.of[r] + 2 * block_size * i);
      }
    }
  }
  /// Its scales in halves, plus Bf16Pairs::bias: zeros of blocks that are zeros.
  struct ScalesX {
    std::uint32_t of[group_blocks_k];
    std::uint32_t below, hi;  ///< below: how far the least of others is below no_scale
    bool are_known;           ///< as far as the lane sees: no number is next to zero
  };
  static constexpr std::uint32_t no_scale = 512;
  __device__ static ScalesX find_scales_x(const QuadQuantizer& quantizer, const RawX& raw) {
    ScalesX scales;
    std::uint32_t low_bits = 0;
    scales.below = scales.hi = 0;
#pragma unroll
    for (int i = 0; i < group_blocks_k; ++i) {
      std::uint32_t most =
          Bf16Pairs::largest_two(raw.of[0][i], raw.of[x_each - 1][i]) & 0x7FFF7FFFu;
      most = larger_halves(most, CudaUnit::from_lane_xor(most, 1));
      most = larger_halves(most, CudaUnit::from_lane_xor(most, 2));
      scales.of[i] = quantizer.pairs().biased_scales(most);
      scales.below =
          larger_halves(scales.below, (no_scale * 0x10001u - scales.of[i]) & 0x01FF01FFu);
      scales.hi = larger_halves(scales.hi, scales.of[i]);
      low_bits |= smaller_halves(most, 0x00800080u);
    }
    scales.are_known = (low_bits & 0x007F007Fu) == 0;
    return scales;
  }
  __device__ static void tell_x(const Place& at, Scratch& scratch, const ScalesX& seen) {
    if (at.part != 0) return;
#pragma unroll
    for (int r = 0; r < x_each; ++r) {
      max_shared(&scratch.x_below[own_row(at, r)],
                 static_cast<int>(seen.below >> (16 * r) & 0xFFFFu));
    }
  }
  __device__ static int base_of_x(const Scratch& scratch, int row) {
    return min(static_cast<int>(no_scale) - scratch.x_below[row],
               Bf16Pairs::bias + most_dense_base);
  }
  /// Whether x's elements pass through shared memory.
  static constexpr bool is_passed = Made::is_passed;
  /// What a group's warps make of x.
  using MemoryOfMade = typename Made::template Memory<TwoSteps>;
  __device__ MemoryOfMade& made_of_group(const Place& at, Scratch& scratch) const {
    return reinterpret_cast<MemoryOfMade*>(stages_after(scratch))[at.warp];
  }

  /// All of the block's work where both operands' scales are few and near each other; false, and
  /// nothing is stored, where they are not.
  __device__ bool run_plain(const Place& at, Scratch& scratch, const GridItem& item) const {
    const QuadQuantizer quantizer(p.rule);
    const Source from = source(at);
    const SourceX from_x = source_x(at);
    clear(at, scratch);
    CudaUnit::wait_for_earlier();
    Raw raw;
    RawX raw_x;
    load_x(raw_x, from_x);
    load(raw, from, at.warp);
    ScalesX x = find_scales_x(quantizer, raw_x);
    tell_x(at, scratch, x);
    const Scales scales = find_scales(at, quantizer, raw);
    tell(at, scratch, scales);
    CudaUnit::block_barrier();
    if constexpr (begins_others_late) CudaUnit::dependents_may_begin();
    Rows rows{agreed(at, scratch), 0xFFFFFFFFu, 0};
    const std::uint32_t above = above_of(scales, rows);
    std::uint32_t base_x = 0;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const auto base =
          static_cast<std::uint32_t>(base_of_x(scratch, own_row(at, r < x_each ? r : x_each - 1)));
      base_x |= base << (16 * r);
    }
    const std::uint32_t above_x = above_base<0>(larger_halves(x.hi, base_x), base_x);
    const std::uint32_t least_x = base_x + above_x;
    const bool fits =
        scales.are_known &&
        are_within<scale_shift>(scales.lo, scales.hi, rows.base,
                                rows.base + (above << scale_shift)) &&
        x.are_known &&
        larger_halves(base_x, (Bf16Pairs::bias + least_dense_base) * 0x10001u) == base_x &&
        are_within<0>(no_scale * 0x10001u - x.below, x.hi, base_x, least_x);
#pragma unroll
    for (int i = 0; i < group_blocks_k; ++i) {
      x.of[i] = Bf16Pairs::leasts_of_biased(larger_halves(x.of[i], least_x));
    }
    if (at.thread < x_tile) {
      SliceRow state{};
      state.images = 1;
      state.unit[0] = static_cast<std::int16_t>(base_of_x(scratch, at.thread) - Bf16Pairs::bias);
      scratch.x[at.thread] = state;
    }
    MemoryOfMade& made = made_of_group(at, scratch);
    TwoSteps b[group_blocks_k / 2][ColumnTiles];
    Atom::Part parts[group_blocks_k][2];
    const auto make_both = [&](auto saturates) {
      Atom::Part parts_x[group_blocks_k][x_each];
      make_dense<saturates>(quantizer, raw_x.of, x.of, Bf16Pairs::leasts_of_biased(base_x), above_x,
                            parts_x);
#pragma unroll
      for (int i = 0; i < group_blocks_k; ++i) {
        [[maybe_unused]] const int step = Made::step(at.part, i);
        [[maybe_unused]] const int lane = Made::lane_of(at.lane, i);
#pragma unroll
        for (int r = 0; r < x_each; ++r) {
          const Atom::Part& part = parts_x[i][r];
          if constexpr (is_passed) {
            *reinterpret_cast<uint2*>(
                Made::template stored<TwoSteps>(made, step, Made::own_tile(at.below) + r, lane)) =
                make_uint2(part.word[0], part.word[1]);
          } else {
            b[Made::pair(i)][r].w[Made::first_word(i)] = part.word[0];
            b[Made::pair(i)][r].w[Made::first_word(i) + 1] = part.word[1];
          }
        }
      }
      make<is_dense && saturates>(quantizer, raw, scales, rows, above, parts);
    };
    if (quantizer.pairs().saturates()) {
      make_both(std::true_type{});
    } else {
      make_both(std::false_type{});
    }
    if constexpr (is_passed) {
      if constexpr (ColumnTiles > 1) {
        CudaUnit::block_barrier();
      } else {
        CudaUnit::warp_barrier();
      }
#pragma unroll
      for (int i = 0; i < group_blocks_k / 2; ++i) {
#pragma unroll
        for (int j = 0; j < ColumnTiles; ++j) {
          b[i][j] = Made::template taken<TwoSteps>(made, i, j, at.lane);
        }
      }
    }
    std::int32_t sums[ColumnTiles][Atom::values] = {};
#pragma unroll
    for (int i = 0; i < group_blocks_k; ++i) {
#pragma unroll
      for (int j = 0; j < ColumnTiles; ++j) multiply_step(sums[j], parts[i], b[i / 2][j], i % 2);
    }
    leave(at, scratch, rows, sums);
    if (CudaUnit::barrier_any(!fits || sees_special(at, scratch))) return false;
    store_plain(at.thread, item, scratch);
    return true;
  }
  /// What the first kernel does where there is one: for each block anew, which all find the same.
  __device__ __noinline__ void align_x(int thread, Scratch* shared, int batch,
                                       int tile_of_x) const {
    auto& scratch = *reinterpret_cast<Aligner::Scratch*>(stages_after(*in_shared(shared)));
    const Aligner align{p};
#pragma unroll 1
    for (int row = 0; row < x_tile; ++row) {
      CudaUnit::block_barrier();
      align.make_row(
          thread, scratch, batch, x_tile * tile_of_x + row, 0, [] {}, CudaUnit::block_barrier);
    }
    CudaUnit::written_for_all();
    CudaUnit::block_barrier();
  }

  // ---------------------------------------------------------------------------- results

  /// Adds a warp's sums to the block's, and what it knows of its rows.
  __device__ void leave(const Place& at, Scratch& scratch, const Rows& rows,
                        const std::int32_t (&sums)[ColumnTiles][Atom::values]) const {
#pragma unroll
    for (int j = 0; j < ColumnTiles; ++j) {
#pragma unroll
      for (int v = 0; v < Atom::values; ++v) {
        add_shared(
            &scratch.sums[Atom::col_of_tile(j, at.lane, v)][at.below + Atom::row_of(at.lane, v)],
            sums[j][v]);
      }
    }
    tell_range(at, scratch, rows);
  }
  /// What a warp knows of its rows.
  __device__ void tell_range(const Place& at, Scratch& scratch, const Rows& rows) const {
    // In the other forms all lanes of a quad have the same. Scale 0 is one, too.
    const bool has_seen = rows.lo != 0xFFFFFFFFu;
    if ((Form == SliceForm::blocks || at.part == 0) && has_seen) {
#pragma unroll
      for (int second = 0; second < 2; ++second) {
        const int row = row_of_block(at, second);
        atomicMin(&scratch.lo[row], scale_in(rows.lo, second));
        atomicMax(&scratch.hi[row], scale_in(rows.hi, second));
      }
    }
  }
  /// What the block's sums count.
  __device__ static bool is_common(int unit) { return unit >= least_unit && unit <= largest_unit; }
  __device__ int y_unit(const Scratch& scratch, int row) const {
    return min(max(scratch.base[row] - below_seen(warps), least_base), most_base);
  }
  /// Whether the thread's row of x, whose state it has copied, or of y is not plain.
  __device__ bool sees_special(const Place& at, const Scratch& scratch) const {
    bool is_special = false;
    if (at.thread < x_tile) {
      CudaUnit::wait_for_copies();
      const SliceRow& x = scratch.x[at.thread];
      is_special = x.spread < 0 || x.images != 1 || !is_common(x.unit[0]);
    }
    if (at.thread < y_tile) is_special = is_special || !is_common(y_unit(scratch, at.thread));
    return is_special;
  }

  /// An output of the block.
  struct Output {
    int col, row;
    int x, y;  ///< rows of the operands
    bool is_there;
  };
  __device__ Output output_of(const GridItem& item, int i) const {
    Output output;
    output.row = i % y_tile;
    output.col = i / y_tile;
    output.x = x_tile * item.y + output.col;
    output.y = y_tile * item.x + output.row;
    output.is_there = output.x < p.x_rows && output.y < p.y_rows;
    return output;
  }
  static constexpr int outputs = x_tile * y_tile;

  /// 2^(unit - 128), of common units.
  __device__ static float float_power_of_two(int unit) {
    return Kokkos::bit_cast<float>(static_cast<std::uint32_t>(unit - 1) << 23);
  }
  /// Two rows of y at a time, all of them plain bf16 that int32 sums hold.
  __device__ void store_plain(int thread, const GridItem& item, const Scratch& scratch) const {
    const Epilogue& e = p.epilogue;
    // The thread's rows of y are the same for every row of x.
    static_assert(64 % y_tile == 0);
    const Output first = output_of(item, 2 * thread);
    if (first.y >= p.y_rows) return;
    const float unit_low = float_power_of_two(y_unit(scratch, first.row));
    const float unit_high = float_power_of_two(y_unit(scratch, first.row + 1));
    const int step = 2 * threads() / y_tile, end = min(x_tile, p.x_rows - x_tile * item.y);
    std::uint16_t* to =
        static_cast<std::uint16_t*>(e.c) + item.z * e.batch + first.x * e.row + first.y;
#pragma unroll 2
    for (int col = first.col; col < end; col += step, to += step * e.row) {
      const float unit_x = float_power_of_two(scratch.x[col].unit[0]);
      const int2 sum = *reinterpret_cast<const int2*>(&scratch.sums[col][first.row]);
      // The conversion is the one rounding: powers of two change no bit of a normal number.
      const float low = __int2float_rn(sum.x) * unit_x * unit_low;
      const float high = __int2float_rn(sum.y) * unit_x * unit_high;
      *reinterpret_cast<std::uint32_t*>(to) = bf16_pair(low, high);
    }
  }

  /// The block's int32 sums become zeros, added to those in absolute units.
  __device__ void add_to_rest(int thread, const GridItem& item, Scratch& scratch,
                              int image_number) const {
    for (int i = thread; i < outputs; i += threads()) {
      const Output at = output_of(item, i);
      const SliceRow& x = scratch.x[at.col];
      double& sum = rest(scratch)[at.col][at.row];
      if (image_number == 0) sum = 0;
      if (image_number < x.images) {
        sum += __int2double_rn(scratch.sums[at.col][at.row]) *
               power_of_two(y_unit(scratch, at.row)) * power_of_two(x.unit[image_number]);
      }
      scratch.sums[at.col][at.row] = 0;
    }
  }
  __device__ Tier tier_of_output(int spread_x, int spread_y) const {
    if (spread_x < 0 || spread_y < 0) return Tier::automatic;
    if (p.minimum_tier <= Tier::aligned && spread_x <= Atom::max_shift &&
        spread_y <= Atom::max_shift) {
      return Tier::aligned;  // K is at most 32 slice_most_blocks
    }
    return p.minimum_tier <= Tier::window && spread_x + spread_y + p.sum_bits <= 63 ? Tier::window
                                                                                    : Tier::wide;
  }
  /// Rounds and stores any outputs.
  __device__ void store_any(int thread, const GridItem& item, Scratch& scratch) const {
    std::uint64_t found[tier_count] = {};
#pragma unroll 1
    for (int i = thread; i < outputs; i += threads()) {
      const Output at = output_of(item, i);
      if (!at.is_there) continue;
      const SliceRow& x = scratch.x[at.col];
      const int lo = scratch.lo[at.row], hi = scratch.hi[at.row];
      const int spread_y = hi >= nan_hi ? -1 : lo == no_lo ? 0 : hi - lo;
      const Tier tier = tier_of_output(x.spread, spread_y);
      std::uint32_t product = f32_nan;
      if (tier != Tier::automatic) {
        // The conversion is the one rounding, and the definition's.
        product =
            tier != Tier::wide && x.images != 0 && x.spread + spread_y + p.sum_bits <= window_bits
                ? Kokkos::bit_cast<std::uint32_t>(CudaUnit::to_float(rest(scratch)[at.col][at.row]))
                : wide_product(item.z, at.x, at.y);
      }
      p.epilogue(item.z, p.y_is_b ? at.x : at.y, p.y_is_b ? at.y : at.x, product);
      if (p.counts != nullptr) {
#pragma unroll
        for (int t = 0; t < tier_count; ++t) found[t] += static_cast<int>(tier) == t ? 1 : 0;
      }
    }
    if (p.counts == nullptr) return;
#pragma unroll
    for (int t = 0; t < tier_count; ++t) {
      if (found[t] != 0) Kokkos::atomic_add(&p.counts[t], found[t]);
    }
  }

  struct Block {
    BlockCodes codes;
    int scale;
  };
  /// A block of either operand: quantized once more where the operand is dense.
  __device__ Block block_of(const SliceSide& side, const MatrixMap& matrix, int batch, int row,
                            int block) const {
    Block result;
    if (side.is_dense) {
      alignas(16) std::uint8_t codes[block_bytes];
      const BlockResult made = CudaQuantizeAtom::quantize<BF16Format>(
          side.dense.at(batch, row, 2 * block_size * std::int64_t{block}), codes, p.rule);
      memcpy(result.codes.word, codes, sizeof(codes));
      result.scale = made.scale;
    } else {
      const CodesMap& codes = matrix.codes;
      result.codes = load_block(codes, codes.at(batch, row, block));
      result.scale = *matrix.scales.at(batch, row, block);
    }
    return result;
  }
  /// An output's sum in as many bits as it can have.
  __device__ __noinline__ std::uint32_t wide_product(int in_batch, int x_row, int y_row_at) const {
    WideSum sum;
    for (int k = 0; k < p.blocks; ++k) {
      const Block a = block_of(p.x, p.x_matrix, in_batch, x_row, k);
      const Block b = block_of(p.y, p.y_matrix, in_batch, y_row_at, k);
      sum.add(dot_blocks(a.codes, b.codes), a.scale + b.scale);
    }
    return sum.round(unit_exponent(0, 0));
  }

  // ---------------------------------------------------------------------------- all of it

  /// Before anything is added. A barrier.
  __device__ void clear(const Place& at, Scratch& scratch) const {
    for (int i = at.thread; i < x_tile * sums_pitch / 4; i += threads()) {
      reinterpret_cast<int4*>(scratch.sums)[i] = make_int4(0, 0, 0, 0);
    }
    if (MakesX && at.thread < x_tile) scratch.x_below[at.thread] = 0;
    for (int i = at.thread; i < y_tile; i += threads()) {
      scratch.base[i] = most_base;
      scratch.lo[i] = no_lo;
      scratch.hi[i] = 0;
    }
    if constexpr (is_wide) {
      // A warp has its part of them: lanes would make them one after the other.
      if (at.lane == 0) {
        for (int i = at.thread >> 5; i < warps * stages; i += warps * together) {
          CudaUnit::barrier_init(&scratch.full[i], 1);
          CudaUnit::barrier_init(&scratch.empty[i], together);
        }
        CudaUnit::barriers_made_for_block();
      }
    }
    if (at.thread == 0) scratch.images = 1;
    meet();
  }
  __device__ void run(int thread, Scratch& scratch, const GridItem& item) const {
    if constexpr (!MakesX && !is_wide) {
      // To where nobody writes before all have met.
      CudaUnit::read_ahead(*this, thread, reinterpret_cast<std::int32_t*>(stages_after(scratch)));
    }
    if constexpr (!begins_others_late) CudaUnit::dependents_may_begin();
    const Place at = place_of(thread, item);
    if constexpr (MakesX) {
      if (run_plain(at, scratch, item)) return;
      align_x(thread, &scratch, p.x_batch == 1 ? 0 : at.batch, at.x_tile);
    }
    const QuadQuantizer quantizer(p.rule);
    Rows rows{0, 0xFFFFFFFFu, 0};
    Pipeline pipeline{{}, {}, stages};
#pragma unroll 1
    for (int image_number = 0;; ++image_number) {
      std::int32_t sums[ColumnTiles][Atom::values] = {};
      std::uint64_t left = multiply(at, scratch, quantizer, image_number, rows, pipeline, sums);
      leave(at, scratch, rows, sums);
      if (image_number == 0) {
        bool is_special = sees_special(at, scratch);
        is_special = is_special || !p.is_plain_bf16 || p.counts != nullptr ||
                     p.minimum_tier > Tier::aligned || left != 0;
        if (!meet_any(is_special)) {
          store_plain(thread, item, scratch);
          return;
        }
        if (thread < x_tile) atomicMax(&scratch.images, static_cast<int>(scratch.x[thread].images));
      } else {
        meet();
      }
      if (is_wide && image_number == 0) {  // one stage is left
        const int uses = (at.groups - at.warp + warps - 1) / warps;
        pipeline = {{0, (uses + stages - 1) / stages}, {0, (uses + stages - 1) / stages}, 1};
      }
      add_to_rest(thread, item, scratch, image_number);
      meet();
      for (int group = at.warp; left != 0; group += warps, left >>= 1) {
        if ((left & 1) != 0) add_rare(thread, &scratch, item, group, image_number);
      }
      meet();
      if (image_number + 1 >= scratch.images) break;
    }
    store_any(thread, item, scratch);
  }
};

#endif

}  // namespace KokkosMX::Impl

#endif
