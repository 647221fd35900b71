// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_HPP
#define KOKKOSMX_HPP

/// \file KokkosMX.hpp
/// Exact MXFP4 quantize, shuffle and GEMM as Kokkos kernels: the same bits on every machine.

#include <KokkosMX/Compare.hpp>
#include <KokkosMX/Gemm.hpp>
#include <KokkosMX/Matrix.hpp>
#include <KokkosMX/Prepare.hpp>
#include <KokkosMX/Quantize.hpp>
#include <KokkosMX/Shuffle.hpp>
#include <KokkosMX/Types.hpp>
#include <KokkosMX/Version.hpp>
#include <KokkosMX/Workspace.hpp>

#endif
