// SPDX-License-Identifier: Apache-2.0
#include "runtime.hpp"

#include <pthread.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <exception>
#include <stdexcept>
#include <thread>
#include <utility>

namespace KokkosMXPython {

class Runtime::Worker {
 public:
  Worker() : thread_([this] { loop(); }) { thread_.detach(); }

  void run(const std::function<void()>& work) {
    std::unique_lock lock(mutex_);
    work_ = &work;
    changed_.notify_all();
    changed_.wait(lock, [this] { return work_ == nullptr; });
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  void loop() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return work_ != nullptr; });
      try {
        (*work_)();
      } catch (...) {
        error_ = std::current_exception();
      }
      work_ = nullptr;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  const std::function<void()>* work_ = nullptr;
  std::exception_ptr error_;
  std::thread thread_;
};

Runtime& Runtime::get() {
  // Never destroyed: threads of Python may outlive the C++ program's static objects.
  static Runtime* const runtime = new Runtime;
  return *runtime;
}

Runtime::Runtime() { pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child); }

void Runtime::before_fork() { get().mutex_.lock(); }
void Runtime::after_fork_in_parent() { get().mutex_.unlock(); }
void Runtime::after_fork_in_child() {
  Runtime& runtime = get();
  runtime.forked_ = true;
  runtime.worker_ = nullptr;  // its thread is gone
  runtime.without_gil_ = 0;   // as are all threads but this one
  runtime.mutex_.unlock();
}

void Runtime::start() {
  if (started_) return;
  if (!Kokkos::is_initialized()) {
    // Kokkos would print advice on OMP_PROC_BIND.
    Kokkos::initialize(Kokkos::InitializationSettings().set_disable_warnings(true));
    owns_kokkos_ = true;
  }
  host_ = std::make_unique<Lane<HostExec>>();
  if constexpr (has_device) {
    device_ = std::make_unique<typename decltype(device_)::element_type>();
  }
  started_ = true;
}

void Runtime::run(const std::function<void()>& work) {
  const std::lock_guard lock(mutex_);
  if (stopped_) throw std::runtime_error("kokkosmx: the interpreter is shutting down");
  if (!forked_) {
    start();
    work();
    return;
  }
  if (worker_ == nullptr) worker_ = new Worker;
  worker_->run([&] {
    start();
    work();
  });
}

Runtime::WithoutGil::WithoutGil() {
  ++get().without_gil_;
  state_ = PyEval_SaveThread();
}

Runtime::WithoutGil::~WithoutGil() {
  Runtime& runtime = get();
  if (runtime.stopped_ && runtime.stopper_.load() != std::this_thread::get_id()) {
    --runtime.without_gil_;
    for (;;) pause();
  }
  PyEval_RestoreThread(state_);
  --runtime.without_gil_;
}

void Runtime::stop() {
  {
    const std::lock_guard lock(mutex_);
    if (stopped_) return;
    stopper_ = std::this_thread::get_id();
    stopped_ = true;
  }
  // Threads that saw it running get the GIL now, and after this none waits for it here.
  while (without_gil_ > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  const std::lock_guard lock(mutex_);
  if (!started_) return;
  const std::function<void()> end = [this] {
    host_.reset();
    device_.reset();
    if (owns_kokkos_ && !Kokkos::is_finalized()) Kokkos::finalize();
  };
  if (!forked_) {
    end();
    return;
  }
  if (worker_ == nullptr) worker_ = new Worker;
  worker_->run(end);
}

}  // namespace KokkosMXPython
