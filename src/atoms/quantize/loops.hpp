// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_QUANTIZE_LOOPS_HPP
#define KOKKOSMX_SRC_ATOMS_QUANTIZE_LOOPS_HPP

/// \file loops.hpp
/// One block of 32 numbers to 16 bytes of codes and a scale, and back, by plain loops over
/// integers.
///
/// Codes follow from comparing magnitudes with seven thresholds, the midpoints between the e2m1
/// magnitudes times 2^(s - 127). Bit patterns of non-negative floats order as the numbers do, so a
/// threshold is the least bit pattern that reaches it, and both roundings, subnormals, infinity and
/// NaN (patterns above infinity's) come out of one comparison of integers each.

#include <KokkosMX/Types.hpp>

#include "../../numbers.hpp"
#include "../../operand.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>
#include <cstring>

namespace KokkosMX::Impl {

/// The e8m0 scale of a block whose largest magnitude has the float32 bits amax, finite: see
/// ScaleMode. The quotients by 4 and 6 round to float32; where they are subnormal the scale is 1,
/// or 0 if they round to zero (amax of up to 2 and 3 units of 2^-149).
KOKKOS_FORCEINLINE_FUNCTION int scale_of(ScaleMode mode, std::uint32_t amax) {
  int scale = 0, least = 0;
  switch (mode) {
    case ScaleMode::floor:
      scale = static_cast<int>(amax >> 23) - 2;
      break;
    case ScaleMode::even:
      scale = static_cast<int>((amax + 0x200000u) >> 23) - 2;
      break;
    case ScaleMode::ceil:
      scale = static_cast<int>((amax + 0x7FFFFFu) >> 23) - 2;
      least = amax >= 3 ? 1 : 0;
      break;
    case ScaleMode::rceil:
      scale = static_cast<int>((amax + 0x3FFFFFu) >> 23) - 2;
      least = amax >= 4 ? 1 : 0;
      break;
  }
  return scale > least ? scale : least;
}

/// The position of the leading bit of 1, 3, 5 or 7.
KOKKOS_FORCEINLINE_FUNCTION constexpr int leading_bit(std::uint32_t odd) {
  return odd >= 4 ? 2 : (odd >= 2 ? 1 : 0);
}

/// The bits of odd * 2^exponent, a normal number of the format.
template <class Format>
KOKKOS_FORCEINLINE_FUNCTION constexpr std::uint32_t normal_bits(std::uint32_t odd, int exponent) {
  constexpr int p = Format::mantissa;
  const int top = leading_bit(odd);
  // The leading bit of odd << (p - top) adds 1 to the exponent field.
  return (static_cast<std::uint32_t>(exponent + top + Format::bias - 1) << p) + (odd << (p - top));
}

/// The least bit pattern of a format whose value is at least odd * 2^exponent (above it, if
/// strict), odd being 1, 3, 5 or 7; infinity's pattern where none is finite.
template <class Format>
KOKKOS_INLINE_FUNCTION std::uint32_t least_at(std::uint32_t odd, int exponent, bool strict) {
  const int leading = exponent + leading_bit(odd);
  if (leading > Format::bias) return Format::inf;
  if (leading >= 1 - Format::bias) return normal_bits<Format>(odd, exponent) + (strict ? 1u : 0u);
  const int shift = exponent - (1 - Format::bias - Format::mantissa);  // unit: least subnormal
  if (shift >= 0) return (odd << shift) + (strict ? 1u : 0u);
  const int drop = shift < -3 ? 3 : -shift;  // odd <= 7; an odd number has no exact quotient
  return (odd + (1u << drop) - 1u) >> drop;
}

/// The seven midpoints 1/4, 3/4, 5/4, 7/4, 5/2, 7/2, 5 as odd * 2^exponent.
KOKKOS_FORCEINLINE_FUNCTION constexpr std::uint32_t midpoint_odd(int i) {
  return (0x5757'531u >> (4 * i)) & 0xFu;
}
KOKKOS_FORCEINLINE_FUNCTION constexpr int midpoint_exponent(int i) {
  return i < 4 ? -2 : (i < 6 ? -1 : 0);
}

/// Least magnitude whose sign is kept. With ties_up the sign is that of the float32 product
/// x * 2^(127 - s), which is zero up to 2^-150; up to scale 127 that lies below every subnormal.
template <class Format>
KOKKOS_FORCEINLINE_FUNCTION std::uint32_t sign_from(bool to_even, int scale) {
  return to_even ? 0u : (scale < 128 ? 1u : least_at<Format>(1u, scale - 277, true));
}

/// What quantizing a block gives besides its codes.
struct BlockResult {
  std::uint8_t scale;
  /// Sum over the block of the code's magnitude in halves, squared.
  std::uint32_t sum_of_squares;
};

/// Quantizes and dequantizes a block. Atoms compile the loops for a target each.
template <class Format>
struct QuantizeLoops {
  using bits = typename Format::bits;
  static constexpr int bytes = block_size * static_cast<int>(sizeof(bits));
  static constexpr bits magnitude_mask = static_cast<bits>(static_cast<bits>(~bits{0}) >> 1);
  static constexpr int sign_shift = 8 * static_cast<int>(sizeof(bits)) - 1;
  // Signed, as wide as the element: what vector units of every age compare.
  using lane = std::conditional_t<sizeof(bits) == 2, std::int16_t, std::int32_t>;

  using pair = std::conditional_t<sizeof(bits) == 2, std::uint32_t, std::uint64_t>;

  /// The scale of a block whose largest bit pattern without its sign is `largest`; 255 where all of
  /// its codes are 0.
  KOKKOS_FORCEINLINE_FUNCTION static int scale_of_block(std::uint32_t largest, QuantizeRule rule) {
    const std::uint32_t amax = Format::to_f32(static_cast<bits>(largest));
    if (largest >= Format::inf) {
      if (rule.non_finite() == NonFinite::ocp) return 255;
      return amax + 0x200000u >= f32_sign ? 0 : 254;
    }
    return rule.non_finite() == NonFinite::reference && amax + 0x200000u >= f32_inf
               ? 254
               : scale_of(rule.scale_mode(), amax);
  }

  /// The same as quantize, one element after the other: for devices, where a block's numbers should
  /// not all take registers.
  KOKKOS_INLINE_FUNCTION static BlockResult quantize_elements(const unsigned char* x,
                                                              std::uint8_t* codes,
                                                              QuantizeRule rule) {
    const auto* from = reinterpret_cast<const bits*>(x);
    std::uint32_t largest = 0;
    for (int i = 0; i < block_size; ++i) {
      const std::uint32_t m = from[i] & magnitude_mask;
      largest = m > largest ? m : largest;
    }
    const int scale = scale_of_block(largest, rule);
    const bool to_even = rule.rounding() == Rounding::nearest_even;
    std::uint32_t least[7];
    for (int j = 0; j < 7; ++j) {
      least[j] = least_at<Format>(midpoint_odd(j), midpoint_exponent(j) + scale - 127,
                                  to_even && j % 2 == 0);
    }
    const std::uint32_t sign_at = sign_from<Format>(to_even, scale);
    std::uint32_t sum_of_squares = 0;
    // On HIP bytes come in from above and move down: registers have no numbers that a loop could
    // count, and memory of a thread's own is slow there. On CUDA the words cost more than they
    // save.
#if defined(__HIP_DEVICE_COMPILE__)
    constexpr bool by_words = true;
#else
    constexpr bool by_words = false;
#endif
    [[maybe_unused]] std::uint32_t word[block_bytes / 4] = {};
#if defined(__CUDA_ARCH__) || defined(__HIP_DEVICE_COMPILE__)
#pragma unroll 1
#endif
    for (int i = 0; i < block_bytes; ++i) {
      std::uint32_t byte = 0;
      for (int h = 0; h < 2; ++h) {
        const std::uint32_t element = from[2 * i + h];
        const std::uint32_t m = element & magnitude_mask;
        std::uint32_t code = 0;
        for (int j = 0; j < 7; ++j) code += m >= least[j] ? 1 : 0;
        const std::uint32_t halves = halves_of_magnitude(static_cast<std::int32_t>(code));
        sum_of_squares += halves * halves;
        if (m >= sign_at && m <= Format::inf) code |= element >> (sign_shift - 3) & 8u;
        byte |= code << (4 * h);
      }
      if constexpr (by_words) {
        for (int w = 0; w < 3; ++w) word[w] = word[w] >> 8 | word[w + 1] << 24;
        word[3] = word[3] >> 8 | byte << 24;
      } else {
        codes[i] = static_cast<std::uint8_t>(scale == 255 ? 0u : byte);
      }
    }
    for (int i = 0; by_words && i < block_bytes; ++i) {
      codes[i] = static_cast<std::uint8_t>(scale == 255 ? 0u : word[i / 4] >> (8 * (i % 4)));
    }
    return {static_cast<std::uint8_t>(scale), scale == 255 ? 0u : sum_of_squares};
  }

  /// x: 32 elements; codes: 16 bytes. Any alignment.
  KOKKOS_FORCEINLINE_FUNCTION static BlockResult quantize(const unsigned char* x,
                                                          std::uint8_t* codes, QuantizeRule rule) {
    lane magnitude[block_size];
    lane largest = 0;
    for (int i = 0; i < block_size; ++i) {
      magnitude[i] =
          static_cast<lane>(load<bits>(x + i * static_cast<int>(sizeof(bits))) & magnitude_mask);
      largest = magnitude[i] > largest ? magnitude[i] : largest;
    }
    const int scale = scale_of_block(static_cast<std::uint32_t>(largest), rule);
    if (scale == 255) {
      for (int i = 0; i < block_bytes; ++i) codes[i] = 0;
      return {255, 0};
    }

    lane code[block_size];
    lane below[7];
    lane power = 0;
    const bool to_even = rule.rounding() == Rounding::nearest_even;
    // Ties go to the even code: away from codes 1, 3, 5, 7, whose midpoint below must be exceeded.
    // 1/4 and 5 times 2^(scale - 127) are normal: so are all midpoints, and only their exponents
    // depend on the scale. Magnitudes are brought down to compare with constants.
    if (scale - 129 >= 1 - Format::bias && scale - 125 <= Format::bias) {
      power = static_cast<lane>((scale - 127) * (1 << Format::mantissa));
      const unsigned strict = to_even ? 0u : 1u;
      for (int j = 0; j < 7; ++j) {
        below[j] = static_cast<lane>(normal_bits<Format>(midpoint_odd(j), midpoint_exponent(j)) -
                                     (j % 2 == 0 ? strict : 1u));
      }
    } else {
      for (int j = 0; j < 7; ++j) {
        below[j] =
            static_cast<lane>(least_at<Format>(midpoint_odd(j), midpoint_exponent(j) + scale - 127,
                                               to_even && j % 2 == 0) -
                              1u);
      }
    }
    for (int i = 0; i < block_size; ++i) {
      const lane m = static_cast<lane>(magnitude[i] - power);
      lane c = 0;
      for (int j = 0; j < 7; ++j) c = static_cast<lane>(c + (m > below[j] ? 1 : 0));
      code[i] = c;
    }
    std::int32_t sum_of_squares = 0;
    for (int i = 0; i < block_size; ++i) {
      const lane halves = halves_of_magnitude(code[i]);
      sum_of_squares += static_cast<std::int32_t>(halves) * halves;
    }
    const lane loses_sign = static_cast<lane>(sign_from<Format>(to_even, scale) - 1);
    constexpr lane inf = static_cast<lane>(Format::inf);
    for (int i = 0; i < block_size; ++i) {
      const lane sign = static_cast<lane>(
          (load<bits>(x + i * static_cast<int>(sizeof(bits))) >> (sign_shift - 3)) & 8);
      const lane m = magnitude[i];
      code[i] = static_cast<lane>(code[i] | (m > loses_sign && m <= inf ? sign : 0));
    }
    // Pairs of lanes as one number of twice the width: the second code comes down beside the first.
    pair pairs[block_bytes];
    std::memcpy(pairs, code, sizeof(pairs));
    for (int i = 0; i < block_bytes; ++i) {
      codes[i] = static_cast<std::uint8_t>(pairs[i] | (pairs[i] >> (sign_shift + 1 - 4)));
    }
    return {static_cast<std::uint8_t>(scale), static_cast<std::uint32_t>(sum_of_squares)};
  }

  /// Scales whose blocks have normal finite numbers only: 2^(scale - 128) is the least magnitude,
  /// 1.5 * 2^(scale - 125) the largest.
  static constexpr int least_normal_scale = 129 - Format::bias;
  static constexpr int most_normal_scale = 125 + Format::bias;

  /// dequantize where the scale is a normal one: 2^e (1 + m / 2) has exponent and mantissa of the
  /// code; 0.5 is not 0.75, and zero is zero.
  KOKKOS_FORCEINLINE_FUNCTION static void dequantize_normal(const std::uint8_t* codes,
                                                            std::uint8_t scale, unsigned char* x) {
    constexpr int half = Format::mantissa - 1;
    const auto exponent = static_cast<bits>((scale - 128 + Format::bias) * (1 << Format::mantissa));
    const auto number = [&](bits code) {
      const bits magnitude = code & 7u;
      const bits shifted = static_cast<bits>(magnitude - (magnitude == 1 ? 1 : 0)) << half;
      const bits finite = static_cast<bits>(shifted + exponent);
      return static_cast<bits>((magnitude == 0 ? bits{0} : finite) | static_cast<bits>(code & 8u)
                                                                         << (sign_shift - 3));
    };
    bits out[block_size];
    for (int i = 0; i < block_bytes; ++i) {
      out[2 * i] = number(static_cast<bits>(codes[i] & 15u));
      out[2 * i + 1] = number(static_cast<bits>(codes[i] >> 4));
    }
    for (int i = 0; i < block_size; ++i) {
      store<bits>(x + i * static_cast<int>(sizeof(bits)), out[i]);
    }
  }

  /// codes: 16 bytes; x: 32 elements, each the exact value rounded once. Any alignment.
  KOKKOS_FORCEINLINE_FUNCTION static void dequantize(const std::uint8_t* codes, std::uint8_t scale,
                                                     unsigned char* x) {
    // Vectors of hosts; a device's thread has fewer registers than a block has numbers.
    KOKKOS_IF_ON_HOST((if (scale >= least_normal_scale && scale <= most_normal_scale) {
      return dequantize_normal(codes, scale, x);
    }))
    bits value[16];
    for (int c = 0; c < 8; ++c) {
      // float32 holds every finite product exactly, so the conversion is the only rounding.
      const std::uint32_t exact =
          scale == 255 ? f32_nan
                       : round_to_f32(static_cast<std::int64_t>(halves_of(c)), scale - 128);
      value[c] = Format::from_f32(exact);
      value[c + 8] =
          scale == 255 ? value[c] : static_cast<bits>(value[c] | (bits{1} << sign_shift));
    }
    for (int i = 0; i < block_bytes; ++i) {
      store<bits>(x + 2 * i * static_cast<int>(sizeof(bits)), value[codes[i] & 15]);
      store<bits>(x + (2 * i + 1) * static_cast<int>(sizeof(bits)), value[codes[i] >> 4]);
    }
  }
};

/// Rows that a host's atom takes together: dense (of quantize_rows and dequantize_rows), and their
/// codes, scales and summaries. Group g of a row holds its blocks 4 g to 4 g + 3. Blocks past the
/// row's end that have a place in its last group are written with 0.
struct BlockRows {
  unsigned char* x;
  std::int64_t x_row;  ///< bytes from a row to the next, as all that ends in _row
  std::int64_t rows, blocks;
  QuantizeRule rule;
  std::uint8_t* codes;
  std::int64_t codes_row, codes_group;
  /// From a block's 16 bytes to the next block's in a group; 0 where they take turns (woven): byte
  /// 4 j + b of a group is byte j of block b.
  std::int64_t codes_block;
  std::int64_t codes_places;  ///< of a row's blocks
  std::uint8_t* scales;
  std::int64_t scales_row, scales_8, scales_4,
      scales_1;  ///< from a column to the 8th after it, ...
  std::int64_t scales_places;
  RowSummary* summaries;
  std::int64_t summaries_row;
  /// Codes will have left the caches before anybody reads them: whole lines may pass these by.
  bool stream = false;

  KOKKOS_INLINE_FUNCTION std::uint8_t* codes_at(std::int64_t row, std::int64_t group) const {
    return codes + row * codes_row + group * codes_group;
  }
  KOKKOS_INLINE_FUNCTION std::uint8_t* scales_at(std::int64_t row, std::int64_t group) const {
    return scales + row * scales_row + (group >> 1) * scales_8 + (group & 1) * scales_4;
  }
  /// The places of a group's blocks, at most 4.
  KOKKOS_INLINE_FUNCTION static int places(std::int64_t all, std::int64_t group) {
    const std::int64_t left = all - group_blocks * group;
    return left < group_blocks ? static_cast<int>(left > 0 ? left : 0) : group_blocks;
  }

  /// A group's codes, woven or block after block as codes_block asks, to their places.
  KOKKOS_INLINE_FUNCTION void put_codes(std::int64_t row, std::int64_t group,
                                        const std::uint8_t* from) const {
    std::uint8_t* to = codes_at(row, group);
    if (codes_block == 0) {
      std::memcpy(to, from, group_bytes);
      return;
    }
    for (int b = 0; b < places(codes_places, group); ++b) {
      std::memcpy(to + b * codes_block, from + b * block_bytes, block_bytes);
    }
  }
  /// The codes of the blocks that a group has, block after block.
  KOKKOS_INLINE_FUNCTION void get_codes(std::int64_t row, std::int64_t group,
                                        std::uint8_t* to) const {
    const std::uint8_t* from = codes_at(row, group);
    for (int b = 0; b < places(blocks, group); ++b) {
      if (codes_block != 0) {
        std::memcpy(to + b * block_bytes, from + b * codes_block, block_bytes);
      } else {
        for (int j = 0; j < block_bytes; ++j) to[b * block_bytes + j] = from[group_blocks * j + b];
      }
    }
  }
  KOKKOS_INLINE_FUNCTION void put_scales(std::int64_t row, std::int64_t group,
                                         const std::uint8_t* from) const {
    std::uint8_t* to = scales_at(row, group);
    for (int b = 0; b < places(scales_places, group); ++b) to[b * scales_1] = from[b];
  }
};

/// A group of a row by an atom's function for one block; false where not every block is regular: a
/// scale of 0 says that all codes are 0, any other that some are not, and none is 255.
template <class Atom, class Format>
KOKKOS_INLINE_FUNCTION bool quantize_group_by_blocks(const BlockRows& rows, std::int64_t row,
                                                     std::int64_t group, RowSummary& summary) {
  std::uint8_t codes[group_bytes] = {};
  std::uint8_t scales[group_blocks] = {};
  bool regular = true;
  for (int b = 0; b < BlockRows::places(rows.blocks, group); ++b) {
    std::uint8_t plain[block_bytes];
    const BlockResult result = Atom::template quantize<Format>(
        rows.x + row * rows.x_row + (group_blocks * group + b) * QuantizeLoops<Format>::bytes,
        plain, rows.rule);
    for (int j = 0; j < block_bytes; ++j) {
      codes[rows.codes_block == 0 ? group_blocks * j + b : block_bytes * b + j] = plain[j];
    }
    scales[b] = result.scale;
    merge(summary, summary_of_block(result.scale, result.sum_of_squares));
    regular = regular && result.scale != 255 && (result.scale != 0) == (result.sum_of_squares != 0);
  }
  rows.put_codes(row, group, codes);
  rows.put_scales(row, group, scales);
  return regular;
}

/// What an atom's quantize_rows does, whichever way: true where every block is regular. Summaries
/// are written only with Sums.
template <class Atom, class Format, bool Sums>
KOKKOS_INLINE_FUNCTION bool quantize_rows_by_blocks(const BlockRows& rows) {
  bool regular = true;
  for (std::int64_t row = 0; row < rows.rows; ++row) {
    RowSummary summary{};
    for (std::int64_t group = 0; group_blocks * group < rows.blocks; ++group) {
      regular &= quantize_group_by_blocks<Atom, Format>(rows, row, group, summary);
    }
    if (Sums) rows.summaries[row * rows.summaries_row] = summary;
  }
  return regular;
}

/// What an atom's dequantize_rows and summarize_rows do, whichever way.
template <class Atom, class Format>
KOKKOS_INLINE_FUNCTION void dequantize_rows_by_blocks(const BlockRows& rows) {
  for (std::int64_t row = 0; row < rows.rows; ++row) {
    unsigned char* x = rows.x + row * rows.x_row;
    for (std::int64_t group = 0; group_blocks * group < rows.blocks; ++group) {
      std::uint8_t codes[group_bytes];
      rows.get_codes(row, group, codes);
      const std::uint8_t* scales = rows.scales_at(row, group);
      for (int b = 0; b < BlockRows::places(rows.blocks, group); ++b) {
        Atom::template dequantize<Format>(codes + b * block_bytes, scales[b * rows.scales_1], x);
        x += QuantizeLoops<Format>::bytes;
      }
    }
  }
}
template <class Atom>
KOKKOS_INLINE_FUNCTION void summarize_rows_by_blocks(const BlockRows& rows) {
  for (std::int64_t row = 0; row < rows.rows; ++row) {
    RowSummary summary{};
    for (std::int64_t group = 0; group_blocks * group < rows.blocks; ++group) {
      std::uint8_t codes[group_bytes];
      rows.get_codes(row, group, codes);
      const std::uint8_t* scales = rows.scales_at(row, group);
      for (int b = 0; b < BlockRows::places(rows.blocks, group); ++b) {
        merge(summary, summary_of_block(scales[b * rows.scales_1],
                                        Atom::sum_of_squares(codes + b * block_bytes)));
      }
    }
    rows.summaries[row * rows.summaries_row] = summary;
  }
}

/// The sum over a block's codes of their magnitudes in halves, squared: what a row summary needs.
KOKKOS_FORCEINLINE_FUNCTION std::uint32_t sum_of_squares_loop(const std::uint8_t* codes) {
  std::int32_t sum = 0;
  for (int i = 0; i < block_bytes; ++i) {
    const std::int16_t low = halves_of(static_cast<std::int16_t>(codes[i] & 15));
    const std::int16_t high = halves_of(static_cast<std::int16_t>(codes[i] >> 4));
    sum += static_cast<std::int32_t>(low) * low;
    sum += static_cast<std::int32_t>(high) * high;
  }
  return static_cast<std::uint32_t>(sum);
}

}  // namespace KokkosMX::Impl

#endif
