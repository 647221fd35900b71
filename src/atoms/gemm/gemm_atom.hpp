// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_GEMM_GEMM_ATOM_HPP
#define KOKKOSMX_SRC_ATOMS_GEMM_GEMM_ATOM_HPP

/// \file gemm_atom.hpp
/// What a GEMM atom is: one matrix instruction (or a plain loop) over integers made of codes. It
/// knows no Views, no tiling and no tiers; the kernel owns those.

#include <concepts>
#include <cstdint>

namespace KokkosMX::Impl {

template <class A>
concept GemmAtom = requires(typename A::Accumulator& accumulator, typename A::element* panel,
                            const typename A::element* operand, const std::uint8_t* codes, int i) {
  { A::name } -> std::convertible_to<const char*>;
  { A::M } -> std::convertible_to<int>;
  { A::N } -> std::convertible_to<int>;
  { A::lanes } -> std::convertible_to<int>;
  // Codes may be shifted left by up to max_shift bits and still fit an element.
  { A::max_shift } -> std::convertible_to<int>;
  // Sums are exact where n_i * n_j < 2^certificate_bits (RowSummary).
  { A::certificate_bits } -> std::convertible_to<int>;
  { accumulator.value[0] } -> std::convertible_to<std::int64_t>;
  { A::row_of(i, i) } -> std::same_as<int>;
  { A::col_of(i, i) } -> std::same_as<int>;
  { A::panel_offset(i, i, i) } -> std::same_as<int>;
  A::unpack(codes, i, panel);
  A::multiply_add(accumulator, operand, operand, i, i);
  // One block by one block, from packed codes: for the outputs that no shared panel serves.
  { A::block_product(codes, codes) } -> std::same_as<std::int32_t>;
};

}  // namespace KokkosMX::Impl

#endif
