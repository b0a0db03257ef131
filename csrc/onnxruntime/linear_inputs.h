#pragma once

#include <cstdint>

// The inputs of the linear operators in their order, on a CPU (onnxruntime/linear_operator.h) and on a GPU
// (cuda/linear_operator.h), as lowering/linear.py writes them: these, then those of each matrix.
namespace qwen2vl::ort {

struct LinearInput {
  enum : int64_t { kX, kOther, kNormWeight, kNormBias, kAdded, kFirstMatrix };
};

constexpr int64_t kMostLayers = 3;  // of one operator, each with a matrix

// A matrix's own, by its form; kCount is how many there are.
struct PlainMatrix {
  enum : int64_t { kWeights, kBias, kCount };
};
struct ChannelMatrix {
  enum : int64_t { kCodes, kScales, kBias, kCount };
};
struct BlockMatrix {
  enum : int64_t { kCodes, kScales, kZeroPoints, kBias, kCount };
};

}  // namespace qwen2vl::ort
