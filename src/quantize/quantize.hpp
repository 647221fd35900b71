// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_QUANTIZE_QUANTIZE_HPP
#define KOKKOSMX_SRC_QUANTIZE_QUANTIZE_HPP

/// \file quantize.hpp
/// The kernels that walk the rows of a matrix, for arguments already checked. On devices an item is
/// some rows, and a thread of the group takes a block; a host's worker hands its rows to an atom,
/// those of a tile of 16 together.

#include <KokkosMX/Types.hpp>

#include "../atom_select.hpp"
#include "../atoms/cuda.hpp"
#include "../atoms/words.hpp"
#include "../launch.hpp"
#include "../numbers.hpp"
#include "../operand.hpp"

#include <Kokkos_Core.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

namespace KokkosMX::Impl {

/// Threads of a team, on devices.
inline constexpr int row_kernel_threads = 128;

/// Shared by a group while it makes the summaries of rows.
struct SummaryScratch {
  RowSummary part[row_kernel_threads];
};

/// The threads of a device's group that share a row: `threads` of them from `first`, a power of
/// two. Those without a row take part in barriers alone.
template <class Group>
struct RowGroup {
  static constexpr bool is_serial = false;
  const Group& group;
  int first, threads;
  KOKKOS_INLINE_FUNCTION int rank() const { return group.rank() - first; }
  KOKKOS_INLINE_FUNCTION int size() const { return threads; }
  KOKKOS_INLINE_FUNCTION void barrier() const {
    if (Warp::is_there && threads <= Warp::lanes) {  // of one warp
      Warp::barrier();
    } else {
      group.barrier();
    }
  }
};

/// Merges what each thread of the group has found of a row. Called by all threads; `to` is null for
/// those without a row.
template <class Group>
KOKKOS_INLINE_FUNCTION void store_summary(const Group& group, SummaryScratch& scratch,
                                          const RowSummary& part, RowSummary* to) {
  RowSummary* parts = scratch.part + group.first;
  const int rank = group.rank();
  parts[rank] = part;
  for (int half = group.size() / 2; half > 0; half /= 2) {
    group.barrier();
    if (rank < half) merge(parts[rank], parts[rank + half]);
  }
  if (rank == 0 && to != nullptr) *to = parts[0];
  group.barrier();
}

/// A row kernel of devices: body(group, scratch, batch, row, is_row) for each row of [0, rows).
template <class RowBody>
struct RowKernel {
  RowBody body;
  std::int64_t rows, rows_per_item, items_per_batch;
  using Scratch = typename RowBody::Scratch;
  static constexpr int groups_together = RowBody::groups_together;

  template <class Group>
  KOKKOS_FUNCTION void operator()(const Group& group, Scratch& scratch, std::int64_t item) const {
    const Divided place = divided(group, item, items_per_batch);
    const std::int64_t batch = place.quotient, begin = place.remainder * rows_per_item;
    const int threads = group.size() / static_cast<int>(rows_per_item);
    const int part = group.rank() / threads;
    const std::int64_t row = begin + part;
    body(RowGroup<Group>{group, part * threads, threads}, scratch, batch, row, row < rows);
  }
};

/// The same on hosts: body.rows(batch, first, count) for some rows, which lie in one tile of 16
/// unless body.rows_are_even(). Every worker has as many as the others, the same ones in every
/// call, so that what they read and write stays in its caches.
template <class RowBody>
struct RowWorkers {
  RowBody body;
  std::int64_t batch, rows, workers;
  static constexpr std::int64_t tile = 16;

  void operator()(std::int64_t worker) const {
    // Threads should not write to the same lines of a tile; but all should have work.
    const std::int64_t unit =
        batch * rows >= 2 * tile * workers ? 2 * tile : (batch * rows >= 2 * workers ? 2 : 1);
    const std::int64_t units = (rows + unit - 1) / unit, all = batch * units;
    const std::int64_t end_unit = all * (worker + 1) / workers;
    for (std::int64_t i = all * worker / workers; i < end_unit;) {
      // Of one batch.
      const std::int64_t b = i / units, next = std::min((b + 1) * units, end_unit);
      const std::int64_t begin = (i - b * units) * unit;
      const std::int64_t end = std::min((next - b * units) * unit, rows);
      for (std::int64_t first = begin; first < end;) {
        const std::int64_t in_tile = tile - first % tile;
        const std::int64_t count =
            body.rows_are_even() ? end - first : std::min(in_tile, end - first);
        body.rows(b, first, count);
        first += count;
      }
      i = next;
    }
  }
};

/// Rows that a device's group takes at a time: as many as leave each thread a block, about.
inline std::int64_t rows_per_group(std::int64_t blocks) {
  std::int64_t rows = 1;
  while (2 * rows <= row_kernel_threads && 2 * rows * blocks <= row_kernel_threads) rows *= 2;
  return rows;
}

template <class ExecSpace, class RowBody>
void launch_rows(const std::string& label, const ExecSpace& exec, std::int64_t batch,
                 std::int64_t rows, std::int64_t blocks, const RowBody& body) {
  if constexpr (is_host_space_v<ExecSpace>) {
    if (batch * rows == 0) return;
    const std::int64_t workers = concurrency_of(exec);
    launch_workers(label, exec, workers, RowWorkers<RowBody>{body, batch, rows, workers});
  } else {
    const std::int64_t per_item = RowBody::by_eights ? row_kernel_threads / 32  // a warp each
                                                     : rows_per_group(blocks);
    const std::int64_t items = (rows + per_item - 1) / per_item;
    launch(label, exec, batch * items, threads<row_kernel_threads>,
           RowKernel<RowBody>{body, rows, per_item, items});
  }
}

/// Whether all rows lie at one stride, rather than those of a tile of 16.
inline bool rows_are_even(const MatrixMap& q) {
  return q.codes.tile_of_16_rows == 16 * q.codes.row && q.scales.row_16 == 16 * q.scales.row_1 &&
         q.scales.row_32 == 32 * q.scales.row_1;
}

/// Such rows, or those of one tile of 16, as a host's atom takes them; x and its row's bytes where
/// they are dense, too.
inline BlockRows block_rows(const MatrixMap& q, std::int64_t batch, std::int64_t first,
                            std::int64_t count, const DenseMap& x, QuantizeRule rule) {
  const CodesMap& codes = q.codes;
  const ScalesMap& scales = q.scales;
  const bool sums = q.summaries.data != nullptr;
  return {x.data == nullptr ? nullptr : x.at(batch, first, 0),
          x.row,
          count,
          q.blocks,
          rule,
          codes.at(batch, first, 0),
          codes.row,
          codes.block_4,
          codes.byte == 1 ? codes.block_1 : 0,
          codes.blocks,
          scales.at(batch, first, 0),
          scales.row_1,
          scales.col_8,
          scales.col_4,
          scales.col_1,
          scales.cols,
          sums ? q.summaries.at(batch, first) : nullptr,
          q.summaries.row};
}

/// Sums of squares of a row's blocks whose scales lie near one of them: what merge() would add one
/// by one, cheaper. Without branches, so that devices add several at once.
struct BlockTally {
  static constexpr int below = 8, most = 15, none = 1 << 16;
  int reference = none;     ///< of the sum's unit
  std::uint32_t reach = 0;  ///< hi and (in the last half) 255 - lo
  std::uint64_t n = 0;

  /// Scales from here on may be near, if none before are.
  KOKKOS_INLINE_FUNCTION void begin(int scale) {
    reference = reference == none ? scale - below : reference;
  }
  /// False, with nothing added, for a scale that is too far: at most 2^15 blocks of 2^13 at 4^15.
  /// The same for all threads that add parts of the same blocks, none of them zeros.
  KOKKOS_INLINE_FUNCTION bool add(int scale, std::uint32_t sum_of_squares) {
    const int shift = scale - reference;
    const bool is_near = static_cast<unsigned>(shift) <= static_cast<unsigned>(most);
    const std::uint32_t power = is_near ? 1u << (2 * shift & 31) : 0u;
    n += std::uint64_t{sum_of_squares} * power;
    reach = larger_halves(reach, is_near ? static_cast<std::uint32_t>(scale) * 0xFFFFu + 255u : 0u);
    return is_near;
  }
  KOKKOS_INLINE_FUNCTION RowSummary summary() const {
    RowSummary all{};
    if (n == 0) return all;
    const int lo = 255 - static_cast<int>(reach & 0xFFFFu);
    all.n = n >> (2 * (lo - reference));
    all.lo = static_cast<std::uint8_t>(lo);
    all.hi = static_cast<std::uint8_t>(reach >> 16);
    return all;
  }
};

/// Codes of so many bytes are more than caches keep.
inline constexpr std::int64_t streamed_bytes = std::int64_t{32} << 20;

/// The same for a group whose warps' quads share blocks.
inline constexpr int eights_ahead = 8;  // of a lane
template <class Atom>
struct EightsScratch : SummaryScratch {
  using Stream = typename Atom::template EightStream<eights_ahead>;
  typename Stream::Memory streams[row_kernel_threads / 32];
};

template <class Atom, class Format>
struct QuantizeRow {
  DenseMap x;
  MatrixMap q;
  QuantizeRule rule;
  /// Quads share blocks, where they can.
  static constexpr bool by_eights = std::is_same_v<Format, BF16Format> && requires {
    typename Atom::Eight;
  };
  using Scratch = typename std::conditional_t<by_eights, std::type_identity<EightsScratch<Atom>>,
                                              std::type_identity<SummaryScratch>>::type;
  static constexpr int groups_together = by_eights ? 4 : 6;
  static constexpr int bytes = block_size * static_cast<int>(sizeof(typename Format::bits));

  template <class Group>
  KOKKOS_INLINE_FUNCTION void operator()(const Group& group, Scratch& scratch, std::int64_t batch,
                                         std::int64_t row, bool is_row) const {
    if (is_row) clear_padding(group, batch, row);
    is_row = is_row && row < q.rows;
    RowSummary part{};
    bool done = false;
    if constexpr (by_eights) {
      if (is_row && Atom::template takes_eights<Format>(x.at(batch, row, 0))) {
        done = rule.rounding() == Rounding::nearest_even
                   ? by_warp<true>(group, scratch, batch, row, part)
                   : by_warp<false>(group, scratch, batch, row, part);
      }
    }
    if (!done) {
      for_each(group, is_row ? q.blocks : 0,
               [&](std::int64_t k) { merge(part, by_block(batch, row, k)); });
    }
    if (q.summaries.data != nullptr) {
      store_summary(group, scratch, part, is_row ? q.summaries.at(batch, row) : nullptr);
    }
  }

  bool rows_are_even() const { return Impl::rows_are_even(q); }
  void rows(std::int64_t batch, std::int64_t first, std::int64_t count) const {
    const bool is_padded =
        q.codes.blocks > q.blocks || q.scales.cols > q.blocks || first + count > q.rows;
    for (std::int64_t i = 0; is_padded && i < count; ++i) {
      clear_padding(SerialGroup{}, batch, first + i);
    }
    const std::int64_t left = q.rows - first;
    if (left <= 0) return;
    BlockRows all = block_rows(q, batch, first, left < count ? left : count, x, rule);
    all.stream = q.batch * q.rows * q.blocks * block_bytes >= streamed_bytes;
    if (all.summaries != nullptr) {
      Atom::template quantize_rows<Format, true>(all);
    } else {
      Atom::template quantize_rows<Format, false>(all);
    }
  }

  /// A block, by one thread. Where quads take most blocks, its code should not lie among theirs.
  KOKKOSMX_APART_ON_CUDA KOKKOS_INLINE_FUNCTION RowSummary by_block(std::int64_t batch,
                                                                    std::int64_t row,
                                                                    std::int64_t k) const {
    const BlockResult result = q.codes.store(q.codes.at(batch, row, k), [&](std::uint8_t* codes) {
      return Atom::template quantize<Format>(x.at(batch, row, k * bytes), codes, rule);
    });
    *q.scales.at(batch, row, k) = result.scale;
    return summary_of_block(result.scale, result.sum_of_squares);
  }

  /// A row by a warp, whose quads of lanes share blocks, eight numbers a lane: what the warp loads
  /// and stores lies together. False where a block is for by_block: then all of them are.
  template <bool ToEven, class Group>
  KOKKOS_INLINE_FUNCTION bool by_warp(const Group& group, Scratch& scratch, std::int64_t batch,
                                      std::int64_t row, RowSummary& part) const {
    constexpr int ahead = eights_ahead;
    constexpr int quads = 8;  // so a lane's blocks differ in the layouts' highest digits alone
    const int quad = group.rank() / 4, eighth = group.rank() % 4;
    const auto blocks = static_cast<std::int32_t>(q.blocks);
    typename Scratch::Stream stream(scratch.streams[group.first / 32], x.at(batch, row, 0),
                                    q.blocks * bytes, group.rank());
    std::uint8_t* codes = q.codes.at(batch, row, quad) + 4 * eighth * q.codes.byte;
    std::uint8_t* scales = q.scales.at(batch, row, quad);
    const std::int64_t codes_step = quads / 4 * q.codes.block_4;
    const bool by_words = q.codes.byte == 1 && reinterpret_cast<std::uintptr_t>(codes) % 4 == 0 &&
                          q.codes.block_4 % 2 == 0;
    const typename Atom::Eights atom(rule);
    BlockTally tally, far;  // far: outliers, which lie near one another
    bool all_common = true;
    for (std::int32_t first = 0; first < blocks;
         first += ahead * quads) {  // as often by every lane
      const auto is_there = [&](int i) { return first + i * quads + quad < blocks; };
      typename Atom::Eight eights[ahead];
      stream.next(eights);
      typename Atom::EightResult results[ahead];  // of blocks that are not there as of zeros
      unrolled<ahead>(
          [&](auto i) { results[i] = Atom::template quantize_eight<ToEven>(eights[i], atom); });
      if (by_words) {
        unrolled<ahead>([&](auto i) {
          if (is_there(i)) {
            *reinterpret_cast<std::uint32_t*>(codes + i * codes_step) = results[i].codes;
          }
        });
      } else {
        unrolled<ahead>([&](auto i) {
          if (!is_there(i)) return;
          for (int j = 0; j < 4; ++j) {
            codes[i * codes_step + j * q.codes.byte] =
                static_cast<std::uint8_t>(results[i].codes >> (8 * j));
          }
        });
      }
      codes += ahead * codes_step;
      if (eighth == 0) {
        unrolled<ahead>([&](auto i) {
          if (is_there(i)) {
            scales[i * q.scales.col_8] = static_cast<std::uint8_t>(results[i].scale);
          }
        });
      }
      scales += ahead * q.scales.col_8;

      if (tally.reference == BlockTally::none) {
        unrolled<ahead>([&](auto i) {
          if (results[i].scale > 0) tally.begin(results[i].scale);
        });
      }
      unsigned left = 0;
      unrolled<ahead>([&](auto i) {
        const bool is_near = tally.add(results[i].scale, results[i].sum_of_squares);
        left |= is_near || results[i].scale == 0 ? 0u : 1u << i;
      });
      if (left != 0) {
        unrolled<ahead>([&](auto i) {
          if ((left >> i & 1u) == 0) return;
          far.begin(results[i].scale);
          all_common = all_common && results[i].scale > 0 &&
                       far.add(results[i].scale, results[i].sum_of_squares);
        });
      }
    }
    if (!Atom::all_lanes(all_common)) return false;
    merge(part, tally.summary());
    merge(part, far.summary());
    return true;
  }

  /// Writes the part of the row that only a layout has.
  template <class Group>
  KOKKOS_INLINE_FUNCTION void clear_padding(const Group& group, std::int64_t batch,
                                            std::int64_t row) const {
    const std::int64_t first = row < q.rows ? q.blocks : 0;
    if (row < q.codes.rows) {
      for_each(group, q.codes.blocks - first,
               [&](std::int64_t k) { q.codes.clear(q.codes.at(batch, row, first + k)); });
    }
    if (row < q.scales.rows) {
      for_each(group, q.scales.cols - first,
               [&](std::int64_t k) { *q.scales.at(batch, row, first + k) = 0; });
    }
  }
};

template <class Atom, class Format>
struct DequantizeRow {
  MatrixMap q;
  DenseMap x;
  struct Scratch {};
  static constexpr bool by_eights = false;
  static constexpr int groups_together = 6;
  static constexpr int bytes = block_size * static_cast<int>(sizeof(typename Format::bits));

  bool rows_are_even() const { return Impl::rows_are_even(q); }
  void rows(std::int64_t batch, std::int64_t first, std::int64_t count) const {
    Atom::template dequantize_rows<Format>(block_rows(q, batch, first, count, x, rules::reference));
  }
  template <class Group>
  KOKKOS_INLINE_FUNCTION void operator()(const Group& group, Scratch&, std::int64_t batch,
                                         std::int64_t row, bool is_row) const {
    for_each(group, is_row ? q.blocks : 0, [&](std::int64_t k) {
      std::uint8_t local[block_bytes];
      Atom::template dequantize<Format>(q.codes.load(batch, row, k, local),
                                        *q.scales.at(batch, row, k), x.at(batch, row, k * bytes));
    });
  }
};

template <class Atom>
struct SummarizeRow {
  MatrixMap q;
  using Scratch = SummaryScratch;
  static constexpr bool by_eights = false;
  static constexpr int groups_together = 6;

  bool rows_are_even() const { return Impl::rows_are_even(q); }
  void rows(std::int64_t batch, std::int64_t first, std::int64_t count) const {
    Atom::summarize_rows(block_rows(q, batch, first, count, {}, rules::reference));
  }

  template <class Group>
  KOKKOS_INLINE_FUNCTION void operator()(const Group& group, Scratch& scratch, std::int64_t batch,
                                         std::int64_t row, bool is_row) const {
    RowSummary part{};
    for_each(group, is_row ? q.blocks : 0, [&](std::int64_t k) {
      std::uint8_t local[block_bytes];
      merge(part, summary_of_block(*q.scales.at(batch, row, k),
                                   Atom::sum_of_squares(q.codes.load(batch, row, k, local))));
    });
    store_summary(group, scratch, part, is_row ? q.summaries.at(batch, row) : nullptr);
  }
};

template <class ExecSpace>
void launch_quantize(const ExecSpace& exec, Element element, const DenseMap& x, const MatrixMap& q,
                     QuantizeRule rule) {
  with_atoms<ExecSpace>([&](auto atoms) {
    with_format(element, [&](auto format) {
      using Body = QuantizeRow<typename decltype(atoms)::Quantize, decltype(format)>;
      // Rows of padding are the layouts'.
      const std::int64_t rows = q.scales.rows > q.codes.rows ? q.scales.rows : q.codes.rows;
      static const std::string label = "KokkosMX::quantize";
      launch_rows(label, exec, q.batch, rows, q.blocks, Body{x, q, rule});
    });
  });
}

template <class ExecSpace>
void launch_dequantize(const ExecSpace& exec, const MatrixMap& q, Element element,
                       const DenseMap& x) {
  with_atoms<ExecSpace>([&](auto atoms) {
    with_format(element, [&](auto format) {
      using Body = DequantizeRow<typename decltype(atoms)::Quantize, decltype(format)>;
      static const std::string label = "KokkosMX::dequantize";
      launch_rows(label, exec, q.batch, q.rows, q.blocks, Body{q, x});
    });
  });
}

template <class ExecSpace>
void launch_summarize(const ExecSpace& exec, const MatrixMap& q) {
  with_atoms<ExecSpace>([&](auto atoms) {
    using Body = SummarizeRow<typename decltype(atoms)::Quantize>;
    static const std::string label = "KokkosMX::summarize";
    launch_rows(label, exec, q.batch, q.rows, q.blocks, Body{q});
  });
}

}  // namespace KokkosMX::Impl

#endif
