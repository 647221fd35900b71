// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_SELF_CHECK_HPP
#define KOKKOSMX_SRC_GEMM_SELF_CHECK_HPP

/// \file self_check.hpp
/// Whether a matrix unit adds as the certificate of its atom needs it: sums at the window's edge,
/// made on the device itself, compared with integers. What the unit rounds inside is nobody's
/// promise, so an atom that needs this is used only where it has passed.

#include <KokkosMX/Types.hpp>

#include "../atoms/gemm/fragment_atom.hpp"
#include "../launch.hpp"
#include "../numbers.hpp"
#include "exact_sum.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>

namespace KokkosMX::Impl {

/// One wave an item, each with operands of its own: some chunks of K one after the other, most
/// codes at the least scale, and in one block a single code far above them, so that sums have as
/// many bits as a certified one can have, and cancel. Every output is compared.
template <FragmentAtom Atom>
struct SelfCheck {
  std::uint32_t* wrong;  ///< outputs that are: 0 before

  static constexpr int threads = Atom::lanes;
  static constexpr int items = 128;
  static constexpr int chunks = 4;
  struct Scratch {};

  template <class Group>
  KOKKOS_FUNCTION void operator()(const Group& group, Scratch&, std::int64_t item) const {
    const auto seed = static_cast<std::uint32_t>(item);
    typename Group::template PerThread<typename Atom::Accumulator> sums;
    typename Group::template PerThread<typename Atom::Operand> a, b;
    group.each([&](int lane) { sums[lane] = typename Atom::Accumulator{}; });
    for (int chunk = 0; chunk < chunks; ++chunk) {
      unrolled<4>([&](auto select) {
        if (chunk != select) return;
        group.each([&](int lane) {
          a[lane] = operand<select>(seed, 0, chunk, lane);
          b[lane] = operand<select>(seed, 1, chunk, lane);
        });
        group.template waves<Atom::lanes>([&](int first) {
          Atom::template multiply_add<select, select>(
              [&](int lane) -> const auto& { return a[first + lane]; },
              [&](int lane) -> const auto& { return b[first + lane]; },
              [&](int lane) -> auto& { return sums[first + lane]; });
        });
      });
    }
    group.each([&](int lane) {
      std::uint32_t differences = 0;
      unrolled<Atom::values>([&](auto v) {
        const std::uint32_t is = Atom::round(Atom::bits(sums[lane], v), 0);
        const std::int64_t sum = exact(seed, Atom::row_of(lane, v), Atom::col_of(lane, v));
        // 24 bits: the conversion is exact.
        const auto as_float = static_cast<float>(static_cast<std::int32_t>(sum));
        differences += is == Kokkos::bit_cast<std::uint32_t>(as_float) ? 0u : 1u;
      });
      if (differences != 0) Kokkos::atomic_add(wrong, differences);
    });
  }

 private:
  KOKKOS_INLINE_FUNCTION static std::uint32_t mix(std::uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7FEB352Du;
    x = (x ^ (x >> 15)) * 0x846CA68Bu;
    return x ^ (x >> 16);
  }
  /// The one block that is far above the others: the same in both operands.
  KOKKOS_INLINE_FUNCTION static bool is_far(std::uint32_t seed, int chunk, int block) {
    return static_cast<int>(mix(seed) % (chunks * Atom::blocks)) == chunk * Atom::blocks + block;
  }
  /// How far. Rows of A have one far code of 1 half, those of B one of 3: with 4^12 + 384 * 144 and
  /// 9 * 4^10 + 384 * 144 for their n, all outputs are certified for a window of 24 bits, and sums
  /// lie around 3 * 2^22.
  KOKKOS_INLINE_FUNCTION static int far_shift(int side) {
    constexpr int certified = Atom::certificate_bits / 4;
    const int shift = certified - 2 * side;
    return shift < Atom::max_shift ? shift : Atom::max_shift;
  }
  /// Word w of the codes of a row's block.
  KOKKOS_INLINE_FUNCTION static std::uint32_t codes(std::uint32_t seed, int side, int row,
                                                    int chunk, int block, int w) {
    const auto place = static_cast<std::uint32_t>(
        (((side * 16 + row) * chunks + chunk) * Atom::blocks + block) * 4 + w);
    const std::uint32_t random = mix(mix(seed + 1u) + place);
    if (is_far(seed, chunk, block)) return w == 0 ? (side == 0 ? 1u : 3u) | (random & 8u) : 0u;
    // Half of the waves: few small codes.
    return seed % 2u == 0 ? random : random & 0x90090009u;
  }
  template <int Select>
  KOKKOS_INLINE_FUNCTION static typename Atom::Operand operand(std::uint32_t seed, int side,
                                                               int chunk, int lane) {
    const int row = Atom::row_of_codes(lane), block = Atom::block_of_codes(lane);
    Words words;
    unrolled<4>([&](auto w) { words.w[w] = codes(seed, side, row, chunk, block, w); });
    const int shift = is_far(seed, chunk, block) ? far_shift(side) : 0;
    return Atom::template operand<Select>(words, static_cast<std::uint32_t>(shift) << (8 * Select));
  }
  KOKKOS_INLINE_FUNCTION static std::int64_t exact(std::uint32_t seed, int row, int col) {
    std::int64_t sum = 0;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      for (int block = 0; block < Atom::blocks; ++block) {
        std::int64_t part = 0;
        for (int w = 0; w < 4; ++w) {
          const std::uint32_t x = codes(seed, 0, row, chunk, block, w);
          const std::uint32_t y = codes(seed, 1, col, chunk, block, w);
          for (int i = 0; i < 32; i += 4) {
            part += signed_halves_of(static_cast<std::int32_t>(x >> i & 15u)) *
                    signed_halves_of(static_cast<std::int32_t>(y >> i & 15u));
          }
        }
        const int shift = is_far(seed, chunk, block) ? far_shift(0) + far_shift(1) : 0;
        sum += part * (std::int64_t{1} << shift);
      }
    }
    return sum;
  }
};

/// Runs the check on exec and waits for it: some ten microseconds of the device's time. Allocates.
template <FragmentAtom Atom, class ExecSpace>
bool passes_self_check(const ExecSpace& exec) {
  const Kokkos::View<std::uint32_t, ExecSpace> wrong("KokkosMX: self-check");
  launch("KokkosMX: self-check", exec, SelfCheck<Atom>::items, threads<SelfCheck<Atom>::threads>,
         SelfCheck<Atom>{wrong.data()});
  std::uint32_t result = 1;
  Kokkos::deep_copy(exec, result, wrong);
  exec.fence("KokkosMX: self-check");
  return result == 0;
}

}  // namespace KokkosMX::Impl

#endif
