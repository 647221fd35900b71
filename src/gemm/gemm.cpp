// SPDX-License-Identifier: Apache-2.0
#include <KokkosMX/Gemm.hpp>

#include "../atom_select.hpp"
#include "../check.hpp"
#include "../instantiate.hpp"
#include "../quantize/quantize.hpp"
#include "../shuffle/copy.hpp"
#include "fragment_select.hpp"
#include "gemm_kernel.hpp"
#include "gemm_select.hpp"
#include "image_kernel.hpp"
#include "make_images.hpp"
#include "slices.hpp"

#include <Kokkos_Core.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

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

/// An operand, checked: where its codes, scales and summaries are or will be.
struct Prepared {
  MatrixMap matrix;
  DenseMap dense;  // where the operand is dense
};

/// Memory of the workspace for the codes and scales of an operand that the call quantizes.
void place_quantized(Prepared& prepared, Pieces& pieces) {
  MatrixMap& matrix = prepared.matrix;
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

void place_summaries(Prepared& prepared, Pieces& pieces) {
  MatrixMap& matrix = prepared.matrix;
  matrix.summaries = {pieces.take<RowSummary>(matrix.batch * matrix.rows),
                      matrix.batch == 1 ? 0 : matrix.rows, 1};
}

/// A call's arguments after every check.
struct Call {
  Prepared a, b;
  std::int64_t batch, m, n, blocks;
  bool empty() const { return batch == 0 || m == 0 || n == 0; }
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

/// Checks operands and C; what the workspace will hold has no memory yet.
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
  return call;
}

/// What a kernel needs to know besides the operands.
struct Product {
  Epilogue epilogue;
  Tier minimum_tier;
  std::uint64_t* counts;
  const QuantizeRule* rule;
};

/// Both operands as matrices with summaries, whatever they are.
class Matrices {
 public:
  /// Takes what is needed from the pieces.
  Matrices(const OperandRef& a, const OperandRef& b, const Call& call, Pieces& pieces)
      : a_(a), b_(b), call_(call) {
    for (auto [operand, prepared] : {std::pair{&a, &call_.a}, std::pair{&b, &call_.b}}) {
      if (operand->is_dense) place_quantized(*prepared, pieces);
      if (operand->is_dense || !operand->matrix.summaries.present) {
        place_summaries(*prepared, pieces);
      }
    }
  }
  const Call& call() const { return call_; }
  const OperandRef& a() const { return a_; }
  const OperandRef& b() const { return b_; }

  /// Queues what makes them.
  template <class ExecSpace>
  void make(const ExecSpace& exec, const QuantizeRule* rule) const {
    make(exec, a_, call_.a, rule);
    make(exec, b_, call_.b, rule);
  }

 private:
  template <class ExecSpace>
  static void make(const ExecSpace& exec, const OperandRef& operand, const Prepared& prepared,
                   const QuantizeRule* rule) {
    if (operand.is_dense) {
      launch_quantize(exec, operand.dense.element, prepared.dense, prepared.matrix, *rule);
    } else if (!operand.matrix.summaries.present) {
      launch_summarize(exec, prepared.matrix);
    }
  }

  const OperandRef& a_;
  const OperandRef& b_;
  Call call_;
};

/// A product by the tile kernel.
template <class ExecSpace, class Atom>
class TileProduct {
 public:
  /// Takes what is needed from the pieces.
  TileProduct(const ExecSpace&, const OperandRef& a, const OperandRef& b, const Call& call,
              Pieces& pieces)
      : matrices_(a, b, call, pieces) {}

  void run(const ExecSpace& exec, const Product& product) const {
    if (!product.epilogue.skips_product()) matrices_.make(exec, product.rule);
    const Call& call = matrices_.call();
    GemmProblem problem{};
    problem.a = call.a.matrix;
    problem.b = call.b.matrix;
    problem.epilogue = product.epilogue;
    problem.batch = call.batch;
    problem.m = call.m;
    problem.n = call.n;
    problem.blocks = call.blocks;
    problem.minimum_tier = product.minimum_tier;
    problem.counts = product.counts;
    using Tile = typename GemmTileOf<ExecSpace>::type;
    const auto kernel = GemmKernel<Atom, Tile>::make(
        problem, gemm_config<Atom, Tile>(call.batch, call.m, call.n, concurrency_of(exec)));
    static const std::string label = "KokkosMX::gemm";
    launch(label, exec, kernel.tiles(), threads<Tile::threads>, kernel);
  }

 private:
  Matrices matrices_;
};

#ifdef KOKKOSMX_HAVE_WGMMA
/// A product by the image kernel, on devices with a matrix unit that reads images.
template <class ExecSpace, class Atom>
class ImageProduct {
 public:
  ImageProduct(const ExecSpace&, const OperandRef& a, const OperandRef& b, const Call& call,
               Pieces& pieces)
      : matrices_(a, b, call, pieces) {
    const Call& checked = matrices_.call();
    is_transposed_ = is_transposed(checked);
    a_ = images(is_transposed_ ? checked.b.matrix : checked.a.matrix, Atom::tile_m, pieces);
    b_ = images(is_transposed_ ? checked.a.matrix : checked.b.matrix, Atom::tile_n, pieces);
    if constexpr (gathers) {
      for (std::uint32_t*& columns : columns_) columns = pieces.take<std::uint32_t>(checked.blocks);
      gathering_ = pieces.take<GatherState>(1);
    }
  }

  void run(const ExecSpace& exec, const Product& product) const {
    const Call& call = matrices_.call();
    with_atoms<ExecSpace>([&](auto atoms) {
      using Make = MakeImages<Atom, typename decltype(atoms)::Quantize>;
      const Make make{{part<Make>(is_transposed_ ? b_ : a_, matrices_.a(), call.a),
                       part<Make>(is_transposed_ ? a_ : b_, matrices_.b(), call.b)},
                      product.rule == nullptr ? rules::reference : *product.rule,
                      gathering_};
      static const std::string label = "KokkosMX::gemm: images";
      launch(label, exec, make.items(), threads<Make::threads>, make);
    });
    const Epilogue& epilogue = product.epilogue;
    const bool pairs = call.n % 2 == 0 && epilogue.row % 2 == 0 && epilogue.batch % 2 == 0 &&
                       reinterpret_cast<std::uintptr_t>(epilogue.c) % 4 == 0;
    const bool is_plain_bf16 = epilogue.is_plain() && epilogue.element == Element::bf16 &&
                               epilogue.col == 1 && (is_transposed_ || pairs);
    const std::int64_t tiles = call.batch * a_.tiles * b_.tiles;
    const ImageGemm<Atom> kernel{
        a_,
        b_,
        {{a_, b_}, {columns_[0], columns_[1]}, gathering_},
        is_transposed_,
        epilogue,
        call.batch,
        is_transposed_ ? call.n : call.m,
        is_transposed_ ? call.m : call.n,
        call.blocks,
        std::min<std::int64_t>(tiles,
                               Atom::groups_each * exec.cuda_device_prop().multiProcessorCount),
        bits_of_sum(call.blocks),
        product.minimum_tier,
        product.counts,
        is_plain_bf16};
    static const std::string label = "KokkosMX::gemm";
    launch(label, exec, kernel.groups, threads<Atom::threads>, kernel);
  }

 private:
  static constexpr bool gathers = Atom::gathered_steps > 0;

  /// Small tiles are higher than wide: the side with more rows comes first.
  static bool is_transposed(const Call& call) {
    return Atom::tile_n <= ImageGemm<Atom>::most_transposed_n && call.n > call.m;
  }

  template <class Make>
  static typename Make::Part part(const ImageOperand& images, const OperandRef& operand,
                                  const Prepared& prepared) {
    const ImageSource source = operand.is_dense ? ImageSource::dense
                               : operand.matrix.summaries.present
                                   ? ImageSource::matrix
                                   : ImageSource::matrix_without_summaries;
    return {images, source, prepared.dense, operand.dense.element};
  }
  static ImageOperand images(const MatrixMap& matrix, int tile_rows, Pieces& pieces) {
    ImageOperand operand{};
    operand.matrix = matrix;
    operand.tile_rows = tile_rows;
    operand.tiles = (matrix.rows + tile_rows - 1) / tile_rows;
    operand.steps = (matrix.blocks + Atom::step_blocks - 1) / Atom::step_blocks;
    operand.gathered_steps = Atom::gathered_steps;
    const std::int64_t tiles = matrix.batch * operand.tiles;
    operand.part_bytes =
        tiles * (operand.steps + Atom::gathered_steps) * tile_rows * Atom::step_bytes;
    operand.images =
        pieces.take<std::uint8_t>(operand.part_bytes * (1 + (gathers ? RowSplit::most_parts : 0)));
    if constexpr (gathers) {
      operand.splits = pieces.take<RowSplit>(tiles * tile_rows);
      operand.has_outliers = pieces.take<std::uint8_t>(tiles * tile_rows / 8);
      operand.columns = pieces.take<std::uint32_t>(tiles * tile_rows / 8 * matrix.blocks);
      operand.cuts = pieces.take<std::uint32_t>(operand.tiles * ImageOperand::most_pieces);
    }
    return operand;
  }

  Matrices matrices_;
  bool is_transposed_;
  ImageOperand a_, b_;
  std::uint32_t* columns_[2] = {};  ///< see GatherOutliers
  GatherState* gathering_ = nullptr;
};
#endif

#ifdef KOKKOSMX_HAVE_WGMMA
/// A product of few rows, by warps that share K.
template <class ExecSpace>
class SliceProduct {
 public:
  SliceProduct(const OperandRef& a, const OperandRef& b, const Call& call, Pieces& pieces)
      : y_is_b_(call.n > call.m),
        x_(side(y_is_b_ ? a : b, y_is_b_ ? call.a : call.b)),
        y_(side(y_is_b_ ? b : a, y_is_b_ ? call.b : call.a)),
        x_matrix_(y_is_b_ ? call.a.matrix : call.b.matrix),
        y_matrix_(y_is_b_ ? call.b.matrix : call.a.matrix),
        call_(call) {
    const std::int64_t x_rows = std::min(call.m, call.n);
    elements_.log_tile = slice_log_tile(x_rows);
    elements_.tiles = static_cast<int>((x_rows + elements_.tile() - 1) >> elements_.log_tile);
    elements_.groups = static_cast<int>((call.blocks + 3) / 4);
    elements_.by_blocks = !y_.is_dense && y_matrix_.codes.byte == 1;
    const std::int64_t batch = x_matrix_.batch;
    elements_.data = pieces.take<std::uint8_t>(batch * elements_.tiles * SliceRow::most_images *
                                               elements_.image_bytes());
    elements_.states = pieces.take<SliceRow>(batch * elements_.rows());
  }

  /// These kernels take bf16, and codes of which a block's or a group's bytes lie together.
  static bool takes(const ExecSpace& exec, const OperandRef& a, const OperandRef& b,
                    const Call& call) {
    return prefers_slices(call.batch, std::min(call.m, call.n), std::max(call.m, call.n),
                          call.blocks, exec.cuda_device_prop().multiProcessorCount) &&
           std::max(call.m, call.n) < (1 << 28) && call.batch < (1 << 16) && takes(a) && takes(b);
  }

  void run(const ExecSpace& exec, const Product& product) const {
    const std::int64_t x_rows = y_is_b_ ? call_.m : call_.n, y_rows = y_is_b_ ? call_.n : call_.m;
    const Epilogue& epilogue = product.epilogue;
    const bool pairs = y_is_b_ && epilogue.col == 1 && y_rows % 2 == 0 && epilogue.row % 2 == 0 &&
                       epilogue.batch % 2 == 0 &&
                       reinterpret_cast<std::uintptr_t>(epilogue.c) % 4 == 0;
    launch_slices(
        exec, {x_, y_, elements_, static_cast<int>(call_.batch), static_cast<int>(x_matrix_.batch),
               static_cast<int>(call_.blocks), static_cast<int>(x_rows), static_cast<int>(y_rows),
               bits_of_sum(call_.blocks),
               product.rule == nullptr ? rules::reference : *product.rule, product.minimum_tier,
               y_is_b_, epilogue.is_plain() && epilogue.element == Element::bf16 && pairs, epilogue,
               product.counts, y_matrix_, x_matrix_});
  }

 private:
  static bool takes(const OperandRef& operand) {
    return !operand.is_dense || operand.dense.element == Element::bf16;
  }
  static SliceSide side(const OperandRef& operand, const Prepared& prepared) {
    const DenseMap& dense = prepared.dense;
    const CodesMap& codes = prepared.matrix.codes;
    const auto lie_on_16 = [](const void* data, auto... strides) {
      return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && ((strides % 16 == 0) && ...);
    };
    return {dense, operand.is_dense,
            operand.is_dense ? lie_on_16(dense.data, dense.batch, dense.row)
                             : lie_on_16(codes.data, codes.batch, codes.row, codes.tile_of_16_rows,
                                         codes.block_4, codes.byte == 1 ? codes.block_1 : 0)};
  }

  bool y_is_b_;
  SliceSide x_, y_;
  MatrixMap x_matrix_, y_matrix_;
  Call call_;
  SliceElements elements_{};
};
#endif

#ifdef KOKKOS_ENABLE_HIP
/// Memory of the workspace for codes and scales as fragment kernels read them: Tile16x16 and
/// Tile32x8, each with its padding, which nobody looks at.
void place_codes_of_fragments(MatrixMap& matrix, Pieces& pieces) {
  const std::int64_t rows = round_up(matrix.rows, 16), blocks = round_up(matrix.blocks, 4);
  const std::int64_t bytes = rows * blocks * block_bytes;
  matrix.codes = {pieces.take<std::uint8_t>(matrix.batch * bytes),
                  matrix.batch == 1 ? 0 : bytes,
                  16 * blocks * block_bytes,
                  block_bytes,
                  4 * 16 * block_bytes,
                  16 * block_bytes,
                  1,
                  matrix.rows,
                  matrix.blocks};
}
void place_scales_of_fragments(MatrixMap& matrix, Pieces& pieces) {
  const ScalesShape shape = scales_shape<Tile32x8>(matrix.rows, block_size * matrix.blocks);
  matrix.scales = {pieces.take<std::uint8_t>(matrix.batch * shape.rows * shape.cols),
                   matrix.batch == 1 ? 0 : shape.rows * shape.cols,
                   32 * shape.cols,
                   1,
                   4,
                   256,
                   2,
                   64,
                   matrix.rows,
                   matrix.blocks};
}

/// A product by the fragment kernel: on devices with a matrix unit whose operands are registers.
/// Operands that lie otherwise are copied first.
template <class ExecSpace, FragmentAtom... Atoms>
class FragmentProduct {
 public:
  /// usable: as FragmentKernel's.
  FragmentProduct(const DeviceDesc& device, unsigned usable, const OperandRef& a,
                  const OperandRef& b, const Call& call, Pieces& pieces)
      : device_(device), usable_(usable), a_{&a, call.a, {}}, b_{&b, call.b, {}}, call_(call) {
    place(a_, pieces);
    place(b_, pieces);
  }

  void run(const ExecSpace& exec, const Product& product) const {
    make(exec, a_, product.rule);
    make(exec, b_, product.rule);
    GemmProblem problem{};
    problem.a = a_.read;
    problem.b = b_.read;
    problem.epilogue = product.epilogue;
    problem.batch = call_.batch;
    problem.m = call_.m;
    problem.n = call_.n;
    problem.blocks = call_.blocks;
    problem.minimum_tier = product.minimum_tier;
    problem.counts = product.counts;
    const FragmentConfig config =
        fragment_config({call_.batch, call_.m, call_.n, block_size * call_.blocks}, device_);
    constexpr unsigned every = (2u << sizeof...(Atoms)) - 1u;
    // The large tile's registers are those of the most preferred atom: the others, and single
    // outputs, come after it, by smaller tiles.
    if (config.tiles == FragmentTiles::small) {
      queue<SmallFragmentTile, every>(exec, problem, config.order, every);
    } else if (config.tiles == FragmentTiles::large && (usable_ & 1u) != 0) {
      queue<LargeFragmentTile, 1u>(exec, problem, config.order, 1u);
      queue<MiddleFragmentTile, every>(exec, problem, config.order, every - 1u);
    } else {
      queue<MiddleFragmentTile, every>(exec, problem, config.order, every);
    }
  }

 private:
  /// `given` is what the call was given, or quantizes to; `read` what the kernel reads.
  struct Operand {
    const OperandRef* ref;
    Prepared given;
    MatrixMap read;
  };

  static void place(Operand& operand, Pieces& pieces) {
    MatrixMap& given = operand.given.matrix;
    const bool is_dense = operand.ref->is_dense;
    if (is_dense) {
      place_codes_of_fragments(given, pieces);
      place_scales_of_fragments(given, pieces);
    }
    if (is_dense || !operand.ref->matrix.summaries.present) place_summaries(operand.given, pieces);
    operand.read = given;
    constexpr int rows = LargeFragmentTile::m;
    if (!codes_lie_as_fragments(given.codes, rows)) place_codes_of_fragments(operand.read, pieces);
    if (!scales_lie_as_fragments(given.scales)) place_scales_of_fragments(operand.read, pieces);
  }

  static void make(const ExecSpace& exec, const Operand& operand, const QuantizeRule* rule) {
    const MatrixMap& given = operand.given.matrix;
    const MatrixMap& read = operand.read;
    if (operand.ref->is_dense) {
      launch_quantize(exec, operand.ref->dense.element, operand.given.dense, given, *rule);
    } else if (!operand.ref->matrix.summaries.present) {
      launch_summarize(exec, given);
    }
    if (read.codes.data != given.codes.data) {
      static const std::string label = "KokkosMX::gemm: copy codes";
      with_copy_of_codes(given.batch, given.rows, given.blocks, given.codes, read.codes,
                         [&](const auto& copy) { launch_copies(label, exec, copy); });
    }
    if (read.scales.data != given.scales.data) {
      static const std::string label = "KokkosMX::gemm: copy scales";
      ScalesMap to = read.scales;
      to.rows = round_up(to.rows, 32);
      to.cols = round_up(to.cols, 8);
      with_copy_of_scales(given.batch, given.rows, given.blocks, given.scales,
                          operand.ref->matrix.scales_kind, to, ScalesKind::tile_32x8,
                          [&](const auto& copy) { launch_copies(label, exec, copy); });
    }
  }

  template <class Tile, unsigned Passes>
  void queue(const ExecSpace& exec, const GemmProblem& problem, const TileOrder& order,
             unsigned passes) const {
    using Kernel = FragmentKernel<Tile, Passes, Atoms...>;
    static const std::string label = "KokkosMX::gemm";
    const auto kernel = Kernel::make(problem, order, usable_, passes);
    launch(label, exec, kernel.tiles(), threads<Kernel::threads>, kernel);
  }

  DeviceDesc device_;
  unsigned usable_;
  Operand a_, b_;
  Call call_;
};
#endif

template <class Kernel>
struct WorkOnTasks {
  Kernel kernel;
  void operator()(std::int64_t worker) const { kernel.work(worker); }
};

/// A product by the panel kernel, on hosts.
template <class ExecSpace, class Atoms>
class PanelProduct {
 public:
  using Atom = typename Atoms::Gemm;

  PanelProduct(const ExecSpace& exec, const OperandRef& a, const OperandRef& b, const Call& call,
               Pieces& pieces) {
    PanelProblem& problem = kernel_.p;
    problem.y_is_b = call.n > call.m;
    problem.y = panel_operand(problem.y_is_b ? b : a, problem.y_is_b ? call.b : call.a);
    problem.x = panel_operand(problem.y_is_b ? a : b, problem.y_is_b ? call.a : call.b);
    problem.batch = call.batch;
    problem.blocks = call.blocks;
    problem.sum_bits = bits_of_sum(call.blocks);
    kernel_.config = panel_config<Atom>(problem, concurrency_of(exec));
    kernel_.layout = PanelKernel<Atom>::worker_layout(problem, kernel_.config);
    PanelMemory& memory = kernel_.memory;
    if (!kernel_.config.own_x) {
      memory.x =
          PanelKernel<Atom>::take_x(problem, kernel_.config, [&](std::size_t bytes) -> void* {
            return pieces.take<unsigned char>(static_cast<std::int64_t>(bytes));
          });
    }
    memory.workers = pieces.take<unsigned char>(kernel_.config.workers *
                                                static_cast<std::int64_t>(kernel_.layout.bytes));
    memory.tasks = pieces.take<TaskRange>(kernel_.config.workers);
    memory.preparation = pieces.take<Preparation>(1);
  }

  void run(const ExecSpace& exec, const Product& product) const {
    PanelKernel<Atom> kernel = kernel_;
    kernel.p.epilogue = product.epilogue;
    kernel.p.minimum_tier = product.minimum_tier;
    kernel.p.counts = product.counts;
    if (product.rule != nullptr) kernel.p.rule = *product.rule;
    kernel.begin();
    static const std::string label = "KokkosMX::gemm";
    launch_workers(label, exec, kernel.config.workers, WorkOnTasks<PanelKernel<Atom>>{kernel});
  }

 private:
  static PanelOperand panel_operand(const OperandRef& operand, const Prepared& prepared) {
    PanelOperand result{};
    if (operand.is_dense) {
      result.dense = prepared.dense;
      with_format(operand.dense.element, [&](auto format) {
        result.quantize = &Atoms::Quantize::template quantize_rows<decltype(format), false>;
      });
    }
    result.matrix = prepared.matrix;
    result.has_summaries = operand.matrix.summaries.present;
    result.batch = prepared.matrix.batch;
    result.rows = prepared.matrix.rows;
    return result;
  }

  PanelKernel<Atom> kernel_{};
};

/// Calls f with the product that these arguments get on exec; it takes its pieces.
template <class ExecSpace, class F>
void with_product(const ExecSpace& exec, const OperandRef& a, const OperandRef& b, const Call& call,
                  Pieces& pieces, F&& f) {
#ifdef KOKKOSMX_HAVE_WGMMA
  if constexpr (std::is_same_v<ExecSpace, Kokkos::Cuda>) {
    // The kernels count tiles and groups of 8 rows in 32 bits.
    const double tiles = static_cast<double>(call.batch) * static_cast<double>(call.m / 16 + 1) *
                         static_cast<double>(call.n / 16 + 1);
    if (device_atom(exec) == DeviceAtom::wgmma && call.blocks <= Int8Images::most_blocks &&
        tiles < 0x1p30) {
      if (SliceProduct<ExecSpace>::takes(exec, a, b, call)) {
        f(SliceProduct<ExecSpace>(a, b, call, pieces));
        return;
      }
      with_image_atom(
          call.batch, call.m, call.n, exec.cuda_device_prop().multiProcessorCount,
          [&](auto atom) { f(ImageProduct<ExecSpace, decltype(atom)>(exec, a, b, call, pieces)); });
      return;
    }
  }
#endif
#ifdef KOKKOS_ENABLE_HIP
  if constexpr (std::is_same_v<ExecSpace, Kokkos::HIP>) {
    const MatrixUnit unit = matrix_unit(exec);
    if (unit.usable != 0 && call.blocks <= most_groups_in_int32 * group_blocks) {
      f(FragmentProduct<ExecSpace, FloatMfmaAtom, IntegerMfmaAtom>(
          {unit.units, unit.chiplets}, unit.usable, a, b, call, pieces));
      return;
    }
  }
#endif
  with_atoms<ExecSpace>([&](auto atoms) {
    using Atoms = decltype(atoms);
    if constexpr (PanelAtom<typename Atoms::Gemm>) {
      if (call.blocks <= most_groups_in_int32 * group_blocks) {
        f(PanelProduct<ExecSpace, Atoms>(exec, a, b, call, pieces));
        return;
      }
      f(TileProduct<ExecSpace, PortableGemmAtom>(exec, a, b, call, pieces));
    } else {
      f(TileProduct<ExecSpace, typename Atoms::Gemm>(exec, a, b, call, pieces));
    }
  });
}

template <class ExecSpace>
std::size_t workspace_bytes(const ExecSpace& exec, const OperandRef& a, const OperandRef& b,
                            const Call& call) {
  if (call.empty()) return 0;
  Pieces pieces(0);
  with_product(exec, a, b, call, pieces, [](const auto&) {});
  return pieces.taken() == 0 ? 0 : pieces.taken() + workspace_alignment - 1;
}

std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

}  // namespace

template <class ExecSpace>
std::size_t gemm_workspace_size(const ExecSpace& exec, const OperandRef& a, const OperandRef& b,
                                const DenseRef& c) {
  Check check("gemm_workspace_size");
#ifdef KOKKOS_ENABLE_HIP
  if constexpr (std::is_same_v<ExecSpace, Kokkos::HIP>) check_matrix_unit(exec);
#endif
  return workspace_bytes(exec, a, b, checked_call(check, a, b, c));
}

template <class ExecSpace>
void gemm(const ExecSpace& exec, void* workspace, std::size_t workspace_size, const OperandRef& a,
          const OperandRef& b, const DenseRef& c, const GemmSettings& settings,
          const QuantizeRule* rule) {
  Check check(rule == nullptr ? "gemm" : "quantize_gemm");
  if (settings.has_bias) check.tell("extent of the bias", settings.bias_size);
  if (settings.has_counts) check.tell("extent of tier_counts", settings.counts_size);
  check.tell("bytes of workspace", static_cast<std::int64_t>(workspace_size));
  const Call call = checked_call(check, a, b, c);
  const std::size_t needed = workspace_bytes(exec, a, b, call);
  check.require(c.data != nullptr || call.empty(), "C to be an allocated View");
  check.require(!settings.has_bias || settings.bias_size == call.n,
                [&] { return "a bias of extent N = " + std::to_string(call.n); });
  check.require(!settings.has_bias || settings.bias != nullptr || call.n == 0,
                "the bias to be an allocated View");
  check.require(
      !settings.has_counts || (settings.counts_size == tier_count && settings.counts != nullptr),
      [&] {
        return "tier_counts to be an allocated View of extent " + std::to_string(tier_count);
      });
  check.require(workspace_size >= needed && (workspace != nullptr || needed == 0),
                [&] { return "a workspace of at least " + std::to_string(needed) + " bytes"; });

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
  if (needed > 0) {
    outputs.add("the workspace", workspace, static_cast<std::int64_t>(needed));
  }
  if (settings.has_counts) {
    outputs.add("tier_counts", settings.counts,
                tier_count * static_cast<std::int64_t>(sizeof(std::uint64_t)));
  }
  check.disjoint(outputs, inputs);
  if (call.empty()) return;

  const Product product{
      {const_cast<void*>(c.data), c.element, c.batch_stride, c.row_stride, c.col_stride,
       bits_of(settings.alpha), bits_of(settings.beta), settings.bias, settings.bias_stride},
      settings.minimum_tier,
      settings.counts,
      rule};
  Pieces pieces(reinterpret_cast<std::uintptr_t>(workspace));
  if (product.epilogue.skips_product()) {
    Pieces none(0);  // only C is touched
    TileProduct<ExecSpace, PortableGemmAtom>(exec, a, b, call, none).run(exec, product);
    return;
  }
  with_product(exec, a, b, call, pieces,
               [&](const auto& any_product) { any_product.run(exec, product); });
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
const char* gemm_atom([[maybe_unused]] const ExecSpace& exec) {
  const char* name = nullptr;
#ifdef KOKKOSMX_HAVE_WGMMA
  if (Impl::device_atom(exec) == Impl::DeviceAtom::wgmma) return Impl::wgmma_name;
#endif
#ifdef KOKKOS_ENABLE_HIP
  if constexpr (std::is_same_v<ExecSpace, Kokkos::HIP>) {
    const unsigned usable = Impl::matrix_unit(exec).usable;
    if ((usable & 1u) != 0) return Impl::FloatMfmaAtom::name;
    if ((usable & 2u) != 0) return Impl::IntegerMfmaAtom::name;
  }
#endif
  Impl::with_atoms<ExecSpace>([&](auto atoms) { name = decltype(atoms)::Gemm::name; });
  return name;
}

#define KOKKOSMX_INSTANTIATE(Space) \
  template KOKKOSMX_EXPORT const char* gemm_atom<Space>(const Space&);
KOKKOSMX_FOR_EACH_EXECUTION_SPACE(KOKKOSMX_INSTANTIATE)
#undef KOKKOSMX_INSTANTIATE

}  // namespace KokkosMX
