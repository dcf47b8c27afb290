// Text in XML and HTML: reports of checks and of comparisons.
#pragma once

#include <string>

namespace tandem {

// For element text and attribute values. Line breaks become references, so that attributes keep
// them; the other control characters, for which XML has no form, become question marks.
std::string EscapeXml(const std::string& text);

}  // namespace tandem
