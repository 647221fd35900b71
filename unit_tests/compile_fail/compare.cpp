// SPDX-License-Identifier: Apache-2.0

// Compare.hpp.

#include "Operands.hpp"

using Plain = Matrix<RowMajor, RowMajor>;
using C = View<float**>;
using Verdicts = View<KokkosMX::OutputVerdict**>;
struct NoView {
  using memory_space = Host;
};

void operands(const Exec& exec, const KokkosMX::Workspace<Host>& workspace) {
  // expect: KokkosMX::compare_workspace_size: A and B are of type KokkosMX::Matrix
  (void)KokkosMX::compare_workspace_size(exec, an<Plain>(), an<View<float**>>(), an<C>());
  // expect: KokkosMX::compare: A and B are of type KokkosMX::Matrix
  KokkosMX::compare(exec, workspace, an<View<float**>>(), an<Plain>(), an<C>(), an<Verdicts>());
  // expect: KokkosMX::compare: C is a Kokkos::View
  KokkosMX::compare(exec, workspace, an<Plain>(), an<Plain>(), an<NoView>(), an<Verdicts>());
  // expect: KokkosMX::compare: the execution space cannot access C
  KokkosMX::compare(exec, workspace, an<Plain>(), an<Plain>(), an<FarView<float**>>(),
                    an<Verdicts>());
  // expect: KokkosMX::compare: the execution space cannot access the workspace
  KokkosMX::compare(exec, an<KokkosMX::Workspace<FarSpace>>(), an<Plain>(), an<Plain>(), an<C>(),
                    an<Verdicts>());
  // expect: KokkosMX::compare: verdicts are a writable Kokkos::View of KokkosMX::OutputVerdict of rank 2 (M, N) or 3 (batch, M, N)
  KokkosMX::compare(exec, workspace, an<Plain>(), an<Plain>(), an<C>(), an<View<float**>>());
}
