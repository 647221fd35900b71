// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_PERF_FLOAT_BLAS_HPP
#define KOKKOSMX_PERF_FLOAT_BLAS_HPP

/// \file FloatBlas.hpp
/// The baseline: KokkosBlas::gemm in float32 on the dequantized operands, if Kokkos-Kernels is
/// there.

#include <KokkosMX.hpp>

#include <string>

#include "PerfSupport.hpp"

#ifdef KOKKOSMX_HAVE_KOKKOSKERNELS
#include <KokkosBlas3_gemm.hpp>

#include <dlfcn.h>
#endif

namespace KokkosMXPerf {

/// C = A * B^T in float32; a (M, K) and b (N, K) are dequantized by the constructor.
class FloatBlas {
 public:
#ifdef KOKKOSMX_HAVE_KOKKOSKERNELS
  static constexpr bool available = true;

  template <class A, class B>
  FloatBlas(const Exec& exec, const A& a, const B& b)
      : exec_(exec),
        a_("KokkosMXPerf: dequantized A", a.rows(), a.cols()),
        b_("KokkosMXPerf: dequantized B", b.rows(), b.cols()),
        c_("KokkosMXPerf: float32 C", a.rows(), b.rows()) {
    KokkosMX::dequantize(exec, a, a_);
    KokkosMX::dequantize(exec, b, b_);
    exec.fence("KokkosMXPerf: dequantized");
  }
  void operator()() const { KokkosBlas::gemm(exec_, "N", "T", 1.0f, a_, b_, 0.0f, c_); }
  const Matrix2<float>& c() const { return c_; }

  /// What does the work, and on how many threads, where it can be asked.
  static std::string name() {
    // Looked up in the running program: Kokkos-Kernels may stand on another BLAS.
    const auto symbol = [](const char* function) { return dlsym(RTLD_DEFAULT, function); };
    const auto config = reinterpret_cast<char* (*)()>(symbol("openblas_get_config"));
    const auto threads = reinterpret_cast<int (*)()>(symbol("openblas_get_num_threads"));
    const auto parallel = reinterpret_cast<int (*)()>(symbol("openblas_get_parallel"));
    if (config == nullptr || threads == nullptr || parallel == nullptr) {
      return "KokkosBlas::gemm, float32";
    }
    return std::string("KokkosBlas::gemm, float32, on ") + config() + ", " +
           std::to_string(parallel() == 0 ? 1 : threads()) +
           (parallel() == 0 ? " thread (built without threads)" : " threads");
  }

 private:
  Exec exec_;
  Matrix2<float> a_, b_, c_;
#else
  static constexpr bool available = false;

  template <class A, class B>
  FloatBlas(const Exec&, const A&, const B&) {}
  void operator()() const {}
  static std::string name() { return "none (built without Kokkos-Kernels)"; }
#endif
};

}  // namespace KokkosMXPerf

#endif
