// torch.ops.finescope.sparse_cosine_topk on the CPU.
#include "cpu/sparse_search.h"

#include <cmath>
#include <optional>
#include <tuple>

#include "bindings/tensors.h"

namespace finescope {
namespace {

constexpr const char* kOp = "sparse_cosine_topk";

// Three tensors as checked rows. Latents are checked by whoever reads them first.
struct Rows3 {
  Tensor indptr, indices, values;
  Csr csr;

  Rows3(const Tensor& p, const Tensor& i, const Tensor& v, int64_t latents, const char* name)
      : indptr(packed(p)), indices(packed(i)), values(packed(v)) {
    check(p.dim() == 1 && p.size(0) >= 1 && p.scalar_type() == ScalarType::Long, name,
          "_indptr must be int64 [N+1]");
    check(i.dim() == 1 && v.dim() == 1 && i.size(0) == v.size(0), name, "_values must have shape ",
          shape_text(i), " like ", name, "_indices, got ", shape_text(v));
    IndexType type;
    switch (i.scalar_type()) {
      case ScalarType::UInt16:
        type = IndexType::u16;
        break;
      case ScalarType::Int:
        type = IndexType::i32;
        break;
      case ScalarType::Long:
        type = IndexType::i64;
        break;
      default:
        fail(name, "_indices must be uint16, int32 or int64, not ", dtype_name(i.scalar_type()));
    }
    const int64_t N = p.size(0) - 1, nnz = i.size(0);
    const int64_t* start = data<int64_t>(indptr);
    bool rises = start[0] == 0 && start[N] == nnz;
    for (int64_t n = 0; n < N; ++n) rises &= start[n] <= start[n + 1];
    check(rises, name, "_indptr must rise from 0 to nnz=", nnz);
    csr = {start,  indices.const_data_ptr(), values.const_data_ptr(), type, float_dtype(v, kOp, name), N,
           latents};
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

// Boundaries of `parts` runs of rows with equal numbers of entries (plus one per row).
int64_t boundary(const Csr& rows, int64_t part, int64_t parts) {
  if (part == parts) return rows.rows;
  const int64_t target = (rows.indptr[rows.rows] + rows.rows) / parts * part;
  int64_t low = 0, high = rows.rows;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (rows.indptr[middle] + middle < target) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

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

std::tuple<Tensor, Tensor> search(const Tensor& q_indptr, const Tensor& q_indices, const Tensor& q_values,
                                  const Tensor& c_indptr, const Tensor& c_indices, const Tensor& c_values,
                                  int64_t num_latents, int64_t k, const std::string& metric,
                                  const std::string& screen, std::optional<double> min_score,
                                  const std::optional<Tensor>& exclude, const std::optional<Tensor>& mask,
                                  int64_t id_offset) {
  check(metric == "cosine" || metric == "ip", "metric must be 'cosine' or 'ip', got '", metric, "'");
  const std::string screens[] = {"auto", "int8", "bf16", "float32", "none"};
  check(std::find(std::begin(screens), std::end(screens), screen) != std::end(screens),
        "screen must be one of 'auto', 'int8', 'bf16', 'float32', 'none', got '", screen, "'");
  check(k >= 0, "k must be at least 0, got ", k);
  check(num_latents >= 0 && num_latents <= INT32_MAX, "num_latents must be 0 .. 2^31-1, got ", num_latents);
  const Rows3 queries(q_indptr, q_indices, q_values, num_latents, "q");
  const Rows3 corpus(c_indptr, c_indices, c_values, num_latents, "c");
  const int64_t Q = queries.csr.rows, N = corpus.csr.rows;
  for (int64_t q = 0; q < Q; ++q) queries.check_row(q, "q");
  std::optional<Tensor> excluded, masked;
  if (exclude.has_value()) {
    check(exclude->dim() == 2 && exclude->size(0) == Q && exclude->scalar_type() == ScalarType::Long,
          "exclude must be int64 [Q, E] with Q=", Q);
    excluded = torch::stable::new_empty(*exclude, {Q, exclude->size(1)});
    const Tensor given = packed(*exclude);
    int64_t* rows = static_cast<int64_t*>(excluded->mutable_data_ptr());
    for (int64_t i = 0; i < given.numel(); ++i) {
      const int64_t id = data<int64_t>(given)[i];
      rows[i] = id < 0 ? -1 : id - id_offset;
    }
  }
  if (mask.has_value()) {
    check(mask->dim() == 1 && mask->size(0) == N && mask->scalar_type() == ScalarType::Bool,
          "mask must be bool [N] with N=", N);
    masked = packed(*mask);
  }
  const bool f64 =
      q_values.scalar_type() == ScalarType::Double || c_values.scalar_type() == ScalarType::Double;
  Tensor scores = empty_like_options(q_values, {Q, k}, f64 ? ScalarType::Double : ScalarType::Float);
  Tensor ids = empty_like_options(q_values, {Q, k}, ScalarType::Long);
  const double floor = min_score.value_or(-std::numeric_limits<double>::infinity());
  SparseSearch state({queries.csr, corpus.csr, k, metric == "cosine", floor,
                      excluded ? data<int64_t>(*excluded) : nullptr, excluded ? excluded->size(1) : 0,
                      masked ? data<bool>(*masked) : nullptr});
  const int64_t entries = corpus.indices.size(0) + N;
  const int64_t parts = k == 0 ? 1
                               : std::clamp<int64_t>(entries / 32768, 1,
                                                     static_cast<int64_t>(torch::stable::get_num_threads()));
  for (int64_t panel = 0; panel < state.panels() && k > 0; ++panel) {
    state.begin(panel, parts);
    std::atomic<int64_t> bad{-1};
    parallel(parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        const int64_t row =
            state.scan(part, boundary(corpus.csr, part, parts), boundary(corpus.csr, part + 1, parts));
        if (row >= 0) bad = row;
      }
    });
    if (bad >= 0) corpus.check_row(bad, "c");
    parallel(state.count(panel), 1, [&](int64_t begin, int64_t end) {
      for (int64_t q = begin; q < end; ++q) {
        const std::vector<SparseCandidate> found = state.finish(q);
        const int64_t at = (state.first(panel) + q) * k;
        int64_t* id = static_cast<int64_t*>(ids.mutable_data_ptr()) + at;
        if (f64) {
          store(found, floor, k, id_offset, static_cast<double*>(scores.mutable_data_ptr()) + at, id);
        } else {
          store(found, floor, k, id_offset, static_cast<float*>(scores.mutable_data_ptr()) + at, id);
        }
      }
    });
  }
  return {scores, ids};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(finescope, CPU, m)
{
  m.impl("sparse_cosine_topk", TORCH_BOX(&search));
}

}  // namespace finescope
