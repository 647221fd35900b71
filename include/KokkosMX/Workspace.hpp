// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_WORKSPACE_HPP
#define KOKKOSMX_WORKSPACE_HPP

/// \file Workspace.hpp
/// Memory that a caller lends to a call, so that the call neither allocates nor fences.

#include <Kokkos_Core.hpp>

#include <cstddef>
#include <type_traits>

namespace KokkosMX {

/// Bytes in the execution space's memory, held by the caller for as long as the call's work is
/// under way. Any alignment. What they hold before is not read, what they hold after means nothing;
/// one workspace serves one call at a time. `gemm_workspace_size(...)` and
/// `quantize_gemm_workspace_size(...)` tell how many bytes a call needs.
template <class MemorySpace>
class Workspace {
 public:
  using memory_space = MemorySpace;

  /// No bytes: enough where the size needed is 0.
  Workspace() = default;
  /// The memory of a contiguous View of rank 1. Does not own it.
  template <class View>
  requires Kokkos::is_view_v<View>
  explicit Workspace(const View& view)
      : data_(view.data()), bytes_(view.extent(0) * sizeof(typename View::value_type)) {
    static_assert(View::rank() == 1 && !std::is_const_v<typename View::value_type> &&
                      !std::is_same_v<typename View::array_layout, Kokkos::LayoutStride>,
                  "KokkosMX::Workspace: the View has rank 1, is contiguous and writable");
    static_assert(Kokkos::SpaceAccessibility<MemorySpace, typename View::memory_space>::accessible,
                  "KokkosMX::Workspace: the View lies in another memory space");
  }
  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};
template <class View>
Workspace(const View&) -> Workspace<typename View::memory_space>;

}  // namespace KokkosMX

#endif
