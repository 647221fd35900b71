// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_ROW_SPLIT_HPP
#define KOKKOSMX_SRC_GEMM_ROW_SPLIT_HPP

/// \file row_split.hpp
/// Rows as the sum of two: int8 elements in units of one power of two, which hold the scales of
/// most blocks, and outliers, 16-bit integers in units of another, or int8 elements of some parts.
/// What an output's four sums (main by main, outliers by main, main by outliers, outliers by
/// outliers) come to, rounded once.

#include <KokkosMX/Types.hpp>

#include "../atoms/gemm/int8_codes.hpp"
#include "../numbers.hpp"
#include "exact_sum.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>

namespace KokkosMX::Impl {

/// An element of m halves in a block of scale s is the main part's m << (s - base) where 0 <= s -
/// base and that is at most 96, and else the outliers' m << (s - out), 0 <= s - out <= most_shift.
struct alignas(8) RowSplit {
  std::int16_t base;
  std::int16_t out;    ///< base where there are no outliers; is_rest where the row cannot be split
  std::int16_t range;  ///< the outliers' largest scale, less out
  /// Where outliers have one part, the number of these of each scale times 2^(scale - out), added
  /// up: over 12, a bound to the sum of their magnitudes in halves << out. 0: not known.
  std::uint16_t weight = 0;

  static constexpr std::int16_t is_rest = -1;
  static constexpr int main_shift = 3;        ///< all codes of such blocks are the main part's
  static constexpr int most_partly_main = 6;  ///< some codes of such blocks are
  static constexpr int most_shift = 11;
  static constexpr int part_bits = main_shift + 1;
  static constexpr int most_parts = 2;  ///< that have images
  /// 12 << 11 = 24576 = 96 * 256: two int8 digits of base 256.
  static constexpr int digit_bits = 8;
  /// hi - lo of a row that is split: sums of two rows stay within 126 bits.
  static constexpr int most_spread = 47;

  static constexpr int most_weight = (1 << 14) - 1;

  KOKKOS_INLINE_FUNCTION bool has_outliers() const { return out >= 0 && out != base; }
  /// Of the outliers: part p has those of scales out + 4 p to out + 4 p + 3.
  KOKKOS_INLINE_FUNCTION int parts() const { return range / part_bits + 1; }
  /// Those of shifts from out of a block, where it is in some part, in the part's units.
  KOKKOS_INLINE_FUNCTION static int in_part(int shift) { return shift & (part_bits - 1); }
};
static_assert(2 * RowSplit::most_spread + 31 <= 126);

/// Codes without sign from here on are outliers in a block whose scale is base + shift.
KOKKOS_INLINE_FUNCTION int least_outlier(int shift) {
  if (shift < 0 || shift > 6) return 1;
  return shift <= RowSplit::main_shift ? 8 : shift == 4 ? 6 : shift == 5 ? 4 : 2;
}

/// Bit 4 i + w: code 8 w + i of the block, without its sign, is at least `least` (1..8).
KOKKOS_INLINE_FUNCTION std::uint32_t codes_from(const BlockCodes& block, int least) {
  const std::uint32_t more = 0x11111111u * (8u - static_cast<unsigned>(least));
  std::uint32_t found = 0;
  for (int w = 0; w < 4; ++w) {
    found |= ((block.word[w] & 0x77777777u) + more) >> (3 - w) & 0x11111111u << w;
  }
  return found;
}
/// Which code a bit stands for.
KOKKOS_INLINE_FUNCTION int code_of_bit(int bit) { return 8 * (bit & 3) + (bit >> 2); }

KOKKOS_INLINE_FUNCTION int bits_in(std::uint32_t x) {
  return Kokkos::Experimental::popcount_builtin(x);
}
KOKKOS_INLINE_FUNCTION int first_bit(std::uint32_t x) {
  return Kokkos::Experimental::countr_zero_builtin(x);
}

/// Magnitudes of codes 0 to 3 and 4 to 7.
struct Magnitudes {
  std::uint32_t low, high;
};
/// The outliers' in halves, in a block of scale base + shift.
KOKKOS_INLINE_FUNCTION Magnitudes outlier_magnitudes(int shift) {
  const int least = least_outlier(shift);
  if (least > 7) return {0, 0};
  return {least < 4 ? halves_low & ~0u << (8 * least) : 0u,
          least > 4 ? halves_high & ~0u << (8 * (least - 4)) : halves_high};
}
/// The main part's in halves << shift.
KOKKOS_INLINE_FUNCTION Magnitudes main_magnitudes(int shift) {
  if (shift >= 0 && shift <= RowSplit::main_shift) {
    return {halves_low << shift, halves_high << shift};
  }
  if (shift < 0 || shift > 6) return {0, 0};
  return {shift <= 5 ? halves_low << shift : 0x00004000u, shift == 4 ? 0x00006040u : 0u};
}

/// One element's parts, of which one is zero.
struct ElementParts {
  int main, outlier;
};
KOKKOS_INLINE_FUNCTION ElementParts parts_of(int code, int scale, const RowSplit& split) {
  // Without branches: least_outlier() says the same. Blocks of zeros may have any scale.
  constexpr int most = 96;
  const int halves = signed_halves_of(code);
  const int shift = scale - split.base;
  const int main = halves * (1 << (shift & 7));
  const bool is_main =
      static_cast<unsigned>(shift) <= RowSplit::most_partly_main && main <= most && main >= -most;
  const int outlier = static_cast<int>(static_cast<unsigned>(halves)
                                       << (static_cast<unsigned>(scale - split.out) & 31u));
  return {is_main ? main : 0, is_main ? 0 : outlier};
}
/// Digits of an outlier: value = 256 * high + low, both in int8.
KOKKOS_INLINE_FUNCTION int low_digit(int value) { return static_cast<std::int8_t>(value & 0xFF); }
KOKKOS_INLINE_FUNCTION int high_digit(int value) { return (value + 128) >> RowSplit::digit_bits; }

/// Chooses the split of a row by the number of its nonzero elements in blocks of each scale: as the
/// main part takes most of them in four scales, or the least four if they have nearly as many; the
/// others have to lie within the outliers' range.
/// By some threads together: each looks at every `threads`th scale from its rank on, calls rate(),
/// then, when all have, reach(), then split().
struct SplitChoice {
  static constexpr int band = RowSplit::main_shift + 1;
  static constexpr int scales = 1 << 6;
  static_assert(RowSplit::most_spread < scales);

  static constexpr int words = scales + band + 3;

  std::int32_t elements_of[scales + band];  ///< by scale - lo
  std::int32_t best, lowest, highest;       ///< each as the largest of what threads say of it

  /// Word i of its memory, before anything else.
  KOKKOS_INLINE_FUNCTION void clear(int i) {
    if (i < scales + band) {
      elements_of[i] = 0;
    } else {
      best = lowest = highest = 0;
    }
  }

  KOKKOS_INLINE_FUNCTION void rate(int rank, int threads, int spread) {
    for (int i = rank; i <= spread; i += threads) {
      std::int32_t in_band = 0;
      for (int j = 0; j < band; ++j) in_band += elements_of[i + j];
      // Rather no outliers below the main part than a few less above it.
      if (i == 0) in_band += in_band / 16;
      max_shared(&best, in_band * scales + scales - 1 - i);  // the first of equals
    }
  }
  KOKKOS_INLINE_FUNCTION int base() const { return scales - 1 - best % scales; }
  KOKKOS_INLINE_FUNCTION void reach(int rank, int threads, int spread) {
    for (int i = rank; i <= spread; i += threads) {
      if (elements_of[i] == 0 || (i >= base() && i < base() + band)) continue;
      max_shared(&lowest, scales - i);
      max_shared(&highest, i);
    }
  }
  KOKKOS_INLINE_FUNCTION RowSplit split(int lo) const {
    const int first = scales - lowest, range = highest - first;
    RowSplit split{static_cast<std::int16_t>(lo + base()), RowSplit::is_rest, 0};
    if (range <= RowSplit::most_shift) {
      split.out = static_cast<std::int16_t>(lo + first);
      split.range = static_cast<std::int16_t>(range);
    }
    if (range < RowSplit::part_bits) {
      int weight = 0;
      for (int i = 0; i <= range; ++i) weight += elements_of[first + i] << i;
      if (weight <= RowSplit::most_weight) split.weight = static_cast<std::uint16_t>(weight);
    }
    return split;
  }
};

/// What is known of a row, or column, that is split.
struct SplitState {
  int lo, spread;  ///< of all its blocks
  int base, out;
};
/// The units of its parts.
struct SplitUnits {
  double base, out;  ///< 2^(base - 128) and 2^(out - 128)
};
/// The four sums of an output, each an integer below 2^53 in units of 2^(base or out of the row +
/// that of the column - 256).
struct SplitSums {
  double main, outliers_main, main_outliers, outliers;
};

/// The same where they are small, with their sum in units of 2^(both bases - 256). row_out and
/// col_out: 2^(out - base).
struct IntegerSums {
  std::int32_t main, outliers_main, main_outliers;
  std::int64_t outliers;

  KOKKOS_INLINE_FUNCTION std::int64_t all(std::int32_t row_out, std::int32_t col_out) const {
    const std::int64_t by_main = std::int64_t{outliers_main} * row_out + main;
    const std::int64_t by_outliers = outliers * row_out + main_outliers;
    return by_outliers * col_out + by_main;
  }
};

/// x as a double, without the unit that converts 16 numbers a cycle.
KOKKOS_INLINE_FUNCTION double exact_double(std::int32_t x) {
  const std::uint64_t bits = 0x4330000000000000u | (static_cast<std::uint32_t>(x) ^ 0x80000000u);
  return Kokkos::bit_cast<double>(bits) - 4503601774854144.0;  // 2^52 + 2^31
}
/// 2^(scale - 128).
KOKKOS_INLINE_FUNCTION double half_unit(int scale) {
  return Kokkos::bit_cast<double>(static_cast<std::uint64_t>(scale - 128 + 1023) << 52);
}

KOKKOS_INLINE_FUNCTION SplitUnits units_of(int base, int out) {
  return {half_unit(base), half_unit(out)};
}

/// Every part of the sum is a multiple of 2^(lo of the row + lo of the column - 256). At most 2^53
/// of these, as where both spreads and sum_bits together are no more than that, are exact in
/// double, whatever the order.
inline constexpr int double_bits = 53;

/// RN_f32 of an output in double; false where that is not known: bounds round to different numbers,
/// or to a subnormal, which flags may have the conversion flush. Is_exact: see double_bits.
KOKKOS_INLINE_FUNCTION bool round_split_sum_in_double(const SplitSums& sums, const SplitUnits& row,
                                                      const SplitUnits& col, bool is_exact,
                                                      std::uint32_t& product) {
  const double by_main = Kokkos::fma(sums.main, col.base, sums.main_outliers * col.out) * row.base;
  const double by_outliers =
      Kokkos::fma(sums.outliers_main, col.base, sums.outliers * col.out) * row.out;
  const double sum = by_main + by_outliers;
  // Each of three roundings is off by 2^-53 of what it gives, and so is that of either bound.
  const double parts = Kokkos::fabs(by_main) + Kokkos::fabs(by_outliers);
  const double off = is_exact ? 0.0 : 0x1p-51;
  product = Kokkos::bit_cast<std::uint32_t>(static_cast<float>(Kokkos::fma(-off, parts, sum)));
  const auto other =
      Kokkos::bit_cast<std::uint32_t>(static_cast<float>(Kokkos::fma(off, parts, sum)));
  // Without branches, so that devices compute several at once.
  const bool is_zero = Kokkos::bit_cast<std::uint64_t>(parts) == 0;
  return (product == other) & (((product & f32_inf) != 0) | is_zero);
}

/// RN_f32 of any output of rows that are split.
KOKKOS_INLINE_FUNCTION std::uint32_t round_split_sum(const SplitSums& sums, const SplitState& row,
                                                     const SplitState& col) {
  __extension__ using Int = __int128;
  __extension__ using Unsigned = unsigned __int128;
  const int row_base = row.base - row.lo, row_out = row.out - row.lo;
  const int col_base = col.base - col.lo, col_out = col.out - col.lo;
  const auto part = [](double sum, int shift) {
    return static_cast<Int>(static_cast<std::int64_t>(sum)) << shift;
  };
  const Int sum =
      part(sums.main, row_base + col_base) + part(sums.outliers_main, row_out + col_base) +
      part(sums.main_outliers, row_base + col_out) + part(sums.outliers, row_out + col_out);
  const bool negative = sum < 0;
  Unsigned magnitude = negative ? -static_cast<Unsigned>(sum) : static_cast<Unsigned>(sum);
  const int unit = unit_exponent(row.lo, col.lo);
  const auto high = static_cast<std::uint64_t>(magnitude >> 64);
  if (high == 0) {
    return round_to_f32(negative, static_cast<std::uint64_t>(magnitude), false, unit);
  }
  const int zeros = leading_zeros(high);
  magnitude <<= zeros;
  return round_to_f32(negative, static_cast<std::uint64_t>(magnitude >> 64),
                      static_cast<std::uint64_t>(magnitude) != 0, unit + 64 - zeros);
}

}  // namespace KokkosMX::Impl

#endif
