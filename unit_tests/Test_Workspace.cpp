// SPDX-License-Identifier: Apache-2.0

// What a workspace promises: how many bytes, that a call with one neither allocates nor fences, and
// that two calls with two of them run side by side.

#if defined(__linux__)
#include <dlfcn.h>
#endif
#include <gtest/gtest.h>

#include <KokkosMX.hpp>
#include <Kokkos_Core.hpp>
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "GemmCases.hpp"
#include "Inputs.hpp"
#include "ReferenceGemm.hpp"

// ------------------------------------------------------------------------------ counted memory

namespace {
std::atomic<bool> watching{false};
std::atomic<std::uint64_t> allocations{0};
// caller: where the memory is asked for. What LLVM's OpenMP runtime takes for itself at a parallel
// loop (GNU's takes nothing) is neither Kokkos' nor the library's.
[[maybe_unused]] void count_allocation([[maybe_unused]] const void* caller = nullptr) {
  if (!watching.load(std::memory_order_relaxed)) return;
#if defined(__linux__)
  Dl_info info{};
  if (caller != nullptr && dladdr(caller, &info) != 0 && info.dli_fname != nullptr &&
      std::strstr(info.dli_fname, "libomp") != nullptr) {
    return;
  }
#endif
  allocations.fetch_add(1);
}
}  // namespace

#if defined(__SANITIZE_ADDRESS__)
#define KOKKOSMX_TEST_SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define KOKKOSMX_TEST_SANITIZED
#endif
#endif

// Where the C library lets a program replace malloc, that counts operator new as well; elsewhere
// operator new alone is counted, and nothing under a sanitizer, which replaces both itself.
#if defined(KOKKOSMX_TEST_SANITIZED)
constexpr bool counts_host_memory = false;
#elif defined(__GLIBC__)
constexpr bool counts_host_memory = true;
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);

void* malloc(std::size_t bytes) noexcept {
  count_allocation(__builtin_return_address(0));
  return __libc_malloc(bytes);
}
void* calloc(std::size_t count, std::size_t bytes) noexcept {
  count_allocation(__builtin_return_address(0));
  return __libc_calloc(count, bytes);
}
void* realloc(void* memory, std::size_t bytes) noexcept {
  count_allocation(__builtin_return_address(0));
  return __libc_realloc(memory, bytes);
}
void* aligned_alloc(std::size_t alignment, std::size_t bytes) noexcept {
  count_allocation(__builtin_return_address(0));
  return __libc_memalign(alignment, bytes);
}
int posix_memalign(void** memory, std::size_t alignment, std::size_t bytes) noexcept {
  count_allocation(__builtin_return_address(0));
  *memory = __libc_memalign(alignment, bytes);
  return *memory == nullptr ? 12 : 0;
}
}
#else
constexpr bool counts_host_memory = true;
void* operator new(std::size_t bytes) {
  count_allocation();
  void* memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new[](std::size_t bytes) { return operator new(bytes); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
#endif

namespace {

using namespace KokkosMXTest;
using KokkosMX::BFloat16;
using KokkosMX::rules::reference;
namespace Tools = Kokkos::Tools::Experimental;

template <class F>
std::uint64_t allocations_of(const F& f) {
  allocations = 0;
  watching = true;
  f();
  watching = false;
  return allocations;
}

// What Kokkos reports while a callback is set. One kind at a time: a callback on kernels makes
// Kokkos fence around them.
struct Reported {
  static inline std::atomic<int> count{0};
  static inline std::vector<std::string> names;
};
template <class F>
int fences_of(const F& f) {
  Reported::count = 0;
  Tools::set_begin_fence_callback(
      [](const char*, const std::uint32_t, std::uint64_t*) { ++Reported::count; });
  f();
  Tools::set_begin_fence_callback(nullptr);
  return Reported::count;
}
template <class F>
int kokkos_allocations_of(const F& f) {
  Reported::count = 0;
  Tools::set_allocate_data_callback([](const Kokkos_Profiling_SpaceHandle, const char*, const void*,
                                       const std::uint64_t) { ++Reported::count; });
  f();
  Tools::set_allocate_data_callback(nullptr);
  return Reported::count;
}
template <class F>
int deep_copies_of(const F& f) {
  Reported::count = 0;
  Tools::set_begin_deep_copy_callback([](const Kokkos_Profiling_SpaceHandle, const char*,
                                         const void*, const Kokkos_Profiling_SpaceHandle,
                                         const char*, const void*,
                                         const std::uint64_t) { ++Reported::count; });
  f();
  Tools::set_begin_deep_copy_callback(nullptr);
  return Reported::count;
}
template <class F>
std::vector<std::string> kernels_of(const F& f) {
  const auto begin = [](const char* name, const std::uint32_t, std::uint64_t*) {
    Reported::names.emplace_back(name);
  };
  Reported::names.clear();
  Tools::set_begin_parallel_for_callback(begin);
  Tools::set_begin_parallel_reduce_callback(begin);
  Tools::set_begin_parallel_scan_callback(begin);
  f();
  Tools::set_begin_parallel_for_callback(nullptr);
  Tools::set_begin_parallel_reduce_callback(nullptr);
  Tools::set_begin_parallel_scan_callback(nullptr);
  return Reported::names;
}

// ------------------------------------------------------------------------------ calls

constexpr std::int64_t m = 21, n = 37, k = 352;

using Dense = Kokkos::View<const BFloat16**, Kokkos::LayoutRight, Space>;
Dense dense(std::int64_t rows, std::uint64_t seed) {
  Kokkos::View<BFloat16**, Kokkos::LayoutRight, Space> x("dense", rows, k);
  const auto bits = to_device(bell(rows, k, seed, 12));
  Kokkos::deep_copy(Kokkos::View<std::uint16_t*, Space, Unmanaged>(
                        reinterpret_cast<std::uint16_t*>(x.data()), rows * k),
                    bits);
  return x;
}

using Plain = KokkosMX::Matrix<KokkosMX::RowMajor, KokkosMX::RowMajor, Space>;

// Both operands in all the ways that a call takes them, and what it has to give.
struct Inputs {
  Dense dense_a = dense(m, 1), dense_b = dense(n, 2);
  KokkosMX::MatrixStorage<KokkosMX::RowMajor, KokkosMX::RowMajor, Space> qa{"a", m, k},
      qb{"b", n, k};
  Bits expected;

  Inputs() {
    KokkosMX::quantize(Exec(), dense_a, qa.matrix(), reference);
    KokkosMX::quantize(Exec(), dense_b, qb.matrix(), reference);
    Exec().fence();
    HostMatrix a(m, k), b(n, k);
    const auto read = [](const auto& storage, HostMatrix& x) {
      x.codes = to_host(DeviceArray<std::uint8_t>(storage.codes().data(), x.codes.size()));
      x.scales = to_host(DeviceArray<std::uint8_t>(storage.scales().data(), x.scales.size()));
    };
    read(qa, a);
    read(qb, b);
    expected = ReferenceProduct(a, b).all();
  }
  Plain a() const { return qa.matrix(); }
  Plain b() const { return qb.matrix(); }
  Plain a_without_summaries() const { return {qa.matrix().codes(), qa.matrix().scales()}; }
  Plain b_without_summaries() const { return {qb.matrix().codes(), qb.matrix().scales()}; }

  // Calls f(a, b, rule) for every way; the rule is there where an operand is dense.
  template <class F>
  void every_way(const F& f) const {
    f(a(), b_without_summaries(), "A has summaries");
    f(a_without_summaries(), b(), "B has summaries");
    f(a_without_summaries(), b_without_summaries(), "no summaries");
    f(dense_a, dense_b, "dense");
    f(dense_a, b(), "A dense");
    f(dense_a, b_without_summaries(), "A dense, B without summaries");
    f(a_without_summaries(), dense_b, "B dense");
  }
};

template <class A, class B>
constexpr bool both_matrices =
    KokkosMX::Impl::is_matrix<A>::value&& KokkosMX::Impl::is_matrix<B>::value;

using CView = DeviceRows<float>;

template <class A, class B>
std::size_t size_of(const A& a, const B& b, const CView& c) {
  if constexpr (both_matrices<A, B>) {
    EXPECT_EQ(KokkosMX::gemm_workspace_size(Exec(), a, b, c),
              KokkosMX::quantize_gemm_workspace_size(Exec(), a, b, c));
    return KokkosMX::gemm_workspace_size(Exec(), a, b, c);
  } else {
    return KokkosMX::quantize_gemm_workspace_size(Exec(), a, b, c);
  }
}
template <class A, class B>
void call(const Exec& exec, const KokkosMX::Workspace<Space>& workspace, const A& a, const B& b,
          const CView& c, const KokkosMX::GemmOptions<Space>& options = {}) {
  if constexpr (both_matrices<A, B>) {
    KokkosMX::gemm(exec, workspace, a, b, c, options);
  } else {
    KokkosMX::quantize_gemm(exec, workspace, a, b, c, reference, options);
  }
}
template <class A, class B>
void call_without(const A& a, const B& b, const CView& c) {
  if constexpr (both_matrices<A, B>) {
    KokkosMX::gemm(Exec(), a, b, c);
  } else {
    KokkosMX::quantize_gemm(Exec(), a, b, c, reference);
  }
}

KokkosMX::Workspace<Space> part(const DeviceArray<std::uint8_t>& memory, std::size_t first,
                                std::size_t bytes) {
  return KokkosMX::Workspace<Space>(
      Kokkos::View<std::uint8_t*, Space, Unmanaged>(memory.data() + first, bytes));
}

// The exact number of bytes is enough, wherever they start and whatever they hold; no byte around
// them is written.
TEST(Workspace, ExactBytesAnywhere) {
  const Inputs inputs;
  inputs.every_way([&](const auto& a, const auto& b, const std::string& way) {
    const DeviceOutput<float> c(m, n, n, 1, 0, {});
    const std::size_t bytes = size_of(a, b, c.view());
    EXPECT_GT(bytes, 0u) << way;
    for (const std::size_t start : {0, 1, 3, 8, 63, 64}) {
      std::vector<std::uint8_t> before = random_bytes(bytes + 256, start);
      if (start % 2 == 1) before.assign(before.size(), 255);
      const auto memory = to_device(before);
      call(Exec(), part(memory, 64 + start, bytes), a, b, c.view());
      Exec().fence();
      expect_equal_bits(inputs.expected, c.result(), n, way);
      std::vector<std::uint8_t> after = to_host(memory);
      std::copy_n(before.begin() + 64 + start, bytes, after.begin() + 64 + start);
      EXPECT_EQ(after, before) << way << ": bytes around the workspace changed";
    }
  });
}

// A byte less, and nothing happens but an exception.
TEST(Workspace, OneByteTooSmall) {
  const Inputs inputs;
  inputs.every_way([&](const auto& a, const auto& b, const std::string& way) {
    const DeviceOutput<float> c(m, n, n, 1, 0, {});
    const std::size_t bytes = size_of(a, b, c.view());
    const std::vector<std::uint8_t> before = random_bytes(bytes, 9);
    const auto memory = to_device(before);
    const Bits c_before = c.result();
    const DeviceArray<std::uint64_t> counts("counts", KokkosMX::tier_count);
    KokkosMX::GemmOptions<Space> options;
    options.tier_counts(counts);
    for (const KokkosMX::Workspace<Space>& workspace :
         {part(memory, 0, bytes - 1), part(memory, 0, 0), KokkosMX::Workspace<Space>()}) {
      try {
        call(Exec(), workspace, a, b, c.view(), options);
        ADD_FAILURE() << way << ": no exception";
      } catch (const std::invalid_argument& error) {
        const std::string message = error.what();
        EXPECT_NE(message.find("workspace"), std::string::npos) << message;
        EXPECT_NE(message.find(std::to_string(bytes)), std::string::npos) << message;
        EXPECT_NE(message.find(std::to_string(workspace.bytes())), std::string::npos) << message;
      }
      Exec().fence();
      EXPECT_EQ(c.result(), c_before) << way;
      EXPECT_EQ(to_host(memory), before) << way;
      EXPECT_EQ(to_host(counts), std::vector<std::uint64_t>(KokkosMX::tier_count, 0)) << way;
    }
  });
}

/// Summaries that an operand lacks are made in the workspace; hosts' panel kernel makes them where
/// it loads a panel, and Hopper's kernel of few rows needs none.
bool workspace_has_summaries() {
  const std::string atom = KokkosMX::gemm_atom(Exec());
  return atom != "avx2" && atom != "avx512vnni" && atom != "amx" && atom != "wgmma";
}

// With both summaries at hand no more bytes are needed, and none by the tile kernel.
TEST(Workspace, BothSummaries) {
  const Inputs inputs;
  const DeviceOutput<float> c(m, n, n, 1, 0, {});
  const std::size_t bytes = size_of(inputs.a(), inputs.b(), c.view());
  for (const std::size_t without : {size_of(inputs.a_without_summaries(), inputs.b(), c.view()),
                                    size_of(inputs.a(), inputs.b_without_summaries(), c.view())}) {
    if (workspace_has_summaries()) {
      EXPECT_LT(bytes, without);
    } else {
      EXPECT_EQ(bytes, without);
    }
  }
  if (std::string(KokkosMX::gemm_atom(Exec())) == "portable") {
    EXPECT_EQ(bytes, 0u);
    call(Exec(), KokkosMX::Workspace<Space>(), inputs.a(), inputs.b(), c.view());
  } else {
    const DeviceArray<std::uint8_t> memory("memory", bytes);
    EXPECT_THROW(call(Exec(), part(memory, 0, bytes - 1), inputs.a(), inputs.b(), c.view()),
                 std::invalid_argument);
    call(Exec(), part(memory, 0, bytes), inputs.a(), inputs.b(), c.view());
  }
  Exec().fence();
  expect_equal_bits(inputs.expected, c.result(), n, "both summaries");
}

// Asking for the size runs, allocates and waits for nothing.
TEST(Workspace, SizeIsFree) {
  const Inputs inputs;
  const DeviceOutput<float> c(m, n, n, 1, 0, {});
  const CView view = c.view();
  inputs.every_way([&](const auto& a, const auto& b, const std::string& way) {
    const auto ask = [&] { size_of(a, b, view); };
    EXPECT_EQ(fences_of(ask), 0) << way;
    EXPECT_EQ(kokkos_allocations_of(ask), 0) << way;
    EXPECT_TRUE(kernels_of(ask).empty()) << way;
  });
}

TEST(Workspace, CallsNeitherAllocateNorFence) {
  const Inputs inputs;
  const DeviceOutput<float> c(m, n, n, 1, 0, {});
  const CView view = c.view();
  // The counters count.
  if (counts_host_memory) {
    EXPECT_GE(allocations_of([] {
                const volatile auto size = 1000u;
                const std::vector<int> memory(size);
                EXPECT_NE(memory.data(), nullptr);
              }),
              1u);
  }
  EXPECT_GE(fences_of([] { Exec().fence(); }), 1);
  EXPECT_GE(kokkos_allocations_of([] { const DeviceArray<int> memory("memory", 10); }), 1);
  EXPECT_GE(deep_copies_of([&] {
              Kokkos::deep_copy(DeviceArray<int>("to", 10), DeviceArray<int>("from", 10));
            }),
            1);
  const auto check = [&](const auto& a, const auto& b, const std::string& way) {
    const std::size_t bytes = size_of(a, b, view);
    const DeviceArray<std::uint8_t> memory("memory", bytes);
    const KokkosMX::Workspace<Space> workspace = part(memory, 0, bytes);
    const Exec exec;
    const auto once = [&] { call(exec, workspace, a, b, view); };
    for (int warm_up = 0; warm_up < 3; ++warm_up) once();
    exec.fence();
    EXPECT_EQ(allocations_of(once), 0u) << way << ": host memory";
    EXPECT_EQ(fences_of(once), 0) << way;
    EXPECT_EQ(kokkos_allocations_of(once), 0) << way;
    EXPECT_EQ(deep_copies_of(once), 0) << way;
    exec.fence();
    expect_equal_bits(inputs.expected, c.result(), n, way);
  };
  inputs.every_way(check);
  check(inputs.a(), inputs.b(), "both summaries");
}

// Nor do prepare and unprepare; their kernels have labels.
TEST(Workspace, PrepareNeitherAllocatesNorFences) {
  using KokkosMX::Tile16x128;
  using KokkosMX::Tile16x4;
  const Inputs inputs;
  const DeviceOutput<float> c(m, n, n, 1, 0, {});
  const KokkosMX::MatrixStorage<Tile16x128, Tile16x4, Space> storage("b", n, k);
  const KokkosMX::MatrixStorage<KokkosMX::RowMajor, KokkosMX::RowMajor, Space> back("b", n, k);
  const auto prepared = storage.matrix();
  const auto check = [&](const Plain& from, const std::string& what) {
    const Exec exec;
    const auto once = [&] {
      KokkosMX::prepare(exec, from, prepared);
      KokkosMX::unprepare(exec, prepared, back.matrix());
    };
    for (int warm_up = 0; warm_up < 3; ++warm_up) once();
    exec.fence();
    EXPECT_EQ(allocations_of(once), 0u) << what << ": host memory";
    EXPECT_EQ(fences_of(once), 0) << what;
    EXPECT_EQ(kokkos_allocations_of(once), 0) << what;
    EXPECT_EQ(deep_copies_of(once), 0) << what;
    const std::vector<std::string> names = kernels_of(once);
    exec.fence();
    EXPECT_GE(names.size(), 2u) << what;
    for (const std::string& name : names) {
      EXPECT_EQ(name.rfind("KokkosMX::", 0), 0u) << what << ": " << name;
    }
    // It made the summaries, so the product does not.
    const std::size_t bytes_with = size_of(inputs.a(), prepared, c.view());
    const std::size_t bytes_without =
        size_of(inputs.a(),
                KokkosMX::Matrix<Tile16x128, Tile16x4, Space>(prepared.codes(), prepared.scales()),
                c.view());
    if (workspace_has_summaries()) {
      EXPECT_LT(bytes_with, bytes_without) << what;
    } else {
      EXPECT_EQ(bytes_with, bytes_without) << what;
    }
    call_without(inputs.a(), prepared, c.view());
    expect_equal_bits(inputs.expected, c.result(), n, what);
    call_without(inputs.a(), Plain(back.matrix()), c.view());
    expect_equal_bits(inputs.expected, c.result(), n, what + ", and back");
  };
  check(inputs.b(), "summaries");
  check(inputs.b_without_summaries(), "no summaries");
}

// The overloads without a workspace do both, and what they return is ready.
TEST(Workspace, OverloadsWithoutOneAllocateAndFence) {
  const Inputs inputs;
  inputs.every_way([&](const auto& a, const auto& b, const std::string& way) {
    const DeviceOutput<float> c(m, n, n, 1, 0, {});
    const CView view = c.view();
    const auto once = [&] { call_without(a, b, view); };
    EXPECT_GE(fences_of(once), 1) << way;
    EXPECT_GE(kokkos_allocations_of(once), 1) << way;
    expect_equal_bits(inputs.expected, c.result(), n, way);
  });
}

TEST(Workspace, EveryKernelHasALabel) {
  const Inputs inputs;
  const DeviceOutput<float> c(m, n, n, 1, 0, {});
  const CView view = c.view();
  // The panel kernel does everything in one launch, those of Hopper in two.
  const bool is_image = std::string(KokkosMX::gemm_atom(Exec())) == "wgmma";
  const bool is_panel = !is_image && !workspace_has_summaries();
  std::set<std::string> all;
  inputs.every_way([&](const auto& a, const auto& b, const std::string& way) {
    const std::size_t bytes = size_of(a, b, view);
    const DeviceArray<std::uint8_t> memory("memory", bytes);
    const std::vector<std::string> names =
        kernels_of([&] { call(Exec(), part(memory, 0, bytes), a, b, view); });
    Exec().fence();
    EXPECT_GE(names.size(), is_panel ? 1u : 2u) << way;
    for (const std::string& name : names) {
      EXPECT_EQ(name.rfind("KokkosMX::", 0), 0u) << way << ": " << name;
      all.insert(name);
    }
  });
  EXPECT_GE(all.size(), is_panel   ? 1u
                        : is_image ? 2u
                                   : 3u)
      << "quantize, summarize and gemm have labels of their own";
}

#ifdef KOKKOS_ENABLE_CUDA
// A call is captured into a graph; replayed, it reads what its operands hold then.
TEST(Workspace, CapturedIntoAGraph) {
  const Inputs inputs;
  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  inputs.every_way([&](const auto& a, const auto& b, const std::string& way) {
    const Exec exec(stream);
    const DeviceOutput<float> c(m, n, n, 1, 0, {});
    const std::size_t bytes = size_of(a, b, c.view());
    const DeviceArray<std::uint8_t> memory("memory", bytes);
    call(exec, part(memory, 0, bytes), a, b, c.view());  // code is loaded at the first launch
    exec.fence();
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    call(exec, part(memory, 0, bytes), a, b, c.view());
    ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess) << way;
    ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess) << way;
    for (int replay = 0; replay < 3; ++replay) {
      Kokkos::deep_copy(memory, static_cast<std::uint8_t>(85 * replay));
      const DeviceOutput<float> cleared(m, n, n, 1, 0, {});
      Kokkos::deep_copy(c.view(), cleared.view());
      ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess) << way;
      exec.fence();
      expect_equal_bits(inputs.expected, c.result(), n, way);
    }
    ASSERT_EQ(cudaGraphExecDestroy(executable), cudaSuccess);
    ASSERT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  });
  ASSERT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}
#endif

// Two instances, two workspaces, two host threads, again and again.
TEST(Workspace, TwoInstancesAtOnce) {
  const Inputs inputs;
  std::vector<Exec> instances(2);
  if (Exec().concurrency() >= 2) {
    const auto parts = Kokkos::Experimental::partition_space(Exec(), 1, 1);
    instances = {parts[0], parts[1]};
  }
  const DeviceOutput<float> outputs[] = {{m, n, n, 1, 0, {}}, {m, n, n, 1, 0, {}}};
  std::size_t bytes = 0;
  for (const Exec& exec : instances) {
    const CView c = outputs[0].view();
    const auto ask = [&](const auto& a) {
      bytes = std::max(bytes, KokkosMX::quantize_gemm_workspace_size(exec, a, inputs.dense_b, c));
    };
    ask(inputs.dense_a);
    ask(inputs.a_without_summaries());
  }
  const DeviceArray<std::uint8_t> memory[] = {DeviceArray<std::uint8_t>("first", bytes),
                                              DeviceArray<std::uint8_t>("second", bytes)};
  std::array<std::uint64_t, 2> wrong{};
  const auto work = [&](int which) {
    const Exec& exec = instances[which];
    for (int i = 0; i < 40; ++i) {
      const CView c = outputs[which].view();
      const KokkosMX::Workspace<Space> workspace = part(memory[which], 0, bytes);
      // What one thread does differs from what the other does at the same time.
      if ((i + which) % 2 == 0) {
        call(exec, workspace, inputs.dense_a, inputs.dense_b, c);
      } else {
        call(exec, workspace, inputs.a_without_summaries(), inputs.dense_b, c);
      }
      exec.fence();
      if (outputs[which].result() != inputs.expected) ++wrong[which];
    }
  };
  std::thread first(work, 0), second(work, 1);
  first.join();
  second.join();
  EXPECT_EQ(wrong, (std::array<std::uint64_t, 2>{}));
}

}  // namespace
