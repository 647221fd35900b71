// SPDX-License-Identifier: Apache-2.0

// What the kernels are made of, each alone: every atom that can run here against plain loops over
// wide integers and one rounding at a time, and the integer arithmetic of numbers.hpp and
// exact_sum.hpp against the oracles.

#include <gtest/gtest.h>

#include <KokkosMX.hpp>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <iterator>
#include <memory>
#include <new>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "Inputs.hpp"
#include "ReferenceGemm.hpp"
#include "atom_select.hpp"
#include "atoms/gemm/panel_atom.hpp"
#include "gemm/exact_sum.hpp"
#include "numbers.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

namespace Impl = KokkosMX::Impl;

/// Numbers without end, the same every time.
class Stream {
 public:
  explicit Stream(std::uint64_t seed) : state_(seed) {}
  std::uint64_t operator()() {
    state_ += 0x9E3779B97F4A7C15u;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }

 private:
  std::uint64_t state_;
};

constexpr int magnitudes[8] = {0, 1, 2, 3, 4, 6, 8, 12};

std::size_t size_of_index(int i) { return static_cast<std::size_t>(i); }

int value_of(int code) { return (code & 8 ? -1 : 1) * magnitudes[code & 7]; }

/// Calls f(atoms) for each set of host atoms that this machine can run.
template <class F>
void for_each_atoms(const F& f) {
  for (const Impl::HostAtomsEntry& entry : Impl::all_host_atoms()) {
    if (entry.runs) Impl::with_host_atoms(entry.atoms, f);
  }
}

/// Calls f(atom) for each panel atom among them.
template <class F>
void for_each_panel_atom(const F& f) {
  for_each_atoms([&](auto atoms) {
    using Atom = typename decltype(atoms)::Gemm;
    if constexpr (Impl::PanelAtom<Atom>) {
      SCOPED_TRACE(Atom::name);
      f(Atom{});
    }
  });
}

TEST(TileAtom, UnpackEveryByteAndShift) {
  using Atom = Impl::PortableGemmAtom;
  // The order within a block is the atom's own, but it is one order: found with one-hot blocks.
  int order[32];
  for (int k = 0; k < 32; ++k) {
    std::uint8_t codes[17] = {};
    typename Atom::element to[32];
    codes[1 + k / 2] = static_cast<std::uint8_t>(2 << (4 * (k % 2)));  // unaligned
    Atom::unpack(codes + 1, 0, to);
    int ones = 0;
    for (int e = 0; e < 32; ++e) {
      if (to[e] == 0) continue;
      ++ones;
      order[k] = e;
      EXPECT_EQ(to[e], 2);
    }
    ASSERT_EQ(ones, 1);
  }
  for (int shift = 0; shift <= Atom::max_shift; ++shift) {
    for (int first = 0; first < 256; first += 16) {
      std::uint8_t codes[16];
      typename Atom::element to[32];
      for (int i = 0; i < 16; ++i) codes[i] = static_cast<std::uint8_t>(first + i);
      Atom::unpack(codes, shift, to);
      for (int k = 0; k < 32; ++k) {
        const int code = codes[k / 2] >> (4 * (k % 2)) & 15;
        ASSERT_EQ(to[order[k]], value_of(code) * (1 << shift)) << "code " << code;
      }
    }
  }
}

TEST(TileAtom, CoordinatesCoverTheTileOnce) {
  using Atom = Impl::PortableGemmAtom;
  std::vector<int> seen(Atom::M * Atom::N, 0);
  for (int lane = 0; lane < Atom::lanes; ++lane) {
    for (int i = 0; i < Atom::M * Atom::N / Atom::lanes; ++i) {
      const int row = Atom::row_of(lane, i), col = Atom::col_of(lane, i);
      ASSERT_TRUE(row >= 0 && row < Atom::M && col >= 0 && col < Atom::N);
      ++seen[row * Atom::N + col];
    }
  }
  EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), Atom::M * Atom::N);
}

TEST(TileAtom, MultiplyAddIsTheIntegerSum) {
  using Atom = Impl::PortableGemmAtom;
  Stream random(1);
  constexpr int blocks = 5;
  for (const int extreme : {0, 1}) {
    for (int count = 1; count <= blocks; ++count) {
      const int shift = extreme ? 6 : 3;
      std::vector<std::uint8_t> codes[2];
      std::vector<typename Atom::element> panel[2];
      for (int side = 0; side < 2; ++side) {
        const int rows = side == 0 ? Atom::M : Atom::N;
        codes[side].resize(rows * blocks * 16);
        panel[side].resize(rows * blocks * 32);
        for (auto& byte : codes[side]) {
          byte = extreme ? 0x7F : static_cast<std::uint8_t>(random());
        }
        for (int row = 0; row < rows; ++row) {
          for (int block = 0; block < blocks; ++block) {
            Atom::unpack(&codes[side][(row * blocks + block) * 16],
                         std::min(shift, Atom::max_shift),
                         &panel[side][Atom::panel_offset(row, block, blocks)]);
          }
        }
      }
      typename Atom::Accumulator sum{};
      for (auto& value : sum.value) value = 17;
      Atom::multiply_add(sum, panel[0].data(), panel[1].data(), count, blocks);
      const std::int64_t unit = std::int64_t{1} << (2 * std::min(shift, Atom::max_shift));
      for (int i = 0; i < Atom::M * Atom::N; ++i) {
        const int row = Atom::row_of(0, i), col = Atom::col_of(0, i);
        std::int64_t expected = 0;
        for (int k = 0; k < 32 * count; ++k) {
          const int a = codes[0][row * blocks * 16 + k / 2] >> (4 * (k % 2)) & 15;
          const int b = codes[1][col * blocks * 16 + k / 2] >> (4 * (k % 2)) & 15;
          expected += value_of(a) * value_of(b);
        }
        ASSERT_EQ(sum.value[i], 17 + unit * expected) << row << ", " << col;
      }
      std::int32_t product = 0;
      for (int k = 0; k < 32; ++k) {
        product += value_of(codes[0][k / 2] >> (4 * (k % 2)) & 15) *
                   value_of(codes[1][k / 2] >> (4 * (k % 2)) & 15);
      }
      ASSERT_EQ(Atom::block_product(codes[0].data(), codes[1].data()), product);
    }
  }
}

// ---- Panel atoms. The oracle is the definition: a code's value in halves, shifted by the distance
// of its block's scale from the row's base, nothing where that is not 0 to 3; or, near, nothing
// where the result is larger than 96.

/// T's at an address that 64 divides.
template <class T>
class Aligned {
 public:
  explicit Aligned(std::size_t size, T value = T{})
      : data_(static_cast<T*>(::operator new (size * sizeof(T), std::align_val_t{64}))),
        size_(size) {
    std::uninitialized_fill_n(data_, size, value);
  }
  ~Aligned() { ::operator delete (data_, std::align_val_t{64}); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;

  T* data() { return data_; }
  std::size_t size() const { return size_; }
  T& operator[](std::size_t i) { return data_[i]; }

 private:
  T* data_;
  std::size_t size_;
};

/// Codes and scales of 16 rows, at odd addresses.
class PanelInput {
 public:
  explicit PanelInput(int groups)
      : groups_(groups), codes_(std::size_t(1024) * groups + 1), scales_(64 * groups + 3) {
    std::fill(std::begin(base_.scale), std::end(base_.scale), std::uint8_t{127});
    std::fill(scales_.begin(), scales_.end(), std::uint8_t{127});
    base_.near = false;
  }
  int groups() const { return groups_; }
  const std::uint8_t* codes() const { return codes_.data() + 1; }
  const std::uint8_t* scales() const { return scales_.data() + 3; }
  const Impl::PanelBase& base() const { return base_; }

  /// Byte j of a block: two codes, the low nibble first.
  std::uint8_t& byte(int row, int block, int j) {
    return codes_[1 + 1024 * std::size_t(block / 4) + 64 * row + 4 * j + block % 4];
  }
  std::uint8_t& scale(int row, int block) {
    return scales_[3 + 64 * std::size_t(block / 4) + 4 * row + block % 4];
  }
  void set_base(int row, int scale) {
    for (int b = 0; b < 4; ++b) base_.scale[4 * row + b] = static_cast<std::uint8_t>(scale);
  }
  void set_near(bool near) { base_.near = near; }
  void set_code(int row, int k, int code) {
    std::uint8_t& both = byte(row, k / 32, k % 32 / 2);
    both = static_cast<std::uint8_t>(k % 2 == 0 ? (both & 0xF0) | code : (both & 0x0F) | code << 4);
  }
  std::int64_t value(int row, int k) {
    const int distance = int{scale(row, k / 32)} - int{base_.scale[4 * row]};
    if (distance < 0 || (!base_.near && distance > 3)) return 0;
    const int value = value_of(byte(row, k / 32, k % 32 / 2) >> (k % 2 == 0 ? 0 : 4) & 15);
    if (value == 0 || (base_.near && (distance > 6 || std::abs(value) << distance > 96))) return 0;
    return std::int64_t{value} << distance;
  }

 private:
  int groups_;
  std::vector<std::uint8_t> codes_, scales_;
  Impl::PanelBase base_;
};

/// Elements of a panel, and behind them what no unpacking may touch.
template <class Atom>
class Unpacked {
 public:
  Unpacked(PanelInput& from, bool is_y)
      : used_(static_cast<std::size_t>(from.groups()) * Atom::panel_group_elements),
        elements_(used_ + 128, 77) {
    const auto unpack = is_y ? Atom::unpack_y : Atom::unpack_x;
    unpack(from.codes(), from.scales(), from.base(), from.groups(), elements_.data());
    for (std::size_t i = used_; i < elements_.size(); ++i) {
      if (elements_[i] != 77) ADD_FAILURE() << "an element behind the panel was written: " << i;
    }
  }
  typename Atom::element* data() { return elements_.data(); }

 private:
  std::size_t used_;
  Aligned<typename Atom::element> elements_;
};

/// Reads elements back whatever their order: products with panels whose row r holds 1 at k = 16 q +
/// r of a group and 0 elsewhere are the elements themselves.
template <class Atom>
class Reader {
 public:
  explicit Reader(bool reads_y) : reads_y_(reads_y) {
    for (int q = 0; q < 8; ++q) {
      PanelInput one(1);
      for (int r = 0; r < 16; ++r) one.set_code(r, 16 * q + r, 1);
      ones_.push_back(std::make_unique<Unpacked<Atom>>(one, !reads_y));
    }
  }
  /// Compares a panel with the definition; false where they differ.
  bool check(PanelInput& input) {
    Unpacked<Atom> panel(input, reads_y_);
    Aligned<std::int32_t> sums(256);
    for (int g = 0; g < input.groups(); ++g) {
      const auto* at = panel.data() + g * Atom::panel_group_elements;
      for (int q = 0; q < 8; ++q) {
        const auto* one = ones_[q]->data();
        Atom::multiply(sums.data(), 256, 256, reads_y_ ? at : one, 0, reads_y_ ? one : at, 0, 1, 1,
                       1, false, {});
        for (int r = 0; r < 16; ++r) {
          for (int i = 0; i < 16; ++i) {
            const int k = 128 * g + 16 * q + i;
            const std::int64_t got = reads_y_ ? sums[16 * r + i] : sums[16 * i + r];
            if (got == input.value(r, k)) continue;
            ADD_FAILURE() << "row " << r << ", k " << k << ": " << got << ", expected "
                          << input.value(r, k);
            return false;
          }
        }
      }
    }
    return true;
  }

 private:
  bool reads_y_;
  std::vector<std::unique_ptr<Unpacked<Atom>>> ones_;
};

TEST(PanelAtoms, UnpackEveryByteAndShift) {
  for_each_panel_atom([](auto atom) {
    using Atom = decltype(atom);
    Atom::begin();
    for (const bool is_y : {true, false}) {
      SCOPED_TRACE(is_y ? "y" : "x");
      Reader<Atom> reader(is_y);
      constexpr int groups = 3;
      PanelInput input(groups);
      for (int shift = 0; shift < 4 + 10; ++shift) {
        const bool near = shift >= 4;
        input.set_near(near);
        for (int add = 0; add < 256; ++add) {
          for (int r = 0; r < 16; ++r) {
            const int base = (13 * r + add) % 245;
            input.set_base(r, base);
            for (int b = 0; b < 4 * groups; ++b) {
              const int distance = (shift + r + b + b / 4) % (near ? 10 : 4);
              input.scale(r, b) = static_cast<std::uint8_t>(base + distance);
              for (int j = 0; j < 16; ++j) {
                input.byte(r, b, j) = static_cast<std::uint8_t>(add + 37 * r + 11 * b + 3 * j);
              }
            }
          }
          if (!reader.check(input)) return Atom::end();
        }
      }
    }
    Atom::end();
  });
}

TEST(PanelAtoms, UnpackLeavesOutBlocksOutsideTheBand) {
  for_each_panel_atom([](auto atom) {
    using Atom = decltype(atom);
    constexpr int bases[16] = {0, 1, 2, 3, 4, 63, 126, 127, 128, 129, 249, 250, 251, 252, 253, 254};
    Atom::begin();
    for (const bool is_y : {true, false}) {
      SCOPED_TRACE(is_y ? "y" : "x");
      Reader<Atom> reader(is_y);
      for (const int groups : {1, 2}) {
        PanelInput input(groups);
        for (int add = 0; add < 256; ++add) {
          for (int r = 0; r < 16; ++r) {
            input.set_base(r, bases[(r + add) % 16]);
            for (int b = 0; b < 4 * groups; ++b) {
              // Every scale with every base: 16 values of add have the row's base.
              input.scale(r, b) = static_cast<std::uint8_t>(add / 16 + 16 * (r + 5 * b) + 64 * b);
              for (int j = 0; j < 16; ++j) {
                input.byte(r, b, j) = static_cast<std::uint8_t>(0xF7 - 16 * (j % 7) - r % 7);
              }
            }
          }
          if (!reader.check(input)) return Atom::end();
          for (int r = 0; r < 16; ++r) {  // next to the band's ends
            for (int b = 0; b < 4 * groups; ++b) {
              constexpr int distances[8] = {-1, 0, 3, 4, -2, 5, -4, 128};
              const int scale = input.base().scale[4 * r] + distances[(r + b + add / 16) % 8];
              input.scale(r, b) = static_cast<std::uint8_t>(std::clamp(scale, 0, 255));
            }
          }
          if (!reader.check(input)) return Atom::end();
        }
      }
    }
    Atom::end();
  });
}

TEST(PanelAtoms, UnpackOfNoGroupsWritesNothing) {
  for_each_panel_atom([](auto atom) {
    using Atom = decltype(atom);
    PanelInput none(0);
    Unpacked<Atom>(none, true);
    Unpacked<Atom>(none, false);
  });
}

enum class Fill { random, largest, largest_signs };

void fill(PanelInput& input, Fill how, Stream& random) {
  for (int r = 0; r < 16; ++r) {
    input.set_base(r, 100 + r);
    for (int b = 0; b < 4 * input.groups(); ++b) {
      const int distance = how == Fill::random ? static_cast<int>(random() % 6) - 1 : 3;
      input.scale(r, b) = static_cast<std::uint8_t>(100 + r + distance);
      for (int j = 0; j < 16; ++j) {
        const auto bits = static_cast<std::uint8_t>(random());
        input.byte(r, b, j) = how == Fill::random    ? bits
                              : how == Fill::largest ? 0x77
                                                     : bits | 0x77;
      }
    }
  }
}

std::int32_t wrapped(std::int64_t x) {
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(x));
}

/// Panels that are to be unpacked, from one group on behind the first, against unpacking each.
template <class Atom>
class NextPanels {
 public:
  using element = typename Atom::element;
  NextPanels(int panels, int groups, bool near, Stream& random)
      : groups_(groups),
        stride_(groups * Atom::panel_group_elements + 64),
        elements_(static_cast<std::size_t>(panels * stride_ + 64), 44) {
    for (int i = 0; i < panels; ++i) {
      inputs_.push_back(std::make_unique<PanelInput>(groups + first_group));
      PanelInput& input = *inputs_.back();
      fill(input, Fill::random, random);
      input.set_near(near && i == panels - 1);
      for (int r = 0; r < 16; ++r) {
        for (int b = 0; b < 4 * input.groups(); ++b) {
          const int distance = input.scale(r, b) - (100 + r);
          // As in dot_rows.
          for (int j = 0; (distance < 0 || distance > 3) && j < 16; ++j)
            input.byte(r, b, j) &= 0x88;
        }
      }
      views_.push_back({input.codes(), input.scales()});
      states_.emplace_back();
      states_.back().base = input.base();
    }
    work_ = {panels, views_.data(), states_.data(), first_group, groups, stride_, elements_.data()};
  }
  const Impl::PanelUnpacking<element>& work() const { return work_; }
  void check() {
    Aligned<element> expected(elements_.size(), 44);
    for (int i = 0; i < work_.panels; ++i) {
      Atom::unpack_y(work_.codes(i, 0), work_.scales(i, 0), inputs_[i]->base(), groups_,
                     expected.data() + i * stride_);
    }
    for (std::size_t i = 0; i < elements_.size(); ++i) {
      ASSERT_EQ(elements_.data()[i], expected.data()[i]) << i;
    }
  }

 private:
  static constexpr int first_group = 2;
  int groups_;
  std::int64_t stride_;
  Aligned<element> elements_;
  std::vector<std::unique_ptr<PanelInput>> inputs_;
  std::vector<Impl::PanelView> views_;
  std::vector<Impl::PanelState> states_;
  Impl::PanelUnpacking<element> work_;
};

template <class Atom>
void multiply_panels(Fill how, Stream& random) {
  constexpr int most_y = 5, most_x = 3, most_groups = 3;
  using element = typename Atom::element;
  // Panels lie farther apart than their elements reach.
  constexpr std::int64_t used = std::int64_t{most_groups} * Atom::panel_group_elements;
  constexpr std::int64_t stride_y = used + 64, stride_x = used + 192;
  Aligned<element> y(most_y * stride_y, 55), x(most_x * stride_x, 66);
  std::vector<PanelInput> y_input(most_y, PanelInput(most_groups));
  std::vector<PanelInput> x_input(most_x, PanelInput(most_groups));
  for (int p = 0; p < most_y; ++p) {
    fill(y_input[p], how, random);
    Atom::unpack_y(y_input[p].codes(), y_input[p].scales(), y_input[p].base(), most_groups,
                   y.data() + p * stride_y);
  }
  for (int q = 0; q < most_x; ++q) {
    fill(x_input[q], how, random);
    Atom::unpack_x(x_input[q].codes(), x_input[q].scales(), x_input[q].base(), most_groups,
                   x.data() + q * stride_x);
  }
  // Sums of the first groups.
  std::vector<std::int64_t> expected(most_y * most_x * (most_groups + 1) * 256);
  const auto expected_at = [&](int p, int q, int groups) {
    return expected.data() + ((p * most_x + q) * (most_groups + 1) + groups) * 256;
  };
  for (int p = 0; p < most_y; ++p) {
    for (int q = 0; q < most_x; ++q) {
      for (int r = 0; r < 16; ++r) {
        for (int c = 0; c < 16; ++c) {
          std::int64_t sum = 0;
          for (int k = 0; k < 128 * most_groups; ++k) {
            sum += y_input[p].value(r, k) * x_input[q].value(c, k);
            if (k % 128 == 127) expected_at(p, q, k / 128 + 1)[16 * r + c] = sum;
          }
        }
      }
    }
  }
  const struct {
    std::int64_t y, x;
  } strides[] = {{most_x * 272 + 32, 272}, {304, most_y * 304 + 16}};  // one, the other is outer
  for (const auto& stride : strides) {
    for (int y_panels = 1; y_panels <= most_y; ++y_panels) {
      for (int x_panels = 1; x_panels <= most_x; ++x_panels) {
        for (int groups = 1; groups <= most_groups; ++groups) {
          for (const bool add : {false, true}) {
            Aligned<std::int32_t> sums(most_y * most_x * 320 + 64);
            for (std::size_t i = 0; i < sums.size(); ++i) {
              // With add, many leave int32.
              const auto bits = static_cast<std::uint32_t>(random());
              sums[i] = static_cast<std::int32_t>(i % 3 == 0 ? bits : 0x7FFFFFFFu + bits % 4096);
            }
            std::vector<std::int32_t> after(sums.data(), sums.data() + sums.size());
            for (int p = 0; p < y_panels; ++p) {
              for (int q = 0; q < x_panels; ++q) {
                for (int i = 0; i < 256; ++i) {
                  std::int32_t& to = after[p * stride.y + q * stride.x + i];
                  to = wrapped(expected_at(p, q, groups)[i] + (add ? to : 0));
                }
              }
            }
            // Meanwhile other panels are unpacked, or none.
            NextPanels<Atom> next((y_panels + 3 * x_panels + groups) % 5, groups, add, random);
            Atom::multiply(sums.data(), stride.y, stride.x, y.data(), stride_y, x.data(), stride_x,
                           y_panels, x_panels, groups, add, next.work());
            next.check();
            const auto differs = std::mismatch(after.begin(), after.end(), sums.data());
            ASSERT_TRUE(differs.first == after.end())
                << y_panels << " by " << x_panels << " panels, " << groups << " groups, add " << add
                << ": " << *differs.second << ", expected " << *differs.first << " at "
                << differs.first - after.begin() << ", strides " << stride.y << ", " << stride.x;
          }
        }
      }
    }
  }
}

TEST(PanelAtoms, MultiplyIsTheIntegerSum) {
  for_each_panel_atom([](auto atom) {
    using Atom = decltype(atom);
    Atom::begin();
    Stream random(6);
    for (const Fill how : {Fill::random, Fill::largest, Fill::largest_signs}) {
      SCOPED_TRACE(static_cast<int>(how));
      multiply_panels<Atom>(how, random);
    }
    Atom::end();
  });
}

template <class Atom>
void dot_rows(bool y_near, bool x_near, Stream& random) {
  using element = typename Atom::element;
  for (const int groups : {0, 1, 7, 8, 9, 17}) {
    for (int count = 1; count <= Atom::most_dot_rows; count *= 2) {
      PanelInput y(groups), x(groups);
      fill(x, Fill::random, random);
      fill(y, Fill::random, random);
      x.set_near(x_near);
      y.set_near(y_near);
      for (int r = 0; r < 16; ++r) {
        for (int b = 0; b < 4 * groups; ++b) {
          const int distance = y.scale(r, b) - (100 + r);
          // Rows are aligned to the least scale of what is not zero: other blocks may lie anywhere.
          for (int j = 0; !y_near && (distance < 0 || distance > 3) && j < 16; ++j) {
            y.byte(r, b, j) &= 0x88;
          }
        }
      }
      const auto used = static_cast<std::size_t>(groups) * count * 128;
      Aligned<element> rows(used + 64, 77);
      Atom::unpack_dot(x.codes(), x.scales(), x.base(), groups, count, rows.data());
      for (std::size_t i = used; i < rows.size(); ++i) ASSERT_EQ(rows[i], 77) << i;
      Aligned<std::int32_t> sums(256, 55);
      Atom::dot(y.codes(), y.scales(), y.base(), groups, rows.data(), count, sums.data());
      for (int r = 0; r < 16; ++r) {
        for (int i = 0; i < 16; ++i) {
          std::int64_t expected = 0;
          for (int k = 0; k < 128 * groups; ++k) expected += y.value(r, k) * x.value(i, k);
          ASSERT_EQ(sums[16 * r + i], i < count ? expected : 55)
              << "row " << r << " by " << i << " of " << count << ", " << groups << " groups";
        }
      }
    }
  }
}

TEST(PanelAtoms, DotIsTheIntegerSum) {
  for_each_panel_atom([](auto atom) {
    using Atom = decltype(atom);
    if constexpr (Atom::most_dot_rows > 0) {
      Stream random(7);
      for (const bool y_near : {false, true}) {
        for (const bool x_near : {false, true}) {
          SCOPED_TRACE(testing::Message() << "near: y " << y_near << ", x " << x_near);
          dot_rows<Atom>(y_near, x_near, random);
        }
      }
    }
  });
}

// The most groups that int32 is said to hold do not wrap, one more does; whatever an atom adds in
// between must wrap too, and no more.
TEST(PanelAtoms, MultiplyAtTheEdgeOfInt32) {
  for_each_panel_atom([](auto atom) {
    using Atom = decltype(atom);
    constexpr int most = static_cast<int>(Impl::most_groups_in_int32);
    static_assert(std::int64_t{most} * 128 * 96 * 96 <= 2147483647);
    static_assert((std::int64_t{most} + 1) * 128 * 96 * 96 > 2147483647);
    PanelInput input(most + 1);
    for (int r = 0; r < 16; ++r) {
      for (int b = 0; b < 4 * input.groups(); ++b) {
        input.scale(r, b) = 127 + 3;
        for (int j = 0; j < 16; ++j) input.byte(r, b, j) = r % 3 == 0 ? 0xFF : 0x77;
      }
    }
    Unpacked<Atom> y(input, true), x(input, false);
    Aligned<std::int32_t> sums(256);
    Atom::begin();
    const auto check = [&](std::int64_t groups) {
      for (int r = 0; r < 16; ++r) {
        for (int c = 0; c < 16; ++c) {
          const int sign = (r % 3 == 0) == (c % 3 == 0) ? 1 : -1;
          ASSERT_EQ(sums[16 * r + c], wrapped(sign * groups * 128 * 96 * 96)) << groups;
        }
      }
    };
    for (const int groups : {most, most + 1}) {
      Atom::multiply(sums.data(), 256, 256, y.data(), 0, x.data(), 0, 1, 1, groups, false, {});
      check(groups);
    }
    Atom::multiply(sums.data(), 256, 256, y.data(), 0, x.data(), 0, 1, 1, most, true, {});
    check(2 * most + 1);
    Atom::end();
  });
}

// Elements of x gathered from anywhere in a panel are a group.
TEST(PanelAtoms, GatheredElements) {
  for_each_panel_atom([](auto atom) {
    using Atom = decltype(atom);
    using element = typename Atom::element;
    constexpr int groups = 3;
    constexpr int size = Atom::panel_group_elements;
    Stream random(9);
    Aligned<std::int8_t> a(16 * 128), b(groups * 16 * 128);
    Aligned<element> y(size), x(groups * size), gathered(size);
    Aligned<std::int32_t> sums(256);
    Atom::begin();
    for (const int count : {128, 127, 70, 3, 1, 0}) {
      for (std::size_t i = 0; i < a.size(); ++i) a[i] = static_cast<std::int8_t>(random() % 97);
      for (std::size_t i = 0; i < b.size(); ++i) {
        b[i] = static_cast<std::int8_t>(static_cast<int>(random() % 193) - 96);
      }
      Atom::pack_y(a.data(), y.data());
      for (int g = 0; g < groups; ++g) {
        Atom::pack_x(b.data() + g * 16 * 128, x.data() + g * size);
      }
      std::vector<std::int32_t> positions;
      for (int i = 0; i < count; ++i) {
        positions.push_back(static_cast<std::int32_t>(random() % (128 * groups)));
      }
      Atom::gather_x(x.data(), positions.data(), count, gathered.data());
      Atom::multiply(sums.data(), 256, 256, y.data(), 0, gathered.data(), 0, 1, 1, 1, false, {});
      for (int r = 0; r < 16; ++r) {
        for (int c = 0; c < 16; ++c) {
          std::int64_t expected = 0;
          for (int i = 0; i < count; ++i) {
            const int g = positions[i] / 128, k = positions[i] % 128;
            expected += a[128 * r + i] * b[(16 * g + c) * 128 + k];
          }
          ASSERT_EQ(sums[16 * r + c], expected) << count << ": " << r << ", " << c;
        }
      }
    }
    Atom::end();
  });
}

// The rows that have something which is not near, from the definition.
TEST(PanelAtoms, FarRows) {
  for_each_panel_atom([](auto atom) {
    using Atom = decltype(atom);
    Stream random(10);
    int far = 0, none = 0;
    for (int trial = 0; trial < 3000; ++trial) {
      PanelInput input(1);
      std::uint8_t spread[64], mask[64];
      for (auto& byte : mask) {
        byte = static_cast<std::uint8_t>((random() % 4 != 0 ? 15 : 0) | (random() % 4 ? 240 : 0));
      }
      unsigned expected = 0;
      for (int r = 0; r < 16; ++r) {
        const int base = static_cast<int>(random() % 240);
        const int most = static_cast<int>(random() % 14);
        input.set_base(r, base);
        for (int b = 0; b < 4; ++b) {
          spread[4 * r + b] = static_cast<std::uint8_t>(most);
          input.scale(r, b) = static_cast<std::uint8_t>(
              std::clamp(base + static_cast<int>(random() % 18) - 2, 0, 255));
          for (int j = 0; j < 16; ++j) {
            // Zeros of both signs; seldom anything else.
            input.byte(r, b, j) = static_cast<std::uint8_t>(
                random() % 32 == 0 ? random() : 0x88 & static_cast<unsigned>(random()));
          }
          const int distance = input.scale(r, b) - base;
          if (distance < 4 || distance > most) continue;
          for (int i = 0; i < 32; ++i) {
            const int k = 4 * (i / 2) + b, nibble = i % 2 * 4;
            const int value = value_of(input.byte(r, b, i / 2) >> nibble & 15);
            const bool is_far = value != 0 && (distance > 6 || std::abs(value) << distance > 96);
            if (is_far && (mask[k] >> nibble & 15) != 0) expected |= 1u << r;
          }
        }
      }
      ASSERT_EQ(Atom::far_rows(input.codes(), input.scales(), input.base().scale, spread, mask),
                expected)
          << "trial " << trial;
      for (int r = 0; r < 16; ++r) ++((expected >> r & 1) != 0 ? far : none);
    }
    EXPECT_GE(far, 1000);
    EXPECT_GE(none, 1000);
  });
}

// Codes split into what is near and bands of the rest, from the definition.
TEST(PanelAtoms, SplitBands) {
  for_each_panel_atom([](auto atom) {
    using Atom = decltype(atom);
    Stream random(12);
    for (int trial = 0; trial < 2000; ++trial) {
      const int base = static_cast<int>(random() % 255), spread = static_cast<int>(random() % 255);
      std::uint8_t codes[128], scales[128], bands[128];
      std::int8_t values[128];
      for (int i = 0; i < 128; ++i) {
        codes[i] = static_cast<std::uint8_t>(random() % (trial % 4 == 0 ? 2 : 16));
        scales[i] = static_cast<std::uint8_t>(
            trial % 2 == 0 ? random()
                           : std::clamp(base + static_cast<int>(random() % 12) - 2, 0, 255));
      }
      bool any = false;
      const bool found = Atom::split_bands(codes, scales, base, spread, values, bands);
      for (int i = 0; i < 128; ++i) {
        const int distance = scales[i] - base;
        const bool inside = distance >= 0 && distance <= spread;
        const int value = inside ? value_of(codes[i]) : 0;
        const bool near = value == 0 || (distance <= 6 && std::abs(value) << distance <= 96);
        const int shift = value == 0 ? 0 : near ? distance : distance % 4;
        ASSERT_EQ(values[i], value * (1 << shift)) << "distance " << distance;
        ASSERT_EQ(bands[i], near ? 0 : distance / 4) << "distance " << distance;
        any = any || !near;
      }
      ASSERT_EQ(found, any);
    }
  });
}

// What a panel's rows ask for, from the definition: of summaries, and of scales of which those that
// are 0 do not count.
TEST(PanelAtoms, States) {
  for_each_panel_atom([](auto atom) {
    using Atom = decltype(atom);
    Stream random(14);
    int aligned = 0;
    for (int trial = 0; trial < 4000; ++trial) {
      const bool by_scales = trial % 2 == 0;
      const int groups = trial % 9, widest = trial % 8 == 7 ? 255 : 1 + trial % 8;
      std::vector<std::uint8_t> scales(static_cast<std::size_t>(groups) * 64 + 1);
      KokkosMX::RowSummary summaries[16] = {};
      int lo[16], hi[16];
      bool zero[16], nan[16];
      for (int r = 0; r < 16; ++r) {
        zero[r] = random() % 16 == 0 || (by_scales && groups == 0);
        nan[r] = !by_scales && trial % 3 == 0 && random() % 8 == 0;
        const int first = by_scales ? 1 : 0;
        lo[r] = first + static_cast<int>(random() % static_cast<unsigned>(255 - first));
        hi[r] = std::min(254, lo[r] + static_cast<int>(random() % static_cast<unsigned>(widest)));
        if (by_scales && groups > 0) {
          for (int i = 0; i < 4 * groups; ++i) {
            const int scale =
                random() % 4 == 0
                    ? 0
                    : lo[r] + static_cast<int>(random() % static_cast<unsigned>(hi[r] - lo[r] + 1));
            scales[size_of_index(1 + i / 4 * 64 + r * 4 + i % 4)] =
                static_cast<std::uint8_t>(zero[r] ? 0 : scale);
          }
          const int at = static_cast<int>(random() % static_cast<unsigned>(4 * groups));
          const auto place = [&](int i) -> std::uint8_t& {
            return scales[size_of_index(1 + i % (4 * groups) / 4 * 64 + r * 4 + i % 4)];
          };
          if (!zero[r]) {
            place(at) = static_cast<std::uint8_t>(lo[r]);
            place(at + 1) = static_cast<std::uint8_t>(hi[r]);
          }
        }
        if (zero[r]) lo[r] = hi[r] = 0;
        summaries[r].n = zero[r] ? 0 : random() | 1;
        summaries[r].lo = static_cast<std::uint8_t>(lo[r]);
        summaries[r].hi = static_cast<std::uint8_t>(hi[r]);
        summaries[r].has_nan = nan[r] ? 1 : 0;
      }
      Impl::PanelState state;
      if (by_scales) {
        Atom::state_of_scales(scales.data() + 1, groups, state);
      } else {
        Atom::state_of_summaries(summaries, state);
      }
      int least = 1000, largest = -1000, most = 0;
      bool all_aligned = true;
      for (int r = 0; r < 16; ++r) {
        const int spread = nan[r] ? 0 : hi[r] - lo[r], exponent = zero[r] ? -1 : lo[r] - 128;
        for (int b = 0; b < 4; ++b) {
          ASSERT_EQ(state.base.scale[4 * r + b], lo[r]);
          ASSERT_EQ(state.spread[4 * r + b], spread);
        }
        ASSERT_EQ(state.exponent[r], exponent);
        ASSERT_EQ(state.is_zero >> r & 1, zero[r] ? 1 : 0);
        ASSERT_EQ(state.has_nan >> r & 1, nan[r] ? 1 : 0);
        least = std::min(least, exponent);
        largest = std::max(largest, exponent);
        most = std::max(most, spread);
        all_aligned = all_aligned && spread < 4 && !nan[r];
      }
      ASSERT_EQ(state.least_exponent, least);
      ASSERT_EQ(state.largest_exponent, largest);
      ASSERT_EQ(state.most_spread, most);
      ASSERT_EQ(state.aligned, all_aligned);
      ASSERT_EQ(state.base.near, !all_aligned);
      aligned += all_aligned ? 1 : 0;
    }
    EXPECT_GE(aligned, 500);
    EXPECT_LE(aligned, 3500);
  });
}

// Sums are added where each row says, and wrap.
TEST(PanelAtoms, AddedRows) {
  for_each_panel_atom([](auto atom) {
    using Atom = decltype(atom);
    Stream random(16);
    for (int trial = 0; trial < 500; ++trial) {
      const int rows = trial % 17;
      std::int32_t sums[256], shifts[16];
      std::vector<std::int64_t> wide(17 * 20);
      for (auto& x : wide) x = static_cast<std::int64_t>(random());
      for (auto& x : sums) x = static_cast<std::int32_t>(random());
      std::vector<std::int64_t> expected = wide;
      std::int64_t* to[16];
      for (int r = 0; r < rows; ++r) {
        const int at = (r * 7 + trial) % 17 * 20 + r % 4;
        shifts[r] = static_cast<std::int32_t>(random() % 32);
        to[r] = wide.data() + at;
        for (int k = 0; k < 16; ++k) {
          auto& x = expected[size_of_index(at + k)];
          const auto sum = static_cast<std::uint64_t>(std::int64_t{sums[16 * r + k]});
          x = static_cast<std::int64_t>(static_cast<std::uint64_t>(x) + (sum << shifts[r]));
        }
      }
      Atom::add_rows(to, shifts, sums, rows);
      ASSERT_EQ(wide, expected) << rows << " rows";
    }
  });
}

// Numbers that are rounded to float32 already are stored as the sums that give them.
TEST(PanelAtoms, StoresRoundedNumbers) {
  for_each_panel_atom([](auto atom) {
    using Atom = decltype(atom);
    using Impl::Element;
    Stream random(17);
    for (int trial = 0; trial < 200; ++trial) {
      alignas(64) std::uint32_t numbers[256];
      for (auto& x : numbers) {
        x = static_cast<std::uint32_t>(random());
        if (random() % 4 == 0) x = random() % 2 == 0 ? 0x7FC00000u : 0x7F800000u;
        if ((x & 0x7FFFFFFFu) > 0x7F800000u) x = 0x7FC00000u;  // the library's only NaN
      }
      const int rows = 1 + trial % 16, cols = 1 + trial / 16 % 16;
      const bool transposed = trial % 2 != 0;
      const std::int32_t exponents[16] = {};
      for (const Element element : {Element::f32, Element::bf16, Element::f16}) {
        std::vector<unsigned char> c(16 * 20 * 4, 0xA5), expected = c;
        for (int i = 0; i < rows; ++i) {
          for (int j = 0; j < cols; ++j) {
            Impl::store_from_f32(element, expected.data(), 20 * i + j,
                                 numbers[transposed ? 16 * j + i : 16 * i + j]);
          }
        }
        Impl::PanelStore to{1,
                            {reinterpret_cast<const std::int32_t*>(numbers), nullptr},
                            transposed,
                            exponents,
                            {exponents, nullptr},
                            c.data(),
                            element,
                            20,
                            rows,
                            cols};
        to.rounded = true;
        Atom::store(to);
        ASSERT_EQ(c, expected) << rows << " x " << cols;
      }
    }
  });
}

/// Moves groups of codes as bytes say, and scales as Tile32x8's layout does.
template <class Atom>
void expect_copies() {
  Stream random(18);
  for (int trial = 0; trial < 300; ++trial) {
    const int count = trial % 20,
              from_block = trial % 3 == 0 ? 16 : 16 + static_cast<int>(trial % 50);
    std::vector<std::uint8_t> plain(size_of_index(count * 300 + 300)),
        woven(size_of_index(count * 70 + 64));
    for (auto& x : plain) x = static_cast<std::uint8_t>(random());
    std::vector<std::uint8_t> expected = woven;
    const auto plain_at = [&](int n, int b, int j) {
      return size_of_index(1 + n * 290 + b * from_block + j);
    };
    for (int n = 0; n < count; ++n) {
      for (int i = 0; i < 64; ++i) {
        expected[size_of_index(n * 69 + i)] = plain[plain_at(n, i % 4, i / 4)];
      }
    }
    Atom::template move<false, true>(
        {plain.data() + 1, from_block, 290, woven.data(), 1, 69, count});
    ASSERT_EQ(woven, expected);
    std::vector<std::uint8_t> back(plain.size(), 0xA5), expected_back = back;
    for (int n = 0; n < count; ++n) {
      for (int b = 0; b < 4; ++b) {
        for (int j = 0; j < 16; ++j) {
          expected_back[plain_at(n, b, j)] = plain[plain_at(n, b, j)];
        }
      }
    }
    Atom::template move<true, false>(
        {woven.data(), 1, 69, back.data() + 1, from_block, 290, count});
    ASSERT_EQ(back, expected_back);
  }
  for (int cols = 0; cols < 200; cols += 8) {
    const int stride = cols + cols % 3;
    std::vector<std::uint8_t> rows(size_of_index(32 * stride + 1)), tile(size_of_index(32 * cols));
    for (auto& x : rows) x = static_cast<std::uint8_t>(random());
    const std::int64_t moved =
        Atom::template move_scales<true>(rows.data(), stride, tile.data(), cols);
    ASSERT_LE(moved, cols);
    ASSERT_EQ(moved % 8, 0);
    std::vector<std::uint8_t> back(rows.size(), 0xA5);
    ASSERT_EQ(Atom::template move_scales<false>(back.data(), stride, tile.data(), cols), moved);
    for (int r = 0; r < 32; ++r) {
      for (int c = 0; c < stride; ++c) {
        const auto at = size_of_index(r * stride + c);
        ASSERT_EQ(back[at], c < moved ? rows[at] : 0xA5);
        if (c >= moved) continue;
        ASSERT_EQ(
            tile[size_of_index(c / 8 * 256 + c % 4 * 64 + r % 16 * 4 + c / 4 % 2 * 2 + r / 16)],
            rows[at]);
      }
    }
  }
  // Words of 16 rows, where those of a row lie together, and those of a column.
  for (int count = 0; count < 30; ++count) {
    const int row = 4 * count + count % 3, column = 64 + count % 5;
    std::vector<std::uint8_t> rows(size_of_index(16 * row + 1)),
        columns(size_of_index(count * column));
    for (auto& x : rows) x = static_cast<std::uint8_t>(random());
    std::vector<std::uint8_t> expected = columns, back(rows.size(), 0xA5), expected_back = back;
    const std::int64_t moved =
        Atom::move_words({rows.data() + 1, row, 4, columns.data(), 4, column, count});
    ASSERT_LE(moved, count);
    for (int r = 0; r < 16; ++r) {
      for (int i = 0; i < 4 * moved; ++i) {
        const auto at = size_of_index(1 + r * row + i);
        expected[size_of_index(i / 4 * column + 4 * r + i % 4)] = rows[at];
        expected_back[at] = rows[at];
      }
    }
    ASSERT_EQ(columns, expected);
    ASSERT_EQ(Atom::move_words({columns.data(), 4, column, back.data() + 1, row, 4, count}), moved);
    ASSERT_EQ(back, expected_back);
    // No such words.
    ASSERT_EQ(Atom::move_words({rows.data(), row, 4, back.data(), row, 4, count}), 0);
  }
}
TEST(CopyAtoms, MoveCodesAndScales) {
  std::set<std::string> names;
  for (const Impl::HostAtomsEntry& entry : Impl::all_host_atoms()) {
    if (!entry.runs) continue;
    Impl::with_host_atoms(entry.atoms, [&](auto atoms) {
      using Copy = typename decltype(atoms)::Copy;
      if (names.insert(Copy::name).second) expect_copies<Copy>();
    });
  }
}

// Joined limbs round as the sum of limbs does.
TEST(PanelAtoms, JoinedLimbs) {
  for_each_panel_atom([](auto atom) {
    using Atom = decltype(atom);
    Stream random(11);
    std::int64_t limbs[3][256], joined[3][256];
    std::int32_t level[256];
    int seen[3] = {};
    for (int trial = 0; trial < 400; ++trial) {
      const int count = 2 + trial % 2;
      for (int i = 0; i < 256; ++i) {
        for (int l = 0; l < count; ++l) {
          // Up to 59 bits and a sign, often few, often all ones or one bit.
          const int bits = static_cast<int>(random() % 60);
          auto limb = static_cast<std::int64_t>(random() & ((std::uint64_t{1} << bits) - 1));
          if (random() % 3 == 0) limb = std::int64_t{1} << bits;
          if (random() % 4 == 0) limb = 0;
          limbs[l][i] = random() % 2 == 0 ? limb : -limb;
        }
      }
      const int highest = Atom::join_limbs(
          Impl::LimbSums{{limbs[0], limbs[1], count == 3 ? limbs[2] : nullptr}}, joined, level);
      for (int i = 0; i < 256; ++i) {
        KokkosMXTest::ExactSum sum;
        for (int l = 0; l < count; ++l) sum.add(limbs[l][i], 32 * l);
        ASSERT_GE(level[i], 0);
        ASSERT_LE(level[i], highest);
        ++seen[level[i]];
        for (const int exponent : {-60, -150, -190, -240}) {
          const auto magnitude = sum.magnitude();
          const std::uint32_t expected =
              magnitude.is_zero() ? 0u
                                  : KokkosMXTest::round_to(KokkosMXTest::format_f32,
                                                           sum.is_negative(), magnitude, exponent);
          ASSERT_EQ(Impl::round_to_f32(joined[level[i]][i], exponent + 32 * level[i]), expected)
              << "trial " << trial << ": " << limbs[0][i] << ", " << limbs[1][i];
        }
      }
    }
    for (const int count : seen) EXPECT_GE(count, 1000);
  });
}

// Packed values are a group as unpacked codes are, all in an order of their own.
TEST(PanelAtoms, PackedValues) {
  for_each_panel_atom([](auto atom) {
    using Atom = decltype(atom);
    using element = typename Atom::element;
    Stream random(7);
    Aligned<std::int8_t> a(16 * 128), b(16 * 128);
    Aligned<element> y(Atom::panel_group_elements), x(Atom::panel_group_elements);
    Aligned<std::int32_t> sums(256);
    Atom::begin();
    for (int trial = 0; trial < 200; ++trial) {
      for (int i = 0; i < 16 * 128; ++i) {
        const auto value = [&] {
          if (trial < 2) return trial == 0 ? 96 : -96;
          // Few are not zero in odd trials: none is lost among others.
          if (trial % 2 == 1 && random() % 128 != 0) return 0;
          return static_cast<int>(random() % 193) - 96;
        };
        a[i] = static_cast<std::int8_t>(value());
        b[i] = static_cast<std::int8_t>(value());
      }
      Atom::pack_y(a.data(), y.data());
      Atom::pack_x(b.data(), x.data());
      Atom::multiply(sums.data(), 256, 256, y.data(), 0, x.data(), 0, 1, 1, 1, false, {});
      for (int r = 0; r < 16; ++r) {
        for (int c = 0; c < 16; ++c) {
          std::int64_t expected = 0;
          for (int k = 0; k < 128; ++k) expected += a[128 * r + k] * b[128 * c + k];
          ASSERT_EQ(sums[16 * r + c], expected) << "trial " << trial << ": " << r << ", " << c;
        }
      }
    }
    Atom::end();
  });
}

/// A rounding mode of the vector units, and whether subnormals are flushed, for its lifetime.
class FloatingPointMode {
 public:
  static constexpr int count = 8;
#if defined(__x86_64__)
  explicit FloatingPointMode(unsigned mode) : before_(_mm_getcsr()) {
    constexpr unsigned rounding = 0x6000, flush = 0x8040;  // FTZ and DAZ
    _mm_setcsr((before_ & ~(rounding | flush)) | mode % 4 << 13 | (mode / 4 != 0 ? flush : 0u));
  }
  ~FloatingPointMode() { _mm_setcsr(before_); }
#else
  explicit FloatingPointMode(unsigned) {}
#endif
  FloatingPointMode(const FloatingPointMode&) = delete;
  FloatingPointMode& operator=(const FloatingPointMode&) = delete;

 private:
  [[maybe_unused]] unsigned before_ = 0;
};

/// magnitude * 2^exponent lies exactly between two numbers of the format.
bool is_tie(const KokkosMXTest::Format& format, const KokkosMXTest::BigUnsigned& magnitude,
            int exponent) {
  if (magnitude.is_zero()) return false;
  const int drop = KokkosMXTest::dropped_bits(format, magnitude, exponent);
  return drop >= 1 && magnitude.bit(drop - 1) && magnitude.ones_below(drop - 1) == 0;
}

/// A panel of sums and what each becomes in the three element types.
struct StoreCase {
  static constexpr Impl::Element elements[3] = {Impl::Element::f32, Impl::Element::bf16,
                                                Impl::Element::f16};
  std::int32_t sum[16][16];
  std::int32_t row_exponent[16], col_exponent[16];
  std::uint32_t expected[3][16][16];
};

struct StoreTally {
  int f32_ties = 0, bf16_ties = 0, f16_ties = 0, f16_subnormal_ties = 0, f16_infinite = 0,
      bf16_infinite = 0, least = 0, largest = 0, zeros = 0;
};

/// A sum whose leading bit is bit `leading`, made to be hard to round.
std::int64_t hard_sum(int leading, Stream& random) {
  const std::int64_t one = std::int64_t{1} << leading;
  const std::int64_t any = one + static_cast<std::int64_t>(random() % static_cast<unsigned>(one));
  // Nothing below the first bit that this many bits leave no place for; then a tie, or next to one.
  constexpr int significands[5] = {24, 8, 11, 4, 1};
  const int drop = leading + 1 - significands[random() % 5];
  if (drop < 1 || random() % 8 == 0) return random() % 4 == 0 ? 2 * one - 1 : any;
  const std::int64_t tie = (any >> drop << drop) + (std::int64_t{1} << (drop - 1));
  const auto near = static_cast<std::int64_t>(random() % 4);
  return near == 3 ? any >> drop << drop : near == 2 ? tie - 1 : tie + near;
}

StoreCase store_case(int number, Stream& random, StoreTally& tally) {
  StoreCase x;
  // The two exponents' sums: at the ends of what any sum allows (-126 and 96), or beyond them,
  // where only large or only small sums are left in the normal range; or around those of f16.
  constexpr int lowest[8] = {-126, 96, -157, 88, -40, -24, -130, -8};
  constexpr int range[8] = {0, 0, 31, 39, 40, 10, 226, 24};
  const int least = lowest[number % 8], width = range[number % 8];
  const int half = least / 2 + static_cast<int>(random() % 41) - 20;
  for (int i = 0; i < 16; ++i) {
    const auto part = [&](int most) {
      return i == 0 ? most : static_cast<int>(random() % (static_cast<unsigned>(most) + 1));
    };
    x.row_exponent[i] = half + part(width / 2);
    x.col_exponent[i] = least - half + part(width - width / 2);
  }
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) {
      const int exponent = x.row_exponent[i] + x.col_exponent[j];
      const int first = std::max(0, -126 - exponent), last = std::min(30, 127 - exponent);
      std::int64_t sum = 0;
      if (first <= last && random() % 32 != 0) {
        const auto choice = static_cast<int>(random() % 4);
        const int leading = choice == 0 ? first
                            : choice == 1
                                ? last
                                : first + static_cast<int>(random() % unsigned(last - first + 1));
        sum = hard_sum(leading, random);
        if (exponent + last == 127 && last >= 23 && random() % 8 == 0) {
          sum = std::int64_t{0xFFFFFF} << (last - 23);
        }
      }
      if (random() % 2 == 0) sum = -sum;
      if (exponent >= -126 && exponent <= 96 && random() % 32 == 0) {
        sum = random() % 2 == 0 ? INT32_MIN : INT32_MAX;
      }
      KokkosMXTest::BigUnsigned magnitude;
      magnitude.add(static_cast<std::uint64_t>(sum < 0 ? -sum : sum), 0);
      const auto round = [&] {
        return KokkosMXTest::round_to(KokkosMXTest::format_f32, sum < 0, magnitude, exponent);
      };
      if ((round() & 0x7FFFFFFF) >= 0x7F800000) {  // rounded out of the range
        sum = 0;
        magnitude = {};
      }
      const std::uint32_t bits = round(), positive = bits & 0x7FFFFFFF;
      x.sum[i][j] = static_cast<std::int32_t>(sum);
      x.expected[0][i][j] = bits;
      x.expected[1][i][j] =
          KokkosMXTest::convert(KokkosMXTest::format_f32, KokkosMXTest::format_bf16, bits);
      x.expected[2][i][j] =
          KokkosMXTest::convert(KokkosMXTest::format_f32, KokkosMXTest::format_f16, bits);
      if (positive == 0) {
        ++tally.zeros;
        continue;
      }
      const KokkosMXTest::Decoded decoded = KokkosMXTest::decode(KokkosMXTest::format_f32, bits);
      KokkosMXTest::BigUnsigned rounded;
      rounded.add(decoded.magnitude, 0);
      tally.f32_ties += is_tie(KokkosMXTest::format_f32, magnitude, exponent);
      tally.bf16_ties += is_tie(KokkosMXTest::format_bf16, rounded, decoded.exponent);
      const bool f16_tie = is_tie(KokkosMXTest::format_f16, rounded, decoded.exponent);
      tally.f16_ties += f16_tie;
      tally.f16_subnormal_ties += f16_tie && (x.expected[2][i][j] & 0x7FFF) < 0x400;
      tally.bf16_infinite += (x.expected[1][i][j] & 0x7FFF) == 0x7F80;
      tally.f16_infinite += (x.expected[2][i][j] & 0x7FFF) == 0x7C00;
      tally.least += positive == 0x00800000;
      tally.largest += positive == 0x7F7FFFFF;
    }
  }
  return x;
}

TEST(PanelAtoms, StoreRoundsOnceToFloatAndOnceToTheElement) {
  Stream random(8);
  StoreTally tally;
  for (int number = 0; number < 256; ++number) {
    const StoreCase x = store_case(number, random, tally);
    // The second panel of a pair has the first one's columns in the opposite order.
    const int panels = 1 + number / 32 % 2;
    const int rows = 1 + number % 16;
    const int cols = 16 * (panels - 1) + 1 + (number / 16 + 5 * number) % 16;
    const std::int64_t row_stride = cols + (number / 8 % 3) * 7;
    const auto source = [](int j) { return j < 16 ? j : 31 - j; };
    Aligned<std::int32_t> sums(512), transposed_sums(512);
    Aligned<std::int32_t> col_exponent(32);
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 32; ++j) {
        sums[j / 16 * 256 + i * 16 + j % 16] = x.sum[i][source(j)];
        transposed_sums[j / 16 * 256 + j % 16 * 16 + i] = x.sum[i][source(j)];
        col_exponent[j] = x.col_exponent[source(j)];
      }
    }
    for (int e = 0; e < 3; ++e) {
      const std::size_t size = e == 0 ? 4 : 2;
      // At 64 bytes, at an element, and anywhere.
      const std::size_t offsets[] = {0, size, 1, 67};
      const std::size_t offset = offsets[number / 2 % 4];
      std::vector<unsigned char> before(offset + 16 * 64 * size);
      for (auto& byte : before) byte = static_cast<unsigned char>(random());
      std::vector<unsigned char> after = before;
      for (int i = 0; i < rows; ++i) {
        for (int j = 0; j < cols; ++j) {  // the low bytes come first
          std::memcpy(&after[offset + static_cast<std::size_t>(i * row_stride + j) * size],
                      &x.expected[e][i][source(j)], size);
        }
      }
      for_each_panel_atom([&](auto atom) {
        using Atom = decltype(atom);
        for (unsigned mode = 0; mode < FloatingPointMode::count; ++mode) {
          for (const bool transposed : {false, true}) {
            Aligned<unsigned char> c(before.size());
            std::copy(before.begin(), before.end(), c.data());
            const std::int32_t* from = transposed ? transposed_sums.data() : sums.data();
            const Impl::PanelStore to{panels,
                                      {from, from + 256},
                                      transposed,
                                      x.row_exponent,
                                      {col_exponent.data(), col_exponent.data() + 16},
                                      c.data() + offset,
                                      StoreCase::elements[e],
                                      row_stride,
                                      rows,
                                      cols};
            {
              const FloatingPointMode set(mode);
              Atom::store(to);
            }
            const auto differs = std::mismatch(after.begin(), after.end(), c.data());
            ASSERT_TRUE(differs.first == after.end())
                << "case " << number << ", " << rows << " x " << cols << ", element " << e
                << ", mode " << mode << ", transposed " << transposed << ": byte "
                << differs.first - after.begin() - static_cast<std::ptrdiff_t>(offset)
                << ", row stride " << row_stride;
          }
        }
      });
      if (HasFatalFailure()) return;
    }
  }
  std::cout << tally.f32_ties << " ties in f32, " << tally.bf16_ties << " in bf16, "
            << tally.f16_ties << " in f16, " << tally.f16_subnormal_ties << " of them subnormal, "
            << tally.bf16_infinite << " and " << tally.f16_infinite << " infinite in bf16 and f16, "
            << tally.least << " least and " << tally.largest << " largest normal floats, "
            << tally.zeros << " zeros" << std::endl;
  EXPECT_GE(tally.f32_ties, 1000);
  EXPECT_GE(tally.bf16_ties, 1000);
  EXPECT_GE(tally.f16_ties, 1000);
  EXPECT_GE(tally.f16_subnormal_ties, 100);
  EXPECT_GE(tally.bf16_infinite, 10);
  EXPECT_GE(tally.f16_infinite, 1000);
  EXPECT_GE(tally.least, 100);
  EXPECT_GE(tally.largest, 10);
  EXPECT_GE(tally.zeros, 1000);
}

// The formulas of quantizing are tested through the library against an oracle; here the atoms agree
// with one another on any bits, in every rule.

/// One set of host atoms for each quantize atom that can run here.
std::vector<Impl::HostAtoms> sets_of_quantize_atoms() {
  std::vector<Impl::HostAtoms> sets;
  std::set<std::string> names;
  for (const Impl::HostAtomsEntry& entry : Impl::all_host_atoms()) {
    if (!entry.runs) continue;
    Impl::with_host_atoms(entry.atoms, [&](auto atoms) {
      if (names.insert(decltype(atoms)::Quantize::name).second) sets.push_back(entry.atoms);
    });
  }
  return sets;
}

std::vector<KokkosMX::QuantizeRule> quantize_rules() {
  std::vector<KokkosMX::QuantizeRule> rules{KokkosMX::rules::reference};
  for (const auto mode : {KokkosMX::ScaleMode::floor, KokkosMX::ScaleMode::ceil,
                          KokkosMX::ScaleMode::rceil, KokkosMX::ScaleMode::even}) {
    for (const auto rounding : {KokkosMX::Rounding::nearest_even, KokkosMX::Rounding::ties_up}) {
      rules.emplace_back(mode, rounding, KokkosMX::NonFinite::ocp);
    }
  }
  return rules;
}

template <class Format>
void quantize_atoms_agree() {
  const std::vector<KokkosMX::QuantizeRule> rules = quantize_rules();
  const std::vector<Impl::HostAtoms> sets = sets_of_quantize_atoms();
  constexpr int bytes = 32 * static_cast<int>(sizeof(typename Format::bits));
  Stream random(2);
  for (int trial = 0; trial < 20000; ++trial) {
    unsigned char x[bytes + 1];
    for (auto& byte : x) byte = static_cast<unsigned char>(random());
    if (trial % 2 == 0) {  // a narrow range of exponents
      const auto exponent = static_cast<unsigned char>(random() & 0x7F);
      for (int i = static_cast<int>(sizeof(typename Format::bits)); i <= bytes;
           i += static_cast<int>(sizeof(typename Format::bits))) {
        x[i] = static_cast<unsigned char>((x[i] & 0x80) | exponent);
      }
    }
    for (const auto& rule : rules) {
      std::uint8_t expected[16];
      const auto result = Impl::PortableQuantizeAtom::quantize<Format>(x + 1, expected, rule);
      std::uint32_t squares = 0;
      for (int k = 0; k < 32; ++k) {
        const int m = magnitudes[expected[k / 2] >> (4 * (k % 2)) & 7];
        squares += static_cast<std::uint32_t>(m * m);
      }
      ASSERT_EQ(result.sum_of_squares, squares);
      const auto compare = [&](auto atom) {
        using Atom = decltype(atom);
        SCOPED_TRACE(Atom::name);
        std::uint8_t codes[16];
        const auto other = Atom::template quantize<Format>(x + 1, codes, rule);
        ASSERT_EQ(other.scale, result.scale);
        ASSERT_EQ(other.sum_of_squares, result.sum_of_squares);
        ASSERT_TRUE(std::equal(codes, codes + 16, expected));
        ASSERT_EQ(Atom::sum_of_squares(codes), squares);
        unsigned char dense[bytes], expected_dense[bytes];
        Atom::template dequantize<Format>(codes, result.scale, dense);
        Impl::PortableQuantizeAtom::dequantize<Format>(codes, result.scale, expected_dense);
        ASSERT_TRUE(std::equal(dense, dense + bytes, expected_dense));
      };
      for (const Impl::HostAtoms set : sets) {
        Impl::with_host_atoms(set,
                              [&](auto atoms) { compare(typename decltype(atoms)::Quantize{}); });
      }
    }
  }
}
TEST(Atoms, QuantizeAgree) {
  quantize_atoms_agree<Impl::F32Format>();
  quantize_atoms_agree<Impl::BF16Format>();
  quantize_atoms_agree<Impl::F16Format>();
}

TEST(Atoms, TheForcedAtomRuns) {
  const char* forced = std::getenv("KOKKOSMX_ATOM");
  const std::string runs = KokkosMX::gemm_atom(Kokkos::DefaultHostExecutionSpace());
  std::cout << "runs: " << runs << std::endl;
  if (forced != nullptr && *forced != '\0') {
    EXPECT_EQ(runs, forced);
  } else {
    std::string best;
    for_each_atoms([&](auto atoms) { best = decltype(atoms)::Gemm::name; });
    EXPECT_EQ(runs, best);
  }
}

// ctest runs the programs with each of these names: a set without a test, or a name that is none,
// would go unseen.
TEST(Atoms, EveryNameIsTested) {
  std::string names;
  for (const Impl::HostAtomsEntry& entry : Impl::all_host_atoms()) {
    names += (names.empty() ? "" : " ") + std::string(entry.name);
    std::cout << entry.name << (entry.runs ? ": runs here" : ": this machine cannot run it")
              << std::endl;
  }
#if KOKKOSMX_HAVE_X86_ATOMS
  EXPECT_EQ(names, KOKKOSMX_TESTED_ATOMS);
#else
  EXPECT_EQ(names, "portable");
#endif
}

TEST(ExactSum, ProductBelow) {
  Stream random(3);
  const auto check = [](std::uint64_t a, std::uint64_t b) {
    const auto product = static_cast<unsigned __int128>(a) * b;
    for (const int bits : {1, 31, 32, 33, 61, 62, 63, 64}) {
      ASSERT_EQ(Impl::product_below(a, b, bits),
                product < (static_cast<unsigned __int128>(1) << bits))
          << a << " * " << b << " < 2^" << bits;
    }
  };
  for (int i = 0; i < 200000; ++i) {
    const auto a = random() >> (random() % 64), b = random() >> (random() % 64);
    check(a, b);
  }
  for (int i = 0; i < 64; ++i) {
    for (int j = 0; j < 64; ++j) {
      for (int d = -1; d <= 1; ++d) {
        check((std::uint64_t{1} << i) + static_cast<std::uint64_t>(d), std::uint64_t{1} << j);
      }
    }
  }
  check(~std::uint64_t{0}, ~std::uint64_t{0});
  check(0, ~std::uint64_t{0});
}

TEST(ExactSum, BitsOfSum) {
  EXPECT_EQ(Impl::bits_of_sum(0), 0);
  for (std::int64_t blocks = 1; blocks < 100000; blocks = blocks * 3 / 2 + 1) {
    const std::int64_t largest = 144 * 32 * blocks;
    const int bits = Impl::bits_of_sum(blocks);
    EXPECT_LT(largest, std::int64_t{1} << bits);
    EXPECT_GE(largest, std::int64_t{1} << (bits - 1));
  }
}

TEST(ExactSum, WideSumRoundsOnce) {
  Stream random(4);
  for (int trial = 0; trial < 20000; ++trial) {
    Impl::WideSum sum;
    KokkosMXTest::ExactSum expected;
    const int terms = 1 + static_cast<int>(random() % 20);
    const int range = 1 + static_cast<int>(random() % 508);
    const int exponent = -256 + static_cast<int>(random() % (509u - static_cast<unsigned>(range)));
    std::vector<std::pair<int, int>> undo;
    for (int i = 0; i < terms; ++i) {
      const int term = static_cast<int>(random() % 9217) - 4608;
      const int shift = static_cast<int>(random() % static_cast<unsigned>(range + 1));
      sum.add(term, shift);
      expected.add(term, shift);
      undo.emplace_back(term, shift);
      if (random() % 8 == 0) sum.carry();
    }
    if (trial % 3 == 0) {  // cancel all but the smallest
      std::sort(undo.begin(), undo.end(), [](auto a, auto b) { return a.second < b.second; });
      for (std::size_t i = 1; i < undo.size(); ++i) {
        sum.add(-undo[i].first, undo[i].second);
        expected.add(-undo[i].first, undo[i].second);
      }
    }
    const auto magnitude = expected.magnitude();
    const std::uint32_t bits =
        magnitude.is_zero() ? 0u
                            : KokkosMXTest::round_to(KokkosMXTest::format_f32,
                                                     expected.is_negative(), magnitude, exponent);
    ASSERT_EQ(sum.round(exponent), bits) << "trial " << trial;
  }
}

TEST(Numbers, FloatOperationsAgainstTheOracle) {
  Stream random(5);
  const std::uint32_t special[] = {0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007FFFFF,
                                   0x00800000, 0x3F800000, 0xBF800000, 0x7F7FFFFF, 0xFF7FFFFF,
                                   0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001, 0x7F800001};
  const auto check = [](std::uint32_t x, std::uint32_t y) {
    ASSERT_EQ(Impl::multiply_f32(x, y), KokkosMXTest::multiply_f32(x, y))
        << std::hex << x << ' ' << y;
    ASSERT_EQ(Impl::add_f32(x, y), KokkosMXTest::add_f32(x, y)) << std::hex << x << ' ' << y;
  };
  for (const auto x : special) {
    for (const auto y : special) check(x, y);
  }
  for (int i = 0; i < 300000; ++i) {
    const auto x = static_cast<std::uint32_t>(random());
    auto y = static_cast<std::uint32_t>(random());
    // Near exponents, so that sums cancel; and near ties.
    if (i % 2 == 0) y = (x ^ 0x80000000u) + (y % 64u) * 0x00400000u + y % 3u;
    check(x, y);
    check(x, special[i % 15]);
  }
}

}  // namespace
