#include "cpu/topk/pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace finescope {

namespace {

// The memory of a packed matrix: a header, then its arrays, each on a multiple of 64 bytes.
struct Header {
  static constexpr uint64_t kMagic = 0x344b504f54534e46;  // "FNSTOPK4", so the layout has a version
  uint64_t magic;
  int64_t n, d, depth, units;
  int32_t kind, metric, nr, offset, rotated, finite, tame, centred;
  float max_norm, max_err;
};

PackLayout layout_of(const PackRequest& r, const RowQuantizer& q, bool kept = true) {
  return {r.n, r.d, q.units, topk_kernels().nr, r.metric == Metric::cosine, r.centre != nullptr, kept};
}

Packed view(const Header& h, const PackLayout& layout, char* memory) {
  const auto at = [&](int64_t offset) { return memory + offset; };
  const Metric metric = static_cast<Metric>(h.metric);
  return {static_cast<ScreenKind>(h.kind),
          metric,
          h.rotated != 0,
          h.finite != 0,
          h.tame != 0,
          h.nr,
          h.offset,
          h.n,
          h.d,
          h.depth,
          h.units,
          layout.panels,
          layout.panel_bytes,
          h.max_norm,
          h.max_err,
          at(layout.data),
          reinterpret_cast<float*>(at(layout.scale)),
          reinterpret_cast<float*>(at(layout.inv_scale)),
          reinterpret_cast<float*>(at(layout.norm)),
          reinterpret_cast<float*>(at(layout.err)),
          reinterpret_cast<uint32_t*>(at(layout.valid)),
          reinterpret_cast<int32_t*>(at(layout.row)),
          metric == Metric::cosine ? reinterpret_cast<double*>(at(layout.norm64)) : nullptr,
          h.centred ? reinterpret_cast<float*>(at(layout.centre)) : nullptr,
          h.centred ? reinterpret_cast<float*>(at(layout.along)) : nullptr};
}

// A block of rows is read once and stays in cache until its panels are written. Where rows are sorted by size,
// a panel has a few to choose from.
constexpr int64_t kBlockBytes = int64_t{512} << 10;

int64_t rows_of_block(const RowQuantizer& q, int nr) {
  const int64_t least = (in_whole_numbers(q.kind) ? 4 : 1) * nr;
  return std::clamp<int64_t>(kBlockBytes / (q.padded * 4) / nr * nr, least, 4096);
}

}  // namespace

PackLayout::PackLayout(int64_t n, int64_t d, int64_t units, int nr, bool cosine, bool centred, bool kept) {
  panels = (n + nr - 1) / nr;
  panel_bytes = units * nr * 4;
  int64_t at = round_up(sizeof(Header), 64);
  const auto take = [&](int64_t bytes) {
    const int64_t begin = at;
    at += round_up(bytes, 64);
    return begin;
  };
  data = take(kept ? panels * panel_bytes : 0);
  for (int64_t* array : {&scale, &inv_scale, &norm, &err, &valid}) *array = take(panels * 4);
  row = take(panels * nr * 4);
  norm64 = take(cosine ? n * 8 : 0);
  centre = take(centred ? d * 4 : 0);
  along = take(centred ? panels * nr * 4 : 0);
  end = at;
}

Packer::Packer(const PackRequest& r, int workers, char* memory)
    : request_(r),
      quantizer_(r.kind, r.metric, r.d),
      layout_(layout_of(r, quantizer_, memory != nullptr)),
      own_(memory != nullptr ? 0 : layout_.end),
      memory_(memory != nullptr ? memory : own_.get()),
      tall_(rows_of_block(quantizer_, kernels_.nr)),
      rows_(static_cast<size_t>(workers)) {
  if (r.centre != nullptr) {
    float* kept = array<float>(layout_.centre);
    std::copy(r.centre, r.centre + r.d, kept);
    mean_.assign(static_cast<size_t>(round_up(r.d, 16)), 0.0);
    std::copy(r.centre, r.centre + r.d, mean_.begin());
    for (double v : mean_) squared_mean_ += v * v;
    quantizer_.centre = kept;
    quantizer_.mean = mean_.data();
  }
  Header header{};
  header.magic = Header::kMagic;
  header.n = r.n;
  header.d = r.d;
  header.depth = quantizer_.depth;
  header.units = quantizer_.units;
  header.kind = static_cast<int32_t>(r.kind);
  header.metric = static_cast<int32_t>(r.metric);
  header.nr = kernels_.nr;
  header.offset = kernels_.whole[header.kind].offset;
  header.rotated = quantizer_.rotated;
  header.centred = r.centre != nullptr;
  std::memcpy(memory_, &header, sizeof(header));
  packed_ = view(header, layout_, memory_);
}

void Packer::Rows::resize(int64_t n, int64_t padded, int nr) {
  const size_t count = static_cast<size_t>(n);
  data.resize(n * padded);
  step.resize(count), lost.resize(count), dot.resize(count), usable.resize(count), order.resize(count);
  units.resize(static_cast<size_t>(padded * nr));
}

void Packer::load(int64_t first, int64_t n, Rows& rows) {
  const RowQuantizer& q = quantizer_;
  rows.resize(n, q.padded, kernels_.nr);
  const bool whole = in_whole_numbers(q.kind);
  const WholeNumbers& form = kernels_.whole[static_cast<int>(q.kind)];
  for (int64_t i = 0; i < n; ++i) {
    float* row = rows.data.data() + i * q.padded;
    const RowQuantizer::Loaded loaded =
        q.load(kernels_, row_of(request_.w, first + i), request_.w.dtype, row);
    if (!loaded.finite) finite_ = false;
    if (!loaded.tame) tame_ = false;
    rows.usable[i] = loaded.finite;
    rows.lost[i] = loaded.lost;
    rows.dot[i] = loaded.dot;
    if (whole) rows.step[i] = form.step(row, q.padded);
    rows.order[i] = static_cast<int32_t>(i);
    if (q.metric == Metric::cosine) array<double>(layout_.norm64)[first + i] = loaded.norm;
  }
  // The columns of a panel share a scale and bounds; rows of one size make both tight.
  if (!whole) return;
  const std::vector<float>& step = rows.step;
  std::sort(rows.order.begin(), rows.order.end(),
            [&](int32_t a, int32_t b) { return step[a] > step[b] || (step[a] == step[b] && a < b); });
}

void Packer::pack(int64_t block, int worker, char* panels) {
  const int64_t first = block * tall_, n = std::min(tall_, request_.n - first), nr = kernels_.nr;
  Rows& rows = rows_[static_cast<size_t>(worker)];
  load(first, n, rows);
  if (request_.centre != nullptr) {
    float* along = array<float>(layout_.along) + first;
    for (int64_t at = 0; at < round_up(n, nr); ++at) {
      along[at] = at < n ? static_cast<float>(rows.dot[rows.order[at]] - squared_mean_) : 0.0f;
    }
  }
  for (int64_t at = 0; at < n; at += nr, panels += layout_.panel_bytes) {
    pack_panel((first + at) / nr, first, rows.order.data() + at, std::min(nr, n - at), rows, panels);
  }
}

void Packer::pack_panel(int64_t p, int64_t first, const int32_t* order, int64_t n, Rows& rows, char* out) {
  const RowQuantizer& q = quantizer_;
  const int64_t nr = kernels_.nr;
  float step = 1.0f, inv_step = 1.0f, size = 0.0f, error = 0.0f;
  if (in_whole_numbers(q.kind)) {
    float largest = 0.0f;
    for (int64_t c = 0; c < n; ++c) largest = std::max(largest, rows.step[order[c]]);
    if (largest > 0) step = largest, inv_step = 1.0f / step;
  }
  uint32_t usable_columns = 0;
  int32_t* row = array<int32_t>(layout_.row) + p * nr;
  for (int64_t c = 0; c < nr; ++c) {
    uint32_t* units = rows.units.data() + c * q.padded;
    if (c < n) {
      const RowQuantizer::Row r = q.quantize(kernels_, rows.data.data() + order[c] * q.padded, step, inv_step,
                                             rows.lost[order[c]], packed_.offset, units);
      size = std::max(size, r.size);
      error = std::max(error, r.err);
      usable_columns |= uint32_t{rows.usable[order[c]]} << c;
    } else {
      std::fill(units, units + q.units, 0u);
    }
    row[c] = c < n ? static_cast<int32_t>(first + order[c]) : -1;
  }
  kernels_.interleave(rows.units.data(), q.padded, q.units, nr, reinterpret_cast<uint32_t*>(out));
  array<float>(layout_.scale)[p] = step;
  array<float>(layout_.inv_scale)[p] = inv_step;
  array<float>(layout_.norm)[p] = size;
  array<float>(layout_.err)[p] = error + q.arithmetic() * (size + error) * 1.0001f;
  array<uint32_t>(layout_.valid)[p] = usable_columns;
}

void Packer::finish() {
  packed_.finite = finite_;
  packed_.tame = tame_;
  for (int64_t p = 0; p < layout_.panels; ++p) {
    packed_.max_norm = std::max(packed_.max_norm, packed_.norm[p]);
    packed_.max_err = std::max(packed_.max_err, packed_.err[p]);
  }
  Header header;
  std::memcpy(&header, memory_, sizeof(header));
  header.finite = packed_.finite;
  header.tame = packed_.tame;
  header.max_norm = packed_.max_norm;
  header.max_err = packed_.max_err;
  std::memcpy(memory_, &header, sizeof(header));
}

bool can_pack(const PackRequest& r) {
  return r.w.dtype != DType::f64 && r.n > 0 && r.n <= INT32_MAX - 64 && r.d > 0 && r.d <= (1 << 15);
}

int64_t packed_bytes(const PackRequest& r) {
  return layout_of(r, RowQuantizer(r.kind, r.metric, r.d)).end;
}

Packed pack(const PackRequest& r, const Workers& workers, char* memory) {
  Packer packer(r, workers.threads, memory);
  for_each(workers, packer.blocks(), [&](int64_t block, int worker) {
    const PackLayout& layout = packer.layout();
    packer.pack(block, worker, memory + layout.data + packer.first_panel(block) * layout.panel_bytes);
  });
  packer.finish();
  return packer.packed();
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
  const PackLayout layout(n, d, q.units, h.nr, metric == Metric::cosine, h.centred != 0);
  if (layout.end != bytes || h.units != q.units || h.depth != q.depth || h.rotated != q.rotated) return false;
  const Packed& p = *out = view(h, layout, const_cast<char*>(memory));
  // It may come from a file: a row that is not there must never be read.
  for (int64_t c = 0; c < p.panels * p.nr; ++c) {
    const bool usable = (p.valid[c / p.nr] >> (c % p.nr)) & 1u;
    if (p.row[c] >= n || (usable && p.row[c] < 0)) return false;
  }
  return true;
}

}  // namespace finescope
