// torch.ops.finescope on CUDA: topk_encode, cosine_topk and pair_scores.
#include "cuda/topk.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>

#include "bindings/cuda/aten.h"
#include "bindings/search.h"
#include "bindings/topk_operands.h"

namespace finescope::cuda {
namespace {

#if defined(FINESCOPE_CUDA_ON_CPU)
// So small that the tests cross every boundary.
constexpr int64_t kScoreBytes = int64_t{64} << 10;
constexpr int64_t kCopyBytes = int64_t{128} << 10;
constexpr int64_t kCandidateBytes = int64_t{1} << 20;
constexpr int64_t kRows = 24;
constexpr int64_t kMeasuredRows = 1250;
#else
// The screened scores of one chunk: they should stay in the second-level cache from the multiplication to the
// filter.
constexpr int64_t kScoreBytes = int64_t{32} << 20;
// Copies of rows of x, and of a chunk of w.
constexpr int64_t kCopyBytes = int64_t{32} << 20;
constexpr int64_t kCandidateBytes = int64_t{48} << 20;
// Rows of x in flight. More would not make the multiplication any faster.
constexpr int64_t kRows = 4096;
// Rows of w that are measured once and for all, where they need no copies: 16 bytes for each.
constexpr int64_t kMeasuredRows = int64_t{1} << 20;
#endif
// Warps that keep a GPU busy with the filter.
constexpr int64_t kUnits = 4096;

// What the screen multiplies in: float16 or bfloat16 ("auto" and "bf16"), int8, or float32.
enum class Screen { none, half, i8, f32 };

Screen screen_of(const std::string& name, const char* op) {
  switch (screen_choice(name, op)) {
    case ScreenChoice::none:
      return Screen::none;
    case ScreenChoice::int8:
      return Screen::i8;
    case ScreenChoice::f32:
      return Screen::f32;
    default:
      return Screen::half;
  }
}

// Rounding of a sum of D products, relative to the sum of their magnitudes. Tensor cores add in float32, but
// may cut off instead of rounding; four times the unit roundoff of float32 leaves room for that. Products of
// numbers of 16 bits are exact; those of float32 ones may be made of numbers cut to TF32's 11 bits. Integers
// add up exactly.
double rounding_of(Screen screen, int64_t D) {
  if (screen == Screen::i8) return 0.0;
  const double sum = 1.01 * static_cast<double>(D) * 0x1p-22;
  return screen == Screen::f32 ? sum + 0x1p-9 : sum;
}

// Beyond, sums of 127 * 127 leave int32.
constexpr int64_t kInt8Width = int64_t{1} << 17;
// torch multiplies more than 16 rows of int8, and multiples of 8 rows with them.
constexpr int64_t kInt8Rows = 16;

struct Problem {
  Rows x, w;
  int64_t B, N, D, k;
  Metric metric;
  std::optional<Tensor> bias, exclude, mask;  // float64, int64 and bool, contiguous
  double floor, min_score;
  int64_t id_offset;
  Screen screen;
  bool f64;
};

class Search {
 public:
  Search(const Problem& p, const OnDevice& device) : p_(p), stream_(device.stream()) {
    const bool f64_inputs = p.x.matrix.dtype == DType::f64 || p.w.matrix.dtype == DType::f64;
    screen_ = p.screen == Screen::i8 && p.D > kInt8Width ? Screen::half : p.screen;
    // Where most columns are candidates anyway, a screen is of no use; nor where a sum is too long for its
    // bound to mean anything.
    const int64_t kept = std::min(p.k, p.N);
    if (f64_inputs || p.D == 0 || 8 * kept + 1024 > p.N || rounding_of(screen_, p.D) > 0.25) {
      screen_ = Screen::none;
    }
    capacity_ = (2 * kept + 4 * kStep + 1023) / 1024 * 1024;
    const int64_t fit = std::max<int64_t>(1, kCandidateBytes / (capacity_ * 12));
    rows_ = std::max<int64_t>(1, std::min({p.B, kRows, fit}));
    const bool copied = screen_ == Screen::half || screen_ == Screen::i8;
    if (copied) rows_ = std::min(rows_, std::max<int64_t>(64, kCopyBytes / (2 * p.D)));
    // As many buffers for a row as keep the device busy, but none for less than a few steps of columns.
    parts_ = std::min({kUnits / rows_, fit / rows_, p.N / (8 * kStep), int64_t{1024}});
    parts_ = std::max<int64_t>(1, parts_);
    chunk_ = std::max(kScoreBytes / (4 * rows_), parts_ * kStep);
    if (copied) chunk_ = std::min(chunk_, std::max<int64_t>(kStep, kCopyBytes / (2 * p.D)));
    chunk_ = std::min((p.N + 7) / 8 * 8, std::max<int64_t>(8, chunk_ / 8 * 8));
  }

  std::tuple<Tensor, Tensor> run() {
    const Tensor& like = p_.x.tensor;
    Tensor scores = make({p_.B, p_.k}, p_.f64 ? ScalarType::Double : ScalarType::Float);
    Tensor ids = make({p_.B, p_.k}, ScalarType::Long);
    if (p_.B == 0 || p_.k == 0) return {scores, ids};
    Tensor broken = make({1}, ScalarType::Int);
    torch::stable::zero_(broken);
    broken_ = pointer<int32_t>(broken);
    Tensor measure = make({rows_, 4}, ScalarType::Float), norm = make({rows_}, ScalarType::Double);
    Tensor state = make({rows_}, ScalarType::Int), tau = make({rows_}, ScalarType::Int);
    Tensor found = make({rows_}, ScalarType::Long), count = make({rows_, parts_}, ScalarType::Int);
    Tensor word = make({rows_, parts_, capacity_}, ScalarType::Double);
    Tensor id = make({rows_, parts_, capacity_}, ScalarType::Int);
    const int64_t score_bytes = p_.f64 ? 8 : 4, x_bytes = like.element_size();
    for (int64_t first = 0; first < p_.B; first += rows_) {
      Matrix x = p_.x.matrix;
      x.data = static_cast<const char*>(x.data) + first * x.stride * x_bytes;
      const TopkArgs args{x,
                          p_.w.matrix,
                          std::min(rows_, p_.B - first),
                          p_.N,
                          p_.D,
                          p_.k,
                          p_.metric,
                          p_.bias ? data<double>(*p_.bias) : nullptr,
                          p_.floor,
                          p_.min_score,
                          p_.exclude ? data<int64_t>(*p_.exclude) + first * p_.exclude->size(1) : nullptr,
                          p_.exclude ? p_.exclude->size(1) : 0,
                          p_.mask ? static_cast<const uint8_t*>(p_.mask->const_data_ptr()) : nullptr,
                          p_.id_offset,
                          pointer<const Measure>(measure),
                          pointer<const double>(norm),
                          pointer<int32_t>(state),
                          broken_,
                          parts_,
                          capacity_,
                          pointer<double>(word),
                          pointer<int32_t>(id),
                          pointer<int32_t>(count),
                          pointer<uint32_t>(tau),
                          pointer<int64_t>(found),
                          static_cast<char*>(scores.mutable_data_ptr()) + first * p_.k * score_bytes,
                          p_.f64,
                          pointer<int64_t>(ids) + first * p_.k};
      rows(args, pointer<Measure>(measure), pointer<double>(norm), first);
    }
    return {scores, ids};
  }

 private:
  Tensor make(std::vector<int64_t> sizes, ScalarType dtype) const {
    return empty_like_options(p_.x.tensor, std::move(sizes), dtype);
  }
  template <class T>
  static T* pointer(const Tensor& t) {
    return static_cast<T*>(t.mutable_data_ptr());
  }

  void rows(const TopkArgs& args, Measure* measure, double* norm, int64_t first) {
    launch_norms({args.x, args.R, p_.D, nullptr, norm, args.state, nullptr}, stream_);
    if (screen_ == Screen::none) {
      launch_scan_all(args, stream_);
      // w is looked through for what is not finite in it.
      if (p_.metric == Metric::encode) {
        launch_norms({args.w, p_.N, p_.D, args.bias, nullptr, nullptr, broken_}, stream_);
      }
    } else {
      refused_ = refused_ || !screen(args, measure, first, copy_for(args.R));
      if (refused_) screen(args, measure, first, Copy::bf16);
      launch_shrink(args, stream_);
      launch_rescore(args, stream_);
    }
    launch_scan(args, stream_);
    launch_select(args, stream_);
  }

  // What the screen multiplies of R rows and w: them, where they have 16 bits of one kind, or copies.
  Copy copy_for(int64_t R) const {
    if (screen_ == Screen::f32) return Copy::none;
    if (screen_ == Screen::i8 && R > kInt8Rows) return Copy::i8;
    const DType x = p_.x.matrix.dtype, w = p_.w.matrix.dtype;
    return x == w && (x == DType::bf16 || x == DType::f16) ? Copy::none : Copy::f16;
  }

  // Candidates of the R rows from `first` on. False: torch multiplies no int8, or (with its setting
  // allow_fp16_accumulation) not float16 into float32.
  bool screen(const TopkArgs& args, Measure* measure, int64_t first, Copy copy) {
    const bool copied = copy != Copy::none, integers = copy == Copy::i8;
    const ScalarType type = integers             ? ScalarType::Char
                            : copy == Copy::bf16 ? ScalarType::BFloat16
                                                 : ScalarType::Half;
    // Rows wide enough for loads of 16 bytes, whatever D is.
    const int64_t padded = (p_.D + 15) / 16 * 16;
    Tensor x = p_.x.tensor, w = p_.w.tensor, left, copies;
    if (copied) {
      left = make({args.R, padded}, type);
      copies = make({chunk_, padded}, type);
    } else {
      left = torch::stable::narrow(x, 0, first, args.R);
      if (screen_ == Screen::f32) left = as(left, ScalarType::Float);
    }
    launch_measure({args.x, args.R, p_.D, p_.metric, 0.0, nullptr, copy,
                    copied ? left.mutable_data_ptr() : nullptr, padded, measure, args.state, nullptr},
                   stream_);
    // Rounded down: nothing above the floor is below it.
    float open = static_cast<float>(p_.floor - std::fabs(p_.floor) * 0x1p-20);
    if (!(open > -std::numeric_limits<float>::max())) open = -std::numeric_limits<float>::infinity();
    launch_begin(args, open, stream_);
    Tensor products = make({args.R * chunk_}, integers ? ScalarType::Int : ScalarType::Float);
    const double rounding = rounding_of(integers                 ? Screen::i8
                                        : screen_ == Screen::f32 ? Screen::f32
                                                                 : Screen::half,
                                        p_.D);
    // What is known of the rows of w: of all, where nothing has to be copied for every block of rows of x.
    const bool once = !copied && p_.N <= kMeasuredRows;
    Tensor columns = once && columns_ ? *columns_ : make({once ? p_.N : chunk_, 4}, ScalarType::Float);
    const auto measure_columns = [&](int64_t at, int64_t width) {
      Matrix part = p_.w.matrix;
      part.data = static_cast<const char*>(part.data) + at * part.stride * w.element_size();
      launch_measure({part, width, p_.D, p_.metric, rounding, args.bias ? args.bias + at : nullptr, copy,
                      copied ? copies.mutable_data_ptr() : nullptr, padded, pointer<Measure>(columns),
                      nullptr, p_.metric == Metric::encode ? broken_ : nullptr},
                     stream_);
    };
    if (once && !columns_) {
      measure_columns(0, p_.N);
      columns_ = columns;
    }
    for (int64_t at = 0; at < p_.N; at += chunk_) {
      const int64_t width = std::min(chunk_, p_.N - at);
      // Of copies there may be a few more than columns, of which nobody looks at the products.
      const int64_t multiplied = copied ? (width + 7) / 8 * 8 : width;
      if (!once) measure_columns(at, width);
      Tensor right =
          copied ? torch::stable::narrow(copies, 0, 0, multiplied) : torch::stable::narrow(w, 0, at, width);
      if (screen_ == Screen::f32) right = as(right, ScalarType::Float);
      Tensor flat = torch::stable::narrow(products, 0, 0, args.R * multiplied);
      Tensor block = torch::stable::view(flat, {args.R, multiplied});
      const AOTITorchError error = multiply(left, right, block);
      if (error != TORCH_SUCCESS && (integers || left.scalar_type() == ScalarType::Half)) return false;
      must(error, "multiply rows ", shape_text(left), " by ", shape_text(right));
      launch_filter(args,
                    {products.const_data_ptr(), integers, multiplied,
                     pointer<const Measure>(columns) + (once ? at : 0), at, width},
                    stream_);
    }
    return true;
  }

  const Problem& p_;
  cudaStream_t stream_;
  Screen screen_;
  int64_t rows_, parts_, capacity_, chunk_;
  int32_t* broken_ = nullptr;
  std::optional<Tensor> columns_;  // measures of all rows of w
  bool refused_ = false;           // torch does not multiply what a screen asked for: bfloat16 from then on
};

void check_rows(const Tensor& x, const Tensor& w, int64_t k, const char* op, const char* name) {
  check_device(x, w, op, name);
  check(x.size(1) == w.size(1), op, ": ", name, " ", shape_text(w), " must have rows of width ", x.size(1));
  check(k >= 0, op, ": k must be at least 0, got ", k);
  check(w.size(0) <= std::numeric_limits<int32_t>::max(), op, ": ", name, " has ", w.size(0),
        " rows, more than 2^31 - 1; search it in blocks, as finescope.Index does");
}

std::tuple<Tensor, Tensor> topk_encode(const Tensor& x, const Tensor& weight,
                                       const std::optional<Tensor>& bias, int64_t k,
                                       const std::string& screen) {
  const char* op = "topk_encode";
  const OnDevice device(x);
  const EncodeOperands o(x, weight, bias, op);
  check_encode_k(k, o.F, op);
  check_rows(x, weight, k, op, "weight");
  const Problem problem{o.x,
                        o.weight,
                        o.B,
                        o.F,
                        o.D,
                        k,
                        Metric::encode,
                        o.bias,
                        std::nullopt,
                        std::nullopt,
                        0.0,
                        -std::numeric_limits<double>::infinity(),
                        0,
                        screen_of(screen, op),
                        o.f64};
  return Search(problem, device).run();
}

std::tuple<Tensor, Tensor> cosine_topk(const Tensor& queries, const Tensor& corpus, int64_t k,
                                       const std::string& metric, const std::string& screen,
                                       const std::optional<double>& min_score,
                                       const std::optional<Tensor>& exclude,
                                       const std::optional<Tensor>& mask, int64_t id_offset) {
  const char* op = "cosine_topk";
  const OnDevice device(queries);
  const Rows q(queries, op, "queries"), c(corpus, op, "corpus");
  check_rows(queries, corpus, k, op, "corpus");
  const Metric scored = search_metric(metric, op);
  check_filters(exclude, mask, id_offset, queries.size(0), corpus.size(0), op);
  if (exclude.has_value()) check_device(queries, *exclude, op, "exclude");
  if (mask.has_value()) check_device(queries, *mask, op, "mask");
  const Problem problem{q,
                        c,
                        queries.size(0),
                        corpus.size(0),
                        queries.size(1),
                        k,
                        scored,
                        std::nullopt,
                        exclude ? std::optional<Tensor>(finescope::packed(*exclude)) : std::nullopt,
                        mask ? std::optional<Tensor>(finescope::packed(*mask)) : std::nullopt,
                        floor_of(min_score),
                        min_score.value_or(-std::numeric_limits<double>::infinity()),
                        id_offset,
                        screen_of(screen, op),
                        q.matrix.dtype == DType::f64 || c.matrix.dtype == DType::f64};
  return Search(problem, device).run();
}

Tensor pair_scores(const Tensor& queries, const Tensor& corpus, const Tensor& ids,
                   const std::string& metric) {
  const char* op = "pair_scores";
  const OnDevice device(queries);
  const Rows q(queries, op, "queries"), c(corpus, op, "corpus");
  check_rows(queries, corpus, 0, op, "corpus");
  const Metric scored = search_metric(metric, op);
  check_device(queries, ids, op, "ids");
  check(ids.dim() == 2 && ids.size(0) == queries.size(0) && ids.scalar_type() == ScalarType::Long, op,
        ": ids ", shape_text(ids), " must be int64 of shape [", queries.size(0), ", k]");
  const Tensor chosen = finescope::packed(ids);
  Tensor out = empty_like_options(queries, {ids.size(0), ids.size(1)}, ScalarType::Double);
  launch_pair_scores(q.matrix, c.matrix, data<int64_t>(chosen), ids.size(0), ids.size(1), corpus.size(0),
                     queries.size(1), scored, static_cast<double*>(out.mutable_data_ptr()), device.stream());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(finescope, FINESCOPE_CUDA_KEY, m)
{
  m.impl("topk_encode", TORCH_BOX(&topk_encode));
  m.impl("cosine_topk", TORCH_BOX(&cosine_topk));
  m.impl("pair_scores", TORCH_BOX(&pair_scores));
}

}  // namespace finescope::cuda
