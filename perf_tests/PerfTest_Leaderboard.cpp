// SPDX-License-Identifier: Apache-2.0
// The ten shapes of golden/leaderboard.csv: the bits of every stage, and what the whole job, the
// product with a prepared B, float32 BLAS and oneDNN take. With --safetensors, the weights of a
// checkpoint.

#include <KokkosMX.hpp>

#include <Kokkos_Core.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "CheckpointReport.hpp"
#include "FloatBlas.hpp"
#include "Inputs.hpp"
#include "OneDnn.hpp"
#include "PerfSupport.hpp"

namespace KokkosMXPerf {
namespace {

using KokkosMX::BFloat16;
using KokkosMXTest::LeaderboardRow;

/// The last rows of leaderboard.csv are the timed shapes.
constexpr std::size_t timed_shapes = 6;

constexpr const char* usage = R"(PerfTest_Leaderboard [options]
  --no-timing              only the bits
  --seconds S              time spent on each measured thing (default 0.3)
  --flip-bit MxNxK:STAGE   flips one bit of one output before its CRC: shows that it is noticed.
                           STAGE: a, b, a_codes, a_scales, b_codes, b_scales, b_shuffled,
                           b_scales_shuffled, c_bf16, c_prepared, c_shuffled
  --safetensors FILE       the 2-D weights of a checkpoint instead of the leaderboard (repeatable)
)";

struct Options {
  bool timing = true;
  double seconds = 0.3;
  std::string flip_shape, flip_stage;
  std::vector<std::string> checkpoints;
};

std::string shape_text(const LeaderboardRow& row) {
  return std::to_string(row.m) + "x" + std::to_string(row.n) + "x" + std::to_string(row.k);
}

/// Compares each stage's CRC-32 with the golden one.
class Bits {
 public:
  Bits(const LeaderboardRow& row, const Options& options)
      : flip_stage_(options.flip_shape == shape_text(row) ? options.flip_stage : "") {}

  void check(const std::string& stage, std::vector<std::uint8_t> bytes, std::uint32_t expected) {
    if (stage == flip_stage_ && !bytes.empty()) bytes[bytes.size() / 2] ^= 1;
    if (KokkosMXTest::crc32(bytes) == expected) return;
    differing_ += (differing_.empty() ? "" : ",") + stage;
  }
  bool exact() const { return differing_.empty(); }
  std::string text() const { return exact() ? "ok" : "DIFFER: " + differing_; }

 private:
  std::string flip_stage_, differing_;
};

struct Result {
  Bits bits;
  double certified = 0;
  double bits_per_weight = 0;                              // of the prepared B
  double whole_job = 0, prepared = 0, blas = 0;            // seconds
  std::array<double, std::size(one_dnn_types)> one_dnn{};  // seconds, 0 for what there is not

  double& one_dnn_of(OneDnnType type) { return one_dnn[static_cast<std::size_t>(type)]; }
  double one_dnn_of(OneDnnType type) const { return one_dnn[static_cast<std::size_t>(type)]; }
};

Result run_shape(const Exec& exec, const LeaderboardRow& row, const Options& options) {
  constexpr auto rule = KokkosMX::rules::reference;
  Result result{Bits(row, options)};
  Bits& bits = result.bits;

  const auto a = bell_bf16(row.m, row.k, row.seed_a);
  const auto b = bell_bf16(row.n, row.k, row.seed_b);
  bits.check("a", host_bytes(a), row.crc_a);
  bits.check("b", host_bytes(b), row.crc_b);

  const PlainStorage aq = quantized(exec, a, rule);
  const PlainStorage bq = quantized(exec, b, rule);
  bits.check("a_codes", host_bytes(aq.codes()), row.crc_a_codes);
  bits.check("a_scales", host_bytes(aq.scales()), row.crc_a_scales);
  bits.check("b_codes", host_bytes(bq.codes()), row.crc_b_codes);
  bits.check("b_scales", host_bytes(bq.scales()), row.crc_b_scales);
  const TiledStorage bt = shuffled(exec, bq);
  bits.check("b_shuffled", host_bytes(bt.codes()), row.crc_b_shuffled);
  bits.check("b_scales_shuffled", host_bytes(bt.scales()), row.crc_b_scales_shuffled);

  Matrix2<BFloat16> c("C", row.m, row.n);
  const auto clear = [&] { Kokkos::deep_copy(exec, c, BFloat16{0x5555}); };
  const Bytes job_bytes("workspace", KokkosMX::quantize_gemm_workspace_size(exec, a, b, c));
  const KokkosMX::Workspace job_workspace(job_bytes);
  const auto whole_job = [&] { KokkosMX::quantize_gemm(exec, job_workspace, a, b, c, rule); };
  clear();
  whole_job();
  bits.check("c_bf16", host_bytes(c), row.crc_c_bf16);

  const PreparedStorage bp = KokkosMXPerf::prepared(exec, b, rule);
  result.bits_per_weight = bits_per_weight(bp);
  const auto b_matrix = bp.matrix();
  const Bytes bytes("workspace", KokkosMX::quantize_gemm_workspace_size(exec, a, b_matrix, c));
  const KokkosMX::Workspace workspace(bytes);
  const auto prepared = [&] { KokkosMX::quantize_gemm(exec, workspace, a, b_matrix, c, rule); };
  clear();
  prepared();
  bits.check("c_prepared", host_bytes(c), row.crc_c_bf16);

  const Kokkos::View<std::uint64_t*, Space> counts("tier counts", KokkosMX::tier_count);
  clear();
  KokkosMX::gemm(exec, aq.matrix(), bt.matrix(), c,
                 KokkosMX::GemmOptions<Space>().tier_counts(counts));
  bits.check("c_shuffled", host_bytes(c), row.crc_c_bf16);
  const auto host_counts = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, counts);
  result.certified = static_cast<double>(host_counts(static_cast<int>(KokkosMX::Tier::aligned))) /
                     static_cast<double>(row.m * row.n);

  if (options.timing) {
    const FloatBlas blas(exec, aq.matrix(), bq.matrix());
    const std::vector<OneDnnProduct> products = one_dnn_products(exec, aq, bq);
    std::vector<std::function<void()>> things{whole_job, prepared};
    std::vector<double*> results{&result.whole_job, &result.prepared};
    if (FloatBlas::available) {
      things.push_back(blas);
      results.push_back(&result.blas);
    }
    for (const OneDnnProduct& product : products) {
      things.push_back(product.call);
      results.push_back(&result.one_dnn_of(product.type));
    }
    const std::vector<double> medians = interleaved_medians(exec, things, options.seconds);
    for (std::size_t i = 0; i < medians.size(); ++i) *results[i] = medians[i];
  }
  return result;
}

/// 0 where either is unknown.
double ratio(double other, double ours) { return ours > 0 ? other / ours : 0; }

/// The geometric mean; 0 where there is none for every shape.
double mean_of_all(const std::vector<double>& values) {
  for (const double value : values) {
    if (!(value > 0)) return 0;
  }
  return geometric_mean(values);
}

std::string microseconds(double mean) { return cell(mean, mean < 100 ? 1 : 0) + " us"; }

bool leaderboard(const Exec& exec, const Options& options) {
  const std::vector<LeaderboardRow> rows = KokkosMXTest::leaderboard();
  if (!options.flip_stage.empty()) {
    bool known = false;
    for (const LeaderboardRow& row : rows) known |= shape_text(row) == options.flip_shape;
    if (!known) throw std::invalid_argument("--flip-bit: no shape " + options.flip_shape);
  }

  std::printf("%5s %5s %5s  %9s  %8s", "M", "N", "K", "certified", "bits/wgt");
  if (options.timing) {
    std::printf(" %12s %12s %12s %8s %9s %14s %14s %14s %8s %9s", "whole job us", "prepared us",
                "f32 BLAS us", "BLAS/job", "BLAS/prep", "oneDNN f32 us", "oneDNN bf16 us",
                "oneDNN int8 us", "bf16/job", "int8/prep");
  }
  std::printf("  bits\n");

  std::size_t exact = 0;
  // Of the timed shapes.
  std::vector<double> jobs, prepared, blas_ratios, bf16_ratios, int8_ratios;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const LeaderboardRow& row = rows[i];
    const Result result = run_shape(exec, row, options);
    if (result.bits.exact()) ++exact;
    std::printf("%5lld %5lld %5lld  %8.2f%%  %8.4f", static_cast<long long>(row.m),
                static_cast<long long>(row.n), static_cast<long long>(row.k),
                100 * result.certified, result.bits_per_weight);
    if (options.timing) {
      const double blas_ratio = ratio(result.blas, result.whole_job);
      const double bf16_ratio = ratio(result.one_dnn_of(OneDnnType::bf16), result.whole_job);
      const double int8_ratio = ratio(result.one_dnn_of(OneDnnType::int8), result.prepared);
      std::printf(" %12s %12s %12s %8s %9s", cell(1e6 * result.whole_job, 1).c_str(),
                  cell(1e6 * result.prepared, 1).c_str(), cell(1e6 * result.blas, 1).c_str(),
                  cell(blas_ratio, 2).c_str(),
                  cell(ratio(result.blas, result.prepared), 2).c_str());
      for (const OneDnnType type : one_dnn_types) {
        std::printf(" %14s", cell(1e6 * result.one_dnn_of(type), 1).c_str());
      }
      std::printf(" %8s %9s", cell(bf16_ratio, 2).c_str(), cell(int8_ratio, 2).c_str());
      if (i + timed_shapes >= rows.size()) {
        jobs.push_back(1e6 * result.whole_job);
        prepared.push_back(1e6 * result.prepared);
        blas_ratios.push_back(blas_ratio);
        bf16_ratios.push_back(bf16_ratio);
        int8_ratios.push_back(int8_ratio);
      }
    }
    std::printf("  %s\n", result.bits.text().c_str());
    std::fflush(stdout);
  }

  std::printf("leaderboard: %zu/%zu bit-exact", exact, rows.size());
  const auto print_ratio = [](const std::vector<double>& ratios, const char* to) {
    const double mean = mean_of_all(ratios);
    if (mean > 0) std::printf(", %.2f x %s", mean, to);
  };
  if (!jobs.empty()) {
    std::printf(", geomean %s", microseconds(geometric_mean(jobs)).c_str());
    print_ratio(blas_ratios, "f32 BLAS");
    print_ratio(bf16_ratios, "bf16 oneDNN");
    std::printf(", prepared %s", microseconds(geometric_mean(prepared)).c_str());
    print_ratio(int8_ratios, "int8 oneDNN");
  }
  std::printf("\n");
  return exact == rows.size() && rows.size() == 10;
}

bool is_stage(const std::string& name) {
  for (const char* stage : {"a", "b", "a_codes", "a_scales", "b_codes", "b_scales", "b_shuffled",
                            "b_scales_shuffled", "c_bf16", "c_prepared", "c_shuffled"}) {
    if (name == stage) return true;
  }
  return false;
}

/// \throws std::invalid_argument for what the usage does not name.
Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const auto value = [&]() -> std::string {
      if (i + 1 >= argc) throw std::invalid_argument(argument + ": a value is missing");
      return argv[++i];
    };
    if (argument == "--no-timing") {
      options.timing = false;
    } else if (argument == "--seconds") {
      const std::string text = value();
      char* end = nullptr;
      options.seconds = std::strtod(text.c_str(), &end);
      if (end == text.c_str() || *end != 0 || !(options.seconds >= 0)) {
        throw std::invalid_argument("--seconds: not a time: " + text);
      }
    } else if (argument == "--flip-bit") {
      const std::string text = value();
      const std::size_t colon = text.find(':');
      options.flip_shape = text.substr(0, colon);
      options.flip_stage = colon == std::string::npos ? "" : text.substr(colon + 1);
      if (!is_stage(options.flip_stage)) {
        throw std::invalid_argument("--flip-bit: not MxNxK:STAGE: " + text);
      }
    } else if (argument == "--safetensors") {
      options.checkpoints.push_back(value());
    } else {
      throw std::invalid_argument("unknown option " + argument);
    }
  }
  return options;
}

int run(int argc, char** argv) {
  Options options;
  try {
    options = parse(argc, argv);
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "%s\n%s", error.what(), usage);
    return 2;
  }
  const Exec exec;
  for (const auto& [name, value] : facts(exec)) {
    std::printf("%-9s %s\n", (name + ":").c_str(), value.c_str());
  }
  if (options.checkpoints.empty()) {
    std::printf("%-9s %s\n", "f32 BLAS:", FloatBlas::name().c_str());
    std::printf("%-9s %s\n", "oneDNN:", one_dnn_name(exec).c_str());
    return leaderboard(exec, options) ? 0 : 1;
  }
  bool exact = true;
  for (const std::string& path : options.checkpoints) {
    exact &= checkpoint_report(exec, path, options.timing ? options.seconds / 3 : 0);
  }
  return exact ? 0 : 1;
}

}  // namespace
}  // namespace KokkosMXPerf

int main(int argc, char** argv) {
  try {
    const Kokkos::ScopeGuard kokkos(argc, argv);
    return KokkosMXPerf::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "PerfTest_Leaderboard: %s\n", error.what());
    return 2;
  }
}
