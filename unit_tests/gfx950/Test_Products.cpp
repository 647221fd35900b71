// SPDX-License-Identifier: Apache-2.0

// Products on gfx950's machine code and on the host: every tile of the tuning table, every tier,
// the fused call, the epilogue, compare, and the self-check of the float matrix unit.

#include <bit>
#include <cstdlib>
#include <ostream>
#include <string>
#include <type_traits>
#include <vector>

#include "Both.hpp"

namespace KokkosMXTest {
namespace {

using KokkosMX::BFloat16;
using KokkosMX::Float16;
using KokkosMX::RowMajor;
using KokkosMX::Tier;
using KokkosMX::Tile16x128;
using KokkosMX::Tile16x16;
using KokkosMX::Tile16x4;
using KokkosMX::Tile32x8;

/// The tiles of fragment_select.hpp, and a problem of 2 x 2 of each with ragged edges. The library
/// chooses by the number of compute units. Every wave's main loop makes turns for the depth of the
/// pipeline and 2 more, and has a tail: 8 blocks a turn, dealt out over the waves that share K.
struct Tiles {
  const char* name;
  int compute_units;
  std::int64_t m, n, blocks;
};
void PrintTo(const Tiles& tiles, std::ostream* out) {
  *out << tiles.name << " tiles, M " << tiles.m << ", N " << tiles.n << ", K " << 32 * tiles.blocks;
}
constexpr Tiles large{"large", 4, 256 + 19, 128 + 21, 8 * 4 + 3};
constexpr Tiles middle{"middle", 256, 64 + 5, 32 + 9, 4 * 8 * 4 - 5};
// 16 x 16, for a C that is no higher, or no wider.
constexpr Tiles small{"small", 256, 13, 16 + 7, 8 * 8 * 4 - 11};
constexpr Tiles narrow{"small", 256, 16 + 5, 9, 8 * 8 * 4 - 11};

/// What the epilogue is given.
struct Settings {
  float alpha = 1, beta = 0;
  bool bias = false;
  Tier minimum_tier = Tier::automatic;
};

/// How A and B lie.
template <class CodesA, class ScalesA, class CodesB, class ScalesB>
struct Lying {};
using AsFragments = Lying<Tile16x16, Tile32x8, Tile16x16, Tile32x8>;
/// Any extents do.
using AsRows = Lying<RowMajor, RowMajor, RowMajor, Tile32x8>;
using AsPrepared = Lying<Tile16x128, Tile16x4, Tile16x128, Tile16x4>;

/// C = A B^T on both sides, C's type T: C itself and the counts of tiers that say nothing of an
/// atom.
template <class T, class CodesA, class ScalesA, class CodesB, class ScalesB>
void product_on_both(Lying<CodesA, ScalesA, CodesB, ScalesB>, const std::vector<HostMatrix>& a,
                     const std::vector<HostMatrix>& b, const Settings& settings = {},
                     bool with_summaries = true, const Outputs& golden = {}) {
  const std::int64_t m = a[0].rows, n = b[0].rows;
  const auto batch = static_cast<std::int64_t>(std::max(a.size(), b.size()));
  const Bytes c_before = random_bytes(static_cast<std::size_t>(batch * m * n) * sizeof(T), 4711);
  std::vector<float> bias;
  for (std::int64_t j = 0; j < n; ++j) {
    bias.push_back(static_cast<float>((j % 2 == 0 ? 1 : -1) * j) / 3.0f);
  }
  same_on_both(
      [&](const auto& exec) {
        using Exec = std::remove_cvref_t<decltype(exec)>;
        using Space = typename Exec::memory_space;
        const auto qa = to_storage<Exec, CodesA, ScalesA>(a);
        const auto qb = to_storage<Exec, CodesB, ScalesB>(b);
        const auto c = settings.beta == 0 ? fresh<Exec, T>(batch, m, n)
                                          : filled<Exec, T>(batch, m, n, c_before.data());
        const Kokkos::View<float*, Space> device_bias("bias", bias.size());
        set_bytes(device_bias, bias.data());
        const Kokkos::View<std::uint64_t*, Space> counts("counts", KokkosMX::tier_count);
        KokkosMX::GemmOptions<Space> options;
        options.alpha(settings.alpha)
            .beta(settings.beta)
            .minimum_tier(settings.minimum_tier)
            .tier_counts(counts);
        if (settings.bias) options.bias(device_bias);
        const auto input = [&](const auto& storage) {
          using Matrix = typename std::remove_cvref_t<decltype(storage)>::const_matrix_type;
          const auto q = storage.matrix();
          const typename Matrix::codes_type codes(q.codes());
          const typename Matrix::scales_type scales(q.scales());
          return with_summaries ? Matrix(q) : Matrix(codes, scales);
        };
        KokkosMX::gemm(exec, input(qa), input(qb), c, options);
        exec.fence();
        // Which sums are aligned depends on the atom: NaNs do not.
        Output nans = output("outputs without a sum", counts);
        nans.bytes.resize(sizeof(std::uint64_t));
        std::uint64_t counted = 0;
        const Bytes all = bytes_of(counts);
        for (int tier = 0; tier < KokkosMX::tier_count; ++tier) {
          counted += reinterpret_cast<const std::uint64_t*>(all.data())[tier];
        }
        EXPECT_EQ(counted, static_cast<std::uint64_t>(batch * m * n));
        return Outputs{output("C", c), nans};
      },
      golden);
}

/// Rows of one scale, so that sums are certified for float32, and between them what is certified
/// for integers alone, for windows, or for nothing, NaNs and zeros.
HostMatrix every_tier(std::int64_t rows, std::int64_t k, std::uint64_t seed) {
  HostMatrix x = random_matrix(rows, k, seed, 120, 121);
  const HostMatrix integer(rows, k, 124);
  const Data others[] = {Data::medium, Data::full, Data::nan, Data::zeros};
  for (std::int64_t row = 0; row < rows; ++row) {
    const auto copy_row = [&](const HostMatrix& from) {
      std::copy_n(&from.codes[row * k / 2], k / 2, &x.codes[row * k / 2]);
      std::copy_n(&from.scales[row * (k / 32)], k / 32, &x.scales[row * (k / 32)]);
    };
    if (row % 3 == 1) {  // large codes at the highest scale that integers take
      for (std::int64_t col = 0; col < k; ++col) {
        x.set_code(row, col, static_cast<int>(7 + 8 * (splitmix64(seed, col + row) & 1)));
      }
      for (std::int64_t block = 0; block < k / 32; ++block) {
        x.scale(row, block) = static_cast<std::uint8_t>(block == 1 ? 120 : 123);
      }
    } else if (row % 19 == 6) {
      copy_row(make_data(others[row / 19 % 4], rows, k, seed + 1));
    }
  }
  return x;
}

class Products : public testing::TestWithParam<Tiles> {
 protected:
  void SetUp() override { set_compute_units(GetParam().compute_units); }
  std::int64_t k() const { return 32 * GetParam().blocks; }
  /// Operands of GetParam()'s extents, or of fewer blocks.
  HostMatrix a(Data data, std::int64_t blocks = 0) const {
    return make_data(data, GetParam().m, blocks == 0 ? k() : 32 * blocks, 21);
  }
  HostMatrix b(Data data, std::int64_t blocks = 0) const {
    return make_data(data, GetParam().n, blocks == 0 ? k() : 32 * blocks, 22);
  }
};
std::string name_of(const testing::TestParamInfo<Tiles>& info) {
  return std::string(info.param.name) + std::to_string(info.index);
}
INSTANTIATE_TEST_SUITE_P(Tiles, Products, testing::Values(large, middle, small, narrow), name_of);

TEST_P(Products, Certified) {
  product_on_both<float>(AsRows{}, {a(Data::narrow)}, {b(Data::narrow)});
  // Results at both ends of float32's range.
  for (const Data data : {Data::subnormal, Data::overflow}) {
    product_on_both<float>(AsRows{}, {a(data, 2)}, {b(data, 2)});
  }
}
TEST_P(Products, EveryTier) {
  product_on_both<BFloat16>(AsRows{}, {every_tier(GetParam().m, k(), 23)},
                            {every_tier(GetParam().n, k(), 24)});
}
/// Outliers and scales over all that there are: few blocks, since each output is summed alone.
TEST_P(Products, WindowAndWide) {
  for (const Data data : {Data::medium, Data::full, Data::two_clusters}) {
    product_on_both<float>(AsRows{}, {a(data, 3)}, {b(data, 3)});
  }
}
TEST_P(Products, Outliers) {
  Outliers how;
  how.up = 7;
  how.column_every = 64;
  how.near_every = 16;
  const std::int64_t few = 32 * 9;
  product_on_both<float>(AsRows{}, {make_outliers(how, GetParam().m, few, 25)},
                         {make_outliers(how, GetParam().n, few, 26)});
}
TEST_P(Products, Epilogue) {
  // Once where sums are aligned, once where each is made alone.
  for (const Data data : {Data::narrow, Data::full}) {
    const HostMatrix x = a(data, 3), y = b(data, 3);
    product_on_both<BFloat16>(AsRows{}, {x}, {y}, {0.37f, -1.25f, true});
    product_on_both<Float16>(AsRows{}, {x}, {y}, {-3.0f, 1.5f, true});
    product_on_both<float>(AsRows{}, {x}, {y}, {1.0f, 0.5f, false});
    product_on_both<float>(AsRows{}, {x}, {y}, {3e-38f, 1e30f, true});
  }
}
TEST_P(Products, Batches) {
  const std::vector<HostMatrix> x{a(Data::equal, 3), a(Data::nan, 3)}, y{b(Data::zeros, 3)};
  product_on_both<Float16>(AsRows{}, x, y);
}
TEST_P(Products, WithoutSummaries) {
  product_on_both<BFloat16>(AsRows{}, {a(Data::zeros, 9)}, {b(Data::nan, 9)}, {}, false);
}

/// Operands that are where the matrix unit wants them, and others; batches.
TEST(ProductsOf, LyingAsFragments) {
  for (const int units : {4, 64}) {
    set_compute_units(units);
    const std::vector<HostMatrix> a{make_data(Data::narrow, 272, 320, 31)},
        b{make_data(Data::narrow, 144, 320, 32)};
    product_on_both<BFloat16>(AsFragments{}, a, b);
  }
}
TEST(ProductsOf, BatchesOfPrepared) {
  set_compute_units(256);
  std::vector<HostMatrix> a, b{make_data(Data::equal, 37, 288, 33)};
  for (const Data data : {Data::equal, Data::narrow, Data::medium}) {
    a.push_back(make_data(data, 21, 288, 34));
  }
  product_on_both<Float16>(AsPrepared{}, a, b);
  product_on_both<float>(AsPrepared{}, b, a, {}, false);
}
TEST(ProductsOf, MinimumTiers) {
  set_compute_units(256);
  const HostMatrix a = make_data(Data::equal, 35, 96, 35), b = make_data(Data::zeros, 17, 96, 36);
  for (const Tier tier : {Tier::aligned, Tier::window, Tier::wide}) {
    product_on_both<float>(AsRows{}, {a}, {b}, {1, 0, false, tier});
  }
}
/// alpha == 0: no operand is read, C alone.
TEST(ProductsOf, Nothing) {
  set_compute_units(256);
  const HostMatrix a = make_data(Data::nan, 70, 96, 37), b = make_data(Data::equal, 67, 96, 38);
  product_on_both<BFloat16>(AsRows{}, {a}, {b}, {0.0f, 2.0f, true});
  product_on_both<float>(AsRows{}, {HostMatrix(5, 0)}, {HostMatrix(7, 0)});
}
/// Codes that do not lie at multiples of 16 bytes, scales not at multiples of 4, C by columns.
TEST(ProductsOf, AnyPlacement) {
  set_compute_units(256);
  const std::int64_t m = 21, n = 18, k = 416;
  const HostMatrix a = make_data(Data::narrow, m, k, 39), b = make_data(Data::narrow, n, k, 40);
  same_on_both([&](const auto& exec) {
    using Exec = std::remove_cvref_t<decltype(exec)>;
    // One byte and more between rows: those of the other are used.
    const auto at = [&](const Bytes& bytes, std::int64_t rows, std::int64_t cols) {
      Bytes spread(static_cast<std::size_t>(rows * (cols + 3)), 255);
      for (std::int64_t row = 0; row < rows; ++row) {
        std::copy_n(&bytes[row * cols], cols, &spread[row * (cols + 3) + 1]);
      }
      const auto view = filled<Exec, std::uint8_t>(1, rows, cols + 3, spread.data());
      return std::make_pair(
          view, Kokkos::subview(view, 0, Kokkos::ALL, std::make_pair(std::int64_t{1}, cols + 1)));
    };
    const auto a_codes = at(a.codes, m, k / 2), a_scales = at(a.scales, m, k / 32);
    const auto b_codes = at(b.codes, n, k / 2), b_scales = at(b.scales, n, k / 32);
    const auto c = fresh<Exec, float>(1, n, m);
    using View = Kokkos::View<float**, Kokkos::LayoutLeft, typename Exec::memory_space, Unmanaged>;
    KokkosMX::gemm(
        exec, KokkosMX::Matrix(KokkosMX::Codes(a_codes.second), KokkosMX::Scales(a_scales.second)),
        KokkosMX::Matrix(KokkosMX::Codes(b_codes.second), KokkosMX::Scales(b_scales.second)),
        View(c.data(), m, n));
    exec.fence();
    return Outputs{output("C, by columns", c)};
  });
}

// ------------------------------------------------------------------------------ golden data

TEST(ProductsGolden, Codes) {
  set_compute_units(256);
  for (const std::string name : {"24x40x256_all_scales", "19x21x96_tiny", "17x23x64_huge",
                                 "16x16x512_below_float", "5x6x128_nan"}) {
    SCOPED_TRACE(name);
    const auto matrix = [&](const std::string& which) {
      const auto codes = golden<std::uint8_t>("gemm_codes_" + name + which + "_codes");
      HostMatrix x(codes.rows, 2 * codes.cols);
      x.codes = codes.data;
      x.scales = golden<std::uint8_t>("gemm_codes_" + name + which + "_scales").data;
      return x;
    };
    product_on_both<float>(
        AsRows{}, {matrix("_a")}, {matrix("_b")}, {}, true,
        {output("C", golden<std::uint32_t>("gemm_codes_" + name + "_exact_f32"))});
  }
}

/// The fused call: both operands quantized in it.
template <class T, class C>
void fused_on_both(const void* a, const void* b, std::int64_t m, std::int64_t n, std::int64_t k,
                   const KokkosMX::QuantizeRule& rule, const Outputs& golden = {}) {
  same_on_both(
      [&](const auto& exec) {
        using Exec = std::remove_cvref_t<decltype(exec)>;
        const auto dense_a = filled<Exec, T>(1, m, k, a), dense_b = filled<Exec, T>(1, n, k, b);
        const auto c = fresh<Exec, C>(1, m, n);
        KokkosMX::quantize_gemm(exec, dense_a, dense_b, c, rule);
        exec.fence();
        return Outputs{output("C", c)};
      },
      golden);
}
TEST(ProductsGolden, Fused) {
  set_compute_units(256);
  for (const std::string name : {"8x64x512", "17x48x96", "33x80x1056", "16x32x2048_outliers9",
                                 "5x7x32", "24x40x256_outliers30"}) {
    SCOPED_TRACE(name);
    const auto a = golden<std::uint16_t>("gemm_" + name + "_a");
    const auto b = golden<std::uint16_t>("gemm_" + name + "_b");
    fused_on_both<BFloat16, float>(
        a.data.data(), b.data.data(), a.rows, b.rows, a.cols, KokkosMX::rules::reference,
        {output("C", golden<std::uint32_t>("gemm_" + name + "_exact_f32"))});
  }
}
TEST(ProductsGolden, FusedOfOtherTypes) {
  set_compute_units(4);
  const std::int64_t m = 270, n = 150, k = 96;
  const auto x = bell(m, k, 41), y = bell(n, k, 42);
  fused_on_both<BFloat16, BFloat16>(x.data(), y.data(), m, n, k, KokkosMX::rules::rceil);
  set_compute_units(256);
  // Bits of f16 and f32 that are numbers near one another.
  std::vector<std::uint16_t> half(x);
  for (std::uint16_t& bits : half) bits = static_cast<std::uint16_t>((bits & 0x8FFF) + 0x3000);
  fused_on_both<Float16, Float16>(half.data(), half.data(), 20, 30, k, KokkosMX::rules::quark_even);
  std::vector<std::uint32_t> single;
  for (const std::uint16_t bits : x) single.push_back(std::uint32_t{bits} << 16 | bits);
  fused_on_both<float, float>(single.data(), single.data(), 20, 30, k, KokkosMX::rules::ocp_floor);
}

// ------------------------------------------------------------------------------ compare

template <class T, class CodesLayout, class ScalesLayout>
void compare_on_both() {
  set_compute_units(256);
  const std::int64_t m = 19, n = 37;
  for (const Data data : {Data::equal, Data::medium, Data::full, Data::nan, Data::zeros,
                          Data::subnormal, Data::overflow}) {
    const HostMatrix a = make_data(data, m, 160, 51), b = make_data(data, n, 160, 52);
    // What is exact, but for some bits.
    const auto exact = fresh<Host, T>(1, m, n);
    const auto qa = to_storage<Host, RowMajor, RowMajor>({a});
    const auto qb = to_storage<Host, RowMajor, RowMajor>({b});
    KokkosMX::gemm(Host(), qa.matrix(), qb.matrix(), exact);
    Bytes c = bytes_of(exact);
    for (std::size_t i = 0; i < c.size(); i += 7) c[i] ^= static_cast<std::uint8_t>(1u << i % 8);
    for (std::size_t i = sizeof(T); i <= c.size(); i += 5 * sizeof(T)) c[i - 1] ^= 0x80;
    for (std::size_t i = sizeof(T); i <= c.size(); i += 17 * sizeof(T)) c[i - 1] = 0x7F;
    same_on_both([&](const auto& exec) {
      using Exec = std::remove_cvref_t<decltype(exec)>;
      const auto there = filled<Exec, T>(1, m, n, c.data());
      const auto verdicts = fresh<Exec, KokkosMX::OutputVerdict>(1, m, n);
      const auto there_a = to_storage<Exec, CodesLayout, ScalesLayout>({a});
      const auto there_b = to_storage<Exec, CodesLayout, ScalesLayout>({b});
      KokkosMX::compare(exec, there_a.matrix(), there_b.matrix(), there, verdicts);
      exec.fence();
      Output verdict = output("verdicts", verdicts);
      for (std::size_t i = 0; i < verdict.bytes.size(); i += sizeof(KokkosMX::OutputVerdict)) {
        verdict.bytes[i + 10] = verdict.bytes[i + 11] = 0;  // reserved
      }
      return Outputs{verdict};
    });
  }
}
TEST(Compare, Float32) { compare_on_both<float, RowMajor, RowMajor>(); }
TEST(Compare, BFloat16) { compare_on_both<BFloat16, RowMajor, Tile32x8>(); }
TEST(Compare, Float16) { compare_on_both<Float16, Tile16x128, Tile16x4>(); }

// ------------------------------------------------------------------------------ the self-check

/// The library takes the float unit where it adds exactly what the certificate needs, and the
/// integer one where it does not. KOKKOSMX_EXPECTED_ATOM says which it is to be; without it, there
/// is nothing to compare with.
TEST(SelfCheck, ChoosesTheAtom) {
  const char* expected = std::getenv("KOKKOSMX_EXPECTED_ATOM");
  if (expected == nullptr) GTEST_SKIP() << "KOKKOSMX_EXPECTED_ATOM names none";
  const HostMatrix x = make_data(Data::equal, 3, 32, 61);
  same_on_both([&](const auto& exec) {
    using Space = std::remove_cvref_t<decltype(exec)>;
    const auto q = to_storage<Space, RowMajor, RowMajor>({x});
    const auto c = fresh<Space, float>(1, 3, 3);
    KokkosMX::gemm(exec, q.matrix(), q.matrix(), c);
    if constexpr (std::is_same_v<Space, Exec>) {
      EXPECT_STREQ(KokkosMX::gemm_atom(exec), expected);
    }
    return Outputs{output("C", c)};
  });
}

}  // namespace
}  // namespace KokkosMXTest
