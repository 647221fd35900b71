// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_IMAGE_KERNEL_HPP
#define KOKKOSMX_SRC_GEMM_IMAGE_KERNEL_HPP

/// \file image_kernel.hpp
/// GEMM on devices whose matrix unit reads large tiles from shared memory. Each operand is expanded
/// once into images: its codes aligned to their row's least scale, as the unit wants to find them.
/// The atom owns the pipeline of images; the kernel owns tiling, edges, tiers and the epilogue.
///
/// Rows whose scales spread too far for that are split (row_split.hpp), where the atom has room for
/// it: their images hold the main part. Outliers that lie in few columns of K, whatever the rows,
/// are gathered: three more steps of images hold these columns alone, and tiles with outliers
/// multiply these too. Outliers anywhere are listed block by block (outlier_lists.hpp). All other
/// rows are zeros in the images: their outputs are summed one by one.

#include <KokkosMX/Types.hpp>

#include "../atoms/gemm/int8_codes.hpp"
#include "../atoms/gemm/wgmma.hpp"
#include "../atoms/quantize/loops.hpp"
#include "../launch.hpp"
#include "../operand.hpp"
#include "epilogue.hpp"
#include "exact_sum.hpp"
#include "image_operand.hpp"
#include "outlier_lists.hpp"
#include "row_split.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>

namespace KokkosMX::Impl {

/// What is left to do for an operand before its images can be made.
enum class ImageSource { matrix, matrix_without_summaries, dense };

/// What became of the columns of K in which some row of either operand has outliers: there are
/// none, they are gathered, or they are too many, and blocks are listed.
enum class Gathering : std::uint32_t { none, done, listed };
struct Outliers {
  Gathering how;
  int parts;  ///< of 32 gathered columns each: those after them are none
};

/// Of the groups that gather outliers together: they take one piece of work after the other, first
/// columns, then octets, and wait only for pieces that a running group has taken.
struct GatherState {
  std::uint32_t taken[2], done[2];
  Gathering gathering;
};

/// Makes the images of both operands. A group makes those of 8 rows: it quantizes them where they
/// are dense, finds their summaries where there are none, and expands their codes. 32 threads share
/// a step, whose blocks they keep.
template <class Atom, class QuantizeAtom>
struct MakeImages {
  struct Part {
    ImageOperand operand;
    ImageSource source;
    DenseMap dense;
    Element element;

    /// Groups of 8 rows, those that only fill the last tile included.
    KOKKOS_INLINE_FUNCTION std::int64_t octets() const {
      return operand.tiles * operand.tile_rows / 8;
    }
    KOKKOS_INLINE_FUNCTION std::int64_t items() const { return operand.matrix.batch * octets(); }
  };
  Part parts[2];
  QuantizeRule rule;
  GatherState* gathering;  ///< null where the atom has no room for gathered columns

  static constexpr int threads = 256, groups_together = 2;
  static constexpr int rows = 8;
  static constexpr int step_threads = rows * Atom::step_blocks;
  static constexpr int row_threads = threads / rows;
  static constexpr bool splits = Atom::gathered_steps > 0;
  struct Splitting {
    std::int32_t elements_of[rows][256];  ///< see choose_split
    std::int32_t outliers[rows];          ///< that the row has
    RowSplit split[rows];
  };
  struct Scratch {
    union {
      RowSummary summary[rows][row_threads];
      Splitting splitting;
    };
    int any_is_wide, any_has_outliers;
  };

  std::int64_t items() const { return parts[0].items() + parts[1].items(); }

  template <class Group>
  KOKKOS_FUNCTION void operator()(const Group& group, Scratch& scratch, std::int64_t item) const {
    const bool first = item < parts[0].items();
    const Part& part = parts[first ? 0 : 1];
    const MatrixMap& q = part.operand.matrix;
    if constexpr (splits) {
      if (item == 0 && group.rank() == 0) *gathering = {};
    }
    if (!first) item -= parts[0].items();
    Place place;
    const auto octets = static_cast<std::uint32_t>(part.octets());
    place.batch = q.batch == 1 ? 0 : static_cast<std::uint32_t>(item) / octets;
    place.octet = item - place.batch * octets;
    const int slot = group.rank() % step_threads;
    place.row_in_octet = slot / Atom::step_blocks;
    place.row = place.octet * rows + place.row_in_octet;
    place.block_in_step = slot % Atom::step_blocks;
    place.first_step = group.rank() / step_threads;
    place.is_row = place.row < q.rows;

    RowSummary summary{};
    if (part.source == ImageSource::matrix) {
      if (place.is_row) summary = *q.summaries.at(place.batch, place.row);
    } else {
      if (part.source == ImageSource::matrix_without_summaries) {
        over_blocks(part, place, [&](std::int64_t block) {
          std::uint8_t local[block_bytes];
          merge(summary, summary_of_block(*q.scales.at(place.batch, place.row, block),
                                          QuantizeAtom::sum_of_squares(
                                              q.codes.load(place.batch, place.row, block, local))));
        });
      } else if (part.element == Element::bf16) {
        quantize<BF16Format>(part, place, summary);
      } else if (part.element == Element::f16) {
        quantize<F16Format>(part, place, summary);
      } else {
        quantize<F32Format>(part, place, summary);
      }
      RowSummary* of_row = scratch.summary[place.row_in_octet];
      const int rank = place.first_step * Atom::step_blocks + place.block_in_step;
      of_row[rank] = summary;
      for (int half = row_threads / 2; half > 0; half /= 2) {
        group.barrier();
        if (rank < half) merge(of_row[rank], of_row[rank + half]);
      }
      group.barrier();
      summary = of_row[0];
      if (rank == 0 && place.is_row) *q.summaries.at(place.batch, place.row) = summary;
    }
    expand(part, place, split(group, scratch, part, place, summary));
  }

 private:
  struct Place {
    std::int64_t batch, octet, row;
    int row_in_octet, block_in_step, first_step;
    bool is_row;
    KOKKOS_INLINE_FUNCTION bool leads_row() const { return first_step == 0 && block_in_step == 0; }
  };

  /// f(block) for each of the thread's blocks of its row.
  template <class F>
  KOKKOS_INLINE_FUNCTION static void over_blocks(const Part& part, const Place& place, const F& f) {
    const std::int64_t blocks = place.is_row ? part.operand.matrix.blocks : 0;
    for (std::int64_t block = place.first_step * Atom::step_blocks + place.block_in_step;
         block < blocks; block += threads / rows) {
      f(block);
    }
  }

  /// More of them are not for gathering, nor worth a list; and sums with them fit 32 bits.
  KOKKOS_INLINE_FUNCTION static std::int32_t most_outliers(std::int64_t blocks) {
    constexpr std::int32_t most = 896;
    static_assert(most * std::uint64_t{96u} * (12u << RowSplit::most_shift) < 1u << 31);
    const std::int64_t eighth = blocks * (block_size / 8);
    return eighth < Atom::step_bytes ? Atom::step_bytes
           : eighth < most           ? static_cast<std::int32_t>(eighth)
                                     : most;
  }

  template <class Format>
  KOKKOS_INLINE_FUNCTION void quantize(const Part& part, const Place& place,
                                       RowSummary& summary) const {
    const MatrixMap& q = part.operand.matrix;
    constexpr int bytes = block_size * static_cast<int>(sizeof(typename Format::bits));
    over_blocks(part, place, [&](std::int64_t block) {
      const BlockResult result =
          q.codes.store(q.codes.at(place.batch, place.row, block), [&](std::uint8_t* codes) {
            return QuantizeAtom::template quantize<Format>(
                part.dense.at(place.batch, place.row, block * bytes), codes, rule);
          });
      *q.scales.at(place.batch, place.row, block) = result.scale;
      merge(summary, summary_of_block(result.scale, result.sum_of_squares));
    });
  }

  /// Whether any row of the octet is: a warp has threads of all of them.
  template <class Group>
  KOKKOS_INLINE_FUNCTION static bool any_row([[maybe_unused]] const Group& group,
                                             [[maybe_unused]] Scratch& scratch, bool is) {
#ifdef __CUDA_ARCH__
    static_assert(step_threads == 32);
    return __any_sync(~0u, is) != 0;
#else
    if (group.rank() == 0) scratch.any_is_wide = 0;
    group.barrier();
    if (is) Kokkos::atomic_store(&scratch.any_is_wide, 1);
    group.barrier();
    return scratch.any_is_wide != 0;
#endif
  }

  /// How the thread's row is split; tells the others who need it.
  template <class Group>
  KOKKOS_INLINE_FUNCTION RowSplit split(const Group& group, Scratch& scratch, const Part& part,
                                        const Place& place, const RowSummary& summary) const {
    const int spread = summary.hi - summary.lo;
    const bool is_narrow = summary.has_nan == 0 && spread <= Atom::max_shift;
    RowSplit result{summary.lo, is_narrow ? std::int16_t{summary.lo} : RowSplit::is_rest};
    if constexpr (splits) {
      const std::int64_t octet =
          (part.operand.matrix.batch == 1 ? 0 : place.batch) * part.octets() + place.octet;
      const bool is_wide =
          place.is_row && !is_narrow && summary.has_nan == 0 && spread <= RowSplit::most_spread;
      bool has_outliers = false;
      if (any_row(group, scratch, is_wide)) {
        result = split_wide(group, scratch, part, place, octet, is_wide, summary.lo, summary.hi,
                            result.out);
        has_outliers = scratch.any_has_outliers != 0;
      }
      if (place.leads_row()) part.operand.splits[octet * rows + place.row_in_octet] = result;
      if (group.rank() == 0) {
        part.operand.has_outliers[octet] = static_cast<std::uint8_t>(has_outliers);
      }
    }
    return result;
  }
  /// The same for octets with rows that are wide. Not a part of what most octets run.
  template <class Group>
  __attribute__((noinline)) KOKKOS_FUNCTION static RowSplit split_wide(
      const Group& group, Scratch& scratch, const Part& part, const Place place, std::int64_t octet,
      bool is_wide, int lo, int hi, std::int16_t out) {
    const ImageOperand& operand = part.operand;
    const MatrixMap& q = operand.matrix;
    Splitting& splitting = scratch.splitting;
    const int row = place.row_in_octet;
    group.barrier();
    if (group.rank() == 0) scratch.any_has_outliers = 0;
    for_each(group, rows * 256,
             [&](std::int64_t i) { splitting.elements_of[i / 256][i % 256] = 0; });
    for_each(group, rows, [&](std::int64_t i) { splitting.outliers[i] = 0; });
    group.barrier();
    const auto block_at = [&](std::int64_t block) {
      return load_block(q.codes, q.codes.at(place.batch, place.row, block));
    };
    const auto scale_at = [&](std::int64_t block) {
      return int{*q.scales.at(place.batch, place.row, block)};
    };
    if (is_wide) {
      over_blocks(part, place, [&](std::int64_t block) {
        const std::uint32_t found = codes_from(block_at(block), 1);
        if (found != 0) {
          add_shared(&splitting.elements_of[row][scale_at(block)], bits_in(found));
        }
      });
    }
    group.barrier();
    if (place.leads_row()) {
      splitting.split[row] = is_wide ? choose_split(splitting.elements_of[row], lo, hi)
                                     : RowSplit{static_cast<std::int16_t>(lo), out};
    }
    group.barrier();
    RowSplit result = splitting.split[row];
    const auto outliers_at = [&](std::int64_t block) {
      return codes_from(block_at(block), least_outlier(scale_at(block) - result.base));
    };
    if (is_wide && result.has_outliers()) {
      over_blocks(part, place, [&](std::int64_t block) {
        const std::uint32_t found = outliers_at(block);
        if (found != 0) add_shared(&splitting.outliers[row], bits_in(found));
      });
    }
    group.barrier();
    if (splitting.outliers[row] > most_outliers(q.blocks)) result.out = RowSplit::is_rest;
    const bool has_outliers = is_wide && result.has_outliers();
    if (has_outliers) scratch.any_has_outliers = 1;
    group.barrier();
    if (scratch.any_has_outliers != 0) {
      std::uint32_t* columns = operand.columns + octet * q.blocks;
      for_each(group, q.blocks, [&](std::int64_t block) { columns[block] = 0; });
      group.barrier();
      if (has_outliers) {
        over_blocks(part, place, [&](std::int64_t block) {
          const std::uint32_t found = outliers_at(block);
          if (found != 0) Kokkos::atomic_or(&columns[block], found);
        });
      }
    }
    return result;
  }

  KOKKOS_INLINE_FUNCTION void expand(const Part& part, const Place& place,
                                     const RowSplit& split) const {
    const ImageOperand& operand = part.operand;
    const MatrixMap& q = operand.matrix;
    const std::int64_t first_row = place.octet * rows;
    const std::int64_t tile = first_row / operand.tile_rows;
    const int in_tile = static_cast<int>(first_row % operand.tile_rows) + place.row_in_octet;
    std::uint8_t* image = operand.tile(place.batch, tile, Atom::step_bytes);
    const bool fits = place.is_row && split.out != RowSplit::is_rest;
    for (std::int64_t step = place.first_step; step < operand.steps;
         step += threads / step_threads) {
      const std::int64_t block = step * Atom::step_blocks + place.block_in_step;
      ImageChunk chunks[2] = {};
      if (fits && block < q.blocks) {
        // Blocks of zeros may have any.
        const Magnitudes main =
            main_magnitudes(*q.scales.at(place.batch, place.row, block) - split.base);
        if (main.low != 0) {
          const BlockCodes codes = load_block(q.codes, q.codes.at(place.batch, place.row, block));
          for (int i = 0; i < 8; ++i) {
            chunks[i / 4].word[i % 4] =
                expand_codes(codes.word[i / 2] >> (16 * (i % 2)), main.low, main.high);
          }
        }
      }
      for (int h = 0; h < 2; ++h) {
        const int chunk = 2 * place.block_in_step + h;
        *reinterpret_cast<ImageChunk*>(image + step * operand.tile_rows * Atom::step_bytes +
                                       Atom::offset(in_tile, chunk)) = chunks[h];
      }
    }
  }
};

/// Makes the images of columns with outliers: of `a` the high digits of its outliers in its own
/// columns, their low digits, and the main part in b's columns; of b the main part in a's columns,
/// the high and the low digits in its own. A step holds so many columns as it has bytes; those that
/// both operands have are the first common_columns of either's, in the same order. Where there are
/// more, says of each block of K which rows have outliers in it.
template <class Atom>
struct GatherOutliers {
  ImageOperand operands[2];
  std::uint32_t* columns[2];  ///< [block]: bit i says that column i of it has outliers in some row
  GatherState* state;

  static constexpr int threads = Atom::threads, rows = 8;
  static constexpr int together = 4;  ///< octets of a piece of work
  static constexpr int common = Atom::common_columns, most = Atom::step_bytes;
  struct Scratch {
    std::uint64_t found[threads];
    std::int32_t columns[2][most];  ///< -1: none
    std::uint32_t item;
  };

  KOKKOS_INLINE_FUNCTION static std::int64_t octets(const ImageOperand& operand) {
    return operand.matrix.batch * operand.tiles * operand.tile_rows / rows;
  }
  /// Whether any row of either operand has outliers, as far as the thread is to look.
  template <class Group>
  KOKKOS_INLINE_FUNCTION bool any(const Group& group) const {
    std::uint64_t found = 0;
    for (const ImageOperand& operand : operands) {
      const auto* eight = reinterpret_cast<const std::uint64_t*>(operand.has_outliers);
      for_each(group, octets(operand) / 8, [&](std::int64_t i) { found |= eight[i]; });
    }
    return found != 0;
  }

  /// By groups that share the work, if any row has outliers.
  template <class Group>
  __attribute__((noinline)) KOKKOS_FUNCTION Outliers operator()(const Group& group,
                                                                Scratch& scratch) const {
    constexpr int words = 16;  // of a piece of work
    const std::int64_t blocks = operands[0].matrix.blocks;
    share(group, scratch, 0, (2 * blocks + words - 1) / words,
          [&](std::int64_t item) { merge_columns(group, scratch, words, item); });
    const Outliers to_gather = list_columns(group, scratch);
    if (group.rank() == 0) state->gathering = to_gather.how;
    share(group, scratch, 1, (octets(operands[0]) + octets(operands[1])) / together,
          [&](std::int64_t item) { gather(group, scratch, to_gather.how, item * together); });
    return to_gather;
  }

 private:
  /// f(item) for those of the phase's items that other groups do not take; waits for these.
  template <class Group, class F>
  KOKKOS_INLINE_FUNCTION void share(const Group& group, Scratch& scratch, int phase,
                                    std::int64_t items, const F& f) const {
    const auto all = static_cast<std::uint32_t>(items);
    std::uint32_t finished = 0;
    for (;;) {
      if (group.rank() == 0) scratch.item = Kokkos::atomic_fetch_add(&state->taken[phase], 1u);
      group.barrier();
      const std::uint32_t item = scratch.item;
      group.barrier();
      if (item >= all) break;
      f(item);
      ++finished;
    }
    Atom::publish();
    group.barrier();
    if (group.rank() == 0) {
      Kokkos::atomic_add(&state->done[phase], finished);
      while (Kokkos::atomic_fetch_add(&state->done[phase], 0u) < all) {
      }
    }
    group.barrier();
    Atom::publish();
  }

  /// What any octet has in some of the words of both operands.
  template <class Group>
  KOKKOS_INLINE_FUNCTION void merge_columns(const Group& group, Scratch& scratch, int words,
                                            std::int64_t item) const {
    const std::int64_t blocks = operands[0].matrix.blocks;
    auto* merged = reinterpret_cast<std::uint32_t*>(scratch.columns);
    if (group.rank() < words) merged[group.rank()] = 0;
    group.barrier();
    const int word = group.rank() % words;
    const std::int64_t at = item * words + word;
    if (at < 2 * blocks) {
      const int side = at < blocks ? 0 : 1;
      const std::int64_t block = at - side * blocks;
      const ImageOperand& operand = operands[side];
      std::uint32_t found = 0;
      for (std::int64_t octet = group.rank() / words; octet < octets(operand);
           octet += threads / words) {
        if (operand.has_outliers[octet] != 0) found |= operand.columns[octet * blocks + block];
      }
      if (found != 0) Kokkos::atomic_or(&merged[word], found);
    }
    group.barrier();
    if (group.rank() < words && at < 2 * blocks) {
      columns[at < blocks ? 0 : 1][at < blocks ? at : at - blocks] = merged[word];
    }
    group.barrier();
  }

  template <class Group>
  KOKKOS_INLINE_FUNCTION void gather(const Group& group, Scratch& scratch, Gathering to_gather,
                                     std::int64_t item) const {
    const int side = item < octets(operands[0]) ? 0 : 1;
    const ImageOperand& operand = operands[side];
    const std::int64_t first = side == 0 ? item : item - octets(operands[0]);
    const Divided tile = divided(group, first, operand.tile_rows / rows);
    const Divided batch = divided(group, tile.quotient, operand.tiles);
    if (to_gather == Gathering::listed) {
      for (int i = 0; i < together; ++i) list_rows(group, operand, batch, tile.remainder + i);
      return;
    }
    std::uint8_t* image = operand.tile(batch.quotient, batch.remainder, Atom::step_bytes) +
                          operand.steps * operand.tile_rows * Atom::step_bytes;
    const RowSplit* splits = operand.splits_of(batch.quotient, batch.remainder);
    constexpr int words = Atom::step_bytes / 4;
    for_each(group, together * rows * words * 2, [&](std::int64_t i) {
      const int n = static_cast<int>(i);
      const int in_tile = static_cast<int>(tile.remainder) * rows + n % (together * rows);
      const int word = n / (together * rows) % words;
      const bool is_main = n >= together * rows * words;
      std::uint32_t high = 0, low = 0;
      const std::int64_t row = batch.remainder * operand.tile_rows + in_tile;
      const RowSplit split = splits[in_tile];
      if (row < operand.matrix.rows && split.out != RowSplit::is_rest) {
        const std::int32_t* of_word = scratch.columns[is_main ? 1 - side : side] + 4 * word;
        expand(operand.matrix, batch.quotient, row, of_word, split, is_main, high, low);
      }
      // Of a the steps are the high and the low digits and the main part, of b this comes first.
      const auto put = [&](int step, std::uint32_t value) {
        *reinterpret_cast<std::uint32_t*>(image + step * operand.tile_rows * Atom::step_bytes +
                                          Atom::offset(in_tile, word / 4) + 4 * (word % 4)) = value;
      };
      if (is_main) {
        put(side == 0 ? 2 : 0, low);
      } else {
        put(side, high);
        put(side + 1, low);
      }
    });
  }

  /// Four gathered elements of a row: the digits of outliers, or (in low) the main part.
  KOKKOS_INLINE_FUNCTION static void expand(const MatrixMap& q, std::int64_t batch,
                                            std::int64_t row, const std::int32_t* columns,
                                            const RowSplit& split, bool is_main,
                                            std::uint32_t& high, std::uint32_t& low) {
    int codes[4], scales[4];
    KOKKOSMX_UNROLL
    for (int j = 0; j < 4; ++j) {  // all loads at once
      const int column = columns[j] < 0 ? 0 : columns[j];
      const int block = column / block_size, in_block = column % block_size;
      codes[j] =
          q.codes.at(batch, row, block)[in_block / 2 * q.codes.byte] >> (4 * (in_block % 2)) & 15;
      scales[j] = *q.scales.at(batch, row, block);
    }
    KOKKOSMX_UNROLL
    for (int j = 0; j < 4; ++j) {
      if (columns[j] < 0) continue;
      if (is_main) {
        low |= (static_cast<std::uint32_t>(main_part(codes[j], scales[j], split)) & 0xFFu)
               << (8 * j);
      } else {
        const int value = outlier_part(codes[j], scales[j], split);
        high |= (static_cast<std::uint32_t>(high_digit(value)) & 0xFFu) << (8 * j);
        low |= (static_cast<std::uint32_t>(value) & 0xFFu) << (8 * j);
      }
    }
  }

  /// The octet's byte in rows_listed of every block.
  template <class Group>
  KOKKOS_INLINE_FUNCTION static void list_rows(const Group& group, const ImageOperand& operand,
                                               const Divided& batch, std::int64_t in_tile) {
    const MatrixMap& q = operand.matrix;
    const RowSplit* splits = operand.splits_of(batch.quotient, batch.remainder) + in_tile * rows;
    for_each(group, q.blocks, [&](std::int64_t block) {
      unsigned found = 0;
      for (int i = 0; i < rows; ++i) {
        if (!splits[i].has_outliers()) continue;
        const std::int64_t row = batch.remainder * operand.tile_rows + in_tile * rows + i;
        const int least = least_outlier(*q.scales.at(batch.quotient, row, block) - splits[i].base);
        if (least > 7) continue;
        const BlockCodes codes = load_block(q.codes, q.codes.at(batch.quotient, row, block));
        if (codes_from(codes, least) != 0) found |= 1u << i;
      }
      reinterpret_cast<std::uint8_t*>(operand.rows_with_outliers(
          batch.quotient, batch.remainder, block))[in_tile] = static_cast<std::uint8_t>(found);
    });
  }

  /// Both lists of columns, if there are any and not too many.
  template <class Group>
  KOKKOS_INLINE_FUNCTION Outliers list_columns(const Group& group, Scratch& scratch) const {
    // How many columns are common, the first's alone, the second's alone: 21 bits each.
    const std::int64_t blocks = operands[0].matrix.blocks;
    const std::int64_t each = (blocks + threads - 1) / threads;
    const std::int64_t first = group.rank() * each;
    const std::int64_t end = first + each < blocks ? first + each : blocks;
    std::uint64_t mine = 0;
    for (std::int64_t block = first; block < end; ++block) {
      const std::uint32_t a = columns[0][block], b = columns[1][block];
      mine += static_cast<std::uint64_t>(bits_in(a & b)) |
              static_cast<std::uint64_t>(bits_in(a & ~b)) << 21 |
              static_cast<std::uint64_t>(bits_in(b & ~a)) << 42;
    }
    std::uint64_t upto = mine;
    scratch.found[group.rank()] = upto;
    for (int distance = 1; distance < threads; distance *= 2) {
      group.barrier();
      if (group.rank() >= distance) upto += scratch.found[group.rank() - distance];
      group.barrier();
      scratch.found[group.rank()] = upto;
    }
    group.barrier();
    const std::uint64_t all = scratch.found[threads - 1];
    const auto number = [](std::uint64_t counts, int which) {
      return static_cast<int>(counts >> (21 * which) & 0x1FFFFF);
    };
    if (all == 0) return {Gathering::none, 0};
    const bool fit = number(all, 0) <= common && number(all, 1) <= most - common &&
                     number(all, 2) <= most - common;
    if (!fit) return {Gathering::listed, 0};
    for_each(group, 2 * most, [&](std::int64_t i) { scratch.columns[i / most][i % most] = -1; });
    group.barrier();
    const std::uint64_t before = upto - mine;
    int at_common = number(before, 0);
    int at[2] = {common + number(before, 1), common + number(before, 2)};
    for (std::int64_t block = first; block < end; ++block) {
      const std::uint32_t a = columns[0][block], b = columns[1][block];
      for (std::uint32_t left = a | b; left != 0; left &= left - 1) {
        const int bit = first_bit(left);
        const auto column = static_cast<std::int32_t>(block * block_size + bit);
        if ((a & b) >> bit & 1u) {
          scratch.columns[0][at_common] = scratch.columns[1][at_common] = column;
          ++at_common;
        } else if (a >> bit & 1u) {
          scratch.columns[0][at[0]++] = column;
        } else {
          scratch.columns[1][at[1]++] = column;
        }
      }
    }
    group.barrier();
    const int alone = number(all, 1) > number(all, 2) ? number(all, 1) : number(all, 2);
    return {Gathering::done, 1 + (alone + 31) / 32};
  }
};

/// The product of images: of C, or (is_transposed) of its transpose.
template <class Atom>
struct ImageGemm {
  ImageOperand a, b;
  GatherOutliers<Atom> gather_outliers;  ///< of a and b; none where the atom has no room for these
  bool is_transposed;                    ///< a's rows are C's columns; small tiles only
  Epilogue epilogue;
  std::int64_t batch, m, n, blocks;  ///< m and n rows of a and b
  std::int64_t groups;               ///< that share the tiles: an item is a group
  int sum_bits;
  Tier minimum_tier;
  std::uint64_t* counts;  ///< null where nobody counts
  /// C is the product in bf16; a and b being its rows and columns, pairs of these lie in one word.
  bool is_plain_bf16;

  static constexpr int threads = Atom::threads;
  static constexpr int most_transposed_n = 64;

  /// What is known of a tile's rows and columns; those outside the matrices count as zeros.
  struct States {
    std::int16_t a_lo[Atom::tile_m], a_spread[Atom::tile_m];
    std::int16_t b_lo[Atom::tile_n], b_spread[Atom::tile_n];
    RowSplit a_split[Atom::tile_m], b_split[Atom::tile_n];
  };
  static constexpr std::int16_t not_a_number = -1;  // as a spread

  struct Scratch {
    typename Atom::Pipeline pipeline;
    States states[2];
    /// Some output of the tile is not Tier::aligned, or its product may leave float32's normal
    /// numbers before it is rounded.
    int is_special[3];
    int has_outliers[3];  ///< gathered or listed
    int has_rest[3];      ///< rows or columns that the images do not hold, or with NaN
    int any_has_outliers;
    std::int32_t own[8][Atom::multiplying];
  };

  /// A tile of C.
  struct Place {
    std::int64_t batch, tile_row, tile_col, row, col;
    int rows, cols;
  };

  KOKKOS_INLINE_FUNCTION std::int64_t tiles() const { return batch * a.tiles * b.tiles; }

  template <class Group>
  KOKKOS_FUNCTION void operator()(const Group& group, Scratch& scratch, std::int64_t item) const {
    const int thread = group.rank() - (threads - Atom::multiplying);
    if (group.rank() < 3) {
      scratch.is_special[group.rank()] = 0;
      scratch.has_outliers[group.rank()] = 0;
      scratch.has_rest[group.rank()] = 0;
    }
    Outliers outliers{Gathering::none, 0};
    if constexpr (Atom::gathered_steps > 0) outliers = gather(group, scratch);
    multiply(scratch, thread, item, outliers);
  }

 private:
  /// What follows a tile's steps.
  KOKKOS_INLINE_FUNCTION StepsAfter steps_after(const Place& place, Gathering how) const {
    if (how == Gathering::none || !(a.tile_has_outliers(place.batch, place.tile_row) ||
                                    b.tile_has_outliers(place.batch, place.tile_col))) {
      return StepsAfter::none;
    }
    return how == Gathering::done ? StepsAfter::gathered : StepsAfter::room;
  }

  /// What became of the outliers; none if nothing is done about them.
  template <class Group>
  KOKKOS_INLINE_FUNCTION Outliers gather(const Group& group, Scratch& scratch) const {
    using Gather = GatherOutliers<Atom>;
    static_assert(sizeof(typename Gather::Scratch) <= sizeof(typename Atom::Pipeline));
    if (minimum_tier > Tier::aligned) return {Gathering::none, 0};
    const bool mine = gather_outliers.any(group);
    if (group.rank() == 0) scratch.any_has_outliers = 0;
    group.barrier();
    if (mine) scratch.any_has_outliers = 1;
    group.barrier();
    if (scratch.any_has_outliers == 0) return {Gathering::none, 0};
    Outliers found =
        gather_outliers(group, *reinterpret_cast<typename Gather::Scratch*>(&scratch.pipeline));
    if (found.how == Gathering::listed && blocks > OutlierLists<Atom>::most_blocks) {
      found.how = Gathering::none;
    }
    return found;
  }

  KOKKOS_INLINE_FUNCTION void multiply(Scratch& scratch, int thread_of_group, std::int64_t item,
                                       Outliers outliers) const {
    constexpr bool may_have_outliers = Atom::gathered_steps > 0;
    int turn = 0;
    Atom::run(
        scratch.pipeline, item, tiles(), groups, a.steps,
        [&](std::int64_t tile) {
          const Place place = place_of(tile);
          return typename Atom::Images{a.tile(place.batch, place.tile_row, Atom::step_bytes),
                                       b.tile(place.batch, place.tile_col, Atom::step_bytes)};
        },
        [&](std::int64_t tile) { return steps_after(place_of(tile), outliers.how); },
        [&](std::int64_t tile) {
          load_states(scratch, place_of(tile), thread_of_group, turn, outliers.how);
        },
        [&](std::int64_t tile, std::int32_t(&d)[Atom::values], const auto& gathered) {
          // Registers of the product are not for what is quickly found again.
          const int thread = opaque(thread_of_group);
          const Place place = place_of(tile);
          States& states = scratch.states[turn & 1];
          const bool special = scratch.is_special[turn % 3] != 0;
          const bool has_outliers = may_have_outliers && scratch.has_outliers[turn % 3] != 0;
          const bool has_rest = scratch.has_rest[turn % 3] != 0;
          // The slot of the tile before: nobody reads it any more, nobody sets it yet.
          if (thread == 0) {
            scratch.is_special[(turn + 2) % 3] = 0;
            if (may_have_outliers) scratch.has_outliers[(turn + 2) % 3] = 0;
            scratch.has_rest[(turn + 2) % 3] = 0;
          }
          const bool is_whole = place.rows == Atom::tile_m && place.cols == Atom::tile_n;
          if (has_outliers) {
            if constexpr (may_have_outliers) {
              const bool is_plain = is_plain_bf16 && is_whole && !has_rest;
              store_with_outliers(scratch, place, states, thread, is_plain, outliers, Kept(d),
                                  gathered.wait());
            }
          } else if (!special && is_plain_bf16 && is_whole) {
            store_plain<true>(place, states, thread, d);
          } else if (!special && is_plain_bf16 && Atom::values <= 32) {
            if constexpr (Atom::values <= 32) store_plain<false>(place, states, thread, d);
          } else {
            store_any(scratch, place, states, thread, d);
          }
          if (has_rest || has_outliers) store_rest(place, states, thread);
          if (counts != nullptr) count(place, states, thread);
          ++turn;
        });
  }

  /// Columns of tiles within bands of rows of tiles, so that what is read lies in the second cache.
  KOKKOS_INLINE_FUNCTION Place place_of(std::int64_t tile) const {  // fewer than 2^31
    constexpr std::uint32_t band = 16;
    // In 32 bits: divisions of 64 take hundreds of cycles.
    const auto tiles_a = static_cast<std::uint32_t>(a.tiles);
    const auto tiles_b = static_cast<std::uint32_t>(b.tiles);
    auto at = static_cast<std::uint32_t>(tile);
    Place place;
    place.batch = batch == 1 ? 0 : at / (tiles_a * tiles_b);
    at -= static_cast<std::uint32_t>(place.batch) * tiles_a * tiles_b;
    const std::uint32_t first = at / (band * tiles_b) * band;
    const std::uint32_t rows = tiles_a - first < band ? tiles_a - first : band;
    const std::uint32_t in_band = at - first * tiles_b;
    place.tile_col = in_band / rows;
    place.tile_row = first + in_band - static_cast<std::uint32_t>(place.tile_col) * rows;
    place.row = place.tile_row * Atom::tile_m;
    place.col = place.tile_col * Atom::tile_n;
    place.rows = static_cast<int>(m - place.row < Atom::tile_m ? m - place.row : Atom::tile_m);
    place.cols = static_cast<int>(n - place.col < Atom::tile_n ? n - place.col : Atom::tile_n);
    return place;
  }

  /// Products of units from here are normal float32, whatever the sum, and so are their parts.
  static constexpr int least_lo = 68, largest_lo = 176;

  KOKKOS_INLINE_FUNCTION void load_state(Scratch& scratch, const MatrixMap& matrix,
                                         [[maybe_unused]] const RowSplit* split_of_row,
                                         std::int64_t batch_of_tile, std::int64_t row,
                                         std::int16_t& lo, std::int16_t& spread, RowSplit& split,
                                         int turn, Gathering how) const {
    lo = 127;
    spread = 0;
    split = {127, 127};
    if (row >= matrix.rows) return;
    const RowSummary summary = *matrix.summaries.at(batch_of_tile, row);
    const bool zero = summary.n == 0;
    if (!zero) lo = summary.lo;
    spread = static_cast<std::int16_t>(summary.has_nan != 0 ? not_a_number
                                       : zero               ? 0
                                                            : summary.hi - summary.lo);
    const bool is_narrow = spread >= 0 && spread <= Atom::max_shift;
    split = {lo, lo};
    if (minimum_tier > Tier::aligned || !is_narrow) split.out = RowSplit::is_rest;
    if constexpr (Atom::gathered_steps > 0) {
      if (!is_narrow && how != Gathering::none && split_of_row->has_outliers()) {
        split = *split_of_row;
        scratch.has_outliers[turn % 3] = 1;
      }
    }
    if (!fits(split)) scratch.has_rest[turn % 3] = 1;
    if (minimum_tier > Tier::aligned || !is_narrow || lo < least_lo || lo > largest_lo) {
      scratch.is_special[turn % 3] = 1;
    }
  }
  KOKKOS_INLINE_FUNCTION void load_states(Scratch& scratch, const Place& place, int thread,
                                          int turn, Gathering how) const {
    States& states = scratch.states[turn & 1];
    for (int i = thread; i < Atom::tile_m; i += Atom::multiplying) {
      load_state(scratch, a.matrix, a.splits_of(place.batch, place.tile_row) + i, place.batch,
                 place.row + i, states.a_lo[i], states.a_spread[i], states.a_split[i], turn, how);
    }
    for (int i = thread; i < Atom::tile_n; i += Atom::multiplying) {
      load_state(scratch, b.matrix, b.splits_of(place.batch, place.tile_col) + i, place.batch,
                 place.col + i, states.b_lo[i], states.b_spread[i], states.b_split[i], turn, how);
    }
  }

  KOKKOS_INLINE_FUNCTION Tier tier_at(const States& states, int row, int col) const {
    const int a_spread = states.a_spread[row], b_spread = states.b_spread[col];
    if (a_spread < 0 || b_spread < 0) return Tier::automatic;
    if (minimum_tier <= Tier::aligned && a_spread <= Atom::max_shift &&
        b_spread <= Atom::max_shift) {
      return Tier::aligned;  // K is at most Atom::most_blocks
    }
    return minimum_tier <= Tier::window && a_spread + b_spread + sum_bits <= 63 ? Tier::window
                                                                                : Tier::wide;
  }

  /// RN_f32(sum * 2^unit) for every sum of the tile: 2^unit in two factors.
  KOKKOS_INLINE_FUNCTION static float power_of_two(int lo) {
    return Kokkos::bit_cast<float>(static_cast<std::uint32_t>(lo - 1) << 23);  // 2^(lo - 128)
  }
  template <bool IsWhole>
  KOKKOS_INLINE_FUNCTION void store_plain(const Place& place, const States& states, int thread,
                                          const std::int32_t (&d)[Atom::values]) const {
    auto* c = static_cast<std::uint16_t*>(epilogue.c) + place.batch * epilogue.batch;
    KOKKOSMX_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int row = Atom::row_of(thread, 2 * h);
      if (!IsWhole && row >= place.rows) continue;
      const float unit_a = power_of_two(states.a_lo[row]);
      KOKKOSMX_UNROLL
      for (int j = 0; j < Atom::values / 4; ++j) {
        const int v = 4 * j + 2 * h;
        const int col = Atom::col_of(thread, v);
        if (!IsWhole && col >= place.cols) continue;
        // The conversion is the one rounding: powers of two change no bit of a normal number.
        const float low = static_cast<float>(d[v]) * unit_a * power_of_two(states.b_lo[col]);
        const float high =
            static_cast<float>(d[v + 1]) * unit_a * power_of_two(states.b_lo[col + 1]);
        const std::uint32_t pair = bf16_pair(low, high);
        if (Atom::tile_n > most_transposed_n || !is_transposed) {  // the columns are even in number
          *reinterpret_cast<std::uint32_t*>(c + (place.row + row) * epilogue.row + place.col +
                                            col) = pair;
        } else {
          std::uint16_t* to = c + (place.col + col) * epilogue.row + place.row + row;
          to[0] = static_cast<std::uint16_t>(pair);
          if (IsWhole || col + 1 < place.cols)
            to[epilogue.row] = static_cast<std::uint16_t>(pair >> 16);
        }
      }
    }
  }

  KOKKOS_INLINE_FUNCTION void store(const Place& place, int row, int col,
                                    std::uint32_t product) const {
    const std::int64_t i = place.row + row, j = place.col + col;
    epilogue(place.batch, is_transposed ? j : i, is_transposed ? i : j, product);
  }

  /// Outputs of Tier::aligned and those with a NaN, by any epilogue.
  KOKKOS_INLINE_FUNCTION void store_any(Scratch& scratch, const Place& place, const States& states,
                                        int thread, std::int32_t (&d)[Atom::values]) const {
    // The accumulators move up, eight at a time: registers have no index at run time.
    for (int first = 0; first < Atom::values; first += 8) {
      for (int v = 0; v < 8; ++v) scratch.own[v][thread] = d[v];
      for (int v = 0; v + 8 < Atom::values; ++v) d[v] = d[v + 8];
      KOKKOSMX_NO_UNROLL
      for (int v = 0; v < 8; ++v) {
        const int row = Atom::row_of(thread, first + v), col = Atom::col_of(thread, first + v);
        if (row >= place.rows || col >= place.cols) continue;
        const Tier tier = tier_at(states, row, col);
        if (tier != Tier::aligned && tier != Tier::automatic) continue;
        const std::uint32_t product =
            tier == Tier::aligned ? round_to_f32(static_cast<std::int64_t>(scratch.own[v][thread]),
                                                 unit_exponent(states.a_lo[row], states.b_lo[col]))
                                  : f32_nan;
        store(place, row, col, product);
      }
    }
  }

  /// Accumulators in memory: what they were is no burden to other tiles' registers.
  struct Kept {
    std::int32_t d[Atom::values];
    KOKKOS_INLINE_FUNCTION explicit Kept(const std::int32_t (&from)[Atom::values]) {
      for (int v = 0; v < Atom::values; ++v) d[v] = from[v];
    }
  };
  /// All outputs of a tile with outliers but those that store_rest sums.
  template <class StepsAfterTile>
  __attribute__((noinline)) KOKKOS_FUNCTION void store_with_outliers(
      Scratch& scratch_of_group, const Place& place_of_tile, States& states_of_tile, int thread,
      bool is_plain, const Outliers outliers, const Kept& kept,
      const StepsAfterTile& steps_after_tile) const {
    const Place place = place_of_tile;
    Scratch& scratch = *in_shared(&scratch_of_group);
    States& states = *in_shared(&states_of_tile);
    const StepsAfterTile gathered = steps_after_tile;
    const bool are_gathered = outliers.how == Gathering::done;
    using Lists = OutlierLists<Atom>;
    Lists lists(a, b, place.batch, place.tile_row, place.tile_col, thread,
                gathered.template room<typename Lists::Room>());
    const bool are_listed = !are_gathered && lists.make();
    if (!are_gathered && !are_listed) {
      leave_to_rest(states, thread);
      is_plain = false;
      Atom::synchronize();
    }
    const int most_bits = sum_bits;
    const Plain plain{is_plain
                          ? static_cast<std::uint16_t*>(epilogue.c) + place.batch * epilogue.batch +
                                place.row * epilogue.row + place.col
                          : nullptr,
                      epilogue.row};
    KOKKOSMX_NO_UNROLL
    for (int first = 0; first < Atom::values; first += 8) {
      SplitSums sums[8] = {};
      std::int32_t main[8];  // before instructions that nothing passes
      KOKKOSMX_UNROLL
      for (int v = 0; v < 8; ++v) main[v] = kept.d[first + v];
      const int col = Atom::col_of(0, first);
      if (are_gathered) {
        typename Atom::OutlierSums found;
        gathered.multiply(first / 8, outliers.parts, found);
        KOKKOSMX_UNROLL
        for (int v = 0; v < 8; ++v) {
          sums[v] = {0,
                     found.outliers_main[v],
                     found.main_outliers[v],
                     found.outliers_high[v],
                     found.outliers_low[v],
                     RowSplit::digit_bits};
        }
      } else if (are_listed) {
        if (col % Lists::chunk_columns == 0) lists.add_up(col / Lists::chunk_columns);
        KOKKOSMX_UNROLL
        for (int v = 0; v < 8; ++v) {
          sums[v] = lists.sums(Atom::row_of(thread, v), Atom::col_of(thread, first + v));
        }
      }
      KOKKOSMX_UNROLL
      for (int v = 0; v < 8; ++v) sums[v].main = main[v];
      store_eight(scratch, place, states, thread, first, most_bits, plain, sums);
    }
    gathered.release();
  }
  /// Outputs of rows and columns with outliers become single ones.
  KOKKOS_INLINE_FUNCTION static void leave_to_rest(States& states, int thread) {
    for (int i = thread; i < Atom::tile_m; i += Atom::multiplying) {
      if (states.a_split[i].has_outliers()) states.a_split[i].out = RowSplit::is_rest;
    }
    for (int i = thread; i < Atom::tile_n; i += Atom::multiplying) {
      if (states.b_split[i].has_outliers()) states.b_split[i].out = RowSplit::is_rest;
    }
  }
  /// Where a tile of plain bf16 lies; nowhere if it is none.
  struct Plain {
    std::uint16_t* c;
    std::int64_t row;
  };
  /// Outputs first to first + 7 of each thread.
  KOKKOS_FORCEINLINE_FUNCTION void store_eight(Scratch& scratch, const Place& place,
                                               const States& states, int thread, int first,
                                               int most_bits, const Plain& plain,
                                               const SplitSums (&sums)[8]) const {
    std::uint32_t products[8];
    bool all_fit_double = true;
    KOKKOSMX_UNROLL
    for (int v = 0; v < 8; ++v) {
      all_fit_double = all_fit_double &&
                       split_sum_fits_double(states.a_spread[Atom::row_of(thread, v)] +
                                                 states.b_spread[Atom::col_of(thread, first + v)],
                                             most_bits);
    }
    if (all_fit_double) {
      KOKKOSMX_UNROLL
      for (int v = 0; v < 8; ++v) {
        products[v] = round_split_sum_in_double(sums[v], row_state(states, Atom::row_of(thread, v)),
                                                col_state(states, Atom::col_of(thread, first + v)));
      }
    } else {
      unsigned open = 0;
      KOKKOSMX_UNROLL
      for (int v = 0; v < 8; ++v) {
        const bool is_known = round_split_sum_by_bounds(
            sums[v], row_state(states, Atom::row_of(thread, v)),
            col_state(states, Atom::col_of(thread, first + v)), products[v]);
        open |= is_known ? 0u : 1u << v;
      }
      KOKKOSMX_NO_UNROLL
      for (; open != 0; open &= open - 1) {
        const int i = first_bit(open);
        SplitSums found{};
        KOKKOSMX_UNROLL
        for (int v = 0; v < 8; ++v) {  // registers have no index at run time
          if (v == i) found = sums[v];
        }
        const std::uint32_t product =
            round_split_sum(found, row_state(states, Atom::row_of(thread, i)),
                            col_state(states, Atom::col_of(thread, first + i)));
        KOKKOSMX_UNROLL
        for (int v = 0; v < 8; ++v) products[v] = v == i ? product : products[v];
      }
    }
    if (plain.c != nullptr) {
      KOKKOSMX_UNROLL
      for (int v = 0; v < 8; v += 2) {
        *reinterpret_cast<std::uint32_t*>(plain.c + Atom::row_of(thread, v) * plain.row +
                                          Atom::col_of(thread, first + v)) =
            bf16_pair(Kokkos::bit_cast<float>(products[v]),
                      Kokkos::bit_cast<float>(products[v + 1]));
      }
      return;
    }
    for (int v = 0; v < 8; ++v) {
      scratch.own[v][thread] = static_cast<std::int32_t>(products[v]);
    }
    KOKKOSMX_NO_UNROLL
    for (int v = 0; v < 8; ++v) {
      const int row = Atom::row_of(thread, v), col = Atom::col_of(thread, first + v);
      if (row >= place.rows || col >= place.cols) continue;
      const bool is_nan = states.a_spread[row] < 0 || states.b_spread[col] < 0;
      if (!is_nan && !(fits(states.a_split[row]) && fits(states.b_split[col]))) continue;
      store(place, row, col, is_nan ? f32_nan : static_cast<std::uint32_t>(scratch.own[v][thread]));
    }
  }
  KOKKOS_INLINE_FUNCTION static SplitState row_state(const States& states, int row) {
    return {states.a_lo[row], states.a_spread[row], states.a_split[row].base,
            states.a_split[row].out};
  }
  KOKKOS_INLINE_FUNCTION static SplitState col_state(const States& states, int col) {
    return {states.b_lo[col], states.b_spread[col], states.b_split[col].base,
            states.b_split[col].out};
  }

  /// The images hold the row, or its main part and its outliers.
  KOKKOS_INLINE_FUNCTION static bool fits(const RowSplit& split) {
    return split.out != RowSplit::is_rest;
  }
  /// The other outputs, one thread each: all of a row that does not fit, then what is left of each
  /// column that does not.
  __attribute__((noinline)) KOKKOS_FUNCTION void store_rest(const Place& place,
                                                            const States& states,
                                                            int thread) const {
    for (int row = 0; row < place.rows; ++row) {
      if (fits(states.a_split[row])) continue;
      for (int col = thread; col < place.cols; col += Atom::multiplying) {
        store_sum(place, states, row, col);
      }
    }
    for (int col = 0; col < place.cols; ++col) {
      if (fits(states.b_split[col])) continue;
      for (int row = thread; row < place.rows; row += Atom::multiplying) {
        if (fits(states.a_split[row])) store_sum(place, states, row, col);
      }
    }
  }
  KOKKOS_INLINE_FUNCTION void store_sum(const Place& place, const States& states, int row,
                                        int col) const {
    const Tier tier = tier_at(states, row, col);
    if (tier == Tier::automatic || tier == Tier::aligned) return;
    const int unit = unit_exponent(states.a_lo[row], states.b_lo[col]);
    std::uint32_t product;
    if (tier == Tier::window) {
      std::int64_t sum = 0;
      over_blocks(place, states, row, col,
                  [&](std::int64_t term, int shift) { sum += term << shift; });
      product = round_to_f32(sum, unit);
    } else {
      WideSum sum;
      int terms = 0;
      over_blocks(place, states, row, col, [&](std::int64_t term, int shift) {
        sum.add(static_cast<std::int32_t>(term), shift);
        if (++terms == WideSum::terms_between_carries) {
          sum.carry();
          terms = 0;
        }
      });
      product = sum.round(unit);
    }
    store(place, row, col, product);
  }
  /// f(dot product, shift) for each pair of blocks that are not zeros.
  template <class F>
  KOKKOS_INLINE_FUNCTION void over_blocks(const Place& place, const States& states, int row,
                                          int col, const F& f) const {
    const MatrixMap& qa = a.matrix;
    const MatrixMap& qb = b.matrix;
    const std::uint8_t* a_codes = qa.codes.at(place.batch, place.row + row, 0);
    const std::uint8_t* b_codes = qb.codes.at(place.batch, place.col + col, 0);
    const std::uint8_t* a_scales = qa.scales.at(place.batch, place.row + row, 0);
    const std::uint8_t* b_scales = qb.scales.at(place.batch, place.col + col, 0);
    for (std::int64_t k = 0; k < blocks; ++k) {
      const int shift_a = a_scales[qa.scales.col_offset(k)] - states.a_lo[row];
      const int shift_b = b_scales[qb.scales.col_offset(k)] - states.b_lo[col];
      // Outside 0..spread only for blocks of zeros.
      if (shift_a < 0 || shift_a > states.a_spread[row] || shift_b < 0 ||
          shift_b > states.b_spread[col]) {
        continue;
      }
      f(std::int64_t{dot_blocks(load_block(qa.codes, a_codes + qa.codes.block_offset(k)),
                                load_block(qb.codes, b_codes + qb.codes.block_offset(k)))},
        shift_a + shift_b);
    }
  }

  KOKKOS_INLINE_FUNCTION void count(const Place& place, const States& states, int thread) const {
    std::uint64_t found[tier_count] = {};
    for (int i = thread; i < place.rows * place.cols; i += Atom::multiplying) {
      const Tier tier = tier_at(states, i / place.cols, i % place.cols);
      for (int t = 0; t < tier_count; ++t) found[t] += static_cast<int>(tier) == t ? 1 : 0;
    }
    for (int t = 0; t < tier_count; ++t) {
      if (found[t] != 0) Kokkos::atomic_add(&counts[t], found[t]);
    }
  }
};

}  // namespace KokkosMX::Impl

#endif
