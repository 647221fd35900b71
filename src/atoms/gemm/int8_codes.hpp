// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_GEMM_INT8_CODES_HPP
#define KOKKOSMX_SRC_ATOMS_GEMM_INT8_CODES_HPP

/// \file int8_codes.hpp
/// Codes as int8 on devices, and what stores their sums.

#include <KokkosMX/Types.hpp>

#include "../../numbers.hpp"
#include "../../operand.hpp"
#include "../cuda.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>

/// Loops whose arrays stay in registers, and loops that should stay small.
#if defined(__CUDA_ARCH__) || defined(__HIP_DEVICE_COMPILE__)
#define KOKKOSMX_UNROLL _Pragma("unroll")
#define KOKKOSMX_NO_UNROLL _Pragma("unroll 1")
#else
#define KOKKOSMX_UNROLL
#define KOKKOSMX_NO_UNROLL
#endif

namespace KokkosMX::Impl {

/// RNE of two finite or infinite float32 to bf16, low in the first half.
KOKKOS_INLINE_FUNCTION std::uint32_t bf16_pair(float low, float high) {
#if defined(__CUDA_ARCH__)
  std::uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return f32_to_bf16(Kokkos::bit_cast<std::uint32_t>(low)) |
         static_cast<std::uint32_t>(f32_to_bf16(Kokkos::bit_cast<std::uint32_t>(high))) << 16;
#endif
}

/// Adds to a number in the memory that a group shares. A device's compiler that does not see where
/// the number is makes much more of that.
KOKKOS_INLINE_FUNCTION void add_shared(std::int32_t* to, std::int32_t term) {
#if defined(__CUDA_ARCH__)
  asm volatile("red.shared.add.s32 [%0], %1;" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(to))),
               "r"(term)
               : "memory");
#else
  Kokkos::atomic_add(to, term);
#endif
}

/// The same for the larger of two.
KOKKOS_INLINE_FUNCTION void max_shared(std::int32_t* to, std::int32_t other) {
#if defined(__CUDA_ARCH__)
  asm volatile("red.shared.max.s32 [%0], %1;" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(to))),
               "r"(other)
               : "memory");
#else
  Kokkos::atomic_max(to, other);
#endif
}

/// p, of which compilers know that it points to shared memory.
template <class T>
KOKKOS_INLINE_FUNCTION T* in_shared(T* p) {
#if defined(__CUDA_ARCH__)
  auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
  asm("" : "+r"(address));  // or they take both conversions away
  return static_cast<T*>(__cvta_shared_to_generic(address));
#else
  return p;
#endif
}

/// x, of which compilers know nothing: what follows from it they find each time anew, itself not.
KOKKOS_INLINE_FUNCTION int opaque(int x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(x));
#endif
  return x;
}
KOKKOS_INLINE_FUNCTION std::int64_t opaque(std::int64_t x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(x));
#endif
  return x;
}
template <class T>
KOKKOS_INLINE_FUNCTION T* opaque(T* x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(x));
#endif
  return x;
}

/// Four codes (the low 16 bits of a word) to int8 in halves, times 2^shift.
KOKKOS_INLINE_FUNCTION std::uint32_t expand_codes(std::uint32_t codes, std::uint32_t low,
                                                  std::uint32_t high) {
#if defined(__CUDA_ARCH__)
  // A code with its sign bit set names the sign of a magnitude, which is 0. Without carries from
  // byte to byte: magnitudes are at most 96.
  const std::uint32_t positive = CudaUnit::permute(low, high, codes);
  const std::uint32_t negative = CudaUnit::permute(low, high, codes ^ 0x8888u);
  return (positive - negative + 0x80808080u) ^ 0x80808080u;
#else
  std::uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t code = codes >> (4 * i) & 15u;
    const std::uint32_t table = (code & 4u) != 0 ? high : low;
    const std::uint32_t magnitude = table >> (8 * (code & 3u)) & 0xFFu;
    result |= (((code & 8u) != 0 ? 0u - magnitude : magnitude) & 0xFFu) << (8 * i);
  }
  return result;
#endif
}
inline constexpr std::uint32_t halves_low = 0x03020100u;   // of codes 0 to 3
inline constexpr std::uint32_t halves_high = 0x0C080604u;  // of codes 4 to 7

/// The 16 bytes of a block, as four words.
struct BlockCodes {
  std::uint32_t word[4];
};
KOKKOS_INLINE_FUNCTION BlockCodes load_whole_block(const std::uint8_t* aligned) {
  const CodesMap::Whole whole = *reinterpret_cast<const CodesMap::Whole*>(aligned);
  return {{whole.word[0], whole.word[1], whole.word[2], whole.word[3]}};
}
KOKKOS_INLINE_FUNCTION BlockCodes load_block(const CodesMap& codes, const std::uint8_t* from) {
  BlockCodes block;
  if (codes.byte == 1 && CodesMap::is_aligned(from)) {
    block = load_whole_block(from);
  } else {
    for (int i = 0; i < 4; ++i) {
      std::uint32_t word = 0;
      for (int j = 0; j < 4; ++j) {
        word |= std::uint32_t{from[(4 * i + j) * codes.byte]} << (8 * j);
      }
      block.word[i] = word;
    }
  }
  return block;
}

/// sum + the dot product of four int8 elements of each.
KOKKOS_INLINE_FUNCTION std::int32_t dot_int8(std::uint32_t x, std::uint32_t y, std::int32_t sum) {
#if defined(__CUDA_ARCH__)
  return __dp4a(static_cast<std::int32_t>(x), static_cast<std::int32_t>(y), sum);
#else
  for (int k = 0; k < 4; ++k) {
    sum += std::int32_t{static_cast<std::int8_t>(x >> (8 * k))} *
           static_cast<std::int8_t>(y >> (8 * k));
  }
  return sum;
#endif
}

/// The dot product of two blocks, in quarters.
KOKKOS_INLINE_FUNCTION std::int32_t dot_blocks(const BlockCodes& a, const BlockCodes& b) {
  std::int32_t sum = 0;
  for (int i = 0; i < 4; ++i) {
    for (int h = 0; h < 2; ++h) {
      const std::uint32_t x = expand_codes(a.word[i] >> (16 * h), halves_low, halves_high);
      const std::uint32_t y = expand_codes(b.word[i] >> (16 * h), halves_low, halves_high);
      sum = dot_int8(x, y, sum);
    }
  }
  return sum;
}

}  // namespace KokkosMX::Impl

#endif
