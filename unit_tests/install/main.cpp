// SPDX-License-Identifier: Apache-2.0

// Quantizes two matrices, multiplies them, and compares with the value worked out by hand. Uses
// what is compiled into the library and what is in its headers.

#include <KokkosMX.hpp>
#include <Kokkos_Core.hpp>
#include <cstdio>
#include <cstdlib>

int main(int argc, char* argv[]) {
  static_assert(KOKKOSMX_VERSION >= 100);
  Kokkos::ScopeGuard guard(argc, argv);
  using Space = Kokkos::DefaultExecutionSpace;

  constexpr int m = 3, n = 5, k = 64;
  Kokkos::View<float**, Kokkos::LayoutRight, Space> a("a", m, k), b("b", n, k);
  Kokkos::View<float**, Kokkos::LayoutRight, Space> c("c", m, n);
  Kokkos::deep_copy(a, 1.5f);   // a block's largest is 1.5, so its scale is 1/4 and its codes are 6
  Kokkos::deep_copy(b, -0.5f);  // likewise 1/8 and -4
  KokkosMX::quantize_gemm(Space(), a, b, c, KokkosMX::rules::ocp_floor);

  Kokkos::View<float**, Kokkos::LayoutRight, Kokkos::HostSpace> host("host", m, n);
  Kokkos::deep_copy(host, c);
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < n; ++j) {
      if (host(i, j) != -0.75f * k) {
        std::printf("C(%d, %d) = %g, not %g\n", i, j, host(i, j), -0.75 * k);
        return EXIT_FAILURE;
      }
    }
  }
  std::printf("KokkosMX %s: %d x %d x %d as it should be\n", KOKKOSMX_VERSION_STRING, m, n, k);
  return EXIT_SUCCESS;
}
