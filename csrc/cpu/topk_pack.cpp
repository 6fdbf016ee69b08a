// Packing: w to low precision, in panels, with measured errors.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu/topk_internal.h"
#include "cpu/topk_quantize.h"

namespace finescope {

namespace {

// Large blocks that calls have given back, for the next call to use: fresh memory has to be cleared by the system page
// by page, which takes as long as packing into it.
class Spare {
 public:
  char* take(size_t size) {
    std::lock_guard<std::mutex> guard(lock_);
    for (size_t i = 0; i < blocks_.size(); ++i) {
      if (blocks_[i].size != size) continue;
      char* p = blocks_[i].p;
      blocks_.erase(blocks_.begin() + static_cast<int64_t>(i));
      held_ -= size;
      return p;
    }
    return nullptr;
  }
  void give(char* p, size_t size) {
    std::lock_guard<std::mutex> guard(lock_);
    blocks_.push_back({p, size});
    held_ += size;
    while (held_ > kMost) {
      std::free(blocks_.front().p);
      held_ -= blocks_.front().size;
      blocks_.erase(blocks_.begin());
    }
  }

 private:
  static constexpr size_t kMost = size_t{32} << 20;
  struct Entry {
    char* p;
    size_t size;
  };
  std::mutex lock_;
  std::vector<Entry> blocks_;
  size_t held_ = 0;
};

Spare& spare() {
  static Spare* instance = new Spare;  // never destroyed: blocks may outlive it at exit
  return *instance;
}

constexpr int64_t kHugePage = int64_t{1} << 21;

}  // namespace

Block::Block(int64_t bytes) {
  const bool huge = bytes >= kHugePage;
  size_ = static_cast<size_t>(round_up(std::max<int64_t>(bytes, 1), huge ? kHugePage : 64));
  data_ = huge ? spare().take(size_) : nullptr;
  if (data_ != nullptr) return;
  data_ = static_cast<char*>(std::aligned_alloc(huge ? kHugePage : 64, size_));
  if (data_ == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (huge) madvise(data_, size_, MADV_HUGEPAGE);
#endif
}

Block::~Block() {
  if (data_ == nullptr) return;
  if (size_ >= static_cast<size_t>(kHugePage)) {
    spare().give(data_, size_);
  } else {
    std::free(data_);
  }
}

int64_t Packed::bytes() const {
  return panels * panel_bytes + panels * 20 + static_cast<int64_t>(row.size()) * 4 +
         static_cast<int64_t>(norm64.size()) * 8;
}

bool screen_available(ScreenKind kind) { return topk_kernels().screen[static_cast<int>(kind)] != nullptr; }

RowQuantizer::RowQuantizer(ScreenKind kind, Metric metric, int64_t d)
    : kind(kind), metric(metric), d(d), rotated(kind == ScreenKind::int8 && d >= 64) {
  depth = rotated ? round_up(d, 64) : d;
  const int64_t per_unit = kind == ScreenKind::int8 ? 4 : kind == ScreenKind::bf16 ? 2 : 1;
  units = (depth + per_unit - 1) / per_unit;
  padded = round_up(depth, 64);
  // Roundings before an element is quantized, in units of 2^-24 of the norm of its row: of the division by the norm,
  // of each stage of the transform, and of the reflection across its blocks.
  int64_t block = 64, stages = 6;
  while (rotated && depth % (2 * block) == 0) block *= 2, ++stages;
  relative = static_cast<float>(rotated ? stages + 4 * (depth / block) + 16 : 4) * 0x1p-24f;
  if (!rotated) return;
  // Fixed, without pattern; a change of them would only change which candidates a screen lets through.
  signs.resize(static_cast<size_t>(depth));
  for (int64_t i = 0; i < depth; ++i) {
    uint32_t h = static_cast<uint32_t>(i) * 0x9e3779b1u;
    h = (h ^ (h >> 15)) * 0x85ebca6bu;
    signs[i] = (h ^ (h << 13)) & 0x80000000u;
  }
}

RowQuantizer::Loaded RowQuantizer::load(const TopkKernels& kernels, const void* row, DType dtype, float* out) const {
  Loaded result{};
  const uint32_t bits = kernels.to_f32(row, dtype, d, out);
  std::fill(out + round_up(d, 16), out + padded, 0.0f);
  float largest;
  std::memcpy(&largest, &bits, 4);
  result.finite = bits < 0x7f800000u;
  result.tame = true;
  if (!result.finite) {
    std::fill(out, out + padded, 0.0f);
    return result;
  }
  if (metric == Metric::cosine) {
    // Worked out in float64: the square of a float32 number neither over- nor underflows there.
    std::vector<double>& wide = scratch();
    wide.resize(static_cast<size_t>(padded));
    kernels.to_f64(row, dtype, d, wide.data());
    const float* rows[1] = {out};
    double squared;
    kernels.dots_f32(wide.data(), rows, 1, d, &squared);
    result.norm = std::sqrt(squared);
    if (result.norm > 0) {
      const double inverse = 1.0 / result.norm;
      if (largest >= kTameLow && largest <= kTameHigh) {
        kernels.multiply(out, round_up(d, 16), static_cast<float>(inverse));
      } else {
        for (int64_t i = 0; i < d; ++i) out[i] = static_cast<float>(wide[i] * inverse);
      }
    }
  } else if (largest > kTameHigh) {
    result.tame = false;
    std::fill(out, out + padded, 0.0f);
  } else if (largest < kTameLow && largest > 0) {
    // Too small to matter beside other rows: its elements are taken for zeros and its size for the error.
    result.lost = largest * std::sqrt(static_cast<float>(d)) * 1.001f;
    std::fill(out, out + padded, 0.0f);
  }
  if (rotated) kernels.rotate(out, signs.data(), depth);
  return result;
}

std::vector<double>& RowQuantizer::scratch() {
  static thread_local std::vector<double> wide;
  return wide;
}

RowQuantizer::Row RowQuantizer::quantize(const TopkKernels& kernels, const float* row, float scale, float inv_scale,
                                         float lost, int32_t offset, uint32_t* out) const {
  const Quantized q =
      kernels.quantize[static_cast<int>(kind)](row, depth, inv_scale, offset, units, out);
  constexpr float kUp = 1.0f + 0x1p-20f;
  const float whole = (q.norm + q.err) * scale;
  Row result;
  result.norm = q.norm * scale * kUp;
  result.err = (q.err * scale + whole * relative + lost) * kUp;
  result.size = (whole * (1.0f + relative) + lost) * kUp;
  result.sum = q.sum;
  return result;
}

// Rounding of the screen's arithmetic relative to |x̂||ŵ|: of the accumulators, and 2^-20 for turning a sum into a
// score and comparing it.
float RowQuantizer::arithmetic() const {
  const double u = 0x1p-24, terms = static_cast<double>(depth) + 2;
  const double roundings = kind == ScreenKind::int8 ? 0 : kind == ScreenKind::bf16 ? 2 * terms : terms;
  return static_cast<float>(1.01 * roundings * u / (1 - std::min(0.5, roundings * u)) + 0x1p-20);
}

namespace {

struct Panels {
  const Matrix& w;
  const RowQuantizer& q;
  const TopkKernels& kernels;
  Packed& out;
  std::atomic<bool> finite{true}, tame{true};
  std::atomic<float> half_err{0.0f};

  // Rows first..first+n, whose panels start at first / nr.
  void pack(int64_t first, int64_t n, std::vector<float>& rows, std::vector<uint32_t>& units) {
    rows.resize(static_cast<size_t>(n * q.padded));
    units.resize(static_cast<size_t>(q.padded * out.nr));
    std::vector<float> key(static_cast<size_t>(n)), lost(static_cast<size_t>(n));
    std::vector<uint8_t> usable(static_cast<size_t>(n));
    std::vector<int32_t> order(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      float* row = rows.data() + i * q.padded;
      const RowQuantizer::Loaded loaded = q.load(kernels, row_of(w, first + i), w.dtype, row);
      if (!loaded.finite) finite = false;
      if (!loaded.tame) tame = false;
      usable[i] = loaded.finite;
      lost[i] = loaded.lost;
      key[i] = kernels.max_magnitude(row, q.padded);
      order[i] = static_cast<int32_t>(i);
      if (q.metric == Metric::cosine) out.norm64[first + i] = loaded.norm;
      if (out.half.get() != nullptr) pack_half(first + i, loaded.finite && loaded.tame, units);
    }
    // The columns of a panel share a scale and bounds; rows of one size make both tight.
    if (q.kind == ScreenKind::int8) {
      std::sort(order.begin(), order.end(),
                [&](int32_t a, int32_t b) { return key[a] > key[b] || (key[a] == key[b] && a < b); });
    }
    for (int64_t at = 0; at < n; at += out.nr) {
      pack_panel((first + at) / out.nr, first, order.data() + at, std::min<int64_t>(out.nr, n - at), rows, key, lost,
                 usable, units);
    }
  }

  // A row that the screen takes for zeros is taken for zeros here too; its size is part of the error.
  void pack_half(int64_t i, bool usable, std::vector<uint32_t>& units) {
    float* row = reinterpret_cast<float*>(units.data());
    kernels.to_f32(row_of(w, i), w.dtype, q.d, row);
    if (!usable) std::fill(row, row + q.d, 0.0f);
    uint32_t* copy = units.data() + round_up(q.d, 16);
    const Quantized h = kernels.quantize[static_cast<int>(ScreenKind::bf16)](row, q.d, 1.0f, 0, (q.d + 1) / 2, copy);
    std::memcpy(out.half.get() + i * q.d * 2, copy, static_cast<size_t>(q.d) * 2);
    float known = half_err.load(std::memory_order_relaxed);
    while (known < h.err && !half_err.compare_exchange_weak(known, h.err, std::memory_order_relaxed)) {
    }
  }

  void pack_panel(int64_t p, int64_t first, const int32_t* order, int64_t n, const std::vector<float>& rows,
                  const std::vector<float>& key, const std::vector<float>& lost, const std::vector<uint8_t>& usable,
                  std::vector<uint32_t>& units) {
    float scale = 1.0f, inv_scale = 1.0f, norm = 0.0f, err = 0.0f;
    if (q.kind == ScreenKind::int8) {
      float largest = 0.0f;
      for (int64_t c = 0; c < n; ++c) largest = std::max(largest, key[order[c]]);
      if (largest > 0) scale = largest / 127.0f, inv_scale = 1.0f / scale;
    }
    const int32_t offset = q.kind == ScreenKind::int8 ? 128 : 0;
    uint32_t valid = 0;
    for (int64_t c = 0; c < out.nr; ++c) {
      uint32_t* row_units = units.data() + c * q.padded;
      if (c < n) {
        const RowQuantizer::Row r =
            q.quantize(kernels, rows.data() + order[c] * q.padded, scale, inv_scale, lost[order[c]], offset, row_units);
        norm = std::max(norm, r.size);
        err = std::max(err, r.err);
        valid |= uint32_t{usable[order[c]]} << c;
      } else {
        std::fill(row_units, row_units + q.units, 0u);
      }
      out.row[p * out.nr + c] = c < n ? static_cast<int32_t>(first + order[c]) : -1;
    }
    kernels.interleave(units.data(), q.padded, q.units, out.nr,
                       reinterpret_cast<uint32_t*>(out.data.get() + p * out.panel_bytes));
    out.scale[p] = scale;
    out.inv_scale[p] = inv_scale;
    out.norm[p] = norm;
    out.err[p] = err + q.arithmetic() * (norm + err) * 1.0001f;
    out.valid[p] = valid;
  }
};

}  // namespace

void pack(const Matrix& w, int64_t n, int64_t d, Metric metric, ScreenKind kind, bool half,
          const Workers& workers, Packed* out) {
  const TopkKernels& kernels = topk_kernels();
  const RowQuantizer q(kind, metric, d);
  Packed& packed = *out;
  packed.kind = kind;
  packed.metric = metric;
  packed.nr = kernels.nr;
  packed.n = n;
  packed.d = d;
  packed.depth = q.depth;
  packed.rotated = q.rotated;
  packed.units = q.units;
  packed.panels = (n + packed.nr - 1) / packed.nr;
  packed.panel_bytes = q.units * packed.nr * 4;
  packed.data = Block(packed.panels * packed.panel_bytes);
  const size_t panels = static_cast<size_t>(packed.panels);
  for (std::vector<float>* v : {&packed.scale, &packed.inv_scale, &packed.norm, &packed.err}) v->assign(panels, 0.0f);
  packed.valid.assign(panels, 0u);
  packed.row.assign(panels * static_cast<size_t>(packed.nr), -1);
  packed.half = half && w.dtype == DType::f32 ? Block(n * d * 2) : Block();
  packed.half_err = 0.0f;
  packed.norm64.assign(metric == Metric::cosine ? static_cast<size_t>(n) : 0, 0.0);

  // A block of rows is read once and stays in cache until its panels are written.
  constexpr int64_t kBlockBytes = int64_t{2} << 20;
  const int64_t tall = std::min<int64_t>(
      4096, std::max<int64_t>(4 * packed.nr, kBlockBytes / (q.padded * 4) / packed.nr * packed.nr));
  Panels panels_of{w, q, kernels, packed};
  std::vector<std::vector<float>> rows(static_cast<size_t>(workers.threads));
  std::vector<std::vector<uint32_t>> units(static_cast<size_t>(workers.threads));
  for_each(workers, (n + tall - 1) / tall, [&](int64_t task, int worker) {
    const int64_t first = task * tall;
    panels_of.pack(first, std::min(tall, n - first), rows[worker], units[worker]);
  });
  packed.finite = panels_of.finite;
  packed.tame = panels_of.tame;
  packed.half_err = panels_of.half_err * (1.0f + 0x1p-20f);
  packed.max_norm = packed.max_err = 0.0f;
  for (float v : packed.norm) packed.max_norm = std::max(packed.max_norm, v);
  for (float v : packed.err) packed.max_err = std::max(packed.max_err, v);
}

}  // namespace finescope
