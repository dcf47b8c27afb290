// The report of `tandem check` as a table, JSON and JUnit XML.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "tests/cases/check.h"
#include "tests/cases/escape_xml.h"

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

// What is put together in a line about pairs.
struct Together {
  bool dtypes = false;
  bool kernels = false;  // all of the first device; kernel_a becomes that of the worst pair
};

// In order of first appearance.
std::vector<PairRow> MergePairs(const std::vector<PairRow>& pairs, Together together) {
  std::vector<PairRow> merged;
  for (const PairRow& pair : pairs) {
    const auto same = std::find_if(merged.begin(), merged.end(), [&](const PairRow& other) {
      return other.op == pair.op && other.isa == pair.isa && other.device_a == pair.device_a &&
             other.device_b == pair.device_b && other.kernel_b == pair.kernel_b &&
             (together.kernels || other.kernel_a == pair.kernel_a) &&
             (together.dtypes || other.dtype == pair.dtype);
    });
    if (same == merged.end()) {
      merged.push_back(pair);
      if (together.dtypes) merged.back().dtype = "all";
      continue;
    }
    if (pair.worst_ratio > same->worst_ratio) same->kernel_a = pair.kernel_a;
    same->cases += pair.cases;
    same->passed += pair.passed;
    same->failed += pair.failed;
    same->unsupported += pair.unsupported;
    same->worst_ratio = std::max(same->worst_ratio, pair.worst_ratio);
    same->max_abs_difference = std::max(same->max_abs_difference, pair.max_abs_difference);
    same->relative_l2 = std::max(same->relative_l2, pair.relative_l2);
    same->ulps.Merge(pair.ulps);
    if (same->first_unsupported.empty()) same->first_unsupported = pair.first_unsupported;
  }
  return merged;
}

template <typename Row>
size_t Widest(const std::vector<Row>& rows, std::string Row::*field, std::string_view title) {
  size_t width = title.size();
  for (const Row& row : rows) width = std::max(width, (row.*field).size());
  return width;
}

std::string Number(double x) {
  if (x == 0.0) return "0";
  return std::isinf(x) ? "inf" : absl::StrFormat("%.2g", x);
}

// Distances between values, long ones as powers of ten.
std::string Count(uint64_t n) {
  return n < 10'000'000 ? absl::StrCat(n) : absl::StrFormat("%.1e", static_cast<double>(n));
}

// JSON has no infinity: a wrong value of unlimited weight is null.
nlohmann::json JsonNumber(double x) {
  return std::isfinite(x) ? nlohmann::json(x) : nlohmann::json(nullptr);
}

std::string PairsTable(const std::vector<PairRow>& all, bool by_dtype) {
  if (all.empty()) return "";
  const std::vector<PairRow> pairs = MergePairs(all, {.dtypes = !by_dtype, .kernels = true});
  const auto op_columns = static_cast<int>(Widest(pairs, &PairRow::op, "op"));
  const auto a_columns = static_cast<int>(Widest(pairs, &PairRow::device_a, "device"));
  const auto b_columns = static_cast<int>(Widest(pairs, &PairRow::device_b, "against"));
  const auto kernel_columns = static_cast<int>(Widest(pairs, &PairRow::kernel_b, "kernel"));
  const auto dtype_columns = static_cast<int>(Widest(pairs, &PairRow::dtype, "dtype"));
  std::string table = absl::StrFormat(
      "\n%-*s  %-*s  %-*s  %-6s  %-*s  %-*s  %6s  %6s  %6s  %9s  %9s  %9s  %8s  %8s  %s\n",
      op_columns, "op", a_columns, "device", b_columns, "against", "isa", kernel_columns, "kernel",
      dtype_columns, "dtype", "passed", "failed", "n/a", "dif/bound", "max abs", "rel L2",
      "ulp p99", "ulp max", "worst");
  for (const PairRow& pair : pairs) {
    absl::StrAppend(
        &table, absl::StrFormat("%-*s  %-*s  %-*s  %-6s  %-*s  %-*s  %6d  %6d  %6d  ", op_columns,
                                pair.op, a_columns, pair.device_a, b_columns, pair.device_b,
                                pair.isa, kernel_columns, pair.kernel_b, dtype_columns, pair.dtype,
                                pair.passed, pair.failed, pair.unsupported));
    if (pair.passed + pair.failed == 0) {
      absl::StrAppend(&table, "not compared: ", pair.first_unsupported, "\n");
      continue;
    }
    absl::StrAppend(&table,
                    absl::StrFormat("%9s  %9s  %9s  ", Number(pair.worst_ratio),
                                    Number(pair.max_abs_difference), Number(pair.relative_l2)));
    if (pair.ulps.count() == 0) {
      absl::StrAppend(&table, absl::StrFormat("%8s  %8s  ", "-", "-"));
    } else {
      absl::StrAppend(&table, absl::StrFormat("%8s  %8s  ", Count(pair.ulps.Quantile(0.99)),
                                              Count(pair.ulps.max())));
    }
    absl::StrAppend(&table, pair.worst_ratio > 0.0 ? pair.kernel_a : "-", "\n");
  }
  // Two kernels that never took the same case, where others of the line did.
  for (const PairRow& pair : MergePairs(all, {.dtypes = true})) {
    if (pair.passed + pair.failed > 0) continue;
    const bool others = std::any_of(pairs.begin(), pairs.end(), [&](const PairRow& line) {
      return line.op == pair.op && line.isa == pair.isa && line.device_b == pair.device_b &&
             line.kernel_b == pair.kernel_b && line.passed + line.failed > 0;
    });
    if (!others) continue;
    absl::StrAppend(&table, "not compared: ", pair.op, " ", pair.device_a, " ", pair.kernel_a,
                    " with ", pair.device_b, " ", pair.kernel_b, ": ", pair.first_unsupported,
                    "\n");
  }
  return table;
}

nlohmann::json PairsJson(const std::vector<PairRow>& pairs) {
  nlohmann::json array = nlohmann::json::array();
  for (const PairRow& pair : pairs) {
    nlohmann::json json = {{"op", pair.op},
                           {"isa", pair.isa},
                           {"dtype", pair.dtype},
                           {"device_a", pair.device_a},
                           {"kernel_a", pair.kernel_a},
                           {"device_b", pair.device_b},
                           {"kernel_b", pair.kernel_b},
                           {"cases", pair.cases},
                           {"passed", pair.passed},
                           {"failed", pair.failed},
                           {"unsupported", pair.unsupported},
                           {"worst_difference_over_bound", JsonNumber(pair.worst_ratio)},
                           {"max_abs_difference", JsonNumber(pair.max_abs_difference)},
                           {"relative_l2", JsonNumber(pair.relative_l2)},
                           {"ulp_p99", nullptr},
                           {"ulp_max", nullptr},
                           {"first_failure", pair.first_failure},
                           {"first_unsupported", pair.first_unsupported}};
    if (pair.ulps.count() > 0) {
      json["ulp_p99"] = pair.ulps.Quantile(0.99);
      json["ulp_max"] = pair.ulps.max();
    }
    array.push_back(std::move(json));
  }
  return array;
}

// One row of any kind as a test case.
template <typename Row>
std::string JunitCase(const Row& row, const std::string& class_name, const std::string& name) {
  std::string text = absl::StrCat("    <testcase classname=\"", EscapeXml(class_name), "\" name=\"",
                                  EscapeXml(name), "\"");
  if (row.failed > 0) {
    absl::StrAppend(&text, ">\n      <failure message=\"", row.failed, " of ", row.cases,
                    " cases\">", EscapeXml(row.first_failure), "</failure>\n    </testcase>\n");
  } else if (row.passed == 0) {
    absl::StrAppend(&text, ">\n      <skipped message=\"", EscapeXml(row.first_unsupported),
                    "\"/>\n    </testcase>\n");
  } else {
    absl::StrAppend(&text, "/>\n");
  }
  return text;
}

}  // namespace

std::string CheckTable(const CheckReport& report, bool by_dtype) {
  const std::vector<CheckRow> rows = by_dtype ? report.rows : MergeDTypes(report.rows);
  const auto op_columns = static_cast<int>(Widest(rows, &CheckRow::op, "op"));
  const auto device_columns = static_cast<int>(Widest(rows, &CheckRow::device, "device"));
  const auto kernel_columns = static_cast<int>(Widest(rows, &CheckRow::kernel, "kernel"));
  const auto dtype_columns = static_cast<int>(Widest(rows, &CheckRow::dtype, "dtype"));
  std::string table = absl::StrFormat(
      "%-*s  %-*s  %-6s  %-*s  %-*s  %6s  %6s  %6s  %9s  %9s  %9s\n", op_columns, "op",
      device_columns, "device", "isa", kernel_columns, "kernel", dtype_columns, "dtype", "passed",
      "failed", "n/a", "err/allow", "max abs", "rel L2");
  for (const CheckRow& row : rows) {
    const bool ran = row.passed + row.failed > 0;
    absl::StrAppend(
        &table, absl::StrFormat("%-*s  %-*s  %-6s  %-*s  %-*s  %6d  %6d  %6d  ", op_columns, row.op,
                                device_columns, row.device, row.isa, kernel_columns, row.kernel,
                                dtype_columns, row.dtype, row.passed, row.failed, row.unsupported));
    if (ran) {
      absl::StrAppend(&table, absl::StrFormat("%9s  %9s  %9s\n", Number(row.worst_ratio),
                                              Number(row.max_abs_error), Number(row.relative_l2)));
    } else {
      absl::StrAppend(&table, "not run: ", row.first_unsupported, "\n");
    }
  }
  absl::StrAppend(&table, PairsTable(report.pairs, by_dtype));
  for (const CheckRow& row : report.rows) {
    if (row.failed == 0) continue;
    absl::StrAppend(&table, "\nFAILED ", row.op, " ", row.kernel, " (", row.dtype, "), first of ",
                    row.failed, ":\n  ", row.first_failure, "\n");
  }
  for (const PairRow& pair : report.pairs) {
    if (pair.failed == 0) continue;
    absl::StrAppend(&table, "\nDIFFER ", pair.op, " ", pair.device_a, " ", pair.kernel_a, " and ",
                    pair.device_b, " ", pair.kernel_b, " (", pair.dtype, "), first of ",
                    pair.failed, ":\n  ", pair.first_failure, "\n");
  }
  if (!report.pairs.empty()) {
    absl::StrAppend(&table, absl::StrFormat("\n%d comparisons between devices passed, %d failed\n",
                                            report.pairs_passed(), report.pairs_failed()));
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
  const nlohmann::json json = {{"passed", report.passed()},
                               {"failed", report.failed()},
                               {"pairs_passed", report.pairs_passed()},
                               {"pairs_failed", report.pairs_failed()},
                               {"cases", report.cases},
                               {"never_run", report.never_run},
                               {"seconds", report.seconds},
                               {"rows", std::move(rows)},
                               {"pairs", PairsJson(report.pairs)}};
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
    const auto add = [&](const auto& row, const std::string& class_name, const std::string& name) {
      if (row.op != op) return;
      ++tests;
      failures += row.failed > 0;
      skipped += row.passed + row.failed == 0;
      absl::StrAppend(&suite, JunitCase(row, absl::StrCat(op, ".", class_name), name));
    };
    for (const CheckRow& row : report.rows) {
      add(row, row.device, row.kernel + " " + row.dtype + " " + row.isa);
    }
    for (const PairRow& pair : report.pairs) {
      add(pair, pair.device_a + " and " + pair.device_b,
          absl::StrCat(pair.kernel_a, " and ", pair.kernel_b, " ", pair.dtype, " ", pair.isa));
    }
    absl::StrAppend(&xml, "  <testsuite name=\"", EscapeXml(op), "\" tests=\"", tests,
                    "\" failures=\"", failures, "\" skipped=\"", skipped, "\">\n", suite,
                    "  </testsuite>\n");
  }
  return xml + "</testsuites>\n";
}

}  // namespace tandem::cases
