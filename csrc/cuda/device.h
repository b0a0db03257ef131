#pragma once

#include <cstdint>
#include <string>

namespace qwen2vl::cuda {

// What this process finds of NVIDIA's driver and GPUs. The CUDA runtime is linked in statically and looks the
// driver up when it is first called, so that asking is safe on a machine that has none.
struct DeviceStatus {
  int devices = 0;
  std::string reason;  // why there are none, empty otherwise
};
DeviceStatus device_status();

struct DeviceInfo {
  std::string name;
  int compute_capability = 0;               // 90 for 9.0
  int64_t total_bytes = 0, free_bytes = 0;  // of device memory, now
  bool integrated = false;                  // shares the system's memory (Jetson)
  int driver_version = 0;                   // the CUDA version that the driver supports, 13000 for 13.0
};
// Throws DeviceError for a device that does not exist. Creates the device's context in this process.
DeviceInfo device_info(int device);

// The number of the GPU whose memory an address is in; -1 for the host's.
int device_of(const void* pointer);

// The CUDA toolkit that the module was built with, 13000 for 13.0.
int toolkit_version();

}  // namespace qwen2vl::cuda
