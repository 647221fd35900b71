// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_FRAGMENT_SELECT_HPP
#define KOKKOSMX_SRC_GEMM_FRAGMENT_SELECT_HPP

/// \file fragment_select.hpp
/// Which tiles a product gets from the fragment kernel. All figures are computed from instruction
/// counts (docs/gfx950.md); none is measured.

#include "fragment_kernel.hpp"

#include <algorithm>
#include <cstdint>
#include <string>

namespace KokkosMX::Impl {

/// 256 x 128 outputs by 4 waves of 128 x 64, through 48 KiB of scratch memory, two groups a compute
/// unit: what keeps the matrix unit busy where there are tiles for all.
using LargeFragmentTile = FragmentTile<2, 2, 1, 8, 4, true, 2>;
/// 64 x 32 outputs, K shared by 4 waves.
using MiddleFragmentTile = FragmentTile<1, 1, 4, 4, 2, false, 2>;
/// 16 x 16 outputs, K shared by 8 waves: the larger operand is read once, by as many waves as there
/// can be.
using SmallFragmentTile = FragmentTile<1, 1, 8, 1, 1, false, 2>;

enum class FragmentTiles { large, middle, small };

struct ProductDesc {
  std::int64_t batch, m, n, k;
};
struct DeviceDesc {
  std::int64_t compute_units, chiplets;
};
struct FragmentConfig {
  FragmentTiles tiles;
  TileOrder order;
};

/// One row of the table: the first that fits is taken.
struct FragmentRule {
  FragmentTiles tiles;
  int m, n;  ///< of a tile
  /// The smaller extent of C, at most.
  std::int64_t most_extent;
  /// Tiles that there have to be, in quarters of the compute units.
  std::int64_t least_quarters;
  /// Rows of tiles that are walked together: operands of theirs stay in a chiplet's 4 MiB.
  unsigned rows_together;
};
inline constexpr std::int64_t any_extent = std::int64_t{1} << 62;
inline constexpr FragmentRule fragment_rules[] = {
    {FragmentTiles::small, SmallFragmentTile::m, SmallFragmentTile::n, 16, 0, 1},
    {FragmentTiles::large, LargeFragmentTile::m, LargeFragmentTile::n, any_extent, 3, 4},
    {FragmentTiles::middle, MiddleFragmentTile::m, MiddleFragmentTile::n, any_extent, 0, 8},
};

inline FragmentConfig fragment_config(const ProductDesc& p, const DeviceDesc& device) {
  for (const FragmentRule& rule : fragment_rules) {
    const std::int64_t tiles =
        p.batch * ((p.m + rule.m - 1) / rule.m) * ((p.n + rule.n - 1) / rule.n);
    if (std::min(p.m, p.n) > rule.most_extent) continue;
    if (4 * tiles < rule.least_quarters * device.compute_units) continue;
    return {rule.tiles, {static_cast<unsigned>(device.chiplets), rule.rows_together}};
  }
  return {};
}

inline std::string text(const ProductDesc& p, const DeviceDesc& device,
                        const FragmentConfig& config) {
  const char* tiles = config.tiles == FragmentTiles::large    ? "large"
                      : config.tiles == FragmentTiles::middle ? "middle"
                                                              : "small";
  return "batch " + std::to_string(p.batch) + ", M " + std::to_string(p.m) + ", N " +
         std::to_string(p.n) + ", K " + std::to_string(p.k) + " on " +
         std::to_string(device.compute_units) + " compute units in " +
         std::to_string(device.chiplets) + " chiplets: " + tiles + " tiles, " +
         std::to_string(config.order.rows_together) + " rows of tiles together";
}

}  // namespace KokkosMX::Impl

#endif
