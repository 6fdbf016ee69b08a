// Corpus rows turned over: windows of inverted lists, made for one search or kept for many.
#include "cpu/sparse_search/pack.h"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace finescope {
namespace {

constexpr int64_t kFewestRows = 1024, kManyRows = 16384;  // sums of as many rows stay near the core
constexpr int64_t kMostWindowEntries = int64_t{1} << 22;
// A list that this part of the rows is on is stored as a value for every row: adding sixteen values in a row
// takes less time than two that are scattered.
constexpr int64_t kFullPart = 8;

constexpr int64_t kMagic = 0x31657372617053fe;
struct Header {
  int64_t magic, rows, latents, entries, windows, longest, bytes, unused;
};

int64_t aligned(int64_t bytes) {
  return (bytes + 63) / 64 * 64;
}

// Where the parts of a window lie.
struct Places {
  int64_t count, norm, words, end;
  Places(int64_t latents, int64_t rows, int64_t n)
      : count(aligned(4 * latents)),
        norm(count + aligned(2 * latents)),
        words(norm + aligned(4 * rows)),
        end(words + aligned(4 * n)) {}
};

int64_t full_words(int64_t rows) {
  return (rows + 15) / 16 * 8;
}

// A turner for each worker that has something to do.
class Turners {
 public:
  Turners(const Csr& corpus, const Workers& workers)
      : corpus_(corpus), turner_(static_cast<size_t>(workers.threads)) {}
  SparseTurner& of(int worker) {
    if (!turner_[worker]) turner_[worker] = std::make_unique<SparseTurner>(corpus_);
    return *turner_[worker];
  }

 private:
  const Csr& corpus_;
  std::vector<std::unique_ptr<SparseTurner>> turner_;
};

template <class I>
bool repeats(const I* latents, int64_t n) {
  std::vector<I> sorted(latents, latents + n);
  std::sort(sorted.begin(), sorted.end());
  return std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end();
}

}  // namespace

bool sparse_repeats(const uint16_t* latents, int64_t n) {
  return repeats(latents, n);
}
bool sparse_repeats(const int32_t* latents, int64_t n) {
  return repeats(latents, n);
}
bool sparse_repeats(const int64_t* latents, int64_t n) {
  return repeats(latents, n);
}

std::vector<int64_t> sparse_windows(const Csr& corpus) {
  // As many as keep some threads busy, and long enough that finding the lists takes less than reading them.
  const int64_t entries = corpus.indptr[corpus.rows];
  const int64_t each = std::max<int64_t>(1, entries / std::max<int64_t>(1, corpus.rows));
  const int64_t tall = std::clamp(corpus.rows / 16, kFewestRows, kManyRows);
  const int64_t rows = std::clamp(corpus.latents / each, tall, kSparseWindow);
  std::vector<int64_t> edges = {0};
  while (edges.back() < corpus.rows) {
    const int64_t begin = edges.back();
    int64_t end = std::min(begin + rows, corpus.rows);
    const int64_t* limit = std::upper_bound(corpus.indptr + begin + 1, corpus.indptr + end,
                                            corpus.indptr[begin] + kMostWindowEntries);
    end = std::max(begin + 1, std::min<int64_t>(end, limit - corpus.indptr));
    edges.push_back(end);
  }
  return edges;
}

SparseTurner::SparseTurner(const Csr& corpus)
    : corpus_(corpus),
      counts_(corpus.latents),
      start_(corpus.latents),
      count_(corpus.latents),
      cursor_(corpus.latents) {}

int64_t SparseTurner::count(int64_t begin, int64_t end) {
  begin_ = begin;
  end_ = end;
  std::fill(counts_.begin(), counts_.end(), 0);
  const int64_t bad = sparse_screen().count(corpus_, begin, end, counts_.data());
  if (bad >= 0) return bad;
  const int64_t rows = end - begin;
  int64_t longest = 0;
  for (int64_t row = begin; row < end; ++row) {
    longest = std::max(longest, corpus_.indptr[row + 1] - corpus_.indptr[row]);
  }
  latents_.resize(std::max<size_t>(latents_.size(), longest + 16));
  values_.resize(std::max<size_t>(values_.size(), longest + 16));
  words_ = 0;
  full_.clear();
  for (int64_t f = 0; f < corpus_.latents; ++f) {
    const int64_t n = counts_[f];
    const bool full = n > 0 && n * kFullPart >= rows;
    count_[f] = full ? kSparseFull : static_cast<uint16_t>(n);
    if (full) full_.push_back(static_cast<uint32_t>(f));
    start_[f] = cursor_[f] = static_cast<uint32_t>(words_);
    words_ += full ? full_words(rows) : n;
  }
  words_ += 16;  // lists are read by the register
  return -1;
}

SparseWindow SparseTurner::window() {
  // Full lists are collected like the others first, after the window.
  const int64_t rows = end_ - begin_;
  int64_t size = words_;
  for (const int64_t f : full_) {
    cursor_[f] = static_cast<uint32_t>(size);
    size += counts_[f];
  }
  if (capacity_ < size) {
    memory_.reset();  // before the next, to hold only one of them
    memory_.reset(new uint32_t[size]);
    capacity_ = size;
  }
  uint32_t* words = memory_.get();
  norm_.resize(std::max<size_t>(norm_.size(), rows));
  sparse_screen().fill({corpus_, cursor_.data(), words, norm_.data(), latents_.data(), values_.data()},
                       begin_, end_);
  std::memset(words + words_ - 16, 0, 16 * sizeof(uint32_t));
  for (const int64_t f : full_) {
    uint16_t* values = reinterpret_cast<uint16_t*>(words + start_[f]);
    std::memset(values, 0, full_words(rows) * sizeof(uint32_t));
    const uint32_t* end = words + cursor_[f];
    for (const uint32_t* entry = end - counts_[f]; entry < end; ++entry) {
      values[*entry & 0xffffu] = static_cast<uint16_t>(*entry >> 16);
    }
  }
  return {start_.data(), count_.data(), words, norm_.data(), rows};
}

int64_t PackedSparse::plan(const Csr& corpus, const std::vector<int64_t>& edges,
                           const std::vector<int64_t>& words, char* memory) {
  const int64_t n = static_cast<int64_t>(words.size());
  int64_t at = aligned(static_cast<int64_t>(sizeof(Header)) + 16 * (n + 1)), longest = 0, tables = 0;
  for (int64_t row = 0; row < corpus.rows; ++row) {
    longest = std::max(longest, corpus.indptr[row + 1] - corpus.indptr[row]);
  }
  std::vector<int64_t> places;
  for (int64_t w = 0; w < n; ++w) {
    const Places inside(corpus.latents, edges[w + 1] - edges[w], words[w]);
    places.push_back(at);
    at += inside.end;
    tables += inside.norm;
  }
  places.push_back(at);
  const int64_t entries = corpus.indptr[corpus.rows];
  if (n == 0 || tables > 4 * entries) return 0;
  if (memory != nullptr) {
    const Header header{kMagic, corpus.rows, corpus.latents, entries, n, longest, at, 0};
    std::memcpy(memory, &header, sizeof(header));
    std::memcpy(memory + sizeof(header), edges.data(), 8 * (n + 1));
    std::memcpy(memory + sizeof(header) + 8 * (n + 1), places.data(), 8 * (n + 1));
    open(memory, at, corpus);
  }
  return at;
}

void PackedSparse::write(int64_t w, const SparseWindow& window, int64_t words, char* memory) const {
  const Places inside(latents_, window.rows, words);
  char* place = memory + places_[w];
  std::memcpy(place, window.start, 4 * latents_);
  std::memcpy(place + inside.count, window.count, 2 * latents_);
  std::memcpy(place + inside.norm, window.norm, 4 * window.rows);
  std::memcpy(place + inside.words, window.words, 4 * words);
}

bool PackedSparse::open(const char* memory, int64_t size, const Csr& corpus) {
  Header header;
  if (size < static_cast<int64_t>(sizeof(header))) return false;
  std::memcpy(&header, memory, sizeof(header));
  const int64_t n = header.windows;
  if (header.magic != kMagic || header.rows != corpus.rows || header.latents != corpus.latents ||
      header.entries != corpus.indptr[corpus.rows] || header.bytes != size || n < 1 || n > corpus.rows ||
      size < static_cast<int64_t>(sizeof(header)) + 16 * (n + 1)) {
    return false;
  }
  memory_ = memory;
  windows_ = n;
  latents_ = header.latents;
  longest_ = header.longest;
  edges_ = reinterpret_cast<const int64_t*>(memory + sizeof(header));
  places_ = edges_ + n + 1;
  bool fits = edges_[0] == 0 && edges_[n] == corpus.rows && places_[n] == size;
  for (int64_t w = 0; w < n && fits; ++w) {
    const int64_t rows = edges_[w + 1] - edges_[w];
    fits = rows >= 1 && rows <= kSparseWindow && places_[w] >= 0 && places_[w] % 64 == 0 &&
           places_[w + 1] - places_[w] >= Places(latents_, rows, 0).end;
  }
  return fits;
}

SparseWindow PackedSparse::window(int64_t w) const {
  const int64_t rows = edges_[w + 1] - edges_[w];
  const Places inside(latents_, rows, 0);
  const char* place = memory_ + places_[w];
  return {reinterpret_cast<const uint32_t*>(place), reinterpret_cast<const uint16_t*>(place + inside.count),
          reinterpret_cast<const uint32_t*>(place + inside.words),
          reinterpret_cast<const float*>(place + inside.norm), rows};
}

SparsePacker::SparsePacker(const Csr& corpus, const Workers& workers)
    : corpus_(corpus), workers_(workers), edges_(sparse_windows(corpus)), words_(edges_.size() - 1) {
  std::atomic<int64_t> bad{-1};
  Turners turners(corpus_, workers_);
  for_each(workers_, static_cast<int64_t>(words_.size()), [&](int64_t w, int worker) {
    SparseTurner& turner = turners.of(worker);
    const int64_t row = turner.count(edges_[w], edges_[w + 1]);
    if (row >= 0) bad = row;
    words_[w] = turner.words();
  });
  bad_ = bad;
  if (bad_ < 0) bytes_ = PackedSparse().plan(corpus_, edges_, words_, nullptr);
}

void SparsePacker::write(char* memory) const {
  PackedSparse packed;
  packed.plan(corpus_, edges_, words_, memory);
  Turners turners(corpus_, workers_);
  for_each(workers_, static_cast<int64_t>(words_.size()), [&](int64_t w, int worker) {
    SparseTurner& turner = turners.of(worker);
    turner.count(edges_[w], edges_[w + 1]);
    packed.write(w, turner.window(), words_[w], memory);
  });
}

}  // namespace finescope
