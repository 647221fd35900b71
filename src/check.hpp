// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_CHECK_HPP
#define KOKKOSMX_SRC_CHECK_HPP

/// \file check.hpp
/// Every test of a call's arguments, made on the host before anything is queued, and the maps that
/// kernels use, made of arguments that passed.

#include <KokkosMX/Gemm.hpp>
#include <KokkosMX/Matrix.hpp>
#include <KokkosMX/Types.hpp>

#include "operand.hpp"

#include <cstdint>
#include <string>
#include <vector>

namespace KokkosMX::Impl {

/// The memory of an operand: extents and strides in bytes, outermost first; the innermost bytes are
/// contiguous.
struct Region {
  std::string name;
  const void* data = nullptr;
  std::int64_t outer = 1, outer_stride = 0;
  std::int64_t middle = 1, middle_stride = 0;
  std::int64_t inner = 0;

  bool empty() const { return outer == 0 || middle == 0 || inner == 0; }
};

/// Collects what a call was given and, when something is wrong, says it all in one exception.
class Check {
 public:
  /// \throws std::logic_error where Kokkos is not initialized.
  explicit Check(const char* function);

  /// Tells of an operand; every message prints all that were told of.
  void tell(const std::string& name, const MatrixRef& matrix);
  void tell(const std::string& name, const DenseRef& dense);
  void tell(const std::string& name, const BytesRef& bytes);
  void tell(const std::string& text);

  /// \throws std::invalid_argument unless ok.
  void require(bool ok, const std::string& expected) const {
    if (!ok) fail(expected);
  }
  [[noreturn]] void fail(const std::string& expected) const;

  /// Dense rows of K elements, K a multiple of 32, contiguous, allocated.
  DenseMap dense_rows(const std::string& name, const DenseRef& dense) const;
  /// Codes and scales that agree, in layouts that can hold them, allocated.
  MatrixMap matrix(const std::string& name, const MatrixRef& matrix) const;
  CodesMap codes(const std::string& name, const BytesRef& codes, CodesKind kind) const;
  ScalesMap scales(const std::string& name, const BytesRef& scales, ScalesKind kind) const;

  /// No two of the output's elements share memory, and no output shares any with an input or with
  /// another output.
  void disjoint(const std::vector<Region>& outputs, const std::vector<Region>& inputs) const;

 private:
  void allocated(const std::string& name, const void* data, bool empty) const;
  void contiguous_rows(const std::string& name, std::int64_t cols, std::int64_t col_stride) const;

  std::string function_;
  std::string told_;
};

Region region_of(const std::string& name, const BytesRef& bytes);
Region region_of(const std::string& name, const DenseRef& dense);
Region region_of(const std::string& name, const SummariesRef& summaries);
/// All regions of a matrix: codes, scales and, where it has them, summaries.
std::vector<Region> regions_of(const std::string& name, const MatrixRef& matrix);

std::int64_t element_bytes(Element element);

}  // namespace KokkosMX::Impl

#endif
