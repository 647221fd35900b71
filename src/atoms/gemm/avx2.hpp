// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_GEMM_AVX2_HPP
#define KOKKOSMX_SRC_ATOMS_GEMM_AVX2_HPP

/// \file avx2.hpp
/// The loops compiled for AVX2, in a library that is built without -march.

#include "../atom_function.hpp"
#include "gemm_atom.hpp"
#include "loops.hpp"

#include <cstdint>

#if KOKKOSMX_HAVE_X86_ATOMS

namespace KokkosMX::Impl {

struct Avx2GemmAtom : Int16Loops {
  static constexpr const char* name = "avx2";

  KOKKOSMX_AVX2_FUNCTION static void unpack(const std::uint8_t* codes, int shift, element* to) {
    Int16Loops::unpack(codes, shift, to);
  }
  KOKKOSMX_AVX2_FUNCTION static void multiply_add(Accumulator& accumulator, const element* a,
                                                  const element* b, int count, int blocks) {
    Int16Loops::multiply_add(accumulator, a, b, count, blocks);
  }
  KOKKOSMX_AVX2_FUNCTION static std::int32_t block_product(const std::uint8_t* a,
                                                           const std::uint8_t* b) {
    return Int16Loops::block_product(a, b);
  }
};
static_assert(GemmAtom<Avx2GemmAtom>);

}  // namespace KokkosMX::Impl

#endif

#endif
