// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_GEMM_WGMMA_HPP
#define KOKKOSMX_SRC_ATOMS_GEMM_WGMMA_HPP

/// \file wgmma.hpp
/// Hopper's warpgroup-level int8 product (sm_90a): a pipeline of images through shared memory, fed
/// by the bulk copy engine.
///
/// An image holds int8 elements, 128 of K (a step) by a tile's rows, as the matrix unit reads them
/// from shared memory with its 128-byte swizzle: 8 rows are 1024 bytes, and the 16-byte chunk c of
/// row r lies at 128 (r % 8) + 16 (c ^ (r % 8)) of them.

#include "../cuda.hpp"
#include "int8_codes.hpp"

#include <KokkosMX/Types.hpp>

#include <Kokkos_Core.hpp>

#include <cstdint>

namespace KokkosMX::Impl {

/// What follows the products of a tile: nothing, some steps of gathered columns, or no steps but
/// the memory of as many, where its threads keep accumulators.
enum class StepsAfter { none, gathered, room };

/// Images of int8 elements, whoever makes them: see the top of this file.
struct Int8Images {
  static constexpr int step_blocks = 4;
  static constexpr int step_bytes = step_blocks * block_size;  // of a row
  /// An aligned code is m << shift with m up to 12 halves: 12 << 3 = 96 fits.
  static constexpr int max_shift = 3;
  /// int32 accumulators hold every sum of magnitude below 2^31: n_i * n_j < 2^62.
  static constexpr int certificate_bits = 62;
  /// Elements are at most 96: 9216 K <= 2^31 - 1.
  static constexpr std::int64_t most_blocks = ((std::int64_t{1} << 31) - 1) / 9216 / block_size;

  /// The sum of a tile is that of some products, one after the other: of so many steps, whose
  /// images lie a and b bytes from the tile's. After each all sums so far are multiplied by
  /// `factor`, modulo 2^32.
  struct Product {
    std::int64_t a, b;
    std::int32_t steps;
    std::uint32_t factor;
  };
  static constexpr int most_products = 3;

  /// Sums over gathered columns, of an accumulator: outliers by main part, main part by outliers,
  /// outliers by outliers in two digits of base 256.
  struct OutlierSum {
    std::int32_t outliers_main, main_outliers, outliers_high, outliers_low;
  };
  /// Of 8 accumulators.
  struct OutlierSums {
    std::int32_t outliers_main[8], main_outliers[8], outliers_high[8], outliers_low[8];

    /// One of the first four.
    KOKKOS_FORCEINLINE_FUNCTION OutlierSum of(int i) const {
      OutlierSum found{};
      KOKKOSMX_UNROLL
      for (int v = 0; v < 4; ++v) {
        if (v == i) found = {outliers_main[v], main_outliers[v], outliers_high[v], outliers_low[v]};
      }
      return found;
    }
    /// The last four take the place of the first: registers have no index at run time.
    KOKKOS_FORCEINLINE_FUNCTION void move_up() {
      KOKKOSMX_UNROLL
      for (int v = 0; v < 4; ++v) {
        outliers_main[v] = outliers_main[v + 4];
        main_outliers[v] = main_outliers[v + 4];
        outliers_high[v] = outliers_high[v + 4];
        outliers_low[v] = outliers_low[v + 4];
      }
    }
  };

  /// Where 16-byte chunk `chunk` (0..7) of a row of a tile lies in its image.
  KOKKOS_INLINE_FUNCTION static constexpr int offset(int row, int chunk) {
    return (row >> 3) * 1024 + (row & 7) * 128 + ((chunk ^ (row & 7)) << 4);
  }

  /// Where accumulator v of a multiplying thread belongs in the tile.
  KOKKOS_INLINE_FUNCTION static constexpr int row_of(int thread, int v) {
    return (thread >> 5) * 16 + ((thread & 31) >> 2) + ((v >> 1) & 1) * 8;
  }
  KOKKOS_INLINE_FUNCTION static constexpr int col_of(int thread, int v) {
    return (v >> 2) * 8 + (thread & 3) * 2 + (v & 1);
  }
  /// The thread and the accumulator of a place in the tile.
  KOKKOS_INLINE_FUNCTION static constexpr int thread_of(int row, int col) {
    return (row >> 4) * 32 + (row & 7) * 4 + (col >> 1 & 3);
  }
  KOKKOS_INLINE_FUNCTION static constexpr int value_of(int row, int col) {
    return (col >> 3) * 4 + (row >> 3 & 1) * 2 + (col & 1);
  }

  /// The matrix unit's descriptor of rows of 128 bytes at an address in shared memory, swizzled, 8
  /// rows every 1024 bytes.
  KOKKOS_INLINE_FUNCTION static constexpr std::uint64_t describe(std::uint32_t rows) {
    const std::uint64_t address = rows;
    return ((address & 0x3FFFF) >> 4) | (std::uint64_t{1} << 16) |
           (std::uint64_t{1024 >> 4} << 32) | (std::uint64_t{1} << 62);
  }
  /// That of what lies so many bytes behind it, in the same block's memory.
  KOKKOS_INLINE_FUNCTION static constexpr std::uint64_t described_after(std::uint64_t rows,
                                                                        int bytes) {
    return rows + (bytes >> 4);
  }
  /// That of an instruction's part of the rows: 32 of K of a step.
  KOKKOS_INLINE_FUNCTION static constexpr std::uint64_t described_part(std::uint64_t rows, int k) {
    return rows + 2 * k;
  }
};

/// Parts of images, 32 columns at a time, as a warp loads them for warp-level products of 16 rows
/// by tiles of 8: as MmaInt8Atom has them. Four matrices of 8 rows of 16 bytes each, as
/// CudaUnit::load_matrices has them.
struct PartsOfImage {
  /// The chunk that a lane names: of the first operand rows 0 to 7 and 8 to 15 of a thread's warp,
  /// first chunks before second ones; of the second, of which accumulators 8 * i to 8 * i + 7 have
  /// 16 rows, two chunks of 8 of them, then of the others.
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int named_a(int thread, int lane) {
    return Int8Images::offset((thread >> 5) * 16 + (lane & 15), lane >> 4);
  }
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int named_b(int lane, int i) {
    return Int8Images::offset((lane >> 4) * 8 + (lane & 7), (lane >> 3) & 1) +
           i * (16 * Int8Images::step_bytes);
  }
  /// That of other columns: these, and 16 rows of the second operand, differ in address bits of
  /// their own.
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int of_columns(int place, int k) {
    return place ^ (32 * k);
  }
  /// Of a tile of 8 rows of the second operand, the first of two: its registers, and the first of
  /// its sums.
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int first_register_b(int tile) { return 2 * tile; }
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int first_sum(int tile) { return 4 * tile; }
};

/// Accumulators of all threads, parked in three of a pipeline's stages: images of the first operand
/// come before those of the second one there, each by stage. Eight of every thread are a piece,
/// [v][thread], which begins where place() says; the last stage has none of the first operand's.
template <int Stages, int ABytes, int BBytes, int Threads>
struct ParkedAccumulators {
  static constexpr int piece_bytes = 8 * 4 * Threads;
  static constexpr int of_a = ABytes / piece_bytes, of_b = BBytes / piece_bytes, in_a = 2 * of_a;
  static constexpr int most_pieces = in_a + 3 * of_b;
  static_assert(ABytes % piece_bytes == 0 && BBytes % piece_bytes == 0);

  /// Which of the three stages has it; and where that stage, by its number of all, has it.
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int stage(int piece) {
    return piece < in_a ? piece / of_a : (piece - in_a) / of_b;
  }
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int place(int piece, int of_all) {
    return piece < in_a ? of_all * ABytes + piece % of_a * piece_bytes
                        : Stages * ABytes + of_all * BBytes + (piece - in_a) % of_b * piece_bytes;
  }
  /// Of accumulator v of eight, how far behind that of the first thread.
  KOKKOS_FORCEINLINE_FUNCTION static constexpr int behind(int v) { return v * Threads; }
};

#ifdef KOKKOS_ENABLE_CUDA

inline constexpr const char* wgmma_name = "wgmma";

/// Products of 64 x N by a warpgroup; a tile is one of each of some warpgroups.
template <int Warpgroups, int N>
struct WgmmaInt8Atom : Int8Images {
  static_assert(N == 256 || N == 128 || N == 64 || N == 32 || N == 16);
  static constexpr int tile_m = 64 * Warpgroups, tile_n = N;
  static constexpr int a_bytes = tile_m * step_bytes, b_bytes = tile_n * step_bytes;
  static constexpr int stages = N == 256 ? 4 : 6;
  /// One more warpgroup copies, and prepares tiles.
  static constexpr int multiplying = 128 * Warpgroups, threads = multiplying + 128;
  static constexpr int preparing = 96;
  static constexpr int values = N / 2;  // accumulators of a thread
  /// Groups that a multiprocessor holds at once.
  static constexpr int groups_each = N == 256 ? 1 : 2;

  struct Pipeline {
    alignas(1024) std::int8_t a[stages][a_bytes];
    alignas(1024) std::int8_t b[stages][b_bytes];
    std::uint64_t full[stages], empty[stages];
    /// Of every other tile: what prepare said of it, by warp.
    std::uint64_t prepared[2], stored[2];
    std::uint32_t said[2][preparing / 32];
  };

  /// Of gathered columns (GatherOutliers), which large tiles may have: of those near the main part,
  /// and of others, which come after a tile's products.
  static constexpr int joint_steps = 2, after_steps = 3;
  static constexpr int gathered_steps = N == 256 ? 2 * joint_steps + 1 : 0;
  static_assert(N != 256 || after_steps <= gathered_steps);
  static constexpr int common_columns = 32;  // of one instruction
  using Parked = ParkedAccumulators<stages, a_bytes, b_bytes, multiplying>;
  static_assert(after_steps == 3);
  /// What there is of gathered columns.
  struct Digits {
    int parts;  ///< of 32 columns each: those after them are none
    bool high_a, high_b;
  };

  /// Of a tile: step s has images at a + s * a_bytes and b + s * b_bytes. Rows are cut into pieces,
  /// of which the first is there, the others of the same step a_piece and b_piece bytes on, each
  /// from the one before; but of four the last is no matter.
  struct Images {
    const std::uint8_t* a;
    const std::uint8_t* b;
    int a_pieces, b_pieces;
    std::int64_t a_piece, b_piece;
  };

  /// What all threads of a warp have, of which the compiler then knows that they do.
  KOKKOS_FORCEINLINE_FUNCTION static std::uint32_t uniform(std::uint32_t x) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    return CudaUnit::from_lane(x, 0);
#else
    return x;
#endif
  }

  /// The multiplying threads wait for each other.
  KOKKOS_FORCEINLINE_FUNCTION static void synchronize() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    CudaUnit::named_barrier(1, multiplying);
#endif
  }

  /// What the thread wrote, to whatever memory, is seen by others, also by their bulk copies.
  KOKKOS_FORCEINLINE_FUNCTION static void publish() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    __threadfence();
    CudaUnit::before_bulk_copies();
#endif
  }

  /// The steps after a tile's products, in three of the pipeline's stages. For the multiplying
  /// threads, all of them together.
  class MoreSteps {
   public:
    KOKKOS_FORCEINLINE_FUNCTION MoreSteps(Pipeline& pipeline, int first, int thread)
        : memory_(reinterpret_cast<std::uint8_t*>(&pipeline)), first_(first), thread_(thread) {}
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    /// Of accumulators 8 * i to 8 * i + 7. By warp-level products: those of warpgroups would have
    /// the compiler wait for each in the main loop, too.
    __device__ __forceinline__ void multiply(int i, const Digits& digits, OutlierSums& sums) const {
      const int s0 = first_, s1 = at(1), s2 = at(2);
#pragma unroll
      for (int v = 0; v < 8; ++v) {
        sums.outliers_main[v] = sums.main_outliers[v] = 0;
        sums.outliers_high[v] = sums.outliers_low[v] = 0;
      }
      const int lane = thread_ & 31;
      const int of_a = PartsOfImage::named_a(thread_, lane), of_b = PartsOfImage::named_b(lane, i);
      const auto load_a = [&](std::uint32_t(&to)[4], const std::int8_t* rows, int k) {
        CudaUnit::load_matrices(to, rows + PartsOfImage::of_columns(of_a, k));
      };
      const auto load_b = [&](std::uint32_t(&to)[4], const std::int8_t* rows, int k) {
        CudaUnit::load_matrices(to, rows + PartsOfImage::of_columns(of_b, k));
      };
#pragma unroll 1
      for (int k = 0; k < digits.parts; ++k) {
        std::uint32_t a[4], a_high[4], b[4], b_high[4];
        load_a(a, pipeline().a[s1], k);
        load_b(b, pipeline().b[s0], k);
        multiply(sums.outliers_main, a, b, 1);
        if (digits.high_a) {
          load_a(a_high, pipeline().a[s0], k);
          multiply(sums.outliers_main, a_high, b, 256);
        }
        load_b(b, pipeline().b[s2], k);
        if (digits.high_b) load_b(b_high, pipeline().b[s1], k);
        if (k == 0) {  // the common columns
          multiply(sums.outliers_low, a, b, 1);
          if (digits.high_a) multiply(sums.outliers_high, a_high, b, 1);
          if (digits.high_b) multiply(sums.outliers_high, a, b_high, 1);
          if (digits.high_a && digits.high_b) multiply(sums.outliers_high, a_high, b_high, 256);
        }
        load_a(a, pipeline().a[s2], k);
        multiply(sums.main_outliers, a, b, 1);
        if (digits.high_b) multiply(sums.main_outliers, a, b_high, 256);
      }
    }
    /// Puts all accumulators into the memory of the stages.
    __device__ __forceinline__ void keep(const std::int32_t (&d)[values]) const {
#pragma unroll
      for (int i = 0; i < values / 8; ++i) {
        std::int32_t* to = kept(i) + thread_;
#pragma unroll
        for (int v = 0; v < 8; ++v) to[Parked::behind(v)] = d[8 * i + v];
      }
      CudaUnit::named_barrier(1, multiplying);
    }
    /// Puts zeros there.
    __device__ __forceinline__ void clear() const {
#pragma unroll
      for (int i = 0; i < values / 8; ++i) {
#pragma unroll
        for (int v = 0; v < 8; ++v) kept(i)[Parked::behind(v) + thread_] = 0;
      }
    }
    /// There: [v][thread] has accumulator 8 * i + v of a thread (ParkedAccumulators).
    __device__ __forceinline__ std::int32_t* kept(int i) const {
      static_assert(Parked::most_pieces >= values / 8);
      return reinterpret_cast<std::int32_t*>(in_shared(memory_) +
                                             Parked::place(i, at(Parked::stage(i))));
    }
    /// Their stages are free again.
    __device__ __forceinline__ void release() const {
      CudaUnit::before_bulk_copies();
      CudaUnit::named_barrier(1, multiplying);
      if (thread_ % 128 != 0) return;
      for (int i = 0; i < after_steps; ++i) CudaUnit::barrier_arrive(&pipeline().empty[at(i)]);
    }

   private:
    __device__ __forceinline__ Pipeline& pipeline() const {
      return *reinterpret_cast<Pipeline*>(memory_);
    }
    /// sums += factor * a * b.
    __device__ __forceinline__ static void multiply(std::int32_t (&sums)[8],
                                                    const std::uint32_t (&a)[4],
                                                    const std::uint32_t (&b)[4], int factor) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (factor == 1) {
          CudaUnit::multiply_int8(sums + PartsOfImage::first_sum(h), a,
                                  b + PartsOfImage::first_register_b(h));
          continue;
        }
        std::int32_t product[4] = {};
        CudaUnit::multiply_int8(product, a, b + PartsOfImage::first_register_b(h));
#pragma unroll
        for (int v = 0; v < 4; ++v) sums[PartsOfImage::first_sum(h) + v] += factor * product[v];
      }
    }
    __device__ __forceinline__ int at(int i) const { return (first_ + i) % stages; }
#else
    KOKKOS_INLINE_FUNCTION void multiply(int, const Digits&, OutlierSums&) const {}
    KOKKOS_INLINE_FUNCTION void keep(const std::int32_t (&)[values]) const {}
    KOKKOS_INLINE_FUNCTION void clear() const {}
    KOKKOS_INLINE_FUNCTION std::int32_t* kept(int) const { return nullptr; }
    KOKKOS_INLINE_FUNCTION void release() const {}

   private:
#endif
    std::uint8_t* memory_;  // the pipeline
    int first_, thread_;
  };

  /// Until they are there.
  struct Gathered {
    Pipeline& pipeline;
    int& stage;
    int& phase;
    int thread;

    KOKKOS_FORCEINLINE_FUNCTION MoreSteps wait() const {
      const int first = stage;
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
      for (int i = 0; i < after_steps; ++i) {
        CudaUnit::barrier_wait(&pipeline.full[stage], phase);
        advance(stage, phase);
      }
#endif
      return {pipeline, first, thread};
    }
  };

  /// For each tile: prepare(tile, slot, thread, threads) by some threads, beside product(marks, i),
  /// i < most_products, with marks = marks_of(tile), by others, then store(tile, slot, bits,
  /// accumulators, gathered) by these, of the bits that any thread's prepare returned; it waits for
  /// the steps after the last product exactly where steps_after(tile) says that there are any. What
  /// is prepared in a slot (0 or 1) is kept until all have stored that tile. images(tile) tells
  /// where the operands are. prepare must not wait for other threads. Tiles: first, first + stride,
  /// ... below end. first stays where it is until threads begin: they have no register for it.
  template <class ImagesOf, class MarksOf, class ProductOf, class After, class Prepare, class Store>
  KOKKOS_FUNCTION static void run(
      [[maybe_unused]] Pipeline& pipeline, [[maybe_unused]] const std::int32_t& first,
      [[maybe_unused]] std::int32_t end, [[maybe_unused]] std::int32_t stride,
      [[maybe_unused]] const ImagesOf& images, [[maybe_unused]] const MarksOf& marks_of,
      [[maybe_unused]] const ProductOf& product, [[maybe_unused]] const After& steps_after,
      [[maybe_unused]] const Prepare& prepare, [[maybe_unused]] const Store& store) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    using namespace CudaUnit;
    if (threadIdx.x == 0) {
      for (int i = 0; i < stages; ++i) {
        barrier_init(&pipeline.full[i], 1);
        barrier_init(&pipeline.empty[i], multiplying / 128);
      }
      for (int i = 0; i < 2; ++i) {
        barrier_init(&pipeline.prepared[i], preparing);
        barrier_init(&pipeline.stored[i], multiplying / 32);
      }
      barriers_made();
    }
    __syncthreads();
    int stage = 0, phase = 0;
    if (threadIdx.x < 128) {
      if constexpr (N == 256) CudaUnit::keep_registers<56>();
      if (threadIdx.x >= 128 - preparing) {
        const int rank = static_cast<int>(threadIdx.x) - (128 - preparing);
        int turn = 0;
        for (std::int32_t tile = first; tile < end; tile += stride, ++turn) {
          const int slot = turn & 1;
          barrier_wait(&pipeline.stored[slot], (turn >> 1 & 1) ^ 1);
          const std::uint32_t all = any_bits(prepare(tile, slot, rank, preparing));
          if (rank % 32 == 0) pipeline.said[slot][rank / 32] = all;
          barrier_arrive(&pipeline.prepared[slot]);
        }
        return;
      }
      if (threadIdx.x != 0) return;
      for (std::int32_t tile = first; tile < end; tile += stride) {
        const Images from = images(tile);
        const StepsAfter after = steps_after(tile);
        const int a_each = a_bytes / from.a_pieces, b_each = b_bytes / from.b_pieces;
        const std::uint32_t marks = marks_of(tile);
#pragma unroll 1
        for (int i = 0; i < most_products; ++i) {
          const Product now = product(marks, i);
          const std::uint8_t* a = from.a + now.a;
          const std::uint8_t* b = from.b + now.b;
          const bool has_more = i == most_products - 1 && after == StepsAfter::gathered;
          const std::int64_t count = now.steps + (has_more ? after_steps : 0);
#pragma unroll 1
          for (std::int64_t s = 0; s < count; ++s) {
            barrier_wait(&pipeline.empty[stage], phase ^ 1);
            barrier_expect(&pipeline.full[stage], a_bytes + b_bytes);
            copy(pipeline.a[stage], a + s * a_bytes, a_each, from.a_pieces, from.a_piece,
                 &pipeline.full[stage]);
            copy(pipeline.b[stage], b + s * b_bytes, b_each, from.b_pieces, from.b_piece,
                 &pipeline.full[stage]);
            advance(stage, phase);
          }
        }
        for (int i = 0; after == StepsAfter::room && i < after_steps; ++i) {
          barrier_wait(&pipeline.empty[stage], phase ^ 1);
          barrier_arrive(&pipeline.full[stage]);
          advance(stage, phase);
        }
      }
      return;
    }
    if constexpr (N == 256) CudaUnit::take_registers<224>();

    int turn = 0;
    for (std::int32_t tile = first; tile < end; tile += stride, ++turn) {
      const int thread = opaque(static_cast<int>(threadIdx.x)) - 128;
      std::int32_t d[values];
#pragma unroll
      for (int v = 0; v < values; ++v) d[v] = 0;
      const auto release = [&](int s) {
        if (thread % 128 == 0) barrier_arrive(&pipeline.empty[s]);
      };
      int last = 0;
      const std::uint32_t marks = uniform(marks_of(tile));
#pragma unroll 1
      for (int i = 0; i < most_products; ++i) {
        const Product now = product(marks, i);
        const auto count =
            static_cast<std::int32_t>(uniform(static_cast<std::uint32_t>(now.steps)));
        const std::uint32_t factor = uniform(now.factor);
        for (std::int32_t s = 0; s < count; ++s) {
          barrier_wait(&pipeline.full[stage], phase);
          begin_step(d, pipeline.a[stage] + thread / 128 * (a_bytes / Warpgroups),
                     pipeline.b[stage]);
          if (s > 0) {
            wait_for_steps<1>();
            release(last);
          }
          last = stage;
          advance(stage, phase);
        }
        if (count > 0) {
          wait_for_steps<0>();
          release(last);
        }
        if (factor != 1) {
#pragma unroll
          for (int v = 0; v < values; ++v) {
            d[v] = static_cast<std::int32_t>(static_cast<std::uint32_t>(d[v]) * factor);
          }
        }
      }
      const int slot = turn & 1;
      barrier_wait(&pipeline.prepared[slot], turn >> 1 & 1);
      std::uint32_t said = 0;
#pragma unroll
      for (const std::uint32_t bits : pipeline.said[slot]) said |= bits;
      store(tile, slot, said, d, Gathered{pipeline, stage, phase, thread});
      warp_barrier();
      if (thread % 32 == 0) barrier_arrive(&pipeline.stored[slot]);
    }
#else
    Kokkos::abort("KokkosMX: wgmma needs code for sm_90a");
#endif
  }

  /// Begins to add the product of a step of two images in shared memory, 64 rows by tile_n, by a
  /// warpgroup. Neither may change until it has waited for that.
  __device__ __forceinline__ static void begin_step(std::int32_t (&d)[values], const void* rows_a,
                                                    const void* rows_b) {
    begin_step(d, describe(rows_a), describe(rows_b));
  }
  /// The same of images that are described.
  __device__ __forceinline__ static void begin_step([[maybe_unused]] std::int32_t (&d)[values],
                                                    [[maybe_unused]] std::uint64_t a,
                                                    [[maybe_unused]] std::uint64_t b) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int k = 0; k < step_bytes / 32; ++k) {
      multiply(d, described_part(a, k), described_part(b, k), 1);
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
    Kokkos::abort("KokkosMX: wgmma needs code for sm_90a");
#endif
  }
  /// Waits for all steps that it has begun but the last ones, so many.
  template <int Last>
  __device__ __forceinline__ static void wait_for_steps() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Last) : "memory");
#endif
  }

  /// The matrix unit's descriptor of rows of an image.
  __device__ static std::uint64_t describe(const void* rows) {
    return Int8Images::describe(CudaUnit::shared_address(rows));
  }

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __device__ __forceinline__ static void advance(int& stage, int& phase) {
    if (++stage == stages) {
      stage = 0;
      phase ^= 1;
    }
  }
  /// An operand of a step, in pieces of so many bytes: see Images.
  __device__ __forceinline__ static void copy(std::int8_t* to, const std::uint8_t* from, int bytes,
                                              int pieces, std::int64_t piece,
                                              std::uint64_t* barrier) {
    CudaUnit::bulk_copy(to, from, bytes, barrier);
#pragma unroll 1
    for (int i = 1; i < pieces; ++i) {
      CudaUnit::bulk_copy(to + i * bytes, from + (i < 3 ? i * piece : 0), bytes, barrier);
    }
  }
  /// d = A * B^T, plus d where add is not 0: 64 x tile_n, 32 of K.
  __device__ static void multiply(std::int32_t (&d)[values], std::uint64_t a, std::uint64_t b,
                                  int add) {
    if constexpr (tile_n == 256) {
      asm volatile(
          "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 "
          "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
          "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
          "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
          "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
          "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "
          "%111, "
          "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, "
          "%126, %127}, "
          "%128, %129, p;\n}\n"
          : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]),
            "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]),
            "+r"(d[14]), "+r"(d[15]), "+r"(d[16]), "+r"(d[17]), "+r"(d[18]), "+r"(d[19]),
            "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]), "+r"(d[24]), "+r"(d[25]),
            "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]), "+r"(d[30]), "+r"(d[31]),
            "+r"(d[32]), "+r"(d[33]), "+r"(d[34]), "+r"(d[35]), "+r"(d[36]), "+r"(d[37]),
            "+r"(d[38]), "+r"(d[39]), "+r"(d[40]), "+r"(d[41]), "+r"(d[42]), "+r"(d[43]),
            "+r"(d[44]), "+r"(d[45]), "+r"(d[46]), "+r"(d[47]), "+r"(d[48]), "+r"(d[49]),
            "+r"(d[50]), "+r"(d[51]), "+r"(d[52]), "+r"(d[53]), "+r"(d[54]), "+r"(d[55]),
            "+r"(d[56]), "+r"(d[57]), "+r"(d[58]), "+r"(d[59]), "+r"(d[60]), "+r"(d[61]),
            "+r"(d[62]), "+r"(d[63]), "+r"(d[64]), "+r"(d[65]), "+r"(d[66]), "+r"(d[67]),
            "+r"(d[68]), "+r"(d[69]), "+r"(d[70]), "+r"(d[71]), "+r"(d[72]), "+r"(d[73]),
            "+r"(d[74]), "+r"(d[75]), "+r"(d[76]), "+r"(d[77]), "+r"(d[78]), "+r"(d[79]),
            "+r"(d[80]), "+r"(d[81]), "+r"(d[82]), "+r"(d[83]), "+r"(d[84]), "+r"(d[85]),
            "+r"(d[86]), "+r"(d[87]), "+r"(d[88]), "+r"(d[89]), "+r"(d[90]), "+r"(d[91]),
            "+r"(d[92]), "+r"(d[93]), "+r"(d[94]), "+r"(d[95]), "+r"(d[96]), "+r"(d[97]),
            "+r"(d[98]), "+r"(d[99]), "+r"(d[100]), "+r"(d[101]), "+r"(d[102]), "+r"(d[103]),
            "+r"(d[104]), "+r"(d[105]), "+r"(d[106]), "+r"(d[107]), "+r"(d[108]), "+r"(d[109]),
            "+r"(d[110]), "+r"(d[111]), "+r"(d[112]), "+r"(d[113]), "+r"(d[114]), "+r"(d[115]),
            "+r"(d[116]), "+r"(d[117]), "+r"(d[118]), "+r"(d[119]), "+r"(d[120]), "+r"(d[121]),
            "+r"(d[122]), "+r"(d[123]), "+r"(d[124]), "+r"(d[125]), "+r"(d[126]), "+r"(d[127])
          : "l"(a), "l"(b), "r"(add));
    } else if constexpr (tile_n == 128) {
      asm volatile(
          "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 "
          "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
          "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
          "%64, %65, p;\n}\n"
          : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]),
            "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]),
            "+r"(d[14]), "+r"(d[15]), "+r"(d[16]), "+r"(d[17]), "+r"(d[18]), "+r"(d[19]),
            "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]), "+r"(d[24]), "+r"(d[25]),
            "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]), "+r"(d[30]), "+r"(d[31]),
            "+r"(d[32]), "+r"(d[33]), "+r"(d[34]), "+r"(d[35]), "+r"(d[36]), "+r"(d[37]),
            "+r"(d[38]), "+r"(d[39]), "+r"(d[40]), "+r"(d[41]), "+r"(d[42]), "+r"(d[43]),
            "+r"(d[44]), "+r"(d[45]), "+r"(d[46]), "+r"(d[47]), "+r"(d[48]), "+r"(d[49]),
            "+r"(d[50]), "+r"(d[51]), "+r"(d[52]), "+r"(d[53]), "+r"(d[54]), "+r"(d[55]),
            "+r"(d[56]), "+r"(d[57]), "+r"(d[58]), "+r"(d[59]), "+r"(d[60]), "+r"(d[61]),
            "+r"(d[62]), "+r"(d[63])
          : "l"(a), "l"(b), "r"(add));
    } else if constexpr (tile_n == 64) {
      asm volatile(
          "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 "
          "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
          "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
          "%32, %33, p;\n}\n"
          : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]),
            "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]),
            "+r"(d[14]), "+r"(d[15]), "+r"(d[16]), "+r"(d[17]), "+r"(d[18]), "+r"(d[19]),
            "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]), "+r"(d[24]), "+r"(d[25]),
            "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]), "+r"(d[30]), "+r"(d[31])
          : "l"(a), "l"(b), "r"(add));
    } else if constexpr (tile_n == 32) {
      asm volatile(
          "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n32k32.s32.s8.s8 "
          "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
          "%16, %17, p;\n}\n"
          : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]),
            "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]),
            "+r"(d[14]), "+r"(d[15])
          : "l"(a), "l"(b), "r"(add));
    } else if constexpr (tile_n == 16) {
      asm volatile(
          "{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n16k32.s32.s8.s8 "
          "{%0, %1, %2, %3, %4, %5, %6, %7}, "
          "%8, %9, p;\n}\n"
          : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]),
            "+r"(d[7])
          : "l"(a), "l"(b), "r"(add));
    }
  }
#endif
};

#endif

}  // namespace KokkosMX::Impl

#endif
