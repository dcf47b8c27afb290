# Where each outside library comes from: the distribution's packages, installed by tools/setup.sh;
# only oneDNN may come from third_party/ (see cmake/FindoneDNN.cmake).

find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(absl REQUIRED)
find_package(hwy REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(CLI11 REQUIRED)
find_package(oneDNN 3.2 REQUIRED)
pkg_check_modules(hwloc REQUIRED IMPORTED_TARGET hwloc)
pkg_check_modules(pcre2 REQUIRED IMPORTED_TARGET libpcre2-8)

if(TANDEM_TESTS)
  find_package(GTest REQUIRED)
endif()
if(TANDEM_BENCH)
  find_package(benchmark REQUIRED)
endif()

# The CUDA toolkit: tandem_have_cuda says whether cuda/ is compiled against it.
set(tandem_have_cuda OFF)
if(NOT TANDEM_CUDA MATCHES "^(ON|OFF|AUTO)$")
  message(FATAL_ERROR "TANDEM_CUDA is '${TANDEM_CUDA}'; expected ON, OFF or AUTO")
endif()
if(NOT TANDEM_CUDA STREQUAL "OFF")
  # CMake 3.25 as Debian 12 has it sets a property of this target without asking whether the toolkit still
  # brings it, which it does not from 13.0 on. Nobody links it.
  if(CMAKE_VERSION VERSION_LESS 3.28 AND NOT TARGET CUDA::nvToolsExt)
    add_library(CUDA::nvToolsExt INTERFACE IMPORTED)
  endif()
  find_package(CUDAToolkit QUIET)
  if(CUDAToolkit_FOUND AND TARGET CUDA::cudart_static AND CUDAToolkit_NVCC_EXECUTABLE)
    set(tandem_have_cuda ON)
    if(NOT CMAKE_CUDA_COMPILER)
      set(CMAKE_CUDA_COMPILER ${CUDAToolkit_NVCC_EXECUTABLE})
    endif()
    # sm_80 for everything from Ampere on; sm_90a for what only Hopper has. sm_80's PTX serves the rest.
    set(TANDEM_CUDA_ARCHITECTURES "80;90a" CACHE STRING "GPU architectures, as CMAKE_CUDA_ARCHITECTURES")
    set(CMAKE_CUDA_ARCHITECTURES ${TANDEM_CUDA_ARCHITECTURES})
    set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
    enable_language(CUDA)
    if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc has it
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    endif()
  elseif(TANDEM_CUDA STREQUAL "ON")
    message(FATAL_ERROR "TANDEM_CUDA=ON, but no CUDA toolkit with nvcc and a static runtime was found "
                        "(looked on PATH, in CUDAToolkit_ROOT and in /usr/local/cuda)")
  endif()
endif()

message(STATUS "Tandem: oneDNN ${oneDNN_VERSION} (${oneDNN_LIBRARY})")
if(tandem_have_cuda)
  message(STATUS "Tandem: CUDA backend with toolkit ${CUDAToolkit_VERSION}")
else()
  message(STATUS "Tandem: CPU only (TANDEM_CUDA=${TANDEM_CUDA})")
endif()
