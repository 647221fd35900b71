// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_ATOM_FUNCTION_HPP
#define KOKKOSMX_SRC_ATOMS_ATOM_FUNCTION_HPP

/// \file atom_function.hpp
/// KOKKOSMX_ATOM_FUNCTION marks the functions that do an atom's work. On hosts they are compiled by
/// themselves: inlined into a kernel, compilers unroll their short loops before they think of
/// vector code (seen with g++ 12: ten times slower). On devices they are always inlined.

#include <Kokkos_Core.hpp>

#if defined(__CUDACC__) || defined(__HIPCC__)
#define KOKKOSMX_ATOM_FUNCTION KOKKOS_FORCEINLINE_FUNCTION
#else
#define KOKKOSMX_ATOM_FUNCTION __attribute__((noinline))
#endif

/// Atoms for x86-64's vector instructions, whatever the build's -march: chosen at run time.
/// Compilers for devices do not take them: there, host execution spaces run the portable atoms.
#if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__)) && \
    !defined(__CUDACC__) && !defined(__HIPCC__)
#define KOKKOSMX_HAVE_X86_ATOMS 1
#define KOKKOSMX_AVX2_FUNCTION __attribute__((noinline, target("avx2")))
#define KOKKOSMX_AVX2_INLINE inline __attribute__((always_inline, target("avx2")))
#else
#define KOKKOSMX_HAVE_X86_ATOMS 0
#endif

#endif
