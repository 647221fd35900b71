// SPDX-License-Identifier: Apache-2.0

// What gemm and quantize_gemm refuse: the message names every extent, and nothing is written. And
// what looks like it, but is right.

#include <gtest/gtest.h>

#include <KokkosMX.hpp>
#include <Kokkos_Core.hpp>
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "GemmCases.hpp"
#include "Inputs.hpp"
#include "ReferenceGemm.hpp"

namespace {

using namespace KokkosMXTest;
using KokkosMX::BFloat16;
using KokkosMX::Codes;
using KokkosMX::Matrix;
using KokkosMX::RowMajor;
using KokkosMX::RowSummary;
using KokkosMX::Scales;
using KokkosMX::Tile16x16;
using KokkosMX::Tile32x8;
using KokkosMX::rules::reference;
using Strides = Kokkos::LayoutStride;
using Options = KokkosMX::GemmOptions<Space>;
using Plain = Matrix<RowMajor, RowMajor, Space>;
using Dense = DeviceRows<const BFloat16>;
template <class T>
using DeviceBatch = Kokkos::View<T***, Kokkos::LayoutStride, Space, Unmanaged>;

// Extents whose numbers occur nowhere else.
constexpr std::int64_t m = 114, n = 226, k = 352;

class GemmBadInput : public ::testing::Test {
 protected:
  // One allocation for all, so that operands can be made to overlap, with room behind.
  const std::size_t workspace_bytes_ = workspace_needed();
  const std::vector<std::uint8_t> before_ = random_bytes(1'000'000 + workspace_bytes_, 1);
  const DeviceArray<std::uint8_t> memory_ = to_device(before_);
  const DeviceArray<std::uint64_t> counts_{"counts", KokkosMX::tier_count};
  std::uint8_t* const byte_ = memory_.data();
  float* const c_at_ = reinterpret_cast<float*>(byte_);
  std::uint8_t* const a_codes_at_ = byte_ + 300'000;
  std::uint8_t* const a_scales_at_ = byte_ + 350'000;
  std::uint8_t* const b_codes_at_ = byte_ + 400'000;
  std::uint8_t* const b_scales_at_ = byte_ + 500'000;
  RowSummary* const a_summaries_at_ = reinterpret_cast<RowSummary*>(byte_ + 520'000);
  RowSummary* const b_summaries_at_ = reinterpret_cast<RowSummary*>(byte_ + 530'000);
  float* const bias_at_ = reinterpret_cast<float*>(byte_ + 540'000);
  BFloat16* const dense_a_at_ = reinterpret_cast<BFloat16*>(byte_ + 550'000);
  BFloat16* const dense_b_at_ = reinterpret_cast<BFloat16*>(byte_ + 650'000);
  std::uint8_t* const workspace_at_ = byte_ + 850'000;

  static DeviceRows<const std::uint8_t> bytes(const std::uint8_t* at, std::int64_t rows,
                                              std::int64_t cols) {
    return DeviceRows<const std::uint8_t>(at, Strides(rows, cols, cols, 1));
  }
  // Depends on the number of threads and on the atom.
  static std::size_t workspace_needed() {
    const DeviceArray<std::uint8_t> memory("memory", n * k * 4);
    const auto plain = [&](std::int64_t rows) {
      return Plain(Codes<RowMajor, Space>(bytes(memory.data(), rows, k / 2)),
                   Scales<RowMajor, Space>(bytes(memory.data(), rows, k / 32)));
    };
    const auto dense = [&](std::int64_t rows) {
      return Dense(reinterpret_cast<const BFloat16*>(memory.data()), Strides(rows, k, k, 1));
    };
    // The tests have batches of up to 2 where all but C is right.
    const DeviceBatch<float> c(reinterpret_cast<float*>(memory.data()),
                               Strides(2, m * n, m, n, n, 1));
    return std::max(KokkosMX::gemm_workspace_size(Exec(), plain(m), plain(n), c),
                    KokkosMX::quantize_gemm_workspace_size(Exec(), dense(m), dense(n), c));
  }
  DeviceRows<float> c(std::int64_t rows = m, std::int64_t cols = n) const {
    return DeviceRows<float>(c_at_, Strides(rows, cols, cols, 1));
  }
  Plain a(std::int64_t rows = m, std::int64_t cols = k) const {
    return {Codes<RowMajor, Space>(bytes(a_codes_at_, rows, cols / 2)),
            Scales<RowMajor, Space>(bytes(a_scales_at_, rows, cols / 32))};
  }
  Plain b(std::int64_t rows = n, std::int64_t cols = k) const {
    return {Codes<RowMajor, Space>(bytes(b_codes_at_, rows, cols / 2)),
            Scales<RowMajor, Space>(bytes(b_scales_at_, rows, cols / 32))};
  }
  Kokkos::View<RowSummary*, Space, Unmanaged> summaries(RowSummary* at, std::int64_t rows) const {
    return Kokkos::View<RowSummary*, Space, Unmanaged>(at, static_cast<std::size_t>(rows));
  }
  Dense dense_a(std::int64_t rows = m, std::int64_t cols = k) const {
    return Dense(dense_a_at_, Strides(rows, cols, cols, 1));
  }
  Dense dense_b(std::int64_t rows = n, std::int64_t cols = k) const {
    return Dense(dense_b_at_, Strides(rows, cols, cols, 1));
  }
  KokkosMX::Workspace<Space> workspace() const {
    return KokkosMX::Workspace<Space>(
        Kokkos::View<std::uint8_t*, Space, Unmanaged>(workspace_at_, workspace_bytes_));
  }
  Kokkos::View<const float*, Space, Unmanaged> bias(std::int64_t cols = n) const {
    return Kokkos::View<const float*, Space, Unmanaged>(bias_at_, static_cast<std::size_t>(cols));
  }
  Options counted() const { return Options().tier_counts(counts_); }

  // call throws, says all of the words, and leaves all memory as it was.
  void refused(const std::string& what, const std::vector<std::string>& words,
               const std::function<void()>& call) const {
    std::string message;
    try {
      call();
      ADD_FAILURE() << what << ": no exception";
    } catch (const std::invalid_argument& error) {
      message = error.what();
    }
    EXPECT_EQ(message.rfind("KokkosMX::", 0), 0u) << what << ": " << message;
    for (const std::string& word : words) {
      EXPECT_NE(message.find(word), std::string::npos)
          << what << ": no \"" << word << "\" in: " << message;
    }
    Exec().fence();
    EXPECT_EQ(to_host(memory_), before_) << what << ": memory was written";
    EXPECT_EQ(to_host(counts_), std::vector<std::uint64_t>(KokkosMX::tier_count, 0)) << what;
  }
  // The extents that every message has: rows of A, B, bytes of their rows, C.
  static std::vector<std::string> extents(std::vector<std::string> more = {}) {
    more.insert(more.end(), {"114", "226", "176", "11"});
    return more;
  }
  template <class A, class B, class C>
  void gemm_refused(const std::string& what, std::vector<std::string> words, const A& a, const B& b,
                    const C& c, const Options& options) const {
    refused(what, words, [&] { KokkosMX::gemm(Exec(), workspace(), a, b, c, Options(options)); });
  }
  template <class A, class B, class C>
  void quantize_gemm_refused(const std::string& what, std::vector<std::string> words, const A& a,
                             const B& b, const C& c, const Options& options) const {
    refused(what, words, [&] {
      KokkosMX::quantize_gemm(Exec(), workspace(), a, b, c, reference, Options(options));
    });
  }
};

// The starting point of all that follows is right.
TEST_F(GemmBadInput, NothingIsWrongToBeginWith) {
  EXPECT_NO_THROW(KokkosMX::gemm(Exec(), workspace(), a(), b(), c(), counted().bias(bias())));
  EXPECT_NO_THROW(KokkosMX::quantize_gemm(Exec(), workspace(), dense_a(), dense_b(), c(), reference,
                                          counted().bias(bias())));
  Exec().fence();
  EXPECT_NE(to_host(memory_), before_);
}

TEST_F(GemmBadInput, KNotAMultipleOf32) {
  const Plain odd_a(Codes<RowMajor, Space>(bytes(a_codes_at_, m, 184)),
                    Scales<RowMajor, Space>(bytes(a_scales_at_, m, 11)));
  const Plain odd_b(Codes<RowMajor, Space>(bytes(b_codes_at_, n, 184)),
                    Scales<RowMajor, Space>(bytes(b_scales_at_, n, 11)));
  gemm_refused("K = 368", {"114", "226", "184", "32"}, odd_a, odd_b, c(), counted());
  gemm_refused("K = 368 of B", {"114", "226", "184", "32"}, a(), odd_b, c(), counted());
  quantize_gemm_refused("dense K = 368", {"114", "226", "368", "32"}, dense_a(m, 368),
                        dense_b(n, 368), c(), counted());
  quantize_gemm_refused("dense K = 1", {"114", "226", "32"}, dense_a(m, 1), dense_b(n, 1), c(),
                        counted());
}

TEST_F(GemmBadInput, ExtentsThatDisagree) {
  gemm_refused("K", extents({"384", "192"}), a(m, 384), b(), c(), counted());
  gemm_refused("rows of C", extents({"115"}), a(), b(), c(m + 1, n), counted());
  gemm_refused("columns of C", extents({"225"}), a(), b(), c(m, n - 1), counted());
  gemm_refused("C transposed", extents(), a(), b(), c(n, m), counted());
  gemm_refused("bias", extents({"227", "bias"}), a(), b(), c(), counted().bias(bias(n + 1)));
  gemm_refused("no bias", extents({"bias", "0"}), a(), b(), c(), counted().bias(bias(0)));
  quantize_gemm_refused("dense K", {"114", "226", "352", "384"}, dense_a(), dense_b(n, 384), c(),
                        counted());
  quantize_gemm_refused("dense and prepared K", {"114", "226", "176", "384"}, dense_a(m, 384), b(),
                        c(), counted());
  quantize_gemm_refused("dense rows", {"114", "226", "352", "113"}, dense_a(m - 1, k), dense_b(),
                        c(), counted());

  const Plain scales_short(a().codes(), Scales<RowMajor, Space>(bytes(a_scales_at_, m, 10)));
  gemm_refused("columns of scales", extents({"10"}), scales_short, b(), c(), counted());
  const Plain scales_long(b().codes(), Scales<RowMajor, Space>(bytes(b_scales_at_, n + 1, 11)));
  gemm_refused("rows of scales", extents({"227"}), a(), scales_long, c(), counted());
  const Plain summaries_long(a().codes(), a().scales(), summaries(a_summaries_at_, m + 1));
  gemm_refused("summaries", extents({"115", "summaries"}), summaries_long, b(), c(), counted());
}

TEST_F(GemmBadInput, Batches) {
  const auto batch = [&](std::int64_t count) {
    return Plain(Codes<RowMajor, Space>(DeviceBatch<const std::uint8_t>(
                     a_codes_at_, Strides(count, 0, m, k / 2, k / 2, 1))),
                 Scales<RowMajor, Space>(DeviceBatch<const std::uint8_t>(
                     a_scales_at_, Strides(count, 0, m, k / 32, k / 32, 1))));
  };
  const auto c_batch = [&](std::int64_t count) {
    return DeviceBatch<float>(c_at_, Strides(count, 8, m, 8 * n, 4, 1));
  };
  gemm_refused("A has a batch, C has none", extents({"5"}), batch(5), b(), c(), counted());
  gemm_refused("batches of A and C", {"114", "176", "11", "5", "3"}, batch(5), b(4), c_batch(3),
               counted());
  const Plain mixed(batch(3).codes(), batch(4).scales());
  gemm_refused("batches of codes and scales", extents({"3", "4"}), mixed, b(), c(), counted());
}

TEST_F(GemmBadInput, ShapesThatALayoutCannotHold) {
  const auto tile = [&](std::int64_t rows, std::int64_t cols, std::int64_t stride) {
    return Matrix<Tile16x16, RowMajor, Space>(
        Codes<Tile16x16, Space>(
            DeviceRows<const std::uint8_t>(b_codes_at_, Strides(rows, stride, cols / 2, 1))),
        Scales<RowMajor, Space>(bytes(b_scales_at_, rows, cols / 32)));
  };
  gemm_refused("Tile16x16 of 226 rows", {"114", "226", "16"}, a(m, 320), tile(n, 320, 160), c(),
               counted());
  gemm_refused("Tile16x16 of K = 352", {"114", "224", "176", "64"}, a(), tile(224, k, 176),
               c(m, 224), counted());
  gemm_refused("Tile16x16 with gaps", {"114", "224", "160", "161"}, a(m, 320), tile(224, 320, 161),
               c(m, 224), counted());
  const auto tile_scales = [&](std::int64_t rows, std::int64_t cols, std::int64_t stride) {
    return Matrix<RowMajor, Tile32x8, Space>(b().codes(),
                                             Scales<Tile32x8, Space>(DeviceRows<const std::uint8_t>(
                                                 b_scales_at_, Strides(rows, stride, cols, 1))));
  };
  EXPECT_NO_THROW(KokkosMX::gemm_workspace_size(Exec(), a(), tile_scales(256, 16, 16), c()));
  gemm_refused("Tile32x8 without padding", extents({"256", "16"}), a(), tile_scales(n, 11, 11), c(),
               counted());
  gemm_refused("Tile32x8 of too many rows", extents({"512"}), a(), tile_scales(512, 16, 16), c(),
               counted());
  gemm_refused("Tile32x8 with gaps", extents({"17"}), a(), tile_scales(256, 16, 17), c(),
               counted());
  const Plain spread(
      Codes<RowMajor, Space>(DeviceRows<const std::uint8_t>(a_codes_at_, Strides(m, k, k / 2, 2))),
      a().scales());
  gemm_refused("codes with gaps", extents(), spread, b(), c(), counted());
  const Plain spread_scales(a().codes(), Scales<RowMajor, Space>(DeviceRows<const std::uint8_t>(
                                             a_scales_at_, Strides(m, k / 16, k / 32, 2))));
  gemm_refused("scales with gaps", extents(), spread_scales, b(), c(), counted());
  quantize_gemm_refused("dense rows with gaps", {"114", "226", "352"},
                        Dense(dense_a_at_, Strides(m, 1, k, m)), dense_b(), c(), counted());
}

TEST_F(GemmBadInput, UnallocatedViews) {
  const std::string word = "allocated";
  const Plain no_codes(Codes<RowMajor, Space>(bytes(nullptr, m, k / 2)), a().scales());
  const Plain no_scales(b().codes(), Scales<RowMajor, Space>(bytes(nullptr, n, k / 32)));
  const Plain no_summaries(a().codes(), a().scales(), summaries(nullptr, m));
  const DeviceRows<float> no_c(nullptr, Strides(m, n, n, 1));
  gemm_refused("codes", extents({word}), no_codes, b(), c(), counted());
  gemm_refused("scales", extents({word}), a(), no_scales, c(), counted());
  gemm_refused("summaries", extents({word}), no_summaries, b(), c(), counted());
  gemm_refused("C", extents({word}), a(), b(), no_c, counted());
  gemm_refused("bias", extents({word, "bias"}), a(), b(), c(),
               counted().bias(Kokkos::View<const float*, Space, Unmanaged>(nullptr, n)));
  gemm_refused("counts", extents({word, "tier_counts"}), a(), b(), c(),
               Options().tier_counts(Kokkos::View<std::uint64_t*, Space, Unmanaged>(nullptr, 4)));
  quantize_gemm_refused("dense", {"114", "226", "352", word}, Dense(nullptr, Strides(m, k, k, 1)),
                        dense_b(), c(), counted());
}

TEST_F(GemmBadInput, CountsOfAnotherLength) {
  for (const int length : {0, 3, 5}) {
    const DeviceArray<std::uint64_t> counts("counts", length);
    gemm_refused("counts", extents({"tier_counts", std::to_string(length)}), a(), b(), c(),
                 Options().tier_counts(counts));
  }
}

TEST_F(GemmBadInput, OutputOverAnInput) {
  const std::string word = "overlap";
  const auto c_over = [&](const void* at, std::int64_t bytes_before) {
    const auto address = reinterpret_cast<std::uintptr_t>(at) / 4 * 4;
    return DeviceRows<float>(reinterpret_cast<float*>(address - 4 * bytes_before),
                             Strides(m, n, n, 1));
  };
  const Plain with_summaries_a(a().codes(), a().scales(), summaries(a_summaries_at_, m));
  const Plain with_summaries_b(b().codes(), b().scales(), summaries(b_summaries_at_, n));
  // The first element of C on the last bytes of the operand, and the last on the first.
  for (const std::int64_t back : {std::int64_t{0}, m * n - 1}) {
    gemm_refused("A's codes", extents({word}), a(), b(), c_over(a_codes_at_, back), counted());
    gemm_refused("A's scales", extents({word}), a(), b(), c_over(a_scales_at_, back), counted());
    gemm_refused("B's codes", extents({word}), a(), b(), c_over(b_codes_at_, back), counted());
    gemm_refused("B's scales", extents({word}), a(), b(), c_over(b_scales_at_, back), counted());
    gemm_refused("A's summaries", extents({word}), with_summaries_a, b(),
                 c_over(a_summaries_at_, back), counted());
    gemm_refused("B's summaries", extents({word}), a(), with_summaries_b,
                 c_over(b_summaries_at_, back), counted());
    gemm_refused("the bias", extents({word}), a(), b(), c_over(bias_at_, back),
                 counted().bias(bias()));
    gemm_refused("the workspace", extents({word}), a(), b(), c_over(workspace_at_ + 8, back),
                 counted());
    quantize_gemm_refused("dense A", {"114", "226", "352", word}, dense_a(), dense_b(),
                          c_over(dense_a_at_, back), counted());
    quantize_gemm_refused("dense B", {"114", "226", "352", word}, dense_a(), dense_b(),
                          c_over(dense_b_at_, back), counted());
  }
  gemm_refused("the last byte of A's codes", extents({word}), a(), b(),
               c_over(a_codes_at_ + m * k / 2 - 1, 0), counted());
  gemm_refused("the last byte of B's scales", extents({word}), a(), b(),
               c_over(b_scales_at_ + n * k / 32 - 1, 0), counted());
  // A workspace over an operand, counts over C.
  refused("workspace over A's codes", extents({word}), [&] {
    KokkosMX::gemm(Exec(),
                   KokkosMX::Workspace<Space>(Kokkos::View<std::uint8_t*, Space, Unmanaged>(
                       a_codes_at_ - 1000, workspace_bytes_)),
                   a(), b(), c(), counted());
  });
  gemm_refused("counts over C", extents({word}), a(), b(), c(),
               Options().tier_counts(Kokkos::View<std::uint64_t*, Space, Unmanaged>(
                   reinterpret_cast<std::uint64_t*>(byte_ + 64), KokkosMX::tier_count)));
}

TEST_F(GemmBadInput, OutputOverItself) {
  const auto over = [&](const std::string& what, std::int64_t row_stride, std::int64_t col_stride) {
    gemm_refused(what, extents({"overlap"}), a(), b(),
                 DeviceRows<float>(c_at_, Strides(m, row_stride, n, col_stride)), counted());
  };
  over("row stride 0", 0, 1);
  over("column stride 0", n, 0);
  over("both 0", 0, 0);
  over("rows too close", n - 1, 1);
  over("columns too close", 1, m - 1);
  over("both 1", 1, 1);
  over("both equal", 256, 256);
  gemm_refused("batch stride 0", extents({"overlap"}), a(), b(),
               DeviceBatch<float>(c_at_, Strides(2, 0, m, n, n, 1)), counted());
  gemm_refused("batches too close", extents({"overlap"}), a(), b(),
               DeviceBatch<float>(c_at_, Strides(2, m * n - 1, m, n, n, 1)), counted());
}

// ------------------------------------------------------------------------------ what is right

// Operands on the host, so that a product in shared memory can be compared.
struct Small {
  HostMatrix a = make_data(Data::narrow, 6, 64, 1), b = make_data(Data::narrow, 10, 64, 2);
  DeviceMatrix device_a{a, {}}, device_b{b, {}};
  Bits expected = ReferenceProduct(a, b).all();
};

// C and the codes of A as alternating columns of one buffer.
TEST(GemmGoodInput, InterleavedWithAnOperand) {
  const Small x;
  constexpr std::int64_t pitch = 128;  // 32 bytes of codes, 40 of C, the rest of nobody
  for (const std::int64_t c_first : {32, 64, 88}) {
    std::vector<std::uint8_t> buffer = random_bytes(6 * pitch, 3);
    for (std::int64_t row = 0; row < 6; ++row) {
      std::copy_n(x.a.codes.begin() + row * 32, 32, buffer.begin() + row * pitch);
    }
    const auto memory = to_device(buffer);
    const Plain a(Codes<RowMajor, Space>(
                      DeviceRows<const std::uint8_t>(memory.data(), Strides(6, pitch, 32, 1))),
                  x.device_a.plain().scales());
    const DeviceRows<float> c(reinterpret_cast<float*>(memory.data() + c_first),
                              Strides(6, pitch / 4, 10, 1));
    KokkosMX::gemm(Exec(), a, x.device_b.plain(), c);
    const std::vector<std::uint8_t> after = to_host(memory);
    for (std::int64_t row = 0; row < 6; ++row) {
      std::copy_n(after.begin() + row * pitch + c_first, 40,
                  buffer.begin() + row * pitch + c_first);
      for (std::int64_t col = 0; col < 10; ++col) {
        std::uint32_t bits = 0;
        for (int byte = 3; byte >= 0; --byte) {
          bits = bits << 8 | after[row * pitch + c_first + 4 * col + byte];
        }
        EXPECT_EQ(bits, x.expected[row * 10 + col]);
      }
    }
    EXPECT_EQ(after, buffer);
  }
}

// Right behind an operand, and right before it.
TEST(GemmGoodInput, NextToAnOperand) {
  const Small x;
  for (const bool before : {false, true}) {
    std::vector<std::uint8_t> buffer(6 * 32 + 240, 0);
    std::copy(x.a.codes.begin(), x.a.codes.end(), buffer.begin() + (before ? 240 : 0));
    const auto memory = to_device(buffer);
    const Plain a(Codes<RowMajor, Space>(DeviceRows<const std::uint8_t>(
                      memory.data() + (before ? 240 : 0), Strides(6, 32, 32, 1))),
                  x.device_a.plain().scales());
    auto* const at = reinterpret_cast<float*>(memory.data() + (before ? 0 : 192));
    KokkosMX::gemm(Exec(), a, x.device_b.plain(), DeviceRows<float>(at, Strides(6, 10, 10, 1)));
    const auto bits = to_host(DeviceArray<std::uint32_t>(reinterpret_cast<std::uint32_t*>(at), 60));
    expect_equal_bits(x.expected, bits, 10, "next to an operand");
  }
}

// Two products into alternating columns of one buffer: the bias and the counts do not matter.
TEST(GemmGoodInput, EmptyViewsNeedNoMemory) {
  const DeviceRows<const std::uint8_t> nothing(nullptr, Strides(0, 32, 32, 1));
  const DeviceRows<const std::uint8_t> no_scales(nullptr, Strides(0, 2, 2, 1));
  const Small x;
  const Plain empty{Codes<RowMajor, Space>(nothing), Scales<RowMajor, Space>(no_scales)};
  EXPECT_NO_THROW(KokkosMX::gemm(Exec(), empty, x.device_b.plain(),
                                 DeviceRows<float>(nullptr, Strides(0, 10, 10, 1))));
  EXPECT_NO_THROW(KokkosMX::gemm(Exec(), x.device_b.plain(), empty,
                                 DeviceRows<float>(nullptr, Strides(10, 1, 0, 1))));
  // K = 0: codes and scales without a byte, C of zeros.
  const DeviceRows<const std::uint8_t> no_bytes(nullptr, Strides(6, 0, 0, 1));
  const Plain no_k{Codes<RowMajor, Space>(no_bytes), Scales<RowMajor, Space>(no_bytes)};
  const DeviceOutput<float> c(6, 6, 6, 1, 0, {});
  KokkosMX::gemm(Exec(), no_k, no_k, c.view());
  EXPECT_EQ(c.result(), Bits(36, 0));
}

// ------------------------------------------------------------------------------ without Kokkos

[[noreturn]] void after_finalize(bool quantizes) {
  const DeviceRows<float> c(nullptr, Strides(0, 1, 0, 1));
  const DeviceRows<const std::uint8_t> nothing(nullptr, Strides(0, 0, 0, 1));
  const Plain a{Codes<RowMajor, Space>(nothing), Scales<RowMajor, Space>(nothing)};
  const Dense x(nullptr, Strides(0, 1, 0, 1));
  const Exec exec;
  Kokkos::finalize();
  int status = 1;
  try {
    if (quantizes) {
      KokkosMX::quantize_gemm(exec, KokkosMX::Workspace<Space>(), x, x, c, reference);
    } else {
      KokkosMX::gemm(exec, KokkosMX::Workspace<Space>(), a, a, c);
    }
  } catch (const std::logic_error& error) {
    std::fprintf(stderr, "refused: %s\n", error.what());
    status = 42;
  }
  std::_Exit(status);
}

TEST(GemmBadInputDeathTest, KokkosIsNotInitialized) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(after_finalize(false), ::testing::ExitedWithCode(42),
              "refused: KokkosMX::gemm: Kokkos is not initialized");
  EXPECT_EXIT(after_finalize(true), ::testing::ExitedWithCode(42),
              "refused: KokkosMX::quantize_gemm: Kokkos is not initialized");
}

}  // namespace
