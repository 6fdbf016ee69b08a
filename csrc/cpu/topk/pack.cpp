// Packing: w to low precision, in panels, with measured errors.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "cpu/topk/centre.h"
#include "cpu/topk/internal.h"
#include "cpu/topk/quantize.h"

namespace finescope {

RowQuantizer::RowQuantizer(ScreenKind kind, Metric metric, int64_t d)
    : kind(kind), metric(metric), d(d), rotated(kind == ScreenKind::int8 && d >= 64) {
  depth = rotated ? round_up(d, 64) : d;
  const int64_t per_unit = kind == ScreenKind::int8 ? 4 : kind == ScreenKind::f32 ? 1 : 2;
  units = (depth + per_unit - 1) / per_unit;
  padded = round_up(depth, 64);
  // Roundings before an element is quantized, in units of 2^-24 of the norm of its row: of the division by
  // the norm or of the subtraction of a mean, of each stage of the transform, and of the reflection across
  // its blocks.
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

RowQuantizer::Loaded RowQuantizer::load(const TopkKernels& kernels, const void* row, DType dtype,
                                        float* out) const {
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
  if (mean != nullptr) {
    const float* raw = out;
    kernels.dots_f32(mean, &raw, 1, round_up(d, 16), &result.dot);
  }
  if (metric == Metric::cosine) {
    // Worked out in float64: the square of a float32 number neither over- nor underflows there.
    result.norm = std::sqrt(kernels.squared_norm(out, round_up(d, 16)));
    if (result.norm > 0) {
      const double inverse = 1.0 / result.norm;
      result.dot *= inverse;
      if (largest >= kTameLow && largest <= kTameHigh) {
        kernels.multiply(out, round_up(d, 16), static_cast<float>(inverse));
      } else {
        for (int64_t i = 0; i < d; ++i) out[i] = static_cast<float>(static_cast<double>(out[i]) * inverse);
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
  if (centre != nullptr) take_out_centre(out, result);
  if (rotated) kernels.rotate(out, signs.data(), depth);
  return result;
}

void RowQuantizer::take_out_centre(float* row, Loaded& result) const {
  // The division by the norm rounded in proportion to the row as it was, of norm 1.
  if (metric == Metric::cosine) result.lost += 0x1p-21f;
  subtract(row, centre, d);
  float largest = 0.0f;
  for (int64_t i = 0; i < d; ++i) largest = std::max(largest, std::fabs(row[i]));
  if (largest == 0.0f || largest >= kTameLow) return;
  result.lost += largest * std::sqrt(static_cast<float>(d)) * 1.001f;
  std::fill(row, row + d, 0.0f);
}

RowQuantizer::Row RowQuantizer::quantize(const TopkKernels& kernels, const float* row, float scale,
                                         float inv_scale, float lost, int32_t offset, uint32_t* out) const {
  const Quantized q = kernels.quantize[static_cast<int>(kind)](row, depth, inv_scale, offset, units, out);
  constexpr float kUp = 1.0f + 0x1p-20f;
  const float whole = (q.norm + q.err) * scale;
  Row result;
  result.norm = q.norm * scale * kUp;
  result.err = (q.err * scale + whole * relative + lost) * kUp;
  result.size = (whole * (1.0f + relative) + lost) * kUp;
  result.sum = q.sum;
  return result;
}

// Rounding of the screen's arithmetic relative to |x̂||ŵ|: of the accumulators, and 2^-20 for turning a sum
// into a score and comparing it.
float RowQuantizer::arithmetic() const {
  const double terms = static_cast<double>(depth) + 2;
  const double roundings = in_whole_numbers(kind) ? 0 : kind == ScreenKind::bf16 ? 2 * terms : terms;
  return static_cast<float>(rounding_of_sums(roundings) + 0x1p-20);
}

namespace {

// The memory of a packed matrix: a header, then its arrays, each on a multiple of 64 bytes.
struct Header {
  static constexpr uint64_t kMagic = 0x344b504f54534e46;  // "FNSTOPK4", so the layout has a version
  uint64_t magic;
  int64_t n, d, depth, units;
  int32_t kind, metric, nr, offset, rotated, finite, tame, centred;
  float max_norm, max_err;
};

struct Layout {
  int64_t panels, panel_bytes, data, scale, inv_scale, norm, err, valid, row, norm64, centre, along, end;

  Layout(int64_t n, int64_t d, int64_t units, int nr, bool cosine, bool centred) {
    panels = (n + nr - 1) / nr;
    panel_bytes = units * nr * 4;
    int64_t at = round_up(sizeof(Header), 64);
    const auto take = [&](int64_t bytes) {
      const int64_t begin = at;
      at += round_up(bytes, 64);
      return begin;
    };
    data = take(panels * panel_bytes);
    for (int64_t* array : {&scale, &inv_scale, &norm, &err, &valid}) *array = take(panels * 4);
    row = take(panels * nr * 4);
    norm64 = take(cosine ? n * 8 : 0);
    centre = take(centred ? d * 4 : 0);
    along = take(centred ? panels * nr * 4 : 0);
    end = at;
  }
};

Layout layout_of(const PackRequest& r, const RowQuantizer& q) {
  return {r.n, r.d, q.units, topk_kernels().nr, r.metric == Metric::cosine, r.centre != nullptr};
}

struct Writer {
  const Matrix& w;
  const RowQuantizer& q;
  const TopkKernels& kernels;
  int nr;
  int64_t panel_bytes;
  char* data;
  float *scale, *inv_scale, *norm, *err;
  uint32_t* valid;
  int32_t* row;
  double* norm64;
  float* along;
  double squared_mean;
  std::atomic<bool> finite{true}, tame{true};

  // Rows first..first+n, whose panels start at first / nr.
  void pack(int64_t first, int64_t n, Array<float>& rows, std::vector<uint32_t>& units) {
    rows.resize(n * q.padded);
    units.resize(static_cast<size_t>(q.padded * nr));
    std::vector<float> key(static_cast<size_t>(n)), lost(static_cast<size_t>(n));
    std::vector<double> dot(static_cast<size_t>(n));
    std::vector<uint8_t> usable(static_cast<size_t>(n));
    std::vector<int32_t> order(static_cast<size_t>(n));
    const bool whole = in_whole_numbers(q.kind);
    const WholeNumbers& form = kernels.whole[static_cast<int>(q.kind)];
    for (int64_t i = 0; i < n; ++i) {
      float* row = rows.data() + i * q.padded;
      const RowQuantizer::Loaded loaded = q.load(kernels, row_of(w, first + i), w.dtype, row);
      if (!loaded.finite) finite = false;
      if (!loaded.tame) tame = false;
      usable[i] = loaded.finite;
      lost[i] = loaded.lost;
      dot[i] = loaded.dot;
      if (whole) key[i] = form.step(row, q.padded);
      order[i] = static_cast<int32_t>(i);
      if (q.metric == Metric::cosine) norm64[first + i] = loaded.norm;
    }
    // The columns of a panel share a scale and bounds; rows of one size make both tight.
    if (whole) {
      std::sort(order.begin(), order.end(),
                [&](int32_t a, int32_t b) { return key[a] > key[b] || (key[a] == key[b] && a < b); });
    }
    for (int64_t at = 0; along != nullptr && at < round_up(n, nr); ++at) {
      along[first + at] = at < n ? static_cast<float>(dot[order[at]] - squared_mean) : 0.0f;
    }
    for (int64_t at = 0; at < n; at += nr) {
      pack_panel((first + at) / nr, first, order.data() + at, std::min<int64_t>(nr, n - at), rows, key, lost,
                 usable, units);
    }
  }

  void pack_panel(int64_t p, int64_t first, const int32_t* order, int64_t n, Array<float>& rows,
                  const std::vector<float>& key, const std::vector<float>& lost,
                  const std::vector<uint8_t>& usable, std::vector<uint32_t>& units) {
    float step = 1.0f, inv_step = 1.0f, size = 0.0f, error = 0.0f;
    if (in_whole_numbers(q.kind)) {
      float largest = 0.0f;
      for (int64_t c = 0; c < n; ++c) largest = std::max(largest, key[order[c]]);
      if (largest > 0) step = largest, inv_step = 1.0f / step;
    }
    const int32_t offset = kernels.whole[static_cast<int>(q.kind)].offset;
    uint32_t usable_columns = 0;
    for (int64_t c = 0; c < nr; ++c) {
      uint32_t* row_units = units.data() + c * q.padded;
      if (c < n) {
        const RowQuantizer::Row r = q.quantize(kernels, rows.data() + order[c] * q.padded, step, inv_step,
                                               lost[order[c]], offset, row_units);
        size = std::max(size, r.size);
        error = std::max(error, r.err);
        usable_columns |= uint32_t{usable[order[c]]} << c;
      } else {
        std::fill(row_units, row_units + q.units, 0u);
      }
      row[p * nr + c] = c < n ? static_cast<int32_t>(first + order[c]) : -1;
    }
    kernels.interleave(units.data(), q.padded, q.units, nr,
                       reinterpret_cast<uint32_t*>(data + p * panel_bytes));
    scale[p] = step;
    inv_scale[p] = inv_step;
    norm[p] = size;
    err[p] = error + q.arithmetic() * (size + error) * 1.0001f;
    valid[p] = usable_columns;
  }
};

template <class T>
T* at(char* memory, int64_t offset) {
  return reinterpret_cast<T*>(memory + offset);
}

}  // namespace

bool can_pack(const PackRequest& r) {
  return r.w.dtype != DType::f64 && r.n > 0 && r.n <= INT32_MAX - 64 && r.d > 0 && r.d <= (1 << 15);
}

int64_t packed_bytes(const PackRequest& r) {
  const RowQuantizer q(r.kind, r.metric, r.d);
  return layout_of(r, q).end;
}

Packed pack(const PackRequest& r, const Workers& workers, char* memory) {
  const TopkKernels& kernels = topk_kernels();
  RowQuantizer q(r.kind, r.metric, r.d);
  const Layout layout = layout_of(r, q);
  std::vector<double> mean;
  double squared_mean = 0.0;
  if (r.centre != nullptr) {
    float* kept = at<float>(memory, layout.centre);
    std::copy(r.centre, r.centre + r.d, kept);
    mean.assign(static_cast<size_t>(round_up(r.d, 16)), 0.0);
    std::copy(r.centre, r.centre + r.d, mean.begin());
    for (double v : mean) squared_mean += v * v;
    q.centre = kept;
    q.mean = mean.data();
  }
  Writer writer{r.w,
                q,
                kernels,
                kernels.nr,
                layout.panel_bytes,
                memory + layout.data,
                at<float>(memory, layout.scale),
                at<float>(memory, layout.inv_scale),
                at<float>(memory, layout.norm),
                at<float>(memory, layout.err),
                at<uint32_t>(memory, layout.valid),
                at<int32_t>(memory, layout.row),
                at<double>(memory, layout.norm64),
                r.centre != nullptr ? at<float>(memory, layout.along) : nullptr,
                squared_mean};

  // A block of rows is read once and stays in cache until its panels are written. Where rows are sorted by size,
  // a panel has a few to choose from.
  constexpr int64_t kBlockBytes = int64_t{512} << 10;
  const int64_t least = (in_whole_numbers(r.kind) ? 4 : 1) * kernels.nr;
  const int64_t tall =
      std::clamp<int64_t>(kBlockBytes / (q.padded * 4) / kernels.nr * kernels.nr, least, 4096);
  std::vector<Array<float>> rows(static_cast<size_t>(workers.threads));
  std::vector<std::vector<uint32_t>> units(static_cast<size_t>(workers.threads));
  for_each(workers, (r.n + tall - 1) / tall, [&](int64_t task, int worker) {
    const int64_t first = task * tall;
    writer.pack(first, std::min(tall, r.n - first), rows[worker], units[worker]);
  });

  Header header{};
  header.magic = Header::kMagic;
  header.n = r.n;
  header.d = r.d;
  header.depth = q.depth;
  header.units = q.units;
  header.kind = static_cast<int32_t>(r.kind);
  header.metric = static_cast<int32_t>(r.metric);
  header.nr = kernels.nr;
  header.offset = kernels.whole[static_cast<int>(r.kind)].offset;
  header.rotated = q.rotated;
  header.finite = writer.finite;
  header.tame = writer.tame;
  header.centred = r.centre != nullptr;
  for (int64_t p = 0; p < layout.panels; ++p) {
    header.max_norm = std::max(header.max_norm, writer.norm[p]);
    header.max_err = std::max(header.max_err, writer.err[p]);
  }
  std::memcpy(memory, &header, sizeof(header));
  Packed packed{};
  open_packed(memory, layout.end, r.n, r.d, r.metric, &packed);
  return packed;
}

bool fits(const Packed& packed) {
  const TopkKernels& kernels = topk_kernels();
  return packed.nr == kernels.nr && screen_available(packed.kind) &&
         packed.offset == kernels.whole[static_cast<int>(packed.kind)].offset;
}

bool open_packed(const char* memory, int64_t bytes, int64_t n, int64_t d, Metric metric, Packed* out) {
  Header h;
  if (bytes < static_cast<int64_t>(sizeof(h))) return false;
  std::memcpy(&h, memory, sizeof(h));
  if (h.magic != Header::kMagic || h.n != n || h.d != d || h.metric != static_cast<int32_t>(metric))
    return false;
  if (h.kind < 0 || h.kind >= kScreenKinds || (h.nr != 8 && h.nr != 16 && h.nr != 32)) return false;
  const RowQuantizer q(static_cast<ScreenKind>(h.kind), metric, d);
  const Layout layout(n, d, q.units, h.nr, metric == Metric::cosine, h.centred != 0);
  if (layout.end != bytes || h.units != q.units || h.depth != q.depth || h.rotated != q.rotated) return false;
  char* m = const_cast<char*>(memory);
  Packed& p = *out;
  p = {static_cast<ScreenKind>(h.kind),
       metric,
       h.rotated != 0,
       h.finite != 0,
       h.tame != 0,
       h.nr,
       h.offset,
       n,
       d,
       h.depth,
       h.units,
       layout.panels,
       layout.panel_bytes,
       h.max_norm,
       h.max_err,
       memory + layout.data,
       at<float>(m, layout.scale),
       at<float>(m, layout.inv_scale),
       at<float>(m, layout.norm),
       at<float>(m, layout.err),
       at<uint32_t>(m, layout.valid),
       at<int32_t>(m, layout.row),
       metric == Metric::cosine ? at<double>(m, layout.norm64) : nullptr,
       h.centred ? at<float>(m, layout.centre) : nullptr,
       h.centred ? at<float>(m, layout.along) : nullptr};
  // It may come from a file: a row that is not there must never be read.
  for (int64_t c = 0; c < p.panels * p.nr; ++c) {
    const bool usable = (p.valid[c / p.nr] >> (c % p.nr)) & 1u;
    if (p.row[c] >= n || (usable && p.row[c] < 0)) return false;
  }
  return true;
}

}  // namespace finescope
