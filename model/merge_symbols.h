// Greedy pair merging, the common core of both tokenizers: symbols in a row, of which again and
// again the best adjacent pair becomes one symbol, until no pair can be merged.
//
// A doubly linked list of symbols and a priority queue of pairs. A merge leaves at most two new
// pairs, and pairs whose symbols have changed are recognised by their length when they surface:
// O(n log n) for n symbols.
#pragma once

#include <cstdint>
#include <optional>
#include <queue>
#include <vector>

namespace tandem {

struct Symbol {
  int64_t begin;   // bytes, into the text
  int64_t length;  // 0: merged into another
  int32_t id;      // token, or -1
  int32_t previous = -1;
  int32_t next = -1;
};

struct Merge {
  double cost;  // the lowest is done first; among equals, the leftmost
  int32_t id;   // of the merged token
};

// Merges `symbols`, which lie side by side in the text. `find(left, right)` returns
// std::optional<Merge>. The result are the symbols of length > 0.
template <typename Find>
void MergeSymbols(std::vector<Symbol>& symbols, Find&& find) {
  struct Pair {
    double cost;
    int32_t left;
    int32_t right;
    int64_t length;
    int32_t id;
    bool operator<(const Pair& other) const {  // std::priority_queue yields the largest
      return cost != other.cost ? cost > other.cost : left > other.left;
    }
  };
  std::priority_queue<Pair> pairs;
  const auto add = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    const Symbol& a = symbols[static_cast<size_t>(left)];
    const Symbol& b = symbols[static_cast<size_t>(right)];
    if (const std::optional<Merge> merge = find(a, b)) {
      pairs.push({merge->cost, left, right, a.length + b.length, merge->id});
    }
  };
  const auto count = static_cast<int32_t>(symbols.size());
  for (int32_t i = 0; i < count; ++i) {
    symbols[static_cast<size_t>(i)].previous = i - 1;
    symbols[static_cast<size_t>(i)].next = i + 1 < count ? i + 1 : -1;
  }
  for (int32_t i = 1; i < count; ++i) add(i - 1, i);
  while (!pairs.empty()) {
    const Pair pair = pairs.top();
    pairs.pop();
    Symbol& left = symbols[static_cast<size_t>(pair.left)];
    Symbol& right = symbols[static_cast<size_t>(pair.right)];
    if (left.length == 0 || right.length == 0 || left.length + right.length != pair.length) {
      continue;
    }
    left.length = pair.length;
    left.id = pair.id;
    left.next = right.next;
    right.length = 0;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = pair.left;
    add(left.previous, pair.left);
    add(pair.left, left.next);
  }
}

}  // namespace tandem
