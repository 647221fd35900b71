// SPDX-License-Identifier: Apache-2.0
#include "slices.hpp"

#ifdef KOKKOSMX_HAVE_WGMMA

#include "gemm_select.hpp"
#include "slice_kernel.hpp"

#include <string>

namespace KokkosMX::Impl {

namespace {

template <int ColumnTiles, SliceForm Form>
void launch_form(const Kokkos::Cuda& exec, const SliceProblem& p) {
  using Kernel = SliceGemm<ColumnTiles, Form>;
  const int x_tiles = (p.x_rows + Kernel::x_tile - 1) / Kernel::x_tile;
  const SliceConfig config = slice_config(std::int64_t{p.batch} * x_tiles, Kernel::x_tile, p.y_rows,
                                          p.blocks, exec.cuda_device_prop().multiProcessorCount);
  const Kernel kernel{p, config.split, config.slice_groups, config.log_warps_k, config.turns};
  const int strip = (1 << kernel.log_y_tile()) * config.turns;
  static const std::string label = "KokkosMX::gemm";
  launch_clusters(label, exec, (p.y_rows + strip - 1) / strip, x_tiles, p.batch, kernel);
}

template <int ColumnTiles>
void launch_tile(const Kokkos::Cuda& exec, const SliceProblem& p) {
  if (p.y.is_dense) return launch_form<ColumnTiles, SliceForm::dense>(exec, p);
  if (p.y.matrix.codes.byte == 1) return launch_form<ColumnTiles, SliceForm::blocks>(exec, p);
  launch_form<ColumnTiles, SliceForm::interleaved>(exec, p);
}

}  // namespace

void launch_slices(const Kokkos::Cuda& exec, const SliceProblem& p) {
  if (p.x_rows <= 8) return launch_tile<1>(exec, p);
  if (p.x_rows <= 16) return launch_tile<2>(exec, p);
  launch_tile<4>(exec, p);
}

}  // namespace KokkosMX::Impl

#endif
