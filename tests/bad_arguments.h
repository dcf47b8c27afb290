// Table-driven tests of Validate: good arguments, spoiled one way at a time, must be rejected with
// a message that names what is wrong.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "core/status.h"
#include "core/tensor_view.h"

namespace tandem {

template <typename Args>
struct Spoiled {
  std::string message;  // part of the error's text
  std::function<void(Args&)> spoil;
};

template <typename Args>
void ExpectRejected(const Args& args, const std::string& message) {
  const absl::Status status = Validate(args);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << "expected: " << message;
  EXPECT_THAT(Message(status), testing::HasSubstr(message));
}

template <typename Args>
void ExpectEachRejected(const Args& good, const std::vector<Spoiled<Args>>& all) {
  ASSERT_TRUE(Validate(good).ok()) << Validate(good).ToString();
  for (const Spoiled<Args>& spoiled : all) {
    SCOPED_TRACE(spoiled.message);
    Args args = good;
    spoiled.spoil(args);
    ExpectRejected(args, spoiled.message);
  }
}

// What any view can be wrong in. `required`: absence is an error. `others`: there are other views,
// whose device this one must share.
template <typename Args>
void ExpectViewIsChecked(const Args& good, TensorView Args::*view, const std::string& name,
                         bool required = true, bool others = true) {
  ASSERT_TRUE(Validate(good).ok()) << Validate(good).ToString();
  const auto reject = [&](const std::string& what, const std::function<void(TensorView&)>& spoil) {
    SCOPED_TRACE(name + ": " + what);
    Args args = good;
    spoil(args.*view);
    const absl::Status status = Validate(args);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(Message(status), testing::StartsWith(name));
  };
  if (required) reject("absent", [](TensorView& v) { v = {}; });
  reject("rank beyond the largest", [](TensorView& v) { v.shape.rank = kMaxRank + 1; });
  reject("negative rank", [](TensorView& v) { v.shape.rank = -3; });
  reject("unknown dtype", [](TensorView& v) { v.dtype = static_cast<DType>(77); });
  reject("integer of 8 bits", [](TensorView& v) { v.dtype = DType::kI8; });
  reject("null", [](TensorView& v) { v.data = nullptr; });
  if (Alignment((good.*view).dtype) > 1) {
    reject("misaligned", [](TensorView& v) { v.data = static_cast<char*>(v.data) + 1; });
  }
  reject("negative extent", [](TensorView& v) { v.shape[0] = -1; });
  reject("negative stride", [](TensorView& v) { v.strides[0] = -1; });
  reject("overflowing shape", [](TensorView& v) {
    for (int i = 0; i < v.rank(); ++i) v.shape[i] = INT64_MAX - 31;
    v.strides = ContiguousStrides(v.shape);
  });
  reject("overflowing strides", [](TensorView& v) {
    v.shape[0] = 2;
    v.strides[0] = INT64_MAX - 31;
  });
  if (others) {
    Args args = good;
    (args.*view).device = {DeviceKind::kCuda, 0};
    ExpectRejected(args, " is on ");
    ExpectRejected(args, name);
  }
}

}  // namespace tandem
