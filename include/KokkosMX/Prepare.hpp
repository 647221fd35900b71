// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_PREPARE_HPP
#define KOKKOSMX_PREPARE_HPP

/// \file Prepare.hpp
/// Operands of many products, weights above all, brought once into the layout that the product
/// reads fastest on hosts: codes in Tile16x128, scales in Tile16x4, with row summaries. It is no
/// larger than the plain one but for its padding, and gives the same bits in every operation.

#include <KokkosMX/Export.hpp>
#include <KokkosMX/Matrix.hpp>
#include <KokkosMX/Types.hpp>

#include <Kokkos_Core.hpp>

#include <cstdint>
#include <type_traits>

namespace KokkosMX {

namespace Impl {
enum class MatrixCopy : std::uint8_t { prepare, unprepare };

template <class ExecSpace>
KOKKOSMX_EXPORT void copy_matrix(const ExecSpace& exec, MatrixCopy which, const MatrixRef& from,
                                 const MatrixRef& to);

template <class CodesLayout, class ScalesLayout>
inline constexpr bool is_prepared_v =
    std::is_same_v<CodesLayout, Tile16x128>&& std::is_same_v<ScalesLayout, Tile16x4>;

template <class ExecSpace, class FromSpace, class ToSpace, class ToByte>
constexpr void check_prepare_types() {
  static_assert(Kokkos::is_execution_space_v<ExecSpace>,
                "KokkosMX: the first argument is an execution-space instance");
  static_assert(accessible_v<ExecSpace, FromSpace>,
                "KokkosMX: the execution space cannot access the matrix that is read");
  static_assert(accessible_v<ExecSpace, ToSpace>,
                "KokkosMX: the execution space cannot access the matrix that is written");
  static_assert(!std::is_const_v<ToByte>, "KokkosMX: a Matrix of const bytes cannot be written");
}
}  // namespace Impl

/// Copies a matrix, or a batch of them, into the prepared layout: from (rows, K) in any layouts, to
/// (rows, K) with codes in Tile16x128 and scales in Tile16x4, the same batch extent. The padding of
/// to is written, with 0; that of from is not read. Where to has row summaries they are copied from
/// those of from, or made where from has none. For K a multiple of 128, K >= 512, and rows a
/// multiple of 16, codes, scales and summaries take 4.5 bits an element or less.
/// Asynchronous on exec; neither allocates nor fences.
/// \throws std::invalid_argument, before anything is queued, where extents disagree, K is not a
///   multiple of 32, a layout cannot hold the shape, a View is not allocated or to overlaps from or
///   itself. std::logic_error where Kokkos is not initialized.
template <class ExecSpace, class FromCodes, class FromScales, class FromSpace, class FromByte,
          class ToCodes, class ToScales, class ToSpace, class ToByte>
void prepare(const ExecSpace& exec, const Matrix<FromCodes, FromScales, FromSpace, FromByte>& from,
             const Matrix<ToCodes, ToScales, ToSpace, ToByte>& to) {
  static_assert(Impl::is_prepared_v<ToCodes, ToScales>,
                "KokkosMX::prepare: the output's layouts are Tile16x128 and Tile16x4");
  Impl::check_prepare_types<ExecSpace, FromSpace, ToSpace, ToByte>();
  Impl::copy_matrix(exec, Impl::MatrixCopy::prepare, from.impl_ref(), to.impl_ref());
}

/// The inverse of prepare: from a prepared matrix to one of the same extents in any layouts, whose
/// bytes are those that were prepared. Row summaries as prepare does. \throws as prepare does.
template <class ExecSpace, class FromCodes, class FromScales, class FromSpace, class FromByte,
          class ToCodes, class ToScales, class ToSpace, class ToByte>
void unprepare(const ExecSpace& exec,
               const Matrix<FromCodes, FromScales, FromSpace, FromByte>& from,
               const Matrix<ToCodes, ToScales, ToSpace, ToByte>& to) {
  static_assert(Impl::is_prepared_v<FromCodes, FromScales>,
                "KokkosMX::unprepare: the input's layouts are Tile16x128 and Tile16x4");
  Impl::check_prepare_types<ExecSpace, FromSpace, ToSpace, ToByte>();
  Impl::copy_matrix(exec, Impl::MatrixCopy::unprepare, from.impl_ref(), to.impl_ref());
}

}  // namespace KokkosMX

#endif
