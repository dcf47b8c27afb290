// The cases catch what they are there to catch: kernels with one planted bug each must fail, the
// same kernel without a bug must pass.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "core/dtype.h"
#include "cpu/backend.h"
#include "tests/cases/run.h"

namespace tandem::cases {

inline void Store(const TensorView& view, int64_t offset, float x) {
  DispatchFloat(view.dtype, [&]<typename T>() { *view.At<T>(offset) = FromFloat<T>(x); });
}

class PlantedBugs : public testing::Test {
 protected:
  void SetUp() override {
    cpu::CpuOptions options;
    options.threads = 1;
    auto backend = cpu::MakeCpuBackend(options);
    ASSERT_TRUE(backend.ok()) << backend.status().ToString();
    backend_ = *std::move(backend);
    auto stream = backend_->CreateStream();
    ASSERT_TRUE(stream.ok()) << stream.status().ToString();
    stream_ = *std::move(stream);
    target_ = {.backend = backend_.get(), .stream = stream_.get(), .pack = nullptr};
  }

  // The message of the first case that fails, or "" if all pass.
  template <typename Case>
  std::string FirstFailure(const Kernel<typename Case::Args>& kernel, GridSize grid) {
    for (const Case& c : Case::Grid(grid)) {
      const Outcome outcome = RunCase(c, kernel, target_);
      if (outcome.failed()) {
        EXPECT_THAT(outcome.message, testing::HasSubstr("tandem check --kernel planted --case '"));
        // The reproducer reproduces.
        const size_t begin = outcome.message.find("--case '") + 8;
        const auto again = ParseCase<Case>(
            outcome.message.substr(begin, outcome.message.find('\'', begin) - begin));
        EXPECT_TRUE(again.ok()) << again.status().ToString();
        if (again.ok()) {
          EXPECT_TRUE(RunCase(*again, kernel, target_).failed());
        }
        return outcome.message;
      }
    }
    return "";
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Stream> stream_;
  Target target_;
};

}  // namespace tandem::cases
