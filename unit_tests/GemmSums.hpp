// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_UNIT_TESTS_GEMM_SUMS_HPP
#define KOKKOSMX_UNIT_TESTS_GEMM_SUMS_HPP

// Operands whose products are sums chosen beforehand, bit by bit.

#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <utility>
#include <vector>

#include "Inputs.hpp"
#include "ReferenceGemm.hpp"

namespace KokkosMXTest {

struct Operands {
  HostMatrix a, b;
};

// (-1)^negative * value * 2^position in a row's sum.
struct Term {
  bool negative;
  std::uint64_t value;
  int position;
};
using Terms = std::vector<Term>;

// A column multiplies every sum of terms by (-1)^negative * halves * 2^scale; halves is 1, 2, 4, 8.
struct Column {
  bool negative;
  int halves;
  int scale;
};

// Puts a digit 0..15 into a block as signed halves at random places.
inline void put_digit(HostMatrix& x, std::int64_t row, std::int64_t block, int digit, bool negative,
                      const std::vector<int>& signs, Stream& stream) {
  constexpr int magnitudes[] = {12, 8, 6, 4, 3, 2, 1};
  for (const int magnitude : magnitudes) {
    while (digit >= magnitude) {
      const std::int64_t k = 32 * block + stream.between(0, 31);
      if (x.code(row, k) != 0) continue;
      x.set_code(row, k, halves_to_code((negative ? -1 : 1) * signs[k] * magnitude));
      digit -= magnitude;
    }
  }
}

// Sums of terms in units of 2^(-256 + column's scale) * column's halves, among pairs of blocks
// whose sums cancel. A term's hexadecimal digits take a block each, at the scale position + 4 *
// digit. The cancelling blocks of A have scales in pair_first .. pair_last, those of B scales up to
// pair_spread_b above their column's.
struct SumShape {
  int digit_blocks, pairs;
  int pair_first, pair_last;
  int pair_spread_b;
};
inline Operands make_sums(const std::vector<Terms>& rows, const std::vector<Column>& columns,
                          const SumShape& shape, std::uint64_t seed) {
  const int blocks = shape.digit_blocks + 2 * shape.pairs;
  Operands result{HostMatrix(static_cast<std::int64_t>(rows.size()), 32 * blocks),
                  HostMatrix(static_cast<std::int64_t>(columns.size()), 32 * blocks)};
  Stream stream(seed);
  std::vector<int> order(blocks);
  std::iota(order.begin(), order.end(), 0);
  for (int i = blocks - 1; i > 0; --i) std::swap(order[i], order[stream.below(i + 1)]);
  std::vector<int> signs(32 * blocks);
  for (int& sign : signs) sign = stream.below(2) == 0 ? 1 : -1;

  const auto put_pairs = [&](HostMatrix& x, std::int64_t row, int first, int last, bool opposite) {
    for (int pair = 0; pair < shape.pairs; ++pair) {
      const std::int64_t one = order[shape.digit_blocks + 2 * pair];
      const std::int64_t other = order[shape.digit_blocks + 2 * pair + 1];
      const auto scale = static_cast<std::uint8_t>(stream.between(first, last));
      x.scale(row, one) = x.scale(row, other) = scale;
      for (int i = 0; i < 32; ++i) {
        const int halves = code_in_halves(static_cast<int>(stream.below(16)));
        x.set_code(row, 32 * one + i, halves_to_code(halves * signs[32 * one + i]));
        x.set_code(row, 32 * other + i,
                   halves_to_code((opposite ? -1 : 1) * halves * signs[32 * other + i]));
      }
    }
  };

  for (std::size_t row = 0; row < rows.size(); ++row) {
    HostMatrix& a = result.a;
    const auto i = static_cast<std::int64_t>(row);
    int used = 0;
    for (const Term& term : rows[row]) {
      for (int digit = 0; digit < 16; ++digit) {
        const int value = static_cast<int>(term.value >> (4 * digit) & 15);
        if (value == 0) continue;
        const int scale = term.position + 4 * digit;
        if (used == shape.digit_blocks || scale < 0 || scale > 254) {
          throw std::logic_error("make_sums: a term does not fit");
        }
        const std::int64_t block = order[used++];
        a.scale(i, block) = static_cast<std::uint8_t>(scale);
        put_digit(a, i, block, value, term.negative, signs, stream);
      }
    }
    put_pairs(a, i, shape.pair_first, shape.pair_last, true);
  }
  for (std::size_t column = 0; column < columns.size(); ++column) {
    HostMatrix& b = result.b;
    const auto j = static_cast<std::int64_t>(column);
    const Column& c = columns[column];
    if (c.scale < 0 || c.scale + shape.pair_spread_b > 254) {
      throw std::logic_error("make_sums: a column's scale does not fit");
    }
    for (int block = 0; block < shape.digit_blocks; ++block) {
      b.scale(j, order[block]) = static_cast<std::uint8_t>(c.scale);
      for (int i = 0; i < 32; ++i) {
        const std::int64_t k = 32 * order[block] + i;
        b.set_code(j, k, halves_to_code((c.negative ? -1 : 1) * signs[k] * c.halves));
      }
    }
    put_pairs(b, j, c.scale, c.scale + shape.pair_spread_b, false);
  }
  return result;
}

// count columns whose halves * 2^scale is 2^scale, with every split of it and both signs.
inline std::vector<Column> columns_of(int count, int scale) {
  std::vector<Column> columns;
  for (int j = 0; j < count; ++j) {
    const int log_halves = j / 2 % 4;
    columns.push_back({j % 2 == 1, 1 << log_halves, scale - log_halves});
  }
  return columns;
}

// Sums within one unit of a tie between two float32 numbers, formed in 31 bits: 2^22 * x * y, which
// puts the leading bit at 2^29 or 2^30, and a small number whose last bits are a tie's.
// spread 11 on both sides.
inline Operands make_aligned_ties(int m, int n, int scale_a, int scale_b, std::uint64_t seed) {
  constexpr int digit_blocks = 3;
  constexpr int pairs = 2;
  constexpr int blocks = 1 + digit_blocks + 2 * pairs;
  Operands result{HostMatrix(m, 32 * blocks, static_cast<std::uint8_t>(scale_a)),
                  HostMatrix(n, 32 * blocks, static_cast<std::uint8_t>(scale_b))};
  Stream stream(seed);
  const std::vector<int> plain(32 * blocks, 1);
  const auto put_pairs = [&](HostMatrix& x, std::int64_t row, bool opposite) {
    for (int pair = 0; pair < pairs; ++pair) {
      const std::int64_t one = 1 + digit_blocks + 2 * pair;
      for (int i = 0; i < 32; ++i) {
        const int halves = code_in_halves(static_cast<int>(stream.below(16)));
        x.set_code(row, 32 * one + i, halves_to_code(halves));
        x.set_code(row, 32 * (one + 1) + i, halves_to_code(opposite ? -halves : halves));
      }
    }
  };
  for (std::int64_t i = 0; i < m; ++i) {
    HostMatrix& a = result.a;
    // x * y in 256..511 (leading bit 2^30, 7 bits dropped) or 128..255 (6 bits).
    const bool seven = i % 2 == 0;
    a.scale(i, 0) = static_cast<std::uint8_t>(scale_a + 11);
    for (int k = 0; k < 3; ++k) a.set_code(i, k, halves_to_code(seven ? 12 : 6));
    const int drop = seven ? 7 : 6;
    const int delta = static_cast<int>(i / 2 % 3) - 1;
    const int low = (static_cast<int>(stream.below(16)) << drop) + (1 << (drop - 1)) + delta;
    const bool negative = stream.below(2) == 0;
    for (int digit = 0; digit < digit_blocks; ++digit) {
      a.scale(i, 1 + digit) = static_cast<std::uint8_t>(scale_a + 4 * digit);
      put_digit(a, i, 1 + digit, low >> (4 * digit) & 15, negative, plain, stream);
    }
    put_pairs(a, i, true);
  }
  for (std::int64_t j = 0; j < n; ++j) {
    HostMatrix& b = result.b;
    // x * y is 12 or 6 times a sum in 22..28.
    constexpr int halves[][3] = {{12, 8, 2}, {3, 12, 8}, {12, 4, 8},
                                 {6, 8, 12}, {8, 8, 8},  {12, 12, 4}};
    const auto& y = halves[stream.below(6)];
    const int sign = stream.below(2) == 0 ? 1 : -1;
    b.scale(j, 0) = static_cast<std::uint8_t>(scale_b + 11);
    for (int k = 0; k < 3; ++k) b.set_code(j, k, halves_to_code(sign * y[k]));
    const int unit = stream.below(2) == 0 ? 1 : -1;
    for (int digit = 0; digit < digit_blocks; ++digit) {
      for (int i = 0; i < 32; ++i) b.set_code(j, 32 * (1 + digit) + i, halves_to_code(unit));
    }
    put_pairs(b, j, false);
  }
  return result;
}

// A row whose sum of squares is n = 64 * q * 4^shift in units of its least scale, with elements at
// every shift 0..shift: q - 1 at the top, 3 at each between, 4 at the bottom, all of 8 halves. Two
// such rows have the product n: Cauchy and Schwarz's bound is reached.
// halves: instead of 8; last_halves: of one element at shift 0; negative: all signs turned.
struct EdgeRow {
  int halves = 8, last_halves = 8;
  bool negative = false;
  int alternate = 0;  // > 0: every alternate-th element has the other sign
};
inline HostMatrix make_edge_rows(int shift, std::int64_t q, int scale,
                                 const std::vector<EdgeRow>& rows) {
  const std::int64_t top_blocks = (q - 1 + 31) / 32;
  const std::int64_t blocks = top_blocks + shift;
  HostMatrix x(static_cast<std::int64_t>(rows.size()), 32 * blocks);
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const auto row = static_cast<std::int64_t>(r);
    std::int64_t element = 0;
    const auto put = [&](std::int64_t k, int halves) {
      bool negative = rows[r].negative;
      if (rows[r].alternate > 0 && element++ % rows[r].alternate == 0) negative = !negative;
      x.set_code(row, k, halves_to_code(negative ? -halves : halves));
    };
    for (std::int64_t block = 0; block < blocks; ++block) {
      const int level =
          block < top_blocks ? shift : shift - 1 - static_cast<int>(block - top_blocks);
      x.scale(row, block) = static_cast<std::uint8_t>(scale + level);
    }
    for (std::int64_t k = 0; k < q - 1; ++k) put(k, rows[r].halves);
    for (int level = shift - 1; level >= 0; --level) {
      const std::int64_t first = 32 * (top_blocks + shift - 1 - level);
      for (int i = 0; i < (level == 0 ? 4 : 3); ++i) {
        put(first + i, level == 0 && i == 3 ? rows[r].last_halves : rows[r].halves);
      }
    }
  }
  return x;
}

// Rows of 12 halves at scale + spread, but for the last block at scale.
inline HostMatrix make_full_rows(std::int64_t k, int scale, const std::vector<int>& spreads,
                                 bool both_signs) {
  const std::int64_t each = both_signs ? 2 : 1;
  HostMatrix x(static_cast<std::int64_t>(spreads.size()) * each, k);
  for (std::int64_t row = 0; row < x.rows; ++row) {
    const bool negative = row % each == 1;
    for (std::int64_t block = 0; block < k / 32; ++block) {
      const bool last = block == k / 32 - 1;
      x.scale(row, block) = static_cast<std::uint8_t>(scale + (last ? 0 : spreads[row / each]));
      for (int i = 0; i < 32; ++i) {
        x.set_code(row, 32 * block + i, halves_to_code(negative ? -12 : 12));
      }
    }
  }
  return x;
}

}  // namespace KokkosMXTest

#endif
