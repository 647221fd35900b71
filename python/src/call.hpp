// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_PYTHON_CALL_HPP
#define KOKKOSMX_PYTHON_CALL_HPP

/// \file call.hpp
/// One call from Python: its arrays, what its operands are, and how it runs.

#include "array.hpp"
#include "runtime.hpp"

#include <KokkosMX.hpp>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace KokkosMXPython {

using KokkosMX::NonFinite;
using KokkosMX::QuantizeRule;
using KokkosMX::Rounding;
using KokkosMX::ScaleMode;
using KokkosMX::Impl::BytesRef;
using KokkosMX::Impl::CodesKind;
using KokkosMX::Impl::DenseRef;
using KokkosMX::Impl::MatrixRef;
using KokkosMX::Impl::OperandRef;
using KokkosMX::Impl::ScalesKind;

/// Codes and scales in a layout, of anybody's arrays, which it keeps alive. Python's Matrix.
struct Matrix {
  nb::object codes, scales;
  CodesKind codes_layout;
  ScalesKind scales_layout;
};

/// Memory of the package's own, with row summaries; freed with Kokkos, if not before.
template <class CodesLayout, class ScalesLayout>
class Storage {
 public:
  template <class Exec>
  using On = KokkosMX::MatrixStorage<CodesLayout, ScalesLayout, typename Exec::memory_space>;

  /// Inside Runtime's work.
  template <class Exec>
  void allocate(const char* label, std::int64_t batch, std::int64_t rows, std::int64_t k) {
    auto made = std::make_unique<On<Exec>>(label, rows, k, batch);
    ref_ = made->matrix().impl_ref();
    bytes_ = made->codes().size() + made->scales().size() +
             made->summaries().size() * sizeof(KokkosMX::RowSummary);
    owner_ = {made.release(), [](void* storage) {
                // After Kokkos has stopped nothing may be freed any more, and nobody minds.
                if (Kokkos::is_initialized() && !Kokkos::is_finalized()) {
                  delete static_cast<On<Exec>*>(storage);
                }
              }};
  }
  const MatrixRef& ref() const { return ref_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<void> owner_;
  MatrixRef ref_{};
  std::size_t bytes_ = 0;
};
using PlainStorage = Storage<KokkosMX::RowMajor, KokkosMX::RowMajor>;

/// An operand of many products. Python's Prepared.
struct Prepared {
  Storage<KokkosMX::Tile16x128, KokkosMX::Tile16x4> storage;
  bool has_batch = false;
  Device device;
  nb::object like;  // of whose framework results are
};

/// An operand of a call.
struct Operand {
  OperandRef ref{};
  bool has_batch = false;
  const Array* array = nullptr;  // an array of it: the dense one, or the codes; or null
  const Prepared* prepared = nullptr;
  std::int64_t batch() const { return ref.is_dense ? ref.dense.batch : ref.matrix.codes.batch; }
  std::int64_t rows() const { return ref.is_dense ? ref.dense.rows : ref.matrix.rows; }
  std::int64_t k() const { return ref.is_dense ? ref.dense.cols : ref.matrix.k; }
};

class Call {
 public:
  explicit Call(const char* function, std::optional<DType> uint16_as = {})
      : function_(function), uint16_as_(uint16_as) {
    if (uint16_as && size_of(*uint16_as) != 2) {
      throw nb::value_error((std::string("kokkosmx.") + function +
                             ": uint16_as is DType.bfloat16 or DType.float16, given DType." +
                             name_of(*uint16_as))
                                .c_str());
    }
  }

  /// \throws nb::type_error where the library was not built for the array's device.
  Array& array(nb::handle object, const char* name);
  /// A dense array, where `dense`; a Matrix, a pair (codes, scales) or a Prepared.
  Operand operand(nb::handle object, const char* name, const char* codes_name,
                  const char* scales_name, bool dense);

  /// An array that is written: out, checked, or a new one like `like`.
  Array& result(nb::handle out, const char* name, const Array& like, DType dtype,
                const std::vector<std::int64_t>& shape);

  /// After the arrays, so that the message has them. \throws nb::value_error where there is no such
  /// rule.
  QuantizeRule rule(ScaleMode mode, Rounding rounding, NonFinite non_finite) const;

  std::optional<DType> uint16_as() const { return uint16_as_; }

  /// Runs f(lane) without the GIL where the arrays lie.
  template <class F>
  void run(const F& f, std::optional<Device> also = {}) {
    const Device device = place(also);
    try {
      const Runtime::WithoutGil no_gil;
      const bool on_host = device.type == 1 || !has_device;
      Runtime::get().run([&] {
        if (on_host) {
          f(Runtime::get().lane<HostExec>());
          Runtime::get().lane<HostExec>().exec().fence();
        } else if constexpr (has_device) {
          f(Runtime::get().lane<DeviceExec>());
          Runtime::get().lane<DeviceExec>().exec().fence();
        }
      });
    } catch (const std::invalid_argument& error) {
      fail(error.what());
    }
  }

  /// \throws nb::value_error that adds what every array is.
  [[noreturn]] void fail(const std::string& message) const;

 private:
  /// Where the arrays lie. \throws nb::value_error where not all lie on one device.
  Device place(std::optional<Device> also) const;
  /// "; arrays: A = ...; B = ...", prepared operands included.
  std::string arrays_text() const;

  const char* function_;
  std::optional<DType> uint16_as_;
  std::array<std::optional<Array>, 8> arrays_;
  std::size_t count_ = 0;
  struct Told {
    const char* name;
    const Prepared* operand;
  };
  std::array<Told, 2> prepared_{};
  std::size_t prepared_count_ = 0;
};

/// The codes and scales of two arrays.
inline MatrixRef matrix_ref(const Array& codes, const Array& scales, CodesKind codes_kind,
                            ScalesKind scales_kind) {
  const BytesRef c = codes.bytes();
  return {c.rows, 2 * c.cols, c, scales.bytes(), {}, codes_kind, scales_kind};
}

void bind_compare(nb::module_& m);
void bind_elementwise(nb::module_& m);

}  // namespace KokkosMXPython

#endif
