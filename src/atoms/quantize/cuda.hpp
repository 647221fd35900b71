// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_QUANTIZE_CUDA_HPP
#define KOKKOSMX_SRC_ATOMS_QUANTIZE_CUDA_HPP

/// \file cuda.hpp
/// NVIDIA GPUs: rows of bf16 are quantized by quads of lanes that share blocks, or block by block
/// by a thread each; both two numbers at a time (cuda_pairs.hpp). Other formats, and blocks near
/// the ends of the range, take the loops.

#include "../cuda.hpp"
#include "cuda_pairs.hpp"
#include "portable.hpp"

#include <KokkosMX/Types.hpp>

#include <Kokkos_Core.hpp>

#include <cstdint>
#include <type_traits>

namespace KokkosMX::Impl {

#ifdef KOKKOS_ENABLE_CUDA

struct CudaQuantizeAtom : PortableQuantizeAtom {
  static constexpr const char* name = "cuda";

  template <class Format>
  KOKKOS_INLINE_FUNCTION static BlockResult quantize(const unsigned char* x, std::uint8_t* codes,
                                                     QuantizeRule rule) {
#if defined(__CUDA_ARCH__)
    if constexpr (std::is_same_v<Format, BF16Format>) {
      BlockResult result;
      if (is_aligned(x) && quantize_pairs(x, codes, rule, result)) return result;
    }
#endif
    return PortableQuantizeAtom::quantize<Format>(x, codes, rule);
  }

  KOKKOS_INLINE_FUNCTION static std::uint32_t sum_of_squares(const std::uint8_t* codes) {
#if defined(__CUDA_ARCH__)
    std::uint32_t words[4], sum = 0;
    memcpy(words, codes, sizeof(words));
    for (const std::uint32_t word : words) add_squares(word, sum);
    return sum;
#endif
    return PortableQuantizeAtom::sum_of_squares(codes);
  }

  /// Rows of this format that warps take: numbers that can be loaded by eights.
  template <class Format>
  KOKKOS_INLINE_FUNCTION static bool takes_eights(const unsigned char* row) {
    return std::is_same_v<Format, BF16Format> && is_aligned(row);
  }
  /// Eight numbers of a block, which the four lanes of a quad share.
  using Eight = Words;
  KOKKOS_INLINE_FUNCTION static Eight load_eight(const unsigned char* from) {
    return load_words<Words>(from);
  }
  /// A row of blocks on its way to a warp, N eights a lane at a time. Where the copy engine can, it
  /// brings the next ones while those before are quantized.
  template <int N>
  class EightStream {
   public:
    static constexpr int chunk = N * 32 * 16;  // bytes
    struct Memory {
      alignas(128) unsigned char chunks[2][chunk];
      std::uint64_t full[2];
    };

    KOKKOS_INLINE_FUNCTION EightStream([[maybe_unused]] Memory& memory, const unsigned char* row,
                                       std::int64_t bytes, int lane)
        : from_(row), left_(bytes), lane_(lane) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
      memory_ = &memory;
      if (lane == 0) {
        for (std::uint64_t& full : memory.full) CudaUnit::barrier_init(&full, 1);
        CudaUnit::barriers_made();
      }
      CudaUnit::warp_barrier();
      start(0);
      start(1);
#endif
    }
    /// Zeros past the row's end.
    KOKKOS_INLINE_FUNCTION void next(Eight (&eights)[N]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
      const int slot = turn_ & 1;
      CudaUnit::barrier_wait(&memory_->full[slot], turn_ >> 1 & 1);
      load(eights, memory_->chunks[slot]);
      CudaUnit::warp_barrier();
      start(2);
      ++turn_;
#else
      load(eights, from_);
#endif
      from_ += chunk;
      left_ -= chunk;
    }

   private:
    /// The next chunk's bytes, or that after so many more.
    KOKKOS_INLINE_FUNCTION int bytes_of(int i) const {
      const std::int64_t left = left_ - i * chunk;
      return static_cast<int>(left < chunk ? left : chunk);
    }
    KOKKOS_INLINE_FUNCTION void load(Eight (&eights)[N], const unsigned char* from) const {
      const int bytes = bytes_of(0);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const int at = (32 * i + lane_) * 16;
        eights[i] = at < bytes ? load_eight(from + at) : Eight{};
      }
    }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    /// Of chunks from the next one on.
    __device__ void start(int i) const {
      const int bytes = bytes_of(i);
      if (lane_ != 0 || bytes <= 0) return;
      const int slot = (turn_ + i) & 1;
      CudaUnit::barrier_expect(&memory_->full[slot], bytes);
      CudaUnit::bulk_copy(memory_->chunks[slot], from_ + i * chunk, bytes, &memory_->full[slot]);
    }
    Memory* memory_;
    int turn_ = 0;
#endif
    const unsigned char* from_;
    std::int64_t left_;
    int lane_;
  };

  /// What a lane has of its block. All lanes of a warp call it together.
  struct EightResult {
    std::uint32_t codes;
    std::uint32_t sum_of_squares;
    /// Of the block: 0 if it is zeros, negative where it is for quantize.
    int scale;
  };
  KOKKOS_INLINE_FUNCTION static bool all_lanes(bool mine) {
#if defined(__CUDA_ARCH__)
    return !CudaUnit::any_lane(!mine);
#else
    return mine;
#endif
  }
  /// With which zeros become codes of zero.
  static constexpr int any_scale = 127;
  /// What depends on the rule, found once.
#if defined(__CUDA_ARCH__)
  using Eights = Bf16Pairs;
#else
  struct Eights {
    explicit Eights(QuantizeRule) {}
  };
#endif
  template <bool ToEven>
  KOKKOS_INLINE_FUNCTION static EightResult quantize_eight([[maybe_unused]] const Eight& x,
                                                           [[maybe_unused]] const Eights& eights) {
    EightResult result{};
#if defined(__CUDA_ARCH__)
    std::uint32_t largest = Bf16Pairs::largest(x);
    largest = max(largest, CudaUnit::from_lane_xor(largest, 1));
    largest = max(largest, CudaUnit::from_lane_xor(largest, 2));
    const bool is_zero = largest == 0;
    const int scale = is_zero ? any_scale : eights.scale(largest);
    result.codes = Bf16Pairs::codes<ToEven>(x, scale);
    add_squares(result.codes, result.sum_of_squares);
    // Infinity and NaN come with larger scales.
    result.scale = is_zero ? 0 : Bf16Pairs::takes(scale) ? scale : -1;
#endif
    return result;
  }

 private:
  KOKKOS_INLINE_FUNCTION static bool is_aligned(const void* pointer) {
    return (reinterpret_cast<std::uintptr_t>(pointer) & 15) == 0;
  }

#if defined(__CUDA_ARCH__)
  /// Adds the squares of eight codes' magnitudes in halves.
  __device__ static void add_squares(std::uint32_t codes, std::uint32_t& sum) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::uint32_t halves =
          __byte_perm(0x03020100u, 0x0C080604u, codes >> (16 * h) & 0x7777u);
      sum = __dp4a(halves, halves, sum);
    }
  }

  /// False, with nothing written, where the block is for the loops.
  __device__ static bool quantize_pairs(const unsigned char* from, std::uint8_t* to,
                                        QuantizeRule rule, BlockResult& result) {
    Words x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = load_words<Words>(from + 16 * i);
    std::uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) largest = max(largest, Bf16Pairs::largest(x[i]));
    const Bf16Pairs pairs(rule);
    const int scale = pairs.scale(largest);
    // Infinity and NaN come with larger scales.
    if (!Bf16Pairs::takes(scale)) return false;
    std::uint32_t codes[4], sum_of_squares = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      codes[i] = rule.rounding() == Rounding::nearest_even ? Bf16Pairs::codes<true>(x[i], scale)
                                                           : Bf16Pairs::codes<false>(x[i], scale);
      add_squares(codes[i], sum_of_squares);
    }
    memcpy(to, codes, sizeof(codes));
    result = {static_cast<std::uint8_t>(scale), sum_of_squares};
    return true;
  }
#endif
};

#endif

}  // namespace KokkosMX::Impl

#endif
