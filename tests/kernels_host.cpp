// The kernels of sparse codes and of training without torch, against plain loops in the order that kernels.h
// states: every byte of every result, for every dtype and for widths that end within a register.
//
// Prints a line for each failure and exits with 1 if there was one.
#include <algorithm>
#include <map>

#include "cpu/codes/sparse.h"
#include "cpu/sparse_search/search.h"
#include "host_rows.h"

using namespace host;

namespace {

// --- sparse codes

template <class Acc>
void check_sums(DType dtype, int64_t D) {
  constexpr DType acc = sizeof(Acc) == 8 ? DType::f64 : DType::f32;
  const int64_t B = 9, K = 7, F = 23;
  const Rows weight(dtype, F, D), tokens(dtype, B, D);
  Rows values(acc, B, K), bias(acc, 1, D);
  const std::vector<int64_t> indices = some_indices(B * K, F);
  for (bool with_bias : {false, true}) {
    Rows out(dtype, B, D), wanted(dtype, B, D);
    const SparseDecodeArgs args{
        values.data(), indices.data(), weight.matrix(), with_bias ? bias.data() : nullptr, out.data(), K, D};
    sparse_kernels().sparse_decode(args, 0, 4);
    sparse_kernels().sparse_decode(args, 4, B);
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t d = 0; d < D; ++d) {
        Acc sum = 0;
        for (int64_t j = 0; j < K; ++j) {
          sum += static_cast<Acc>(values.at(b, j)) * static_cast<Acc>(weight.at(indices[b * K + j], d));
        }
        if (with_bias) sum += static_cast<Acc>(bias.at(d));
        wanted.put(b * D + d, sum);
      }
    }
    expect("sparse_decode", dtype, D, out, wanted);
  }
  // The same pairs by latent.
  std::vector<int64_t> start(1, 0), row, position;
  Rows pair_values(acc, 1, B * K), out(acc, F, D), wanted(acc, F, D);
  for (int64_t f = 0; f < F; ++f) {
    for (int64_t i = 0; i < B * K; ++i) {
      if (indices[i] != f) continue;
      pair_values.put(static_cast<int64_t>(row.size()), values.at(i));
      row.push_back(i / K);
      position.push_back(i);
    }
    start.push_back(static_cast<int64_t>(row.size()));
    for (int64_t d = 0; d < D; ++d) {
      Acc sum = 0;
      for (int64_t i = start[f]; i < start[f + 1]; ++i) {
        sum += static_cast<Acc>(pair_values.at(i)) * static_cast<Acc>(tokens.at(row[i], d));
      }
      wanted.put(f * D + d, sum);
    }
  }
  sparse_kernels().scatter_rows(
      {start.data(), row.data(), pair_values.data(), tokens.matrix(), out.data(), D}, 0, F);
  expect("scatter_rows", dtype, D, out, wanted);

  Rows sums(acc, F, D), dots(acc, B, K), wanted_dots(acc, B, K);
  const DecodeGradsArgs grads{{start.data(), row.data(), pair_values.data(), tokens.matrix(), sums.data(), D},
                              position.data(),
                              weight.matrix(),
                              dots.data()};
  sparse_kernels().decode_grads(grads, 0, 5);
  sparse_kernels().decode_grads(grads, 5, F);
  for (int64_t i = 0; i < B * K; ++i) wanted_dots.put(i, dot(D, tokens, i / K, weight, indices[i]));
  expect("decode_grads, weight", dtype, D, sums, wanted);
  expect("decode_grads, values", dtype, D, dots, wanted_dots);
}

void check_dots(DType x_type, DType w_type, int64_t D) {
  const int64_t B = 5, K = 7, F = 11;
  const Rows x(x_type, B, D), weight(w_type, F, D);
  const std::vector<int64_t> indices = some_indices(B * K, F);
  for (DType out_type : {DType::f32, DType::f64}) {
    Rows out(out_type, B, K), wanted(out_type, B, K);
    sparse_kernels().sampled_dot(
        {x.matrix(), indices.data(), weight.matrix(), out.data(), out_type == DType::f64, K, D}, 0, B);
    for (int64_t i = 0; i < B * K; ++i) wanted.put(i, dot(D, x, i / K, weight, indices[i]));
    expect("sampled_dot", x_type, D, out, wanted);
  }
}

// Every number of 16 bits is read exactly, and float32 numbers are rounded to them as they should be.
void check_conversions(DType dtype) {
  const int64_t n = 1 << 16;
  Rows every(dtype, 1, n), ones(dtype, 1, n);
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t bits = static_cast<uint16_t>(i);
    std::memcpy(every.bytes.data() + 2 * i, &bits, 2);
    ones.put(i, 1.0);
  }
  const int64_t index = 0;
  const auto times = [&](float factor, const Rows& rows, int64_t columns) {
    Rows out(dtype, 1, columns);
    sparse_kernels().sparse_decode({&factor, &index, rows.matrix(), nullptr, out.data(), 1, columns}, 0, 1);
    return out;
  };
  Rows wanted(dtype, 1, n);
  for (int64_t i = 0; i < n; ++i) wanted.put(i, 0.0 + every.at(i));
  expect("reading", dtype, n, times(1.0f, every, n), wanted);
  for (int i = 0; i < 4000; ++i) {
    // Halves between neighbours, and what lies just beside them.
    double x = every.at(host::random.below(n));
    if (!std::isfinite(x) || std::fabs(x) > 1e38) continue;
    const int digits = dtype == DType::bf16 ? 8 : 11;
    const double unit = std::ldexp(
        1.0, std::max(x == 0 ? -200 : std::ilogb(x) - digits + 1, dtype == DType::bf16 ? -133 : -24));
    float value = static_cast<float>(x + unit * 0.5);
    if (i % 3 > 0) value = std::nextafter(value, i % 3 == 1 ? -HUGE_VALF : HUGE_VALF);
    Rows rounded(dtype, 1, 9);
    for (int64_t j = 0; j < 9; ++j) rounded.put(j, 0.0 + double{value});
    expect("rounding", dtype, 9, times(value, ones, 9), rounded);
  }
}

void check_pooling(Reduce reduce) {
  const int64_t N = 12, K = 5, F = 40, keep = 6;
  std::vector<int64_t> offsets(1, 0);
  for (int64_t n = 0; n < N; ++n) offsets.push_back(offsets.back() + n % 5);
  Rows values(DType::f32, offsets.back(), K);
  const std::vector<int64_t> indices = some_indices(offsets.back() * K, F);
  Rows out(DType::f32, N, keep), wanted(DType::f32, N, keep);
  std::vector<int64_t> latents(static_cast<size_t>(N * keep)), wanted_latents(latents.size(), -1);
  for (int64_t n = 0; n < N; ++n) {
    std::map<int64_t, double> total;
    for (int64_t b = offsets[n]; b < offsets[n + 1]; ++b) {
      std::map<int64_t, double> token;
      for (int64_t i = b * K; i < (b + 1) * K; ++i) {
        if (!(values.at(i) > 0)) continue;
        const bool per_token = reduce == Reduce::max || reduce == Reduce::count;
        (per_token ? token : total)[indices[i]] += values.at(i);
      }
      for (const auto& [latent, value] : token) {
        double& t = total[latent];
        t = reduce == Reduce::max ? std::max(t, value) : t + 1.0;
      }
    }
    std::vector<std::pair<double, int64_t>> ranked;
    for (const auto& [latent, value] : total) {
      double v = value;
      if (reduce == Reduce::mean || reduce == Reduce::sqrt_mean) v /= double(offsets[n + 1] - offsets[n]);
      ranked.emplace_back(-(reduce == Reduce::sqrt_mean ? std::sqrt(v) : v), latent);
    }
    std::sort(ranked.begin(), ranked.end());
    if (ranked.size() > size_t{keep}) ranked.resize(keep);
    std::sort(ranked.begin(), ranked.end(), [](auto a, auto b) { return a.second < b.second; });
    for (int64_t s = 0; s < keep; ++s) {
      const bool held = s < static_cast<int64_t>(ranked.size());
      wanted.put(n * keep + s, held ? -ranked[s].first : 0.0);
      if (held) wanted_latents[n * keep + s] = ranked[s].second;
    }
  }
  pool_codes({values.data(), indices.data(), false, offsets.data(), K, reduce, keep,
              static_cast<float*>(out.data()), latents.data()},
             0, N);
  expect("pool_codes", DType::f32, static_cast<int64_t>(reduce), out, wanted);
  if (latents != wanted_latents) host::fail("pool_codes reduce %d: other latents", static_cast<int>(reduce));
}

struct SparseRows {
  std::vector<int64_t> indptr{0}, wide;
  std::vector<uint16_t> narrow;
  std::vector<int32_t> middle;
  Rows values{DType::f32, 0, 0};
  int64_t latents;

  SparseRows(DType dtype, int64_t n, int64_t latents) : latents(latents) {
    for (int64_t row = 0; row < n; ++row) {
      // Every ninth row repeats the one before, so that there are ties.
      const bool again = row % 9 == 8;
      const int64_t from = again ? indptr[row - 1] : 0, to = again ? indptr[row] : 0;
      for (int64_t i = from; i < to; ++i) wide.push_back(wide[i]);
      for (int64_t f = 0; f < latents && !again; ++f) {
        if (host::random.below(8) == 0) wide.push_back(f);
      }
      indptr.push_back(static_cast<int64_t>(wide.size()));
    }
    values = Rows(dtype, 1, indptr.back());
    for (int64_t row = 8; row < n; row += 9) {
      for (int64_t i = indptr[row]; i < indptr[row + 1]; ++i)
        values.put(i, values.at(i - indptr[row] + indptr[row - 1]));
    }
    narrow.assign(wide.begin(), wide.end());
    middle.assign(wide.begin(), wide.end());
  }
  Csr csr(IndexType type) const {
    const void* indices = narrow.data();
    if (type == IndexType::i32) indices = middle.data();
    if (type == IndexType::i64) indices = wide.data();
    const int64_t rows = static_cast<int64_t>(indptr.size()) - 1;
    return {indptr.data(), indices, values.bytes.data(), type, values.dtype, rows, latents};
  }
};

void check_matmul(DType dtype, IndexType type, int64_t C) {
  const int64_t N = 40, F = 97;
  const SparseRows codes(dtype, N, F);
  Rows panel(DType::f64, F, C);
  Rows out(DType::f64, N, C), wanted(DType::f64, N, C);
  const SparseMatmulArgs args{codes.csr(type), static_cast<const double*>(panel.data()), C,
                              static_cast<double*>(out.data()), C};
  const int64_t bad = sparse_kernels().sparse_matmul(args, 0, 17),
                later = sparse_kernels().sparse_matmul(args, 17, N);
  if (bad != -1 || later != -1) host::fail("sparse_matmul %s: a latent out of range", name(dtype));
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t c = 0; c < C; ++c) {
      double sum = 0;
      for (int64_t i = codes.indptr[n]; i < codes.indptr[n + 1]; ++i) {
        sum += codes.values.at(i) * panel.at(codes.wide[i], c);
      }
      wanted.put(n * C + c, sum);
    }
  }
  expect("sparse_matmul", dtype, C, out, wanted);
}

void check_products(DType dtype, IndexType type, int64_t count) {
  const int64_t N = 41, F = 97;
  const SparseRows rows(dtype, N, F), queries(DType::f64, count, F);
  Rows out(DType::f64, count, N), wanted(DType::f64, count, N);
  std::vector<uint32_t> start(F + 2);
  std::vector<uint16_t> row(rows.wide.size());
  std::vector<double> value(rows.wide.size());
  const Csr held = queries.csr(IndexType::i64);
  const SparseProductsArgs args{rows.csr(type),
                                held.indptr,
                                queries.wide.data(),
                                static_cast<const double*>(held.values),
                                count,
                                static_cast<double*>(out.data()),
                                {start.data(), row.data(), value.data()}};
  const int64_t bad = sparse_kernels().sparse_products(args, 0, 17),
                later = sparse_kernels().sparse_products(args, 17, N);
  if (bad != -1 || later != -1) host::fail("sparse_products %s: a latent out of range", name(dtype));
  for (int64_t q = 0; q < count; ++q) {
    std::vector<double> own(F);
    for (int64_t i = queries.indptr[q]; i < queries.indptr[q + 1]; ++i) {
      own[queries.wide[i]] = queries.values.at(i);
    }
    for (int64_t n = 0; n < N; ++n) {
      double sum = 0;
      for (int64_t i = rows.indptr[n]; i < rows.indptr[n + 1]; ++i) {
        sum += rows.values.at(i) * own[rows.wide[i]];
      }
      wanted.put(q * N + n, sum);
    }
  }
  expect("sparse_products", dtype, count, out, wanted);
}

// A corpus packed for searches.
struct PackedRows {
  std::vector<int64_t> memory;
  PackedSparse packed;

  PackedRows(const Csr& rows, const Workers& workers) {
    const SparsePacker packer(rows, workers);
    memory.resize(packer.bytes() / 8);
    char* bytes = reinterpret_cast<char*>(memory.data());
    if (!memory.empty()) packer.write(bytes);
    if (memory.empty() || !packed.open(bytes, memory.size() * 8, rows)) host::fail("packed rows do not open");
  }
};

void check_sparse_search(DType dtype, IndexType type, int64_t Q, bool cosine, bool pack,
                         SparseWay way = SparseWay::sooner) {
  set_sparse_way(way);
  const int64_t N = 1500, F = 97, k = 13;
  const SparseRows corpus(dtype, N, F), queries(DType::f32, Q, F);
  const Workers workers{2, host::run_threads};
  const SparseSearchArgs args{
      queries.csr(IndexType::i64), corpus.csr(type), k, cosine, -HUGE_VAL, nullptr, 0, nullptr, 0, pack};
  const PackedRows packed(args.corpus, workers);
  const auto norm = [](const SparseRows& rows, int64_t row) {
    double sum = 0;
    for (int64_t i = rows.indptr[row]; i < rows.indptr[row + 1]; ++i)
      sum += rows.values.at(i) * rows.values.at(i);
    return std::sqrt(sum);
  };
  std::vector<double> scores(static_cast<size_t>(Q * k));
  std::vector<int64_t> ids(scores.size());
  const int64_t bad =
      sparse_search(args, pack ? &packed.packed : nullptr, workers, {scores.data(), true, ids.data()});
  if (bad >= 0) host::fail("sparse search %s: row %d has a latent out of range", name(dtype), int(bad));
  host::record(scores.data(), scores.size() * 8);
  host::record(ids.data(), ids.size() * 8);
  for (int64_t q = 0; q < Q; ++q) {
    std::vector<double> dense(static_cast<size_t>(F));
    for (int64_t e = queries.indptr[q]; e < queries.indptr[q + 1]; ++e)
      dense[queries.wide[e]] = queries.values.at(e);
    std::vector<std::pair<double, int64_t>> wanted;
    for (int64_t row = 0; row < N; ++row) {
      double sum = 0;
      for (int64_t e = corpus.indptr[row]; e < corpus.indptr[row + 1]; ++e) {
        sum += dense[corpus.wide[e]] * corpus.values.at(e);
      }
      const double norms = norm(queries, q) * norm(corpus, row);
      wanted.emplace_back(cosine ? (norms > 0 ? -(sum / norms) : 0.0) : -sum, row);
    }
    std::sort(wanted.begin(), wanted.end());
    for (int64_t j = 0; j < k; ++j) {
      const double score = scores[q * k + j];
      const int64_t row = ids[q * k + j];
      if (row == wanted[j].second && score == -wanted[j].first) continue;
      host::fail("sparse search %s: query %d, result %d is row %d with %.17g, not row %d with %.17g",
                 name(dtype), int(q), int(j), int(row), score, int(wanted[j].second), -wanted[j].first);
      break;
    }
  }
}

}  // namespace

void check_training();

int main() {
  return host::run([] {
    for (int64_t D : {1, 3, 16, 67, 130}) {
      for (DType dtype : kAll) {
        dtype == DType::f64 ? check_sums<double>(dtype, D) : check_sums<float>(dtype, D);
        for (DType w_type : kAll) check_dots(dtype, w_type, D);
      }
    }
    check_conversions(DType::bf16);
    check_conversions(DType::f16);
    for (Reduce reduce : {Reduce::mean, Reduce::max, Reduce::sum, Reduce::sqrt_mean, Reduce::count}) {
      check_pooling(reduce);
    }
    for (DType dtype : kAll) {
      for (int64_t Q : {1, 20, 70}) {
        check_sparse_search(dtype, Q == 20 ? IndexType::u16 : IndexType::i32, Q, Q != 1, false);
        for (SparseWay way : {SparseWay::sooner, SparseWay::rows, SparseWay::lists}) {
          check_sparse_search(dtype, Q == 20 ? IndexType::u16 : IndexType::i32, Q, Q != 1, true, way);
        }
      }
    }
    check_sparse_search(DType::f32, IndexType::i64, 5, false, false);
    for (int64_t C : {1, 3, 7, 24, 53, 100}) {
      for (DType dtype : kAll) {
        for (IndexType type : {IndexType::u16, IndexType::i32, IndexType::i64}) check_matmul(dtype, type, C);
      }
    }
    for (int64_t count : {1, 8, 21}) {
      for (DType dtype : kAll) {
        for (IndexType type : {IndexType::u16, IndexType::i32, IndexType::i64}) {
          check_products(dtype, type, count);
        }
      }
    }
    check_training();
  });
}
