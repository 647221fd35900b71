// SPDX-License-Identifier: Apache-2.0
// Shuffling codes and scales, preparing operands, and back. GB/s counts the bytes that are read and
// written; the fraction of what all threads reach that copy as many bytes says how much the
// permutation costs.

#include <KokkosMX.hpp>

#include <Kokkos_Core.hpp>

#include <cstdint>
#include <string>

#include "BenchmarkMain.hpp"
#include "PerfSupport.hpp"

namespace KokkosMXPerf {
namespace {

using KokkosMX::RowMajor;
using KokkosMX::Tile16x16;
using KokkosMX::Tile32x8;
template <class Layout>
using OutCodes = KokkosMX::Codes<Layout, Space, std::uint8_t>;
template <class Layout>
using OutScales = KokkosMX::Scales<Layout, Space, std::uint8_t>;

struct Extents {
  const char* name;
  std::int64_t rows, k;
};

Matrix2<std::uint8_t> bytes_like(std::int64_t rows, std::int64_t cols) {
  Matrix2<std::uint8_t> view("KokkosMXPerf: bytes", rows, cols);
  Kokkos::deep_copy(view, 0x35);
  return view;
}
template <class Layout>
Matrix2<std::uint8_t> scales_like(const Extents& extents) {
  const auto shape = KokkosMX::scales_shape<Layout>(extents.rows, extents.k);
  return bytes_like(shape.rows, shape.cols);
}

void add_weight(const Extents& extents) {
  const auto add = [&](const std::string& what, bool back) {
    add_benchmark(what + "/" + extents.name, [=](const Exec& exec, benchmark::State& state) {
      const auto plain_bytes = bytes_like(extents.rows, extents.k / 2);
      const auto tiled_bytes = bytes_like(extents.rows, extents.k / 2);
      const OutCodes<RowMajor> plain(plain_bytes);
      const OutCodes<Tile16x16> tiled(tiled_bytes);
      const auto bytes = static_cast<double>(plain_bytes.size() + tiled_bytes.size());
      report_bandwidth<CopyPass>(exec, state, bytes, [&] {
        if (back) {
          KokkosMX::unshuffle_weight(exec, tiled, plain);
        } else {
          KokkosMX::shuffle_weight(exec, plain, tiled);
        }
      });
    });
  };
  add("shuffle_weight", false);
  add("unshuffle_weight", true);
}

void add_scale(const Extents& extents) {
  const auto add = [&](const std::string& what, bool back) {
    add_benchmark(what + "/" + extents.name, [=](const Exec& exec, benchmark::State& state) {
      const auto plain_bytes = scales_like<RowMajor>(extents);
      const auto tiled_bytes = scales_like<Tile32x8>(extents);
      const OutScales<RowMajor> plain(plain_bytes);
      const OutScales<Tile32x8> tiled(tiled_bytes);
      const auto bytes = static_cast<double>(plain_bytes.size() + tiled_bytes.size());
      report_bandwidth<CopyPass>(exec, state, bytes, [&] {
        if (back) {
          KokkosMX::unshuffle_scale(exec, tiled, plain);
        } else {
          KokkosMX::shuffle_scale(exec, plain, tiled);
        }
      });
    });
  };
  add("shuffle_scale", false);
  add("unshuffle_scale", true);
}

void add_prepare(const Extents& extents) {
  const auto add = [&](const std::string& what, bool back) {
    add_benchmark(what + "/" + extents.name, [=](const Exec& exec, benchmark::State& state) {
      using Prepared = KokkosMX::MatrixStorage<KokkosMX::Tile16x128, KokkosMX::Tile16x4, Space>;
      using Plain = KokkosMX::MatrixStorage<RowMajor, RowMajor, Space>;
      const Plain plain("KokkosMXPerf: plain", extents.rows, extents.k);
      const Prepared prepared("KokkosMXPerf: prepared", extents.rows, extents.k);
      double bytes = 0;
      const auto fill = [&](const auto& storage) {
        Kokkos::deep_copy(storage.codes(), 0x35);
        Kokkos::deep_copy(storage.scales(), 0x7F);
        KokkosMX::summarize(exec, storage.matrix(), storage.summaries());
        bytes += static_cast<double>(storage.codes().size() + storage.scales().size() +
                                     storage.summaries().size() * sizeof(KokkosMX::RowSummary));
      };
      fill(plain);
      fill(prepared);
      report_bandwidth<CopyPass>(exec, state, bytes, [&] {
        if (back) {
          KokkosMX::unprepare(exec, prepared.matrix(), plain.matrix());
        } else {
          KokkosMX::prepare(exec, plain.matrix(), prepared.matrix());
        }
      });
    });
  };
  add("prepare", false);
  add("unprepare", true);
}

void add_all(const BenchmarkOptions&, const Exec&) {
  // Read and written: 1 MiB, 16 MiB, 256 MiB; the largest B of the leaderboard.
  for (const Extents& extents :
       {Extents{"L2", 1024, 1024}, Extents{"L3", 4096, 4096}, Extents{"memory", 16384, 16384},
        Extents{"leaderboard_2112x7168", 2112, 7168},
        Extents{"leaderboard_7168x2048", 7168, 2048}}) {
    add_weight(extents);
    add_prepare(extents);
  }
  for (const Extents& extents :
       {Extents{"L2", 4096, 4096}, Extents{"L3", 16384, 16384}, Extents{"memory", 32768, 65536},
        Extents{"leaderboard_2112x7168", 2112, 7168}}) {
    add_scale(extents);
  }
}

}  // namespace
}  // namespace KokkosMXPerf

int main(int argc, char** argv) {
  return KokkosMXPerf::benchmark_main(argc, argv, KokkosMXPerf::add_all);
}
