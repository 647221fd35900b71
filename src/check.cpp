// SPDX-License-Identifier: Apache-2.0
#include "check.hpp"

#include <Kokkos_Core.hpp>
#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace KokkosMX::Impl {

namespace {

std::string shape(std::initializer_list<std::int64_t> extents) {
  std::string text = "(";
  for (const std::int64_t extent : extents) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(extent);
  }
  text += ")";
  return text;
}

const char* name_of(Element element) {
  switch (element) {
    case Element::f32:
      return "float";
    case Element::bf16:
      return "BFloat16";
    case Element::f16:
      return "Float16";
  }
  return "?";
}

std::string describe(const Name& name, const BytesRef& bytes) {
  return name.text() + " (batch, rows, bytes) = " + shape({bytes.batch, bytes.rows, bytes.cols}) +
         " with strides " + shape({bytes.batch_stride, bytes.row_stride, bytes.col_stride});
}

std::string describe(const Name& name, const DenseRef& dense) {
  return name.text() + " (batch, rows, cols) = " + shape({dense.batch, dense.rows, dense.cols}) +
         " of " + name_of(dense.element) + " with strides " +
         shape({dense.batch_stride, dense.row_stride, dense.col_stride});
}

const char* part_of(CodesKind kind) {
  switch (kind) {
    case CodesKind::row_major:
      return " codes";
    case CodesKind::tile_16x16:
      return " codes in Tile16x16";
    case CodesKind::tile_16x128:
      return " codes in Tile16x128";
  }
  return "?";
}
const char* part_of(ScalesKind kind) {
  switch (kind) {
    case ScalesKind::row_major:
      return " scales";
    case ScalesKind::tile_32x8:
      return " scales in Tile32x8";
    case ScalesKind::tile_16x4:
      return " scales in Tile16x4";
  }
  return "?";
}
ScalesShape shape_of_scales(ScalesKind kind, std::int64_t rows, std::int64_t k) {
  switch (kind) {
    case ScalesKind::row_major:
      return scales_shape<RowMajor>(rows, k);
    case ScalesKind::tile_32x8:
      return scales_shape<Tile32x8>(rows, k);
    case ScalesKind::tile_16x4:
      return scales_shape<Tile16x4>(rows, k);
  }
  return {};
}

std::string describe(const char* name, const MatrixRef& matrix) {
  std::string text = describe(Name{name, part_of(matrix.codes_kind)}, matrix.codes);
  if (matrix.codes_kind == CodesKind::tile_16x128) {
    text += " for rows = " + std::to_string(matrix.rows) + " and K = " + std::to_string(matrix.k);
  }
  text += "; " + describe(Name{name, part_of(matrix.scales_kind)}, matrix.scales);
  if (matrix.summaries.present) {
    text += "; " + std::string(name) +
            " summaries (batch, rows) = " + shape({matrix.summaries.batch, matrix.summaries.rows}) +
            " with strides " + shape({matrix.summaries.batch_stride, matrix.summaries.row_stride});
  }
  return text;
}

bool empty(const Region& r) {
  return std::any_of(r.dims.begin(), r.dims.end(),
                     [](const Dimension& d) { return d.extent == 0; });
}

/// A region as runs of contiguous bytes, at the sums of the strides that are left.
struct Runs {
  std::int64_t bytes;
  std::array<Dimension, 3> dims;  // by stride, the smallest first; those without a step are 1, 0
  bool overlap_themselves;
};

Runs runs_of(const Region& region) {
  Runs runs{region.element_bytes, region.dims, false};
  for (Dimension& d : runs.dims) {
    if (d.extent == 1) d.stride = 0;
  }
  std::sort(runs.dims.begin(), runs.dims.end(),
            [](const Dimension& x, const Dimension& y) { return x.stride < y.stride; });
  std::int64_t reach =
      region.element_bytes;  // bytes that a step of the dimension at hand must pass
  for (Dimension& d : runs.dims) {
    if (d.extent == 1) continue;
    runs.overlap_themselves = runs.overlap_themselves || d.stride < reach;
    reach += (d.extent - 1) * d.stride;
    if (d.stride == runs.bytes) {
      runs.bytes *= d.extent;
      d = {1, 0};
    }
  }
  return runs;
}

/// Two regions share memory. Regions that interleave (one allocation, equal strides between runs)
/// are told apart by the runs' places; any other pair whose spans overlap counts as sharing.
bool overlap(const Region& a, const Region& b) {
  if (empty(a) || empty(b)) return false;
  const Runs a_runs = runs_of(a), b_runs = runs_of(b);
  const auto span = [](const Runs& runs) {
    std::int64_t bytes = runs.bytes;
    for (const Dimension& d : runs.dims) bytes += (d.extent - 1) * d.stride;
    return static_cast<std::uintptr_t>(bytes);
  };
  const auto a_begin = reinterpret_cast<std::uintptr_t>(a.data);
  const auto b_begin = reinterpret_cast<std::uintptr_t>(b.data);
  if (a_begin + span(a_runs) <= b_begin || b_begin + span(b_runs) <= a_begin) return false;

  std::int64_t pitch = 0;  // the smallest stride between runs
  for (const Runs* runs : {&a_runs, &b_runs}) {
    for (const Dimension& d : runs->dims) {
      if (d.extent > 1 && (pitch == 0 || d.stride < pitch)) pitch = d.stride;
    }
  }
  const auto once_every_pitch = [pitch](const Runs& runs) {
    return runs.bytes <= pitch &&
           std::all_of(runs.dims.begin(), runs.dims.end(), [pitch](const Dimension& d) {
             return d.extent == 1 || d.stride % pitch == 0;
           });
  };
  if (pitch <= 0 || !once_every_pitch(a_runs) || !once_every_pitch(b_runs)) return true;
  const auto step = static_cast<std::uintptr_t>(pitch);
  const auto place = static_cast<std::int64_t>(
      b_begin >= a_begin ? (b_begin - a_begin) % step : (step - (a_begin - b_begin) % step) % step);
  return place < a_runs.bytes || place + b_runs.bytes > pitch;
}

}  // namespace

std::int64_t element_bytes(Element element) { return element == Element::f32 ? 4 : 2; }

void Regions::add(const char* name, const DenseRef& dense) {
  const std::int64_t size = element_bytes(dense.element);
  add({{name},
       dense.data,
       size,
       {{{dense.batch, dense.batch_stride * size},
         {dense.rows, dense.row_stride * size},
         {dense.cols, dense.col_stride * size}}}});
}

void Regions::add(const Name& name, const BytesRef& bytes) {
  add({name,
       bytes.data,
       1,
       {{{bytes.batch, bytes.batch_stride},
         {bytes.rows, bytes.row_stride},
         {bytes.cols, bytes.col_stride}}}});
}

void Regions::add(const Name& name, const SummariesRef& summaries) {
  constexpr std::int64_t size = sizeof(RowSummary);
  add({name,
       summaries.data,
       size,
       {{{summaries.batch, summaries.batch_stride * size},
         {summaries.rows, summaries.row_stride * size},
         {1, 0}}}});
}

void Regions::add(const char* name, const MatrixRef& matrix) {
  add(Name{name, " codes"}, matrix.codes);
  add(Name{name, " scales"}, matrix.scales);
  if (matrix.summaries.present) add(Name{name, " summaries"}, matrix.summaries);
}

void Regions::add(const char* name, const void* data, std::int64_t bytes) {
  add({{name}, data, 1, {{{1, 0}, {1, 0}, {bytes, 1}}}});
}

Check::Check(const char* function) : function_(function) {
  if (!Kokkos::is_initialized() || Kokkos::is_finalized()) {
    throw std::logic_error(std::string("KokkosMX::") + function_ + ": Kokkos is not initialized");
  }
}

void Check::tell(const char* name, const MatrixRef& matrix) {
  told_.at(told_count_++) = {name, &matrix, nullptr, nullptr, 0};
}
void Check::tell(const char* name, const DenseRef& dense) {
  told_.at(told_count_++) = {name, nullptr, &dense, nullptr, 0};
}
void Check::tell(const char* name, const BytesRef& bytes) {
  told_.at(told_count_++) = {name, nullptr, nullptr, &bytes, 0};
}
void Check::tell(const char* name, std::int64_t number) {
  told_.at(told_count_++) = {name, nullptr, nullptr, nullptr, number};
}

void Check::fail(const std::string& expected) const {
  std::string given;
  for (std::size_t i = 0; i < told_count_; ++i) {
    const Told& told = told_[i];
    given += i == 0 ? " " : "; ";
    if (told.matrix != nullptr) {
      given += describe(told.name, *told.matrix);
    } else if (told.dense != nullptr) {
      given += describe(Name{told.name}, *told.dense);
    } else if (told.bytes != nullptr) {
      given += describe(Name{told.name}, *told.bytes);
    } else {
      given += std::string(told.name) + " = " + std::to_string(told.number);
    }
  }
  throw std::invalid_argument(std::string("KokkosMX::") + function_ + ": expected " + expected +
                              "; given" + given);
}

void Check::allocated(const Name& name, const void* data, bool empty) const {
  require(empty || data != nullptr, [&] { return name.text() + " to be an allocated View"; });
}

void Check::contiguous_rows(const Name& name, std::int64_t cols, std::int64_t col_stride) const {
  require(cols <= 1 || col_stride == 1, [&] {
    return "the rows of " + name.text() + " to be contiguous (last stride 1, is " +
           std::to_string(col_stride) + ")";
  });
}

DenseMap Check::dense_rows(const char* name, const DenseRef& dense) const {
  require(dense.cols % block_size == 0, [&] {
    return "the columns (K) of " + std::string(name) + " to be a multiple of 32, are " +
           std::to_string(dense.cols);
  });
  contiguous_rows({name}, dense.cols, dense.col_stride);
  allocated({name}, dense.data, dense.batch == 0 || dense.rows == 0 || dense.cols == 0);
  const std::int64_t size = element_bytes(dense.element);
  return {static_cast<unsigned char*>(const_cast<void*>(dense.data)),
          dense.batch == 1 ? 0 : dense.batch_stride * size, dense.row_stride * size};
}

CodesMap Check::codes(const Name& name, const BytesRef& codes, CodesKind kind, std::int64_t rows,
                      std::int64_t k) const {
  if (kind == CodesKind::tile_16x128) {
    require(rows >= 0 && k >= 0 && k % block_size == 0, [&] {
      return name.text() +
             " in Tile16x128 to have K a multiple of 32, are rows = " + std::to_string(rows) +
             " and K = " + std::to_string(k);
    });
    const CodesShape padded = codes_shape<Tile16x128>(rows, k);
    require(codes.rows == padded.rows && codes.cols == padded.bytes, [&] {
      return name.text() + " in Tile16x128 to have (batch, rows, bytes) = " +
             shape({codes.batch, padded.rows, padded.bytes}) +
             ", rows padded to 16 and K to 128, for rows = " + std::to_string(rows) +
             " and K = " + std::to_string(k);
    });
  } else {
    require(codes.cols % block_bytes == 0, [&] {
      return "the bytes in a row of " + name.text() +
             " (K/2) to be a multiple of 16 (K of 32), are " + std::to_string(codes.cols);
    });
  }
  contiguous_rows(name, codes.cols, codes.col_stride);
  allocated(name, codes.data, codes.batch == 0 || codes.rows == 0 || codes.cols == 0);
  CodesMap map{};
  map.data = const_cast<std::uint8_t*>(codes.data);
  map.batch = codes.batch == 1 ? 0 : codes.batch_stride;
  map.rows = codes.rows;
  map.blocks = codes.cols / block_bytes;
  map.byte = 1;
  if (kind == CodesKind::row_major) {
    map.tile_of_16_rows = 16 * codes.row_stride;
    map.row = codes.row_stride;
    map.block_4 = 4 * block_bytes;
    map.block_1 = block_bytes;
    return map;
  }
  const bool is_16x16 = kind == CodesKind::tile_16x16;
  require(!is_16x16 || (codes.rows % 16 == 0 && codes.cols % 32 == 0), [&] {
    return name.text() +
           " in Tile16x16 to have rows a multiple of 16 and K a multiple of 64, are rows = " +
           std::to_string(codes.rows) + " and K = " + std::to_string(2 * codes.cols);
  });
  require(codes.rows <= 1 || codes.row_stride == codes.cols, [&] {
    return name.text() + (is_16x16 ? " in Tile16x16" : " in Tile16x128") +
           " to be contiguous (row stride " + std::to_string(codes.cols) + ")";
  });
  map.tile_of_16_rows = 16 * codes.cols;
  map.block_4 = 4 * 16 * block_bytes;
  if (is_16x16) {
    map.row = block_bytes;
    map.block_1 = 16 * block_bytes;
  } else {
    map.row = 4 * block_bytes;
    map.block_1 = 1;
    map.byte = 4;
  }
  return map;
}

ScalesMap Check::scales(const Name& name, const BytesRef& scales, ScalesKind kind) const {
  contiguous_rows(name, scales.cols, scales.col_stride);
  allocated(name, scales.data, scales.batch == 0 || scales.rows == 0 || scales.cols == 0);
  auto* data = const_cast<std::uint8_t*>(scales.data);
  const std::int64_t batch = scales.batch == 1 ? 0 : scales.batch_stride;
  const std::int64_t ld = scales.row_stride;
  if (kind == ScalesKind::row_major) {
    return {data, batch, 32 * ld, 16 * ld, ld, 8, 4, 1, scales.rows, scales.cols};
  }
  const bool is_32x8 = kind == ScalesKind::tile_32x8;
  require(scales.rows <= 1 || ld == scales.cols, [&] {
    return name.text() + (is_32x8 ? " in Tile32x8" : " in Tile16x4") +
           " to be contiguous (row stride " + std::to_string(scales.cols) + ")";
  });
  if (is_32x8) {
    return {data, batch, 32 * scales.cols, 1, 4, 256, 2, 64, scales.rows, scales.cols};
  }
  return {data, batch, 32 * scales.cols, 16 * scales.cols, 4, 128, 64, 1, scales.rows, scales.cols};
}

MatrixMap Check::matrix(const char* name, const MatrixRef& matrix) const {
  MatrixMap map{};
  map.codes = codes({name, " codes"}, matrix.codes, matrix.codes_kind, matrix.rows, matrix.k);
  map.batch = matrix.codes.batch;
  map.rows = matrix.rows;
  map.blocks = matrix.k / block_size;
  const ScalesShape expected = shape_of_scales(matrix.scales_kind, matrix.rows, matrix.k);
  require(matrix.scales.batch == map.batch && matrix.scales.rows == expected.rows &&
              matrix.scales.cols == expected.cols,
          [&] {
            return std::string(name) + " scales to have (batch, rows, cols) = " +
                   shape({map.batch, expected.rows, expected.cols});
          });
  map.scales = scales({name, " scales"}, matrix.scales, matrix.scales_kind);
  const SummariesRef& summaries = matrix.summaries;
  if (summaries.present) {
    require(summaries.batch == map.batch && summaries.rows == map.rows, [&] {
      return std::string(name) +
             " summaries to have (batch, rows) = " + shape({map.batch, map.rows});
    });
    allocated({name, " summaries"}, summaries.data, map.batch == 0 || map.rows == 0);
    map.summaries = {summaries.data, summaries.batch == 1 ? 0 : summaries.batch_stride,
                     summaries.row_stride};
  }
  return map;
}

void Check::disjoint(const Regions& outputs, const Regions& inputs) const {
  for (const Region& output : outputs) {
    require(empty(output) || !runs_of(output).overlap_themselves, [&] {
      return "the elements of " + output.name.text() + " not to overlap one another";
    });
    const auto apart = [&](const Region& other) {
      require(!overlap(output, other),
              [&] { return output.name.text() + " not to overlap " + other.name.text(); });
    };
    std::for_each(&output + 1, outputs.end(), apart);
    std::for_each(inputs.begin(), inputs.end(), apart);
  }
}

}  // namespace KokkosMX::Impl
