// A variable of the environment for as long as this lives, then as it was before.
#pragma once

#include <cstdlib>
#include <optional>
#include <string>

namespace tandem {

class ScopedEnv {
 public:
  // Without a value: not there.
  ScopedEnv(const std::string& name, const std::optional<std::string>& value) : name_(name) {
    if (const char* before = std::getenv(name_.c_str())) before_ = before;
    Set(value);
  }
  ~ScopedEnv() { Set(before_); }
  ScopedEnv(const ScopedEnv&) = delete;
  ScopedEnv& operator=(const ScopedEnv&) = delete;

 private:
  void Set(const std::optional<std::string>& value) const {
    if (value) {
      setenv(name_.c_str(), value->c_str(), 1);
    } else {
      unsetenv(name_.c_str());
    }
  }

  const std::string name_;
  std::optional<std::string> before_;
};

// For tests of what there is without a GPU, where the others run beside the emulated one.
class WithoutGpu {
  ScopedEnv emulated_{"TANDEM_CUDA_EMULATED", std::nullopt};
};

}  // namespace tandem
