# The CUDA engine: a library of its own, which the core loads at run time where it is. So an
# installation without it is the same as ever.
#
# RWKV_CHAT_CUDA=AUTO  built where a CUDA compiler and a GPU are, for that GPU; nothing can fail
# RWKV_CHAT_CUDA=ON    built for every GPU that the compiler knows; takes minutes
# RWKV_CHAT_CUDA=OFF   not built
# RWKV_CHAT_CUDA_ARCHITECTURES  such as 86;90, instead of what AUTO and ON choose
set(RWKV_CHAT_CUDA AUTO CACHE STRING "Whether to build the CUDA engine: AUTO, ON or OFF")
set(RWKV_CHAT_CUDA_ARCHITECTURES "" CACHE STRING "For which GPUs; empty: chosen by RWKV_CHAT_CUDA")

set(CUDA_WANTED ${RWKV_CHAT_CUDA})
find_program(RWKV_CHAT_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
if(CUDA_WANTED STREQUAL "AUTO")
  set(CUDA_WANTED OFF)
  find_program(RWKV_CHAT_SMI nvidia-smi)
  if(RWKV_CHAT_NVCC AND RWKV_CHAT_SMI)
    execute_process(COMMAND ${RWKV_CHAT_SMI} --query-gpu=compute_cap --format=csv,noheader
      OUTPUT_VARIABLE FOUND RESULT_VARIABLE FAILED ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
    if(FAILED EQUAL 0 AND FOUND MATCHES "^[0-9]")
      string(REPLACE "." "" FOUND "${FOUND}")
      string(REGEX REPLACE "[^0-9]+" ";" FOUND "${FOUND}")
      list(REMOVE_DUPLICATES FOUND)
      set(GPUS ${FOUND})
      set(CUDA_WANTED AUTO)
    endif()
  endif()
endif()
if(NOT CUDA_WANTED)
  return()
endif()
if(NOT RWKV_CHAT_NVCC)
  message(FATAL_ERROR
    "RWKV_CHAT_CUDA is ON, and no CUDA compiler was found. Install the CUDA toolkit (12 or 13) and set "
    "CUDA_HOME, or leave RWKV_CHAT_CUDA away.")
endif()

# nvcc is called directly: CMake's own support for CUDA would make its absence, or its age, an error.
execute_process(COMMAND ${RWKV_CHAT_NVCC} --list-gpu-code OUTPUT_VARIABLE KNOWN
  RESULT_VARIABLE FAILED ERROR_QUIET)
set(TARGETS ${RWKV_CHAT_CUDA_ARCHITECTURES})
if(NOT TARGETS)
  if(CUDA_WANTED STREQUAL "AUTO")
    set(TARGETS ${GPUS})
  else()
    set(TARGETS 75 80 86 89 90 100 120)
  endif()
endif()
set(GENERATED)
foreach(TARGET ${TARGETS})
  if(KNOWN MATCHES "sm_${TARGET}[^0-9a-z]")
    list(APPEND GENERATED "-gencode=arch=compute_${TARGET},code=sm_${TARGET}")
    set(NEWEST ${TARGET})
  endif()
endforeach()
if(NOT GENERATED)
  set(REASON "${RWKV_CHAT_NVCC} knows none of these GPUs: ${TARGETS}.")
  if(CUDA_WANTED STREQUAL "AUTO")
    message(STATUS "Without the CUDA engine: ${REASON}")
    return()
  endif()
  message(FATAL_ERROR "${REASON} Install a newer CUDA toolkit, or leave RWKV_CHAT_CUDA away.")
endif()
# GPUs that are newer than the compiler run what they translate from this.
list(APPEND GENERATED "-gencode=arch=compute_${NEWEST},code=compute_${NEWEST}")

set(CUDA_FLAGS -std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden "-I${PROJECT_SOURCE_DIR}/kernels/include"
  ${GENERATED})
set(CUDA_FOLDER ${CMAKE_CURRENT_BINARY_DIR}/cuda)
file(MAKE_DIRECTORY ${CUDA_FOLDER})
file(GLOB CUDA_SOURCES CONFIGURE_DEPENDS kernels/cuda/*.cu)
file(GLOB CUDA_HEADERS CONFIGURE_DEPENDS kernels/cuda/*.h kernels/cuda/*.cuh kernels/include/rwkv/*.h
  kernels/src/elements.h)
list(APPEND CUDA_SOURCES ${PROJECT_SOURCE_DIR}/kernels/src/loading.cpp
  ${PROJECT_SOURCE_DIR}/kernels/src/spec.cpp)
set(CUDA_OBJECTS)
foreach(SOURCE ${CUDA_SOURCES})
  get_filename_component(NAME ${SOURCE} NAME)
  add_custom_command(OUTPUT ${CUDA_FOLDER}/${NAME}.o
    COMMAND ${RWKV_CHAT_NVCC} ${CUDA_FLAGS} -c ${SOURCE} -o ${CUDA_FOLDER}/${NAME}.o
    DEPENDS ${SOURCE} ${CUDA_HEADERS} VERBATIM)
  list(APPEND CUDA_OBJECTS ${CUDA_FOLDER}/${NAME}.o)
endforeach()
set(CUDA_LIBRARY ${CMAKE_CURRENT_BINARY_DIR}/librwkv_cuda.so)
# The runtime is inside, and hidden: another copy in the same process must not meet this one.
add_custom_command(OUTPUT ${CUDA_LIBRARY}
  COMMAND ${RWKV_CHAT_NVCC} -shared -cudart static ${GENERATED} -Xlinker --exclude-libs,ALL
    -Xlinker -Bsymbolic -o ${CUDA_LIBRARY} ${CUDA_OBJECTS}
  DEPENDS ${CUDA_OBJECTS} VERBATIM)
add_custom_target(rwkv_cuda ALL DEPENDS ${CUDA_LIBRARY})
install(FILES ${CUDA_LIBRARY} DESTINATION rwkv_chat)
