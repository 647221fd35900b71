// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOM_SELECT_HPP
#define KOKKOSMX_SRC_ATOM_SELECT_HPP

/// \file atom_select.hpp
/// Which atoms an execution space has, and which of them run here: the best that the processor can,
/// or the one that the environment variable KOKKOSMX_ATOM names.

#include "atoms/gemm/amx.hpp"
#include "atoms/gemm/avx2.hpp"
#include "atoms/gemm/avx512.hpp"
#include "atoms/gemm/portable.hpp"
#include "atoms/quantize/avx2.hpp"
#include "atoms/quantize/avx512.hpp"
#include "atoms/quantize/portable.hpp"
#include "launch.hpp"

#include <Kokkos_Core.hpp>

#include <vector>

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
struct VnniAtoms {
  using Gemm = VnniGemmAtom;
  using Quantize = Avx512QuantizeAtom;
};
struct AmxAtoms {
  using Gemm = AmxGemmAtom;
  using Quantize = Avx512QuantizeAtom;
};
#endif

/// The sets of host atoms, worst first.
enum class HostAtoms { portable, avx2, avx512vnni, amx };

/// One of them, by the name of its GEMM atom.
struct HostAtomsEntry {
  const char* name;
  HostAtoms atoms;
  bool runs;  ///< on this machine, in this process
};
/// All that this build has, worst first.
std::vector<HostAtomsEntry> all_host_atoms();

/// Made once, at the first call: see atom_select.cpp.
/// \throws std::runtime_error where KOKKOSMX_ATOM names none that can run; it lists those that can.
HostAtoms host_atoms();

/// Calls f with a set of host atoms.
template <class F>
void with_host_atoms(HostAtoms atoms, F&& f) {
  switch (atoms) {
#if KOKKOSMX_HAVE_X86_ATOMS
    case HostAtoms::avx2:
      return f(Avx2Atoms{});
    case HostAtoms::avx512vnni:
      return f(VnniAtoms{});
    case HostAtoms::amx:
      return f(AmxAtoms{});
#endif
    default:
      return f(PortableAtoms{});
  }
}

/// Calls f with the atoms that exec's kernels use.
template <class ExecSpace, class F>
void with_atoms(F&& f) {
#if KOKKOSMX_HAVE_X86_ATOMS
  if constexpr (is_host_space_v<ExecSpace>) return with_host_atoms(host_atoms(), f);
#endif
  f(PortableAtoms{});
}

}  // namespace KokkosMX::Impl

#endif
