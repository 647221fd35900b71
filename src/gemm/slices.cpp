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
  const std::int64_t y_tiles = (p.y_rows + Kernel::y_tile - 1) / Kernel::y_tile;
  const int groups = p.elements.groups;
  const SliceConfig config = slice_config(std::int64_t{p.batch} * p.elements.tiles * y_tiles,
                                          groups, Kernel::most_warps / Kernel::together,
                                          exec.cuda_device_prop().multiProcessorCount);
  // The device takes a KiB of each block's.
  const int bytes = (Kernel::most_shared_bytes + 1024) / config.in_unit - 1024;
  const Kernel kernel{p, config.warps, Kernel::stages_for(config.warps, groups, bytes)};
  static const std::string label = "KokkosMX::gemm";
  launch_grid(label, exec, y_tiles, p.elements.tiles, p.batch, true, kernel);
}

template <int ColumnTiles>
void launch_tile(const Kokkos::Cuda& exec, const SliceProblem& p) {
  if (p.y.is_dense) return launch_form<ColumnTiles, SliceForm::dense>(exec, p);
  if (p.y.matrix.codes.byte == 1) return launch_form<ColumnTiles, SliceForm::blocks>(exec, p);
  launch_form<ColumnTiles, SliceForm::interleaved>(exec, p);
}

template <bool IsDense>
void launch_align(const Kokkos::Cuda& exec, const SliceProblem& p) {
  static const std::string label = "KokkosMX::gemm: images";
  launch_grid(label, exec, p.elements.rows(), 1, p.x_batch, true, AlignRows<IsDense>{p});
}

}  // namespace

void launch_slices(const Kokkos::Cuda& exec, const SliceProblem& p) {
  if (p.x.is_dense) {
    launch_align<true>(exec, p);
  } else {
    launch_align<false>(exec, p);
  }
  switch (p.elements.log_tile) {
    case 3:
      return launch_tile<1>(exec, p);
    case 4:
      return launch_tile<2>(exec, p);
    case 5:
      return launch_tile<4>(exec, p);
    case 6:
      return launch_tile<8>(exec, p);
    default:
      return launch_tile<16>(exec, p);
  }
}

}  // namespace KokkosMX::Impl

#endif
