// SPDX-License-Identifier: Apache-2.0

// The GEMM kernel of devices whose matrix unit reads images, run on the host with a model of the
// unit, against the oracle: the very bodies that a device runs. And how rows are split.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <iostream>
#include <string>
#include <vector>

#include "GemmCases.hpp"
#include "GemmSums.hpp"
#include "ReferenceGemm.hpp"
#include "ThreadGroup.hpp"
#include "atoms/gemm/wgmma.hpp"
#include "atoms/quantize/portable.hpp"
#include "gemm/image_kernel.hpp"
#include "gemm/make_images.hpp"

namespace {

namespace Impl = KokkosMX::Impl;
using namespace KokkosMXTest;
using Impl::Gathering;
using Impl::RowSplit;
using KokkosMX::RowSummary;
using KokkosMX::Tier;

// A matrix unit that reads images where they are.
struct ModelAtom : Impl::Int8Images {
  static constexpr int tile_m = 64, tile_n = 64;
  static constexpr int multiplying = 128, threads = multiplying;
  static constexpr int values = tile_n / 2;
  static constexpr int joint_steps = 2, gathered_steps = 2 * joint_steps + 1, common_columns = 32;
  struct Digits {
    int parts;
    bool high_a, high_b;
  };
  struct Pipeline {
    std::int32_t kept[values][multiplying];
    std::uint32_t said[2];
  };
  static void publish() {}
  static std::uint32_t uniform(std::uint32_t x) { return x; }
  static void synchronize() { ThreadGroup<threads>::current()->barrier(); }
  struct Images {
    const std::uint8_t* a;
    const std::uint8_t* b;
    int a_pieces, b_pieces;
    std::int64_t a_piece, b_piece;
  };

  // Element i of a row of a step.
  static std::int32_t element(const std::uint8_t* image, int row, int i) {
    return static_cast<std::int8_t>(image[offset(row, i / 16) + i % 16]);
  }
  // The sum over the first `columns` of a step.
  static std::int32_t dot(const std::uint8_t* a, int row, const std::uint8_t* b, int col,
                          int columns) {
    std::int32_t sum = 0;
    for (int i = 0; i < columns; ++i) sum += element(a, row, i) * element(b, col, i);
    return sum;
  }
  // A row of the image that is put together of pieces, and where it is there.
  static const std::uint8_t* piece(const std::uint8_t* image, int& row, int rows, int pieces,
                                   std::int64_t from_piece_to_piece) {
    const int each = rows / pieces, i = row / each;
    row %= each;
    return image + (i < 3 ? i * from_piece_to_piece : 0);
  }

  class Gathered {
   public:
    struct Calls {
      int waited = 0, released = 0;
    };
    Gathered(Pipeline& pipeline, Images images, int thread, Calls& calls)
        : pipeline_(pipeline), images_(images), thread_(thread), calls_(calls) {}
    const Gathered& wait() const {
      ++calls_.waited;
      return *this;
    }
    void multiply(int i, const Digits& digits, OutlierSums& sums) const {
      const auto a = [&](int step) { return images_.a + step * tile_m * step_bytes; };
      const auto b = [&](int step) { return images_.b + step * tile_n * step_bytes; };
      for (int v = 0; v < 8; ++v) {
        const int row = row_of(thread_, v), col = col_of(thread_, 8 * i + v);
        const auto product = [&](int step_a, int step_b, int most = step_bytes) {
          const bool there = (step_a != 0 || digits.high_a) && (step_b != 1 || digits.high_b);
          return there ? dot(a(step_a), row, b(step_b), col, std::min(most, 32 * digits.parts)) : 0;
        };
        sums.outliers_main[v] = 256 * product(0, 0) + product(1, 0);
        sums.main_outliers[v] = 256 * product(2, 1) + product(2, 2);
        sums.outliers_high[v] = 256 * product(0, 1, common_columns) +
                                product(0, 2, common_columns) + product(1, 1, common_columns);
        sums.outliers_low[v] = product(1, 2, common_columns);
      }
    }
    void keep(const std::int32_t (&d)[values]) const {
      for (int v = 0; v < values; ++v) pipeline_.kept[v][thread_] = d[v];
      synchronize();
    }
    void clear() const {
      for (int v = 0; v < values; ++v) pipeline_.kept[v][thread_] = 0;
    }
    std::int32_t* kept(int i) const { return pipeline_.kept[8 * i]; }
    void release() const {
      synchronize();
      ++calls_.released;
    }

   private:
    Pipeline& pipeline_;
    Images images_;
    int thread_;
    Calls& calls_;
  };

  template <class ImagesOf, class MarksOf, class ProductOf, class After, class Prepare, class Store>
  static void run(Pipeline& pipeline, std::int32_t first, std::int32_t end, std::int32_t stride,
                  const ImagesOf& images, const MarksOf& marks_of, const ProductOf& product,
                  const After& steps_after, const Prepare& prepare, const Store& store) {
    const auto& group = *ThreadGroup<threads>::current();
    int slot = 0;
    for (std::int32_t tile = first; tile < end; tile += stride, slot ^= 1) {
      group.barrier();
      if (group.rank() == 0) pipeline.said[slot] = 0;
      group.barrier();
      // The first half of the threads prepares.
      if (group.rank() < threads / 2) {
        Kokkos::atomic_or(&pipeline.said[slot], prepare(tile, slot, group.rank(), threads / 2));
      }
      const Images from = images(tile);
      std::uint32_t sums[values] = {};
      std::int64_t steps = 0;
      for (int i = 0; i < most_products; ++i) {
        const Product now = product(marks_of(tile), i);
        steps = now.steps;
        for (int v = 0; v < values; ++v) {
          int row = row_of(group.rank(), v), col = col_of(group.rank(), v);
          const std::uint8_t* a = piece(from.a, row, tile_m, from.a_pieces, from.a_piece) + now.a;
          const std::uint8_t* b = piece(from.b, col, tile_n, from.b_pieces, from.b_piece) + now.b;
          for (std::int64_t s = 0; s < now.steps; ++s) {
            sums[v] += static_cast<std::uint32_t>(dot(
                a + s * tile_m * step_bytes, row, b + s * tile_n * step_bytes, col, step_bytes));
          }
          sums[v] *= now.factor;
        }
      }
      std::int32_t d[values];
      std::copy(sums, sums + values, d);
      group.barrier();
      typename Gathered::Calls calls;
      const Gathered gathered(
          pipeline,
          {from.a + steps * tile_m * step_bytes, from.b + steps * tile_n * step_bytes, 1, 1, 0, 0},
          group.rank(), calls);
      store(tile, slot, pipeline.said[slot], d, gathered);
      const int expected = steps_after(tile) != Impl::StepsAfter::none ? 1 : 0;
      EXPECT_EQ(calls.waited, expected);
      EXPECT_EQ(calls.released, expected);
    }
  }
};

// An operand as the kernel takes it; images and all else that is made start as noise.
struct Operand {
  std::vector<std::uint8_t> codes, scales, images, has_outliers;
  std::vector<RowSummary> summaries;
  std::vector<RowSplit> splits;
  std::vector<std::uint32_t> columns, cuts;
  Impl::ImageOperand operand{};

  Operand(const HostMatrix& x, int tile_rows)
      : codes(x.codes), scales(x.scales), summaries(static_cast<std::size_t>(x.rows)) {
    const std::int64_t blocks = x.k / 32, row_bytes = x.k / 2;
    Impl::MatrixMap& map = operand.matrix;
    map.batch = 1;
    map.rows = x.rows;
    map.blocks = blocks;
    map.codes = {codes.data(), 0, 16 * row_bytes, row_bytes, 64, 16, 1, x.rows, blocks};
    map.scales = {scales.data(), 0, 32 * blocks, 16 * blocks, blocks, 8, 4, 1, x.rows, blocks};
    map.summaries = {summaries.data(), 0, 1};
    operand.tile_rows = tile_rows;
    operand.tiles = (x.rows + tile_rows - 1) / tile_rows;
    operand.steps = (blocks + 3) / 4;
    operand.gathered_steps = ModelAtom::gathered_steps;
    const std::int64_t rows = operand.tiles * tile_rows;
    operand.part_bytes = rows * (operand.steps + ModelAtom::gathered_steps) * 128;
    images = random_bytes((1 + RowSplit::most_parts) * operand.part_bytes, 1);
    has_outliers = random_bytes(rows / 8, 2);
    splits.assign(rows, RowSplit{77, 78, 1});
    columns.assign(rows / 8 * blocks, 0xDEADBEEFu);
    operand.images = images.data();
    operand.splits = splits.data();
    operand.has_outliers = has_outliers.data();
    cuts.assign(operand.tiles * Impl::ImageOperand::most_pieces, 0xDEADBEEFu);
    operand.columns = columns.data();
    operand.cuts = cuts.data();
  }
};

struct Result {
  Bits bits;
  TierCounts counts{};
  Gathering gathering = Gathering::imaged;
  int shift = 0;
};

template <class T>
Result run_kernel(const HostMatrix& a, const HostMatrix& b, Tier minimum) {
  Operand x(a, ModelAtom::tile_m), y(b, ModelAtom::tile_n);
  Result result;
  std::vector<typename OutputType<T>::bits> c(a.rows * b.rows, 1);
  std::vector<std::uint32_t> columns[2];
  for (auto& each : columns) each.assign(a.k / 32, 0xDEADBEEFu);
  Impl::GatherState gathering{
      {7, 8}, {9, 10}, Gathering::imaged, {11, 12}, {13, 14, 15, 16, 17, 18}, 19};
  using Make = Impl::MakeImages<ModelAtom, Impl::PortableQuantizeAtom>;
  constexpr auto source = Impl::ImageSource::matrix_without_summaries;
  const Make make{{{x.operand, source, {}, {}}, {y.operand, source, {}, {}}},
                  KokkosMX::rules::reference,
                  &gathering};
  run_in_threads(make, make.items());
  const Impl::Epilogue epilogue{
      c.data(), KokkosMX::Impl::element_of<T>(), 0, b.rows, 1, Impl::f32_one, 0u, nullptr, 1};
  const std::int64_t tiles = x.operand.tiles * y.operand.tiles;
  const Impl::ImageGemm<ModelAtom> kernel{
      x.operand,
      y.operand,
      {{x.operand, y.operand}, {columns[0].data(), columns[1].data()}, &gathering},
      false,
      epilogue,
      1,
      a.rows,
      b.rows,
      a.k / 32,
      std::min<std::int64_t>(tiles, 3),
      Impl::bits_of_sum(a.k / 32),
      minimum,
      result.counts.data(),
      OutputType<T>::format.nan() == 0x7FC0 && b.rows % 2 == 0};
  run_in_threads(kernel, kernel.groups);
  result.gathering = gathering.gathering;
  if (result.gathering != Gathering::none) result.shift = gathering.shift;
  result.bits.assign(c.begin(), c.end());
  return result;
}

// Bits and counts of tiers against the oracle; returns what became of the outliers.
template <class T = float>
Gathering check(const HostMatrix& a, const HostMatrix& b, const std::string& name,
                Tier minimum = Tier::automatic) {
  const Result result = run_kernel<T>(a, b, minimum);
  const Bits products = ReferenceProduct(a, b).all();
  expect_equal_bits(expected_output(products, b.rows, {}, OutputType<T>::format), result.bits,
                    b.rows, name + ' ' + shape_text(a, b));
  if (minimum == Tier::automatic) {
    const ExpectedTiers expected = expected_tiers(a, b);
    EXPECT_EQ(result.counts[0], expected.none) << name;
    EXPECT_EQ(result.counts[3], expected.outputs - expected.none - expected.window_certified)
        << name;
  }
  for (int tier = 1; tier < static_cast<int>(minimum); ++tier) {
    EXPECT_EQ(result.counts[tier], 0u) << name;
  }
  return result.gathering;
}

constexpr int ups[] = {4, 7, 9, 30, 45, 60};

// Columns with outliers in either operand or both, in all rows or in some, with no other outliers.
TEST(ImageKernel, OutlierColumns) {
  int done = 0, near = 0, n = 0;
  const auto note = [&](Gathering how) {
    done += how == Gathering::done ? 1 : 0;
    near += how == Gathering::near ? 1 : 0;
  };
  for (const int up : ups) {
    ++n;
    const HostMatrix a = outlier_columns(70, 672, 40, n % 2 == 0 ? 1 : 30, up, 10 * n);
    const HostMatrix b = outlier_columns(66, 672, 60, n % 3 + 1, ups[(n + 3) % 6], 10 * n + 1);
    const HostMatrix plain = random_matrix(66, 672, n, 100, 102);
    const std::string name = "columns " + std::to_string(n);
    note(check(a, b, name));
    note(check<KokkosMX::BFloat16>(a, plain, name));
    note(check<KokkosMX::BFloat16>(plain, b, name));
  }
  EXPECT_GT(done + near, 2 * n);
  EXPECT_GE(done, n);
  EXPECT_GE(near, n / 2);
}

// More columns near the main part than a step has, some of them common.
TEST(ImageKernel, JointColumns) {
  for (const int up : {5, 7}) {
    HostMatrix x[2] = {random_matrix(67, 1024, up, 100, 102), random_matrix(65, 1024, 1, 90, 91)};
    for (HostMatrix& m : x) {
      const int every = &m == x ? 2 : 3;
      for (std::int64_t row = 0; row < m.rows; ++row) {
        for (std::int64_t k = 768; k < m.k; ++k) {
          if (k % 32 == 0) m.scale(row, k / 32) = static_cast<std::uint8_t>(m.scale(row, 0) + up);
          if (k % every != 0) m.set_code(row, k, 0);
        }
      }
    }
    const std::string name = "joint " + std::to_string(up);
    EXPECT_EQ(check(x[0], x[1], name), Gathering::near);
    EXPECT_EQ(check<KokkosMX::BFloat16>(x[0], random_matrix(66, 1024, up, 90, 93), name),
              Gathering::near);
  }
}

// Columns that only one operand has, with outliers farther above the main part than two digits of
// its units reach.
TEST(ImageKernel, ColumnsInLargerUnits) {
  for (const int up : {10, 13}) {
    HostMatrix x[2] = {random_matrix(67, 1024, up, 100, 102), random_matrix(65, 1024, 1, 90, 91)};
    for (HostMatrix& m : x) {
      const std::int64_t first = &m == x ? 0 : 768;
      for (std::int64_t row = 0; row < m.rows; ++row) {
        for (std::int64_t k = first; k < first + 256; ++k) {
          if (k % 32 == 0) m.scale(row, k / 32) = static_cast<std::uint8_t>(m.scale(row, 16) + up);
          if (k % 16 != 5) m.set_code(row, k, 0);
        }
      }
    }
    const std::string name = "larger units " + std::to_string(up);
    EXPECT_EQ(check(x[0], x[1], name), Gathering::near);
    EXPECT_EQ(check<KokkosMX::BFloat16>(x[0], random_matrix(66, 1024, up, 90, 93), name),
              Gathering::near);
  }
}

// A bell, quantized, whose columns are those of golden's data.
TEST(ImageKernel, Bell) {
  for (const int up : {9, 30}) {
    HostMatrix x[2] = {HostMatrix(128, 1024), HostMatrix(64, 1024)};
    for (int i = 0; i < 2; ++i) {
      const std::vector<std::uint16_t> bits = bell(x[i].rows, x[i].k, 21 + i, up);
      for (std::int64_t block = 0; block < x[i].rows * x[i].k / 32; ++block) {
        std::uint8_t codes[16];
        const Impl::BlockResult made = Impl::PortableQuantizeAtom::quantize<Impl::BF16Format>(
            reinterpret_cast<const unsigned char*>(bits.data() + 32 * block), codes,
            KokkosMX::rules::reference);
        x[i].scales[block] = made.scale;
        std::copy(codes, codes + 16, x[i].codes.begin() + 16 * block);
      }
    }
    const Gathering expected = up == 9 ? Gathering::near : Gathering::done;
    EXPECT_EQ(check(x[0], x[1], "bell " + std::to_string(up)), expected);
    EXPECT_EQ(check<KokkosMX::BFloat16>(x[0], x[1], "bell " + std::to_string(up)), expected);
  }
}

// What tells the bits of the sums apart: the same block and columns in both operands, the largest
// codes, both signs, sums that cancel.
TEST(ImageKernel, CommonColumns) {
  for (const int up : {4, 5, 6, 9, 30, 47}) {
    for (const int down : {0, 11}) {
      if (up <= 15 && down != 0) continue;
      Stream stream(up);
      HostMatrix x[2] = {random_matrix(64, 256, up, 120, 121),
                         random_matrix(65, 256, up + 1, 90, 91)};
      for (HostMatrix& m : x) {
        for (std::int64_t row = 0; row < m.rows; ++row) {
          // All of block 3: 32 columns that both have; half of block 5.
          const int base = m.scale(row, 0) + up;
          m.scale(row, 3) = static_cast<std::uint8_t>(base);
          for (int k = 0; k < 32; ++k) {
            m.set_code(row, 96 + k, row % 3 == 0 ? 15 : static_cast<int>(stream.below(16)));
          }
          m.scale(row, 5) = static_cast<std::uint8_t>(base - (up > 15 ? down : 0));
          for (int k = 0; k < 32; ++k) {
            const int code = static_cast<int>(stream.below(16));
            m.set_code(row, 160 + k, &m == x && k % 2 == 0 ? code : 0);
          }
          if (row % 5 == 0) m.scale(row, 3) = 255;
          if (row % 7 == 0) {
            for (int k = 0; k < 256; ++k) m.set_code(row, k, 8);
          }
        }
      }
      EXPECT_EQ(check(x[0], x[1], "common " + std::to_string(up)),
                up == 5 || up == 6 ? Gathering::near : Gathering::done)
          << up;
      if (up == 9) {
        for (const Tier tier : {Tier::aligned, Tier::window, Tier::wide}) {
          check(x[0], x[1], "forced", tier);
        }
      }
    }
  }
}

// Outliers that are nowhere gathered, beside others: blocks anywhere, rows that cannot be split.
TEST(ImageKernel, OutliersAnywhere) {
  int imaged = 0, n = 0;
  for (const int up : ups) {
    const HostMatrix a = make_outliers({.up = up, .block_every = 32}, 65, 512, ++n);
    const HostMatrix b =
        make_outliers({.up = 9, .column_every = 64, .row_every = 2, .wide_every = 9}, 67, 512, ++n);
    const HostMatrix c = make_outliers(
        {.up = up, .column_every = 100, .row_every = 3, .block_every = 50, .near_every = 9}, 66,
        512, ++n);
    const std::string name = "anywhere " + std::to_string(up);
    imaged += check(a, b, name) == Gathering::imaged ? 1 : 0;
    check(b, c, name);
    check<KokkosMX::BFloat16>(a, c, name);
  }
  EXPECT_GT(imaged, 0);
  // Half the blocks.
  const HostMatrix many = lone_outliers(66, 1024, 9, 5);
  EXPECT_EQ(check(many, lone_outliers(3, 1024, 30, 6), "many"), Gathering::imaged);
  EXPECT_EQ(check(random_matrix(3, 1024, 7, 100, 101), many, "many"), Gathering::imaged);
  for (int d = 0; d < data_count; ++d) {
    check(make_data(static_cast<Data>(d), 35, 96, 7), make_data(static_cast<Data>(d), 33, 96, 8),
          "data " + std::to_string(d));
  }
}

// Outliers in blocks anywhere, all of which are some scales the same distance above the main part,
// or nearly so, in rows with NaN and zeros, too.
TEST(ImageKernel, NearOutliers) {
  int near = 0, far = 0;
  for (const int up : {4, 7, 9, 12, 17}) {
    for (const int more : {0, 3, 4}) {
      HostMatrix x[2] = {random_matrix(70, 384, up, 120, 123),
                         random_matrix(67, 384, more, 90, 93)};
      Stream stream(up);
      for (HostMatrix& m : x) {
        for (std::int64_t row = 0; row < m.rows; ++row) {
          m.scale(row, 0) = &m == x ? 120 : 90;  // the least
          m.set_code(row, 0, 7);
          for (std::int64_t block = 2; block < m.k / 32; ++block) {
            const bool is_zero = stream.below(11) == 0;
            for (int k = 0; is_zero && k < 32; ++k) {
              m.set_code(row, 32 * block + k, k % 2 == 0 ? 0 : 8);
            }
            if (stream.below(24) != 0 || row % 8 == 1) continue;
            m.scale(row, block) =
                static_cast<std::uint8_t>(m.scale(row, 0) + up + stream.below(more + 1));
            for (int k = 0; row % 3 == 0 && k < 32; ++k) m.set_code(row, 32 * block + k, 7);
          }
        }
        nan_some(m, 300, up);
        for (int k = 0; k < m.k; ++k) m.set_code(11, k, k % 2 == 0 ? 0 : 8);
      }
      const std::string name = "near " + std::to_string(up) + ' ' + std::to_string(more);
      const Result result = run_kernel<float>(x[0], x[1], Tier::automatic);
      EXPECT_EQ(result.gathering, Gathering::imaged) << name;
      ++(result.shift > 0 ? near : far);
      check(x[0], x[1], name);
      check<KokkosMX::BFloat16>(x[1], x[0], name);
      if (more != 0) continue;
      check<KokkosMX::BFloat16>(x[1], random_matrix(66, 384, 5, 100, 103), name);
    }
  }
  EXPECT_GT(near, 3);
  EXPECT_GT(far, 3);
  // Both have them in more of the same blocks than a tile lists.
  const HostMatrix a = lone_outliers(66, 192, 9, 5), b = lone_outliers(65, 192, 9, 6);
  const Result many = run_kernel<float>(a, b, Tier::automatic);
  EXPECT_EQ(many.gathering, Gathering::imaged);
  EXPECT_GT(many.shift, 0);
  check(a, b, "many");
}

// Every code at every distance of scales is the sum of its parts.
TEST(RowSplit, Parts) {
  for (int base = 0; base < 255; base += 12) {
    for (int out = 0; out < 250; ++out) {
      const RowSplit split{static_cast<std::int16_t>(base), static_cast<std::int16_t>(out), 3};
      for (int scale = 0; scale < 255; ++scale) {
        const Impl::Magnitudes main = Impl::main_magnitudes(scale - base);
        const int least = Impl::least_outlier(scale - base);
        for (int code = 0; code < 16; ++code) {
          const int halves = code_in_halves(code);
          const auto [part, outlier] = Impl::parts_of(code, scale, split);
          const std::uint32_t table = (code & 4) != 0 ? main.high : main.low;
          EXPECT_EQ(static_cast<int>(table >> (8 * (code & 3)) & 255u), part < 0 ? -part : part);
          EXPECT_LE(part * part, 96 * 96);
          if ((code & 7) < least) {
            if (halves != 0) {
              ASSERT_EQ(part, halves * (1 << (scale - base)));
            }
            ASSERT_EQ(outlier, 0);
          } else if (scale >= out && scale <= out + RowSplit::most_shift) {
            const int value = outlier;
            ASSERT_EQ(value, halves * (1 << (scale - out)));
            const int high = Impl::high_digit(value), low = Impl::low_digit(value);
            ASSERT_EQ(256 * high + low, value);
            ASSERT_TRUE(high >= -96 && high <= 96 && low >= -128 && low <= 127);
            ASSERT_EQ(part, 0);
            // In the images of outliers, and in no other's.
            const int in_part = RowSplit::in_part(scale - out);
            const Impl::Magnitudes outliers = Impl::outlier_magnitudes(scale - base);
            const std::uint32_t large = (code & 4) != 0 ? outliers.high : outliers.low;
            const auto element = static_cast<int>((large << in_part) >> (8 * (code & 3)) & 255u);
            ASSERT_LE(element, 96);
            ASSERT_EQ(element << ((scale - out) / RowSplit::part_bits * RowSplit::part_bits),
                      value < 0 ? -value : value);
          }
        }
      }
    }
  }
  Impl::BlockCodes block{};
  for (int i = 0; i < 32; ++i) {
    block.word[i / 8] |= static_cast<std::uint32_t>((5 * i + i / 16) % 16) << (4 * (i % 8));
  }
  for (int least = 1; least <= 8; ++least) {
    for (int i = 0; i < 32; ++i) {
      const bool expected = ((5 * i + i / 16) % 16 & 7) >= least;
      const int at = 4 * (i % 8) + i / 8;
      ASSERT_EQ(Impl::code_of_bit(at), i);
      EXPECT_EQ(Impl::codes_from(block, least) >> at & 1u, expected ? 1u : 0u);
    }
  }
}

// Bounds that round to the same number have the sum between them.
TEST(RowSplit, Bounds) {
  Stream stream(7);
  const auto any = [&]() -> double {
    const int bits = static_cast<int>(stream.below(31));
    const auto x = static_cast<std::int32_t>(stream.below(1u << bits));
    return stream.below(2) == 0 ? x : -x;
  };
  int known = 0;
  constexpr int n = 200000;
  for (int i = 0; i < n; ++i) {
    Impl::SplitState state[2];
    for (Impl::SplitState& side : state) {
      side.lo = static_cast<int>(stream.below(200));
      side.spread = static_cast<int>(stream.below(48));
      side.base = side.lo + static_cast<int>(stream.below(2)) * side.spread;
      side.out = side.lo + static_cast<int>(stream.below(side.spread + 1));
    }
    Impl::SplitSums sums{any(), any(), any(), 4 * any()};
    if (i % 5 == 0) sums.outliers_main = sums.outliers = 0;
    if (i % 7 == 0) sums.main = -sums.main_outliers;
    if (i % 11 == 0) sums.main = 1 << 25 | 1 << 1 | 1;
    const bool is_exact = state[0].spread + state[1].spread <= 0;
    std::uint32_t product;
    const Impl::SplitUnits row = Impl::units_of(state[0].base, state[0].out);
    const Impl::SplitUnits col = Impl::units_of(state[1].base, state[1].out);
    if (!Impl::round_split_sum_in_double(sums, row, col, is_exact, product)) continue;
    ++known;
    ASSERT_EQ(product, Impl::round_split_sum(sums, state[0], state[1])) << i;
  }
  EXPECT_GT(known, n / 2);
  std::cout << "by bounds: " << known << " of " << n << '\n';
}

// The band with the most blocks, and outliers within reach or not.
TEST(RowSplit, Choice) {
  const auto choose = [](const std::vector<std::pair<int, int>>& blocks) {
    Impl::SplitChoice choice{};
    int lo = 255, hi = 0;
    for (const auto& [scale, count] : blocks) {
      lo = std::min(lo, scale);
      hi = std::max(hi, scale);
    }
    for (const auto& [scale, count] : blocks) choice.elements_of[scale - lo] = count;
    constexpr int threads = 32;
    for (int rank = 0; rank < threads; ++rank) choice.rate(rank, threads, hi - lo);
    for (int rank = 0; rank < threads; ++rank) choice.reach(rank, threads, hi - lo);
    const RowSplit split = choice.split(lo);
    const int range = split.out == RowSplit::is_rest ? 0 : split.parts();
    return std::array<int, 3>{split.base, split.out, range};
  };
  using Choice = std::array<int, 3>;
  EXPECT_EQ(choose({{100, 5}, {101, 2}, {109, 1}}), (Choice{100, 109, 1}));
  EXPECT_EQ(choose({{100, 1}, {107, 5}, {110, 5}}), (Choice{107, 100, 1}));
  EXPECT_EQ(choose({{100, 1}, {107, 5}, {114, 1}}), (Choice{104, RowSplit::is_rest, 0}));
  EXPECT_EQ(choose({{0, 1}, {2, 5}, {6, 1}, {11, 1}}), (Choice{0, 6, 2}));
  // The lowest band where it has nearly as many.
  EXPECT_EQ(choose({{100, 1}, {101, 20}, {104, 2}}), (Choice{100, 104, 1}));
  EXPECT_EQ(choose({{100, 1}, {101, 20}, {104, 3}}), (Choice{101, 100, 1}));
  EXPECT_EQ(choose({{200, 3}, {243, 1}, {254, 1}}), (Choice{200, 243, 3}));
  EXPECT_EQ(choose({{200, 3}, {242, 1}, {254, 1}}), (Choice{200, RowSplit::is_rest, 0}));
}

}  // namespace
