// Weights packed for the tiled matrix products: all panels (matmul_panels.h) of a matrix, in f32.
#pragma once

#include <memory>
#include <string_view>

#include "core/buffer.h"
#include "core/ops/matmul.h"

namespace tandem::cpu {

class PanelWeights final : public PackedWeights {
 public:
  static constexpr std::string_view kFormat = "cpu_panels_f32";

  explicit PanelWeights(std::shared_ptr<Buffer> buffer) : buffer_(std::move(buffer)) {}
  std::string_view format() const override { return kFormat; }
  int64_t bytes() const override { return buffer_->bytes(); }
  // [N / kPanel rounded up][K][kPanel]
  const float* panels() const { return static_cast<const float*>(buffer_->data()); }

 private:
  std::shared_ptr<Buffer> buffer_;
};

}  // namespace tandem::cpu
