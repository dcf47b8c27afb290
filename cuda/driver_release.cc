#include "cuda/driver_release.h"

#include <algorithm>
#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/str_split.h"

namespace tandem::cuda {
namespace {

// Digits and dots, two numbers at least: "535.104.05".
bool IsRelease(const std::string& word) {
  return !word.empty() && absl::ascii_isdigit(static_cast<unsigned char>(word.front())) &&
         absl::ascii_isdigit(static_cast<unsigned char>(word.back())) &&
         word.find('.') != std::string::npos &&
         std::all_of(word.begin(), word.end(),
                     [](unsigned char c) { return c == '.' || absl::ascii_isdigit(c); });
}

}  // namespace

std::string ParseDriverRelease(std::string_view text) {
  const std::string line(text.substr(0, text.find('\n')));
  const std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
  const auto found = std::find_if(words.begin(), words.end(), IsRelease);
  return found == words.end() ? std::string() : *found;
}

std::string DriverRelease() {
  std::ifstream file("/proc/driver/nvidia/version");
  std::string line;
  std::getline(file, line);
  return ParseDriverRelease(line);
}

}  // namespace tandem::cuda
