#include "cuda/kernels/attention_setup.h"

#include <cmath>

#include "core/status.h"
#include "cuda/kernels/device_list.h"
#include "cuda/kernels/to_device_tensor.h"

namespace tandem::cuda {

void CountAttentionLists(Workspace& workspace, const AttentionArgs& args) {
  for (const TensorView* list :
       {&args.q_lens, &args.q_offsets, &args.kv_lens, &args.kv_starts, &args.page_table}) {
    CountList(workspace, *list);
  }
}

bool HasPlainScores(const AttentionArgs& args) {
  const float scale = args.Scale();
  // Times log2(e), and times powers of two that kernels divide q by, it must stay a normal number.
  const bool positive = scale > 1e-18f && std::isfinite(scale * 1.5f);
  return positive && args.softcap == 0.0f && !args.alibi_slopes.present() && !args.bias.present() &&
         !args.mask.present();
}

absl::StatusOr<AttentionParams> MakeAttentionParams(const KernelContext& context,
                                                    const AttentionArgs& args) {
  AttentionParams params = {};
  params.q = ToDeviceTensor(args.q);
  params.k = ToDeviceTensor(args.k);
  params.v = ToDeviceTensor(args.v);
  params.k_new = ToDeviceTensor(args.k_new);
  params.v_new = ToDeviceTensor(args.v_new);
  params.out = ToDeviceTensor(args.out);
  params.lse = ToDeviceTensor(args.lse);
  params.alibi_slopes = ToDeviceTensor(args.alibi_slopes);
  params.bias = ToBroadcastTensor(args.bias);
  params.mask = ToBroadcastTensor(args.mask);
  params.sinks = ToDeviceTensor(args.sinks);
  params.k_scale = ToDeviceTensor(args.k_scale);
  params.v_scale = ToDeviceTensor(args.v_scale);
  params.scale = args.Scale();
  params.softcap = args.softcap;
  if (args.softcap > 0.0f) params.inverse_softcap = 1.0f / args.softcap;
  params.rule = args.Rule();
  params.sequences = args.batch();
  params.cache_len = args.cache_len();
  params.cache_rows = args.cache_rows();
  params.new_len = args.new_len();
  params.new_after = args.new_after;
  params.rows = Divisor(args.q.dim(2));
  params.heads = Divisor(args.q.dim(1));
  params.group = Divisor(args.group());
  params.packed = args.q_offsets.present();
  TANDEM_ASSIGN_OR_RETURN(params.q_lens, StageList(context, args.q_lens));
  TANDEM_ASSIGN_OR_RETURN(params.q_offsets, StageList(context, args.q_offsets));
  TANDEM_ASSIGN_OR_RETURN(params.kv_lens, StageList(context, args.kv_lens));
  TANDEM_ASSIGN_OR_RETURN(params.kv_starts, StageList(context, args.kv_starts));
  TANDEM_ASSIGN_OR_RETURN(params.page_table, StageTable(context, args.page_table));
  params.paged = args.paged();
  if (args.paged()) params.page_size = Divisor(args.page_size());
  return params;
}

}  // namespace tandem::cuda
