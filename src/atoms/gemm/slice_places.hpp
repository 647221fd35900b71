// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_GEMM_SLICE_PLACES_HPP
#define KOKKOSMX_SRC_ATOMS_GEMM_SLICE_PLACES_HPP

/// \file slice_places.hpp
/// Where the slice kernels put what passes through shared memory: numbers alone, which tests of a
/// host follow through models of the instructions.

#include "mma.hpp"
#include "wgmma.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>

namespace KokkosMX::Impl {

/// How a warp finds y. dense: bf16, a quad has a block at a time. interleaved: codes by groups of 4
/// blocks, of which a lane has an eighth number from each (Tile16x128). blocks: a lane has a block.
enum class SliceForm { dense, interleaved, blocks };

/// What a lane has of a row's group of y, and in which of the group's four steps it multiplies it;
/// by its number among a quad's (MmaInt8Atom::operand_part). dense: eight numbers of block i in
/// step i. Codes: 16 bytes, whose words are two halves of four codes each.
template <SliceForm Form>
struct PartsOfY {
  static constexpr bool is_dense = Form == SliceForm::dense, is_blocks = Form == SliceForm::blocks;

  /// Where in the group it begins, where blocks of codes are block_1 bytes from each other; and how
  /// far behind that of bf16 block i is.
  KOKKOS_FORCEINLINE_FUNCTION static constexpr std::int64_t begin(int part,
                                                                  std::int64_t block_1 = 0) {
    return part * (is_blocks ? block_1 : 16);
  }
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int behind(int i) { return 2 * block_size * i; }

  /// interleaved: byte 4 j + b of a group is byte j of block b. In order, words 0 and 1 have the
  /// first and the second half of a lane's part of blocks 0 and 1, one block in each half of the
  /// word; words 2 and 3 those of blocks 2 and 3. Word i has bytes of the word with that number and
  /// the next one, by their numbers as CudaUnit::bytes_of has them.
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int ordered_from(int i) { return 2 * (i % 2); }
  KOKKOS_FORCEINLINE_FUNCTION static constexpr std::uint32_t ordered_bytes(int i) {
    return i < 2 ? 0x5140u : 0x7362u;
  }
  /// Then half h of word i is which step's, and which word of its part (MmaInt8Atom::Part).
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int step(int i, int h) {
    return is_blocks ? i : 2 * (i / 2) + h;
  }
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int half(int i, int h) {
    return is_blocks ? h : i % 2;
  }
  /// interleaved: the lane that has the scale of step i, which is block i.
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int lane_of_scale(int lane, int i) {
    return (lane & 28) + i;
  }
};

/// The elements of x in tiles of XTile rows that no matrix unit reads from shared memory
/// (SliceElements), as a lane loads them: its parts of two steps of 32 of K, 16 bytes, of a row of
/// each 8.
template <int XTile>
struct TwoStepsOfTile {
  /// Where a lane's are, of the first 8 rows; and how far behind it those of the next ones.
  KOKKOS_INLINE_FUNCTION static constexpr int begin(int pair, int lane) {
    return pair * (XTile * 2 * block_size) + 16 * lane;
  }
  KOKKOS_INLINE_FUNCTION static constexpr int behind(int tile) { return tile * (16 * 32); }
  /// The first or the second step's part.
  KOKKOS_INLINE_FUNCTION static constexpr MmaInt8Atom::Part part(const std::uint32_t (&words)[4],
                                                                 int h) {
    return {{words[2 * h], words[2 * h + 1]}};
  }
};

/// The elements of x that the warps of a group of y make themselves, in tiles of 8 rows: a lane an
/// eighth number of each block of the group, of a row of each tile that is its warp's. Two warps
/// share the tiles where there are several. ByBlocks: lanes of a quad have a block of y each,
/// rather than a quarter of each block, so that of x, too, a step has an eighth of each block.
template <int ColumnTiles, bool ByBlocks>
struct ElementsMade {
  static constexpr int blocks = Int8Images::step_blocks;
  /// Tiles of a warp, of which the lane has a row each.
  static constexpr int tiles_each = ColumnTiles > 1 ? ColumnTiles / 2 : 1;
  /// Whether they pass through shared memory: to other warps, or to other lanes of the quad.
  static constexpr bool is_passed = ColumnTiles > 1 || ByBlocks;

  /// The warp's first tile, where its rows of y are those from `below` on; and the row of x that a
  /// lane has of the tile r after it.
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int own_tile(int below) {
    return ColumnTiles > 1 ? below / MmaInt8Atom::rows * tiles_each : 0;
  }
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int own_row(int below, int lane, int r) {
    return MmaInt8Atom::cols * (own_tile(below) + r) + (lane >> 2);
  }
  /// Whose a lane's part of block i is: in which step, and of which lane; with its number among
  /// a quad's (MmaInt8Atom::operand_part).
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int step(int part, int i) {
    return ByBlocks ? part : i;
  }
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int lane_of(int lane, int i) {
    return ByBlocks ? (lane & 28) + i : lane;
  }
  /// The group's memory: by pair of steps, tile and lane four words, as the lane loads them
  /// (TwoStepsOfTile::part). Where in it the part of a step is; and what a lane has of two steps.
  template <class TwoSteps>
  using Memory = TwoSteps[blocks / 2][ColumnTiles][MmaInt8Atom::lanes];
  template <class TwoSteps>
  KOKKOS_FORCEINLINE_FUNCTION static constexpr std::uint32_t* stored(Memory<TwoSteps>& memory,
                                                                     int step, int tile, int lane) {
    return &memory[step >> 1][tile][lane].w[2 * (step & 1)];
  }
  template <class TwoSteps>
  KOKKOS_FORCEINLINE_FUNCTION static constexpr const TwoSteps& taken(const Memory<TwoSteps>& memory,
                                                                     int pair, int tile, int lane) {
    return memory[pair][tile][lane];
  }
  /// Where nothing is passed: the pair of a step, and the first of its words there.
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int pair(int step) { return step / 2; }
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int first_word(int step) { return 2 * (step % 2); }
};

/// A lane's parts of 16 rows (MmaInt8Atom::Part) on their way to an image (Int8Images), two steps
/// of 32 of K at a time: four matrices of 8 rows of 16 bytes, as CudaUnit::store_matrices has them.
/// The lanes of a quad, which have a row, have the four words of a chunk.
struct PartsToImage {
  static constexpr int blocks = Int8Images::step_blocks;
  using Parts = MmaInt8Atom::Part[blocks][2];

  /// The row that a lane names, of steps 0 and 1 and of the rows from `first` on.
  KOKKOS_INLINE_FUNCTION static constexpr int named(int first, int lane) {
    return Int8Images::offset(first + (lane & 7), lane >> 3);
  }
  /// The same of steps `step` and the next one; and how far behind it the row 8 below is.
  KOKKOS_INLINE_FUNCTION static constexpr int of_step(int place, int step) {
    return place ^ 32 * step;
  }
  KOKKOS_INLINE_FUNCTION static constexpr int behind(int second) { return 1024 * second; }
  /// What a lane stores there: the instruction's register i of four.
  KOKKOS_INLINE_FUNCTION static constexpr std::uint32_t stored(const Parts& parts, int step,
                                                               int second, int i) {
    return parts[step + i / 2][second].word[i % 2];
  }
};

/// The outputs of a warpgroup's sums (Int8Images::row_of and col_of) in bf16: in shared memory row
/// after row of x, from where threads store eight rows of y each. Accumulators 8 * j to 8 * j + 7
/// of a warp are four matrices of 8 by 8, as CudaUnit::store_transposed has them: two tiles of 8
/// rows of x, of each two of y.
template <int YTile>
struct OutputsByRow {
  static constexpr int pitch_bytes = 2 * YTile + 16;

  /// The row that a lane names, of j = 0, where the warp's rows of y are those from `below` on.
  KOKKOS_INLINE_FUNCTION static constexpr int named(int below, int lane) {
    return (lane >> 4) * 8 * pitch_bytes + (lane & 7) * pitch_bytes + 2 * (below + (lane & 8));
  }
  /// How far behind it those of another j are.
  KOKKOS_INLINE_FUNCTION static constexpr int behind(int j) { return j * 16 * pitch_bytes; }
  /// The first of four accumulators, of which two and two become registers 2 * i and 2 * i + 1; and
  /// the row of x of the first and the third, where the second and the fourth have the next one.
  KOKKOS_INLINE_FUNCTION static constexpr int first_value(int j, int i) { return 8 * j + 4 * i; }
  KOKKOS_INLINE_FUNCTION static constexpr int first_x(int j, int i, int part) {
    return 16 * j + 8 * i + 2 * part;
  }

  /// What a thread stores of rows of x: the first of them, and the first of eight rows of y.
  static constexpr int threads_in_row = YTile / 8;
  KOKKOS_INLINE_FUNCTION static constexpr int stored_x(int thread) {
    return thread / threads_in_row;
  }
  KOKKOS_INLINE_FUNCTION static constexpr int stored_y(int thread) {
    return 8 * (thread % threads_in_row);
  }
  /// Where they are in a row.
  KOKKOS_INLINE_FUNCTION static constexpr int stored_place(int thread) {
    return 16 * (thread % threads_in_row);
  }
};

/// A warp's 16 rows of a group in bf16, which pass through shared memory: each has 256 bytes there,
/// of which eight lanes copy half at a time, 16 bytes each. Where rows are odd, 64 bytes and the
/// next 64 change places, so that those of two rows lie in all banks.
struct RowsThrough {
  static constexpr int blocks = Int8Images::step_blocks;
  static constexpr int row_bytes = 2 * block_size * blocks, bytes = MmaInt8Atom::rows * row_bytes;
  /// What a lane copies of every fourth row: so many rows, and so many pieces of each.
  static constexpr int rows = MmaInt8Atom::rows / 4, pieces = 2;

  /// The row of a lane's copy i, and where in it the first piece is.
  KOKKOS_INLINE_FUNCTION static constexpr int copied_row(int lane, int i) {
    return 4 * i + (lane >> 3);
  }
  KOKKOS_INLINE_FUNCTION static constexpr int copied_from(int lane) { return 16 * (lane & 7); }
  /// Where copy 0 comes, of a memory that begins there, a multiple of 128.
  KOKKOS_INLINE_FUNCTION static constexpr int copied_to(int begin, int lane) {
    const int row = lane >> 3;
    return begin + row_bytes * row + (copied_from(lane) ^ 64 * (row & 1));
  }
  /// How far behind these piece h of copy i is.
  KOKKOS_INLINE_FUNCTION static constexpr int to_behind(int i, int h) { return 1024 * i + 128 * h; }
  KOKKOS_INLINE_FUNCTION static constexpr int from_behind(int h) { return 128 * h; }

  /// Where a lane's part of its first row's block 0 is; and of any block of both rows.
  KOKKOS_INLINE_FUNCTION static constexpr int own(int begin, int lane) {
    const int row = MmaInt8Atom::operand_row(lane, 0);
    return begin + row_bytes * row + 64 * (row & 1) + 16 * MmaInt8Atom::operand_part(lane);
  }
  KOKKOS_INLINE_FUNCTION static constexpr int of_block(int place, int block, int second) {
    return (place ^ 64 * (block % 2)) + 2048 * second + 128 * (block / 2);
  }
};

}  // namespace KokkosMX::Impl

#endif
