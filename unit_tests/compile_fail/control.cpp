// SPDX-License-Identifier: Apache-2.0

// Right uses, next to which the other sources' are wrong in one thing each.

#include "Operands.hpp"

using Plain = Matrix<RowMajor, RowMajor>;
using Tiled = Matrix<Tile16x16, Tile32x8>;
using Prepared = Matrix<Tile16x128, Tile16x4>;

static_assert(Kokkos::SpaceAccessibility<Exec, Host>::accessible);
static_assert(!Kokkos::SpaceAccessibility<Exec, FarSpace>::accessible);

void quantize(const Exec& exec) {
  KokkosMX::quantize(exec, an<View<float**>>(), an<Plain>(), rule);
  KokkosMX::quantize(exec, an<View<const KokkosMX::BFloat16***>>(), an<Tiled>(), rule);
  KokkosMX::dequantize(exec, an<Plain>(), an<View<float**>>());
  KokkosMX::dequantize(exec, an<Tiled>(), an<View<KokkosMX::Float16**, Kokkos::LayoutStride>>());
  KokkosMX::summarize(exec, an<Tiled>(), an<View<KokkosMX::RowSummary*>>());
}

void shuffle(const Exec& exec) {
  KokkosMX::shuffle_weight(exec, an<Codes<RowMajor>>(), an<Codes<Tile16x16>>());
  KokkosMX::unshuffle_weight(exec, an<Codes<Tile16x16, Host, const std::uint8_t>>(),
                             an<Codes<RowMajor>>());
  KokkosMX::shuffle_scale(exec, an<Scales<RowMajor>>(), an<Scales<Tile32x8>>());
  KokkosMX::unshuffle_scale(exec, an<Scales<Tile32x8>>(), an<Scales<RowMajor>>());
}

void prepare(const Exec& exec) {
  KokkosMX::prepare(exec, an<Plain>(), an<Prepared>());
  KokkosMX::prepare(exec, an<Matrix<Tile16x16, Tile32x8, Host, const std::uint8_t>>(),
                    an<Prepared>());
  KokkosMX::unprepare(exec, an<Prepared>(), an<Tiled>());
}

void matrices() {
  const Codes<RowMajor> codes(an<View<std::uint8_t**>>());
  const Scales<RowMajor> scales(an<View<std::uint8_t***, Kokkos::LayoutStride>>());
  const Codes<Tile16x128> padded(an<View<std::uint8_t***>>(), 5, 96);
  const KokkosMX::Matrix prepared(padded, Scales<Tile16x4>(an<View<std::uint8_t***>>()));
  const KokkosMX::Matrix plain(codes, scales);
  const KokkosMX::Matrix with(codes, scales, an<View<KokkosMX::RowSummary**>>());
  const Matrix<RowMajor, RowMajor, Host, const std::uint8_t> read_only = plain;
  (void)KokkosMX::scales_shape<Tile32x8>(5, 64);
  (void)KokkosMX::codes_shape<Tile16x128>(5, 64);
  (void)KokkosMX::reinterpret<KokkosMX::BFloat16>(an<View<std::uint16_t**>>());
  (void)read_only, (void)with, (void)prepared;
}

void gemm(const Exec& exec, const KokkosMX::Workspace<Host>& workspace) {
  const auto& c = an<View<float**, Kokkos::LayoutLeft>>();
  KokkosMX::GemmOptions<Host> options;
  options.bias(an<View<const float*>>()).tier_counts(an<View<std::uint64_t*>>());
  KokkosMX::gemm(exec, workspace, an<Plain>(), an<Tiled>(), c, options);
  KokkosMX::gemm(exec, an<Plain>(), an<Tiled>(), c);
  KokkosMX::quantize_gemm(exec, workspace, an<View<float**>>(), an<Tiled>(), c, rule);
  (void)KokkosMX::gemm_workspace_size(exec, an<Plain>(), an<Plain>(), c);
  (void)KokkosMX::Workspace(an<View<double*>>());
}

constexpr KokkosMX::QuantizeRule made{KokkosMX::ScaleMode::even, KokkosMX::Rounding::ties_up,
                                      KokkosMX::NonFinite::reference};
