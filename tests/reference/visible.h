// The mask rule once more, straight from its definition in core/ops/mask_rule.h: one condition per
// line, in 128-bit integers so that nothing can overflow. MaskRule is tested against this, and the
// references use this.
#pragma once

#include <cstdint>

#include "core/ops/mask_rule.h"

namespace tandem::reference {

inline bool Visible(const MaskRule& rule, int64_t q, int64_t k) {
  __extension__ using Int = __int128;
  if (k < 0 || k >= rule.kv_len) return false;
  // From here on in the whole sequence, of which the rule may describe a part.
  const Int all = Int{rule.keys_before} + rule.kv_len + rule.keys_after;
  const Int position = rule.causal == Causal::kTopLeft ? Int{q} : all - rule.q_len + q;
  const Int key = Int{rule.keys_before} + k;
  if (key < rule.kv_begin) return false;
  if (rule.causal != Causal::kNone && key > position && key >= rule.prefix_len) return false;
  if (rule.window_left >= 0 && key < position - rule.window_left) return false;
  if (rule.window_right >= 0 && key > position + rule.window_right) return false;
  if (rule.chunk > 0) {
    Int chunk_begin = position / rule.chunk * rule.chunk;
    if (chunk_begin > position) chunk_begin -= rule.chunk;
    if (key < chunk_begin || key >= chunk_begin + rule.chunk) return false;
  }
  return true;
}

}  // namespace tandem::reference
