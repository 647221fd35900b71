// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_GEMM_KERNEL_HPP
#define KOKKOSMX_SRC_GEMM_GEMM_KERNEL_HPP

/// \file gemm_kernel.hpp
/// The GEMM kernel of tiles, for every execution space: a group makes a tile of C from panels of
/// unpacked codes in its scratch memory, with any atom. Each output's tier follows from its row's
/// and column's summaries; a tile runs the passes that its outputs ask for, over the atoms that
/// hold them.

#include <KokkosMX/Types.hpp>

#include "../atoms/gemm/gemm_atom.hpp"
#include "../launch.hpp"
#include "../operand.hpp"
#include "epilogue.hpp"
#include "exact_sum.hpp"
#include "gemm_problem.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>

namespace KokkosMX::Impl {

/// The part of tiling that is fixed when the kernel is compiled: the largest tile, in atoms, and
/// how many blocks of K a panel holds.
template <int AtomsM, int AtomsN, int PanelBlocks, int Threads>
struct GemmTile {
  static constexpr int atoms_m = AtomsM;
  static constexpr int atoms_n = AtomsN;
  static constexpr int panel_blocks = PanelBlocks;
  /// Threads of a group: 1 on hosts.
  static constexpr int threads = Threads;
};

/// The part that is chosen for a problem: see gemm_select.hpp.
struct GemmConfig {
  int atoms_m, atoms_n;  ///< the tile in use, at most GemmTile's
};

template <GemmAtom Atom, class Tile>
struct GemmKernel {
  GemmProblem p;
  GemmConfig config;
  std::int64_t tiles_m, tiles_n;
  int sum_bits;

  using element = typename Atom::element;
  using Accumulator = typename Atom::Accumulator;
  static constexpr int max_m = Tile::atoms_m * Atom::M;
  static constexpr int max_n = Tile::atoms_n * Atom::N;
  static constexpr int atom_values = Atom::M * Atom::N / Atom::lanes;
  /// Groups of Atom::lanes threads, each of which works on atoms of its own.
  static constexpr int workers = Tile::threads / Atom::lanes;
  static constexpr int atoms_each = (Tile::atoms_m * Tile::atoms_n + workers - 1) / workers;

  /// One operand's part of a tile.
  template <int Rows>
  struct Panel {
    alignas(64) element elements[Rows * Tile::panel_blocks * block_size];
    /// Scale less the row's least, of each block in the panel.
    std::uint8_t shift[Rows][Tile::panel_blocks];
    RowState state[Rows];
  };
  struct Scratch {
    Panel<max_m> a;
    Panel<max_n> b;
    /// Bit t: some output of the atom takes tier t. all: of any atom.
    std::uint8_t tiers[Tile::atoms_m * Tile::atoms_n];
    unsigned all_tiers;
    /// Every output takes Tier::aligned.
    bool all_aligned;
    /// Of the threads' wide sums, on devices.
    std::int64_t limbs[Tile::threads > 1 ? WideSum::limbs* Tile::threads : 1];
  };

  /// A tile of C: its first row and column, and how much of it lies in C.
  struct Place {
    std::int64_t batch, row, col;
    int rows, cols;
    int atoms_m, atoms_n;

    KOKKOS_INLINE_FUNCTION int row_of_atom(int atom) const { return atom % atoms_m; }
    KOKKOS_INLINE_FUNCTION int col_of_atom(int atom) const { return atom / atoms_m; }
  };

  static GemmKernel make(const GemmProblem& problem, const GemmConfig& config) {
    const std::int64_t tile_m = config.atoms_m * Atom::M, tile_n = config.atoms_n * Atom::N;
    return {problem, config, (problem.m + tile_m - 1) / tile_m, (problem.n + tile_n - 1) / tile_n,
            bits_of_sum(problem.blocks)};
  }
  std::int64_t tiles() const { return p.batch * tiles_m * tiles_n; }

  template <class Group>
  KOKKOS_FUNCTION void operator()(const Group& group, Scratch& scratch, std::int64_t item) const {
    const Place place = place_of(group, item);
    if (p.epilogue.skips_product()) {
      store_without_product(group, place);
      return;
    }
    load_states(group, scratch.a, p.a, place.batch, place.row, place.rows, place.atoms_m * Atom::M);
    load_states(group, scratch.b, p.b, place.batch, place.col, place.cols, place.atoms_n * Atom::N);
    choose_tiers(group, scratch, place);

    Accumulator aligned[atoms_each] = {};
    std::int64_t window[atoms_each][atom_values] = {};
    const unsigned tiers = scratch.all_tiers;
    if (has(tiers, Tier::aligned)) {
      over_panels<Tier::aligned>(group, scratch, place, [&](int slot, int i, int j, int blocks) {
        Atom::multiply_add(aligned[slot], a_at(scratch, i, 0), b_at(scratch, j, 0), blocks,
                           Tile::panel_blocks);
      });
    }
    if (has(tiers, Tier::window)) {
      const int lane = group.rank() % Atom::lanes;
      over_panels<Tier::window>(group, scratch, place, [&](int slot, int i, int j, int blocks) {
        for (int block = 0; block < blocks; ++block) {
          Accumulator sum{};
          Atom::multiply_add(sum, a_at(scratch, i, block), b_at(scratch, j, block), 1,
                             Tile::panel_blocks);
          for (int v = 0; v < atom_values; ++v) {
            const int shift = scratch.a.shift[i * Atom::M + Atom::row_of(lane, v)][block] +
                              scratch.b.shift[j * Atom::N + Atom::col_of(lane, v)][block];
            // Outputs of other tiers may overflow here: unsigned, and not used.
            window[slot][v] = static_cast<std::int64_t>(
                static_cast<std::uint64_t>(window[slot][v]) +
                (static_cast<std::uint64_t>(static_cast<std::int64_t>(sum.value[v]))
                 << (shift & 63)));
          }
        }
      });
    }
    store(group, scratch, place, aligned, window);
  }

 private:
  KOKKOS_INLINE_FUNCTION static bool has(unsigned tiers, Tier tier) {
    return (tiers >> static_cast<unsigned>(tier) & 1u) != 0;
  }

  template <class Group>
  KOKKOS_INLINE_FUNCTION Place place_of(const Group& group, std::int64_t item) const {
    const int tile_m = config.atoms_m * Atom::M, tile_n = config.atoms_n * Atom::N;
    Place place;
    const Divided in_column = divided(group, item, tiles_m);
    const Divided in_batch = divided(group, in_column.quotient, tiles_n);
    place.row = in_column.remainder * tile_m;
    place.col = in_batch.remainder * tile_n;
    place.batch = in_batch.quotient;
    place.rows = static_cast<int>(p.m - place.row < tile_m ? p.m - place.row : tile_m);
    place.cols = static_cast<int>(p.n - place.col < tile_n ? p.n - place.col : tile_n);
    place.atoms_m = (place.rows + Atom::M - 1) / Atom::M;
    place.atoms_n = (place.cols + Atom::N - 1) / Atom::N;
    return place;
  }

  template <class Group>
  KOKKOS_INLINE_FUNCTION void store_without_product(const Group& group, const Place& place) const {
    for_each(group, std::int64_t{1} * place.rows * place.cols, [&](std::int64_t i) {
      const int at = static_cast<int>(i);
      p.epilogue(place.batch, place.row + at / place.cols, place.col + at % place.cols, 0u);
    });
    if (p.counts != nullptr && group.rank() == 0) {
      Kokkos::atomic_add(&p.counts[0], static_cast<std::uint64_t>(place.rows) *
                                           static_cast<std::uint64_t>(place.cols));
    }
  }

  /// What is known of the panel's rows; those outside the matrix count as zeros.
  template <class Group, int Rows>
  KOKKOS_INLINE_FUNCTION void load_states(const Group& group, Panel<Rows>& panel,
                                          const MatrixMap& matrix, std::int64_t batch,
                                          std::int64_t first, int rows, int padded) const {
    for_each(group, padded, [&](std::int64_t i) {
      RowState state{0, 0, 0, false};
      if (i < rows) {
        const RowSummary& summary = *matrix.summaries.at(batch, first + i);
        state = {summary.n, summary.lo, summary.hi - summary.lo, summary.has_nan != 0};
      }
      panel.state[i] = state;
    });
  }

  /// The largest of everything that a certificate looks at.
  template <int Rows>
  KOKKOS_INLINE_FUNCTION static RowState worst_state(const Panel<Rows>& panel, int rows) {
    RowState worst{0, 0, 0, false};
    for (int i = 0; i < rows; ++i) {
      const RowState& state = panel.state[i];
      if (state.n > worst.n) worst.n = state.n;
      if (state.spread > worst.spread) worst.spread = state.spread;
      worst.has_nan = worst.has_nan || state.has_nan;
    }
    return worst;
  }

  /// Fills tiers and all_tiers. Ends with a barrier.
  template <class Group>
  KOKKOS_INLINE_FUNCTION void choose_tiers(const Group& group, Scratch& scratch,
                                           const Place& place) const {
    group.barrier();  // the states are there
    // Certificates are monotone: what holds for the worst row and column holds for the tile.
    if (group.rank() == 0) {
      scratch.all_aligned =
          tier_of<Atom>(worst_state(scratch.a, place.rows), worst_state(scratch.b, place.cols),
                        sum_bits, p.minimum_tier) == Tier::aligned;
      scratch.all_tiers = scratch.all_aligned ? 1u << static_cast<unsigned>(Tier::aligned) : 0u;
    }
    group.barrier();
    if (scratch.all_aligned) {
      for_each(group, place.atoms_m * place.atoms_n, [&](std::int64_t atom) {
        scratch.tiers[atom] = static_cast<std::uint8_t>(scratch.all_tiers);
      });
      group.barrier();
      return;
    }
    for_each(group, place.atoms_m * place.atoms_n, [&](std::int64_t atom) {
      const int row = place.row_of_atom(static_cast<int>(atom)) * Atom::M;
      const int col = place.col_of_atom(static_cast<int>(atom)) * Atom::N;
      unsigned tiers = 0;
      for (int i = 0; i < Atom::M; ++i) {
        for (int j = 0; j < Atom::N; ++j) {
          if (row + i < place.rows && col + j < place.cols) {
            const Tier tier = tier_of<Atom>(scratch.a.state[row + i], scratch.b.state[col + j],
                                            sum_bits, p.minimum_tier);
            tiers |= 1u << static_cast<unsigned>(tier);
          }
        }
      }
      scratch.tiers[atom] = static_cast<std::uint8_t>(tiers);
      if constexpr (Group::is_serial) {
        scratch.all_tiers |= tiers;
      } else {
        Kokkos::atomic_or(&scratch.all_tiers, tiers);
      }
    });
    group.barrier();
  }

  KOKKOS_INLINE_FUNCTION static const element* a_at(const Scratch& scratch, int atom, int block) {
    return scratch.a.elements + Atom::panel_offset(atom * Atom::M, block, Tile::panel_blocks);
  }
  KOKKOS_INLINE_FUNCTION static const element* b_at(const Scratch& scratch, int atom, int block) {
    return scratch.b.elements + Atom::panel_offset(atom * Atom::N, block, Tile::panel_blocks);
  }

  /// Unpacks blocks [first, first + count) of the panel's rows. Tier::aligned: codes shifted by
  /// scale - lo, rows that do not fit the atom as zeros; otherwise codes as they are, shifts
  /// beside.
  template <Tier tier, class Group, int Rows>
  KOKKOS_INLINE_FUNCTION void unpack(const Group& group, Panel<Rows>& panel,
                                     const MatrixMap& matrix, std::int64_t batch,
                                     std::int64_t first_row, int rows, int padded,
                                     std::int64_t first, int count) const {
    // Copies: the panel's bytes could be these numbers, for all that a compiler knows.
    const CodesMap codes = matrix.codes;
    const ScalesMap scales = matrix.scales;
    const auto unpack_block = [&](int row, int block, const RowState& state,
                                  const std::uint8_t* row_codes, const std::uint8_t* row_scales) {
      element* to = panel.elements + Atom::panel_offset(row, block, Tile::panel_blocks);
      const std::int64_t at = first + block;
      // Outside 0..spread only for blocks of zeros and rows with NaN, where no shift matters.
      const int distance = row_scales[scales.col_offset(at)] - state.lo;
      const int shift = distance < 0 || distance > state.spread ? 0 : distance;
      std::uint8_t local[block_bytes];
      Atom::unpack(codes.load(row_codes + codes.block_offset(at), local),
                   tier == Tier::aligned ? shift : 0, to);
      panel.shift[row][block] = static_cast<std::uint8_t>(shift);
    };
    const auto clear_block = [&](int row, int block) {
      element* to = panel.elements + Atom::panel_offset(row, block, Tile::panel_blocks);
      for (int e = 0; e < block_size; ++e) to[e] = 0;
      panel.shift[row][block] = 0;
    };
    const auto over_blocks = [&](int row, int begin, int end, int step) {
      const RowState state = panel.state[row];
      if (row >= rows || (tier == Tier::aligned && state.spread > Atom::max_shift)) {
        for (int block = begin; block < end; block += step) clear_block(row, block);
        return;
      }
      const std::uint8_t* row_codes = codes.at(batch, first_row + row, 0);
      const std::uint8_t* row_scales = scales.at(batch, first_row + row, 0);
      for (int block = begin; block < end; block += step) {
        unpack_block(row, block, state, row_codes, row_scales);
      }
    };
    if constexpr (Group::is_serial) {
      for (int row = 0; row < padded; ++row) over_blocks(row, 0, count, 1);
    } else {
      for_each(group, std::int64_t{1} * padded * count, [&](std::int64_t i) {
        const int row = static_cast<int>(i) / count, block = static_cast<int>(i) % count;
        over_blocks(row, block, block + 1, 1);
      });
    }
  }

  /// Calls f(slot, atom row, atom column, blocks) for each panel of K and each of this worker's
  /// atoms that has outputs of the tier.
  template <Tier tier, class Group, class F>
  KOKKOS_INLINE_FUNCTION void over_panels(const Group& group, Scratch& scratch, const Place& place,
                                          const F& f) const {
    for (std::int64_t first = 0; first < p.blocks; first += Tile::panel_blocks) {
      const int count = static_cast<int>(
          p.blocks - first < Tile::panel_blocks ? p.blocks - first : Tile::panel_blocks);
      unpack<tier>(group, scratch.a, p.a, place.batch, place.row, place.rows,
                   place.atoms_m * Atom::M, first, count);
      unpack<tier>(group, scratch.b, p.b, place.batch, place.col, place.cols,
                   place.atoms_n * Atom::N, first, count);
      group.barrier();
      over_atoms(group, place, [&](int slot, int atom, int i, int j) {
        if (has(scratch.tiers[atom], tier)) f(slot, i, j, count);
      });
      group.barrier();
    }
  }

  /// Calls f(slot, atom, atom row, atom column) for each of this worker's atoms.
  template <class Group, class F>
  KOKKOS_INLINE_FUNCTION void over_atoms(const Group& group, const Place& place, const F& f) const {
    const int worker = group.rank() / Atom::lanes;
    for (int slot = 0; slot < atoms_each; ++slot) {
      const int atom = slot * workers + worker;
      if (atom < place.atoms_m * place.atoms_n) {
        f(slot, atom, place.row_of_atom(atom), place.col_of_atom(atom));
      }
    }
  }

  /// Tier::wide, one output: nothing is shared, so what needs it costs only itself.
  template <class Sum>
  KOKKOS_INLINE_FUNCTION std::uint32_t wide_product(Sum sum, const Place& place, int row, int col,
                                                    const RowState& a, const RowState& b) const {
    int terms = 0;
    for (std::int64_t k = 0; k < p.blocks; ++k) {
      const int shift_a = *p.a.scales.at(place.batch, place.row + row, k) - a.lo;
      const int shift_b = *p.b.scales.at(place.batch, place.col + col, k) - b.lo;
      if (shift_a < 0 || shift_a > a.spread || shift_b < 0 || shift_b > b.spread) {
        continue;  // a block of zeros
      }
      std::uint8_t local_a[block_bytes], local_b[block_bytes];
      const std::int32_t term =
          Atom::block_product(p.a.codes.load(place.batch, place.row + row, k, local_a),
                              p.b.codes.load(place.batch, place.col + col, k, local_b));
      sum.add(term, shift_a + shift_b);
      if (++terms == WideSum::terms_between_carries) {
        sum.carry();
        terms = 0;
      }
    }
    return sum.round(unit_exponent(a.lo, b.lo));
  }

  /// Rounds each output once and hands it to the epilogue.
  template <class Group>
  KOKKOS_INLINE_FUNCTION void store(const Group& group, Scratch& scratch, const Place& place,
                                    const Accumulator (&aligned)[atoms_each],
                                    const std::int64_t (&window)[atoms_each][atom_values]) const {
    const int lane = group.rank() % Atom::lanes;
    std::uint64_t counts[tier_count] = {};
    over_atoms(group, place, [&](int slot, int, int atom_row, int atom_col) {
      for (int v = 0; v < atom_values; ++v) {
        const int row = atom_row * Atom::M + Atom::row_of(lane, v);
        const int col = atom_col * Atom::N + Atom::col_of(lane, v);
        if (row >= place.rows || col >= place.cols) continue;
        const RowState& a = scratch.a.state[row];
        const RowState& b = scratch.b.state[col];
        const Tier tier =
            scratch.all_aligned ? Tier::aligned : tier_of<Atom>(a, b, sum_bits, p.minimum_tier);
        const int unit = unit_exponent(a.lo, b.lo);
        std::uint32_t product = f32_nan;
        switch (tier) {
          case Tier::automatic:
            break;
          case Tier::aligned:
            product = round_to_f32(static_cast<std::int64_t>(aligned[slot].value[v]), unit);
            break;
          case Tier::window:
            product = round_to_f32(window[slot][v], unit);
            break;
          case Tier::wide:
            if constexpr (Group::is_serial) {
              product = wide_product(WideSum(), place, row, col, a, b);
            } else {
              using Sum = WideSumIn<SharedLimbs>;
              product = wide_product(Sum(SharedLimbs{scratch.limbs + group.rank(), Tile::threads}),
                                     place, row, col, a, b);
            }
            break;
        }
        p.epilogue(place.batch, place.row + row, place.col + col, product);
        // Arrays that are found by a number lie in memory, on devices.
        for (int t = 0; t < tier_count; ++t) counts[t] += static_cast<int>(tier) == t ? 1u : 0u;
      }
    });
    if (p.counts != nullptr) {
      for (int t = 0; t < tier_count; ++t) {
        if (counts[t] != 0) Kokkos::atomic_add(&p.counts[t], counts[t]);
      }
    }
  }
};

}  // namespace KokkosMX::Impl

#endif
