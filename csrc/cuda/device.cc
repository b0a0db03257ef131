#include "cuda/device.h"

#include <cuda_runtime_api.h>

#include "cuda/error.h"
#include "cuda/on_device.h"

namespace qwen2vl::cuda {

DeviceStatus device_status() {
  DeviceStatus status;
  const cudaError_t error = cudaGetDeviceCount(&status.devices);
  if (error != cudaSuccess) {
    cudaGetLastError();
    status.devices = 0;
    status.reason = cudaGetErrorString(error);
    int driver = 0;
    if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) status.reason = "no NVIDIA driver";
  } else if (status.devices == 0) {
    status.reason = "no NVIDIA GPU";
  }
  return status;
}

DeviceInfo device_info(int device) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "reading the GPU's properties");
  const OnDevice on(device);
  DeviceInfo info;
  info.name = properties.name;
  info.compute_capability = properties.major * 10 + properties.minor;
  info.integrated = properties.integrated != 0;
  size_t free_bytes = 0, total_bytes = 0;
  check(cudaMemGetInfo(&free_bytes, &total_bytes), "reading the GPU's memory");
  info.free_bytes = static_cast<int64_t>(free_bytes);
  info.total_bytes = static_cast<int64_t>(total_bytes);
  check(cudaDriverGetVersion(&info.driver_version), "reading the driver's version");
  return info;
}

int device_of(const void* pointer) {
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, pointer), "looking an address up");
  const bool device = attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
  return device ? attributes.device : -1;
}

int toolkit_version() { return CUDART_VERSION; }

}  // namespace qwen2vl::cuda
