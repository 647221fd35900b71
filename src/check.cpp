// SPDX-License-Identifier: Apache-2.0
#include "check.hpp"

#include <Kokkos_Core.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace KokkosMX::Impl {

namespace {

std::string shape(std::initializer_list<std::int64_t> extents) {
  std::string text = "(";
  for (const std::int64_t extent : extents) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(extent);
  }
  return text + ")";
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

struct Dimension {
  std::int64_t extent, stride;
};

/// One past the last byte, counted from the first.
std::int64_t span(const Region& r) {
  return (r.outer - 1) * r.outer_stride + (r.middle - 1) * r.middle_stride + r.inner;
}

/// Two elements of the region share memory.
bool overlaps_itself(const Region& r) {
  std::array<Dimension, 2> dims{{{r.outer, r.outer_stride}, {r.middle, r.middle_stride}}};
  if (dims[0].stride < dims[1].stride) std::swap(dims[0], dims[1]);
  std::int64_t reach = r.inner;  // bytes that one step of the dimension at hand must pass
  for (const Dimension& d : {dims[1], dims[0]}) {
    if (d.extent <= 1) continue;
    if (d.stride < reach) return true;
    reach += (d.extent - 1) * d.stride;
  }
  return false;
}

/// Two regions share memory. Regions that interleave (one allocation, equal row strides) are told
/// apart by their columns; any other pair whose spans overlap counts as sharing.
bool overlap(const Region& a, const Region& b) {
  if (a.empty() || b.empty()) return false;
  const auto a_begin = reinterpret_cast<std::uintptr_t>(a.data);
  const auto b_begin = reinterpret_cast<std::uintptr_t>(b.data);
  const auto a_end = a_begin + static_cast<std::uintptr_t>(span(a));
  const auto b_end = b_begin + static_cast<std::uintptr_t>(span(b));
  if (a_end <= b_begin || b_end <= a_begin) return false;
  const std::int64_t pitch = a.middle > 1 ? a.middle_stride : b.middle_stride;
  const auto rows_every_pitch = [pitch](const Region& r) {
    return (r.middle == 1 || r.middle_stride == pitch) &&
           (r.outer == 1 || r.outer_stride % pitch == 0) && r.inner <= pitch;
  };
  if (pitch <= 0 || !rows_every_pitch(a) || !rows_every_pitch(b)) return true;
  const auto unsigned_pitch = static_cast<std::uintptr_t>(pitch);
  const std::uintptr_t offset = b_begin >= a_begin
                                    ? (b_begin - a_begin) % unsigned_pitch
                                    : unsigned_pitch - (a_begin - b_begin) % unsigned_pitch;
  const auto column = static_cast<std::int64_t>(offset % unsigned_pitch);
  return column < a.inner || column + b.inner > pitch;
}

}  // namespace

std::int64_t element_bytes(Element element) { return element == Element::f32 ? 4 : 2; }

Check::Check(const char* function) : function_(std::string("KokkosMX::") + function) {
  if (!Kokkos::is_initialized() || Kokkos::is_finalized()) {
    throw std::logic_error(function_ + ": Kokkos is not initialized");
  }
}

void Check::tell(const std::string& text) { told_ += (told_.empty() ? "" : "; ") + text; }

void Check::tell(const std::string& name, const BytesRef& bytes) {
  tell(name + " (batch, rows, bytes) = " + shape({bytes.batch, bytes.rows, bytes.cols}) +
       " with strides " + shape({bytes.batch_stride, bytes.row_stride, bytes.col_stride}));
}

void Check::tell(const std::string& name, const DenseRef& dense) {
  tell(name + " (batch, rows, cols) = " + shape({dense.batch, dense.rows, dense.cols}) + " of " +
       name_of(dense.element) + " with strides " +
       shape({dense.batch_stride, dense.row_stride, dense.col_stride}));
}

void Check::tell(const std::string& name, const MatrixRef& matrix) {
  tell(name + " codes" + (matrix.codes_kind == CodesKind::tile_16x16 ? " in Tile16x16" : ""),
       matrix.codes);
  tell(name + " scales" + (matrix.scales_kind == ScalesKind::tile_32x8 ? " in Tile32x8" : ""),
       matrix.scales);
  if (matrix.summaries.present) {
    tell(name +
         " summaries (batch, rows) = " + shape({matrix.summaries.batch, matrix.summaries.rows}) +
         " with strides " + shape({matrix.summaries.batch_stride, matrix.summaries.row_stride}));
  }
}

void Check::fail(const std::string& expected) const {
  throw std::invalid_argument(function_ + ": expected " + expected + "; given " + told_);
}

void Check::allocated(const std::string& name, const void* data, bool empty) const {
  require(empty || data != nullptr, name + " to be an allocated View");
}

void Check::contiguous_rows(const std::string& name, std::int64_t cols,
                            std::int64_t col_stride) const {
  require(cols <= 1 || col_stride == 1, "the rows of " + name +
                                            " to be contiguous (last stride 1, is " +
                                            std::to_string(col_stride) + ")");
}

DenseMap Check::dense_rows(const std::string& name, const DenseRef& dense) const {
  require(
      dense.cols % block_size == 0,
      "the columns (K) of " + name + " to be a multiple of 32, are " + std::to_string(dense.cols));
  contiguous_rows(name, dense.cols, dense.col_stride);
  allocated(name, dense.data, dense.batch == 0 || dense.rows == 0 || dense.cols == 0);
  const std::int64_t size = element_bytes(dense.element);
  return {static_cast<unsigned char*>(const_cast<void*>(dense.data)),
          dense.batch == 1 ? 0 : dense.batch_stride * size, dense.row_stride * size};
}

CodesMap Check::codes(const std::string& name, const BytesRef& codes, CodesKind kind) const {
  require(codes.cols % block_bytes == 0, "the bytes in a row of " + name +
                                             " (K/2) to be a multiple of 16 (K of 32), are " +
                                             std::to_string(codes.cols));
  contiguous_rows(name, codes.cols, codes.col_stride);
  allocated(name, codes.data, codes.batch == 0 || codes.rows == 0 || codes.cols == 0);
  auto* data = const_cast<std::uint8_t*>(codes.data);
  const std::int64_t batch = codes.batch == 1 ? 0 : codes.batch_stride;
  if (kind == CodesKind::row_major) {
    return {data, batch, 16 * codes.row_stride, codes.row_stride, block_bytes};
  }
  require(codes.rows % 16 == 0 && codes.cols % 32 == 0,
          name + " in Tile16x16 to have rows a multiple of 16 and K a multiple of 64, are rows = " +
              std::to_string(codes.rows) + " and K = " + std::to_string(2 * codes.cols));
  require(codes.rows <= 1 || codes.row_stride == codes.cols,
          name + " in Tile16x16 to be contiguous (row stride " + std::to_string(codes.cols) + ")");
  return {data, batch, 16 * codes.cols, block_bytes, 16 * block_bytes};
}

ScalesMap Check::scales(const std::string& name, const BytesRef& scales, ScalesKind kind) const {
  contiguous_rows(name, scales.cols, scales.col_stride);
  allocated(name, scales.data, scales.batch == 0 || scales.rows == 0 || scales.cols == 0);
  auto* data = const_cast<std::uint8_t*>(scales.data);
  const std::int64_t batch = scales.batch == 1 ? 0 : scales.batch_stride;
  const std::int64_t ld = scales.row_stride;
  if (kind == ScalesKind::row_major) {
    return {data, batch, 32 * ld, 16 * ld, ld, 8, 4, 1, scales.rows, scales.cols};
  }
  require(scales.rows <= 1 || ld == scales.cols,
          name + " in Tile32x8 to be contiguous (row stride " + std::to_string(scales.cols) + ")");
  return {data, batch, 32 * scales.cols, 1, 4, 256, 2, 64, scales.rows, scales.cols};
}

MatrixMap Check::matrix(const std::string& name, const MatrixRef& matrix) const {
  MatrixMap map{};
  map.codes = codes(name + " codes", matrix.codes, matrix.codes_kind);
  map.batch = matrix.codes.batch;
  map.rows = matrix.codes.rows;
  map.blocks = matrix.codes.cols / block_bytes;
  const ScalesShape expected = matrix.scales_kind == ScalesKind::row_major
                                   ? scales_shape<RowMajor>(map.rows, block_size * map.blocks)
                                   : scales_shape<Tile32x8>(map.rows, block_size * map.blocks);
  require(matrix.scales.batch == map.batch && matrix.scales.rows == expected.rows &&
              matrix.scales.cols == expected.cols,
          name + " scales to have (batch, rows, cols) = " +
              shape({map.batch, expected.rows, expected.cols}));
  map.scales = scales(name + " scales", matrix.scales, matrix.scales_kind);
  const SummariesRef& summaries = matrix.summaries;
  if (summaries.present) {
    require(summaries.batch == map.batch && summaries.rows == map.rows,
            name + " summaries to have (batch, rows) = " + shape({map.batch, map.rows}));
    allocated(name + " summaries", summaries.data, map.batch == 0 || map.rows == 0);
    map.summaries = {summaries.data, summaries.batch == 1 ? 0 : summaries.batch_stride,
                     summaries.row_stride};
  }
  return map;
}

Region region_of(const std::string& name, const BytesRef& bytes) {
  return {name,       bytes.data,       bytes.batch, bytes.batch_stride,
          bytes.rows, bytes.row_stride, bytes.cols};
}

Region region_of(const std::string& name, const DenseRef& dense) {
  const std::int64_t size = element_bytes(dense.element);
  Dimension rows{dense.rows, dense.row_stride}, cols{dense.cols, dense.col_stride};
  // The innermost dimension is the one whose elements touch, or any with the smaller stride.
  if (cols.extent > 1 && (rows.extent <= 1 || rows.stride < cols.stride) && cols.stride != 1) {
    std::swap(rows, cols);
  }
  Region region{name,        dense.data,         dense.batch,       dense.batch_stride * size,
                rows.extent, rows.stride * size, cols.extent * size};
  if (cols.extent > 1 && cols.stride != 1) {
    // No dimension is contiguous: a row is all the bytes between its first and its last element,
    // and nothing where elements fall onto one another.
    region.inner = cols.stride == 0 ? -1 : ((cols.extent - 1) * cols.stride + 1) * size;
  }
  return region;
}

Region region_of(const std::string& name, const SummariesRef& summaries) {
  constexpr std::int64_t size = sizeof(RowSummary);
  return {name,
          summaries.data,
          summaries.batch,
          summaries.batch_stride * size,
          summaries.rows,
          summaries.row_stride * size,
          size};
}

std::vector<Region> regions_of(const std::string& name, const MatrixRef& matrix) {
  std::vector<Region> regions{region_of(name + " codes", matrix.codes),
                              region_of(name + " scales", matrix.scales)};
  if (matrix.summaries.present) {
    regions.push_back(region_of(name + " summaries", matrix.summaries));
  }
  return regions;
}

void Check::disjoint(const std::vector<Region>& outputs, const std::vector<Region>& inputs) const {
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const Region& output = outputs[i];
    require(output.empty() || (output.inner > 0 && !overlaps_itself(output)),
            "the elements of " + output.name + " not to overlap one another");
    for (std::size_t j = i + 1; j < outputs.size(); ++j) {
      require(!overlap(output, outputs[j]), output.name + " not to overlap " + outputs[j].name);
    }
    for (const Region& input : inputs) {
      require(!overlap(output, input), output.name + " not to overlap " + input.name);
    }
  }
}

}  // namespace KokkosMX::Impl
