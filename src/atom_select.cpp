// SPDX-License-Identifier: Apache-2.0
#include "atom_select.hpp"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace KokkosMX::Impl {

namespace {

struct Candidate {
  const char* name;
  HostAtoms atoms;
  bool runs;
};

HostAtoms choose() {
  const Candidate candidates[] = {
    {PortableGemmAtom::name, HostAtoms::portable, true},
#if KOKKOSMX_HAVE_X86_ATOMS
    {Avx2GemmAtom::name, HostAtoms::avx2, __builtin_cpu_supports("avx2") != 0},
    {Avx512QuantizeAtom::name, HostAtoms::avx512, has_avx512()},
#endif
  };
  const char* forced = std::getenv("KOKKOSMX_ATOM");
  const bool any = forced == nullptr || *forced == '\0';
  HostAtoms best = HostAtoms::portable;
  std::string names;
  bool found = any;
  for (const Candidate& candidate : candidates) {
    if (!candidate.runs) continue;
    names += (names.empty() ? "" : ", ") + std::string(candidate.name);
    if (any || std::string(forced) == candidate.name) {
      best = candidate.atoms;
      found = true;
    }
  }
  if (!found) {
    throw std::runtime_error("KokkosMX: KOKKOSMX_ATOM=" + std::string(forced) +
                             " cannot run here; these can: " + names);
  }
  return best;
}

}  // namespace

HostAtoms host_atoms() {
  static const HostAtoms chosen = choose();
  return chosen;
}

}  // namespace KokkosMX::Impl
