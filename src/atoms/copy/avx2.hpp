// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_COPY_AVX2_HPP
#define KOKKOSMX_SRC_ATOMS_COPY_AVX2_HPP

/// \file avx2.hpp
/// Copies by vectors of 32 bytes: memory asks for no more.

#include <KokkosMX/Types.hpp>

#include "../../operand.hpp"
#include "../atom_function.hpp"
#include "portable.hpp"

#include <cstdint>

#if KOKKOSMX_HAVE_X86_ATOMS

#include <immintrin.h>

namespace KokkosMX::Impl {

struct Avx2CopyAtom {
  static constexpr const char* name = "avx2";

  template <bool FromWoven, bool ToWoven>
  KOKKOSMX_AVX2_FUNCTION static void move(const CopyGroups& groups) {
    static_assert(FromWoven != ToWoven);
    const std::uint8_t* source = groups.from;
    std::uint8_t* target = groups.to;
    const std::int64_t from_block = groups.from_block, to_block = groups.to_block;
    const std::int64_t from_step = groups.from_step, to_step = groups.to_step;
    for (std::int64_t n = groups.count; n > 0; --n, source += from_step, target += to_step) {
      Group group;
      if (FromWoven || from_block == block_bytes) {
        group = {load(source), load(source + 32)};
      } else {
        group = {load(source, source + from_block),
                 load(source + 2 * from_block, source + 3 * from_block)};
      }
      group = FromWoven ? unweave(group) : weave(group);
      if (!FromWoven || to_block == block_bytes) {
        store(target, group.first);
        store(target + 32, group.second);
      } else {
        store(target, target + to_block, group.first);
        store(target + 2 * to_block, target + 3 * to_block, group.second);
      }
    }
  }

  template <bool ToTile>
  KOKKOSMX_AVX2_FUNCTION static std::int64_t move_scales(std::uint8_t* rows, std::int64_t stride,
                                                         std::uint8_t* tile, std::int64_t cols) {
    constexpr int step = 32, eight = 256;  // columns; bytes of 8 columns in a tile
    std::int64_t col = 0;
    for (; col + step <= cols; col += step) {
      std::uint8_t* words = tile + col / 8 * eight;
      // The next tile's rows, or words.
      for (int i = 0; i < 32; ++i) {
        const std::uint8_t* next =
            ToTile ? rows + (32 + i) * stride + col : words + 32 * cols + 32 * i;
        _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T0);
      }
      for (int row = 0; row < 16; row += 8) {
        std::uint8_t* of_rows = rows + row * stride + col;
        std::uint8_t* of_words = words + 4 * row;
        if constexpr (ToTile) {
          eight_to_words(of_rows, stride, of_words);
        } else {
          words_to_eight(of_words, of_rows, stride);
        }
      }
    }
    return col;
  }

  KOKKOSMX_AVX2_FUNCTION static std::int64_t move_words(const CopyWords& words) {
    constexpr std::int64_t word = 4, side = 4;
    // Rows become columns, or columns rows: the same, with the roles of the two exchanged.
    const bool from_rows = words.from_step == word && words.to_row == word;
    if (!from_rows && (words.from_row != word || words.to_step != word)) return 0;
    const std::int64_t from_line = from_rows ? words.from_row : words.from_step;
    const std::int64_t to_line = from_rows ? words.to_step : words.to_row;
    const std::int64_t count = words.count / side * side;
    for (std::int64_t i = 0; i < count; i += side) {
      for (std::int64_t row = 0; row < 16; row += side) {
        const std::uint8_t* from = words.from + row * words.from_row + i * words.from_step;
        std::uint8_t* to = words.to + row * words.to_row + i * words.to_step;
        __m128i v[4];
        for (int k = 0; k < 4; ++k) {
          v[k] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + k * from_line));
        }
        const __m128i a = _mm_unpacklo_epi32(v[0], v[1]), b = _mm_unpackhi_epi32(v[0], v[1]);
        const __m128i c = _mm_unpacklo_epi32(v[2], v[3]), d = _mm_unpackhi_epi32(v[2], v[3]);
        const __m128i out[4] = {_mm_unpacklo_epi64(a, c), _mm_unpackhi_epi64(a, c),
                                _mm_unpacklo_epi64(b, d), _mm_unpackhi_epi64(b, d)};
        for (int k = 0; k < 4; ++k) {
          _mm_storeu_si128(reinterpret_cast<__m128i*>(to + k * to_line), out[k]);
        }
      }
    }
    return count;
  }

 private:
  /// Four blocks, two and two; or a woven group.
  struct Group {
    __m256i first, second;
  };

  KOKKOSMX_AVX2_INLINE static __m256i load(const std::uint8_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  KOKKOSMX_AVX2_INLINE static __m256i load(const std::uint8_t* low, const std::uint8_t* high) {
    return _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low))),
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(high)), 1);
  }
  KOKKOSMX_AVX2_INLINE static void store(std::uint8_t* to, __m256i v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v);
  }
  KOKKOSMX_AVX2_INLINE static void store(std::uint8_t* low, std::uint8_t* high, __m256i v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm256_castsi256_si128(v));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm256_extracti128_si256(v, 1));
  }

  /// A lane is a block, then 4 bytes of each block.
  KOKKOSMX_AVX2_INLINE static Group weave(const Group& group) {
    // Per lane bytes j of two blocks, j from 0 and from 8 on.
    const __m256i even = _mm256_permute2x128_si256(group.first, group.second, 0x20);  // 0, 2
    const __m256i odd = _mm256_permute2x128_si256(group.first, group.second, 0x31);   // 1, 3
    const __m256i low = _mm256_permute4x64_epi64(_mm256_unpacklo_epi8(even, odd), 0xD8);
    const __m256i high = _mm256_permute4x64_epi64(_mm256_unpackhi_epi8(even, odd), 0xD8);
    // Of each 128 bits 4 words of blocks 0 and 1, and of 2 and 3: they take turns.
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
    return {_mm256_shuffle_epi8(low, order), _mm256_shuffle_epi8(high, order)};
  }
  KOKKOSMX_AVX2_INLINE static Group unweave(const Group& group) {
    // Per lane dwords of 4 bytes of a block each; then the lanes' dwords of a block together.
    const __m256i bytes = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m256i dwords = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    // Each: 8 bytes of the blocks 0, 1, 2, 3.
    const __m256i first =
        _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(group.first, bytes), dwords);
    const __m256i second =
        _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(group.second, bytes), dwords);
    const __m256i blocks_02 = _mm256_unpacklo_epi64(first, second);
    const __m256i blocks_13 = _mm256_unpackhi_epi64(first, second);
    return {_mm256_permute2x128_si256(blocks_02, blocks_13, 0x20),
            _mm256_permute2x128_si256(blocks_02, blocks_13, 0x31)};
  }

  /// Transposes 4 x 4 dwords in each lane.
  KOKKOSMX_AVX2_INLINE static void transpose(__m256i (&v)[4]) {
    const __m256i a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
    const __m256i c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
    v[0] = _mm256_unpacklo_epi64(a, c);
    v[1] = _mm256_unpackhi_epi64(a, c);
    v[2] = _mm256_unpacklo_epi64(b, d);
    v[3] = _mm256_unpackhi_epi64(b, d);
  }
  /// 32 columns of 8 rows, and of those 16 below, to the words of 4 times 8 columns, or back. A
  /// lane of the first half of `half` has columns 0 to 7 or 16 to 23, of the second 8 to 15 or 24
  /// to 31.
  KOKKOSMX_AVX2_INLINE static void eight_to_words(const std::uint8_t* rows, std::int64_t stride,
                                                  std::uint8_t* words) {
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
    for (int half = 0; half < 2; ++half) {
      __m256i v[2][4];
      for (int i = 0; i < 8; ++i) {
        const __m256i a = load(rows + i * stride), b = load(rows + (i + 16) * stride);
        const __m256i both = half == 0 ? _mm256_unpacklo_epi8(a, b) : _mm256_unpackhi_epi8(a, b);
        v[i / 4][i % 4] = _mm256_shuffle_epi8(both, order);
      }
      transpose(v[0]);
      transpose(v[1]);
      for (int c = 0; c < 4; ++c) {
        std::uint8_t* to = words + 256 * half + 64 * c;
        store(to, _mm256_permute2x128_si256(v[0][c], v[1][c], 0x20));
        store(to + 512, _mm256_permute2x128_si256(v[0][c], v[1][c], 0x31));
      }
    }
  }
  KOKKOSMX_AVX2_INLINE static void words_to_eight(const std::uint8_t* words, std::uint8_t* rows,
                                                  std::int64_t stride) {
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
    __m256i v[2][2][4];
    for (int half = 0; half < 2; ++half) {
      for (int c = 0; c < 4; ++c) {
        const std::uint8_t* from = words + 256 * half + 64 * c;
        const __m256i low = load(from), high = load(from + 512);
        v[half][0][c] = _mm256_permute2x128_si256(low, high, 0x20);
        v[half][1][c] = _mm256_permute2x128_si256(low, high, 0x31);
      }
      transpose(v[half][0]);
      transpose(v[half][1]);
    }
    const __m256i byte = _mm256_set1_epi16(0xFF);
    for (int i = 0; i < 8; ++i) {
      const __m256i low = _mm256_shuffle_epi8(v[0][i / 4][i % 4], order);
      const __m256i high = _mm256_shuffle_epi8(v[1][i / 4][i % 4], order);
      store(rows + i * stride,
            _mm256_packus_epi16(_mm256_and_si256(low, byte), _mm256_and_si256(high, byte)));
      store(rows + (i + 16) * stride,
            _mm256_packus_epi16(_mm256_srli_epi16(low, 8), _mm256_srli_epi16(high, 8)));
    }
  }
};

}  // namespace KokkosMX::Impl

#endif

#endif
