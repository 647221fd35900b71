// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_PANEL_KERNEL_HPP
#define KOKKOSMX_SRC_GEMM_PANEL_KERNEL_HPP

/// \file panel_kernel.hpp
/// The GEMM kernel of hosts with vector or matrix units, in two steps over any PanelAtom, both in
/// one launch: workers take panels of the first step until there are none, and wait for those that
/// others have begun.
///
/// One operand is called x (the one with fewer rows), the other y. First x is brought whole into
/// the atom's elements, panel by panel (quantized first, where it is dense). Then tasks, each some
/// panels of y by some of x: a task brings its part of y into a worker's memory (quantizes it
/// there, where it is dense: its codes are never written anywhere else), and goes over K in chunks,
/// whose elements of y stay in the caches next to the core.
///
/// Rows are aligned to their least scale, so one pass with int32 accumulators over all of K serves
/// all outputs whose row and column have a spread of at most 3. What other outputs need besides is
/// in rough_block.hpp.

#include <KokkosMX/Types.hpp>

#include "../atoms/gemm/panel_atom.hpp"
#include "../atoms/quantize/loops.hpp"
#include "../operand.hpp"
#include "epilogue.hpp"
#include "exact_sum.hpp"
#include "rough_block.hpp"

#include <Kokkos_Core.hpp>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <thread>

namespace KokkosMX::Impl {

/// Quantizes rows: a quantize atom's quantize_rows, without summaries.
using QuantizeRowsFunction = bool (*)(const BlockRows& rows);

/// An operand as the panel kernel takes it: dense where quantize is not null, else a matrix; where
/// that has no summaries, each panel's are made when it is loaded.
struct PanelOperand {
  QuantizeRowsFunction quantize;
  DenseMap dense;
  MatrixMap matrix;
  bool has_summaries;
  std::int64_t batch, rows;

  std::int64_t panels() const { return (rows + panel_rows - 1) / panel_rows; }
  /// Codes and scales lie as panels already: Tile16x128 and Tile16x4.
  bool is_panels() const {
    const ScalesMap& scales = matrix.scales;
    return quantize == nullptr && matrix.codes.byte == group_blocks &&
           scales.row_1 == group_blocks && scales.col_4 == panel_group_scales;
  }
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
  RoughConfig rough;
};

/// A worker's memory, as offsets in bytes.
struct WorkerLayout {
  std::size_t codes, scales, states, elements, sums, rough, bytes;
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
  unsigned char* elements;
  unsigned char* dots;   ///< rows as the atom's dot has them; null where x has too many
  unsigned char* rough;  ///< as RoughBlock has it, of each batch
};

/// The tasks of a worker that nobody has begun. Every worker has its own, the same ones in every
/// call, so that what they read stays in its caches; one that has none left takes those of others.
struct alignas(64) TaskRange {
  std::int64_t next, end;
};

/// The first step: panels of x that nobody has begun are those from `next` on.
struct alignas(64) Preparation {
  std::int64_t next, done;
};

/// Memory of the whole call, from the workspace.
struct PanelMemory {
  PreparedX x;  ///< the workers have one each instead, if config.own_x
  unsigned char* workers;
  TaskRange* tasks;  ///< one for each worker
  Preparation* preparation;
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

  /// So few rows of x that the atom multiplies them without unpacking y.
  static bool is_dot(const PanelProblem& p) { return p.x.rows <= Atom::most_dot_rows; }
  static int dot_rows(const PanelProblem& p) {
    return static_cast<int>(std::bit_ceil(static_cast<std::uint64_t>(p.x.rows)));
  }
  std::int64_t x_dot_elements() const { return p.groups() * dot_rows(p) * group_size; }

  /// Hands out pieces of memory for all of x: take(bytes) returns an address.
  template <class Take>
  static PreparedX take_x(const PanelProblem& p, const PanelConfig& config, const Take& take) {
    PreparedX x{};
    const auto panels = static_cast<std::size_t>(p.x.batch * p.x.panels());
    const auto groups = panels * static_cast<std::size_t>(p.groups());
    if (!p.x.is_panels()) {
      x.codes = static_cast<std::uint8_t*>(take(groups * panel_group_bytes));
      x.scales = static_cast<std::uint8_t*>(take(groups * panel_group_scales));
    }
    x.states = static_cast<PanelState*>(take(panels * sizeof(PanelState)));
    x.elements =
        static_cast<unsigned char*>(take(groups * Atom::panel_group_elements * sizeof(element)));
    if (is_dot(p)) {
      x.dots = static_cast<unsigned char*>(
          take(groups * static_cast<std::size_t>(dot_rows(p)) * group_size * sizeof(element)));
    }
    x.rough = static_cast<unsigned char*>(
        take(static_cast<std::size_t>(p.x.batch) * rough_shared(p, config).bytes));
    return x;
  }
  PreparedX x_at(unsigned char* at_memory) const {
    return take_x(p, config, [&](std::size_t bytes) -> void* {
      unsigned char* at = at_memory;
      at_memory += aligned_size(bytes);
      return at;
    });
  }
  /// A part of x in a rough block is some of the panels of a task.
  static int rough_parts(const PanelConfig& config) {
    return (config.x_panels + config.rough.x_panels - 1) / config.rough.x_panels;
  }
  static std::int64_t all_rough_parts(const PanelProblem& p, const PanelConfig& config) {
    return (p.x.panels() + config.x_panels - 1) / config.x_panels * rough_parts(config);
  }
  static RoughSharedLayout rough_shared(const PanelProblem& p, const PanelConfig& config) {
    return RoughBlock<Atom>::shared_layout(config.rough, p.groups(), all_rough_parts(p, config));
  }
  void clear_rough(const PreparedX& x) const {
    const RoughSharedLayout shared = rough_shared(p, config);
    for (std::int64_t i = 0; i < p.x.batch; ++i) {
      RoughBlock<Atom>::clear_shared(x.rough + static_cast<std::size_t>(i) * shared.bytes, shared,
                                     all_rough_parts(p, config));
    }
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
      take_x(p, config, [&](std::size_t bytes) -> void* {
        take(bytes);
        return nullptr;
      });
    }
    layout.codes = take(own_codes ? panels * groups * panel_group_bytes : 0);
    layout.scales = take(own_codes ? panels * groups * panel_group_scales : 0);
    layout.states = take(panels * sizeof(PanelState));
    const auto block = static_cast<std::size_t>(config.block_panels);
    layout.elements = take(2 * elements_of_block(config) * sizeof(element));
    layout.sums = take(block * static_cast<std::size_t>(config.x_panels) * panel_outputs *
                       sizeof(std::int32_t));
    layout.rough = take(RoughBlock<Atom>::layout_of(config.rough, p.groups()).bytes);
    layout.bytes = next + 64 * line;  // workers' memories do not begin at the same place of a page
    return layout;
  }

  /// Before the launch, by the thread that launches: a host's execution space has nothing under way
  /// by then.
  void begin() const {
    const std::int64_t count = tasks();
    for (int w = 0; w < config.workers; ++w) {
      memory.tasks[w] = {count * w / config.workers, count * (w + 1) / config.workers};
    }
    *memory.preparation = {0, 0};
    if (!config.own_x) clear_rough(memory.x);
  }

  std::int64_t y_tasks() const { return (p.y.panels() + config.y_panels - 1) / config.y_panels; }
  std::int64_t x_tasks() const { return (p.x.panels() + config.x_panels - 1) / config.x_panels; }
  /// Where y is made in the task, all of x is multiplied with it there.
  std::int64_t tasks() const { return p.batch * y_tasks() * (p.y.is_panels() ? x_tasks() : 1); }

  /// A worker prepares panels of x, and takes tasks, until there are none.
  void work(std::int64_t worker) const {
    unsigned char* own = memory.workers + static_cast<std::size_t>(worker) * layout.bytes;
    PreparedX x = memory.x;
    if (config.own_x) {
      x = x_at(own);
      clear_rough(x);
      for (std::int64_t i = 0; i < p.x.batch * p.x.panels(); ++i) prepare_x(i, x);
    } else {
      prepare_together();
    }
    RoughBlock<Atom>::clear(own + layout.rough, config.rough, p.groups());
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
    const PanelState* x_states;
    const PreparedX* x;
  };

  /// What is waited for has been begun by a thread that runs: one thread alone waits for nothing.
  void prepare_together() const {
    const std::int64_t panels = p.x.batch * p.x.panels();
    std::atomic_ref<std::int64_t> next(memory.preparation->next), done(memory.preparation->done);
    for (std::int64_t item = next.fetch_add(1); item < panels; item = next.fetch_add(1)) {
      prepare_x(item, memory.x);
      done.fetch_add(1, std::memory_order_release);
    }
    constexpr int patience = 10000;
    for (int i = 0; done.load(std::memory_order_acquire) < panels; ++i) {
      if (i > patience) std::this_thread::yield();
    }
  }

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
    const PanelView view = load_panel(p.x, batch, panel, codes, scales, state);
    const std::int64_t whole = p.blocks / group_blocks;
    unpack_x(view, state, item, 0, whole, x);
    if (whole == groups) return;
    PaddedGroup padded;
    pad_group(view, whole, padded);
    unpack_x({padded.codes, padded.scales}, state, item, whole, 1, x);
  }
  /// Groups of a panel of x, whose first one is `first`, to where elements of x belong.
  void unpack_x(const PanelView& view, const PanelState& state, std::int64_t item,
                std::int64_t first, std::int64_t count, const PreparedX& x) const {
    Atom::unpack_x(view.codes, view.scales, state.base, static_cast<int>(count),
                   reinterpret_cast<element*>(x.elements) + item * x_panel_elements() +
                       first * Atom::panel_group_elements);
    if constexpr (Atom::most_dot_rows > 0) {
      if (x.dots == nullptr) return;
      Atom::unpack_dot(view.codes, view.scales, state.base, static_cast<int>(count), dot_rows(p),
                       reinterpret_cast<element*>(x.dots) + item * x_dot_elements() +
                           first * dot_rows(p) * group_size);
    }
  }

  /// The last group of a panel where it has fewer blocks than others: whatever lies in the padding
  /// of K counts as zero, in one operand and so in every product.
  struct PaddedGroup {
    std::uint8_t codes[panel_group_bytes];
    std::uint8_t scales[panel_group_scales];
  };
  void pad_group(const PanelView& view, std::int64_t group, PaddedGroup& padded) const {
    const int tail = blocks_of(group);
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
    PanelView views[most_task_panels];
    for (int i = 0; i < place.y_panels; ++i) {
      views[i] = load_panel(
          p.y, batch_of(p.y, place.batch), place.y_panel + i,
          own + layout.codes + static_cast<std::size_t>(i * p.groups()) * panel_group_bytes,
          own + layout.scales + static_cast<std::size_t>(i * p.groups()) * panel_group_scales,
          states[i]);
    }
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
    const bool by_dots = place.x->dots != nullptr;
    std::uint64_t counts[tier_count] = {};
    Unpacking next{};
    if (!by_dots) {
      next = unpacking(place, 0, 0, reinterpret_cast<element*>(own + layout.elements));
      unpack_panels<Atom>(next);
    }
    for (int first = 0; first < place.y_panels; first += config.block_panels) {
      const int y_panels = std::min(config.block_panels, place.y_panels - first);
      if (by_dots) {
        dot_block(place, first, y_panels, sums);
      } else {
        sum_block(place, first, y_panels, own, next, sums);
      }
      finish_block(place, first, y_panels, sums, own + layout.rough, counts);
    }
    if (p.counts != nullptr) {
      for (int t = 0; t < tier_count; ++t) {
        if (counts[t] != 0) Kokkos::atomic_add(&p.counts[t], counts[t]);
      }
    }
  }

  using Unpacking = PanelUnpacking<element>;
  /// Of the panels of y that are multiplied together, in a chunk of K.
  static std::size_t elements_of_block(const PanelConfig& config) {
    return static_cast<std::size_t>(config.block_panels) * static_cast<std::size_t>(config.groups) *
           Atom::panel_group_elements;
  }
  /// The panels of y from the first one of a block on, in the chunk of K from a group on; none
  /// after the last ones.
  Unpacking unpacking(const Place& place, int first_panel, std::int64_t first_group,
                      element* to) const {
    Unpacking work{};
    const std::int64_t left = p.groups() - first_group;
    if (first_panel >= place.y_panels || left <= 0) return work;
    work.panels = std::min(config.block_panels, place.y_panels - first_panel);
    work.views = place.y_views + first_panel;
    work.states = place.y_states + first_panel;
    work.first_group = first_group;
    work.groups = static_cast<int>(std::min<std::int64_t>(config.groups, left));
    work.stride = std::int64_t{work.groups} * Atom::panel_group_elements;
    work.to = to;
    return work;
  }

  /// Sums of rows aligned to their least scale: those of panel i of y by panel j of x lie at sums +
  /// (i * x_panels + j) * panel_outputs. `next` has been unpacked: the block's first chunk; then it
  /// is that of the next block.
  void sum_block(const Place& place, int first_panel, int y_panels, unsigned char* own,
                 Unpacking& next, std::int32_t* sums) const {
    const std::int64_t groups = p.groups();
    const std::int64_t sums_x = panel_outputs, sums_y = place.x_panels * sums_x;
    auto* elements = reinterpret_cast<element*>(own + layout.elements);
    const auto* x =
        reinterpret_cast<const element*>(place.x->elements) +
        (batch_of(p.x, place.batch) * p.x.panels() + place.x_panel) * x_panel_elements();
    if (groups == 0) {
      std::memset(sums, 0, static_cast<std::size_t>(y_panels * sums_y) * sizeof(*sums));
    }
    for (std::int64_t first = 0; first < groups; first += config.groups) {
      const Unpacking now = next;
      element* other = elements + (now.to == elements ? elements_of_block(config) : 0);
      next = first + config.groups < groups
                 ? unpacking(place, first_panel, first + config.groups, other)
                 : unpacking(place, first_panel + config.block_panels, 0, other);
      Atom::multiply(sums, sums_y, sums_x, now.to, now.stride,
                     x + first * Atom::panel_group_elements, x_panel_elements(), y_panels,
                     place.x_panels, now.groups, first != 0, next);
    }
  }

  /// The same for so few rows of x that elements of y are not stored.
  void dot_block(const Place& place, int first_panel, int y_panels, std::int32_t* sums) const {
    if constexpr (Atom::most_dot_rows > 0) {
      const auto* rows = reinterpret_cast<const element*>(place.x->dots) +
                         batch_of(p.x, place.batch) * x_dot_elements();
      for (int i = 0; i < y_panels; ++i) {
        const PanelView& view = place.y_views[first_panel + i];
        Atom::dot(view.codes, view.scales, place.y_states[first_panel + i].base,
                  static_cast<int>(p.groups()), rows, dot_rows(p),
                  sums + std::int64_t{i} * place.x_panels * panel_outputs);
      }
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
                    unsigned char* rough_memory, std::uint64_t (&counts)[tier_count]) const {
    const bool transposed = x_step() != 1;
    const bool straight = p.epilogue.is_plain() && (x_step() == 1 || y_step() == 1);
    // Panels along C's rows come two at a time.
    const int step_y = straight && transposed ? PanelStore::most : 1;
    const int step_x = straight && !transposed ? PanelStore::most : 1;
    bool any_rough = false;
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
          counts[static_cast<int>(Tier::aligned)] +=
              store_straight(place, first + i, first + end_i, j, end_j, sums_of(i, j),
                             transposed ? place.x_panels * panel_outputs : panel_outputs, false);
          continue;
        }
        for (int b = j; b < end_j; ++b) {
          for (int a = i; a < end_i; ++a) {
            if (is_aligned(place.y_states[first + a], place.x_states[b])) {
              finish(place, first + a, b, sums_of(a, b), counts);
            } else {
              any_rough = true;
            }
          }
        }
      }
    }
    if (any_rough) finish_rough(place, first, y_panels, sums, rough_memory, counts);
  }

  /// The same for panels that are not aligned.
  void finish_rough(const Place& place, int first, int y_panels, const std::int32_t* sums,
                    unsigned char* memory, std::uint64_t (&counts)[tier_count]) const {
    const std::int64_t x_batch = batch_of(p.x, place.batch);
    const RoughSharedLayout shared = rough_shared(p, config);
    typename RoughBlock<Atom>::Side y, x;
    y.panels = y_panels;
    for (int a = 0; a < y_panels; ++a) {
      y.view[a] = place.y_views[first + a];
      y.state[a] = &place.y_states[first + a];
    }
    const PanelState* x_states = place.x_states - place.x_panel;
    const std::int64_t y_key = place.batch * p.y.panels() + place.y_panel + first;
    RoughBlock<Atom> block(config.rough, p.blocks, memory, y, y_key,
                           place.x->rough + static_cast<std::size_t>(x_batch) * shared.bytes,
                           shared, p.x.panels(), [&](std::int64_t panel, PanelView& view) {
                             view = view_of(p.x, *place.x, x_batch, panel);
                             return x_states + panel;
                           });
    for (int j = 0; j < place.x_panels; j += config.rough.x_panels) {
      x.panels = std::min(config.rough.x_panels, place.x_panels - j);
      for (int b = 0; b < x.panels; ++b) {
        x.view[b] = view_of(p.x, *place.x, x_batch, place.x_panel + j + b);
        x.state[b] = &place.x_states[j + b];
      }
      const auto for_rough = [&](const auto& f) {
        for (int a = 0; a < y_panels; ++a) {
          for (int b = 0; b < x.panels; ++b) {
            if (!is_aligned(*y.state[a], *x.state[b])) f(a, b);
          }
        }
      };
      bool any = false;
      for_rough([&](int, int) { any = true; });
      if (!any) continue;
      const auto* dense = reinterpret_cast<const element*>(place.x->elements) +
                          (x_batch * p.x.panels() + place.x_panel + j) * x_panel_elements();
      const std::int64_t part =
          place.x_panel / config.x_panels * rough_parts(config) + j / config.rough.x_panels;
      const bool by_limbs = block.sum(x, part, sums + j * panel_outputs,
                                      place.x_panels * panel_outputs, dense, x_panel_elements());
      // What the limbs do not hold comes last: it overwrites them.
      bool rest = !by_limbs;
      if (by_limbs) {
        for_rough([&](int a, int b) {
          rest |= finish_limbs(place, first + a, j + b, block, a, b, counts);
        });
      }
      if (rest) {
        for_rough([&](int a, int b) {
          finish_wide(place, first + a, j + b, block, a, b, by_limbs, counts);
        });
      }
    }
  }

  /// Calls f(r, c) for the outputs of panel i of y by panel j of x that lie in C.
  template <class F>
  void for_outputs(const Place& place, int i, int j, const F& f) const {
    const int y_rows = rows_of(p.y, place.y_panel + i);
    const int x_rows = rows_of(p.x, place.x_panel + j);
    for (int r = 0; r < y_rows; ++r) {
      for (int c = 0; c < x_rows; ++c) f(r, c);
    }
  }
  void put_in(const Place& place, int i, int j, int r, int c, std::uint32_t product) const {
    put(place.batch, (place.y_panel + i) * panel_rows + r, (place.x_panel + j) * panel_rows + c,
        product);
  }

  /// Counts, and stores rounded products, those of rows with a NaN as NaNs.
  void finish_products(const Place& place, int i, int j, std::uint32_t (&products)[panel_outputs],
                       std::uint64_t (&counts)[tier_count]) const {
    const PanelState& y = place.y_states[i];
    const PanelState& x = place.x_states[j];
    if (p.counts != nullptr) {
      for_outputs(place, i, j, [&](int r, int c) {
        ++counts[static_cast<int>(tier_of_output(row_of(y, r), row_of(x, c)))];
      });
    }
    for (int r = 0; (y.has_nan | x.has_nan) != 0 && r < panel_rows; ++r) {
      for (int c = 0; (y.has_nan >> r & 1) != 0 && c < panel_rows; ++c) {
        products[r * panel_rows + c] = f32_nan;
      }
      for (int c = 0; (x.has_nan >> r & 1) != 0 && c < panel_rows; ++c) {
        products[c * panel_rows + r] = f32_nan;
      }
    }
    if (!p.epilogue.is_plain() || (x_step() != 1 && y_step() != 1)) {
      for_outputs(place, i, j,
                  [&](int r, int c) { put_in(place, i, j, r, c, products[r * panel_rows + c]); });
      return;
    }
    store_straight(place, i, i + 1, j, j + 1, reinterpret_cast<const std::int32_t*>(products), 0,
                   true);
  }

  /// Rounds and stores the outputs of panel i of y by panel j of x that the block's limbs hold;
  /// true where there are others.
  bool finish_limbs(const Place& place, int i, int j, const RoughBlock<Atom>& block, int a, int b,
                    std::uint64_t (&counts)[tier_count]) const {
    const PanelState& y = place.y_states[i];
    const PanelState& x = place.x_states[j];
    std::uint32_t products[panel_outputs];
    round_limbs(block, a, b, y, x, products);
    if (RoughBlock<Atom>::limbs_hold(y.most_spread, x.most_spread)) {
      finish_products(place, i, j, products, counts);
      return false;
    }
    bool rest = false;
    for_outputs(place, i, j, [&](int r, int c) {
      if (!RoughBlock<Atom>::limbs_hold(row_of(y, r).spread, row_of(x, c).spread)) {
        rest = true;
        return;
      }
      const Tier tier = tier_of_output(row_of(y, r), row_of(x, c));
      put_in(place, i, j, r, c, tier == Tier::automatic ? f32_nan : products[r * panel_rows + c]);
      ++counts[static_cast<int>(tier)];
    });
    return rest;
  }

  /// RN_f32 of a tile's sums.
  void round_limbs(const RoughBlock<Atom>& block, int a, int b, const PanelState& y,
                   const PanelState& x, std::uint32_t (&products)[panel_outputs]) const {
    if (block.used_limbs() == 1) {
      Atom::round(block.limb_of(0, a, b), y.exponent, x.exponent, products);
      return;
    }
    alignas(64) std::int64_t from[LimbSums::levels][panel_outputs];
    alignas(64) std::int32_t level[panel_outputs];
    const int highest =
        Atom::join_limbs(LimbSums{{block.limb_of(0, a, b), block.limb_of(1, a, b),
                                   block.used_limbs() > 2 ? block.limb_of(2, a, b) : nullptr}},
                         from, level);
    for (int l = 0; l <= highest; ++l) {
      std::int32_t y_exponent[panel_rows];
      for (int r = 0; r < panel_rows; ++r) y_exponent[r] = y.exponent[r] + LimbSums::bits * l;
      std::uint32_t rounded[panel_outputs];
      Atom::round(from[l], y_exponent, x.exponent, rounded);
      for (int k = 0; k < panel_outputs; ++k) {
        products[k] = l == 0 || level[k] == l ? rounded[k] : products[k];
      }
    }
  }

  /// Rounds and stores the other outputs, or all.
  void finish_wide(const Place& place, int i, int j, RoughBlock<Atom>& block, int a, int b,
                   bool by_limbs, std::uint64_t (&counts)[tier_count]) const {
    const PanelState& y = place.y_states[i];
    const PanelState& x = place.x_states[j];
    const std::int64_t* limbs = nullptr;
    for_outputs(place, i, j, [&](int r, int c) {
      if (by_limbs && RoughBlock<Atom>::limbs_hold(row_of(y, r).spread, row_of(x, c).spread)) {
        return;
      }
      const Tier tier = tier_of_output(row_of(y, r), row_of(x, c));
      std::uint32_t product = f32_nan;
      if (tier != Tier::automatic) {
        if (limbs == nullptr) limbs = block.sum_by_blocks(a, b);
        product =
            WideSum(limbs + r * panel_rows + c, panel_outputs).round(y.exponent[r] + x.exponent[c]);
      }
      put_in(place, i, j, r, c, product);
      ++counts[static_cast<int>(tier)];
    });
  }

  /// Panels [i, end_i) of y by [j, end_j) of x, one or two in all, by the atom: sums, or numbers.
  /// Returns how many outputs these are.
  std::uint64_t store_straight(const Place& place, int i, int end_i, int j, int end_j,
                               const std::int32_t* sums, std::int64_t sums_step,
                               bool rounded) const {
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
    to.rounded = rounded;
    Atom::store(to);
    return static_cast<std::uint64_t>(to.rows) * static_cast<std::uint64_t>(to.cols);
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
                       std::uint8_t* codes, std::uint8_t* scales, PanelState& state) const {
    const std::int64_t first = panel * panel_rows;
    const int rows = static_cast<int>(std::min<std::int64_t>(panel_rows, operand.rows - first));
    const bool in_place = operand.is_panels();
    if (!in_place && rows < panel_rows) {
      for (std::int64_t g = 0; g < p.groups(); ++g) {
        std::memset(codes + g * panel_group_bytes + rows * group_bytes, 0,
                    static_cast<std::size_t>((panel_rows - rows) * group_bytes));
        std::memset(scales + g * panel_group_scales + rows * group_blocks, 0,
                    static_cast<std::size_t>((panel_rows - rows) * group_blocks));
      }
    }
    const PanelView view =
        in_place ? panel_in_place(operand, batch, panel) : PanelView{codes, scales};
    if (operand.quantize != nullptr) {
      const std::int64_t places = p.groups() * group_blocks;
      const bool regular = operand.quantize(
          {operand.dense.at(batch, first, 0), operand.dense.row, rows, p.blocks, p.rule, codes,
           group_bytes, panel_group_bytes, 0, places, scales, group_blocks, 2 * panel_group_scales,
           panel_group_scales, 1, places, nullptr, 0});
      if (regular) {
        Atom::state_of_scales(scales, static_cast<int>(p.groups()), state);
        return view;
      }
    } else if (!in_place) {
      copy_panel(operand.matrix, batch, first, rows, codes, scales);
    }
    RowSummary summaries[panel_rows] = {};
    if (operand.quantize == nullptr && operand.has_summaries) {
      for (int r = 0; r < rows; ++r) {
        summaries[r] = *operand.matrix.summaries.at(batch, first + r);
      }
    } else {
      summarize(view, rows, summaries);
    }
    Atom::state_of_summaries(summaries, state);
    return view;
  }

  /// Rows of a matrix in another layout to a panel. Every layout has the 16 rows of a panel and the
  /// 4 blocks of a group each at one stride.
  void copy_panel(const MatrixMap& matrix, std::int64_t batch, std::int64_t first, int rows,
                  std::uint8_t* codes, std::uint8_t* scales) const {
    const CodesMap& from = matrix.codes;
    for (std::int64_t g = 0; g < p.groups(); ++g) {
      const std::int64_t block = g * group_blocks;
      const int blocks = blocks_of(g);
      const std::uint8_t* code = from.at(batch, first, block);
      const std::uint8_t* scale = matrix.scales.at(batch, first, block);
      for (int r = 0; r < rows; ++r) {
        std::uint8_t bytes[group_blocks][block_bytes] = {};
        for (int b = 0; b < blocks; ++b) {
          const std::uint8_t* at = code + r * from.row + b * from.block_1;
          if (from.byte == 1) {
            std::memcpy(bytes[b], at, block_bytes);
          } else {
            for (int j = 0; j < block_bytes; ++j) bytes[b][j] = at[j * from.byte];
          }
        }
        std::uint8_t* to = codes + g * panel_group_bytes + r * group_bytes;
        for (int j = 0; j < block_bytes; ++j) {
          for (int b = 0; b < group_blocks; ++b) to[group_blocks * j + b] = bytes[b][j];
        }
        std::uint8_t* to_scale = scales + g * panel_group_scales + r * group_blocks;
        for (int b = 0; b < group_blocks; ++b) {
          to_scale[b] = b < blocks ? scale[r * matrix.scales.row_1 + b * matrix.scales.col_1]
                                   : std::uint8_t{0};
        }
      }
    }
  }
  /// The blocks of K in a group.
  int blocks_of(std::int64_t group) const {
    return static_cast<int>(std::min<std::int64_t>(group_blocks, p.blocks - group * group_blocks));
  }

  /// The summaries of a panel's rows; of n, only whether it is zero.
  void summarize(const PanelView& view, int rows, RowSummary (&summaries)[panel_rows]) const {
    for (std::int64_t g = 0; g < p.groups(); ++g) {
      const int blocks = blocks_of(g);
      for (int r = 0; r < rows; ++r) {
        // Bytes of what is not zero, for each of four blocks.
        std::uint32_t words[block_bytes], any = 0;
        std::memcpy(words, view.codes + g * panel_group_bytes + r * group_bytes, sizeof(words));
        for (const std::uint32_t word : words) any |= word;
        std::uint8_t is_set[group_blocks];
        any &= 0x77777777u;
        std::memcpy(is_set, &any, sizeof(any));
        const std::uint8_t* scale = view.scales + g * panel_group_scales + r * group_blocks;
        RowSummary& row = summaries[r];
        for (int b = 0; b < blocks; ++b) {
          if (scale[b] == 255) {
            row.has_nan = 1;
          } else if (is_set[b] != 0) {
            row.lo = row.n == 0 ? scale[b] : std::min(row.lo, scale[b]);
            row.hi = std::max(row.hi, scale[b]);
            row.n = 1;
          }
        }
      }
    }
  }
};

}  // namespace KokkosMX::Impl

#endif
