// SPDX-License-Identifier: Apache-2.0

// Prepare.hpp: operands in the wrong layout, out of reach, or not writable.

#include "Operands.hpp"

using Plain = Matrix<RowMajor, RowMajor>;
using Prepared = Matrix<Tile16x128, Tile16x4>;

void layouts(const Exec& exec) {
  // expect: KokkosMX::prepare: the output's layouts are Tile16x128 and Tile16x4
  KokkosMX::prepare(exec, an<Plain>(), an<Matrix<Tile16x128, RowMajor>>());
  // expect: KokkosMX::unprepare: the input's layouts are Tile16x128 and Tile16x4
  KokkosMX::unprepare(exec, an<Matrix<RowMajor, Tile16x4>>(), an<Plain>());
}

void spaces(const Exec& exec) {
  // expect: KokkosMX: the first argument is an execution-space instance
  KokkosMX::prepare(an<Host>(), an<Plain>(), an<Prepared>());
  // expect: KokkosMX: the execution space cannot access the matrix that is read
  KokkosMX::prepare(exec, an<Matrix<RowMajor, RowMajor, FarSpace>>(), an<Prepared>());
  // expect: KokkosMX: the execution space cannot access the matrix that is written
  KokkosMX::prepare(exec, an<Plain>(), an<Matrix<Tile16x128, Tile16x4, FarSpace>>());
  // expect: KokkosMX: a Matrix of const bytes cannot be written
  KokkosMX::unprepare(exec, an<Prepared>(),
                      an<Matrix<RowMajor, RowMajor, Host, const std::uint8_t>>());
}
