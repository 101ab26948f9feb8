// One loss and gradient with libtorch, as a C++ programmer would write it: no autograd, no allocation in a step.
// Compiled by libtorch.py.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cstdint>
#include <vector>

namespace {

enum Activation { identity, sigmoid, tanh, relu };

struct Step {
  Activation activation;
  at::Tensor x;
  std::vector<at::Tensor> W, b, dW, db;  // (fan_in, fan_out) and (fan_out)
  std::vector<at::Tensor> h, delta;      // (m, fan_out)
};

void activate(at::Tensor& z, Activation activation) {
  if (activation == sigmoid) at::sigmoid_(z);
  if (activation == tanh) at::tanh_(z);
  if (activation == relu) at::relu_(z);
}

void times_derivative(at::Tensor& delta, const at::Tensor& h, Activation activation) {
  if (activation == sigmoid) at::sigmoid_backward_out(delta, delta, h);
  if (activation == tanh) at::tanh_backward_out(delta, delta, h);
  if (activation == relu) at::threshold_backward_out(delta, delta, h, 0);
}

}  // namespace

// widths: layers + 1; parameters and gradients: W1, b1, W2, b2, ...
extern "C" void* prepare(int64_t layers, const int64_t* widths, int activation, int is_double, int64_t m, void* x,
                         void** parameters, void** gradients) {
  auto type = is_double ? at::kDouble : at::kFloat;
  auto* step = new Step{static_cast<Activation>(activation), at::from_blob(x, {m, widths[0]}, type)};
  for (int64_t i = 0; i < layers; ++i) {
    int64_t in = widths[i], out = widths[i + 1];
    step->W.push_back(at::from_blob(parameters[2 * i], {in, out}, type));
    step->b.push_back(at::from_blob(parameters[2 * i + 1], {out}, type));
    step->dW.push_back(at::from_blob(gradients[2 * i], {in, out}, type));
    step->db.push_back(at::from_blob(gradients[2 * i + 1], {out}, type));
    step->h.push_back(at::empty({m, out}, type));
    step->delta.push_back(at::empty({m, out}, type));
  }
  return step;
}

// Writes the gradients; returns the loss.
extern "C" double step(void* prepared) {
  c10::NoGradGuard no_autograd;
  auto& s = *static_cast<Step*>(prepared);
  int64_t last = static_cast<int64_t>(s.W.size()) - 1;
  double m = static_cast<double>(s.x.size(0));
  for (int64_t i = 0; i <= last; ++i) {
    at::addmm_out(s.h[i], s.b[i], i ? s.h[i - 1] : s.x, s.W[i]);
    if (i < last) activate(s.h[i], s.activation);
  }
  at::sub_out(s.delta[last], s.h[last], s.x);
  auto flat = s.delta[last].view(-1);
  double loss = at::dot(flat, flat).item<double>() / (2 * m);
  s.delta[last].mul_(1 / m);
  for (int64_t i = last; i >= 0; --i) {
    at::mm_out(s.dW[i], (i ? s.h[i - 1] : s.x).t(), s.delta[i]);
    at::sum_out(s.db[i], s.delta[i], 0);
    if (i == 0) break;
    at::mm_out(s.delta[i - 1], s.delta[i], s.W[i].t());
    times_derivative(s.delta[i - 1], s.h[i - 1], s.activation);
  }
  return loss;
}
