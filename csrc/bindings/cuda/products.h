// Screened products of rows of x, some thousand at a time, with all of w, a chunk of its rows at a time: they
// are still in the second-level cache when they are looked at.
#pragma once

#include <algorithm>
#include <optional>

#include "bindings/cuda/aten.h"
#include "bindings/search.h"
#include "cuda/topk.h"

namespace finescope::cuda {

#if defined(FINESCOPE_CUDA_ON_CPU)
// So small that the tests cross every boundary.
inline constexpr int64_t kScoreBytes = int64_t{64} << 10;
inline constexpr int64_t kCopyBytes = int64_t{128} << 10;
inline constexpr int64_t kRows = 24;
inline constexpr int64_t kMeasuredRows = 1250;
#else
// The screened scores of one chunk: they should stay in the second-level cache from the multiplication to the
// filter.
inline constexpr int64_t kScoreBytes = int64_t{32} << 20;
// Copies of rows of x, and of a chunk of w.
inline constexpr int64_t kCopyBytes = int64_t{32} << 20;
// Rows of x in flight. More would not make the multiplication any faster.
inline constexpr int64_t kRows = 4096;
// Rows of w that are measured once and for all, where they need no copies: 16 bytes for each.
inline constexpr int64_t kMeasuredRows = int64_t{1} << 20;
#endif

// What the screen multiplies in: float16 or bfloat16 ("auto" and "bf16"), int8, or float32.
enum class Screen { none, half, i8, f32 };

inline Screen screen_of(const std::string& name, const char* op) {
  switch (screen_choice(name, op)) {
    case ScreenChoice::none:
      return Screen::none;
    case ScreenChoice::int8:
      return Screen::i8;
    case ScreenChoice::f32:
      return Screen::f32;
    default:
      return Screen::half;
  }
}

// Rounding of a sum of D products, relative to the sum of their magnitudes. Tensor cores add in float32, but
// may cut off instead of rounding; four times the unit roundoff of float32 leaves room for that. Products of
// numbers of 16 bits are exact; those of float32 ones may be made of numbers cut to TF32's 11 bits. Integers
// add up exactly.
inline double rounding_of(Screen screen, int64_t D) {
  if (screen == Screen::i8) return 0.0;
  const double sum = 1.01 * static_cast<double>(D) * 0x1p-22;
  return screen == Screen::f32 ? sum + 0x1p-9 : sum;
}

// Beyond, sums of 127 * 127 leave int32.
inline constexpr int64_t kInt8Width = int64_t{1} << 17;
// torch multiplies more than 16 rows of int8, and multiples of 8 rows with them.
inline constexpr int64_t kInt8Rows = 16;

// The rows of x in flight.
struct RowsInFlight {
  int64_t first, R;
  const double* bias;  // [N], or null: what is added to every product
  Measure* measure;    // [R]
  int32_t* state;      // [R]
  int32_t* broken;     // encode: as in NormArgs
  int64_t chunk;       // rows of w at a time
};

class Products {
 public:
  Products(const Rows& x, const Rows& w, int64_t N, int64_t D, Metric metric, Screen screen,
           cudaStream_t stream)
      : x_(x), w_(w), N_(N), D_(D), metric_(metric), stream_(stream) {
    screen_ = screen == Screen::i8 && D > kInt8Width ? Screen::half : screen;
    copied_ = screen_ == Screen::half || screen_ == Screen::i8;
  }

  // Whether a screen says anything: not of float64, nor where a sum is too long for its bound to mean
  // anything.
  bool meaningful() const {
    const bool wide = x_.matrix.dtype == DType::f64 || w_.matrix.dtype == DType::f64;
    return screen_ != Screen::none && !wide && D_ > 0 && rounding_of(screen_, D_) <= 0.25;
  }

  // Rows of B to be taken at a time, at most.
  int64_t rows(int64_t B, bool screened) const {
    const int64_t most = std::min(B, kRows);
    if (!screened || !copied_) return most;
    return std::min(most, std::max<int64_t>(64, kCopyBytes / (2 * D_)));
  }

  // Rows of w for so many rows of x, `least` where that is possible: a multiple of 8.
  int64_t chunk(int64_t rows, int64_t least) const {
    int64_t width = std::max(kScoreBytes / (4 * rows), least);
    if (copied_)
      width = std::min(width, std::max<int64_t>(kStep, kCopyBytes / (2 * std::max<int64_t>(D_, 1))));
    return std::min((N_ + 7) / 8 * 8, std::max<int64_t>(8, width / 8 * 8));
  }

  // Measures the rows, calls begin(), then take(FilterArgs) for every chunk. A second time from the start if
  // torch does not multiply what the screen asks for; then in bfloat16, from then on.
  template <class Begin, class Take>
  void make(const RowsInFlight& rows, const Begin& begin, const Take& take) {
    refused_ = refused_ || !multiplied(rows, copy_for(rows.R), begin, take);
    if (refused_) multiplied(rows, Copy::bf16, begin, take);
  }

 private:
  Tensor room(std::vector<int64_t> sizes, ScalarType dtype) const {
    return empty_like_options(x_.tensor, std::move(sizes), dtype);
  }

  // What the screen multiplies of R rows and w: them, where they have 16 bits of one kind, or copies.
  Copy copy_for(int64_t R) const {
    if (screen_ == Screen::f32) return Copy::none;
    if (screen_ == Screen::i8 && R > kInt8Rows) return Copy::i8;
    const DType x = x_.matrix.dtype, w = w_.matrix.dtype;
    return x == w && (x == DType::bf16 || x == DType::f16) ? Copy::none : Copy::f16;
  }

  // False: torch multiplies no int8, or (with its setting allow_fp16_accumulation) not float16 into float32.
  template <class Begin, class Take>
  bool multiplied(const RowsInFlight& rows, Copy copy, const Begin& begin, const Take& take) {
    const bool copied = copy != Copy::none, integers = copy == Copy::i8;
    const ScalarType type = integers             ? ScalarType::Char
                            : copy == Copy::bf16 ? ScalarType::BFloat16
                                                 : ScalarType::Half;
    // Rows wide enough for loads of 16 bytes, whatever D is.
    const int64_t padded = (D_ + 15) / 16 * 16;
    Tensor x = x_.tensor, w = w_.tensor, left, copies;
    if (copied) {
      left = room({rows.R, padded}, type);
      copies = room({rows.chunk, padded}, type);
    } else {
      left = torch::stable::narrow(x, 0, rows.first, rows.R);
      if (screen_ == Screen::f32) left = as(left, ScalarType::Float);
    }
    launch_measure({part(x_, rows.first), rows.R, D_, metric_, 0.0, nullptr, copy,
                    copied ? left.mutable_data_ptr() : nullptr, padded, rows.measure, rows.state, nullptr},
                   stream_);
    begin();
    Tensor products = room({rows.R * rows.chunk}, integers ? ScalarType::Int : ScalarType::Float);
    const double rounding = rounding_of(integers                 ? Screen::i8
                                        : screen_ == Screen::f32 ? Screen::f32
                                                                 : Screen::half,
                                        D_);
    // What is known of the rows of w: of all, where nothing has to be copied for every block of rows of x.
    const bool once = !copied && N_ <= kMeasuredRows;
    Tensor columns = once && columns_ ? *columns_ : room({once ? N_ : rows.chunk, 4}, ScalarType::Float);
    Measure* const measured = static_cast<Measure*>(columns.mutable_data_ptr());
    const auto measure_columns = [&](int64_t at, int64_t width) {
      launch_measure({part(w_, at), width, D_, metric_, rounding, rows.bias ? rows.bias + at : nullptr, copy,
                      copied ? copies.mutable_data_ptr() : nullptr, padded, measured, nullptr,
                      metric_ == Metric::encode ? rows.broken : nullptr},
                     stream_);
    };
    if (once && !columns_) {
      measure_columns(0, N_);
      columns_ = columns;
    }
    for (int64_t at = 0; at < N_; at += rows.chunk) {
      const int64_t width = std::min(rows.chunk, N_ - at);
      // Of copies there may be a few more than columns, of which nobody looks at the products.
      const int64_t multiplied = copied ? (width + 7) / 8 * 8 : width;
      if (!once) measure_columns(at, width);
      Tensor right =
          copied ? torch::stable::narrow(copies, 0, 0, multiplied) : torch::stable::narrow(w, 0, at, width);
      if (screen_ == Screen::f32) right = as(right, ScalarType::Float);
      Tensor flat = torch::stable::narrow(products, 0, 0, rows.R * multiplied);
      Tensor block = torch::stable::view(flat, {rows.R, multiplied});
      const AOTITorchError error = multiply(left, right, block);
      if (error != TORCH_SUCCESS && (integers || left.scalar_type() == ScalarType::Half)) return false;
      must(error, "multiply rows ", shape_text(left), " by ", shape_text(right));
      take(
          FilterArgs{products.const_data_ptr(), integers, multiplied, measured + (once ? at : 0), at, width});
    }
    return true;
  }

  // Rows from `first` on.
  static Matrix part(const Rows& rows, int64_t first) {
    Matrix m = rows.matrix;
    m.data = static_cast<const char*>(m.data) + first * m.stride * rows.tensor.element_size();
    return m;
  }

  const Rows &x_, &w_;
  int64_t N_, D_;
  Metric metric_;
  cudaStream_t stream_;
  Screen screen_;
  bool copied_;
  std::optional<Tensor> columns_;  // measures of all rows of w
  bool refused_ = false;           // torch does not multiply what a screen asked for
};

}  // namespace finescope::cuda
