# The CUDA half, an extension module of its own (_cuda) that is imported on demand. AUTO builds it where nvcc
# is found (in PATH, CUDACXX, CUDA_HOME or /usr/local/cuda); OFF leaves it out, ON insists on it; EMULATED builds
# it for a GPU that the CPU emulates, for tests (tests/emulated_cuda).
#
#     CMAKE_ARGS=-DQWEN2VL_CUDA=OFF pip install .
set(QWEN2VL_CUDA AUTO CACHE STRING "Build the CUDA kernels: AUTO, ON, OFF or EMULATED")
set_property(CACHE QWEN2VL_CUDA PROPERTY STRINGS AUTO ON OFF EMULATED)

# The one list of GPU architectures; what the toolkit at hand doesn't know is left out.
#   8.0 A100   8.6 RTX 30   8.7 Jetson Orin   8.9 RTX 40, L4   9.0 H100, H200   11.0 Jetson Thor   12.0 RTX 50
set(QWEN2VL_CUDA_ARCHITECTURES "80;86;87;89;90;110;120" CACHE STRING "GPU architectures, as sm_ numbers")

# Off where the package is installed: a newer compiler may warn of what this one's doesn't.
option(QWEN2VL_WARNINGS_AS_ERRORS "Stop the build at a warning of nvcc's" OFF)

file(GLOB kernels CONFIGURE_DEPENDS csrc/*/*.cu)
file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/cuda/*.cc csrc/cuda/bindings/*.cc)

if(QWEN2VL_CUDA STREQUAL "OFF")
  return()
endif()
find_program(QWEN2VL_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
# -fmad=false: the same roundings as on the CPU, twin by twin.
set(QWEN2VL_NVCC_FLAGS -fmad=false --expt-relaxed-constexpr)

if(QWEN2VL_CUDA STREQUAL "EMULATED")
  include(tests/emulated_cuda/emulated.cmake)
  return()
endif()
if(NOT CMAKE_CUDA_COMPILER)
  if(NOT QWEN2VL_NVCC)
    if(QWEN2VL_CUDA STREQUAL "ON")
      message(FATAL_ERROR "QWEN2VL_CUDA=ON, and nvcc is neither in PATH nor in CUDA_HOME or /usr/local/cuda")
    endif()
    message(STATUS "nvcc not found: building without the CUDA kernels")
    return()
  endif()
  set(CMAKE_CUDA_COMPILER ${QWEN2VL_NVCC})
endif()

execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE known_codes)
string(REGEX MATCHALL "sm_[0-9]+" known_codes "${known_codes}")
set(architectures)
foreach(architecture IN LISTS QWEN2VL_CUDA_ARCHITECTURES)
  if("sm_${architecture}" IN_LIST known_codes)
    list(APPEND architectures ${architecture})
  endif()
endforeach()
# Machine code for each. PTX, which the driver compiles: 9.0's for what lies between (10.0, 10.3), the last one's for
# GPUs newer than the list.
list(TRANSFORM architectures APPEND "-real" OUTPUT_VARIABLE CMAKE_CUDA_ARCHITECTURES)
list(GET architectures -1 newest)
list(APPEND CMAKE_CUDA_ARCHITECTURES "${newest}-virtual")
if("90" IN_LIST architectures)
  list(APPEND CMAKE_CUDA_ARCHITECTURES "90-virtual")
endif()
list(REMOVE_DUPLICATES CMAKE_CUDA_ARCHITECTURES)

set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
# The runtime is linked in: the module needs no toolkit where it is used, and looks the driver up when called.
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

pybind11_add_module(_cuda MODULE NO_EXTRAS ${cuda_sources} ${kernels})
target_link_libraries(_cuda PRIVATE qwen2vl_core CUDA::cudart_static)
string(REPLACE ";" " " architecture_list "${architectures}")
target_compile_definitions(_cuda PRIVATE QWEN2VL_CUDA_ARCHITECTURES="${architecture_list}"
                                         QWEN2VL_CUDA_NEWEST=${newest})
target_compile_options(_cuda PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra>
                                     "$<$<COMPILE_LANGUAGE:CUDA>:${QWEN2VL_NVCC_FLAGS};-Xcompiler=-Wall>"
                                     $<$<AND:$<BOOL:${QWEN2VL_WARNINGS_AS_ERRORS}>,$<COMPILE_LANGUAGE:CUDA>>:-Werror=all-warnings>)
install(TARGETS _cuda LIBRARY DESTINATION qwen2vl_rt)
message(STATUS "CUDA ${CMAKE_CUDA_COMPILER_VERSION}: kernels for ${architecture_list}")
