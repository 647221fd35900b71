// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_GEMM_WGMMA_FRAGMENTS_HPP
#define KOKKOSMX_SRC_ATOMS_GEMM_WGMMA_FRAGMENTS_HPP

/// \file wgmma_fragments.hpp
/// Hopper's warpgroup-level int8 product (sm_90a) whose first operand is registers: each of four
/// warps has 16 rows of it, a lane what MmaInt8Atom gives it. The second is an image (Int8Images)
/// of a group of 128 of K in shared memory, as bulk copies bring it.
///
/// A lane's eight elements of a step of 32 of K lie in two words of the image's row, 16 bytes
/// apart: the order of K is the fragments', whose words are of either half of the step.

#include "../cuda.hpp"
#include "mma.hpp"
#include "wgmma.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>

namespace KokkosMX::Impl {

#ifdef KOKKOS_ENABLE_CUDA

/// 64 rows by 8 * ColumnTiles columns.
template <int ColumnTiles>
struct WgmmaFragments {
  static constexpr int warps = 4;
  using Parts = MmaInt8Atom::Part[Int8Images::step_blocks][2];
  using Sums = std::int32_t[ColumnTiles][MmaInt8Atom::values];

  /// Begins to add a group's product, by all warps together. Neither operand may change before
  /// wait().
  __device__ __forceinline__ static void begin([[maybe_unused]] Sums& sums,
                                               [[maybe_unused]] const Parts& parts,
                                               [[maybe_unused]] const std::uint8_t* image) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    const std::uint64_t b = WgmmaInt8Atom<1, 64>::describe(image);
#pragma unroll
    for (int i = 0; i < Int8Images::step_blocks; ++i) {
      multiply(sums, MmaInt8Atom::registers(parts[i][0], parts[i][1], {}),
               Int8Images::described_part(b, i));
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
    Kokkos::abort("KokkosMX: wgmma needs code for sm_90a");
#endif
  }
  __device__ __forceinline__ static void wait() {
    WgmmaInt8Atom<1, 64>::template wait_for_steps<0>();
  }

 private:
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  __device__ __forceinline__ static void multiply(Sums& d, const MmaInt8Atom::Registers& r,
                                                  std::uint64_t b) {
    static_assert(ColumnTiles == 8 || ColumnTiles == 16);
    if constexpr (ColumnTiles == 8) {
      asm volatile(
          "{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 "
          "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
          "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
          "{%32, %33, %34, %35}, %36, p;\n}\n"
          : "+r"(d[0][0]), "+r"(d[0][1]), "+r"(d[0][2]), "+r"(d[0][3]), "+r"(d[1][0]),
            "+r"(d[1][1]), "+r"(d[1][2]), "+r"(d[1][3]), "+r"(d[2][0]), "+r"(d[2][1]),
            "+r"(d[2][2]), "+r"(d[2][3]), "+r"(d[3][0]), "+r"(d[3][1]), "+r"(d[3][2]),
            "+r"(d[3][3]), "+r"(d[4][0]), "+r"(d[4][1]), "+r"(d[4][2]), "+r"(d[4][3]),
            "+r"(d[5][0]), "+r"(d[5][1]), "+r"(d[5][2]), "+r"(d[5][3]), "+r"(d[6][0]),
            "+r"(d[6][1]), "+r"(d[6][2]), "+r"(d[6][3]), "+r"(d[7][0]), "+r"(d[7][1]),
            "+r"(d[7][2]), "+r"(d[7][3])
          : "r"(r.a[0]), "r"(r.a[1]), "r"(r.a[2]), "r"(r.a[3]), "l"(b));
    } else {
      asm volatile(
          "{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
          "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 "
          "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
          "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
          "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, "
          "%47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
          "%62, %63}, "
          "{%64, %65, %66, %67}, %68, p;\n}\n"
          : "+r"(d[0][0]), "+r"(d[0][1]), "+r"(d[0][2]), "+r"(d[0][3]), "+r"(d[1][0]),
            "+r"(d[1][1]), "+r"(d[1][2]), "+r"(d[1][3]), "+r"(d[2][0]), "+r"(d[2][1]),
            "+r"(d[2][2]), "+r"(d[2][3]), "+r"(d[3][0]), "+r"(d[3][1]), "+r"(d[3][2]),
            "+r"(d[3][3]), "+r"(d[4][0]), "+r"(d[4][1]), "+r"(d[4][2]), "+r"(d[4][3]),
            "+r"(d[5][0]), "+r"(d[5][1]), "+r"(d[5][2]), "+r"(d[5][3]), "+r"(d[6][0]),
            "+r"(d[6][1]), "+r"(d[6][2]), "+r"(d[6][3]), "+r"(d[7][0]), "+r"(d[7][1]),
            "+r"(d[7][2]), "+r"(d[7][3]), "+r"(d[8][0]), "+r"(d[8][1]), "+r"(d[8][2]),
            "+r"(d[8][3]), "+r"(d[9][0]), "+r"(d[9][1]), "+r"(d[9][2]), "+r"(d[9][3]),
            "+r"(d[10][0]), "+r"(d[10][1]), "+r"(d[10][2]), "+r"(d[10][3]), "+r"(d[11][0]),
            "+r"(d[11][1]), "+r"(d[11][2]), "+r"(d[11][3]), "+r"(d[12][0]), "+r"(d[12][1]),
            "+r"(d[12][2]), "+r"(d[12][3]), "+r"(d[13][0]), "+r"(d[13][1]), "+r"(d[13][2]),
            "+r"(d[13][3]), "+r"(d[14][0]), "+r"(d[14][1]), "+r"(d[14][2]), "+r"(d[14][3]),
            "+r"(d[15][0]), "+r"(d[15][1]), "+r"(d[15][2]), "+r"(d[15][3])
          : "r"(r.a[0]), "r"(r.a[1]), "r"(r.a[2]), "r"(r.a[3]), "l"(b));
    }
  }
#endif
};

#endif

}  // namespace KokkosMX::Impl

#endif
