// SPDX-License-Identifier: Apache-2.0

// Runs every suite of a program, and says on what; none with an atom forced that cannot run here.

#include <gtest/gtest.h>

#include <KokkosMX.hpp>
#include <Kokkos_Core.hpp>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <stdexcept>

namespace {

/// The SKIP_RETURN_CODE of the tests that force an atom.
constexpr int exit_skipped = 77;

/// False, after a line that says why, where KOKKOSMX_ATOM names what cannot run here.
bool can_run_forced_atom() try {
  KokkosMX::gemm_atom(Kokkos::DefaultHostExecutionSpace());
  return true;
} catch (const std::runtime_error& error) {
  std::cerr << "not run: " << error.what() << std::endl;
  return false;
}

}  // namespace

int main(int argc, char** argv) try {
  testing::InitGoogleTest(&argc, argv);
  const Kokkos::ScopeGuard kokkos(argc, argv);
  if (!can_run_forced_atom()) return exit_skipped;
  const Kokkos::DefaultExecutionSpace exec;
  std::cout << "KokkosMX " << KOKKOSMX_VERSION_STRING << " on " << exec.name() << ", "
            << exec.concurrency() << " threads; GEMM atom: " << KokkosMX::gemm_atom(exec)
            << std::endl;
  return RUN_ALL_TESTS();
} catch (const std::exception& error) {
  std::cerr << error.what() << std::endl;
  return EXIT_FAILURE;
}
