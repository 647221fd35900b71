// SPDX-License-Identifier: Apache-2.0
#ifndef KOKKOSMX_UNIT_TESTS_REFERENCE_GEMM_HPP
#define KOKKOSMX_UNIT_TESTS_REFERENCE_GEMM_HPP

// The oracle of the product: unbounded integers, one rounding. It shares no code with the library
// and uses no floating-point instruction, so that it holds under any compiler flag and in any
// floating-point environment. Every number goes in and out as its bits.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace KokkosMXTest {

// ------------------------------------------------------------------------------ wide integers

// An unsigned integer of 640 bits: a sum of K <= 2^19 products needs 508 + 13 + 19.
class BigUnsigned {
 public:
  static constexpr int limb_count = 10;
  static constexpr int bit_count = 64 * limb_count;

  // *this += value * 2^shift
  void add(std::uint64_t value, int shift) {
    if (value == 0) return;
    const int first = shift / 64;
    const int offset = shift % 64;
    const std::uint64_t low = value << offset;
    const std::uint64_t high = offset == 0 ? 0 : value >> (64 - offset);
    std::uint64_t carry = add_limb(first, low);
    if (high != 0) {
      // high < 2^63, so high + carry does not wrap.
      carry = add_limb(first + 1, high + carry);
      for (int i = first + 2; carry != 0; ++i) carry = add_limb(i, carry);
    } else {
      for (int i = first + 1; carry != 0; ++i) carry = add_limb(i, carry);
    }
  }
  // *this -= other, where other <= *this
  void subtract(const BigUnsigned& other) {
    std::uint64_t borrow = 0;
    for (int i = 0; i < limb_count; ++i) {
      const std::uint64_t from = limbs_[i];
      const std::uint64_t once = from - other.limbs_[i];
      limbs_[i] = once - borrow;
      borrow = (from < other.limbs_[i] || once < borrow) ? 1 : 0;
    }
    if (borrow != 0) throw std::logic_error("BigUnsigned: negative");
  }
  bool less_than(const BigUnsigned& other) const {
    for (int i = limb_count - 1; i >= 0; --i) {
      if (limbs_[i] != other.limbs_[i]) return limbs_[i] < other.limbs_[i];
    }
    return false;
  }
  // Position of the highest one bit plus 1; 0 for 0.
  int bit_length() const {
    for (int i = limb_count - 1; i >= 0; --i) {
      if (limbs_[i] != 0) return 64 * i + 64 - __builtin_clzll(limbs_[i]);
    }
    return 0;
  }
  int trailing_zeros() const {
    for (int i = 0; i < limb_count; ++i) {
      if (limbs_[i] != 0) return 64 * i + __builtin_ctzll(limbs_[i]);
    }
    return bit_count;
  }
  // The 64 bits from position on; zeros beyond the top.
  std::uint64_t bits_from(int position) const {
    const int first = position / 64;
    const int offset = position % 64;
    const std::uint64_t low = first < limb_count ? limbs_[first] >> offset : 0;
    const std::uint64_t high =
        offset != 0 && first + 1 < limb_count ? limbs_[first + 1] << (64 - offset) : 0;
    return low | high;
  }
  bool bit(int position) const { return (bits_from(position) & 1) != 0; }
  // How many of the lowest count bits are ones.
  int ones_below(int count) const {
    int ones = 0;
    for (int i = 0; i < limb_count && 64 * i < count; ++i) {
      const int used = std::min(64, count - 64 * i);
      const std::uint64_t mask = used == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << used) - 1;
      ones += __builtin_popcountll(limbs_[i] & mask);
    }
    return ones;
  }
  bool is_zero() const { return bit_length() == 0; }

 private:
  std::uint64_t add_limb(int i, std::uint64_t value) {
    if (i >= limb_count) throw std::logic_error("BigUnsigned: too large");
    limbs_[i] += value;
    return limbs_[i] < value ? 1 : 0;
  }
  std::array<std::uint64_t, limb_count> limbs_{};
};

// A sum of signed terms: the positive and the negative ones apart.
class ExactSum {
 public:
  void add(std::int64_t value, int shift) {
    if (value >= 0) {
      positive_.add(static_cast<std::uint64_t>(value), shift);
    } else {
      negative_.add(static_cast<std::uint64_t>(-value), shift);
    }
  }
  bool is_negative() const { return positive_.less_than(negative_); }
  BigUnsigned magnitude() const {
    BigUnsigned larger = is_negative() ? negative_ : positive_;
    larger.subtract(is_negative() ? positive_ : negative_);
    return larger;
  }
  bool has_terms() const { return !positive_.is_zero() || !negative_.is_zero(); }

 private:
  BigUnsigned positive_, negative_;
};

// ------------------------------------------------------------------------------ IEEE formats

struct Format {
  int exponent_bits, fraction_bits;

  constexpr int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  constexpr int least_exponent() const { return 1 - bias(); }  // of a normal number
  constexpr std::uint32_t infinity() const {
    return ((std::uint32_t{1} << exponent_bits) - 1) << fraction_bits;
  }
  constexpr std::uint32_t nan() const {
    return infinity() | std::uint32_t{1} << (fraction_bits - 1);
  }
  constexpr std::uint32_t sign() const {
    return std::uint32_t{1} << (exponent_bits + fraction_bits);
  }
};
inline constexpr Format format_f32{8, 23};
inline constexpr Format format_bf16{8, 7};
inline constexpr Format format_f16{5, 10};

// How many of magnitude's low bits a result in the format drops; magnitude is in units of
// 2^exponent and not 0.
inline int dropped_bits(const Format& format, const BigUnsigned& magnitude, int exponent) {
  const int leading = magnitude.bit_length() - 1 + exponent;
  return std::max(leading, format.least_exponent()) - format.fraction_bits - exponent;
}

// (-1)^negative * magnitude * 2^exponent, rounded to nearest, ties to even; the bits of the result.
inline std::uint32_t round_to(const Format& format, bool negative, const BigUnsigned& magnitude,
                              int exponent) {
  const std::uint32_t sign = negative ? format.sign() : 0;
  if (magnitude.is_zero()) return sign;
  const int drop = dropped_bits(format, magnitude, exponent);
  std::uint64_t kept;
  if (drop <= 0) {
    kept = magnitude.bits_from(0) << -drop;
  } else {
    kept = magnitude.bits_from(drop);
    const bool half = magnitude.bit(drop - 1);
    const bool more = magnitude.ones_below(drop - 1) != 0;
    if (half && (more || (kept & 1) != 0)) kept += 1;
  }
  int ulp = drop + exponent;  // kept is in units of 2^ulp
  const std::uint64_t implicit_one = std::uint64_t{1} << format.fraction_bits;
  if (kept == 2 * implicit_one) {
    kept = implicit_one;
    ulp += 1;
  }
  if (kept < implicit_one) return sign | static_cast<std::uint32_t>(kept);  // subnormal or zero
  const int field = ulp + format.fraction_bits + format.bias();
  if (field >= (1 << format.exponent_bits) - 1) return sign | format.infinity();
  return sign | static_cast<std::uint32_t>(field) << format.fraction_bits |
         static_cast<std::uint32_t>(kept - implicit_one);
}

// A number of a format taken apart: (-1)^negative * magnitude * 2^exponent.
struct Decoded {
  bool negative, nan, infinite;
  std::uint32_t magnitude;
  int exponent;
};
inline Decoded decode(const Format& format, std::uint32_t bits) {
  const std::uint32_t implicit_one = std::uint32_t{1} << format.fraction_bits;
  const std::uint32_t fraction = bits & (implicit_one - 1);
  const int field = static_cast<int>((bits & format.infinity()) >> format.fraction_bits);
  const bool top = (bits & format.infinity()) == format.infinity();
  Decoded result{};
  result.negative = (bits & format.sign()) != 0;
  result.nan = top && fraction != 0;
  result.infinite = top && fraction == 0;
  result.magnitude = field == 0 ? fraction : fraction | implicit_one;
  result.exponent = std::max(field, 1) - format.bias() - format.fraction_bits;
  return result;
}

// From one format to another, rounded once.
inline std::uint32_t convert(const Format& from, const Format& to, std::uint32_t bits) {
  const Decoded x = decode(from, bits);
  if (x.nan) return to.nan();
  if (x.infinite) return to.infinity() | (x.negative ? to.sign() : 0);
  BigUnsigned magnitude;
  magnitude.add(x.magnitude, 0);
  return round_to(to, x.negative, magnitude, x.exponent);
}

// x * y in float32, rounded once.
inline std::uint32_t multiply_f32(std::uint32_t x_bits, std::uint32_t y_bits) {
  const Decoded x = decode(format_f32, x_bits);
  const Decoded y = decode(format_f32, y_bits);
  if (x.nan || y.nan) return format_f32.nan();
  const bool negative = x.negative != y.negative;
  if (x.infinite || y.infinite) {
    const bool zero = (!x.infinite && x.magnitude == 0) || (!y.infinite && y.magnitude == 0);
    if (zero) return format_f32.nan();
    return format_f32.infinity() | (negative ? format_f32.sign() : 0);
  }
  BigUnsigned magnitude;
  magnitude.add(std::uint64_t{x.magnitude} * y.magnitude, 0);
  return round_to(format_f32, negative, magnitude, x.exponent + y.exponent);
}

// x + y in float32, rounded once.
inline std::uint32_t add_f32(std::uint32_t x_bits, std::uint32_t y_bits) {
  const Decoded x = decode(format_f32, x_bits);
  const Decoded y = decode(format_f32, y_bits);
  if (x.nan || y.nan) return format_f32.nan();
  if (x.infinite && y.infinite) return x.negative == y.negative ? x_bits : format_f32.nan();
  if (x.infinite) return x_bits;
  if (y.infinite) return y_bits;
  if (x.magnitude == 0 && y.magnitude == 0) return x_bits & y_bits;  // -0 only from -0 + -0
  constexpr int unit = -149;
  ExactSum sum;
  sum.add(x.negative ? -std::int64_t{x.magnitude} : std::int64_t{x.magnitude}, x.exponent - unit);
  sum.add(y.negative ? -std::int64_t{y.magnitude} : std::int64_t{y.magnitude}, y.exponent - unit);
  return round_to(format_f32, sum.is_negative(), sum.magnitude(), unit);  // x + -x is +0
}

// ------------------------------------------------------------------------------ operands

// Codes (rows, k/2 bytes, low nibble = even k) and scales (rows, k/32) without any padding.
struct HostMatrix {
  std::int64_t rows = 0, k = 0;
  std::vector<std::uint8_t> codes, scales;

  HostMatrix() = default;
  HostMatrix(std::int64_t rows_, std::int64_t k_, std::uint8_t scale = 127)
      : rows(rows_), k(k_), codes(rows_ * k_ / 2, 0), scales(rows_ * (k_ / 32), scale) {}

  int code(std::int64_t row, std::int64_t col) const {
    return codes[row * (k / 2) + col / 2] >> (col % 2 == 0 ? 0 : 4) & 15;
  }
  void set_code(std::int64_t row, std::int64_t col, int code) {
    std::uint8_t& byte = codes[row * (k / 2) + col / 2];
    const int shift = col % 2 == 0 ? 0 : 4;
    byte = static_cast<std::uint8_t>((byte & ~(15 << shift)) | code << shift);
  }
  std::uint8_t& scale(std::int64_t row, std::int64_t block) {
    return scales[row * (k / 32) + block];
  }
  std::uint8_t scale(std::int64_t row, std::int64_t block) const {
    return scales[row * (k / 32) + block];
  }
};

// The value of a code in halves.
inline int code_in_halves(int code) {
  constexpr int magnitudes[8] = {0, 1, 2, 3, 4, 6, 8, 12};
  return (code & 8) != 0 ? -magnitudes[code & 7] : magnitudes[code & 7];
}
// The code of a number of halves that has one.
inline int halves_to_code(int halves) {
  for (int code = 0; code < 16; ++code) {
    if (code_in_halves(code) == halves) return code;
  }
  throw std::logic_error("no code has this value");
}

// A row's facts as the certificates see them, from their definitions.
struct RowFacts {
  bool has_nan = false, has_nonzero = false;
  int lo = 0, hi = 0;
  BigUnsigned n;
};
inline RowFacts row_facts(const HostMatrix& x, std::int64_t row) {
  RowFacts facts;
  std::vector<std::int64_t> squares(x.k / 32, 0);
  for (std::int64_t block = 0; block < x.k / 32; ++block) {
    const int scale = x.scale(row, block);
    if (scale == 255) {
      facts.has_nan = true;
      continue;
    }
    for (int i = 0; i < 32; ++i) {
      const int m = code_in_halves(x.code(row, 32 * block + i));
      squares[block] += m * m;
    }
    if (squares[block] == 0) continue;
    facts.lo = facts.has_nonzero ? std::min(facts.lo, scale) : scale;
    facts.hi = facts.has_nonzero ? std::max(facts.hi, scale) : scale;
    facts.has_nonzero = true;
  }
  for (std::int64_t block = 0; block < x.k / 32; ++block) {
    if (squares[block] != 0) {
      facts.n.add(static_cast<std::uint64_t>(squares[block]), 2 * (x.scale(row, block) - facts.lo));
    }
  }
  return facts;
}

// How many outputs the definitions of the tiers let into each.
struct ExpectedTiers {
  std::uint64_t none = 0;              // NaN by a scale of 255
  std::uint64_t aligned_at_most = 0;   // n_i * n_j < 2^62
  std::uint64_t window_certified = 0;  // of all outputs that need a sum
  std::uint64_t outputs = 0;
};
inline ExpectedTiers expected_tiers(const HostMatrix& a, const HostMatrix& b) {
  std::vector<RowFacts> fa, fb;
  for (std::int64_t i = 0; i < a.rows; ++i) fa.push_back(row_facts(a, i));
  for (std::int64_t j = 0; j < b.rows; ++j) fb.push_back(row_facts(b, j));
  int log_terms = 0;  // ceil(log2(144 * K))
  while ((std::int64_t{1} << log_terms) < 144 * a.k) ++log_terms;
  ExpectedTiers expected;
  for (const RowFacts& x : fa) {
    for (const RowFacts& y : fb) {
      expected.outputs += 1;
      if (x.has_nan || y.has_nan) {
        expected.none += 1;
        continue;
      }
      if ((x.hi - x.lo) + (y.hi - y.lo) + log_terms <= 63) expected.window_certified += 1;
      if (x.n.is_zero() || y.n.is_zero()) {
        expected.aligned_at_most += 1;
      } else if (x.n.bit_length() <= 62 && y.n.bit_length() <= 62) {
        // x.n * y.n < 2^62, without a product: y.n <= (2^62 - 1) / x.n.
        const std::uint64_t largest = ((std::uint64_t{1} << 62) - 1) / x.n.bits_from(0);
        if (y.n.bits_from(0) <= largest) expected.aligned_at_most += 1;
      }
    }
  }
  return expected;
}

// ------------------------------------------------------------------------------ the product

// What kinds of outputs went through the oracle.
struct Tally {
  std::uint64_t outputs = 0;
  std::uint64_t ties = 0;        // exactly between two neighbours
  std::uint64_t near_ties = 0;   // one unit of the sum's last place from a tie, at most 1/32 ulp
  std::uint64_t subnormal = 0;   // result subnormal, not zero
  std::uint64_t overflow = 0;    // rounded to infinity
  std::uint64_t just_below = 0;  // the largest finite number
  std::uint64_t cancelled = 0;   // nonzero terms, sum zero
  std::uint64_t underflow = 0;   // sum not zero, result zero
  std::uint64_t nan = 0;

  Tally& operator+=(const Tally& other) {
    outputs += other.outputs;
    ties += other.ties;
    near_ties += other.near_ties;
    subnormal += other.subnormal;
    overflow += other.overflow;
    just_below += other.just_below;
    cancelled += other.cancelled;
    underflow += other.underflow;
    nan += other.nan;
    return *this;
  }
  std::string text() const {
    return std::to_string(outputs) + " outputs, " + std::to_string(ties) + " ties, " +
           std::to_string(near_ties) + " next to ties, " + std::to_string(subnormal) +
           " subnormal, " + std::to_string(overflow) + " overflowing, " +
           std::to_string(just_below) + " at the largest finite number, " +
           std::to_string(cancelled) + " cancelling to zero, " + std::to_string(underflow) +
           " rounding to zero, " + std::to_string(nan) + " NaN";
  }
};

// Products of halves are quarters, and a scale s is 2^(s - 127).
inline constexpr int product_exponent = -256;

// Operands unpacked: signed halves, for the oracle's inner loop.
class ReferenceProduct {
 public:
  ReferenceProduct(const HostMatrix& a, const HostMatrix& b)
      : a_(a), b_(b), a_halves_(unpack(a)), b_halves_(unpack(b)) {
    if (a.k != b.k || a.k % 32 != 0) throw std::logic_error("ReferenceProduct: extents");
  }
  // The sum of output (i, j) in units of 2^product_exponent; false where a scale makes it a NaN.
  bool sum(std::int64_t i, std::int64_t j, ExactSum& result) const {
    const std::int64_t blocks = a_.k / 32;
    const std::int16_t* x = a_halves_.data() + i * a_.k;
    const std::int16_t* y = b_halves_.data() + j * b_.k;
    for (std::int64_t block = 0; block < blocks; ++block, x += 32, y += 32) {
      const int scale_a = a_.scale(i, block);
      const int scale_b = b_.scale(j, block);
      if (scale_a == 255 || scale_b == 255) return false;
      int dot = 0;
      for (int k = 0; k < 32; ++k) dot += x[k] * y[k];
      result.add(dot, scale_a + scale_b);
    }
    return true;
  }
  // P[i,j], the bits of a float32.
  std::uint32_t operator()(std::int64_t i, std::int64_t j, Tally* tally = nullptr) const {
    ExactSum exact;
    const bool is_number = sum(i, j, exact);
    const BigUnsigned magnitude = exact.magnitude();
    const std::uint32_t bits =
        is_number ? round_to(format_f32, exact.is_negative(), magnitude, product_exponent)
                  : format_f32.nan();
    if (tally != nullptr) classify(is_number, exact, magnitude, bits, *tally);
    return bits;
  }
  // All of P (rows of a, rows of b), row-major.
  std::vector<std::uint32_t> all(Tally* tally = nullptr) const {
    std::vector<std::uint32_t> result(a_.rows * b_.rows);
    const bool large = a_.rows * b_.rows * (a_.k + 256) > 2'000'000;
    const int workers =
        large ? static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 16u)) : 1;
    std::vector<Tally> tallies(workers);
    const auto work = [&](int worker) {
      for (std::int64_t i = worker; i < a_.rows; i += workers) {
        for (std::int64_t j = 0; j < b_.rows; ++j) {
          result[i * b_.rows + j] = (*this)(i, j, tally == nullptr ? nullptr : &tallies[worker]);
        }
      }
    };
    std::vector<std::thread> threads;
    for (int worker = 1; worker < workers; ++worker) threads.emplace_back(work, worker);
    work(0);
    for (std::thread& thread : threads) thread.join();
    for (const Tally& part : tallies) {
      if (tally != nullptr) *tally += part;
    }
    return result;
  }

 private:
  static std::vector<std::int16_t> unpack(const HostMatrix& x) {
    std::vector<std::int16_t> halves(x.rows * x.k);
    for (std::int64_t row = 0; row < x.rows; ++row) {
      for (std::int64_t col = 0; col < x.k; ++col) {
        halves[row * x.k + col] = static_cast<std::int16_t>(code_in_halves(x.code(row, col)));
      }
    }
    return halves;
  }
  static void classify(bool is_number, const ExactSum& exact, const BigUnsigned& magnitude,
                       std::uint32_t bits, Tally& tally) {
    tally.outputs += 1;
    if (!is_number) {
      tally.nan += 1;
      return;
    }
    if (magnitude.is_zero()) {
      if (exact.has_terms()) tally.cancelled += 1;
      return;
    }
    const std::uint32_t positive = bits & ~format_f32.sign();
    if (positive == 0) tally.underflow += 1;
    if (positive > 0 && positive < 0x00800000) tally.subnormal += 1;
    if (positive == format_f32.infinity()) tally.overflow += 1;
    if (positive == format_f32.infinity() - 1) tally.just_below += 1;
    const int drop = dropped_bits(format_f32, magnitude, product_exponent);
    if (drop < 1) return;
    const int ones = magnitude.ones_below(drop - 1);
    const int last = magnitude.trailing_zeros();
    if (magnitude.bit(drop - 1)) {
      if (ones == 0) tally.ties += 1;
      if (ones == 1 && last <= drop - 6) tally.near_ties += 1;
    } else if (last <= drop - 6 && ones == drop - 1 - last) {
      tally.near_ties += 1;
    }
  }

  const HostMatrix& a_;
  const HostMatrix& b_;
  std::vector<std::int16_t> a_halves_, b_halves_;
};

// ------------------------------------------------------------------------------ the epilogue

// Everything as bits: alpha, beta, bias and t are float32, C and D of the output's format.
struct ReferenceEpilogue {
  std::uint32_t alpha = 0x3F800000, beta = 0;
  std::vector<std::uint32_t> bias;  // empty: none
};

inline std::uint32_t reference_epilogue(const ReferenceEpilogue& epilogue, const Format& output,
                                        std::uint32_t product, std::uint32_t c, std::int64_t j) {
  const std::uint32_t no_sign = ~format_f32.sign();
  std::uint32_t t = 0;
  if ((epilogue.alpha & no_sign) != 0) t = multiply_f32(epilogue.alpha, product);
  if ((epilogue.beta & no_sign) != 0) {
    t = add_f32(t, multiply_f32(epilogue.beta, convert(output, format_f32, c)));
  }
  if (!epilogue.bias.empty()) t = add_f32(t, epilogue.bias[j]);
  return convert(format_f32, output, t);
}

}  // namespace KokkosMXTest

#endif
