// SPDX-License-Identifier: Apache-2.0
#include "atom_select.hpp"

#if KOKKOSMX_HAVE_X86_ATOMS
#include <cpuid.h>
#if defined(__linux__) && !defined(KOKKOSMX_MODEL_INSTRUCTIONS)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace KokkosMX::Impl {

namespace {

#if KOKKOSMX_HAVE_X86_ATOMS
bool has_avx512() {
  bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("bmi2");
#ifndef KOKKOSMX_MODEL_INSTRUCTIONS
  has = has && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
#endif
  return has;
}

/// The processor has AMX int8, and the operating system lets this process use its tiles.
bool has_amx() {
  if (!has_avx512()) return false;
#ifdef KOKKOSMX_MODEL_INSTRUCTIONS
  return true;
#elif defined(__linux__)
  unsigned a, b, c, d;
  constexpr unsigned amx_tile = 1u << 24, amx_int8 = 1u << 25;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  if ((d & amx_tile) == 0 || (d & amx_int8) == 0) return false;
  // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA), for the whole process.
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}
#endif

HostAtoms choose() {
  const char* forced = std::getenv("KOKKOSMX_ATOM");
  const bool any = forced == nullptr || *forced == '\0';
  HostAtoms best = HostAtoms::portable;
  std::string names;
  bool found = any;
  for (const HostAtomsEntry& entry : all_host_atoms()) {
    if (!entry.runs) continue;
    names += (names.empty() ? "" : ", ") + std::string(entry.name);
    if (any || std::string(forced) == entry.name) {
      best = entry.atoms;
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

std::vector<HostAtomsEntry> all_host_atoms() {
  std::vector<HostAtomsEntry> all{{PortableGemmAtom::name, HostAtoms::portable, true}};
#if KOKKOSMX_HAVE_X86_ATOMS
  all.push_back({Avx2GemmAtom::name, HostAtoms::avx2, __builtin_cpu_supports("avx2") != 0});
  all.push_back({VnniGemmAtom::name, HostAtoms::avx512vnni, has_avx512()});
  all.push_back({AmxGemmAtom::name, HostAtoms::amx, has_amx()});
#endif
  return all;
}

HostAtoms host_atoms() {
  static const HostAtoms chosen = choose();
  return chosen;
}

}  // namespace KokkosMX::Impl
