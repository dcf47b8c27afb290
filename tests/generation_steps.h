// What tests do with the steps of a generation.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace tandem {

// Chooses from the prompt's logits and takes `count` steps; appends their tokens. `Steps`:
// DecodeSteps or ResilientSteps.
template <typename Steps, typename Logits>
void GoOn(Steps& steps, const Logits& logits, int count, std::vector<int32_t>& tokens) {
  ASSERT_TRUE(logits.ok()) << logits.status();
  auto token = steps.Choose(*logits, 0);
  for (int i = 0; i < count && token.ok(); ++i) {
    tokens.push_back(*token);
    token = steps.Next(*token, static_cast<uint64_t>(i) + 1);
  }
  EXPECT_TRUE(token.ok()) << token.status();
}

}  // namespace tandem
