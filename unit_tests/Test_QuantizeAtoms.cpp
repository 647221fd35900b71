// SPDX-License-Identifier: Apache-2.0

// Rows by each atom that can run here against the oracle of ReferenceQuantize.hpp: every bit of
// codes, scales and summary, on rows of every length, and on data that some blocks of an atom's
// vectors can take and others not.

#include <gtest/gtest.h>

#include "Inputs.hpp"
#include "ReferenceQuantize.hpp"
#include "atom_select.hpp"

#include <KokkosMX.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <set>
#include <string>
#include <vector>

namespace KokkosMXTest {
namespace {

namespace Impl = KokkosMX::Impl;
using KokkosMX::NonFinite;
using KokkosMX::QuantizeRule;
using KokkosMX::Rounding;
using KokkosMX::RowSummary;
using KokkosMX::ScaleMode;

/// Calls f(atom) for each atom that this machine can run.
template <class F>
void for_each_atom(F f) {
  std::set<std::string> names;
  for (const Impl::HostAtomsEntry& entry : Impl::all_host_atoms()) {
    if (!entry.runs) continue;
    Impl::with_host_atoms(entry.atoms, [&](auto atoms) {
      using Atom = typename decltype(atoms)::Quantize;
      if (names.insert(Atom::name).second) f(Atom{});
    });
  }
}

std::vector<QuantizeRule> all_rules() {
  const ScaleMode modes[] = {ScaleMode::floor, ScaleMode::ceil, ScaleMode::rceil, ScaleMode::even};
  std::vector<QuantizeRule> rules{KokkosMX::rules::reference};
  for (const auto mode : modes) {
    for (const auto rounding : {Rounding::nearest_even, Rounding::ties_up}) {
      rules.emplace_back(mode, rounding, NonFinite::ocp);
    }
  }
  return rules;
}

using Bytes = std::vector<std::uint8_t>;

std::size_t size(int n) { return static_cast<std::size_t>(n); }

enum class RowKind { bits, common, wide, edges, mixed };

/// The bits of a row of blocks of 32.
template <class Type>
std::vector<typename Type::bits> random_row(RowKind kind, int blocks, Stream& random) {
  using Bits = typename Type::bits;
  constexpr unsigned p = Type::mantissa, quarter = 1u << (p - 2), one = 1u << p;
  constexpr unsigned exponents = Type::inf >> p;  // that of infinity, and how many are finite
  // Where the vectors leave blocks to the loops: few exponents, infinity, scales from 128 and 144.
  const unsigned edges[] = {4,   5,   6,   exponents - 1, exponents, 128, 129,
                            130, 131, 144, 145,           146,       0};
  const auto below = [&](unsigned n) { return static_cast<unsigned>(random.next() % n); };
  std::vector<Bits> row;
  for (int block = 0; block < blocks; ++block) {
    const RowKind is = kind == RowKind::mixed ? static_cast<RowKind>(below(4)) : kind;
    const unsigned top = is == RowKind::common  ? Type::bias - 3u + below(6)
                         : is == RowKind::edges ? edges[below(13)] % (exponents + 1)
                                                : below(exponents);
    const bool zeros = below(12) == 0;
    for (int i = 0; i < 32; ++i) {
      unsigned m = below(Type::inf);
      if (is != RowKind::bits) {
        const unsigned lower = below(is == RowKind::wide ? 40 : 7);
        // Half of them next to quarters of a binade.
        unsigned fraction = below(one);
        if (below(2) == 0) fraction = (fraction / quarter * quarter + below(3) + one - 1) % one;
        m = (top > lower ? top - lower : 0) * one + fraction;
        if (top == exponents && m >= Type::inf && below(20) != 0) m -= one;
        if (below(16) == 0) m = below(4) * (below(2) == 0 ? 1 : one / 16 + 1);
      } else if (below(400) == 0) {
        m = static_cast<unsigned>(random.next()) & (Type::inf | (one - 1));
      }
      if (zeros) m = 0;
      row.push_back(static_cast<Bits>(
          m | (below(2) == 0 ? Bits{0} : static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1)))));
    }
  }
  return row;
}

/// The row of an atom equals that of the oracle: codes by groups, scales, summary; nothing else is
/// written.
template <class Atom, class Type, bool Sums>
void expect_row(const unsigned char* x, int blocks, const ReferenceMatrix& expected,
                const QuantizeRule& rule) {
  const int groups = (blocks + 3) / 4;
  for (const int gap : {0, 5}) {
    const int codes_stride = 64 + gap, scales_stride = 4 + gap;
    Bytes codes(size(1 + groups * codes_stride), 0xA5);
    Bytes scales(size(1 + groups * scales_stride), 0xA5);
    const RowSummary summary = Atom::template quantize_row<Type, Sums>(
        x, blocks, codes.data() + 1, codes_stride, scales.data() + 1, scales_stride, rule);
    Bytes expected_codes(codes.size(), 0xA5);
    Bytes expected_scales(scales.size(), 0xA5);
    for (int block = 0; block < 4 * groups; ++block) {
      const int g = block / 4, b = block % 4;
      for (int j = 0; j < 16; ++j) {
        expected_codes[1 + g * codes_stride + 4 * j + b] =
            block < blocks ? expected.codes[16 * block + j] : 0;
      }
      expected_scales[1 + g * scales_stride + b] = block < blocks ? expected.scales[block] : 0;
    }
    ASSERT_EQ(scales, expected_scales);
    ASSERT_EQ(codes, expected_codes);
    RowSummary all = expected.summaries[0];
    if (!Sums && all.n != 0) all.n = 1;
    ASSERT_EQ(summary.n, all.n);
    ASSERT_EQ(summary.lo, all.lo);
    ASSERT_EQ(summary.hi, all.hi);
    ASSERT_EQ(summary.has_nan, all.has_nan);
    if (gap == 0) {
      Bytes plain(size(64 * groups + 1));
      Atom::deinterleave(codes.data() + 1, groups, plain.data() + 1);
      for (int i = 0; i < 16 * blocks; ++i) ASSERT_EQ(plain[1 + i], expected.codes[i]);
    }
  }
}

template <class Type>
void quantize_rows(Format format) {
  using Bits = typename Type::bits;
  Stream random(6);
  const std::vector<QuantizeRule> rules = all_rules();
  for (int trial = 0; trial < 1800; ++trial) {
    const int blocks = trial % 90 == 89 ? 60 + static_cast<int>(random.next() % 80) : 1 + trial % 9;
    const auto kind = static_cast<RowKind>(trial / 9 % 5);
    const std::vector<Bits> row = random_row<Type>(kind, blocks, random);
    const int offset = static_cast<int>(random.next() % 4);
    std::vector<unsigned char> x(size(offset) + row.size() * sizeof(Bits));
    std::memcpy(x.data() + offset, row.data(), row.size() * sizeof(Bits));
    for (const auto& rule : rules) {
      const ReferenceMatrix expected = reference_quantize(row, 1, 32 * blocks, format, rule);
      for_each_atom([&](auto atom) {
        using Atom = decltype(atom);
        SCOPED_TRACE(std::string(Atom::name) + ", " + std::to_string(blocks) + " blocks, kind " +
                     std::to_string(static_cast<int>(kind)) + ", mode " +
                     std::to_string(static_cast<int>(rule.scale_mode())) + ", rounding " +
                     std::to_string(static_cast<int>(rule.rounding())));
        expect_row<Atom, Type, true>(x.data() + offset, blocks, expected, rule);
        expect_row<Atom, Type, false>(x.data() + offset, blocks, expected, rule);
      });
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}
TEST(QuantizeAtoms, Float32) { quantize_rows<Impl::F32Format>(float32_format); }
TEST(QuantizeAtoms, BFloat16) { quantize_rows<Impl::BF16Format>(bfloat16_format); }
TEST(QuantizeAtoms, Float16) { quantize_rows<Impl::F16Format>(float16_format); }

}  // namespace
}  // namespace KokkosMXTest
