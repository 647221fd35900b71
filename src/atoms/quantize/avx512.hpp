// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_QUANTIZE_AVX512_HPP
#define KOKKOSMX_SRC_ATOMS_QUANTIZE_AVX512_HPP

/// \file avx512.hpp
/// Rows by the words of words.hpp, 8 blocks at a time.

#include <KokkosMX/Types.hpp>

#include "../../operand.hpp"
#include "../atom_function.hpp"
#include "../x86.hpp"
#include "loops.hpp"
#include "words.hpp"

#include <array>
#include <cstdint>
#include <cstring>

#if KOKKOSMX_HAVE_X86_ATOMS

namespace KokkosMX::Impl {

/// Where VPERMB finds the bytes of a group in the four dwords of each 128-bit lane, which hold 4
/// bytes of a block each. The words of a float32 block lie as shuffle_ps leaves them: lane l has
/// the pairs 2 l, 2 l + 1, 8 + 2 l, 9 + 2 l.
template <bool IsF32>
inline constexpr std::array<std::uint8_t, 64> group_order = [] {
  std::array<std::uint8_t, 64> order{};
  for (std::size_t j = 0; j < 16; ++j) {
    const std::size_t lane = IsF32 ? j % 8 / 2 : j / 4;
    const std::size_t byte = IsF32 ? j / 8 * 2 + j % 2 : j % 4;
    for (std::size_t b = 0; b < 4; ++b) {
      order[4 * j + b] = static_cast<std::uint8_t>(16 * lane + 4 * b + byte);
    }
  }
  return order;
}();

/// Byte 4 j + b of a group to byte 16 b + j.
inline constexpr std::array<std::uint8_t, 64> plain_order = [] {
  std::array<std::uint8_t, 64> order{};
  for (std::size_t i = 0; i < 64; ++i) {
    order[i] = static_cast<std::uint8_t>(4 * (i % 16) + i / 16);
  }
  return order;
}();

template <class Format, bool ToEven, bool Sums>
struct Avx512QuantizeRow {
  using Words = QuantizeWords<Format, ToEven>;
  static constexpr int p = Words::p;
  static constexpr int bytes = QuantizeLoops<Format>::bytes;
  static constexpr int step = 8;  // blocks
  /// How far ahead in x the cache is asked for.
  static constexpr int ahead = 4096;

  /// A block's numbers as words, signs included.
  KOKKOSMX_AVX512_INLINE static __m512i words(const unsigned char* x) {
    if constexpr (Words::is_f32) {
      const __m512 first = _mm512_castsi512_ps(_mm512_loadu_si512(x));
      const __m512 second = _mm512_castsi512_ps(_mm512_loadu_si512(x + 64));
      const __m512i even = _mm512_castps_si512(_mm512_shuffle_ps(first, second, 0x88));
      const __m512i odd = _mm512_castps_si512(_mm512_shuffle_ps(first, second, 0xDD));
      const __m512i low_half = _mm512_set1_epi32(0xFFFF);
      // 0xCA: bits of the second where the first is 1, else of the third.
      const __m512i high =
          _mm512_ternarylogic_epi32(low_half, _mm512_srli_epi32(even, 16), odd, 0xCA);
      const __m512i low =
          _mm512_ternarylogic_epi32(low_half, even, _mm512_slli_epi32(odd, 16), 0xCA);
      return _mm512_or_si512(high, _mm512_min_epu16(low, _mm512_set1_epi16(1)));
    } else {
      return _mm512_loadu_si512(x);
    }
  }

  /// The maxima of two blocks, each in two 128-bit lanes.
  KOKKOSMX_AVX512_INLINE static __m512i merge_halves(__m512i a, __m512i b) {
    return _mm512_max_epu16(_mm512_mask_blend_epi64(0xF0, a, b), _mm512_shuffle_i64x2(a, b, 0x4E));
  }
  /// The maxima of four blocks, each in a lane.
  KOKKOSMX_AVX512_INLINE static __m512i merge_lanes(__m512i a, __m512i b) {
    return _mm512_max_epu16(_mm512_shuffle_i64x2(a, b, 0x88), _mm512_shuffle_i64x2(a, b, 0xDD));
  }

  /// The indices and signs of two blocks: per lane 8 bytes of the first, then 8 of the second.
  KOKKOSMX_AVX512_INLINE static __m512i indices(__m512i xa, __m512i wa, const std::uint32_t* base_a,
                                                __m512i xb, __m512i wb,
                                                const std::uint32_t* base_b) {
    const __m512i below_a = _mm512_set1_epi32(static_cast<int>(*base_a));
    const __m512i below_b = _mm512_set1_epi32(static_cast<int>(*base_b));
    if constexpr (ToEven) {
      const __m512i one = _mm512_set1_epi16(1);
      // 0xF8: the first, or the second where the third is 1.
      wa = _mm512_ternarylogic_epi32(wa, _mm512_srli_epi16(xa, p - 1), one, 0xF8);
      wb = _mm512_ternarylogic_epi32(wb, _mm512_srli_epi16(xb, p - 1), one, 0xF8);
      const __m512i a = _mm512_srli_epi16(_mm512_subs_epu16(wa, below_a), p - 1);
      const __m512i b = _mm512_srli_epi16(_mm512_subs_epu16(wb, below_b), p - 1);
      const __m512i signs = _mm512_srli_epi16(_mm512_packs_epi16(xa, xb), 2);
      return _mm512_ternarylogic_epi32(_mm512_packus_epi16(a, b), signs, _mm512_set1_epi8(32),
                                       0xF8);
    } else {
      const __m512i minus_zero = _mm512_set1_epi16(-0x8000);
      const __m512i sign = _mm512_set1_epi16(32 << (p - 1));
      __m512i a = _mm512_subs_epu16(wa, below_a);
      __m512i b = _mm512_subs_epu16(wb, below_b);
      a = _mm512_mask_add_epi16(a, _mm512_cmpgt_epu16_mask(xa, minus_zero), a, sign);
      b = _mm512_mask_add_epi16(b, _mm512_cmpgt_epu16_mask(xb, minus_zero), b, sign);
      return _mm512_packus_epi16(_mm512_srli_epi16(a, p - 1), _mm512_srli_epi16(b, p - 1));
    }
  }

  /// Two blocks' bytes of codes, each in a word.
  KOKKOSMX_AVX512_INLINE static __m512i code_words(__m512i index) {
    const __m512i codes = x86::permute_bytes(index, _mm512_loadu_si512(codes_of_indices.data()));
    return _mm512_maddubs_epi16(codes, _mm512_set1_epi16(0x1001));  // low + 16 * high
  }
  /// Sums of squares of two blocks: per lane one and the other.
  KOKKOSMX_AVX512_INLINE static __m512i square_sums(__m512i index) {
    const __m512i squares =
        x86::permute_bytes(index, _mm512_loadu_si512(squares_of_indices.data()));
    return _mm512_sad_epu8(squares, _mm512_setzero_si512());
  }
  KOKKOSMX_AVX512_INLINE static void store_group(__m512i first, __m512i second,
                                                 std::uint8_t* codes) {
    const __m512i order = _mm512_loadu_si512(group_order<Words::is_f32>.data());
    _mm512_storeu_si512(codes, x86::permute_bytes(order, _mm512_packus_epi16(first, second)));
  }

  /// Quantizes 8 blocks. scales and sums: of the 8 blocks. The bits of the result are the groups
  /// (0, 1) that hold blocks which are not for the vectors: what was stored for them is wrong.
  KOKKOSMX_AVX512_INLINE static unsigned quantize_8(const unsigned char* x, std::uint8_t* codes_0,
                                                    std::uint8_t* codes_1, std::uint8_t* scales,
                                                    std::uint16_t* sums, __m512i rounding) {
    const __m512i x0 = words(x), x1 = words(x + bytes);
    const __m512i x2 = words(x + 2 * bytes), x3 = words(x + 3 * bytes);
    const __m512i x4 = words(x + 4 * bytes), x5 = words(x + 5 * bytes);
    const __m512i x6 = words(x + 6 * bytes), x7 = words(x + 7 * bytes);
    const __m512i w0 = _mm512_add_epi16(x0, x0), w1 = _mm512_add_epi16(x1, x1);
    const __m512i w2 = _mm512_add_epi16(x2, x2), w3 = _mm512_add_epi16(x3, x3);
    const __m512i w4 = _mm512_add_epi16(x4, x4), w5 = _mm512_add_epi16(x5, x5);
    const __m512i w6 = _mm512_add_epi16(x6, x6), w7 = _mm512_add_epi16(x7, x7);

    // Lane b: blocks b and 4 + b, in all four words of a half.
    const __m512i m0 = merge_lanes(merge_halves(w0, w1), merge_halves(w2, w3));
    const __m512i m1 = merge_lanes(merge_halves(w4, w5), merge_halves(w6, w7));
    __m512i largest =
        _mm512_max_epu16(_mm512_mask_blend_epi64(0xAA, m0, m1),
                         _mm512_castpd_si512(_mm512_shuffle_pd(_mm512_castsi512_pd(m0),
                                                               _mm512_castsi512_pd(m1), 0x55)));
    largest = _mm512_max_epu16(largest, _mm512_shuffle_epi32(largest, _MM_PERM_CDAB));
    largest = _mm512_max_epu16(largest, _mm512_rol_epi32(largest, 16));

    const __m512i exponent = _mm512_and_si512(_mm512_add_epi16(largest, rounding),
                                              _mm512_set1_epi16(static_cast<short>(-1 << (p + 1))));
    alignas(64) std::uint32_t base[16];
    _mm512_store_si512(
        base, _mm512_sub_epi16(exponent, _mm512_set1_epi16(static_cast<short>(Words::below))));
    // Read back from memory, one word at a time in all lanes: that takes no shuffle. A compiler
    // that knows what was stored would shuffle.
    __asm__("" : "+m"(base));

    const __m512i t = _mm512_srli_epi16(exponent, p + 1);
    const __m512i scale = Words::scale_offset < 0
                              ? _mm512_subs_epu16(t, _mm512_set1_epi16(-Words::scale_offset))
                              : _mm512_maskz_add_epi16(_mm512_test_epi16_mask(t, t), t,
                                                       _mm512_set1_epi16(Words::scale_offset));
    const __m512i scale_order = _mm512_set1_epi64(0x3828180830201000);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(scales),
                     _mm512_castsi512_si128(x86::permute_bytes(scale_order, scale)));

    // Neither zero nor from least on and below end.
    __mmask32 others = _mm512_mask_cmpge_epu16_mask(
        _mm512_test_epi16_mask(largest, largest),
        _mm512_sub_epi16(largest, _mm512_set1_epi16(static_cast<short>(Words::least))),
        _mm512_set1_epi16(static_cast<short>(Words::end - Words::least)));
    if constexpr (Words::is_f32 && !ToEven) {
      const __m512i vanish = _mm512_set1_epi16(static_cast<short>(Words::tiny_vanish));
      if (_mm512_cmpge_epu16_mask(largest, vanish) != 0) {
        const __m512i tiny = _mm512_set1_epi16(2);
        const __mmask32 in_0 =
            _mm512_cmpeq_epi16_mask(w0, tiny) | _mm512_cmpeq_epi16_mask(w1, tiny) |
            _mm512_cmpeq_epi16_mask(w2, tiny) | _mm512_cmpeq_epi16_mask(w3, tiny);
        const __mmask32 in_1 =
            _mm512_cmpeq_epi16_mask(w4, tiny) | _mm512_cmpeq_epi16_mask(w5, tiny) |
            _mm512_cmpeq_epi16_mask(w6, tiny) | _mm512_cmpeq_epi16_mask(w7, tiny);
        others |= (in_0 != 0 ? 0x0F0F0F0Fu : 0u) | (in_1 != 0 ? 0xF0F0F0F0u : 0u);
      }
    }

    const __m512i i01 = indices(x0, w0, base, x1, w1, base + 4);
    const __m512i i23 = indices(x2, w2, base + 8, x3, w3, base + 12);
    store_group(code_words(i01), code_words(i23), codes_0);
    const __m512i i45 = indices(x4, w4, base + 2, x5, w5, base + 6);
    const __m512i i67 = indices(x6, w6, base + 10, x7, w7, base + 14);
    store_group(code_words(i45), code_words(i67), codes_1);
    if constexpr (Sums) {
      // A sum is at most 32 * 144, a word.
      const __m512i s = _mm512_or_si512(
          _mm512_or_si512(square_sums(i01), _mm512_slli_epi64(square_sums(i23), 16)),
          _mm512_or_si512(_mm512_slli_epi64(square_sums(i45), 32),
                          _mm512_slli_epi64(square_sums(i67), 48)));
      const __m256i half =
          _mm256_add_epi16(_mm512_castsi512_si256(s), _mm512_extracti64x4_epi64(s, 1));
      const __m128i lane =
          _mm_add_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
      // Words of the blocks 0, 2, 4, 6, 1, 3, 5, 7.
      const __m128i order = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(sums), _mm_shuffle_epi8(lane, order));
    }
    return ((others & 0x0F0F0F0Fu) != 0 ? 1u : 0u) | ((others & 0xF0F0F0F0u) != 0 ? 2u : 0u);
  }

  /// The least byte of 64.
  KOKKOSMX_AVX512_INLINE static int least_byte(__m512i v) {
    const __m256i half =
        _mm256_min_epu8(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    __m128i lane = _mm_min_epu8(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    lane = _mm_min_epu8(lane, _mm_srli_epi16(lane, 8));
    return _mm_cvtsi128_si32(_mm_minpos_epu16(lane)) & 0xFF;
  }

  /// Merges a list of blocks into the summary of their row.
  KOKKOSMX_AVX512_INLINE static void add_summary(RowSummary& row, const BlockList& list,
                                                 int blocks) {
    const __m512i scale = _mm512_load_si512(list.scale);
    const __m512i one = _mm512_set1_epi8(1), all = _mm512_set1_epi8(-1);
    const int hi = 255 - least_byte(_mm512_xor_si512(scale, all));
    if (hi == 0) return;  // zeros
    const int lo = least_byte(_mm512_sub_epi8(scale, one)) + 1;
    RowSummary part{};
    part.n = 1;
    part.lo = static_cast<std::uint8_t>(lo);
    part.hi = static_cast<std::uint8_t>(hi);
    if constexpr (Sums) {
      if (hi - lo > 16) {
        for (int k = 0; k < blocks; ++k) merge(row, summary_of_block(list.scale[k], list.sum[k]));
        return;
      }
      __m512i n = _mm512_setzero_si512();
      for (int k = 0; k < blocks; k += 8) {
        const __m512i s =
            _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(list.scale + k)));
        const __m512i sum =
            _mm512_cvtepu16_epi64(_mm_load_si128(reinterpret_cast<const __m128i*>(list.sum + k)));
        // A block of zeros is shifted by what is no count of bits: it stays zero.
        const __m512i bits = _mm512_sub_epi64(_mm512_add_epi64(s, s), _mm512_set1_epi64(2 * lo));
        n = _mm512_add_epi64(n, _mm512_sllv_epi64(sum, bits));
      }
      part.n = static_cast<std::uint64_t>(_mm512_reduce_add_epi64(n));
    }
    merge(row, part);
  }

  /// The groups of `others` among the blocks of a step, by the loops; they leave the list.
  static void replace(unsigned others, const unsigned char* x, int blocks, std::uint8_t* codes,
                      std::int64_t codes_stride, std::uint8_t* scales, std::int64_t scales_stride,
                      QuantizeRule rule, std::uint8_t* list_scale, std::uint16_t* list_sum,
                      RowSummary& row);

  KOKKOSMX_AVX512_FUNCTION static RowSummary run(const unsigned char* x, std::int64_t blocks,
                                                 std::uint8_t* codes, std::int64_t codes_stride,
                                                 std::uint8_t* scales, std::int64_t scales_stride,
                                                 QuantizeRule rule);
};

struct Avx512QuantizeAtom {
  static constexpr const char* name = "avx512";

  template <class Format>
  KOKKOSMX_AVX512_FUNCTION static BlockResult quantize(const unsigned char* x, std::uint8_t* codes,
                                                       QuantizeRule rule) {
    return QuantizeLoops<Format>::quantize(x, codes, rule);
  }
  template <class Format, bool Sums>
  static RowSummary quantize_row(const unsigned char* x, std::int64_t blocks, std::uint8_t* codes,
                                 std::int64_t codes_stride, std::uint8_t* scales,
                                 std::int64_t scales_stride, QuantizeRule rule) {
    return rule.rounding() == Rounding::nearest_even
               ? Avx512QuantizeRow<Format, true, Sums>::run(x, blocks, codes, codes_stride, scales,
                                                            scales_stride, rule)
               : Avx512QuantizeRow<Format, false, Sums>::run(x, blocks, codes, codes_stride, scales,
                                                             scales_stride, rule);
  }
  KOKKOSMX_AVX512_FUNCTION static void deinterleave(const std::uint8_t* codes, std::int64_t groups,
                                                    std::uint8_t* plain) {
    const __m512i order = _mm512_loadu_si512(plain_order.data());
    for (std::int64_t g = 0; g < groups; ++g) {
      const __m512i group = _mm512_loadu_si512(codes + g * group_bytes);
      _mm512_storeu_si512(plain + g * group_bytes, x86::permute_bytes(order, group));
    }
  }
  template <class Format>
  KOKKOSMX_AVX512_FUNCTION static void dequantize(const std::uint8_t* codes, std::uint8_t scale,
                                                  unsigned char* x) {
    QuantizeLoops<Format>::dequantize(codes, scale, x);
  }
  KOKKOSMX_AVX512_FUNCTION static std::uint32_t sum_of_squares(const std::uint8_t* codes) {
    return sum_of_squares_loop(codes);
  }
};

template <class Format, bool ToEven, bool Sums>
__attribute__((noinline)) void Avx512QuantizeRow<Format, ToEven, Sums>::replace(
    unsigned others, const unsigned char* x, int blocks, std::uint8_t* codes,
    std::int64_t codes_stride, std::uint8_t* scales, std::int64_t scales_stride, QuantizeRule rule,
    std::uint8_t* list_scale, std::uint16_t* list_sum, RowSummary& row) {
  for (int first = 0; first < blocks; first += group_blocks) {
    if ((others & 1u) != 0) {
      const int count = blocks - first < group_blocks ? blocks - first : group_blocks;
      merge(row, quantize_row_by_blocks<Avx512QuantizeAtom, Format, true>(
                     x + first * bytes, count, codes, 0, scales, 0, rule));
      std::memset(list_scale + first, 0, group_blocks);
      std::memset(list_sum + first, 0, group_blocks * sizeof(*list_sum));
    }
    others >>= 1;
    codes += codes_stride;
    scales += scales_stride;
  }
}

template <class Format, bool ToEven, bool Sums>
KOKKOSMX_AVX512_FUNCTION RowSummary Avx512QuantizeRow<Format, ToEven, Sums>::run(
    const unsigned char* x, std::int64_t blocks, std::uint8_t* codes, std::int64_t codes_stride,
    std::uint8_t* scales, std::int64_t scales_stride, QuantizeRule rule) {
  RowSummary row{};
  const __m512i rounding =
      _mm512_set1_epi16(static_cast<short>(Words::rounding_of(rule.scale_mode())));
  alignas(64) unsigned char rest[step * bytes];
  alignas(64) std::uint8_t unused[group_bytes];
  BlockList list;
  while (blocks > 0) {
    const int count = blocks < summary_blocks ? static_cast<int>(blocks) : summary_blocks;
    if (count < summary_blocks) std::memset(list.scale, 0, sizeof(list.scale));
    for (int k = 0; k < count; k += step) {
      const int here = count - k < step ? count - k : step;
      const unsigned char* from = x;
      if (here < step) {
        std::memset(rest, 0, sizeof(rest));
        std::memcpy(rest, x, static_cast<std::size_t>(here) * bytes);
        from = rest;
      } else {
        for (int line = 0; line < step * bytes; line += 64) {
          _mm_prefetch(reinterpret_cast<const char*>(x) + ahead + line, _MM_HINT_T0);
        }
      }
      const int groups = here > group_blocks ? 2 : 1;
      const unsigned others = quantize_8(from, codes, groups == 2 ? codes + codes_stride : unused,
                                         list.scale + k, list.sum + k, rounding);
      for (int g = 0; g < groups; ++g) {
        std::memcpy(scales + g * scales_stride, list.scale + k + g * group_blocks, group_blocks);
      }
      if (others != 0) [[unlikely]] {
        replace(others, x, here, codes, codes_stride, scales, scales_stride, rule, list.scale + k,
                list.sum + k, row);
      }
      x += here * bytes;
      codes += groups * codes_stride;
      scales += groups * scales_stride;
    }
    add_summary(row, list, count);
    blocks -= count;
  }
  if (!Sums && row.n != 0) row.n = 1;
  return row;
}

}  // namespace KokkosMX::Impl

#endif

#endif
