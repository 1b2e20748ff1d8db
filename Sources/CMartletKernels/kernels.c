#include "CMartletKernels.h"

static const unsigned char common[] = {
#embed "kernels/common.cuh"
};
static const unsigned char sm90[] = {
#embed "kernels/sm90.cuh"
};
static const unsigned char wgmma[] = {
#embed "kernels/wgmma.cuh"
};
static const unsigned char experts[] = {
#embed "kernels/experts.cuh"
};
static const unsigned char routing[] = {
#embed "kernels/routing.cu"
};
static const unsigned char grouped_tile_sm90[] = {
#embed "kernels/grouped_tile_sm90.cuh"
};
static const unsigned char grouped_gemm_low_sm90[] = {
#embed "kernels/grouped_gemm_low_sm90.cu"
};
static const unsigned char grouped_gemm_sm90[] = {
#embed "kernels/grouped_gemm_sm90.cu"
};
static const unsigned char grouped_gemm_dx_sm90[] = {
#embed "kernels/grouped_gemm_dx_sm90.cu"
};
static const unsigned char grouped_gemm_sm80[] = {
#embed "kernels/grouped_gemm_sm80.cu"
};
static const unsigned char combine[] = {
#embed "kernels/combine.cu"
};
static const unsigned char bias[] = {
#embed "kernels/bias.cu"
};
static const unsigned char experts_loop[] = {
#embed "kernels/experts_loop.cu"
};
static const unsigned char lora_pack[] = {
#embed "kernels/lora_pack.cu"
};
static const unsigned char lora_pad[] = {
#embed "kernels/lora_pad.cu"
};
static const unsigned char lora_project[] = {
#embed "kernels/lora_project.cu"
};
static const unsigned char lora_gradient[] = {
#embed "kernels/lora_gradient.cu"
};
static const unsigned char lora_backward_sm90[] = {
#embed "kernels/lora_backward_sm90.cu"
};
static const unsigned char projection_sm90[] = {
#embed "kernels/projection_sm90.cu"
};
static const unsigned char projection_low[] = {
#embed "kernels/projection_low.cu"
};
static const unsigned char projection_gradient[] = {
#embed "kernels/projection_gradient.cu"
};
static const unsigned char turing[] = {
#embed "kernels/turing.cuh"
};
static const unsigned char elements[] = {
#embed "kernels/elements.cuh"
};
static const unsigned char random_header[] = {
#embed "kernels/random.cuh"
};
static const unsigned char elementwise[] = {
#embed "kernels/elementwise.cu"
};
static const unsigned char rms_norm[] = {
#embed "kernels/rms_norm.cu"
};
static const unsigned char rotate[] = {
#embed "kernels/rotate.cu"
};
static const unsigned char embedding[] = {
#embed "kernels/embedding.cu"
};
static const unsigned char reduce[] = {
#embed "kernels/reduce.cu"
};
static const unsigned char random[] = {
#embed "kernels/random.cu"
};
static const unsigned char router[] = {
#embed "kernels/router.cu"
};
static const unsigned char copy[] = {
#embed "kernels/copy.cu"
};
static const unsigned char cross_entropy[] = {
#embed "kernels/cross_entropy.cu"
};
static const unsigned char optimizer[] = {
#embed "kernels/optimizer.cu"
};
static const unsigned char product[] = {
#embed "kernels/product.cu"
};
static const unsigned char turn[] = {
#embed "kernels/turn.cuh"
};
static const unsigned char flash[] = {
#embed "kernels/flash.cuh"
};
static const unsigned char attention_flash[] = {
#embed "kernels/attention_flash.cu"
};
static const unsigned char attention_flash_backward[] = {
#embed "kernels/attention_flash_backward.cu"
};
static const unsigned char attention_sm90[] = {
#embed "kernels/attention_sm90.cuh"
};
static const unsigned char attention_sm90_copies[] = {
#embed "kernels/attention_sm90_copies.cuh"
};
static const unsigned char attention_sm90_forward[] = {
#embed "kernels/attention_sm90_forward.cu"
};
static const unsigned char attention_sm90_backward[] = {
#embed "kernels/attention_sm90_backward.cu"
};
static const unsigned char attention_sm90_finish[] = {
#embed "kernels/attention_sm90_finish.cu"
};
static const unsigned char attention_plain[] = {
#embed "kernels/attention_plain.cu"
};

static const MartletKernelSource sources[] = {
    {"common.cuh", common, sizeof common},
    {"sm90.cuh", sm90, sizeof sm90},
    {"wgmma.cuh", wgmma, sizeof wgmma},
    {"experts.cuh", experts, sizeof experts},
    {"routing.cu", routing, sizeof routing},
    {"grouped_tile_sm90.cuh", grouped_tile_sm90, sizeof grouped_tile_sm90},
    {"grouped_gemm_low_sm90.cu", grouped_gemm_low_sm90, sizeof grouped_gemm_low_sm90},
    {"grouped_gemm_sm90.cu", grouped_gemm_sm90, sizeof grouped_gemm_sm90},
    {"grouped_gemm_dx_sm90.cu", grouped_gemm_dx_sm90, sizeof grouped_gemm_dx_sm90},
    {"grouped_gemm_sm80.cu", grouped_gemm_sm80, sizeof grouped_gemm_sm80},
    {"combine.cu", combine, sizeof combine},
    {"bias.cu", bias, sizeof bias},
    {"experts_loop.cu", experts_loop, sizeof experts_loop},
    {"lora_pack.cu", lora_pack, sizeof lora_pack},
    {"lora_pad.cu", lora_pad, sizeof lora_pad},
    {"lora_project.cu", lora_project, sizeof lora_project},
    {"lora_gradient.cu", lora_gradient, sizeof lora_gradient},
    {"lora_backward_sm90.cu", lora_backward_sm90, sizeof lora_backward_sm90},
    {"projection_sm90.cu", projection_sm90, sizeof projection_sm90},
    {"projection_low.cu", projection_low, sizeof projection_low},
    {"projection_gradient.cu", projection_gradient, sizeof projection_gradient},
    {"turing.cuh", turing, sizeof turing},
    {"elements.cuh", elements, sizeof elements},
    {"random.cuh", random_header, sizeof random_header},
    {"elementwise.cu", elementwise, sizeof elementwise},
    {"rms_norm.cu", rms_norm, sizeof rms_norm},
    {"rotate.cu", rotate, sizeof rotate},
    {"embedding.cu", embedding, sizeof embedding},
    {"reduce.cu", reduce, sizeof reduce},
    {"random.cu", random, sizeof random},
    {"router.cu", router, sizeof router},
    {"copy.cu", copy, sizeof copy},
    {"cross_entropy.cu", cross_entropy, sizeof cross_entropy},
    {"optimizer.cu", optimizer, sizeof optimizer},
    {"product.cu", product, sizeof product},
    {"turn.cuh", turn, sizeof turn},
    {"flash.cuh", flash, sizeof flash},
    {"attention_flash.cu", attention_flash, sizeof attention_flash},
    {"attention_flash_backward.cu", attention_flash_backward, sizeof attention_flash_backward},
    {"attention_sm90.cuh", attention_sm90, sizeof attention_sm90},
    {"attention_sm90_copies.cuh", attention_sm90_copies, sizeof attention_sm90_copies},
    {"attention_sm90_forward.cu", attention_sm90_forward, sizeof attention_sm90_forward},
    {"attention_sm90_backward.cu", attention_sm90_backward, sizeof attention_sm90_backward},
    {"attention_sm90_finish.cu", attention_sm90_finish, sizeof attention_sm90_finish},
    {"attention_plain.cu", attention_plain, sizeof attention_plain},
};
const MartletKernelSource *const martletKernelSources = sources;
const size_t martletKernelSourceCount = sizeof sources / sizeof *sources;
