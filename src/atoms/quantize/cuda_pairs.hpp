// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_QUANTIZE_CUDA_PAIRS_HPP
#define KOKKOSMX_SRC_ATOMS_QUANTIZE_CUDA_PAIRS_HPP

/// \file cuda_pairs.hpp
/// NVIDIA GPUs: bf16 is rounded to e2m1 two numbers at a time, exactly.
///
/// With y = |x| 2^(127 - s), below 8, in f16, the bits of y 2^-14 are 512 times the code's
/// magnitude and its fraction, zero and subnormals included, as f16 has its subnormals from 2^-14
/// down. So both roundings are sums of integers. What is left has the value of the code, times
/// 2^-14.
///
/// What depends on the rule is in numbers, not in branches: kernels hold this code many times, and
/// must stay short.

#include "../words.hpp"
#include "loops.hpp"

#include <KokkosMX/Types.hpp>

#include <Kokkos_Core.hpp>

#include <cstdint>

namespace KokkosMX::Impl {

#ifdef KOKKOS_ENABLE_CUDA

class Bf16Pairs {
 public:
  __device__ explicit Bf16Pairs(QuantizeRule rule) : rule_(rule) {
    const bool to_even = rule.rounding() == Rounding::nearest_even;
    added_ = to_even ? to_even_added : ties_up_added;
    last_bit_ = to_even ? 0x00010001u : 0u;
    no_ties_ = to_even ? 0u : 0x00010001u;
    switch (rule.scale_mode()) {
      case ScaleMode::floor:
        scale_added_ = 0;
        break;
      case ScaleMode::even:
        scale_added_ = 0x20;
        break;
      case ScaleMode::ceil:
        scale_added_ = 0x7F;
        break;
      case ScaleMode::rceil:
        scale_added_ = 0x3F;
        break;
    }
    least_added_ = (scale_added_ - (bias << least_shift)) * 0x00010001u;
  }
  __device__ QuantizeRule rule() const { return rule_; }

  /// Scales for which the rest is right: nothing that is not finite, nothing next to the ends of
  /// the range, and no bf16 but zero loses its sign, whichever rounding.
  static constexpr int least_scale = 20, most_scale = 140;
  __device__ static bool takes(int scale) {
    return static_cast<unsigned>(scale - least_scale) <=
           static_cast<unsigned>(most_scale - least_scale);
  }

  /// The largest magnitude of eight numbers.
  __device__ static std::uint32_t largest(const Words& x) {
    const std::uint32_t most = largest_halves(x);
    return __vmaxu2(most, most >> 16) & 0xFFFFu;
  }
  /// The scale of a block whose largest magnitude is this, where takes() says so: scale_of, as the
  /// sums of its 32 bits do not carry out of the last 16.
  __device__ int scale(std::uint32_t largest_magnitude) const {
    return static_cast<int>((largest_magnitude + scale_added_) >> 7) - 2;
  }

  /// Whether blocks may hold numbers that are rounded to more than 6.
  __device__ bool saturates() const { return rule_.scale_mode() == ScaleMode::floor; }
  /// What a row has in common, for elements in units of one scale: see shifted_elements.
  struct Unit {
    std::uint32_t factor, times, plus, flip, keep;
  };
  /// Of the first or the second of two rows whose bases (scales as they are compared, see leasts)
  /// and bits are in halves. twice: elements count two units.
  __device__ static Unit unit(std::uint32_t bases, std::uint32_t twice, int second) {
    const std::uint32_t factors = 0x80028002u - bases - (twice << least_shift);
    const std::uint32_t two = second == 0 ? twice & 1u : twice >> 16;
    return {half(factors, second), 1 + two, (1 + two) * (0u - 0x40404040u), (two - 1) & 0x80808080u,
            0u - 1 - two * 0x01010101u};
  }
  /// A half of a word, twice.
  __device__ static std::uint32_t half(std::uint32_t word, int second) {
    std::uint32_t both;  // so instructions of two numbers take it as it is
    if (second == 0) {
      asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\nmov.b32 %0, {low, low};\n}"
          : "=r"(both)
          : "r"(word));
    } else {
      asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\nmov.b32 %0, {high, high};\n}"
          : "=r"(both)
          : "r"(word));
    }
    return both;
  }
  /// Eight elements as int8 in halves of the unit, in two words, exactly: of a block of three
  /// scales from the unit's, or the one above it, on. least: see leasts, twice.
  ///
  /// A number is rounded to half of its power of two, or of the block's, by taking 64 times itself
  /// away, or of `least` with its sign, and adding that again: bf16 has eight bits. 63 m, for 1 <=
  /// m < 2, and 65 less what is below 1, are in [64, 128), or next to 64, where a finer rounding
  /// finds the same; and 64 m is even where m is in the middle of two. An odd last bit leaves no
  /// ties. Then 384 and twice the element have it in their last seven bits.
  template <bool Saturates>
  __device__ void shifted_elements(const Words& x, std::uint32_t least, const Unit& unit,
                                   std::uint32_t (&to)[2]) const {
    std::uint32_t number[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      std::uint32_t from = x.w[i];
      if constexpr (Saturates) {
        asm("min.xorsign.abs.bf16x2 %0, %0, %1;"
            : "+r"(from)
            : "r"(least - 0x00010001u * above_one + 0x01400140u));  // 6
      }
      from |= no_ties_;
      std::uint32_t large, rounded;
      asm("max.xorsign.abs.bf16x2 %0, %1, %2;" : "=r"(large) : "r"(from), "r"(least));
      asm("fma.rn.bf16x2 %0, %1, %2, %3;"
          : "=r"(rounded)
          : "r"(large), "r"(0xC280C280u), "r"(from));  // -64
      asm("fma.rn.bf16x2 %0, %1, %2, %0;" : "+r"(rounded) : "r"(large), "r"(0x42804280u));
      asm("fma.rn.bf16x2 %0, %1, %2, %3;"
          : "=r"(number[i])
          : "r"(rounded), "r"(unit.factor), "r"(0x43C043C0u));
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::uint32_t four = __byte_perm(number[2 * h], number[2 * h + 1], 0x6420);
      to[h] = ((four * unit.times + unit.plus) ^ unit.flip) & unit.keep;
    }
  }

  /// The larger ones of two and two magnitudes, with any signs. NaN is larger than all others, and
  /// stays one.
  __device__ static std::uint32_t larger(std::uint32_t x, std::uint32_t y) {
    std::uint32_t most;
    asm("max.NaN.xorsign.abs.bf16x2 %0, %1, %2;" : "=r"(most) : "r"(x), "r"(y));
    return most;
  }
  /// The largest magnitudes of eight numbers and of eight others, with any signs.
  __device__ static std::uint32_t largest_two(const Words& x, const Words& y) {
    const auto of_four = [&](const Words& words) {
      return larger(larger(words.w[0], words.w[1]), larger(words.w[2], words.w[3]));
    };
    const std::uint32_t of_x = of_four(x), of_y = of_four(y);
    return larger(__byte_perm(of_x, of_y, 0x5410), __byte_perm(of_x, of_y, 0x7632));
  }
  /// A scale as bf16 are compared with it: 2^(scale - 127), and two units of its last place.
  static constexpr int least_shift = 7;
  static constexpr std::uint32_t above_one = 2;
  /// The scales of two blocks whose largest magnitudes these are, in halves, plus bias.
  static constexpr int bias = 2;
  __device__ std::uint32_t biased_scales(std::uint32_t largest_magnitudes) const {
    return (largest_magnitudes + scale_added_ * 0x10001u) >> least_shift & 0x01FF01FFu;
  }
  /// Such scales, from bias on, as they are compared.
  __device__ static std::uint32_t leasts_of_biased(std::uint32_t scales) {
    return (scales << least_shift) + 0x10001u * (above_one - (bias << least_shift));
  }
  /// The scales of two blocks so, in halves, whose largest magnitudes these are, with any signs:
  /// right where takes() says so of both. Where it does not of one, that one is none that it takes,
  /// and the other may be one too small.
  __device__ std::uint32_t leasts(std::uint32_t largest_magnitudes) const {
    return (largest_magnitudes + least_added_) & 0x7F807F80u | 0x00010001u * above_one;
  }

  /// Eight codes, the first in the low nibble. The rounding is known where this is compiled.
  template <bool ToEven>
  __device__ static std::uint32_t codes(const Words& x, int scale) {
    std::uint32_t rounded[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      std::uint32_t sign = x.w[i];
      if (!ToEven) sign &= (x.w[i] & 0x7FFF7FFFu) + 0x7FFF7FFFu;  // of zero there is none
      // Magnitudes move next to their signs: codes in the last four bits.
      std::uint32_t u = scaled(x.w[i], scale);
      if (ToEven) u += u >> 9 & 0x00010001u;
      asm("mad.lo.u32 %0, %0, 8, %1;"
          : "+r"(u)
          : "r"((ToEven ? to_even_added : ties_up_added) * 8u));
      rounded[i] = (u & 0x70007000u) | (sign & 0x80008000u);
    }
    return __byte_perm(pairs_of(rounded[0], rounded[1]), pairs_of(rounded[2], rounded[3]), 0x6420);
  }

  /// Eight elements as int8 in halves, times 2^shift, which is 1 to 8, in two words; zeros where
  /// is_in is not so.
  __device__ void elements(const Words& x, int scale, int shift, bool is_in,
                           std::uint32_t (&to)[2]) const {
    // A multiply-add brings them as integers into the last byte of numbers whose last place counts
    // 1/8.
    const std::uint32_t factor =
        is_in ? (0x6C00u + (static_cast<std::uint32_t>(shift) << 10)) * 0x10001u : 0u;
    std::uint32_t number[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t rounded =
          magnitudes(x.w[i], scale, added_, last_bit_) | (x.w[i] & 0x80008000u);
      asm("fma.rn.f16x2 %0, %1, %2, %3;"
          : "=r"(number[i])
          : "r"(rounded), "r"(factor), "r"(0x5A005A00u));  // 192
    }
    to[0] = __byte_perm(number[0], number[1], 0x6420);
    to[1] = __byte_perm(number[2], number[3], 0x6420);
  }

 private:
  static constexpr std::uint32_t to_even_added = 0x00FF00FFu, ties_up_added = 0x01000100u;

  __device__ static std::uint32_t largest_halves(const Words& x) {
    std::uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) most = __vmaxu2(most, x.w[i] & 0x7FFF7FFFu);
    return most;
  }

  /// y 2^-14 of two numbers in f16, at most 6.
  __device__ static std::uint32_t scaled(std::uint32_t x, int scale) {
    // bf16's exponent and mantissa become f16's, 2^(scale - 127) becoming 1; what is below f16's
    // range is far below the first midpoint.
    const std::uint32_t base = static_cast<std::uint32_t>(scale - 15) * (0x80u * 0x10001u);
    const std::uint32_t from_base = __vmaxu2(x & 0x7FFF7FFFu, base);
    std::uint32_t y, u;
    asm("mad.lo.u32 %0, %1, 8, %2;" : "=r"(y) : "r"(from_base), "r"(0u - base * 8u));
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(u) : "r"(y), "r"(0x04000400u));  // 2^-14
    return __vminu2(u, 0x0E000E00u);                                       // 6
  }
  /// The magnitudes of two codes, times 2^-14 in f16: in bits 9 to 11 of each half.
  __device__ static std::uint32_t magnitudes(std::uint32_t x, int scale, std::uint32_t added,
                                             std::uint32_t last_bit) {
    const std::uint32_t u = scaled(x, scale);
    return (u + added + (u >> 9 & last_bit)) & 0x0E000E00u;
  }
  /// Four codes, from the last four bits of halves: two in byte 0, two in byte 2.
  __device__ static std::uint32_t pairs_of(std::uint32_t low, std::uint32_t high) {
    const std::uint32_t bytes = __byte_perm(low, high, 0x7531);
    return __umulhi(bytes, 0x11000000u);  // bytes >> 4 | bytes >> 8
  }

  QuantizeRule rule_;
  std::uint32_t added_, last_bit_, no_ties_, scale_added_ = 0, least_added_;
};

#endif

}  // namespace KokkosMX::Impl

#endif
