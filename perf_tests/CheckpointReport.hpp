// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_PERF_CHECKPOINT_REPORT_HPP
#define KOKKOSMX_PERF_CHECKPOINT_REPORT_HPP

/// \file CheckpointReport.hpp
/// Every 2-D weight of a safetensors checkpoint, quantized and multiplied with bell-shaped
/// activations: what real exponents do to the certificate, what quantizing costs in accuracy,
/// times, and the bits of sampled outputs against the oracle.

#include <KokkosMX.hpp>

#include <Kokkos_Core.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "PerfSupport.hpp"
#include "ReferenceGemm.hpp"
#include "Safetensors.hpp"

namespace KokkosMXPerf {

/// What the report says of one weight.
struct WeightFigures {
  std::array<std::int64_t, 5> rows_with_spread{};  // hi - lo = 0, 1, 2, 3, 4 and more
  int largest_spread = 0;
  std::uint64_t outputs = 0, certified = 0;
  double signal = 0, noise = 0;  // sums of squares
  std::int64_t sampled = 0, differing = 0;
  double quantize = 0, prepared = 0, whole_job = 0;  // seconds

  WeightFigures& operator+=(const WeightFigures& other) {
    for (std::size_t i = 0; i < rows_with_spread.size(); ++i) {
      rows_with_spread[i] += other.rows_with_spread[i];
    }
    largest_spread = std::max(largest_spread, other.largest_spread);
    outputs += other.outputs;
    certified += other.certified;
    signal += other.signal;
    noise += other.noise;
    sampled += other.sampled;
    differing += other.differing;
    quantize += other.quantize;
    prepared += other.prepared;
    whole_job += other.whole_job;
    return *this;
  }
  double certified_percent() const {
    return outputs == 0 ? 100.0
                        : 100.0 * static_cast<double>(certified) / static_cast<double>(outputs);
  }
  /// Signal to quantization noise in dB.
  double sqnr() const { return 10 * std::log10(signal / noise); }
};

namespace Impl {

inline double to_double(float x) { return x; }
inline double to_double(KokkosMX::BFloat16 x) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16);
}
inline double to_double(KokkosMX::Float16 x) {
  const int exponent = (x.bits >> 10) & 31, fraction = x.bits & 1023;
  const double magnitude = exponent == 31  ? (fraction == 0 ? HUGE_VAL : std::nan(""))
                           : exponent == 0 ? std::ldexp(fraction, -24)
                                           : std::ldexp(fraction + 1024, exponent - 25);
  return (x.bits & 0x8000) != 0 ? -magnitude : magnitude;
}

/// How far the exponents of each row lie apart.
inline void add_spreads(const PlainStorage& q, WeightFigures& figures) {
  const auto rows = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, q.summaries());
  for (std::size_t i = 0; i < rows.extent(1); ++i) {
    const int spread = rows(0, i).hi - rows(0, i).lo;
    ++figures.rows_with_spread[static_cast<std::size_t>(std::min(spread, 4))];
    figures.largest_spread = std::max(figures.largest_spread, spread);
  }
}

/// Signal and noise of quantizing x, some rows at a time. Infinities and NaNs are left out.
template <class T>
void add_noise(const Exec& exec, const Matrix2<T>& x, const PlainStorage& q,
               WeightFigures& figures) {
  const auto k = static_cast<std::int64_t>(x.extent(1));
  const auto rows = static_cast<std::int64_t>(x.extent(0));
  const std::int64_t step = std::max<std::int64_t>(1, (std::int64_t{1} << 22) / k);
  for (std::int64_t begin = 0; begin < rows; begin += step) {
    const auto part = std::make_pair(begin, std::min(rows, begin + step));
    Matrix2<float> back("KokkosMXPerf: dequantized", part.second - part.first, k);
    KokkosMX::dequantize(
        exec,
        KokkosMX::Matrix(
            KokkosMX::Codes(Kokkos::subview(q.codes(), Kokkos::ALL, part, Kokkos::ALL)),
            KokkosMX::Scales(Kokkos::subview(q.scales(), Kokkos::ALL, part, Kokkos::ALL))),
        back);
    exec.fence("KokkosMXPerf: dequantized");
    const auto y = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, back);
    const auto original = Kokkos::create_mirror_view_and_copy(
        Kokkos::HostSpace{}, Kokkos::subview(x, part, Kokkos::ALL));
    for (std::size_t i = 0; i < y.extent(0); ++i) {
      for (std::size_t j = 0; j < y.extent(1); ++j) {
        const double exact = to_double(original(i, j));
        const double error = static_cast<double>(y(i, j)) - exact;
        if (!std::isfinite(error)) continue;
        figures.signal += exact * exact;
        figures.noise += error * error;
      }
    }
  }
}

/// `count` numbers spread evenly over 0 .. n - 1, ends included; all of them where n is smaller.
inline std::vector<std::int64_t> spread_evenly(std::int64_t n, std::int64_t count) {
  std::vector<std::int64_t> samples;
  const std::int64_t steps = std::min(n, count);
  for (std::int64_t i = 0; i < steps; ++i) {
    samples.push_back(steps == 1 ? 0 : i * (n - 1) / (steps - 1));
  }
  return samples;
}

/// Some rows of a quantized matrix on the host.
inline KokkosMXTest::HostMatrix rows_of(const PlainStorage& q,
                                        const std::vector<std::int64_t>& rows) {
  const std::int64_t k = q.matrix().cols();
  KokkosMXTest::HostMatrix host(static_cast<std::int64_t>(rows.size()), k);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto codes = host_bytes(Kokkos::subview(q.codes(), 0, rows[i], Kokkos::ALL));
    const auto scales = host_bytes(Kokkos::subview(q.scales(), 0, rows[i], Kokkos::ALL));
    std::copy(codes.begin(), codes.end(),
              host.codes.begin() + static_cast<std::ptrdiff_t>(i * codes.size()));
    std::copy(scales.begin(), scales.end(),
              host.scales.begin() + static_cast<std::ptrdiff_t>(i * scales.size()));
  }
  return host;
}

}  // namespace Impl

/// One weight: x (N, K) of float, BFloat16 or Float16, against activations (16, K).
template <class T>
WeightFigures weight_figures(const Exec& exec, const Matrix2<T>& x, double seconds) {
  constexpr auto rule = KokkosMX::rules::reference;
  constexpr std::int64_t activations = 16, sampled_columns = 64;
  constexpr std::uint64_t seed = 20;
  const auto n = static_cast<std::int64_t>(x.extent(0)), k = static_cast<std::int64_t>(x.extent(1));
  WeightFigures figures;

  const PlainStorage q = KokkosMX::quantize(exec, x, rule);
  Impl::add_spreads(q, figures);
  Impl::add_noise(exec, x, q, figures);

  const auto a = bell_bf16(activations, k, seed);
  const PlainStorage aq = quantized(exec, a, rule);
  const auto q_matrix = q.matrix();
  Matrix2<KokkosMX::BFloat16> c("KokkosMXPerf: C", activations, n);
  const Kokkos::View<std::uint64_t*, Space> counts("KokkosMXPerf: tier counts",
                                                   KokkosMX::tier_count);
  KokkosMX::gemm(exec, aq.matrix(), q_matrix, c,
                 KokkosMX::GemmOptions<Space>().tier_counts(counts));
  const auto tiers = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, counts);
  figures.outputs = static_cast<std::uint64_t>(activations * n);
  figures.certified = tiers(static_cast<int>(KokkosMX::Tier::aligned));

  const Bytes job_bytes(Kokkos::view_alloc("KokkosMXPerf: workspace", Kokkos::WithoutInitializing),
                        KokkosMX::quantize_gemm_workspace_size(exec, a, x, c));
  const KokkosMX::Workspace workspace(job_bytes);
  const auto whole_job = [&] { KokkosMX::quantize_gemm(exec, workspace, a, x, c, rule); };

  // The outputs of both calls, against the exact product of the quantized operands.
  const std::vector<std::int64_t> columns = Impl::spread_evenly(n, sampled_columns);
  const auto a_host = Impl::rows_of(aq, Impl::spread_evenly(activations, activations));
  const auto b_host = Impl::rows_of(q, columns);
  const KokkosMXTest::ReferenceProduct product(a_host, b_host);
  for (const bool whole : {false, true}) {
    if (whole) {
      Kokkos::deep_copy(exec, c, KokkosMX::BFloat16{0x5555});
      whole_job();
    }
    exec.fence("KokkosMXPerf: sampled");
    const auto c_host = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, c);
    for (std::int64_t i = 0; i < activations; ++i) {
      for (std::size_t j = 0; j < columns.size(); ++j) {
        const std::uint32_t expected =
            KokkosMXTest::convert(KokkosMXTest::format_f32, KokkosMXTest::format_bf16,
                                  product(i, static_cast<std::int64_t>(j)));
        figures.sampled += 1;
        figures.differing += c_host(i, columns[j]).bits != expected ? 1 : 0;
      }
    }
  }

  if (seconds > 0) {
    const std::vector<double> medians = interleaved_medians(
        exec,
        {[&] { KokkosMX::quantize(exec, x, q_matrix, rule); },
         [&] { KokkosMX::quantize_gemm(exec, workspace, a, q_matrix, c, rule); }, whole_job},
        seconds);
    figures.quantize = medians[0];
    figures.prepared = medians[1];
    figures.whole_job = medians[2];
  }
  return figures;
}

/// Prints a line for each weight and one for all. seconds: spent on each measured thing, 0 for
/// none. Returns whether no sampled output differs.
inline bool checkpoint_report(const Exec& exec, const std::string& path, double seconds) {
  SafetensorsFile file(path);
  std::printf("quantized by rules::reference; 16 bell-shaped bf16 rows as activations, bf16 out\n");
  std::printf("%8s %6s %5s  %29s %4s %9s %8s %11s %11s %12s %9s  %s\n", "rows", "K", "dtype",
              "rows with hi-lo = 0/1/2/3/4+ %", "max", "certified", "SQNR dB", "quantize us",
              "prepared us", "whole job us", "differing", "weight");
  const auto print = [&](const std::string& extents, const WeightFigures& f,
                         const std::string& name) {
    double rows = 0;
    for (const std::int64_t count : f.rows_with_spread) rows += static_cast<double>(count);
    std::printf("%s ", extents.c_str());
    for (const std::int64_t count : f.rows_with_spread) {
      std::printf(" %5.1f", rows > 0 ? 100 * static_cast<double>(count) / rows : 0.0);
    }
    std::printf(" %4d %8.2f%% %8.2f %11s %11s %12s %lld/%lld  %s\n", f.largest_spread,
                f.certified_percent(), f.sqnr(), cell(1e6 * f.quantize, 1).c_str(),
                cell(1e6 * f.prepared, 1).c_str(), cell(1e6 * f.whole_job, 1).c_str(),
                static_cast<long long>(f.differing), static_cast<long long>(f.sampled),
                name.c_str());
    std::fflush(stdout);
  };

  WeightFigures all;
  std::int64_t weights = 0, elements = 0, other = 0;
  for (const Tensor& tensor : file.tensors()) {
    const bool is_float = tensor.dtype == "F32" || tensor.dtype == "BF16" || tensor.dtype == "F16";
    if (!is_float || tensor.shape.size() != 2 || tensor.shape[0] == 0 || tensor.shape[1] == 0 ||
        tensor.shape[1] % KokkosMX::block_size != 0) {
      ++other;
      continue;
    }
    const std::int64_t rows = tensor.shape[0], k = tensor.shape[1];
    const auto measure = [&]<class T>(T) {
      Matrix2<T> x(Kokkos::view_alloc("KokkosMXPerf: weight", Kokkos::WithoutInitializing), rows,
                   k);
      const auto staged = Kokkos::create_mirror_view(x);
      file.read(tensor, 0, tensor.end - tensor.begin, staged.data());
      Kokkos::deep_copy(x, staged);
      return weight_figures(exec, x, seconds);
    };
    const WeightFigures figures = tensor.dtype == "F32"    ? measure(float{})
                                  : tensor.dtype == "BF16" ? measure(KokkosMX::BFloat16{})
                                                           : measure(KokkosMX::Float16{});
    char extents[64];
    std::snprintf(extents, sizeof(extents), "%8lld %6lld %5s", static_cast<long long>(rows),
                  static_cast<long long>(k), tensor.dtype.c_str());
    print(extents, figures, tensor.name);
    all += figures;
    weights += 1;
    elements += rows * k;
  }
  char extents[64];
  std::snprintf(extents, sizeof(extents), "%8s %6s %5s", "", "", "");
  print(extents, all, "all weights");
  std::printf(
      "checkpoint: %lld weights, %.1f million elements (%lld other tensors), certified "
      "%.2f%%, SQNR %.2f dB, %lld of %lld sampled outputs differ\n",
      static_cast<long long>(weights), 1e-6 * static_cast<double>(elements),
      static_cast<long long>(other), all.certified_percent(), all.sqnr(),
      static_cast<long long>(all.differing), static_cast<long long>(all.sampled));
  return all.differing == 0;
}

}  // namespace KokkosMXPerf

#endif
