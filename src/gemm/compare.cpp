// SPDX-License-Identifier: Apache-2.0
#include <KokkosMX/Compare.hpp>

#include "../atoms/gemm/portable.hpp"
#include "../check.hpp"
#include "../instantiate.hpp"
#include "../quantize/quantize.hpp"
#include "exact_sum.hpp"

#include <Kokkos_Core.hpp>

#include <cstddef>
#include <cstdint>
#include <string>

namespace KokkosMX::Impl {

namespace {

constexpr std::int64_t columns_each = 64;

/// 2^exponent, for the exponents of normal doubles.
KOKKOS_INLINE_FUNCTION double power_of_two(int exponent) {
  return Kokkos::bit_cast<double>(static_cast<std::uint64_t>(exponent + 1023) << 52);
}

/// The value of finite float32 bits. No float is touched, so subnormals stay what they are.
KOKKOS_INLINE_FUNCTION double value_of(std::uint32_t x) {
  const Unpacked u = unpack_f32(x & ~f32_sign);
  const double magnitude = static_cast<double>(u.magnitude) * power_of_two(u.exponent);
  return (x & f32_sign) != 0 ? -magnitude : magnitude;
}

/// RN_f32 of a double that is a normal number or zero, as bits.
KOKKOS_INLINE_FUNCTION std::uint32_t round_double(double x) {
  const auto bits = Kokkos::bit_cast<std::uint64_t>(x);
  const int biased = static_cast<int>((bits >> 52) & 0x7FF);
  if (biased == 0) return 0;
  const std::uint64_t fraction = bits & ((std::uint64_t{1} << 52) - 1);
  return round_to_f32((bits >> 63) != 0, fraction | std::uint64_t{1} << 52, false, biased - 1075);
}

/// Output bits in an element type, widened to 32 so that float32, bf16 and f16 compare alike.
KOKKOS_INLINE_FUNCTION std::uint32_t converted(Element element, std::uint32_t f32) {
  switch (element) {
    case Element::f32:
      return F32Format::from_f32(f32);
    case Element::bf16:
      return BF16Format::to_f32(BF16Format::from_f32(f32));
    default:
      return F16Format::to_f32(F16Format::from_f32(f32));
  }
}

/// An integer that orders numbers as their values do; both zeros are 0.
KOKKOS_INLINE_FUNCTION std::int64_t order_of(std::uint32_t x) {
  const std::int64_t magnitude = x & ~f32_sign;
  return (x & f32_sign) != 0 ? -magnitude : magnitude;
}

/// What a pass over a row and a column finds.
struct Terms {
  std::uint32_t absolute;   ///< RN_f32(sum |a_k b_k|)
  bool within_24_bits;      ///< sum |a_k b_k| <= 2^24 units
  bool all_negative_zeros;  ///< every a_k b_k is -0
};

struct JudgeOutputs {
  struct Scratch {};
  MatrixMap a, b;
  VerdictsRef out;
  Element element;
  const void* c;
  std::int64_t c_batch, c_row, c_col;  // strides in elements

  std::int64_t chunks() const { return (out.cols + columns_each - 1) / columns_each; }
  std::int64_t items() const { return out.batch * out.rows * chunks(); }

  template <class Group>
  KOKKOS_FUNCTION void operator()(const Group& group, Scratch&, std::int64_t item) const {
    const std::int64_t chunks_of_row = (out.cols + columns_each - 1) / columns_each;
    const Divided in_row = divided(group, item, chunks_of_row);
    const Divided in_batch = divided(group, in_row.quotient, out.rows);
    const std::int64_t first = in_row.remainder * columns_each;
    const std::int64_t batch = in_batch.quotient, row = in_batch.remainder;
    const std::int64_t count = out.cols - first < columns_each ? out.cols - first : columns_each;
    const RowSummary summary = *a.summaries.at(batch, row);
    for_each(group, count, [&](std::int64_t i) { judge(batch, row, first + i, summary); });
  }

  KOKKOS_FUNCTION void judge(std::int64_t batch, std::int64_t i, std::int64_t j,
                             const RowSummary& row) const {
    OutputVerdict& verdict =
        out.data[batch * out.batch_stride + i * out.row_stride + j * out.col_stride];
    const RowSummary col = *b.summaries.at(batch, j);
    const auto exact = load<std::uint32_t>(&verdict.exact);
    const std::uint32_t given = load_as_f32(element, c, batch * c_batch + i * c_row + j * c_col);
    const std::uint32_t expected = converted(element, exact);

    const bool zeros = row.n == 0 || col.n == 0;
    const bool in_range = row.lo + col.lo >= 130 && row.lo + col.lo <= 359;
    const bool nan = row.has_nan != 0 || col.has_nan != 0;
    verdict.bound = 0;
    verdict.certified = !nan && (zeros || (in_range && product_below(row.n, col.n, 48)));
    verdict.reserved[0] = verdict.reserved[1] = 0;
    if (nan) {
      verdict.verdict = is_nan_f32(given) ? Verdict::equal : Verdict::nan_differs;
      return;
    }
    if (given == expected) {
      verdict.verdict = Verdict::equal;
      return;
    }
    const bool is_nan = is_nan_f32(given);
    const bool signs_alone = given == f32_sign && exact == 0;
    if (verdict.certified && !signs_alone) {
      verdict.verdict = is_nan ? Verdict::nan_differs : Verdict::certified_differs;
      return;
    }
    const Terms terms = terms_of(batch, i, j, row, col);
    if (signs_alone && terms.all_negative_zeros) {
      verdict.verdict = Verdict::zero_sign;
      return;
    }
    verdict.certified = zeros || (in_range && terms.within_24_bits);
    verdict.verdict = is_nan              ? Verdict::nan_differs
                      : verdict.certified ? Verdict::certified_differs
                                          : Verdict::beyond_bound;
    if (verdict.certified) return;

    // Doubles carry the bound: 53 bits against the 24 of what is bounded.
    const double k = static_cast<double>(block_size * a.blocks);
    const double unit = k * power_of_two(-24);
    const double underflow = 2 * k * power_of_two(-126);
    const double gamma = unit < 1 ? unit / (1 - unit) : power_of_two(200);
    const double sum = terms.absolute == f32_inf
                           ? power_of_two(128)
                           : value_of(terms.absolute) * (1 + power_of_two(-23)) + underflow;
    if (sum * (1 + gamma) >= power_of_two(127) * (2 - power_of_two(-23))) {
      verdict.bound = Kokkos::bit_cast<float>(std::uint32_t{f32_inf});
      verdict.verdict = Verdict::within_bound;
      return;
    }
    const double bound = gamma * sum + underflow;
    // Rounded up; the bits are a positive float's, and finite.
    verdict.bound = Kokkos::bit_cast<float>(round_double(bound) + 1);
    if (is_nan) return;
    const double product = value_of(exact);
    const double half_ulp =
        (product < 0 ? -product : product) * power_of_two(-24) + power_of_two(-150);
    const double reach = bound + half_ulp;
    const std::int64_t least = order_of(converted(element, round_double(product - reach)));
    const std::int64_t most = order_of(converted(element, round_double(product + reach)));
    const std::int64_t at = order_of(given);
    if (at >= least && at <= most) verdict.verdict = Verdict::within_bound;
  }

  KOKKOS_FUNCTION Terms terms_of(std::int64_t batch, std::int64_t i, std::int64_t j,
                                 const RowSummary& row, const RowSummary& col) const {
    constexpr std::uint64_t limit = std::uint64_t{1} << 24;
    WideSum sum;
    std::uint64_t units = 0;
    bool negative_zeros = true;
    int terms = 0;
    for (std::int64_t k = 0; k < a.blocks; ++k) {
      std::uint8_t local_a[block_bytes], local_b[block_bytes];
      std::uint8_t magnitude_a[block_bytes], magnitude_b[block_bytes];
      const std::uint8_t* codes_a = a.codes.load(batch, i, k, local_a);
      const std::uint8_t* codes_b = b.codes.load(batch, j, k, local_b);
      for (int byte = 0; byte < block_bytes; ++byte) {
        magnitude_a[byte] = codes_a[byte] & 0x77;
        magnitude_b[byte] = codes_b[byte] & 0x77;
        negative_zeros = negative_zeros && ((codes_a[byte] ^ codes_b[byte]) & 0x88) == 0x88;
      }
      const std::int32_t term = PortableGemmAtom::block_product(magnitude_a, magnitude_b);
      if (term == 0) continue;
      negative_zeros = false;
      const int shift = (*a.scales.at(batch, i, k) - row.lo) + (*b.scales.at(batch, j, k) - col.lo);
      sum.add(term, shift);
      units = shift > 24 || units > limit ? limit + 1
                                          : units + (static_cast<std::uint64_t>(term) << shift);
      if (++terms == WideSum::terms_between_carries) {
        sum.carry();
        terms = 0;
      }
    }
    return {sum.round(unit_exponent(row.lo, col.lo)), units <= limit, negative_zeros};
  }
};

/// The operands with a place for the summaries that they lack, at the workspace's end.
struct Lent {
  MatrixRef a, b;
  std::size_t gemm_bytes, bytes;
};
template <class ExecSpace>
Lent lend(const ExecSpace& exec, void* workspace, const MatrixRef& a, const MatrixRef& b,
          const DenseRef& c) {
  Lent lent{a, b, 0, 0};
  // Without memory it only counts, at an address that is none but no null.
  const auto begin = workspace == nullptr ? std::uintptr_t{alignof(RowSummary)}
                                          : reinterpret_cast<std::uintptr_t>(workspace);
  const std::uintptr_t aligned =
      (begin + alignof(RowSummary) - 1) / alignof(RowSummary) * alignof(RowSummary);
  std::uintptr_t next = aligned;
  for (MatrixRef* matrix : {&lent.a, &lent.b}) {
    if (matrix->summaries.present) continue;
    const std::int64_t batch = matrix->codes.batch, rows = matrix->rows;
    matrix->summaries = {reinterpret_cast<RowSummary*>(next), true, batch, rows, rows, 1};
    next += static_cast<std::uintptr_t>(batch * rows) * sizeof(RowSummary);
  }
  lent.gemm_bytes =
      gemm_workspace_size(exec, OperandRef{false, lent.a, {}}, OperandRef{false, lent.b, {}}, c);
  const std::size_t room = next == aligned ? 0 : next - aligned + alignof(RowSummary);
  lent.bytes = lent.gemm_bytes + room;
  return lent;
}

}  // namespace

template <class ExecSpace>
std::size_t compare_workspace_size(const ExecSpace& exec, const MatrixRef& a, const MatrixRef& b,
                                   const DenseRef& c) {
  // Where extents disagree this throws, before they are used.
  gemm_workspace_size(exec, OperandRef{false, a, {}}, OperandRef{false, b, {}}, c);
  return lend(exec, nullptr, a, b, c).bytes;
}

template <class ExecSpace>
void compare(const ExecSpace& exec, void* workspace, std::size_t workspace_size, const MatrixRef& a,
             const MatrixRef& b, const DenseRef& c, const VerdictsRef& verdicts) {
  Check check("compare");
  check.tell("A", a);
  check.tell("B", b);
  check.tell("C", c);
  check.tell("rows of verdicts", verdicts.rows);
  check.tell("columns of verdicts", verdicts.cols);
  check.tell("batches of verdicts", verdicts.batch);
  check.tell("bytes of workspace", static_cast<std::int64_t>(workspace_size));
  const std::size_t needed = compare_workspace_size(exec, a, b, c);
  const bool empty = c.batch == 0 || c.rows == 0 || c.cols == 0;
  check.require(c.data != nullptr || empty, "C to be an allocated View");
  check.require(verdicts.batch == c.batch && verdicts.rows == c.rows && verdicts.cols == c.cols,
                "verdicts to have C's extents");
  check.require(verdicts.data != nullptr || empty, "verdicts to be an allocated View");
  check.require(workspace_size >= needed && (workspace != nullptr || needed == 0),
                [&] { return "a workspace of at least " + std::to_string(needed) + " bytes"; });
  Regions outputs, inputs;
  inputs.add("A", a);
  inputs.add("B", b);
  inputs.add("C", c);
  constexpr std::int64_t size = sizeof(OutputVerdict);
  outputs.add({{"verdicts"},
               verdicts.data,
               size,
               {{{verdicts.batch, verdicts.batch_stride * size},
                 {verdicts.rows, verdicts.row_stride * size},
                 {verdicts.cols, verdicts.col_stride * size}}}});
  if (needed > 0) {
    outputs.add("the workspace", workspace, static_cast<std::int64_t>(needed));
  }
  check.disjoint(outputs, inputs);
  if (empty) return;

  const Lent lent = lend(exec, workspace, a, b, c);
  if (!a.summaries.present) launch_summarize(exec, check.matrix("A", lent.a));
  if (!b.summaries.present) launch_summarize(exec, check.matrix("B", lent.b));
  // The exact product, written into the verdicts: a View of float with their strides.
  constexpr std::int64_t floats = sizeof(OutputVerdict) / sizeof(float);
  const DenseRef exact{verdicts.data,
                       Element::f32,
                       verdicts.batch,
                       verdicts.rows,
                       verdicts.cols,
                       verdicts.batch_stride * floats,
                       verdicts.row_stride * floats,
                       verdicts.col_stride * floats};
  auto* gemm_memory = static_cast<unsigned char*>(workspace) + (needed - lent.gemm_bytes);
  gemm(exec, lent.gemm_bytes == 0 ? nullptr : gemm_memory, lent.gemm_bytes,
       OperandRef{false, lent.a, {}}, OperandRef{false, lent.b, {}}, exact, GemmSettings{},
       nullptr);

  const JudgeOutputs judge{check.matrix("A", lent.a),
                           check.matrix("B", lent.b),
                           verdicts,
                           c.element,
                           c.data,
                           c.batch_stride,
                           c.row_stride,
                           c.col_stride};
  static const std::string label = "KokkosMX::compare";
  launch(label, exec, judge.items(), threads<columns_each>, judge);
}

#define KOKKOSMX_INSTANTIATE(Space)                                                                \
  template KOKKOSMX_EXPORT std::size_t compare_workspace_size<Space>(                              \
      const Space&, const MatrixRef&, const MatrixRef&, const DenseRef&);                          \
  template KOKKOSMX_EXPORT void compare<Space>(const Space&, void*, std::size_t, const MatrixRef&, \
                                               const MatrixRef&, const DenseRef&,                  \
                                               const VerdictsRef&);
KOKKOSMX_FOR_EACH_EXECUTION_SPACE(KOKKOSMX_INSTANTIATE)
#undef KOKKOSMX_INSTANTIATE

}  // namespace KokkosMX::Impl
