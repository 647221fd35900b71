// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SHUFFLE_HPP
#define KOKKOSMX_SHUFFLE_HPP

/// \file Shuffle.hpp
/// From row-major codes and scales to the layouts of MI355X's kernels, and back.

#include <KokkosMX/Export.hpp>
#include <KokkosMX/Matrix.hpp>
#include <KokkosMX/Types.hpp>

#include <Kokkos_Core.hpp>

namespace KokkosMX {

namespace Impl {
template <class ExecSpace>
KOKKOSMX_EXPORT void copy_codes(const ExecSpace& exec, const BytesRef& from, CodesKind from_kind,
                                const BytesRef& to, CodesKind to_kind);
template <class ExecSpace>
KOKKOSMX_EXPORT void copy_scales(const ExecSpace& exec, const BytesRef& from, ScalesKind from_kind,
                                 const BytesRef& to, ScalesKind to_kind);

template <class ExecSpace, class From, class To>
constexpr void check_shuffle_types() {
  static_assert(Kokkos::is_execution_space_v<ExecSpace>,
                "KokkosMX: the first argument is an execution-space instance");
  static_assert(accessible_v<ExecSpace, typename From::memory_space>,
                "KokkosMX: the execution space cannot access the input");
  static_assert(accessible_v<ExecSpace, typename To::memory_space>,
                "KokkosMX: the execution space cannot access the output");
  static_assert(!std::is_const_v<typename To::byte>,
                "KokkosMX: a View of const bytes cannot be written");
}
template <class Bytes, class Layout>
inline constexpr bool has_layout_v = std::is_same_v<typename Bytes::layout, Layout>;
}  // namespace Impl

/// Packed codes (N, K/2 bytes), row-major, to Tile16x16: aiter's shuffle_weight, layout (16,16):
/// (N/16, 16, K/64, 2, 16) permuted to (N/16, K/64, 2, 16, 16). from and to are Codes of the same
/// extents. Asynchronous on exec; neither allocates nor fences. A batch is shuffled matrix by
/// matrix.
/// \throws std::invalid_argument where N % 16 != 0 or K % 64 != 0, extents disagree, a View is not
///   allocated or to overlaps from. std::logic_error where Kokkos is not initialized.
template <class ExecSpace, class From, class To>
void shuffle_weight(const ExecSpace& exec, const From& from, const To& to) {
  static_assert(Impl::has_layout_v<From, RowMajor>,
                "KokkosMX::shuffle_weight: the input's layout is RowMajor");
  static_assert(Impl::has_layout_v<To, Tile16x16>,
                "KokkosMX::shuffle_weight: the output's layout is Tile16x16");
  Impl::check_shuffle_types<ExecSpace, From, To>();
  Impl::copy_codes(exec, from.impl_ref(), Impl::CodesKind::row_major, to.impl_ref(),
                   Impl::CodesKind::tile_16x16);
}

/// The inverse of shuffle_weight. \throws as shuffle_weight does.
template <class ExecSpace, class From, class To>
void unshuffle_weight(const ExecSpace& exec, const From& from, const To& to) {
  static_assert(Impl::has_layout_v<From, Tile16x16>,
                "KokkosMX::unshuffle_weight: the input's layout is Tile16x16");
  static_assert(Impl::has_layout_v<To, RowMajor>,
                "KokkosMX::unshuffle_weight: the output's layout is RowMajor");
  Impl::check_shuffle_types<ExecSpace, From, To>();
  Impl::copy_codes(exec, from.impl_ref(), Impl::CodesKind::tile_16x16, to.impl_ref(),
                   Impl::CodesKind::row_major);
}

/// Scales (rows, K/32), row-major, to Tile32x8: aiter's shuffle_scale with padding 0:
/// (rows/32, 2, 16, cols/8, 2, 4) permuted by (0, 3, 5, 2, 4, 1) after rows are padded to 256 and
/// columns to 8. to has the extents scales_shape<Tile32x8>(rows, K); its padding is written, with
/// 0. Asynchronous on exec; neither allocates nor fences. \throws std::invalid_argument where
/// extents disagree, a View is not allocated or to overlaps
///   from. std::logic_error where Kokkos is not initialized.
template <class ExecSpace, class From, class To>
void shuffle_scale(const ExecSpace& exec, const From& from, const To& to) {
  static_assert(Impl::has_layout_v<From, RowMajor>,
                "KokkosMX::shuffle_scale: the input's layout is RowMajor");
  static_assert(Impl::has_layout_v<To, Tile32x8>,
                "KokkosMX::shuffle_scale: the output's layout is Tile32x8");
  Impl::check_shuffle_types<ExecSpace, From, To>();
  Impl::copy_scales(exec, from.impl_ref(), Impl::ScalesKind::row_major, to.impl_ref(),
                    Impl::ScalesKind::tile_32x8);
}

/// The inverse of shuffle_scale: to has the extents (rows, K/32), from those of
/// scales_shape<Tile32x8>(rows, K). The padding is not read. \throws as shuffle_scale does.
template <class ExecSpace, class From, class To>
void unshuffle_scale(const ExecSpace& exec, const From& from, const To& to) {
  static_assert(Impl::has_layout_v<From, Tile32x8>,
                "KokkosMX::unshuffle_scale: the input's layout is Tile32x8");
  static_assert(Impl::has_layout_v<To, RowMajor>,
                "KokkosMX::unshuffle_scale: the output's layout is RowMajor");
  Impl::check_shuffle_types<ExecSpace, From, To>();
  Impl::copy_scales(exec, from.impl_ref(), Impl::ScalesKind::tile_32x8, to.impl_ref(),
                    Impl::ScalesKind::row_major);
}

}  // namespace KokkosMX

#endif
