// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_TEST_REFERENCE_QUANTIZE_HPP
#define KOKKOSMX_TEST_REFERENCE_QUANTIZE_HPP

/// \file ReferenceQuantize.hpp
/// What quantize, dequantize and summarize must give, from the definitions: numbers are exact
/// dyadic rationals, a scale or a code is found by comparing with every candidate. Of the library
/// it uses the names of the rules alone. No floating point, so no flag and no state of the
/// floating-point unit matters.

#include <KokkosMX/Types.hpp>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace KokkosMXTest {

__extension__ using UInt128 = unsigned __int128;

/// m * 2^e, not negative.
struct Dyadic {
  std::uint64_t m;
  int e;
};

/// -1, 0, 1 as a is less than, equal to, greater than b.
constexpr int compare(Dyadic a, Dyadic b) {
  if (a.m == 0 || b.m == 0) return (a.m != 0) - (b.m != 0);
  const int top_a = std::bit_width(a.m) + a.e, top_b = std::bit_width(b.m) + b.e;
  if (top_a != top_b) return top_a < top_b ? -1 : 1;
  // The leading bits agree, so the exponents differ by less than 64.
  const UInt128 x = a.e > b.e ? UInt128{a.m} << (a.e - b.e) : UInt128{a.m};
  const UInt128 y = b.e > a.e ? UInt128{b.m} << (b.e - a.e) : UInt128{b.m};
  return (x > y) - (x < y);
}

/// A number of a floating-point type, exactly.
struct Number {
  enum class Kind { finite, infinite, nan };
  Kind kind;
  bool negative;
  Dyadic magnitude;           // where finite
  std::uint32_t nan_payload;  // where NaN: its float32 bits without the sign
};

/// An IEEE format by the widths of its fields.
struct Format {
  int exponent_bits;
  int fraction_bits;

  constexpr int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  constexpr std::uint32_t infinity() const { return ((1u << exponent_bits) - 1) << fraction_bits; }
  constexpr std::uint32_t sign() const { return 1u << (exponent_bits + fraction_bits); }
  constexpr std::uint32_t canonical_nan() const { return infinity() | (1u << (fraction_bits - 1)); }
};
inline constexpr Format float32_format{8, 23}, bfloat16_format{8, 7}, float16_format{5, 10};

constexpr Number decode(std::uint32_t bits, Format format) {
  const std::uint32_t fraction = bits & ((1u << format.fraction_bits) - 1);
  const auto exponent =
      static_cast<int>((bits >> format.fraction_bits) & ((1u << format.exponent_bits) - 1));
  const bool negative = (bits & format.sign()) != 0;
  if (exponent == (1 << format.exponent_bits) - 1) {
    if (fraction == 0) return {Number::Kind::infinite, negative, {}, 0};
    return {Number::Kind::nan, negative, {}, 0x7F800000u | fraction << (23 - format.fraction_bits)};
  }
  const int unit = 1 - format.bias() - format.fraction_bits;
  if (exponent == 0) return {Number::Kind::finite, negative, {fraction, unit}, 0};
  return {Number::Kind::finite,
          negative,
          {std::uint64_t{fraction} | std::uint64_t{1} << format.fraction_bits, unit + exponent - 1},
          0};
}

/// numerator / denominator * 2^e to the nearest integer, ties to even; e as small as 2^e * the
/// fraction's unit needs: |e| <= 100 for what the tests ask, checked.
constexpr std::uint64_t divide_to_nearest(std::uint64_t numerator, std::uint64_t denominator,
                                          int e) {
  UInt128 n = numerator, d = denominator;
  if (e >= 0) {
    if (std::bit_width(numerator) + e > 126) throw std::overflow_error("divide_to_nearest");
    n <<= e;
  } else {
    if (-e > 100) return 0;  // numerator < 2^64 and denominator >= 1: far below one half
    d <<= -e;
  }
  UInt128 quotient = n / d;
  const UInt128 twice_rest = 2 * (n % d);
  if (twice_rest > d || (twice_rest == d && (quotient & 1) != 0)) ++quotient;
  return static_cast<std::uint64_t>(quotient);
}

/// The exponent of 2 such that value / divisor is 1 or more and less than 2 times its power.
constexpr int floor_log2(Dyadic value, std::uint64_t divisor = 1) {
  int exponent = std::bit_width(value.m) - 1 + value.e;
  while (compare(value, {divisor, exponent}) < 0) --exponent;
  return exponent;
}

/// RN_f32(value / divisor), subnormals kept, for what does not overflow.
constexpr Dyadic divide_in_float32(Dyadic value, std::uint64_t divisor) {
  if (value.m == 0) return {0, 0};
  const int exponent = floor_log2(value, divisor);
  const int unit = (exponent < -126 ? -126 : exponent) - 23;
  return {divide_to_nearest(value.m, divisor, value.e - unit), unit};
}

/// The bits of a number rounded once to a format: nearest even, subnormals kept, overflow to inf.
constexpr std::uint32_t encode(bool negative, Dyadic value, Format format) {
  const std::uint32_t sign = negative ? format.sign() : 0;
  if (value.m == 0) return sign;
  const int exponent = floor_log2(value), least = 1 - format.bias();
  const int binade = exponent < least ? least : exponent;
  const int unit = binade - format.fraction_bits;
  const std::uint64_t units = divide_to_nearest(value.m, 1, value.e - unit);
  const std::uint64_t hidden = std::uint64_t{1} << format.fraction_bits;
  if (units < hidden) return sign | static_cast<std::uint32_t>(units);
  // units == 2 * hidden, the next power of two, carries into the exponent.
  const std::uint64_t bits =
      (static_cast<std::uint64_t>(binade + format.bias()) << format.fraction_bits) +
      (units - hidden);
  return sign | (bits < format.infinity() ? static_cast<std::uint32_t>(bits) : format.infinity());
}

/// A block's scale from its largest magnitude, finite.
constexpr std::uint8_t reference_scale(Dyadic amax, KokkosMX::ScaleMode mode) {
  using KokkosMX::ScaleMode;
  if (amax.m == 0) return 0;
  switch (mode) {
    case ScaleMode::floor:
      // The largest at which amax is a magnitude of 4 or more.
      for (int s = 254; s > 0; --s) {
        if (compare(amax, {4, s - 127}) >= 0) return static_cast<std::uint8_t>(s);
      }
      return 0;
    case ScaleMode::even:
      // The largest at which amax is a magnitude of 3.5 or more.
      for (int s = 254; s > 0; --s) {
        if (compare(amax, {7, s - 128}) >= 0) return static_cast<std::uint8_t>(s);
      }
      return 0;
    case ScaleMode::ceil:
    case ScaleMode::rceil: {
      // The least power of two that is not below the float32 quotient.
      const Dyadic quotient = divide_in_float32(amax, mode == ScaleMode::ceil ? 4 : 6);
      if (quotient.m == 0) return 0;
      int s = 1;
      while (compare(quotient, {1, s - 127}) > 0) ++s;
      return static_cast<std::uint8_t>(s);
    }
  }
  throw std::logic_error("reference_scale: no such mode");
}

/// Magnitudes of codes 0..7 in halves.
inline constexpr std::array<std::uint64_t, 8> magnitude_in_halves{0, 1, 2, 3, 4, 6, 8, 12};

/// The code of a number in a block of scale s.
constexpr std::uint8_t reference_code(const Number& x, int s, KokkosMX::Rounding rounding) {
  using KokkosMX::Rounding;
  if (x.kind == Number::Kind::nan) return 7;
  std::uint8_t code = 7;
  if (x.kind == Number::Kind::finite) {
    const Dyadic scaled{x.magnitude.m, x.magnitude.e + 127 - s};
    for (code = 0; code < 7; ++code) {
      // Half-way between two neighbours, in quarters.
      const Dyadic tie{magnitude_in_halves[code] + magnitude_in_halves[code + 1u], -2};
      const int order = compare(scaled, tie);
      const bool up = order > 0 || (order == 0 && (rounding == Rounding::ties_up || code % 2 == 1));
      if (!up) break;
    }
    // As a float32 product, what is 2^-150 or less is zero.
    if (rounding == Rounding::ties_up && compare(scaled, {1, -150}) <= 0) return code;
  }
  return static_cast<std::uint8_t>(x.negative ? code | 8 : code);
}

struct ReferenceBlock {
  std::uint8_t scale;
  std::array<std::uint8_t, 32> codes;
};

/// A block of 32 numbers by a rule.
inline ReferenceBlock reference_block(const std::array<Number, 32>& x,
                                      const KokkosMX::QuantizeRule& rule) {
  Dyadic amax{0, 0};
  bool finite = true;
  std::uint32_t largest_bits = 0;  // of what is not finite, as float32 without the sign
  for (const Number& number : x) {
    if (number.kind == Number::Kind::finite) {
      if (compare(number.magnitude, amax) > 0) amax = number.magnitude;
    } else {
      finite = false;
      const std::uint32_t bits =
          number.kind == Number::Kind::nan ? number.nan_payload : 0x7F800000u;
      if (bits > largest_bits) largest_bits = bits;
    }
  }
  ReferenceBlock block{};
  if (rule.non_finite() == KokkosMX::NonFinite::ocp) {
    if (!finite) {
      block.scale = 255;
      return block;
    }
    block.scale = reference_scale(amax, rule.scale_mode());
  } else if (!finite) {
    block.scale = std::uint64_t{largest_bits} + 0x200000u >= std::uint64_t{1} << 31 ? 0 : 254;
  } else {
    block.scale =
        compare(amax, {7, 125}) >= 0 ? std::uint8_t{254} : reference_scale(amax, rule.scale_mode());
  }
  for (std::size_t i = 0; i < 32; ++i) {
    block.codes[i] = reference_code(x[i], block.scale, rule.rounding());
  }
  return block;
}

/// RowSummary's formula for a row of codes (K/2 bytes) and scales (K/32 bytes).
inline KokkosMX::RowSummary reference_summary(const std::uint8_t* codes, const std::uint8_t* scales,
                                              std::int64_t blocks) {
  KokkosMX::RowSummary summary{};
  int lo = 255, hi = -1;
  const auto sum_of_squares = [&](std::int64_t block) {
    std::uint64_t sum = 0;
    for (std::int64_t i = 0; i < 16; ++i) {
      const std::uint8_t byte = codes[16 * block + i];
      sum += magnitude_in_halves[byte & 7u] * magnitude_in_halves[byte & 7u];
      sum += magnitude_in_halves[(byte >> 4) & 7u] * magnitude_in_halves[(byte >> 4) & 7u];
    }
    return sum;
  };
  for (std::int64_t b = 0; b < blocks; ++b) {
    const int s = scales[b];
    if (s == 255) {
      summary.has_nan = 1;
    } else if (sum_of_squares(b) != 0) {
      lo = s < lo ? s : lo;
      hi = s > hi ? s : hi;
    }
  }
  if (hi < 0) return summary;
  const UInt128 most = ~std::uint64_t{0};
  UInt128 n = 0;
  for (std::int64_t b = 0; b < blocks; ++b) {
    const std::uint64_t sum = sum_of_squares(b);
    if (scales[b] == 255 || sum == 0) continue;
    const int shift = 2 * (scales[b] - lo);
    // 4608 * 2^64 is as good as more.
    n += UInt128{sum} << (shift > 64 ? 64 : shift);
  }
  summary.n = static_cast<std::uint64_t>(n > most ? most : n);
  summary.lo = static_cast<std::uint8_t>(lo);
  summary.hi = static_cast<std::uint8_t>(hi);
  return summary;
}

struct ReferenceMatrix {
  std::vector<std::uint8_t> codes;   // rows x K/2
  std::vector<std::uint8_t> scales;  // rows x K/32
  std::vector<KokkosMX::RowSummary> summaries;
};

/// All rows' summaries.
inline std::vector<KokkosMX::RowSummary> reference_summaries(
    const std::vector<std::uint8_t>& codes, const std::vector<std::uint8_t>& scales,
    std::int64_t rows, std::int64_t k) {
  std::vector<KokkosMX::RowSummary> summaries(static_cast<std::size_t>(rows));
  for (std::int64_t row = 0; row < rows; ++row) {
    summaries[static_cast<std::size_t>(row)] =
        reference_summary(codes.data() + row * (k / 2), scales.data() + row * (k / 32), k / 32);
  }
  return summaries;
}

/// Quantizes rows x K numbers given by their bits in a format; Bits: std::uint32_t or
/// std::uint16_t.
template <class Bits>
ReferenceMatrix reference_quantize(const std::vector<Bits>& x, std::int64_t rows, std::int64_t k,
                                   Format format, const KokkosMX::QuantizeRule& rule) {
  ReferenceMatrix q;
  const std::int64_t blocks = rows * (k / 32);
  q.codes.resize(static_cast<std::size_t>(16 * blocks));
  q.scales.resize(static_cast<std::size_t>(blocks));
#ifdef _OPENMP
#pragma omp parallel for if (blocks > 512)
#endif
  for (std::int64_t b = 0; b < blocks; ++b) {
    std::array<Number, 32> numbers;
    for (std::size_t i = 0; i < 32; ++i) {
      numbers[i] = decode(x[static_cast<std::size_t>(32 * b) + i], format);
    }
    const ReferenceBlock block = reference_block(numbers, rule);
    q.scales[static_cast<std::size_t>(b)] = block.scale;
    for (std::size_t i = 0; i < 16; ++i) {
      q.codes[static_cast<std::size_t>(16 * b) + i] =
          static_cast<std::uint8_t>(block.codes[2 * i] | block.codes[2 * i + 1] << 4);
    }
  }
  q.summaries = reference_summaries(q.codes, q.scales, rows, k);
  return q;
}

/// The bits of one dequantized number.
constexpr std::uint32_t reference_dequantize(std::uint8_t code, std::uint8_t scale, Format format) {
  if (scale == 255) return format.canonical_nan();
  return encode((code & 8) != 0, {magnitude_in_halves[code & 7u], scale - 128}, format);
}

/// Dequantizes packed codes (rows, K/2) with scales (rows, K/32); rows * K numbers.
template <class Bits>
std::vector<Bits> reference_dequantize(const std::vector<std::uint8_t>& codes,
                                       const std::vector<std::uint8_t>& scales, Format format) {
  std::array<std::array<Bits, 16>, 256> table;
  for (unsigned s = 0; s < 256; ++s) {
    for (unsigned c = 0; c < 16; ++c) {
      table[s][c] = static_cast<Bits>(
          reference_dequantize(static_cast<std::uint8_t>(c), static_cast<std::uint8_t>(s), format));
    }
  }
  std::vector<Bits> x(2 * codes.size());
  for (std::size_t i = 0; i < codes.size(); ++i) {
    const std::array<Bits, 16>& values = table[scales[i / 16]];
    x[2 * i] = values[codes[i] & 15u];
    x[2 * i + 1] = values[codes[i] >> 4];
  }
  return x;
}

}  // namespace KokkosMXTest

#endif
