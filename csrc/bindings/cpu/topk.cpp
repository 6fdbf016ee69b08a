// torch.ops.finescope on the CPU: topk_encode and cosine_topk.
#include "cpu/topk/topk.h"

#include <optional>
#include <tuple>

#include "bindings/cpu/packed.h"
#include "bindings/cpu/parallel.h"
#include "bindings/cpu/search.h"
#include "bindings/topk_operands.h"
#include "cpu/topk/centre.h"

namespace finescope {
namespace {

std::tuple<Tensor, Tensor> run_encode(const Tensor& x, const Tensor& weight,
                                      const std::optional<Tensor>& bias, int64_t k, ScreenChoice choice,
                                      const Packed* packed) {
  const char* op = "topk_encode";
  const EncodeOperands o(x, weight, bias, op);
  check_encode_k(k, o.F, op);
  const Found found(x, o.B, k, o.f64);
  TopkProblem problem{};
  problem.x = o.x.matrix, problem.w = o.weight.matrix;
  problem.B = o.B, problem.N = o.F, problem.d = o.D, problem.k = k;
  problem.metric = Metric::encode;
  problem.bias = o.bias ? data<double>(*o.bias) : nullptr;
  topk(problem, packed, choice, torch_workers(), found.output());
  return {found.scores, found.ids};
}

std::tuple<Tensor, Tensor> run_search(const Tensor& queries, const Tensor& corpus,
                                      const SearchOptions& options, ScreenChoice choice,
                                      const Packed* packed) {
  const char* op = "cosine_topk";
  const Rows q(queries, op, "queries"), c(corpus, op, "corpus");
  const int64_t Q = queries.size(0), N = corpus.size(0), D = corpus.size(1);
  check(queries.size(1) == D, op, ": corpus ", shape_text(corpus), " must have shape [N, ", queries.size(1),
        "]");
  check(options.k >= 0, op, ": k must be at least 0, got ", options.k);
  const Metric metric = search_metric(options.metric, op);
  const Filters filters(options, Q, N, op);
  const Found found(queries, Q, options.k, q.matrix.dtype == DType::f64 || c.matrix.dtype == DType::f64);
  const TopkProblem problem{q.matrix,
                            c.matrix,
                            Q,
                            N,
                            D,
                            options.k,
                            metric,
                            nullptr,
                            floor_of(options.min_score),
                            filters.exclude(),
                            filters.E(),
                            filters.mask(),
                            options.id_offset};
  topk(problem, packed, choice, torch_workers(), found.output());
  found.drop_below(options.min_score);
  return {found.scores, found.ids};
}

std::tuple<Tensor, Tensor> topk_encode(const Tensor& x, const Tensor& weight,
                                       const std::optional<Tensor>& bias, int64_t k,
                                       const std::string& screen) {
  return run_encode(x, weight, bias, k, screen_choice(screen, "topk_encode"), nullptr);
}

std::tuple<Tensor, Tensor> cosine_topk(const Tensor& queries, const Tensor& corpus, int64_t k,
                                       const std::string& metric, const std::string& screen,
                                       const std::optional<double>& min_score,
                                       const std::optional<Tensor>& exclude,
                                       const std::optional<Tensor>& mask, int64_t id_offset) {
  const SearchOptions options{k, metric, min_score, exclude, mask, id_offset};
  return run_search(queries, corpus, options, screen_choice(screen, "cosine_topk"), nullptr);
}

Metric packed_metric(const std::string& name, const char* op) {
  check(name == "cosine" || name == "ip" || name == "encode", op,
        ": metric must be one of 'cosine', 'ip', 'encode', got '", name, "'");
  return name == "encode" ? Metric::encode : search_metric(name, op);
}

// Nothing (an empty tensor) where packing is of no use: for float64, and for sizes no screen takes.
Tensor pack_rows(const Tensor& matrix, const std::string& metric, const std::string& screen) {
  const char* op = "pack_rows";
  const Rows rows(matrix, op, "matrix");
  const ScreenChoice choice = screen_choice(screen, op);
  const int64_t n = matrix.size(0), d = matrix.size(1);
  const Metric kind = packed_metric(metric, op);
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

std::tuple<Tensor, Tensor> topk_encode_packed(const Tensor& x, const Tensor& weight,
                                              const std::optional<Tensor>& bias, const Tensor& packed,
                                              int64_t k) {
  const Opened opened(packed, weight, Metric::encode, "topk_encode_packed");
  return run_encode(x, weight, bias, k, ScreenChoice::automatic, opened.get);
}

std::tuple<Tensor, Tensor> cosine_topk_packed(const Tensor& queries, const Tensor& corpus,
                                              const Tensor& packed, int64_t k, const std::string& metric,
                                              const std::optional<double>& min_score,
                                              const std::optional<Tensor>& exclude,
                                              const std::optional<Tensor>& mask, int64_t id_offset) {
  const Opened opened(packed, corpus, search_metric(metric, "cosine_topk_packed"), "cosine_topk_packed");
  const SearchOptions options{k, metric, min_score, exclude, mask, id_offset};
  return run_search(queries, corpus, options, ScreenChoice::automatic, opened.get);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(finescope, CPU, m)
{
  m.impl("topk_encode", TORCH_BOX(&topk_encode));
  m.impl("cosine_topk", TORCH_BOX(&cosine_topk));
  m.impl("pack_rows", TORCH_BOX(&pack_rows));
  m.impl("topk_encode_packed", TORCH_BOX(&topk_encode_packed));
  m.impl("cosine_topk_packed", TORCH_BOX(&cosine_topk_packed));
}

}  // namespace finescope
