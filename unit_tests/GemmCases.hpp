// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_UNIT_TESTS_GEMM_CASES_HPP
#define KOKKOSMX_UNIT_TESTS_GEMM_CASES_HPP

// What the tests of the product have in common: operands of many kinds on the host, the same on the
// device in every form that the library takes, and one product compared bit by bit with the oracle.

#include <gtest/gtest.h>

#include <KokkosMX.hpp>
#include <Kokkos_Core.hpp>
#include <array>
#include <bit>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "Inputs.hpp"
#include "ReferenceGemm.hpp"

namespace KokkosMXTest {

using Exec = Kokkos::DefaultExecutionSpace;
using Space = Exec::memory_space;
using Unmanaged = Kokkos::MemoryTraits<Kokkos::Unmanaged>;
using Bits = std::vector<std::uint32_t>;
template <class T>
using DeviceArray = Kokkos::View<T*, Space>;
template <class T>
using DeviceRows = Kokkos::View<T**, Kokkos::LayoutStride, Space, Unmanaged>;

// Out of line: inlined everywhere, these would take the compiler most of its time.
#define KOKKOSMX_TEST_OUT_OF_LINE [[gnu::noinline]]

template <class T>
KOKKOSMX_TEST_OUT_OF_LINE DeviceArray<T> to_device(const std::vector<T>& host) {
  DeviceArray<T> device(Kokkos::view_alloc("KokkosMXTest", Kokkos::WithoutInitializing),
                        host.size());
  Kokkos::deep_copy(device,
                    Kokkos::View<const T*, Kokkos::HostSpace, Unmanaged>(host.data(), host.size()));
  return device;
}
template <class T>
KOKKOSMX_TEST_OUT_OF_LINE std::vector<T> to_host(const DeviceArray<T>& device) {
  std::vector<T> host(device.extent(0));
  Kokkos::deep_copy(Kokkos::View<T*, Kokkos::HostSpace, Unmanaged>(host.data(), host.size()),
                    device);
  return host;
}

// ------------------------------------------------------------------------------ output types

template <class T>
struct OutputType;
template <>
struct OutputType<float> {
  using bits = std::uint32_t;
  static constexpr Format format = format_f32;
  static constexpr const char* name = "f32";
};
template <>
struct OutputType<KokkosMX::BFloat16> {
  using bits = std::uint16_t;
  static constexpr Format format = format_bf16;
  static constexpr const char* name = "bf16";
};
template <>
struct OutputType<KokkosMX::Float16> {
  using bits = std::uint16_t;
  static constexpr Format format = format_f16;
  static constexpr const char* name = "f16";
};
using OutputTypes = ::testing::Types<float, KokkosMX::BFloat16, KokkosMX::Float16>;
struct OutputTypeNames {
  template <class T>
  static std::string GetName(int) {
    return OutputType<T>::name;
  }
};

// ------------------------------------------------------------------------------ operands

// Random codes; scales uniform in first .. last.
inline HostMatrix random_matrix(std::int64_t rows, std::int64_t k, std::uint64_t seed, int first,
                                int last) {
  HostMatrix x(rows, k);
  x.codes = random_bytes(x.codes.size(), seed);
  Stream stream(seed ^ 0x5CA1E5);
  for (std::uint8_t& scale : x.scales) {
    scale = static_cast<std::uint8_t>(stream.between(first, last));
  }
  return x;
}
// Makes one block in n a block of zeros (with either sign), and one row in n a row of zeros.
inline void zero_some(HostMatrix& x, int n, std::uint64_t seed) {
  Stream stream(seed);
  for (std::int64_t row = 0; row < x.rows; ++row) {
    const bool whole_row = stream.below(n) == 0;
    for (std::int64_t block = 0; block < x.k / 32; ++block) {
      if (!whole_row && stream.below(n) != 0) continue;
      for (int i = 0; i < 32; ++i) {
        x.set_code(row, 32 * block + i, stream.below(2) == 0 ? 0 : 8);
      }
    }
  }
}
// Gives one block in n the scale 255.
inline void nan_some(HostMatrix& x, int n, std::uint64_t seed) {
  Stream stream(seed);
  for (std::uint8_t& scale : x.scales) {
    if (stream.below(n) == 0) scale = 255;
  }
}

enum class Data {
  narrow,       // a few bits of scale
  medium,       // 24 bits
  wide,         // 160 bits
  full,         // 0..254
  nan,          // narrow, with scales of 255
  zeros,        // medium, with zero blocks and rows
  subnormal,    // products around 2^-149 .. 2^-126
  overflow,     // products around 2^128
  equal,        // one scale
  two_clusters  // scales from two narrow ranges far apart
};
inline constexpr int data_count = 10;

KOKKOSMX_TEST_OUT_OF_LINE inline HostMatrix make_data(Data data, std::int64_t rows, std::int64_t k,
                                                      std::uint64_t seed) {
  Stream stream(seed ^ 0xDA7A);
  const int shift = static_cast<int>(stream.below(30));
  switch (data) {
    case Data::narrow:
      return random_matrix(rows, k, seed, 110 + shift, 113 + shift);
    case Data::medium:
      return random_matrix(rows, k, seed, 90 + shift, 114 + shift);
    case Data::wide:
      return random_matrix(rows, k, seed, 20 + shift, 180 + shift);
    case Data::full:
      return random_matrix(rows, k, seed, 0, 254);
    case Data::nan: {
      HostMatrix x = random_matrix(rows, k, seed, 110 + shift, 114 + shift);
      nan_some(x, static_cast<int>(4 + 2 * (k / 32)), seed + 1);
      return x;
    }
    case Data::zeros: {
      HostMatrix x = random_matrix(rows, k, seed, 90 + shift, 114 + shift);
      zero_some(x, 4, seed + 1);
      return x;
    }
    case Data::subnormal:
      return random_matrix(rows, k, seed, 48, 60);
    case Data::overflow:
      return random_matrix(rows, k, seed, 180, 188);
    case Data::equal:
      return random_matrix(rows, k, seed, 100 + shift, 100 + shift);
    case Data::two_clusters: {
      HostMatrix x = random_matrix(rows, k, seed, 60 + shift, 63 + shift);
      for (std::uint8_t& scale : x.scales) {
        if (stream.below(3) == 0) scale = static_cast<std::uint8_t>(scale + 100);
      }
      return x;
    }
  }
  return {};
}

// Outliers on rows whose scales spread over base .. base + 2.
struct Outliers {
  int up = 0;            // their blocks' scales lie so much higher, up to 2 more
  int column_every = 0;  // a column of K in so many is an outlier; 0: none
  int row_every = 1;     // only so many rows have them
  int block_every = 0;   // a block in so many, wherever it lies, with all its codes; 0: none
  int near_every = 0;    // a block in so many lies up to 9 higher, with small codes; 0: none
  int wide_every = 0;    // a row in so many has a block at scale 0 and one at 254; 0: none
};
KOKKOSMX_TEST_OUT_OF_LINE inline HostMatrix make_outliers(const Outliers& how, std::int64_t rows,
                                                          std::int64_t k, std::uint64_t seed) {
  Stream stream(seed ^ 0x0071);
  const int base =
      how.wide_every != 0 ? 100 : static_cast<int>(stream.between(0, 252 - how.up - 9));
  HostMatrix x = random_matrix(rows, k, seed, base, base + 2);
  const auto is_one_in = [&](int every) {
    return every != 0 && stream.below(static_cast<std::uint64_t>(every)) == 0;
  };
  std::vector<bool> column(k);
  for (std::int64_t i = 0; i < k; ++i) column[i] = is_one_in(how.column_every);
  for (std::int64_t row = 0; row < rows; ++row) {
    const bool has_outliers = is_one_in(how.row_every);
    for (std::int64_t block = 0; block < k / 32; ++block) {
      std::uint8_t& scale = x.scale(row, block);
      const auto raise = [&](int by) { scale = static_cast<std::uint8_t>(scale + by); };
      if (is_one_in(how.near_every)) {
        raise(static_cast<int>(stream.below(8)));
        for (int i = 0; i < 32; ++i) {
          const int code = x.code(row, 32 * block + i);
          if (stream.below(8) != 0) x.set_code(row, 32 * block + i, code & (8 + stream.below(8)));
        }
        continue;
      }
      if (!has_outliers) continue;
      if (is_one_in(how.block_every)) {
        raise(how.up);
        continue;
      }
      bool any = false;
      for (int i = 0; i < 32; ++i) any = any || column[32 * block + i];
      if (!any || stream.below(16) == 0) continue;
      raise(how.up);
      for (int i = 0; i < 32; ++i) {
        // Nearly all else is zero, positive or negative.
        if (column[32 * block + i] || stream.below(64) == 0) continue;
        x.set_code(row, 32 * block + i, stream.below(2) == 0 ? 0 : 8);
      }
    }
    if (is_one_in(how.wide_every)) {
      x.scale(row, 0) = 0;
      x.scale(row, k / 32 - 1) = 254;
    }
  }
  return x;
}

// Rows with outliers in columns alone: one in `every` columns, in one in `row_every` rows, up to 2
// higher than base + up.
KOKKOSMX_TEST_OUT_OF_LINE inline HostMatrix outlier_columns(std::int64_t rows, std::int64_t k,
                                                            int every, int row_every, int up,
                                                            std::uint64_t seed) {
  HostMatrix x = random_matrix(rows, k, seed, 100, 102);
  Stream stream(seed);
  zero_some(x, 60, seed);
  std::vector<bool> column(k);
  for (std::int64_t i = 0; i < k; ++i) column[i] = stream.below(every) == 0;
  for (std::int64_t row = 0; row < rows; ++row) {
    if (stream.below(row_every) != 0) continue;
    for (std::int64_t block = 0; block < k / 32; ++block) {
      bool any = false;
      for (int i = 0; i < 32; ++i) any = any || column[32 * block + i];
      if (!any) continue;
      x.scale(row, block) = static_cast<std::uint8_t>(100 + up + stream.below(3));
      for (int i = 0; i < 32; ++i) {
        if (!column[32 * block + i]) x.set_code(row, 32 * block + i, 0);
      }
    }
  }
  return x;
}
// Rows half of whose blocks are outliers, each with one element that is not zero.
KOKKOSMX_TEST_OUT_OF_LINE inline HostMatrix lone_outliers(std::int64_t rows, std::int64_t k, int up,
                                                          std::uint64_t seed) {
  HostMatrix x = random_matrix(rows, k, seed, 100, 102);
  Stream stream(seed);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t block = 0; block < k / 32; ++block) {
      if (stream.below(2) != 0) continue;
      x.scale(row, block) = static_cast<std::uint8_t>(100 + up);
      const auto lone = static_cast<int>(stream.below(32));
      for (int i = 0; i < 32; ++i) {
        if (i != lone) x.set_code(row, 32 * block + i, 0);
      }
    }
  }
  return x;
}

// ------------------------------------------------------------------------------ forms

// How an operand is handed over.
struct Form {
  bool tile_codes = false;   // Tile16x16, where the shape allows it, else RowMajor
  bool tile_scales = false;  // Tile32x8, else RowMajor
  bool summaries = true;
  int offset = 0;       // bytes between the allocation's start and the operand
  int row_padding = 0;  // bytes between rows, RowMajor
};
inline Form random_form(Stream& stream) {
  Form form;
  form.tile_codes = stream.below(2) == 0;
  form.tile_scales = stream.below(2) == 0;
  form.summaries = stream.below(2) == 0;
  form.offset = stream.below(2) == 0 ? 0 : static_cast<int>(stream.below(19));
  form.row_padding = stream.below(2) == 0 ? 0 : static_cast<int>(stream.below(37));
  return form;
}

// The place of byte (row, col) of the codes of an (n, k) matrix in aiter's shuffle_weight (16,16).
inline std::int64_t tile_16x16_offset(std::int64_t k, std::int64_t row, std::int64_t col) {
  const std::int64_t tile_row = row / 16, in_tile = row % 16;
  const std::int64_t pair = col / 32, half = col / 16 % 2, byte = col % 16;
  return (((tile_row * (k / 64) + pair) * 2 + half) * 16 + in_tile) * 16 + byte;
}
// The place of scale (row, col) in aiter's shuffle_scale of a buffer of cols columns.
inline std::int64_t tile_32x8_offset(std::int64_t cols, std::int64_t row, std::int64_t col) {
  return ((((row / 32 * (cols / 8) + col / 8) * 4 + col % 4) * 16 + row % 16) * 2 + col / 4 % 2) *
             2 +
         row / 16 % 2;
}

// An operand on the device. What lies around and between its bytes is random.
class DeviceMatrix {
 public:
  KOKKOSMX_TEST_OUT_OF_LINE DeviceMatrix(const HostMatrix& x, Form form)
      : rows_(x.rows), k_(x.k), form_(form) {
    form_.tile_codes = form.tile_codes && x.rows % 16 == 0 && x.k % 64 == 0;
    const std::int64_t bytes = k_ / 2;
    const std::int64_t cols = k_ / 32;
    codes_stride_ = form_.tile_codes ? bytes : bytes + form.row_padding;
    const KokkosMX::ScalesShape padded = KokkosMX::scales_shape<KokkosMX::Tile32x8>(rows_, k_);
    scales_rows_ = form.tile_scales ? (rows_ + 255) / 256 * 256 : rows_;
    scales_cols_ = form.tile_scales ? (cols + 7) / 8 * 8 : cols;
    if (form.tile_scales) {
      EXPECT_EQ(padded.rows, scales_rows_);
      EXPECT_EQ(padded.cols, scales_cols_);
    }
    scales_stride_ = form.tile_scales ? scales_cols_ : cols + form.row_padding;
    std::vector<std::uint8_t> codes = random_bytes(form.offset + rows_ * codes_stride_ + 64, 77);
    // Bytes of padding that would do the most harm: NaN scales.
    std::vector<std::uint8_t> scales(form.offset + scales_rows_ * scales_stride_ + 64, 255);
    for (std::int64_t row = 0; row < rows_; ++row) {
      for (std::int64_t col = 0; col < bytes; ++col) {
        const std::int64_t place =
            form_.tile_codes ? tile_16x16_offset(k_, row, col) : row * codes_stride_ + col;
        codes[form.offset + place] = x.codes[row * bytes + col];
      }
      for (std::int64_t col = 0; col < cols; ++col) {
        const std::int64_t place = form.tile_scales ? tile_32x8_offset(scales_cols_, row, col)
                                                    : row * scales_stride_ + col;
        scales[form.offset + place] = x.scales[row * cols + col];
      }
    }
    codes_ = to_device(codes);
    scales_ = to_device(scales);
    if (form.summaries) {
      summaries_ = DeviceArray<KokkosMX::RowSummary>("KokkosMXTest: summaries", rows_);
      visit([&](const auto& matrix) { KokkosMX::summarize(Exec(), matrix, summaries_); });
      Exec().fence();
      has_summaries_ = true;
    }
  }

  // The matrix of a form with neither of the tiles.
  KokkosMX::Matrix<KokkosMX::RowMajor, KokkosMX::RowMajor, Space> plain() const {
    return matrix<KokkosMX::RowMajor, KokkosMX::RowMajor>();
  }
  // Calls f with a KokkosMX::Matrix of the form's type; tiles: whether codes may be in Tile16x16.
  template <bool tiles = true, class F>
  void visit(F&& f) const {
    if (form_.tile_codes) {
      if constexpr (tiles) {
        if (form_.tile_scales) {
          f(matrix<KokkosMX::Tile16x16, KokkosMX::Tile32x8>());
        } else {
          f(matrix<KokkosMX::Tile16x16, KokkosMX::RowMajor>());
        }
      } else {
        throw std::logic_error("DeviceMatrix: codes in Tile16x16");
      }
    } else if (form_.tile_scales) {
      f(matrix<KokkosMX::RowMajor, KokkosMX::Tile32x8>());
    } else {
      f(plain());
    }
  }
  const DeviceArray<KokkosMX::RowSummary>& summaries() const { return summaries_; }

 private:
  template <class CodesLayout, class ScalesLayout>
  KOKKOSMX_TEST_OUT_OF_LINE KokkosMX::Matrix<CodesLayout, ScalesLayout, Space> matrix() const {
    EXPECT_EQ(form_.tile_codes, (std::is_same_v<CodesLayout, KokkosMX::Tile16x16>));
    EXPECT_EQ(form_.tile_scales, (std::is_same_v<ScalesLayout, KokkosMX::Tile32x8>));
    const KokkosMX::Codes<CodesLayout, Space> codes(DeviceRows<const std::uint8_t>(
        codes_.data() + form_.offset, Kokkos::LayoutStride(rows_, codes_stride_, k_ / 2, 1)));
    const KokkosMX::Scales<ScalesLayout, Space> scales(DeviceRows<const std::uint8_t>(
        scales_.data() + form_.offset,
        Kokkos::LayoutStride(scales_rows_, scales_stride_, scales_cols_, 1)));
    if (!has_summaries_) return {codes, scales};
    return {codes, scales, summaries_};
  }

  std::int64_t rows_, k_;
  Form form_;
  bool has_summaries_ = false;
  std::int64_t codes_stride_, scales_stride_, scales_rows_, scales_cols_;
  DeviceArray<std::uint8_t> codes_, scales_;
  DeviceArray<KokkosMX::RowSummary> summaries_;
};

// ------------------------------------------------------------------------------ outputs

// An (m, n) output inside a larger buffer of random numbers.
template <class T>
class DeviceOutput {
 public:
  using BitsOf = typename OutputType<T>::bits;

  // c: the numbers before the call, row-major; empty: NaNs.
  KOKKOSMX_TEST_OUT_OF_LINE DeviceOutput(std::int64_t m, std::int64_t n, std::int64_t row_stride,
                                         std::int64_t col_stride, std::int64_t offset,
                                         const Bits& c)
      : m_(m), n_(n), row_stride_(row_stride), col_stride_(col_stride), offset_(offset) {
    const std::int64_t last =
        m == 0 || n == 0 ? 0 : (m - 1) * row_stride + (n - 1) * col_stride + 1;
    before_.resize(offset + last + 33);
    Stream stream(4711);
    for (BitsOf& bits : before_) bits = static_cast<BitsOf>(stream.next());
    for (std::int64_t i = 0; i < m; ++i) {
      for (std::int64_t j = 0; j < n; ++j) {
        before_[place(i, j)] =
            static_cast<BitsOf>(c.empty() ? OutputType<T>::format.nan() | 1 : c[i * n + j]);
      }
    }
    data_ = to_device(before_);
  }
  DeviceRows<T> view() const {
    return DeviceRows<T>(pointer(), Kokkos::LayoutStride(m_, row_stride_, n_, col_stride_));
  }
  T* pointer() const { return reinterpret_cast<T*>(data_.data()) + offset_; }

  // The output, row-major. touched: whether anything around it changed.
  KOKKOSMX_TEST_OUT_OF_LINE Bits result(bool* touched = nullptr) const {
    std::vector<BitsOf> after = to_host(data_);
    Bits bits(m_ * n_);
    for (std::int64_t i = 0; i < m_; ++i) {
      for (std::int64_t j = 0; j < n_; ++j) {
        bits[i * n_ + j] = after[place(i, j)];
        after[place(i, j)] = before_[place(i, j)];
      }
    }
    if (touched != nullptr) *touched = after != before_;
    return bits;
  }

 private:
  std::int64_t place(std::int64_t i, std::int64_t j) const {
    return offset_ + i * row_stride_ + j * col_stride_;
  }
  std::int64_t m_, n_, row_stride_, col_stride_, offset_;
  std::vector<BitsOf> before_;
  DeviceArray<BitsOf> data_;
};

// ------------------------------------------------------------------------------ one product

enum class CLayout { right, left, both_strided };

struct Variation {
  Form a, b;
  CLayout c_layout = CLayout::right;
  std::int64_t c_padding = 0;  // elements between rows (columns)
  std::int64_t c_offset = 0;
  ReferenceEpilogue epilogue;
  Bits c;  // empty: NaNs, with beta == 0
  KokkosMX::Tier minimum_tier = KokkosMX::Tier::automatic;

  KOKKOSMX_TEST_OUT_OF_LINE std::string text() const {
    std::ostringstream out;
    const auto form = [&](const char* name, const Form& f) {
      out << name << (f.tile_codes ? " tile16x16" : " rows") << (f.tile_scales ? "/tile32x8" : "")
          << (f.summaries ? "/summaries" : "") << " offset " << f.offset << " padding "
          << f.row_padding << "; ";
    };
    form("A", a);
    form("B", b);
    out << "C layout " << static_cast<int>(c_layout) << " padding " << c_padding << " offset "
        << c_offset << std::hex << "; alpha " << epilogue.alpha << " beta " << epilogue.beta
        << (epilogue.bias.empty() ? "" : " bias") << std::dec << "; tier "
        << static_cast<int>(minimum_tier);
    return out.str();
  }
};
inline Variation random_variation(Stream& stream) {
  Variation v;
  v.a = random_form(stream);
  v.b = random_form(stream);
  v.c_layout = static_cast<CLayout>(stream.below(3));
  v.c_padding = stream.below(2) == 0 ? 0 : static_cast<std::int64_t>(stream.below(11));
  v.c_offset = static_cast<std::int64_t>(stream.below(5));
  return v;
}

using TierCounts = std::array<std::uint64_t, KokkosMX::tier_count>;

struct Outcome {
  Bits bits;
  TierCounts counts;
  bool touched;  // whether bytes around the output changed
};

KOKKOSMX_TEST_OUT_OF_LINE inline DeviceArray<std::byte> make_workspace(std::size_t bytes) {
  return DeviceArray<std::byte>("KokkosMXTest: workspace", bytes);
}
template <class A, class B, class C>
KOKKOSMX_TEST_OUT_OF_LINE void call_gemm(const Exec& exec, const A& a, const B& b, const C& c,
                                         const KokkosMX::GemmOptions<Space>& options) {
  const DeviceArray<std::byte> workspace =
      make_workspace(KokkosMX::gemm_workspace_size(exec, a, b, c));
  KokkosMX::gemm(exec, KokkosMX::Workspace(workspace), a, b, c, options);
  exec.fence();
}

template <class T>
KOKKOSMX_TEST_OUT_OF_LINE Outcome run_product(const HostMatrix& a, const HostMatrix& b,
                                              const Variation& v) {
  const std::int64_t m = a.rows, n = b.rows;
  std::int64_t row_stride = n + v.c_padding, col_stride = 1;
  if (v.c_layout == CLayout::left) {
    row_stride = 1;
    col_stride = m + v.c_padding;
  } else if (v.c_layout == CLayout::both_strided) {
    col_stride = 2;
    row_stride = 2 * n + 1 + v.c_padding;
  }
  const DeviceOutput<T> c(m, n, row_stride, col_stride, v.c_offset, v.c);
  Form form_a = v.a, form_b = v.b;
  if (!std::is_same_v<T, float>) form_a.tile_codes = form_b.tile_codes = false;
  const DeviceMatrix device_a(a, form_a), device_b(b, form_b);
  const DeviceArray<std::uint64_t> counts("KokkosMXTest: counts", KokkosMX::tier_count);
  // What the library stands on is float32 as bits on the way in.
  const DeviceArray<std::uint32_t> bias = to_device(v.epilogue.bias);
  KokkosMX::GemmOptions<Space> options;
  options.alpha(std::bit_cast<float>(v.epilogue.alpha))
      .beta(std::bit_cast<float>(v.epilogue.beta))
      .minimum_tier(v.minimum_tier)
      .tier_counts(counts);
  if (!v.epilogue.bias.empty()) {
    options.bias(Kokkos::View<const float*, Space, Unmanaged>(
        reinterpret_cast<const float*>(bias.data()), bias.extent(0)));
  }
  // All layouts of codes with float, to save the compiler's time.
  constexpr bool tiles = std::is_same_v<T, float>;
  device_a.template visit<tiles>([&](const auto& matrix_a) {
    device_b.template visit<tiles>(
        [&](const auto& matrix_b) { call_gemm(Exec(), matrix_a, matrix_b, c.view(), options); });
  });
  Outcome outcome;
  outcome.bits = c.result(&outcome.touched);
  const std::vector<std::uint64_t> host_counts = to_host(counts);
  std::copy(host_counts.begin(), host_counts.end(), outcome.counts.begin());
  return outcome;
}

// The oracle's outputs for products P.
KOKKOSMX_TEST_OUT_OF_LINE inline Bits expected_output(const Bits& products, std::int64_t n,
                                                      const Variation& v, const Format& format) {
  Bits result(products.size());
  for (std::size_t i = 0; i < products.size(); ++i) {
    const std::uint32_t c = v.c.empty() ? format.nan() : v.c[i];
    result[i] =
        reference_epilogue(v.epilogue, format, products[i], c, static_cast<std::int64_t>(i) % n);
  }
  return result;
}

KOKKOSMX_TEST_OUT_OF_LINE inline void expect_equal_bits(const Bits& expected, const Bits& actual,
                                                        std::int64_t n,
                                                        const std::string& context) {
  ASSERT_EQ(expected.size(), actual.size()) << context;
  std::size_t differences = 0;
  std::ostringstream first;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (expected[i] == actual[i]) continue;
    if (++differences <= 3) {
      first << " (" << static_cast<std::int64_t>(i) / n << ", " << static_cast<std::int64_t>(i) % n
            << "): expected " << std::hex << expected[i] << ", is " << actual[i] << std::dec << ';';
    }
  }
  EXPECT_EQ(differences, 0u) << "of " << expected.size() << first.str() << ' ' << context;
}

inline std::string shape_text(const HostMatrix& a, const HostMatrix& b) {
  return "M " + std::to_string(a.rows) + " N " + std::to_string(b.rows) + " K " +
         std::to_string(a.k) + "; ";
}

// One product against the oracle's P: bits, bytes around the output, counts of tiers.
template <class T>
KOKKOSMX_TEST_OUT_OF_LINE TierCounts check_product(const HostMatrix& a, const HostMatrix& b,
                                                   const Bits& products, const Variation& v,
                                                   const std::string& name = "") {
  const Outcome outcome = run_product<T>(a, b, v);
  const std::string context = name + ' ' + OutputType<T>::name + ' ' + shape_text(a, b) + v.text();
  expect_equal_bits(expected_output(products, b.rows, v, OutputType<T>::format), outcome.bits,
                    b.rows, context);
  EXPECT_FALSE(outcome.touched) << "bytes around the output changed: " << context;
  std::uint64_t total = 0;
  for (const std::uint64_t count : outcome.counts) total += count;
  EXPECT_EQ(total, products.size()) << context;
  for (int tier = 1; tier < static_cast<int>(v.minimum_tier); ++tier) {
    EXPECT_EQ(outcome.counts[tier], 0u) << context;
  }
  return outcome.counts;
}

inline TierCounts& operator+=(TierCounts& sum, const TierCounts& part) {
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
  return sum;
}

}  // namespace KokkosMXTest

#endif
