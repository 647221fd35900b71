// SPDX-License-Identifier: Apache-2.0
#include "array.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

namespace KokkosMXPython {

using namespace nb::literals;

namespace {

/// A name that is looked up often. Never freed: the interpreter owns what outlives it.
PyObject* interned(const char* text) { return PyUnicode_InternFromString(text); }

// DLPack's C interface, as its specification lays it out (1.0 for tensors, 1.3 for exchange).
using nb::dlpack::dltensor;
struct Version {
  std::uint32_t major, minor;
};
struct ManagedTensor {
  Version version;
  void* manager_context;
  void (*deleter)(ManagedTensor* self);
  std::uint64_t flags;  // bit 0: read-only
  dltensor tensor;
};
struct UnversionedTensor {
  dltensor tensor;
  void* manager_context;
  void (*deleter)(UnversionedTensor* self);
};
struct ExchangeApi {
  Version version;
  const ExchangeApi* previous;
  int (*allocate)(dltensor* prototype, ManagedTensor** out, void* context,
                  void (*set_error)(void* context, const char* kind, const char* message));
  int (*managed_from_object)(void* object, ManagedTensor** out);
  int (*managed_to_object)(ManagedTensor* tensor, void** object);
  int (*tensor_from_object)(void* object, dltensor* out);
  int (*current_stream)(int type, std::int32_t id, void** stream);
};

const ExchangeApi* exchange_api_of(nb::handle type) {
  PyObject* capsule = PyObject_GetAttrString(type.ptr(), "__dlpack_c_exchange_api__");
  if (capsule == nullptr) {
    PyErr_Clear();
    return nullptr;
  }
  const auto* api =
      static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  Py_DECREF(capsule);  // the type keeps it
  if (api == nullptr) PyErr_Clear();
  while (api != nullptr && api->version.major != 1) api = api->previous;
  return api != nullptr && api->tensor_from_object != nullptr ? api : nullptr;
}

bool is_true(nb::handle object, PyObject* name) {
  PyObject* value = PyObject_GetAttr(object.ptr(), name);
  if (value == nullptr) throw nb::python_error();
  Py_DECREF(value);
  return value == Py_True;
}

std::string string_of(nb::handle object) { return nb::str(object).c_str(); }

/// "numpy" of "numpy.ndarray".
std::string module_of(nb::handle type) {
  const std::string name = string_of(nb::getattr(type, "__module__", nb::str("")));
  return name.substr(0, name.find('.'));
}

}  // namespace

std::string text_of(nb::handle object) {
  std::string text = string_of(nb::type_name(object.type()));
  if (nb::isinstance<nb::tuple>(object) || nb::isinstance<nb::list>(object)) {
    const std::size_t size = nb::len(object), shown = std::min<std::size_t>(size, 4);
    for (std::size_t i = 0; i < shown; ++i) {
      const nb::object item =
          nb::steal(PySequence_GetItem(object.ptr(), static_cast<Py_ssize_t>(i)));
      const bool nested = nb::isinstance<nb::tuple>(item) || nb::isinstance<nb::list>(item);
      text +=
          (i == 0 ? " (" : ", ") + (nested ? string_of(nb::type_name(item.type())) : text_of(item));
    }
    return text + (size == 0 ? " of nothing" : size > shown ? ", ...)" : ")");
  }
  for (const char* name : {"dtype", "shape", "device"}) {
    PyObject* value = PyObject_GetAttrString(object.ptr(), name);
    if (value == nullptr) {
      PyErr_Clear();
      continue;
    }
    text += std::string(" ") + name + " " + string_of(nb::steal(value));
  }
  return text;
}

struct ArrayType {
  nb::object type;  // keeps the address from being another type's
  Framework framework = Framework::other;
  std::string module;  // the framework's package
  const ExchangeApi* api = nullptr;
};

namespace {

const ArrayType& type_of(nb::handle object) {
  // Few types are ever met. The GIL guards this; leaked, since the interpreter may end first.
  static auto* const known = new std::vector<std::unique_ptr<ArrayType>>;
  const nb::handle type = object.type();
  for (const auto& entry : *known) {
    if (entry->type.ptr() == type.ptr()) return *entry;
  }
  auto entry = std::make_unique<ArrayType>();
  entry->type = nb::borrow(type);
  entry->module = module_of(type);
  for (const nb::handle base : nb::borrow<nb::tuple>(nb::getattr(type, "__mro__"))) {
    const std::string name = string_of(nb::getattr(base, "__name__"));
    const std::string module = module_of(base);
    if (module == "numpy" && name == "ndarray") entry->framework = Framework::numpy;
    if (module == "torch" && name == "Tensor") entry->framework = Framework::torch;
  }
  entry->api = exchange_api_of(type);
  known->push_back(std::move(entry));
  return *known->back();
}

}  // namespace

Framework Array::framework() const { return type_.framework; }

const char* name_of(DType dtype) {
  static constexpr const char* names[] = {"float32", "bfloat16", "float16", "uint8",
                                          "uint16",  "uint64",   "other"};
  return names[static_cast<std::size_t>(dtype)];
}

std::int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return 4;
    case DType::bfloat16:
    case DType::float16:
    case DType::uint16:
      return 2;
    case DType::uint64:
      return 8;
    default:
      return 1;
  }
}

std::string text_of(Device device) {
  static constexpr std::pair<int, const char*> names[] = {
      {1, "cpu"},           {2, "cuda"},    {3, "cuda_host"}, {4, "opencl"},
      {7, "vulkan"},        {8, "metal"},   {10, "rocm"},     {11, "rocm_host"},
      {13, "cuda_managed"}, {14, "oneapi"}, {15, "webgpu"},   {16, "hexagon"}};
  std::string text = "device type " + std::to_string(device.type);
  for (const auto& [type, name] : names) {
    if (type == device.type) text = name;
  }
  return device.type == 1 ? text : text + ":" + std::to_string(device.id);
}

std::string text_of(const std::int64_t* extents, int rank) {
  std::string text = "(";
  for (int i = 0; i < rank; ++i) text += (i == 0 ? "" : ", ") + std::to_string(extents[i]);
  return text + (rank == 1 ? ",)" : ")");
}

Array::Array(nb::handle object, const char* name, std::optional<DType> uint16_as)
    : name_(name), object_(nb::borrow(object)), type_(type_of(object)) {
  if (!take_exchanged() && !take_buffer()) take_dlpack();
  if (dtype_ == DType::uint16) {
    is_uint16_ = true;
    if (uint16_as) dtype_ = *uint16_as;
  }
}

Array::~Array() {
  if (has_buffer_) PyBuffer_Release(&buffer_);
}

void Array::set_rank(std::int64_t rank) {
  if (rank > most_ranks) {
    throw nb::value_error(("kokkosmx: " + std::string(name_) + ": " + std::to_string(rank) +
                           " dimensions: " + text_of(object_))
                              .c_str());
  }
  rank_ = static_cast<int>(rank);
}

void Array::take(const dltensor& tensor) {
  set_rank(tensor.ndim);
  using Code = nb::dlpack::dtype_code;
  const auto is = [&](Code code, int bits, int lanes) {
    return tensor.dtype.code == static_cast<std::uint8_t>(code) && tensor.dtype.bits == bits &&
           tensor.dtype.lanes == lanes;
  };
  if (is(Code::Float, 32, 1)) {
    dtype_ = DType::float32;
  } else if (is(Code::Bfloat, 16, 1)) {
    dtype_ = DType::bfloat16;
  } else if (is(Code::Float, 16, 1)) {
    dtype_ = DType::float16;
  } else if (is(Code::UInt, 8, 1) || is(Code::Float8_E8M0FNU, 8, 1) ||
             is(Code::Float4_E2M1FN, 4, 2)) {
    dtype_ = DType::uint8;
  } else if (is(Code::UInt, 16, 1)) {
    dtype_ = DType::uint16;
  } else if (is(Code::UInt, 64, 1)) {
    dtype_ = DType::uint64;
  } else {
    format_ = "elements of DLPack code " + std::to_string(tensor.dtype.code) + ", " +
              std::to_string(tensor.dtype.bits) + " bits";
  }
  device_ = {tensor.device.device_type, tensor.device.device_id};
  data_ = static_cast<std::byte*>(tensor.data) + tensor.byte_offset;
  std::int64_t stride = 1;
  for (int i = rank_ - 1; i >= 0; --i) {
    const auto at = static_cast<std::size_t>(i);
    shape_[at] = tensor.shape[i];
    stride_[at] = tensor.strides != nullptr ? tensor.strides[i] : stride;
    stride *= shape_[at] > 0 ? shape_[at] : 1;
  }
  if (type_.framework != Framework::torch) return;
  static PyObject* const requires_grad = interned("requires_grad");
  if (!is_true(object_, requires_grad)) return;
  if (nb::getattr(nb::module_::import_("torch"), "is_grad_enabled")().is(nb::bool_(true))) {
    fail_type(
        "a tensor that does not require a gradient (detach() it, or use torch.no_grad(): "
        "quantizing has none)");
  }
}

bool Array::take_exchanged() {
  dltensor tensor{};
  if (type_.api == nullptr) return false;
  if (type_.api->tensor_from_object(object_.ptr(), &tensor) != 0) {
    PyErr_Clear();  // the slow way finds out what is wrong and says it
    return false;
  }
  take(tensor);
  return true;
}

bool Array::take_buffer() {
  if (PyObject_CheckBuffer(object_.ptr()) == 0) return false;
  constexpr int flags = PyBUF_STRIDES | PyBUF_FORMAT;
  if (PyObject_GetBuffer(object_.ptr(), &buffer_, flags) != 0) {
    PyErr_Clear();
    if (type_.framework != Framework::numpy) return false;
    // NumPy's buffers have no format for types that others added to it (ml_dtypes).
    format_ = string_of(nb::getattr(object_, "dtype"));
    if (format_ != "bfloat16") return false;
    const nb::object bits = nb::getattr(object_, "view")("uint16");  // which the buffer keeps alive
    if (PyObject_GetBuffer(bits.ptr(), &buffer_, flags) != 0) throw nb::python_error();
  }
  has_buffer_ = true;
  set_rank(buffer_.ndim);
  const char* format = buffer_.format == nullptr ? "B" : buffer_.format;
  const char* code =
      std::strchr("@=<", format[0]) != nullptr && format[0] != 0 ? format + 1 : format;
  switch (code[0] != 0 && code[1] == 0 ? code[0] : '?') {
    case 'f':
      dtype_ = DType::float32;
      break;
    case 'e':
      dtype_ = DType::float16;
      break;
    case 'B':
      dtype_ = DType::uint8;
      break;
    case 'H':
      dtype_ = format_ == "bfloat16" ? DType::bfloat16 : DType::uint16;
      break;
    case 'L':
    case 'Q':
      dtype_ = buffer_.itemsize == 8 ? DType::uint64 : DType::other;
      break;
    default:
      break;
  }
  if (dtype_ == DType::other) format_ = "elements of format \"" + std::string(format) + "\"";
  data_ = buffer_.buf;
  read_only_ = buffer_.readonly != 0;
  const std::int64_t size = buffer_.itemsize;
  for (int i = 0; i < rank_; ++i) {
    const auto at = static_cast<std::size_t>(i);
    const std::int64_t bytes = buffer_.strides[i];
    shape_[at] = buffer_.shape[i];
    whole_strides_ = whole_strides_ && size > 0 && (bytes % size == 0 || shape_[at] <= 1);
    stride_[at] = size > 0 ? bytes / size : 0;
  }
  return true;
}

void Array::take_dlpack() {
  const auto fail = [&](const std::string& why) {
    throw nb::type_error(("kokkosmx: " + std::string(name_) +
                          ": expected an array with DLPack or the buffer protocol, given a " +
                          text_of(object_) + why)
                             .c_str());
  };
  if (PyObject_HasAttrString(object_.ptr(), "__dlpack__") == 0) fail("");
  try {
    const nb::object method = nb::getattr(object_, "__dlpack__");
    try {
      capsule_ = method("max_version"_a = nb::make_tuple(1, 0));
    } catch (nb::python_error& error) {
      if (!error.matches(PyExc_TypeError)) throw;
      capsule_ = method();  // of the time before versions
    }
  } catch (nb::python_error& error) {
    fail(": " + string_of(error.value()));
  }
  if (void* managed = PyCapsule_GetPointer(capsule_.ptr(), "dltensor_versioned")) {
    const auto& tensor = *static_cast<ManagedTensor*>(managed);
    if (tensor.version.major != 1) fail(": its DLPack version is not 1");
    read_only_ = (tensor.flags & 1) != 0;
    take(tensor.tensor);
    return;
  }
  PyErr_Clear();
  void* managed = PyCapsule_GetPointer(capsule_.ptr(), "dltensor");
  if (managed == nullptr) {
    PyErr_Clear();
    fail(": its __dlpack__ gave no tensor");
  }
  take(static_cast<UnversionedTensor*>(managed)->tensor);
}

std::string Array::text() const {
  std::string text = type_.framework == Framework::other ? "" : type_.module + ".";
  text += dtype_ == DType::other ? format_ : is_uint16_ ? "uint16" : name_of(dtype_);
  if (is_uint16_ && dtype_ != DType::uint16) text += std::string(" as ") + name_of(dtype_);
  text += " " + text_of(shape_.data(), rank_) + " with strides " + text_of(stride_.data(), rank_) +
          " on " + text_of(device_);
  return text + (read_only_ ? ", read-only" : "");
}

void Array::fail_type(const std::string& expected) const {
  throw nb::type_error(
      ("kokkosmx: " + std::string(name_) + ": expected " + expected + "; given " + text()).c_str());
}
void Array::fail_value(const std::string& expected) const {
  throw nb::value_error(
      ("kokkosmx: " + std::string(name_) + ": expected " + expected + "; given " + text()).c_str());
}

void Array::require_dense() const {
  if (dtype_ > DType::float16) {
    fail_type("elements of float32, bfloat16 or float16" +
              std::string(is_uint16_ ? ", or uint16_as= to say what the uint16 are bits of" : ""));
  }
}
void Array::require_bytes() const {
  if (dtype_ != DType::uint8) fail_type("elements of uint8");
}
void Array::require_writable() const {
  if (read_only_) fail_value("an array that can be written");
}

void Array::check_strides() const {
  if (rank_ != 2 && rank_ != 3) fail_value("2 dimensions, or 3 with a batch in front");
  if (!whole_strides_) fail_value("strides that are multiples of the element's size");
  for (int i = 0; i < rank_; ++i) {
    if (stride(i) < 0) fail_value("no negative strides (copy it, or turn it the other way round)");
  }
}

KokkosMX::Impl::DenseRef Array::dense() const {
  require_dense();
  check_strides();
  const auto at = [&](const Extents& v, int from_end, std::int64_t none) {
    return from_end < rank_ ? v[static_cast<std::size_t>(rank_ - 1 - from_end)] : none;
  };
  return {data_,
          static_cast<KokkosMX::Impl::Element>(dtype_),
          at(shape_, 2, 1),
          at(shape_, 1, 1),
          at(shape_, 0, 1),
          at(stride_, 2, 0),
          at(stride_, 1, 0),
          at(stride_, 0, 0)};
}
static_assert(static_cast<int>(KokkosMX::Impl::Element::f32) == static_cast<int>(DType::float32) &&
              static_cast<int>(KokkosMX::Impl::Element::bf16) ==
                  static_cast<int>(DType::bfloat16) &&
              static_cast<int>(KokkosMX::Impl::Element::f16) == static_cast<int>(DType::float16));

KokkosMX::Impl::BytesRef Array::bytes() const {
  require_bytes();
  check_strides();
  const bool batch = rank_ == 3;
  const std::size_t r = batch ? 1 : 0;
  return {static_cast<const std::uint8_t*>(data_),
          batch ? shape_[0] : 1,
          shape_[r],
          shape_[r + 1],
          batch ? stride_[0] : 0,
          stride_[r],
          stride_[r + 1]};
}

Array::Vector Array::vector(DType dtype) const {
  if (dtype_ != dtype) fail_type(std::string("elements of ") + name_of(dtype));
  if (rank_ != 1) fail_value("1 dimension");
  if (!whole_strides_ || stride_[0] < 0) fail_value("a stride of whole elements, not negative");
  return {data_, shape_[0], stride_[0]};
}

namespace {

nb::object tuple_of(const std::vector<std::int64_t>& extents) {
  PyObject* tuple = PyTuple_New(static_cast<Py_ssize_t>(extents.size()));
  if (tuple == nullptr) throw nb::python_error();
  for (std::size_t i = 0; i < extents.size(); ++i) {
    PyTuple_SetItem(tuple, static_cast<Py_ssize_t>(i), PyLong_FromLongLong(extents[i]));
  }
  return nb::steal(tuple);
}

/// By the framework's own allocator, if it lends it to C.
Result make_exchanged(const ExchangeApi& api, Device device, DType dtype,
                      const std::vector<std::int64_t>& shape) {
  nb::dlpack::dtype type{};
  using Code = nb::dlpack::dtype_code;
  type.code = static_cast<std::uint8_t>(dtype == DType::bfloat16  ? Code::Bfloat
                                        : dtype <= DType::float16 ? Code::Float
                                                                  : Code::UInt);
  type.bits = static_cast<std::uint8_t>(8 * size_of(dtype));
  type.lanes = 1;
  dltensor prototype{};
  prototype.device = {device.type, device.id};
  prototype.ndim = static_cast<std::int32_t>(shape.size());
  prototype.dtype = type;
  prototype.shape = const_cast<std::int64_t*>(shape.data());
  std::string message;
  ManagedTensor* tensor = nullptr;
  const int failed = api.allocate(
      &prototype, &tensor, &message,
      [](void* to, const char*, const char* text) { *static_cast<std::string*>(to) = text; });
  if (failed != 0) {
    if (PyErr_Occurred() != nullptr) throw nb::python_error();
    PyErr_SetString(PyExc_MemoryError, ("kokkosmx: no memory for a result: " + message).c_str());
    throw nb::python_error();
  }
  void* data = static_cast<std::byte*>(tensor->tensor.data) + tensor->tensor.byte_offset;
  void* object = nullptr;
  if (api.managed_to_object(tensor, &object) != 0) throw nb::python_error();
  return {nb::steal(static_cast<PyObject*>(object)), data};
}

Result make_torch(const Array& like, DType dtype, const std::vector<std::int64_t>& shape) {
  const nb::module_ torch = nb::module_::import_("torch");
  nb::object made =
      nb::getattr(torch, "empty")(tuple_of(shape), "dtype"_a = nb::getattr(torch, name_of(dtype)),
                                  "device"_a = nb::getattr(like.object(), "device"));
  const nb::object address = nb::getattr(made, "data_ptr")();
  return {std::move(made), PyLong_AsVoidPtr(address.ptr())};
}

Result make_numpy(DType dtype, const std::vector<std::int64_t>& shape, bool as_uint16) {
  // The GIL guards these; a function's static object would hold a lock while it imports.
  static PyObject* numpy_empty = nullptr;
  static std::array<PyObject*, 6> types{};
  if (numpy_empty == nullptr) {
    const nb::module_ numpy = nb::module_::import_("numpy");
    const nb::object dtype_class = nb::getattr(numpy, "dtype");
    for (std::size_t i = 0; i < types.size(); ++i) {
      const auto type = static_cast<DType>(i);
      types[i] = dtype_class(type == DType::bfloat16 ? "uint16" : name_of(type)).release().ptr();
    }
    numpy_empty = nb::getattr(numpy, "empty").release().ptr();
  }
  const bool bits = as_uint16 && size_of(dtype) == 2;
  const nb::object extents = tuple_of(shape);
  PyObject* type = types[static_cast<std::size_t>(bits ? DType::uint16 : dtype)];
  PyObject* arguments[2] = {extents.ptr(), type};
  PyObject* made = PyObject_Vectorcall(numpy_empty, arguments, 2, nullptr);
  if (made == nullptr) throw nb::python_error();
  nb::object object = nb::steal(made);
  Py_buffer buffer;
  if (PyObject_GetBuffer(object.ptr(), &buffer, PyBUF_SIMPLE) != 0) throw nb::python_error();
  void* data = buffer.buf;
  PyBuffer_Release(&buffer);
  if (dtype == DType::bfloat16 && !bits) {
    static PyObject* bfloat16 = nullptr;
    if (bfloat16 == nullptr) {
      try {
        bfloat16 = nb::getattr(nb::module_::import_("ml_dtypes"), "bfloat16").release().ptr();
      } catch (nb::python_error&) {
        throw nb::type_error(
            "kokkosmx: a NumPy result of bfloat16 needs the package ml_dtypes; or ask for its bits "
            "with uint16_as=DType.bfloat16");
      }
    }
    object = nb::getattr(object, "view")(nb::handle(bfloat16));
  }
  return {std::move(object), data};
}

}  // namespace

Result make_result(const Array& like, DType dtype, const std::vector<std::int64_t>& shape,
                   bool as_uint16) {
  const ExchangeApi* api = like.type().api;
  if (api != nullptr && api->allocate != nullptr && api->managed_to_object != nullptr) {
    return make_exchanged(*api, like.device(), dtype, shape);
  }
  if (like.framework() == Framework::torch) return make_torch(like, dtype, shape);
  if (like.framework() == Framework::numpy) return make_numpy(dtype, shape, as_uint16);
  // Memory of the package's own, handed over by DLPack where the framework takes it.
  std::int64_t bytes = size_of(dtype);
  std::vector<std::size_t> extents;
  for (const std::int64_t extent : shape) {
    if (extent > 0 && bytes > PTRDIFF_MAX / extent) throw std::bad_alloc();
    bytes *= extent;
    extents.push_back(static_cast<std::size_t>(extent));
  }
  const auto alignment = std::align_val_t{64};
  void* data = ::operator new(static_cast<std::size_t>(bytes), alignment);
  const nb::capsule owner(data,
                          [](void* p) noexcept { ::operator delete (p, std::align_val_t{64}); });
  nb::dlpack::dtype type{static_cast<std::uint8_t>(nb::dlpack::dtype_code::UInt),
                         static_cast<std::uint8_t>(8 * size_of(dtype)), 1};
  if (dtype == DType::bfloat16 && !as_uint16) {
    type.code = static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bfloat);
  } else if (dtype == DType::float32 || (dtype == DType::float16 && !as_uint16)) {
    type.code = static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float);
  }
  nb::object object = nb::cast(
      nb::ndarray<nb::array_api>(data, extents.size(), extents.data(), owner, nullptr, type));
  nb::object from_dlpack;
  if (nb::hasattr(like.object(), "__array_namespace__")) {
    from_dlpack = nb::getattr(nb::getattr(like.object(), "__array_namespace__")(), "from_dlpack");
  } else if (nb::hasattr(like.object(), "__dlpack__")) {
    const nb::object module = nb::module_::import_(like.type().module.c_str());
    if (nb::hasattr(module, "from_dlpack")) from_dlpack = nb::getattr(module, "from_dlpack");
  }
  if (from_dlpack.is_valid()) object = from_dlpack(object);
  return {std::move(object), data};
}

}  // namespace KokkosMXPython
