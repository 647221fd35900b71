// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_GEMM_HPP
#define KOKKOSMX_GEMM_HPP

/// \file Gemm.hpp
/// The exact product of MXFP4 matrices.
///
/// A is (M, K), B is (N, K), both quantized along K; C = A * B^T is (M, N):
///
///   P[i,j] = RN_f32(sum over k of A[i,k] * B[j,k])    the exact real sum, rounded once to float32:
///            nearest even, subnormals kept, overflow to +-inf; an exact zero is +0, a nonzero sum
///            that rounds to zero keeps its sign
///   t      = RN(alpha * P);  if beta != 0: t = RN(t + RN(beta * f32(C[i,j])));
///            if there is a bias: t = RN(t + bias[j])    float32, one rounding an operation
///   C[i,j] = RNE(t) in C's type (float, BFloat16, Float16)
///
/// A scale of 255 in any block of row i of A or row j of B (also of a block whose codes are all
/// zero) makes P[i,j] a NaN; nothing else makes one in the product, and the epilogue follows IEEE.
/// Every NaN written is 0x7FC00000, 0x7FC0 or 0x7E00. beta == 0: C is not read. alpha == 0: no
/// operand is read and t starts as +0, NaN scales included. BFloat16 and Float16 results are
/// rounded twice by definition.
///
/// The result does not depend on the execution space, compiler, flags, floating-point environment,
/// number of threads or tiling: it is integer arithmetic throughout.

#include <KokkosMX/Export.hpp>
#include <KokkosMX/Matrix.hpp>
#include <KokkosMX/Quantize.hpp>
#include <KokkosMX/Types.hpp>
#include <KokkosMX/Workspace.hpp>

#include <Kokkos_Core.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace KokkosMX {

namespace Impl {
/// Epilogue and options without their memory space.
struct GemmSettings {
  float alpha = 1.0f;
  float beta = 0.0f;
  const float* bias = nullptr;
  bool has_bias = false;
  std::int64_t bias_size = 0, bias_stride = 1;
  Tier minimum_tier = Tier::automatic;
  std::uint64_t* counts = nullptr;
  bool has_counts = false;
  std::int64_t counts_size = 0;
};

/// An operand of a product: an MXFP4 matrix, or a dense one that is quantized in the call.
struct OperandRef {
  bool is_dense;
  MatrixRef matrix;
  DenseRef dense;
};

template <class ExecSpace>
KOKKOSMX_EXPORT std::size_t gemm_workspace_size(const ExecSpace& exec, const OperandRef& a,
                                                const OperandRef& b, const DenseRef& c);
template <class ExecSpace>
KOKKOSMX_EXPORT void gemm(const ExecSpace& exec, void* workspace, std::size_t workspace_bytes,
                          const OperandRef& a, const OperandRef& b, const DenseRef& c,
                          const GemmSettings& settings, const QuantizeRule* rule);
}  // namespace Impl

/// What happens to the exact product before it is stored, and how it is formed.
/// MemorySpace is that of bias and counts.
template <class MemorySpace = Kokkos::DefaultExecutionSpace::memory_space>
class GemmOptions {
 public:
  using memory_space = MemorySpace;

  /// t = RN(alpha * P). alpha == 0: no operand is read. Default 1.
  GemmOptions& alpha(float value) {
    settings_.alpha = value;
    return *this;
  }
  /// t = RN(t + RN(beta * C)). beta == 0 (the default): C is not read.
  GemmOptions& beta(float value) {
    settings_.beta = value;
    return *this;
  }
  /// t = RN(t + bias[j]): a View of float (N), any stride, the same for every batch.
  template <class View>
  GemmOptions& bias(const View& view) {
    static_assert(
        View::rank() == 1 && std::is_same_v<std::remove_cv_t<typename View::value_type>, float>,
        "KokkosMX::GemmOptions: the bias is a View of float of rank 1 (N)");
    static_assert(Impl::accessible_v<MemorySpace, typename View::memory_space>,
                  "KokkosMX::GemmOptions: the bias lies in another memory space");
    settings_.bias = view.data();
    settings_.has_bias = true;
    settings_.bias_size = static_cast<std::int64_t>(view.extent(0));
    settings_.bias_stride = static_cast<std::int64_t>(view.stride(0));
    return *this;
  }
  /// The least tier that an output may take; what it cannot certify takes the next. For tests and
  /// measurements: the bits are the same whatever the tier.
  GemmOptions& minimum_tier(Tier tier) {
    settings_.minimum_tier = tier;
    return *this;
  }
  /// Adds to counts[t], for each tier t, the number of outputs that took it. counts[0]: outputs
  /// that needed no sum. A View of std::uint64_t of extent tier_count, contiguous.
  template <class View>
  GemmOptions& tier_counts(const View& view) {
    static_assert(View::rank() == 1 && std::is_same_v<typename View::value_type, std::uint64_t>,
                  "KokkosMX::GemmOptions: tier_counts is a View of std::uint64_t of rank 1");
    static_assert(Impl::accessible_v<MemorySpace, typename View::memory_space>,
                  "KokkosMX::GemmOptions: tier_counts lies in another memory space");
    static_assert(!std::is_same_v<typename View::array_layout, Kokkos::LayoutStride>,
                  "KokkosMX::GemmOptions: tier_counts is contiguous");
    settings_.counts = view.data();
    settings_.has_counts = true;
    settings_.counts_size = static_cast<std::int64_t>(view.extent(0));
    return *this;
  }
  const Impl::GemmSettings& impl_settings() const { return settings_; }

 private:
  Impl::GemmSettings settings_;
};

namespace Impl {
template <class T>
struct is_matrix : std::false_type {};
template <class CL, class SL, class M, class B>
struct is_matrix<Matrix<CL, SL, M, B>> : std::true_type {};

template <class Operand>
OperandRef operand_ref(const Operand& operand) {
  OperandRef ref{};
  if constexpr (is_matrix<Operand>::value) {
    ref.is_dense = false;
    ref.matrix = operand.impl_ref();
  } else {
    static_assert(Kokkos::is_view_v<Operand>,
                  "KokkosMX: an operand of a product is a KokkosMX::Matrix, or a Kokkos::View that "
                  "the call quantizes");
    static_assert(!std::is_same_v<typename Operand::array_layout, Kokkos::LayoutLeft>,
                  "KokkosMX: the elements of a dense row are contiguous (LayoutRight, or "
                  "LayoutStride with last stride 1)");
    ref.is_dense = true;
    ref.dense = dense_ref(operand);
  }
  return ref;
}

template <class ExecSpace, class A, class B, class CView>
constexpr void check_gemm_types() {
  static_assert(Kokkos::is_execution_space_v<ExecSpace>,
                "KokkosMX: the first argument is an execution-space instance");
  static_assert(accessible_v<ExecSpace, typename A::memory_space>,
                "KokkosMX: the execution space cannot access A");
  static_assert(accessible_v<ExecSpace, typename B::memory_space>,
                "KokkosMX: the execution space cannot access B");
  static_assert(Kokkos::is_view_v<CView> && !std::is_const_v<typename CView::value_type>,
                "KokkosMX: C is a Kokkos::View of writable elements");
  static_assert(accessible_v<ExecSpace, typename CView::memory_space>,
                "KokkosMX: the execution space cannot access C");
}

template <class ExecSpace, class A, class B, class CView, class WorkspaceSpace, class OptionsSpace>
void gemm_front(const ExecSpace& exec, const Workspace<WorkspaceSpace>& workspace, const A& a,
                const B& b, const CView& c, const GemmOptions<OptionsSpace>& options,
                const QuantizeRule* rule) {
  check_gemm_types<ExecSpace, A, B, CView>();
  static_assert(accessible_v<ExecSpace, WorkspaceSpace>,
                "KokkosMX: the execution space cannot access the workspace");
  static_assert(accessible_v<ExecSpace, OptionsSpace>,
                "KokkosMX: the execution space cannot access the bias or the counts");
  gemm(exec, workspace.data(), workspace.bytes(), operand_ref(a), operand_ref(b), dense_ref(c),
       options.impl_settings(), rule);
}

/// Calls f(workspace) with a workspace of its own, then fences.
template <class ExecSpace, class F>
void with_own_workspace(const ExecSpace& exec, std::size_t bytes, F&& f) {
  using Space = typename ExecSpace::memory_space;
  Kokkos::View<std::byte*, Space> buffer(
      Kokkos::view_alloc(exec, "KokkosMX: workspace", Kokkos::WithoutInitializing), bytes);
  f(Workspace<Space>(buffer));
  exec.fence("KokkosMX: the call's own workspace is freed");
}
}  // namespace Impl

/// Bytes of workspace that gemm needs for these operands on exec: room for the summaries that
/// matrices lack and, where the atom has a kernel for hosts, for what its threads work on. Depends
/// on exec's concurrency and on the atom that runs (gemm_atom), so ask with the instance that the
/// call gets. Reads no operand. On a device whose matrix unit adds floats, the first call runs a
/// self-check there: it allocates and waits; without it products take the integer unit. \throws as
/// gemm does.
template <class ExecSpace, class A, class B, class CView>
std::size_t gemm_workspace_size(const ExecSpace& exec, const A& a, const B& b, const CView& c) {
  static_assert(Impl::is_matrix<A>::value && Impl::is_matrix<B>::value,
                "KokkosMX::gemm_workspace_size: A and B are of type KokkosMX::Matrix");
  Impl::check_gemm_types<ExecSpace, A, B, CView>();
  return Impl::gemm_workspace_size(exec, Impl::operand_ref(a), Impl::operand_ref(b),
                                   Impl::dense_ref(c));
}

/// C = epilogue(A * B^T), exact (see the top of this file). a (M, K) and b (N, K): KokkosMX::Matrix
/// in any layouts; c (M, N): a View of float, BFloat16 or Float16 of rank 2, or 3 with a batch in
/// front, with any strides (LayoutRight, LayoutLeft, LayoutStride). Every M, N >= 0 and every K >=
/// 0 that is a multiple of 32; K == 0 gives P = +0. A batch extent of 1 in a or b serves all of c's
/// batches. Asynchronous on exec; neither allocates nor fences.
/// \throws std::invalid_argument, before anything is queued and with c untouched, where extents
///   disagree, K is not a multiple of 32, a layout cannot hold the shape, a View is not allocated,
///   c overlaps an operand, the bias, the workspace or itself, or the workspace is too small.
///   std::logic_error where Kokkos is not initialized.
template <class ExecSpace, class WorkspaceSpace, class A, class B, class CView,
          class OptionsSpace = typename ExecSpace::memory_space>
void gemm(const ExecSpace& exec, const Workspace<WorkspaceSpace>& workspace, const A& a, const B& b,
          const CView& c, const GemmOptions<OptionsSpace>& options = {}) {
  static_assert(Impl::is_matrix<A>::value && Impl::is_matrix<B>::value,
                "KokkosMX::gemm: A and B are of type KokkosMX::Matrix (quantize_gemm takes dense "
                "operands)");
  Impl::gemm_front(exec, workspace, a, b, c, options, nullptr);
}

/// The same with a workspace of its own: allocates, and fences exec before it returns.
template <class ExecSpace, class A, class B, class CView,
          class OptionsSpace = typename ExecSpace::memory_space>
requires Impl::is_matrix<A>::value void gemm(const ExecSpace& exec, const A& a, const B& b,
                                             const CView& c,
                                             const GemmOptions<OptionsSpace>& options = {}) {
  Impl::with_own_workspace(exec, gemm_workspace_size(exec, a, b, c),
                           [&](const auto& workspace) { gemm(exec, workspace, a, b, c, options); });
}

/// Bytes of workspace that quantize_gemm needs on exec: as gemm_workspace_size, and room for what
/// the call quantizes, in whole or a part for each thread at a time. Reads no operand; what it
/// allocates is what gemm_workspace_size does. \throws as quantize_gemm does.
template <class ExecSpace, class A, class B, class CView>
std::size_t quantize_gemm_workspace_size(const ExecSpace& exec, const A& a, const B& b,
                                         const CView& c) {
  Impl::check_gemm_types<ExecSpace, A, B, CView>();
  return Impl::gemm_workspace_size(exec, Impl::operand_ref(a), Impl::operand_ref(b),
                                   Impl::dense_ref(c));
}

/// C = epilogue(Q(A) * Q(B)^T): quantizes the dense operands by the rule, then gemm. a (M, K) and
/// b (N, K) are each a View of float, BFloat16 or Float16 (rows contiguous; rank 2 or 3), or a
/// KokkosMX::Matrix prepared before. With two dense bf16 operands, a bf16 c and rules::reference it
/// is the reference PyTorch code's custom_kernel with the exact sum.
/// Asynchronous on exec; neither allocates nor fences.
/// \throws as quantize and gemm do.
template <class ExecSpace, class WorkspaceSpace, class A, class B, class CView,
          class OptionsSpace = typename ExecSpace::memory_space>
void quantize_gemm(const ExecSpace& exec, const Workspace<WorkspaceSpace>& workspace, const A& a,
                   const B& b, const CView& c, QuantizeRule rule,
                   const GemmOptions<OptionsSpace>& options = {}) {
  Impl::gemm_front(exec, workspace, a, b, c, options, &rule);
}

/// The same with a workspace of its own: allocates, and fences exec before it returns.
template <class ExecSpace, class A, class B, class CView,
          class OptionsSpace = typename ExecSpace::memory_space>
void quantize_gemm(const ExecSpace& exec, const A& a, const B& b, const CView& c, QuantizeRule rule,
                   const GemmOptions<OptionsSpace>& options = {}) {
  Impl::with_own_workspace(
      exec, quantize_gemm_workspace_size(exec, a, b, c),
      [&](const auto& workspace) { quantize_gemm(exec, workspace, a, b, c, rule, options); });
}

/// The name of the atom that gemm runs on exec: the best that the processor can, or the one that
/// the environment variable KOKKOSMX_ATOM names. \throws std::runtime_error where KOKKOSMX_ATOM
/// names one that cannot run; it lists those that can.
template <class ExecSpace>
KOKKOSMX_EXPORT const char* gemm_atom(const ExecSpace& exec);

}  // namespace KokkosMX

#endif
