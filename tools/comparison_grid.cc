#include "tools/comparison_grid.h"

#include "absl/strings/str_cat.h"

namespace tandem::tools {
namespace {

// Powers of two; every other one, or every fourth, if `step` is 2 or 4.
std::vector<int64_t> Powers(int64_t first, int64_t last, int step) {
  std::vector<int64_t> values;
  for (int64_t x = first; x <= last; x *= step) values.push_back(x);
  return values;
}

}  // namespace

std::vector<GridSeries> ComparisonGrid(bool quick) {
  const int step = quick ? 4 : 2;
  const auto cat = [](auto... parts) { return absl::StrCat(parts...); };
  const auto name = [](DType dtype) { return std::string(Name(dtype)); };
  const std::string heads =
      cat(kGridHeads, " query heads, ", kGridKvHeads, " key/value heads of ", kGridHeadDim);
  std::vector<GridSeries> grid;
  for (const DType cache : {DType::kF16, DType::kI8, DType::kF32}) {
    GridSeries series;
    series.id = cat("attention_decode_", name(cache));
    series.op_name = "Attention, one query (decoding)";
    series.title = cat(name(cache), " cache");
    series.shape = cat("One sequence, ", heads,
                       ", q and out f32. Caches in rotation, together "
                       "beyond the last-level cache, as one layer after the other has its own.");
    series.x_name = "cache length (keys)";
    series.op = OpKind::kAttention;
    series.stored = cache;
    series.x = quick ? Powers(16, 16384, 4) : Powers(16, 65536, 2);
    grid.push_back(series);
  }
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    GridSeries series;
    series.id = cat("attention_prefill_", name(dtype));
    series.op_name = "Attention, a prompt (causal)";
    series.title = dtype == DType::kBF16 ? "all bf16" : "f16 cache";
    series.activations = dtype == DType::kBF16 ? DType::kBF16 : DType::kF32;
    series.shape = cat("One sequence, as many keys as queries, ", heads, ", q and out ",
                       name(series.activations), ".");
    series.x_name = "prompt length (tokens)";
    series.op = OpKind::kAttention;
    series.stored = dtype;
    series.prefill = true;
    series.x = quick ? Powers(16, 1024, 4) : Powers(16, 4096, 2);
    grid.push_back(series);
  }
  struct Weights {
    DType dtype;
    int64_t n, k;
  };
  for (const Weights& weights : {Weights{DType::kF32, 4096, 4096},
                                 {DType::kF16, 4096, 4096},
                                 {DType::kBF16, 4096, 4096},
                                 {DType::kQ8_0, 4096, 4096},
                                 {DType::kQ4_K, 4096, 4096},
                                 {DType::kF16, 14336, 4096},
                                 {DType::kQ4_K, 14336, 4096}}) {
    if (quick && weights.n > 4096) continue;
    GridSeries series;
    series.id = cat("matmul_", name(weights.dtype), "_", weights.n, "x", weights.k);
    series.op_name = "Matrix products";
    series.title = cat(name(weights.dtype), " weights ", weights.n, " x ", weights.k);
    series.shape =
        "Activations and output f32. Weights in rotation, together beyond the "
        "last-level cache.";
    series.x_name = "rows of activations, m (tokens)";
    series.op = OpKind::kMatMul;
    series.stored = weights.dtype;
    series.n = weights.n;
    series.k = weights.k;
    series.x = Powers(1, quick ? 256 : 4096, step);
    grid.push_back(series);
  }
  for (const DType dtype : {DType::kF32, DType::kU32}) {
    GridSeries series;
    series.id = cat("mask_", dtype == DType::kU32 ? "packed" : name(dtype));
    series.op_name = "Causal masks";
    series.title = dtype == DType::kU32 ? "packed, one bit per key" : "additive, f32";
    series.shape = "Square, written to the same memory again and again.";
    series.x_name = "length (queries and keys)";
    series.op = OpKind::kMask;
    series.stored = dtype;
    series.x = quick ? Powers(16, 4096, 4) : Powers(16, 8192, 2);
    grid.push_back(series);
  }
  return grid;
}

}  // namespace tandem::tools
