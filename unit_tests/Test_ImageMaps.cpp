// SPDX-License-Identifier: Apache-2.0

// Where the image kernels put what lanes of a warp pass to one another on NVIDIA's GPUs: the very
// functions by which they do it, followed through models of the instructions, written from the
// manual. What threads do alone or by a group's memory runs on hosts: see Test_ImageKernel.cpp.

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <set>
#include <vector>

#include "Inputs.hpp"
#include "MatrixUnits.hpp"
#include "atoms/gemm/image_places.hpp"
#include "atoms/gemm/wgmma.hpp"

namespace {

namespace Impl = KokkosMX::Impl;
using Images = Impl::Int8Images;
using KokkosMXTest::ModelSharedMemory;
using KokkosMXTest::Stream;

// A tile of the largest atom: two warpgroups.
constexpr int a_rows = 128, b_rows = 256, threads = 256, step_k = Images::step_bytes;
constexpr int values = b_rows / 2, steps = Images::step_blocks;

// Elements of a step.
std::vector<std::int8_t> random_elements(int rows, std::uint64_t seed) {
  Stream random(seed);
  std::vector<std::int8_t> elements(static_cast<std::size_t>(rows * step_k));
  for (auto& e : elements) e = static_cast<std::int8_t>(random.between(-128, 127));
  return elements;
}
// Their image, of the 128-byte swizzle as the manual has it: bits 4-6 of an address are its own
// ones xor its bits 7-9.
std::vector<std::uint8_t> image_of(const std::vector<std::int8_t>& elements) {
  std::vector<std::uint8_t> image(elements.size());
  for (std::size_t at = 0; at < elements.size(); ++at) {
    image[at ^ (at >> 7 & 7u) << 4] = static_cast<std::uint8_t>(elements[at]);
  }
  return image;
}

struct Tile {
  std::vector<std::int8_t> a = random_elements(a_rows, 31), b = random_elements(b_rows, 32);

  std::int32_t product(int row, int col) const {
    std::int32_t sum = 0;
    for (int k = 0; k < step_k; ++k) sum += a[row * step_k + k] * b[col * step_k + k];
    return sum;
  }
};

// Eight places of 16 bytes that an instruction reaches at once lie in all banks.
template <class PlaceOf>
void check_banks(const PlaceOf& place_of) {
  std::set<std::uint64_t> banks;
  for (int i = 0; i < 8; ++i) banks.insert(place_of(i) / 16 % 8);
  ASSERT_EQ(banks.size(), 8u);
}

// The sums of a tile, as the matrix unit leaves them. Two bytes of each, times a unit of its row
// and one of its column, take the way of the outputs: to lines in the warp's own memory, and from
// there to C.
TEST(ImageMaps, LinesOfOutputs) {
  using Lines = Impl::LinesOfOutputs;
  const Tile tile;
  std::vector<std::int32_t> sums(threads * values, 0);
  {
    const std::vector<std::uint8_t> a = image_of(tile.a), b = image_of(tile.b);
    ModelSharedMemory memory{a};
    memory.bytes.insert(memory.bytes.end(), b.begin(), b.end());
    for (int warpgroup = 0; warpgroup < a_rows / 64; ++warpgroup) {
      const auto of_a = static_cast<std::uint32_t>(warpgroup * 64 * Images::step_bytes);
      for (int k = 0; k < steps; ++k) {
        KokkosMXTest::ModelWgmmaInt8<b_rows>::multiply_add(
            memory, Images::described_part(Images::describe(of_a), k),
            Images::described_part(Images::describe(a_rows * Images::step_bytes), k),
            [&](int thread) { return &sums[(128 * warpgroup + thread) * values]; });
      }
    }
    ASSERT_EQ(memory.mistakes, 0);
  }
  Stream random(33);
  std::vector<std::uint16_t> a_unit(a_rows), b_unit(b_rows);
  for (auto& unit : a_unit) unit = static_cast<std::uint16_t>(2 * random.below(1 << 15) + 1);
  for (auto& unit : b_unit) unit = static_cast<std::uint16_t>(2 * random.below(1 << 15) + 1);

  std::vector<std::uint16_t> c(a_rows * b_rows);
  std::vector<int> visits(c.size(), 0);
  for (int warp = 0; warp < threads / 32; ++warp) {
    ModelSharedMemory own{KokkosMXTest::random_bytes(16 * Lines::line, 34)};
    for (int first = 0; first < b_rows / 8; first += Lines::together) {
      for (int j = 0; j < Lines::together; j += 2) {
        std::uint32_t registers[32][4];
        for (int lane = 0; lane < 32; ++lane) {
          const int thread = 32 * warp + lane;
          for (int i = 0; i < 4; ++i) {
            const int row = Lines::row_of(thread, Lines::second(i));
            const int col = 2 * (Lines::first_pair(thread) + Lines::pair_behind(first, j, i));
            const std::uint32_t unit = a_unit.at(static_cast<std::size_t>(row));
            std::uint32_t pair = 0;
            for (int next = 0; next < 2; ++next) {
              const auto sum = static_cast<std::uint32_t>(sums.at(static_cast<std::size_t>(
                  thread * values + Lines::first_value(first, j, i) + next)));
              const std::uint32_t output =
                  sum * unit * b_unit.at(static_cast<std::size_t>(col + next));
              pair |= (output & 0xFFFFu) << (16 * next);
            }
            registers[lane][i] = pair;
          }
        }
        const auto address = [&](int lane) {
          return static_cast<std::uint64_t>(
              Lines::of_matrices(Lines::named(lane, Lines::eighth(lane)), j));
        };
        for (int i = 0; i < 4; ++i) check_banks([&](int row) { return address(8 * i + row); });
        KokkosMXTest::ModelStoreMatrices<false>::store(own, address,
                                                       [&](int lane) { return registers[lane]; });
      }
      for (int i = 0; i < 4; ++i) {
        const auto place = [&](int lane) {
          return static_cast<std::uint64_t>(
              Lines::of_line(Lines::taken(Lines::quarter(lane), Lines::eighth(lane)), i));
        };
        for (int lane = 0; lane < 32; lane += 8) {
          check_banks([&](int next) { return place(lane + next); });
        }
        for (int lane = 0; lane < 32; ++lane) {
          const int thread = 32 * warp + lane;
          const int row = Lines::rows_before(thread) + Lines::stored_row(Lines::quarter(lane)) +
                          Lines::row_behind(i);
          const int col = Lines::stored_col(Lines::eighth(lane)) + Lines::col_behind(first);
          ASSERT_TRUE(row >= 0 && row < a_rows && col >= 0 && col + 8 <= b_rows);
          std::memcpy(&c[row * b_rows + col], own.at(place(lane), 16, 16), 16);
          for (int e = 0; e < 8; ++e) ++visits[row * b_rows + col + e];
          // Eight lanes store a line of memory whole.
          ASSERT_EQ(col % 64, 8 * (lane % 8));
        }
      }
    }
    ASSERT_EQ(own.mistakes, 0);
  }
  ASSERT_EQ(visits, std::vector<int>(a_rows * b_rows, 1));
  for (int row = 0; row < a_rows; ++row) {
    for (int col = 0; col < b_rows; ++col) {
      const std::uint32_t expected =
          static_cast<std::uint32_t>(tile.product(row, col)) * a_unit[row] * b_unit[col];
      ASSERT_EQ(c[row * b_rows + col], static_cast<std::uint16_t>(expected)) << row << ' ' << col;
    }
  }
}

// Images of gathered columns, multiplied by warps: accumulators of theirs are where the matrix unit
// has those of the tile.
TEST(ImageMaps, PartsOfImage) {
  using Parts = Impl::PartsOfImage;
  using Model = KokkosMXTest::ModelLoadMatrices;
  const Tile tile;
  ModelSharedMemory a{image_of(tile.a)}, b{image_of(tile.b)};
  for (int warp = 0; warp < threads / 32; ++warp) {
    for (int i = 0; i < values / 8; ++i) {
      std::int32_t sums[32][8] = {};
      for (int k = 0; k < steps; ++k) {
        const auto of_a = [&](int lane) {
          return static_cast<std::uint64_t>(
              Parts::of_columns(Parts::named_a(32 * warp + lane, lane), k));
        };
        const auto of_b = [&](int lane) {
          return static_cast<std::uint64_t>(Parts::of_columns(Parts::named_b(lane, i), k));
        };
        for (int matrix = 0; matrix < 4; ++matrix) {
          check_banks([&](int row) { return of_a(8 * matrix + row); });
          check_banks([&](int row) { return of_b(8 * matrix + row); });
        }
        std::uint32_t registers_a[32][4], registers_b[32][4];
        Model::load(a, of_a, [&](int lane) { return registers_a[lane]; });
        Model::load(b, of_b, [&](int lane) { return registers_b[lane]; });
        for (int h = 0; h < 2; ++h) {
          KokkosMXTest::ModelMmaInt8::multiply_add(
              [&](int lane) { return registers_a[lane]; },
              [&](int lane) { return registers_b[lane] + Parts::first_register_b(h); },
              [&](int lane) { return sums[lane] + Parts::first_sum(h); });
        }
      }
      for (int lane = 0; lane < 32; ++lane) {
        const int thread = 32 * warp + lane;
        for (int v = 0; v < 8; ++v) {
          ASSERT_EQ(sums[lane][v], tile.product(Images::row_of(thread, 8 * i + v),
                                                Images::col_of(thread, 8 * i + v)))
              << thread << ' ' << i << ' ' << v;
        }
      }
    }
  }
  ASSERT_EQ(a.mistakes + b.mistakes, 0);
}

// A block's elements, of 32 lanes with a row's blocks one after the other, to the image; two lanes
// write a sector of 32 bytes.
TEST(ImageMaps, ChunksOfTwoBlocks) {
  using Two = Impl::ChunksOfTwoBlocks;
  constexpr int rows = 32 / steps;
  const Tile tile;
  const std::vector<std::uint8_t> expected = image_of(tile.a);
  std::vector<std::uint8_t> image(expected.size(), 0);
  std::vector<int> written(expected.size(), 0);
  for (int first_row = 0; first_row < a_rows; first_row += rows) {
    std::uint32_t chunks[32][2][4], even[32][4], odd[32][4];
    for (int lane = 0; lane < 32; ++lane) {
      const int row = first_row + lane / steps, block = lane % steps;
      std::memcpy(chunks[lane], &tile.a[row * step_k + KokkosMX::block_size * block],
                  sizeof(chunks[lane]));
    }
    const auto block_of = [](int lane) { return lane % steps; };
    for (int lane = 0; lane < 32; ++lane) {
      const int h = Two::written(block_of(lane)), other = lane ^ Two::other_lane;
      for (int w = 0; w < 4; ++w) {
        const std::uint32_t got =
            Two::given(Two::written(block_of(other)), chunks[other][0][w], chunks[other][1][w]);
        even[lane][w] = Two::of_even(h, chunks[lane][0][w], got);
        odd[lane][w] = Two::of_odd(h, chunks[lane][1][w], got);
      }
    }
    for (int is_odd = 0; is_odd < 2; ++is_odd) {
      int places[32];
      for (int lane = 0; lane < 32; ++lane) {
        const int row = first_row + lane / steps, block = block_of(lane);
        const int to =
            Two::place(row, is_odd != 0 ? Two::odd(block) : Two::even(block), Two::written(block));
        ASSERT_TRUE(to >= 0 && to % 16 == 0 && to + 16 <= a_rows * step_k) << to;
        std::memcpy(&image[static_cast<std::size_t>(to)], is_odd != 0 ? odd[lane] : even[lane], 16);
        for (int e = 0; e < 16; ++e) ++written[static_cast<std::size_t>(to + e)];
        places[lane] = to;
      }
      for (int lane = 0; lane < 32; ++lane) ASSERT_EQ(places[lane] ^ places[lane ^ 1], 16);
    }
  }
  ASSERT_EQ(written, std::vector<int>(written.size(), 1));
  ASSERT_EQ(image, expected);
}

// A tile's accumulators, parked in three of a pipeline's stages, whichever comes first: each has a
// word of its own, and none lies in other stages' images.
TEST(ImageMaps, ParkedAccumulators) {
  constexpr int stages = 4, a_bytes = a_rows * step_k, b_bytes = b_rows * step_k, parked = 3;
  using Parked = Impl::ParkedAccumulators<stages, a_bytes, b_bytes, threads>;
  for (int first = 0; first < stages; ++first) {
    std::vector<int> written(stages * (a_bytes + b_bytes) / 4, 0);
    for (int i = 0; i < values / 8; ++i) {
      const int of_stages = Parked::stage(i);
      ASSERT_TRUE(of_stages >= 0 && of_stages < parked) << i;
      const int place = Parked::place(i, (first + of_stages) % stages);
      ASSERT_EQ(place % 4, 0);
      for (int v = 0; v < 8; ++v) {
        for (int thread = 0; thread < threads; ++thread) {
          ++written.at(static_cast<std::size_t>(place / 4 + Parked::behind(v) + thread));
        }
      }
    }
    int all = 0;
    for (std::size_t word = 0; word < written.size(); ++word) {
      const int at = static_cast<int>(4 * word), of_a = stages * a_bytes;
      const int stage = at < of_a ? at / a_bytes : (at - of_a) / b_bytes;
      const bool is_parked = (stage - first + stages) % stages < parked;
      ASSERT_LE(written[word], is_parked ? 1 : 0) << first << ' ' << at;
      all += written[word];
    }
    ASSERT_EQ(all, values * threads);
  }
}

}  // namespace
