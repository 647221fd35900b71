// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_WORDS_HPP
#define KOKKOSMX_SRC_ATOMS_WORDS_HPP

/// \file words.hpp
/// Loads of 16 bytes, and what a device's compiler must be told of the threads that execute an
/// instruction together.

#include <Kokkos_Core.hpp>

#include <cstdint>
#include <cstring>

/// A function that CUDA's kernels call: what they rarely need shall not lie among what they repeat.
#if defined(__CUDACC__)
#define KOKKOSMX_APART_ON_CUDA __noinline__
#else
#define KOKKOSMX_APART_ON_CUDA
#endif

namespace KokkosMX::Impl {

/// 16 bytes: a thread's load, the codes of a block.
struct alignas(16) Words {
  std::uint32_t w[4];
};

/// Loads of words need their alignment: where memory is the caller's, kernels read bytes unless it
/// has that.
#if defined(KOKKOS_ENABLE_CUDA)
inline constexpr bool words_need_alignment = true;
#else
inline constexpr bool words_need_alignment = false;
#endif

/// T from bytes that lie as words_need_alignment says.
template <class T>
KOKKOS_FORCEINLINE_FUNCTION T load_words(const std::uint8_t* from) {
#if defined(__CUDA_ARCH__)
  return *reinterpret_cast<const T*>(from);
#else
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
#endif
}

/// x, which is the same for all threads of a wave, as a number that the compiler knows to be so.
KOKKOS_FORCEINLINE_FUNCTION int same_in_wave(int x) {
#if defined(__HIP_DEVICE_COMPILE__)
  return __builtin_amdgcn_readfirstlane(x);
#else
  return x;
#endif
}

/// What is written before stays before, in the compiler's order of instructions: it would begin
/// more than it has registers for.
KOKKOS_FORCEINLINE_FUNCTION void keep_order() {
#if defined(__HIP_DEVICE_COMPILE__)
  __builtin_amdgcn_sched_barrier(0);
#endif
}

/// The larger of both halves of words, each by itself.
KOKKOS_INLINE_FUNCTION std::uint32_t larger_halves(std::uint32_t x, std::uint32_t y) {
#if defined(__CUDA_ARCH__)
  return __vmaxu2(x, y);
#else
  const std::uint32_t low = (x & 0xFFFFu) > (y & 0xFFFFu) ? x : y;
  return ((x >> 16 > y >> 16 ? x : y) & 0xFFFF0000u) | (low & 0xFFFFu);
#endif
}
/// The smaller of both halves of words, each by itself.
KOKKOS_INLINE_FUNCTION std::uint32_t smaller_halves(std::uint32_t x, std::uint32_t y) {
#if defined(__CUDA_ARCH__)
  return __vminu2(x, y);
#else
  const std::uint32_t low = (x & 0xFFFFu) < (y & 0xFFFFu) ? x : y;
  return ((x >> 16 < y >> 16 ? x : y) & 0xFFFF0000u) | (low & 0xFFFFu);
#endif
}

}  // namespace KokkosMX::Impl

#endif
