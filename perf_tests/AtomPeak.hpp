// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_PERF_ATOM_PEAK_HPP
#define KOKKOSMX_PERF_ATOM_PEAK_HPP

/// \file AtomPeak.hpp
/// The most that the GEMM's arithmetic can reach on this machine, measured: the instruction that
/// the atom in use multiplies with, by all threads, from registers alone and with as many
/// accumulators as hide its latency. For the portable atom: products of int16 numbers summed in
/// int32, as plain loops over operands in L1, compiled for what the build is compiled for.

#include <KokkosMX.hpp>

#include <Kokkos_Core.hpp>

#include <algorithm>
#include <cstdint>
#include <string>

#include "PerfSupport.hpp"

// Compilers for devices do not take the targets of host instructions.
#if defined(__x86_64__) && !defined(__CUDACC__) && !defined(__HIPCC__)
#define KOKKOSMX_PERF_HAVE_X86 1
#include <cpuid.h>
#include <immintrin.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#else
#define KOKKOSMX_PERF_HAVE_X86 0
#endif

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

#if KOKKOSMX_PERF_HAVE_X86

/// An instruction in a loop, by one thread.
struct PeakLoop {
  bool runs = false;  ///< the processor has it
  const char* what = "";
  double operations_a_step = 0;
  int steps = 0;  ///< of some milliseconds
  void (*run)(int steps) = nullptr;
};

// The steps are written out, so that nothing but these instructions and the loop is measured.
__attribute__((noinline, target("avx2"))) inline void avx2_peak(int steps) {
  const __m256i a = _mm256_set1_epi16(3), b = _mm256_set1_epi16(-2);
  __m256i s0 = _mm256_setzero_si256(), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0,
          s7 = s0, t0, t1;
  for (int step = 0; step < steps; ++step) {
    asm volatile(
        "vpmaddwd %[b], %[a], %[t0]\n\tvpaddd %[t0], %0, %0\n\t"
        "vpmaddwd %[b], %[a], %[t1]\n\tvpaddd %[t1], %1, %1\n\t"
        "vpmaddwd %[b], %[a], %[t0]\n\tvpaddd %[t0], %2, %2\n\t"
        "vpmaddwd %[b], %[a], %[t1]\n\tvpaddd %[t1], %3, %3\n\t"
        "vpmaddwd %[b], %[a], %[t0]\n\tvpaddd %[t0], %4, %4\n\t"
        "vpmaddwd %[b], %[a], %[t1]\n\tvpaddd %[t1], %5, %5\n\t"
        "vpmaddwd %[b], %[a], %[t0]\n\tvpaddd %[t0], %6, %6\n\t"
        "vpmaddwd %[b], %[a], %[t1]\n\tvpaddd %[t1], %7, %7\n\t"
        : "+x"(s0), "+x"(s1), "+x"(s2), "+x"(s3), "+x"(s4), "+x"(s5), "+x"(s6),
          "+x"(s7), [t0] "=&x"(t0), [t1] "=&x"(t1)
        : [a] "x"(a), [b] "x"(b));
  }
}

__attribute__((noinline, target("avx512f,avx512bw,avx512vl,avx512vnni"))) inline void vnni_peak(
    int steps) {
  const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-2);
  __m512i s0 = _mm512_setzero_si512(), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0,
          s7 = s0, s8 = s0, s9 = s0, s10 = s0, s11 = s0;
  for (int step = 0; step < steps; ++step) {
    asm volatile(
        "vpdpbusd %[b], %[a], %0\n\t"
        "vpdpbusd %[b], %[a], %1\n\t"
        "vpdpbusd %[b], %[a], %2\n\t"
        "vpdpbusd %[b], %[a], %3\n\t"
        "vpdpbusd %[b], %[a], %4\n\t"
        "vpdpbusd %[b], %[a], %5\n\t"
        "vpdpbusd %[b], %[a], %6\n\t"
        "vpdpbusd %[b], %[a], %7\n\t"
        "vpdpbusd %[b], %[a], %8\n\t"
        "vpdpbusd %[b], %[a], %9\n\t"
        "vpdpbusd %[b], %[a], %10\n\t"
        "vpdpbusd %[b], %[a], %11\n\t"
        : "+v"(s0), "+v"(s1), "+v"(s2), "+v"(s3), "+v"(s4), "+v"(s5), "+v"(s6), "+v"(s7), "+v"(s8),
          "+v"(s9), "+v"(s10), "+v"(s11)
        : [a] "v"(a), [b] "v"(b));
  }
}

/// What LDTILECFG takes: eight tiles of 16 rows of 64 bytes.
struct alignas(64) PeakTiles {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(PeakTiles) == 64);

// Four accumulators, two tiles of A and two of B: all there are.
__attribute__((noinline, target("amx-tile,amx-int8"))) inline void amx_peak(int steps) {
  const PeakTiles tiles;
  alignas(64) std::int8_t operand[16 * 64];
  for (std::int8_t& x : operand) x = 3;
  // g++'s tile instructions do not say what memory they read: it must be written before them.
  asm volatile("" : : "r"(&tiles), "r"(operand) : "memory");
  _tile_loadconfig(&tiles);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, operand, 64);
  _tile_loadd(5, operand, 64);
  _tile_loadd(6, operand, 64);
  _tile_loadd(7, operand, 64);
  for (int step = 0; step < steps; ++step) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_release();
}

/// Bit of EDX of CPUID's leaf 7.
inline bool has_leaf_7_edx(int bit) {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx >> bit & 1) != 0;
}

/// Linux gives the tile registers to processes that ask.
inline bool may_use_amx() {
#if defined(__linux__)
  constexpr int request_permission = 0x1023, tile_data = 18;
  constexpr int amx_tile = 24, amx_int8 = 25;
  return has_leaf_7_edx(amx_tile) && has_leaf_7_edx(amx_int8) &&
         syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

/// Of the atom of this name; runs == false where there is none.
inline PeakLoop peak_loop_of(const std::string& atom) {
  if (atom == "amx") {
    return {may_use_amx(), "TDPBSSD from all eight tile registers", 4 * 2.0 * 16 * 16 * 64, 100000,
            amx_peak};
  }
  if (atom == "avx512vnni") {
    return {__builtin_cpu_supports("avx512vnni") != 0, "VPDPBUSD on 512-bit registers",
            12 * 2.0 * 64, 500000, vnni_peak};
  }
  if (atom == "avx2") {
    return {__builtin_cpu_supports("avx2") != 0, "VPMADDWD and VPADDD on 256-bit registers",
            8 * 2.0 * 16, 1000000, avx2_peak};
  }
  return {};
}

/// Operations a second of all threads.
inline double peak_rate(const Exec& exec, const PeakLoop& loop) {
  const int threads = exec.concurrency();
  const auto go = [&] {
    Kokkos::parallel_for("KokkosMXPerf::peak", Kokkos::RangePolicy<Exec>(exec, 0, threads),
                         [=](int) { loop.run(loop.steps); });
  };
  go();
  double best = seconds_of(exec, go);
  for (int i = 0; i < 19; ++i) best = std::min(best, seconds_of(exec, go));
  return loop.operations_a_step * loop.steps * threads / best;
}
#endif

}  // namespace Impl

/// Of the atom that exec's products run on.
inline AtomPeak atom_peak([[maybe_unused]] const Exec& exec) {
  if constexpr (on_host) {
    const std::string atom = KokkosMX::gemm_atom(exec);
#if KOKKOSMX_PERF_HAVE_X86
    const Impl::PeakLoop loop = Impl::peak_loop_of(atom);
    if (loop.runs) return {Impl::peak_rate(exec, loop), loop.what};
#endif
    if (atom != "portable") return {};
    return {Impl::best_tile_rate<Impl::BaselineTile>(exec),
            "int16 products summed in int32, plain loops over L1"};
  } else {
    return {};
  }
}

}  // namespace KokkosMXPerf

#endif
