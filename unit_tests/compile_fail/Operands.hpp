// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_COMPILE_FAIL_OPERANDS_HPP
#define KOKKOSMX_COMPILE_FAIL_OPERANDS_HPP

/// \file Operands.hpp
/// Operands that the sources beside this file use rightly and wrongly. None of it is ever run.

#include <KokkosMX.hpp>
#include <Kokkos_Core.hpp>

#include <cstddef>
#include <cstdint>

using Exec = Kokkos::DefaultHostExecutionSpace;
using Host = Kokkos::HostSpace;
using KokkosMX::RowMajor;
using KokkosMX::Tile16x128;
using KokkosMX::Tile16x16;
using KokkosMX::Tile16x4;
using KokkosMX::Tile32x8;

/// A memory space that the host's execution spaces cannot access.
struct FarSpace {
  using memory_space = FarSpace;
  using execution_space = Exec;
  using device_type = Kokkos::Device<execution_space, memory_space>;
  using size_type = std::size_t;
  static constexpr const char* name() { return "Far"; }
};

template <class T, class Layout = Kokkos::LayoutRight, class Space = Host>
using View = Kokkos::View<T, Layout, Space, Kokkos::MemoryTraits<Kokkos::Unmanaged>>;
template <class T>
using FarView = View<T, Kokkos::LayoutRight, FarSpace>;

template <class CodesLayout, class ScalesLayout, class Space = Host, class Byte = std::uint8_t>
using Matrix = KokkosMX::Matrix<CodesLayout, ScalesLayout, Space, Byte>;
template <class Layout, class Space = Host, class Byte = std::uint8_t>
using Codes = KokkosMX::Codes<Layout, Space, Byte>;
template <class Layout, class Space = Host, class Byte = std::uint8_t>
using Scales = KokkosMX::Scales<Layout, Space, Byte>;

/// An operand of any type.
template <class T>
const T& an();

inline constexpr KokkosMX::QuantizeRule rule = KokkosMX::rules::reference;

#endif
