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
