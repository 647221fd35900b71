// SPDX-License-Identifier: Apache-2.0
#include "atom_select.hpp"

#include "gemm/self_check.hpp"

#if KOKKOSMX_HAVE_X86_ATOMS
#include <cpuid.h>
#if defined(__linux__) && !defined(KOKKOSMX_MODEL_INSTRUCTIONS)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
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

/// What KOKKOSMX_ATOM names, or nothing.
std::string forced_atom() {
  const char* forced = std::getenv("KOKKOSMX_ATOM");
  return forced == nullptr ? "" : forced;
}

/// The atoms of devices that this build has besides the portable one.
const std::vector<std::string>& device_atom_names() {
  static const std::vector<std::string> names{
#ifdef KOKKOSMX_HAVE_WGMMA
      wgmma_name,
#endif
#ifdef KOKKOS_ENABLE_HIP
      FloatMfmaAtom::name,
      IntegerMfmaAtom::name,
#endif
  };
  return names;
}
bool names_device_atom(const std::string& name) {
  const std::vector<std::string>& names = device_atom_names();
  return std::find(names.begin(), names.end(), name) != names.end();
}

HostAtoms choose() {
  const std::string forced = forced_atom();
  const bool any = forced.empty() || names_device_atom(forced);
  HostAtoms best = HostAtoms::portable;
  std::string names;
  bool found = any;
  for (const HostAtomsEntry& entry : all_host_atoms()) {
    if (!entry.runs) continue;
    names += (names.empty() ? "" : ", ") + std::string(entry.name);
    if (any || forced == entry.name) {
      best = entry.atoms;
      found = true;
    }
  }
  if (!found) {
    for (const std::string& name : device_atom_names()) names += ", " + name;
    throw std::runtime_error("KokkosMX: KOKKOSMX_ATOM=" + forced +
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

bool portable_is_forced() {
  static const bool forced = forced_atom() == PortableGemmAtom::name;
  return forced;
}
bool device_atom_allowed(const char* name) {
  static const std::string forced = forced_atom();
  return names_device_atom(forced) ? forced == name : !portable_is_forced();
}

#ifdef KOKKOS_ENABLE_HIP
namespace {
/// Of each device: 0 not checked, 1 failed, 2 passed.
std::atomic<int>& check_of(const Kokkos::HIP& exec) {
  static std::array<std::atomic<int>, 64> checks{};
  return checks.at(static_cast<std::size_t>(exec.hip_device()) % checks.size());
}
bool is_architecture(const Kokkos::HIP& exec, const char* name) {
  return std::strncmp(exec.hip_device_prop().gcnArchName, name, std::strlen(name)) == 0;
}
}  // namespace

MatrixUnit matrix_unit(const Kokkos::HIP& exec) {
  host_atoms();  // has read KOKKOSMX_ATOM
  const bool cdna4 = is_architecture(exec, "gfx950"), cdna3 = is_architecture(exec, "gfx942");
  MatrixUnit unit{0, exec.hip_device_prop().multiProcessorCount, 1};
  if (cdna4 && check_of(exec) == 2 && device_atom_allowed(FloatMfmaAtom::name)) unit.usable |= 1u;
  if ((cdna4 || cdna3) && (unit.usable != 0 || device_atom_allowed(IntegerMfmaAtom::name))) {
    unit.usable |= 2u;
  }
  // Compute units of a chiplet: 32 on MI355X, 38 on MI300.
  if (cdna4 || cdna3) unit.chiplets = std::max(1, unit.units / (cdna4 ? 32 : 38));
  return unit;
}

void check_matrix_unit(const Kokkos::HIP& exec) {
  std::atomic<int>& check = check_of(exec);
  if (check != 0 || !is_architecture(exec, "gfx950")) return;
  check = passes_self_check<FloatMfmaAtom>(exec) ? 2 : 1;
}
#endif

HostAtoms host_atoms() {
  static const HostAtoms chosen = choose();
  return chosen;
}

}  // namespace KokkosMX::Impl
