// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_GEMM_PORTABLE_HPP
#define KOKKOSMX_SRC_ATOMS_GEMM_PORTABLE_HPP

/// \file portable.hpp
/// The generic atom, for any execution space. All other atoms must match it.

#include "../atom_function.hpp"
#include "gemm_atom.hpp"
#include "loops.hpp"

#include <cstdint>

namespace KokkosMX::Impl {

struct PortableGemmAtom : Int16Loops {
  static constexpr const char* name = "portable";

  KOKKOSMX_ATOM_FUNCTION static void unpack(const std::uint8_t* codes, int shift, element* to) {
    Int16Loops::unpack(codes, shift, to);
  }
  KOKKOSMX_ATOM_FUNCTION static void multiply_add(Accumulator& accumulator, const element* a,
                                                  const element* b, int count, int blocks) {
    Int16Loops::multiply_add(accumulator, a, b, count, blocks);
  }
  KOKKOSMX_ATOM_FUNCTION static std::int32_t block_product(const std::uint8_t* a,
                                                           const std::uint8_t* b) {
    return Int16Loops::block_product(a, b);
  }
};
static_assert(GemmAtom<PortableGemmAtom>);

}  // namespace KokkosMX::Impl

#endif
