#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Unpacks Kokkos 5 of Debian's development suite into a folder, to compile against; installs nothing.
#   .ci/kokkos5.sh DIR        prints the prefix on its last line
set -euo pipefail
mkdir -p "$1"
dir=$(cd "$1" && pwd)
prefix=$dir/root/usr

if [ ! -e "$dir/complete" ]; then
  apt=$dir/apt
  rm -rf "$dir/root"
  mkdir -p "$apt"/{lists/partial,cache/archives/partial} "$dir/root"
  : >"$apt/status"
  # The machine's own Debian source, its suite exchanged.
  if [ -e /etc/apt/sources.list.d/debian.sources ]; then
    sources=$apt/dev.sources
    awk '/^$/ { exit } /^Suites:/ { print "Suites: sid"; next } { print }' \
      /etc/apt/sources.list.d/debian.sources >"$sources"
  else
    sources=$apt/dev.list
    awk '$1 == "deb" && $0 ~ /debian/ && $0 !~ /\[/ { print "deb", $2, "sid main"; exit }' \
      /etc/apt/sources.list >"$sources"
  fi
  options=(-o "Dir::Etc::sourcelist=$sources" -o Dir::Etc::sourceparts=-
    -o "Dir::State::lists=$apt/lists" -o "Dir::State::status=$apt/status"
    -o "Dir::Cache=$apt/cache" -o Acquire::Check-Valid-Until=false -o Acquire::Retries=3
    -o "APT::Sandbox::User=$(id -un)")
  apt-get "${options[@]}" update -qq
  library=$(apt-cache "${options[@]}" show libkokkos-dev |
    sed -n 's/^Depends: .*\(libkokkos[0-9.]*\) .*/\1/p' | head -1)
  (cd "$apt" && apt-get "${options[@]}" download -qq libkokkos-dev "$library")
  for deb in "$apt"/*.deb; do dpkg-deb -x "$deb" "$dir/root"; done

  # The package expects to be in /usr, and names two archives that it does not hold.
  cmake=$(dirname "$(find "$prefix" -name KokkosTargets.cmake)")
  sed -i 's#"/usr/include#"${_IMPORT_PREFIX}/include#' "$cmake/KokkosTargets.cmake"
  for archive in $(sed -n 's#.*{_IMPORT_PREFIX}\(/lib[^"]*\.a\)".*#\1#p' "$cmake"/KokkosTargets-*.cmake); do
    [ -e "$prefix$archive" ] || ar qc "$prefix$archive"
  done
  touch "$dir/complete"
fi
echo "$prefix"
