# SPDX-License-Identifier: Apache-2.0
# Finds Kokkos: the parent project's target, then the user's installation, then the wheel's.

# A parent project links to these targets too.
set(CMAKE_FIND_PACKAGE_TARGETS_GLOBAL ON)

# What an earlier run found in the wheel is not the user's.
if(KokkosMX_KOKKOS_FROM_WHEEL)
  foreach(package IN ITEMS Kokkos KokkosKernels GTest)
    string(FIND "${${package}_DIR}" "${KokkosMX_KOKKOS_FROM_WHEEL}" position)
    if(position EQUAL 0)
      unset(${package}_DIR CACHE)
    endif()
  endforeach()
  unset(KokkosMX_KOKKOS_FROM_WHEEL CACHE)
endif()

if(NOT TARGET Kokkos::kokkos)
  find_package(Kokkos ${KokkosMX_KOKKOS_MINIMUM} CONFIG QUIET)
  if(NOT Kokkos_FOUND AND KokkosMX_KOKKOS_MINIMUM VERSION_LESS 5.0)
    # For a 5.x whose version file takes its own major version only.
    find_package(Kokkos 5.0 CONFIG QUIET)
  endif()
  if(NOT Kokkos_FOUND)
    if(Kokkos_CONSIDERED_VERSIONS)
      message(STATUS "KokkosMX: passed over Kokkos ${Kokkos_CONSIDERED_VERSIONS} "
                     "(${Kokkos_CONSIDERED_CONFIGS}): ${KokkosMX_KOKKOS_MINIMUM} is needed")
    endif()
    if(NOT KokkosMX_FETCH_KOKKOS)
      message(FATAL_ERROR "KokkosMX: Kokkos ${KokkosMX_KOKKOS_MINIMUM} or newer was not found. Name "
                          "its prefix in Kokkos_ROOT, or let KokkosMX get one from PyPI with "
                          "-DKokkosMX_FETCH_KOKKOS=ON.")
    endif()
    include(${CMAKE_CURRENT_LIST_DIR}/KokkosWheel.cmake)
    kokkosmx_wheel_prefix(_prefix)
    find_package(Kokkos ${KokkosMX_KOKKOS_MINIMUM} CONFIG REQUIRED PATHS "${_prefix}"
                 NO_DEFAULT_PATH)
    set(KokkosMX_KOKKOS_FROM_WHEEL "${_prefix}" CACHE INTERNAL "Prefix of the wheel's Kokkos")
  endif()
  message(STATUS "KokkosMX: Kokkos ${Kokkos_VERSION} of ${Kokkos_DIR} (${Kokkos_DEVICES})")
endif()

if(KokkosMX_ENABLE_TESTS)
  if(KokkosMX_KOKKOS_FROM_WHEEL)
    find_package(GTest CONFIG REQUIRED PATHS "${KokkosMX_KOKKOS_FROM_WHEEL}" NO_DEFAULT_PATH)
  else()
    find_package(GTest)
    if(NOT GTest_FOUND)
      message(FATAL_ERROR "KokkosMX: the unit tests need GoogleTest (Debian, Ubuntu: apt install "
                          "libgtest-dev). Without them: -DKokkosMX_ENABLE_TESTS=OFF.")
    endif()
  endif()
endif()

if(KokkosMX_ENABLE_PERF_TESTS)
  if(KokkosMX_KOKKOS_FROM_WHEEL)
    find_package(KokkosKernels CONFIG REQUIRED PATHS "${KokkosMX_KOKKOS_FROM_WHEEL}"
                 NO_DEFAULT_PATH)
  else()
    find_package(KokkosKernels CONFIG QUIET)
    if(NOT KokkosKernels_FOUND)
      message(STATUS "KokkosMX: no Kokkos-Kernels (name its prefix in KokkosKernels_ROOT): the perf "
                     "tests have no BLAS to compare with")
    endif()
  endif()
  find_package(benchmark CONFIG QUIET)
  if(NOT benchmark_FOUND)
    message(STATUS "KokkosMX: no Google Benchmark (Debian, Ubuntu: apt install libbenchmark-dev): "
                   "PerfTest_Quantize, PerfTest_Shuffle and PerfTest_Gemm are left out")
  endif()
  # oneDNN by its files: its package file asks for OpenCL's, which nothing here needs.
  find_path(KokkosMX_ONEDNN_INCLUDE_DIR dnnl.hpp)
  find_library(KokkosMX_ONEDNN_LIBRARY dnnl)
  mark_as_advanced(KokkosMX_ONEDNN_INCLUDE_DIR KokkosMX_ONEDNN_LIBRARY)
  set(KokkosMX_HAVE_ONEDNN OFF)
  set(_without "the perf tests do not compare with it")
  if(Kokkos_DEVICES MATCHES "CUDA|HIP|SYCL")
    message(STATUS "KokkosMX: oneDNN is a baseline for hosts only: ${_without}")
  elseif(NOT KokkosMX_ONEDNN_INCLUDE_DIR OR NOT KokkosMX_ONEDNN_LIBRARY)
    message(STATUS "KokkosMX: no oneDNN (Debian, Ubuntu: apt install libdnnl-dev): ${_without}")
  elseif(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    # A second OpenMP runtime in the process would have threads of its own.
    message(STATUS "KokkosMX: oneDNN runs on g++'s OpenMP library, ${CMAKE_CXX_COMPILER_ID}'s "
                   "programs on another: ${_without}")
  else()
    set(KokkosMX_HAVE_ONEDNN ON)
  endif()
endif()
