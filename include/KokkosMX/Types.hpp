// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_TYPES_HPP
#define KOKKOSMX_TYPES_HPP

/// \file Types.hpp
/// Element types, the rules of quantizing, the tiers of the product.
///
/// Formats are those of the OCP Microscaling (MX) specification v1.0. An e2m1 code c in 0..15 has
/// the sign c >> 3 and the magnitude {0, .5, 1, 1.5, 2, 3, 4, 6}[c & 7]. An e8m0 scale s is
/// 2^(s - 127); 255 is NaN, 0 is 2^-127. A block is 32 consecutive elements along K. Two codes lie
/// in a byte, the low nibble holds the even k.

#include <Kokkos_Core.hpp>

#include <cstdint>
#include <stdexcept>
#include <type_traits>

namespace KokkosMX {

/// Elements of a block: they share one e8m0 scale.
inline constexpr int block_size = 32;
/// Bytes of a block's codes.
inline constexpr int block_bytes = 16;

/// A bfloat16 number as its bits (1 sign, 8 exponent, 7 mantissa), 2 bytes on every backend: in a
/// Kokkos built for CPUs, Kokkos::Experimental::bhalf_t may be a float.
struct BFloat16 {
  std::uint16_t bits;
};

/// An IEEE binary16 number as its bits (1 sign, 5 exponent, 10 mantissa), 2 bytes on every backend.
struct Float16 {
  std::uint16_t bits;
};

/// How a block's scale follows from its largest magnitude amax, r being amax's float32 bits. All
/// results are clamped to 0..254; a block of zeros gets 0.
enum class ScaleMode : std::uint8_t {
  /// (r >> 23) - 2: OCP MX v1.0, section 6.3. Values may saturate at 6.
  floor,
  /// (bits(RN(amax / 4)) + 0x7FFFFF) >> 23: the next power of two at or above amax / 4.
  ceil,
  /// (bits(RN(amax / 6)) + 0x7FFFFF) >> 23: the least power of two at which nothing saturates.
  rceil,
  /// ((r + 0x200000) >> 23) - 2: amax rounded to a power of two, threshold 1.75 (AMD Quark, aiter).
  even
};

/// How x * 2^(127 - s) becomes an e2m1 code. Magnitudes above 6 saturate to 6 in both.
enum class Rounding : std::uint8_t {
  /// To nearest, ties to the even code; the sign bit is kept, that of -0 included. What
  /// v_cvt_scalef32_pk_fp4_*, torchao and today's aiter do.
  nearest_even,
  /// To nearest, magnitude ties up (0.25 -> 0.5, 2.5 -> 3, 5 -> 6); what is not below zero as a
  /// float32 product gets sign 0. The reference PyTorch code; aiter before its PRs 975 and 2249.
  ties_up
};

/// What becomes of a block that holds a NaN or an infinity.
enum class NonFinite : std::uint8_t {
  /// Scale 255, all codes 0: every product with the row is NaN. For production.
  ocp,
  /// What the reference PyTorch code's bit tricks give: scale 254 or 0, codes saturate. Exists only
  /// with ScaleMode::even and Rounding::ties_up.
  reference
};

/// The complete rule of quantizing: always named or spelled out, never defaulted.
class QuantizeRule {
 public:
  /// \throws std::invalid_argument (in a constant expression: does not compile) for
  ///   NonFinite::reference with anything but ScaleMode::even and Rounding::ties_up.
  constexpr QuantizeRule(ScaleMode scale_mode, Rounding rounding, NonFinite non_finite)
      : scale_mode_(scale_mode), rounding_(rounding), non_finite_(non_finite) {
    if (non_finite == NonFinite::reference &&
        !(scale_mode == ScaleMode::even && rounding == Rounding::ties_up)) {
      throw std::invalid_argument(
          "KokkosMX::QuantizeRule: NonFinite::reference exists only with ScaleMode::even and "
          "Rounding::ties_up");
    }
  }
  KOKKOS_FUNCTION constexpr ScaleMode scale_mode() const { return scale_mode_; }
  KOKKOS_FUNCTION constexpr Rounding rounding() const { return rounding_; }
  KOKKOS_FUNCTION constexpr NonFinite non_finite() const { return non_finite_; }
  friend constexpr bool operator==(const QuantizeRule&, const QuantizeRule&) = default;

 private:
  ScaleMode scale_mode_;
  Rounding rounding_;
  NonFinite non_finite_;
};

/// Named rules.
namespace rules {
/// The reference PyTorch code (gpu-mode/reference-kernels PR 114), bit for bit.
inline constexpr QuantizeRule reference{ScaleMode::even, Rounding::ties_up, NonFinite::reference};
/// OCP MX v1.0, section 6.3; torchao's FLOOR.
inline constexpr QuantizeRule ocp_floor{ScaleMode::floor, Rounding::nearest_even, NonFinite::ocp};
/// The scale of AMD Quark with MI355X's rounding.
inline constexpr QuantizeRule quark_even{ScaleMode::even, Rounding::nearest_even, NonFinite::ocp};
/// No value saturates; torchao's RCEIL.
inline constexpr QuantizeRule rceil{ScaleMode::rceil, Rounding::nearest_even, NonFinite::ocp};
}  // namespace rules

/// The ways in which the exact sum of one output is formed. All give the same bits; they differ in
/// which data they can carry and in cost. Each output takes the first that its certificate allows.
enum class Tier : std::uint8_t {
  /// As the data allow. As an index of counts: outputs that needed no sum (a scale of 255 in their
  /// row or column, alpha == 0).
  automatic = 0,
  /// Codes aligned to their row's least scale in the atom's small integers, one accumulator over K.
  aligned = 1,
  /// Blocks as small integers, summed over K in 64 bits.
  window = 2,
  /// Blocks as small integers, summed over K in as many bits as scales 0..254 can ask for.
  wide = 3
};
/// Length of a View of counts: one for each enumerator of Tier.
inline constexpr int tier_count = 4;

/// What the certificate must know of a row: made while quantizing, or from codes and scales.
/// With m the code's magnitude in halves (0, 1, 2, 3, 4, 6, 8, 12), over the row's blocks b that
/// hold a nonzero magnitude and whose scale s_b is not 255:
///   lo = min s_b, hi = max s_b, n = sum over b of 4^(s_b - lo) * (sum of m^2 in b),
/// n saturating at 2^64 - 1. A row without such a block has lo = hi = n = 0.
/// (By Cauchy-Schwarz, sum_k |a_ik b_jk| <= sqrt(n_i n_j) in units of 2^(lo_i + lo_j - 256).)
struct RowSummary {
  std::uint64_t n;
  std::uint8_t lo;
  std::uint8_t hi;
  /// 1 if any block of the row has scale 255, else 0.
  std::uint8_t has_nan;
  std::uint8_t reserved[5];
};
static_assert(sizeof(RowSummary) == 16);

namespace Impl {

/// The element types of dense operands.
enum class Element : std::uint8_t { f32, bf16, f16 };

template <class T>
inline constexpr bool is_dense_element_v =
    std::is_same_v<std::remove_cv_t<T>, float> || std::is_same_v<std::remove_cv_t<T>, BFloat16> ||
    std::is_same_v<std::remove_cv_t<T>, Float16>;

template <class T>
constexpr Element element_of() {
  static_assert(is_dense_element_v<T>,
                "KokkosMX: dense elements are float, KokkosMX::BFloat16 or KokkosMX::Float16 (see "
                "KokkosMX::reinterpret for 2-byte types of others)");
  if constexpr (std::is_same_v<std::remove_cv_t<T>, float>) {
    return Element::f32;
  } else if constexpr (std::is_same_v<std::remove_cv_t<T>, BFloat16>) {
    return Element::bf16;
  } else {
    return Element::f16;
  }
}

template <class Space, class MemorySpace>
inline constexpr bool accessible_v = Kokkos::SpaceAccessibility<Space, MemorySpace>::accessible;

template <class To, class From>
using copy_const_t = std::conditional_t<std::is_const_v<From>, const To, To>;

}  // namespace Impl

/// The same memory seen as a View of BFloat16 or Float16, without a copy: from uint16_t, from
/// Kokkos' half types where those have 2 bytes, or between the library's own. Rank 1 to 3.
/// The result does not own the memory. Layout and strides are kept (LayoutStride).
template <class To, class View>
auto reinterpret(const View& view) {
  static_assert(std::is_same_v<To, BFloat16> || std::is_same_v<To, Float16>,
                "KokkosMX::reinterpret: the target is BFloat16 or Float16");
  static_assert(sizeof(typename View::value_type) == 2,
                "KokkosMX::reinterpret: the View's elements do not have 2 bytes");
  static_assert(View::rank() >= 1 && View::rank() <= 3,
                "KokkosMX::reinterpret: the View has rank 1, 2 or 3");
  using T = Impl::copy_const_t<To, typename View::value_type>;
  using Unmanaged = Kokkos::MemoryTraits<Kokkos::Unmanaged>;
  using Space = typename View::memory_space;
  auto* data = reinterpret_cast<T*>(view.data());
  if constexpr (View::rank() == 1) {
    return Kokkos::View<T*, Kokkos::LayoutStride, Space, Unmanaged>(
        data, Kokkos::LayoutStride(view.extent(0), view.stride(0)));
  } else if constexpr (View::rank() == 2) {
    return Kokkos::View<T**, Kokkos::LayoutStride, Space, Unmanaged>(
        data, Kokkos::LayoutStride(view.extent(0), view.stride(0), view.extent(1), view.stride(1)));
  } else {
    return Kokkos::View<T***, Kokkos::LayoutStride, Space, Unmanaged>(
        data, Kokkos::LayoutStride(view.extent(0), view.stride(0), view.extent(1), view.stride(1),
                                   view.extent(2), view.stride(2)));
  }
}

}  // namespace KokkosMX

#endif
