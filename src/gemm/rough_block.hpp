// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_ROUGH_BLOCK_HPP
#define KOKKOSMX_SRC_GEMM_ROUGH_BLOCK_HPP

/// \file rough_block.hpp
/// Sums of a few panels of y by a few of x, where rows are rough: their scales spread over more
/// than one band of band_width exponents.
///
/// A row's band 0 is its least scales, and what is near them: so small a code of a larger scale
/// that it fits the atom's integers too. It is summed as if there were nothing else. What else a
/// row has of one band in one group of K is a piece of that group. In a group
///
///   y x = y0 x0 + (pieces of y) x0 + y0 (pieces of x) + (pieces of y) (pieces of x)
///
/// and the cost of the last three follows how many pieces there are: they are collected, 16 at a
/// time, into panels of their own. What is beyond band 0 lies often in the same few columns of K in
/// all rows (all else in these blocks is zero then, or near): such columns are taken out of their
/// groups and gathered into groups of their own, to which all the above applies.
///
/// Gathered columns belong to one operand: those of x for the whole call, those of y for its block.
/// Columns of both count as those of x. So y's pieces are made without either, those of x without
/// x's, and in an ordinary group the last product needs the pieces of y that hold y's columns too.
///
/// Where there are so many pieces that work without them is cheaper, and for outputs whose sums the
/// limbs do not hold, every block's products are added to sums of any width.

#include <KokkosMX/Types.hpp>

#include "../atoms/gemm/panel_atom.hpp"
#include "../operand.hpp"
#include "exact_sum.hpp"

#include <Kokkos_Core.hpp>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <thread>

namespace KokkosMX::Impl {

/// What is known of a row. Of n, only whether it is zero.
inline RowState row_of(const PanelState& state, int r) {
  return {state.is_zero >> r & 1u ? 0u : 1u, state.base.scale[r * group_blocks],
          state.spread[r * group_blocks], (state.has_nan >> r & 1u) != 0};
}
/// Outside band 0, and no block of zeros.
inline bool is_beyond(int distance, const RowState& row) {
  return distance >= band_width && distance <= row.spread;
}

/// How rough blocks are cut and when they are worth it: see gemm_select.hpp.
struct RoughConfig {
  int y_panels, x_panels;  ///< at most
  int column_groups;       ///< of gathered columns, of each operand, at most
  int y_pieces, x_pieces;  ///< panels of pieces, at most: beyond, blocks are added one by one
};

/// Columns of K, as positions: group_size * group, plus their places in the order of elements.
struct RoughColumns {
  static constexpr int most_groups = 4;
  std::int32_t ready;  ///< as once has it
  int groups;
  int count[most_groups];
  std::int32_t position[most_groups * group_size];
};

/// 16 rows of pieces of one group: its number, or that of a group of gathered columns.
struct RoughPieces {
  std::int64_t group;
  int panel;  ///< all rows of this panel, of one band; or -1
  int count;
  std::int16_t row[panel_rows];  ///< panel_rows * panel + row
  std::uint8_t band[panel_rows];
};

/// What rows of some panels have beyond band 0.
struct RoughPart {
  std::int32_t ready;
  int count;  ///< of pieces, sorted by group
  bool too_many;
  int bands;         ///< the largest
  std::int64_t key;  ///< of a part of y: which one
};

/// Offsets in bytes.
struct RoughPartLayout {
  std::size_t pieces, elements, dense, bytes;
};
struct RoughLayout {
  RoughPartLayout part;
  std::size_t limbs, sums, y, x, values, bands, counts, mask, y_part, columns, bytes;
};
/// What workers share of x.
struct RoughSharedLayout {
  RoughPartLayout part;
  std::size_t columns, mask, parts, bytes;
};

/// Runs f in the first thread that comes; others wait for it. state is 0 at first.
template <class F>
void once(std::int32_t& state, const F& f) {
  std::atomic_ref<std::int32_t> now(state);
  constexpr std::int32_t none = 0, begun = 1, done = 2;
  if (now.load(std::memory_order_acquire) == done) return;
  std::int32_t expected = none;
  if (now.compare_exchange_strong(expected, begun, std::memory_order_acquire)) {
    f();
    now.store(done, std::memory_order_release);
  } else {
    while (now.load(std::memory_order_acquire) != done) std::this_thread::yield();
  }
}

template <PanelAtom Atom>
class RoughBlock {
 public:
  using element = typename Atom::element;
  static constexpr int most_panels = 16;

  /// Limb l of a sum counts 2^(32 l). Every term belongs to one piece, so the limbs of an output
  /// get less than 2^31 times 2^28 in all.
  static constexpr int limbs = 3;
  static constexpr int limb_bits = 32;
  /// The largest sum of two bands whose products the limbs hold.
  static constexpr int most_bands = (limbs * limb_bits - band_width) / band_width;

  /// Panels of one operand.
  struct Side {
    int panels = 0;
    PanelView view[most_panels];
    const PanelState* state[most_panels];
  };

  static RoughLayout layout_of(const RoughConfig& config, std::int64_t groups) {
    RoughLayout layout{};
    const Take take{layout.bytes};
    const std::int64_t y = config.y_panels, x = config.x_panels;
    layout.part = part_layout(config.y_pieces, config.column_groups * y);
    layout.limbs = take(std::max<std::int64_t>(limbs * y * x, WideSum::limbs) * panel_outputs * 8);
    layout.sums = take(std::max<std::int64_t>(y * x, group_blocks) * panel_outputs * 4);
    layout.y = take(std::max<std::int64_t>(y, group_blocks) * element_bytes);
    layout.x = take(x * element_bytes);
    layout.values = take(std::max(y, x) * panel_rows * group_size);
    layout.bands = take(std::max(y, x) * panel_rows * group_size);
    layout.counts = take(groups * group_size);
    layout.mask = take(groups * group_bytes);
    layout.y_part = take(static_cast<std::int64_t>(layout.part.bytes));
    layout.columns = take(sizeof(RoughColumns));
    return layout;
  }
  static RoughSharedLayout shared_layout(const RoughConfig& config, std::int64_t groups,
                                         std::int64_t parts) {
    RoughSharedLayout layout{};
    const Take take{layout.bytes};
    layout.part = part_layout(config.x_pieces, 0);
    layout.columns = take(sizeof(RoughColumns));
    layout.mask = take(groups * group_bytes);
    layout.parts = take(parts * static_cast<std::int64_t>(layout.part.bytes));
    return layout;
  }
  static void clear_shared(unsigned char* shared, const RoughSharedLayout& layout,
                           std::int64_t parts) {
    reinterpret_cast<RoughColumns*>(shared + layout.columns)->ready = 0;
    for (std::int64_t i = 0; i < parts; ++i) {
      reinterpret_cast<RoughPart*>(shared + layout.parts +
                                   static_cast<std::size_t>(i) * layout.part.bytes)
          ->ready = 0;
    }
  }

  /// To be called for a worker's memory before its first block.
  static void clear(unsigned char* memory, const RoughConfig& config, std::int64_t groups) {
    reinterpret_cast<RoughPart*>(memory + layout_of(config, groups).y_part)->key = -1;
  }

  /// y_key: no other y has it; blocks of the same y after one another share what is made of it.
  /// shared: what workers share of this batch of x; x_at(panel, view): the state of any of its
  /// x_count panels.
  template <class XAt>
  RoughBlock(const RoughConfig& config, std::int64_t blocks, unsigned char* memory, const Side& y,
             std::int64_t y_key, unsigned char* shared, const RoughSharedLayout& shared_layout,
             std::int64_t x_count, const XAt& x_at)
      : config_(config),
        blocks_(blocks),
        groups_((blocks + group_blocks - 1) / group_blocks),
        memory_(memory),
        layout_(layout_of(config, groups_)),
        shared_(shared),
        shared_layout_(shared_layout),
        y_(y),
        x_columns_(reinterpret_cast<RoughColumns*>(shared + shared_layout.columns)),
        y_columns_(memory_at<RoughColumns>(layout_.columns)) {
    once(x_columns_->ready, [&] {
      clear_mask(x_mask());
      choose_columns(x_count, x_at, *x_columns_, x_mask());
    });
    auto& part = *memory_at<RoughPart>(layout_.y_part);
    if (part.key == y_key) return;
    std::memcpy(y_mask(), x_mask(), static_cast<std::size_t>(groups_ * group_bytes));
    choose_columns(
        y_.panels,
        [&](std::int64_t p, PanelView& view) {
          view = y_.view[p];
          return y_.state[p];
        },
        *y_columns_, y_mask());
    make_y_part(part);
    part.key = y_key;
  }

  const Side& y() const { return y_; }
  const Side& x() const { return x_; }

  /// Sums that fit the limbs: of panel a of y by panel b of part `part` of x, from the sums of
  /// their bands 0 at sums + a * stride_y + b * panel_outputs. dense: band 0 of the panels of x in
  /// the atom's elements, dense_stride apart. False where adding block by block is cheaper.
  bool sum(const Side& x, std::int64_t part, const std::int32_t* sums, std::int64_t stride_y,
           const element* dense, std::int64_t dense_stride) {
    x_ = x;
    unsigned char* x_memory =
        shared_ + shared_layout_.parts + static_cast<std::size_t>(part) * shared_layout_.part.bytes;
    auto& x_part = *reinterpret_cast<RoughPart*>(x_memory);
    const Parts x_parts = parts_at(x_memory, shared_layout_.part);
    once(x_part.ready, [&] { make_x_part(x_part, x_parts); });
    auto& y_part = *memory_at<RoughPart>(layout_.y_part);
    const Parts y_parts = parts_at(memory_ + layout_.y_part, layout_.part);
    if (x_part.too_many || y_part.too_many) return false;
    const int bands = std::min(y_part.bands + x_part.bands, most_bands);
    used_limbs_ = bands * band_width / limb_bits + 1;
    const std::int64_t size = tiles() * panel_outputs;
    for (int l = 1; l < used_limbs_; ++l) {
      std::memset(limb(l), 0, static_cast<std::size_t>(size) * sizeof(std::int64_t));
    }
    for (int a = 0; a < y_.panels; ++a) {
      Atom::widen(sums + a * stride_y, x_.panels * panel_outputs, limb(0) + at(a, 0));
    }
    int i = 0, j = 0;
    while (i < y_part.count || j < x_part.count) {
      std::int64_t g = -1;
      if (i < y_part.count) g = y_parts.pieces[i].group;
      if (j < x_part.count) {
        const std::int64_t of_x = x_parts.pieces[j].group;
        g = g < 0 ? of_x : std::min(g, of_x);
      }
      List y_list = list_of(y_parts, y_part.count, i, g);
      List x_list = list_of(x_parts, x_part.count, j, g);
      i += y_list.count;
      j += x_list.count;
      if (!add_group(g, y_list, x_list, y_parts.dense, dense, dense_stride)) return false;
    }
    return true;
  }

  /// Limb l of the sums of panel a of y by panel b of x; limbs from used_limbs() on are zero.
  const std::int64_t* limb_of(int l, int a, int b) const { return limb(l) + at(a, b); }
  int used_limbs() const { return used_limbs_; }
  /// Limbs hold the sum of rows with these spreads.
  static bool limbs_hold(std::int32_t a, std::int32_t b) {
    return a / band_width + b / band_width <= most_bands;
  }

  /// Sums of any width of panel a of y by panel b of x: limbs as WideSum has them, those of an
  /// output panel_outputs apart. Overwrites what sum has left.
  const std::int64_t* sum_by_blocks(int a, int b);

 private:
  static constexpr std::int64_t element_bytes = Atom::panel_group_elements * sizeof(element);

  struct Take {
    std::size_t& next;
    std::size_t operator()(std::int64_t bytes) const {
      constexpr std::size_t line = 64;
      const std::size_t at = next;
      next += (static_cast<std::size_t>(bytes) + line - 1) / line * line;
      return at;
    }
  };
  static RoughPartLayout part_layout(std::int64_t pieces, std::int64_t dense) {
    RoughPartLayout layout{};
    const Take take{layout.bytes};
    take(sizeof(RoughPart));
    layout.pieces = take(pieces * static_cast<std::int64_t>(sizeof(RoughPieces)));
    layout.elements = take(pieces * element_bytes);
    layout.dense = take(dense * element_bytes);
    return layout;
  }
  struct Parts {
    RoughPieces* pieces;
    element* elements;
    element* dense;  ///< band 0 of x's gathered columns
  };
  static Parts parts_at(unsigned char* memory, const RoughPartLayout& layout) {
    return {reinterpret_cast<RoughPieces*>(memory + layout.pieces),
            reinterpret_cast<element*>(memory + layout.elements),
            reinterpret_cast<element*>(memory + layout.dense)};
  }
  /// Pieces of one group.
  struct List {
    const RoughPieces* pieces;
    const element* elements;
    int count;
  };
  static List list_of(const Parts& parts, int count, int first, std::int64_t g) {
    int end = first;
    while (end < count && parts.pieces[end].group == g) ++end;
    return {parts.pieces + first, parts.elements + first * std::int64_t{size}, end - first};
  }
  static constexpr int size = Atom::panel_group_elements;

  template <class T>
  T* memory_at(std::size_t offset) const {
    return reinterpret_cast<T*>(memory_ + offset);
  }
  std::int64_t tiles() const { return std::int64_t{y_.panels} * x_.panels; }
  std::int64_t at(int a, int b) const { return (a * x_.panels + b) * panel_outputs; }
  std::int64_t* limb(int l) const {
    return memory_at<std::int64_t>(layout_.limbs) + l * tiles() * panel_outputs;
  }
  /// Of each group's codes, 15 in nibbles that lie in K and in none of x's gathered columns; or in
  /// none of both.
  std::uint8_t* x_mask() const { return shared_ + shared_layout_.mask; }
  std::uint8_t* y_mask() const { return memory_at<std::uint8_t>(layout_.mask); }

  // ---- Columns. ----

  void clear_mask(std::uint8_t* mask) const {
    std::memset(mask, 0xFF, static_cast<std::size_t>(groups_ * group_bytes));
    for (std::int64_t b = blocks_; b < groups_ * group_blocks; ++b) {  // the padding of K
      for (int j = 0; j < block_bytes; ++j) {
        mask[b / group_blocks * group_bytes + group_blocks * j + b % group_blocks] = 0;
      }
    }
  }

  static bool is_rough(const PanelState& state, int r) {
    return state.spread[r * group_blocks] >= band_width;
  }

  /// Columns that are beyond band 0 in half of a few rows; they leave the mask.
  template <class PanelAt>
  void choose_columns(std::int64_t panels, const PanelAt& panel_at, RoughColumns& columns,
                      std::uint8_t* mask) const {
    columns.groups = 0;
    std::int64_t rows = 0;
    PanelView view;
    const auto for_rough_rows = [&](const auto& f) {
      for (std::int64_t p = 0; p < panels; ++p) {
        const PanelState* state = panel_at(p, view);
        for (int r = 0; r < panel_rows && !state->aligned; ++r) {
          if (is_rough(*state, r)) f(*state, r);
        }
      }
    };
    for_rough_rows([&](const PanelState&, int) { ++rows; });
    if (rows == 0) return;
    constexpr std::int64_t most_samples = 8;
    const std::int64_t samples = std::min(rows, most_samples);
    auto* counts = memory_at<std::uint8_t>(layout_.counts);
    std::memset(counts, 0, static_cast<std::size_t>(groups_ * group_size));
    std::int64_t row = 0, sample = 0;
    for_rough_rows([&](const PanelState& state, int r) {
      if (row++ == sample * rows / samples) {
        ++sample;
        count_columns(view, row_of(state, r), r, counts);
      }
    });
    const int threshold = static_cast<int>(samples + 1) / 2;
    std::int64_t left = std::int64_t{config_.column_groups} * group_size;
    for (std::int64_t k = 0; k < groups_ * group_size && left > 0; ++k) {
      if (counts[k] < threshold) continue;
      std::uint8_t& kept = mask[k / group_size * group_bytes + k % group_bytes];
      const int nibble = nibble_of(k);
      if ((kept >> nibble & 15) == 0) continue;
      kept = static_cast<std::uint8_t>(kept & ~(15 << nibble));
      if (columns.groups == 0 || columns.count[columns.groups - 1] == group_size) {
        columns.count[columns.groups++] = 0;
      }
      const int v = columns.groups - 1;
      columns.position[v * group_size + columns.count[v]++] = static_cast<std::int32_t>(k);
      --left;
    }
  }
  /// Elements of a group: the low nibbles of its bytes, then their high ones.
  static int nibble_of(std::int64_t position) {
    return static_cast<int>(position % group_size / group_bytes) * 4;
  }
  void count_columns(const PanelView& view, const RowState& row, int r,
                     std::uint8_t* counts) const {
    for (std::int64_t block = 0; block < blocks_; ++block) {
      const std::int64_t g = block / group_blocks, b = block % group_blocks;
      const int distance = view.scales[g * panel_group_scales + r * group_blocks + b] - row.lo;
      if (!is_beyond(distance, row)) continue;
      const int least = least_far_magnitude(distance);
      const std::uint8_t* codes = view.codes + g * panel_group_bytes + r * group_bytes + b;
      std::uint8_t* to = counts + g * group_size + b;
      for (int j = 0; j < group_bytes; j += group_blocks) {
        to[j] = static_cast<std::uint8_t>(to[j] + ((codes[j] & 7) >= least));
        to[group_bytes + j] =
            static_cast<std::uint8_t>(to[group_bytes + j] + ((codes[j] >> 4 & 7) >= least));
      }
    }
  }

  // ---- Pieces. ----

  /// Finds the codes beyond band 0 among those of four blocks, a byte each.
  struct FarCodes {
    std::uint32_t add;
    FarCodes(const std::uint8_t* scales, const RowState& row) {
      std::uint8_t of_block[group_blocks];
      for (int b = 0; b < group_blocks; ++b) {
        const int distance = scales[b] - row.lo;
        const bool beyond = is_beyond(distance, row);
        of_block[b] = static_cast<std::uint8_t>(beyond ? 8 - least_far_magnitude(distance) : 0);
      }
      std::memcpy(&add, of_block, sizeof(add));
    }
    /// 15 in each nibble that holds one, 0 in others.
    std::uint32_t of(std::uint32_t codes) const {
      const auto spread = [](std::uint32_t bit_3) { return (bit_3 << 1) - (bit_3 >> 3); };
      const std::uint32_t low = ((codes & 0x07070707u) + add) & 0x08080808u;
      const std::uint32_t high = ((codes >> 4 & 0x07070707u) + add) & 0x08080808u;
      return spread(low) | spread(high) << 4;
    }
  };

  /// The bands beyond 0 in which a row has something in a group.
  std::uint64_t bands_in_group(const Side& side, int p, int r, std::int64_t g,
                               const std::uint8_t* mask) const {
    const RowState row = row_of(*side.state[p], r);
    const std::uint8_t* scales = side.view[p].scales + g * panel_group_scales + r * group_blocks;
    const std::uint8_t* codes = side.view[p].codes + g * panel_group_bytes + r * group_bytes;
    const FarCodes far(scales, row);
    std::uint32_t any = 0;
    for (int j = 0; j < group_bytes; j += group_blocks) {
      std::uint32_t code, kept;
      std::memcpy(&code, codes + j, sizeof(code));
      std::memcpy(&kept, mask + g * group_bytes + j, sizeof(kept));
      any |= far.of(code) & kept;
    }
    std::uint8_t of_block[group_blocks];
    std::memcpy(of_block, &any, sizeof(any));
    std::uint64_t bands = 0;
    for (int b = 0; b < group_blocks; ++b) {
      if (of_block[b] != 0) bands |= std::uint64_t{1} << ((scales[b] - row.lo) / band_width);
    }
    return bands;
  }

  /// Makes pieces of a group one after the other: f(pieces) says whether there is room for more.
  /// bands(p, r): those of a row that have any; rows(p): those of a panel, as bits.
  template <class RowsOf, class BandsOf, class F>
  static bool collect(const Side& side, std::int64_t g, const RowsOf& rows_of,
                      const BandsOf& bands_of, const F& f) {
    RoughPieces open;
    open.group = g;
    open.panel = -1;
    open.count = 0;
    for (int p = 0; p < side.panels; ++p) {
      const unsigned rows = side.state[p]->aligned ? 0 : rows_of(p);
      if (rows == 0) continue;
      std::uint64_t bands[panel_rows], all = 0;
      for (int r = 0; r < panel_rows; ++r) {
        bands[r] = (rows >> r & 1) == 0 ? 0 : bands_of(p, r) & ~std::uint64_t{1};
        all |= bands[r];
      }
      for (int band = 1; band < 64 && all >> band != 0; ++band) {
        int count = 0;
        for (int r = 0; r < panel_rows; ++r) count += static_cast<int>(bands[r] >> band & 1);
        if (count >= panel_rows / 2) {
          if (!f(whole(g, p, band))) return false;
          continue;
        }
        for (int r = 0; r < panel_rows && count > 0; ++r) {
          if ((bands[r] >> band & 1) == 0) continue;
          open.row[open.count] = static_cast<std::int16_t>(panel_rows * p + r);
          open.band[open.count++] = static_cast<std::uint8_t>(band);
          if (open.count == panel_rows) {
            if (!f(open)) return false;
            open.count = 0;
          }
        }
      }
    }
    return open.count == 0 || f(open);
  }
  static RoughPieces whole(std::int64_t g, int panel, int band) {
    RoughPieces p;
    p.group = g;
    p.panel = panel;
    p.count = panel_rows;
    for (int r = 0; r < panel_rows; ++r) {
      p.row[r] = static_cast<std::int16_t>(panel_rows * panel + r);
      p.band[r] = static_cast<std::uint8_t>(band);
    }
    return p;
  }
  /// The same in an ordinary group.
  template <class F>
  static bool collect_in_group(const RoughBlock& block, const Side& side, std::int64_t g,
                               const std::uint8_t* mask, const F& f) {
    return collect(
        side, g,
        [&](int p) {
          const PanelView& view = side.view[p];
          return Atom::far_rows(view.codes + g * panel_group_bytes,
                                view.scales + g * panel_group_scales, side.state[p]->base.scale,
                                side.state[p]->spread, mask + g * group_bytes);
        },
        [&](int p, int r) { return block.bands_in_group(side, p, r, g, mask); }, f);
  }

  void pack(bool is_x, const std::int8_t* rows, element* to) const {
    if (is_x) {
      Atom::pack_x(rows, to);
    } else {
      Atom::pack_y(rows, to);
    }
  }

  /// Brings pieces of an ordinary group into the atom's elements.
  void make_elements(const Side& side, bool is_x, const RoughPieces& pieces,
                     const std::uint8_t* mask, element* to) const {
    alignas(64) std::uint8_t codes[panel_group_bytes];
    alignas(64) std::uint8_t scales[panel_group_scales];
    PanelBase base;
    base.near = false;
    mask += pieces.group * group_bytes;
    for (int i = 0; i < panel_rows; ++i) {
      std::uint8_t* out = codes + i * group_bytes;
      if (i >= pieces.count) {
        std::memset(out, 0, group_bytes);
        std::memset(scales + i * group_blocks, 0, group_blocks);
        std::memset(base.scale + i * group_blocks, 0, group_blocks);
        continue;
      }
      const int p = pieces.row[i] / panel_rows, r = pieces.row[i] % panel_rows;
      const PanelView& view = side.view[p];
      const RowState row = row_of(*side.state[p], r);
      const std::uint8_t* from = view.codes + pieces.group * panel_group_bytes + r * group_bytes;
      const std::uint8_t* scale =
          view.scales + pieces.group * panel_group_scales + r * group_blocks;
      const FarCodes far(scale, row);
      for (int j = 0; j < group_bytes; j += group_blocks) {
        std::uint32_t code, kept;
        std::memcpy(&code, from + j, sizeof(code));
        std::memcpy(&kept, mask + j, sizeof(kept));
        code &= far.of(code) & kept;
        std::memcpy(out + j, &code, sizeof(code));
      }
      std::memcpy(scales + i * group_blocks, scale, group_blocks);
      // No block of a row that ends below the band.
      const int distance = pieces.band[i] * band_width;
      std::memset(base.scale + i * group_blocks, distance <= row.spread ? row.lo + distance : 255,
                  group_blocks);
    }
    if (is_x) {
      Atom::unpack_x(codes, scales, base, 1, to);
    } else {
      Atom::unpack_y(codes, scales, base, 1, to);
    }
  }

  /// Adds pieces to a part as long as there is room.
  struct Append {
    RoughPart& part;
    const Parts& parts;
    int most;
    template <class Make>
    bool operator()(const RoughPieces& pieces, const Make& make) const {
      part.too_many = part.count == most;
      if (part.too_many) return false;
      for (int i = 0; i < pieces.count; ++i) part.bands = std::max<int>(part.bands, pieces.band[i]);
      parts.pieces[part.count] = pieces;
      make(parts.elements + part.count * std::int64_t{size});
      ++part.count;
      return true;
    }
  };

  void make_y_part(RoughPart& part) const {
    const Parts parts = parts_at(memory_ + layout_.y_part, layout_.part);
    part = {};
    const Append append{part, parts, config_.y_pieces};
    if (!append_groups(y_, false, y_mask(), append)) return;
    for (int v = 0; v < x_columns_->groups; ++v) {
      // Where only x has pieces, band 0 of y is needed.
      if (!append_columns(y_, false, groups_ + v, *x_columns_, v, append,
                          parts.dense + v * y_.panels * std::int64_t{size})) {
        return;
      }
    }
    for (int v = 0; v < y_columns_->groups; ++v) {
      if (!append_columns(y_, false, groups_ + x_columns_->groups + v, *y_columns_, v, append,
                          nullptr)) {
        return;
      }
    }
  }
  void make_x_part(RoughPart& part, const Parts& parts) const {
    part.count = 0;
    part.too_many = false;
    part.bands = 0;
    const Append append{part, parts, config_.x_pieces};
    if (!append_groups(x_, true, x_mask(), append)) return;
    for (int v = 0; v < x_columns_->groups; ++v) {
      if (!append_columns(x_, true, groups_ + v, *x_columns_, v, append, nullptr)) return;
    }
  }

  bool append_groups(const Side& side, bool is_x, const std::uint8_t* mask,
                     const Append& append) const {
    bool any = false;
    for (int p = 0; p < side.panels; ++p) any = any || !side.state[p]->aligned;
    for (std::int64_t g = 0; any && g < groups_; ++g) {
      const bool room = collect_in_group(*this, side, g, mask, [&](const RoughPieces& pieces) {
        return append(pieces, [&](element* to) { make_elements(side, is_x, pieces, mask, to); });
      });
      if (!room) return false;
    }
    return true;
  }

  /// Pieces of gathered columns, and band 0 in dense if that is not null.
  bool append_columns(const Side& side, bool is_x, std::int64_t g, const RoughColumns& columns,
                      int v, const Append& append, element* dense) const {
    auto* values = memory_at<std::int8_t>(layout_.values);
    auto* bands = memory_at<std::uint8_t>(layout_.bands);
    constexpr int panel_size = panel_rows * group_size;
    std::uint64_t present[most_panels][panel_rows];
    for (int p = 0; p < side.panels; ++p) {
      gather(side, p, columns.position + v * group_size, columns.count[v], values + p * panel_size,
             bands + p * panel_size, present[p]);
    }
    const auto make = [&](const RoughPieces& pieces, element* to) {
      alignas(64) std::int8_t rows[panel_size];
      for (int i = 0; i < panel_rows; ++i) {
        std::int8_t* out = rows + i * group_size;
        if (i >= pieces.count) {
          std::memset(out, 0, group_size);
          continue;
        }
        const std::int8_t* value = values + pieces.row[i] * group_size;
        const std::uint8_t* band = bands + pieces.row[i] * group_size;
        const std::uint8_t kept = pieces.band[i];
        for (int k = 0; k < group_size; ++k) out[k] = band[k] == kept ? value[k] : std::int8_t{0};
      }
      pack(is_x, rows, to);
    };
    for (int p = 0; dense != nullptr && p < side.panels; ++p) {
      make(whole(g, p, 0), dense + p * std::int64_t{size});
    }
    return collect(
        side, g, [](int) { return 0xFFFFu; }, [&](int p, int r) { return present[p][r]; },
        [&](const RoughPieces& pieces) {
          return append(pieces, [&](element* to) { make(pieces, to); });
        });
  }

  /// Gathers columns of a panel: values aligned within their bands, and the bands beyond 0 of each
  /// row that have any.
  static void gather(const Side& side, int p, const std::int32_t* positions, int count,
                     std::int8_t* values, std::uint8_t* bands,
                     std::uint64_t (&present)[panel_rows]) {
    std::int64_t code_at[group_size], scale_at[group_size];
    int nibble[group_size];
    for (int i = 0; i < count; ++i) {
      const std::int64_t k = positions[i], g = k / group_size;
      code_at[i] = g * panel_group_bytes + k % group_bytes;
      scale_at[i] = g * panel_group_scales + k % group_blocks;
      nibble[i] = nibble_of(k);
    }
    alignas(64) std::uint8_t code[group_size] = {};
    alignas(64) std::uint8_t scale[group_size] = {};
    for (int r = 0; r < panel_rows; ++r) {
      const std::uint8_t* codes = side.view[p].codes + r * group_bytes;
      const std::uint8_t* scales = side.view[p].scales + r * group_blocks;
      for (int i = 0; i < count; ++i) {
        code[i] = static_cast<std::uint8_t>(codes[code_at[i]] >> nibble[i] & 15);
        scale[i] = scales[scale_at[i]];
      }
      const RowState row = row_of(*side.state[p], r);
      std::uint8_t* band = bands + r * group_size;
      present[r] = 0;
      if (!Atom::split_bands(code, scale, row.lo, row.spread, values + r * group_size, band)) {
        continue;
      }
      for (int i = 0; i < count; ++i) present[r] |= std::uint64_t{1} << band[i];
    }
  }

  // ---- Products. ----

  /// Adds what a group has besides the products of the bands 0.
  bool add_group(std::int64_t g, const List& y, const List& x, const element* y_dense,
                 const element* x_dense, std::int64_t x_stride) {
    auto* y_elements = memory_at<element>(layout_.y);
    auto* x_elements = memory_at<element>(layout_.x);
    const bool is_gathered = g >= groups_;
    if (y.count != 0) {
      const element* dense = x_dense + g * size;
      std::int64_t stride = x_stride;
      if (is_gathered) {
        int v = static_cast<int>(g - groups_);
        const RoughColumns* columns = x_columns_;
        if (v >= x_columns_->groups) {
          v -= x_columns_->groups;
          columns = y_columns_;
        }
        for (int b = 0; b < x_.panels; ++b) {
          Atom::gather_x(x_dense + b * x_stride, columns->position + v * group_size,
                         columns->count[v], x_elements + b * std::int64_t{size});
        }
        dense = x_elements;
        stride = size;
      }
      for (int i = 0; i < y.count; i += config_.y_panels) {
        const int count = std::min(config_.y_panels, y.count - i);
        multiply(
            y.elements + i * std::int64_t{size}, count, dense, stride, x_.panels,
            [&](int a) -> const RoughPieces& { return y.pieces[i + a]; },
            [&](int b) { return whole(g, b, 0); });
      }
    }
    if (x.count == 0) return true;
    if (is_gathered) {
      y_elements = const_cast<element*>(y_dense) + (g - groups_) * y_.panels * size;
    } else {
      for (int a = 0; a < y_.panels; ++a) {
        const PanelView& view = y_.view[a];
        Atom::unpack_y(view.codes + g * panel_group_bytes, view.scales + g * panel_group_scales,
                       y_.state[a]->base, 1, y_elements + a * std::int64_t{size});
      }
    }
    const auto by_pieces_of_x = [&](const element* from, int count, const auto& y_at) {
      for (int j = 0; j < x.count; j += config_.x_panels) {
        multiply(from, count, x.elements + j * std::int64_t{size}, size,
                 std::min(config_.x_panels, x.count - j), y_at,
                 [&](int b) -> const RoughPieces& { return x.pieces[j + b]; });
      }
    };
    by_pieces_of_x(y_elements, y_.panels, [&](int a) { return whole(g, a, 0); });
    if (is_gathered || y_columns_->groups == 0) {
      for (int i = 0; i < y.count; i += config_.y_panels) {
        by_pieces_of_x(y.elements + i * std::int64_t{size}, std::min(config_.y_panels, y.count - i),
                       [&](int a) -> const RoughPieces& { return y.pieces[i + a]; });
      }
      return true;
    }
    // With what y has in its gathered columns.
    return collect_in_group(*this, y_, g, x_mask(), [&](const RoughPieces& pieces) {
      make_elements(y_, false, pieces, x_mask(), y_elements);
      by_pieces_of_x(y_elements, 1, [&](int) -> const RoughPieces& { return pieces; });
      return true;
    });
  }

  /// Adds the products of panels of y by panels of x to the limbs, each where its rows say.
  template <class YAt, class XAt>
  void multiply(const element* y, int y_count, const element* x, std::int64_t x_stride, int x_count,
                const YAt& y_at, const XAt& x_at) {
    auto* sums = memory_at<std::int32_t>(layout_.sums);
    Atom::multiply(sums, x_count * panel_outputs, panel_outputs, y, size, x, x_stride, y_count,
                   x_count, 1, false, {});
    for (int a = 0; a < y_count; ++a) {
      for (int b = 0; b < x_count; ++b) {
        add(y_at(a), x_at(b), sums + (a * x_count + b) * panel_outputs);
      }
    }
  }

  void add(const RoughPieces& y, const RoughPieces& x, const std::int32_t* sums) {
    if (x.panel >= 0) {
      std::int64_t* to[panel_rows];
      std::int32_t shifts[panel_rows];
      for (int i = 0; i < y.count; ++i) {
        // Where both bands are too much, no output with both is held by the limbs: there it does
        // not matter what they hold.
        const int shift = std::min(y.band[i] + x.band[0], most_bands) * band_width;
        shifts[i] = shift % limb_bits;
        to[i] = row_at(shift, y.row[i], x.panel);
      }
      Atom::add_rows(to, shifts, sums, y.count);
      return;
    }
    for (int j = 0; j < x.count; ++j) {
      const int panel = x.row[j] / panel_rows, col = x.row[j] % panel_rows;
      if (y.panel >= 0) {
        const int shift = std::min(y.band[0] + x.band[j], most_bands) * band_width;
        std::int64_t* to = row_at(shift, panel_rows * y.panel, panel) + col;
        const std::uint64_t unit = std::uint64_t{1} << (shift % limb_bits);
        for (int i = 0; i < panel_rows; ++i)
          add(to[i * panel_rows], sums[i * panel_rows + j], unit);
      } else {
        for (int i = 0; i < y.count; ++i) {
          const int shift = std::min(y.band[i] + x.band[j], most_bands) * band_width;
          add(row_at(shift, y.row[i], panel)[col], sums[i * panel_rows + j],
              std::uint64_t{1} << (shift % limb_bits));
        }
      }
    }
  }
  /// The limb bound holds for what is used.
  static void add(std::int64_t& to, std::int32_t sum, std::uint64_t unit) {
    to = static_cast<std::int64_t>(static_cast<std::uint64_t>(to) +
                                   static_cast<std::uint64_t>(static_cast<std::int64_t>(sum)) *
                                       unit);
  }
  /// 16 outputs of row `row` of y by a panel of x, in the limb of a shift.
  std::int64_t* row_at(int shift, int row, int x_panel) const {
    return limb(shift / limb_bits) + at(row / panel_rows, x_panel) + row % panel_rows * panel_rows;
  }

  RoughConfig config_;
  std::int64_t blocks_, groups_;
  unsigned char* memory_;
  RoughLayout layout_;
  unsigned char* shared_;
  RoughSharedLayout shared_layout_;
  Side y_, x_;
  RoughColumns* x_columns_;
  RoughColumns* y_columns_;
  int used_limbs_ = 1;
};

/// Each of a group's four blocks alone, as a panel of y of its own: their products are added where
/// their scales say.
template <PanelAtom Atom>
const std::int64_t* RoughBlock<Atom>::sum_by_blocks(int a, int b) {
  auto* sums = memory_at<std::int32_t>(layout_.sums);
  auto* y_elements = memory_at<element>(layout_.y);
  auto* x_elements = memory_at<element>(layout_.x);
  auto* limbs = memory_at<std::int64_t>(layout_.limbs);
  std::memset(limbs, 0, WideSum::limbs * panel_outputs * sizeof(*limbs));
  RowState y_row[panel_rows], x_row[panel_rows];
  for (int r = 0; r < panel_rows; ++r) {
    y_row[r] = row_of(*y_.state[a], r);
    x_row[r] = row_of(*x_.state[b], r);
  }
  alignas(64) std::uint8_t zeros[panel_group_scales] = {};
  PanelBase base;
  std::memset(base.scale, 0, sizeof(base.scale));
  base.near = false;
  alignas(64) std::uint8_t only[group_blocks][panel_group_scales];
  for (int block = 0; block < group_blocks; ++block) {
    for (int i = 0; i < panel_group_scales; ++i) {
      only[block][i] = i % group_blocks == block ? std::uint8_t{0} : std::uint8_t{255};
    }
  }
  // A block of zeros may lie anywhere: its products are zero wherever they are added.
  const auto shift_of = [](int scale, const RowState& row) {
    const int distance = scale - row.lo;
    return distance < 0 || distance > row.spread ? 0 : distance;
  };
  static_assert(most_groups_in_int32 * group_blocks <= WideSum::terms_between_carries);
  for (std::int64_t g = 0; g < groups_; ++g) {
    const std::uint8_t* y_codes = y_.view[a].codes + g * panel_group_bytes;
    const std::uint8_t* x_codes = x_.view[b].codes + g * panel_group_bytes;
    const std::uint8_t* y_scales = y_.view[a].scales + g * panel_group_scales;
    const std::uint8_t* x_scales = x_.view[b].scales + g * panel_group_scales;
    const int count =
        static_cast<int>(std::min<std::int64_t>(group_blocks, blocks_ - g * group_blocks));
    for (int block = 0; block < count; ++block) {
      Atom::unpack_y(y_codes, only[block], base, 1, y_elements + block * std::int64_t{size});
    }
    Atom::unpack_x(x_codes, zeros, base, 1, x_elements);
    Atom::multiply(sums, panel_outputs, panel_outputs, y_elements, size, x_elements, size, count, 1,
                   1, false, {});
    for (int block = 0; block < count; ++block) {
      int x_shift[panel_rows];
      for (int c = 0; c < panel_rows; ++c) {
        x_shift[c] = shift_of(x_scales[c * group_blocks + block], x_row[c]);
      }
      for (int r = 0; r < panel_rows; ++r) {
        const int y_shift = shift_of(y_scales[r * group_blocks + block], y_row[r]);
        const std::int32_t* from = sums + block * panel_outputs + r * panel_rows;
        std::int64_t* to = limbs + r * panel_rows;
        for (int c = 0; c < panel_rows; ++c) {
          const int shift = y_shift + x_shift[c];
          to[(shift / WideSum::limb_bits) * panel_outputs + c] += static_cast<std::int64_t>(from[c])
                                                                  << (shift % WideSum::limb_bits);
        }
      }
    }
  }
  return limbs;
}

}  // namespace KokkosMX::Impl

#endif
