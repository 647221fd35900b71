// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_DEVICE_LAUNCH_HPP
#define KOKKOSMX_SRC_ATOMS_DEVICE_LAUNCH_HPP

/// \file device_launch.hpp
/// Launches on CUDA and HIP, on the stream of a Kokkos execution space. Not by way of Kokkos'
/// teams: their launches allocate (if only nothing), which graphs do not capture, they cost more,
/// and they give a block of CUDA threads 48 KiB of shared memory at most.

#include "cuda.hpp"

#include <Kokkos_Core.hpp>

#include <atomic>
#include <cstdint>
#include <string>
#include <type_traits>

#if defined(KOKKOS_ENABLE_CUDA) || defined(KOKKOS_ENABLE_HIP)

namespace KokkosMX::Impl {

/// All threads of a block.
///
/// Bodies that use matrix instructions are written for all threads of a group at once, in phases:
/// each(f) calls f(thread) for every thread, waves<L>(f) calls f(first thread) for every L of them
/// that execute an instruction together, and what a thread keeps from phase to phase is PerThread.
/// Here each thread is one of the device's, runs the phases for itself and keeps its own value in
/// registers; on hosts a model of a group runs every thread, one after the other (unit tests).
struct DeviceGroup {
  static constexpr bool is_serial = false;
#if defined(__CUDA_ARCH__) || defined(__HIP_DEVICE_COMPILE__)
  KOKKOS_FORCEINLINE_FUNCTION int rank() const { return static_cast<int>(threadIdx.x); }
  KOKKOS_FORCEINLINE_FUNCTION int size() const { return static_cast<int>(blockDim.x); }
  KOKKOS_FORCEINLINE_FUNCTION void barrier() const { __syncthreads(); }
#else
  KOKKOS_FORCEINLINE_FUNCTION int rank() const { return 0; }
  KOKKOS_FORCEINLINE_FUNCTION int size() const { return 1; }
  KOKKOS_FORCEINLINE_FUNCTION void barrier() const {}
#endif

  template <class T>
  struct PerThread {
    T mine;
    KOKKOS_FORCEINLINE_FUNCTION T& operator[](int /*thread*/) { return mine; }
    KOKKOS_FORCEINLINE_FUNCTION const T& operator[](int /*thread*/) const { return mine; }
  };
  template <class F>
  KOKKOS_FORCEINLINE_FUNCTION void each(const F& f) const {
    f(rank());
  }
  template <int Lanes, class F>
  KOKKOS_FORCEINLINE_FUNCTION void waves(const F& f) const {
    f(0);
  }
};

/// Shared memory for a body's scratch, with room to align it.
template <class Scratch>
inline constexpr int shared_bytes =
    std::is_empty_v<Scratch>
        ? 0
        : static_cast<int>(sizeof(Scratch) + (alignof(Scratch) > 16 ? alignof(Scratch) : 0));

#ifdef KOKKOS_ENABLE_CUDA
#define KOKKOSMX_GRID_CONSTANT __grid_constant__
#else
#define KOKKOSMX_GRID_CONSTANT
#endif

/// What the second launch bound counts: CUDA's blocks of a multiprocessor, HIP's waves of a SIMD,
/// of which a compute unit has 4.
template <int N, int Together>
inline constexpr int least_together =
#ifdef KOKKOS_ENABLE_HIP
    Together* N > 256 ? Together* N / 256 : 1;
#else
    Together;
#endif

template <class Body, int N, int Together>
__global__ void __launch_bounds__(N, (least_together<N, Together>))
    run_group(const KOKKOSMX_GRID_CONSTANT Body body, const std::int64_t first) {
  extern __shared__ unsigned char group_memory[];
  using Scratch = typename Body::Scratch;
  // By pointers, not numbers: compilers that see where the memory is use its own instructions.
  unsigned char* memory = group_memory;
  if constexpr (alignof(Scratch) > 16) {
    memory += (0 - reinterpret_cast<std::uintptr_t>(memory)) % alignof(Scratch);
  }
  body(DeviceGroup{}, *reinterpret_cast<Scratch*>(memory), first + blockIdx.x);
}
#undef KOKKOSMX_GRID_CONSTANT

#ifdef KOKKOS_ENABLE_CUDA
/// Launches a kernel asynchronously. Where is_beside says so it may begin when all blocks of the
/// kernel before have allowed it (dependents_may_begin), and waits for its end where it needs it
/// (wait_for_earlier). Clusters are so many blocks that follow each other in y.
template <int ClusterY = 1, class... Arguments>
void launch_kernel(void (*kernel)(Arguments...), dim3 blocks, int threads, int bytes,
                   cudaStream_t stream, bool is_beside,
                   const std::type_identity_t<Arguments>&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(bytes);
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (is_beside) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if constexpr (ClusterY > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {1, ClusterY, 1};
  }
  KOKKOS_IMPL_CUDA_SAFE_CALL(cudaLaunchKernelEx(&config, kernel, arguments...));
}
#endif

/// Whether a body's kernel may begin beside the one before: Body::begins_beside, or false.
template <class Body>
inline constexpr bool begins_beside = false;
template <class Body>
requires requires { Body::begins_beside; }
inline constexpr bool begins_beside<Body> = Body::begins_beside;

/// Runs body(group, scratch, item) for `count` items from `first`, by as many blocks of N threads,
/// asynchronously on exec.
template <int N, int Together, class ExecSpace, class Body>
void launch_groups(const std::string& label, const ExecSpace& exec, std::int64_t first, int count,
                   const Body& body) {
  constexpr int bytes = shared_bytes<typename Body::Scratch>;
  const auto kernel = run_group<Body, N, Together>;
  std::uint64_t id = 0;
  const bool is_watched = Kokkos::Tools::profileLibraryLoaded();
  if (is_watched) {
    Kokkos::Tools::beginParallelFor(label, Kokkos::Tools::Experimental::device_id(exec), &id);
  }
#ifdef KOKKOS_ENABLE_CUDA
  if constexpr (bytes > 48 * 1024) {
    // Once on each device: it allocates.
    static std::atomic<std::uint64_t> allowed{0};
    const std::uint64_t bit = std::uint64_t{1} << (exec.cuda_device() & 63);
    if ((allowed.load(std::memory_order_relaxed) & bit) == 0) {
      KOKKOS_IMPL_CUDA_SAFE_CALL(
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
      allowed.fetch_or(bit, std::memory_order_relaxed);
    }
  }
  launch_kernel(kernel, dim3(static_cast<unsigned>(count)), N, bytes, exec.cuda_stream(),
                begins_beside<Body>, body, first);
#else
  if constexpr (bytes > 48 * 1024) {
    KOKKOS_IMPL_HIP_SAFE_CALL(hipFuncSetAttribute(
        reinterpret_cast<const void*>(kernel), hipFuncAttributeMaxDynamicSharedMemorySize, bytes));
  }
  kernel<<<static_cast<unsigned>(count), N, bytes, exec.hip_stream()>>>(body, first);
  KOKKOS_IMPL_HIP_SAFE_CALL(hipGetLastError());
#endif
  if (is_watched) Kokkos::Tools::endParallelFor(id);
}

#ifdef KOKKOS_ENABLE_CUDA
/// Which block of a launch, in three numbers.
struct GridItem {
  int x, y, z;
};
/// The same, read again: a kernel that calls this keeps no registers for it until then.
__device__ inline GridItem grid_item_again() {
  GridItem item;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(item.x));
  asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(item.y));
  asm volatile("mov.u32 %0, %%ctaid.z;" : "=r"(item.z));
  return item;
}
template <class Body>
__global__ void __launch_bounds__(Body::most_threads, Body::groups_together)
    run_grid(const __grid_constant__ Body body) {
  // Aligned as the matrix unit's images are.
  extern __shared__ __align__(1024) unsigned char grid_memory[];
  body(DeviceGroup{}, grid_memory,
       GridItem{static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y),
                static_cast<int>(blockIdx.z)});
}

/// Body::cluster_y, or 1: see launch_kernel.
template <class Body>
inline constexpr int cluster_y = 1;
template <class Body>
requires requires { Body::cluster_y; }
inline constexpr int cluster_y<Body> = Body::cluster_y;

/// Runs body(group, shared memory, item) for each item of x * y * z by as many blocks of
/// body.threads() threads, asynchronously on exec; is_beside: see launch_kernel. y and z are below
/// 2^16.
template <class ExecSpace, class Body>
void launch_grid(const std::string& label, const ExecSpace& exec, std::int64_t x, std::int64_t y,
                 std::int64_t z, bool is_beside, const Body& body) {
  const auto kernel = run_grid<Body>;
  static std::atomic<std::uint64_t> allowed{0};
  const std::uint64_t bit = std::uint64_t{1} << (exec.cuda_device() & 63);
  if ((allowed.load(std::memory_order_relaxed) & bit) == 0) {
    // Once on each device: it allocates.
    KOKKOS_IMPL_CUDA_SAFE_CALL(cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Body::most_shared_bytes));
    allowed.fetch_or(bit, std::memory_order_relaxed);
  }
  std::uint64_t id = 0;
  const bool is_watched = Kokkos::Tools::profileLibraryLoaded();
  if (is_watched) {
    Kokkos::Tools::beginParallelFor(label, Kokkos::Tools::Experimental::device_id(exec), &id);
  }
  launch_kernel<cluster_y<Body>>(
      kernel, dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z)),
      static_cast<int>(body.threads()), static_cast<int>(body.shared_bytes()), exec.cuda_stream(),
      is_beside, body);
  if (is_watched) Kokkos::Tools::endParallelFor(id);
}
#endif

}  // namespace KokkosMX::Impl

#endif

#endif
