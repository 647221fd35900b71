// SPDX-License-Identifier: Apache-2.0
#include "quantize.hpp"

#include <KokkosMX/Matrix.hpp>
#include <KokkosMX/Quantize.hpp>

#include "../check.hpp"
#include "../instantiate.hpp"

#include <Kokkos_Core.hpp>

namespace KokkosMX::Impl {

namespace {

/// A dense operand and a matrix of the same extents.
struct Pair {
  DenseMap dense;
  MatrixMap matrix;
};

Pair checked_pair(const Check& check, const DenseRef& x, const MatrixRef& q) {
  const Pair pair{check.dense_rows("x", x), check.matrix("q", q)};
  const MatrixMap& matrix = pair.matrix;
  check.require(
      matrix.batch == x.batch && matrix.rows == x.rows && matrix.blocks * block_size == x.cols,
      "x and q to have the same extents (batch, rows, K)");
  return pair;
}

}  // namespace

template <class ExecSpace>
void quantize(const ExecSpace& exec, const DenseRef& x, const MatrixRef& q, QuantizeRule rule) {
  Check check("quantize");
  check.tell("x", x);
  check.tell("q", q);
  const Pair pair = checked_pair(check, x, q);
  Regions outputs, inputs;
  outputs.add("q", q);
  inputs.add("x", x);
  check.disjoint(outputs, inputs);
  launch_quantize(exec, x.element, pair.dense, pair.matrix, rule);
}

template <class ExecSpace>
void dequantize(const ExecSpace& exec, const MatrixRef& q, const DenseRef& x) {
  Check check("dequantize");
  check.tell("q", q);
  check.tell("x", x);
  const Pair pair = checked_pair(check, x, q);
  Regions outputs, inputs;
  outputs.add("x", x);
  inputs.add("q", q);
  check.disjoint(outputs, inputs);
  launch_dequantize(exec, pair.matrix, x.element, pair.dense);
}

template <class ExecSpace>
void summarize(const ExecSpace& exec, const MatrixRef& matrix_ref) {
  Check check("summarize");
  check.tell("matrix", matrix_ref);
  const MatrixMap matrix = check.matrix("matrix", matrix_ref);
  Regions outputs, inputs;
  outputs.add(Name{"matrix", " summaries"}, matrix_ref.summaries);
  inputs.add(Name{"matrix", " codes"}, matrix_ref.codes);
  inputs.add(Name{"matrix", " scales"}, matrix_ref.scales);
  check.disjoint(outputs, inputs);
  launch_summarize(exec, matrix);
}

#define KOKKOSMX_INSTANTIATE(Space)                                                              \
  template KOKKOSMX_EXPORT void quantize<Space>(const Space&, const DenseRef&, const MatrixRef&, \
                                                QuantizeRule);                                   \
  template KOKKOSMX_EXPORT void dequantize<Space>(const Space&, const MatrixRef&,                \
                                                  const DenseRef&);                              \
  template KOKKOSMX_EXPORT void summarize<Space>(const Space&, const MatrixRef&);
KOKKOSMX_FOR_EACH_EXECUTION_SPACE(KOKKOSMX_INSTANTIATE)
#undef KOKKOSMX_INSTANTIATE

}  // namespace KokkosMX::Impl
