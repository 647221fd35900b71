// SPDX-License-Identifier: Apache-2.0
// The product: TFLOP/s (2 M N K a call), the fraction of the atom's peak, and ratios to what else
// can multiply here. x_f32_BLAS and x_..._oneDNN: its time over ours. Four groups, each by
// --benchmark_filter:
//   ^gemm/     the leaderboard's timed shapes, small squares, each tier
//   ^squares/  M = N = K, both operands prepared; x_best: the time of a multiplication over that of
//              the best size
//   ^decode/   few rows against a large prepared B; %read: the fraction of the bandwidth at which
//   all
//              threads read as many bytes as B has codes and scales
//   ^data/     what the operands hold; x_bell: the time over that of bell-shaped data

#include <KokkosMX.hpp>

#include <Kokkos_Core.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "AtomPeak.hpp"
#include "BenchmarkMain.hpp"
#include "FloatBlas.hpp"
#include "OneDnn.hpp"
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

constexpr Data bell{}, outliers_9{Data::Outliers::columns, 9},
    outliers_30{Data::Outliers::columns, 30}, random_scales{Data::Outliers::random_scales};

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
  Data data = bell;
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

/// Outputs of each tier.
using Counts = Kokkos::View<std::uint64_t*, Space>;
Counts new_counts() { return Counts("tier counts", KokkosMX::tier_count); }

void report_tiers(benchmark::State& state, const Counts& counts, const Shape& shape) {
  const auto tiers = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, counts);
  const double outputs = static_cast<double>(shape.m) * static_cast<double>(shape.n);
  const char* names[KokkosMX::tier_count] = {"%no_sum", "%aligned", "%window", "%wide"};
  for (int t = 0; t < KokkosMX::tier_count; ++t) {
    if (tiers(t) != 0) state.counters[names[t]] = 100 * static_cast<double>(tiers(t)) / outputs;
  }
}

double flops(const Shape& s) {
  return 2.0 * static_cast<double>(s.m) * static_cast<double>(s.n) * static_cast<double>(s.k);
}
void report_flops(benchmark::State& state, const Shape& shape, double seconds, double peak) {
  state.counters["TFLOP/s"] = 1e-12 * flops(shape) / seconds;
  if (peak > 0) state.counters["%peak"] = 100 * flops(shape) / seconds / peak;
}
std::string one_dnn_counter(OneDnnType type) { return std::string("x_") + text(type) + "_oneDNN"; }

void run(const Exec& exec, benchmark::State& state, const Case& what, double peak) {
  const auto [m, n, k] = what.shape;
  // Random scales have no dense operands.
  const bool has_dense = what.data.outliers != Data::Outliers::random_scales;
  const Matrix2<BFloat16> a = has_dense ? dense(m, k, 3, what.data) : Matrix2<BFloat16>();
  const Matrix2<BFloat16> b = has_dense ? dense(n, k, 14, what.data) : Matrix2<BFloat16>();
  const PlainStorage aq = has_dense ? quantized(exec, a) : random_codes(m, k, 3);
  const PlainStorage bq = has_dense ? quantized(exec, b) : random_codes(n, k, 14);
  const TiledStorage bt = what.shuffled_b ? shuffled(exec, bq) : TiledStorage("none", 0, 0);
  const Matrix2<BFloat16> c("C", m, n);
  const Counts counts = new_counts();
  const auto options = GemmOptions<Space>().minimum_tier(what.minimum_tier);

  const auto with = [&](const auto& b_matrix) {
    // Codes are multiplied once in any case, to count their outputs by tier.
    std::size_t size = KokkosMX::gemm_workspace_size(exec, aq.matrix(), b_matrix, c);
    if (what.given == Given::dense) {
      size = std::max(size, KokkosMX::quantize_gemm_workspace_size(exec, a, b, c));
    } else if (what.given == Given::prepared) {
      size = std::max(size, KokkosMX::quantize_gemm_workspace_size(exec, a, b_matrix, c));
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
    if (FloatBlas::available && what.baseline) {
      things.push_back(FloatBlas(exec, aq.matrix(), bq.matrix()));
    }
    const std::vector<double> medians = interleaved_medians(exec, things, benchmark_seconds);
    report(state, medians[0]);
    if (medians.size() > 1) state.counters["x_f32_BLAS"] = medians[1] / medians[0];
    return medians[0];
  };
  const double seconds = what.shuffled_b ? with(bt.matrix()) : with(bq.matrix());

  report_flops(state, what.shape, seconds, peak);
  report_tiers(state, counts, what.shape);
}

// ------------------------------------------------------------------------------ squares

/// All sizes and their baselines take turns: made by the first size that reports.
class Squares {
 public:
  Squares(std::vector<std::int64_t> sizes, double peak) : sizes_(std::move(sizes)), peak_(peak) {}
  const std::vector<std::int64_t>& sizes() const { return sizes_; }

  void report(const Exec& exec, benchmark::State& state, std::size_t which) {
    if (results_.empty()) measure(exec);
    const std::int64_t n = sizes_[which];
    const Result& result = results_[which];
    KokkosMXPerf::report(state, result.seconds);
    report_flops(state, {n, n, n}, result.seconds, peak_);
    double best = result.seconds / flops({n, n, n});
    for (std::size_t i = 0; i < sizes_.size(); ++i) {
      best = std::min(best, results_[i].seconds / flops({sizes_[i], sizes_[i], sizes_[i]}));
    }
    state.counters["x_best"] = result.seconds / flops({n, n, n}) / best;
    for (const auto& [type, seconds] : result.one_dnn) {
      state.counters[one_dnn_counter(type)] = seconds / result.seconds;
    }
  }

 private:
  struct Result {
    double seconds = 0;
    std::vector<std::pair<OneDnnType, double>> one_dnn;
  };

  void measure(const Exec& exec) {
    results_.resize(sizes_.size());
    std::vector<std::function<void()>> things;
    std::vector<std::function<void(double)>> takers;
    for (std::size_t i = 0; i < sizes_.size(); ++i) {
      const std::int64_t n = sizes_[i];
      const auto a = dense(n, n, 3, bell), b = dense(n, n, 14, bell);
      const PreparedStorage ap = prepared(exec, a), bp = prepared(exec, b);
      const Matrix2<BFloat16> c("C", n, n);
      const Bytes memory("workspace",
                         KokkosMX::gemm_workspace_size(exec, ap.matrix(), bp.matrix(), c));
      things.push_back(
          [=] { KokkosMX::gemm(exec, KokkosMX::Workspace(memory), ap.matrix(), bp.matrix(), c); });
      takers.push_back([this, i](double seconds) { results_[i].seconds = seconds; });
      for (const auto& product : one_dnn_products(exec, quantized(exec, a), quantized(exec, b))) {
        things.push_back(product.call);
        takers.push_back([this, i, type = product.type](double seconds) {
          results_[i].one_dnn.emplace_back(type, seconds);
        });
      }
    }
    const std::vector<double> medians = interleaved_medians(exec, things, benchmark_seconds);
    for (std::size_t i = 0; i < medians.size(); ++i) takers[i](medians[i]);
  }

  std::vector<std::int64_t> sizes_;
  double peak_;
  std::vector<Result> results_;
};

// ------------------------------------------------------------------------------ decode

void run_decode(const Exec& exec, benchmark::State& state, const Shape& shape, double peak) {
  const Matrix2<BFloat16> a = dense(shape.m, shape.k, 3, bell);
  const Matrix2<BFloat16> b_dense = dense(shape.n, shape.k, 14, bell);
  const PreparedStorage b = prepared(exec, b_dense);
  const auto b_matrix = b.matrix();
  const Matrix2<BFloat16> c("C", shape.m, shape.n);
  const Bytes memory("workspace", KokkosMX::quantize_gemm_workspace_size(exec, a, b_matrix, c));
  const KokkosMX::Workspace workspace(memory);
  const ReadPass read(exec, block_bytes(b));
  std::vector<std::function<void()>> things{
      [&] { KokkosMX::quantize_gemm(exec, workspace, a, b_matrix, c, rule); }, read};
  std::vector<std::string> names{"", ""};
  {
    const PlainStorage aq = quantized(exec, a), bq = quantized(exec, b_dense);
    if (FloatBlas::available) {
      things.push_back(FloatBlas(exec, aq.matrix(), bq.matrix()));
      names.push_back("x_f32_BLAS");
    }
    for (const OneDnnProduct& product : one_dnn_products(exec, aq, bq)) {
      things.push_back(product.call);
      names.push_back(one_dnn_counter(product.type));
    }
  }
  const std::vector<double> medians = interleaved_medians(exec, things, benchmark_seconds);
  report(state, medians[0]);
  for (std::size_t i = 2; i < medians.size(); ++i) {
    state.counters[names[i]] = medians[i] / medians[0];
  }
  report_flops(state, shape, medians[0], peak);
  const double rate = static_cast<double>(block_bytes(b)) / medians[0];
  const double limit = read.bytes() / medians[1];
  state.counters["GB/s"] = 1e-9 * rate;
  state.counters["read_GB/s"] = 1e-9 * limit;
  state.counters["%read"] = 100 * rate / limit;
  state.counters["bits/weight"] = bits_per_weight(b);
}

// ------------------------------------------------------------------------------ data

struct Product {
  PreparedStorage a, b;
  Matrix2<BFloat16> c;
  Bytes memory;

  void operator()(const Exec& exec, const GemmOptions<Space>& options = {}) const {
    KokkosMX::gemm(exec, KokkosMX::Workspace(memory), a.matrix(), b.matrix(), c, options);
  }
};
Product product_of(const Exec& exec, const Shape& shape, const Data& data) {
  const auto operand = [&](std::int64_t rows, std::uint64_t seed) {
    return data.outliers == Data::Outliers::random_scales
               ? prepared(exec, random_codes(rows, shape.k, seed))
               : prepared(exec, dense(rows, shape.k, seed, data));
  };
  const PreparedStorage a = operand(shape.m, 3), b = operand(shape.n, 14);
  const Matrix2<BFloat16> c("C", shape.m, shape.n);
  const Bytes memory("workspace", KokkosMX::gemm_workspace_size(exec, a.matrix(), b.matrix(), c));
  return {a, b, c, memory};
}

void run_data(const Exec& exec, benchmark::State& state, const Shape& shape, const Data& data,
              double peak) {
  const Product product = product_of(exec, shape, data), usual = product_of(exec, shape, bell);
  const Counts counts = new_counts();
  product(exec, GemmOptions<Space>().tier_counts(counts));
  const std::vector<double> medians =
      interleaved_medians(exec, {[&] { product(exec); }, [&] { usual(exec); }}, benchmark_seconds);
  report(state, medians[0]);
  report_flops(state, shape, medians[0], peak);
  state.counters["x_bell"] = medians[0] / medians[1];
  report_tiers(state, counts, shape);
}

// ------------------------------------------------------------------------------ registration

void add(const Case& what, double peak) {
  std::string name = std::string("gemm/") + text(what.shape) + "/" + text(what.given);
  if (what.shuffled_b) name += "/shuffled_B";
  if (what.data.outliers != Data::Outliers::none) name += "/" + text(what.data);
  if (what.minimum_tier == Tier::window) name += "/tier_window";
  if (what.minimum_tier == Tier::wide) name += "/tier_wide";
  add_benchmark(name,
                [=](const Exec& exec, benchmark::State& state) { run(exec, state, what, peak); });
}

void add_all(const BenchmarkOptions& options, const Exec& exec) {
  benchmark::AddCustomContext("f32 BLAS", FloatBlas::name());
  benchmark::AddCustomContext("oneDNN", one_dnn_name(exec));
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
  add_case({.shape = {512, 512, 512}, .given = Given::codes});
  add_case({.shape = {512, 512, 512}, .given = Given::codes, .shuffled_b = true});
  add_case({.shape = {1024, 1024, 1024}, .given = Given::codes});
  // Data beyond the certificate, and each tier forced.
  const Shape middle{128, 512, 1024};
  for (const Data& data : {bell, outliers_9, outliers_30, random_scales}) {
    add_case({.shape = middle, .given = Given::codes, .data = data, .baseline = false});
  }
  for (const Tier tier : {Tier::window, Tier::wide}) {
    add_case({.shape = middle, .given = Given::codes, .minimum_tier = tier, .baseline = false});
  }

  std::vector<std::int64_t> sizes{512, 1024, 2048, 4096};
  if (options.large) sizes.push_back(8192);
  const auto squares = std::make_shared<Squares>(sizes, peak.rate);
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    add_benchmark("squares/" + std::to_string(sizes[i]),
                  [=](const Exec& e, benchmark::State& state) { squares->report(e, state, i); });
  }

  for (const std::int64_t n : {4096, 8192}) {
    for (const std::int64_t m : {1, 4}) {
      const Shape shape{m, n, n};
      add_benchmark("decode/" + text(shape), [=](const Exec& e, benchmark::State& state) {
        run_decode(e, state, shape, peak.rate);
      });
    }
  }

  const Shape large{1024, 4096, 4096};
  using Outliers = Data::Outliers;
  for (const Data& data :
       {bell, outliers_9, outliers_30, Data{Outliers::rows, 9}, Data{Outliers::rows, 30},
        Data{Outliers::blocks, 9}, Data{Outliers::blocks, 30}, random_scales}) {
    add_benchmark("data/" + text(large) + "/" + text(data),
                  [=](const Exec& e, benchmark::State& state) {
                    run_data(e, state, large, data, peak.rate);
                  });
  }
}

}  // namespace
}  // namespace KokkosMXPerf

int main(int argc, char** argv) {
  return KokkosMXPerf::benchmark_main(argc, argv, KokkosMXPerf::add_all);
}
