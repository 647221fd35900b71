# SPDX-License-Identifier: Apache-2.0
# A Kokkos installation for machines that have none: the Python wheel of pygenten (Sandia's tensor
# package) carries Kokkos 4.7.0 (OpenMP, shared), Kokkos-Kernels 4.4 on OpenBLAS, and GoogleTest.
#
#   kokkosmx_wheel_prefix(<variable>)
#
# sets <variable> to an install prefix that find_package can use like any other. The wheel is
# downloaded once and checked by its hash, unpacked (nothing of it is executed), and repaired:
#   1. lib is made a link to lib64, where its package files are;
#   2. its private OpenMP runtime becomes a link to the compiler's own one: two runtimes in one
#      process would each start their threads. The dynamic loader knows a file it has already
#      loaded by its inode, so one runtime is left whatever name it is asked for by. Both
#      libgomp and libomp have the GOMP_4.0 and OMP_3.0 symbols that Kokkos asks for;
#   3. the BLAS targets of Kokkos-Kernels name a file of the machine that built the wheel. They now
#      only tell the linker where the wheel's OpenBLAS is: libkokkoskernels.so loads it by its own
#      RPATH, which, unlike a program's RUNPATH, also finds what OpenBLAS needs in its turn.
# KokkosMX_WHEEL_DIR may name a folder that several build folders share.

set(KokkosMX_WHEEL_DIR "${CMAKE_BINARY_DIR}/kokkos-wheel" CACHE PATH
    "Where the wheel with Kokkos is downloaded and unpacked")

set(_kokkosmx_wheel_name pygenten)
set(_kokkosmx_wheel_version 0.1.5)
# Only the C++ parts are used: the wheel for one Python does for every machine.
set(_kokkosmx_wheel_tags --implementation cp --python-version 3.11 --abi cp311 --platform
                         manylinux_2_28_x86_64)
set(_kokkosmx_wheel_sha256 01bb48a183b6f54c7691acef80fd04c190641311c7c7a55f63c1c6a9897173de)

set(_kokkosmx_wheel_alternative
    "Or install Kokkos ${KokkosMX_KOKKOS_MINIMUM} or newer and name its prefix in Kokkos_ROOT.")

# The file of the OpenMP runtime that the compiler's own -fopenmp programs load.
function(_kokkosmx_openmp_runtime variable)
  find_package(OpenMP QUIET COMPONENTS CXX)
  if(NOT OpenMP_CXX_FOUND)
    if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
      string(REGEX MATCH "^[0-9]+" major "${CMAKE_CXX_COMPILER_VERSION}")
      set(hint " (Debian, Ubuntu: apt install libomp-${major}-dev)")
    endif()
    message(FATAL_ERROR "KokkosMX: ${CMAKE_CXX_COMPILER} has no OpenMP, which the Kokkos of the "
                        "wheel is built with. Install its OpenMP library${hint}. "
                        "${_kokkosmx_wheel_alternative}")
  endif()
  foreach(library IN LISTS OpenMP_CXX_LIBRARIES)
    get_filename_component(stem "${library}" NAME_WE)
    if(stem MATCHES "^lib(gomp|i?omp5?)$")
      file(REAL_PATH "${library}" real)
      set(${variable} "${real}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
  message(FATAL_ERROR "KokkosMX: the OpenMP runtime of ${CMAKE_CXX_COMPILER} is not among "
                      "\"${OpenMP_CXX_LIBRARIES}\". ${_kokkosmx_wheel_alternative}")
endfunction()

# A command line that runs pip: the interpreter's own, else one in a virtual environment.
function(_kokkosmx_pip variable)
  find_program(KokkosMX_PYTHON NAMES python3 python)
  mark_as_advanced(KokkosMX_PYTHON)
  if(NOT KokkosMX_PYTHON)
    message(FATAL_ERROR "KokkosMX: no Kokkos and no Python to get it with. Install Python "
                        "(Debian, Ubuntu: apt install python3 python3-venv). "
                        "${_kokkosmx_wheel_alternative}")
  endif()
  execute_process(COMMAND ${KokkosMX_PYTHON} -m pip --version RESULT_VARIABLE failed OUTPUT_QUIET
                          ERROR_QUIET)
  if(NOT failed)
    set(${variable} ${KokkosMX_PYTHON} -m pip PARENT_SCOPE)
    return()
  endif()
  set(venv "${KokkosMX_WHEEL_DIR}/venv")
  execute_process(COMMAND ${KokkosMX_PYTHON} -m venv "${venv}" RESULT_VARIABLE failed
                  OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(failed)
    file(REMOVE_RECURSE "${venv}")
    message(FATAL_ERROR "KokkosMX: no Kokkos, and ${KokkosMX_PYTHON} has neither pip nor venv to "
                        "get it with. Install them (Debian, Ubuntu: apt install python3-venv). "
                        "${_kokkosmx_wheel_alternative}\n${output}")
  endif()
  set(${variable} "${venv}/bin/python" -m pip PARENT_SCOPE)
endfunction()

function(_kokkosmx_download_wheel variable)
  set(folder "${KokkosMX_WHEEL_DIR}/download")
  file(GLOB wheel "${folder}/${_kokkosmx_wheel_name}-${_kokkosmx_wheel_version}-*.whl")
  if(wheel)
    file(SHA256 "${wheel}" hash)
  endif()
  if(NOT wheel OR NOT hash STREQUAL _kokkosmx_wheel_sha256)
    file(REMOVE_RECURSE "${folder}")
    file(MAKE_DIRECTORY "${folder}")
    _kokkosmx_pip(pip)
    message(STATUS "KokkosMX: downloading ${_kokkosmx_wheel_name} ${_kokkosmx_wheel_version} "
                   "(26 MB) for its Kokkos")
    file(WRITE "${folder}/requirements.txt"
         "${_kokkosmx_wheel_name}==${_kokkosmx_wheel_version} "
         "--hash=sha256:${_kokkosmx_wheel_sha256}\n")
    execute_process(
      COMMAND ${pip} download --quiet --disable-pip-version-check --no-deps --only-binary=:all:
              --require-hashes ${_kokkosmx_wheel_tags} --dest "${folder}" --requirement
              "${folder}/requirements.txt"
      RESULT_VARIABLE failed
      OUTPUT_VARIABLE output
      ERROR_VARIABLE output)
    file(GLOB wheel "${folder}/${_kokkosmx_wheel_name}-${_kokkosmx_wheel_version}-*.whl")
    if(failed OR NOT wheel)
      message(FATAL_ERROR "KokkosMX: pip could not download ${_kokkosmx_wheel_name} "
                          "${_kokkosmx_wheel_version}. ${_kokkosmx_wheel_alternative}\n${output}")
    endif()
  endif()
  set(${variable} "${wheel}" PARENT_SCOPE)
endfunction()

function(kokkosmx_wheel_prefix variable)
  if(NOT (CMAKE_SYSTEM_NAME STREQUAL "Linux" AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64"))
    message(FATAL_ERROR "KokkosMX: no Kokkos was found, and the wheel with one exists for Linux on "
                        "x86-64 only. ${_kokkosmx_wheel_alternative}")
  endif()

  # One unpacked copy for each OpenMP runtime that it is linked to.
  _kokkosmx_openmp_runtime(runtime)
  string(MD5 key "${runtime} ${_kokkosmx_wheel_sha256}")
  string(SUBSTRING "${key}" 0 8 key)
  get_filename_component(stem "${runtime}" NAME_WE)
  set(name "${_kokkosmx_wheel_name}-${_kokkosmx_wheel_version}-${stem}-${key}")
  set(root "${KokkosMX_WHEEL_DIR}/${name}")
  set(${variable} "${root}/${_kokkosmx_wheel_name}" PARENT_SCOPE)

  file(MAKE_DIRECTORY "${KokkosMX_WHEEL_DIR}")
  file(LOCK "${KokkosMX_WHEEL_DIR}/lock" GUARD FUNCTION)
  if(EXISTS "${root}/complete")
    return()
  endif()
  _kokkosmx_download_wheel(wheel)
  file(REMOVE_RECURSE "${root}")
  file(
    ARCHIVE_EXTRACT
    INPUT "${wheel}"
    DESTINATION "${root}"
    PATTERNS
      "${_kokkosmx_wheel_name}/include/gtest/*"
      "${_kokkosmx_wheel_name}/include/gmock/*"
      "${_kokkosmx_wheel_name}/include/kokkos*"
      "${_kokkosmx_wheel_name}/lib64/cmake/GTest/*"
      "${_kokkosmx_wheel_name}/lib64/cmake/Kokkos*"
      "${_kokkosmx_wheel_name}/lib64/libg[tm][eo][sc]*" # gtest, gmock
      "${_kokkosmx_wheel_name}/lib64/libkokkos*"
      "${_kokkosmx_wheel_name}.libs/lib[gq][fu]*" # gfortran, quadmath
      "${_kokkosmx_wheel_name}.libs/libgomp*"
      "${_kokkosmx_wheel_name}.libs/libopenblas*"
      "${_kokkosmx_wheel_name}-*.dist-info/licenses/*")
  set(prefix "${root}/${_kokkosmx_wheel_name}")
  file(CREATE_LINK lib64 "${prefix}/lib" SYMBOLIC)

  file(GLOB gomp "${root}/${_kokkosmx_wheel_name}.libs/libgomp-*.so*")
  file(REMOVE "${gomp}")
  file(CREATE_LINK "${runtime}" "${gomp}" SYMBOLIC)

  set(targets "${prefix}/lib64/cmake/KokkosKernels/KokkosKernelsTargets.cmake")
  file(READ "${targets}" text)
  string(REPLACE "/usr/lib64/libopenblas.so"
                 "-Wl,-rpath-link,\${_IMPORT_PREFIX}/../${_kokkosmx_wheel_name}.libs" text
                 "${text}")
  file(WRITE "${targets}" "${text}")
  file(TOUCH "${root}/complete")
endfunction()
