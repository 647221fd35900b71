# SPDX-License-Identifier: Apache-2.0
include(CMakePackageConfigHelpers)

set(KokkosMX_CONFIG_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/KokkosMX)

# The library's binary interface is that of the Kokkos it was built with.
set(KokkosMX_KOKKOS_BUILT ${KokkosMX_KOKKOS_MINIMUM})
if(Kokkos_VERSION)
  string(REGEX MATCH "^[0-9]+\\.[0-9]+" KokkosMX_KOKKOS_BUILT "${Kokkos_VERSION}")
endif()

install(
  TARGETS kokkosmx
  EXPORT KokkosMXTargets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR}
  FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT KokkosMXTargets NAMESPACE KokkosMX:: DESTINATION ${KokkosMX_CONFIG_DIR})

configure_package_config_file(
  ${PROJECT_SOURCE_DIR}/cmake/KokkosMXConfig.cmake.in
  ${PROJECT_BINARY_DIR}/cmake/KokkosMXConfig.cmake
  INSTALL_DESTINATION ${KokkosMX_CONFIG_DIR}
  NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/cmake/KokkosMXConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/cmake/KokkosMXConfig.cmake
              ${PROJECT_BINARY_DIR}/cmake/KokkosMXConfigVersion.cmake
        DESTINATION ${KokkosMX_CONFIG_DIR})
