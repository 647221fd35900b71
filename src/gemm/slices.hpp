// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_GEMM_SLICES_HPP
#define KOKKOSMX_SRC_GEMM_SLICES_HPP

/// \file slices.hpp
/// Products of few rows on CUDA: what the slice kernel is given, and its launch. The kernel is
/// compiled apart (slices.cpp), as it has many instances.

#include <KokkosMX/Types.hpp>

#include "../operand.hpp"
#include "epilogue.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>

namespace KokkosMX::Impl {

/// An operand: codes and scales in a layout whose blocks or groups lie together, or bf16.
struct SliceSide {
  MatrixMap matrix;
  DenseMap dense;
  bool is_dense;
  bool is_aligned;  ///< 16 bytes can be loaded at once
};

/// A product whose arguments were checked: x has fewer rows than y, or as many.
struct SliceProblem {
  SliceSide x, y;
  bool y_is_b;
  Epilogue epilogue;
  QuantizeRule rule;
  int batch, blocks, x_rows, y_rows;
  int sum_bits;
  Tier minimum_tier;
  std::uint64_t* counts;  ///< null where nobody counts
  bool is_plain_bf16;     ///< C is the product, converted
};

#ifdef KOKKOS_ENABLE_CUDA
/// Queues the product on exec. Neither allocates nor fences.
void launch_slices(const Kokkos::Cuda& exec, const SliceProblem& problem);
#endif

}  // namespace KokkosMX::Impl

#endif
