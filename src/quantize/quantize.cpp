// SPDX-License-Identifier: Apache-2.0
#include "quantize.hpp"

#include <KokkosMX/Matrix.hpp>
#include <KokkosMX/Quantize.hpp>

#include "../check.hpp"
#include "../instantiate.hpp"

#include <Kokkos_Core.hpp>

#include <string>
#include <vector>

namespace KokkosMX::Impl {

template <class ExecSpace>
void quantize(const ExecSpace& exec, const DenseRef& x, const MatrixRef& q, QuantizeRule rule) {
  Check check("quantize");
  check.tell("x", x);
  check.tell("q", q);
  const DenseMap dense = check.dense_rows("x", x);
  const MatrixMap matrix = check.matrix("q", q);
  check.require(
      matrix.batch == x.batch && matrix.rows == x.rows && matrix.blocks * block_size == x.cols,
      "q to have the extents of x (batch, rows, K)");
  check.disjoint(regions_of("q", q), {region_of("x", x)});
  launch_quantize(exec, x.element, dense, matrix, rule);
}

template <class ExecSpace>
void dequantize(const ExecSpace& exec, const MatrixRef& q, const DenseRef& x) {
  Check check("dequantize");
  check.tell("q", q);
  check.tell("x", x);
  const DenseMap dense = check.dense_rows("x", x);
  const MatrixMap matrix = check.matrix("q", q);
  check.require(
      matrix.batch == x.batch && matrix.rows == x.rows && matrix.blocks * block_size == x.cols,
      "x to have the extents of q (batch, rows, K)");
  check.disjoint({region_of("x", x)}, regions_of("q", q));
  launch_dequantize(exec, matrix, x.element, dense);
}

template <class ExecSpace>
void summarize(const ExecSpace& exec, const MatrixRef& matrix_ref) {
  Check check("summarize");
  check.tell("matrix", matrix_ref);
  const MatrixMap matrix = check.matrix("matrix", matrix_ref);
  check.disjoint(
      {region_of("matrix summaries", matrix_ref.summaries)},
      {region_of("matrix codes", matrix_ref.codes), region_of("matrix scales", matrix_ref.scales)});
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
