// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_UNIT_TESTS_GFX950_BOTH_HPP
#define KOKKOSMX_UNIT_TESTS_GFX950_BOTH_HPP

/// \file Both.hpp
/// One and the same call on the device, whose kernels the executor runs where there is none, and on
/// the host's execution space: every bit of what they give is compared. How many outputs were
/// compared, kernel by kernel, is printed when a program ends.

#include <gtest/gtest.h>

#include <KokkosMX.hpp>
#include <Kokkos_Core.hpp>
#include <cstdint>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../GemmCases.hpp"
#include "../Inputs.hpp"

#include "Runtime.hpp"

namespace KokkosMXTest {

using Host = Kokkos::DefaultHostExecutionSpace;
using Bytes = std::vector<std::uint8_t>;

// ------------------------------------------------------------------------------ memory

/// A View's elements, which are contiguous, as bytes on the host.
template <class View>
Bytes bytes_of(const View& view) {
  Bytes bytes(view.span() * sizeof(typename View::value_type));
  using From = Kokkos::View<const std::uint8_t*, typename View::memory_space, Unmanaged>;
  Kokkos::deep_copy(
      Kokkos::View<std::uint8_t*, Kokkos::HostSpace, Unmanaged>(bytes.data(), bytes.size()),
      From(reinterpret_cast<const std::uint8_t*>(view.data()), bytes.size()));
  return bytes;
}
/// The other way round. Takes the first bytes where there are more.
template <class View>
void set_bytes(const View& view, const void* bytes) {
  const std::size_t size = view.span() * sizeof(typename View::value_type);
  using To = Kokkos::View<std::uint8_t*, typename View::memory_space, Unmanaged>;
  Kokkos::deep_copy(To(reinterpret_cast<std::uint8_t*>(view.data()), size),
                    Kokkos::View<const std::uint8_t*, Kokkos::HostSpace, Unmanaged>(
                        static_cast<const std::uint8_t*>(bytes), size));
}
/// What nobody has written is the same on both sides, and on the device not to be read.
template <class View>
void forget(const View& view) {
  if constexpr (std::is_same_v<typename View::memory_space, Kokkos::HostSpace>) {
    if (view.span() > 0) {
      std::memset(static_cast<void*>(view.data()), unwritten_byte,
                  view.span() * sizeof(typename View::value_type));
    }
  }
}

template <class Exec, class T>
using Array2 = Kokkos::View<T**, Kokkos::LayoutRight, typename Exec::memory_space>;
template <class Exec, class T>
using Array3 = Kokkos::View<T***, Kokkos::LayoutRight, typename Exec::memory_space>;

/// (batch, rows, cols), not written yet.
template <class Exec, class T>
Array3<Exec, T> fresh(std::int64_t batch, std::int64_t rows, std::int64_t cols) {
  Array3<Exec, T> view(Kokkos::view_alloc("output", Kokkos::WithoutInitializing), batch, rows,
                       cols);
  forget(view);
  return view;
}
template <class Exec, class T>
Array3<Exec, T> filled(std::int64_t batch, std::int64_t rows, std::int64_t cols,
                       const void* bytes) {
  const auto view = fresh<Exec, T>(batch, rows, cols);
  set_bytes(view, bytes);
  return view;
}

template <class Exec, class CodesLayout, class ScalesLayout>
using Storage = KokkosMX::MatrixStorage<CodesLayout, ScalesLayout, typename Exec::memory_space>;

/// A matrix that has not been written yet.
template <class Exec, class CodesLayout, class ScalesLayout>
Storage<Exec, CodesLayout, ScalesLayout> fresh_matrix(std::int64_t batch, std::int64_t rows,
                                                      std::int64_t k) {
  Storage<Exec, CodesLayout, ScalesLayout> storage("matrix", rows, k, batch);
  forget(storage.codes());
  forget(storage.scales());
  forget(storage.summaries());
  return storage;
}

/// Host matrices as a batch, in any layouts, with summaries. The layouts' padding is what shuffles
/// and prepare write.
template <class Exec, class CodesLayout, class ScalesLayout>
Storage<Exec, CodesLayout, ScalesLayout> to_storage(const std::vector<HostMatrix>& batch) {
  using KokkosMX::RowMajor;
  const std::int64_t rows = batch.at(0).rows, k = batch.at(0).k;
  const auto count = static_cast<std::int64_t>(batch.size());
  const auto plain = fresh_matrix<Host, RowMajor, RowMajor>(count, rows, k);
  Bytes codes, scales;
  for (const HostMatrix& one : batch) {
    codes.insert(codes.end(), one.codes.begin(), one.codes.end());
    scales.insert(scales.end(), one.scales.begin(), one.scales.end());
  }
  set_bytes(plain.codes(), codes.data());
  set_bytes(plain.scales(), scales.data());
  const Host host;
  KokkosMX::summarize(host, plain.matrix(), plain.summaries());
  const auto there = fresh_matrix<Host, CodesLayout, ScalesLayout>(count, rows, k);
  const auto prepared =
      fresh_matrix<Host, KokkosMX::Tile16x128, KokkosMX::Tile16x4>(count, rows, k);
  KokkosMX::prepare(host, plain.matrix(), prepared.matrix());
  if constexpr (std::is_same_v<CodesLayout, RowMajor>) {
    Kokkos::deep_copy(there.codes(), plain.codes());
  } else if constexpr (std::is_same_v<CodesLayout, KokkosMX::Tile16x128>) {
    Kokkos::deep_copy(there.codes(), prepared.codes());
  } else {
    KokkosMX::shuffle_weight(host, plain.matrix().codes(), there.matrix().codes());
  }
  if constexpr (std::is_same_v<ScalesLayout, RowMajor>) {
    Kokkos::deep_copy(there.scales(), plain.scales());
  } else if constexpr (std::is_same_v<ScalesLayout, KokkosMX::Tile16x4>) {
    Kokkos::deep_copy(there.scales(), prepared.scales());
  } else {
    KokkosMX::shuffle_scale(host, plain.matrix().scales(), there.matrix().scales());
  }
  Kokkos::deep_copy(there.summaries(), plain.summaries());
  host.fence();
  const auto result = fresh_matrix<Exec, CodesLayout, ScalesLayout>(count, rows, k);
  set_bytes(result.codes(), bytes_of(there.codes()).data());
  set_bytes(result.scales(), bytes_of(there.scales()).data());
  set_bytes(result.summaries(), bytes_of(there.summaries()).data());
  return result;
}

// ------------------------------------------------------------------------------ outputs

/// A (rows, cols) array that a call wrote, as the bits of its elements.
struct Output {
  std::string name;
  std::int64_t cols;
  int element_bytes;
  Bytes bytes;
  std::int64_t size() const { return static_cast<std::int64_t>(bytes.size()) / element_bytes; }
};
template <class View>
Output output(const std::string& name, const View& view) {
  Bytes bytes = bytes_of(view);
  if constexpr (std::is_same_v<typename View::value_type, KokkosMX::RowSummary>) {
    for (std::size_t i = 0; i < bytes.size(); i += sizeof(KokkosMX::RowSummary)) {
      std::memset(&bytes[i + offsetof(KokkosMX::RowSummary, reserved)], 0,
                  sizeof(KokkosMX::RowSummary::reserved));
    }
  }
  return {name, static_cast<std::int64_t>(view.extent(View::rank() - 1)),
          static_cast<int>(sizeof(typename View::value_type)), std::move(bytes)};
}
/// Golden data.
template <class T>
Output output(const std::string& name, const GoldenArray<T>& golden) {
  Bytes bytes(golden.data.size() * sizeof(T));
  std::memcpy(bytes.data(), golden.data.data(), bytes.size());
  return {name, golden.cols, static_cast<int>(sizeof(T)), std::move(bytes)};
}
using Outputs = std::vector<Output>;
template <class Matrix>
void add_matrix(Outputs& outputs, const std::string& name, const Matrix& storage) {
  outputs.push_back(output(name + ": codes", storage.codes()));
  outputs.push_back(output(name + ": scales", storage.scales()));
  outputs.push_back(output(name + ": summaries", storage.summaries()));
}

/// Compared outputs and differences, by kernels.
struct Compared {
  std::int64_t outputs = 0, differences = 0;
};
inline std::map<std::string, Compared>& compared_by_kernel() {
  static std::map<std::string, Compared> table;
  return table;
}

/// How many elements differ; tells of the first.
inline std::int64_t differences(const Output& is, const Output& expected, const std::string& where,
                                const std::set<std::string>& kernels) {
  EXPECT_EQ(is.size(), expected.size()) << is.name << where;
  if (is.size() != expected.size()) return 1;
  std::int64_t count = 0, first = 0;
  const auto element = [](const Output& of, std::int64_t i) {
    return of.bytes.data() + i * of.element_bytes;
  };
  for (std::int64_t i = 0; i < is.size(); ++i) {
    if (std::memcmp(element(is, i), element(expected, i), is.element_bytes) == 0) continue;
    if (count++ == 0) first = i;
  }
  if (count == 0) return 0;
  const auto hex = [&](const Output& of) {
    std::string text;
    for (int byte = of.element_bytes; byte-- > 0;) {
      constexpr char digits[] = "0123456789abcdef";
      const std::uint8_t value = element(of, first)[byte];
      text += digits[value >> 4];
      text += digits[value & 15];
    }
    return text;
  };
  std::string list;
  for (const std::string& kernel : kernels) list += "\n    " + kernel;
  ADD_FAILURE() << is.name << where << ": " << count << " of " << is.size()
                << " differ, the first in row " << first / is.cols << ", column " << first % is.cols
                << ": 0x" << hex(is) << ", expected 0x" << hex(expected) << "\n  kernels:" << list;
  return count;
}

/// Calls call(exec), which gives Outputs, on both spaces, and compares; with the golden ones that
/// have the same names too.
template <class Call>
void same_on_both(const Call& call, const Outputs& golden = {}) {
  take_launched_kernels();
  const Outputs is = call(Exec());
  std::set<std::string> kernels;
  for (const std::string& name : take_launched_kernels()) kernels.insert(readable(name));
  EXPECT_FALSE(kernels.empty()) << "nothing was launched";
  const Outputs expected = call(Host());
  ASSERT_EQ(is.size(), expected.size());
  Compared all;
  const auto compare = [&](const Output& one, const Output& with, const char* where) {
    all.outputs += one.size();
    all.differences += differences(one, with, where, kernels);
  };
  for (std::size_t i = 0; i < is.size(); ++i) compare(is[i], expected[i], " as on the host");
  for (const Output& known : golden) {
    bool found = false;
    for (const Output& one : is) {
      if (one.name != known.name) continue;
      found = true;
      compare(one, known, " as in the golden data");
    }
    EXPECT_TRUE(found) << known.name;
  }
  for (const std::string& kernel : kernels) {
    compared_by_kernel()[kernel].outputs += all.outputs;
    compared_by_kernel()[kernel].differences += all.differences;
  }
}

/// Prints what was compared when all tests have run: a line for every kernel of the library.
class PrintCompared : public testing::Environment {
 public:
  void TearDown() override {
    for (const std::string& kernel : all_kernels()) {
      if (kernel.find("KokkosMX") != std::string::npos) compared_by_kernel()[readable(kernel)];
    }
    for (const auto& [kernel, compared] : compared_by_kernel()) {
      std::cout << "gfx950: " << compared.outputs << " outputs compared, " << compared.differences
                << " differ: " << kernel << std::endl;
    }
  }
};
inline testing::Environment* const print_compared =
    testing::AddGlobalTestEnvironment(new PrintCompared);

}  // namespace KokkosMXTest

#endif
