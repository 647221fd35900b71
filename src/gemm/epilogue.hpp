// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_EPILOGUE_HPP
#define KOKKOSMX_SRC_GEMM_EPILOGUE_HPP

/// \file epilogue.hpp
/// From the exact product, rounded to float32, to the element that is stored.

#include <KokkosMX/Types.hpp>

#include "../numbers.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>

namespace KokkosMX::Impl {

inline constexpr std::uint32_t f32_one = 0x3F800000u;

struct Epilogue {
  void* c;
  Element element;
  std::int64_t batch, row, col;  ///< strides in elements
  std::uint32_t alpha, beta;     ///< float32 bits
  const float* bias;             ///< null where there is none
  std::int64_t bias_stride;

  KOKKOS_INLINE_FUNCTION static bool is_zero(std::uint32_t x) { return (x & ~f32_sign) == 0; }
  /// No operand is read, and t starts as +0.
  KOKKOS_INLINE_FUNCTION bool skips_product() const { return is_zero(alpha); }

  /// C is the product, converted.
  bool is_plain() const { return alpha == f32_one && is_zero(beta) && bias == nullptr; }

  /// t = RN(alpha * P); if beta != 0: t = RN(t + RN(beta * C)); with a bias: t = RN(t + bias);
  /// C = RNE(t).
  KOKKOS_INLINE_FUNCTION void operator()(std::int64_t b, std::int64_t i, std::int64_t j,
                                         std::uint32_t product) const {
    const std::int64_t at = b * batch + i * row + j * col;
    // Every NaN that is made is canonical, so a product with 1 changes nothing.
    std::uint32_t t = skips_product()    ? 0u
                      : alpha == f32_one ? product
                                         : multiply_f32(alpha, product);
    if (!is_zero(beta)) t = add_f32(t, multiply_f32(beta, load_as_f32(element, c, at)));
    if (bias != nullptr) t = add_f32(t, load<std::uint32_t>(bias + j * bias_stride));
    store_from_f32(element, c, at, t);
  }
};

}  // namespace KokkosMX::Impl

#endif
