// SPDX-License-Identifier: Apache-2.0

// The verdict on somebody's product: what it excuses is what a float32 accumulation gives in some
// order, what the certificate covers is not excused, and every field is what its definition says.

#include <gtest/gtest.h>

#include "Compare.hpp"
#include "GemmCases.hpp"
#include "Inputs.hpp"
#include "ReferenceGemm.hpp"

#include <KokkosMX.hpp>
#include <Kokkos_Core.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace KokkosMXTest {
namespace {

using KokkosMX::BFloat16;
using KokkosMX::Float16;
using KokkosMX::OutputVerdict;
using KokkosMX::Verdict;

/// One output's terms, without any of the library's code.
struct Terms {
  std::vector<float> products;  // as a float32 kernel has them, overflow and underflow included
  int least_a = 999, least_b = 999;
  long double absolute = 0;  // sum |a b|; exact where its terms span less than 64 bits
  bool all_negative_zeros = true, nan = false;
};

Terms terms_of(const HostMatrix& a, const HostMatrix& b, std::int64_t i, std::int64_t j) {
  Terms terms;
  for (std::int64_t k = 0; k < a.k; ++k) {
    const int scale_a = a.scale(i, k / 32), scale_b = b.scale(j, k / 32);
    const int code_a = a.code(i, k), code_b = b.code(j, k);
    const int halves_a = code_in_halves(code_a), halves_b = code_in_halves(code_b);
    terms.nan |= scale_a == 255 || scale_b == 255;
    if (halves_a != 0 && scale_a != 255) terms.least_a = std::min(terms.least_a, scale_a);
    if (halves_b != 0 && scale_b != 255) terms.least_b = std::min(terms.least_b, scale_b);
    const bool negative = ((code_a ^ code_b) & 8) != 0;
    const int magnitude = std::abs(halves_a * halves_b);
    terms.all_negative_zeros &= negative && magnitude == 0;
    terms.absolute += std::ldexp(static_cast<long double>(magnitude), scale_a + scale_b - 256);
    const auto product =
        static_cast<float>(std::ldexp(static_cast<double>(magnitude), scale_a + scale_b - 256));
    terms.products.push_back(negative ? -product : product);
  }
  return terms;
}

/// The certificate by its definition.
bool certified(const Terms& terms) {
  if (terms.nan) return false;
  if (terms.absolute == 0) return true;
  const int least = terms.least_a + terms.least_b;
  return least >= 130 && least <= 359 && terms.absolute <= std::ldexp(1.0L, 24 + least - 256);
}

enum class Order { forward, backward, pairwise, strided };
/// A float32 accumulation, one rounding an addition.
float accumulated(const std::vector<float>& terms, Order order) {
  std::vector<float> x = terms;
  if (order == Order::backward) std::reverse(x.begin(), x.end());
  if (order == Order::pairwise) {
    for (std::size_t n = x.size(); n > 1; n = (n + 1) / 2) {
      for (std::size_t i = 0; i < n / 2; ++i) {
        volatile float sum = x[2 * i] + x[2 * i + 1];
        x[i] = sum;
      }
      if (n % 2 == 1) x[n / 2] = x[n - 1];
    }
    return x[0];
  }
  const std::size_t lanes = order == Order::strided ? 16 : 1;
  std::vector<float> sums(lanes, 0.0f);
  for (std::size_t i = 0; i < x.size(); ++i) {
    volatile float sum = sums[i % lanes] + x[i];
    sums[i % lanes] = sum;
  }
  volatile float total = 0;
  for (const float sum : sums) total = total + sum;
  return total;
}

template <class T>
std::vector<OutputVerdict> judged(const HostMatrix& a, const HostMatrix& b, const Bits& c,
                                  Form form = {}) {
  const DeviceMatrix da(a, form), db(b, form);
  const DeviceOutput<T> dc(a.rows, b.rows, b.rows + 3, 1, 5, c);
  // With strides: rows of verdicts inside wider ones.
  const Kokkos::View<OutputVerdict**, Kokkos::LayoutRight, Space> wide("verdicts", a.rows,
                                                                       b.rows + 2);
  const auto verdicts =
      Kokkos::subview(wide, Kokkos::ALL, std::make_pair(std::int64_t{1}, b.rows + 1));
  da.visit([&](const auto& ma) {
    db.visit([&](const auto& mb) { KokkosMX::compare(Exec(), ma, mb, dc.view(), verdicts); });
  });
  const auto host = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, wide);
  std::vector<OutputVerdict> result;
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t j = 0; j < b.rows; ++j) result.push_back(host(i, j + 1));
  }
  return result;
}

/// The exact product in T's type.
template <class T>
Bits exact(const HostMatrix& a, const HostMatrix& b) {
  Bits bits = ReferenceProduct(a, b).all();
  for (std::uint32_t& x : bits) x = convert(format_f32, OutputType<T>::format, x);
  return bits;
}

template <class T>
class Compare : public testing::Test {};
using Types = testing::Types<float, BFloat16, Float16>;
TYPED_TEST_SUITE(Compare, Types, OutputTypeNames);

TYPED_TEST(Compare, TheExactProductIsEqual) {
  Stream stream(1);
  for (int data = 0; data < data_count; ++data) {
    const HostMatrix a = make_data(static_cast<Data>(data), 7, 160, 100 + data);
    const HostMatrix b = make_data(static_cast<Data>(data), 80, 160, 200 + data);
    const Bits products = ReferenceProduct(a, b).all();
    const auto verdicts = judged<TypeParam>(a, b, exact<TypeParam>(a, b), random_form(stream));
    for (std::size_t at = 0; at < verdicts.size(); ++at) {
      ASSERT_EQ(verdicts[at].verdict, Verdict::equal) << data << " at " << at;
      ASSERT_EQ(std::bit_cast<std::uint32_t>(verdicts[at].exact), products[at]);
      ASSERT_EQ(verdicts[at].bound, 0.0f);
      // Shown by the summaries, so by the definition as well.
      const Terms terms = terms_of(a, b, at / 80, at % 80);
      ASSERT_TRUE(verdicts[at].certified == 0 || certified(terms)) << data << " at " << at;
    }
  }
}

// One flipped bit: certified by the definition, and then never excused.
TYPED_TEST(Compare, AFlippedBitIsCertifiedByTheDefinition) {
  int seen[2] = {0, 0};
  for (const Data data : {Data::narrow, Data::medium, Data::equal, Data::zeros, Data::subnormal}) {
    const HostMatrix a = make_data(data, 9, 96, 31), b = make_data(data, 40, 96, 32);
    Bits c = exact<TypeParam>(a, b);
    for (std::uint32_t& x : c) x ^= 1;
    const auto verdicts = judged<TypeParam>(a, b, c);
    for (std::size_t at = 0; at < verdicts.size(); ++at) {
      const bool covered = certified(terms_of(a, b, at / 40, at % 40));
      ++seen[covered];
      ASSERT_EQ(verdicts[at].certified != 0, covered) << static_cast<int>(data) << " at " << at;
      if (covered) {
        ASSERT_EQ(verdicts[at].verdict, Verdict::certified_differs);
      } else {
        ASSERT_TRUE(verdicts[at].verdict == Verdict::within_bound ||
                    verdicts[at].verdict == Verdict::beyond_bound);
        ASSERT_GT(verdicts[at].bound, 0.0f);
      }
    }
  }
  EXPECT_GT(seen[0], 100);
  EXPECT_GT(seen[1], 100);
}

// What float32 accumulations of any order give is excused, on data of every kind.
TYPED_TEST(Compare, FloatAccumulationsAreExcused) {
  int differing = 0;
  for (int data = 0; data < data_count; ++data) {
    const HostMatrix a = make_data(static_cast<Data>(data), 6, 512, 41 + data);
    const HostMatrix b = make_data(static_cast<Data>(data), 33, 512, 51 + data);
    for (const Order order : {Order::forward, Order::backward, Order::pairwise, Order::strided}) {
      Bits c;
      for (std::int64_t i = 0; i < a.rows; ++i) {
        for (std::int64_t j = 0; j < b.rows; ++j) {
          const Terms terms = terms_of(a, b, i, j);
          const float sum = accumulated(terms.products, order);
          c.push_back(terms.nan ? OutputType<TypeParam>::format.nan()
                                : convert(format_f32, OutputType<TypeParam>::format,
                                          std::bit_cast<std::uint32_t>(sum)));
        }
      }
      for (const OutputVerdict& verdict : judged<TypeParam>(a, b, c)) {
        ASSERT_TRUE(KokkosMX::is_excusable(verdict.verdict))
            << "data " << data << ", order " << static_cast<int>(order) << ", verdict "
            << static_cast<int>(verdict.verdict) << ", exact " << verdict.exact << ", bound "
            << verdict.bound;
        differing += verdict.verdict == Verdict::within_bound;
      }
    }
  }
  EXPECT_GT(differing, 200);
}

// The bound is not generous: what lies 1.01 bounds and a unit off is not excused.
TEST(CompareBound, IsTheFormulaAndDecides) {
  const HostMatrix a = make_data(Data::two_clusters, 4, 1024, 61);
  const HostMatrix b = make_data(Data::two_clusters, 30, 1024, 62);
  const Bits products = ReferenceProduct(a, b).all();
  Bits flipped = products;
  for (std::uint32_t& x : flipped) x ^= 1;
  const auto first = judged<float>(a, b, flipped);
  int checked = 0;
  for (const double share : {0.5, 0.99, 1.01, 3.0}) {
    Bits c;
    for (std::size_t at = 0; at < products.size(); ++at) {
      const double moved = first[at].exact + share * first[at].bound;
      c.push_back(std::bit_cast<std::uint32_t>(static_cast<float>(moved)));
    }
    const auto verdicts = judged<float>(a, b, c);
    for (std::size_t at = 0; at < products.size(); ++at) {
      const Terms terms = terms_of(a, b, at / 30, at % 30);
      const double sum = static_cast<double>(terms.absolute);
      const double gamma = 1024 * 0x1p-24 / (1 - 1024 * 0x1p-24);
      const double bound = gamma * sum + 2 * 1024 * 0x1p-126;
      ASSERT_NEAR(first[at].bound, bound, 1e-5 * bound);
      // Where a unit in the last place is much less than the bound, it is the bound that decides.
      const double unit = 0x1p-23 * std::abs(first[at].exact);
      if (first[at].certified != 0 || unit > 0.001 * bound) continue;
      ++checked;
      ASSERT_EQ(verdicts[at].verdict, share < 1 ? Verdict::within_bound : Verdict::beyond_bound)
          << share << " at " << at;
    }
  }
  EXPECT_GT(checked, 200);
}

TEST(CompareSpecial, ZerosAndNaNs) {
  // Rows of A: zeros of either sign, a number, a NaN scale. B: 1, -1.
  HostMatrix a(4, 32), b(2, 32);
  for (int k = 0; k < 32; ++k) {
    a.set_code(1, k, 8);
    a.set_code(2, k, 2);
    b.set_code(0, k, 2);
    b.set_code(1, k, 10);
  }
  a.scale(3, 0) = 255;
  constexpr std::uint32_t minus_zero = 0x80000000, nan = 0x7FC00000, other_nan = 0xFF800001;
  const Bits c{minus_zero, minus_zero,  // 0 * 1 is +0, 0 * -1 is -0
               minus_zero, minus_zero,  // -0 * 1 is -0, -0 * -1 is +0
               nan,        0xC2000000,  // 32, -32
               other_nan,  0x3F800000};
  const auto verdicts = judged<float>(a, b, c);
  const std::vector<Verdict> expected{Verdict::certified_differs,
                                      Verdict::zero_sign,
                                      Verdict::zero_sign,
                                      Verdict::certified_differs,
                                      Verdict::nan_differs,
                                      Verdict::equal,
                                      Verdict::equal,
                                      Verdict::nan_differs};
  for (std::size_t at = 0; at < expected.size(); ++at) {
    EXPECT_EQ(verdicts[at].verdict, expected[at]) << at;
  }
}

TEST(CompareSpecial, WhatMayOverflowIsExcused) {
  // 2^120 * 2^7 * 32 * 6: beyond float32 in the middle, though the halves cancel.
  HostMatrix a(1, 64), b(1, 64);
  for (int k = 0; k < 64; ++k) {
    a.set_code(0, k, k < 32 ? 7 : 15);
    b.set_code(0, k, 7);
  }
  for (int block = 0; block < 2; ++block) {
    a.scale(0, block) = 240;
    b.scale(0, block) = 141;
  }
  for (const std::uint32_t c : {0x7FC00000u, 0x7F800000u, 0x12345678u}) {
    const auto verdicts = judged<float>(a, b, {c});
    EXPECT_EQ(verdicts[0].verdict, Verdict::within_bound) << std::hex << c;
    // By bits: -Ofast takes it that nothing is infinite.
    EXPECT_EQ(Kokkos::bit_cast<std::uint32_t>(verdicts[0].bound), 0x7F800000u);
  }
}

TEST(CompareSpecial, BatchesAndBroadcast) {
  const HostMatrix a = make_data(Data::narrow, 5, 64, 71);
  const HostMatrix b = make_data(Data::narrow, 6, 64, 72);
  const DeviceMatrix da(a, {}), db(b, {});
  Bits c = exact<float>(a, b);
  Bits both = c;
  both.insert(both.end(), c.begin(), c.end());
  both[30 + 17] ^= 4;
  const auto device = to_device(both);
  const Kokkos::View<const float***, Kokkos::LayoutRight, Space, Unmanaged> view(
      reinterpret_cast<const float*>(device.data()), 2, 5, 6);
  const Kokkos::View<OutputVerdict***, Kokkos::LayoutRight, Space> verdicts("verdicts", 2, 5, 6);
  KokkosMX::compare(Exec(), da.plain(), db.plain(), view, verdicts);
  const auto host = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, verdicts);
  for (int at = 0; at < 60; ++at) {
    EXPECT_EQ(host.data()[at].verdict == Verdict::equal, at != 47) << at;
  }
}

TEST(CompareBadInput, IsToldWithEveryExtent) {
  const DeviceMatrix a(make_data(Data::narrow, 5, 64, 81), {});
  const DeviceMatrix b(make_data(Data::narrow, 6, 64, 82), {});
  const Kokkos::View<float**, Kokkos::LayoutRight, Space> c("c", 5, 6), wrong("wrong", 6, 5);
  const Kokkos::View<OutputVerdict**, Kokkos::LayoutRight, Space> verdicts("verdicts", 5, 6),
      few("few", 5, 5);
  const auto with = [&](const auto& output, const auto& to) {
    return [&, output, to] { KokkosMX::compare(Exec(), a.plain(), b.plain(), output, to); };
  };
  EXPECT_TRUE(refused(with(wrong, verdicts), {"(M, N) = (5, 6)", "(1, 6, 5) of float"}));
  EXPECT_TRUE(refused(with(c, few), {"verdicts to have C's extents", "columns of verdicts = 5"}));
  const Kokkos::View<OutputVerdict**, Kokkos::LayoutRight, Space, Unmanaged> over(
      reinterpret_cast<OutputVerdict*>(c.data()), 5, 6);
  EXPECT_TRUE(refused(with(c, over), {"verdicts not to overlap C"}));
  // Without summaries every atom needs a workspace.
  Form form;
  form.summaries = false;
  const DeviceMatrix bare(make_data(Data::narrow, 5, 64, 81), form);
  const Kokkos::View<std::byte*, Space> memory("workspace", 3);
  EXPECT_TRUE(refused(
      [&] {
        KokkosMX::compare(Exec(), KokkosMX::Workspace(memory), bare.plain(), b.plain(), c,
                          verdicts);
      },
      {"a workspace of at least", "bytes of workspace = 3"}));
}

// A workspace of exactly the size asked for, at any address, and nothing beyond it is touched.
TEST(CompareWorkspace, IsAsLargeAsAskedFor) {
  const HostMatrix ha = make_data(Data::medium, 21, 256, 91),
                   hb = make_data(Data::medium, 70, 256, 92);
  Form form;
  form.summaries = false;
  const DeviceMatrix a(ha, form), b(hb, form);
  const DeviceOutput<float> c(21, 70, 70, 1, 0, exact<float>(ha, hb));
  const Kokkos::View<OutputVerdict**, Kokkos::LayoutRight, Space> verdicts("verdicts", 21, 70);
  const std::size_t bytes =
      KokkosMX::compare_workspace_size(Exec(), a.plain(), b.plain(), c.view());
  for (std::size_t offset = 0; offset < 20; ++offset) {
    const auto memory = to_device(std::vector<std::uint8_t>(bytes + 64, 0xA5));
    const Kokkos::View<std::uint8_t*, Space, Unmanaged> part(memory.data() + offset, bytes);
    KokkosMX::compare(Exec(), KokkosMX::Workspace(part), a.plain(), b.plain(), c.view(), verdicts);
    Exec().fence();
    const auto after = to_host(memory);
    for (std::size_t at = 0; at < after.size(); ++at) {
      ASSERT_TRUE((at >= offset && at < offset + bytes) || after[at] == 0xA5) << at;
    }
    const auto host = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, verdicts);
    for (std::size_t at = 0; at < 21 * 70; ++at) {
      ASSERT_EQ(host.data()[at].verdict, Verdict::equal);
    }
  }
}

}  // namespace
}  // namespace KokkosMXTest
