#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Compiles every kernel of the library for devices, without any, and checks what the compilers say of
# each against .ci/device_expectations.txt: no scratch memory, no spills, the intended occupancy,
# matrix instructions and 16-byte loads where they belong.
#   .ci/device.sh DIR KOKKOS_INCLUDE GENERATED_INCLUDE [TARGET...]
# Targets: gfx950 gfx942 sm_90a sm_80 (all of them where none is named).
#
# AMD's tools and overlays of the wheel's headers of Kokkos, in which another execution space is switched
# on: hip.sh. NVIDIA's: nvcc 13, or its wheels in DIR.
set -euo pipefail
mkdir -p "$1"
dir=$(cd "$1" && pwd)
kokkos=$(cd "$2" && pwd)
generated=$(cd "$3" && pwd)
shift 3
cd "$(dirname "$0")/.."
targets=("$@")
[ $# -gt 0 ] || targets=(gfx950 gfx942 sm_90a sm_80)

. .ci/hip.sh

cuda_tools() {
  nvcc=$(command -v nvcc || true)
  [ -n "$nvcc" ] || [ ! -x /usr/local/cuda/bin/nvcc ] || nvcc=/usr/local/cuda/bin/nvcc
  if [ -z "$nvcc" ]; then
    if [ ! -e "$dir/cuda/complete" ]; then
      python3 -m venv "$dir/cuda"
      "$dir/cuda/bin/pip" install --quiet 'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-runtime==13.0.*' \
        'nvidia-nvvm==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-cuda-cccl==13.0.*'
      touch "$dir/cuda/complete"
    fi
    nvcc=$(find "$dir/cuda" -name nvcc -type f | head -1)
    chmod +x "$nvcc" "$(dirname "$nvcc")"/*
  fi
}

hip=0 cuda=0
for target in "${targets[@]}"; do
  case $target in gfx*) hip=1 ;; sm_*) cuda=1 ;; *) echo "no target $target" >&2; exit 2 ;; esac
done
if [ $hip = 1 ]; then
  hip_tools
  hip_overlay SERIAL "$dir/kokkos-HIP"
fi
nvcc=
if [ $cuda = 1 ]; then
  cuda_tools
  overlay CUDA Cuda SERIAL "$dir/kokkos-CUDA"
  # This Kokkos is older than CUDA 13, whose calls take more; and host and device disagree on the
  # size of its newer View.
  sed -i -e 's|^/\* #undef KOKKOS_ARCH_HOPPER90 \*/|#define KOKKOS_ARCH_HOPPER90|' \
    -e 's|^/\* #undef KOKKOS_ARCH_HOPPER \*/|#define KOKKOS_ARCH_HOPPER|' \
    -e 's|^/\* #undef KOKKOS_ENABLE_CUDA_LAMBDA \*/|#define KOKKOS_ENABLE_CUDA_LAMBDA|' \
    -e 's|^/\* #undef KOKKOS_ENABLE_CUDA_CONSTEXPR \*/|#define KOKKOS_ENABLE_CUDA_CONSTEXPR|' \
    -e 's|^#define KOKKOS_ENABLE_IMPL_MDSPAN|/* #undef KOKKOS_ENABLE_IMPL_MDSPAN */|' \
    -e 's|^/\* #undef KOKKOS_ENABLE_IMPL_VIEW_LEGACY \*/|#define KOKKOS_ENABLE_IMPL_VIEW_LEGACY|' \
    "$dir/kokkos-CUDA/KokkosCore_config.h"
  sed -i -e 's|cudaGraphAddDependencies(graph, from, to, numDependencies)|cudaGraphAddDependencies(graph, from, to, nullptr, numDependencies)|' \
    -e 's|cudaMemPrefetchAsync(devPtr, count, dstDevice, m_stream)|cudaMemPrefetchAsync(devPtr, count, cudaMemLocation{cudaMemLocationTypeDevice, dstDevice}, 0, m_stream)|' \
    "$dir/kokkos-CUDA/Cuda/Kokkos_Cuda_Instance.hpp"
fi

# compile TARGET SOURCE: assembly and what the compiler says, beside one another.
compile() {
  local target=$1 source=$2 out
  out=$dir/$target-$(basename "$source" .cpp)
  rm -f "$out.s" "$out.log"
  case $target in
    gfx*)
      hip_compiler "$target" "$dir/kokkos-HIP" "$generated"
      "${hip[@]}" --cuda-device-only -S -Rpass-analysis=kernel-resource-usage "$source" \
        -o "$out.s" 2>"$out.log" || { cat "$out.log" >&2; return 1; }
      # The host's half, once.
      if [ "$target" = gfx950 ]; then "${hip[@]}" --cuda-host-only -fsyntax-only "$source"; fi
      ;;
    *)
      local flags=()
      if [ "$target" = sm_90a ]; then flags+=(-DKOKKOSMX_HAVE_WGMMA); fi
      mkdir -p "$out"
      "$nvcc" -x cu -std=c++20 -O3 --expt-extended-lambda --expt-relaxed-constexpr --fmad=false \
        -gencode "arch=compute_${target#sm_},code=$target" -DKOKKOS_DEPENDENCE "${flags[@]}" \
        -isystem "$dir/kokkos-CUDA" -Iinclude -Isrc "-I$generated" -cubin -Xptxas -v --keep \
        --keep-dir "$out" "$source" -o "$out.cubin" 2>"$out.log" ||
        { cat "$out.log" >&2; return 1; }
      cp "$(ls "$out"/*.ptx | head -1)" "$out.s"
      rm -rf "$out"
      ;;
  esac
}
export -f compile hip_compiler
export dir generated nvcc
# The longest first, two at a time.
for source in src/gemm/gemm.cpp src/gemm/slices.cpp src/quantize/quantize.cpp src/shuffle/prepare.cpp \
  src/shuffle/shuffle.cpp src/atom_select.cpp src/gemm/compare.cpp; do
  printf '%s\n' "${targets[@]/%/ $source}"
done | xargs -P "$(nproc)" -L 1 bash -c 'set -euo pipefail; compile "$0" "$1"'

python3 .ci/device_report.py .ci/device_expectations.txt "$dir" "${targets[@]}"
