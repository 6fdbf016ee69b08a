// torch.ops.finescope on the CPU: topk_encode and cosine_topk.
#include "cpu/topk/topk.h"

#include <cmath>
#include <limits>
#include <optional>
#include <tuple>

#include "bindings/cpu/topk.h"
#include "bindings/tensors.h"
#include "cpu/topk/centre.h"

namespace finescope {

Workers torch_workers() {
  const auto run = [](int threads, void (*body)(void*, int), void* context) {
    parallel(threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker) body(context, static_cast<int>(worker));
    });
  };
  return {std::max(1, static_cast<int>(torch::stable::get_num_threads())), run};
}

ScreenChoice screen_choice(const std::string& name, const char* op) {
  if (name == "auto") return ScreenChoice::automatic;
  if (name == "none") return ScreenChoice::none;
  if (name == "float32") return ScreenChoice::f32;
  if (name == "bf16") return ScreenChoice::bf16;
  if (name == "int8") return ScreenChoice::int8;
  fail(op, ": screen must be one of 'auto', 'int8', 'bf16', 'float32', 'none', got '", name, "'");
}

namespace {

std::tuple<Tensor, Tensor> topk_encode(const Tensor& x, const Tensor& weight,
                                       const std::optional<Tensor>& bias, int64_t k,
                                       const std::string& screen) {
  return run_encode(x, weight, bias, k, screen_choice(screen, "topk_encode"), nullptr, nullptr);
}

std::tuple<Tensor, Tensor> cosine_topk(const Tensor& queries, const Tensor& corpus, int64_t k,
                                       const std::string& metric, const std::string& screen,
                                       const std::optional<double>& min_score,
                                       const std::optional<Tensor>& exclude,
                                       const std::optional<Tensor>& mask, int64_t id_offset) {
  const SearchOptions options{metric, min_score, exclude, mask, id_offset};
  return run_search(queries, corpus, k, options, screen_choice(screen, "cosine_topk"), nullptr, nullptr);
}

Metric metric_of(const std::string& name, const char* op) {
  if (name == "encode") return Metric::encode;
  if (name == "ip") return Metric::ip;
  if (name == "cosine") return Metric::cosine;
  fail(op, ": metric must be one of 'cosine', 'ip', 'encode', got '", name, "'");
}

// Nothing (an empty tensor) where packing is of no use: for float64, and for sizes no screen takes.
Tensor pack_rows(const Tensor& matrix, const std::string& metric, const std::string& screen) {
  const char* op = "pack_rows";
  const Rows rows(matrix, op, "matrix");
  const ScreenChoice choice = screen_choice(screen, op);
  const int64_t n = matrix.size(0), d = matrix.size(1);
  const Metric kind = metric_of(metric, op);
  const KeepSubnormals keep;
  PackRequest request{rows.matrix, n, d, kind, ScreenKind::f32};
  const bool possible = choice != ScreenChoice::none && can_pack(request);
  std::vector<float> mean;
  if (possible) {
    // The rows themselves stand for what they will be compared with, and k for two in a thousand.
    mean = common_mean(rows.matrix, n, d, kind);
    if (!mean.empty()) request.centre = mean.data();
    request.kind = best_screen(
        choice, {rows.matrix, rows.matrix, n, n, d, kind, nullptr, 0.002, request.centre}, torch_workers());
  }
  Tensor packed = empty_like_options(matrix, {possible ? packed_bytes(request) : 0}, ScalarType::Byte);
  if (possible) pack(request, torch_workers(), static_cast<char*>(packed.mutable_data_ptr()));
  return packed;
}

// The packed matrix in a tensor, if it holds one that fits.
struct Opened {
  Packed packed;
  const Packed* get = nullptr;

  Opened(const Tensor& memory, const Tensor& matrix, Metric metric, const char* op) {
    check(memory.scalar_type() == ScalarType::Byte && memory.dim() == 1 && memory.is_contiguous(), op,
          ": packed must be a contiguous uint8 tensor with one dimension");
    if (memory.numel() == 0) return;
    check_dims(matrix, 2, op, "matrix");
    check(open_packed(static_cast<const char*>(memory.const_data_ptr()), memory.numel(), matrix.size(0),
                      matrix.size(1), metric, &packed),
          op, ": packed does not hold a matrix of shape ", shape_text(matrix), " packed for this");
    get = &packed;
  }
};

std::tuple<Tensor, Tensor> topk_encode_packed(const Tensor& x, const Tensor& weight,
                                              const std::optional<Tensor>& bias, const Tensor& packed,
                                              int64_t k) {
  const Opened opened(packed, weight, Metric::encode, "topk_encode_packed");
  return run_encode(x, weight, bias, k, ScreenChoice::automatic, opened.get, nullptr);
}

std::tuple<Tensor, Tensor> cosine_topk_packed(const Tensor& queries, const Tensor& corpus,
                                              const Tensor& packed, int64_t k, const std::string& metric,
                                              const std::optional<double>& min_score,
                                              const std::optional<Tensor>& exclude,
                                              const std::optional<Tensor>& mask, int64_t id_offset) {
  const Opened opened(packed, corpus, metric_of(metric, "cosine_topk_packed"), "cosine_topk_packed");
  const SearchOptions options{metric, min_score, exclude, mask, id_offset};
  return run_search(queries, corpus, k, options, ScreenChoice::automatic, opened.get, nullptr);
}

}  // namespace

std::tuple<Tensor, Tensor> run_encode(const Tensor& x, const Tensor& weight,
                                      const std::optional<Tensor>& bias, int64_t k, ScreenChoice choice,
                                      const Packed* packed, TopkStats* stats) {
  const char* op = "topk_encode";
  const Rows rows(x, op, "x"), w(weight, op, "weight");
  const int64_t B = x.size(0), F = weight.size(0), D = weight.size(1);
  check(x.size(1) == D, op, ": weight ", shape_text(weight), " must have shape [F, ", x.size(1), "]");
  check(k >= 0, op, ": k must be at least 0, got ", k);
  check(k <= F, op, ": k must be at most F=", F, ", got ", k);
  bool f64 = rows.matrix.dtype == DType::f64 || w.matrix.dtype == DType::f64;
  std::optional<Tensor> added;
  if (bias.has_value()) {
    check(bias->dim() == 1 && bias->size(0) == F, op, ": bias ", shape_text(*bias), " must have shape [", F,
          "]");
    f64 = f64 || float_dtype(*bias, op, "bias") == DType::f64;
    added = as(*bias, ScalarType::Double);
  }
  Tensor values = empty_like_options(x, {B, k}, f64 ? ScalarType::Double : ScalarType::Float);
  Tensor indices = empty_like_options(x, {B, k}, ScalarType::Long);
  const TopkProblem problem{
      rows.matrix, w.matrix, B, F,       D, k, Metric::encode, added ? data<double>(*added) : nullptr,
      0.0,         nullptr,  0, nullptr, 0};
  topk(problem, packed, choice, torch_workers(),
       {values.mutable_data_ptr(), f64, static_cast<int64_t*>(indices.mutable_data_ptr())}, stats);
  return {values, indices};
}

namespace {

// Blanks the scores that are below the minimum once they are rounded; they are the last of their row.
template <class T>
void drop_below(T* score, int64_t* id, int64_t n, double minimum) {
  for (int64_t i = 0; i < n; ++i) {
    if (!(static_cast<double>(score[i]) >= minimum))
      score[i] = -std::numeric_limits<T>::infinity(), id[i] = -1;
  }
}

}  // namespace

std::tuple<Tensor, Tensor> run_search(const Tensor& queries, const Tensor& corpus, int64_t k,
                                      const SearchOptions& options, ScreenChoice choice, const Packed* packed,
                                      TopkStats* stats) {
  const char* op = "cosine_topk";
  const Rows q(queries, op, "queries"), c(corpus, op, "corpus");
  const int64_t Q = queries.size(0), N = corpus.size(0), D = corpus.size(1);
  check(queries.size(1) == D, op, ": corpus ", shape_text(corpus), " must have shape [N, ", queries.size(1),
        "]");
  check(k >= 0, op, ": k must be at least 0, got ", k);
  check(options.metric == "cosine" || options.metric == "ip", op,
        ": metric must be one of 'cosine', 'ip', got '", options.metric, "'");
  std::optional<Tensor> excluded, allowed;
  std::vector<int64_t> exclude;
  int64_t E = 0;
  if (options.exclude.has_value()) {
    const Tensor& t = *options.exclude;
    check(t.dim() == 2 && t.size(0) == Q, op, ": exclude ", shape_text(t), " must have shape [", Q, ", E]");
    check(t.scalar_type() == ScalarType::Long, op, ": exclude must be int64, not ",
          dtype_name(t.scalar_type()));
    excluded = contiguous(t);
    E = t.size(1);
    const int64_t* ids = data<int64_t>(*excluded);
    exclude.resize(static_cast<size_t>(Q * E));
    for (int64_t i = 0; i < Q * E; ++i) exclude[i] = ids[i] >= 0 ? ids[i] - options.id_offset : -1;
  }
  if (options.mask.has_value()) {
    const Tensor& t = *options.mask;
    check(t.dim() == 1 && t.size(0) == N, op, ": mask ", shape_text(t), " must have shape [", N, "]");
    check(t.scalar_type() == ScalarType::Bool, op, ": mask must be bool, not ", dtype_name(t.scalar_type()));
    allowed = contiguous(t);
  }
  const bool f64 = q.matrix.dtype == DType::f64 || c.matrix.dtype == DType::f64;
  double floor = -std::numeric_limits<double>::infinity();
  if (options.min_score.has_value()) {
    // Scores are compared after rounding: what lies this little below may be rounded up to the minimum.
    const double minimum = *options.min_score;
    floor = minimum - std::fabs(minimum) * 0x1p-22 - 0x1p-140;
    if (!(floor >= -std::numeric_limits<double>::max())) floor = -std::numeric_limits<double>::infinity();
  }
  Tensor scores = empty_like_options(queries, {Q, k}, f64 ? ScalarType::Double : ScalarType::Float);
  Tensor ids = empty_like_options(queries, {Q, k}, ScalarType::Long);
  int64_t* id = static_cast<int64_t*>(ids.mutable_data_ptr());
  const TopkProblem problem{q.matrix,
                            c.matrix,
                            Q,
                            N,
                            D,
                            k,
                            options.metric == "ip" ? Metric::ip : Metric::cosine,
                            nullptr,
                            floor,
                            E ? exclude.data() : nullptr,
                            E,
                            allowed ? static_cast<const uint8_t*>(allowed->const_data_ptr()) : nullptr,
                            options.id_offset};
  topk(problem, packed, choice, torch_workers(), {scores.mutable_data_ptr(), f64, id}, stats);
  if (options.min_score.has_value()) {
    if (f64) {
      drop_below(static_cast<double*>(scores.mutable_data_ptr()), id, Q * k, *options.min_score);
    } else {
      drop_below(static_cast<float*>(scores.mutable_data_ptr()), id, Q * k, *options.min_score);
    }
  }
  return {scores, ids};
}

STABLE_TORCH_LIBRARY_IMPL(finescope, CPU, m)
{
  m.impl("topk_encode", TORCH_BOX(&topk_encode));
  m.impl("cosine_topk", TORCH_BOX(&cosine_topk));
  m.impl("pack_rows", TORCH_BOX(&pack_rows));
  m.impl("topk_encode_packed", TORCH_BOX(&topk_encode_packed));
  m.impl("cosine_topk_packed", TORCH_BOX(&cosine_topk_packed));
}

}  // namespace finescope
