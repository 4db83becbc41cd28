# The CUDA library, where nvcc is: a static runtime, so that it loads (and says "no device") on machines without a GPU.
set(GWORLD_CUDA_ARCHITECTURES "80-real;86-real;89-real;90-real;100-real;120" CACHE STRING
  "GPU architectures of the CUDA library; the one without -real is also kept as PTX for later GPUs")

if(GWORLD_CUDA)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_ARCHITECTURES ${GWORLD_CUDA_ARCHITECTURES})
    enable_language(CUDA)
    add_library(gworld_cuda SHARED cuda_render.cu)
    set_target_properties(gworld_cuda PROPERTIES CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON
      CUDA_RUNTIME_LIBRARY Static CUDA_VISIBILITY_PRESET hidden)
    target_include_directories(gworld_cuda PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
    target_compile_definitions(gworld_cuda PRIVATE "GW_VERSION=\"${PROJECT_VERSION}\"")
    target_compile_options(gworld_cuda PRIVATE --threads=0)
    target_link_options(gworld_cuda PRIVATE LINKER:--exclude-libs,ALL)
    install(TARGETS gworld_cuda LIBRARY DESTINATION gworld)
  else()
    message(STATUS "gworld: no nvcc; the CUDA renderer is left out")
  endif()
endif()

# The same kernels run on the CPU, phase by phase: what tests check where no GPU is. Not installed, not in `all`.
add_library(gworld_cuda_emulated SHARED EXCLUDE_FROM_ALL cuda_emulated.cpp)
target_include_directories(gworld_cuda_emulated PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
target_compile_definitions(gworld_cuda_emulated PRIVATE "GW_VERSION=\"${PROJECT_VERSION}\"")
target_compile_options(gworld_cuda_emulated PRIVATE -Wall -Wextra -fvisibility=hidden)
