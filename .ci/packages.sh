#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# .ci/packages.sh          installs what .ci/run needs and the machine lacks (Debian, Ubuntu); without
#                          root it says what
# .ci/packages.sh clang    prints the version of clang to use: 16 or newer, with its OpenMP library
set -euo pipefail
clang_version() {
  local version
  for version in 19 20 21 22 18 17 16; do
    if command -v "clang++-$version" >/dev/null && [ -e "/usr/lib/llvm-$version/lib/libomp.so" ]; then
      echo "$version"
      return
    fi
  done
  return 1
}
if [ "${1-}" = clang ]; then
  clang_version
  exit
fi

missing=()
need() { command -v "$1" >/dev/null || missing+=("${@:2}"); }
need git git
need cmake cmake
need ninja ninja-build
need g++ g++
need python3 python3 python3-venv
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
# Headers of that Python, for the extension module.
python3 -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null ||
  missing+=(python3-dev)
need clang-format-14 clang-format-14
need qemu-x86_64 qemu-user
for package in libbenchmark-dev libdnnl-dev; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q ' installed' || missing+=("$package")
done
clang_version >/dev/null || missing+=(clang-19 libomp-19-dev)

if [ ${#missing[@]} -eq 0 ]; then
  echo "nothing to install"
elif [ "$(id -u)" -ne 0 ]; then
  echo "missing: apt-get install ${missing[*]}" >&2
  exit 1
else
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi
