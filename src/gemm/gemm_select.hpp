// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_GEMM_SELECT_HPP
#define KOKKOSMX_SRC_GEMM_GEMM_SELECT_HPP

/// \file gemm_select.hpp
/// Which tiling a product gets: all tuning is here and in atom_select.hpp, none in the kernel.

#include "../atoms/gemm/wgmma.hpp"
#include "../launch.hpp"
#include "gemm_kernel.hpp"
#include "panel_kernel.hpp"
#include "slices.hpp"

#include <Kokkos_Core.hpp>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace KokkosMX::Impl {

/// The largest tile of an execution space, in atoms.
template <class ExecSpace>
struct GemmTileOf {
  // Hosts: 64 x 64 outputs, panels of 2 x 64 KiB: the panels stay in L2, an atom's operands in L1.
  // Devices: 64 x 64 outputs by 256 threads, one atom each; panels of 2 x 8 KiB.
  using type = std::conditional_t<is_host_space_v<ExecSpace>, GemmTile<16, 16, 16, 1>,
                                  GemmTile<16, 16, 2, 256>>;
};

/// The tile in use. Hosts: halved, columns first, until every thread can have a few tiles, but not
/// below 4 atoms a side, where unpacking would cost more than multiplying.
template <class Atom, class Tile>
GemmConfig gemm_config(std::int64_t batch, std::int64_t m, std::int64_t n,
                       std::int64_t concurrency) {
  GemmConfig config{Tile::atoms_m, Tile::atoms_n};
  if constexpr (Tile::threads == 1) {
    const auto tiles_along = [](std::int64_t extent, std::int64_t tile) {
      return (extent + tile - 1) / tile;
    };
    const auto tiles = [&] {
      return batch * tiles_along(m, config.atoms_m * Atom::M) *
             tiles_along(n, config.atoms_n * Atom::N);
    };
    while (tiles() < 4 * concurrency) {
      if (config.atoms_n > 4) {
        config.atoms_n /= 2;
      } else if (config.atoms_m > 4) {
        config.atoms_m /= 2;
      } else {
        break;
      }
    }
  }
  return config;
}

#ifdef KOKKOSMX_HAVE_WGMMA
/// Calls f with the atom whose tiles suit the image kernel's problem: large ones where they keep
/// most of the device's units busy, small ones otherwise. Measured on an H200.
template <class F>
void with_image_atom(std::int64_t batch, std::int64_t m, std::int64_t n, std::int64_t units,
                     F&& f) {
  const auto tiles = [](std::int64_t extent, std::int64_t tile) {
    return (extent + tile - 1) / tile;
  };
  using Large = WgmmaInt8Atom<2, 256>;
  const std::int64_t least = std::min(m, n);
  if (least > 64 && batch * tiles(m, Large::tile_m) * tiles(n, Large::tile_n) >= units / 2) {
    return f(Large{});
  }
  if (least > 32) return f(WgmmaInt8Atom<1, 64>{});
  if (least > 16) return f(WgmmaInt8Atom<1, 32>{});
  f(WgmmaInt8Atom<1, 16>{});
}

/// Whether the slice kernel takes a product of so many rows on its smaller side: where large tiles
/// of images would leave most of the device's units idle. Measured on an H200.
inline bool prefers_slices(std::int64_t batch, std::int64_t x_rows, std::int64_t y_rows,
                           std::int64_t blocks, std::int64_t units) {
  if (blocks == 0 || blocks > slice_most_blocks) return false;
  return x_rows <= 64 || (x_rows <= 256 && batch * x_rows * y_rows < 64 * 256 * units);
}

/// Rows of a tile of x, as a power of two.
inline int slice_log_tile(std::int64_t x_rows) {
  int log = 3;
  while (log < 7 && (std::int64_t{1} << log) < x_rows) ++log;
  return log;
}
/// Whether so many blocks, of so many warps, make their rows of x themselves: that costs each half
/// as much again, but no kernel comes before. Measured on an H200.
inline bool prefers_making_x(std::int64_t blocks, int warps, std::int64_t units) {
  return blocks * warps <= 10 * units;
}
/// How blocks of SliceGemm are made: some warps, or warpgroups, that share K, and so many blocks in
/// a unit of the device.
struct SliceConfig {
  int warps, in_unit;
};
/// For so many blocks in all. A unit shall have most_warps, if there are groups of K for them.
/// Measured on an H200.
inline SliceConfig slice_config(std::int64_t blocks, int groups, int most_warps,
                                std::int64_t units) {
  const std::int64_t each = (blocks + units - 1) / units;
  int in_unit = static_cast<int>(std::min<std::int64_t>(each, 4));
  while (4 * (most_warps / in_unit * in_unit) < 3 * most_warps) --in_unit;
  return {std::clamp(most_warps / in_unit, 1, groups), in_unit};
}
#endif

/// How the panel kernel cuts its work.
template <PanelAtom Atom>
PanelConfig panel_config(const PanelProblem& p, std::int64_t concurrency) {
  PanelConfig config{};
  const std::int64_t groups = std::max<std::int64_t>(p.groups(), 1);
  config.workers = static_cast<int>(concurrency);
  config.x_panels = static_cast<int>(std::clamp<std::int64_t>(p.x.panels(), 1, 32));
  // One panel of x costs every worker no more than waiting for the one that would prepare it.
  config.own_x = p.x.batch * p.x.panels() <= 1;
  // Few panels of x: elements of y are used so little that they should stay in the first cache.
  // Many: panels of x stay there, a pair at a time, while a long block of y passes from the second.
  // Measured on Sapphire Rapids and Zen 4.
  const bool few = config.x_panels <= 8;
  const PanelBlock block = few ? Atom::block_for_few : PanelBlock{16, 4};
  // A task takes about 128 Ki elements of y: enough that matrix units do not fall asleep while it
  // quantizes them, few enough that codes stay in L2.
  std::int64_t y_panels = std::clamp<std::int64_t>(64 / groups, few ? 4 : 8, 16);
  // Fewer, where that gives every worker as many as the others.
  const std::int64_t all = p.batch * p.y.panels();
  const std::int64_t each = (all + concurrency - 1) / concurrency;
  const std::int64_t rounds = std::max<std::int64_t>((each + y_panels - 1) / y_panels, 1);
  y_panels = (each + rounds - 1) / rounds;
  if (y_panels > 4) y_panels = (y_panels + 3) / 4 * 4;
  config.y_panels = static_cast<int>(std::clamp<std::int64_t>(y_panels, 1, 16));
  config.block_panels = static_cast<int>(std::min(block.panels, config.y_panels));
  config.groups = static_cast<int>(std::min<std::int64_t>(groups, block.groups));
  // Limbs stay in the second cache. Columns of which a 64th are outliers, and a third more, are
  // gathered. Half a panel's groups in pieces cost as much as the panel itself; adding block by
  // block, several times that.
  config.rough.y_panels = config.block_panels;
  config.rough.x_panels = std::min(config.x_panels, 8);
  config.rough.column_groups = static_cast<int>(std::clamp<std::int64_t>((groups + 47) / 48, 1, 4));
  const auto pieces = [&](int panels) { return static_cast<int>(groups + groups * panels / 2); };
  config.rough.y_pieces = pieces(config.rough.y_panels);
  config.rough.x_pieces = pieces(config.rough.x_panels);
  return config;
}

}  // namespace KokkosMX::Impl

#endif
