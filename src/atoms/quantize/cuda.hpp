// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_QUANTIZE_CUDA_HPP
#define KOKKOSMX_SRC_ATOMS_QUANTIZE_CUDA_HPP

/// \file cuda.hpp
/// NVIDIA GPUs: a thread quantizes a block of bf16 two numbers at a time, in f16 arithmetic that is
/// exact. Other formats, and blocks near the ends of the range, take the loops.
///
/// With y = |x| 2^(127 - s), below 8, the code's magnitude is the number of midpoints that y
/// reaches (or exceeds, where the tie goes down). For a midpoint t the number sat((y - u) 2^10), u
/// = t or the bf16 before it, is 1 where t is reached and 0 elsewhere: the product and the sum are
/// exact before they saturate, and so are the sums 1024 + 0, 1, ... 7, whose last bits are the
/// code.

#include "../cuda.hpp"
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

 private:
  KOKKOS_INLINE_FUNCTION static bool is_aligned(const void* pointer) {
    return (reinterpret_cast<std::uintptr_t>(pointer) & 15) == 0;
  }

#if defined(__CUDA_ARCH__)
  /// Scales of which no bf16 but zero loses its sign, whichever rounding.
  static constexpr int least_scale = 20, largest_scale = 140;

  /// -n 2^10 / 2^p in f16, twice; n below 256.
  __device__ static constexpr std::uint32_t minus(std::uint32_t n, int p) {
    int top = 7;
    while ((n >> top) == 0) --top;
    const std::uint32_t bits = 0x8000u | static_cast<std::uint32_t>(15 + 10 - p + top) << 10 |
                               ((n << (10 - top)) & 0x3FFu);
    return bits * 0x10001u;
  }
  /// The seven midpoints 1/4, 3/4, 5/4, 7/4, 5/2, 7/2, 5 as they are subtracted: themselves where
  /// their tie goes down, or the bf16 before them.
  __device__ static constexpr std::uint32_t subtracted(bool to_even, int i) {
    constexpr std::uint32_t n[7] = {128, 192, 160, 224, 160, 224, 160};
    constexpr int p[7] = {9, 8, 7, 7, 6, 6, 5};
    if (to_even && i % 2 == 0) return minus(n[i], p[i]);
    return i == 0 ? minus(255, 10) : minus(n[i] - 1, p[i]);
  }

  /// Adds the squares of eight codes' magnitudes in halves.
  __device__ static void add_squares(std::uint32_t codes, std::uint32_t& sum) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::uint32_t halves =
          __byte_perm(0x03020100u, 0x0C080604u, codes >> (16 * h) & 0x7777u);
      sum = __dp4a(halves, halves, sum);
    }
  }

  /// sat(a * 2^10 + c), twice.
  __device__ static std::uint32_t step(std::uint32_t a, std::uint32_t c) {
    std::uint32_t d;
    asm("fma.rn.sat.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(0x64006400u), "r"(c));
    return d;
  }
  __device__ static std::uint32_t add(std::uint32_t a, std::uint32_t b) {
    std::uint32_t d;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
  }

  /// The magnitudes of the codes of two numbers, in the last bits of each half.
  template <bool ToEven>
  __device__ static std::uint32_t count_midpoints(std::uint32_t y) {
    std::uint32_t sum = add(0x64006400u, step(y, subtracted(ToEven, 0)));
#pragma unroll
    for (int i = 1; i < 7; ++i) sum = add(sum, step(y, subtracted(ToEven, i)));
    return sum;
  }

  template <bool ToEven>
  __device__ static std::uint32_t codes_of(const std::uint32_t (&x)[4], std::uint32_t base,
                                           std::uint32_t& sum_of_squares) {
    std::uint32_t pair[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t magnitude = x[i] & 0x7FFF7FFFu;
      // bf16's exponent and mantissa as f16's, 2^(s - 127) becoming 1; what is below f16's range is
      // far below the first midpoint.
      const std::uint32_t y = (__vmaxu2(magnitude, base) - base) * 8;
      std::uint32_t sign = x[i];
      if (!ToEven) sign &= magnitude + 0x7FFF7FFFu;  // of zero there is none
      pair[i] = (count_midpoints<ToEven>(y) & 0x00070007u) | ((sign >> 12) & 0x00080008u);
    }
    // Codes 4 and 5 of the eight end up above 2 and 3, and so on: nibbles of the two halves meet.
    const std::uint32_t low = pair[0] | pair[1] << 8, high = pair[2] | pair[3] << 8;
    const std::uint32_t codes = __byte_perm(low | low >> 12, high | high >> 12, 0x5410);
    add_squares(codes, sum_of_squares);
    return codes;
  }

  /// False, with nothing written, where the block is for the loops.
  __device__ static bool quantize_pairs(const unsigned char* from, std::uint8_t* to,
                                        QuantizeRule rule, BlockResult& result) {
    std::uint32_t x[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint4 part = reinterpret_cast<const uint4*>(from)[i];
      x[i][0] = part.x;
      x[i][1] = part.y;
      x[i][2] = part.z;
      x[i][3] = part.w;
    }
    std::uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < 16; ++i) most = __vmaxu2(most, x[i / 4][i % 4] & 0x7FFF7FFFu);
    const std::uint32_t largest = max(most >> 16, most & 0xFFFFu);
    const int scale = scale_of(rule.scale_mode(), largest << 16);
    // Infinity and NaN come with larger scales.
    if (scale < least_scale || scale > largest_scale) return false;
    const std::uint32_t base = static_cast<std::uint32_t>(scale - 15) << 7;
    std::uint32_t codes[4], sum_of_squares = 0;
    if (rule.rounding() == Rounding::nearest_even) {
#pragma unroll
      for (int i = 0; i < 4; ++i) codes[i] = codes_of<true>(x[i], base * 0x10001u, sum_of_squares);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) codes[i] = codes_of<false>(x[i], base * 0x10001u, sum_of_squares);
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
