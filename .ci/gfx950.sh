#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Compiles every kernel of the library for MI355X (gfx950) without ROCm and without a GPU: clang 22
# from Debian's security suite, HIP's headers and device libraries of Debian's development suites
# (unpacked into DIR, not installed), and an overlay of the wheel's Kokkos headers in which HIP and
# Serial are switched on. Prints each kernel's registers and memory as the compiler tells them.
#   .ci/gfx950.sh DIR KOKKOS_INCLUDE GENERATED_INCLUDE
set -euo pipefail
mkdir -p "$1"
dir=$(cd "$1" && pwd)
kokkos=$(cd "$2" && pwd)
generated=$(cd "$3" && pwd)
cd "$(dirname "$0")/.."

if ! command -v clang++-22 >/dev/null || ! command -v ld.lld-22 >/dev/null; then
  [ "$(id -u)" = 0 ] || { echo "missing: apt install clang-22 lld-22 llvm-22" >&2; exit 1; }
  DEBIAN_FRONTEND=noninteractive
  export DEBIAN_FRONTEND
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends clang-22 lld-22 llvm-22 >/dev/null
fi

if [ ! -e "$dir/complete" ]; then
  apt=$dir/apt
  rm -rf "$dir/root" "$apt"
  mkdir -p "$apt"/{lists/partial,cache/archives/partial} "$dir/root"
  : >"$apt/status"
  awk '/^$/ { exit } /^Suites:/ { print "Suites: sid experimental"; next } { print }' \
    /etc/apt/sources.list.d/debian.sources >"$apt/dev.sources"
  options=(-o "Dir::Etc::sourcelist=$apt/dev.sources" -o Dir::Etc::sourceparts=-
    -o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache"
    -o Acquire::Check-Valid-Until=false -o Acquire::Retries=3 -o "APT::Sandbox::User=$(id -un)")
  apt-get "${options[@]}" update -qq
  (cd "$apt" && apt-get "${options[@]}" download -qq rocm-device-libs-22/experimental \
    libamdhip64-dev/experimental)
  for deb in "$apt"/*.deb; do dpkg-deb -x "$deb" "$dir/root"; done
  touch "$dir/complete"
fi
bitcode=$(dirname "$(find "$dir/root" -name ocml.bc | head -1)")

overlay=$dir/kokkos
rm -rf "$overlay"
cp -r "$kokkos" "$overlay"
sed -i -e 's|^#define KOKKOS_ENABLE_OPENMP|#define KOKKOS_ENABLE_SERIAL\n#define KOKKOS_ENABLE_HIP|' \
  -e 's|^#define KOKKOS_ENABLE_CXX17|#define KOKKOS_ENABLE_CXX20|' \
  -e 's|^/\* #undef KOKKOS_ARCH_AMD_GFX942 \*/|#define KOKKOS_ARCH_AMD_GFX942|' \
  "$overlay/KokkosCore_config.h"
for list in Declare:decl Fwd:fwd; do
  name=${list%%:*} folder=${list##*:}
  sed -i "s|#include <$folder/Kokkos_${name}_OPENMP.hpp>|#include <$folder/Kokkos_${name}_SERIAL.hpp>\n#include <$folder/Kokkos_${name}_HIP.hpp>|" \
    "$overlay/KokkosCore_Config_${name}Backend.hpp"
done
sed -i 's|^#endif|#include <setup/Kokkos_Setup_HIP.hpp>\n#endif|' \
  "$overlay/KokkosCore_Config_SetupBackend.hpp"
sed -i 's|/\* #undef DESUL_ATOMICS_ENABLE_HIP \*/|#define DESUL_ATOMICS_ENABLE_HIP|' \
  "$overlay/desul/atomics/Config.hpp"

compile() {
  clang++-22 -x hip --offload-arch=gfx950 "--rocm-path=$dir/root/usr" \
    "--rocm-device-lib-path=$bitcode" -std=c++20 -O3 -ffp-contract=off -DKOKKOS_DEPENDENCE \
    -Wall -Wextra -Werror -Wno-deprecated-attributes -isystem "$overlay" -Iinclude "-I$generated" \
    -Rpass-analysis=kernel-resource-usage -c "$1" -o "$dir/$(basename "$1").o" 2>"$dir/$(basename "$1").log" ||
    { cat "$dir/$(basename "$1").log" >&2; return 1; }
}
for source in src/quantize/quantize.cpp src/shuffle/shuffle.cpp src/shuffle/prepare.cpp \
  src/gemm/gemm.cpp; do
  compile "$source"
done
# One row a kernel of ours: scratch memory and spills, which tuning for MI355X has to remove.
for log in "$dir"/*.log; do
  sed -n 's/.*remark: [^ ]* *\(.*\) \[-Rpass.*/\1/p' "$log"
done | awk -F': ' '
  function print_row() { if (name ~ /KokkosMX/) printf "%-20s %-5s VGPRs %4s  scratch %5s B  VGPR spills %4s  waves/SIMD %s\n", kernel, format, v, s, p, o }
  /Name:/ { print_row(); name = $2; kernel = "?"; format = ""
    if (match(name, /QuantizeRow|DequantizeRow|SummarizeRow|GemmKernel|CopyCodes|CopyScalesOfTile32x8|CopyScales|CopySummaries/)) kernel = substr(name, RSTART, RLENGTH)
    if (name ~ /DequantizeRow/) kernel = "DequantizeRow"
    if (match(name, /BF16|F16|F32/)) format = substr(name, RSTART, RLENGTH) }
  /^ *VGPRs:/ { v = $2 } /ScratchSize/ { s = $2 } /VGPRs Spill/ { p = $2 } /Occupancy/ { o = $2 }
  END { print_row() }' | sort -u
