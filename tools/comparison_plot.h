// Plots in double-logarithmic axes as inline SVG, and the numbers and texts of a report.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tandem::tools {

// "950 ns", "12.3 µs", "4.56 ms", "1.20 s"
std::string FormatSeconds(double seconds);
// Three significant digits: "0.0123", "1.23", "45.6", "789", "12300"
std::string FormatNumber(double value);
// "45.6 GB/s", "12.3 TFLOP/s"; from 10 000 on in units of 1e12
std::string FormatRate(double giga, bool flops);
// 64, 1000, 1k (= 1024), 64k
std::string FormatLength(int64_t length);

struct PlotPoint {
  double x = 0.0, y = 0.0;
  double low = 0.0, high = 0.0;  // a bar between them; 0: none
  std::string title;             // shown by browsers under the pointer
  std::string attributes;        // of its element, escaped: ` data-x="64"`
};
struct PlotLine {
  int style = 0;  // colour and marker, by device
  std::vector<PlotPoint> points;
};
struct PlotLimit {
  int style = 0;
  std::string label;
  double y = 0.0;
};
struct PlotCrossing {
  double x = 0.0;
  std::string label;
};
// A cell of the strip below the axes.
struct PlotChoice {
  double x = 0.0;
  int style = 0;
  std::string label;  // "+12 %"; empty: none
  std::string title;
};

struct Plot {
  std::string title;  // and of what unit the y axis is
  std::string x_name;
  bool y_is_seconds = false;
  std::vector<PlotLine> lines;
  std::vector<PlotLimit> limits;
  std::vector<PlotCrossing> crossings;
  std::vector<PlotChoice> choices;
  std::string choices_name;
};

inline constexpr int kPlotStyles = 4;
// The marker of a style alone, for legends.
std::string LegendMarker(int style);
// An <svg> element; colours are of the page's style sheet (classes s0 .. s3, and PlotStyleSheet).
std::string ToSvg(const Plot& plot);
std::string PlotStyleSheet();

}  // namespace tandem::tools
