// Data races that ThreadSanitizer reports while a test runs are failures of that test, unless it
// says that it plants one. Without ThreadSanitizer nothing is ever reported.
#pragma once

namespace tandem {

// Reports so far in this process.
int RaceReports();

// While one lives, races are no failures.
class RacesExpected {
 public:
  RacesExpected();
  ~RacesExpected();
  RacesExpected(const RacesExpected&) = delete;
  RacesExpected& operator=(const RacesExpected&) = delete;

  // Reports since this was made.
  int reports() const { return RaceReports() - before_; }

 private:
  int before_;
};

}  // namespace tandem
