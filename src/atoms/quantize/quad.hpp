// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_QUANTIZE_QUAD_HPP
#define KOKKOSMX_SRC_ATOMS_QUANTIZE_QUAD_HPP

/// \file quad.hpp
/// NVIDIA GPUs: four lanes quantize a block of bf16 together, eight numbers each, to codes or at
/// once to int8: elements aligned to a scale of the caller's, in halves.

#include "../cuda.hpp"
#include "../gemm/mma.hpp"
#include "../words.hpp"
#include "cuda_pairs.hpp"
#include "loops.hpp"

#include <KokkosMX/Types.hpp>

#include <Kokkos_Core.hpp>

#include <cstdint>

namespace KokkosMX::Impl {

#ifdef KOKKOS_ENABLE_CUDA

class QuadQuantizer {
 public:
  /// In the place of a block's scale: all codes are zeros, or the scale is 255.
  static constexpr int empty = -1, not_a_number = -2;

  __device__ explicit QuadQuantizer(QuantizeRule rule) : pairs_(rule) {}
  __device__ const Bf16Pairs& pairs() const { return pairs_; }

  /// The scales (or empty, not_a_number) of two blocks, of which each lane of the quad has a part.
  __device__ void scales(const Words& x, const Words& y, int& scale_x, int& scale_y) const {
    std::uint32_t largest = __byte_perm(Bf16Pairs::largest(x), Bf16Pairs::largest(y), 0x5410);
    largest = __vmaxu2(largest, CudaUnit::from_lane_xor(largest, 1));
    largest = __vmaxu2(largest, CudaUnit::from_lane_xor(largest, 2));
    scale_x = pairs_.scale(largest & 0xFFFFu);
    scale_y = pairs_.scale(largest >> 16);
    if (!Bf16Pairs::takes(scale_x)) scale_x = rare_scale(largest & 0xFFFFu, pairs_.rule());
    if (!Bf16Pairs::takes(scale_y)) scale_y = rare_scale(largest >> 16, pairs_.rule());
  }

  /// The same of one.
  __device__ int scale(const Words& x) const {
    std::uint32_t largest = Bf16Pairs::largest(x);
    largest = max(largest, CudaUnit::from_lane_xor(largest, 1));
    largest = max(largest, CudaUnit::from_lane_xor(largest, 2));
    return scale_of(largest);
  }
  /// Of a block that one lane has.
  __device__ int scale_of_block(const Words (&x)[4]) const {
    return scale_of(max(max(Bf16Pairs::largest(x[0]), Bf16Pairs::largest(x[1])),
                        max(Bf16Pairs::largest(x[2]), Bf16Pairs::largest(x[3]))));
  }

  /// A lane's elements times 2^(scale - base), zeros where that is not 1, 2, 4 or 8.
  __device__ MmaInt8Atom::Part elements(const Words& x, int scale, int base) const {
    const int shift = scale - base;
    const bool is_in = scale >= 0 && static_cast<unsigned>(shift) <= MmaInt8Atom::max_shift;
    const bool is_rare = !Bf16Pairs::takes(scale);
    MmaInt8Atom::Part part;
    pairs_.elements(x, is_rare ? 127 : scale, shift, is_in, part.word);
    if (is_in && is_rare) {
      part = one_by_one(x, scale, shift, pairs_.rule().rounding() == Rounding::nearest_even);
    }
    return part;
  }

 private:
  __device__ int scale_of(std::uint32_t largest) const {
    const int scale = pairs_.scale(largest);
    return Bf16Pairs::takes(scale) ? scale : rare_scale(largest, pairs_.rule());
  }
  __device__ __noinline__ static int rare_scale(std::uint32_t largest, QuantizeRule rule) {
    if (largest == 0) return empty;
    const int scale = QuantizeLoops<BF16Format>::scale_of_block(largest, rule);
    if (scale == 255) return not_a_number;
    // The largest magnitude has the largest code: zero below the first midpoint.
    const std::uint32_t first =
        least_at<BF16Format>(midpoint_odd(0), midpoint_exponent(0) + scale - 127,
                             rule.rounding() == Rounding::nearest_even);
    return largest < first ? empty : scale;
  }

  __device__ __noinline__ static MmaInt8Atom::Part one_by_one(Words x, int scale, int shift,
                                                              bool to_even) {
    const std::uint32_t sign_at = sign_from<BF16Format>(to_even, scale);
    MmaInt8Atom::Part part{};
#pragma unroll 1
    for (int i = 0; i < 8; ++i) {
      // Numbers move down: registers have no index.
      const std::uint32_t element = x.w[0] & 0xFFFFu;
#pragma unroll
      for (int w = 0; w < 4; ++w) x.w[w] = x.w[w] >> 16 | (w < 3 ? x.w[w + 1] << 16 : 0u);
      const std::uint32_t m = element & 0x7FFFu;
      int code = 0;
      for (int j = 0; j < 7; ++j) {
        code += m >= least_at<BF16Format>(midpoint_odd(j), midpoint_exponent(j) + scale - 127,
                                          to_even && j % 2 == 0)
                    ? 1
                    : 0;
      }
      const std::uint32_t halves = static_cast<std::uint32_t>(halves_of_magnitude(code)) << shift;
      const bool negative = m >= sign_at && m <= BF16Format::inf && element >> 15 != 0;
      const std::uint32_t number = (negative ? 0u - halves : halves) << 24;
      part.word[0] = part.word[0] >> 8 | part.word[1] << 24;
      part.word[1] = part.word[1] >> 8 | number;
    }
    return part;
  }

  Bf16Pairs pairs_;
};

#endif

}  // namespace KokkosMX::Impl

#endif
