// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_GEMM_AVX512_HPP
#define KOKKOSMX_SRC_ATOMS_GEMM_AVX512_HPP

/// \file avx512.hpp
/// What the int8 atoms share, and the atom for AVX512-VNNI.
///
/// Elements of y: a group of a panel is two tiles of 16 rows of 64 bytes, the first of the even
/// elements of each block (low nibbles), the second of the odd ones; byte 4 j + b belongs to block
/// b. Elements of x: the same tiles with their dwords transposed, 16 values of j by 16 rows of 4
/// bytes: what VPDPBUSD and TDPBSSD take.

#include "../x86.hpp"
#include "panel_atom.hpp"

#include <cstdint>

#if KOKKOSMX_HAVE_X86_ATOMS

namespace KokkosMX::Impl {

struct Int8Panels {
  using element = std::int8_t;
  static constexpr int tile_bytes = panel_rows * group_bytes;
  static constexpr int panel_group_elements = 2 * tile_bytes;

  /// least and most: of each row's blocks that count, four times.
  KOKKOSMX_AVX512_INLINE static void set_state(__m512i least, __m512i most, __mmask16 is_zero,
                                               __mmask16 has_nan, PanelState& state) {
    const __m512i spread = _mm512_mask_set1_epi32(_mm512_sub_epi8(most, least), has_nan, 0);
    const __m512i exponent = _mm512_mask_set1_epi32(
        _mm512_sub_epi32(_mm512_and_si512(least, _mm512_set1_epi32(255)), _mm512_set1_epi32(128)),
        is_zero, -1);
    _mm512_store_si512(state.base.scale, least);
    _mm512_store_si512(state.spread, spread);
    _mm512_store_si512(state.exponent, exponent);
    state.least_exponent = _mm512_reduce_min_epi32(exponent);
    state.largest_exponent = _mm512_reduce_max_epi32(exponent);
    state.is_zero = is_zero;
    state.has_nan = has_nan;
    state.most_spread = _mm512_reduce_max_epi32(_mm512_and_si512(spread, _mm512_set1_epi32(255)));
    state.aligned = has_nan == 0 && state.most_spread < band_width;
    state.base.near = !state.aligned;
  }
  KOKKOSMX_AVX512_INLINE static void set_state(const RowSummary (&summaries)[panel_rows],
                                               PanelState& state) {
    const auto* from = reinterpret_cast<const unsigned char*>(summaries);
    const __m512i even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
    const __m512i odd = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
    __mmask8 zero[2];
    __m256i rest[2];  // a dword of each row: lo, hi, has_nan
    for (int i = 0; i < 2; ++i) {
      const __m512i a = _mm512_loadu_si512(from + 128 * i);
      const __m512i b = _mm512_loadu_si512(from + 128 * i + 64);
      const __m512i n = _mm512_permutex2var_epi64(a, even, b);
      zero[i] = _mm512_testn_epi64_mask(n, n);
      rest[i] = _mm512_cvtepi64_epi32(_mm512_permutex2var_epi64(a, odd, b));
    }
    const __m512i rows = _mm512_inserti64x4(_mm512_castsi256_si512(rest[0]), rest[1], 1);
    const __m512i first = _mm512_set4_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0);
    set_state(_mm512_shuffle_epi8(rows, first),
              _mm512_shuffle_epi8(rows, _mm512_add_epi8(first, _mm512_set1_epi8(1))),
              static_cast<__mmask16>(zero[0] | zero[1] << 8),
              _mm512_test_epi32_mask(rows, _mm512_set1_epi32(0xFF0000)), state);
  }
  KOKKOSMX_AVX512_INLINE static void set_state(const std::uint8_t* scales, int groups,
                                               PanelState& state) {
    // Below a scale of 0, which does not count, comes 255.
    const __m512i one = _mm512_set1_epi8(1);
    __m512i least = _mm512_set1_epi8(-1), most = _mm512_setzero_si512();
    for (int g = 0; g < groups; ++g) {
      const __m512i scale = _mm512_loadu_si512(scales + g * panel_group_scales);
      least = _mm512_min_epu8(least, _mm512_sub_epi8(scale, one));
      most = _mm512_max_epu8(most, scale);
    }
    least = _mm512_min_epu8(least, _mm512_rol_epi32(least, 16));
    least = _mm512_min_epu8(least, _mm512_rol_epi32(least, 8));
    most = _mm512_max_epu8(most, _mm512_rol_epi32(most, 16));
    most = _mm512_max_epu8(most, _mm512_rol_epi32(most, 8));
    set_state(_mm512_add_epi8(least, one), most, _mm512_testn_epi32_mask(most, most), 0, state);
  }

  /// Entry 16 * shift + code: the code's value in halves, shifted; + 128 as a byte if is_unsigned.
  struct Table {
    alignas(64) std::uint8_t value[64];
    constexpr explicit Table(bool is_unsigned) : value{} {
      constexpr int halves[8] = {0, 1, 2, 3, 4, 6, 8, 12};
      for (int i = 0; i < 64; ++i) {
        const int magnitude = halves[i & 7] << (i >> 4);
        const int number = (i & 8) != 0 ? -magnitude : magnitude;
        value[i] = static_cast<std::uint8_t>(number + (is_unsigned ? 128 : 0));
      }
    }
  };

  /// Entry 8 * shift + magnitude: the same where it is near, else 0.
  struct NearTable {
    alignas(64) std::uint8_t value[64];
    constexpr NearTable() : value{} {
      constexpr int halves[8] = {0, 1, 2, 3, 4, 6, 8, 12};
      for (int i = 0; i < 64; ++i) {
        const int number = halves[i & 7] << (i >> 3);
        value[i] = static_cast<std::uint8_t>(number <= most_halves ? number : 0);
      }
    }
  };

  /// The shift of each block of a panel's group, at its bits of a table's index, and the bits of a
  /// code to keep: none of a block that is left out.
  struct Shifts {
    __m512i shift, keep;
  };
  template <bool near>
  KOKKOSMX_AVX512_INLINE static Shifts shifts(const std::uint8_t* scales, const PanelBase& base) {
    const __m512i scale = _mm512_loadu_si512(scales), least = _mm512_load_si512(base.scale);
    const __m512i distance = _mm512_sub_epi8(scale, least);  // wraps below the base
    const __mmask64 inside =
        _mm512_mask_cmplt_epu8_mask(_mm512_cmpge_epu8_mask(scale, least), distance,
                                    _mm512_set1_epi8(near ? near_width : band_width));
    // A distance that is kept has two bits (three, if near): no bit crosses into the next byte.
    const __m512i kept = _mm512_maskz_mov_epi8(inside, distance);
    return {_mm512_slli_epi16(kept, near ? 3 : 4), _mm512_maskz_set1_epi8(inside, near ? 7 : 15)};
  }

  /// The same, row by row.
  template <bool near>
  struct RowShifts {
    alignas(64) std::int32_t shift[panel_rows];
    alignas(64) std::int32_t keep[panel_rows];
    RowShifts() = default;
    KOKKOSMX_AVX512_INLINE RowShifts(const std::uint8_t* scales, const PanelBase& base) {
      const Shifts all = shifts<near>(scales, base);
      _mm512_store_si512(shift, all.shift);
      _mm512_store_si512(keep, all.keep);
    }
    KOKKOSMX_AVX512_INLINE Shifts operator[](int r) const {
      return {_mm512_set1_epi32(shift[r]), _mm512_set1_epi32(keep[r])};
    }
  };

  /// What a code stands for; only its low nibble counts.
  template <bool near, bool is_unsigned>
  struct Values {
    __m512i table;
    KOKKOSMX_AVX512_INLINE static Values make() {
      static constexpr Table all(is_unsigned);
      static constexpr NearTable only_near;
      return {_mm512_load_si512(near ? only_near.value : all.value)};
    }
    KOKKOSMX_AVX512_INLINE __m512i operator()(__m512i codes, const Shifts& s) const {
      // (codes & keep) | shift
      const __m512i index = _mm512_ternarylogic_epi32(codes, s.keep, s.shift, 0xEA);
      const __m512i value = x86::permute_bytes(index, table);
      if constexpr (!near) return value;
      const __mmask64 negative = _mm512_test_epi8_mask(codes, _mm512_set1_epi8(8));
      const __m512i number = _mm512_mask_sub_epi8(value, negative, _mm512_setzero_si512(), value);
      return is_unsigned ? _mm512_xor_si512(number, _mm512_set1_epi8(-128)) : number;
    }
  };

  /// Where unpacked rows go, in elements: row r of group g at g * group + r * row, its odd elements
  /// `odd` after its even ones.
  struct RowPlaces {
    int rows;
    std::int64_t group, row, odd;
  };
  static constexpr RowPlaces panel_places{panel_rows, panel_group_elements, 64, tile_bytes};
  template <bool is_unsigned>
  KOKKOSMX_AVX512_INLINE static void unpack_rows(const std::uint8_t* codes,
                                                 const std::uint8_t* scales, const PanelBase& base,
                                                 int groups, const RowPlaces& places, element* to) {
    if (base.near) {
      unpack_rows<true, is_unsigned>(codes, scales, base, groups, places, to);
    } else {
      unpack_rows<false, is_unsigned>(codes, scales, base, groups, places, to);
    }
  }
  template <bool near, bool is_unsigned>
  KOKKOSMX_AVX512_INLINE static void unpack_rows(const std::uint8_t* codes,
                                                 const std::uint8_t* scales, const PanelBase& base,
                                                 int groups, const RowPlaces& places, element* to) {
    const auto values = Values<near, is_unsigned>::make();
    for (int g = 0; g < groups; ++g) {
      RowShifts<near> row_shifts(scales + g * panel_group_scales, base);
      // In memory, from where they are broadcast at no cost: g++ would take them out of registers.
      __asm__("" : "+m"(row_shifts));
      const std::uint8_t* from = codes + g * panel_group_bytes;
      element* tile = to + g * places.group;
      for (int r = 0; r < places.rows; ++r) {
        const Shifts row = row_shifts[r];
        const __m512i code = _mm512_loadu_si512(from + r * group_bytes);
        _mm512_store_si512(tile + r * places.row, values(code, row));
        _mm512_store_si512(tile + r * places.row + places.odd,
                           values(_mm512_srli_epi16(code, 4), row));
      }
    }
  }

  template <bool near>
  KOKKOSMX_AVX512_INLINE static void dot_rows(const std::uint8_t* codes, const std::uint8_t* scales,
                                              const PanelBase& base, int groups, const element* x,
                                              int count, std::int32_t* sums) {
    switch (count) {
      case 1:
        return dot_rows<near, 1>(codes, scales, base, groups, x, sums);
      case 2:
        return dot_rows<near, 2>(codes, scales, base, groups, x, sums);
      case 4:
        return dot_rows<near, 4>(codes, scales, base, groups, x, sums);
      default:
        return dot_rows<near, 8>(codes, scales, base, groups, x, sums);
    }
  }
  /// The elements of the panel are never stored: 16 accumulators take rows of it by rows of x,
  /// some groups of K after the other. VPDPBUSD takes the panel's elements 128 too large.
  template <bool near, int count>
  KOKKOSMX_AVX512_INLINE static void dot_rows(const std::uint8_t* codes, const std::uint8_t* scales,
                                              const PanelBase& base, int groups, const element* x,
                                              std::int32_t* sums) {
    constexpr int rows = 16 / count, chunk = 8;
    alignas(64) std::int32_t total[panel_rows / rows][16][16];  // of the chunks before
    __m512i of_x[count];
    for (int i = 0; i < count; ++i) of_x[i] = _mm512_setzero_si512();
    const auto values = Values<near, true>::make();
    for (int first = 0; first < groups; first += chunk) {
      const int end = first + chunk < groups ? first + chunk : groups;
      RowShifts<near> shifts_of[chunk];
      for (int g = first; g < end; ++g) {
        shifts_of[g - first] = RowShifts<near>(scales + g * panel_group_scales, base);
        for (int i = 0; i < count; ++i) {
          const element* x_row = x + (g * count + i) * group_size;
          const __m512i ones = _mm512_set1_epi8(1);
          of_x[i] = x86::dot_add(of_x[i], ones, _mm512_load_si512(x_row));
          of_x[i] = x86::dot_add(of_x[i], ones, _mm512_load_si512(x_row + 64));
        }
      }
      alignas(64) std::int32_t excess[16];
      if (end == groups) {
        // Sums of x may leave int32 where the products' do not yet: unsigned, which wraps.
        for (int i = 0; i < count; ++i) {
          excess[i] = static_cast<std::int32_t>(
              128u * static_cast<std::uint32_t>(_mm512_reduce_add_epi32(of_x[i])));
        }
        for (int k = count; k < 16; ++k) excess[k] = excess[k - count];
      }
      for (int first_row = 0; first_row < panel_rows; first_row += rows) {
        auto& before = total[first_row / rows];
        __m512i sum[rows][count];
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
          for (int i = 0; i < count; ++i) {
            sum[r][i] =
                first == 0 ? _mm512_setzero_si512() : _mm512_load_si512(before[r * count + i]);
          }
        }
        for (int g = first; g < end; ++g) {
          const std::uint8_t* from = codes + g * panel_group_bytes + first_row * group_bytes;
          const element* x_rows = x + g * count * group_size;
#pragma GCC unroll 16
          for (int r = 0; r < rows; ++r) {
            Shifts row = shifts_of[g - first][first_row + r];
            if constexpr (!near) row.keep = _mm512_set1_epi8(15);
            __m512i code = _mm512_loadu_si512(from + r * group_bytes);
            // Few rows at a time are read in strides, which caches do not foresee.
            if constexpr (rows < panel_rows) {
              _mm_prefetch(
                  reinterpret_cast<const char*>(from) + r * group_bytes + chunk * panel_group_bytes,
                  _MM_HINT_T0);
            }
            // g++ would load either twice, which costs more than to keep them.
            __asm__("" : "+v"(code), "+v"(row.shift));
            const __m512i even = values(code, row), odd = values(_mm512_srli_epi16(code, 4), row);
#pragma GCC unroll 8
            for (int i = 0; i < count; ++i) {
              const element* x_row = x_rows + i * group_size;
              sum[r][i] = x86::dot_add(sum[r][i], even, _mm512_load_si512(x_row));
              sum[r][i] = x86::dot_add(sum[r][i], odd, _mm512_load_si512(x_row + 64));
            }
          }
        }
        if (end < groups) {
#pragma GCC unroll 16
          for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
            for (int i = 0; i < count; ++i) {
              _mm512_store_si512(before[r * count + i], sum[r][i]);
            }
          }
          continue;
        }
        __m512i v[16];
#pragma GCC unroll 16
        for (int k = 0; k < 16; ++k) v[k] = sum[k / count][k % count];
        alignas(64) std::int32_t of_rows[16];
        _mm512_store_si512(of_rows,
                           _mm512_sub_epi32(sums_of_vectors(v), _mm512_load_si512(excess)));
        for (int r = 0; r < rows; ++r) {
          std::memcpy(sums + (first_row + r) * panel_rows, of_rows + r * count,
                      count * sizeof(*sums));
        }
      }
    }
    for (int r = 0; groups == 0 && r < panel_rows; ++r) {
      std::memset(sums + r * panel_rows, 0, count * sizeof(*sums));
    }
  }

  /// Dword i: the sum of the 16 dwords of vector i.
  KOKKOSMX_AVX512_INLINE static __m512i sums_of_vectors(__m512i (&v)[16]) {
    // Each step adds pairs of vectors and of what they hold, in the order of a transposition.
    for (int i = 0; i < 8; ++i) {
      const __m512i a = v[2 * i], b = v[2 * i + 1];
      v[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    }
    for (int i = 0; i < 4; ++i) {
      const __m512i a = v[2 * i], b = v[2 * i + 1];
      v[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    }
    for (int count = 2; count > 0; count /= 2) {
      for (int i = 0; i < count; ++i) {
        const __m512i a = v[2 * i], b = v[2 * i + 1];
        v[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xDD));
      }
    }
    return v[0];
  }

  /// Transposes 16 x 16 dwords.
  KOKKOSMX_AVX512_INLINE static void transpose(__m512i (&v)[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
      t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
      v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
      v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
      v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
      t[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
      t[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xDD);
      t[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
      t[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xDD);
    }
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
      v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
      v[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
      v[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xDD);
    }
  }

  KOKKOSMX_AVX512_INLINE static void unpack_columns(const std::uint8_t* codes,
                                                    const std::uint8_t* scales,
                                                    const PanelBase& base, int groups,
                                                    element* to) {
    if (base.near) {
      unpack_columns<true>(codes, scales, base, groups, to);
    } else {
      unpack_columns<false>(codes, scales, base, groups, to);
    }
  }
  template <bool near>
  KOKKOSMX_AVX512_INLINE static void unpack_columns(const std::uint8_t* codes,
                                                    const std::uint8_t* scales,
                                                    const PanelBase& base, int groups,
                                                    element* to) {
    const auto values = Values<near, false>::make();
    for (int g = 0; g < groups; ++g) {
      // A dword of a row's codes holds one j of all four blocks, as the row's dword of shifts does.
      const Shifts all = shifts<near>(scales + g * panel_group_scales, base);
      const std::uint8_t* from = codes + g * panel_group_bytes;
      element* tile = to + g * panel_group_elements;
      __m512i v[16];
      for (int r = 0; r < 16; ++r) v[r] = _mm512_loadu_si512(from + r * group_bytes);
      transpose(v);
      for (int j = 0; j < 16; ++j) {
        _mm512_store_si512(tile + j * 64, values(v[j], all));
        _mm512_store_si512(tile + tile_bytes + j * 64, values(_mm512_srli_epi16(v[j], 4), all));
      }
    }
  }

  template <bool is_unsigned>
  KOKKOSMX_AVX512_INLINE static void pack_rows(const std::int8_t* values, element* to) {
    const __m512i offset = is_unsigned ? _mm512_set1_epi8(-128) : _mm512_setzero_si512();
    for (int r = 0; r < panel_rows; ++r) {
      const std::int8_t* row = values + r * group_size;
      _mm512_store_si512(to + r * 64, _mm512_xor_si512(_mm512_load_si512(row), offset));
      _mm512_store_si512(to + tile_bytes + r * 64,
                         _mm512_xor_si512(_mm512_load_si512(row + 64), offset));
    }
  }
  KOKKOSMX_AVX512_INLINE static void pack_columns(const std::int8_t* values, element* to) {
    for (int tile = 0; tile < 2; ++tile) {
      __m512i v[16];
      for (int r = 0; r < 16; ++r) v[r] = _mm512_load_si512(values + r * group_size + tile * 64);
      transpose(v);
      for (int j = 0; j < 16; ++j) _mm512_store_si512(to + tile * tile_bytes + j * 64, v[j]);
    }
  }

  /// As PanelLoops::far_rows.
  KOKKOSMX_AVX512_INLINE static unsigned rows_with_far(const std::uint8_t* codes,
                                                       const std::uint8_t* scales,
                                                       const std::uint8_t* bases,
                                                       const std::uint8_t* spreads,
                                                       const std::uint8_t* mask) {
    const __m512i scale = _mm512_loadu_si512(scales), base = _mm512_loadu_si512(bases);
    const __m512i distance = _mm512_sub_epi8(scale, base);  // wraps below the base
    const __m512i above = _mm512_subs_epu8(distance, _mm512_set1_epi8(band_width - 1));
    const __mmask64 beyond = _mm512_mask_cmple_epu8_mask(
        _mm512_mask_test_epi8_mask(_mm512_cmpge_epu8_mask(scale, base), above, above), distance,
        _mm512_loadu_si512(spreads));
    if (beyond == 0) return 0;
    const __m512i seven = _mm512_set1_epi8(7), eight = _mm512_set1_epi8(8);
    alignas(64) std::int32_t to_8[panel_rows];
    _mm512_store_si512(to_8, _mm512_maskz_min_epu8(beyond, _mm512_adds_epu8(above, above), seven));
    const __m512i kept = _mm512_loadu_si512(mask);
    const __m512i low_mask = _mm512_and_si512(kept, eight);
    const __m512i high_mask = _mm512_and_si512(_mm512_srli_epi16(kept, 4), eight);
    unsigned rows = 0;
    for (int r = 0; r < panel_rows; ++r) {
      if (to_8[r] == 0) continue;
      const __m512i add = _mm512_set1_epi32(to_8[r]);
      const __m512i code = _mm512_loadu_si512(codes + r * group_bytes);
      const __m512i low = _mm512_add_epi8(_mm512_and_si512(code, seven), add);
      const __m512i high =
          _mm512_add_epi8(_mm512_and_si512(_mm512_srli_epi16(code, 4), seven), add);
      // 0xF8: the first, or both of the others.
      const __m512i any =
          _mm512_ternarylogic_epi32(_mm512_and_si512(low, low_mask), high, high_mask, 0xF8);
      rows |= static_cast<unsigned>(_mm512_test_epi32_mask(any, any) != 0) << r;
    }
    return rows;
  }

  /// As PanelLoops::split_bands, of 64 codes.
  KOKKOSMX_AVX512_INLINE static bool split_64(const std::uint8_t* codes, const std::uint8_t* scales,
                                              int base, int spread, std::int8_t* values,
                                              std::uint8_t* bands) {
    const __m512i code = _mm512_loadu_si512(codes), scale = _mm512_loadu_si512(scales);
    const __m512i least = _mm512_set1_epi8(static_cast<char>(base));
    const __m512i distance = _mm512_sub_epi8(scale, least);  // wraps below the base
    const __mmask64 inside =
        _mm512_mask_cmple_epu8_mask(_mm512_cmpge_epu8_mask(scale, least), distance,
                                    _mm512_set1_epi8(static_cast<char>(spread)));
    const __m512i magnitude = _mm512_and_si512(code, _mm512_set1_epi8(7));
    // 8 and more: not near.
    const __m512i above = _mm512_subs_epu8(distance, _mm512_set1_epi8(band_width - 1));
    const __m512i sum = _mm512_add_epi8(
        magnitude, _mm512_min_epu8(_mm512_adds_epu8(above, above), _mm512_set1_epi8(7)));
    const __mmask64 far = _mm512_mask_test_epi8_mask(inside, sum, _mm512_set1_epi8(8));
    const __m512i low_bits = _mm512_set1_epi8(band_width - 1);
    const __m512i shift = _mm512_mask_mov_epi8(distance, far, _mm512_and_si512(distance, low_bits));
    static constexpr NearTable only_near;  // far codes are near at their bands' scales
    // Six bits of an index count. What is near and farther than these say is zero.
    const __m512i index = _mm512_or_si512(
        _mm512_slli_epi16(_mm512_and_si512(shift, _mm512_set1_epi8(7)), 3), magnitude);
    const __m512i halves = _mm512_maskz_mov_epi8(
        inside, x86::permute_bytes(index, _mm512_load_si512(only_near.value)));
    const __mmask64 negative = _mm512_test_epi8_mask(code, _mm512_set1_epi8(8));
    _mm512_storeu_si512(values,
                        _mm512_mask_sub_epi8(halves, negative, _mm512_setzero_si512(), halves));
    const __m512i band = _mm512_and_si512(_mm512_srli_epi16(distance, 2), _mm512_set1_epi8(63));
    _mm512_storeu_si512(bands, _mm512_maskz_mov_epi8(far, band));
    return far != 0;
  }

  KOKKOSMX_AVX512_INLINE static void round_wide(const std::int64_t* wide,
                                                const std::int32_t* row_exponent,
                                                const std::int32_t* col_exponent,
                                                std::uint32_t* bits) {
    const __m512i col = _mm512_loadu_si512(col_exponent);
    for (int r = 0; r < panel_rows; ++r) {
      const __m512i unit = _mm512_add_epi32(_mm512_set1_epi32(row_exponent[r]), col);
      // Where every nonzero sum of 63 bits lies in float32's normal range, its unit's exponent is
      // added to the rounded sum's.
      const __mmask16 normal = _mm512_cmpge_epi32_mask(unit, _mm512_set1_epi32(-126)) &
                               _mm512_cmple_epi32_mask(unit, _mm512_set1_epi32(127 - 63));
      if (normal != 0xFFFF) {
        for (int c = 0; c < panel_rows; ++c) {
          bits[r * panel_rows + c] =
              round_to_f32(wide[r * panel_rows + c], row_exponent[r] + col_exponent[c]);
        }
        continue;
      }
      constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
      const __m512i low = _mm512_loadu_si512(wide + r * panel_rows);
      const __m512i high = _mm512_loadu_si512(wide + r * panel_rows + 8);
      const __m256i low_bits = _mm256_castps_si256(_mm512_cvt_roundepi64_ps(low, nearest));
      const __m256i high_bits = _mm256_castps_si256(_mm512_cvt_roundepi64_ps(high, nearest));
      const __m512i rounded = _mm512_inserti64x4(_mm512_castsi256_si512(low_bits), high_bits, 1);
      const __m512i exponent = _mm512_slli_epi32(unit, 23);
      _mm512_storeu_si512(
          bits + r * panel_rows,
          _mm512_maskz_add_epi32(_mm512_test_epi32_mask(rounded, rounded), rounded, exponent));
    }
  }

  /// Float32 bits of a panel's sums, row by row: of C's rows, or of the sums' if those are its
  /// columns.
  struct Rounding {
    alignas(64) std::int32_t row_unit[panel_rows];  ///< exponents, in a number's place
    __m512i lane_unit;
    const std::int32_t* sums;
    bool rounded;
    KOKKOSMX_AVX512_INLINE Rounding(const PanelStore& to, int q, bool by_columns)
        : sums(to.sums[q]), rounded(to.rounded) {
      const std::int32_t* of_rows = by_columns ? to.col_exponent[q] : to.row_exponent;
      const std::int32_t* of_lanes = by_columns ? to.row_exponent : to.col_exponent[q];
      if (rounded) return;
      _mm512_store_si512(row_unit, _mm512_slli_epi32(_mm512_loadu_si512(of_rows), 23));
      lane_unit = _mm512_slli_epi32(_mm512_loadu_si512(of_lanes), 23);
    }
    KOKKOSMX_AVX512_INLINE __m512i operator()(int r) const {
      return operator()(r, _mm512_loadu_si512(sums + panel_rows * r));
    }
    KOKKOSMX_AVX512_INLINE __m512i operator()(int r, __m512i sum) const {
      if (rounded) return sum;
      // The rounding stands in the instruction: the thread's rounding mode has no say.
      const __m512i number = _mm512_castps_si512(
          _mm512_cvt_roundepi32_ps(sum, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
      const __m512i unit = _mm512_add_epi32(_mm512_set1_epi32(row_unit[r]), lane_unit);
      return _mm512_maskz_add_epi32(_mm512_test_epi32_mask(sum, sum), number, unit);
    }
  };
  /// Rounded to bf16, in the upper halves of dwords.
  KOKKOSMX_AVX512_INLINE static __m512i to_bf16(__m512i bits) {
    const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    const __m512i number = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF));
    return _mm512_mask_add_epi32(number, odd, number, _mm512_set1_epi32(1));
  }
  /// Of each two upper halves of dwords a dword.
  KOKKOSMX_AVX512_INLINE static __m512i pair_bf16(__m512i low, __m512i high) {
    return _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(low, 16), high);
  }

  /// Rounded to bf16, 16 numbers after 16.
  KOKKOSMX_AVX512_INLINE static __m512i join_bf16(__m512i low, __m512i high) {
    // Packing goes by lanes of 128 bits.
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    return _mm512_permutexvar_epi64(order,
                                    _mm512_packus_epi32(_mm512_srli_epi32(to_bf16(low), 16),
                                                        _mm512_srli_epi32(to_bf16(high), 16)));
  }

  KOKKOSMX_AVX512_INLINE static __m128i load_four(const std::int32_t* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  }
  /// The first four columns of a panel's sums.
  KOKKOSMX_AVX512_INLINE static void four_columns(const std::int32_t* sums, __m512i (&v)[4]) {
    // A lane holds four columns of a row, then four rows of a column.
    __m512i t[4];
    for (int i = 0; i < 4; ++i) {
      const std::int32_t* from = sums + panel_rows * i;
      t[i] = _mm512_castsi128_si512(load_four(from));
      t[i] = _mm512_inserti32x4(t[i], load_four(from + 4 * panel_rows), 1);
      t[i] = _mm512_inserti32x4(t[i], load_four(from + 8 * panel_rows), 2);
      t[i] = _mm512_inserti32x4(t[i], load_four(from + 12 * panel_rows), 3);
    }
    const __m512i low_01 = _mm512_unpacklo_epi32(t[0], t[1]);
    const __m512i low_23 = _mm512_unpacklo_epi32(t[2], t[3]);
    const __m512i high_01 = _mm512_unpackhi_epi32(t[0], t[1]);
    const __m512i high_23 = _mm512_unpackhi_epi32(t[2], t[3]);
    v[0] = _mm512_unpacklo_epi64(low_01, low_23);
    v[1] = _mm512_unpackhi_epi64(low_01, low_23);
    v[2] = _mm512_unpacklo_epi64(high_01, high_23);
    v[3] = _mm512_unpackhi_epi64(high_01, high_23);
  }

  /// C's rows of up to 32 bf16 numbers.
  KOKKOSMX_AVX512_INLINE static void bf16_rows(const PanelStore& to, __m512i (&rows)[panel_rows]) {
    constexpr int half = panel_rows / 2, few = 4;
    if (to.transposed && to.rows > few) {
      // Neighbours in a row of C go together.
      for (int q = 0; q < PanelStore::most; ++q) {
        const Rounding round(to, q < to.panels ? q : 0, true);
        for (int i = 0; i < half; ++i) {
          rows[half * q + i] = pair_bf16(to_bf16(round(2 * i)), to_bf16(round(2 * i + 1)));
        }
      }
      transpose(rows);
      return;
    }
    const Rounding first(to, 0, false), second(to, to.panels - 1, false);
    if (to.transposed) {
      __m512i a[few], b[few];
      four_columns(to.sums[0], a);
      four_columns(to.sums[to.panels - 1], b);
      for (int r = 0; r < few; ++r) rows[r] = join_bf16(first(r, a[r]), second(r, b[r]));
      return;
    }
    for (int r = 0; r < panel_rows; ++r) rows[r] = join_bf16(first(r), second(r));
  }

  KOKKOSMX_AVX512_INLINE static void store_panels(const PanelStore& to) {
    if (to.element == Element::bf16) {
      __m512i rows[panel_rows];
      bf16_rows(to, rows);
      const auto cols = static_cast<__mmask32>((std::uint64_t{1} << to.cols) - 1);
      auto* c = static_cast<std::uint16_t*>(to.c);
#pragma GCC unroll 16
      for (int r = 0; r < panel_rows; ++r) {
        if (r < to.rows) _mm512_mask_storeu_epi16(c + r * to.row_stride, cols, rows[r]);
      }
      return;
    }
    alignas(64) std::uint32_t rows[panel_rows][PanelStore::most * panel_rows];
    for (int q = 0; q < to.panels; ++q) {
      const Rounding round(to, q, to.transposed);
      __m512i v[panel_rows];
      for (int r = 0; r < panel_rows; ++r) v[r] = round(r);
      if (to.transposed) transpose(v);
      for (int r = 0; r < panel_rows; ++r) _mm512_store_si512(&rows[r][panel_rows * q], v[r]);
    }
    for (int r = 0; r < to.rows; ++r) {
      const std::int64_t at = r * to.row_stride;
      if (to.element == Element::f32) {
        std::memcpy(static_cast<std::uint32_t*>(to.c) + at, rows[r],
                    static_cast<std::size_t>(to.cols) * sizeof(std::uint32_t));
      } else {
        for (int j = 0; j < to.cols; ++j) store_from_f32(to.element, to.c, at + j, rows[r][j]);
      }
    }
  }
};

/// The int8 atoms but for their products. is_unsigned: elements of y are 128 too large, since
/// VPDPBUSD takes one operand unsigned.
template <bool is_unsigned>
struct Int8Atom : Int8Panels {
  static constexpr bool y_is_unsigned = is_unsigned;
  KOKKOSMX_AVX512_FUNCTION static void state_of_summaries(const RowSummary (&summaries)[panel_rows],
                                                          PanelState& state) {
    set_state(summaries, state);
  }
  KOKKOSMX_AVX512_FUNCTION static void state_of_scales(const std::uint8_t* scales, int groups,
                                                       PanelState& state) {
    set_state(scales, groups, state);
  }
  KOKKOSMX_AVX512_FUNCTION static void unpack_y(const std::uint8_t* codes,
                                                const std::uint8_t* scales, const PanelBase& base,
                                                int groups, element* to) {
    unpack_rows<is_unsigned>(codes, scales, base, groups, panel_places, to);
  }
  /// More rows are columns of vectors at no loss, or go to matrix units.
  static constexpr int most_dot_rows = is_unsigned ? 8 : 4;
  KOKKOSMX_AVX512_FUNCTION static void unpack_dot(const std::uint8_t* codes,
                                                  const std::uint8_t* scales, const PanelBase& base,
                                                  int groups, int count, element* to) {
    unpack_rows<false>(codes, scales, base, groups, {count, count * group_size, group_size, 64},
                       to);
  }
  KOKKOSMX_AVX512_FUNCTION static void dot(const std::uint8_t* codes, const std::uint8_t* scales,
                                           const PanelBase& base, int groups, const element* x,
                                           int count, std::int32_t* sums) {
    if (base.near) {
      dot_rows<true>(codes, scales, base, groups, x, count, sums);
    } else {
      dot_rows<false>(codes, scales, base, groups, x, count, sums);
    }
  }
  KOKKOSMX_AVX512_FUNCTION static void unpack_x(const std::uint8_t* codes,
                                                const std::uint8_t* scales, const PanelBase& base,
                                                int groups, element* to) {
    unpack_columns(codes, scales, base, groups, to);
  }
  KOKKOSMX_AVX512_FUNCTION static void pack_y(const std::int8_t* values, element* to) {
    pack_rows<is_unsigned>(values, to);
  }
  KOKKOSMX_AVX512_FUNCTION static void pack_x(const std::int8_t* values, element* to) {
    pack_columns(values, to);
  }
  KOKKOSMX_AVX512_FUNCTION static void store(const PanelStore& to) { store_panels(to); }
  KOKKOSMX_AVX512_FUNCTION static void gather_x(const element* panel, const std::int32_t* positions,
                                                int count, element* to) {
    PanelLoops::gather_x(panel, positions, count, to);
  }
  KOKKOSMX_AVX512_FUNCTION static unsigned far_rows(const std::uint8_t* codes,
                                                    const std::uint8_t* scales,
                                                    const std::uint8_t* bases,
                                                    const std::uint8_t* spreads,
                                                    const std::uint8_t* mask) {
    return rows_with_far(codes, scales, bases, spreads, mask);
  }
  KOKKOSMX_AVX512_FUNCTION static bool split_bands(const std::uint8_t* codes,
                                                   const std::uint8_t* scales, int base, int spread,
                                                   std::int8_t* values, std::uint8_t* bands) {
    bool any = false;
    for (int i = 0; i < group_size; i += 64) {
      any |= split_64(codes + i, scales + i, base, spread, values + i, bands + i);
    }
    return any;
  }
  KOKKOSMX_AVX512_FUNCTION static void widen(const std::int32_t* sums, int count,
                                             std::int64_t* wide) {
    PanelLoops::widen(sums, count, wide);
  }
  KOKKOSMX_AVX512_FUNCTION static void add_rows(std::int64_t* const* to, const std::int32_t* shifts,
                                                const std::int32_t* sums, int rows) {
    for (int r = 0; r < rows; ++r) {
      const __m128i shift = _mm_cvtsi32_si128(shifts[r]);
      for (int half = 0; half < panel_rows; half += 8) {
        const __m512i sum = _mm512_cvtepi32_epi64(
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums + r * panel_rows + half)));
        std::int64_t* wide = to[r] + half;
        _mm512_storeu_si512(
            wide, _mm512_add_epi64(_mm512_loadu_si512(wide), _mm512_sll_epi64(sum, shift)));
      }
    }
  }
  KOKKOSMX_AVX512_FUNCTION static int join_limbs(
      const LimbSums& sums, std::int64_t (&from)[LimbSums::levels][panel_outputs],
      std::int32_t (&level)[panel_outputs]) {
    return PanelLoops::join_limbs(sums, from, level);
  }
  KOKKOSMX_AVX512_FUNCTION static void round(const std::int64_t* wide,
                                             const std::int32_t* row_exponent,
                                             const std::int32_t* col_exponent,
                                             std::uint32_t* bits) {
    round_wide(wide, row_exponent, col_exponent, bits);
  }
};

/// Unpacks panels of y a few rows at a time, between the products of an Int8Atom.
template <class Atom, int rows>
struct UnpackerBetween : Int8Panels {
  using RowValues = Values<false, Atom::y_is_unsigned>;
  const PanelUnpacking<element>& work;
  __m512i table;
  RowShifts<false> shifts;
  int left;           ///< pieces
  int pieces, calls;  ///< all of them
  int due;            ///< below 0: pieces are, in calls
  int panel = 0, group = 0, row = 0;

  /// To be called some times, among which the pieces are spread, then finished.
  KOKKOSMX_AVX512_INLINE UnpackerBetween(const PanelUnpacking<element>& next, int all_calls)
      : work(next), calls(all_calls), due(all_calls) {
    table = RowValues::make().table;
    bool near = false;
    for (int i = 0; i < work.panels; ++i) near = near || work.states[i].base.near;
    if (near) unpack_panels<Atom>(work);
    pieces = near ? 0 : work.panels * work.groups * (panel_rows / rows);
    left = pieces;
  }
  KOKKOSMX_AVX512_INLINE void operator()() {
    for (due -= pieces; due < 0 && left != 0; due += calls) piece();
  }
  KOKKOSMX_AVX512_INLINE void finish() {
    while (left != 0) piece();
  }
  KOKKOSMX_AVX512_INLINE void piece() {
    if (row == 0) {
      shifts = RowShifts<false>(work.scales(panel, group), work.states[panel].base);
    }
    const std::uint8_t* from = work.codes(panel, group) + row * group_bytes;
    element* to = work.to + panel * work.stride + group * panel_group_elements + row * group_bytes;
    const __m512i nibble = _mm512_set1_epi8(15);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      // Blocks that are left out have no nonzero codes.
      const Shifts of_row{_mm512_set1_epi32(shifts.shift[row + r]), nibble};
      const RowValues values{table};
      const __m512i code = _mm512_loadu_si512(from + r * group_bytes);
      _mm512_store_si512(to + r * 64, values(code, of_row));
      _mm512_store_si512(to + r * 64 + tile_bytes, values(_mm512_srli_epi16(code, 4), of_row));
    }
    --left;
    row += rows;
    if (row < panel_rows) return;
    row = 0;
    if (++group < work.groups) return;
    group = 0;
    ++panel;
  }
};

struct VnniGemmAtom : Int8Atom<true> {
  static constexpr const char* name = "avx512vnni";
  static constexpr PanelBlock block_for_few{4, 4};

  static void begin() {}
  static void end() {}

  KOKKOSMX_AVX512_FUNCTION static void multiply(std::int32_t* sums, std::int64_t sums_y,
                                                std::int64_t sums_x, const element* y,
                                                std::int64_t stride_y, const element* x,
                                                std::int64_t stride_x, int y_panels, int x_panels,
                                                int groups, bool add,
                                                const PanelUnpacking<element>& next) {
    const int blocks = (x_panels / 2 * 2 + x_panels % 2) * y_panels;
    Unpacker unpacker(next, blocks * 2 * groups * (16 / columns));
    for (int q = 0; q < x_panels; q += 2) {
      const int pair = q + 2 <= x_panels ? 2 : 1;
      alignas(64) std::int32_t offset[2][16];
      for (int i = 0; i < pair; ++i) sums_of_columns(x + (q + i) * stride_x, groups, offset[i]);
      for (int p = 0; p < y_panels; ++p) {
        const element* rows = y + p * stride_y;
        std::int32_t* to = sums + p * sums_y + q * sums_x;
        if (pair == 2) {
          block<8, 2>(to, sums_x, rows, x + q * stride_x, stride_x, offset, groups, add, unpacker);
          block<8, 2>(to + 128, sums_x, rows + 8 * 64, x + q * stride_x, stride_x, offset, groups,
                      add, unpacker);
        } else {
          block<16, 1>(to, sums_x, rows, x + q * stride_x, stride_x, offset, groups, add, unpacker);
        }
      }
    }
    unpacker.finish();
  }

 private:
  /// Unpacking takes units that products leave idle: two rows between 4 columns of 16 products.
  static constexpr int columns = 4;
  using Unpacker = UnpackerBetween<VnniGemmAtom, 2>;

  /// -128 * the sum of each column of x: what the elements of y are too large gives.
  KOKKOSMX_AVX512_INLINE static void sums_of_columns(const element* x, int groups,
                                                     std::int32_t (&offset)[16]) {
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i even = _mm512_setzero_si512(), odd = _mm512_setzero_si512();
    for (int i = 0; i < groups * panel_group_elements; i += 128) {
      even = x86::dot_add(even, ones, _mm512_load_si512(x + i));
      odd = x86::dot_add(odd, ones, _mm512_load_si512(x + i + 64));
    }
    // Leaves int32 where the sums of products do not yet, and wraps.
    const __m512i sum = _mm512_slli_epi32(_mm512_add_epi32(even, odd), 7);
    _mm512_store_si512(offset, _mm512_sub_epi32(_mm512_setzero_si512(), sum));
  }

  /// Some rows of a panel of y by one or two panels of x, in 16 accumulators.
  template <int rows, int x_panels>
  KOKKOSMX_AVX512_INLINE static void block(std::int32_t* sums, std::int64_t sums_x,
                                           const element* y, const element* x,
                                           std::int64_t stride_x,
                                           const std::int32_t (&offset)[2][16], int groups,
                                           bool add, Unpacker& unpacker) {
    __m512i sum[rows][x_panels];
    for (int r = 0; r < rows; ++r) {
      for (int q = 0; q < x_panels; ++q) sum[r][q] = _mm512_load_si512(offset[q]);
    }
    for (int t = 0; t < 2 * groups; ++t) {
      const element* y_tile = y + t * tile_bytes;
      const element* x_tile = x + t * tile_bytes;
      for (int first = 0; first < 16; first += columns) {
#pragma GCC unroll 4
        for (int j = first; j < first + columns; ++j) {
          // Not an array: g++ 12 keeps one on the stack.
          const element* column = x_tile + j * 64;
          const __m512i column_0 = _mm512_load_si512(column);
          const __m512i column_1 = _mm512_load_si512(column + (x_panels - 1) * stride_x);
#pragma GCC unroll 16
          for (int r = 0; r < rows; ++r) {
            std::int32_t four;
            std::memcpy(&four, y_tile + r * 64 + 4 * j, sizeof(four));
            const __m512i row = _mm512_set1_epi32(four);
            sum[r][0] = x86::dot_add(sum[r][0], row, column_0);
            if constexpr (x_panels == 2) sum[r][1] = x86::dot_add(sum[r][1], row, column_1);
          }
        }
        unpacker();
      }
    }
    for (int r = 0; r < rows; ++r) {
      for (int q = 0; q < x_panels; ++q) {
        std::int32_t* to = sums + q * sums_x + r * 16;
        _mm512_storeu_si512(to,
                            add ? _mm512_add_epi32(sum[r][q], _mm512_loadu_si512(to)) : sum[r][q]);
      }
    }
  }
};
static_assert(PanelAtom<VnniGemmAtom>);

}  // namespace KokkosMX::Impl

#endif

#endif
