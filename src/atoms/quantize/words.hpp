// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_QUANTIZE_WORDS_HPP
#define KOKKOSMX_SRC_ATOMS_QUANTIZE_WORDS_HPP

/// \file words.hpp
/// How the vector atoms quantize by 16-bit words: what they share.
///
/// bf16 and f16 are words as they are. A float32 becomes a word of the same shape as bf16: its
/// upper 16 bits, and bit 0 is set too if any lower bit is ("sticky"). That word is enough:
/// thresholds between codes and all scale modes look at the exponent, at the two leading bits of
/// the mantissa, and at whether anything below them is nonzero.
///
/// Let w be 2 * magnitude (the sign is shifted out), and p the bits of the word's mantissa. The
/// largest w of a block, rounded as the mode says, is t * 2^(p+1), and the scale is t - 2 (in the
/// word's own bias). Every code of the block follows from
///
///   index = (w - (t - 5) * 2^(p+1), at least 0) >> (p - 1),
///
/// quarters of a binade counted from 1/8 of the scale: the midpoints 1/4, 3/4, 5/4, 7/4, 5/2, 7/2,
/// 5 begin the indices 4, 10, 13, 15, 17, 19, 21, and none is above 23. To nearest_even, midpoints
/// whose leading mantissa bit is 0 (all but 3/4, 7/4, 7/2) must be exceeded: that bit goes into the
/// free bit 0 of w, and 1 more is subtracted.
///
/// With ties_up only quarters of a binade count, in scales of the modes even and floor too. In a
/// window of 64 binades they are bytes, which take half the work; smaller positive numbers are
/// its floor, and other ones (negative zeros too) leave the block to words.
///
/// This holds for blocks of zeros, and where a quarter of the scale is a normal number, the largest
/// is finite, and no sign is lost; all other blocks go through the loops.

#include <KokkosMX/Types.hpp>

#include "../../numbers.hpp"
#include "../../operand.hpp"
#include "loops.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace KokkosMX::Impl {

template <class Format, bool ToEven>
struct QuantizeWords {
  static constexpr bool is_f32 = std::is_same_v<Format, F32Format>;
  static constexpr int p = is_f32 ? BF16Format::mantissa : Format::mantissa;
  /// What the scale has more than t.
  static constexpr int scale_offset = 127 - Format::bias - 2;
  /// The largest word of a block, doubled: below this many, a quarter of the scale is subnormal.
  static constexpr std::uint32_t least = 5u << (p + 1);
  /// From this on it is not finite, or NonFinite may count once it is rounded.
  static constexpr std::uint32_t end = ((1u << (15 - p)) - (ToEven || p != 7 ? 1u : 3u)) << (p + 1);
  /// With ties_up a sign is lost where the product of its number and 2^(127 - s) is zero. That may
  /// be from this largest word on (scales from 144; of float32, whose words can stand for any small
  /// number, from 128), and with no scale from `kept` (2^-22) on.
  static constexpr bool may_lose_signs = !ToEven && p == 7;
  static constexpr std::uint32_t vanish = (is_f32 ? 129u : 145u) << (p + 1);
  static constexpr std::uint32_t kept = 105u << (p + 1);

  /// Without the sticky bit, with ties_up and where the scale looks at quarters only: exponents of
  /// a window, as bytes of quarters of a binade counted from its floor.
  static constexpr bool has_quarters = !ToEven && p == 7;
  static bool by_quarters(ScaleMode mode) {
    return has_quarters && (mode == ScaleMode::even || mode == ScaleMode::floor);
  }
  /// 2^-47 up to 2^17.
  static constexpr std::uint32_t window = 80, window_size = 64;
  /// Below the floor, words of negative numbers reach bits that none in the window has; signs of
  /// those in it are kept.
  static_assert(!has_quarters || (window <= 192 && window > 0));
  /// What the largest of a block must lie between.
  static constexpr std::uint8_t least_quarter = 4 * 5, most_quarter = 4 * window_size - 5;
  /// What becomes of t * 2^(p+1) before it is subtracted.
  static constexpr std::uint32_t below = (5u << (p + 1)) - (ToEven ? 1u : 0u);

  /// What is added to the largest word, doubled, before its mantissa is cut off.
  static std::uint32_t rounding_of(ScaleMode mode) {
    switch (mode) {
      case ScaleMode::even:
        return 2u << (p - 2);
      case ScaleMode::ceil:
        return 2u * ((1u << p) - 1u);
      case ScaleMode::rceil:
        return 2u * ((1u << (p - 1)) - 1u);
      default:
        return 0;
    }
  }
};

/// The code of an index.
constexpr std::uint8_t code_of_index(std::size_t index) {
  std::uint8_t code = 0;
  for (const std::size_t first : {4, 10, 13, 15, 17, 19, 21}) {
    if (index >= first) ++code;
  }
  return code;
}
/// Of indices of 5 bits and a sign above them.
inline constexpr std::array<std::uint8_t, 64> codes_of_indices = [] {
  std::array<std::uint8_t, 64> codes{};
  for (std::size_t i = 0; i < 64; ++i) {
    codes[i] = static_cast<std::uint8_t>(code_of_index(i % 32) | (i < 32 ? 0 : 8));
  }
  return codes;
}();
/// Magnitudes in halves, squared.
inline constexpr std::array<std::uint8_t, 64> squares_of_indices = [] {
  constexpr std::uint8_t halves[8] = {0, 1, 2, 3, 4, 6, 8, 12};
  std::array<std::uint8_t, 64> squares{};
  for (std::size_t i = 0; i < 64; ++i) {
    const std::uint8_t h = halves[code_of_index(i % 32)];
    squares[i] = static_cast<std::uint8_t>(h * h);
  }
  return squares;
}();

/// Blocks whose summary is made at once.
inline constexpr int summary_blocks = 64;

/// Scales and sums of squares of blocks; of those that are not there both are 0. A block that the
/// vectors quantize has a sum of 0 only if it has the scale 0.
struct BlockList {
  alignas(64) std::uint8_t scale[summary_blocks];
  alignas(64) std::uint16_t sum[summary_blocks];

  /// Of blocks with any codes and scales: brings the list into that shape. False where that cannot
  /// be.
  KOKKOS_FORCEINLINE_FUNCTION bool clear_zeros() {
    std::uint16_t other = 0;
    for (int k = 0; k < summary_blocks; ++k) {
      const std::uint16_t s = scale[k];
      other = static_cast<std::uint16_t>(other | ((s == 255 || (s == 0 && sum[k] != 0)) ? 1 : 0));
    }
    if (other != 0) return false;
    for (int k = 0; k < summary_blocks; ++k) {
      scale[k] = sum[k] == 0 ? std::uint8_t{0} : scale[k];
    }
    return true;
  }
  /// Sums of 64 blocks that lie no farther apart leave 64 bits nowhere.
  static constexpr int most_spread = 22;
  static_assert(64 * (144u * block_size) <= ~std::uint64_t{0} >> (2 * most_spread));
  /// RowSummary's n of so many blocks, of which lo is the least scale.
  KOKKOS_INLINE_FUNCTION std::uint64_t sum_from(int lo, int blocks) const {
    constexpr std::uint64_t most = ~std::uint64_t{0};
    std::uint64_t n = 0;
    for (int k = 0; k < blocks && n != most; ++k) {
      const std::uint64_t term = shift_saturated(sum[k], 2 * (scale[k] - lo));
      n = n > most - term ? most : n + term;
    }
    return n;
  }
  KOKKOS_INLINE_FUNCTION void add_one_by_one(RowSummary& row) const {
    for (int k = 0; k < summary_blocks; ++k) merge(row, summary_of_block(scale[k], sum[k]));
  }
};

}  // namespace KokkosMX::Impl

#endif
