// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_PERF_SUPPORT_HPP
#define KOKKOSMX_PERF_SUPPORT_HPP

/// \file PerfSupport.hpp
/// What all measurements share: medians of interleaved calls, the limits that they are held
/// against, operands, and the lines that say what ran where.

#include <KokkosMX.hpp>

#include <Kokkos_Core.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "Inputs.hpp"

namespace KokkosMXPerf {

using Exec = Kokkos::DefaultExecutionSpace;
using Space = Exec::memory_space;
inline constexpr bool on_host = std::is_same_v<Space, Kokkos::HostSpace>;

template <class T>
using Matrix2 = Kokkos::View<T**, Kokkos::LayoutRight, Space>;
using Bytes = Kokkos::View<std::byte*, Space>;
using PlainStorage = KokkosMX::MatrixStorage<KokkosMX::RowMajor, KokkosMX::RowMajor, Space>;
/// Weights that were quantized once, in the layout that the product reads fastest.
using PreparedStorage = KokkosMX::MatrixStorage<KokkosMX::Tile16x128, KokkosMX::Tile16x4, Space>;
using TiledStorage = KokkosMX::MatrixStorage<KokkosMX::Tile16x16, KokkosMX::Tile32x8, Space>;

// ------------------------------------------------------------------------------ times

inline double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const std::size_t half = values.size() / 2;
  std::nth_element(values.begin(), values.begin() + half, values.end());
  if (values.size() % 2 == 1) return values[half];
  return (values[half] + *std::max_element(values.begin(), values.begin() + half)) / 2;
}

inline double geometric_mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += std::log(value);
  return values.empty() ? 0 : std::exp(sum / static_cast<double>(values.size()));
}

/// Seconds from an idle device to an idle device.
template <class F>
double seconds_of(const Exec& exec, const F& f) {
  exec.fence("KokkosMXPerf: before");
  const auto begin = std::chrono::steady_clock::now();
  f();
  exec.fence("KokkosMXPerf: after");
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// The median time of one call of each thing, in seconds, with hot caches. The things take turns, a
/// few calls at a time, so that what disturbs the machine meets all of them alike; the first call
/// of a turn brings the caches back and does not count. Spends about `seconds` on each thing and
/// calls each at least four times.
inline std::vector<double> interleaved_medians(const Exec& exec,
                                               const std::vector<std::function<void()>>& things,
                                               double seconds) {
  constexpr double turn = 0.01, short_call = 0.005, long_call = 0.5;
  constexpr std::size_t least_samples = 3;
  const auto now = [] { return std::chrono::steady_clock::now(); };
  std::vector<std::vector<double>> samples(things.size());
  std::vector<double> warm_up;
  for (const auto& thing : things) {
    warm_up.push_back(seconds_of(exec, thing));
    // What a first call does besides counts for nothing in a long one.
    if (warm_up.back() < long_call) warm_up.back() = seconds_of(exec, thing);
  }
  const auto begin = now();
  const auto enough = [&] {
    for (const auto& times : samples) {
      if (times.size() < least_samples) return false;
    }
    return std::chrono::duration<double>(now() - begin).count() >=
           seconds * static_cast<double>(things.size());
  };
  while (!things.empty() && !enough()) {
    for (std::size_t i = 0; i < things.size(); ++i) {
      if (warm_up[i] < short_call) things[i]();
      double spent = 0;
      do {
        samples[i].push_back(seconds_of(exec, things[i]));
        spent += samples[i].back();
      } while (spent < turn);
    }
  }
  std::vector<double> medians;
  for (auto& times : samples) medians.push_back(median(std::move(times)));
  return medians;
}

/// A number in a column, or - where there is none.
inline std::string cell(double value, int decimals) {
  if (!(value > 0)) return "-";
  char text[32];
  std::snprintf(text, sizeof(text), "%.*f", decimals, value);
  return text;
}

// ------------------------------------------------------------------------------ limits

namespace Impl {

/// A vector as wide as any host has; a compiler without such registers splits it.
using WideVector = std::uint64_t __attribute__((vector_size(64), may_alias));

/// The sum of all 64-bit words, so that none of the reads can be left out. bytes: a multiple of
/// 256.
__attribute__((always_inline)) inline std::uint64_t sum_words(const std::byte* data,
                                                              std::size_t bytes) {
  WideVector sums[4] = {};
  const auto* vectors = reinterpret_cast<const WideVector*>(data);
  for (std::size_t i = 0; i < bytes / sizeof(WideVector); i += 4) {
    for (std::size_t j = 0; j < 4; ++j) sums[j] += vectors[i + j];
  }
  const WideVector sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  std::uint64_t total = 0;
  for (int i = 0; i < 8; ++i) total += sum[i];
  return total;
}

using SumWords = std::uint64_t (*)(const std::byte*, std::size_t);
inline std::uint64_t sum_words_any(const std::byte* data, std::size_t bytes) {
  return sum_words(data, bytes);
}
#if defined(__x86_64__)
// A limit is one only if it is reached with the widest loads that the CPU has.
__attribute__((target("avx2"))) inline std::uint64_t sum_words_avx2(const std::byte* data,
                                                                    std::size_t bytes) {
  return sum_words(data, bytes);
}
__attribute__((target("avx512f"))) inline std::uint64_t sum_words_avx512(const std::byte* data,
                                                                         std::size_t bytes) {
  return sum_words(data, bytes);
}
inline SumWords best_sum_words() {
  if (__builtin_cpu_supports("avx512f")) return sum_words_avx512;
  if (__builtin_cpu_supports("avx2")) return sum_words_avx2;
  return sum_words_any;
}
#else
inline SumWords best_sum_words() { return sum_words_any; }
#endif

/// pass(thread, begin, end) goes over a part of a buffer: all threads over all of it, so many
/// times.
template <class Pass>
void go_over(const Exec& exec, std::size_t bytes, int repeat, const Pass& pass) {
  constexpr std::size_t line = 256;
  const int threads = exec.concurrency();
  const std::size_t part = (bytes / line + static_cast<std::size_t>(threads) - 1) /
                           static_cast<std::size_t>(threads) * line;
  Kokkos::parallel_for(
      "KokkosMXPerf::bandwidth", Kokkos::RangePolicy<Exec>(exec, 0, threads), [=](int thread) {
        const std::size_t begin = std::min(bytes, static_cast<std::size_t>(thread) * part);
        const std::size_t end = std::min(bytes, begin + part);
        for (int i = 0; i < repeat; ++i) pass(thread, begin, end);
      });
}

inline std::size_t whole_lines(std::size_t bytes) {
  return std::max<std::size_t>(1, bytes / 4096) * 4096;
}
/// So often that starting the threads does not count.
inline int repeat_of(std::size_t bytes) {
  return on_host ? static_cast<int>(std::max<std::size_t>(1, (std::size_t{32} << 20) / bytes)) : 1;
}
}  // namespace Impl

/// A limit to measure beside a call: all threads read a buffer of this footprint, some times over.
class ReadPass {
 public:
  static constexpr const char* name = "read";

  ReadPass(const Exec& exec, std::size_t footprint)
      : exec_(exec),
        size_(Impl::whole_lines(footprint)),
        repeat_(Impl::repeat_of(size_)),
        buffer_("KokkosMXPerf: read", size_ / 8),
        sink_("KokkosMXPerf: sink", on_host ? 8 * static_cast<std::size_t>(exec.concurrency()) : 1),
        sum_words_(Impl::best_sum_words()) {}

  void operator()() const {
    if constexpr (on_host) {
      const auto* data = reinterpret_cast<const std::byte*>(buffer_.data());
      const auto sink = sink_;
      const auto sum_words = sum_words_;
      Impl::go_over(exec_, size_, repeat_, [=](int thread, std::size_t begin, std::size_t end) {
        sink(8 * thread) += sum_words(data + begin, end - begin);
      });
    } else {
      const auto buffer = buffer_;
      Kokkos::parallel_reduce(
          "KokkosMXPerf::read", Kokkos::RangePolicy<Exec>(exec_, 0, size_ / 8),
          KOKKOS_LAMBDA(std::size_t i, std::uint64_t & sum) { sum += buffer(i); },
          Kokkos::subview(sink_, 0));
    }
  }
  /// That a call reads.
  double bytes() const { return static_cast<double>(size_) * repeat_; }

 private:
  Exec exec_;
  std::size_t size_;
  int repeat_;
  Kokkos::View<std::uint64_t*, Space> buffer_, sink_;
  Impl::SumWords sum_words_;
};

/// The same: all threads copy one half of a buffer of this footprint to its other half.
class CopyPass {
 public:
  static constexpr const char* name = "copy";

  CopyPass(const Exec& exec, std::size_t footprint)
      : exec_(exec),
        size_(Impl::whole_lines(footprint / 2)),
        repeat_(Impl::repeat_of(2 * size_)),
        from_("KokkosMXPerf: from", size_),
        to_("KokkosMXPerf: to", size_) {}

  void operator()() const {
    if constexpr (on_host) {
      const std::byte* from = from_.data();
      std::byte* to = to_.data();
      Impl::go_over(exec_, size_, repeat_, [=](int, std::size_t begin, std::size_t end) {
        std::memcpy(to + begin, from + begin, end - begin);
      });
    } else {
      Kokkos::deep_copy(exec_, to_, from_);
    }
  }
  /// That a call reads, plus those that it writes.
  double bytes() const { return 2.0 * static_cast<double>(size_) * repeat_; }

 private:
  Exec exec_;
  std::size_t size_;
  int repeat_;
  Bytes from_, to_;
};

// ------------------------------------------------------------------------------ operands

/// A (rows, cols) View of what host memory holds.
template <class T, class U>
Matrix2<T> upload(const U* host, std::int64_t rows, std::int64_t cols) {
  static_assert(sizeof(T) == sizeof(U));
  Matrix2<T> device(Kokkos::view_alloc("KokkosMXPerf: operand", Kokkos::WithoutInitializing), rows,
                    cols);
  auto staged = Kokkos::create_mirror_view(device);
  if (staged.size() > 0) std::memcpy(staged.data(), host, staged.size() * sizeof(T));
  Kokkos::deep_copy(device, staged);
  return device;
}

/// A contiguous View's bytes on the host.
template <class View>
std::vector<std::uint8_t> host_bytes(const View& view) {
  const auto host = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, view);
  std::vector<std::uint8_t> bytes(host.size() * sizeof(typename View::value_type));
  if (!bytes.empty()) std::memcpy(bytes.data(), host.data(), bytes.size());
  return bytes;
}

inline Matrix2<KokkosMX::BFloat16> bell_bf16(std::int64_t rows, std::int64_t cols,
                                             std::uint64_t seed, std::optional<int> outliers = {}) {
  const std::vector<std::uint16_t> bits = KokkosMXTest::bell(rows, cols, seed, outliers);
  return upload<KokkosMX::BFloat16>(bits.data(), rows, cols);
}

/// What the operands hold: bell-shaped numbers, some of them times 2^exponent, or random codes.
struct Data {
  enum class Outliers {
    none,
    columns,       ///< golden's: a 64th of the columns, in all rows
    rows,          ///< the same columns in a 100th of the rows
    blocks,        ///< a 64th of the blocks, wherever they lie
    random_scales  ///< no bell: random codes, scales drawn from all that are numbers
  };
  Outliers outliers = Outliers::none;
  int exponent = 0;
};
inline std::string text(const Data& data) {
  const std::string power = "_2^" + std::to_string(data.exponent);
  switch (data.outliers) {
    case Data::Outliers::none:
      return "bell";
    case Data::Outliers::columns:
      return "outliers" + power;
    case Data::Outliers::rows:
      return "outliers_1%_of_rows" + power;
    case Data::Outliers::blocks:
      return "outlier_blocks" + power;
    case Data::Outliers::random_scales:
      return "random_scales";
  }
  return "";
}
/// Not of random scales, which no dense matrix quantizes to.
inline Matrix2<KokkosMX::BFloat16> dense(std::int64_t rows, std::int64_t k, std::uint64_t seed,
                                         const Data& data) {
  using KokkosMX::block_size;
  using KokkosMXTest::splitmix64;
  if (data.outliers == Data::Outliers::none) return bell_bf16(rows, k, seed);
  if (data.outliers == Data::Outliers::columns) return bell_bf16(rows, k, seed, data.exponent);

  std::vector<std::uint16_t> bits = KokkosMXTest::bell(rows, k, seed);
  const std::int64_t blocks = k / block_size;
  for (std::int64_t row = 0; row < rows; ++row) {
    const bool by_rows = data.outliers == Data::Outliers::rows;
    if (by_rows && splitmix64(seed + 2, static_cast<std::uint64_t>(row)) % 100 != 0) continue;
    for (std::int64_t col = 0; col < k; ++col) {
      const std::int64_t draw = by_rows ? col : row * blocks + col / block_size;
      if (splitmix64(seed + 1, static_cast<std::uint64_t>(draw)) % 64 != 0) continue;
      std::uint16_t& x = bits[static_cast<std::size_t>(row * k + col)];
      if ((x & 0x7FFF) != 0) x = static_cast<std::uint16_t>(x + data.exponent * 128);
    }
  }
  return upload<KokkosMX::BFloat16>(bits.data(), rows, k);
}

inline PlainStorage quantized(const Exec& exec, const Matrix2<KokkosMX::BFloat16>& x,
                              KokkosMX::QuantizeRule rule = KokkosMX::rules::reference) {
  return KokkosMX::quantize(exec, x, rule);
}

/// x as it is kept to be multiplied many times.
inline PreparedStorage prepared(const Exec& exec, const Matrix2<KokkosMX::BFloat16>& x,
                                KokkosMX::QuantizeRule rule = KokkosMX::rules::reference) {
  PreparedStorage storage("KokkosMXPerf: prepared", static_cast<std::int64_t>(x.extent(0)),
                          static_cast<std::int64_t>(x.extent(1)));
  KokkosMX::quantize(exec, x, storage.matrix(), rule);
  exec.fence("KokkosMXPerf: prepared");
  return storage;
}

/// Of codes and scales that no dense matrix quantizes to.
template <class Storage = PreparedStorage>
Storage prepared(const Exec& exec, const PlainStorage& x) {
  if constexpr (std::is_same_v<Storage, PlainStorage>) {
    return x;
  } else {
    const auto plain = x.matrix();
    Storage storage("KokkosMXPerf: prepared", plain.rows(), plain.cols());
    KokkosMX::prepare(exec, plain, storage.matrix());
    exec.fence("KokkosMXPerf: prepared");
    return storage;
  }
}

/// Bytes of the codes and scales, padding included.
template <class Storage>
std::size_t block_bytes(const Storage& x) {
  return x.codes().size() + x.scales().size();
}

/// All that is kept: codes, scales and summaries.
template <class Storage>
double bits_per_weight(const Storage& x) {
  const auto bytes = block_bytes(x) + x.summaries().size() * sizeof(KokkosMX::RowSummary);
  return 8.0 * static_cast<double>(bytes) /
         (static_cast<double>(x.matrix().rows()) * static_cast<double>(x.matrix().cols()));
}

/// Codes and scales like x's, shuffled.
inline TiledStorage shuffled(const Exec& exec, const PlainStorage& x) {
  const auto plain = x.matrix();
  TiledStorage tiled("KokkosMXPerf: shuffled", plain.rows(), plain.cols());
  KokkosMX::shuffle_weight(exec, plain.codes(), tiled.matrix().codes());
  KokkosMX::shuffle_scale(exec, plain.scales(), tiled.matrix().scales());
  Kokkos::deep_copy(exec, tiled.summaries(), x.summaries());
  exec.fence("KokkosMXPerf: shuffled");
  return tiled;
}

// ------------------------------------------------------------------------------ what ran where

inline std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) != 0) continue;
    const std::size_t colon = line.find(':');
    if (colon != std::string::npos && colon + 2 <= line.size()) return line.substr(colon + 2);
  }
  return "unknown CPU";
}

inline std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return std::string(name) + "=" + (value == nullptr ? "(unset)" : value);
}

/// Others who use the machine make every figure worse.
inline std::string load_average() {
  std::ifstream file("/proc/loadavg");
  std::string minute = "unknown";
  file >> minute;
  return minute;
}

inline std::string compiler() {
#if defined(__clang__)
  return std::string("clang ") + __clang_version__;
#elif defined(__GNUC__)
  return std::string("g++ ") + __VERSION__;
#else
  return "unknown compiler";
#endif
}

/// The OpenMP libraries in this process: with more than one, each has its own threads.
inline std::string openmp_runtimes() {
  std::ifstream file("/proc/self/maps");
  std::set<std::string> names;
  for (std::string line; std::getline(file, line);) {
    const std::string name = line.substr(line.rfind('/') + 1);
    for (const char* known : {"libgomp", "libomp.", "libomp-", "libiomp"}) {
      if (name.rfind(known, 0) == 0) names.insert(line.substr(line.find('/')));
    }
  }
  std::string all;
  for (const std::string& name : names) all += (all.empty() ? "" : ", ") + name;
  if (names.size() > 1) all += " (MORE THAN ONE: times of what shares the process are not fair)";
  return all.empty() ? "none" : all;
}

/// Name and value of everything that a figure depends on.
inline std::vector<std::pair<std::string, std::string>> facts(const Exec& exec) {
  std::string library = "KokkosMX " KOKKOSMX_VERSION_STRING;
#ifdef KOKKOSMX_GIT_HASH
  library += " (" KOKKOSMX_GIT_HASH ")";
#endif
  return {{"library", library + ", Kokkos " + std::to_string(KOKKOS_VERSION / 10000) + "." +
                          std::to_string(KOKKOS_VERSION / 100 % 100) + "." +
                          std::to_string(KOKKOS_VERSION % 100) + ", " + compiler()},
          {"machine", cpu_model() + ", " + std::string(exec.name()) + ", " +
                          std::to_string(exec.concurrency()) + " threads, " +
                          environment("OMP_PROC_BIND") + ", load average " + load_average()},
          {"OpenMP", openmp_runtimes()},
          {"atom", KokkosMX::gemm_atom(exec)}};
}

}  // namespace KokkosMXPerf

#endif
