#include "CMartletKernels.h"

static const unsigned char common[] = {
#embed "kernels/common.cuh"
};
static const unsigned char element[] = {
#embed "kernels/element.cuh"
};
static const unsigned char sm90[] = {
#embed "kernels/sm90.cuh"
};
static const unsigned char routing[] = {
#embed "kernels/routing.cu"
};
static const unsigned char grouped_gemm_sm90[] = {
#embed "kernels/grouped_gemm_sm90.cu"
};
static const unsigned char combine[] = {
#embed "kernels/combine.cu"
};
static const unsigned char lora_pack[] = {
#embed "kernels/lora_pack.cu"
};
static const unsigned char lora_project[] = {
#embed "kernels/lora_project.cu"
};
static const unsigned char lora_gradient[] = {
#embed "kernels/lora_gradient.cu"
};
static const unsigned char router[] = {
#embed "kernels/router.cu"
};
static const unsigned char cross_entropy[] = {
#embed "kernels/cross_entropy.cu"
};
static const unsigned char optimizer[] = {
#embed "kernels/optimizer.cu"
};

static const MartletKernelSource sources[] = {
    {"common.cuh", common, sizeof common},
    {"element.cuh", element, sizeof element},
    {"sm90.cuh", sm90, sizeof sm90},
    {"routing.cu", routing, sizeof routing},
    {"grouped_gemm_sm90.cu", grouped_gemm_sm90, sizeof grouped_gemm_sm90},
    {"combine.cu", combine, sizeof combine},
    {"lora_pack.cu", lora_pack, sizeof lora_pack},
    {"lora_project.cu", lora_project, sizeof lora_project},
    {"lora_gradient.cu", lora_gradient, sizeof lora_gradient},
    {"router.cu", router, sizeof router},
    {"cross_entropy.cu", cross_entropy, sizeof cross_entropy},
    {"optimizer.cu", optimizer, sizeof optimizer},
};
const MartletKernelSource *const martletKernelSources = sources;
const size_t martletKernelSourceCount = sizeof sources / sizeof *sources;
