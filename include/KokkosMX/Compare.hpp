// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_COMPARE_HPP
#define KOKKOSMX_COMPARE_HPP

/// \file Compare.hpp
/// The verdict on somebody's product: which of its outputs are right, which are not the exact ones
/// but what a float32 accumulation may give, and which nothing excuses.

#include <KokkosMX/Export.hpp>
#include <KokkosMX/Gemm.hpp>
#include <KokkosMX/Matrix.hpp>
#include <KokkosMX/Types.hpp>
#include <KokkosMX/Workspace.hpp>

#include <Kokkos_Core.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace KokkosMX {

/// What is to be said of one output.
enum class Verdict : std::uint8_t {
  /// The bits of the exact product in C's type; where that is a NaN, any NaN.
  equal = 0,
  /// -0 where the exact product is +0 and every term of the sum is -0: a sum that starts with its
  /// first term gives that. Excusable.
  zero_sign = 1,
  /// Not certified, and a float32 accumulation may give it (see OutputVerdict::bound). Excusable.
  within_bound = 2,
  /// Differs, though every float32 accumulation gives the exact sum, whatever its order.
  certified_differs = 3,
  /// Not certified, but no float32 accumulation gives it.
  beyond_bound = 4,
  /// A NaN where a number is due, or a number where a NaN is.
  nan_differs = 5
};
/// The number of enumerators of Verdict.
inline constexpr int verdict_count = 6;

/// True where a difference, or its absence, speaks for no mistake.
constexpr bool is_excusable(Verdict verdict) { return verdict <= Verdict::within_bound; }

/// All that is known of one output.
struct OutputVerdict {
  /// P: the exact sum, rounded once to float32.
  float exact;
  /// How far from the exact sum a float32 accumulation may end, for outputs that differ and are not
  /// certified; otherwise 0. With K terms a_k b_k, S = sum |a_k b_k|, u = 2^-24:
  ///   bound = gamma (S + U) + U,  gamma = K u / (1 - K u),  U = 2 K 2^-126.
  /// gamma S is the bound of any order of summation with rounding to nearest (Higham, Accuracy and
  /// Stability of Numerical Algorithms, 2nd ed., section 4.2; the products of e2m1 codes are exact
  /// in float32), U is what products and sums flushed to zero can lose. Infinite where a partial
  /// sum may overflow.
  float bound;
  Verdict verdict;
  /// 1 where the certificate says that every partial sum, in any order, is exact in float32: sum_k
  /// |a_k b_k| <= 2^24 units of 2^(lo_i + lo_j - 256), lo the least scale of the row's nonzero
  /// blocks, and 130 <= lo_i + lo_j <= 359, so that neither unit nor sum leaves float32's exponents
  /// and no subnormal is met. Shown by Cauchy-Schwarz on the rows' summaries and, for outputs that
  /// differ, by the sum itself. Rows without a nonzero code are certified, rows with a NaN not.
  std::uint8_t certified;
  std::uint8_t reserved[2];
};
static_assert(sizeof(OutputVerdict) == 12);

namespace Impl {
/// Verdicts as the caller's View describes them: extents and strides in OutputVerdict.
struct VerdictsRef {
  OutputVerdict* data;
  std::int64_t batch, rows, cols;
  std::int64_t batch_stride, row_stride, col_stride;
};

template <class View>
VerdictsRef verdicts_ref(const View& view) {
  static_assert(
      Kokkos::is_view_v<View> && std::is_same_v<typename View::value_type, OutputVerdict> &&
          (View::rank() == 2 || View::rank() == 3),
      "KokkosMX::compare: verdicts are a writable Kokkos::View of KokkosMX::OutputVerdict of rank "
      "2 (M, N) or 3 (batch, M, N)");
  return {view.data(),
          extent_from_end(view, 2),
          extent_from_end(view, 1),
          extent_from_end(view, 0),
          stride_from_end(view, 2),
          stride_from_end(view, 1),
          stride_from_end(view, 0)};
}

template <class ExecSpace>
KOKKOSMX_EXPORT std::size_t compare_workspace_size(const ExecSpace& exec, const MatrixRef& a,
                                                   const MatrixRef& b, const DenseRef& c);
template <class ExecSpace>
KOKKOSMX_EXPORT void compare(const ExecSpace& exec, void* workspace, std::size_t workspace_bytes,
                             const MatrixRef& a, const MatrixRef& b, const DenseRef& c,
                             const VerdictsRef& verdicts);
}  // namespace Impl

/// Bytes of workspace that compare needs. Allocates nothing, reads no operand. \throws as compare.
template <class ExecSpace, class A, class B, class CView>
std::size_t compare_workspace_size(const ExecSpace& exec, const A& a, const B& b, const CView& c) {
  static_assert(Impl::is_matrix<A>::value && Impl::is_matrix<B>::value,
                "KokkosMX::compare_workspace_size: A and B are of type KokkosMX::Matrix");
  Impl::check_gemm_types<ExecSpace, A, B, Kokkos::View<float**, typename A::memory_space>>();
  return Impl::compare_workspace_size(exec, a.impl_ref(), b.impl_ref(), Impl::dense_ref(c));
}

/// Judges each output of c (M, N), or (batch, M, N), which somebody computed as A * B^T from the
/// codes and scales of a (M, K) and b (N, K), without an epilogue: writes verdicts (M, N), or
/// (batch, M, N). c: a View of float, BFloat16 or Float16 with any strides, or of const ones. Costs
/// a product, and for each output that differs and is not certified by its row's and column's
/// summaries a pass over its row and column. Asynchronous on exec; neither allocates nor fences.
/// \throws as gemm does.
template <class ExecSpace, class WorkspaceSpace, class A, class B, class CView, class VerdictsView>
void compare(const ExecSpace& exec, const Workspace<WorkspaceSpace>& workspace, const A& a,
             const B& b, const CView& c, const VerdictsView& verdicts) {
  static_assert(Impl::is_matrix<A>::value && Impl::is_matrix<B>::value,
                "KokkosMX::compare: A and B are of type KokkosMX::Matrix");
  Impl::check_gemm_types<ExecSpace, A, B, VerdictsView>();
  static_assert(Kokkos::is_view_v<CView>, "KokkosMX::compare: C is a Kokkos::View");
  static_assert(Impl::accessible_v<ExecSpace, typename CView::memory_space>,
                "KokkosMX::compare: the execution space cannot access C");
  static_assert(Impl::accessible_v<ExecSpace, WorkspaceSpace>,
                "KokkosMX::compare: the execution space cannot access the workspace");
  Impl::compare(exec, workspace.data(), workspace.bytes(), a.impl_ref(), b.impl_ref(),
                Impl::dense_ref(c), Impl::verdicts_ref(verdicts));
}

/// The same with a workspace of its own: allocates, and fences exec before it returns.
template <class ExecSpace, class A, class B, class CView, class VerdictsView>
requires Impl::is_matrix<A>::value void compare(const ExecSpace& exec, const A& a, const B& b,
                                                const CView& c, const VerdictsView& verdicts) {
  Impl::with_own_workspace(exec, compare_workspace_size(exec, a, b, c), [&](const auto& workspace) {
    compare(exec, workspace, a, b, c, verdicts);
  });
}

}  // namespace KokkosMX

#endif
