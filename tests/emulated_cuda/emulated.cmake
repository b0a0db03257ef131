# The CUDA half for a GPU that the CPU emulates: kernels as the C++ compiler makes them, or as nvcc does.
set(QWEN2VL_EMULATED_PTX "" CACHE STRING "Run what nvcc makes of the kernels, as PTX for this architecture (90)")

set(emulated_cuda tests/emulated_cuda)
file(GLOB emulator CONFIGURE_DEPENDS ${emulated_cuda}/*.cc)
file(GLOB examples CONFIGURE_DEPENDS ${emulated_cuda}/*.cu)
string(REPLACE ";" " " architecture_list "${QWEN2VL_CUDA_ARCHITECTURES}")
set(definitions QWEN2VL_CUDA_ARCHITECTURES="${architecture_list}" QWEN2VL_CUDA_NEWEST=120 QWEN2VL_EMULATED_CUDA)

if(QWEN2VL_EMULATED_PTX)
  if(NOT QWEN2VL_NVCC)
    message(FATAL_ERROR "QWEN2VL_EMULATED_PTX needs nvcc, which is neither in PATH nor in CUDA_HOME or /usr/local/cuda")
  endif()
  set(translator ${CMAKE_CURRENT_SOURCE_DIR}/${emulated_cuda}/ptx)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS csrc/*.cuh csrc/*.h)
  foreach(kernel IN LISTS kernels)
    cmake_path(GET kernel STEM name)
    set(ptx ${CMAKE_CURRENT_BINARY_DIR}/ptx/${name}.ptx)
    add_custom_command(OUTPUT ${ptx}.cc
      COMMAND ${CMAKE_COMMAND} -E make_directory ptx
      COMMAND ${QWEN2VL_NVCC} -ptx -arch=compute_${QWEN2VL_EMULATED_PTX} -O3 -std=c++17 ${QWEN2VL_NVCC_FLAGS}
              -I${CMAKE_CURRENT_SOURCE_DIR}/csrc -o ${ptx} ${kernel}
      COMMAND ${Python_EXECUTABLE} ${translator}/to_cpp.py ${ptx} ${ptx}.cc
      DEPENDS ${kernel} ${sources} ${translator}/ptx.py ${translator}/to_cpp.py VERBATIM)
    list(APPEND translated ${ptx}.cc)
  endforeach()
  # Registers that no instruction has written hold rubbish.
  set_source_files_properties(${translated} PROPERTIES COMPILE_OPTIONS
    "-O1;-ffp-contract=off;-ftrivial-auto-var-init=pattern;-Wno-unused;-Wno-uninitialized;-Wno-maybe-uninitialized")
  list(APPEND emulator ${translator}/translated.cc)
  list(APPEND definitions QWEN2VL_EMULATED_PTX=${QWEN2VL_EMULATED_PTX})
endif()

# Kernels first: of functions that others have, too, theirs are taken, which report their loads and stores.
pybind11_add_module(_cuda MODULE NO_EXTRAS ${kernels} ${examples} ${translated} ${cuda_sources} ${emulator})
set_source_files_properties(${kernels} ${examples} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++")
set_property(SOURCE ${kernels} ${examples} ${translated} APPEND PROPERTY COMPILE_OPTIONS
  -fsanitize=thread --param=tsan-instrument-func-entry-exit=0 -g1)
target_include_directories(_cuda PRIVATE ${emulated_cuda} ${emulated_cuda}/ptx)
target_compile_options(_cuda PRIVATE -Wall -Wextra -Wno-unknown-pragmas -fno-strict-aliasing)
target_link_libraries(_cuda PRIVATE qwen2vl_core ${CMAKE_DL_LIBS})
target_link_options(_cuda PRIVATE -Wl,-T,${CMAKE_CURRENT_SOURCE_DIR}/${emulated_cuda}/shared_memory.ld)
target_compile_definitions(_cuda PRIVATE ${definitions})
install(TARGETS _cuda LIBRARY DESTINATION qwen2vl_rt)
