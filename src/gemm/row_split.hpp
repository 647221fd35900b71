// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_ROW_SPLIT_HPP
#define KOKKOSMX_SRC_GEMM_ROW_SPLIT_HPP

/// \file row_split.hpp
/// Rows as the sum of two: int8 elements in units of one power of two, which hold the scales of
/// most blocks, and outliers, 16-bit integers in units of another. What an output's four sums (main
/// by main, outliers by main, main by outliers, outliers by outliers) come to, rounded once.

#include <KokkosMX/Types.hpp>

#include "../atoms/gemm/int8_codes.hpp"
#include "../numbers.hpp"
#include "exact_sum.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>

namespace KokkosMX::Impl {

/// An element of m halves in a block of scale s is the main part's m << (s - base) where 0 <= s -
/// base and that is at most 96, and else the outliers' m << (s - out), 0 <= s - out <= most_shift.
struct RowSplit {
  std::int16_t base;
  std::int16_t out;  ///< base where there are no outliers; is_rest where the row cannot be split

  static constexpr std::int16_t is_rest = -1;
  static constexpr int main_shift = 3;  ///< all codes of such blocks are the main part's
  static constexpr int most_shift = 11;
  /// 12 << 11 = 24576 = 96 * 256: two int8 digits of base 256.
  static constexpr int digit_bits = 8;
  /// hi - lo of a row that is split: sums of two rows stay within 126 bits.
  static constexpr int most_spread = 47;

  KOKKOS_INLINE_FUNCTION bool has_outliers() const { return out >= 0 && out != base; }
};
static_assert(2 * RowSplit::most_spread + 31 <= 126);

/// Codes without sign from here on are outliers in a block whose scale is base + shift.
KOKKOS_INLINE_FUNCTION int least_outlier(int shift) {
  if (shift < 0 || shift > 6) return 1;
  return shift <= RowSplit::main_shift ? 8 : shift == 4 ? 6 : shift == 5 ? 4 : 2;
}

/// Bit i: code i of the block, without its sign, is at least `least` (1..8).
KOKKOS_INLINE_FUNCTION std::uint32_t codes_from(const BlockCodes& block, int least) {
  std::uint32_t found = 0;
  for (int i = 0; i < 4; ++i) {
    std::uint32_t bits =
        (block.word[i] & 0x77777777u) + 0x11111111u * (8u - static_cast<unsigned>(least));
    bits = bits >> 3 & 0x11111111u;
    bits = (bits | bits >> 3) & 0x03030303u;
    bits = (bits | bits >> 6) & 0x000F000Fu;
    found |= ((bits | bits >> 12) & 0xFFu) << (8 * i);
  }
  return found;
}

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

/// One element's parts.
KOKKOS_INLINE_FUNCTION int main_part(int code, int scale, const RowSplit& split) {
  const int shift = scale - split.base;
  if ((code & 7) >= least_outlier(shift)) return 0;
  return (code & 7) == 0 ? 0 : signed_halves_of(code) * (1 << shift);
}
KOKKOS_INLINE_FUNCTION int outlier_part(int code, int scale, const RowSplit& split) {
  if ((code & 7) < least_outlier(scale - split.base)) return 0;
  return signed_halves_of(code) * (1 << (scale - split.out));
}
/// Digits of an outlier: value = 256 * high + low, both in int8.
KOKKOS_INLINE_FUNCTION int low_digit(int value) { return static_cast<std::int8_t>(value & 0xFF); }
KOKKOS_INLINE_FUNCTION int high_digit(int value) { return (value + 128) >> RowSplit::digit_bits; }

/// Chooses the split of a row by the number of its nonzero elements in blocks of each scale: as the
/// main part takes most of them in four scales; the others have to lie within the outliers' range.
KOKKOS_INLINE_FUNCTION RowSplit choose_split(const std::int32_t (&elements_of)[256], int lo,
                                             int hi) {
  constexpr int band = RowSplit::main_shift + 1;
  RowSplit split{static_cast<std::int16_t>(lo), RowSplit::is_rest};
  std::int32_t in_band = 0, most = 0;
  for (int scale = lo; scale <= hi; ++scale) {
    in_band += elements_of[scale] - (scale >= lo + band ? elements_of[scale - band] : 0);
    if (in_band <= most) continue;
    most = in_band;
    const int base = scale - RowSplit::main_shift;
    split.base = static_cast<std::int16_t>(base > lo ? base : lo);
  }
  int least = 255, largest = 0;
  for (int scale = lo; scale <= hi; ++scale) {
    if (elements_of[scale] == 0 || (scale >= split.base && scale < split.base + band)) continue;
    least = scale < least ? scale : least;
    largest = scale;
  }
  if (largest - least <= RowSplit::most_shift) split.out = static_cast<std::int16_t>(least);
  return split;
}

/// What is known of a row, or column, that is split.
struct SplitState {
  int lo, spread;  ///< of all its blocks
  int base, out;
};
/// The four sums of an output, each in units of 2^(base or out of the row + that of the column -
/// 256), the last one in two parts: 2^high_bits * outliers_high + outliers_low.
struct SplitSums {
  std::int32_t main, outliers_main, main_outliers, outliers_high, outliers_low;
  int high_bits;
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

/// RN_f32(x) for an x that is no NaN and no subnormal.
KOKKOS_INLINE_FUNCTION std::uint32_t round_to_f32(double x) {
  const auto rounded = Kokkos::bit_cast<std::uint32_t>(static_cast<float>(x));
  if ((rounded & f32_inf) != 0 || x == 0) return rounded;
  // Subnormal: flags may have the conversion flush these.
  const auto bits = Kokkos::bit_cast<std::uint64_t>(x);
  constexpr std::uint64_t leading = std::uint64_t{1} << 52;
  return round_to_f32(bits >> 63 != 0, (bits & (leading - 1)) | leading, false,
                      static_cast<int>(bits >> 52 & 0x7FF) - 1075);
}

/// Every part of the sum is a multiple of 2^(lo of the row + lo of the column - 256) and at most
/// 2^53 of these: sums in double are exact, whatever their order.
KOKKOS_INLINE_FUNCTION bool split_sum_fits_double(int spreads, int sum_bits) {
  return spreads + sum_bits <= 53;
}

/// RN_f32 of an output, where split_sum_fits_double.
KOKKOS_INLINE_FUNCTION std::uint32_t round_split_sum_in_double(const SplitSums& sums,
                                                               const SplitState& row,
                                                               const SplitState& col) {
  const double col_base = half_unit(col.base), col_out = half_unit(col.out);
  const double by_main =
      Kokkos::fma(exact_double(sums.main), col_base, exact_double(sums.main_outliers) * col_out);
  const double outliers =
      Kokkos::fma(exact_double(sums.outliers_high), half_unit(sums.high_bits + 128),
                  exact_double(sums.outliers_low));
  const double by_outliers =
      Kokkos::fma(exact_double(sums.outliers_main), col_base, outliers * col_out);
  return round_to_f32(Kokkos::fma(half_unit(row.base), by_main, half_unit(row.out) * by_outliers));
}

/// x + y as its nearest double, and what that leaves out.
KOKKOS_INLINE_FUNCTION double add_exactly(double x, double y, double& rest) {
  const double sum = x + y;
  const double of_y = sum - x;
  rest = (x - (sum - of_y)) + (y - of_y);
  return sum;
}
/// RN_f32 of an output, by bounds in double; false where these round to different numbers. Outliers
/// by outliers are at most 2^53.
KOKKOS_INLINE_FUNCTION bool round_split_sum_by_bounds(const SplitSums& sums, const SplitState& row,
                                                      const SplitState& col,
                                                      std::uint32_t& product) {
  const double row_base = half_unit(row.base), row_out = half_unit(row.out);
  const double col_base = half_unit(col.base), col_out = half_unit(col.out);
  const double outliers =
      Kokkos::fma(exact_double(sums.outliers_high), half_unit(sums.high_bits + 128),
                  exact_double(sums.outliers_low));
  double rest[3];
  double sum = add_exactly(exact_double(sums.outliers_main) * row_out * col_base,
                           exact_double(sums.main_outliers) * row_base * col_out, rest[0]);
  sum = add_exactly(sum, outliers * row_out * col_out, rest[1]);
  sum = add_exactly(sum, exact_double(sums.main) * row_base * col_base, rest[2]);
  const double apart = Kokkos::fabs(rest[0]) + Kokkos::fabs(rest[1]) + Kokkos::fabs(rest[2]);
  // Twice as far as it may be, and further than either bound is rounded.
  const double bound = apart == 0 ? 0.0 : 2 * apart + Kokkos::fabs(sum) * 0x1p-51;
  product = round_to_f32(sum - bound);
  return apart == 0 || product == round_to_f32(sum + bound);
}

/// RN_f32 of any output of rows that are split.
KOKKOS_INLINE_FUNCTION std::uint32_t round_split_sum(const SplitSums& sums, const SplitState& row,
                                                     const SplitState& col) {
  __extension__ using Int = __int128;
  __extension__ using Unsigned = unsigned __int128;
  const int row_base = row.base - row.lo, row_out = row.out - row.lo;
  const int col_base = col.base - col.lo, col_out = col.out - col.lo;
  const std::int64_t outliers =
      std::int64_t{sums.outliers_high} * (std::int64_t{1} << sums.high_bits) + sums.outliers_low;
  const auto part = [](std::int64_t sum, int shift) { return static_cast<Int>(sum) << shift; };
  const Int sum = part(sums.main, row_base + col_base) +
                  part(sums.outliers_main, row_out + col_base) +
                  part(sums.main_outliers, row_base + col_out) + part(outliers, row_out + col_out);
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
