// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_PERF_ONE_DNN_HPP
#define KOKKOSMX_PERF_ONE_DNN_HPP

/// \file OneDnn.hpp
/// A baseline that uses all threads and the machine's matrix instructions: oneDNN's matmul, if
/// oneDNN is there. What it multiplies: the dequantized operands in float32 and in bf16 (bf16 out),
/// and for int8 the codes alone, in halves and without their scales (int32 out), which is less than
/// the product asks for.

#include <KokkosMX.hpp>

#include <Kokkos_Core.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "PerfSupport.hpp"

#ifdef KOKKOSMX_HAVE_ONEDNN
#include <dnnl.hpp>
#ifdef _OPENMP
#include <omp.h>
#endif
#endif

namespace KokkosMXPerf {

enum class OneDnnType { f32, bf16, int8 };
inline constexpr OneDnnType one_dnn_types[] = {OneDnnType::f32, OneDnnType::bf16, OneDnnType::int8};
inline constexpr const char* text(OneDnnType type) {
  switch (type) {
    case OneDnnType::f32:
      return "f32";
    case OneDnnType::bf16:
      return "bf16";
    case OneDnnType::int8:
      return "int8";
  }
  return "";
}

/// C = A * B^T, ready to be called: B lies in the layout that the library chose.
struct OneDnnProduct {
  OneDnnType type;
  std::string implementation;  ///< the library's name of the kernel that it chose
  std::function<void()> call;
};

#ifdef KOKKOSMX_HAVE_ONEDNN

namespace Impl {
static_assert(on_host, "oneDNN is a baseline for host execution spaces");

template <class T>
constexpr dnnl::memory::data_type one_dnn_type() {
  using Type = dnnl::memory::data_type;
  return std::is_same_v<T, float>                ? Type::f32
         : std::is_same_v<T, KokkosMX::BFloat16> ? Type::bf16
         : std::is_same_v<T, std::int8_t>        ? Type::s8
                                                 : Type::s32;
}

/// Nothing where the library has no such product for this CPU.
template <class C, class T>
std::optional<OneDnnProduct> one_dnn_product(OneDnnType type, const Matrix2<T>& a,
                                             const Matrix2<T>& b) {
  using dnnl::memory;
  using Tag = memory::format_tag;
  const auto extent = [](const auto& view, int i) {
    return static_cast<memory::dim>(view.extent(static_cast<std::size_t>(i)));
  };
  const memory::dim m = extent(a, 0), n = extent(b, 0), k = extent(a, 1);
  const Matrix2<C> c("KokkosMXPerf: oneDNN's C", a.extent(0), b.extent(0));
  try {
    const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    dnnl::stream stream(engine);
    const memory::desc a_desc({m, k}, one_dnn_type<T>(), Tag::ab);
    const memory::desc any_b({k, n}, one_dnn_type<T>(), Tag::any);
    const memory::desc c_desc({m, n}, one_dnn_type<C>(), Tag::ab);
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::matmul::primitive_desc chosen(engine, a_desc, any_b, c_desc);
#else
    const dnnl::matmul::primitive_desc chosen(dnnl::matmul::desc(a_desc, any_b, c_desc), engine);
#endif
    memory given_b({{k, n}, one_dnn_type<T>(), Tag::ba}, engine, b.data());
    memory own_b(chosen.weights_desc(), engine);
    dnnl::reorder(given_b, own_b).execute(stream, given_b, own_b);
    stream.wait();

    const dnnl::matmul product(chosen);
    const std::unordered_map<int, memory> arguments{
        {DNNL_ARG_SRC, memory(a_desc, engine, a.data())},
        {DNNL_ARG_WEIGHTS, own_b},
        {DNNL_ARG_DST, memory(c_desc, engine, c.data())}};
    // a and c are held: oneDNN's objects only point to them.
    const auto call = [=]() mutable {
      static_cast<void>(a);
      static_cast<void>(c);
      product.execute(stream, arguments);
      stream.wait();
    };
    return OneDnnProduct{type, chosen.impl_info_str(), call};
  } catch (const dnnl::error& error) {
    if (error.status == dnnl_unimplemented) return std::nullopt;
    throw;
  }
}

/// The codes' values times two.
inline Matrix2<std::int8_t> one_dnn_integers(const Exec& exec, const PlainStorage& q) {
  const std::int64_t rows = q.matrix().rows(), k = q.matrix().cols();
  const Matrix2<std::int8_t> integers("KokkosMXPerf: codes as int8", rows, k);
  const auto codes = q.codes();
  Kokkos::parallel_for(
      "KokkosMXPerf::integers", Kokkos::RangePolicy<Exec>(exec, 0, rows), [=](std::int64_t row) {
        constexpr std::int8_t magnitudes[] = {0, 1, 2, 3, 4, 6, 8, 12};
        for (std::int64_t i = 0; i < k; ++i) {
          const int code = codes(0, row, i / 2) >> (4 * (i % 2)) & 15;
          const int value = magnitudes[code & 7];
          integers(row, i) = static_cast<std::int8_t>((code & 8) != 0 ? -value : value);
        }
      });
  exec.fence("KokkosMXPerf: integers");
  return integers;
}

template <class T>
Matrix2<T> one_dnn_dense(const Exec& exec, const PlainStorage& q) {
  const auto matrix = q.matrix();
  const Matrix2<T> dense("KokkosMXPerf: dequantized", matrix.rows(), matrix.cols());
  KokkosMX::dequantize(exec, matrix, dense);
  exec.fence("KokkosMXPerf: dequantized");
  return dense;
}
}  // namespace Impl

/// Of the types that the library can multiply here.
inline std::vector<OneDnnProduct> one_dnn_products(const Exec& exec, const PlainStorage& a,
                                                   const PlainStorage& b) {
  using KokkosMX::BFloat16;
  std::vector<OneDnnProduct> products;
  const auto add = [&](std::optional<OneDnnProduct> product) {
    if (product) products.push_back(*std::move(product));
  };
  add(Impl::one_dnn_product<float>(OneDnnType::f32, Impl::one_dnn_dense<float>(exec, a),
                                   Impl::one_dnn_dense<float>(exec, b)));
  add(Impl::one_dnn_product<BFloat16>(OneDnnType::bf16, Impl::one_dnn_dense<BFloat16>(exec, a),
                                      Impl::one_dnn_dense<BFloat16>(exec, b)));
  add(Impl::one_dnn_product<std::int32_t>(OneDnnType::int8, Impl::one_dnn_integers(exec, a),
                                          Impl::one_dnn_integers(exec, b)));
  return products;
}

/// Its version, threads, and the kernels that it chooses for a product of middle size.
inline std::string one_dnn_name(const Exec& exec) {
  const dnnl_version_t& version = *dnnl_version();
  std::string name = std::to_string(version.major) + "." + std::to_string(version.minor) + "." +
                     std::to_string(version.patch);
#ifdef _OPENMP
  name += ", " + std::to_string(omp_get_max_threads()) + " threads";
#endif
  const PlainStorage a = quantized(exec, bell_bf16(256, 512, 1));
  for (const OneDnnProduct& product : one_dnn_products(exec, a, a)) {
    name += std::string(", ") + text(product.type) + " by " + product.implementation;
  }
  return name;
}

#else

inline std::vector<OneDnnProduct> one_dnn_products(const Exec&, const PlainStorage&,
                                                   const PlainStorage&) {
  return {};
}
inline std::string one_dnn_name(const Exec&) { return "none (built without oneDNN)"; }

#endif

}  // namespace KokkosMXPerf

#endif
