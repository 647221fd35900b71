#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# For people with an MI355X: all that .ci/gfx950.sh runs without one, the unit tests and the perf tests,
# on the device.
#   .ci/mi355x.sh KOKKOS_PREFIX
# KOKKOS_PREFIX: a Kokkos made by hipcc with -DKokkos_ENABLE_HIP=ON -DKokkos_ENABLE_OPENMP=ON
# -DKokkos_ARCH_AMD_GFX950=ON (GFX942 for one before 4.7.03). Needs GoogleTest, and Google Benchmark for
# the perf tests. Everything is in build/mi355x/result.txt at the end: please send that file.
set -euo pipefail
kokkos=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
build=build/mi355x
mkdir -p $build
result=$build/result.txt
failed=0
say() { echo "== $*"; }
attempt() {
  say "$@"
  "$@" || { failed=$((failed + 1)) && say "failed: $*"; }
}
{
  say "KokkosMX $(git describe --always --dirty), $(date -u +%F)"
  rocminfo 2>/dev/null | grep -E 'Marketing Name|gfx' | sort | uniq -c || true
  hipcc --version | head -3
  cmake -S . -B $build -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER=hipcc \
    -DKokkos_ROOT="$kokkos" -DKokkosMX_FETCH_KOKKOS=OFF
  cmake --build $build -j "$(nproc)"
  export OMP_PROC_BIND=spread OMP_PLACES=threads
  # Every bit as on the host and as in the golden data; then everything else.
  for program in Test_Rows Test_Products; do
    attempt $build/unit_tests/gfx950/$program --gtest_brief=1
  done
  attempt ctest --test-dir $build -L quick --output-on-failure
  for program in Leaderboard Gemm Quantize Shuffle; do
    if [ -x $build/perf_tests/PerfTest_$program ]; then attempt $build/perf_tests/PerfTest_$program; fi
  done
  say "$failed of these failed"
  [ $failed = 0 ]
} 2>&1 | tee $result
