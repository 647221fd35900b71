// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_UNIT_TESTS_THREAD_GROUP_HPP
#define KOKKOSMX_UNIT_TESTS_THREAD_GROUP_HPP

// A group of a device's threads on a host, for bodies of launch.hpp that are written for one thread
// among others: every thread is one of the host's.

#include <barrier>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace KokkosMXTest {

template <int Threads>
class ThreadGroup {
 public:
  static constexpr bool is_serial = false;

  ThreadGroup(int rank, std::barrier<>& barrier) : rank_(rank), barrier_(&barrier) {}
  int rank() const { return rank_; }
  int size() const { return Threads; }
  void barrier() const { barrier_->arrive_and_wait(); }

  // The group whose thread calls this.
  static const ThreadGroup*& current() {
    static thread_local const ThreadGroup* group = nullptr;
    return group;
  }

 private:
  int rank_;
  std::barrier<>* barrier_;
};

// Runs a body for each item, one after the other. What it finds in its scratch memory is nothing.
template <class Body>
void run_in_threads(const Body& body, std::int64_t items) {
  using Group = ThreadGroup<Body::threads>;
  std::barrier<> barrier(Body::threads);
  const auto scratch = std::make_unique<typename Body::Scratch>();
  std::vector<std::thread> threads;
  for (int rank = 0; rank < Body::threads; ++rank) {
    threads.emplace_back([&, rank] {
      const Group group(rank, barrier);
      Group::current() = &group;
      for (std::int64_t item = 0; item < items; ++item) {
        body(group, *scratch, item);
        group.barrier();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace KokkosMXTest

#endif
