// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_SLICE_SHARED_HPP
#define KOKKOSMX_SRC_GEMM_SLICE_SHARED_HPP

/// \file slice_shared.hpp
/// The slice kernel where x has a tile of 64 rows, or two of 128: both operands are in shared
/// memory.
///
/// Some warpgroups of a block make y's elements, as images in shared memory. One more copies x and
/// has the matrix unit read both operands from there: all of K is one sum, and groups are made
/// before x is there and while others are multiplied. Where x has two tiles, blocks that have the
/// same rows of y, and a tile of x each, are a pair: each makes the groups of one half of K and
/// copies them to the other one's memory, too. The rows of y have a scale that all who make them
/// agree upon, from what they see first. What does not fit it is left out, and added in absolute
/// units; where x is not plain, or a base of y is not common, a block does all of its work again as
/// SliceGemm does it.

#include "slice_kernel.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace KokkosMX::Impl {

#ifdef KOKKOS_ENABLE_CUDA

template <int ColumnTiles, SliceForm Form>
struct SliceShared : SliceGemm<ColumnTiles, Form, false> {
  using Base = SliceGemm<ColumnTiles, Form, false>;
  using Base::group_blocks_k, Base::group_bytes_x, Base::is_dense, Base::p, Base::together,
      Base::x_tile, Base::y_tile;
  using typename Base::Atom;
  using typename Base::Place;
  using typename Base::Raw;
  using typename Base::Rows;
  using typename Base::Scales;
  using typename Base::Scratch;

  using Unit = WgmmaInt8Atom<1, x_tile>;
  /// Blocks that share y.
  static constexpr int cluster_y = ColumnTiles == 16 ? 2 : 1;
  static constexpr bool is_pair = cluster_y == 2;
  /// Warpgroups that make y. One more copies x and multiplies.
  static constexpr int makers = 3, maker_threads = 128 * makers;
  /// Groups of K that a maker has in registers, and under way to shared memory. Blocks of a pair
  /// make no others.
  static constexpr int ahead_groups = is_dense && !is_pair ? 2 : 0;
  static constexpr int held = ahead_groups > 0 ? 1 : 2;
  /// Groups that a block makes, and that it multiplies: by number its own ones come first, then, of
  /// a pair, the other's.
  static constexpr int most_own = is_pair ? makers * held : 16, most_groups = cluster_y * most_own;
  using typename Base::Aligner;
  static_assert(16 * most_groups <= Aligner::most_threads * Aligner::each);
  static constexpr int most_threads = maker_threads + 128;
  /// Of a thread that has done its work, and of the others then: all that the block has, whose
  /// threads begin with 128 each (what their number allows, which ptxas gives kernels that do
  /// this).
  static constexpr int kept_registers = 24, rare_registers = 160;
  static_assert(128 * (kept_registers + makers * rare_registers) <= 65536);
  /// A block of the kernel before needs some, too.
  static constexpr int most_shared_bytes = 220 * 1024;

  /// In front of what is in shared memory there is Scratch, without its sums.
  static constexpr int header_bytes = 4096;
  static_assert(offsetof(Scratch, sums) <= header_bytes);
  static constexpr int group_bytes_y = y_tile * Int8Images::step_bytes;
  /// Last, behind all that Base has: what tells of y's groups, and what the other block tells.
  struct Tail {
    std::uint64_t x_full[most_groups], y_full[most_groups], y_empty[most_groups];
    std::uint64_t base_told, left_told;
    std::int32_t base[y_tile];
    std::int32_t is_left[maker_threads / 32];  ///< some of a warp's part of y does not fit
    alignas(16) float unit_x[x_tile];
  };
  static constexpr int ahead_bytes = ahead_groups * Base::ahead_bytes * (maker_threads / 32);
  static constexpr int free_bytes =
      most_shared_bytes - header_bytes - static_cast<int>(sizeof(Tail)) - ahead_bytes;
  /// Groups that there is memory for: all of y's where blocks share it.
  static constexpr int y_stages = is_pair ? most_groups : is_dense ? 6 : 10;
  static constexpr int x_stages =
      std::min((free_bytes - y_stages * group_bytes_y) / group_bytes_x, most_groups);
  static_assert(x_stages > most_own || !is_pair);  // or who would release what a pair waits for?
  /// Groups that are multiplied after one look at what is there. Measured on an H200.
  static constexpr int at_once = is_dense ? 1 : 2;
  static_assert(most_own % at_once == 0 && y_stages >= 2 * at_once && x_stages >= at_once + 2);
  /// Or makers of different groups would wait for turns of the same stage.
  static_assert(y_stages % makers == 0 || most_groups <= 2 * y_stages);
  static constexpr int x_at = header_bytes, y_at = x_at + x_stages * group_bytes_x;
  static constexpr int ahead_at = y_at + y_stages * group_bytes_y;
  static constexpr int tail_at = ahead_at + ahead_bytes;
  static_assert(ahead_at % 128 == 0);  // as RowsThrough needs it
  static_assert(sizeof(Scratch) + makers * group_bytes_x + x_tile * sizeof(typename Base::Rest) +
                    maker_threads / 32 * Base::ahead_bytes <=
                tail_at);
  /// What the copy engine writes for Base lies where nothing but it has written.
  static_assert(sizeof(Scratch) + makers * group_bytes_x <= y_at);
  /// The outputs in bf16, row after row of x, lie in the place of x.
  using Outputs = OutputsByRow<y_tile>;
  static_assert(x_at + x_tile * Outputs::pitch_bytes <= sizeof(Scratch));
  KOKKOS_INLINE_FUNCTION int threads() const { return most_threads; }
  int shared_bytes() const { return tail_at + static_cast<int>(sizeof(Tail)); }

  KOKKOS_FUNCTION void operator()([[maybe_unused]] const DeviceGroup& group,
                                  [[maybe_unused]] unsigned char* memory,
                                  [[maybe_unused]] const GridItem& item) const {
    KOKKOS_IF_ON_DEVICE((run(group.rank(), memory, item);))
  }

 private:
  using Sums = std::int32_t[Unit::values];
  /// Barriers by number: of those that multiply, and of those that make y.
  static constexpr int multiplying = 1, making = 2;

  /// A block's memory, and which of two it is.
  struct Memory {
    unsigned char* all;
    Scratch& scratch;
    Tail& tail;
    int rank;
    int count;  ///< groups that the block makes
  };
  __device__ Memory memory_of(unsigned char* memory, const GridItem& item) const {
    return {memory, *reinterpret_cast<Scratch*>(memory), *reinterpret_cast<Tail*>(memory + tail_at),
            is_pair ? item.y & 1 : 0, p.elements.groups / cluster_y};
  }
  /// Whether there is a group of that number.
  __device__ static bool is_there(const Memory& m, int group) {
    return (is_pair && group >= most_own ? group - most_own : group) < m.count;
  }
  /// Where it is in K.
  __device__ static int place_in_k(const Memory& m, int group) {
    if constexpr (!is_pair) return group;
    return group < most_own ? m.rank * m.count + group : (m.rank ^ 1) * m.count + group - most_own;
  }
  __device__ static std::uint8_t* image_y(const Memory& m, int stage) {
    return m.all + y_at + stage * group_bytes_y;
  }
  __device__ static std::uint8_t* image_x(const Memory& m, int stage) {
    return m.all + x_at + stage * group_bytes_x;
  }

  /// By one warp that has not begun to load anything, or this would wait for that.
  __device__ void make_barriers(const Memory& m, int lane) const {
    if (lane == 0) {
      // All there can be: known addresses are quickest.
#pragma unroll
      for (int i = 0; i < most_groups; ++i) {
        CudaUnit::barrier_init(&m.tail.x_full[i], 1);
        CudaUnit::barrier_init(&m.tail.y_full[i], i < most_own ? together : 1);
        if constexpr (!is_pair) CudaUnit::barrier_init(&m.tail.y_empty[i], together);
      }
      if constexpr (is_pair) {
        CudaUnit::barrier_init(&m.tail.base_told, 1);
        CudaUnit::barrier_init(&m.tail.left_told, 1);
      }
      CudaUnit::barriers_made();
    }
    if constexpr (is_pair) {
      CudaUnit::warp_barrier();
      // What comes from the other block.
      if (lane < m.count) CudaUnit::barrier_expect(&m.tail.y_full[most_own + lane], group_bytes_y);
      if (lane == 0) {
        CudaUnit::barrier_expect(&m.tail.base_told, sizeof(m.tail.base));
        CudaUnit::barrier_expect(&m.tail.left_told, sizeof(m.tail.is_left));
      }
    }
  }

  /// Begins to copy a group of x, which begins there.
  __device__ void copy_x(const std::uint8_t* x, const Memory& m, int group) const {
    std::uint64_t* full = &m.tail.x_full[group % x_stages];
    CudaUnit::barrier_expect(full, group_bytes_x);
    CudaUnit::bulk_copy(image_x(m, group % x_stages), x + place_in_k(m, group) * group_bytes_x,
                        group_bytes_x, full);
  }

  /// A warp's elements of a group, into its image.
  __device__ static void store_parts(const Place& at, std::uint8_t* image,
                                     const typename Atom::Part (&parts)[group_blocks_k][2]) {
    const int place = PartsToImage::named(at.below, at.lane);
#pragma unroll
    for (int second = 0; second < 2; ++second) {
#pragma unroll
      for (int i = 0; i < group_blocks_k; i += 2) {
        std::uint32_t words[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) words[w] = PartsToImage::stored(parts, i, second, w);
        CudaUnit::store_matrices(
            image + PartsToImage::of_step(place, i) + PartsToImage::behind(second), words);
      }
    }
  }

  /// All of K, by a warpgroup: rows of y, columns of x. The warps that make y leave it few turns:
  /// what can be is known when this is compiled.
  __device__ void multiply_all(const Place& at, const std::uint8_t* x, const Memory& m,
                               bool is_first, Sums& sums) const {
    const std::uint64_t memory = Unit::describe(m.all);
    const auto begin_step = [&](int group) {
      Unit::begin_step(sums, Unit::described_after(memory, y_at + group % y_stages * group_bytes_y),
                       Unit::described_after(memory, x_at + group % x_stages * group_bytes_x));
    };
    const auto wait_for_y = [&](int group) {
      CudaUnit::barrier_wait(&m.tail.y_full[group % y_stages], group / y_stages % 2);
    };
    const auto wait_for_x = [&](int group) {
      CudaUnit::barrier_wait(&m.tail.x_full[group % x_stages], group / x_stages % 2);
    };
    // The group is multiplied.
    const auto release = [&](int group) {
      if (!is_there(m, group)) return;
      if (group + y_stages < most_groups && at.lane == 0) {
        CudaUnit::barrier_arrive(&m.tail.y_empty[group % y_stages]);
      }
      const int next = group + x_stages;
      if (next < most_groups && is_there(m, next)) {
        CudaUnit::named_barrier(multiplying, 128);  // all four warps have read that stage
        if (is_first) copy_x(x, m, next);
      }
    };
#pragma unroll
    for (int group = 0; group < most_groups; group += at_once) {
      const bool is_one = is_there(m, group), are_two = at_once == 2 && is_there(m, group + 1);
      if (is_one) {
        wait_for_y(group);
        if (are_two) wait_for_y(group + 1);
        // Here, not where y is made: the fence would wait for what is loaded there.
        CudaUnit::before_shared_bulk_copies();
        wait_for_x(group);
        begin_step(group);
        if (are_two) {
          wait_for_x(group + 1);
          begin_step(group + 1);
        }
      }
      if (group == 0) continue;
      if (are_two) {
        Unit::template wait_for_steps<2>();
      } else if (is_one) {
        Unit::template wait_for_steps<1>();
      } else {
        Unit::template wait_for_steps<0>();
      }
#pragma unroll
      for (int i = group - at_once; i < group; ++i) release(i);
    }
    Unit::template wait_for_steps<0>();
  }

  /// The outputs of a warpgroup's sums, to shared memory.
  __device__ void round_all(const Place& at, const Memory& m, const Rows& rows,
                            const Sums& sums) const {
    const float low = Base::float_power_of_two(Base::scale_in(rows.base, 0));
    const float high = Base::float_power_of_two(Base::scale_in(rows.base, 1));
    std::uint8_t* to = m.all + x_at + Outputs::named(at.below, at.lane);
#pragma unroll
    for (int j = 0; j < Unit::values / 8; ++j) {
      std::uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::int32_t* d = sums + Outputs::first_value(j, i);
        const float2 x =
            *reinterpret_cast<const float2*>(&m.tail.unit_x[Outputs::first_x(j, i, at.part)]);
        // The conversion is the one rounding: powers of two change no bit of a normal number.
        pairs[2 * i] =
            bf16_pair(__int2float_rn(d[0]) * x.x * low, __int2float_rn(d[1]) * x.y * low);
        pairs[2 * i + 1] =
            bf16_pair(__int2float_rn(d[2]) * x.x * high, __int2float_rn(d[3]) * x.y * high);
      }
      CudaUnit::store_transposed(to + Outputs::behind(j), pairs);
    }
  }
  /// Where a thread stores a part of each so many rows of x: the first of them, or nothing.
  static constexpr int rows_together = most_threads / Outputs::threads_in_row;
  __device__ std::uint16_t* first_output(const Place& at, const GridItem& item) const {
    const Epilogue& e = p.epilogue;
    const int y = at.y_row + Outputs::stored_y(at.thread);
    if (y >= p.y_rows) return nullptr;
    return static_cast<std::uint16_t*>(e.c) + item.z * e.batch +
           (x_tile * item.y + Outputs::stored_x(at.thread)) * e.row + y;
  }
  /// The outputs from there to C.
  __device__ void store_all(const Place& at, const Memory& m, const GridItem& item,
                            std::uint16_t* to) const {
    if (to == nullptr) return;
    const int end = min(x_tile, p.x_rows - x_tile * item.y);
    const std::uint8_t* from = m.all + x_at + Outputs::stored_place(at.thread);
#pragma unroll
    for (int i = 0; i < x_tile; i += rows_together) {
      const int row = i + Outputs::stored_x(at.thread);
      if (row >= end) break;
      *reinterpret_cast<uint4*>(to + i * p.epilogue.row) =
          *reinterpret_cast<const uint4*>(from + row * Outputs::pitch_bytes);
    }
  }

  /// The part of those that make y; whether some of it does not fit.
  __device__ bool make_y(const Place& at, const Memory& m) const {
    const auto from = this->source(at);
    Raw raw[held];
#pragma unroll
    for (int i = 0; i < held; ++i) {
      const int group = at.warp + makers * i;
      if (group < m.count) this->load(raw[i], from, place_in_k(m, group));
    }
    typename Base::Ahead ahead;
    if constexpr (ahead_groups > 0) {
      ahead = this->rows_ahead(at, ahead_at + (at.thread >> 5) * ahead_groups * Base::ahead_bytes);
    }
    int slot = 0;
    if (at.thread < y_tile) m.scratch.base[at.thread] = Base::most_base;
    CudaUnit::block_barrier();
    if constexpr (is_pair) CudaUnit::cluster_arrive();  // of barriers there are all
      // Groups ahead no sooner: what comes first shall not wait for them.
#pragma unroll
    for (int i = 0; i < ahead_groups; ++i) begin_ahead(m, ahead, at.warp + makers * (held + i), i);
    const QuadQuantizer quantizer(p.rule);
    Scales scales[held];
#pragma unroll
    for (int i = 0; i < held; ++i) {
      if (at.warp + makers * i >= m.count) continue;
      scales[i] = this->find_scales(at, quantizer, raw[i]);
      this->tell(at, m.scratch, scales[i]);
    }
    CudaUnit::named_barrier(making, maker_threads);
    if constexpr (is_pair) {
      CudaUnit::cluster_wait();
      if (at.thread < y_tile) {
        CudaUnit::store_to_block(&m.tail.base[at.thread], m.scratch.base[at.thread],
                                 &m.tail.base_told, m.rank ^ 1);
      }
      CudaUnit::barrier_wait(&m.tail.base_told, 0);
    }
    const Rows rows = rows_of(at, m);
    bool is_left = false;
    typename Base::Turn place{at.warp, 0};
#pragma unroll 1
    for (int begin = at.warp; begin < m.count; begin += makers * held) {
#pragma unroll
      for (int i = 0; i < held; ++i) {
        const int group = begin + makers * i, next = group + makers * held;
        if (group >= m.count) break;
        if (begin != at.warp) scales[i] = this->find_scales(at, quantizer, raw[i]);
        const std::uint32_t above = Base::above_of(scales[i], rows);
        typename Atom::Part parts[group_blocks_k][2];
        if (!fit_all(scales[i], rows, above)) {
          is_left = true;
#pragma unroll
          for (int b = 0; b < group_blocks_k; ++b) parts[b][0] = parts[b][1] = {};
        } else {
          this->make_any(quantizer, raw[i], scales[i], rows, above, parts);
        }
        if constexpr (ahead_groups > 0) {
          CudaUnit::wait_for_sets_of_copies<ahead_groups - 1>();
          CudaUnit::warp_barrier();
          if (next < m.count) Base::take_rows(m.all + slot * Base::ahead_bytes, raw[i], ahead);
          CudaUnit::warp_barrier();
          begin_ahead(m, ahead, next + makers * ahead_groups, slot);
          slot = slot + 1 == ahead_groups ? 0 : slot + 1;
        } else if (!is_pair && next < m.count) {
          this->load(raw[i], from, place_in_k(m, next));
        }
        if (place.turn > 0) {
          CudaUnit::barrier_wait(&m.tail.y_empty[place.stage], (place.turn - 1) & 1);
        }
        store_parts(at, image_y(m, place.stage), parts);
        CudaUnit::warp_barrier();
        if (at.lane == 0) tell_of(at, m, place.stage);
        CudaUnit::warp_barrier();
        place.advance(y_stages, makers);
      }
      if constexpr (is_pair) break;
    }
    if constexpr (is_pair) {
      if (at.lane == 0) {
        CudaUnit::store_to_block(&m.tail.is_left[at.thread >> 5], is_left ? 1 : 0,
                                 &m.tail.left_told, m.rank ^ 1);
      }
      CudaUnit::warp_barrier();
      CudaUnit::barrier_wait(&m.tail.left_told, 0);
      is_left = is_left || m.tail.is_left[at.thread >> 5] != 0;
    }
    return is_left;
  }
  /// Begins to copy a group of y to one of the warp's places, or none.
  __device__ void begin_ahead(const Memory& m, const typename Base::Ahead& ahead, int group,
                              int slot) const {
    if (group < m.count) {
      Base::copy_rows(m.all + slot * Base::ahead_bytes, ahead, place_in_k(m, group));
    }
    CudaUnit::end_set_of_copies();
  }
  /// A warp's rows of a group are made.
  __device__ void tell_of(const Place& at, const Memory& m, int stage) const {
    CudaUnit::barrier_arrive(&m.tail.y_full[stage]);
    if constexpr (is_pair) {
      constexpr int bytes = Atom::rows * Int8Images::step_bytes;
      CudaUnit::before_shared_bulk_copies();
      const int begin = at.below / Atom::rows * bytes;
      CudaUnit::bulk_copy_to_block(image_y(m, stage) + begin, image_y(m, most_own + stage) + begin,
                                   bytes, &m.tail.y_full[most_own + stage], m.rank ^ 1);
    }
  }
  /// Of a warp.
  __device__ static bool fit_all(const Scales& scales, const Rows& rows, std::uint32_t above) {
    const bool fits = scales.are_known && Base::template are_within<Base::scale_shift>(
                                              scales.lo, scales.hi, rows.base,
                                              rows.base + (above << Base::scale_shift));
    return !CudaUnit::any_lane(!fits);
  }
  /// What is agreed upon.
  __device__ Rows rows_of(const Place& at, const Memory& m) const {
    const int below = is_pair ? 0 : this->below_seen(makers * held);
    Rows rows{0, 0xFFFFFFFFu, 0};
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      const int row = Base::row_of_block(at, second);
      int least = m.scratch.base[row];
      if constexpr (is_pair) least = min(least, m.tail.base[row]);
      rows.base |= Base::base_in_reach(least - below, second);
    }
    return rows;
  }
  /// The part of those that multiply; whether anything but y that does not fit is not plain.
  /// all_made returns when all of y is made: whether some of it does not fit.
  template <class AllMade>
  __device__ bool multiply_y(const Place& at, const Memory& m, const AllMade& all_made) const {
    const int own = at.thread - maker_threads;
    if (own < 32) make_barriers(m, own);
    // Found before what is waited for is there.
    const std::uint8_t* const x = opaque(this->image(at, 0));
    const SliceRow* const from_state = opaque(states(at) + own % x_tile);
    CudaUnit::block_barrier();
    if constexpr (is_pair) CudaUnit::cluster_arrive();
    CudaUnit::wait_for_earlier();
    if constexpr (is_pair) CudaUnit::cluster_wait();
    // One after the other takes long: each warp begins its part of them.
    if (at.lane == 0) {
      CudaUnit::before_bulk_loads();
#pragma unroll
      for (int i = 0; i < x_stages; i += 128 / 32) {
        const int group = i + own / 32;
        if (group < x_stages && is_there(m, group)) copy_x(x, m, group);
      }
    }
    CudaUnit::warp_barrier();
    const SliceRow state = *from_state;
    Sums sums = {};
    multiply_all(at, x, m, own == 0, sums);
    if (own < x_tile) {
      m.scratch.x[own] = state;
      m.tail.unit_x[own] = Base::float_power_of_two(state.unit[0]);
    }
    const bool is_any_left = all_made();
    if constexpr (is_pair) CudaUnit::barrier_wait(&m.tail.base_told, 0);
    const Rows rows = rows_of(at, m);
    bool is_special = state.spread < 0 || state.images != 1 || !Base::is_common(state.unit[0]);
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      is_special = is_special || !Base::is_common(Base::scale_in(rows.base, second));
    }
    if (is_any_left) {
      leave_all(at, m, sums);
    } else {
      round_all(at, m, rows, sums);
    }
    return is_special;
  }
  __device__ const SliceRow* states(const Place& at) const {
    return p.elements.states + (p.x_batch == 1 ? 0 : at.batch) * p.elements.rows() +
           x_tile * at.x_tile;
  }
  /// The sums, to where Base has them.
  __device__ void leave_all(const Place& at, const Memory& m, const Sums& sums) const {
    const int thread = at.thread & 127;
#pragma unroll
    for (int v = 0; v < Unit::values; ++v) {
      m.scratch.sums[Unit::col_of(thread, v)][Unit::row_of(thread, v)] = sums[v];
    }
  }

  enum class Outcome { stored, left, special };
  /// All of the block's work where it is plain. left: the block's sums lack what of y did not fit.
  /// special: there is nothing.
  __device__ Outcome run_plain(const Place& at, const Memory& m, const GridItem& item) const {
    bool is_left = false, is_special = false;
    std::uint16_t* to;
    if (at.warp == makers) {
      to = opaque(first_output(at, item));
      is_special = multiply_y(at, m, [&] {
        // Never so, but ptxas (13.0) does not know it: of a constant it makes two barriers.
        is_left = CudaUnit::barrier_any(m.count == 0);
        return is_left;
      });
    } else {
      is_left = make_y(at, m);
      to = opaque(first_output(at, grid_item_again()));
      is_left = CudaUnit::barrier_any(is_left);
    }
    if constexpr (is_pair) CudaUnit::cluster_arrive();  // nothing is under way from the other block
    Outcome outcome = Outcome::stored;
    is_special = CudaUnit::barrier_any(is_special);
    if (is_left || is_special) {
      outcome = is_special ? Outcome::special : Outcome::left;
    } else {
      store_all(at, m, grid_item_again(), to);
    }
    if constexpr (is_pair) CudaUnit::cluster_wait();
    return outcome;
  }
  /// Adds what is left to the block's sums, in absolute units, and stores all.
  __device__ __noinline__ void add_left(int thread, Scratch* shared, const GridItem item,
                                        std::uint32_t base) const {
    Scratch& scratch = *in_shared(shared);
    const Place at = this->place_of(thread, item);
    const QuadQuantizer quantizer(p.rule);
    Rows rows{base, 0xFFFFFFFFu, 0};
    this->meet();  // all have read what they agreed upon
    if (at.warp == 0 && at.part == 0) {
#pragma unroll
      for (int second = 0; second < 2; ++second) {
        const int row = Base::row_of_block(at, second);
        // As y_unit has it.
        scratch.base[row] = Base::scale_in(rows.base, second) + this->below_seen(makers);
        scratch.lo[row] = Base::no_lo;
        scratch.hi[row] = 0;
      }
    }
    this->meet();
    this->add_to_rest(thread, item, scratch, 0);
    this->meet();
    const auto from = this->source(at);
#pragma unroll 1
    for (int group = at.warp; group < p.elements.groups; group += makers) {
      Raw raw;
      this->load(raw, from, group);
      const Scales scales = this->find_scales(at, quantizer, raw);
      if (fit_all(scales, rows, Base::above_of(scales, rows))) {
        rows.lo = smaller_halves(rows.lo, scales.lo);
        rows.hi = larger_halves(rows.hi, scales.hi);
      } else {
        this->add_rare(thread, shared, item, group, 0);
      }
    }
    this->tell_range(at, scratch, rows);
    this->meet();
    this->store_any(thread, item, scratch);
  }

  __device__ void run(int thread, unsigned char* memory, const GridItem& item) const {
    CudaUnit::read_ahead(*this, thread, reinterpret_cast<Scratch*>(memory)->lo);
    CudaUnit::dependents_may_begin();
    const Memory m = memory_of(memory, item);
    const Place at = this->place_of(thread, item);
    const Outcome outcome = run_plain(at, m, item);
    if (outcome == Outcome::stored) return;
    // Those that multiplied have done their work: what is rare needs their registers.
    if (at.warp == makers) {
      CudaUnit::keep_registers<kept_registers>();
      return;
    }
    CudaUnit::take_registers<rare_registers>();
    // Where it works is found anew: until now registers were for what is not rare.
    if (outcome == Outcome::left) {
      add_left(thread, &m.scratch, grid_item_again(), rows_of(at, m).base);
    } else {
      Base::run(opaque(thread), m.scratch, item);
    }
  }
};

#endif

}  // namespace KokkosMX::Impl

#endif
