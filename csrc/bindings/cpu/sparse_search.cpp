// torch.ops.finescope.sparse_cosine_topk on the CPU.
#include <optional>
#include <tuple>

#include "bindings/cpu/parallel.h"
#include "bindings/cpu/rows.h"
#include "bindings/cpu/search.h"
#include "cpu/sparse_search/search.h"

namespace finescope {
namespace {

std::tuple<Tensor, Tensor> run(const CheckedRows& queries, const CheckedRows& corpus, const SearchOptions& o,
                               const PackedSparse* packed_rows, const char* op) {
  const bool cosine = search_metric(o.metric, op) == Metric::cosine;
  const int64_t Q = queries.csr.rows, N = corpus.csr.rows;
  check(o.k >= 0, op, ": k must be at least 0, got ", o.k);
  const Filters filters(o, Q, N, op);
  queries.check_latents("q");
  const bool f64 = queries.csr.dtype == DType::f64 || corpus.csr.dtype == DType::f64;
  const Found found(queries.values, Q, o.k, f64);
  const SparseSearchArgs args{queries.csr,
                              corpus.csr,
                              o.k,
                              cosine,
                              floor_of(o.min_score),
                              filters.exclude(),
                              filters.E(),
                              filters.mask(),
                              o.id_offset,
                              packed_rows != nullptr};
  const int64_t bad = sparse_search(args, packed_rows, torch_workers(), found.output());
  if (bad >= 0) corpus.check_row(bad, "c");
  found.drop_below(o.min_score);
  return {found.scores, found.ids};
}

std::tuple<Tensor, Tensor> search(const Tensor& q_indptr, const Tensor& q_indices, const Tensor& q_values,
                                  const Tensor& c_indptr, const Tensor& c_indices, const Tensor& c_values,
                                  int64_t num_latents, int64_t k, const std::string& metric,
                                  const std::string& screen, std::optional<double> min_score,
                                  const std::optional<Tensor>& exclude, const std::optional<Tensor>& mask,
                                  int64_t id_offset) {
  const char* op = "sparse_cosine_topk";
  screen_choice(screen, op);
  check_latents(num_latents, op);
  const CheckedRows queries(q_indptr, q_indices, q_values, num_latents, "q", op);
  const CheckedRows corpus(c_indptr, c_indices, c_values, num_latents, "c", op);
  return run(queries, corpus, {k, metric, min_score, exclude, mask, id_offset}, nullptr, op);
}

// Rows turned over once for many searches; an empty tensor where that would not pay.
Tensor pack_sparse(const Tensor& indptr, const Tensor& indices, const Tensor& values, int64_t num_latents) {
  const char* op = "pack_sparse_rows";
  check_latents(num_latents, op);
  const CheckedRows rows(indptr, indices, values, num_latents, "c", op);
  const Workers workers = torch_workers();
  const KeepSubnormals keep;
  const SparsePacker packer(rows.csr, workers);
  if (packer.bad() >= 0) rows.check_row(packer.bad(), "c");
  Tensor memory = empty_like_options(indptr, {packer.bytes()}, ScalarType::Byte);
  if (memory.numel() > 0) packer.write(static_cast<char*>(memory.mutable_data_ptr()));
  return memory;
}

std::tuple<Tensor, Tensor> search_packed(const Tensor& q_indptr, const Tensor& q_indices,
                                         const Tensor& q_values, const Tensor& c_indptr,
                                         const Tensor& c_indices, const Tensor& c_values, int64_t num_latents,
                                         const Tensor& memory, int64_t k, const std::string& metric,
                                         std::optional<double> min_score,
                                         const std::optional<Tensor>& exclude,
                                         const std::optional<Tensor>& mask, int64_t id_offset) {
  const char* op = "sparse_cosine_topk_packed";
  check_latents(num_latents, op);
  const CheckedRows queries(q_indptr, q_indices, q_values, num_latents, "q", op);
  const CheckedRows corpus(c_indptr, c_indices, c_values, num_latents, "c", op);
  check(memory.scalar_type() == ScalarType::Byte && memory.dim() == 1 && memory.is_contiguous(), op,
        ": packed must be a contiguous uint8 tensor with one dimension");
  PackedSparse packed_rows;
  const bool held = memory.numel() > 0;
  check(!held ||
            packed_rows.open(static_cast<const char*>(memory.const_data_ptr()), memory.numel(), corpus.csr),
        op, ": packed does not hold ", corpus.csr.rows, " rows packed from this corpus");
  return run(queries, corpus, {k, metric, min_score, exclude, mask, id_offset}, held ? &packed_rows : nullptr,
             op);
}

// The exact scores of chosen pairs.
Tensor pair_scores(const Tensor& q_indptr, const Tensor& q_indices, const Tensor& q_values,
                   const Tensor& c_indptr, const Tensor& c_indices, const Tensor& c_values,
                   int64_t num_latents, const Tensor& ids, const std::string& metric) {
  const char* op = "sparse_pair_scores";
  check_latents(num_latents, op);
  const CheckedRows queries(q_indptr, q_indices, q_values, num_latents, "q", op);
  const CheckedRows corpus(c_indptr, c_indices, c_values, num_latents, "c", op);
  const int64_t Q = queries.csr.rows, N = corpus.csr.rows;
  check(ids.dim() == 2 && ids.size(0) == Q && ids.scalar_type() == ScalarType::Long,
        "ids must be int64 [Q, k] with Q=", Q, ", got ", shape_text(ids));
  const int64_t k = ids.size(1);
  const Tensor chosen = packed(ids);
  const int64_t* id = data<int64_t>(chosen);
  for (int64_t i = 0; i < Q * k; ++i) {
    if (id[i] < -1 || id[i] >= N) {
      throw std::out_of_range(
          words("ids holds ", id[i], " at [", i / k, ", ", i % k, "], which is outside -1..", N - 1));
    }
  }
  queries.check_latents("q");
  Tensor scores = empty_like_options(q_values, {Q, k}, ScalarType::Double);
  const bool cosine = search_metric(metric, op) == Metric::cosine;
  const SparseSearchArgs args{queries.csr, corpus.csr, k, cosine, 0.0, nullptr, 0, nullptr, 0, true};
  const int64_t bad =
      sparse_pair_scores(args, id, torch_workers(), static_cast<double*>(scores.mutable_data_ptr()));
  if (bad >= 0) corpus.check_row(bad, "c");
  return scores;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(finescope, CPU, m)
{
  m.impl("sparse_cosine_topk", TORCH_BOX(&search));
  m.impl("sparse_cosine_topk_packed", TORCH_BOX(&search_packed));
  m.impl("pack_sparse_rows", TORCH_BOX(&pack_sparse));
  m.impl("sparse_pair_scores", TORCH_BOX(&pair_scores));
}

}  // namespace finescope
