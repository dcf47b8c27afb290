// Pairwise selection: a small set of cases in which every value of every field meets every value of
// every other field at least once. (Most bugs need one or two particular values, not ten; the full
// product of the fields would be millions of cases.) Greedy, seeded, the same on every machine.
#pragma once

#include <functional>
#include <type_traits>
#include <utility>
#include <vector>

#include "tests/cases/random.h"

namespace tandem::cases {

template <typename Case>
class Pairwise {
 public:
  explicit Pairwise(Case base = {}) : base_(base) {}

  // One of `values` is put into `field`.
  template <typename T>
  Pairwise& Field(T Case::*field, std::vector<std::type_identity_t<T>> values) {
    Settings settings;
    for (const T& value : values) settings.push_back([=](Case& c) { c.*field = value; });
    fields_.push_back(std::move(settings));
    return *this;
  }
  // One of several settings of fields that belong together.
  using Settings = std::vector<std::function<void(Case&)>>;
  Pairwise& Group(Settings settings) {
    fields_.push_back(std::move(settings));
    return *this;
  }

  // Each case gets its own seed, counted from `seed`.
  std::vector<Case> Select(uint64_t seed) const {
    Rng rng(seed);
    const size_t n = fields_.size();
    // uncovered[a][b][i][j]: value i of field a has not met value j of field b (a < b).
    std::vector<std::vector<std::vector<std::vector<bool>>>> uncovered(n);
    size_t remaining = 0;
    for (size_t a = 0; a < n; ++a) {
      uncovered[a].resize(n);
      for (size_t b = a + 1; b < n; ++b) {
        uncovered[a][b].assign(fields_[a].size(), std::vector<bool>(fields_[b].size(), true));
        remaining += fields_[a].size() * fields_[b].size();
      }
    }
    const auto gain = [&](const std::vector<size_t>& row) {
      size_t count = 0;
      for (size_t a = 0; a < n; ++a) {
        for (size_t b = a + 1; b < n; ++b) count += uncovered[a][b][row[a]][row[b]];
      }
      return count;
    };
    std::vector<Case> cases;
    while (remaining > 0) {
      std::vector<size_t> best;
      size_t best_gain = 0;
      // Among random rows the one that covers most; late in the search few do, so try until one.
      for (int tries = 0; tries < 40 || best_gain == 0; ++tries) {
        std::vector<size_t> row(n);
        for (size_t a = 0; a < n; ++a) {
          row[a] = static_cast<size_t>(rng.Integer(0, static_cast<int64_t>(fields_[a].size()) - 1));
        }
        const size_t row_gain = gain(row);
        if (row_gain > best_gain) {
          best_gain = row_gain;
          best = row;
        }
      }
      for (size_t a = 0; a < n; ++a) {
        for (size_t b = a + 1; b < n; ++b) uncovered[a][b][best[a]][best[b]] = false;
      }
      remaining -= best_gain;
      Case c = base_;
      for (size_t a = 0; a < n; ++a) fields_[a][best[a]](c);
      c.seed = static_cast<int64_t>(seed + cases.size());
      cases.push_back(c);
    }
    return cases;
  }

 private:
  Case base_;
  std::vector<Settings> fields_;
};

// Appends `more` to `cases`.
template <typename Case>
void Append(std::vector<Case>& cases, std::vector<Case> more) {
  cases.insert(cases.end(), more.begin(), more.end());
}

}  // namespace tandem::cases
