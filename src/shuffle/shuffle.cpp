// SPDX-License-Identifier: Apache-2.0
#include <KokkosMX/Shuffle.hpp>

#include "../check.hpp"
#include "../instantiate.hpp"
#include "../launch.hpp"
#include "../operand.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>
#include <string>

namespace KokkosMX::Impl {

namespace {

/// Threads of a team, on devices.
constexpr int copy_threads = 128;

/// Items are groups of 16 rows, the height of a tile of codes; a thread moves a column of blocks.
struct CopyCodes {
  CodesMap from, to;
  std::int64_t rows, blocks, groups;
  struct Scratch {};

  template <class Group>
  KOKKOS_FUNCTION void operator()(const Group& group, Scratch&, std::int64_t item) const {
    const std::int64_t batch = item / groups;
    const std::int64_t first = item % groups * 16;
    const std::int64_t height = rows - first < 16 ? rows - first : 16;
    for_each(group, blocks, [&](std::int64_t block) {
      for (std::int64_t row = first; row < first + height; ++row) {
        const std::uint8_t* source = from.at(batch, row, block);
        std::uint8_t* target = to.at(batch, row, block);
        std::uint8_t bytes[block_bytes];  // read whole, so that no store can be in the way
        for (int i = 0; i < block_bytes; ++i) bytes[i] = source[i];
        for (int i = 0; i < block_bytes; ++i) target[i] = bytes[i];
      }
    });
  }
};

/// Items are groups of 32 rows of the output, the height of a tile of scales; what lies outside the
/// matrix is padding, written with 0. A thread moves 8 columns.
struct CopyScales {
  ScalesMap from, to;
  std::int64_t rows, cols, groups;
  struct Scratch {};

  template <class Group>
  KOKKOS_FUNCTION void operator()(const Group& group, Scratch&, std::int64_t item) const {
    const std::int64_t batch = item / groups;
    const std::int64_t first = item % groups * 32;
    const std::int64_t height = to.rows - first < 32 ? to.rows - first : 32;
    for_each(group, (to.cols + 7) / 8, [&](std::int64_t i) {
      const std::int64_t end = 8 * i + 8 < to.cols ? 8 * i + 8 : to.cols;
      for (std::int64_t row = first; row < first + height; ++row) {
        for (std::int64_t col = 8 * i; col < end; ++col) {
          const bool inside = row < rows && col < cols;
          *to.at(batch, row, col) = inside ? *from.at(batch, row, col) : std::uint8_t{0};
        }
      }
    });
  }
};

/// A copy's name in messages, and its label.
struct CopyName {
  const char* function;
  std::string label;
};
const CopyName& name_of_copy(bool shuffling, bool codes) {
  static const CopyName names[2][2] = {{{"unshuffle_scale", "KokkosMX::unshuffle_scale"},
                                        {"unshuffle_weight", "KokkosMX::unshuffle_weight"}},
                                       {{"shuffle_scale", "KokkosMX::shuffle_scale"},
                                        {"shuffle_weight", "KokkosMX::shuffle_weight"}}};
  return names[shuffling ? 1 : 0][codes ? 1 : 0];
}

void check_disjoint(const Check& check, const BytesRef& from, const BytesRef& to) {
  Regions outputs, inputs;
  outputs.add(Name{"output"}, to);
  inputs.add(Name{"input"}, from);
  check.disjoint(outputs, inputs);
}

}  // namespace

template <class ExecSpace>
void copy_codes(const ExecSpace& exec, const BytesRef& from, CodesKind from_kind,
                const BytesRef& to, CodesKind to_kind) {
  const CopyName& name = name_of_copy(from_kind == CodesKind::row_major, true);
  Check check(name.function);
  check.tell("input", from);
  check.tell("output", to);
  check.require(from.batch == to.batch && from.rows == to.rows && from.cols == to.cols,
                "input and output to have the same extents (batch, rows, bytes)");
  const CodesMap source = check.codes({"input"}, from, from_kind);
  const CodesMap target = check.codes({"output"}, to, to_kind);
  check_disjoint(check, from, to);
  const std::int64_t groups = (from.rows + 15) / 16;
  launch(name.label, exec, from.batch * groups, copy_threads,
         CopyCodes{source, target, from.rows, from.cols / block_bytes, groups});
}

template <class ExecSpace>
void copy_scales(const ExecSpace& exec, const BytesRef& from, ScalesKind from_kind,
                 const BytesRef& to, ScalesKind to_kind) {
  // The row-major side tells the matrix's extents, the other follows from them.
  const bool shuffling = from_kind == ScalesKind::row_major;
  const CopyName& name = name_of_copy(shuffling, false);
  Check check(name.function);
  check.tell("input", from);
  check.tell("output", to);
  const BytesRef& plain = shuffling ? from : to;
  const BytesRef& tiled = shuffling ? to : from;
  const ScalesShape expected = scales_shape<Tile32x8>(plain.rows, block_size * plain.cols);
  check.require(
      tiled.batch == plain.batch && tiled.rows == expected.rows && tiled.cols == expected.cols,
      [&] {
        return std::string(shuffling ? "the output" : "the input") +
               " to have (batch, rows, cols) = (" + std::to_string(plain.batch) + ", " +
               std::to_string(expected.rows) + ", " + std::to_string(expected.cols) +
               "), rows padded to 256 and columns to 8";
      });
  const ScalesMap source = check.scales({"input"}, from, from_kind);
  const ScalesMap target = check.scales({"output"}, to, to_kind);
  check_disjoint(check, from, to);
  const std::int64_t groups = (to.rows + 31) / 32;
  launch(name.label, exec, plain.batch * groups, copy_threads,
         CopyScales{source, target, plain.rows, plain.cols, groups});
}

#define KOKKOSMX_INSTANTIATE(Space)                                                           \
  template KOKKOSMX_EXPORT void copy_codes<Space>(const Space&, const BytesRef&, CodesKind,   \
                                                  const BytesRef&, CodesKind);                \
  template KOKKOSMX_EXPORT void copy_scales<Space>(const Space&, const BytesRef&, ScalesKind, \
                                                   const BytesRef&, ScalesKind);
KOKKOSMX_FOR_EACH_EXECUTION_SPACE(KOKKOSMX_INSTANTIATE)
#undef KOKKOSMX_INSTANTIATE

}  // namespace KokkosMX::Impl
