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

enum class RowKind { bits, common, wide, edges, mixed, window };

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
  if (kind == RowKind::window) {
    // Blocks whose numbers lie within 2^-47 and 2^17, few of which are next to these or outside;
    // in half of the rows few blocks have other scales than three.
    const unsigned least = 100 + below(40), scales = below(2) == 0 ? 12 : 3;
    const unsigned others = scales == 3 ? 60 : 8;
    for (int block = 0; block < blocks; ++block) {
      const unsigned top =
          std::min(below(others) == 0 ? 82 + below(63) : least + below(scales), exponents - 1);
      for (int i = 0; i < 32; ++i) {
        const unsigned lower = below(below(2) == 0 ? 7 : 30);
        unsigned m = (top - std::min(lower, top > 80 ? top - 80 : 0)) * one + below(one);
        if (below(2) == 0) m = (m / quarter * quarter) + below(3) - 1;
        unsigned negative = below(2);
        if (below(3000) == 0) m = (78 + below(5)) * one + below(one);
        if (below(3000) == 0) m = (142 + below(5)) * one + below(one);
        if (below(3000) == 0) m = below(2) * below(Type::inf);
        if (below(100) == 0) m = negative = 0;
        row.push_back(static_cast<Bits>(m | negative << (8 * sizeof(Bits) - 1)));
      }
    }
    return row;
  }
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
        // Where products with 2^(127 - scale) begin to vanish, in bf16 and float32.
        if (top > 154 && below(40) == 0) m = (top - 154 + below(5)) * one + fraction;
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

/// Where a row's blocks go: from a group to the next, from a block to the next (0: woven), and how
/// many blocks have a place.
struct Places {
  int codes_group, codes_block, codes;
  int scales_8, scales_4, scales_1, scales;
  bool stream;  ///< codes begin where a line does, and may pass the caches by
};

/// The row of an atom equals that of the oracle: codes, scales, summary; nothing else is written.
/// Then what it has written comes back: the summary again, and the numbers.
template <class Atom, class Type, bool Sums>
void expect_row(const unsigned char* x, int blocks, const ReferenceMatrix& expected,
                const QuantizeRule& rule) {
  const int all = (blocks + 3) / 4 * 4;
  for (const Places& to :
       {Places{64, 0, all, 8, 4, 1, all, true}, Places{72, 0, all, 18, 9, 1, all, true},
        Places{64, 16, blocks, 8, 4, 1, blocks, true},
        Places{64, 16, blocks, 8, 4, 1, blocks, false},
        Places{180, 40, blocks, 256, 2, 64, blocks, true}}) {
    Bytes codes(size(64 + all / 4 * to.codes_group), 0xA5);
    int begin = 1;
    while (to.stream && reinterpret_cast<std::uintptr_t>(codes.data() + begin) % 64 != 0) ++begin;
    const auto code_at = [&](int block, int j) {
      return begin + block / 4 * to.codes_group +
             (to.codes_block == 0 ? 4 * j + block % 4 : block % 4 * to.codes_block + j);
    };
    const auto scale_at = [&](int block) {
      return 1 + block / 8 * to.scales_8 + block / 4 % 2 * to.scales_4 + block % 4 * to.scales_1;
    };
    Bytes scales(size(1 + (all + 4) / 8 * to.scales_8), 0xA5);
    Bytes expected_codes = codes, expected_scales = scales;
    for (int block = 0; block < to.codes; ++block) {
      for (int j = 0; j < 16; ++j) {
        expected_codes[size(code_at(block, j))] =
            block < blocks ? expected.codes[16 * block + j] : 0;
      }
    }
    for (int block = 0; block < to.scales; ++block) {
      expected_scales[size(scale_at(block))] = block < blocks ? expected.scales[block] : 0;
    }
    RowSummary summary{}, again{};
    Bytes copy(x, x + size(blocks) * 32 * sizeof(typename Type::bits));
    Impl::BlockRows rows{copy.data(),
                         0,
                         1,
                         blocks,
                         rule,
                         codes.data() + begin,
                         0,
                         to.codes_group,
                         to.codes_block,
                         to.codes,
                         scales.data() + 1,
                         0,
                         to.scales_8,
                         to.scales_4,
                         to.scales_1,
                         to.scales,
                         &summary,
                         0,
                         to.stream};
    const bool regular = Atom::template quantize_rows<Type, Sums>(rows);
    ASSERT_EQ(scales, expected_scales);
    ASSERT_EQ(codes, expected_codes);
    bool all_regular = true;
    for (int block = 0; block < blocks; ++block) {
      bool zeros = true;
      for (int j = 0; j < 16; ++j) zeros = zeros && (expected.codes[16 * block + j] & 0x77) == 0;
      const int scale = expected.scales[block];
      all_regular = all_regular && scale != 255 && zeros == (scale == 0);
    }
    ASSERT_TRUE(all_regular || !regular);
    rows.summaries = &again;
    Atom::summarize_rows(rows);
    const RowSummary wanted = expected.summaries[0];
    for (const RowSummary& got : {Sums ? summary : again, again}) {
      ASSERT_EQ(got.n, wanted.n);
      ASSERT_EQ(got.lo, wanted.lo);
      ASSERT_EQ(got.hi, wanted.hi);
      ASSERT_EQ(got.has_nan, wanted.has_nan);
    }
    Atom::template dequantize_rows<Type>(rows);
    for (int block = 0; block < blocks; ++block) {
      constexpr int bytes = 32 * static_cast<int>(sizeof(typename Type::bits));
      unsigned char dense[bytes];
      Impl::PortableQuantizeAtom::dequantize<Type>(expected.codes.data() + 16 * block,
                                                   expected.scales[block], dense);
      ASSERT_TRUE(std::equal(dense, dense + bytes, copy.data() + block * bytes));
    }
  }
}

/// The same of several rows in one call, which lie as panels do.
template <class Atom, class Type, bool Sums>
void expect_rows(std::vector<typename Type::bits>& x, int rows, int blocks,
                 const ReferenceMatrix& expected, const QuantizeRule& rule) {
  const int groups = (blocks + 3) / 4;
  Bytes codes(size(rows * groups * 64), 0xA5), scales(size(rows * (groups + 1) * 4), 0xA5);
  std::vector<RowSummary> summaries(size(rows));
  Atom::template quantize_rows<Type, Sums>(Impl::BlockRows{
      reinterpret_cast<unsigned char*>(x.data()),
      std::int64_t{32} * blocks * static_cast<int>(sizeof(typename Type::bits)), rows, blocks, rule,
      codes.data(), 64, std::int64_t{64} * rows, 0, std::int64_t{4} * groups, scales.data(), 4,
      std::int64_t{8} * rows, std::int64_t{4} * rows, 1, std::int64_t{4} * groups,
      Sums ? summaries.data() : nullptr, 1});
  for (int row = 0; row < rows; ++row) {
    SCOPED_TRACE("row " + std::to_string(row) + " of " + std::to_string(rows));
    for (int block = 0; block < blocks; ++block) {
      const int place = block / 4 * rows + row;
      ASSERT_EQ(scales[size(4 * place + block % 4)], expected.scales[size(row * blocks + block)]);
      for (int j = 0; j < 16; ++j) {
        ASSERT_EQ(codes[size(64 * place + 4 * j + block % 4)],
                  expected.codes[size(16 * (row * blocks + block) + j)]);
      }
    }
    if (!Sums) continue;
    const RowSummary got = summaries[size(row)], wanted = expected.summaries[size(row)];
    ASSERT_EQ(got.n, wanted.n);
    ASSERT_EQ(got.lo, wanted.lo);
    ASSERT_EQ(got.hi, wanted.hi);
    ASSERT_EQ(got.has_nan, wanted.has_nan);
  }
}

template <class Type>
void quantize_rows(Format format) {
  using Bits = typename Type::bits;
  Stream random(6);
  const std::vector<QuantizeRule> rules = all_rules();
  for (int trial = 0; trial < 1800; ++trial) {
    const int more = static_cast<int>(random.next() % 80);
    const auto kind = static_cast<RowKind>(trial / 9 % 6);
    const int blocks = trial % 90 == 89          ? 60 + more
                       : kind == RowKind::window ? 16 + more / 2
                                                 : 1 + trial % 9;
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
template <class Type>
void quantize_many_rows(Format format) {
  Stream random(7);
  for (int trial = 0; trial < 160; ++trial) {
    const int rows = 1 + trial % 5;
    const int blocks =
        trial % 2 == 0 ? 16 << (trial / 2 % 3) : 1 + static_cast<int>(random.next() % 70);
    std::vector<typename Type::bits> x;
    for (int row = 0; row < rows; ++row) {
      const RowKind kind = random.next() % 8 == 0 ? RowKind::mixed : RowKind::window;
      const auto bits = random_row<Type>(kind, blocks, random);
      x.insert(x.end(), bits.begin(), bits.end());
    }
    for (const auto& rule : all_rules()) {
      const ReferenceMatrix expected = reference_quantize(x, rows, 32 * blocks, format, rule);
      for_each_atom([&](auto atom) {
        using Atom = decltype(atom);
        SCOPED_TRACE(std::string(Atom::name) + ", " + std::to_string(blocks) + " blocks, mode " +
                     std::to_string(static_cast<int>(rule.scale_mode())) + ", rounding " +
                     std::to_string(static_cast<int>(rule.rounding())));
        expect_rows<Atom, Type, true>(x, rows, blocks, expected, rule);
        expect_rows<Atom, Type, false>(x, rows, blocks, expected, rule);
      });
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

/// Rows whose sums of squares are as large as can be: accumulators of 32 bits must not hold them to
/// the end.
TEST(QuantizeAtoms, LongRow) {
  constexpr int blocks = 15 * 16384 + 48;
  constexpr std::uint16_t six = 0x40C0, four_times = 2 << 7;
  std::vector<std::uint16_t> x(size(32 * blocks), six + four_times);
  std::fill(x.begin(), x.begin() + 32, six);
  Bytes codes(size(16 * blocks)), scales(size(blocks));
  for_each_atom([&](auto atom) {
    using Atom = decltype(atom);
    SCOPED_TRACE(Atom::name);
    RowSummary summary{};
    Atom::template quantize_rows<Impl::BF16Format, true>(Impl::BlockRows{
        reinterpret_cast<unsigned char*>(x.data()), 0, 1, blocks, KokkosMX::rules::reference,
        codes.data(), 0, 64, 0, blocks, scales.data(), 0, 8, 4, 1, blocks, &summary, 0});
    EXPECT_EQ(summary.n, std::uint64_t{32 * 144} * (1 + 16 * std::uint64_t{blocks - 1}));
    EXPECT_EQ(summary.lo, 127);
    EXPECT_EQ(summary.hi, 129);
  });
}

TEST(QuantizeAtoms, Float32) { quantize_rows<Impl::F32Format>(float32_format); }
TEST(QuantizeAtoms, BFloat16) { quantize_rows<Impl::BF16Format>(bfloat16_format); }
TEST(QuantizeAtoms, Float16) { quantize_rows<Impl::F16Format>(float16_format); }
TEST(QuantizeAtoms, RowsOfFloat32) { quantize_many_rows<Impl::F32Format>(float32_format); }
TEST(QuantizeAtoms, RowsOfBFloat16) { quantize_many_rows<Impl::BF16Format>(bfloat16_format); }
TEST(QuantizeAtoms, RowsOfFloat16) { quantize_many_rows<Impl::F16Format>(float16_format); }

}  // namespace
}  // namespace KokkosMXTest
