// SPDX-License-Identifier: Apache-2.0

// Gemm.hpp and Workspace.hpp.

#include "Operands.hpp"

using Plain = Matrix<RowMajor, RowMajor>;
using Far = Matrix<RowMajor, RowMajor, FarSpace>;
using C = View<float**>;

void operands(const Exec& exec, const KokkosMX::Workspace<Host>& workspace) {
  // expect: KokkosMX::gemm: A and B are of type KokkosMX::Matrix (quantize_gemm takes dense operands)
  KokkosMX::gemm(exec, workspace, an<View<float**>>(), an<View<float**>>(), an<C>());
  // expect: KokkosMX::gemm_workspace_size: A and B are of type KokkosMX::Matrix
  (void)KokkosMX::gemm_workspace_size(exec, an<Plain>(), an<View<float**>>(), an<C>());
  // expect: KokkosMX: the first argument is an execution-space instance
  KokkosMX::gemm(an<Host>(), workspace, an<Plain>(), an<Plain>(), an<C>());
  // expect: KokkosMX: the execution space cannot access A
  KokkosMX::gemm(exec, workspace, an<Far>(), an<Plain>(), an<C>());
  // expect: KokkosMX: the execution space cannot access B
  KokkosMX::gemm(exec, workspace, an<Plain>(), an<Far>(), an<C>());
  // expect: KokkosMX: the execution space cannot access C
  KokkosMX::gemm(exec, workspace, an<Plain>(), an<Plain>(), an<FarView<float**>>());
  // expect: KokkosMX: C is a Kokkos::View of writable elements
  KokkosMX::gemm(exec, workspace, an<Plain>(), an<Plain>(), an<View<const float**>>());
  // expect: KokkosMX: the execution space cannot access the workspace
  KokkosMX::gemm(exec, an<KokkosMX::Workspace<FarSpace>>(), an<Plain>(), an<Plain>(), an<C>());
  // expect: KokkosMX: the execution space cannot access the bias or the counts
  KokkosMX::gemm(exec, workspace, an<Plain>(), an<Plain>(), an<C>(),
                 an<KokkosMX::GemmOptions<FarSpace>>());
  // expect: KokkosMX: dense elements are float, KokkosMX::BFloat16 or KokkosMX::Float16 (see KokkosMX::reinterpret for 2-byte types of others)
  KokkosMX::gemm(exec, workspace, an<Plain>(), an<Plain>(), an<View<double**>>());
}

struct NoOperand {
  using memory_space = Host;
  using array_layout = Kokkos::LayoutRight;
};

void dense_operands(const Exec& exec, const KokkosMX::Workspace<Host>& workspace) {
  // expect: KokkosMX: an operand of a product is a KokkosMX::Matrix, or a Kokkos::View that the call quantizes
  KokkosMX::quantize_gemm(exec, workspace, an<NoOperand>(), an<Plain>(), an<C>(), rule);
  // expect: KokkosMX: the elements of a dense row are contiguous (LayoutRight, or LayoutStride with last stride 1)
  KokkosMX::quantize_gemm(exec, workspace, an<View<float**, Kokkos::LayoutLeft>>(), an<Plain>(),
                          an<C>(), rule);
}

void options(KokkosMX::GemmOptions<Host>& options) {
  // expect: KokkosMX::GemmOptions: the bias is a View of float of rank 1 (N)
  options.bias(an<View<double*>>());
  // expect: KokkosMX::GemmOptions: the bias lies in another memory space
  options.bias(an<FarView<float*>>());
  // expect: KokkosMX::GemmOptions: tier_counts is a View of std::uint64_t of rank 1
  options.tier_counts(an<View<std::uint32_t*>>());
  // expect: KokkosMX::GemmOptions: tier_counts lies in another memory space
  options.tier_counts(an<FarView<std::uint64_t*>>());
  // expect: KokkosMX::GemmOptions: tier_counts is contiguous
  options.tier_counts(an<View<std::uint64_t*, Kokkos::LayoutStride>>());
}

void workspaces() {
  // expect: KokkosMX::Workspace: the View has rank 1, is contiguous and writable
  (void)KokkosMX::Workspace<Host>(an<View<double**>>());
  // expect: KokkosMX::Workspace: the View lies in another memory space
  (void)KokkosMX::Workspace<Host>(an<FarView<double*>>());
}
