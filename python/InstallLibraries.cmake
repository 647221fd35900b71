# SPDX-License-Identifier: Apache-2.0
# Installs what the extension module needs of Kokkos and OpenMP beside it, under names that do not
# depend on where they come from. Variables: module, patchelf, wheel, kokkos.

set(package "$ENV{DESTDIR}${CMAKE_INSTALL_PREFIX}/kokkosmx")
set(lib "${package}/lib")
file(REMOVE_RECURSE "${lib}")
file(MAKE_DIRECTORY "${lib}")

# Everything else (the C and C++ libraries, the driver of a device) is the machine's.
file(
  GET_RUNTIME_DEPENDENCIES
  MODULES "${module}"
  RESOLVED_DEPENDENCIES_VAR resolved
  UNRESOLVED_DEPENDENCIES_VAR unresolved
  PRE_INCLUDE_REGEXES "^libkokkos" "^libgomp" "^libi?omp"
  PRE_EXCLUDE_REGEXES ".*")
if(unresolved)
  message(FATAL_ERROR "KokkosMX: not found: ${unresolved}")
endif()

function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(failed)
    message(FATAL_ERROR "KokkosMX: ${ARGN}: ${output}")
  endif()
endfunction()

# The name that a library is loaded by.
function(soname file variable)
  execute_process(COMMAND "${patchelf}" --print-soname "${file}" OUTPUT_VARIABLE name
                  OUTPUT_STRIP_TRAILING_WHITESPACE)
  set(${variable} "${name}" PARENT_SCOPE)
endfunction()

file(GLOB installed "${package}/_core.*.so")
set(renamed "")
foreach(file IN LISTS resolved)
  get_filename_component(asked "${file}" NAME)
  file(REAL_PATH "${file}" real)
  soname("${real}" name)
  if(NOT EXISTS "${lib}/${name}")
    file(COPY "${real}" DESTINATION "${lib}")
    get_filename_component(real_name "${real}" NAME)
    if(NOT real_name STREQUAL name)
      file(RENAME "${lib}/${real_name}" "${lib}/${name}")
    endif()
    file(CHMOD "${lib}/${name}" PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ
         GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
    list(APPEND installed "${lib}/${name}")
    message(STATUS "KokkosMX: ${real} as ${name}")
  endif()
  if(NOT asked STREQUAL name)
    list(APPEND renamed --replace-needed "${asked}" "${name}")
  endif()
endforeach()
foreach(file IN LISTS installed)
  set(rpath "$ORIGIN/lib")
  if(file MATCHES "/lib/[^/]*$" AND file MATCHES "^${lib}/")
    set(rpath "$ORIGIN")
  endif()
  run("${patchelf}" ${renamed} --set-rpath "${rpath}" "${file}")
endforeach()

# Their licences.
set(licenses "${package}/licenses")
file(MAKE_DIRECTORY "${licenses}")
if(wheel)
  get_filename_component(root "${wheel}" DIRECTORY)
  file(GLOB_RECURSE texts "${root}/*.dist-info/licenses/*")
  foreach(text IN LISTS texts)
    file(COPY "${text}" DESTINATION "${licenses}/kokkos")
  endforeach()
endif()
if(EXISTS /usr/share/doc/libgomp1/copyright)
  file(COPY /usr/share/doc/libgomp1/copyright DESTINATION "${licenses}/libgomp")
endif()
