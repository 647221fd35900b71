// SPDX-License-Identifier: Apache-2.0

// Quantize, dequantize and row summaries: every bit, against the golden arrays and the oracle of
// ReferenceQuantize.hpp.

#include <gtest/gtest.h>

#include "Compare.hpp"
#include "FlushToZero.hpp"
#include "Inputs.hpp"
#include "ReferenceQuantize.hpp"
#include "ReferenceShuffle.hpp"
#include "TestViews.hpp"

#include <KokkosMX.hpp>
#include <Kokkos_Core.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iomanip>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace KokkosMXTest {
namespace {

using KokkosMX::BFloat16;
using KokkosMX::Float16;
using KokkosMX::NonFinite;
using KokkosMX::QuantizeRule;
using KokkosMX::Rounding;
using KokkosMX::RowMajor;
using KokkosMX::RowSummary;
using KokkosMX::ScaleMode;
using KokkosMX::Tile16x16;
using KokkosMX::Tile32x8;

using Bytes = std::vector<std::uint8_t>;

std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

template <class T>
constexpr Format format_of() {
  if constexpr (std::is_same_v<T, float>) {
    return float32_format;
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return bfloat16_format;
  } else {
    return float16_format;
  }
}

constexpr std::array<ScaleMode, 4> all_modes{ScaleMode::floor, ScaleMode::ceil, ScaleMode::rceil,
                                             ScaleMode::even};

/// Every rule that exists.
std::vector<QuantizeRule> all_rules() {
  std::vector<QuantizeRule> rules;
  for (const ScaleMode mode : all_modes) {
    for (const Rounding rounding : {Rounding::nearest_even, Rounding::ties_up}) {
      rules.emplace_back(mode, rounding, NonFinite::ocp);
    }
  }
  rules.push_back(KokkosMX::rules::reference);
  return rules;
}

std::string name_of(const QuantizeRule& rule) {
  const std::array<const char*, 4> modes{"floor", "ceil", "rceil", "even"};
  return std::string(modes.at(static_cast<std::size_t>(rule.scale_mode()))) +
         (rule.rounding() == Rounding::nearest_even ? ", nearest_even" : ", ties_up") +
         (rule.non_finite() == NonFinite::ocp ? ", ocp" : ", reference");
}

/// Quantizes (batch, rows, K) numbers of T, given as bits, plainly.
template <class T>
ReferenceMatrix quantize(const std::vector<bits_of_t<T>>& x, std::int64_t rows, std::int64_t k,
                         const QuantizeRule& rule) {
  const Exec exec;
  const Placed<T> input(1, rows, k, x);
  const PlacedMatrix<RowMajor, RowMajor> q(1, rows, k);
  KokkosMX::quantize(exec, input.view3(), q.matrix3_with_summaries(), rule);
  exec.fence();
  return {q.codes.get(), q.scales.get(), q.summaries.get()};
}

template <class T>
std::vector<bits_of_t<T>> dequantize(const Bytes& codes, const Bytes& scales, std::int64_t rows,
                                     std::int64_t k) {
  const Exec exec;
  PlacedMatrix<RowMajor, RowMajor> q(1, rows, k);
  q.codes.set(codes);
  q.scales.set(scales);
  const Placed<T> x(1, rows, k);
  KokkosMX::dequantize(exec, q.matrix2(), x.view2());
  exec.fence();
  return x.get();
}

/// Codes, scales and summaries by the library equal those by the oracle.
template <class T>
void expect_quantized(const std::vector<bits_of_t<T>>& x, std::int64_t rows, std::int64_t k,
                      const QuantizeRule& rule) {
  const ReferenceMatrix got = quantize<T>(x, rows, k, rule);
  const ReferenceMatrix expected = reference_quantize(x, rows, k, format_of<T>(), rule);
  ASSERT_TRUE(same_bits(got.scales, expected.scales, name_of(rule) + ": scales"));
  ASSERT_TRUE(same_bits(got.codes, expected.codes, name_of(rule) + ": codes"));
  ASSERT_TRUE(same_bits(got.summaries, expected.summaries, name_of(rule) + ": summaries"));
}

// ---------------------------------------------------------------------------------------- golden

TEST(QuantizeGolden, Reference) {
  for (const std::string name : {"bell", "outliers", "wild", "ties", "special"}) {
    SCOPED_TRACE(name);
    const auto x = golden<std::uint16_t>("quantize_" + name + "_input");
    const auto codes = golden<std::uint8_t>("quantize_" + name + "_seed_codes").data;
    const auto scales = golden<std::uint8_t>("quantize_" + name + "_seed_scales").data;
    const ReferenceMatrix oracle =
        reference_quantize(x.data, x.rows, x.cols, bfloat16_format, KokkosMX::rules::reference);
    EXPECT_TRUE(same_bits(oracle.scales, scales, "the oracle's scales"));
    EXPECT_TRUE(same_bits(oracle.codes, codes, "the oracle's codes"));
    const ReferenceMatrix q =
        quantize<BFloat16>(x.data, x.rows, x.cols, KokkosMX::rules::reference);
    EXPECT_TRUE(same_bits(q.scales, scales, "scales"));
    EXPECT_TRUE(same_bits(q.codes, codes, "codes"));
    if (name == "special") continue;
    const auto dense = golden<std::uint32_t>("quantize_" + name + "_seed_dequantized").data;
    EXPECT_TRUE(same_bits(reference_dequantize<std::uint32_t>(codes, scales, float32_format), dense,
                          "the oracle's dequantized"));
    EXPECT_TRUE(same_bits(dequantize<float>(codes, scales, x.rows, x.cols), dense, "dequantized"));
  }
}

TEST(QuantizeGolden, NearestEven) {
  const QuantizeRule rule{ScaleMode::even, Rounding::nearest_even, NonFinite::ocp};
  for (const std::string name : {"bell", "outliers", "ties"}) {
    SCOPED_TRACE(name);
    const auto x = golden<std::uint16_t>("quantize_" + name + "_input");
    const auto codes = golden<std::uint8_t>("quantize_" + name + "_rne_codes").data;
    const auto scales = golden<std::uint8_t>("quantize_" + name + "_seed_scales").data;
    const ReferenceMatrix oracle =
        reference_quantize(x.data, x.rows, x.cols, bfloat16_format, rule);
    EXPECT_TRUE(same_bits(oracle.scales, scales, "the oracle's scales"));
    EXPECT_TRUE(same_bits(oracle.codes, codes, "the oracle's codes"));
    const ReferenceMatrix q = quantize<BFloat16>(x.data, x.rows, x.cols, rule);
    EXPECT_TRUE(same_bits(q.scales, scales, "scales"));
    EXPECT_TRUE(same_bits(q.codes, codes, "codes"));
  }
}

TEST(QuantizeGolden, Scales) {
  const std::vector<std::uint32_t> amax = golden<std::uint32_t>("scale_amax").data;
  const auto rows = static_cast<std::int64_t>(amax.size());
  // The maximum stands at a different place in every block, with either sign.
  std::vector<std::uint32_t> x(32 * amax.size(), 0);
  for (std::size_t i = 0; i < amax.size(); ++i) {
    x[32 * i + i % 32] = amax[i] | (i % 3 == 0 ? 0x80000000u : 0u);
  }
  const std::array<const char*, 4> names{"scale_floor", "scale_ceil", "scale_rceil", "scale_even"};
  for (std::size_t mode = 0; mode < 4; ++mode) {
    SCOPED_TRACE(names[mode]);
    const Bytes expected = golden<std::uint8_t>(names[mode]).data;
    const QuantizeRule rule{all_modes[mode], Rounding::nearest_even, NonFinite::ocp};
    EXPECT_TRUE(same_bits(reference_quantize(x, rows, 32, float32_format, rule).scales, expected,
                          "the oracle's scales"));
    EXPECT_TRUE(same_bits(quantize<float>(x, rows, 32, rule).scales, expected, "scales"));
  }
}

TEST(QuantizeGoldenFull, Leaderboard) {
  const Exec exec;
  for (const LeaderboardRow& shape : leaderboard()) {
    SCOPED_TRACE("m " + std::to_string(shape.m) + ", n " + std::to_string(shape.n) + ", k " +
                 std::to_string(shape.k));
    const std::vector<std::uint16_t> a = bell(shape.m, shape.k, shape.seed_a);
    const std::vector<std::uint16_t> b = bell(shape.n, shape.k, shape.seed_b);
    ASSERT_EQ(crc32(a), shape.crc_a);
    ASSERT_EQ(crc32(b), shape.crc_b);
    const ReferenceMatrix qa = quantize<BFloat16>(a, shape.m, shape.k, KokkosMX::rules::reference);
    EXPECT_EQ(crc32(qa.codes), shape.crc_a_codes);
    EXPECT_EQ(crc32(qa.scales), shape.crc_a_scales);
    const ReferenceMatrix qb = quantize<BFloat16>(b, shape.n, shape.k, KokkosMX::rules::reference);
    EXPECT_EQ(crc32(qb.codes), shape.crc_b_codes);
    EXPECT_EQ(crc32(qb.scales), shape.crc_b_scales);
    const Placed<BFloat16> input(1, shape.n, shape.k, b);
    const PlacedMatrix<Tile16x16, Tile32x8> shuffled(1, shape.n, shape.k);
    KokkosMX::quantize(exec, input.view2(), shuffled.matrix2(), KokkosMX::rules::reference);
    exec.fence();
    EXPECT_EQ(crc32(shuffled.codes.get()), shape.crc_b_shuffled);
    EXPECT_EQ(crc32(shuffled.scales.get()), shape.crc_b_scales_shuffled);
  }
}

// ------------------------------------------------------------------------------- exhaustive input

/// Blocks whose first element (rotated by the block's number) is the largest, the other 31 from
/// `others`, each in as many blocks as it takes.
template <class Bits>
class Blocks {
 public:
  void add(Bits largest, const std::vector<Bits>& others) {
    for (std::size_t i = 0; i < others.size() || i == 0; i += 31) {
      std::array<Bits, 32> block{};
      block[0] = largest;
      for (std::size_t j = 0; j < 31 && i + j < others.size(); ++j) block[1 + j] = others[i + j];
      std::rotate(block.begin(), block.begin() + (count_ * 7) % 32, block.end());
      x_.insert(x_.end(), block.begin(), block.end());
      ++count_;
    }
  }
  /// As rows of 16 blocks, the last one filled up with zeros.
  std::vector<Bits> rows() {
    x_.resize((x_.size() + 511) / 512 * 512, 0);
    return x_;
  }
  std::size_t count() const { return count_; }

 private:
  std::vector<Bits> x_;
  std::size_t count_ = 0;
};

/// Every pattern of a 2-byte type as an element of blocks with every kind of maximum: each finite
/// exponent, with fractions around the modes' thresholds, and the elements of the 5 binades below
/// it (all those below them are codes 0) and any others.
template <class T>
void every_pattern_as_element(const std::vector<std::uint16_t>& fractions) {
  constexpr Format format = format_of<T>();
  const int one = 1 << format.fraction_bits;  // bits from one binade to the next
  const int infinity = static_cast<int>(format.infinity());
  Blocks<std::uint16_t> blocks;
  std::vector<bool> seen(65536, false);
  Stream random(20260801);
  for (int binade = 0; binade < infinity; binade += one) {
    for (const std::uint16_t fraction : fractions) {
      const int largest = binade + fraction;
      std::vector<std::uint16_t> others;
      for (int bits = std::max(0, binade - 5 * one); bits <= largest; ++bits) {
        others.push_back(static_cast<std::uint16_t>(bits));
        others.push_back(static_cast<std::uint16_t>(bits | 0x8000));
      }
      for (int i = 0; i < 62; ++i) {
        const auto bits = static_cast<int>(random.below(static_cast<std::uint64_t>(largest + 1)));
        others.push_back(static_cast<std::uint16_t>(bits | (i % 2 << 15)));
      }
      for (const std::uint16_t bits : others) seen[bits] = true;
      blocks.add(static_cast<std::uint16_t>(largest | (binade / one % 2 << 15)), others);
    }
  }
  // Infinities and NaNs are elements too: alone in a block, and with others of their kind.
  for (int bits = infinity; bits < 0x8000; ++bits) {
    std::vector<std::uint16_t> others;
    for (int i = 0; i < 31; ++i) {
      const bool finite = i % 8 != 0 || bits % 2 == 0;
      const std::uint64_t other =
          finite ? random.below(static_cast<std::uint64_t>(infinity))
                 : static_cast<std::uint64_t>(random.between(infinity, 0x7FFF));
      others.push_back(static_cast<std::uint16_t>(other | (random.next() & 0x8000)));
      seen[others.back()] = true;
    }
    for (const int sign : {0, 0x8000}) {
      seen[static_cast<std::size_t>(bits | sign)] = true;
      blocks.add(static_cast<std::uint16_t>(bits | sign), others);
    }
  }
  EXPECT_EQ(std::count(seen.begin(), seen.end(), true), 65536);
  const std::vector<std::uint16_t> x = blocks.rows();
  std::cout << blocks.count() << " blocks, " << all_rules().size() << " rules\n";
  for (const QuantizeRule& rule : all_rules()) {
    expect_quantized<T>(x, static_cast<std::int64_t>(x.size()) / 512, 512, rule);
  }
}

TEST(Quantize, EveryBFloat16AsElement) {
  every_pattern_as_element<BFloat16>({0x00, 0x3F, 0x40, 0x41, 0x60, 0x7F});
}
TEST(Quantize, EveryFloat16AsElement) {
  every_pattern_as_element<Float16>({0x000, 0x1FF, 0x200, 0x201, 0x2FF, 0x300, 0x3FF});
}

/// Every pattern of a 2-byte type as the largest of a block, the others any that are not larger.
template <class T>
void every_pattern_as_largest() {
  Blocks<std::uint16_t> blocks;
  Stream random(20260802);
  for (unsigned largest = 0; largest < 65536; ++largest) {
    std::vector<std::uint16_t> others;
    for (int i = 0; i < 7; ++i) {
      const std::uint64_t bits = random.next();
      // Half of them from the binades just below.
      const std::uint64_t spread = i % 2 == 0 ? (largest & 0x7FFFu) + 1 : 1024;
      const std::uint64_t below = bits % std::min<std::uint64_t>(spread, (largest & 0x7FFFu) + 1);
      others.push_back(
          static_cast<std::uint16_t>(((largest & 0x7FFFu) - below) | (bits >> 32 & 0x8000)));
    }
    blocks.add(static_cast<std::uint16_t>(largest), others);
  }
  ASSERT_EQ(blocks.count(), 65536u);
  const std::vector<std::uint16_t> x = blocks.rows();
  for (const QuantizeRule& rule : all_rules()) {
    expect_quantized<T>(x, static_cast<std::int64_t>(x.size()) / 512, 512, rule);
  }
}

TEST(Quantize, EveryBFloat16AsLargest) { every_pattern_as_largest<BFloat16>(); }
TEST(Quantize, EveryFloat16AsLargest) { every_pattern_as_largest<Float16>(); }

/// Float32 maxima: every exponent with fractions around the modes' thresholds, and subnormals.
std::vector<std::uint32_t> float32_maxima() {
  std::vector<std::uint32_t> maxima;
  for (std::uint32_t exponent = 0; exponent < 255; ++exponent) {
    for (const std::uint32_t fraction :
         {0x000000u, 0x000001u, 0x3FFFFFu, 0x400000u, 0x400001u, 0x5FFFFFu, 0x600000u, 0x7FFFFFu}) {
      maxima.push_back(exponent << 23 | fraction);
    }
  }
  for (std::uint32_t bits = 1; bits < 0x00800000u; bits = bits * 2 + 1) {
    for (const std::uint32_t near : {bits - 1, bits, bits + 1}) maxima.push_back(near);
  }
  return maxima;
}

// Around every half-way point between two codes and every code, at every scale: the float32 number
// there, those one unit in the last place away, and, where no float32 lies there, its neighbours.
TEST(Quantize, Float32Thresholds) {
  for (const QuantizeRule& rule : all_rules()) {
    Blocks<std::uint32_t> blocks;
    std::vector<bool> scales(256, false);
    for (const std::uint32_t largest : float32_maxima()) {
      const Number amax = decode(largest, float32_format);
      std::array<Number, 32> only{};
      only[0] = amax;
      const int scale = reference_block(only, rule).scale;
      scales[size(scale)] = true;
      std::vector<std::uint32_t> others;
      for (std::uint64_t eighths : {1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48}) {
        const std::uint32_t at = encode(false, {eighths, scale - 130}, float32_format);
        for (std::uint32_t bits = at < 2 ? 0 : at - 2; bits <= at + 2; ++bits) {
          if (bits > largest) continue;
          others.push_back(bits);
          others.push_back(bits | 0x80000000u);
        }
      }
      blocks.add(largest, others);
    }
    const std::vector<std::uint32_t> x = blocks.rows();
    expect_quantized<float>(x, static_cast<std::int64_t>(x.size()) / 512, 512, rule);
    // 255 is another test's, and at the ends some modes have scales that no maximum gives.
    const auto reached = std::count(scales.begin(), scales.end(), true);
    EXPECT_GE(reached, 252) << name_of(rule);
  }
}

// The sign of a negative product that float32 rounds to zero: 2^-150 and less, under ties_up.
TEST(Quantize, Float32ProductsThatVanish) {
  Blocks<std::uint32_t> blocks;
  for (const std::uint32_t largest : float32_maxima()) {
    std::vector<std::uint32_t> others;
    for (std::uint32_t bits = 0; bits < 16; ++bits) others.push_back(bits | 0x80000000u);
    for (std::uint32_t exponent = 0; exponent < 255; ++exponent) {
      for (const std::uint32_t fraction : {0u, 1u, 0x400000u, 0x7FFFFFu}) {
        const std::uint32_t bits = exponent << 23 | fraction;
        // Within 3 binades of where the product's last bits fall off.
        const int away = static_cast<int>(largest >> 23) - static_cast<int>(exponent) - 150;
        if (bits <= largest && away >= -4 && away <= 4) others.push_back(bits | 0x80000000u);
      }
    }
    blocks.add(largest, others);
  }
  const std::vector<std::uint32_t> x = blocks.rows();
  std::size_t minus_zeros = 0, plus_zeros = 0;
  for (const QuantizeRule& rule : all_rules()) {
    const auto rows = static_cast<std::int64_t>(x.size()) / 512;
    expect_quantized<float>(x, rows, 512, rule);
    if (rule.rounding() == Rounding::nearest_even) continue;
    for (const std::uint8_t byte : reference_quantize(x, rows, 512, float32_format, rule).codes) {
      minus_zeros += ((byte & 15) == 8) + (byte >> 4 == 8);
      plus_zeros += ((byte & 15) == 0) + (byte >> 4 == 0);
    }
  }
  // Both sides of the border were met.
  EXPECT_GT(minus_zeros, 1000u);
  EXPECT_GT(plus_zeros, 1000u);
}

TEST(Quantize, Float32Random) {
  constexpr std::int64_t rows = 1024, k = 1024;
  std::vector<std::uint32_t> x(size(rows * k));
  Stream random(20260803);
  for (std::size_t i = 0; i < x.size(); i += 32) {
    // A quarter of the blocks are any bits; the others lie within 8 binades, at any height.
    const bool any = i / 32 % 4 == 0;
    const std::uint64_t base = random.below(256), width = 1 + random.below(8);
    for (std::size_t j = i; j < i + 32; ++j) {
      const std::uint64_t bits = random.next();
      const std::uint64_t exponent = std::min<std::uint64_t>(base + (bits >> 32) % width, 254);
      x[j] = static_cast<std::uint32_t>(any ? bits : (bits & 0x807FFFFFu) | exponent << 23);
    }
  }
  for (const QuantizeRule& rule : all_rules()) expect_quantized<float>(x, rows, k, rule);
}

// ------------------------------------------------------------------------------ rules and policies

TEST(Quantize, Presets) {
  using namespace KokkosMX;
  EXPECT_EQ(rules::reference,
            QuantizeRule(ScaleMode::even, Rounding::ties_up, NonFinite::reference));
  EXPECT_EQ(rules::ocp_floor,
            QuantizeRule(ScaleMode::floor, Rounding::nearest_even, NonFinite::ocp));
  EXPECT_EQ(rules::quark_even,
            QuantizeRule(ScaleMode::even, Rounding::nearest_even, NonFinite::ocp));
  EXPECT_EQ(rules::rceil, QuantizeRule(ScaleMode::rceil, Rounding::nearest_even, NonFinite::ocp));
}

TEST(Quantize, RuleThatDoesNotExist) {
  int refused_rules = 0;
  for (const ScaleMode mode : all_modes) {
    for (const Rounding rounding : {Rounding::nearest_even, Rounding::ties_up}) {
      EXPECT_NO_THROW(QuantizeRule(mode, rounding, NonFinite::ocp));
      const auto make = [=] { return QuantizeRule(mode, rounding, NonFinite::reference); };
      if (mode == ScaleMode::even && rounding == Rounding::ties_up) {
        EXPECT_NO_THROW(make());
        continue;
      }
      EXPECT_TRUE(refused(
          make, {"QuantizeRule", "NonFinite::reference", "ScaleMode::even", "Rounding::ties_up"}));
      ++refused_rules;
    }
  }
  EXPECT_EQ(refused_rules, 7);
}

/// One block of a type by its bits; all zero but what `set` says.
template <class T>
ReferenceMatrix quantize_block(const std::vector<std::pair<std::size_t, std::uint32_t>>& set,
                               const QuantizeRule& rule) {
  std::vector<bits_of_t<T>> x(32, 0);
  for (const auto& [i, bits] : set) x[i] = static_cast<bits_of_t<T>>(bits);
  return quantize<T>(x, 1, 32, rule);
}

// By hand, without the oracle.
TEST(Quantize, NonFinite) {
  const QuantizeRule& ocp = KokkosMX::rules::quark_even;
  const QuantizeRule& reference = KokkosMX::rules::reference;
  const std::uint32_t one = 0x3F800000, inf = 0x7F800000, nan = 0x7FC00000;
  for (const std::uint32_t special : {inf, nan, inf | 0x80000000u, nan | 0x80000000u,
                                      std::uint32_t{0x7F800001}, std::uint32_t{0xFFFFFFFF}}) {
    const ReferenceMatrix q = quantize_block<float>({{0, one}, {17, special}}, ocp);
    EXPECT_EQ(q.scales, Bytes{255});
    EXPECT_EQ(q.codes, Bytes(16, 0));
    EXPECT_TRUE(same_bits(q.summaries, {RowSummary{0, 0, 0, 1, {}}}, "summary"));
  }
  // +inf saturates to 7, -inf to 15, a NaN is 7 whatever its sign; 1 vanishes at scale 254.
  ReferenceMatrix q = quantize_block<float>(
      {{0, inf}, {1, inf | 0x80000000u}, {2, nan}, {3, nan | 0x80000000u}, {4, one}}, reference);
  EXPECT_EQ(q.scales, Bytes{254});
  EXPECT_EQ(q.codes, (Bytes{0xF7, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}));
  // A NaN with the two leading bits of its payload wraps the scale to 0, so that 1 overflows.
  q = quantize_block<float>({{2, 0x7FE00000}, {3, one}, {4, one | 0x80000000u}}, reference);
  EXPECT_EQ(q.scales, Bytes{0});
  EXPECT_EQ(q.codes, (Bytes{0, 0x77, 0x0F, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}));
  // From 1.75 * 2^127 on: 254 by the reference, 253 by the plain formula.
  EXPECT_EQ(quantize_block<float>({{0, 0x7F600000}}, reference).scales, Bytes{254});
  EXPECT_EQ(quantize_block<float>({{0, 0x7F600000}}, ocp).scales, Bytes{253});
  EXPECT_EQ(quantize_block<float>({{0, 0x7F5FFFFF}}, reference).scales, Bytes{252});
  EXPECT_EQ(quantize_block<float>({{0, 0x7F5FFFFF}}, ocp).scales, Bytes{252});
  // Zeros: -0 is 8 by nearest_even, 0 by ties_up.
  q = quantize_block<float>({{31, 0x80000000u}}, ocp);
  EXPECT_EQ(q.scales, Bytes{0});
  EXPECT_EQ(q.codes.back(), 0x80);
  EXPECT_TRUE(same_bits(q.summaries, {RowSummary{}}, "summary"));
  q = quantize_block<float>({{31, 0x80000000u}}, reference);
  EXPECT_EQ(q.scales, Bytes{0});
  EXPECT_EQ(q.codes.back(), 0x00);
}

// Ties by hand: in halves of the code's unit at scale 127 (the block's largest is 6).
TEST(Quantize, Ties) {
  const std::array<float, 7> ties{0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
  const std::array<std::uint8_t, 7> even{0, 2, 2, 4, 4, 6, 6}, up{1, 2, 3, 4, 5, 6, 7};
  for (std::size_t i = 0; i < 7; ++i) {
    const auto bits = std::bit_cast<std::uint32_t>(ties[i]);
    for (const std::uint32_t sign : {0u, 0x80000000u}) {
      const std::uint8_t negative = sign == 0 ? 0 : 8;
      const ReferenceMatrix a =
          quantize_block<float>({{0, bits | sign}, {2, 0x40C00000}}, KokkosMX::rules::quark_even);
      const ReferenceMatrix b =
          quantize_block<float>({{0, bits | sign}, {2, 0x40C00000}}, KokkosMX::rules::reference);
      EXPECT_EQ(a.scales, Bytes{127});
      EXPECT_EQ(b.scales, Bytes{127});
      EXPECT_EQ(a.codes[0], even[i] | negative) << ties[i];
      EXPECT_EQ(b.codes[0], up[i] | negative) << ties[i];
    }
  }
}

// --------------------------------------------------------------------------- shapes and placements

/// Numbers of T with some spread, all kinds among them.
template <class T>
std::vector<bits_of_t<T>> some_numbers(std::int64_t count, std::uint64_t seed) {
  constexpr Format format = format_of<T>();
  std::vector<bits_of_t<T>> x(size(count));
  const std::uint32_t one = 1u << format.fraction_bits;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const std::uint64_t bits = splitmix64(seed, i);
    const std::uint64_t block = splitmix64(seed + 1, i / 32);
    const std::uint32_t base = static_cast<std::uint32_t>(block % 24 + 2) * one;
    auto value = static_cast<std::uint32_t>(base + bits % (4 * one));
    if (block % 61 == 0 && bits % 32 == 0) value = format.infinity() + (bits >> 32) % 2;
    x[i] = static_cast<bits_of_t<T>>(value | ((bits >> 40) % 2 != 0 ? format.sign() : 0));
  }
  return x;
}

struct Shape {
  std::int64_t batch, rows, k;
};

std::ostream& operator<<(std::ostream& out, const Shape& s) {
  return out << "batch " << s.batch << ", rows " << s.rows << ", K " << s.k;
}

const std::vector<Shape>& some_shapes() {
  static const std::vector<Shape> shapes{
      {1, 0, 0},    {1, 0, 64},   {1, 5, 0},    {0, 3, 32},  {3, 0, 32},   {1, 1, 32},
      {1, 1, 64},   {1, 2, 32},   {1, 3, 96},   {1, 7, 160}, {1, 16, 64},  {1, 17, 224},
      {2, 16, 64},  {3, 5, 96},   {4, 31, 32},  {5, 1, 32},  {2, 33, 288}, {1, 64, 512},
      {1, 255, 32}, {1, 257, 64}, {1, 1, 7168}, {2, 3, 4128}};
  return shapes;
}

/// Where inputs and outputs lie: an offset and gaps for each of the four buffers.
const std::vector<std::array<Placement, 4>>& some_placements() {
  static const std::vector<std::array<Placement, 4>> placements{
      {{{0, 0, 0}, {0, 0, 0}, {0, 0, 0}, {0, 0, 0}}},
      {{{1, 1, 3}, {1, 3, 5}, {1, 1, 2}, {1, 0, 0}}},
      {{{3, 8, 0}, {7, 0, 16}, {2, 5, 0}, {0, 2, 1}}},
      {{{0, 32, 64}, {15, 16, 0}, {3, 0, 7}, {3, 1, 0}}},
      {{{5, 0, 1}, {9, 1, 1}, {5, 61, 256}, {0, 0, 5}}}};
  return placements;
}

template <class T>
void shapes_and_placements(const QuantizeRule& rule) {
  const Exec exec;
  std::uint64_t seed = 77;
  for (const Shape& shape : some_shapes()) {
    for (const auto& [x_at, codes_at, scales_at, summaries_at] : some_placements()) {
      const auto [batch, rows, k] = shape;
      const auto x = some_numbers<T>(batch * rows * k, ++seed);
      const ReferenceMatrix expected = reference_quantize(x, batch * rows, k, format_of<T>(), rule);
      const Placed<T> input(batch, rows, k, x, x_at);
      const PlacedMatrix<RowMajor, RowMajor> q(batch, rows, k, codes_at, scales_at, summaries_at);
      KokkosMX::quantize(exec, input.const_view3(), q.matrix3_with_summaries(), rule);
      exec.fence();
      ASSERT_TRUE(same_bits(q.codes.get(), expected.codes, "codes")) << shape;
      ASSERT_TRUE(same_bits(q.scales.get(), expected.scales, "scales")) << shape;
      ASSERT_TRUE(same_bits(q.summaries.get(), expected.summaries, "summaries")) << shape;
      ASSERT_TRUE(q.codes.gaps_untouched() && q.scales.gaps_untouched() &&
                  q.summaries.gaps_untouched())
          << shape;
      // Without summaries, and rank 2.
      const PlacedMatrix<RowMajor, RowMajor> plain(batch, rows, k, codes_at, scales_at);
      KokkosMX::quantize(exec, input.view3(), plain.matrix3(), rule);
      exec.fence();
      ASSERT_TRUE(same_bits(plain.codes.get(), expected.codes, "codes alone")) << shape;
      ASSERT_TRUE(same_bits(plain.scales.get(), expected.scales, "scales alone")) << shape;
      ASSERT_TRUE(plain.summaries.untouched()) << shape;
      if (batch == 1) {
        const PlacedMatrix<RowMajor, RowMajor> flat(batch, rows, k, codes_at, scales_at);
        KokkosMX::quantize(exec, input.const_view2(), flat.matrix2(), rule);
        exec.fence();
        ASSERT_TRUE(same_bits(flat.codes.get(), expected.codes, "codes, rank 2")) << shape;
        ASSERT_TRUE(same_bits(flat.scales.get(), expected.scales, "scales, rank 2")) << shape;
      }
      // And back, with the same placements.
      const Placed<T> dense(batch, rows, k, x_at);
      KokkosMX::dequantize(exec, q.matrix3(), dense.view3());
      exec.fence();
      ASSERT_TRUE(same_bits(
          dense.get(),
          reference_dequantize<bits_of_t<T>>(expected.codes, expected.scales, format_of<T>()),
          "dequantized"))
          << shape;
      ASSERT_TRUE(dense.gaps_untouched()) << shape;
    }
  }
}

TEST(Quantize, ShapesAndPlacementsFloat32) {
  shapes_and_placements<float>(KokkosMX::rules::ocp_floor);
}
TEST(Quantize, ShapesAndPlacementsBFloat16) {
  shapes_and_placements<BFloat16>(KokkosMX::rules::reference);
}
TEST(Quantize, ShapesAndPlacementsFloat16) {
  shapes_and_placements<Float16>(KokkosMX::rules::rceil);
}

// An input may be one row seen many times, and a batch may be one matrix.
TEST(Quantize, BroadcastInput) {
  const Exec exec;
  const auto x = some_numbers<BFloat16>(96, 5);
  const Placed<BFloat16> input(1, 1, 96, x);
  const View3<const BFloat16> many(input.data(), Kokkos::LayoutStride(3, 0, 4, 0, 96, 1));
  const PlacedMatrix<RowMajor, RowMajor> q(3, 4, 96);
  KokkosMX::quantize(exec, many, q.matrix3(), KokkosMX::rules::quark_even);
  exec.fence();
  std::vector<std::uint16_t> repeated;
  for (int i = 0; i < 12; ++i) repeated.insert(repeated.end(), x.begin(), x.end());
  const ReferenceMatrix expected =
      reference_quantize(repeated, 12, 96, bfloat16_format, KokkosMX::rules::quark_even);
  EXPECT_TRUE(same_bits(q.codes.get(), expected.codes, "codes"));
  EXPECT_TRUE(same_bits(q.scales.get(), expected.scales, "scales"));
}

// Views as a user makes them: LayoutRight, managed, uint16_t reinterpreted; memory by the library.
TEST(Quantize, IntoMemoryOfItsOwn) {
  const Exec exec;
  constexpr std::int64_t batch = 2, rows = 9, k = 96;
  const auto x = some_numbers<BFloat16>(batch * rows * k, 6);
  const ReferenceMatrix expected =
      reference_quantize(x, batch * rows, k, bfloat16_format, KokkosMX::rules::ocp_floor);
  const Placed<std::uint16_t> values(batch, rows, k, x);
  const Kokkos::View<const std::uint16_t***, Kokkos::LayoutRight, Space,
                     Kokkos::MemoryTraits<Kokkos::Unmanaged>>
      input(values.data(), batch, rows, k);
  const auto storage =
      KokkosMX::quantize(exec, KokkosMX::reinterpret<BFloat16>(input), KokkosMX::rules::ocp_floor);
  // Ready without a fence: the call fences.
  const auto get = [](const auto& view) {
    using T = typename std::decay_t<decltype(view)>::value_type;
    std::vector<T> values(view.size());
    const Kokkos::View<const std::uint8_t*, Space, Kokkos::MemoryTraits<Kokkos::Unmanaged>> from(
        reinterpret_cast<const std::uint8_t*>(view.data()), view.size() * sizeof(T));
    const Kokkos::View<std::uint8_t*, Kokkos::HostSpace, Kokkos::MemoryTraits<Kokkos::Unmanaged>>
        to(reinterpret_cast<std::uint8_t*>(values.data()), from.size());
    Kokkos::deep_copy(to, from);
    return values;
  };
  EXPECT_TRUE(same_bits(get(storage.codes()), expected.codes, "codes"));
  EXPECT_TRUE(same_bits(get(storage.scales()), expected.scales, "scales"));
  EXPECT_TRUE(same_bits(get(storage.summaries()), expected.summaries, "summaries"));
  EXPECT_EQ(storage.matrix().batch(), batch);
  EXPECT_EQ(storage.matrix().rows(), rows);
  EXPECT_EQ(storage.matrix().cols(), k);
  EXPECT_TRUE(storage.matrix().has_summaries());
}

// Codes, scales and input interleaved row by row in one allocation, as a packed checkpoint has
// them.
TEST(Quantize, InterleavedBuffers) {
  const Exec exec;
  constexpr std::int64_t rows = 13, k = 96, pitch = 2 * k + k / 2 + k / 32 + 5;
  const auto x = some_numbers<BFloat16>(rows * k, 8);
  const ReferenceMatrix expected =
      reference_quantize(x, rows, k, bfloat16_format, KokkosMX::rules::quark_even);
  // Rows of pitch + 1 bytes, so that the 2-byte elements stay aligned.
  constexpr std::int64_t even_pitch = pitch + pitch % 2;
  Placed<std::uint8_t> all(1, rows, even_pitch, Placement{2, 0, 0});
  Bytes bytes(size(rows * even_pitch), 0x5A);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < k; ++c) {
      bytes[size(r * even_pitch + 2 * c)] = static_cast<std::uint8_t>(x[size(r * k + c)]);
      bytes[size(r * even_pitch + 2 * c + 1)] = static_cast<std::uint8_t>(x[size(r * k + c)] >> 8);
    }
  }
  all.set(bytes);
  const auto at = [&](std::int64_t offset, std::int64_t cols) {
    return View2<std::uint8_t>(all.data() + offset,
                               Kokkos::LayoutStride(rows, even_pitch, size(cols), 1));
  };
  const View2<const BFloat16> input(reinterpret_cast<const BFloat16*>(all.data()),
                                    Kokkos::LayoutStride(rows, even_pitch / 2, k, 1));
  using Out = KokkosMX::Matrix<RowMajor, RowMajor, Space, std::uint8_t>;
  const Out q{Out::codes_type(at(2 * k, k / 2)), Out::scales_type(at(2 * k + k / 2, k / 32))};
  ASSERT_NO_THROW(KokkosMX::quantize(exec, input, q, KokkosMX::rules::quark_even));
  exec.fence();
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t i = 0; i < k / 2; ++i) {
      bytes[size(r * even_pitch + 2 * k + i)] = expected.codes[size(r * k / 2 + i)];
    }
    for (std::int64_t i = 0; i < k / 32; ++i) {
      bytes[size(r * even_pitch + 2 * k + k / 2 + i)] = expected.scales[size(r * k / 32 + i)];
    }
  }
  EXPECT_TRUE(same_bits(all.get(), bytes, "the whole buffer"));
}

// Rows and batches further apart than 32 bits can count, in memory that is never touched.
TEST(Quantize, StridesBeyond32Bits) {
  if constexpr (!Kokkos::SpaceAccessibility<Kokkos::HostSpace, Space>::accessible) {
    GTEST_SKIP() << "the test writes from the host";
  } else {
    const Exec exec;
    constexpr std::int64_t rows = 3, k = 64, stride = (std::int64_t{1} << 31) + 33;
    const auto buffer = [](std::int64_t bytes) {
      return Kokkos::View<std::uint8_t*, Space>(
          Kokkos::view_alloc("KokkosMXTest: sparse", Kokkos::WithoutInitializing), size(bytes));
    };
    const auto x = some_numbers<BFloat16>(rows * k, 9);
    const ReferenceMatrix expected =
        reference_quantize(x, rows, k, bfloat16_format, KokkosMX::rules::quark_even);
    const auto x_buffer = buffer(2 * ((rows - 1) * stride + k));
    const auto q_buffer = buffer((rows - 1) * stride + k / 2 + k / 32);
    const View2<BFloat16> input(reinterpret_cast<BFloat16*>(x_buffer.data()),
                                Kokkos::LayoutStride(rows, stride, k, 1));
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < k; ++c) input(r, c).bits = x[size(r * k + c)];
    }
    const View2<std::uint8_t> codes(q_buffer.data(), Kokkos::LayoutStride(rows, stride, k / 2, 1));
    const View2<std::uint8_t> scales(q_buffer.data() + k / 2,
                                     Kokkos::LayoutStride(rows, stride, k / 32, 1));
    using Out = KokkosMX::Matrix<RowMajor, RowMajor, Space, std::uint8_t>;
    KokkosMX::quantize(exec, input, Out{Out::codes_type(codes), Out::scales_type(scales)},
                       KokkosMX::rules::quark_even);
    exec.fence();
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t i = 0; i < k / 2; ++i) {
        EXPECT_EQ(codes(r, i), expected.codes[size(r * k / 2 + i)]);
      }
      for (std::int64_t i = 0; i < k / 32; ++i) {
        EXPECT_EQ(scales(r, i), expected.scales[size(r * k / 32 + i)]);
      }
    }
  }
}

/// Quantizing straight into a layout gives what quantizing and shuffling give, padding 0 included,
/// and reads back the same.
template <class CodesLayout, class ScalesLayout>
void straight_into_layout() {
  const Exec exec;
  const QuantizeRule rule = KokkosMX::rules::quark_even;
  for (const Shape& shape : std::vector<Shape>{{1, 16, 64},
                                               {1, 32, 192},
                                               {1, 48, 320},
                                               {2, 80, 512},
                                               {3, 16, 128},
                                               {1, 272, 64},
                                               {2, 0, 64},
                                               {1, 16, 0},
                                               {1, 256, 256},
                                               {1, 16, 2112}}) {
    const auto [batch, rows, k] = shape;
    const auto x = some_numbers<BFloat16>(batch * rows * k, size(rows + k));
    const ReferenceMatrix plain = reference_quantize(x, batch * rows, k, bfloat16_format, rule);
    ReferenceMatrix expected;
    for (std::int64_t b = 0; b < batch; ++b) {
      const auto part = [b, batch = batch](const Bytes& all) {
        const auto each = static_cast<std::ptrdiff_t>(all.size()) / batch;
        return Bytes(all.begin() + b * each, all.begin() + (b + 1) * each);
      };
      Bytes codes = part(plain.codes), scales = part(plain.scales);
      if (std::is_same_v<CodesLayout, Tile16x16>) codes = reference_shuffle_weight(codes, rows, k);
      if (std::is_same_v<ScalesLayout, Tile32x8>) {
        scales = reference_shuffle_scale(scales, rows, k / 32);
      }
      expected.codes.insert(expected.codes.end(), codes.begin(), codes.end());
      expected.scales.insert(expected.scales.end(), scales.begin(), scales.end());
    }
    const Placed<BFloat16> input(batch, rows, k, x, {1, 3, 1});
    // Any alignment, any distance between batches; a tiled matrix itself is contiguous.
    PlacedMatrix<CodesLayout, ScalesLayout> q(batch, rows, k, {3, 0, 9}, {1, 0, 5}, {1, 1, 1});
    KokkosMX::quantize(exec, input.view3(), q.matrix3_with_summaries(), rule);
    exec.fence();
    ASSERT_TRUE(same_bits(q.codes.get(), expected.codes, "codes")) << shape;
    ASSERT_TRUE(same_bits(q.scales.get(), expected.scales, "scales")) << shape;
    ASSERT_TRUE(same_bits(q.summaries.get(), plain.summaries, "summaries")) << shape;
    ASSERT_TRUE(q.codes.gaps_untouched() && q.scales.gaps_untouched() &&
                q.summaries.gaps_untouched())
        << shape;
    // With any bytes in the padding it is the same matrix to dequantize and summarize.
    Bytes scales = expected.scales;
    if (std::is_same_v<ScalesLayout, Tile32x8>) {
      const auto shape_of = KokkosMX::scales_shape<ScalesLayout>(rows, k);
      const Bytes inside = reference_shuffle_scale(Bytes(size(rows * (k / 32)), 1), rows, k / 32);
      for (std::size_t i = 0; i < scales.size(); ++i) {
        const std::size_t at = i % size(shape_of.rows * shape_of.cols);
        if (inside[at] == 0) scales[i] = splitmix64(3, i) % 2 == 0 ? 255 : 200;
      }
    }
    q.scales.set(scales);
    for (const bool summarize : {false, true}) {
      if (summarize) {
        const Placed<RowSummary> summaries(batch, rows, 1, Placement{0, 2, 0});
        KokkosMX::summarize(exec, q.matrix3(), summaries.column());
        exec.fence();
        ASSERT_TRUE(same_bits(summaries.get(), plain.summaries, "summarize")) << shape;
        continue;
      }
      const Placed<float> dense(batch, rows, k, Placement{0, 7, 1});
      KokkosMX::dequantize(exec, q.matrix3(), dense.view3());
      exec.fence();
      ASSERT_TRUE(
          same_bits(dense.get(),
                    reference_dequantize<std::uint32_t>(plain.codes, plain.scales, float32_format),
                    "dequantized"))
          << shape;
    }
  }
}

TEST(Quantize, StraightIntoTile16x16AndTile32x8) { straight_into_layout<Tile16x16, Tile32x8>(); }
TEST(Quantize, StraightIntoTile16x16) { straight_into_layout<Tile16x16, RowMajor>(); }
TEST(Quantize, StraightIntoTile32x8) { straight_into_layout<RowMajor, Tile32x8>(); }

// Scales padded from any shape: rows need no multiple of 16 where only the scales are tiled.
TEST(Quantize, ScalesPaddedFromAnyShape) {
  const Exec exec;
  for (const Shape& shape : some_shapes()) {
    if (shape.batch != 1) continue;
    const auto [batch, rows, k] = shape;
    const auto x = some_numbers<Float16>(rows * k, size(3 * rows + k));
    const ReferenceMatrix plain =
        reference_quantize(x, rows, k, float16_format, KokkosMX::rules::rceil);
    const Placed<Float16> input(1, rows, k, x);
    const PlacedMatrix<RowMajor, Tile32x8> q(1, rows, k);
    KokkosMX::quantize(exec, input.view2(), q.matrix2(), KokkosMX::rules::rceil);
    exec.fence();
    ASSERT_TRUE(same_bits(q.codes.get(), plain.codes, "codes")) << shape;
    ASSERT_TRUE(
        same_bits(q.scales.get(), reference_shuffle_scale(plain.scales, rows, k / 32), "scales"))
        << shape;
  }
}

// ------------------------------------------------------------------------------------- summaries

std::vector<RowSummary> summarize(const Bytes& codes, const Bytes& scales, std::int64_t rows,
                                  std::int64_t k) {
  const Exec exec;
  PlacedMatrix<RowMajor, RowMajor> q(1, rows, k, {3, 1, 0}, {1, 2, 0});
  q.codes.set(codes);
  q.scales.set(scales);
  const Placed<RowSummary> summaries(1, rows, 1, Placement{1, 1, 0});
  // Rank 1.
  const Kokkos::View<RowSummary*, Kokkos::LayoutStride, Space,
                     Kokkos::MemoryTraits<Kokkos::Unmanaged>>
      view(summaries.data(), Kokkos::LayoutStride(size(rows), size(summaries.row_stride())));
  KokkosMX::summarize(exec, q.matrix2(), view);
  exec.fence();
  EXPECT_TRUE(summaries.gaps_untouched());
  return summaries.get();
}

// By hand, without the oracle.
TEST(Summaries, ByHand) {
  const auto one_row = [](const Bytes& codes, const Bytes& scales) {
    return summarize(codes, scales, 1, static_cast<std::int64_t>(32 * scales.size())).at(0);
  };
  const auto expect = [](const RowSummary& got, const RowSummary& expected) {
    EXPECT_TRUE(same(got, expected)) << print(got) << ", expected " << print(expected);
  };
  const auto blocks = [](const std::vector<std::uint8_t>& byte_of_block) {
    Bytes codes;
    for (const std::uint8_t byte : byte_of_block) codes.insert(codes.end(), 16, byte);
    return codes;
  };
  expect(one_row({}, {}), {});
  expect(one_row(blocks({0x00}), {9}), {});
  // -0 is no nonzero code.
  expect(one_row(blocks({0x88}), {9}), {});
  expect(one_row(blocks({0x80, 0x08}), {255, 3}), {0, 0, 0, 1, {}});
  // 32 elements of 6 = 12 halves.
  expect(one_row(blocks({0x77}), {9}), {4608, 9, 9, 0, {}});
  expect(one_row(blocks({0xFF}), {0}), {4608, 0, 0, 0, {}});
  expect(one_row(blocks({0x10, 0x01}), {11, 10}), {16 * 4 + 16, 10, 11, 0, {}});
  // Zero blocks and NaN blocks count for neither lo nor hi.
  expect(one_row(blocks({0x00, 0x77, 0x77, 0x00}), {1, 255, 20, 254}), {4608, 20, 20, 1, {}});
  // The last that fits, and saturation: 16 * 4^29 = 2^62; 16 * 4^30 = 2^64.
  expect(one_row(blocks({0x01, 0x10}), {0, 29}), {(std::uint64_t{1} << 62) + 16, 0, 29, 0, {}});
  expect(one_row(blocks({0x01, 0x10}), {0, 30}), {~std::uint64_t{0}, 0, 30, 0, {}});
  expect(one_row(blocks({0x01, 0x10, 0x10, 0x10, 0x10}), {0, 29, 29, 29, 29}),
         {~std::uint64_t{0}, 0, 29, 0, {}});
  expect(one_row(blocks({0x01, 0x10, 0x10, 0x10}), {0, 29, 29, 29}),
         {3 * (std::uint64_t{1} << 62) + 16, 0, 29, 0, {}});
  expect(one_row(blocks({0x77, 0x77}), {254, 0}), {~std::uint64_t{0}, 0, 254, 0, {}});
  // Four times 16 * (4^31 - 1) / 3 and a few: 2^64 - 1 exactly is not to be told from more.
  expect(one_row(blocks({0x10, 0x10}), {32, 33}), {16 * 5, 32, 33, 0, {}});
}

TEST(Summaries, Random) {
  // Codes and scales of many kinds: rows with few nonzero codes, narrow and wide scales, NaN.
  constexpr std::int64_t rows = 3000, k = 320;
  Bytes codes = random_bytes(size(rows * k / 2), 40);
  Bytes scales(size(rows * k / 32));
  Stream random(41);
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::uint64_t base = random.below(256), width = 1 + random.below(row % 3 == 0 ? 256 : 36);
    const std::uint64_t nans = row % 7 == 0 ? 4 : 1000;
    for (std::int64_t b = 0; b < k / 32; ++b) {
      const std::uint64_t s = base + random.below(width);
      scales[size(row * (k / 32) + b)] = static_cast<std::uint8_t>(
          random.below(nans) == 0 ? 255 : std::min<std::uint64_t>(s, 254));
      const std::uint64_t kind = row % 50 == 0 ? 0 : random.below(4);
      for (std::int64_t i = 0; i < 16 && kind < 2; ++i) {
        std::uint8_t& byte = codes[size(row * (k / 2) + 16 * b + i)];
        byte = kind == 0 ? byte & 0x88 : random.below(16) == 0 ? byte : 0;
      }
    }
  }
  const std::vector<RowSummary> expected = reference_summaries(codes, scales, rows, k);
  EXPECT_TRUE(same_bits(summarize(codes, scales, rows, k), expected, "summaries"));
  std::int64_t saturated = 0, empty = 0, nan = 0;
  for (const RowSummary& s : expected) {
    saturated += s.n == ~std::uint64_t{0};
    empty += s.n == 0;
    nan += s.has_nan;
  }
  std::cout << saturated << " of " << rows << " rows saturate, " << empty << " are empty, " << nan
            << " hold a NaN\n";
  EXPECT_GT(saturated, 100);
  EXPECT_GT(empty, 1);
  EXPECT_GT(nan, 100);
}

// What quantize makes in its one pass, at every scale and with saturation.
TEST(Summaries, FromQuantize) {
  constexpr std::int64_t rows = 600, k = 512;
  std::vector<std::uint32_t> x(size(rows * k));
  Stream random(42);
  for (std::size_t i = 0; i < x.size(); i += 32) {
    const auto row = static_cast<std::int64_t>(i) / k;
    const std::int64_t base = row % 255, width = 1 + row % 40;
    const std::int64_t exponent = std::min<std::int64_t>(base + random.between(0, width), 254);
    const bool zero = random.below(5) == 0, nan = random.below(200) == 0;
    for (std::size_t j = i; j < i + 32; ++j) {
      const std::uint64_t bits = random.next();
      x[j] = static_cast<std::uint32_t>(bits & 0x807FFFFFu) | static_cast<std::uint32_t>(exponent)
                                                                  << 23;
      if (zero) x[j] &= 0x80000000u;
    }
    if (nan) x[i + random.below(32)] = 0x7FC00000u;
  }
  for (const QuantizeRule& rule : all_rules()) {
    const ReferenceMatrix q = quantize<float>(x, rows, k, rule);
    EXPECT_TRUE(same_bits(q.summaries, reference_summaries(q.codes, q.scales, rows, k),
                          name_of(rule) + ": quantize's"));
    EXPECT_TRUE(same_bits(summarize(q.codes, q.scales, rows, k), q.summaries,
                          name_of(rule) + ": summarize's"));
  }
}

// ------------------------------------------------------------------------------------- dequantize

template <class T>
class Dequantize : public testing::Test {};
using DenseTypes = testing::Types<float, BFloat16, Float16>;
TYPED_TEST_SUITE(Dequantize, DenseTypes, );

/// All 16 x 256 pairs: row s holds every byte of codes in 8 blocks of scale s.
void every_pair(Bytes& codes, Bytes& scales) {
  for (int s = 0; s < 256; ++s) {
    for (int byte = 0; byte < 256; ++byte) codes.push_back(static_cast<std::uint8_t>(byte));
    scales.insert(scales.end(), 16, static_cast<std::uint8_t>(s));
  }
}

TYPED_TEST(Dequantize, EveryPairInEveryLayout) {
  using T = TypeParam;
  using Bits = bits_of_t<T>;
  const Exec exec;
  constexpr std::int64_t rows = 256, k = 512;
  Bytes codes, scales;
  every_pair(codes, scales);
  const std::vector<Bits> expected = reference_dequantize<Bits>(codes, scales, format_of<T>());
  const auto check = [&](auto codes_layout, auto scales_layout, const char* what) {
    using CodesLayout = decltype(codes_layout);
    using ScalesLayout = decltype(scales_layout);
    PlacedMatrix<CodesLayout, ScalesLayout> q(1, rows, k, {5, 0, 0}, {3, 0, 0});
    q.codes.set(std::is_same_v<CodesLayout, RowMajor> ? codes
                                                      : reference_shuffle_weight(codes, rows, k));
    q.scales.set(std::is_same_v<ScalesLayout, RowMajor>
                     ? scales
                     : reference_shuffle_scale(scales, rows, k / 32));
    const Placed<T> x(1, rows, k, Placement{1, 1, 0});
    const typename PlacedMatrix<CodesLayout, ScalesLayout>::ConstMatrix read_only = q.matrix2();
    KokkosMX::dequantize(exec, read_only, x.view2());
    exec.fence();
    EXPECT_TRUE(same_bits(x.get(), expected, what));
    EXPECT_TRUE(x.gaps_untouched());
  };
  check(RowMajor{}, RowMajor{}, "RowMajor, RowMajor");
  check(Tile16x16{}, RowMajor{}, "Tile16x16, RowMajor");
  check(RowMajor{}, Tile32x8{}, "RowMajor, Tile32x8");
  check(Tile16x16{}, Tile32x8{}, "Tile16x16, Tile32x8");
}

// By hand, without the oracle.
TEST(DequantizeValues, ByHand) {
  const Bytes codes{0x70, 0xF1, 0x82, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};  // 0 6 .5 -6 1 -0
  const auto first = [&](auto bits, std::uint8_t scale) {
    using Bits = decltype(bits);
    using T = std::conditional_t<sizeof(Bits) == 4, float, BFloat16>;
    std::vector<Bits> x = dequantize<T>(codes, {scale}, 1, 32);
    x.resize(6);
    return x;
  };
  using F32 = std::vector<std::uint32_t>;
  using BF16 = std::vector<std::uint16_t>;
  EXPECT_EQ(first(std::uint32_t{}, 127),
            (F32{0, 0x40C00000, 0x3F000000, 0xC0C00000, 0x3F800000, 0x80000000}));
  EXPECT_EQ(first(std::uint32_t{}, 0),
            (F32{0, 0x01400000, 0x00200000, 0x81400000, 0x00400000, 0x80000000}));
  EXPECT_EQ(first(std::uint32_t{}, 254),
            (F32{0, 0x7F800000, 0x7E800000, 0xFF800000, 0x7F000000, 0x80000000}));
  EXPECT_EQ(first(std::uint32_t{}, 255), F32(6, 0x7FC00000));
  EXPECT_EQ(first(std::uint16_t{}, 0), (BF16{0, 0x0140, 0x0020, 0x8140, 0x0040, 0x8000}));
  EXPECT_EQ(first(std::uint16_t{}, 255), BF16(6, 0x7FC0));
  // Float16: subnormals, a tie to even (1 * 2^-25 -> 0, 6 * 2^-27 -> 1), overflow.
  const auto half = [&](std::uint8_t scale) {
    std::vector<std::uint16_t> x = dequantize<Float16>(codes, {scale}, 1, 32);
    x.resize(6);
    return x;
  };
  EXPECT_EQ(half(102), (BF16{0, 3, 0, 0x8003, 0, 0x8000}));
  EXPECT_EQ(half(100), (BF16{0, 1, 0, 0x8001, 0, 0x8000}));
  EXPECT_EQ(half(140), (BF16{0, 0x7A00, 0x6C00, 0xFA00, 0x7000, 0x8000}));
  EXPECT_EQ(half(141), (BF16{0, 0x7C00, 0x7000, 0xFC00, 0x7400, 0x8000}));
  EXPECT_EQ(half(255), BF16(6, 0x7E00));
}

// ------------------------------------------------------------------------------------ round trips

/// dequantize(quantize(dequantize(q))) = dequantize(q) for any q with scales first..last; and q
/// itself where the block's largest magnitude is 4 or 6.
template <class T>
void round_trip(ScaleMode mode, int first, int last) {
  using Bits = bits_of_t<T>;
  const QuantizeRule rule{mode, Rounding::nearest_even, NonFinite::ocp};
  constexpr std::int64_t k = 512, blocks = k / 32;
  const std::int64_t rows = 8 * (last - first + 1);
  Bytes codes = random_bytes(size(rows * k / 2), 60), scales(size(rows * blocks));
  for (std::int64_t b = 0; b < rows * blocks; ++b) {
    scales[size(b)] = static_cast<std::uint8_t>(first + b % (last - first + 1));
    // Blocks with every largest magnitude, down to zero alone.
    const auto largest = static_cast<std::uint8_t>(splitmix64(61, size(b)) % 8);
    for (std::int64_t i = 16 * b; i < 16 * b + 16; ++i) {
      std::uint8_t& byte = codes[size(i)];
      const auto limited = [largest](int code) {
        return std::min<int>(code & 7, largest) | (code & 8);
      };
      byte = static_cast<std::uint8_t>(limited(byte & 15) | limited(byte >> 4) << 4);
    }
  }
  const std::vector<Bits> dense = dequantize<T>(codes, scales, rows, k);
  const ReferenceMatrix again = quantize<T>(dense, rows, k, rule);
  EXPECT_TRUE(same_bits(dequantize<T>(again.codes, again.scales, rows, k), dense, "dequantized"));
  std::int64_t same_blocks = 0, differ = 0;
  for (std::int64_t b = 0; b < rows * blocks; ++b) {
    const auto begin = codes.begin() + 16 * b;
    int largest = 0;
    for (auto byte = begin; byte != begin + 16; ++byte) {
      largest = std::max({largest, *byte & 7, *byte >> 4 & 7});
    }
    if (largest < 6) continue;
    ++same_blocks;
    differ += !std::equal(begin, begin + 16, again.codes.begin() + 16 * b) ||
              scales[size(b)] != again.scales[size(b)];
  }
  EXPECT_EQ(differ, 0);
  EXPECT_GT(same_blocks, rows);
}

TEST(RoundTrip, Float32) {
  round_trip<float>(ScaleMode::floor, 0, 252);
  round_trip<float>(ScaleMode::even, 0, 252);
}
TEST(RoundTrip, BFloat16) {
  round_trip<BFloat16>(ScaleMode::floor, 0, 252);
  round_trip<BFloat16>(ScaleMode::even, 0, 252);
}
// Where Float16 holds every value exactly: 0.5 * 2^-23 to 6 * 2^13.
TEST(RoundTrip, Float16) {
  round_trip<Float16>(ScaleMode::floor, 104, 140);
  round_trip<Float16>(ScaleMode::even, 104, 140);
}

// -------------------------------------------------------------------- floating-point environment

TEST(FloatEnvironment, FlushToZeroChangesNothing) {
  if constexpr (!FlushToZero<Exec>::available()) {
    GTEST_SKIP() << "needs an x86 host execution space";
  } else {
    const Exec exec;
    constexpr std::int64_t rows = 64, k = 512;
    // Subnormals and all exponents, the smallest above all.
    std::vector<std::uint32_t> x(size(rows * k));
    for (std::size_t i = 0; i < x.size(); ++i) {
      const std::uint64_t bits = splitmix64(80, i), row = i / k;
      x[i] = static_cast<std::uint32_t>(bits & 0x807FFFFFu) |
             static_cast<std::uint32_t>(row < 32 ? 0 : row * 4 + (bits >> 40) % 4 - 128) << 23;
    }
    Bytes codes, scales;
    every_pair(codes, scales);
    const std::vector<std::uint32_t> dense =
        reference_dequantize<std::uint32_t>(codes, scales, float32_format);
    const std::vector<std::uint16_t> half =
        reference_dequantize<std::uint16_t>(codes, scales, float16_format);
    const auto bf16 = golden<std::uint16_t>("quantize_wild_input");
    const auto bf16_codes = golden<std::uint8_t>("quantize_wild_seed_codes").data;
    const auto bf16_scales = golden<std::uint8_t>("quantize_wild_seed_scales").data;
    // 0 where a flag such as -Ofast has set both for the whole process.
    const bool set_before = FlushToZero<Exec>::iterations_without(exec) == 0;
    {
      const FlushToZero<Exec> flush(exec);
      ASSERT_EQ(FlushToZero<Exec>::iterations_without(exec), 0);
      for (const QuantizeRule& rule : all_rules()) expect_quantized<float>(x, rows, k, rule);
      const ReferenceMatrix q =
          quantize<BFloat16>(bf16.data, bf16.rows, bf16.cols, KokkosMX::rules::reference);
      EXPECT_TRUE(same_bits(q.codes, bf16_codes, "codes"));
      EXPECT_TRUE(same_bits(q.scales, bf16_scales, "scales"));
      EXPECT_TRUE(same_bits(dequantize<float>(codes, scales, 256, 512), dense, "float"));
      EXPECT_TRUE(same_bits(dequantize<Float16>(codes, scales, 256, 512), half, "Float16"));
      ASSERT_EQ(FlushToZero<Exec>::iterations_without(exec), 0);
    }
    EXPECT_EQ(FlushToZero<Exec>::iterations_without(exec) == 0, set_before);
  }
}

}  // namespace
}  // namespace KokkosMXTest
