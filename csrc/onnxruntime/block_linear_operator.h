#pragma once

#include <algorithm>
#include <cstring>

#include "common/scratch.h"
#include "integer/block_linear.h"
#include "integer/quantize.h"
#include "onnxruntime/operator.h"
#include "onnxruntime/shapes.h"

namespace qwen2vl::ort {

// x float32 [.., K] @ W^T (+ bias) -> [.., N] for 4-bit weights in blocks of 128: integer/block_linear.h.
// Inputs: x, codes uint8 [N, blocks, 64], scales float32 [N, blocks]; optional: zero points uint8 [N, (blocks
// + 1) / 2], bias float32 [N], other float32 [.., K]. Codes, scales and zero points are constants.
// Attributes: K, and zero_points: whether there are any, and slope: with one, the product is of x *
// sigmoid(slope * x) (* other).
class BlockLinearOperator {
 public:
  static constexpr const char* kName = "BlockLinear";
  static constexpr Port kInputs[] = {{kFloat},       {kUInt8},       {kFloat},
                                     {kUInt8, true}, {kFloat, true}, {kFloat, true}};
  static constexpr Port kOutputs[] = {{kFloat}};

  BlockLinearOperator(const Api& api, const KernelInfo* info)
      : quantize_(quantize_kernels()),
        slope_(float_attribute(api, info, "slope")),
        linear_(pack(api, info)) {}

  void compute(const Call& call) const {
    auto shape = call.shape(0);
    const int64_t k = linear_.inputs(), blocks = linear_.blocks(), rows = rows_of(shape);
    if (shape.back() != k)
      throw Error("a layer of " + std::to_string(k) + " inputs got " + std::to_string(shape.back()));
    const auto *x = call.data<float>(0), *bias = call.data<float>(4), *other = call.data<float>(5);
    shape.back() = linear_.outputs();
    auto* y = call.output<float>(0, shape);

    constexpr int64_t kBlock = BlockLinear::kBlock;
    auto* steps = static_cast<float*>(shared_scratch(rows * blocks * (kBlock + 2 * sizeof(float))));
    auto* sums = reinterpret_cast<int32_t*>(steps + rows * blocks);
    auto* codes = reinterpret_cast<int8_t*>(sums + rows * blocks);
    const int64_t rows_a_task = std::max<int64_t>(1, kNumbersATask / k);
    call.parallel((rows + rows_a_task - 1) / rows_a_task, [&](size_t task) {
      const int64_t first = task * rows_a_task;
      for (int64_t r = first; r < std::min(first + rows_a_task, rows); ++r) {
        quantize(x + r * k, other == nullptr ? nullptr : other + r * k, codes + r * blocks * kBlock,
                 steps + r * blocks, sums + r * blocks);
      }
    });
    // So much work a task that a thread's waking up does not show, and enough of them to share evenly.
    const int64_t panels = linear_.panels(), bytes = panels * linear_.panel_bytes() * rows;
    const int64_t tasks = std::clamp<int64_t>(bytes / kBytesATask, 1, panels);
    call.parallel(tasks, [&](size_t i) {
      linear_.run({codes, steps, sums}, rows, bias, panels * i / tasks, panels * (i + 1) / tasks, y);
    });
  }

 private:
  static constexpr int64_t kBytesATask = 192 << 10;  // some microseconds at the memory's speed

  static BlockLinear pack(const Api& api, const KernelInfo* info) {
    if (!BlockLinear::supported()) throw Error("BlockLinear runs on x86-64 with AVX-512 VNNI only");
    const bool zero_points = integer_attribute(api, info, "zero_points") != 0;
    const Value* codes = constant_input(api, info, 1);
    const Value* scales = constant_input(api, info, 2);
    const Value* zeros = zero_points ? constant_input(api, info, 3) : nullptr;
    if (codes == nullptr || scales == nullptr || (zero_points && zeros == nullptr)) {
      throw Error("BlockLinear: codes, scales and zero points must be constants");
    }
    return BlockLinear(static_cast<const uint8_t*>(data_of(api, codes)),
                       static_cast<const float*>(data_of(api, scales)),
                       zero_points ? static_cast<const uint8_t*>(data_of(api, zeros)) : nullptr,
                       integer_attribute(api, info, "K"), shape_of(api, codes)[0]);
  }

  // One token's codes, steps and sums.
  void quantize(const float* x, const float* other, int8_t* codes, float* steps, int32_t* sums) const {
    constexpr int64_t kBlock = BlockLinear::kBlock;
    const int64_t k = linear_.inputs(), blocks = linear_.blocks();
    if (slope_ != 0 || other != nullptr) {
      auto* activated = static_cast<float*>(thread_scratch(k * sizeof(float)));
      quantize_.activate({x, 1, nullptr, slope_, other, 1}, k, activated);
      x = activated;
    }
    quantize_.quantize(x, k, kBlock, 0, reinterpret_cast<uint8_t*>(codes), steps);
    std::memset(codes + k, 0, blocks * kBlock - k);
    for (int64_t block = 0; block < blocks; ++block) {
      int32_t sum = 0;
      for (int64_t i = 0; i < kBlock; ++i) sum += codes[block * kBlock + i];
      sums[block] = sum;
    }
  }

  const QuantizeKernels& quantize_;
  const float slope_;
  const BlockLinear linear_;
};

}  // namespace qwen2vl::ort
