// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOM_SELECT_HPP
#define KOKKOSMX_SRC_ATOM_SELECT_HPP

/// \file atom_select.hpp
/// Which atoms an execution space has, and which of them run here: the best that the processor can,
/// or the one that the environment variable KOKKOSMX_ATOM names.

#include "atoms/copy/avx2.hpp"
#include "atoms/copy/avx512.hpp"
#include "atoms/copy/portable.hpp"
#include "atoms/gemm/amx.hpp"
#include "atoms/gemm/avx2.hpp"
#include "atoms/gemm/avx512.hpp"
#include "atoms/gemm/mfma.hpp"
#include "atoms/gemm/portable.hpp"
#include "atoms/gemm/wgmma.hpp"
#include "atoms/quantize/avx2.hpp"
#include "atoms/quantize/avx512.hpp"
#include "atoms/quantize/cuda.hpp"
#include "atoms/quantize/hip.hpp"
#include "atoms/quantize/portable.hpp"
#include "launch.hpp"

#include <Kokkos_Core.hpp>

#include <type_traits>
#include <vector>

namespace KokkosMX::Impl {

/// The atoms that go together.
struct PortableAtoms {
  using Gemm = PortableGemmAtom;
  using Quantize = PortableQuantizeAtom;
  using Copy = PortableCopyAtom;
};
#if KOKKOSMX_HAVE_X86_ATOMS
struct Avx2Atoms {
  using Gemm = Avx2GemmAtom;
  using Quantize = Avx2QuantizeAtom;
  using Copy = Avx2CopyAtom;
};
struct VnniAtoms {
  using Gemm = VnniGemmAtom;
  using Quantize = Avx512QuantizeAtom;
  using Copy = Avx512CopyAtom;
};
struct AmxAtoms {
  using Gemm = AmxGemmAtom;
  using Quantize = Avx512QuantizeAtom;
  using Copy = Avx512CopyAtom;
};
#endif

#ifdef KOKKOS_ENABLE_CUDA
struct CudaAtoms {
  using Gemm = PortableGemmAtom;
  using Quantize = CudaQuantizeAtom;
};
#endif

#ifdef KOKKOS_ENABLE_HIP
struct HipAtoms {
  using Gemm = PortableGemmAtom;
  using Quantize = HipQuantizeAtom;
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

/// KOKKOSMX_ATOM names this device atom, or leaves the choice. A host's atom says nothing of
/// devices, but the portable one is everybody's.
bool device_atom_allowed(const char* name);
/// KOKKOSMX_ATOM names the portable atom.
bool portable_is_forced();

/// The GEMM atoms of devices, worst first. Those that need a certain architecture are in the build
/// where its code is.
enum class DeviceAtom { portable, wgmma };

/// The best that exec's device can, or the one that KOKKOSMX_ATOM names. \throws as host_atoms
/// does.
template <class ExecSpace>
DeviceAtom device_atom([[maybe_unused]] const ExecSpace& exec) {
  host_atoms();  // has read KOKKOSMX_ATOM
#ifdef KOKKOSMX_HAVE_WGMMA
  if constexpr (std::is_same_v<ExecSpace, Kokkos::Cuda>) {
    const cudaDeviceProp& device = exec.cuda_device_prop();
    if (device.major == 9 && device.minor == 0 && device_atom_allowed(wgmma_name)) {
      return DeviceAtom::wgmma;
    }
  }
#endif
  return DeviceAtom::portable;
}

#ifdef KOKKOS_ENABLE_HIP
/// The GEMM atoms of AMD's devices, the most preferred first.
using FloatMfmaAtom = ScaledFp4Atom<MfmaScaledFp4>;
using IntegerMfmaAtom = AlignedInt8Atom<MfmaInt8>;

/// What is known of a device's matrix unit. Bit i of usable: atom i may be used.
struct MatrixUnit {
  unsigned usable;
  int units, chiplets;
};
/// Atoms that need a self-check are usable once check_matrix_unit has passed it on exec's device.
/// Neither allocates nor fences. \throws as host_atoms does.
MatrixUnit matrix_unit(const Kokkos::HIP& exec);
/// Runs the self-check, at its first call for a device: allocates, and waits for it.
void check_matrix_unit(const Kokkos::HIP& exec);
#endif

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
#ifdef KOKKOS_ENABLE_CUDA
  if constexpr (std::is_same_v<ExecSpace, Kokkos::Cuda>) {
    if (!portable_is_forced()) return f(CudaAtoms{});
  }
#endif
#ifdef KOKKOS_ENABLE_HIP
  if constexpr (std::is_same_v<ExecSpace, Kokkos::HIP>) {
    if (!portable_is_forced()) return f(HipAtoms{});
  }
#endif
  f(PortableAtoms{});
}

}  // namespace KokkosMX::Impl

#endif
