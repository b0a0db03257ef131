// A GPU that does nothing, for ONNX Runtime's CUDA provider: the functions of CUDA's runtime and of cuBLAS
// that the provider links against. Memory is the host's and copies are made; kernels and products are counted
// and not run. What the provider decides on the host is therefore its own: which kernels it takes for a
// graph, what it allocates, when it waits, what it records.
//
// Compiled against the toolkit's headers; cmake/test-null-gpu.sh makes libraries of the names that the
// provider asks for.

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <vector>

namespace {

using Lock = std::lock_guard<std::recursive_mutex>;

struct Null {
  std::recursive_mutex mutex;
  std::map<char*, size_t> blocks;
  size_t used = 0, most = 0;
  long launches = 0, products = 0, to_host = 0, waits = 0, replays = 0;
  long forbidden = 0;  // calls that CUDA refuses while a stream is recorded
  std::set<cudaStream_t> recording;
};

Null& null() {
  static auto* const state = new Null;
  return *state;
}

bool on_device(const void* pointer) {
  auto& blocks = null().blocks;
  auto found = blocks.upper_bound(static_cast<char*>(const_cast<void*>(pointer)));
  if (found == blocks.begin()) return false;
  --found;
  return pointer < found->first + found->second;
}

void must_not_record(const char* call) {
  if (null().recording.empty()) return;
  ++null().forbidden;
  std::fprintf(stderr, "null GPU: %s while a stream is recorded\n", call);
}

size_t pages(size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

cudaError_t count_launch(dim3 grid, dim3 block) {
  const Lock lock(null().mutex);
  ++null().launches;
  const bool fits =
      grid.x > 0 && grid.y > 0 && grid.z > 0 && block.x > 0 && block.x * block.y * block.z <= 1024;
  return fits ? cudaSuccess : cudaErrorInvalidConfiguration;
}

cudaError_t wait(const char* call) {
  const Lock lock(null().mutex);
  must_not_record(call);
  ++null().waits;
  return cudaSuccess;
}

cudaError_t copy(void* to, const void* from, size_t bytes) {
  const Lock lock(null().mutex);
  if (on_device(from) && !on_device(to)) ++null().to_host;
  std::memmove(to, from, bytes);
  return cudaSuccess;
}

template <typename T>
cudaError_t made(T* handle) {
  *handle = reinterpret_cast<T>(std::calloc(1, 4096));
  return cudaSuccess;
}

}  // namespace

extern "C" {

// --- what tests ask ----------------------------------------------------------------------------------------

void null_gpu_reset() {
  const Lock lock(null().mutex);
  Null& state = null();
  state.launches = state.products = state.to_host = state.waits = state.replays = 0;
  state.most = state.used;
}
long null_gpu_launches() { return null().launches; }
long null_gpu_products() { return null().products; }
long null_gpu_copies_to_host() { return null().to_host; }
long null_gpu_waits() { return null().waits; }
long null_gpu_replays() { return null().replays; }
long null_gpu_forbidden() { return null().forbidden; }
long null_gpu_used() { return static_cast<long>(null().used); }
long null_gpu_most() { return static_cast<long>(null().most); }

// --- kernels -----------------------------------------------------------------------------------------------

void** __cudaRegisterFatBinary(void*) {
  static void* handle[1];
  return handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char*, char*, const char*, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {}

struct Configuration {
  dim3 grid, block;
  size_t shared;
  void* stream;
};
static thread_local std::vector<Configuration> configurations;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  configurations.push_back({grid, block, shared, stream});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  const Configuration last = configurations.back();
  configurations.pop_back();
  *grid = last.grid;
  *block = last.block;
  *shared = last.shared;
  *static_cast<void**>(stream) = last.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3 grid, dim3 block, void**, size_t, cudaStream_t) {
  return count_launch(grid, block);
}
cudaError_t cudaLaunchKernel(const void*, dim3 grid, dim3 block, void**, size_t, cudaStream_t) {
  return count_launch(grid, block);
}
cudaError_t cudaLaunchCooperativeKernel(const void*, dim3 grid, dim3 block, void**, size_t, cudaStream_t) {
  return count_launch(grid, block);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void*, void**) {
  return count_launch(config->gridDim, config->blockDim);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void* data) {
  function(data);
  return cudaSuccess;
}
cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t, cudaFuncAttribute, int, int) { return cudaSuccess; }
cudaError_t cudaLibraryGetKernel(cudaKernel_t* kernel, cudaLibrary_t, const char*) { return made(kernel); }
cudaError_t cudaLibraryLoadData(cudaLibrary_t* library, const void*, cudaJitOption*, void**, unsigned,
                                cudaLibraryOption*, void**, unsigned) {
  return made(library);
}
cudaError_t cudaLibraryUnload(cudaLibrary_t) { return cudaSuccess; }
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 64;
  attributes->ptxVersion = attributes->binaryVersion = 90;
  attributes->maxDynamicSharedSizeBytes = 232448;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t,
                                                                   unsigned) {
  *blocks = 2;
  return cudaSuccess;
}

// --- the device: the numbers of an H200 --------------------------------------------------------------------

constexpr size_t kTotal = size_t{140} << 30;

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = 132;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = 232448;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = 233472;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = 49152;
      break;
    case cudaDevAttrWarpSize:
      *value = 32;
      break;
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      break;
    case cudaDevAttrMaxRegistersPerBlock:
      *value = 65536;
      break;
    case cudaDevAttrMaxGridDimX:
      *value = 2147483647;
      break;
    default:
      *value = 1;
  }
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::strcpy(properties->name, "Null GPU");
  properties->major = 9;
  properties->totalGlobalMem = kTotal;
  properties->sharedMemPerBlock = 49152;
  properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
  properties->maxThreadsDim[2] = 64;
  properties->maxGridSize[0] = 2147483647;
  properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
  properties->multiProcessorCount = 132;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->sharedMemPerMultiprocessor = 233472;
  properties->sharedMemPerBlockOptin = 232448;
  properties->l2CacheSize = 50 << 20;
  properties->concurrentKernels = properties->cooperativeLaunch = properties->unifiedAddressing = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *function = reinterpret_cast<void*>(+[] { return 0; });
  if (result != nullptr) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
const char* cudaGetErrorName(cudaError_t) { return "an error of the null GPU"; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the null GPU"; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
int cuTensorMapEncodeTiled() { return 0; }

// --- memory ------------------------------------------------------------------------------------------------

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  const Lock lock(null().mutex);
  must_not_record("cudaMalloc");
  Null& state = null();
  if (state.used + bytes > kTotal) return cudaErrorMemoryAllocation;
  *pointer =
      mmap(nullptr, pages(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  state.blocks[static_cast<char*>(*pointer)] = bytes;
  state.used += bytes;
  if (state.used > state.most) state.most = state.used;
  return cudaSuccess;
}
cudaError_t cudaFree(void* pointer) {
  const Lock lock(null().mutex);
  if (pointer == nullptr) return cudaSuccess;
  must_not_record("cudaFree");
  const auto found = null().blocks.find(static_cast<char*>(pointer));
  if (found == null().blocks.end()) return cudaErrorInvalidValue;
  munmap(pointer, pages(found->second));
  null().used -= found->second;
  null().blocks.erase(found);
  return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t) { return cudaFree(pointer); }
cudaError_t cudaMallocFromPoolAsync(void** pointer, size_t bytes, cudaMemPool_t, cudaStream_t) {
  return cudaMalloc(pointer, bytes);
}
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  must_not_record("cudaHostAlloc");
  *pointer = std::aligned_alloc(4096, pages(bytes));
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** pointer, size_t bytes) { return cudaHostAlloc(pointer, bytes, 0); }
cudaError_t cudaFreeHost(void* pointer) {
  std::free(pointer);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  *total = kTotal;
  *free_bytes = kTotal - null().used;
  return cudaSuccess;
}
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) { return made(pool); }
cudaError_t cudaMemPoolDestroy(cudaMemPool_t) { return cudaSuccess; }
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* value) {
  *static_cast<uint64_t*>(value) = 0;
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const Lock lock(null().mutex);
  *attributes = {};
  attributes->type = on_device(pointer) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  attributes->devicePointer = const_cast<void*>(pointer);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  must_not_record("cudaMemcpy");
  return copy(to, from, bytes);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  // A recording would read or write the host's memory of then at every replay.
  if (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToHost) must_not_record("a host copy");
  return copy(to, from, bytes);
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind, cudaStream_t) {
  for (size_t i = 0; i < height; ++i) {
    copy(static_cast<char*>(to) + i * to_pitch, static_cast<const char*>(from) + i * from_pitch, width);
  }
  return cudaSuccess;
}
cudaError_t cudaMemcpyFromSymbol(void* to, const void*, size_t bytes, size_t, cudaMemcpyKind) {
  std::memset(to, 0, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemset(void* pointer, int value, size_t bytes) {
  std::memset(pointer, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(pointer, value, bytes);
}

// --- streams, events, graphs -------------------------------------------------------------------------------

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return made(stream); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return made(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return wait("cudaStreamSynchronize"); }
cudaError_t cudaDeviceSynchronize() { return wait("cudaDeviceSynchronize"); }
cudaError_t cudaEventCreate(cudaEvent_t* event) { return made(event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return made(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  std::free(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t, cudaStream_t, unsigned) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return wait("cudaEventSynchronize"); }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 1;
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const Lock lock(null().mutex);
  null().recording.insert(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Lock lock(null().mutex);
  null().recording.erase(stream);
  return made(graph);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const Lock lock(null().mutex);
  *status = null().recording.count(stream) > 0 ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t, unsigned long long) {
  return made(executable);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) {
  ++null().replays;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  std::free(graph);
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  std::free(executable);
  return cudaSuccess;
}

// --- cuBLAS ------------------------------------------------------------------------------------------------

#define HANDLE(name) \
  int name(void** handle) { return made(handle); }
HANDLE(cublasCreate_v2)
HANDLE(cublasLtCreate)
HANDLE(cublasLtMatmulDescCreate)
HANDLE(cublasLtMatmulPreferenceCreate)
HANDLE(cublasLtMatrixLayoutCreate)
HANDLE(cublasLtMatrixTransformDescCreate)

#define PRODUCT(name)  \
  int name() {         \
    ++null().products; \
    return 0;          \
  }
PRODUCT(cublasDgemmBatched)
PRODUCT(cublasDgemmStridedBatched)
PRODUCT(cublasDgemm_v2)
PRODUCT(cublasGemmBatchedEx)
PRODUCT(cublasGemmEx)
PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasSgemmBatched)
PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasSgemm_v2)
PRODUCT(cublasLtMatmul)

#define NOTHING(name) \
  int name() { return 0; }
NOTHING(cublasDestroy_v2)
NOTHING(cublasDgeam)
NOTHING(cublasDgetrfBatched)
NOTHING(cublasDgetriBatched)
NOTHING(cublasLtDestroy)
NOTHING(cublasLtMatmulAlgoConfigSetAttribute)
NOTHING(cublasLtMatmulAlgoInit)
NOTHING(cublasLtMatmulDescDestroy)
NOTHING(cublasLtMatmulDescSetAttribute)
NOTHING(cublasLtMatmulPreferenceDestroy)
NOTHING(cublasLtMatmulPreferenceSetAttribute)
NOTHING(cublasLtMatrixLayoutDestroy)
NOTHING(cublasLtMatrixLayoutSetAttribute)
NOTHING(cublasLtMatrixTransform)
NOTHING(cublasLtMatrixTransformDescDestroy)
NOTHING(cublasScopy_v2)
NOTHING(cublasSetMathMode)
NOTHING(cublasSetStream_v2)
NOTHING(cublasSgeam)
NOTHING(cublasSgetrfBatched)
NOTHING(cublasSgetriBatched)
NOTHING(cublasSscal_v2)

int cublasGetMathMode(void*, int* mode) {
  *mode = 0;
  return 0;
}
const char* cublasGetStatusName(int) { return "a status of the null GPU"; }
const char* cublasGetStatusString(int) { return "a status of the null GPU"; }
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void* results,
                                   int* count) {
  constexpr size_t kResultBytes = 96;  // sizeof(cublasLtMatmulHeuristicResult_t)
  std::memset(results, 0, kResultBytes);
  *count = 1;
  return 0;
}

// --- cuDNN -------------------------------------------------------------------------------------------------

HANDLE(cudnnCreate)
NOTHING(cudnnDestroy)
NOTHING(cudnnSetStream)
size_t cudnnGetVersion() { return 91000; }
const char* cudnnGetErrorString(int) { return "an error of the null GPU"; }

}  // extern "C"
