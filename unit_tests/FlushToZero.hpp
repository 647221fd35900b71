// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_TEST_FLUSH_TO_ZERO_HPP
#define KOKKOSMX_TEST_FLUSH_TO_ZERO_HPP

/// \file FlushToZero.hpp
/// Flush-to-zero and denormals-are-zero on every thread of the pool, as a caller may have set them.

#include <Kokkos_Core.hpp>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <type_traits>

namespace KokkosMXTest {

namespace Impl {

/// Whether there is a way to set them: x86 and a host execution space.
template <class Exec>
inline constexpr bool can_flush_to_zero =
#if defined(__x86_64__)
    Kokkos::SpaceAccessibility<Exec, Kokkos::HostSpace>::accessible;
#else
    false;
#endif

/// f() on every thread that exec's kernels run on, the caller's first: of OpenMP's runtimes LLVM's
/// hands the caller's floating-point control to the others at each parallel region, GNU's lets each
/// thread keep its own.
template <class Exec, class F>
void on_every_thread(const Exec& exec, const F& f) {
  exec.fence();
  f();
#ifdef KOKKOS_ENABLE_OPENMP
  if constexpr (std::is_same_v<Exec, Kokkos::OpenMP>) {
#pragma omp parallel
    f();
  }
#endif
}

}  // namespace Impl

/// Sets both for its lifetime, then puts back what the caller's thread had.
template <class Exec>
class FlushToZero {
 public:
#if defined(__x86_64__)
  static constexpr unsigned both = 0x8040;  // MXCSR: FTZ is bit 15, DAZ bit 6

  explicit FlushToZero(const Exec& exec) : exec_(exec), before_(_mm_getcsr()) {
    const unsigned with = before_ | both;
    Impl::on_every_thread(exec_, [with] { _mm_setcsr(with); });
  }
  ~FlushToZero() {
    const unsigned before = before_;
    Impl::on_every_thread(exec_, [before] { _mm_setcsr(before); });
  }

  /// The number of a kernel's iterations that ran on a thread without both.
  static std::int64_t iterations_without(const Exec& exec) {
    std::int64_t without = 0;
    Kokkos::parallel_reduce(
        "KokkosMXTest: is flush-to-zero set", Kokkos::RangePolicy<Exec>(exec, 0, 1 << 16),
        [](int, std::int64_t& sum) { sum += (_mm_getcsr() & both) != both; }, without);
    return without;
  }
#else
  explicit FlushToZero(const Exec& exec) : exec_(exec) {}
  static std::int64_t iterations_without(const Exec&) { return 0; }
#endif
  FlushToZero(const FlushToZero&) = delete;
  FlushToZero& operator=(const FlushToZero&) = delete;

  static constexpr bool available() { return Impl::can_flush_to_zero<Exec>; }

 private:
  Exec exec_;
  [[maybe_unused]] unsigned before_ = 0;
};

}  // namespace KokkosMXTest

#endif
