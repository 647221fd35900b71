// SPDX-License-Identifier: Apache-2.0

// Arguments that are wrong together: quantize, dequantize, summarize, the shuffles and prepare
// refuse them with a message that names every extent that matters, and write nothing.

#include <gtest/gtest.h>

#include "Compare.hpp"
#include "TestViews.hpp"

#include <KokkosMX.hpp>
#include <Kokkos_Core.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

namespace KokkosMXTest {
namespace {

using KokkosMX::BFloat16;
using KokkosMX::RowMajor;
using KokkosMX::RowSummary;
using KokkosMX::Tile16x128;
using KokkosMX::Tile16x16;
using KokkosMX::Tile16x4;
using KokkosMX::Tile32x8;

using Strings = std::vector<std::string>;
const KokkosMX::QuantizeRule& rule = KokkosMX::rules::quark_even;

std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

/// One allocation that all operands of a call lie in; every byte is watched.
class Arena {
 public:
  explicit Arena(std::int64_t bytes = 1 << 16) : bytes_(1, 1, bytes) {}

  template <class T>
  View2<T> view2(std::int64_t at, std::int64_t rows, std::int64_t cols, std::int64_t row_stride,
                 std::int64_t col_stride = 1) const {
    return View2<T>(pointer<T>(at), Kokkos::LayoutStride(size(rows), size(row_stride), size(cols),
                                                         size(col_stride)));
  }
  template <class T>
  View3<T> view3(std::int64_t at, std::int64_t batch, std::int64_t batch_stride, std::int64_t rows,
                 std::int64_t row_stride, std::int64_t cols) const {
    return View3<T>(pointer<T>(at),
                    Kokkos::LayoutStride(size(batch), size(batch_stride), size(rows),
                                         size(row_stride), size(cols), 1));
  }
  /// Contiguous.
  template <class T>
  View2<T> plain(std::int64_t at, std::int64_t rows, std::int64_t cols) const {
    return view2<T>(at, rows, cols, cols);
  }
  template <class CodesLayout = RowMajor>
  KokkosMX::Codes<CodesLayout, Space, std::uint8_t> codes(std::int64_t at, std::int64_t rows,
                                                          std::int64_t bytes) const {
    return KokkosMX::Codes<CodesLayout, Space, std::uint8_t>(plain<std::uint8_t>(at, rows, bytes));
  }
  template <class ScalesLayout = RowMajor>
  KokkosMX::Scales<ScalesLayout, Space, std::uint8_t> scales(std::int64_t at, std::int64_t rows,
                                                             std::int64_t cols) const {
    return KokkosMX::Scales<ScalesLayout, Space, std::uint8_t>(plain<std::uint8_t>(at, rows, cols));
  }
  /// rows and K, and the extents of the buffer.
  KokkosMX::Codes<Tile16x128, Space, std::uint8_t> prepared_codes(std::int64_t at,
                                                                  std::int64_t rows, std::int64_t k,
                                                                  std::int64_t padded_rows,
                                                                  std::int64_t bytes) const {
    return KokkosMX::Codes<Tile16x128, Space, std::uint8_t>(
        plain<std::uint8_t>(at, padded_rows, bytes), rows, k);
  }
  bool untouched() const { return bytes_.untouched(); }

  // Places far enough apart for all operands here.
  static constexpr std::int64_t x = 0, q_codes = 1 << 14, q_scales = 1 << 15, q_summaries = 3 << 14;

 private:
  template <class T>
  T* pointer(std::int64_t at) const {
    return reinterpret_cast<T*>(bytes_.data() + at);
  }
  Placed<std::uint8_t> bytes_;
};

/// Both directions refuse, each for its reason: quantize(x, q) and dequantize(q, x).
template <class X, class Q>
void expect_both_refuse(const Arena& arena, const X& x, const Q& q, const std::string& by_quantize,
                        const std::string& by_dequantize, Strings parts) {
  const Exec exec;
  parts.insert(parts.end(), {"KokkosMX::quantize: expected", by_quantize});
  EXPECT_TRUE(refused([&] { KokkosMX::quantize(exec, x, q, rule); }, parts));
  parts.resize(parts.size() - 2);
  parts.insert(parts.end(), {"KokkosMX::dequantize: expected", by_dequantize});
  EXPECT_TRUE(refused([&] { KokkosMX::dequantize(exec, q, x); }, parts));
  exec.fence();
  EXPECT_TRUE(arena.untouched());
}
/// For the same reason.
template <class X, class Q>
void expect_both_refuse(const Arena& arena, const X& x, const Q& q, const Strings& parts) {
  expect_both_refuse(arena, x, q, "", "", parts);
}
/// For x and a part of q share memory.
template <class X, class Q>
void expect_overlap(const Arena& arena, const X& x, const Q& q, const std::string& part,
                    const Strings& parts) {
  expect_both_refuse(arena, x, q, part + " not to overlap x", "x not to overlap " + part, parts);
}
template <class X, class Q>
void expect_both_accept(const X& x, const Q& q) {
  const Exec exec;
  EXPECT_NO_THROW(KokkosMX::quantize(exec, x, q, rule));
  EXPECT_NO_THROW(KokkosMX::dequantize(exec, q, x));
  exec.fence();
}

/// What is right, to see that only the one thing that a test changes is wrong.
TEST(BadInput, TheControlIsAccepted) {
  const Arena arena;
  const KokkosMX::Matrix q(arena.codes(arena.q_codes, 5, 48), arena.scales(arena.q_scales, 5, 3),
                           arena.plain<RowSummary>(arena.q_summaries, 1, 5));
  expect_both_accept(arena.plain<float>(arena.x, 5, 96), q);
  EXPECT_FALSE(arena.untouched());
}

TEST(BadInput, KIsNoMultipleOf32) {
  const Arena arena;
  for (const std::int64_t k : {1, 16, 31, 33, 95}) {
    expect_both_refuse(
        arena, arena.plain<float>(arena.x, 5, k),
        KokkosMX::Matrix(arena.codes(arena.q_codes, 5, 48), arena.scales(arena.q_scales, 5, 3)),
        {"multiple of 32", extents({1, 5, k}), "(1, 5, 48)", "(1, 5, 3)"});
  }
  // K = 80 and 90 as codes say it.
  for (const std::int64_t bytes : {40, 45}) {
    const KokkosMX::Matrix q(arena.codes(arena.q_codes, 5, bytes),
                             arena.scales(arena.q_scales, 5, 3));
    expect_both_refuse(arena, arena.plain<float>(arena.x, 5, 96), q,
                       {"multiple of 16", "32", extents({1, 5, bytes}), "(1, 5, 96)", "(1, 5, 3)"});
    const Exec exec;
    EXPECT_TRUE(refused(
        [&] { KokkosMX::summarize(exec, q, arena.plain<RowSummary>(arena.q_summaries, 1, 5)); },
        {"KokkosMX::summarize", "32", extents({1, 5, bytes})}));
    EXPECT_TRUE(arena.untouched());
  }
}

TEST(BadInput, ExtentsDisagree) {
  const Arena arena;
  struct Case {
    std::int64_t x_rows, k, codes_rows, codes_bytes, scales_rows, scales_cols;
  };
  for (const Case& c :
       {Case{5, 96, 6, 48, 6, 3}, Case{5, 96, 4, 48, 4, 3}, Case{5, 96, 5, 64, 5, 4},
        Case{5, 96, 5, 32, 5, 2}, Case{5, 96, 5, 48, 6, 3}, Case{5, 96, 5, 48, 4, 3},
        Case{5, 96, 5, 48, 5, 4}, Case{5, 96, 5, 48, 5, 2}, Case{5, 96, 5, 48, 3, 5},
        Case{0, 96, 5, 48, 5, 3}, Case{5, 0, 5, 48, 5, 3}, Case{5, 96, 0, 48, 0, 3},
        Case{5, 96, 5, 0, 5, 0}, Case{5, 96, 48, 16, 48, 1}}) {
    expect_both_refuse(arena, arena.plain<BFloat16>(arena.x, c.x_rows, c.k),
                       KokkosMX::Matrix(arena.codes(arena.q_codes, c.codes_rows, c.codes_bytes),
                                        arena.scales(arena.q_scales, c.scales_rows, c.scales_cols)),
                       {extents({1, c.x_rows, c.k}), extents({1, c.codes_rows, c.codes_bytes}),
                        extents({1, c.scales_rows, c.scales_cols})});
  }
  // Batches: of x, codes, scales.
  for (const auto& [x, codes, scales] : std::vector<std::array<std::int64_t, 3>>{
           {2, 3, 3}, {3, 2, 2}, {2, 2, 3}, {2, 2, 1}, {1, 2, 2}}) {
    const KokkosMX::Matrix q(
        KokkosMX::Codes(arena.view3<std::uint8_t>(arena.q_codes, codes, 128, 5, 16, 16)),
        KokkosMX::Scales(arena.view3<std::uint8_t>(arena.q_scales, scales, 8, 5, 1, 1)));
    expect_both_refuse(arena, arena.view3<float>(arena.x, x, 256, 5, 32, 32), q,
                       {extents({x, 5, 32}), extents({codes, 5, 16}), extents({scales, 5, 1})});
  }
  // Summaries: rows, batch.
  for (const auto& [batch, rows] :
       std::vector<std::array<std::int64_t, 2>>{{1, 4}, {1, 6}, {2, 5}, {5, 1}, {1, 0}}) {
    const auto summaries = arena.plain<RowSummary>(arena.q_summaries, batch, rows);
    const std::string given = extents({batch, rows});
    const auto codes = arena.codes(arena.q_codes, 5, 48);
    const auto scales = arena.scales(arena.q_scales, 5, 3);
    expect_both_refuse(arena, arena.plain<float>(arena.x, 5, 96),
                       KokkosMX::Matrix(codes, scales, summaries),
                       {"summaries", given, "(1, 5, 48)"});
    const Exec exec;
    EXPECT_TRUE(
        refused([&] { KokkosMX::summarize(exec, KokkosMX::Matrix(codes, scales), summaries); },
                {"KokkosMX::summarize", "summaries", given, "(1, 5, 48)"}));
    EXPECT_TRUE(arena.untouched());
  }
}

TEST(BadInput, WhatALayoutCannotHold) {
  const Arena arena;
  for (const auto& [rows, k] : std::vector<std::array<std::int64_t, 2>>{
           {17, 64}, {8, 64}, {16, 32}, {16, 96}, {33, 160}, {1, 64}}) {
    const auto codes = arena.codes<Tile16x16>(arena.q_codes, rows, k / 2);
    const auto scales = arena.scales(arena.q_scales, rows, k / 32);
    const Strings parts{"Tile16x16", "16", "64", std::to_string(rows), std::to_string(k)};
    const KokkosMX::Matrix q(codes, scales);
    expect_both_refuse(arena, arena.plain<BFloat16>(arena.x, rows, k), q, parts);
    const auto plain = arena.codes(arena.x, rows, k / 2);
    const Exec exec;
    EXPECT_TRUE(refused([&] { KokkosMX::shuffle_weight(exec, plain, codes); }, parts));
    EXPECT_TRUE(refused([&] { KokkosMX::unshuffle_weight(exec, codes, plain); }, parts));
    const auto summaries = arena.plain<RowSummary>(arena.q_summaries, 1, rows);
    EXPECT_TRUE(refused([&] { KokkosMX::summarize(exec, q, summaries); }, parts));
    exec.fence();
    EXPECT_TRUE(arena.untouched());
  }
  // Scales that are not padded, or padded otherwise.
  for (const auto& [rows, cols] : std::vector<std::array<std::int64_t, 2>>{
           {40, 12}, {256, 12}, {40, 16}, {512, 16}, {256, 8}, {64, 16}, {256, 24}}) {
    const auto scales = arena.scales<Tile32x8>(arena.q_scales, rows, cols);
    const std::string given = extents({1, rows, cols});
    const Exec exec;
    const auto plain = arena.scales(arena.x, 40, 12);
    EXPECT_TRUE(refused([&] { KokkosMX::shuffle_scale(exec, plain, scales); },
                        {"KokkosMX::shuffle_scale", "(1, 256, 16)", given, "(1, 40, 12)"}));
    EXPECT_TRUE(refused([&] { KokkosMX::unshuffle_scale(exec, scales, plain); },
                        {"KokkosMX::unshuffle_scale", "(1, 256, 16)", given, "(1, 40, 12)"}));
    exec.fence();
    EXPECT_TRUE(arena.untouched());
  }
  expect_both_refuse(arena, arena.plain<BFloat16>(arena.x, 5, 96),
                     KokkosMX::Matrix(arena.codes(arena.q_codes, 5, 48),
                                      arena.scales<Tile32x8>(arena.q_scales, 5, 3)),
                     {"Tile32x8", "(1, 256, 8)", "(1, 5, 3)", "(1, 5, 48)"});
}

TEST(BadInput, TilesAreContiguous) {
  const Arena arena;
  const Exec exec;
  const KokkosMX::Codes<Tile16x16, Space, std::uint8_t> codes(
      arena.view2<std::uint8_t>(arena.q_codes, 32, 64, 65));
  const KokkosMX::Scales<Tile32x8, Space, std::uint8_t> scales(
      arena.view2<std::uint8_t>(arena.q_scales, 256, 8, 9));
  const auto x = arena.plain<BFloat16>(arena.x, 32, 128);
  const KokkosMX::Matrix with_codes(codes, arena.scales(arena.q_scales, 32, 4));
  expect_both_refuse(arena, x, with_codes, {"Tile16x16", "contiguous", "65"});
  const KokkosMX::Matrix with_scales(arena.codes(arena.q_codes, 32, 64), scales);
  expect_both_refuse(arena, x, with_scales, {"Tile32x8", "contiguous", "9"});
  const auto plain_codes = arena.codes(arena.x, 32, 64);
  const auto plain_scales = arena.scales(arena.x, 32, 4);
  EXPECT_TRUE(refused([&] { KokkosMX::shuffle_weight(exec, plain_codes, codes); }, {"contiguous"}));
  EXPECT_TRUE(
      refused([&] { KokkosMX::unshuffle_weight(exec, codes, plain_codes); }, {"contiguous"}));
  EXPECT_TRUE(
      refused([&] { KokkosMX::shuffle_scale(exec, plain_scales, scales); }, {"contiguous"}));
  EXPECT_TRUE(
      refused([&] { KokkosMX::unshuffle_scale(exec, scales, plain_scales); }, {"contiguous"}));
  exec.fence();
  EXPECT_TRUE(arena.untouched());
}

TEST(BadInput, ShufflesOfDifferentExtents) {
  const Arena arena;
  const Exec exec;
  const auto codes = arena.codes(arena.x, 32, 64);
  for (const auto& [rows, bytes] :
       std::vector<std::array<std::int64_t, 2>>{{16, 64}, {48, 64}, {32, 32}, {32, 96}, {64, 32}}) {
    const auto tiled = arena.codes<Tile16x16>(arena.q_codes, rows, bytes);
    const std::string given = extents({1, rows, bytes});
    EXPECT_TRUE(refused([&] { KokkosMX::shuffle_weight(exec, codes, tiled); },
                        {"KokkosMX::shuffle_weight", "(1, 32, 64)", given}));
    EXPECT_TRUE(refused([&] { KokkosMX::unshuffle_weight(exec, tiled, codes); },
                        {"KokkosMX::unshuffle_weight", "(1, 32, 64)", given}));
  }
  // Batches.
  const KokkosMX::Codes batched(arena.view3<std::uint8_t>(arena.x, 2, 2048, 32, 64, 64));
  const KokkosMX::Codes<Tile16x16, Space, std::uint8_t> tiled(
      arena.view3<std::uint8_t>(arena.q_codes, 3, 2048, 32, 64, 64));
  EXPECT_TRUE(refused([&] { KokkosMX::shuffle_weight(exec, batched, tiled); },
                      {"(2, 32, 64)", "(3, 32, 64)"}));
  const KokkosMX::Scales scales(arena.view3<std::uint8_t>(arena.x, 2, 2048, 32, 4, 4));
  const KokkosMX::Scales<Tile32x8, Space, std::uint8_t> tiled_scales(
      arena.view3<std::uint8_t>(arena.q_scales, 1, 2048, 256, 8, 8));
  EXPECT_TRUE(refused([&] { KokkosMX::shuffle_scale(exec, scales, tiled_scales); },
                      {"(2, 32, 4)", "(1, 256, 8)"}));
  exec.fence();
  EXPECT_TRUE(arena.untouched());
}

TEST(BadInput, NotAllocated) {
  const Arena arena;
  const Exec exec;
  const auto none = [](std::int64_t rows, std::int64_t cols) {
    return View2<std::uint8_t>(nullptr,
                               Kokkos::LayoutStride(size(rows), size(cols), size(cols), 1));
  };
  const View2<float> no_x(nullptr, Kokkos::LayoutStride(5, 96, 96, 1));
  const View2<RowSummary> no_summaries(nullptr, Kokkos::LayoutStride(1, 5, 5, 1));
  const KokkosMX::Codes no_codes(none(5, 48));
  const KokkosMX::Scales no_scales(none(5, 3));
  const auto x = arena.plain<float>(arena.x, 5, 96);
  const auto codes = arena.codes(arena.q_codes, 5, 48);
  const auto scales = arena.scales(arena.q_scales, 5, 3);
  const auto summaries = arena.plain<RowSummary>(arena.q_summaries, 1, 5);
  const Strings parts{"allocated", "(1, 5, 96)", "(1, 5, 48)", "(1, 5, 3)"};
  const auto with = [&](const std::string& name) {
    Strings all = parts;
    all.insert(all.begin(), name);
    return all;
  };
  expect_both_refuse(arena, no_x, KokkosMX::Matrix(codes, scales),
                     with("expected x to be an allocated View"));
  expect_both_refuse(arena, x, KokkosMX::Matrix(no_codes, scales),
                     with("expected q codes to be an allocated View"));
  expect_both_refuse(arena, x, KokkosMX::Matrix(codes, no_scales),
                     with("expected q scales to be an allocated View"));
  expect_both_refuse(arena, x, KokkosMX::Matrix(codes, scales, no_summaries),
                     with("expected q summaries to be an allocated View"));
  EXPECT_TRUE(
      refused([&] { KokkosMX::summarize(exec, KokkosMX::Matrix(codes, scales), no_summaries); },
              {"expected matrix summaries to be an allocated View"}));
  EXPECT_TRUE(
      refused([&] { KokkosMX::summarize(exec, KokkosMX::Matrix(no_codes, scales), summaries); },
              {"expected matrix codes to be an allocated View"}));

  const KokkosMX::Codes plain(none(16, 32));
  const KokkosMX::Codes<Tile16x16, Space, std::uint8_t> tiled(none(16, 32));
  EXPECT_TRUE(refused(
      [&] { KokkosMX::shuffle_weight(exec, plain, arena.codes<Tile16x16>(arena.q_codes, 16, 32)); },
      {"expected input to be an allocated View", "(1, 16, 32)"}));
  EXPECT_TRUE(
      refused([&] { KokkosMX::shuffle_weight(exec, arena.codes(arena.q_codes, 16, 32), tiled); },
              {"expected output to be an allocated View", "(1, 16, 32)"}));
  const KokkosMX::Scales<Tile32x8, Space, std::uint8_t> tiled_scales(none(256, 8));
  EXPECT_TRUE(refused(
      [&] { KokkosMX::unshuffle_scale(exec, tiled_scales, arena.scales(arena.q_scales, 5, 3)); },
      {"expected input to be an allocated View", "(1, 256, 8)"}));
  // A View that was never given memory has no extents: where the others have some, they disagree.
  const Kokkos::View<float**, Kokkos::LayoutRight, Space> empty;
  expect_both_refuse(arena, empty, KokkosMX::Matrix(codes, scales), {"(1, 0, 0)", "(1, 5, 48)"});
  exec.fence();
  EXPECT_TRUE(arena.untouched());

  // Of no elements no memory is asked.
  const View2<float> no_rows(nullptr, Kokkos::LayoutStride(0, 96, 96, 1));
  expect_both_accept(no_rows,
                     KokkosMX::Matrix(KokkosMX::Codes(none(0, 48)), KokkosMX::Scales(none(0, 3))));
}

TEST(BadInput, RowsThatAreNotContiguous) {
  const Arena arena;
  const Exec exec;
  const auto x = arena.plain<BFloat16>(arena.x, 5, 96);
  const auto codes = arena.codes(arena.q_codes, 5, 48);
  const auto scales = arena.scales(arena.q_scales, 5, 3);
  expect_both_refuse(arena, arena.view2<BFloat16>(arena.x, 5, 96, 192, 2),
                     KokkosMX::Matrix(codes, scales),
                     {"the rows of x to be contiguous", "is 2", "(1, 5, 96)"});
  // A matrix whose columns are contiguous.
  expect_both_refuse(arena, arena.view2<BFloat16>(arena.x, 5, 96, 1, 5),
                     KokkosMX::Matrix(codes, scales),
                     {"the rows of x to be contiguous", "is 5", "(1, 5, 96)"});
  const KokkosMX::Codes strided_codes(arena.view2<std::uint8_t>(arena.q_codes, 5, 48, 200, 3));
  expect_both_refuse(arena, x, KokkosMX::Matrix(strided_codes, scales),
                     {"the rows of q codes to be contiguous", "is 3", "(1, 5, 48)"});
  const KokkosMX::Scales strided_scales(arena.view2<std::uint8_t>(arena.q_scales, 5, 3, 40, 7));
  expect_both_refuse(arena, x, KokkosMX::Matrix(codes, strided_scales),
                     {"the rows of q scales to be contiguous", "is 7", "(1, 5, 3)"});
  const KokkosMX::Codes from(arena.view2<std::uint8_t>(arena.x, 16, 32, 64, 2));
  EXPECT_TRUE(refused(
      [&] { KokkosMX::shuffle_weight(exec, from, arena.codes<Tile16x16>(arena.q_codes, 16, 32)); },
      {"the rows of input to be contiguous", "(1, 16, 32)"}));
  const KokkosMX::Scales to(arena.view2<std::uint8_t>(arena.x, 5, 3, 64, 2));
  EXPECT_TRUE(refused(
      [&] { KokkosMX::unshuffle_scale(exec, arena.scales<Tile32x8>(arena.q_scales, 256, 8), to); },
      {"the rows of output to be contiguous", "(1, 5, 3)"}));
  exec.fence();
  EXPECT_TRUE(arena.untouched());
}

TEST(BadInput, OutputsThatOverlap) {
  const Arena arena;
  const Exec exec;
  constexpr std::int64_t rows = 5, k = 96, x_bytes = rows * k * 4, codes_bytes = rows * k / 2;
  constexpr std::int64_t scales_bytes = rows * k / 32;
  const auto x = arena.plain<float>(4096, rows, k);
  // Codes or scales that share their first, their last or a middle byte with x; or all of it.
  for (const std::int64_t at :
       {4096 - codes_bytes + 1, std::int64_t{4096}, 4096 + x_bytes / 2, 4096 + x_bytes - 1}) {
    expect_overlap(arena, x,
                   KokkosMX::Matrix(arena.codes(at, rows, k / 2), arena.scales(20000, rows, 3)),
                   "q codes", {"(1, 5, 96)", "(1, 5, 48)"});
  }
  for (const std::int64_t at : {4096 - scales_bytes + 1, std::int64_t{4096}, 4096 + x_bytes - 1}) {
    expect_overlap(arena, x,
                   KokkosMX::Matrix(arena.codes(20000, rows, k / 2), arena.scales(at, rows, 3)),
                   "q scales", {"(1, 5, 96)", "(1, 5, 3)"});
  }
  // Codes with scales, and with summaries: outputs of quantize; dequantize only reads them.
  for (const std::int64_t at :
       {20000 - scales_bytes + 1, std::int64_t{20000}, 20000 + codes_bytes - 1}) {
    const KokkosMX::Matrix q(arena.codes(20000, rows, k / 2), arena.scales(at, rows, 3));
    EXPECT_TRUE(refused([&] { KokkosMX::quantize(exec, x, q, rule); },
                        {"q codes not to overlap q scales", "(1, 5, 48)", "(1, 5, 3)"}));
  }
  const auto summaries = [&](std::int64_t at) { return arena.plain<RowSummary>(at, 1, rows); };
  const auto codes = arena.codes(20000, rows, k / 2);
  const auto scales = arena.scales(30000, rows, 3);
  for (const std::int64_t at :
       std::vector<std::int64_t>{20000 - 64, 20000 + codes_bytes - 16, 30000 - 64}) {
    const auto s = summaries(at);
    EXPECT_TRUE(
        refused([&] { KokkosMX::quantize(exec, x, KokkosMX::Matrix(codes, scales, s), rule); },
                {"overlap", "summaries", "(1, 5)"}));
    EXPECT_TRUE(refused([&] { KokkosMX::summarize(exec, KokkosMX::Matrix(codes, scales), s); },
                        {"KokkosMX::summarize", "overlap", "summaries", "(1, 5)"}));
  }
  EXPECT_TRUE(refused(
      [&] { KokkosMX::quantize(exec, x, KokkosMX::Matrix(codes, scales, summaries(4096)), rule); },
      {"q summaries not to overlap x"}));
  // Shuffles.
  for (const std::int64_t at :
       {std::int64_t{20000}, std::int64_t{20000 + 511}, std::int64_t{20000 - 511}}) {
    const auto tiled = arena.codes<Tile16x16>(at, 16, 32);
    const auto plain = arena.codes(20000, 16, 32);
    EXPECT_TRUE(refused([&] { KokkosMX::shuffle_weight(exec, plain, tiled); },
                        {"KokkosMX::shuffle_weight", "overlap", "(1, 16, 32)"}));
    EXPECT_TRUE(refused([&] { KokkosMX::unshuffle_weight(exec, tiled, plain); },
                        {"KokkosMX::unshuffle_weight", "overlap", "(1, 16, 32)"}));
  }
  for (const std::int64_t at :
       {std::int64_t{20000}, std::int64_t{20000 + 14}, std::int64_t{20000 - 2047}}) {
    const auto tiled = arena.scales<Tile32x8>(at, 256, 8);
    const auto plain = arena.scales(20000, rows, 3);
    EXPECT_TRUE(refused([&] { KokkosMX::shuffle_scale(exec, plain, tiled); },
                        {"KokkosMX::shuffle_scale", "overlap", "(1, 5, 3)", "(1, 256, 8)"}));
    EXPECT_TRUE(refused([&] { KokkosMX::unshuffle_scale(exec, tiled, plain); },
                        {"KokkosMX::unshuffle_scale", "overlap", "(1, 5, 3)", "(1, 256, 8)"}));
  }
  exec.fence();
  EXPECT_TRUE(arena.untouched());
}

TEST(BadInput, OutputsThatOverlapThemselves) {
  const Arena arena;
  const Exec exec;
  const auto x = arena.plain<BFloat16>(arena.x, 5, 96);
  const auto codes = arena.codes(arena.q_codes, 5, 48);
  const auto scales = arena.scales(arena.q_scales, 5, 3);
  for (const std::int64_t stride : {0, 1, 47}) {
    const KokkosMX::Matrix q(
        KokkosMX::Codes(arena.view2<std::uint8_t>(arena.q_codes, 5, 48, stride)), scales);
    EXPECT_TRUE(refused([&] { KokkosMX::quantize(exec, x, q, rule); },
                        {"the elements of q codes not to overlap one another", "(1, 5, 48)",
                         std::to_string(stride)}));
  }
  for (const std::int64_t stride : {0, 2}) {
    const KokkosMX::Matrix q(
        codes, KokkosMX::Scales(arena.view2<std::uint8_t>(arena.q_scales, 5, 3, stride)));
    EXPECT_TRUE(refused([&] { KokkosMX::quantize(exec, x, q, rule); },
                        {"the elements of q scales not to overlap one another", "(1, 5, 3)",
                         std::to_string(stride)}));
  }
  for (const std::int64_t stride : {0, 95}) {
    EXPECT_TRUE(refused(
        [&] {
          KokkosMX::dequantize(exec, KokkosMX::Matrix(codes, scales),
                               arena.view2<BFloat16>(arena.x, 5, 96, stride));
        },
        {"the elements of x not to overlap one another", "(1, 5, 96)", std::to_string(stride)}));
  }
  // Batches one over the other.
  EXPECT_TRUE(refused(
      [&] {
        const KokkosMX::Matrix q(
            KokkosMX::Codes(arena.view3<std::uint8_t>(arena.q_codes, 2, 79, 5, 16, 16)),
            KokkosMX::Scales(arena.view3<std::uint8_t>(arena.q_scales, 2, 5, 5, 1, 1)));
        KokkosMX::quantize(exec, arena.view3<BFloat16>(arena.x, 2, 160, 5, 32, 32), q, rule);
      },
      {"the elements of q codes not to overlap one another", "(2, 5, 16)", "79"}));
  const auto one_summary = arena.view2<RowSummary>(arena.q_summaries, 1, 5, 5, 0);
  EXPECT_TRUE(
      refused([&] { KokkosMX::summarize(exec, KokkosMX::Matrix(codes, scales), one_summary); },
              {"the elements of matrix summaries not to overlap one another", "(1, 5)"}));
  exec.fence();
  EXPECT_TRUE(arena.untouched());
}

// Buffers that touch share nothing.
TEST(BadInput, AdjacentIsAccepted) {
  const Arena arena;
  const Exec exec;
  // 1920 bytes of x, before them 240 of codes, behind them 15 of scales.
  const auto codes = arena.codes(4096 - 240, 5, 48);
  const auto scales = arena.scales(4096 + 1920, 5, 3);
  expect_both_accept(arena.plain<float>(4096, 5, 96), KokkosMX::Matrix(codes, scales));
  EXPECT_NO_THROW(KokkosMX::summarize(exec, KokkosMX::Matrix(codes, scales),
                                      arena.plain<RowSummary>(4096 - 240 - 80, 1, 5)));
  EXPECT_NO_THROW(KokkosMX::shuffle_weight(exec, arena.codes(512, 16, 32),
                                           arena.codes<Tile16x16>(1024, 16, 32)));
  EXPECT_NO_THROW(KokkosMX::unshuffle_weight(exec, arena.codes<Tile16x16>(1024, 16, 32),
                                             arena.codes(512, 16, 32)));
  exec.fence();
}

// What interleaves without sharing a byte is as good as apart.
TEST(BadInput, InterleavedIsAccepted) {
  const Arena arena;
  constexpr std::int64_t rows = 7, k = 64;
  // A row: 128 bytes of x, 32 of codes, 2 of scales, 14 unused, 16 of summary.
  constexpr std::int64_t pitch = 192;
  const auto x = arena.view2<BFloat16>(0, rows, k, pitch / 2);
  const KokkosMX::Codes codes(arena.view2<std::uint8_t>(128, rows, k / 2, pitch));
  const KokkosMX::Scales scales(arena.view2<std::uint8_t>(160, rows, k / 32, pitch));
  const auto summaries = arena.view2<RowSummary>(176, 1, rows, pitch, pitch / 16);
  expect_both_accept(x, KokkosMX::Matrix(codes, scales, summaries));
  // In any order in memory, the output before the input and reaching around the row's end.
  expect_both_accept(
      arena.view2<BFloat16>(160, rows, k, pitch / 2),
      KokkosMX::Matrix(KokkosMX::Codes(arena.view2<std::uint8_t>(128, rows, k / 2, pitch)),
                       KokkosMX::Scales(arena.view2<std::uint8_t>(96, rows, k / 32, pitch))));
  // Batches too: batch b's rows between those of batch b - 1 and b + 1.
  const KokkosMX::Matrix batched(
      KokkosMX::Codes(arena.view3<std::uint8_t>(128, 3, pitch * rows, rows, pitch, k / 2)),
      KokkosMX::Scales(arena.view3<std::uint8_t>(160, 3, pitch * rows, rows, pitch, k / 32)));
  expect_both_accept(arena.view3<BFloat16>(0, 3, pitch * rows / 2, rows, pitch / 2, k), batched);
  // Two matrices side by side in one, an input in the left half and an output in the right.
  const Exec exec;
  EXPECT_NO_THROW(
      KokkosMX::unshuffle_weight(exec, arena.codes<Tile16x16>(0, 16, 32),
                                 KokkosMX::Codes(arena.view2<std::uint8_t>(512, 16, 32, 64))));
  exec.fence();
}

// One byte too many, and the same interleaved buffers share it.
TEST(BadInput, InterleavedThatSharesAByte) {
  const Arena arena;
  constexpr std::int64_t rows = 7, k = 64, pitch = 192;
  const auto x = arena.view2<BFloat16>(0, rows, k, pitch / 2);
  const auto at = [&](std::int64_t codes_at, std::int64_t scales_at) {
    return KokkosMX::Matrix(
        KokkosMX::Codes(arena.view2<std::uint8_t>(codes_at, rows, k / 2, pitch)),
        KokkosMX::Scales(arena.view2<std::uint8_t>(scales_at, rows, k / 32, pitch)));
  };
  // Codes over the end of x's row; codes over the start of its next row.
  expect_overlap(arena, x, at(127, 170), "q codes", {"(1, 7, 64)", "(1, 7, 32)"});
  expect_overlap(arena, x, at(161, 150), "q codes", {"(1, 7, 64)", "(1, 7, 32)"});
  expect_overlap(arena, x, at(128, 191), "q scales", {"(1, 7, 64)", "(1, 7, 2)"});
  // Scales in the last byte of the codes.
  const Exec exec;
  EXPECT_TRUE(refused([&] { KokkosMX::quantize(exec, x, at(128, 159), rule); },
                      {"q codes not to overlap q scales"}));
  exec.fence();
  EXPECT_TRUE(arena.untouched());
}

// Inputs may share what they like.
TEST(BadInput, InputsThatOverlapAreAccepted) {
  const Arena arena;
  const Exec exec;
  const auto codes = arena.codes(arena.q_codes, 5, 48);
  const auto scales = arena.scales(arena.q_codes, 5, 3);
  EXPECT_NO_THROW(KokkosMX::dequantize(exec, KokkosMX::Matrix(codes, scales),
                                       arena.plain<float>(arena.x, 5, 96)));
  EXPECT_NO_THROW(KokkosMX::summarize(exec, KokkosMX::Matrix(codes, scales),
                                      arena.plain<RowSummary>(arena.q_summaries, 1, 5)));
  exec.fence();
}

// ------------------------------------------------------------------------------- prepared operands

using PreparedMatrix = KokkosMX::Matrix<Tile16x128, Tile16x4, Space, std::uint8_t>;

/// Both directions refuse, and nothing is written.
template <class Plain>
void expect_prepare_refuses(const Arena& arena, const Plain& plain, const PreparedMatrix& prepared,
                            Strings parts) {
  const Exec exec;
  parts.push_back("KokkosMX::prepare: expected");
  EXPECT_TRUE(refused([&] { KokkosMX::prepare(exec, plain, prepared); }, parts));
  parts.back() = "KokkosMX::unprepare: expected";
  EXPECT_TRUE(refused([&] { KokkosMX::unprepare(exec, prepared, plain); }, parts));
  exec.fence();
  EXPECT_TRUE(arena.untouched());
}

TEST(BadInput, PreparedCodesAndTheirBuffer) {
  const Arena arena;
  const KokkosMX::Matrix plain(arena.codes(0, 17, 80), arena.scales(4096, 17, 5));
  const auto scales = arena.scales<Tile16x4>(arena.q_scales, 32, 8);
  // The control: 17 rows and K = 160 are 32 rows of 128 bytes.
  {
    const Arena another;
    const Exec exec;
    const KokkosMX::Matrix from(another.codes(0, 17, 80), another.scales(4096, 17, 5));
    const PreparedMatrix to(another.prepared_codes(another.q_codes, 17, 160, 32, 128),
                            another.scales<Tile16x4>(another.q_scales, 32, 8));
    EXPECT_NO_THROW(KokkosMX::prepare(exec, from, to));
    EXPECT_NO_THROW(KokkosMX::unprepare(exec, to, from));
    exec.fence();
    EXPECT_FALSE(another.untouched());
  }
  for (const auto& [rows, bytes] : std::vector<std::array<std::int64_t, 2>>{
           {17, 80}, {17, 128}, {32, 80}, {32, 96}, {32, 192}, {48, 128}, {16, 128}, {0, 128}}) {
    const PreparedMatrix q(arena.prepared_codes(arena.q_codes, 17, 160, rows, bytes), scales);
    const Strings parts{"Tile16x128", "(1, 32, 128)", extents({1, rows, bytes}),
                        "rows = 17",  "K = 160",      "rows padded to 16 and K to 128",
                        "codes"};
    expect_prepare_refuses(arena, plain, q, parts);
    expect_both_refuse(arena, arena.plain<BFloat16>(arena.x, 17, 160), q, parts);
    const Exec exec;
    EXPECT_TRUE(refused(
        [&] { KokkosMX::summarize(exec, q, arena.plain<RowSummary>(arena.q_summaries, 1, 17)); },
        parts));
  }
  // K that is none, rows that are none.
  for (const auto& [rows, k] : std::vector<std::array<std::int64_t, 2>>{
           {17, 150}, {17, 16}, {17, -32}, {-1, 160}, {-17, -160}}) {
    const PreparedMatrix q(arena.prepared_codes(arena.q_codes, rows, k, 32, 128), scales);
    expect_prepare_refuses(arena, plain, q,
                           {"Tile16x128", "K a multiple of 32", "rows = " + std::to_string(rows),
                            "K = " + std::to_string(k)});
  }
  // Scales.
  for (const auto& [rows, cols] :
       std::vector<std::array<std::int64_t, 2>>{{17, 5}, {32, 5}, {17, 8}, {32, 12}, {256, 8}}) {
    const PreparedMatrix q(arena.prepared_codes(arena.q_codes, 17, 160, 32, 128),
                           arena.scales<Tile16x4>(arena.q_scales, rows, cols));
    expect_prepare_refuses(
        arena, plain, q,
        {"Tile16x4", "scales to have (batch, rows, cols) = (1, 32, 8)", extents({1, rows, cols})});
  }
}

TEST(BadInput, PreparedIsContiguous) {
  const Arena arena;
  const KokkosMX::Matrix plain(arena.codes(0, 17, 80), arena.scales(4096, 17, 5));
  const auto codes = arena.prepared_codes(arena.q_codes, 17, 160, 32, 128);
  const KokkosMX::Codes<Tile16x128, Space, std::uint8_t> codes_with_gaps(
      arena.view2<std::uint8_t>(arena.q_codes, 32, 128, 129), 17, 160);
  const KokkosMX::Scales<Tile16x4, Space, std::uint8_t> scales_with_gaps(
      arena.view2<std::uint8_t>(arena.q_scales, 32, 8, 9));
  expect_prepare_refuses(
      arena, plain, PreparedMatrix(codes_with_gaps, arena.scales<Tile16x4>(arena.q_scales, 32, 8)),
      {"Tile16x128", "contiguous (row stride 128)", "129"});
  expect_prepare_refuses(arena, plain, PreparedMatrix(codes, scales_with_gaps),
                         {"Tile16x4", "contiguous (row stride 8)", "9"});
}

TEST(BadInput, PrepareOfDifferentExtents) {
  const Arena arena;
  const PreparedMatrix q(arena.prepared_codes(arena.q_codes, 17, 160, 32, 128),
                         arena.scales<Tile16x4>(arena.q_scales, 32, 8));
  // The padded extents are the same, and yet these are other matrices.
  for (const auto& [rows, k] : std::vector<std::array<std::int64_t, 2>>{
           {18, 160}, {16, 160}, {32, 160}, {17, 128}, {17, 192}, {17, 256}, {32, 256}, {0, 0}}) {
    const KokkosMX::Matrix plain(arena.codes(0, rows, k / 2), arena.scales(8192, rows, k / 32));
    expect_prepare_refuses(arena, plain, q,
                           {"input and output to have the same extents", "rows = 17", "K = 160",
                            extents({1, rows, k / 2})});
  }
  const KokkosMX::Matrix two(KokkosMX::Codes(arena.view3<std::uint8_t>(0, 2, 2048, 17, 80, 80)),
                             KokkosMX::Scales(arena.view3<std::uint8_t>(8192, 2, 128, 17, 5, 5)));
  expect_prepare_refuses(arena, two, q,
                         {"input and output to have the same extents", "(2, 17, 80)"});
  // What a layout cannot hold.
  const KokkosMX::Matrix tiled(arena.codes<Tile16x16>(0, 17, 80), arena.scales(8192, 17, 5));
  expect_prepare_refuses(arena, tiled, q, {"Tile16x16", "rows = 17", "K = 160"});
  // Summaries of other rows.
  const KokkosMX::Matrix plain(arena.codes(0, 17, 80), arena.scales(8192, 17, 5));
  const PreparedMatrix with(q.codes(), q.scales(),
                            arena.plain<RowSummary>(arena.q_summaries, 1, 32));
  expect_prepare_refuses(arena, plain, with, {"summaries", "(1, 17)", "(1, 32)"});
}

TEST(BadInput, PrepareInPlace) {
  const Arena arena;
  const auto scales = arena.scales<Tile16x4>(arena.q_scales, 16, 4);
  const auto codes = arena.prepared_codes(arena.q_codes, 16, 128, 16, 64);
  const auto refuses = [&](const auto& plain, const PreparedMatrix& q, const std::string& reason) {
    const Exec exec;
    EXPECT_TRUE(refused([&] { KokkosMX::prepare(exec, plain, q); }, {reason, "(1, 16, 64)"}));
    exec.fence();
    EXPECT_TRUE(arena.untouched());
  };
  const auto plain_scales = arena.scales(4096, 16, 4);
  for (const std::int64_t at : {-1023, -1, 0, 1, 1023}) {
    refuses(KokkosMX::Matrix(arena.codes(arena.q_codes + at, 16, 64), plain_scales),
            PreparedMatrix(codes, scales), "output codes not to overlap input codes");
  }
  const auto plain_codes = arena.codes(0, 16, 64);
  for (const std::int64_t at : {-63, 0, 63}) {
    refuses(KokkosMX::Matrix(plain_codes, arena.scales(arena.q_scales + at, 16, 4)),
            PreparedMatrix(codes, scales), "output scales not to overlap input scales");
  }
  refuses(KokkosMX::Matrix(plain_codes, plain_scales),
          PreparedMatrix(codes, arena.scales<Tile16x4>(arena.q_codes + 1000, 16, 4)),
          "output codes not to overlap output scales");
  // The padding is written, so that it too must be free: 1 row of 32 numbers fills 1024 bytes.
  refuses(KokkosMX::Matrix(arena.codes(arena.q_codes + 1000, 1, 16), arena.scales(0, 1, 1)),
          PreparedMatrix(arena.prepared_codes(arena.q_codes, 1, 32, 16, 64), scales),
          "output codes not to overlap input codes");
  // Not allocated.
  const View2<std::uint8_t> none(nullptr, Kokkos::LayoutStride(16, 64, 64, 1));
  refuses(KokkosMX::Matrix(plain_codes, plain_scales),
          PreparedMatrix(KokkosMX::Codes<Tile16x128, Space, std::uint8_t>(none, 16, 128), scales),
          "output codes to be an allocated View");
}

}  // namespace
}  // namespace KokkosMXTest
