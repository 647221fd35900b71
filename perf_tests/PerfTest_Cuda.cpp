// SPDX-License-Identifier: Apache-2.0
// What calls take on an NVIDIA GPU, inside captured graphs, interleaved with cuBLAS on the
// dequantized operands: the whole job, B prepared, both prepared, and quantizing alone; data with
// outliers against bell-shaped data. With an argument only one of these: shapes, outliers,
// quantize.

#include <KokkosMX.hpp>

#include <Kokkos_Core.hpp>

#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "PerfSupport.hpp"

namespace KokkosMXPerf {
namespace {

using KokkosMX::BFloat16;
constexpr auto rule = KokkosMX::rules::reference;

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}
void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw std::runtime_error(std::string(what) + ": " + cublasGetStatusString(status));
}

/// A call, captured `repeat` times into a graph, so that launching the graph weighs little.
class Graph {
 public:
  Graph(const Exec& exec, const std::function<void()>& call, int repeat)
      : stream_(exec.cuda_stream()), repeat_(repeat) {
    call();  // what a first call does besides
    exec.fence("KokkosMXPerf: before the capture");
    cudaGraph_t graph;
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capture");
    for (int i = 0; i < repeat; ++i) call();
    check(cudaStreamEndCapture(stream_, &graph), "end of the capture");
    check(cudaGraphInstantiate(&graph_, graph, 0), "graph");
    check(cudaGraphDestroy(graph), "graph");
    check(cudaEventCreate(&begin_), "event");
    check(cudaEventCreate(&end_), "event");
  }
  Graph(Graph&& other) noexcept
      : stream_(other.stream_),
        repeat_(other.repeat_),
        graph_(other.graph_),
        begin_(other.begin_),
        end_(other.end_) {
    other.graph_ = nullptr;
  }
  Graph& operator=(Graph&&) = delete;
  ~Graph() {
    if (graph_ == nullptr) return;
    cudaGraphExecDestroy(graph_);
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }

  /// Microseconds a call.
  double operator()() const {
    check(cudaEventRecord(begin_, stream_), "event");
    check(cudaGraphLaunch(graph_, stream_), "graph");
    check(cudaEventRecord(end_, stream_), "event");
    check(cudaEventSynchronize(end_), "event");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin_, end_), "event");
    return 1e3 * milliseconds / repeat_;
  }

 private:
  cudaStream_t stream_;
  int repeat_;
  cudaGraphExec_t graph_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

/// Median microseconds of each call. They take turns.
std::vector<double> graph_medians(const Exec& exec, const std::vector<std::function<void()>>& calls,
                                  int repeat) {
  constexpr int samples = 25;
  std::vector<Graph> graphs;
  for (const auto& call : calls) graphs.emplace_back(exec, call, repeat);
  std::vector<std::vector<double>> times(calls.size());
  for (int i = -2; i < samples; ++i) {
    for (std::size_t g = 0; g < graphs.size(); ++g) {
      const double time = graphs[g]();
      if (i >= 0) times[g].push_back(time);
    }
  }
  std::vector<double> medians;
  for (auto& each : times) medians.push_back(median(std::move(each)));
  return medians;
}

/// cuBLAS: C = A * B^T in bf16 with float32 sums, on the dequantized operands.
class CuBlas {
 public:
  explicit CuBlas(const Exec& exec) : workspace_("KokkosMXPerf: cuBLAS", std::size_t{64} << 20) {
    check(cublasCreate(&handle_), "cuBLAS");
    check(cublasSetStream(handle_, exec.cuda_stream()), "cuBLAS");
    check(cublasSetWorkspace(handle_, workspace_.data(), workspace_.size()), "cuBLAS");
  }
  CuBlas(const CuBlas&) = delete;
  CuBlas& operator=(const CuBlas&) = delete;
  ~CuBlas() { cublasDestroy(handle_); }

  void operator()(const Matrix2<BFloat16>& a, const Matrix2<BFloat16>& b,
                  const Matrix2<BFloat16>& c) const {
    const float one = 1, zero = 0;
    const int m = static_cast<int>(a.extent(0)), n = static_cast<int>(b.extent(0)),
              k = static_cast<int>(a.extent(1));
    check(cublasGemmEx(handle_, CUBLAS_OP_T, CUBLAS_OP_N, n, m, k, &one, b.data(), CUDA_R_16BF, k,
                       a.data(), CUDA_R_16BF, k, &zero, c.data(), CUDA_R_16BF, n,
                       CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
          "cublasGemmEx");
  }

 private:
  cublasHandle_t handle_;
  Bytes workspace_;
};

struct Times {
  double whole_job, prepared_b, prepared, cublas;
};

Times run_shape(const Exec& exec, const CuBlas& cublas, std::int64_t m, std::int64_t n,
                std::int64_t k) {
  const auto a = bell_bf16(m, k, 3), b = bell_bf16(n, k, 14);
  const PlainStorage aq = quantized(exec, a, rule), bq = quantized(exec, b, rule);
  const Matrix2<BFloat16> ad("A", m, k), bd("B", n, k), c("C", m, n), d("C of cuBLAS", m, n);
  KokkosMX::dequantize(exec, aq.matrix(), ad);
  KokkosMX::dequantize(exec, bq.matrix(), bd);
  // Without summaries: what they tell is made inside.
  const auto bare = [](const PlainStorage& x) {
    return KokkosMX::Matrix(x.matrix().codes(), x.matrix().scales());
  };
  const auto a_bare = bare(aq), b_bare = bare(bq);
  const Bytes job_memory("workspace", KokkosMX::quantize_gemm_workspace_size(exec, a, b, c));
  const Bytes b_memory("workspace",
                       KokkosMX::quantize_gemm_workspace_size(exec, a, bq.matrix(), c));
  const Bytes memory("workspace", KokkosMX::gemm_workspace_size(exec, a_bare, b_bare, c));
  exec.fence("KokkosMXPerf: operands");
  const std::vector<std::function<void()>> calls{
      [&] { KokkosMX::quantize_gemm(exec, KokkosMX::Workspace(job_memory), a, b, c, rule); },
      [&] {
        KokkosMX::quantize_gemm(exec, KokkosMX::Workspace(b_memory), a, bq.matrix(), c, rule);
      },
      [&] { KokkosMX::gemm(exec, KokkosMX::Workspace(memory), a_bare, b_bare, c); },
      [&] { cublas(ad, bd, d); }};
  const double flop =
      2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  const auto t = graph_medians(exec, calls, flop < 1e10 ? 20 : 2);
  return {t[0], t[1], t[2], t[3]};
}

void run_shapes(const Exec& exec, const CuBlas& cublas) {
  std::printf("%5s %5s %5s %12s %13s %12s %14s %9s %9s %9s\n", "M", "N", "K", "whole job us",
              "B prepared us", "prepared us", "cuBLAS bf16 us", "job/blas", "prepB/blas",
              "blas/prep");
  std::vector<double> jobs, prepared_b, blas;
  const std::vector<KokkosMXTest::LeaderboardRow> rows = KokkosMXTest::leaderboard();
  const auto print = [&](std::int64_t m, std::int64_t n, std::int64_t k) {
    const Times t = run_shape(exec, cublas, m, n, k);
    std::printf("%5lld %5lld %5lld %12.2f %13.2f %12.2f %14.2f %9.2f %9.2f %9.2f\n",
                static_cast<long long>(m), static_cast<long long>(n), static_cast<long long>(k),
                t.whole_job, t.prepared_b, t.prepared, t.cublas, t.whole_job / t.cublas,
                t.prepared_b / t.cublas, t.cublas / t.prepared);
    std::fflush(stdout);
    return t;
  };
  for (std::size_t i = rows.size() - 6; i < rows.size(); ++i) {
    const Times t = print(rows[i].m, rows[i].n, rows[i].k);
    jobs.push_back(t.whole_job);
    prepared_b.push_back(t.prepared_b);
    blas.push_back(t.cublas);
  }
  const double mean = geometric_mean(blas);
  std::printf(
      "geomean: whole job %.2f us (%.2f x cuBLAS bf16), B prepared %.2f us (%.2f x), cuBLAS "
      "bf16 %.2f us\n",
      geometric_mean(jobs), geometric_mean(jobs) / mean, geometric_mean(prepared_b),
      geometric_mean(prepared_b) / mean, mean);
  for (const std::int64_t size : {512, 1024, 2048, 4096, 8192}) print(size, size, size);
}

/// Quantizing alone, against a copy that moves as many bytes.
void run_quantize(const Exec& exec, cudaStream_t stream) {
  for (const std::int64_t size : {1024, 4096, 8192}) {
    const auto x = bell_bf16(size, size, 3);
    const PlainStorage q = quantized(exec, x, rule);
    const PreparedStorage p = prepared(exec, x, rule);
    const double bytes = static_cast<double>(size * size) * (2 + 0.5 + 1.0 / 32);
    const Bytes from("from", static_cast<std::size_t>(bytes / 2)), to("to", from.size());
    exec.fence("KokkosMXPerf: x");
    const auto t = graph_medians(exec,
                                 {[&] { KokkosMX::quantize(exec, x, q.matrix(), rule); },
                                  [&] { KokkosMX::quantize(exec, x, p.matrix(), rule); },
                                  [&] {
                                    check(cudaMemcpyAsync(to.data(), from.data(), from.size(),
                                                          cudaMemcpyDeviceToDevice, stream),
                                          "copy");
                                  }},
                                 size <= 1024 ? 20 : 4);
    std::printf(
        "quantize %lld x %lld: %.2f us, prepared layout %.2f us, copy of as many bytes %.2f "
        "us (%.2f TB/s): %.0f%%, %.0f%% of copy\n",
        static_cast<long long>(size), static_cast<long long>(size), t[0], t[1], t[2],
        1e-6 * bytes / t[2], 100 * t[2] / t[0], 100 * t[2] / t[1]);
  }
}

/// Both operands' codes and scales at hand: what outliers cost.
void run_outliers(const Exec& exec, std::int64_t size) {
  using Outliers = Data::Outliers;
  std::vector<Data> kinds{Data{}};
  for (const Outliers outliers : {Outliers::columns, Outliers::rows, Outliers::blocks}) {
    for (const int exponent : {9, 30}) kinds.push_back({outliers, exponent});
  }
  struct Operands {
    PlainStorage a, b;
  };
  std::vector<Operands> operands;
  std::vector<std::function<void()>> calls;
  const Matrix2<BFloat16> c("C", size, size);
  for (const Data& data : kinds) {
    operands.push_back({quantized(exec, dense(size, size, 3, data), rule),
                        quantized(exec, dense(size, size, 14, data), rule)});
  }
  const auto bare = [](const PlainStorage& x) {
    return KokkosMX::Matrix(x.matrix().codes(), x.matrix().scales());
  };
  const Bytes memory("workspace", KokkosMX::gemm_workspace_size(exec, bare(operands[0].a),
                                                                bare(operands[0].b), c));
  exec.fence("KokkosMXPerf: operands");
  for (const Operands& x : operands) {
    calls.push_back([&exec, &memory, &c, a = bare(x.a), b = bare(x.b)] {
      KokkosMX::gemm(exec, KokkosMX::Workspace(memory), a, b, c);
    });
  }
  const std::vector<double> times = graph_medians(exec, calls, 2);
  std::printf("%lld x %lld x %lld, both prepared, by data:\n", static_cast<long long>(size),
              static_cast<long long>(size), static_cast<long long>(size));
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    std::printf("%-26s %10.2f us, %.2f x bell\n", text(kinds[i]).c_str(), times[i],
                times[i] / times[0]);
  }
}

void run(const std::string& only) {
  const auto wanted = [&](const char* part) { return only.empty() || only == part; };
  cudaStream_t stream;
  check(cudaStreamCreate(&stream), "stream");
  {
    const Exec exec(stream);
    for (const auto& [name, value] : facts(exec)) {
      std::printf("%-9s %s\n", (name + ":").c_str(), value.c_str());
    }
    std::printf("%-9s %s\n", "device:", exec.cuda_device_prop().name);
    const CuBlas cublas(exec);
    if (wanted("shapes")) run_shapes(exec, cublas);
    if (wanted("outliers")) run_outliers(exec, 4096);
    if (wanted("quantize")) run_quantize(exec, stream);
  }
  check(cudaStreamDestroy(stream), "stream");
}

}  // namespace
}  // namespace KokkosMXPerf

int main(int argc, char** argv) {
  try {
    const Kokkos::ScopeGuard kokkos(argc, argv);
    KokkosMXPerf::run(argc > 1 ? argv[1] : "");
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "PerfTest_Cuda: %s\n", error.what());
    return 2;
  }
}
