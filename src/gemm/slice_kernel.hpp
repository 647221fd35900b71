// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_SLICE_KERNEL_HPP
#define KOKKOSMX_SRC_GEMM_SLICE_KERNEL_HPP

/// \file slice_kernel.hpp
/// The GEMM kernel of CUDA for products of few rows: one launch from dense operands, or codes, to
/// C.
///
/// x is the operand with fewer rows, y the other. A cluster of blocks makes the outputs of a tile
/// of x and some tiles of y, one after the other; each of its blocks has a slice of K. The block's
/// slice of x lies in shared memory as int8, rows aligned to their least scale there. A warp has 16
/// rows of y, and of the slice every so many groups of 128 of K; a lane's part of y comes to shared
/// memory as it is, a group ahead. A group's rows are aligned to the least scale that they have in
/// it, so its int32 sums have units of their own: they are added as float64, which is exact while
/// all scales of the two rows lie in a window (53 bits), in any order, so that warps and blocks
/// need to agree on nothing. The end is one rounding to float32.
///
/// Blocks of a group that lie more than 3 scales above the least are multiplied after the others;
/// so are those of x. Outputs that the window does not hold are summed one by one.

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

/// ColumnTiles: tiles of 8 rows of x.
template <int ColumnTiles, SliceForm Form>
struct SliceGemm {
  SliceProblem p;
  int split;         ///< blocks of a cluster
  int slice_groups;  ///< of 128 of K, in a block's slice
  int log_warps_k;   ///< of warps that share a slice
  int turns;         ///< tiles of y of a cluster

  using Atom = MmaInt8Atom;
  static constexpr int log_warps = 3, warps = 1 << log_warps, most_threads = 32 * warps;
  static constexpr int groups_together = ColumnTiles > 4 ? 1 : 2;
  static constexpr int x_tile = Atom::cols * ColumnTiles;
  static constexpr int log_x_tile = ColumnTiles == 1   ? 3
                                    : ColumnTiles == 2 ? 4
                                    : ColumnTiles == 4 ? 5
                                                       : 6;
  static_assert(x_tile == 1 << log_x_tile);
  static constexpr int group_blocks_k = 4;
  static constexpr int most_split = 8, most_slice_groups = warps;
  static constexpr int most_blocks = most_split * most_slice_groups * group_blocks_k;
  static constexpr int most_y_tile = Atom::rows * warps;
  static constexpr int most_rows = most_y_tile + x_tile;  ///< y's, then x's
  /// Words that a lane copies for a group of y, and for x: half a warp takes a row's group at a
  /// time.
  static constexpr int y_copies = Form == SliceForm::dense ? 2 * group_blocks_k : 2;
  static constexpr int half_warps = 2 * warps;
  static constexpr int no_lo = 511, nan_hi = 4096;
  /// Bits of a float64 sum.
  static constexpr int window_bits = 53;

  struct Scratch {
    /// The least and the largest scale of a row's slice, over blocks that are not zeros; no_lo and
    /// 0 where there is none, nan_hi where one is 255.
    std::int32_t lo[most_rows], hi[most_rows];
    /// The same of every block's slice: lo in the low half.
    std::uint32_t slices[most_split][most_rows];
    /// Of whole rows: the spread of the scales, negative where one is 255.
    std::int16_t spread[most_rows];
    std::int16_t x_scale[x_tile][most_slice_groups * group_blocks_k];
    std::uint32_t x_bands[4];
  };
  static_assert(sizeof(Scratch) % 16 == 0);

  int threads() const { return most_threads; }
  KOKKOS_INLINE_FUNCTION int log_y_tile() const { return 4 + log_warps - log_warps_k; }
  KOKKOS_INLINE_FUNCTION int outputs() const { return x_tile << log_y_tile(); }
  /// Of x's elements in shared memory. Rows begin where their words lie in different banks.
  KOKKOS_INLINE_FUNCTION int x_pitch() const {
    return slice_groups * group_blocks_k * block_size + (Form == SliceForm::blocks ? 8 : 32);
  }
  KOKKOS_INLINE_FUNCTION int x_turns() const {
    return (x_tile * slice_groups + half_warps - 1) / half_warps;
  }
  /// Words of one of two stages: a group of y; x comes into the second one's place.
  KOKKOS_INLINE_FUNCTION int stage_words() const {
    return x_turns() > y_copies ? x_turns() : y_copies;
  }
  /// Of a warp's sums, from one row of x to the next.
  static constexpr int sums_pitch = Atom::rows + 2;
  /// Stages, or all warps' sums.
  KOKKOS_INLINE_FUNCTION int stage_bytes() const {
    constexpr int sums = 8 * warps * x_tile * sums_pitch;
    const int stages = 32 * stage_words() * most_threads;
    return stages > sums ? stages : sums;
  }
  int shared_bytes() const {
    return static_cast<int>(sizeof(Scratch)) + stage_bytes() + 8 * (outputs() + most_split) +
           x_tile * x_pitch();
  }
  static constexpr int most_shared_bytes = 227 * 1024;

  KOKKOS_FUNCTION void operator()([[maybe_unused]] const DeviceGroup& group,
                                  [[maybe_unused]] unsigned char* memory,
                                  [[maybe_unused]] const ClusterItem& item) const {
    KOKKOS_IF_ON_DEVICE((run(group.rank(), memory, item);))
  }

 private:
  /// A block and its threads.
  struct Place {
    int batch, x_row, rank, first_block, groups;  ///< groups of the block's slice
    int thread, warp, warp_k, warp_y, lane, part;
    Scratch* scratch;
    Words* stages;  ///< [2][stage_words()][threads], each thread's own
    double* sums;   ///< [warps][x_tile][sums_pitch], in the same place
    /// Sums that this block rounds, of every block of the cluster: [split][share()].
    double* shares;
    std::uint8_t* elements;  ///< of x
  };

  __device__ Words* staged(const Place& at, int stage, int word) const {
    return at.stages + (stage * stage_words() + word) * most_threads + at.thread;
  }
  /// 16 bytes that lie together, for the thread itself.
  __device__ static void copy(const SliceSide& side, Words* to, const std::uint8_t* from,
                              bool is_there) {
    if (side.is_aligned) {
      CudaUnit::copy_16(to, from, is_there);
    } else {
      *to = is_there ? load_bytes(from, 1, 16) : Words{};
    }
  }
  __device__ __noinline__ static Words load_bytes(const std::uint8_t* from, std::int64_t stride,
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

  /// What a scale byte and whether any code is nonzero make of a block.
  __device__ static int scale_of_codes(int scale, bool is_nonzero) {
    return scale == 255 ? QuadQuantizer::not_a_number : (is_nonzero ? scale : QuadQuantizer::empty);
  }
  /// Codes as int8, times 2^(scale - base), zeros where that is not 1, 2, 4 or 8.
  __device__ static Atom::Part expand(std::uint32_t codes, int scale, int base) {
    const int shift = scale - base;
    const bool is_in = scale >= 0 && static_cast<unsigned>(shift) <= Atom::max_shift;
    const std::uint32_t low = is_in ? halves_low << (shift & 3) : 0u;
    const std::uint32_t high = is_in ? halves_high << (shift & 3) : 0u;
    return {{expand_codes(codes, low, high), expand_codes(codes >> 16, low, high)}};
  }

  // ---------------------------------------------------------------------------- x

  /// The row, and the block of the slice, of a quad in a turn.
  struct XTask {
    int row, block;
    bool is_task;
  };
  __device__ XTask x_task(const Place& at, int turn) const {
    const int task = turn * half_warps + (at.thread >> 4);
    const int row = task & (x_tile - 1), group = task >> log_x_tile;
    return {row, group_blocks_k * group + (at.lane >> 2 & 3), group < slice_groups};
  }
  /// Begins to copy a lane's part of x: eight numbers of a block, or eight codes in the last word.
  __device__ void copy_x(const Place& at) const {
#pragma unroll 1
    for (int i = 0; i < x_turns(); ++i) {
      const XTask task = x_task(at, i);
      const int row = at.x_row + task.row, block = at.first_block + task.block;
      const bool is_there = task.is_task && row < p.x_rows && block < p.blocks;
      const int from_row = is_there ? row : 0, from_block = is_there ? block : 0;
      Words* to = staged(at, 1, i);
      if (p.x.is_dense) {
        copy(p.x, to,
             p.x.dense.at(at.batch, from_row,
                          2 * block_size * std::int64_t{from_block} + 16 * at.part),
             is_there);
      } else {
        const CodesMap& codes = p.x.matrix.codes;
        *to = is_there ? load_bytes(codes.at(at.batch, row, block) + 4 * at.part * codes.byte,
                                    codes.byte, 4)
                       : Words{};
      }
    }
  }
  /// Finds the scales of x and notes them.
  __device__ void find_x_scales(const Place& at, const QuadQuantizer& quantizer) const {
#pragma unroll 1
    for (int i = 0; i < x_turns(); ++i) {
      const XTask task = x_task(at, i);
      const Words words = *staged(at, 1, i);
      int scale, unused;
      if (p.x.is_dense) {
        quantizer.scales(words, Words{}, scale, unused);
      } else {
        std::uint32_t any = words.w[3] & 0x77777777u;
        any |= CudaUnit::from_lane_xor(any, 1);
        any |= CudaUnit::from_lane_xor(any, 2);
        const int row = at.x_row + task.row, block = at.first_block + task.block;
        const bool is_there = task.is_task && row < p.x_rows && block < p.blocks;
        scale = is_there ? scale_of_codes(*p.x.matrix.scales.at(at.batch, row, block), any != 0)
                         : QuadQuantizer::empty;
      }
      // The largest of both halves: no_lo - lo, and hi.
      std::uint32_t most =
          scale >= 0
              ? static_cast<std::uint32_t>(no_lo - scale) << 16 | static_cast<std::uint32_t>(scale)
          : scale == QuadQuantizer::not_a_number ? static_cast<std::uint32_t>(nan_hi)
                                                 : 0u;
      most = __vmaxu2(most, CudaUnit::from_lane_xor(most, 4));
      most = __vmaxu2(most, CudaUnit::from_lane_xor(most, 8));
      if (!task.is_task) continue;
      if ((at.lane & 15) == 0 && most != 0) {
        atomicMin(&at.scratch->lo[most_y_tile + task.row], no_lo - static_cast<int>(most >> 16));
        atomicMax(&at.scratch->hi[most_y_tile + task.row], static_cast<int>(most & 0xFFFFu));
      }
      if (at.part == 0)
        at.scratch->x_scale[task.row][task.block] = static_cast<std::int16_t>(scale);
    }
  }
  /// x's elements of a band, from where copy_x has put it, into shared memory.
  __device__ void make_x(const Place& at, const QuadQuantizer& quantizer, int band) const {
#pragma unroll 1
    for (int i = 0; i < x_turns(); ++i) {
      const XTask task = x_task(at, i);
      if (!task.is_task) break;
      const Words words = *staged(at, 1, i);
      const int scale = at.scratch->x_scale[task.row][task.block];
      const int base = at.scratch->lo[most_y_tile + task.row] + 4 * band;
      const Atom::Part part =
          p.x.is_dense ? quantizer.elements(words, scale, base) : expand(words.w[3], scale, base);
      *reinterpret_cast<uint2*>(at.elements + task.row * x_pitch() + block_size * task.block +
                                8 * at.part) = make_uint2(part.word[0], part.word[1]);
    }
  }
  /// Bit b: x holds a block in band b. Of 64 bands, in two words.
  __device__ void find_x_bands(const Place& at) const {
#pragma unroll 1
    for (int i = 0; i < x_turns(); ++i) {
      const XTask task = x_task(at, i);
      if (!task.is_task || at.part != 0) continue;
      const int scale = at.scratch->x_scale[task.row][task.block];
      if (scale < 0) continue;
      const int band = (scale - at.scratch->lo[most_y_tile + task.row]) >> 2;
      atomicOr(&at.scratch->x_bands[band >> 5], 1u << (band & 31));
    }
  }

  // ---------------------------------------------------------------------------- y

  /// The row of y that a lane holds, or the last one.
  __device__ int y_row(const Place& at, int first, int second) const {
    const int row = first + Atom::rows * at.warp_y + Atom::operand_row(at.lane, second);
    return row < p.y_rows ? row : p.y_rows - 1;
  }
  /// Begins to copy a lane's part of a group.
  __device__ void copy_y(const Place& at, int first, int group, int stage) const {
    const int block = at.first_block + group_blocks_k * group;
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      const int row = y_row(at, first, second);
      if constexpr (Form == SliceForm::dense) {
        const unsigned char* from =
            p.y.dense.at(at.batch, row, 2 * block_size * std::int64_t{block} + 16 * at.part);
#pragma unroll
        for (int i = 0; i < group_blocks_k; ++i) {
          const bool is_there = block + i < p.blocks;
          copy(p.y, staged(at, stage, 2 * i + second),
               is_there ? from + 2 * block_size * i : p.y.dense.data, is_there);
        }
      } else {
        const CodesMap& codes = p.y.matrix.codes;
        const int own = Form == SliceForm::blocks ? block + at.part : block;
        const bool is_there = own < p.blocks;
        copy(p.y, staged(at, stage, second),
             codes.at(at.batch, row, is_there ? own : 0) +
                 (Form == SliceForm::blocks ? 0 : 16 * at.part),
             is_there);
      }
    }
  }
  /// The scale bytes of a lane's own block, of both rows, negative past the end.
  struct OwnScales {
    int of[2];
  };
  __device__ OwnScales own_scales(const Place& at, int first, int group) const {
    OwnScales own{{-1, -1}};
    const int block = at.first_block + group_blocks_k * group + at.part;
    if (Form != SliceForm::dense && block < p.blocks) {
#pragma unroll
      for (int second = 0; second < 2; ++second) {
        own.of[second] = *p.y.matrix.scales.at(at.batch, y_row(at, first, second), block);
      }
    }
    return own;
  }

  /// Scales of a lane's part: of two rows, for four steps of 32 of K, a byte each; no_scale where
  /// there is nothing to multiply.
  struct YScales {
    std::uint32_t of[2];
  };
  static constexpr int no_scale = 255;

  /// What a lane knows of its two rows.
  struct Rows {
    int lo[2], hi[2];
  };
  /// Notes a block's scale, and returns it as YScales has it.
  __device__ static std::uint32_t note(int scale, int second, Rows& rows) {
    if (scale >= 0) {
      rows.lo[second] = min(rows.lo[second], scale);
      rows.hi[second] = max(rows.hi[second], scale);
      return static_cast<std::uint32_t>(scale);
    }
    if (scale == QuadQuantizer::not_a_number) rows.hi[second] = nan_hi;
    return no_scale;
  }

  /// Finds them; words of codes are brought into their order: word i of step i.
  __device__ YScales find_y_scales(const Place& at, const QuadQuantizer& quantizer, int stage,
                                   const OwnScales& own, Words (&codes)[2], Rows& rows) const {
    YScales scales{{0, 0}};
    if constexpr (Form == SliceForm::dense) {
#pragma unroll 1
      for (int i = 0; i < group_blocks_k; ++i) {
        int scale[2];
        quantizer.scales(*staged(at, stage, 2 * i), *staged(at, stage, 2 * i + 1), scale[0],
                         scale[1]);
#pragma unroll
        for (int second = 0; second < 2; ++second) {
          scales.of[second] = scales.of[second] >> 8 | note(scale[second], second, rows) << 24;
        }
      }
    } else {
#pragma unroll
      for (int second = 0; second < 2; ++second) {
        const Words from = *staged(at, stage, second);
        if constexpr (Form == SliceForm::blocks) {
          const std::uint32_t any = (from.w[0] | from.w[1] | from.w[2] | from.w[3]) & 0x77777777u;
          const int scale =
              own.of[second] < 0 ? QuadQuantizer::empty : scale_of_codes(own.of[second], any != 0);
          scales.of[second] = note(scale, second, rows) * 0x01010101u;
          codes[second] = from;
        } else {
          // Byte 4 j + b of a group is byte j of block b.
          const std::uint32_t low_01 = __byte_perm(from.w[0], from.w[1], 0x5140);
          const std::uint32_t low_23 = __byte_perm(from.w[2], from.w[3], 0x5140);
          const std::uint32_t high_01 = __byte_perm(from.w[0], from.w[1], 0x7362);
          const std::uint32_t high_23 = __byte_perm(from.w[2], from.w[3], 0x7362);
          codes[second] = {
              {__byte_perm(low_01, low_23, 0x5410), __byte_perm(low_01, low_23, 0x7632),
               __byte_perm(high_01, high_23, 0x5410), __byte_perm(high_01, high_23, 0x7632)}};
          std::uint32_t any = 0;
#pragma unroll
          for (int i = 0; i < group_blocks_k; ++i) {
            any |= (codes[second].w[i] & 0x77777777u) != 0 ? 1u << i : 0u;
          }
          any |= CudaUnit::from_lane_xor(any, 1);
          any |= CudaUnit::from_lane_xor(any, 2);
#pragma unroll
          for (int i = 0; i < group_blocks_k; ++i) {
            const auto own_scale = static_cast<int>(CudaUnit::from_lane(
                static_cast<std::uint32_t>(own.of[second]), (at.lane & 28) + i));
            const int scale = own_scale < 0 ? QuadQuantizer::empty
                                            : scale_of_codes(own_scale, (any >> i & 1u) != 0);
            scales.of[second] = scales.of[second] >> 8 | note(scale, second, rows) << 24;
          }
        }
      }
    }
    return scales;
  }

  /// Adds a group's product to a warp's sums, in units of x's least scale of its band.
  __device__ void add_group(const Place& at, const QuadQuantizer& quantizer, int group, int stage,
                            const OwnScales& own, Rows& rows,
                            double (&sums)[ColumnTiles][Atom::values]) const {
    Words codes[2];
    YScales scales = find_y_scales(at, quantizer, stage, own, codes, rows);
    const std::uint8_t* from = at.elements + (at.lane >> 2) * x_pitch() +
                               group_blocks_k * block_size * group +
                               (Form == SliceForm::blocks ? block_size : 8) * at.part;
    do {
      // The least scales that are left: of a quad's lanes together.
      int base[2];
#pragma unroll
      for (int second = 0; second < 2; ++second) {
        const std::uint32_t least = __vminu4(scales.of[second], scales.of[second] >> 16);
        base[second] = static_cast<int>(min(least & 0xFFu, least >> 8 & 0xFFu));
      }
      if constexpr (Form == SliceForm::blocks) {
        std::uint32_t both = static_cast<std::uint32_t>(base[0] | base[1] << 16);
        both = __vminu2(both, CudaUnit::from_lane_xor(both, 1));
        both = __vminu2(both, CudaUnit::from_lane_xor(both, 2));
        base[0] = static_cast<int>(both & 0xFFFFu);
        base[1] = static_cast<int>(both >> 16);
      }
      std::int32_t found[ColumnTiles][Atom::values] = {};
#pragma unroll 1
      for (int i = 0; i < group_blocks_k; ++i) {
        Atom::Part part[2];
#pragma unroll
        for (int second = 0; second < 2; ++second) {
          // Bytes and words move round: registers have no index.
          const int scale = static_cast<int>(scales.of[second] & 0xFFu);
          const int known = scale == no_scale ? QuadQuantizer::empty : scale;
          if constexpr (Form == SliceForm::dense) {
            part[second] =
                quantizer.elements(*staged(at, stage, 2 * i + second), known, base[second]);
          } else {
            const std::uint32_t word = codes[second].w[0];
#pragma unroll
            for (int w = 0; w < 3; ++w) codes[second].w[w] = codes[second].w[w + 1];
            codes[second].w[3] = word;
            part[second] = expand(word, known, base[second]);
          }
          const bool is_done = scale <= base[second] + Atom::max_shift;
          scales.of[second] =
              scales.of[second] >> 8 | static_cast<std::uint32_t>(is_done ? no_scale : scale) << 24;
        }
        const std::uint8_t* column = from + (Form == SliceForm::blocks ? 8 : block_size) * i;
#pragma unroll
        for (int j = 0; j < ColumnTiles; ++j) {
          const uint2 words = *reinterpret_cast<const uint2*>(column + j * Atom::cols * x_pitch());
          Atom::multiply_add(found[j], part[0], part[1], {{words.x, words.y}});
        }
      }
      // 2^(base - 128); a row without blocks has sums of zero.
      const double unit[2] = {power_of_two(base[0]), power_of_two(base[1])};
#pragma unroll
      for (int j = 0; j < ColumnTiles; ++j) {
#pragma unroll
        for (int v = 0; v < Atom::values; ++v) {
          sums[j][v] = __fma_rn(__int2double_rn(found[j][v]), unit[v >> 1], sums[j][v]);
        }
      }
    } while (CudaUnit::any_lane((scales.of[0] & scales.of[1]) != 0xFFFFFFFFu));
  }
  __device__ static double power_of_two(int scale) {
    return __hiloint2double((scale + 1023 - 128) << 20, 0);
  }

  // ---------------------------------------------------------------------------- results

  /// A warp's sums, in absolute units, and what it knows of its rows.
  __device__ void leave_sums(const Place& at, const Rows& rows,
                             const double (&sums)[ColumnTiles][Atom::values]) const {
#pragma unroll
    for (int j = 0; j < ColumnTiles; ++j) {
      double* to = at.sums + at.warp * (x_tile * sums_pitch);
#pragma unroll
      for (int v = 0; v < Atom::values; ++v) {
        const int col = Atom::cols * j + Atom::col_of(at.lane, v);
        const int lo = at.scratch->lo[most_y_tile + col];
        to[col * sums_pitch + Atom::row_of(at.lane, v)] =
            sums[j][v] * power_of_two(lo == no_lo ? 127 : lo);
      }
    }
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      const int row = Atom::rows * at.warp_y + Atom::operand_row(at.lane, second);
      // In the other forms all lanes of a quad have the same.
      if (Form == SliceForm::blocks || at.part == 0) {
        atomicMin(&at.scratch->lo[row], rows.lo[second]);
        atomicMax(&at.scratch->hi[row], rows.hi[second]);
      }
    }
  }

  /// Outputs of a block that each block of the cluster rounds.
  __device__ int share() const { return split == 1 ? outputs() : (outputs() + split - 1) / split; }

  /// Adds the warps' sums and hands them, and the rows' slices, to those that round them.
  __device__ void hand_out(const Place& at) const {
    const Scratch& scratch = *at.scratch;
    const int y_tile = 1 << log_y_tile();
    for (int i = at.thread; i < y_tile + x_tile; i += most_threads) {
      const int row = i < y_tile ? i : most_y_tile + i - y_tile;
      const std::uint32_t slice = static_cast<std::uint32_t>(scratch.lo[row]) |
                                  static_cast<std::uint32_t>(scratch.hi[row]) << 16;
      for (int r = 0; r < split; ++r) {
        CudaUnit::cluster_store(CudaUnit::cluster_address(&scratch.slices[at.rank][row], r), slice);
      }
    }
    const int each = share(), warps_k = 1 << log_warps_k;
    int owner = 0, last = each;
#pragma unroll 1
    for (int i = at.thread; i < outputs(); i += most_threads) {
      for (; i >= last; last += each) ++owner;
      const int col = i >> log_y_tile(), row = i & (y_tile - 1);
      const double* from = at.sums + (row >> 4 << log_warps_k) * (x_tile * sums_pitch) +
                           col * sums_pitch + (row & 15);
      double sum = 0;
      for (int k = 0; k < warps_k; ++k) sum += from[k * (x_tile * sums_pitch)];
      const double* to = at.shares + at.rank * each + (i - (last - each));
      CudaUnit::cluster_store(CudaUnit::cluster_address(to, owner),
                              Kokkos::bit_cast<std::uint64_t>(sum));
    }
  }

  /// Finds what there is to know of whole rows, from their slices.
  __device__ void merge_slices(const Place& at) const {
    Scratch& scratch = *at.scratch;
    const int y_tile = 1 << log_y_tile();
    for (int i = at.thread; i < y_tile + x_tile; i += most_threads) {
      const int row = i < y_tile ? i : most_y_tile + i - y_tile;
      int lo = no_lo, hi = 0;
      for (int r = 0; r < split; ++r) {
        const std::uint32_t slice = scratch.slices[r][row];
        lo = min(lo, static_cast<int>(slice & 0xFFFFu));
        hi = max(hi, static_cast<int>(slice >> 16));
      }
      scratch.spread[row] = static_cast<std::int16_t>(hi >= nan_hi  ? -1
                                                      : lo == no_lo ? 0
                                                                    : hi - lo);
    }
  }
  __device__ Tier tier_of_output(int spread_x, int spread_y) const {
    if (spread_x < 0 || spread_y < 0) return Tier::automatic;
    if (p.minimum_tier <= Tier::aligned && spread_x <= Atom::max_shift &&
        spread_y <= Atom::max_shift) {
      return Tier::aligned;  // K is at most 32 most_blocks
    }
    return p.minimum_tier <= Tier::window && spread_x + spread_y + p.sum_bits <= 63 ? Tier::window
                                                                                    : Tier::wide;
  }

  /// Rounds and stores this block's share of the cluster's outputs.
  __device__ void store_outputs(const Place& at, int first) const {
    const Scratch& scratch = *at.scratch;
    std::uint64_t found[tier_count] = {};
    const int each = share();
#pragma unroll 1
    for (int mine = at.thread; mine < each; mine += most_threads) {
      const int output = at.rank * each + mine;
      const int col = output >> log_y_tile(), row = output & ((1 << log_y_tile()) - 1);
      if (output >= outputs() || at.x_row + col >= p.x_rows || first + row >= p.y_rows) continue;
      double sum = 0;
      for (int r = 0; r < split; ++r) sum += at.shares[r * each + mine];
      const int spread_y = scratch.spread[row], spread_x = scratch.spread[most_y_tile + col];
      const Tier tier = tier_of_output(spread_x, spread_y);
      std::uint32_t product = f32_nan;
      if (tier != Tier::automatic) {
        // The conversion is the one rounding, and the definition's.
        product = tier != Tier::wide && spread_x + spread_y + p.sum_bits <= window_bits
                      ? Kokkos::bit_cast<std::uint32_t>(__double2float_rn(sum))
                      : wide_product(at.batch, at.x_row + col, first + row);
      }
      const int i = p.y_is_b ? at.x_row + col : first + row;
      const int j = p.y_is_b ? first + row : at.x_row + col;
      if (p.is_plain_bf16) {
        const Epilogue& e = p.epilogue;
        static_cast<std::uint16_t*>(e.c)[at.batch * e.batch + i * e.row + j * e.col] =
            f32_to_bf16(product);
      } else {
        p.epilogue(at.batch, i, j, product);
      }
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

  __device__ Place place_of(int thread, unsigned char* memory, const ClusterItem& item) const {
    Place at;
    at.batch = item.z;
    at.x_row = x_tile * item.y;
    at.rank = item.rank;
    at.first_block = item.rank * slice_groups * group_blocks_k;
    at.groups =
        min(slice_groups, (p.blocks - at.first_block + group_blocks_k - 1) / group_blocks_k);
    at.thread = thread;
    at.lane = thread & 31;
    at.part = Atom::operand_part(at.lane);
    at.warp = thread >> 5;
    at.warp_k = at.warp & ((1 << log_warps_k) - 1);
    at.warp_y = at.warp >> log_warps_k;
    at.scratch = reinterpret_cast<Scratch*>(memory);
    at.stages = reinterpret_cast<Words*>(memory + sizeof(Scratch));
    at.sums = reinterpret_cast<double*>(at.stages);
    at.shares = reinterpret_cast<double*>(memory + sizeof(Scratch) + stage_bytes());
    at.elements = reinterpret_cast<std::uint8_t*>(at.shares + outputs() + most_split);
    return at;
  }

  /// A warp's product with the block's slice of x, in units of x's least scales.
  __device__ void multiply(const Place& at, const QuadQuantizer& quantizer, int first, Rows& rows,
                           double (&sums)[ColumnTiles][Atom::values]) const {
    const int warps_k = 1 << log_warps_k;
    OwnScales own = own_scales(at, first, at.warp_k);
    int stage = 0;
#pragma unroll 1
    for (int group = at.warp_k; group < at.groups; group += warps_k) {
      OwnScales next{};
      if (group + warps_k < at.groups) {
        copy_y(at, first, group + warps_k, stage ^ 1);
        next = own_scales(at, first, group + warps_k);
      }
      CudaUnit::copies_begun();
      CudaUnit::copies_arrived<1>();
      add_group(at, quantizer, group, stage, own, rows, sums);
      own = next;
      stage ^= 1;
    }
  }

  /// Begins the first group of a tile.
  __device__ void begin(const Place& at, int first) const {
    if (at.warp_k < at.groups) copy_y(at, first, at.warp_k, 0);
    CudaUnit::copies_begun();
  }

  __device__ void run(int thread, unsigned char* memory, const ClusterItem& item) const {
    const Place at = place_of(thread, memory, item);
    Scratch& scratch = *at.scratch;
    const QuadQuantizer quantizer(p.rule);
    const int y_tile = 1 << log_y_tile();
    const auto first_of = [&](int turn) { return (item.x * turns + turn) << log_y_tile(); };
    // Of the others, first that they have begun, later that they have rounded what they were
    // handed.
    if (split > 1) CudaUnit::cluster_arrive();
    copy_x(at);
    CudaUnit::copies_begun();
    begin(at, first_of(0));
    for (int i = thread; i < most_rows; i += most_threads) {
      scratch.lo[i] = no_lo;
      scratch.hi[i] = 0;
    }
    if (thread < 4) scratch.x_bands[thread] = 0;
    __syncthreads();
    CudaUnit::copies_arrived<1>();
    find_x_scales(at, quantizer);
    __syncthreads();
    bool is_banded = false;
    for (int i = most_y_tile + thread; i < most_rows; i += most_threads) {
      const int lo = scratch.lo[i], hi = scratch.hi[i];
      if (hi < nan_hi && hi - lo > Atom::max_shift) is_banded = true;
    }
    make_x(at, quantizer, 0);
    is_banded = CudaUnit::barrier_any(is_banded);
    if (is_banded) {
      find_x_bands(at);
      __syncthreads();
    }
#pragma unroll 1
    for (int turn = 0;; ++turn) {
      const int first = first_of(turn);
      const bool is_last = turn + 1 == turns || first + y_tile >= p.y_rows;
      if (turn != 0) begin(at, first);
      Rows rows{{no_lo, no_lo}, {0, 0}};
      double sums[ColumnTiles][Atom::values] = {};
      if (is_banded) {
        // From the highest on: sums count units of the band's least scales.
        int unit = 63;
#pragma unroll 1
        for (int band = 63; band >= 0; --band) {
          if ((scratch.x_bands[band >> 5] >> (band & 31) & 1u) == 0 && band != 0) continue;
          const double factor = __hiloint2double((1023 + 4 * (unit - band)) << 20, 0);
          unit = band;
#pragma unroll
          for (int j = 0; j < ColumnTiles; ++j) {
#pragma unroll
            for (int v = 0; v < Atom::values; ++v) sums[j][v] *= factor;
          }
          CudaUnit::copies_arrived<0>();
          __syncthreads();
          copy_x(at);
          CudaUnit::copies_begun();
          CudaUnit::copies_arrived<0>();
          make_x(at, quantizer, band);
          __syncthreads();
          begin(at, first);
          multiply(at, quantizer, first, rows, sums);
        }
      } else {
        multiply(at, quantizer, first, rows, sums);
      }
      CudaUnit::copies_arrived<0>();
      __syncthreads();
      leave_sums(at, rows, sums);
      __syncthreads();
      if (split > 1) CudaUnit::cluster_wait();
      hand_out(at);
      if (split > 1) {
        CudaUnit::cluster_arrive();
        CudaUnit::cluster_wait();
      } else {
        __syncthreads();
      }
      merge_slices(at);
      __syncthreads();
      store_outputs(at, first);
      if (is_last) return;
      if (split > 1) CudaUnit::cluster_arrive();
      __syncthreads();
      for (int i = thread; i < y_tile; i += most_threads) {
        scratch.lo[i] = no_lo;
        scratch.hi[i] = 0;
      }
      __syncthreads();
    }
  }
};

#endif

}  // namespace KokkosMX::Impl

#endif
