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
    KOKKOS_IF_ON_HOST((return QuantizeLoops<Format>::quantize(x, codes, rule);))
    KOKKOS_IF_ON_DEVICE((return QuantizeLoops<Format>::quantize_elements(x, codes, rule);))
  }
  template <class Format, bool Sums>
  KOKKOS_INLINE_FUNCTION static bool quantize_rows(const BlockRows& rows) {
    return quantize_rows_by_blocks<PortableQuantizeAtom, Format, Sums>(rows);
  }
  template <class Format>
  KOKKOS_INLINE_FUNCTION static void dequantize_rows(const BlockRows& rows) {
    dequantize_rows_by_blocks<PortableQuantizeAtom, Format>(rows);
  }
  KOKKOS_INLINE_FUNCTION static void summarize_rows(const BlockRows& rows) {
    summarize_rows_by_blocks<PortableQuantizeAtom>(rows);
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
