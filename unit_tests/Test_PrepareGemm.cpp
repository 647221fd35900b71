// SPDX-License-Identifier: Apache-2.0

// Products of prepared operands have the bits of products of plain ones, and of the exact product,
// whatever lies in the padding.

#include <gtest/gtest.h>

#include "GemmCases.hpp"
#include "Inputs.hpp"
#include "ReferenceGemm.hpp"
#include "ReferenceShuffle.hpp"

#include <KokkosMX.hpp>
#include <Kokkos_Core.hpp>

#include <cstdint>
#include <iterator>
#include <ostream>
#include <string>
#include <vector>

namespace KokkosMXTest {
namespace {

using KokkosMX::BFloat16;
using KokkosMX::Tier;
using KokkosMX::Tile16x128;
using KokkosMX::Tile16x4;
using Storage = KokkosMX::MatrixStorage<Tile16x128, Tile16x4, Space>;
using Prepared = Storage::const_matrix_type;

/// A batch of matrices, prepared; then the padding is filled with what would do the most harm.
struct PreparedBatch {
  Storage storage;

  explicit PreparedBatch(const std::vector<HostMatrix>& matrices)
      : storage("prepared", matrices[0].rows, matrices[0].k,
                static_cast<std::int64_t>(matrices.size())) {
    std::vector<std::uint8_t> plain_codes, plain_scales, codes, scales;
    const std::int64_t rows = matrices[0].rows, k = matrices[0].k;
    const auto append = [](std::vector<std::uint8_t>& to, const std::vector<std::uint8_t>& part) {
      to.insert(to.end(), part.begin(), part.end());
    };
    for (const HostMatrix& x : matrices) {
      append(plain_codes, x.codes);
      append(plain_scales, x.scales);
      append(codes, reference_prepare_codes(x.codes, rows, k, 0x77));
      append(scales, reference_prepare_scales(x.scales, rows, k, 255));
    }
    const auto batch = matrices.size();
    const auto device_codes = to_device(plain_codes), device_scales = to_device(plain_scales);
    using View = Kokkos::View<const std::uint8_t***, Kokkos::LayoutRight, Space, Unmanaged>;
    KokkosMX::prepare(
        Exec(),
        KokkosMX::Matrix(KokkosMX::Codes(View(device_codes.data(), batch, rows, k / 2)),
                         KokkosMX::Scales(View(device_scales.data(), batch, rows, k / 32))),
        storage.matrix());
    Exec().fence();
    fill(storage.codes(), codes);
    fill(storage.scales(), scales);
  }
  static void fill(const Storage::bytes_view& view, const std::vector<std::uint8_t>& bytes) {
    ASSERT_EQ(view.size(), bytes.size());
    Kokkos::deep_copy(Kokkos::View<std::uint8_t*, Space, Unmanaged>(view.data(), view.size()),
                      to_device(bytes));
  }
  Prepared matrix() const { return storage.matrix(); }
  Prepared without_summaries() const { return {matrix().codes(), matrix().scales()}; }
};

template <class A, class B>
Bits product(const A& a, const B& b, Tier tier = Tier::automatic) {
  const DeviceOutput<float> c(a.rows(), b.rows(), b.rows(), 1, 0, {});
  KokkosMX::GemmOptions<Space> options;
  options.minimum_tier(tier);
  call_gemm(Exec(), a, b, c.view(), options);
  Exec().fence();
  return c.result();
}

struct EveryCase {
  std::int64_t m, n, k;
  int data;
  std::uint64_t seed;
};
std::string every_name(const EveryCase& c) {
  constexpr const char* names[] = {"narrow", "medium",    "wide",     "full",  "nan",
                                   "zeros",  "subnormal", "overflow", "equal", "two_clusters"};
  static_assert(std::size(names) == data_count);
  return "M" + std::to_string(c.m) + "_N" + std::to_string(c.n) + "_K" + std::to_string(c.k) + "_" +
         names[c.data];
}
void PrintTo(const EveryCase& c, std::ostream* to) { *to << every_name(c); }
std::vector<EveryCase> every_case() {
  struct Shape {
    std::int64_t m, n, k;
  };
  std::uint64_t i = 0;
  std::vector<EveryCase> all;
  for (const Shape& s : {Shape{1, 1, 32}, Shape{17, 33, 160}, Shape{16, 16, 128}, Shape{5, 70, 96},
                         Shape{64, 15, 64}, Shape{33, 48, 1056}, Shape{3, 100, 512}, Shape{7, 5, 0},
                         Shape{0, 5, 64}}) {
    for (int data = 0; data < data_count; ++data) all.push_back({s.m, s.n, s.k, data, 7 * ++i});
  }
  return all;
}
class PrepareGemmEvery : public ::testing::TestWithParam<EveryCase> {};
TEST_P(PrepareGemmEvery, DataAndTier) {
  const EveryCase& c = GetParam();
  const std::string name = every_name(c);
  const HostMatrix a = make_data(static_cast<Data>(c.data), c.m, c.k, c.seed);
  const HostMatrix b = make_data(static_cast<Data>(c.data), c.n, c.k, c.seed + 1);
  const Bits expected = ReferenceProduct(a, b).all();
  const DeviceMatrix plain_a(a, {}), plain_b(b, {});
  const PreparedBatch prepared_a({a}), prepared_b({b});
  expect_equal_bits(expected, product(plain_a.plain(), plain_b.plain()), c.n, name);
  expect_equal_bits(expected, product(plain_a.plain(), prepared_b.matrix()), c.n,
                    name + ": B prepared");
  expect_equal_bits(expected, product(prepared_a.matrix(), plain_b.plain()), c.n,
                    name + ": A prepared");
  for (const Tier tier : {Tier::automatic, Tier::aligned, Tier::window, Tier::wide}) {
    expect_equal_bits(expected, product(prepared_a.matrix(), prepared_b.matrix(), tier), c.n,
                      name + ": both prepared, tier " + std::to_string(static_cast<int>(tier)));
  }
  expect_equal_bits(expected,
                    product(prepared_a.without_summaries(), prepared_b.without_summaries()), c.n,
                    name + ": both prepared, without summaries");
}
INSTANTIATE_TEST_SUITE_P(, PrepareGemmEvery, ::testing::ValuesIn(every_case()),
                         [](const auto& info) { return every_name(info.param); });

// The least scale there is counts in a row's spread: what large blocks add and take away again must
// not take its small sum with them.
TEST(PrepareGemm, LeastScaleBesideLargeOnes) {
  constexpr std::int64_t n = 16, k = 384;
  constexpr int one = 2, minus_one = 10;
  for (const std::int64_t m : {1, 20, 64}) {
    HostMatrix a(m, k, 200), b(n, k, 100);
    for (std::int64_t col = 0; col < k; ++col) {
      for (std::int64_t row = 0; row < m; ++row) a.set_code(row, col, one);
      for (std::int64_t row = 0; row < n; ++row) b.set_code(row, col, col < 256 ? one : minus_one);
    }
    for (std::int64_t row = 0; row < n; ++row) {
      for (std::int64_t block = 0; block < 4; ++block) b.scale(row, block) = 0;
    }
    const Bits expected = ReferenceProduct(a, b).all();
    EXPECT_EQ(expected[0], 0x28000000u);  // 2^-47
    const DeviceMatrix plain_a(a, {}), plain_b(b, {});
    const PreparedBatch prepared_a({a}), prepared_b({b});
    const std::string name = std::to_string(m) + " rows";
    expect_equal_bits(expected, product(plain_a.plain(), plain_b.plain()), n, name);
    expect_equal_bits(expected, product(plain_a.plain(), prepared_b.without_summaries()), n,
                      name + ": B prepared");
    expect_equal_bits(expected,
                      product(prepared_a.without_summaries(), prepared_b.without_summaries()), n,
                      name + ": both prepared");
  }
}

TEST(PrepareGemm, OutliersInBatches) {
  constexpr std::int64_t m = 37, n = 150, k = 352;
  const Outliers columns{.up = 9, .column_every = 48}, blocks{.up = 25, .block_every = 20};
  const std::vector<HostMatrix> b{make_outliers(columns, n, k, 1), make_outliers(blocks, n, k, 2)};
  const std::vector<HostMatrix> a{make_outliers(blocks, m, k, 3), make_outliers(columns, m, k, 4)};
  const PreparedBatch prepared_a(a), prepared_b(b);
  const Kokkos::View<float***, Kokkos::LayoutRight, Space> c("c", 2, m, n);
  KokkosMX::gemm(Exec(), prepared_a.matrix(), prepared_b.matrix(), c);
  const auto bits =
      to_host(DeviceArray<std::uint32_t>(reinterpret_cast<std::uint32_t*>(c.data()), c.size()));
  for (std::int64_t i = 0; i < 2; ++i) {
    const auto first = bits.begin() + i * m * n;
    expect_equal_bits(ReferenceProduct(a[i], b[i]).all(), Bits(first, first + m * n), n,
                      "batch " + std::to_string(i));
  }
}

TEST(PrepareGemm, Batches) {
  constexpr std::int64_t m = 18, n = 35, k = 224;
  for (const std::int64_t batch_a : {1, 3}) {
    for (const std::int64_t batch_b : {1, 3}) {
      std::vector<HostMatrix> a, b;
      for (std::int64_t i = 0; i < batch_a; ++i) a.push_back(make_data(Data::zeros, m, k, 10 + i));
      for (std::int64_t i = 0; i < batch_b; ++i) b.push_back(make_data(Data::medium, n, k, 20 + i));
      const PreparedBatch prepared_a(a), prepared_b(b);
      const Kokkos::View<float***, Kokkos::LayoutRight, Space> c("c", 3, m, n);
      KokkosMX::gemm(Exec(), prepared_a.matrix(), prepared_b.without_summaries(), c);
      const auto bits =
          to_host(DeviceArray<std::uint32_t>(reinterpret_cast<std::uint32_t*>(c.data()), c.size()));
      for (std::int64_t i = 0; i < 3; ++i) {
        const auto first = bits.begin() + i * m * n;
        expect_equal_bits(ReferenceProduct(a[batch_a == 1 ? 0 : i], b[batch_b == 1 ? 0 : i]).all(),
                          Bits(first, first + m * n), n, "batch " + std::to_string(i));
      }
    }
  }
}

// A dense operand, and one prepared.
TEST(PrepareGemm, QuantizeGemm) {
  constexpr std::int64_t m = 9, n = 21, k = 352;
  const auto dense = [](std::int64_t rows, std::uint64_t seed) {
    Kokkos::View<BFloat16**, Kokkos::LayoutRight, Space> x("dense", rows, k);
    Kokkos::deep_copy(Kokkos::View<std::uint16_t*, Space, Unmanaged>(
                          reinterpret_cast<std::uint16_t*>(x.data()), rows * k),
                      to_device(bell(rows, k, seed, 12)));
    return x;
  };
  const auto a = dense(m, 1), b = dense(n, 2);
  const KokkosMX::QuantizeRule rule = KokkosMX::rules::reference;
  const Storage q("b", n, k);
  KokkosMX::quantize(Exec(), b, q.matrix(), rule);
  const DeviceOutput<float> plain(m, n, n, 1, 0, {}), prepared(m, n, n, 1, 0, {});
  KokkosMX::quantize_gemm(Exec(), a, b, plain.view(), rule);
  KokkosMX::quantize_gemm(Exec(), a, q.matrix(), prepared.view(), rule);
  expect_equal_bits(plain.result(), prepared.result(), n, "B prepared");
}

}  // namespace
}  // namespace KokkosMXTest
