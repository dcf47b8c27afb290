# How every target of Tandem is compiled.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

# One cache for every build directory: paths below the source tree are hashed as relative ones. A
# launcher that was given is left alone.
find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${CMAKE_SOURCE_DIR}
                                  CCACHE_NOHASHDIR=1 ${CCACHE_PROGRAM})
endif()

add_library(tandem_options INTERFACE)
target_include_directories(tandem_options INTERFACE ${CMAKE_SOURCE_DIR})
target_compile_options(
  tandem_options
  INTERFACE
    -Wall
    -Wextra
    -Wshadow
    -Wnon-virtual-dtor
    # NaN and infinity carry meaning here (masked rows, poisoned padding): never -ffast-math.
    -fno-math-errno
    # The same source gives the same bits whether or not the ISA has fused multiply-add; kernels ask
    # for fusion explicitly.
    -ffp-contract=off)
# GCC warns about inlined standard library and Abseil code it cannot see through, at -O3 only.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  target_compile_options(tandem_options INTERFACE -Wno-maybe-uninitialized -Wno-array-bounds
                                                  -Wno-stringop-overflow -Wno-restrict)
endif()
if(TANDEM_WERROR)
  target_compile_options(tandem_options INTERFACE -Werror)
endif()

if(TANDEM_SANITIZE)
  # -O1: instrumented code is slow either way, and the unrolled SIMD kernels take several times longer to
  # compile at -O2.
  target_compile_options(tandem_options INTERFACE -O1 -g1 -fsanitize=${TANDEM_SANITIZE}
                                                  -fno-omit-frame-pointer)
  target_compile_definitions(tandem_options INTERFACE _GLIBCXX_ASSERTIONS)  # e.g. span bounds
  if(TANDEM_SANITIZE MATCHES "undefined")
    target_compile_options(tandem_options INTERFACE -fno-sanitize-recover=undefined)
  endif()
  target_link_options(tandem_options INTERFACE -fsanitize=${TANDEM_SANITIZE})
endif()
if(TANDEM_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    message(FATAL_ERROR "TANDEM_FUZZ needs clang (libFuzzer); use the 'fuzz' preset")
  endif()
  target_compile_options(tandem_options INTERFACE -fsanitize=fuzzer-no-link)
endif()

# tandem_library(NAME DEPENDS <public targets> PRIVATE_DEPENDS <private targets> SOURCES <files>)
# One static library per folder. SOURCES come from a glob, so that adding a kernel touches no
# CMakeLists.txt. A folder with headers only becomes an interface library.
function(tandem_library name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "DEPENDS;PRIVATE_DEPENDS;SOURCES")
  if(arg_SOURCES)
    add_library(${name} STATIC ${arg_SOURCES})
    target_link_libraries(
      ${name}
      PUBLIC tandem_options ${arg_DEPENDS}
      PRIVATE ${arg_PRIVATE_DEPENDS})
  else()
    add_library(${name} INTERFACE)
    target_link_libraries(${name} INTERFACE tandem_options ${arg_DEPENDS})
  endif()
endfunction()
