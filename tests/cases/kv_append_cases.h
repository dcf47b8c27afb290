// Cases of kv_append (core/ops/kv_append.h).
#pragma once

#include <string>
#include <vector>

#include "core/ops/kv_append.h"
#include "tests/cases/random.h"
#include "tests/cases/run.h"
#include "tests/cases/values.h"

namespace tandem::cases {

enum class KvRope : uint8_t { kNo, kShared, kPerSequence };  // positions: none, [S], [B, S]
template <>
inline constexpr std::array<std::string_view, 3> kEnumNames<KvRope> = {"no", "shared",
                                                                       "per_sequence"};

struct KvAppendCase {
  using Args = KvAppendArgs;

  int64_t batch = 1;
  int64_t heads = 1;
  int64_t tokens = 1;
  int64_t capacity = 16;  // paged: at least; whole pages
  int64_t position = 0;
  int64_t head_dim = 64;
  int64_t v_head_dim = 64;
  DType k_dtype = DType::kF32;
  DType v_dtype = DType::kF32;
  DType cache_dtype = DType::kF32;
  bool ragged = false;    // cache_lens: position, position - 1, ... but at least 0
  int64_t page_size = 0;  // 0: not paged
  KvRope rope = KvRope::kNo;
  int64_t pairs = -1;  // -1: head_dim / 2
  RopePairing pairing = RopePairing::kInterleaved;
  float magnitude = 1.0f;
  int64_t q_heads = 0;    // 0: no q; with rope only
  int64_t q_skipped = 0;  // q holds the tokens behind the first so many
  DType q_dtype = DType::kF32;
  DType q_out_dtype = DType::kF32;
  bool q_in_place = false;
  Layout x_layout = Layout::kContiguous;
  Layout cache_layout = Layout::kContiguous;
  Values values = Values::kNormal;
  int64_t seed = 1;

  template <typename Self, typename Visitor>
  static void VisitFields(Self& self, Visitor&& visit) {
    visit("batch", self.batch);
    visit("heads", self.heads);
    visit("tokens", self.tokens);
    visit("capacity", self.capacity);
    visit("position", self.position);
    visit("head_dim", self.head_dim);
    visit("v_head_dim", self.v_head_dim);
    visit("k_dtype", self.k_dtype);
    visit("v_dtype", self.v_dtype);
    visit("cache_dtype", self.cache_dtype);
    visit("ragged", self.ragged);
    visit("page_size", self.page_size);
    visit("rope", self.rope);
    visit("pairs", self.pairs);
    visit("pairing", self.pairing);
    visit("magnitude", self.magnitude);
    visit("q_heads", self.q_heads);
    visit("q_skipped", self.q_skipped);
    visit("q_dtype", self.q_dtype);
    visit("q_out_dtype", self.q_out_dtype);
    visit("q_in_place", self.q_in_place);
    visit("x_layout", self.x_layout);
    visit("cache_layout", self.cache_layout);
    visit("values", self.values);
    visit("seed", self.seed);
  }

  Operands MakeOperands() const;
  KvAppendArgs Bind(const Views& views) const;
  std::vector<Expectation> Expect(const KvAppendArgs& args) const;
  std::string DTypeLabel() const;

  static std::vector<KvAppendCase> Grid(GridSize size);
  static KvAppendCase Random(Rng& rng);
};

}  // namespace tandem::cases
