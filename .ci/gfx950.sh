#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs the library's gfx950 machine code, without a GPU, and compares every bit with the host's
# execution space and with golden data (docs/gfx950.md).
#   .ci/gfx950.sh DIR KOKKOS_INCLUDE GENERATED_INCLUDE [STEP...]
# Steps: build run (these two where none is named) mutations. DIR is device.sh's, or another.
#
# The library's sources and the tests of unit_tests/gfx950 are compiled for gfx950 and this machine;
# their launches go to the executor, a Python package in a virtual environment in DIR.
set -euo pipefail
mkdir -p "$1"
dir=$(cd "$1" && pwd)
kokkos=$(cd "$2" && pwd)
generated=$(cd "$3" && pwd)
arguments=("$dir" "$kokkos" "$generated")
shift 3
cd "$(dirname "$0")/.."
. .ci/hip.sh
tests=$PWD/unit_tests/gfx950
out=$dir/executed
mkdir -p "$out/logs"

# The host's half needs OpenMP, which clang 22 may lack: that of the clang which packages.sh names.
llvm=/usr/lib/llvm-$(.ci/packages.sh clang)
libraries=$(cd "$kokkos/../../lib64" && pwd)

# compile TREE SOURCE OBJECT: a source of a tree like this one, for gfx950 to a code object, and for
# this machine to an object that holds it.
step_compile() {
  local tree=$1 source=$2 object=$3 hip
  hip_compiler gfx950 "$out/kokkos" "$generated"
  hip+=(-fopenmp -idirafter "$(dirname "$(find "$llvm/lib/clang" -name omp.h | head -1)")" -fPIC
    -isystem "$kokkos/.." -Iunit_tests "-DKOKKOSMX_GOLDEN_DIR=\"$PWD/unit_tests/golden\"")
  case $source in unit_tests/*) hip+=(-O1) ;; esac
  (
    cd "$tree"
    "${hip[@]}" --cuda-device-only --no-gpu-bundle-output "$source" -o "$object.elf"
    "${hip[@]}" --cuda-host-only -Xclang -fcuda-include-gpubinary -Xclang "$object.elf" \
      -c "$source" -o "$object"
  )
}

# link PROGRAM TEST [OBJECT]: the last one instead of the object of the same name. It comes first, as of
# kernels that several objects hold the first is launched.
step_link() {
  local program=$1 test=$2 name objects=("${@:3}")
  for name in "$test" TestMain Runtime atom_select check compare gemm prepare quantize shuffle; do
    if [ "$name.o" != "$(basename "${3-}")" ]; then objects+=("$out/$name.o"); fi
  done
  clang++-22 -fopenmp "-L$llvm/lib" -o "$program" "${objects[@]}" "-L$libraries" -lkokkoscore \
    -lgtest "-Wl,-rpath,$libraries:$llvm/lib"
}

step_build() {
  hip_tools
  hip_overlay OPENMP "$out/kokkos"
  if ! cmp -s "$tests/requirements.txt" "$out/venv/requirements.txt"; then
    rm -rf "$out/venv"
    python3 -m venv "$out/venv"
    "$out/venv/bin/pip" install --quiet --disable-pip-version-check -r "$tests/requirements.txt"
    cp "$tests/requirements.txt" "$out/venv"
  fi
  # The longest first.
  local source
  for source in src/gemm/gemm.cpp unit_tests/gfx950/Test_{Products,Rows}.cpp \
    src/quantize/quantize.cpp unit_tests/{TestMain,gfx950/Runtime}.cpp src/shuffle/{prepare,shuffle}.cpp \
    src/{gemm/compare,atom_select,check}.cpp; do
    echo "$PWD $source $out/$(basename "$source" .cpp).o"
  done | xargs -P "$(nproc)" -L 1 .ci/gfx950.sh "${arguments[@]}" compile
  step_link "$out/Test_Rows" Test_Rows
  step_link "$out/Test_Products" Test_Products
}

# case NAME TEST FILTER [VARIABLE=VALUE...]: some tests of a program, in a process of their own.
step_case() {
  local name=$1 test=$2 filter=$3
  shift 3
  rm -f "$out/logs/$name".*
  local start=$SECONDS result=passed
  env PYTHONPATH="$tests" PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 OMP_PROC_BIND=false \
    KOKKOSMX_EXECUTOR="$out/venv/bin/python -m executor" KOKKOSMX_REPORT="$out/logs/$name.json" "$@" \
    "${program:-$out/$test}" --gtest_brief=1 "--gtest_filter=$filter" >"$out/logs/$name.log" 2>&1 ||
    result=FAILED
  echo "$name: $result, $((SECONDS - start)) s"
  if [ $result != passed ]; then
    tail -n 100 "$out/logs/$name.log"
    return 1
  fi
}

# NAME TEST FILTER [VARIABLE=VALUE...]: the longest first. What float matrix units round is modelled in
# three ways, under which the self-check chooses them, and in one under which it has to refuse them.
# Then without them, and without any.
cases() {
  local float=KOKKOSMX_EXPECTED_ATOM=mfma_scale_fp4 integer=KOKKOSMX_EXPECTED_ATOM=mfma_i8
  local some='Tiles/Products.Certified/*:Tiles/Products.EveryTier/*:SelfCheck.*'
  cat <<END
ascending-large Test_Products */large* KOKKOSMX_MATRIX=ascending
ascending-others Test_Products -*/large* KOKKOSMX_MATRIX=ascending $float
descending Test_Products $some KOKKOSMX_MATRIX=descending $float
pairwise Test_Products $some KOKKOSMX_MATRIX=pairwise $float
short Test_Products $some KOKKOSMX_MATRIX=short $integer
integer Test_Products Tiles/*.B*:Tiles/*.C*:Tiles/*.E*:SelfCheck.* KOKKOSMX_ATOM=mfma_i8 $integer
portable Test_Products Tiles/*/middle*:*Of.*:*Golden.*:SelfCheck.* KOKKOSMX_ATOM=portable KOKKOSMX_EXPECTED_ATOM=portable
quantize Test_Rows Quantize*
rows Test_Rows -Quantize*
portable-rows Test_Rows * KOKKOSMX_ATOM=portable
END
}

step_run() {
  local start=$SECONDS failed=0 name logs=() reports=()
  (cd "$tests" && PYTHONDONTWRITEBYTECODE=1 "$out/venv/bin/python" -m pytest -q -p no:cacheprovider) ||
    failed=1
  cases | xargs -P "$(nproc)" -L 1 .ci/gfx950.sh "${arguments[@]}" case || failed=1
  for name in $(cases | cut -d' ' -f1); do
    logs+=("$out/logs/$name.log")
    reports+=("$out/logs/$name.json")
  done
  # Every kernel of the library was launched, and nothing differs.
  cat "${logs[@]}" | awk '
    /^gfx950: / { name = $0; sub(/.* differ: /, "", name); n[name] += $2; d[name] += $5 }
    END {
      for (name in n) {
        printf "gfx950: %d outputs compared, %d differ: %s\n", n[name], d[name], name | "sort -t: -k3"
        if (n[name] == 0 || d[name] != 0) bad = 1
      }
      close("sort -t: -k3")
      exit bad
    }' || failed=1
  PYTHONPATH=$tests "$out/venv/bin/python" -m executor.report --least=0.9 "${reports[@]}" || failed=1
  echo "gfx950: ran for $((SECONDS - start)) s"
  return $failed
}

step_mutations() { python3 "$tests/mutations.py" -- .ci/gfx950.sh "${arguments[@]}"; }

[ $# -gt 0 ] || set -- build run
case $1 in
  compile | link | case) "step_$1" "${@:2}" ;;
  *) for step in "$@"; do "step_$step"; done ;;
esac
