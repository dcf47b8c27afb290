// Colours, progress and tables for people; plain text when the output is not a terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

namespace tandem::tools {

// True for stdout (1) or stderr (2) on a terminal whose user has not set NO_COLOR.
bool UseColor(int fd);

enum class Style { kBold, kDim, kGreen, kRed, kYellow };
// The text, wrapped in the escape sequence of the style if `color`.
std::string Styled(const std::string& text, Style style, bool color);

// A progress bar on stderr; silent when stderr is not a terminal.
class Progress {
 public:
  explicit Progress(std::string label);
  ~Progress();
  // `done` of `total` units; redraws at most ten times a second.
  void Update(int64_t done, int64_t total, const std::string& note = "");
  // Takes the bar off the screen, before other output.
  void Clear();

 private:
  std::string label_;
  bool visible_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point last_{};
};

// Left-aligned first column, the others right-aligned where every cell is a number.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : header_(std::move(header)) {}
  void Row(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  void Print(std::ostream& out, bool color) const;

 private:
  std::vector<std::string> header_;
  std::vector<std::vector<std::string>> rows_;
};

// "1.5 MiB"
std::string HumanBytes(double bytes);

}  // namespace tandem::tools
