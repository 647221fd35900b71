// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_ATOMS_GEMM_PANEL_ATOM_HPP
#define KOKKOSMX_SRC_ATOMS_GEMM_PANEL_ATOM_HPP

/// \file panel_atom.hpp
/// What an atom of the panel kernel (hosts with vector or matrix units) is.
///
/// A panel is 16 rows of an operand, a group is 4 blocks (128 elements) of K. Codes and scales of a
/// panel's group lie as in the layouts Tile16x128 and Tile16x4: 16 rows of 64 bytes, byte 4 j + b
/// being byte j of block b; 16 rows of 4 scales. An atom unpacks them to small integers in orders
/// of its own and multiplies panels: y (one operand) by x (the other). It knows no Views, no
/// tiling, no tiers and no edges; the kernel owns those.

#include <KokkosMX/Types.hpp>

#include "../../numbers.hpp"
#include "../../operand.hpp"

#include <concepts>
#include <cstdint>
#include <cstring>

namespace KokkosMX::Impl {

inline constexpr int panel_rows = 16;
inline constexpr int group_size = group_blocks * block_size;
/// Bytes of the codes of a panel's group, and of its scales.
inline constexpr int panel_group_bytes = panel_rows * group_bytes;
inline constexpr int panel_group_scales = panel_rows * group_blocks;
/// Outputs of a panel by a panel.
inline constexpr int panel_outputs = panel_rows * panel_rows;

/// Exponents of a band: codes are aligned by shifts of 0 to 3, so that 12 << 3 = 96 fits int8.
inline constexpr int band_width = 4;
/// With terms of at most 96 * 96 an int32 holds the sum of so many groups.
inline constexpr std::int64_t most_groups_in_int32 = 2147483647 / (96 * 96) / group_size;

/// The scale that shift 0 stands for, of each row, four times. Blocks whose scale lies below it, or
/// band_width or more above it, are left out (unpacked as zeros).
struct PanelBase {
  alignas(64) std::uint8_t scale[panel_group_scales];
};

/// Where sums go: those of a panel by one panel, or by two panels that are neighbours in C's rows,
/// so that whole lines of C are written.
struct PanelStore {
  static constexpr int most = 2;
  int panels;  ///< 1 or 2: the numbers of sums and of col_exponents
  /// 16 x 16 each, in rows of y.
  const std::int32_t* sums[most];
  /// The rows of y are columns of C.
  bool transposed;
  /// Units of an output: 2^(row_exponent[i] + col_exponent[q][j]), all such that no nonzero sum
  /// leaves float32's normal range.
  const std::int32_t* row_exponent;
  const std::int32_t* col_exponent[most];
  void* c;
  Element element;
  std::int64_t row_stride;  ///< in elements; the elements of a row are contiguous
  int rows, cols;           ///< how much of the 16 x (16 * panels) lies in C
};

template <class A>
concept PanelAtom = requires(const std::uint8_t* codes, const PanelBase& base,
                             typename A::element* panel, const typename A::element* operand,
                             std::int32_t* sums, std::int64_t* wide, std::uint32_t* bits,
                             const PanelStore& store, std::int64_t stride, int i, bool b) {
  { A::name } -> std::convertible_to<const char*>;
  // The panels of y and of x that it likes to multiply at a time.
  { A::block_y } -> std::convertible_to<int>;
  { A::block_x } -> std::convertible_to<int>;
  // Elements of a panel's group.
  { A::panel_group_elements } -> std::convertible_to<int>;
  // One thread's use of multiply lies between these.
  A::begin();
  A::end();
  // unpack_*(codes, scales, base, groups, to): codes of consecutive groups to elements, code <<
  // (scale - base). Any alignment of codes and scales; to is aligned to 64 bytes.
  A::unpack_y(codes, codes, base, i, panel);
  A::unpack_x(codes, codes, base, i, panel);
  // multiply(sums, y panel stride, x panel stride, y, stride, x, stride, y panels, x panels,
  // groups, add): sums of panel p of y by panel q of x at sums + p * ... + q * ..., 256 of them in
  // 16 rows of y; overwritten, or added to. Overflow wraps.
  A::multiply(sums, stride, stride, operand, stride, operand, stride, i, i, i, b);
  // One group by one group: a dot product for each of the 4 blocks, in quarters.
  A::group_products(codes, codes, sums);
  // Rounds each sum once to float32, then to the element.
  A::store(store);
  // add_shifted(wide, sums, count, shift): wide[i] += sums[i] << shift, which wraps.
  A::add_shifted(wide, sums, i, i);
  // round(wide, row exponents, col exponents, bits): 16 x 16 sums of 63 bits and a sign, each times
  // 2^(row + col exponent), once to float32.
  A::round(wide, sums, sums, bits);
};

/// Plain loops that serve where an atom has no instructions of its own.
struct PanelLoops {
  /// The shift of each block of a panel's group, or -1 where it is left out.
  KOKKOS_FORCEINLINE_FUNCTION static int shift_of(std::uint8_t scale, std::uint8_t base) {
    const int distance = static_cast<int>(scale) - base;
    return distance >= 0 && distance < band_width ? distance : -1;
  }

  KOKKOS_FORCEINLINE_FUNCTION static void group_products(const std::uint8_t* a,
                                                         const std::uint8_t* b,
                                                         std::int32_t* products) {
    std::int16_t sum[group_bytes];
    for (int i = 0; i < group_bytes; ++i) {
      const std::int16_t a_low = signed_halves_of(static_cast<std::int16_t>(a[i] & 15));
      const std::int16_t b_low = signed_halves_of(static_cast<std::int16_t>(b[i] & 15));
      const std::int16_t a_high = signed_halves_of(static_cast<std::int16_t>(a[i] >> 4));
      const std::int16_t b_high = signed_halves_of(static_cast<std::int16_t>(b[i] >> 4));
      sum[i] = static_cast<std::int16_t>(a_low * b_low + a_high * b_high);
    }
    for (int width = group_bytes / 2; width >= group_blocks; width /= 2) {
      for (int i = 0; i < width; ++i) {  // 16 * 288 fits
        sum[i] = static_cast<std::int16_t>(sum[i] + sum[i + width]);
      }
    }
    for (int i = 0; i < group_blocks; ++i) products[i] = sum[i];
  }

  /// RN_f32(sum * 2^exponent) of a result in the normal range, by integers: a double holds the sum
  /// exactly, and its bits are rounded to a float's.
  KOKKOS_FORCEINLINE_FUNCTION static std::uint32_t round_one(std::int32_t sum,
                                                             std::int32_t exponent) {
    const double exact = sum;
    std::uint64_t bits;
    std::memcpy(&bits, &exact, sizeof(bits));
    const std::uint32_t sign = static_cast<std::uint32_t>(bits >> 32) & f32_sign;
    bits &= ~(std::uint64_t{1} << 63);
    bits = (bits + 0x0FFFFFFFu + ((bits >> 29) & 1)) >> 29;
    const std::uint32_t magnitude = static_cast<std::uint32_t>(bits) +
                                    (static_cast<std::uint32_t>(exponent - (1023 - 127)) << 23);
    return sum == 0 ? 0u : sign | magnitude;
  }

  KOKKOS_FORCEINLINE_FUNCTION static void add_shifted(std::int64_t* KOKKOS_RESTRICT wide,
                                                      const std::int32_t* KOKKOS_RESTRICT sums,
                                                      int count, int shift) {
    for (int i = 0; i < count; ++i) {
      const auto sum = static_cast<std::uint64_t>(static_cast<std::int64_t>(sums[i]));
      wide[i] = static_cast<std::int64_t>(static_cast<std::uint64_t>(wide[i]) + (sum << shift));
    }
  }

  KOKKOS_FORCEINLINE_FUNCTION static void round(const std::int64_t* wide,
                                                const std::int32_t* row_exponent,
                                                const std::int32_t* col_exponent,
                                                std::uint32_t* bits) {
    for (int i = 0; i < panel_outputs; ++i) {
      bits[i] = round_to_f32(wide[i], row_exponent[i / panel_rows] + col_exponent[i % panel_rows]);
    }
  }

  KOKKOS_FORCEINLINE_FUNCTION static void store(const PanelStore& to) {
    for (int i = 0; i < to.rows; ++i) {
      std::uint32_t row[PanelStore::most * panel_rows];
      for (int q = 0; q < to.panels; ++q) {
        const std::int32_t* sums = to.sums[q];
        std::int32_t sum[panel_rows];
        for (int j = 0; j < panel_rows; ++j) {
          sum[j] = to.transposed ? sums[panel_rows * j + i] : sums[panel_rows * i + j];
        }
        for (int j = 0; j < panel_rows; ++j) {
          row[panel_rows * q + j] = round_one(sum[j], to.row_exponent[i] + to.col_exponent[q][j]);
        }
      }
      const std::int64_t at = i * to.row_stride;
      if (to.element == Element::bf16) {
        std::uint16_t narrow[PanelStore::most * panel_rows];
        for (int j = 0; j < panel_rows * to.panels; ++j) {
          narrow[j] = static_cast<std::uint16_t>((row[j] + 0x7FFFu + ((row[j] >> 16) & 1u)) >> 16);
        }
        std::memcpy(static_cast<std::uint16_t*>(to.c) + at, narrow,
                    static_cast<std::size_t>(to.cols) * sizeof(narrow[0]));
      } else if (to.element == Element::f32) {
        std::memcpy(static_cast<std::uint32_t*>(to.c) + at, row,
                    static_cast<std::size_t>(to.cols) * sizeof(row[0]));
      } else {
        for (int j = 0; j < to.cols; ++j) store_from_f32(to.element, to.c, at + j, row[j]);
      }
    }
  }
};

}  // namespace KokkosMX::Impl

#endif
