// SPDX-License-Identifier: Apache-2.0
#include "call.hpp"

namespace KokkosMXPython {

Operand Call::operand(nb::handle object, const char* name, const char* codes_name,
                      const char* scales_name, bool dense) {
  Operand operand;
  const auto take = [&](nb::handle codes, nb::handle scales, CodesKind codes_kind,
                        ScalesKind scales_kind) {
    const Array& c = array(codes, codes_name);
    const Array& s = array(scales, scales_name);
    operand.ref.matrix = matrix_ref(c, s, codes_kind, scales_kind);
    operand.has_batch = c.rank() == 3;
    operand.array = &c;
  };
  if (nb::isinstance<Prepared>(object)) {
    operand.prepared = nb::inst_ptr<Prepared>(object);
    prepared_.at(prepared_count_++) = {name, operand.prepared};
    operand.ref.matrix = operand.prepared->storage.ref();
    operand.has_batch = operand.prepared->has_batch;
  } else if (nb::isinstance<Matrix>(object)) {
    const Matrix& matrix = *nb::inst_ptr<Matrix>(object);
    take(matrix.codes, matrix.scales, matrix.codes_layout, matrix.scales_layout);
  } else if (nb::isinstance<nb::tuple>(object) && nb::len(object) == 2) {
    const nb::object codes = object[0], scales = object[1];
    take(codes, scales, CodesKind::row_major, ScalesKind::row_major);
  } else if (dense) {
    const Array& x = array(object, name);
    operand.ref.is_dense = true;
    operand.ref.dense = x.dense();
    operand.has_batch = x.rank() == 3;
    operand.array = &x;
  } else {
    throw nb::type_error(("kokkosmx." + std::string(function_) + ": " + name +
                          ": expected a Matrix, a Prepared or a pair (codes, scales), given a " +
                          text_of(object))
                             .c_str());
  }
  return operand;
}

QuantizeRule Call::rule(ScaleMode mode, Rounding rounding, NonFinite non_finite) const {
  try {
    return {mode, rounding, non_finite};
  } catch (const std::invalid_argument& error) {
    fail(error.what());
  }
}

Array& Call::result(nb::handle out, const char* name, const Array& like, DType dtype,
                    const std::vector<std::int64_t>& shape) {
  if (out.is_none()) {
    const bool as_uint16 = like.is_uint16() || (uint16_as_ && *uint16_as_ == dtype);
    const Result made = make_result(like, dtype, shape, as_uint16);
    Array& array = this->array(made.object, name);
    return array;
  }
  Array& array = this->array(out, name);
  array.require_writable();
  bool agrees = array.rank() == static_cast<int>(shape.size());
  for (std::size_t i = 0; agrees && i < shape.size(); ++i) {
    agrees = array.extent(static_cast<int>(i)) == shape[i];
  }
  if (!agrees) fail(std::string(name) + " needs the shape " + text_of(shape));
  return array;
}

namespace {

/// Memory that host code can read.
bool is_host(Device device) { return device.type == 1 || device.type == 3 || device.type == 11; }

bool is_built_for(Device device) {
#ifdef KOKKOS_ENABLE_CUDA
  if (device.type == 2 || device.type == 13) return true;
#endif
#ifdef KOKKOS_ENABLE_HIP
  if (device.type == 10) return true;
#endif
  return is_host(device);
}

}  // namespace

Array& Call::array(nb::handle object, const char* name) {
  auto& place = arrays_.at(count_);
  place.emplace(object, name, uint16_as_);
  ++count_;
  if (!is_built_for(place->device())) {
    throw nb::type_error(("kokkosmx." + std::string(function_) + ": " + name + " lies on " +
                          text_of(place->device()) + ", but the library is built for " +
                          DeviceExec::name() + (has_device ? "" : " (cpu)") + arrays_text())
                             .c_str());
  }
  return *place;
}

Device Call::place(std::optional<Device> also) const {
  std::optional<Device> found = also;
  for (std::size_t i = 0; i < count_; ++i) {
    const Device device = arrays_[i]->device();
    if (found && !(*found == device) && !(is_host(*found) && is_host(device))) {
      fail("the arrays lie on different devices");
    }
    found = device;
  }
  return !found || is_host(*found) ? Device{} : *found;
}

std::string Call::arrays_text() const {
  std::string text;
  const auto add = [&](const char* name, const std::string& what) {
    text += (text.empty() ? "; arrays: " : "; ") + std::string(name) + " = " + what;
  };
  for (std::size_t i = 0; i < prepared_count_; ++i) {
    const auto& [name, operand] = prepared_[i];
    const MatrixRef& matrix = operand->storage.ref();
    std::vector<std::int64_t> shape{matrix.codes.batch, matrix.rows, matrix.k};
    if (!operand->has_batch) shape.erase(shape.begin());
    add(name, "Prepared " + text_of(shape) + " on " + text_of(operand->device));
  }
  for (std::size_t i = 0; i < count_; ++i) add(arrays_[i]->name(), arrays_[i]->text());
  return text;
}

void Call::fail(const std::string& message) const {
  throw nb::value_error(
      ("kokkosmx." + std::string(function_) + ": " + message + arrays_text()).c_str());
}

}  // namespace KokkosMXPython
