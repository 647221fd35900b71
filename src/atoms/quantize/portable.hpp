// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_QUANTIZE_PORTABLE_HPP
#define KOKKOSMX_SRC_ATOMS_QUANTIZE_PORTABLE_HPP

/// \file portable.hpp
/// The generic atom, for any execution space. All other atoms must match it.

#include <KokkosMX/Types.hpp>

#include "../atom_function.hpp"
#include "loops.hpp"

#include <cstdint>

namespace KokkosMX::Impl {

struct PortableQuantizeAtom {
  static constexpr const char* name = "portable";

  template <class Format>
  KOKKOSMX_ATOM_FUNCTION static BlockResult quantize(const unsigned char* x, std::uint8_t* codes,
                                                     QuantizeRule rule) {
    return QuantizeLoops<Format>::quantize(x, codes, rule);
  }
  template <class Format>
  KOKKOSMX_ATOM_FUNCTION static void dequantize(const std::uint8_t* codes, std::uint8_t scale,
                                                unsigned char* x) {
    QuantizeLoops<Format>::dequantize(codes, scale, x);
  }
  KOKKOSMX_ATOM_FUNCTION static std::uint32_t sum_of_squares(const std::uint8_t* codes) {
    return sum_of_squares_loop(codes);
  }
};

}  // namespace KokkosMX::Impl

#endif
