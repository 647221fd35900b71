// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_MATRIX_HPP
#define KOKKOSMX_MATRIX_HPP

/// \file Matrix.hpp
/// MXFP4 operands: codes, scales and row summaries, each over memory that the caller has.
///
/// Nothing here owns or copies memory (but MatrixStorage, which allocates): the caller keeps the
/// Views alive. Every stride and alignment is right; 16-byte alignment is only faster.

#include <KokkosMX/Export.hpp>
#include <KokkosMX/Types.hpp>

#include <Kokkos_Core.hpp>

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

namespace KokkosMX {

/// Layout of codes and of scales: rows one after the other, any stride between them.
/// Codes (rows, K) are (rows, K/2) bytes, scales (rows, K/32) bytes.
struct RowMajor {};

/// Layout of codes: aiter's shuffle_weight with layout (16,16). Bytes W (N, K/2) seen as
/// (N/16, 16, K/64, 2, 16) and permuted to (N/16, K/64, 2, 16 rows, 16 bytes), contiguous.
/// Needs N % 16 == 0 and K % 64 == 0. A batch is N * K/2 bytes or more after the one before.
struct Tile16x16 {};

/// Layout of scales: aiter's shuffle_scale. Scales (rows, K/32), padded with 0 to a multiple of 256
/// rows and of 8 columns, seen as (rows/32, 2, 16, cols/8, 2, 4) and permuted by (0, 3, 5, 2, 4,
/// 1), contiguous. What lies in the padding is never looked at.
struct Tile32x8 {};

/// Layout of codes of operands that are prepared once (see Prepare.hpp): rows padded to a multiple
/// of 16 and K to a multiple of 128, that is of 4 blocks. The 64 bytes of 4 blocks of a row lie
/// together, byte 4 j + b of them being byte j (0..15) of the 16 bytes of block b (0..3). In all
/// (rows/16, K/128, 16 rows, 16 j, 4 b), contiguous. Written padding is 0; what lies in it is never
/// looked at. A batch is the bytes of codes_shape or more after the one before.
struct Tile16x128 {};

/// Layout of scales of operands that are prepared once: rows padded to a multiple of 16 and columns
/// to a multiple of 4, seen as (rows/16, 16, cols/4, 4) and permuted by (0, 2, 1, 3), contiguous.
/// Written padding is 0; what lies in it is never looked at.
struct Tile16x4 {};

namespace Impl {
template <class Layout>
inline constexpr bool is_codes_layout_v =
    std::is_same_v<Layout, RowMajor> || std::is_same_v<Layout, Tile16x16> ||
    std::is_same_v<Layout, Tile16x128>;
template <class Layout>
inline constexpr bool is_scales_layout_v =
    std::is_same_v<Layout, RowMajor> || std::is_same_v<Layout, Tile32x8> ||
    std::is_same_v<Layout, Tile16x4>;

constexpr std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}
}  // namespace Impl

/// Rows of a buffer of codes and bytes in each.
struct CodesShape {
  std::int64_t rows;
  std::int64_t bytes;
};

/// The shape of the buffer that holds the codes of a (rows, K) matrix in a layout: (rows, K/2)
/// bytes for RowMajor and Tile16x16; rows rounded up to 16, K to 128 for Tile16x128.
template <class CodesLayout>
constexpr CodesShape codes_shape(std::int64_t rows, std::int64_t k) {
  static_assert(Impl::is_codes_layout_v<CodesLayout>,
                "KokkosMX: codes have the layout RowMajor, Tile16x16 or Tile16x128");
  if constexpr (std::is_same_v<CodesLayout, Tile16x128>) {
    return {Impl::round_up(rows, 16), Impl::round_up(k, 4 * block_size) / 2};
  } else {
    return {rows, k / 2};
  }
}

/// Rows and columns of a buffer of scales.
struct ScalesShape {
  std::int64_t rows;
  std::int64_t cols;
};

/// The shape of the buffer that holds the scales of a (rows, K) matrix in a layout, in bytes:
/// (rows, K/32) for RowMajor; both rounded up, to 256 and to 8 for Tile32x8, to 16 and to 4 for
/// Tile16x4.
template <class ScalesLayout>
constexpr ScalesShape scales_shape(std::int64_t rows, std::int64_t k) {
  static_assert(Impl::is_scales_layout_v<ScalesLayout>,
                "KokkosMX: scales have the layout RowMajor, Tile32x8 or Tile16x4");
  const std::int64_t cols = k / block_size;
  if constexpr (std::is_same_v<ScalesLayout, RowMajor>) {
    return {rows, cols};
  } else if constexpr (std::is_same_v<ScalesLayout, Tile32x8>) {
    return {Impl::round_up(rows, 256), Impl::round_up(cols, 8)};
  } else {
    return {Impl::round_up(rows, 16), Impl::round_up(cols, 4)};
  }
}

namespace Impl {

/// A buffer of bytes as the caller's View describes it: extents and strides in bytes.
struct BytesRef {
  const std::uint8_t* data;
  std::int64_t batch, rows, cols;
  std::int64_t batch_stride, row_stride, col_stride;
};

/// Row summaries as the caller's View describes them; present == false where there are none.
struct SummariesRef {
  RowSummary* data = nullptr;
  bool present = false;
  std::int64_t batch = 0, rows = 0;
  std::int64_t batch_stride = 0, row_stride = 0;
};

/// A dense matrix as the caller's View describes it: extents and strides in elements.
struct DenseRef {
  const void* data;
  Element element;
  std::int64_t batch, rows, cols;
  std::int64_t batch_stride, row_stride, col_stride;
};

enum class CodesKind : std::uint8_t { row_major, tile_16x16, tile_16x128 };
enum class ScalesKind : std::uint8_t { row_major, tile_32x8, tile_16x4 };

template <class Layout>
inline constexpr CodesKind codes_kind_v = std::is_same_v<Layout, RowMajor>
                                              ? CodesKind::row_major
                                              : (std::is_same_v<Layout, Tile16x16>
                                                     ? CodesKind::tile_16x16
                                                     : CodesKind::tile_16x128);
template <class Layout>
inline constexpr ScalesKind scales_kind_v = std::is_same_v<Layout, RowMajor>
                                                ? ScalesKind::row_major
                                                : (std::is_same_v<Layout, Tile32x8>
                                                       ? ScalesKind::tile_32x8
                                                       : ScalesKind::tile_16x4);

/// Everything that the library's compiled half is told of an operand, before any check.
struct MatrixRef {
  std::int64_t rows, k;  // without padding
  BytesRef codes;
  BytesRef scales;
  SummariesRef summaries;
  CodesKind codes_kind;
  ScalesKind scales_kind;
};

template <class View>
std::int64_t extent_from_end(const View& view, int from_end) {
  constexpr int rank = static_cast<int>(View::rank());
  return from_end < rank ? static_cast<std::int64_t>(view.extent(rank - 1 - from_end)) : 1;
}
template <class View>
std::int64_t stride_from_end(const View& view, int from_end) {
  constexpr int rank = static_cast<int>(View::rank());
  return from_end < rank ? static_cast<std::int64_t>(view.stride(rank - 1 - from_end)) : 0;
}

template <class View>
DenseRef dense_ref(const View& view) {
  static_assert(Kokkos::is_view_v<View>, "KokkosMX: a dense operand is a Kokkos::View");
  static_assert(View::rank() == 2 || View::rank() == 3,
                "KokkosMX: a dense operand has rank 2 (rows, cols) or 3 (batch, rows, cols)");
  return {view.data(),
          element_of<typename View::value_type>(),
          extent_from_end(view, 2),
          extent_from_end(view, 1),
          extent_from_end(view, 0),
          stride_from_end(view, 2),
          stride_from_end(view, 1),
          stride_from_end(view, 0)};
}

template <class View>
BytesRef bytes_ref(const View& view) {
  static_assert(Kokkos::is_view_v<View>, "KokkosMX: codes and scales are given as a Kokkos::View");
  static_assert(std::is_same_v<std::remove_cv_t<typename View::value_type>, std::uint8_t>,
                "KokkosMX: codes and scales are bytes (std::uint8_t)");
  static_assert(View::rank() == 2 || View::rank() == 3,
                "KokkosMX: codes and scales have rank 2 (rows, bytes) or 3 (batch, rows, bytes)");
  static_assert(!std::is_same_v<typename View::array_layout, Kokkos::LayoutLeft>,
                "KokkosMX: the bytes of a row of codes or scales are contiguous (LayoutRight, or "
                "LayoutStride with last stride 1)");
  return {view.data(),
          extent_from_end(view, 2),
          extent_from_end(view, 1),
          extent_from_end(view, 0),
          stride_from_end(view, 2),
          stride_from_end(view, 1),
          stride_from_end(view, 0)};
}

template <class View>
SummariesRef summaries_ref(const View& view) {
  static_assert(Kokkos::is_view_v<View> &&
                    std::is_same_v<std::remove_cv_t<typename View::value_type>, RowSummary>,
                "KokkosMX: row summaries are a Kokkos::View of KokkosMX::RowSummary");
  static_assert(View::rank() == 1 || View::rank() == 2,
                "KokkosMX: row summaries have rank 1 (rows) or 2 (batch, rows)");
  return {const_cast<RowSummary*>(view.data()),
          true,
          extent_from_end(view, 1),
          extent_from_end(view, 0),
          stride_from_end(view, 1),
          stride_from_end(view, 0)};
}

/// What codes and scales have in common: bytes of the caller's with a layout in their type.
template <class Layout, class MemorySpace, class Byte>
class TypedBytes {
 public:
  using layout = Layout;
  using memory_space = MemorySpace;
  using byte = Byte;

  template <class View>
  requires Kokkos::is_view_v<View>
  explicit TypedBytes(const View& view) : ref_(bytes_ref(view)) {
    static_assert(accessible_v<MemorySpace, typename View::memory_space>,
                  "KokkosMX: the View of codes or scales lies in another memory space");
    static_assert(std::is_const_v<Byte> || !std::is_const_v<typename View::value_type>,
                  "KokkosMX: a View of const codes or scales cannot be written");
  }
  explicit TypedBytes(const BytesRef& ref) : ref_(ref) {}

  std::int64_t batch() const { return ref_.batch; }
  const BytesRef& impl_ref() const { return ref_; }

 private:
  BytesRef ref_;
};

}  // namespace Impl

/// Packed e2m1 codes of a (rows, K) matrix, or of a batch of them: (rows, K/2) bytes, low nibble =
/// even k. Made from a View of std::uint8_t (or const) of rank 2 (rows, K/2) or 3
/// (batch, rows, K/2); the bytes of a row are contiguous. For Tile16x16 the View has the same
/// shape, contiguous, as aiter's tensor has. For Tile16x128 the View's last two extents are
/// codes_shape<Tile16x128>(rows, K), contiguous, and rows and K are given beside it. Does not own
/// the memory.
template <class Layout, class MemorySpace, class Byte = const std::uint8_t>
class Codes : public Impl::TypedBytes<Layout, MemorySpace, Byte> {
  static_assert(Impl::is_codes_layout_v<Layout>,
                "KokkosMX: codes have the layout RowMajor, Tile16x16 or Tile16x128");
  using Base = Impl::TypedBytes<Layout, MemorySpace, Byte>;

 public:
  template <class View>
  requires Kokkos::is_view_v<View>
  explicit Codes(const View& view)
      : Base(view), rows_(this->impl_ref().rows), cols_(2 * this->impl_ref().cols) {
    static_assert(!std::is_same_v<Layout, Tile16x128>,
                  "KokkosMX: codes in Tile16x128 are made from a View, rows and K, which a padded "
                  "View does not tell");
  }
  /// Tile16x128: the extents without padding. Whether the View agrees is checked where the codes
  /// are used.
  template <class View>
  requires Kokkos::is_view_v<View> Codes(const View& view, std::int64_t rows, std::int64_t k)
      : Base(view), rows_(rows), cols_(k) {
    static_assert(std::is_same_v<Layout, Tile16x128>,
                  "KokkosMX: rows and K are given for codes in Tile16x128 alone, the View tells "
                  "those of others");
  }
  /// Writable codes serve where codes are read.
  Codes(const Codes<Layout, MemorySpace, std::uint8_t>& other) requires std::is_const_v<Byte>
      : Base(other.impl_ref()), rows_(other.rows()), cols_(other.cols()) {}
  Codes(const Codes&) = default;
  Codes& operator=(const Codes&) = default;

  /// Rows of the matrix, without padding.
  std::int64_t rows() const { return rows_; }
  /// K, without padding: for RowMajor and Tile16x16 twice the bytes of a row.
  std::int64_t cols() const { return cols_; }

 private:
  std::int64_t rows_, cols_;
};
template <class View>
Codes(const View&) -> Codes<RowMajor, typename View::memory_space, typename View::value_type>;

/// e8m0 scales of a (rows, K) matrix, or of a batch of them. Made from a View of std::uint8_t (or
/// const) of rank 2 or 3 whose last two extents are scales_shape<Layout>(rows, K); for Tile32x8 and
/// Tile16x4 contiguous. Does not own the memory.
template <class Layout, class MemorySpace, class Byte = const std::uint8_t>
class Scales : public Impl::TypedBytes<Layout, MemorySpace, Byte> {
  static_assert(Impl::is_scales_layout_v<Layout>,
                "KokkosMX: scales have the layout RowMajor, Tile32x8 or Tile16x4");
  using Base = Impl::TypedBytes<Layout, MemorySpace, Byte>;

 public:
  using Base::Base;
  /// Writable scales serve where scales are read.
  Scales(const Scales<Layout, MemorySpace, std::uint8_t>& other) requires std::is_const_v<Byte>
      : Base(other.impl_ref()) {}
  Scales(const Scales&) = default;
  Scales& operator=(const Scales&) = default;

  /// Rows of the buffer, padding included.
  std::int64_t rows() const { return this->impl_ref().rows; }
  /// Columns of the buffer, padding included.
  std::int64_t cols() const { return this->impl_ref().cols; }
};
template <class View>
Scales(const View&) -> Scales<RowMajor, typename View::memory_space, typename View::value_type>;

/// An MXFP4 matrix (rows, K), or a batch of them: codes, scales and, where the caller has them, row
/// summaries. K is a multiple of 32. A batch extent of 1 serves every batch of a product.
///
/// With summaries a product reads them; without, it makes them in its workspace, which costs one
/// more pass over the operand. Summaries are written by quantize and by summarize; stale ones
/// (codes or scales changed since) make results wrong. Extents are checked where the matrix is
/// used. Byte is const std::uint8_t (an input) or std::uint8_t (quantize may write it).
template <class CodesLayout, class ScalesLayout, class MemorySpace, class Byte = const std::uint8_t>
class Matrix {
 public:
  using codes_layout = CodesLayout;
  using scales_layout = ScalesLayout;
  using memory_space = MemorySpace;
  using byte = Byte;
  using codes_type = Codes<CodesLayout, MemorySpace, Byte>;
  using scales_type = Scales<ScalesLayout, MemorySpace, Byte>;

  Matrix(const codes_type& codes, const scales_type& scales) : codes_(codes), scales_(scales) {}

  /// summaries: a View of RowSummary, rank 1 (rows) or 2 (batch, rows).
  template <class View>
  requires Kokkos::is_view_v<View> Matrix(const codes_type& codes, const scales_type& scales,
                                          const View& summaries)
      : codes_(codes), scales_(scales), summaries_(Impl::summaries_ref(summaries)) {
    static_assert(Impl::accessible_v<MemorySpace, typename View::memory_space>,
                  "KokkosMX::Matrix: the summaries lie in another memory space");
    static_assert(std::is_const_v<Byte> || !std::is_const_v<typename View::value_type>,
                  "KokkosMX::Matrix: a View of const summaries cannot be written");
  }
  /// A writable matrix serves where a matrix is read.
  Matrix(const Matrix<CodesLayout, ScalesLayout, MemorySpace, std::uint8_t>& other) requires
      std::is_const_v<Byte>
      : codes_(other.codes()), scales_(other.scales()), summaries_(other.impl_ref().summaries) {}
  Matrix(const Matrix&) = default;
  Matrix& operator=(const Matrix&) = default;

  std::int64_t batch() const { return codes_.batch(); }
  std::int64_t rows() const { return codes_.rows(); }
  /// K.
  std::int64_t cols() const { return codes_.cols(); }
  bool has_summaries() const { return summaries_.present; }
  const codes_type& codes() const { return codes_; }
  const scales_type& scales() const { return scales_; }

  Impl::MatrixRef impl_ref() const {
    return {rows(),
            cols(),
            codes_.impl_ref(),
            scales_.impl_ref(),
            summaries_,
            Impl::codes_kind_v<CodesLayout>,
            Impl::scales_kind_v<ScalesLayout>};
  }

 private:
  codes_type codes_;
  scales_type scales_;
  Impl::SummariesRef summaries_;
};
template <class CL, class SL, class M, class B>
Matrix(const Codes<CL, M, B>&, const Scales<SL, M, B>&) -> Matrix<CL, SL, M, B>;
template <class CL, class SL, class M, class B, class View>
Matrix(const Codes<CL, M, B>&, const Scales<SL, M, B>&, const View&) -> Matrix<CL, SL, M, B>;

/// Memory for an MXFP4 matrix with summaries: three managed Views, allocated by the constructor and
/// freed with their last copy. `quantize(exec, x, storage.matrix(), rule)` fills it.
template <class CodesLayout, class ScalesLayout, class MemorySpace>
class MatrixStorage {
 public:
  using bytes_view = Kokkos::View<std::uint8_t***, Kokkos::LayoutRight, MemorySpace>;
  using summaries_view = Kokkos::View<RowSummary**, Kokkos::LayoutRight, MemorySpace>;
  using matrix_type = Matrix<CodesLayout, ScalesLayout, MemorySpace, std::uint8_t>;
  using const_matrix_type = Matrix<CodesLayout, ScalesLayout, MemorySpace>;

  /// (batch, rows, K): K is a multiple of 32. The contents are not initialized.
  MatrixStorage(const std::string& label, std::int64_t rows, std::int64_t k, std::int64_t batch = 1)
      : rows_(rows),
        k_(k),
        codes_(Kokkos::view_alloc(label + ": codes", Kokkos::WithoutInitializing), batch,
               codes_shape<CodesLayout>(rows, k).rows, codes_shape<CodesLayout>(rows, k).bytes),
        scales_(Kokkos::view_alloc(label + ": scales", Kokkos::WithoutInitializing), batch,
                scales_shape<ScalesLayout>(rows, k).rows, scales_shape<ScalesLayout>(rows, k).cols),
        summaries_(Kokkos::view_alloc(label + ": summaries", Kokkos::WithoutInitializing), batch,
                   rows) {}

  matrix_type matrix() const {
    using codes_type = typename matrix_type::codes_type;
    const typename matrix_type::scales_type scales(scales_);
    if constexpr (std::is_same_v<CodesLayout, Tile16x128>) {
      return matrix_type(codes_type(codes_, rows_, k_), scales, summaries_);
    } else {
      return matrix_type(codes_type(codes_), scales, summaries_);
    }
  }
  const bytes_view& codes() const { return codes_; }
  const bytes_view& scales() const { return scales_; }
  const summaries_view& summaries() const { return summaries_; }

 private:
  std::int64_t rows_, k_;
  bytes_view codes_;
  bytes_view scales_;
  summaries_view summaries_;
};

namespace Impl {
template <class ExecSpace>
KOKKOSMX_EXPORT void summarize(const ExecSpace& exec, const MatrixRef& matrix);
}

/// Makes the row summaries of codes and scales that the caller already has (aiter's tensors, a
/// checkpoint): one kernel, which reads the matrix once and writes (batch, rows) RowSummary.
/// Asynchronous on exec; neither allocates nor fences.
/// \throws std::invalid_argument where extents disagree, K is not a multiple of 32, a View is not
///   allocated, or the summaries overlap the codes or scales. std::logic_error without Kokkos.
template <class ExecSpace, class CodesLayout, class ScalesLayout, class MemorySpace, class Byte,
          class View>
void summarize(const ExecSpace& exec,
               const Matrix<CodesLayout, ScalesLayout, MemorySpace, Byte>& matrix,
               const View& summaries) {
  static_assert(Kokkos::is_execution_space_v<ExecSpace>,
                "KokkosMX::summarize: the first argument is an execution-space instance");
  static_assert(Impl::accessible_v<ExecSpace, MemorySpace>,
                "KokkosMX::summarize: the execution space cannot access the matrix");
  static_assert(Impl::accessible_v<ExecSpace, typename View::memory_space>,
                "KokkosMX::summarize: the execution space cannot access the summaries");
  static_assert(!std::is_const_v<typename View::value_type>,
                "KokkosMX::summarize: a View of const summaries cannot be written");
  Impl::MatrixRef ref = matrix.impl_ref();
  ref.summaries = Impl::summaries_ref(summaries);
  Impl::summarize(exec, ref);
}

}  // namespace KokkosMX

#endif
