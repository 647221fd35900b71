// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_ATOM_FUNCTION_HPP
#define KOKKOSMX_SRC_ATOMS_ATOM_FUNCTION_HPP

/// \file atom_function.hpp
/// KOKKOSMX_ATOM_FUNCTION marks the functions that do an atom's work. On hosts they are compiled by
/// themselves: inlined into a kernel, compilers unroll their short loops before they think of vector
/// code (seen with g++ 12: ten times slower). On devices they are always inlined.

#include <Kokkos_Core.hpp>

#if defined(__CUDACC__) || defined(__HIPCC__)
#define KOKKOSMX_ATOM_FUNCTION KOKKOS_FORCEINLINE_FUNCTION
#else
#define KOKKOSMX_ATOM_FUNCTION __attribute__((noinline))
#endif

#endif
