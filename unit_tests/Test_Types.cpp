// SPDX-License-Identifier: Apache-2.0

// Types: sizes and constants, what converts into what and what does not, views of other libraries'
// half types, storage.

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
using KokkosMX::Codes;
using KokkosMX::Float16;
using KokkosMX::Matrix;
using KokkosMX::MatrixStorage;
using KokkosMX::RowMajor;
using KokkosMX::RowSummary;
using KokkosMX::Scales;
using KokkosMX::Tile16x128;
using KokkosMX::Tile16x16;
using KokkosMX::Tile16x4;
using KokkosMX::Tile32x8;

using Byte = std::uint8_t;
using ConstByte = const std::uint8_t;

// What the types refuse to convert, here by traits; the sentences are in compile_fail.
static_assert(sizeof(BFloat16) == 2 && alignof(BFloat16) == 2);
static_assert(sizeof(Float16) == 2 && alignof(Float16) == 2);
static_assert(sizeof(RowSummary) == 16);
static_assert(std::is_trivially_copyable_v<BFloat16> && std::is_trivially_copyable_v<Float16> &&
              std::is_trivially_copyable_v<RowSummary>);
static_assert(KokkosMX::block_size == 32 && KokkosMX::block_bytes == 16);

static_assert(std::is_constructible_v<Codes<RowMajor, Space>, Codes<RowMajor, Space, Byte>>);
static_assert(!std::is_constructible_v<Codes<RowMajor, Space, Byte>, Codes<RowMajor, Space>>);
static_assert(!std::is_constructible_v<Codes<RowMajor, Space>, Codes<Tile16x16, Space>>);
static_assert(!std::is_constructible_v<Codes<Tile16x16, Space>, Codes<RowMajor, Space>>);
static_assert(!std::is_assignable_v<Codes<RowMajor, Space>&, Codes<Tile16x16, Space>>);
static_assert(std::is_constructible_v<Scales<Tile32x8, Space>, Scales<Tile32x8, Space, Byte>>);
static_assert(!std::is_constructible_v<Scales<RowMajor, Space>, Scales<Tile32x8, Space>>);
static_assert(!std::is_constructible_v<Scales<Tile32x8, Space>, Scales<RowMajor, Space>>);
static_assert(std::is_constructible_v<Codes<Tile16x128, Space>, Codes<Tile16x128, Space, Byte>>);
static_assert(!std::is_constructible_v<Codes<Tile16x128, Space>, Codes<RowMajor, Space>>);
static_assert(!std::is_constructible_v<Codes<Tile16x16, Space>, Codes<Tile16x128, Space>>);
static_assert(!std::is_constructible_v<Scales<Tile16x4, Space>, Scales<Tile32x8, Space>>);
// A View becomes codes or scales only where it is said.
static_assert(!std::is_convertible_v<View2<Byte>, Codes<RowMajor, Space>>);
static_assert(!std::is_convertible_v<View2<Byte>, Scales<RowMajor, Space>>);

template <class CL, class SL, class B>
using M = Matrix<CL, SL, Space, B>;
static_assert(std::is_convertible_v<M<RowMajor, RowMajor, Byte>, M<RowMajor, RowMajor, ConstByte>>);
static_assert(
    !std::is_constructible_v<M<RowMajor, RowMajor, Byte>, M<RowMajor, RowMajor, ConstByte>>);
static_assert(
    !std::is_constructible_v<M<RowMajor, RowMajor, ConstByte>, M<Tile16x16, RowMajor, ConstByte>>);
static_assert(
    !std::is_constructible_v<M<RowMajor, RowMajor, ConstByte>, M<RowMajor, Tile32x8, ConstByte>>);
static_assert(
    !std::is_assignable_v<M<RowMajor, RowMajor, ConstByte>&, M<Tile16x16, Tile32x8, Byte>>);
static_assert(std::is_copy_constructible_v<M<RowMajor, RowMajor, Byte>> &&
              std::is_copy_assignable_v<M<RowMajor, RowMajor, Byte>> &&
              std::is_copy_constructible_v<M<Tile16x16, Tile32x8, ConstByte>> &&
              std::is_copy_assignable_v<M<Tile16x16, Tile32x8, ConstByte>>);

TEST(Types, ScalesShape) {
  using KokkosMX::scales_shape;
  struct Case {
    std::int64_t rows, k, padded_rows, padded_cols;
  };
  for (const Case& c :
       {Case{0, 0, 0, 0}, Case{1, 32, 256, 8}, Case{256, 256, 256, 8}, Case{257, 288, 512, 16},
        Case{40, 384, 256, 16}, Case{1, 0, 256, 0}, Case{0, 32, 0, 8}, Case{7168, 2048, 7168, 64},
        Case{std::int64_t{1} << 33, 64, std::int64_t{1} << 33, 8}}) {
    EXPECT_EQ(scales_shape<RowMajor>(c.rows, c.k).rows, c.rows);
    EXPECT_EQ(scales_shape<RowMajor>(c.rows, c.k).cols, c.k / 32);
    EXPECT_EQ(scales_shape<Tile32x8>(c.rows, c.k).rows, c.padded_rows);
    EXPECT_EQ(scales_shape<Tile32x8>(c.rows, c.k).cols, c.padded_cols);
  }
  static_assert(scales_shape<Tile32x8>(1, 32).rows == 256);
}

TEST(Types, ShapesOfPreparedOperands) {
  using KokkosMX::codes_shape;
  using KokkosMX::scales_shape;
  struct Case {
    std::int64_t rows, k, padded_rows, padded_k;
  };
  for (const Case& c :
       {Case{0, 0, 0, 0}, Case{1, 32, 16, 128}, Case{16, 128, 16, 128}, Case{17, 160, 32, 256},
        Case{15, 96, 16, 128}, Case{1, 0, 16, 0}, Case{0, 32, 0, 128}, Case{7168, 1056, 7168, 1152},
        Case{std::int64_t{1} << 33, 64, std::int64_t{1} << 33, 128}}) {
    EXPECT_EQ(codes_shape<RowMajor>(c.rows, c.k).rows, c.rows);
    EXPECT_EQ(codes_shape<RowMajor>(c.rows, c.k).bytes, c.k / 2);
    EXPECT_EQ(codes_shape<Tile16x16>(c.rows, c.k).rows, c.rows);
    EXPECT_EQ(codes_shape<Tile16x16>(c.rows, c.k).bytes, c.k / 2);
    EXPECT_EQ(codes_shape<Tile16x128>(c.rows, c.k).rows, c.padded_rows);
    EXPECT_EQ(codes_shape<Tile16x128>(c.rows, c.k).bytes, c.padded_k / 2);
    EXPECT_EQ(scales_shape<Tile16x4>(c.rows, c.k).rows, c.padded_rows);
    EXPECT_EQ(scales_shape<Tile16x4>(c.rows, c.k).cols, c.padded_k / 32);
  }
  static_assert(codes_shape<Tile16x128>(1, 32).bytes == 64);
}

// Codes, scales and summaries of a prepared operand take 4.5 bits an element at most.
TEST(Types, PreparedOperandsTakeFourAndAHalfBits) {
  for (const std::int64_t rows : {16, 48, 2112}) {
    for (const std::int64_t k : {512, 640, 1024, 7168}) {
      const MatrixStorage<Tile16x128, Tile16x4, Space> storage("weights", rows, k);
      const std::size_t bytes = storage.codes().size() + storage.scales().size() +
                                storage.summaries().size() * sizeof(RowSummary);
      EXPECT_LE(2 * 8 * bytes, 9 * static_cast<std::size_t>(rows * k)) << rows << " x " << k;
    }
  }
}

TEST(Types, PreparedCodesTellTheirExtents) {
  const Placed<Byte> buffer(3, 32, 128), scales_buffer(3, 32, 8);
  const Codes<Tile16x128, Space, Byte> codes(buffer.view3(), 17, 160);
  const Codes<Tile16x128, Space> read_only = codes;
  for (const auto& x : {read_only, Codes<Tile16x128, Space>(codes)}) {
    EXPECT_EQ(x.batch(), 3);
    EXPECT_EQ(x.rows(), 17);
    EXPECT_EQ(x.cols(), 160);
  }
  const M<Tile16x128, Tile16x4, Byte> matrix(codes,
                                             Scales<Tile16x4, Space, Byte>(scales_buffer.view3()));
  const M<Tile16x128, Tile16x4, ConstByte> const_matrix = matrix;
  EXPECT_EQ(const_matrix.batch(), 3);
  EXPECT_EQ(const_matrix.rows(), 17);
  EXPECT_EQ(const_matrix.cols(), 160);
  EXPECT_EQ(const_matrix.scales().rows(), 32);
  EXPECT_EQ(const_matrix.scales().cols(), 8);
}

TEST(Types, CodesAndScalesTellTheirExtents) {
  const Placed<Byte> buffer(3, 5, 48);
  const Codes codes(buffer.view3());
  EXPECT_EQ(codes.batch(), 3);
  EXPECT_EQ(codes.rows(), 5);
  EXPECT_EQ(codes.cols(), 96);
  static_assert(std::is_same_v<decltype(codes), const Codes<RowMajor, Space, Byte>>);
  const Codes read_only(buffer.const_view2());
  EXPECT_EQ(read_only.batch(), 1);
  EXPECT_EQ(read_only.rows(), 5);
  EXPECT_EQ(read_only.cols(), 96);
  static_assert(std::is_same_v<decltype(read_only), const Codes<RowMajor, Space, ConstByte>>);
  const Scales scales(buffer.view3());
  EXPECT_EQ(scales.batch(), 3);
  EXPECT_EQ(scales.rows(), 5);
  EXPECT_EQ(scales.cols(), 48);
  static_assert(std::is_same_v<decltype(scales), const Scales<RowMajor, Space, Byte>>);
}

TEST(Types, MatrixOfAllSorts) {
  const PlacedMatrix<RowMajor, RowMajor> q(2, 7, 96);
  const Matrix writable(Codes(q.codes.view3()), Scales(q.scales.view3()));
  static_assert(std::is_same_v<decltype(writable), const M<RowMajor, RowMajor, Byte>>);
  EXPECT_FALSE(writable.has_summaries());
  const Matrix with_summaries(Codes(q.codes.view3()), Scales(q.scales.view3()),
                              q.summaries.column());
  EXPECT_TRUE(with_summaries.has_summaries());
  const M<RowMajor, RowMajor, ConstByte> read_only = with_summaries;
  EXPECT_TRUE(read_only.has_summaries());
  EXPECT_EQ(read_only.batch(), 2);
  EXPECT_EQ(read_only.rows(), 7);
  EXPECT_EQ(read_only.cols(), 96);
  EXPECT_EQ(read_only.codes().cols(), 96);
  EXPECT_EQ(read_only.scales().cols(), 3);
  M<RowMajor, RowMajor, Byte> copy = writable;
  EXPECT_FALSE(copy.has_summaries());
  copy = with_summaries;
  EXPECT_TRUE(copy.has_summaries());
}

TEST(Types, MatrixStorage) {
  MatrixStorage<Tile16x16, Tile32x8, Space> storage("weights", 32, 128, 3);
  EXPECT_EQ(storage.codes().label(), "weights: codes");
  EXPECT_EQ(storage.codes().extent(0), 3u);
  EXPECT_EQ(storage.codes().extent(1), 32u);
  EXPECT_EQ(storage.codes().extent(2), 64u);
  EXPECT_EQ(storage.scales().extent(0), 3u);
  EXPECT_EQ(storage.scales().extent(1), 256u);
  EXPECT_EQ(storage.scales().extent(2), 8u);
  EXPECT_EQ(storage.summaries().extent(0), 3u);
  EXPECT_EQ(storage.summaries().extent(1), 32u);
  const auto matrix = storage.matrix();
  EXPECT_EQ(matrix.batch(), 3);
  EXPECT_EQ(matrix.rows(), 32);
  EXPECT_EQ(matrix.cols(), 128);
  EXPECT_TRUE(matrix.has_summaries());
  const MatrixStorage<RowMajor, RowMajor, Space> one("one", 5, 64);
  EXPECT_EQ(one.matrix().batch(), 1);
  EXPECT_EQ(one.scales().extent(1), 5u);
  EXPECT_EQ(one.scales().extent(2), 2u);
  const MatrixStorage<Tile16x128, Tile16x4, Space> prepared("prepared", 17, 160, 2);
  EXPECT_EQ(prepared.codes().extent(0), 2u);
  EXPECT_EQ(prepared.codes().extent(1), 32u);
  EXPECT_EQ(prepared.codes().extent(2), 128u);
  EXPECT_EQ(prepared.scales().extent(1), 32u);
  EXPECT_EQ(prepared.scales().extent(2), 8u);
  EXPECT_EQ(prepared.summaries().extent(1), 17u);
  EXPECT_EQ(prepared.matrix().batch(), 2);
  EXPECT_EQ(prepared.matrix().rows(), 17);
  EXPECT_EQ(prepared.matrix().cols(), 160);
}

TEST(Types, Reinterpret) {
  const Placed<std::uint16_t> buffer(2, 3, 4, Placement{1, 2, 3});
  const auto rank3 = KokkosMX::reinterpret<BFloat16>(buffer.view3());
  static_assert(std::is_same_v<decltype(rank3)::value_type, BFloat16>);
  EXPECT_EQ(static_cast<const void*>(rank3.data()), buffer.data());
  for (int d = 0; d < 3; ++d) {
    EXPECT_EQ(rank3.extent(d), buffer.view3().extent(d));
    EXPECT_EQ(rank3.stride(d), buffer.view3().stride(d));
  }
  const auto rank2 = KokkosMX::reinterpret<Float16>(buffer.const_view2());
  static_assert(std::is_same_v<decltype(rank2)::value_type, const Float16>);
  EXPECT_EQ(rank2.stride(0), 6u);
  EXPECT_EQ(rank2.extent(1), 4u);
  const Kokkos::View<std::uint16_t*, Kokkos::LayoutStride, Space,
                     Kokkos::MemoryTraits<Kokkos::Unmanaged>>
      every_other(buffer.data(), Kokkos::LayoutStride(3, 2));
  const auto rank1 = KokkosMX::reinterpret<BFloat16>(every_other);
  EXPECT_EQ(rank1.extent(0), 3u);
  EXPECT_EQ(rank1.stride(0), 2u);
  // Between the library's own types, LayoutRight and LayoutLeft.
  const Kokkos::View<Float16**, Kokkos::LayoutRight, Space> right("right", 5, 7);
  EXPECT_EQ(KokkosMX::reinterpret<BFloat16>(right).stride(0), 7u);
  const Kokkos::View<Float16**, Kokkos::LayoutLeft, Space> left("left", 5, 7);
  EXPECT_EQ(KokkosMX::reinterpret<BFloat16>(left).stride(1), 5u);
  // Kokkos' half types, where they have 2 bytes.
  const auto from_kokkos = [](auto half) {
    using Half = decltype(half);
    if constexpr (sizeof(Half) == 2) {
      const Kokkos::View<Half**, Kokkos::LayoutRight, Space> view("half", 2, 32);
      EXPECT_EQ(static_cast<const void*>(KokkosMX::reinterpret<BFloat16>(view).data()),
                static_cast<const void*>(view.data()));
    }
  };
  from_kokkos(Kokkos::Experimental::half_t{});
  from_kokkos(Kokkos::Experimental::bhalf_t{});
}

TEST(Types, Rules) {
  using namespace KokkosMX;
  constexpr QuantizeRule rule(ScaleMode::rceil, Rounding::ties_up, NonFinite::ocp);
  static_assert(rule.scale_mode() == ScaleMode::rceil);
  static_assert(rule.rounding() == Rounding::ties_up);
  static_assert(rule.non_finite() == NonFinite::ocp);
  static_assert(rule == rule && !(rule == rules::rceil) && !(rule == rules::reference));
  static_assert(tier_count == 4);
  EXPECT_EQ(static_cast<int>(Tier::wide), tier_count - 1);
}

TEST(Types, Workspace) {
  using KokkosMX::Workspace;
  const Workspace<Space> none;
  EXPECT_EQ(none.data(), nullptr);
  EXPECT_EQ(none.bytes(), 0u);
  const Kokkos::View<double*, Space> view("workspace", 10);
  const Workspace workspace(view);
  static_assert(std::is_same_v<decltype(workspace), const Workspace<Space>>);
  EXPECT_EQ(workspace.data(), view.data());
  EXPECT_EQ(workspace.bytes(), 80u);
}

}  // namespace
}  // namespace KokkosMXTest
