// SPDX-License-Identifier: Apache-2.0

/// \file Runtime.cpp
/// A stand-in for HIP's runtime and for the part of Kokkos' library that needs it, on machines
/// without a GPU: device memory is an arena that this process shares with an executor of gfx950
/// machine code (the Python package in executor/), to which every launch goes. The code objects are
/// those that the compiler embedded. Calls return when they are complete.
///
/// Only what the library and its tests call is here. Environment:
///   KOKKOSMX_EXECUTOR  the executor's command line, for instance "python3 -m executor"
///   KOKKOSMX_MATRIX    ascending (default), descending or pairwise: how float matrix units add
///   KOKKOSMX_REPORT    where the executor writes what it counted; optional
///
/// What goes to and fro is in executor/README.md.

#include "Runtime.hpp"

#include <gtest/gtest.h>

#include <Kokkos_Core.hpp>
// What Kokkos' own backends include besides.
#define KOKKOS_IMPL_PUBLIC_INCLUDE
#include <impl/Kokkos_SharedAlloc_timpl.hpp>

#include <cxxabi.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cctype>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

using Address = std::uintptr_t;

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error("stand-in for HIP: " + what);
}

// ------------------------------------------------------------------------------ JSON

/// What the executor says: no fractions, no nulls.
struct Json {
  std::int64_t number = 0;  ///< booleans are 0 and 1
  std::string string;
  std::vector<Json> array;
  std::map<std::string, Json> object;

  const Json& operator[](const std::string& key) const {
    const auto found = object.find(key);
    if (found == object.end()) fail("the executor's answer lacks \"" + key + "\"");
    return found->second;
  }
};

class JsonReader {
 public:
  explicit JsonReader(const std::string& text) : next_(text.c_str()), text_(text) {}
  Json read() {
    Json value;
    skip();
    if (*next_ == '{') {
      list('}', [&] {
        const std::string key = read_string();
        expect(':');
        value.object[key] = read();
      });
    } else if (*next_ == '[') {
      list(']', [&] { value.array.push_back(read()); });
    } else if (*next_ == '"') {
      value.string = read_string();
    } else if (std::strncmp(next_, "true", 4) == 0 || std::strncmp(next_, "null", 4) == 0) {
      value.number = *next_ == 't';
      next_ += 4;
    } else if (std::strncmp(next_, "false", 5) == 0) {
      next_ += 5;
    } else {
      char* end;
      value.number = std::strtoll(next_, &end, 10);
      if (end == next_) bad();
      next_ = end;
    }
    return value;
  }

 private:
  [[noreturn]] void bad() const { fail("not what an executor says: " + text_.substr(0, 2000)); }
  void skip() {
    while (std::isspace(static_cast<unsigned char>(*next_)) != 0) ++next_;
  }
  void expect(char c) {
    skip();
    if (*next_ != c) bad();
    ++next_;
  }
  template <class F>
  void list(char close, const F& element) {
    ++next_;
    for (skip(); *next_ != close; skip()) {
      element();
      skip();
      if (*next_ == ',') {
        ++next_;
      } else if (*next_ != close) {
        bad();
      }
    }
    ++next_;
  }
  std::string read_string() {
    expect('"');
    std::string result;
    for (; *next_ != '"'; ++next_) {
      if (*next_ == '\0') bad();
      if (*next_ != '\\') {
        result += *next_;
        continue;
      }
      switch (*++next_) {
        case 'n':
          result += '\n';
          break;
        case 't':
          result += '\t';
          break;
        case 'u':  // not ASCII: a question mark
          for (int digit = 0; digit < 4; ++digit) {
            if (std::isxdigit(static_cast<unsigned char>(*++next_)) == 0) bad();
          }
          result += '?';
          break;
        default:
          result += *next_;
      }
    }
    ++next_;
    return result;
  }

  const char* next_;
  const std::string& text_;
};

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += c;
  }
  return result + "\"";
}

// ------------------------------------------------------------------------------ memory

/// Device memory. Addresses are not given out twice, and between two buffers lies a zone that is
/// nobody's.
class Arena {
 public:
  static constexpr Address base = 0x100000000000;
  static constexpr std::size_t bytes = std::size_t{4} << 30;
  static constexpr std::size_t guard = 128 << 10;

  struct Buffer {
    std::string name;
    std::size_t size;
  };

  Arena() : file_(memfd_create("gfx950", 0)) {
    if (file_ < 0 || ftruncate(file_, bytes) != 0 ||
        mmap(reinterpret_cast<void*>(base), bytes, PROT_READ | PROT_WRITE,
             MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_NORESERVE, file_,
             0) != reinterpret_cast<void*>(base)) {
      fail(std::string("no arena: ") + std::strerror(errno));
    }
  }

  /// A buffer of `size` bytes behind `before` bytes that only the host uses.
  void* allocate(const std::string& name, std::size_t before, std::size_t size) {
    const std::size_t whole = (before + size + guard - 1) / guard * guard;
    if (next_ + whole + guard > base + bytes) fail("out of device memory");
    const Address begin = next_;
    next_ += whole + guard;
    buffers_[begin + before] = {name, size};
    std::memset(reinterpret_cast<void*>(begin), KokkosMXTest::unwritten_byte, before + size);
    return reinterpret_cast<void*>(begin);
  }
  /// `buffer`: where the buffer itself begins, behind what only the host uses.
  void deallocate(Address buffer) {
    const auto found = buffers_.find(buffer);
    if (found == buffers_.end()) fail("freed what is not allocated");
    const Address first = buffer / 4096 * 4096;
    madvise(reinterpret_cast<void*>(first), buffer - first + found->second.size, MADV_REMOVE);
    buffers_.erase(found);
  }
  /// These bytes are a buffer's.
  bool holds(Address address, std::size_t size) const {
    auto after = buffers_.upper_bound(address);
    if (after == buffers_.begin()) return false;
    const auto& [begin, buffer] = *--after;
    return address + size <= begin + buffer.size;
  }
  /// These bytes are the header that Kokkos keeps before a buffer.
  bool is_header(Address address, std::size_t size) const {
    return size == sizeof(Kokkos::Impl::SharedAllocationHeader) &&
           buffers_.count(address + size) != 0;
  }
  bool is_inside(Address address) const { return address >= base && address < base + bytes; }
  const std::map<Address, Buffer>& buffers() const { return buffers_; }
  std::string path() const {
    return "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(file_);
  }

 private:
  int file_;
  Address next_ = base + guard;
  std::map<Address, Buffer> buffers_;
};

// ------------------------------------------------------------------------------ code

/// What the compiler embedded in one source file's object.
struct Module {
  const unsigned char* code_object;
  std::map<const void*, std::string> kernels;  ///< by their stubs
};

/// The size of an ELF file: its section table is its end.
std::size_t size_of_elf(const unsigned char* elf) {
  if (std::memcmp(elf, "\177ELF\2", 5) != 0) {
    fail(
        "an embedded code object is no 64-bit ELF file (device code is compiled alone, with "
        "--no-gpu-bundle-output)");
  }
  std::uint64_t table;
  std::uint16_t entry, entries;
  std::memcpy(&table, elf + 0x28, 8);
  std::memcpy(&entry, elf + 0x3A, 2);
  std::memcpy(&entries, elf + 0x3C, 2);
  return table + std::size_t{entry} * entries;
}

/// A code object as a file that other processes can open.
std::string file_of(const unsigned char* elf) {
  const int file = memfd_create("code object", 0);
  std::size_t written = 0;
  for (const std::size_t size = size_of_elf(elf); written < size;) {
    const ssize_t now = write(file, elf + written, size - written);
    if (now <= 0) fail("cannot write a code object");
    written += static_cast<std::size_t>(now);
  }
  return "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(file);
}

// ------------------------------------------------------------------------------ the executor

class Executor {
 public:
  Executor(const Arena& arena, const std::vector<std::unique_ptr<Module>>& modules) {
    const char* command = std::getenv("KOKKOSMX_EXECUTOR");
    if (command == nullptr) fail("KOKKOSMX_EXECUTOR names no executor");
    std::ostringstream base;
    base << "0x" << std::hex << Arena::base;
    std::vector<std::string> arguments = {"sh",
                                          "-c",
                                          std::string("exec ") + command + " \"$@\"",
                                          "executor",
                                          "--arena",
                                          arena.path(),
                                          "--base",
                                          base.str(),
                                          "--bytes",
                                          std::to_string(Arena::bytes)};
    const auto option = [&](const char* name, const char* variable) {
      const char* value = std::getenv(variable);
      if (value == nullptr || *value == '\0') return;
      arguments.insert(arguments.end(), {name, value});
    };
    option("--matrix", "KOKKOSMX_MATRIX");
    option("--report", "KOKKOSMX_REPORT");
    arguments.emplace_back("--code-object");
    for (const auto& module : modules) {
      if (!module->kernels.empty()) arguments.push_back(file_of(module->code_object));
    }
    int to[2], from[2];
    if (pipe(to) != 0 || pipe(from) != 0) fail("no pipe");
    process_ = fork();
    if (process_ < 0) fail("cannot fork");
    if (process_ == 0) {
      dup2(to[0], 0);
      dup2(from[1], 1);
      for (const int file : {to[0], to[1], from[0], from[1]}) close(file);
      std::vector<char*> list;
      for (std::string& argument : arguments) list.push_back(argument.data());
      list.push_back(nullptr);
      execv("/bin/sh", list.data());
      _exit(127);
    }
    close(to[0]);
    close(from[1]);
    out_ = fdopen(to[1], "w");
    in_ = fdopen(from[0], "r");
    kernels_ = answer()["kernels"];
  }
  /// The executor ends, and has written its report, when its input does.
  ~Executor() {
    std::fclose(out_);
    int status = 0;
    waitpid(process_, &status, 0);
    if (status != 0) std::cerr << "stand-in for HIP: the executor failed at its end" << std::endl;
  }

  const Json& kernel(const std::string& name) const { return kernels_[name]; }
  void say(const std::string& line) {
    if (std::fputs((line + "\n").c_str(), out_) < 0) fail("the executor does not listen");
  }
  Json answer() {
    std::fflush(out_);
    std::string line;
    for (int c; (c = std::fgetc(in_)) != '\n';) {
      if (c == EOF) fail("the executor ended");
      line += static_cast<char>(c);
    }
    return JsonReader(line).read();
  }

 private:
  pid_t process_;
  std::FILE *in_, *out_;
  Json kernels_;
};

// ------------------------------------------------------------------------------ the device

struct Configuration {
  dim3 grid, block;
  std::size_t shared;
  hipStream_t stream;
};

class StandIn {
 public:
  static StandIn& get() {
    static StandIn device;
    return device;
  }

  Arena& arena() { return arena_; }
  std::vector<std::unique_ptr<Module>>& modules() { return modules_; }

  /// The host wrote these bytes, if they are a buffer's.
  void wrote(Address address, std::size_t size) {
    if (size == 0 || !arena_.holds(address, size)) return;
    unsaid_.push_back("{\"wrote\": [" + std::to_string(address) + ", " + std::to_string(size) +
                      "]}");
  }

  hipError_t launch(const void* stub, dim3 grid, dim3 block, void** arguments,
                    std::size_t shared) try {
    const std::string& name = kernel(stub);
    if (!executor_) executor_ = std::make_unique<Executor>(arena_, modules_);
    std::ostringstream line;
    const auto triple = [&](const char* what, dim3 d) {
      line << ", \"" << what << "\": [" << d.x << ", " << d.y << ", " << d.z << "]";
    };
    const testing::TestInfo* test = testing::UnitTest::GetInstance()->current_test_info();
    line << "{\"kernel\": " << quoted(name) << ", \"label\": "
         << quoted(test == nullptr ? ""
                                   : std::string(test->test_suite_name()) + "." + test->name());
    triple("grid", grid);
    triple("block", block);
    line << ", \"lds\": " << shared << ", \"arguments\": [";
    std::size_t i = 0;
    for (const Json& argument : executor_->kernel(name)["arguments"].array) {
      line << (i == 0 ? "\"" : ", \"");
      const auto* bytes = static_cast<const unsigned char*>(arguments[i++]);
      for (std::int64_t byte = 0; byte < argument.array.at(1).number; ++byte) {
        constexpr char digits[] = "0123456789abcdef";
        line << digits[bytes[byte] >> 4] << digits[bytes[byte] & 15];
      }
      line << "\"";
    }
    line << "], \"buffers\": [";
    // A workspace is read where nobody wrote it: rows of scales past the matrix's end, whose
    // outputs nobody stores. Of all else the executor knows what was written.
    const char* comma = "";
    for (const auto& [address, buffer] : arena_.buffers()) {
      line << comma << "{\"name\": " << quoted(buffer.name) << ", \"address\": " << address
           << ", \"bytes\": " << buffer.size
           << ", \"initialized\": " << (buffer.name == "KokkosMX: workspace" ? "true" : "false")
           << "}";
      comma = ", ";
    }
    line << "]}";
    for (const std::string& wrote : unsaid_) executor_->say(wrote);
    unsaid_.clear();
    executor_->say(line.str());
    launched_.push_back(name);
    const Json answer = executor_->answer();
    if (answer["ok"].number != 0) return hipSuccess;
    std::cerr << answer["message"].string << std::endl;
    return last_error_ = hipErrorLaunchFailure;
  } catch (const std::runtime_error& error) {
    std::cerr << error.what() << std::endl;
    return last_error_ = hipErrorUnknown;
  }

  hipError_t take_error() { return std::exchange(last_error_, hipSuccess); }
  std::vector<std::string> take_launched() { return std::exchange(launched_, {}); }

  std::vector<Configuration> pushed;

 private:
  const std::string& kernel(const void* stub) const {
    for (const auto& module : modules_) {
      const auto found = module->kernels.find(stub);
      if (found != module->kernels.end()) return found->second;
    }
    fail("a launch of what is no kernel");
  }

  Arena arena_;
  std::vector<std::unique_ptr<Module>> modules_;
  std::unique_ptr<Executor> executor_;
  std::vector<std::string> unsaid_, launched_;
  hipError_t last_error_ = hipSuccess;
};

/// Copies, where every byte in the arena is a buffer's, or the header's that Kokkos keeps before
/// one.
void copy(void* to, const void* from, std::size_t size) {
  if (size == 0) return;
  StandIn& device = StandIn::get();
  const Arena& arena = device.arena();
  for (const Address address : {reinterpret_cast<Address>(to), reinterpret_cast<Address>(from)}) {
    if (arena.is_inside(address) && !arena.holds(address, size) &&
        !arena.is_header(address, size)) {
      fail("a copy of " + std::to_string(size) + " bytes is not inside a buffer");
    }
  }
  std::memcpy(to, from, size);
  device.wrote(reinterpret_cast<Address>(to), size);
}

}  // namespace

namespace KokkosMXTest {

std::string readable(const std::string& mangled) {
  int status = 0;
  char* demangled = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  if (demangled == nullptr) return mangled;
  std::string name = demangled;
  std::free(demangled);
  for (const char* scope : {"KokkosMX::Impl::", "(anonymous namespace)::"}) {
    for (std::size_t at; (at = name.find(scope)) != std::string::npos;) {
      name.erase(at, std::strlen(scope));
    }
  }
  // void run_group<Body, threads, together>(Body, long)
  const std::string run = "void run_group<";
  const std::size_t end = name.find(">(");
  if (name.compare(0, run.size(), run) != 0 || end == std::string::npos) return name;
  name = name.substr(run.size(), end - run.size());
  for (int number = 0; number < 2; ++number) name.resize(name.rfind(", "));
  return name;
}
std::vector<std::string> all_kernels() {
  std::vector<std::string> all;
  for (const auto& module : StandIn::get().modules()) {
    for (const auto& [stub, name] : module->kernels) all.push_back(name);
  }
  return all;
}
std::vector<std::string> take_launched_kernels() { return StandIn::get().take_launched(); }
void set_compute_units(int units) {
  Kokkos::Impl::HIPInternal::m_deviceProp.multiProcessorCount = units;
}

}  // namespace KokkosMXTest

// ------------------------------------------------------------------------------ HIP

extern "C" {

void** __hipRegisterFatBinary(const void* data) {
  // Magic number, version, address of the code, unused.
  const unsigned char* code_object;
  std::memcpy(&code_object, static_cast<const char*>(data) + 8, sizeof(code_object));
  auto& modules = StandIn::get().modules();
  modules.push_back(std::make_unique<Module>(Module{code_object, {}}));
  return reinterpret_cast<void**>(modules.back().get());
}
void __hipUnregisterFatBinary(void**) {}
void __hipRegisterFunction(void** module, const void* stub, char*, const char* name, unsigned,
                           void*, void*, void*, void*, int*) {
  reinterpret_cast<Module*>(module)->kernels[stub] = name;
}
// Kokkos' variables on devices, which the library does not use.
void __hipRegisterVar(void**, void*, char*, char*, int, std::size_t, int, int) {}

hipError_t __hipPushCallConfiguration(dim3 grid, dim3 block, std::size_t shared,
                                      hipStream_t stream) {
  StandIn::get().pushed.push_back({grid, block, shared, stream});
  return hipSuccess;
}
hipError_t __hipPopCallConfiguration(dim3* grid, dim3* block, std::size_t* shared,
                                     hipStream_t* stream) {
  const Configuration& top = StandIn::get().pushed.back();
  *grid = top.grid;
  *block = top.block;
  *shared = top.shared;
  *stream = top.stream;
  StandIn::get().pushed.pop_back();
  return hipSuccess;
}
hipError_t hipLaunchKernel(const void* stub, dim3 grid, dim3 block, void** arguments,
                           std::size_t shared, hipStream_t) {
  return StandIn::get().launch(stub, grid, block, arguments, shared);
}
hipError_t hipGetLastError() { return StandIn::get().take_error(); }
hipError_t hipFuncSetAttribute(const void*, hipFuncAttribute, int) { return hipSuccess; }
hipError_t hipSetDevice(int) { return hipSuccess; }
hipError_t hipMemsetAsync(void* to, int value, std::size_t size, hipStream_t) {
  std::memset(to, value, size);
  StandIn::get().wrote(reinterpret_cast<Address>(to), size);
  return hipSuccess;
}

}  // extern "C"

// ------------------------------------------------------------------------------ Kokkos

namespace Kokkos {
namespace Impl {

hipDeviceProp_t HIPInternal::m_deviceProp = [] {
  hipDeviceProp_t device{};
  std::strcpy(device.name, "gfx950 executed on a CPU");
  std::strcpy(device.gcnArchName, "gfx950:sramecc+:xnack-");
  device.multiProcessorCount = 256;
  device.warpSize = 64;
  device.maxThreadsPerBlock = 1024;
  device.maxThreadsPerMultiProcessor = 2048;
  return device;
}();

HIPInternal& HIPInternal::singleton() {
  static HIPInternal instance;
  instance.m_hipDev = 0;
  return instance;
}
HIPInternal::~HIPInternal() = default;
int HIPInternal::verify_is_initialized(const char* const) const { return 1; }

void hip_internal_error_throw(hipError_t error, const char* name, const char* file, int line) {
  throw std::runtime_error(std::string(name) + " gave HIP's error " + std::to_string(error) +
                           " at " + file + ":" + std::to_string(line));
}

void DeepCopyHIP(void* to, const void* from, std::size_t size) { copy(to, from, size); }
void DeepCopyAsyncHIP(const HIP&, void* to, const void* from, std::size_t size) {
  DeepCopyHIP(to, from, size);
}

}  // namespace Impl

HIP::HIP() : m_space_instance(&Impl::HIPInternal::singleton(), [](Impl::HIPInternal*) {}) {}
hipStream_t HIP::hip_stream() const { return nullptr; }
int HIP::hip_device() const { return 0; }
const hipDeviceProp_t& HIP::hip_device_prop() { return Impl::HIPInternal::m_deviceProp; }
uint32_t HIP::impl_instance_id() const noexcept { return 0; }
int HIP::impl_is_initialized() { return 1; }
int HIP::concurrency() {
  return hip_device_prop().maxThreadsPerMultiProcessor * hip_device_prop().multiProcessorCount;
}
const char* HIP::name() { return "HIP"; }
void HIP::fence(const std::string&) const {}

HIPSpace::HIPSpace() : m_device(0), m_stream(nullptr) {}
// Kokkos keeps a header before what it says is a View's memory.
void* HIPSpace::allocate(const HIP&, const char* label, const std::size_t size,
                         const std::size_t logical_size) const {
  const std::size_t used = logical_size == 0 ? size : logical_size;
  return StandIn::get().arena().allocate(label, size - used, used);
}
void* HIPSpace::allocate(const char* label, const std::size_t size,
                         const std::size_t logical_size) const {
  return allocate(HIP(), label, size, logical_size);
}
void HIPSpace::deallocate(const char*, void* const memory, const std::size_t size,
                          const std::size_t logical_size) const {
  const std::size_t used = logical_size == 0 ? size : logical_size;
  StandIn::get().arena().deallocate(reinterpret_cast<Address>(memory) + size - used);
}

}  // namespace Kokkos

KOKKOS_IMPL_HOST_INACCESSIBLE_SHARED_ALLOCATION_RECORD_EXPLICIT_INSTANTIATION(Kokkos::HIPSpace);
