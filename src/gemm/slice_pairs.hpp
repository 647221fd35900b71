// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_SLICE_PAIRS_HPP
#define KOKKOSMX_SRC_GEMM_SLICE_PAIRS_HPP

/// \file slice_pairs.hpp
/// The slice kernel where x has two tiles of 128 rows: blocks that have the same rows of y, and a
/// tile of x each, make y's elements together.
///
/// A block makes the groups of one half of K, as images in shared memory, which it copies to the
/// other one's. A warpgroup of its own copies x and has the matrix unit read both operands from
/// there: all of K is one sum, and groups are multiplied while others are made. The rows of y have
/// a scale that both blocks agree upon. What does not fit it is left out, and added in absolute
/// units; where x is not plain, a block does all of its work again as SliceGemm does it.

#include "slice_kernel.hpp"

namespace KokkosMX::Impl {

#ifdef KOKKOS_ENABLE_CUDA

template <SliceForm Form>
struct SlicePairs : SliceGemm<16, Form, false> {
  using Base = SliceGemm<16, Form, false>;
  using Base::group_blocks_k, Base::group_bytes_x, Base::is_dense, Base::p, Base::x_tile,
      Base::y_tile;
  using typename Base::Atom;
  using typename Base::Place;
  using typename Base::Raw;
  using typename Base::Rows;
  using typename Base::Scales;
  using typename Base::Scratch;

  int x_stages;  ///< groups of x that shared memory holds

  using Unit = WgmmaInt8Atom<1, x_tile>;
  /// Warpgroups that make y. One more copies x and multiplies.
  static constexpr int makers = 3, maker_threads = 128 * makers;
  /// Groups of K of a maker.
  static constexpr int rounds = 2;
  static constexpr int most_groups = 2 * makers * rounds;
  static_assert(most_groups <= Base::most_stages);
  static_assert(16 * most_groups <= AlignRows<true, true>::most_threads);
  static constexpr int most_threads = maker_threads + 128;
  /// A block of the kernel before needs some, too.
  static constexpr int most_shared_bytes = 220 * 1024;
  static constexpr int cluster_y = 2;

  /// In front of what is in shared memory there is Scratch, without its sums.
  static constexpr int header_bytes = 4096;
  static_assert(offsetof(Scratch, sums) <= header_bytes);
  static constexpr int group_bytes_y = y_tile * Int8Images::step_bytes;
  /// Last: what the other block tells, and what counts its copies.
  struct Tail {
    std::uint64_t y_full[most_groups], base_told, left_told;
    std::int32_t base[y_tile];
    std::int32_t is_left[maker_threads / 32];  ///< some of a warp's part of y does not fit
    std::int32_t is_any_left;                  ///< of either block's
    alignas(16) float unit_x[x_tile];
  };
  /// The outputs in bf16, row after row of x, lie in the place of x.
  static constexpr int pitch_bytes = 2 * y_tile + 16;
  KOKKOS_INLINE_FUNCTION int y_at() const {
    constexpr int least_stages = (x_tile * pitch_bytes + group_bytes_x - 1) / group_bytes_x;
    return header_bytes + (x_stages > least_stages ? x_stages : least_stages) * group_bytes_x;
  }
  /// Behind what Base has there, too: barriers' memory may hold nothing else.
  KOKKOS_INLINE_FUNCTION int tail_at() const {
    const int own = y_at() + p.elements.groups * group_bytes_y;
    const int base = static_cast<int>(sizeof(Scratch)) + Base::stages_bytes();
    return own > base ? own : base;
  }
  KOKKOS_INLINE_FUNCTION int threads() const { return maker_threads + 128; }
  int shared_bytes() const {
    return std::max(Base::shared_bytes(), tail_at() + static_cast<int>(sizeof(Tail)));
  }
  static int stages_for(int groups) {
    const int left =
        most_shared_bytes - header_bytes - groups * group_bytes_y - static_cast<int>(sizeof(Tail));
    return std::min({left / group_bytes_x, groups, most_groups});
  }

  KOKKOS_FUNCTION void operator()([[maybe_unused]] const DeviceGroup& group,
                                  [[maybe_unused]] unsigned char* memory,
                                  [[maybe_unused]] const GridItem& item) const {
    KOKKOS_IF_ON_DEVICE((run(group.rank(), memory, item);))
  }

 private:
  using Sums = std::int32_t[Unit::values];

  /// A block's memory, and which of two it is.
  struct Memory {
    unsigned char* all;
    Scratch& scratch;
    Tail& tail;
    int rank, first, end;  ///< groups of K that the block makes
  };
  __device__ Memory memory_of(unsigned char* memory, const GridItem& item) const {
    const int rank = item.y & 1, half = p.elements.groups / 2;
    return {memory,
            *reinterpret_cast<Scratch*>(memory),
            *reinterpret_cast<Tail*>(memory + tail_at()),
            rank,
            rank * half,
            (rank + 1) * half};
  }
  /// Which group is multiplied then: first those that the block makes.
  __device__ int group_at(const Memory& m, int turn) const {
    const int group = m.first + turn;
    return group < p.elements.groups ? group : group - p.elements.groups;
  }
  __device__ std::uint8_t* image_y(const Memory& m, int group) const {
    return m.all + y_at() + group * group_bytes_y;
  }
  __device__ std::uint8_t* image_x(const Memory& m, int stage) const {
    return m.all + header_bytes + stage * group_bytes_x;
  }

  /// By one warp that has not begun to load anything, or this would wait for that.
  __device__ void make_barriers(const Memory& m, int lane) const {
    if (lane == 0) {
      // All there can be: known addresses are quickest.
#pragma unroll
      for (int i = 0; i < most_groups; ++i) {
        CudaUnit::barrier_init(&m.scratch.full[i], 1);
        CudaUnit::barrier_init(&m.tail.y_full[i], 1);
      }
      CudaUnit::barrier_init(&m.tail.base_told, 1);
      CudaUnit::barrier_init(&m.tail.left_told, 1);
      CudaUnit::barriers_made();
      m.tail.is_any_left = 0;
    }
    CudaUnit::warp_barrier();
    // What comes from the other block.
    if (lane < p.elements.groups && (lane < m.first || lane >= m.end)) {
      CudaUnit::barrier_expect(&m.tail.y_full[lane], group_bytes_y);
    }
    if (lane == 0) {
      CudaUnit::barrier_expect(&m.tail.base_told, sizeof(m.tail.base));
      CudaUnit::barrier_expect(&m.tail.left_told, sizeof(m.tail.is_left));
    }
  }

  /// Begins to copy x, for that turn.
  __device__ void copy_x(const Place& at, const Memory& m, int turn, int stage) const {
    std::uint64_t* full = &m.scratch.full[stage];
    CudaUnit::barrier_expect(full, group_bytes_x);
    CudaUnit::bulk_copy(image_x(m, stage),
                        this->image(at, 0) + std::int64_t{group_at(m, turn)} * group_bytes_x,
                        group_bytes_x, full);
  }

  /// A lane's elements of a group, into its image.
  __device__ static void store_parts(const Place& at, std::uint8_t* image,
                                     const typename Atom::Part (&parts)[group_blocks_k][2]) {
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      const int row = Base::row_of_block(at, second);
#pragma unroll
      for (int i = 0; i < group_blocks_k; ++i) {
        const int place = Int8Images::offset(row, 2 * i) + 4 * at.part;
        *reinterpret_cast<std::uint32_t*>(image + place) = parts[i][second].word[0];
        *reinterpret_cast<std::uint32_t*>(image + (place ^ 16)) = parts[i][second].word[1];
      }
    }
  }

  /// All of K, by a warpgroup: rows of y, columns of x.
  __device__ void multiply_all(const Place& at, const Memory& m, bool is_first, Sums& sums) const {
    typename Base::Turn of;
#pragma unroll 1
    for (int turn = 0; turn < p.elements.groups; ++turn) {
      const int group = group_at(m, turn);
      CudaUnit::barrier_wait(&m.tail.y_full[group], 0);
      CudaUnit::barrier_wait(&m.scratch.full[of.stage], of.turn & 1);
      Unit::begin_step(sums, image_y(m, group), image_x(m, of.stage));
      if (turn > 0) {
        Unit::template wait_for_steps<1>();
        const int next = turn - 1 + x_stages;
        if (next < p.elements.groups) {
          CudaUnit::named_barrier(1 + makers, 128);  // all four warps have read that stage
          if (is_first) copy_x(at, m, next, of.stage == 0 ? x_stages - 1 : of.stage - 1);
        }
      }
      of.advance(x_stages);
    }
    Unit::template wait_for_steps<0>();
  }

  __device__ static float power(int unit) {  // 2^(unit - 128)
    return Kokkos::bit_cast<float>(static_cast<std::uint32_t>(unit - 1) << 23);
  }
  /// The outputs of a warpgroup's sums, to shared memory.
  __device__ void round_all(const Place& at, const Memory& m, const Rows& rows,
                            const Sums& sums) const {
    const float low = power(Base::scale_in(rows.base, 0));
    const float high = power(Base::scale_in(rows.base, 1));
    // Of four matrices of 8 by 8: two tiles of 8 rows of x, of each two of y.
    std::uint8_t* to = m.all + header_bytes + (at.lane >> 4) * 8 * pitch_bytes +
                       (at.lane & 7) * pitch_bytes + 2 * (at.below + (at.lane & 8));
#pragma unroll
    for (int j = 0; j < Unit::values / 8; ++j) {
      std::uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::int32_t* d = sums + 8 * j + 4 * i;
        const float2 x =
            *reinterpret_cast<const float2*>(&m.tail.unit_x[16 * j + 8 * i + 2 * at.part]);
        // The conversion is the one rounding: powers of two change no bit of a normal number.
        pairs[2 * i] =
            bf16_pair(__int2float_rn(d[0]) * x.x * low, __int2float_rn(d[1]) * x.y * low);
        pairs[2 * i + 1] =
            bf16_pair(__int2float_rn(d[2]) * x.x * high, __int2float_rn(d[3]) * x.y * high);
      }
      CudaUnit::store_transposed(to + j * 16 * pitch_bytes, pairs);
    }
  }
  /// From there to C.
  __device__ void store_all(const Place& at, const Memory& m, const GridItem& item) const {
    const Epilogue& e = p.epilogue;
    constexpr int in_row = y_tile / 8;
    const int end = min(x_tile, p.x_rows - x_tile * item.y), col = at.thread % in_row;
    if (at.y_row + 8 * col >= p.y_rows) return;
    std::uint16_t* to = static_cast<std::uint16_t*>(e.c) + item.z * e.batch +
                        x_tile * item.y * e.row + at.y_row + 8 * col;
#pragma unroll
    for (int row = at.thread / in_row; row < x_tile; row += (maker_threads + 128) / in_row) {
      if (row >= end) break;
      *reinterpret_cast<uint4*>(to + row * e.row) =
          *reinterpret_cast<const uint4*>(m.all + header_bytes + row * pitch_bytes + 16 * col);
    }
  }

  /// The part of those that make y; whether some of it does not fit.
  __device__ bool make_y(const Place& at, const Memory& m) const {
    const auto from = this->source(at);
    Raw raw[rounds];
#pragma unroll
    for (int i = 0; i < rounds; ++i) {
      const int group = m.first + at.warp + makers * i;
      if (group < m.end) this->load(raw[i], from, group);
    }
    if (at.thread < y_tile) m.scratch.base[at.thread] = Base::most_base;
    CudaUnit::block_barrier();
    CudaUnit::cluster_arrive();  // of barriers there are all
    const QuadQuantizer quantizer(p.rule);
    Scales scales[rounds];
#pragma unroll
    for (int i = 0; i < rounds; ++i) {
      if (m.first + at.warp + makers * i >= m.end) continue;
      scales[i] = this->find_scales(at, quantizer, raw[i]);
      this->tell(at, m.scratch, scales[i]);
    }
    CudaUnit::named_barrier(1 + makers + 1, maker_threads);
    CudaUnit::cluster_wait();
    if (at.thread < y_tile) {
      CudaUnit::store_to_block(&m.tail.base[at.thread], m.scratch.base[at.thread],
                               &m.tail.base_told, m.rank ^ 1);
    }
    CudaUnit::barrier_wait(&m.tail.base_told, 0);
    const Rows rows = rows_of(at, m);
    bool is_left = false;
#pragma unroll
    for (int i = 0; i < rounds; ++i) {
      const int group = m.first + at.warp + makers * i;
      if (group >= m.end) continue;
      const std::uint32_t above = above_of(scales[i], rows);
      const bool all_fit = fit_all(scales[i], rows, above);
      typename Atom::Part parts[group_blocks_k][2];
      if (!all_fit) {
        is_left = true;
#pragma unroll
        for (int b = 0; b < group_blocks_k; ++b) parts[b][0] = parts[b][1] = {};
      } else if (is_dense && quantizer.pairs().saturates()) {
        this->template make<is_dense>(quantizer, raw[i], scales[i], rows, above, parts);
      } else {
        this->template make<false>(quantizer, raw[i], scales[i], rows, above, parts);
      }
      std::uint8_t* image = image_y(m, group);
      store_parts(at, image, parts);
      CudaUnit::before_shared_bulk_copies();
      CudaUnit::named_barrier(1 + at.warp, 128);
      if (at.below == 0 && at.lane == 0) {
        CudaUnit::barrier_arrive(&m.tail.y_full[group]);
        CudaUnit::bulk_copy_to_block(image, group_bytes_y, &m.tail.y_full[group], m.rank ^ 1);
      }
      CudaUnit::warp_barrier();
    }
    if (at.lane == 0) {
      CudaUnit::store_to_block(&m.tail.is_left[at.thread >> 5], is_left ? 1 : 0, &m.tail.left_told,
                               m.rank ^ 1);
    }
    CudaUnit::warp_barrier();
    CudaUnit::barrier_wait(&m.tail.left_told, 0);
    is_left = is_left || m.tail.is_left[at.thread >> 5] != 0;
    if (is_left) m.tail.is_any_left = 1;
    CudaUnit::named_arrive(3 + makers, maker_threads + 128);
    return is_left;
  }
  __device__ static std::uint32_t above_of(const Scales& scales, const Rows& rows) {
    return is_dense ? Base::template above_base<Base::scale_shift>(scales.hi, rows.base) : 0u;
  }
  /// Of a warp.
  __device__ static bool fit_all(const Scales& scales, const Rows& rows, std::uint32_t above) {
    const bool fits = scales.are_known && Base::template are_within<Base::scale_shift>(
                                              scales.lo, scales.hi, rows.base,
                                              rows.base + (above << Base::scale_shift));
    return !CudaUnit::any_lane(!fits);
  }
  /// What both blocks have agreed upon.
  __device__ Rows rows_of(const Place& at, const Memory& m) const {
    Rows rows{0, 0xFFFFFFFFu, 0};
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      const int row = Base::row_of_block(at, second);
      rows.base |= Base::base_in_reach(min(m.scratch.base[row], m.tail.base[row]), second);
    }
    return rows;
  }
  /// The part of those that multiply; whether anything but y that does not fit is not plain.
  __device__ bool multiply_y(const Place& at, const Memory& m) const {
    const int own = at.thread - maker_threads;
    if (own < 32) make_barriers(m, own);
    CudaUnit::block_barrier();
    CudaUnit::cluster_arrive();
    CudaUnit::wait_for_earlier();
    if (own == 0) {
      CudaUnit::before_bulk_loads();
      for (int stage = 0; stage < x_stages; ++stage) copy_x(at, m, stage, stage);
    }
    CudaUnit::warp_barrier();
    const SliceRow state = states(at)[own];
    Sums sums = {};
    multiply_all(at, m, own == 0, sums);
    m.scratch.x[own] = state;
    m.tail.unit_x[own] = power(state.unit[0]);
    CudaUnit::named_barrier(3 + makers, maker_threads + 128);
    CudaUnit::barrier_wait(&m.tail.base_told, 0);
    const Rows rows = rows_of(at, m);
    bool is_special = state.spread < 0 || state.images != 1 || !Base::is_common(state.unit[0]);
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      is_special = is_special || !Base::is_common(Base::scale_in(rows.base, second));
    }
    if (m.tail.is_any_left == 0) {
      round_all(at, m, rows, sums);
    } else {
      leave_all(at, m, sums);
    }
    CudaUnit::cluster_wait();
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
    if (at.warp == makers) {
      is_special = multiply_y(at, m);
    } else {
      is_left = make_y(at, m);
    }
    CudaUnit::cluster_arrive();  // nothing is under way from the other block
    Outcome outcome = Outcome::stored;
    if (CudaUnit::barrier_any(is_left || is_special)) {
      outcome = CudaUnit::barrier_any(is_special) ? Outcome::special : Outcome::left;
    } else {
      store_all(at, m, item);
    }
    CudaUnit::cluster_wait();
    return outcome;
  }
  /// Adds what is left to the block's sums, in absolute units, and stores all.
  __device__ __noinline__ void add_left(int thread, Scratch* shared, const GridItem item,
                                        std::uint32_t base) const {
    Scratch& scratch = *in_shared(shared);
    const Place at = this->place_of(thread, item);
    const QuadQuantizer quantizer(p.rule);
    Rows rows{base, 0xFFFFFFFFu, 0};
    CudaUnit::block_barrier();  // all have read what they agreed upon
    if (at.warp == 0 && at.part == 0) {
#pragma unroll
      for (int second = 0; second < 2; ++second) {
        const int row = Base::row_of_block(at, second);
        // As y_unit has it.
        scratch.base[row] =
            Base::scale_in(rows.base, second) + (p.elements.groups > makers ? 1 : 0);
        scratch.lo[row] = Base::no_lo;
        scratch.hi[row] = 0;
      }
    }
    CudaUnit::block_barrier();
    this->add_to_rest(thread, item, scratch, 0);
    CudaUnit::block_barrier();
    const auto from = this->source(at);
#pragma unroll 1
    for (int group = at.warp; group < p.elements.groups; group += makers) {
      Raw raw;
      this->load(raw, from, group);
      const Scales scales = this->find_scales(at, quantizer, raw);
      if (fit_all(scales, rows, above_of(scales, rows))) {
        rows.lo = smaller_halves(rows.lo, scales.lo);
        rows.hi = larger_halves(rows.hi, scales.hi);
      } else {
        this->add_rare(thread, shared, item, group, 0);
      }
    }
    this->tell_range(at, scratch, rows);
    CudaUnit::block_barrier();
    this->store_any(thread, item, scratch);
  }

  __device__ void run(int thread, unsigned char* memory, const GridItem& item) const {
    CudaUnit::read_ahead(*this, thread, reinterpret_cast<Scratch*>(memory)->lo);
    CudaUnit::dependents_may_begin();
    const Memory m = memory_of(memory, item);
    const Place at = this->place_of(thread, item);
    const Outcome outcome = run_plain(at, m, item);
    if (outcome == Outcome::stored || at.warp == makers) return;
    if (outcome == Outcome::left) {
      add_left(thread, &m.scratch, item, rows_of(at, m).base);
    } else {
      Base::run(thread, m.scratch, item);
    }
  }
};

#endif

}  // namespace KokkosMX::Impl

#endif
