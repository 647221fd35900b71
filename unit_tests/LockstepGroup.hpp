// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_UNIT_TESTS_LOCKSTEP_GROUP_HPP
#define KOKKOSMX_UNIT_TESTS_LOCKSTEP_GROUP_HPP

// A group of a device's threads on a host: the bodies of launch.hpp, written for all threads of a
// group at once, run here phase by phase, every thread in turn, in either order.

#include <Kokkos_Core.hpp>

#include <cstdint>
#include <memory>
#include <type_traits>

namespace KokkosMXTest {

template <int Threads, bool Backwards = false>
struct LockstepGroup {
  static constexpr bool is_serial = false;

  // On the heap: 256 threads' registers.
  template <class T>
  class PerThread {
   public:
    PerThread() : values_(new T[Threads]()) {}
    PerThread(const PerThread&) = delete;
    PerThread& operator=(const PerThread&) = delete;
    T& operator[](int thread) { return values_[thread]; }
    const T& operator[](int thread) const { return values_[thread]; }

   private:
    std::unique_ptr<T[]> values_;
  };
  template <class F>
  void each(const F& f) const {
    for (int i = 0; i < Threads; ++i) f(Backwards ? Threads - 1 - i : i);
  }
  template <int Lanes, class F>
  void waves(const F& f) const {
    for (int first = 0; first < Threads; first += Lanes) f(first);
  }
  void barrier() const {}
};

// Runs a body for each item; several items at once, as devices do.
template <class Body, bool Backwards = false>
void run_in_lockstep(const Body& body, std::int64_t items) {
  using Host = Kokkos::DefaultHostExecutionSpace;
  const Host host;
  Kokkos::parallel_for(
      "KokkosMXTest: in lockstep",
      Kokkos::RangePolicy<Host, Kokkos::Schedule<Kokkos::Dynamic>, Kokkos::IndexType<std::int64_t>>(
          host, 0, items, Kokkos::ChunkSize(1)),
      [&](std::int64_t item) {
        thread_local const auto scratch = std::make_unique<typename Body::Scratch>();
        body(LockstepGroup<Body::threads, Backwards>{}, *scratch, item);
      });
  host.fence("KokkosMXTest: in lockstep");
}

}  // namespace KokkosMXTest

#endif
