// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_CHECK_HPP
#define KOKKOSMX_SRC_CHECK_HPP

/// \file check.hpp
/// Every test of a call's arguments, made on the host before anything is queued, and the maps that
/// kernels use, made of arguments that passed. A call that passes allocates nothing: messages are
/// composed only when one is thrown.

#include <KokkosMX/Gemm.hpp>
#include <KokkosMX/Matrix.hpp>
#include <KokkosMX/Types.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "operand.hpp"

namespace KokkosMX::Impl {

/// The name of an argument, or of a part of one: "A", " codes".
struct Name {
  const char* argument;
  const char* part = "";
  std::string text() const { return std::string(argument) + part; }
};

struct Dimension {
  std::int64_t extent, stride;
};

/// The memory of an argument: elements of some bytes at all sums of strides (in bytes).
struct Region {
  Name name;
  const void* data;
  std::int64_t element_bytes;
  std::array<Dimension, 3> dims;
};

/// A few regions.
class Regions {
 public:
  void add(const Region& region) { regions_.at(count_++) = region; }
  void add(const char* name, const DenseRef& dense);
  void add(const Name& name, const BytesRef& bytes);
  void add(const Name& name, const SummariesRef& summaries);
  /// Codes, scales and, where it has them, summaries.
  void add(const char* name, const MatrixRef& matrix);
  /// One run of bytes.
  void add(const char* name, const void* data, std::int64_t bytes);

  const Region* begin() const { return regions_.data(); }
  const Region* end() const { return regions_.data() + count_; }

 private:
  std::array<Region, 8> regions_{};
  std::size_t count_ = 0;
};

/// Collects what a call was given and, when something is wrong, says it all in one exception.
class Check {
 public:
  /// \throws std::logic_error where Kokkos is not initialized.
  explicit Check(const char* function);

  /// Tells of an argument, which must outlive the check; every message prints all that were told
  /// of.
  void tell(const char* name, const MatrixRef& matrix);
  void tell(const char* name, const DenseRef& dense);
  void tell(const char* name, const BytesRef& bytes);
  /// A number: the extent of a bias, the bytes of a workspace.
  void tell(const char* name, std::int64_t number);

  /// \throws std::invalid_argument unless ok; expected() is the text that follows "expected ".
  template <class F>
  void require(bool ok, const F& expected) const {
    if (!ok) fail(expected());
  }
  void require(bool ok, const char* expected) const {
    if (!ok) fail(expected);
  }

  /// Dense rows of K elements, K a multiple of 32, contiguous, allocated.
  DenseMap dense_rows(const char* name, const DenseRef& dense) const;
  /// Codes and scales that agree, in layouts that can hold them, allocated.
  MatrixMap matrix(const char* name, const MatrixRef& matrix) const;
  /// rows, k: of the matrix, without padding.
  CodesMap codes(const Name& name, const BytesRef& codes, CodesKind kind, std::int64_t rows,
                 std::int64_t k) const;
  ScalesMap scales(const Name& name, const BytesRef& scales, ScalesKind kind) const;

  /// No two of an output's elements share memory, and no output shares any with an input or with
  /// another output.
  void disjoint(const Regions& outputs, const Regions& inputs) const;

 private:
  /// One argument: all but one of the pointers are null, or all of them.
  struct Told {
    const char* name;
    const MatrixRef* matrix;
    const DenseRef* dense;
    const BytesRef* bytes;
    std::int64_t number;
  };
  [[noreturn]] void fail(const std::string& expected) const;
  void allocated(const Name& name, const void* data, bool empty) const;
  void contiguous_rows(const Name& name, std::int64_t cols, std::int64_t col_stride) const;

  const char* function_;
  std::array<Told, 8> told_{};
  std::size_t told_count_ = 0;
};

std::int64_t element_bytes(Element element);

}  // namespace KokkosMX::Impl

#endif
