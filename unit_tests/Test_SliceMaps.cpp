// SPDX-License-Identifier: Apache-2.0

// Where the kernels of few rows on NVIDIA's GPUs put what they multiply and what comes of it: the
// very functions by which they do it, followed through models of the instructions, written from the
// manual, that store it, read it from shared memory and multiply it.

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "Inputs.hpp"
#include "MatrixUnits.hpp"
#include "atoms/gemm/mma.hpp"
#include "atoms/gemm/slice_places.hpp"
#include "atoms/gemm/wgmma.hpp"
#include "gemm/slices.hpp"

namespace {

namespace Impl = KokkosMX::Impl;
using Atom = Impl::MmaInt8Atom;
using Images = Impl::Int8Images;
using Impl::SliceForm;
using KokkosMXTest::ModelSharedMemory;
using KokkosMXTest::Stream;

constexpr int y_rows = 64, group_k = 128, groups = 2, steps = Images::step_blocks;

// Which of a group's 128 of K a lane of a quad multiplies in a step.
struct LoadedY {
  int k[4][steps][8];
};
// Bytes of two words by their numbers, as prmt has them.
std::uint32_t permuted(std::uint32_t first, std::uint32_t second, std::uint32_t numbers) {
  const std::uint64_t bytes = std::uint64_t{second} << 32 | first;
  std::uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t number = numbers >> (4 * i) & 7u;
    result |= static_cast<std::uint32_t>(bytes >> (8 * number) & 0xFFu) << (8 * i);
  }
  return result;
}
// From the bytes of a row's group, as lanes load them. Its numbers tell where they are in K: codes
// one hexadecimal digit of it after the other.
template <SliceForm Form>
LoadedY loaded_y() {
  using Own = Impl::PartsOfY<Form>;
  constexpr int block = KokkosMX::block_size, block_1 = 48;  // bytes between blocks
  LoadedY found{};
  for (int digit = 0; digit < (Form == SliceForm::dense ? 1 : 2); ++digit) {
    std::vector<std::uint8_t> row(steps * block_1 + 2 * group_k, 0xFF);
    for (std::size_t k = 0; k < group_k; ++k) {
      const std::size_t in_block = k % block / 2, number = k / block;
      if (Form == SliceForm::dense) {
        row[2 * k] = static_cast<std::uint8_t>(k);
        row[2 * k + 1] = 0;
        continue;
      }
      // Two codes are a byte, the first in its low half. Byte j of block b is byte 4 j + b of an
      // interleaved group.
      const std::size_t at =
          Form == SliceForm::interleaved ? 4 * in_block + number : block_1 * number + in_block;
      const auto shift = static_cast<unsigned>(4 * (k % 2));
      row[at] = static_cast<std::uint8_t>((row[at] & ~(15u << shift)) | (k >> (4 * digit) & 15u)
                                                                            << shift);
    }
    for (int part = 0; part < 4; ++part) {
      if constexpr (Form == SliceForm::dense) {
        for (int i = 0; i < steps; ++i) {
          std::uint16_t numbers[8];
          std::memcpy(numbers, &row.at(static_cast<std::size_t>(Own::begin(part) + Own::behind(i))),
                      sizeof(numbers));
          for (int e = 0; e < 8; ++e) found.k[part][i][e] = numbers[e];
        }
      } else {
        std::uint32_t words[4], ordered[4];
        std::memcpy(words, &row.at(static_cast<std::size_t>(Own::begin(part, block_1))),
                    sizeof(words));
        for (int i = 0; i < 4; ++i) {
          const int first = Own::ordered_from(i);
          ordered[i] = Form == SliceForm::interleaved
                           ? permuted(words[first], words[first + 1], Own::ordered_bytes(i))
                           : words[i];
          for (int h = 0; h < 2; ++h) {
            int* const to = &found.k[part][Own::step(i, h)][4 * Own::half(i, h)];
            for (int e = 0; e < 4; ++e) {
              to[e] += static_cast<int>(ordered[i] >> (16 * h + 4 * e) & 15u) << (4 * digit);
            }
          }
        }
      }
    }
  }
  return found;
}
LoadedY loaded_y(SliceForm form) {
  if (form == SliceForm::dense) return loaded_y<SliceForm::dense>();
  return form == SliceForm::interleaved ? loaded_y<SliceForm::interleaved>()
                                        : loaded_y<SliceForm::blocks>();
}
constexpr SliceForm forms[] = {SliceForm::dense, SliceForm::interleaved, SliceForm::blocks};

// Each of a group's is multiplied once, where the block's scale is.
TEST(SliceMaps, PartsOfFirstOperand) {
  for (const SliceForm form : forms) {
    const LoadedY loaded = loaded_y(form);
    std::vector<int> visits(group_k, 0);
    for (int lane = 0; lane < 32; ++lane) {
      const int part = Atom::operand_part(lane);
      for (int i = 0; i < steps; ++i) {
        // Of codes a lane has the scale of a block of its number.
        int block = i;
        if (form == SliceForm::blocks) block = part;
        if (form == SliceForm::interleaved) {
          const int has = Impl::PartsOfY<SliceForm::interleaved>::lane_of_scale(lane, i);
          ASSERT_EQ(has / 4, lane / 4);
          block = Atom::operand_part(has);
        }
        for (const int k : loaded.k[part][i]) {
          ASSERT_EQ(k / KokkosMX::block_size, block) << lane << ' ' << i;
          if (lane < 4) ++visits.at(static_cast<std::size_t>(k));
        }
      }
    }
    ASSERT_EQ(visits, std::vector<int>(group_k, 1));
  }
}

// Elements of y and of x, and what lanes have of y.
struct Elements {
  int x_rows;
  SliceForm form;
  std::vector<std::int8_t> y, x;
  LoadedY loaded;

  Elements(int rows, std::uint64_t seed, SliceForm form_of_y = SliceForm::dense)
      : x_rows(rows), form(form_of_y), loaded(loaded_y(form)) {
    Stream random(seed);
    const auto some = [&](int count) {
      std::vector<std::int8_t> elements(static_cast<std::size_t>(count * groups * group_k));
      for (auto& e : elements) e = static_cast<std::int8_t>(random.between(-128, 127));
      return elements;
    };
    y = some(y_rows);
    x = some(rows);
  }
  // Eight of a row's group, those with these numbers.
  static Atom::Part part_of(const std::vector<std::int8_t>& rows, int row, int group,
                            const int (&k)[8]) {
    Atom::Part part{};
    for (int e = 0; e < 8; ++e) {
      const std::int8_t element =
          rows.at(static_cast<std::size_t>((row * groups + group) * group_k + k[e]));
      part.word[e / 4] |= std::uint32_t{static_cast<std::uint8_t>(element)} << (8 * (e % 4));
    }
    return part;
  }
  Atom::Part part_of_y(int row, int group, int step, int lane) const {
    return part_of(y, row, group, loaded.k[Atom::operand_part(lane)][step]);
  }
  // What a lane makes of a group, of the rows from `below` on.
  void make(Impl::PartsToImage::Parts& parts, int below, int group, int lane) const {
    for (int step = 0; step < steps; ++step) {
      for (int second = 0; second < 2; ++second) {
        parts[step][second] = part_of_y(below + Atom::operand_row(lane, second), group, step, lane);
      }
    }
  }
  // x's elements where SliceElements has them: an eighth number of a block at a time.
  std::vector<std::uint8_t> image(int log_tile) const {
    const Impl::SliceElements elements{.data = nullptr,
                                       .states = nullptr,
                                       .log_tile = log_tile,
                                       .tiles = 1,
                                       .groups = groups,
                                       .by_blocks = form == SliceForm::blocks};
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(elements.image_bytes()), 0x55);
    std::vector<int> written(bytes.size(), 0);
    for (int row = 0; row < x_rows; ++row) {
      for (int k = 0; k < groups * group_k; ++k) {
        const int block = k / KokkosMX::block_size, eighth = k / 8 % 4, e = k % 8;
        const int at = elements.offset_of_eight(block, row, eighth);
        const auto to = static_cast<std::size_t>((e < 4 ? at : at ^ elements.second()) + e % 4);
        bytes.at(to) = static_cast<std::uint8_t>(x[row * groups * group_k + k]);
        ++written.at(to);
      }
    }
    EXPECT_EQ(written, std::vector<int>(written.size(), 1));
    return bytes;
  }
  int product(int y_row, int x_row) const {
    int sum = 0;
    for (int k = 0; k < groups * group_k; ++k) {
      sum += y[y_row * groups * group_k + k] * x[x_row * groups * group_k + k];
    }
    return sum;
  }
};

// A block's shared memory, from `begin` on: x's groups beyond the first 64 KiB of it, then y's.
struct Block {
  static constexpr int begin = 1024, x_at = 70 * 1024, bytes_y = y_rows * Images::step_bytes;
  int bytes_x, y_at;
  ModelSharedMemory memory;
  std::vector<std::uint8_t> before;

  explicit Block(int x_rows)
      : bytes_x(x_rows * Images::step_bytes),
        y_at(x_at + groups * bytes_x),
        memory{KokkosMXTest::random_bytes(
            static_cast<std::size_t>(begin + y_at + groups * bytes_y + 4096), 5)},
        before(memory.bytes) {}
  std::uint8_t* at(int place) { return &memory.bytes[static_cast<std::size_t>(begin + place)]; }
  // As the copy engine brings it: groups follow one another.
  void copy_x(const std::vector<std::uint8_t>& image) {
    ASSERT_EQ(image.size(), static_cast<std::size_t>(groups * bytes_x));
    std::memcpy(at(x_at), image.data(), image.size());
  }
  // Nothing is written but from one place to another.
  void check_writes(int from, int to) {
    EXPECT_EQ(memory.mistakes, 0);
    for (std::size_t i = 0; i < before.size(); ++i) {
      const int place = static_cast<int>(i) - begin;
      if (place >= from && place < to) continue;
      ASSERT_EQ(memory.bytes[i], before[i]) << place;
    }
  }
};

// The sums by thread and accumulator, each output once.
template <int Columns>
using Sums = std::int32_t[128][Columns / 2];
template <int Columns, class RowOf, class ColOf>
void check_sums(const Elements& elements, const Sums<Columns>& sums, const RowOf& row_of,
                const ColOf& col_of) {
  std::vector<int> visits(y_rows * Columns, 0);
  for (int thread = 0; thread < 128; ++thread) {
    for (int v = 0; v < Columns / 2; ++v) {
      const int row = row_of(thread, v), col = col_of(thread, v);
      ASSERT_TRUE(row >= 0 && row < y_rows && col >= 0 && col < Columns) << thread << ' ' << v;
      ++visits[row * Columns + col];
      ASSERT_EQ(sums[thread][v], elements.product(row, col)) << thread << ' ' << v;
    }
  }
  ASSERT_EQ(visits, std::vector<int>(y_rows * Columns, 1));
}

// Few rows of x: a warp multiplies 16 rows of y by tiles of 8 rows of x, both from registers.
template <int Rows>
void check_tiles(int log_tile, SliceForm form) {
  using Steps = Impl::TwoStepsOfTile<Rows>;
  const Elements elements(Rows, 24, form);
  const std::vector<std::uint8_t> image = elements.image(log_tile);
  std::int32_t sums[Rows / 8][32][Atom::values] = {};
  for (int group = 0; group < groups; ++group) {
    Impl::PartsToImage::Parts parts[32];
    for (int lane = 0; lane < 32; ++lane) elements.make(parts[lane], 0, group, lane);
    for (int i = 0; i < steps; ++i) {
      for (int tile = 0; tile < Rows / 8; ++tile) {
        Atom::Registers registers[32];
        for (int lane = 0; lane < 32; ++lane) {
          const int from = Steps::begin(2 * group + i / 2, lane) + Steps::behind(tile);
          std::uint32_t words[4];
          ASSERT_LE(static_cast<std::size_t>(from) + sizeof(words), image.size());
          std::memcpy(words, &image[static_cast<std::size_t>(from)], sizeof(words));
          registers[lane] =
              Atom::registers(parts[lane][i][0], parts[lane][i][1], Steps::part(words, i % 2));
        }
        KokkosMXTest::ModelMmaInt8::multiply_add([&](int lane) { return registers[lane].a; },
                                                 [&](int lane) { return registers[lane].b; },
                                                 [&](int lane) { return sums[tile][lane]; });
      }
    }
  }
  std::vector<int> visits(Atom::rows * Rows, 0);
  for (int tile = 0; tile < Rows / 8; ++tile) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int v = 0; v < Atom::values; ++v) {
        const int row = Atom::row_of(lane, v), col = Atom::col_of_tile(tile, lane, v);
        ASSERT_TRUE(row >= 0 && row < Atom::rows && col >= 0 && col < Rows);
        ++visits[row * Rows + col];
        ASSERT_EQ(sums[tile][lane][v], elements.product(row, col)) << tile << ' ' << lane;
      }
    }
  }
  ASSERT_EQ(visits, std::vector<int>(Atom::rows * Rows, 1));
}
TEST(SliceMaps, BothOperandsInRegisters) {
  for (const SliceForm form : forms) {
    check_tiles<8>(3, form);
    check_tiles<16>(4, form);
    check_tiles<32>(5, form);
  }
}

struct alignas(16) TwoSteps {
  std::uint32_t w[4];
};
// Few rows of x, whose elements the warps make that multiply (SliceGemm with MakesX): one warp, or
// two, each of which makes half the tiles for both.
template <int ColumnTiles, SliceForm Form>
void check_made() {
  using Made = Impl::ElementsMade<ColumnTiles, Form == SliceForm::blocks>;
  constexpr int warps = ColumnTiles > 1 ? 2 : 1, x_rows = Atom::cols * ColumnTiles;
  constexpr int each = Made::tiles_each;
  const Elements elements(x_rows, 25, Form);
  std::int32_t sums[warps][ColumnTiles][32][Atom::values] = {};
  for (int group = 0; group < groups; ++group) {
    typename Made::template Memory<TwoSteps> memory;
    std::memset(&memory, 0x55, sizeof(memory));
    std::vector<int> written(sizeof(memory) / 4, 0);
    std::uint32_t x[warps][32][steps / 2][ColumnTiles][4] = {};
    for (int warp = 0; warp < warps; ++warp) {
      const int below = Atom::rows * warp;
      for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < steps; ++i) {
          for (int r = 0; r < each; ++r) {
            // An eighth number of each block, by the quad's lanes.
            int k[8];
            for (int e = 0; e < 8; ++e) k[e] = 32 * i + 8 * Atom::operand_part(lane) + e;
            const Atom::Part part =
                Elements::part_of(elements.x, Made::own_row(below, lane, r), group, k);
            if constexpr (Made::is_passed) {
              const int step = Made::step(Atom::operand_part(lane), i);
              std::uint32_t* to = Made::template stored<TwoSteps>(
                  memory, step, Made::own_tile(below) + r, Made::lane_of(lane, i));
              const auto number = to - &memory[0][0][0].w[0];
              ASSERT_TRUE(number >= 0 && number % 2 == 0) << number;
              for (int w = 0; w < 2; ++w) {
                ++written.at(static_cast<std::size_t>(number + w));
                to[w] = part.word[w];
              }
            } else {
              ASSERT_EQ(Made::lane_of(lane, i), lane);
              ASSERT_EQ(Made::step(Atom::operand_part(lane), i), i);
              std::memcpy(&x[warp][lane][Made::pair(i)][r][Made::first_word(i)], part.word, 8);
            }
          }
        }
      }
    }
    if constexpr (Made::is_passed) {
      ASSERT_EQ(written, std::vector<int>(written.size(), 1));
      for (int warp = 0; warp < warps; ++warp) {
        for (int lane = 0; lane < 32; ++lane) {
          for (int i = 0; i < steps / 2; ++i) {
            for (int j = 0; j < ColumnTiles; ++j) {
              const TwoSteps& two = Made::template taken<TwoSteps>(memory, i, j, lane);
              std::memcpy(x[warp][lane][i][j], two.w, sizeof(two.w));
            }
          }
        }
      }
    }
    for (int warp = 0; warp < warps; ++warp) {
      for (int i = 0; i < steps; ++i) {
        for (int j = 0; j < ColumnTiles; ++j) {
          Atom::Registers registers[32];
          for (int lane = 0; lane < 32; ++lane) {
            Atom::Part y[2];
            for (int second = 0; second < 2; ++second) {
              y[second] = elements.part_of_y(Atom::rows * warp + Atom::operand_row(lane, second),
                                             group, i, lane);
            }
            registers[lane] = Atom::registers(
                y[0], y[1], Impl::TwoStepsOfTile<x_rows>::part(x[warp][lane][i / 2][j], i % 2));
          }
          KokkosMXTest::ModelMmaInt8::multiply_add([&](int lane) { return registers[lane].a; },
                                                   [&](int lane) { return registers[lane].b; },
                                                   [&](int lane) { return sums[warp][j][lane]; });
        }
      }
    }
  }
  std::vector<int> visits(warps * Atom::rows * x_rows, 0);
  for (int warp = 0; warp < warps; ++warp) {
    for (int j = 0; j < ColumnTiles; ++j) {
      for (int lane = 0; lane < 32; ++lane) {
        for (int v = 0; v < Atom::values; ++v) {
          const int row = Atom::rows * warp + Atom::row_of(lane, v);
          const int col = Atom::col_of_tile(j, lane, v);
          ++visits.at(static_cast<std::size_t>(row * x_rows + col));
          ASSERT_EQ(sums[warp][j][lane][v], elements.product(row, col)) << row << ' ' << col;
        }
      }
    }
  }
  ASSERT_EQ(visits, std::vector<int>(warps * Atom::rows * x_rows, 1));
}
template <int ColumnTiles>
void check_made_of_forms() {
  check_made<ColumnTiles, SliceForm::dense>();
  check_made<ColumnTiles, SliceForm::interleaved>();
  check_made<ColumnTiles, SliceForm::blocks>();
}
TEST(SliceMaps, SecondOperandMadeByWarps) {
  check_made_of_forms<1>();
  check_made_of_forms<2>();
  check_made_of_forms<4>();
}

// Both operands in shared memory (SliceShared): y's parts by stmatrix to images there.
template <int Columns>
void multiply_images(const Elements& elements, Block& block, Sums<Columns>& sums) {
  block.copy_x(elements.image(Columns == 64 ? 6 : 7));
  for (int group = 0; group < groups; ++group) {
    const int image = Block::begin + block.y_at + group * Block::bytes_y;
    for (int warp = 0; warp < 4; ++warp) {
      const int below = Atom::rows * warp;
      Impl::PartsToImage::Parts parts[32];
      for (int lane = 0; lane < 32; ++lane) elements.make(parts[lane], below, group, lane);
      for (int second = 0; second < 2; ++second) {
        for (int i = 0; i < steps; i += 2) {
          std::uint32_t registers[32][4];
          for (int lane = 0; lane < 32; ++lane) {
            for (int w = 0; w < 4; ++w) {
              registers[lane][w] = Impl::PartsToImage::stored(parts[lane], i, second, w);
            }
          }
          KokkosMXTest::ModelStoreMatrices<false>::store(
              block.memory,
              [&](int lane) {
                const int place = Impl::PartsToImage::named(below, lane);
                return static_cast<std::uint64_t>(image + Impl::PartsToImage::of_step(place, i) +
                                                  Impl::PartsToImage::behind(second));
              },
              [&](int lane) { return registers[lane]; });
        }
      }
    }
  }
  const std::uint64_t memory = Images::describe(std::uint32_t{Block::begin});
  for (int group = 0; group < groups; ++group) {
    const std::uint64_t a = Images::described_after(memory, block.y_at + group * Block::bytes_y);
    const std::uint64_t b = Images::described_after(memory, Block::x_at + group * block.bytes_x);
    for (int k = 0; k < steps; ++k) {
      KokkosMXTest::ModelWgmmaInt8<Columns>::multiply_add(
          block.memory, Images::described_part(a, k), Images::described_part(b, k),
          [&](int thread) { return sums[thread]; });
    }
  }
}
template <int Columns>
void check_images(SliceForm form) {
  const Elements elements(Columns, 21, form);
  Block block(Columns);
  Sums<Columns> sums = {};
  multiply_images<Columns>(elements, block, sums);
  check_sums<Columns>(elements, sums, Images::row_of, Images::col_of);
  for (int row = 0; row < y_rows; ++row) {
    for (int col = 0; col < Columns; ++col) {
      const int thread = Images::thread_of(row, col), v = Images::value_of(row, col);
      ASSERT_EQ(Images::row_of(thread, v), row);
      ASSERT_EQ(Images::col_of(thread, v), col);
    }
  }
  block.check_writes(Block::x_at, block.y_at + groups * Block::bytes_y);
}
TEST(SliceMaps, BothOperandsInSharedMemory) {
  for (const SliceForm form : forms) {
    check_images<64>(form);
    check_images<128>(form);
  }
}

// The first operand in registers (WgmmaFragments): tiles of 8 columns, as of the warp-level atom.
template <int Columns>
void check_fragments(SliceForm form) {
  const Elements elements(Columns, 22, form);
  Block block(Columns);
  block.copy_x(elements.image(Columns == 64 ? 6 : 7));
  Sums<Columns> sums = {};
  for (int group = 0; group < groups; ++group) {
    const std::uint64_t b = Images::describe(
        static_cast<std::uint32_t>(Block::begin + Block::x_at + group * block.bytes_x));
    for (int i = 0; i < steps; ++i) {
      Atom::Registers registers[128];
      for (int thread = 0; thread < 128; ++thread) {
        Impl::PartsToImage::Parts parts;
        elements.make(parts, Atom::rows * (thread / 32), group, thread % 32);
        registers[thread] = Atom::registers(parts[i][0], parts[i][1], {});
      }
      KokkosMXTest::ModelWgmmaInt8<Columns>::multiply_add_registers(
          block.memory, [&](int thread) { return registers[thread].a; },
          Images::described_part(b, i), [&](int thread) { return sums[thread]; });
    }
  }
  constexpr int each = Atom::values;
  check_sums<Columns>(
      elements, sums,
      [](int thread, int v) {
        return Atom::rows * (thread / 32) + Atom::row_of(thread % 32, v % each);
      },
      [](int thread, int v) { return Atom::col_of_tile(v / each, thread % 32, v % each); });
  block.check_writes(Block::x_at, block.y_at);
}
TEST(SliceMaps, FirstOperandInRegisters) {
  for (const SliceForm form : forms) {
    check_fragments<64>(form);
    check_fragments<128>(form);
  }
}

// The sums, of which two bytes each take the way of the outputs: by stmatrix, transposed, to rows
// in the place of x, and from there to C.
template <int Columns>
void check_outputs() {
  using Outputs = Impl::OutputsByRow<y_rows>;
  const Elements elements(Columns, 23);
  Block block(Columns);
  Sums<Columns> sums = {};
  multiply_images<Columns>(elements, block, sums);
  block.before = block.memory.bytes;
  for (int warp = 0; warp < 4; ++warp) {
    const int below = Atom::rows * warp;
    for (int j = 0; j < Columns / 16; ++j) {
      std::uint32_t pairs[32][4];
      for (int lane = 0; lane < 32; ++lane) {
        const int thread = 32 * warp + lane;
        for (int i = 0; i < 2; ++i) {
          const int first = Outputs::first_value(j, i);
          for (int second = 0; second < 2; ++second) {
            // What the kernel multiplies them by is of these rows.
            for (int next = 0; next < 2; ++next) {
              const int v = first + 2 * second + next;
              ASSERT_EQ(Images::col_of(thread, v),
                        Outputs::first_x(j, i, Atom::operand_part(lane)) + next);
              ASSERT_EQ(Images::row_of(thread, v), below + Atom::operand_row(lane, second));
            }
            const std::int32_t* d = sums[thread] + first + 2 * second;
            pairs[lane][2 * i + second] = (static_cast<std::uint32_t>(d[0]) & 0xFFFFu) |
                                          static_cast<std::uint32_t>(d[1]) << 16;
          }
        }
      }
      KokkosMXTest::ModelStoreMatrices<true>::store(
          block.memory,
          [&](int lane) {
            return static_cast<std::uint64_t>(Block::begin + Block::x_at +
                                              Outputs::named(below, lane) + Outputs::behind(j));
          },
          [&](int lane) { return pairs[lane]; });
    }
  }
  block.check_writes(Block::x_at, Block::x_at + Columns * Outputs::pitch_bytes);
  constexpr int threads = 512, rows_together = threads / Outputs::threads_in_row;
  std::vector<int> visits(y_rows * Columns, 0);
  for (int thread = 0; thread < threads; ++thread) {
    for (int i = 0; i < Columns; i += rows_together) {
      const int row = i + Outputs::stored_x(thread);
      std::uint16_t stored[8];
      std::memcpy(
          stored,
          block.at(Block::x_at + Outputs::stored_place(thread) + row * Outputs::pitch_bytes),
          sizeof(stored));
      for (int e = 0; e < 8; ++e) {
        const int y = Outputs::stored_y(thread) + e;
        ASSERT_TRUE(row < Columns && y < y_rows);
        ++visits[y * Columns + row];
        ASSERT_EQ(stored[e], static_cast<std::uint16_t>(elements.product(y, row)))
            << row << ' ' << y;
      }
    }
  }
  ASSERT_EQ(visits, std::vector<int>(y_rows * Columns, 1));
}
TEST(SliceMaps, OutputsByRow) {
  check_outputs<64>();
  check_outputs<128>();
}

// A warp's rows of bf16 through shared memory: every lane gets its own part, and lanes that an
// instruction serves together, eight with 16 bytes each, are in all banks.
TEST(SliceMaps, RowsThroughSharedMemory) {
  using Rows = Impl::RowsThrough;
  const auto source = KokkosMXTest::random_bytes(Rows::bytes, 7);
  for (const int begin : {0, 128, 7 * 128}) {
    std::vector<std::uint8_t> memory(static_cast<std::size_t>(begin + Rows::bytes), 0);
    std::vector<int> written(memory.size(), 0);
    for (int i = 0; i < Rows::rows; ++i) {
      for (int h = 0; h < Rows::pieces; ++h) {
        for (int lane = 0; lane < 32; ++lane) {
          const int from = Rows::row_bytes * Rows::copied_row(lane, i) + Rows::copied_from(lane) +
                           Rows::from_behind(h);
          const int to = Rows::copied_to(begin, lane) + Rows::to_behind(i, h);
          ASSERT_TRUE(to % 16 == 0 && from + 16 <= Rows::bytes);
          for (int b = 0; b < 16; ++b) {
            memory.at(static_cast<std::size_t>(to + b)) =
                source[static_cast<std::size_t>(from + b)];
            ++written[static_cast<std::size_t>(to + b)];
          }
        }
      }
    }
    for (std::size_t i = 0; i < written.size(); ++i) {
      ASSERT_EQ(written[i], static_cast<int>(i) >= begin ? 1 : 0) << i;
    }
    for (int second = 0; second < 2; ++second) {
      for (int block = 0; block < Rows::blocks; ++block) {
        unsigned banks = 0;
        for (int lane = 0; lane < 32; ++lane) {
          const int place = Rows::of_block(Rows::own(begin, lane), block, second);
          ASSERT_TRUE(place >= begin && place % 16 == 0 && place + 16 <= begin + Rows::bytes);
          using Own = Impl::PartsOfY<SliceForm::dense>;
          const auto own = Rows::row_bytes * Atom::operand_row(lane, second) +
                           Own::begin(Atom::operand_part(lane)) + Own::behind(block);
          ASSERT_EQ(std::memcmp(&memory[static_cast<std::size_t>(place)],
                                &source[static_cast<std::size_t>(own)], 16),
                    0)
              << begin << ' ' << lane << ' ' << block << ' ' << second;
          banks |= 1u << (place / 16 % 8);
          if (lane % 8 != 7) continue;
          EXPECT_EQ(banks, 0xFFu) << lane << ' ' << block << ' ' << second;
          banks = 0;
        }
      }
    }
  }
}

}  // namespace
