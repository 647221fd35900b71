// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_NUMBERS_HPP
#define KOKKOSMX_SRC_NUMBERS_HPP

/// \file numbers.hpp
/// Floating-point numbers as integers: rounding, conversion, and the two float32 operations that
/// the epilogue needs. No floating-point instruction is used, so neither flags nor the
/// floating-point environment (rounding mode, flush to zero, denormals are zero) can change a bit.

#include <KokkosMX/Types.hpp>

#include <Kokkos_BitManipulation.hpp>
#include <Kokkos_Core.hpp>

#include <cstdint>
#include <cstring>

namespace KokkosMX::Impl {

inline constexpr std::uint32_t f32_nan = 0x7FC00000u;
inline constexpr std::uint32_t f32_inf = 0x7F800000u;
inline constexpr std::uint32_t f32_sign = 0x80000000u;

/// Reads or writes a number of the caller's. Host memory may be unaligned.
template <class T>
KOKKOS_INLINE_FUNCTION T load(const void* from) {
  KOKKOS_IF_ON_HOST((T value; std::memcpy(&value, from, sizeof(T)); return value;))
  KOKKOS_IF_ON_DEVICE((return *static_cast<const T*>(from);))
}
template <class T>
KOKKOS_INLINE_FUNCTION void store(void* to, T value) {
  KOKKOS_IF_ON_HOST((std::memcpy(to, &value, sizeof(T));))
  KOKKOS_IF_ON_DEVICE((*static_cast<T*>(to) = value;))
}

KOKKOS_INLINE_FUNCTION int leading_zeros(std::uint64_t x) {
  return Kokkos::Experimental::countl_zero_builtin(x);
}

/// RN_f32((-1)^negative * (magnitude + s) * 2^exponent) as bits, where s lies strictly between 0
/// and 1 if sticky and is 0 otherwise. Zero (and not sticky) is +0. With sticky the magnitude has
/// at least 26 significant bits, or the value lies below half the least subnormal.
KOKKOS_INLINE_FUNCTION std::uint32_t round_to_f32(bool negative, std::uint64_t magnitude,
                                                  bool sticky, int exponent) {
  if (magnitude == 0) return 0;
  const std::uint32_t sign = negative ? f32_sign : 0u;
  const int zeros = leading_zeros(magnitude);
  magnitude <<= zeros;
  const int leading = exponent - zeros + 63;  // the exponent of the leading bit
  if (leading > 127) return sign | f32_inf;
  // The last kept bit is 2^(leading - 23), or 2^-149 for subnormals.
  const int drop = leading >= -126 ? 40 : 40 + (-126 - leading);
  if (drop > 64) return sign;
  const std::uint64_t kept = drop == 64 ? 0 : magnitude >> drop;
  const std::uint64_t rest = drop == 64 ? magnitude : magnitude << (64 - drop);
  const std::uint64_t half = std::uint64_t{1} << 63;
  const bool up = rest > half || (rest == half && (sticky || (kept & 1) != 0));
  const std::uint32_t biased = leading >= -126 ? static_cast<std::uint32_t>(leading + 126) : 0u;
  return sign | ((biased << 23) + static_cast<std::uint32_t>(kept) + (up ? 1u : 0u));
}

/// RN_f32(sum * 2^exponent).
KOKKOS_INLINE_FUNCTION std::uint32_t round_to_f32(std::int64_t sum, int exponent) {
  const bool negative = sum < 0;
  const std::uint64_t bits = static_cast<std::uint64_t>(sum);
  return round_to_f32(negative, negative ? 0 - bits : bits, false, exponent);
}

KOKKOS_INLINE_FUNCTION bool is_nan_f32(std::uint32_t x) { return (x & ~f32_sign) > f32_inf; }

/// A finite float32 as integer * 2^exponent.
struct Unpacked {
  std::uint64_t magnitude;
  int exponent;
};
KOKKOS_INLINE_FUNCTION Unpacked unpack_f32(std::uint32_t x) {
  const std::uint32_t biased = (x >> 23) & 0xFFu;
  const std::uint32_t fraction = x & 0x7FFFFFu;
  return biased == 0 ? Unpacked{fraction, -149}
                     : Unpacked{fraction | 0x800000u, static_cast<int>(biased) - 150};
}

/// RN(x * 2^exponent) for a normal x or a zero, which becomes +0.
KOKKOS_INLINE_FUNCTION std::uint32_t scale_f32(std::uint32_t x, int exponent) {
  if ((x & ~f32_sign) == 0) return 0;
  const int biased = static_cast<int>(x >> 23 & 0xFFu) + exponent;
  if (biased >= 1 && biased <= 254) return x + (static_cast<std::uint32_t>(exponent) << 23);
  const Unpacked u = unpack_f32(x & ~f32_sign);
  return round_to_f32((x & f32_sign) != 0, u.magnitude, false, u.exponent + exponent);
}

/// RN(a * b), IEEE 754; every NaN is canonical.
KOKKOS_INLINE_FUNCTION std::uint32_t multiply_f32(std::uint32_t a, std::uint32_t b) {
  const std::uint32_t sign = (a ^ b) & f32_sign;
  const std::uint32_t a_abs = a & ~f32_sign, b_abs = b & ~f32_sign;
  if (a_abs >= f32_inf || b_abs >= f32_inf) {
    const bool nan = a_abs > f32_inf || b_abs > f32_inf || a_abs == 0 || b_abs == 0;
    return nan ? f32_nan : sign | f32_inf;
  }
  if (a_abs == 0 || b_abs == 0) return sign;
  const Unpacked ua = unpack_f32(a_abs), ub = unpack_f32(b_abs);
  return round_to_f32(sign != 0, ua.magnitude * ub.magnitude, false, ua.exponent + ub.exponent);
}

/// RN(a + b), IEEE 754; every NaN is canonical.
KOKKOS_INLINE_FUNCTION std::uint32_t add_f32(std::uint32_t a, std::uint32_t b) {
  std::uint32_t a_abs = a & ~f32_sign, b_abs = b & ~f32_sign;
  if (a_abs < b_abs) {  // |a| >= |b| from here on
    const std::uint32_t t = a;
    a = b;
    b = t;
    a_abs = a & ~f32_sign;
    b_abs = b & ~f32_sign;
  }
  const bool opposite = ((a ^ b) & f32_sign) != 0;
  if (a_abs >= f32_inf) {
    return a_abs > f32_inf || (b_abs == f32_inf && opposite) ? f32_nan : a;
  }
  if (b_abs == 0) return a_abs == 0 ? a & b : a;
  const Unpacked ua = unpack_f32(a_abs), ub = unpack_f32(b_abs);
  const bool negative = (a & f32_sign) != 0;
  const int distance = ua.exponent - ub.exponent;
  if (distance <= 38) {
    const std::uint64_t high = ua.magnitude << distance;
    return round_to_f32(negative, opposite ? high - ub.magnitude : high + ub.magnitude, false,
                        ub.exponent);
  }
  const std::uint64_t high = ua.magnitude << 38;  // b is less than one unit of this
  return round_to_f32(negative, opposite ? high - 1 : high, true, ua.exponent - 38);
}

/// RNE(x) in bf16.
KOKKOS_INLINE_FUNCTION std::uint16_t f32_to_bf16(std::uint32_t x) {
  if (is_nan_f32(x)) return 0x7FC0;
  return static_cast<std::uint16_t>((x + 0x7FFFu + ((x >> 16) & 1u)) >> 16);
}

/// RNE(x) in f16; beyond 65504 by IEEE's rule.
KOKKOS_INLINE_FUNCTION std::uint16_t f32_to_f16(std::uint32_t x) {
  const std::uint32_t sign = (x >> 16) & 0x8000u;
  const std::uint32_t magnitude = x & ~f32_sign;
  std::uint32_t bits;
  if (magnitude > f32_inf) return 0x7E00;
  if (magnitude >= 0x477FF000u) {  // 65520 and above
    bits = 0x7C00;
  } else if (magnitude >= 0x38800000u) {  // 2^-14 and above
    bits = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
  } else if (magnitude < 0x33000000u) {  // below 2^-25
    bits = 0;
  } else {
    const int drop = 126 - static_cast<int>(magnitude >> 23);  // 14..24
    const std::uint32_t whole = (magnitude & 0x7FFFFFu) | 0x800000u;
    const std::uint32_t kept = whole >> drop;
    const std::uint32_t rest = whole & ((1u << drop) - 1u);
    const std::uint32_t half = 1u << (drop - 1);
    bits = kept + (rest > half || (rest == half && (kept & 1u) != 0) ? 1u : 0u);
  }
  return static_cast<std::uint16_t>(sign | bits);
}

/// The exact float32 of a finite or infinite f16; NaN becomes a NaN.
KOKKOS_INLINE_FUNCTION std::uint32_t f16_to_f32(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
  const std::uint32_t magnitude = h & 0x7FFFu;
  if (magnitude >= 0x7C00u) return sign | f32_inf | (magnitude & 0x3FFu) << 13;
  if (magnitude >= 0x400u) return sign | ((magnitude << 13) + 0x38000000u);
  return sign | round_to_f32(false, magnitude, false, -24);
}

/// The magnitude of an e2m1 code without its sign (0..7) in halves.
template <class T>
KOKKOS_INLINE_FUNCTION T halves_of_magnitude(T c) {
  return static_cast<T>(c + (c > 4 ? c - 4 : 0) + (c == 7 ? 2 : 0));
}

/// The magnitude of an e2m1 code (its sign is ignored) in halves: 0, 1, 2, 3, 4, 6, 8, 12. T is any
/// signed integer: loops over narrow ones become vector code.
template <class T>
KOKKOS_INLINE_FUNCTION T halves_of(T code) {
  return halves_of_magnitude(static_cast<T>(code & 7));
}

/// The same with the code's sign (bit 3); code is in 0..15.
template <class T>
KOKKOS_INLINE_FUNCTION T signed_halves_of(T code) {
  const T mask = static_cast<T>(-(code >> 3));
  return static_cast<T>((halves_of(code) ^ mask) - mask);
}

/// How a dense element lies in memory: its width, and where its exponent begins.
struct F32Format {
  using bits = std::uint32_t;
  static constexpr int mantissa = 23;
  static constexpr int bias = 127;
  static constexpr std::uint32_t inf = f32_inf;
  KOKKOS_INLINE_FUNCTION static std::uint32_t to_f32(bits x) { return x; }
  KOKKOS_INLINE_FUNCTION static bits from_f32(std::uint32_t x) {
    return is_nan_f32(x) ? f32_nan : x;
  }
};
struct BF16Format {
  using bits = std::uint16_t;
  static constexpr int mantissa = 7;
  static constexpr int bias = 127;
  static constexpr std::uint32_t inf = 0x7F80u;
  KOKKOS_INLINE_FUNCTION static std::uint32_t to_f32(bits x) {
    return static_cast<std::uint32_t>(x) << 16;
  }
  KOKKOS_INLINE_FUNCTION static bits from_f32(std::uint32_t x) { return f32_to_bf16(x); }
};
struct F16Format {
  using bits = std::uint16_t;
  static constexpr int mantissa = 10;
  static constexpr int bias = 15;
  static constexpr std::uint32_t inf = 0x7C00u;
  KOKKOS_INLINE_FUNCTION static std::uint32_t to_f32(bits x) { return f16_to_f32(x); }
  KOKKOS_INLINE_FUNCTION static bits from_f32(std::uint32_t x) { return f32_to_f16(x); }
};

/// Calls f with the format of an element type.
template <class F>
void with_format(Element element, F&& f) {
  switch (element) {
    case Element::f32:
      f(F32Format{});
      return;
    case Element::bf16:
      f(BF16Format{});
      return;
    case Element::f16:
      f(F16Format{});
      return;
  }
}

/// The same at run time, inside kernels where the type changes nothing else.
KOKKOS_INLINE_FUNCTION std::uint32_t load_as_f32(Element element, const void* base,
                                                 std::int64_t index) {
  const auto* bytes = static_cast<const unsigned char*>(base);
  switch (element) {
    case Element::f32:
      return load<std::uint32_t>(bytes + 4 * index);
    case Element::bf16:
      return BF16Format::to_f32(load<std::uint16_t>(bytes + 2 * index));
    default:
      return F16Format::to_f32(load<std::uint16_t>(bytes + 2 * index));
  }
}
KOKKOS_INLINE_FUNCTION void store_from_f32(Element element, void* base, std::int64_t index,
                                           std::uint32_t x) {
  auto* bytes = static_cast<unsigned char*>(base);
  switch (element) {
    case Element::f32:
      store(bytes + 4 * index, F32Format::from_f32(x));
      return;
    case Element::bf16:
      store(bytes + 2 * index, BF16Format::from_f32(x));
      return;
    default:
      store(bytes + 2 * index, F16Format::from_f32(x));
      return;
  }
}

}  // namespace KokkosMX::Impl

#endif
