// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_SRC_LAUNCH_HPP
#define KOKKOSMX_SRC_LAUNCH_HPP

/// \file launch.hpp
/// A kernel is a body that a group of threads runs once for each item:
///
///   struct Body {
///     struct Scratch { ... };                    // what a group shares while it does one item
///     template <class Group>
///     KOKKOS_FUNCTION void operator()(const Group& group, Scratch& scratch, std::int64_t item)
///     const;
///   };
///
/// On hosts a group is one thread, its scratch lies on that thread's stack (so nothing is
/// allocated) and items are dealt out dynamically. On devices a group is a block of threads, its
/// scratch is their shared memory.

#include "atoms/device_launch.hpp"

#include <Kokkos_Core.hpp>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace KokkosMX::Impl {

template <class ExecSpace>
inline constexpr bool is_host_space_v =
    std::is_same_v<typename ExecSpace::memory_space, Kokkos::HostSpace>;

/// How many threads an instance has.
template <class ExecSpace>
std::int64_t concurrency_of(const ExecSpace& exec) {
  // Where Kokkos still has it as a static function, calling that without the instance makes one.
  if constexpr (requires { ExecSpace::concurrency(exec); }) {
    return ExecSpace::concurrency(exec);
  } else {
    return exec.concurrency();
  }
}

/// How many threads a group has on devices, known when its kernel is compiled: the compiler gives
/// them no more registers than so many threads leave.
template <int N>
using Threads = std::integral_constant<int, N>;
template <int N>
inline constexpr Threads<N> threads{};

/// One thread.
struct SerialGroup {
  static constexpr bool is_serial = true;
  KOKKOS_INLINE_FUNCTION int rank() const { return 0; }
  KOKKOS_INLINE_FUNCTION int size() const { return 1; }
  KOKKOS_INLINE_FUNCTION void barrier() const {}
};

/// Calls f(0) ... f(N - 1), the numbers as std::integral_constant: a loop without a counter, whose
/// arrays stay in registers.
template <class F, int... I>
KOKKOS_FORCEINLINE_FUNCTION void unrolled(const F& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int N, class F>
KOKKOS_FORCEINLINE_FUNCTION void unrolled(const F& f) {
  unrolled(f, std::make_integer_sequence<int, N>{});
}

/// Calls f(i) for i in [0, count), dealt out over the group's threads. No barrier.
template <class Group, class F>
KOKKOS_INLINE_FUNCTION void for_each(const Group& group, std::int64_t count, const F& f) {
  for (std::int64_t i = group.rank(); i < count; i += group.size()) f(i);
}

/// Quotient and remainder of an item. To divide numbers of 64 bits takes devices a hundred
/// instructions: their items have 32, which launch() sees to, and so have parts of their number.
struct Divided {
  std::int64_t quotient, remainder;
};
template <class Group>
KOKKOS_INLINE_FUNCTION Divided divided(const Group&, std::int64_t item, std::int64_t by) {
  if constexpr (Group::is_serial) {
    return {item / by, item % by};
  } else {
    const auto x = static_cast<std::uint32_t>(item), y = static_cast<std::uint32_t>(by);
    return {x / y, x % y};
  }
}

template <class Body>
struct HostLaunch {
  Body body;
  void operator()(std::int64_t item) const {
    alignas(64) typename Body::Scratch scratch;
    body(SerialGroup{}, scratch, item);
  }
};

/// How many groups a compute unit shall hold at once, which bounds the registers of their threads:
/// Body::groups_together, or 1.
template <class Body>
inline constexpr int groups_together = 1;
template <class Body>
requires requires { Body::groups_together; }
inline constexpr int groups_together<Body> = Body::groups_together;

/// Runs body for each item in [0, items), asynchronously on exec; neither allocates nor fences (the
/// label is a string already, since making one would allocate).
/// \throws std::invalid_argument for 2^32 items or more on devices, which no memory holds.
template <class ExecSpace, int N, class Body>
void launch(const std::string& label, const ExecSpace& exec, std::int64_t items, Threads<N>,
            const Body& body) {
  if (items <= 0) return;
  if constexpr (is_host_space_v<ExecSpace>) {
    using Policy = Kokkos::RangePolicy<ExecSpace, Kokkos::Schedule<Kokkos::Dynamic>,
                                       Kokkos::IndexType<std::int64_t>>;
    Kokkos::parallel_for(label, Policy(exec, 0, items, Kokkos::ChunkSize(1)),
                         HostLaunch<Body>{body});
  } else {
    if (items >> 32 != 0) {
      throw std::invalid_argument(label + ": 2^32 groups of threads or more, which devices lack");
    }
    constexpr std::int64_t most = std::int64_t{1} << 30;
    for (std::int64_t first = 0; first < items; first += most) {
      const std::int64_t left = items - first;
      launch_groups<N, groups_together<Body>>(label, exec, first,
                                              static_cast<int>(left < most ? left : most), body);
    }
  }
}

/// Runs body(worker) for each of a host's workers, the same one by the same thread every time. As
/// above; the chunk is given, since Kokkos allocates where it has to find one.
template <class ExecSpace, class Body>
void launch_workers(const std::string& label, const ExecSpace& exec, std::int64_t workers,
                    const Body& body) {
  using Policy = Kokkos::RangePolicy<ExecSpace, Kokkos::Schedule<Kokkos::Static>,
                                     Kokkos::IndexType<std::int64_t>>;
  Kokkos::parallel_for(label, Policy(exec, 0, workers, Kokkos::ChunkSize(1)), body);
}

}  // namespace KokkosMX::Impl

#endif
