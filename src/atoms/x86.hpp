// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_X86_HPP
#define KOKKOSMX_SRC_ATOMS_X86_HPP

/// \file x86.hpp
/// Targets of the x86-64 atoms, and the instructions that not every machine has, each behind a
/// function. With KOKKOSMX_MODEL_INSTRUCTIONS these functions are a model of the instructions in
/// plain C++ instead, as Intel's manual defines them: the atoms' logic can then be tested on any
/// machine that has AVX-512 BW. A model proves nothing about hardware, and its speed is none.

#include "atom_function.hpp"

#if KOKKOSMX_HAVE_X86_ATOMS

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

#define KOKKOSMX_AVX512_BASE "avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512cd"
#ifdef KOKKOSMX_MODEL_INSTRUCTIONS
#define KOKKOSMX_AVX512_TARGET KOKKOSMX_AVX512_BASE
#define KOKKOSMX_AMX_TARGET KOKKOSMX_AVX512_BASE
#else
#define KOKKOSMX_AVX512_TARGET KOKKOSMX_AVX512_BASE ",avx512vbmi,avx512vnni"
#define KOKKOSMX_AMX_TARGET KOKKOSMX_AVX512_TARGET ",amx-tile,amx-int8"
#endif

/// Functions of atoms that need AVX-512 F, BW, DQ, VL, CD, VBMI and VNNI (Ice Lake, Zen 4).
#define KOKKOSMX_AVX512_FUNCTION __attribute__((noinline, target(KOKKOSMX_AVX512_TARGET)))
#define KOKKOSMX_AVX512_INLINE inline __attribute__((always_inline, target(KOKKOSMX_AVX512_TARGET)))
/// Functions of atoms that need AMX TILE and INT8 besides (Sapphire Rapids).
#define KOKKOSMX_AMX_FUNCTION __attribute__((noinline, target(KOKKOSMX_AMX_TARGET)))
#define KOKKOSMX_AMX_INLINE inline __attribute__((always_inline, target(KOKKOSMX_AMX_TARGET)))

namespace KokkosMX::Impl::x86 {

/// Whether the cache next to the core has more than 32 KiB, as far as the system says.
inline bool has_large_first_cache() {
#ifdef _SC_LEVEL1_DCACHE_SIZE
  static const bool is_large = sysconf(_SC_LEVEL1_DCACHE_SIZE) > 32768;
  return is_large;
#else
  return false;
#endif
}

/// VPERMB: byte i of the result is byte index[i] & 63 of the table.
KOKKOSMX_AVX512_INLINE __m512i permute_bytes(__m512i index, __m512i table) {
#ifdef KOKKOSMX_MODEL_INSTRUCTIONS
  alignas(64) std::uint8_t i[64], t[64], r[64];
  _mm512_store_si512(i, index);
  _mm512_store_si512(t, table);
  for (int k = 0; k < 64; ++k) r[k] = t[i[k] & 63];
  return _mm512_load_si512(r);
#else
  return _mm512_permutexvar_epi8(index, table);
#endif
}

/// VPMULTISHIFTQB: byte i of 64 bits of the result is the 8 bits from bit control[i] % 64 on of
/// these 64 bits of x, around their end; where a bit of the mask is 0, it is src's byte.
KOKKOSMX_AVX512_INLINE __m512i multishift(__m512i src, __mmask64 mask, __m512i control, __m512i x) {
#ifdef KOKKOSMX_MODEL_INSTRUCTIONS
  alignas(64) std::uint8_t c[64], r[64];
  alignas(64) std::uint64_t v[8];
  _mm512_store_si512(c, control);
  _mm512_store_si512(v, x);
  _mm512_store_si512(r, src);
  for (int k = 0; k < 64; ++k) {
    const int n = c[k] % 64;
    const std::uint64_t turned = n == 0 ? v[k / 8] : v[k / 8] >> n | v[k / 8] << (64 - n);
    if ((mask >> k & 1) != 0) r[k] = static_cast<std::uint8_t>(turned);
  }
  return _mm512_load_si512(r);
#else
  return _mm512_mask_multishift_epi64_epi8(src, mask, control, x);
#endif
}

/// VPDPBUSD: adds to each int32 of sum the four products of unsigned bytes of a and signed of b.
KOKKOSMX_AVX512_INLINE __m512i dot_add(__m512i sum, __m512i a, __m512i b) {
#ifdef KOKKOSMX_MODEL_INSTRUCTIONS
  const __m512i a_even = _mm512_and_si512(a, _mm512_set1_epi16(0xFF));
  const __m512i a_odd = _mm512_srli_epi16(a, 8);
  const __m512i b_even = _mm512_srai_epi16(_mm512_slli_epi16(b, 8), 8);
  const __m512i b_odd = _mm512_srai_epi16(b, 8);
  return _mm512_add_epi32(
      sum, _mm512_add_epi32(_mm512_madd_epi16(a_even, b_even), _mm512_madd_epi16(a_odd, b_odd)));
#else
  return _mm512_dpbusd_epi32(sum, a, b);
#endif
}

/// The eight tile registers, each of up to 16 rows of up to 64 bytes, as LDTILECFG takes it.
struct TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

#ifdef KOKKOSMX_MODEL_INSTRUCTIONS

struct TileModel {
  TileConfig config;
  std::uint8_t data[8][16][64];
};
inline TileModel& tile_model() {
  static thread_local TileModel model{};
  return model;
}
inline void memory_is_read() {}
inline void tile_configure(const TileConfig& config) {
  tile_model().config = config;
  std::memset(tile_model().data, 0, sizeof(tile_model().data));
}
inline void tile_release() { tile_model() = TileModel{}; }
template <int T>
void tile_zero() {
  std::memset(tile_model().data[T], 0, sizeof(tile_model().data[T]));
}
template <int T>
void tile_load(const void* from, std::int64_t stride) {
  TileModel& m = tile_model();
  std::memset(m.data[T], 0, sizeof(m.data[T]));
  for (int r = 0; r < m.config.rows[T]; ++r) {
    std::memcpy(m.data[T][r], static_cast<const std::uint8_t*>(from) + r * stride,
                m.config.row_bytes[T]);
  }
}
template <int T>
void tile_store(void* to, std::int64_t stride) {
  const TileModel& m = tile_model();
  for (int r = 0; r < m.config.rows[T]; ++r) {
    std::memcpy(static_cast<std::uint8_t*>(to) + r * stride, m.data[T][r], m.config.row_bytes[T]);
  }
}
template <int C, int A, int B>
void tile_dot_add() {
  TileModel& m = tile_model();
  const int columns = m.config.row_bytes[C] / 4, depth = m.config.row_bytes[A] / 4;
  for (int r = 0; r < m.config.rows[C]; ++r) {
    for (int k = 0; k < depth; ++k) {
      std::int8_t a[4];
      std::memcpy(a, m.data[A][r] + 4 * k, 4);
      for (int n = 0; n < columns; ++n) {
        std::int8_t b[4];
        std::memcpy(b, m.data[B][k] + 4 * n, 4);
        std::uint32_t sum;
        std::memcpy(&sum, m.data[C][r] + 4 * n, 4);
        for (int i = 0; i < 4; ++i) sum += static_cast<std::uint32_t>(a[i] * b[i]);
        std::memcpy(m.data[C][r] + 4 * n, &sum, 4);
      }
    }
  }
}

#else

/// Everything in memory has been written, for all that a compiler knows: g++'s intrinsics do not
/// say what LDTILECFG and TILELOADD read.
KOKKOSMX_AMX_INLINE void memory_is_read() { __asm__ volatile("" : : : "memory"); }
KOKKOSMX_AMX_INLINE void tile_configure(const TileConfig& config) {
  __asm__ volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}
KOKKOSMX_AMX_INLINE void tile_release() { _tile_release(); }

#endif

}  // namespace KokkosMX::Impl::x86

/// The number of a tile register stands in the instruction, and g++ wants to read it as it is
/// written: so these are no functions.
#ifdef KOKKOSMX_MODEL_INSTRUCTIONS
#define KOKKOSMX_TILE_ZERO(tile) ::KokkosMX::Impl::x86::tile_zero<tile>()
#define KOKKOSMX_TILE_LOAD(tile, from, stride) ::KokkosMX::Impl::x86::tile_load<tile>(from, stride)
#define KOKKOSMX_TILE_STORE(tile, to, stride) ::KokkosMX::Impl::x86::tile_store<tile>(to, stride)
/// TDPBSSD: c (rows, n) += a (rows, 4 k signed bytes) * b (k, n columns of 4 signed bytes).
#define KOKKOSMX_TILE_DOT_ADD(c, a, b) ::KokkosMX::Impl::x86::tile_dot_add<c, a, b>()
#else
#define KOKKOSMX_TILE_ZERO(tile) _tile_zero(tile)
#define KOKKOSMX_TILE_LOAD(tile, from, stride) _tile_loadd(tile, from, stride)
#define KOKKOSMX_TILE_STORE(tile, to, stride) _tile_stored(tile, to, stride)
#define KOKKOSMX_TILE_DOT_ADD(c, a, b) _tile_dpbssd(c, a, b)
#endif

#endif

#endif
