// The pass of a sparse search over the corpus: a warp for each row, two queries of the panel to a thread.
//
// 32 entries of a row are read at a time. Those whose latent no query holds only count for the norm; the
// others are handed round through shared memory, and each adds one line of the panel, 128 bytes.
#include "cuda/sparse_plan.h"
#include "cuda/sparse_rows.h"
#include "cuda/sparse_select.h"

namespace finescope::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
// Blocks stay for the whole slab: each has the words of the panel in shared memory.
constexpr int64_t kBlocks = 1056;

struct Item {
  uint32_t line;
  float value;
};

// What a thread knows of its two queries while rows are screened.
struct Thresholds {
  bool wanted[2];
  float slope[2], offset[2];
};

__device__ inline bool excluded(const SparseJob& job, int64_t query, int64_t row) {
  if (job.exclude == nullptr) return false;
  const int64_t* ids = job.exclude + query * job.E;
  const int64_t id = row + job.id_offset;
  int64_t low = 0, high = job.E;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (ids[middle] < id) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < job.E && ids[low] == id;
}

__device__ inline bool improves(const PanelQuery& query, double score, int64_t row) {
  return score > query.threshold || (score == query.threshold && row < query.row);
}

// Stores a row that may be among the best. More than there is room for are only counted.
__device__ inline void add(const SparseJob& job, const SparsePanel& panel, int q, double score, int64_t row) {
  if (excluded(job, panel.first + q, row)) return;
  PanelQuery& query = panel.queries[q];
  const int64_t at = query.kept + static_cast<int64_t>(atomicAdd(&query.fresh, 1ull));
  if (at < job.room) job.found[q * job.room + at] = {score, row};
}

// The rows of a warp's hits: bit h of `hit` says that the thread's query h may want the row, bit h of `known`
// that the two have no latent in common, so that the score is 0. Not inlined: hits are few, and their
// registers would be missing where rows are screened.
template <class E>
__device__ __attribute__((noinline)) void take(const SparseJob& job, const SparsePanel& panel,
                                               const PanelWord* words, E entries, int64_t row, int64_t begin,
                                               int64_t end, unsigned hit, unsigned known) {
  const int q = static_cast<int>(threadIdx.x % kWarp) * 2;
  for (int h = 0; h < 2; ++h) {
    if (((hit & known) >> h & 1u) && improves(panel.queries[q + h], 0.0, row))
      add(job, panel, q + h, 0.0, row);
  }
  hit &= ~known;
  if (!__any_sync(kWhole, hit != 0)) return;
  double dot[2], square;
  exact_dots<2>(entries, begin, end, words, panel.exact, q, dot, &square);
  if (!isfinite(square)) return;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (!(hit >> h & 1u)) continue;
    const PanelQuery& query = panel.queries[q + h];
    const double score = exact_score(job.cosine, dot[h], square, query.norm);
    if (improves(query, score, row)) add(job, panel, q + h, score, row);
  }
}

// One entry for each thread of a warp.
template <class E>
struct Chunk {
  decltype(E::indices[0] + 0) latent;
  float value;

  __device__ void load(const E& entries, int64_t begin, int64_t end) {
    const int64_t i = begin + threadIdx.x % kWarp;
    if (i >= end) return;
    latent = entries.indices[i];
    value = entries.narrow(i);
  }
};

// Screens a row, whose first entries are in `ahead`; leaves those of the row begin_next..end_next there. They
// are on their way while this row is worked on.
template <class E>
__device__ inline void screen_row(const SparseJob& job, const SparsePanel& panel, const PanelWord* words,
                                  Item* list, const Thresholds& mine, const E& entries, Chunk<E>& ahead,
                                  int64_t row, int64_t begin, int64_t end, int64_t begin_next,
                                  int64_t end_next) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const uint32_t* lines = panel.lines + lane;
  float sum[2] = {0.0f, 0.0f}, square = 0.0f;
  uint32_t seen = 0;
  for (int64_t from = begin; from < end; from += kWarp) {
    const Chunk<E> now = ahead;
    const bool more = from + kWarp < end;
    ahead.load(entries, more ? from + kWarp : begin_next, more ? end : end_next);
    bool active = false;
    Item item = {panel.blank, 0.0f};
    if (from + lane < end) {
      const uint32_t latent = in_range('c', static_cast<int64_t>(now.latent), row, job.corpus.latents);
      square = fmaf(now.value, now.value, square);
      const PanelWord word = words[latent / 32];
      active = holds(word, latent);
      if (active) item = {line_of(word, latent), now.value};
    }
    const unsigned votes = __ballot_sync(kWhole, active);
    const int count = __popc(votes), rank = __popc(votes & ((1u << lane) - 1u));
    // The others behind them, as blanks: the list is read four at a time.
    list[active ? rank : count + lane - rank] = item;
    __syncwarp();
    for (int j = 0; j < count; j += 4) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Vector<Item, 2> two = *reinterpret_cast<const Vector<Item, 2>*>(list + j + 2 * half);
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const uint32_t word = lines[static_cast<int64_t>(two.element[u].line) * (kPanel / 2)];
          seen |= word;
          sum[0] = fmaf(two.element[u].value, bits_to_float(word << 16), sum[0]);
          sum[1] = fmaf(two.element[u].value, bits_to_float(word & 0xffff0000u), sum[1]);
        }
      }
    }
    __syncwarp();
  }
  for (int with = kWarp / 2; with > 0; with /= 2) square += __shfl_xor_sync(kWhole, square, with);
  // A row that float32 cannot judge is a hit for all. One without entries has norm 0 and sums 0.
  const bool judged = begin == end || (square > kLeastSquare && square < kMostSquare);
  const float norm = sqrtf(square), rounding = screen_rounding(end - begin);
  unsigned hit = 0, known = 0;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float line = fmaf(norm, mine.slope[h] - rounding, mine.offset[h]);
    if (mine.wanted[h] && (!judged || !(sum[h] < line))) hit |= 1u << h;
    if (judged && (seen >> (16 * h) & 0xffffu) == 0) known |= 1u << h;
  }
  if (__any_sync(kWhole, hit != 0)) take(job, panel, words, entries, row, begin, end, hit, known);
}

template <class I, class T, bool kShared>
__global__ void __launch_bounds__(kThreads, 3)
    screen_kernel(const __grid_constant__ SparseJob job, const __grid_constant__ SparsePanel panel,
                  int64_t first, int64_t last, int64_t tiles, int64_t step) {
  FINESCOPE_SHARED(Item, lists);
  Item* const list = lists + threadIdx.x / kWarp * kWarp;
  const PanelWord* words = panel.words;
  if (kShared) {
    PanelWord* const copy = reinterpret_cast<PanelWord*>(lists + kThreads);
    for (int64_t w = threadIdx.x; w < (job.corpus.latents + 31) / 32; w += kThreads) copy[w] = panel.words[w];
    words = copy;
    __syncthreads();
  }
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const Entries<I, T> entries(job.corpus);
  Thresholds mine;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const PanelQuery& query = panel.queries[lane * 2 + h];
    mine.wanted[h] = isfinite(query.norm);
    mine.slope[h] = query.slope;
    mine.offset[h] = query.offset;
  }
  const int64_t* indptr = job.corpus.indptr;
  for (int64_t place = first + first_warp(); place < last; place += warp_stride()) {
    const int64_t row = place * step % tiles * kTile;
    const int rows = static_cast<int>(job.corpus.rows - row < kTile ? job.corpus.rows - row : kTile);
    // Where the rows of the tile begin, and the last one ends; all at once.
    const int64_t pointer = lane <= rows ? indptr[row + lane] : 0;
    const int64_t after = __shfl_down_sync(kWhole, pointer, 1);
    if (lane < rows) check_row('c', job.corpus, row + lane, pointer, after, job.corpus_entries);
    int64_t begin = __shfl_sync(kWhole, pointer, 0), end = __shfl_sync(kWhole, pointer, 1);
    Chunk<Entries<I, T>> ahead{};
    ahead.load(entries, begin, end);
    for (int r = 0; r < rows; ++r) {
      // Past the last row there is none: one that ends where it begins.
      const int64_t end_next = __shfl_sync(kWhole, pointer, r + 2 <= rows ? r + 2 : rows);
      const bool masked = job.mask != nullptr && !job.mask[row + r];
      if (masked || begin == end) ahead.load(entries, end, end_next);
      if (!masked) {
        screen_row(job, panel, words, list, mine, entries, ahead, row + r, begin, end, end, end_next);
      }
      begin = end;
      end = end_next;
    }
  }
}

template <class I, class T>
void launch_screen(const SparseJob& job, const SparsePanel& panel, int64_t first, int64_t last, int64_t tiles,
                   cudaStream_t stream) {
  const size_t lists = kThreads * sizeof(Item);
  const size_t words = static_cast<size_t>((job.corpus.latents + 31) / 32) * sizeof(PanelWord);
  const bool shared = lists + words <= kPlainShared;
  const int64_t blocks = (last - first + kWarps - 1) / kWarps;
  launch("sparse screen", shared ? screen_kernel<I, T, true> : screen_kernel<I, T, false>,
         static_cast<unsigned>(blocks < kBlocks ? blocks : kBlocks), kThreads, lists + (shared ? words : 0),
         stream, job, panel, first, last, tiles, visiting_step(tiles));
}

template <class I>
void launch_screen_of(const SparseJob& job, const SparsePanel& panel, int64_t first, int64_t last,
                      int64_t tiles, cudaStream_t stream) {
  with_type(job.corpus.dtype, [&](auto* type) {
    launch_screen<I, std::remove_pointer_t<decltype(type)>>(job, panel, first, last, tiles, stream);
  });
}

// --- keeping the best

constexpr int64_t kSharedItems = static_cast<int64_t>(kPlainShared / sizeof(SparseFound)) - 16;

// Sorts the first `count` of a query's rows, keeps k, and raises its threshold. All threads of the block.
__device__ inline void keep_best(const SparseJob& job, PanelQuery& query, SparseFound* found, int64_t count,
                                 SparseFound* near) {
  const int64_t kept = count < job.k ? count : job.k;
  if (count <= kSharedItems) {
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) near[i] = found[i];
    sort_best(near, count);
    for (int64_t i = threadIdx.x; i < kept; i += blockDim.x) found[i] = near[i];
  } else {
    sort_best(found, count);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    query.kept = kept;
    query.fresh = 0;
    if (kept == job.k && kept > 0) {
      query.threshold = found[kept - 1].score;
      query.row = found[kept - 1].row;
      const ScreenLine line = screen_line(job.cosine, query.threshold, query.norm, query.error);
      query.slope = line.slope;
      query.offset = line.offset;
    }
  }
  __syncthreads();
}

// Where a slab held more for a query than there was room for, its rows are scored again, exactly, as many at
// a time as fit: right whatever the data are, only slower. A block for each query.
__global__ void __launch_bounds__(kThreads)
    rescan_kernel(const __grid_constant__ SparseJob job, const __grid_constant__ SparsePanel panel,
                  int64_t first, int64_t last, int64_t tiles, int64_t step) {
  FINESCOPE_SHARED(SparseFound, near);
  const AnyEntries entries{job.corpus};
  const int64_t* indptr = job.corpus.indptr;
  const int64_t part = (job.room - job.k) / kTile;
  for (int q = blockIdx.x; q < panel.width; q += gridDim.x) {
    PanelQuery& query = panel.queries[q];
    if (!isfinite(query.norm) || query.kept + static_cast<int64_t>(query.fresh) <= job.room) continue;
    for (int64_t from = first; from < last; from += part) {
      __syncthreads();
      if (threadIdx.x == 0) query.fresh = 0;
      __syncthreads();
      const int64_t rows = (from + part < last ? part : last - from) * kTile;
      for (int64_t i = threadIdx.x; i < rows; i += kThreads) {
        const int64_t row = (from + i / kTile) * step % tiles * kTile + i % kTile;
        if (row >= job.corpus.rows || (job.mask != nullptr && !job.mask[row])) continue;
        double dot[1], square;
        exact_dots<1>(entries, indptr[row], indptr[row + 1], panel.words, panel.exact, q, dot, &square);
        const double score = exact_score(job.cosine, dot[0], square, query.norm);
        if (isfinite(square) && improves(query, score, row)) add(job, panel, q, score, row);
      }
      __syncthreads();
      keep_best(job, query, job.found + q * job.room, query.kept + static_cast<int64_t>(query.fresh), near);
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    keep_kernel(const __grid_constant__ SparseJob job, const __grid_constant__ SparsePanel panel) {
  FINESCOPE_SHARED(SparseFound, near);
  for (int q = blockIdx.x; q < panel.width; q += gridDim.x) {
    PanelQuery& query = panel.queries[q];
    const int64_t fresh = static_cast<int64_t>(query.fresh);
    __syncthreads();  // all have read it
    if (isfinite(query.norm) && fresh > 0)
      keep_best(job, query, job.found + q * job.room, query.kept + fresh, near);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    results_kernel(const __grid_constant__ SparseJob job, const __grid_constant__ SparsePanel panel,
                   int64_t k_out, T* scores, int64_t* ids) {
  for (int q = blockIdx.x; q < panel.width; q += gridDim.x) {
    const PanelQuery& query = panel.queries[q];
    const int64_t kept = isfinite(query.norm) ? query.kept : 0;
    const int64_t at = (panel.first + q) * k_out;
    for (int64_t i = threadIdx.x; i < k_out; i += kThreads) {
      const SparseFound best = i < kept ? job.found[q * job.room + i] : SparseFound{0.0, 0};
      const T score = static_cast<T>(best.score);
      // Scores fall, and so do rounded ones: what min_score leaves comes first.
      const bool stays = i < kept && static_cast<double>(score) >= job.min_score;
      scores[at + i] = stays ? score : -static_cast<T>(kInfinity);
      ids[at + i] = stays ? best.row + job.id_offset : -1;
    }
  }
}

[[noreturn]] __device__ __attribute__((noinline)) void refuse_id(int64_t id, int64_t q, int64_t j,
                                                                 int64_t rows) {
  printf("finescope: sparse_pair_scores: ids holds %lld at [%lld, %lld], which is outside -1..%lld\n",
         static_cast<long long>(id), static_cast<long long>(q), static_cast<long long>(j),
         static_cast<long long>(rows - 1));
  stop();
}

__global__ void __launch_bounds__(kThreads)
    pairs_kernel(const __grid_constant__ SparseJob job, const __grid_constant__ SparsePanel panel,
                 const int64_t* ids, int64_t count, double* out) {
  const AnyEntries entries{job.corpus};
  const int64_t first = panel.first * count;
  for (int64_t p = first_thread(); p < panel.width * count; p += thread_stride()) {
    const int q = static_cast<int>(p / count);
    const int64_t row = ids[first + p];
    double score = -kInfinity;
    if (row != -1) {
      if (row < 0 || row >= job.corpus.rows) refuse_id(row, panel.first + q, p % count, job.corpus.rows);
      const int64_t begin = job.corpus.indptr[row], end = job.corpus.indptr[row + 1];
      check_row('c', job.corpus, row, begin, end, job.corpus_entries);
      for (int64_t i = begin; i < end; ++i) in_range('c', entries.stored(i), row, job.corpus.latents);
      double dot[1], square;
      exact_dots<1>(entries, begin, end, panel.words, panel.exact, q, dot, &square);
      const double norm = panel.queries[q].norm;
      if (isfinite(norm) && isfinite(square)) score = exact_score(job.cosine, dot[0], square, norm);
    }
    out[first + p] = score;
  }
}

}  // namespace

void launch_sparse_slab(const SparseJob& job, const SparsePanel& panel, int64_t first, int64_t last,
                        cudaStream_t stream) {
  const int64_t tiles = (job.corpus.rows + kTile - 1) / kTile;
  switch (job.corpus.index_type) {
    case IndexType::u16:
      launch_screen_of<uint16_t>(job, panel, first, last, tiles, stream);
      break;
    case IndexType::i32:
      launch_screen_of<int32_t>(job, panel, first, last, tiles, stream);
      break;
    default:
      launch_screen_of<int64_t>(job, panel, first, last, tiles, stream);
  }
  const unsigned blocks = static_cast<unsigned>(panel.width);
  const size_t shared = static_cast<size_t>(kSharedItems) * sizeof(SparseFound);
  launch("sparse rescan", rescan_kernel, blocks, kThreads, shared, stream, job, panel, first, last, tiles,
         visiting_step(tiles));
  launch("sparse keep", keep_kernel, blocks, kThreads, shared, stream, job, panel);
}

void launch_sparse_results(const SparseJob& job, const SparsePanel& panel, int64_t k_out, bool f64,
                           void* scores, int64_t* ids, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>(panel.width);
  if (f64) {
    launch("sparse results", results_kernel<double>, blocks, kThreads, 0, stream, job, panel, k_out,
           static_cast<double*>(scores), ids);
  } else {
    launch("sparse results", results_kernel<float>, blocks, kThreads, 0, stream, job, panel, k_out,
           static_cast<float*>(scores), ids);
  }
}

void launch_sparse_pairs(const SparseJob& job, const SparsePanel& panel, const int64_t* ids, int64_t count,
                         double* out, cudaStream_t stream) {
  launch("sparse_pair_scores", pairs_kernel, blocks_for(panel.width * count, kThreads), kThreads, 0, stream,
         job, panel, ids, count, out);
}

}  // namespace finescope::cuda
