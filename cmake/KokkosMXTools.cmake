# SPDX-License-Identifier: Apache-2.0
# Checks of the machine whose messages say what to install.

if(CMAKE_GENERATOR MATCHES "Ninja" AND NOT CMAKE_MAKE_PROGRAM)
  find_program(KokkosMX_NINJA NAMES ninja ninja-build samu)
  mark_as_advanced(KokkosMX_NINJA)
  if(NOT KokkosMX_NINJA)
    message(FATAL_ERROR "KokkosMX: Ninja was not found. Install it (Debian, Ubuntu: "
                        "apt install ninja-build), or choose another generator with cmake -G.")
  endif()
endif()

if(NOT CMAKE_CXX_COMPILER AND NOT DEFINED ENV{CXX} AND NOT CMAKE_TOOLCHAIN_FILE)
  find_program(KokkosMX_CXX NAMES c++ g++ clang++)
  mark_as_advanced(KokkosMX_CXX)
  if(NOT KokkosMX_CXX)
    message(FATAL_ERROR "KokkosMX: no C++ compiler was found. Install g++ 12 or newer, or clang 16 "
                        "or newer (Debian, Ubuntu: apt install g++).")
  endif()
endif()

function(kokkosmx_check_compiler)
  foreach(pair IN ITEMS "GNU:12" "Clang:16")
    string(REPLACE ":" ";" pair "${pair}")
    list(GET pair 0 id)
    list(GET pair 1 oldest)
    if(CMAKE_CXX_COMPILER_ID STREQUAL id AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS oldest)
      message(FATAL_ERROR "KokkosMX: ${CMAKE_CXX_COMPILER} is ${id} "
                          "${CMAKE_CXX_COMPILER_VERSION}; ${oldest} or newer is needed.")
    endif()
  endforeach()
endfunction()

function(kokkosmx_warnings target)
  if(KokkosMX_ENABLE_WERROR)
    target_compile_options(${target} PRIVATE -Wall -Wextra -Werror)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
      # g++ 12 sees overlap in "literal" + std::string (GCC bug 105651), and the undefined operands
      # of its own AVX-512 intrinsics (GCC bug 105593).
      target_compile_options(${target} PRIVATE -Wno-restrict -Wno-uninitialized
                                               -Wno-maybe-uninitialized)
    endif()
  endif()
endfunction()
