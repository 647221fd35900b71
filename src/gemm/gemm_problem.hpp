// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_GEMM_PROBLEM_HPP
#define KOKKOSMX_SRC_GEMM_GEMM_PROBLEM_HPP

/// \file gemm_problem.hpp
/// What a kernel of tiles is given.

#include <KokkosMX/Types.hpp>

#include "../operand.hpp"
#include "epilogue.hpp"

#include <cstdint>

namespace KokkosMX::Impl {

/// A product whose arguments were checked. Matrices have summaries.
struct GemmProblem {
  MatrixMap a, b;
  Epilogue epilogue;
  std::int64_t batch, m, n, blocks;
  Tier minimum_tier;
  std::uint64_t* counts;  ///< null where nobody counts
};

}  // namespace KokkosMX::Impl

#endif
