// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_GEMM_MFMA_HPP
#define KOKKOSMX_SRC_ATOMS_GEMM_MFMA_HPP

/// \file mfma.hpp
/// Atoms for the matrix units of AMD's CDNA 3 (gfx942) and CDNA 4 (gfx950).
///
/// The atoms are what is known of the instructions, and compile on hosts; a Unit executes one:
/// a device's, or a test's model of it.

#include "../../numbers.hpp"
#include "../words.hpp"
#include "fragment_atom.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>
#include <cstring>

namespace KokkosMX::Impl {

/// Lanes of the 16 x 16 instructions. A: lane l holds row l % 16 and the l / 16th part of K, B the
/// same of its rows. D: lane l holds column l % 16 (a row of B) of rows 4 * (l / 16) + v.
struct MfmaLanes {
  static constexpr int lanes = 64;
  static constexpr int rows = 16;
  static constexpr int blocks = 4;
  static constexpr int values = 4;

  KOKKOS_INLINE_FUNCTION static constexpr int row_of_codes(int lane) { return lane % 16; }
  KOKKOS_INLINE_FUNCTION static constexpr int block_of_codes(int lane) { return lane / 16; }
  KOKKOS_INLINE_FUNCTION static constexpr int row_of(int lane, int v) {
    return 4 * (lane / 16) + v;
  }
  KOKKOS_INLINE_FUNCTION static constexpr int col_of(int lane, int /*v*/) { return lane % 16; }
};

/// v_mfma_scale_f32_16x16x128_f8f6f4 on FP4: the codes as they are in memory, one scale a lane.
///
/// Scales are distances to the row's least scale, brought to 2^(distance - 31) so that operands,
/// products and sums stay near 1: a value is in units of 2^-64 (2^-31 each, and products of halves
/// are quarters). Sums whose magnitudes stay within 2^24 units are exact in float32 in any order.
template <class Unit>
struct ScaledFp4Atom : MfmaLanes {
  static constexpr const char* name = "mfma_scale_fp4";
  static constexpr int max_shift = 31;
  static constexpr int certificate_bits = 48;
  static constexpr bool needs_self_check = true;
  /// Exponent of the unit of values.
  static constexpr int unit = -64;
  /// e8m0 of distance 0: 2^-31.
  static constexpr std::uint32_t least_scales = 0x60606060u;

  struct Accumulator {
    float value[values] __attribute__((aligned(16)));
  };
  /// Scales in a register of the lane's own: hardware takes other bits of others.
  struct Operand {
    Words codes;
    std::uint32_t scales;
  };

  template <int Select>
  KOKKOS_FORCEINLINE_FUNCTION static Operand operand(const Words& codes, std::uint32_t distances) {
    return {codes, distances | least_scales};
  }
  template <int SelectA, int SelectB, class A, class B, class C>
  KOKKOS_FORCEINLINE_FUNCTION static void multiply_add(const A& a, const B& b, const C& c) {
    Unit::template multiply_add<SelectA, SelectB>(a, b, c);
  }
  KOKKOS_FORCEINLINE_FUNCTION static std::uint32_t bits(const Accumulator& accumulator, int v) {
    return bits_of(accumulator.value[v]);
  }
  /// Exact, as all sums of certified outputs are.
  KOKKOS_FORCEINLINE_FUNCTION static std::uint32_t add(std::uint32_t x, std::uint32_t y) {
    float fx, fy;
    std::memcpy(&fx, &x, 4);
    std::memcpy(&fy, &y, 4);
    return bits_of(fx + fy);
  }
  KOKKOS_FORCEINLINE_FUNCTION static std::uint32_t round(std::uint32_t value, int exponent) {
    return scale_f32(value, exponent - unit);
  }

 private:
  KOKKOS_FORCEINLINE_FUNCTION static std::uint32_t bits_of(float x) {
    std::uint32_t result;
    std::memcpy(&result, &x, 4);
    return result;
  }
};

/// v_mfma_i32_16x16x{64,32}_i8 on codes aligned to their row's least scale: exact by definition.
/// A lane's 32 bytes are its block's low nibbles, then its high ones, in as many instructions as
/// Unit's lane_bytes make of them.
template <class Unit>
struct AlignedInt8Atom : MfmaLanes {
  static constexpr const char* name = Unit::name;
  /// 12 halves << 3 = 96 fits a byte.
  static constexpr int max_shift = 3;
  static constexpr int certificate_bits = 62;
  static constexpr bool needs_self_check = false;

  struct Accumulator {
    std::int32_t value[values] __attribute__((aligned(16)));
  };
  struct Operand {
    std::uint32_t bytes[8];
  };

  template <int Select>
  KOKKOS_FORCEINLINE_FUNCTION static Operand operand(const Words& codes, std::uint32_t distances) {
    const std::uint32_t shift = distances >> (8 * Select) & 7u;
    // Bytes of the eight magnitudes, and of their negatives, shifted.
    const std::uint32_t keep = ~((0x01010101u << shift) - 0x01010101u);
    const std::uint32_t low = 0x03020100u << shift, high = 0x0C080604u << shift;
    const std::uint32_t minus_low = 0xFDFEFF00u << shift & keep;
    const std::uint32_t minus_high = 0xF4F8FAFCu << shift & keep;
    Operand result;
    for (int i = 0; i < 8; ++i) {
      const std::uint32_t nibbles = codes.w[i % 4] >> (i < 4 ? 0 : 4);
      const std::uint32_t index = nibbles & 0x07070707u;
      const std::uint32_t sign = nibbles >> 3 & 0x01010101u;
      const std::uint32_t negative = (sign << 8) - sign;
      result.bytes[i] = (bytes_at(minus_low, minus_high, index) & negative) |
                        (bytes_at(low, high, index) & ~negative);
    }
    return result;
  }
  template <int SelectA, int SelectB, class A, class B, class C>
  KOKKOS_FORCEINLINE_FUNCTION static void multiply_add(const A& a, const B& b, const C& c) {
    constexpr int words = Unit::lane_bytes / 4;
    for (int first = 0; first < 8; first += words) {
      Unit::multiply_add([&](int lane) { return a(lane).bytes + first; },
                         [&](int lane) { return b(lane).bytes + first; }, c);
    }
  }
  KOKKOS_FORCEINLINE_FUNCTION static std::uint32_t bits(const Accumulator& accumulator, int v) {
    return static_cast<std::uint32_t>(accumulator.value[v]);
  }
  KOKKOS_FORCEINLINE_FUNCTION static std::uint32_t add(std::uint32_t x, std::uint32_t y) {
    return x + y;
  }
  KOKKOS_FORCEINLINE_FUNCTION static std::uint32_t round(std::uint32_t value, int exponent) {
    return round_to_f32(std::int64_t{static_cast<std::int32_t>(value)}, exponent);
  }

 private:
  /// Byte i of the result is byte index_i (0..7) of low and high.
  KOKKOS_FORCEINLINE_FUNCTION static std::uint32_t bytes_at(std::uint32_t low, std::uint32_t high,
                                                            std::uint32_t index) {
#if defined(__HIP_DEVICE_COMPILE__)
    return __builtin_amdgcn_perm(high, low, index);
#else
    const std::uint64_t table = std::uint64_t{high} << 32 | low;
    std::uint32_t result = 0;
    for (int i = 0; i < 4; ++i) {
      const auto byte = static_cast<std::uint32_t>(table >> (8 * (index >> (8 * i) & 7)) & 0xFFu);
      result |= byte << (8 * i);
    }
    return result;
#endif
  }
};

#if defined(__HIPCC__)
/// The device's instructions. They exist where the device has them, and no host calls them.
struct MfmaUnit {
  using Float4 = float __attribute__((ext_vector_type(4)));
  using Int4 = int __attribute__((ext_vector_type(4)));
  using Int8 = int __attribute__((ext_vector_type(8)));

  template <class To, class From>
  KOKKOS_FORCEINLINE_FUNCTION static To as(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    __builtin_memcpy(&to, &from, sizeof(To));
    return to;
  }
  KOKKOS_FORCEINLINE_FUNCTION static Int4 four(const std::uint32_t* w) {
    return {static_cast<int>(w[0]), static_cast<int>(w[1]), static_cast<int>(w[2]),
            static_cast<int>(w[3])};
  }
};

struct MfmaScaledFp4 : MfmaUnit {
  template <int SelectA, int SelectB, class A, class B, class C>
  KOKKOS_FORCEINLINE_FUNCTION static void multiply_add([[maybe_unused]] const A& a,
                                                       [[maybe_unused]] const B& b,
                                                       [[maybe_unused]] const C& c) {
#if defined(__gfx950__)
    constexpr int fp4 = 4;
    const auto& x = a(0);
    const auto& y = b(0);
    auto& sum = c(0);
    const Int4 xc = four(x.codes.w), yc = four(y.codes.w);
    const Int8 x_codes = {xc[0], xc[1], xc[2], xc[3], 0, 0, 0, 0};
    const Int8 y_codes = {yc[0], yc[1], yc[2], yc[3], 0, 0, 0, 0};
    const Float4 result = __builtin_amdgcn_mfma_scale_f32_16x16x128_f8f6f4(
        x_codes, y_codes, as<Float4>(sum.value), fp4, fp4, SelectA, static_cast<int>(x.scales),
        SelectB, static_cast<int>(y.scales));
    __builtin_memcpy(sum.value, &result, sizeof(result));
#endif
  }
};

/// CDNA 4 multiplies 64 elements of K by an instruction, CDNA 3 32.
struct MfmaInt8 : MfmaUnit {
  static constexpr const char* name = "mfma_i8";
  static constexpr int lane_bytes = 16;
  template <class A, class B, class C>
  KOKKOS_FORCEINLINE_FUNCTION static void multiply_add([[maybe_unused]] const A& a,
                                                       [[maybe_unused]] const B& b,
                                                       [[maybe_unused]] const C& c) {
#if defined(__gfx950__)
    auto& sum = c(0);
    const Int4 result =
        __builtin_amdgcn_mfma_i32_16x16x64_i8(four(a(0)), four(b(0)), as<Int4>(sum.value), 0, 0, 0);
    __builtin_memcpy(sum.value, &result, sizeof(result));
#elif defined(__gfx942__)
    const auto two = [](const std::uint32_t* w) {
      return static_cast<long>(std::uint64_t{w[1]} << 32 | w[0]);
    };
    auto& sum = c(0);
    Int4 result = as<Int4>(sum.value);
    for (int i = 0; i < 4; i += 2) {
      result = __builtin_amdgcn_mfma_i32_16x16x32_i8(two(a(0) + i), two(b(0) + i), result, 0, 0, 0);
    }
    __builtin_memcpy(sum.value, &result, sizeof(result));
#endif
  }
};
#endif

}  // namespace KokkosMX::Impl

#endif
