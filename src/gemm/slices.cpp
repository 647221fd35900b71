// SPDX-License-Identifier: Apache-2.0
#include "slices.hpp"

#ifdef KOKKOSMX_HAVE_WGMMA

#include "gemm_select.hpp"
#include "slice_kernel.hpp"
#include "slice_shared.hpp"

#include <string>

namespace KokkosMX::Impl {

namespace {

template <bool IsShort>
void launch_align(const Kokkos::Cuda& exec, const SliceProblem& p) {
  static const std::string label = "KokkosMX::gemm: images";
  const auto launch = [&](const auto& kernel) {
    launch_grid(label, exec, p.elements.rows() / kernel.rows_together, kernel.parts(), p.x_batch,
                true, kernel);
  };
  if (p.x.is_dense) {
    launch(AlignRows<true, IsShort>{p});
  } else {
    launch(AlignRows<false, IsShort>{p});
  }
}

template <class Kernel>
std::int64_t y_tiles_of(const SliceProblem& p) {
  return (p.y_rows + Kernel::y_tile - 1) / Kernel::y_tile;
}
template <class Kernel>
void launch_kernel_of(const Kokkos::Cuda& exec, const SliceProblem& p, const Kernel& kernel) {
  static const std::string label = "KokkosMX::gemm";
  launch_grid(label, exec, y_tiles_of<Kernel>(p), p.elements.tiles, p.batch, true, kernel);
}

/// Shared memory of a block, where a unit has so many: the device takes a KiB of each block's.
template <class Kernel>
constexpr int bytes_for(int in_unit) {
  return (Kernel::most_shared_bytes + 1024) / in_unit - 1024;
}

/// Whether a kernel is launched that makes x, too.
template <int ColumnTiles, SliceForm Form>
bool launch_alone(const Kokkos::Cuda& exec, const SliceProblem& p) {
  using Kernel = SliceGemm<ColumnTiles, Form, true>;
  const bool can = p.x.is_dense && p.x.is_aligned && p.y.is_aligned &&
                   p.blocks % Kernel::group_blocks_k == 0 &&
                   p.elements.groups <= Kernel::most_warps / Kernel::together && p.is_plain_bf16 &&
                   p.counts == nullptr && p.minimum_tier <= Tier::aligned;
  const std::int64_t blocks = std::int64_t{p.batch} * y_tiles_of<Kernel>(p);
  const std::int64_t units = exec.cuda_device_prop().multiProcessorCount;
  if (!can || !prefers_making_x(blocks, p.elements.groups * Kernel::together, units)) return false;
  // Where blocks come while others of the call before load, no unit shall take more than its part.
  const int least_bytes = Kernel::begins_others_late
                              ? 0
                              : bytes_for<Kernel>(static_cast<int>((blocks + units - 1) / units));
  launch_kernel_of(exec, p, Kernel{p.elements.groups, 0, p, least_bytes});
  return true;
}

/// Whether a kernel is launched that has both operands in shared memory.
template <int ColumnTiles, SliceForm Form>
bool launch_shared(const Kokkos::Cuda& exec, const SliceProblem& p) {
  using Kernel = SliceShared<ColumnTiles, Form>;
  const Epilogue& e = p.epilogue;
  const bool stores_whole_words = reinterpret_cast<std::uintptr_t>(e.c) % 16 == 0 &&
                                  e.row % 8 == 0 && e.batch % 8 == 0 && p.y_rows % 8 == 0;
  const bool can = stores_whole_words && p.elements.tiles % Kernel::cluster_y == 0 &&
                   p.y.is_aligned && (!p.x.is_dense || p.x.is_aligned) &&
                   p.blocks % (Kernel::cluster_y * Kernel::group_blocks_k) == 0 &&
                   p.elements.groups >= Kernel::makers &&
                   p.elements.groups <= Kernel::most_groups && p.is_plain_bf16 &&
                   p.counts == nullptr && p.minimum_tier <= Tier::aligned;
  if (!can) return false;
  launch_align<true>(exec, p);
  launch_kernel_of(exec, p, Kernel{{Kernel::makers, 1, p}});
  return true;
}

template <int ColumnTiles, SliceForm Form>
void launch_form(const Kokkos::Cuda& exec, const SliceProblem& p) {
  if constexpr (ColumnTiles <= 4) {
    if (launch_alone<ColumnTiles, Form>(exec, p)) return;
  }
  if constexpr (ColumnTiles >= 8) {
    if (launch_shared<ColumnTiles, Form>(exec, p)) return;
  }
  launch_align<false>(exec, p);
  using Kernel = SliceGemm<ColumnTiles, Form, false>;
  const int groups = p.elements.groups;
  const SliceConfig config = slice_config(
      std::int64_t{p.batch} * p.elements.tiles * y_tiles_of<Kernel>(p), groups,
      Kernel::most_warps / Kernel::together, exec.cuda_device_prop().multiProcessorCount);
  const int bytes = bytes_for<Kernel>(config.in_unit);
  launch_kernel_of(exec, p,
                   Kernel{config.warps, Kernel::stages_for(config.warps, groups, bytes), p});
}

template <int ColumnTiles>
void launch_tile(const Kokkos::Cuda& exec, const SliceProblem& p) {
  if (p.y.is_dense) return launch_form<ColumnTiles, SliceForm::dense>(exec, p);
  if (p.y_matrix.codes.byte == 1) return launch_form<ColumnTiles, SliceForm::blocks>(exec, p);
  launch_form<ColumnTiles, SliceForm::interleaved>(exec, p);
}

}  // namespace

void launch_slices(const Kokkos::Cuda& exec, const SliceProblem& p) {
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
