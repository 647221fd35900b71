// SPDX-License-Identifier: Apache-2.0

// Runs every suite of a program, and says on what.

#include <gtest/gtest.h>

#include <KokkosMX.hpp>
#include <Kokkos_Core.hpp>
#include <cstdlib>
#include <exception>
#include <iostream>

int main(int argc, char** argv) try {
  testing::InitGoogleTest(&argc, argv);
  const Kokkos::ScopeGuard kokkos(argc, argv);
  const Kokkos::DefaultExecutionSpace exec;
  std::cout << "KokkosMX " << KOKKOSMX_VERSION_STRING << " on " << exec.name() << ", "
            << exec.concurrency() << " threads; GEMM atom: " << KokkosMX::gemm_atom(exec)
            << std::endl;
  return RUN_ALL_TESTS();
} catch (const std::exception& error) {
  std::cerr << error.what() << std::endl;
  return EXIT_FAILURE;
}
