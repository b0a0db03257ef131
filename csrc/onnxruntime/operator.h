#pragma once

#include "onnxruntime/kernel.h"

namespace qwen2vl::ort {

// An input or output of an operator.
struct Port {
  ElementType type;
  bool optional = false;
};

// The engine's description of an operator that a class K implements:
//   static constexpr const char* kName; static constexpr Port kInputs[], kOutputs[];
//   K(const Api&, const KernelInfo*), once for each node; void compute(const Call&)
// What these throw becomes the engine's error.
template <typename K>
class Operator {
 public:
  static const CustomOp& definition() {
    static const CustomOp kOp = make();
    return kOp;
  }

 private:
  struct Held {
    const Api* api;
    K kernel;
  };

  static CustomOp make() {
    CustomOp op;
    op.name = [](const CustomOp*) { return K::kName; };
    op.provider = [](const CustomOp*) -> const char* { return nullptr; };  // the CPU's
    op.input_count = [](const CustomOp*) { return std::size(K::kInputs); };
    op.input_type = [](const CustomOp*, size_t i) { return K::kInputs[i].type; };
    op.input_characteristic = [](const CustomOp*, size_t i) { return K::kInputs[i].optional ? 1 : 0; };
    op.input_memory_type = [](const CustomOp*, size_t) { return 0; };
    op.output_count = [](const CustomOp*) { return std::size(K::kOutputs); };
    op.output_type = [](const CustomOp*, size_t i) { return K::kOutputs[i].type; };
    op.output_characteristic = [](const CustomOp*, size_t i) { return K::kOutputs[i].optional ? 1 : 0; };
    op.create_kernel_v2 = [](const CustomOp*, const Api* api, const KernelInfo* info, void** kernel) {
      return guarded(*api, [&] { *kernel = new Held{api, K(*api, info)}; });
    };
    op.compute_v2 = [](void* kernel, KernelContext* context) {
      auto* held = static_cast<Held*>(kernel);
      return guarded(*held->api, [&] { held->kernel.compute(Call(*held->api, context)); });
    };
    op.destroy = [](void* kernel) { delete static_cast<Held*>(kernel); };
    op.start_version = [](const CustomOp*) { return 1; };
    op.end_version = [](const CustomOp*) { return 1; };
    return op;
  }

  template <typename Body>
  static Status* guarded(const Api& api, const Body& body) {
    try {
      body();
      return nullptr;
    } catch (const std::exception& error) {
      constexpr int kFail = 1;  // ORT_FAIL
      return api.at<Status*(int, const char*)>(Api::kCreateStatus)(kFail, error.what());
    }
  }
};

}  // namespace qwen2vl::ort
