#include "tools/comparison_plot.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/cases/escape_xml.h"

namespace tandem::tools {
namespace {

// Of the drawing, in its own units; the page scales it to the width there is.
constexpr double kWidth = 430, kHeight = 300;
constexpr double kLeft = 58, kRight = 12, kTop = 28, kBottom = 48;
constexpr double kStripHeight = 12, kStripGap = 40;
constexpr double kTextHeight = 14;
constexpr double kCrossingRows = 24;  // above the axes, if there are labels of crossings

// A logarithmic axis.
struct Axis {
  double low = 1.0, high = 10.0;  // values
  double from = 0.0, to = 1.0;    // places on the drawing
  double Place(double value) const {
    return from + (to - from) * std::log(value / low) / std::log(high / low);
  }
};

std::string Text(double x, double y, const char* anchor, const std::string& cls,
                 const std::string& text) {
  return absl::StrFormat("<text class=\"%s\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n",
                         cls, x, y, anchor, EscapeXml(text));
}

std::string Line(const std::string& cls, double x1, double y1, double x2, double y2) {
  return absl::StrFormat("<line class=\"%s\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" />\n",
                         cls, x1, y1, x2, y2);
}

// Different shapes, so that colour is not all that tells devices apart.
std::string Marker(int style, double x, double y) {
  const double r = 4.0;
  switch (style % kPlotStyles) {
    case 0:
      return absl::StrFormat("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\" />", x, y, r);
    case 1:
      return absl::StrFormat("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" />",
                             x - 3.6, y - 3.6, 7.2, 7.2);
    case 2:
      return absl::StrFormat("<path d=\"M%.1f %.1f l4.6 8 h-9.2 z\" />", x, y - 4.8);
    default:
      return absl::StrFormat("<path d=\"M%.1f %.1f l4.8 4.8 l-4.8 4.8 l-4.8 -4.8 z\" />", x,
                             y - 4.8);
  }
}

// The range of all that is drawn, with some room.
void FitAxes(const Plot& plot, Axis& x, Axis& y) {
  double x_low = std::numeric_limits<double>::infinity(), x_high = 0.0;
  double y_low = x_low, y_high = 0.0;
  for (const PlotLine& line : plot.lines) {
    for (const PlotPoint& point : line.points) {
      x_low = std::min(x_low, point.x);
      x_high = std::max(x_high, point.x);
      y_low = std::min(y_low, point.low > 0.0 ? point.low : point.y);
      y_high = std::max(y_high, std::max(point.y, point.high));
    }
  }
  for (const PlotLimit& limit : plot.limits) {
    y_low = std::min(y_low, limit.y);
    y_high = std::max(y_high, limit.y);
  }
  if (x_high == 0.0) x_low = x_high = y_low = y_high = 1.0;
  x.low = x_low / 1.25;
  x.high = x_high * 1.25;
  y.low = y_low / 1.3;
  y.high = y_high * 1.6;  // the label of a limit stands above it
  // At least a decade, lest noise look like a difference.
  const double widen = std::sqrt(std::max(1.0, 10.0 * y.low / y.high));
  y.low /= widen;
  y.high *= widen;
}

std::string YTick(const Plot& plot, double value) {
  if (!plot.y_is_seconds) {
    return value >= 1000 ? absl::StrFormat("%.12g k", value / 1000)
                         : absl::StrFormat("%.12g", value);
  }
  if (value < 0.9e-6) return absl::StrFormat("%.6g ns", value * 1e9);
  if (value < 0.9e-3) return absl::StrFormat("%.6g µs", value * 1e6);
  if (value < 0.9) return absl::StrFormat("%.6g ms", value * 1e3);
  return absl::StrFormat("%.6g s", value);
}

std::string Grid(const Plot& plot, const Axis& x, const Axis& y) {
  std::string svg;
  const int first = static_cast<int>(std::floor(std::log10(y.low)));
  const int last = static_cast<int>(std::ceil(std::log10(y.high)));
  const bool dense = last - first <= 3;  // then lines at 2 and 5 have labels, too
  const int every = std::max(1, (last - first) / 8);
  for (int decade = first; decade <= last; ++decade) {
    for (const int digit : {1, 2, 5}) {
      const double value = digit * std::pow(10.0, decade);
      if (value < y.low || value > y.high) continue;
      const double place = y.Place(value);
      if (digit == 1 || dense) {
        svg += Line(digit == 1 ? "grid" : "grid minor", x.from, place, x.to, place);
        if (digit != 1 || (decade - first) % every == 0 || dense) {
          svg += Text(x.from - 7, place + 4, "end", "tick", YTick(plot, value));
        }
      }
    }
  }
  // Powers of two, as many as have room.
  const int low = static_cast<int>(std::ceil(std::log2(x.low))),
            high = static_cast<int>(std::floor(std::log2(x.high)));
  const int step = std::max(1, (high - low + 8) / 9);
  for (int power = low; power <= high; ++power) {
    const double place = x.Place(std::exp2(power));
    svg += Line("grid minor", place, y.from, place, y.to);
    if ((power - low) % step == 0) {
      svg += Text(place, y.from + 17, "middle", "tick", FormatLength(int64_t{1} << power));
    }
  }
  svg += Line("axis", x.from, y.from, x.to, y.from);
  return svg;
}

// A rectangle that a label takes.
struct Box {
  double left, top, right, bottom;
  bool Meets(const Box& other) const {
    return left < other.right && other.left < right && top < other.bottom && other.top < bottom;
  }
  bool Holds(double x, double y) const { return x > left && x < right && y > top && y < bottom; }
};

// How much of the plot's lines runs through a box.
int Crowd(const Plot& plot, const Axis& x, const Axis& y, const Box& box) {
  constexpr int kSteps = 16;  // between two points
  int inside = 0;
  for (const PlotLine& line : plot.lines) {
    for (size_t i = 0; i < line.points.size(); ++i) {
      const double px = x.Place(line.points[i].x), py = y.Place(line.points[i].y);
      inside += 4 * box.Holds(px, py);
      if (i + 1 == line.points.size()) break;
      const double nx = x.Place(line.points[i + 1].x), ny = y.Place(line.points[i + 1].y);
      for (int step = 1; step < kSteps; ++step) {
        const double part = static_cast<double>(step) / kSteps;
        inside += box.Holds(px + part * (nx - px), py + part * (ny - py));
      }
    }
  }
  return inside;
}

// Dashed lines, each with its label above or below it, at the end where it covers least.
std::string Limits(const Plot& plot, const Axis& x, const Axis& y) {
  std::string svg, labels;
  std::vector<Box> taken;
  for (const PlotLimit& limit : plot.limits) {
    const double place = y.Place(limit.y);
    const std::string style = absl::StrCat(limit.style % kPlotStyles);
    svg += Line("limit s" + style, x.from, place, x.to, place);
    const double width = 6.3 * static_cast<double>(limit.label.size());
    int least = std::numeric_limits<int>::max();
    bool at_left = false;
    double base = 0.0;
    Box chosen = {};
    for (const bool below : {false, true}) {
      for (const bool left : {false, true}) {
        const double top = below ? place + 3 : place - 4 - kTextHeight;
        const double from = left ? x.from + 4 : x.to - 4 - width;
        const Box box = {from, top, from + width, top + kTextHeight};
        int crowd = Crowd(plot, x, y, box) + (below && top + kTextHeight > y.from ? 1000 : 0);
        for (const Box& other : taken) crowd += other.Meets(box) ? 100 : 0;
        for (const PlotLimit& other : plot.limits) {
          const double line = y.Place(other.y);
          if (&other != &limit && line > box.top && line < box.bottom) crowd += 50;
        }
        if (crowd >= least) continue;
        least = crowd;
        at_left = left;
        base = top + kTextHeight - 3;
        chosen = box;
      }
    }
    taken.push_back(chosen);
    labels += Text(at_left ? chosen.left : chosen.right, base, at_left ? "start" : "end",
                   "limit-label s" + style, limit.label);
  }
  return svg + labels;
}

std::string Crossings(const Plot& plot, const Axis& x, const Axis& y) {
  std::string svg;
  double last_end[2] = {-1e9, -1e9};  // of the labels in the two rows above the axes
  for (const PlotCrossing& crossing : plot.crossings) {
    const double place = x.Place(crossing.x);
    const double half = 3.2 * static_cast<double>(crossing.label.size());
    const double middle = std::clamp(place, x.from + half, x.to - half);
    const int row = middle - half > last_end[0] + 4 ? 0 : 1;
    last_end[row] = middle + half;
    svg += Line("crossing", place, y.from, place, y.to);
    svg += Text(middle, y.to - 5 - row * kTextHeight, "middle", "crossing-label", crossing.label);
  }
  return svg;
}

std::string Lines(const Plot& plot, const Axis& x, const Axis& y) {
  std::string svg;
  for (const PlotLine& line : plot.lines) {
    std::string path;
    for (const PlotPoint& point : line.points) {
      absl::StrAppend(&path, path.empty() ? "" : " ",
                      absl::StrFormat("%.1f,%.1f", x.Place(point.x), y.Place(point.y)));
    }
    const int style = line.style % kPlotStyles;
    svg += absl::StrFormat("<polyline class=\"line s%d\" points=\"%s\" />\n", style, path);
    for (const PlotPoint& point : line.points) {
      const double px = x.Place(point.x), py = y.Place(point.y);
      absl::StrAppend(&svg, "<g class=\"point s", style, "\"", point.attributes, "><title>",
                      EscapeXml(point.title), "</title>");
      if (point.low > 0.0) {
        svg += absl::StrFormat("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" />", px,
                               y.Place(point.low), px, y.Place(point.high));
      }
      absl::StrAppend(&svg, Marker(style, px, py), "</g>\n");
    }
  }
  return svg;
}

// A cell for each point; its width is the distance to the neighbours.
std::string Choices(const Plot& plot, const Axis& x, double top) {
  std::string svg;
  for (size_t i = 0; i < plot.choices.size(); ++i) {
    const PlotChoice& choice = plot.choices[i];
    const double place = x.Place(choice.x);
    const double left = i > 0 ? (x.Place(plot.choices[i - 1].x) + place) / 2 : x.from;
    const double right =
        i + 1 < plot.choices.size() ? (x.Place(plot.choices[i + 1].x) + place) / 2 : x.to;
    svg += absl::StrFormat(
        "<g class=\"choice s%d\"><title>%s</title><rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" "
        "height=\"%.1f\" /></g>\n",
        choice.style % kPlotStyles, EscapeXml(choice.title), left + 1, top,
        std::max(1.0, right - left - 2), kStripHeight);
    if (!choice.label.empty()) {
      svg += Text(place, top + kStripHeight + 13, "middle", "regret", choice.label);
    }
  }
  return svg;
}

}  // namespace

std::string FormatNumber(double value) {
  const double magnitude = std::abs(value);
  if (magnitude >= 99.95 || magnitude == 0) return absl::StrFormat("%.0f", value);
  if (magnitude >= 9.995) return absl::StrFormat("%.1f", value);
  if (magnitude >= 0.9995) return absl::StrFormat("%.2f", value);
  return absl::StrFormat("%.3g", value);
}

std::string FormatSeconds(double seconds) {
  if (seconds < 0.9995e-6) return FormatNumber(seconds * 1e9) + " ns";
  if (seconds < 0.9995e-3) return FormatNumber(seconds * 1e6) + " µs";
  if (seconds < 0.9995) return FormatNumber(seconds * 1e3) + " ms";
  return FormatNumber(seconds) + " s";
}

std::string FormatRate(double giga, bool flops) {
  const std::string prefix = giga >= 10'000 ? "T" : "G";
  return FormatNumber(giga >= 10'000 ? giga * 1e-3 : giga) + " " + prefix +
         (flops ? "FLOP/s" : "B/s");
}

std::string FormatLength(int64_t length) {
  if (length >= (int64_t{1} << 20) && length % (int64_t{1} << 20) == 0) {
    return absl::StrCat(length >> 20, "M");
  }
  if (length >= 1024 && length % 1024 == 0) return absl::StrCat(length >> 10, "k");
  return absl::StrCat(length);
}

std::string LegendMarker(int style) {
  return absl::StrFormat(
      "<svg class=\"key\" viewBox=\"0 0 26 12\" aria-hidden=\"true\"><line class=\"line s%d\" "
      "x1=\"1\" y1=\"6\" x2=\"25\" y2=\"6\" /><g class=\"point s%d\">%s</g></svg>",
      style % kPlotStyles, style % kPlotStyles, Marker(style, 13, 6));
}

std::string ToSvg(const Plot& plot) {
  const double strip = plot.choices.empty() ? 0.0 : kStripGap;
  Axis x, y;
  FitAxes(plot, x, y);
  x.from = kLeft;
  x.to = kWidth - kRight;
  y.from = kHeight - kBottom;
  y.to = kTop + (plot.crossings.empty() ? 0.0 : kCrossingRows);
  std::string svg = absl::StrFormat(
      "<svg class=\"plot\" viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"%s\">\n", kWidth,
      kHeight + strip, EscapeXml(plot.title + " against " + plot.x_name));
  svg += Text(4, 14, "start", "title", plot.title);
  svg += Grid(plot, x, y);
  svg += Text((x.from + x.to) / 2, y.from + 36, "middle", "label", plot.x_name);
  svg += Crossings(plot, x, y);
  svg += Lines(plot, x, y);
  svg += Limits(plot, x, y);
  if (!plot.choices.empty()) {
    const double top = kHeight - 4;
    svg += Text(x.from - 7, top + 10, "end", "tick", plot.choices_name);
    svg += Choices(plot, x, top);
  }
  return svg + "</svg>\n";
}

std::string PlotStyleSheet() {
  std::string css = R"(
.plot { display: block; width: 100%; height: auto; }
.plot text { font: 12px system-ui, sans-serif; fill: var(--ink-2); }
.plot .limit-label { paint-order: stroke; stroke: var(--card); stroke-width: 3; font-size: 11px;
  stroke-linejoin: round; }
.plot .title { font-size: 13px; font-weight: 600; fill: var(--ink); }
.plot .grid { stroke: var(--grid); stroke-width: 1; }
.plot .minor { stroke: var(--grid-2); }
.plot .axis { stroke: var(--axis); stroke-width: 1; }
.plot .limit { stroke-width: 1.5; stroke-dasharray: 7 4; opacity: .75; }
.plot .crossing { stroke: var(--ink-2); stroke-width: 1.2; stroke-dasharray: 2 3; }
.plot .crossing-label { font-weight: 600; fill: var(--ink); }
.plot .regret { font-size: 10px; fill: var(--ink); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.point line { stroke-width: 1.4; }
.point > :not(title):not(line) { stroke: var(--card); stroke-width: 1.2; }
.key { width: 26px; height: 12px; vertical-align: -1px; }
)";
  for (int style = 0; style < kPlotStyles; ++style) {
    absl::StrAppend(&css, ".line.s", style, ", .point.s", style, " line, .limit.s", style,
                    " { stroke: var(--s", style, "); }\n.point.s", style,
                    " > :not(title):not(line), .choice.s", style, " rect { fill: var(--s", style,
                    "); }\n.plot .limit-label.s", style, " { fill: var(--t", style, "); }\n");
  }
  return css;
}

}  // namespace tandem::tools
