#include "tests/reference/matmul.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "tests/reference/elements.h"

namespace tandem::reference {
namespace {

double Activate(Activation activation, double x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kGelu: {
      const double inner = std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x);
      return 0.5 * x * (1.0 + std::tanh(inner));
    }
    case Activation::kRelu:
      return x > 0.0 || std::isnan(x) ? x : 0.0;
  }
  return x;
}

template <typename Real>
MatMulResult Compute(const MatMulArgs& args) {
  constexpr bool kNaive = std::is_same_v<Real, float>;
  const int64_t m = args.m(), n = args.n(), k = args.k();
  std::vector<double> a = ReadAll(args.a), b = ReadAll(args.b);
  if (kNaive && !IsBlockQuantized(args.b.dtype)) {
    const DType storage = Coarser(args.a.dtype, args.b.dtype);
    for (double& x : a) x = RoundTo(storage, x);
    for (double& x : b) x = RoundTo(storage, x);
  }
  const std::vector<double> bias = ReadAll(args.bias), addend = ReadAll(args.addend);
  const std::vector<Real> ra(a.begin(), a.end()), rb(b.begin(), b.end());
  const int64_t a_step = args.a.rank() == 3 && args.a.dim(0) > 1 ? m * k : 0;
  const int64_t b_step = args.b.rank() == 3 && args.b.dim(0) > 1 ? n * k : 0;
  const int64_t batch = args.out.rank() == 3 ? args.out.dim(0) : 1;

  MatMulResult result;
  for (int64_t z = 0; z < batch; ++z) {
    for (int64_t i = 0; i < m; ++i) {
      const Real* row = ra.data() + z * a_step + i * k;
      for (int64_t j = 0; j < n; ++j) {
        const Real* column = rb.data() + z * b_step + j * k;
        Real dot = 0, magnitude = 0;
        for (int64_t c = 0; c < k; ++c) {
          dot += row[c] * column[c];
          if (!kNaive) magnitude += std::fabs(row[c] * column[c]);
        }
        Real x = static_cast<Real>(args.alpha) * dot;
        magnitude *= std::fabs(args.alpha);
        if (!bias.empty()) {
          x += static_cast<Real>(bias[j]);
          magnitude += static_cast<Real>(std::fabs(bias[j]));
        }
        x = static_cast<Real>(Activate(args.activation, x));
        if (!addend.empty()) {
          const Real extra =
              static_cast<Real>(args.beta) * static_cast<Real>(addend[(z * m + i) * n + j]);
          // beta = 0: the addend is not read, whatever it holds.
          if (args.beta != 0.0f) x += extra;
          if (args.beta != 0.0f) magnitude += std::fabs(extra);
        }
        result.out.push_back(kNaive ? RoundTo(args.out.dtype, x) : static_cast<double>(x));
        result.magnitude.push_back(magnitude);
      }
    }
  }
  return result;
}

}  // namespace

std::vector<double> ActivationRounding(const MatMulArgs& args) {
  constexpr int64_t kBlock = 32;
  constexpr double kSteepest = 1.13;  // the largest slope of an activation function (GELU)
  const int64_t m = args.m(), n = args.n(), k = args.k();
  std::vector<double> off = ReadAll(args.a);  // the largest error of each activation
  for (size_t row = 0; row < off.size(); row += static_cast<size_t>(k)) {
    for (int64_t begin = 0; begin < k; begin += kBlock) {
      const auto first = off.begin() + static_cast<int64_t>(row) + begin;
      const auto last = first + std::min(kBlock, k - begin);
      double largest = 0.0;
      for (auto x = first; x != last; ++x) largest = std::max(largest, std::fabs(*x));
      std::fill(first, last, largest / 254.0);
    }
  }
  const std::vector<double> b = ReadAll(args.b);
  const int64_t a_step = args.a.rank() == 3 && args.a.dim(0) > 1 ? m * k : 0;
  const int64_t b_step = args.b.rank() == 3 && args.b.dim(0) > 1 ? n * k : 0;
  std::vector<double> result;
  for (int64_t z = 0; z < args.batch(); ++z) {
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double sum = 0.0, squares = 0.0;
        for (int64_t c = 0; c < k; ++c) {
          const double error = off[static_cast<size_t>(z * a_step + i * k + c)] *
                               std::fabs(b[static_cast<size_t>(z * b_step + j * k + c)]);
          sum += error;
          squares += error * error;
        }
        const double likely = 8.0 * std::sqrt(squares / 3.0);  // an even spread: variance / 3
        result.push_back(kSteepest * std::fabs(args.alpha) * std::min(sum, likely) * 1.0001);
      }
    }
  }
  return result;
}

MatMulResult MatMul(const MatMulArgs& args) { return Compute<double>(args); }
MatMulResult NaiveMatMul(const MatMulArgs& args) { return Compute<float>(args); }

}  // namespace tandem::reference
