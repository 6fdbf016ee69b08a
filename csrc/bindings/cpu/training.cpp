// torch.ops.finescope on the CPU: the operations of a training step.
#include "cpu/codes/training.h"

#include <memory>
#include <optional>
#include <tuple>

#include "bindings/cpu/codes.h"

namespace finescope {
namespace {

// --- Adam

void adam_step(Tensor parameter, const Tensor& grad, Tensor exp_avg, Tensor exp_avg_sq, int64_t step,
               double lr, double beta1, double beta2, double eps, bool unit_norm,
               const std::optional<Tensor>& scales) {
  AdamOperands o(parameter, grad, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, unit_norm, scales);
  const auto kernel = training_kernels().adam_step;
  parallel(o.rows, grain(8 * o.args.width), [&](int64_t begin, int64_t end) { kernel(o.args, begin, end); });
  o.write_back();
}

// --- decoding with residuals

std::tuple<Tensor, Tensor, Tensor, Tensor> decode_residual(const Tensor& values, const Tensor& indices,
                                                           const Tensor& weight,
                                                           const std::optional<Tensor>& bias,
                                                           const Tensor& target, int64_t k) {
  const DecodeResidualOperands o(values, indices, weight, bias, target, k);
  check_indices(o.index, o.F, o.op);
  const auto kernel = training_kernels().decode_residual;
  parallel(o.args.B, grain(3 * o.args.K * o.args.D),
           [&](int64_t begin, int64_t end) { kernel(o.args, begin, end); });
  return {o.out, o.residual, o.dots, o.errors};
}

// --- gradients of both matrices

// The pairs (b, j) by latent, then by position: a stable counting sort, whose result is unique.
template <class T>
struct SortedPairs {
  std::vector<int64_t> start;
  std::unique_ptr<Pair<T>[]> pairs;

  SortedPairs(const T* first, const T* second, const int64_t* indices, int64_t B, int64_t K, int64_t F,
              int64_t k, int64_t R)
      : start(F + 1, 0), pairs(new Pair<T>[static_cast<size_t>(B * K)]) {
    for (int64_t i = 0; i < B * K; ++i) ++start[indices[i] + 1];
    for (int64_t f = 0; f < F; ++f) start[f + 1] += start[f];
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t j = 0; j < K; ++j) {
        const int64_t i = b * K + j, other = R > 1 && j >= k ? B : 0;
        pairs[next[indices[i]]++] = {static_cast<uint32_t>(b), static_cast<uint32_t>(b + other), first[i],
                                     second[i]};
      }
    }
  }
};

// Columns per strip: as many as keep one strip of x and of all gradients in a second-level cache. Where
// latents have few pairs there is little to find there again, and starting on a latent anew for every strip
// costs more.
template <class T>
int64_t strip_width(int64_t rows, int64_t D, int64_t pairs_per_latent) {
  constexpr int64_t kCache = 768 << 10, kWidest = 512;
  const int64_t narrowest = pairs_per_latent < 8 ? 512 : 64;
  int64_t bytes = kWidest;
  while (bytes > narrowest && rows * bytes > kCache) bytes /= 2;
  return std::min<int64_t>(bytes / static_cast<int64_t>(sizeof(T)), std::max<int64_t>(D, 1));
}

// [rows, D] as strips [strips, rows, width].
template <class T>
std::unique_ptr<T[]> strips_of(const T* from, int64_t stride, int64_t rows, int64_t D, int64_t width) {
  const int64_t strips = (D + width - 1) / width;
  std::unique_ptr<T[]> out(new T[static_cast<size_t>(strips * rows * width)]);
  parallel(rows, grain(D), [&](int64_t begin, int64_t end) {
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t columns = std::min(width, D - s * width);
      T* strip = out.get() + s * rows * width;
      for (int64_t r = begin; r < end; ++r) {
        std::copy_n(from + r * stride + s * width, columns, strip + r * width);
      }
    }
  });
  return out;
}

template <class T>
void run_weight_grads(const Tensor& first, const Tensor& second, const int64_t* indices, const Matrix& x,
                      const Tensor& grad, int64_t k, WeightGradArgs args) {
  const int64_t B = first.size(0), K = first.size(1), F = args.F, D = args.D, R = grad.size(0);
  const SortedPairs<T> sorted(data<T>(first), data<T>(second), indices, B, K, F, k, R);
  args.start = sorted.start.data();
  args.pairs = sorted.pairs.get();
  args.width = strip_width<T>(B + R * B, D, B * K / std::max<int64_t>(F, 1));
  const auto x_strips = strips_of<T>(static_cast<const T*>(x.data), x.stride, B, D, args.width);
  const auto grad_strips = strips_of<T>(data<T>(grad), D, R * B, D, args.width);
  args.x = x_strips.get();
  args.grad = grad_strips.get();
  const auto kernel = training_kernels().weight_grads;
  over_runs(args.start, F, grain(2 * D), [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

std::tuple<Tensor, Tensor, Tensor> weight_grads(const Tensor& grad_values, const Tensor& values,
                                                const Tensor& indices, const Tensor& x, const Tensor& grad,
                                                int64_t k, int64_t num_latents) {
  const WeightGradOperands o(grad_values, values, indices, x, grad, k, num_latents);
  check_indices(o.index, o.args.F, o.op);
  prefer_huge_pages(o.encoder);
  prefer_huge_pages(o.decoder);
  const auto run = o.args.dtype == DType::f64 ? run_weight_grads<double> : run_weight_grads<float>;
  run(o.first, o.second, data<int64_t>(o.index), o.x.matrix, o.gradient, k, o.args);
  return {o.encoder, o.bias, o.decoder};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(finescope, CPU, m)
{
  m.impl("sae_adam_step_", TORCH_BOX(&adam_step));
  m.impl("decode_residual", TORCH_BOX(&decode_residual));
  m.impl("weight_grads", TORCH_BOX(&weight_grads));
}

}  // namespace finescope
