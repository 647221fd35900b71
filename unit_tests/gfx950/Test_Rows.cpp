// SPDX-License-Identifier: Apache-2.0

// Everything that walks rows, on gfx950's machine code and on the host: quantize, dequantize,
// summaries, shuffles and prepared layouts, with their inverses.

#include <string>
#include <type_traits>
#include <vector>

#include "Both.hpp"

namespace KokkosMXTest {
namespace {

using KokkosMX::BFloat16;
using KokkosMX::Float16;
using KokkosMX::NonFinite;
using KokkosMX::QuantizeRule;
using KokkosMX::Rounding;
using KokkosMX::RowMajor;
using KokkosMX::ScaleMode;
using KokkosMX::Tile16x128;
using KokkosMX::Tile16x16;
using KokkosMX::Tile16x4;
using KokkosMX::Tile32x8;

template <class T>
using BitsOf = typename OutputType<T>::bits;
template <class T>
inline constexpr int mantissa_bits = std::is_same_v<T, float>      ? 23
                                     : std::is_same_v<T, BFloat16> ? 7
                                                                   : 10;

/// Blocks of every kind: any bits at all, exponents near one another, zeros, subnormals, one NaN or
/// infinity, ties.
template <class T>
std::vector<BitsOf<T>> all_kinds(std::int64_t rows, std::int64_t k, std::uint64_t seed) {
  constexpr int mantissa = mantissa_bits<T>, width = 8 * sizeof(T);
  constexpr std::uint64_t sign = std::uint64_t{1} << (width - 1),
                          one = std::uint64_t{1} << mantissa;
  constexpr std::uint64_t exponents = sign / one;
  Stream stream(seed);
  std::vector<BitsOf<T>> x;
  for (std::int64_t block = 0; block < rows * k / 32; ++block) {
    const std::uint64_t near = stream.below(exponents - 8), special = stream.below(32);
    for (std::uint64_t i = 0; i < 32; ++i) {
      const std::uint64_t random = stream.next();
      std::uint64_t bits = random;
      switch (block % 6) {
        case 1:
          bits = (random & (sign | (one - 1))) + (near + random / sign / 2 % 6) * one;
          break;
        case 2:
          bits = random & sign;
          break;
        case 3:
          bits = random & (sign | (one - 1));
          break;
        case 4:
          bits = (random & (sign | (one - 1))) + near * one;
          if (i == special) {
            bits = (random & sign) + (exponents - 1) * one + (block % 12 == 4 ? 0 : random % one);
          }
          break;
        case 5:  // few leading bits
          bits = (random & (sign | 3 * (one / 4))) + (near + random / sign / 2 % 5) * one;
          break;
        default:
          break;
      }
      x.push_back(static_cast<BitsOf<T>>(bits));
    }
  }
  return x;
}

std::vector<QuantizeRule> every_rule() {
  std::vector<QuantizeRule> rules{KokkosMX::rules::reference};
  for (const auto mode : {ScaleMode::floor, ScaleMode::ceil, ScaleMode::rceil, ScaleMode::even}) {
    for (const auto rounding : {Rounding::nearest_even, Rounding::ties_up}) {
      rules.emplace_back(mode, rounding, NonFinite::ocp);
    }
  }
  return rules;
}

template <class CodesLayout, class ScalesLayout, class T>
void quantize_on_both(const void* x, std::int64_t batch, std::int64_t rows, std::int64_t k,
                      const QuantizeRule& rule, const Outputs& golden = {}) {
  same_on_both(
      [&](const auto& exec) {
        using Exec = std::remove_cvref_t<decltype(exec)>;
        const auto dense = filled<Exec, T>(batch, rows, k, x);
        const auto q = fresh_matrix<Exec, CodesLayout, ScalesLayout>(batch, rows, k);
        KokkosMX::quantize(exec, dense, q.matrix(), rule);
        exec.fence();
        Outputs outputs;
        add_matrix(outputs, "quantize", q);
        return outputs;
      },
      golden);
}

template <class T>
class Quantize : public testing::Test {};
TYPED_TEST_SUITE(Quantize, OutputTypes, OutputTypeNames);

TYPED_TEST(Quantize, EveryRule) {
  // 3 groups of rows, the last one with fewer.
  const std::int64_t rows = 35, k = 224;
  const auto x = all_kinds<TypeParam>(rows, k, 1);
  for (const QuantizeRule& rule : every_rule()) {
    quantize_on_both<RowMajor, RowMajor, TypeParam>(x.data(), 1, rows, k, rule);
  }
}

TYPED_TEST(Quantize, EveryLayout) {
  const auto x = all_kinds<TypeParam>(2 * 48, 320, 2);
  const QuantizeRule& rule = KokkosMX::rules::ocp_floor;
  quantize_on_both<Tile16x16, Tile32x8, TypeParam>(x.data(), 2, 48, 320, rule);
  quantize_on_both<Tile16x128, Tile16x4, TypeParam>(x.data(), 2, 37, 288, rule);
  quantize_on_both<RowMajor, Tile32x8, TypeParam>(x.data(), 1, 5, 96, rule);
  // Several blocks a thread, and several of padding.
  quantize_on_both<RowMajor, Tile32x8, TypeParam>(x.data(), 1, 1, 16416, rule);
}

/// Rows that lie anywhere, to codes and scales that do, and no summaries.
TYPED_TEST(Quantize, AnyPlacement) {
  const std::int64_t rows = 9, k = 96;
  const auto x = all_kinds<TypeParam>(rows, k + 1, 3);
  same_on_both([&](const auto& exec) {
    using Exec = std::remove_cvref_t<decltype(exec)>;
    const auto dense = filled<Exec, TypeParam>(1, rows, k + 1, x.data());
    const auto codes = fresh<Exec, std::uint8_t>(1, rows, k / 2 + 3);
    const auto scales = fresh<Exec, std::uint8_t>(1, rows, k / 32 + 1);
    const auto inner = [](const auto& view, std::size_t first, std::size_t count) {
      return Kokkos::subview(view, 0, Kokkos::ALL, std::make_pair(first, first + count));
    };
    const KokkosMX::Matrix q(KokkosMX::Codes(inner(codes, 1, k / 2)),
                             KokkosMX::Scales(inner(scales, 1, k / 32)));
    KokkosMX::quantize(exec, inner(dense, 1, k), q, KokkosMX::rules::quark_even);
    exec.fence();
    return Outputs{output("codes", codes), output("scales", scales)};
  });
}

TEST(QuantizeGolden, Reference) {
  for (const std::string name : {"bell", "outliers", "wild", "ties", "special"}) {
    SCOPED_TRACE(name);
    const auto x = golden<std::uint16_t>("quantize_" + name + "_input");
    const std::string prefix = "quantize_" + name + "_seed_";
    quantize_on_both<RowMajor, RowMajor, BFloat16>(
        x.data.data(), 1, x.rows, x.cols, KokkosMX::rules::reference,
        {output("quantize: codes", golden<std::uint8_t>(prefix + "codes")),
         output("quantize: scales", golden<std::uint8_t>(prefix + "scales"))});
  }
}
TEST(QuantizeGolden, NearestEven) {
  for (const std::string name : {"bell", "outliers", "ties"}) {
    SCOPED_TRACE(name);
    const auto x = golden<std::uint16_t>("quantize_" + name + "_input");
    const std::string prefix = "quantize_" + name;
    quantize_on_both<RowMajor, RowMajor, BFloat16>(
        x.data.data(), 1, x.rows, x.cols, KokkosMX::rules::quark_even,
        {output("quantize: codes", golden<std::uint8_t>(prefix + "_rne_codes")),
         output("quantize: scales", golden<std::uint8_t>(prefix + "_seed_scales"))});
  }
}

/// Every code with every scale.
HostMatrix every_pair() {
  HostMatrix x(16, 512);
  for (std::int64_t row = 0; row < x.rows; ++row) {
    for (std::int64_t col = 0; col < x.k; ++col) {
      x.set_code(row, col, static_cast<int>((col + col / 16) % 16));
    }
    for (std::int64_t block = 0; block < 16; ++block) {
      x.scale(row, block) = static_cast<std::uint8_t>(16 * row + block);
    }
  }
  return x;
}

template <class T>
class Dequantize : public testing::Test {};
TYPED_TEST_SUITE(Dequantize, OutputTypes, OutputTypeNames);

template <class CodesLayout, class ScalesLayout, class T>
void dequantize_on_both(const std::vector<HostMatrix>& x) {
  same_on_both([&](const auto& exec) {
    using Exec = std::remove_cvref_t<decltype(exec)>;
    const auto q = to_storage<Exec, CodesLayout, ScalesLayout>(x);
    const auto dense = fresh<Exec, T>(static_cast<std::int64_t>(x.size()), x[0].rows, x[0].k);
    KokkosMX::dequantize(exec, q.matrix(), dense);
    exec.fence();
    return Outputs{output("dequantize", dense)};
  });
}
TYPED_TEST(Dequantize, EveryPairInEveryLayout) {
  dequantize_on_both<RowMajor, RowMajor, TypeParam>({every_pair()});
  dequantize_on_both<Tile16x16, Tile32x8, TypeParam>({every_pair()});
  dequantize_on_both<Tile16x128, Tile16x4, TypeParam>({every_pair()});
  const HostMatrix ragged = random_matrix(21, 160, 4, 0, 255);
  dequantize_on_both<Tile16x128, Tile16x4, TypeParam>({ragged, ragged});
}
TEST(DequantizeGolden, Float32) {
  for (const std::string name : {"bell", "outliers", "wild", "ties"}) {
    SCOPED_TRACE(name);
    const std::string prefix = "quantize_" + name + "_seed_";
    const auto codes = golden<std::uint8_t>(prefix + "codes");
    HostMatrix x(codes.rows, 2 * codes.cols);
    x.codes = codes.data;
    x.scales = golden<std::uint8_t>(prefix + "scales").data;
    same_on_both(
        [&](const auto& exec) {
          using Exec = std::remove_cvref_t<decltype(exec)>;
          const auto q = to_storage<Exec, RowMajor, RowMajor>({x});
          const auto dense = fresh<Exec, float>(1, x.rows, x.k);
          KokkosMX::dequantize(exec, q.matrix(), dense);
          exec.fence();
          return Outputs{output("dequantize", dense)};
        },
        {output("dequantize", golden<std::uint32_t>(prefix + "dequantized"))});
  }
}

// ------------------------------------------------------------------------------ summaries

template <class CodesLayout, class ScalesLayout>
void summarize_on_both(const std::vector<HostMatrix>& x) {
  same_on_both([&](const auto& exec) {
    using Exec = std::remove_cvref_t<decltype(exec)>;
    const auto q = to_storage<Exec, CodesLayout, ScalesLayout>(x);
    const auto summaries =
        fresh<Exec, KokkosMX::RowSummary>(1, static_cast<std::int64_t>(x.size()), x[0].rows);
    KokkosMX::summarize(exec, q.matrix(), Kokkos::subview(summaries, 0, Kokkos::ALL, Kokkos::ALL));
    exec.fence();
    return Outputs{output("summarize", summaries)};
  });
}
TEST(Summaries, EveryLayout) {
  std::vector<HostMatrix> some;
  for (const Data data : {Data::full, Data::zeros, Data::nan}) {
    some.push_back(make_data(data, 32, 320, 5));
  }
  summarize_on_both<RowMajor, RowMajor>(some);
  summarize_on_both<Tile16x16, Tile32x8>(some);
  summarize_on_both<Tile16x128, Tile16x4>({make_data(Data::zeros, 19, 4128, 6)});
}

// ------------------------------------------------------------------------------ shuffles

/// Codes and scales, shuffled and back.
void shuffle_on_both(const std::vector<HostMatrix>& x, const Outputs& golden = {}) {
  same_on_both(
      [&](const auto& exec) {
        using Exec = std::remove_cvref_t<decltype(exec)>;
        const auto count = static_cast<std::int64_t>(x.size());
        const std::int64_t rows = x[0].rows, k = x[0].k;
        const auto plain = to_storage<Exec, RowMajor, RowMajor>(x);
        const auto back = fresh_matrix<Exec, RowMajor, RowMajor>(count, rows, k);
        const auto scales_there = fresh_matrix<Exec, RowMajor, Tile32x8>(count, rows, k);
        KokkosMX::shuffle_scale(exec, plain.matrix().scales(), scales_there.matrix().scales());
        KokkosMX::unshuffle_scale(exec, scales_there.matrix().scales(), back.matrix().scales());
        Outputs outputs;
        if (rows % 16 == 0 && k % 64 == 0) {
          const auto codes_there = fresh_matrix<Exec, Tile16x16, RowMajor>(count, rows, k);
          KokkosMX::shuffle_weight(exec, plain.matrix().codes(), codes_there.matrix().codes());
          KokkosMX::unshuffle_weight(exec, codes_there.matrix().codes(), back.matrix().codes());
          exec.fence();
          outputs.push_back(output("shuffle_weight", codes_there.codes()));
          outputs.push_back(output("unshuffle_weight", back.codes()));
        }
        exec.fence();
        outputs.push_back(output("shuffle_scale", scales_there.scales()));
        outputs.push_back(output("unshuffle_scale", back.scales()));
        return outputs;
      },
      golden);
}
TEST(Shuffle, Ragged) {
  shuffle_on_both({random_matrix(48, 448, 7, 0, 255), random_matrix(48, 448, 8, 0, 255)});
  shuffle_on_both({random_matrix(3, 96, 9, 0, 255)});
  for (const std::int64_t rows : {1, 2, 18, 31}) {
    for (const std::int64_t cols : {1, 2, 5, 7, 12}) {
      shuffle_on_both({random_matrix(rows, 32 * cols, 9, 0, 255)});
    }
  }
  shuffle_on_both({random_matrix(261, 416, 10, 0, 255)});
}
TEST(Shuffle, Golden) {
  {
    const auto plain = golden<std::uint8_t>("shuffle_weight_input");
    HostMatrix x(plain.rows, 2 * plain.cols);
    x.codes = plain.data;
    const auto there = golden<std::uint8_t>("shuffle_weight_16x16");
    shuffle_on_both({x}, {output("shuffle_weight", there), output("unshuffle_weight", plain)});
  }
  for (const std::string shape : {"256x16", "512x8", "40x12"}) {
    const auto plain = golden<std::uint8_t>("shuffle_scale_" + shape + "_input");
    HostMatrix x(plain.rows, 32 * plain.cols);
    x.scales = plain.data;
    const auto there = golden<std::uint8_t>("shuffle_scale_" + shape);
    shuffle_on_both({x}, {output("shuffle_scale", there), output("unshuffle_scale", plain)});
  }
}

// ------------------------------------------------------------------------------ prepare

template <class CodesLayout, class ScalesLayout>
void prepare_on_both(const std::vector<HostMatrix>& x, bool with_summaries) {
  same_on_both([&](const auto& exec) {
    using Exec = std::remove_cvref_t<decltype(exec)>;
    const auto count = static_cast<std::int64_t>(x.size());
    const auto from = to_storage<Exec, CodesLayout, ScalesLayout>(x);
    const auto there = fresh_matrix<Exec, Tile16x128, Tile16x4>(count, x[0].rows, x[0].k);
    const auto back = fresh_matrix<Exec, CodesLayout, ScalesLayout>(count, x[0].rows, x[0].k);
    using Matrix = decltype(from.matrix());
    const Matrix source =
        with_summaries ? from.matrix() : Matrix(from.matrix().codes(), from.matrix().scales());
    KokkosMX::prepare(exec, source, there.matrix());
    KokkosMX::unprepare(exec, there.matrix(), back.matrix());
    exec.fence();
    Outputs outputs;
    add_matrix(outputs, "prepare", there);
    add_matrix(outputs, "unprepare", back);
    return outputs;
  });
}
TEST(Prepare, FromEveryLayout) {
  const std::vector<HostMatrix> ragged{random_matrix(37, 352, 11, 0, 255),
                                       random_matrix(37, 352, 12, 0, 254)};
  const std::vector<HostMatrix> whole{random_matrix(48, 320, 13, 0, 255)};
  prepare_on_both<RowMajor, RowMajor>(ragged, true);
  prepare_on_both<RowMajor, RowMajor>(ragged, false);
  prepare_on_both<RowMajor, Tile32x8>(ragged, true);
  prepare_on_both<Tile16x16, Tile32x8>(whole, false);
  prepare_on_both<Tile16x128, Tile16x4>(ragged, true);
  prepare_on_both<RowMajor, Tile16x4>(ragged, true);
}

}  // namespace
}  // namespace KokkosMXTest
