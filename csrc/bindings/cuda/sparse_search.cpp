// torch.ops.finescope.sparse_cosine_topk and sparse_pair_scores on CUDA.
#include "cuda/sparse_search.h"

#include <tuple>

#include "bindings/cuda/sort.h"
#include "bindings/sparse_operands.h"
#include "cuda/sparse_plan.h"

namespace finescope::cuda {
namespace {

// Rows that a slab may add to a query's best, at least. The tests have less room, to run out of it.
#if defined(FINESCOPE_CUDA_ON_CPU)
constexpr int64_t kSpare = 256;
#else
constexpr int64_t kSpare = 2048;
#endif
// Bytes that the best rows of a panel may take; for a large k the panel is narrower.
constexpr int64_t kFoundBytes = int64_t{512} << 20;

// The memory of a panel, used for one after the other.
struct Workspace {
  Tensor words, lines, exact, queries, found;
  SparsePanel panel{};

  Workspace(const Tensor& like, const SparseJob& job, int64_t rows_found) {
    const int64_t F = job.queries.latents;
    // A line for each latent that the queries of a panel can hold, and a blank one.
    const int64_t most = std::min(F, job.query_entries);
    const auto room = [&](int64_t bytes) { return empty_like_options(like, {bytes}, ScalarType::Byte); };
    words = room(std::max<int64_t>(1, (F + 31) / 32) * static_cast<int64_t>(sizeof(PanelWord)));
    lines = room((most + 1) * kPanel * 2);
    exact = room(most * kPanel * static_cast<int64_t>(sizeof(double)));
    queries = room(kPanel * static_cast<int64_t>(sizeof(PanelQuery)));
    found = room(rows_found * static_cast<int64_t>(sizeof(SparseFound)));
    panel.words = static_cast<PanelWord*>(words.mutable_data_ptr());
    panel.lines = static_cast<uint32_t*>(lines.mutable_data_ptr());
    panel.blank = static_cast<uint32_t>(most);
    panel.exact = static_cast<double*>(exact.mutable_data_ptr());
    panel.queries = static_cast<PanelQuery*>(queries.mutable_data_ptr());
  }

  // Queries first..first + width.
  void begin(const SparseJob& job, int64_t first, int64_t width, cudaStream_t stream) {
    torch::stable::zero_(words);
    torch::stable::zero_(lines);
    torch::stable::zero_(exact);
    panel.first = first;
    panel.width = static_cast<int32_t>(width);
    launch_sparse_panel(job, panel, stream);
  }
};

SparseJob job_of(const CsrOperand& queries, const CsrOperand& corpus, bool cosine) {
  SparseJob job{};
  job.queries = queries.csr;
  job.corpus = corpus.csr;
  job.query_entries = queries.indices.size(0);
  job.corpus_entries = corpus.indices.size(0);
  job.cosine = cosine;
  job.min_score = job.floor = -std::numeric_limits<double>::infinity();
  return job;
}

std::tuple<Tensor, Tensor> search(const Tensor& q_indptr, const Tensor& q_indices, const Tensor& q_values,
                                  const Tensor& c_indptr, const Tensor& c_indices, const Tensor& c_values,
                                  int64_t num_latents, int64_t k, const std::string& metric,
                                  const std::string& screen, std::optional<double> min_score,
                                  const std::optional<Tensor>& exclude, const std::optional<Tensor>& mask,
                                  int64_t id_offset) {
  const char* op = "sparse_cosine_topk";
  const OnDevice device(q_values);
  const bool cosine = search_metric(metric, op) == Metric::cosine;
  screen_choice(screen, op);
  check(k >= 0, op, ": k must be at least 0, got ", k);
  check_latents(num_latents, op);
  const CsrOperand queries(q_indptr, q_indices, q_values, num_latents, op, "q");
  const CsrOperand corpus(c_indptr, c_indices, c_values, num_latents, op, "c");
  check_device(q_indptr, c_indptr, op, "corpus");
  const int64_t Q = queries.csr.rows, N = corpus.csr.rows;
  check_filters(exclude, mask, id_offset, Q, N, op);
  SparseJob job = job_of(queries, corpus, cosine);
  job.min_score = min_score.value_or(job.min_score);
  job.floor = floor_of(min_score);
  job.id_offset = id_offset;
  std::optional<Tensor> excluded, masked;
  if (exclude.has_value() && exclude->numel() > 0) {
    check_device(q_indptr, *exclude, op, "exclude");
    excluded = packed(stable_sort(*exclude).first);
    job.exclude = data<int64_t>(*excluded);
    job.E = exclude->size(1);
  }
  if (mask.has_value()) {
    check_device(q_indptr, *mask, op, "mask");
    masked = packed(*mask);
    job.mask = data<bool>(*masked);
  }
  const bool f64 = is_wide(q_values) || is_wide(c_values);
  Tensor scores = empty_like_options(q_values, {Q, k}, f64 ? ScalarType::Double : ScalarType::Float);
  Tensor ids = empty_like_options(q_values, {Q, k}, ScalarType::Long);
  if (Q == 0 || k == 0) return {scores, ids};

  job.k = std::min(k, N);
  const int64_t spare = std::max(kSpare, (2 * job.k + kTile - 1) / kTile * kTile);
  job.room = job.k + spare;
  int64_t width = std::min<int64_t>(Q, kPanel);
  while (width > 1 && width * job.room * static_cast<int64_t>(sizeof(SparseFound)) > kFoundBytes) width /= 2;
  Workspace workspace(q_values, job, width * job.room);
  job.found = static_cast<SparseFound*>(workspace.found.mutable_data_ptr());
  const int64_t tiles = (N + kTile - 1) / kTile;
  for (int64_t first = 0; first < Q; first += width) {
    workspace.begin(job, first, std::min(width, Q - first), device.stream());
    for (int64_t seen = 0; seen < tiles;) {
      const int64_t more = next_slab(seen * kTile, job.k, spare) / kTile;
      const int64_t last = more < tiles - seen ? seen + more : tiles;
      launch_sparse_slab(job, workspace.panel, seen, last, device.stream());
      seen = last;
    }
    launch_sparse_results(job, workspace.panel, k, f64, scores.mutable_data_ptr(),
                          static_cast<int64_t*>(ids.mutable_data_ptr()), device.stream());
  }
  return {scores, ids};
}

Tensor pair_scores(const Tensor& q_indptr, const Tensor& q_indices, const Tensor& q_values,
                   const Tensor& c_indptr, const Tensor& c_indices, const Tensor& c_values,
                   int64_t num_latents, const Tensor& ids, const std::string& metric) {
  const char* op = "sparse_pair_scores";
  const OnDevice device(q_values);
  const bool cosine = search_metric(metric, op) == Metric::cosine;
  check_latents(num_latents, op);
  const CsrOperand queries(q_indptr, q_indices, q_values, num_latents, op, "q");
  const CsrOperand corpus(c_indptr, c_indices, c_values, num_latents, op, "c");
  const int64_t Q = queries.csr.rows;
  check(ids.dim() == 2 && ids.size(0) == Q && ids.scalar_type() == ScalarType::Long,
        "ids must be int64 [Q, k] with Q=", Q);
  check_device(q_indptr, c_indptr, op, "corpus");
  check_device(q_indptr, ids, op, "ids");
  const Tensor chosen = packed(ids);
  Tensor out = empty_like_options(q_values, {Q, ids.size(1)}, ScalarType::Double);
  if (out.numel() == 0) return out;
  const SparseJob job = job_of(queries, corpus, cosine);
  Workspace workspace(q_values, job, 0);
  for (int64_t first = 0; first < Q; first += kPanel) {
    workspace.begin(job, first, std::min<int64_t>(kPanel, Q - first), device.stream());
    launch_sparse_pairs(job, workspace.panel, data<int64_t>(chosen), ids.size(1),
                        static_cast<double*>(out.mutable_data_ptr()), device.stream());
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(finescope, FINESCOPE_CUDA_KEY, m)
{
  m.impl("sparse_cosine_topk", TORCH_BOX(&search));
  m.impl("sparse_pair_scores", TORCH_BOX(&pair_scores));
}

}  // namespace finescope::cuda
