// SPDX-License-Identifier: Apache-2.0
// Codes and scales as float32 numbers, for arrays of any rank.

#include "call.hpp"

#include <nanobind/stl/vector.h>

#include "numbers.hpp"

#include <cstdint>
#include <vector>

namespace KokkosMXPython {

namespace {

/// The strided bytes of an input, in row-major order.
struct Bytes {
  const std::uint8_t* data;
  int rank;
  std::int64_t shape[most_ranks], stride[most_ranks];

  KOKKOS_FUNCTION std::uint8_t operator()(std::int64_t i) const {
    std::int64_t offset = 0;
    for (int d = rank - 1; d >= 0; --d) {
      offset += i % shape[d] * stride[d];
      i /= shape[d];
    }
    return data[offset];
  }
};

/// mxfp4_to_f32: two numbers a byte, low nibble first.
struct CodesToFloat {
  static constexpr const char* name = "codes_to_float32";
  static constexpr int per_byte = 2;
  Bytes from;
  std::uint32_t* to;
  KOKKOS_FUNCTION void operator()(std::int64_t i) const {
    const std::uint8_t byte = from(i);
    to[2 * i] = number(byte & 15);
    to[2 * i + 1] = number(byte >> 4);
  }
  KOKKOS_FUNCTION static std::uint32_t number(std::uint32_t code) {
    const auto halves =
        static_cast<std::int64_t>(KokkosMX::Impl::halves_of(static_cast<int>(code)));
    return (code >> 3) << 31 | KokkosMX::Impl::round_to_f32(halves, -1);
  }
};

/// e8m0_to_f32: 2^(s - 127), 255 is NaN.
struct ScalesToFloat {
  static constexpr const char* name = "scales_to_float32";
  static constexpr int per_byte = 1;
  Bytes from;
  std::uint32_t* to;
  KOKKOS_FUNCTION void operator()(std::int64_t i) const {
    const std::uint8_t s = from(i);
    to[i] = s == 255 ? KokkosMX::Impl::f32_nan : KokkosMX::Impl::round_to_f32(1, s - 127);
  }
};

template <class Body>
nb::object convert(nb::handle bytes) {
  Call call(Body::name);
  const Array& input = call.array(bytes, Body::per_byte == 2 ? "codes" : "scales");
  input.require_bytes();
  if (input.rank() < 1) call.fail("an array of at least one dimension is needed");
  std::vector<std::int64_t> shape;
  Body body{};
  body.from.data = static_cast<const std::uint8_t*>(input.data());
  body.from.rank = input.rank();
  std::int64_t count = 1;
  for (int d = 0; d < input.rank(); ++d) {
    shape.push_back(input.extent(d));
    body.from.shape[d] = input.extent(d);
    body.from.stride[d] = input.stride(d);
    count *= input.extent(d);
  }
  shape.back() *= Body::per_byte;
  const Array& result = call.result(nb::none(), "result", input, DType::float32, shape);
  body.to = static_cast<std::uint32_t*>(result.data());
  call.run([&](auto& lane) {
    using Exec = std::decay_t<decltype(lane.exec())>;
    static const std::string label = std::string("kokkosmx.") + Body::name;
    Kokkos::parallel_for(
        label, Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>(lane.exec(), 0, count),
        body);
  });
  return nb::borrow(result.object());
}

}  // namespace

void bind_elementwise(nb::module_& m) {
  using namespace nb::literals;
  m.def("codes_to_float32", &convert<CodesToFloat>, "codes"_a);
  m.def("scales_to_float32", &convert<ScalesToFloat>, "scales"_a);
}

}  // namespace KokkosMXPython
