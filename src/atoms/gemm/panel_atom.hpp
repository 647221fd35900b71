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
#include <type_traits>

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

/// The largest magnitude of an element, in halves: 12 << 3.
inline constexpr int most_halves = 96;
/// Exponents that hold something as small: 1 << 6.
inline constexpr int near_width = 7;

/// The least magnitude of a code whose block lies at a distance above its row's base that is not
/// near: halves << distance exceeds most_halves. 8: there is none.
KOKKOS_INLINE_FUNCTION int least_far_magnitude(int distance) {
  return distance < band_width ? 8 : distance < near_width ? 6 - 2 * (distance - band_width) : 1;
}

/// The scale that shift 0 stands for, of each row, four times. Blocks whose scale lies below it, or
/// band_width or more above it, are left out (unpacked as zeros); or, with near, codes that are not
/// near.
struct PanelBase {
  alignas(64) std::uint8_t scale[panel_group_scales];
  bool near;
};

/// What a panel's rows ask for.
struct PanelState {
  /// The least scales of the rows' blocks that count (0 where there are none), for one pass.
  PanelBase base;
  /// As base: how far above that a row has blocks that count, 0 if it holds a NaN.
  alignas(64) std::uint8_t spread[panel_group_scales];
  /// lo - 128, of a row without blocks that count -1: an output's unit is 2^(sum of its row's and
  /// its column's).
  alignas(64) std::int32_t exponent[panel_rows];
  std::int32_t least_exponent, largest_exponent;
  std::int32_t most_spread;
  std::uint16_t is_zero, has_nan;  ///< bit r: of row r
  /// Every row fits the atom's integers in one pass, none holds a NaN.
  bool aligned;
};

/// Codes and scales of a panel, group after group of K.
struct PanelView {
  const std::uint8_t* codes;
  const std::uint8_t* scales;
};

/// Panels of y that are to become elements: some groups of K of each, panel i's at to + i * stride.
/// Unless a panel's base is near, its blocks that are left out have no nonzero codes.
template <class Element>
struct PanelUnpacking {
  int panels = 0;
  const PanelView* views = nullptr;
  const PanelState* states = nullptr;
  std::int64_t first_group = 0;
  int groups = 0;
  std::int64_t stride = 0;
  Element* to = nullptr;

  const std::uint8_t* codes(int i, int group) const {
    return views[i].codes + (first_group + group) * panel_group_bytes;
  }
  const std::uint8_t* scales(int i, int group) const {
    return views[i].scales + (first_group + group) * panel_group_scales;
  }
};

/// Unpacks them one after the other.
template <class Atom, class Element>
void unpack_panels(const PanelUnpacking<Element>& work) {
  for (int i = 0; i < work.panels; ++i) {
    Atom::unpack_y(work.codes(i, 0), work.scales(i, 0), work.states[i].base, work.groups,
                   work.to + i * work.stride);
  }
}

/// Where sums go: those of a panel by one panel, or by two panels that are neighbours in C's rows,
/// so that whole lines of C are written. Or float32 numbers, as bits, instead of sums.
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
  bool rounded = false;     ///< instead of sums there are numbers, and exponents do not count
};

/// Sums of 16 x 16 outputs by limbs, limb[l][i] counting 2^(32 l); no third limb where it is null.
struct LimbSums {
  static constexpr int levels = 3, bits = 32;
  const std::int64_t* limb[levels];
};

/// Some panels by some groups of K.
struct PanelBlock {
  int panels, groups;
};

template <class A>
concept PanelAtom = requires(const std::uint8_t* codes, const PanelBase& base,
                             const std::int8_t* values, std::int8_t* split_values,
                             std::uint8_t* split, const std::int32_t* positions,
                             typename A::element* panel, const typename A::element* operand,
                             std::int32_t* sums, std::int64_t* wide, std::int64_t* const* wide_rows,
                             std::uint32_t* bits, const LimbSums& limb_sums,
                             std::int64_t (&joined)[LimbSums::levels][panel_outputs],
                             std::int32_t (&level)[panel_outputs], const PanelStore& store,
                             const RowSummary (&summaries)[panel_rows], PanelState& state,
                             const PanelUnpacking<typename A::element>& next, std::int64_t stride,
                             int i, bool b) {
  { A::name } -> std::convertible_to<const char*>;
  // Elements of a panel's group.
  { A::panel_group_elements } -> std::convertible_to<int>;
  // What a panel's rows ask for: from their summaries, or from the scales of so many groups, of
  // which none is 255, and 0 those whose codes are all 0.
  A::state_of_summaries(summaries, state);
  A::state_of_scales(codes, i, state);
  // What multiply best takes of y at a time, where it meets few panels of x.
  { A::block_for_few } -> std::convertible_to<PanelBlock>;
  // One thread's use of multiply lies between these.
  A::begin();
  A::end();
  // unpack_*(codes, scales, base, groups, to): codes of consecutive groups to elements, code <<
  // (scale - base). Any alignment of codes and scales; to is aligned to 64 bytes. The order of K in
  // a group: the low nibbles of its 64 bytes, then their high ones.
  A::unpack_y(codes, codes, base, i, panel);
  A::unpack_x(codes, codes, base, i, panel);
  // pack_*(values, to): the same from 16 rows of 128 numbers of halves, aligned to 64 bytes.
  A::pack_y(values, panel);
  A::pack_x(values, panel);
  // multiply(sums, y panel stride, x panel stride, y, stride, x, stride, y panels, x panels,
  // groups, add, next): sums of panel p of y by panel q of x at sums + p * ... + q * ..., 256 of
  // them in 16 rows of y; overwritten, or added to. Overflow wraps. The panels of next are unpacked
  // meanwhile: before, after, or where the matrix unit leaves the vector units idle.
  A::multiply(sums, stride, stride, operand, stride, operand, stride, i, i, i, b, next);
  // The rows of x, at most, for which it has dot, a power of two: none where 0, else
  // unpack_dot(codes, scales, base, groups, count, to): the first `count` rows of a panel, to
  // group_size elements each, a group's rows after one another, and
  // dot(codes, scales, base, groups, x, count, sums): the sums of a panel of y, in its codes, by
  // `count` such rows, a power of two: 16 rows of 16, of which `count` are written. Overflow wraps.
  // Unless y's base is near, blocks that are left out have no nonzero codes.
  { A::most_dot_rows } -> std::convertible_to<int>;
  // Rounds each sum once to float32, then to the element.
  A::store(store);
  // gather_x(panel, positions, count, to): elements of a panel of x at up to 128 positions, 128 *
  // group + the place in the order of K in a group, to one group; zeros after them.
  A::gather_x(operand, positions, i, panel);
  // far_rows(codes, scales, bases, spreads, mask): bit r: row r of a group has a code under the
  // mask, in a block up to its spread above its base, that is not near. Bases and spreads as
  // PanelBase's, the mask as a row's codes.
  { A::far_rows(codes, codes, codes, codes, codes) } -> std::convertible_to<unsigned>;
  // split_bands(codes, scales, base, spread, values, bands): of 128 codes, a byte each, of blocks
  // up to `spread` above the base: band 0 and code << distance where that is near, else distance /
  // band_width and code << (distance % band_width); whether any is not near.
  { A::split_bands(codes, codes, i, i, split_values, split) } -> std::convertible_to<bool>;
  // widen(sums, count, wide): wide[i] = sums[i].
  A::widen(sums, i, wide);
  // add_rows(to, shifts, sums, rows): 16 numbers of each row, to[r][k] += sums[16 * r + k] <<
  // shifts[r], which wraps.
  A::add_rows(wide_rows, sums, sums, i);
  // join_limbs(limbs, from, level): from[level[i]][i] * 2^(32 level[i]) rounds as sum i does; the
  // largest level is returned. A sum has no more than 123 bits and a sign.
  { A::join_limbs(limb_sums, joined, level) } -> std::convertible_to<int>;
  // round(wide, row exponents, col exponents, bits): 16 x 16 sums of 63 bits and a sign, each times
  // 2^(row + col exponent), once to float32.
  A::round(wide, sums, sums, bits);
};

/// Plain loops that serve where an atom has no instructions of its own.
struct PanelLoops {
  /// The shift of each block of a panel's group, or -1 where it is left out.
  KOKKOS_FORCEINLINE_FUNCTION static int shift_of(std::uint8_t scale, std::uint8_t base,
                                                  int width) {
    const int distance = static_cast<int>(scale) - base;
    return distance >= 0 && distance < width ? distance : -1;
  }

  KOKKOS_FORCEINLINE_FUNCTION static void state_of_summaries(
      const RowSummary (&summaries)[panel_rows], PanelState& state) {
    state.is_zero = 0;
    state.has_nan = 0;
    for (int r = 0; r < panel_rows; ++r) {
      const RowSummary& s = summaries[r];
      const bool nan = s.has_nan != 0;
      for (int b = 0; b < group_blocks; ++b) {
        state.base.scale[r * group_blocks + b] = s.lo;
        state.spread[r * group_blocks + b] = static_cast<std::uint8_t>(nan ? 0 : s.hi - s.lo);
      }
      state.is_zero = static_cast<std::uint16_t>(state.is_zero | (s.n == 0 ? 1 : 0) << r);
      state.has_nan = static_cast<std::uint16_t>(state.has_nan | (nan ? 1 : 0) << r);
    }
    finish_state(state);
  }
  KOKKOS_FORCEINLINE_FUNCTION static void state_of_scales(const std::uint8_t* scales, int groups,
                                                          PanelState& state) {
    // Below a scale of 0, which does not count, comes 255.
    std::uint8_t least[panel_group_scales], most[panel_group_scales];
    for (int i = 0; i < panel_group_scales; ++i) {
      least[i] = 255;
      most[i] = 0;
    }
    for (int g = 0; g < groups; ++g) {
      for (int i = 0; i < panel_group_scales; ++i) {
        const std::uint8_t scale = scales[g * panel_group_scales + i];
        const auto below = static_cast<std::uint8_t>(scale - 1);
        least[i] = below < least[i] ? below : least[i];
        most[i] = scale > most[i] ? scale : most[i];
      }
    }
    state.is_zero = 0;
    state.has_nan = 0;
    for (int r = 0; r < panel_rows; ++r) {
      std::uint8_t lo = 255, hi = 0;
      for (int i = r * group_blocks; i < (r + 1) * group_blocks; ++i) {
        lo = least[i] < lo ? least[i] : lo;
        hi = most[i] > hi ? most[i] : hi;
      }
      ++lo;
      for (int i = r * group_blocks; i < (r + 1) * group_blocks; ++i) {
        state.base.scale[i] = lo;
        state.spread[i] = static_cast<std::uint8_t>(hi - lo);
      }
      state.is_zero = static_cast<std::uint16_t>(state.is_zero | (hi == 0 ? 1 : 0) << r);
    }
    finish_state(state);
  }
  /// What follows from the rest.
  KOKKOS_FORCEINLINE_FUNCTION static void finish_state(PanelState& state) {
    state.aligned = state.has_nan == 0;
    state.least_exponent = 1 << 10;
    state.largest_exponent = -(1 << 10);
    state.most_spread = 0;
    for (int r = 0; r < panel_rows; ++r) {
      const int exponent =
          (state.is_zero >> r & 1) != 0 ? -1 : state.base.scale[r * group_blocks] - 128;
      state.exponent[r] = exponent;
      if (exponent < state.least_exponent) state.least_exponent = exponent;
      if (exponent > state.largest_exponent) state.largest_exponent = exponent;
      state.aligned = state.aligned && state.spread[r * group_blocks] < band_width;
      if (state.spread[r * group_blocks] > state.most_spread) {
        state.most_spread = state.spread[r * group_blocks];
      }
    }
    state.base.near = !state.aligned;
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

  /// x's elements are words of 4 bytes by 16 rows.
  template <class T>
  KOKKOS_FORCEINLINE_FUNCTION static void gather_x(const T* panel, const std::int32_t* positions,
                                                   int count, T* to) {
    constexpr int each = 4 / sizeof(T);
    constexpr int bits = 8 * sizeof(T);
    constexpr std::uint32_t one = (std::uint32_t{1} << bits) - 1;
    for (int word = 0; word < group_size / each; ++word) {
      std::uint32_t out[panel_rows] = {};
      for (int i = 0; i < each && each * word + i < count; ++i) {
        const std::int32_t position = positions[each * word + i];
        std::uint32_t from[panel_rows];
        std::memcpy(from, panel + std::int64_t{position / each} * panel_rows * each, sizeof(from));
        const int shift = position % each * bits;
        for (int r = 0; r < panel_rows; ++r) {
          out[r] |= (from[r] >> shift & one) << (i * bits);
        }
      }
      std::memcpy(to + std::int64_t{word} * panel_rows * each, out, sizeof(out));
    }
  }

  KOKKOS_FORCEINLINE_FUNCTION static unsigned far_rows(const std::uint8_t* codes,
                                                       const std::uint8_t* scales,
                                                       const std::uint8_t* bases,
                                                       const std::uint8_t* spreads,
                                                       const std::uint8_t* mask) {
    // What brings the least magnitude that is not near to 8: 8 - least_far_magnitude(distance).
    std::uint8_t add[panel_group_scales];
    for (int i = 0; i < panel_group_scales; ++i) {
      const int distance = scales[i] - bases[i];
      const int to_8 = 2 * (distance - band_width + 1) < 7 ? 2 * (distance - band_width + 1) : 7;
      const bool beyond = distance >= band_width && distance <= spreads[i];
      add[i] = static_cast<std::uint8_t>(beyond ? to_8 : 0);
    }
    std::uint32_t low_mask[block_bytes], high_mask[block_bytes];
    for (int j = 0; j < block_bytes; ++j) {
      std::uint32_t kept;
      std::memcpy(&kept, mask + group_blocks * j, sizeof(kept));
      low_mask[j] = kept & 0x08080808u;
      high_mask[j] = kept >> 4 & 0x08080808u;
    }
    unsigned rows = 0;
    for (int r = 0; r < panel_rows; ++r) {
      std::uint32_t to_8;
      std::memcpy(&to_8, add + group_blocks * r, sizeof(to_8));
      if (to_8 == 0) continue;
      std::uint32_t code[block_bytes], any = 0;
      std::memcpy(code, codes + group_bytes * r, sizeof(code));
      for (int j = 0; j < block_bytes; ++j) {
        any |= (((code[j] & 0x07070707u) + to_8) & low_mask[j]) |
               (((code[j] >> 4 & 0x07070707u) + to_8) & high_mask[j]);
      }
      rows |= (any != 0 ? 1u : 0u) << r;
    }
    return rows;
  }

  KOKKOS_FORCEINLINE_FUNCTION static bool split_bands(const std::uint8_t* KOKKOS_RESTRICT codes,
                                                      const std::uint8_t* KOKKOS_RESTRICT scales,
                                                      int base, int spread,
                                                      std::int8_t* KOKKOS_RESTRICT values,
                                                      std::uint8_t* KOKKOS_RESTRICT bands) {
    std::int32_t any = 0;
    for (int i = 0; i < group_size; ++i) {
      const std::int32_t code = codes[i], distance = scales[i] - base;
      const std::int32_t inside = distance >= 0 && distance <= spread ? -1 : 0;
      const std::int32_t far =
          inside & ((code & 7) >= least_far_magnitude(distance) ? distance / band_width : 0);
      const std::int32_t shift = far != 0 ? distance % band_width : distance;
      // Far above the base, what is near is zero.
      const std::int32_t halves = signed_halves_of(code) & inside;
      values[i] = static_cast<std::int8_t>(halves * (1 << (shift & 7)));
      bands[i] = static_cast<std::uint8_t>(far);
      any |= far;
    }
    return any != 0;
  }

  KOKKOS_FORCEINLINE_FUNCTION static void widen(const std::int32_t* KOKKOS_RESTRICT sums, int count,
                                                std::int64_t* KOKKOS_RESTRICT wide) {
    for (int i = 0; i < count; ++i) wide[i] = sums[i];
  }

  KOKKOS_FORCEINLINE_FUNCTION static void add_rows(std::int64_t* const* to,
                                                   const std::int32_t* shifts,
                                                   const std::int32_t* sums, int rows) {
    for (int r = 0; r < rows; ++r) {
      std::int64_t* KOKKOS_RESTRICT wide = to[r];
      const std::int32_t* KOKKOS_RESTRICT row = sums + r * panel_rows;
      const int shift = shifts[r];
      for (int k = 0; k < panel_rows; ++k) {
        const auto sum = static_cast<std::uint64_t>(static_cast<std::int64_t>(row[k]));
        wide[k] = static_cast<std::int64_t>(static_cast<std::uint64_t>(wide[k]) + (sum << shift));
      }
    }
  }

  /// With carries passed on, a sum is its lowest 64 bits where those are enough; or what is left
  /// above 32 bits, or above 64. There an odd last bit stands for all that lies below: the nearest
  /// float32 is the same, since these are taken only where they have many more bits.
  KOKKOS_FORCEINLINE_FUNCTION static int join_limbs(
      const LimbSums& sums, std::int64_t (&from)[LimbSums::levels][panel_outputs],
      std::int32_t (&level)[panel_outputs]) {
    constexpr std::int64_t word = 0xFFFFFFFF;
    constexpr std::int64_t limit = std::int64_t{1} << 30;
    std::int32_t highest = 0;
    const auto join = [&](auto has_third) {
      for (int k = 0; k < panel_outputs; ++k) {
        const std::int64_t low = sums.limb[0][k] & word;
        const std::int64_t above = sums.limb[1][k] + (sums.limb[0][k] >> 32);
        const std::int64_t middle = above & word;
        std::int64_t top = above >> 32;
        if constexpr (decltype(has_third)::value) top += sums.limb[2][k];
        const auto joined = [](std::int64_t high, std::int64_t rest) {
          return static_cast<std::int64_t>(static_cast<std::uint64_t>(high) << 32 |
                                           static_cast<std::uint64_t>(rest));
        };
        const std::int64_t high = joined(top, middle);
        from[0][k] = joined(middle, low);
        from[1][k] = high | (low != 0 ? 1 : 0);
        from[2][k] = top | ((low | middle) != 0 ? 1 : 0);
        const std::int32_t one = high >= -limit && high < limit ? 0 : 1;
        level[k] = top >= -limit && top < limit ? one : 2;
        highest = highest > level[k] ? highest : level[k];
      }
    };
    if (sums.limb[2] == nullptr) {
      join(std::false_type{});
    } else {
      join(std::true_type{});
    }
    return highest;
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
          row[panel_rows * q + j] =
              to.rounded ? static_cast<std::uint32_t>(sum[j])
                         : round_one(sum[j], to.row_exponent[i] + to.col_exponent[q][j]);
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
