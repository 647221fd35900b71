// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_CUDA_HPP
#define KOKKOSMX_SRC_ATOMS_CUDA_HPP

/// \file cuda.hpp
/// What CUDA's atoms share: instructions that have no name in C++.

#include <Kokkos_Core.hpp>

#include <cstdint>

#ifdef KOKKOS_ENABLE_CUDA

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
/// Barriers just made are seen by every thread and by the copy engine once the block's threads have
/// met.
__device__ inline void barriers_made_for_block() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/// The same at once, after what the thread has under way.
__device__ inline void barriers_made() {
  barriers_made_for_block();
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
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
/// A barrier of the block.
__device__ inline void block_barrier() { __syncthreads(); }
/// A barrier of the block that also tells whether any thread said so.
__device__ inline bool barrier_any(bool mine) { return __syncthreads_or(mine ? 1 : 0) != 0; }

/// The next kernel of the stream may begin, if it was launched to run beside this one, once all
/// blocks have come here.
__device__ inline void dependents_may_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/// Waits for the end of the kernel that this one was launched beside, and for what it wrote.
__device__ inline void wait_for_earlier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// Has each warp read another line of a kernel's parameters, or all warps would wait for one line
/// after the other: the first reads of a block take long. To a word of each warp's, or compilers
/// see that nobody needs them.
template <class Parameters>
__device__ inline void read_ahead(const Parameters& parameters, int thread, std::int32_t* to) {
  constexpr int line = 64, lines = (sizeof(Parameters) + line - 1) / line;
  const int warp = thread >> 5;
  const std::int32_t word =
      reinterpret_cast<const std::int32_t*>(&parameters)[warp % lines * (line / 4)];
  if ((thread & 31) == 0) to[warp] = word;
}
/// Has what lies there come near: to the cache that all multiprocessors share, where others' writes
/// are seen, so that this may be done before them.
__device__ inline void prefetch(const void* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from) : "memory");
}
/// Does nothing for about so long.
__device__ inline void sleep([[maybe_unused]] int nanoseconds) {
#if __CUDA_ARCH__ >= 700
  __nanosleep(static_cast<unsigned>(nanoseconds));
#endif
}
/// What the thread wrote is seen by all that a barrier lets on.
__device__ inline void written_for_all() { __threadfence(); }
/// The least value of the lanes of a warp.
__device__ inline int least_of_warp(int value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_min_sync(0xFFFFFFFFu, value);
#else
  return value;
#endif
}
/// Four of the eight bytes of low and high, by number; from 8 on, the highest bit of that byte
/// eight times (which __byte_perm leaves out).
__device__ inline std::uint32_t permute(std::uint32_t low, std::uint32_t high,
                                        std::uint32_t numbers) {
  std::uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(low), "r"(high), "r"(numbers));
  return bytes;
}
/// Four of the eight bytes of low and high, by number.
__device__ inline std::uint32_t bytes_of(std::uint32_t low, std::uint32_t high,
                                         std::uint32_t numbers) {
  return __byte_perm(low, high, numbers);
}
/// The smaller ones of the bytes of two words.
__device__ inline std::uint32_t smaller_bytes(std::uint32_t x, std::uint32_t y) {
  return __vminu4(x, y);
}
/// To nearest even.
__device__ inline float to_float(double x) { return __double2float_rn(x); }
/// Loads 16 bytes, aligned, or one from the cache that all multiprocessors share: what another one
/// has written is there, whatever this one has read before.
template <class T>
__device__ inline T load_past_first_cache(const void* from) {
  static_assert(sizeof(T) == 16 || sizeof(T) == 1);
  if constexpr (sizeof(T) == 16) {
    return Kokkos::bit_cast<T>(__ldcg(static_cast<const uint4*>(from)));
  } else {
    return __ldcg(static_cast<const T*>(from));
  }
}
/// Begins to copy 16 bytes, aligned, from there, past the first cache, to shared memory: the
/// thread's own, which it may read after wait_for_copies(). The offsets are known.
template <int To, int From>
__device__ inline void begin_copy(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0 + %2], [%1 + %3], 16;" ::"r"(shared_address(to)),
               "l"(from), "n"(To), "n"(From)
               : "memory");
}
/// Those that the thread has begun since the last time are a set; it waits for all sets but the
/// last ones, so many.
__device__ inline void end_set_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Last>
__device__ inline void wait_for_sets_of_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Last) : "memory");
}
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
/// Whether any lane of the warp says so.
__device__ inline bool any_lane(bool mine) { return __any_sync(0xFFFFFFFFu, mine) != 0; }

/// What the thread wrote, or saw, comes before bulk copies from or to there.
__device__ inline void before_bulk_copies() { asm volatile("fence.proxy.async;" ::: "memory"); }
/// The same of shared memory.
__device__ inline void before_shared_bulk_copies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
/// The same of global memory that the thread saw.
__device__ inline void before_bulk_loads() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}
/// Four matrices of 8 rows of 16 bytes, of shared memory: lane l names row l % 8 of matrix l / 8,
/// and gets bytes 4 (l % 4) to 4 (l % 4) + 3 of row l / 4 of each.
__device__ inline void load_matrices(std::uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}
/// Stores four matrices of 8 rows of 16 bytes, distributed and named like those of load_matrices.
__device__ inline void store_matrices(void* row, const std::uint32_t (&from)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
      "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
      : "memory");
#endif
}
/// The same of matrices whose rows are the columns of what is stored, of two bytes each.
__device__ inline void store_transposed(void* row, const std::uint32_t (&from)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   shared_address(row)),
               "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
               : "memory");
#endif
}
/// Two bf16 times two others.
__device__ inline std::uint32_t multiply_bf16(std::uint32_t x, std::uint32_t y) {
  std::uint32_t product = 0;
#if __CUDA_ARCH__ >= 900
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(x), "r"(y));
#endif
  return product;
}
/// What the lanes of a warp wrote is seen by all of them.
__device__ inline void warp_barrier() { __syncwarp(); }
/// All bits of the lanes of a warp.
__device__ inline std::uint32_t any_bits(std::uint32_t mine) {
#if __CUDA_ARCH__ >= 800
  return __reduce_or_sync(0xFFFFFFFFu, mine);
#else
  return mine;
#endif
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
/// Of a cluster of blocks: a thread comes to its barrier, and waits for all others. What it wrote
/// is not told by that.
__device__ inline void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
__device__ inline void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
#endif
}
/// Where one of the cluster's blocks has what lies there in this one's shared memory.
__device__ inline std::uint32_t address_in_block(const void* own, int block) {
  std::uint32_t address = 0;
#if __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(address)
      : "r"(shared_address(own)), "r"(block));
#endif
  return address;
}
/// Stores a number to the same place of another block, or copies bytes (a multiple of 16, aligned
/// to 16) to some place of it; the block's barrier, named by this one's, counts their bytes.
__device__ inline void store_to_block(const std::int32_t* own, std::int32_t value,
                                      const std::uint64_t* barrier, int block) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
          address_in_block(own, block)),
      "r"(value), "r"(address_in_block(barrier, block))
      : "memory");
#endif
}
__device__ inline void bulk_copy_to_block(const void* from, const void* to, int bytes,
                                          const std::uint64_t* barrier, int block) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(address_in_block(to, block)),
      "r"(shared_address(from)), "r"(bytes), "r"(address_in_block(barrier, block))
      : "memory");
#endif
}
/// All threads of a warpgroup keep so many registers each and leave the others to the block, or
/// wait for as many as that.
template <int Registers>
__device__ inline void keep_registers() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
#endif
}
template <int Registers>
__device__ inline void take_registers() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
#endif
}
/// A barrier of some of the block's threads.
__device__ inline void named_barrier(int name, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}
/// The block's barrier of so many threads, all that have not ended; whether any of them said so.
__device__ inline bool barrier_any_of(int threads, bool mine) {
  int any;
  asm volatile(
      "{\n.reg .pred mine, any;\n"
      "setp.ne.s32 mine, %1, 0;\n"
      "bar.red.or.pred any, 0, %2, mine;\n"
      "selp.s32 %0, 1, 0, any;\n}\n"
      : "=r"(any)
      : "r"(mine ? 1 : 0), "r"(threads)
      : "memory");
  return any != 0;
}

}  // namespace KokkosMX::Impl::CudaUnit
#endif

namespace KokkosMX::Impl {

/// A warp of CUDA's, of those above what kernels for any device use. They ask is_there first;
/// elsewhere threads have only their group in common, and nobody calls the others.
struct Warp {
#if defined(__CUDA_ARCH__)
  static constexpr bool is_there = true;
#else
  static constexpr bool is_there = false;
#endif
  static constexpr int lanes = 32;

  KOKKOS_INLINE_FUNCTION static std::uint32_t from_lane_xor(std::uint32_t value,
                                                            [[maybe_unused]] int bits) {
#if defined(__CUDA_ARCH__)
    return CudaUnit::from_lane_xor(value, bits);
#else
    return value;
#endif
  }
  KOKKOS_INLINE_FUNCTION static bool any_lane(bool mine) {
#if defined(__CUDA_ARCH__)
    return CudaUnit::any_lane(mine);
#else
    return mine;
#endif
  }
  KOKKOS_INLINE_FUNCTION static void barrier() {
#if defined(__CUDA_ARCH__)
    CudaUnit::warp_barrier();
#endif
  }
  KOKKOS_INLINE_FUNCTION static std::uint32_t multiply_bf16(std::uint32_t x,
                                                            [[maybe_unused]] std::uint32_t y) {
#if defined(__CUDA_ARCH__)
    return CudaUnit::multiply_bf16(x, y);
#else
    return x;
#endif
  }
  KOKKOS_INLINE_FUNCTION static void store_matrices(
      [[maybe_unused]] void* row, [[maybe_unused]] const std::uint32_t (&from)[4]) {
#if defined(__CUDA_ARCH__)
    CudaUnit::store_matrices(row, from);
#endif
  }
};

/// As CudaUnit has them; elsewhere a kernel begins when the one before has ended.
KOKKOS_INLINE_FUNCTION void dependents_may_begin() {
#if defined(__CUDA_ARCH__)
  CudaUnit::dependents_may_begin();
#endif
}
KOKKOS_INLINE_FUNCTION void wait_for_earlier() {
#if defined(__CUDA_ARCH__)
  CudaUnit::wait_for_earlier();
#endif
}

}  // namespace KokkosMX::Impl

#endif
