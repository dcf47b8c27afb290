// Which faults were survived: a table of rows (ops, kinds of runs) by calls of the runtime, printed
// where $TANDEM_FAULT_MATRIX names a folder (tools/fault_matrix.sh).
#pragma once

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <map>
#include <ostream>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cuda/runtime/emulated_runtime.h"

namespace tandem {

inline std::string Name(cuda::Fault::Kind kind) {
  switch (kind) {
    case cuda::Fault::Kind::kError:
      return "error";
    case cuda::Fault::Kind::kOutOfMemory:
      return "out of memory";
    case cuda::Fault::Kind::kDeviceLost:
      return "device lost";
  }
  return "unknown";
}

class FaultMatrix {
 public:
  void Count(const std::string& row, const std::string& call, bool survived) {
    Cell& cell = cells_[{row, call}];
    ++cell.injected;
    cell.survived += survived ? 1 : 0;
    rows_.insert(row);
    calls_.insert(call);
  }
  int64_t injected() const {
    int64_t sum = 0;
    for (const auto& [key, cell] : cells_) sum += cell.injected;
    return sum;
  }
  int64_t survived() const {
    int64_t sum = 0;
    for (const auto& [key, cell] : cells_) sum += cell.survived;
    return sum;
  }
  const std::set<std::string>& calls() const { return calls_; }

  void WriteMarkdown(std::ostream& out, const std::string& title) const {
    out << "### " << title << "\n\n| |";
    for (const std::string& call : calls_) out << " " << call << " |";
    out << "\n|---|";
    for (size_t i = 0; i < calls_.size(); ++i) out << "--:|";
    for (const std::string& row : rows_) {
      out << "\n| " << row << " |";
      for (const std::string& call : calls_) {
        const auto cell = cells_.find({row, call});
        if (cell == cells_.end()) {
          out << " |";
        } else if (cell->second.survived == cell->second.injected) {
          out << " " << cell->second.injected << " |";
        } else {
          out << " **" << cell->second.survived << " of " << cell->second.injected << "** |";
        }
      }
    }
    out << "\n\n" << survived() << " of " << injected() << " faults survived.\n\n";
  }
  // Appends the table to $TANDEM_FAULT_MATRIX/<file>.
  void Publish(const std::string& file, const std::string& title) const {
    const char* folder = std::getenv("TANDEM_FAULT_MATRIX");
    if (folder == nullptr) return;
    std::ofstream out(absl::StrCat(folder, "/", file), std::ios::app);
    WriteMarkdown(out, title);
  }

 private:
  struct Cell {
    int64_t injected = 0, survived = 0;
  };
  std::map<std::pair<std::string, std::string>, Cell> cells_;
  std::set<std::string> rows_, calls_;
};

}  // namespace tandem
