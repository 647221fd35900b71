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
/// allocated) and items are dealt out dynamically. On devices a group is a Kokkos team, its scratch
/// is team scratch memory.

#include <Kokkos_Core.hpp>

#include <cstdint>
#include <string>
#include <type_traits>

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

/// One thread.
struct SerialGroup {
  static constexpr bool is_serial = true;
  KOKKOS_INLINE_FUNCTION int rank() const { return 0; }
  KOKKOS_INLINE_FUNCTION int size() const { return 1; }
  KOKKOS_INLINE_FUNCTION void barrier() const {}
};

/// A Kokkos team.
template <class Member>
struct TeamGroup {
  static constexpr bool is_serial = false;
  const Member& member;
  KOKKOS_INLINE_FUNCTION int rank() const { return member.team_rank(); }
  KOKKOS_INLINE_FUNCTION int size() const { return member.team_size(); }
  KOKKOS_INLINE_FUNCTION void barrier() const { member.team_barrier(); }
};

/// Calls f(i) for i in [0, count), dealt out over the group's threads. No barrier.
template <class Group, class F>
KOKKOS_INLINE_FUNCTION void for_each(const Group& group, std::int64_t count, const F& f) {
  for (std::int64_t i = group.rank(); i < count; i += group.size()) f(i);
}

template <class Body>
struct HostLaunch {
  Body body;
  void operator()(std::int64_t item) const {
    alignas(64) typename Body::Scratch scratch;
    body(SerialGroup{}, scratch, item);
  }
};

template <class Body, class Policy>
struct TeamLaunch {
  Body body;
  std::int64_t items;
  using Member = typename Policy::member_type;
  static constexpr int scratch_bytes = static_cast<int>(sizeof(typename Body::Scratch)) + 64;
  KOKKOS_INLINE_FUNCTION void operator()(const Member& member) const {
    constexpr int bytes = scratch_bytes;
    auto address = reinterpret_cast<std::uintptr_t>(member.team_scratch(0).get_shmem(bytes));
    address = (address + 63) / 64 * 64;
    auto& scratch = *reinterpret_cast<typename Body::Scratch*>(address);
    const TeamGroup<Member> group{member};
    for (std::int64_t item = member.league_rank(); item < items; item += member.league_size()) {
      body(group, scratch, item);
      member.team_barrier();
    }
  }
};

/// Runs body for each item in [0, items), asynchronously on exec; neither allocates nor fences (the
/// label is a string already, since making one would allocate).
template <class ExecSpace, class Body>
void launch(const std::string& label, const ExecSpace& exec, std::int64_t items, int team_size,
            const Body& body) {
  if (items <= 0) return;
  if constexpr (is_host_space_v<ExecSpace>) {
    using Policy = Kokkos::RangePolicy<ExecSpace, Kokkos::Schedule<Kokkos::Dynamic>,
                                       Kokkos::IndexType<std::int64_t>>;
    Kokkos::parallel_for(label, Policy(exec, 0, items, Kokkos::ChunkSize(1)),
                         HostLaunch<Body>{body});
  } else {
    using Policy = Kokkos::TeamPolicy<ExecSpace>;
    using Functor = TeamLaunch<Body, Policy>;
    constexpr std::int64_t most = std::int64_t{1} << 30;
    Policy policy(exec, static_cast<int>(items < most ? items : most), team_size);
    policy.set_scratch_size(0, Kokkos::PerTeam(Functor::scratch_bytes));
    Kokkos::parallel_for(label, policy, Functor{body, items});
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
