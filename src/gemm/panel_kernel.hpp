// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_PANEL_KERNEL_HPP
#define KOKKOSMX_SRC_GEMM_PANEL_KERNEL_HPP

/// \file panel_kernel.hpp
/// The GEMM kernel of hosts with vector or matrix units, in two steps over any PanelAtom.
///
/// One operand is called x (the one with fewer rows), the other y. First x is brought whole into
/// the atom's elements, panel by panel (quantized first, where it is dense). Then tasks, each some
/// panels of y by some of x: a task brings its part of y into a worker's memory (quantizes it
/// there, where it is dense: its codes are never written anywhere else), and goes over K in chunks,
/// whose elements of y stay in the caches next to the core.
///
/// Rows are aligned to their least scale, so one pass with int32 accumulators over all of K serves
/// all outputs whose row and column have a spread of at most 3. Other outputs are summed one by
/// one.

#include <KokkosMX/Types.hpp>

#include "../atoms/gemm/panel_atom.hpp"
#include "../operand.hpp"
#include "epilogue.hpp"
#include "exact_sum.hpp"

#include <Kokkos_Core.hpp>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace KokkosMX::Impl {

/// Quantizes a row: a quantize atom's quantize_row. Of the summary's n it says whether it is zero.
using QuantizeRowFunction = RowSummary (*)(const unsigned char* x, std::int64_t blocks,
                                           std::uint8_t* codes, std::int64_t codes_stride,
                                           std::uint8_t* scales, std::int64_t scales_stride,
                                           QuantizeRule rule);

/// An operand as the panel kernel takes it: dense where quantize is not null, else a matrix with
/// summaries.
struct PanelOperand {
  QuantizeRowFunction quantize;
  DenseMap dense;
  MatrixMap matrix;
  std::int64_t batch, rows;

  std::int64_t panels() const { return (rows + panel_rows - 1) / panel_rows; }
  /// Codes and scales lie as panels already: Tile16x128 and Tile16x4.
  bool is_panels() const {
    const ScalesMap& scales = matrix.scales;
    return quantize == nullptr && matrix.codes.byte == group_blocks &&
           scales.row_1 == group_blocks && scales.col_4 == panel_group_scales;
  }
};

/// Codes and scales of a panel: groups follow one another.
struct PanelView {
  const std::uint8_t* codes;
  const std::uint8_t* scales;
};

/// What a panel's rows ask for.
struct PanelState {
  PanelBase base;
  RowState row[panel_rows];
  /// lo - 128, of a row without nonzero blocks -1: an output's unit is 2^(sum of its row's and its
  /// column's).
  std::int32_t exponent[panel_rows];
  std::int32_t least_exponent, largest_exponent;
  /// Every row fits the atom's integers in one pass, none holds a NaN.
  bool aligned;
  /// Bit b: some block lies in band b: its scale is 4 b to 4 b + 3 above its row's least.
  std::uint64_t bands;
};

/// Panels of y, and of x, of a task, at most.
inline constexpr int most_task_panels = 64;

/// How work is cut: see gemm_select.hpp.
struct PanelConfig {
  int y_panels, x_panels;  ///< of a task
  int block_panels;        ///< of y, whose chunks of K are unpacked together
  int groups;              ///< of K in a chunk
  int workers;
  /// Every worker brings all of x into its own memory: no first step.
  bool own_x;
};

/// A worker's memory, as offsets in bytes.
struct WorkerLayout {
  std::size_t codes, scales, states, bands, elements, sums, bytes;
};

struct PanelProblem {
  PanelOperand y, x;
  QuantizeRule rule = rules::reference;
  Epilogue epilogue;
  /// y is B: an output's row in C is its row of x.
  bool y_is_b;
  std::int64_t batch, blocks;
  Tier minimum_tier;
  std::uint64_t* counts;  ///< null where nobody counts
  int sum_bits;

  std::int64_t groups() const { return (blocks + group_blocks - 1) / group_blocks; }
};

/// Where x is after the first step, panel by panel of each batch.
struct PreparedX {
  std::uint8_t* codes;   ///< null where x lies as panels
  std::uint8_t* scales;  ///< the same
  PanelState* states;
  std::uint64_t* bands;  ///< as PanelState::bands, of each group; unset where the panel is aligned
  unsigned char* elements;
};

/// The tasks of a worker that nobody has begun. Every worker has its own, the same ones in every
/// call, so that what they read stays in its caches; one that has none left takes those of others.
struct alignas(64) TaskRange {
  std::int64_t next, end;
};

/// Memory of the whole call, from the workspace.
struct PanelMemory {
  PreparedX x;  ///< the workers have one each instead, if config.own_x
  unsigned char* workers;
  TaskRange* tasks;  ///< one for each worker
};

template <PanelAtom Atom>
struct PanelKernel {
  PanelProblem p;
  PanelConfig config;
  PanelMemory memory;
  WorkerLayout layout;

  using element = typename Atom::element;
  static constexpr std::size_t line = 64;

  static std::size_t aligned_size(std::size_t bytes) { return (bytes + line - 1) / line * line; }
  std::int64_t x_panel_elements() const { return p.groups() * Atom::panel_group_elements; }

  /// Hands out pieces of memory for all of x: take(bytes) returns an address.
  template <class Take>
  static PreparedX take_x(const PanelProblem& p, const Take& take) {
    PreparedX x{};
    const auto panels = static_cast<std::size_t>(p.x.batch * p.x.panels());
    const auto groups = panels * static_cast<std::size_t>(p.groups());
    if (!p.x.is_panels()) {
      x.codes = static_cast<std::uint8_t*>(take(groups * panel_group_bytes));
      x.scales = static_cast<std::uint8_t*>(take(groups * panel_group_scales));
    }
    x.states = static_cast<PanelState*>(take(panels * sizeof(PanelState)));
    x.bands = static_cast<std::uint64_t*>(take(groups * sizeof(std::uint64_t)));
    x.elements =
        static_cast<unsigned char*>(take(groups * Atom::panel_group_elements * sizeof(element)));
    return x;
  }
  static PreparedX x_at(const PanelProblem& p, unsigned char* memory) {
    return take_x(p, [&](std::size_t bytes) -> void* {
      unsigned char* at = memory;
      memory += aligned_size(bytes);
      return at;
    });
  }

  static WorkerLayout worker_layout(const PanelProblem& p, const PanelConfig& config) {
    const auto panels = static_cast<std::size_t>(config.y_panels);
    const auto groups = static_cast<std::size_t>(p.groups());
    const bool own_codes = !p.y.is_panels();
    WorkerLayout layout{};
    std::size_t next = 0;
    const auto take = [&next](std::size_t bytes) {
      const std::size_t at = next;
      next += aligned_size(bytes);
      return at;
    };
    if (config.own_x) {
      take_x(p, [&](std::size_t bytes) -> void* {
        take(bytes);
        return nullptr;
      });
    }
    layout.codes = take(own_codes ? panels * groups * panel_group_bytes : 0);
    layout.scales = take(own_codes ? panels * groups * panel_group_scales : 0);
    layout.states = take(panels * sizeof(PanelState));
    layout.bands = take(panels * groups * sizeof(std::uint64_t));
    const auto block = static_cast<std::size_t>(config.block_panels);
    layout.elements = take(block * static_cast<std::size_t>(config.groups) *
                           Atom::panel_group_elements * sizeof(element));
    layout.sums = take(block * static_cast<std::size_t>(config.x_panels) * panel_outputs *
                       sizeof(std::int32_t));
    layout.bytes = next + 64 * line;  // workers' memories do not begin at the same place of a page
    return layout;
  }

  // ---- The first step: item = a panel of x. ----

  std::int64_t prepare_items() const { return config.own_x ? 1 : p.x.batch * p.x.panels(); }
  void prepare_x(std::int64_t item) const {
    if (item == 0) {
      const std::int64_t count = tasks();
      for (int w = 0; w < config.workers; ++w) {
        memory.tasks[w] = {count * w / config.workers, count * (w + 1) / config.workers};
      }
    }
    if (!config.own_x) prepare_x(item, memory.x);
  }

  // ---- The second step: item = a worker, which takes tasks until there are none. ----

  std::int64_t y_tasks() const { return (p.y.panels() + config.y_panels - 1) / config.y_panels; }
  std::int64_t x_tasks() const { return (p.x.panels() + config.x_panels - 1) / config.x_panels; }
  /// Where y is made in the task, all of x is multiplied with it there.
  std::int64_t tasks() const { return p.batch * y_tasks() * (p.y.is_panels() ? x_tasks() : 1); }

  void work(std::int64_t worker) const {
    unsigned char* own = memory.workers + static_cast<std::size_t>(worker) * layout.bytes;
    PreparedX x = memory.x;
    if (config.own_x) {
      x = x_at(p, own);
      for (std::int64_t i = 0; i < p.x.batch * p.x.panels(); ++i) prepare_x(i, x);
    }
    Atom::begin();
    for (int i = 0; i < config.workers; ++i) {
      TaskRange& range = memory.tasks[(worker + i) % config.workers];
      std::atomic_ref<std::int64_t> next(range.next);
      for (std::int64_t task = next.fetch_add(1); task < range.end; task = next.fetch_add(1)) {
        do_task(task, x, own);
      }
    }
    Atom::end();
  }

 private:
  /// Part of C: panels of y by panels of x.
  struct Place {
    std::int64_t batch;
    std::int64_t y_panel, x_panel;  ///< the first ones
    int y_panels, x_panels;
    const PanelView* y_views;
    const PanelState* y_states;
    const std::uint64_t* y_bands;
    const PanelState* x_states;
    const PreparedX* x;
  };

  void prepare_x(std::int64_t item, const PreparedX& x) const {
    const std::int64_t groups = p.groups();
    const std::int64_t batch = item / p.x.panels(), panel = item % p.x.panels();
    std::uint8_t* codes = x.codes;
    std::uint8_t* scales = x.scales;
    if (codes != nullptr) {
      codes += item * groups * panel_group_bytes;
      scales += item * groups * panel_group_scales;
    }
    PanelState& state = x.states[item];
    const PanelView view =
        load_panel(p.x, batch, panel, codes, scales, state, x.bands + item * groups);
    auto* to = reinterpret_cast<element*>(x.elements) + item * x_panel_elements();
    const std::int64_t whole = p.blocks / group_blocks;
    Atom::unpack_x(view.codes, view.scales, state.base, static_cast<int>(whole), to);
    if (whole == groups) return;
    PaddedGroup padded;
    pad_group(view, whole, padded);
    Atom::unpack_x(padded.codes, padded.scales, state.base, 1,
                   to + whole * Atom::panel_group_elements);
  }

  /// The last group of a panel where it has fewer blocks than others: whatever lies in the padding
  /// of K counts as zero, in one operand and so in every product.
  struct PaddedGroup {
    std::uint8_t codes[panel_group_bytes];
    std::uint8_t scales[panel_group_scales];
  };
  void pad_group(const PanelView& view, std::int64_t group, PaddedGroup& padded) const {
    const int tail = static_cast<int>(p.blocks - group * group_blocks);
    for (int i = 0; i < panel_group_bytes; ++i) {
      padded.codes[i] =
          i % group_blocks < tail ? view.codes[group * panel_group_bytes + i] : std::uint8_t{0};
    }
    for (int i = 0; i < panel_group_scales; ++i) {
      padded.scales[i] =
          i % group_blocks < tail ? view.scales[group * panel_group_scales + i] : std::uint8_t{0};
    }
  }

  static std::int64_t batch_of(const PanelOperand& operand, std::int64_t batch) {
    return operand.batch == 1 ? 0 : batch;
  }

  void do_task(std::int64_t task, const PreparedX& x, unsigned char* own) const {
    const std::int64_t parts = p.y.is_panels() ? x_tasks() : 1;
    const std::int64_t x_part = task % parts, y_part = task / parts % y_tasks();
    Place place{};
    place.batch = task / parts / y_tasks();
    place.y_panel = y_part * config.y_panels;
    place.y_panels =
        static_cast<int>(std::min<std::int64_t>(config.y_panels, p.y.panels() - place.y_panel));
    auto* states = reinterpret_cast<PanelState*>(own + layout.states);
    auto* bands = reinterpret_cast<std::uint64_t*>(own + layout.bands);
    PanelView views[most_task_panels];
    for (int i = 0; i < place.y_panels; ++i) {
      views[i] = load_panel(
          p.y, batch_of(p.y, place.batch), place.y_panel + i,
          own + layout.codes + static_cast<std::size_t>(i * p.groups()) * panel_group_bytes,
          own + layout.scales + static_cast<std::size_t>(i * p.groups()) * panel_group_scales,
          states[i], bands + i * p.groups());
    }
    place.y_bands = bands;
    place.y_views = views;
    place.y_states = states;
    place.x = &x;
    const std::int64_t first_part = parts == 1 ? 0 : x_part;
    const std::int64_t last_part = parts == 1 ? x_tasks() : x_part + 1;
    for (std::int64_t part = first_part; part < last_part; ++part) {
      place.x_panel = part * config.x_panels;
      place.x_panels =
          static_cast<int>(std::min<std::int64_t>(config.x_panels, p.x.panels() - place.x_panel));
      place.x_states = x.states + batch_of(p.x, place.batch) * p.x.panels() + place.x_panel;
      multiply(place, own);
    }
  }

  /// All panels of y by all of x of a place.
  void multiply(const Place& place, unsigned char* own) const {
    auto* sums = reinterpret_cast<std::int32_t*>(own + layout.sums);
    std::uint64_t counts[tier_count] = {};
    for (int first = 0; first < place.y_panels; first += config.block_panels) {
      const int y_panels = std::min(config.block_panels, place.y_panels - first);
      sum_block(place, first, y_panels, reinterpret_cast<element*>(own + layout.elements), sums);
      finish_block(place, first, y_panels, sums, counts);
    }
    if (p.counts != nullptr) {
      for (int t = 0; t < tier_count; ++t) {
        if (counts[t] != 0) Kokkos::atomic_add(&p.counts[t], counts[t]);
      }
    }
  }

  /// Sums of rows aligned to their least scale: those of panel i of y by panel j of x lie at sums +
  /// (i * x_panels + j) * panel_outputs.
  void sum_block(const Place& place, int first_panel, int y_panels, element* elements,
                 std::int32_t* sums) const {
    const std::int64_t groups = p.groups();
    const std::int64_t sums_x = panel_outputs, sums_y = place.x_panels * sums_x;
    const auto* x =
        reinterpret_cast<const element*>(place.x->elements) +
        (batch_of(p.x, place.batch) * p.x.panels() + place.x_panel) * x_panel_elements();
    if (groups == 0) {
      std::memset(sums, 0, static_cast<std::size_t>(y_panels * sums_y) * sizeof(*sums));
    }
    for (std::int64_t first = 0; first < groups; first += config.groups) {
      const int count = static_cast<int>(std::min<std::int64_t>(config.groups, groups - first));
      const std::int64_t y_stride = std::int64_t{count} * Atom::panel_group_elements;
      for (int i = 0; i < y_panels; ++i) {
        const PanelView& view = place.y_views[first_panel + i];
        Atom::unpack_y(view.codes + first * panel_group_bytes,
                       view.scales + first * panel_group_scales,
                       place.y_states[first_panel + i].base, count, elements + i * y_stride);
      }
      Atom::multiply(sums, sums_y, sums_x, elements, y_stride,
                     x + first * Atom::panel_group_elements, x_panel_elements(), y_panels,
                     place.x_panels, count, first != 0);
    }
  }

  /// The steps of y and x in C, in elements.
  std::int64_t y_step() const { return p.y_is_b ? p.epilogue.col : p.epilogue.row; }
  std::int64_t x_step() const { return p.y_is_b ? p.epilogue.row : p.epilogue.col; }
  static int rows_of(const PanelOperand& operand, std::int64_t panel) {
    return static_cast<int>(std::min<std::int64_t>(panel_rows, operand.rows - panel * panel_rows));
  }

  /// Every output of the two panels takes Tier::aligned.
  bool is_aligned(const PanelState& y, const PanelState& x) const {
    return y.aligned && x.aligned && p.minimum_tier <= Tier::aligned;
  }
  /// The same, and no sum leaves float32's normal range:
  /// a nonzero sum lies between 1 and 2^31.
  bool is_simple(const PanelState& y, const PanelState& x) const {
    return is_aligned(y, x) && y.least_exponent + x.least_exponent >= -126 &&
           y.largest_exponent + x.largest_exponent <= 127 - 31;
  }

  /// Rounds and stores sums as sum_block leaves them.
  void finish_block(const Place& place, int first, int y_panels, const std::int32_t* sums,
                    std::uint64_t (&counts)[tier_count]) const {
    const bool transposed = x_step() != 1;
    const bool straight = p.epilogue.is_plain() && (x_step() == 1 || y_step() == 1);
    // Panels along C's rows come two at a time.
    const int step_y = straight && transposed ? PanelStore::most : 1;
    const int step_x = straight && !transposed ? PanelStore::most : 1;
    bool any_bands = false;
    for (int j = 0; j < place.x_panels; j += step_x) {
      for (int i = 0; i < y_panels; i += step_y) {
        const int end_j = std::min(j + step_x, place.x_panels);
        const int end_i = std::min(i + step_y, y_panels);
        bool simple = straight;
        for (int b = j; b < end_j; ++b) {
          for (int a = i; a < end_i; ++a) {
            simple = simple && is_simple(place.y_states[first + a], place.x_states[b]);
          }
        }
        const auto sums_of = [&](int a, int b) {
          return sums + (a * place.x_panels + b) * panel_outputs;
        };
        if (simple) {
          store_straight(place, first + i, first + end_i, j, end_j, sums_of(i, j),
                         transposed ? place.x_panels * panel_outputs : panel_outputs, counts);
          continue;
        }
        for (int b = j; b < end_j; ++b) {
          for (int a = i; a < end_i; ++a) {
            if (is_aligned(place.y_states[first + a], place.x_states[b])) {
              finish(place, first + a, b, sums_of(a, b), counts);
            } else {
              any_bands = true;
            }
          }
        }
      }
    }
    if (!any_bands) return;
    // Pairs that are not aligned: rough panels of y by all of x, then the others by rough ones of
    // x.
    const bool may_align = p.minimum_tier <= Tier::aligned;
    std::int16_t rough_y[most_task_panels], smooth_y[most_task_panels];
    std::int16_t all_x[most_task_panels], rough_x[most_task_panels];
    int rough_ys = 0, smooth_ys = 0, rough_xs = 0;
    for (int i = 0; i < y_panels; ++i) {
      const auto index = static_cast<std::int16_t>(first + i);
      if (may_align && place.y_states[index].aligned) {
        smooth_y[smooth_ys++] = index;
      } else {
        rough_y[rough_ys++] = index;
      }
    }
    for (int j = 0; j < place.x_panels; ++j) {
      all_x[j] = static_cast<std::int16_t>(j);
      if (!place.x_states[j].aligned) rough_x[rough_xs++] = all_x[j];
    }
    finish_bands(place, first, rough_y, rough_ys, all_x, place.x_panels, sums, counts);
    finish_bands(place, first, smooth_y, smooth_ys, rough_x, rough_xs, sums, counts);
  }

  /// A few panels of y by a few of x, cut into bands, and what that needs.
  struct BandBlock {
    static constexpr int panels = 4;
    static constexpr int outputs = panels * panels * panel_outputs;
    /// Limb l of a sum counts 2^(32 l). Every term belongs to one pair of bands, so the limbs of an
    /// output get less than 2^31 times 2^28 in all.
    static constexpr int limbs = 3;
    static constexpr int limb_bits = 32;
    /// The largest sum of two bands whose products the limbs hold.
    static constexpr int most_bands = (limbs * limb_bits - band_width) / band_width;

    const std::int16_t* y_index;
    const std::int16_t* x_index;
    int y_panels, x_panels;
    alignas(64) element y[panels * Atom::panel_group_elements];
    alignas(64) element x[panels * Atom::panel_group_elements];
    alignas(64) std::int32_t sums[outputs];
    alignas(64) std::int64_t limb[limbs][outputs];
    PanelBase y_base[panels], x_base[panels];

    int at(int a, int b) const { return (a * x_panels + b) * panel_outputs; }
    int size() const { return y_panels * x_panels * panel_outputs; }
  };

  /// The base that leaves only a band's blocks. That of a row which ends below the band leaves none
  /// but those of scale 255, and these make every output of the row a NaN.
  static void set_base(const PanelState& state, int band, PanelBase& base) {
    for (int r = 0; r < panel_rows; ++r) {
      const int distance = band * band_width;
      const int scale = distance <= state.row[r].spread ? state.row[r].lo + distance : 255;
      std::memset(base.scale + r * group_blocks, scale, group_blocks);
    }
  }

  /// Finishes the pairs of a list of panels of y and one of x, none of them aligned.
  void finish_bands(const Place& place, int first, const std::int16_t* y_index, int y_panels,
                    const std::int16_t* x_index, int x_panels, const std::int32_t* sums,
                    std::uint64_t (&counts)[tier_count]) const {
    BandBlock block;
    for (int j = 0; j < x_panels; j += BandBlock::panels) {
      for (int i = 0; i < y_panels; i += BandBlock::panels) {
        block.y_index = y_index + i;
        block.x_index = x_index + j;
        block.y_panels = std::min(BandBlock::panels, y_panels - i);
        block.x_panels = std::min(BandBlock::panels, x_panels - j);
        finish_band_block(place, first, sums, block, counts);
      }
    }
  }

  /// An aligned pass has summed the products of the bands 0. What is left are the products of other
  /// bands, each a pass over those groups of K where both have blocks, and each 2^(4 (band + band))
  /// times as large.
  void finish_band_block(const Place& place, int first, const std::int32_t* sums, BandBlock& block,
                         std::uint64_t (&counts)[tier_count]) const {
    std::uint64_t y_bands = 0, x_bands = 0;
    for (int a = 0; a < block.y_panels; ++a) y_bands |= place.y_states[block.y_index[a]].bands;
    for (int b = 0; b < block.x_panels; ++b) x_bands |= place.x_states[block.x_index[b]].bands;
    for (int a = 0; a < block.y_panels; ++a) {
      for (int b = 0; b < block.x_panels; ++b) {
        const std::int32_t* from =
            sums + ((block.y_index[a] - first) * place.x_panels + block.x_index[b]) * panel_outputs;
        for (int k = 0; k < panel_outputs; ++k) block.limb[0][block.at(a, b) + k] = from[k];
      }
    }
    for (int l = 1; l < BandBlock::limbs; ++l) {
      std::memset(block.limb[l], 0, static_cast<std::size_t>(block.size()) * sizeof(std::int64_t));
    }
    // With very many bands every output is better off alone.
    constexpr int most_passes = 64;
    const bool by_bands = Kokkos::Experimental::popcount_builtin(y_bands) *
                              Kokkos::Experimental::popcount_builtin(x_bands) <=
                          most_passes;
    constexpr int bands = 64;
    for (int y_band = 0; by_bands && y_band < bands; ++y_band) {
      if ((y_bands >> y_band & 1) == 0) continue;
      for (int x_band = 0; x_band < bands; ++x_band) {
        const int both = y_band + x_band;
        if ((x_bands >> x_band & 1) == 0 || both == 0 || both > BandBlock::most_bands) continue;
        if (sum_bands(place, y_band, x_band, block)) {
          const int shift = both * band_width;
          Atom::add_shifted(block.limb[shift / BandBlock::limb_bits], block.sums, block.size(),
                            shift % BandBlock::limb_bits);
        }
      }
    }
    for (int a = 0; a < block.y_panels; ++a) {
      for (int b = 0; b < block.x_panels; ++b) finish_wide(place, block, a, b, by_bands, counts);
    }
  }

  /// Sums of one band by one band; false where they have no group of K in common.
  bool sum_bands(const Place& place, int y_band, int x_band, BandBlock& block) const {
    const std::int64_t groups = p.groups();
    const std::int64_t x_first = batch_of(p.x, place.batch) * p.x.panels() + place.x_panel;
    for (int a = 0; a < block.y_panels; ++a) {
      set_base(place.y_states[block.y_index[a]], y_band, block.y_base[a]);
    }
    for (int b = 0; b < block.x_panels; ++b) {
      set_base(place.x_states[block.x_index[b]], x_band, block.x_base[b]);
    }
    const auto has = [](const PanelState& state, const std::uint64_t* bands, std::int64_t g,
                        int band) { return ((state.aligned ? 1 : bands[g]) >> band & 1) != 0; };
    bool added = false;
    for (std::int64_t g = 0; g < groups; ++g) {
      bool y_has = false, x_has = false;
      for (int a = 0; a < block.y_panels; ++a) {
        const int index = block.y_index[a];
        y_has = y_has || has(place.y_states[index], place.y_bands + index * groups, g, y_band);
      }
      for (int b = 0; b < block.x_panels; ++b) {
        const int index = block.x_index[b];
        x_has = x_has ||
                has(place.x_states[index], place.x->bands + (x_first + index) * groups, g, x_band);
      }
      if (!y_has || !x_has) continue;
      for (int a = 0; a < block.y_panels; ++a) {
        const PanelView& view = place.y_views[block.y_index[a]];
        Atom::unpack_y(view.codes + g * panel_group_bytes, view.scales + g * panel_group_scales,
                       block.y_base[a], 1, block.y + a * Atom::panel_group_elements);
      }
      for (int b = 0; b < block.x_panels; ++b) {
        const PanelView view =
            view_of(p.x, *place.x, batch_of(p.x, place.batch), place.x_panel + block.x_index[b]);
        element* to = block.x + b * Atom::panel_group_elements;
        if ((g + 1) * group_blocks <= p.blocks) {
          Atom::unpack_x(view.codes + g * panel_group_bytes, view.scales + g * panel_group_scales,
                         block.x_base[b], 1, to);
        } else {
          PaddedGroup padded;
          pad_group(view, g, padded);
          Atom::unpack_x(padded.codes, padded.scales, block.x_base[b], 1, to);
        }
      }
      Atom::multiply(block.sums, block.x_panels * panel_outputs, panel_outputs, block.y,
                     Atom::panel_group_elements, block.x, Atom::panel_group_elements,
                     block.y_panels, block.x_panels, 1, added);
      added = true;
    }
    return added;
  }

  /// RN_f32(sum of limbs * 2^exponent), of output k.
  static std::uint32_t round_limbs(const BandBlock& block, int k, int exponent) {
    static_assert(BandBlock::limbs == 3 && BandBlock::limb_bits == 32);
    __extension__ using Int = __int128;
    __extension__ using UInt = unsigned __int128;
    const Int sum = Int{block.limb[0][k]} + Int{block.limb[1][k]} * (Int{1} << 32) +
                    Int{block.limb[2][k]} * (Int{1} << 64);
    const bool negative = sum < 0;
    const UInt magnitude = negative ? UInt{0} - static_cast<UInt>(sum) : static_cast<UInt>(sum);
    const auto high = static_cast<std::uint64_t>(magnitude >> 64);
    if (high == 0) {
      return round_to_f32(negative, static_cast<std::uint64_t>(magnitude), false, exponent);
    }
    const int zeros = leading_zeros(high);
    const UInt moved = magnitude << zeros;
    return round_to_f32(negative, static_cast<std::uint64_t>(moved >> 64),
                        static_cast<std::uint64_t>(moved) != 0, exponent + 64 - zeros);
  }

  /// Rounds and stores the outputs of the block's panel a of y by its panel b of x.
  void finish_wide(const Place& place, const BandBlock& block, int a, int b, bool by_bands,
                   std::uint64_t (&counts)[tier_count]) const {
    const int i = block.y_index[a], j = block.x_index[b], at = block.at(a, b);
    const PanelState& y = place.y_states[i];
    const PanelState& x = place.x_states[j];
    const std::int64_t y_row = (place.y_panel + i) * panel_rows;
    const std::int64_t x_row = (place.x_panel + j) * panel_rows;
    const int y_rows = rows_of(p.y, place.y_panel + i);
    const int x_rows = rows_of(p.x, place.x_panel + j);
    const PanelView x_view = view_of(p.x, *place.x, batch_of(p.x, place.batch), place.x_panel + j);
    std::int64_t window[panel_outputs];
    for (int k = 0; k < panel_outputs; ++k) {
      // Sums of 63 bits; others wrap and are not used.
      window[k] = static_cast<std::int64_t>(
          static_cast<std::uint64_t>(block.limb[0][at + k]) +
          (static_cast<std::uint64_t>(block.limb[1][at + k]) << BandBlock::limb_bits));
    }
    std::uint32_t products[panel_outputs];
    Atom::round(window, y.exponent, x.exponent, products);
    for (int r = 0; r < y_rows; ++r) {
      for (int c = 0; c < x_rows; ++c) {
        const Tier tier = tier_of_output(y.row[r], x.row[c]);
        const int k = r * panel_rows + c;
        const bool complete =
            by_bands &&
            y.row[r].spread / band_width + x.row[c].spread / band_width <= BandBlock::most_bands;
        std::uint32_t product = f32_nan;
        if (tier == Tier::aligned || (tier == Tier::window && by_bands)) {
          product = products[k];
        } else if (tier == Tier::wide && complete) {
          product = round_limbs(block, at + k, y.exponent[r] + x.exponent[c]);
        } else if (tier != Tier::automatic) {
          product = sum_of_one(place.y_views[i], r, y.row[r], x_view, c, x.row[c], tier);
        }
        put(place.batch, y_row + r, x_row + c, product);
        ++counts[static_cast<int>(tier)];
      }
    }
  }

  /// Panels [i, end_i) of y by [j, end_j) of x, one or two in all, by the atom.
  void store_straight(const Place& place, int i, int end_i, int j, int end_j,
                      const std::int32_t* sums, std::int64_t sums_step,
                      std::uint64_t (&counts)[tier_count]) const {
    const Epilogue& epilogue = p.epilogue;
    const std::int64_t y_panel = place.y_panel + i, x_panel = place.x_panel + j;
    PanelStore to;
    to.transposed = x_step() != 1;
    to.panels = to.transposed ? end_i - i : end_j - j;
    to.row_exponent = to.transposed ? place.x_states[j].exponent : place.y_states[i].exponent;
    to.rows = to.transposed ? rows_of(p.x, x_panel) : rows_of(p.y, y_panel);
    to.cols = 0;
    for (int q = 0; q < to.panels; ++q) {
      to.sums[q] = sums + q * sums_step;
      to.col_exponent[q] =
          to.transposed ? place.y_states[i + q].exponent : place.x_states[j + q].exponent;
      to.cols += to.transposed ? rows_of(p.y, y_panel + q) : rows_of(p.x, x_panel + q);
    }
    const int bytes = epilogue.element == Element::f32 ? 4 : 2;
    to.c = static_cast<unsigned char*>(epilogue.c) +
           (place.batch * epilogue.batch + panel_rows * (y_panel * y_step() + x_panel * x_step())) *
               bytes;
    to.element = epilogue.element;
    to.row_stride = to.transposed ? x_step() : y_step();
    Atom::store(to);
    counts[static_cast<int>(Tier::aligned)] +=
        static_cast<std::uint64_t>(to.rows) * static_cast<std::uint64_t>(to.cols);
  }

  /// Rounds the aligned sums of panel i of y by panel j of x and hands what lies in C to the
  /// epilogue.
  void finish(const Place& place, int i, int j, const std::int32_t* sums,
              std::uint64_t (&counts)[tier_count]) const {
    const PanelState& y = place.y_states[i];
    const PanelState& x = place.x_states[j];
    const std::int64_t y_row = (place.y_panel + i) * panel_rows;
    const std::int64_t x_row = (place.x_panel + j) * panel_rows;
    const int y_rows = rows_of(p.y, place.y_panel + i);
    const int x_rows = rows_of(p.x, place.x_panel + j);
    counts[static_cast<int>(Tier::aligned)] +=
        static_cast<std::uint64_t>(y_rows) * static_cast<std::uint64_t>(x_rows);
    if (is_simple(y, x)) {
      std::uint32_t products[panel_outputs];
      Atom::store(PanelStore{1,
                             {sums, nullptr},
                             false,
                             y.exponent,
                             {x.exponent, nullptr},
                             products,
                             Element::f32,
                             panel_rows,
                             panel_rows,
                             panel_rows});
      for (int r = 0; r < y_rows; ++r) {
        for (int c = 0; c < x_rows; ++c) {
          put(place.batch, y_row + r, x_row + c, products[r * panel_rows + c]);
        }
      }
      return;
    }
    for (int r = 0; r < y_rows; ++r) {
      for (int c = 0; c < x_rows; ++c) {
        put(place.batch, y_row + r, x_row + c,
            round_to_f32(std::int64_t{sums[r * panel_rows + c]}, y.exponent[r] + x.exponent[c]));
      }
    }
  }

  /// Aligned rows need no certificate: no sum of up to most_groups_in_int32 groups leaves int32.
  Tier tier_of_output(const RowState& a, const RowState& b) const {
    if (a.has_nan || b.has_nan) return Tier::automatic;
    if (p.minimum_tier <= Tier::aligned && a.spread < band_width && b.spread < band_width) {
      return Tier::aligned;
    }
    if (p.minimum_tier <= Tier::window && certified_window(a, b, p.sum_bits)) return Tier::window;
    return Tier::wide;
  }

  void put(std::int64_t batch, std::int64_t y, std::int64_t x, std::uint32_t product) const {
    if (p.y_is_b) {
      p.epilogue(batch, x, y, product);
    } else {
      p.epilogue(batch, y, x, product);
    }
  }

  /// One output of Tier::window or Tier::wide.
  std::uint32_t sum_of_one(const PanelView& y, int y_row, const RowState& a, const PanelView& x,
                           int x_row, const RowState& b, Tier tier) const {
    WideSum wide;
    std::int64_t window = 0;
    int terms = 0;
    for (std::int64_t g = 0; g < p.groups(); ++g) {
      std::int32_t products[group_blocks];
      Atom::group_products(y.codes + g * panel_group_bytes + y_row * group_bytes,
                           x.codes + g * panel_group_bytes + x_row * group_bytes, products);
      const std::int64_t left = p.blocks - g * group_blocks;
      for (int k = 0; k < group_blocks && k < left; ++k) {
        const std::int64_t at = g * panel_group_scales + k;
        const int shift_a = y.scales[at + y_row * group_blocks] - a.lo;
        const int shift_b = x.scales[at + x_row * group_blocks] - b.lo;
        if (shift_a < 0 || shift_a > a.spread || shift_b < 0 || shift_b > b.spread) {
          continue;  // a block of zeros
        }
        if (tier == Tier::window) {
          window += std::int64_t{products[k]} * (std::int64_t{1} << (shift_a + shift_b));
        } else {
          wide.add(products[k], shift_a + shift_b);
        }
      }
      if ((terms += group_blocks) == WideSum::terms_between_carries) {
        wide.carry();
        terms = 0;
      }
    }
    const int unit = unit_exponent(a.lo, b.lo);
    return tier == Tier::window ? round_to_f32(window, unit) : wide.round(unit);
  }

  /// A panel of x, after the first step.
  PanelView view_of(const PanelOperand& operand, const PreparedX& x, std::int64_t batch,
                    std::int64_t panel) const {
    if (operand.is_panels()) return panel_in_place(operand, batch, panel);
    const std::int64_t at = (batch * operand.panels() + panel) * p.groups();
    return {x.codes + at * panel_group_bytes, x.scales + at * panel_group_scales};
  }

  static PanelView panel_in_place(const PanelOperand& operand, std::int64_t batch,
                                  std::int64_t panel) {
    return {operand.matrix.codes.at(batch, panel * panel_rows, 0),
            operand.matrix.scales.at(batch, panel * panel_rows, 0)};
  }

  /// Codes, scales and state of a panel; codes and scales go to the given memory unless they lie as
  /// panels already.
  PanelView load_panel(const PanelOperand& operand, std::int64_t batch, std::int64_t panel,
                       std::uint8_t* codes, std::uint8_t* scales, PanelState& state,
                       std::uint64_t* bands) const {
    const std::int64_t first = panel * panel_rows;
    const int rows = static_cast<int>(std::min<std::int64_t>(panel_rows, operand.rows - first));
    RowSummary summaries[panel_rows] = {};
    const bool in_place = operand.is_panels();
    if (!in_place && rows < panel_rows) {
      for (std::int64_t g = 0; g < p.groups(); ++g) {
        std::memset(codes + g * panel_group_bytes + rows * group_bytes, 0,
                    static_cast<std::size_t>((panel_rows - rows) * group_bytes));
        std::memset(scales + g * panel_group_scales + rows * group_blocks, 0,
                    static_cast<std::size_t>((panel_rows - rows) * group_blocks));
      }
    }
    for (int r = 0; r < rows; ++r) {
      if (operand.quantize != nullptr) {
        summaries[r] = operand.quantize(operand.dense.at(batch, first + r, 0), p.blocks,
                                        codes + r * group_bytes, panel_group_bytes,
                                        scales + r * group_blocks, panel_group_scales, p.rule);
      } else {
        if (!in_place) copy_row(operand.matrix, batch, first + r, r, codes, scales);
        summaries[r] = *operand.matrix.summaries.at(batch, first + r);
      }
    }
    set_state(summaries, state);
    const PanelView view =
        in_place ? panel_in_place(operand, batch, panel) : PanelView{codes, scales};
    if (!state.aligned) find_bands(view, state, bands);
    return view;
  }

  void find_bands(const PanelView& view, PanelState& state, std::uint64_t* bands) const {
    state.bands = 0;
    for (std::int64_t g = 0; g < p.groups(); ++g) {
      bands[g] = 0;
      const std::uint8_t* scales = view.scales + g * panel_group_scales;
      for (int i = 0; i < panel_group_scales; ++i) {
        const RowState& row = state.row[i / group_blocks];
        const int distance = scales[i] - row.lo;
        // Others are blocks of zeros.
        if (distance < 0 || distance > row.spread) continue;
        bands[g] |= std::uint64_t{1} << (distance / band_width);
      }
      state.bands |= bands[g];
    }
  }

  /// A row of a matrix in another layout to row r of a panel.
  void copy_row(const MatrixMap& matrix, std::int64_t batch, std::int64_t row, int r,
                std::uint8_t* codes, std::uint8_t* scales) const {
    for (std::int64_t g = 0; g < p.groups(); ++g) {
      std::uint8_t* to = codes + g * panel_group_bytes + r * group_bytes;
      std::uint8_t* scale = scales + g * panel_group_scales + r * group_blocks;
      for (int b = 0; b < group_blocks; ++b) {
        const std::int64_t block = g * group_blocks + b;
        std::uint8_t bytes[block_bytes] = {};
        scale[b] = 0;
        if (block < p.blocks) {
          std::uint8_t local[block_bytes];
          std::memcpy(bytes, matrix.codes.load(batch, row, block, local), block_bytes);
          scale[b] = *matrix.scales.at(batch, row, block);
        }
        for (int j = 0; j < block_bytes; ++j) to[group_blocks * j + b] = bytes[j];
      }
    }
  }

  static void set_state(const RowSummary (&summaries)[panel_rows], PanelState& state) {
    state.aligned = true;
    state.bands = 1;
    state.least_exponent = 1 << 10;
    state.largest_exponent = -(1 << 10);
    for (int r = 0; r < panel_rows; ++r) {
      const RowSummary& s = summaries[r];
      state.row[r] = {s.n, s.lo, s.hi - s.lo, s.has_nan != 0};
      state.exponent[r] = s.n == 0 ? -1 : s.lo - 128;
      state.least_exponent = std::min(state.least_exponent, state.exponent[r]);
      state.largest_exponent = std::max(state.largest_exponent, state.exponent[r]);
      state.aligned = state.aligned && state.row[r].spread < band_width && !state.row[r].has_nan;
      const std::uint32_t base = s.lo * 0x01010101u;
      std::memcpy(state.base.scale + r * group_blocks, &base, group_blocks);
    }
  }
};

}  // namespace KokkosMX::Impl

#endif
