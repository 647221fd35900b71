// SPDX-License-Identifier: Apache-2.0

// A layout is a type: what is shuffled is no plain operand, and what is read is not written. Rules
// that do not exist are no constant expressions.

#include "Operands.hpp"

using KokkosMX::NonFinite;
using KokkosMX::QuantizeRule;
using KokkosMX::Rounding;
using KokkosMX::ScaleMode;
using ConstPlain = Matrix<RowMajor, RowMajor, Host, const std::uint8_t>;

void conversions([[maybe_unused]] ConstPlain& plain, [[maybe_unused]] const Exec& exec) {
#if defined(CASE_1)
  // expect: error
  plain = an<Matrix<Tile16x16, RowMajor>>();
#elif defined(CASE_2)
  // expect: error
  (void)Codes<RowMajor>(an<Codes<Tile16x16>>());
#elif defined(CASE_3)
  // expect: error
  KokkosMX::quantize(exec, an<View<float**>>(), plain, rule);
#elif defined(CASE_4)
  // expect: constant expression
  constexpr QuantizeRule wrong(ScaleMode::even, Rounding::nearest_even, NonFinite::reference);
#endif
}
