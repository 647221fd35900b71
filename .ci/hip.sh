# SPDX-License-Identifier: Apache-2.0
#
# What is sourced by scripts that compile for devices without any. They set: dir (where tools and
# overlays go), kokkos (the wheel's headers).
#
# AMD's tools: clang 22 from Debian's security suite, HIP's headers and device libraries of its
# development suites (unpacked into dir/root, not installed).

hip_tools() {
  if ! command -v clang++-22 >/dev/null || ! command -v ld.lld-22 >/dev/null; then
    [ "$(id -u)" = 0 ] || { echo "missing: apt install clang-22 lld-22 llvm-22" >&2; exit 1; }
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends clang-22 lld-22 \
      llvm-22 >/dev/null
  fi
  [ ! -e "$dir/complete" ] || return 0
  local apt=$dir/apt options deb
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
}

# overlay SPACE FILE-OF-SPACE HOST TO: the wheel's headers with a device, and with Serial in OpenMP's
# place where HOST is SERIAL.
overlay() {
  local space=$1 name=$2 host=$3 to=$4 list part folder
  rm -rf "$to"
  cp -r "$kokkos" "$to"
  sed -i -e "s|^#define KOKKOS_ENABLE_OPENMP|#define KOKKOS_ENABLE_$host\n#define KOKKOS_ENABLE_$space|" \
    -e 's|^#define KOKKOS_ENABLE_CXX17|#define KOKKOS_ENABLE_CXX20|' "$to/KokkosCore_config.h"
  for list in Declare:decl Fwd:fwd; do
    part=${list%%:*} folder=${list##*:}
    sed -i "s|#include <$folder/Kokkos_${part}_OPENMP.hpp>|#include <$folder/Kokkos_${part}_$host.hpp>\n#include <$folder/Kokkos_${part}_$space.hpp>|" \
      "$to/KokkosCore_Config_${part}Backend.hpp"
  done
  sed -i "s|^#endif|#include <setup/Kokkos_Setup_$name.hpp>\n#endif|" \
    "$to/KokkosCore_Config_SetupBackend.hpp"
  sed -i "s|/\* #undef DESUL_ATOMICS_ENABLE_$space \*/|#define DESUL_ATOMICS_ENABLE_$space|" \
    "$to/desul/atomics/Config.hpp"
}

# hip_overlay HOST TO
hip_overlay() {
  overlay HIP HIP "$1" "$2"
  sed -i 's|^/\* #undef KOKKOS_ARCH_AMD_GFX942 \*/|#define KOKKOS_ARCH_AMD_GFX942|' \
    "$2/KokkosCore_config.h"
}

# hip_compiler TARGET OVERLAY GENERATED: sets hip, a command line.
hip_compiler() {
  hip=(clang++-22 -x hip "--offload-arch=$1" "--rocm-path=$dir/root/usr"
    "--rocm-device-lib-path=$(dirname "$(find "$dir/root" -name ocml.bc | head -1)")"
    -std=c++20 -O3 -ffp-contract=off -DKOKKOS_DEPENDENCE -Wall -Wextra -Werror
    -Wno-deprecated-attributes -isystem "$2" -Iinclude -Isrc "-I$3")
}
