// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_EXACT_SUM_HPP
#define KOKKOSMX_SRC_GEMM_EXACT_SUM_HPP

/// \file exact_sum.hpp
/// Which sums fit where, and sums of any width.
///
/// An output is a sum of terms halves * halves * 2^(s_a + s_b - 256). In units of
/// 2^(lo_a + lo_b - 256) every term is an integer: that is the unit of all sums here.

#include <KokkosMX/Types.hpp>

#include "../numbers.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>
#include <type_traits>

namespace KokkosMX::Impl {

/// The exponent of the unit of a sum.
KOKKOS_INLINE_FUNCTION int unit_exponent(int lo_a, int lo_b) { return lo_a + lo_b - 256; }

/// What the kernel keeps of a row's or column's summary.
struct RowState {
  std::uint64_t n;
  std::int32_t lo;
  std::int32_t spread;  ///< hi - lo
  bool has_nan;
};

/// a * b < 2^bits, for bits <= 64.
KOKKOS_INLINE_FUNCTION bool product_below(std::uint64_t a, std::uint64_t b, int bits) {
  if (a == 0 || b == 0) return true;
  // The product has as many bits as the factors together, or one less.
  const int width = 128 - leading_zeros(a) - leading_zeros(b);
  if (width <= bits) return true;
  if (width > bits + 1) return false;
  const std::uint64_t a_low = a & 0xFFFFFFFFu, a_high = a >> 32;
  const std::uint64_t b_low = b & 0xFFFFFFFFu, b_high = b >> 32;
  const std::uint64_t low = a_low * b_low;
  const std::uint64_t middle = (low >> 32) + a_low * b_high;  // below 2^64: (2^32-1)^2 + 2^32-1
  const std::uint64_t middle_2 = (middle & 0xFFFFFFFFu) + a_high * b_low;
  const std::uint64_t high = a_high * b_high + (middle >> 32) + (middle_2 >> 32);
  const std::uint64_t bottom = (middle_2 << 32) | (low & 0xFFFFFFFFu);
  return bits >= 64 ? high == 0 : high == 0 && bottom >> bits == 0;
}

/// Tier::aligned: both rows fit the atom's integers, and by Cauchy-Schwarz the sum fits its
/// accumulator: (sum |a b|)^2 <= n_a n_b < 2^certificate_bits.
template <class Atom>
KOKKOS_INLINE_FUNCTION bool certified_aligned(const RowState& a, const RowState& b) {
  return a.spread <= Atom::max_shift && b.spread <= Atom::max_shift &&
         product_below(a.n, b.n, Atom::certificate_bits);
}

/// Tier::window: sum |a b| <= 144 K 2^(spread_a + spread_b) < 2^63, with sum_bits the number of
/// bits of 144 K (144 K is no power of two, so 144 K < 2^sum_bits).
KOKKOS_INLINE_FUNCTION bool certified_window(const RowState& a, const RowState& b, int sum_bits) {
  return a.spread + b.spread + sum_bits <= 63;
}

/// The number of bits of 144 K.
KOKKOS_INLINE_FUNCTION int bits_of_sum(std::int64_t blocks) {
  return blocks == 0 ? 0
                     : 64 - leading_zeros(static_cast<std::uint64_t>(blocks) * (144u * block_size));
}

/// The tier that an output takes: the least that is allowed and certified.
template <class Atom>
KOKKOS_INLINE_FUNCTION Tier tier_of(const RowState& a, const RowState& b, int sum_bits,
                                    Tier minimum) {
  if (a.has_nan || b.has_nan) return Tier::automatic;
  if (minimum <= Tier::aligned && certified_aligned<Atom>(a, b)) return Tier::aligned;
  if (minimum <= Tier::window && certified_window(a, b, sum_bits)) return Tier::window;
  return Tier::wide;
}

/// A sum of integers times 2^0 .. 2^508: limb i counts 2^(32 i). A term of a block (14 bits and a
/// sign, shifted by up to 31) takes 45 bits of its limb, so 2^17 terms fit before carries must be
/// passed on. Limbs: where the 17 numbers are.
template <class Limbs>
class WideSumIn {
 public:
  static constexpr int limbs = 17;
  static constexpr int limb_bits = 32;
  static constexpr int terms_between_carries = 1 << 17;

  KOKKOS_INLINE_FUNCTION explicit WideSumIn(const Limbs& limbs_at = {}) : limb_(limbs_at) {
    for (int i = 0; i < limbs; ++i) limb_[i] = 0;
  }

  /// From limbs that lie stride apart; its own limbs are the thread's own.
  KOKKOS_INLINE_FUNCTION explicit WideSumIn(const std::int64_t* from, std::int64_t stride) {
    static_assert(std::is_array_v<decltype(Limbs::value)>);
    for (int i = 0; i < limbs; ++i) limb_[i] = from[i * stride];
  }

  /// Adds term * 2^shift, |term| <= 4608, shift in 0..508.
  KOKKOS_INLINE_FUNCTION void add(std::int32_t term, int shift) {
    limb_[shift >> 5] += static_cast<std::int64_t>(term) << (shift & 31);
  }

  /// Leaves 32 bits in every limb but the last.
  KOKKOS_INLINE_FUNCTION void carry() {
    for (int i = 0; i + 1 < limbs; ++i) {
      limb_[i + 1] += limb_[i] >> 32;
      limb_[i] &= 0xFFFFFFFF;
    }
  }

  /// RN_f32(sum * 2^exponent). Destroys the sum.
  KOKKOS_INLINE_FUNCTION std::uint32_t round(int exponent) {
    carry();
    const bool negative = limb_[limbs - 1] < 0;
    if (negative) {
      for (int i = 0; i < limbs; ++i) limb_[i] = -limb_[i];
      carry();
    }
    // The last limb holds the carries of limbs below it: under 32 bits for any K that a machine
    // can store.
    int top = limbs - 1;
    while (top > 0 && limb_[top] == 0) --top;
    if (top == 0) {
      return round_to_f32(negative, static_cast<std::uint64_t>(limb_[0]), false, exponent);
    }
    const std::uint64_t magnitude =
        (static_cast<std::uint64_t>(limb_[top]) << 32) | static_cast<std::uint64_t>(limb_[top - 1]);
    bool sticky = false;
    for (int i = 0; i < top - 1; ++i) sticky = sticky || limb_[i] != 0;
    return round_to_f32(negative, magnitude, sticky, exponent + 32 * (top - 1));
  }

 private:
  Limbs limb_;
};

/// Limbs of the thread's own.
struct LocalLimbs {
  std::int64_t value[17];
  KOKKOS_INLINE_FUNCTION std::int64_t& operator[](int i) { return value[i]; }
};
/// Limbs in a group's scratch memory, those of its threads side by side: devices have no registers
/// that are found by a number.
struct SharedLimbs {
  std::int64_t* first;
  int stride;
  KOKKOS_INLINE_FUNCTION std::int64_t& operator[](int i) { return first[i * stride]; }
};
using WideSum = WideSumIn<LocalLimbs>;

}  // namespace KokkosMX::Impl

#endif
