// SPDX-License-Identifier: Apache-2.0

// What the build promises about the process: one OpenMP runtime, and the version of the headers.

#include <gtest/gtest.h>

#include <KokkosMX.hpp>
#include <Kokkos_Core.hpp>
#include <fstream>
#include <iostream>
#include <set>
#include <sstream>
#include <string>

namespace {

// The files mapped into this process whose names are those of OpenMP runtimes, by device and inode.
std::set<std::string> openmp_runtimes() {
  std::set<std::string> found;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    std::istringstream fields(line);
    std::string range, permissions, offset, device, inode, path;
    fields >> range >> permissions >> offset >> device >> inode >> path;
    const std::string name = path.substr(path.rfind('/') + 1);
    for (const char* runtime :
         {"libgomp.", "libgomp-", "libomp.", "libomp-", "libomp5.", "libiomp5."}) {
      if (name.rfind(runtime, 0) == 0 && found.insert(device + ' ' + inode).second) {
        std::cout << "OpenMP runtime: " << path << '\n';
      }
    }
  }
  return found;
}

TEST(Runtime, OneOpenMPRuntime) {
#ifdef KOKKOS_ENABLE_OPENMP
  // Both Kokkos' own library and this program have used it by now.
  int sum = 0;
#pragma omp parallel reduction(+ : sum)
  sum += 1;
  EXPECT_GE(sum, 1);
  EXPECT_EQ(Kokkos::OpenMP().concurrency(), omp_get_max_threads());
  EXPECT_EQ(openmp_runtimes().size(), 1u);
#else
  GTEST_SKIP() << "Kokkos has no OpenMP";
#endif
}

TEST(Runtime, Version) {
  EXPECT_EQ(KOKKOSMX_VERSION,
            KOKKOSMX_VERSION_MAJOR * 10000 + KOKKOSMX_VERSION_MINOR * 100 + KOKKOSMX_VERSION_PATCH);
  EXPECT_EQ(std::string(KOKKOSMX_VERSION_STRING), std::to_string(KOKKOSMX_VERSION_MAJOR) + "." +
                                                      std::to_string(KOKKOSMX_VERSION_MINOR) + "." +
                                                      std::to_string(KOKKOSMX_VERSION_PATCH));
}

}  // namespace
