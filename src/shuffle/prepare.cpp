// SPDX-License-Identifier: Apache-2.0
#include <KokkosMX/Prepare.hpp>

#include "../check.hpp"
#include "../instantiate.hpp"
#include "../quantize/quantize.hpp"
#include "copy.hpp"

#include <Kokkos_Core.hpp>

#include <string>

namespace KokkosMX::Impl {

template <class ExecSpace>
void copy_matrix(const ExecSpace& exec, MatrixCopy which, const MatrixRef& from,
                 const MatrixRef& to) {
  const bool preparing = which == MatrixCopy::prepare;
  Check check(preparing ? "prepare" : "unprepare");
  check.tell("input", from);
  check.tell("output", to);
  const MatrixMap source = check.matrix("input", from), target = check.matrix("output", to);
  check.require(
      source.batch == target.batch && source.rows == target.rows && source.blocks == target.blocks,
      "input and output to have the same extents (batch, rows, K)");
  Regions outputs, inputs;
  outputs.add("output", to);
  inputs.add("input", from);
  check.disjoint(outputs, inputs);

  static const std::string labels[2] = {"KokkosMX::prepare", "KokkosMX::unprepare"};
  const std::string& label = labels[preparing ? 0 : 1];
  const bool sums = target.summaries.data != nullptr, given = source.summaries.data != nullptr;
  with_copy_of_codes(
      source.batch, source.rows, source.blocks, source.codes, target.codes, [&](const auto& codes) {
        with_copy_of_scales(
            source.batch, source.rows, source.blocks, source.scales, from.scales_kind,
            target.scales, to.scales_kind, [&](const auto& scales) {
              if (sums && given) {
                launch_copies(label, exec, codes, scales,
                              copy_of_summaries(source.batch, source.rows, source.summaries,
                                                target.summaries));
              } else {
                launch_copies(label, exec, codes, scales);
              }
            });
      });
  if (sums && !given) launch_summarize(exec, target);
}

#define KOKKOSMX_INSTANTIATE(Space)                                                            \
  template KOKKOSMX_EXPORT void copy_matrix<Space>(const Space&, MatrixCopy, const MatrixRef&, \
                                                   const MatrixRef&);
KOKKOSMX_FOR_EACH_EXECUTION_SPACE(KOKKOSMX_INSTANTIATE)
#undef KOKKOSMX_INSTANTIATE

}  // namespace KokkosMX::Impl
