// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_CUDA_HPP
#define KOKKOSMX_SRC_ATOMS_CUDA_HPP

/// \file cuda.hpp
/// What CUDA's atoms share: instructions that have no name in C++.

#include <Kokkos_Core.hpp>

#ifdef KOKKOS_ENABLE_CUDA
#include <cstdint>

namespace KokkosMX::Impl::CudaUnit {

/// A bulk copy's barriers and copies: shared memory is named by its 32-bit address.
__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}
__device__ inline void barrier_init(std::uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}
/// Barriers just made are seen by every thread and by the copy engine.
__device__ inline void barriers_made() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async;" ::: "memory");
}
/// Arrives, and has the barrier wait for so many bytes of copies.
__device__ inline void barrier_expect(std::uint64_t* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
__device__ inline void barrier_arrive(std::uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
/// Waits for the end of the phase of this parity.
__device__ inline void barrier_wait(std::uint64_t* barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}
/// Copies bytes (a multiple of 16, aligned to 16) from global to shared memory; the barrier counts
/// them.
__device__ inline void bulk_copy(void* to, const void* from, int bytes, std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}
/// The value of the lane whose number differs in these bits, of a warp all of which calls it.
__device__ inline std::uint32_t from_lane_xor(std::uint32_t value, int bits) {
  return __shfl_xor_sync(0xFFFFFFFFu, value, bits);
}
/// The value of a lane of the warp, all of which call it together.
__device__ inline std::uint32_t from_lane(std::uint32_t value, int lane) {
  return __shfl_sync(0xFFFFFFFFu, value, lane);
}
/// A barrier of the block that also tells whether any thread said so.
__device__ inline bool barrier_any(bool mine) { return __syncthreads_or(mine ? 1 : 0) != 0; }

/// Blocks of a cluster run on neighbouring multiprocessors and write to one another's shared
/// memory. A kernel that is launched without clusters has one block in each.
__device__ inline int cluster_rank() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
/// The barrier of all threads of a cluster, in two halves.
__device__ inline void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ inline void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
/// The address of a place of this block's shared memory in that of another block.
__device__ inline std::uint32_t cluster_address(const void* mine, int rank) {
  std::uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(address)
      : "r"(shared_address(mine)), "r"(rank));
  return address;
}
__device__ inline void cluster_store(std::uint32_t address, std::uint32_t value) {
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
__device__ inline void cluster_store(std::uint32_t address, std::uint64_t value) {
  asm volatile("st.shared::cluster.u64 [%0], %1;" ::"r"(address), "l"(value) : "memory");
}

/// Copies 16 bytes, both aligned, from global to shared memory, past the first cache; zeros where
/// is_there is not so. Waited for by copies_arrived.
__device__ inline void copy_16(void* to, const void* from, bool is_there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(is_there ? 16 : 0)
               : "memory");
}
/// Ends a set of the thread's copies, and waits until no more than so many sets are under way.
__device__ inline void copies_begun() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Left>
__device__ inline void copies_arrived() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}
/// Whether any lane of the warp says so.
__device__ inline bool any_lane(bool mine) { return __any_sync(0xFFFFFFFFu, mine) != 0; }

/// What the thread wrote, or saw, comes before bulk copies from or to there.
__device__ inline void before_bulk_copies() { asm volatile("fence.proxy.async;" ::: "memory"); }
/// Four matrices of 8 rows of 16 bytes, of shared memory: lane l names row l % 8 of matrix l / 8,
/// and gets bytes 4 (l % 4) to 4 (l % 4) + 3 of row l / 4 of each.
__device__ inline void load_matrices(std::uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}
/// d += A * B^T by a warp: 16 x 8, 32 of K. Lane l holds columns 4 (l % 4) to 4 (l % 4) + 3 of rows
/// l / 4 and l / 4 + 8 of A, the same 16 columns on, and of row l / 4 of B; columns 2 (l % 4) and 2
/// (l % 4) + 1 of rows l / 4 and l / 4 + 8 of d.
__device__ inline void multiply_int8(std::int32_t* d, const std::uint32_t (&a)[4],
                                     const std::uint32_t* b) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
/// A barrier of some of the block's threads.
__device__ inline void named_barrier(int name, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

}  // namespace KokkosMX::Impl::CudaUnit
#endif

#endif
