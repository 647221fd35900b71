// SPDX-License-Identifier: Apache-2.0

// Quantize.hpp: operands out of reach, of the wrong element, rank or layout, or not writable.

#include "Operands.hpp"

using Plain = Matrix<RowMajor, RowMajor>;

void spaces(const Exec& exec) {
  // expect: KokkosMX: the first argument is an execution-space instance
  KokkosMX::quantize(an<Host>(), an<View<float**>>(), an<Plain>(), rule);
  // expect: KokkosMX: the execution space cannot access the dense operand
  KokkosMX::quantize(exec, an<FarView<float**>>(), an<Plain>(), rule);
  // expect: KokkosMX: the execution space cannot access the matrix
  KokkosMX::dequantize(exec, an<Matrix<RowMajor, RowMajor, FarSpace>>(), an<View<float**>>());
}

void elements(const Exec& exec) {
  // expect: KokkosMX: dense elements are float, KokkosMX::BFloat16 or KokkosMX::Float16 (see KokkosMX::reinterpret for 2-byte types of others)
  KokkosMX::quantize(exec, an<View<std::uint16_t**>>(), an<Plain>(), rule);
  // expect: KokkosMX: a dense operand has rank 2 (rows, cols) or 3 (batch, rows, cols)
  KokkosMX::quantize(exec, an<View<float*>>(), an<Plain>(), rule);
  // expect: KokkosMX: the elements of a dense row are contiguous (LayoutRight, or LayoutStride with last stride 1)
  KokkosMX::quantize(exec, an<View<float**, Kokkos::LayoutLeft>>(), an<Plain>(), rule);
  // expect: KokkosMX::dequantize: a View of const elements cannot be written
  KokkosMX::dequantize(exec, an<Plain>(), an<View<const float**>>());
}
