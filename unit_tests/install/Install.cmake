# SPDX-License-Identifier: Apache-2.0
#
# Builds and runs the outside consumer: cmake -DWAY=package|subdirectory -DSOURCE=<KokkosMX>
# -DBUILD=<its build folder> -DWORK=<folder> -DKOKKOS=<Kokkos_DIR> -DGENERATOR=... -DCOMPILER=...
# [-DCONFIG=<configuration>] -P Install.cmake
cmake_policy(VERSION 3.25)

function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ECHO STDOUT COMMAND_ERROR_IS_FATAL ANY)
endfunction()

if(NOT CONFIG)
  set(CONFIG Release)
endif()
file(REMOVE_RECURSE "${WORK}")
if(WAY STREQUAL "package")
  run(${CMAKE_COMMAND} --install "${BUILD}" --prefix "${WORK}/prefix" --config ${CONFIG})
  # A copy under another name: what is installed does not point back.
  file(RENAME "${WORK}/prefix" "${WORK}/moved")
  set(options -DCMAKE_PREFIX_PATH=${WORK}/moved)
else()
  set(options -DKokkosMX_SOURCE_DIR=${SOURCE})
endif()
run(${CMAKE_COMMAND} -S "${SOURCE}/unit_tests/install" -B "${WORK}/build" -G "${GENERATOR}"
    -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_BUILD_TYPE=${CONFIG} -DKokkos_DIR=${KOKKOS}
    -DREADME=${SOURCE}/README.md ${options})
run(${CMAKE_COMMAND} --build "${WORK}/build" --config ${CONFIG})
run(${CMAKE_CTEST_COMMAND} --test-dir "${WORK}/build" --build-config ${CONFIG} --verbose)
