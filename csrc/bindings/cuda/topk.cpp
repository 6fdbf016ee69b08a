// torch.ops.finescope on CUDA: topk_encode, cosine_topk and pair_scores.
#include "cuda/topk.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>

#include "bindings/cuda/products.h"
#include "bindings/search.h"
#include "bindings/topk_operands.h"

namespace finescope::cuda {
namespace {

#if defined(FINESCOPE_CUDA_ON_CPU)
// So small that the tests cross every boundary.
constexpr int64_t kCandidateBytes = int64_t{1} << 20;
#else
constexpr int64_t kCandidateBytes = int64_t{48} << 20;
#endif
// Warps that keep a GPU busy with the filter.
constexpr int64_t kUnits = 4096;

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
  Search(const Problem& p, const OnDevice& device)
      : p_(p), stream_(device.stream()), products_(p.x, p.w, p.N, p.D, p.metric, p.screen, stream_) {
    // Where most columns are candidates anyway, a screen is of no use.
    const int64_t kept = std::min(p.k, p.N);
    screened_ = products_.meaningful() && 8 * kept + 1024 <= p.N;
    capacity_ = (2 * kept + 4 * kStep + 1023) / 1024 * 1024;
    const int64_t fit = std::max<int64_t>(1, kCandidateBytes / (capacity_ * 12));
    rows_ = std::max<int64_t>(1, std::min(products_.rows(p.B, screened_), fit));
    // As many buffers for a row as keep the device busy, but none for less than a few steps of columns.
    parts_ = std::min({kUnits / rows_, fit / rows_, p.N / (8 * kStep), int64_t{1024}});
    parts_ = std::max<int64_t>(1, parts_);
    chunk_ = products_.chunk(rows_, parts_ * kStep);
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
    if (!screened_) {
      launch_scan_all(args, stream_);
      // w is looked through for what is not finite in it.
      if (p_.metric == Metric::encode) {
        launch_norms({args.w, p_.N, p_.D, args.bias, nullptr, nullptr, broken_}, stream_);
      }
    } else {
      // Rounded down: nothing above the floor is below it.
      float open = static_cast<float>(p_.floor - std::fabs(p_.floor) * 0x1p-20);
      if (!(open > -std::numeric_limits<float>::max())) open = -std::numeric_limits<float>::infinity();
      products_.make(
          {first, args.R, args.bias, measure, args.state, broken_, chunk_},
          [&] { launch_begin(args, open, stream_); },
          [&](const FilterArgs& chunk) { launch_filter(args, chunk, stream_); });
      launch_shrink(args, stream_);
      launch_rescore(args, stream_);
    }
    launch_scan(args, stream_);
    launch_select(args, stream_);
  }

  const Problem& p_;
  cudaStream_t stream_;
  Products products_;
  bool screened_;
  int64_t rows_, parts_, capacity_, chunk_;
  int32_t* broken_ = nullptr;
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
