// The training kernels in the program of kernels_host.cpp.
#include "cpu/codes/training.h"
#include "host_rows.h"

using namespace host;

namespace {

template <class Acc>
void check_adam(DType dtype, int64_t D, bool unit_norm) {
  const int64_t n = 4;
  Rows w(dtype, n, D), g(dtype, n, D), m(dtype, n, D), v(dtype, n, D);
  for (int64_t i = 0; i < n * D; ++i) v.put(i, v.at(i) * v.at(i));
  Rows weight = w, mean = m, square = v;
  const AdamArgs args{w.data(), g.data(), m.data(), v.data(), dtype, D,      unit_norm,
                      0.1,      0.999,    0.001,    0.01,     1e-8,  nullptr};
  const Acc rate1 = static_cast<Acc>(0.1), beta2 = static_cast<Acc>(0.999), rate2 = static_cast<Acc>(0.001);
  const Acc step = static_cast<Acc>(0.01), eps = static_cast<Acc>(1e-8);
  training_kernels().adam_step(args, 0, unit_norm ? n : n * D);
  for (int64_t row = 0; row < n; ++row) {
    const Acc along = unit_norm ? static_cast<Acc>(dot(D, g, row, weight, row)) : 0;
    for (int64_t i = row * D; i < (row + 1) * D; ++i) {
      Acc wi = static_cast<Acc>(weight.at(i)), gi = static_cast<Acc>(g.at(i));
      Acc mi = static_cast<Acc>(mean.at(i)), vi = static_cast<Acc>(square.at(i));
      if (unit_norm) gi -= wi * along;
      mi += (gi - mi) * rate1;
      vi = vi * beta2 + gi * rate2 * gi;
      wi -= mi * step / (std::sqrt(vi) + eps);
      mean.put(i, mi);
      square.put(i, vi);
      weight.put(i, wi);
    }
    if (!unit_norm) continue;
    const Acc norm = static_cast<Acc>(std::sqrt(dot(D, weight, row, weight, row)));
    for (int64_t i = row * D; i < (row + 1) * D; ++i) weight.put(i, static_cast<Acc>(weight.at(i)) / norm);
  }
  expect("adam_step: weight", dtype, D, w, weight);
  expect("adam_step: mean", dtype, D, m, mean);
  expect("adam_step: square", dtype, D, v, square);
}

template <class Acc>
void check_residuals(DType dtype, int64_t D) {
  const int64_t B = 3, K = 7, k = 4, F = 11, R = 2;
  const Rows weight(dtype, F, D), target(dtype, B, D);
  Rows values(dtype, B, K), bias(dtype, 1, D);
  const std::vector<int64_t> indices = some_indices(B * K, F);
  Rows out(dtype, B, D), residual(dtype, R * B, D), dots(dtype, R * B, K), errors(dtype, R, B);
  Rows wanted_out = out, wanted_residual = residual, wanted_dots = dots, wanted_errors = errors;
  training_kernels().decode_residual(
      {dtype, values.data(), indices.data(), weight.matrix(), bias.data(), target.matrix(), out.data(),
       residual.data(), dots.data(), errors.data(), R, B, K, D, k},
      0, B);
  for (int64_t b = 0; b < B; ++b) {
    const auto sum = [&](int64_t first, int64_t last, int64_t d) {
      Acc s = 0;
      for (int64_t j = first; j < last; ++j) {
        s += static_cast<Acc>(values.at(b, j)) * static_cast<Acc>(weight.at(indices[b * K + j], d));
      }
      return s;
    };
    for (int64_t d = 0; d < D; ++d) {
      wanted_out.put(b * D + d, sum(0, k, d) + static_cast<Acc>(bias.at(d)));
      const Acc first = static_cast<Acc>(target.at(b, d)) - static_cast<Acc>(wanted_out.at(b, d));
      wanted_residual.put(b * D + d, first);
      wanted_residual.put((B + b) * D + d, first - sum(k, K, d));
    }
    for (int64_t r = 0; r < R; ++r) {
      const int64_t row = r * B + b;
      for (int64_t j = 0; j < K; ++j) {
        const bool seen = r == 1 || j < k;
        wanted_dots.put(row * K + j, seen ? dot(D, wanted_residual, row, weight, indices[b * K + j]) : 0.0);
      }
      wanted_errors.put(row, dot(D, wanted_residual, row, wanted_residual, row));
    }
  }
  expect("decode_residual: out", dtype, D, out, wanted_out);
  expect("decode_residual: residual", dtype, D, residual, wanted_residual);
  expect("decode_residual: dots", dtype, D, dots, wanted_dots);
  expect("decode_residual: errors", dtype, D, errors, wanted_errors);
}

template <class Acc>
void check_gradients(DType dtype, int64_t D, int64_t width) {
  const int64_t B = 5, R = 2, F = 9, strips = (D + width - 1) / width;
  Rows x(dtype, strips * B, width), grad(dtype, strips * R * B, width);
  std::vector<Pair<Acc>> pairs;
  std::vector<int64_t> start(1, 0);
  Rows encoder(dtype, F, D), bias(dtype, 1, F), decoder(dtype, F, D);
  Rows wanted_encoder = encoder, wanted_bias = bias, wanted_decoder = decoder;
  for (int64_t f = 0; f < F; ++f) {
    for (int64_t i = host::random.below(9); i > 0; --i) {
      const uint32_t row = static_cast<uint32_t>(host::random.below(B));
      const uint32_t grad_row = row + static_cast<uint32_t>(host::random.below(R) * B);
      pairs.push_back(
          {row, grad_row, static_cast<Acc>(host::random.normal()), static_cast<Acc>(host::random.normal())});
    }
    start.push_back(static_cast<int64_t>(pairs.size()));
    Acc total = 0;
    for (int64_t i = start[f]; i < start[f + 1]; ++i) total += pairs[i].first;
    wanted_bias.put(f, total);
    for (int64_t d = 0; d < D; ++d) {
      Acc first = 0, second = 0;
      for (int64_t i = start[f]; i < start[f + 1]; ++i) {
        const int64_t strip = d / width;
        first += pairs[i].first * static_cast<Acc>(x.at(strip * B + pairs[i].row, d % width));
        second += pairs[i].second * static_cast<Acc>(grad.at(strip * R * B + pairs[i].grad_row, d % width));
      }
      wanted_encoder.put(f * D + d, first);
      wanted_decoder.put(f * D + d, second);
    }
  }
  training_kernels().weight_grads({dtype, start.data(), pairs.data(), x.data(), grad.data(), B, R * B, width,
                                   encoder.data(), bias.data(), decoder.data(), F, D},
                                  0, F);
  expect("weight_grads: encoder", dtype, D, encoder, wanted_encoder);
  expect("weight_grads: bias", dtype, D, bias, wanted_bias);
  expect("weight_grads: decoder", dtype, D, decoder, wanted_decoder);
}

}  // namespace

void check_training() {
  for (int64_t D : {1, 16, 67, 130}) {
    for (bool unit_norm : {false, true}) {
      for (DType dtype : {DType::f32, DType::bf16, DType::f16}) check_adam<float>(dtype, D, unit_norm);
      check_adam<double>(DType::f64, D, unit_norm);
    }
    check_residuals<float>(DType::f32, D);
    check_residuals<double>(DType::f64, D);
    for (int64_t width : {D, int64_t{32}}) {
      check_gradients<float>(DType::f32, D, width);
      check_gradients<double>(DType::f64, D, width);
    }
  }
}
