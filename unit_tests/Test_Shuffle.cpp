// SPDX-License-Identifier: Apache-2.0

// Shuffles and their inverses: the golden arrays, the definitions in ReferenceShuffle.hpp, round
// trips, any placement of the row-major side.

#include <gtest/gtest.h>

#include "Compare.hpp"
#include "Inputs.hpp"
#include "ReferenceShuffle.hpp"
#include "TestViews.hpp"

#include <KokkosMX.hpp>
#include <Kokkos_Core.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace KokkosMXTest {
namespace {

using KokkosMX::RowMajor;
using KokkosMX::Tile16x16;
using KokkosMX::Tile32x8;

using Bytes = std::vector<std::uint8_t>;
template <class Layout>
using OutCodes = KokkosMX::Codes<Layout, Space, std::uint8_t>;
template <class Layout>
using InCodes = KokkosMX::Codes<Layout, Space>;
template <class Layout>
using OutScales = KokkosMX::Scales<Layout, Space, std::uint8_t>;
template <class Layout>
using InScales = KokkosMX::Scales<Layout, Space>;

std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

Bytes concatenate(const std::vector<Bytes>& parts) {
  Bytes all;
  for (const Bytes& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

TEST(Shuffle, GoldenWeight) {
  const Exec exec;
  const auto plain = golden<std::uint8_t>("shuffle_weight_input");
  const auto shuffled = golden<std::uint8_t>("shuffle_weight_16x16");
  const std::int64_t rows = plain.rows, bytes = plain.cols;
  EXPECT_EQ(reference_shuffle_weight(plain.data, rows, 2 * bytes), shuffled.data);
  const Placed<std::uint8_t> from(1, rows, bytes, plain.data), to(1, rows, bytes),
      back(1, rows, bytes);
  KokkosMX::shuffle_weight(exec, KokkosMX::Codes(from.view2()), OutCodes<Tile16x16>(to.view2()));
  KokkosMX::unshuffle_weight(exec, InCodes<Tile16x16>(to.view2()), KokkosMX::Codes(back.view2()));
  exec.fence();
  EXPECT_TRUE(same_bits(to.get(), shuffled.data, "shuffled"));
  EXPECT_TRUE(same_bits(back.get(), plain.data, "unshuffled"));
}

TEST(Shuffle, GoldenScale) {
  const Exec exec;
  for (const std::string name : {"256x16", "512x8", "40x12"}) {
    SCOPED_TRACE(name);
    const auto plain = golden<std::uint8_t>("shuffle_scale_" + name + "_input");
    const auto shuffled = golden<std::uint8_t>("shuffle_scale_" + name);
    EXPECT_EQ(reference_shuffle_scale(plain.data, plain.rows, plain.cols), shuffled.data);
    const auto shape = KokkosMX::scales_shape<Tile32x8>(plain.rows, 32 * plain.cols);
    ASSERT_EQ(shape.rows, shuffled.rows);
    ASSERT_EQ(shape.cols, shuffled.cols);
    const Placed<std::uint8_t> from(1, plain.rows, plain.cols, plain.data),
        to(1, shape.rows, shape.cols), back(1, plain.rows, plain.cols);
    KokkosMX::shuffle_scale(exec, KokkosMX::Scales(from.view2()), OutScales<Tile32x8>(to.view2()));
    KokkosMX::unshuffle_scale(exec, InScales<Tile32x8>(to.view2()), KokkosMX::Scales(back.view2()));
    exec.fence();
    EXPECT_TRUE(same_bits(to.get(), shuffled.data, "shuffled"));
    EXPECT_TRUE(same_bits(back.get(), plain.data, "unshuffled"));
  }
}

/// Placements of the row-major side and of the shuffled one, which has gaps between batches alone.
struct Placements {
  Placement plain, shuffled;
};
const std::vector<Placements>& some_placements() {
  static const std::vector<Placements> placements{{{0, 0, 0}, {0, 0, 0}},
                                                  {{1, 1, 0}, {3, 0, 0}},
                                                  {{7, 16, 5}, {0, 0, 1}},
                                                  {{16, 3, 64}, {15, 0, 33}}};
  return placements;
}

TEST(Shuffle, Weights) {
  const Exec exec;
  int shapes = 0;
  for (const std::int64_t batch : {1, 2, 3}) {
    for (const std::int64_t rows : {0, 16, 32, 48, 176}) {
      for (const std::int64_t k : {0, 64, 128, 192, 448}) {
        for (const auto& [plain_at, shuffled_at] : some_placements()) {
          SCOPED_TRACE("batch " + std::to_string(batch) + ", rows " + std::to_string(rows) +
                       ", K " + std::to_string(k));
          std::vector<Bytes> plain, shuffled;
          for (std::int64_t b = 0; b < batch; ++b) {
            plain.push_back(random_bytes(size(rows * k / 2), size(rows + k + b)));
            shuffled.push_back(reference_shuffle_weight(plain.back(), rows, k));
          }
          const Placed<std::uint8_t> from(batch, rows, k / 2, concatenate(plain), plain_at),
              to(batch, rows, k / 2, shuffled_at), back(batch, rows, k / 2, plain_at);
          KokkosMX::shuffle_weight(exec, InCodes<RowMajor>(from.const_view3()),
                                   OutCodes<Tile16x16>(to.view3()));
          KokkosMX::unshuffle_weight(exec, InCodes<Tile16x16>(to.const_view3()),
                                     OutCodes<RowMajor>(back.view3()));
          exec.fence();
          ASSERT_TRUE(same_bits(to.get(), concatenate(shuffled), "shuffled"));
          ASSERT_TRUE(same_bits(back.get(), concatenate(plain), "unshuffled"));
          ASSERT_TRUE(to.gaps_untouched() && back.gaps_untouched());
          ++shapes;
        }
      }
    }
  }
  EXPECT_EQ(shapes, 3 * 5 * 5 * 4);
}

TEST(Shuffle, Scales) {
  const Exec exec;
  for (const std::int64_t batch : {1, 2}) {
    for (const std::int64_t rows : {0, 1, 2, 15, 31, 33, 255, 256, 257, 500}) {
      for (const std::int64_t cols : {0, 1, 3, 7, 8, 9, 12, 65}) {
        for (const auto& [plain_at, shuffled_at] : some_placements()) {
          SCOPED_TRACE("batch " + std::to_string(batch) + ", rows " + std::to_string(rows) +
                       ", columns " + std::to_string(cols));
          std::vector<Bytes> plain, shuffled, dirty;
          for (std::int64_t b = 0; b < batch; ++b) {
            plain.push_back(random_bytes(size(rows * cols), size(rows + cols + b)));
            shuffled.push_back(reference_shuffle_scale(plain.back(), rows, cols));
            // Padding that holds anything, 255 above all.
            const Bytes inside = reference_shuffle_scale(Bytes(plain.back().size(), 1), rows, cols);
            dirty.push_back(shuffled.back());
            for (std::size_t i = 0; i < inside.size(); ++i) {
              if (inside[i] == 0) dirty.back()[i] = static_cast<std::uint8_t>(255 - i % 3);
            }
          }
          const auto shape = KokkosMX::scales_shape<Tile32x8>(rows, 32 * cols);
          const Placed<std::uint8_t> from(batch, rows, cols, concatenate(plain), plain_at),
              to(batch, shape.rows, shape.cols, shuffled_at),
              caller(batch, shape.rows, shape.cols, concatenate(dirty), shuffled_at),
              back(batch, rows, cols, plain_at), back_from_dirty(batch, rows, cols, plain_at);
          KokkosMX::shuffle_scale(exec, InScales<RowMajor>(from.const_view3()),
                                  OutScales<Tile32x8>(to.view3()));
          KokkosMX::unshuffle_scale(exec, InScales<Tile32x8>(to.const_view3()),
                                    OutScales<RowMajor>(back.view3()));
          KokkosMX::unshuffle_scale(exec, InScales<Tile32x8>(caller.const_view3()),
                                    OutScales<RowMajor>(back_from_dirty.view3()));
          exec.fence();
          ASSERT_TRUE(same_bits(to.get(), concatenate(shuffled), "shuffled"));
          ASSERT_TRUE(same_bits(back.get(), concatenate(plain), "unshuffled"));
          ASSERT_TRUE(
              same_bits(back_from_dirty.get(), concatenate(plain), "unshuffled, any padding"));
          ASSERT_TRUE(to.gaps_untouched() && back.gaps_untouched() &&
                      back_from_dirty.gaps_untouched());
        }
      }
    }
  }
}

// The one byte that moves shows the map: every byte of a matrix of four tiles goes to its place.
TEST(Shuffle, WeightByHand) {
  const Exec exec;
  constexpr std::int64_t rows = 32, bytes = 64;
  // Byte i of row r lies at ((r / 16 * (bytes / 32) + i / 32) * 2 + i / 16 % 2) * 256 + r % 16 * 16
  // + i % 16.
  for (const auto& [row, byte, at] :
       std::vector<std::array<std::int64_t, 3>>{{0, 0, 0},
                                                {0, 15, 15},
                                                {0, 16, 256},
                                                {0, 32, 512},
                                                {1, 0, 16},
                                                {15, 63, 1023},
                                                {16, 0, 1024},
                                                {31, 63, 2047},
                                                {17, 20, 1024 + 256 + 16 + 4}}) {
    Bytes plain(rows * bytes, 0), shuffled(rows * bytes, 0);
    plain[size(row * bytes + byte)] = 0x5C;
    shuffled[size(at)] = 0x5C;
    const Placed<std::uint8_t> from(1, rows, bytes, plain), to(1, rows, bytes);
    KokkosMX::shuffle_weight(exec, KokkosMX::Codes(from.view2()), OutCodes<Tile16x16>(to.view2()));
    exec.fence();
    EXPECT_TRUE(same_bits(to.get(), shuffled, "row " + std::to_string(row)));
  }
}

// A 32-bit word holds the scales of 2 rows 16 apart x 2 blocks 4 apart.
TEST(Shuffle, ScaleByHand) {
  const Exec exec;
  constexpr std::int64_t rows = 256, cols = 16;
  for (const auto& [row, col, at] :
       std::vector<std::array<std::int64_t, 3>>{{0, 0, 0},
                                                {16, 0, 1},
                                                {0, 4, 2},
                                                {16, 4, 3},
                                                {1, 0, 4},
                                                {0, 1, 64},
                                                {0, 8, 256},
                                                {32, 0, 512},
                                                {255, 15, 4095},
                                                {47, 6, 512 + 128 + 60 + 2}}) {
    Bytes plain(rows * cols, 0), shuffled(rows * cols, 0);
    plain[size(row * cols + col)] = 0x5C;
    shuffled[size(at)] = 0x5C;
    const Placed<std::uint8_t> from(1, rows, cols, plain), to(1, rows, cols);
    KokkosMX::shuffle_scale(exec, KokkosMX::Scales(from.view2()), OutScales<Tile32x8>(to.view2()));
    exec.fence();
    EXPECT_TRUE(same_bits(to.get(), shuffled, "row " + std::to_string(row)));
  }
}

}  // namespace
}  // namespace KokkosMXTest
