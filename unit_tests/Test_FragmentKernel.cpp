// SPDX-License-Identifier: Apache-2.0

// The GEMM kernel of devices with matrix units, run on the host: the very body that a device runs,
// with models of the matrix instructions, against the oracle. And the atoms alone, whose lane maps
// place what the models, written from the manuals, are given.

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "GemmCases.hpp"
#include "GemmSums.hpp"
#include "LockstepGroup.hpp"
#include "MatrixUnits.hpp"
#include "ReferenceGemm.hpp"
#include "atoms/gemm/mfma.hpp"
#include "atoms/gemm/mma.hpp"
#include "gemm/fragment_kernel.hpp"
#include "gemm/fragment_select.hpp"
#include "gemm/self_check.hpp"

namespace {

namespace Impl = KokkosMX::Impl;
using KokkosMX::RowSummary;
using KokkosMX::Tier;
using KokkosMXTest::Bits;
using KokkosMXTest::Data;
using KokkosMXTest::FloatUnit;
using KokkosMXTest::HostMatrix;
using KokkosMXTest::Stream;

template <FloatUnit Order>
using Fp4 = Impl::ScaledFp4Atom<KokkosMXTest::ModelScaledFp4<Order>>;
using Int8x64 = Impl::AlignedInt8Atom<KokkosMXTest::ModelInt8<16>>;
using Int8x32 = Impl::AlignedInt8Atom<KokkosMXTest::ModelInt8<8>>;
static_assert(Impl::FragmentAtom<Fp4<FloatUnit::ascending>>);
static_assert(Impl::FragmentAtom<Int8x64>);

// Those of fragment_select.hpp, and a smaller one of the staged kind.
using Large = Impl::LargeFragmentTile;
using Middle = Impl::MiddleFragmentTile;
using Small = Impl::SmallFragmentTile;
using Staged = Impl::FragmentTile<2, 2, 1, 2, 2, true, 2>;

// An operand as the kernel takes it. What lies around its bytes would show.
struct Operand {
  std::vector<std::uint8_t> codes, scales;
  std::vector<RowSummary> summaries;
  Impl::MatrixMap map;

  Operand(const HostMatrix& x, bool tiled) {
    const std::int64_t blocks = x.k / 32, row_bytes = x.k / 2;
    // Plain rows may lie anywhere, where the build's words may.
    const bool anywhere = !tiled && !Impl::words_need_alignment;
    const std::int64_t offset = anywhere ? 5 : 16;
    const std::int64_t stride = tiled ? row_bytes : row_bytes + (anywhere ? 7 : 16);
    codes.assign(offset + x.rows * stride, 0xFF);
    for (std::int64_t row = 0; row < x.rows; ++row) {
      for (std::int64_t col = 0; col < row_bytes; ++col) {
        const std::int64_t place =
            tiled ? KokkosMXTest::tile_16x16_offset(x.k, row, col) : row * stride + col;
        codes[offset + place] = x.codes[row * row_bytes + col];
      }
    }
    const std::int64_t rows = (x.rows + 255) / 256 * 256, cols = (blocks + 7) / 8 * 8;
    scales.assign(rows * cols, 255);
    for (std::int64_t row = 0; row < x.rows; ++row) {
      for (std::int64_t col = 0; col < blocks; ++col) {
        scales[KokkosMXTest::tile_32x8_offset(cols, row, col)] = x.scale(row, col);
      }
      const KokkosMXTest::RowFacts facts = KokkosMXTest::row_facts(x, row);
      RowSummary summary{};
      summary.n = facts.n.bit_length() > 64 ? ~std::uint64_t{0} : facts.n.bits_from(0);
      summary.lo = static_cast<std::uint8_t>(facts.lo);
      summary.hi = static_cast<std::uint8_t>(facts.hi);
      summary.has_nan = facts.has_nan ? 1 : 0;
      summaries.push_back(summary);
    }
    map.batch = 1;
    map.rows = x.rows;
    map.blocks = blocks;
    map.codes = {codes.data() + offset,
                 0,
                 16 * stride,
                 tiled ? 16 : stride,
                 tiled ? 1024 : 64,
                 tiled ? 256 : 16,
                 1,
                 x.rows,
                 blocks};
    map.scales = {scales.data(), 0, 32 * cols, 1, 4, 256, 2, 64, rows, cols};
    map.summaries = {summaries.data(), 0, 1};
  }
};

struct Result {
  Bits bits;
  std::vector<std::uint64_t> counts;
};

template <class Tile, bool Backwards, class... Atoms>
Result run_kernel(const HostMatrix& a, const HostMatrix& b, bool tiled_a, bool tiled_b,
                  Tier minimum, unsigned usable) {
  constexpr unsigned every = (2u << sizeof...(Atoms)) - 1u;
  using Kernel = Impl::FragmentKernel<Tile, every, Atoms...>;
  Operand x(a, tiled_a), y(b, tiled_b);
  EXPECT_TRUE(Impl::codes_lie_as_fragments(x.map.codes, Tile::m));
  EXPECT_TRUE(Impl::scales_lie_as_fragments(x.map.scales));
  Result result{Bits(a.rows * b.rows, 0xFFFFFFFFu), std::vector<std::uint64_t>(4, 0)};
  Impl::GemmProblem problem{};
  problem.a = x.map;
  problem.b = y.map;
  problem.epilogue = {
      result.bits.data(), Impl::Element::f32, 0, b.rows, 1, Impl::f32_one, 0u, nullptr, 1};
  problem.batch = 1;
  problem.m = a.rows;
  problem.n = b.rows;
  problem.blocks = a.k / 32;
  problem.minimum_tier = minimum;
  problem.counts = result.counts.data();
  const Impl::TileOrder order{8, 2};
  const auto launch = [&](const auto& kernel) {
    using K = std::remove_cvref_t<decltype(kernel)>;
    KokkosMXTest::run_in_lockstep<K, Backwards>(kernel, kernel.tiles());
  };
  if constexpr (Tile::staged && sizeof...(Atoms) > 1) {
    // In two launches, as large tiles are: the rest by smaller ones.
    launch(Impl::FragmentKernel<Tile, 1u, Atoms...>::make(problem, order, usable, 1u));
    launch(Impl::FragmentKernel<Middle, every, Atoms...>::make(problem, order, usable, every - 1u));
  } else {
    launch(Kernel::make(problem, order, usable, every));
  }
  return result;
}

struct Shape {
  std::int64_t m, n, k;
};

// All that the kernel is for: bits and counts of tiers against the oracle.
template <class Tile, bool Backwards, class... Atoms>
void check_kernel(const std::vector<Shape>& shapes, unsigned usable, const char* name) {
  std::uint64_t outputs = 0;
  std::vector<std::uint64_t> counts(4, 0);
  std::uint64_t seed = 1;
  for (const Shape& s : shapes) {
    for (int d = 0; d < KokkosMXTest::data_count; ++d) {
      const auto data = static_cast<Data>(d);
      HostMatrix a = KokkosMXTest::make_data(data, s.m, s.k, ++seed);
      const HostMatrix b = KokkosMXTest::make_data(data, s.n, s.k, ++seed);
      // One row that no fast tier certifies among many that one does.
      if (data == Data::narrow && s.k > 32) a.scale(s.m / 2, 1) = 250;
      const Bits expected = KokkosMXTest::ReferenceProduct(a, b).all();
      Stream stream(seed);
      const bool tiled_a = s.m % 16 == 0 && s.k % 64 == 0 && stream.below(2) == 0;
      const bool tiled_b = s.n % 16 == 0 && s.k % 64 == 0 && stream.below(2) == 0;
      const Tier minimum = d == 2 ? Tier::wide : d == 4 ? Tier::window : Tier::automatic;
      const Result result =
          run_kernel<Tile, Backwards, Atoms...>(a, b, tiled_a, tiled_b, minimum, usable);
      KokkosMXTest::expect_equal_bits(
          expected, result.bits, s.n,
          std::string(name) + " data " + std::to_string(d) + ' ' + KokkosMXTest::shape_text(a, b));
      std::uint64_t total = 0;
      for (int t = 0; t < 4; ++t) {
        counts[t] += result.counts[t];
        total += result.counts[t];
      }
      ASSERT_EQ(total, expected.size()) << name;
      outputs += expected.size();
    }
  }
  for (int t = 0; t < 4; ++t) EXPECT_GT(counts[t], 0u) << name << " tier " << t;
  std::cout << name << ": " << outputs << " outputs; tiers " << counts[0] << ' ' << counts[1] << ' '
            << counts[2] << ' ' << counts[3] << std::endl;
}

const std::vector<Shape> ragged{{1, 1, 32},    {16, 32, 64},  {17, 33, 96},   {5, 70, 256},
                                {48, 16, 288}, {33, 47, 544}, {64, 80, 1024}, {3, 2, 2080}};

TEST(FragmentKernel, SmallTiles) {
  check_kernel<Small, false, Fp4<FloatUnit::ascending>, Int8x64>(ragged, 3, "small fp4, i8x64");
  check_kernel<Small, true, Fp4<FloatUnit::descending>, Int8x64>(ragged, 3, "small descending");
  check_kernel<Small, false, Int8x32>(ragged, 1, "small i8x32");
}
TEST(FragmentKernel, MiddleTiles) {
  check_kernel<Middle, false, Fp4<FloatUnit::pairwise>, Int8x64>(ragged, 3, "middle pairwise");
  check_kernel<Middle, true, Fp4<FloatUnit::broken>, Int8x64>(ragged, 2, "middle without fp4");
}
TEST(FragmentKernel, StagedTiles) {
  check_kernel<Staged, false, Fp4<FloatUnit::ascending>, Int8x64>(ragged, 3, "staged ascending");
  check_kernel<Staged, true, Fp4<FloatUnit::descending>, Int8x32>(ragged, 3, "staged descending");
  check_kernel<Staged, false, Int8x64>(ragged, 1, "staged i8x64");
}
TEST(FragmentKernel, LargeTiles) {
  const std::vector<Shape> shapes{{256, 128, 64}, {300, 150, 160}, {20, 129, 1056}};
  check_kernel<Large, false, Fp4<FloatUnit::ascending>, Int8x64>(shapes, 3, "large");
}

// No K: sums of nothing. No atom may be used: nothing is lost but time.
TEST(FragmentKernel, WithoutKAndWithoutAtoms) {
  const HostMatrix a(18, 0), b(7, 0);
  EXPECT_EQ((run_kernel<Small, false, Int8x64>(a, b, false, false, Tier::automatic, 1).bits),
            Bits(18 * 7, 0u));
  EXPECT_EQ((run_kernel<Staged, false, Int8x64>(a, b, false, false, Tier::automatic, 1).bits),
            Bits(18 * 7, 0u));
  const HostMatrix x = KokkosMXTest::make_data(Data::narrow, 9, 128, 5);
  const HostMatrix y = KokkosMXTest::make_data(Data::narrow, 11, 128, 6);
  const Result result = run_kernel<Small, false, Int8x64>(x, y, false, false, Tier::automatic, 0);
  KokkosMXTest::expect_equal_bits(KokkosMXTest::ReferenceProduct(x, y).all(), result.bits, 11, "");
  EXPECT_EQ(result.counts[1], 0u);
}

// Sums as large as float32's window lets pass, with a last bit of one, in any order of adding: what
// is certified is right, and a unit of fewer bits is seen (so the certificate is not too careful to
// notice).
TEST(FragmentKernel, SumsAtTheWindowsEdge) {
  // n = 2^24 for both: 32 x 12^2 halves a block; the largest certified sums.
  std::uint64_t certified = 0, broken = 0;
  for (int blocks = 1; blocks <= 64; blocks += 3) {
    for (int spread = 0; spread <= 24; ++spread) {
      HostMatrix a(16, 32 * blocks), b(16, 32 * blocks);
      for (int row = 0; row < 16; ++row) {
        for (int block = 0; block < blocks; ++block) {
          const bool high = block == blocks / 2;
          a.scale(row, block) = static_cast<std::uint8_t>(100 + (high ? spread / 2 : 0));
          b.scale(row, block) = static_cast<std::uint8_t>(90 + (high ? spread - spread / 2 : 0));
          for (int k = 0; k < 32; ++k) {
            // Sums are odd multiples of the unit: one product of halves 1 x 1 at the least scales.
            const bool last = !high && block == 0 && k == row;
            const int code = high ? 7 : k == 0 || last ? 1 : 0;
            a.set_code(row, 32 * block + k, code);
            b.set_code(row, 32 * block + k, code);
          }
        }
      }
      const Bits expected = KokkosMXTest::ReferenceProduct(a, b).all();
      const auto good = run_kernel<Small, false, Fp4<FloatUnit::descending>>(a, b, false, false,
                                                                             Tier::automatic, 1);
      ASSERT_EQ(good.bits, expected) << blocks << ' ' << spread;
      certified += good.counts[1];
      const auto bad =
          run_kernel<Small, false, Fp4<FloatUnit::broken>>(a, b, false, false, Tier::automatic, 1);
      broken += bad.bits != expected ? 1 : 0;
    }
  }
  EXPECT_GT(certified, 0u);
  EXPECT_GT(broken, 0u);
}

// The order of tiles visits each once.
TEST(FragmentKernel, TileOrder) {
  for (const unsigned m : {1u, 2u, 3u, 7u, 8u, 13u}) {
    for (const unsigned n : {1u, 2u, 5u, 9u, 16u}) {
      for (const unsigned chiplets : {1u, 8u}) {
        for (const unsigned together : {1u, 4u, 8u}) {
          std::vector<int> visits(m * n, 0);
          for (unsigned item = 0; item < m * n; ++item) {
            unsigned row = m, col = n;
            Impl::TileOrder{chiplets, together}(item, m, n, row, col);
            ASSERT_LT(row, m);
            ASSERT_LT(col, n);
            ++visits[row * n + col];
          }
          ASSERT_EQ(visits, std::vector<int>(m * n, 1)) << m << ' ' << n << ' ' << chiplets;
        }
      }
    }
  }
}

// The table: what each kind of problem gets on MI355X.
TEST(FragmentSelect, Table) {
  using Impl::FragmentTiles;
  const Impl::DeviceDesc mi355x{256, 8};
  const auto tiles = [&](std::int64_t batch, std::int64_t m, std::int64_t n, std::int64_t k) {
    return Impl::fragment_config({batch, m, n, k}, mi355x).tiles;
  };
  EXPECT_EQ(tiles(1, 4096, 4096, 4096), FragmentTiles::large);
  EXPECT_EQ(tiles(1, 8192, 8192, 8192), FragmentTiles::large);
  EXPECT_EQ(tiles(64, 256, 512, 1024), FragmentTiles::large);
  EXPECT_EQ(tiles(1, 256, 3072, 1536), FragmentTiles::middle);
  EXPECT_EQ(tiles(1, 64, 7168, 2048), FragmentTiles::middle);
  EXPECT_EQ(tiles(1, 16, 2112, 7168), FragmentTiles::small);
  EXPECT_EQ(tiles(1, 4, 2880, 512), FragmentTiles::small);
  EXPECT_EQ(tiles(1, 16384, 3, 512), FragmentTiles::small);
  const Impl::ProductDesc desc{1, 16, 2112, 7168};
  EXPECT_EQ(Impl::text(desc, mi355x, Impl::fragment_config(desc, mi355x)),
            "batch 1, M 16, N 2112, K 7168 on 256 compute units in 8 chiplets: small tiles, 1 rows "
            "of tiles together");
}

// ------------------------------------------------------------------------------ atoms alone

// One fragment of A by one of B, placed by the atom's own maps, every selector.
template <class Atom, int SelectA, int SelectB>
void check_atom(std::uint64_t seed) {
  const HostMatrix a = KokkosMXTest::random_matrix(16, 128, seed, 40, 43);
  const HostMatrix b = KokkosMXTest::random_matrix(16, 128, seed + 1, 70, 73);
  std::vector<typename Atom::Operand> x(Atom::lanes), y(Atom::lanes);
  std::vector<typename Atom::Accumulator> sums(Atom::lanes);
  const auto operand = [](const HostMatrix& from, int lane, int least, int select,
                          std::uint32_t others) {
    const int row = Atom::row_of_codes(lane), block = Atom::block_of_codes(lane);
    Impl::Words codes;
    std::memcpy(&codes, from.codes.data() + row * 64 + block * 16, 16);
    const int distance = from.scale(row, block) - least;
    const std::uint32_t scales =
        (others & ~(255u << (8 * select))) | static_cast<std::uint32_t>(distance) << (8 * select);
    return std::pair(codes, scales);
  };
  Stream stream(seed);
  for (int lane = 0; lane < Atom::lanes; ++lane) {
    // Bytes that are not selected are other distances.
    const auto others = static_cast<std::uint32_t>(stream.next()) & 0x1F1F1F1Fu;
    const auto [codes_a, scales_a] = operand(a, lane, 40, SelectA, others);
    const auto [codes_b, scales_b] = operand(b, lane, 70, SelectB, others >> 3 & 0x1F1F1F1Fu);
    x[lane] = Atom::template operand<SelectA>(codes_a, scales_a);
    y[lane] = Atom::template operand<SelectB>(codes_b, scales_b);
    sums[lane] = {};
  }
  for (int times = 0; times < 2; ++times) {  // accumulates
    Atom::template multiply_add<SelectA, SelectB>(
        [&](int lane) -> const auto& { return x[lane]; },
        [&](int lane) -> const auto& { return y[lane]; },
        [&](int lane) -> auto& { return sums[lane]; });
  }
  std::vector<int> visits(16 * 16, 0);
  for (int lane = 0; lane < Atom::lanes; ++lane) {
    for (int v = 0; v < Atom::values; ++v) {
      const int row = Atom::row_of(lane, v), col = Atom::col_of(lane, v);
      ++visits[16 * row + col];
      KokkosMXTest::ExactSum exact;
      KokkosMXTest::ReferenceProduct(a, b).sum(row, col, exact);
      const KokkosMXTest::BigUnsigned magnitude = exact.magnitude();
      const std::uint32_t expected =
          magnitude.is_zero() ? 0u
                              : KokkosMXTest::round_to(KokkosMXTest::format_f32,
                                                       exact.is_negative(), magnitude, -256 + 1);
      ASSERT_EQ(Atom::round(Atom::bits(sums[lane], v), 40 + 70 - 256), expected)
          << Atom::name << " lane " << lane << " value " << v;
    }
  }
  ASSERT_EQ(visits, std::vector<int>(16 * 16, 1)) << Atom::name;
}
template <class Atom>
void check_atom() {
  for (std::uint64_t seed = 1; seed < 4; ++seed) {
    check_atom<Atom, 0, 0>(seed);
    check_atom<Atom, 1, 2>(seed);
    check_atom<Atom, 2, 3>(seed);
    check_atom<Atom, 3, 1>(seed);
  }
}
TEST(FragmentAtoms, LaneMapsAndSelectors) {
  check_atom<Fp4<FloatUnit::ascending>>();
  check_atom<Int8x64>();
  check_atom<Int8x32>();
}

// The self-check passes for units that keep float32's 24 bits, in whatever order they add, and
// fails for one that keeps 22.
template <class Atom>
std::uint32_t self_check() {
  std::uint32_t wrong = 0;
  using Check = Impl::SelfCheck<Atom>;
  KokkosMXTest::run_in_lockstep(Check{&wrong}, Check::items);
  return wrong;
}
TEST(FragmentAtoms, SelfCheck) {
  EXPECT_EQ(self_check<Fp4<FloatUnit::ascending>>(), 0u);
  EXPECT_EQ(self_check<Fp4<FloatUnit::descending>>(), 0u);
  EXPECT_EQ(self_check<Fp4<FloatUnit::pairwise>>(), 0u);
  EXPECT_GT(self_check<Fp4<FloatUnit::broken>>(), 0u);
  EXPECT_EQ(self_check<Int8x64>(), 0u);
}

// Every code at every shift that the atom certifies, and distances of every pair of scales.
TEST(FragmentAtoms, AlignedBytes) {
  for (int shift = 0; shift <= Int8x64::max_shift; ++shift) {
    Impl::Words codes{};
    for (int i = 0; i < 32; ++i)
      codes.w[i / 8] |= static_cast<std::uint32_t>(i % 16) << (4 * (i % 8));
    const auto operand = Int8x64::operand<1>(codes, static_cast<std::uint32_t>(shift) << 8);
    for (int i = 0; i < 32; ++i) {
      const int byte = i % 2 * 16 + i / 2;
      const auto value =
          static_cast<std::int8_t>(operand.bytes[byte / 4] >> (8 * (byte % 4)) & 255u);
      ASSERT_EQ(value, KokkosMXTest::code_in_halves(i % 16) << shift) << i << ' ' << shift;
    }
  }
}
// The warp-level atom of NVIDIA GPUs: its maps place operands and results in a product of 16 rows
// by 8 columns by 32 of K, whichever of these a lane's bytes are.
TEST(MmaAtom, LaneMaps) {
  using Atom = Impl::MmaInt8Atom;
  Stream random(11);
  int a[16][32], b[8][32];
  for (auto& row : a) {
    for (int& x : row) x = static_cast<int>(random.below(193)) - 96;
  }
  for (auto& row : b) {
    for (int& x : row) x = static_cast<int>(random.below(193)) - 96;
  }
  const auto part = [](const int(&row)[32], int lane) {
    Atom::Part bytes{};
    for (int i = 0; i < 8; ++i) {
      bytes.word[i / 4] |= static_cast<std::uint32_t>(row[8 * Atom::operand_part(lane) + i] & 0xFF)
                           << (8 * (i % 4));
    }
    return bytes;
  };
  Atom::Registers registers[Atom::lanes];
  std::int32_t d[Atom::lanes][Atom::values] = {};
  for (int lane = 0; lane < Atom::lanes; ++lane) {
    const int row = Atom::operand_row(lane, 0);
    registers[lane] = Atom::registers(part(a[row], lane), part(a[Atom::operand_row(lane, 1)], lane),
                                      part(b[row], lane));
  }
  KokkosMXTest::ModelMmaInt8::multiply_add([&](int lane) { return registers[lane].a; },
                                           [&](int lane) { return registers[lane].b; },
                                           [&](int lane) { return d[lane]; });
  for (int lane = 0; lane < Atom::lanes; ++lane) {
    for (int v = 0; v < Atom::values; ++v) {
      const int row = Atom::row_of(lane, v), col = Atom::col_of(lane, v);
      int expected = 0;
      for (int k = 0; k < 32; ++k) expected += a[row][k] * b[col][k];
      ASSERT_EQ(d[lane][v], expected) << lane << ' ' << v;
    }
  }
}

TEST(FragmentAtoms, Distances) {
  for (std::uint32_t scale = 0; scale < 256; ++scale) {
    for (std::uint32_t least = 0; least < 256; ++least) {
      const std::uint32_t other = 255 - scale;
      const std::uint32_t d = Impl::distances(scale | other << 8 | scale << 16 | other << 24,
                                              least | least << 8 | least << 16 | least << 24);
      const std::uint32_t first = (scale - least) & 31u, second = (other - least) & 31u;
      ASSERT_EQ(d, first | second << 8 | first << 16 | second << 24);
    }
  }
}

TEST(Numbers, ScaleFloat) {
  Stream random(9);
  for (int i = 0; i < 300000; ++i) {
    const auto x = static_cast<std::uint32_t>(random.next());
    const int exponent = static_cast<int>(random.below(600)) - 300;
    const KokkosMXTest::Decoded d = KokkosMXTest::decode(KokkosMXTest::format_f32, x);
    const bool normal = !d.nan && !d.infinite && (d.magnitude >> 23) == 1;
    if (!normal && d.magnitude != 0) continue;
    KokkosMXTest::BigUnsigned magnitude;
    magnitude.add(d.magnitude, 0);
    const std::uint32_t expected =
        d.magnitude == 0 ? 0u
                         : KokkosMXTest::round_to(KokkosMXTest::format_f32, d.negative, magnitude,
                                                  d.exponent + exponent);
    ASSERT_EQ(Impl::scale_f32(x, exponent), expected) << std::hex << x << ' ' << exponent;
  }
}

}  // namespace
