// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_GEMM_AVX2_HPP
#define KOKKOSMX_SRC_ATOMS_GEMM_AVX2_HPP

/// \file avx2.hpp
/// The panel kernel's atom for AVX2: products of pairs of int16 (VPMADDWD).
///
/// Elements of y: 16 rows of 128 int16; x: 64 pairs by 16 rows of 2 int16.

#include "../x86.hpp"
#include "panel_atom.hpp"

#include <cstdint>
#include <cstring>

#if KOKKOSMX_HAVE_X86_ATOMS

namespace KokkosMX::Impl {

struct Avx2GemmAtom {
  static constexpr const char* name = "avx2";
  static constexpr PanelBlock block_for_few{2, 2};
  static constexpr int most_dot_rows = 0;
  using element = std::int16_t;
  static constexpr int panel_group_elements = panel_rows * group_size;

  static void begin() {}
  static void end() {}

  KOKKOSMX_AVX2_FUNCTION static void state_of_summaries(const RowSummary (&summaries)[panel_rows],
                                                        PanelState& state) {
    PanelLoops::state_of_summaries(summaries, state);
  }
  KOKKOSMX_AVX2_FUNCTION static void state_of_scales(const std::uint8_t* scales, int groups,
                                                     PanelState& state) {
    PanelLoops::state_of_scales(scales, groups, state);
  }

  KOKKOSMX_AVX2_FUNCTION static void unpack_y(const std::uint8_t* codes, const std::uint8_t* scales,
                                              const PanelBase& base, int groups, element* to) {
    for (int g = 0; g < groups; ++g) {
      unpack_rows(codes + g * panel_group_bytes, scales + g * panel_group_scales, base,
                  to + g * panel_group_elements);
    }
  }
  KOKKOSMX_AVX2_FUNCTION static void unpack_x(const std::uint8_t* codes, const std::uint8_t* scales,
                                              const PanelBase& base, int groups, element* to) {
    for (int g = 0; g < groups; ++g) {
      alignas(64) element rows[panel_group_elements];
      unpack_rows(codes + g * panel_group_bytes, scales + g * panel_group_scales, base, rows);
      transpose_rows(rows, to + g * panel_group_elements);
    }
  }
  KOKKOSMX_AVX2_FUNCTION static void pack_y(const std::int8_t* values, element* to) {
    for (int i = 0; i < panel_group_elements; ++i) to[i] = values[i];
  }
  KOKKOSMX_AVX2_FUNCTION static void pack_x(const std::int8_t* values, element* to) {
    alignas(64) element rows[panel_group_elements];
    for (int i = 0; i < panel_group_elements; ++i) rows[i] = values[i];
    transpose_rows(rows, to);
  }
  KOKKOSMX_AVX2_FUNCTION static void multiply(std::int32_t* sums, std::int64_t sums_y,
                                              std::int64_t sums_x, const element* y,
                                              std::int64_t stride_y, const element* x,
                                              std::int64_t stride_x, int y_panels, int x_panels,
                                              int groups, bool add,
                                              const PanelUnpacking<element>& next) {
    unpack_panels<Avx2GemmAtom>(next);
    for (int q = 0; q < x_panels; ++q) {
      for (int p = 0; p < y_panels; ++p) {
        for (int r = 0; r < panel_rows; r += 4) {
          block(sums + p * sums_y + q * sums_x + r * panel_rows, y + p * stride_y + r * group_size,
                x + q * stride_x, groups, add);
        }
      }
    }
  }
  KOKKOSMX_AVX2_FUNCTION static void store(const PanelStore& to) { PanelLoops::store(to); }
  KOKKOSMX_AVX2_FUNCTION static void gather_x(const element* panel, const std::int32_t* positions,
                                              int count, element* to) {
    PanelLoops::gather_x(panel, positions, count, to);
  }
  KOKKOSMX_AVX2_FUNCTION static unsigned far_rows(const std::uint8_t* codes,
                                                  const std::uint8_t* scales,
                                                  const std::uint8_t* bases,
                                                  const std::uint8_t* spreads,
                                                  const std::uint8_t* mask) {
    return PanelLoops::far_rows(codes, scales, bases, spreads, mask);
  }
  KOKKOSMX_AVX2_FUNCTION static bool split_bands(const std::uint8_t* codes,
                                                 const std::uint8_t* scales, int base, int spread,
                                                 std::int8_t* values, std::uint8_t* bands) {
    return PanelLoops::split_bands(codes, scales, base, spread, values, bands);
  }
  KOKKOSMX_AVX2_FUNCTION static void widen(const std::int32_t* sums, int count,
                                           std::int64_t* wide) {
    PanelLoops::widen(sums, count, wide);
  }
  KOKKOSMX_AVX2_FUNCTION static void add_rows(std::int64_t* const* to, const std::int32_t* shifts,
                                              const std::int32_t* sums, int rows) {
    PanelLoops::add_rows(to, shifts, sums, rows);
  }
  KOKKOSMX_AVX2_FUNCTION static int join_limbs(
      const LimbSums& sums, std::int64_t (&from)[LimbSums::levels][panel_outputs],
      std::int32_t (&level)[panel_outputs]) {
    return PanelLoops::join_limbs(sums, from, level);
  }
  KOKKOSMX_AVX2_FUNCTION static void round(const std::int64_t* wide,
                                           const std::int32_t* row_exponent,
                                           const std::int32_t* col_exponent, std::uint32_t* bits) {
    PanelLoops::round(wide, row_exponent, col_exponent, bits);
  }

 private:
  template <bool near>
  KOKKOSMX_AVX2_INLINE static __m256i widen(__m128i narrow, __m256i factor) {
    const __m256i wide = _mm256_mullo_epi16(_mm256_cvtepi8_epi16(narrow), factor);
    if constexpr (!near) return wide;
    const __m256i far = _mm256_cmpgt_epi16(_mm256_abs_epi16(wide), _mm256_set1_epi16(most_halves));
    return _mm256_andnot_si256(far, wide);
  }

  KOKKOSMX_AVX2_INLINE static void unpack_rows(const std::uint8_t* codes,
                                               const std::uint8_t* scales, const PanelBase& base,
                                               element* to) {
    if (base.near) {
      unpack_rows<true>(codes, scales, base, to);
    } else {
      unpack_rows<false>(codes, scales, base, to);
    }
  }
  template <bool near>
  KOKKOSMX_AVX2_INLINE static void unpack_rows(const std::uint8_t* codes,
                                               const std::uint8_t* scales, const PanelBase& base,
                                               element* to) {
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i values =
        _mm256_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12, 0, 1, 2, 3, 4, 6,
                         8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    for (int r = 0; r < panel_rows; ++r) {
      // What the four blocks' elements are multiplied with: 0 leaves a block out.
      std::uint64_t factors = 0;
      for (int b = 0; b < group_blocks; ++b) {
        const int shift =
            PanelLoops::shift_of(scales[group_blocks * r + b], base.scale[group_blocks * r + b],
                                 near ? near_width : band_width);
        factors |= (shift < 0 ? std::uint64_t{0} : std::uint64_t{1} << shift) << (16 * b);
      }
      const __m256i factor = _mm256_set1_epi64x(static_cast<long long>(factors));
      for (int h = 0; h < 2; ++h) {
        const __m256i bytes =
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + r * group_bytes + 32 * h));
        const __m256i low = _mm256_shuffle_epi8(values, _mm256_and_si256(bytes, nibble));
        const __m256i high =
            _mm256_shuffle_epi8(values, _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble));
        auto* out = reinterpret_cast<__m256i*>(to + r * group_size + 32 * h);
        _mm256_store_si256(out, widen<near>(_mm256_castsi256_si128(low), factor));
        _mm256_store_si256(out + 1, widen<near>(_mm256_extracti128_si256(low, 1), factor));
        _mm256_store_si256(out + 4, widen<near>(_mm256_castsi256_si128(high), factor));
        _mm256_store_si256(out + 5, widen<near>(_mm256_extracti128_si256(high, 1), factor));
      }
    }
  }

  /// 8 rows of 8 pairs, a row every group_size elements, to 8 pairs of 8 rows, a pair every 2 *
  /// panel_rows elements.
  KOKKOSMX_AVX2_INLINE static void transpose(const element* from, element* to) {
    __m256i v[8], t[8];
    for (int i = 0; i < 8; ++i) {
      v[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i * group_size));
    }
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
      t[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      v[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
      v[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
      v[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
      v[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i * 2 * panel_rows),
                          _mm256_permute2x128_si256(v[i], v[i + 4], 0x20));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + (i + 4) * 2 * panel_rows),
                          _mm256_permute2x128_si256(v[i], v[i + 4], 0x31));
    }
  }

  KOKKOSMX_AVX2_INLINE static void transpose_rows(const element* rows, element* to) {
    for (int half = 0; half < panel_rows; half += 8) {
      for (int pair = 0; pair < group_size / 2; pair += 8) {
        transpose(rows + half * group_size + 2 * pair, to + pair * 2 * panel_rows + 2 * half);
      }
    }
  }

  /// 4 rows of y by 16 of x.
  KOKKOSMX_AVX2_INLINE static void block(std::int32_t* sums, const element* y, const element* x,
                                         int groups, bool add) {
    __m256i sum[4][2];
    for (int r = 0; r < 4; ++r) {
      for (int h = 0; h < 2; ++h) sum[r][h] = _mm256_setzero_si256();
    }
    for (int g = 0; g < groups; ++g) {
      const element* row = y + g * panel_group_elements;
      const element* pairs = x + g * panel_group_elements;
      for (int pair = 0; pair < group_size / 2; ++pair) {
        const auto* at = reinterpret_cast<const __m256i*>(pairs + pair * 2 * panel_rows);
        const __m256i first = _mm256_load_si256(at), second = _mm256_load_si256(at + 1);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
          std::int32_t two;
          std::memcpy(&two, row + r * group_size + 2 * pair, sizeof(two));
          const __m256i both = _mm256_set1_epi32(two);
          sum[r][0] = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(first, both));
          sum[r][1] = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(second, both));
        }
      }
    }
    for (int r = 0; r < 4; ++r) {
      for (int h = 0; h < 2; ++h) {
        auto* to = reinterpret_cast<__m256i*>(sums + r * panel_rows + 8 * h);
        _mm256_storeu_si256(to,
                            add ? _mm256_add_epi32(sum[r][h], _mm256_loadu_si256(to)) : sum[r][h]);
      }
    }
  }
};
static_assert(PanelAtom<Avx2GemmAtom>);

}  // namespace KokkosMX::Impl

#endif

#endif
