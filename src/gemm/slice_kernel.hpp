// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_SLICE_KERNEL_HPP
#define KOKKOSMX_SRC_GEMM_SLICE_KERNEL_HPP

/// \file slice_kernel.hpp
/// The GEMM kernels of CUDA for products of few rows, from dense operands, or codes, to C.
///
/// x is the operand with fewer rows, y the other. A first kernel makes x's elements: int8, aligned
/// to each row's least scale, in the order in which warps read them. The second one begins beside
/// it. A block has some tiles of 16 rows of y and a tile of x, and warps that share K: a warp has
/// every so many groups of 128 of K, whose part of y it makes in registers, as int8 that count
/// units of a scale that the warps have agreed upon for each row. int32 sums over K are exact.
///
/// What that does not hold comes after it: groups of y with blocks outside of the four scales of
/// their rows, with zeros, with what is not finite or near the ends of the range; and blocks of x
/// outside of the first four scales, of which there are further images. All of these are added as
/// float64, in absolute units, which is exact while all scales of the two rows lie in a window (53
/// bits). Outputs that the window does not hold are summed one by one.

#include <KokkosMX/Types.hpp>

#include "../atoms/gemm/int8_codes.hpp"
#include "../atoms/gemm/mma.hpp"
#include "../atoms/quantize/cuda.hpp"
#include "../atoms/quantize/quad.hpp"
#include "../launch.hpp"
#include "../operand.hpp"
#include "epilogue.hpp"
#include "exact_sum.hpp"
#include "slices.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>

namespace KokkosMX::Impl {

#ifdef KOKKOS_ENABLE_CUDA

/// How a warp finds y. dense: bf16, a quad has a block at a time. interleaved: codes by groups of 4
/// blocks, of which a lane has an eighth number from each (Tile16x128). blocks: a lane has a block.
enum class SliceForm { dense, interleaved, blocks };

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

/// Makes x's elements: a group takes a row, four lanes a block. What is for a lane of a warp-level
/// product lies together, for two tiles of 8 rows where there are so many: see SliceElements.
template <bool IsDense>
struct AlignRows {
  SliceProblem p;

  static constexpr int most_threads = 1024, groups_together = 1;
  struct Scratch {
    std::int32_t lo[most_threads / 32], hi[most_threads / 32];  ///< of what a warp has seen
    std::uint32_t bands[2];  ///< of four scales: bit b says that a block lies in band b
    std::int16_t scale[slice_most_blocks];
  };
  static constexpr int most_shared_bytes = sizeof(Scratch);

  /// A block's eights, each by a thread.
  KOKKOS_INLINE_FUNCTION int eights() const { return 16 * p.elements.groups; }
  KOKKOS_INLINE_FUNCTION int threads() const {
    const int most = (eights() + 31) / 32 * 32;
    return most < most_threads ? most : most_threads;
  }
  int shared_bytes() const { return most_shared_bytes; }

  KOKKOS_FUNCTION void operator()([[maybe_unused]] const DeviceGroup& group,
                                  [[maybe_unused]] unsigned char* memory,
                                  [[maybe_unused]] const GridItem& item) const {
    KOKKOS_IF_ON_DEVICE((run(group.rank(), *reinterpret_cast<Scratch*>(memory), item.z, item.x);))
  }

 private:
  /// A lane's part of x: eight numbers of a block, or eight codes in the last word.
  __device__ Words load(int batch, int row, int block, int part) const {
    if (row >= p.x_rows || block >= p.blocks) return {};
    if constexpr (IsDense) {
      const unsigned char* from =
          p.x.dense.at(batch, row, 2 * block_size * std::int64_t{block} + 16 * part);
      return p.x.is_aligned ? load_words<Words>(from) : load_bytes(from, 1, 16);
    } else {
      const CodesMap& codes = p.x.matrix.codes;
      const std::uint8_t* from = codes.at(batch, row, block) + 4 * part * codes.byte;
      if (codes.byte == 1 && p.x.is_aligned) return {{0, 0, 0, load_words<std::uint32_t>(from)}};
      return load_bytes(from, codes.byte, 4);
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
      return row < p.x_rows && block < p.blocks
                 ? scale_of_codes(*p.x.matrix.scales.at(batch, row, block), any != 0)
                 : QuadQuantizer::empty;
    }
  }

  __device__ void run(int thread, Scratch& scratch, int batch, int row) const {
    // What the next kernel reads before it waits for this one is there, too.
    CudaUnit::wait_for_earlier();
    CudaUnit::dependents_may_begin();
    const SliceElements& elements = p.elements;
    const QuadQuantizer quantizer(p.rule);
    const int part = thread & 3, lane = thread & 31, warp = thread >> 5;
    const Words first = load(batch, row, thread >> 2, part);
    if (thread == 0) scratch.bands[0] = scratch.bands[1] = 0;
    int lo = slice_no_lo, hi = 0;
#pragma unroll 1
    for (int i = thread; (i & ~31) < eights(); i += threads()) {
      const int block = i >> 2;
      const int scale = scale_of(quantizer, i == thread ? first : load(batch, row, block, part),
                                 batch, row, block);
      if (part == 0 && block < slice_most_blocks) {
        scratch.scale[block] = static_cast<std::int16_t>(scale);
      }
      if (scale >= 0) {
        lo = min(lo, scale);
        hi = max(hi, scale);
      } else if (scale == QuadQuantizer::not_a_number) {
        hi = slice_nan_hi;
      }
    }
    lo = CudaUnit::least_of_warp(lo);
    hi = -CudaUnit::least_of_warp(-hi);
    if (lane == 0) {
      scratch.lo[warp] = lo;
      scratch.hi[warp] = hi;
    }
    __syncthreads();
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
    if (state.spread > MmaInt8Atom::max_shift) find_bands(thread, scratch, state);
    if (thread == 0) elements.states[batch * elements.rows() + row] = state;
    const int images = state.images == 0 ? 1 : state.images;
    const int tile = row >> elements.log_tile, in_tile = row & (elements.tile() - 1);
#pragma unroll 1
    for (int image = 0; image < images; ++image) {
      std::uint8_t* to = elements.image(batch, tile, image);
#pragma unroll 1
      for (int i = thread; i < eights(); i += threads()) {
        const int block = i >> 2;
        const int scale = scratch.scale[block], base = state.unit[image];
        const Words words = i == thread ? first : load(batch, row, block, part);
        const MmaInt8Atom::Part made = IsDense ? quantizer.elements(words, scale, base)
                                               : expand_eight(words.w[3], scale, base);
        const int step = p.elements.by_blocks ? (block & ~3) + part : block;
        const int of_lane = p.elements.by_blocks ? block & 3 : part;
        *reinterpret_cast<uint2*>(to + elements.offset(step, in_tile, of_lane)) =
            make_uint2(made.word[0], made.word[1]);
      }
    }
  }
  /// The row's images where it needs more than one; none where it needs too many.
  __device__ void find_bands(int thread, Scratch& scratch, SliceRow& state) const {
    for (int block = thread; block < p.blocks; block += threads()) {
      const int scale = scratch.scale[block];
      if (scale < 0) continue;
      const int band = (scale - state.lo) >> 2;
      atomicOr(&scratch.bands[band >> 5], 1u << (band & 31));
    }
    __syncthreads();
    state.images = 0;
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

/// ColumnTiles: tiles of 8 rows of x.
template <int ColumnTiles, SliceForm Form>
struct SliceGemm {
  SliceProblem p;
  int warps;     ///< of a tile of y: they share K
  int together;  ///< tiles of y of a block: they share what they read of x

  using Atom = MmaInt8Atom;
  static constexpr int most_warps = ColumnTiles > 8 ? 12 : 16, most_threads = 32 * most_warps;
  static constexpr int groups_together = 1, most_together = 4;
  static constexpr int x_tile = Atom::cols * ColumnTiles, y_tile = Atom::rows;
  static constexpr int group_blocks_k = 4;
  static constexpr int no_lo = slice_no_lo, nan_hi = slice_nan_hi;
  /// Bits of a float64 sum.
  static constexpr int window_bits = 53;
  /// Scales of y that groups may have to be multiplied at once, and what is added to them in
  /// registers.
  static constexpr bool is_dense = Form == SliceForm::dense;
  static constexpr int bias = is_dense ? 2 : 0;
  static constexpr int least_base = bias + (is_dense ? Bf16Pairs::least_scale : 0);
  static constexpr int most_base =
      bias + (is_dense ? Bf16Pairs::most_scale : 254) - Atom::max_shift;
  /// Products of units from here are normal float32, whatever the sum, and so are their parts.
  static constexpr int least_unit = 68, largest_unit = 176;
  /// Of sums, from one row of x to the next.
  static constexpr int sums_pitch = y_tile + 4;

  /// Of a tile of y.
  struct alignas(128) Tile {
    std::int32_t sums[x_tile][sums_pitch];
    double rest[x_tile][y_tile];  ///< in absolute units
    /// Of y's rows: what the sums count, and the scales of the blocks that are not zeros, no_lo and
    /// 0 where there is none, nan_hi where one is 255.
    std::int32_t base[y_tile], lo[y_tile], hi[y_tile];
  };
  /// Large groups of x come to shared memory for the warps of all tiles that have them, some groups
  /// ahead; others by each warp's own loads.
  static constexpr bool is_staged = ColumnTiles >= 8;
  static constexpr int stages = ColumnTiles > 8 ? 2 : 3;
  static constexpr int group_bytes_x = x_tile * group_blocks_k * block_size;
  struct alignas(128) Stages {
    std::uint8_t group[is_staged ? stages : 1][is_staged ? group_bytes_x : 1];
  };
  static constexpr int most_staging = is_staged ? 4 : 0;  ///< warps of a tile
  struct alignas(128) Scratch {
    SliceRow x[x_tile];
    std::int32_t images;
    std::uint64_t full[is_staged ? most_staging : 1][stages],
        empty[is_staged ? most_staging : 1][stages];

    __device__ Tile& tile(int i) { return reinterpret_cast<Tile*>(this + 1)[i]; }
    __device__ const Tile& tile(int i) const { return reinterpret_cast<const Tile*>(this + 1)[i]; }
  };
  static_assert(sizeof(Tile) % 128 == 0);

  KOKKOS_INLINE_FUNCTION int threads() const { return 32 * warps * together; }
  int shared_bytes() const {
    return static_cast<int>(sizeof(Scratch) + together * sizeof(Tile) +
                            (is_staged ? warps * sizeof(Stages) : 0));
  }
  static constexpr int most_shared_bytes = 227 * 1024;

  KOKKOS_FUNCTION void operator()([[maybe_unused]] const DeviceGroup& group,
                                  [[maybe_unused]] unsigned char* memory,
                                  [[maybe_unused]] const GridItem& item) const {
    KOKKOS_IF_ON_DEVICE((run(group.rank(), *reinterpret_cast<Scratch*>(memory), item);))
  }

 private:
  /// A lane and what it works on.
  struct Place {
    int batch, x_row, y_row, groups;     ///< the first rows
    int thread, lane, part, warp, tile;  ///< the warp of those of the tile
  };
  __device__ Place place_of(int thread, const GridItem& item) const {
    Place at;
    at.batch = item.z;
    at.x_row = x_tile * item.y;
    at.tile = (thread >> 5) / warps;
    at.y_row = y_tile * (item.x * together + at.tile);
    at.groups = p.elements.groups;
    at.thread = thread;
    at.lane = thread & 31;
    at.part = Atom::operand_part(at.lane);
    at.warp = (thread >> 5) - at.tile * warps;
    return at;
  }

  // ---------------------------------------------------------------------------- x

  /// A lane's part of x in a step of 32 of K: of two tiles of 8 rows, if there are so many.
  static constexpr int pair = ColumnTiles > 1 ? 2 : 1;
  struct alignas(8 * pair) Columns {
    std::uint32_t w[2 * pair];
  };
  __device__ const std::uint8_t* image(const Place& at, int number) const {
    return p.elements.image(p.x_batch == 1 ? 0 : at.batch, at.x_row / x_tile, number) +
           8 * pair * at.lane;
  }
  /// Steps that are loaded before a group of y is made: as many as there are registers for.
  static constexpr int steps_ahead = ColumnTiles <= 2 ? group_blocks_k : ColumnTiles == 4 ? 2 : 0;
  __device__ static void load_step(Columns (&to)[ColumnTiles / pair], const std::uint8_t* group,
                                   int step) {
#pragma unroll
    for (int j = 0; j < ColumnTiles / pair; ++j) {
      to[j] = *reinterpret_cast<const Columns*>(group + step * (x_tile * block_size) +
                                                j * (8 * pair * 32));
    }
  }

  /// A warp's part in the copies of x to shared memory: those of the same groups take turns.
  struct Pipeline {
    int begun = 0, done = 0;  ///< groups
  };
  __device__ Stages& stages_of(const Place& at, Scratch& scratch) const {
    return reinterpret_cast<Stages*>(&scratch.tile(together))[at.warp];
  }
  /// Begins to copy a group, by a thread of the first tile's warp.
  __device__ void begin_copy(const Place& at, Scratch& scratch, Pipeline& pipeline,
                             int image_number, int group) const {
    if constexpr (is_staged) {
      if (at.tile != 0 || at.lane != 0 || group >= at.groups) return;
      const int stage = pipeline.begun % stages, turn = pipeline.begun / stages;
      if (turn > 0) CudaUnit::barrier_wait(&scratch.empty[at.warp][stage], (turn - 1) & 1);
      CudaUnit::barrier_expect(&scratch.full[at.warp][stage], group_bytes_x);
      CudaUnit::bulk_copy(
          stages_of(at, scratch).group[stage],
          p.elements.image(p.x_batch == 1 ? 0 : at.batch, at.x_row / x_tile, image_number) +
              std::int64_t{group} * group_bytes_x,
          group_bytes_x, &scratch.full[at.warp][stage]);
      ++pipeline.begun;
    }
  }

  // ---------------------------------------------------------------------------- y

  /// The row of y that a lane holds, or the last one.
  __device__ int y_row(const Place& at, int second) const {
    const int row = at.y_row + Atom::operand_row(at.lane, second);
    return row < p.y_rows ? row : p.y_rows - 1;
  }
  static constexpr int row_words = is_dense ? group_blocks_k : 1;
  /// Codes are few: two groups of them are under way. 64 rows of x leave no registers for the
  /// second where a lane has a part of every block.
  static constexpr bool two_ahead =
      !is_dense && !(ColumnTiles == 8 && Form == SliceForm::interleaved);
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
    Source from;
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      const int row = y_row(at, second);
      if constexpr (is_dense) {
        from.data[second] = p.y.dense.at(at.batch, row, 16 * at.part);
        from.scales[second] = nullptr;
      } else {
        const CodesMap& codes = p.y.matrix.codes;
        from.data[second] =
            codes.at(at.batch, row, 0) + at.part * (Form == SliceForm::blocks ? codes.block_1 : 16);
        from.scales[second] = p.y.matrix.scales.at(at.batch, row, at.part);
      }
    }
    return from;
  }
  /// Zeros where the group is not whole, or its words do not lie as they should.
  __device__ void load(Raw& raw, const Source& from, int group) const {
    const bool is_whole = p.y.is_aligned && group_blocks_k * (group + 1) <= p.blocks;
    const std::int64_t step = is_dense ? 2 * block_size * group_blocks_k : p.y.matrix.codes.block_4;
#pragma unroll
    for (int second = 0; second < 2; ++second) {
#pragma unroll
      for (int i = 0; i < row_words; ++i) {
        raw.of[second][i] = is_whole ? CudaUnit::load_past_first_cache<Words>(
                                           from.data[second] + group * step + 2 * block_size * i)
                                     : Words{};
      }
      if constexpr (!is_dense) {
        const ScalesMap& scales = p.y.matrix.scales;
        raw.scale[second] = is_whole ? CudaUnit::load_past_first_cache<std::uint8_t>(
                                           from.scales[second] + (group >> 1) * scales.col_8 +
                                           (group & 1) * scales.col_4)
                                     : 255u;
      }
    }
  }

  /// Of both rows, the first one's in the low half: the scales of a group's blocks, plus bias. All
  /// of the row's where a lane has a part of each, of a lane's block otherwise.
  static constexpr int scales_each = Form == SliceForm::blocks ? 1 : group_blocks_k;
  struct Scales {
    std::uint32_t of[scales_each];
    std::uint32_t lo, hi;
    bool are_known;  ///< as far as the lane sees: no block is zeros
  };
  /// Finds them; words of codes are brought into their order: word i of step i.
  __device__ Scales find_scales(const Place& at, const QuadQuantizer& quantizer, Raw& raw) const {
    Scales scales;
    scales.are_known = true;
    if constexpr (is_dense) {
#pragma unroll
      for (int i = 0; i < group_blocks_k; ++i) {
        std::uint32_t most = Bf16Pairs::largest_two(raw.of[0][i], raw.of[1][i]);
        most = __vmaxu2(most, CudaUnit::from_lane_xor(most, 1));
        most = __vmaxu2(most, CudaUnit::from_lane_xor(most, 2));
        scales.of[i] = quantizer.pairs().biased_scales(most);
      }
    } else {
      const std::uint32_t own = raw.scale[0] | raw.scale[1] << 16;
#pragma unroll
      for (int second = 0; second < 2; ++second) {
        Words& w = raw.of[second][0];
        constexpr std::uint32_t magnitudes = 0x77777777u;
        if constexpr (Form == SliceForm::blocks) {
          scales.are_known =
              scales.are_known && ((w.w[0] | w.w[1] | w.w[2] | w.w[3]) & magnitudes) != 0;
        } else {
          w = ordered(w);
#pragma unroll
          for (int i = 0; i < group_blocks_k; ++i) {
            scales.are_known = scales.are_known && (w.w[i] & magnitudes) != 0;
          }
        }
      }
      if constexpr (Form == SliceForm::blocks) {
        scales.of[0] = own;
      } else {
#pragma unroll
        for (int i = 0; i < group_blocks_k; ++i) {
          scales.of[i] = CudaUnit::from_lane(own, (at.lane & 28) + i);
        }
      }
    }
    scales.lo = scales.hi = scales.of[0];
#pragma unroll
    for (int i = 1; i < scales_each; ++i) {
      scales.lo = __vminu2(scales.lo, scales.of[i]);
      scales.hi = __vmaxu2(scales.hi, scales.of[i]);
    }
    return scales;
  }
  /// Byte 4 j + b of a group is byte j of block b.
  __device__ static Words ordered(const Words& from) {
    const std::uint32_t low_01 = __byte_perm(from.w[0], from.w[1], 0x5140);
    const std::uint32_t low_23 = __byte_perm(from.w[2], from.w[3], 0x5140);
    const std::uint32_t high_01 = __byte_perm(from.w[0], from.w[1], 0x7362);
    const std::uint32_t high_23 = __byte_perm(from.w[2], from.w[3], 0x7362);
    return {{__byte_perm(low_01, low_23, 0x5410), __byte_perm(low_01, low_23, 0x7632),
             __byte_perm(high_01, high_23, 0x5410), __byte_perm(high_01, high_23, 0x7632)}};
  }

  /// What a lane knows of its two rows: in halves, as Scales. base: the least of four scales.
  struct Rows {
    std::uint32_t base, lo, hi;
  };
  /// The bases of the block's rows, from what each warp has seen first. A barrier.
  __device__ std::uint32_t agree(const Place& at, Tile& tile, const Scales& seen) const {
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      const int lo = static_cast<int>(seen.lo >> (16 * second) & 0xFFFFu);
      if (seen.are_known && lo >= least_base && (!is_dense || at.part == 0)) {
        atomicMin(&tile.base[Atom::operand_row(at.lane, second)], lo);
      }
    }
    __syncthreads();
    // Groups that nobody has seen yet may have less.
    const int below = at.groups > warps ? 1 : 0;
    std::uint32_t base = 0;
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      const int lo = tile.base[Atom::operand_row(at.lane, second)] - below;
      base |= static_cast<std::uint32_t>(min(max(lo, least_base), most_base)) << (16 * second);
    }
    return base;
  }

  /// Of rows that are in order: bit 0 and bit 16 say that a row's scales begin one above its base.
  /// Three scales are in reach from there, the last of four only so.
  __device__ static std::uint32_t above_base(const Scales& scales, const Rows& rows) {
    return is_dense ? (scales.hi - rows.base + 0x00010001u) >> 2 & 0x00010001u : 0u;
  }
  /// A lane's elements.
  template <bool Saturates>
  __device__ void make(const QuadQuantizer& quantizer, const Raw& raw, const Scales& scales,
                       const Rows& rows, std::uint32_t above,
                       Atom::Part (&parts)[group_blocks_k][2]) const {
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      const int base = static_cast<int>(rows.base >> (16 * second) & 0xFFFFu) - bias;
      if constexpr (is_dense) {
        const Bf16Pairs::Unit unit =
            Bf16Pairs::unit(base, static_cast<int>(above >> (16 * second) & 1u));
#pragma unroll
        for (int i = 0; i < group_blocks_k; ++i) {
          const std::uint32_t one =
              __byte_perm((scales.of[i] - 0x10001u * bias) << 7, 0, second == 0 ? 0x1010 : 0x3232);
          quantizer.pairs().template shifted_elements<Saturates>(raw.of[second][i], one, unit,
                                                                 parts[i][second].word);
        }
      } else {
#pragma unroll
        for (int i = 0; i < group_blocks_k; ++i) {
          const int scale =
              static_cast<int>(scales.of[scales_each == 1 ? 0 : i] >> (16 * second) & 0xFFu);
          parts[i][second] = expand_eight_within(raw.of[second][0].w[i], scale - base);
        }
      }
    }
  }
  /// Codes as int8, times 2^shift, which is 1 to 8: by tables of both signs.
  __device__ static Atom::Part expand_eight_within(std::uint32_t codes, int shift) {
    constexpr std::uint32_t minus_low = 0xFDFEFF00u, minus_high = 0xF4F8FAFCu;
    const std::uint32_t from_below = (0x01010101u << shift) - 0x01010101u;
    const std::uint32_t selector = codes & 0x77777777u;
    Atom::Part part;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::uint32_t four = h == 0 ? selector : selector >> 16;
      const std::uint32_t plus = __byte_perm(halves_low << shift, halves_high << shift, four);
      const std::uint32_t minus =
          __byte_perm(minus_low << shift & ~from_below, minus_high << shift & ~from_below, four);
      // The highest bits of bytes, eight times each: of the first of two codes, of the second one.
      const std::uint32_t signs = CudaUnit::permute(codes << 4, codes, h == 0 ? 0xD9C8u : 0xFBEAu);
      part.word[h] = (plus & ~signs) | (minus & signs);
    }
    return part;
  }

  /// Adds the product of the warp's groups with an image of x; returns those that are left for
  /// add_rare: bit i for the warp's group i.
  __device__ std::uint64_t multiply(const Place& at, Scratch& scratch,
                                    const QuadQuantizer& quantizer, int image_number, Rows& rows,
                                    Pipeline& pipeline,
                                    std::int32_t (&sums)[ColumnTiles][Atom::values]) const {
    const Source from = source(at);
    Raw raw;
    [[maybe_unused]] Raw next;
    load(raw, from, at.warp);
    if constexpr (two_ahead) load(next, from, at.warp + warps);
    if (image_number == 0) clear(at, scratch);
    std::uint64_t left = 0, bit = 1;
    const std::uint8_t* x = image(at, image_number);
#pragma unroll 1
    for (int group = at.warp; group < at.groups; group += warps, bit <<= 1) {
      const Scales scales = find_scales(at, quantizer, raw);
      if (image_number == 0 && group == at.warp) {
        rows.base = agree(at, scratch.tile(at.tile), scales);
        CudaUnit::wait_for_earlier();
        load_states(at, scratch);
      }
      if (is_staged && group == at.warp) {
        CudaUnit::before_bulk_copies();
        for (int i = 0; i + 1 < stages; ++i) {
          begin_copy(at, scratch, pipeline, image_number, group + i * warps);
        }
      }
      Columns b[group_blocks_k][ColumnTiles / pair];
#pragma unroll
      for (int i = 0; i < steps_ahead; ++i) load_step(b[i], x + group * group_bytes_x, i);
      constexpr std::uint32_t width = 0x10001u * Atom::max_shift;
      const std::uint32_t above = above_base(scales, rows);
      const bool fits = scales.are_known && __vmaxu2(scales.lo, rows.base + above) == scales.lo &&
                        __vminu2(scales.hi, rows.base + width) == scales.hi;
      const bool all_fit = !CudaUnit::any_lane(!fits);
      Atom::Part parts[group_blocks_k][2];
      if (all_fit) {
        rows.lo = __vminu2(rows.lo, scales.lo);
        rows.hi = __vmaxu2(rows.hi, scales.hi);
        if (is_dense && quantizer.pairs().saturates()) {
          make<is_dense>(quantizer, raw, scales, rows, above, parts);
        } else {
          make<false>(quantizer, raw, scales, rows, above, parts);
        }
      } else {
        left |= bit;
      }
      if constexpr (two_ahead) {
        raw = next;
        load(next, from, group + 2 * warps);
      } else if (group + warps < at.groups) {
        load(raw, from, group + warps);
      }
      const std::uint8_t* of_group = x + group * group_bytes_x;
      if constexpr (is_staged) {
        begin_copy(at, scratch, pipeline, image_number, group + (stages - 1) * warps);
        const int stage = pipeline.done % stages;
        of_group = stages_of(at, scratch).group[stage] + 8 * pair * at.lane;
        CudaUnit::barrier_wait(&scratch.full[at.warp][stage], pipeline.done / stages & 1);
      }
      if (all_fit) {
#pragma unroll
        for (int i = 0; i < group_blocks_k; ++i) {
          if (i + steps_ahead < group_blocks_k)
            load_step(b[i + steps_ahead], of_group, i + steps_ahead);
#pragma unroll
          for (int j = 0; j < ColumnTiles; ++j) {
            const Columns& columns = b[i][j / pair];
            const int h = j % pair;
            Atom::multiply_add(sums[j], parts[i][0], parts[i][1],
                               {{columns.w[2 * h], columns.w[2 * h + 1]}});
          }
        }
      }
      if constexpr (is_staged) {
        __syncwarp();
        if (at.lane == 0) {
          CudaUnit::barrier_arrive(&scratch.empty[at.warp][pipeline.done % stages]);
        }
        ++pipeline.done;
      }
    }
    return left;
  }

  /// What the first kernel has found of the rows of x.
  __device__ void load_states(const Place& at, Scratch& scratch) const {
    const SliceRow* states =
        p.elements.states + (p.x_batch == 1 ? 0 : at.batch) * p.elements.rows() + at.x_row;
    for (int i = at.thread; i < x_tile; i += threads()) {
      const SliceRow state = states[i];
      scratch.x[i] = state;
      if (state.images > 1) atomicMax(&scratch.images, static_cast<int>(state.images));
    }
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
    Tile& tile = scratch.tile(at.tile);
    const QuadQuantizer quantizer(p.rule);
    const std::uint8_t* x = image(at, image_number);
    // A lane's part of each step, a byte for a scale: no_scale where there is nothing to multiply.
    constexpr int no_scale = 255;
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
                  ? scale_of_codes(*p.y.matrix.scales.at(at.batch, y_row(at, second), block),
                                   any != 0)
                  : QuadQuantizer::empty;
        }
      }
#pragma unroll
      for (int second = 0; second < 2; ++second) {
        const int row = Atom::operand_row(at.lane, second), found = scale[second];
        if (found >= 0) {
          atomicMin(&tile.lo[row], found);
          atomicMax(&tile.hi[row], found);
        } else if (found == QuadQuantizer::not_a_number) {
          atomicMax(&tile.hi[row], nan_hi);
        }
        scales[second] =
            scales[second] >> 8 | static_cast<std::uint32_t>(found < 0 ? no_scale : found) << 24;
      }
    }
    for (;;) {
      // The least scales that are left: of a quad's lanes together.
      int base[2];
      Atom::Part parts[group_blocks_k][2];
      bool is_any = false;
#pragma unroll
      for (int second = 0; second < 2; ++second) {
        std::uint32_t least = __vminu4(scales[second], scales[second] >> 16);
        least = min(least & 0xFFu, least >> 8 & 0xFFu);
        least = min(least, CudaUnit::from_lane_xor(least, 1));
        least = min(least, CudaUnit::from_lane_xor(least, 2));
        base[second] = static_cast<int>(least);
        is_any = is_any || base[second] != no_scale;
      }
      if (!CudaUnit::any_lane(is_any)) return;
#pragma unroll
      for (int i = 0; i < group_blocks_k; ++i) {
        const int block = group_blocks_k * group + (Form == SliceForm::blocks ? at.part : i);
#pragma unroll
        for (int second = 0; second < 2; ++second) {
          const int scale = static_cast<int>(scales[second] >> (8 * i) & 0xFFu);
          const int known = scale == no_scale ? QuadQuantizer::empty : scale;
          const Words words = eight_of(at, block, second, i);
          parts[i][second] = is_dense ? quantizer.elements(words, known, base[second])
                                      : expand_eight(words.w[3], known, base[second]);
          if (scale <= base[second] + Atom::max_shift) {
            scales[second] |= std::uint32_t{no_scale} << (8 * i);
          }
        }
      }
#pragma unroll 1
      for (int j = 0; j < ColumnTiles; ++j) {
        std::int32_t found[Atom::values] = {};
#pragma unroll
        for (int i = 0; i < group_blocks_k; ++i) {
          const uint2 b = *reinterpret_cast<const uint2*>(
              x + (group_blocks_k * group + i) * (x_tile * block_size) +
              j / pair * (8 * pair * 32) + 8 * (j % pair));
          Atom::multiply_add(found, parts[i][0], parts[i][1], {{b.x, b.y}});
        }
#pragma unroll
        for (int v = 0; v < Atom::values; ++v) {
          const int col = Atom::cols * j + Atom::col_of(at.lane, v);
          const SliceRow& state = scratch.x[col];
          if (found[v] == 0 || image_number >= state.images) continue;
          atomicAdd(&tile.rest[col][Atom::row_of(at.lane, v)],
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
      const CodesMap& codes = p.y.matrix.codes;
      return load_bytes(codes.at(at.batch, row, block) + 4 * eighth * codes.byte, codes.byte, 4);
    }
  }

  // ---------------------------------------------------------------------------- results

  /// Adds a warp's sums to the block's, and what it knows of its rows.
  __device__ void leave(const Place& at, Tile& tile, const Rows& rows,
                        const std::int32_t (&sums)[ColumnTiles][Atom::values]) const {
#pragma unroll
    for (int j = 0; j < ColumnTiles; ++j) {
#pragma unroll
      for (int v = 0; v < Atom::values; ++v) {
        add_shared(&tile.sums[Atom::cols * j + Atom::col_of(at.lane, v)][Atom::row_of(at.lane, v)],
                   sums[j][v]);
      }
    }
    // In the other forms all lanes of a quad have the same.
    if ((Form == SliceForm::blocks || at.part == 0) && rows.hi != 0) {
#pragma unroll
      for (int second = 0; second < 2; ++second) {
        const int row = Atom::operand_row(at.lane, second);
        atomicMin(&tile.lo[row], static_cast<int>(rows.lo >> (16 * second) & 0xFFFFu) - bias);
        atomicMax(&tile.hi[row], static_cast<int>(rows.hi >> (16 * second) & 0xFFFFu) - bias);
      }
    }
  }
  /// What the block's sums count.
  __device__ static bool is_common(int unit) { return unit >= least_unit && unit <= largest_unit; }
  __device__ int y_unit(const Tile& tile, int row) const {
    const int below = p.elements.groups > warps ? 1 : 0;
    return min(max(tile.base[row] - below, least_base), most_base) - bias;
  }
  /// Whether the thread sees a row that is not plain.
  __device__ bool sees_special(const Place& at, const Scratch& scratch) const {
    bool is_special = false;
    for (int i = at.thread; i < x_tile; i += threads()) {
      const SliceRow& x = scratch.x[i];
      is_special = is_special || x.spread < 0 || x.images != 1 || !is_common(x.unit[0]);
    }
    for (int i = at.thread; i < together * y_tile; i += threads()) {
      is_special = is_special || !is_common(y_unit(scratch.tile(i / y_tile), i % y_tile));
    }
    return is_special;
  }

  /// An output of the block.
  struct Output {
    int tile, col, row;  ///< the row of the tile
    int x, y;            ///< rows of the operands
    bool is_there;
  };
  __device__ Output output_of(const GridItem& item, int i) const {
    Output output;
    output.row = i % y_tile;
    output.col = i / y_tile % x_tile;
    output.tile = i / (y_tile * x_tile);
    output.x = x_tile * item.y + output.col;
    output.y = y_tile * (item.x * together + output.tile) + output.row;
    output.is_there = output.x < p.x_rows && output.y < p.y_rows;
    return output;
  }
  __device__ int outputs() const { return together * x_tile * y_tile; }

  /// Two rows of y at a time, all of them plain bf16 that int32 sums hold.
  __device__ void store_plain(int thread, const GridItem& item, const Scratch& scratch) const {
    const Epilogue& e = p.epilogue;
#pragma unroll 1
    for (int i = 2 * thread; i < outputs(); i += 2 * threads()) {
      const Output at = output_of(item, i);
      if (!at.is_there) continue;
      const auto power = [](int unit) {  // 2^(unit - 128)
        return __uint_as_float(static_cast<std::uint32_t>(unit - 1) << 23);
      };
      const Tile& tile = scratch.tile(at.tile);
      const float unit_x = power(scratch.x[at.col].unit[0]);
      const int2 sum = *reinterpret_cast<const int2*>(&tile.sums[at.col][at.row]);
      // The conversion is the one rounding: powers of two change no bit of a normal number.
      const float low = __int2float_rn(sum.x) * unit_x * power(y_unit(tile, at.row));
      const float high = __int2float_rn(sum.y) * unit_x * power(y_unit(tile, at.row + 1));
      *reinterpret_cast<std::uint32_t*>(static_cast<std::uint16_t*>(e.c) + item.z * e.batch +
                                        at.x * e.row + at.y) = bf16_pair(low, high);
    }
  }

  /// The block's int32 sums become zeros, added to those in absolute units.
  __device__ void add_to_rest(int thread, const GridItem& item, Scratch& scratch,
                              int image_number) const {
    for (int i = thread; i < outputs(); i += threads()) {
      const Output at = output_of(item, i);
      Tile& tile = scratch.tile(at.tile);
      const SliceRow& x = scratch.x[at.col];
      double& rest = tile.rest[at.col][at.row];
      if (image_number == 0) rest = 0;
      if (image_number < x.images) {
        rest += __int2double_rn(tile.sums[at.col][at.row]) * power_of_two(y_unit(tile, at.row)) *
                power_of_two(x.unit[image_number]);
      }
      tile.sums[at.col][at.row] = 0;
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
  __device__ void store_any(int thread, const GridItem& item, const Scratch& scratch) const {
    std::uint64_t found[tier_count] = {};
#pragma unroll 1
    for (int i = thread; i < outputs(); i += threads()) {
      const Output at = output_of(item, i);
      if (!at.is_there) continue;
      const Tile& tile = scratch.tile(at.tile);
      const SliceRow& x = scratch.x[at.col];
      const int lo = tile.lo[at.row], hi = tile.hi[at.row];
      const int spread_y = hi >= nan_hi ? -1 : lo == no_lo ? 0 : hi - lo;
      const Tier tier = tier_of_output(x.spread, spread_y);
      std::uint32_t product = f32_nan;
      if (tier != Tier::automatic) {
        // The conversion is the one rounding, and the definition's.
        product =
            tier != Tier::wide && x.images != 0 && x.spread + spread_y + p.sum_bits <= window_bits
                ? __float_as_uint(__double2float_rn(tile.rest[at.col][at.row]))
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
  __device__ Block block_of(const SliceSide& side, int batch, int row, int block) const {
    Block result;
    if (side.is_dense) {
      alignas(16) std::uint8_t codes[block_bytes];
      const BlockResult made = CudaQuantizeAtom::quantize<BF16Format>(
          side.dense.at(batch, row, 2 * block_size * std::int64_t{block}), codes, p.rule);
      memcpy(result.codes.word, codes, sizeof(codes));
      result.scale = made.scale;
    } else {
      const CodesMap& codes = side.matrix.codes;
      result.codes = load_block(codes, codes.at(batch, row, block));
      result.scale = *side.matrix.scales.at(batch, row, block);
    }
    return result;
  }
  /// An output's sum in as many bits as it can have.
  __device__ __noinline__ std::uint32_t wide_product(int in_batch, int x_row, int y_row_at) const {
    WideSum sum;
    for (int k = 0; k < p.blocks; ++k) {
      const Block a = block_of(p.x, in_batch, x_row, k);
      const Block b = block_of(p.y, in_batch, y_row_at, k);
      sum.add(dot_blocks(a.codes, b.codes), a.scale + b.scale);
    }
    return sum.round(unit_exponent(0, 0));
  }

  // ---------------------------------------------------------------------------- all of it

  /// Before anything is added. A barrier.
  __device__ void clear(const Place& at, Scratch& scratch) const {
    for (int t = 0; t < together; ++t) {
      Tile& tile = scratch.tile(t);
      for (int i = at.thread; i < x_tile * sums_pitch / 4; i += threads()) {
        reinterpret_cast<int4*>(tile.sums)[i] = make_int4(0, 0, 0, 0);
      }
      if (at.thread < y_tile) {
        tile.base[at.thread] = most_base;
        tile.lo[at.thread] = no_lo;
        tile.hi[at.thread] = 0;
      }
    }
    if (at.thread == 0) {
      scratch.images = 1;
      for (int i = 0; is_staged && i < warps * stages; ++i) {
        CudaUnit::barrier_init(&scratch.full[0][0] + i, 1);
        CudaUnit::barrier_init(&scratch.empty[0][0] + i, together);
      }
      if (is_staged) CudaUnit::barriers_made();
    }
    __syncthreads();
  }
  __device__ void run(int thread, Scratch& scratch, const GridItem& item) const {
    CudaUnit::dependents_may_begin();
    const Place at = place_of(thread, item);
    const QuadQuantizer quantizer(p.rule);
    Rows rows{0, 0xFFFFFFFFu, 0};
    Pipeline pipeline;
#pragma unroll 1
    for (int image_number = 0;; ++image_number) {
      std::int32_t sums[ColumnTiles][Atom::values] = {};
      std::uint64_t left = multiply(at, scratch, quantizer, image_number, rows, pipeline, sums);
      leave(at, scratch.tile(at.tile), rows, sums);
      __syncthreads();  // states of x are there
      if (image_number == 0) {
        const bool is_special = !p.is_plain_bf16 || p.counts != nullptr ||
                                p.minimum_tier > Tier::aligned || left != 0 ||
                                sees_special(at, scratch);
        if (!CudaUnit::barrier_any(is_special)) {
          store_plain(thread, item, scratch);
          return;
        }
      }
      add_to_rest(thread, item, scratch, image_number);
      __syncthreads();
      for (int group = at.warp; left != 0; group += warps, left >>= 1) {
        if ((left & 1) != 0) add_rare(thread, &scratch, item, group, image_number);
      }
      __syncthreads();
      if (image_number + 1 >= scratch.images) break;
    }
    store_any(thread, item, scratch);
  }
};

#endif

}  // namespace KokkosMX::Impl

#endif
