// Which parts of a decoder are on which device.
//
// A layer has two halves, attention (with its cache) and the feed-forward network; each half, the
// embedding and the output matrix have a device. Their weights are put there once, when the model
// is loaded, the cache of a layer lives with its attention, and between parts on different devices
// the residual stream is copied: `hidden` f32 per token, the only thing that flows.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/device.h"

namespace tandem {

struct LayerDevices {
  DeviceKind attention = DeviceKind::kCpu;
  DeviceKind feed_forward = DeviceKind::kCpu;
  friend bool operator==(const LayerDevices&, const LayerDevices&) = default;
};

struct DecoderPlacement {
  DeviceKind embedding = DeviceKind::kCpu;
  std::vector<LayerDevices> layers;
  DeviceKind output = DeviceKind::kCpu;  // its norm, its matrix, and so the logits
  // Of caches of layers whose attention is on the GPU, only so many rows, the first ones, are
  // there, the others in host memory. Not given: all.
  std::optional<int64_t> gpu_cache_rows = {};
  int64_t gpu_workspace_bytes = 0;  // that sessions reserve; 0: as it turns out
  std::string reason;               // for people

  static DecoderPlacement Everything(DeviceKind device, int64_t layers) {
    DecoderPlacement placement;
    placement.embedding = placement.output = device;
    placement.layers.assign(static_cast<size_t>(layers), {device, device});
    return placement;
  }
  bool uses(DeviceKind device) const {
    if (embedding == device || output == device) return true;
    for (const LayerDevices& layer : layers) {
      if (layer.attention == device || layer.feed_forward == device) return true;
    }
    return false;
  }
  bool on_one_device() const {
    return !uses(output == DeviceKind::kCpu ? DeviceKind::kCuda : DeviceKind::kCpu);
  }
};

// "layers 4-31 and the output matrix on cuda, the rest on cpu"
std::string Describe(const DecoderPlacement& placement);

}  // namespace tandem
