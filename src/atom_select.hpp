// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOM_SELECT_HPP
#define KOKKOSMX_SRC_ATOM_SELECT_HPP

/// \file atom_select.hpp
/// Which atoms an execution space has, and which of them run here: the best that the processor can,
/// or the one that the environment variable KOKKOSMX_ATOM names.

#include "atoms/gemm/avx2.hpp"
#include "atoms/gemm/portable.hpp"
#include "atoms/quantize/avx2.hpp"
#include "atoms/quantize/avx512.hpp"
#include "atoms/quantize/portable.hpp"
#include "launch.hpp"

#include <Kokkos_Core.hpp>

namespace KokkosMX::Impl {

/// The atoms that go together.
struct PortableAtoms {
  using Gemm = PortableGemmAtom;
  using Quantize = PortableQuantizeAtom;
};
#if KOKKOSMX_HAVE_X86_ATOMS
struct Avx2Atoms {
  using Gemm = Avx2GemmAtom;
  using Quantize = Avx2QuantizeAtom;
};
struct Avx512Atoms {
  using Gemm = Avx2GemmAtom;
  using Quantize = Avx512QuantizeAtom;
};
#endif

/// The sets of host atoms, worst first.
enum class HostAtoms { portable, avx2, avx512 };

/// Made once, at the first call: see atom_select.cpp.
/// \throws std::runtime_error where KOKKOSMX_ATOM names none that can run; it lists those that can.
HostAtoms host_atoms();

/// The processor has what Avx512QuantizeAtom needs.
inline bool has_avx512() {
#if KOKKOSMX_HAVE_X86_ATOMS
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512cd")
#ifndef KOKKOSMX_MODEL_INSTRUCTIONS
         && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni")
#endif
      ;
#else
  return false;
#endif
}

/// Calls f with the atoms that exec's kernels use.
template <class ExecSpace, class F>
void with_atoms(F&& f) {
#if KOKKOSMX_HAVE_X86_ATOMS
  if constexpr (is_host_space_v<ExecSpace>) {
    switch (host_atoms()) {
      case HostAtoms::avx512:
        f(Avx512Atoms{});
        return;
      case HostAtoms::avx2:
        f(Avx2Atoms{});
        return;
      case HostAtoms::portable:
        break;
    }
  }
#endif
  f(PortableAtoms{});
}

}  // namespace KokkosMX::Impl

#endif
