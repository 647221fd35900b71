// SPDX-License-Identifier: Apache-2.0

// The product against an oracle of unbounded integers, bit by bit: golden arrays, random shapes and
// data, sums made to sit on the edges of rounding, of float32's range and of every certificate.

#include <gtest/gtest.h>

#include <KokkosMX.hpp>
#include <Kokkos_Core.hpp>
#include <array>
#include <bit>
#include <cfenv>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <limits>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <type_traits>
#include <vector>

#include "GemmCases.hpp"
#include "GemmSums.hpp"
#include "Inputs.hpp"
#include "ReferenceGemm.hpp"

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace {

using namespace KokkosMXTest;
using KokkosMX::BFloat16;
using KokkosMX::Float16;
using KokkosMX::RowMajor;
using KokkosMX::Tier;
using KokkosMX::Tile16x16;
using KokkosMX::Tile32x8;

// What the whole program has compared, printed at its end.
struct Counted {
  Tally outputs;       // by kind, automatic tier
  TierCounts tiers{};  // by the tier in which they ended, automatic and forced
  std::uint64_t shapes = 0;
  std::uint64_t long_sums = 0;  // outputs of K = 7168

  static Counted& total() {
    static Counted counted;
    return counted;
  }
};

class PrintCounted : public ::testing::Environment {
 public:
  void TearDown() override {
    const Counted& counted = Counted::total();
    std::cout << "counted: " << counted.shapes << " shapes, " << counted.outputs.text()
              << "; outputs by tier: none " << counted.tiers[0] << ", aligned " << counted.tiers[1]
              << ", window " << counted.tiers[2] << ", wide " << counted.tiers[3]
              << "; outputs of K = 7168: " << counted.long_sums << std::endl;
  }
};
[[maybe_unused]] const auto* const print_counted =
    ::testing::AddGlobalTestEnvironment(new PrintCounted);

constexpr Tier all_tiers[] = {Tier::automatic, Tier::aligned, Tier::window, Tier::wide};
constexpr int all_tiers_count = 4;
static_assert(std::size(all_tiers) == all_tiers_count);

// The tiers in which outputs end, where the library's definitions leave no choice: those that need
// no sum, and those outside the window's certificate. What is left is aligned, where its
// certificate allows that, or window.
KOKKOSMX_TEST_OUT_OF_LINE void expect_tiers(const HostMatrix& a, const HostMatrix& b,
                                            const TierCounts& counts, const std::string& name) {
  const ExpectedTiers expected = expected_tiers(a, b);
  EXPECT_EQ(counts[0], expected.none) << name;
  EXPECT_LE(counts[1], expected.aligned_at_most) << name;
  EXPECT_EQ(counts[3], expected.outputs - expected.none - expected.window_certified) << name;
}

// Compares one product in one of all_tiers, and counts.
KOKKOSMX_TEST_OUT_OF_LINE TierCounts check_tier(const Operands& x, const Bits& products, int n,
                                                const std::string& name) {
  Variation v;
  v.minimum_tier = all_tiers[n];
  v.a.tile_codes = v.b.tile_scales = n % 2 == 1;
  v.a.summaries = n < 2;
  const TierCounts counts = check_product<float>(x.a, x.b, products, v, name);
  if (all_tiers[n] == Tier::automatic) expect_tiers(x.a, x.b, counts, name);
  Counted::total().tiers += counts;
  return counts;
}

// Compares one product in every forced tier, and counts. Returns the counts of the automatic one.
KOKKOSMX_TEST_OUT_OF_LINE TierCounts check_all_tiers(const Operands& x, const std::string& name,
                                                     Tally* tally = nullptr) {
  Tally own;
  const Bits products = ReferenceProduct(x.a, x.b).all(&own);
  Counted::total().outputs += own;
  Counted::total().shapes += 1;
  if (tally != nullptr) *tally += own;
  const TierCounts automatic = check_tier(x, products, 0, name);
  for (int n = 1; n < all_tiers_count; ++n) check_tier(x, products, n, name);
  return automatic;
}

// ------------------------------------------------------------------------------ the oracle itself

HostMatrix golden_matrix(const std::string& name) {
  const GoldenArray<std::uint8_t> codes = golden<std::uint8_t>(name + "_codes");
  HostMatrix x(codes.rows, 2 * codes.cols);
  x.codes = codes.data;
  x.scales = golden<std::uint8_t>(name + "_scales").data;
  return x;
}

const char* const golden_codes[] = {"24x40x256_all_scales",  "19x21x96_tiny",   "17x23x64_huge",
                                    "16x16x512_below_float", "12x20x7168_wide", "5x6x128_nan"};

TEST(GemmOracle, GoldenCodes) {
  for (const std::string name : golden_codes) {
    const HostMatrix a = golden_matrix("gemm_codes_" + name + "_a");
    const HostMatrix b = golden_matrix("gemm_codes_" + name + "_b");
    expect_equal_bits(golden<std::uint32_t>("gemm_codes_" + name + "_exact_f32").data,
                      ReferenceProduct(a, b).all(), b.rows, name);
  }
}

// Where a sum of doubles is exact, its nearest float32 is the product.
TEST(GemmOracle, PlainDoubles) {
  const HostMatrix a = random_matrix(31, 512, 1, 120, 127);
  const HostMatrix b = random_matrix(37, 512, 2, 124, 131);
  Bits expected;
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t j = 0; j < b.rows; ++j) {
      std::int64_t sum = 0;  // in units of 2^(120 + 124 - 256)
      for (std::int64_t k = 0; k < a.k; ++k) {
        sum += std::int64_t{code_in_halves(a.code(i, k)) * code_in_halves(b.code(j, k))}
               << (a.scale(i, k / 32) + b.scale(j, k / 32) - 244);
      }
      expected.push_back(
          std::bit_cast<std::uint32_t>(static_cast<float>(static_cast<double>(sum) / 4096.0)));
    }
  }
  expect_equal_bits(expected, ReferenceProduct(a, b).all(), b.rows, "");
}

TEST(GemmOracle, Roundings) {
  const auto bits = [](float x) { return std::bit_cast<std::uint32_t>(x); };
  EXPECT_EQ(multiply_f32(bits(3.0f), bits(-7.0f)), bits(-21.0f));
  EXPECT_EQ(multiply_f32(0x3F800001, 0x3F800001), 0x3F800002u);
  EXPECT_EQ(multiply_f32(0x00800000, 0x3F000000), 0x00400000u);  // into the subnormals
  EXPECT_EQ(multiply_f32(0x00000001, 0x3F000000), 0x00000000u);  // tie to even
  EXPECT_EQ(multiply_f32(0x00000003, 0xBF000000), 0x80000002u);
  EXPECT_EQ(multiply_f32(0x80000001, 0x00000001), 0x80000000u);
  EXPECT_EQ(multiply_f32(0x7F7FFFFF, 0x40000000), 0x7F800000u);
  EXPECT_EQ(multiply_f32(0xFF800000, 0x80000000), 0x7FC00000u);
  EXPECT_EQ(multiply_f32(0xFF800000, 0x00000001), 0xFF800000u);
  EXPECT_EQ(multiply_f32(0xFFC12345, 0x00000001), 0x7FC00000u);
  EXPECT_EQ(add_f32(bits(1.0f), 0x33800000), bits(1.0f));  // 1 + 2^-24: tie
  EXPECT_EQ(add_f32(bits(1.0f), 0x33800001), 0x3F800001u);
  EXPECT_EQ(add_f32(0x3F800001, 0x33800000), 0x3F800002u);
  EXPECT_EQ(add_f32(0x00000001, 0x80000002), 0x80000001u);
  EXPECT_EQ(add_f32(0x7F7FFFFF, 0x73000000), 0x7F800000u);  // half an ulp over the largest
  EXPECT_EQ(add_f32(0x7F7FFFFF, 0x72FFFFFF), 0x7F7FFFFFu);
  EXPECT_EQ(add_f32(0x80000000, 0x80000000), 0x80000000u);
  EXPECT_EQ(add_f32(0x80000000, 0x00000000), 0x00000000u);
  EXPECT_EQ(add_f32(bits(5.0f), bits(-5.0f)), 0x00000000u);
  EXPECT_EQ(add_f32(0x7F800000, 0xFF800000), 0x7FC00000u);
  EXPECT_EQ(convert(format_f32, format_f16, 0x477FE000), 0x7BFFu);  // 65504
  EXPECT_EQ(convert(format_f32, format_f16, 0x477FEFFF), 0x7BFFu);
  EXPECT_EQ(convert(format_f32, format_f16, 0x477FF000), 0x7C00u);  // 65520: tie to infinity
  EXPECT_EQ(convert(format_f32, format_f16, 0x33000000), 0x0000u);  // 2^-25: tie to zero
  EXPECT_EQ(convert(format_f32, format_f16, 0xB3000001), 0x8001u);
  EXPECT_EQ(convert(format_f32, format_bf16, 0x3F808000), 0x3F80u);
  EXPECT_EQ(convert(format_f32, format_bf16, 0x3F818000), 0x3F82u);
  EXPECT_EQ(convert(format_f32, format_bf16, 0x7F7FFFFF), 0x7F80u);
  EXPECT_EQ(convert(format_f32, format_bf16, 0x7F800001), 0x7FC0u);
  EXPECT_EQ(convert(format_bf16, format_f32, 0x8001), 0x80010000u);
  EXPECT_EQ(convert(format_f16, format_f32, 0x0001), 0x33800000u);
  EXPECT_EQ(convert(format_f16, format_f32, 0xFE01), 0x7FC00000u);
}

// ------------------------------------------------------------------------------ golden arrays

TEST(GemmGolden, Codes) {
  for (const std::string name : golden_codes) {
    const Operands x{golden_matrix("gemm_codes_" + name + "_a"),
                     golden_matrix("gemm_codes_" + name + "_b")};
    const Bits expected = golden<std::uint32_t>("gemm_codes_" + name + "_exact_f32").data;
    for (int forms = static_cast<int>(x.a.rows) % 3; forms < 64; forms += 3) {
      Variation v;
      v.a = {(forms & 1) != 0, (forms & 2) != 0, (forms & 4) != 0, forms % 3, forms % 5};
      v.b = {(forms & 8) != 0, (forms & 16) != 0, (forms & 32) != 0, forms % 5, forms % 7};
      v.c_layout = static_cast<CLayout>(forms % 3);
      check_product<float>(x.a, x.b, expected, v, name);
    }
    check_all_tiers(x, name);
  }
}

template <class T>
Kokkos::View<T**, Kokkos::LayoutRight, Space> device_matrix(
    const std::vector<typename OutputType<T>::bits>& bits, std::int64_t rows, std::int64_t cols) {
  Kokkos::View<T**, Kokkos::LayoutRight, Space> view("KokkosMXTest: dense", rows, cols);
  const auto flat = to_device(bits);
  Kokkos::deep_copy(Kokkos::View<typename OutputType<T>::bits*, Space, Unmanaged>(
                        reinterpret_cast<typename OutputType<T>::bits*>(view.data()), bits.size()),
                    flat);
  return view;
}

template <class A, class B>
Bits gemm_f32(const A& a, const B& b) {
  const DeviceOutput<float> c(a.rows(), b.rows(), b.rows(), 1, 0, {});
  using ConstA = KokkosMX::Matrix<typename A::codes_layout, typename A::scales_layout, Space>;
  using ConstB = KokkosMX::Matrix<typename B::codes_layout, typename B::scales_layout, Space>;
  call_gemm(Exec(), ConstA(a), ConstB(b), c.view(), {});
  return c.result();
}
template <class A, class B, class T>
KOKKOSMX_TEST_OUT_OF_LINE void call_quantize_gemm(const A& a, const B& b, const DeviceRows<T>& c,
                                                  KokkosMX::QuantizeRule rule) {
  KokkosMX::quantize_gemm(Exec(), a, b, c, rule);
}

// Calls f with every pair of layouts that can hold (rows, k).
template <class F>
void for_layouts(std::int64_t rows, std::int64_t k, F&& f) {
  f(RowMajor{}, RowMajor{});
  f(RowMajor{}, Tile32x8{});
  if (rows % 16 == 0 && k % 64 == 0) {
    f(Tile16x16{}, RowMajor{});
    f(Tile16x16{}, Tile32x8{});
  }
}

TEST(GemmGolden, Dense) {
  struct Case {
    const char* name;
    bool seed_is_exact;
  };
  for (const auto& [name, seed_is_exact] :
       {Case{"gemm_8x64x512", true}, Case{"gemm_17x48x96", true}, Case{"gemm_33x80x1056", true},
        Case{"gemm_16x32x2048_outliers9", true}, Case{"gemm_5x7x32", true},
        Case{"gemm_24x40x256_outliers30", false}}) {
    const std::string prefix = name;
    const GoldenArray<std::uint16_t> a_bits = golden<std::uint16_t>(prefix + "_a");
    const GoldenArray<std::uint16_t> b_bits = golden<std::uint16_t>(prefix + "_b");
    const Bits expected = golden<std::uint32_t>(prefix + "_exact_f32").data;
    Bits expected_bf16;
    for (const std::uint32_t bits : expected) {
      expected_bf16.push_back(convert(format_f32, format_bf16, bits));
    }
    const std::int64_t m = a_bits.rows, n = b_bits.rows, k = a_bits.cols;
    const auto a = device_matrix<BFloat16>(a_bits.data, m, k);
    const auto b = device_matrix<BFloat16>(b_bits.data, n, k);
    const Exec exec;

    DeviceOutput<float> c(m, n, n, 1, 0, {});
    call_quantize_gemm(a, b, c.view(), KokkosMX::rules::reference);
    expect_equal_bits(expected, c.result(), n, prefix + " quantize_gemm f32");
    DeviceOutput<BFloat16> c_bf16(m, n, n, 1, 0, {});
    call_quantize_gemm(a, b, c_bf16.view(), KokkosMX::rules::reference);
    expect_equal_bits(expected_bf16, c_bf16.result(), n, prefix + " quantize_gemm bf16");

    for_layouts(n, k, [&](auto b_codes, auto b_scales) {
      KokkosMX::MatrixStorage<decltype(b_codes), decltype(b_scales), Space> qb("b", n, k);
      KokkosMX::quantize(exec, b, qb.matrix(), KokkosMX::rules::reference);
      for_layouts(m, k, [&](auto a_codes, auto a_scales) {
        KokkosMX::MatrixStorage<decltype(a_codes), decltype(a_scales), Space> qa("a", m, k);
        KokkosMX::quantize(exec, a, qa.matrix(), KokkosMX::rules::reference);
        expect_equal_bits(expected, gemm_f32(qa.matrix(), qb.matrix()), n, prefix + " gemm");
      });
      // B prepared before.
      const DeviceOutput<float> mixed(m, n, n, 1, 0, {});
      call_quantize_gemm(a, qb.matrix(), mixed.view(), KokkosMX::rules::reference);
      expect_equal_bits(expected, mixed.result(), n, prefix + " quantize_gemm, B prepared");
    });

    const std::vector<std::uint16_t> seed = golden<std::uint16_t>(prefix + "_seed_bf16").data;
    std::size_t differences = 0;
    for (std::size_t i = 0; i < seed.size(); ++i) {
      if (seed[i] != expected_bf16[i]) ++differences;
    }
    std::cout << prefix << ": float32 sums differ in " << differences << " of " << seed.size()
              << '\n';
    EXPECT_EQ(differences == 0, seed_is_exact) << prefix;
  }
}

// ------------------------------------------------------------------------------ shapes and data

TEST(Gemm, SmallShapes) {
  Stream stream(31);
  const std::int64_t sizes[] = {0, 1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 65, 70};
  const std::int64_t ks[] = {0, 32, 64, 96, 128, 160, 224, 256, 288, 512};
  for (const std::int64_t m : sizes) {
    for (const std::int64_t n : {sizes[stream.below(18)], sizes[stream.below(18)]}) {
      const std::int64_t k = ks[stream.below(10)];
      const Data data = static_cast<Data>(stream.below(data_count));
      const HostMatrix a = make_data(data, m, k, stream.next());
      const HostMatrix b = make_data(data, n, k, stream.next());
      const Bits products = ReferenceProduct(a, b).all(&Counted::total().outputs);
      Counted::total().shapes += 1;
      const TierCounts counts = check_product<float>(a, b, products, random_variation(stream));
      expect_tiers(a, b, counts, shape_text(a, b));
      Counted::total().tiers += counts;
      check_product<BFloat16>(a, b, products, random_variation(stream));
      check_product<Float16>(a, b, products, random_variation(stream));
    }
  }
}

template <class T>
void check_random_case(const HostMatrix& a, const HostMatrix& b, const Bits& products,
                       Stream& stream) {
  Variation v = random_variation(stream);
  if (stream.below(4) == 0) {
    v.epilogue.alpha =
        0x3F800000u + static_cast<std::uint32_t>(stream.below(1u << 24)) - (1u << 23);
    v.epilogue.beta = stream.below(2) == 0 ? 0 : static_cast<std::uint32_t>(stream.next());
    v.c.resize(products.size());
    for (std::uint32_t& c : v.c) {
      c = static_cast<std::uint32_t>(stream.next()) & (2 * OutputType<T>::format.sign() - 1);
    }
    if (stream.below(2) == 0) {
      for (std::int64_t j = 0; j < b.rows; ++j) {
        v.epilogue.bias.push_back(static_cast<std::uint32_t>(stream.next()));
      }
    }
  }
  if (stream.below(4) == 0) v.minimum_tier = all_tiers[stream.below(4)];
  const TierCounts counts = check_product<T>(a, b, products, v);
  if (v.minimum_tier == Tier::automatic && (v.epilogue.alpha << 1) != 0) {
    expect_tiers(a, b, counts, shape_text(a, b) + v.text());
  }
  Counted::total().tiers += counts;
}

// Rows with outliers: in columns, in some of the rows, in blocks, all of these, next to what still
// fits the others' integers, and with rows that nothing but wide sums hold.
constexpr Outliers outliers_of(int kind, int up) {
  switch (kind) {
    case 0:
      return {.up = up, .column_every = 64};
    case 1:
      return {.up = up, .column_every = 32, .row_every = 40};
    case 2:
      return {.up = up, .block_every = 32};
    case 3:
      return {.up = up, .column_every = 100, .row_every = 3, .block_every = 50, .near_every = 9};
    case 4:
      return {.up = 0, .near_every = 4};
    case 5:
      return {.up = up, .column_every = 64, .row_every = 2, .wide_every = 30};
    case 6:
      return {.up = up, .block_every = 3};  // many
    default:
      return {};
  }
}
constexpr int outlier_kinds = 8;

// More panels than a block has, several blocks of either operand, columns that both or one has.
TEST(Gemm, Outliers) {
  Stream stream(1030);
  struct Shape {
    std::int64_t m, n, k;
  };
  constexpr Shape shapes[] = {
      {150, 200, 160}, {30, 300, 1056}, {170, 20, 544}, {5, 140, 96}, {33, 17, 800}};
  constexpr int ups[] = {2, 4, 5, 7, 9, 13, 30, 45, 60, 90, 120};
  int i = 0;
  for (int kind_a = 0; kind_a < outlier_kinds; ++kind_a) {
    for (int kind_b = 0; kind_b < outlier_kinds; ++kind_b) {
      const Shape& shape = shapes[i % 5];
      const HostMatrix a =
          make_outliers(outliers_of(kind_a, ups[i % 11]), shape.m, shape.k, stream.next());
      const HostMatrix b = make_outliers(outliers_of(kind_b, ups[(i + i / 11) % 11]), shape.n,
                                         shape.k, stream.next());
      ++i;
      const Bits products = ReferenceProduct(a, b).all(&Counted::total().outputs);
      Counted::total().shapes += 1;
      const std::string name =
          "outliers " + std::to_string(kind_a) + " by " + std::to_string(kind_b);
      SCOPED_TRACE(name);
      Counted::total().tiers += check_product<float>(a, b, products, random_variation(stream));
      check_random_case<float>(a, b, products, stream);
      check_random_case<BFloat16>(a, b, products, stream);
      check_random_case<Float16>(a, b, products, stream);
    }
  }
}

// The same columns in both operands, more of them than one group of gathered columns takes.
TEST(Gemm, ManyOutlierColumns) {
  for (const int every : {40, 20, 2}) {
    const Outliers how{.up = 11, .column_every = every};
    const HostMatrix a = make_outliers(how, 21, 6400, 1), b = make_outliers(how, 40, 6400, 1);
    check_all_tiers({a, b}, "every " + std::to_string(every));
  }
}

// What a call leaves in the workspace is nothing to the next.
TEST(Gemm, OutliersInAWorkspaceThatWasUsed) {
  constexpr std::int64_t m = 40, n = 150, k = 1056;
  const DeviceOutput<float> c(m, n, n, 1, 0, {});
  DeviceArray<std::byte> memory;
  for (int i = 0; i < 6; ++i) {
    // Few enough that they are not added block by block.
    const HostMatrix a = make_outliers({.up = 9 + 7 * i, .block_every = 32}, m, k, 100 + i);
    const HostMatrix b = make_outliers(outliers_of((i + i / 3) % 3, 9), n, k, 200 + i);
    const DeviceMatrix da(a, {}), db(b, {});
    if (i == 0) {
      memory =
          make_workspace(KokkosMX::gemm_workspace_size(Exec(), da.plain(), db.plain(), c.view()));
    }
    KokkosMX::gemm(Exec(), KokkosMX::Workspace(memory), da.plain(), db.plain(), c.view());
    Exec().fence();
    expect_equal_bits(ReferenceProduct(a, b).all(&Counted::total().outputs), c.result(), n,
                      "call " + std::to_string(i));
  }
}

// A million outputs: M, N from 0 to 70, K from 0 to 7168, every kind of data, form and type.
TEST(GemmFull, RandomShapes) {
  Stream stream(2026);
  const Counted before = Counted::total();
  std::set<std::array<std::int64_t, 3>> shapes;
  std::uint64_t outputs = 0;
  for (int i = 0; outputs < 1'000'000; ++i) {
    const std::int64_t m = stream.between(0, 70), n = stream.between(0, 70);
    std::int64_t k = 32 * stream.between(0, 15);
    if (i % 8 == 0) k = 32 * stream.between(16, 64);
    if (i % 64 == 0) k = 32 * stream.between(65, 224);
    const Data data = static_cast<Data>(i % data_count);
    const HostMatrix a = make_data(data, m, k, stream.next());
    const HostMatrix b = make_data(data, n, k, stream.next());
    const Bits products = ReferenceProduct(a, b).all(&Counted::total().outputs);
    shapes.insert({m, n, k});
    outputs += products.size();
    switch (stream.below(3)) {
      case 0:
        check_random_case<float>(a, b, products, stream);
        break;
      case 1:
        check_random_case<BFloat16>(a, b, products, stream);
        break;
      default:
        check_random_case<Float16>(a, b, products, stream);
    }
    if (HasFailure() && i > 20) FAIL() << "stopped";
  }
  Counted::total().shapes += shapes.size();
  EXPECT_GE(shapes.size(), 200u);
  EXPECT_GE(Counted::total().outputs.outputs - before.outputs.outputs, 1'000'000u);
}

// K = 7168 for 50,000 outputs.
TEST(GemmFull, LongSums) {
  Stream stream(7168);
  std::uint64_t outputs = 0;
  for (int i = 0; outputs < 52'000; ++i) {
    const std::int64_t m = stream.between(50, 70), n = stream.between(50, 70);
    const Data data = static_cast<Data>(i % data_count);
    const HostMatrix a = make_data(data, m, 7168, stream.next());
    const HostMatrix b = make_data(data, n, 7168, stream.next());
    const Bits products = ReferenceProduct(a, b).all(&Counted::total().outputs);
    outputs += products.size();
    Counted::total().shapes += 1;
    check_random_case<float>(a, b, products, stream);
  }
  Counted::total().long_sums += outputs;
  EXPECT_GE(outputs, 50'000u);
}

// Enough outputs for the largest tiles of a device, with ragged edges; rows that fit the aligned
// tier, rows that do not, and rows with NaN beside each other.
template <class T>
void check_large_tiles(const HostMatrix& a, const HostMatrix& b, const Bits& products) {
  const DeviceMatrix da(a, {}), db(b, {});
  const DeviceOutput<T> c(a.rows, b.rows, b.rows, 1, 0, {});
  call_gemm(Exec(), da.plain(), db.plain(), c.view(), {});
  expect_equal_bits(expected_output(products, b.rows, {}, OutputType<T>::format), c.result(),
                    b.rows, "large tiles");
}
TEST(GemmFull, LargeTiles) {
  constexpr std::int64_t m = 1100, n = 2200, k = 160;
  for (const bool some_do_not_fit : {false, true}) {
    HostMatrix a = random_matrix(m, k, 51, 125, 128), b = random_matrix(n, k, 52, 122, 125);
    if (some_do_not_fit) {
      for (std::int64_t row = 0; row < m; row += 97) a.scales[row * (k / 32)] = 160;
      for (std::int64_t row = 5; row < n; row += 301) b.scales[row * (k / 32) + 4] = 0;
      nan_some(b, 3000, 53);
    }
    const Bits products = ReferenceProduct(a, b).all(&Counted::total().outputs);
    Counted::total().shapes += 1;
    check_large_tiles<BFloat16>(a, b, products);
    check_large_tiles<float>(a, b, products);
  }
}

// The same with outliers: in columns that all rows have, some or few; beside blocks anywhere, NaN,
// zeros and rows that only wide sums hold.
TEST(GemmFull, LargeTilesWithOutliers) {
  constexpr std::int64_t m = 1100, n = 2200, k = 416;
  Stream stream(73);
  for (int i = 0; i < 11; ++i) {
    SCOPED_TRACE("data " + std::to_string(i));
    HostMatrix a = outlier_columns(m, k, 40, i == 1 ? 100 : 1, i % 2 == 0 ? 9 : 30, stream.next());
    HostMatrix b =
        outlier_columns(n, k, 60, i == 1 ? 100 : 1 + i / 2, i == 3 ? 9 : 30, stream.next());
    if (i >= 2) {
      nan_some(a, 9000, 1);
      for (std::int64_t row = 5; row < n; row += 301) b.scale(row, 4) = 250;
    }
    if (i == 4) {
      a = make_outliers({.up = 9, .block_every = 64}, m, k, 3);
      b = make_outliers({.up = 30, .block_every = 64}, n, k, 4);
    } else if (i == 5) {
      a = lone_outliers(m, k, 9, 5);
    } else if (i == 6) {  // all of them near the main part
      a = make_outliers({.up = 9, .block_every = 64}, m, k, 6);
      b = make_outliers({.up = 9, .block_every = 64}, n, k, 7);
      nan_some(a, 9000, 2);
      zero_some(b, 400, 3);
    } else if (i == 7) {  // the same, in columns that both have
      a = outlier_columns(m, k, 80, 1, 7, 8);
      b = outlier_columns(n, k, 80, 20, 5, 8);
    } else if (i == 8) {  // farther above it, in columns of one
      a = outlier_columns(m, k, 80, 1, 10, 8);
      b = random_matrix(n, k, 54, 122, 125);
    } else if (i == 9) {  // near, in more columns than a step has
      a = outlier_columns(m, k, 3, 1, 6, 9);
      b = outlier_columns(n, k, 80, 20, 5, 8);
    } else if (i == 10) {  // near, and more in the same blocks than a tile lists
      a = lone_outliers(m, k, 9, 5);
      b = lone_outliers(n, k, 9, 6);
    }
    const Bits products = ReferenceProduct(a, b).all(&Counted::total().outputs);
    Counted::total().shapes += 1;
    check_large_tiles<BFloat16>(a, b, products);
    for (const Tier tier : {Tier::automatic, Tier::window}) {
      if (tier != Tier::automatic && i != 2) continue;
      Variation v = random_variation(stream);
      v.minimum_tier = tier;
      v.epilogue.alpha = 0x40400000u;
      const TierCounts counts = check_product<float>(a, b, products, v);
      if (tier == Tier::automatic) expect_tiers(a, b, counts, "large tiles with outliers");
      Counted::total().tiers += counts;
    }
  }
}

// A bell through the whole job, in every rule.
TEST(Gemm, Bell) {
  const std::int64_t m = 33, n = 65, k = 1024;
  const auto a = device_matrix<BFloat16>(bell(m, k, 5), m, k);
  for (const int outliers : {0, 9, 30}) {
    const auto b = device_matrix<BFloat16>(bell(n, k, 6, outliers), n, k);
    for (const KokkosMX::QuantizeRule rule :
         {KokkosMX::rules::reference, KokkosMX::rules::ocp_floor, KokkosMX::rules::quark_even,
          KokkosMX::rules::rceil}) {
      const Exec exec;
      // The codes are the library's own; what is under test is what quantize_gemm makes of them.
      HostMatrix qa(m, k), qb(n, k);
      const auto read = [&](const auto& x, HostMatrix& q) {
        const auto storage = KokkosMX::quantize(exec, x, rule);
        q.codes = to_host(DeviceArray<std::uint8_t>(storage.codes().data(), q.codes.size()));
        q.scales = to_host(DeviceArray<std::uint8_t>(storage.scales().data(), q.scales.size()));
      };
      read(a, qa);
      read(b, qb);
      DeviceOutput<float> c(m, n, n, 1, 0, {});
      call_quantize_gemm(a, b, c.view(), rule);
      expect_equal_bits(ReferenceProduct(qa, qb).all(&Counted::total().outputs), c.result(), n,
                        "bell");
      Counted::total().shapes += 1;
    }
  }
}

// Every pattern of bf16 in the operand with fewer rows, and in the other, in every rule: the bits
// of the product of what quantize makes of them.
TEST(Gemm, EveryPatternInFewRows) {
  using KokkosMX::NonFinite;
  using KokkosMX::Rounding;
  using KokkosMX::ScaleMode;
  constexpr std::int64_t k = 4096;
  std::vector<KokkosMX::QuantizeRule> all{KokkosMX::rules::reference};
  for (const ScaleMode mode :
       {ScaleMode::floor, ScaleMode::ceil, ScaleMode::rceil, ScaleMode::even}) {
    for (const Rounding rounding : {Rounding::nearest_even, Rounding::ties_up}) {
      all.push_back({mode, rounding, NonFinite::ocp});
    }
  }
  // A block holds patterns that follow one another, or (257) of all magnitudes: most become zeros.
  for (const std::uint32_t stride : {1u, 257u}) {
    std::vector<std::uint16_t> patterns(1u << 16);
    for (std::uint32_t i = 0; i < patterns.size(); ++i) {
      patterns[i] = static_cast<std::uint16_t>(i * stride);
    }
    const auto every = device_matrix<BFloat16>(patterns, 16, k);
    for (const std::int64_t rows : {5, 24}) {
      const auto other = device_matrix<BFloat16>(bell(rows, k, 40, 9), rows, k);
      for (const KokkosMX::QuantizeRule rule : all) {
        const auto qe = KokkosMX::quantize(Exec(), every, rule);
        const auto qo = KokkosMX::quantize(Exec(), other, rule);
        const DeviceOutput<float> c(16, rows, rows, 1, 0, {});
        call_quantize_gemm(every, other, c.view(), rule);
        expect_equal_bits(gemm_f32(qe.matrix(), qo.matrix()), c.result(), rows, "every pattern");
      }
    }
  }
}

// What a few rows may hold beside a bell.
enum class Few {
  bell,
  outliers,
  zeros,
  subnormal,
  subnormal_row,
  infinite,
  three_above,
  four_above,
  count
};
constexpr const char* few_names[] = {"bell",          "outliers", "zeros",       "subnormal",
                                     "subnormal_row", "infinite", "three_above", "four_above"};
static_assert(std::size(few_names) == static_cast<std::size_t>(Few::count));
std::vector<std::uint16_t> few_rows(Few kind, std::int64_t rows, std::int64_t k,
                                    std::uint64_t seed) {
  std::vector<std::uint16_t> x =
      bell(rows, k, seed, kind == Few::outliers ? std::optional<int>(9) : std::nullopt);
  const auto first = x.begin() + (rows - 1) * k;  // the last row; its last block
  const auto block = x.end() - 32;
  const auto times = [&](int power) {
    for (auto i = block; i != x.end(); ++i) {
      if ((*i & 0x7FFFu) != 0) *i = static_cast<std::uint16_t>(*i + (power << 7));
    }
  };
  if (kind == Few::zeros) {
    std::fill(block, x.end(), std::uint16_t{0x8000});
    std::fill(x.begin() + 32, x.begin() + 64, std::uint16_t{0});
    if (rows > 2) std::fill(first - k, first, std::uint16_t{0});
  } else if (kind == Few::subnormal) {
    std::fill(block, x.end(), std::uint16_t{0x0041});
    *first = 0x0001;
  } else if (kind == Few::subnormal_row) {
    std::fill(first, x.end(), std::uint16_t{0x0041});
  } else if (kind == Few::infinite) {
    *block = 0x7F80;
    *x.begin() = 0xFFC1;
  } else if (kind == Few::three_above || kind == Few::four_above) {
    times(kind == Few::three_above ? 3 : 4);
  }
  return x;
}

// Few rows, of whose scales one sum holds all or not, in every rule: to bf16, with B dense and in
// every form of its codes; each call without waiting for the one before. From 129 rows of A on,
// blocks of a GPU make B in pairs; several make a long row of A. Of many rows of B, a bell alone.
struct FewRows {
  std::int64_t m, k, n;
  bool of_a;  // A holds the other kind, else B
  Few other;
  std::uint64_t seed;
};
std::string few_rows_name(const FewRows& x) {
  return "M" + std::to_string(x.m) + "_K" + std::to_string(x.k) + "_N" + std::to_string(x.n) +
         (x.of_a ? "_A_" : "_B_") + few_names[static_cast<int>(x.other)];
}
void PrintTo(const FewRows& x, std::ostream* to) { *to << few_rows_name(x); }
std::vector<FewRows> all_few_rows() {
  struct Case {
    std::int64_t m, k, n = 48;
  };
  constexpr int kinds = static_cast<int>(Few::count);
  std::uint64_t seed = 900;
  std::vector<FewRows> all;
  for (const Case& x :
       {Case{1, 128}, Case{5, 512}, Case{2, 2048}, Case{9, 128}, Case{16, 256}, Case{17, 512},
        Case{32, 384}, Case{12, 4224}, Case{1, 1664, 8464}, Case{64, 384}, Case{33, 640, 80},
        Case{50, 1664, 208}, Case{64, 2048, 144}, Case{130, 768}, Case{256, 1280},
        Case{129, 512, 144}, Case{200, 1024, 272}, Case{256, 1536, 256}}) {
    for (int kind = 0; kind < (x.n > 1000 ? 1 : 2 * kinds); ++kind) {
      all.push_back({x.m, x.k, x.n, kind < kinds, static_cast<Few>(kind % kinds), seed++});
    }
  }
  return all;
}
class GemmFewRows : public ::testing::TestWithParam<FewRows> {};
TEST_P(GemmFewRows, ToBf16) {
  const FewRows& x = GetParam();
  const KokkosMX::QuantizeRule rules[] = {KokkosMX::rules::reference, KokkosMX::rules::ocp_floor,
                                          KokkosMX::rules::quark_even, KokkosMX::rules::rceil};
  const std::int64_t n = x.n;
  const auto a =
      device_matrix<BFloat16>(few_rows(x.of_a ? x.other : Few::bell, x.m, x.k, x.seed), x.m, x.k);
  const auto b =
      device_matrix<BFloat16>(few_rows(x.of_a ? Few::bell : x.other, n, x.k, x.seed + 2), n, x.k);
  const KokkosMX::QuantizeRule rule = rules[x.seed % 4];
  const Exec exec;
  const auto codes = [&](const auto& dense, std::int64_t rows) {
    HostMatrix q(rows, x.k);
    const auto storage = KokkosMX::quantize(exec, dense, rule);
    q.codes = to_host(DeviceArray<std::uint8_t>(storage.codes().data(), q.codes.size()));
    q.scales = to_host(DeviceArray<std::uint8_t>(storage.scales().data(), q.scales.size()));
    return q;
  };
  const Bits expected = expected_output(ReferenceProduct(codes(a, x.m), codes(b, n)).all(), n, {},
                                        OutputType<BFloat16>::format);
  const KokkosMX::MatrixStorage<RowMajor, RowMajor, Space> rows("b", n, x.k);
  const KokkosMX::MatrixStorage<Tile16x16, Tile32x8, Space> tiles("b", n, x.k);
  const KokkosMX::MatrixStorage<KokkosMX::Tile16x128, KokkosMX::Tile16x4, Space> prepared("b", n,
                                                                                          x.k);
  KokkosMX::quantize(exec, b, rows.matrix(), rule);
  KokkosMX::quantize(exec, b, tiles.matrix(), rule);
  KokkosMX::quantize(exec, b, prepared.matrix(), rule);
  const DeviceOutput<BFloat16> c[] = {
      {x.m, n, n, 1, 0, {}}, {x.m, n, n, 1, 0, {}}, {x.m, n, n, 1, 0, {}}, {x.m, n, n, 1, 0, {}}};
  call_quantize_gemm(a, b, c[0].view(), rule);
  call_quantize_gemm(a, rows.matrix(), c[1].view(), rule);
  call_quantize_gemm(a, tiles.matrix(), c[2].view(), rule);
  call_quantize_gemm(a, prepared.matrix(), c[3].view(), rule);
  for (int i = 0; i < 4; ++i) {
    expect_equal_bits(expected, c[i].result(), n, few_rows_name(x) + ", form " + std::to_string(i));
  }
}
INSTANTIATE_TEST_SUITE_P(, GemmFewRows, ::testing::ValuesIn(all_few_rows()),
                         [](const auto& info) { return few_rows_name(info.param); });

// The types LayoutRight and LayoutLeft themselves, and both ways of calling.
template <class T, class Layout>
void check_view_type(const HostMatrix& a, const HostMatrix& b) {
  const DeviceMatrix da(a, {}), db(b, {});
  const Kokkos::View<T**, Layout, Space> c("c", a.rows, b.rows);
  KokkosMX::gemm(Exec(), da.plain(), db.plain(), c);
  const auto flat = to_host(DeviceArray<typename OutputType<T>::bits>(
      reinterpret_cast<typename OutputType<T>::bits*>(c.data()), c.span()));
  Bits actual;
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t j = 0; j < b.rows; ++j) {
      actual.push_back(flat[i * c.stride(0) + j * c.stride(1)]);
    }
  }
  expect_equal_bits(
      expected_output(ReferenceProduct(a, b).all(), b.rows, {}, OutputType<T>::format), actual,
      b.rows, OutputType<T>::name);
}
template <class T>
class GemmTyped : public ::testing::Test {};
TYPED_TEST_SUITE(GemmTyped, OutputTypes, OutputTypeNames);

TYPED_TEST(GemmTyped, ViewTypes) {
  const HostMatrix a = make_data(Data::medium, 19, 96, 1);
  const HostMatrix b = make_data(Data::medium, 35, 96, 2);
  check_view_type<TypeParam, Kokkos::LayoutRight>(a, b);
  check_view_type<TypeParam, Kokkos::LayoutLeft>(a, b);
}

// Row summaries from their definition.
TEST(Gemm, Summaries) {
  for (int d = 0; d < data_count; ++d) {
    for (const bool tiles : {false, true}) {
      const HostMatrix x = make_data(static_cast<Data>(d), 32, 192, 100 + d);
      Form form;
      form.tile_codes = form.tile_scales = tiles;
      const DeviceMatrix device(x, form);
      const std::vector<KokkosMX::RowSummary> summaries = to_host(device.summaries());
      for (std::int64_t row = 0; row < x.rows; ++row) {
        const RowFacts facts = row_facts(x, row);
        const std::uint64_t n =
            facts.n.bit_length() > 64 ? ~std::uint64_t{0} : facts.n.bits_from(0);
        EXPECT_EQ(summaries[row].n, n) << d << ' ' << row;
        EXPECT_EQ(summaries[row].lo, facts.lo) << d << ' ' << row;
        EXPECT_EQ(summaries[row].hi, facts.hi) << d << ' ' << row;
        EXPECT_EQ(summaries[row].has_nan, facts.has_nan ? 1 : 0) << d << ' ' << row;
      }
    }
  }
}

// ------------------------------------------------------------------------------ tiers

// At least 100,000 outputs end in each tier of themselves.
TEST(GemmTiers, ManyOfEach) {
  TierCounts ended{};
  for (const auto& [first, last] :
       {std::array{120, 122}, std::array{100, 121}, std::array{20, 220}}) {
    const Operands x{random_matrix(340, 160, first, first, last),
                     random_matrix(340, 160, last, first, last)};
    const Bits products = ReferenceProduct(x.a, x.b).all(&Counted::total().outputs);
    const TierCounts counts = check_product<float>(x.a, x.b, products, {});
    expect_tiers(x.a, x.b, counts, "many of each");
    ended += counts;
  }
  EXPECT_GE(ended[1], 100'000u);
  EXPECT_GE(ended[2], 100'000u);
  EXPECT_GE(ended[3], 100'000u);
  Counted::total().tiers += ended;
  Counted::total().shapes += 3;
}

// Every spread of a row's scales, below and above any atom's shift and the window.
TEST(GemmTiers, EverySpread) {
  const auto clusters = [](int m, int spread, std::uint64_t seed) {
    HostMatrix x = random_matrix(m, 96, seed, 100, 100);
    for (std::int64_t row = 0; row < m; ++row) {
      const std::int64_t which = row % 3;
      // One block at the top with few elements, so that n stays small.
      for (int i = 0; i < 32; ++i) {
        x.set_code(row, 32 * which + i, i != row % 32 ? 0 : row % 2 == 0 ? 7 : 15);
      }
      x.scale(row, which) = static_cast<std::uint8_t>(100 + spread);
    }
    return x;
  };
  for (int spread_a = 0; spread_a <= 50; ++spread_a) {
    for (const int spread_b : {0, 3, 4, 11, 12, 24}) {
      const Operands x{clusters(6, spread_a, spread_a), clusters(7, spread_b, 1000 + spread_b)};
      const Bits products = ReferenceProduct(x.a, x.b).all(&Counted::total().outputs);
      const TierCounts counts = check_product<float>(x.a, x.b, products, {});
      expect_tiers(x.a, x.b, counts, "spread " + std::to_string(spread_a));
      Counted::total().tiers += counts;
    }
  }
}

// Sums that reach Cauchy and Schwarz's bound: just below 2^31, at it, above it.
struct AlignedEdge {
  int shift;
  std::int64_t q;
  bool must_align;
};
// And which of all_tiers.
using EdgeInTier = std::tuple<AlignedEdge, int>;
std::string aligned_edge_name(const EdgeInTier& param) {
  constexpr const char* names[] = {"automatic", "aligned", "window", "wide"};
  static_assert(std::size(names) == all_tiers_count);
  const auto& [edge, tier] = param;
  return "Shift" + std::to_string(edge.shift) + "_Q" + std::to_string(edge.q) + "_" + names[tier];
}
class GemmAlignedEdge : public ::testing::TestWithParam<EdgeInTier> {};
TEST_P(GemmAlignedEdge, Tiers) {
  const auto& [edge, tier] = GetParam();
  std::vector<EdgeRow> rows(8);
  rows[1].negative = true;
  rows[2].last_halves = 6;  // the sum with row 0 is 2^31 - 16
  rows[3].last_halves = 6;
  rows[3].negative = true;
  rows[4].last_halves = 12;  // above
  rows[5].halves = 4;        // half as large: n is a quarter
  rows[5].last_halves = 4;
  rows[6].halves = 12;  // n is 9/4 as large
  rows[6].last_halves = 12;
  rows[7].alternate = 3;  // as large an n, a smaller sum
  const Operands x{make_edge_rows(edge.shift, edge.q, 100, rows),
                   make_edge_rows(edge.shift, edge.q, 130, rows)};
  const std::string name = "shift " + std::to_string(edge.shift);
  const bool is_first = all_tiers[tier] == Tier::automatic;
  Tally tally;
  const TierCounts counts = check_tier(x, ReferenceProduct(x.a, x.b).all(&tally), tier, name);
  if (!is_first) return;
  Counted::total().outputs += tally;
  Counted::total().shapes += 1;
  const ExpectedTiers expected = expected_tiers(x.a, x.b);
  std::cout << name << ": " << counts[1] << " of " << expected.outputs << " outputs aligned, "
            << expected.aligned_at_most << " certified\n";
  EXPECT_LT(expected.aligned_at_most, expected.outputs);
  if (edge.must_align) {
    EXPECT_EQ(counts[1], expected.aligned_at_most) << name;
  } else {
    EXPECT_TRUE(counts[1] == expected.aligned_at_most || counts[1] == 0) << name;
  }
}
constexpr AlignedEdge aligned_edges[] = {
    {11, 8, false},      // n = 2^31
    {11, 16, false},     // n = 2^32, whose square wraps to 0 in 64 bits
    {8, 512, false},     // n = 2^31
    {7, 2048, false},    // n = 2^31
    {3, 1 << 19, true},  // n = 2^31, within any atom's shift
};
INSTANTIATE_TEST_SUITE_P(, GemmAlignedEdge,
                         ::testing::Combine(::testing::ValuesIn(aligned_edges),
                                            ::testing::Range(0, all_tiers_count)),
                         [](const auto& info) { return aligned_edge_name(info.param); });

// Sums just inside and just outside 63 bits.
TEST(GemmTiers, WindowEdge) {
  // 144 * 7264 is just below 2^20, 144 * 7328 just above.
  for (const std::int64_t k : {7264, 7296, 7328}) {
    const Operands x{make_full_rows(k, 90, {20, 21, 22}, true),
                     make_full_rows(k, 100, {21, 22, 23}, true)};
    const std::string name = "K " + std::to_string(k);
    const TierCounts counts = check_all_tiers(x, name);
    const std::uint64_t inside = 4 * (k == 7264 ? 6u : 3u);
    EXPECT_EQ(counts[1], 0u) << name;
    EXPECT_EQ(counts[2], inside) << name;
    EXPECT_EQ(counts[3], 36 - inside) << name;
  }
}

// ------------------------------------------------------------------------------ rounding

constexpr std::uint64_t lead(std::uint64_t random, bool tie) {
  return std::uint64_t{1} << 24 | (random & 0xFFFFFE) | (tie ? 1 : 0);
}

// Exactly on a tie, and one unit far below to either side of it.
TEST(GemmRounding, Ties) {
  Tally tally;
  TierCounts ended = check_all_tiers({make_aligned_ties(150, 140, 110, 120, 1)}, "aligned", &tally);
  std::cout << "ties in the aligned tier: " << tally.text() << '\n';
  if (ended[1] != 0) {
    EXPECT_EQ(ended[1], 150u * 140u);
  }
  EXPECT_GE(tally.ties, 6'000u);
  EXPECT_GE(tally.near_ties, 13'000u);

  // Sums of up to 63 bits; of any number; and of 64 to 100 bits, which few bands of scales hold.
  struct Case {
    const char* name;
    int tier, seed, unit, least, most, column;
    std::uint64_t in_tier;  ///< outputs, at least
    SumShape shape;
  };
  for (const Case& x : {Case{"window", 2, 33, 100, 13, 13, 130, 150 * 140, {9, 3, 100, 137, 0}},
                        Case{"wide", 3, 22, 5, 40, 180, 100, 150 * 140, {9, 3, 0, 250, 40}},
                        Case{"few bands", 3, 55, 100, 52, 60, 100, 19'000, {9, 3, 100, 184, 7}}}) {
    Stream stream(static_cast<std::uint64_t>(x.seed));
    std::vector<Terms> rows;
    for (int i = 0; i < 150; ++i) {
      const bool negative = stream.below(2) == 0;
      const int position = x.unit + static_cast<int>(stream.between(x.least, x.most));
      Terms terms{{negative, lead(stream.next(), true), position}};
      if (i % 3 != 0) terms.push_back({(i % 3 == 1) != negative, 1, x.unit});
      rows.push_back(terms);
    }
    Tally sums;
    ended = check_all_tiers(make_sums(rows, columns_of(140, x.column), x.shape, 44), x.name, &sums);
    EXPECT_GE(ended[x.tier], x.in_tier) << x.name;
    EXPECT_GE(sums.ties, 6'000u);
    EXPECT_GE(sums.near_ties, 13'000u);
    tally += sums;
  }
  std::cout << "ties: " << tally.text() << '\n';
  EXPECT_GE(tally.ties, 26'000u);
  EXPECT_GE(tally.near_ties, 52'000u);
}

// Ties within the atoms' smallest shift: the sums need their whole length to pass 2^24.
TEST(GemmRounding, LongAlignedTies) {
  const std::int64_t k = 7168;
  const auto make = [&](int rows, int scale, std::uint64_t seed) {
    HostMatrix x = random_matrix(rows, k, seed, scale, scale + 2);
    for (std::int64_t row = 0; row < rows; ++row) {
      const int code = row % 2 == 0 ? 7 : 15;
      for (std::int64_t block = 0; block < k / 32 - 8; ++block) {
        x.scale(row, block) = static_cast<std::uint8_t>(scale + 3);
        for (int i = 0; i < 32; ++i) x.set_code(row, 32 * block + i, code);
      }
    }
    return x;
  };
  Tally tally;
  const Operands x{make(40, 120, 1), make(44, 125, 2)};
  const TierCounts counts = check_all_tiers(x, "long", &tally);
  EXPECT_EQ(counts[1], x.a.rows * x.b.rows);
  EXPECT_GE(tally.ties, 200u);
}

// Sums around the largest finite number, with the rounding's tie at 2^128 - 2^103.
TEST(GemmRounding, Overflow) {
  Tally tally;
  for (const bool wide : {false, true}) {
    const std::uint64_t leads[] = {(1u << 25) - 1, (1u << 25) - 1, (1u << 25) - 1,
                                   (1u << 25) - 1,                  // the tie
                                   (1u << 25) - 2, (1u << 25) - 2,  // the largest number
                                   (1u << 25) - 3,                  // the tie below it
                                   1u << 25,       (1u << 25) + 1, 0xFFFFFFFF};  // beyond
    constexpr int kinds = 10;
    std::vector<Terms> rows;
    for (int i = 0; i < 180; ++i) {
      const bool negative = i / 3 % 2 == 0;
      constexpr int position = 220;
      Terms terms{{negative, leads[i / 6 % kinds], position}};
      const int unit = wide ? 5 + i % 150 : position - 10;
      if (i % 3 != 0) terms.push_back({(i % 3 == 1) != negative, 1, unit});
      rows.push_back(terms);
    }
    // The lead's lowest bit is 2^103: position + scale = 103 + 256.
    const SumShape shape = wide ? SumShape{9, 3, 0, 250, 40} : SumShape{9, 3, 210, 230, 0};
    const Operands x = make_sums(rows, columns_of(200, 103 + 256 - 220), shape, 55);
    const TierCounts counts = check_all_tiers(x, wide ? "wide" : "window", &tally);
    EXPECT_GE(counts[wide ? 3 : 2], wide ? 30'000u : 36'000u);
  }
  // Narrow scales.
  const Operands x{random_matrix(100, 64, 1, 186, 188), random_matrix(120, 64, 2, 186, 188)};
  const TierCounts counts = check_all_tiers(x, "aligned", &tally);
  EXPECT_EQ(counts[1], 12'000u);
  std::cout << "overflow: " << tally.text() << '\n';
  EXPECT_GE(tally.overflow, 10'000u);
  EXPECT_GE(tally.just_below, 10'000u);
}

// Subnormal results, the ties between them included.
TEST(GemmRounding, Subnormal) {
  Tally tally;
  for (const bool wide : {false, true}) {
    Stream stream(66);
    std::vector<Terms> rows;
    // Multiples of 2^-150 up to 2^-126.
    constexpr int position = 80;
    for (int i = 0; i < 150; ++i) {
      const bool negative = stream.below(2) == 0;
      const std::uint64_t value = stream.next() >> (40 + stream.below(24)) | (i % 5 == 0 ? 0 : 1);
      Terms terms{{negative, value, position}};
      const int unit = wide ? static_cast<int>(i % 60) : position - 12;
      if (i % 3 != 0) terms.push_back({(i % 3 == 1) != negative, 1, unit});
      rows.push_back(terms);
    }
    const SumShape shape = wide ? SumShape{8, 3, 0, 250, 40} : SumShape{8, 3, 70, 90, 0};
    const Operands x = make_sums(rows, columns_of(140, 256 - 150 - position), shape, 77);
    check_all_tiers(x, wide ? "wide" : "window", &tally);
  }
  const Operands x{random_matrix(110, 64, 1, 53, 56), random_matrix(120, 64, 2, 53, 56)};
  Tally aligned;
  const TierCounts counts = check_all_tiers(x, "aligned", &aligned);
  EXPECT_GE(counts[1], 10'000u);
  EXPECT_GE(aligned.subnormal, 10'000u);
  tally += aligned;
  std::cout << "subnormal: " << tally.text() << '\n';
  EXPECT_GE(tally.subnormal, 40'000u);
  EXPECT_GE(tally.ties, 5'000u);
}

// Nonzero terms whose sum is 0: always +0.
TEST(GemmRounding, Cancelling) {
  Tally tally;
  const std::vector<Terms> nothing(110);
  for (const int spread : {3, 30, 250}) {
    const SumShape shape{1, 4, 0, spread, spread == 250 ? 100 : 0};
    Tally sums;
    const Operands x = make_sums(nothing, columns_of(100, 120), shape, 88);
    const TierCounts counts = check_all_tiers(x, "spread " + std::to_string(spread), &sums);
    EXPECT_EQ(sums.cancelled, 11'000u);
    if (spread == 3) {
      EXPECT_EQ(counts[1], 11'000u);
    }
    if (spread == 30) {
      EXPECT_GE(counts[2], 9'000u);
    }
    if (spread == 250) {
      EXPECT_GE(counts[3], 9'000u);
    }
    tally += sums;
  }
  std::cout << "cancelling: " << tally.text() << '\n';
  EXPECT_GE(tally.cancelled, 30'000u);
}

// Sums that are not 0 and round to it keep their sign, down to the smallest there is.
TEST(GemmRounding, Underflow) {
  Tally tally;
  for (const bool wide : {false, true}) {
    std::vector<Terms> rows;
    constexpr int position = 80;
    constexpr int kinds = 6;
    for (int i = 0; i < 150; ++i) {
      const bool negative = i % 2 == 0;
      const int unit = wide ? i % 60 : position - 12;
      switch (i / 2 % kinds) {
        case 0:
          rows.push_back({{negative, 1, position}});
          break;  // half of the least: tie to 0
        case 1:
          rows.push_back({{negative, 1, position}, {!negative, 1, unit}});
          break;
        case 2:
          rows.push_back({{negative, 1, position}, {negative, 1, unit}});
          break;  // up
        case 3:
          rows.push_back({{negative, 1, unit}});
          break;
        case 4:
          rows.push_back({{negative, 0x7FFF, position - 20}, {negative, 5, unit}});
          break;
        default:
          rows.push_back({{negative, 1, position - 1}});
          break;
      }
    }
    const SumShape shape = wide ? SumShape{8, 3, 0, 250, 40} : SumShape{8, 3, 70, 90, 0};
    const Operands x = make_sums(rows, columns_of(140, 256 - 150 - position), shape, 99);
    check_all_tiers(x, wide ? "wide" : "window", &tally);
  }
  // The least of all: halves at scales 0.
  check_all_tiers(make_sums({{{false, 1, 0}}, {{true, 1, 0}}}, {{false, 1, 0}, {true, 1, 0}},
                            {1, 2, 0, 254, 254}, 3),
                  "least", &tally);
  const Operands x{random_matrix(110, 64, 1, 0, 3), random_matrix(120, 64, 2, 0, 3)};
  const TierCounts counts = check_all_tiers(x, "aligned", &tally);
  EXPECT_GE(counts[1], 10'000u);
  std::cout << "rounding to zero: " << tally.text() << '\n';
  EXPECT_GE(tally.underflow, 10'000u);
}

// float32 first, then the output's type: where rounding once would give another number.
template <class T>
void check_double_rounding(std::uint64_t at_least) {
  const Format format = OutputType<T>::format;
  Stream stream(12);
  std::vector<Terms> rows;
  for (int i = 0; i < 60; ++i) {
    const bool negative = stream.below(2) == 0;
    // A tie of the output's type, and a little below or above, which float32 does not see.
    const std::uint64_t value = (std::uint64_t{1} << (format.fraction_bits + 1)) |
                                (stream.next() & ((2u << format.fraction_bits) - 1)) | 1;
    Terms terms{{negative, value, 110}};
    if (i % 3 != 0) terms.push_back({(i % 3 == 1) != negative, 1, 110 - 28});
    rows.push_back(terms);
  }
  const Operands x = make_sums(rows, columns_of(60, 136), {9, 1, 105, 110, 0}, 13);
  const ReferenceProduct reference(x.a, x.b);
  std::uint64_t differences = 0;
  for (std::int64_t i = 0; i < x.a.rows; ++i) {
    for (std::int64_t j = 0; j < x.b.rows; ++j) {
      ExactSum sum;
      reference.sum(i, j, sum);
      const std::uint32_t once =
          round_to(format, sum.is_negative(), sum.magnitude(), product_exponent);
      if (once != convert(format_f32, format, reference(i, j))) ++differences;
    }
  }
  EXPECT_GE(differences, at_least);
  check_product<T>(x.a, x.b, reference.all(), {}, "double rounding");
}
TEST(GemmRounding, Twice) {
  check_double_rounding<BFloat16>(500);
  check_double_rounding<Float16>(500);
}

// ------------------------------------------------------------------------------ epilogue

const std::uint32_t special_f32[] = {0x00000000, 0x80000000, 0x3F800000, 0xBF800000, 0x00000001,
                                     0x80000001, 0x007FFFFF, 0x00800000, 0x3DCCCCCD, 0x40490FDB,
                                     0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000,
                                     0xFFABCDEF, 0x7F800001, 0x33800000, 0x4B800001, 0x477FF000};

// Rows whose products are +0 (three kinds), NaN, infinite, subnormal, and plain numbers.
Operands special_products(std::int64_t n) {
  Operands x{HostMatrix(12, 32), HostMatrix(n, 32)};
  const int scales[] = {127, 127, 255, 254, 254, 0, 20, 100, 127, 140, 110, 127};
  for (std::int64_t i = 0; i < 12; ++i) {
    x.a.scale(i, 0) = static_cast<std::uint8_t>(scales[i]);
    if (i == 0) continue;  // no nonzero code
    x.a.set_code(i, 0, i % 2 == 0 ? 2 : 10);
    if (i == 1) x.a.set_code(i, 1, 2);  // cancels
    if (i > 7) x.a.set_code(i, 2, static_cast<int>(i));
  }
  for (std::int64_t j = 0; j < n; ++j) {
    x.b.scale(j, 0) = static_cast<std::uint8_t>(j % 5 == 4 ? 254 : j % 7 == 3 ? 90 : 127);
    x.b.set_code(j, 0, 4);
    x.b.set_code(j, 1, 4);
    x.b.set_code(j, 2, 3);
  }
  return x;
}

TYPED_TEST(GemmTyped, EpilogueSpecials) {
  const Format format = OutputType<TypeParam>::format;
  constexpr std::int64_t n = 20;
  const Operands x = special_products(n);
  const Bits products = ReferenceProduct(x.a, x.b).all();
  Variation v;
  for (const std::uint32_t c : special_f32) v.c.push_back(convert(format_f32, format, c));
  Stream stream(8);
  while (v.c.size() < products.size()) {
    // NaNs with a payload too.
    v.c.push_back(static_cast<std::uint32_t>(stream.next()) & (2 * format.sign() - 1));
  }
  std::swap(v.c[3], v.c[45]);
  const Bits bias(std::begin(special_f32), std::end(special_f32));
  int combination = 0;
  for (const std::uint32_t alpha : special_f32) {
    for (const std::uint32_t beta : special_f32) {
      v.epilogue.alpha = alpha;
      v.epilogue.beta = beta;
      v.epilogue.bias = ++combination % 3 == 0 ? Bits() : bias;
      v.minimum_tier = all_tiers[stream.below(4)];
      const TierCounts counts = check_product<TypeParam>(x.a, x.b, products, v);
      if ((alpha << 1) == 0) {
        EXPECT_EQ(counts[0], products.size());
      }
    }
  }
}

// Random bits for everything.
TYPED_TEST(GemmTyped, EpilogueRandom) {
  const Format format = OutputType<TypeParam>::format;
  Stream stream(9);
  for (int i = 0; i < 150; ++i) {
    const HostMatrix a = make_data(static_cast<Data>(i % data_count), 9, 64, stream.next());
    const HostMatrix b = make_data(static_cast<Data>(i % data_count), 33, 64, stream.next());
    const Bits products = ReferenceProduct(a, b).all();
    Variation v = random_variation(stream);
    const auto near_one = [&] {
      return 0x3F000000u + static_cast<std::uint32_t>(stream.below(1u << 24)) +
             (stream.below(2) == 0 ? format_f32.sign() : 0);
    };
    v.epilogue.alpha = i % 3 == 0 ? static_cast<std::uint32_t>(stream.next()) : near_one();
    v.epilogue.beta = i % 5 == 0 ? static_cast<std::uint32_t>(stream.next()) : near_one();
    if (i % 2 == 0) {
      for (std::int64_t j = 0; j < b.rows; ++j) {
        // Near a product, so that the sum is rounded in earnest.
        v.epilogue.bias.push_back(products[j] ^ static_cast<std::uint32_t>(stream.next() >> 38));
      }
    }
    for (std::size_t p = 0; p < products.size(); ++p) {
      const std::uint32_t near = convert(format_f32, format, products[p]);
      v.c.push_back(stream.below(4) == 0
                        ? static_cast<std::uint32_t>(stream.next()) & (2 * format.sign() - 1)
                        : near ^ static_cast<std::uint32_t>(stream.below(64)) ^
                              (stream.below(2) == 0 ? format.sign() : 0));
    }
    check_product<TypeParam>(a, b, products, v);
  }
}

// Every rounding to the output's type, by the bias alone: all upper halves of a float32 with lower
// halves on and around its ties. alpha == 0: t starts as +0.
TYPED_TEST(GemmTyped, EpilogueConversions) {
  Operands x{HostMatrix(1, 32, 255), HostMatrix(65536, 32, 255)};
  const Bits products(65536, format_f32.nan());
  for (const std::uint32_t low :
       {0x0000u, 0x0001u, 0x0FFFu, 0x1000u, 0x1001u, 0x7FFFu, 0x8000u, 0x8001u, 0xF000u, 0xFFFFu}) {
    Variation v;
    v.epilogue.alpha = low % 2 == 0 ? 0 : format_f32.sign();
    v.epilogue.bias.resize(65536);
    for (std::uint32_t high = 0; high < 65536; ++high) v.epilogue.bias[high] = high << 16 | low;
    const TierCounts counts = check_product<TypeParam>(x.a, x.b, products, v);
    EXPECT_EQ(counts[0], 65536u);
  }
}

// A bias with a stride, and none at all.
TEST(Gemm, BiasStride) {
  const HostMatrix a = make_data(Data::narrow, 5, 64, 1);
  const HostMatrix b = make_data(Data::narrow, 21, 64, 2);
  const DeviceMatrix da(a, {}), db(b, {});
  Variation v;
  for (std::int64_t j = 0; j < b.rows; ++j) {
    v.epilogue.bias.push_back(std::bit_cast<std::uint32_t>(static_cast<float>(j) + 0.1f));
  }
  std::vector<std::uint32_t> spread(3 * b.rows, format_f32.nan());
  for (std::int64_t j = 0; j < b.rows; ++j) spread[3 * j] = v.epilogue.bias[j];
  const auto device = to_device(spread);
  KokkosMX::GemmOptions<Space> options;
  options.bias(Kokkos::View<const float*, Kokkos::LayoutStride, Space, Unmanaged>(
      reinterpret_cast<const float*>(device.data()), Kokkos::LayoutStride(b.rows, 3)));
  const DeviceOutput<float> c(a.rows, b.rows, b.rows, 1, 0, {});
  KokkosMX::gemm(Exec(), da.plain(), db.plain(), c.view(), options);
  expect_equal_bits(expected_output(ReferenceProduct(a, b).all(), b.rows, v, format_f32),
                    c.result(), b.rows, "bias stride");
}

// ------------------------------------------------------------------------------ batches

// A batch of operands with gaps between, or one operand for all.
template <bool tiles>
struct Batch {
  std::vector<HostMatrix> matrices;
  std::int64_t codes_stride, scales_stride;
  DeviceArray<std::uint8_t> codes, scales;

  Batch(std::int64_t count, std::int64_t rows, std::int64_t k, std::uint64_t seed,
        std::int64_t gap) {
    const std::int64_t cols = k / 32;
    const std::int64_t padded_cols = tiles ? (cols + 7) / 8 * 8 : cols;
    const std::int64_t padded_rows = tiles ? (rows + 255) / 256 * 256 : rows;
    codes_stride = rows * k / 2 + gap;
    scales_stride = padded_rows * padded_cols + gap;
    std::vector<std::uint8_t> host_codes = random_bytes(count * codes_stride, seed);
    std::vector<std::uint8_t> host_scales(count * scales_stride, 255);
    for (std::int64_t i = 0; i < count; ++i) {
      matrices.push_back(
          make_data(static_cast<Data>((seed + i) % data_count), rows, k, seed + 10 * i));
      const HostMatrix& x = matrices.back();
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t col = 0; col < k / 2; ++col) {
          host_codes[i * codes_stride +
                     (tiles ? tile_16x16_offset(k, row, col) : row * (k / 2) + col)] =
              x.codes[row * (k / 2) + col];
        }
        for (std::int64_t col = 0; col < cols; ++col) {
          host_scales[i * scales_stride + (tiles ? tile_32x8_offset(padded_cols, row, col)
                                                 : row * cols + col)] = x.scale(row, col);
        }
      }
    }
    codes = to_device(host_codes);
    scales = to_device(host_scales);
  }
  auto matrix() const {
    using View = Kokkos::View<const std::uint8_t***, Kokkos::LayoutStride, Space, Unmanaged>;
    using CodesLayout = std::conditional_t<tiles, Tile16x16, RowMajor>;
    using ScalesLayout = std::conditional_t<tiles, Tile32x8, RowMajor>;
    const auto count = static_cast<std::int64_t>(matrices.size());
    const std::int64_t rows = matrices[0].rows, k = matrices[0].k;
    const KokkosMX::ScalesShape shape = KokkosMX::scales_shape<ScalesLayout>(rows, k);
    return KokkosMX::Matrix<CodesLayout, ScalesLayout, Space>(
        KokkosMX::Codes<CodesLayout, Space>(
            View(codes.data(), Kokkos::LayoutStride(count, codes_stride, rows, k / 2, k / 2, 1))),
        KokkosMX::Scales<ScalesLayout, Space>(View(
            scales.data(),
            Kokkos::LayoutStride(count, scales_stride, shape.rows, shape.cols, shape.cols, 1))));
  }
};

// c's strides: of batches, rows, columns.
template <class T, bool tiles_a, bool tiles_b>
void check_batch(std::int64_t batch_a, std::int64_t batch_b, std::int64_t batch,
                 std::array<std::int64_t, 3> strides, bool summaries) {
  constexpr std::int64_t m = 32, n = 48, k = 192;
  const Batch<tiles_a> a(batch_a, m, k, 3, 5);
  const Batch<tiles_b> b(batch_b, n, k, 4, 11);
  using BitsOf = typename OutputType<T>::bits;
  const std::int64_t span =
      (batch - 1) * strides[0] + (m - 1) * strides[1] + (n - 1) * strides[2] + 1;
  std::vector<BitsOf> before(span + 16);
  Stream stream(5);
  for (BitsOf& bits : before) bits = static_cast<BitsOf>(stream.next());
  const auto data = to_device(before);
  const Kokkos::View<T***, Kokkos::LayoutStride, Space, Unmanaged> c(
      reinterpret_cast<T*>(data.data()),
      Kokkos::LayoutStride(batch, strides[0], m, strides[1], n, strides[2]));
  Variation v;
  v.epilogue.beta = 0x3F000000;
  for (std::int64_t j = 0; j < n; ++j) v.epilogue.bias.push_back(special_f32[8 + j % 2]);
  const auto bias = to_device(v.epilogue.bias);
  const DeviceArray<std::uint64_t> counts("counts", KokkosMX::tier_count);
  KokkosMX::GemmOptions<Space> options;
  options.beta(0.5f).tier_counts(counts).bias(
      Kokkos::View<const float*, Space, Unmanaged>(reinterpret_cast<const float*>(bias.data()), n));
  auto matrix_a = a.matrix();
  auto matrix_b = b.matrix();
  const Kokkos::View<KokkosMX::RowSummary**, Space> summaries_a("a", batch_a, m);
  const Kokkos::View<KokkosMX::RowSummary**, Space> summaries_b("b", batch_b, n);
  if (summaries) {
    KokkosMX::summarize(Exec(), matrix_a, summaries_a);
    KokkosMX::summarize(Exec(), matrix_b, summaries_b);
    matrix_a = decltype(matrix_a)(matrix_a.codes(), matrix_a.scales(), summaries_a);
    matrix_b = decltype(matrix_b)(matrix_b.codes(), matrix_b.scales(), summaries_b);
  }
  KokkosMX::gemm(Exec(), matrix_a, matrix_b, c, options);
  std::vector<BitsOf> after = to_host(data);
  for (std::int64_t i = 0; i < batch; ++i) {
    const HostMatrix& xa = a.matrices[batch_a == 1 ? 0 : i];
    const HostMatrix& xb = b.matrices[batch_b == 1 ? 0 : i];
    Bits actual;
    v.c.clear();
    for (std::int64_t row = 0; row < m; ++row) {
      for (std::int64_t col = 0; col < n; ++col) {
        const std::int64_t place = i * strides[0] + row * strides[1] + col * strides[2];
        v.c.push_back(before[place]);
        actual.push_back(after[place]);
        after[place] = before[place];
      }
    }
    expect_equal_bits(expected_output(ReferenceProduct(xa, xb).all(), n, v, OutputType<T>::format),
                      actual, n, "batch " + std::to_string(i));
  }
  EXPECT_EQ(after, before) << "bytes around the output changed";
  std::uint64_t total = 0;
  for (const std::uint64_t count : to_host(counts)) total += count;
  EXPECT_EQ(total, static_cast<std::uint64_t>(batch * m * n));
}

TEST(GemmBatch, StridesAndBroadcast) {
  for (const bool summaries : {false, true}) {
    check_batch<float, false, false>(3, 3, 3, {32 * 48, 48, 1}, summaries);
    check_batch<BFloat16, true, true>(3, 3, 3, {32 * 50 + 3, 50, 1}, summaries);
    check_batch<float, false, true>(1, 4, 4, {48, 4 * 48, 1}, summaries);    // rows interleaved
    check_batch<Float16, true, false>(4, 1, 4, {1, 4 * 48, 4}, summaries);   // columns interleaved
    check_batch<float, false, false>(1, 1, 3, {48 * 32, 1, 32}, summaries);  // column-major
    check_batch<BFloat16, true, true>(1, 1, 1, {0, 48, 1}, summaries);
  }
}

TEST(GemmBatch, Dense) {
  constexpr std::int64_t batch = 3, m = 7, n = 16, k = 64;
  const std::vector<std::uint16_t> a_bits = bell(batch * m, k, 1);
  const std::vector<std::uint16_t> b_bits = bell(n, k, 2);
  const auto a = to_device(a_bits);
  const auto b = device_matrix<BFloat16>(b_bits, n, k);
  const Kokkos::View<const BFloat16***, Kokkos::LayoutRight, Space, Unmanaged> a_view(
      reinterpret_cast<const BFloat16*>(a.data()), batch, m, k);
  const Kokkos::View<float***, Kokkos::LayoutRight, Space> c("c", batch, m, n);
  KokkosMX::quantize_gemm(Exec(), a_view, b, c, KokkosMX::rules::reference);
  // The same, all rows as one matrix.
  const DeviceOutput<float> expected(batch * m, n, n, 1, 0, {});
  KokkosMX::quantize_gemm(Exec(), device_matrix<BFloat16>(a_bits, batch * m, k), b, expected.view(),
                          KokkosMX::rules::reference);
  const auto actual = to_host(
      DeviceArray<std::uint32_t>(reinterpret_cast<std::uint32_t*>(c.data()), batch * m * n));
  expect_equal_bits(expected.result(), actual, n, "dense batch");
}

// ------------------------------------------------------------------------------ same bits

// The CRC-32 of results over fixed inputs. The constants come from the oracle: any build, any
// number of threads, any environment has to meet them.
template <class T>
std::uint32_t crc_of_results(bool from_oracle) {
  std::uint32_t crc = 0;
  for (int d = 0; d < data_count; ++d) {
    Stream stream(500 + d);
    const std::int64_t m = 20 + 7 * d, n = 90 - 5 * d, k = d == 3 ? 1536 : 32 * (d + 1);
    const HostMatrix a = make_data(static_cast<Data>(d), m, k, stream.next());
    const HostMatrix b = make_data(static_cast<Data>(d), n, k, stream.next());
    Variation v;
    if (d % 2 == 1) {
      v.epilogue.alpha = 0x3F99999A;
      v.epilogue.beta = 0x3EAAAAAB;
      for (std::int64_t i = 0; i < m * n; ++i) {
        v.c.push_back(static_cast<std::uint32_t>(stream.next()) &
                      (2 * OutputType<T>::format.sign() - 1));
      }
      for (std::int64_t j = 0; j < n; ++j) v.epilogue.bias.push_back(special_f32[j % 14]);
    }
    const Bits bits =
        from_oracle ? expected_output(ReferenceProduct(a, b).all(), n, v, OutputType<T>::format)
                    : run_product<T>(a, b, v).bits;
    crc = crc32(bits.data(), bits.size() * sizeof(bits[0]), crc);
  }
  return crc;
}
std::array<std::uint32_t, 3> crcs_of_results(bool from_oracle) {
  return {crc_of_results<float>(from_oracle), crc_of_results<BFloat16>(from_oracle),
          crc_of_results<Float16>(from_oracle)};
}
constexpr std::array<std::uint32_t, 3> crc_constants{560074930, 2786851575, 3094694274};

TEST(GemmBits, Oracle) { EXPECT_EQ(crcs_of_results(true), crc_constants); }

TEST(GemmBits, Library) {
  std::cout << "threads: " << Exec().concurrency() << '\n';
  EXPECT_EQ(crcs_of_results(false), crc_constants);
}

#if defined(KOKKOS_ENABLE_OPENMP) && defined(__SSE2__)
// Runs f once on every thread of the pool, and returns how many distinct threads it met.
template <class F>
std::size_t on_every_thread(const F& f) {
  const int threads = Kokkos::OpenMP().concurrency();
  std::vector<std::thread::id> ids(threads);
  std::thread::id* const id = ids.data();
  Kokkos::parallel_for(
      "KokkosMXTest: every thread",
      Kokkos::RangePolicy<Kokkos::OpenMP, Kokkos::Schedule<Kokkos::Static>>(0, threads)
          .set_chunk_size(1),
      [=](int i) {
        id[i] = std::this_thread::get_id();
        f(i);
      });
  Kokkos::fence();
  return std::set<std::thread::id>(ids.begin(), ids.end()).size();
}

// Gives every thread of the pool a control word, restores it at the end. The caller's comes first:
// LLVM's OpenMP hands it to the others at each parallel region, GNU's lets each keep its own.
class ControlWords {
 public:
  explicit ControlWords(unsigned set)
      : caller_(_mm_getcsr()), before_(Kokkos::OpenMP().concurrency()) {
    unsigned* const before = before_.data();
    on_every_thread([=](int i) { before[i] = _mm_getcsr(); });
    _mm_setcsr(caller_ | set);
    EXPECT_EQ(on_every_thread([=](int i) { _mm_setcsr(before[i] | set); }), before_.size());
  }
  ~ControlWords() {
    const unsigned* const before = before_.data();
    _mm_setcsr(caller_);
    on_every_thread([=](int i) { _mm_setcsr(before[i]); });
  }
  ControlWords(const ControlWords&) = delete;
  ControlWords& operator=(const ControlWords&) = delete;

 private:
  unsigned caller_;
  std::vector<unsigned> before_;
};

constexpr unsigned flush_to_zero = 0x8000, denormals_are_zero = 0x0040;

// How many threads' products of 2^-126 and 1/2, and of 2^-149 and 2^40, are zero: flushed results,
// and operands.
std::array<int, 2> flushing_threads() {
  const int threads = Kokkos::OpenMP().concurrency();
  std::vector<int> results(threads), operands(threads);
  int* const result = results.data();
  int* const operand = operands.data();
  on_every_thread([=](int i) {
    const volatile float least_normal = std::bit_cast<float>(0x00800000u);
    const volatile float half = 0.5f;
    const volatile float least = std::bit_cast<float>(0x00000001u);
    const volatile float large = std::bit_cast<float>(0x53800000u);
    const volatile float low = least_normal * half;
    const volatile float high = least * large;
    result[i] = (std::bit_cast<std::uint32_t>(static_cast<float>(low)) << 1) == 0 ? 1 : 0;
    operand[i] = (std::bit_cast<std::uint32_t>(static_cast<float>(high)) << 1) == 0 ? 1 : 0;
  });
  std::array<int, 2> sum{};
  for (int i = 0; i < threads; ++i) {
    sum[0] += results[i];
    sum[1] += operands[i];
  }
  return sum;
}

TEST(GemmBits, FlushToZeroOnEveryThread) {
  const int threads = Kokkos::OpenMP().concurrency();
  {
    const ControlWords words(flush_to_zero | denormals_are_zero);
    EXPECT_EQ(flushing_threads(), (std::array{threads, threads}));
    EXPECT_EQ(crcs_of_results(false), crc_constants);
    // A subnormal alpha and beta are not zero.
    const HostMatrix a = random_matrix(9, 64, 1, 180, 184), b = random_matrix(10, 64, 2, 180, 184);
    const Bits products = ReferenceProduct(a, b).all();
    Variation v;
    v.epilogue.alpha = 0x00000001;
    v.epilogue.beta = 0x007FFFFF;
    v.c.assign(90, 0x7E800000);
    v.epilogue.bias.assign(10, 0x80000003);
    check_product<float>(a, b, products, v);
    check_product<BFloat16>(a, b, products, {});
    // The flags are still set.
    EXPECT_EQ(flushing_threads(), (std::array{threads, threads}));
  }
}

TEST(GemmBits, RoundingModeOfEveryThread) {
  // Round down, up, towards zero, in SSE's control word.
  for (const unsigned mode : {0x2000u, 0x4000u, 0x6000u}) {
    const ControlWords words(mode);
    EXPECT_EQ(crcs_of_results(false), crc_constants);
    std::vector<unsigned> modes(Kokkos::OpenMP().concurrency());
    unsigned* const each = modes.data();
    on_every_thread([=](int i) { each[i] = _mm_getcsr() & 0x6000u; });
    EXPECT_EQ(modes, std::vector<unsigned>(modes.size(), mode));
  }
}
#endif

// ------------------------------------------------------------------------------ beyond 2^31

#if defined(__linux__)
// Address space of which only what is touched takes memory.
class LazyBytes {
 public:
  explicit LazyBytes(std::size_t bytes) : bytes_(bytes) {
    data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data_ == MAP_FAILED) throw std::runtime_error("LazyBytes: no address space");
  }
  ~LazyBytes() { munmap(data_, bytes_); }
  LazyBytes(const LazyBytes&) = delete;
  LazyBytes& operator=(const LazyBytes&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_;
  std::size_t bytes_;
};

constexpr bool host_accessible = std::is_same_v<Space, Kokkos::HostSpace>;

// Strides of more than 2^31 elements between the rows of C.
template <class T>
void check_far_output(std::int64_t row_stride, std::int64_t col_stride) {
  using BitsOf = typename OutputType<T>::bits;
  const HostMatrix a = make_data(Data::medium, 4, 64, 1), b = make_data(Data::medium, 3, 64, 2);
  const DeviceMatrix da(a, {}), db(b, {});
  const LazyBytes memory(sizeof(T) * (3 * row_stride + 2 * col_stride + 1));
  const DeviceRows<T> c(memory.as<T>(), Kokkos::LayoutStride(4, row_stride, 3, col_stride));
  const auto place = [&](int i, int j) -> BitsOf& {
    return memory.as<BitsOf>()[i * row_stride + j * col_stride];
  };
  Variation v;
  v.epilogue.beta = 0x3F800000;
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 3; ++j) {
      v.c.push_back(0x3C00u + 16 * i + j);
      place(i, j) = static_cast<BitsOf>(v.c.back());
    }
  }
  KokkosMX::GemmOptions<Space> options;
  options.beta(1.0f);
  KokkosMX::gemm(Exec(), da.plain(), db.plain(), c, options);
  Bits actual;
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 3; ++j) actual.push_back(place(i, j));
  }
  expect_equal_bits(expected_output(ReferenceProduct(a, b).all(), 3, v, OutputType<T>::format),
                    actual, 3, "far output");
}
TEST(GemmLarge, FarOutputs) {
  if (!host_accessible) GTEST_SKIP() << "the device does not see the host's memory";
  const std::int64_t far = (std::int64_t{1} << 31) + 5;
  check_far_output<float>(far, 1);
  check_far_output<BFloat16>(1, far);
  check_far_output<Float16>(far / 2, 7);
}

// Codes and scales whose rows and batches are more than 2^32 bytes apart.
TEST(GemmLarge, FarOperands) {
  if (!host_accessible) GTEST_SKIP() << "the device does not see the host's memory";
  const std::int64_t far = (std::int64_t{1} << 32) + 3;
  const std::int64_t near = (std::int64_t{1} << 31) - 7;
  const std::int64_t m = 3, n = 5, k = 96, batch = 2;
  const LazyBytes codes(batch * m * far), scales(batch * m * far);
  std::vector<HostMatrix> a;
  for (std::int64_t i = 0; i < batch; ++i) {
    a.push_back(make_data(Data::medium, m, k, 40 + i));
    for (std::int64_t row = 0; row < m; ++row) {
      const std::int64_t start = i * (m - 1) * far + 64 * i + row * near;
      for (std::int64_t col = 0; col < k / 2; ++col) {
        codes.as<std::uint8_t>()[start + col] = a[i].codes[row * (k / 2) + col];
      }
      for (std::int64_t col = 0; col < k / 32; ++col) {
        scales.as<std::uint8_t>()[start + col] = a[i].scale(row, col);
      }
    }
  }
  using View = Kokkos::View<const std::uint8_t***, Kokkos::LayoutStride, Space, Unmanaged>;
  const std::int64_t batch_stride = (m - 1) * far + 64;
  const KokkosMX::Matrix<RowMajor, RowMajor, Space> matrix_a(
      KokkosMX::Codes<RowMajor, Space>(View(
          codes.as<std::uint8_t>(), Kokkos::LayoutStride(batch, batch_stride, m, near, k / 2, 1))),
      KokkosMX::Scales<RowMajor, Space>(
          View(scales.as<std::uint8_t>(),
               Kokkos::LayoutStride(batch, batch_stride, m, near, k / 32, 1))));
  const HostMatrix b = make_data(Data::medium, n, k, 50);
  const DeviceMatrix db(b, {});
  const Kokkos::View<float***, Kokkos::LayoutRight, Space> c("c", batch, m, n);
  KokkosMX::gemm(Exec(), matrix_a, db.plain(), c);
  Exec().fence();
  for (std::int64_t i = 0; i < batch; ++i) {
    const auto bits = to_host(
        DeviceArray<std::uint32_t>(reinterpret_cast<std::uint32_t*>(c.data()) + i * m * n, m * n));
    expect_equal_bits(ReferenceProduct(a[i], b).all(), bits, n, "far operand");
  }
}

// More than 2^31 outputs. Their addresses are distinct, their memory is one row of C mapped again
// and again: every row of C holds the same, zeros by alpha == 0.
TEST(GemmLargeFull, ManyOutputs) {
  if (!host_accessible) GTEST_SKIP() << "the device does not see the host's memory";
  constexpr std::int64_t n = 1 << 20, m = (1 << 11) + 1, k = 32;
  constexpr std::size_t row_bytes = n * sizeof(BFloat16);
  const int file = memfd_create("KokkosMXTest", 0);
  ASSERT_GE(file, 0);
  ASSERT_EQ(ftruncate(file, row_bytes), 0);
  const LazyBytes memory(m * row_bytes);
  for (std::int64_t row = 0; row < m; ++row) {
    ASSERT_NE(mmap(memory.as<char>() + row * row_bytes, row_bytes, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_FIXED, file, 0),
              MAP_FAILED);
  }
  close(file);
  std::fill_n(memory.as<std::uint16_t>(), n, std::uint16_t{0xFFFF});
  // One row serves all rows of an operand.
  const auto row = to_device(std::vector<std::uint8_t>(k / 2, 0x22));
  const auto operand = [&](std::int64_t rows) {
    return KokkosMX::Matrix<RowMajor, RowMajor, Space>(
        KokkosMX::Codes<RowMajor, Space>(
            DeviceRows<const std::uint8_t>(row.data(), Kokkos::LayoutStride(rows, 0, k / 2, 1))),
        KokkosMX::Scales<RowMajor, Space>(
            DeviceRows<const std::uint8_t>(row.data(), Kokkos::LayoutStride(rows, 0, 1, 1))));
  };
  const Kokkos::View<BFloat16**, Kokkos::LayoutRight, Space, Unmanaged> c(memory.as<BFloat16>(), m,
                                                                          n);
  const DeviceArray<std::uint64_t> counts("counts", KokkosMX::tier_count);
  KokkosMX::gemm(Exec(), operand(m), operand(n), c,
                 KokkosMX::GemmOptions<Space>().alpha(0.0f).tier_counts(counts));
  EXPECT_EQ(to_host(counts)[0], static_cast<std::uint64_t>(m * n));
  std::int64_t differences = 0;
  for (std::int64_t j = 0; j < n; ++j) {
    if (memory.as<std::uint16_t>()[j] != 0) ++differences;
  }
  EXPECT_EQ(differences, 0);
}
#endif

}  // namespace
