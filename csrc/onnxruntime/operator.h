#pragma once

#include <initializer_list>

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
enum class Provider { kCpu, kCuda };

template <typename K, Provider provider = Provider::kCpu>
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
    op.provider = [](const CustomOp*) -> const char* {
      return provider == Provider::kCuda ? "CUDAExecutionProvider" : nullptr;
    };
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

constexpr const char* kDomain = "qwen2vl";

// Gives a session the operators of one library, in the domain of the project's own. `domain` keeps what is
// made on the first call, for as long as the library is loaded: sessions point to it.
inline Status* add_operators(const Api& api, SessionOptions* options,
                             std::initializer_list<const CustomOp*> operators, Domain** domain) {
  if (*domain == nullptr) {
    Domain* made = nullptr;
    const auto create = api.at<Status*(const char*, Domain**)>(Api::kCreateCustomOpDomain);
    if (Status* status = create(kDomain, &made)) return status;
    for (const CustomOp* op : operators) {
      const auto add = api.at<Status*(Domain*, const CustomOp*)>(Api::kCustomOpDomainAdd);
      if (Status* status = add(made, op)) return status;
    }
    *domain = made;
  }
  return api.at<Status*(SessionOptions*, Domain*)>(Api::kAddCustomOpDomain)(options, *domain);
}

}  // namespace qwen2vl::ort
