// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_TEST_INPUTS_HPP
#define KOKKOSMX_TEST_INPUTS_HPP

/// \file Inputs.hpp
/// Inputs of the tests and measurements, made by integer arithmetic alone, and the golden arrays.
/// Definitions: golden/README.md. Needs nothing of the library and no floating point.

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace KokkosMXTest {

/// The (i+1)-th output of splitmix64 started at state seed.
constexpr std::uint64_t splitmix64(std::uint64_t seed, std::uint64_t i) {
  std::uint64_t z = seed + (i + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

/// The outputs of splitmix64 one after the other.
class Stream {
 public:
  explicit constexpr Stream(std::uint64_t seed) : seed_(seed) {}
  constexpr std::uint64_t next() { return splitmix64(seed_, i_++); }
  /// A number in 0 .. n - 1.
  constexpr std::uint64_t below(std::uint64_t n) { return next() % n; }
  /// A number in first .. last.
  constexpr std::int64_t between(std::int64_t first, std::int64_t last) {
    return first + static_cast<std::int64_t>(below(static_cast<std::uint64_t>(last - first + 1)));
  }

 private:
  std::uint64_t seed_;
  std::uint64_t i_ = 0;
};

/// n random bytes.
inline std::vector<std::uint8_t> random_bytes(std::size_t n, std::uint64_t seed) {
  std::vector<std::uint8_t> bytes(n);
  for (std::size_t i = 0; i < n; ++i) {
    bytes[i] = static_cast<std::uint8_t>(splitmix64(seed, i / 8) >> (8 * (i % 8)));
  }
  return bytes;
}

/// The bf16 bits of v / 256, nearest, ties to even; |v| <= 1020.
constexpr std::uint16_t bell_bits(int v) {
  if (v == 0) return 0;
  const unsigned magnitude = static_cast<unsigned>(v < 0 ? -v : v);
  const int width = std::bit_width(magnitude);
  // The 8 leading bits; 2 more at most are rounded off.
  unsigned kept = width <= 8 ? magnitude << (8 - width) : magnitude >> (width - 8);
  if (width > 8) {
    const unsigned half = 1u << (width - 9);
    const unsigned rest = magnitude & (2 * half - 1);
    if (rest > half || (rest == half && (kept & 1))) ++kept;
  }
  // kept == 256 carries into the exponent.
  const unsigned exponent = static_cast<unsigned>(127 - 8 + width - 1);
  return static_cast<std::uint16_t>((v < 0 ? 0x8000u : 0u) + (exponent << 7) + (kept - 128));
}

/// Bell-shaped bf16 numbers as bits, row-major: ((sum of the 8 bytes of splitmix64(seed)[i]) -
/// 1020) / 256. With outliers = k, columns c with splitmix64(seed + 1)[c] % 64 == 0 are multiplied
/// by 2^k.
inline std::vector<std::uint16_t> bell(std::int64_t rows, std::int64_t cols, std::uint64_t seed,
                                       std::optional<int> outliers = {}) {
  if (outliers && (*outliers < -100 || *outliers > 120)) {
    throw std::invalid_argument("bell: outliers leave bf16's normal range");
  }
  std::array<std::uint16_t, 2041> table;
  for (int v = -1020; v <= 1020; ++v) table[static_cast<std::size_t>(v + 1020)] = bell_bits(v);
  std::vector<std::uint16_t> bits(static_cast<std::size_t>(rows * cols));
#ifdef _OPENMP
#pragma omp parallel for if (rows * cols > 65536)
#endif
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = row * cols; i < (row + 1) * cols; ++i) {
      const std::uint64_t z = splitmix64(seed, static_cast<std::uint64_t>(i));
      const std::uint64_t pairs = (z & 0x00FF00FF00FF00FFu) + ((z >> 8) & 0x00FF00FF00FF00FFu);
      bits[static_cast<std::size_t>(i)] = table[(pairs * 0x0001000100010001u) >> 48];
    }
  }
  if (outliers) {
    for (std::int64_t col = 0; col < cols; ++col) {
      if (splitmix64(seed + 1, static_cast<std::uint64_t>(col)) % 64 != 0) continue;
      for (std::int64_t row = 0; row < rows; ++row) {
        std::uint16_t& x = bits[static_cast<std::size_t>(row * cols + col)];
        // A power of two commutes with the rounding.
        if ((x & 0x7FFF) != 0) x = static_cast<std::uint16_t>(x + *outliers * 128);
      }
    }
  }
  return bits;
}

/// The CRC-32 of zlib. crc: of the bytes before.
inline std::uint32_t crc32(const void* data, std::size_t bytes, std::uint32_t crc = 0) {
  using Tables = std::array<std::array<std::uint32_t, 256>, 8>;
  static const Tables tables = [] {
    Tables t;
    for (std::uint32_t i = 0; i < 256; ++i) {
      std::uint32_t c = i;
      for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ ((c & 1) ? 0xEDB88320u : 0u);
      t[0][i] = c;
    }
    for (std::size_t k = 1; k < 8; ++k) {
      for (std::size_t i = 0; i < 256; ++i) {
        t[k][i] = (t[k - 1][i] >> 8) ^ t[0][t[k - 1][i] & 0xFF];
      }
    }
    return t;
  }();
  const auto* p = static_cast<const unsigned char*>(data);
  std::uint32_t c = ~crc;
  for (; bytes >= 8; p += 8, bytes -= 8) {
    const std::uint32_t low =
        c ^ (static_cast<std::uint32_t>(p[0]) | static_cast<std::uint32_t>(p[1]) << 8 |
             static_cast<std::uint32_t>(p[2]) << 16 | static_cast<std::uint32_t>(p[3]) << 24);
    c = tables[7][low & 0xFF] ^ tables[6][(low >> 8) & 0xFF] ^ tables[5][(low >> 16) & 0xFF] ^
        tables[4][low >> 24] ^ tables[3][p[4]] ^ tables[2][p[5]] ^ tables[1][p[6]] ^
        tables[0][p[7]];
  }
  for (; bytes > 0; ++p, --bytes) c = (c >> 8) ^ tables[0][(c ^ *p) & 0xFF];
  return ~c;
}

/// The CRC-32 of an array's bytes.
template <class T>
std::uint32_t crc32(const std::vector<T>& array) {
  return crc32(array.data(), array.size() * sizeof(T));
}

#ifdef KOKKOSMX_GOLDEN_DIR

/// A golden array: row-major, cols == 1 where the manifest gives one extent.
template <class T>
struct GoldenArray {
  std::int64_t rows;
  std::int64_t cols;
  std::vector<T> data;
};

/// What MANIFEST.csv says of a golden array.
struct GoldenEntry {
  std::string dtype;
  std::int64_t rows;
  std::int64_t cols;
  std::uint32_t crc;
};

namespace Impl {
inline std::vector<std::string> csv_fields(const std::string& line) {
  std::vector<std::string> fields;
  std::istringstream stream(line);
  for (std::string field; std::getline(stream, field, ',');) fields.push_back(field);
  return fields;
}
inline std::ifstream open_golden(const std::string& name) {
  const std::string path = std::string(KOKKOSMX_GOLDEN_DIR) + "/" + name;
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot open " + path);
  return file;
}
inline std::uint32_t hex(const std::string& digits) {
  return static_cast<std::uint32_t>(std::stoul(digits, nullptr, 16));
}
}  // namespace Impl

/// MANIFEST.csv by file name.
inline const std::map<std::string, GoldenEntry>& golden_manifest() {
  static const std::map<std::string, GoldenEntry> manifest = [] {
    std::map<std::string, GoldenEntry> entries;
    std::ifstream file = Impl::open_golden("MANIFEST.csv");
    std::string line;
    std::getline(file, line);
    while (std::getline(file, line)) {
      const std::vector<std::string> fields = Impl::csv_fields(line);
      if (fields.size() < 4) continue;
      const std::size_t x = fields[2].find('x');
      const std::int64_t cols = x == std::string::npos ? 1 : std::stoll(fields[2].substr(x + 1));
      entries[fields[0]] = {fields[1], std::stoll(fields[2]), cols, Impl::hex(fields[3])};
    }
    return entries;
  }();
  return manifest;
}

/// Reads golden/<name>.bin. \throws std::runtime_error where it is not what MANIFEST.csv says.
template <class T>
GoldenArray<T> golden(const std::string& name) {
  static_assert(std::endian::native == std::endian::little);
  const auto found = golden_manifest().find(name + ".bin");
  if (found == golden_manifest().end()) throw std::runtime_error(name + ": not in MANIFEST.csv");
  const GoldenEntry& entry = found->second;
  if (entry.dtype != "uint" + std::to_string(8 * sizeof(T))) {
    throw std::runtime_error(name + ": MANIFEST.csv says " + entry.dtype);
  }
  std::ifstream file = Impl::open_golden(name + ".bin");
  const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  GoldenArray<T> array{entry.rows, entry.cols,
                       std::vector<T>(static_cast<std::size_t>(entry.rows * entry.cols))};
  if (bytes.size() != array.data.size() * sizeof(T)) {
    throw std::runtime_error(name + ": wrong size");
  }
  if (crc32(bytes.data(), bytes.size()) != entry.crc) {
    throw std::runtime_error(name + ": CRC-32 differs from MANIFEST.csv");
  }
  std::memcpy(array.data.data(), bytes.data(), bytes.size());
  return array;
}

/// A row of leaderboard.csv: A = bell(m, k, seed_a), B = bell(n, k, seed_b), and the CRC-32 of
/// every stage.
struct LeaderboardRow {
  std::int64_t m, n, k;
  std::uint64_t seed_a, seed_b;
  std::uint32_t crc_a, crc_b;
  std::uint32_t crc_a_codes, crc_a_scales, crc_b_codes, crc_b_scales;
  std::uint32_t crc_b_shuffled, crc_b_scales_shuffled;
  std::uint32_t crc_c_bf16;
};

/// leaderboard.csv in its order: four test shapes, then the six timed ones.
inline std::vector<LeaderboardRow> leaderboard() {
  std::ifstream file = Impl::open_golden("leaderboard.csv");
  std::vector<LeaderboardRow> rows;
  std::string line;
  std::getline(file, line);
  if (line.rfind("m,n,k,seed_a,seed_b,crc_a,crc_b,crc_a_codes,crc_a_scales,crc_b_codes,"
                 "crc_b_scales,crc_b_shuffled,crc_b_scales_shuffled,crc_c_bf16",
                 0) != 0) {
    throw std::runtime_error("leaderboard.csv: other columns");
  }
  while (std::getline(file, line)) {
    const std::vector<std::string> f = Impl::csv_fields(line);
    if (f.size() < 14) continue;
    rows.push_back({std::stoll(f[0]), std::stoll(f[1]), std::stoll(f[2]), std::stoull(f[3]),
                    std::stoull(f[4]), Impl::hex(f[5]), Impl::hex(f[6]), Impl::hex(f[7]),
                    Impl::hex(f[8]), Impl::hex(f[9]), Impl::hex(f[10]), Impl::hex(f[11]),
                    Impl::hex(f[12]), Impl::hex(f[13])});
  }
  return rows;
}

#endif  // KOKKOSMX_GOLDEN_DIR

}  // namespace KokkosMXTest

#endif
