// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_QUANTIZE_AVX2_HPP
#define KOKKOSMX_SRC_ATOMS_QUANTIZE_AVX2_HPP

/// \file avx2.hpp
/// The loops compiled for AVX2, in a library that is built without -march.

#include <KokkosMX/Types.hpp>

#include "../atom_function.hpp"
#include "loops.hpp"

#include <cstdint>

#if KOKKOSMX_HAVE_X86_ATOMS

namespace KokkosMX::Impl {

struct Avx2QuantizeAtom {
  static constexpr const char* name = "avx2";

  template <class Format>
  KOKKOSMX_AVX2_FUNCTION static BlockResult quantize(const unsigned char* x, std::uint8_t* codes,
                                                     QuantizeRule rule) {
    return QuantizeLoops<Format>::quantize(x, codes, rule);
  }
  template <class Format, bool Sums>
  static RowSummary quantize_row(const unsigned char* x, std::int64_t blocks, std::uint8_t* codes,
                                 std::int64_t codes_stride, std::uint8_t* scales,
                                 std::int64_t scales_stride, QuantizeRule rule) {
    return quantize_row_by_blocks<Avx2QuantizeAtom, Format, Sums>(x, blocks, codes, codes_stride,
                                                                  scales, scales_stride, rule);
  }
  KOKKOSMX_AVX2_FUNCTION static void deinterleave(const std::uint8_t* codes, std::int64_t groups,
                                                  std::uint8_t* plain) {
    deinterleave_loop(codes, groups, plain);
  }
  template <class Format>
  KOKKOSMX_AVX2_FUNCTION static void dequantize(const std::uint8_t* codes, std::uint8_t scale,
                                                unsigned char* x) {
    QuantizeLoops<Format>::dequantize(codes, scale, x);
  }
  KOKKOSMX_AVX2_FUNCTION static std::uint32_t sum_of_squares(const std::uint8_t* codes) {
    return sum_of_squares_loop(codes);
  }
};

}  // namespace KokkosMX::Impl

#endif

#endif
