// SPDX-License-Identifier: Apache-2.0

// What the kernels are made of, each alone: every atom that can run here against plain loops over
// wide integers, and the integer arithmetic of numbers.hpp and exact_sum.hpp against the oracles.

#include <gtest/gtest.h>

#include <KokkosMX.hpp>
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "Inputs.hpp"
#include "ReferenceGemm.hpp"
#include "atom_select.hpp"
#include "gemm/exact_sum.hpp"
#include "numbers.hpp"

namespace {

namespace Impl = KokkosMX::Impl;

/// Numbers without end, the same every time.
class Stream {
 public:
  explicit Stream(std::uint64_t seed) : state_(seed) {}
  std::uint64_t operator()() {
    state_ += 0x9E3779B97F4A7C15u;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }

 private:
  std::uint64_t state_;
};

constexpr int magnitudes[8] = {0, 1, 2, 3, 4, 6, 8, 12};

int value_of(int code) { return (code & 8 ? -1 : 1) * magnitudes[code & 7]; }

/// Calls f(atoms) for each set of atoms that this machine can run.
template <class F>
int for_each_atoms(F f) {
  f(Impl::PortableAtoms{});
  int sets = 1;
#if KOKKOSMX_HAVE_X86_ATOMS
  if (__builtin_cpu_supports("avx2")) {
    f(Impl::Avx2Atoms{});
    ++sets;
  }
  if (Impl::has_avx512()) {
    f(Impl::Avx512Atoms{});
    ++sets;
  }
#endif
  return sets;
}

TEST(Atoms, UnpackEveryByteAndShift) {
  for_each_atoms([](auto atoms) {
    using Atom = typename decltype(atoms)::Gemm;
    SCOPED_TRACE(Atom::name);
    // The order within a block is the atom's own, but it is one order: found with one-hot blocks.
    int order[32];
    for (int k = 0; k < 32; ++k) {
      std::uint8_t codes[17] = {};
      typename Atom::element to[32];
      codes[1 + k / 2] = static_cast<std::uint8_t>(2 << (4 * (k % 2)));  // unaligned
      Atom::unpack(codes + 1, 0, to);
      int ones = 0;
      for (int e = 0; e < 32; ++e) {
        if (to[e] == 0) continue;
        ++ones;
        order[k] = e;
        EXPECT_EQ(to[e], 2);
      }
      ASSERT_EQ(ones, 1);
    }
    for (int shift = 0; shift <= Atom::max_shift; ++shift) {
      for (int first = 0; first < 256; first += 16) {
        std::uint8_t codes[16];
        typename Atom::element to[32];
        for (int i = 0; i < 16; ++i) codes[i] = static_cast<std::uint8_t>(first + i);
        Atom::unpack(codes, shift, to);
        for (int k = 0; k < 32; ++k) {
          const int code = codes[k / 2] >> (4 * (k % 2)) & 15;
          ASSERT_EQ(to[order[k]], value_of(code) * (1 << shift)) << "code " << code;
        }
      }
    }
  });
}

TEST(Atoms, CoordinatesCoverTheTileOnce) {
  for_each_atoms([](auto atoms) {
    using Atom = typename decltype(atoms)::Gemm;
    SCOPED_TRACE(Atom::name);
    std::vector<int> seen(Atom::M * Atom::N, 0);
    for (int lane = 0; lane < Atom::lanes; ++lane) {
      for (int i = 0; i < Atom::M * Atom::N / Atom::lanes; ++i) {
        const int row = Atom::row_of(lane, i), col = Atom::col_of(lane, i);
        ASSERT_TRUE(row >= 0 && row < Atom::M && col >= 0 && col < Atom::N);
        ++seen[row * Atom::N + col];
      }
    }
    EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), Atom::M * Atom::N);
  });
}

TEST(Atoms, MultiplyAddIsTheIntegerSum) {
  for_each_atoms([](auto atoms) {
    using Atom = typename decltype(atoms)::Gemm;
    SCOPED_TRACE(Atom::name);
    Stream random(1);
    constexpr int blocks = 5;
    for (const int extreme : {0, 1}) {
      for (int count = 1; count <= blocks; ++count) {
        const int shift = extreme ? 6 : 3;
        std::vector<std::uint8_t> codes[2];
        std::vector<typename Atom::element> panel[2];
        for (int side = 0; side < 2; ++side) {
          const int rows = side == 0 ? Atom::M : Atom::N;
          codes[side].resize(rows * blocks * 16);
          panel[side].resize(rows * blocks * 32);
          for (auto& byte : codes[side]) {
            byte = extreme ? 0x7F : static_cast<std::uint8_t>(random());
          }
          for (int row = 0; row < rows; ++row) {
            for (int block = 0; block < blocks; ++block) {
              Atom::unpack(&codes[side][(row * blocks + block) * 16],
                           std::min(shift, Atom::max_shift),
                           &panel[side][Atom::panel_offset(row, block, blocks)]);
            }
          }
        }
        typename Atom::Accumulator sum{};
        for (auto& value : sum.value) value = 17;
        Atom::multiply_add(sum, panel[0].data(), panel[1].data(), count, blocks);
        const std::int64_t unit = std::int64_t{1} << (2 * std::min(shift, Atom::max_shift));
        for (int i = 0; i < Atom::M * Atom::N; ++i) {
          const int row = Atom::row_of(0, i), col = Atom::col_of(0, i);
          std::int64_t expected = 0;
          for (int k = 0; k < 32 * count; ++k) {
            const int a = codes[0][row * blocks * 16 + k / 2] >> (4 * (k % 2)) & 15;
            const int b = codes[1][col * blocks * 16 + k / 2] >> (4 * (k % 2)) & 15;
            expected += value_of(a) * value_of(b);
          }
          ASSERT_EQ(sum.value[i], 17 + unit * expected) << row << ", " << col;
        }
        std::int32_t product = 0;
        for (int k = 0; k < 32; ++k) {
          product += value_of(codes[0][k / 2] >> (4 * (k % 2)) & 15) *
                     value_of(codes[1][k / 2] >> (4 * (k % 2)) & 15);
        }
        ASSERT_EQ(Atom::block_product(codes[0].data(), codes[1].data()), product);
      }
    }
  });
}

// The formulas of quantizing are tested through the library against an oracle; here the atoms agree
// with one another on any bits, in every rule.
template <class Format>
void quantize_atoms_agree() {
  const KokkosMX::ScaleMode modes[] = {KokkosMX::ScaleMode::floor, KokkosMX::ScaleMode::ceil,
                                       KokkosMX::ScaleMode::rceil, KokkosMX::ScaleMode::even};
  std::vector<KokkosMX::QuantizeRule> rules{KokkosMX::rules::reference};
  for (const auto mode : modes) {
    for (const auto rounding : {KokkosMX::Rounding::nearest_even, KokkosMX::Rounding::ties_up}) {
      rules.emplace_back(mode, rounding, KokkosMX::NonFinite::ocp);
    }
  }
  constexpr int bytes = 32 * static_cast<int>(sizeof(typename Format::bits));
  Stream random(2);
  for (int trial = 0; trial < 20000; ++trial) {
    unsigned char x[bytes + 1];
    for (auto& byte : x) byte = static_cast<unsigned char>(random());
    if (trial % 2 == 0) {  // a narrow range of exponents
      const auto exponent = static_cast<unsigned char>(random() & 0x7F);
      for (int i = static_cast<int>(sizeof(typename Format::bits)); i <= bytes;
           i += static_cast<int>(sizeof(typename Format::bits))) {
        x[i] = static_cast<unsigned char>((x[i] & 0x80) | exponent);
      }
    }
    for (const auto& rule : rules) {
      std::uint8_t expected[16];
      const auto result = Impl::PortableQuantizeAtom::quantize<Format>(x + 1, expected, rule);
      std::uint32_t squares = 0;
      for (int k = 0; k < 32; ++k) {
        const int m = magnitudes[expected[k / 2] >> (4 * (k % 2)) & 7];
        squares += static_cast<std::uint32_t>(m * m);
      }
      ASSERT_EQ(result.sum_of_squares, squares);
      for_each_atoms([&](auto atoms) {
        using Atom = typename decltype(atoms)::Quantize;
        SCOPED_TRACE(Atom::name);
        std::uint8_t codes[16];
        const auto other = Atom::template quantize<Format>(x + 1, codes, rule);
        ASSERT_EQ(other.scale, result.scale);
        ASSERT_EQ(other.sum_of_squares, result.sum_of_squares);
        ASSERT_TRUE(std::equal(codes, codes + 16, expected));
        ASSERT_EQ(Atom::sum_of_squares(codes), squares);
        unsigned char dense[bytes], expected_dense[bytes];
        Atom::template dequantize<Format>(codes, result.scale, dense);
        Impl::PortableQuantizeAtom::dequantize<Format>(codes, result.scale, expected_dense);
        ASSERT_TRUE(std::equal(dense, dense + bytes, expected_dense));
      });
    }
  }
}
TEST(Atoms, QuantizeAgree) {
  quantize_atoms_agree<Impl::F32Format>();
  quantize_atoms_agree<Impl::BF16Format>();
  quantize_atoms_agree<Impl::F16Format>();
}

TEST(Atoms, TheForcedAtomRuns) {
  const char* forced = std::getenv("KOKKOSMX_ATOM");
  const std::string runs = KokkosMX::gemm_atom(Kokkos::DefaultHostExecutionSpace());
  std::cout << "runs: " << runs << std::endl;
  if (forced != nullptr && *forced != '\0') {
    EXPECT_EQ(runs, forced);
  } else {
    std::string best;
    for_each_atoms([&](auto atoms) { best = decltype(atoms)::Gemm::name; });
    EXPECT_EQ(runs, best);
  }
}

TEST(ExactSum, ProductBelow) {
  Stream random(3);
  const auto check = [](std::uint64_t a, std::uint64_t b) {
    const auto product = static_cast<unsigned __int128>(a) * b;
    for (const int bits : {1, 31, 32, 33, 61, 62, 63, 64}) {
      ASSERT_EQ(Impl::product_below(a, b, bits),
                product < (static_cast<unsigned __int128>(1) << bits))
          << a << " * " << b << " < 2^" << bits;
    }
  };
  for (int i = 0; i < 200000; ++i) {
    const auto a = random() >> (random() % 64), b = random() >> (random() % 64);
    check(a, b);
  }
  for (int i = 0; i < 64; ++i) {
    for (int j = 0; j < 64; ++j) {
      for (int d = -1; d <= 1; ++d) {
        check((std::uint64_t{1} << i) + static_cast<std::uint64_t>(d), std::uint64_t{1} << j);
      }
    }
  }
  check(~std::uint64_t{0}, ~std::uint64_t{0});
  check(0, ~std::uint64_t{0});
}

TEST(ExactSum, BitsOfSum) {
  EXPECT_EQ(Impl::bits_of_sum(0), 0);
  for (std::int64_t blocks = 1; blocks < 100000; blocks = blocks * 3 / 2 + 1) {
    const std::int64_t largest = 144 * 32 * blocks;
    const int bits = Impl::bits_of_sum(blocks);
    EXPECT_LT(largest, std::int64_t{1} << bits);
    EXPECT_GE(largest, std::int64_t{1} << (bits - 1));
  }
}

TEST(ExactSum, WideSumRoundsOnce) {
  Stream random(4);
  for (int trial = 0; trial < 20000; ++trial) {
    Impl::WideSum sum;
    KokkosMXTest::ExactSum expected;
    const int terms = 1 + static_cast<int>(random() % 20);
    const int range = 1 + static_cast<int>(random() % 508);
    const int exponent = -256 + static_cast<int>(random() % (509u - static_cast<unsigned>(range)));
    std::vector<std::pair<int, int>> undo;
    for (int i = 0; i < terms; ++i) {
      const int term = static_cast<int>(random() % 9217) - 4608;
      const int shift = static_cast<int>(random() % static_cast<unsigned>(range + 1));
      sum.add(term, shift);
      expected.add(term, shift);
      undo.emplace_back(term, shift);
      if (random() % 8 == 0) sum.carry();
    }
    if (trial % 3 == 0) {  // cancel all but the smallest
      std::sort(undo.begin(), undo.end(), [](auto a, auto b) { return a.second < b.second; });
      for (std::size_t i = 1; i < undo.size(); ++i) {
        sum.add(-undo[i].first, undo[i].second);
        expected.add(-undo[i].first, undo[i].second);
      }
    }
    const auto magnitude = expected.magnitude();
    const std::uint32_t bits =
        magnitude.is_zero() ? 0u
                            : KokkosMXTest::round_to(KokkosMXTest::format_f32,
                                                     expected.is_negative(), magnitude, exponent);
    ASSERT_EQ(sum.round(exponent), bits) << "trial " << trial;
  }
}

TEST(Numbers, FloatOperationsAgainstTheOracle) {
  Stream random(5);
  const std::uint32_t special[] = {0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007FFFFF,
                                   0x00800000, 0x3F800000, 0xBF800000, 0x7F7FFFFF, 0xFF7FFFFF,
                                   0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001, 0x7F800001};
  const auto check = [](std::uint32_t x, std::uint32_t y) {
    ASSERT_EQ(Impl::multiply_f32(x, y), KokkosMXTest::multiply_f32(x, y))
        << std::hex << x << ' ' << y;
    ASSERT_EQ(Impl::add_f32(x, y), KokkosMXTest::add_f32(x, y)) << std::hex << x << ' ' << y;
  };
  for (const auto x : special) {
    for (const auto y : special) check(x, y);
  }
  for (int i = 0; i < 300000; ++i) {
    const auto x = static_cast<std::uint32_t>(random());
    auto y = static_cast<std::uint32_t>(random());
    // Near exponents, so that sums cancel; and near ties.
    if (i % 2 == 0) y = (x ^ 0x80000000u) + (y % 64u) * 0x00400000u + y % 3u;
    check(x, y);
    check(x, special[i % 15]);
  }
}

}  // namespace
