// SPDX-License-Identifier: Apache-2.0

// Every call before Kokkos is initialized and after it is finalized: std::logic_error, and nothing
// written. A program of its own, for Kokkos is initialized once in a process.

#include <gtest/gtest.h>

#include "Compare.hpp"

#include <KokkosMX.hpp>
#include <Kokkos_Core.hpp>

#include <array>
#include <cstdint>
#include <stdexcept>

namespace KokkosMXTest {
namespace {

using Exec = Kokkos::DefaultHostExecutionSpace;
using Space = Kokkos::HostSpace;
template <class T>
using View = Kokkos::View<T, Kokkos::LayoutRight, Space, Kokkos::MemoryTraits<Kokkos::Unmanaged>>;
using KokkosMX::Tile16x128;
using KokkosMX::Tile16x16;
using KokkosMX::Tile16x4;
using KokkosMX::Tile32x8;

struct Memory {
  Memory() {
    dense.fill(1.0f);
    c.fill(7.0f);
    codes.fill(0x5A);
    scales.fill(0x5A);
    tiled_codes.fill(0x5A);
    tiled_scales.fill(0x5A);
    prepared_codes.fill(0x5A);
    prepared_scales.fill(0x5A);
    summaries.fill({77, 7, 7, 7, {}});
  }
  bool untouched() const {
    bool same = true;
    for (const float x : dense) same = same && x == 1.0f;
    for (const float x : c) same = same && x == 7.0f;
    for (const std::uint8_t x : codes) same = same && x == 0x5A;
    for (const std::uint8_t x : scales) same = same && x == 0x5A;
    for (const std::uint8_t x : tiled_codes) same = same && x == 0x5A;
    for (const std::uint8_t x : tiled_scales) same = same && x == 0x5A;
    for (const std::uint8_t x : prepared_codes) same = same && x == 0x5A;
    for (const std::uint8_t x : prepared_scales) same = same && x == 0x5A;
    for (const KokkosMX::RowSummary& x : summaries) same = same && x.n == 77;
    return same;
  }

  std::array<float, 16 * 64> dense;
  std::array<float, 16 * 16> c;
  std::array<std::uint8_t, 16 * 32> codes, tiled_codes;
  std::array<std::uint8_t, 16 * 2> scales;
  std::array<std::uint8_t, 256 * 8> tiled_scales;
  std::array<std::uint8_t, 16 * 64> prepared_codes;
  std::array<std::uint8_t, 16 * 4> prepared_scales;
  std::array<KokkosMX::RowSummary, 16> summaries;
};

void every_call_is_refused(Memory& memory) {
  const Exec exec;
  const View<float**> x(memory.dense.data(), 16, 64);
  const View<float**> c(memory.c.data(), 16, 16);
  const KokkosMX::Codes codes(View<std::uint8_t**>(memory.codes.data(), 16, 32));
  const KokkosMX::Scales scales(View<std::uint8_t**>(memory.scales.data(), 16, 2));
  const KokkosMX::Codes<Tile16x16, Space, std::uint8_t> tiled_codes(
      View<std::uint8_t**>(memory.tiled_codes.data(), 16, 32));
  const KokkosMX::Scales<Tile32x8, Space, std::uint8_t> tiled_scales(
      View<std::uint8_t**>(memory.tiled_scales.data(), 256, 8));
  const KokkosMX::Matrix prepared(
      KokkosMX::Codes<Tile16x128, Space, std::uint8_t>(
          View<std::uint8_t**>(memory.prepared_codes.data(), 16, 64), 16, 64),
      KokkosMX::Scales<Tile16x4, Space, std::uint8_t>(
          View<std::uint8_t**>(memory.prepared_scales.data(), 16, 4)));
  const View<KokkosMX::RowSummary*> summaries(memory.summaries.data(), 16);
  const KokkosMX::Matrix q(codes, scales);
  const KokkosMX::Workspace<Space> workspace;
  const KokkosMX::QuantizeRule rule = KokkosMX::rules::reference;

  const auto refuses = [](const auto& call, const char* function) {
    EXPECT_TRUE(throws_saying<std::logic_error>(call, {function, "Kokkos is not initialized"}));
    // Not of the kind that bad arguments throw.
    EXPECT_FALSE(throws_saying<std::invalid_argument>(call, {}));
  };
  refuses([&] { KokkosMX::quantize(exec, x, q, rule); }, "quantize");
  refuses([&] { KokkosMX::dequantize(exec, q, x); }, "dequantize");
  refuses([&] { KokkosMX::summarize(exec, q, summaries); }, "summarize");
  refuses([&] { KokkosMX::shuffle_weight(exec, codes, tiled_codes); }, "shuffle_weight");
  refuses([&] { KokkosMX::unshuffle_weight(exec, tiled_codes, codes); }, "unshuffle_weight");
  refuses([&] { KokkosMX::shuffle_scale(exec, scales, tiled_scales); }, "shuffle_scale");
  refuses([&] { KokkosMX::unshuffle_scale(exec, tiled_scales, scales); }, "unshuffle_scale");
  refuses([&] { KokkosMX::prepare(exec, q, prepared); }, "KokkosMX::prepare");
  refuses([&] { KokkosMX::unprepare(exec, prepared, q); }, "KokkosMX::unprepare");
  refuses([&] { KokkosMX::gemm(exec, workspace, q, q, c); }, "gemm");
  refuses([&] { KokkosMX::quantize_gemm(exec, workspace, x, x, c, rule); }, "gemm");
  EXPECT_TRUE(memory.untouched());
}

TEST(NotInitialized, Before) {
  ASSERT_FALSE(Kokkos::is_initialized());
  Memory memory;
  every_call_is_refused(memory);
}

TEST(NotInitialized, AfterFinalize) {
  Memory memory;
  Kokkos::initialize();
  {
    // In between the same arguments are right.
    const Exec exec;
    const KokkosMX::Matrix q(KokkosMX::Codes(View<std::uint8_t**>(memory.codes.data(), 16, 32)),
                             KokkosMX::Scales(View<std::uint8_t**>(memory.scales.data(), 16, 2)));
    const View<float**> x(memory.dense.data(), 16, 64);
    EXPECT_NO_THROW(KokkosMX::quantize(exec, x, q, KokkosMX::rules::reference));
    exec.fence();
    EXPECT_FALSE(memory.untouched());
  }
  Kokkos::finalize();
  memory = Memory();
  ASSERT_TRUE(Kokkos::is_finalized());
  every_call_is_refused(memory);
}

}  // namespace
}  // namespace KokkosMXTest

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
