// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_PERF_BENCHMARK_MAIN_HPP
#define KOKKOSMX_PERF_BENCHMARK_MAIN_HPP

/// \file BenchmarkMain.hpp
/// Google Benchmark as the registry and reporter of measurements made by interleaved_medians: its
/// Time column is the median of one call, fenced at both ends.

#include <benchmark/benchmark.h>

#include <Kokkos_Core.hpp>

#include <cstddef>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "PerfSupport.hpp"

namespace KokkosMXPerf {

/// Time spent on each measured thing.
inline constexpr double benchmark_seconds = 0.25;

struct BenchmarkOptions {
  /// --large: also what takes minutes or much memory.
  bool large = false;
};

/// Registers body(exec, state) under a name. It measures once, calls report and adds counters.
template <class Body>
void add_benchmark(const std::string& name, const Body& body) {
  benchmark::RegisterBenchmark(name.c_str(),
                               [body](benchmark::State& state) {
                                 const Exec exec;
                                 body(exec, state);
                               })
      ->Iterations(1)
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

/// The one iteration took this long.
inline void report(benchmark::State& state, double seconds) {
  for (auto _ : state) state.SetIterationTime(seconds);
}

/// Reports f(), which moves so many bytes, beside Limit (ReadPass, CopyPass) over as many.
template <class Limit>
void report_bandwidth(const Exec& exec, benchmark::State& state, double bytes,
                      const std::function<void()>& f) {
  const Limit limit(exec, static_cast<std::size_t>(bytes));
  const std::vector<double> medians = interleaved_medians(exec, {f, limit}, benchmark_seconds);
  const double rate = bytes / medians[0], best = limit.bytes() / medians[1];
  report(state, medians[0]);
  state.counters["GB/s"] = 1e-9 * rate;
  state.counters[std::string(Limit::name) + "_GB/s"] = 1e-9 * best;
  state.counters[std::string("%") + Limit::name] = 100 * rate / best;
}

/// main(): initializes, lets add_all(options, exec) register, runs.
template <class AddAll>
int benchmark_main(int argc, char** argv, const AddAll& add_all) {
  try {
    const Kokkos::ScopeGuard kokkos(argc, argv);
    BenchmarkOptions options;
    std::vector<char*> arguments;
    for (int i = 0; i < argc; ++i) {
      if (std::strcmp(argv[i], "--large") == 0) {
        options.large = true;
      } else {
        arguments.push_back(argv[i]);
      }
    }
    int count = static_cast<int>(arguments.size());
    arguments.push_back(nullptr);
    benchmark::Initialize(&count, arguments.data());
    if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) {
      std::fprintf(stderr, "  --large   also what takes minutes or much memory\n");
      return 2;
    }
    const Exec exec;
    for (const auto& [name, value] : facts(exec)) benchmark::AddCustomContext(name, value);
    add_all(options, exec);
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argc > 0 ? argv[0] : "perf test", error.what());
    return 2;
  }
}

}  // namespace KokkosMXPerf

#endif
