// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_PYTHON_ARRAY_HPP
#define KOKKOSMX_PYTHON_ARRAY_HPP

/// \file array.hpp
/// Arrays of any framework, as memory: taken without a copy, described in messages, made for
/// results.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <KokkosMX.hpp>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace KokkosMXPython {

namespace nb = nanobind;

/// Elements that arrays have. The first three are those of dense operands.
enum class DType : std::uint8_t { float32, bfloat16, float16, uint8, uint16, uint64, other };

/// Whose array a result has to be.
enum class Framework : std::uint8_t { numpy, torch, other };

struct Device {
  int type = 1;  ///< DLPack's: 1 is host memory
  int id = 0;
  bool operator==(const Device&) const = default;
};

/// Extents or strides; no array here has more dimensions.
inline constexpr int most_ranks = 8;
using Extents = std::array<std::int64_t, most_ranks>;

/// What a Python type's arrays are, and how they are reached without calling Python.
struct ArrayType;

/// The memory of an argument for as long as this lives. Not copied: it may hold a Py_buffer.
class Array {
 public:
  /// name: of the argument, for messages. uint16_as: what 16-bit integers are bits of.
  /// \throws nb::type_error where the object is no array.
  Array(nb::handle object, const char* name, std::optional<DType> uint16_as = {});
  ~Array();
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  const char* name() const { return name_; }
  nb::handle object() const { return object_; }
  void* data() const { return data_; }
  DType dtype() const { return dtype_; }
  /// Elements are 16-bit integers in the caller's framework.
  bool is_uint16() const { return is_uint16_; }
  Framework framework() const;
  const ArrayType& type() const { return type_; }
  Device device() const { return device_; }
  int rank() const { return rank_; }
  /// In elements.
  std::int64_t stride(int i) const { return stride_[static_cast<std::size_t>(i)]; }
  std::int64_t extent(int i) const { return shape_[static_cast<std::size_t>(i)]; }
  /// "torch.bfloat16 (4, 512) with strides (512, 1) on cpu"
  std::string text() const;

  /// \throws nb::type_error unless the elements are float32, bfloat16 or float16.
  void require_dense() const;
  /// \throws nb::type_error unless the elements are bytes.
  void require_bytes() const;
  /// \throws nb::value_error where the array is read-only.
  void require_writable() const;

  /// Rank 2 or 3. \throws nb::value_error for others and for strides that Views cannot have.
  KokkosMX::Impl::DenseRef dense() const;
  KokkosMX::Impl::BytesRef bytes() const;
  /// Rank 1, of elements of one type. (data, extent, stride)
  struct Vector {
    void* data;
    std::int64_t extent, stride;
  };
  Vector vector(DType dtype) const;

 private:
  bool take_exchanged();
  bool take_buffer();
  void take_dlpack();
  void take(const nb::dlpack::dltensor& tensor);
  void check_strides() const;
  [[noreturn]] void fail_type(const std::string& expected) const;
  [[noreturn]] void fail_value(const std::string& expected) const;

  void set_rank(std::int64_t rank);

  const char* name_;
  nb::object object_;
  const ArrayType& type_;
  void* data_ = nullptr;
  DType dtype_ = DType::other;
  std::string format_;  // of elements that are none of DType
  bool is_uint16_ = false, read_only_ = false, whole_strides_ = true;
  Device device_;
  int rank_ = 0;
  Extents shape_{}, stride_{};  // in elements
  bool has_buffer_ = false;
  Py_buffer buffer_;
  nb::object capsule_;  // of DLPack
};

const char* name_of(DType dtype);
std::int64_t size_of(DType dtype);
std::string text_of(Device device);
std::string text_of(const std::int64_t* extents, int rank);
/// An object's type, and, as it says itself, its dtype, shape and device; for tuples and lists
/// those of the first members.
std::string text_of(nb::handle object);
inline std::string text_of(const std::vector<std::int64_t>& extents) {
  return text_of(extents.data(), static_cast<int>(extents.size()));
}

/// A new array, C-contiguous, in the framework, and the device, of the array `like`. as_uint16: 16-
/// bit elements become integers where the framework has no such type.
struct Result {
  nb::object object;
  void* data;
};
Result make_result(const Array& like, DType dtype, const std::vector<std::int64_t>& shape,
                   bool as_uint16);

}  // namespace KokkosMXPython

#endif
