// The report of a comparison: one page of HTML with inline SVG, without scripts and without
// anything from elsewhere. Well-formed XML, too, so that tests can take it apart.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/cases/escape_xml.h"
#include "tools/comparison.h"
#include "tools/comparison_plot.h"

namespace tandem::tools {
namespace {

// Light and dark: ink, surfaces, lines, and per device one colour for marks (s) and a darker or
// lighter one for text (t).
constexpr const char* kStyle = R"(
:root { color-scheme: light dark;
  --page: #f6f6f4; --card: #ffffff; --ink: #16181d; --ink-2: #565b66; --axis: #8c919c;
  --grid: #dfe1e6; --grid-2: #eff0f3; --border: #dfe1e6; --warn: #fff3d6; --warn-ink: #6b4800;
  --s0: #2a6fdb; --s1: #d9630b; --s2: #1a9a6c; --s3: #9355c9;
  --t0: #1f58b3; --t1: #a84a05; --t2: #11704e; --t3: #713aa3; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14161a; --card: #1c1f25; --ink: #eceef2; --ink-2: #a9afbb; --axis: #7a808c;
  --grid: #343943; --grid-2: #272b33; --border: #30343d; --warn: #3b2f12; --warn-ink: #ffd98a;
  --s0: #6ea8ff; --s1: #ff9a4d; --s2: #4ccf9c; --s3: #c193f0;
  --t0: #8fbbff; --t1: #ffb27a; --t2: #7adfb6; --t3: #d3b0f5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 2px; } h2 { font-size: 20px; margin: 38px 0 4px; }
h3 { font-size: 16px; margin: 0; }
p { margin: 4px 0 12px; max-width: 85ch; } .quiet { color: var(--ink-2); }
.warning { background: var(--warn); color: var(--warn-ink); border-radius: 8px; padding: 10px 14px;
  margin: 14px 0; font-weight: 600; max-width: none; }
.card { background: var(--card); border: 1px solid var(--border); border-radius: 10px;
  padding: 16px 18px; margin: 14px 0; }
.tiles { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(270px, 1fr));
  margin: 16px 0; }
.tiles .card { margin: 0; } .tiles h3 { margin-bottom: 6px; }
.plots { display: grid; gap: 18px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 370px), 1fr));
  margin-top: 10px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 6px 0 0; color: var(--ink-2);
  font-size: 13px; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 2px 14px; margin: 0; font-size: 14px;
  max-width: 420px; }
dt { color: var(--ink-2); } dd { margin: 0; text-align: right;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
.glance th, .glance td:nth-child(2) { white-space: normal; } .glance th, .glance td { padding: 4px 7px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px;
  font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 600; color: var(--ink-2); vertical-align: bottom; }
th, td { padding: 4px 10px; border-bottom: 1px solid var(--border); white-space: nowrap; }
td { text-align: right; } td.text, th.text { text-align: left; }
td.best { font-weight: 700; } .fail { color: var(--ink-2); white-space: normal; }
details { margin-top: 10px; } summary { cursor: pointer; color: var(--ink-2); font-size: 13.5px; }
)";

std::string Percent(double part) {
  return absl::StrFormat(part >= 0.995 || part < 0.0005 ? "%.0f %%" : "%.1f %%", part * 100.0);
}

std::string Row(const std::string& cells) { return "<tr>" + cells + "</tr>\n"; }
std::string Cell(const std::string& text, const char* cls = nullptr) {
  return cls == nullptr ? "<td>" + EscapeXml(text) + "</td>"
                        : absl::StrCat("<td class=\"", cls, "\">", EscapeXml(text), "</td>");
}
std::string Head(const std::string& text, const char* cls = nullptr) {
  return cls == nullptr ? "<th>" + EscapeXml(text) + "</th>"
                        : absl::StrCat("<th class=\"", cls, "\">", EscapeXml(text), "</th>");
}

class Report {
 public:
  explicit Report(const Comparison& comparison) : c_(comparison) {}

  std::string Page() const {
    std::string html = absl::StrCat(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\" />\n"
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
        "'unsafe-inline'\" />\n"
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\" />\n<title>",
        EscapeXml(Title()), "</title>\n<style>", kStyle, PlotStyleSheet(),
        "</style>\n</head>\n<body>\n<main>\n");
    html += Header() + Tiles() + RegretSection() + Glance();
    std::string section;
    for (const ComparedSeries& series : c_.series) {
      if (series.op != section) {
        section = series.op;
        absl::StrAppend(&html, "<h2>", EscapeXml(section), "</h2>\n");
      }
      html += SeriesCard(series);
    }
    html += Notes();
    return html + "</main>\n</body>\n</html>\n";
  }

 private:
  std::string Title() const {
    std::string names;
    for (const ComparedDevice& device : c_.devices) {
      absl::StrAppend(&names, names.empty() ? "" : " and ", Label(device));
    }
    if (c_.devices.size() == 1) absl::StrAppend(&names, ", ", c_.devices[0].name);
    return "Tandem on " + (names.empty() ? "no device" : names);
  }
  int StyleOf(const std::string& id) const {
    for (size_t i = 0; i < c_.devices.size(); ++i) {
      if (c_.devices[i].id == id) return static_cast<int>(i);
    }
    return 0;
  }
  const ComparedDevice* DeviceOf(const std::string& id) const {
    for (const ComparedDevice& device : c_.devices) {
      if (device.id == id) return &device;
    }
    return nullptr;
  }
  bool simulated() const { return c_.kind == ComparisonKind::kSimulated; }
  // What a device is called wherever its times are shown.
  std::string Label(const ComparedDevice& device) const {
    return device.id + (simulated()       ? " (simulated)"
                        : device.emulated ? " (emulated on the CPU)"
                                          : "");
  }
  std::string Label(const std::string& id) const {
    const ComparedDevice* device = DeviceOf(id);
    return device == nullptr ? id : Label(*device);
  }

  // In tables under the banner that says it of them all.
  std::string ShortLabel(const std::string& id) const { return simulated() ? id : Label(id); }

  std::string Header() const {
    std::string html =
        absl::StrCat("<h1>", EscapeXml(Title()), "</h1>\n<p class=\"quiet\">", EscapeXml(c_.date),
                     c_.date.empty() ? "tandem " : " &#183; tandem ", EscapeXml(c_.tandem_version),
                     c_.quick ? " &#183; quick" : "");
    for (const auto& [what, value] : c_.machine) {
      absl::StrAppend(&html, " &#183; ", EscapeXml(what), " ", EscapeXml(value));
    }
    html += "</p>\n";
    if (simulated()) {
      html +=
          "<p class=\"warning\">Simulated: no hardware was measured. All times on this page were "
          "computed from a model of a machine.</p>\n";
    }
    for (const ComparedDevice& device : c_.devices) {
      if (device.emulated) {
        absl::StrAppend(&html, "<p class=\"warning\">", EscapeXml(device.id),
                        " is an emulator that runs on the CPU: its times are not those of any "
                        "GPU.</p>\n");
      }
    }
    for (const auto& [device, why] : c_.absent) {
      absl::StrAppend(&html, "<p class=\"quiet\">Without ", EscapeXml(device), ": ", EscapeXml(why),
                      "</p>\n");
    }
    return html;
  }

  std::string Tiles() const {
    std::string html = "<div class=\"tiles\">\n";
    for (const ComparedDevice& device : c_.devices) {
      absl::StrAppend(&html, "<section class=\"card\"><h3>", LegendMarker(StyleOf(device.id)), " ",
                      EscapeXml(Label(device)), "</h3><p class=\"quiet\">", EscapeXml(device.name),
                      "</p><dl>");
      for (const MachineLimit& limit : device.limits) {
        absl::StrAppend(&html, "<dt>", EscapeXml(limit.what), "</dt><dd>",
                        FormatNumber(limit.value),
                        limit.kind == MachineLimit::Kind::kCompute ? " GFLOP/s" : " GB/s", "</dd>");
      }
      html += "</dl></section>\n";
    }
    return html + "</div>\n";
  }

  std::string RegretSection() const {
    const std::vector<RegretSummary> all = Regrets(c_);
    if (all.empty()) return "";
    std::string html = absl::StrCat(
        "<h2>The scheduler's choice</h2>\n<p class=\"quiet\">Policy: ", EscapeXml(c_.policy),
        ". Regret: how much longer the chosen device took than the best one for that call.</p>\n"
        "<div class=\"card scroll\"><table><thead>",
        Row(Head("strategy", "text") + Head("calls") + Head("mean regret") + Head("worst regret") +
            Head("where the worst is", "text")),
        "</thead><tbody>\n");
    for (const RegretSummary& regret : all) {
      html += Row(
          Cell(regret.strategy, "text") + Cell(absl::StrCat(regret.points)) +
          Cell(Percent(regret.mean)) + Cell(Percent(regret.worst)) +
          Cell(regret.worst > 0.0 ? absl::StrCat(regret.worst_series, " at ", regret.worst_x) : "-",
               "text"));
    }
    return html + "</tbody></table></div>\n";
  }

  // Of the limits of a device that apply where its operands are: least possible over actual time.
  static double ShareOfLimit(const ComparedDevice& device, const ComparedPoint& point,
                             const ComparedTime& time) {
    double least = 0.0;
    for (const MachineLimit& limit : device.limits) {
      if (limit.kind == MachineLimit::Kind::kTransfer) continue;
      const double work = limit.kind == MachineLimit::Kind::kCompute ? point.flops : point.bytes;
      const bool first = &limit == FirstLimit(device, limit.kind);
      if (first) least = std::max(least, work / (limit.value * 1e9));
    }
    return least / time.median;
  }
  static const MachineLimit* FirstLimit(const ComparedDevice& device, MachineLimit::Kind kind) {
    for (const MachineLimit& limit : device.limits) {
      if (limit.kind == kind) return &limit;
    }
    return nullptr;
  }

  std::string CrossoverText(const ComparedSeries& series) const {
    std::string text;
    for (const auto& crossover : AllCrossovers(series)) {
      absl::StrAppend(&text, text.empty() ? "" : ", ", crossover.above, " from ",
                      FormatNumber(crossover.x));
    }
    return text.empty() ? "-" : text;
  }
  std::vector<Crossover> AllCrossovers(const ComparedSeries& series) const {
    std::vector<Crossover> all;
    for (size_t a = 0; a < c_.devices.size(); ++a) {
      for (size_t b = a + 1; b < c_.devices.size(); ++b) {
        for (Crossover& crossover : Crossovers(series, c_.devices[a].id, c_.devices[b].id)) {
          all.push_back(std::move(crossover));
        }
      }
    }
    return all;
  }

  std::string Glance() const {
    std::string head = Head("", "text") + Head("operands", "text");
    for (const ComparedDevice& device : c_.devices) {
      head += Head(ShortLabel(device.id) + ", longest") + Head("of its limit");
    }
    const bool several = c_.devices.size() > 1;
    if (several) head += Head("faster", "text") + Head("mean regret") + Head("worst regret");
    std::string html = "<h2>At a glance</h2>\n<div class=\"card scroll glance\"><table><thead>" +
                       Row(head) + "</thead><tbody>\n";
    for (const ComparedSeries& series : c_.series) {
      std::string cells =
          Cell(series.op + ", " + series.title, "text") + Cell(ShortLabel(series.operands), "text");
      for (const ComparedDevice& device : c_.devices) cells += GlanceCells(series, device);
      if (several) {
        cells += Cell(CrossoverText(series), "text");
        const std::vector<RegretSummary> regrets = Regrets(c_, &series);
        const bool known = !regrets.empty() && regrets.front().strategy == "scheduler";
        cells += Cell(known ? Percent(regrets.front().mean) : "-") +
                 Cell(known ? Percent(regrets.front().worst) : "-");
      }
      html += Row(cells);
    }
    return html + "</tbody></table></div>\n";
  }
  // Of the longest point that was measured.
  std::string GlanceCells(const ComparedSeries& series, const ComparedDevice& device) const {
    for (auto point = series.points.rbegin(); point != series.points.rend(); ++point) {
      const ComparedTime* time = TimeOf(*point, device.id);
      if (time == nullptr) continue;
      // Masks stay in the caches, whose limits are others.
      const bool here = series.operands == device.id && !device.limits.empty() && point->flops > 0;
      return Cell(absl::StrCat(FormatLength(point->x), ": ", FormatSeconds(time->median))) +
             Cell(here ? Percent(ShareOfLimit(device, *point, *time)) : "-");
    }
    return Cell("-") + Cell("-");
  }

  // What a plot shows of a point; 0: nothing.
  using Value = double (*)(const ComparedPoint&, double seconds);

  Plot MakePlot(const ComparedSeries& series, const std::string& title, bool seconds,
                MachineLimit::Kind kind, Value value) const {
    Plot plot;
    plot.title = title;
    plot.x_name = series.x_name;
    plot.y_is_seconds = seconds;
    for (const ComparedDevice& device : c_.devices) {
      PlotLine line;
      line.style = StyleOf(device.id);
      for (const ComparedPoint& point : series.points) {
        const ComparedTime* time = TimeOf(point, device.id);
        if (time == nullptr || value(point, time->median) <= 0.0) continue;
        PlotPoint mark;
        mark.x = static_cast<double>(point.x);
        mark.y = value(point, time->median);
        // Rates fall as times grow.
        mark.low = value(point, seconds ? time->low : time->high);
        mark.high = value(point, seconds ? time->high : time->low);
        mark.title =
            absl::StrCat(Label(device), ", ", point.x, ": ",
                         seconds ? FormatSeconds(mark.y) : FormatNumber(mark.y) + " " + title, ", ",
                         time->kernel);
        mark.attributes = absl::StrCat(" data-series=\"", EscapeXml(series.id), "\" data-x=\"",
                                       point.x, "\" data-device=\"", EscapeXml(device.id),
                                       "\" data-value=\"", absl::StrFormat("%.9g", mark.y), "\"");
        line.points.push_back(std::move(mark));
      }
      if (line.points.empty()) continue;
      plot.lines.push_back(std::move(line));
      if (!seconds) AddLimit(plot, series, device, kind);
    }
    return plot;
  }
  // What bounds this device's rate: its memory or units, or the way there.
  void AddLimit(Plot& plot, const ComparedSeries& series, const ComparedDevice& device,
                MachineLimit::Kind kind) const {
    const bool far = kind == MachineLimit::Kind::kBandwidth && series.operands != device.id;
    const MachineLimit* limit =
        FirstLimit(device, far && FirstLimit(device, MachineLimit::Kind::kTransfer) != nullptr
                               ? MachineLimit::Kind::kTransfer
                               : kind);
    if (limit == nullptr) return;
    plot.limits.push_back(
        {StyleOf(device.id),
         absl::StrCat(device.id, " ", limit->what, " ",
                      FormatRate(limit->value, kind == MachineLimit::Kind::kCompute)),
         limit->value});
  }

  void AddChoices(Plot& plot, const ComparedSeries& series) const {
    plot.choices_name = "choice";
    for (const ComparedPoint& point : series.points) {
      if (DeviceOf(point.choice) == nullptr) continue;
      const std::optional<double> regret = Regret(point, point.choice);
      PlotChoice choice;
      choice.x = static_cast<double>(point.x);
      choice.style = StyleOf(point.choice);
      // What is within the noise is not worth a label.
      if (regret.value_or(0.0) >= 0.05) choice.label = absl::StrFormat("+%.0f%%", *regret * 100.0);
      choice.title = absl::StrCat(point.x, ": ", Label(point.choice), ", ", point.reason,
                                  regret ? ", regret " + Percent(*regret) : "");
      plot.choices.push_back(std::move(choice));
    }
  }

  std::string SeriesCard(const ComparedSeries& series) const {
    using Kind = MachineLimit::Kind;
    std::string html = absl::StrCat(
        "<section class=\"card\" id=\"", EscapeXml(series.id), "\">\n<h3>", EscapeXml(series.title),
        ", operands ",
        series.operands == "cpu" ? "in host memory" : "on " + EscapeXml(Label(series.operands)),
        "</h3>\n<p class=\"quiet\">", EscapeXml(series.shape), "</p>\n<div class=\"legend\">");
    for (const ComparedDevice& device : c_.devices) {
      absl::StrAppend(&html, "<span>", LegendMarker(StyleOf(device.id)), " ",
                      EscapeXml(Label(device)), "</span>");
    }
    html += "</div>\n";
    const bool measured =
        std::any_of(series.points.begin(), series.points.end(),
                    [](const ComparedPoint& point) { return Best(point) != nullptr; });
    if (!measured) {
      return html + "<p>Nothing was measured.</p>\n" + PointsTable(series) + "</section>\n";
    }
    html += "<div class=\"plots\">\n";
    Plot latency = MakePlot(series, "latency", true, Kind::kBandwidth,
                            [](const ComparedPoint&, double seconds) { return seconds; });
    if (c_.devices.size() > 1) {
      for (const Crossover& crossover : AllCrossovers(series)) {
        latency.crossings.push_back(
            {crossover.x, absl::StrCat(crossover.above, " from ", FormatNumber(crossover.x))});
      }
      AddChoices(latency, series);
    }
    html += ToSvg(latency);
    const Plot bytes = MakePlot(
        series, "GB/s", false, Kind::kBandwidth,
        [](const ComparedPoint& point, double seconds) { return point.bytes / seconds * 1e-9; });
    if (!bytes.lines.empty()) html += ToSvg(bytes);
    const Plot flops = MakePlot(
        series, "GFLOP/s", false, Kind::kCompute,
        [](const ComparedPoint& point, double seconds) { return point.flops / seconds * 1e-9; });
    if (!flops.lines.empty()) html += ToSvg(flops);
    return html + "</div>\n" + PointsTable(series) + "</section>\n";
  }

  std::string PointsTable(const ComparedSeries& series) const {
    std::string head = Head(series.x_name);
    for (const ComparedDevice& device : c_.devices) {
      head += Head(ShortLabel(device.id)) + Head("quartiles") + Head("runs") + Head("GB/s") +
              Head("GFLOP/s") + Head("kernel", "text");
    }
    const bool several = c_.devices.size() > 1;
    if (several) head += Head("choice", "text") + Head("regret") + Head("why", "text");
    std::string html =
        "<details><summary>All figures</summary><div class=\"scroll\"><table><thead>" + Row(head) +
        "</thead><tbody>\n";
    for (const ComparedPoint& point : series.points) {
      std::string cells = Cell(absl::StrCat(point.x));
      for (const ComparedDevice& device : c_.devices) cells += TimeCells(point, device);
      if (several) {
        const std::optional<double> regret = Regret(point, point.choice);
        cells += Cell(ShortLabel(point.choice), "text") + Cell(regret ? Percent(*regret) : "-") +
                 Cell(point.reason, "text");
      }
      html += Row(cells);
    }
    return html + "</tbody></table></div></details>\n";
  }
  std::string TimeCells(const ComparedPoint& point, const ComparedDevice& device) const {
    const ComparedTime* time = TimeOf(point, device.id);
    if (time == nullptr) {
      std::string why;
      for (const ComparedTime& other : point.times) {
        if (other.device == device.id) why = other.why;
      }
      return "<td class=\"text fail\" colspan=\"6\">not measured" +
             (why.empty() ? "" : ": " + EscapeXml(why)) + "</td>";
    }
    const bool best = Best(point) == time && point.times.size() > 1;
    return Cell(FormatSeconds(time->median), best ? "best" : nullptr) +
           Cell(FormatSeconds(time->low) + " – " + FormatSeconds(time->high)) +
           Cell(absl::StrCat(time->runs)) + Cell(FormatNumber(point.bytes / time->median * 1e-9)) +
           Cell(point.flops > 0 ? FormatNumber(point.flops / time->median * 1e-9) : "-") +
           Cell(time->kernel, "text");
  }

  std::string Notes() const {
    return "<h2>How to read this</h2>\n<p>Latency: from asking for the result until it can be "
           "read, medians with quartiles as bars; copies of operands between devices are part of "
           "it. GB/s: the bytes of all operands, each once (1e9 bytes); GFLOP/s: the operations of "
           "the visible part. Dashed horizontal lines: what the same machine was measured to do in "
           "the same run. Products of 8-bit and bf16 numbers do more per instruction than the f32 "
           "limit knows, and small operands may stay in a cache. The strip below a latency plot "
           "has "
           "the colour of the device that the scheduler chooses, and its regret where that is 5 % "
           "or more.</p>\n";
  }

  const Comparison& c_;
};

}  // namespace

std::string ToHtml(const Comparison& comparison) { return Report(comparison).Page(); }

}  // namespace tandem::tools
