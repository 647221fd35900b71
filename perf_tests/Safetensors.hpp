// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_PERF_SAFETENSORS_HPP
#define KOKKOSMX_PERF_SAFETENSORS_HPP

/// \file Safetensors.hpp
/// Reads a checkpoint in the safetensors format: 8 bytes of header length (little-endian), a header
/// that is one JSON object
///   {"name": {"dtype": "F32", "shape": [rows, cols], "data_offsets": [begin, end]}, ...}
/// with an optional "__metadata__" object of strings, then the tensors' bytes, to which the offsets
/// refer. Only the header is held in memory.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace KokkosMXPerf {

struct Tensor {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0, end = 0;  // in bytes from the end of the header
};

namespace Impl {

/// The JSON of a safetensors header, and no more than that.
class HeaderParser {
 public:
  explicit HeaderParser(const std::string& text) : text_(text) {}

  std::vector<Tensor> parse() {
    std::vector<Tensor> tensors;
    std::set<std::string> names;
    object([&](const std::string& name) {
      if (!names.insert(name).second) fail("\"" + name + "\" occurs twice");
      if (name == "__metadata__") {
        object([&](const std::string&) { string(); });
      } else {
        tensors.push_back(tensor(name));
      }
    });
    skip_space();
    if (at_ != text_.size()) fail("text after the header's object");
    return tensors;
  }

 private:
  Tensor tensor(const std::string& name) {
    Tensor result;
    result.name = name;
    unsigned seen = 0;
    object([&](const std::string& key) {
      unsigned bit = 0;
      if (key == "dtype") {
        bit = 1;
        result.dtype = string();
      } else if (key == "shape") {
        bit = 2;
        for (const std::uint64_t extent : numbers()) {
          if (extent > std::uint64_t{1} << 62) fail("an extent is too large");
          result.shape.push_back(static_cast<std::int64_t>(extent));
        }
      } else if (key == "data_offsets") {
        bit = 4;
        const std::vector<std::uint64_t> offsets = numbers();
        if (offsets.size() != 2) fail("data_offsets are not two numbers");
        result.begin = offsets[0];
        result.end = offsets[1];
      } else {
        fail("unknown key \"" + key + "\"");
      }
      if ((seen & bit) != 0) fail("\"" + key + "\" occurs twice");
      seen |= bit;
    });
    if (seen != 7) fail("\"" + name + "\" lacks dtype, shape or data_offsets");
    return result;
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error("safetensors header, byte " + std::to_string(at_) + ": " + what);
  }
  void skip_space() {
    while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_]) != nullptr && text_[at_] != 0) {
      ++at_;
    }
  }
  bool next_is(char c) {
    skip_space();
    return at_ < text_.size() && text_[at_] == c;
  }
  void expect(char c) {
    if (!next_is(c)) fail(std::string("'") + c + "' expected");
    ++at_;
  }
  /// member(key) for each member; it reads the value.
  template <class F>
  void object(const F& member) {
    expect('{');
    if (next_is('}')) {
      ++at_;
      return;
    }
    while (true) {
      const std::string key = string();
      expect(':');
      member(key);
      if (!next_is(',')) break;
      ++at_;
    }
    expect('}');
  }
  std::vector<std::uint64_t> numbers() {
    std::vector<std::uint64_t> result;
    expect('[');
    if (next_is(']')) {
      ++at_;
      return result;
    }
    while (true) {
      result.push_back(number());
      if (!next_is(',')) break;
      ++at_;
    }
    expect(']');
    return result;
  }
  std::uint64_t number() {
    skip_space();
    const std::size_t first = at_;
    std::uint64_t value = 0;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      const auto digit = static_cast<std::uint64_t>(text_[at_] - '0');
      if (value > (std::numeric_limits<std::uint64_t>::max() - digit) / 10) {
        fail("a number is too large");
      }
      value = 10 * value + digit;
    }
    if (at_ == first) fail("a number without a sign expected");
    return value;
  }
  std::string string() {
    std::string result;
    expect('"');
    while (true) {
      if (at_ >= text_.size()) fail("a string does not end");
      const char c = text_[at_++];
      if (c == '"') return result;
      if (static_cast<unsigned char>(c) < 0x20) fail("a control character in a string");
      if (c != '\\') {
        result += c;
        continue;
      }
      if (at_ >= text_.size()) fail("a string does not end");
      const char escape = text_[at_++];
      switch (escape) {
        case '"':
        case '\\':
        case '/':
          result += escape;
          break;
        case 'b':
          result += '\b';
          break;
        case 'f':
          result += '\f';
          break;
        case 'n':
          result += '\n';
          break;
        case 'r':
          result += '\r';
          break;
        case 't':
          result += '\t';
          break;
        case 'u':
          append_utf8(result, code_point());
          break;
        default:
          fail("unknown escape in a string");
      }
    }
  }
  unsigned code_unit() {
    unsigned unit = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = at_ < text_.size() ? text_[at_] : 0;
      const char* digits = "0123456789abcdef";
      const char lower = c >= 'A' && c <= 'F' ? static_cast<char>(c - 'A' + 'a') : c;
      const char* digit = lower == 0 ? nullptr : std::strchr(digits, lower);
      if (digit == nullptr) fail("\\u without four hexadecimal digits");
      unit = 16 * unit + static_cast<unsigned>(digit - digits);
    }
    return unit;
  }
  unsigned code_point() {
    const unsigned first = code_unit();
    if (first < 0xD800 || first > 0xDFFF) return first;
    if (first > 0xDBFF || text_.compare(at_, 2, "\\u") != 0) fail("half of a surrogate pair");
    at_ += 2;
    const unsigned second = code_unit();
    if (second < 0xDC00 || second > 0xDFFF) fail("half of a surrogate pair");
    return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
  }
  static void append_utf8(std::string& to, unsigned point) {
    const auto tail = [&](int shift) { to += static_cast<char>(0x80 | ((point >> shift) & 0x3F)); };
    if (point < 0x80) {
      to += static_cast<char>(point);
    } else if (point < 0x800) {
      to += static_cast<char>(0xC0 | (point >> 6));
      tail(0);
    } else if (point < 0x10000) {
      to += static_cast<char>(0xE0 | (point >> 12));
      tail(6);
      tail(0);
    } else {
      to += static_cast<char>(0xF0 | (point >> 18));
      tail(12);
      tail(6);
      tail(0);
    }
  }

  const std::string& text_;
  std::size_t at_ = 0;
};

}  // namespace Impl

/// Bytes of an element, 0 for a dtype that is not known here.
inline std::uint64_t bytes_of_dtype(const std::string& dtype) {
  for (const char* one : {"BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"}) {
    if (dtype == one) return 1;
  }
  for (const char* two : {"F16", "BF16", "I16", "U16"}) {
    if (dtype == two) return 2;
  }
  for (const char* four : {"F32", "I32", "U32"}) {
    if (dtype == four) return 4;
  }
  for (const char* eight : {"F64", "I64", "U64"}) {
    if (dtype == eight) return 8;
  }
  return 0;
}

/// An open checkpoint. Everything that the header says is checked against the file's size.
class SafetensorsFile {
 public:
  /// \throws std::runtime_error, with the path, where the file is not a whole safetensors file.
  explicit SafetensorsFile(const std::string& path) : path_(path), file_(path, std::ios::binary) {
    static_assert(std::endian::native == std::endian::little);
    if (!file_) throw std::runtime_error(path + ": cannot be opened");
    try {
      open();
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(path + ": " + error.what());
    }
  }
  /// In the header's order.
  const std::vector<Tensor>& tensors() const { return tensors_; }

  /// Reads bytes [first, first + bytes) of a tensor.
  void read(const Tensor& tensor, std::uint64_t first, std::uint64_t bytes, void* to) {
    if (first > tensor.end - tensor.begin || bytes > tensor.end - tensor.begin - first) {
      throw std::out_of_range(path_ + ": beyond the end of " + tensor.name);
    }
    file_.clear();
    file_.seekg(static_cast<std::streamoff>(data_ + tensor.begin + first));
    file_.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes));
    if (!file_) throw std::runtime_error(path_ + ": " + tensor.name + " cannot be read");
  }

 private:
  void open() {
    file_.seekg(0, std::ios::end);
    const auto size = static_cast<std::uint64_t>(file_.tellg());
    file_.seekg(0);
    std::uint64_t length = 0;
    if (size < sizeof(length) || !file_.read(reinterpret_cast<char*>(&length), sizeof(length))) {
      throw std::runtime_error("shorter than a safetensors header");
    }
    constexpr std::uint64_t longest = 100'000'000;  // the format's own limit
    if (length > longest || length > size - sizeof(length)) {
      throw std::runtime_error("a header of " + std::to_string(length) + " bytes in a file of " +
                               std::to_string(size));
    }
    std::string header(length, '\0');
    if (!file_.read(header.data(), static_cast<std::streamsize>(length))) {
      throw std::runtime_error("the header cannot be read");
    }
    tensors_ = Impl::HeaderParser(header).parse();
    data_ = sizeof(length) + length;
    for (const Tensor& tensor : tensors_) check(tensor, size - data_);
  }
  static void check(const Tensor& tensor, std::uint64_t available) {
    if (tensor.begin > tensor.end || tensor.end > available) {
      throw std::runtime_error(tensor.name + ": lies beyond the end of the file");
    }
    const std::uint64_t element = bytes_of_dtype(tensor.dtype);
    if (element == 0) return;
    std::uint64_t bytes = element;
    for (const std::int64_t extent : tensor.shape) {
      const auto factor = static_cast<std::uint64_t>(extent);
      if (factor != 0 && bytes > std::numeric_limits<std::uint64_t>::max() / factor) {
        throw std::runtime_error(tensor.name + ": its shape is too large");
      }
      bytes *= factor;
    }
    if (bytes != tensor.end - tensor.begin) {
      throw std::runtime_error(tensor.name + ": its shape asks for " + std::to_string(bytes) +
                               " bytes, its data_offsets for " +
                               std::to_string(tensor.end - tensor.begin));
    }
  }

  std::string path_;
  std::ifstream file_;
  std::vector<Tensor> tensors_;
  std::uint64_t data_ = 0;
};

}  // namespace KokkosMXPerf

#endif
