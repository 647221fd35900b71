// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_PYTHON_RUNTIME_HPP
#define KOKKOSMX_PYTHON_RUNTIME_HPP

/// \file runtime.hpp
/// Kokkos inside a Python process: started by the first call, stopped at exit, one call at a time,
/// without the GIL, and usable in forked children.

#include <Python.h>

#include <KokkosMX/Workspace.hpp>

#include <Kokkos_Core.hpp>

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>

namespace KokkosMXPython {

using HostExec = Kokkos::DefaultHostExecutionSpace;
using DeviceExec = Kokkos::DefaultExecutionSpace;
inline constexpr bool has_device = !std::is_same_v<HostExec, DeviceExec>;

/// An execution space's instance and the workspace that its calls share: it only grows, so repeated
/// calls allocate nothing.
template <class Exec>
class Lane {
 public:
  const Exec& exec() const { return exec_; }
  /// At least so many bytes.
  KokkosMX::Workspace<typename Exec::memory_space> workspace(std::size_t bytes) {
    if (memory_.size() < bytes) {
      memory_ = {};
      memory_ =
          Memory(Kokkos::view_alloc("kokkosmx: workspace", Kokkos::WithoutInitializing), bytes);
    }
    return KokkosMX::Workspace(memory_);
  }

 private:
  using Memory = Kokkos::View<std::byte*, typename Exec::memory_space>;
  Exec exec_;
  Memory memory_;
};

/// The one runtime of the process.
class Runtime {
 public:
  static Runtime& get();

  /// Runs work where Kokkos runs, Kokkos being started, one call at a time: threads of Python take
  /// turns, since a product uses every core anyway. Call it without the GIL; work may throw.
  /// \throws std::runtime_error after the runtime has stopped.
  void run(const std::function<void()>& work);

  /// Stops Kokkos if it was started here, for good. What is under way ends first. Called without
  /// the GIL.
  void stop();

  /// Gives the GIL back for its lifetime. A thread that would want it again after the runtime has
  /// stopped sleeps for ever instead: only daemon threads are left by then, and Python, which is
  /// about to end, would end them by unwinding frames of C++, which ends the process.
  class WithoutGil {
   public:
    WithoutGil();
    ~WithoutGil();
    WithoutGil(const WithoutGil&) = delete;
    WithoutGil& operator=(const WithoutGil&) = delete;

   private:
    PyThreadState* state_;
  };

  /// Inside work.
  template <class Exec>
  Lane<Exec>& lane() {
    if constexpr (std::is_same_v<Exec, HostExec>) {
      return *host_;
    } else {
      return *device_;
    }
  }

 private:
  Runtime();
  void start();

  /// A thread of a forked child. libgomp's threads do not survive a fork, and the thread that
  /// forked would wait for them for ever; a new thread has threads of its own.
  class Worker;

  static void before_fork();
  static void after_fork_in_parent();
  static void after_fork_in_child();

  std::mutex mutex_;
  bool started_ = false, owns_kokkos_ = false, forked_ = false;
  std::atomic<bool> stopped_ = false;
  std::atomic<std::thread::id> stopper_;
  std::atomic<int> without_gil_ = 0;
  std::unique_ptr<Lane<HostExec>> host_;
  struct NoLane {};
  std::unique_ptr<std::conditional_t<has_device, Lane<DeviceExec>, NoLane>> device_;
  Worker* worker_ = nullptr;
};

}  // namespace KokkosMXPython

#endif
