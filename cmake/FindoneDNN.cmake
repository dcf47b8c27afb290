# Finds oneDNN >= the version asked for, as the imported target oneDNN::dnnl.
#
# Searched in this order: oneDNN_ROOT, third_party/onednn (made by tools/setup.sh from the vendor's
# wheels when the distribution's package is too old), the system. tools/setup.sh explains which
# wheels and why.

set(_oneDNN_hints ${oneDNN_ROOT} $ENV{oneDNN_ROOT} ${CMAKE_SOURCE_DIR}/third_party/onednn)

find_path(oneDNN_INCLUDE_DIR oneapi/dnnl/dnnl.hpp HINTS ${_oneDNN_hints} PATH_SUFFIXES include)
find_library(oneDNN_LIBRARY dnnl HINTS ${_oneDNN_hints} PATH_SUFFIXES lib)
mark_as_advanced(oneDNN_INCLUDE_DIR oneDNN_LIBRARY)

if(oneDNN_INCLUDE_DIR)
  file(STRINGS "${oneDNN_INCLUDE_DIR}/oneapi/dnnl/dnnl_version.h" _lines
       REGEX "#define DNNL_VERSION_(MAJOR|MINOR|PATCH) +[0-9]+")
  set(oneDNN_VERSION "")
  foreach(_part MAJOR MINOR PATCH)
    if("${_lines}" MATCHES "DNNL_VERSION_${_part} +([0-9]+)")
      list(APPEND oneDNN_VERSION ${CMAKE_MATCH_1})
    endif()
  endforeach()
  list(JOIN oneDNN_VERSION "." oneDNN_VERSION)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  oneDNN
  REQUIRED_VARS oneDNN_LIBRARY oneDNN_INCLUDE_DIR
  VERSION_VAR oneDNN_VERSION REASON_FAILURE_MESSAGE "run tools/setup.sh, which provides it")

if(oneDNN_FOUND AND NOT TARGET oneDNN::dnnl)
  add_library(oneDNN::dnnl SHARED IMPORTED)
  set_target_properties(
    oneDNN::dnnl PROPERTIES IMPORTED_LOCATION "${oneDNN_LIBRARY}"
                            INTERFACE_INCLUDE_DIRECTORIES "${oneDNN_INCLUDE_DIR}")
endif()
