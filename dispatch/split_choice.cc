#include "dispatch/split_choice.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/status.h"

namespace tandem {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
// Shares looked at beside the crossing.
constexpr int64_t kSamples = 32;

std::string Time(double seconds) {
  return std::isinf(seconds) ? "forever" : absl::StrFormat("%.3g ms", seconds * 1e3);
}

// One problem being solved.
class Search {
 public:
  Search(const SplitProblem& problem, ShareSeconds cpu, ShareSeconds gpu)
      : problem_(problem), cpu_(cpu), gpu_(gpu) {
    best_.total = problem.total;
    best_.seconds = kNever;
  }

  absl::StatusOr<SplitChoice> Run() {
    const int64_t total = problem_.total, step = problem_.step;
    const double cpu_alone = total <= problem_.cpu_most ? Cpu(total) : kNever;
    const double gpu_alone = total <= problem_.gpu_most ? Gpu(total) : kNever;
    best_.cpu_alone = cpu_alone;
    best_.gpu_alone = gpu_alone;
    if (cpu_alone < best_.seconds) Take(0, cpu_alone, cpu_alone, 0.0);
    if (gpu_alone < best_.seconds) Take(total, gpu_alone, 0.0, gpu_alone);
    // In steps.
    const int64_t least =
        std::max<int64_t>(1, (total - std::min(total, problem_.cpu_most) + step - 1) / step);
    const int64_t most = std::min(problem_.gpu_most, total - 1) / step;
    if (least <= most) {
      int64_t low = least, high = most;  // the first that keeps the GPU busy longer, or the last
      while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (Gpu(middle * step) >= problem_.queue_seconds + Cpu(total - middle * step)) {
          high = middle;
        } else {
          low = middle + 1;
        }
      }
      for (int64_t i = 0; i <= kSamples; ++i) Try(least + (most - least) * i / kSamples);
      for (int64_t near = std::max(least, low - 1); near <= std::min(most, low + 1); ++near) {
        Try(near);
      }
    }
    if (bad_) return InvalidArgument("cpu, gpu: expected times >= 0");
    const double alone = std::min(cpu_alone, gpu_alone);
    if (best_.gpu > 0 && best_.gpu < total && best_.seconds >= (1.0 - problem_.margin) * alone) {
      if (cpu_alone <= gpu_alone) {
        Take(0, cpu_alone, cpu_alone, 0.0);
      } else {
        Take(total, gpu_alone, 0.0, gpu_alone);
      }
    }
    if (std::isinf(best_.seconds)) return Unimplemented("neither device can do its share");
    // Bound by memory: the last share that fits still leaves the GPU waiting.
    best_.memory_bound = problem_.gpu_most < total && best_.gpu < total &&
                         best_.gpu + step > problem_.gpu_most &&
                         best_.gpu_seconds < best_.cpu_seconds;
    return best_;
  }

 private:
  double Seconds(ShareSeconds seconds, int64_t share) {
    const double time = seconds(share);
    if (!(time >= 0.0)) bad_ = true;
    return time;
  }
  double Cpu(int64_t share) { return Seconds(cpu_, share); }
  double Gpu(int64_t share) { return Seconds(gpu_, share); }

  void Try(int64_t steps) {
    const int64_t share = steps * problem_.step;
    const double cpu = Cpu(problem_.total - share), gpu = Gpu(share);
    const double busy = std::max(problem_.queue_seconds + cpu, gpu);
    const double seconds = std::max(busy, problem_.least_seconds) + problem_.join_seconds;
    // Of shares that take equally long, the one by which both finish together.
    const bool shared = best_.gpu > 0 && best_.gpu < problem_.total;
    if (seconds < best_.seconds || (shared && seconds == best_.seconds && busy < busy_)) {
      busy_ = busy;
      Take(share, seconds, cpu, gpu);
    }
  }

  void Take(int64_t share, double seconds, double cpu, double gpu) {
    best_.gpu = share;
    best_.seconds = seconds;
    best_.cpu_seconds = cpu;
    best_.gpu_seconds = gpu;
  }

  const SplitProblem& problem_;
  ShareSeconds cpu_, gpu_;
  SplitChoice best_;
  double busy_ = 0.0;  // of the best share of both, without least_seconds
  bool bad_ = false;
};

}  // namespace

absl::StatusOr<SplitChoice> ChooseSplit(const SplitProblem& problem, ShareSeconds cpu,
                                        ShareSeconds gpu) {
  if (problem.total < 1) return InvalidArgument("total: expected >= 1, got ", problem.total);
  if (problem.step < 1) return InvalidArgument("step: expected >= 1, got ", problem.step);
  if (problem.gpu_most < 0) {
    return InvalidArgument("gpu_most: expected >= 0, got ", problem.gpu_most);
  }
  if (problem.cpu_most < 0) {
    return InvalidArgument("cpu_most: expected >= 0, got ", problem.cpu_most);
  }
  if (!(problem.queue_seconds >= 0.0) || !(problem.join_seconds >= 0.0) ||
      !(problem.least_seconds >= 0.0)) {
    return InvalidArgument("queue_seconds, join_seconds, least_seconds: expected >= 0");
  }
  if (!(problem.margin >= 0.0 && problem.margin < 1.0)) {
    return InvalidArgument("margin: expected 0 <= margin < 1");
  }
  return Search(problem, cpu, gpu).Run();
}

std::string Explain(const SplitChoice& choice, const std::string& what) {
  std::string text;
  if (choice.gpu == 0) {
    text = absl::StrCat("all ", choice.total, " ", what, " on the CPU: ", Time(choice.seconds),
                        "; the GPU alone takes ", Time(choice.gpu_alone));
  } else if (choice.gpu == choice.total) {
    text = absl::StrCat("all ", choice.total, " ", what, " on the GPU: ", Time(choice.seconds),
                        "; the CPU alone takes ", Time(choice.cpu_alone));
  } else {
    text = absl::StrCat(choice.gpu, " of ", choice.total, " ", what, " on the GPU (",
                        Time(choice.gpu_seconds), "), the others on the CPU (",
                        Time(choice.cpu_seconds), "): ", Time(choice.seconds),
                        " together; alone the CPU takes ", Time(choice.cpu_alone), ", the GPU ",
                        Time(choice.gpu_alone));
  }
  if (choice.memory_bound) absl::StrAppend(&text, "; more do not fit in the GPU's memory");
  return text;
}

}  // namespace tandem
