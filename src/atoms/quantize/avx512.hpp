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
#include <utility>

#if KOKKOSMX_HAVE_X86_ATOMS

namespace KokkosMX::Impl {

/// Where VPERMB finds the bytes of a group, woven or block after block. Each 128-bit lane holds 4
/// bytes of each block: 2 of blocks 0, 1, 2 and 3, then 2 more of these. The words of a float32
/// block lie as shuffle_ps leaves them: lane l has the pairs 2 l, 2 l + 1, 8 + 2 l, 9 + 2 l.
template <bool IsF32, bool IsWoven>
inline constexpr std::array<std::uint8_t, 64> group_order = [] {
  std::array<std::uint8_t, 64> order{};
  for (std::size_t j = 0; j < 16; ++j) {
    const std::size_t lane = IsF32 ? j % 8 / 2 : j / 4;
    const std::size_t byte = IsF32 ? j / 8 * 2 + j % 2 : j % 4;
    for (std::size_t b = 0; b < 4; ++b) {
      order[IsWoven ? 4 * j + b : 16 * b + j] =
          static_cast<std::uint8_t>(16 * lane + 8 * (byte / 2) + 2 * b + byte % 2);
    }
  }
  return order;
}();

/// The codes of indices, in both nibbles.
inline constexpr std::array<std::uint8_t, 64> two_codes_of_indices = [] {
  std::array<std::uint8_t, 64> codes = codes_of_indices;
  for (std::uint8_t& code : codes) code = static_cast<std::uint8_t>(code | code << 4);
  return codes;
}();

/// Byte 4 j + b of a group to byte 16 b + j.
inline constexpr std::array<std::uint8_t, 64> plain_order = [] {
  std::array<std::uint8_t, 64> order{};
  for (std::size_t i = 0; i < 64; ++i) {
    order[i] = static_cast<std::uint8_t>(4 * (i % 16) + i / 16);
  }
  return order;
}();

/// Rows' summaries from lists of blocks.
struct Avx512Summaries {
  /// The least byte of 64.
  KOKKOSMX_AVX512_INLINE static int least_byte(__m512i v) {
    const __m256i half =
        _mm256_min_epu8(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    __m128i lane = _mm_min_epu8(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    lane = _mm_min_epu8(lane, _mm_srli_epi16(lane, 8));
    return _mm_cvtsi128_si32(_mm_minpos_epu16(lane)) & 0xFF;
  }

  /// Merges a list of blocks into the summary of their row; without Sums its n is 1.
  template <bool Sums>
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
      if (hi - lo > BlockList::most_spread) {
        part.n = list.sum_from(lo, blocks);
        merge(row, part);
        return;
      }
      __m512i n = _mm512_setzero_si512();
      if (hi - lo <= 6) {
        // 64 sums of at most 4608 << 12 fit 32 bits.
        for (int k = 0; k < blocks; k += 16) {
          const __m512i s = _mm512_cvtepu8_epi32(
              _mm_load_si128(reinterpret_cast<const __m128i*>(list.scale + k)));
          const __m512i sum = _mm512_cvtepu16_epi32(
              _mm256_load_si256(reinterpret_cast<const __m256i*>(list.sum + k)));
          const __m512i bits = _mm512_sub_epi32(_mm512_add_epi32(s, s), _mm512_set1_epi32(2 * lo));
          n = _mm512_add_epi32(n, _mm512_sllv_epi32(sum, bits));
        }
        part.n = static_cast<std::uint32_t>(_mm512_reduce_add_epi32(n));
        merge(row, part);
        return;
      }
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

  /// Sums of squares of four blocks, in their codes one after the other: a word in each 64 bits.
  KOKKOSMX_AVX512_INLINE static __m256i square_sums(__m512i codes) {
    const __m512i squares =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 9, 16, 36, 64, static_cast<char>(144), 0, 1,
                                             4, 9, 16, 36, 64, static_cast<char>(144)));
    const __m512i nibble = _mm512_set1_epi8(15), zero = _mm512_setzero_si512();
    const __m512i low = _mm512_shuffle_epi8(squares, _mm512_and_si512(codes, nibble));
    const __m512i high =
        _mm512_shuffle_epi8(squares, _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble));
    const __m512i half = _mm512_add_epi64(_mm512_sad_epu8(low, zero), _mm512_sad_epu8(high, zero));
    const __m512i both = _mm512_add_epi64(half, _mm512_shuffle_epi32(half, _MM_PERM_BADC));
    return _mm512_castsi512_si256(
        _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 0, 0, 0, 0), both));
  }
};

/// Two lists that take turns: a full one waits until the next is full, since what has just been
/// stored in small parts cannot be loaded at once without waiting for it.
struct Avx512Lists {
  BlockList list[2];
  int now = 0, blocks = 0;
  RowSummary* row = nullptr;  ///< of the other list, if that is full

  KOKKOSMX_AVX512_INLINE BlockList& open() { return list[now]; }
  /// Any: of any codes and scales.
  template <bool Sums, bool Any>
  KOKKOSMX_AVX512_INLINE void close(RowSummary& of_row, int count) {
    add<Sums, Any>();
    now = 1 - now;
    blocks = count;
    row = &of_row;
  }
  /// Adds the one that waits.
  template <bool Sums, bool Any>
  KOKKOSMX_AVX512_INLINE void add() {
    if (row == nullptr) return;
    BlockList& full = list[1 - now];
    if (Any && !clear_zeros(full)) [[unlikely]] {
      full.add_one_by_one(*row);
    } else {
      Avx512Summaries::add_summary<Sums>(*row, full, blocks);
    }
  }

 private:
  /// As BlockList's.
  KOKKOSMX_AVX512_INLINE static bool clear_zeros(BlockList& full) {
    const __m512i low = _mm512_load_si512(full.sum), high = _mm512_load_si512(full.sum + 32);
    const __m512i scale = _mm512_load_si512(full.scale);
    const __mmask64 sums = static_cast<__mmask64>(_mm512_test_epi16_mask(high, high)) << 32 |
                           _mm512_test_epi16_mask(low, low);
    const __mmask64 nan = _mm512_cmpeq_epi8_mask(scale, _mm512_set1_epi8(-1));
    if (nan != 0 || (sums & _mm512_testn_epi8_mask(scale, scale)) != 0) return false;
    _mm512_store_si512(full.scale, _mm512_maskz_mov_epi8(sums, scale));
    return true;
  }
};

template <class Format, bool ToEven, bool Sums>
struct Avx512QuantizeRow {
  using Words = QuantizeWords<Format, ToEven>;
  static constexpr int p = Words::p;
  static constexpr int bytes = QuantizeLoops<Format>::bytes;
  static constexpr int step = 8;  // blocks
  /// Asks caches for what comes after so many bytes of x: the first one where it is large, else the
  /// second, from twice as far. Measured on Sapphire Rapids and Zen 4.
  KOKKOSMX_AVX512_INLINE static void ask_ahead(const unsigned char* x, int count,
                                               bool first_cache) {
    constexpr int ahead = 4096;
    for (int line = 0; line < count; line += 64) {
      const auto* at = reinterpret_cast<const char*>(x) + line;
      if (first_cache) {
        _mm_prefetch(at + ahead, _MM_HINT_T0);
      } else {
        _mm_prefetch(at + 2 * ahead, _MM_HINT_T1);
      }
    }
  }

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

  /// The larger ones: of bytes or of words.
  template <class T>
  KOKKOSMX_AVX512_INLINE static __m512i larger(__m512i a, __m512i b) {
    return sizeof(T) == 1 ? _mm512_max_epu8(a, b) : _mm512_max_epu16(a, b);
  }
  /// Of two vectors, each in two 128-bit lanes.
  template <class T>
  KOKKOSMX_AVX512_INLINE static __m512i merge_halves(__m512i a, __m512i b) {
    return larger<T>(_mm512_mask_blend_epi64(0xF0, a, b), _mm512_shuffle_i64x2(a, b, 0x4E));
  }
  /// Of four vectors, each in a lane.
  template <class T>
  KOKKOSMX_AVX512_INLINE static __m512i merge_lanes(__m512i a, __m512i b) {
    return larger<T>(_mm512_shuffle_i64x2(a, b, 0x88), _mm512_shuffle_i64x2(a, b, 0xDD));
  }
  /// Of eight vectors: lane i has those of i and 4 + i, 64 bits each.
  template <class T>
  KOKKOSMX_AVX512_INLINE static __m512i merge_eight(__m512i v0, __m512i v1, __m512i v2, __m512i v3,
                                                    __m512i v4, __m512i v5, __m512i v6,
                                                    __m512i v7) {
    const __m512i a = merge_lanes<T>(merge_halves<T>(v0, v1), merge_halves<T>(v2, v3));
    const __m512i b = merge_lanes<T>(merge_halves<T>(v4, v5), merge_halves<T>(v6, v7));
    const __m512i crossed = _mm512_castpd_si512(
        _mm512_shuffle_pd(_mm512_castsi512_pd(a), _mm512_castsi512_pd(b), 0x55));
    return larger<T>(_mm512_mask_blend_epi64(0xAA, a, b), crossed);
  }

  /// Of each 64 bits, by VPMULTISHIFTQB: 4 bytes of the first, then, where the mask says second, 4
  /// of the second.
  KOKKOSMX_AVX512_INLINE static __m512i two_picks(__m512i a, __m512i b, __m512i control,
                                                  __mmask64 second) {
    return x86::multishift(x86::multishift(a, ~__mmask64{0}, control, a), second, control, b);
  }
  static constexpr __mmask64 second_of_two = 0xF0F0F0F0F0F0F0F0;
  /// What picks 8 bits of each word from a bit on. Where an index is 6 bits, others do not count.
  KOKKOSMX_AVX512_INLINE static __m512i eight_bits(int from) {
    const std::uint64_t four = 0x30201000u + static_cast<std::uint64_t>(from) * 0x01010101u;
    return _mm512_set1_epi64(static_cast<std::int64_t>(four | four << 32));
  }
  template <int from>
  KOKKOSMX_AVX512_INLINE static __m512i bytes_of_words(__m512i a, __m512i b) {
    return two_picks(a, b, eight_bits(from), second_of_two);
  }
  /// Indices of two blocks, and the signs of their words, which are in bit 5 of bytes, above them.
  KOKKOSMX_AVX512_INLINE static __m512i with_signs(__m512i index, __m512i signs, __m512i sign) {
    return _mm512_ternarylogic_epi32(index, signs, sign, 0xF8);
  }
  /// The indices and signs of two blocks.
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
      return with_signs(
          bytes_of_words<p - 1>(_mm512_subs_epu16(wa, below_a), _mm512_subs_epu16(wb, below_b)),
          bytes_of_words<10>(xa, xb), _mm512_set1_epi8(32));
    } else {
      const __m512i minus_zero = _mm512_set1_epi16(-0x8000);
      const __m512i sign = _mm512_set1_epi16(32 << (p - 1));
      __m512i a = _mm512_subs_epu16(wa, below_a);
      __m512i b = _mm512_subs_epu16(wb, below_b);
      a = _mm512_mask_add_epi16(a, _mm512_cmpgt_epu16_mask(xa, minus_zero), a, sign);
      b = _mm512_mask_add_epi16(b, _mm512_cmpgt_epu16_mask(xb, minus_zero), b, sign);
      return bytes_of_words<p - 1>(a, b);
    }
  }

  /// Sums of squares of two blocks: of each 64 bits one and the other.
  KOKKOSMX_AVX512_INLINE static __m512i square_sums(__m512i index) {
    const __m512i squares =
        x86::permute_bytes(index, _mm512_loadu_si512(squares_of_indices.data()));
    return x86::dot_add(_mm512_setzero_si512(), squares, _mm512_set1_epi8(1));
  }

  /// A group's codes from the indices of its blocks. A table has codes in both nibbles: the 8 bits
  /// in the middle of two of them are a byte of codes.
  KOKKOSMX_AVX512_INLINE static __m512i group_codes(__m512i i01, __m512i i23, __m512i table,
                                                    __m512i middle, __mmask64 second,
                                                    __m512i order) {
    return x86::permute_bytes(order, two_picks(x86::permute_bytes(i01, table),
                                               x86::permute_bytes(i23, table), middle, second));
  }
  KOKKOSMX_AVX512_INLINE static __m128i sums_of_8(__m512i i01, __m512i i23, __m512i i45,
                                                  __m512i i67) {
    // A sum is at most 32 * 144, a word. Each lane has a part of all eight.
    const __m512 first =
        _mm512_castsi512_ps(_mm512_packus_epi32(square_sums(i01), square_sums(i23)));
    const __m512 second =
        _mm512_castsi512_ps(_mm512_packus_epi32(square_sums(i45), square_sums(i67)));
    const __m512i parts =
        _mm512_add_epi16(_mm512_castps_si512(_mm512_shuffle_ps(first, second, 0x88)),
                         _mm512_castps_si512(_mm512_shuffle_ps(first, second, 0xDD)));
    const __m256i half =
        _mm256_add_epi16(_mm512_castsi512_si256(parts), _mm512_extracti64x4_epi64(parts, 1));
    return _mm_add_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  }

  /// Words, doubled, that are no zeros and may lose their signs.
  KOKKOSMX_AVX512_INLINE static __mmask32 small(__m512i w) {
    return _mm512_cmplt_epu16_mask(_mm512_sub_epi16(w, _mm512_set1_epi16(1)),
                                   _mm512_set1_epi16(static_cast<short>(Words::kept - 1)));
  }

  /// What quantizing 8 blocks gives.
  struct Eight {
    __m512i codes[2];  ///< of the groups, in the order that was asked for
    __m128i scales;    ///< 8 bytes
    __m128i sums;      ///< 8 words
    /// The bits are the groups (0, 1) that hold blocks which are not for the vectors: what stands
    /// here for them is wrong.
    unsigned others;
  };

  KOKKOSMX_AVX512_INLINE static Eight quantize_8(const unsigned char* x, __m512i rounding,
                                                 __m512i order) {
    Eight result;
    const __m512i x0 = words(x), x1 = words(x + bytes);
    const __m512i x2 = words(x + 2 * bytes), x3 = words(x + 3 * bytes);
    const __m512i x4 = words(x + 4 * bytes), x5 = words(x + 5 * bytes);
    const __m512i x6 = words(x + 6 * bytes), x7 = words(x + 7 * bytes);
    const __m512i w0 = _mm512_add_epi16(x0, x0), w1 = _mm512_add_epi16(x1, x1);
    const __m512i w2 = _mm512_add_epi16(x2, x2), w3 = _mm512_add_epi16(x3, x3);
    const __m512i w4 = _mm512_add_epi16(x4, x4), w5 = _mm512_add_epi16(x5, x5);
    const __m512i w6 = _mm512_add_epi16(x6, x6), w7 = _mm512_add_epi16(x7, x7);

    // Lane b: blocks b and 4 + b, in all four words of a half.
    __m512i largest = merge_eight<std::uint16_t>(w0, w1, w2, w3, w4, w5, w6, w7);
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
    result.scales = _mm512_castsi512_si128(x86::permute_bytes(scale_order, scale));

    // Neither zero nor from least on and below end.
    __mmask32 others = _mm512_mask_cmpge_epu16_mask(
        _mm512_test_epi16_mask(largest, largest),
        _mm512_sub_epi16(largest, _mm512_set1_epi16(static_cast<short>(Words::least))),
        _mm512_set1_epi16(static_cast<short>(Words::end - Words::least)));
    if constexpr (Words::may_lose_signs) {
      const __m512i vanish = _mm512_set1_epi16(static_cast<short>(Words::vanish));
      if (_mm512_cmpge_epu16_mask(largest, vanish) != 0) [[unlikely]] {
        const __mmask32 in_0 = small(w0) | small(w1) | small(w2) | small(w3);
        const __mmask32 in_1 = small(w4) | small(w5) | small(w6) | small(w7);
        others |= (in_0 != 0 ? 0x0F0F0F0Fu : 0u) | (in_1 != 0 ? 0xF0F0F0F0u : 0u);
      }
    }

    const __m512i i01 = indices(x0, w0, base, x1, w1, base + 4);
    const __m512i i23 = indices(x2, w2, base + 8, x3, w3, base + 12);
    const __m512i i45 = indices(x4, w4, base + 2, x5, w5, base + 6);
    const __m512i i67 = indices(x6, w6, base + 10, x7, w7, base + 14);
    const __m512i table = _mm512_loadu_si512(two_codes_of_indices.data()), middle = eight_bits(4);
    result.codes[0] = group_codes(i01, i23, table, middle, second_of_two, order);
    result.codes[1] = group_codes(i45, i67, table, middle, second_of_two, order);
    if constexpr (Sums) result.sums = sums_of_8(i01, i23, i45, i67);
    result.others =
        ((others & 0x0F0F0F0Fu) != 0 ? 1u : 0u) | ((others & 0xF0F0F0F0u) != 0 ? 2u : 0u);
    return result;
  }

  /// What quantizing by quarters needs, in registers or next to them: a compiler that knew these
  /// numbers would make them anew for every 16 blocks.
  struct Quarters {
    __m512i floor, far, least, most, rounding, mantissa, to_scale, scale_order;  // of scales
    __m512i quarters, signs, sign, table, middle, order;                         // of codes
    __m512i squares, weights;                                                    // of sums
    __mmask64 second;
    bool first_cache;

    KOKKOSMX_AVX512_INLINE Quarters(ScaleMode mode, __m512i order_of_group)
        : floor(_mm512_set1_epi16(static_cast<short>(Words::window << p))),
          far(_mm512_set1_epi16(static_cast<short>(0x8000 - (Words::window_size << p)))),
          least(_mm512_set1_epi8(Words::least_quarter)),
          most(_mm512_set1_epi8(static_cast<char>(Words::most_quarter - Words::least_quarter))),
          rounding(_mm512_set1_epi8(mode == ScaleMode::even ? 1 : 0)),
          mantissa(_mm512_set1_epi8(-4)),
          to_scale(_mm512_set1_epi8(static_cast<char>(Words::window + Words::scale_offset))),
          scale_order(_mm512_castsi128_si512(
              _mm_setr_epi8(0, 4, 16, 20, 32, 36, 48, 52, 8, 12, 24, 28, 40, 44, 56, 60))),
          quarters(eight_bits(p - 2)),
          signs(eight_bits(10)),
          sign(_mm512_set1_epi8(32)),
          table(_mm512_loadu_si512(two_codes_of_indices.data())),
          middle(eight_bits(4)),
          order(order_of_group),
          squares(_mm512_loadu_si512(squares_of_indices.data())),
          weights(_mm512_set4_epi32(64, 16, 4, 1)),
          second(second_of_two),
          first_cache(x86::has_large_first_cache()) {
      for (__m512i* v : {&floor, &far, &least, &most, &rounding, &mantissa, &to_scale, &scale_order,
                         &quarters, &signs, &sign, &table, &middle, &order, &squares, &weights}) {
        __asm__("" : "+v"(*v));
      }
      __asm__("" : "+Yk"(second));
    }
  };

  /// 16 blocks whose scales are known. Number 2 * i + h of 64 bits is for the blocks 8 * h + 2 * i
  /// and the next one, 4 equal bytes each.
  struct Sixteen {
    __m512i quarters[8];  ///< of two blocks each
    alignas(64) std::uint64_t base[8];
    alignas(64) std::uint64_t weight[8];
  };
  struct Scales {
    __m128i scale;     ///< of 16 blocks
    __m512i exponent;  ///< as base and weight are stored, times 4, from the window's floor
    bool are_inside;   ///< else some number is out of the window, and nothing is right
  };

  KOKKOSMX_AVX512_INLINE static void load_quarters(const Quarters& q, const unsigned char* x,
                                                   __m512i (&quarters)[8], __m512i& any) {
    ask_ahead(x, 16 * bytes, q.first_cache);
    any = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const unsigned char* pair = x + 2 * i * bytes;
      const __m512i a = _mm512_subs_epu16(words(pair), q.floor);
      const __m512i b = _mm512_subs_epu16(words(pair + bytes), q.floor);
      any = _mm512_ternarylogic_epi32(any, a, b, 0xFE);  // all three, or-ed
      quarters[i] = two_picks(a, b, q.quarters, q.second);
    }
  }
  KOKKOSMX_AVX512_INLINE static Scales find_scales(const Quarters& q, const __m512i (&v)[8],
                                                   __m512i any, Sixteen& to) {
    // Lane i: in all dwords of a kind the blocks 2 i, 2 i + 1, 8 + 2 i, 9 + 2 i.
    __m512i largest = merge_eight<std::uint8_t>(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]);
    largest = _mm512_max_epu8(largest, _mm512_rol_epi32(largest, 16));
    largest = _mm512_max_epu8(largest, _mm512_rol_epi32(largest, 8));
    const __mmask64 outside = _mm512_cmpgt_epu8_mask(_mm512_sub_epi8(largest, q.least), q.most);
    const __mmask32 far = _mm512_test_epi16_mask(any, q.far);
    const __m512i exponent = _mm512_and_si512(_mm512_add_epi8(largest, q.rounding), q.mantissa);
    _mm512_store_si512(to.base, _mm512_sub_epi8(exponent, q.least));
    __asm__("" : "+m"(to.base));  // as in quantize_8
    const __m512i scale = _mm512_add_epi8(_mm512_srli_epi32(exponent, 2), q.to_scale);
    return {_mm512_castsi512_si128(x86::permute_bytes(q.scale_order, scale)), exponent,
            (outside | far) == 0};
  }
  /// The codes of the blocks at x, group by group; with Sums, sums of squares times the blocks'
  /// weights are added to those that there are.
  KOKKOSMX_AVX512_INLINE static void make_codes(const Quarters& q, const Sixteen& from,
                                                const unsigned char* x, __m512i (&codes)[4],
                                                __m512i& sums) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      __m512i index[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const unsigned char* pair = x + (8 * h + 2 * i) * bytes;
        const __m512i below = _mm512_set1_epi64(static_cast<std::int64_t>(from.base[2 * i + h]));
        index[i] =
            with_signs(_mm512_subs_epu8(from.quarters[4 * h + i], below),
                       two_picks(words(pair), words(pair + bytes), q.signs, q.second), q.sign);
        if constexpr (Sums) {
          sums = x86::dot_add(sums, x86::permute_bytes(index[i], q.squares),
                              _mm512_set1_epi64(static_cast<std::int64_t>(from.weight[2 * i + h])));
        }
      }
#pragma GCC unroll 2
      for (int g = 0; g < 2; ++g) {
        codes[2 * h + g] =
            group_codes(index[2 * g], index[2 * g + 1], q.table, q.middle, q.second, q.order);
      }
    }
  }

  /// Makes and stores them; are_whole: groups of codes are stored whole.
  KOKKOSMX_AVX512_INLINE static void finish(const BlockRows& rows, bool are_whole,
                                            const Quarters& q, const Sixteen& from,
                                            const unsigned char* x, std::uint8_t* to,
                                            __m512i& sums) {
    __m512i codes[4];
    make_codes(q, from, x, codes, sums);
    if (are_whole) {
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) _mm512_storeu_si512(to + g * rows.codes_group, codes[g]);
    } else {
      for (int g = 0; g < 4; ++g) store_group(rows, to + g * rows.codes_group, codes[g]);
    }
  }

  /// Blocks of a row, from `first` on, whose sums of squares are added up: each times 4^(scale -
  /// from), if its scale is one of four from there.
  struct RowPart {
    static constexpr int scales = 4;
    /// Of 16 blocks an accumulator of 32 bits takes 8 products, each up to 4 * 144 * 64.
    static constexpr std::int64_t most_blocks = std::int64_t{16} * 8192;
    static_assert(most_blocks / 16 * 8 * 4 * 144 * 64 < std::int64_t{1} << 32);
    __m128i least, most;  ///< of the scales, in 16 places
    std::int64_t row, first, end;
    int from;
  };
  /// In all places.
  KOKKOSMX_AVX512_INLINE static __m128i least_of_16(__m128i v) {
    return _mm_minpos_epu16(_mm_min_epu8(v, _mm_srli_epi16(v, 8)));
  }
  /// Merges a part into the summary of its row; the sums become those of the next part.
  KOKKOSMX_AVX512_INLINE static void add_part(const BlockRows& rows, const RowPart& part,
                                              __m512i& sums);

  /// Where a call has come to: a block of a row.
  struct Position {
    std::int64_t row, block;
  };
  /// Quantizes by quarters from a block on, row after row, up to where a number is out of the
  /// window or a row has no 16 blocks left. Of each two times 16 blocks the first ones' codes and
  /// the others' scales are made together: either waits for its own results most of the time.
  KOKKOSMX_AVX512_FUNCTION static Position by_quarters(const BlockRows& rows, __m512i order,
                                                       Position at);

  /// The codes of a group that has 4 places.
  KOKKOSMX_AVX512_INLINE static void store_group(const BlockRows& rows, std::uint8_t* to,
                                                 __m512i codes) {
    if (rows.stream) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to), codes);
      return;
    }
    if (rows.codes_block == 0 || rows.codes_block == block_bytes) {
      _mm512_storeu_si512(to, codes);
      return;
    }
    const auto at = [&](int b) { return reinterpret_cast<__m128i*>(to + b * rows.codes_block); };
    _mm_storeu_si128(at(0), _mm512_castsi512_si128(codes));
    _mm_storeu_si128(at(1), _mm512_extracti32x4_epi32(codes, 1));
    _mm_storeu_si128(at(2), _mm512_extracti32x4_epi32(codes, 2));
    _mm_storeu_si128(at(3), _mm512_extracti32x4_epi32(codes, 3));
  }
  /// The scales of two groups that have 8 places.
  KOKKOSMX_AVX512_INLINE static void store_scales(const BlockRows& rows, std::uint8_t* to,
                                                  __m128i scales) {
    if (rows.scales_1 == 1 && rows.scales_4 == group_blocks) {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(to), scales);
    } else if (rows.scales_1 == 1) {
      const int first = _mm_cvtsi128_si32(scales), second = _mm_extract_epi32(scales, 1);
      std::memcpy(to, &first, sizeof(first));
      std::memcpy(to + rows.scales_4, &second, sizeof(second));
    } else {
      auto bytes = static_cast<std::uint64_t>(_mm_cvtsi128_si64(scales));
      for (int b = 0; b < group_blocks; ++b) {
        to[b * rows.scales_1] = static_cast<std::uint8_t>(bytes >> (8 * b));
        to[b * rows.scales_1 + rows.scales_4] = static_cast<std::uint8_t>(bytes >> (32 + 8 * b));
      }
    }
  }

  /// The groups of `others` among the 8 blocks from a place on, by the loops; they leave the list,
  /// which is null without Sums and has the blocks from in_list on.
  __attribute__((noinline)) static void replace(unsigned others, const BlockRows& rows, Position at,
                                                BlockList* list, int in_list, RowSummary& summary);
  /// Quantizes by words from a block on, at least until `end`, or until the row's, then `at` is
  /// where the next one begins; whether all blocks are regular.
  KOKKOSMX_AVX512_INLINE static bool by_words(const BlockRows& to, __m512i rounding, __m512i order,
                                              Position& at, std::int64_t end, Avx512Lists& lists,
                                              RowSummary& summary);

  KOKKOSMX_AVX512_FUNCTION static bool run(const BlockRows& rows);
};

struct Avx512QuantizeAtom {
  static constexpr const char* name = "avx512";

  template <class Format>
  KOKKOSMX_AVX512_FUNCTION static BlockResult quantize(const unsigned char* x, std::uint8_t* codes,
                                                       QuantizeRule rule) {
    return QuantizeLoops<Format>::quantize(x, codes, rule);
  }
  template <class Format, bool Sums>
  static bool quantize_rows(const BlockRows& rows) {
    return rows.rule.rounding() == Rounding::nearest_even
               ? Avx512QuantizeRow<Format, true, Sums>::run(rows)
               : Avx512QuantizeRow<Format, false, Sums>::run(rows);
  }
  template <class Format>
  KOKKOSMX_AVX512_FUNCTION static void dequantize_rows(const BlockRows& rows);
  KOKKOSMX_AVX512_FUNCTION static void summarize_rows(const BlockRows& rows) {
    const BlockRows from = rows;
    const __m512i order = _mm512_loadu_si512(plain_order.data());
    Avx512Lists lists;
    for (std::int64_t row = 0; row < from.rows; ++row) {
      RowSummary& summary = from.summaries[row * from.summaries_row];
      summary = {};
      for (std::int64_t k = 0; k < from.blocks; k += group_blocks) {
        const std::int64_t left = from.blocks - k, group = k / group_blocks;
        const int in_list = static_cast<int>(k % summary_blocks);
        BlockList& list = lists.open();
        if (in_list == 0 && left < summary_blocks) list = {};
        const std::uint8_t* codes = from.codes_at(row, group);
        const std::uint8_t* scales = from.scales_at(row, group);
        __m512i plain;
        if (from.codes_block == 0) {
          plain = x86::permute_bytes(order, _mm512_loadu_si512(codes));
        } else if (left >= group_blocks && from.codes_block == block_bytes) {
          plain = _mm512_loadu_si512(codes);
        } else {
          alignas(64) std::uint8_t bytes[group_bytes] = {};
          from.get_codes(row, group, bytes);
          plain = _mm512_load_si512(bytes);
        }
        // Past the row's end there may be anything.
        const int count = BlockRows::places(from.blocks, group);
        const __mmask8 inside = static_cast<__mmask8>((1u << count) - 1);
        _mm_storel_epi64(reinterpret_cast<__m128i*>(list.sum + in_list),
                         _mm256_maskz_cvtepi64_epi16(inside, Avx512Summaries::square_sums(plain)));
        if (count == group_blocks && from.scales_1 == 1) {
          std::memcpy(list.scale + in_list, scales, group_blocks);
        } else {
          for (int b = 0; b < count; ++b) list.scale[in_list + b] = scales[b * from.scales_1];
        }
        if (in_list + group_blocks < summary_blocks && left > group_blocks) continue;
        lists.close<true, true>(summary, in_list + count);
      }
    }
    lists.add<true, true>();
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
void Avx512QuantizeRow<Format, ToEven, Sums>::replace(unsigned others, const BlockRows& rows,
                                                      Position at, BlockList* list, int in_list,
                                                      RowSummary& summary) {
  for (int g = 0; g < 2; ++g) {
    const std::int64_t group = at.block / group_blocks + g;
    if ((others >> g & 1u) == 0 || group_blocks * group >= rows.blocks) continue;
    quantize_group_by_blocks<Avx512QuantizeAtom, Format>(rows, at.row, group, summary);
    if (list == nullptr) continue;
    const int first = in_list + g * group_blocks;
    std::memset(list->scale + first, 0, group_blocks);
    std::memset(list->sum + first, 0, group_blocks * sizeof(*list->sum));
  }
}

template <class Format, bool ToEven, bool Sums>
KOKKOSMX_AVX512_INLINE void Avx512QuantizeRow<Format, ToEven, Sums>::add_part(const BlockRows& rows,
                                                                              const RowPart& part,
                                                                              __m512i& sums) {
  const __m512i low = _mm512_cvtepu32_epi64(_mm512_castsi512_si256(sums));
  const __m512i high = _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(sums, 1));
  const auto n = static_cast<std::uint64_t>(_mm512_reduce_add_epi64(_mm512_add_epi64(low, high)));
  sums = _mm512_setzero_si512();
  const __m128i all = _mm_set1_epi8(-1);
  const int lo = _mm_cvtsi128_si32(least_of_16(part.least)) & 0xFF;
  const int hi = 255 - (_mm_cvtsi128_si32(least_of_16(_mm_xor_si128(part.most, all))) & 0xFF);
  RowSummary summary{};
  if (lo >= part.from && hi < part.from + RowPart::scales) [[likely]] {
    summary.n = n >> (2 * (lo - part.from));
    summary.lo = static_cast<std::uint8_t>(lo);
    summary.hi = static_cast<std::uint8_t>(hi);
  } else {
    // From the codes, which are there.
    const std::int64_t group = part.first / group_blocks;
    BlockRows blocks = rows;
    blocks.rows = 1;
    blocks.blocks = part.end - part.first;
    blocks.codes = rows.codes_at(part.row, group);
    blocks.scales = rows.scales_at(part.row, group);
    blocks.summaries = &summary;
    Avx512QuantizeAtom::summarize_rows(blocks);
  }
  merge(rows.summaries[part.row * rows.summaries_row], summary);
}

template <class Format, bool ToEven, bool Sums>
KOKKOSMX_AVX512_FUNCTION auto Avx512QuantizeRow<Format, ToEven, Sums>::by_quarters(
    const BlockRows& rows, __m512i order, Position at) -> Position {
  constexpr int count = 16;
  const BlockRows to = rows;
  const Quarters q(to.rule.scale_mode(), order);
  const bool are_whole = !to.stream && (to.codes_block == 0 || to.codes_block == block_bytes);
  Sixteen sixteen[2];
  Sixteen *next = sixteen, *waiting = sixteen + 1;
  // Of those that wait, if any.
  const unsigned char* x_waiting = nullptr;
  std::uint8_t* codes_waiting = nullptr;
  bool ends_part = false;
  // Of the row that is under way, if it is, and of what waits, if it ends one.
  RowPart part{}, ended{};
  bool is_part = false;
  __m512i sums = _mm512_setzero_si512(), from = sums;

  for (; at.row < to.rows; ++at.row, at.block = 0) {
    const unsigned char* x = to.x + at.row * to.x_row + at.block * bytes;
    std::uint8_t* codes = to.codes_at(at.row, at.block / group_blocks);
    std::uint8_t* scales = to.scales_at(at.row, at.block / group_blocks);
    if constexpr (Sums) {
      if (at.block == 0) to.summaries[at.row * to.summaries_row] = {};
    }
    for (; to.blocks - at.block >= count; at.block += count) {
      __m512i quarters[8], any;
      load_quarters(q, x, quarters, any);
      if (x_waiting != nullptr) {
        finish(to, are_whole, q, *waiting, x_waiting, codes_waiting, sums);
        x_waiting = nullptr;
      }
      if (Sums && ends_part) {
        add_part(to, ended, sums);
        ends_part = false;
      }
      const Scales found = find_scales(q, quarters, any, *next);
      if (!found.are_inside) [[unlikely]] {
        if (Sums && is_part) add_part(to, part, sums);
        return at;
      }
      if constexpr (Sums) {
        if (is_part) {
          part.least = _mm_min_epu8(part.least, found.scale);
          part.most = _mm_max_epu8(part.most, found.scale);
        } else {
          // One scale below the least of these.
          const __m128i least = least_of_16(found.scale), one = _mm_set1_epi8(1);
          part = {found.scale, found.scale, at.row,
                  at.block,    at.block,    (_mm_cvtsi128_si32(least) & 0xFF) - 1};
          from = _mm512_broadcastb_epi8(_mm_slli_epi16(
              _mm_sub_epi8(_mm_sub_epi8(least, one), _mm512_castsi512_si128(q.to_scale)), 2));
        }
        part.end += count;
        _mm512_store_si512(next->weight,
                           _mm512_shuffle_epi8(q.weights, _mm512_sub_epi8(found.exponent, from)));
        __asm__("" : "+m"(next->weight));
        ends_part = to.blocks - part.end < count || part.end - part.first == RowPart::most_blocks;
        is_part = !ends_part;
        if (ends_part) ended = part;
      }
      store_scales(to, scales, found.scale);
      store_scales(to, scales + to.scales_8, _mm_unpackhi_epi64(found.scale, found.scale));
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) next->quarters[i] = quarters[i];
      x_waiting = x;
      codes_waiting = codes;
      std::swap(next, waiting);
      x += count * bytes;
      codes += 4 * to.codes_group;
      scales += 2 * to.scales_8;
    }
    if (at.block < to.blocks) break;
  }
  if (x_waiting != nullptr) {
    finish(to, are_whole, q, *waiting, x_waiting, codes_waiting, sums);
  }
  if (Sums && ends_part) add_part(to, ended, sums);
  return at;
}

template <class Format, bool ToEven, bool Sums>
KOKKOSMX_AVX512_INLINE bool Avx512QuantizeRow<Format, ToEven, Sums>::by_words(
    const BlockRows& to, __m512i rounding, __m512i order, Position& at, std::int64_t end,
    Avx512Lists& lists, RowSummary& summary) {
  const unsigned char* x = to.x + at.row * to.x_row + at.block * bytes;
  std::uint8_t* codes = to.codes_at(at.row, at.block / group_blocks);
  std::uint8_t* scales = to.scales_at(at.row, at.block / group_blocks);
  const bool first_cache = x86::has_large_first_cache();
  bool regular = true;
  int in_list = 0;
  std::int64_t& k = at.block;
  for (; k < to.blocks && (k < end || to.blocks - k < 2 * step); k += step) {
    const std::int64_t left = to.blocks - k;
    BlockList& list = lists.open();
    if (Sums && in_list == 0) std::memset(list.scale, 0, sizeof(list.scale));
    unsigned others;
    if (left >= step) {
      ask_ahead(x, step * bytes, first_cache);
      const Eight eight = quantize_8(x, rounding, order);
      store_group(to, codes, eight.codes[0]);
      store_group(to, codes + to.codes_group, eight.codes[1]);
      store_scales(to, scales, eight.scales);
      if constexpr (Sums) {
        _mm_storel_epi64(reinterpret_cast<__m128i*>(list.scale + in_list), eight.scales);
        _mm_store_si128(reinterpret_cast<__m128i*>(list.sum + in_list), eight.sums);
      }
      others = eight.others;
      x += step * bytes;
      codes += 2 * to.codes_group;
      scales += to.scales_8;
    } else {
      alignas(64) unsigned char rest[step * bytes] = {};
      std::memcpy(rest, x, static_cast<std::size_t>(left) * bytes);
      const Eight eight = quantize_8(rest, rounding, order);
      alignas(64) std::uint8_t bytes_of[2][group_bytes];
      _mm512_store_si512(bytes_of[0], eight.codes[0]);
      _mm512_store_si512(bytes_of[1], eight.codes[1]);
      std::uint8_t scale_of[step];
      _mm_storel_epi64(reinterpret_cast<__m128i*>(scale_of), eight.scales);
      for (int g = 0; group_blocks * g < left; ++g) {
        to.put_codes(at.row, k / group_blocks + g, bytes_of[g]);
        to.put_scales(at.row, k / group_blocks + g, scale_of + group_blocks * g);
      }
      if constexpr (Sums) {
        std::memcpy(list.scale + in_list, scale_of, sizeof(scale_of));
        _mm_store_si128(reinterpret_cast<__m128i*>(list.sum + in_list), eight.sums);
      }
      others = eight.others;
    }
    if (others != 0) [[unlikely]] {
      replace(others, to, at, Sums ? &list : nullptr, in_list, summary);
      regular = false;
    }
    in_list += static_cast<int>(left < step ? left : std::int64_t{step});
    if (Sums && in_list == summary_blocks) {
      lists.close<Sums, false>(summary, in_list);
      in_list = 0;
    }
  }
  if (Sums && in_list != 0) lists.close<Sums, false>(summary, in_list);
  if (k >= to.blocks) at = {at.row + 1, 0};
  return regular;
}

template <class Format, bool ToEven, bool Sums>
KOKKOSMX_AVX512_FUNCTION bool Avx512QuantizeRow<Format, ToEven, Sums>::run(const BlockRows& rows) {
  BlockRows to = rows;  // for all that a compiler knows, bytes could be its members
  const auto places = reinterpret_cast<std::uintptr_t>(to.codes) |
                      static_cast<std::uintptr_t>(to.codes_row | to.codes_group);
  to.stream = to.stream && places % group_bytes == 0 &&
              (to.codes_block == 0 || to.codes_block == block_bytes);
  const ScaleMode mode = to.rule.scale_mode();
  const __m512i rounding = _mm512_set1_epi16(static_cast<short>(Words::rounding_of(mode)));
  const __m512i order =
      _mm512_loadu_si512(to.codes_block == 0 ? group_order<Words::is_f32, true>.data()
                                             : group_order<Words::is_f32, false>.data());
  const bool takes_quarters = Words::by_quarters(mode);
  bool regular = true;
  Avx512Lists lists;
  for (Position at{0, 0}; at.row < to.rows;) {
    std::int64_t words_to = 0;  // before it, by words
    if constexpr (Words::has_quarters) {
      if (takes_quarters) {
        at = by_quarters(to, order, at);
        if (at.row == to.rows) break;
        // Where one number is out of the window, more may be.
        words_to = at.block + summary_blocks;
      }
    }
    if (!takes_quarters) words_to = to.blocks;
    RowSummary unasked{};
    RowSummary* summary = &unasked;
    if constexpr (Sums) {
      summary = to.summaries + at.row * to.summaries_row;
      if (at.block == 0) *summary = {};
    }
    regular &= by_words(to, rounding, order, at, words_to, lists, *summary);
  }
  if constexpr (Sums) lists.add<Sums, false>();
  if (to.stream) _mm_sfence();
  return regular;
}

/// Dequantizes blocks whose scales have normal numbers only, by a table of a code's numbers that a
/// block's exponent is added to.
template <class Format>
struct Avx512Dequantize {
  using bits = typename Format::bits;
  using Loops = QuantizeLoops<Format>;
  static constexpr int size = 64 / static_cast<int>(sizeof(bits));

  /// The numbers of code i % 16 at the scale 128 less the bias: what is added is 0 there.
  static constexpr std::array<bits, size> table = [] {
    std::array<bits, size> numbers{};
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      const unsigned magnitude = i & 7;
      const bits finite =
          static_cast<bits>((magnitude - (magnitude == 1 ? 1u : 0u)) << (Format::mantissa - 1));
      numbers[i] =
          static_cast<bits>((magnitude == 0 ? 0u : finite) | ((i & 8) << (Loops::sign_shift - 3)));
    }
    return numbers;
  }();

  KOKKOSMX_AVX512_INLINE static void block(const std::uint8_t* codes, int scale, unsigned char* x) {
    const auto exponent = static_cast<bits>((scale - 128 + Format::bias) * (1 << Format::mantissa));
    const __m512i numbers = _mm512_loadu_si512(table.data());
    const __m512i bytes =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    if constexpr (sizeof(bits) == 2) {
      const __m512i all = _mm512_mask_add_epi16(numbers, 0xFEFEFEFE, numbers,
                                                _mm512_set1_epi16(static_cast<short>(exponent)));
      // A byte's high nibble goes to the upper word; only 5 bits of an index count, and the
      // table repeats.
      const __m512i index = _mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12));
      _mm512_storeu_si512(x, _mm512_permutexvar_epi16(index, all));
    } else {
      const __m512i all = _mm512_mask_add_epi32(numbers, 0xFEFE, numbers,
                                                _mm512_set1_epi32(static_cast<int>(exponent)));
      // Only 4 bits of an index count.
      const __m512i even = _mm512_permutexvar_epi32(bytes, all);
      const __m512i odd = _mm512_permutexvar_epi32(_mm512_srli_epi32(bytes, 4), all);
      const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
      _mm512_storeu_si512(x, _mm512_permutex2var_epi32(even, low, odd));
      _mm512_storeu_si512(x + 64, _mm512_permutex2var_epi32(even, high, odd));
    }
  }
};

template <class Format>
KOKKOSMX_AVX512_FUNCTION void Avx512QuantizeAtom::dequantize_rows(const BlockRows& rows) {
  using Loops = QuantizeLoops<Format>;
  const BlockRows from = rows;
  const __m512i order = _mm512_loadu_si512(plain_order.data());
  for (std::int64_t row = 0; row < from.rows; ++row) {
    unsigned char* x = from.x + row * from.x_row;
    for (std::int64_t group = 0; group_blocks * group < from.blocks; ++group) {
      const std::uint8_t* codes = from.codes_at(row, group);
      const std::uint8_t* scales = from.scales_at(row, group);
      std::int64_t codes_step = from.codes_block;
      alignas(64) std::uint8_t plain[group_bytes];
      if (codes_step == 0) {
        _mm512_store_si512(plain, x86::permute_bytes(order, _mm512_loadu_si512(codes)));
        codes = plain;
        codes_step = block_bytes;
      }
      for (int b = 0; b < BlockRows::places(from.blocks, group); ++b, x += Loops::bytes) {
        const std::uint8_t scale = scales[b * from.scales_1];
        if (scale >= Loops::least_normal_scale && scale <= Loops::most_normal_scale) [[likely]] {
          Avx512Dequantize<Format>::block(codes + b * codes_step, scale, x);
        } else {
          dequantize<Format>(codes + b * codes_step, scale, x);
        }
      }
    }
  }
}

}  // namespace KokkosMX::Impl

#endif

#endif
