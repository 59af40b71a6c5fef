"""Parameter names and shapes of public JAX models, and which of them should decay.

Names, shapes and axes are those of the repositories named below; sizes are tiny, and one layer of
each kind stands for all. The first column is a judgement from the architecture, made by hand: ``+``
for weights that multiply activations as a matrix, convolution or table, and tokens; ``-`` for
biases, norms, scales, and numbers that set a rate, a threshold or a mixture.
"""

from typing import NamedTuple


class Model(NamedTuple):
    source: str
    leaves: str  # a parameter a line: whether it decays, its path, its shape


MODELS = {
    "Griffin": Model(
        "github.com/google-deepmind/recurrentgemma, recurrentgemma/jax (Flax Linen)",
        """
        + embedder/input_embedding 32x8
        - blocks.0/temporal_pre_norm/scale 8
        + blocks.0/recurrent_block/linear_y/kernel 8x8
        - blocks.0/recurrent_block/linear_y/bias 8
        + blocks.0/recurrent_block/linear_x/kernel 8x8
        - blocks.0/recurrent_block/linear_x/bias 8
        + blocks.0/recurrent_block/linear_out/kernel 8x8
        - blocks.0/recurrent_block/linear_out/bias 8
        + blocks.0/recurrent_block/conv_1d/w 4x8
        - blocks.0/recurrent_block/conv_1d/b 8
        - blocks.0/recurrent_block/rg_lru/a_param 8
        + blocks.0/recurrent_block/rg_lru/input_gate/w 2x4x4
        - blocks.0/recurrent_block/rg_lru/input_gate/b 2x4
        + blocks.0/recurrent_block/rg_lru/a_gate/w 2x4x4
        - blocks.0/recurrent_block/rg_lru/a_gate/b 2x4
        - blocks.0/channel_pre_norm/scale 8
        + blocks.0/mlp_block/ffw_up/w 2x8x24
        - blocks.0/mlp_block/ffw_up/b 2x1x1x24
        + blocks.0/mlp_block/ffw_down/kernel 24x8
        - blocks.0/mlp_block/ffw_down/bias 8
        - blocks.1/temporal_pre_norm/scale 8
        + blocks.1/attention_block/proj_q/kernel 8x8
        + blocks.1/attention_block/proj_k/kernel 8x4
        + blocks.1/attention_block/proj_v/kernel 8x4
        + blocks.1/attention_block/proj_final/kernel 8x8
        - blocks.1/attention_block/proj_final/bias 8
        - final_norm/scale 8
        """,
    ),
    "Mamba-2": Model(
        "github.com/jax-ml/bonsai, bonsai/models/mamba2 (Flax NNX)",
        """
        + embedder/embedding 32x8
        - layers/0/norm/weight 8
        + layers/0/mixer/in_proj/kernel 8x44
        + layers/0/mixer/conv1d/conv/kernel 4x1x24
        - layers/0/mixer/conv1d/conv/bias 24
        - layers/0/mixer/dt_bias 4
        - layers/0/mixer/A_log 4
        - layers/0/mixer/D 4
        - layers/0/mixer/norm/weight 16
        + layers/0/mixer/out_proj/kernel 16x8
        - final_norm/weight 8
        """,
    ),
    "Mamba, a stack of 3 layers": Model(
        "github.com/apple/axlearn, axlearn/common/ssm.py, which itself sets weight_decay_scale=0 "
        "for log_a and d",
        """
        + repeat/layer/mamba_layer/input_proj/weight 3x8x2x16
        + repeat/layer/mamba_layer/conv/weight 3x4x1x16
        - repeat/layer/mamba_layer/conv/bias 3x16
        + repeat/layer/mamba_layer/x_proj/weight 3x16x9
        + repeat/layer/mamba_layer/dt_proj/weight 3x1x16
        - repeat/layer/mamba_layer/dt_proj/bias 3x16
        + repeat/layer/mamba_layer/out_proj/weight 3x16x8
        - repeat/layer/mamba_layer/log_a 3x4x16
        - repeat/layer/mamba_layer/d 3x1x16
        """,
    ),
    "S5": Model(
        "github.com/lindermanlab/S5, s5/ssm.py and s5/layers.py (Flax Linen)",
        """
        - layers_0/seq/Lambda_re 4
        - layers_0/seq/Lambda_im 4
        + layers_0/seq/B 4x8x2
        + layers_0/seq/C 8x4x2
        - layers_0/seq/D 8
        - layers_0/seq/log_step 4x1
        + layers_0/out2/kernel 8x8
        - layers_0/out2/bias 8
        - layers_0/norm/scale 8
        - layers_0/norm/bias 8
        """,
    ),
    "LRU": Model(
        "github.com/NicolasZucchet/minimal-LRU, lru/model.py (Flax Linen)",
        """
        + encoder/encoder/kernel 3x8
        - encoder/encoder/bias 8
        - encoder/layers_0/seq/theta_log 4
        - encoder/layers_0/seq/nu_log 4
        - encoder/layers_0/seq/gamma_log 4
        + encoder/layers_0/seq/B_re 4x8
        + encoder/layers_0/seq/B_im 4x8
        + encoder/layers_0/seq/C_re 8x4
        + encoder/layers_0/seq/C_im 8x4
        - encoder/layers_0/seq/D 8
        + encoder/layers_0/out1/kernel 8x8
        - encoder/layers_0/out1/bias 8
        - encoder/layers_0/normalization/scale 8
        - encoder/layers_0/normalization/bias 8
        + decoder/kernel 8x10
        - decoder/bias 10
        """,
    ),
    "GPT-OSS": Model(
        "github.com/jax-ml/bonsai, bonsai/models/gpt_oss (Flax NNX)",
        """
        + model/embed_tokens/embedding 32x8
        - model/layers/0/input_layernorm/weight 8
        + model/layers/0/self_attn/q_proj/kernel 8x8
        - model/layers/0/self_attn/q_proj/bias 8
        + model/layers/0/self_attn/k_proj/kernel 8x4
        - model/layers/0/self_attn/k_proj/bias 4
        + model/layers/0/self_attn/v_proj/kernel 8x4
        - model/layers/0/self_attn/v_proj/bias 4
        + model/layers/0/self_attn/o_proj/kernel 8x8
        - model/layers/0/self_attn/o_proj/bias 8
        - model/layers/0/self_attn/sinks 2
        - model/layers/0/post_attention_layernorm/weight 8
        + model/layers/0/mlp/router/linear/kernel 8x4
        - model/layers/0/mlp/router/linear/bias 4
        + model/layers/0/mlp/experts/gate_up_proj 4x8x12
        - model/layers/0/mlp/experts/gate_up_proj_bias 4x12
        + model/layers/0/mlp/experts/down_proj 4x6x8
        - model/layers/0/mlp/experts/down_proj_bias 4x8
        - model/norm/weight 8
        + lm_head/kernel 8x32
        """,
    ),
    "DINOv3": Model(
        "github.com/jax-ml/bonsai, bonsai/models/dinov3 (Flax NNX)",
        """
        + embeddings/cls_token 1x1x8
        + embeddings/mask_token 1x1x8
        + embeddings/register_tokens 1x4x8
        + embeddings/patch_embeddings/kernel 2x2x3x8
        - embeddings/patch_embeddings/bias 8
        - layer/0/norm1/scale 8
        - layer/0/norm1/bias 8
        + layer/0/attention/q_proj/kernel 8x8
        - layer/0/attention/q_proj/bias 8
        + layer/0/attention/k_proj/kernel 8x8
        + layer/0/attention/v_proj/kernel 8x8
        - layer/0/attention/v_proj/bias 8
        + layer/0/attention/o_proj/kernel 8x8
        - layer/0/attention/o_proj/bias 8
        - layer/0/layer_scale1/lambda1 8
        - layer/0/norm2/scale 8
        - layer/0/norm2/bias 8
        + layer/0/mlp/gate_proj/kernel 8x16
        - layer/0/mlp/gate_proj/bias 16
        + layer/0/mlp/up_proj/kernel 8x16
        - layer/0/mlp/up_proj/bias 16
        + layer/0/mlp/down_proj/kernel 16x8
        - layer/0/mlp/down_proj/bias 8
        - layer/0/layer_scale2/lambda1 8
        - norm/scale 8
        - norm/bias 8
        """,
    ),
    "Gemma 4": Model(
        "github.com/google-deepmind/gemma, gemma/gm/nn/gemma4 (Flax Linen)",
        """
        + embedder/input_embedding 32x8
        + embedder/per_layer_embeddings 32x2x4
        + embedder/per_layer_model_projection/w 8x2x4
        - embedder/per_layer_projection_norm/scale 4
        - layer_0/pre_attention_norm/scale 8
        - layer_0/skip_scale 1
        + layer_0/attn/q_einsum/w 2x8x4
        + layer_0/attn/kv_einsum/w 2x1x8x4
        + layer_0/attn/attn_vec_einsum/w 2x4x8
        - layer_0/attn/query_norm/scale 4
        - layer_0/attn/key_norm/scale 4
        - layer_0/post_attention_norm/scale 8
        - layer_0/pre_ffw_norm/scale 8
        + layer_0/mlp/gating_einsum 2x16x8
        + layer_0/mlp/linear 16x8
        - layer_0/post_ffw_norm/scale 8
        - layer_0/post_per_layer_input_norm/scale 8
        + layer_0/per_layer_input_gate/w 8x4
        + layer_0/per_layer_projection/w 4x8
        - final_norm/scale 8
        """,
    ),
    "Qwen3-Next, scanned along the second axis": Model(
        "github.com/AI-Hypercomputer/maxtext, src/maxtext/models/qwen3.py (Flax NNX)",
        """
        + token_embedder/embedding 32x8
        - decoder/layers/layer_0/input_layernorm/scale 8x3
        + decoder/layers/layer_0/attention/in_proj_qkvz/kernel 8x3x24
        + decoder/layers/layer_0/attention/in_proj_ba/kernel 8x3x4
        + decoder/layers/layer_0/attention/conv1d/kernel 4x3x1x16
        - decoder/layers/layer_0/attention/A_log 2x3
        - decoder/layers/layer_0/attention/dt_bias 2x3
        - decoder/layers/layer_0/attention/norm/rms_norm/scale 4x3
        + decoder/layers/layer_0/attention/out_proj/kernel 8x3x8
        - decoder/layers/layer_0/post_attention_layernorm/scale 8x3
        + decoder/layers/layer_0/mlp/routed_experts/gate/kernel 8x3x4
        + decoder/layers/layer_0/mlp/routed_experts/wi_0 4x3x8x6
        + decoder/layers/layer_0/mlp/routed_experts/wi_1 4x3x8x6
        + decoder/layers/layer_0/mlp/routed_experts/wo 4x3x6x8
        + decoder/layers/layer_0/mlp/shared_expert/wi_0/kernel 8x3x6
        + decoder/layers/layer_0/mlp/shared_expert/wi_1/kernel 8x3x6
        + decoder/layers/layer_0/mlp/shared_expert/wo/kernel 6x3x8
        + decoder/layers/layer_0/mlp/shared_expert_gate/kernel 8x3x1
        + decoder/layers/layer_3/attention/attention/query/kernel 8x3x2x4
        - decoder/layers/layer_3/attention/attention/query_norm/scale 4x3
        - decoder/decoder_norm/scale 8
        + decoder/logits_dense/kernel 8x32
        """,
    ),
    "nanochat": Model(
        "github.com/mlnomadpy/flaxchat, flaxchat/gpt.py (Flax NNX)",
        """
        + wte/embedding 32x8
        + blocks/0/attn/c_q/kernel 8x8
        + blocks/0/attn/c_k/kernel 8x8
        + blocks/0/attn/c_v/kernel 8x8
        + blocks/0/attn/c_proj/kernel 8x8
        + blocks/0/attn/ve_gate/kernel 12x2
        + blocks/0/mlp/c_fc/kernel 8x32
        + blocks/0/mlp/c_proj/kernel 32x8
        + lm_head/kernel 8x32
        - resid_lambdas 2
        - x0_lambdas 2
        + smear_gate/kernel 24x1
        - smear_lambda 1
        - backout_lambda 1
        + value_embeds/1/embedding 32x8
        """,
    ),
}
