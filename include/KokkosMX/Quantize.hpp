// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_QUANTIZE_HPP
#define KOKKOSMX_QUANTIZE_HPP

/// \file Quantize.hpp
/// Dense rows to MXFP4 and back. Integer arithmetic on the numbers' bits alone: no flag of a
/// compiler, no state of a floating-point unit changes a bit.

#include <KokkosMX/Export.hpp>
#include <KokkosMX/Matrix.hpp>
#include <KokkosMX/Types.hpp>

#include <Kokkos_Core.hpp>

#include <type_traits>

namespace KokkosMX {

namespace Impl {
template <class ExecSpace>
KOKKOSMX_EXPORT void quantize(const ExecSpace& exec, const DenseRef& x, const MatrixRef& q,
                              QuantizeRule rule);
template <class ExecSpace>
KOKKOSMX_EXPORT void dequantize(const ExecSpace& exec, const MatrixRef& q, const DenseRef& x);

template <class ExecSpace, class XView, class MatrixSpace>
constexpr void check_quantize_types() {
  static_assert(Kokkos::is_execution_space_v<ExecSpace>,
                "KokkosMX: the first argument is an execution-space instance");
  static_assert(accessible_v<ExecSpace, typename XView::memory_space>,
                "KokkosMX: the execution space cannot access the dense operand");
  static_assert(accessible_v<ExecSpace, MatrixSpace>,
                "KokkosMX: the execution space cannot access the matrix");
  static_assert(
      !std::is_same_v<typename XView::array_layout, Kokkos::LayoutLeft>,
      "KokkosMX: the elements of a dense row are contiguous (LayoutRight, or LayoutStride "
      "with last stride 1)");
}
}  // namespace Impl

/// Quantizes x (rows, K), float, BFloat16 or Float16, to q: for each block of 32 elements along K
///   amax = max |x|,  s = the rule's scale of amax,  code = the rule's rounding of x * 2^(127 - s).
/// x is a View of rank 2 (rows, K) or 3 (batch, rows, K), each row contiguous, any stride between
/// rows. Writes q's codes (rows, K/2 bytes, low nibble = even k), scales (for Tile32x8 the padding
/// too, with 0) and, where q has them, row summaries, all in one pass over x.
/// NaN and infinity: as the rule says (NonFinite). Definitions: OCP MX v1.0; ScaleMode and
/// Rounding. Asynchronous on exec; neither allocates nor fences. \throws std::invalid_argument,
/// before anything is queued, where K is not a multiple of 32,
///   extents disagree, a layout cannot hold the shape, a View is not allocated, or outputs overlap
///   x or one another. std::logic_error where Kokkos is not initialized.
template <class ExecSpace, class XView, class CodesLayout, class ScalesLayout, class MemorySpace>
void quantize(const ExecSpace& exec, const XView& x,
              const Matrix<CodesLayout, ScalesLayout, MemorySpace, std::uint8_t>& q,
              QuantizeRule rule) {
  Impl::check_quantize_types<ExecSpace, XView, MemorySpace>();
  Impl::quantize(exec, Impl::dense_ref(x), q.impl_ref(), rule);
}

/// The same into memory that it allocates: x (rows, K) to row-major codes and scales with
/// summaries. Allocates, and fences exec before it returns.
template <class ExecSpace, class XView>
auto quantize(const ExecSpace& exec, const XView& x, QuantizeRule rule) {
  using Space = typename XView::memory_space;
  const Impl::DenseRef ref = Impl::dense_ref(x);
  MatrixStorage<RowMajor, RowMajor, Space> storage("KokkosMX::quantize", ref.rows, ref.cols,
                                                   ref.batch);
  quantize(exec, x, storage.matrix(), rule);
  exec.fence("KokkosMX::quantize: result is ready");
  return storage;
}

/// Dequantizes q (rows, K) to x (rows, K) of float, BFloat16 or Float16:
///   x = RN(magnitude(code) * 2^(s - 127)) with the code's sign, rounded once to x's type: nearest
/// even, subnormals kept, overflow to +-inf, -0 kept. A scale of 255 gives the canonical NaN
/// (0x7FC00000, 0x7FC0, 0x7E00) for the whole block. q may have any layout.
/// Asynchronous on exec; neither allocates nor fences.
/// \throws as quantize does.
template <class ExecSpace, class CodesLayout, class ScalesLayout, class MemorySpace, class Byte,
          class XView>
void dequantize(const ExecSpace& exec,
                const Matrix<CodesLayout, ScalesLayout, MemorySpace, Byte>& q, const XView& x) {
  Impl::check_quantize_types<ExecSpace, XView, MemorySpace>();
  static_assert(!std::is_const_v<typename XView::value_type>,
                "KokkosMX::dequantize: a View of const elements cannot be written");
  Impl::dequantize(exec, q.impl_ref(), Impl::dense_ref(x));
}

}  // namespace KokkosMX

#endif
