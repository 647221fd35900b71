// SPDX-License-Identifier: Apache-2.0
#include <KokkosMX/Gemm.hpp>

#include "../atom_select.hpp"
#include "../check.hpp"
#include "../instantiate.hpp"
#include "../quantize/quantize.hpp"
#include "gemm_kernel.hpp"
#include "gemm_select.hpp"

#include <Kokkos_Core.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

namespace KokkosMX::Impl {

namespace {

constexpr std::size_t workspace_alignment = 64;

/// Hands out aligned pieces of the workspace; without memory it only counts.
class Pieces {
 public:
  explicit Pieces(std::uintptr_t begin) : begin_(begin), next_(begin) {}

  template <class T>
  T* take(std::int64_t count) {
    next_ = (next_ + workspace_alignment - 1) / workspace_alignment * workspace_alignment;
    auto* piece = reinterpret_cast<T*>(next_);
    next_ += static_cast<std::uintptr_t>(count) * sizeof(T);
    return piece;
  }
  std::size_t taken() const { return next_ - begin_; }

 private:
  std::uintptr_t begin_, next_;
};

/// Whether an operand needs anything of the workspace.
bool needs_workspace(const OperandRef& operand) {
  return operand.is_dense || !operand.matrix.summaries.present;
}

/// An operand, checked: where its codes, scales and summaries are or will be.
struct Prepared {
  MatrixMap matrix;
  DenseMap dense;  // where the operand is dense
};

/// Completes the maps of an operand with pieces of the workspace.
void place(const OperandRef& operand, Prepared& prepared, Pieces& pieces) {
  MatrixMap& matrix = prepared.matrix;
  if (operand.is_dense) {
    const std::int64_t row_bytes = matrix.blocks * block_bytes;
    matrix.codes = {pieces.take<std::uint8_t>(matrix.batch * matrix.rows * row_bytes),
                    matrix.rows * row_bytes,
                    16 * row_bytes,
                    row_bytes,
                    4 * block_bytes,
                    block_bytes,
                    1,
                    matrix.rows,
                    matrix.blocks};
    const std::int64_t ld = matrix.blocks;
    matrix.scales = {pieces.take<std::uint8_t>(matrix.batch * matrix.rows * ld),
                     matrix.rows * ld,
                     32 * ld,
                     16 * ld,
                     ld,
                     8,
                     4,
                     1,
                     matrix.rows,
                     ld};
    if (matrix.batch == 1) matrix.codes.batch = matrix.scales.batch = 0;
  }
  if (needs_workspace(operand)) {
    matrix.summaries = {pieces.take<RowSummary>(matrix.batch * matrix.rows),
                        matrix.batch == 1 ? 0 : matrix.rows, 1};
  }
}

/// A call's arguments after every check.
struct Call {
  Prepared a, b;
  std::int64_t batch, m, n, blocks;
  std::size_t workspace_bytes;
};

void add(Regions& regions, const char* name, const OperandRef& operand) {
  if (operand.is_dense) {
    regions.add(name, operand.dense);
  } else {
    regions.add(name, operand.matrix);
  }
}

Prepared checked(const Check& check, const char* name, const OperandRef& operand) {
  Prepared prepared{};
  if (operand.is_dense) {
    prepared.dense = check.dense_rows(name, operand.dense);
    prepared.matrix.batch = operand.dense.batch;
    prepared.matrix.rows = operand.dense.rows;
    prepared.matrix.blocks = operand.dense.cols / block_size;
  } else {
    prepared.matrix = check.matrix(name, operand.matrix);
  }
  return prepared;
}

void tell(Check& check, const char* name, const OperandRef& operand) {
  if (operand.is_dense) {
    check.tell(name, operand.dense);
  } else {
    check.tell(name, operand.matrix);
  }
}

/// Checks operands and C and counts the workspace; the pieces have no memory yet.
Call checked_call(Check& check, const OperandRef& a, const OperandRef& b, const DenseRef& c) {
  tell(check, "A", a);
  tell(check, "B", b);
  check.tell("C", c);
  Call call{};
  call.a = checked(check, "A", a);
  call.b = checked(check, "B", b);
  call.batch = c.batch;
  call.m = c.rows;
  call.n = c.cols;
  call.blocks = call.a.matrix.blocks;
  check.require(call.b.matrix.blocks == call.blocks, [&] {
    return "A (M, K) and B (N, K) to have the same K, have " +
           std::to_string(block_size * call.blocks) + " and " +
           std::to_string(block_size * call.b.matrix.blocks);
  });
  check.require(c.rows == call.a.matrix.rows && c.cols == call.b.matrix.rows, [&] {
    return "C to have (rows, cols) = (M, N) = (" + std::to_string(call.a.matrix.rows) + ", " +
           std::to_string(call.b.matrix.rows) + ")";
  });
  for (const Prepared* operand : {&call.a, &call.b}) {
    check.require(operand->matrix.batch == 1 || operand->matrix.batch == c.batch, [&] {
      return "the batch extents of A and B to be 1 or C's, " + std::to_string(c.batch);
    });
  }
  if (needs_workspace(a) || needs_workspace(b)) {
    Pieces pieces(0);
    place(a, call.a, pieces);
    place(b, call.b, pieces);
    call.workspace_bytes = pieces.taken() + workspace_alignment - 1;
  }
  return call;
}

template <class ExecSpace>
void prepare(const ExecSpace& exec, const OperandRef& operand, const Prepared& prepared,
             const QuantizeRule* rule) {
  if (operand.is_dense) {
    launch_quantize(exec, operand.dense.element, prepared.dense, prepared.matrix, *rule);
  } else if (!operand.matrix.summaries.present) {
    launch_summarize(exec, prepared.matrix);
  }
}

std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

}  // namespace

template <class ExecSpace>
std::size_t gemm_workspace_size(const ExecSpace&, const OperandRef& a, const OperandRef& b,
                                const DenseRef& c) {
  Check check("gemm_workspace_size");
  return checked_call(check, a, b, c).workspace_bytes;
}

template <class ExecSpace>
void gemm(const ExecSpace& exec, void* workspace, std::size_t workspace_bytes, const OperandRef& a,
          const OperandRef& b, const DenseRef& c, const GemmSettings& settings,
          const QuantizeRule* rule) {
  Check check(rule == nullptr ? "gemm" : "quantize_gemm");
  if (settings.has_bias) check.tell("extent of the bias", settings.bias_size);
  if (settings.has_counts) check.tell("extent of tier_counts", settings.counts_size);
  check.tell("bytes of workspace", static_cast<std::int64_t>(workspace_bytes));
  Call call = checked_call(check, a, b, c);
  const bool empty = call.batch == 0 || call.m == 0 || call.n == 0;
  check.require(c.data != nullptr || empty, "C to be an allocated View");
  check.require(!settings.has_bias || settings.bias_size == call.n,
                [&] { return "a bias of extent N = " + std::to_string(call.n); });
  check.require(!settings.has_bias || settings.bias != nullptr || call.n == 0,
                "the bias to be an allocated View");
  check.require(
      !settings.has_counts || (settings.counts_size == tier_count && settings.counts != nullptr),
      [&] {
        return "tier_counts to be an allocated View of extent " + std::to_string(tier_count);
      });
  check.require(
      workspace_bytes >= call.workspace_bytes &&
          (workspace != nullptr || call.workspace_bytes == 0),
      [&] { return "a workspace of at least " + std::to_string(call.workspace_bytes) + " bytes"; });

  Regions outputs, inputs;
  add(inputs, "A", a);
  add(inputs, "B", b);
  if (settings.has_bias) {
    inputs.add({{"the bias"},
                settings.bias,
                4,
                {{{1, 0}, {1, 0}, {settings.bias_size, settings.bias_stride * 4}}}});
  }
  outputs.add("C", c);
  if (call.workspace_bytes > 0) {
    outputs.add("the workspace", workspace, static_cast<std::int64_t>(call.workspace_bytes));
  }
  if (settings.has_counts) {
    outputs.add("tier_counts", settings.counts,
                tier_count * static_cast<std::int64_t>(sizeof(std::uint64_t)));
  }
  check.disjoint(outputs, inputs);
  if (empty) return;

  Pieces pieces(reinterpret_cast<std::uintptr_t>(workspace));
  place(a, call.a, pieces);
  place(b, call.b, pieces);
  GemmProblem problem{};
  problem.a = call.a.matrix;
  problem.b = call.b.matrix;
  problem.epilogue = {const_cast<void*>(c.data),
                      c.element,
                      c.batch_stride,
                      c.row_stride,
                      c.col_stride,
                      bits_of(settings.alpha),
                      bits_of(settings.beta),
                      settings.bias,
                      settings.bias_stride};
  problem.batch = call.batch;
  problem.m = call.m;
  problem.n = call.n;
  problem.blocks = call.blocks;
  problem.minimum_tier = settings.minimum_tier;
  problem.counts = settings.counts;
  if (!problem.epilogue.skips_product()) {
    prepare(exec, a, call.a, rule);
    prepare(exec, b, call.b, rule);
  }

  with_atoms<ExecSpace>([&](auto atoms) {
    using Atom = typename decltype(atoms)::Gemm;
    using Tile = typename GemmTileOf<ExecSpace>::type;
    const auto kernel = GemmKernel<Atom, Tile>::make(
        problem, gemm_config<Atom, Tile>(call.batch, call.m, call.n, concurrency_of(exec)));
    static const std::string label = "KokkosMX::gemm";
    launch(label, exec, kernel.tiles(), Tile::threads, kernel);
  });
}

#define KOKKOSMX_INSTANTIATE(Space)                                                              \
  template KOKKOSMX_EXPORT std::size_t gemm_workspace_size<Space>(                               \
      const Space&, const OperandRef&, const OperandRef&, const DenseRef&);                      \
  template KOKKOSMX_EXPORT void gemm<Space>(const Space&, void*, std::size_t, const OperandRef&, \
                                            const OperandRef&, const DenseRef&,                  \
                                            const GemmSettings&, const QuantizeRule*);
KOKKOSMX_FOR_EACH_EXECUTION_SPACE(KOKKOSMX_INSTANTIATE)
#undef KOKKOSMX_INSTANTIATE

}  // namespace KokkosMX::Impl

namespace KokkosMX {

template <class ExecSpace>
const char* gemm_atom(const ExecSpace&) {
  const char* name = nullptr;
  Impl::with_atoms<ExecSpace>([&](auto atoms) { name = decltype(atoms)::Gemm::name; });
  return name;
}

#define KOKKOSMX_INSTANTIATE(Space) \
  template KOKKOSMX_EXPORT const char* gemm_atom<Space>(const Space&);
KOKKOSMX_FOR_EACH_EXECUTION_SPACE(KOKKOSMX_INSTANTIATE)
#undef KOKKOSMX_INSTANTIATE

}  // namespace KokkosMX
