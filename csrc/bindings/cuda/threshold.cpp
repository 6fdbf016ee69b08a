// torch.ops.finescope.threshold_encode on CUDA.
#include "cuda/threshold.h"

#include <optional>
#include <tuple>

#include "bindings/cuda/products.h"
#include "bindings/topk_operands.h"

namespace finescope::cuda {
namespace {

#if defined(FINESCOPE_CUDA_ON_CPU)
// So small that the tests cross every boundary.
constexpr int64_t kBitBytes = int64_t{4} << 10;
#else
// A bit for each latent of the rows in flight.
constexpr int64_t kBitBytes = int64_t{16} << 20;
#endif

class Encoder {
 public:
  using Codes = std::tuple<Tensor, Tensor, Tensor>;

  Encoder(const ThresholdOperands& o, Screen screen, const OnDevice& device)
      : o_(o),
        stream_(device.stream()),
        products_(o.x, o.weight, o.F, o.D, Metric::encode, screen, stream_),
        screened_(products_.meaningful()),
        words_((o.F + 31) / 32) {
    const int64_t fit = std::max<int64_t>(1, kBitBytes / std::max<int64_t>(1, 4 * words_));
    rows_ = std::max<int64_t>(1, std::min(products_.rows(o.B, screened_), fit));
    // Chunks begin where words of bits do.
    chunk_ = products_.chunk(rows_, kStep);
    if (chunk_ < o.F) chunk_ = chunk_ / 32 * 32;
  }

  Codes run() {
    Tensor indptr = room({o_.B + 1}, ScalarType::Long);
    torch::stable::zero_(indptr);
    if (o_.B == 0 || o_.F == 0) return {room({0}, value_type()), room({0}, ScalarType::Int), indptr};
    Tensor broken = room({1}, ScalarType::Int), shift = room({o_.F}, ScalarType::Double);
    torch::stable::zero_(broken);
    const double* const bias = o_.bias ? data<double>(*o_.bias) : nullptr;
    launch_shift(bias, data<double>(o_.threshold), o_.F, pointer<double>(shift), pointer<int32_t>(broken),
                 stream_);
    Tensor measure = room({rows_, 4}, ScalarType::Float), state = room({rows_}, ScalarType::Int);
    Tensor bits = room({rows_, words_}, ScalarType::Int);
    int64_t before = 0;
    for (int64_t first = 0; first < o_.B; first += rows_) {
      Matrix x = o_.x.matrix;
      x.data = static_cast<const char*>(x.data) + first * x.stride * o_.x.tensor.element_size();
      const ThresholdArgs args{x,
                               o_.weight.matrix,
                               std::min(rows_, o_.B - first),
                               o_.F,
                               o_.D,
                               bias,
                               data<double>(o_.threshold),
                               data<double>(shift),
                               o_.scale ? data<double>(*o_.scale) : nullptr,
                               o_.offset ? data<double>(*o_.offset) : nullptr,
                               pointer<const Measure>(measure),
                               pointer<int32_t>(state),
                               pointer<const int32_t>(broken),
                               pointer<uint32_t>(bits),
                               words_,
                               pointer<int64_t>(indptr) + first};
      decide(args, first, pointer<Measure>(measure), pointer<int32_t>(broken));
      launch_count(args, stream_);
      const int64_t after = read_back(args.indptr + args.R, stream_);
      Tensor values = room({after - before}, value_type()), latents = room({after - before}, ScalarType::Int);
      launch_write(args, before, pointer<int32_t>(latents), values.mutable_data_ptr(), o_.f64, stream_);
      values_.push_back(values), latents_.push_back(latents);
      before = after;
    }
    return {joined(values_, before), joined(latents_, before), indptr};
  }

 private:
  Tensor room(std::vector<int64_t> sizes, ScalarType dtype) const {
    return empty_like_options(o_.x.tensor, std::move(sizes), dtype);
  }
  template <class T>
  static T* pointer(const Tensor& t) {
    return static_cast<T*>(t.mutable_data_ptr());
  }
  ScalarType value_type() const { return o_.f64 ? ScalarType::Double : ScalarType::Float; }

  // The bits of the rows.
  void decide(const ThresholdArgs& args, int64_t first, Measure* measure, int32_t* broken) {
    launch_norms({args.x, args.R, o_.D, nullptr, nullptr, args.state, nullptr}, stream_);
    if (screened_) {
      products_.make(
          {first, args.R, args.shift, measure, args.state, broken, chunk_}, [] {},
          [&](const FilterArgs& chunk) { launch_screen(args, chunk, stream_); });
    } else {
      launch_scan_rows(args.state, args.R, stream_);
      // w is looked through for what is not finite in it.
      if (first == 0) launch_norms({args.w, o_.F, o_.D, nullptr, nullptr, nullptr, broken}, stream_);
    }
    launch_scan_bits(args, stream_);
  }

  // The pieces one behind the other; their memory is given back.
  Tensor joined(std::vector<Tensor>& pieces, int64_t entries) const {
    if (pieces.size() == 1) return pieces[0];
    Tensor all = room({entries}, pieces[0].scalar_type());
    int64_t at = 0;
    for (Tensor& piece : pieces) {
      Tensor place = torch::stable::narrow(all, 0, at, piece.size(0));
      torch::stable::copy_(place, piece);
      at += piece.size(0);
    }
    pieces.clear();
    return all;
  }

  const ThresholdOperands& o_;
  cudaStream_t stream_;
  Products products_;
  bool screened_;
  int64_t words_, rows_, chunk_;
  std::vector<Tensor> values_, latents_;  // of each block of rows
};

Encoder::Codes threshold_encode(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                const Tensor& threshold, const std::optional<Tensor>& scale,
                                const std::optional<Tensor>& offset, const std::string& screen) {
  const char* op = "threshold_encode";
  const OnDevice device(x);
  const ThresholdOperands o(x, weight, bias, threshold, scale, offset, op);
  return Encoder(o, screen_of(screen, op), device).run();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(finescope, FINESCOPE_CUDA_KEY, m)
{
  m.impl("threshold_encode", TORCH_BOX(&threshold_encode));
}

}  // namespace finescope::cuda
