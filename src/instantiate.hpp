// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_INSTANTIATE_HPP
#define KOKKOSMX_SRC_INSTANTIATE_HPP

/// \file instantiate.hpp
/// KOKKOSMX_FOR_EACH_EXECUTION_SPACE(MACRO) expands MACRO(Space) for every execution space that
/// Kokkos was built with: the library's templates are compiled for those and no others.

#include <Kokkos_Core.hpp>

#ifdef KOKKOS_ENABLE_SERIAL
#define KOKKOSMX_FOR_SERIAL(MACRO) MACRO(Kokkos::Serial)
#else
#define KOKKOSMX_FOR_SERIAL(MACRO)
#endif
#ifdef KOKKOS_ENABLE_OPENMP
#define KOKKOSMX_FOR_OPENMP(MACRO) MACRO(Kokkos::OpenMP)
#else
#define KOKKOSMX_FOR_OPENMP(MACRO)
#endif
#ifdef KOKKOS_ENABLE_THREADS
#define KOKKOSMX_FOR_THREADS(MACRO) MACRO(Kokkos::Threads)
#else
#define KOKKOSMX_FOR_THREADS(MACRO)
#endif
#ifdef KOKKOS_ENABLE_CUDA
#define KOKKOSMX_FOR_CUDA(MACRO) MACRO(Kokkos::Cuda)
#else
#define KOKKOSMX_FOR_CUDA(MACRO)
#endif
#ifdef KOKKOS_ENABLE_HIP
#define KOKKOSMX_FOR_HIP(MACRO) MACRO(Kokkos::HIP)
#else
#define KOKKOSMX_FOR_HIP(MACRO)
#endif

#define KOKKOSMX_FOR_EACH_EXECUTION_SPACE(MACRO) \
  KOKKOSMX_FOR_SERIAL(MACRO)                     \
  KOKKOSMX_FOR_OPENMP(MACRO)                     \
  KOKKOSMX_FOR_THREADS(MACRO)                    \
  KOKKOSMX_FOR_CUDA(MACRO)                       \
  KOKKOSMX_FOR_HIP(MACRO)

#endif
