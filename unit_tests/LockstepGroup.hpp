// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_UNIT_TESTS_LOCKSTEP_GROUP_HPP
#define KOKKOSMX_UNIT_TESTS_LOCKSTEP_GROUP_HPP

// A group of a device's threads on a host: the bodies of launch.hpp, written for all threads of a
// group at once, run here phase by phase, every thread in turn, in either order.

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

// Runs a body for each item.
template <class Body, bool Backwards = false>
void run_in_lockstep(const Body& body, std::int64_t items) {
  const auto scratch = std::make_unique<typename Body::Scratch>();
  for (std::int64_t item = 0; item < items; ++item) {
    body(LockstepGroup<Body::threads, Backwards>{}, *scratch, item);
  }
}

}  // namespace KokkosMXTest

#endif
