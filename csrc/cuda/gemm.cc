#include "cuda/gemm.h"

#include <dlfcn.h>

#include <map>
#include <mutex>
#include <string>

#include "common/error.h"
#include "cuda/ignore_other_recordings.h"
#include "cuda/memory.h"

namespace qwen2vl::cuda {

namespace {

// cuBLAS's own numbers.
constexpr int kAsItLies = 0, kTransposed = 1;               // cublasOperation_t
constexpr int kFloat32 = 0, kFloat16 = 2, kBFloat16 = 14;   // cudaDataType_t
constexpr int kSumsInFloat32 = 68, kDefaultAlgorithm = -1;  // cublasComputeType_t, cublasGemmAlgo_t

using Create = int(void**);
using Destroy = int(void*);
using SetStream = int(void*, StreamHandle);
using SetWorkspace = int(void*, void*, size_t);
using Multiply = int(void*, int, int, int, int, int, const void*, const void*, int, int, const void*, int,
                     int, const void*, void*, int, int, int, int);

// What NVIDIA's documentation recommends for the largest GPUs. A handle without a workspace of its own would
// allocate while a step is recorded.
constexpr size_t kWorkspaceBytes = size_t{32} << 20;

// The library, opened on the first product; a handle for each stream, because a handle's workspace serves one
// product at a time.
class Cublas {
 public:
  static Cublas& one() {
    static auto* const cublas = opened = new Cublas;
    return *cublas;
  }
  static inline Cublas* opened = nullptr;

  void* handle(StreamHandle stream) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = handles_.find(stream);
    if (found != handles_.end()) return found->second.cublas;
    const IgnoreOtherRecordings guard;
    void* handle = nullptr;
    require(function<Create>("cublasCreate_v2")(&handle), "creating its handle");
    require(function<SetStream>("cublasSetStream_v2")(handle, stream), "its stream");
    DeviceBuffer workspace(kWorkspaceBytes);
    require(function<SetWorkspace>("cublasSetWorkspace_v2")(handle, workspace.data(), workspace.size()),
            "its workspace");
    return handles_.emplace(stream, Handle{handle, std::move(workspace)}).first->second.cublas;
  }

  void forget(StreamHandle stream) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = handles_.find(stream);
    if (found == handles_.end()) return;
    destroy_(found->second.cublas);
    handles_.erase(found);
  }

  Multiply* multiply() const { return multiply_; }

  static void require(int status, const char* what) {
    if (status != 0) {
      throw DeviceError("cuBLAS refused " + std::string(what) + " (status " + std::to_string(status) + ")");
    }
  }

 private:
  Cublas() : library_(open()) {
    multiply_ = function<Multiply>("cublasGemmEx");
    destroy_ = function<Destroy>("cublasDestroy_v2");
  }

  static void* open() {
#ifdef QWEN2VL_EMULATED_CUDA  // the emulated GPU's is in this very module
    Dl_info here;
    if (dladdr(&opened, &here) != 0) return dlopen(here.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
#endif
    // Rather than another, the one that ONNX Runtime has loaded, which fits the driver.
    for (const int loaded : {RTLD_NOLOAD, 0}) {
      for (const char* name : {"libcublas.so.13", "libcublas.so.12"}) {
        if (void* const library = dlopen(name, RTLD_LAZY | RTLD_LOCAL | loaded)) return library;
      }
    }
    throw DeviceError("cuBLAS is not installed: pip install nvidia-cublas");
  }

  template <typename Signature>
  Signature* function(const char* name) const {
    void* const found = dlsym(library_, name);
    if (found == nullptr) throw DeviceError(std::string("cuBLAS has no ") + name);
    return reinterpret_cast<Signature*>(found);
  }

  struct Handle {
    void* cublas;
    DeviceBuffer workspace;
  };

  void* library_;
  Multiply* multiply_;
  Destroy* destroy_;
  std::mutex mutex_;
  std::map<StreamHandle, Handle> handles_;
};

int data_type(FloatType type) {
  return type == FloatType::kFloat32 ? kFloat32 : type == FloatType::kBFloat16 ? kBFloat16 : kFloat16;
}

}  // namespace

void forget_products(StreamHandle stream) noexcept {
  if (Cublas::opened != nullptr) Cublas::opened->forget(stream);
}

void gemm(const Gemm& product, StreamHandle stream) {
  Cublas& cublas = Cublas::one();
  void* const handle = cublas.handle(stream);
  // cuBLAS counts along columns: y^T [N, M] = W [N, K] x^T [K, M].
  const float one = 1, zero = 0;
  const int m = static_cast<int>(product.m), n = static_cast<int>(product.n), k = static_cast<int>(product.k);
  const int type = data_type(product.type), result_type = data_type(product.result_type);
  Cublas::require(
      cublas.multiply()(handle, kTransposed, kAsItLies, n, m, k, &one, product.w, type, k, product.x, type, k,
                        &zero, product.y, result_type, n, kSumsInFloat32, kDefaultAlgorithm),
      "a product");
}

}  // namespace qwen2vl::cuda
