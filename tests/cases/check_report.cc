// The report of `tandem check` as a table, JSON and JUnit XML.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "tests/cases/check.h"

namespace tandem::cases {
namespace {

// Rows of one kernel put together, in order of first appearance.
std::vector<CheckRow> MergeDTypes(const std::vector<CheckRow>& rows) {
  std::vector<CheckRow> merged;
  for (const CheckRow& row : rows) {
    const auto same = std::find_if(merged.begin(), merged.end(), [&](const CheckRow& other) {
      return other.op == row.op && other.device == row.device && other.isa == row.isa &&
             other.kernel == row.kernel;
    });
    if (same == merged.end()) {
      merged.push_back(row);
      merged.back().dtype = "all";
      continue;
    }
    same->cases += row.cases;
    same->passed += row.passed;
    same->failed += row.failed;
    same->unsupported += row.unsupported;
    same->worst_ratio = std::max(same->worst_ratio, row.worst_ratio);
    same->max_abs_error = std::max(same->max_abs_error, row.max_abs_error);
    same->relative_l2 = std::max(same->relative_l2, row.relative_l2);
    if (same->first_unsupported.empty()) same->first_unsupported = row.first_unsupported;
  }
  return merged;
}

std::string Number(double x) {
  if (x == 0.0) return "0";
  return std::isinf(x) ? "inf" : absl::StrFormat("%.2g", x);
}

std::string EscapeXml(const std::string& text) {
  std::string escaped;
  for (char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      case '\n':
        escaped += "&#10;";
        break;
      default:
        // XML has no form for the other control characters.
        escaped += static_cast<unsigned char>(c) < 0x20 && c != '\t' ? '?' : c;
    }
  }
  return escaped;
}

// JSON has no infinity: a wrong value of unlimited weight is null.
nlohmann::json JsonNumber(double x) {
  return std::isfinite(x) ? nlohmann::json(x) : nlohmann::json(nullptr);
}

}  // namespace

std::string CheckTable(const CheckReport& report, bool by_dtype) {
  const std::vector<CheckRow> rows = by_dtype ? report.rows : MergeDTypes(report.rows);
  size_t op_width = 2, kernel_width = 6, dtype_width = 5;
  for (const CheckRow& row : rows) {
    op_width = std::max(op_width, row.op.size());
    kernel_width = std::max(kernel_width, row.kernel.size());
    dtype_width = std::max(dtype_width, row.dtype.size());
  }
  const int op_columns = static_cast<int>(op_width);
  const int kernel_columns = static_cast<int>(kernel_width);
  const int dtype_columns = static_cast<int>(dtype_width);
  std::string table =
      absl::StrFormat("%-*s  %-6s  %-6s  %-*s  %-*s  %6s  %6s  %6s  %9s  %9s  %9s\n", op_columns,
                      "op", "device", "isa", kernel_columns, "kernel", dtype_columns, "dtype",
                      "passed", "failed", "n/a", "err/allow", "max abs", "rel L2");
  for (const CheckRow& row : rows) {
    const bool ran = row.passed + row.failed > 0;
    absl::StrAppend(
        &table, absl::StrFormat("%-*s  %-6s  %-6s  %-*s  %-*s  %6d  %6d  %6d  ", op_columns, row.op,
                                row.device, row.isa, kernel_columns, row.kernel, dtype_columns,
                                row.dtype, row.passed, row.failed, row.unsupported));
    if (ran) {
      absl::StrAppend(&table, absl::StrFormat("%9s  %9s  %9s\n", Number(row.worst_ratio),
                                              Number(row.max_abs_error), Number(row.relative_l2)));
    } else {
      absl::StrAppend(&table, "not run: ", row.first_unsupported, "\n");
    }
  }
  for (const CheckRow& row : report.rows) {
    if (row.failed == 0) continue;
    absl::StrAppend(&table, "\nFAILED ", row.op, " ", row.kernel, " (", row.dtype, "), first of ",
                    row.failed, ":\n  ", row.first_failure, "\n");
  }
  absl::StrAppend(&table,
                  absl::StrFormat("\n%d cases, %d runs passed, %d failed in %.1f s\n", report.cases,
                                  report.passed(), report.failed(), report.seconds));
  return table;
}

std::string CheckJson(const CheckReport& report) {
  nlohmann::json rows = nlohmann::json::array();
  for (const CheckRow& row : report.rows) {
    rows.push_back({{"op", row.op},
                    {"device", row.device},
                    {"isa", row.isa},
                    {"kernel", row.kernel},
                    {"dtype", row.dtype},
                    {"cases", row.cases},
                    {"passed", row.passed},
                    {"failed", row.failed},
                    {"unsupported", row.unsupported},
                    {"worst_error_over_allowed", JsonNumber(row.worst_ratio)},
                    {"max_abs_error", JsonNumber(row.max_abs_error)},
                    {"relative_l2", JsonNumber(row.relative_l2)},
                    {"first_failure", row.first_failure},
                    {"first_unsupported", row.first_unsupported}});
  }
  const nlohmann::json json = {{"passed", report.passed()}, {"failed", report.failed()},
                               {"cases", report.cases},     {"never_run", report.never_run},
                               {"seconds", report.seconds}, {"rows", std::move(rows)}};
  return json.dump(2) + "\n";
}

std::string CheckJunit(const CheckReport& report) {
  std::vector<std::string> ops;
  for (const CheckRow& row : report.rows) {
    if (std::find(ops.begin(), ops.end(), row.op) == ops.end()) ops.push_back(row.op);
  }
  std::string xml =
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"tandem check\">\n";
  for (const std::string& op : ops) {
    int tests = 0, failures = 0, skipped = 0;
    std::string suite;
    for (const CheckRow& row : report.rows) {
      if (row.op != op) continue;
      const bool ran = row.passed + row.failed > 0;
      ++tests;
      failures += row.failed > 0;
      skipped += !ran;
      absl::StrAppend(&suite, "    <testcase classname=\"", EscapeXml(row.op + "." + row.device),
                      "\" name=\"", EscapeXml(row.kernel + " " + row.dtype + " " + row.isa), "\"");
      if (row.failed > 0) {
        absl::StrAppend(&suite, ">\n      <failure message=\"", row.failed, " of ", row.cases,
                        " cases\">", EscapeXml(row.first_failure), "</failure>\n    </testcase>\n");
      } else if (!ran) {
        absl::StrAppend(&suite, ">\n      <skipped message=\"", EscapeXml(row.first_unsupported),
                        "\"/>\n    </testcase>\n");
      } else {
        absl::StrAppend(&suite, "/>\n");
      }
    }
    absl::StrAppend(&xml, "  <testsuite name=\"", EscapeXml(op), "\" tests=\"", tests,
                    "\" failures=\"", failures, "\" skipped=\"", skipped, "\">\n", suite,
                    "  </testsuite>\n");
  }
  return xml + "</testsuites>\n";
}

}  // namespace tandem::cases
