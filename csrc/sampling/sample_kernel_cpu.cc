#include <memory>

#include "common/team.h"
#include "sampling/sample_kernel.h"
#include "sampling/sample_team.h"

namespace qwen2vl::cpu {

void sample_rows(const SampleStep& step) {
  const auto shared = std::make_unique<SampleShared>();
  const SerialTeam team;
  for (int64_t row = 0; row < step.rows; ++row) {
    for (int32_t part = 0; part < kPeakParts; ++part) sample_peaks(team, step, row, part);
    sample_row(team, *shared, step, row);
  }
}

}  // namespace qwen2vl::cpu
