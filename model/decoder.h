// Forward pass of a decoder-only transformer (llama, qwen2, qwen3) over Tandem's public ops.
//
// Per token, with x [hidden] the residual stream (f32) and W the matrices of weights.h:
//   x  = embedding[token]
//   each layer
//     h  = rms_norm(x)
//     q, k, v = Wq h + bq, Wk h + bk, Wv h + bv     biases if the file has them
//     q, k = rms_norm of every head                 if the file has their norms (qwen3)
//     q, k = rope(q), rope(k); k, v are appended to the layer's cache (one op: kv_append)
//     x += Wo attention(q, K, V)                    causal, query heads grouped on kv heads
//     h  = rms_norm(x)
//     x += Wdown (silu(Wgate h) * Wup h)
//   logits = Woutput rms_norm(x)
// q, k and v of a few tokens (generation) are one op, grouped_matmul, and so is what is in the last
// parentheses. "x +=" happens in the product's epilogue, where the sum costs one read of x;
// rms_norm's own residual would write and read the product once more.
//
// A Model holds what does not change: the mapped weights, and their packed copies. A
// Session holds one sequence: its key/value caches and activation buffers, all allocated when it is
// created; forwarding allocates nothing further once the context's workspace has grown. Prompts run
// in chunks of `ubatch` tokens. Heads are strided views of [tokens, heads * head_dim]: nothing is
// transposed or copied.
//
// The parts of a model may be on different devices (decoder_placement.h): then a session has
// activations on both, and x is copied from one to the other between parts on different ones, on
// the host in page-locked memory. Every op runs where its weights are. Caches of layers on the GPU
// may reach into host memory (DecoderPlacement::gpu_cache_rows): both devices then attend to their
// rows at once.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "core/ops/grouped_matmul.h"
#include "core/ops/matmul.h"
#include "core/tensor.h"
#include "dispatch/cache_attention.h"
#include "dispatch/context.h"
#include "dispatch/placement.h"
#include "dispatch/segment_clock.h"
#include "model/config.h"
#include "model/decoder_placement.h"
#include "model/gguf.h"
#include "model/hybrid.h"
#include "model/layer_cache.h"
#include "model/session_options.h"
#include "model/weights.h"

namespace tandem {

struct ModelOptions {
  // Also keeps every other matrix (F32, F16, BF16) in the layout that its device multiplies fastest
  // by many tokens at once: faster prompts for a second copy of the weights, in f32, in memory.
  bool pack_weights = false;
  // Keeps quantised matrices in the layout of integer dot products, and BF16 ones in that of bf16
  // dot products, where the device has kernels for it and the context lets activations be rounded
  // (ContextOptions::quantize_activations): instead of the stored form, whose pages are given back
  // to the system (PacksInPlace in dispatch/ops.h). Takes a moment when loading.
  bool pack_in_place = true;
  // Where the weights are kept, and with them every tensor of a session. Default: the device that
  // the context forces or prefers (Context::preferred_device), or the CPU. Weights are copied to a
  // GPU once, when loading; packing is for the CPU only.
  std::optional<DeviceKind> device;
  // Instead: a device for every part; or these chosen, for the memory and the speed that there are.
  std::optional<DecoderPlacement> placement;
  std::optional<HybridOptions> hybrid;
};

// Uses memory of the context it was loaded in, which must outlive it.
class Model {
 public:
  static absl::StatusOr<std::shared_ptr<const Model>> Load(Context& context,
                                                           std::shared_ptr<const GgufFile> file,
                                                           const ModelOptions& options = {});
  static absl::StatusOr<std::shared_ptr<const Model>> Open(Context& context,
                                                           const std::string& path,
                                                           const ModelOptions& options = {});

  const std::shared_ptr<const GgufFile>& file() const { return file_; }
  const DecoderConfig& config() const { return config_; }
  const DecoderWeights& weights() const { return weights_; }
  int64_t packed_bytes() const { return packed_bytes_; }
  const DecoderPlacement& placement() const { return placement_; }
  // Is everything on one device?
  bool on_one_device() const { return on_one_device_; }
  // Of the output matrix, and so of logits; of everything, if it is one.
  DeviceKind device() const { return placement_.output; }
  bool uses(DeviceKind device) const { return placement_.uses(device); }
  const ModelOptions& options() const { return options_; }  // that it was loaded with

 private:
  friend class Session;

  // A weight matrix [N, K] as stored, and the same packed if options and type allow.
  struct Matrix {
    TensorView view;
    std::unique_ptr<PackedWeights> packed;
  };
  struct Layer {
    Matrix q, k, v, attn_output, gate, up, down;
  };

  Model() = default;
  absl::Status Prepare(Context& context, const TensorView& view, bool pack, Matrix& matrix);
  // Replaces the views of weights_ that belong on a GPU by copies there.
  absl::Status MoveWeights(Context& context);

  std::shared_ptr<const GgufFile> file_;
  ModelOptions options_;
  DecoderConfig config_;
  DecoderWeights weights_;
  std::vector<Layer> layers_;
  Matrix output_;
  DecoderPlacement placement_;
  bool on_one_device_ = true;
  std::vector<Tensor> resident_;  // weights that were copied to a GPU
  PerDevice<Tensor> inv_freq_;
  float rope_magnitude_ = 1.0f;
  int64_t packed_bytes_ = 0;
};

class Session {
 public:
  // InvalidArgument for a bad capacity, type or ubatch; ResourceExhausted when out of memory. The
  // context must outlive the session; one thread at a time may use either.
  static absl::StatusOr<std::unique_ptr<Session>> Create(Context& context,
                                                         std::shared_ptr<const Model> model,
                                                         const SessionOptions& options = {});

  const Model& model() const { return *model_; }
  Context& context() const { return context_; }
  int64_t position() const { return position_; }  // tokens so far
  int64_t capacity() const { return capacity_; }
  int64_t ubatch() const { return ubatch_; }
  std::span<const int32_t> tokens() const { return tokens_; }  // the sequence
  const SessionOptions& options() const { return options_; }   // that it was created with
  // Bytes of caches and activations.
  int64_t bytes() const { return bytes_; }

  // Appends tokens to the sequence. InvalidArgument, leaving the session as it was, if there are
  // none, if an id is not in the vocabulary, or if they exceed the capacity. After any other error
  // the sequence is as before the call as well.
  absl::Status Feed(std::span<const int32_t> tokens);
  // And returns the logits [1, vocabulary] that follow the last one, f32, on the model's device,
  // valid until the next call.
  absl::StatusOr<TensorView> Forward(std::span<const int32_t> tokens);
  // And writes the logits that follow each one to `logits` [tokens, vocabulary], f32, contiguous,
  // in host memory or on the model's device.
  absl::Status ForwardAll(std::span<const int32_t> tokens, const TensorView& logits);

  // For model/decode_step.h: the forward pass of one token whose numbers are read from memory of
  // the model's device when the work runs, so that it can be recorded. Each [1], i32, there: the
  // token, position(), and position() + 1. Returns the logits [1, vocabulary] as Forward does.
  // FailedPrecondition: not recordable().
  // Nothing is counted until CountToken, which the caller must not forget when the work is done.
  bool recordable() const {  // is all of it on one device?
    return model_->on_one_device() && !model_->placement().gpu_cache_rows;
  }
  struct TokenNumbers {
    TensorView token, position, length;
  };
  absl::StatusOr<TensorView> QueueToken(const TokenNumbers& numbers);
  absl::Status CountToken(int32_t token);
  // InvalidArgument: not what can be appended now.
  static TensorView Rows(const Tensor& tensor, int64_t begin, int64_t count);
  absl::Status CheckTokens(std::span<const int32_t> tokens) const;

  // Forgets everything from position `length` on. InvalidArgument unless 0 <= length <=
  // position().
  absl::Status Truncate(int64_t length);

  // For model/recovery.h. Takes over the sequence, caches and all, of another session of the same
  // model file and options, wherever either lives; this one must be empty.
  absl::Status CopySequence(const Session& from);
  // Turns into another session of the same context.
  void Become(Session&& other) { *this = std::move(other); }

 private:
  Session& operator=(Session&&) = default;
  Session(Context& context, std::shared_ptr<const Model> model)
      : context_(context), model_(std::move(model)) {}

  // Where the tokens of a chunk stand: their positions [tokens], and, if the layers shall read it
  // from the device, the length of the sequence with them [1].
  struct Place {
    PerDevice<TensorView> positions;
    TensorView length;
    int64_t tokens = 0;
    bool on_device() const { return length.present(); }
  };
  // Activations on one device, [ubatch, ...]: x is the residual stream, h its normalised form. gate
  // and up lie where q to attention did. `ffn_rows` of the feed-forward network are computed at
  // once.
  struct Activations {
    Tensor positions, x, h, q, k, v, attention, gate, up;
    int64_t ffn_rows = 0;
  };

  absl::Status Allocate(DType kv_dtype);
  absl::Status AllocateActivations(DeviceKind device);
  // Is a segment of the GPU's calls timed, for what is predicted of them?
  bool times_segments() const { return !model_->on_one_device() && split_attention_ == nullptr; }
  // Copies rows of the residual stream to another device; to the host: and waits for them.
  absl::Status MoveResidual(DeviceKind from, DeviceKind to, int64_t begin, int64_t rows);
  // Runs checked tokens; the logits of the last `rows` of them go to `logits` [rows, vocabulary].
  absl::Status Run(std::span<const int32_t> tokens, int64_t rows, const TensorView& logits);
  absl::Status RunChunk(std::span<const int32_t> tokens, int64_t rows, const TensorView& logits);
  absl::Status RunTokens(const TensorView& ids, const Place& place, int64_t rows,
                         const TensorView& logits);
  absl::Status RunAttention(size_t index, const Place& place, int64_t keep);
  // The rest of it: the output matrix, added to the residual stream of tokens from `first` on.
  absl::Status AddAttended(size_t index, const TensorView& attended, int64_t first, int64_t keep);
  // Of `count` tokens from the chunk's `first` on.
  absl::Status RunFeedForward(size_t index, int64_t first, int64_t count);
  static GroupedMatMulArgs::Product Project(const Model::Matrix& matrix, const TensorView& bias,
                                            const TensorView& out);

  std::reference_wrapper<Context> context_;
  std::shared_ptr<const Model> model_;
  SessionOptions options_;
  std::vector<int32_t> tokens_;
  int64_t capacity_ = 0;
  int64_t ubatch_ = 0;
  int64_t position_ = 0;
  int64_t bytes_ = 0;
  std::vector<LayerCache> caches_;
  std::unique_ptr<CacheAttention> split_attention_;  // to caches that are in two places
  SegmentClock segment_;  // of a model on two devices, without such caches

  // Of a GPU: what is sent there with every chunk, and what comes back from ForwardAll.
  Tensor host_ids_, host_positions_, device_logits_;
  PerDevice<Activations> on_;
  Tensor ids_, logits_;  // where the embedding, where the output matrix is
  // May a copy that is under way still read the host's residual stream?
  bool host_residual_in_use_ = false;
};

}  // namespace tandem
