// SPDX-License-Identifier: Apache-2.0
// Quantizing, dequantizing and summarizing. GB/s counts the bytes that are read; the fraction is of
// the bandwidth at which all threads read a buffer as large.

#include <KokkosMX.hpp>

#include <Kokkos_Core.hpp>

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "BenchmarkMain.hpp"
#include "PerfSupport.hpp"

namespace KokkosMXPerf {
namespace {

using KokkosMX::BFloat16;
using KokkosMX::Float16;
using KokkosMX::QuantizeRule;
namespace rules = KokkosMX::rules;

struct Extents {
  const char* name;
  std::int64_t rows, k;
};
// bf16 footprints of 1 MiB, 16 MiB and 256 MiB, and two B of the leaderboard.
constexpr Extents in_l2{"L2", 512, 1024}, in_l3{"L3", 4096, 2048}, in_memory{"memory", 16384, 8192},
    b_2880{"leaderboard_2880x512", 2880, 512}, b_7168{"leaderboard_7168x2048", 7168, 2048};

template <class T>
constexpr const char* type_name() {
  return std::is_same_v<T, float> ? "f32" : std::is_same_v<T, BFloat16> ? "bf16" : "f16";
}

/// Bell-shaped numbers in T.
template <class T>
Matrix2<T> input(const Extents& extents, std::optional<int> outliers) {
  const std::vector<std::uint16_t> bits = KokkosMXTest::bell(extents.rows, extents.k, 7, outliers);
  if constexpr (std::is_same_v<T, BFloat16>) {
    return upload<BFloat16>(bits.data(), extents.rows, extents.k);
  } else if constexpr (std::is_same_v<T, float>) {
    std::vector<std::uint32_t> wide(bits.begin(), bits.end());
    for (std::uint32_t& x : wide) x <<= 16;
    return upload<float>(wide.data(), extents.rows, extents.k);
  } else {
    // |x| < 4 and a multiple of 2^-8 with 8 leading bits: exact in f16 after a change of bias.
    std::vector<std::uint16_t> half(bits.size());
    for (std::size_t i = 0; i < bits.size(); ++i) {
      const int magnitude = bits[i] & 0x7FFF;
      half[i] = static_cast<std::uint16_t>(
          (bits[i] & 0x8000) | (magnitude == 0 ? 0 : (magnitude << 3) - ((127 - 15) << 10)));
    }
    return upload<Float16>(half.data(), extents.rows, extents.k);
  }
}

template <class T, class Storage>
void add_quantize(const Extents& extents, const char* rule_name, QuantizeRule rule,
                  std::optional<int> outliers = {}) {
  std::string name = std::string("quantize/") + type_name<T>() + "/" + extents.name + "/" +
                     rule_name +
                     (std::is_same_v<Storage, PlainStorage>   ? ""
                      : std::is_same_v<Storage, TiledStorage> ? "/shuffled"
                                                              : "/prepared");
  if (outliers) name += "/outliers_2^" + std::to_string(*outliers);
  add_benchmark(name, [=](const Exec& exec, benchmark::State& state) {
    const Matrix2<T> x = input<T>(extents, outliers);
    const Storage q("q", extents.rows, extents.k);
    const auto matrix = q.matrix();
    report_bandwidth<ReadPass>(exec, state, static_cast<double>(x.size() * sizeof(T)),
                               [&] { KokkosMX::quantize(exec, x, matrix, rule); });
  });
}

/// The codes and scales are read, GB/s counts the numbers that are written as well.
template <class T>
void add_dequantize(const Extents& extents) {
  add_benchmark(std::string("dequantize/") + type_name<T>() + "/" + extents.name,
                [=](const Exec& exec, benchmark::State& state) {
                  const PlainStorage q = quantized(exec, input<BFloat16>(extents, {}));
                  const auto matrix = q.matrix();
                  const Matrix2<T> x("x", extents.rows, extents.k);
                  const double bytes = static_cast<double>(x.size() * sizeof(T) + block_bytes(q));
                  report_bandwidth<CopyPass>(exec, state, bytes,
                                             [&] { KokkosMX::dequantize(exec, matrix, x); });
                });
}

void add_summarize(const Extents& extents) {
  add_benchmark(
      std::string("summarize/") + extents.name, [=](const Exec& exec, benchmark::State& state) {
        const PlainStorage q = quantized(exec, input<BFloat16>(extents, {}));
        const auto matrix = q.matrix();
        report_bandwidth<ReadPass>(exec, state, static_cast<double>(block_bytes(q)),
                                   [&] { KokkosMX::summarize(exec, matrix, q.summaries()); });
      });
}

void add_all(const BenchmarkOptions&, const Exec&) {
  for (const Extents& extents : {in_l2, in_l3, in_memory, b_2880, b_7168}) {
    add_quantize<BFloat16, PlainStorage>(extents, "reference", rules::reference);
  }
  for (const Extents& extents : {in_l2, in_l3, in_memory}) {
    add_quantize<BFloat16, PlainStorage>(extents, "quark_even", rules::quark_even);
    if (!std::is_same_v<PreparedStorage, PlainStorage>) {
      add_quantize<BFloat16, PreparedStorage>(extents, "reference", rules::reference);
    }
  }
  add_quantize<BFloat16, PlainStorage>(in_l3, "ocp_floor", rules::ocp_floor);
  add_quantize<BFloat16, PlainStorage>(in_l3, "rceil", rules::rceil);
  add_quantize<BFloat16, PlainStorage>(in_l3, "reference", rules::reference, 30);
  add_quantize<BFloat16, TiledStorage>(in_l3, "reference", rules::reference);
  add_quantize<Float16, PlainStorage>(in_l3, "reference", rules::reference);
  add_quantize<float, PlainStorage>(in_l2, "reference", rules::reference);
  add_quantize<float, PlainStorage>(in_l3, "reference", rules::reference);
  add_dequantize<BFloat16>(in_l3);
  add_dequantize<float>(in_l3);
  add_dequantize<float>(in_memory);
  add_summarize(in_l2);
  add_summarize(in_l3);
  add_summarize(in_memory);
}

}  // namespace
}  // namespace KokkosMXPerf

int main(int argc, char** argv) {
  return KokkosMXPerf::benchmark_main(argc, argv, KokkosMXPerf::add_all);
}
