// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_GEMM_FRAGMENT_ATOM_HPP
#define KOKKOSMX_SRC_ATOMS_GEMM_FRAGMENT_ATOM_HPP

/// \file fragment_atom.hpp
/// What an atom of a device's matrix unit is: an instruction that all lanes of a wave execute
/// together on fragments of the operands, of which every lane holds a part.
///
/// A fragment of an operand is 16 rows by some blocks of K; a lane loads the 16 bytes of codes of
/// one row and block at a time, and a 32-bit word of scales: those of its row, and of the row 16
/// below, in its block and in the one 4 to the right (the words of Tile32x8), of which an
/// instruction uses the byte that its selector names: 2 * (4 to the right) + (16 below). Scales
/// come as distances to the row's least scale, modulo 32.

#include <Kokkos_Core.hpp>

#include <concepts>
#include <cstdint>

#include "../words.hpp"

namespace KokkosMX::Impl {

template <class A>
concept FragmentAtom = requires(typename A::Accumulator& accumulator, const Words& codes,
                                std::uint32_t number, int i) {
  { A::name } -> std::convertible_to<const char*>;
  { A::lanes } -> std::convertible_to<int>;
  // Rows (columns of C) and blocks of K of a fragment.
  { A::rows } -> std::convertible_to<int>;
  { A::blocks } -> std::convertible_to<int>;
  // Outputs that a lane holds.
  { A::values } -> std::convertible_to<int>;
  // An operand's part: which row and block of the fragment a lane loads.
  { A::row_of_codes(i) } -> std::same_as<int>;
  { A::block_of_codes(i) } -> std::same_as<int>;
  // The result: where value i of a lane belongs.
  { A::row_of(i, i) } -> std::same_as<int>;
  { A::col_of(i, i) } -> std::same_as<int>;
  // As of GemmAtom.
  { A::max_shift } -> std::convertible_to<int>;
  { A::certificate_bits } -> std::convertible_to<int>;
  // Exact by hardware's word alone: used where the self-check has passed (self_check.hpp).
  { A::needs_self_check } -> std::convertible_to<bool>;
  // A lane's part of an operand, as the instruction takes it.
  { A::template operand<0>(codes, number) } -> std::same_as<typename A::Operand>;
  // A value's bits, sums of such, and RN_f32(value * 2^exponent) in units of exact_sum.hpp.
  { A::bits(accumulator, i) } -> std::same_as<std::uint32_t>;
  { A::add(number, number) } -> std::same_as<std::uint32_t>;
  { A::round(number, i) } -> std::same_as<std::uint32_t>;
  // And multiply_add<SelectA, SelectB>(a, b, c): c(lane) += a(lane) * b(lane)^T for all lanes of
  // a wave; on devices every lane asks for its own, with any number.
};

/// The distances of a word of scales to the least ones, modulo 32. A block whose distance does not
/// lie in 0..31 holds zeros, or its row's outputs are not certified.
KOKKOS_FORCEINLINE_FUNCTION std::uint32_t distances(std::uint32_t scales, std::uint32_t least) {
  constexpr std::uint32_t low = 0x1F1F1F1Fu, borrow = 0x20202020u;
  return (((scales & low) | borrow) - (least & low)) & low;
}

}  // namespace KokkosMX::Impl

#endif
