// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_QUANTIZE_AVX2_HPP
#define KOKKOSMX_SRC_ATOMS_QUANTIZE_AVX2_HPP

/// \file avx2.hpp
/// Rows by the words of words.hpp, 4 blocks at a time; the loops for one block compiled for AVX2,
/// in a library that is built without -march.

#include <KokkosMX/Types.hpp>

#include "../../operand.hpp"
#include "../atom_function.hpp"
#include "../copy/avx2.hpp"
#include "loops.hpp"
#include "words.hpp"

#include <cstdint>
#include <cstring>

#if KOKKOSMX_HAVE_X86_ATOMS

#include <immintrin.h>

namespace KokkosMX::Impl {

/// Rows' summaries from lists of blocks.
struct Avx2Summaries {
  /// The least byte of 64.
  KOKKOSMX_AVX2_INLINE static int least_byte(__m256i a, __m256i b) {
    const __m256i half = _mm256_min_epu8(a, b);
    __m128i lane = _mm_min_epu8(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    lane = _mm_min_epu8(lane, _mm_srli_epi16(lane, 8));
    return _mm_cvtsi128_si32(_mm_minpos_epu16(lane)) & 0xFF;
  }

  /// Merges a list of blocks into the summary of their row; without Sums its n is 1.
  template <bool Sums>
  KOKKOSMX_AVX2_INLINE static void add_summary(RowSummary& row, const BlockList& list, int blocks) {
    const __m256i a = _mm256_load_si256(reinterpret_cast<const __m256i*>(list.scale)),
                  b = _mm256_load_si256(reinterpret_cast<const __m256i*>(list.scale + 32));
    const __m256i one = _mm256_set1_epi8(1), all = _mm256_set1_epi8(-1);
    const int hi = 255 - least_byte(_mm256_xor_si256(a, all), _mm256_xor_si256(b, all));
    if (hi == 0) return;  // zeros
    const int lo = least_byte(_mm256_sub_epi8(a, one), _mm256_sub_epi8(b, one)) + 1;
    RowSummary part{};
    part.n = 1;
    part.lo = static_cast<std::uint8_t>(lo);
    part.hi = static_cast<std::uint8_t>(hi);
    if constexpr (Sums) {
      if (hi - lo > BlockList::most_spread) {
        part.n = list.sum_from(lo, blocks);
        merge(row, part);
        return;
      }
      __m256i n = _mm256_setzero_si256();
      for (int k = 0; k < blocks; k += group_blocks) {
        int four;
        std::memcpy(&four, list.scale + k, sizeof(four));
        const __m256i s = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
        const __m256i sum =
            _mm256_cvtepu16_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(list.sum + k)));
        // A block of zeros is shifted by what is no count of bits: it stays zero.
        const __m256i bits = _mm256_sub_epi64(_mm256_add_epi64(s, s), _mm256_set1_epi64x(2 * lo));
        n = _mm256_add_epi64(n, _mm256_sllv_epi64(sum, bits));
      }
      __m128i sum = _mm_add_epi64(_mm256_castsi256_si128(n), _mm256_extracti128_si256(n, 1));
      sum = _mm_add_epi64(sum, _mm_unpackhi_epi64(sum, sum));
      part.n = static_cast<std::uint64_t>(_mm_cvtsi128_si64(sum));
    }
    merge(row, part);
  }

  /// Sums of squares of two blocks, in their codes one after the other: words 0 and 8.
  KOKKOSMX_AVX2_INLINE static __m256i square_sums(__m256i codes) {
    const __m256i squares =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 9, 16, 36, 64, static_cast<char>(144), 0,
                                                  1, 4, 9, 16, 36, 64, static_cast<char>(144)));
    const __m256i nibble = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
    const __m256i low = _mm256_shuffle_epi8(squares, _mm256_and_si256(codes, nibble));
    const __m256i high =
        _mm256_shuffle_epi8(squares, _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble));
    const __m256i half = _mm256_add_epi64(_mm256_sad_epu8(low, zero), _mm256_sad_epu8(high, zero));
    return _mm256_add_epi64(half, _mm256_unpackhi_epi64(half, half));
  }
};

template <class Format, bool ToEven, bool Sums>
struct Avx2QuantizeRow {
  using Words = QuantizeWords<Format, ToEven>;
  static constexpr int p = Words::p;
  static constexpr int bytes = QuantizeLoops<Format>::bytes;
  /// How far ahead in x the cache is asked for.
  static constexpr int ahead = 2048;

  KOKKOSMX_AVX2_INLINE static __m256i load_256(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
  }
  /// All 16-bit words are v.
  KOKKOSMX_AVX2_INLINE static __m256i all_words(std::uint32_t v) {
    return _mm256_set1_epi16(static_cast<short>(v));
  }

  /// Half a block's numbers as words, signs included. Those of float32 lie as shuffle_ps leaves
  /// them: per lane the pairs 0, 1, 4, 5 and 2, 3, 6, 7 of the half.
  KOKKOSMX_AVX2_INLINE static __m256i words(const unsigned char* x) {
    if constexpr (Words::is_f32) {
      const __m256 first = _mm256_castsi256_ps(load_256(x));
      const __m256 second = _mm256_castsi256_ps(load_256(x + 32));
      const __m256i even = _mm256_castps_si256(_mm256_shuffle_ps(first, second, 0x88));
      const __m256i odd = _mm256_castps_si256(_mm256_shuffle_ps(first, second, 0xDD));
      const __m256i high = _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xAA);
      const __m256i low = _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xAA);
      return _mm256_or_si256(high, _mm256_min_epu16(low, all_words(1)));
    } else {
      return load_256(x);
    }
  }

  /// Half a block.
  struct Half {
    __m256i x, w;
  };
  KOKKOSMX_AVX2_INLINE static Half half(const unsigned char* x) {
    const __m256i v = words(x);
    return {v, _mm256_add_epi16(v, v)};
  }
  struct Block {
    Half low, high;
  };
  KOKKOSMX_AVX2_INLINE static Block block(const unsigned char* x) {
    return {half(x), half(x + bytes / 2)};
  }

  /// All ones where a word is no zero and may lose its sign.
  KOKKOSMX_AVX2_INLINE static __m256i small(__m256i w) {
    const __m256i moved = _mm256_sub_epi16(w, all_words(1));
    return _mm256_cmpeq_epi16(moved, _mm256_min_epu16(moved, all_words(Words::kept - 2)));
  }
  KOKKOSMX_AVX2_INLINE static __m256i small(const Block& v) {
    return _mm256_or_si256(small(v.low.w), small(v.high.w));
  }

  /// The maxima of two blocks, each in a lane.
  KOKKOSMX_AVX2_INLINE static __m256i maxima(const Block& a, const Block& b) {
    const __m256i in_a = _mm256_max_epu16(a.low.w, a.high.w);
    const __m256i in_b = _mm256_max_epu16(b.low.w, b.high.w);
    return _mm256_max_epu16(_mm256_permute2x128_si256(in_a, in_b, 0x20),
                            _mm256_permute2x128_si256(in_a, in_b, 0x31));
  }

  KOKKOSMX_AVX2_INLINE static __m256i indices(const Half& v, __m256i base) {
    __m256i w = v.w;
    if constexpr (ToEven) {
      w = _mm256_or_si256(w, _mm256_and_si256(_mm256_srli_epi16(v.x, p - 1), all_words(1)));
    }
    return _mm256_srli_epi16(_mm256_subs_epu16(w, base), p - 1);
  }
  /// The sign in bit 15; 0 for what has no sign.
  KOKKOSMX_AVX2_INLINE static __m256i sign(__m256i x) {
    return ToEven ? x : _mm256_subs_epu16(x, all_words(1));  // not of -0
  }

  /// A block's codes, without signs: per lane those of 8 words of the one half, then of the other.
  KOKKOSMX_AVX2_INLINE static __m256i magnitudes(const Block& v, const std::uint32_t* base) {
    const __m256i below = _mm256_set1_epi32(static_cast<int>(*base));
    const __m256i index = _mm256_packus_epi16(indices(v.low, below), indices(v.high, below));
    // Bytes from 128 on select 0: one table serves the indices below 16, the other those above.
    const __m256i moved = _mm256_add_epi8(index, _mm256_set1_epi8(112));
    const __m256i low = _mm256_broadcastsi128_si256(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes_of_indices.data())));
    const __m256i high = _mm256_broadcastsi128_si256(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes_of_indices.data() + 16)));
    return _mm256_or_si256(
        _mm256_shuffle_epi8(low, moved),
        _mm256_shuffle_epi8(high, _mm256_xor_si256(moved, _mm256_set1_epi8(-128))));
  }
  /// A block's bytes of codes, each in a word.
  KOKKOSMX_AVX2_INLINE static __m256i code_words(const Block& v, __m256i magnitude) {
    const __m256i signs = _mm256_packs_epi16(sign(v.low.x), sign(v.high.x));
    const __m256i bit_3 = _mm256_and_si256(_mm256_srli_epi16(signs, 4), _mm256_set1_epi8(8));
    return _mm256_maddubs_epi16(_mm256_or_si256(magnitude, bit_3), all_words(0x1001));
  }
  /// Sums of squares of a block's codes, in each 64 bits one.
  KOKKOSMX_AVX2_INLINE static __m256i square_sums(__m256i magnitude) {
    const __m256i squares = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 4, 9, 16, 36, 64, static_cast<char>(144), 0, 0, 0, 0, 0, 0, 0, 0));
    return _mm256_sad_epu8(_mm256_shuffle_epi8(squares, magnitude), _mm256_setzero_si256());
  }

  /// Two blocks' bytes of codes, one block after the other, from the words of each.
  KOKKOSMX_AVX2_INLINE static __m256i two_plain(__m256i first, __m256i second) {
    // Per lane the block's dwords (of float32: words) of even places, then those of odd ones.
    const __m256i order = Words::is_f32
                              ? _mm256_broadcastsi128_si256(_mm_setr_epi8(
                                    0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15))
                              : _mm256_broadcastsi128_si256(_mm_setr_epi8(
                                    0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15));
    const __m256i blocks = _mm256_permute4x64_epi64(_mm256_packus_epi16(first, second), 0xD8);
    return _mm256_shuffle_epi8(blocks, order);
  }

  /// Quantizes 4 blocks, their codes woven or block after block. False: some are not for the
  /// vectors, and what was stored is wrong.
  KOKKOSMX_AVX2_INLINE static bool quantize_4(const unsigned char* x, bool woven,
                                              std::uint8_t* codes, std::uint8_t* scales,
                                              std::uint16_t* sums, __m256i rounding) {
    const Block v0 = block(x), v1 = block(x + bytes);
    const Block v2 = block(x + 2 * bytes), v3 = block(x + 3 * bytes);

    // All four words of the four 64 bits: blocks 0, 2, 1, 3.
    const __m256i m0 = maxima(v0, v1), m1 = maxima(v2, v3);
    __m256i largest =
        _mm256_max_epu16(_mm256_unpacklo_epi64(m0, m1), _mm256_unpackhi_epi64(m0, m1));
    largest = _mm256_max_epu16(largest, _mm256_shuffle_epi32(largest, 0xB1));
    largest = _mm256_max_epu16(
        largest, _mm256_or_si256(_mm256_slli_epi32(largest, 16), _mm256_srli_epi32(largest, 16)));

    const __m256i exponent =
        _mm256_and_si256(_mm256_add_epi16(largest, rounding), all_words(~0u << (p + 1)));
    alignas(32) std::uint32_t base[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(base),
                       _mm256_sub_epi16(exponent, all_words(Words::below)));
    // Read back from memory, one word at a time in all lanes: that takes no shuffle. A compiler
    // that knows what was stored would shuffle.
    __asm__("" : "+m"(base));

    const __m256i t = _mm256_srli_epi16(exponent, p + 1);
    const __m256i scale =
        Words::scale_offset < 0
            ? _mm256_subs_epu16(t, all_words(-Words::scale_offset))
            : _mm256_andnot_si256(_mm256_cmpeq_epi16(t, _mm256_setzero_si256()),
                                  _mm256_add_epi16(t, all_words(Words::scale_offset)));
    const __m128i scale_bytes =
        _mm_packus_epi16(_mm256_castsi256_si128(scale), _mm256_extracti128_si256(scale, 1));
    const __m128i scale_order = _mm_setr_epi8(0, 8, 4, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    const int four = _mm_cvtsi128_si32(_mm_shuffle_epi8(scale_bytes, scale_order));
    std::memcpy(scales, &four, sizeof(four));

    // From least on and below end, or zero. Unsigned a <= b: a is the lesser of the two.
    const __m256i moved = _mm256_sub_epi16(largest, all_words(Words::least));
    const __m256i in_range = _mm256_cmpeq_epi16(
        moved, _mm256_min_epu16(moved, all_words(Words::end - Words::least - 1)));
    const __m256i zero = _mm256_cmpeq_epi16(largest, _mm256_setzero_si256());
    bool all = _mm256_movemask_epi8(_mm256_or_si256(in_range, zero)) == -1;
    if constexpr (Words::may_lose_signs) {
      const __m256i vanish = all_words(Words::vanish);
      const __m256i large = _mm256_cmpeq_epi16(largest, _mm256_max_epu16(largest, vanish));
      if (_mm256_testz_si256(large, large) == 0) [[unlikely]] {
        const __m256i any = _mm256_or_si256(_mm256_or_si256(small(v0), small(v1)),
                                            _mm256_or_si256(small(v2), small(v3)));
        all = all && _mm256_testz_si256(any, any) != 0;
      }
    }

    const __m256i c0 = magnitudes(v0, base), c1 = magnitudes(v1, base + 4);
    const __m256i c2 = magnitudes(v2, base + 2), c3 = magnitudes(v3, base + 6);
    const __m256i w0 = code_words(v0, c0), w1 = code_words(v1, c1);
    const __m256i w2 = code_words(v2, c2), w3 = code_words(v3, c3);
    __m256i first, second;
    if (woven) {
      // Bytes j of two blocks in a word.
      const __m256i p01 = _mm256_or_si256(w0, _mm256_slli_epi16(w1, 8));
      const __m256i p23 = _mm256_or_si256(w2, _mm256_slli_epi16(w3, 8));
      first = _mm256_unpacklo_epi16(p01, p23);
      second = _mm256_unpackhi_epi16(p01, p23);
      if constexpr (Words::is_f32) {
        first = _mm256_permute4x64_epi64(first, 0xD8);
        second = _mm256_permute4x64_epi64(second, 0xD8);
      }
    } else {
      first = two_plain(w0, w1);
      second = two_plain(w2, w3);
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), first);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + 32), second);
    if constexpr (Sums) {
      // A sum is at most 32 * 144, a word.
      const __m256i s =
          _mm256_or_si256(_mm256_or_si256(square_sums(c0), _mm256_slli_epi64(square_sums(c1), 16)),
                          _mm256_or_si256(_mm256_slli_epi64(square_sums(c2), 32),
                                          _mm256_slli_epi64(square_sums(c3), 48)));
      __m128i sum = _mm_add_epi16(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
      sum = _mm_add_epi16(sum, _mm_unpackhi_epi64(sum, sum));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(sums), sum);
    }
    return all;
  }

  KOKKOSMX_AVX2_FUNCTION static bool run(const BlockRows& rows);
};

struct Avx2QuantizeAtom {
  static constexpr const char* name = "avx2";

  template <class Format>
  KOKKOSMX_AVX2_FUNCTION static BlockResult quantize(const unsigned char* x, std::uint8_t* codes,
                                                     QuantizeRule rule) {
    return QuantizeLoops<Format>::quantize(x, codes, rule);
  }
  template <class Format, bool Sums>
  static bool quantize_rows(const BlockRows& rows) {
    return rows.rule.rounding() == Rounding::nearest_even
               ? Avx2QuantizeRow<Format, true, Sums>::run(rows)
               : Avx2QuantizeRow<Format, false, Sums>::run(rows);
  }
  template <class Format>
  static void dequantize_rows(const BlockRows& rows) {
    dequantize_rows_by_blocks<Avx2QuantizeAtom, Format>(rows);
  }
  KOKKOSMX_AVX2_FUNCTION static void summarize_rows(const BlockRows& rows) {
    const BlockRows from = rows;
    BlockList list;
    for (std::int64_t row = 0; row < from.rows; ++row) {
      RowSummary summary{};
      for (std::int64_t k = 0; k < from.blocks; k += group_blocks) {
        const std::int64_t left = from.blocks - k, group = k / group_blocks;
        const int in_list = static_cast<int>(k % summary_blocks);
        if (in_list == 0 && left < summary_blocks) list = {};
        const std::uint8_t* scales = from.scales_at(row, group);
        const int count = BlockRows::places(from.blocks, group);
        alignas(32) std::uint8_t plain[group_bytes] = {};
        if (from.codes_block == 0 && count == group_blocks) {
          Avx2CopyAtom::move<true, false>(
              {from.codes_at(row, group), 1, 0, plain, block_bytes, 0, 1});
        } else {
          from.get_codes(row, group, plain);
        }
        for (int b = 0; b < group_blocks; b += 2) {
          const __m256i sums = Avx2Summaries::square_sums(
              _mm256_load_si256(reinterpret_cast<const __m256i*>(plain + b * block_bytes)));
          list.sum[in_list + b] = static_cast<std::uint16_t>(_mm256_extract_epi16(sums, 0));
          list.sum[in_list + b + 1] = static_cast<std::uint16_t>(_mm256_extract_epi16(sums, 8));
        }
        for (int b = 0; b < count; ++b) list.scale[in_list + b] = scales[b * from.scales_1];
        if (in_list + group_blocks < summary_blocks && left > group_blocks) continue;
        if (list.clear_zeros()) {
          Avx2Summaries::add_summary<true>(summary, list, in_list + count);
        } else {
          list.add_one_by_one(summary);
        }
      }
      from.summaries[row * from.summaries_row] = summary;
    }
  }
  template <class Format>
  KOKKOSMX_AVX2_FUNCTION static void dequantize(const std::uint8_t* codes, std::uint8_t scale,
                                                unsigned char* x) {
    QuantizeLoops<Format>::dequantize(codes, scale, x);
  }
  KOKKOSMX_AVX2_FUNCTION static std::uint32_t sum_of_squares(const std::uint8_t* codes) {
    return sum_of_squares_loop(codes);
  }
};

template <class Format, bool ToEven, bool Sums>
KOKKOSMX_AVX2_FUNCTION bool Avx2QuantizeRow<Format, ToEven, Sums>::run(const BlockRows& rows) {
  const BlockRows to = rows;  // for all that a compiler knows, bytes could be its members
  const __m256i rounding = all_words(Words::rounding_of(to.rule.scale_mode()));
  const bool woven = to.codes_block == 0;
  const bool together = woven || to.codes_block == block_bytes;
  bool regular = true;
  BlockList list;
  for (std::int64_t row = 0; row < to.rows; ++row) {
    const unsigned char* x = to.x + row * to.x_row;
    RowSummary summary{};
    for (std::int64_t k = 0; k < to.blocks; k += group_blocks, x += group_blocks * bytes) {
      const std::int64_t left = to.blocks - k, group = k / group_blocks;
      const int in_list = static_cast<int>(k % summary_blocks);
      if (Sums && in_list == 0 && left < summary_blocks) {
        std::memset(list.scale, 0, sizeof(list.scale));
      }
      alignas(32) std::uint8_t codes[group_bytes];
      const bool whole = left >= group_blocks;
      bool vectors;
      if (whole) {
        for (int line = 0; line < group_blocks * bytes; line += 64) {
          _mm_prefetch(reinterpret_cast<const char*>(x) + ahead + line, _MM_HINT_T0);
        }
        vectors = quantize_4(x, woven, together ? to.codes_at(row, group) : codes,
                             list.scale + in_list, list.sum + in_list, rounding);
      } else {
        alignas(64) unsigned char rest[group_blocks * bytes] = {};
        std::memcpy(rest, x, static_cast<std::size_t>(left) * bytes);
        vectors =
            quantize_4(rest, woven, codes, list.scale + in_list, list.sum + in_list, rounding);
      }
      if (vectors) [[likely]] {
        if (!whole || !together) to.put_codes(row, group, codes);
        if (whole && to.scales_1 == 1) {
          std::memcpy(to.scales_at(row, group), list.scale + in_list, group_blocks);
        } else {
          to.put_scales(row, group, list.scale + in_list);
        }
      } else {
        regular = false;
        quantize_group_by_blocks<Avx2QuantizeAtom, Format>(to, row, group, summary);
        std::memset(list.scale + in_list, 0, group_blocks);
        std::memset(list.sum + in_list, 0, group_blocks * sizeof(list.sum[0]));
      }
      if (Sums && (in_list + group_blocks == summary_blocks || left <= group_blocks)) {
        Avx2Summaries::add_summary<Sums>(
            summary, list,
            static_cast<int>(in_list + (left < group_blocks ? left : std::int64_t{group_blocks})));
      }
    }
    if (Sums) to.summaries[row * to.summaries_row] = summary;
  }
  return regular;
}

}  // namespace KokkosMX::Impl

#endif

#endif
