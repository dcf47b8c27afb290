#include "tools/terminal.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"

namespace tandem::tools {

bool UseColor(int fd) {
  const char* no_color = std::getenv("NO_COLOR");
  return isatty(fd) && (no_color == nullptr || *no_color == '\0');
}

std::string Styled(const std::string& text, Style style, bool color) {
  if (!color) return text;
  const char* code = "0";
  switch (style) {
    case Style::kBold:
      code = "1";
      break;
    case Style::kDim:
      code = "2";
      break;
    case Style::kGreen:
      code = "32";
      break;
    case Style::kRed:
      code = "31";
      break;
    case Style::kYellow:
      code = "33";
      break;
  }
  return absl::StrFormat("\033[%sm%s\033[0m", code, text);
}

Progress::Progress(std::string label) : label_(std::move(label)), visible_(isatty(2)) {}

Progress::~Progress() { Clear(); }

void Progress::Clear() {
  if (drawn_) std::cerr << "\r\033[K" << std::flush;
  drawn_ = false;
}

void Progress::Update(int64_t done, int64_t total, const std::string& note) {
  if (!visible_ || total <= 0) return;
  const auto now = std::chrono::steady_clock::now();
  if (now - last_ < std::chrono::milliseconds(100)) return;
  last_ = now;
  constexpr int kWidth = 30;
  const double part = std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
  const int filled = static_cast<int>(part * kWidth);
  std::cerr << absl::StrFormat("\r\033[K%s [%s%s] %3.0f%% %s", label_, std::string(filled, '#'),
                               std::string(kWidth - filled, '.'), part * 100.0, note.substr(0, 60))
            << std::flush;
  drawn_ = true;
}

void Table::Print(std::ostream& out, bool color) const {
  std::vector<size_t> width(header_.size());
  std::vector<bool> numeric(header_.size(), !rows_.empty());
  for (size_t c = 0; c < header_.size(); ++c) width[c] = header_[c].size();
  for (const auto& row : rows_) {
    for (size_t c = 0; c < row.size() && c < width.size(); ++c) {
      width[c] = std::max(width[c], row[c].size());
      double number = 0.0;
      if (!row[c].empty() && row[c] != "-" && !absl::SimpleAtod(row[c], &number)) {
        numeric[c] = false;
      }
    }
  }
  const auto line = [&](const std::vector<std::string>& cells, bool bold) {
    std::string text;
    for (size_t c = 0; c < cells.size() && c < width.size(); ++c) {
      const std::string pad(width[c] - std::min(width[c], cells[c].size()), ' ');
      text += (c ? "  " : "") + (numeric[c] && c ? pad + cells[c] : cells[c] + pad);
    }
    while (!text.empty() && text.back() == ' ') text.pop_back();
    out << Styled(text, Style::kBold, bold && color) << "\n";
  };
  line(header_, true);
  for (const auto& row : rows_) line(row, false);
}

std::string HumanBytes(double bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  while (bytes >= 1024.0 && unit < 4) {
    bytes /= 1024.0;
    ++unit;
  }
  return absl::StrFormat(bytes == static_cast<int64_t>(bytes) ? "%.0f %s" : "%.1f %s", bytes,
                         units[unit]);
}

}  // namespace tandem::tools
