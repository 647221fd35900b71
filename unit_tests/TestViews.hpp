// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_TEST_VIEWS_HPP
#define KOKKOSMX_TEST_VIEWS_HPP

/// \file TestViews.hpp
/// Buffers as callers have them: at any offset, with any strides between rows and batches. What
/// lies between the rows is watched.

#include <KokkosMX/Matrix.hpp>
#include <KokkosMX/Types.hpp>

#include <Kokkos_Core.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace KokkosMXTest {

using Exec = Kokkos::DefaultExecutionSpace;
using Space = Exec::memory_space;

template <class T>
using View2 =
    Kokkos::View<T**, Kokkos::LayoutStride, Space, Kokkos::MemoryTraits<Kokkos::Unmanaged>>;
template <class T>
using View3 =
    Kokkos::View<T***, Kokkos::LayoutStride, Space, Kokkos::MemoryTraits<Kokkos::Unmanaged>>;

/// Where a matrix lies in its buffer, in elements.
struct Placement {
  std::int64_t offset = 0;
  std::int64_t row_gap = 0;
  std::int64_t batch_gap = 0;
};

/// Bytes of memory that the tests' execution space can access; copied to and from the host.
class DeviceBytes {
 public:
  explicit DeviceBytes(std::size_t bytes)
      : view_(Kokkos::view_alloc("KokkosMXTest: buffer", Kokkos::WithoutInitializing), bytes) {}
  void* data() const { return view_.data(); }
  std::size_t size() const { return view_.size(); }
  void read(void* to) const {
    Kokkos::deep_copy(Host(static_cast<std::uint8_t*>(to), size()), view_);
  }
  void write(void* from) {
    Kokkos::deep_copy(view_, Host(static_cast<std::uint8_t*>(from), size()));
  }

 private:
  using Host =
      Kokkos::View<std::uint8_t*, Kokkos::HostSpace, Kokkos::MemoryTraits<Kokkos::Unmanaged>>;
  Kokkos::View<std::uint8_t*, Space> view_;
};

/// The integer as wide as T; T itself where that has no fixed width (RowSummary).
template <class T>
using bits_of_t =
    std::conditional_t<sizeof(T) == 1, std::uint8_t,
                       std::conditional_t<sizeof(T) == 2, std::uint16_t,
                                          std::conditional_t<sizeof(T) == 4, std::uint32_t, T>>>;

/// A (batch, rows, cols) array of T in a buffer of bytes that are all `fill` at first.
template <class T>
class Placed {
 public:
  using Bits = bits_of_t<T>;

  Placed(std::int64_t batch, std::int64_t rows, std::int64_t cols, Placement placement = {},
         std::uint8_t fill = 0xA5)
      : batch_(batch),
        rows_(rows),
        cols_(cols),
        placement_(placement),
        fill_(fill),
        buffer_(sizeof(T) *
                size(2 * placement.offset + batch * batch_stride() + placement.row_gap)) {
    std::vector<T> host(buffer_.size() / sizeof(T));
    if (!host.empty()) {
      std::memset(static_cast<void*>(host.data()), fill, host.size() * sizeof(T));
    }
    write(host);
  }
  Placed(std::int64_t batch, std::int64_t rows, std::int64_t cols,
         const std::vector<Bits>& contents, Placement placement = {}, std::uint8_t fill = 0xA5)
      : Placed(batch, rows, cols, placement, fill) {
    set(contents);
  }

  std::int64_t row_stride() const { return cols_ + placement_.row_gap; }
  std::int64_t batch_stride() const { return rows_ * row_stride() + placement_.batch_gap; }
  T* data() const { return static_cast<T*>(buffer_.data()) + placement_.offset; }

  /// Batch 0.
  View2<T> view2() const {
    return View2<T>(data(), Kokkos::LayoutStride(size(rows_), size(row_stride()), size(cols_), 1));
  }
  View3<T> view3() const {
    return View3<T>(data(), Kokkos::LayoutStride(size(batch_), size(batch_stride()), size(rows_),
                                                 size(row_stride()), size(cols_), 1));
  }
  /// Its first column over all batches: (batch, rows).
  View2<T> column() const {
    return View2<T>(data(), Kokkos::LayoutStride(size(batch_), size(batch_stride()), size(rows_),
                                                 size(row_stride())));
  }
  View2<const T> const_view2() const { return view2(); }
  View3<const T> const_view3() const { return view3(); }

  /// Elements in the order (batch, rows, cols).
  void set(const std::vector<Bits>& contents) {
    std::vector<T> host = read();
    std::size_t i = 0;
    for_each([&](std::size_t at) { std::memcpy(&host[at], &contents.at(i++), sizeof(T)); });
    write(host);
  }
  std::vector<Bits> get() const {
    const std::vector<T> host = read();
    std::vector<Bits> contents;
    contents.reserve(size(batch_ * rows_ * cols_));
    for_each([&](std::size_t at) {
      Bits bits;
      std::memcpy(&bits, &host[at], sizeof(T));
      contents.push_back(bits);
    });
    return contents;
  }
  /// Every byte that is no element's is as it was at first.
  bool gaps_untouched() const {
    std::vector<T> host = read();
    for_each([&](std::size_t at) { std::memset(static_cast<void*>(&host[at]), fill_, sizeof(T)); });
    return all_fill(host);
  }
  /// Every byte is as it was at first.
  bool untouched() const { return all_fill(read()); }

 private:
  static std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }
  template <class F>
  void for_each(const F& f) const {
    for (std::int64_t b = 0; b < batch_; ++b) {
      for (std::int64_t r = 0; r < rows_; ++r) {
        for (std::int64_t c = 0; c < cols_; ++c) {
          f(size(placement_.offset + b * batch_stride() + r * row_stride() + c));
        }
      }
    }
  }
  bool all_fill(const std::vector<T>& host) const {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(host.data());
    for (std::size_t i = 0; i < host.size() * sizeof(T); ++i) {
      if (bytes[i] != fill_) return false;
    }
    return true;
  }
  std::vector<T> read() const {
    std::vector<T> host(buffer_.size() / sizeof(T));
    buffer_.read(host.data());
    return host;
  }
  void write(std::vector<T>& host) { buffer_.write(host.data()); }

  std::int64_t batch_, rows_, cols_;
  Placement placement_;
  std::uint8_t fill_;
  DeviceBytes buffer_;
};

/// An MXFP4 matrix in three buffers: codes, scales and summaries.
template <class CodesLayout, class ScalesLayout>
class PlacedMatrix {
 public:
  using Matrix = KokkosMX::Matrix<CodesLayout, ScalesLayout, Space, std::uint8_t>;
  using ConstMatrix = KokkosMX::Matrix<CodesLayout, ScalesLayout, Space>;

  PlacedMatrix(std::int64_t batch, std::int64_t rows, std::int64_t k, Placement codes_at = {},
               Placement scales_at = {}, Placement summaries_at = {}, std::uint8_t fill = 0xA5)
      : rows(rows),
        k(k),
        codes(batch, KokkosMX::codes_shape<CodesLayout>(rows, k).rows,
              KokkosMX::codes_shape<CodesLayout>(rows, k).bytes, codes_at, fill),
        scales(batch, KokkosMX::scales_shape<ScalesLayout>(rows, k).rows,
               KokkosMX::scales_shape<ScalesLayout>(rows, k).cols, scales_at, fill),
        summaries(batch, rows, 1, summaries_at, fill) {}

  /// Rank 2: batch 0.
  Matrix matrix2() const {
    return Matrix(codes_of(codes.view2()), typename Matrix::scales_type(scales.view2()));
  }
  Matrix matrix3() const {
    return Matrix(codes_of(codes.view3()), typename Matrix::scales_type(scales.view3()));
  }
  Matrix matrix3_with_summaries() const {
    return Matrix(codes_of(codes.view3()), typename Matrix::scales_type(scales.view3()),
                  summaries.column());
  }

  template <class View>
  typename Matrix::codes_type codes_of(const View& view) const {
    if constexpr (std::is_same_v<CodesLayout, KokkosMX::Tile16x128>) {
      return typename Matrix::codes_type(view, rows, k);
    } else {
      return typename Matrix::codes_type(view);
    }
  }

  std::int64_t rows, k;
  Placed<std::uint8_t> codes;
  Placed<std::uint8_t> scales;
  Placed<KokkosMX::RowSummary> summaries;
};

}  // namespace KokkosMXTest

#endif
