// SPDX-License-Identifier: Apache-2.0

// Matrix.hpp and Types.hpp: codes, scales and summaries of Views that are none.

#include "Operands.hpp"

using Plain = Matrix<RowMajor, RowMajor>;
using Summaries = View<KokkosMX::RowSummary*>;

void codes_and_scales() {
  // expect: KokkosMX: codes and scales are bytes (std::uint8_t)
  (void)Codes<RowMajor>(an<View<std::int32_t**>>());
  // expect: KokkosMX: codes and scales have rank 2 (rows, bytes) or 3 (batch, rows, bytes)
  (void)Codes<RowMajor>(an<View<std::uint8_t*>>());
  // expect: KokkosMX: the bytes of a row of codes or scales are contiguous (LayoutRight, or LayoutStride with last stride 1)
  (void)Scales<RowMajor>(an<View<std::uint8_t**, Kokkos::LayoutLeft>>());
  // expect: KokkosMX: the View of codes or scales lies in another memory space
  (void)Codes<RowMajor>(an<FarView<std::uint8_t**>>());
  // expect: KokkosMX: a View of const codes or scales cannot be written
  (void)Scales<RowMajor>(an<View<const std::uint8_t**>>());
  // expect: KokkosMX: codes have the layout RowMajor, Tile16x16 or Tile16x128
  (void)sizeof(Codes<Tile32x8>);
  // expect: KokkosMX: scales have the layout RowMajor, Tile32x8 or Tile16x4
  (void)sizeof(Scales<Tile16x16>);
  // expect: KokkosMX: codes in Tile16x128 are made from a View, rows and K, which a padded View does not tell
  (void)Codes<Tile16x128>(an<View<std::uint8_t**>>());
  // expect: KokkosMX: rows and K are given for codes in Tile16x128 alone, the View tells those of others
  (void)Codes<Tile16x16>(an<View<std::uint8_t**>>(), 16, 64);
  // expect: KokkosMX: codes and scales are given as a Kokkos::View
  (void)KokkosMX::Impl::bytes_ref(an<int>());
  // expect: KokkosMX: a dense operand is a Kokkos::View
  (void)KokkosMX::Impl::dense_ref(an<int>());
}

void summaries(const Exec& exec) {
  const auto& codes = an<Codes<RowMajor>>();
  const auto& scales = an<Scales<RowMajor>>();
  // expect: KokkosMX: row summaries are a Kokkos::View of KokkosMX::RowSummary
  (void)Plain(codes, scales, an<View<std::uint64_t*>>());
  // expect: KokkosMX: row summaries have rank 1 (rows) or 2 (batch, rows)
  (void)Plain(codes, scales, an<View<KokkosMX::RowSummary***>>());
  // expect: KokkosMX::Matrix: the summaries lie in another memory space
  (void)Plain(codes, scales, an<FarView<KokkosMX::RowSummary*>>());
  // expect: KokkosMX::Matrix: a View of const summaries cannot be written
  (void)Plain(codes, scales, an<View<const KokkosMX::RowSummary*>>());
  // expect: KokkosMX::summarize: the first argument is an execution-space instance
  KokkosMX::summarize(an<Host>(), an<Plain>(), an<Summaries>());
  // expect: KokkosMX::summarize: the execution space cannot access the matrix
  KokkosMX::summarize(exec, an<Matrix<RowMajor, RowMajor, FarSpace>>(), an<Summaries>());
  // expect: KokkosMX::summarize: the execution space cannot access the summaries
  KokkosMX::summarize(exec, an<Plain>(), an<FarView<KokkosMX::RowSummary*>>());
  // expect: KokkosMX::summarize: a View of const summaries cannot be written
  KokkosMX::summarize(exec, an<Plain>(), an<View<const KokkosMX::RowSummary*>>());
}

void reinterpreted() {
  // expect: KokkosMX::reinterpret: the target is BFloat16 or Float16
  (void)KokkosMX::reinterpret<std::int16_t>(an<View<std::uint16_t**>>());
  // expect: KokkosMX::reinterpret: the View's elements do not have 2 bytes
  (void)KokkosMX::reinterpret<KokkosMX::BFloat16>(an<View<float**>>());
  // expect: KokkosMX::reinterpret: the View has rank 1, 2 or 3
  (void)KokkosMX::reinterpret<KokkosMX::Float16>(an<View<std::uint16_t****>>());
}
