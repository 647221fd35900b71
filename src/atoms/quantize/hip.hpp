// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_QUANTIZE_HIP_HPP
#define KOKKOSMX_SRC_ATOMS_QUANTIZE_HIP_HPP

/// \file hip.hpp
/// MI355X (gfx950): V_CVT_SCALEF32_PK_FP4_{F32,F16,BF16} divide two numbers by a power of two and
/// round them to the nearest e2m1, ties to even: what Rounding::nearest_even is. Other rounding,
/// other devices, and blocks near the ends of the range take the loops.

#include "portable.hpp"

#include <KokkosMX/Types.hpp>

#include <Kokkos_Core.hpp>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace KokkosMX::Impl {

#ifdef KOKKOS_ENABLE_HIP

struct HipQuantizeAtom : PortableQuantizeAtom {
  static constexpr const char* name = "hip";

  template <class Format>
  KOKKOS_INLINE_FUNCTION static BlockResult quantize(const unsigned char* x, std::uint8_t* codes,
                                                     QuantizeRule rule) {
#if defined(__gfx950__)
    BlockResult result;
    if (rule.rounding() == Rounding::nearest_even &&
        Converted<Format>::run(x, codes, rule, result)) {
      return result;
    }
#endif
    return PortableQuantizeAtom::quantize<Format>(x, codes, rule);
  }

#if defined(__gfx950__)
 private:
  template <class Format>
  struct Converted {
    using bits = typename Format::bits;
    static constexpr bool is_f32 = std::is_same_v<Format, F32Format>;
    static constexpr int words = block_size * static_cast<int>(sizeof(bits)) / 4;
    /// From here on numbers that are not normal lie below the first midpoint, 2^(scale - 129):
    /// whatever the device makes of them rounds to zero.
    static constexpr int least_scale = 130 - Format::bias;

    using Float2 = float __attribute__((ext_vector_type(2)));
    using Half2 = _Float16 __attribute__((ext_vector_type(2)));
    using BFloat2 = __bf16 __attribute__((ext_vector_type(2)));

    /// Byte `Byte` of `old` becomes the codes of numbers 2 i and 2 i + 1, the first one in the low
    /// nibble.
    template <int Byte>
    __device__ static std::uint32_t convert(std::uint32_t old, const std::uint32_t* x, int i,
                                            float scale) {
      if constexpr (is_f32) {
        return __builtin_amdgcn_cvt_scalef32_pk_fp4_f32(old, __builtin_bit_cast(float, x[2 * i]),
                                                        __builtin_bit_cast(float, x[2 * i + 1]),
                                                        scale, Byte);
      } else if constexpr (std::is_same_v<Format, F16Format>) {
        return __builtin_amdgcn_cvt_scalef32_pk_fp4_f16(old, __builtin_bit_cast(Half2, x[i]), scale,
                                                        Byte);
      } else {
        return __builtin_amdgcn_cvt_scalef32_pk_fp4_bf16(old, __builtin_bit_cast(BFloat2, x[i]),
                                                         scale, Byte);
      }
    }

    /// Adds the squares of eight codes' magnitudes in halves.
    __device__ static std::uint32_t add_squares(std::uint32_t codes, std::uint32_t sum) {
      for (int h = 0; h < 2; ++h) {
        const std::uint32_t halves =
            __builtin_amdgcn_perm(0x0C080604u, 0x03020100u, codes >> (4 * h) & 0x07070707u);
        sum = __builtin_amdgcn_udot4(halves, halves, sum, false);
      }
      return sum;
    }

    /// False, with nothing written, where the block is for the loops.
    __device__ static bool run(const unsigned char* from, std::uint8_t* to, QuantizeRule rule,
                               BlockResult& result) {
      std::uint32_t x[words];
      std::memcpy(x, from, sizeof(x));
      std::uint32_t largest = 0;
      for (int i = 0; i < words; ++i) {
        if constexpr (is_f32) {
          const std::uint32_t magnitude = x[i] & 0x7FFFFFFFu;
          largest = magnitude > largest ? magnitude : largest;
        } else {
          const std::uint32_t low = x[i] & 0x7FFFu, high = x[i] >> 16 & 0x7FFFu;
          const std::uint32_t magnitude = low > high ? low : high;
          largest = magnitude > largest ? magnitude : largest;
        }
      }
      const int scale = QuantizeLoops<Format>::scale_of_block(largest, rule);
      // Infinity and NaN have scale 255 with this rounding.
      if (scale < least_scale || scale == 255) return false;
      const float unit = __builtin_bit_cast(float, static_cast<std::uint32_t>(scale) << 23);
      std::uint32_t codes[4], sum_of_squares = 0;
      for (int i = 0; i < 4; ++i) {
        std::uint32_t word = convert<0>(0, x, 4 * i, unit);
        word = convert<1>(word, x, 4 * i + 1, unit);
        word = convert<2>(word, x, 4 * i + 2, unit);
        word = convert<3>(word, x, 4 * i + 3, unit);
        codes[i] = word;
        sum_of_squares = add_squares(word, sum_of_squares);
      }
      // By bytes, as the loops write them: so they stay in registers.
      for (int i = 0; i < block_bytes; ++i) {
        to[i] = static_cast<std::uint8_t>(codes[i / 4] >> (8 * (i % 4)));
      }
      result = {static_cast<std::uint8_t>(scale), sum_of_squares};
      return true;
    }
  };
#endif
};

#endif

}  // namespace KokkosMX::Impl

#endif
