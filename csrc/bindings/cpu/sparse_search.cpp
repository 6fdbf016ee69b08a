// torch.ops.finescope.sparse_cosine_topk on the CPU.
#include <cmath>
#include <optional>
#include <tuple>

#include "bindings/sparse_operands.h"
#include "cpu/sparse_search/search.h"

namespace finescope {
namespace {

// Rows whose pointers rise. Latents are checked by whoever reads them first.
struct Rows3 : CsrOperand {
  Rows3(const Tensor& p, const Tensor& i, const Tensor& v, int64_t latents, const char* name, const char* op)
      : CsrOperand(p, i, v, latents, op, name) {
    const int64_t N = csr.rows, nnz = i.size(0);
    const int64_t* start = csr.indptr;
    bool rises = start[0] == 0 && start[N] == nnz;
    for (int64_t n = 0; n < N; ++n) rises &= start[n] <= start[n + 1];
    check(rises, name, "_indptr must rise from 0 to nnz=", nnz);
  }

  int64_t latent(int64_t i) const {
    switch (csr.index_type) {
      case IndexType::u16:
        return static_cast<const uint16_t*>(csr.indices)[i];
      case IndexType::i32:
        return static_cast<const int32_t*>(csr.indices)[i];
      default:
        return static_cast<const int64_t*>(csr.indices)[i];
    }
  }

  [[noreturn]] void refuse(int64_t value, int64_t row, const char* name) const {
    throw std::out_of_range(
        words(name, "_indices holds ", value, " in row ", row, ", which is outside 0..", csr.latents - 1));
  }

  void check_row(int64_t row, const char* name) const {
    for (int64_t i = csr.indptr[row]; i < csr.indptr[row + 1]; ++i) {
      if (latent(i) < 0 || latent(i) >= csr.latents) refuse(latent(i), row, name);
    }
  }
};

template <class T>
void store(const std::vector<SparseCandidate>& found, double min_score, int64_t k, int64_t id_offset,
           T* scores, int64_t* ids) {
  int64_t kept = 0;
  for (const SparseCandidate& c : found) {
    const T score = static_cast<T>(c.low);
    if (!(static_cast<double>(score) >= min_score)) break;  // scores fall from here on
    scores[kept] = score;
    ids[kept++] = c.row + id_offset;
  }
  std::fill(scores + kept, scores + k, -std::numeric_limits<T>::infinity());
  std::fill(ids + kept, ids + k, int64_t{-1});
}

struct Options {
  int64_t k;
  const std::string& metric;
  const std::optional<double>& min_score;
  const std::optional<Tensor>&exclude, &mask;
  int64_t id_offset;
};

int64_t threads() {
  return std::max<int64_t>(1, static_cast<int64_t>(torch::stable::get_num_threads()));
}

std::tuple<Tensor, Tensor> run(const Rows3& queries, const Rows3& corpus, const Options& o,
                               const PackedSparse* packed_rows, const char* op) {
  check_metric(o.metric, op);
  const bool cosine = o.metric == "cosine";
  const int64_t k = o.k, Q = queries.csr.rows, N = corpus.csr.rows;
  check(k >= 0, op, ": k must be at least 0, got ", k);
  check_filters(o.exclude, o.mask, Q, N, op);
  for (int64_t q = 0; q < Q; ++q) queries.check_row(q, "q");
  std::optional<Tensor> excluded, masked;
  if (o.exclude.has_value()) {
    excluded = torch::stable::new_empty(*o.exclude, {Q, o.exclude->size(1)});
    const Tensor given = packed(*o.exclude);
    int64_t* rows = static_cast<int64_t*>(excluded->mutable_data_ptr());
    for (int64_t i = 0; i < given.numel(); ++i) {
      const int64_t id = data<int64_t>(given)[i];
      rows[i] = id < 0 ? -1 : id - o.id_offset;
    }
  }
  if (o.mask.has_value()) masked = packed(*o.mask);
  const bool f64 = queries.csr.dtype == DType::f64 || corpus.csr.dtype == DType::f64;
  Tensor scores = empty_like_options(queries.values, {Q, k}, f64 ? ScalarType::Double : ScalarType::Float);
  Tensor ids = empty_like_options(queries.values, {Q, k}, ScalarType::Long);
  const double floor = o.min_score.value_or(-std::numeric_limits<double>::infinity());
  const SparseSearchArgs args{queries.csr,
                              corpus.csr,
                              k,
                              cosine,
                              floor,
                              excluded ? data<int64_t>(*excluded) : nullptr,
                              excluded ? excluded->size(1) : 0,
                              masked ? data<bool>(*masked) : nullptr,
                              packed_rows != nullptr};
  const KeepSubnormals keep;
  SparseSearch state(args, packed_rows);
  const int64_t parts = std::clamp<int64_t>(state.windows(), 1, threads());
  for (int64_t panel = 0; panel < state.panels() && k > 0; ++panel) {
    state.begin(panel, parts);
    std::atomic<int64_t> bad{-1};
    const auto guarded = [&](const auto& body) {
      try {
        body();
      } catch (const SparseRowError& error) {
        bad = error.row;
      }
    };
    parallel(parts, 1, [&](int64_t begin, int64_t end) {
      guarded([&] {
        for (int64_t part = begin; part < end; ++part) {
          const int64_t row = state.scan(part);
          if (row >= 0) bad = row;
        }
      });
    });
    if (bad < 0) {
      parallel(state.count(panel), 1, [&](int64_t begin, int64_t end) {
        guarded([&] {
          ExactSparse exact(args);
          for (int64_t q = begin; q < end; ++q) {
            const std::vector<SparseCandidate> found = state.finish(q, exact);
            const int64_t at = (state.first(panel) + q) * k;
            int64_t* id = static_cast<int64_t*>(ids.mutable_data_ptr()) + at;
            if (f64) {
              store(found, floor, k, o.id_offset, static_cast<double*>(scores.mutable_data_ptr()) + at, id);
            } else {
              store(found, floor, k, o.id_offset, static_cast<float*>(scores.mutable_data_ptr()) + at, id);
            }
          }
        });
      });
    }
    if (bad >= 0) corpus.check_row(bad, "c");
  }
  return {scores, ids};
}

std::tuple<Tensor, Tensor> search(const Tensor& q_indptr, const Tensor& q_indices, const Tensor& q_values,
                                  const Tensor& c_indptr, const Tensor& c_indices, const Tensor& c_values,
                                  int64_t num_latents, int64_t k, const std::string& metric,
                                  const std::string& screen, std::optional<double> min_score,
                                  const std::optional<Tensor>& exclude, const std::optional<Tensor>& mask,
                                  int64_t id_offset) {
  const char* op = "sparse_cosine_topk";
  check_screen(screen, op);
  check_latents(num_latents, op);
  const Rows3 queries(q_indptr, q_indices, q_values, num_latents, "q", op);
  const Rows3 corpus(c_indptr, c_indices, c_values, num_latents, "c", op);
  return run(queries, corpus, {k, metric, min_score, exclude, mask, id_offset}, nullptr, op);
}

// Rows turned over once for many searches; an empty tensor where that would not pay.
Tensor pack_sparse(const Tensor& indptr, const Tensor& indices, const Tensor& values, int64_t num_latents) {
  const char* op = "pack_sparse_rows";
  check_latents(num_latents, op);
  const Rows3 rows(indptr, indices, values, num_latents, "c", op);
  const std::vector<int64_t> edges = sparse_windows(rows.csr);
  const int64_t n = static_cast<int64_t>(edges.size()) - 1;
  std::vector<int64_t> words(n);
  std::atomic<int64_t> bad{-1};
  // Each thread its own turner: run(w, turner) for all windows.
  const auto each = [&](const auto& body) {
    std::atomic<int64_t> next{0};
    parallel(std::clamp<int64_t>(n, 1, threads()), 1, [&](int64_t, int64_t) {
      SparseTurner turner(rows.csr);
      for (int64_t w = next++; w < n && bad < 0; w = next++) {
        const int64_t row = turner.count(edges[w], edges[w + 1], nullptr);
        if (row >= 0) {
          bad = row;
        } else {
          body(w, turner);
        }
      }
    });
    if (bad >= 0) rows.check_row(bad, "c");
  };
  each([&](int64_t w, SparseTurner& turner) { words[w] = turner.words(); });
  PackedSparse packed_rows;
  Tensor memory =
      empty_like_options(indptr, {packed_rows.plan(rows.csr, edges, words, nullptr)}, ScalarType::Byte);
  if (memory.numel() == 0) return memory;
  char* bytes = static_cast<char*>(memory.mutable_data_ptr());
  packed_rows.plan(rows.csr, edges, words, bytes);
  each([&](int64_t w, SparseTurner& turner) { packed_rows.write(w, turner.window(), words[w], bytes); });
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
  const Rows3 queries(q_indptr, q_indices, q_values, num_latents, "q", op);
  const Rows3 corpus(c_indptr, c_indices, c_values, num_latents, "c", op);
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
  const Rows3 queries(q_indptr, q_indices, q_values, num_latents, "q", op);
  const Rows3 corpus(c_indptr, c_indices, c_values, num_latents, "c", op);
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
  for (int64_t q = 0; q < Q; ++q) queries.check_row(q, "q");
  Tensor scores = empty_like_options(q_values, {Q, k}, ScalarType::Double);
  double* out = static_cast<double*>(scores.mutable_data_ptr());
  check_metric(metric, op);
  const SparseSearchArgs args{queries.csr, corpus.csr, k, metric == "cosine", 0.0, nullptr, 0, nullptr, true};
  std::atomic<int64_t> bad{-1};
  parallel(Q, 1, [&](int64_t begin, int64_t end) {
    try {
      ExactSparse exact(args);
      for (int64_t q = begin; q < end; ++q) {
        const double norm = sparse_norm(queries.csr, q);
        exact.load(q, norm);
        for (int64_t i = q * k; i < (q + 1) * k; ++i) {
          bool finite = false;
          const double score = id[i] < 0 ? 0.0 : exact.score(id[i], &finite);
          out[i] = finite && std::isfinite(norm) ? score : -std::numeric_limits<double>::infinity();
        }
      }
    } catch (const SparseRowError& error) {
      bad = error.row;
    }
  });
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
