// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_COPY_AVX512_HPP
#define KOKKOSMX_SRC_ATOMS_COPY_AVX512_HPP

/// \file avx512.hpp
/// Copies of codes by vectors of 64 bytes, a group each: one permutation (VPERMB) of its bytes.

#include "../../operand.hpp"
#include "../x86.hpp"
#include "avx2.hpp"
#include "portable.hpp"

#include <cstdint>

#if KOKKOSMX_HAVE_X86_ATOMS

namespace KokkosMX::Impl {

struct Avx512CopyAtom : Avx2CopyAtom {
  static constexpr const char* name = "avx512";

  /// Where each byte of a group comes from: byte 4 j + b of a woven one is byte j of block b.
  struct Order {
    alignas(64) std::uint8_t of_woven[group_bytes];
    alignas(64) std::uint8_t of_plain[group_bytes];
    constexpr Order() : of_woven{}, of_plain{} {
      for (int b = 0; b < group_blocks; ++b) {
        for (int j = 0; j < block_bytes; ++j) {
          const int woven = group_blocks * j + b, plain = block_bytes * b + j;
          of_woven[woven] = static_cast<std::uint8_t>(plain);
          of_plain[plain] = static_cast<std::uint8_t>(woven);
        }
      }
    }
  };

  template <bool FromWoven, bool ToWoven>
  KOKKOSMX_AVX512_FUNCTION static void move(const CopyGroups& groups) {
    static_assert(FromWoven != ToWoven);
    static constexpr Order all;
    const __m512i order = _mm512_load_si512(FromWoven ? all.of_plain : all.of_woven);
    const std::uint8_t* source = groups.from;
    std::uint8_t* target = groups.to;
    const std::int64_t from_block = groups.from_block, to_block = groups.to_block;
    const std::int64_t from_step = groups.from_step, to_step = groups.to_step;
    for (std::int64_t n = groups.count; n > 0; --n, source += from_step, target += to_step) {
      const __m512i group = FromWoven || from_block == block_bytes ? _mm512_loadu_si512(source)
                                                                   : load(source, from_block);
      const __m512i moved = x86::permute_bytes(order, group);
      if (!FromWoven || to_block == block_bytes) {
        _mm512_storeu_si512(target, moved);
      } else {
        store(target, to_block, moved);
      }
    }
  }

 private:
  KOKKOSMX_AVX512_INLINE static __m128i load_block(const std::uint8_t* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  }
  /// Four blocks, a step apart.
  KOKKOSMX_AVX512_INLINE static __m512i load(const std::uint8_t* from, std::int64_t step) {
    __m512i v = _mm512_castsi128_si512(load_block(from));
    v = _mm512_inserti32x4(v, load_block(from + step), 1);
    v = _mm512_inserti32x4(v, load_block(from + 2 * step), 2);
    return _mm512_inserti32x4(v, load_block(from + 3 * step), 3);
  }
  KOKKOSMX_AVX512_INLINE static void store(std::uint8_t* to, std::int64_t step, __m512i v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_castsi512_si128(v));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + step), _mm512_extracti32x4_epi32(v, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * step), _mm512_extracti32x4_epi32(v, 2));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 3 * step), _mm512_extracti32x4_epi32(v, 3));
  }
};

}  // namespace KokkosMX::Impl

#endif

#endif
