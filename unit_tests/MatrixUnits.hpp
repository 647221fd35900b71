// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_UNIT_TESTS_MATRIX_UNITS_HPP
#define KOKKOSMX_UNIT_TESTS_MATRIX_UNITS_HPP

// Models of matrix instructions as their manuals define them (AMD Instinct MI300 and CDNA 4 ISA:
// matrix fused-multiply-add; PTX ISA: matrix fragments for mma.m16n8k32, ldmatrix, stmatrix, and of
// wgmma matrix fragments, shared memory layouts and the matrix descriptor), register by register.
// They share no code with the library.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace KokkosMXTest {

// Orders in which hardware might add the 128 products and the accumulator, and how it might round.
enum class FloatUnit {
  ascending,   // each sum rounded to nearest
  descending,  // each sum truncated to 24 bits, subnormals flushed
  pairwise,    // a tree, the accumulator last
  broken       // the accumulator keeps 23 bits: for self-checks that must fail
};

// float32 with 24 bits of x, truncated, without subnormals.
inline float truncated(double x) {
  auto result = static_cast<float>(x);
  if (std::fabs(static_cast<double>(result)) > std::fabs(x)) result = std::nextafterf(result, 0.0f);
  return std::fabs(result) < 0x1p-126f ? 0.0f : result;
}

// v_mfma_scale_f32_16x16x128_f8f6f4 with cbsz = blgp = 4 (FP4), 64 lanes:
//   A[i][k] is nibble k % 8 of VGPR k % 32 / 8 of lane i + 16 * (k / 32), its scale the byte of the
//   scale VGPR of that lane that op_sel names; B[k][j] is the same of lane j + 16 * (k / 32);
//   D[i][j] is VGPR i % 4 of lane j + 16 * (i / 4).
template <FloatUnit Order>
struct ModelScaledFp4 {
  template <int SelectA, int SelectB, class A, class B, class C>
  static void multiply_add(const A& a, const B& b, const C& c) {
    float x[16][128], y[16][128];
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < 128; ++k) {
        const int lane = row + 16 * (k / 32);
        x[row][k] = element<SelectA>(a(lane), k % 32);
        y[row][k] = element<SelectB>(b(lane), k % 32);
      }
    }
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 16; ++j) {
        float& sum = c(j + 16 * (i / 4)).value[i % 4];
        sum = dot(x[i], y[j], sum);
      }
    }
  }

 private:
  template <int Select, class Operand>
  static float element(const Operand& operand, int k) {
    constexpr float magnitudes[8] = {0, .5f, 1, 1.5f, 2, 3, 4, 6};
    const std::uint32_t code = operand.codes.w[k / 8] >> (4 * (k % 8)) & 15u;
    const auto scale = static_cast<int>(operand.scales >> (8 * Select) & 255u);
    if (scale == 255) return NAN;
    const float value = std::ldexp(magnitudes[code & 7u], scale - 127);
    return (code & 8u) != 0 ? -value : value;
  }
  static float dot(const float* x, const float* y, float sum) {
    if constexpr (Order == FloatUnit::ascending || Order == FloatUnit::broken) {
      for (int k = 0; k < 128; ++k) {
        sum = static_cast<float>(static_cast<double>(sum) + static_cast<double>(x[k]) * y[k]);
      }
      if constexpr (Order == FloatUnit::broken) {
        std::uint32_t bits;
        std::memcpy(&bits, &sum, 4);
        bits &= ~1u;
        std::memcpy(&sum, &bits, 4);
      }
      return sum;
    } else if constexpr (Order == FloatUnit::descending) {
      for (int k = 127; k >= 0; --k) {
        sum = truncated(static_cast<double>(sum) + static_cast<double>(x[k]) * y[k]);
      }
      return sum;
    } else {
      float tree[128];
      for (int k = 0; k < 128; ++k) tree[k] = x[k] * y[k];
      for (int n = 64; n > 0; n /= 2) {
        for (int k = 0; k < n; ++k) tree[k] = tree[2 * k] + tree[2 * k + 1];
      }
      return sum + tree[0];
    }
  }
};

// v_mfma_i32_16x16x64_i8 (Bytes = 16) and v_mfma_i32_16x16x32_i8 (Bytes = 8), 64 lanes:
//   A[i][k] is byte k % Bytes of lane i + 16 * (k / Bytes), B[k][j] of lane j + 16 * (k / Bytes);
//   D[i][j] is VGPR i % 4 of lane j + 16 * (i / 4). Sums wrap.
template <int Bytes>
struct ModelInt8 {
  static constexpr const char* name = "model_i8";
  static constexpr int lane_bytes = Bytes;

  template <class A, class B, class C>
  static void multiply_add(const A& a, const B& b, const C& c) {
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 16; ++j) {
        std::int32_t& sum = c(j + 16 * (i / 4)).value[i % 4];
        for (int k = 0; k < 4 * Bytes; ++k) {
          const std::int32_t product =
              byte(a(i + 16 * (k / Bytes)), k % Bytes) * byte(b(j + 16 * (k / Bytes)), k % Bytes);
          sum = static_cast<std::int32_t>(static_cast<std::uint32_t>(sum) +
                                          static_cast<std::uint32_t>(product));
        }
      }
    }
  }

 private:
  static std::int32_t byte(const std::uint32_t* registers, int i) {
    return static_cast<std::int8_t>(registers[i / 4] >> (8 * (i % 4)) & 255u);
  }
};

// mma.m16n8k32 with .s8 operands, 32 lanes, groupID = lane / 4, threadID_in_group = lane % 4:
//   A (row): byte i of a0..a3: row groupID for i < 4 and 8 <= i < 12, else groupID + 8;
//            column threadID_in_group * 4 + (i & 3), and 16 more for i >= 8;
//   B (column): byte i of b0, b1: row threadID_in_group * 4 + (i & 3), and 16 more for i >= 4;
//            column groupID;
//   C, D: row groupID for i < 2, else groupID + 8; column threadID_in_group * 2 + (i & 1).
struct ModelMmaInt8 {
  // d(lane)[i] += what a(lane) and b(lane), arrays of registers, make.
  template <class A, class B, class D>
  static void multiply_add(const A& a, const B& b, const D& d) {
    int x[16][32] = {}, y[32][8] = {};
    for (int lane = 0; lane < 32; ++lane) {
      const int group = lane / 4, in_group = lane % 4;
      for (int i = 0; i < 16; ++i) {
        const int row = i < 4 || (i >= 8 && i < 12) ? group : group + 8;
        x[row][in_group * 4 + (i & 3) + (i >= 8 ? 16 : 0)] = byte(a(lane), i);
      }
      for (int i = 0; i < 8; ++i) {
        y[in_group * 4 + (i & 3) + (i >= 4 ? 16 : 0)][group] = byte(b(lane), i);
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const int row = i < 2 ? lane / 4 : lane / 4 + 8, col = lane % 4 * 2 + (i & 1);
        for (int k = 0; k < 32; ++k) d(lane)[i] += x[row][k] * y[k][col];
      }
    }
  }

 private:
  static int byte(const std::uint32_t* registers, int i) {
    return static_cast<std::int8_t>(registers[i / 4] >> (8 * (i % 4)) & 255u);
  }
};

// Shared memory by its 32-bit addresses. What reaches out of it, or is not aligned as instructions
// need it, does nothing but to be remembered.
struct ModelSharedMemory {
  std::vector<std::uint8_t> bytes;
  int mistakes = 0;

  std::uint8_t* at(std::uint64_t address, std::uint64_t count, std::uint64_t alignment) {
    if (address % alignment == 0 && address + count <= bytes.size()) return &bytes[address];
    ++mistakes;
    static std::uint8_t nowhere[16];
    return nowhere;
  }
};

// ldmatrix.m8n8.x4.b16, 32 lanes: the address of row r (8 elements, 16 bytes) of matrix i is that
// of lane 8 * i + r; lane l gets elements 2 * (l % 4) and 2 * (l % 4) + 1 of row l / 4 of it in
// register i, the first one in the low half.
struct ModelLoadMatrices {
  // addresses(lane): an address; registers(lane): four registers.
  template <class Addresses, class Registers>
  static void load(ModelSharedMemory& memory, const Addresses& addresses,
                   const Registers& registers) {
    for (int i = 0; i < 4; ++i) {
      for (int lane = 0; lane < 32; ++lane) {
        const std::uint8_t* from = memory.at(addresses(8 * i + lane / 4), 16, 16) + 4 * (lane % 4);
        std::uint32_t& value = registers(lane)[i];
        value = 0;
        for (int byte = 0; byte < 4; ++byte) value |= std::uint32_t{from[byte]} << (8 * byte);
      }
    }
  }
};

// stmatrix.m8n8.x4.b16, 32 lanes: the address of row r (8 elements, 16 bytes) of matrix i is that
// of lane 8 * i + r; of the matrix lane l has elements 2 * (l % 4) and 2 * (l % 4) + 1 of row l / 4
// in register i, the first one in the low half. With .trans what lanes have are columns: element e
// of row r is stored as element r of row e.
template <bool Transposed>
struct ModelStoreMatrices {
  // addresses(lane): an address; registers(lane): four registers.
  template <class Addresses, class Registers>
  static void store(ModelSharedMemory& memory, const Addresses& addresses,
                    const Registers& registers) {
    for (int i = 0; i < 4; ++i) {
      for (int lane = 0; lane < 32; ++lane) {
        for (int half = 0; half < 2; ++half) {
          const int row = lane / 4, element = 2 * (lane % 4) + half;
          const int to_row = Transposed ? element : row, to_element = Transposed ? row : element;
          std::uint8_t* to = memory.at(addresses(8 * i + to_row), 16, 16) + 2 * to_element;
          const std::uint32_t value = registers(lane)[i] >> (16 * half);
          to[0] = static_cast<std::uint8_t>(value & 255u);
          to[1] = static_cast<std::uint8_t>(value >> 8 & 255u);
        }
      }
    }
  }
};

// wgmma.mma_async.m64nNk32 .s32.s8.s8, 128 threads. A matrix in shared memory has 32 elements of K
// of each row one after the other ("K-major"), and a descriptor:
//   bits 0-13: the address >> 4;  16-29: the leading dimension's offset, unused where swizzled;
//   32-45: the offset from 8 rows to the next 8, >> 4;  49-51: the base offset;
//   62-63: the swizzle: 0 none, 1 of 128 bytes, 2 of 64, 3 of 32.
// With that of 128 bytes the 8 rows of a pattern, which begins at a multiple of 1024 where the base
// offset is 0, are 128 bytes apart, and bits 4-6 of an address are its own ones xor its bits 7-9.
//   A in registers: byte i of a0..a3 of thread t, with w = t / 32, groupID = t % 32 / 4,
//            threadID_in_group = t % 4: as of mma.m16n8k32, of rows 16 * w and on;
//   D: register i: row 16 * w + groupID, and 8 more where i & 2; column threadID_in_group * 2 +
//            (i & 1) + 8 * (i / 4).
template <int N>
struct ModelWgmmaInt8 {
  static constexpr int threads = 128, values = N / 2;

  // d(thread)[i] += what the two descriptors name.
  template <class D>
  static void multiply_add(ModelSharedMemory& memory, std::uint64_t a, std::uint64_t b,
                           const D& d) {
    std::vector<int> x(64 * 32);
    for (int row = 0; row < 64; ++row) {
      for (int k = 0; k < 32; ++k) x[32 * row + k] = element(memory, a, row, k);
    }
    add(x, memory, b, d);
  }
  // The same with A in registers: a(thread)[0..3].
  template <class A, class D>
  static void multiply_add_registers(ModelSharedMemory& memory, const A& a, std::uint64_t b,
                                     const D& d) {
    std::vector<int> x(64 * 32);
    for (int thread = 0; thread < threads; ++thread) {
      const int group = thread % 32 / 4, in_group = thread % 4;
      for (int i = 0; i < 16; ++i) {
        const int row = thread / 32 * 16 + (i < 4 || (i >= 8 && i < 12) ? group : group + 8);
        const int k = in_group * 4 + (i & 3) + (i >= 8 ? 16 : 0);
        x[32 * row + k] = static_cast<std::int8_t>(a(thread)[i / 4] >> (8 * (i % 4)) & 255u);
      }
    }
    add(x, memory, b, d);
  }

 private:
  static int element(ModelSharedMemory& memory, std::uint64_t descriptor, int row, int k) {
    const std::uint64_t start = (descriptor & 0x3FFFu) << 4;
    const std::uint64_t eight_rows = (descriptor >> 32 & 0x3FFFu) << 4;
    const std::uint64_t base_offset = descriptor >> 49 & 7u, swizzle = descriptor >> 62;
    // No other swizzle is modelled. Rows of the pattern hold 128 bytes.
    if (swizzle != 1 || base_offset != 0 || start % 1024 + 32 > 128) ++memory.mistakes;
    std::uint64_t address = start + static_cast<std::uint64_t>(row / 8) * eight_rows +
                            static_cast<std::uint64_t>(row % 8 * 128 + k);
    address ^= (address >> 7 & 7u) << 4;
    return static_cast<std::int8_t>(*memory.at(address, 1, 1));
  }
  template <class D>
  static void add(const std::vector<int>& x, ModelSharedMemory& memory, std::uint64_t b,
                  const D& d) {
    std::vector<int> y(N * 32);
    for (int col = 0; col < N; ++col) {
      for (int k = 0; k < 32; ++k) y[32 * col + k] = element(memory, b, col, k);
    }
    for (int thread = 0; thread < threads; ++thread) {
      for (int i = 0; i < values; ++i) {
        const int row = thread / 32 * 16 + thread % 32 / 4 + ((i & 2) != 0 ? 8 : 0);
        const int col = thread % 4 * 2 + (i & 1) + i / 4 * 8;
        for (int k = 0; k < 32; ++k) d(thread)[i] += x[32 * row + k] * y[32 * col + k];
      }
    }
  }
};

}  // namespace KokkosMXTest

#endif
