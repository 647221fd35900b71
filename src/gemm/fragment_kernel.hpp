// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_FRAGMENT_KERNEL_HPP
#define KOKKOSMX_SRC_GEMM_FRAGMENT_KERNEL_HPP

/// \file fragment_kernel.hpp
/// The GEMM kernel of devices with matrix units, over any FragmentAtoms.
///
/// A group makes a tile of C. Its waves share the tile, and, where there are few tiles, K. Codes go
/// from memory to registers as they are, 16 bytes a lane: through scratch memory, double buffered,
/// where waves share fragments, or straight to the lane that multiplies them. Scales go there
/// always, as 32-bit words.
///
/// The group chooses tiers by the summaries of its rows and columns. Each atom that the most
/// preferred ones leave outputs for makes a pass over K; what no atom certifies is summed output by
/// output. Results pass through scratch memory once more, so that the waves' sums over K are added
/// and rows of C are stored together.
///
/// The body is written for all threads of a group at once (TeamGroup): so it runs on hosts, with a
/// model of the instructions.

#include <KokkosMX/Types.hpp>

#include "../atoms/gemm/fragment_atom.hpp"
#include "../atoms/words.hpp"
#include "../launch.hpp"
#include "../operand.hpp"
#include "epilogue.hpp"
#include "exact_sum.hpp"
#include "gemm_problem.hpp"

#include <Kokkos_Core.hpp>

#include <array>
#include <cstdint>
#include <tuple>
#include <type_traits>

namespace KokkosMX::Impl {

/// A tile of C: WavesM x WavesN waves, each with FragmentsM x FragmentsN fragments of 16 x 16
/// outputs, and that WavesK times, each with a part of K. Staged: codes go through scratch memory.
/// Together: groups that a compute unit shall hold at once, which bounds their registers.
template <int WavesM, int WavesN, int WavesK, int FragmentsM, int FragmentsN, bool Staged,
          int Together>
struct FragmentTile {
  static constexpr int waves_m = WavesM, waves_n = WavesN, waves_k = WavesK;
  static constexpr int fragments_m = FragmentsM, fragments_n = FragmentsN;
  static constexpr bool staged = Staged;
  static constexpr int together = Together;
  static constexpr int waves = WavesM * WavesN * WavesK;
  static constexpr int m = 16 * WavesM * FragmentsM;
  static constexpr int n = 16 * WavesN * FragmentsN;
  static_assert(!Staged || WavesK == 1);
  // A word of scales serves two fragments of a wave.
  static_assert(FragmentsM % 2 == 0 || (FragmentsM == 1 && WavesM == 1));
  static_assert(FragmentsN % 2 == 0 || (FragmentsN == 1 && WavesN == 1));
};

/// The order of tiles: chiplets (XCDs), each with a cache of its own, get workgroups in turn; each
/// takes a run of tiles, by columns of `rows_together` tiles, whose operands stay in its cache.
struct TileOrder {
  unsigned chiplets;
  unsigned rows_together;

  /// The tile of an item of `tiles_m * tiles_n` ones.
  KOKKOS_INLINE_FUNCTION void operator()(unsigned item, unsigned tiles_m, unsigned tiles_n,
                                         unsigned& row, unsigned& col) const {
    const unsigned tiles = tiles_m * tiles_n;
    const unsigned each = tiles / chiplets, more = tiles % chiplets;
    const unsigned chiplet = item % chiplets;
    const unsigned tile = chiplet * each + (chiplet < more ? chiplet : more) + item / chiplets;
    const unsigned band = tile / (rows_together * tiles_n);
    const unsigned first = band * rows_together;
    const unsigned height = tiles_m - first < rows_together ? tiles_m - first : rows_together;
    const unsigned in_band = tile - first * tiles_n;
    row = first + in_band % height;
    col = in_band / height;
  }
};

/// Codes lie as this kernel reads them, for tiles of so many rows: a block's 16 bytes together,
/// offsets inside a tile in 32 bits.
inline bool codes_lie_as_fragments(const CodesMap& codes, int rows) {
  const bool aligned =
      !words_need_alignment || (reinterpret_cast<std::uintptr_t>(codes.data) % 16 == 0 &&
                                codes.batch % 16 == 0 && codes.row % 16 == 0);
  return aligned && codes.byte == 1 &&
         rows / 16 * codes.tile_of_16_rows + 16 * codes.row + 4 * codes.block_1 < std::int64_t{1}
                                                                                      << 31;
}
/// Scales do: the words of Tile32x8.
inline bool scales_lie_as_fragments(const ScalesMap& scales) {
  const bool aligned =
      !words_need_alignment ||
      (reinterpret_cast<std::uintptr_t>(scales.data) % 4 == 0 && scales.batch % 4 == 0);
  return aligned && scales.row_16 == 1 && scales.col_4 == 2 &&
         scales.row_32 < std::int64_t{1} << 26;
}

/// Atoms: the most preferred first; all with the same lanes. Passes: what this kernel does, bit i
/// the outputs that atom i takes, bit sizeof...(Atoms) those that none takes. Kernels that do parts
/// need the registers of one part each.
template <class Tile, unsigned Passes, FragmentAtom... Atoms>
struct FragmentKernel {
  GemmProblem p;
  TileOrder order;
  std::int64_t tiles_m, tiles_n;
  int blocks, sum_bits;
  /// Bit i: atom i may be used.
  unsigned usable;
  /// As Passes: those that no kernel before has done.
  unsigned passes;

  template <int I>
  using Atom = std::tuple_element_t<I, std::tuple<Atoms...>>;
  using Lanes = Atom<0>;
  static constexpr int atom_count = sizeof...(Atoms);
  static constexpr int lanes = Lanes::lanes;
  static constexpr int threads = lanes * Tile::waves;
  static constexpr int groups_together = Tile::together;
  static constexpr int fragments_a = Tile::m / 16, fragments_b = Tile::n / 16;
  /// Of codes of a fragment, 16 bytes each.
  static constexpr int slots = Lanes::rows * Lanes::blocks;
  static constexpr int pairs_m = (Tile::fragments_m + 1) / 2;
  static constexpr int pairs_n = (Tile::fragments_n + 1) / 2;
  static_assert(((Atoms::lanes == lanes && Atoms::rows == 16 && Atoms::blocks == 4) && ...));
  static_assert(slots == lanes);  // a lane loads one

  /// Chunks of K: what one fragment has, twice in a step, which is what a word of scales has.
  static constexpr int chunk_blocks = 4;
  static constexpr int step_blocks = 8;

  /// Outputs on their way to C: so many fragments of every wave's at a time, and columns of padding
  /// that keep lanes on different banks.
  static constexpr int slab_fragments = Tile::staged ? 1 : Tile::fragments_m;
  static constexpr int slabs = Tile::fragments_m / slab_fragments;
  static constexpr int slab_rows = 16 * slab_fragments * Tile::waves_m;
  static constexpr int slab_pitch = Tile::n + 4;

  struct Staging {
    Words codes[2][fragments_a + fragments_b][slots];
  };
  struct NoStaging {};
  struct Scratch {
    union {
      std::conditional_t<Tile::staged, Staging, NoStaging> staging;
      alignas(16) std::uint32_t sums[Tile::waves_k][slab_rows][slab_pitch];
      std::int64_t limbs[WideSum::limbs * threads];
    };
    RowState row[Tile::m], col[Tile::n];
    /// The largest of everything that a certificate looks at.
    std::uint64_t most_n[2];
    unsigned most_spread[2];
    unsigned nan;
    /// Bit i: some output takes atom i; bit atom_count: some output takes none.
    unsigned takers;
  };

  /// A tile of C: its first row and column, and how much of it lies in C.
  struct Place {
    std::int64_t batch, row, col;
    int rows, cols;
  };

  static FragmentKernel make(const GemmProblem& problem, const TileOrder& order, unsigned usable,
                             unsigned passes) {
    return {problem,
            order,
            (problem.m + Tile::m - 1) / Tile::m,
            (problem.n + Tile::n - 1) / Tile::n,
            static_cast<int>(problem.blocks),
            bits_of_sum(problem.blocks),
            usable,
            passes & Passes};
  }
  std::int64_t tiles() const { return p.batch * tiles_m * tiles_n; }

  template <class Group>
  KOKKOS_FUNCTION void operator()(const Group& group, Scratch& scratch, std::int64_t item) const {
    const Place place = place_of(group, item);
    choose(group, scratch, place);
    const unsigned takers = scratch.takers;
    const unsigned mine = takers & passes;
    unrolled<atom_count>([&](auto index) {
      if constexpr ((Passes >> index & 1u) != 0) {
        if ((mine >> index & 1u) != 0) pass<index>(group, scratch, place, takers);
      }
    });
    if constexpr ((Passes >> atom_count & 1u) != 0) {
      if ((mine >> atom_count & 1u) != 0) sum_one_by_one(group, scratch, place);
    }
  }

 private:
  // ---------------------------------------------------------------------------- which output goes
  // where

  template <class Group>
  KOKKOS_INLINE_FUNCTION Place place_of(const Group& group, std::int64_t item) const {
    Place place;
    unsigned row, col;
    const Divided in_batch = divided(group, item, tiles_m * tiles_n);
    place.batch = in_batch.quotient;
    order(static_cast<unsigned>(in_batch.remainder), static_cast<unsigned>(tiles_m),
          static_cast<unsigned>(tiles_n), row, col);
    place.row = std::int64_t{row} * Tile::m;
    place.col = std::int64_t{col} * Tile::n;
    place.rows = static_cast<int>(p.m - place.row < Tile::m ? p.m - place.row : Tile::m);
    place.cols = static_cast<int>(p.n - place.col < Tile::n ? p.n - place.col : Tile::n);
    return place;
  }

  /// The first usable atom that certifies an output, or atom_count.
  KOKKOS_INLINE_FUNCTION int taker_of(const RowState& a, const RowState& b) const {
    int taker = atom_count;
    if (a.has_nan || b.has_nan || p.minimum_tier > Tier::aligned) return taker;
    unrolled<atom_count>([&](auto index) {
      constexpr int i = atom_count - 1 - index;
      if ((usable >> i & 1u) != 0 && certified_aligned<Atom<i>>(a, b)) taker = i;
    });
    return taker;
  }

  /// Loads the tile's summaries and finds who takes its outputs. Ends with a barrier.
  template <class Group>
  KOKKOS_INLINE_FUNCTION void choose(const Group& group, Scratch& scratch,
                                     const Place& place) const {
    group.each([&](int thread) {
      if (thread == 0) {
        scratch.most_n[0] = scratch.most_n[1] = 0;
        scratch.most_spread[0] = scratch.most_spread[1] = scratch.nan = scratch.takers = 0;
      }
    });
    group.barrier();
    group.each([&](int thread) {
      load_summaries<Tile::m>(scratch, 0, scratch.row, p.a, place.batch, place.row, place.rows,
                              thread);
      load_summaries<Tile::n>(scratch, 1, scratch.col, p.b, place.batch, place.col, place.cols,
                              thread);
    });
    group.barrier();
    // Certificates are monotone: what holds for the worst row and column holds for the tile.
    const bool nan = scratch.nan != 0;
    const RowState a{scratch.most_n[0], 0, static_cast<int>(scratch.most_spread[0]), nan};
    const RowState b{scratch.most_n[1], 0, static_cast<int>(scratch.most_spread[1]), nan};
    const int taker = taker_of(a, b);
    if (taker < atom_count) {
      group.barrier();
      group.each([&](int thread) {
        if (thread == 0) scratch.takers = 1u << taker;
      });
    } else {
      group.each([&](int thread) {
        unsigned takers = 0;
        for_outputs(place, thread, [&](int row, int col) {
          takers |= 1u << taker_of(scratch.row[row], scratch.col[col]);
        });
        Kokkos::atomic_or(&scratch.takers, takers);
      });
    }
    group.barrier();
  }

  template <int Rows>
  KOKKOS_INLINE_FUNCTION void load_summaries(Scratch& scratch, int side, RowState* to,
                                             const MatrixMap& matrix, std::int64_t batch,
                                             std::int64_t first, int rows, int thread) const {
    for (int i = thread; i < Rows; i += threads) {
      RowState state{0, 0, 0, false};
      if (i < rows) {
        const RowSummary& summary = *matrix.summaries.at(batch, first + i);
        state = {summary.n, summary.lo, summary.hi - summary.lo, summary.has_nan != 0};
      }
      to[i] = state;
      Kokkos::atomic_max(&scratch.most_n[side], state.n);
      Kokkos::atomic_max(&scratch.most_spread[side], static_cast<unsigned>(state.spread));
      if (state.has_nan) Kokkos::atomic_or(&scratch.nan, 1u);
    }
  }

  /// f(row, column) for a thread's share of the tile's outputs.
  template <class F>
  KOKKOS_INLINE_FUNCTION static void for_outputs(const Place& place, int thread, const F& f) {
    const int outputs = place.rows * place.cols;
    for (int i = thread; i < outputs; i += threads) f(i / place.cols, i % place.cols);
  }

  // ---------------------------------------------------------------------------- operands

  /// An operand as a group reads it, from its first row on; strides as in CodesMap and ScalesMap.
  struct Side {
    const std::uint8_t* codes;
    const std::uint8_t* scales;
    std::int64_t tile_of_16_rows, row;
    std::int64_t scales_row_32;
    std::uint32_t block_4, block_1;
    std::uint32_t scales_row_1, scales_col_8, scales_col_1;
    int rows;  ///< that lie in the matrix
    int odd;   ///< the first row lies in the second half of the 32 of a word of scales
  };

  KOKKOS_INLINE_FUNCTION static Side side(const MatrixMap& matrix, std::int64_t batch,
                                          std::int64_t first, int rows) {
    const CodesMap& codes = matrix.codes;
    const ScalesMap& scales = matrix.scales;
    const int odd = static_cast<int>(first >> 4 & 1);
    return {codes.at(batch, first, 0),
            scales.at(batch, first, 0) - odd,
            codes.tile_of_16_rows,
            codes.row,
            scales.row_32,
            static_cast<std::uint32_t>(codes.block_4),
            static_cast<std::uint32_t>(codes.block_1),
            static_cast<std::uint32_t>(scales.row_1),
            static_cast<std::uint32_t>(scales.col_8),
            static_cast<std::uint32_t>(scales.col_1),
            rows,
            odd};
  }

  /// What a thread is: its wave's part of the tile, the same for all of the wave's lanes, and the
  /// row and block that it loads of a fragment.
  struct Self {
    int wave, wave_m, wave_n, wave_k;
    int lane, row, block;

    KOKKOS_FORCEINLINE_FUNCTION explicit Self(int thread)
        : wave(same_in_wave(thread / lanes)),
          wave_m(wave % Tile::waves_m),
          wave_n(wave / Tile::waves_m % Tile::waves_n),
          wave_k(wave / (Tile::waves_m * Tile::waves_n)),
          lane(thread % lanes),
          row(Lanes::row_of_codes(lane)),
          block(Lanes::block_of_codes(lane)) {}
    /// The first row and column of the wave's fragments in the tile.
    KOKKOS_FORCEINLINE_FUNCTION int first_row() const { return 16 * Tile::fragments_m * wave_m; }
    KOKKOS_FORCEINLINE_FUNCTION int first_col() const { return 16 * Tile::fragments_n * wave_n; }
  };

  /// Where a lane's codes of chunk 0 are, from the tile's first ones on. Rows past the end are the
  /// last one, whose outputs nobody stores.
  KOKKOS_FORCEINLINE_FUNCTION static std::uint32_t codes_offset(const Side& s, int first,
                                                                const Self& self) {
    const int row = first + self.row < s.rows ? first + self.row : s.rows - 1;
    return static_cast<std::uint32_t>((row >> 4) * s.tile_of_16_rows + (row & 15) * s.row) +
           static_cast<std::uint32_t>(self.block) * s.block_1;
  }
  /// Where the codes of a chunk begin, and how far back a lane's block has to be sought where K
  /// ends before it.
  struct Chunk {
    std::uint32_t index, back;
    std::uint32_t keep;  ///< all ones, or zero past the end of K
  };
  KOKKOS_FORCEINLINE_FUNCTION Chunk chunk_of(int chunk, const Self& self) const {
    const int last = (blocks - 1) / chunk_blocks;
    const int index = chunk < last ? chunk : last;
    const bool kept = chunk_blocks * chunk + self.block < blocks;
    const bool there = chunk_blocks * index + self.block < blocks;
    return {static_cast<std::uint32_t>(index), there ? 0u : static_cast<std::uint32_t>(self.block),
            kept ? ~0u : 0u};
  }
  KOKKOS_FORCEINLINE_FUNCTION static Words codes_of(const Side& s, std::uint32_t offset,
                                                    const Chunk& chunk) {
    return load_words<Words>(s.codes + std::uint64_t{chunk.index} * s.block_4 +
                             (offset - chunk.back * s.block_1));
  }
  /// Codes past the end of K are zeros in B, and anything in A: there is no code whose product with
  /// zero is not zero.
  KOKKOS_FORCEINLINE_FUNCTION static Words clear_past_end(const Words& codes, const Chunk& chunk) {
    Words result;
    unrolled<4>([&](auto i) { result.w[i] = codes.w[i] & chunk.keep; });
    return result;
  }

  /// Scales of a step: words as they are, least ones, or distances; and where they are.
  struct ScaleWords {
    std::uint32_t a[pairs_m], b[pairs_n];
  };

  /// Where a lane's first words of step 0 are. Those of the pairs of fragments below lie 32 rows
  /// apart.
  struct ScalesOffset {
    std::uint32_t a, b;
  };
  KOKKOS_FORCEINLINE_FUNCTION static ScalesOffset scales_offset(const Side& a, const Side& b,
                                                                const Self& self) {
    const auto offset = [&](const Side& s, int first) {
      return static_cast<std::uint32_t>((first >> 5) * s.scales_row_32) +
             static_cast<std::uint32_t>(self.row) * s.scales_row_1 +
             static_cast<std::uint32_t>(self.block) * s.scales_col_1;
    };
    return {offset(a, self.first_row()), offset(b, self.first_col())};
  }
  /// The words of a step. What lies outside the matrix is anything.
  KOKKOS_FORCEINLINE_FUNCTION ScaleWords load_scales(const Side& a, const Side& b,
                                                     const ScalesOffset& offset, int step) const {
    const int last = (blocks - 1) / step_blocks;
    const auto index = static_cast<std::uint32_t>(step < last ? step : last);
    const std::uint8_t* const from_a = a.scales + std::uint64_t{index} * a.scales_col_8;
    const std::uint8_t* const from_b = b.scales + std::uint64_t{index} * b.scales_col_8;
    ScaleWords words;
    unrolled<pairs_m>([&](auto i) {
      words.a[i] = load_words<std::uint32_t>(from_a + i * a.scales_row_32 + offset.a);
    });
    unrolled<pairs_n>([&](auto i) {
      words.b[i] = load_words<std::uint32_t>(from_b + i * b.scales_row_32 + offset.b);
    });
    return words;
  }
  /// The least scales of a lane's rows, in the places of its words of scales.
  KOKKOS_FORCEINLINE_FUNCTION static ScaleWords least_scales(const Scratch& scratch,
                                                             const Self& self) {
    ScaleWords least;
    const auto word = [](const RowState* states, int first, bool second_row) {
      std::uint32_t bytes = static_cast<std::uint32_t>(states[first].lo) * 0x00010001u;
      if (second_row) bytes |= static_cast<std::uint32_t>(states[first + 16].lo) * 0x01000100u;
      return bytes;
    };
    unrolled<pairs_m>([&](auto i) {
      least.a[i] = word(scratch.row, self.first_row() + 32 * i + self.row, Tile::fragments_m > 1);
    });
    unrolled<pairs_n>([&](auto i) {
      least.b[i] = word(scratch.col, self.first_col() + 32 * i + self.row, Tile::fragments_n > 1);
    });
    return least;
  }
  /// A tile of 16 rows may begin in the middle of the 32 of a word: its bytes come down.
  KOKKOS_FORCEINLINE_FUNCTION static ScaleWords to_distances(const Side& a, const Side& b,
                                                             const ScaleWords& scales,
                                                             const ScaleWords& least) {
    ScaleWords result;
    unrolled<pairs_m>([&](auto i) {
      result.a[i] =
          distances(Tile::fragments_m > 1 ? scales.a[i] : scales.a[i] >> (8 * a.odd), least.a[i]);
    });
    unrolled<pairs_n>([&](auto i) {
      result.b[i] =
          distances(Tile::fragments_n > 1 ? scales.b[i] : scales.b[i] >> (8 * b.odd), least.b[i]);
    });
    return result;
  }

  // ---------------------------------------------------------------------------- a pass over K

  template <class A>
  struct Sums {
    typename A::Accumulator value[Tile::fragments_m][Tile::fragments_n];
  };
  template <class A>
  struct Operands {
    typename A::Operand value[Tile::fragments_n];
  };

  /// Adds a chunk's products: a(thread, i) and b(thread, j) give the codes of fragments, Half says
  /// which half of the step the chunk is.
  template <class A, int Half, class Group, class CodesA, class CodesB>
  KOKKOS_FORCEINLINE_FUNCTION static void multiply(
      const Group& group, const CodesA& a, const CodesB& b,
      const typename Group::template PerThread<ScaleWords>& scales,
      typename Group::template PerThread<Sums<A>>& sums) {
    typename Group::template PerThread<Operands<A>> y;
    group.each([&](int thread) {
      unrolled<Tile::fragments_n>([&](auto j) {
        y[thread].value[j] =
            A::template operand<2 * Half + j % 2>(b(thread, j), scales[thread].b[j / 2]);
      });
    });
    // Fragments of A are read one ahead of the one that is multiplied, and no more: their registers
    // are few.
    struct Two {
      typename A::Operand value[2];
    };
    typename Group::template PerThread<Two> x;
    const auto read = [&](auto i) {
      group.each([&](int thread) {
        x[thread].value[i % 2] =
            A::template operand<2 * Half + i % 2>(a(thread, i), scales[thread].a[i / 2]);
      });
    };
    read(std::integral_constant<int, 0>{});
    unrolled<Tile::fragments_m>([&](auto i) {
      if constexpr (i + 1 < Tile::fragments_m) read(std::integral_constant<int, i + 1>{});
      unrolled<Tile::fragments_n>([&](auto j) {
        group.template waves<lanes>([&](int first) {
          A::template multiply_add<2 * Half + i % 2, 2 * Half + j % 2>(
              [&](int lane) -> const auto& { return x[first + lane].value[i % 2]; },
              [&](int lane) -> const auto& { return y[first + lane].value[j]; },
              [&](int lane) -> auto& { return sums[first + lane].value[i][j]; });
        });
      });
      keep_order();
    });
  }

  template <int Index, class Group>
  KOKKOS_INLINE_FUNCTION void pass(const Group& group, Scratch& scratch, const Place& place,
                                   unsigned takers) const {
    using A = Atom<Index>;
    typename Group::template PerThread<Sums<A>> sums;
    group.each([&](int thread) { sums[thread] = Sums<A>{}; });
    if (blocks > 0) {
      const Side a = side(p.a, place.batch, place.row, place.rows);
      const Side b = side(p.b, place.batch, place.col, place.cols);
      if constexpr (Tile::staged) {
        accumulate_staged<A>(group, scratch, a, b, sums);
      } else {
        accumulate_direct<A>(group, scratch, a, b, sums);
      }
    }
    store<Index>(group, scratch, place, takers, sums);
  }

  /// Each thread brings some slots of every chunk to scratch memory, one chunk ahead of the one
  /// that is multiplied, and has the next one on its way.
  template <class A, class Group>
  KOKKOS_INLINE_FUNCTION void accumulate_staged(
      const Group& group, Scratch& scratch, const Side& a, const Side& b,
      typename Group::template PerThread<Sums<A>>& sums) const {
    static_assert(fragments_a % Tile::waves == 0 && fragments_b % Tile::waves == 0);
    constexpr int parts_a = fragments_a / Tile::waves, parts_b = fragments_b / Tile::waves;
    struct Moved {
      std::uint32_t a[parts_a], b[parts_b];  // offsets
      Words codes_a[parts_a], codes_b[parts_b];
    };
    typename Group::template PerThread<Moved> moved;
    typename Group::template PerThread<ScalesOffset> offset;
    typename Group::template PerThread<ScaleWords> least, scales, next;
    const auto load = [&](int chunk) {
      group.each([&](int thread) {
        const Self self(thread);
        const Chunk c = chunk_of(chunk, self);
        Moved& m = moved[thread];
        unrolled<parts_a>([&](auto i) { m.codes_a[i] = codes_of(a, m.a[i], c); });
        unrolled<parts_b>([&](auto i) { m.codes_b[i] = codes_of(b, m.b[i], c); });
      });
    };
    const auto put = [&](int chunk) {
      group.each([&](int thread) {
        const Self self(thread);
        const Chunk c = chunk_of(chunk, self);
        auto& to = scratch.staging.codes[chunk % 2];
        const Moved& m = moved[thread];
        unrolled<parts_a>(
            [&](auto i) { to[i * Tile::waves + self.wave][self.lane] = m.codes_a[i]; });
        unrolled<parts_b>([&](auto i) {
          to[fragments_a + i * Tile::waves + self.wave][self.lane] =
              clear_past_end(m.codes_b[i], c);
        });
      });
    };
    group.each([&](int thread) {
      const Self self(thread);
      Moved& m = moved[thread];
      unrolled<parts_a>(
          [&](auto i) { m.a[i] = codes_offset(a, 16 * (i * Tile::waves + self.wave), self); });
      unrolled<parts_b>(
          [&](auto i) { m.b[i] = codes_offset(b, 16 * (i * Tile::waves + self.wave), self); });
      least[thread] = least_scales(scratch, self);
      offset[thread] = scales_offset(a, b, self);
      next[thread] = load_scales(a, b, offset[thread], 0);
    });
    load(0);
    put(0);
    load(1);
    group.barrier();
    const int steps = (blocks + step_blocks - 1) / step_blocks;
    for (int step = 0; step < steps; ++step) {
      group.each([&](int thread) {
        scales[thread] = to_distances(a, b, next[thread], least[thread]);
        next[thread] = load_scales(a, b, offset[thread], step + 1);
      });
      unrolled<2>([&](auto half) {
        const auto& codes = scratch.staging.codes[half];
        put(2 * step + half + 1);
        load(2 * step + half + 2);
        keep_order();
        multiply<A, half>(
            group,
            [&](int thread, int i) {
              const Self self(thread);
              return codes[Tile::fragments_m * self.wave_m + i][self.lane];
            },
            [&](int thread, int j) {
              const Self self(thread);
              return codes[fragments_a + Tile::fragments_n * self.wave_n + j][self.lane];
            },
            scales, sums);
        group.barrier();
      });
    }
  }

  /// Each lane loads what it multiplies, a step ahead. Waves have runs of steps.
  template <class A, class Group>
  KOKKOS_INLINE_FUNCTION void accumulate_direct(
      const Group& group, const Scratch& scratch, const Side& a, const Side& b,
      typename Group::template PerThread<Sums<A>>& sums) const {
    struct Offsets {
      std::uint32_t a[Tile::fragments_m], b[Tile::fragments_n];
      ScalesOffset scales;
    };
    struct Loaded {
      Words a[2][Tile::fragments_m], b[2][Tile::fragments_n];
      ScaleWords scales;
    };
    typename Group::template PerThread<Offsets> offsets;
    typename Group::template PerThread<Loaded> next, now;
    typename Group::template PerThread<ScaleWords> least, scales;
    const int all = (blocks + step_blocks - 1) / step_blocks;
    const int steps = (all + Tile::waves_k - 1) / Tile::waves_k;
    const auto load = [&](int i) {
      group.each([&](int thread) {
        const Self self(thread);
        const Offsets& from = offsets[thread];
        Loaded& to = next[thread];
        const int step = self.wave_k * steps + i;
        unrolled<2>([&](auto half) {
          const Chunk c = chunk_of(2 * step + half, self);
          unrolled<Tile::fragments_m>([&](auto f) { to.a[half][f] = codes_of(a, from.a[f], c); });
          unrolled<Tile::fragments_n>([&](auto f) { to.b[half][f] = codes_of(b, from.b[f], c); });
        });
        to.scales = load_scales(a, b, from.scales, step);
      });
    };
    group.each([&](int thread) {
      const Self self(thread);
      Offsets& to = offsets[thread];
      unrolled<Tile::fragments_m>(
          [&](auto f) { to.a[f] = codes_offset(a, self.first_row() + 16 * f, self); });
      unrolled<Tile::fragments_n>(
          [&](auto f) { to.b[f] = codes_offset(b, self.first_col() + 16 * f, self); });
      to.scales = scales_offset(a, b, self);
      least[thread] = least_scales(scratch, self);
    });
    load(0);
    for (int i = 0; i < steps; ++i) {
      group.each([&](int thread) {
        const Self self(thread);
        const int step = self.wave_k * steps + i;
        now[thread] = next[thread];
        unrolled<2>([&](auto half) {
          const Chunk c = chunk_of(2 * step + half, self);
          unrolled<Tile::fragments_n>(
              [&](auto f) { now[thread].b[half][f] = clear_past_end(now[thread].b[half][f], c); });
        });
        scales[thread] = to_distances(a, b, now[thread].scales, least[thread]);
      });
      load(i + 1);
      unrolled<2>([&](auto half) {
        multiply<A, half>(
            group, [&](int thread, int f) { return now[thread].a[half][f]; },
            [&](int thread, int f) { return now[thread].b[half][f]; }, scales, sums);
      });
    }
    // The waves' summaries are read, their sums come to the same memory.
    group.barrier();
  }

  // ---------------------------------------------------------------------------- results

  /// Adds the waves' sums over K, rounds each output once and hands it to the epilogue: by slabs,
  /// one fragment of every wave high.
  template <int Index, class Group>
  KOKKOS_INLINE_FUNCTION void store(
      const Group& group, Scratch& scratch, const Place& place, unsigned takers,
      const typename Group::template PerThread<Sums<Atom<Index>>>& sums) const {
    using A = Atom<Index>;
    const bool all = takers == 1u << Index;
    typename Group::template PerThread<std::uint64_t> count;
    group.each([&](int thread) { count[thread] = 0; });
    for (int slab = 0; slab < slabs; ++slab) {
      group.each([&](int thread) {
        const Self self(thread);
        // An array that is found by a number lies in memory: this one must not.
        unrolled<Tile::fragments_m>([&](auto i) {
          if (slab != i / slab_fragments) return;
          const int first = 16 * (slab_fragments * self.wave_m + i % slab_fragments);
          unrolled<Tile::fragments_n>([&](auto j) {
            unrolled<A::values>([&](auto v) {
              scratch.sums[self.wave_k][first + A::row_of(self.lane, v)]
                          [self.first_col() + 16 * j + A::col_of(self.lane, v)] =
                  A::bits(sums[thread].value[i][j], v);
            });
          });
        });
      });
      group.barrier();
      group.each([&](int thread) {
        for (int i = thread; i < slab_rows * Tile::n; i += threads) {
          constexpr int height = 16 * slab_fragments;
          const int in_slab = i / Tile::n, col = i % Tile::n;
          const int row =
              16 * Tile::fragments_m * (in_slab / height) + height * slab + in_slab % height;
          if (row >= place.rows || col >= place.cols) continue;
          const RowState& a = scratch.row[row];
          const RowState& b = scratch.col[col];
          if (!all && taker_of(a, b) != Index) continue;
          std::uint32_t sum = scratch.sums[0][in_slab][col];
          for (int k = 1; k < Tile::waves_k; ++k) sum = A::add(sum, scratch.sums[k][in_slab][col]);
          p.epilogue(place.batch, place.row + row, place.col + col,
                     A::round(sum, unit_exponent(a.lo, b.lo)));
          ++count[thread];
        }
      });
      group.barrier();
    }
    count_outputs(group, Tier::aligned, count);
  }

  template <class Group>
  KOKKOS_INLINE_FUNCTION void count_outputs(
      const Group& group, Tier tier,
      const typename Group::template PerThread<std::uint64_t>& count) const {
    if (p.counts == nullptr) return;
    group.each([&](int thread) {
      if (count[thread] != 0) {
        Kokkos::atomic_add(&p.counts[static_cast<int>(tier)], count[thread]);
      }
    });
  }

  /// What no atom certifies costs only itself: a thread forms the whole sum.
  template <class Group>
  KOKKOS_INLINE_FUNCTION void sum_one_by_one(const Group& group, Scratch& scratch,
                                             const Place& place) const {
    typename Group::template PerThread<std::uint64_t> none, window, wide;
    group.each([&](int thread) {
      std::uint64_t counts[tier_count] = {};
      for_outputs(place, thread, [&](int row, int col) {
        const RowState a = scratch.row[row], b = scratch.col[col];
        if (taker_of(a, b) != atom_count) return;
        const bool is_nan = a.has_nan || b.has_nan;
        const bool is_window =
            !is_nan && p.minimum_tier <= Tier::window && certified_window(a, b, sum_bits);
        const std::uint32_t product = is_nan ? f32_nan
                                      : is_window
                                          ? window_product(place, row, col, a, b)
                                          : wide_product(scratch, thread, place, row, col, a, b);
        p.epilogue(place.batch, place.row + row, place.col + col, product);
        counts[0] += is_nan ? 1u : 0u;
        counts[1] += is_window ? 1u : 0u;
        counts[2] += is_nan || is_window ? 0u : 1u;
      });
      none[thread] = counts[0];
      window[thread] = counts[1];
      wide[thread] = counts[2];
    });
    count_outputs(group, Tier::automatic, none);
    count_outputs(group, Tier::window, window);
    count_outputs(group, Tier::wide, wide);
  }

  KOKKOS_INLINE_FUNCTION std::uint32_t window_product(const Place& place, int row, int col,
                                                      const RowState& a, const RowState& b) const {
    std::uint64_t sum = 0;
    over_blocks(place, row, col, a, b, [&](std::int32_t term, int shift) {
      sum += static_cast<std::uint64_t>(std::int64_t{term}) << shift;
    });
    return round_to_f32(static_cast<std::int64_t>(sum), unit_exponent(a.lo, b.lo));
  }
  KOKKOS_INLINE_FUNCTION std::uint32_t wide_product(Scratch& scratch, int thread,
                                                    const Place& place, int row, int col,
                                                    const RowState& a, const RowState& b) const {
    WideSumIn<SharedLimbs> sum(SharedLimbs{scratch.limbs + thread, threads});
    int terms = 0;
    over_blocks(place, row, col, a, b, [&](std::int32_t term, int shift) {
      sum.add(term, shift);
      if (++terms == WideSum::terms_between_carries) {
        sum.carry();
        terms = 0;
      }
    });
    return sum.round(unit_exponent(a.lo, b.lo));
  }

  /// The dot product of two blocks, in quarters.
  KOKKOS_INLINE_FUNCTION static std::int32_t block_product(const Words& a, const Words& b) {
    std::int32_t sum = 0;
    unrolled<4>([&](auto w) {
      for (int i = 0; i < 32; i += 4) {
        sum += signed_halves_of(static_cast<std::int32_t>(a.w[w] >> i & 15u)) *
               signed_halves_of(static_cast<std::int32_t>(b.w[w] >> i & 15u));
      }
    });
    return sum;
  }

  /// f(product of two blocks, shift) for the blocks of K that are not zeros.
  template <class F>
  KOKKOS_INLINE_FUNCTION void over_blocks(const Place& place, int row, int col, const RowState& a,
                                          const RowState& b, const F& f) const {
    for (std::int64_t k = 0; k < p.blocks; ++k) {
      const int shift_a = *p.a.scales.at(place.batch, place.row + row, k) - a.lo;
      const int shift_b = *p.b.scales.at(place.batch, place.col + col, k) - b.lo;
      if (shift_a < 0 || shift_a > a.spread || shift_b < 0 || shift_b > b.spread) continue;
      const auto x = load_words<Words>(p.a.codes.at(place.batch, place.row + row, k));
      const auto y = load_words<Words>(p.b.codes.at(place.batch, place.col + col, k));
      f(block_product(x, y), shift_a + shift_b);
    }
  }
};

}  // namespace KokkosMX::Impl

#endif
