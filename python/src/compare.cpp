// SPDX-License-Identifier: Apache-2.0
// The verdict on somebody's product, counted.

#include "call.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "numbers.hpp"

#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

namespace KokkosMXPython {

namespace {

using KokkosMX::OutputVerdict;
using KokkosMX::Verdict;
using KokkosMX::verdict_count;

/// (verdict, batch, row, column, given bits, exact bits, exact float32, ulps, bound, certified)
using Sample = std::tuple<Verdict, std::int64_t, std::int64_t, std::int64_t, std::uint32_t,
                          std::uint32_t, float, std::int64_t, float, bool>;

struct Tally {
  std::array<std::int64_t, verdict_count> outputs{}, most_ulps{};
  std::int64_t certified = 0;
  std::array<std::vector<Sample>, verdict_count> samples;
};

std::uint32_t element_bits(DType dtype, std::uint32_t f32) {
  switch (dtype) {
    case DType::bfloat16:
      return KokkosMX::Impl::f32_to_bf16(f32);
    case DType::float16:
      return KokkosMX::Impl::f32_to_f16(f32);
    default:
      return f32;
  }
}

/// An integer that counts the numbers of a type: neighbours differ by 1, both zeros are 0.
std::int64_t ordinal(DType dtype, std::uint32_t bits) {
  const std::uint32_t sign = dtype == DType::float32 ? 0x80000000u : 0x8000u;
  const auto magnitude = static_cast<std::int64_t>(bits & ~sign);
  return (bits & sign) != 0 ? -magnitude : magnitude;
}

std::uint32_t load_bits(const DenseRef& c, std::int64_t at) {
  if (c.element == KokkosMX::Impl::Element::f32) {
    return KokkosMX::Impl::load<std::uint32_t>(static_cast<const std::uint32_t*>(c.data) + at);
  }
  return KokkosMX::Impl::load<std::uint16_t>(static_cast<const std::uint16_t*>(c.data) + at);
}

void count(Tally& tally, const OutputVerdict* verdicts, const DenseRef& c, DType dtype,
           std::size_t limit) {
  for (std::int64_t b = 0; b < c.batch; ++b) {
    for (std::int64_t i = 0; i < c.rows; ++i) {
      for (std::int64_t j = 0; j < c.cols; ++j) {
        const OutputVerdict& verdict = verdicts[(b * c.rows + i) * c.cols + j];
        const auto kind = static_cast<std::size_t>(verdict.verdict);
        ++tally.outputs[kind];
        tally.certified += verdict.certified;
        if (verdict.verdict == Verdict::equal) continue;
        const std::uint32_t given =
            load_bits(c, b * c.batch_stride + i * c.row_stride + j * c.col_stride);
        std::uint32_t exact;
        std::memcpy(&exact, &verdict.exact, sizeof(exact));
        const std::uint32_t expected = element_bits(dtype, exact);
        const std::int64_t ulps = verdict.verdict == Verdict::nan_differs
                                      ? 0
                                      : std::abs(ordinal(dtype, given) - ordinal(dtype, expected));
        tally.most_ulps[kind] = std::max(tally.most_ulps[kind], ulps);
        if (tally.samples[kind].size() < limit) {
          tally.samples[kind].emplace_back(verdict.verdict, b, i, j, given, expected, verdict.exact,
                                           ulps, verdict.bound, verdict.certified != 0);
        }
      }
    }
  }
}

nb::tuple compare_outputs(nb::handle a, nb::handle b, nb::handle c, std::optional<ScaleMode> mode,
                          std::optional<Rounding> rounding, std::optional<NonFinite> non_finite,
                          std::int64_t limit, std::optional<DType> uint16_as) {
  Call call("compare", uint16_as);
  const Operand left = call.operand(a, "A", "A codes", "A scales", true);
  const Operand right = call.operand(b, "B", "B codes", "B scales", true);
  const Array& given = call.array(c, "C");
  const DenseRef output = given.dense();
  const bool dense = left.ref.is_dense || right.ref.is_dense;
  std::optional<QuantizeRule> rule;
  if (mode && rounding && non_finite) {
    rule = call.rule(*mode, *rounding, *non_finite);
  } else if (dense) {
    call.fail("a dense operand is quantized: name mode, rounding and non_finite");
  }
  for (const Operand* operand : {&left, &right}) {
    if (operand->k() % KokkosMX::block_size != 0) {
      call.fail("the last extent (K) of an operand is no multiple of 32");
    }
  }
  const auto keep = static_cast<std::size_t>(limit < 0 ? 0 : limit);
  std::optional<Device> device;
  for (const Operand* operand : {&left, &right}) {
    if (operand->prepared != nullptr) device = operand->prepared->device;
  }
  Tally tally;
  call.run(
      [&](auto& lane) {
        using Exec = std::decay_t<decltype(lane.exec())>;
        using Space = typename Exec::memory_space;
        const Exec& exec = lane.exec();
        std::array<PlainStorage, 2> storage;
        std::array<MatrixRef, 2> refs;
        int i = 0;
        for (const Operand* operand : {&left, &right}) {
          if (operand->ref.is_dense) {
            storage[i].allocate<Exec>("kokkosmx.compare", operand->batch(), operand->rows(),
                                      operand->k());
            refs[i] = storage[i].ref();
            KokkosMX::Impl::quantize(exec, operand->ref.dense, refs[i], *rule);
          } else {
            refs[i] = operand->ref.matrix;
          }
          ++i;
        }
        const std::size_t bytes =
            KokkosMX::Impl::compare_workspace_size(exec, refs[0], refs[1], output);
        const auto workspace = lane.workspace(bytes);
        const Kokkos::View<OutputVerdict***, Kokkos::LayoutRight, Space> verdicts(
            Kokkos::view_alloc("kokkosmx: verdicts", Kokkos::WithoutInitializing), output.batch,
            output.rows, output.cols);
        KokkosMX::Impl::compare(exec, workspace.data(), workspace.bytes(), refs[0], refs[1], output,
                                KokkosMX::Impl::verdicts_ref(verdicts));
        exec.fence();
        const auto host = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, verdicts);
        if constexpr (Kokkos::SpaceAccessibility<Kokkos::HostSpace, Space>::accessible) {
          count(tally, host.data(), output, given.dtype(), keep);
        } else {
          // C as its Views' bytes, row by row, on the host.
          DenseRef copy = output;
          const std::int64_t size = size_of(given.dtype());
          std::int64_t span = 1;
          for (const auto& [extent, stride] : {std::pair{output.batch, output.batch_stride},
                                               std::pair{output.rows, output.row_stride},
                                               std::pair{output.cols, output.col_stride}}) {
            span += extent > 0 ? (extent - 1) * stride : 0;
          }
          const Kokkos::View<const std::byte*, Space, Kokkos::MemoryTraits<Kokkos::Unmanaged>> bits(
              static_cast<const std::byte*>(output.data), static_cast<std::size_t>(span * size));
          const auto host_bits = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, bits);
          copy.data = host_bits.data();
          count(tally, host.data(), copy, given.dtype(), keep);
        }
      },
      device);
  std::vector<std::int64_t> outputs(tally.outputs.begin(), tally.outputs.end());
  std::vector<std::int64_t> ulps(tally.most_ulps.begin(), tally.most_ulps.end());
  std::vector<Sample> samples;
  for (const auto& kind : tally.samples) samples.insert(samples.end(), kind.begin(), kind.end());
  return nb::make_tuple(outputs, tally.certified, ulps, samples, name_of(given.dtype()),
                        given.rank() == 3);
}

}  // namespace

void bind_compare(nb::module_& m) {
  using namespace nb::literals;
  nb::enum_<Verdict>(m, "Verdict", "What is to be said of one output of somebody's product.")
      .value("equal", Verdict::equal, "The bits of the exact product.")
      .value("zero_sign", Verdict::zero_sign, "-0 for a sum of nothing but -0. Excusable.")
      .value("within_bound", Verdict::within_bound,
             "Not certified; a float32 accumulation may give it. Excusable.")
      .value("certified_differs", Verdict::certified_differs,
             "Differs, though float32 sums are exact in any order.")
      .value("beyond_bound", Verdict::beyond_bound, "No float32 accumulation gives it.")
      .value("nan_differs", Verdict::nan_differs,
             "A NaN where a number is due, or a number where a NaN is.");
  m.def("compare_outputs", &compare_outputs, "a"_a, "b"_a, "c"_a, nb::kw_only(),
        "mode"_a = nb::none(), "rounding"_a = nb::none(), "non_finite"_a = nb::none(),
        "limit"_a = 5, "uint16_as"_a = nb::none());
}

}  // namespace KokkosMXPython
