// SPDX-License-Identifier: Apache-2.0

// The layout of prepared operands: from every layout into it and back, straight into it by
// quantize, and every reader of it, whatever lies in the padding.

#include <gtest/gtest.h>

#include "Compare.hpp"
#include "Inputs.hpp"
#include "ReferenceQuantize.hpp"
#include "ReferenceShuffle.hpp"
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

using Bytes = std::vector<std::uint8_t>;
using Prepared = PlacedMatrix<Tile16x128, Tile16x4>;

std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

/// The bytes of codes in a layout; padding holds a byte.
template <class Layout>
Bytes codes_in(const Bytes& codes, std::int64_t rows, std::int64_t k, std::uint8_t padding) {
  if constexpr (std::is_same_v<Layout, RowMajor>) {
    return codes;
  } else if constexpr (std::is_same_v<Layout, Tile16x16>) {
    return reference_shuffle_weight(codes, rows, k);
  } else {
    return reference_prepare_codes(codes, rows, k, padding);
  }
}
template <class Layout>
Bytes scales_in(const Bytes& scales, std::int64_t rows, std::int64_t k, std::uint8_t padding) {
  if constexpr (std::is_same_v<Layout, RowMajor>) {
    return scales;
  } else if constexpr (std::is_same_v<Layout, Tile32x8>) {
    Bytes bytes = reference_shuffle_scale(scales, rows, k / 32);
    const Bytes inside = reference_shuffle_scale(Bytes(scales.size(), 1), rows, k / 32);
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      if (inside[i] == 0) bytes[i] = padding;
    }
    return bytes;
  } else {
    return reference_prepare_scales(scales, rows, k, padding);
  }
}

/// A batch of random matrices, plain, with their summaries.
struct Plain {
  std::int64_t batch, rows, k;
  std::vector<Bytes> codes, scales;
  std::vector<RowSummary> summaries;

  Plain(std::int64_t batch_, std::int64_t rows_, std::int64_t k_, std::uint64_t seed)
      : batch(batch_), rows(rows_), k(k_) {
    for (std::int64_t b = 0; b < batch; ++b) {
      codes.push_back(random_bytes(size(rows * k / 2), seed + size(2 * b)));
      scales.push_back(random_bytes(size(rows * (k / 32)), seed + size(2 * b + 1)));
      const auto of_one = reference_summaries(codes.back(), scales.back(), rows, k);
      summaries.insert(summaries.end(), of_one.begin(), of_one.end());
    }
  }
  template <class Layout>
  Bytes codes_as(std::uint8_t padding = 0) const {
    Bytes all;
    for (const Bytes& one : codes) {
      const Bytes bytes = codes_in<Layout>(one, rows, k, padding);
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  }
  template <class Layout>
  Bytes scales_as(std::uint8_t padding = 0) const {
    Bytes all;
    for (const Bytes& one : scales) {
      const Bytes bytes = scales_in<Layout>(one, rows, k, padding);
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  }
};

/// Places it in layouts; rows of tiles have no gaps, batches may.
template <class CodesLayout, class ScalesLayout>
PlacedMatrix<CodesLayout, ScalesLayout> placed(const Plain& x, int which) {
  const std::int64_t codes_gap = std::is_same_v<CodesLayout, RowMajor> ? which : 0;
  const std::int64_t scales_gap = std::is_same_v<ScalesLayout, RowMajor> ? 2 * which : 0;
  return PlacedMatrix<CodesLayout, ScalesLayout>(
      x.batch, x.rows, x.k, {3 * which, codes_gap, which}, {which, scales_gap, 7 * which},
      {which, which, 2 * which});
}

template <class Placed>
testing::AssertionResult gaps_untouched(const Placed& q) {
  if (q.codes.gaps_untouched() && q.scales.gaps_untouched() && q.summaries.gaps_untouched()) {
    return testing::AssertionSuccess();
  }
  return testing::AssertionFailure() << "bytes between rows or batches changed";
}

struct Shape {
  std::int64_t batch, rows, k;
};
std::vector<Shape> some_shapes() {
  std::vector<Shape> shapes;
  for (const std::int64_t rows : {0, 1, 15, 16, 17, 48, 100}) {
    for (const std::int64_t k : {0, 32, 64, 96, 128, 160, 192, 1056}) {
      shapes.push_back({1, rows, k});
    }
  }
  shapes.insert(shapes.end(),
                {{2, 17, 160}, {3, 16, 128}, {2, 33, 64}, {3, 5, 96}, {2, 32, 1024}, {0, 16, 128}});
  return shapes;
}

template <class CodesLayout, class ScalesLayout>
constexpr bool can_hold(std::int64_t rows, std::int64_t k) {
  return !std::is_same_v<CodesLayout, Tile16x16> || (rows % 16 == 0 && k % 64 == 0);
}

template <class CodesLayout, class ScalesLayout>
void there_and_back() {
  const Exec exec;
  for (const Shape& shape : some_shapes()) {
    if (!can_hold<CodesLayout, ScalesLayout>(shape.rows, shape.k)) continue;
    const Plain x(shape.batch, shape.rows, shape.k, size(shape.rows + shape.k));
    for (const int which : {0, 1, 16}) {
      for (const int summaries : {0, 1, 2, 3}) {  // bit 0: of the source, bit 1: of the others
        SCOPED_TRACE(extents({shape.batch, shape.rows, shape.k}) + ", placement " +
                     std::to_string(which) + ", summaries " + std::to_string(summaries));
        auto from = placed<CodesLayout, ScalesLayout>(x, which);
        from.codes.set(x.codes_as<CodesLayout>(0x77));
        from.scales.set(x.scales_as<ScalesLayout>(255));
        from.summaries.set(x.summaries);
        auto to = placed<Tile16x128, Tile16x4>(x, which);
        const auto back = placed<CodesLayout, ScalesLayout>(x, which);
        const auto source = (summaries & 1) != 0 ? from.matrix3_with_summaries() : from.matrix3();
        const auto target = (summaries & 2) != 0 ? to.matrix3_with_summaries() : to.matrix3();
        const typename PlacedMatrix<CodesLayout, ScalesLayout>::ConstMatrix read_only = source;
        KokkosMX::prepare(exec, read_only, target);
        exec.fence();
        ASSERT_TRUE(same_bits(to.codes.get(), x.codes_as<Tile16x128>(), "prepared codes"));
        ASSERT_TRUE(same_bits(to.scales.get(), x.scales_as<Tile16x4>(), "prepared scales"));
        ASSERT_TRUE(gaps_untouched(to));
        if ((summaries & 2) != 0) {
          ASSERT_TRUE(same_bits(to.summaries.get(), x.summaries, "prepared summaries"));
        } else {
          ASSERT_TRUE(to.summaries.untouched());
        }

        // What lies in the padding does not matter.
        to.codes.set(x.codes_as<Tile16x128>(0xF7));
        to.scales.set(x.scales_as<Tile16x4>(255));
        KokkosMX::unprepare(exec, Prepared::ConstMatrix(target),
                            (summaries & 1) != 0 ? back.matrix3_with_summaries() : back.matrix3());
        exec.fence();
        ASSERT_TRUE(same_bits(back.codes.get(), x.codes_as<CodesLayout>(), "codes"));
        ASSERT_TRUE(same_bits(back.scales.get(), x.scales_as<ScalesLayout>(), "scales"));
        ASSERT_TRUE(gaps_untouched(back));
        if ((summaries & 1) != 0) {
          ASSERT_TRUE(same_bits(back.summaries.get(), x.summaries, "summaries"));
        } else {
          ASSERT_TRUE(back.summaries.untouched());
        }
      }
    }
  }
}

TEST(Prepare, RowMajorAndRowMajor) { there_and_back<RowMajor, RowMajor>(); }
TEST(Prepare, RowMajorAndTile32x8) { there_and_back<RowMajor, Tile32x8>(); }
TEST(Prepare, RowMajorAndTile16x4) { there_and_back<RowMajor, Tile16x4>(); }
TEST(Prepare, Tile16x16AndRowMajor) { there_and_back<Tile16x16, RowMajor>(); }
TEST(Prepare, Tile16x16AndTile32x8) { there_and_back<Tile16x16, Tile32x8>(); }
TEST(Prepare, Tile16x128AndRowMajor) { there_and_back<Tile16x128, RowMajor>(); }
TEST(Prepare, PreparedIsCopied) { there_and_back<Tile16x128, Tile16x4>(); }

// One byte that moves shows the map.
TEST(Prepare, ByHand) {
  const Exec exec;
  constexpr std::int64_t rows = 33, k = 288;  // padded: 48 rows, 12 blocks
  struct Case {
    std::int64_t row, byte, at;
  };
  for (const Case& c :
       {Case{0, 0, 0}, Case{0, 1, 4}, Case{0, 15, 60}, Case{0, 16, 1}, Case{0, 63, 63},
        Case{0, 64, 1024}, Case{1, 0, 64}, Case{15, 0, 960}, Case{16, 0, 3072},
        Case{32, 143, 2 * 3072 + 2048 + 60}, Case{17, 100, 3072 + 1024 + 64 + 4 * 4 + 2}}) {
    PlacedMatrix<RowMajor, RowMajor> from(1, rows, k);
    const Prepared to(1, rows, k);
    Bytes codes(size(rows * k / 2), 0), expected(size(48 * 192), 0);
    codes[size(c.row * (k / 2) + c.byte)] = 0x5C;
    expected[size(c.at)] = 0x5C;
    from.codes.set(codes);
    KokkosMX::prepare(exec, from.matrix2(), to.matrix2());
    exec.fence();
    EXPECT_TRUE(same_bits(to.codes.get(), expected, "code byte " + std::to_string(c.byte)));
  }
  for (const Case& c :
       {Case{0, 0, 0}, Case{0, 3, 3}, Case{0, 4, 64}, Case{1, 0, 4}, Case{16, 0, 192},
        Case{32, 8, 2 * 192 + 128}, Case{18, 5, 192 + 64 + 8 + 1}}) {
    PlacedMatrix<RowMajor, RowMajor> from(1, rows, k);
    const Prepared to(1, rows, k);
    Bytes scales(size(rows * (k / 32)), 0), expected(size(48 * 12), 0);
    scales[size(c.row * (k / 32) + c.byte)] = 0x5C;
    expected[size(c.at)] = 0x5C;
    from.scales.set(scales);
    KokkosMX::prepare(exec, from.matrix2(), to.matrix2());
    exec.fence();
    EXPECT_TRUE(same_bits(to.scales.get(), expected, "scale " + std::to_string(c.byte)));
  }
}

// Checksums of bytes that a program in another language made by the definition: codes are
// random_bytes with seed 1, scales with seed 2.
TEST(Prepare, Golden) {
  const Exec exec;
  struct Case {
    std::int64_t rows, k;
    std::uint32_t codes, scales;
  };
  for (const Case& c :
       {Case{17, 160, 0x98FD04D6, 0x907E1988}, Case{16, 128, 0xBFC633CF, 0x7A55F516},
        Case{1, 32, 0x5050B78F, 0x7F2B943D}, Case{100, 1056, 0x173F79C9, 0xD851C592},
        Case{2112, 7168, 0x75842938, 0xFD5DA9E7}}) {
    PlacedMatrix<RowMajor, RowMajor> from(1, c.rows, c.k);
    from.codes.set(random_bytes(size(c.rows * c.k / 2), 1));
    from.scales.set(random_bytes(size(c.rows * c.k / 32), 2));
    const Prepared to(1, c.rows, c.k);
    KokkosMX::prepare(exec, from.matrix2(), to.matrix2());
    exec.fence();
    EXPECT_EQ(crc32(to.codes.get()), c.codes) << extents({c.rows, c.k});
    EXPECT_EQ(crc32(to.scales.get()), c.scales) << extents({c.rows, c.k});
  }
}

// quantize writes the layout, padding too; dequantize and summarize read it, the padding not.
template <class CodesLayout, class ScalesLayout>
void quantize_and_read() {
  const Exec exec;
  const KokkosMX::QuantizeRule rule = KokkosMX::rules::quark_even;
  for (const Shape& shape : some_shapes()) {
    SCOPED_TRACE(extents({shape.batch, shape.rows, shape.k}));
    const auto [batch, rows, k] = shape;
    const auto numbers = bell(batch * rows, k, size(rows + k), 3);
    const ReferenceMatrix all = reference_quantize(numbers, batch * rows, k, bfloat16_format, rule);
    Plain x(batch, rows, k, 0);
    for (std::int64_t b = 0; b < batch; ++b) {
      const auto part = [b](const Bytes& bytes, std::int64_t each) {
        return Bytes(bytes.begin() + b * each, bytes.begin() + (b + 1) * each);
      };
      x.codes[size(b)] = part(all.codes, rows * (k / 2));
      x.scales[size(b)] = part(all.scales, rows * (k / 32));
    }
    const Placed<BFloat16> input(batch, rows, k, numbers, Placement{1, 3, 1});
    auto q = placed<CodesLayout, ScalesLayout>(x, 1);
    KokkosMX::quantize(exec, input.view3(), q.matrix3_with_summaries(), rule);
    exec.fence();
    ASSERT_TRUE(same_bits(q.codes.get(), x.codes_as<CodesLayout>(), "codes"));
    ASSERT_TRUE(same_bits(q.scales.get(), x.scales_as<ScalesLayout>(), "scales"));
    ASSERT_TRUE(same_bits(q.summaries.get(), all.summaries, "summaries"));
    ASSERT_TRUE(gaps_untouched(q));

    q.codes.set(x.codes_as<CodesLayout>(0x77));
    q.scales.set(x.scales_as<ScalesLayout>(255));
    const Placed<float> dense(batch, rows, k, Placement{0, 7, 1});
    KokkosMX::dequantize(exec, q.matrix3(), dense.view3());
    const Placed<RowSummary> summaries(batch, rows, 1, Placement{0, 2, 0});
    KokkosMX::summarize(exec, q.matrix3(), summaries.column());
    exec.fence();
    ASSERT_TRUE(same_bits(
        dense.get(), reference_dequantize<std::uint32_t>(all.codes, all.scales, float32_format),
        "dequantized"));
    ASSERT_TRUE(same_bits(summaries.get(), all.summaries, "summarized"));
    ASSERT_TRUE(dense.gaps_untouched() && summaries.gaps_untouched());
  }
}

TEST(Prepare, QuantizeStraightIntoIt) { quantize_and_read<Tile16x128, Tile16x4>(); }
TEST(Prepare, QuantizeCodesAlone) { quantize_and_read<Tile16x128, RowMajor>(); }
TEST(Prepare, QuantizeScalesAlone) { quantize_and_read<RowMajor, Tile16x4>(); }
TEST(Prepare, QuantizeBesideTile32x8) { quantize_and_read<Tile16x128, Tile32x8>(); }

// Every code under every scale, prepared, is the number that the plain one is.
TEST(Prepare, DequantizeEveryPair) {
  const Exec exec;
  constexpr std::int64_t rows = 256, k = 512;
  Bytes codes, scales;
  for (int s = 0; s < 256; ++s) {
    for (int byte = 0; byte < 256; ++byte) codes.push_back(static_cast<std::uint8_t>(byte));
    scales.insert(scales.end(), 16, static_cast<std::uint8_t>(s));
  }
  PlacedMatrix<RowMajor, RowMajor> from(1, rows, k);
  from.codes.set(codes);
  from.scales.set(scales);
  const Prepared to(1, rows, k);
  const Placed<float> x(1, rows, k), y(1, rows, k);
  KokkosMX::prepare(exec, from.matrix2(), to.matrix2());
  KokkosMX::dequantize(exec, from.matrix2(), x.view2());
  KokkosMX::dequantize(exec, to.matrix2(), y.view2());
  exec.fence();
  EXPECT_TRUE(same_bits(y.get(), x.get(), "prepared"));
  EXPECT_TRUE(same_bits(y.get(), reference_dequantize<std::uint32_t>(codes, scales, float32_format),
                        "by definition"));
}

}  // namespace
}  // namespace KokkosMXTest
