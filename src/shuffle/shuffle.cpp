// SPDX-License-Identifier: Apache-2.0
#include <KokkosMX/Shuffle.hpp>

#include "../check.hpp"
#include "../instantiate.hpp"
#include "copy.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>
#include <string>

namespace KokkosMX::Impl {

namespace {

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
  const CodesMap source = check.codes({"input"}, from, from_kind, from.rows, 2 * from.cols);
  const CodesMap target = check.codes({"output"}, to, to_kind, to.rows, 2 * to.cols);
  check_disjoint(check, from, to);
  with_copy_of_codes(from.batch, from.rows, from.cols / block_bytes, source, target,
                     [&](const auto& copy) { launch_copies(name.label, exec, copy); });
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
  with_copy_of_scales(plain.batch, plain.rows, plain.cols, source, from_kind, target, to_kind,
                      [&](const auto& copy) { launch_copies(name.label, exec, copy); });
}

#define KOKKOSMX_INSTANTIATE(Space)                                                           \
  template KOKKOSMX_EXPORT void copy_codes<Space>(const Space&, const BytesRef&, CodesKind,   \
                                                  const BytesRef&, CodesKind);                \
  template KOKKOSMX_EXPORT void copy_scales<Space>(const Space&, const BytesRef&, ScalesKind, \
                                                   const BytesRef&, ScalesKind);
KOKKOSMX_FOR_EACH_EXECUTION_SPACE(KOKKOSMX_INSTANTIATE)
#undef KOKKOSMX_INSTANTIATE

}  // namespace KokkosMX::Impl
