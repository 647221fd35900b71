// SPDX-License-Identifier: Apache-2.0
// The extension module kokkosmx._core. Its functions are the package's public ones; docstrings with
// examples stand here, types in _core.pyi.

#include "call.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <KokkosMX.hpp>
#include <KokkosMX/Version.hpp>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace KokkosMXPython {

namespace {

using namespace nb::literals;
using KokkosMX::Tier;

using Shape = std::vector<std::int64_t>;
/// (batch, rows, cols), the batch only where there is one.
Shape shape_of(bool has_batch, std::int64_t batch, std::int64_t rows, std::int64_t cols) {
  return has_batch ? Shape{batch, rows, cols} : Shape{rows, cols};
}

KokkosMX::ScalesShape scales_shape(ScalesKind kind, std::int64_t rows, std::int64_t k) {
  return kind == ScalesKind::row_major ? KokkosMX::scales_shape<KokkosMX::RowMajor>(rows, k)
                                       : KokkosMX::scales_shape<KokkosMX::Tile32x8>(rows, k);
}

/// The pair of out=(codes, scales), or two None.
std::pair<nb::object, nb::object> pair_of(nb::handle out, const char* function) {
  if (out.is_none()) return {nb::none(), nb::none()};
  if (!nb::isinstance<nb::tuple>(out) || nb::len(out) != 2) {
    throw nb::type_error(("kokkosmx." + std::string(function) +
                          ": out is a tuple (codes, scales), given a " + text_of(out))
                             .c_str());
  }
  return {out[0], out[1]};
}

nb::tuple quantize(nb::handle x, ScaleMode mode, Rounding rounding, NonFinite non_finite,
                   CodesKind codes_layout, ScalesKind scales_layout, nb::handle out,
                   std::optional<DType> uint16_as) {
  Call call("quantize", uint16_as);
  const auto [out_codes, out_scales] = pair_of(out, "quantize");
  const Array& input = call.array(x, "x");
  const DenseRef dense = input.dense();
  const QuantizeRule rule = call.rule(mode, rounding, non_finite);
  if (dense.cols % KokkosMX::block_size != 0) call.fail("the last extent (K) is no multiple of 32");
  const bool batch = input.rank() == 3;
  const KokkosMX::ScalesShape padded = scales_shape(scales_layout, dense.rows, dense.cols);
  const Array& codes = call.result(out_codes, "codes", input, DType::uint8,
                                   shape_of(batch, dense.batch, dense.rows, dense.cols / 2));
  const Array& scales = call.result(out_scales, "scales", input, DType::uint8,
                                    shape_of(batch, dense.batch, padded.rows, padded.cols));
  const MatrixRef q = matrix_ref(codes, scales, codes_layout, scales_layout);
  call.run([&](auto& lane) { KokkosMX::Impl::quantize(lane.exec(), dense, q, rule); });
  return nb::make_tuple(codes.object(), scales.object());
}

nb::object dequantize(nb::handle q, DType dtype, nb::handle out, std::optional<DType> uint16_as) {
  Call call("dequantize", uint16_as);
  const Operand operand = call.operand(q, "q", "codes", "scales", false);
  const MatrixRef& matrix = operand.ref.matrix;
  std::optional<Array> like;
  if (operand.array == nullptr) like.emplace(operand.prepared->like, "q");
  const Array& result =
      call.result(out, "out", operand.array != nullptr ? *operand.array : *like, dtype,
                  shape_of(operand.has_batch, operand.batch(), matrix.rows, matrix.k));
  const DenseRef x = result.dense();
  call.run([&](auto& lane) { KokkosMX::Impl::dequantize(lane.exec(), matrix, x); },
           operand.prepared != nullptr ? std::optional(operand.prepared->device) : std::nullopt);
  return nb::borrow(result.object());
}

/// shuffle_weight and its inverse.
nb::object copy_codes(const char* function, nb::handle codes, nb::handle out, CodesKind from,
                      CodesKind to) {
  Call call(function);
  const Array& input = call.array(codes, "codes");
  const BytesRef source = input.bytes();
  const Array& result =
      call.result(out, "out", input, DType::uint8,
                  shape_of(input.rank() == 3, source.batch, source.rows, source.cols));
  const BytesRef target = result.bytes();
  call.run([&](auto& lane) { KokkosMX::Impl::copy_codes(lane.exec(), source, from, target, to); });
  return nb::borrow(result.object());
}

nb::object shuffle_scale(nb::handle scales, nb::handle out) {
  Call call("shuffle_scale");
  const Array& input = call.array(scales, "scales");
  const BytesRef source = input.bytes();
  const auto padded = scales_shape(ScalesKind::tile_32x8, source.rows, 32 * source.cols);
  const Array& result =
      call.result(out, "out", input, DType::uint8,
                  shape_of(input.rank() == 3, source.batch, padded.rows, padded.cols));
  const BytesRef target = result.bytes();
  call.run([&](auto& lane) {
    KokkosMX::Impl::copy_scales(lane.exec(), source, ScalesKind::row_major, target,
                                ScalesKind::tile_32x8);
  });
  return nb::borrow(result.object());
}

nb::object unshuffle_scale(nb::handle scales, std::optional<std::int64_t> rows,
                           std::optional<std::int64_t> cols, nb::handle out) {
  Call call("unshuffle_scale");
  const Array& input = call.array(scales, "scales");
  const BytesRef source = input.bytes();
  // Before a result of this shape is allocated.
  const auto all_or_fewer = [&](std::optional<std::int64_t> given, std::int64_t there,
                                const char* what) {
    if (given && (*given < 0 || *given > there)) {
      call.fail(std::string(what) + " is " + std::to_string(*given) + ", of " +
                std::to_string(there));
    }
    return given.value_or(there);
  };
  const std::int64_t kept_rows = all_or_fewer(rows, source.rows, "rows");
  const std::int64_t kept_cols = all_or_fewer(cols, source.cols, "cols");
  const Array& result =
      call.result(out, "out", input, DType::uint8,
                  shape_of(input.rank() == 3, source.batch, kept_rows, kept_cols));
  const BytesRef target = result.bytes();
  call.run([&](auto& lane) {
    KokkosMX::Impl::copy_scales(lane.exec(), source, ScalesKind::tile_32x8, target,
                                ScalesKind::row_major);
  });
  return nb::borrow(result.object());
}

/// The epilogue's arguments as Python gives them.
struct Epilogue {
  float alpha = 1, beta = 0;
  nb::handle bias = nb::none();
  Tier minimum_tier = Tier::automatic;
  nb::handle tier_counts = nb::none();
};

nb::object product(Call& call, const Operand& a, const Operand& b, std::optional<DType> dtype,
                   nb::handle out, const Epilogue& epilogue, const QuantizeRule* rule) {
  if (epilogue.beta != 0 && out.is_none()) {
    call.fail("beta is " + std::to_string(epilogue.beta) + ", but there is no out= to read");
  }
  // The framework of the result: that of A, or of B where A has none.
  std::optional<Array> prepared_like;
  const Array* like = a.array != nullptr ? a.array : b.array;
  if (like == nullptr) like = &prepared_like.emplace(a.prepared->like, "A");
  const DType type = dtype            ? *dtype
                     : a.ref.is_dense ? a.array->dtype()
                     : b.ref.is_dense ? b.array->dtype()
                                      : DType::float32;
  const Array& result =
      call.result(out, "out", *like, type,
                  shape_of(a.has_batch || b.has_batch, a.batch() == 1 ? b.batch() : a.batch(),
                           a.rows(), b.rows()));
  const DenseRef c = result.dense();
  KokkosMX::Impl::GemmSettings settings;
  settings.alpha = epilogue.alpha;
  settings.beta = epilogue.beta;
  settings.minimum_tier = epilogue.minimum_tier;
  if (!epilogue.bias.is_none()) {
    const Array::Vector bias = call.array(epilogue.bias, "bias").vector(DType::float32);
    settings.bias = static_cast<const float*>(bias.data);
    settings.has_bias = true;
    settings.bias_size = bias.extent;
    settings.bias_stride = bias.stride;
  }
  if (!epilogue.tier_counts.is_none()) {
    const Array& counts_array = call.array(epilogue.tier_counts, "tier_counts");
    counts_array.require_writable();
    const Array::Vector counts = counts_array.vector(DType::uint64);
    if (counts.extent > 1 && counts.stride != 1) call.fail("tier_counts is not contiguous");
    if (reinterpret_cast<std::uintptr_t>(counts.data) % alignof(std::uint64_t) != 0) {
      call.fail("tier_counts is not aligned to 8 bytes");
    }
    settings.counts = static_cast<std::uint64_t*>(counts.data);
    settings.has_counts = true;
    settings.counts_size = counts.extent;
  }
  std::optional<Device> device;
  for (const Operand* operand : {&a, &b}) {
    if (operand->prepared != nullptr) device = operand->prepared->device;
  }
  call.run(
      [&](auto& lane) {
        const std::size_t bytes = KokkosMX::Impl::gemm_workspace_size(lane.exec(), a.ref, b.ref, c);
        const auto workspace = lane.workspace(bytes);
        KokkosMX::Impl::gemm(lane.exec(), workspace.data(), workspace.bytes(), a.ref, b.ref, c,
                             settings, rule);
      },
      device);
  return nb::borrow(result.object());
}

nb::object gemm(nb::handle a, nb::handle b, DType dtype, nb::handle out, float alpha, float beta,
                nb::handle bias, Tier minimum_tier, nb::handle tier_counts,
                std::optional<DType> uint16_as) {
  Call call("gemm", uint16_as);
  const Operand left = call.operand(a, "A", "A codes", "A scales", false);
  const Operand right = call.operand(b, "B", "B codes", "B scales", false);
  return product(call, left, right, dtype, out, {alpha, beta, bias, minimum_tier, tier_counts},
                 nullptr);
}

nb::object quantize_gemm(nb::handle a, nb::handle b, ScaleMode mode, Rounding rounding,
                         NonFinite non_finite, std::optional<DType> dtype, nb::handle out,
                         float alpha, float beta, nb::handle bias, Tier minimum_tier,
                         nb::handle tier_counts, std::optional<DType> uint16_as) {
  Call call("quantize_gemm", uint16_as);
  const Operand left = call.operand(a, "A", "A codes", "A scales", true);
  const Operand right = call.operand(b, "B", "B codes", "B scales", true);
  const QuantizeRule rule = call.rule(mode, rounding, non_finite);
  return product(call, left, right, dtype, out, {alpha, beta, bias, minimum_tier, tier_counts},
                 &rule);
}

nb::object custom_kernel(nb::sequence data) {
  Call call("reference.custom_kernel");
  const auto count = nb::len(data);
  if (count < 2) {
    throw nb::value_error(
        ("kokkosmx.reference.custom_kernel: expected (A, B, *rest), given a " + text_of(data))
            .c_str());
  }
  const nb::object a = data[0], b = data[1];
  const Operand left = call.operand(a, "A", "A", "A", true);
  const Operand right = call.operand(b, "B", "B", "B", true);
  return product(call, left, right, {}, nb::none(), {}, &KokkosMX::rules::reference);
}

Prepared prepare(nb::handle x, std::optional<ScaleMode> mode, std::optional<Rounding> rounding,
                 std::optional<NonFinite> non_finite, std::optional<DType> uint16_as) {
  Call call("prepare", uint16_as);
  const Operand operand = call.operand(x, "x", "codes", "scales", true);
  std::optional<QuantizeRule> rule;
  if (operand.ref.is_dense) {
    if (!mode || !rounding || !non_finite) {
      call.fail("a dense operand is quantized: name its mode, rounding and non_finite");
    }
    rule = call.rule(*mode, *rounding, *non_finite);
    if (operand.k() % KokkosMX::block_size != 0) {
      call.fail("the last extent (K) is no multiple of 32");
    }
  } else if (mode || rounding || non_finite) {
    call.fail("codes and scales are not quantized again: leave out mode, rounding and non_finite");
  }
  Prepared prepared;
  prepared.has_batch = operand.has_batch;
  if (operand.array != nullptr) {
    prepared.device = operand.array->device();
    prepared.like = nb::borrow(operand.array->object());
  } else {
    prepared.device = operand.prepared->device;
    prepared.like = operand.prepared->like;
  }
  call.run(
      [&](auto& lane) {
        using Exec = std::decay_t<decltype(lane.exec())>;
        prepared.storage.template allocate<Exec>("kokkosmx.prepare", operand.batch(),
                                                 operand.rows(), operand.k());
        if (rule) {
          KokkosMX::Impl::quantize(lane.exec(), operand.ref.dense, prepared.storage.ref(), *rule);
        } else {
          KokkosMX::Impl::copy_matrix(lane.exec(), KokkosMX::Impl::MatrixCopy::prepare,
                                      operand.ref.matrix, prepared.storage.ref());
        }
      },
      operand.prepared != nullptr ? std::optional(operand.prepared->device) : std::nullopt);
  // Only the framework is asked of it later: an empty array keeps no memory alive.
  const Array like(prepared.like, "x");
  prepared.like = make_result(like, DType::uint8, {0, 0}, false).object;
  return prepared;
}

nb::tuple unprepare(const Prepared& prepared, nb::handle out) {
  Call call("Prepared.unprepare");
  const auto [out_codes, out_scales] = pair_of(out, "Prepared.unprepare");
  const MatrixRef& from = prepared.storage.ref();
  const std::int64_t batch = from.codes.batch;
  const Array like(prepared.like, "prepared");
  const Array& codes = call.result(out_codes, "codes", like, DType::uint8,
                                   shape_of(prepared.has_batch, batch, from.rows, from.k / 2));
  const Array& scales = call.result(out_scales, "scales", like, DType::uint8,
                                    shape_of(prepared.has_batch, batch, from.rows, from.k / 32));
  const MatrixRef to = matrix_ref(codes, scales, CodesKind::row_major, ScalesKind::row_major);
  call.run(
      [&](auto& lane) {
        KokkosMX::Impl::copy_matrix(lane.exec(), KokkosMX::Impl::MatrixCopy::unprepare, from, to);
      },
      prepared.device);
  return nb::make_tuple(codes.object(), scales.object());
}

nb::tuple extents(bool has_batch, std::int64_t batch, std::int64_t rows, std::int64_t k) {
  return has_batch ? nb::make_tuple(batch, rows, k) : nb::make_tuple(rows, k);
}

Matrix make_matrix(nb::object codes, nb::object scales, CodesKind codes_layout,
                   ScalesKind scales_layout) {
  Call call("Matrix");
  const MatrixRef ref = matrix_ref(call.array(codes, "codes"), call.array(scales, "scales"),
                                   codes_layout, scales_layout);
  const KokkosMX::ScalesShape expected = scales_shape(scales_layout, ref.rows, ref.k);
  if (ref.k % KokkosMX::block_size != 0) call.fail("the codes' K is no multiple of 32");
  if (ref.scales.batch != ref.codes.batch || ref.scales.rows != expected.rows ||
      ref.scales.cols != expected.cols) {
    call.fail("the scales of this layout need the shape " +
              text_of({ref.codes.batch, expected.rows, expected.cols}) +
              " (batch, rows, columns) for these codes");
  }
  return {std::move(codes), std::move(scales), codes_layout, scales_layout};
}

/// Row summaries of an operand, as the report reads them.
nb::tuple row_spreads(nb::handle x) {
  Call call("row_spreads");
  const Operand operand = call.operand(x, "x", "codes", "scales", false);
  const std::int64_t rows = operand.batch() * operand.rows();
  std::vector<std::int64_t> counts(256, 0);
  std::int64_t nan_rows = 0;
  MatrixRef matrix = operand.ref.matrix;
  call.run(
      [&](auto& lane) {
        using Space = typename std::decay_t<decltype(lane.exec())>::memory_space;
        const Kokkos::View<KokkosMX::RowSummary*, Space> summaries(
            Kokkos::view_alloc("kokkosmx: summaries", Kokkos::WithoutInitializing), rows);
        matrix.summaries = {summaries.data(), true,           operand.batch(),
                            operand.rows(),   operand.rows(), 1};
        KokkosMX::Impl::summarize(lane.exec(), matrix);
        lane.exec().fence();
        const auto host = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, summaries);
        for (std::int64_t i = 0; i < rows; ++i) {
          const KokkosMX::RowSummary& row = host(static_cast<std::size_t>(i));
          ++counts[static_cast<std::size_t>(row.hi - row.lo)];
          nan_rows += row.has_nan;
        }
      },
      operand.prepared != nullptr ? std::optional(operand.prepared->device) : std::nullopt);
  while (counts.size() > 1 && counts.back() == 0) counts.pop_back();
  return nb::make_tuple(counts, nan_rows);
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "Exact MXFP4 (see the package kokkosmx).";
  // The runtime outlives the module, and what is alive at exit is nobody's mistake.
  nb::set_leak_warnings(false);

  nb::enum_<ScaleMode>(m, "ScaleMode",
                       "How a block's scale follows from its largest magnitude amax (r: amax's "
                       "float32 bits). Results are clamped to 0..254; a block of zeros gets 0.")
      .value("floor", ScaleMode::floor, "(r >> 23) - 2: OCP MX v1.0; values may saturate at 6.")
      .value("ceil", ScaleMode::ceil, "The next power of two at or above amax / 4.")
      .value("rceil", ScaleMode::rceil, "The least power of two at which nothing saturates.")
      .value("even", ScaleMode::even, "amax rounded to a power of two, threshold 1.75 (Quark).");
  nb::enum_<Rounding>(m, "Rounding", "How x * 2^(127 - s) becomes a code.")
      .value("nearest_even", Rounding::nearest_even, "MI355X, torchao, today's aiter.")
      .value("ties_up", Rounding::ties_up, "The reference PyTorch code.");
  nb::enum_<NonFinite>(m, "NonFinite", "What becomes of a block with a NaN or an infinity.")
      .value("ocp", NonFinite::ocp, "Scale 255, codes 0: every product with the row is NaN.")
      .value("reference", NonFinite::reference, "What the reference PyTorch code gives.");
  nb::enum_<Tier>(m, "Tier", "How the sum of an output is formed; all give the same bits.")
      .value("automatic", Tier::automatic)
      .value("aligned", Tier::aligned)
      .value("window", Tier::window)
      .value("wide", Tier::wide);
  nb::enum_<DType>(m, "DType", "Elements of dense operands and results.")
      .value("float32", DType::float32)
      .value("bfloat16", DType::bfloat16)
      .value("float16", DType::float16);
  nb::enum_<CodesKind>(m, "CodesLayout", "Where the bytes of codes (rows, K/2) lie.")
      .value("row_major", CodesKind::row_major, "Rows one after the other, any stride.")
      .value("tile16x16", CodesKind::tile_16x16, "aiter's shuffle_weight, layout (16, 16).");
  nb::enum_<ScalesKind>(m, "ScalesLayout", "Where the bytes of scales (rows, K/32) lie.")
      .value("row_major", ScalesKind::row_major, "Rows one after the other, any stride.")
      .value("tile32x8", ScalesKind::tile_32x8, "aiter's shuffle_scale, padded to 256 x 8.");

  nb::class_<Matrix>(m, "Matrix", R"(An MXFP4 matrix (rows, K) over the arrays of the caller.

codes: (rows, K/2) uint8, two e2m1 codes a byte, low nibble = even k; scales: e8m0 uint8, (rows,
K/32) or, for ScalesLayout.tile32x8, padded to (256, 8). A batch comes in front. Nothing is copied:
later calls see what the arrays then hold.

>>> import numpy as np
>>> codes, scales = np.full((16, 32), 0x22, np.uint8), np.full((16, 2), 127, np.uint8)
>>> kokkosmx.Matrix(codes, scales).shape
(16, 64)
)")
      .def(
          "__init__",
          [](Matrix* self, nb::object codes, nb::object scales, CodesKind codes_layout,
             ScalesKind scales_layout) {
            new (self) Matrix(
                make_matrix(std::move(codes), std::move(scales), codes_layout, scales_layout));
          },
          "codes"_a, "scales"_a, nb::kw_only(), "codes_layout"_a = CodesKind::row_major,
          "scales_layout"_a = ScalesKind::row_major)
      .def_ro("codes", &Matrix::codes, "The array of codes.")
      .def_ro("scales", &Matrix::scales, "The array of scales.")
      .def_ro("codes_layout", &Matrix::codes_layout, "Where the codes lie.")
      .def_ro("scales_layout", &Matrix::scales_layout, "Where the scales lie.")
      .def_prop_ro(
          "shape",
          [](const Matrix& self) {
            Call call("Matrix.shape");
            const Array& codes = call.array(self.codes, "codes");
            const BytesRef bytes = codes.bytes();
            return extents(codes.rank() == 3, bytes.batch, bytes.rows, 2 * bytes.cols);
          },
          "(rows, K), or (batch, rows, K).");

  nb::class_<Prepared>(m, "Prepared", R"(An operand of many products, in memory of its own.

Made by prepare(), in the layout that products read fastest on hosts. Never changes.

>>> import numpy as np
>>> w = kokkosmx.prepare(np.ones((3, 64), np.float32), **kokkosmx.rules.reference)
>>> w.shape, w.unprepare()[0].shape
((3, 64), (3, 32))
)")
      .def_prop_ro(
          "shape",
          [](const Prepared& self) {
            const MatrixRef& ref = self.storage.ref();
            return extents(self.has_batch, ref.codes.batch, ref.rows, ref.k);
          },
          "(rows, K), or (batch, rows, K).")
      .def_prop_ro(
          "nbytes", [](const Prepared& self) { return self.storage.bytes(); },
          "Bytes of codes, scales and summaries, padding included.")
      .def("unprepare", &unprepare, nb::kw_only(), "out"_a = nb::none(),
           "(codes, scales), row-major: the bytes that were prepared.");

  m.def("quantize", &quantize, "x"_a, nb::kw_only(), "mode"_a, "rounding"_a, "non_finite"_a,
        "codes_layout"_a = CodesKind::row_major, "scales_layout"_a = ScalesKind::row_major,
        "out"_a = nb::none(), "uint16_as"_a = nb::none(),
        R"(Quantizes x to MXFP4: (codes, scales).

x: (rows, K) or (batch, rows, K) of float32, bfloat16 or float16, K a multiple of 32, each row
contiguous, any stride between rows, any alignment. codes: (rows, K/2) uint8, low nibble = even k;
scales: (rows, K/32) uint8 of e8m0, or padded for ScalesLayout.tile32x8. For each block of 32,
s is the mode's scale of max |x| and a code the rounding of x * 2^(127 - s). mode, rounding and
non_finite are never defaulted: name them, or use one of kokkosmx.rules. uint16_as: what arrays of
uint16 are the bits of.

>>> import numpy as np
>>> x = np.arange(32, dtype=np.float32).reshape(1, 32)
>>> codes, scales = kokkosmx.quantize(x, **kokkosmx.rules.reference)
>>> codes.shape, int(scales[0, 0])
((1, 16), 130)
)");
  m.def("dequantize", &dequantize, "q"_a, nb::kw_only(), "dtype"_a = DType::float32,
        "out"_a = nb::none(), "uint16_as"_a = nb::none(),
        R"(The values of an MXFP4 matrix, each rounded once to dtype.

q: a pair (codes, scales), a Matrix or a Prepared. A scale of 255 gives NaN for its whole block.

>>> import numpy as np
>>> codes, scales = np.full((1, 16), 0x72, np.uint8), np.full((1, 1), 128, np.uint8)
>>> kokkosmx.dequantize((codes, scales))[0, :4].tolist()
[2.0, 12.0, 2.0, 12.0]
)");
  m.def(
      "shuffle_weight",
      [](nb::handle codes, nb::handle out) {
        return copy_codes("shuffle_weight", codes, out, CodesKind::row_major,
                          CodesKind::tile_16x16);
      },
      "codes"_a, nb::kw_only(), "out"_a = nb::none(),
      R"(Codes (N, K/2) into MI355X's layout: aiter's shuffle_weight, layout (16, 16).

Seen as (N/16, 16, K/64, 2, 16) and permuted to (N/16, K/64, 2, 16, 16). N % 16 == 0, K % 64 == 0.

>>> import numpy as np
>>> codes = np.arange(16 * 32, dtype=np.uint16).astype(np.uint8).reshape(16, 32)
>>> back = kokkosmx.unshuffle_weight(kokkosmx.shuffle_weight(codes))
>>> bool((back == codes).all())
True
)");
  m.def(
      "unshuffle_weight",
      [](nb::handle codes, nb::handle out) {
        return copy_codes("unshuffle_weight", codes, out, CodesKind::tile_16x16,
                          CodesKind::row_major);
      },
      "codes"_a, nb::kw_only(), "out"_a = nb::none(),
      R"(The inverse of shuffle_weight: codes (N, K/2) row-major again.

>>> import numpy as np
>>> shuffled = np.zeros((16, 32), np.uint8)
>>> shuffled.reshape(2, 16, 16)[1] = 1  # each row's second 16 bytes
>>> kokkosmx.unshuffle_weight(shuffled)[5, [0, 15, 16, 31]].tolist()
[0, 0, 1, 1]
)");
  m.def("shuffle_scale", &shuffle_scale, "scales"_a, nb::kw_only(), "out"_a = nb::none(),
        R"(Scales (rows, K/32) into MI355X's layout: aiter's shuffle_scale, padding 0.

Rows are padded to 256 and columns to 8; seen as (rows/32, 2, 16, cols/8, 2, 4) and permuted by
(0, 3, 5, 2, 4, 1).

>>> import numpy as np
>>> scales = np.full((40, 12), 127, np.uint8)
>>> shuffled = kokkosmx.shuffle_scale(scales)
>>> shuffled.shape, bool((kokkosmx.unshuffle_scale(shuffled, rows=40, cols=12) == scales).all())
((256, 16), True)
)");
  m.def("unshuffle_scale", &unshuffle_scale, "scales"_a, nb::kw_only(), "rows"_a = nb::none(),
        "cols"_a = nb::none(), "out"_a = nb::none(),
        R"(The inverse of shuffle_scale: scales (rows, K/32) row-major again.

rows and cols: the extents without padding; without them the padding is kept.

>>> import numpy as np
>>> scales = np.arange(40 * 12, dtype=np.uint16).astype(np.uint8).reshape(40, 12)
>>> shuffled = kokkosmx.shuffle_scale(scales)
>>> kokkosmx.unshuffle_scale(shuffled).shape
(256, 16)
>>> bool((kokkosmx.unshuffle_scale(shuffled, rows=40, cols=12) == scales).all())
True
)");
  m.def("gemm", &gemm, "a"_a, "b"_a, nb::kw_only(), "dtype"_a = DType::float32,
        "out"_a = nb::none(), "alpha"_a = 1.0f, "beta"_a = 0.0f, "bias"_a = nb::none(),
        "minimum_tier"_a = Tier::automatic, "tier_counts"_a = nb::none(),
        "uint16_as"_a = nb::none(),
        R"(C = A * B^T, the exact sum of each output rounded once to float32, then to dtype.

a (M, K), b (N, K): a pair (codes, scales), a Matrix or a Prepared; a batch comes in front, and one
of extent 1 serves all. t = RN(alpha * P); with beta t = RN(t + RN(beta * C)), C being out; with a
bias (N) of float32 t = RN(t + bias[j]); C = RNE(t). tier_counts: 4 numbers of uint64, to which the
outputs that took each Tier are added.

>>> import numpy as np
>>> ones = np.full((2, 16), 0x22, np.uint8), np.full((2, 1), 127, np.uint8)
>>> kokkosmx.gemm(ones, ones).tolist()
[[32.0, 32.0], [32.0, 32.0]]
)");
  m.def("quantize_gemm", &quantize_gemm, "a"_a, "b"_a, nb::kw_only(), "mode"_a, "rounding"_a,
        "non_finite"_a, "dtype"_a = nb::none(), "out"_a = nb::none(), "alpha"_a = 1.0f,
        "beta"_a = 0.0f, "bias"_a = nb::none(), "minimum_tier"_a = Tier::automatic,
        "tier_counts"_a = nb::none(), "uint16_as"_a = nb::none(),
        R"(gemm of operands of which dense ones are quantized in the call.

a and b: arrays (M, K) and (N, K) of float32, bfloat16 or float16, or what gemm takes. dtype: that
of A, or of B, where one is dense.

>>> import numpy as np
>>> a, b = np.ones((2, 64), np.float32), np.full((3, 64), -0.5, np.float32)
>>> kokkosmx.quantize_gemm(a, b, **kokkosmx.rules.reference).tolist()
[[-32.0, -32.0, -32.0], [-32.0, -32.0, -32.0]]
)");
  m.def("prepare", &prepare, "x"_a, nb::kw_only(), "mode"_a = nb::none(), "rounding"_a = nb::none(),
        "non_finite"_a = nb::none(), "uint16_as"_a = nb::none(),
        R"(An operand of many products, weights above all, brought once into the fastest layout.

x: a dense array, whose mode, rounding and non_finite are named, or codes and scales (a pair, a
Matrix or a Prepared).

>>> import numpy as np
>>> w = kokkosmx.prepare(np.ones((3, 64), np.float32), **kokkosmx.rules.reference)
>>> kokkosmx.quantize_gemm(np.ones((1, 64), np.float32), w, **kokkosmx.rules.reference).tolist()
[[64.0, 64.0, 64.0]]
)");
  m.def("custom_kernel", &custom_kernel, "data"_a);
  m.def("row_spreads", &row_spreads, "x"_a,
        "([rows whose scales span 0 bits, 1 bit, ...], rows with a NaN): the certificate's view.");
  m.def(
      "atom",
      [] {
        Call call("atom");
        const char* name = nullptr;
        call.run([&](auto& lane) { name = KokkosMX::gemm_atom(lane.exec()); });
        return name;
      },
      R"(The name of the atom that products run: see README.md, and KOKKOSMX_ATOM.

>>> bool(kokkosmx.atom())
True
)");
  m.def(
      "concurrency",
      [] {
        Call call("concurrency");
        int threads = 0;
        call.run([&](auto& lane) { threads = lane.exec().concurrency(); });
        return threads;
      },
      R"(How many threads calls use: OMP_NUM_THREADS, read at the first call.

>>> kokkosmx.concurrency() >= 1
True
)");
  m.attr("execution_space") = DeviceExec::name();
  m.attr("version") = KOKKOSMX_VERSION_STRING;
  m.def("_stop", [] {
    const nb::gil_scoped_release no_gil;
    Runtime::get().stop();
  });
  bind_compare(m);
  bind_elementwise(m);
}

}  // namespace KokkosMXPython
