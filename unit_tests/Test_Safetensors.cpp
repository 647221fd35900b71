// SPDX-License-Identifier: Apache-2.0
// The reader of checkpoints that the leaderboard's --safetensors stands on.

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../perf_tests/Safetensors.hpp"

namespace {

using KokkosMXPerf::SafetensorsFile;
using KokkosMXPerf::Tensor;

/// A file of a header and data, removed with this object.
class TemporaryFile {
 public:
  TemporaryFile(const std::string& header, const std::string& data, std::int64_t longer = 0)
      : path_(testing::TempDir() + "KokkosMX_Test_Safetensors.safetensors") {
    const auto length =
        static_cast<std::uint64_t>(static_cast<std::int64_t>(header.size()) + longer);
    std::ofstream file(path_, std::ios::binary);
    for (int i = 0; i < 8; ++i) file.put(static_cast<char>(length >> (8 * i)));
    file << header << data;
  }
  ~TemporaryFile() { std::remove(path_.c_str()); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// The message with which a file is refused; empty where it is not.
std::string refusal(const std::string& header, const std::string& data, std::int64_t longer = 0) {
  const TemporaryFile file(header, data, longer);
  try {
    const SafetensorsFile open(file.path());
  } catch (const std::runtime_error& error) {
    const std::string message = error.what();
    EXPECT_EQ(message.rfind(file.path() + ": ", 0), 0u) << message;
    return message.substr(file.path().size() + 2);
  }
  return "";
}

TEST(Safetensors, ReadsTensors) {
  const TemporaryFile file(
      R"( {"__metadata__" : {"format":"pt", "note": "a \"b\" \\ {"},
           "first": {"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},
           "caf\u00e9\ud83d\ude00\n": {"data_offsets":[12,14] , "shape":[ ], "dtype":"F16"},
           "odd": {"dtype":"F4","shape":[7],"data_offsets":[14,15]},
           "empty": {"dtype":"F32","shape":[0,4],"data_offsets":[15,15]}}   )",
      "0123456789abcde");
  SafetensorsFile open(file.path());
  ASSERT_EQ(open.tensors().size(), 4u);
  const Tensor& first = open.tensors()[0];
  EXPECT_EQ(first.name, "first");
  EXPECT_EQ(first.dtype, "BF16");
  EXPECT_EQ(first.shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(open.tensors()[1].name, "caf\xC3\xA9\xF0\x9F\x98\x80\n");
  EXPECT_TRUE(open.tensors()[1].shape.empty());
  char bytes[5] = {};
  open.read(first, 0, 4, bytes);
  EXPECT_STREQ(bytes, "0123");
  open.read(first, 9, 3, bytes);
  EXPECT_STREQ(bytes, "9ab3");
  open.read(open.tensors()[1], 0, 2, bytes);
  EXPECT_STREQ(bytes, "cdb3");
  EXPECT_THROW(open.read(first, 10, 3, bytes), std::out_of_range);
  EXPECT_THROW(open.read(first, 13, 0, bytes), std::out_of_range);
}

TEST(Safetensors, RefusesWhatIsNotWhole) {
  const std::string good = R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  EXPECT_EQ(refusal(good, "01234567"), "");
  EXPECT_EQ(refusal(good, "0123456"), "x: lies beyond the end of the file");
  EXPECT_EQ(refusal(good, "01234567", 100), "a header of " + std::to_string(good.size() + 100) +
                                                " bytes in a file of " +
                                                std::to_string(good.size() + 16));
  EXPECT_NE(refusal(good, "", -1).find("'}' expected"), std::string::npos);
  EXPECT_THROW(SafetensorsFile("/nonexistent/file"), std::runtime_error);

  const auto tensor = [](const std::string& members) {
    return refusal("{\"x\":{" + members + "}}", "01234567");
  };
  EXPECT_EQ(tensor(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])"),
            "x: its shape asks for 12 bytes, its data_offsets for 8");
  EXPECT_EQ(tensor(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8])"),
            "x: its shape is too large");
  EXPECT_EQ(tensor(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])"),
            "x: lies beyond the end of the file");

  const auto fails = [&](const std::string& header, const std::string& why) {
    const std::string message = refusal(header, "01234567");
    EXPECT_EQ(message.rfind("safetensors header, byte ", 0), 0u) << message;
    EXPECT_NE(message.find(why), std::string::npos) << message;
  };
  fails("", "'{' expected");
  fails("[]", "'{' expected");
  fails(good + "x", "text after");
  fails(R"({"x":{"dtype":"F32","shape":[2]}})", "lacks");
  fails(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", "two numbers");
  fails(R"({"x":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", "a number");
  fails(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,99999999999999999999]}})",
        "too large");
  fails(R"({"x":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8]}})", "too large");
  fails(R"({"x":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "twice");
  fails(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":1}})", "unknown key");
  const std::string member = R"("x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  fails("{" + member + "," + member + "}", "twice");
  fails("{" + member + ",}", "'\"' expected");
  fails(R"({"\x":{}})", "unknown escape");
  fails(R"({"\u12g4":{}})", "hexadecimal");
  fails(R"({"\ud800x":{}})", "surrogate");
  fails("{\"a\nb\":{}}", "control character");
  fails("{\"x", "does not end");
}

}  // namespace
