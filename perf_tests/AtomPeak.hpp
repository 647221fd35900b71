// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_PERF_ATOM_PEAK_HPP
#define KOKKOSMX_PERF_ATOM_PEAK_HPP

/// \file AtomPeak.hpp
/// The most that the GEMM's arithmetic can reach on this machine, measured: products of int16
/// numbers summed in int32, as plain loops over operands in L1, compiled for the instructions that
/// the atom in use is compiled for.

#include <KokkosMX.hpp>

#include <Kokkos_Core.hpp>

#include <algorithm>
#include <cstdint>
#include <string>

#include "PerfSupport.hpp"

namespace KokkosMXPerf {

struct AtomPeak {
  /// Operations a second of all threads, a multiply-add being two; 0 where it is not known.
  double rate = 0;
  std::string what = "not known";
};

namespace Impl {

/// Tiles of M x N dot products of this length: 8 rows of int16 are 8 KiB.
inline constexpr int peak_length = 512;

struct PeakOperands {
  alignas(64) std::int16_t a[4 * peak_length];
  alignas(64) std::int16_t b[4 * peak_length];
};

template <int M, int N>
__attribute__((always_inline)) inline void peak_loop(const PeakOperands& operands,
                                                     std::int32_t* sums) {
  std::int32_t sum[M][N] = {};
  for (int k = 0; k < peak_length; ++k) {
    for (int i = 0; i < M; ++i) {
      for (int j = 0; j < N; ++j) {
        sum[i][j] += static_cast<std::int32_t>(operands.a[i * peak_length + k]) *
                     operands.b[j * peak_length + k];
      }
    }
  }
  for (int i = 0; i < M * N; ++i) sums[i] += sum[i / N][i % N];
}

template <int M, int N>
struct BaselineTile {
  static constexpr int m = M, n = N;
  __attribute__((noinline)) static void multiply_add(const PeakOperands& operands,
                                                     std::int32_t* sums) {
    peak_loop<M, N>(operands, sums);
  }
};
#if defined(__x86_64__)
template <int M, int N>
struct Avx2Tile {
  static constexpr int m = M, n = N;
  __attribute__((noinline, target("avx2"))) static void multiply_add(const PeakOperands& operands,
                                                                     std::int32_t* sums) {
    peak_loop<M, N>(operands, sums);
  }
};
#endif

/// Operations a second of all threads, each on a tile of its own.
template <class Tile>
double tile_rate(const Exec& exec) {
  constexpr int tiles = 40000 / (Tile::m * Tile::n);
  const int threads = exec.concurrency();
  const Kokkos::View<std::int32_t*, Space> sink("KokkosMXPerf: sink",
                                                static_cast<std::size_t>(threads));
  const auto go = [&] {
    Kokkos::parallel_for("KokkosMXPerf::peak", Kokkos::RangePolicy<Exec>(exec, 0, threads),
                         [=](int thread) {
                           PeakOperands operands;
                           for (int i = 0; i < 4 * peak_length; ++i) {
                             operands.a[i] = static_cast<std::int16_t>(i % 7 - 3);
                             operands.b[i] = static_cast<std::int16_t>(i % 5 - 2);
                           }
                           std::int32_t sums[Tile::m * Tile::n] = {};
                           for (int tile = 0; tile < tiles; ++tile)
                             Tile::multiply_add(operands, sums);
                           for (const std::int32_t sum : sums) sink(thread) += sum;
                         });
  };
  go();
  double best = seconds_of(exec, go);
  for (int i = 0; i < 9; ++i) best = std::min(best, seconds_of(exec, go));
  return 2.0 * Tile::m * Tile::n * peak_length * tiles * threads / best;
}

/// The best over several shapes of the tile.
template <template <int, int> class Tile>
double best_tile_rate(const Exec& exec) {
  return std::max({tile_rate<Tile<1, 1>>(exec), tile_rate<Tile<2, 2>>(exec),
                   tile_rate<Tile<2, 4>>(exec), tile_rate<Tile<4, 4>>(exec)});
}
}  // namespace Impl

/// Of the atom that exec's products run on.
inline AtomPeak atom_peak([[maybe_unused]] const Exec& exec) {
  if constexpr (on_host) {
    const std::string loops = "int16 products summed in int32, plain loops over L1";
#if defined(__x86_64__)
    if (std::string(KokkosMX::gemm_atom(exec)).rfind("avx2", 0) == 0) {
      return {Impl::best_tile_rate<Impl::Avx2Tile>(exec), loops + ", AVX2"};
    }
#endif
    return {Impl::best_tile_rate<Impl::BaselineTile>(exec), loops};
  } else {
    return {};
  }
}

}  // namespace KokkosMXPerf

#endif
