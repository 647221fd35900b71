// SPDX-License-Identifier: Apache-2.0
// The product: TFLOP/s (2 M N K a call), the fraction of the atom's peak, for few rows the fraction
// of the bandwidth at which B's codes and scales could be read, and the ratio to float32 BLAS.

#include <KokkosMX.hpp>

#include <Kokkos_Core.hpp>

#include <cstdint>
#include <cstdio>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "AtomPeak.hpp"
#include "BenchmarkMain.hpp"
#include "FloatBlas.hpp"
#include "PerfSupport.hpp"

namespace KokkosMXPerf {
namespace {

using KokkosMX::BFloat16;
using KokkosMX::GemmOptions;
using KokkosMX::Tier;
constexpr auto rule = KokkosMX::rules::reference;

struct Shape {
  std::int64_t m, n, k;
};
std::string text(const Shape& s) {
  return std::to_string(s.m) + "x" + std::to_string(s.n) + "x" + std::to_string(s.k);
}

/// What the operands hold.
enum class Data { bell, outliers_9, outliers_30, random_scales };
const char* text(Data data) {
  switch (data) {
    case Data::bell:
      return "bell";
    case Data::outliers_9:
      return "outliers_2^9";
    case Data::outliers_30:
      return "outliers_2^30";
    case Data::random_scales:
      return "random_scales";
  }
  return "";
}

/// What a call is given.
enum class Given {
  dense,     ///< A and B dense: the whole job
  prepared,  ///< A dense, B codes and scales
  codes      ///< codes and scales of both
};
const char* text(Given given) {
  switch (given) {
    case Given::dense:
      return "whole_job";
    case Given::prepared:
      return "prepared_B";
    case Given::codes:
      return "codes";
  }
  return "";
}

struct Case {
  Shape shape;
  Given given;
  Data data = Data::bell;
  Tier minimum_tier = Tier::automatic;
  bool shuffled_b = false;
  bool baseline = true;
};

PlainStorage random_codes(std::int64_t rows, std::int64_t k, std::uint64_t seed) {
  const PlainStorage q("random codes", rows, k);
  const auto fill = [](const PlainStorage::bytes_view& to, std::uint64_t with, unsigned below) {
    const auto staged = Kokkos::create_mirror_view(to);
    const std::vector<std::uint8_t> bytes = KokkosMXTest::random_bytes(staged.size(), with);
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      staged.data()[i] = static_cast<std::uint8_t>(bytes[i] % below);
    }
    Kokkos::deep_copy(to, staged);
  };
  fill(q.codes(), seed, 256);
  fill(q.scales(), seed + 1, 255);  // 0 .. 254
  const Exec exec;
  KokkosMX::summarize(exec, q.matrix(), q.summaries());
  exec.fence("KokkosMXPerf: random codes");
  return q;
}

Matrix2<BFloat16> dense(std::int64_t rows, std::int64_t k, std::uint64_t seed, Data data) {
  if (data == Data::bell) return bell_bf16(rows, k, seed);
  return bell_bf16(rows, k, seed, data == Data::outliers_9 ? 9 : 30);
}

void run(const Exec& exec, benchmark::State& state, const Case& what, double peak) {
  const auto [m, n, k] = what.shape;
  // Random scales have no dense operands.
  const bool has_dense = what.data != Data::random_scales;
  const Matrix2<BFloat16> a = has_dense ? dense(m, k, 3, what.data) : Matrix2<BFloat16>();
  const Matrix2<BFloat16> b = has_dense ? dense(n, k, 4, what.data) : Matrix2<BFloat16>();
  const PlainStorage aq = has_dense ? quantized(exec, a) : random_codes(m, k, 3);
  const PlainStorage bq = has_dense ? quantized(exec, b) : random_codes(n, k, 4);
  const TiledStorage bt = what.shuffled_b ? shuffled(exec, bq) : TiledStorage("none", 0, 0);
  const Matrix2<BFloat16> c("C", m, n);
  const Kokkos::View<std::uint64_t*, Space> counts("tier counts", KokkosMX::tier_count);
  const auto options = GemmOptions<Space>().minimum_tier(what.minimum_tier);

  const auto with = [&](const auto& b_matrix) {
    std::size_t size = 0;
    if (what.given == Given::dense) {
      size = KokkosMX::quantize_gemm_workspace_size(exec, a, b, c);
    } else if (what.given == Given::prepared) {
      size = KokkosMX::quantize_gemm_workspace_size(exec, a, b_matrix, c);
    }
    const Bytes memory("workspace", size);
    const KokkosMX::Workspace workspace(memory);
    const auto call = [&] {
      switch (what.given) {
        case Given::dense:
          KokkosMX::quantize_gemm(exec, workspace, a, b, c, rule, options);
          break;
        case Given::prepared:
          KokkosMX::quantize_gemm(exec, workspace, a, b_matrix, c, rule, options);
          break;
        case Given::codes:
          KokkosMX::gemm(exec, workspace, aq.matrix(), b_matrix, c, options);
          break;
      }
    };
    KokkosMX::gemm(exec, workspace, aq.matrix(), b_matrix, c,
                   GemmOptions<Space>(options).tier_counts(counts));

    std::vector<std::function<void()>> things{call};
    std::optional<FloatBlas> blas;
    if (FloatBlas::available && what.baseline) {
      blas.emplace(exec, aq.matrix(), bq.matrix());
      things.push_back(*blas);
    }
    const std::vector<double> medians = interleaved_medians(exec, things, benchmark_seconds);
    report(state, medians[0]);
    if (blas) state.counters["x_f32_BLAS"] = medians[1] / medians[0];
    return medians[0];
  };
  const double seconds = what.shuffled_b ? with(bt.matrix()) : with(bq.matrix());

  const double flops =
      2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  state.counters["TFLOP/s"] = 1e-12 * flops / seconds;
  if (peak > 0) state.counters["%peak"] = 100 * flops / seconds / peak;
  if (m <= 16 && what.given != Given::dense) {
    // Each code and scale of B once.
    const auto bytes = static_cast<double>(bq.codes().size() + bq.scales().size());
    state.counters["B_GB/s"] = 1e-9 * bytes / seconds;
    state.counters["%read"] =
        100 * bytes / seconds / read_bandwidth(exec, static_cast<std::size_t>(bytes));
  }
  const auto tiers = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, counts);
  const double outputs = static_cast<double>(m) * static_cast<double>(n);
  const char* names[KokkosMX::tier_count] = {"%no_sum", "%aligned", "%window", "%wide"};
  for (int t = 0; t < KokkosMX::tier_count; ++t) {
    if (tiers(t) != 0) state.counters[names[t]] = 100 * static_cast<double>(tiers(t)) / outputs;
  }
}

void add(const Case& what, double peak) {
  std::string name = std::string("gemm/") + text(what.shape) + "/" + text(what.given);
  if (what.shuffled_b) name += "/shuffled_B";
  if (what.data != Data::bell) name += std::string("/") + text(what.data);
  if (what.minimum_tier == Tier::window) name += "/tier_window";
  if (what.minimum_tier == Tier::wide) name += "/tier_wide";
  add_benchmark(name,
                [=](const Exec& exec, benchmark::State& state) { run(exec, state, what, peak); });
}

void add_all(const BenchmarkOptions& options, const Exec& exec) {
  benchmark::AddCustomContext("f32 BLAS", FloatBlas::name());
  const AtomPeak peak = atom_peak(exec);
  char rate[32];
  std::snprintf(rate, sizeof(rate), "%.3f TFLOP/s: ", 1e-12 * peak.rate);
  benchmark::AddCustomContext("peak", rate + peak.what);

  const auto add_case = [&](const Case& what) { add(what, peak.rate); };

  // The leaderboard's timed shapes.
  for (const Shape& shape : {Shape{4, 2880, 512}, Shape{16, 2112, 7168}, Shape{32, 4096, 512},
                             Shape{32, 2880, 512}, Shape{64, 7168, 2048}, Shape{256, 3072, 1536}}) {
    add_case({.shape = shape, .given = Given::dense});
    add_case({.shape = shape, .given = Given::prepared});
  }
  // Token generation, and squares.
  add_case({.shape = {1, 4096, 4096}, .given = Given::prepared});
  add_case({.shape = {4, 4096, 4096}, .given = Given::prepared});
  add_case({.shape = {512, 512, 512}, .given = Given::codes});
  add_case({.shape = {512, 512, 512}, .given = Given::codes, .shuffled_b = true});
  add_case({.shape = {1024, 1024, 1024}, .given = Given::codes});
  // Data beyond the certificate, and each tier forced.
  const Shape middle{128, 512, 1024};
  for (const Data data : {Data::bell, Data::outliers_9, Data::outliers_30, Data::random_scales}) {
    add_case({.shape = middle, .given = Given::codes, .data = data, .baseline = false});
  }
  for (const Tier tier : {Tier::window, Tier::wide}) {
    add_case({.shape = middle, .given = Given::codes, .minimum_tier = tier, .baseline = false});
  }
  if (!options.large) return;
  for (const std::int64_t n : {2048, 4096, 8192}) {
    add_case({.shape = {n, n, n}, .given = Given::codes, .baseline = n <= 4096});
  }
  for (const std::int64_t m : {1, 4}) {
    add_case({.shape = {m, 8192, 8192}, .given = Given::prepared});
  }
  for (const Data data : {Data::bell, Data::outliers_9, Data::outliers_30, Data::random_scales}) {
    add_case({.shape = {1024, 4096, 4096}, .given = Given::codes, .data = data, .baseline = false});
  }
}

}  // namespace
}  // namespace KokkosMXPerf

int main(int argc, char** argv) {
  return KokkosMXPerf::benchmark_main(argc, argv, KokkosMXPerf::add_all);
}
