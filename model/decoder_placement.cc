#include "model/decoder_placement.h"

#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace tandem {
namespace {

// "layers 0-3, 7", "" if there are none.
std::string Layers(const DecoderPlacement& placement, std::string_view what,
                   DeviceKind LayerDevices::*first, DeviceKind LayerDevices::*second) {
  std::vector<std::string> ranges;
  const auto on_gpu = [&](size_t i) {
    const LayerDevices& layer = placement.layers[i];
    return layer.*first == DeviceKind::kCuda && layer.*second == DeviceKind::kCuda;
  };
  for (size_t i = 0; i < placement.layers.size();) {
    size_t end = i;
    while (end < placement.layers.size() && on_gpu(end)) ++end;
    if (end == i + 1) ranges.push_back(absl::StrCat(i));
    if (end > i + 1) ranges.push_back(absl::StrCat(i, "-", end - 1));
    i = end + 1;
  }
  return ranges.empty() ? "" : absl::StrCat(std::string(what), absl::StrJoin(ranges, ", "));
}

}  // namespace

std::string Describe(const DecoderPlacement& placement) {
  const std::string caches =
      placement.gpu_cache_rows
          ? absl::StrCat("; of caches on cuda the first ", *placement.gpu_cache_rows,
                         " tokens, the others on cpu")
          : "";
  if (placement.on_one_device()) {
    return absl::StrCat("everything on ", std::string(Name(placement.output)), caches);
  }
  std::vector<std::string> parts;
  const auto add = [&](std::string part) {
    if (!part.empty()) parts.push_back(std::move(part));
  };
  add(placement.embedding == DeviceKind::kCuda ? "the embedding" : "");
  // Halves that are there without the other are named as such.
  DecoderPlacement halves = placement;
  for (LayerDevices& layer : halves.layers) {
    if (layer.attention == layer.feed_forward) layer = {};
  }
  add(Layers(placement, "layers ", &LayerDevices::attention, &LayerDevices::feed_forward));
  add(Layers(halves, "attention of layers ", &LayerDevices::attention, &LayerDevices::attention));
  add(Layers(halves, "feed-forward network of layers ", &LayerDevices::feed_forward,
             &LayerDevices::feed_forward));
  add(placement.output == DeviceKind::kCuda ? "the output matrix" : "");
  return absl::StrCat(absl::StrJoin(parts, ", "), " on cuda, the rest on cpu", caches);
}

}  // namespace tandem
